//! Instructions of the hot pieces of the data path, counted by callgrind: unlike times, they are the same on every run of the same
//! program. `bench/INSTRUCTIONS.md` has what they were; a piece that needs clearly more is an error.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// A piece is run so often, and then twice as often: what is not the piece itself falls out of the difference.
const TIMES: u64 = 2000;
/// So much more than before is an error, in percent.
const MORE_MAX: u64 = 3;

/// Counts, and compares with the table; with `bless` the table is written anew.
///
/// # Errors
/// callgrind says nothing, or a piece needs more than before.
pub fn instructions(top: &Path, program: &Path, bless: bool) -> Result<(), String> {
    let pieces = output(Command::new(program))?.0;
    let path = top.join("bench/INSTRUCTIONS.md");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let (mut table, mut worse) = (String::new(), Vec::new());
    for (name, what) in pieces.lines().filter_map(|line| line.split_once('\t')) {
        let now = (count(program, name, 2 * TIMES)? - count(program, name, TIMES)?) / TIMES;
        let then = known(&before, name);
        let change =
            then.map_or("new".to_owned(), |then| format!("{:+} since the table", now.cast_signed() - then.cast_signed()));
        println!("{name:>14}  {now:>8}  {change}");
        if then.is_some_and(|then| now * 100 > then * (100 + MORE_MAX)) {
            worse.push(name.to_owned());
        }
        let _ = writeln!(table, "| `{name}` | {what} | {now} |");
    }
    if bless {
        let text = format!(
            "# Instructions of the hot pieces\n\nWritten by `cargo xtask bench --instructions --bless`; without `--bless` they are counted again \
             and compared. x86-64,\ncompiled for release; a processor does several of them at once.\n\n| piece | what is done | \
             instructions |\n|---|---|---|\n{table}"
        );
        return std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()));
    }
    if worse.is_empty() { Ok(()) } else { Err(format!("{} need more instructions than before", worse.join(", "))) }
}

/// What the table says of a piece.
fn known(table: &str, name: &str) -> Option<u64> {
    let line = table.lines().find(|line| line.starts_with(&format!("| `{name}` |")))?;
    line.trim_end_matches([' ', '|']).rsplit(' ').next()?.parse().ok()
}

fn count(program: &Path, name: &str, times: u64) -> Result<u64, String> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program).args([name, &times.to_string()]);
    let told = output(command)?.1;
    let collected =
        told.lines().find_map(|line| line.split_once("Collected :")).and_then(|(_, number)| number.trim().parse().ok());
    collected.ok_or_else(|| format!("callgrind has counted nothing: {told}"))
}

/// What a program writes to its standard output, and to its standard error.
fn output(mut command: Command) -> Result<(String, String), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok((text(&output.stdout), text(&output.stderr)))
    } else {
        Err(format!("{command:?}: {}", text(&output.stderr)))
    }
}
