//! The processes of a playground: starting, finding, stopping, and running the command line in their names.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sublet_api::{ErrorKind, Refusal};

/// How long a process may take to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);

fn own_program() -> Result<PathBuf, Refusal> {
    std::env::current_exe().map_err(|e| Refusal::new(ErrorKind::Internal, format!("cannot find the program's own file: {e}")))
}

/// Starts `sublet ARGS` in the background, in a process group of its own (so that Ctrl-C is ours to pass on), with its
/// output in `home/log`.
///
/// # Errors
/// The log could not be made, or the program not be started.
pub fn spawn(home: &Path, args: &[&str]) -> Result<(), Refusal> {
    let failed =
        |what: &str, e: std::io::Error| Refusal::new(ErrorKind::Io, format!("cannot {what} for {}: {e}", home.display()));
    sublet_link::private_dir(home)?;
    let log = File::options().create(true).append(true).open(home.join("log")).map_err(|e| failed("open the log", e))?;
    let both = log.try_clone().map_err(|e| failed("open the log", e))?;
    let child = Command::new(own_program()?)
        .args(args)
        .env_remove("SUBLET_MANAGER")
        .env_remove("SUBLET_HOME")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(both)
        .process_group(0)
        .spawn()
        .map_err(|e| failed("start sublet", e))?;
    let pid = child.id();
    // A child that ends while this process lives is reaped here, so that it does not look alive.
    std::thread::spawn(move || {
        let mut child = child;
        if let Err(e) = child.wait() {
            eprintln!("sublet: waiting for process {pid} failed: {e}");
        }
    });
    Ok(())
}

/// The process that runs with this state directory, if one does: the `pid` file alone proves nothing, since numbers are
/// used again.
pub fn pid_of(home: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(home.join("pid")).ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let names_home = command.split(|b| *b == 0).any(|word| word == home.as_os_str().as_encoded_bytes());
    names_home.then(|| Pid::from_raw(pid)).flatten()
}

/// The state directories in `dir` whose process runs; servers first, the manager last.
pub fn running(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut homes: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    homes.sort_by_key(|home| (home.ends_with("manager"), home.clone()));
    homes.into_iter().filter(|home| pid_of(home).is_some())
}

/// The mounts of a server: the names of the folders in `home/mounts`.
fn mounts(home: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(home.join("mounts")).into_iter().flatten().flatten();
    entries.filter(|e| e.path().join("mount.json").exists()).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Unmounts everything that the pool in `dir` has mounted, then ends servers and manager.
///
/// # Errors
/// A process that could not be ended.
pub fn stop(dir: &Path) -> Result<(), Refusal> {
    let homes: Vec<PathBuf> = running(dir).collect();
    let url = std::fs::read_to_string(dir.join("env")).ok().and_then(|env| {
        env.lines().find_map(|l| l.strip_prefix("export SUBLET_MANAGER='")).map(|l| l.trim_end_matches('\'').to_owned())
    });
    let servers = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for home in servers.filter(|home| home.join("mounts").is_dir()) {
        for name in mounts(&home) {
            if let Err(refusal) = Sublet::new(url.as_deref().unwrap_or_default(), &home).run(&["unmount", &name]) {
                eprintln!("sublet: {name} of {} was not unmounted: {refusal}", home.display());
            }
        }
    }
    for home in &homes {
        end(home)?;
    }
    Ok(())
}

/// Asks the process of a state directory to end; kills it when it does not.
///
/// # Errors
/// It could not be killed either.
pub fn end(home: &Path) -> Result<(), Refusal> {
    for (signal, limit) in [(Signal::TERM, STOP_LIMIT), (Signal::KILL, Duration::from_secs(5))] {
        let Some(pid) = pid_of(home) else { return Ok(()) };
        if let Err(e) = kill_process(pid, signal)
            && e != rustix::io::Errno::SRCH
        {
            return Err(Refusal::new(ErrorKind::Io, format!("cannot end the process of {}: {e}", home.display())));
        }
        let begun = Instant::now();
        while begun.elapsed() < limit && pid_of(home).is_some() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    match pid_of(home) {
        None => Ok(()),
        Some(pid) => {
            Err(Refusal::new(ErrorKind::TimedOut, format!("process {} of {} does not end", pid.as_raw_nonzero(), home.display())))
        }
    }
}

/// The last lines of a log.
pub fn end_of(log: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let length = file.metadata().map_or(0, |m| m.len());
        if file.seek(SeekFrom::Start(length.saturating_sub(2000))).is_ok() {
            // A log that cannot be read is shown as far as it can.
            let _ = file.read_to_end(&mut text);
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The command `sublet`, run in the name of one server.
#[derive(Clone)]
pub struct Sublet {
    url: String,
    home: PathBuf,
}

impl Sublet {
    /// For that manager and state directory.
    pub fn new(url: &str, home: &Path) -> Self {
        Self { url: url.to_owned(), home: home.to_owned() }
    }

    /// Runs `sublet ARGS`, and returns what it printed.
    ///
    /// # Errors
    /// What it printed on standard error, when it did not exit with 0.
    pub fn run(&self, args: &[&str]) -> Result<String, Refusal> {
        let output = self.output(args)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let text = text.trim().trim_start_matches("sublet: ");
        Err(Refusal::new(ErrorKind::Conflict, format!("sublet {}: {text}", args.join(" "))))
    }

    /// As [`Sublet::run`], and reads the answer as JSON.
    ///
    /// # Errors
    /// As [`Sublet::run`]; or the answer was no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value, Refusal> {
        let text = self.run(args)?;
        serde_json::from_str(&text)
            .map_err(|e| Refusal::new(ErrorKind::Internal, format!("sublet {} answered no JSON: {e}", args.join(" "))))
    }

    fn output(&self, args: &[&str]) -> Result<Output, Refusal> {
        let mut command = Command::new(own_program()?);
        command.args(args).env("SUBLET_HOME", &self.home).stdin(Stdio::null());
        if self.url.is_empty() {
            command.env_remove("SUBLET_MANAGER")
        } else {
            command.env("SUBLET_MANAGER", &self.url)
        };
        command.output().map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot run sublet: {e}")))
    }
}
