//! The lender's disk: labels, slices, regions, and the bytes of the slices.
//!
//! An area is one or several joined pieces (files, disks, parts of them). It describes itself: whoever holds the pieces can
//! tell what is lent to whom (L4), and the label decides which bytes are lent (L5). `docs/format.md` draws every structure
//! byte by byte. Everything goes through the doors; only [`lendable`] asks the operating system directly, before
//! anything is lent.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod active;
mod area;
mod bytes;
mod cool;
mod copies;
mod data;
mod envelope;
mod error;
mod failure;
mod files;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod heat;
mod join;
mod kept;
mod label;
pub mod layout;
mod lease;
mod ledger;
mod legacy;
pub mod lendable;
mod maps;
mod missed;
mod open;
mod pages;
mod record;
mod regions;
mod spec;
mod states;
mod sums;
mod table;
#[cfg(test)]
mod tests;
mod wipe;

pub use area::Area;
pub use error::{AreaError, AreaErrorKind};
pub use failure::Witness;
pub use kept::ReadInfo;
pub use layout::file_size_for;
pub use spec::{FormatSpec, PieceIdentity, PieceSpec};
