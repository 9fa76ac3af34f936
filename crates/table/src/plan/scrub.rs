//! `volume scrub`: the checksums of all legs are checked and compared, when somebody asks for it and every so often (K1).

use sublet_api::Refusal;
use sublet_api::request::{Scrub, ScrubEvery, TaskOutcome};
use sublet_api::view::PathState;
use sublet_api::work::{WorkReport, WorkState};
use sublet_types::TaskId;
use sublet_types::limits::SCRUB_EVERY;

use super::background::scrub_of;
use super::{Context, bad, begin, conflict, done, failed, frozen_hint};
use crate::change::Change;
use crate::records::{Command, Row, Step, TaskRow, VolumeRow};
use crate::table::Table;

/// Scrubs that nobody has asked for and that go on at the same time: they are in no hurry.
pub const SCHEDULED_AT_ONCE: usize = 1;
/// So long after its beginning a scrub counts as going on although nobody coordinates the volume yet, in milliseconds: after that
/// nobody can.
const HOLDER_WAIT_MS: u64 = 60_000;
/// The shortest time between two scheduled scrubs, in seconds: an hour. Each one is a task and an event, and crowds out others.
pub const EVERY_MIN_S: u64 = 3600;
/// The longest time between two scheduled scrubs, in seconds: ten years.
pub const EVERY_MAX_S: u64 = 10 * 365 * 24 * 3600;
/// The progress of a scrub is recorded in steps of this part of it: so much is done again after a crash, at most.
const RECORDED_PARTS: u64 = 64;

/// Plans a scrub.
///
/// # Errors
/// If the volume is frozen, has no lender's bytes to be checked yet, or is being scrubbed already.
pub fn plan(table: &Table, volume: &str, command: &Scrub, context: &Context<'_>) -> Result<Change, Refusal> {
    let volume = table.volume(volume)?;
    if let Some(reason) = &volume.frozen {
        return Err(conflict(format!("volume '{}' is frozen: {reason}", volume.name), frozen_hint(volume)));
    }
    if let Some(task) = scrub_of(table, volume.id) {
        let text = format!("volume '{}' is being scrubbed already (task {})", volume.name, task.id.short());
        return Err(conflict(text, "see `sublet task ls`"));
    }
    let mut change = Change::new();
    change.put(row(volume, command.task, command.rate_max, false, context.now_ms));
    Ok(change)
}

fn row(volume: &VolumeRow, id: TaskId, rate_max: u64, scheduled: bool, now_ms: u64) -> Row {
    let mut task = begin(id, Command::Scrub { scheduled }, volume.name.as_str(), Step::Working, now_ms);
    task.volume = Some(volume.id);
    task.total = volume.segments.iter().map(|segment| segment.length * segment.legs.len() as u64).sum();
    task.rate_max = rate_max;
    Row::Task(Box::new(task))
}

/// Plans another time between scheduled scrubs.
///
/// # Errors
/// [`ErrorKind::BadRequest`](sublet_api::ErrorKind::BadRequest) for a time that is too short or too long.
pub fn every(table: &Table, volume: &str, command: &ScrubEvery) -> Result<Change, Refusal> {
    let volume = table.volume(volume)?;
    if command.seconds.is_some_and(|seconds| seconds > EVERY_MAX_S) {
        return Err(bad("a volume is scrubbed at least every ten years, or never", "for example --every 30d, or --every off"));
    }
    if command.seconds.is_some_and(|seconds| (1..EVERY_MIN_S).contains(&seconds)) {
        return Err(bad(
            "a volume is scrubbed once an hour at most",
            "for example --every 12h; or scrub it now, without --every",
        ));
    }
    let mut next = volume.clone();
    next.work.scrub_every_s = command.seconds;
    let mut change = Change::new();
    if next != *volume {
        change.put(Row::Volume(Box::new(next)));
    }
    Ok(change)
}

/// Seconds between two scheduled scrubs of a volume; 0 is never.
pub fn every_s(volume: &VolumeRow) -> u64 {
    volume.work.scrub_every_s.unwrap_or(SCRUB_EVERY.as_secs())
}

/// When a lent volume is to be scrubbed without being asked, in milliseconds since 1970; none if never.
pub fn due_ms(volume: &VolumeRow) -> Option<u64> {
    let is_lent = volume.borrower.is_some() && volume.frozen.is_none();
    let every_s = every_s(volume);
    (is_lent && every_s > 0 && volume.work.scrub_from_ms > 0).then(|| volume.work.scrub_from_ms + every_s * 1000)
}

/// Whether somebody who can do it holds the volume's lease, or is about to.
fn has_holder(volume: &VolumeRow, task: &TaskRow, context: &Context<'_>) -> bool {
    match &volume.lease {
        Some(_) => volume.path.state != PathState::Lost,
        None => volume.work.background.is_some() || context.now_ms < task.started_ms + HOLDER_WAIT_MS,
    }
}

/// Begins what is due, and begins to count for volumes that are newly lent. The answer is empty if there is nothing to do.
pub fn schedule(table: &Table, context: &mut Context<'_>) -> Change {
    let mut change = Change::new();
    // One that waits for a lender that is away does not hold up all the others (K1).
    let is_there =
        |area| table.areas.get(&area).is_some_and(|row| row.offline.is_none() && context.reachable.contains(&row.server));
    let is_whole = |volume: &VolumeRow| volume.legs().all(|(_, leg)| is_there(leg.area));
    let goes_on = |task: &&TaskRow| {
        let volume = task.volume.and_then(|id| table.volumes.get(&id));
        let is_scheduled = task.is_running() && task.command == Command::Scrub { scheduled: true };
        let is_at_work = |volume: &VolumeRow| is_whole(volume) && volume.frozen.is_none() && has_holder(volume, task, context);
        is_scheduled && !task.is_paused && volume.is_some_and(is_at_work)
    };
    let mut running = table.tasks.values().filter(goes_on).count();
    let mut due: Vec<&VolumeRow> = Vec::new();
    for volume in table.volumes.values().filter(|volume| volume.borrower.is_some() && volume.task.is_none()) {
        if volume.work.scrub_from_ms == 0 {
            let mut next = volume.clone();
            next.work.scrub_from_ms = context.now_ms;
            change.put(Row::Volume(Box::new(next)));
        } else if due_ms(volume).is_some_and(|due_ms| due_ms <= context.now_ms)
            && is_whole(volume)
            && scrub_of(table, volume.id).is_none()
        {
            due.push(volume);
        }
    }
    due.sort_by_key(|volume| due_ms(volume));
    for volume in due {
        if running >= SCHEDULED_AT_ONCE {
            break;
        }
        running += 1;
        change.put(row(volume, TaskId::from_u128((context.random)()), 0, true, context.now_ms));
    }
    change
}

/// The bytes that a scrub was about are no more: the volume is returned.
pub fn end(table: &Table, volume: &VolumeRow, now_ms: u64, change: &mut Change) {
    if let Some(task) = scrub_of(table, volume.id) {
        change.put(failed(task, conflict(format!("volume '{}' was returned meanwhile", volume.name), ""), now_ms));
    }
}

/// What a coordinator tells of a scrub: its end is entered, and every now and then how far it is.
pub fn reported(table: &Table, volume: &VolumeRow, report: &WorkReport, now_ms: u64) -> Change {
    let mut change = Change::new();
    let task = report.work.and_then(|id| table.tasks.get(&id)).filter(|task| task.is_running() && task.volume == Some(volume.id));
    let Some(task) = task.filter(|task| matches!(task.command, Command::Scrub { .. })) else { return change };
    match report.state {
        WorkState::Done => {
            let ended = TaskRow { done: report.total, total: report.total, ..task.clone() };
            change.put(done(&ended, TaskOutcome::Done, now_ms));
            let mut next = volume.clone();
            next.work.scrubbed_ms = now_ms;
            next.work.scrub_from_ms = now_ms;
            change.put(Row::Volume(Box::new(next)));
            change.event(volume.name.as_str(), "scrubbed");
        }
        WorkState::Failed | WorkState::Cancelled => {
            let why = if report.reason.is_empty() { "its coordinator gave it up" } else { &report.reason };
            let refusal = Refusal::new(sublet_api::ErrorKind::Io, format!("the scrub of volume '{}' failed: {why}", volume.name));
            change.put(failed(task, refusal, now_ms));
            let mut next = volume.clone();
            // The next scheduled one comes in its time, not at once again.
            next.work.scrub_from_ms = now_ms;
            change.put(Row::Volume(Box::new(next)));
        }
        WorkState::Running | WorkState::Waiting | WorkState::Paused => {
            let step = (report.total / RECORDED_PARTS).max(1);
            if report.done >= task.done + step || report.total != task.total {
                let row = TaskRow { done: report.done, total: report.total, ..task.clone() };
                change.put(Row::Task(Box::new(row)));
            }
        }
    }
    change
}
