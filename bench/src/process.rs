//! Processes that serve, and the time they use.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Doing as _, Failure};

/// How long a server may take until it can be used.
const UP_LIMIT: Duration = Duration::from_secs(20);

/// A server that ends with this.
pub struct Server {
    child: Child,
    what: String,
}

impl Server {
    /// Starts it, and waits until `is_up`.
    ///
    /// # Errors
    /// It cannot be started, or does not come up.
    pub fn start(command: &mut Command, is_up: impl Fn() -> bool) -> Result<Self, Failure> {
        let what = format!("{command:?}");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().doing(&what)?;
        let mut server = Self { child, what };
        let begun = Instant::now();
        while !is_up() {
            if let Some(status) = server.child.try_wait().doing(&server.what)? {
                return Err(Failure::new(format!("{} ended: {status}", server.what)));
            }
            if begun.elapsed() > UP_LIMIT {
                return Err(Failure::new(format!("{} does not come up", server.what)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let asked = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        if !matches!(asked, Some(Ok(()))) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Processor time that these processes have used, with that of their kernel workers, in microseconds.
///
/// # Errors
/// One of them is gone.
pub fn used_us(pids: &[u32]) -> Result<f64, Failure> {
    let ticks_s = rustix::param::clock_ticks_per_second();
    let mut ticks = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).doing(&path)?;
        // The name may contain anything; the fields after it do not (proc(5): utime and stime are numbers 14 and 15).
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        ticks += fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(ticks as f64 * 1e6 / ticks_s as f64)
}

/// The processes of that program which name this folder in their command line.
///
/// # Errors
/// `/proc` cannot be read.
pub fn of_folder(program: &str, folder: &Path) -> Result<Vec<u32>, Failure> {
    let folder = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").doing("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended meanwhile.
        let is_it = fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == program);
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_it && String::from_utf8_lossy(&line).contains(&folder) {
            found.push(pid);
        }
    }
    Ok(found)
}
