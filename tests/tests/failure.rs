//! Lenders, managers and clients die, hang and come back, while people work on their volumes.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sublet_tests::fio::Fio;
use sublet_tests::model::same;
use sublet_tests::nbd::Op;
use sublet_tests::process::Process;
use sublet_tests::random::Random;
use sublet_tests::shorthand::text;
use sublet_tests::{MIB, Pool, Wish, exit, has_devices, holds_within, leaks, soak_time, tree, wait_for};

/// A doubled volume must go on within this time (the named limit of the design), plus what a busy machine needs.
const GO_ON: Duration = Duration::from_secs(12);
/// How long a resync of these small volumes may take, the lender's registration included.
const RESYNC: Duration = Duration::from_secs(40);

fn pool(servers: usize) -> Pool {
    Pool::with(&Wish { servers, area: Some("128M") })
}

/// Kills one of the processes, waits a moment, starts it again, and so on, until `enough`.
fn kill_at_random(pool: &Pool, seed: u64, enough: impl Fn(u32) -> bool) -> u32 {
    let mut random = Random::new(seed);
    let mut kills = 0;
    while !enough(kills) {
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        let away = Duration::from_millis(random.below(1200));
        match random.below(3) {
            0 => {
                let manager = pool.manager();
                manager.kill();
                std::thread::sleep(away);
                pool.revive_manager(&manager);
            }
            which => {
                let lender = pool.kill(which as usize);
                std::thread::sleep(away);
                // Started again without waiting: the next kill may come while it is still coming up.
                lender.restart();
                wait_for("the pid file", Duration::from_secs(20), || Process::of(&lender.home).is_some());
            }
        }
        kills += 1;
    }
    kills
}

fn killed_under_fio(time: Duration) {
    let pool = pool(3);
    pool.ok(0, "volume create v --way doubled --on b1:48M,c1:48M");
    pool.ok(0, "borrow v");
    pool.ok(0, "mount v --as socket");
    let socket = pool.socket(0, "v");
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let seed = Random::from_env("kills").bits();
    let (rounds, kills) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let kills = kill_at_random(&pool, seed, |_| begun.elapsed() > time);
            over.store(true, Ordering::SeqCst);
            kills
        });
        let mut rounds = 0;
        while !over.load(Ordering::SeqCst) && !killer.is_finished() {
            let (block, depth, amount) = [("4k", 16, 8), ("64k", 8, 48), ("16k", 32, 16)][rounds % 3];
            Fio::nbd(&socket).job(block, depth, amount * MIB).seed(rounds as u64 + 1).check();
            rounds += 1;
        }
        (rounds, killer.join().unwrap())
    });
    eprintln!("{rounds} rounds of fio, {kills} kills");
    assert!(rounds > 0 && kills > 2, "{rounds} rounds, {kills} kills");
    let last = Fio::nbd(&socket).job("64k", 8, 48 * MIB).seed(99);
    last.write();
    pool.wait_in_sync("v", Duration::from_secs(60));
    // Each leg alone has everything.
    for lender in [1, 2] {
        let process = pool.kill(lender);
        last.verify();
        pool.revive(lender, &process);
        pool.wait_in_sync("v", RESYNC);
    }
}

#[test]
fn manager_and_servers_are_killed_at_random_while_fio_verifies_on_a_doubled_volume() {
    killed_under_fio(Duration::from_secs(20));
}

#[test]
#[ignore = "soak"]
fn manager_and_servers_are_killed_at_random_for_long() {
    killed_under_fio(soak_time());
}

#[test]
fn io_on_a_single_volume_waits_for_its_lender_and_goes_on() {
    let pool = pool(2);
    let mut nbd = pool.carve(0, "v", "--size 48M --way single");
    let old = Random::new(1).bytes(1 << 20);
    nbd.write(0, &old).unwrap();
    let lender = pool.kill(1);
    let new = Random::new(2).bytes(65_536);
    let write = nbd.submit(&Op::Write(500_000, new.clone(), 0)).unwrap();
    nbd.set_patience(Duration::from_secs(3)).unwrap();
    assert!(nbd.complete().is_err(), "a write was answered although its only lender is dead");
    nbd.set_patience(Duration::from_secs(60)).unwrap();
    // The state says which lender is missing, here and in the table.
    let status = pool.json(0, "status");
    assert!(status["mounts"][0].to_string().contains("server-b"), "{status:#}");
    wait_for("the table to say so", Duration::from_secs(5), || {
        let row = pool.volume("v");
        row["path"] == "lost" && text(&row, "/path_reason").contains("server-b")
    });
    assert_eq!(pool.volume("v")["status"], 1);
    lender.restart();
    let done = nbd.complete().unwrap();
    assert_eq!((done.cookie, done.error), (write, 0));
    let mut expected = old;
    expected[500_000..565_536].copy_from_slice(&new);
    same(&nbd.read(0, 1 << 20).unwrap(), &expected, 0, "after the restart");
    wait_for("the path to be open again", Duration::from_secs(5), || pool.volume("v")["path"] == "open");
    assert_eq!(text(&pool.volume("v"), "/path_reason"), "");
}

#[test]
fn a_killed_lender_comes_back_under_load_without_an_error() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way integrated --on b1:20M,c1:20M");
    pool.ok(0, "borrow v");
    pool.ok(0, "mount v --as socket");
    let fio = Fio::nbd(&pool.socket(0, "v")).job("16k", 32, 40 * MIB);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| fio.try_write());
        for lender in [1, 2, 1] {
            std::thread::sleep(Duration::from_millis(400));
            pool.bounce(lender);
        }
        writing.join().unwrap().unwrap();
    });
    fio.verify();
}

#[test]
fn servers_and_managers_started_at_once_after_a_kill_come_up() {
    let pool = pool(3);
    pool.ok(0, "borrow v --size 48M --way doubled");
    pool.ok(0, "mount v --as socket");
    let fio = Fio::nbd(&pool.socket(0, "v")).job("16k", 32, 48 * MIB);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| fio.try_write());
        for _ in 0..4 {
            // As a script does it: the kernel may not be done with the old process, its locks and its ports.
            let (lender, manager) = (pool.server(1), pool.manager());
            for process in [&lender, &manager] {
                process.signal(rustix::process::Signal::KILL);
                process.restart();
            }
            let back = |old: &Process| Process::of(&old.home).is_some_and(|new| new.pid != old.pid);
            wait_for("new processes", Duration::from_secs(20), || back(&lender) && back(&manager) && pool.is_up(1));
        }
        writing.join().unwrap().unwrap();
    });
    fio.verify();
}

#[test]
fn fail_after_turns_waiting_into_an_error() {
    let pool = pool(2);
    pool.ok(0, "borrow v --size 16M");
    let mut nbd = pool.mount(0, "v", "--fail-after 2s");
    nbd.write(0, b"kept").unwrap();
    nbd.flush().unwrap();
    let lender = pool.kill(1);
    let begun = Instant::now();
    let done = nbd.call(&Op::Write(0, vec![1; 4096], 0)).unwrap();
    let took = begun.elapsed();
    assert_ne!(done.error, 0);
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(8), "failed after {took:?}");
    assert!(pool.json(0, "status")["mounts"][0].to_string().contains("server-b"), "the status names the missing lender");
    // Unmounting does not hang either.
    assert_ne!(pool.sublet_within(0, &["unmount", "v"], Duration::from_secs(60)).sane().code, None);
    pool.revive(1, &lender);
    if Process::of(&pool.mount_dir(0, "v")).is_some() || pool.volume("v")["status"] == 1 {
        pool.ok(0, "unmount v --force");
    }
    assert_eq!(pool.mount(0, "v", "").read(4096, 4).unwrap(), [0; 4]);
}

/// Writes 4 KiB after 4 KiB, one at a time; returns how long the slowest took, and what was written.
fn write_on(pool: &Pool, size: u64, until: impl Fn() -> bool) -> (Duration, Vec<u8>) {
    let mut nbd = pool.nbd(0, "v");
    let mut random = Random::new(77);
    let mut model = nbd.read_all().unwrap();
    let mut slowest = Duration::ZERO;
    while !until() {
        let at = random.below(size / 512 - 8) * 512;
        let bytes = random.bytes(4096);
        let begun = Instant::now();
        nbd.write(at, &bytes).unwrap();
        slowest = slowest.max(begun.elapsed());
        model[at as usize..at as usize + 4096].copy_from_slice(&bytes);
    }
    nbd.flush().unwrap();
    (slowest, model)
}

fn without_one_leg(take_away: impl Fn(&Pool) -> Process, bring_back: impl Fn(&Pool, &Process)) {
    let pool = pool(3);
    pool.ok(0, "volume create v --way doubled --on b1:32M,c1:32M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    nbd.write(0, &Random::new(8).bytes(8 << 20)).unwrap();
    let gone = take_away(&pool);
    // S1: an acknowledged write that one leg missed means that the table knows of the stale leg already.
    nbd.write(1 << 20, &[5; 4096]).unwrap();
    assert_eq!(pool.legs("v"), ["stale", "in-sync"], "acknowledged before the stale leg was recorded");
    let begun = Instant::now();
    let (slowest, model) = write_on(&pool, 32 * MIB, || begun.elapsed() > Duration::from_secs(4));
    assert!(slowest < Duration::from_secs(1), "the survivor is slow: {slowest:?}");
    assert_eq!(pool.volume("v")["status"], 1);
    bring_back(&pool, &gone);
    pool.wait_in_sync("v", RESYNC);
    // Now the other leg goes, and everything is read from the one that returned.
    let survivor = pool.kill(2);
    same(&nbd.read_all().unwrap(), &model, 0, "from the leg that returned");
    pool.revive(2, &survivor);
    pool.wait_in_sync("v", RESYNC);
    same(&nbd.read_all().unwrap(), &model, 0, "at the end");
}

#[test]
fn a_doubled_volume_survives_a_dead_lender_and_takes_it_back_only_after_a_resync() {
    without_one_leg(|pool| pool.kill(1), |pool, lender| pool.revive(1, lender));
}

#[test]
fn a_doubled_volume_leaves_a_hung_lender_out() {
    without_one_leg(
        |pool| {
            let lender = pool.server(1);
            lender.freeze();
            lender
        },
        |_, lender| lender.thaw(),
    );
}

#[test]
fn a_doubled_volume_goes_on_within_the_named_limit() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way doubled --on b1:32M,c1:32M");
    pool.ok(0, "borrow v");
    pool.ok(0, "mount v --as socket");
    for hang in [false, true] {
        let lender = pool.server(1);
        let over = AtomicBool::new(false);
        let (slowest, model) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_on(&pool, 32 * MIB, || over.load(Ordering::SeqCst)));
            std::thread::sleep(Duration::from_millis(500));
            if hang {
                lender.freeze()
            } else {
                lender.kill()
            }
            wait_for("the stale leg", GO_ON, || pool.legs("v") == ["stale", "in-sync"]);
            std::thread::sleep(Duration::from_secs(1));
            over.store(true, Ordering::SeqCst);
            writer.join().unwrap()
        });
        eprintln!("hang {hang}: the slowest write took {slowest:.1?}");
        assert!(slowest < GO_ON, "a write waited for {slowest:?}");
        let mut nbd = pool.nbd(0, "v");
        same(&nbd.read_all().unwrap(), &model, 0, "without the leg");
        if hang {
            lender.thaw()
        } else {
            pool.revive(1, &lender)
        }
        pool.wait_in_sync("v", RESYNC);
        same(&nbd.read_all().unwrap(), &model, 0, "with the leg");
    }
}

#[test]
fn writes_during_a_resync_reach_both_legs() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way doubled --on b1:96M,c1:96M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    for at in 0..96 {
        nbd.write(at * MIB, &vec![at as u8 + 1; 1 << 20]).unwrap();
    }
    let lender = pool.kill(1);
    nbd.write(0, &[200; 4096]).unwrap();
    assert_eq!(pool.legs("v")[0], "stale");
    let over = AtomicBool::new(false);
    let (_, model) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&pool, 96 * MIB, || over.load(Ordering::SeqCst)));
        pool.revive(1, &lender);
        pool.wait_in_sync("v", RESYNC);
        over.store(true, Ordering::SeqCst);
        writer.join().unwrap()
    });
    pool.kill(2);
    same(&nbd.read_all().unwrap(), &model, 0, "from the leg that was resynced under load");
}

#[test]
fn after_a_killed_client_the_volume_says_so_and_a_second_mount_goes_on() {
    for way in ["doubled", "divided"] {
        let pool = pool(3);
        let mut nbd = pool.carve(0, "v", &format!("--size 32M --way {way}"));
        let bytes = Random::new(5).bytes(4 << 20);
        nbd.write(3 * MIB + 5, &bytes).unwrap();
        nbd.flush().unwrap();
        // Something not flushed, in flight: either is right afterwards, but the legs must agree.
        for n in 0..16u64 {
            nbd.submit(&Op::Write(20 * MIB + n * 4096, vec![n as u8; 4096], 0)).unwrap();
        }
        let client = pool.client(0, "v");
        client.kill();
        assert!(nbd.complete().and_then(|_| nbd.read(0, 1)).is_err() || nbd.read(0, 1).is_err(), "the NBD connection goes on");
        let took = wait_for("the table to say so", Duration::from_secs(2), || pool.volume("v")["path"] == "lost");
        eprintln!("path lost after {took:?}");
        assert_eq!(pool.volume("v")["status"], 1, "it stays mounted until it is unmounted");
        let status = pool.json(0, "status");
        assert!(text(&status, "/mounts/0/path").contains("gone"), "{status:#}");
        pool.refused(1, "borrow v", exit::CONFLICT).says("server-a");
        let mut nbd = pool.mount(0, "v", "");
        same(&nbd.read(3 * MIB + 5, 4 << 20).unwrap(), &bytes, 3 * MIB + 5, "flushed before the crash");
        let first = nbd.read(20 * MIB, 65_536).unwrap();
        assert_eq!(pool.volume("v")["path"], "open");
        if way == "doubled" {
            // Both legs read the same, whatever that is.
            pool.wait_in_sync("v", RESYNC);
            wait_for("the legs to be made equal", RESYNC, || pool.legs_are_equal(0));
            for lender in pool.lenders("v") {
                let process = pool.kill(lender);
                same(&nbd.read(20 * MIB, 65_536).unwrap(), &first, 20 * MIB, "one leg alone");
                nbd.write(0, &[1]).unwrap();
                pool.revive(lender, &process);
                pool.wait_in_sync("v", RESYNC);
            }
        }
    }
}

/// S1, H3: the source dies while the legs may still differ. The other one has lost nothing, and goes on.
#[test]
fn after_a_killed_client_either_lender_may_die_before_the_legs_are_equal() {
    for which in 0..2 {
        let pool = pool(3);
        let mut nbd = pool.carve(0, "v", "--size 128M --way doubled");
        let bytes = Random::new(6).bytes(4 << 20);
        nbd.write(3 * MIB + 5, &bytes).unwrap();
        // Not flushed: in the memory of both lenders' machines, which go on.
        for n in 0..28u64 {
            nbd.write(8 * MIB + n * 4 * MIB, &[n as u8 + 1; 4096]).unwrap();
        }
        pool.client(0, "v").kill();
        drop(nbd);
        let mut nbd = pool.mount(0, "v", "");
        let lender = pool.lenders("v")[which];
        let process = pool.kill(lender);
        eprintln!("equal when its lender was killed: {}", pool.legs_are_equal(0));
        nbd.write(0, &[9; 4096]).unwrap();
        same(&nbd.read(3 * MIB + 5, 4 << 20).unwrap(), &bytes, 3 * MIB + 5, "acknowledged before the crash");
        for n in 0..28u64 {
            same(&nbd.read(8 * MIB + n * 4 * MIB, 4096).unwrap(), &[n as u8 + 1; 4096], 8 * MIB + n * 4 * MIB, "acknowledged");
        }
        pool.revive(lender, &process);
        pool.wait_in_sync("v", RESYNC);
        wait_for("the legs to be made equal", RESYNC, || pool.legs_are_equal(0));
        let other = pool.lenders("v")[1 - which];
        let process = pool.kill(other);
        same(&nbd.read(0, 4096).unwrap(), &[9; 4096], 0, "what was written without it");
        same(&nbd.read(3 * MIB + 5, 4 << 20).unwrap(), &bytes, 3 * MIB + 5, "from the one that had died");
        pool.revive(other, &process);
    }
}

#[test]
fn unmount_after_a_killed_client_leaves_nothing_behind() {
    if !has_devices() {
        return;
    }
    let pool = pool(2);
    pool.ok(0, "borrow crash --size 64M");
    let dir = pool.dir().join("mnt");
    pool.ok(0, &format!("mount crash {} --mkfs ext4", dir.display()));
    tree::copy(&dir, MIB);
    sublet_tests::run::sh("sync", &["-f", &dir.to_string_lossy()]);
    let before = tree::hashes(&dir);
    pool.client(0, "crash").kill();
    pool.ok(0, "unmount crash");
    let home = pool.home(0).join("mounts");
    assert!(leaks::loops(&home).is_empty() && leaks::mounts(&home, &[]).is_empty(), "loop or FUSE stays behind");
    assert!(leaks::mounts(&dir, &[]).is_empty(), "the file system is still mounted");
    assert!(!home.join("crash").exists() && std::fs::symlink_metadata("/dev/sublet/crash").is_err());
    assert_eq!(pool.volume("crash")["status"], 0);
    // And without the unmount, a second mount cleans up and goes on with the same files.
    pool.ok(0, &format!("mount crash {}", dir.display()));
    assert_eq!(tree::hashes(&dir), before);
    pool.client(0, "crash").kill();
    pool.ok(0, &format!("mount crash {}", dir.display()));
    assert_eq!(tree::hashes(&dir), before);
    pool.finish(0, "crash");
}

#[test]
fn a_client_killed_under_a_busy_file_system_can_be_unmounted() {
    if !has_devices() {
        return;
    }
    let pool = pool(2);
    pool.ok(0, "borrow busy --size 96M");
    let dir = pool.dir().join("mnt");
    pool.ok(0, &format!("mount busy {} --mkfs ext4", dir.display()));
    std::fs::write(dir.join("kept"), b"synced before the crash").unwrap();
    sublet_tests::run::sh("sync", &["-f", &dir.to_string_lossy()]);
    let mut writers: Vec<_> = (0..3)
        .map(|n| {
            let of = format!("of={}", dir.join(format!("file{n}")).display());
            let mut dd = sublet_tests::run::tool("dd");
            dd.args(["if=/dev/zero", &of, "bs=64k", "count=100000", "conv=notrunc"]).stderr(std::process::Stdio::null());
            dd.spawn().unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_millis(700));
    pool.client(0, "busy").kill();
    let run = pool.sublet_within(0, &["unmount", "busy"], Duration::from_secs(60)).sane();
    if !run.succeeded() {
        pool.sublet_within(0, &["unmount", "busy", "--force"], Duration::from_secs(60)).ok();
    }
    for writer in &mut writers {
        let _ = writer.kill();
        wait_for("the programs that wrote to end", Duration::from_secs(30), || writer.try_wait().unwrap().is_some());
    }
    assert!(leaks::mounts(&dir, &[]).is_empty(), "the file system is still mounted");
    pool.ok(0, &format!("mount busy {}", dir.display()));
    assert_eq!(std::fs::read(dir.join("kept")).unwrap(), b"synced before the crash");
    pool.finish(0, "busy");
}

#[test]
fn a_manager_killed_in_the_middle_of_work_brings_it_to_an_end() {
    let pool = pool(3);
    let mut random = Random::from_env("manager kills");
    for round in 0..8 {
        let lines = ["borrow v --size 32M --way doubled --local", "mount v --as socket", "unmount v", "return v"];
        for line in lines {
            let manager = pool.manager();
            std::thread::scope(|scope| {
                let command = scope.spawn(|| pool.sublet(0, &sublet_tests::pool::words(line)).sane());
                std::thread::sleep(Duration::from_millis(random.below(60)));
                manager.kill();
                pool.revive_manager(&manager);
                let run = command.join().unwrap();
                // The manager may have died before it accepted the task, or after; the same command then ends it.
                if !run.succeeded() {
                    assert_eq!(run.code, Some(exit::UNREACHABLE), "round {round}: {run}");
                    let done = holds_within(Duration::from_secs(30), || {
                        let again = pool.sublet(0, &sublet_tests::pool::words(line));
                        again.succeeded() || carried_out(&pool, line)
                    });
                    assert!(done, "round {round}: '{line}' never ends");
                }
            });
        }
        wait_for("all space to be free again", Duration::from_secs(20), || {
            let areas = pool.json(0, "area ls");
            areas.as_array().unwrap().iter().all(|a| a["free"] == a["capacity"])
        });
    }
    let tasks = pool.json(0, "task ls");
    assert!(tasks.as_array().unwrap().iter().all(|t| t["state"] == "done" || t["state"] == "failed"), "{tasks:#}");
}

/// True if the state is the one that the command leads to.
fn carried_out(pool: &Pool, line: &str) -> bool {
    let show = pool.sublet(0, &["volume", "show", "v", "--json"]);
    if line.starts_with("return") {
        return show.code == Some(exit::NOT_FOUND);
    }
    let row = show.json();
    match line.split(' ').next() {
        Some("borrow") => row["borrower"] == "server-a" && row["state"] == "ready",
        Some("mount") => row["status"] == 1 && Process::of(&pool.mount_dir(0, "v")).is_some(),
        _ => row["status"] == 0 && !pool.mount_dir(0, "v").exists(),
    }
}

#[test]
fn without_the_manager_mounted_volumes_go_on_and_changes_wait() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way doubled --on b1:32M,c1:32M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let manager = pool.manager();
    manager.kill();
    Fio::nbd(&pool.socket(0, "v")).job("16k", 16, 16 * MIB).check();
    pool.refused(1, "borrow w --size 16M", exit::UNREACHABLE);
    pool.refused(0, "table", exit::UNREACHABLE);
    // S2: two copies without the manager are no majority: writes wait with a visible reason, reads go on.
    nbd.write(0, b"both").unwrap();
    let lender = pool.kill(1);
    nbd.submit(&Op::Write(0, b"wait".to_vec(), 0)).unwrap();
    let mut other = pool.nbd(0, "v");
    other.set_patience(Duration::from_secs(15)).unwrap();
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(other.read(100 * 4096, 4).unwrap().len(), 4, "reads go on");
    nbd.set_patience(Duration::from_secs(1)).unwrap();
    assert!(nbd.complete().is_err(), "a write was acknowledged on one leg that nobody knows of");
    let reason = text(&pool.json(0, "status"), "/mounts/0/reason");
    assert!(reason.contains("manager"), "the reason is visible: {reason}");
    nbd.set_patience(Duration::from_secs(30)).unwrap();
    pool.revive_manager(&manager);
    assert_eq!(nbd.complete().unwrap().error, 0);
    assert_eq!(pool.legs("v"), ["stale", "in-sync"]);
    pool.revive(1, &lender);
    pool.wait_in_sync("v", RESYNC);
    assert_eq!(nbd.read(0, 4).unwrap(), b"wait");
}
