//! Figures of recovery, resync, first writes and memory: `cargo xtask figures` measures them with the release binary and prints
//! the table of `docs/performance.md`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use sublet_tests::nbd::{Nbd, Op};
use sublet_tests::process::Process;
use sublet_tests::random::Random;
use sublet_tests::run::run;
use sublet_tests::torture::nets::Nets;
use sublet_tests::torture::site::{Daemon, Site};
use sublet_tests::{MIB, Pool, Wish, wait_for};

const REGION: u64 = 4 * MIB;
const UNIT: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(300);

fn empty_pool(servers: usize) -> Pool {
    Pool::with(&Wish { servers, area: None })
}

/// Lends a sparse area.
fn lend(pool: &Pool, server: usize, name: &str, size: &str) {
    let dir = pool.home(server).join("disk");
    std::fs::create_dir_all(&dir).unwrap();
    pool.ok(server, &format!("lend {} --size {size} --name {name} --sparse --keep-free 0%", dir.display()));
}

/// Resident memory of a process in KiB.
fn resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn timed_write(nbd: &mut Nbd, offset: u64, bytes: &[u8]) -> Duration {
    let begun = Instant::now();
    nbd.write(offset, bytes).unwrap();
    begun.elapsed()
}

#[test]
#[ignore = "figures"]
fn recovery_of_a_killed_lender_with_100_gib_and_1000_hot_regions() {
    let pool = empty_pool(2);
    lend(&pool, 1, "b1", "101G");
    let mut nbd = pool.carve(0, "v", "--size 100G --way single");
    let mut random = Random::new(3);
    let regions = nbd.size / REGION;
    let mut recover = |hot: u64| {
        let mut offsets = BTreeSet::new();
        while (offsets.len() as u64) < hot {
            offsets.insert(random.below(regions) * REGION);
        }
        for offset in &offsets {
            nbd.write(*offset, &offset.to_le_bytes()).unwrap();
        }
        let lender = pool.kill(1);
        let begun = Instant::now();
        lender.restart();
        // The client tries the lender again on its own; the first answer is the end of the recovery.
        let first = offsets.first().copied().unwrap_or_default();
        nbd.read(first, 8).unwrap();
        let answered = begun.elapsed();
        wait_for("the lender to be up", LIMIT, || Process::of(&lender.home).is_some() && pool.is_up(1));
        for offset in &offsets {
            assert_eq!(nbd.read(*offset, 8).unwrap(), offset.to_le_bytes());
        }
        answered
    };
    let (none, all) = (recover(0), recover(1000));
    println!("| first answer after `kill -9` and restart of a lender, 100 GiB lent, no hot region | {none:.1?} |");
    println!("| the same with 1,000 hot regions | {all:.1?} |");
}

/// Bytes that a machine's network has received.
fn received(nets: &Nets, server: usize) -> u64 {
    let mut cat = sublet_tests::run::tool("cat");
    cat.arg("/proc/net/dev");
    let text = run(&mut nets.inside(Site::node(Daemon::Server(server)), cat)).ok().out;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap()
}

/// Random 4k writes at depth 8; how many, and how many units of the missed-write maps they touched.
fn write_for(nbd: &mut Nbd, random: &mut Random, bytes: &[u8], time: Duration) -> (u64, u64) {
    let (mut count, mut units, mut flying) = (0u64, BTreeSet::new(), 0u32);
    let begun = Instant::now();
    while begun.elapsed() < time || flying > 0 {
        if begun.elapsed() < time && flying < 8 {
            let offset = random.below(nbd.size / 4096) * 4096;
            units.insert(offset / UNIT);
            nbd.submit(&Op::Write(offset, bytes.to_vec(), 0)).unwrap();
            flying += 1;
            continue;
        }
        assert_eq!(nbd.complete().unwrap().error, 0);
        (flying, count) = (flying - 1, count + 1);
    }
    (count, units.len() as u64)
}

/// An outage of ten seconds, counted from when the leg is left out: of the lender's process, or of its network only.
fn outage(what: &str, begin: impl Fn(&Site, &Nets), end: impl Fn(&Site, &Nets)) {
    let site = Site::bare(3);
    let (pool, nets) = (&site.pool, site.pool.nets().unwrap());
    lend(pool, 1, "b1", "5G");
    lend(pool, 2, "c1", "5G");
    pool.ok(0, "volume create v --way doubled --on b1:4G,c1:4G");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let mut random = Random::new(9);
    let bytes = random.bytes(4096);
    // What was written and flushed before need not be copied.
    write_for(&mut nbd, &mut random, &bytes, Duration::from_secs(5));
    nbd.flush().unwrap();
    begin(&site, nets);
    nbd.write(0, &bytes).unwrap();
    wait_for("the stale leg", LIMIT, || pool.legs("v")[0] == "stale");
    let (count, units) = write_for(&mut nbd, &mut random, &bytes, Duration::from_secs(10));
    let before = received(nets, 1);
    let begun = Instant::now();
    end(&site, nets);
    pool.wait_in_sync("v", LIMIT);
    let took = begun.elapsed();
    let copied = received(nets, 1) - before;
    let touched = units * UNIT;
    let ratio = copied as f64 / touched as f64;
    println!("| {what}: 4k random writes in 10 s without a leg (4 GiB, depth 8) | {count}, {} MiB |", count * 4096 / MIB);
    println!("| {what}: 64 KiB units that they touched | {units}, {} MiB |", touched / MIB);
    println!("| {what}: bytes on the wire to the returning lender | {} MiB, {ratio:.2} of the units |", copied / MIB);
    println!("| {what}: from its return until in sync | {took:.1?} |");
    drop(nbd);
    pool.ok(0, "unmount v");
}

#[test]
#[ignore = "figures"]
fn bytes_resynced_after_an_outage_of_ten_seconds() {
    if !Nets::possible() {
        println!("skipped: traffic is counted in network namespaces");
        return;
    }
    let away = Site::node(Daemon::Server(1));
    let others = || (0..4).filter(move |node| *node != away);
    outage(
        "network outage",
        |_, nets| others().for_each(|node| (nets.cut(away, node), nets.cut(node, away)).1),
        |_, nets| others().for_each(|node| (nets.join(away, node), nets.join(node, away)).1),
    );
    let lender = Daemon::Server(1);
    outage("`kill -9`", |site, _| site.process(lender).unwrap().kill(), |site, _| site.revive(lender));
}

#[test]
#[ignore = "figures"]
fn latency_of_the_first_write_into_a_region() {
    const COUNT: u64 = 200;
    for (way, line) in [("single", "--size 2G --way single"), ("doubled", "--size 2G --way doubled")] {
        let pool = empty_pool(3);
        lend(&pool, 1, "b1", "3G");
        lend(&pool, 2, "c1", "3G");
        let mut nbd = pool.carve(0, "v", line);
        let bytes = Random::new(5).bytes(4096);
        let mut round = |at: u64| -> Duration {
            let mut times: Vec<Duration> =
                (0..COUNT).map(|region| timed_write(&mut nbd, region * REGION + at * 4096, &bytes)).collect();
            median(&mut times)
        };
        let (blank, hot) = (round(0), round(5));
        drop(nbd);
        // A clean unmount cools every region.
        pool.ok(0, "unmount v");
        let mut nbd = pool.mount(0, "v", "");
        let mut round = |at: u64| -> Duration {
            let mut times: Vec<Duration> =
                (0..COUNT).map(|region| timed_write(&mut nbd, region * REGION + at * 4096, &bytes)).collect();
            median(&mut times)
        };
        let (cold, again) = (round(9), round(13));
        println!(
            "| {way}: median 4k write at depth 1 into a blank region, then into the same regions again | {blank:.0?}, {hot:.0?} |"
        );
        println!("| {way}: into a cold region, then again | {cold:.0?}, {again:.0?} |");
        drop(nbd);
        pool.ok(0, "unmount v");
    }
}

#[test]
#[ignore = "figures"]
fn memory_of_a_lender_for_each_tib() {
    let pool = empty_pool(2);
    let before = resident(&pool.server(1));
    lend(&pool, 1, "b1", "4T");
    let lent = resident(&pool.server(1));
    let mut nbd = pool.carve(0, "v", "--size 4T --way single");
    let mut random = Random::new(4);
    let bytes = random.bytes(4096);
    for _ in 0..5000 {
        nbd.write(random.below(nbd.size / 4096) * 4096, &bytes).unwrap();
    }
    nbd.flush().unwrap();
    let used = resident(&pool.server(1));
    let client = resident(&pool.client(0, "v"));
    pool.bounce(1);
    nbd.read(0, 4096).unwrap();
    let restarted = resident(&pool.server(1));
    println!("| memory of `sublet server` that lends nothing | {} MiB |", before / 1024);
    println!("| with a sparse area of 4 TiB, and per TiB | {} MiB, {:.1} MiB |", lent / 1024, (lent - before) as f64 / 4096.0);
    println!("| after 5,000 random 4k writes all over it | {} MiB |", used / 1024);
    println!("| restarted | {} MiB |", restarted / 1024);
    println!("| the client of the 4 TiB volume | {} MiB |", client / 1024);
    let allocated = allocated(&pool.area_files(1));
    println!("| disk space that the area takes then | {} MiB |", allocated / MIB);
    drop(nbd);
    pool.ok(0, "unmount v");
}

fn allocated(files: &[impl AsRef<Path>]) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files.iter().map(|file| std::fs::metadata(file).unwrap().blocks() * 512).sum()
}
