//! Behaviour of whole volumes, rule by rule.

mod bytes;
mod fence;
mod lost;
mod resync;
mod search;
