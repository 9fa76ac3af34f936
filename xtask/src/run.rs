//! Running cargo for the demo and the tests.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::packages;
use crate::tidy;

fn cargo(top: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    println!("== cargo {}", args.join(" "));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let begun = Instant::now();
    let status = Command::new(cargo)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(top)
        .status()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    println!("== {} s", begun.elapsed().as_secs());
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed", args.join(" "))) }
}

/// Builds the release binary and runs `sublet demo`.
///
/// # Errors
/// The step that failed.
pub fn demo(top: &Path, args: &[&str]) -> Result<(), String> {
    packages::install(packages::DEMO)?;
    cargo(top, &["build", "--release", "--package", "sublet"], &[])?;
    let sublet = top.join("target/release/sublet");
    let status =
        Command::new(&sublet).arg("demo").args(args).status().map_err(|e| format!("cannot run {}: {e}", sublet.display()))?;
    if status.success() { Ok(()) } else { Err("the demo failed".to_owned()) }
}

/// Everything that has to pass before a change lands.
///
/// # Errors
/// The step that failed.
pub fn test(top: &Path, end_to_end: bool) -> Result<(), String> {
    packages::install(packages::TEST)?;
    cargo(top, &["fmt", "--all", "--check"], &[])?;
    cargo(top, &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"], &[])?;
    tidy::tidy(top, false)?;
    cargo(top, &["test", "--workspace", "--exclude", "sublet-tests", "--lib", "--bins", "--tests"], &[])?;
    if end_to_end {
        cargo(top, &["build", "--package", "sublet"], &[])?;
        // One at a time: each test starts pools of its own, and the machine may have two cores only.
        cargo(top, &["test", "--package", "sublet-tests", "--", "--test-threads=1"], &[])?;
    }
    Ok(())
}

/// The end-to-end tests that are ignored otherwise, each for so many seconds.
///
/// # Errors
/// The step that failed.
pub fn soak(top: &Path, seconds: &str) -> Result<(), String> {
    if seconds.parse::<u32>().is_err() {
        return Err(format!("'{seconds}' is not a number of seconds"));
    }
    packages::install(packages::TEST)?;
    cargo(top, &["build", "--release", "--package", "sublet"], &[])?;
    let args = ["test", "--package", "sublet-tests", "--", "--ignored", "--test-threads=1", "--nocapture"];
    cargo(top, &args, &[("SUBLET_SOAK_SECONDS", seconds), ("SUBLET_TEST_PROFILE", "release")])
}
