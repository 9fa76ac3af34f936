//! What must hold at every moment, and at the end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use sublet_table::Table;
use sublet_table::records::{AreaRow, LeaseState, SegmentRow, VolumeRow};
use sublet_types::{Epoch, Generation, SliceId, VolumeId};

use crate::world::World;

/// The copies of a segment that have every acknowledged write.
#[derive(Default)]
struct Newest {
    /// The number of the epoch in which it was so,
    epoch: u64,
    /// that of the generation,
    generation: u64,
    /// and the slices.
    slices: Vec<SliceId>,
}

/// What was seen before.
#[derive(Default)]
pub struct Checks {
    epochs: RefCell<BTreeMap<VolumeId, Epoch>>,
    generations: RefCell<BTreeMap<(VolumeId, usize), Generation>>,
    /// The copies that were in sync, of the newest generation that was committed.
    in_sync: RefCell<BTreeMap<(VolumeId, usize), Newest>>,
    /// The table is older than the labels.
    pub(crate) behind: Cell<bool>,
    /// The table is not the first one.
    is_another: Cell<bool>,
}

impl Checks {
    /// Another table is in the place of the one that was looked at: what only that one knew is not known any more.
    pub fn table_changed(&self) {
        self.epochs.borrow_mut().clear();
        self.generations.borrow_mut().clear();
        self.is_another.set(true);
    }

    /// A slice that is in no label yet, or is to be wiped. An order of a former table may have come first there: then the label
    /// refuses it, and its volume is not made (L5).
    fn is_only_planned(&self, table: &Table, slice: SliceId) -> bool {
        let is_planned = |row: &VolumeRow| row.legs().any(|(_, leg)| leg.slice == slice && (row.task.is_some() || leg.fresh));
        self.is_another.get() && (table.wipes.contains_key(&slice) || table.volumes.values().any(is_planned))
    }

    /// Whether a copy has every acknowledged write, as far as any table knew. Of what was never finished nobody knew anything.
    pub fn is_in_sync(&self, volume: VolumeId, slice: SliceId) -> bool {
        let all = self.in_sync.borrow();
        let mut segments = all.range((volume, 0)..=(volume, usize::MAX)).map(|(_, newest)| &newest.slices).peekable();
        segments.peek().is_none() || segments.any(|slices| slices.contains(&slice))
    }

    /// A table that is behind counts as soon as it has the volume mounted, with an epoch above all that were seen: then its
    /// copies are those that are written.
    fn note_in_sync(&self, row: &VolumeRow, (index, segment): (usize, &SegmentRow)) {
        let mut all = self.in_sync.borrow_mut();
        let newest = all.entry((row.id, index)).or_default();
        let is_mounted = row.lease.as_ref().is_some_and(|lease| lease.state == LeaseState::Active);
        let is_newer = match self.behind.get() {
            true => is_mounted && (row.epoch.number, segment.generation.number) >= (newest.epoch, newest.generation),
            false => segment.generation.number >= newest.generation,
        };
        if is_newer {
            (newest.epoch, newest.generation) = (row.epoch.number, segment.generation.number);
            newest.slices.clear();
            newest.slices.extend(segment.legs.iter().filter(|leg| leg.in_sync).map(|leg| leg.slice));
        }
    }

    /// Looks at the manager's table after an event.
    ///
    /// # Errors
    /// What must not be.
    pub fn table(&self, table: &Table) -> Result<(), String> {
        // What a table that is behind gives out is given up again when it is reconciled (L5).
        for row in table.volumes.values().filter(|row| self.behind.get() && !row.unsettled && row.frozen.is_none()) {
            row.segments.iter().enumerate().for_each(|segment| self.note_in_sync(row, segment));
        }
        for row in table.volumes.values().filter(|_| !self.behind.get()) {
            let mut epochs = self.epochs.borrow_mut();
            if let Some(before) = epochs.insert(row.id, row.epoch)
                && (before.number > row.epoch.number || before.is_split_from(row.epoch))
            {
                return Err(format!("the epoch of volume {} went from {before} to {}", row.name, row.epoch));
            }
            // What is not settled has only what was seen of it, and its segments are not in their places (R1).
            for (index, segment) in row.segments.iter().enumerate().filter(|_| !row.unsettled) {
                let mut generations = self.generations.borrow_mut();
                let now = segment.generation;
                if let Some(before) = generations.insert((row.id, index), now)
                    && (before.number > now.number || before.is_split_from(now))
                {
                    return Err(format!("the generation of {} segment {index} went from {before} to {now}", row.name));
                }
                if row.frozen.is_none() {
                    self.note_in_sync(row, (index, segment));
                }
                if !segment.legs.iter().any(|leg| leg.in_sync) {
                    return Err(format!("S1: no copy of {} segment {index} is in sync", row.name));
                }
                let lenders: Vec<_> = segment.legs.iter().filter_map(|leg| table.lender(leg.area)).collect();
                if lenders.iter().enumerate().any(|(at, lender)| lenders.iter().skip(at + 1).any(|other| other == lender)) {
                    return Err(format!("S6: two copies of {} segment {index} are on one server", row.name));
                }
            }
        }
        // What a label that is not trusted says of its slices is noted, and may be anything. An area that was just accepted has
        // not been heard of since.
        let is_trusted = |area: &&AreaRow| area.quarantined.is_none() && (area.accepted.is_none() || area.open.is_some());
        for area in table.areas.values().filter(is_trusted).filter(|_| !self.behind.get()) {
            let taken = table.taken(area.id).into_iter().filter(|taken| !self.is_only_planned(table, taken.slice));
            let mut taken: Vec<_> = taken.map(|t| (t.offset, t.length, t.slice)).collect();
            taken.sort();
            // A slice that was just taken over from a label is listed there too for a moment.
            taken.dedup();
            overlap(&taken).map_or(Ok(()), |text| Err(format!("in the table, area {}: {text}", area.name)))?;
        }
        Ok(())
    }
}

/// Two slices of a sorted list that share a byte.
fn overlap(slices: &[(u64, u64, SliceId)]) -> Option<String> {
    slices.windows(2).find_map(|pair| match pair {
        [(offset, length, one), (next, _, other)] if offset + length > *next => {
            Some(format!("slices {} and {} overlap", one.short(), other.short()))
        }
        _ => None,
    })
}

/// Looks at the labels of all open areas, again and again.
pub async fn watch(world: Rc<World>) {
    let mut epochs: BTreeMap<SliceId, Epoch> = BTreeMap::new();
    let mut generations: BTreeMap<SliceId, Generation> = BTreeMap::new();
    loop {
        world.sim.sleep(Duration::from_millis(250)).await;
        // The labels of a wrong disk say nothing of the right one's.
        let wrong = |server: &std::rc::Rc<crate::server::Server>| world.is_first(server) && world.slots.is_wrong();
        for server in world.servers.iter().filter(|server| !wrong(server)) {
            for area in server.areas() {
                let report = area.report("");
                let mut slices: Vec<_> =
                    report.slices.iter().map(|slice| (slice.facts.offset, slice.facts.length, slice.facts.slice)).collect();
                slices.sort();
                if let Some(text) = overlap(&slices) {
                    world.violation(format!("L5: in the label of {}: {text}", report.name));
                }
                for slice in &report.slices {
                    let id = slice.facts.slice;
                    if let Some(before) = epochs.insert(id, slice.epoch)
                        && (before.number > slice.epoch.number || before.is_split_from(slice.epoch))
                    {
                        let text = format!("{before} to {}", slice.epoch);
                        world.violation(format!("F1: the epoch of slice {} in its label went from {text}", id.short()));
                    }
                    let now = slice.facts.generation;
                    if let Some(before) = generations.insert(id, now)
                        && (before.number > now.number || before.is_split_from(now))
                    {
                        let text = format!("{before} to {now}");
                        world.violation(format!("the generation of slice {} in its label went from {text}", id.short()));
                    }
                }
            }
        }
    }
}

/// When all is well: labels and table agree, and no copy is missing.
pub fn at_end(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    let table = world.manager.table(|table| {
        let volumes: Vec<_> = table.volumes.values().cloned().collect();
        volumes
    });
    let Some(volumes) = table else { return vec!["the manager does not run although nothing is wrong".to_owned()] };
    let reports: BTreeMap<SliceId, _> = world
        .servers
        .iter()
        .flat_map(|server| server.areas())
        .flat_map(|area| area.report("").slices)
        .map(|slice| (slice.facts.slice, slice))
        .collect();
    for row in volumes {
        if let Some(why) = &row.frozen {
            wrong.push(format!("volume {} is frozen: {why}", row.name));
        }
        for (index, segment) in row.segments.iter().enumerate() {
            for leg in segment.legs.iter().filter(|leg| leg.in_sync) {
                match reports.get(&leg.slice) {
                    // An area whose tables have rotted away is lost, and says so.
                    None if world.knobs.is_damaged() => {}
                    None => wrong.push(format!("slice {} of volume {} has no label", leg.slice.short(), row.name)),
                    // A copy that is made anew at the very end, of which no label has heard yet: its coordinator tells them.
                    Some(_) if segment.legs.iter().any(|leg| leg.fresh) => {}
                    Some(label) if label.facts.generation != segment.generation => wrong.push(format!(
                        "volume {} segment {index}: the table has generation {}, an in-sync label {}",
                        row.name, segment.generation, label.facts.generation
                    )),
                    Some(_) => {}
                }
            }
        }
    }
    wrong
}
