//! The borrower's engine: one volume over the slices of its lenders.
//!
//! A [`Volume`] takes reads and writes of any alignment, splits them by the volume's map, and serves the parts in parallel at
//! the legs. It keeps the promises W, S and F of the contract. Everything runs on one thread, over the doors.
//!
//! From the outside in: `volume` (the front door) -> `segment` (reads from one leg, changes at all) -> `leg` (keeps a connection,
//! watches it) -> `session` (one connection). Beside them `supervise` decides, purely, what a segment does next, and `stale`,
//! `resync` and `equal` carry it out on `members`, the state machine of the in-sync set.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod broken;
mod change;
mod connect;
mod equal;
mod error;
mod extents;
mod habit;
mod hot;
mod idle;
mod leg;
mod log;
mod maps;
mod members;
mod options;
mod rangelock;
mod read;
mod replay;
mod resync;
mod scrub;
mod sealed;
mod search;
mod segment;
mod session;
mod shared;
mod stale;
mod status;
mod supervise;
mod throttle;
mod volume;
mod work;

#[cfg(feature = "pieces")]
pub mod pieces;
#[cfg(any(test, feature = "pieces"))]
#[cfg_attr(not(test), allow(dead_code, clippy::unwrap_used, reason = "written for tests"))]
mod testing;
#[cfg(test)]
mod tests;

/// The pure state machines of a segment, open to the exhaustive model of the protocol (crate `sublet-model`) and to nobody else:
/// no clock, no I/O.
pub mod machine {
    pub use crate::members::{Doubt, Member, Members, Role};
    pub use crate::supervise::{LegView, Step, decide};
}

pub use error::{VolumeError, VolumeErrorKind};
pub use options::{BlockCipher, ManagerDoor, VolumeOptions, ZeroFlags};
pub use search::{SearchSummary, Wanted};
pub use status::PathStatus;
pub use sublet_wire::message::Extent;
pub use volume::{MOUNT_VERSIONS, Volume};
