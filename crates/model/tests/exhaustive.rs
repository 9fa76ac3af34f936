//! Every reachable state within small bounds: the promises hold, and each rule that is broken on purpose is found.

use std::time::Instant;

use sublet_doors::Tick;
use sublet_model::{Bounds, Outcome, Protocol, Rule, World, search};
use sublet_types::Generation;
use sublet_volume::machine::{LegView, Members, Step, decide};

/// More states than any of these worlds has: memory is not to run out if one grows.
const STATES_MAX: usize = 4_000_000;

/// Nothing fails, one write.
const CALM: Bounds = Bounds {
    writes: 1,
    faults: 0,
    takeovers: 0,
    by_force: false,
    power_cuts: false,
    restarts: false,
    network: false,
    crashes: false,
    keeps: true,
};

/// Everything can fail, once.
const ALL: Bounds = Bounds { faults: 1, power_cuts: true, restarts: true, network: true, crashes: true, ..CALM };

fn look(name: &str, protocol: Protocol, bounds: Bounds) -> Outcome {
    let began = Instant::now();
    let outcome = search(&World::new(protocol, bounds), STATES_MAX);
    println!(
        "{name}: {} states, {} steps, {} settled, at most {} steps from the start, {:?}",
        outcome.states,
        outcome.steps,
        outcome.settled,
        outcome.depth,
        began.elapsed()
    );
    outcome
}

#[track_caller]
fn holds(name: &str, bounds: Bounds) {
    let outcome = look(name, Protocol::default(), bounds);
    if let Some((promise, path)) = &outcome.broken {
        panic!("{name}: {promise}\n{}", path.join("\n"));
    }
    assert!(!outcome.is_cut, "{name}: more than {STATES_MAX} states");
    assert!(outcome.settled > 0, "{name}: nothing was reached");
}

/// S1, S5, W1, W5, K1, R1, F1, F4: any two faults of any kind, and two writes with any one.
#[test]
fn s1_s5_w1_any_two_faults_lose_nothing_and_it_settles() {
    holds("two faults", Bounds { faults: 2, ..ALL });
    holds("one fault, two writes", Bounds { writes: 2, ..ALL });
}

/// W5, S3, S4: power cuts and the client's death, with two writes.
#[test]
fn w5_s3_s4_power_cuts_lose_nothing_and_it_settles() {
    holds("two power cuts or crashes, two writes", Bounds { faults: 2, writes: 2, power_cuts: true, crashes: true, ..CALM });
}

/// S2: messages to and from the manager are lost, late and come twice; connections break.
#[test]
fn s2_lost_late_and_doubled_messages_change_nothing() {
    holds("network, two faults, two writes", Bounds { faults: 2, writes: 2, network: true, ..CALM });
}

/// F3, F5: a second mount at any moment.
#[test]
fn f3_f5_a_second_mount_at_any_moment_leaves_one_writer() {
    holds("again", Bounds { takeovers: 1, writes: 2, ..CALM });
    holds("by force", Bounds { takeovers: 1, by_force: true, writes: 2, ..CALM });
    holds("again, network", Bounds { takeovers: 1, faults: 1, network: true, ..CALM });
    holds("by force, network", Bounds { takeovers: 1, by_force: true, faults: 1, network: true, ..CALM });
    holds("again, a crash", Bounds { takeovers: 1, faults: 1, crashes: true, ..CALM });
}

/// Deeper, and too long for every day: `cargo test -p sublet-model -- --ignored`.
#[test]
#[ignore = "several minutes and gigabytes"]
fn s1_s5_w1_any_three_faults_lose_nothing_and_it_settles() {
    let outcome = search(&World::new(Protocol::default(), Bounds { faults: 3, ..ALL }), 20_000_000);
    println!("three faults: {} states, {} steps", outcome.states, outcome.steps);
    assert!(outcome.broken.is_none() && !outcome.is_cut, "{:#?}", outcome.broken);
}

/// W5: the only leg that may be read has lost writes, the other one is not equal to it yet and has crashed too (H3): neither can
/// it leave, nor is the other one a survivor; what was lost is written again.
#[test]
fn w5_h3_the_source_of_an_equalising_that_lost_writes_is_replayed() {
    let mut members = Members::new(Generation { number: 1, random: 1 }, [true, true]);
    (members.legs[1].equal, members.legs[1].whole) = (false, false);
    let lost = LegView { lost_writes: true, can_replay: true, ..LegView::default() };
    let unequal = LegView { sound: true, ..LegView::default() };
    assert_eq!(decide(&members, &[lost, unequal], Tick(1), Tick(0), false, false), Step::Replay);
    members.legs[1].whole = true;
    assert_eq!(decide(&members, &[lost, unequal], Tick(1), Tick(0), false, false), Step::Leave(0));
}

/// The power of the search: a rule that is not kept is found, in the world that needs it.
#[track_caller]
fn found(rule: Rule, bounds: Bounds) {
    let outcome = look(&format!("without {rule:?}"), Protocol { broken: Some(rule) }, bounds);
    let Some((promise, path)) = outcome.broken else { panic!("{rule:?} can be broken and nothing is noticed") };
    println!("  {promise}: {}", path.join(" "));
}

#[test]
fn every_rule_that_is_broken_is_found() {
    let power = Bounds { faults: 2, writes: 2, power_cuts: true, crashes: true, ..CALM };
    let wire = Bounds { faults: 2, writes: 2, network: true, ..CALM };
    found(Rule::Ping, power);
    found(Rule::LabelBeforeAck, power);
    found(Rule::NoLateWithdrawal, Bounds { writes: 2, ..ALL });
    found(Rule::Seed, power);
    found(Rule::SeedUnequal, power);
    found(Rule::HotCountsAsMissed, Bounds { faults: 2, ..ALL });
    found(Rule::MissedBeforeCool, Bounds { faults: 2, ..ALL });
    found(Rule::TargetLabelBeforeCommit, power);
    found(Rule::TargetFlushBeforeCommit, power);
    found(Rule::TargetHot, power);
    found(Rule::NeverReadStale, power);
    found(Rule::AskEveryLeg, power);
    found(Rule::EqualBeforeRead, power);
    found(Rule::AllLegs, wire);
    found(Rule::OpenAfterDisk, wire);
    found(Rule::Identity, power);
    found(Rule::EpochPersisted, Bounds { takeovers: 1, faults: 1, restarts: true, ..CALM });
    found(Rule::FenceAfterDisk, Bounds { takeovers: 1, ..CALM });
    found(Rule::CompareAndSet, Bounds { takeovers: 1, faults: 1, network: true, ..CALM });
    found(Rule::UnreachableIsNotFenced, Bounds { takeovers: 1, faults: 1, network: true, ..CALM });
}
