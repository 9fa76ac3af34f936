//! The manager against fake servers.

mod access;
mod background;
mod behind;
mod behind_borrowers;
mod behind_generations;
mod behind_wipes;
mod crash;
mod crash_labels;
mod deleted;
mod faults;
mod forgotten;
mod large;
mod lending;
mod limits;
mod replace;
mod reports;
mod scrubs;
mod sealed;
mod silent;
mod storm;
