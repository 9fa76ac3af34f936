//! After an unclean close the legs of a segment may differ in what was in flight: one is the source, the others are made equal
//! to it before they are read.

use sublet_doors::Doors;

use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Weighs the *unclean* flags of the legs that are open, once, before anything is read. The lowest open leg is the source.
    pub(crate) fn settle(&self) {
        if self.settled.replace(true) {
            return;
        }
        let in_sync = self.members.borrow().which(|m| m.role == Role::InSync);
        let open: Vec<usize> = in_sync.iter().copied().filter(|leg| self.is_sound(*leg)).collect();
        let unclean = open.iter().filter_map(|leg| self.legs.get(*leg)?.session()?.opened()).any(|opened| opened.unclean);
        let differ = unclean && in_sync.len() > 1;
        for leg in &in_sync {
            let Some(facts) = self.legs.get(*leg) else { continue };
            facts.judged.set(differ || open.contains(leg));
            if differ && open.first() != Some(leg) {
                tracing::info!(
                    segment = self.index,
                    leg,
                    "the last client did not close cleanly: this leg is copied before it is read"
                );
                self.set_equal(*leg, false);
            }
        }
    }

    /// A leg that was not there when the flags were weighed comes with its own.
    pub(crate) fn note_unclean(&self, leg: usize, unclean: bool) {
        let Some(facts) = self.legs.get(leg) else { return };
        if !self.settled.get() || facts.judged.replace(true) || !unclean {
            return;
        }
        let others = self.members.borrow().which(|m| m.role == Role::InSync && m.equal);
        if others.iter().any(|other| *other != leg) {
            self.set_equal(leg, false);
        }
    }

    /// Marks a leg as equal to the others, or not.
    pub(crate) fn set_equal(&self, leg: usize, equal: bool) {
        if let Some(m) = self.members.borrow_mut().legs.get_mut(leg) {
            m.equal = equal;
        }
    }
}
