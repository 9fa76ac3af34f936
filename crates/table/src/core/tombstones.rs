//! Tombstones in the labels of other areas (R2). The label of a slice that is being wiped says so itself, and a wipe usually begins
//! at once: the others are only told of one that does not.

use sublet_api::order::Order;
use sublet_api::request::{ChangeLeg, LegChange};
use sublet_api::server::Tombstone;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{AreaId, ServerId, VolumeId};

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
        let Some(area) = self.table.areas.get(&wipe.area).filter(|area| area.offline.is_none()) else { return false };
        let peer = self.peers.all.get(&area.server).filter(|_| self.peers.is_reachable(area.server));
        let Some(peer) = peer else { return false };
        let label = plan::wipe::told(&peer.reported, wipe.area, wipe.slice);
        let is_told = label.is_some_and(|label| label.wiping || plan::wipe::is_refuted(wipe.epoch, label));
        let has_begun = || self.orders.find(&plan::wipe::order(wipe)).is_some_and(|entry| entry.has_progress());
        let is_new = || self.wipes_since.get(&wipe.slice).is_none_or(|since| self.now_ms < since + PATIENCE_MS);
        let has_successor = wipe.replaced && self.table.volumes.contains_key(&wipe.volume);
        is_told || has_begun() || (is_new() && !has_successor)
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
        let known = |wipe: &WipeRow, area: AreaId| area == wipe.area || self.reported_stone(wipe, area);
        let former = self.table.wipes.values().filter(|wipe| wipe.volume == volume && wipe.drop);
        for wipe in former.filter(|wipe| !self.is_marked(wipe)) {
            if let Some(area) = areas.iter().find(|area| !known(wipe, **area)) {
                let (lender, former) = (self.table.lender_name(*area), self.table.lender_name(wipe.area));
                let text = format!("the label at {lender} does not tell yet that the copy at {former} was replaced");
                return Err(Refusal::new(ErrorKind::LenderUnreachable, text));
            }
        }
        Ok(())
    }

    /// Whether the label of an area has the tombstone of a wipe.
    fn reported_stone(&self, wipe: &WipeRow, area: AreaId) -> bool {
        let peer = self.table.lender(area).and_then(|server| self.peers.all.get(&server));
        let report = peer.and_then(|peer| peer.reported.get(&area));
        report.is_some_and(|report| report.tombstones.iter().any(|stone| stone.slice == wipe.slice))
    }

    /// Whether the label of a replaced slice says itself that it is to go, or does not have it any more.
    fn is_marked(&self, wipe: &WipeRow) -> bool {
        let peer = self.table.lender(wipe.area).and_then(|server| self.peers.all.get(&server));
        let Some(report) = peer.and_then(|peer| peer.reported.get(&wipe.area)) else { return false };
        report.slices.iter().find(|slice| slice.facts.slice == wipe.slice).is_none_or(|label| label.wiping && label.drop)
    }

    /// What all labels have to remember of deleted volumes (R2).
    pub(super) fn wanted_tombstones(&self) -> Vec<Tombstone> {
        rebuild::wanted_tombstones(&self.table, |wipe| self.is_beginning(wipe))
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
            let fresh: Vec<Tombstone> = stones.iter().filter(is_new).take(TOMBSTONES_AT_ONCE).cloned().collect();
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
        let Some(row) = self.table.areas.get(&stone.area) else { return self.knows_all() };
        if row.offline.is_some() {
            return false;
        }
        let report = self.peers.all.get(&row.server).and_then(|peer| peer.reported.get(&stone.area));
        report.is_some_and(|report| report.slices.iter().all(|slice| slice.facts.slice != stone.slice))
    }

    /// Whether the label of a tombstone's slice proves that it was written for a table that was behind (L5).
    fn is_refuted(&self, stone: &Tombstone) -> bool {
        let peer = self.table.lender(stone.area).and_then(|server| self.peers.all.get(&server));
        let label = peer.and_then(|peer| plan::wipe::told(&peer.reported, stone.area, stone.slice));
        label.is_some_and(|label| plan::wipe::is_refuted(stone.epoch, label))
    }
}
