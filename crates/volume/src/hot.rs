//! Hot regions (H2): which regions of a segment its lenders keep marked because they were written, and when they may cool.
//!
//! A region cools by the client's order only: nothing is in flight to it, and all in-sync legs have acknowledged a flush that was
//! begun after its last write had ended. There are at most so many hot regions; when another one is needed, the oldest are cooled
//! first and the change waits.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use sublet_doors::{Doors, Tick};
use sublet_types::drawn::{self, Drawn};

use crate::change::Change;
use crate::error::VolumeError;
use crate::leg::hung_max;
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::SessionError;
use crate::volume::Inner;

/// A region that has not been written for so long cools.
const COOL_AFTER: Duration = Duration::from_secs(10);
/// How often it is looked for such regions.
const COOL_INTERVAL: Duration = Duration::from_secs(2);
/// When there are too many, so large a part of them is cooled at once, so that not every write has to wait for it.
const COOLED_AT_ONCE: usize = 8;

/// When regions could not be cooled that must be, it is tried again after so long.
const COOL_RETRY: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
struct Region {
    in_flight: u32,
    /// When its last write ended.
    last: Tick,
    /// The same by the count of writes and flushes; none while it is durable at all legs.
    ended: Option<u64>,
    /// Its cooling is under way: changes wait.
    cooling: bool,
}

/// See the module. Pure.
#[derive(Default)]
pub(crate) struct Hot {
    regions: BTreeMap<u32, Region>,
    count: u64,
}

impl Hot {
    /// May a change of these regions begin?
    pub(crate) fn admits(&self, regions: Range<u32>, max: usize) -> bool {
        let known = self.regions.range(regions.clone());
        let (mut there, mut cooling) = (0, false);
        for (_, region) in known {
            there += 1;
            cooling |= region.cooling;
        }
        let fresh = regions.len().saturating_sub(there);
        // A change of more regions than there may be goes alone.
        !cooling && (fresh == 0 || self.regions.len() + fresh <= max || self.regions.len() == there)
    }

    /// A change of these regions is sent.
    pub(crate) fn begin(&mut self, regions: Range<u32>, now: Tick) {
        for region in regions {
            let fresh = Region { in_flight: 0, last: now, ended: None, cooling: false };
            let region = self.regions.entry(region).or_insert(fresh);
            region.in_flight += 1;
            region.ended = Some(u64::MAX);
        }
    }

    /// It has ended, at whatever legs.
    pub(crate) fn end(&mut self, regions: Range<u32>, now: Tick) {
        self.count += 1;
        for (_, region) in self.regions.range_mut(regions) {
            region.in_flight -= 1;
            region.last = now;
            region.ended = Some(if region.in_flight == 0 { self.count } else { u64::MAX });
        }
    }

    /// Regions that a lender keeps hot from before; whether what they hold is durable is not known.
    pub(crate) fn adopt(&mut self, regions: impl IntoIterator<Item = u32>, now: Tick) {
        self.count += 1;
        for region in regions {
            let fresh = Region { in_flight: 0, last: now, ended: None, cooling: false };
            let region = self.regions.entry(region).or_insert(fresh);
            region.ended = region.ended.max(Some(self.count));
        }
    }

    /// To be taken before a flush is sent.
    pub(crate) fn mark(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// A flush begun at that mark has succeeded at all legs.
    pub(crate) fn flushed(&mut self, mark: u64) {
        for region in self.regions.values_mut().filter(|region| region.ended.is_some_and(|ended| ended < mark)) {
            region.ended = None;
        }
    }

    /// Regions without a write since then; and whether they must be flushed first.
    fn idle_since(&self, since: Tick) -> (Vec<u32>, bool) {
        let idle = || self.regions.iter().filter(|(_, r)| r.in_flight == 0 && !r.cooling && r.last <= since);
        (idle().map(|(number, _)| *number).collect(), idle().any(|(_, region)| region.ended.is_some()))
    }

    /// The regions that were written longest ago, as many as are to go, of those that may.
    fn oldest(&self, n: usize, may_cool: impl Fn(u32) -> bool) -> Vec<u32> {
        let quiet = self.regions.iter().filter(|(number, r)| r.in_flight == 0 && !r.cooling && may_cool(**number));
        let mut quiet: Vec<(Tick, u32)> = quiet.map(|(number, r)| (r.last, *number)).collect();
        quiet.sort_unstable();
        quiet.into_iter().take(n).map(|(_, number)| number).collect()
    }

    /// Of these, the ones that may cool now; changes of them wait from now on.
    fn begin_cooling(&mut self, regions: &[u32]) -> Vec<u32> {
        let mut chosen = Vec::new();
        for number in regions {
            if let Some(region) = self.regions.get_mut(number).filter(|r| r.in_flight == 0 && r.ended.is_none() && !r.cooling) {
                region.cooling = true;
                chosen.push(*number);
            }
        }
        chosen
    }

    /// The lenders have answered; `cooled` if all have cooled them.
    fn end_cooling(&mut self, regions: &[u32], cooled: bool) {
        for number in regions {
            let Some(region) = self.regions.get_mut(number) else { continue };
            region.cooling = false;
            // Unless it was copied to meanwhile.
            if cooled && region.ended.is_none() {
                self.regions.remove(number);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.regions.len()
    }
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// How many regions may be hot: what every lender allows.
    fn hot_max(&self) -> usize {
        let sessions = self.legs.iter().filter_map(|leg| leg.session()?.opened());
        sessions.map(|opened| opened.hot_max).min().map_or(usize::MAX, |max| (max as usize).max(1))
    }

    /// Regions that lenders keep hot from before, or because of a copy. With one leg the lender cools by itself.
    pub(crate) fn adopt_hot(&self, regions: impl IntoIterator<Item = u32>) {
        if self.legs.len() > 1 && !self.shared.info.read_only {
            self.hot.borrow_mut().adopt(regions, self.shared.doors.now());
        }
    }

    /// A change of these regions needs no other to cool first.
    pub(crate) fn admits(&self, regions: Range<u32>) -> bool {
        self.hot.borrow().admits(regions, self.hot_max())
    }

    /// Waits until a change of these regions may be sent (H2); answers true once it may.
    pub(crate) async fn admit(self: &Rc<Self>, regions: Range<u32>) -> Result<bool, VolumeError> {
        if self.admits(regions.clone()) {
            return Ok(true);
        }
        let max = self.hot_max();
        let seen = self.shared.changed.version();
        // Regions that may differ stay hot until they are equal, and whoever makes them so tells it (H3).
        let is_equal = |region| !self.unequal.borrow().has(region);
        let due = self.hot.borrow().oldest(regions.len().max(max / COOLED_AT_ONCE).max(1), is_equal);
        if self.cooling.get() || due.is_empty() || !self.may_cool() {
            self.hot_waiters.set(self.hot_waiters.get() + 1);
            self.shared.changed.changed(seen).await;
            self.hot_waiters.set(self.hot_waiters.get() - 1);
        } else {
            self.change(&Change::Flush).await?;
            if !self.cool(due).await {
                // Not flush after flush, should a lender refuse.
                self.shared.pause(COOL_RETRY).await;
            }
        }
        Ok(false)
    }

    /// All in-sync legs are there, and nothing is changing about them.
    fn may_cool(&self) -> bool {
        let members = self.members.borrow();
        let in_sync = members.which(|m| m.role == Role::InSync);
        let settled = !members.paused() && members.doubt.is_none() && members.which(|m| m.role == Role::Joining).is_empty();
        settled && in_sync.iter().all(|leg| self.legs.get(*leg).is_some_and(|leg| leg.session().is_some()))
    }

    /// Orders the in-sync legs to cool these regions, of those the ones for which H2 allows it. Regions that may differ stay hot
    /// until they are equal: their marks are all that is known of it (H3). False if nothing could be cooled.
    pub(crate) async fn cool(&self, mut regions: Vec<u32>) -> bool {
        regions.retain(|region| !self.unequal.borrow().has(*region));
        if !self.may_cool() || self.cooling.replace(true) {
            return false;
        }
        let regions = self.hot.borrow_mut().begin_cooling(&regions);
        let legs = self.members.borrow().which(|m| m.role == Role::InSync);
        let sessions: Vec<_> = legs.into_iter().filter_map(|leg| self.legs.get(leg)?.session()).collect();
        let orders = sessions.iter().map(|session| async {
            match self.shared.doors.timeout(hung_max(), session.cool(&regions)).await {
                Ok(Ok(())) => true,
                Ok(Err(SessionError::Refused(status, text))) => {
                    tracing::warn!(segment = self.index, ?status, text, "a lender does not cool its regions");
                    false
                }
                // What became of it is not known: they count as hot.
                Ok(Err(SessionError::Lost)) | Err(_) => false,
            }
        });
        let cooled = regions.is_empty() || join_all(orders).await.into_iter().all(|cooled| cooled);
        self.hot.borrow_mut().end_cooling(&regions, cooled);
        self.cooling.set(false);
        self.shared.changed.notify();
        cooled && !regions.is_empty()
    }

    /// Cools what has been idle for long.
    async fn cool_idle(self: &Rc<Self>) {
        let now = self.shared.doors.now();
        let cool_after = drawn::time(Drawn::ClientCoolAfter, COOL_AFTER);
        let since = Tick(now.0.saturating_sub(u64::try_from(cool_after.as_nanos()).unwrap_or(u64::MAX)));
        let (idle, unflushed) = self.hot.borrow().idle_since(since);
        if idle.is_empty() || !self.may_cool() {
            return;
        }
        if unflushed && let Err(error) = self.change(&Change::Flush).await {
            tracing::debug!(segment = self.index, %error, "regions do not cool: they were not flushed");
            return;
        }
        self.cool(idle).await;
    }
}

impl<D: Doors, M: ManagerDoor> Inner<D, M> {
    /// Cools regions that are not written any more, as long as the volume lives.
    pub(crate) async fn watch_hot(self: Rc<Self>) {
        let shared = &self.shared;
        while !shared.is_over() {
            let seen = shared.changed.version();
            if self.segments.iter().all(|segment| segment.hot.borrow().len() == 0) || !shared.is_running() {
                // The first write of a segment with nothing hot wakes.
                shared.changed.changed(seen).await;
                continue;
            }
            shared.pause(COOL_INTERVAL).await;
            for segment in self.segments.iter().filter(|_| shared.is_running()) {
                segment.cool_idle().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2_a_region_cools_only_after_a_flush_that_was_begun_after_its_last_write_had_ended() {
        let mut hot = Hot::default();
        hot.begin(0..2, Tick(1));
        let early = hot.mark();
        hot.end(0..2, Tick(2));
        hot.flushed(early);
        assert!(hot.begin_cooling(&[0, 1]).is_empty(), "the flush was begun before the write had ended");
        let mark = hot.mark();
        hot.begin(1..2, Tick(3));
        hot.flushed(mark);
        assert_eq!(hot.begin_cooling(&[0, 1]), [0], "one is in flight");
        assert!(!hot.admits(0..1, 100), "changes wait while it cools");
        hot.end_cooling(&[0], true);
        assert!(hot.admits(0..1, 100));
        hot.end(1..2, Tick(4));
        assert_eq!(hot.idle_since(Tick(4)), (vec![1], true));
        assert!(hot.idle_since(Tick(3)).0.is_empty());
        assert_eq!(hot.len(), 1);
    }

    #[test]
    fn h2_the_number_of_hot_regions_is_capped_and_the_oldest_go_first() {
        let mut hot = Hot::default();
        for region in [3, 1, 2] {
            hot.begin(region..region + 1, Tick(0));
            hot.end(region..region + 1, Tick(u64::from(10 - region)));
        }
        assert!(hot.admits(1..4, 3) && !hot.admits(4..5, 3) && hot.admits(4..5, 4));
        assert_eq!(hot.oldest(2, |_| true), [3, 2]);
        assert_eq!(hot.oldest(2, |region| region != 3), [2, 1]);
        hot.begin(3..4, Tick(20));
        assert_eq!(hot.oldest(2, |_| true), [2, 1]);
        assert!(Hot::default().admits(0..9, 3), "alone");
    }
}
