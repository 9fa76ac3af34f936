//! Every load on every target, in turns.

use crate::error::Failure;
use crate::fio::{self, Measured};
use crate::load::{LOADS, Load};
use crate::machine::Stolen;
use crate::process::used_us;
use crate::target::{Kind, Medium, Target};

/// How often a measurement is repeated from which the machine's host took time.
const TRIES: usize = 4;
/// The part of all processor time that may be stolen.
const STOLEN_MAX: f64 = 0.02;

/// How much is measured.
pub struct Plan {
    /// Seconds of one measurement.
    pub seconds: u64,
    /// How often each is made.
    pub rounds: usize,
    /// The size of every volume and file.
    pub bytes: u64,
    /// Parts of names of targets and loads; none means all.
    pub only: Vec<String>,
}

impl Plan {
    /// Whether a target is wanted: it fits one of the words that fit any target, if there are such words.
    pub fn wants_target(&self, name: &str) -> bool {
        self.wants(name, |word| LOADS.iter().all(|load| !load.name.contains(word)))
    }

    fn wants_load(&self, name: &str) -> bool {
        self.wants(name, |word| LOADS.iter().any(|load| load.name.contains(word)))
    }

    fn wants(&self, name: &str, is_meant: impl Fn(&str) -> bool) -> bool {
        let mut words = self.only.iter().map(String::as_str).filter(|word| is_meant(word)).peekable();
        words.peek().is_none() || words.any(|word| name.contains(word))
    }
}

/// What was measured of one load on one target, in every round.
pub struct Cell {
    /// The target's name.
    pub target: &'static str,
    /// What it is compared with.
    pub kind: Kind,
    /// What fio said.
    pub rounds: Vec<Measured>,
    /// Processor time of all serving processes for each request, in microseconds; none without such processes.
    pub cpu_us: Vec<f64>,
}

/// One load on all targets.
pub struct Row {
    /// The load.
    pub load: Load,
    /// The targets in their order.
    pub cells: Vec<Cell>,
    /// How many measurements were thrown away because the machine's host took time from them.
    pub thrown: usize,
}

/// Measures everything that is wanted.
///
/// # Errors
/// What fio says.
pub fn measure(plan: &Plan, medium: Medium, targets: &[Target]) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for load in LOADS.iter().filter(|load| plan.wants_load(load.name)) {
        let new = |target: &Target| Cell { target: target.name, kind: target.kind, rounds: Vec::new(), cpu_us: Vec::new() };
        let mut row = Row { load: *load, cells: targets.iter().map(new).collect(), thrown: 0 };
        for round in 0..plan.rounds {
            // Who follows whom changes from round to round.
            let order = (0..targets.len()).map(|index| (index + round) % targets.len());
            for index in order {
                let (Some(target), Some(cell)) = (targets.get(index), row.cells.get_mut(index)) else { continue };
                let (measured, cpu_us, thrown) = one(plan, load, target)?;
                row.thrown += thrown;
                cell.rounds.push(measured);
                cell.cpu_us.extend(cpu_us);
                eprintln!(
                    "{} {} {}: {:.0} IOPS, {:.0} us, {:.0} MB/s",
                    medium.words(),
                    load.name,
                    target.name,
                    measured.iops,
                    measured.mean_us,
                    measured.megabytes_s
                );
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// One measurement. It is repeated if the host took time from it.
fn one(plan: &Plan, load: &Load, target: &Target) -> Result<(Measured, Option<f64>, usize), Failure> {
    let mut thrown = 0;
    loop {
        let (before, stolen) = (used_us(&target.pids)?, Stolen::now()?);
        let measured = fio::run(&target.io, load, plan.seconds, plan.bytes)?;
        let used = used_us(&target.pids)? - before;
        if stolen.since()? > STOLEN_MAX && thrown + 1 < TRIES {
            thrown += 1;
            continue;
        }
        let cpu_us = (!target.pids.is_empty()).then_some(used / measured.requests);
        return Ok((measured, cpu_us, thrown));
    }
}
