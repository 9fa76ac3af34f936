//! The clock of the machine.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use super::RealDoors;
use crate::{Clock, Tick};

/// Longer sleeps are cut to this, so that no sum of times overflows.
const SLEEP_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The first look at the clock in this process: ticks of all threads count from here.
static START: OnceLock<Instant> = OnceLock::new();

impl Clock for RealDoors {
    fn now(&self) -> Tick {
        let start = *START.get_or_init(Instant::now);
        Tick(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall_ms(&self) -> u64 {
        // Before 1970 the clock is wrong anyway; it is for people only.
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    }

    async fn sleep(&self, time: Duration) {
        compio::time::sleep(time.min(SLEEP_MAX)).await;
    }
}
