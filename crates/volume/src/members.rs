//! Who holds the bytes of a segment: the in-sync set as a pure state machine (S1, S5). No clock, no I/O.

use sublet_api::request::LegAnswer;
use sublet_types::Generation;

/// What a leg is in its segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// In the in-sync set: has every acknowledged write.
    InSync,
    /// Its leaving has begun (S1): writes pause, nothing is acknowledged without it.
    Leaving,
    /// The manager has committed its leaving; the survivors' labels are still to be written (S1).
    Left,
    /// Out of sync, nothing is sent to it.
    Stale,
    /// Being copied to; writes go to it too.
    Copying,
    /// Everything is copied; its return is to be committed (S5).
    Copied,
    /// The manager has been asked to commit its return; whether it has is not known yet (S5).
    Joining,
}

impl Role {
    /// No write is acknowledged without it (W1).
    pub const fn is_required(self) -> bool {
        matches!(self, Role::InSync | Role::Leaving | Role::Left | Role::Joining)
    }

    /// Writes are sent to it.
    pub const fn takes_writes(self) -> bool {
        !matches!(self, Role::Stale)
    }

    /// It is a target of a resync that can simply be given up.
    pub const fn is_optional(self) -> bool {
        matches!(self, Role::Copying | Role::Copied)
    }
}

/// One leg.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// What it is in its segment.
    pub role: Role,
    /// False while it may differ from the others after an unclean close: it is written, but not read.
    pub equal: bool,
    /// It has every write that was acknowledged, also by an earlier client. False only for one that may differ and whose lender
    /// has crashed.
    pub whole: bool,
    /// Its label says the present generation.
    pub labelled: bool,
}

/// A leaving of which it is not known whether the manager has committed it, while the leg is back and nothing was acknowledged
/// without it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Doubt {
    /// Which leg.
    pub leg: usize,
    /// The generation in which it has left, once that is known: its leaving is then withdrawn.
    pub left_in: Option<Generation>,
}

/// The in-sync set of one segment.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Members {
    /// The present one.
    pub generation: Generation,
    /// The generation before, which a label may still have while `labels_due`.
    pub previous: Option<Generation>,
    /// In the order of the segment.
    pub legs: Vec<Member>,
    /// Labels are to be written; writes pause until they are.
    pub labels_due: bool,
    /// The manager has been asked to commit the leaving under way: it may have.
    pub asked: bool,
    /// See there.
    pub doubt: Option<Doubt>,
}

impl Members {
    /// As the mounting information has it.
    pub fn new(generation: Generation, in_sync: impl IntoIterator<Item = bool>) -> Self {
        let member =
            |in_sync| Member { role: if in_sync { Role::InSync } else { Role::Stale }, equal: true, whole: true, labelled: true };
        let legs = in_sync.into_iter().map(member).collect();
        Self { generation, previous: None, legs, labels_due: false, asked: false, doubt: None }
    }

    /// The role of a leg; stale if there is no such leg.
    pub fn role(&self, leg: usize) -> Role {
        self.legs.get(leg).map_or(Role::Stale, |m| m.role)
    }

    /// The legs in these roles.
    pub fn which(&self, wanted: impl Fn(&Member) -> bool) -> Vec<usize> {
        self.legs.iter().enumerate().filter(|(_, m)| wanted(m)).map(|(leg, _)| leg).collect()
    }

    /// New writes wait.
    pub fn paused(&self) -> bool {
        self.labels_due || self.legs.iter().any(|m| matches!(m.role, Role::Leaving | Role::Left))
    }

    /// Could this leg leave? Another one with every acknowledged write must be in sync (S1: the last one never leaves).
    pub fn may_leave(&self, leg: usize) -> bool {
        matches!(self.role(leg), Role::InSync | Role::Leaving)
            && (0..self.legs.len()).any(|other| other != leg && self.may_survive(other))
    }

    /// This leg is in sync and has every acknowledged write. One that may differ has them too if it has lost nothing: what only
    /// the others have was never acknowledged, and never read (H3).
    pub fn may_survive(&self, leg: usize) -> bool {
        self.legs.get(leg).is_some_and(|m| m.role == Role::InSync && m.whole)
    }

    /// Nothing of S1 or S5 is under way.
    pub fn is_calm(&self) -> bool {
        !self.paused()
            && self.doubt.is_none()
            && self.legs.iter().all(|m| matches!(m.role, Role::InSync | Role::Stale) && m.equal)
    }

    /// The in-sync legs hold the same bytes and labels; only then is a close clean. A resync under way does not matter.
    pub fn is_whole(&self) -> bool {
        !self.paused() && self.doubt.is_none() && self.all_equal() && self.legs.iter().all(|m| m.role != Role::Joining)
    }

    fn set(&mut self, leg: usize, role: Role) {
        if let Some(m) = self.legs.get_mut(leg) {
            tracing::info!(leg, from = ?m.role, to = ?role, generation = self.generation.number, "leg changes its role");
            m.role = role;
        }
    }

    fn adopt(&mut self, generation: Generation) {
        // A generation that no label has got yet leaves the one before it in the labels.
        let unwritten = self.labels_due && self.legs.iter().all(|m| m.role != Role::InSync || !m.labelled);
        if self.generation != generation && !(unwritten && self.previous.is_some()) {
            self.previous = Some(self.generation);
        }
        self.generation = generation;
        self.labels_due = true;
        for m in &mut self.legs {
            m.labelled = false;
        }
    }

    /// S1 begins: writes pause.
    pub fn begin_leaving(&mut self, leg: usize) {
        assert_eq!(self.role(leg), Role::InSync, "only an in-sync leg leaves");
        assert_eq!(self.doubt, None, "the manager's answer to an earlier question comes first");
        self.set(leg, Role::Leaving);
        self.asked = false;
    }

    /// The leg is back before anything was acknowledged without it. If the manager was asked, its answer is still owed.
    pub fn cancel_leaving(&mut self, leg: usize) {
        assert_eq!(self.role(leg), Role::Leaving, "only a leaving leg is kept");
        self.set(leg, Role::InSync);
        if self.asked {
            self.doubt = Some(Doubt { leg, left_in: None });
        }
    }

    /// The manager has committed the leaving of a leg.
    pub fn has_left(&mut self, leg: usize, answer: &LegAnswer) {
        assert!(matches!(self.role(leg), Role::Leaving | Role::InSync), "a leg leaves from the in-sync set");
        self.set(leg, Role::Left);
        self.asked = false;
        self.doubt = None;
        self.adopt(answer.generation);
        // The source has left before the others were made equal to it: one that has lost nothing is as good (H3).
        if !self.legs.iter().any(|m| m.role == Role::InSync && m.equal)
            && let Some(source) = (0..self.legs.len()).find(|leg| self.may_survive(*leg))
        {
            self.became_source(source);
            if let Some(m) = self.legs.get_mut(leg) {
                m.equal = false;
            }
        }
    }

    /// Where legs may differ, this one is right (H3).
    pub fn became_source(&mut self, leg: usize) {
        tracing::info!(leg, "this leg is the source");
        if let Some(m) = self.legs.get_mut(leg) {
            (m.equal, m.whole) = (true, true);
        }
    }

    /// The leaving of a leg was withdrawn: it never left.
    pub fn was_withdrawn(&mut self, answer: &LegAnswer) {
        self.doubt = None;
        self.adopt(answer.generation);
    }

    /// Labels are due in the present generation, because the legs have become equal.
    pub fn became_equal(&mut self) {
        let generation = self.generation;
        self.adopt(generation);
    }

    /// A leg's label has been written; when all are, writes resume. Answers true then.
    pub fn label_written(&mut self, leg: usize, generation: Generation) -> bool {
        if generation != self.generation {
            return false;
        }
        if let Some(m) = self.legs.get_mut(leg) {
            m.labelled = true;
        }
        let done = self.labels_due && self.legs.iter().all(|m| m.role != Role::InSync || m.labelled);
        if done {
            self.labels_due = false;
            self.previous = None;
            for leg in self.which(|m| m.role == Role::Left) {
                self.set(leg, Role::Stale);
            }
        }
        done
    }

    /// A stale leg is there again: writes go to it from now on, and it is copied to.
    pub fn begin_copying(&mut self, leg: usize) {
        assert_eq!(self.role(leg), Role::Stale, "only a stale leg is copied to");
        self.set(leg, Role::Copying);
    }

    /// All bytes are copied.
    pub fn copied(&mut self, leg: usize) {
        assert_eq!(self.role(leg), Role::Copying, "only a leg being copied to is copied");
        self.set(leg, Role::Copied);
    }

    /// The target failed: only the resync is given up.
    pub fn give_up_copying(&mut self, leg: usize) {
        if self.role(leg).is_optional() {
            self.set(leg, Role::Stale);
        }
    }

    /// The manager is about to be asked for the commit.
    pub fn begin_joining(&mut self, leg: usize) {
        assert_eq!(self.role(leg), Role::Copied, "only a copied leg joins");
        self.set(leg, Role::Joining);
    }

    /// The commit point of S5.
    pub fn has_joined(&mut self, leg: usize, answer: &LegAnswer) {
        assert_eq!(self.role(leg), Role::Joining, "only a joining leg has joined");
        self.set(leg, Role::InSync);
        self.adopt(answer.generation);
        if let Some(m) = self.legs.get_mut(leg) {
            (m.labelled, m.equal, m.whole) = (true, true, true);
        }
    }

    /// The manager refused the commit.
    pub fn join_refused(&mut self, leg: usize) {
        assert_eq!(self.role(leg), Role::Joining, "only a joining leg is refused");
        self.set(leg, Role::Stale);
    }

    /// The flags of SET_STATE for the present generation.
    pub fn in_sync_flags(&self) -> Vec<bool> {
        self.legs.iter().map(|m| m.role == Role::InSync).collect()
    }

    /// All legs of the in-sync set hold the same bytes.
    pub fn all_equal(&self) -> bool {
        self.legs.iter().all(|m| m.role != Role::InSync || m.equal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(number: u64) -> Generation {
        Generation { number, random: number.into() }
    }

    fn answer(number: u64, in_sync: &[bool]) -> LegAnswer {
        LegAnswer { generation: generation(number), in_sync: in_sync.to_vec() }
    }

    #[test]
    fn s1_a_leg_is_required_until_the_survivors_labels_are_written() {
        let mut m = Members::new(generation(1), [true, true, true]);
        m.begin_leaving(1);
        assert!(m.paused() && m.role(1).is_required());
        m.has_left(1, &answer(2, &[true, false, true]));
        assert!(m.paused() && m.role(1).is_required());
        assert!(!m.label_written(0, generation(2)));
        assert!(m.paused() && m.role(1).is_required());
        assert!(!m.label_written(2, generation(1)), "a label of an older generation does not count");
        assert!(m.label_written(2, generation(2)));
        assert!(!m.paused() && !m.role(1).is_required());
    }

    #[test]
    fn s1_the_last_readable_leg_never_leaves() {
        let mut m = Members::new(generation(1), [true, false]);
        assert!(!m.may_leave(0));
        m = Members::new(generation(1), [true, true]);
        assert!(m.may_leave(0) && m.may_leave(1));
        m.legs[1].equal = false;
        assert!(m.may_leave(0) && m.may_leave(1), "what only the other one has was never acknowledged");
        m.legs[1].whole = false;
        assert!(!m.may_leave(0) && m.may_leave(1), "a leg that may differ and has crashed is no survivor");
    }

    #[test]
    fn s1_h3_when_the_source_has_left_one_that_has_lost_nothing_is_the_source() {
        let mut m = Members::new(generation(1), [true, true, true]);
        for leg in [1, 2] {
            m.legs[leg].equal = false;
        }
        m.legs[1].whole = false;
        m.begin_leaving(0);
        assert!(!m.legs[2].equal, "it may still stay");
        m.has_left(0, &answer(2, &[false, true, true]));
        assert!(m.legs[2].equal && !m.legs[1].equal && !m.all_equal());
        assert!(!m.legs[0].equal, "it may differ from the new source");
    }

    #[test]
    fn s5_a_leg_that_leaves_before_the_labels_know_of_its_return_leaves_the_older_generation_in_them() {
        let mut m = Members::new(generation(2), [true, false]);
        m.begin_copying(1);
        m.copied(1);
        m.begin_joining(1);
        // 3 was issued and came to nothing.
        m.has_joined(1, &answer(4, &[true, true]));
        m.begin_leaving(1);
        m.has_left(1, &answer(5, &[true, false]));
        assert_eq!(m.previous, Some(generation(2)), "the label of leg 0, which may have to be opened anew");
        assert!(m.label_written(0, generation(5)));
        assert_eq!(m.previous, None);
    }

    #[test]
    fn s5_a_target_is_optional_until_the_manager_is_asked() {
        let mut m = Members::new(generation(1), [true, false]);
        assert!(!m.role(1).takes_writes());
        m.begin_copying(1);
        assert!(m.role(1).takes_writes() && m.role(1).is_optional());
        m.copied(1);
        assert!(m.role(1).is_optional());
        m.begin_joining(1);
        assert!(m.role(1).is_required());
        m.has_joined(1, &answer(2, &[true, true]));
        assert!(m.paused());
        assert!(m.label_written(0, generation(2)));
        assert!(m.is_calm());
        assert_eq!(m.in_sync_flags(), [true, true]);
    }

    #[test]
    fn s1_a_leg_that_is_back_in_time_stays_and_an_unanswered_question_stays_open() {
        let mut m = Members::new(generation(1), [true, true]);
        m.begin_leaving(0);
        m.cancel_leaving(0);
        assert!(m.is_calm());
        m.begin_leaving(0);
        m.asked = true;
        m.cancel_leaving(0);
        assert_eq!(m.doubt, Some(Doubt { leg: 0, left_in: None }));
        assert!(!m.paused(), "writes go on, on both legs");
    }
}
