//! The rate of background work: as fast as it goes while nobody uses the volume, bounded while somebody does.

use std::cell::Cell;
use std::time::Duration;

use sublet_doors::{Doors, Tick};

use crate::options::ManagerDoor;
use crate::shared::Shared;

/// Copies and scrubs of a volume that is in use run at most at so many bytes a second, unless another rate was chosen.
pub(crate) const RATE_DEFAULT: u64 = 200 << 20;
/// A volume that has had no request for so long is not in use.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// How often a paused work looks whether it may go on.
const PAUSE_INTERVAL: Duration = Duration::from_millis(500);
/// Over how much time the rate that is told is taken.
const MEASURED_OVER: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(crate) struct Throttle {
    /// Bytes a second that were chosen; 0 is the default.
    rate_max: Cell<u64>,
    paused: Cell<bool>,
    /// The next bytes may go then.
    next: Cell<Tick>,
    /// Bytes since when, and the rate before; nothing before the first bytes of a work.
    measured: Cell<Option<(Tick, u64, u64)>>,
}

impl Throttle {
    /// Another work begins: how fast the last one was says nothing of it.
    pub(crate) fn begin(&self) {
        self.measured.set(None);
    }

    /// Chooses the rate, in bytes a second (0: the default), and whether it rests.
    pub(crate) fn set(&self, rate_max: u64, paused: bool) {
        self.rate_max.set(rate_max);
        self.paused.set(paused);
    }

    /// It rests.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Waits until so many bytes more may be worked on.
    pub(crate) async fn take<D: Doors, M: ManagerDoor>(&self, shared: &Shared<D, M>, bytes: u64) {
        self.rest(shared).await;
        let now = shared.doors.now();
        let in_use = shared.in_use() > 0 || now.since(shared.last_use()) < IDLE_AFTER;
        let rate = match self.rate_max.get() {
            0 if in_use => Some(RATE_DEFAULT),
            0 => None,
            chosen => Some(chosen),
        };
        let from = self.next.get().max(now);
        let cost = rate.map_or(0, |rate| u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX));
        self.next.set(Tick(from.0.saturating_add(cost)));
        if from > now {
            shared.pause(from.since(now)).await;
            self.rest(shared).await;
        }
        // Not before they may go: several wait here at a time, and would be told as faster than the limit.
        self.count(shared.doors.now(), bytes);
    }

    async fn rest<D: Doors, M: ManagerDoor>(&self, shared: &Shared<D, M>) {
        while self.paused.get() && !shared.is_over() {
            shared.pause(PAUSE_INTERVAL).await;
        }
    }

    fn count(&self, now: Tick, bytes: u64) {
        let (since, sum, rate) = self.measured.get().unwrap_or((now, 0, 0));
        let took = now.since(since);
        self.measured.set(Some(if took >= MEASURED_OVER {
            let per_s = u128::from(sum) * 1_000_000_000 / took.as_nanos().max(1);
            (now, bytes, u64::try_from(per_s).unwrap_or(u64::MAX))
        } else {
            (since, sum + bytes, rate)
        }));
    }

    /// How fast it was lately, in bytes a second; 0 if that is not known, or while it rests.
    pub(crate) fn rate(&self) -> u64 {
        self.measured.get().filter(|_| !self.paused.get()).map_or(0, |(.., rate)| rate)
    }
}
