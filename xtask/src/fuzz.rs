//! `cargo xtask fuzz`: hostile input for every parser (docs/fuzzing.md).

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::packages;
use crate::run::{cargo, target_dir};

/// Seconds of fresh input for each target, in every test run.
pub const SECONDS: &str = "20";
/// Targets that run at the same time.
const AT_ONCE: usize = 2;

/// How libFuzzer has to be built: with counters at every edge and compared values told, which guide it. `cargo fuzz` would pass the
/// same; without it there is nothing to install.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address";

/// What is asked for.
#[derive(Default)]
struct Options<'a> {
    seconds: Option<&'a str>,
    minutes: Option<u64>,
    target: Option<&'a str>,
}

fn options<'a>(args: &[&'a str]) -> Result<Options<'a>, String> {
    let mut options = Options::default();
    for pair in args.chunks(2) {
        match pair {
            ["--seconds", seconds] => options.seconds = Some(seconds),
            ["--target", name] => options.target = Some(name),
            ["--long", minutes] => {
                let minutes = minutes.parse().map_err(|_| format!("'{minutes}' is not a number of minutes"))?;
                options.minutes = Some(minutes);
            }
            other => return Err(format!("fuzz takes --seconds S, --long MINUTES and --target NAME, not {}", other.join(" "))),
        }
    }
    Ok(options)
}

/// See the module.
///
/// # Errors
/// A finding, or what could not be built.
pub fn fuzz(top: &Path, args: &[&str]) -> Result<(), String> {
    let options = options(args)?;
    match options.minutes {
        Some(minutes) => long(top, minutes, options.target),
        None => short(top, options.seconds.unwrap_or(SECONDS), options.target),
    }
}

fn build(top: &Path) -> Result<PathBuf, String> {
    packages::install(&[])?;
    cargo(top, &["build", "--profile", "sim", "--package", "sublet-fuzz"], &[])?;
    Ok(target_dir(top).join("sim/sublet-fuzz"))
}

/// The engine for stable Rust.
fn short(top: &Path, seconds: &str, target: Option<&str>) -> Result<(), String> {
    let program = build(top)?;
    let start = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--seconds", seconds]).args(args);
        command.spawn().map_err(|e| format!("cannot run {}: {e}", program.display()))
    };
    let running: Vec<Child> = match target {
        Some(name) => vec![start(&["--target", name])?],
        None => (1..=AT_ONCE).map(|part| start(&["--part", &format!("{part}/{AT_ONCE}")])).collect::<Result<_, _>>()?,
    };
    let ended = running.into_iter().map(|mut child| child.wait().is_ok_and(|status| status.success()));
    // All of them come to their end, whatever one has found.
    let ended: Vec<bool> = ended.collect();
    if ended.iter().all(|well| *well) { Ok(()) } else { Err("fuzzing has found something, see above".to_owned()) }
}

/// libFuzzer, for so many minutes for each target.
fn long(top: &Path, minutes: u64, target: Option<&str>) -> Result<(), String> {
    let listed = Command::new(build(top)?).arg("list").output().map_err(|e| format!("cannot list the targets: {e}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let names: Vec<&str> = listed.lines().filter(|name| target.is_none_or(|target| target == *name)).collect();
    if names.is_empty() {
        return Err(format!("there is no target '{}'; there are: {}", target.unwrap_or(""), listed.replace('\n', " ")));
    }
    let program = build_long(top)?;
    let folder = top.join("fuzz");
    for name in names {
        println!("== {name}, {minutes} min");
        let [found, corpus, old, failures] =
            ["found", "corpus", "regressions", "failures"].map(|kind| folder.join(kind).join(name));
        for made in [&found, &failures] {
            std::fs::create_dir_all(made).map_err(|e| format!("cannot make {}: {e}", made.display()))?;
        }
        let mut command = Command::new(&program);
        command.env("SUBLET_FUZZ_TARGET", name).args(["-max_len=65536", "-timeout=10", "-print_final_stats=1", "-verbosity=1"]);
        command.arg(format!("-max_total_time={}", minutes * 60));
        command.arg(format!("-artifact_prefix={}/", failures.display())).arg(&found);
        command.args([corpus, old].iter().filter(|folder| folder.is_dir()));
        let status = command.status().map_err(|e| format!("cannot run {}: {e}", program.display()))?;
        if !status.success() {
            return Err(format!("{name}: something was found; the input is in {}", failures.display()));
        }
    }
    println!("== what reached something new is in {}", folder.join("found").display());
    Ok(())
}

/// Builds libFuzzer with all targets, on the nightly toolchain.
fn build_long(top: &Path) -> Result<PathBuf, String> {
    let version = Command::new("rustc").args(["+nightly", "-vV"]).output();
    let version = version.ok().filter(|output| output.status.success());
    let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let host = text.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("host: ")));
    let host = host.ok_or("the long run needs the nightly toolchain, for its sanitizer: rustup toolchain install nightly")?;
    let folder = target_dir(top).join("libfuzzer");
    let manifest = top.join("fuzz/libfuzzer/Cargo.toml");
    println!("== building libFuzzer");
    let mut command = Command::new("cargo");
    // Cargo has put its own choice of toolchain into the environment of this program.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env("RUSTFLAGS", COVERAGE).arg("+nightly");
    command.args(["build", "--release", "--locked", "--target", host, "--target-dir"]).arg(&folder);
    command.arg("--manifest-path").arg(&manifest);
    let status = command.status().map_err(|e| format!("cannot run cargo: {e}"))?;
    if !status.success() {
        return Err("libFuzzer could not be built; it needs a C++ compiler: apt-get install g++".to_owned());
    }
    Ok(folder.join(host).join("release/sublet-libfuzzer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_others_refused() {
        let all = options(&["--seconds", "5", "--target", "texts", "--long", "20"]).unwrap_or_default();
        assert_eq!((all.seconds, all.minutes, all.target), (Some("5"), Some(20), Some("texts")));
        for bad in [&["--long"][..], &["--long", "x"], &["--fast", "1"]] {
            assert!(options(bad).is_err(), "{bad:?}");
        }
    }
}
