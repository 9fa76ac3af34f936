//! Rebuilding the table from the labels (R1), and reconciling a table that is behind them (L5).
//!
//! Everything is derived from the present reports again and again, until a volume is *settled*: every leg that any of its labels
//! names was seen, and the labels agree. Until then its row is frozen, says what is missing, and only keeps its space.

pub mod accept;
pub mod labels;
mod tombs;
pub mod vanished;

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::server::{AreaReport, Tombstone};
use sublet_types::limits::{COPIES_MAX, SEGMENTS_MAX};
use sublet_types::{AreaId, Name, ServerId, SliceId, VolumeId};

pub use tombs::{leads, obey, spent, wanted as wanted_tombstones};

use self::labels::{Held, Seen, Set};
use super::{Context, listed, wipe};
use crate::change::Change;
use crate::records::{AbsentLeg, FrozenUntil, LegRow, PathRow, ROW_VERSION, Row, SegmentRow, VolumeRow, WipeRow, WorkRow};
use crate::table::Table;

/// So far above any number that was seen does a rebuilt table go on: a lender that was not seen may know a few more.
pub const NUMBER_JUMP: u64 = 1000;
/// So many generations are left out where an administrator has decided without all copies: more than by any number of rebuilds,
/// so that a label shows that it is from before that.
pub const FORK_JUMP: u64 = 1_000_000_000;

/// The reports that may be believed: of the area's own lender, of this pool, and of an area that is served.
pub fn believed<'a>(table: &Table, reports: impl Iterator<Item = (ServerId, &'a AreaReport)>) -> Vec<(ServerId, &'a AreaReport)> {
    let pool = table.pool.as_ref().map(|row| row.pool);
    let is_owner = |server: ServerId, area: AreaId| table.lender(area) == Some(server);
    reports
        .filter(|(server, report)| Some(report.pool) == pool && report.offline.is_none() && is_owner(*server, report.area))
        .collect()
}

/// All slices that the labels hold, by volume. Without those that are to be wiped and leave their label then.
fn by_volume<'a>(table: &Table, reports: &[(ServerId, &'a AreaReport)]) -> BTreeMap<VolumeId, Vec<Seen<'a>>> {
    let mut all: BTreeMap<VolumeId, Vec<Seen<'a>>> = BTreeMap::new();
    // Most labels have the same ones.
    let stones: BTreeSet<&Tombstone> = reports.iter().flat_map(|(_, report)| &report.tombstones).collect();
    for (server, report) in reports {
        let row = table.areas.get(&report.area);
        let trusted = report.quarantined.is_none() && row.is_none_or(|row| row.quarantined.is_none());
        for slice in &report.slices {
            let leaves = table.wipes.get(&slice.facts.slice).is_some_and(|row| row.drop) || (slice.wiping && slice.drop);
            if !leaves {
                let given_up = stones.iter().any(|stone| stone.slice == slice.facts.slice && stone.epoch != slice.epoch);
                let seen = Seen { server: *server, area: report.area, slice, trusted, given_up };
                all.entry(slice.facts.volume).or_default().push(seen);
            }
        }
    }
    all
}

/// Plans what the present reports make of volumes that are not settled, and of those that the table does not know yet.
/// The same reports twice change nothing the second time.
pub fn plan(table: &Table, reports: &[(ServerId, &AreaReport)], context: &mut Context<'_>) -> Change {
    let mut change = Change::new();
    let session = table.pool.as_ref().and_then(|row| row.rebuild.as_ref());
    let is_reconciling = session.is_some_and(|session| session.reconcile);
    let reported: BTreeSet<AreaId> = reports.iter().map(|(_, report)| report.area).collect();
    if session.is_some() {
        begun_wipes(table, reports, &mut change);
    }
    let mut names: BTreeMap<Name, VolumeId> = table.volumes.values().map(|row| (row.name.clone(), row.id)).collect();
    for (id, seen) in by_volume(table, reports) {
        match table.volumes.get(&id) {
            Some(row) if row.task.is_none() && (row.unsettled || (is_reconciling && row.frozen.is_some())) => {
                // A lender that was seen and is not reported now: what its label says is not known at this moment.
                if row.legs().any(|(_, leg)| !reported.contains(&leg.area)) {
                    waits_for(table, row, &reported, &mut change);
                    continue;
                }
                let (next, text) = derive(table, id, &seen, Some(row), context);
                put(&next, text, Some(row), &mut change);
            }
            Some(row) => late_legs(table, row, &seen, context, &mut change),
            None if session.is_some() => {
                let (mut next, text) = derive(table, id, &seen, None, context);
                next.name = Table::free_name(&next.name, |name| names.get(name).is_some_and(|other| *other != id));
                names.insert(next.name.clone(), id);
                put(&next, text, None, &mut change);
            }
            None => {}
        }
    }
    change
}

/// A volume whose labels are ahead of the table says which of them have not been seen.
fn waits_for(table: &Table, row: &VolumeRow, reported: &BTreeSet<AreaId>, change: &mut Change) {
    if row.unsettled {
        return;
    }
    let legs = row.segments.iter().enumerate().flat_map(|(index, segment)| {
        let numbered = (0u32..).zip(&segment.legs).filter(|(_, leg)| !reported.contains(&leg.area));
        numbered.map(move |(leg, _)| remembered(table, Some(row), (u32::try_from(index).unwrap_or(u32::MAX), leg)))
    });
    let missing = listed(legs);
    let reason = format!(
        "its labels do not fit the table, and not all of them are here: {missing} is missing; start it and reconcile with it, or \
         go on with the others: `sublet volume accept {} AREA`",
        row.name
    );
    if row.frozen.as_ref() != Some(&reason) {
        put(&row.frozen(reason.clone(), FrozenUntil::Reconciled), format!("frozen: {reason}"), Some(row), change);
    }
}

fn put(next: &VolumeRow, text: String, before: Option<&VolumeRow>, change: &mut Change) {
    if before != Some(next) {
        change.event(next.name.as_str(), text);
        change.put(Row::Volume(Box::new(next.clone())));
    }
}

/// Slices that are being wiped go on being wiped (P2).
fn begun_wipes(table: &Table, reports: &[(ServerId, &AreaReport)], change: &mut Change) {
    for (_, report) in reports {
        for slice in report.slices.iter().filter(|slice| slice.wiping && !table.wipes.contains_key(&slice.facts.slice)) {
            let name = slice.facts.volume_name.as_str();
            change.event(name, format!("its slice in area {} goes on being wiped", report.name));
            // What leaves its label may have been a copy that was replaced: its volume does not wait for it.
            let (drop, replaced) = (slice.drop, slice.drop);
            change.put(Row::Wipe(WipeRow { drop, replaced, ..wipe::found(report, slice, slice.epoch) }));
        }
    }
}

/// What the labels of a volume say of it.
struct Copies<'a, 'b> {
    segments: BTreeMap<u32, BTreeMap<u32, Seen<'a>>>,
    held: Held,
    /// The table's row, if it is not behind them.
    known: Option<&'b VolumeRow>,
    /// See [`labels::drop_former`].
    former: Vec<Seen<'a>>,
}

/// `count` is how many segments it has.
fn copies<'a, 'b>(seen: &[Seen<'a>], before: Option<&'b VolumeRow>, count: u32, problems: &mut Vec<String>) -> Copies<'a, 'b> {
    let held = labels::held(seen, count);
    // Where the labels' epoch is not the table's own past, what the table has beside it is not theirs either (L5).
    let is_behind = |row: &VolumeRow| held.epoch.number > row.epoch.number || held.epoch.is_split_from(row.epoch);
    let known = before.filter(|row| !row.unsettled && !is_behind(row));
    let own: BTreeSet<SliceId> = known.into_iter().flat_map(VolumeRow::legs).map(|(_, leg)| leg.slice).collect();
    let mut segments = segments_of(seen, problems);
    let is_own = |slice| own.contains(&slice);
    let former = segments.values_mut().flat_map(|legs| labels::drop_former(legs, is_own)).collect();
    Copies { segments, held, known, former }
}

/// The segments of a volume as the labels have them: leg by leg, the newer label where two claim the same place.
fn segments_of<'a>(seen: &[Seen<'a>], problems: &mut Vec<String>) -> BTreeMap<u32, BTreeMap<u32, Seen<'a>>> {
    let mut segments: BTreeMap<u32, BTreeMap<u32, Seen<'a>>> = BTreeMap::new();
    for one in seen {
        let facts = &one.slice.facts;
        let place = segments.entry(facts.segment).or_default();
        match place.get(&facts.leg) {
            None => {
                place.insert(facts.leg, *one);
            }
            Some(other) => {
                let (old, new) = (other.slice.facts.generation.number, facts.generation.number);
                if old == new {
                    problems.push(format!("two slices claim to be copy {} of segment {}", facts.leg + 1, facts.segment));
                }
                if (new, facts.slice) > (old, other.slice.facts.slice) {
                    place.insert(facts.leg, *one);
                }
            }
        }
    }
    segments
}

/// The label that speaks for the volume: of the newest epoch, then of the newest generation.
fn head<'a>(seen: &[Seen<'a>]) -> Option<Seen<'a>> {
    let rank = |seen: &&Seen<'_>| {
        let slice = seen.slice;
        (seen.trusted, slice.epoch.number, slice.facts.generation.number, slice.facts.borrower.is_some(), slice.facts.slice)
    };
    seen.iter().max_by_key(rank).copied()
}

fn leg_row(seen: &Seen<'_>, in_sync: bool) -> LegRow {
    let facts = &seen.slice.facts;
    LegRow {
        slice: facts.slice,
        area: seen.area,
        offset: facts.offset,
        length: facts.length,
        in_sync,
        confirmed: seen.slice.epoch.number,
        fresh: false,
        // From which generation on anybody has kept a map of what it misses is not known: it is copied whole.
        stale_since: None,
    }
}

/// A segment's row by the set that its labels prove.
fn segment_row(legs: &BTreeMap<u32, Seen<'_>>, set: &Set) -> SegmentRow {
    let newest = legs.values().map(|seen| seen.slice.facts.generation.number).max().unwrap_or_default();
    let length = legs.values().next().map_or(0, |seen| seen.slice.facts.segment_length);
    SegmentRow {
        length,
        generation: set.generation,
        issued: newest + NUMBER_JUMP,
        pending: None,
        last: None,
        legs: legs.iter().map(|(leg, seen)| leg_row(seen, set.in_sync.contains(leg))).collect(),
    }
}

/// Where the copies of a segment were seen, for people.
fn places(table: &Table, legs: &BTreeMap<u32, Seen<'_>>) -> String {
    let place = |seen: &Seen<'_>| format!("{} (area {})", table.server_name(seen.server), area_name(table, seen.area));
    listed(legs.values().map(place))
}

fn area_name(table: &Table, area: AreaId) -> String {
    table.areas.get(&area).map_or_else(|| area.short(), |row| row.name.to_string())
}

/// The legs of a segment that its labels name, or that it must have, and that no label shows.
fn missing_legs(table: &Table, index: u32, legs: &BTreeMap<u32, Seen<'_>>, before: Option<&VolumeRow>) -> Vec<AbsentLeg> {
    let named = legs.values().map(|seen| seen.slice.facts.legs).max().unwrap_or(1);
    let absent = |leg: u32| AbsentLeg { segment: index, leg, place: remembered(table, before, (index, leg)) };
    (0..named.min(64)).filter(|leg| !legs.contains_key(leg)).map(absent).collect()
}

/// Where the table had a leg, for people. A row that is not settled has only what was seen, and remembers the rest.
fn remembered(table: &Table, before: Option<&VolumeRow>, (segment, leg): (u32, u32)) -> String {
    let Some(row) = before else { return String::new() };
    if row.unsettled {
        let known = row.absent.iter().find(|one| (one.segment, one.leg) == (segment, leg));
        return known.map(|one| one.place.clone()).unwrap_or_default();
    }
    let leg = row.segments.get(segment as usize).and_then(|row| row.legs.get(leg as usize));
    let place = |leg: &LegRow| format!("{} (area {})", table.lender_name(leg.area), area_name(table, leg.area));
    leg.map(place).unwrap_or_default()
}

/// Where missing legs were, as an addition to a sentence.
fn were_at(absent: &[AbsentLeg]) -> String {
    let places: Vec<String> = absent.iter().map(|one| one.place.clone()).filter(|place| !place.is_empty()).collect();
    if places.is_empty() { String::new() } else { format!("; the table had it at {}", listed(places)) }
}

/// What keeps a segment from being settled.
fn check_segment(table: &Table, index: u32, legs: &BTreeMap<u32, Seen<'_>>, absent: &[AbsentLeg]) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(number) = labels::split(legs) {
        let side = |seen: &Seen<'_>| {
            let epoch = seen.slice.epoch.number;
            format!("{} (area {}, epoch {epoch})", table.server_name(seen.server), area_name(table, seen.area))
        };
        let sides = listed(legs.values().map(side));
        // Which one to take is not decided here: either may have what somebody was told is safe.
        problems.push(format!(
            "segment {index} is split: generation {number} has two histories, at {sides}; the highest epoch was mounted last"
        ));
        return problems;
    }
    let named = legs.values().map(|seen| seen.slice.facts.legs).max().unwrap_or_default();
    if !absent.is_empty() {
        let (seen_at, were_at) = (places(table, legs), were_at(absent));
        let missing = listed(absent.iter().map(|one| (one.leg + 1).to_string()));
        problems.push(format!("copy {missing} of {named} of segment {index} is missing (seen: {seen_at}{were_at})"));
    }
    let mut sizes: BTreeSet<(u64, u32, u64)> = BTreeSet::new();
    sizes.extend(legs.values().map(|seen| {
        let facts = &seen.slice.facts;
        (facts.segment_length, facts.segments, facts.volume_size)
    }));
    if sizes.len() > 1 {
        problems.push(format!("the labels of segment {index} disagree about its size"));
    }
    problems
}

/// The row of a volume as its labels have it, and what to tell of it.
fn derive(
    table: &Table,
    id: VolumeId,
    seen: &[Seen<'_>],
    before: Option<&VolumeRow>,
    context: &mut Context<'_>,
) -> (VolumeRow, String) {
    let mut problems = Vec::new();
    let Some(head) = head(seen) else { return (empty_row(id, before), String::new()) };
    let facts = &head.slice.facts;
    let Copies { segments, mut held, known, former } = copies(seen, before, facts.segments, &mut problems);
    let missing = (facts.segments as usize).saturating_sub(segments.len());
    let nowhere = BTreeMap::new();
    let mut absent = Vec::new();
    for index in (0..facts.segments).take(SEGMENTS_MAX).filter(|index| !segments.contains_key(index)) {
        absent.extend(missing_legs(table, index, &nowhere, before));
    }
    if missing > 0 || segments.keys().any(|index| *index >= facts.segments) {
        problems.push(format!("{missing} of its {} segments are missing{}", facts.segments, were_at(&absent)));
    }
    for (index, legs) in &segments {
        let away = missing_legs(table, *index, legs, before);
        problems.extend(check_segment(table, *index, legs, &away));
        absent.extend(away);
    }
    for one in former {
        let (lender, index) = (table.server_name(one.server), one.slice.facts.segment);
        let area = area_name(table, one.area);
        problems.push(format!("what {lender} (area {area}) has of segment {index} is a former copy by the other labels"));
    }
    if let Some(number) = labels::epochs_split(seen) {
        problems.push(format!("epoch {number} has two histories"));
    }
    let same_epoch = seen.iter().filter(|one| one.slice.epoch == head.slice.epoch);
    let borrowers: BTreeSet<ServerId> = same_epoch.filter_map(|one| one.slice.facts.borrower).collect();
    if borrowers.len() > 1 {
        let names = listed(borrowers.iter().map(|id| table.server_name(*id)));
        problems.push(format!("its labels disagree who has borrowed it: {names}"));
    }
    for (index, legs) in &segments {
        let set = proven(legs, false);
        if !set.in_sync.iter().any(|leg| legs.get(leg).is_some_and(|seen| seen.trusted)) {
            problems.push(format!("no trusted copy of segment {index} is in sync by its labels"));
        }
    }
    if let Some(row) = known {
        held = Held { epoch: row.epoch, lease: row.lease.clone(), must_fence: false };
    }
    let Held { epoch, lease, must_fence } = held;
    let is_mounted = lease.is_some();
    let mut row = VolumeRow {
        name: before.map_or_else(|| facts.volume_name.clone(), |row| row.name.clone()),
        way: facts.way,
        size: facts.volume_size,
        defined: facts.defined || facts.borrower.is_none(),
        borrower: facts.borrower,
        sealed: facts.sealed,
        // One of an older table may belong to a former borrower.
        seal: known.and_then(|row| row.seal.clone()).filter(|_| facts.sealed),
        epoch,
        epoch_floor: before.map_or(0, |row| row.epoch.number.max(row.epoch_floor)).max(epoch.number + NUMBER_JUMP),
        segments: segments.values().map(|legs| segment_row(legs, &proven(legs, is_mounted))).collect(),
        ..empty_row(id, before)
    };
    for (segment, old) in row.segments.iter_mut().zip(before.into_iter().flat_map(|row| &row.segments)) {
        segment.issued = segment.issued.max(old.issued);
    }
    // Where the table is not behind, it is what was committed: labels may not have heard of that.
    let mut kept = BTreeSet::new();
    for (index, old) in known.into_iter().flat_map(|row| row.segments.iter().enumerate()) {
        let Some(segment) = row.segments.get_mut(index).filter(|new| new.generation.number <= old.generation.number) else {
            continue;
        };
        if segment.generation.is_split_from(old.generation) {
            let number = old.generation.number;
            problems.push(format!(
                "segment {index} is split: generation {number} has one history here and another one in its labels"
            ));
            continue;
        }
        segment.generation = old.generation;
        for leg in &mut segment.legs {
            leg.in_sync = old.legs.iter().any(|old| old.slice == leg.slice && old.in_sync);
        }
        kept.insert(index);
        if !segment.legs.iter().any(|leg| leg.in_sync) {
            problems.push(format!("the copy of segment {index} that is in sync by the table is not there"));
        }
    }
    if !problems.is_empty() {
        let reason = format!("its labels are not all there or contradict each other: {}", problems.join("; "));
        row.unsettled = true;
        row.absent = absent;
        row.frozen = Some(reason.clone());
        // Numbers may still grow with every label that comes.
        return (row, reason);
    }
    // H3: whoever wrote last has not told this manager that it closed cleanly.
    row.work.unclean |= seen.iter().any(|one| one.slice.open || one.slice.unclean);
    settle(&mut row, (&segments, &kept), lease, must_fence, context);
    let how = match (&row.lease, row.borrower) {
        (Some(_), Some(holder)) => format!("mounted by {}", table.server_name(holder)),
        (_, Some(holder)) => format!("lent to {}", table.server_name(holder)),
        (_, None) => "free".to_owned(),
    };
    let text = format!("restored from its labels: {how} (epoch {})", row.epoch);
    (row, text)
}

fn proven(legs: &BTreeMap<u32, Seen<'_>>, is_mounted: bool) -> Set {
    let none = || Set { generation: sublet_types::Generation::default(), in_sync: Vec::new(), is_new: false };
    labels::in_sync(legs, is_mounted).unwrap_or_else(none)
}

/// A volume without anything; what does not come from labels is as it was.
fn empty_row(id: VolumeId, before: Option<&VolumeRow>) -> VolumeRow {
    VolumeRow {
        version: ROW_VERSION,
        id,
        name: before.map_or_else(Name::unknown, |row| row.name.clone()),
        way: sublet_types::Way::Single,
        size: 0,
        defined: false,
        borrower: None,
        sealed: false,
        seal: None,
        epoch: sublet_types::Epoch::default(),
        lease: None,
        segments: Vec::new(),
        task: None,
        frozen: None,
        frozen_until: FrozenUntil::default(),
        path: before.map_or_else(PathRow::default, |row| row.path.clone()),
        work: WorkRow { background: None, ..before.map(|row| row.work.clone()).unwrap_or_default() },
        epoch_floor: 0,
        unsettled: false,
        absent: Vec::new(),
        copies: before.map_or(0, |row| row.copies),
    }
}

/// Everything was seen and fits: the volume may be used.
fn settle(
    row: &mut VolumeRow,
    (segments, kept): (&BTreeMap<u32, BTreeMap<u32, Seen<'_>>>, &BTreeSet<usize>),
    lease: Option<crate::records::LeaseRow>,
    must_fence: bool,
    context: &mut Context<'_>,
) {
    let is_mounted = lease.is_some();
    row.lease = lease;
    row.path = PathRow::default();
    if is_mounted {
        let reason = "the client has not reported yet".to_owned();
        row.path = PathRow { state: sublet_api::view::PathState::Idle, since_ms: context.now_ms, reason };
    }
    let newest = row.epoch.number;
    for (index, (segment, legs)) in row.segments.iter_mut().zip(segments.values()).enumerate() {
        let mut is_new = !kept.contains(&index) && proven(legs, is_mounted).is_new;
        // A leg that was not fenced with the others may hold writes that they do not have (F3).
        let fenced = segment.legs.iter().any(|leg| leg.in_sync && leg.confirmed >= newest);
        for leg in segment.legs.iter_mut().filter(|leg| !is_mounted && fenced && leg.in_sync && leg.confirmed < newest) {
            leg.in_sync = false;
            is_new = true;
        }
        if is_new {
            segment.generation = segment.issue((context.random)());
        }
    }
    if must_fence {
        row.epoch = row.next_epoch((context.random)());
    }
}

/// Copies without which an administrator accepted the volume come back: as stale legs, never as anything else (R1).
fn late_legs(table: &Table, row: &VolumeRow, seen: &[Seen<'_>], context: &mut Context<'_>, change: &mut Change) {
    if row.absent.is_empty() || row.lease.is_some() || row.task.is_some() || row.frozen.is_some() {
        return;
    }
    let mut next = row.clone();
    let known: BTreeSet<SliceId> = row.legs().map(|(_, leg)| leg.slice).collect();
    for one in seen.iter().filter(|one| !known.contains(&one.slice.facts.slice)) {
        let facts = &one.slice.facts;
        let is_it = |other: &AbsentLeg| (other.segment, other.leg) == (facts.segment, facts.leg);
        let Some(segment) = next.segments.get_mut(facts.segment as usize) else { continue };
        let elsewhere = segment.legs.iter().all(|leg| table.lender(leg.area) != Some(one.server));
        // S6: never two copies on one server. There may be enough of them by now.
        if !next.absent.iter().any(is_it) || !elsewhere || segment.legs.len() >= COPIES_MAX {
            continue;
        }
        segment.legs.push(leg_row(one, false));
        segment.issued = segment.issued.max(facts.generation.number);
        segment.generation = segment.issue((context.random)());
        next.epoch_floor = next.epoch_floor.max(one.slice.epoch.number);
        if one.slice.epoch.number >= next.epoch.number {
            next.epoch = next.next_epoch((context.random)());
        }
        next.absent.retain(|other| !is_it(other));
        let text =
            format!("the missing copy of segment {} came back at {}; it is stale", facts.segment, table.server_name(one.server));
        change.event(next.name.as_str(), text);
    }
    if next != *row {
        change.put(Row::Volume(Box::new(next)));
    }
}

#[cfg(test)]
mod tests;
