//! The borrower's engine: one volume over the slices of its lenders.
//!
//! A [`Volume`] takes reads and writes of any alignment, splits them by the volume's map, and serves the parts in parallel at
//! the legs. It keeps the promises W, S and F of the contract. Everything runs on one thread, over the doors.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod options;
mod status;
mod volume;

pub use error::{VolumeError, VolumeErrorKind};
pub use options::{ManagerDoor, VolumeOptions, ZeroFlags};
pub use status::PathStatus;
pub use sublet_wire::message::Extent;
pub use volume::{SearchSummary, Volume};
