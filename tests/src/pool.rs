//! A pool of real processes in a directory of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use crate::leaks;
use crate::process::{self, Process, program};
use crate::random::Random;
use crate::run::{COMMAND_LIMIT, Run, run, run_within};
use crate::torture::nets::Nets;
use crate::wait::{holds_within, wait_for};

/// How long a process may take until it is up again.
const UP_LIMIT: Duration = Duration::from_secs(20);

/// What pool a test needs.
#[derive(Clone, Debug)]
pub struct Wish {
    /// How many servers.
    pub servers: usize,
    /// Room for data in each server's area; none lends nothing.
    pub area: Option<&'static str>,
}

/// A running pool. When it is dropped, everything is stopped, and it is asserted that nothing stays behind.
pub struct Pool {
    dir: PathBuf,
    _temporary: tempfile::TempDir,
    mounted: Mutex<BTreeSet<String>>,
    /// Where its machines have namespaces of their own; the manager's is number 0, those of the servers follow.
    nets: Option<Nets>,
}

/// A fresh directory on a disk; `/tmp` may be memory, where O_DIRECT does not work.
///
/// # Panics
/// It cannot be made.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("sublet-test-").tempdir_in("/var/tmp").unwrap()
}

/// The command line `sublet ARGS`, without the caller's environment.
pub fn sublet() -> Command {
    let mut command = Command::new(program());
    command.env_remove("SUBLET_MANAGER").env_remove("SUBLET_HOME").env("SUBLET_CONFIG", "/dev/null");
    command
}

impl Pool {
    /// So many servers, each with an area of 256 MiB: `a1`, `b1`, ...
    pub fn new(servers: usize) -> Self {
        Self::with(&Wish { servers, area: Some("256M") })
    }

    /// A pool as wished.
    ///
    /// # Panics
    /// It does not come up.
    pub fn with(wish: &Wish) -> Self {
        let temporary = scratch();
        let pool = Self::empty(temporary);
        pool.start(wish).ok();
        pool
    }

    /// A pool without processes; tests that start them by hand use it.
    pub fn empty(temporary: tempfile::TempDir) -> Self {
        let mut temporary = temporary;
        if std::env::var_os("SUBLET_TEST_KEEP").is_some() {
            temporary.disable_cleanup(true);
        }
        Self { dir: temporary.path().to_owned(), _temporary: temporary, mounted: Mutex::default(), nets: None }
    }

    /// A pool without processes whose machines live in network namespaces.
    pub fn inside(nets: Nets) -> Self {
        let mut pool = Self::empty(scratch());
        pool.nets = Some(nets);
        pool
    }

    /// The namespaces, if it has any.
    pub fn nets(&self) -> Option<&Nets> {
        self.nets.as_ref()
    }

    /// A command, as the machine of that server runs it.
    fn at(&self, server: usize, command: Command) -> Command {
        match &self.nets {
            Some(nets) => nets.inside(server + 1, command),
            None => command,
        }
    }

    /// Runs `sublet playground --detach`.
    pub fn start(&self, wish: &Wish) -> Run {
        let mut command = sublet();
        command.args(["playground", "--detach", "--servers", &wish.servers.to_string(), "--dir"]).arg(&self.dir);
        match wish.area {
            Some(size) => command.args(["--area-size", size]),
            None => command.arg("--no-areas"),
        };
        run(&mut command)
    }

    /// Runs `sublet playground --stop`.
    pub fn stop(&self) -> Run {
        let mut command = sublet();
        command.args(["playground", "--stop", "--dir"]).arg(&self.dir);
        run(&mut self.at(0, command))
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The state directory of a server; 0 is `server-a`.
    pub fn home(&self, server: usize) -> PathBuf {
        self.dir.join(name(server))
    }

    /// The manager's directory.
    pub fn manager_home(&self) -> PathBuf {
        self.dir.join("manager")
    }

    /// The manager's URL, as `D/env` has it.
    ///
    /// # Panics
    /// There is none.
    pub fn url(&self) -> String {
        let env = std::fs::read_to_string(self.dir.join("env")).unwrap();
        let line = env.lines().find_map(|line| line.strip_prefix("export SUBLET_MANAGER=")).unwrap();
        line.trim_matches('\'').to_owned()
    }

    /// The NBD socket of a mounted volume.
    pub fn socket(&self, server: usize, volume: &str) -> PathBuf {
        self.mount_dir(server, volume).join("nbd.sock")
    }

    /// The directory of a mount.
    pub fn mount_dir(&self, server: usize, volume: &str) -> PathBuf {
        self.home(server).join("mounts").join(volume)
    }

    /// Runs `sublet ARGS` as that server. The manager is the one that the server knows.
    #[track_caller]
    pub fn sublet(&self, server: usize, args: &[&str]) -> Run {
        self.sublet_within(server, args, COMMAND_LIMIT)
    }

    /// As [`Pool::sublet`], with a time limit of its own.
    #[track_caller]
    pub fn sublet_within(&self, server: usize, args: &[&str], limit: Duration) -> Run {
        if let ["mount", volume, ..] = args {
            self.mounted.lock().unwrap().insert((*volume).to_owned());
        }
        let mut command = sublet();
        command.env("SUBLET_HOME", self.home(server)).args(args);
        run_within(&mut self.at(server, command), limit)
    }

    /// Runs a line of words, which must succeed.
    #[track_caller]
    pub fn ok(&self, server: usize, line: &str) -> Run {
        self.sublet(server, &words(line)).ok()
    }

    /// Runs a line of words with `--json`, and returns the answer.
    #[track_caller]
    pub fn json(&self, server: usize, line: &str) -> Value {
        let mut args = words(line);
        args.push("--json");
        self.sublet(server, &args).json()
    }

    /// Runs a line of words, which must be refused with that exit code.
    #[track_caller]
    pub fn refused(&self, server: usize, line: &str, code: i32) -> Run {
        self.sublet(server, &words(line)).refused(code)
    }

    /// The row of a volume.
    #[track_caller]
    pub fn volume(&self, volume: &str) -> Value {
        self.json(0, &format!("volume show {volume}"))
    }

    /// The process of a server.
    ///
    /// # Panics
    /// It does not run.
    #[track_caller]
    pub fn server(&self, server: usize) -> Process {
        Process::of(&self.home(server)).unwrap_or_else(|| panic!("{} does not run", name(server)))
    }

    /// The manager's process.
    ///
    /// # Panics
    /// It does not run.
    #[track_caller]
    pub fn manager(&self) -> Process {
        Process::of(&self.manager_home()).expect("the manager does not run")
    }

    /// The client's process of a mounted volume.
    ///
    /// # Panics
    /// It does not run.
    #[track_caller]
    pub fn client(&self, server: usize, volume: &str) -> Process {
        Process::of(&self.mount_dir(server, volume)).unwrap_or_else(|| panic!("no client of {volume} runs"))
    }

    /// True once the server says that it has reached the manager.
    pub fn is_up(&self, server: usize) -> bool {
        let status = self.sublet(server, &["status", "--json"]);
        status.succeeded() && status.json().pointer("/server/manager_reached") == Some(&Value::Bool(true))
    }

    /// True if the manager answers.
    pub fn manager_answers(&self) -> bool {
        self.sublet(0, &["server", "ls", "--json"]).succeeded()
    }

    /// Kills a server and starts it again; returns once it is up.
    #[track_caller]
    pub fn bounce(&self, server: usize) {
        let process = self.server(server);
        process.kill();
        self.revive(server, &process);
    }

    /// Starts a killed server again; returns once it is up.
    #[track_caller]
    pub fn revive(&self, server: usize, process: &Process) {
        process.restart();
        wait_for(&format!("{} to be up", name(server)), UP_LIMIT, || Process::of(&process.home).is_some() && self.is_up(server));
    }

    /// Kills the manager and starts it again; returns once it answers.
    #[track_caller]
    pub fn bounce_manager(&self) {
        let process = self.manager();
        process.kill();
        self.revive_manager(&process);
    }

    /// The manager's table is lost: a new, empty manager is started with the address of the old one; returns once it answers.
    ///
    /// # Panics
    /// The table cannot be removed.
    #[track_caller]
    pub fn lose_table(&self) {
        let process = self.manager();
        process.kill();
        for name in ["table.redb", "lock"] {
            std::fs::remove_file(self.manager_home().join(name)).unwrap();
        }
        self.revive_manager(&process);
    }

    /// Starts a killed manager again; returns once it answers.
    #[track_caller]
    pub fn revive_manager(&self, process: &Process) {
        process.restart();
        wait_for("the manager to answer", UP_LIMIT, || self.manager_answers());
    }

    fn mounted(&self) -> Vec<String> {
        self.mounted.lock().unwrap().iter().cloned().collect()
    }

    /// The ends of all logs, for a failed test.
    fn logs(&self) -> String {
        let mut text = String::new();
        let mut folders: Vec<PathBuf> = folders(&self.dir);
        let mounts: Vec<PathBuf> = folders.iter().flat_map(|dir| self::folders(&dir.join("mounts"))).collect();
        folders.extend(mounts);
        for dir in folders {
            let Ok(log) = std::fs::read(dir.join("log")) else { continue };
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines.get(lines.len().saturating_sub(25)..).unwrap_or_default();
            text += &format!("--- {}\n{}\n", dir.display(), end.join("\n"));
        }
        text
    }
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    list.sort();
    list
}

/// A port of `host` that is free now, below those that the kernel gives to outgoing connections: one of these might be taken
/// before it is listened on.
///
/// # Panics
/// There is none.
pub fn free_port(host: &str) -> u16 {
    let mut random = Random::of_clock();
    let mut ports = std::iter::repeat_with(|| 10_000 + random.below(20_000) as u16).take(1000);
    ports.find(|port| std::net::TcpListener::bind(format!("{host}:{port}")).is_ok()).expect("no free port")
}

/// The words of a line.
pub fn words(line: &str) -> Vec<&str> {
    line.split(' ').filter(|word| !word.is_empty()).collect()
}

/// The name of a server in a playground.
pub fn name(server: usize) -> String {
    format!("server-{}", char::from(b'a' + u8::try_from(server).unwrap()))
}

impl Drop for Pool {
    fn drop(&mut self) {
        let names = self.mounted();
        // Frozen processes could not end.
        for (pid, _) in process::naming(&self.dir) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::CONT);
            }
        }
        if std::thread::panicking() {
            eprintln!("the ends of the logs (SUBLET_TEST_KEEP=1 keeps {}):\n{}", self.dir.display(), self.logs());
            leaks::sweep(&self.dir, &names);
            return;
        }
        let stopped = self.stop();
        // Kernels and init take a moment until what has ended is gone.
        let clean = holds_within(Duration::from_secs(5), || leaks::find(&self.dir, &names).is_empty());
        let left = leaks::find(&self.dir, &names);
        let logs = if clean && stopped.succeeded() { String::new() } else { self.logs() };
        leaks::sweep(&self.dir, &names);
        assert!(stopped.succeeded(), "the pool could not be stopped: {stopped}\n{logs}");
        assert!(clean, "left behind:\n{}\n{logs}", left.join("\n"));
        let panics = panics(&self.dir);
        assert!(panics.is_empty(), "a process panicked:\n{}", panics.join("\n"));
    }
}

/// Panics in the logs of the pool.
fn panics(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for home in folders(dir) {
        let log = std::fs::read(home.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        found.extend(log.lines().filter(|l| l.contains("panicked at")).map(|l| format!("{}: {l}", home.display())));
    }
    found
}
