//! The promises of the simulator itself, and the seeds that found something once.

use sublet_sim::faults::Wanted;
use sublet_sim::runner::{isolated, loss_named, mutated};
use sublet_sim::trace::Detail;

#[test]
fn one_seed_gives_one_trace() {
    for seed in [1, 2, 3, 15] {
        let (one, other) = (isolated(seed, Detail::Hash), isolated(seed, Detail::Hash));
        assert_eq!((one.hash, one.violations), (other.hash, other.violations), "seed {seed}");
    }
}

#[test]
fn other_seeds_give_other_traces() {
    assert_ne!(isolated(1, Detail::Hash).hash, isolated(2, Detail::Hash).hash);
}

#[test]
fn seeds_that_found_something_find_nothing_any_more() {
    let seeds = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    for line in seeds {
        let mut words = line.split_whitespace();
        let seed = words.next().and_then(|word| word.parse().ok()).expect("a line begins with a seed");
        let wanted = match words.next() {
            Some("--loss") => {
                let loss = words.next().and_then(loss_named).expect("a loss has a kind");
                Wanted { damage: Some(None), loss: Some(loss) }
            }
            _ => Wanted::default(),
        };
        let outcome = mutated(seed, Detail::Off, None, wanted);
        assert!(outcome.violations.is_empty(), "{line}: {:?}", outcome.violations);
    }
}
