//! Who coordinates a volume, at its manager: the client of a mounted volume, or a lender that works on one that is not mounted
//! (F5). Both tell the manager how the path is and what they do, and do what its answers say.
//!
//! [`Reporter`] decides what is told; [`Manager`] brings it there, in threads of its own; [`obey`] does what comes back.
//! [`coordinate`] is the whole life of a coordination without a front end. Deliberately absent: any decision about legs.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod coordinate;
mod flag;
pub mod limits;
mod manager;
mod obey;
mod reporter;

pub use coordinate::{Reports, close, coordinate};
pub use flag::Flag;
pub use manager::{Heard, Manager};
pub use obey::obey;
pub use reporter::Reporter;
