//! Something that happens once, and tasks of one thread that wait for it.

use std::cell::Cell;

use sublet_doors::local::Signal;

/// See the module.
#[derive(Default)]
pub struct Flag {
    is_set: Cell<bool>,
    signal: Signal,
}

impl Flag {
    /// It has happened.
    pub fn set(&self) {
        self.is_set.set(true);
        self.signal.notify();
    }

    /// Whether it has happened.
    pub fn is_set(&self) -> bool {
        self.is_set.get()
    }

    /// Waits until it has happened.
    pub async fn wait(&self) {
        loop {
            let seen = self.signal.version();
            if self.is_set.get() {
                return;
            }
            self.signal.changed(seen).await;
        }
    }
}
