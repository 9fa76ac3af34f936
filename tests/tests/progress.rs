//! What `sublet task ls` tells of work that takes long: how far it is, and how fast.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use serde_json::Value;
use sublet_tests::random::Random;
use sublet_tests::shorthand::{number, text};
use sublet_tests::{MIB, Pool, Wish, holds_within, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
/// What the copy that was away has missed: all of the volume.
const MISSED: u64 = 32 * MIB;
/// The limit of the resync: it takes long enough to be seen.
const RATE: u64 = 5 * MIB;

fn resync(pool: &Pool) -> Option<Value> {
    let tasks = pool.json(0, "task ls");
    tasks.as_array().unwrap().iter().find(|task| task["kind"] == "resync").cloned()
}

#[test]
fn a_resync_is_shown_with_its_progress_and_its_rate_until_all_of_it_is_copied() {
    let pool = Pool::with(&Wish { servers: 3, area: Some("128M") });
    pool.ok(0, &format!("volume create v --way doubled --on b1:{MISSED},c1:{MISSED}"));
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let lender = pool.kill(2);
    let bytes = Random::new(9).bytes(MISSED as usize);
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        nbd.write((n as u64) << 20, part).unwrap();
    }
    nbd.flush().unwrap();
    wait_for("the copy to be stale", LIMIT, || pool.legs("v") == ["in-sync", "stale"]);
    // While its lender is away nothing is copied, and that is what is shown.
    let waits = resync(&pool).unwrap();
    assert_eq!(
        (text(&waits, "/state").as_str(), number(&waits, "/done"), number(&waits, "/rate_bytes_per_s")),
        ("waiting", 0, 0)
    );
    assert!(text(&waits, "/reason").contains("server-c"), "{waits:#}");
    let limited = pool.json(0, &format!("task limit {} 5M", text(&waits, "/id")));
    assert_eq!(number(&limited, "/rate_max"), RATE);

    pool.revive(2, &lender);
    let mut seen: Vec<(Duration, Value)> = Vec::new();
    let begun = Instant::now();
    let has_ended = holds_within(LIMIT, || {
        let Some(task) = resync(&pool) else { return true };
        if task["state"] == "running" {
            seen.push((begun.elapsed(), task));
        }
        false
    });
    assert!(has_ended, "it is still shown: {seen:#?}");
    assert_eq!(pool.legs("v"), ["in-sync", "in-sync"], "it is shown until the copy is in sync");
    let all: Vec<(u64, u64, u64)> = seen
        .iter()
        .map(|(_, task)| (number(task, "/done"), number(task, "/total"), number(task, "/rate_bytes_per_s")))
        .filter(|(_, total, _)| *total > 0)
        .collect();
    assert!(all.iter().all(|(done, total, _)| *total == MISSED && done <= total), "what was missed, and nothing else: {all:?}");
    assert!(all.is_sorted_by_key(|(done, ..)| *done), "it never goes back: {all:?}");
    let mut steps: Vec<u64> = all.iter().map(|(done, ..)| *done).collect();
    steps.dedup();
    assert!(steps.len() >= 4, "it is seen to grow: {steps:?}");
    // It is told once a second: what is copied in the last two seconds may not be seen.
    assert!(steps.last().unwrap() + 2 * RATE >= MISSED, "up to the end: {steps:?}");
    let rates: Vec<u64> = all.iter().map(|(.., rate)| *rate).filter(|rate| *rate > 0).collect();
    assert!(!rates.is_empty(), "it has a rate: {all:?}");
    // It is taken over two seconds, in which one piece more or less may fall; a busy machine may be slower.
    assert!(rates.iter().all(|rate| (RATE / 4..=RATE * 5 / 4).contains(rate)), "as limited: {rates:?}");

    // The copy alone has all of it.
    let other = pool.kill(1);
    assert!(nbd.read(0, MISSED as u32).unwrap() == bytes);
    pool.revive(1, &other);
    drop(nbd);
    pool.finish(0, "v");
}
