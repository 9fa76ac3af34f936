//! Processes of a pool: found by their pid file, killed, frozen, started again with the same command line.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// The `sublet` command that is tested: built by `cargo xtask test` beside the tests themselves.
///
/// # Panics
/// It has not been built.
pub fn program() -> PathBuf {
    let profile = std::env::var("SUBLET_TEST_PROFILE").unwrap_or_else(|_| "debug".into());
    let own = std::env::current_exe().unwrap();
    // target/PROFILE/deps/NAME: the profile of the tests themselves does not matter.
    let target = own.ancestors().find(|dir| dir.ends_with("deps")).and_then(|deps| deps.ancestors().nth(2)).unwrap();
    let program = target.join(profile).join("sublet");
    assert!(program.is_file(), "{} is missing: cargo build -p sublet", program.display());
    program
}

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number.
    pub pid: Pid,
    /// Its command line.
    pub words: Vec<String>,
    /// The directory with its `pid` and `log`.
    pub home: PathBuf,
}

/// The command line of a process; none if there is no such process (a zombie has none either).
fn words_of(pid: i32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|b| !b.is_empty())?;
    Some(bytes.split(|b| *b == 0).filter(|w| !w.is_empty()).map(|w| String::from_utf8_lossy(w).into_owned()).collect())
}

impl Process {
    /// The one whose number is in `home/pid`, if it runs.
    pub fn of(home: &Path) -> Option<Self> {
        let pid: i32 = std::fs::read_to_string(home.join("pid")).ok()?.trim().parse().ok()?;
        let words = words_of(pid).filter(|words| words.iter().any(|w| Path::new(w) == home))?;
        Some(Self { pid: Pid::from_raw(pid)?, words, home: home.to_owned() })
    }

    /// True while it runs.
    pub fn runs(&self) -> bool {
        words_of(self.pid.as_raw_nonzero().get()).as_ref() == Some(&self.words)
    }

    /// Sends a signal; a process that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        if self.runs() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// `kill -9`; returns once it is gone, its files, locks and ports included: threads of a killed process may live on for
    /// a moment after its command line has vanished.
    ///
    /// # Panics
    /// It does not go.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        wait_for(&format!("the end of killed process {:?}", self.words), Duration::from_secs(20), || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_nonzero())).map_or(0, Iterator::count);
            tasks == 0 || (tasks == 1 && self.state() == Some('Z'))
        });
    }

    /// SIGSTOP; returns once it is stopped.
    ///
    /// # Panics
    /// It does not stop.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        wait_for("the process to be stopped", Duration::from_secs(5), || self.state() == Some('T'));
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// The state letter of proc(5).
    pub fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero())).ok()?;
        stat.rsplit(')').next()?.trim().chars().next()
    }

    /// Starts it again with the same command line.
    pub fn restart(&self) {
        start(&self.home, &self.words);
    }
}

/// Starts a command line (program first) in the background, with its output at the end of `home/log`.
///
/// # Panics
/// It cannot be started.
pub fn start(home: &Path, words: &[String]) {
    start_with(home, words, &[]);
}

/// As [`start`], with these variables in its environment. The process number of a command line that begins with
/// `nsenter --net=...` is that of the program behind it.
///
/// # Panics
/// It cannot be started.
pub fn start_with(home: &Path, words: &[String], env: &[(&str, String)]) {
    std::fs::create_dir_all(home).unwrap();
    let log = File::options().create(true).append(true).open(home.join("log")).unwrap();
    let (program, args) = words.split_first().expect("a command line has a program");
    let mut child = Command::new(program)
        .args(args)
        .env_remove("SUBLET_MANAGER")
        .env_remove("SUBLET_HOME")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {words:?}: {e}"));
    // Reaped when it ends, so that it does not look alive.
    std::thread::spawn(move || child.wait());
}

/// All processes of `sublet` whose command line names something in `dir`: (number, command line). Other programs may name it
/// as well, and are nobody's business here.
pub fn naming(dir: &Path) -> Vec<(i32, String)> {
    let numbers = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter_map(|pid| words_of(pid).map(|words| (pid, words)))
        .filter(|(_, words)| words.first().is_some_and(|program| Path::new(program).ends_with("sublet")))
        .filter(|(_, words)| words.iter().any(|word| Path::new(word).starts_with(dir)))
        .map(|(pid, words)| (pid, words.join(" ")))
        .collect()
}
