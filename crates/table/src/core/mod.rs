//! The manager as a synchronous state machine: `apply(event) -> actions`.

use sublet_api::request::{Request, Response};
use sublet_api::{ErrorKind, Refusal};

use crate::store::{Store, StoreError};

/// What the shell knows and the core must not find out by itself.
pub struct Outside<'a> {
    /// The time in milliseconds since 1970 (UTC).
    pub now_ms: u64,
    /// Draws 128 random bits (ids, epochs, generations, secrets).
    pub random: &'a mut dyn FnMut() -> u128,
}

/// What happens to the manager.
#[derive(Debug)]
pub enum Event {
    /// A request arrived. Every request is answered by exactly one [`Action::Reply`] with its `conn`, perhaps much later.
    Request {
        /// Chosen by the shell: unique per request.
        conn: u64,
        /// What is asked.
        request: Request,
    },
    /// The asker of a request that is not answered yet is gone: no reply will be given any more.
    Gone {
        /// See [`Event::Request`].
        conn: u64,
    },
    /// Time has passed: see [`Core::next_wake_ms`].
    Tick,
}

/// What the shell shall do.
#[derive(Debug)]
pub enum Action {
    /// Answer a request.
    Reply {
        /// See [`Event::Request`].
        conn: u64,
        /// The answer.
        response: Response,
    },
}

/// The manager.
pub struct Core<S: Store> {
    store: S,
    urls: Vec<String>,
}

impl<S: Store> Core<S> {
    /// Loads the table. `urls` is where the manager can be reached.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read; a single bad row is no error, it is quarantined and shown.
    pub fn load(store: S, outside: &mut Outside<'_>, urls: Vec<String>) -> Result<Self, StoreError> {
        let _ = outside;
        Ok(Self { store, urls })
    }

    /// Applies one event. All that a returned action tells is durable by then.
    pub fn apply(&mut self, outside: &mut Outside<'_>, event: Event) -> Vec<Action> {
        let _ = (&self.store, outside);
        match event {
            Event::Request { conn, .. } => {
                vec![Action::Reply { conn, response: Response::Refused(Refusal::new(ErrorKind::Internal, "being written")) }]
            }
            Event::Gone { .. } | Event::Tick => Vec::new(),
        }
    }

    /// When [`Event::Tick`] shall come, if nothing else does before, in milliseconds since 1970.
    pub fn next_wake_ms(&self) -> Option<u64> {
        None
    }

    /// Tells where the manager can be reached now; servers and clients learn it from their next answers.
    pub fn set_urls(&mut self, urls: Vec<String>) {
        self.urls = urls;
    }
}
