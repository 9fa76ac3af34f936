//! `task pause | resume | cancel | limit`: background work only; what somebody waits for is not paused.

use sublet_api::request::{ControlTask, TaskOutcome};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{TaskId, VolumeId};

use super::{Context, bad, conflict};
use crate::change::Change;
use crate::records::{Command, Row, Step, TaskRow, TaskState, VolumeRow};
use crate::table::Table;

/// The fewest digits of an id that name a task.
const DIGITS_MIN: usize = 4;

/// What an id in `task ls` stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// A task with a row of its own.
    Task(TaskId),
    /// The resync of a stale leg, which has the slice's id.
    Resync(VolumeId),
    /// The equalising of a volume, which has the volume's id.
    Equalise,
    /// A wipe, which has the slice's id.
    Wipe,
}

/// Finds what an id, or the first digits of one, stands for.
///
/// # Errors
/// [`ErrorKind::NotFound`], or [`ErrorKind::BadRequest`] if it stands for several.
pub fn find(table: &Table, text: &str) -> Result<(TaskId, Target), Refusal> {
    let mut found: Vec<(TaskId, Target)> = Vec::new();
    let mut look = |id: TaskId, target: Target| {
        let whole = id.to_string();
        if whole == text || (text.len() >= DIGITS_MIN && whole.starts_with(text)) {
            found.push((id, target));
        }
    };
    for task in table.tasks.values() {
        look(task.id, Target::Task(task.id));
    }
    for volume in table.volumes.values() {
        for (_, leg) in volume.legs().filter(|(_, leg)| !leg.in_sync) {
            look(TaskId::from_u128(leg.slice.to_u128()), Target::Resync(volume.id));
        }
        if volume.work.unclean {
            look(TaskId::from_u128(volume.id.to_u128()), Target::Equalise);
        }
    }
    for slice in table.wipes.keys() {
        look(TaskId::from_u128(slice.to_u128()), Target::Wipe);
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => {
            let shown: String = text.chars().take(40).collect();
            Err(Refusal::new(ErrorKind::NotFound, format!("there is no task '{}'", shown.escape_default()))
                .hint("see `sublet task ls`"))
        }
        _ => Err(bad(format!("'{text}' is the beginning of {} ids", found.len()), "give more digits; see `sublet task ls`")),
    }
}

/// Plans a change of background work.
///
/// # Errors
/// [`ErrorKind::Conflict`] for what has ended, what somebody waits for, and what cannot be changed that way.
pub fn plan(table: &Table, target: Target, control: ControlTask, context: &Context<'_>) -> Result<Change, Refusal> {
    match target {
        Target::Task(id) => match table.tasks.get(&id) {
            Some(task) => of_task(table, task, control, context),
            None => Err(Refusal::new(ErrorKind::NotFound, "the task is no longer kept")),
        },
        Target::Resync(id) => match table.volumes.get(&id) {
            Some(volume) => Ok(put(volume, resync(volume, control)?)),
            None => Err(Refusal::new(ErrorKind::NotFound, "the volume is gone")),
        },
        Target::Equalise => Err(conflict(
            "making copies equal after an unclean close is not paused, cancelled or limited",
            "its reads depend on it (H3)",
        )),
        Target::Wipe => Err(conflict(
            "a wipe is not paused, cancelled or limited",
            "the space is nobody's before it is done, and a lender works at a few of them at a time",
        )),
    }
}

fn put(before: &VolumeRow, after: VolumeRow) -> Change {
    let mut change = Change::new();
    if after != *before {
        change.put(Row::Volume(Box::new(after)));
    }
    change
}

/// Resyncs of one volume are paused and limited together.
fn resync(volume: &VolumeRow, control: ControlTask) -> Result<VolumeRow, Refusal> {
    let mut next = volume.clone();
    match control {
        ControlTask::Pause => next.work.is_resync_paused = true,
        ControlTask::Resume => next.work.is_resync_paused = false,
        ControlTask::Limit { rate_max } => next.work.resync_rate_max = rate_max,
        ControlTask::Cancel => {
            let text = format!(
                "the resync of volume '{}' is not cancelled: without it one of its copies stays out of date",
                volume.name
            );
            return Err(conflict(text, "pause it, or limit its rate"));
        }
    }
    Ok(next)
}

fn of_task(table: &Table, task: &TaskRow, control: ControlTask, context: &Context<'_>) -> Result<Change, Refusal> {
    let word = task.command.word();
    if !task.is_running() {
        return Err(conflict(format!("this {word} of '{}' has ended", task.subject), "see `sublet task ls`"));
    }
    if !matches!(task.command, Command::Scrub { .. } | Command::Replace { .. }) {
        let text = format!("a {word} is not background work: somebody waits for it");
        return Err(conflict(text, "only resync, scrub and replace are paused, cancelled or limited"));
    }
    let mut change = Change::new();
    let mut next = task.clone();
    match control {
        ControlTask::Pause => next.is_paused = true,
        ControlTask::Resume => next.is_paused = false,
        ControlTask::Limit { rate_max } => next.rate_max = rate_max,
        ControlTask::Cancel => {
            if super::replace::new_slices(task).next().is_some() {
                let text =
                    format!("the lost copy of volume '{}' has been given up already: the new one is being made", task.subject);
                return Err(conflict(text, "pause it, or limit its rate"));
            }
            next = cancelled(task, context.now_ms);
            change.event(task.subject.as_str(), format!("{word} cancelled"));
        }
    }
    // What copies to a new leg is the volume's resync.
    let volume = task.volume.and_then(|id| table.volumes.get(&id));
    if let Some(volume) = volume.filter(|_| matches!(task.command, Command::Replace { .. }) && control != ControlTask::Cancel) {
        change = put(volume, resync(volume, control)?);
    }
    change.put(Row::Task(Box::new(next)));
    Ok(change)
}

fn cancelled(task: &TaskRow, now_ms: u64) -> TaskRow {
    let refusal = conflict(format!("the {} of volume '{}' was cancelled", task.command.word(), task.subject), "");
    let reason = refusal.message.clone();
    let outcome = Some(TaskOutcome::Failed { refusal });
    TaskRow { state: TaskState::Cancelled, step: Step::Ended, outcome, reason, ended_ms: now_ms, ..task.clone() }
}
