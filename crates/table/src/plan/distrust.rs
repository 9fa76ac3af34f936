//! Areas that were rolled back, restored from a copy or cloned: their bytes may be older than anybody knows (L2).

use std::collections::BTreeMap;

use sublet_api::order::Order;
use sublet_api::server::AreaReport;
use sublet_types::{AreaId, ServerId, VolumeId};

use super::Context;
use crate::change::Change;
use crate::records::{AreaRow, FrozenUntil, Row, VolumeRow};
use crate::table::Table;

/// Why a report does not continue what was last known of its area; none if it does, or if nothing is known.
pub fn broken_history(known: &AreaRow, report: &AreaReport) -> Option<String> {
    let (before, now) = (known.open?, report.open?);
    if now == before {
        let (last, sequence) = (known.sequence, report.sequence);
        return (sequence < last)
            .then(|| format!("its label went back from change {last} to change {sequence}: it was rolled back"));
    }
    if !report.history.contains(&before) {
        let text =
            "its label does not continue the opening that was last seen: it was restored from a copy, rolled back or cloned";
        return Some(text.to_owned());
    }
    // An opening is a change of the label, and sequences only rise: it continues an older state of what was last seen.
    let (last, sequence) = (known.sequence, report.sequence);
    (sequence <= last).then(|| {
        format!("it was opened anew as change {sequence} of its label, and change {last} was seen before: it was rolled back")
    })
}

/// What the row says of trust after a report.
pub fn judge(known: &AreaRow, report: &AreaReport, row: &mut AreaRow, change: &mut Change) {
    row.accepted = known.accepted.clone().filter(|_| report.quarantined.is_some());
    let reported = report.quarantined.clone().filter(|why| known.accepted.as_ref() != Some(why));
    let found = broken_history(known, report).or(reported);
    row.quarantined = known.quarantined.clone().or(found);
    if row.quarantined.is_some() {
        // What is known stays known until an administrator accepts what is there.
        row.open = known.open;
        row.sequence = known.sequence;
    }
    if let (None, Some(why)) = (&known.quarantined, &row.quarantined) {
        change.event(row.name.as_str(), format!("quarantined: {why}; its copies count as stale, nothing new is placed there"));
    }
}

/// An administrator accepts an area as it is.
pub fn accept(table: &Table, area: &AreaRow, change: &mut Change) {
    let why = area.quarantined.clone();
    for volume in table.volumes_in(area.id).filter(|volume| volume.frozen_until == FrozenUntil::Accepted(area.id)) {
        change.event(volume.name.as_str(), format!("goes on with what area {} has", area.name));
        let mut next = volume.clone();
        next.thaw();
        change.put(Row::Volume(Box::new(next)));
    }
    // What its label says next is what is known of it from then on.
    change.put(Row::Area(AreaRow { quarantined: None, accepted: why, open: None, sequence: 0, ..area.clone() }));
}

fn only_copy(area: &AreaRow) -> String {
    format!(
        "its only copy in sync lies in area {}, which is quarantined; to go on with it as it is: `sublet area accept {0}`",
        area.name
    )
}

/// Copies in quarantined areas are stale where another one is in sync; where none is, the volume is frozen. While it is mounted,
/// its client decides (S2): the lender refuses it the area.
pub fn plan(table: &Table, context: &mut Context<'_>) -> Change {
    let mut change = Change::new();
    for area in table.areas.values().filter(|row| row.quarantined.is_some()) {
        forget_maps(table, area, &mut change);
    }
    if !change.is_empty() {
        return change;
    }
    // By volume: it may have legs in several such areas.
    let mut doubted: BTreeMap<VolumeId, VolumeRow> = BTreeMap::new();
    for area in table.areas.values().filter(|row| row.quarantined.is_some()) {
        let is_there = |area: AreaId| table.areas.get(&area).is_some_and(|row| row.quarantined.is_none());
        for volume in table.volumes_in(area.id) {
            let mut next = doubted.remove(&volume.id).unwrap_or_else(|| volume.clone());
            // S3: what a copy misses is counted from when it left, but its bytes may be older than that now: copied as a whole.
            let legs = next.segments.iter_mut().flat_map(|segment| &mut segment.legs);
            legs.filter(|leg| leg.area == area.id).for_each(|leg| leg.stale_since = None);
            if next.lease.is_some() || next.task.is_some() || next.frozen.is_some() {
                doubted.insert(next.id, next);
                continue;
            }
            let was = next.clone();
            for segment in &mut next.segments {
                if !segment.legs.iter().any(|leg| leg.in_sync && leg.area == area.id) {
                    continue;
                }
                if !segment.legs.iter().any(|leg| leg.in_sync && is_there(leg.area)) {
                    (next.frozen, next.frozen_until) = (Some(only_copy(area)), FrozenUntil::Accepted(area.id));
                    continue;
                }
                segment.legs.iter_mut().filter(|leg| leg.area == area.id).for_each(|leg| leg.in_sync = false);
                segment.generation = segment.issue((context.random)());
                segment.pending = None;
                segment.last = None;
            }
            let text = match &next.frozen {
                Some(reason) => format!("frozen: {reason}"),
                None => format!("its copy in area {} is stale: the area is quarantined", area.name),
            };
            let is_doubted = next != was;
            if is_doubted && next.work.background.take().is_some() {
                // Its coordinator may be copying from there: it is fenced (F5).
                next.epoch = next.next_epoch((context.random)());
            }
            if is_doubted {
                change.event(volume.name.as_str(), text);
            }
            doubted.insert(next.id, next);
        }
    }
    for next in doubted.into_values().filter(|next| table.volumes.get(&next.id) != Some(next)) {
        change.put(Row::Volume(Box::new(next)));
    }
    change
}

/// What stale copies in an area that went back in time miss is more than any map says: they are copied whole (S3).
fn forget_maps(table: &Table, area: &AreaRow, change: &mut Change) {
    let is_mapped = |leg: &crate::records::LegRow| leg.area == area.id && !leg.in_sync && leg.stale_since.is_some();
    for volume in table.volumes_in(area.id).filter(|volume| volume.legs().any(|(_, leg)| is_mapped(leg))) {
        let mut next = volume.clone();
        for leg in next.segments.iter_mut().flat_map(|segment| &mut segment.legs).filter(|leg| is_mapped(leg)) {
            leg.stale_since = None;
        }
        change.put(Row::Volume(Box::new(next)));
    }
}

/// The labels that have to learn whether they are trusted.
pub fn wanted(table: &Table, server: ServerId, reports: &BTreeMap<AreaId, AreaReport>) -> Vec<Order> {
    let online = table.areas_of(server).filter(|row| row.offline.is_none() && !row.reclaiming);
    let order = |row: &AreaRow| {
        let told = &reports.get(&row.id)?.quarantined;
        let is_lifted = told.is_some() && row.quarantined.is_none() && row.accepted == *told;
        let is_new = told.is_none() && row.quarantined.is_some();
        (is_lifted || is_new).then(|| Order::SetQuarantine { area: row.id, reason: row.quarantined.clone() })
    };
    online.filter_map(order).collect()
}

#[cfg(test)]
#[path = "distrust_tests.rs"]
mod tests;
