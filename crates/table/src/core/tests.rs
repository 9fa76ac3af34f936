//! The manager against fake servers.

mod background;
mod crash;
mod faults;
mod large;
mod lending;
mod replace;
mod reports;
mod silent;
mod storm;
