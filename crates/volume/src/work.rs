//! What the manager asks of the engine besides requests: background work, rates, other legs.

use std::rc::Rc;

use sublet_api::mount::{MountLeg, MountSegment};
use sublet_api::work::Work;
use sublet_doors::Doors;

use crate::Volume;
use crate::leg::{self, Leg};
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::End;

impl<D: Doors, M: ManagerDoor> Volume<D, M> {
    /// Does the scrubs that are listed and ends those that are not; a path that idles is opened for any work. Idempotent.
    pub fn set_work(&self, work: &[Work]) {
        self.inner.set_scrubs(work);
        if !work.is_empty() {
            let shared = Rc::clone(&self.inner.shared);
            self.inner.shared.doors.spawn(async move {
                // A volume that is being closed needs no path any more.
                let _ = shared.begin().await;
            });
        }
    }

    /// Resyncs copy at most so many bytes a second (0: 200 MiB while the volume is in use, and as fast as it goes while it is
    /// not), or rest.
    pub fn set_resync(&self, rate_max: u64, is_paused: bool) {
        self.inner.shared.throttle.set(rate_max, is_paused);
        self.inner.shared.changed.notify();
    }

    /// The manager has recorded the findings up to this number ([`crate::PathStatus::findings`]).
    pub fn findings_seen(&self, number: u64) {
        self.inner.shared.findings.borrow_mut().seen(number);
    }

    /// Takes over the segments as they are now: where a stale leg has another slice, the old one is let go and the new one is a
    /// stale leg that holds nothing. A leg that is still in sync here stays until it has left (S1). Idempotent.
    pub fn take_segments(&self, segments: &[MountSegment]) -> bool {
        for (segment, facts) in self.inner.segments.iter().zip(segments) {
            for (index, facts) in facts.legs.iter().enumerate() {
                segment.take_leg(index, facts);
            }
        }
        let same = |segment: &Rc<Segment<D, M>>, facts: &MountSegment| {
            facts
                .legs
                .iter()
                .enumerate()
                .all(|(index, facts)| segment.legs.get(index).is_some_and(|leg| leg.facts.slice == facts.slice))
        };
        self.inner.segments.iter().zip(segments).all(|(segment, facts)| same(segment, facts))
    }
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    fn take_leg(self: &Rc<Self>, index: usize, facts: &MountLeg) {
        let Some(old) = self.legs.get(index) else { return };
        // An answer that comes late must not bring a former slice back.
        let is_former = self.former_slices.borrow().contains(&facts.slice);
        if old.facts.slice == facts.slice || facts.in_sync || is_former {
            return;
        }
        self.give_up(index);
        if self.role(index) != Role::Stale {
            return;
        }
        tracing::info!(segment = self.index, index, old = %old.facts.slice, new = %facts.slice, "another slice takes a leg's place");
        self.former_slices.borrow_mut().push(old.facts.slice);
        self.shared.add_lender(facts.server, facts.addresses.clone());
        let fresh = Leg::new(facts.clone(), self.shared.doors.now(), self.shared.doors.wall_ms());
        self.legs.replace(index, fresh);
        old.hang_up(End::Unwanted);
        self.shared.doors.spawn(leg::run(Rc::clone(self), index));
        self.shared.changed.notify();
    }
}
