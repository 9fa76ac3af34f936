//! What the manager asks of the engine besides requests: rates, and what it has recorded.

use sublet_doors::Doors;

use crate::Volume;
use crate::options::ManagerDoor;

impl<D: Doors, M: ManagerDoor> Volume<D, M> {
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
}
