//! The lender's disk: labels, slices, regions, and the bytes of the slices.
//!
//! An area is one or several joined pieces (files, disks, parts of them). It describes itself: whoever holds the pieces can
//! tell what is lent to whom (L4), and the label decides which bytes are lent (L5). `docs/format.md` draws every structure
//! byte by byte. Everything goes through the doors; only [`lendable`] asks the operating system directly, before
//! anything is lent.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod area;
mod bytes;
mod copies;
mod data;
mod envelope;
mod error;
mod files;
mod format;
mod join;
mod keep;
mod label;
pub mod layout;
mod lease;
mod ledger;
pub mod lendable;
mod open;
mod record;
mod regions;
mod spec;
#[cfg(test)]
mod tests;
mod wipe;

pub use area::Area;
pub use error::{AreaError, AreaErrorKind};
pub use keep::ReadInfo;
pub use layout::file_size_for;
pub use spec::{FormatSpec, PieceIdentity, PieceSpec};
