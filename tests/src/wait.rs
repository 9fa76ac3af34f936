//! Waiting for a state instead of sleeping.

use std::time::{Duration, Instant};

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// True once `condition` holds; false if it does not within `limit`.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `condition` holds, and returns how long that took.
///
/// # Panics
/// It does not hold within `limit`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    assert!(holds_within(limit, condition), "{what}: not within {} s", limit.as_secs_f32());
    begun.elapsed()
}
