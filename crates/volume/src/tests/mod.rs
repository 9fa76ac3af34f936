//! Behaviour of whole volumes, rule by rule.

mod bytes;
mod clauses;
mod failing;
mod fence;
mod kept;
mod lies;
mod lost;
mod maps;
mod order;
mod resync;
mod scrub;
mod sealed;
mod search;
mod shipped;
mod versions;
mod work;
