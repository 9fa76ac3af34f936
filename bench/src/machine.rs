//! The machine, in words, and what its host takes from it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Doing as _, Failure};

/// A moment in the machine's account of processor time.
pub struct Stolen {
    stolen: u64,
    all: u64,
}

impl Stolen {
    /// Now.
    ///
    /// # Errors
    /// `/proc/stat` cannot be read.
    pub fn now() -> Result<Self, Failure> {
        let stat = fs::read_to_string("/proc/stat").doing("/proc/stat")?;
        // proc(5): user, nice, system, idle, iowait, irq, softirq, steal; what follows is contained in the first two.
        let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
        let fields: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        Ok(Self { stolen: fields.get(7).copied().unwrap_or_default(), all: fields.iter().sum() })
    }

    /// Which part of all processor time was stolen since.
    ///
    /// # Errors
    /// `/proc/stat` cannot be read.
    pub fn since(&self) -> Result<f64, Failure> {
        let now = Self::now()?;
        Ok((now.stolen - self.stolen) as f64 / (now.all - self.all).max(1) as f64)
    }
}

fn line_of(path: &str, key: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned()).unwrap_or_else(|| "unknown".to_owned())
}

/// The first line that a program says of itself.
fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("not here").to_owned()
}

/// Processors, memory, system, and the versions of all that is measured.
pub fn words(program: &Path) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory_kib: u64 = line_of("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let uname = rustix::system::uname();
    let mut words = vec![
        format!("{cores} processors ({})", line_of("/proc/cpuinfo", "model name")),
        format!("{} GiB memory", memory_kib.div_ceil(1 << 20)),
        format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
    ];
    let peers = ["fio", "nbdkit", "qemu-nbd", "qemu-storage-daemon"].map(|name| version(Path::new(name)));
    words.extend(std::iter::once(version(program)).chain(peers));
    words
}
