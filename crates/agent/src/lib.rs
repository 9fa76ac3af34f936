//! The lender's program: serves slices of its areas to the one current lease.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod daemon;

pub use daemon::{ServerArgs, run};
