//! A borrower's client: the real state machine of the in-sync set, and what surrounds it: sessions, the write under way, the
//! question to the manager.

use sublet_doors::Tick;
use sublet_volume::machine::{LegView, Members, Role, Step, decide};

use crate::manager::{Answer, Ask, generation};
use crate::world::LEGS;

/// Later than anything.
const NEVER: Tick = Tick(u64::MAX);
const NOW: Tick = Tick(1 << 40);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Life {
    Live,
    /// Fenced, or it has stopped.
    Over,
    /// The volume has failed, loudly (W5).
    Failed,
}

/// A session, as the client sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Session {
    pub(crate) is_target: bool,
    /// The lender has it too. The client does not see this before it notices.
    pub(crate) is_attached: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Leg {
    pub(crate) session: Option<Session>,
    /// The lender had another identity at the last OPEN than it has now.
    pub(crate) other_identity: bool,
    /// It lost acknowledged writes.
    pub(crate) lost: bool,
    /// It has been without a session for long enough.
    pub(crate) given_up: bool,
    /// Writes that it has acknowledged since its last flush.
    pub(crate) dirty: bool,
    /// Its *unclean* flag was looked at.
    pub(crate) judged: bool,
}

/// How far a write is at one leg.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Part {
    ToSend,
    Sent,
    Done,
    Skipped,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Client {
    pub(crate) life: Life,
    pub(crate) epoch: u8,
    pub(crate) members: Members,
    pub(crate) legs: [Leg; LEGS],
    pub(crate) settled: bool,
    /// The write under way.
    pub(crate) write: Option<(u8, [Part; LEGS])>,
    /// Kept since the last acknowledged flush (W5).
    pub(crate) kept: Option<u8>,
    /// What the manager has been asked, and its answer.
    pub(crate) asked: Option<Ask>,
    pub(crate) answer: Answer,
    /// Issued for a target: flush and label are next (S5).
    pub(crate) prepare: Option<(u8, u8)>,
    pub(crate) copying: Option<u8>,
    pub(crate) equalise_due: bool,
    /// Whether this client has written anything that no flush has covered.
    pub(crate) has_written: bool,
}

impl Client {
    pub(crate) fn new(epoch: u8, number: u8, in_sync: [bool; LEGS]) -> Self {
        Self {
            life: Life::Live,
            epoch,
            members: Members::new(generation(number), in_sync),
            legs: Default::default(),
            settled: false,
            write: None,
            kept: None,
            asked: None,
            answer: Answer::None,
            prepare: None,
            copying: None,
            equalise_due: false,
            has_written: false,
        }
    }

    /// One that never was.
    pub(crate) fn absent() -> Self {
        Self { life: Life::Over, ..Self::new(0, 1, [true; LEGS]) }
    }

    /// Nothing of it matters any more.
    pub(crate) fn end(&mut self, life: Life) {
        *self = Self { life, ..Self::absent() };
    }

    pub(crate) fn is_live(&self) -> bool {
        self.life == Life::Live
    }

    pub(crate) fn generation(&self) -> u8 {
        u8::try_from(self.members.generation.number).unwrap_or(u8::MAX)
    }

    /// As `Segment::mode_wanted`: whether as a target.
    pub(crate) fn mode_wanted(&self, leg: usize) -> Option<bool> {
        match self.members.role(leg) {
            Role::InSync | Role::Leaving => Some(false),
            Role::Stale => Some(true),
            _ => None,
        }
    }

    /// As `Segment::fits`: the session, if it may be used now.
    pub(crate) fn session(&self, leg: usize) -> Option<Session> {
        let session = self.legs[leg].session.filter(|_| !self.legs[leg].lost)?;
        let is_target = session.is_target;
        let fits = match self.members.role(leg) {
            Role::InSync | Role::Leaving => !is_target,
            Role::Left => false,
            Role::Stale | Role::Copying | Role::Copied | Role::Joining => is_target,
        };
        fits.then_some(session)
    }

    /// As `Segment::is_sound`.
    pub(crate) fn is_sound(&self, leg: usize) -> bool {
        let m = self.members.legs[leg];
        m.role == Role::InSync && m.equal && !self.legs[leg].lost && self.session(leg).is_some()
    }

    /// As `Segment::is_survivor`.
    pub(crate) fn is_survivor(&self, leg: usize) -> bool {
        self.members.may_survive(leg) && !self.legs[leg].lost && self.session(leg).is_some()
    }

    /// The session of a leg has ended.
    pub(crate) fn lose_session(&mut self, leg: usize) {
        self.legs[leg].session = None;
        self.legs[leg].given_up = false;
        self.members.give_up_copying(leg);
        if self.copying == Some(leg as u8) {
            self.copying = None;
        }
        if let Some((_, parts)) = &mut self.write
            && parts[leg] == Part::Sent
        {
            parts[leg] = Part::ToSend;
        }
    }

    /// What the supervisor does next, by the real decision.
    pub(crate) fn next_step(&self) -> Step {
        let view = |leg: usize| {
            let l = &self.legs[leg];
            let open = l.session.is_some();
            // A candidate until lost writes have been written again.
            LegView {
                sound: l.session.is_some_and(|session| !session.is_target) && !l.lost,
                target: l.session.is_some_and(|session| session.is_target),
                open_since: Tick(0),
                leave_at: (!open).then_some(if l.given_up { Tick(0) } else { NEVER }),
                broken: false,
                lost_writes: l.lost,
                can_replay: l.lost && open,
                resync_after: Tick(0),
            }
        };
        let views: Vec<LegView> = (0..LEGS).map(view).collect();
        decide(&self.members, &views, NOW, Tick(0), self.equalise_due, self.copying.is_some())
    }
}
