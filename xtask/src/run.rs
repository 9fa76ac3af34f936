//! Running cargo for the demo and the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::deny;
use crate::fuzz;
use crate::instructions::instructions;
use crate::packages;
use crate::tidy;

/// Seeds that every test run tries.
const SIM_SEEDS: &str = "1000";

/// Where cargo puts what it builds.
pub(crate) fn target_dir(top: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), |folder| top.join(folder))
}

pub(crate) fn cargo(top: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
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
    deny::check(top)?;
    cargo(top, &["test", "--workspace", "--exclude", "sublet-tests", "--lib", "--bins", "--tests"], &[])?;
    // Also with what is used where io_uring is forbidden.
    cargo(top, &["test", "--package", "sublet-doors", "--tests"], &[("SUBLET_IO_URING", "off")])?;
    sim(top, &["--seeds", SIM_SEEDS])?;
    if end_to_end {
        fuzz::fuzz(top, &["--seconds", fuzz::SECONDS])?;
        cargo(top, &["build", "--package", "sublet"], &[])?;
        // One at a time: each test starts pools of its own, and the machine may have two cores only.
        cargo(top, &["test", "--package", "sublet-tests", "--", "--test-threads=1"], &[])?;
    }
    Ok(())
}

/// A number of seconds.
fn seconds_of(text: &str) -> Result<&str, String> {
    if text.parse::<u32>().is_ok() { Ok(text) } else { Err(format!("'{text}' is not a number of seconds")) }
}

/// The torture of `tests/tests/torture.rs`, for so many seconds, with that seed or a random one.
///
/// # Errors
/// The step that failed.
pub fn torture(top: &Path, seconds: &str, seed: Option<&str>) -> Result<(), String> {
    let mut env = vec![("SUBLET_TORTURE_SECONDS", seconds_of(seconds)?), ("SUBLET_TEST_PROFILE", "release")];
    if let Some(seed) = seed {
        seed.parse::<u64>().map_err(|e| format!("the seed '{seed}': {e}"))?;
        env.push(("SUBLET_TEST_SEED", seed));
    }
    packages::install(packages::TEST)?;
    cargo(top, &["build", "--release", "--package", "sublet"], &[])?;
    cargo(top, &["test", "--package", "sublet-tests", "--test", "torture", "--", "--nocapture"], &env)
}

/// Builds the simulator, optimised and with every assertion, and runs it.
///
/// # Errors
/// What could not be built, or that it found something.
pub fn sim(top: &Path, args: &[&str]) -> Result<(), String> {
    let mut build = vec!["build", "--profile", "sim", "--package", "sublet-sim"];
    if args.iter().any(|word| word.starts_with("--mutation")) {
        build.extend(["--features", "mutations"]);
    }
    cargo(top, &build, &[])?;
    let sim = top.join("target/sim/sublet-sim");
    // Every seed takes and frees the same memory: giving it back to the kernel between them costs a tenth of the whole time.
    let keep = ["MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_"].map(|name| (name, "67108864"));
    let run = Command::new(&sim).args(args).current_dir(top).envs(keep).status();
    let status = run.map_err(|e| format!("cannot run {}: {e}", sim.display()))?;
    // Its own last line says it all.
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}

/// The table of figures of `docs/performance.md`.
///
/// # Errors
/// The step that failed.
pub fn figures(top: &Path) -> Result<(), String> {
    packages::install(packages::TEST)?;
    cargo(top, &["build", "--release", "--package", "sublet"], &[])?;
    let args = [
        "test",
        "--package",
        "sublet-tests",
        "--test",
        "figures",
        "--test",
        "figures_load",
        "--",
        "--ignored",
        "--test-threads=1",
        "--nocapture",
    ];
    cargo(top, &args, &[("SUBLET_TEST_PROFILE", "release")])
}

/// Instructions of the hot pieces.
///
/// # Errors
/// The step that failed, or a piece that needs more than before.
pub fn count(top: &Path, bless: bool) -> Result<(), String> {
    packages::install(packages::COUNT)?;
    cargo(top, &["build", "--release", "--package", "sublet-bench", "--bin", "sublet-bench-piece"], &[])?;
    instructions(top, &top.join("target/release/sublet-bench-piece"), bless)
}

/// Sublet and others under the same loads.
///
/// # Errors
/// The step that failed.
pub fn bench(top: &Path, args: &[&str]) -> Result<(), String> {
    packages::install(packages::BENCH)?;
    cargo(top, &["build", "--release", "--package", "sublet", "--package", "sublet-bench"], &[])?;
    let (built, folder) = (top.join("target/release"), top.join("bench"));
    let mut command = Command::new(built.join("sublet-bench"));
    command.arg("--program").arg(built.join("sublet")).args(args.iter().filter(|word| **word != "--save"));
    if args.contains(&"--save") {
        command.arg("--out").arg(&folder);
    }
    let status = command.status().map_err(|e| format!("cannot run the benchmark: {e}"))?;
    if status.success() { Ok(()) } else { Err("the benchmark failed".to_owned()) }
}

/// The end-to-end tests that are ignored otherwise, each for so many seconds.
///
/// # Errors
/// The step that failed.
pub fn soak(top: &Path, seconds: &str) -> Result<(), String> {
    let seconds = seconds_of(seconds)?;
    packages::install(packages::TEST)?;
    packages::install(packages::SOAK)?;
    cargo(top, &["build", "--release", "--package", "sublet"], &[])?;
    let args = ["test", "--package", "sublet-tests", "--", "--ignored", "--test-threads=1", "--nocapture"];
    cargo(top, &args, &[("SUBLET_SOAK_SECONDS", seconds), ("SUBLET_TEST_PROFILE", "release")])
}
