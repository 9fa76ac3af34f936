//! Running commands with a time limit, and looking at how they ended.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Exit codes of `sublet`: a contract with scripts, so they are written out here.
pub mod exit {
    /// A malformed request, or wrong usage.
    pub const BAD_REQUEST: i32 = 2;
    /// Nothing of that name.
    pub const NOT_FOUND: i32 = 3;
    /// The name is taken.
    pub const ALREADY_EXISTS: i32 = 4;
    /// Somebody else holds it, or its state does not allow this.
    pub const CONFLICT: i32 = 5;
    /// Not enough space or servers.
    pub const NO_SPACE: i32 = 6;
    /// Fenced.
    pub const STALE_EPOCH: i32 = 7;
    /// A lender, the manager or the local server does not answer.
    pub const UNREACHABLE: i32 = 8;
    /// It did not finish in time.
    pub const TIMED_OUT: i32 = 9;
    /// A disk or file cannot be read or written.
    pub const IO: i32 = 10;
    /// Nobody knows who asks.
    pub const UNAUTHENTICATED: i32 = 11;
    /// Whoever asks may not do that.
    pub const FORBIDDEN: i32 = 12;
}

/// How long any one command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// A command that has ended.
#[derive(Debug)]
pub struct Run {
    /// What was run.
    pub line: String,
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// True if it exited with 0.
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// Itself, if it exited with 0.
    ///
    /// # Panics
    /// With everything that it printed, otherwise.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.succeeded(), "failed: {self}");
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// The command failed, or printed no JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert!(self.succeeded(), "failed: {self}");
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("no JSON ({e}): {self}"))
    }

    /// Itself, if it was refused with that exit code (see [`exit`]) and a reason for people.
    ///
    /// # Panics
    /// It succeeded, failed otherwise, or said nothing.
    #[track_caller]
    pub fn refused(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "not refused with {code}: {self}");
        assert!(self.err.trim().len() > 10, "refused without a reason: {self}");
        self.sane()
    }

    /// Itself, if it says this on standard error.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "does not say '{text}': {self}");
        self
    }

    /// Itself, if it did not panic.
    ///
    /// # Panics
    /// The command did.
    #[track_caller]
    pub fn sane(self) -> Self {
        assert!(!self.err.contains("panicked at") && self.code.is_some_and(|c| c != 101), "a panic: {self}");
        self
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, code, out, err, took } = self;
        write!(f, "`{line}` ended with {code:?} after {took:.1?}\n--- out\n{out}\n--- err\n{err}\n---")
    }
}

/// Runs a command to its end, at most [`COMMAND_LIMIT`].
///
/// # Panics
/// It could not be started, or did not end in time (it is killed then).
#[track_caller]
pub fn run(command: &mut Command) -> Run {
    run_within(command, COMMAND_LIMIT)
}

/// As [`run`], with a limit of its own.
///
/// # Panics
/// As [`run`].
#[track_caller]
pub fn run_within(command: &mut Command, limit: Duration) -> Run {
    let line = line_of(command);
    let begun = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run `{line}`: {e}"));
    let out = collect(child.stdout.take().unwrap());
    let err = collect(child.stderr.take().unwrap());
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if begun.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    // A process left in the background that keeps the pipe would be a leak: do not wait for it.
    let text = |from: mpsc::Receiver<String>| {
        from.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| "(the pipe stays open)".into())
    };
    let run = Run { line, code: status.and_then(|s| s.code()), out: text(out), err: text(err), took: begun.elapsed() };
    assert!(status.is_some(), "stuck, killed: {run}");
    run
}

fn line_of(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words: Vec<String> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    format!("{program} {}", words.join(" "))
}

fn collect(mut from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What cannot be read is missed by the test that looks for it.
        let _ = from.read_to_end(&mut bytes);
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

/// A tool of the system; root's programs are not on everybody's PATH in Debian.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command
}

/// Runs a tool of the system, which must succeed.
///
/// # Panics
/// It fails.
#[track_caller]
pub fn sh(name: &str, args: &[&str]) -> Run {
    run(tool(name).args(args)).ok()
}
