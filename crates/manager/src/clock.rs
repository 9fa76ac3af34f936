//! Time for the core.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 that never go back and never jump while the manager runs: read from the wall clock once, and
/// counted from there. Were the core's time limits to follow the wall clock, correcting it by an hour would make every
/// server look lost, or hold every answer for an hour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_ms: u64,
}

impl Clock {
    /// Reads the wall clock; one that is set before 1970 counts as 1970.
    pub(crate) fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { start: Instant::now(), start_ms: u64::try_from(since_1970.as_millis()).unwrap_or(0) }
    }

    /// Now, in milliseconds since 1970 (UTC).
    pub(crate) fn now_ms(&self) -> u64 {
        self.start_ms + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(0)
    }

    /// The instant of a time, for waiting; none if it is too far away to be waited for.
    pub(crate) fn instant_of(&self, at_ms: u64) -> Option<Instant> {
        self.start.checked_add(Duration::from_millis(at_ms.saturating_sub(self.start_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instant_of_a_time_is_when_that_time_has_come() {
        let clock = Clock::start();
        let at_ms = clock.now_ms() + 30;
        let instant = clock.instant_of(at_ms).unwrap();
        assert!(instant > Instant::now());
        std::thread::sleep(instant.saturating_duration_since(Instant::now()));
        assert!(clock.now_ms() >= at_ms);
        assert!(clock.instant_of(0).unwrap() <= Instant::now());
    }
}
