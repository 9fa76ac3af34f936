//! A PostgreSQL cluster of its own in a directory: no system service, no TCP port.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::all_there;
use crate::run::{Run, run_within, sh, tool};
use crate::wait::wait_for;

/// How long a program of PostgreSQL may take while lenders come and go.
const LIMIT: Duration = Duration::from_secs(300);

/// The directory with the server's programs of the highest version; none if there are none here.
///
/// # Panics
/// As root, if there are none.
pub fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let number = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let found = versions.filter(|bin| bin.join("pg_amcheck").is_file() && bin.join("initdb").is_file()).max_by_key(number);
    let missing = if found.is_some() { &[][..] } else { &["a PostgreSQL server (package postgresql)"] };
    if all_there(missing) { found } else { None }
}

/// A cluster; it is stopped when this is dropped.
pub struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    sockets: tempfile::TempDir,
}

impl Postgres {
    /// Makes a cluster with checksums in `dir`, and starts it.
    ///
    /// # Panics
    /// It does not come up.
    pub fn new(bin: &Path, dir: &Path) -> Self {
        let sockets = tempfile::Builder::new().prefix("sublet-pg-").tempdir_in("/var/tmp").unwrap();
        let postgres = Self { bin: bin.to_owned(), data: dir.join("data"), sockets };
        std::fs::create_dir_all(&postgres.data).unwrap();
        for path in [postgres.data.as_path(), postgres.sockets.path()] {
            sh("chown", &["postgres:postgres", &path.to_string_lossy()]);
        }
        let data = postgres.data.to_string_lossy().into_owned();
        postgres.run("initdb", &["-D", &data, "-k", "-A", "trust", "--wal-segsize=4", "--no-instructions"]).ok();
        postgres.start();
        postgres
    }

    /// A program of PostgreSQL, run as its user.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = tool("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(self.bin.join(program)).args(args);
        command.current_dir("/").env("PGHOST", self.sockets.path()).env("PGDATABASE", "postgres").env("PGUSER", "postgres");
        command
    }

    /// Runs a program of PostgreSQL to its end.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> Run {
        run_within(&mut self.command(program, args), LIMIT)
    }

    /// Starts the cluster, with recovery where it has crashed.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    pub fn start(&self) {
        let sockets = self.sockets.path().display();
        let options =
            format!("-k {sockets} -c listen_addresses= -c shared_buffers=32MB -c max_wal_size=64MB -c checkpoint_timeout=30s");
        let log = self.sockets.path().join("log").to_string_lossy().into_owned();
        let data = self.data.to_string_lossy().into_owned();
        let run = self.run("pg_ctl", &["start", "-w", "-t", "120", "-D", &data, "-l", &log, "-o", &options]);
        assert!(run.succeeded(), "{run}\n{}", std::fs::read_to_string(log).unwrap_or_default());
    }

    /// Ends it: `fast`, or `immediate` as a crash would.
    pub fn stop(&self, mode: &str) -> Run {
        let data = self.data.to_string_lossy().into_owned();
        self.run("pg_ctl", &["stop", "-w", "-t", "120", "-D", &data, "-m", mode])
    }

    /// Its processes: those that live in the data directory.
    fn processes(&self) -> Vec<Pid> {
        let numbers = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        let own = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&self.data));
        numbers.filter(own).filter_map(Pid::from_raw).collect()
    }

    /// Kills every process of it, as a machine does that dies; returns once they are gone. A process that its parent has not
    /// taken notice of yet still counts for PostgreSQL.
    ///
    /// # Panics
    /// They stay.
    pub fn kill(&self) {
        let own = self.processes();
        for pid in &own {
            // It may have ended by itself.
            let _ = kill_process(*pid, Signal::KILL);
        }
        let there = |pid: &Pid| Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
        wait_for("the processes of PostgreSQL to end", Duration::from_secs(30), || !own.iter().any(there));
    }

    /// The rows that a query answers, unaligned.
    #[track_caller]
    pub fn query(&self, query: &str) -> Vec<String> {
        let run = self.run("psql", &["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", query]).ok();
        run.out.lines().map(str::to_owned).collect()
    }

    /// Checks tables and indexes with `pg_amcheck`, every block of them.
    #[track_caller]
    pub fn check(&self) {
        let run = self.run("pg_amcheck", &["--all", "--install-missing", "--heapallindexed", "--parent-check"]).ok();
        assert!(run.out.trim().is_empty(), "pg_amcheck: {run}");
    }

    /// Checks the checksums of all pages; it must have been stopped.
    #[track_caller]
    pub fn check_pages(&self) {
        let data = self.data.to_string_lossy().into_owned();
        let run = self.run("pg_checksums", &["--check", "-D", &data]).ok();
        assert!(run.out.contains("Bad checksums:  0"), "{run}");
    }

    /// Runs pgbench in the background.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn bench(&self, clients: u32, time: Duration) -> Child {
        let time = time.as_secs().to_string();
        let mut command = self.command("pgbench", &["-n", "-c", &clients.to_string(), "-T", &time, "postgres"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A session that commits one statement after the other.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn session(&self) -> Session {
        let mut command = self.command("psql", &["-X", "-v", "ON_ERROR_STOP=1"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Session { child, input, output }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A psql that is fed line by line.
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Inserts a row; true once PostgreSQL has acknowledged the commit, false if it has not and the session is over.
    pub fn insert(&mut self, statement: &str) -> bool {
        let mut line = String::new();
        writeln!(self.input, "{statement}").is_ok() && self.output.read_line(&mut line).is_ok() && line.trim() == "INSERT 0 1"
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended with the server.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
