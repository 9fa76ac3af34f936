//! What is known of the servers by hearing from them. Nothing of it is stored.

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::server::AreaReport;
use sublet_api::view::ServerState;
use sublet_types::limits::SERVER_SILENT_MAX;
use sublet_types::{AreaId, ServerId};

use crate::views::Heard;

/// [`SERVER_SILENT_MAX`] in milliseconds.
pub const SILENT_MAX_MS: u64 = SERVER_SILENT_MAX.as_millis() as u64;

/// How a server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerState {
    /// Not heard of since this manager started, but that is not long ago.
    Unheard,
    /// It polls.
    Up,
    /// It is silent.
    Lost,
}

/// A poll that is not answered yet.
pub struct HeldPoll {
    pub conn: u64,
    pub until_ms: u64,
    pub arrived_ms: u64,
    /// Answer it as soon as this event is worked off: it brought results, or there is something to tell.
    pub is_urgent: bool,
    /// The server shall register again and report all that it has.
    pub register: bool,
}

/// One server.
pub struct Peer {
    pub state: PeerState,
    pub since_ms: u64,
    pub heard_ms: u64,
    /// The process that registered.
    pub run: Option<u64>,
    /// The process that was registered before it.
    pub run_before: Option<u64>,
    /// At most one that waits for orders, and those that bring something and are answered at once.
    pub polls: Vec<HeldPoll>,
    /// It is to register again and to report all its areas, and has not yet.
    pub is_asked: bool,
    /// It has reported all its areas since this manager started.
    pub has_told: bool,
    /// When it last reported all its areas; none if its present process has not yet.
    pub reported_ms: Option<u64>,
    /// What it last reported, brought up to date with the orders that it has carried out since.
    pub reported: BTreeMap<AreaId, AreaReport>,
}

/// All servers.
#[derive(Default)]
pub struct Peers {
    pub all: BTreeMap<ServerId, Peer>,
}

impl Peers {
    pub fn new(now_ms: u64, servers: impl Iterator<Item = ServerId>) -> Self {
        let mut peers = Self::default();
        for id in servers {
            peers.entry(id, now_ms);
        }
        peers
    }

    pub fn entry(&mut self, id: ServerId, now_ms: u64) -> &mut Peer {
        self.all.entry(id).or_insert_with(|| Peer {
            state: PeerState::Unheard,
            since_ms: now_ms,
            heard_ms: now_ms,
            run: None,
            run_before: None,
            polls: Vec::new(),
            is_asked: false,
            has_told: false,
            reported_ms: None,
            reported: BTreeMap::new(),
        })
    }

    /// Servers that answer, or that may: a manager that has just started gives them time to come.
    pub fn reachable(&self) -> BTreeSet<ServerId> {
        self.all.iter().filter(|(_, peer)| peer.state != PeerState::Lost).map(|(id, _)| *id).collect()
    }

    pub fn is_reachable(&self, id: ServerId) -> bool {
        self.all.get(&id).is_some_and(|peer| peer.state != PeerState::Lost)
    }

    /// Whether a server has not told of its areas since this manager started, and still may: it is not lost.
    pub fn may_tell(&self, id: ServerId) -> bool {
        self.all.get(&id).is_some_and(|peer| peer.state != PeerState::Lost && !peer.has_told)
    }

    pub fn is_up(&self, id: ServerId) -> bool {
        self.all.get(&id).is_some_and(|peer| peer.state == PeerState::Up)
    }

    /// Why a server that is not reachable is not.
    pub fn silence(&self, id: ServerId, now_ms: u64) -> String {
        match self.all.get(&id) {
            Some(peer) if peer.run.is_none() => "it has not been heard of since the manager started".to_owned(),
            Some(peer) => format!("it has been silent for {} s", now_ms.saturating_sub(peer.heard_ms) / 1000),
            None => "it is not known".to_owned(),
        }
    }

    pub fn heard(&self) -> BTreeMap<ServerId, Heard> {
        let heard = |peer: &Peer| Heard {
            state: if peer.state == PeerState::Up { ServerState::Up } else { ServerState::Lost },
            since_ms: peer.since_ms,
        };
        self.all.iter().map(|(id, peer)| (*id, heard(peer))).collect()
    }

    /// Servers that have become silent now. The held poll of a silent server is given up.
    pub fn newly_lost(&mut self, now_ms: u64) -> Vec<ServerId> {
        let mut lost = Vec::new();
        for (id, peer) in &mut self.all {
            if peer.state != PeerState::Lost && now_ms >= peer.heard_ms + SILENT_MAX_MS {
                peer.state = PeerState::Lost;
                peer.since_ms = now_ms;
                lost.push(*id);
            }
        }
        lost
    }

    pub fn gone(&mut self, conn: u64) {
        for peer in self.all.values_mut() {
            peer.polls.retain(|poll| poll.conn != conn);
        }
    }

    /// Answers a server's held poll soon: there is something to tell.
    pub fn tell(&mut self, id: ServerId) {
        for poll in self.all.get_mut(&id).into_iter().flat_map(|peer| &mut peer.polls) {
            poll.is_urgent = true;
        }
    }

    /// Has a server register again and report all that it has; what it reported before counts no longer.
    pub fn ask_report(&mut self, id: ServerId) {
        let Some(peer) = self.all.get_mut(&id) else { return };
        peer.reported.clear();
        peer.reported_ms = None;
        peer.is_asked = true;
        for poll in &mut peer.polls {
            poll.is_urgent = true;
            poll.register = true;
        }
    }

    pub fn tell_all(&mut self) {
        for poll in self.all.values_mut().flat_map(|peer| &mut peer.polls) {
            poll.is_urgent = true;
        }
    }

    /// Whether a server other than `except` is up and serves the area.
    pub fn is_served_elsewhere(&self, area: AreaId, except: ServerId) -> bool {
        let serves = |peer: &Peer| peer.reported.get(&area).is_some_and(|report| report.offline.is_none());
        self.all.iter().any(|(id, peer)| *id != except && peer.state == PeerState::Up && serves(peer))
    }

    /// Servers that have areas which the table places at another server, and which that one has given up: it lists them no
    /// longer as served, or fell silent before they turned up. One that was heard of since has the disk, or is a copy of it.
    pub fn moved_in(&self, owner: impl Fn(AreaId) -> Option<ServerId>) -> Vec<ServerId> {
        let given_up = |peer: &Peer, area: AreaId| {
            let Some(old) = owner(area).and_then(|id| self.all.get(&id)) else { return false };
            let serves = old.reported.get(&area).is_some_and(|report| report.offline.is_none());
            match old.state {
                PeerState::Up => old.reported_ms.is_some() && !serves,
                PeerState::Lost => peer.reported_ms.is_some_and(|at_ms| at_ms >= old.heard_ms),
                PeerState::Unheard => false,
            }
        };
        let has_moved = |id: ServerId, peer: &Peer| {
            let served = peer.reported.values().filter(|report| report.offline.is_none());
            served.map(|report| report.area).any(|area| owner(area).is_some_and(|old| old != id) && given_up(peer, area))
        };
        let up = self.all.iter().filter(|(_, peer)| peer.state == PeerState::Up);
        up.filter(|(id, peer)| has_moved(**id, peer)).map(|(id, _)| *id).collect()
    }

    pub fn wakes(&self) -> impl Iterator<Item = u64> {
        let silence = self.all.values().filter(|peer| peer.state != PeerState::Lost).map(|peer| peer.heard_ms + SILENT_MAX_MS);
        let polls = self.all.values().flat_map(|peer| &peer.polls).map(|poll| poll.until_ms);
        silence.chain(polls)
    }
}
