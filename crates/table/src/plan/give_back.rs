//! `return`: a carved volume is dissolved, a defined one becomes free again; both are wiped (P2).

use sublet_api::Refusal;
use sublet_api::request::{Return, TaskOutcome};
use sublet_api::view::PathState;
use sublet_types::{ByteSize, ServerId};

use super::seal;
use super::{
    Advance, Context, Standing, Standings, begin, check_borrower, check_quiet, check_unmounted, conflict, done, failed, layout,
    listed, order_slice, scrub, wipe,
};
use crate::change::Change;
use crate::records::{Command, Key, PathRow, Row, Step, TaskRow, VolumeRow, WorkRow};
use crate::table::Table;
use crate::views;

/// Plans a return.
///
/// # Errors
/// If somebody else has it, it is mounted, or there is nothing to return.
pub fn plan(table: &Table, volume: &str, command: &Return, context: &mut Context<'_>) -> Result<Change, Refusal> {
    let volume = table.volume(volume)?;
    if let Some(server) = command.server {
        check_owner(table, volume, server, command.dissolve)?;
    }
    let endless = endless_task(table, volume).filter(|_| command.dissolve);
    // A volume that has lost bytes, or that its labels do not settle, is given up this way.
    let is_given_up = command.dissolve && volume.frozen.is_some() && volume.task.is_none();
    if endless.is_none() && !is_given_up {
        check_quiet(table, volume)?;
    }
    check_unmounted(table, volume)?;
    if volume.borrower.is_none() && !command.dissolve {
        let hint = "add --dissolve to delete it, or use it: `sublet borrow`";
        return Err(conflict(format!("volume '{}' is free already: nobody has borrowed it", volume.name), hint));
    }
    let mut change = Change::new();
    if let Some(task) = endless {
        let refusal = conflict(format!("volume '{}' was dissolved meanwhile", volume.name), "");
        change.put(failed(task, refusal, context.now_ms));
    }
    scrub::end(table, volume, context.now_ms, &mut change);
    seal::forget(table, volume.id, &mut change);
    let epoch = volume.next_epoch((context.random)());
    let keep = volume.defined && !command.dissolve;
    for row in layout::wipe_rows(volume, epoch, !keep) {
        change.put(row);
    }
    let mut task = begin(command.task, Command::Return, volume.name.as_str(), Step::Wiping, context.now_ms);
    task.volume = Some(volume.id);
    task.total = volume.legs().map(|(_, leg)| leg.length).sum();
    let holder = volume.borrower.map_or_else(|| "the administrator".to_owned(), |id| table.server_name(id));
    if keep {
        let mut freed = VolumeRow { borrower: None, epoch, task: Some(command.task), ..volume.clone() };
        // The wipe takes the copies in the volume: without its header a key is gone, and with it what it had encrypted.
        (freed.sealed, freed.seal) = (false, None);
        freed.path = PathRow { state: PathState::None, since_ms: context.now_ms, reason: String::new() };
        for segment in &mut freed.segments {
            // All legs are about to hold the same zeroes.
            segment.generation = segment.issue((context.random)());
            segment.pending = None;
            segment.last = None;
            for leg in &mut segment.legs {
                leg.in_sync = true;
                leg.stale_since = None;
            }
        }
        freed.work = WorkRow { segments_revision: volume.work.segments_revision, ..WorkRow::default() };
        change.put(Row::Volume(Box::new(freed)));
        change.event(volume.name.as_str(), format!("returned by {holder}; it is wiped and then free again"));
    } else {
        change.delete(Key::Volume(volume.id));
        if volume.unsettled || !volume.absent.is_empty() {
            change.put(Row::Wipe(wipe::whole_volume(volume, epoch)));
        }
        change.event(volume.name.as_str(), format!("returned by {holder} and dissolved; its space is wiped"));
    }
    change.put(Row::Task(Box::new(task)));
    Ok(change)
}

/// A change of way waits for its lenders however long that takes. If one of them never comes back, dissolving the volume is
/// how an administrator ends it: nobody has any bytes in it.
fn endless_task<'a>(table: &'a Table, volume: &VolumeRow) -> Option<&'a TaskRow> {
    let task = volume.task.filter(|_| volume.frozen.is_none()).and_then(|id| table.tasks.get(&id));
    task.filter(|task| task.command == Command::SetWay && task.is_running())
}

/// The borrower returns; a free volume may be dissolved by anybody (there are no bytes of anybody in it).
fn check_owner(table: &Table, volume: &VolumeRow, server: ServerId, dissolve: bool) -> Result<(), Refusal> {
    if volume.borrower.is_none() && dissolve {
        return Ok(());
    }
    check_borrower(table, volume, server).map_err(|refusal| match volume.borrower {
        Some(_) => refusal.hint("only the borrower returns it"),
        None => refusal.hint("there is nothing to return"),
    })
}

/// Waits until all is wiped, or only lenders that do not answer are left: they wipe when they return.
pub fn advance(table: &Table, task: &TaskRow, standings: &Standings, context: &mut Context<'_>) -> Advance {
    let Some(id) = task.volume else { return Advance::wait() };
    let left: Vec<_> = table.wipes_of(id).collect();
    let standing = |slice| standings.iter().find(|(order, _)| order_slice(order) == Some(slice)).map(|(_, standing)| standing);
    let going_on =
        left.iter().any(|row| standing(row.slice).is_none_or(|s| matches!(s, Standing::Waiting { .. } | Standing::Done)));
    if going_on {
        let behind = left.iter().map(|row| match standing(row.slice) {
            Some(Standing::Waiting { progress: Some((done, total)), .. }) => {
                row.length.saturating_sub(scaled(*done, *total, row.length))
            }
            _ => row.length,
        });
        return Advance::Wait { reason: String::new(), done: task.total.saturating_sub(behind.sum()) };
    }
    let mut change = Change::new();
    let outcome = match table.volumes.get(&id) {
        Some(volume) => {
            let freed = VolumeRow { task: None, ..volume.clone() };
            let view = views::volume(table, &freed);
            change.put(Row::Volume(Box::new(freed)));
            TaskOutcome::Volume { volume: Box::new(view) }
        }
        None => TaskOutcome::Done,
    };
    let mut task = task.clone();
    if !left.is_empty() {
        let bytes = ByteSize(left.iter().map(|row| row.length).sum());
        let lenders = listed(left.iter().map(|row| table.lender_name(row.area)));
        task.reason = format!(
            "{bytes} at {lenders} cannot be wiped now; it is done when that lender returns, and the space is not lent before"
        );
        change.event(task.subject.as_str(), task.reason.clone());
    }
    change.put(done(&task, outcome, context.now_ms));
    Advance::Commit(change)
}

/// A lender may count more than the slice's bytes (maps, checksums): its progress is scaled to the slice.
fn scaled(done: u64, total: u64, length: u64) -> u64 {
    let part = u128::from(done.min(total)) * u128::from(length) / u128::from(total.max(1));
    u64::try_from(part).unwrap_or(length)
}
