//! Whoever fails to prove who they are again and again has to wait: guessing is hopeless anyway, and must not be cheap for the
//! manager either.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many failures of one address are free.
const FAILURES_FREE: u32 = 10;
/// One of them is forgiven after so long.
const FORGIVEN_AFTER: Duration = Duration::from_secs(6);
/// Addresses that are remembered at most; more, and those that failed longest ago are forgotten.
const ADDRESSES_MAX: usize = 10_000;

#[derive(Default)]
pub(crate) struct Throttle {
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

fn left(count: u32, since: Instant, now: Instant) -> u32 {
    let forgiven = now.saturating_duration_since(since).as_millis() / FORGIVEN_AFTER.as_millis();
    count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
}

impl Throttle {
    /// Whether this address has to wait, as of `now`.
    pub(crate) fn is_held(&self, from: IpAddr, now: Instant) -> bool {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(&from).is_some_and(|(count, since)| left(*count, *since, now) >= FAILURES_FREE)
    }

    /// This address has failed to prove who it is.
    pub(crate) fn failed(&self, from: IpAddr, now: Instant) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= ADDRESSES_MAX && !failures.contains_key(&from) {
            failures.retain(|_, (count, since)| left(*count, *since, now) > 0);
            if failures.len() >= ADDRESSES_MAX
                && let Some(oldest) = failures.iter().min_by_key(|(_, (_, since))| *since).map(|(from, _)| *from)
            {
                failures.remove(&oldest);
            }
        }
        let entry = failures.entry(from).or_insert((0, now));
        *entry = (left(entry.0, entry.1, now).saturating_add(1).min(FAILURES_FREE * 2), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_waits_and_others_do_not() {
        let throttle = Throttle::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let now = Instant::now();
        for _ in 0..FAILURES_FREE {
            assert!(!throttle.is_held(one, now));
            throttle.failed(one, now);
        }
        assert!(throttle.is_held(one, now));
        assert!(!throttle.is_held(other, now));
        assert!(!throttle.is_held(one, now + FORGIVEN_AFTER));
        throttle.failed(one, now + FORGIVEN_AFTER);
        assert!(throttle.is_held(one, now + FORGIVEN_AFTER));
        assert!(!throttle.is_held(one, now + FORGIVEN_AFTER * 30));
    }

    #[test]
    fn what_it_remembers_is_bounded() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 50 {
            throttle.failed(IpAddr::from(n.to_be_bytes()), now);
        }
        assert_eq!(throttle.failures.lock().unwrap().len(), ADDRESSES_MAX);
    }
}
