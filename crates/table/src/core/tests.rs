//! The manager against fake servers.

mod crash;
mod faults;
mod large;
mod lending;
mod reports;
mod silent;
mod storm;
