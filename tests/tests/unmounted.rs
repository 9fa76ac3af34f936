//! What happens to a volume while nobody has it mounted: lenders bring its copies up to date (F5).

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use sublet_tests::disks;
use sublet_tests::nbd::Op;
use sublet_tests::random::Random;
use sublet_tests::{MIB, Pool, Wish, wait_for};

/// How long a resync of these small volumes may take, the lender's registration and the rest after the unmount included.
const RESYNC: Duration = Duration::from_secs(60);

/// A doubled volume of which the copy at `server-c` was away while it was written, and is back now; nobody has it mounted.
fn stale_and_unmounted(size: u64) -> (Pool, Vec<u8>) {
    let pool = Pool::with(&Wish { servers: 3, area: Some("256M") });
    pool.ok(0, &format!("volume create v --way doubled --on b1:{size},c1:{size}"));
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let mut bytes = Random::new(5).bytes(size as usize);
    let write = |nbd: &mut sublet_tests::nbd::Nbd, from: usize, bytes: &[u8]| {
        for (n, part) in bytes.chunks(1 << 20).enumerate() {
            nbd.write((from + (n << 20)) as u64, part).unwrap();
        }
        nbd.flush().unwrap();
    };
    write(&mut nbd, 0, &bytes);
    let lender = pool.kill(2);
    let (from, new) = (bytes.len() / 4, Random::new(6).bytes(bytes.len() / 2));
    bytes[from..from + new.len()].copy_from_slice(&new);
    // Waits until the volume goes on without the copy (S1).
    write(&mut nbd, from, &new);
    drop(nbd);
    pool.ok(0, "unmount v");
    assert_eq!(pool.legs("v"), ["in-sync", "stale"]);
    pool.revive(2, &lender);
    (pool, bytes)
}

/// Each copy alone has all of it.
fn each_copy_has(pool: &Pool, bytes: &[u8]) {
    for lender in [1, 2] {
        let killed = pool.kill(lender);
        let mut nbd = pool.mount(0, "v", "");
        assert!(nbd.read_all().unwrap() == bytes, "without server {lender}");
        drop(nbd);
        pool.ok(0, "unmount v");
        pool.revive(lender, &killed);
        pool.wait_in_sync("v", RESYNC);
    }
}

#[test]
fn f5_a_lender_brings_a_copy_up_to_date_while_nobody_has_the_volume_mounted() {
    let (pool, bytes) = stale_and_unmounted(32 * MIB);
    pool.wait_in_sync("v", RESYNC);
    assert_eq!(pool.volume("v")["status"], 0, "nobody has mounted it");
    each_copy_has(&pool, &bytes);
    pool.ok(0, "return v");
}

#[test]
fn k1_f5_a_scrub_of_an_unmounted_volume_mends_rot_and_tells_of_it() {
    let pool = Pool::with(&Wish { servers: 3, area: Some("128M") });
    pool.ok(0, "volume create v --way doubled --on b1:32M,c1:32M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let bytes = Random::new(7).bytes(32 << 20);
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        nbd.write((n << 20) as u64, part).unwrap();
    }
    drop(nbd);
    pool.ok(0, "unmount v");
    // One copy rots while its server is away: a bit here, a whole block there.
    let lender = pool.kill(2);
    let file = pool.area_files(2).remove(0);
    let at = |n: usize| disks::find(&file, &bytes[n..n + 4096]).expect("the copy lies in the file");
    let places = [9 << 20, (20 << 20) + 8192].map(at);
    disks::put(&file.to_string_lossy(), places[0] + 100, &[!bytes[(9 << 20) + 100]]);
    disks::put(&file.to_string_lossy(), places[1], &[0x55; 4096]);
    pool.revive(2, &lender);
    pool.ok(0, "volume scrub v");
    let mended = |n: usize| disks::find(&file, &bytes[n..n + 4096]).is_some();
    wait_for("the rot to be mended", RESYNC, || mended(9 << 20) && mended((20 << 20) + 8192));
    let told = || pool.json(0, "events").to_string().contains("repaired");
    wait_for("an event of it", RESYNC, told);
    assert_eq!(pool.volume("v")["status"], 0, "nobody has mounted it");
    each_copy_has(&pool, &bytes);
    pool.ok(0, "return v");
}

#[test]
fn h3_f5_what_a_crashed_client_left_different_is_made_equal_while_nobody_has_the_volume_mounted() {
    let pool = Pool::with(&Wish { servers: 3, area: Some("128M") });
    pool.ok(0, "volume create v --way doubled --on b1:32M,c1:32M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let mut random = Random::from_env("writes in flight");
    let first = random.bytes(4096);
    nbd.write(0, &first).unwrap();
    nbd.flush().unwrap();
    // One lender is slow: most of these writes are at one copy only when the client dies.
    let slow = pool.server(2);
    slow.freeze();
    for _ in 0..64 {
        let at = 4096 * (1 + random.below((32 << 20) / 4096 - 1));
        nbd.submit(&Op::Write(at, random.bytes(4096), 0)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    pool.client(0, "v").kill();
    drop(nbd);
    slow.signal(rustix::process::Signal::KILL);
    pool.revive(2, &slow);
    let copy = |server: usize| {
        let file = pool.area_files(server).remove(0);
        let at = disks::find(&file, &first).expect("the copy lies in the file") as usize;
        std::fs::read(file).unwrap()[at..at + (32 << 20)].to_vec()
    };
    assert!(copy(1) != copy(2), "the client left the copies different");
    pool.ok(0, "unmount v --force");
    wait_for("the copies to be equal", RESYNC, || copy(1) == copy(2));
    assert_eq!((pool.legs("v"), &pool.volume("v")["status"]), (vec!["in-sync".into(), "in-sync".into()], &0.into()));
    pool.ok(0, "return v");
}

#[test]
fn f5_a_mount_takes_over_from_a_lender_at_any_moment() {
    let (pool, bytes) = stale_and_unmounted(64 * MIB);
    let mut random = Random::from_env("moments");
    for _ in 0..4 {
        // Before, during and after the lender's work.
        std::thread::sleep(Duration::from_millis(random.below(4000)));
        let begun = Instant::now();
        let mut nbd = pool.mount(0, "v", "");
        assert!(begun.elapsed() < Duration::from_secs(20), "a mount waits for no background work: {:?}", begun.elapsed());
        assert!(nbd.read_all().unwrap() == bytes);
        drop(nbd);
        pool.ok(0, "unmount v");
    }
    pool.wait_in_sync("v", RESYNC);
    each_copy_has(&pool, &bytes);
    pool.ok(0, "return v");
}

#[test]
fn f5_a_coordinator_that_dies_is_replaced() {
    let (pool, bytes) = stale_and_unmounted(64 * MIB);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1500));
        pool.bounce(1);
    }
    wait_for("all copies to be in sync", RESYNC, || pool.legs("v").iter().all(|state| state == "in-sync"));
    each_copy_has(&pool, &bytes);
    pool.ok(0, "return v");
}
