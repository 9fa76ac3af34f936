//! fio: write-only crc32c-verify jobs, then reading with `--verify_only`. (fio 3.33 reports false "bad header rand_seed"
//! errors for mixed jobs with verify.)

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::run::{run_within, tool};

/// How long one job may take.
const LIMIT: Duration = Duration::from_secs(150);

/// One job, first written, then verified.
#[derive(Clone, Debug)]
pub struct Fio {
    target: Vec<String>,
    /// `write` or `randwrite`.
    pub rw: &'static str,
    /// Block size, for example `4k`.
    pub block: String,
    /// Requests in flight.
    pub depth: u32,
    /// Where it begins.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
    /// The pattern's seed.
    pub seed: u64,
    /// More flags of the writing job.
    pub more: Vec<String>,
}

impl Fio {
    /// Through a volume's NBD socket.
    pub fn nbd(socket: &Path) -> Self {
        let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
        Self::on(vec!["--ioengine=nbd".into(), uri])
    }

    /// On a block device, without the page cache.
    pub fn device(device: &str) -> Self {
        Self::on(vec!["--ioengine=libaio".into(), "--direct=1".into(), format!("--filename={device}")])
    }

    fn on(target: Vec<String>) -> Self {
        Self { target, rw: "randwrite", block: "4k".into(), depth: 32, offset: 0, size: 16 << 20, seed: 1, more: Vec::new() }
    }

    /// With this block size, depth and amount.
    #[must_use]
    pub fn job(mut self, block: &str, depth: u32, size: u64) -> Self {
        self.block = block.into();
        self.depth = depth;
        self.size = size;
        self
    }

    /// With another pattern.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn run(&self, more: &[&str]) -> Result<Value, String> {
        let mut command = tool("fio");
        command.args(["--name=sublet", "--output-format=json", "--thread", "--verify=crc32c", "--verify_fatal=1"]);
        command.args(&self.target).args(more);
        command.arg(format!("--rw={}", self.rw)).arg(format!("--bs={}", self.block)).arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--offset={}", self.offset)).arg(format!("--size={}", self.size));
        command.args(["--randrepeat=1".to_owned(), format!("--randseed={}", self.seed)]);
        let run = run_within(&mut command, LIMIT);
        // fio writes notes before the JSON.
        let text = run.out.find('{').and_then(|at| run.out.get(at..)).unwrap_or_default();
        let json: Value = serde_json::from_str(text).map_err(|e| format!("no JSON ({e}): {run}"))?;
        let error = json.pointer("/jobs/0/error").and_then(Value::as_i64);
        if run.succeeded() && error == Some(0) && !run.err.contains("verify:") {
            Ok(json)
        } else {
            Err(format!("error {error:?}: {run}"))
        }
    }

    /// Writes the pattern.
    ///
    /// # Errors
    /// What fio says.
    pub fn try_write(&self) -> Result<(), String> {
        let mut more = vec!["--do_verify=0", "--end_fsync=1"];
        more.extend(self.more.iter().map(String::as_str));
        let json = self.run(&more)?;
        let bytes = json.pointer("/jobs/0/write/io_bytes").and_then(Value::as_u64);
        if bytes == Some(self.size) { Ok(()) } else { Err(format!("fio wrote {bytes:?} bytes, not {}", self.size)) }
    }

    /// Reads the pattern back.
    ///
    /// # Errors
    /// What fio says.
    pub fn try_verify(&self) -> Result<(), String> {
        let json = self.run(&["--verify_only=1"])?;
        let bytes = json.pointer("/jobs/0/read/io_bytes").and_then(Value::as_u64);
        if bytes == Some(self.size) { Ok(()) } else { Err(format!("fio verified {bytes:?} bytes, not {}", self.size)) }
    }

    /// Writes and verifies.
    ///
    /// # Panics
    /// With what fio says.
    #[track_caller]
    pub fn check(&self) {
        self.write();
        self.verify();
    }

    /// Writes.
    ///
    /// # Panics
    /// With what fio says.
    #[track_caller]
    pub fn write(&self) {
        if let Err(e) = self.try_write() {
            panic!("fio, writing {} at depth {}: {e}", self.block, self.depth);
        }
    }

    /// Verifies.
    ///
    /// # Panics
    /// With what fio says.
    #[track_caller]
    pub fn verify(&self) {
        if let Err(e) = self.try_verify() {
            panic!("fio, verifying {} at depth {}: {e}", self.block, self.depth);
        }
    }
}

/// A load whose speed is measured.
#[derive(Clone, Debug)]
pub struct Load {
    flags: Vec<String>,
}

/// What it reached.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Requests a second, reads and writes together.
    pub rate: f64,
    /// Mean time of a request in microseconds; of reads, if there are any.
    pub mean_us: f64,
}

impl Load {
    /// Through a volume's NBD socket, over one connection.
    pub fn nbd(socket: &Path, rw: &str, block: &str, depth: u32, time: Duration) -> Self {
        let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
        let mut flags: Vec<String> =
            ["--name=load", "--thread", "--ioengine=nbd", "--time_based", "--norandommap"].map(str::to_owned).into();
        flags.extend([uri, format!("--rw={rw}"), format!("--bs={block}"), format!("--iodepth={depth}")]);
        flags.extend([format!("--runtime={}", time.as_secs()), "--group_reporting".into(), "--output-format=json".into()]);
        Self { flags }
    }

    /// Over so many connections.
    #[must_use]
    pub fn jobs(mut self, jobs: u32) -> Self {
        self.flags.push(format!("--numjobs={jobs}"));
        self
    }

    /// Writes every byte once, so that nothing is blank.
    pub fn fill(socket: &Path, bytes: u64) {
        let mut load = Self::nbd(socket, "write", "1m", 4, Duration::ZERO);
        load.flags.retain(|flag| !matches!(flag.as_str(), "--time_based" | "--runtime=0"));
        load.flags.push(format!("--size={bytes}"));
        load.run();
    }

    /// Runs it.
    ///
    /// # Panics
    /// With what fio says.
    pub fn run(&self) -> Speed {
        let run = run_within(tool("fio").args(&self.flags), LIMIT);
        assert!(run.succeeded(), "{run}");
        let text = run.out.find('{').and_then(|at| run.out.get(at..)).unwrap_or_default();
        let json: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("no JSON ({e}): {run}"));
        let number = |pointer: &str| json.pointer(pointer).and_then(Value::as_f64).unwrap_or_default();
        let reads = number("/jobs/0/read/iops");
        let of = if reads > 0.0 { "read" } else { "write" };
        Speed { rate: reads + number("/jobs/0/write/iops"), mean_us: number(&format!("/jobs/0/{of}/lat_ns/mean")) / 1e3 }
    }
}
