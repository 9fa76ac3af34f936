//! Wipes: former slices are overwritten before their space is free again (P2).

use std::collections::BTreeMap;

use sublet_api::order::Order;
use sublet_api::server::{AreaReport, SliceReport};
use sublet_types::{AreaId, Epoch, SliceId, VolumeId};

use super::layout;
use crate::change::Change;
use crate::records::{FrozenUntil, Key, ROW_VERSION, Row, VolumeRow, WipeRow};
use crate::table::Table;

/// The order that wipes one slice.
pub fn order(row: &WipeRow) -> Order {
    Order::WipeSlice { slice: row.slice, area: row.area, epoch: row.epoch, drop: row.drop }
}

/// Whether a label proves that a wipe with this epoch was decided by a table that was behind it (L5). The epoch of a wipe is above
/// all that its volume was ever given, so a slice with a newer one was lent again after that, by somebody who knew better. A
/// label that is wiping already agrees, whatever its epoch is.
pub fn is_refuted(epoch: Epoch, label: &SliceReport) -> bool {
    let told = label.epoch;
    !label.wiping && (told.number > epoch.number || (told.number > 0 && told.is_split_from(epoch)))
}

/// Whether the label of a slice that is to be wiped proves that whoever decided it was behind (L5): by its epoch, or because it
/// tells of a change of its segment that was not known then. A copy that is replaced while somebody holds its volume keeps his
/// epoch, which proves nothing.
pub fn is_refuted_by(row: &WipeRow, label: &SliceReport) -> bool {
    let is_ahead = || row.was.as_ref().is_some_and(|was| was.issued < label.facts.generation.number);
    is_refuted(row.epoch, label) || (!label.wiping && label.epoch == row.epoch && is_ahead())
}

/// What the label of a slice's area says of it, if it was reported.
pub fn told(reports: &BTreeMap<AreaId, AreaReport>, area: AreaId, slice: SliceId) -> Option<&SliceReport> {
    reports.get(&area)?.slices.iter().find(|row| row.facts.slice == slice)
}

/// Whether a slice that the report of an area does not have is not there: the area is open, and trusted (L2).
pub fn is_complete(table: &Table, report: &AreaReport) -> bool {
    let is_trusted = table.areas.get(&report.area).is_some_and(|row| row.quarantined.is_none());
    report.offline.is_none() && report.quarantined.is_none() && is_trusted
}

/// The row of a wipe cannot be read, and is now: a volume that is free otherwise would be lent with its former borrower's bytes
/// (P2). Its leg says where they are. What belongs to no volume any more is found in the label.
pub fn make_anew(table: &Table, slice: SliceId, change: &mut Change) {
    let Some(volume) = table.volumes.values().find(|row| row.legs().any(|(_, leg)| leg.slice == slice)) else { return };
    if volume.borrower.is_none() && volume.lease.is_none() {
        for (_, leg) in volume.legs().filter(|(_, leg)| leg.slice == slice) {
            change.put(Row::Wipe(layout::wipe_row(volume, leg, volume.epoch, false)));
        }
        change.event(volume.name.as_str(), "its slice is wiped again: the row of that wipe cannot be read");
    } else if volume.frozen.is_none() {
        let reason = "one of its slices was to be wiped, and the row that says why cannot be read".to_owned();
        change.event(volume.name.as_str(), format!("frozen: {reason}"));
        change.put(Row::Volume(Box::new(volume.frozen(reason, FrozenUntil::Decided))));
    }
}

/// A slice that a label shows, and that is to be wiped and belongs to no volume any more.
pub fn found(report: &AreaReport, slice: &SliceReport, epoch: Epoch) -> WipeRow {
    let facts = &slice.facts;
    WipeRow {
        version: ROW_VERSION,
        slice: facts.slice,
        area: report.area,
        offset: facts.offset,
        length: facts.length,
        volume: facts.volume,
        name: facts.volume_name.clone(),
        epoch,
        drop: true,
        // Nobody waits for it.
        replaced: true,
        held_by: None,
        was: None,
    }
}

/// A deleted volume of which copies may be missing: whatever shows up of it is wiped (R2). It is kept as the wipe of a slice that
/// is nowhere and has the volume's own id, and so it is in all labels as a tombstone.
pub fn whole_volume(volume: &VolumeRow, epoch: Epoch) -> WipeRow {
    WipeRow {
        version: ROW_VERSION,
        slice: whole_slice(volume.id),
        area: AreaId::from_u128(0),
        offset: 0,
        length: 0,
        volume: volume.id,
        name: volume.name.clone(),
        epoch,
        drop: true,
        replaced: true,
        held_by: None,
        was: None,
    }
}

/// The slice that stands for all of a volume; see [`whole_volume`].
pub fn whole_slice(volume: VolumeId) -> SliceId {
    SliceId::from_u128(volume.to_u128())
}

/// Whether the slice that takes the place of a replaced one is in no label yet.
pub fn waits_for_successor(table: &Table, row: &WipeRow) -> bool {
    let Some((was, volume)) = row.was.as_ref().zip(table.volumes.get(&row.volume)) else { return false };
    let segment = volume.segments.get(was.segment as usize);
    segment.and_then(|segment| segment.legs.get(was.leg as usize)).is_some_and(|leg| leg.fresh)
}

/// Whether the holder of an epoch may still have a session at the slice: then it is not fenced yet (F4). Who holds a volume that a
/// rebuild has not seen, or not settled, is not known.
pub fn is_held(table: &Table, row: &WipeRow) -> bool {
    let Some(epoch) = row.held_by else { return false };
    let Some(volume) = table.volumes.get(&row.volume) else {
        return table.pool.as_ref().is_some_and(|pool| pool.rebuild.is_some());
    };
    if volume.unsettled {
        return true;
    }
    let mounted = volume.lease.as_ref().is_some_and(|lease| lease.epoch == epoch);
    let coordinated = volume.work.background.as_ref().is_some_and(|background| background.epoch == epoch);
    volume.epoch == epoch && (mounted || coordinated)
}

/// The orders that wipe one volume's former slices.
pub fn orders_of(table: &Table, volume: VolumeId) -> Vec<Order> {
    table.wipes_of(volume).map(order).collect()
}

/// A lender has confirmed a wipe: the space is free, or free again for the defined volume that keeps the slice.
pub fn confirmed(table: &Table, slice: SliceId, volumes: &mut BTreeMap<VolumeId, VolumeRow>, change: &mut Change) {
    let Some(row) = table.wipes.get(&slice) else { return };
    change.delete(Key::Wipe(slice));
    let area = table.areas.get(&row.area).map_or_else(|| row.area.short(), |area| area.name.to_string());
    change.event_once(row.name.as_str(), format!("wiped in area {area} at {}", table.lender_name(row.area)));
    if let Some(volume) = table.volumes.get(&row.volume).filter(|_| !row.drop) {
        let volume = volumes.entry(volume.id).or_insert_with(|| volume.clone());
        for leg in volume.segments.iter_mut().flat_map(|segment| &mut segment.legs).filter(|leg| leg.slice == slice) {
            leg.confirmed = leg.confirmed.max(row.epoch.number);
        }
    }
}
