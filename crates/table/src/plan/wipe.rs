//! Wipes: former slices are overwritten before their space is free again (P2).

use std::collections::BTreeMap;

use sublet_api::order::Order;
use sublet_api::server::{AreaReport, SliceReport};
use sublet_types::{AreaId, Epoch, SliceId, VolumeId};

use crate::change::Change;
use crate::records::{Key, VolumeRow, WipeRow};
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

/// What the label of a slice's area says of it, if it was reported.
pub fn told<'a>(reports: &'a BTreeMap<AreaId, AreaReport>, area: AreaId, slice: SliceId) -> Option<&'a SliceReport> {
    reports.get(&area)?.slices.iter().find(|row| row.facts.slice == slice)
}

/// Whether the holder of an epoch may still have a session at the slice: then it is not fenced yet (F4).
pub fn is_held(table: &Table, row: &WipeRow) -> bool {
    let Some((epoch, volume)) = row.held_by.zip(table.volumes.get(&row.volume)) else { return false };
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
