//! The manager's HTTP interface against a tool that makes requests out of its own OpenAPI document: right ones, nearly right
//! ones, and wrong ones. No answer may say that the manager itself has failed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use sublet_tests::peers::peak_mib;
use sublet_tests::process::program;
use sublet_tests::run::{run, run_within};
use sublet_tests::{Pool, Wish, soak_time};

/// The version that is known to work; it is installed into a folder of its own.
const TOOL: &str = "schemathesis==4.32.5";
/// Statuses of the 5xx that say something of lenders or space, and nothing of the manager: no room, nobody there, not in time.
const REFUSALS: &str = "503, 504, 507";
/// The most memory of the manager, in MiB.
const MANAGER_MIB_MAX: u64 = 256;

/// The tool: `SUBLET_SCHEMATHESIS`, or one that is installed beside the build.
fn tool() -> PathBuf {
    if let Some(path) = std::env::var_os("SUBLET_SCHEMATHESIS") {
        return path.into();
    }
    // target/PROFILE/sublet
    let folder = program().ancestors().nth(2).unwrap().join("schemathesis");
    let tool = folder.join("bin/schemathesis");
    if !tool.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder)).ok();
        let install = ["install", "--quiet", TOOL];
        run_within(Command::new(folder.join("bin/pip")).args(install), Duration::from_secs(600)).ok();
    }
    tool
}

#[test]
#[ignore = "soak"]
fn no_request_that_the_document_suggests_makes_the_manager_fail() {
    let tool = tool();
    let pool = Pool::with(&Wish { servers: 3, area: Some("64M") });
    // Something to hit: volumes that are free, lent and mounted.
    pool.ok(0, "volume create free --way divided --on b1:16M");
    pool.ok(0, "borrow lent --size 16M --way doubled");
    pool.ok(0, "borrow used --size 16M");
    pool.ok(0, "mount used --as socket");
    let config = pool.dir().join("schemathesis.toml");
    let text = format!("[checks.not_a_server_error]\nexpected-statuses = [\"2xx\", \"3xx\", \"4xx\", {REFUSALS}]\n");
    std::fs::write(&config, text).unwrap();
    let seconds = soak_time().as_secs();
    let mut command = Command::new(tool);
    command.arg("--config-file").arg(&config).arg("run").arg(format!("{}/v1/openapi.json", pool.url()));
    command.args(["--checks", "not_a_server_error", "--continue-on-failure", "--max-time", &seconds.to_string()]);
    // Polls are held for seconds unless they bring something.
    command.args(["--request-timeout", "30", "--workers", "4", "--suppress-health-check", "all", "--warnings", "off"]);
    command.env("NO_COLOR", "1").current_dir(pool.dir());
    let run = run_within(&mut command, soak_time() * 2 + Duration::from_secs(300));
    eprintln!("{}", run.out);
    assert!(run.succeeded(), "{run}");
    let manager = pool.manager();
    let peak = peak_mib(&manager);
    eprintln!("the manager's peak memory: {peak} MiB");
    assert!(peak <= MANAGER_MIB_MAX, "{peak} MiB");
    assert!(pool.manager_answers());
    // What it has taken in does not keep it from starting again.
    pool.bounce_manager();
}
