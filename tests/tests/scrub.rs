//! Rot on a lender's disk: found by the next read or scrub, repaired from the other copy, and told (K1).

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use sublet_tests::disks;
use sublet_tests::nbd::Nbd;
use sublet_tests::random::Random;
use sublet_tests::shorthand::number;
use sublet_tests::{MIB, Pool, Wish, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 16 * MIB;

/// `v` of `server-a` on these areas, written, closed so that its checksums are kept, and mounted again.
fn written(way: &str, on: &[&str]) -> (Pool, Nbd, Vec<u8>) {
    let pool = Pool::with(&Wish { servers: 3, area: Some("128M") });
    let on: Vec<String> = on.iter().map(|area| format!("{area}:{SIZE}")).collect();
    pool.ok(0, &format!("volume create v --way {way} --on {}", on.join(",")));
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let bytes = Random::new(21).bytes(SIZE as usize);
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        nbd.write((n as u64) << 20, part).unwrap();
    }
    nbd.flush().unwrap();
    drop(nbd);
    pool.ok(0, "unmount v");
    let nbd = pool.mount(0, "v", "");
    (pool, nbd, bytes)
}

/// Flips a bit of the byte at `at` of the volume, in the file of that server; the server is down meanwhile, as if the disk had
/// rotted. Where it lies in the file is the answer.
fn rot(pool: &Pool, server: usize, bytes: &[u8], at: usize) -> (PathBuf, u64) {
    let file = pool.area_files(server).remove(0);
    let block = at / 4096 * 4096;
    let place = disks::find(&file, &bytes[block..block + 4096]).expect("the copy lies in the file");
    let killed = pool.kill(server);
    disks::put(&file.to_string_lossy(), place + (at - block) as u64, &[bytes[at] ^ 1]);
    pool.revive(server, &killed);
    (file, place)
}

fn findings(pool: &Pool, what: &str) -> u64 {
    number(&pool.volume("v"), &format!("/findings/{what}"))
}

fn events(pool: &Pool, text: &str) -> usize {
    let events = pool.json(0, "events --limit 1000");
    events.as_array().unwrap().iter().filter(|event| event["text"].as_str().unwrap().contains(text)).count()
}

#[test]
fn k1_a_flipped_bit_is_found_by_a_scrub_repaired_and_told_once() {
    let (pool, nbd, bytes) = written("doubled", &["b1", "c1"]);
    let at = (6 << 20) + 12_345;
    let (file, place) = rot(&pool, 2, &bytes, at);
    pool.wait_in_sync("v", LIMIT);
    let block = at / 4096 * 4096;
    pool.sublet_within(0, &["volume", "scrub", "v", "--rate", "500M", "--wait"], LIMIT).ok();
    wait_for("the event", LIMIT, || findings(&pool, "repaired") == 1);
    assert_eq!(disks::find(&file, &bytes[block..block + 4096]), Some(place), "the lender has the right bytes again");
    // The slice begins at the area's beginning, and so the volume's offset is the area's.
    assert_eq!(events(&pool, &format!("4 KiB at offset {block} of area c1 at server-c")), 1);
    pool.sublet_within(0, &["volume", "scrub", "v", "--wait"], LIMIT).ok();
    assert_eq!((findings(&pool, "repaired"), findings(&pool, "unrepairable"), findings(&pool, "differed")), (1, 0, 0));
    let tasks = pool.json(0, "task ls");
    let done = tasks.as_array().unwrap().iter().filter(|task| task["kind"] == "scrub" && task["state"] == "done").count();
    assert_eq!(done, 2);
    drop(nbd);
    pool.finish(0, "v");
}

#[test]
fn k1_a_flipped_bit_is_found_by_a_read_and_repaired() {
    let (pool, mut nbd, bytes) = written("doubled", &["b1", "c1"]);
    let at = (3 << 20) + 777;
    let rotten = [rot(&pool, 1, &bytes, at), rot(&pool, 2, &bytes, at + (5 << 20))];
    pool.wait_in_sync("v", LIMIT);
    // Which copy a read takes is the engine's choice: each has a rotten block, and every read is right.
    for _ in 0..8 {
        assert!(nbd.read_all().unwrap() == bytes);
    }
    wait_for("an event", LIMIT, || findings(&pool, "repaired") >= 1);
    pool.sublet_within(0, &["volume", "scrub", "v", "--wait"], LIMIT).ok();
    wait_for("both to be repaired", LIMIT, || findings(&pool, "repaired") == 2);
    for ((file, place), block) in rotten.iter().zip([at, at + (5 << 20)].map(|at| at / 4096 * 4096)) {
        assert_eq!(disks::find(file, &bytes[block..block + 4096]), Some(*place));
    }
    drop(nbd);
    pool.finish(0, "v");
}

#[test]
fn k1_a_flipped_bit_of_a_single_volume_is_an_error_that_names_the_place() {
    let (pool, mut nbd, bytes) = written("divided", &["b1"]);
    let at = (9 << 20) + 4;
    rot(&pool, 1, &bytes, at);
    let block = at / 4096 * 4096;
    for _ in 0..3 {
        assert!(nbd.read(block as u64, 4096).is_err(), "wrong bytes are never read");
    }
    assert!(nbd.read(block as u64 + 4096, 4096).unwrap() == bytes[block + 4096..block + 8192], "its neighbours are well");
    wait_for("the event", LIMIT, || findings(&pool, "unrepairable") == 1);
    assert_eq!(
        events(&pool, &format!("4 KiB at offset {block} of area b1 at server-b")),
        1,
        "told once, however often it is read"
    );
    // What is written anew is right.
    nbd.write(block as u64, &bytes[block..block + 4096]).unwrap();
    assert!(nbd.read_all().unwrap() == bytes);
    drop(nbd);
    pool.finish(0, "v");
}
