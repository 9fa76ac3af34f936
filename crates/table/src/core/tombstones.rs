//! Tombstones in the labels of other areas (R2). The label of a slice that is being wiped says so itself, and a wipe usually begins
//! at once: the others are only told of one that does not.

use sublet_api::order::Order;
use sublet_api::request::{ChangeLeg, LegChange};
use sublet_api::server::{AreaReport, SliceReport, Tombstone};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::TOMBSTONES_PER_AREA_MAX;
use sublet_types::{AreaId, ServerId, SliceId, VolumeId};

use super::Core;
use crate::plan::{self, rebuild};
use crate::records::WipeRow;
use crate::store::Store;

/// Tombstones in one order.
const TOMBSTONES_AT_ONCE: usize = 64;
/// A wipe that has not been seen to begin for so long is told to the other labels, in milliseconds. Until then only the table
/// knows of it: the shorter the better, but each return of a volume would cost two changes of every label. One that was
/// replaced is told at once: another slice has its place.
const PATIENCE_MS: u64 = 2000;

impl<S: Store> Core<S> {
    /// Notes since when there are wipes.
    pub(super) fn count_wipes(&mut self) {
        let (table, now_ms) = (&self.table, self.now_ms);
        self.wipes_since.retain(|slice, _| table.wipes.contains_key(slice));
        for slice in table.wipes.keys() {
            self.wipes_since.entry(*slice).or_insert(now_ms);
        }
    }

    /// When tombstones are wanted by the mere passing of time.
    pub(super) fn tombstone_wakes(&self) -> impl Iterator<Item = u64> {
        self.wipes_since.values().map(|since| since + PATIENCE_MS)
    }

    /// Whether the label of a slice that is to be wiped says so, or is about to: its lender is there, and the wipe was wanted
    /// just now or tells of progress. A label that proves that nothing is to be wiped (L5) needs no tombstone either.
    fn is_beginning(&self, wipe: &WipeRow) -> bool {
        // As long as no label has the slice that takes its place, the former one is the only one with its number, and what is
        // there if the table is lost. The new one does not return before the labels know (R1).
        if plan::wipe::waits_for_successor(&self.table, wipe) {
            return true;
        }
        let Some(area) = self.table.areas.get(&wipe.area).filter(|area| area.offline.is_none()) else { return false };
        let peer = self.peers.all.get(&area.server).filter(|_| self.peers.is_reachable(area.server));
        let Some(peer) = peer else { return false };
        let label = plan::wipe::told(&peer.reported, wipe.area, wipe.slice);
        let is_told = label.is_some_and(|label| label.wiping || plan::wipe::is_refuted_by(wipe, label));
        let is_new = || self.wipes_since.get(&wipe.slice).is_none_or(|since| self.now_ms < since + PATIENCE_MS);
        let has_successor = wipe.replaced && self.table.volumes.contains_key(&wipe.volume);
        is_told || self.has_begun(wipe) || (is_new() && !has_successor)
    }

    /// Whether a wipe has told of progress; its label says that it is to be wiped by then.
    fn has_begun(&self, wipe: &WipeRow) -> bool {
        self.orders.find(&plan::wipe::order(wipe)).is_some_and(|entry| entry.has_progress())
    }

    /// Refuses to let a leg return as long as a label of its segment's in-sync set, or its own, does not tell a slice that was
    /// replaced from the one that has its place now: if the table were lost, the label of the new one not seen and that of the
    /// old one seen, the old one would be taken for it, and it lacks all that was written since (R1).
    ///
    /// # Errors
    /// `lender_unreachable`: to be asked again.
    pub(super) fn check_replaced(&self, volume: VolumeId, change: &ChangeLeg) -> Result<(), Refusal> {
        let row = self.table.volumes.get(&volume).filter(|_| change.change == LegChange::Returning);
        let Some(segment) = row.and_then(|row| row.segments.get(change.segment as usize)) else { return Ok(()) };
        let members = segment.legs.iter().filter(|leg| leg.in_sync || leg.slice == change.slice);
        let areas: Vec<AreaId> = members.map(|leg| leg.area).collect();
        let is_here = |wipe: &WipeRow| wipe.was.as_ref().is_none_or(|was| was.segment == change.segment);
        let former = self.table.wipes.values().filter(|wipe| wipe.volume == volume && wipe.drop && is_here(wipe));
        // One whose successor is in no label is a copy still, and stale.
        let former = former.filter(|wipe| !plan::wipe::waits_for_successor(&self.table, wipe));
        for wipe in former.filter(|wipe| !self.is_marked(wipe)) {
            for area in areas.iter().filter(|area| **area != wipe.area) {
                let kept = self.report_of(*area).map(|report| &report.tombstones);
                if kept.is_some_and(|kept| kept.iter().any(|stone| stone.slice == wipe.slice)) {
                    continue;
                }
                let (lender, former) = (self.table.lender_name(*area), self.table.lender_name(wipe.area));
                let mut text = format!("the label at {lender} does not tell yet that the copy at {former} was replaced");
                if kept.is_some_and(|kept| kept.len() >= TOMBSTONES_PER_AREA_MAX) {
                    text.push_str("; it has no room for that");
                }
                return Err(Refusal::new(ErrorKind::LenderUnreachable, text));
            }
        }
        Ok(())
    }

    /// What the label of a slice's area says of it, as its lender last reported.
    pub(super) fn label_of(&self, area: AreaId, slice: SliceId) -> Option<&SliceReport> {
        self.report_of(area)?.slices.iter().find(|label| label.facts.slice == slice)
    }

    /// What an area's lender last reported of it.
    pub(super) fn report_of(&self, area: AreaId) -> Option<&AreaReport> {
        self.peers.all.get(&self.table.lender(area)?)?.reported.get(&area)
    }

    /// Whether a rebuilt table would know of a wipe from the label of its slice: it is to go, or never should have (L5), or is not
    /// there any more.
    fn is_marked(&self, wipe: &WipeRow) -> bool {
        let Some(report) = self.report_of(wipe.area) else { return false };
        match self.label_of(wipe.area, wipe.slice) {
            Some(label) => {
                let is_to_go = label.wiping && label.drop;
                is_to_go || plan::wipe::is_refuted_by(wipe, label) || self.has_begun(wipe)
            }
            None => plan::wipe::is_complete(&self.table, report),
        }
    }

    /// What all labels have to remember of deleted volumes (R2).
    pub(super) fn wanted_tombstones(&self) -> Vec<Tombstone> {
        let mut stones = rebuild::wanted_tombstones(&self.table, |wipe| self.is_beginning(wipe));
        // Where there is not room for all, those come first for which copies wait.
        stones.sort_by_key(|stone| !self.table.volumes.contains_key(&stone.volume));
        stones
    }

    /// Which of these the labels of a server have to be told, and which of theirs they need not keep any longer.
    pub(super) fn tombstones(&self, server: ServerId, stones: &[Tombstone]) -> Vec<Order> {
        let Some(peer) = self.peers.all.get(&server) else { return Vec::new() };
        if stones.is_empty() && peer.reported.values().all(|report| report.tombstones.is_empty()) {
            return Vec::new();
        }
        let mut orders = Vec::new();
        for area in self.table.areas_of(server).filter(|row| row.offline.is_none() && !row.reclaiming) {
            let Some(report) = peer.reported.get(&area.id) else { continue };
            let is_new = |stone: &&Tombstone| stone.area != area.id && !report.tombstones.contains(stone);
            let room = TOMBSTONES_PER_AREA_MAX.saturating_sub(report.tombstones.len()).min(TOMBSTONES_AT_ONCE);
            let fresh: Vec<Tombstone> = stones.iter().filter(is_new).take(room).cloned().collect();
            if !fresh.is_empty() {
                orders.push(Order::PutTombstones { area: area.id, tombstones: fresh });
            }
            let spent =
                rebuild::spent(&self.table, &report.tombstones, |stone| self.is_gone(stone), |stone| self.is_refuted(stone));
            if !spent.is_empty() {
                orders.push(Order::DropTombstones { area: area.id, slices: spent });
            }
        }
        orders
    }

    /// Whether the label of a tombstone's area is there, without its slice; or whether there is no such area any more, as far as
    /// a table can tell that is not behind.
    fn is_gone(&self, stone: &Tombstone) -> bool {
        if !self.table.areas.contains_key(&stone.area) {
            return self.knows_all();
        }
        let report = self.report_of(stone.area).filter(|report| plan::wipe::is_complete(&self.table, report));
        report.is_some_and(|report| report.slices.iter().all(|slice| slice.facts.slice != stone.slice))
    }

    /// Whether the label of a tombstone's slice proves that it was written for a table that was behind (L5). A table that is behind
    /// itself may have given the slice the epoch that seems to prove it.
    fn is_refuted(&self, stone: &Tombstone) -> bool {
        let label = self.label_of(stone.area, stone.slice);
        label.is_some_and(|label| {
            let may_lead = label.epoch == stone.epoch;
            let leads = || rebuild::leads(&self.table, &self.labels(), stone.epoch, label);
            (plan::wipe::is_refuted(stone.epoch, label) && self.knows_all()) || (may_lead && leads())
        })
    }

    /// Whether a wipe is left alone because its slice may have what no other copy has (L5).
    pub(super) fn is_refuted_wipe(&self, order: &Order) -> bool {
        let Order::WipeSlice { slice, area, epoch, .. } = order else { return false };
        if self.table.wipes.get(slice).is_some_and(|row| row.was.is_some()) {
            return false;
        }
        let label = self.label_of(*area, *slice);
        let label = label.filter(|label| label.epoch == *epoch && !label.wiping);
        label.is_some_and(|label| rebuild::leads(&self.table, &self.labels(), *epoch, label))
    }
}
