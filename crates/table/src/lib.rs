//! The virtual disk management table, and the manager as a synchronous state machine over it.
//!
//! [`Core`] takes an [`Event`] and answers with [`Action`]s. It reads no clock, draws no random numbers and does no I/O
//! except through its [`Store`]: the shell (crate `sublet-manager`, or a simulator) hands it the time and the random bits.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod change;
pub mod check;
pub mod core;
pub mod document;
pub mod plan;
pub mod records;
pub mod store;
pub mod table;
pub mod views;

pub use crate::change::Change;
pub use crate::core::{Action, Core, Event, Outside};
pub use crate::store::{MemoryStore, RedbStore, Store, StoreError};
pub use crate::table::Table;
