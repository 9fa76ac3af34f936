//! Tables of what was measured.

use std::fmt::Write as _;
use std::path::Path;

use crate::chart;
use crate::error::{Doing as _, Failure};
use crate::fio::Measured;
use crate::load::Figure;
use crate::machine;
use crate::matrix::{Cell, Plan, Row};
use crate::target::{Kind, Medium};

/// Middle, least and most of some numbers; zeroes if there are none.
pub fn spread(numbers: &[f64]) -> (f64, f64, f64) {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    let middle = sorted.len() / 2;
    let median =
        if sorted.len().is_multiple_of(2) && middle > 0 { f64::midpoint(at(middle - 1), at(middle)) } else { at(middle) };
    (median, at(0), at(sorted.len().saturating_sub(1)))
}

/// What counts of a measurement.
fn figure(figure: Figure, measured: &Measured) -> f64 {
    match figure {
        Figure::Latency => measured.mean_us,
        Figure::Rate => measured.iops,
        Figure::Bandwidth => measured.megabytes_s,
    }
}

/// The figure of a cell in all rounds.
pub fn figures(row: &Row, cell: &Cell) -> Vec<f64> {
    cell.rounds.iter().map(|measured| figure(row.load.figure, measured)).collect()
}

/// A number as people read it: three digits that count.
pub fn short(number: f64) -> String {
    match number {
        _ if number >= 1e5 => format!("{:.0}k", number / 1e3),
        _ if number >= 1e4 => format!("{:.1}k", number / 1e3),
        _ if number >= 100.0 => format!("{number:.0}"),
        _ => format!("{number:.1}"),
    }
}

/// The head of a table of the loads' own figures.
const HEAD: &str = "load, unit";

fn table(out: &mut String, rows: &[Row], head: &str, entry: impl Fn(&Row, &Cell) -> String) {
    let Some(first) = rows.first() else { return };
    let names: Vec<&str> = first.cells.iter().map(|cell| cell.target).collect();
    let _ = writeln!(out, "| {head} | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for row in rows {
        let entries: Vec<String> = row.cells.iter().map(|cell| entry(row, cell)).collect();
        let unit = if head == HEAD { format!(", {}", row.load.figure.unit()) } else { String::new() };
        let _ = writeln!(out, "| {}{unit} | {} |", row.load.words(), entries.join(" | "));
    }
    out.push('\n');
}

/// How much better one is than another: above 1 is better, whatever the figure.
fn ratio(row: &Row, own: &Cell, other: &Cell) -> f64 {
    let middle = |cell: &Cell| spread(&figures(row, cell)).0;
    match row.load.figure {
        Figure::Latency => middle(other) / middle(own),
        Figure::Rate | Figure::Bandwidth => middle(own) / middle(other),
    }
}

/// The better of the other servers.
fn best_peer(row: &Row) -> Option<&Cell> {
    let peers = row.cells.iter().filter(|cell| cell.kind == Kind::Peer);
    peers.reduce(|best, cell| if ratio(row, cell, best) > 1.0 { cell } else { best })
}

/// All tables.
pub fn text(plan: &Plan, program: &Path, tables: &[(Medium, Vec<Row>)]) -> String {
    let mut out =
        String::from("# Results\n\nWritten by `cargo xtask bench`; see [README.md](README.md) for what is measured and how.\n\n");
    for line in machine::words(program) {
        let _ = writeln!(out, "- {line}");
    }
    let _ = writeln!(
        out,
        "\nMedians of {} rounds of {} s (least to most in brackets), volumes of {} MiB. Load generator, servers and clients share the processors.\n",
        plan.rounds,
        plan.seconds,
        plan.bytes >> 20
    );
    for (medium, rows) in tables {
        let _ = writeln!(out, "## Files {}\n", medium.words());
        table(&mut out, rows, HEAD, |row, cell| {
            let (median, least, most) = spread(&figures(row, cell));
            format!("{} ({}-{})", short(median), short(least), short(most))
        });
        out += "The latency that 99 of 100 requests stay below, in us:\n\n";
        table(&mut out, rows, "load", |_, cell| {
            short(spread(&cell.rounds.iter().map(|measured| measured.p99_us).collect::<Vec<_>>()).0)
        });
        out += "Processor time of all serving processes for each request, in us:\n\n";
        table(&mut out, rows, "load", |_, cell| match spread(&cell.cpu_us) {
            _ if cell.cpu_us.is_empty() => "-".to_owned(),
            (median, _, _) => format!("{median:.1}"),
        });
        out += "As good as the raw file, and as the best of the other servers (more than 1: better):\n\n";
        table(&mut out, rows, "load", |row, cell| {
            let with = |other: Option<&Cell>| other.map_or("-".to_owned(), |other| format!("{:.2}", ratio(row, cell, other)));
            format!("{} / {}", with(row.cells.iter().find(|cell| cell.kind == Kind::Raw)), with(best_peer(row)))
        });
        let thrown: usize = rows.iter().map(|row| row.thrown).sum();
        let _ =
            writeln!(out, "{thrown} measurements were repeated, because the host took more than 2 % of the processors' time.\n");
    }
    out
}

/// Saves the tables, and a chart for each load.
///
/// # Errors
/// They cannot be written.
pub fn save(folder: &Path, text: &str, tables: &[(Medium, Vec<Row>)]) -> Result<(), Failure> {
    let charts = folder.join("charts");
    std::fs::create_dir_all(&charts).doing(charts.display())?;
    let mut text = text.to_owned();
    for (medium, rows) in tables {
        for row in rows {
            let name = format!("{}-{}.svg", if *medium == Medium::Disk { "disk" } else { "memory" }, row.load.name);
            let path = charts.join(&name);
            std::fs::write(&path, chart::svg(*medium, row)).doing(path.display())?;
            let _ = writeln!(text, "![{}, files {}](charts/{name})", row.load.words(), medium.words());
        }
    }
    let path = folder.join("RESULTS.md");
    std::fs::write(&path, text).doing(path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_ones() {
        assert_eq!(spread(&[4.0, 1.0, 3.0]), (3.0, 1.0, 4.0));
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]), (2.5, 1.0, 4.0));
        assert_eq!(spread(&[]), (0.0, 0.0, 0.0));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([99.94, 123.4, 45678.0, 456_789.0].map(short), ["99.9", "123", "45.7k", "457k"]);
    }
}
