//! The management server: the shell around the table (seed: 20, 21, 23).
//!
//! Everything that is decided is decided in `sublet-table`'s core, a synchronous state machine without a clock. This
//! crate gives it what it lacks: HTTP, time, randomness, a data directory, and a thread of its own. A request becomes
//! an event for the core; the core's reply becomes the answer; a connection that ends early becomes an event as well.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod announce;
mod audit;
mod authority;
mod caller;
mod clock;
mod crowd;
mod data_dir;
mod drive;
mod http;
mod inbox;
mod listen;
mod machine;
mod offline;
mod run;
mod seek;
mod serve;
#[cfg(test)]
mod testing;
mod throttle;

pub use http::openapi::document as openapi_document;
pub use offline::{Checked, Seal, check, export, has_authority, import, sealed_authority};
pub use run::{ManagerArgs, Security, run};
