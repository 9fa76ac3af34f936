//! From layouts to rows, and from rows to what labels say.

use sublet_api::order::{Order, SliceFacts};
use sublet_api::request::TaskOutcome;
use sublet_types::{Epoch, Generation, Name, ServerId, SliceId, TaskId, VolumeId};

use super::mount::confirm;
use super::place::Layout;
use super::{Advance, Context, Standings, conflict, done, failed, frozen_hint};
use crate::change::Change;
use crate::records::{Command, FrozenUntil, LegRow, PathRow, ROW_VERSION, Row, SegmentRow, TaskRow, VolumeRow, WipeRow, WorkRow};
use crate::table::Table;
use crate::views;

/// Segments with new slices (P2: slice ids are random and never reused).
pub fn segments(layout: &Layout, random: &mut dyn FnMut() -> u128) -> Vec<SegmentRow> {
    let mut rows = Vec::new();
    for planned in &layout.segments {
        let legs = planned.legs.iter().map(|spot| LegRow {
            slice: SliceId::from_u128(random()),
            area: spot.area,
            offset: spot.offset,
            length: spot.length,
            in_sync: true,
            confirmed: 0,
            fresh: false,
            stale_since: None,
        });
        let legs = legs.collect();
        let generation = Generation { number: 1, random: random() };
        rows.push(SegmentRow { length: planned.length, generation, issued: 1, pending: None, last: None, legs });
    }
    rows
}

/// A new volume.
pub fn volume(
    name: &Name,
    layout: &Layout,
    owner: Option<ServerId>,
    task: TaskId,
    random: &mut dyn FnMut() -> u128,
) -> VolumeRow {
    VolumeRow {
        version: ROW_VERSION,
        id: VolumeId::from_u128(random()),
        name: name.clone(),
        way: layout.way,
        size: layout.size(),
        defined: owner.is_none(),
        borrower: owner,
        sealed: false,
        seal: None,
        epoch: Epoch::default(),
        lease: None,
        segments: segments(layout, random),
        task: Some(task),
        frozen: None,
        frozen_until: FrozenUntil::default(),
        path: PathRow::default(),
        epoch_floor: 0,
        unsettled: false,
        absent: Vec::new(),
        copies: 0,
        work: WorkRow::default(),
    }
}

/// What the label of one leg's slice says (L4).
pub fn facts(volume: &VolumeRow, segment_index: usize, leg_index: usize) -> Option<SliceFacts> {
    let segment = volume.segments.get(segment_index)?;
    let leg = segment.legs.get(leg_index)?;
    Some(SliceFacts {
        slice: leg.slice,
        area: leg.area,
        offset: leg.offset,
        length: leg.length,
        volume: volume.id,
        volume_name: volume.name.clone(),
        way: volume.way,
        volume_size: volume.size,
        segment: u32::try_from(segment_index).unwrap_or(u32::MAX),
        segments: u32::try_from(volume.segments.len()).unwrap_or(u32::MAX),
        segment_length: segment.length,
        leg: u32::try_from(leg_index).unwrap_or(u32::MAX),
        legs: u32::try_from(segment.legs.len()).unwrap_or(u32::MAX),
        generation: segment.generation,
        in_sync: segment.in_sync(),
        borrower: volume.borrower,
        defined: volume.defined,
        sealed: volume.sealed,
    })
}

/// The facts of all slices of a volume.
pub fn all_facts(volume: &VolumeRow) -> Vec<SliceFacts> {
    let legs = volume.segments.iter().enumerate();
    legs.flat_map(|(index, segment)| (0..segment.legs.len()).filter_map(move |leg| facts(volume, index, leg))).collect()
}

/// `PrepareSlice` for every leg.
pub fn prepare_orders(volume: &VolumeRow) -> Vec<Order> {
    all_facts(volume).into_iter().map(|slice| Order::PrepareSlice { slice }).collect()
}

/// What tells the labels who has the volume from now on: each is fenced with the epoch of this change first, so that a table that
/// does not know of it is seen to be behind (L5), and so that one whose label knows better is told nothing.
pub fn label_orders(volume: &VolumeRow) -> Vec<Order> {
    if volume.frozen.is_some() {
        return Vec::new();
    }
    let (newest, epoch) = (volume.epoch.number, volume.epoch);
    let known = volume.legs().map(|(_, leg)| leg).zip(all_facts(volume)).filter(|(leg, _)| !leg.fresh);
    let order = |(leg, slice): (&LegRow, SliceFacts)| {
        if leg.confirmed >= newest {
            Order::PrepareSlice { slice }
        } else {
            Order::Fence { slice: leg.slice, area: leg.area, epoch }
        }
    };
    known.map(order).collect()
}

/// The volume with another borrower, in an epoch of its own (L5): numbers order what a table and a label know.
#[must_use]
pub fn handed_to(volume: &VolumeRow, borrower: ServerId, task: TaskId, random: u128) -> VolumeRow {
    let mut next = VolumeRow { borrower: Some(borrower), task: Some(task), epoch: volume.next_epoch(random), ..volume.clone() };
    if next.work.background.take().is_some() {
        // Its coordinator is fenced, and has not closed cleanly (F5, H3).
        next.work.unclean |= next.segments.iter().any(|segment| segment.legs.len() > 1);
    }
    for segment in &mut next.segments {
        // They belong to the epoch that ends now.
        segment.pending = None;
        segment.last = None;
    }
    next
}

/// `Fence` with the newest epoch for every leg that a label knows.
pub fn fence_orders(volume: &VolumeRow) -> Vec<Order> {
    let epoch = volume.epoch;
    volume.legs().filter(|(_, leg)| !leg.fresh).map(|(_, leg)| Order::Fence { slice: leg.slice, area: leg.area, epoch }).collect()
}

/// The wipe row of one slice of a volume, fenced first with `epoch`.
pub fn wipe_row(volume: &VolumeRow, leg: &LegRow, epoch: Epoch, drop: bool) -> WipeRow {
    WipeRow {
        version: ROW_VERSION,
        slice: leg.slice,
        area: leg.area,
        offset: leg.offset,
        length: leg.length,
        volume: volume.id,
        name: volume.name.clone(),
        epoch,
        drop,
        replaced: false,
        held_by: None,
        was: None,
    }
}

/// Wipe rows for all slices of a volume, fenced first with `epoch`.
pub fn wipe_rows(volume: &VolumeRow, epoch: Epoch, drop: bool) -> Vec<Row> {
    volume.legs().map(|(_, leg)| Row::Wipe(wipe_row(volume, leg, epoch, drop))).collect()
}

/// Ends a task whose last step told the labels who has the volume. Lenders that did not answer learn it with the lease (F6).
pub fn labelled(table: &Table, task: &TaskRow, volume: &VolumeRow, standings: &Standings, context: &mut Context<'_>) -> Advance {
    let mut change = Change::new();
    if let Some(reason) = &volume.frozen {
        // L5: a label that came meanwhile is ahead of the table. It knows better who has the volume.
        let text = format!("volume '{}' cannot be handed to anybody: it is frozen: {reason}", volume.name);
        change.put(Row::Volume(Box::new(VolumeRow { task: None, ..volume.clone() })));
        change.put(failed(task, conflict(text, frozen_hint(volume)), context.now_ms));
        return Advance::Commit(change);
    }
    if standings.iter().any(|(_, standing)| standing.is_waiting()) {
        return Advance::wait();
    }
    let mut fenced = volume.clone();
    confirm(&mut fenced, standings);
    if fenced != *volume {
        // They are told who has it next.
        change.put(Row::Volume(Box::new(fenced)));
        return Advance::Commit(change);
    }
    let volume = VolumeRow { task: None, ..volume.clone() };
    let holder = volume.borrower.map_or_else(|| "nobody".to_owned(), |id| table.server_name(id));
    let text = match task.command {
        Command::Transfer { .. } => format!("handed over to {holder}"),
        _ => format!("borrowed by {holder}"),
    };
    change.event(volume.name.as_str(), text);
    let view = views::volume(table, &volume);
    change.put(Row::Volume(Box::new(volume)));
    change.put(done(task, TaskOutcome::Volume { volume: Box::new(view) }, context.now_ms));
    Advance::Commit(change)
}
