//! `borrow`: a server is entered as the borrower of a volume (seed: S1, S5, S8).

use sublet_api::request::Borrow;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::SEAL_SIZE;
use sublet_types::{ByteSize, Name, Way};

use super::place::{Wanted, place, rooms, rounded, way_and_copies};
use super::{Context, bad, begin, check_member, check_quiet, conflict, create, layout, limits, listed};
use crate::change::Change;
use crate::records::{Command, Row, Step, VolumeRow};
use crate::table::Table;

/// Plans it: the named free volume, the best-fitting free one, or a new one.
///
/// # Errors
/// If the volume is not free, or there is no room.
pub fn plan(table: &Table, command: &Borrow, context: &mut Context<'_>) -> Result<Change, Refusal> {
    check_member(table, command.server)?;
    let (way, copies) = way_and_copies(command.way, command.copies)?;
    let Some(size) = command.size else {
        let Some(name) = &command.name else {
            return Err(bad("neither a volume nor a size was given", "`sublet borrow NAME`, or `sublet borrow --size 10G`"));
        };
        return named(table, command, name, way, context);
    };
    let size = rounded(size)? + if command.seal.is_some() { SEAL_SIZE } else { 0 };
    if command.name.is_none()
        && let Some(volume) = best_free(table, command, size, way, copies, context)
    {
        return Ok(take(table, command, volume, context));
    }
    let name = match &command.name {
        Some(name) => {
            create::check_name_free(table, name)?;
            name.clone()
        }
        None => new_name(table)?,
    };
    let avoid = (!command.local).then_some(command.server);
    let layout = place(&rooms(table, context.reachable, avoid), Wanted { size, way, copies })?;
    let mut volume = layout::volume(&name, &layout, Some(command.server), command.task, context.random);
    limits::check(table, command.server, volume.taken())?;
    seal(&mut volume, command);
    let command_word = Command::Borrow { server: command.server };
    let mut task = begin(command.task, command_word, name.as_str(), Step::Preparing, context.now_ms);
    task.volume = Some(volume.id);
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(volume)));
    change.put(Row::Task(Box::new(task)));
    Ok(change)
}

fn new_name(table: &Table) -> Result<Name, Refusal> {
    let free = (1u32..).filter_map(|n| format!("vol-{n}").parse().ok()).find(|name| !table.volume_name_taken(name));
    free.ok_or_else(|| bad("no name is left", "give one"))
}

fn named(table: &Table, command: &Borrow, name: &Name, way: Option<Way>, context: &mut Context<'_>) -> Result<Change, Refusal> {
    let volume = table.volume(name.as_str()).map_err(|refusal| {
        refusal.hint(format!("`sublet volume ls` shows the free ones; `sublet borrow {name} --size 10G` carves a new one"))
    })?;
    match volume.borrower {
        Some(holder) if holder == command.server => {
            return Err(conflict(
                format!("volume '{name}' is lent to {} already", table.server_name(holder)),
                format!("mount it: `sublet mount {name}`"),
            ));
        }
        Some(holder) => {
            return Err(conflict(
                format!("volume '{name}' is lent to {}", table.server_name(holder)),
                "borrow another one, see `sublet volume ls`",
            ));
        }
        None => check_quiet(table, volume)?,
    }
    if let Some(way) = way.filter(|way| *way != volume.way) {
        return Err(bad(
            format!("volume '{name}' is {}, not {way}", volume.way),
            "leave out --way, or have it changed with `sublet volume set-way`",
        ));
    }
    if table.wipes_of(volume.id).next().is_some() {
        let lenders = listed(table.wipes_of(volume.id).map(|row| table.lender_name(row.area)));
        return Err(conflict(
            format!("volume '{name}' still holds its last borrower's bytes: {lenders} is wiping it"),
            "wait for the wipe, see `sublet area ls`",
        ));
    }
    if command.seal.is_some() && volume.size <= SEAL_SIZE {
        let text = format!("volume '{name}' is too small to be encrypted: its key needs {}", ByteSize(SEAL_SIZE));
        return Err(bad(text, "borrow a larger one"));
    }
    if !command.local && is_local(table, volume, command) {
        let text = format!("volume '{name}' lies on areas of {} itself", table.server_name(command.server));
        return Err(conflict(text, "--local allows that; or borrow another one"));
    }
    let missing = missing_lenders(table, volume, context);
    if !missing.is_empty() {
        let text = format!("volume '{name}' cannot be used now: {} does not answer", listed(missing));
        return Err(
            Refusal::new(ErrorKind::LenderUnreachable, text).hint("start `sublet server` there, or borrow another volume")
        );
    }
    limits::check(table, command.server, volume.taken())?;
    Ok(take(table, command, volume, context))
}

fn is_local(table: &Table, volume: &VolumeRow, command: &Borrow) -> bool {
    volume.legs().any(|(_, leg)| table.lender(leg.area) == Some(command.server))
}

/// Lenders of segments of which no copy can be reached.
fn missing_lenders(table: &Table, volume: &VolumeRow, context: &Context<'_>) -> Vec<String> {
    let reached =
        |area| table.areas.get(&area).is_some_and(|row| row.offline.is_none() && context.reachable.contains(&row.server));
    let dark = volume.segments.iter().filter(|segment| !segment.legs.iter().any(|leg| leg.in_sync && reached(leg.area)));
    dark.flat_map(|segment| &segment.legs).map(|leg| table.lender_name(leg.area)).collect()
}

/// The smallest free volume that is large enough.
fn best_free<'a>(
    table: &'a Table,
    command: &Borrow,
    size: u64,
    way: Option<Way>,
    copies: usize,
    context: &Context<'_>,
) -> Option<&'a VolumeRow> {
    let fits = |volume: &&VolumeRow| {
        volume.borrower.is_none()
            && volume.size >= size
            && way.is_none_or(|way| way == volume.way)
            && (way.is_none() || volume.segments.iter().all(|segment| segment.legs.len() == copies))
            && (command.local || !is_local(table, volume, command))
            && limits::check(table, command.server, volume.taken()).is_ok()
            && check_quiet(table, volume).is_ok()
            && table.wipes_of(volume.id).next().is_none()
            && missing_lenders(table, volume, context).is_empty()
    };
    table.volumes.values().filter(fits).min_by_key(|volume| (volume.size, &volume.name))
}

fn seal(volume: &mut VolumeRow, command: &Borrow) {
    volume.sealed = command.seal.is_some();
    volume.seal.clone_from(&command.seal);
}

/// Enters the borrower of a free volume.
fn take(table: &Table, command: &Borrow, volume: &VolumeRow, context: &mut Context<'_>) -> Change {
    debug_assert!(table.member(command.server).is_some());
    let mut volume = layout::handed_to(volume, command.server, command.task, (context.random)());
    seal(&mut volume, command);
    let command_word = Command::Borrow { server: command.server };
    let mut task = begin(command.task, command_word, volume.name.as_str(), Step::Labelling, context.now_ms);
    task.volume = Some(volume.id);
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(volume)));
    change.put(Row::Task(Box::new(task)));
    change
}
