//! `reclaim`: an owner takes an unused area back.

use sublet_api::request::{Reclaim, TaskOutcome};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::ByteSize;

use super::{Advance, Context, Standing, Standings, begin, conflict, done, failed, listed};
use crate::change::Change;
use crate::records::{AreaRow, Command, Key, Row, Step, TaskRow};
use crate::table::Table;

/// Plans a reclaim.
///
/// # Errors
/// If the area is in use (naming the borrowers), still holds bytes to be wiped, or its lender does not answer.
pub fn plan(table: &Table, area: &str, command: &Reclaim, context: &mut Context<'_>) -> Result<Change, Refusal> {
    let area = table.area(area)?;
    let users = table.volumes_in(area.id).map(|volume| match volume.borrower {
        Some(holder) => format!("'{}' (lent to {})", volume.name, table.server_name(holder)),
        None => format!("'{}' (free)", volume.name),
    });
    let users: Vec<String> = users.collect();
    if !users.is_empty() {
        let text = format!("area '{}' is in use by {}", area.name, listed(users));
        return Err(conflict(text, "have those volumes returned first (free ones: `sublet return NAME --dissolve`)"));
    }
    let to_wipe: u64 = table.wipes.values().filter(|row| row.area == area.id).map(|row| row.length).sum();
    if to_wipe > 0 {
        let text = format!("area '{}' still holds {} of returned volumes that are to be wiped", area.name, ByteSize(to_wipe));
        return Err(conflict(text, "wait for the wipe, see `sublet area ls`"));
    }
    if let Some(stranger) = area.strangers.first() {
        let text = format!(
            "area '{}' holds slices of volumes that the table does not know (volume {})",
            area.name,
            stranger.volume.short()
        );
        return Err(conflict(text, "they may be somebody's only copy; nothing deletes them by itself"));
    }
    if area.reclaiming {
        return Err(conflict(format!("area '{}' is being reclaimed already", area.name), "wait for it, see `sublet task ls`"));
    }
    if !context.reachable.contains(&area.server) {
        let text = format!("the lender of area '{}', {}, does not answer", area.name, table.server_name(area.server));
        return Err(Refusal::new(ErrorKind::LenderUnreachable, text).hint("start `sublet server` there first"));
    }
    let mut task = begin(command.task, Command::Reclaim, area.name.as_str(), Step::Releasing, context.now_ms);
    task.area = Some(area.id);
    let mut change = Change::new();
    change.put(Row::Area(AreaRow { reclaiming: true, ..area.clone() }));
    change.put(Row::Task(Box::new(task)));
    Ok(change)
}

/// The lender has given the disk back to its owner, or not.
pub fn advance(table: &Table, task: &TaskRow, standings: &Standings, context: &mut Context<'_>) -> Advance {
    let mut change = Change::new();
    let area = task.area.and_then(|id| table.areas.get(&id));
    let standing = standings.first().map(|(_, standing)| standing);
    match (area, standing) {
        (Some(_), Some(Standing::Waiting { .. })) => return Advance::wait(),
        (Some(area), Some(Standing::Failed(_) | Standing::Unreachable(_))) => {
            let kind = if let Some(Standing::Failed(refusal)) = standing { refusal.kind } else { ErrorKind::LenderUnreachable };
            let why = standing.and_then(Standing::trouble).unwrap_or_default();
            let text = format!("{} did not release area '{}': {why}", table.server_name(area.server), area.name);
            change.put(Row::Area(AreaRow { reclaiming: false, ..area.clone() }));
            change.event(area.name.as_str(), text.clone());
            change.put(failed(task, Refusal::new(kind, text).hint("try again"), context.now_ms));
        }
        (Some(area), _) => {
            change.delete(Key::Area(area.id));
            change.event(area.name.as_str(), format!("reclaimed by {}", table.server_name(area.server)));
            change.put(done(task, TaskOutcome::Done, context.now_ms));
        }
        (None, _) => change.put(done(task, TaskOutcome::Done, context.now_ms)),
    }
    Advance::Commit(change)
}
