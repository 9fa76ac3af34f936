//! What the thread of the core drives.

use sublet_api::request::{Request, Response};

pub(crate) enum Event {
    Request { conn: u64, request: Request },
    Gone { conn: u64 },
    Tick,
}
pub(crate) enum Action {
    Reply { conn: u64, response: Response },
}
pub(crate) struct Outside<'a> {
    pub now_ms: u64,
    pub random: &'a mut dyn FnMut() -> u128,
}

/// A synchronous state machine: the manager's core, or a test's.
pub(crate) trait Machine {
    /// Takes one event and says what to do.
    fn apply(&mut self, outside: &mut Outside<'_>, event: Event) -> Vec<Action>;
    /// When it wants a [`Event::Tick`] at the latest, in milliseconds since 1970.
    fn next_wake_ms(&self) -> Option<u64>;
}

pub(crate) fn load(_: &std::path::Path, _: &mut Outside<'_>, _: Vec<String>) -> Result<Nothing, sublet_api::Refusal> {
    Ok(Nothing)
}
pub(crate) struct Nothing;
impl Machine for Nothing {
    fn apply(&mut self, _: &mut Outside<'_>, _: Event) -> Vec<Action> {
        Vec::new()
    }
    fn next_wake_ms(&self) -> Option<u64> {
        None
    }
}
