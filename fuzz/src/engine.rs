//! The engine for stable Rust: replays all corpora and regressions, then changes them at random for some time.
//!
//! It is not guided by coverage. What makes up for some of that: checksums are put right after most changes, and an input that was
//! taken is the beginning of further ones.

mod mutate;
mod random;
mod shrink;

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use mutate::mutate;
pub use random::Random;

use crate::Target;
use crate::corpus;

/// The longest input that is made, in bytes.
const LENGTH_MAX: usize = 1 << 16;
/// Inputs that are changed further, beside the corpus.
const POOL_MAX: usize = 512;
/// An input that takes longer is a finding.
const TIME_MAX: Duration = Duration::from_secs(10);

/// What a run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Inputs of corpus and regressions.
    pub replayed: u64,
    /// Inputs that were made.
    pub made: u64,
    /// How many of those were taken for what they should be.
    pub taken: u64,
}

/// An input broke a property.
#[derive(Debug)]
pub struct Finding {
    /// Where the input is kept: one of the repository, or a new one in `failures`.
    pub path: PathBuf,
    /// What was said.
    pub message: String,
}

/// What is being run, for whoever watches that it ends.
static RUNNING: Mutex<Option<(Instant, &'static str, Vec<u8>)>> = Mutex::new(None);

/// Ends the process when an input takes for ever: nobody else could.
pub fn watch() {
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_secs(1));
            let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((begun, name, input)) = &*running else { continue };
            if begun.elapsed() > TIME_MAX {
                let path = corpus::keep(&corpus::folder().join("failures").join(name), input);
                eprintln!("{name}: an input takes longer than {} s: {path:?}", TIME_MAX.as_secs());
                std::process::exit(1);
            }
        }
    });
}

fn note(now: Option<(Instant, &'static str, Vec<u8>)>) {
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = now;
}

/// Runs one input; what is said if a property does not hold.
fn try_one(target: &'static Target, input: &[u8]) -> Result<bool, String> {
    note(Some((Instant::now(), target.name, input.to_vec())));
    let result = panic::catch_unwind(AssertUnwindSafe(|| target.check(input)));
    note(None);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".to_owned())
    })
}

/// Replays corpus and regressions of a target.
///
/// # Errors
/// The first finding, or what the operating system says.
pub fn replay(target: &'static Target) -> io::Result<Result<Summary, Finding>> {
    let mut summary = Summary::default();
    for (path, input) in corpus::of(target)? {
        summary.replayed += 1;
        if let Err(message) = try_one(target, &input) {
            return Ok(Err(Finding { path, message }));
        }
    }
    Ok(Ok(summary))
}

/// Replays, and then makes inputs for so long.
///
/// # Errors
/// The first finding, or what the operating system says.
pub fn explore(target: &'static Target, time: Duration, seed: u64) -> io::Result<Result<Summary, Finding>> {
    let mut summary = match replay(target)? {
        Ok(summary) => summary,
        finding => return Ok(finding),
    };
    let mut pool: Vec<Vec<u8>> = corpus::of(target)?.into_iter().map(|(_, input)| input).collect();
    pool.push(Vec::new());
    let kept = pool.len();
    let mut random = Random::new(seed);
    let begun = Instant::now();
    while begun.elapsed() < time {
        let input = make(target, &pool, &mut random);
        summary.made += 1;
        match try_one(target, &input) {
            Ok(true) => {
                summary.taken += 1;
                // Changes add up, so that what several of them reach together is reached.
                if pool.len() < kept + POOL_MAX {
                    pool.push(input);
                } else {
                    let at = kept + random.below(POOL_MAX);
                    pool[at] = input;
                }
            }
            Ok(false) => {}
            Err(message) => {
                let least = shrink::shrink(&input, &mut |input| try_one(target, input).is_err());
                let path = corpus::keep(&corpus::folder().join("failures").join(target.name), &least)?;
                return Ok(Err(Finding { path, message }));
            }
        }
    }
    Ok(Ok(summary))
}

fn make(target: &Target, pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = pool[random.below(pool.len())].clone();
    let other = &pool[random.below(pool.len())];
    for _ in 0..=random.below(4) {
        mutate(&mut input, other, random);
    }
    input.truncate(LENGTH_MAX);
    if random.below(8) != 0 {
        (target.mend)(&mut input);
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Allowance;

    /// Three bytes behind a checksum must be right, one after the other.
    fn planted(input: &[u8]) -> bool {
        let Some((sum, body)) = input.split_first_chunk::<4>() else { return false };
        if crc32c::crc32c(body).to_le_bytes() != *sum || body.len() < 8 {
            return false;
        }
        assert!(body[3] != 0xff || body[5] != 0x80, "the planted defect");
        true
    }

    fn mend(input: &mut [u8]) {
        if let Some((sum, body)) = input.split_first_chunk_mut::<4>() {
            *sum = crc32c::crc32c(body).to_le_bytes();
        }
    }

    static PLANTED: Target =
        Target { name: "planted", run: planted, seeds: Vec::new, mend, allowance: Allowance { fixed: 1 << 20, each: 1 } };

    #[test]
    fn a_defect_behind_a_checksum_is_found_and_made_small() {
        panic::set_hook(Box::new(|_| {}));
        let mut random = Random::new(1);
        let mut pool = vec![vec![0; 40]];
        mend(&mut pool[0]);
        let found = (0..2_000_000).find_map(|_| {
            let input = make(&PLANTED, &pool, &mut random);
            match try_one(&PLANTED, &input) {
                Err(_) => Some(input),
                Ok(true) if pool.len() < POOL_MAX => {
                    pool.push(input);
                    None
                }
                Ok(_) => None,
            }
        });
        let least = shrink::shrink(&found.unwrap(), &mut |input| {
            let mut input = input.to_vec();
            mend(&mut input);
            try_one(&PLANTED, &input).is_err()
        });
        let _ = panic::take_hook();
        assert_eq!(least.len(), 12, "{least:?}");
    }

    #[test]
    fn an_input_that_takes_too_much_memory_is_a_finding() {
        static GREEDY: Target = Target {
            name: "greedy",
            run: |input| {
                let length = input.first().map_or(0, |byte| usize::from(*byte) << 12);
                std::hint::black_box(vec![0u8; length]).is_empty()
            },
            seeds: Vec::new,
            mend: |_| {},
            allowance: Allowance { fixed: 64 << 10, each: 16 },
        };
        assert_eq!(try_one(&GREEDY, &[1]), Ok(false));
        assert!(try_one(&GREEDY, &[200]).unwrap_err().contains("bytes of memory"));
    }
}
