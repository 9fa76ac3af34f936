//! Real power cuts: a virtual machine lends a disk with a volatile cache and is killed again and again, while a single and a
//! doubled volume that lie on it are written and read.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sublet_tests::power::disk::Cut;
use sublet_tests::power::guest::{Guest, Kernel};
use sublet_tests::process::Process;
use sublet_tests::random::Random;
use sublet_tests::torture::site::{Daemon, Site};
use sublet_tests::torture::timeline::Timeline;
use sublet_tests::torture::writer::{HEAL_LIMIT, Load, Writer};
use sublet_tests::{MIB, holds_within, soak_time, wait_for};

/// How long the emulated machine may take until it lends (again).
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// The volumes; the first machine borrows them.
const VOLUMES: [&str; 2] = ["single", "doubled"];

fn boot(guest: &mut Guest, timeline: &Timeline) {
    let (before, begun) = (guest.boots(), Instant::now());
    guest.start();
    wait_for("the guest to lend", BOOT_LIMIT, || guest.boots() > before);
    timeline.note(format!("the guest lends, {:.1?} after it was switched on", begun.elapsed()));
}

/// What happened until the time was over.
#[derive(Default, Debug)]
struct Sum {
    cuts: u32,
    with_client: u32,
    unflushed: u64,
    lost: u64,
}

/// Cuts the guest's power at random moments, now and then together with the clients.
fn cut_power(site: &Site, load: &Load<'_>, guest: &mut Guest, random: &mut Random, time: Duration) -> Sum {
    let begun = Instant::now();
    let mut sum = Sum::default();
    while begun.elapsed() < time && !load.over.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(500 + random.below(8000)));
        let cut = [Cut::Lose, Cut::Tear, Cut::Tear, Cut::Keep][random.below(4) as usize];
        let with_client = random.below(3) == 0;
        let clients: Vec<(&str, Process)> =
            VOLUMES.iter().filter_map(|volume| Some((*volume, Process::of(&site.pool.mount_dir(0, volume))?))).collect();
        if with_client {
            // The client's kept writes are gone with it: a volume without another copy has what was flushed.
            load.powerless.lock().unwrap().insert("single".to_owned());
            load.killed.lock().unwrap().extend(clients.iter().map(|(volume, _)| (*volume).to_owned()));
            clients.iter().for_each(|(_, client)| client.kill());
        }
        let toll = guest.cut(cut, random);
        load.timeline.note(format!("power cut {cut:?}, the clients too: {with_client}; sectors {toll:?}"));
        sum.cuts += 1;
        sum.with_client += u32::from(with_client);
        sum.unflushed += toll.unflushed;
        sum.lost += toll.lost;
        std::thread::sleep(Duration::from_millis(random.below(3000)));
        boot(guest, load.timeline);
    }
    sum
}

fn heal(site: &Site) {
    for volume in VOLUMES {
        site.pool.wait_in_sync(volume, HEAL_LIMIT);
        wait_for("the path to be open", HEAL_LIMIT, || site.pool.volume(volume)["path"] == "open");
    }
    wait_for("legs to be made equal", HEAL_LIMIT, || {
        let status = site.pool.json(0, "status");
        status["mounts"].as_array().unwrap().iter().all(|mount| mount["resync"].is_null())
    });
}

#[test]
#[ignore = "soak"]
fn w5_nothing_acknowledged_is_lost_when_a_lenders_power_is_cut() {
    let Some(kernel) = Kernel::find() else {
        eprintln!("skipped: needs root, qemu-system-x86, busybox, cpio, nftables, and a Debian to get a kernel from");
        return;
    };
    let mut random = Random::from_env("power cuts");
    let timeline = Timeline::new();
    let site = Site::bare(2);
    let folder = site.pool.home(1).join("disk");
    std::fs::create_dir_all(&folder).unwrap();
    site.pool.ok(1, &format!("lend {} --size 64M --name b1 --sparse --keep-free 0%", folder.display()));
    let dir = site.pool.dir().join("guest");
    std::fs::create_dir_all(&dir).unwrap();
    let mut guest = Guest::new(&dir, kernel, site.pool.nets().unwrap(), 3, "server-c", "c1", 96 * MIB);
    boot(&mut guest, &timeline);
    let listed = || site.pool.json(0, "area ls").as_array().unwrap().iter().any(|area| area["name"] == "c1");
    assert!(holds_within(BOOT_LIMIT, listed), "the guest's area is not there");
    // "divided" shares the area with the other volume; it is a single copy all the same.
    site.pool.ok(0, "volume create single --way divided --on c1:12M");
    site.pool.ok(0, "volume create doubled --way doubled --on b1:16M,c1:16M");
    let mut writers: Vec<Writer> = VOLUMES
        .iter()
        .map(|volume| {
            site.pool.ok(0, &format!("borrow {volume}"));
            let size = site.pool.mount(0, volume, "").size;
            let mut writer = Writer::new(volume, 0, size, random.bits());
            // Much is not flushed whenever the power goes.
            writer.flush_one_in = 500;
            writer
        })
        .collect();
    let load = Load::new(&site.pool, &timeline);
    let sum = std::thread::scope(|scope| {
        for writer in &mut writers {
            let load = &load;
            scope.spawn(move || {
                let _end = load.ends_all();
                writer.work(load);
            });
        }
        let _end = load.ends_all();
        let sum = cut_power(&site, &load, &mut guest, &mut random, soak_time());
        load.over.store(true, Ordering::SeqCst);
        sum
    });
    let answered: Vec<u64> = writers.iter().map(|writer| writer.answered).collect();
    let failures = load.failures.load(Ordering::SeqCst);
    eprintln!("power cuts: {sum:?}; {answered:?} verified operations");
    assert_eq!(failures, 0, "W5: a client that lives writes again what was lost");
    assert!(sum.cuts > 0 && sum.unflushed > 0, "no cut met anything");
    let check = |writers: &mut Vec<Writer>, when: &str| {
        for (writer, volume) in writers.iter_mut().zip(VOLUMES) {
            writer.check_all(&mut site.pool.nbd(0, volume), when);
        }
    };
    heal(&site);
    check(&mut writers, "after healing");
    // Each copy alone has everything: that of the other server, then that of the guest after a last power cut.
    guest.cut(Cut::Lose, &mut random);
    writers[1].check_all(&mut site.pool.nbd(0, "doubled"), "without the guest");
    boot(&mut guest, &timeline);
    heal(&site);
    let lender = site.process(Daemon::Server(1)).expect("it runs");
    lender.kill();
    check(&mut writers, "from the guest alone");
    site.revive(Daemon::Server(1));
    heal(&site);
    for volume in VOLUMES {
        site.pool.finish(0, volume);
    }
}
