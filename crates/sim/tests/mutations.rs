//! The simulator has teeth: every deliberate bug is found. Only in builds that have the bugs:
//! `cargo test --profile sim -p sublet-sim --features mutations --test mutations`, or `cargo xtask sim --mutations`.
#![cfg(feature = "mutations")]

use sublet_sim::mutations::{SEEDS, hunt};
use sublet_types::mutation::Mutation;

#[test]
fn every_deliberate_bug_is_found() {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let missed: Vec<_> = Mutation::ALL.iter().filter(|mutation| hunt(**mutation, 1, SEEDS, jobs).0.is_none()).collect();
    assert!(missed.is_empty(), "{missed:?}");
}
