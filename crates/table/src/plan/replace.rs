//! `volume replace`: a lost leg is made anew on free space (P2, S6).
//!
//! The order of things cannot lose a change of the in-sync set. The lost leg has left the set first, by whoever may say so: the
//! holder of the lease (S1, S2), or the manager itself while nobody holds one. Only then one commit puts a new slice in its
//! place, as a stale leg that holds nothing, and the old slice among those to be wiped: it is never believed again. The set and
//! its generation stay as they are, so that the holder's own changes go on undisturbed; one that names the old slice is
//! refused. The new leg is entered into its lender's label, gets the present lease, and is resynced like any stale leg.

use std::collections::BTreeSet;

use sublet_api::request::{Replace, TaskOutcome};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::REGION_SIZE;
use sublet_types::{AreaId, ByteSize, ServerId, SliceId};

use super::place::{Room, Spot, rooms};
use super::{Advance, Context, Standing, Standings, at_step, begin, check_quiet, conflict, done, failed, layout, listed};
use crate::change::Change;
use crate::records::{Command, Former, LegRow, ReplacedLeg, Row, SegmentRow, Step, TaskRow, VolumeRow, WipeRow};
use crate::table::{Stretch, Table};
use crate::views;

/// In the place of a slice of which nothing is left.
const NOWHERE: SliceId = SliceId::from_u128(0);

/// Plans the replacement of all legs that a volume has at a lost server.
///
/// # Errors
/// If it has none there, one of them is the last that is in sync, the server is not lost, or there is no space (S6).
pub fn plan(table: &Table, volume: &str, command: &Replace, context: &mut Context<'_>) -> Result<Change, Refusal> {
    let volume = table.volume(volume)?;
    check_quiet(table, volume)?;
    let lost = match server(table, &command.lost) {
        // A rebuilt table does not even know the server of a copy that was never seen.
        Err(_) if volume.segments.iter().any(|segment| volume.too_few(segment) > 0) => None,
        found => Some(found?),
    };
    let name = lost.map_or_else(|| command.lost.chars().take(80).collect(), |lost| table.server_name(lost));
    let on = command.on.as_ref().map(|area| table.area(area)).transpose()?.map(|area| area.id);
    let legs: Vec<(usize, &LegRow)> = volume.legs().filter(|(_, leg)| lost.is_some() && table.lender(leg.area) == lost).collect();
    let gone: Vec<usize> = (0..).zip(&volume.segments).flat_map(|(index, row)| vec![index; volume.too_few(row)]).collect();
    if legs.is_empty() && gone.is_empty() {
        let lenders = listed(volume.legs().map(|(_, leg)| table.lender_name(leg.area)));
        return Err(conflict(format!("volume '{}' has no copy at {name}: it lies at {lenders}", volume.name), ""));
    }
    let mut used = Vec::new();
    for (index, leg) in &legs {
        let Some(segment) = volume.segments.get(*index) else { continue };
        check_leg(table, volume, (*index, segment), leg, context)?;
        let spot = spot(table, context.reachable, volume, (*index, leg.slice), on, &used)?;
        used.push(spot);
    }
    let mut replaced: Vec<ReplacedLeg> =
        legs.iter().map(|(_, leg)| ReplacedLeg { old: leg.slice, new: None, segment: None }).collect();
    if legs.is_empty() {
        check_gone(table, volume)?;
        for index in &gone {
            used.push(spot(table, context.reachable, volume, (*index, NOWHERE), on, &used)?);
            let segment = u32::try_from(*index).ok();
            replaced.push(ReplacedLeg { old: NOWHERE, new: None, segment });
        }
    }
    let mut task =
        begin(command.task, Command::Replace { legs: replaced, on }, volume.name.as_str(), Step::Leaving, context.now_ms);
    task.volume = Some(volume.id);
    let indexes = legs.iter().map(|(index, _)| index).chain(gone.iter().filter(|_| legs.is_empty()));
    task.total = indexes.map(|index| volume.segments.get(*index).map_or(0, |segment| segment.length)).sum();
    let mut change = Change::new();
    change.event(volume.name.as_str(), format!("its copy at {name} is given up for lost and made anew elsewhere"));
    change.put(Row::Task(Box::new(task)));
    Ok(change)
}

/// A copy that was given up before is made anew where one in sync is left, and nobody is at it already.
fn check_gone(table: &Table, volume: &VolumeRow) -> Result<(), Refusal> {
    let is_dark = |segment: &SegmentRow| volume.too_few(segment) > 0 && !segment.legs.iter().any(|leg| leg.in_sync);
    if let Some(index) = volume.segments.iter().position(is_dark) {
        let text = format!("volume '{}' has no copy of segment {index} that is in sync", volume.name);
        return Err(conflict(text, "there is nothing to copy from"));
    }
    let is_same = |task: &&TaskRow| task.is_running() && task.volume == Some(volume.id) && !of(task).0.is_empty();
    if let Some(task) = table.tasks.values().find(is_same) {
        let text = format!("the copy of volume '{}' is being replaced already (task {})", volume.name, task.id.short());
        return Err(conflict(text, "see `sublet task ls`"));
    }
    Ok(())
}

/// A server by name or id, also one that is no member any more.
fn server(table: &Table, text: &str) -> Result<ServerId, Refusal> {
    let left = || table.servers.values().find(|row| row.name.as_str() == text || row.id.to_string() == text).map(|row| row.id);
    match table.server(text) {
        Ok(row) => Ok(row.id),
        Err(refusal) => left().ok_or(refusal),
    }
}

fn check_leg(
    table: &Table,
    volume: &VolumeRow,
    (index, segment): (usize, &SegmentRow),
    leg: &LegRow,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    let lender = table.lender_name(leg.area);
    if segment.legs.len() < 2 {
        let text = format!("volume '{}' is {}: {lender} has the only copy of segment {index}", volume.name, volume.way);
        return Err(conflict(text, "there is nothing to copy from; bring that server back, or restore a backup"));
    }
    if !segment.legs.iter().any(|other| other.slice != leg.slice && other.in_sync) {
        let others =
            listed(segment.legs.iter().filter(|other| other.slice != leg.slice).map(|other| table.lender_name(other.area)));
        let text = format!(
            "{lender} has the last copy of segment {index} of volume '{}' that is in sync: {others} misses writes",
            volume.name
        );
        return Err(conflict(text, "bring that server back; if it is gone for good, see `sublet volume accept`"));
    }
    let online = |row: &crate::records::AreaRow| row.offline.is_none() && context.reachable.contains(&row.server);
    if leg.in_sync && table.areas.get(&leg.area).is_some_and(online) {
        let text = format!(
            "the copy of volume '{}' at {lender} is in sync, and {lender} answers or was heard of a moment ago: it is not lost",
            volume.name
        );
        return Err(conflict(text, "stop that server first if its disk is to be given up; `sublet server ls` shows who is lost"));
    }
    let same = |task: &&TaskRow| match &task.command {
        Command::Replace { legs, .. } => task.is_running() && legs.iter().any(|other| other.old == leg.slice),
        _ => false,
    };
    if let Some(task) = table.tasks.values().find(same) {
        let text =
            format!("the copy of volume '{}' at {lender} is being replaced already (task {})", volume.name, task.id.short());
        return Err(conflict(text, "see `sublet task ls`"));
    }
    Ok(())
}

/// Where the new leg goes: the smallest free stretch that fits, at a server without another leg of the segment (S6), in a zone of
/// its own while there is a choice; not at the borrower unless the volume has legs there already. `used` is taken meanwhile.
fn spot(
    table: &Table,
    reachable: &BTreeSet<ServerId>,
    volume: &VolumeRow,
    (index, slice): (usize, SliceId),
    on: Option<AreaId>,
    used: &[Spot],
) -> Result<Spot, Refusal> {
    let legs = volume.segments.get(index).map_or(&[][..], |segment| &segment.legs);
    // All copies of a segment have the same length.
    let length = legs.iter().find(|leg| leg.slice == slice).or(legs.first()).map_or(REGION_SIZE, |leg| leg.length);
    let others: Vec<ServerId> = legs.iter().filter_map(|leg| table.lender(leg.area)).collect();
    let stays: Vec<ServerId> = legs.iter().filter(|leg| leg.slice != slice).filter_map(|leg| table.lender(leg.area)).collect();
    let is_local = volume.legs().any(|(_, leg)| table.lender(leg.area) == volume.borrower);
    let avoid = volume.borrower.filter(|_| !is_local && on.is_none());
    let found = rooms(table, reachable, avoid);
    if let Some(area) = on.and_then(|area| table.areas.get(&area)) {
        if stays.contains(&area.server) {
            let text = format!(
                "area {} is at {}, which has another copy of volume '{}'",
                area.name,
                table.server_name(area.server),
                volume.name
            );
            return Err(conflict(text, "two copies are never on one server; choose an area of another server"));
        }
        if !found.rooms.iter().any(|room| room.area == area.id) {
            let text = format!("area {} cannot be used now: its server does not answer, or it is offline", area.name);
            return Err(Refusal::new(ErrorKind::NoSpace, text).hint("see `sublet area ls`"));
        }
    }
    let zones: BTreeSet<&str> = stays
        .iter()
        .filter_map(|id| table.servers.get(id))
        .map(|row| row.zone.as_str())
        .filter(|zone| !zone.is_empty())
        .collect();
    let fits = |room: &&Room| on.map_or(!others.contains(&room.server), |area| room.area == area);
    let free = |room: &Room, stretch: &Stretch| {
        let busy = used.iter().filter(|spot| spot.area == room.area);
        // A stretch is used from its beginning on.
        let start =
            busy.map(|spot| spot.offset + spot.length).filter(|end| *end > stretch.offset).max().unwrap_or(stretch.offset);
        let start = if start > stretch.offset + stretch.length { stretch.offset } else { start };
        (start, (stretch.offset + stretch.length).saturating_sub(start))
    };
    let candidates = found.rooms.iter().filter(fits).flat_map(|room| {
        let zone_is_taken = zones.contains(room.zone.as_str());
        room.stretches.iter().map(move |stretch| (zone_is_taken, room, stretch))
    });
    let best = candidates
        .map(|(zone_is_taken, room, stretch)| (zone_is_taken, free(room, stretch), room))
        .filter(|(_, (_, room_left), _)| *room_left >= length)
        .min_by_key(|(zone_is_taken, (start, room_left), room)| (*zone_is_taken, *room_left, room.name.clone(), *start));
    best.map(|(_, (offset, _), room)| Spot { area: room.area, offset, length }).ok_or_else(|| {
        let where_ = match on.and_then(|area| table.areas.get(&area)) {
            Some(area) => format!("in area {}", area.name),
            None => format!("at any server but {}", listed(others.iter().map(|id| table.server_name(*id)))),
        };
        let mut text = format!("no room for a new copy of {} of volume '{}' {where_}", ByteSize(length), volume.name);
        if !found.left_out.is_empty() {
            text.push_str(&format!(" (not counted: {})", found.left_out.join(", ").replace("--local", "--on")));
        }
        Refusal::new(ErrorKind::NoSpace, text).hint("register more with `sublet lend` at another server; see `sublet area ls`")
    })
}

/// The task's legs and its wish.
fn of(task: &TaskRow) -> (&[ReplacedLeg], Option<AreaId>) {
    match &task.command {
        Command::Replace { legs, on } => (legs, *on),
        _ => (&[], None),
    }
}

/// The slices that a replacement has put in, as far as it has.
pub fn new_slices(task: &TaskRow) -> impl Iterator<Item = SliceId> {
    of(task).0.iter().filter_map(|leg| leg.new)
}

fn find(volume: &VolumeRow, slice: SliceId) -> Option<(usize, usize)> {
    let segments = volume.segments.iter().enumerate();
    segments.into_iter().find_map(|(index, segment)| Some((index, segment.legs.iter().position(|leg| leg.slice == slice)?)))
}

/// Puts the new slices in, one a commit, as soon as the lost ones are out of the in-sync set.
pub fn leave(table: &Table, task: &TaskRow, volume: &VolumeRow, context: &mut Context<'_>) -> Advance {
    let (legs, on) = of(task);
    let waiting = |reason: String| Advance::Wait { reason, done: 0 };
    let Some(next) = legs.iter().position(|leg| leg.new.is_none()) else {
        let mut change = Change::new();
        change.put(at_step(task, Step::Entering));
        return Advance::Commit(change);
    };
    if let Some(segment) = legs.get(next).and_then(|leg| leg.segment) {
        return add(table, task, volume, (next, segment as usize), context);
    }
    let Some((old, (index, position))) = legs.get(next).and_then(|leg| Some((leg.old, find(volume, leg.old)?))) else {
        return superseded(task, volume, context);
    };
    let Some((segment, leg)) = volume.segments.get(index).and_then(|segment| Some((segment, segment.legs.get(position)?))) else {
        return superseded(task, volume, context);
    };
    if task.is_paused || volume.task.is_some() || volume.frozen.is_some() {
        return Advance::wait();
    }
    let lender = table.lender_name(leg.area);
    let is_held = volume.lease.is_some() || volume.work.background.is_some();
    if leg.in_sync && is_held {
        // S2: only the holder says so. It does as soon as it misses the lender.
        return waiting(format!("the copy at {lender} is still in the in-sync set; it is left out when it is next missed"));
    }
    if !segment.legs.iter().any(|other| other.slice != old && other.in_sync) {
        return waiting(format!("{lender} has the last copy that is in sync"));
    }
    let spot = match spot(table, context.reachable, volume, (index, old), on, &[]) {
        Ok(spot) => spot,
        Err(refusal) => return waiting(refusal.message),
    };
    let mut change = Change::new();
    let slice = SliceId::from_u128((context.random)());
    change.put(Row::Wipe(lost_slice(volume, (index, position), leg)));
    change.put(Row::Volume(Box::new(with_new_leg(volume, (index, position), (slice, spot), context))));
    let mut legs = legs.to_vec();
    if let Some(leg) = legs.get_mut(next) {
        leg.new = Some(slice);
    }
    change.put(Row::Task(Box::new(TaskRow { command: Command::Replace { legs, on }, ..task.clone() })));
    let area = table.areas.get(&spot.area).map(|row| row.name.to_string()).unwrap_or_default();
    let text = format!(
        "the copy of segment {index} at {lender} is replaced by a new one in area {area} at {}",
        table.lender_name(spot.area)
    );
    change.event(volume.name.as_str(), text);
    Advance::Commit(change)
}

/// Puts one more copy into a segment that has lost one for good. While somebody holds a lease he knows the segment by its copies,
/// so it waits until nobody does.
fn add(table: &Table, task: &TaskRow, volume: &VolumeRow, (next, index): (usize, usize), context: &mut Context<'_>) -> Advance {
    let (legs, on) = of(task);
    let waiting = |reason: String| Advance::Wait { reason, done: 0 };
    if task.is_paused || volume.task.is_some() || volume.frozen.is_some() {
        return Advance::wait();
    }
    if volume.lease.is_some() || volume.work.background.is_some() {
        return waiting("the new copy is added as soon as the volume is not in use".to_owned());
    }
    let Some(segment) = volume.segments.get(index).filter(|segment| volume.too_few(segment) > 0) else {
        return superseded(task, volume, context);
    };
    if !segment.legs.iter().any(|leg| leg.in_sync) {
        return waiting(format!("no copy of segment {index} is in sync"));
    }
    let spot = match spot(table, context.reachable, volume, (index, NOWHERE), on, &[]) {
        Ok(spot) => spot,
        Err(refusal) => return waiting(refusal.message),
    };
    let slice = SliceId::from_u128((context.random)());
    let mut row = volume.clone();
    row.work.next_revision(context.now_ms);
    if let Some(segment) = row.segments.get_mut(index) {
        segment.legs.push(new_leg(slice, spot));
        // Labels of the former generation have fewer copies (F6).
        segment.generation = segment.issue((context.random)());
        segment.pending = None;
        segment.last = None;
    }
    let mut legs = legs.to_vec();
    if let Some(leg) = legs.get_mut(next) {
        leg.new = Some(slice);
    }
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(row)));
    change.put(Row::Task(Box::new(TaskRow { command: Command::Replace { legs, on }, ..task.clone() })));
    let area = table.areas.get(&spot.area).map(|row| row.name.to_string()).unwrap_or_default();
    let text = format!("segment {index} gets a new copy in area {area} at {}", table.lender_name(spot.area));
    change.event(volume.name.as_str(), text);
    Advance::Commit(change)
}

/// A leg that holds nothing yet, and that no label has.
fn new_leg(slice: SliceId, spot: Spot) -> LegRow {
    LegRow {
        slice,
        area: spot.area,
        offset: spot.offset,
        length: spot.length,
        in_sync: false,
        confirmed: 0,
        fresh: true,
        stale_since: None,
    }
}

/// The lost slice is fenced and wiped when its lender returns, and its space is not lent before (P2).
fn lost_slice(volume: &VolumeRow, (index, position): (usize, usize), leg: &LegRow) -> WipeRow {
    let held_by = volume.holder_epoch();
    let issued = volume.segments.get(index).map_or(0, |segment| segment.issued);
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let was = Some(Former { segment: number(index), leg: number(position), issued });
    WipeRow { replaced: true, held_by, was, ..layout::wipe_row(volume, leg, volume.epoch, true) }
}

fn with_new_leg(
    volume: &VolumeRow,
    (index, position): (usize, usize),
    (slice, spot): (SliceId, Spot),
    context: &mut Context<'_>,
) -> VolumeRow {
    let mut next = volume.clone();
    next.work.next_revision(context.now_ms);
    next.work.replaced_in = volume.epoch;
    let Some(segment) = next.segments.get_mut(index) else { return next };
    if segment.legs.get(position).is_some_and(|leg| leg.in_sync) {
        // Nobody holds a lease: nothing is written, and the survivors' labels learn it with the next one (S1).
        segment.generation = segment.issue((context.random)());
    }
    // What was issued or could be withdrawn may have been for the leg that is no more.
    segment.pending = None;
    segment.last = None;
    if let Some(leg) = segment.legs.get_mut(position) {
        *leg = new_leg(slice, spot);
    }
    next
}

fn superseded(task: &TaskRow, volume: &VolumeRow, context: &Context<'_>) -> Advance {
    let text = format!("the legs of volume '{}' were changed meanwhile: one that was to be replaced is no more", volume.name);
    let mut change = Change::new();
    change.put(failed(task, conflict(text, "see `sublet volume show`"), context.now_ms));
    Advance::Commit(change)
}

/// Waits until the new legs are in their lenders' labels; reconciliation asks for that.
pub fn entered(table: &Table, task: &TaskRow, volume: &VolumeRow, standings: &Standings, context: &Context<'_>) -> Advance {
    let legs: Option<Vec<(usize, usize)>> = new_slices(task).map(|slice| find(volume, slice)).collect();
    let Some(legs) = legs else { return superseded(task, volume, context) };
    let is_fresh = |(index, position): &(usize, usize)| {
        volume.segments.get(*index).and_then(|segment| segment.legs.get(*position)).is_some_and(|leg| leg.fresh)
    };
    if legs.iter().any(is_fresh) {
        let trouble = |(order, standing): &(_, Standing)| {
            Some(format!("{}: {}", table.lender_name(super::order_area(order)?), standing.trouble()?))
        };
        let troubles: Vec<String> = standings.iter().filter_map(trouble).collect();
        return Advance::Wait { reason: if troubles.is_empty() { String::new() } else { listed(troubles) }, done: 0 };
    }
    let mut change = Change::new();
    change.put(at_step(task, Step::Working));
    Advance::Commit(change)
}

/// `PrepareSlice` for the legs that no label has yet.
pub fn enter_orders(volume: &VolumeRow) -> Vec<sublet_api::order::Order> {
    let fresh = |slice: SliceId| volume.legs().any(|(_, leg)| leg.slice == slice && leg.fresh);
    layout::prepare_orders(volume).into_iter().filter(|order| super::order_slice(order).is_some_and(fresh)).collect()
}

/// Waits until the new legs are in sync.
pub fn worked(table: &Table, task: &TaskRow, volume: &VolumeRow, context: &Context<'_>) -> Advance {
    let mut behind = Vec::new();
    for slice in new_slices(task) {
        let Some((index, position)) = find(volume, slice) else { return superseded(task, volume, context) };
        let leg = volume.segments.get(index).and_then(|segment| segment.legs.get(position));
        behind.extend(leg.filter(|leg| !leg.in_sync));
    }
    if behind.is_empty() {
        let mut change = Change::new();
        let outcome = TaskOutcome::Volume { volume: Box::new(views::volume(table, volume)) };
        change.put(done(task, outcome, context.now_ms));
        return Advance::Commit(change);
    }
    let away = behind.iter().filter(|leg| {
        table.areas.get(&leg.area).is_none_or(|area| area.offline.is_some() || !context.reachable.contains(&area.server))
    });
    let away = away.map(|leg| table.lender_name(leg.area)).collect::<Vec<_>>();
    let reason = if away.is_empty() { String::new() } else { format!("{} does not answer", listed(away)) };
    Advance::Wait { reason, done: 0 }
}
