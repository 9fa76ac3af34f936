//! Tombstones: slices of deleted volumes that are still to be wiped, wherever they turn up (R2).

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::order::SliceFacts;
use sublet_api::server::{AreaReport, SliceReport, Tombstone};
use sublet_types::{AreaId, Epoch, Name, ServerId, SliceId, VolumeId};

use super::super::{Context, wipe};
use crate::change::Change;
use crate::records::{FrozenUntil, Key, ROW_VERSION, Row, VolumeRow, WipeRow};
use crate::table::Table;

/// Plans what the tombstones in the labels, and labels that show up with slices to be wiped, ask for. A tombstone of a slice that
/// is a volume's by the table freezes the volume: the table is older than the deletion (L5). While it is reconciled, that slice
/// goes. It and no other one: a copy that was replaced leaves a tombstone like that of a deleted volume, and the rest of its
/// volume lives on.
pub fn obey(table: &Table, reports: &[(ServerId, &AreaReport)], context: &mut Context<'_>) -> Change {
    let mut change = Change::new();
    let is_reconciling = table.pool.as_ref().is_some_and(|row| row.rebuild.is_some());
    let mut sheds: BTreeMap<VolumeId, VolumeRow> = BTreeMap::new();
    let stones: BTreeSet<&Tombstone> = reports.iter().flat_map(|(_, report)| &report.tombstones).collect();
    for stone in stones {
        let label = label_of(reports, stone.area, stone.slice);
        if table.wipes.contains_key(&stone.slice) || label.is_some_and(|label| is_refuted(table, reports, stone.epoch, label)) {
            continue;
        }
        let owner = table.volumes.get(&stone.volume).filter(|row| row.legs().any(|(_, leg)| leg.slice == stone.slice));
        match owner {
            Some(volume) if is_reconciling && volume.task.is_none() => {
                let shed = sheds.remove(&volume.id).unwrap_or_else(|| volume.clone());
                sheds.insert(volume.id, shed_slice(shed, stone, context, &mut change));
            }
            Some(volume) => freeze(volume, &mut change),
            // The table is older than the deletion of a volume that it has.
            None if stone.slice == wipe::whole_slice(stone.volume) && table.volumes.contains_key(&stone.volume) => {
                table.volumes.get(&stone.volume).into_iter().for_each(|volume| freeze(volume, &mut change));
            }
            None => enter(table, reports, (stone, is_reconciling), &mut change),
        }
    }
    for volume in sheds.into_values() {
        if volume.legs().next().is_none() {
            change.delete(Key::Volume(volume.id));
            change.event(volume.name.as_str(), "it had been deleted, say the labels: its space is wiped");
        } else {
            change.put(Row::Volume(Box::new(volume)));
        }
    }
    for (_, report) in reports {
        leftovers(table, report, context, &mut change);
    }
    for row in table.wipes.values() {
        meet(table, reports, row, is_reconciling, &mut change);
    }
    change
}

/// Slices of a deleted volume that were not there when it was deleted (R2), and those of whose wipe only the key is left (P2).
fn leftovers(table: &Table, report: &AreaReport, context: &mut Context<'_>, change: &mut Change) {
    for label in &report.slices {
        let (slice, volume) = (label.facts.slice, label.facts.volume);
        let stone = table.wipes.get(&wipe::whole_slice(volume)).filter(|_| !table.volumes.contains_key(&volume));
        let is_live = table.volumes.get(&volume).is_some_and(|row| row.legs().any(|(_, leg)| leg.slice == slice));
        if table.wipes.contains_key(&slice) || is_live {
            continue;
        }
        let epoch = match stone {
            // The rest of the volume was deleted by a table that knew less than this label (L5).
            Some(stone) if wipe::is_refuted(stone.epoch, label) => continue,
            Some(stone) => stone.epoch,
            None if table.lost_wipes.contains(&slice) && !label.admitted => {
                Epoch { number: label.epoch.number + 1, random: (context.random)() }
            }
            None => continue,
        };
        let row = wipe::found(report, label, epoch);
        change.event(row.name.as_str(), format!("deleted before: its slice in area {} is to be wiped", report.name));
        change.put(Row::Wipe(row));
    }
}

/// The table had the slice still: it is wiped, and what the volume is without it is seen from the other labels.
fn shed_slice(volume: VolumeRow, stone: &Tombstone, context: &mut Context<'_>, change: &mut Change) -> VolumeRow {
    let mut epoch = volume.next_epoch((context.random)());
    if stone.epoch.number >= epoch.number {
        epoch = Epoch { number: stone.epoch.number + 1, random: epoch.random };
    }
    let mut next = volume;
    let held_by = next.holder_epoch();
    for (_, leg) in next.legs().filter(|(_, leg)| leg.slice == stone.slice) {
        // The volume does not wait for it.
        let row = super::super::layout::wipe_row(&next, leg, epoch, true);
        change.put(Row::Wipe(WipeRow { replaced: true, held_by, ..row }));
    }
    for segment in &mut next.segments {
        segment.legs.retain(|leg| leg.slice != stone.slice);
    }
    let reason = "one of its slices had been given up, say the labels; the others have not been looked at yet";
    next = next.frozen(reason.to_owned(), FrozenUntil::Reconciled);
    next.unsettled = true;
    next.epoch_floor = next.epoch_floor.max(epoch.number);
    next
}

fn freeze(volume: &VolumeRow, change: &mut Change) {
    if volume.frozen.is_some() {
        return;
    }
    let reason = "the labels say that it, or a copy of it, was deleted; the table may have been restored from an older copy: \
                  `sublet manager rebuild --reconcile`"
        .to_owned();
    change.event(volume.name.as_str(), format!("frozen: {reason}"));
    change.put(Row::Volume(Box::new(volume.frozen(reason, FrozenUntil::Reconciled))));
}

/// A slice that the table does not know is to be wiped, once its area is there.
fn enter(table: &Table, reports: &[(ServerId, &AreaReport)], (stone, is_rebuilt): (&Tombstone, bool), change: &mut Change) {
    let report = reports.iter().find(|(_, report)| report.area == stone.area).map(|(_, report)| *report);
    let slice = report.and_then(|report| report.slices.iter().find(|slice| slice.facts.slice == stone.slice));
    let is_whole = stone.slice == wipe::whole_slice(stone.volume);
    // Its label is there and does not have it: it has been wiped, and the tombstone is dropped. Its label is not there: a table
    // that was not lost would know of the wipe.
    if slice.is_none() && (report.is_some() || !is_rebuilt) {
        return;
    }
    let name = slice.map_or_else(Name::unknown, |slice| slice.facts.volume_name.clone());
    let (offset, length) = slice.map_or((0, 0), |slice| (slice.facts.offset, slice.facts.length));
    let area = table.areas.get(&stone.area).map_or_else(|| stone.area.short(), |row| row.name.to_string());
    let what = if is_whole { "all that shows up of it".to_owned() } else { format!("its slice in area {area}") };
    change.event(name.as_str(), format!("deleted before: {what} is to be wiped"));
    change.put(Row::Wipe(WipeRow {
        version: ROW_VERSION,
        slice: stone.slice,
        area: stone.area,
        offset,
        length,
        volume: stone.volume,
        name,
        epoch: stone.epoch,
        drop: true,
        // Whether the whole volume was deleted or only this copy replaced is not known here: the volume waits for nothing.
        replaced: true,
        // If it was replaced: a holder of that epoch may not have heard of it yet (F4). No other wipe has the epoch of a holder.
        held_by: slice.is_none_or(|slice| slice.epoch == stone.epoch).then_some(stone.epoch),
        was: None,
    }));
}

/// Whether a label proves that its slice should never have been given up: by its epoch, or beside the label of its successor.
fn is_refuted(table: &Table, reports: &[(ServerId, &AreaReport)], epoch: Epoch, label: &SliceReport) -> bool {
    wipe::is_refuted(epoch, label) || leads(table, reports, epoch, label)
}

/// Whether the labels show that a slice was replaced during its own epoch by a table that was behind: no other label of its
/// segment is as new, it says that another copy has left of which they do not know that, and the slice in its place is here. A
/// table that was not behind would have made that with a generation that is not older. `epoch` is that of the tombstone.
pub fn leads(table: &Table, reports: &[(ServerId, &AreaReport)], epoch: Epoch, label: &SliceReport) -> bool {
    let own = &label.facts;
    if label.wiping || label.epoch != epoch {
        return false;
    }
    let all = reports.iter().flat_map(|(_, report)| &report.slices);
    let others = all.filter(|slice| !slice.wiping && !table.wipes.contains_key(&slice.facts.slice)).map(|slice| &slice.facts);
    let others = others.filter(|facts| (facts.volume, facts.segment) == (own.volume, own.segment) && facts.slice != own.slice);
    let others: Vec<_> = others.collect();
    let Some(newest) = others.iter().max_by_key(|facts| facts.generation.number) else { return false };
    let says = |facts: &SliceFacts, leg: u32| facts.in_sync.get(leg as usize) == Some(&true);
    let has_left = |facts: &&SliceFacts| facts.leg != own.leg && says(newest, facts.leg) && !says(own, facts.leg);
    newest.generation.number < own.generation.number
        && others.iter().any(|facts| facts.leg == own.leg)
        && others.iter().copied().any(|facts| has_left(&facts))
}

/// What the label of a slice's area says of it, if it was reported.
fn label_of<'a>(reports: &[(ServerId, &'a AreaReport)], area: AreaId, slice: SliceId) -> Option<&'a SliceReport> {
    let in_area = reports.iter().filter(|(_, report)| report.area == area);
    in_area.flat_map(|(_, report)| &report.slices).find(|row| row.facts.slice == slice)
}

/// A label shows a slice that is to be wiped: where it lies is known now. If the label proves that whoever decided the wipe was
/// behind it, nothing is wiped there; while the table is reconciled the wipe is given up, and the slice is taken over (L5).
fn meet(table: &Table, reports: &[(ServerId, &AreaReport)], row: &WipeRow, is_reconciling: bool, change: &mut Change) {
    let Some(slice) = label_of(reports, row.area, row.slice) else { return };
    // What was known when it was replaced tells more than the other labels do.
    let is_wrong = if row.was.is_some() { wipe::is_refuted_by(row, slice) } else { is_refuted(table, reports, row.epoch, slice) };
    if is_wrong {
        let what = format!("its slice {} was to be wiped, but its label is ahead of that", row.slice.short());
        if is_reconciling {
            change.delete(Key::Wipe(row.slice));
            change.event(row.name.as_str(), format!("{what}: it is not"));
        } else {
            let text = format!(
                "{what}, and it is left alone; the table may have been restored from an older copy: \
                 `sublet manager rebuild --reconcile`"
            );
            change.warning(row.name.as_str(), text);
            // What took its place lacks what it has.
            let may_lack = slice.epoch == row.epoch;
            table.volumes.get(&row.volume).filter(|_| may_lack).into_iter().for_each(|volume| freeze(volume, change));
        }
        return;
    }
    let mut next = WipeRow { offset: slice.facts.offset, length: slice.facts.length, ..row.clone() };
    if slice.epoch.number > row.epoch.number {
        // It is being wiped with that epoch.
        next.epoch = slice.epoch;
    }
    if row.was.is_none() && slice.epoch != row.epoch {
        // It was deleted and not replaced: nobody holds it.
        next.held_by = None;
    }
    if next != *row {
        change.put(Row::Wipe(next));
    }
}

/// The tombstones that every reachable label has to keep: of slices that leave their label when they are wiped, at lenders that
/// do not answer. `is_there` says whether a lender's area can be reached.
pub fn wanted(table: &Table, is_there: impl Fn(&WipeRow) -> bool) -> Vec<Tombstone> {
    let row = |row: &WipeRow| Tombstone { volume: row.volume, slice: row.slice, area: row.area, epoch: row.epoch };
    table.wipes.values().filter(|wipe| wipe.drop && !is_there(wipe)).map(row).collect()
}

/// Tombstones of a label that have done their duty: the slice is wiped. `is_gone` says that its area's label is there, and does
/// not have it; `is_refuted`, that its label proves that it should never have been written.
pub fn spent(
    table: &Table,
    kept: &[Tombstone],
    is_gone: impl Fn(&Tombstone) -> bool,
    is_refuted: impl Fn(&Tombstone) -> bool,
) -> Vec<SliceId> {
    let done = |stone: &&Tombstone| {
        let is_live = table.volumes.get(&stone.volume).is_some_and(|row| row.legs().any(|(_, leg)| leg.slice == stone.slice));
        !table.wipes.contains_key(&stone.slice) && ((!is_live && is_gone(stone)) || is_refuted(stone))
    };
    kept.iter().filter(done).map(|stone| stone.slice).collect()
}
