//! Runs one piece so often: `sublet-bench-piece NAME TIMES`; without arguments, names them all with what they do.

use std::process::ExitCode;

use sublet_bench::pieces::PIECES;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [] => PIECES.iter().for_each(|piece| println!("{}\t{}", piece.name, piece.what)),
        [name, times] => match (PIECES.iter().find(|piece| piece.name == name), times.parse()) {
            (Some(piece), Ok(times)) => (piece.run)(times),
            _ => return ExitCode::from(2),
        },
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}
