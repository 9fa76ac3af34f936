//! How many connections each machine has: none may have so many that there is no room for others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sublet_link::machine_of;

/// Connections of one machine at a time; further ones are closed at once. A server holds one for its polls, a mounted volume one
/// for its reports.
pub(crate) const PER_MACHINE_MAX: usize = 2048;

/// What is known of one machine.
#[derive(Clone, Copy, Default)]
struct Count {
    open: usize,
    /// Whether it was said that it has too many: otherwise whoever floods the port fills the log as well.
    told: bool,
}

/// The connections of each machine that has any.
#[derive(Clone, Default)]
pub(crate) struct Crowd(Arc<Mutex<HashMap<IpAddr, Count>>>);

/// One connection, until it is dropped.
pub(crate) struct Place {
    crowd: Crowd,
    machine: IpAddr,
}

impl Crowd {
    /// Counts a connection; none if its machine has `max` already.
    pub(crate) fn enter(&self, from: IpAddr, max: usize) -> Option<Place> {
        let machine = machine_of(from);
        let mut counts = self.counts();
        let count = counts.entry(machine).or_default();
        if count.open >= max {
            if !std::mem::replace(&mut count.told, true) {
                tracing::warn!(%machine, "has {max} connections; more of them are closed until some end");
            }
            return None;
        }
        count.open += 1;
        drop(counts);
        Some(Place { crowd: self.clone(), machine })
    }

    /// A count is never half changed.
    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        if let Some(count) = counts.get_mut(&self.machine) {
            count.open = count.open.saturating_sub(1);
            if count.open == 0 {
                counts.remove(&self.machine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_too_many_connections_gets_no_more_and_others_do() {
        let crowd = Crowd::default();
        let (one, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut places: Vec<Place> = (0..3).map(|_| crowd.enter(one, 3).unwrap()).collect();
        assert!(crowd.enter(one, 3).is_none() && crowd.enter(one, 3).is_none());
        let beside = crowd.enter(other, 3).expect("there is room for others");
        places.pop();
        places.push(crowd.enter(one, 3).expect("who has ended makes room"));
        assert!(crowd.enter(one, 3).is_none());
        drop((places, beside));
        assert!(crowd.counts().is_empty(), "nobody is remembered");
    }
}
