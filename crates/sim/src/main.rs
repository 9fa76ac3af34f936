//! `sublet-sim`: runs seeds. `cargo xtask sim` builds and starts it.

use std::process::ExitCode;

fn main() -> ExitCode {
    sublet_sim::runner::main(&std::env::args().skip(1).collect::<Vec<_>>())
}
