//! The byte model: random operations of any alignment from several pipelined connections, compared with plain memory.
//!
//! The range is dealt out to the connections in stripes whose length is no multiple of anything, so that neighbours keep
//! writing to the two halves of one 4 KiB block at the same time (W2). Within its stripes a connection knows every byte.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::nbd::{FUA, NO_HOLE, Nbd, Op};
use crate::random::Random;

/// A length that is prime.
const STRIPE: u64 = 10_007;
/// Requests in flight of one connection.
const DEPTH: usize = 8;

/// A model run.
#[derive(Clone, Debug)]
pub struct Model {
    /// The volume's NBD socket.
    pub socket: PathBuf,
    /// Where in the volume.
    pub range: Range<u64>,
    /// How many connections.
    pub connections: u64,
    /// For how long.
    pub time: Duration,
    /// The seed.
    pub seed: u64,
}

enum Expect {
    Nothing,
    Bytes(Vec<u8>),
}

/// What one connection knows.
struct Part {
    start: u64,
    bytes: Vec<u8>,
}

impl Model {
    /// A run of two seconds on `range` with four connections.
    pub fn new(socket: &Path, range: Range<u64>) -> Self {
        Self {
            socket: socket.to_owned(),
            range,
            connections: 4,
            time: Duration::from_secs(2),
            seed: Random::from_env("byte model").bits(),
        }
    }

    /// Runs it, and compares the whole range at the end through a new connection. The range must read as zeroes
    /// at the beginning.
    ///
    /// # Panics
    /// A byte is not what it must be, or a request fails.
    pub fn check(&self) {
        let parts = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.connections).map(|number| scope.spawn(move || self.worker(number))).collect();
            workers.into_iter().flat_map(|w| w.join().expect("a connection of the byte model failed")).collect::<Vec<Part>>()
        });
        let mut last = Nbd::connect(&self.socket).unwrap();
        for part in &parts {
            let read = last.read(part.start, part.bytes.len() as u32).unwrap();
            same(&read, &part.bytes, part.start, "at the end");
        }
        assert!(last.disconnect().unwrap(), "bytes after the disconnect");
    }

    fn worker(&self, number: u64) -> Vec<Part> {
        let mut random = Random::new(self.seed ^ number.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let mut nbd = Nbd::connect(&self.socket).unwrap();
        let count = (self.range.end - self.range.start).div_ceil(STRIPE);
        let mut parts: Vec<Part> = (0..count)
            .filter(|stripe| stripe % self.connections == number)
            .map(|stripe| {
                let start = self.range.start + stripe * STRIPE;
                let length = STRIPE.min(self.range.end - start);
                Part { start, bytes: vec![0; usize::try_from(length).unwrap()] }
            })
            .collect();
        let mut flying: HashMap<u64, (Range<u64>, Expect)> = HashMap::new();
        let begun = Instant::now();
        loop {
            let over = begun.elapsed() > self.time;
            if over && flying.is_empty() {
                return parts;
            }
            if !over && flying.len() < DEPTH {
                let which = random.below(parts.len() as u64) as usize;
                let (op, range) = choose(&mut random, &parts[which]);
                let free = flying.values().all(|(other, _)| other.end <= range.start || range.end <= other.start);
                if free {
                    let expect = apply(&op, &mut parts[which]);
                    let cookie = nbd.submit(&op).unwrap();
                    flying.insert(cookie, (range, expect));
                    continue;
                }
            }
            if flying.is_empty() {
                continue;
            }
            let done = nbd.complete().unwrap_or_else(|e| panic!("seed {}: no answer: {e}", self.seed));
            let (range, expect) = flying.remove(&done.cookie).expect("one answer for each request");
            assert_eq!(done.error, 0, "seed {}: error for {range:?}", self.seed);
            if let Expect::Bytes(bytes) = expect {
                same(&done.data, &bytes, range.start, &format!("seed {}", self.seed));
            }
        }
    }
}

fn choose(random: &mut Random, part: &Part) -> (Op, Range<u64>) {
    let size = part.bytes.len() as u64;
    let length = match random.below(4) {
        0 => 1 + random.below(16.min(size)),
        1 => size.min(4096),
        _ => 1 + random.below(size),
    };
    let mut offset = part.start + random.below(size - length + 1);
    // Block boundaries are the interesting places.
    if random.below(3) == 0 {
        let down = offset / 4096 * 4096;
        if down >= part.start {
            offset = down;
        }
    }
    let range = offset..offset + length;
    let short = length as u32;
    let op = match random.below(10) {
        0..=3 => Op::Write(offset, random.bytes(length as usize), 0),
        4 => Op::Write(offset, random.bytes(length as usize), FUA),
        5 => Op::Zero(offset, short, if random.below(2) == 0 { 0 } else { NO_HOLE }),
        6 => Op::Trim(offset, short),
        7 if random.below(8) == 0 => return (Op::Flush, u64::MAX..u64::MAX),
        _ => Op::Read(offset, short),
    };
    (op, range)
}

fn apply(op: &Op, part: &mut Part) -> Expect {
    let place = |offset: u64, length: usize| {
        let from = usize::try_from(offset - part.start).unwrap();
        from..from + length
    };
    match op {
        Op::Write(offset, data, _) => {
            let place = place(*offset, data.len());
            part.bytes[place].copy_from_slice(data);
        }
        // Discard and write-zeroes both mean: reads as zero from now on (W6).
        Op::Zero(offset, length, _) | Op::Trim(offset, length) => {
            let place = place(*offset, *length as usize);
            part.bytes[place].fill(0);
        }
        Op::Read(offset, length) => return Expect::Bytes(part.bytes[place(*offset, *length as usize)].to_vec()),
        Op::Flush | Op::Cache(..) => {}
    }
    Expect::Nothing
}

/// Compares, and names the first byte that differs.
///
/// # Panics
/// They differ.
#[track_caller]
pub fn same(read: &[u8], expected: &[u8], offset: u64, what: &str) {
    assert_eq!(read.len(), expected.len(), "{what}: lengths");
    if let Some(at) = read.iter().zip(expected).position(|(a, b)| a != b) {
        let wrong = read.iter().zip(expected).filter(|(a, b)| a != b).count();
        let (got, wanted) = (read[at], expected[at]);
        panic!(
            "{what}: {wrong} of {} bytes differ, the first at {}: {got:#x} instead of {wanted:#x}",
            read.len(),
            offset + at as u64
        );
    }
}
