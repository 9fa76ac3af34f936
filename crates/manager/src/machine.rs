//! What the thread of the core drives: the manager's core, or a test's stand-in.

use std::path::Path;

use sublet_api::access::DrawnToken;
use sublet_api::{ErrorKind, Refusal};
use sublet_table::{Action, Core, Event, Outside, RedbStore, Store};
use sublet_types::PoolId;

/// A synchronous state machine with the core's shape.
pub(crate) trait Machine {
    /// Takes one event and says what to do.
    fn apply(&mut self, outside: &mut Outside<'_>, event: Event) -> Vec<Action>;
    /// The pool.
    ///
    /// # Errors
    /// `internal` if the table does not say.
    fn pool(&self) -> Result<PoolId, Refusal>;
    /// An administrator's link, if nobody has ever come in by one, or `anew`: nobody's certificate is good any more.
    ///
    /// # Errors
    /// `internal` if the table cannot be written.
    fn first_link(&mut self, outside: &mut Outside<'_>, anew: bool) -> Result<Option<DrawnToken>, Refusal>;
    /// When it wants a [`Event::Tick`] at the latest, in milliseconds since 1970.
    fn next_wake_ms(&self) -> Option<u64>;
}

impl<S: Store> Machine for Core<S> {
    fn apply(&mut self, outside: &mut Outside<'_>, event: Event) -> Vec<Action> {
        Core::apply(self, outside, event)
    }

    fn pool(&self) -> Result<PoolId, Refusal> {
        let none = || Refusal::new(ErrorKind::Internal, "the table does not say which pool it is");
        self.table().pool.as_ref().map(|row| row.pool).ok_or_else(none)
    }

    fn first_link(&mut self, outside: &mut Outside<'_>, anew: bool) -> Result<Option<DrawnToken>, Refusal> {
        Core::first_link(self, outside, anew)
    }

    fn next_wake_ms(&self) -> Option<u64> {
        Core::next_wake_ms(self)
    }
}

/// The manager's core over the table in this file.
///
/// # Errors
/// `internal` if the file is no table, or cannot be read.
pub(crate) fn load(table: &Path, outside: &mut Outside<'_>, urls: Vec<String>) -> Result<Core<RedbStore>, Refusal> {
    let failed = |error: &dyn std::fmt::Display| {
        Refusal::new(ErrorKind::Internal, format!("cannot read the table {}: {error}", table.display()))
            .hint("nothing was changed; look at the file before you try anything else")
    };
    let store = RedbStore::open(table).map_err(|error| failed(&error))?;
    Core::load(store, outside, urls).map_err(|error| failed(&error))
}
