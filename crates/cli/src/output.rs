//! How answers look in a terminal. Machines use `--json`.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use sublet_api::view::{AreaView, EventView, FindingsView, PathState, ServerState, ServerView, TableView, TaskView, VolumeView};
use sublet_types::ByteSize;

/// Columns aligned by their widest cell, two spaces apart.
pub struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// Starts with a heading.
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines, each ended by a newline.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            out.push_str(line.join("  ").trim_end());
            out.push('\n');
        }
        out
    }
}

/// The text, or a dash if there is none.
pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// The virtual disk management table (seed: FIG. 1B, 2B): volume, areas, usage way, borrow server, status; and the path.
pub fn table(view: &TableView) -> String {
    let mut columns = Columns::new(&["VOLUME", "AREAS", "WAY", "SIZE", "BORROWER", "STATUS", "PATH"]);
    for volume in &view.volumes {
        columns.row(volume_cells(volume));
    }
    columns.render()
}

fn volume_cells(volume: &VolumeView) -> Vec<String> {
    let areas: Vec<&str> = volume.areas.iter().map(|name| name.as_str()).collect();
    let stale = volume.segments.iter().flat_map(|s| &s.legs).filter(|leg| leg.state != "in-sync").count();
    let path = match volume.path {
        PathState::None => "-".to_owned(),
        PathState::Open => "open".to_owned(),
        PathState::Idle => "idle".to_owned(),
        PathState::Lost => "lost".to_owned(),
    };
    let mut notes = Vec::new();
    if volume.state != "ready" {
        notes.push(volume.state.clone());
    }
    if stale > 0 {
        notes.push(format!("{stale} leg{} stale", if stale == 1 { "" } else { "s" }));
    }
    for work in volume.work.iter().filter(|work| work.state == "running") {
        let part = work.done.saturating_mul(100).checked_div(work.total).map(|part| format!(" {part}%")).unwrap_or_default();
        notes.push(format!("{}{part}", work.kind));
    }
    // What is the matter, without the details behind the colon: `volume show` has those.
    if let Some(reason) = volume.path_reason.split(": ").next().filter(|reason| !reason.is_empty()) {
        notes.push(reason.to_owned());
    }
    let path = if notes.is_empty() { path } else { format!("{path} ({})", notes.join("; ")) };
    vec![
        volume.name.to_string(),
        areas.join("+"),
        volume.way.to_string(),
        ByteSize(volume.size).to_string(),
        volume.borrower.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        volume.status.to_string(),
        path,
    ]
}

/// `volume ls`.
pub fn volumes(list: &[VolumeView]) -> String {
    table(&TableView { volumes: list.to_vec(), ..TableView::default() })
}

/// `volume show`.
pub fn volume(volume: &VolumeView) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| out.push_str(&format!("{key:<10} {value}\n"));
    line("name", volume.name.to_string());
    line("id", volume.id.to_string());
    line("way", volume.way.to_string());
    line("size", format!("{} ({} bytes)", ByteSize(volume.size), volume.size));
    if volume.sealed {
        line("encrypted", "by its borrower; lenders cannot read it".to_owned());
    }
    line("made by", if volume.defined { "administrator (defined)" } else { "borrow (carved)" }.to_owned());
    line("borrower", volume.borrower.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string));
    line("status", volume.status.to_string());
    line("path", volume_cells(volume).pop().unwrap_or_default());
    if !volume.path_reason.is_empty() {
        line("reason", volume.path_reason.clone());
    }
    line("epoch", volume.epoch.to_string());
    line("state", volume.state.clone());
    if let Some(coordinator) = &volume.coordinator {
        line("coordinator", coordinator.to_string());
    }
    let every = Duration::from_secs(volume.scrub_every_s);
    line("scrubs", if every.is_zero() { "never".to_owned() } else { format!("every {}", span(every)) });
    if volume.scrubbed_ms > 0 {
        line("scrubbed", utc(volume.scrubbed_ms));
    }
    let found = volume.findings;
    if found != FindingsView::default() {
        line("found", format!("{} repaired, {} not repairable, {} differed", found.repaired, found.unrepairable, found.differed));
    }
    out.push('\n');
    let mut columns = Columns::new(&["SEGMENT", "LENGTH", "GENERATION", "LEG", "AREA", "SERVER", "OFFSET", "STATE"]);
    for (number, segment) in volume.segments.iter().enumerate() {
        for (leg_number, leg) in segment.legs.iter().enumerate() {
            columns.row(vec![
                number.to_string(),
                ByteSize(segment.length).to_string(),
                segment.generation.to_string(),
                leg_number.to_string(),
                leg.area.to_string(),
                leg.server.to_string(),
                ByteSize(leg.offset).to_string(),
                leg.state.clone(),
            ]);
        }
    }
    out.push_str(&columns.render());
    if !volume.work.is_empty() {
        out.push('\n');
        out.push_str(&tasks(&volume.work));
    }
    out
}

/// A time in its largest whole unit.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    for (unit, length) in [("days", 24 * 3600), ("hours", 3600), ("minutes", 60)] {
        if seconds.is_multiple_of(length) && seconds > 0 {
            return format!("{} {unit}", seconds / length);
        }
    }
    format!("{seconds} seconds")
}

/// `server ls`.
pub fn servers(list: &[ServerView]) -> String {
    let mut columns = Columns::new(&["SERVER", "STATE", "ZONE", "ADDRESSES", "AREAS", "CAPACITY", "FREE", "BORROWS"]);
    for server in list {
        let addresses: Vec<String> = server.addresses.iter().map(ToString::to_string).collect();
        let borrows: Vec<String> = server.borrows.iter().map(ToString::to_string).collect();
        columns.row(vec![
            server.name.to_string(),
            match server.state {
                ServerState::Up => "up".to_owned(),
                ServerState::Lost => "lost".to_owned(),
            },
            or_dash(&server.zone),
            addresses.join(","),
            server.areas.to_string(),
            ByteSize(server.capacity).to_string(),
            ByteSize(server.free).to_string(),
            or_dash(&borrows.join(",")),
        ]);
    }
    columns.render()
}

/// `area ls`: the areas, and below each one its slices.
pub fn areas(list: &[AreaView]) -> String {
    let mut columns = Columns::new(&["AREA", "SERVER", "CAPACITY", "FREE", "STATE", "PLACE"]);
    for area in list {
        columns.row(vec![
            area.name.to_string(),
            area.server.to_string(),
            ByteSize(area.capacity).to_string(),
            ByteSize(area.free).to_string(),
            area.state.clone(),
            if area.sparse { format!("{} (sparse)", area.place) } else { area.place.clone() },
        ]);
        for slice in &area.slices {
            columns.row(vec![
                format!("  {}", slice.volume),
                format!("at {}", ByteSize(slice.offset)),
                ByteSize(slice.length).to_string(),
                String::new(),
                slice.state.clone(),
            ]);
        }
    }
    columns.render()
}

/// `task ls`.
pub fn tasks(list: &[TaskView]) -> String {
    let mut columns = Columns::new(&["TASK", "KIND", "SUBJECT", "STATE", "PROGRESS", "RATE", "STEP", "STARTED", "REASON"]);
    for task in list {
        columns.row(vec![
            task.id.short(),
            task.kind.clone(),
            task.subject.clone(),
            task.state.clone(),
            progress(task.done, task.total),
            rate(task),
            or_dash(&task.step),
            if task.started_ms == 0 { "-".to_owned() } else { utc(task.started_ms) },
            or_dash(&task.reason),
        ]);
    }
    columns.render()
}

/// How fast it is, and its limit.
fn rate(task: &TaskView) -> String {
    let limit = if task.rate_max == 0 { String::new() } else { format!(" of {}/s", ByteSize(task.rate_max)) };
    match task.rate_bytes_per_s {
        0 if limit.is_empty() => "-".to_owned(),
        rate => format!("{}/s{limit}", ByteSize(rounded(rate))),
    }
}

/// A rate in whole units: what is behind them changes all the time.
fn rounded(rate: u64) -> u64 {
    let unit = (0..6).map(|n| 1u64 << (10 * n)).take_while(|unit| *unit <= rate).last().unwrap_or(1);
    rate / unit * unit
}

fn progress(done: u64, total: u64) -> String {
    match done.saturating_mul(100).checked_div(total) {
        Some(percent) => format!("{percent}% of {}", ByteSize(total)),
        None => "-".to_owned(),
    }
}

/// `events`.
pub fn events(list: &[EventView]) -> String {
    let mut columns = Columns::new(&["NUMBER", "TIME (UTC)", "ABOUT", "WHAT"]);
    for event in list {
        columns.row(vec![event.number.to_string(), utc(event.at_ms), or_dash(&event.subject), event.text.clone()]);
    }
    columns.render()
}

/// Milliseconds since 1970 as `2026-01-31 12:34:56`. The calendar is Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>).
pub fn utc(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, in_day) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", in_day / 3600, in_day / 60 % 60, in_day % 60)
}

/// Shows how far long work is, on one line of a terminal that is overwritten; nothing where nobody looks.
#[derive(Default)]
pub struct ProgressLine {
    shown: bool,
}

impl ProgressLine {
    /// Shows it.
    pub fn show(&mut self, what: &str, done: u64, total: u64) {
        let mut err = io::stderr();
        if !err.is_terminal() {
            return;
        }
        let text = if total == 0 { what.to_owned() } else { format!("{what}: {}", progress(done, total)) };
        // Losing a progress line harms nobody.
        let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
        self.shown = true;
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown {
            // As above.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Prints to standard output; a reader that went away (`| head`) ends the command quietly.
pub fn print(text: &str) {
    if !try_print(text) {
        std::process::exit(0);
    }
}

/// Prints to standard output; false if its reader went away.
pub fn try_print(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Prints a value as JSON.
pub fn print_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&(text + "\n")),
        Err(e) => eprintln!("sublet: cannot print the answer as JSON: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_calendar_times() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(utc(1_767_225_599_000), "2025-12-31 23:59:59");
    }

    #[test]
    fn columns_are_aligned() {
        let mut columns = Columns::new(&["A", "LONG"]);
        columns.row(vec!["xyz".to_owned(), "1".to_owned()]);
        assert_eq!(columns.render(), "A    LONG\nxyz  1\n");
    }
}
