//! Behaviour of whole volumes, rule by rule.

mod bytes;
mod fence;
mod kept;
mod lost;
mod maps;
mod order;
mod resync;
mod search;
mod shipped;
mod versions;
mod work;
