//! Everything is killed, frozen, "rebooted", restarted, fenced and cut off at random while volumes of all usage ways are written and
//! read; then everything is checked. `cargo xtask torture SECONDS --seed S` runs it for longer, with the release binary.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sublet_tests::fio::Fio;
use sublet_tests::random::Random;
use sublet_tests::torture::chaos::Chaos;
use sublet_tests::torture::site::{Daemon, LENDERS, SERVERS, Site, VOLUMES};
use sublet_tests::torture::timeline::Timeline;
use sublet_tests::torture::writer::{HEAL_LIMIT, Load, Writer};
use sublet_tests::{MIB, wait_for};

/// fio writes and verifies, round after round.
fn fio_rounds(site: &Site, load: &Load<'_>) -> u64 {
    let socket = site.pool.socket(0, "fio");
    let mut rounds = 0;
    while !load.over.load(Ordering::SeqCst) {
        let (block, depth, amount) = [("4k", 8, 4), ("64k", 4, 16), ("16k", 8, 8)][rounds as usize % 3];
        let fio = Fio::nbd(&socket).job(block, depth, amount * MIB).seed(rounds + 1);
        if let Err(what) = fio.try_write().and_then(|()| fio.try_verify()) {
            // Wrong bytes are never allowed, an error is where nobody could know better.
            assert!(!what.contains("verify:"), "fio on a doubled volume, round {rounds}: {what}");
            load.timeline.note(format!("fio: failed loudly in round {rounds}"));
            load.mount_again(0, "fio", true);
        }
        rounds += 1;
    }
    rounds
}

/// All legs in sync, all paths open.
fn heal(site: &Site, timeline: &Timeline) {
    site.revive(Daemon::Manager);
    for server in 0..SERVERS {
        site.revive(Daemon::Server(server));
    }
    for plan in VOLUMES {
        let took = site.pool.wait_in_sync(plan.name, HEAL_LIMIT);
        wait_for(&format!("the path of {} to be open", plan.name), HEAL_LIMIT, || site.pool.volume(plan.name)["path"] == "open");
        timeline.note(format!("{} is in sync, after {took:.1?}", plan.name));
    }
    for server in 0..2 {
        wait_for("legs to be made equal", HEAL_LIMIT, || site.pool.legs_are_equal(server));
    }
}

fn check_all(site: &Site, writers: &mut [(usize, Writer)], skip: impl Fn(usize) -> bool, when: &str) {
    for (number, writer) in writers.iter_mut().filter(|(number, _)| !skip(*number)) {
        let plan = VOLUMES[*number];
        writer.check_all(&mut site.pool.nbd(plan.borrower, plan.name), when);
    }
}

/// Each leg alone has everything: every lender dies in turn.
fn check_each_leg(site: &Site, writers: &mut [(usize, Writer)], timeline: &Timeline) {
    for lender in LENDERS {
        timeline.note(format!("check without {}", Daemon::Server(lender)));
        site.process(Daemon::Server(lender)).expect("it runs").kill();
        let when = format!("without {}", Daemon::Server(lender));
        check_all(site, writers, |number| VOLUMES[number].way != "doubled", &when);
        heal(site, timeline);
    }
}

/// Everything is unmounted and given back; the space that becomes free reads as zeroes.
fn check_space(site: &Site) {
    let pool = &site.pool;
    for plan in VOLUMES {
        pool.ok(plan.borrower, &format!("unmount {}", plan.name));
        pool.ok(plan.borrower, &format!("return {} --dissolve", plan.name));
    }
    wait_for("all space to be free again", HEAL_LIMIT, || {
        let areas = pool.json(0, "area ls");
        areas.as_array().unwrap().iter().all(|area| area["free"] == area["capacity"])
    });
    for area in ["c1", "c2", "d1", "e1", "e2"] {
        let name = format!("new-{area}");
        pool.ok(0, &format!("volume create {name} --way single --on {area}:24M"));
        pool.ok(0, &format!("borrow {name}"));
        let mut nbd = pool.mount(0, &name, "");
        assert!(nbd.read_all().unwrap().iter().all(|byte| *byte == 0), "{area}: bytes of a former borrower");
        drop(nbd);
        pool.finish(0, &name);
    }
    let tasks = pool.json(0, "task ls");
    assert!(tasks.as_array().unwrap().iter().all(|t| t["state"] != "running" && t["state"] != "waiting"), "{tasks:#}");
}

fn torture(time: Duration) {
    let mut random = Random::from_env("torture");
    let timeline = Timeline::new();
    let site = Site::new();
    let load = Load::new(&site.pool, &timeline);
    let users = VOLUMES.iter().enumerate().filter(|(_, plan)| plan.name != "fio");
    let mut writers: Vec<(usize, Writer)> = users
        .map(|(number, plan)| {
            let size = site.pool.nbd(plan.borrower, plan.name).size;
            (number, Writer::new(plan.name, plan.borrower, size, random.bits()))
        })
        .collect();
    let (load, seed, begun) = (&load, random.bits(), Instant::now());
    let (rounds, faults) = std::thread::scope(|scope| {
        for (_, writer) in &mut writers {
            scope.spawn(|| {
                let _end = load.ends_all();
                writer.work(load);
            });
        }
        let fio = scope.spawn(|| {
            let _end = load.ends_all();
            fio_rounds(&site, load)
        });
        let _end = load.ends_all();
        let mut chaos = Chaos::new(&site, load, seed);
        chaos.torment(time);
        load.over.store(true, Ordering::SeqCst);
        timeline.note("no more faults");
        (fio.join().expect("fio failed"), chaos.count)
    });
    let answered: u64 = writers.iter().map(|(_, writer)| writer.answered).sum();
    let failures = load.failures.load(Ordering::SeqCst);
    eprintln!("torture: {faults} faults in {:.0?}, {answered} verified operations, {rounds} rounds of fio", begun.elapsed());
    for (number, writer) in &writers {
        eprintln!("  {:10} {:8} operations, the slowest {:.1?}", VOLUMES[*number].name, writer.answered, writer.slowest);
    }
    assert_eq!(failures, 0, "W5: a client that lives writes again what lenders may have lost");
    assert!(faults > 5 && answered > 100 && rounds > 0, "that was no torture");
    heal(&site, &timeline);
    timeline.note("healed");
    check_all(&site, &mut writers, |_| false, "after healing");
    check_each_leg(&site, &mut writers, &timeline);
    check_all(&site, &mut writers, |_| false, "at the end");
    for plan in VOLUMES {
        site.pool.ok(plan.borrower, &format!("volume scrub {} --rate 500M --wait", plan.name));
    }
    timeline.note("scrubbed");
    let events = site.pool.ok(0, "events --limit 100000").out;
    // No disk has lied here: whatever is repaired, differs or cannot be read is a fault of ours (K1).
    for strange in ["split", "quarantine", "repaired from", "differed from", "do not match"] {
        assert!(!events.contains(strange), "events speak of '{strange}':\n{events}");
    }
    check_space(&site);
}

#[test]
fn everything_dies_hangs_and_is_cut_off_under_verified_load() {
    let time = std::env::var("SUBLET_TORTURE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    torture(Duration::from_secs(time));
}
