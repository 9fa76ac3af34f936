//! Real power cuts: two virtual machines lend disks with volatile caches and are killed again and again, one or both at a time,
//! while volumes that lie on them are written and read.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
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
/// The volumes; the first machine borrows them. "single" lies on the first guest (its area is shared, so its way is another),
/// "doubled" on a real server and the first guest, "twins" on both guests.
const VOLUMES: [&str; 3] = ["single", "doubled", "twins"];

/// Switches machines on, and waits until they lend.
fn boot(guests: &mut [&mut Guest], timeline: &Timeline) {
    let begun = Instant::now();
    for guest in guests {
        let before = guest.boots();
        guest.start();
        wait_for("the guest to lend", BOOT_LIMIT, || guest.boots() > before);
    }
    timeline.note(format!("the guests lend, {:.1?} after they were switched on", begun.elapsed()));
}

/// What happened until the time was over.
#[derive(Default, Debug)]
struct Sum {
    cuts: u32,
    both: u32,
    with_client: u32,
    unflushed: u64,
    lost: u64,
}

/// Since its lenders lend again for so long, a client has noticed that one of them has lost its power.
const NOTICED_AFTER: Duration = Duration::from_secs(3);

/// Whether each copy of "twins" has everything: a lender that loses its power alone takes nothing with it then.
fn is_whole(site: &Site) -> bool {
    let in_sync = site.pool.legs("twins").iter().all(|state| state == "in-sync");
    in_sync && site.pool.volume("twins")["path"] == "open" && site.pool.legs_are_equal(0)
}

/// Cuts the guests' power at random moments, now and then together with the clients.
fn cut_power(site: &Site, load: &Load<'_>, guests: &mut [Guest], random: &mut Random, time: Duration) -> Sum {
    let begun = Instant::now();
    let mut sum = Sum::default();
    // Those that have lost their power since "twins" was whole, and since when all lend again.
    let mut lacking: BTreeSet<usize> = BTreeSet::new();
    let mut lent_since = Instant::now();
    while begun.elapsed() < time && !load.over.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(500 + random.below(8000)));
        let with_client = random.below(3) == 0;
        let which: &[usize] = [&[0][..], &[1], &[0, 1], &[0, 1]][random.below(4) as usize];
        if lent_since.elapsed() > NOTICED_AFTER && is_whole(site) {
            lacking.clear();
        }
        lacking.extend(which);
        let powerless = [which.contains(&0).then_some("single"), (lacking.len() == 2).then_some("twins")];
        for volume in powerless.into_iter().flatten() {
            *load.dark.lock().unwrap().entry(volume.to_owned()).or_default() += 1;
        }
        if with_client {
            // The client's kept writes are gone with it: a volume without another copy has what was flushed.
            load.powerless.lock().unwrap().extend(powerless.into_iter().flatten().map(str::to_owned));
            for volume in VOLUMES {
                let Some(client) = Process::of(&site.pool.mount_dir(0, volume)) else { continue };
                load.killed.lock().unwrap().insert(volume.to_owned());
                client.kill();
            }
        }
        for guest in which {
            let cut = [Cut::Lose, Cut::Tear, Cut::Tear, Cut::Keep][random.below(4) as usize];
            let toll = guests[*guest].cut(cut, random);
            load.timeline.note(format!("power cut {cut:?} of guest {guest}, the clients too: {with_client}; sectors {toll:?}"));
            sum.unflushed += toll.unflushed;
            sum.lost += toll.lost;
        }
        sum.cuts += 1;
        sum.both += u32::from(which.len() == 2);
        sum.with_client += u32::from(with_client);
        std::thread::sleep(Duration::from_millis(random.below(3000)));
        let mut dark: Vec<&mut Guest> =
            guests.iter_mut().enumerate().filter(|(guest, _)| which.contains(guest)).map(|(_, guest)| guest).collect();
        boot(&mut dark, load.timeline);
        lent_since = Instant::now();
    }
    sum
}

fn heal(site: &Site) {
    for volume in VOLUMES {
        site.pool.wait_in_sync(volume, HEAL_LIMIT);
        wait_for("the path to be open", HEAL_LIMIT, || site.pool.volume(volume)["path"] == "open");
    }
    wait_for("legs to be made equal", HEAL_LIMIT, || site.pool.legs_are_equal(0));
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
    let mut guests: Vec<Guest> = [("server-c", "c1", 3), ("server-d", "d1", 4)]
        .into_iter()
        .map(|(name, area, node)| {
            let dir = site.pool.dir().join(format!("guest-{area}"));
            std::fs::create_dir_all(&dir).unwrap();
            Guest::new(&dir, kernel.clone(), site.pool.nets().unwrap(), node, name, area, 96 * MIB)
        })
        .collect();
    boot(&mut guests.iter_mut().collect::<Vec<_>>(), &timeline);
    let listed = || site.pool.json(0, "area ls").as_array().unwrap().len() == 3;
    assert!(holds_within(BOOT_LIMIT, listed), "the areas of the guests are not there");
    site.pool.ok(0, "volume create single --way divided --on c1:12M");
    site.pool.ok(0, "volume create doubled --way doubled --on b1:16M,c1:16M");
    site.pool.ok(0, "volume create twins --way doubled --on c1:16M,d1:16M");
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
        let sum = cut_power(&site, &load, &mut guests, &mut random, soak_time());
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
    // Each copy alone has everything: that of the other server, then that of each guest after a last power cut.
    for dark in [0, 1] {
        guests[dark].cut(Cut::Lose, &mut random);
        for volume in [1, 2] {
            writers[volume].check_all(&mut site.pool.nbd(0, VOLUMES[volume]), &format!("without guest {dark}"));
        }
        boot(&mut [&mut guests[dark]], &timeline);
        heal(&site);
    }
    let lender = site.process(Daemon::Server(1)).expect("it runs");
    lender.kill();
    check(&mut writers, "from the guests alone");
    site.revive(Daemon::Server(1));
    heal(&site);
    for volume in VOLUMES {
        site.pool.finish(0, volume);
    }
}
