//! The simulator: a whole pool in one thread, from one seed.
//!
//! Manager core, agents, areas and engines are the very same code that runs in reality; here they stand behind simulated doors.
//! [`world`] puts the pool together, [`faults`] breaks it, [`oracle`] knows what every block may hold. `docs/simulator.md` lists
//! what is simulated and what is checked.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backend;
mod brief;
pub mod care;
pub mod checks;
pub mod client;
pub mod damage;
pub mod disk;
pub mod door;
pub mod doors;
pub mod exec;
pub mod faults;
pub mod forgotten;
pub mod layout;
pub mod limits;
mod log;
pub mod manager;
pub mod mutations;
pub mod net;
pub mod operator;
pub mod oracle;
pub mod rng;
pub mod runner;
pub mod server;
pub mod slots;
pub mod tables;
pub mod trace;
pub mod workload;
pub mod world;
