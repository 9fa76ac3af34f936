//! `unmount`: the next epoch is committed first, then every lender closes the path (seed: S3, S32; F3).

use sublet_api::mount::UnmountingInformation;
use sublet_api::request::{TaskOutcome, Unmount};
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{Epoch, TaskId};

use super::mount::{confirm, leave_behind, must_wait};
use super::{
    Advance, Context, Standing, Standings, at_step, bad, begin, check_borrower, check_quiet, conflict, done, failed, listed,
    standing_of,
};
use crate::change::Change;
use crate::records::{Command, LeaseState, PathRow, Row, Step, TaskRow, VolumeRow};
use crate::table::Table;

/// Plans an unmount.
///
/// # Errors
/// If the caller is not the borrower, or its mount has ended already; with `force` only if there is no mount at all.
pub fn plan(table: &Table, volume: &str, command: &Unmount, context: &mut Context<'_>) -> Result<Change, Refusal> {
    let volume = table.volume(volume)?;
    let hint = "nothing is left to be done; see `sublet volume show`";
    // First of all: a client whose mount was ended by force may belong to a server that has lost the volume since.
    if let Some(epoch) = command.epoch
        && volume.lease_of(epoch).is_none()
    {
        // L5: a mount that this table does not know yet has not ended.
        if volume.unsettled || epoch.number > volume.epoch.number {
            let text = format!("the table does not know of the mount of '{}' with epoch {epoch}: it is behind", volume.name);
            return Err(conflict(text, "unmount it when the table has been reconciled: `sublet manager rebuild --reconcile`"));
        }
        let text = format!("the mount of '{}' with epoch {epoch} has ended already (now at epoch {})", volume.name, volume.epoch);
        return Err(Refusal::new(ErrorKind::StaleEpoch, text).hint(hint));
    }
    if !command.force {
        let Some(server) = command.server else {
            return Err(bad("it is not said who unmounts", "unmount at the borrower, or add --force as the administrator"));
        };
        check_borrower(table, volume, server)?;
    }
    if command.epoch.is_none() && !command.force {
        return Err(bad("it is not said which epoch is to be closed", "it stands in the mounting information; or add --force"));
    }
    if volume.lease.is_none() {
        return Err(conflict(format!("volume '{}' is not mounted", volume.name), hint));
    }
    check_quiet(table, volume)?;
    let task = Command::Unmount { force: command.force };
    close(table, volume, (command.task, task), context)
        .ok_or_else(|| conflict(format!("volume '{}' is not mounted", volume.name), hint))
}

/// Commits the next epoch and begins to fence; nothing if there is no lease.
pub fn close(table: &Table, volume: &VolumeRow, (id, command): (TaskId, Command), context: &mut Context<'_>) -> Option<Change> {
    let lease = volume.lease.as_ref()?;
    let closed = lease.epoch;
    let mut volume = volume.clone();
    volume.epoch = volume.next_epoch((context.random)());
    volume.task = Some(id);
    if let Some(lease) = &mut volume.lease {
        lease.state = LeaseState::Closing;
    }
    let holder = volume.borrower.map_or_else(|| "nobody".to_owned(), |id| table.server_name(id));
    let mut task = begin(id, command, volume.name.as_str(), Step::Fencing { closed, holder }, context.now_ms);
    task.volume = Some(volume.id);
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(volume)));
    change.put(Row::Task(Box::new(task)));
    Some(change)
}

/// The lenders have closed the path, or do not answer.
pub fn advance(
    table: &Table,
    task: &TaskRow,
    volume: &VolumeRow,
    (closed, holder): (Epoch, &str),
    standings: &Standings,
    context: &mut Context<'_>,
) -> Advance {
    if must_wait(volume, standings, context.now_ms) {
        return Advance::wait();
    }
    let mut change = Change::new();
    let mut next = VolumeRow { lease: None, task: None, ..volume.clone() };
    next.path = PathRow { state: PathState::None, since_ms: context.now_ms, reason: String::new() };
    confirm(&mut next, standings);
    // The borrower itself has flushed and closed, unless it was not asked: then a lender that does not answer may hold
    // writes of the old client that the others do not have (F3).
    let forced = !matches!(task.command, Command::Unmount { force: false });
    // L5: of a volume whose labels are ahead of the table it is not known which copies are in sync.
    if forced && volume.frozen.is_none() {
        for segment in &mut next.segments {
            for index in leave_behind(segment, standings, context.random) {
                if let Some(leg) = segment.legs.get(index) {
                    let lender = table.lender_name(leg.area);
                    change.event(volume.name.as_str(), format!("the copy at {lender} is stale: it could not be fenced"));
                }
            }
        }
    }
    let (mut released, mut unreachable) = (Vec::new(), Vec::new());
    for (_, leg) in volume.legs() {
        let lender = table.lender(leg.area).and_then(|id| table.servers.get(&id));
        let Some(name) = lender.map(|row| row.name.clone()) else { continue };
        let list = if standing_of(standings, leg.slice) == Some(&Standing::Done) { &mut released } else { &mut unreachable };
        if !list.contains(&name) {
            list.push(name);
        }
    }
    released.retain(|name| !unreachable.contains(name));
    let missing = listed(next.unfenced_legs().map(|leg| table.lender_name(leg.area)));
    let is_fenced = next.is_fenced();
    // L5: the lenders were asked to end what is older than the table, not what it does not know of.
    let is_told_too_little = forced && volume.is_behind();
    let how = if is_told_too_little {
        "closed in a table that is behind, so a newer mount may go on: the mount of"
    } else if forced {
        "fenced: unmounted by force from"
    } else {
        "unmounted by"
    };
    change.event(volume.name.as_str(), format!("{how} {holder} (epoch {closed})"));
    if !is_fenced {
        let text = format!("{missing} did not answer; the volume cannot be mounted elsewhere until it has been fenced there");
        change.event(volume.name.as_str(), text);
    }
    if let Command::Transfer { to } = task.command {
        if let Some(reason) = &volume.frozen {
            let text = format!("volume '{}' was unmounted, but cannot be handed over: it is frozen: {reason}", volume.name);
            change.put(failed(task, conflict(text, "see `sublet manager rebuild --show`"), context.now_ms));
        } else if is_fenced {
            next.borrower = Some(to);
            next.task = Some(task.id);
            change.put(at_step(task, Step::Labelling));
        } else {
            let text =
                format!("volume '{}' was unmounted, but cannot be handed over: {missing} could not be fenced", volume.name);
            let refusal =
                Refusal::new(ErrorKind::LenderUnreachable, text).hint("repeat the transfer when that lender answers again");
            change.put(failed(task, refusal, context.now_ms));
        }
    } else if is_told_too_little {
        let text = format!(
            "the mount that the table knew of (epoch {closed}) is over, but the table is behind: a newer mount of '{}' may go on",
            volume.name
        );
        let hint = "reconcile the table first (`sublet manager rebuild --reconcile`), then look whether it is still mounted";
        change.put(failed(task, conflict(text, hint), context.now_ms));
    } else {
        let name = volume.name.clone();
        let unmounting =
            UnmountingInformation { volume: volume.id, name, epoch_closed: closed, released, unreachable, status: 0 };
        change.put(done(task, TaskOutcome::Unmounted { unmounting }, context.now_ms));
    }
    change.put(Row::Volume(Box::new(next)));
    Advance::Commit(change)
}
