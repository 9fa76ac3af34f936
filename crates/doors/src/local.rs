//! Waiting of one thread's tasks for each other, independent of the runtime: [`Signal`] and [`Semaphore`].
//!
//! Nothing here is `Send`; channels of `futures-channel` wake a task from another thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Lets the other tasks that are ready run first.
pub async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Tells any number of tasks that something has changed. A version counter makes sure that no change is missed between
/// looking and waiting:
///
/// ```ignore
/// loop {
///     let seen = signal.version();
///     if condition() { break }
///     signal.changed(seen).await;
/// }
/// ```
#[derive(Default)]
pub struct Signal {
    version: Cell<u64>,
    waiting: RefCell<Waiting>,
}

/// Who waits, each under a key of its own so that a dropped wait leaves nothing behind.
#[derive(Default)]
struct Waiting {
    next: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Signal {
    /// A signal at version 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts up at every [`Signal::notify`].
    pub fn version(&self) -> u64 {
        self.version.get()
    }

    /// Wakes all that wait.
    pub fn notify(&self) {
        self.version.set(self.version.get().wrapping_add(1));
        let mut wakers = std::mem::take(&mut self.waiting.borrow_mut().wakers);
        for (_, waker) in wakers.drain(..) {
            waker.wake();
        }
        // Its memory is used again, unless somebody waits already.
        let mut waiting = self.waiting.borrow_mut();
        if waiting.wakers.is_empty() {
            waiting.wakers = wakers;
        }
    }

    /// Waits until the version is another than `seen`; at once if it is already.
    pub fn changed(&self, seen: u64) -> Changed<'_> {
        Changed { signal: self, seen, key: None }
    }

    /// Waits for the next [`Signal::notify`] after this call (not after its first poll).
    pub fn wait(&self) -> Changed<'_> {
        self.changed(self.version())
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signal(version {}, {} waiting)", self.version.get(), self.waiting.borrow().wakers.len())
    }
}

/// See [`Signal::changed`].
#[must_use = "futures do nothing unless awaited"]
pub struct Changed<'a> {
    signal: &'a Signal,
    seen: u64,
    key: Option<u64>,
}

impl Future for Changed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.signal.version.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiting = self.signal.waiting.borrow_mut();
        let known = self.key.and_then(|key| waiting.wakers.iter_mut().find(|(k, _)| *k == key));
        if let Some((_, waker)) = known {
            waker.clone_from(context.waker());
        } else {
            let key = waiting.next;
            waiting.next += 1;
            waiting.wakers.push((key, context.waker().clone()));
            drop(waiting);
            self.key = Some(key);
        }
        Poll::Pending
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.signal.waiting.borrow_mut().wakers.retain(|(k, _)| *k != key);
        }
    }
}

/// Bounds something (requests, bytes) that tasks of one thread use together. First come, first served: a large request is not
/// starved by small ones.
#[derive(Clone)]
pub struct Semaphore {
    inner: Rc<Inner>,
}

struct Inner {
    limit: u64,
    free: Cell<u64>,
    queue: RefCell<VecDeque<Rc<Ticket>>>,
}

/// A place in the queue.
struct Ticket {
    wanted: u64,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Semaphore {
    /// `limit` units, all free.
    pub fn new(limit: u64) -> Self {
        Self { inner: Rc::new(Inner { limit, free: Cell::new(limit), queue: RefCell::default() }) }
    }

    /// Units free now.
    pub fn free(&self) -> u64 {
        self.inner.free.get()
    }

    /// Waits for so many units. More than the limit means the whole limit, so that an oversized request waits for all others
    /// instead of for ever.
    pub fn acquire(&self, units: u64) -> Acquire {
        Acquire { inner: Rc::clone(&self.inner), wanted: units.min(self.inner.limit), ticket: None }
    }

    /// So many units, if they are free now and nobody waits before.
    pub fn try_acquire(&self, units: u64) -> Option<Permit> {
        self.inner.try_take(units.min(self.inner.limit))
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Semaphore({} of {} free)", self.inner.free.get(), self.inner.limit)
    }
}

impl Inner {
    /// Only if nobody waits before.
    fn try_take(self: &Rc<Self>, units: u64) -> Option<Permit> {
        if !self.queue.borrow().is_empty() {
            return None;
        }
        self.free.set(self.free.get().checked_sub(units)?);
        Some(Permit { inner: Rc::clone(self), units })
    }

    fn give_back(&self, units: u64) {
        self.free.set(self.free.get() + units);
        self.grant();
    }

    /// Serves the queue from its head as far as the free units go.
    fn grant(&self) {
        loop {
            let ticket = {
                let mut queue = self.queue.borrow_mut();
                let Some(head) = queue.front() else { return };
                let Some(left) = self.free.get().checked_sub(head.wanted) else { return };
                self.free.set(left);
                let Some(ticket) = queue.pop_front() else { return };
                ticket
            };
            ticket.granted.set(true);
            let waker = ticket.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// See [`Semaphore::acquire`].
#[must_use = "futures do nothing unless awaited"]
pub struct Acquire {
    inner: Rc<Inner>,
    wanted: u64,
    ticket: Option<Rc<Ticket>>,
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        if self.ticket.is_none() {
            if let Some(permit) = self.inner.try_take(self.wanted) {
                return Poll::Ready(permit);
            }
            let ticket = Rc::new(Ticket { wanted: self.wanted, granted: Cell::new(false), waker: RefCell::default() });
            self.inner.queue.borrow_mut().push_back(Rc::clone(&ticket));
            self.ticket = Some(ticket);
        }
        let granted = self.ticket.as_ref().is_some_and(|ticket| ticket.granted.get());
        if granted {
            self.ticket = None;
            return Poll::Ready(Permit { inner: Rc::clone(&self.inner), units: self.wanted });
        }
        if let Some(ticket) = &self.ticket {
            *ticket.waker.borrow_mut() = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        if ticket.granted.get() {
            self.inner.give_back(self.wanted);
        } else {
            self.inner.queue.borrow_mut().retain(|other| !Rc::ptr_eq(other, &ticket));
            // Others may have waited behind this one only.
            self.inner.grant();
        }
    }
}

/// Units taken from a [`Semaphore`]; dropping it gives them back.
#[must_use = "the units are given back when this is dropped"]
pub struct Permit {
    inner: Rc<Inner>,
    units: u64,
}

impl Permit {
    /// How many units it holds.
    pub fn units(&self) -> u64 {
        self.units
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inner.give_back(self.units);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({} units)", self.units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_change_between_looking_and_waiting_is_not_missed() {
        let signal = Signal::new();
        let seen = signal.version();
        signal.notify();
        assert!(poll(&mut signal.changed(seen)).is_ready());
        // `wait` counts from its call, not from its first poll.
        let mut wait = signal.wait();
        signal.notify();
        assert!(poll(&mut wait).is_ready());
        assert!(poll(&mut signal.wait()).is_pending());
    }

    #[test]
    fn a_notice_wakes_all_and_a_dropped_wait_leaves_nothing_behind() {
        let (waker, woken) = counting_waker();
        let mut context = Context::from_waker(&waker);
        let signal = Signal::new();
        let (mut first, mut second, mut third) = (signal.wait(), signal.wait(), signal.wait());
        for wait in [&mut first, &mut second, &mut third] {
            assert!(Pin::new(&mut *wait).poll(&mut context).is_pending());
            assert!(Pin::new(wait).poll(&mut context).is_pending());
        }
        drop(third);
        assert_eq!(signal.waiting.borrow().wakers.len(), 2);
        signal.notify();
        assert_eq!(woken.load(std::sync::atomic::Ordering::SeqCst), 2);
        assert!(poll(&mut first).is_ready() && poll(&mut second).is_ready());
    }

    fn counting_waker() -> (Waker, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
        struct Count(std::sync::Arc<std::sync::atomic::AtomicUsize>);
        impl std::task::Wake for Count {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let count = std::sync::Arc::default();
        (Waker::from(std::sync::Arc::new(Count(std::sync::Arc::clone(&count)))), count)
    }

    #[test]
    fn never_more_units_are_out_than_the_limit() {
        let semaphore = Semaphore::new(10);
        let Poll::Ready(six) = poll(&mut semaphore.acquire(6)) else { panic!("free") };
        let mut five = semaphore.acquire(5);
        assert!(poll(&mut five).is_pending());
        // First come, first served: a small one does not overtake.
        let mut one = semaphore.acquire(1);
        assert!(poll(&mut one).is_pending());
        assert!(semaphore.try_acquire(1).is_none());
        drop(six);
        let Poll::Ready(five) = poll(&mut five) else { panic!("free") };
        let Poll::Ready(one) = poll(&mut one) else { panic!("free") };
        assert_eq!((five.units(), one.units(), semaphore.free()), (5, 1, 4));
        drop((five, one));
        assert_eq!(semaphore.free(), 10);
    }

    #[test]
    fn an_oversized_request_gets_the_whole_limit() {
        let semaphore = Semaphore::new(10);
        let one = semaphore.try_acquire(1);
        let mut huge = semaphore.acquire(100);
        assert!(poll(&mut huge).is_pending());
        drop(one);
        let Poll::Ready(huge) = poll(&mut huge) else { panic!("free") };
        assert_eq!(huge.units(), 10);
    }

    #[test]
    fn a_dropped_wait_gives_its_place_and_its_units_away() {
        let semaphore = Semaphore::new(10);
        let all = semaphore.try_acquire(10);
        let (mut large, mut small) = (semaphore.acquire(8), semaphore.acquire(3));
        assert!(poll(&mut large).is_pending() && poll(&mut small).is_pending());
        drop(all); // `large` is granted 8; 2 are left, `small` waits on.
        assert!(poll(&mut small).is_pending());
        drop(large); // Granted, but never taken.
        assert!(poll(&mut small).is_ready());
        assert_eq!(semaphore.free(), 10);
    }
}
