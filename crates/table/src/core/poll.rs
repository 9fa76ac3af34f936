//! Servers register and poll: they get orders, and bring results and reports.

use sublet_api::Refusal;
use sublet_api::order::{Order, SliceFacts};
use sublet_api::request::Response;
use sublet_api::server::{AreaReport, Poll, PollAnswer, Register, Registered, SliceReport};
use sublet_types::limits::POLL_INTERVAL;
use sublet_types::{Epoch, ServerId};

use super::Core;
use super::peers::{HeldPoll, PeerState, SILENT_MAX_MS};
use crate::change::Change;
use crate::plan::{self, conflict};
use crate::store::Store;

impl<S: Store> Core<S> {
    /// `POST /v1/servers`.
    pub(super) fn register(&mut self, register: &Register) -> Result<Response, Refusal> {
        let now_ms = self.now_ms;
        if let Some(peer) = self.peers.all.get(&register.server) {
            // Two processes with one state directory would take turns for ever.
            let is_older_one = peer.run != Some(register.run) && peer.run_before == Some(register.run);
            if is_older_one && now_ms < peer.heard_ms + SILENT_MAX_MS {
                let text = format!(
                    "another process with the identity of server '{}' is registered",
                    self.table.server_name(register.server)
                );
                return Err(conflict(text, "each server needs a --data folder of its own; stop one of the two"));
            }
        }
        self.knock(register)?;
        if let Err(refusal) = plan::check_left(&self.table, register.server) {
            // Whoever has started it again may not look at its log.
            let mut change = Change::new();
            change.warning(self.table.server_name(register.server), format!("it is here again, and is refused: {refusal}"));
            self.commit_request(change)?;
            return Err(refusal);
        }
        let mut change = plan::register::plan(&self.table, register)?;
        // A registration that changes what the views show always commits something, so that watchers see a new revision.
        let is_known = |peer: &crate::core::peers::Peer| peer.state == PeerState::Up && peer.run == Some(register.run);
        if change.events.is_empty() && !self.peers.all.get(&register.server).is_some_and(is_known) {
            change.event(self.table.server_name(register.server), "up");
        }
        self.commit_request(change)?;
        let peer = self.peers.entry(register.server, now_ms);
        if peer.state != PeerState::Up {
            peer.state = PeerState::Up;
            peer.since_ms = now_ms;
            self.lenders_revision += 1;
        }
        peer.heard_ms = now_ms;
        if peer.run != Some(register.run) {
            peer.run_before = peer.run;
            peer.run = Some(register.run);
            peer.reported.clear();
            peer.reported_ms = None;
            let old = std::mem::take(&mut peer.polls);
            self.orders.forget_sent(register.server, now_ms);
            for poll in old {
                let answer = self.poll_answer(register.server, Vec::new(), true);
                self.reply(poll.conn, Response::Poll(answer));
            }
        } else {
            // It registers because something went wrong: the answer to its last poll may have been lost with its orders.
            self.orders.resend(register.server);
        }
        self.mark_shown();
        let missing = || Refusal::new(sublet_api::ErrorKind::Internal, "the registration is not in the table");
        let pool = self.table.pool.as_ref().ok_or_else(missing)?;
        let name = self.table.member(register.server).ok_or_else(missing)?.name.clone();
        Ok(Response::Registered(Registered { pool: pool.pool, manager: pool.manager, name, urls: self.urls.clone() }))
    }

    /// `POST /v1/servers/{server}/poll`.
    pub(super) fn poll(&mut self, conn: u64, server: ServerId, poll: Poll) -> Result<Option<Response>, Refusal> {
        let now_ms = self.now_ms;
        let is_registered =
            self.table.member(server).is_some() && self.peers.all.get(&server).is_some_and(|peer| peer.run == Some(poll.run));
        if !is_registered {
            return Ok(Some(Response::Poll(self.poll_answer(server, Vec::new(), true))));
        }
        let mut change = Change::new();
        if self.peers.all.get(&server).is_some_and(|peer| peer.state != PeerState::Up) {
            change.event(self.table.server_name(server), "up again");
        }
        if let Some(reports) = &poll.areas {
            let elsewhere = |area| self.peers.is_served_elsewhere(area, server);
            let found = plan::reconcile::report(&self.table, server, reports, &elsewhere);
            change.events.extend(found.events);
            change.warnings.extend(found.warnings);
            change.deletes.extend(found.deletes);
            change.puts.extend(found.puts);
        }
        self.commit_request(change)?;
        let peer = self.peers.entry(server, now_ms);
        peer.heard_ms = now_ms;
        let is_back = peer.state != PeerState::Up;
        if is_back {
            peer.state = PeerState::Up;
            peer.since_ms = now_ms;
            self.lenders_revision += 1;
            self.shown_revision = self.revision;
            self.orders.forget_sent(server, now_ms);
        }
        // What it last told may have been lost, or may be no longer so.
        let register = (is_back || peer.is_asked) && poll.areas.is_none();
        let is_urgent = poll.areas.is_some() || register;
        if let Some(reports) = poll.areas {
            peer.reported = reports.into_iter().map(|report| (report.area, report)).collect();
            peer.reported_ms = Some(now_ms);
            peer.has_told = true;
            peer.is_asked = false;
            self.relabel = true;
        }
        // A server may have two polls under way: one that waits for orders, and one that brings what it has done since.
        let is_urgent = is_urgent || !poll.results.is_empty();
        let held = std::mem::take(&mut peer.polls);
        let (old, mut kept): (Vec<HeldPoll>, Vec<HeldPoll>) = held.into_iter().partition(|poll| !is_urgent && !poll.is_urgent);
        let until_ms = now_ms + POLL_INTERVAL.as_millis() as u64;
        kept.push(HeldPoll { conn, until_ms, arrived_ms: now_ms, is_urgent, register });
        peer.polls = kept;
        for poll in old {
            let answer = self.poll_answer(server, Vec::new(), false);
            self.reply(poll.conn, Response::Poll(answer));
        }
        for result in poll.results {
            if let Some(order) = self.orders.result(server, result, now_ms) {
                self.note_done(server, &order);
            }
        }
        Ok(None)
    }

    /// Brings the last report up to date with what the server has done since.
    fn note_done(&mut self, server: ServerId, order: &Order) {
        let peer = self.peers.all.get_mut(&server);
        let reported = peer.zip(plan::order_area(order)).and_then(|(peer, area)| peer.reported.get_mut(&area));
        let Some(report) = reported else { return };
        let (slice, epoch, admitted) = match order {
            Order::PrepareSlice { slice: facts } => {
                if !note_facts(report, facts) {
                    report.slices.push(SliceReport {
                        facts: facts.clone(),
                        epoch: Epoch::default(),
                        admitted: false,
                        wiping: false,
                        drop: false,
                        lease: None,
                        open: false,
                        unclean: false,
                        missed_since: Vec::new(),
                        hot: 0,
                    });
                }
                return;
            }
            Order::WipeSlice { slice, drop: true, .. } => {
                report.slices.retain(|row| row.facts.slice != *slice);
                return;
            }
            Order::OpenLease { slice, lease, facts, .. } => {
                note_facts(report, facts);
                (*slice, lease.epoch, true)
            }
            Order::Fence { slice, epoch, .. } => (*slice, *epoch, false),
            Order::RenameArea { name, .. } => {
                report.name = name.clone();
                return;
            }
            Order::WipeSlice { slice, epoch, drop: false, .. } => (*slice, *epoch, false),
            Order::ReleaseArea { .. } | Order::Coordinate { .. } | Order::StopCoordinating { .. } => return,
            Order::SetQuarantine { reason, .. } => {
                report.quarantined.clone_from(reason);
                return;
            }
            Order::PutTombstones { tombstones, .. } => {
                let fresh: Vec<_> = tombstones.iter().filter(|row| !report.tombstones.contains(row)).cloned().collect();
                report.tombstones.extend(fresh);
                return;
            }
            Order::DropTombstones { slices, .. } => {
                report.tombstones.retain(|row| !slices.contains(&row.slice));
                return;
            }
        };
        for row in report.slices.iter_mut().filter(|row| row.facts.slice == slice && row.epoch.number <= epoch.number) {
            row.epoch = epoch;
            row.admitted = admitted;
        }
    }

    fn poll_answer(&self, server: ServerId, orders: Vec<sublet_api::order::NumberedOrder>, register: bool) -> PollAnswer {
        let row = self.table.servers.get(&server);
        let member = row.is_none_or(|row| !row.left);
        PollAnswer {
            orders,
            register: register && member,
            name: row.map(|row| row.name.clone()),
            urls: self.urls.clone(),
            member,
        }
    }

    /// Answers held polls: there are orders, something is to be told, or the time is over.
    pub(super) fn answer_polls(&mut self) {
        let servers: Vec<ServerId> = self.peers.all.keys().copied().collect();
        for server in servers {
            let Some(peer) = self.peers.all.get_mut(&server) else { continue };
            let mut polls = std::mem::take(&mut peer.polls);
            // The one that waits for orders gets them, so that the other's answer does not get lost in between.
            polls.sort_by_key(|poll| (poll.is_urgent, poll.arrived_ms));
            let mut kept = Vec::new();
            for poll in polls {
                let orders = self.orders.take(server, poll.arrived_ms, self.now_ms);
                if orders.is_empty() && !poll.is_urgent && poll.until_ms > self.now_ms {
                    kept.push(poll);
                    continue;
                }
                let answer = self.poll_answer(server, orders, poll.register);
                self.reply(poll.conn, Response::Poll(answer));
            }
            if let Some(peer) = self.peers.all.get_mut(&server) {
                peer.polls = kept;
            }
        }
    }
}

/// Enters what a label was told of a slice that it has; false if it had none. A generation never goes back there.
fn note_facts(report: &mut AreaReport, facts: &SliceFacts) -> bool {
    let Some(row) = report.slices.iter_mut().find(|row| row.facts.slice == facts.slice) else { return false };
    let (generation, in_sync) = if facts.generation.number < row.facts.generation.number {
        (row.facts.generation, row.facts.in_sync.clone())
    } else {
        (facts.generation, facts.in_sync.clone())
    };
    row.facts = SliceFacts { generation, in_sync, ..facts.clone() };
    true
}
