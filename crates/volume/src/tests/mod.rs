//! Behaviour of whole volumes, rule by rule.

mod bytes;
mod clauses;
mod failing;
mod fence;
mod kept;
mod lost;
mod maps;
mod order;
mod resync;
mod search;
mod shipped;
mod work;
