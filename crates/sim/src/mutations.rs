//! Shows that the simulator has teeth: every deliberate bug is found.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sublet_types::mutation::Mutation;

use crate::faults::Wanted;
use crate::runner::mutated;
use crate::trace::Detail;
use crate::world::Outcome;

/// Seeds that are tried for each bug, unless more are asked for.
pub const SEEDS: u64 = 800;

/// The first seed, in the order of trying, that finds the bug; and how many were tried.
pub fn hunt(mutation: Mutation, first: u64, count: u64, jobs: usize) -> (Option<Outcome>, u64) {
    let next = AtomicU64::new(0);
    let is_found = AtomicBool::new(false);
    let found: Mutex<Option<Outcome>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !is_found.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let outcome = mutated(first + index, Detail::Off, Some(mutation), Wanted::default());
                    if outcome.violations.is_empty() {
                        continue;
                    }
                    is_found.store(true, Ordering::Relaxed);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    if found.as_ref().is_none_or(|other| other.seed > outcome.seed) {
                        *found = Some(outcome);
                    }
                }
            });
        }
    });
    let tried = next.into_inner().min(count);
    (found.into_inner().unwrap_or_else(PoisonError::into_inner), tried)
}

/// Hunts every bug; fails if one is not found.
pub fn main(first: u64, count: u64, jobs: usize) -> ExitCode {
    let count = if count > 1 { count } else { SEEDS };
    let mut missed = 0;
    for mutation in Mutation::ALL {
        let (outcome, tried) = hunt(*mutation, first, count, jobs);
        match outcome.as_ref().and_then(|outcome| Some((outcome.seed, outcome.violations.first()?))) {
            Some((seed, violation)) => {
                let violation: String = violation.chars().take(160).collect();
                println!("{mutation:?}: found by seed {seed} ({tried} tried): {violation}");
            }
            None => {
                missed += 1;
                println!("{mutation:?}: NOT FOUND by {tried} seeds");
            }
        }
    }
    println!("mutations {}, found {}, missed {missed}", Mutation::ALL.len(), Mutation::ALL.len() - missed);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
