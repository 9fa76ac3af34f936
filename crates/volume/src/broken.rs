//! A leg that answers and does not do what it is told: it leaves if another one can be its survivor (S1). A change that it has
//! failed waits for that; where there is no survivor the change alone fails, and the legs count as different there (W1, H3).

use sublet_doors::{Doors, Tick};

use crate::change::Change;
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::End;

/// Who could be the survivor of a leg that is to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Survivor {
    /// One that is there, with every acknowledged write.
    Here,
    /// That is being found out, or a leg is getting its lost writes back.
    Soon,
    /// One that is away and has until then to come back.
    Until(Tick),
    /// Nobody: the last one never leaves.
    Nobody,
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Who could be the survivor of this leg now.
    pub(crate) fn survivor_of(&self, index: usize) -> Survivor {
        let now = self.shared.doors.now();
        let members = self.members.borrow().clone();
        let mut best = Survivor::Nobody;
        for other in (0..members.legs.len()).filter(|other| *other != index && members.may_survive(*other)) {
            let Some(leg) = self.legs.get(other).filter(|leg| leg.broken.borrow().is_none()) else { continue };
            let is_replayed = leg.lost_writes.get() && leg.candidate().is_some();
            best = match (leg.leave_at.get(), best) {
                _ if self.is_survivor(other) => return Survivor::Here,
                (_, Survivor::Soon) => Survivor::Soon,
                _ if is_replayed => Survivor::Soon,
                // Its session has just ended: its own task says in a moment since when it is lost.
                (None, _) => Survivor::Soon,
                (Some(at), Survivor::Until(earlier)) => Survivor::Until(at.max(earlier)),
                (Some(at), _) if at > now => Survivor::Until(at),
                (Some(_), best) => best,
            };
        }
        // The manager may have committed the return of a leg that has every change.
        let joining = members.legs.iter().enumerate().any(|(other, m)| other != index && m.role == Role::Joining);
        if joining { Survivor::Soon } else { best }
    }

    /// A required leg has failed something for good: it leaves (S1) if there is a survivor now. Whoever waits for it waits until it
    /// has left: otherwise the two would differ, and both count as in sync.
    pub(crate) fn leaves_broken(&self, index: usize, text: &str) -> bool {
        let leaves = matches!(self.role(index), Role::InSync | Role::Leaving) && self.survivor_of(index) == Survivor::Here;
        if let Some(leg) = self.legs.get(index).filter(|_| leaves && self.note_broken(index, text)) {
            leg.hang_up(End::Lost(text.to_owned()));
        }
        leaves
    }

    /// Answers false if that is known already.
    fn note_broken(&self, index: usize, text: &str) -> bool {
        let Some(leg) = self.legs.get(index).filter(|leg| leg.broken.borrow().is_none()) else { return false };
        tracing::error!(lender = %leg.facts.server_name, text, "the leg leaves its segment");
        leg.broken.replace(Some(text.to_owned()));
        leg.problem.replace(text.to_owned());
        self.shared.changed.notify();
        true
    }

    /// What a change does that a required leg has failed: it waits until that leg has left, or for a survivor; or it fails.
    pub(crate) fn after_failure(&self, index: usize, text: &str) -> Survivor {
        match self.role(index) {
            // The manager may have committed its return already. If it has, the leg leaves again; if not, it is a target that is
            // copied to anew. Before that is known the change has neither succeeded nor failed (S5).
            Role::Joining => {
                self.note_broken(index, text);
                Survivor::Soon
            }
            Role::Left => Survivor::Soon,
            _ if self.leaves_broken(index, text) => Survivor::Here,
            _ => self.survivor_of(index),
        }
    }

    /// A leg that was to leave, but whose survivor is gone too, stays (S1: the last one never leaves): what it has it serves. Says
    /// when to look again.
    pub(crate) fn keep_last(&self) -> Option<Tick> {
        let mut wake: Option<Tick> = None;
        for (index, leg) in self.legs.iter().enumerate() {
            let is_leaving = leg.broken.borrow().is_some() && matches!(self.role(index), Role::InSync | Role::Leaving);
            // One that has lost writes and does not take them again has nothing to serve (W5).
            if !is_leaving || leg.lost_writes.get() {
                continue;
            }
            match self.survivor_of(index) {
                Survivor::Here | Survivor::Soon => {}
                Survivor::Until(at) => wake = Some(wake.map_or(at, |wake: Tick| wake.min(at))),
                Survivor::Nobody => {
                    tracing::error!(lender = %leg.facts.server_name, "the leg has failed and stays: no other one is there");
                    leg.broken.replace(None);
                    self.shared.changed.notify();
                }
            }
        }
        wake
    }

    /// A change has ended with an error: some legs may have it, others not. A target is copied anew (S4); legs that are in sync
    /// count as different there until they have been made equal, as after an unclean close (W1, H3). `failed` is the leg with the
    /// error: if no other one is there, it is the source, and what is away gets what it has.
    pub(crate) fn may_differ(&self, change: &Change, failed: Option<usize>) {
        if matches!(change, Change::Flush) {
            return;
        }
        for index in 0..self.legs.len() {
            self.give_up(index);
        }
        let in_sync = self.members.borrow().which(|m| matches!(m.role, Role::InSync | Role::Leaving));
        if in_sync.len() < 2 || self.shared.is_over() {
            return;
        }
        let (offset, length) = change.span();
        tracing::warn!(segment = self.index, offset, length, "a change failed: the legs may differ there");
        self.exact.set(false);
        self.unequal.borrow_mut().may_differ(offset, length);
        let equal = self.members.borrow().which(|m| matches!(m.role, Role::InSync | Role::Leaving) && m.equal);
        let here = equal.iter().copied().find(|leg| self.is_sound(*leg));
        let source = here.or(failed.filter(|leg| equal.contains(leg))).or(equal.first().copied());
        for leg in in_sync.into_iter().filter(|leg| source.is_some() && Some(*leg) != source) {
            self.set_equal(leg, false);
        }
        self.shared.changed.notify();
    }
}
