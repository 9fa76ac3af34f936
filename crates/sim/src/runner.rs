//! The command: many seeds on all cores, or one with its trace.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sublet_types::mutation::Mutation;

use crate::faults::{DAMAGE, Damage, Wanted};
use crate::tables::{LOSSES, Loss};
use crate::trace::Detail;
use crate::world::{Outcome, run};

const USAGE: &str = "\
usage: sublet-sim --seeds N [--seed FIRST] [--jobs N]   run N seeds from FIRST (default 1)
                  [--damage KIND]                   with this kind of damage in every run, or None
                  [--loss KIND]                     with the loss of this in every run, which has no damage then
       sublet-sim --seed S --trace                      run one seed and print its trace
       sublet-sim --mutations [--seeds N]               show that every deliberate bug is found within N seeds
";
/// Lines of the trace that are printed for a seed that failed.
const TAIL: usize = 60;
/// Failed seeds that are explained.
const EXPLAINED_MAX: usize = 5;

struct Wishes {
    first: u64,
    count: u64,
    trace: bool,
    jobs: usize,
    mutations: bool,
    mutation: Option<Mutation>,
    wanted: Wanted,
}

/// A kind of damage by its name.
fn damage_named(name: &str) -> Option<Damage> {
    let kinds = DAMAGE.iter().copied().map(Some).chain([None]);
    kinds.into_iter().find(|kind| kind.map_or_else(|| "None".to_owned(), |kind| format!("{kind:?}")) == name)
}

/// A kind of loss by its name.
pub fn loss_named(name: &str) -> Option<Loss> {
    LOSSES.into_iter().find(|kind| format!("{kind:?}") == name)
}

fn parse(args: &[String]) -> Option<Wishes> {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut wishes =
        Wishes { first: 1, count: 1, trace: false, jobs, mutations: false, mutation: None, wanted: Wanted::default() };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => wishes.first = words.next()?.parse().ok()?,
            "--seeds" => wishes.count = words.next()?.parse().ok()?,
            "--jobs" => wishes.jobs = words.next()?.parse().ok()?,
            "--trace" => wishes.trace = true,
            "--damage" => wishes.wanted.damage = Some(damage_named(words.next()?)?),
            "--loss" => {
                wishes.wanted = Wanted { damage: Some(None), loss: Some(loss_named(words.next()?)?) };
            }
            "--mutations" => wishes.mutations = true,
            "--mutation" => {
                let name = words.next()?;
                wishes.mutation = Some(Mutation::ALL.iter().copied().find(|mutation| format!("{mutation:?}") == *name)?);
            }
            _ => return None,
        }
    }
    Some(wishes)
}

/// Runs a seed on a thread of its own: nothing of another seed is left there, and a panic is a violation.
pub fn isolated(seed: u64, detail: Detail) -> Outcome {
    mutated(seed, detail, None, Wanted::default())
}

/// As [`isolated`], with a deliberate bug (only in builds that have them), and with what is wanted instead of what the seed says.
pub fn mutated(seed: u64, detail: Detail, mutation: Option<Mutation>, wanted: Wanted) -> Outcome {
    let builder = std::thread::Builder::new().name(format!("seed {seed}")).stack_size(16 << 20);
    let work = move || {
        #[cfg(feature = "mutations")]
        sublet_types::mutation::choose(mutation);
        #[cfg(not(feature = "mutations"))]
        assert!(mutation.is_none(), "this build has no deliberate bugs");
        run(seed, detail, wanted)
    };
    let outcome = builder.spawn(work).map(std::thread::JoinHandle::join);
    let failed = |text: String| Outcome { seed, seconds: 0.0, violations: vec![text], hash: 0, lines: Vec::new(), checked: 0 };
    match outcome {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            failed(format!("panic: {}", text.unwrap_or_else(|| "without a text".to_owned())))
        }
        Err(error) => failed(format!("no thread: {error}")),
    }
}

/// The command. See `USAGE`.
pub fn main(args: &[String]) -> ExitCode {
    let Some(wishes) = parse(args) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    if cfg!(not(feature = "mutations")) && (wishes.mutations || wishes.mutation.is_some()) {
        eprintln!("this build has no deliberate bugs; cargo xtask sim --mutations makes one that has");
        return ExitCode::from(2);
    }
    if wishes.mutations {
        return crate::mutations::main(wishes.first, wishes.count, wishes.jobs);
    }
    if wishes.trace {
        return traced(wishes.first, wishes.mutation, wishes.wanted);
    }
    let next = AtomicU64::new(0);
    let results: Mutex<(f64, u64, Vec<Outcome>)> = Mutex::new((0.0, 0, Vec::new()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..wishes.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= wishes.count {
                        return;
                    }
                    let outcome = mutated(wishes.first + index, Detail::Off, wishes.mutation, wishes.wanted);
                    let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    results.0 += outcome.seconds;
                    results.1 += outcome.checked;
                    if let Some(violation) = outcome.violations.first() {
                        println!("seed {}: {violation}", outcome.seed);
                        results.2.push(outcome);
                    }
                }
            });
        }
    });
    let (seconds, checked, mut failed) = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failed.sort_by_key(|outcome| outcome.seed);
    for outcome in failed.iter().take(EXPLAINED_MAX) {
        explain(outcome.seed, wishes.mutation, wishes.wanted);
    }
    summary(wishes.count, seconds, checked, failed.len(), begun.elapsed());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn explain(seed: u64, mutation: Option<Mutation>, wanted: Wanted) {
    println!("== the end of the trace of seed {seed} (all of it: cargo xtask sim --seed {seed} --trace)");
    let outcome = mutated(seed, Detail::Lines, mutation, wanted);
    for line in outcome.lines.iter().skip(outcome.lines.len().saturating_sub(TAIL)) {
        println!("{}", line.chars().take(300).collect::<String>());
    }
}

fn traced(seed: u64, mutation: Option<Mutation>, wanted: Wanted) -> ExitCode {
    let begun = Instant::now();
    let outcome = mutated(seed, Detail::Lines, mutation, wanted);
    for line in &outcome.lines {
        println!("{line}");
    }
    for violation in &outcome.violations {
        println!("VIOLATION: {violation}");
    }
    summary(1, outcome.seconds, outcome.checked, usize::from(!outcome.violations.is_empty()), begun.elapsed());
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The last line.
fn summary(seeds: u64, seconds: f64, checked: u64, violations: usize, time: Duration) {
    let cpu = cpu_seconds().map_or_else(|| "unknown".to_owned(), |cpu| format!("{:.3}", cpu / seeds.max(1) as f64));
    println!(
        "seeds {seeds}, simulated hours {:.1}, cells checked {checked}, violations {violations}, {:.1} s, CPU seconds per seed {cpu}",
        seconds / 3600.0,
        time.as_secs_f64()
    );
}

/// Processor time of this process so far, from proc(5): `utime` and `stime` of `/proc/self/stat`, in hundredths of a second.
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / 100.0)
}
