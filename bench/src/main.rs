//! `cargo xtask bench`: Sublet, the raw disk and other block servers under the same loads, in turns, in one run.
//!
//! A load is an fio job; a target is anything that fio can use. For each load the targets take turns (A B C A B C ...), so that
//! whatever the machine is doing beside falls on all of them. What comes out are medians and ratios.

mod chart;
mod error;
mod fio;
mod load;
mod machine;
mod matrix;
mod process;
mod report;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::error::Failure;
use crate::matrix::Plan;

/// See the module.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask bench", disable_version_flag = true)]
struct Args {
    /// One short round: a first look, in less than five minutes
    #[arg(long)]
    quick: bool,
    /// Only the targets and loads whose names contain one of these words (several: comma)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where files are stored: `memory` (tmpfs, so that only software costs), `disk`, or both
    #[arg(long, value_delimiter = ',', default_values = ["memory", "disk"])]
    on: Vec<target::Medium>,
    /// Rounds
    #[arg(long)]
    rounds: Option<usize>,
    /// The folder on the disk that is measured
    #[arg(long, default_value = "/var/tmp")]
    disk: PathBuf,
    /// The `sublet` to be measured
    #[arg(long)]
    program: PathBuf,
    /// Where the tables and charts go; they are only printed otherwise
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<(), Failure> {
    let plan = Plan {
        seconds: if args.quick { 1 } else { 3 },
        rounds: args.rounds.unwrap_or(if args.quick { 1 } else { 3 }),
        bytes: if args.quick { 256 << 20 } else { 1 << 30 },
        only: args.only.clone(),
    };
    let mut tables = Vec::new();
    for medium in &args.on {
        let place = target::Place::new(*medium, &args.disk)?;
        let targets = target::all(&place, &plan, &args.program)?;
        if targets.is_empty() {
            return Err(Failure::new("no target has such a name; see bench/README.md"));
        }
        tables.push((*medium, matrix::measure(&plan, *medium, &targets)?));
    }
    let text = report::text(&plan, &args.program, &tables);
    println!("{text}");
    if let Some(out) = &args.out {
        report::save(out, &text, &tables)?;
    }
    Ok(())
}
