//! fio: one job, and what it says.

use std::process::Command;

use serde_json::Value;

use crate::error::{Doing as _, Failure};
use crate::load::Load;

/// What one job measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Requests a second.
    pub iops: f64,
    /// Mean latency, from the request to its answer, in microseconds.
    pub mean_us: f64,
    /// The latency that 99 of 100 requests stay below, in microseconds.
    pub p99_us: f64,
    /// Megabytes (10^6) a second.
    pub megabytes_s: f64,
    /// All requests.
    pub requests: f64,
}

/// Runs a load for so many seconds on what `io` names.
///
/// # Errors
/// What fio says.
pub fn run(io: &[String], load: &Load, seconds: u64, bytes: u64) -> Result<Measured, Failure> {
    let part = bytes / u64::from(load.connections);
    let mut job = vec![
        format!("--rw={}", load.rw),
        format!("--bs={}", load.block),
        format!("--iodepth={}", load.depth),
        format!("--numjobs={}", load.connections),
        format!("--size={part}"),
        format!("--offset_increment={part}"),
        format!("--runtime={seconds}"),
    ];
    job.extend(["--time_based", "--norandommap", "--randrepeat=0", "--group_reporting"].map(str::to_owned));
    if load.fsync {
        job.push("--fsync=1".to_owned());
    }
    let told = call(io, &job)?;
    let side = if load.writes() { "write" } else { "read" };
    let number = |path: &str| told.pointer(&format!("/jobs/0/{side}/{path}")).and_then(Value::as_f64).unwrap_or_default();
    // With a flush after every write, what a user waits for is both.
    let flush =
        if load.fsync { told.pointer("/jobs/0/sync/lat_ns/mean").and_then(Value::as_f64).unwrap_or_default() } else { 0.0 };
    let measured = Measured {
        iops: number("iops"),
        mean_us: (number("lat_ns/mean") + flush) / 1e3,
        p99_us: number("clat_ns/percentile/99.000000") / 1e3,
        megabytes_s: number("bw_bytes") / 1e6,
        requests: number("total_ios"),
    };
    if measured.requests < 1.0 { Err(Failure::new(format!("fio did nothing: {told}"))) } else { Ok(measured) }
}

/// Writes all of it once, so that nothing is a hole.
///
/// # Errors
/// What fio says.
pub fn fill(io: &[String], bytes: u64) -> Result<(), Failure> {
    let job = ["--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1", &format!("--size={bytes}")].map(str::to_owned);
    call(io, &job).map(drop)
}

fn call(io: &[String], job: &[String]) -> Result<Value, Failure> {
    let mut command = Command::new("fio");
    command.args(["--name=bench", "--output-format=json", "--thread"]).args(io).args(job);
    let output = command.output().doing("starting fio")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // fio writes notes before the JSON.
    let json = text.find('{').and_then(|at| text.get(at..)).unwrap_or_default();
    let errors = String::from_utf8_lossy(&output.stderr);
    let told: Value = serde_json::from_str(json).doing(format!("fio {}: {errors}", job.join(" ")))?;
    let error = told.pointer("/jobs/0/error").and_then(Value::as_i64);
    if output.status.success() && error == Some(0) {
        Ok(told)
    } else {
        Err(Failure::new(format!("fio {} {}: error {error:?}, {errors}", io.join(" "), job.join(" "))))
    }
}
