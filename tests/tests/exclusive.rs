//! One volume, one holder: leases, races, transfer, and fencing of a client that is frozen with writes in flight.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sublet_tests::model::same;
use sublet_tests::nbd::{Nbd, Op};
use sublet_tests::process::Process;
use sublet_tests::random::Random;
use sublet_tests::shorthand::{number, text};
use sublet_tests::{MIB, Pool, Wish, exit, holds_within, soak_time, wait_for};

fn pool(servers: usize) -> Pool {
    Pool::with(&Wish { servers, area: Some("64M") })
}

#[test]
fn a_volume_lent_to_one_server_is_refused_to_another_with_the_holders_name() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way divided --on c1:16M");
    assert!(pool.volume("v")["borrower"].is_null());
    // Borrowing is not mounting: the lease is in the table, the status is 0.
    let row = pool.json(0, "borrow v");
    assert_eq!((text(&row, "/borrower"), number(&row, "/status")), ("server-a".into(), 0));
    for mounted in [false, true] {
        if mounted {
            pool.ok(0, "mount v --as socket");
            assert_eq!(pool.volume("v")["status"], 1);
        }
        for line in ["borrow v", "mount v --as socket", "return v", "search v x", "volume init v", "unmount v"] {
            pool.refused(1, line, exit::CONFLICT).says(if line.starts_with("unmount") && !mounted {
                "not mounted"
            } else {
                "server-a"
            });
        }
        assert_eq!(pool.volume("v")["borrower"], "server-a");
        assert_eq!(pool.volume("v")["status"], u64::from(mounted));
    }
    // Its own mount is not doubled, and a mounted volume is not returned.
    pool.refused(0, "mount v --as socket", exit::CONFLICT);
    pool.refused(0, "return v", exit::CONFLICT);
    pool.refused(0, "borrow v", exit::CONFLICT);
    assert_eq!(pool.nbd(0, "v").read(0, 4).unwrap(), [0; 4], "the mount goes on");
    pool.finish(0, "v");
    // Now it is free for the other one.
    pool.ok(1, "borrow v");
    pool.refused(0, "mount v --as socket", exit::CONFLICT).says("server-b");
}

#[test]
fn the_secret_of_a_lease_is_kept_private() {
    use std::os::unix::fs::PermissionsExt;
    let pool = pool(2);
    pool.ok(0, "borrow v --size 16M");
    let mounted = pool.json(0, "mount v --as socket");
    assert!(!mounted.to_string().contains("secret"), "{mounted:#}");
    assert!(!pool.json(0, "status").to_string().contains("secret"));
    let path = pool.mount_dir(0, "v").join("mount.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(path).unwrap().contains("secret"));
    assert_eq!(std::fs::metadata(pool.home(0).join("identity.json")).unwrap().permissions().mode() & 0o777, 0o600);
}

/// Two servers take the same volume in turns, as fast as they can; the holder writes its stamp and finds nothing else.
fn race(rounds: usize, limit: Duration) {
    let pool = pool(3);
    pool.ok(0, "volume create v --way divided --on c1:16M");
    let (held, taken) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let won = std::thread::scope(|scope| {
        let racers: Vec<_> = [0, 1]
            .into_iter()
            .map(|server| {
                scope.spawn({
                    let (pool, held, taken) = (&pool, &held, &taken);
                    move || {
                        let mut won = 0;
                        while taken.load(Ordering::SeqCst) < rounds && begun.elapsed() < limit {
                            let borrowed = pool.sublet(server, &["borrow", "v"]);
                            if !borrowed.succeeded() {
                                borrowed.refused(exit::CONFLICT);
                                // The loser tries to mount what it does not have; it may have become free at this moment.
                                pool.sublet(server, &["mount", "v", "--as", "socket"]).refused(exit::CONFLICT);
                                continue;
                            }
                            assert!(!held.swap(true, Ordering::SeqCst), "both servers hold the lease");
                            let mut nbd = pool.mount(server, "v", "");
                            assert_eq!(nbd.read(0, 4096).unwrap(), [0; 4096], "bytes of the former borrower");
                            for round in 0..10u8 {
                                let stamp = vec![server as u8 * 100 + round + 1; 4096];
                                nbd.write(0, &stamp).unwrap();
                                assert_eq!(nbd.read(0, 4096).unwrap(), stamp, "somebody else wrote");
                            }
                            drop(nbd);
                            pool.ok(server, "unmount v");
                            won += 1;
                            taken.fetch_add(1, Ordering::SeqCst);
                            assert!(held.swap(false, Ordering::SeqCst));
                            pool.ok(server, "return v");
                        }
                        won
                    }
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect::<Vec<usize>>()
    });
    eprintln!("server-a won {} times, server-b {} times, in {:.1?}", won[0], won[1], begun.elapsed());
    assert!(won[0] + won[1] >= rounds.min(5), "hardly anybody ever won: {won:?}");
    assert!(pool.volume("v")["borrower"].is_null());
}

#[test]
fn two_servers_race_for_one_volume_and_exactly_one_holds_it() {
    race(20, Duration::from_secs(50));
}

#[test]
#[ignore = "soak"]
fn two_servers_race_for_one_volume_a_hundred_times() {
    race(100, soak_time());
}

#[test]
fn simultaneous_borrows_of_one_free_volume_have_one_winner() {
    let pool = pool(4);
    for round in 0..5 {
        pool.ok(0, "volume create v --way divided --on d1:16M");
        let codes: Vec<Option<i32>> = std::thread::scope(|scope| {
            let racers: Vec<_> = [0, 1, 2]
                .map(|server| {
                    scope.spawn({
                        let pool = &pool;
                        move || pool.sublet(server, &["borrow", "v"]).code
                    })
                })
                .into_iter()
                .collect();
            racers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        let winners: Vec<usize> = (0..3).filter(|n| codes[*n] == Some(0)).collect();
        assert_eq!(winners.len(), 1, "round {round}: {codes:?}");
        assert!(codes.iter().all(|c| *c == Some(0) || *c == Some(exit::CONFLICT)), "{codes:?}");
        assert_eq!(pool.volume("v")["borrower"], sublet_tests::pool::name(winners[0]));
        pool.ok(winners[0], "return v --dissolve");
        pool.refused(0, "volume show v", exit::NOT_FOUND);
    }
}

#[test]
fn a_transfer_hands_over_the_volume_with_its_bytes() {
    let pool = pool(3);
    let mut nbd = pool.carve(0, "v", "--size 24M --way doubled --local");
    let bytes = Random::new(4).bytes(3 << 20);
    nbd.write(5 * MIB + 1, &bytes).unwrap();
    drop(nbd);
    pool.refused(0, "transfer v --to server-b", exit::CONFLICT).says("mounted");
    pool.refused(0, "transfer v --to server-z", exit::NOT_FOUND);
    let closed = pool.json(0, "unmount v");
    pool.refused(1, "mount v --as socket", exit::CONFLICT);
    pool.ok(0, "transfer v --to server-b");
    assert_eq!(pool.volume("v")["borrower"], "server-b");
    pool.refused(0, "mount v --as socket", exit::CONFLICT).says("server-b");
    pool.refused(0, "return v", exit::CONFLICT).says("server-b");
    let mut nbd = pool.mount(1, "v", "");
    same(&nbd.read(5 * MIB + 1, 3 << 20).unwrap(), &bytes, 5 * MIB + 1, "after the transfer");
    assert!(pool.volume("v")["epoch"] != closed["epoch_closed"], "a new epoch");
}

/// Keeps writing 64 KiB blocks of `byte` from a thread of its own, eight in flight, until an error.
fn scribble(socket: std::path::PathBuf, byte: u8) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut nbd = Nbd::connect(&socket).unwrap();
        let (size, mut at, mut answered, mut flying) = (nbd.size, 0, 0, 0);
        loop {
            while flying < 8 {
                if nbd.submit(&Op::Write(at, vec![byte; 65_536], 0)).is_err() {
                    return answered;
                }
                at = (at + 65_536) % size;
                flying += 1;
            }
            match nbd.complete() {
                Ok(done) if done.error == 0 => answered += 1,
                _ => return answered,
            }
            flying -= 1;
        }
    })
}

/// After the fence: server-b writes 2s all over; the frozen client is continued; nothing of its 1s may land.
fn nothing_old_lands(pool: &Pool, old: &Process) {
    let mut new = pool.mount(1, "v", "");
    let mib = vec![2u8; 1 << 20];
    for at in (0..new.size).step_by(1 << 20) {
        new.write(at, &mib).unwrap();
    }
    new.flush().unwrap();
    old.thaw();
    wait_for("the fenced client to end by itself", Duration::from_secs(20), || !old.runs());
    let log = std::fs::read_to_string(old.home.join("log")).unwrap_or_default().to_lowercase();
    assert!(log.contains("stale") || log.contains("fenced"), "its log does not say why it ended:\n{log}");
    // Also what was on the wire, or at the lender's disk, has had its time now.
    let all = new.read_all().unwrap();
    let old_bytes = all.iter().filter(|b| **b != 2).count();
    assert_eq!(old_bytes, 0, "bytes of the fenced client landed");
    drop(new);
    // What is left at the old place is cleared, and says what happened.
    pool.ok(0, "unmount v");
    assert!(!pool.mount_dir(0, "v").exists());
    assert_eq!(pool.volume("v")["borrower"], "server-b");
    assert_eq!(pool.volume("v")["status"], 1);
}

fn frozen_client(way: &str) {
    let pool = pool(4);
    pool.ok(0, &format!("borrow v --size 24M --way {way}"));
    pool.ok(0, "mount v --as socket");
    let writer = scribble(pool.socket(0, "v"), 1);
    let client = pool.client(0, "v");
    let mut reader = pool.nbd(0, "v");
    wait_for("writes to flow", Duration::from_secs(10), || reader.read(8 * MIB, 1).unwrap() == [1]);
    client.freeze();
    // Without --force it stays where it is.
    pool.refused(2, "transfer v --to server-b", exit::CONFLICT);
    pool.ok(2, "transfer v --to server-b --force");
    nothing_old_lands(&pool, &client);
    assert!(writer.join().unwrap() > 0, "no write was ever answered");
    assert!(reader.read(0, 1).is_err(), "the old connection still answers");
}

#[test]
fn a_frozen_client_of_a_single_volume_is_fenced_and_none_of_its_bytes_lands() {
    frozen_client("single");
}

#[test]
fn a_frozen_client_of_a_doubled_volume_is_fenced_and_none_of_its_bytes_lands() {
    frozen_client("doubled");
}

#[test]
fn a_fence_is_not_answered_before_a_hung_lender_has_let_go() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way divided --on c1:24M");
    pool.ok(0, "borrow v");
    pool.ok(0, "mount v --as socket");
    let writer = scribble(pool.socket(0, "v"), 1);
    let client = pool.client(0, "v");
    let mut reader = pool.nbd(0, "v");
    wait_for("writes to flow", Duration::from_secs(10), || reader.read(4 * MIB, 1).unwrap() == [1]);
    // Frozen with writes in its receive buffers, on the wire, and at the client.
    let lender = pool.server(2);
    lender.freeze();
    std::thread::sleep(Duration::from_millis(200));
    client.freeze();
    // F3: the only leg cannot be fenced, so the volume must not be handed on; the answer names the lender.
    pool.refused(1, "transfer v --to server-b --force", exit::UNREACHABLE).says("server-c");
    assert!(!pool.sublet(1, &["mount", "v", "--as", "socket"]).succeeded(), "mounted although its lender was not fenced");
    lender.thaw();
    wait_for("the lender to be back", Duration::from_secs(30), || {
        pool.sublet(1, &["transfer", "v", "--to", "server-b", "--force"]).succeeded()
            || pool.volume("v")["borrower"] == "server-b"
    });
    nothing_old_lands(&pool, &client);
    drop(reader);
    writer.join().unwrap();
}

#[test]
fn a_forced_unmount_from_elsewhere_stops_the_client_and_its_server_may_mount_again() {
    let pool = pool(3);
    let mut nbd = pool.carve(0, "v", "--size 16M");
    nbd.write(100, b"flushed").unwrap();
    nbd.flush().unwrap();
    let client = pool.client(0, "v");
    let epoch = number(&pool.volume("v"), "/epoch/number");
    let unmounting = pool.json(1, "unmount v --force");
    assert_eq!(number(&unmounting, "/status"), 0);
    assert_eq!(number(&unmounting, "/epoch_closed/number"), epoch);
    assert_eq!(pool.volume("v")["status"], 0);
    // F4: it stops by itself, also without I/O of its own.
    wait_for("the fenced client to end", Duration::from_secs(15), || !client.runs());
    assert!(nbd.read(100, 7).is_err());
    let mut nbd = pool.mount(0, "v", "");
    assert_eq!(nbd.read(100, 7).unwrap(), b"flushed");
}

#[test]
fn a_client_cut_off_by_a_transfer_fails_writes_and_flushes_loudly() {
    let pool = pool(3);
    let mut nbd = pool.carve(0, "v", "--size 16M --way doubled --local");
    nbd.write(0, &[1; 4096]).unwrap();
    pool.ok(1, "transfer v --to server-b --force");
    let refused =
        holds_within(Duration::from_secs(10), || nbd.call(&Op::Write(0, vec![9; 4096], 0)).map_or(true, |done| done.error != 0));
    assert!(refused, "writes are still acknowledged after the fence");
    assert_eq!(pool.mount(1, "v", "").read(0, 4096).unwrap(), [1; 4096]);
    pool.ok(0, "unmount v");
}
