//! Reconciliation: what a server reports against what the table says. Labels decide which bytes are lent (L5); the table
//! decides who may use them, and first contact with a returning lender is the present epoch (F3).

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::order::{Order, SliceFacts};
use sublet_api::server::{AreaReport, SliceReport};
use sublet_types::{AreaId, Epoch, ServerId, SliceId, VolumeId};

use super::{background, distrust, layout, mount, wipe};
use crate::change::Change;
use crate::records::{AreaRow, FrozenUntil, LeaseState, LegRow, ROW_VERSION, Row, SegmentRow, Stranger, VolumeRow, WipeRow};
use crate::table::Table;

/// Plans what a report of all areas of a server changes. `elsewhere` says whether another server that is up serves that area.
pub fn report(table: &Table, server: ServerId, reports: &[AreaReport], elsewhere: &dyn Fn(AreaId) -> bool) -> Change {
    let mut change = Change::new();
    let mut names: BTreeSet<_> = table.areas.values().map(|row| row.name.clone()).collect();
    let lender = table.server_name(server);
    for report in reports {
        if table.pool.as_ref().is_none_or(|pool| pool.pool != report.pool) {
            change.warning(
                report.name.as_str(),
                format!("{lender} reports an area of another pool ({}); it is ignored", report.pool.short()),
            );
            continue;
        }
        let Some(known) = table.areas.get(&report.area) else {
            let name = Table::free_name(&report.name, |name| names.contains(name));
            names.insert(name.clone());
            let row = AreaRow { name, ..row_of(report, server) };
            change
                .event(row.name.as_str(), format!("area of {} registered by {lender}", sublet_types::ByteSize(report.capacity)));
            strangers(table, report, row, &mut change);
            continue;
        };
        if known.server != server {
            let owner = table.server_name(known.server);
            // A server that lists a disk which has moved away has nothing to say of it.
            if report.offline.is_some() {
                continue;
            }
            if elsewhere(known.id) {
                let text = format!("shows up at {lender} while {owner} serves it: one of them is a copy and is ignored");
                change.warning(known.name.as_str(), text);
                continue;
            }
            if report.sequence < known.sequence {
                let text = format!("what shows up at {lender} is an older copy of what {owner} had, and is ignored");
                change.warning(known.name.as_str(), text);
                continue;
            }
        }
        known_area(table, known, report, server, &mut change);
        slices(table, known, report, &mut change);
    }
    let reported: BTreeSet<AreaId> = reports.iter().map(|report| report.area).collect();
    for row in table.areas_of(server).filter(|row| !reported.contains(&row.id) && !row.reclaiming) {
        let reason = format!("{lender} no longer has it");
        if row.offline.as_ref() != Some(&reason) {
            change.event(row.name.as_str(), format!("offline: {reason}"));
            change.put(Row::Area(AreaRow { offline: Some(reason), ..row.clone() }));
        }
    }
    change
}

fn row_of(report: &AreaReport, server: ServerId) -> AreaRow {
    AreaRow {
        version: ROW_VERSION,
        id: report.area,
        server,
        name: report.name.clone(),
        capacity: report.capacity,
        place: report.place.clone(),
        sparse: report.sparse,
        offline: report.offline.clone(),
        open: report.open,
        sequence: report.sequence,
        reclaiming: false,
        strangers: Vec::new(),
        quarantined: report.quarantined.clone(),
        accepted: None,
    }
}

fn known_area(table: &Table, known: &AreaRow, report: &AreaReport, server: ServerId, change: &mut Change) {
    let name = known.name.as_str();
    let mut row = AreaRow {
        name: known.name.clone(),
        reclaiming: known.reclaiming,
        strangers: known.strangers.clone(),
        quarantined: known.quarantined.clone(),
        // An area that cannot be opened does not know its capacity.
        capacity: if report.offline.is_some() { known.capacity } else { report.capacity },
        ..row_of(report, server)
    };
    if known.server != server {
        change
            .event(name, format!("its disk has moved from {} to {}", table.server_name(known.server), table.server_name(server)));
    }
    match (&known.offline, &row.offline) {
        (None, Some(reason)) => change.event(name, format!("offline: {reason}")),
        (Some(_), None) => change.event(name, "online again"),
        (Some(before), Some(now)) if before != now => change.event(name, format!("offline: {now}")),
        _ => {}
    }
    if report.offline.is_some() {
        // Its slices are not known, so nothing is concluded from their absence.
        // It does not know its opening either.
        row.open = known.open;
        row.sequence = known.sequence;
        row.accepted = known.accepted.clone();
        if row != *known {
            change.put(Row::Area(row));
        }
        return;
    }
    distrust::judge(known, report, &mut row, change);
    strangers(table, report, row, change);
}

/// Enters the slices that only the label knows, and puts the row.
fn strangers(table: &Table, report: &AreaReport, mut row: AreaRow, change: &mut Change) {
    let ours = |slice: SliceId| {
        table.wipes.contains_key(&slice) || table.volumes_in(row.id).flat_map(VolumeRow::legs).any(|(_, leg)| leg.slice == slice)
    };
    let found: Vec<&SliceReport> = report.slices.iter().filter(|slice| !ours(slice.facts.slice)).collect();
    for slice in &found {
        let text = format!(
            "its label holds slice {} of volume {}, which the table does not know; it is left alone and its space is not lent",
            slice.facts.slice.short(),
            slice.facts.volume.short()
        );
        change.warning(row.name.as_str(), text);
    }
    let stranger = |report: &&SliceReport| {
        let facts = &report.facts;
        Stranger { slice: facts.slice, volume: facts.volume, offset: facts.offset, length: facts.length }
    };
    row.strangers = found.iter().map(stranger).collect();
    if table.areas.get(&row.id) != Some(&row) {
        change.put(Row::Area(row));
    }
}

/// Compares the reported slices with the table's; a label that is ahead of the table freezes its volume (L5).
fn slices(table: &Table, area: &AreaRow, report: &AreaReport, change: &mut Change) {
    if report.offline.is_some() {
        return;
    }
    let reported: BTreeMap<SliceId, &SliceReport> = report.slices.iter().map(|slice| (slice.facts.slice, slice)).collect();
    for volume in table.volumes_in(area.id) {
        let mut frozen = None;
        for (index, leg) in volume.legs().filter(|(_, leg)| leg.area == area.id) {
            let Some(slice) = reported.get(&leg.slice) else {
                if volume.task.is_none() {
                    let text = format!("its slice {} is missing in the label of area {}", leg.slice.short(), area.name);
                    change.warning(volume.name.as_str(), text);
                }
                continue;
            };
            let Some(segment) = volume.segments.get(index) else { continue };
            let (issued, told) = (segment.issued, slice.facts.generation);
            if slice.epoch.number > volume.epoch.number || (slice.epoch.number > 0 && slice.epoch.is_split_from(volume.epoch)) {
                frozen = Some(format!("the label of area {} has epoch {}, the table {}", area.name, slice.epoch, volume.epoch));
            } else if told.number > issued {
                frozen = Some(format!("the label of area {} has generation {told}, the table issued {issued}", area.name));
            } else if is_unheard_of(segment, &slice.facts) {
                let here = segment.generation;
                frozen = Some(format!(
                    "the label of area {} has generation {told} without a copy that is in sync by the table (generation {here})",
                    area.name
                ));
            } else if leg.in_sync && told.number > segment.generation.number {
                // The manager commits first: only the label of a copy that returns is ever ahead (S5), and that is not in sync yet.
                let here = segment.generation;
                frozen = Some(format!(
                    "the label of area {}, which is in sync by the table, has generation {told}, the table {here}",
                    area.name
                ));
            } else if told.is_split_from(segment.generation) {
                // A number is never issued twice: one of the two was issued by a table that did not know of the other.
                let here = segment.generation;
                frozen = Some(format!("the label of area {} has generation {told}, the table {here}: two histories", area.name));
            }
        }
        if let Some(reason) = frozen.filter(|_| volume.frozen.is_none()) {
            let reason =
                format!("{reason}; the table may have been restored from an older copy: `sublet manager rebuild --reconcile`");
            change.event(volume.name.as_str(), format!("frozen: {reason}"));
            change.put(Row::Volume(Box::new(volume.frozen(reason, FrozenUntil::Reconciled))));
        }
    }
}

/// Whether a label tells of a copy that has left, and the table has not committed that: a table that was rebuilt issues numbers far
/// above those of the labels, so that the number alone does not show that it is behind (R1). A copy that returns is in its label
/// before that is committed (S5), but then no other one is missing there.
fn is_unheard_of(segment: &SegmentRow, told: &SliceFacts) -> bool {
    let is_pending = segment.pending.as_ref().is_some_and(|pending| pending.generation == told.generation);
    let mut legs = segment.legs.iter().zip(0usize..).filter(|(leg, _)| leg.in_sync);
    told.generation.number > segment.generation.number
        && !is_pending
        && legs.any(|(_, number)| told.in_sync.get(number) != Some(&true))
}

/// What a server has to be told, apart from tasks: the present epoch of slices that do not have it (F3), names, wipes.
pub fn wanted(table: &Table, server: ServerId, reports: &BTreeMap<AreaId, AreaReport>) -> Vec<Order> {
    let (mut leases, mut rest) = (Vec::new(), Vec::new());
    for area in table.areas_of(server).filter(|area| area.offline.is_none()) {
        let report = reports.get(&area.id);
        let slices: BTreeMap<SliceId, &SliceReport> =
            report.iter().flat_map(|report| &report.slices).map(|slice| (slice.facts.slice, slice)).collect();
        // Nothing at all is known of a server that has not reported yet.
        let reported = |slice: SliceId| report.map(|_| slices.get(&slice).copied());
        for volume in table.volumes_in(area.id).filter(|volume| volume.task.is_none()) {
            if volume.frozen.is_some() {
                leases.extend(leftovers(table, volume, area.id, &slices));
                continue;
            }
            for (index, segment) in volume.segments.iter().enumerate() {
                for (leg, row) in segment.legs.iter().enumerate().filter(|(_, row)| row.area == area.id) {
                    if row.fresh {
                        leases.extend(layout::facts(volume, index, leg).map(|slice| Order::PrepareSlice { slice }));
                    } else if is_behind(table, volume, row, reported(row.slice)) {
                        leases.extend(present_epoch(volume, index, leg));
                    } else if let Some(slice) = slices.get(&row.slice) {
                        rest.extend(present_facts(table, volume, (index, leg), slice));
                    }
                }
            }
        }
        if report.is_some_and(|report| report.name != area.name) {
            rest.push(Order::RenameArea { area: area.id, name: area.name.clone() });
        }
    }
    leases.append(&mut rest);
    leases
}

/// `Fence` for what is left of leases of a frozen volume that was unmounted by force while a lender was away (F3). Where it is
/// frozen because its labels know better, the table's epoch is none that they should get (L5).
fn leftovers<'a>(
    table: &'a Table,
    volume: &'a VolumeRow,
    area: AreaId,
    slices: &'a BTreeMap<SliceId, &SliceReport>,
) -> impl Iterator<Item = Order> + 'a {
    let is_closed = volume.lease.is_none() && volume.work.background.is_none() && !volume.is_behind();
    let legs = volume.legs().map(|(_, leg)| leg).filter(move |leg| is_closed && leg.area == area && !leg.fresh);
    let epoch = volume.epoch;
    let is_left = move |slice: SliceId| {
        slices.get(&slice).is_some_and(|label| label.admitted && label.epoch.number < epoch.number && !label.wiping)
    };
    let left = legs.filter(move |leg| !table.wipes.contains_key(&leg.slice) && is_left(leg.slice));
    left.map(move |leg| Order::Fence { slice: leg.slice, area, epoch })
}

/// The wipes that a server has to do, once it has told of its labels. What they know better is left alone (L5).
pub fn wipes(table: &Table, server: ServerId, reports: &BTreeMap<AreaId, AreaReport>) -> Vec<Order> {
    let online = |area: &AreaId| table.areas.get(area).is_some_and(|row| row.server == server && row.offline.is_none());
    let is_told = |row: &WipeRow| match wipe::told(reports, row.area, row.slice) {
        Some(label) => !wipe::is_refuted_by(row, label),
        // The label of an area that is not trusted may be older than the slice: that it does not have it proves nothing (L2).
        None => reports.get(&row.area).is_some_and(|report| wipe::is_complete(table, report)),
    };
    let due = |row: &&WipeRow| online(&row.area) && !wipe::is_held(table, row) && is_told(row);
    table.wipes.values().filter(due).map(wipe::order).collect()
}

/// `reported` is what the label has of the slice, if the server has reported.
fn is_behind(table: &Table, volume: &VolumeRow, leg: &LegRow, reported: Option<Option<&SliceReport>>) -> bool {
    // A wipe fences its slice itself.
    if table.wipes.contains_key(&leg.slice) {
        return false;
    }
    let newest = volume.epoch.number;
    match reported {
        // A slice that is missing in the label can be told nothing.
        Some(None) => false,
        Some(Some(slice)) => leg.confirmed < newest || slice.epoch.number < newest,
        None => leg.confirmed < newest,
    }
}

/// The order that brings a label up to date with what people call the volume and whose it is (L4): a rebuild of the table knows
/// it from there (R1). The in-sync set is told only where nobody can be writing: who writes tells it in the right order (S1, S5).
fn present_facts(table: &Table, volume: &VolumeRow, (segment, leg): (usize, usize), reported: &SliceReport) -> Option<Order> {
    let told = &reported.facts;
    let row = volume.segments.get(segment)?;
    let own = row.legs.get(leg)?;
    let is_same = told.volume_name == volume.name
        && (told.borrower, told.defined, told.way, told.sealed) == (volume.borrower, volume.defined, volume.way, volume.sealed);
    if is_same && told.generation == row.generation {
        return None;
    }
    let is_known = told.generation == row.generation
        && told.in_sync.len() == row.legs.len()
        && told.in_sync.iter().zip(&row.legs).all(|(flag, leg)| *flag == leg.in_sync);
    let is_left_behind = volume.lease.is_none()
        && volume.work.background.is_none()
        && own.in_sync
        && told.generation.number < row.generation.number
        && !reported.admitted;
    let is_due = (!is_same && is_known) || is_left_behind;
    let is_steady = !reported.wiping && !table.wipes.contains_key(&own.slice);
    let facts = layout::facts(volume, segment, leg).filter(|_| is_due && is_steady)?;
    Some(Order::PrepareSlice { slice: facts })
}

/// The order that brings one slice to the present epoch.
fn present_epoch(volume: &VolumeRow, segment: usize, leg: usize) -> Option<Order> {
    let facts = layout::facts(volume, segment, leg)?;
    match (&volume.lease, volume.borrower) {
        (Some(lease), Some(borrower)) if lease.state == LeaseState::Active => Some(mount::open_order(lease, borrower, facts)),
        (None, _) if volume.work.background.is_some() => background::open_order(volume, facts),
        _ => Some(Order::Fence { slice: facts.slice, area: facts.area, epoch: volume.epoch }),
    }
}

/// What lenders have confirmed outside of tasks, as one change: slices that were wiped, and the present epoch persisted (F1).
pub fn confirmed(table: &Table, orders: &[Order]) -> Change {
    let mut change = Change::new();
    let mut volumes: BTreeMap<VolumeId, VolumeRow> = BTreeMap::new();
    for order in orders {
        match order {
            Order::WipeSlice { slice, .. } => wipe::confirmed(table, *slice, &mut volumes, &mut change),
            Order::OpenLease { slice, area, lease, .. } => {
                let what = (*slice, *area, lease.epoch, "told of the present lease");
                epoch_confirmed(table, what, &mut volumes, &mut change);
            }
            Order::Fence { slice, area, epoch } => {
                epoch_confirmed(table, (*slice, *area, *epoch, "fenced"), &mut volumes, &mut change);
            }
            Order::PrepareSlice { slice } => entered(table, slice.slice, slice.area, &mut volumes),
            Order::ReleaseArea { .. }
            | Order::RenameArea { .. }
            | Order::Coordinate { .. }
            | Order::StopCoordinating { .. }
            | Order::SetQuarantine { .. }
            | Order::PutTombstones { .. }
            | Order::DropTombstones { .. } => {}
        }
    }
    for volume in volumes.into_values() {
        change.put(Row::Volume(Box::new(volume)));
    }
    change
}

/// The lender has a leg that was made anew in its label.
fn entered(table: &Table, slice: SliceId, area: AreaId, volumes: &mut BTreeMap<VolumeId, VolumeRow>) {
    let has_slice = |volume: &&VolumeRow| volume.legs().any(|(_, leg)| leg.slice == slice && leg.fresh);
    let Some(volume) = table.volumes_in(area).find(has_slice) else { return };
    let volume = volumes.entry(volume.id).or_insert_with(|| volume.clone());
    for leg in volume.segments.iter_mut().flat_map(|segment| &mut segment.legs).filter(|leg| leg.slice == slice) {
        leg.fresh = false;
    }
}

fn epoch_confirmed(
    table: &Table,
    (slice, area, epoch, what): (SliceId, AreaId, Epoch, &str),
    volumes: &mut BTreeMap<VolumeId, VolumeRow>,
    change: &mut Change,
) {
    let has_slice = |volume: &&VolumeRow| volume.legs().any(|(_, leg)| leg.slice == slice && leg.confirmed < epoch.number);
    let Some(volume) = table.volumes_in(area).filter(|volume| volume.epoch == epoch).find(has_slice) else { return };
    let volume = volumes.entry(volume.id).or_insert_with(|| volume.clone());
    for leg in volume.segments.iter_mut().flat_map(|segment| &mut segment.legs).filter(|leg| leg.slice == slice) {
        leg.confirmed = leg.confirmed.max(epoch.number);
    }
    change.event_once(volume.name.as_str(), format!("{} was {what} (epoch {epoch})", table.lender_name(area)));
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
