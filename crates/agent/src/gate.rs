//! The gate of a slice: which session may do I/O, and when the I/O of an older one has ended (W4, F1).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use sublet_doors::local::{Permit, Semaphore, Signal};
use sublet_types::{Epoch, SessionNumber, SliceId};
use sublet_wire::message::OpenMode;

/// Why a session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Closing {
    /// A newer epoch was persisted (F1); the client is told so (F4).
    Fenced,
    /// A session with a higher number was opened (W4).
    Superseded,
    /// The agent stops.
    Draining,
    /// The connection ended, or the client closed the session.
    Ended,
}

/// An open session: one connection of one client to one slice.
pub(crate) struct Session {
    pub(crate) slice: SliceId,
    pub(crate) epoch: Epoch,
    pub(crate) number: SessionNumber,
    /// Which leg of the segment the slice is.
    pub(crate) leg: usize,
    /// Length of the segment in bytes: what may be read and written.
    pub(crate) length: u64,
    pub(crate) read_only: bool,
    pub(crate) mode: Cell<OpenMode>,
    in_flight: Cell<usize>,
    closing: Cell<Option<Closing>>,
    /// Notified when `closing` is set and when `in_flight` reaches zero.
    changed: Signal,
}

/// A request of a session under way: while it exists, the session's disk I/O has not ended.
pub(crate) struct Ticket(Rc<Session>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        if self.0.in_flight.get() == 0 {
            self.0.changed.notify();
        }
    }
}

impl Session {
    pub(crate) fn new(open: &sublet_wire::message::Open, read_only: bool) -> Self {
        Self {
            slice: open.slice,
            epoch: open.epoch,
            number: open.session,
            leg: open.leg as usize,
            length: open.segment_length,
            read_only,
            mode: Cell::new(open.mode),
            in_flight: Cell::new(0),
            closing: Cell::new(None),
            changed: Signal::new(),
        }
    }

    /// Admits a request, unless the session is closing: from then on nothing new is submitted to the disk (F1).
    pub(crate) fn begin(self: &Rc<Self>) -> Option<Ticket> {
        if self.closing.get().is_some() {
            return None;
        }
        self.in_flight.set(self.in_flight.get() + 1);
        Some(Ticket(Rc::clone(self)))
    }

    /// True if exactly so many requests are under way.
    pub(crate) fn is_under_way(&self, requests: usize) -> bool {
        self.in_flight.get() == requests
    }

    /// Why the session is closing, if it is.
    pub(crate) fn closing(&self) -> Option<Closing> {
        self.closing.get()
    }

    /// Closes the session; the first reason stays.
    pub(crate) fn close(&self, why: Closing) {
        if self.closing.get().is_none() {
            self.closing.set(Some(why));
            self.changed.notify();
        }
    }

    /// Waits until the session is closing.
    pub(crate) async fn closed(&self) -> Closing {
        loop {
            let seen = self.changed.version();
            if let Some(why) = self.closing.get() {
                return why;
            }
            self.changed.changed(seen).await;
        }
    }

    /// Waits until no request is under way.
    pub(crate) async fn quiet(&self) {
        loop {
            let seen = self.changed.version();
            if self.in_flight.get() == 0 {
                return;
            }
            self.changed.changed(seen).await;
        }
    }
}

/// Epochs that an order of the manager puts an end to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Older {
    /// All before this one, which gets a lease.
    Than(Epoch),
    /// This one, too: a fence.
    UpTo(Epoch),
}

impl Older {
    pub(crate) fn epoch(self) -> Epoch {
        match self {
            Self::Than(epoch) | Self::UpTo(epoch) => epoch,
        }
    }

    fn has(self, epoch: Epoch) -> bool {
        epoch.number < self.epoch().number || self == Self::UpTo(epoch)
    }
}

/// The sessions of one slice.
pub(crate) struct Gate {
    turn: Semaphore,
    sessions: RefCell<Vec<Rc<Session>>>,
    /// The highest session of the newest epoch that was opened here.
    highest: Cell<Option<(u64, SessionNumber)>>,
    /// What the manager has ended and the label still admits: the disk did not take it.
    ended: Cell<Option<Older>>,
    /// How far a wipe of the slice is.
    pub(crate) wipe: Cell<Option<(u64, u64)>>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            turn: Semaphore::new(1),
            sessions: RefCell::default(),
            highest: Cell::new(None),
            ended: Cell::new(None),
            wipe: Cell::new(None),
        }
    }

    /// OPEN, FENCE, lease and wipe of one slice take turns, in the order in which they came.
    pub(crate) async fn turn(&self) -> Permit {
        self.turn.acquire(1).await
    }

    /// True if a session of that epoch with that or a higher number was opened before (W4).
    pub(crate) fn is_superseded(&self, epoch: Epoch, number: SessionNumber) -> bool {
        self.highest.get().is_some_and(|highest| highest >= (epoch.number, number))
    }

    /// Closes the sessions of older epochs, and waits until their disk I/O has ended (F1).
    pub(crate) async fn fence(&self, older: Older) {
        self.end(|session| older.has(session.epoch), Closing::Fenced).await;
    }

    /// The label has it: from now on it says who is admitted.
    pub(crate) fn persisted(&self, epoch: Epoch) {
        if self.ended.get().is_some_and(|ended| ended.epoch().number <= epoch.number) {
            self.ended.set(None);
        }
    }

    /// The disk did not take an epoch that the manager has committed: as long as this process lives, what is older is refused
    /// without the label's help (F1, W7).
    pub(crate) fn not_persisted(&self, older: Older) {
        if self.ended.get().is_none_or(|ended| ended.epoch().number <= older.epoch().number) {
            self.ended.set(Some(older));
        }
    }

    /// See [`Gate::not_persisted`].
    pub(crate) fn is_ended(&self, epoch: Epoch) -> bool {
        self.ended.get().is_some_and(|ended| ended.has(epoch))
    }

    /// Closes all sessions, and waits until their disk I/O has ended.
    pub(crate) async fn end_all(&self, why: Closing) {
        self.end(|_| true, why).await;
    }

    async fn end(&self, which: impl Fn(&Session) -> bool, why: Closing) {
        let ending: Vec<_> = self.sessions.borrow().iter().filter(|session| which(session)).cloned().collect();
        for session in &ending {
            session.close(why);
        }
        for session in &ending {
            session.quiet().await;
        }
        self.sessions.borrow_mut().retain(|session| !ending.iter().any(|ended| Rc::ptr_eq(ended, session)));
    }

    /// Enters a session. The caller has the turn and has ended all others.
    pub(crate) fn enter(&self, session: &Rc<Session>) {
        let is_idle = |other: &Rc<Session>| other.read_only || other.in_flight.get() == 0;
        debug_assert!(self.sessions.borrow().iter().all(is_idle), "W4: two sessions write to slice {}", session.slice.short());
        self.highest.set(Some((session.epoch.number, session.number)));
        self.sessions.borrow_mut().push(Rc::clone(session));
    }

    /// Forgets a session whose disk I/O has ended.
    pub(crate) fn leave(&self, session: &Rc<Session>) {
        self.sessions.borrow_mut().retain(|other| !Rc::ptr_eq(other, session));
    }

    /// The sessions that have not ended.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.borrow().len()
    }

    /// Closes all sessions without waiting.
    pub(crate) fn close_all(&self, why: Closing) {
        for session in self.sessions.borrow().iter() {
            session.close(why);
        }
    }
}
