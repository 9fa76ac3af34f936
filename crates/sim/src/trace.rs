//! The trace of a run: what happened when, for people, and as a hash for the promise that one seed gives one trace.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Lines that are kept: the end of a long run explains a violation.
const LINES_MAX: usize = 200_000;

/// How much is noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detail {
    /// Nothing: the fastest.
    Off,
    /// A hash of every event.
    Hash,
    /// Every event as a line of text.
    Lines,
}

struct Inner {
    detail: Detail,
    hash: Cell<u64>,
    lines: RefCell<VecDeque<String>>,
    /// Time and process of the task that runs now, for events of the product's own log.
    here: RefCell<(u64, String)>,
}

/// See the module. Clones are the same trace.
#[derive(Clone)]
pub struct Trace(Rc<Inner>);

impl Trace {
    /// An empty one.
    pub fn new(detail: Detail) -> Self {
        let inner = Inner { detail, hash: Cell::new(0xcbf2_9ce4_8422_2325), lines: RefCell::default(), here: RefCell::default() };
        Self(Rc::new(inner))
    }

    /// Whether events are noted at all.
    pub fn is_on(&self) -> bool {
        self.0.detail != Detail::Off
    }

    /// A task begins to run.
    pub(crate) fn enter(&self, now: u64, process: &str) {
        let mut here = self.0.here.borrow_mut();
        here.0 = now;
        process.clone_into(&mut here.1);
    }

    /// Notes an event of the task that runs now.
    pub(crate) fn note_here(&self, text: &str) {
        let (now, process) = self.0.here.borrow().clone();
        self.note(now, &process, text);
    }

    /// Notes an event.
    pub(crate) fn note(&self, now: u64, who: &str, text: &str) {
        let mut hash = self.0.hash.get();
        for byte in now.to_le_bytes().iter().chain(who.as_bytes()).chain(text.as_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.0.hash.set(hash);
        if self.0.detail == Detail::Lines {
            let mut lines = self.0.lines.borrow_mut();
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(format!("{:>14.6} {who:<12} {text}", now as f64 / 1e9));
        }
    }

    /// The hash of everything noted so far.
    pub fn hash(&self) -> u64 {
        self.0.hash.get()
    }

    /// The lines noted last.
    pub fn lines(&self) -> Vec<String> {
        self.0.lines.borrow().iter().cloned().collect()
    }
}
