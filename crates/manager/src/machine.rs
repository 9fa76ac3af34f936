//! What the thread of the core drives: the manager's core, or a test's stand-in.

use std::path::Path;

use sublet_api::{ErrorKind, Refusal};
use sublet_table::{Action, Core, Event, Outside, RedbStore, Store};

/// A synchronous state machine with the core's shape.
pub(crate) trait Machine {
    /// Takes one event and says what to do.
    fn apply(&mut self, outside: &mut Outside<'_>, event: Event) -> Vec<Action>;
    /// When it wants a [`Event::Tick`] at the latest, in milliseconds since 1970.
    fn next_wake_ms(&self) -> Option<u64>;
}

impl<S: Store> Machine for Core<S> {
    fn apply(&mut self, outside: &mut Outside<'_>, event: Event) -> Vec<Action> {
        Core::apply(self, outside, event)
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
