//! `cargo xtask demo | test | soak | torture | figures | bench | tidy | sim | fuzz`: what a newcomer types. No dependencies, so that it builds in seconds.

mod deny;
mod fuzz;
mod instructions;
mod packages;
mod run;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [ARGS]       install what is missing (apt), build, and run `sublet demo`
  test [--fast]     install what is missing (apt), then formatting, lints, tidy, dependencies, unit tests, simulator,
                    fuzzing, end-to-end tests; --fast leaves the last two out
  tidy [--bless]    dependency directions, file sizes, ASCII sources, links and fingerprints of the documents;
                    --bless renews the fingerprints after the documents were brought up to date
  deny              licences, sources and known defects of all dependencies (deny.toml); installs cargo-deny if it is missing
  sim ARGS          the simulator: --seeds N [--seed FIRST], or --seed S --trace
  fuzz [--seconds S] [--target T]
                    hostile input for every parser: replay of all corpora, and so many seconds of fresh input for each
                    target (default 20), two at a time (docs/fuzzing.md)
  fuzz --long MINUTES [--target T]
                    the same targets under libFuzzer, guided by coverage; needs the nightly toolchain
  soak [SECONDS]    the end-to-end tests that take long (default 600 seconds each)
  bench [--quick] [--only WORDS] [--on memory,disk] [--rounds N] [--save]
                    Sublet beside the raw disk and other block servers, in one run (bench/README.md); --save renews
                    bench/RESULTS.md and its charts; as root
  bench --instructions [--bless]
                    count the instructions of the hot pieces and compare them with bench/INSTRUCTIONS.md
  figures           measure recovery, resync, first writes and memory with the release binary (docs/performance.md); as root
  torture SECONDS [--seed S]
                    manager, servers and clients are killed, frozen, restarted and cut off at random for so long, under
                    verified load, with the release binary; as root. The seed of a failed run repeats its faults
";

/// The top of the repository.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["demo", rest @ ..] => run::demo(&top(), rest),
        ["test"] => run::test(&top(), true),
        ["test", "--fast"] => run::test(&top(), false),
        ["sim", rest @ ..] => run::sim(&top(), rest),
        ["fuzz", rest @ ..] => fuzz::fuzz(&top(), rest),
        ["deny"] => deny::check(&top()),
        ["soak"] => run::soak(&top(), "600"),
        ["soak", seconds] => run::soak(&top(), seconds),
        ["bench", "--instructions"] => run::count(&top(), false),
        ["bench", "--instructions", "--bless"] => run::count(&top(), true),
        ["bench", rest @ ..] => run::bench(&top(), rest),
        ["figures"] => run::figures(&top()),
        ["torture", seconds] => run::torture(&top(), seconds, None),
        ["torture", seconds, "--seed", seed] => run::torture(&top(), seconds, Some(seed)),
        ["tidy"] => tidy::tidy(&top(), false),
        ["tidy", "--bless"] => tidy::tidy(&top(), true),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}
