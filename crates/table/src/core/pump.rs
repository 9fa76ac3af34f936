//! After every event: notice what time has brought, give the orders that are wanted, let tasks go on, and answer.

use std::collections::BTreeMap;

use sublet_api::order::Order;
use sublet_api::server::Tombstone;
use sublet_types::ServerId;

use super::orders::Fate;
use super::{Core, Outside};
use crate::change::Change;
use crate::plan::{self, distrust, reconcile};
use crate::store::{Store, StoreError};

/// Wipes that one server is told to do at the same time: they compete for its disks.
const WIPES_AT_ONCE: usize = 4;
/// So many more may hang or fail there before they hold up the others.
const WIPES_STUCK_MAX: usize = 64;
/// Rounds of one event. Every round but the last commits something, and no task has so many steps; more is a defect that
/// must not hang the manager.
const ROUNDS_MAX: usize = 1000;
/// The pause before a failed commit is tried again, in milliseconds.
const STORE_RETRY_MS: u64 = 1000;

impl<S: Store> Core<S> {
    pub(super) fn pump(&mut self, outside: &mut Outside<'_>) {
        if let Err(error) = self.work(outside) {
            // Nothing was told of what could not be committed. It is tried again with the next event.
            tracing::debug!(%error, "a change waits for the store");
        }
        self.answer_tasks();
        self.answer_reports();
        self.answer_table();
        self.answer_polls();
    }

    fn work(&mut self, outside: &mut Outside<'_>) -> Result<(), StoreError> {
        self.notice_lost()?;
        self.notice_moved()?;
        self.orders.retry(self.now_ms);
        self.schedule_scrubs(outside)?;
        self.take_labels(outside)?;
        self.distrust(outside)?;
        self.fence_revoked(outside)?;
        for _ in 0..ROUNDS_MAX {
            self.count_wipes();
            self.give_orders();
            let confirmed = self.take_confirmations()?;
            let advanced = self.advance_tasks(outside)?;
            let vanished = advanced && self.notice_vanished(outside)?;
            let settled = self.take_labels(outside)?;
            let worked = self.advance_background(outside)?;
            if !confirmed && !advanced && !vanished && !settled && !worked {
                break;
            }
        }
        self.watch_paths()
    }

    fn notice_lost(&mut self) -> Result<(), StoreError> {
        let lost = self.peers.newly_lost(self.now_ms);
        if lost.is_empty() {
            return Ok(());
        }
        self.lenders_revision += 1;
        let mut change = Change::new();
        for id in lost.into_iter().filter(|id| self.table.member(*id).is_some()) {
            change.event(self.table.server_name(id), format!("lost: {}", self.peers.silence(id, self.now_ms)));
        }
        self.commit(change)?;
        self.mark_shown();
        Ok(())
    }

    /// A disk that had turned up at another server while its former one still claimed it: that is over now.
    fn notice_moved(&mut self) -> Result<(), StoreError> {
        for server in self.peers.moved_in(|area| self.table.lender(area)) {
            let Some(peer) = self.peers.all.get(&server) else { continue };
            let reports: Vec<_> = peer.reported.values().cloned().collect();
            let elsewhere = |area| self.peers.is_served_elsewhere(area, server);
            let change = reconcile::report(&self.table, server, &reports, &elsewhere);
            self.commit(change)?;
        }
        Ok(())
    }

    /// What reconciliation wants of a server that is up: the present epoch first (F3), then names and wipes.
    /// `stones` are the tombstones that all labels have to keep: the same for all servers.
    fn background(&self, server: ServerId, stones: &[Tombstone]) -> Vec<Order> {
        let Some(peer) = self.peers.all.get(&server).filter(|_| self.peers.is_up(server)) else { return Vec::new() };
        let mut orders = reconcile::wanted(&self.table, server, &peer.reported);
        let (mut well, mut stuck) = (0, 0);
        let wipes = reconcile::wipes(&self.table, server, &peer.reported).into_iter();
        orders.extend(wipes.filter(|order| !self.is_refuted_wipe(order)).filter(|order| {
            let is_stuck = self.orders.find(order).is_some_and(|entry| entry.is_stuck(self.now_ms));
            let (count, max) = if is_stuck { (&mut stuck, WIPES_STUCK_MAX) } else { (&mut well, WIPES_AT_ONCE) };
            *count += 1;
            *count <= max
        }));
        orders.extend(self.tombstones(server, stones));
        orders.extend(distrust::wanted(&self.table, server, &peer.reported));
        orders
    }

    /// Brings the order book in line with what is wanted now.
    fn give_orders(&mut self) {
        let mut wanted: Vec<(ServerId, Order)> = Vec::new();
        let stones = self.wanted_tombstones();
        for server in self.peers.all.keys() {
            wanted.extend(self.background(*server, &stones).into_iter().map(|order| (*server, order)));
        }
        for task in self.table.tasks.values().filter(|task| task.is_running() && Self::gives_orders(task)) {
            let orders = plan::orders(&self.table, task).into_iter();
            wanted.extend(orders.filter_map(|order| Some((plan::order_server(&self.table, &order)?, order))));
        }
        wanted.extend(self.background_orders());
        self.orders.want(&wanted, self.now_ms);
    }

    /// Commits what lenders have confirmed to reconciliation; the answer is whether there was anything.
    fn take_confirmations(&mut self) -> Result<bool, StoreError> {
        let mut background: BTreeMap<u64, Order> = BTreeMap::new();
        let mut refused = Change::new();
        let stones = self.wanted_tombstones();
        for server in self.peers.all.keys() {
            for order in self.background(*server, &stones) {
                match self.orders.find(&order) {
                    Some(entry) if entry.fate == Fate::Done => {
                        background.insert(entry.number, order);
                    }
                    Some(entry) => {
                        if let Fate::Failed(refusal) = &entry.fate {
                            let area = plan::order_area(&order).and_then(|area| self.table.areas.get(&area));
                            let area = area.map(|area| area.name.to_string()).unwrap_or_default();
                            let text = format!("{} refused {}: {refusal}", self.table.server_name(*server), word(&order));
                            refused.warning(area, text);
                        }
                    }
                    None => {}
                }
            }
        }
        self.commit(refused)?;
        let done: Vec<Order> = background.into_values().collect();
        let change = reconcile::confirmed(&self.table, &done);
        let moved = !change.is_empty();
        self.commit(change)?;
        Ok(moved)
    }

    /// When [`Event::Tick`](super::Event::Tick) shall come, if nothing else does before, in milliseconds since 1970.
    pub fn next_wake_ms(&self) -> Option<u64> {
        let peers = self.peers.wakes();
        let tasks = self.task_waiters.iter().map(|waiter| waiter.until_ms);
        let tables = self.table_waiters.iter().map(|waiter| waiter.until_ms);
        let paths = self.paths.values().flat_map(|watch| watch.wakes());
        let store = self.is_store_failing.then_some(self.now_ms + STORE_RETRY_MS);
        let background = self.background_wakes().chain(self.tombstone_wakes());
        let all =
            peers.chain(background).chain(self.orders.wakes(self.now_ms)).chain(tasks).chain(tables).chain(paths).chain(store);
        all.filter(|time| *time > self.now_ms).min()
    }
}

fn word(order: &Order) -> &'static str {
    match order {
        Order::PrepareSlice { .. } => "to enter a slice",
        Order::OpenLease { .. } => "to open a lease",
        Order::Fence { .. } => "to fence",
        Order::WipeSlice { .. } => "to wipe",
        Order::ReleaseArea { .. } => "to release",
        Order::RenameArea { .. } => "to rename",
        Order::Coordinate { .. } => "to coordinate",
        Order::StopCoordinating { .. } => "to stop coordinating",
        Order::SetQuarantine { .. } => "to note whether the area is trusted",
        Order::PutTombstones { .. } => "to keep tombstones",
        Order::DropTombstones { .. } => "to drop tombstones",
    }
}
