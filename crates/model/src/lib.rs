//! An exhaustive model of the lease and of the states of legs: one segment with two legs, two lenders, a manager, a borrower
//! that has no disk, and a second mount that takes over. Every order in which their messages can arrive, get lost, be late or
//! come twice, and every moment at which each of them can stop, within small bounds.
//!
//! The manager's decisions are the real ones ([`sublet_table::plan`]), so is the borrower's state machine
//! ([`sublet_volume::machine`]). The lender's label, its gate and its disk are restated here, because in the product they are
//! woven into disk access. Bytes are one block that is overwritten with 1, 2, 3 and so on.
//!
//! A checker that finds nothing may be blind: [`Rule`] names rules of the contract that can be broken on purpose, and the tests
//! show that each break is found.

#![allow(clippy::indexing_slicing, reason = "two legs, two clients, and graphs of known size")]

mod actions;
mod client;
mod lender;
mod manager;
mod search;
mod steps;
mod world;

pub use actions::Action;
pub use search::{Model, Outcome, search};
pub use world::{Bounds, Protocol, Rule, World};
