//! The `Clock` door.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};

/// A point in time of a monotonic clock, in nanoseconds since some start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Tick(pub u64);

impl Tick {
    /// The time from `earlier` to here; zero if `earlier` is later.
    pub const fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The time limit was over before the work was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimedOut;

/// Tells the time and waits. Safety never depends on it (F4), only liveness does.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait Clock {
    /// Now, on the monotonic clock.
    fn now(&self) -> Tick;

    /// Now, in milliseconds since 1970 (UTC): for people only.
    fn wall_ms(&self) -> u64;

    /// Waits so long.
    async fn sleep(&self, time: Duration);

    /// Waits for `work`, but no longer than `limit`; the work is dropped then.
    ///
    /// # Errors
    /// [`TimedOut`] if the limit was over first.
    async fn timeout<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T, TimedOut> {
        let work = pin!(work);
        let sleep = pin!(self.sleep(limit));
        match select(work, sleep).await {
            Either::Left((value, _)) => Ok(value),
            Either::Right(((), _)) => Err(TimedOut),
        }
    }
}
