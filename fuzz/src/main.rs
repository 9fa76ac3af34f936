//! `sublet-fuzz`: the engine for stable Rust, and what looks after the corpora. `cargo xtask fuzz` calls it.

use std::panic;
use std::process::ExitCode;
use std::time::Duration;

use sublet_fuzz::{TARGETS, Target, corpus, engine, target};

const USAGE: &str = "\
usage: sublet-fuzz [--seconds S] [--target NAME]... [--part N/M] [--seed S]
                      replay corpora and regressions, then make inputs for so many seconds for each target (default 20)
       sublet-fuzz run NAME FILE...   run these inputs
       sublet-fuzz list               names of all targets
       sublet-fuzz seeds              make the corpora that the repository begins with
";

struct Options {
    time: Duration,
    targets: Vec<&'static Target>,
    seed: u64,
}

fn options(words: &[String]) -> Option<Options> {
    let (mut seconds, mut chosen, mut seed, mut part) = (20, Vec::new(), None, None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--seconds" => seconds = value.parse().ok()?,
            "--target" => chosen.push(target(value)?),
            "--seed" => seed = Some(value.parse().ok()?),
            "--part" => {
                let (number, of) = value.split_once('/')?;
                let (number, of): (usize, usize) = (number.parse().ok()?, of.parse().ok()?);
                part = (1..=of).contains(&number).then_some((number, of));
                part?;
            }
            _ => return None,
        }
    }
    let (number, of) = part.unwrap_or((1, 1));
    let all = TARGETS.iter().enumerate().filter(|(n, _)| n % of == number - 1).map(|(_, target)| target);
    let targets = if chosen.is_empty() { all.collect() } else { chosen };
    // Other inputs in every run: the time is no secret.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    Some(Options { time: Duration::from_secs(seconds), targets, seed: seed.unwrap_or(now) })
}

fn explore(options: &Options) -> Result<(), String> {
    engine::watch();
    println!("seed {}; the same one makes the same inputs, as far as time goes", options.seed);
    for target in &options.targets {
        // What is said goes into the finding; a place without a message helps nobody.
        panic::set_hook(Box::new(|_| {}));
        let result = engine::explore(target, options.time, options.seed);
        let _ = panic::take_hook();
        match result.map_err(|error| format!("{}: {error}", target.name))? {
            Ok(summary) => {
                let share = summary.taken * 100 / summary.made.max(1);
                let engine::Summary { replayed, made, .. } = summary;
                println!("{:20} {replayed:4} replayed, {made:9} made, {share:3} % taken", target.name);
            }
            Err(finding) => {
                return Err(format!(
                    "{}: {}\n  the input is in {}; see it with: sublet-fuzz run {} {}",
                    target.name,
                    finding.message,
                    finding.path.display(),
                    target.name,
                    finding.path.display()
                ));
            }
        }
    }
    Ok(())
}

/// Runs files one by one, with the place of a panic shown.
fn run(name: &str, files: &[String]) -> Result<(), String> {
    let target = target(name).ok_or_else(|| format!("there is no target '{name}'"))?;
    for file in files {
        let input = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        let taken = target.check(&input);
        println!("{file}: {}", if taken { "taken" } else { "refused" });
    }
    Ok(())
}

fn seeds() -> Result<(), String> {
    for target in TARGETS {
        let folder = corpus::folder().join("corpus").join(target.name);
        for seed in (target.seeds)() {
            corpus::keep(&folder, &seed).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some("list") => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            Ok(())
        }
        Some("seeds") => seeds(),
        Some("run") if words.len() > 2 => run(&words[1], &words[2..]),
        _ => match options(&words) {
            Some(options) => explore(&options),
            None => {
                eprint!("{USAGE}");
                return ExitCode::from(2);
            }
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}
