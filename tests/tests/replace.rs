//! A lender that is gone for good: `volume replace` makes its copies anew on free space (S1, S6, P2).

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use sublet_tests::disks;
use sublet_tests::nbd::Nbd;
use sublet_tests::random::Random;
use sublet_tests::{MIB, Pool, Wish, exit, wait_for};

/// How long the copying of these small volumes may take, whatever has to be noticed first included.
const COPIED: Duration = Duration::from_secs(90);
const SIZE: u64 = 32 * MIB;

fn write(nbd: &mut Nbd, from: u64, bytes: &[u8]) {
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        nbd.write(from + ((n as u64) << 20), part).unwrap();
    }
    nbd.flush().unwrap();
}

/// `v` of `server-a` on b1 and c1, mounted and written; `server-d` has free space.
fn doubled() -> (Pool, Nbd, Vec<u8>) {
    let pool = Pool::with(&Wish { servers: 4, area: Some("128M") });
    pool.ok(0, &format!("volume create v --way doubled --on b1:{SIZE},c1:{SIZE}"));
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let bytes = Random::new(11).bytes(SIZE as usize);
    write(&mut nbd, 0, &bytes);
    (pool, nbd, bytes)
}

fn wait_replaced(pool: &Pool) {
    wait_for("the new copy to be in sync", COPIED, || {
        pool.lenders("v") == [1, 3] && pool.legs("v").iter().all(|state| state == "in-sync")
    });
}

/// The new copy alone has all of it.
fn the_new_copy_has(pool: &Pool, nbd: &mut Nbd, bytes: &[u8]) {
    let killed = pool.kill(1);
    assert!(nbd.read_all().unwrap() == bytes, "the new copy differs");
    pool.revive(1, &killed);
    pool.wait_in_sync("v", COPIED);
}

/// The lost server comes back: nothing of it is believed, and its bytes go.
fn the_lost_one_is_wiped(pool: &Pool, lost: &sublet_tests::process::Process, old: &[u8]) {
    let file = pool.area_files(2).remove(0);
    assert!(disks::find(&file, old).is_some(), "the lost copy is still there");
    pool.revive(2, lost);
    wait_for("the lost copy to be wiped", COPIED, || disks::find(&file, old).is_none());
    wait_for("its space to be free", COPIED, || {
        let areas = pool.json(0, "area ls");
        let c1 = areas.as_array().unwrap().iter().find(|area| area["name"] == "c1").unwrap().clone();
        c1["free"] == c1["capacity"]
    });
    assert_eq!(pool.lenders("v"), [1, 3]);
}

#[test]
fn a_lost_copy_of_a_mounted_volume_is_made_anew_while_it_is_used() {
    let (pool, mut nbd, mut bytes) = doubled();
    let old = bytes[5 << 20..(5 << 20) + 4096].to_vec();
    let lost = pool.kill(2);
    // Waits until the volume goes on without the copy (S1); all of it is new then.
    let new = Random::new(12).bytes(8 << 20);
    write(&mut nbd, 0, &new);
    bytes[..new.len()].copy_from_slice(&new);
    let said = pool.ok(0, "volume replace v --lost server-c");
    assert!(said.out.contains("task ls"), "{}", said.out);
    // Work goes on meanwhile, in old and new places.
    let more = Random::new(13).bytes(4 << 20);
    write(&mut nbd, 20 << 20, &more);
    bytes[20 << 20..(20 << 20) + more.len()].copy_from_slice(&more);
    wait_replaced(&pool);
    the_new_copy_has(&pool, &mut nbd, &bytes);
    the_lost_one_is_wiped(&pool, &lost, &old);
    assert!(nbd.read_all().unwrap() == bytes, "its return disturbs nobody");
    drop(nbd);
    pool.finish(0, "v");
}

#[test]
fn a_lost_copy_of_an_unmounted_volume_is_made_anew_by_a_lender() {
    let (pool, nbd, bytes) = doubled();
    drop(nbd);
    pool.ok(0, "unmount v");
    let old = bytes[5 << 20..(5 << 20) + 4096].to_vec();
    pool.refused(0, "volume replace v --lost server-c", exit::CONFLICT).says("not lost");
    let lost = pool.kill(2);
    let is_lost = || {
        let servers = pool.json(0, "server ls");
        servers.as_array().unwrap().iter().any(|server| server["name"] == "server-c" && server["state"] == "lost")
    };
    wait_for("the manager to miss it", COPIED, is_lost);
    pool.refused(0, "volume replace v --lost server-c --on b1", exit::CONFLICT).says("another copy");
    pool.sublet_within(0, &["volume", "replace", "v", "--lost", "server-c", "--on", "d1", "--wait"], COPIED).ok();
    wait_replaced(&pool);
    assert_eq!(pool.volume("v")["status"], 0, "nobody has mounted it");
    let mut nbd = pool.mount(0, "v", "");
    the_new_copy_has(&pool, &mut nbd, &bytes);
    drop(nbd);
    the_lost_one_is_wiped(&pool, &lost, &old);
    pool.finish(0, "v");
}
