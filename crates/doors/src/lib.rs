//! The four doors: `Disk`, `Net`, `Clock`, `Rng`. All non-determinism of the data path and of the decisions passes through
//! them, so that a simulator can take the place of the machine.
//!
//! Everything is single-threaded (`!Send`) and owns its buffers while an operation is under way, as completion-based I/O
//! needs it. [`real`] is the only place that touches the operating system for data.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod buffer;
pub mod clock;
pub mod disk;
pub mod gather;
pub mod local;
pub mod net;
pub mod real;
pub mod rng;
pub mod run_on;

use std::future::Future;

pub use buffer::{Buffer, Chunk};
pub use clock::{Clock, Tick};
pub use disk::{Disk, DiskFile, FileFacts, OpenHow};
pub use gather::Gather;
pub use net::{Conn, ConnReader, ConnWriter, Endpoint, Listener, Net};
pub use rng::Rng;
pub use run_on::RunOn;

/// All four doors of one thread, and the means to start tasks on it. Clones are the same doors.
pub trait Doors: Disk + Net + Clock + Rng + Clone + 'static {
    /// Starts a task on this thread. It ends by itself; a task that has to be stopped is told through its own channel.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Lets what was begun so far go its way before more is begun: the other tasks that are ready run, and the kernel gets what
    /// they ask of it. Whoever begins many requests in a row waits for this now and then, so that the first of them are on their
    /// way to the next program or disk while the last are still being looked at.
    fn give_way(&self) -> impl Future<Output = ()> {
        local::yield_once()
    }
}
