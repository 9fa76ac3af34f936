//! A lender: its label (durable), the gate of the slice, the disk and its cache, hot mark and missed map.

use crate::manager::Told;
use crate::world::{LEGS, Protocol, Rule};

/// A write on its way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Frame {
    pub(crate) client: u8,
    pub(crate) epoch: u8,
    pub(crate) value: u8,
    /// It belongs to a session that has ended.
    pub(crate) is_old: bool,
}

/// The session that the gate admits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Session {
    pub(crate) client: u8,
    pub(crate) epoch: u8,
}

/// The missed map for the other leg: one region, one bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Map {
    /// There is none: a full copy.
    None,
    Clear,
    Missed,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Lender {
    pub(crate) is_up: bool,
    pub(crate) epoch: u8,
    pub(crate) admitted: bool,
    pub(crate) generation: u8,
    pub(crate) in_sync: [bool; LEGS],
    /// The epoch that is open here; 0 if none.
    pub(crate) open: u8,
    pub(crate) unclean: bool,
    pub(crate) session: Option<Session>,
    /// On the wire to it.
    pub(crate) wire: Vec<Frame>,
    /// Submitted to the disk.
    pub(crate) disk: Vec<Frame>,
    pub(crate) content: u8,
    /// What the block may be after a power cut, one bit a value.
    pub(crate) stable: u16,
    /// Durable before the first write (H1).
    pub(crate) hot: bool,
    pub(crate) map: Map,
    pub(crate) durable_map: Map,
    /// An order that was on its way for long.
    pub(crate) late: Option<Told>,
}

impl Lender {
    /// Lent with epoch 1, both legs in sync at generation 1.
    pub(crate) fn new() -> Self {
        Self {
            is_up: true,
            epoch: 1,
            admitted: true,
            generation: 1,
            in_sync: [true; LEGS],
            open: 0,
            unclean: false,
            session: None,
            wire: Vec::new(),
            disk: Vec::new(),
            content: 0,
            stable: 1,
            hot: false,
            map: Map::None,
            durable_map: Map::None,
            late: None,
        }
    }

    pub(crate) fn may_be(&self) -> impl Iterator<Item = u8> + '_ {
        (0..16).filter(|value| self.stable & (1 << value) != 0)
    }

    pub(crate) fn flush(&mut self) {
        self.stable = 1 << self.content;
    }

    /// A write reaches the disk's cache; `other` is the other leg.
    pub(crate) fn apply(&mut self, value: u8, other: usize) {
        self.hot = true;
        self.content = value;
        self.stable |= 1 << value;
        // S3: a bit for a stale peer that has a map.
        if !self.in_sync[other] && self.map != Map::None {
            self.map = Map::Missed;
        }
    }

    /// The session ends; what had not been accepted is dropped with its connection.
    pub(crate) fn end_session(&mut self) {
        self.session = None;
        self.wire.clear();
        self.disk.iter_mut().for_each(|frame| frame.is_old = true);
    }

    /// The label takes a state of the in-sync set. `seed`: what the client says was written since the leg's last flush; none
    /// without a client.
    pub(crate) fn label(&mut self, generation: u8, in_sync: [bool; LEGS], other: usize, seed: Option<bool>) {
        let was_in_sync = self.in_sync[other];
        self.generation = generation;
        self.in_sync = in_sync;
        if in_sync[other] {
            (self.map, self.durable_map) = (Map::None, Map::None);
        } else if was_in_sync || seed == Some(true) {
            let missed = seed.unwrap_or(self.hot);
            self.map = if missed || self.map == Map::Missed { Map::Missed } else { Map::Clear };
            self.durable_map = self.map;
        }
    }

    /// Carries an order out; false if disk I/O of an older session has not ended yet (F1).
    pub(crate) fn carry_out(&mut self, order: Told, other: usize, protocol: &Protocol) -> bool {
        if order.epoch < self.epoch {
            // Long done, or refused: either way nothing changes.
            return true;
        }
        // A fence ends the sessions of its own epoch too; a lease those of older ones.
        let ends = |epoch: u8| if order.open { epoch < order.epoch } else { epoch <= order.epoch };
        if self.session.is_some_and(|session| ends(session.epoch)) {
            self.end_session();
        }
        if self.session.is_none() && !self.disk.is_empty() && !protocol.breaks(Rule::FenceAfterDisk) {
            return false;
        }
        self.epoch = order.epoch;
        self.admitted = order.open;
        if order.open && order.generation >= self.generation {
            self.label(order.generation, order.in_sync, other, None);
        }
        true
    }

    /// Power cut: of what was not flushed, any part may be there.
    pub(crate) fn power_cut(&mut self, content: u8, protocol: &Protocol) {
        self.content = content;
        self.flush();
        self.disk.clear();
        self.stop(protocol);
    }

    /// The agent ends; what it had submitted is carried out by its kernel (F2).
    pub(crate) fn stop(&mut self, protocol: &Protocol) {
        self.is_up = false;
        self.end_session();
        self.map = self.durable_map;
        if self.hot && self.map != Map::None && !protocol.breaks(Rule::HotCountsAsMissed) {
            self.map = Map::Missed;
        }
        if protocol.breaks(Rule::EpochPersisted) {
            (self.epoch, self.admitted) = (1, true);
        }
    }

    /// H2: the bits are durable, then the mark goes.
    pub(crate) fn cool(&mut self, protocol: &Protocol) {
        if !protocol.breaks(Rule::MissedBeforeCool) {
            self.durable_map = self.map;
        }
        self.hot = false;
    }
}
