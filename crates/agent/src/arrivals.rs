//! Connections that have not asked for a session yet. Anybody can make one, so there is room for few, and a newcomer is never
//! the one who has to go: a borrower has said HELLO and OPEN within milliseconds, and who keeps connections without saying
//! anything loses the oldest of them.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use sublet_doors::local::Signal;
use sublet_link::machine_of;

struct Arrival {
    origin: String,
    turned_away: Cell<bool>,
    signal: Signal,
}

/// All of them, the oldest first.
#[derive(Default)]
pub(crate) struct Arrivals {
    list: RefCell<Vec<Rc<Arrival>>>,
    /// Whether somebody was turned away, and nobody arrived since without that.
    full: Cell<bool>,
}

/// One of them, until it is dropped.
pub(crate) struct Arrived<'a> {
    all: &'a Arrivals,
    own: Rc<Arrival>,
}

impl Arrivals {
    /// Takes a connection in. With `max` there already, the oldest one of the machine that has the most is turned away.
    pub(crate) fn enter(&self, peer: &str, max: usize) -> Arrived<'_> {
        let own = Rc::new(Arrival { origin: origin(peer), turned_away: Cell::new(false), signal: Signal::new() });
        let mut list = self.list.borrow_mut();
        if list.len() < max {
            self.full.set(false);
        } else if let Some(index) = oldest_of_the_most(&list) {
            let gone = list.remove(index);
            gone.turned_away.set(true);
            gone.signal.notify();
            // Said once: otherwise whoever floods the port fills the log as well.
            if !self.full.replace(true) {
                tracing::warn!(
                    from = gone.origin,
                    "{max} connections have not opened a session; the oldest one is closed for each that comes"
                );
            }
        }
        list.push(Rc::clone(&own));
        drop(list);
        Arrived { all: self, own }
    }
}

impl Arrived<'_> {
    /// Waits until it has to go.
    pub(crate) async fn turned_away(&self) {
        loop {
            let seen = self.own.signal.version();
            if self.own.turned_away.get() {
                return;
            }
            self.own.signal.changed(seen).await;
        }
    }
}

impl Drop for Arrived<'_> {
    fn drop(&mut self) {
        self.all.list.borrow_mut().retain(|one| !Rc::ptr_eq(one, &self.own));
    }
}

fn oldest_of_the_most(list: &[Rc<Arrival>]) -> Option<usize> {
    let count = |origin: &str| list.iter().filter(|one| one.origin == origin).count();
    let most = list.iter().map(|one| count(&one.origin)).max()?;
    list.iter().position(|one| count(&one.origin) == most)
}

/// The machine behind `address:port`, as far as its address tells.
fn origin(peer: &str) -> String {
    peer.parse::<SocketAddr>().map_or_else(|_| peer.to_owned(), |address| machine_of(address.ip()).to_string())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_gone(arrived: &Arrived<'_>) -> bool {
        arrived.turned_away().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_connection_of_the_machine_with_the_most_has_to_go_and_nobody_else() {
        let arrivals = Arrivals::default();
        let quiet = arrivals.enter("192.0.2.1:1", 4);
        let flood: Vec<_> = (0..3).map(|port| arrivals.enter(&format!("192.0.2.2:{port}"), 4)).collect();
        assert!(!is_gone(&quiet) && flood.iter().all(|one| !is_gone(one)), "there is room for four");
        let newcomer = arrivals.enter("192.0.2.3:9", 4);
        assert_eq!(flood.iter().map(is_gone).collect::<Vec<_>>(), [true, false, false]);
        let more = arrivals.enter("192.0.2.2:99", 4);
        assert_eq!(flood.iter().map(is_gone).collect::<Vec<_>>(), [true, true, false]);
        assert!(!is_gone(&quiet) && !is_gone(&newcomer) && !is_gone(&more));
        drop((flood, more));
        let again: Vec<_> = (0..2).map(|port| arrivals.enter(&format!("192.0.2.2:{port}"), 4)).collect();
        assert!(again.iter().all(|one| !is_gone(one)), "who has ended makes room");
    }

    #[test]
    fn a_peer_without_an_address_is_one_of_its_own() {
        assert_eq!(origin("192.0.2.7:1"), origin("192.0.2.7:2"));
        assert_eq!(origin("[2001:db8:1:2:a::b]:7471"), origin("[2001:db8:1:2:c::d]:9"));
        assert_eq!(origin("memory"), "memory");
    }
}
