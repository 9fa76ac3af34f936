//! The lender's program: serves slices of its areas to the one current lease.
//!
//! [`Agent`] is the data side: generic over the doors, single-threaded, no clock and no socket of its own. [`daemon`] is
//! the process around it: registration at the manager, orders, the control socket, the list of areas.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
mod arrivals;
mod connection;
mod coordinations;
pub mod daemon;
mod gate;
mod handshake;
pub mod limits;
mod orders;
mod outbox;
pub mod poller;
mod receive;
mod regions;
mod request;
mod search;

#[cfg(test)]
mod tests;

pub use agent::Agent;
pub use coordinations::Coordinate;
pub use daemon::{ServerArgs, run};
