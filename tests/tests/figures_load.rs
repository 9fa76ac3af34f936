//! Figures under load: what volumes take from each other, what a slow lender does to the others, memory, idle processor time, and
//! how long mounting takes. `cargo xtask figures` measures them with the release binary and prints the table of
//! `docs/performance.md`. Areas are in memory (`/dev/shm`), so that Sublet decides and no disk.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sublet_tests::fio::Load;
use sublet_tests::process::Process;
use sublet_tests::{Pool, Wish};

/// How long a load runs.
const RUN: Duration = Duration::from_secs(5);

fn empty_pool(servers: usize) -> Pool {
    Pool::with(&Wish { servers, area: None })
}

/// A folder in memory for one server's area; gone with it.
fn lend(pool: &Pool, server: usize, name: &str, size: &str) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("sublet-figures-").tempdir_in("/dev/shm").unwrap();
    pool.ok(server, &format!("lend {} --size {size} --name {name} --keep-free 0%", dir.path().display()));
    dir
}

/// A figure of `/proc/PID/status` in KiB.
fn status(process: &Process, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// Processor time in clock ticks (10 ms), and how often a thread of it was woken.
fn used(processes: &[Process]) -> (u64, u64) {
    let mut sum = (0, 0);
    for process in processes {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid.as_raw_nonzero())).unwrap();
        for task in tasks.flatten() {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            sum.0 += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            sum.1 += line.trim().parse::<u64>().unwrap();
        }
    }
    sum
}

fn load(pool: &Pool, volume: &str, rw: &'static str, block: &str, depth: u32) -> Load {
    Load::nbd(&pool.socket(0, volume), rw, block, depth, RUN)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[test]
#[ignore = "figures"]
fn eight_volumes_under_load() {
    let pool = empty_pool(5);
    let mut areas = Vec::new();
    for (volume, lender) in (0..8).zip([1, 2, 3, 4].into_iter().cycle()) {
        areas.push(lend(&pool, lender, &format!("x{volume}"), "128M"));
        pool.ok(0, &format!("volume create v{volume} --way single --on x{volume}"));
        pool.ok(0, &format!("borrow v{volume}"));
        pool.ok(0, &format!("mount v{volume} --as socket"));
        Load::fill(&pool.socket(0, &format!("v{volume}")), 128 << 20);
    }
    for rw in ["randread", "randwrite"] {
        let alone = load(&pool, "v0", rw, "4k", 32).run();
        let together: Vec<f64> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..8).map(|v| load(&pool, &format!("v{v}"), rw, "4k", 8)).collect();
            let runs: Vec<_> = runs.into_iter().map(|load| scope.spawn(move || load.run().rate)).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let sum: f64 = together.iter().sum();
        let least = together.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "| {rw} of 4 KiB: one volume at depth 32; eight together at depth 8; slowest of the eight to their mean | {:.0}/s; {sum:.0}/s; {:.2} |",
            alone.rate,
            least / (sum / 8.0)
        );
    }
    (0..8).for_each(|v| drop(pool.ok(0, &format!("unmount v{v}"))));
}

#[test]
#[ignore = "figures"]
fn a_slow_lender_and_the_others() {
    let pool = empty_pool(4);
    let _areas: Vec<_> = [(1, "s1"), (2, "f1"), (3, "f2")].map(|(server, name)| lend(&pool, server, name, "256M")).into();
    for (volume, way, on) in [("other", "single", "f1:64M"), ("doubled", "doubled", "s1:64M,f2:64M")] {
        pool.ok(0, &format!("volume create {volume} --way {way} --on {on}"));
        pool.ok(0, &format!("borrow {volume}"));
        pool.ok(0, &format!("mount {volume} --as socket"));
        Load::fill(&pool.socket(0, volume), 64 << 20);
    }
    let measure = |when: &str| {
        for (volume, rw, depth) in
            [("other", "randread", 1), ("other", "randwrite", 1), ("doubled", "randread", 1), ("doubled", "randread", 16)]
        {
            let run = load(&pool, volume, rw, "4k", depth).run();
            println!("| {when}: {rw} of volume `{volume}`, depth {depth} | {:.0} us, {:.0}/s |", run.mean_us, run.rate);
        }
    };
    measure("all lenders fast");
    // Stopped for 100 ms again and again: whatever comes to it waits about so long.
    let slow = pool.server(1);
    let ends = Arc::new(AtomicBool::new(false));
    let stutter = std::thread::spawn({
        let (slow, ends) = (slow.clone(), Arc::clone(&ends));
        move || {
            while !ends.load(Ordering::SeqCst) {
                slow.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(100));
                slow.signal(Signal::CONT);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let measured = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| measure("one lender needs 100 ms")));
    ends.store(true, Ordering::SeqCst);
    stutter.join().unwrap();
    measured.unwrap();
    ["other", "doubled"].iter().for_each(|volume| drop(pool.ok(0, &format!("unmount {volume}"))));
}

#[test]
#[ignore = "figures"]
fn memory_under_load() {
    let pool = empty_pool(3);
    let _areas: Vec<_> = [(1, "b1"), (2, "c1")].map(|(server, name)| lend(&pool, server, name, "1G")).into();
    pool.ok(0, "volume create v --way doubled --on b1:768M,c1:768M");
    pool.ok(0, "borrow v");
    pool.ok(0, "mount v --as socket");
    Load::fill(&pool.socket(0, "v"), 768 << 20);
    for (rw, block, depth, jobs) in
        [("randrw", "4k", 256, 4), ("randrw", "1m", 64, 4), ("randread", "32m", 16, 2), ("randwrite", "32m", 16, 2)]
    {
        load(&pool, "v", rw, block, depth).jobs(jobs).run();
        println!(
            "| most memory after {jobs} connections with {depth} requests ({rw}) of {block}: client, lender | {} MiB, {} MiB |",
            status(&pool.client(0, "v"), "VmHWM") / 1024,
            status(&pool.server(1), "VmHWM") / 1024
        );
    }
    pool.ok(0, "unmount v");
}

#[test]
#[ignore = "figures"]
fn ten_idle_volumes() {
    let pool = empty_pool(3);
    let _areas: Vec<_> = [(1, "b1"), (2, "c1")].map(|(server, name)| lend(&pool, server, name, "400M")).into();
    let mut processes = vec![pool.manager(), pool.server(0), pool.server(1), pool.server(2)];
    for volume in 0..10 {
        pool.ok(0, &format!("volume create v{volume} --way doubled --on b1:32M,c1:32M"));
        pool.ok(0, &format!("borrow v{volume}"));
        drop(pool.mount(0, &format!("v{volume}"), ""));
        processes.push(pool.client(0, &format!("v{volume}")));
    }
    // Whatever the mounts have written becomes cold first.
    std::thread::sleep(Duration::from_secs(40));
    let (before, begun) = (used(&processes), Instant::now());
    std::thread::sleep(Duration::from_secs(60));
    let (after, time) = (used(&processes), begun.elapsed().as_secs_f64());
    let clients = used(&processes[4..]);
    std::thread::sleep(Duration::from_secs(20));
    let woken = used(&processes[4..]).1 - clients.1;
    println!(
        "| ten doubled volumes mounted and idle, all 14 processes: processor time, wake-ups; the ten clients alone | {:.2} %, {:.0} a second; {:.1} a second |",
        (after.0 - before.0) as f64 / time,
        (after.1 - before.1) as f64 / time,
        woken as f64 / 20.0
    );
    (0..10).for_each(|v| drop(pool.ok(0, &format!("unmount v{v}"))));
}

#[test]
#[ignore = "figures"]
fn from_borrow_to_the_first_byte() {
    let pool = Pool::new(3);
    for way in ["single", "doubled"] {
        let (mut mounts, mut unmounts) = (Vec::new(), Vec::new());
        for _ in 0..15 {
            let begun = Instant::now();
            pool.ok(0, &format!("borrow v --size 32M --way {way}"));
            let mut nbd = pool.mount(0, "v", "");
            nbd.read(0, 4096).unwrap();
            mounts.push(begun.elapsed());
            drop(nbd);
            let begun = Instant::now();
            pool.ok(0, "unmount v");
            unmounts.push(begun.elapsed());
            pool.ok(0, "return v");
        }
        println!(
            "| `borrow` and `mount` of a {way} volume to its first byte; `unmount` (medians of 15) | {:.0} ms; {:.0} ms |",
            median(&mut mounts).as_secs_f64() * 1e3,
            median(&mut unmounts).as_secs_f64() * 1e3
        );
    }
}

#[test]
#[ignore = "figures"]
fn every_lender_serves() {
    let pool = empty_pool(5);
    let _areas: Vec<_> =
        [(1, "b1"), (2, "c1"), (3, "d1"), (4, "e1")].map(|(server, name)| lend(&pool, server, name, "256M")).into();
    for (volume, way, on) in [("joined", "integrated", "b1:64M,c1:64M,d1:64M,e1:64M"), ("doubled", "doubled", "b1:64M,c1:64M")] {
        pool.ok(0, &format!("volume create {volume} --way {way} --on {on}"));
        pool.ok(0, &format!("borrow {volume}"));
        let size = pool.mount(0, volume, "").size;
        Load::fill(&pool.socket(0, volume), size);
        let lenders: Vec<Process> = pool.lenders(volume).into_iter().map(|server| pool.server(server)).collect();
        let before: Vec<u64> = lenders.iter().map(|lender| used(std::slice::from_ref(lender)).0).collect();
        let run = load(&pool, volume, "randread", "4k", 32).run();
        let spent: Vec<u64> =
            lenders.iter().zip(before).map(|(lender, before)| used(std::slice::from_ref(lender)).0 - before).collect();
        let sum: u64 = spent.iter().sum();
        let shares: Vec<String> = spent.iter().map(|ticks| format!("{:.0} %", *ticks as f64 * 100.0 / sum as f64)).collect();
        println!(
            "| reads of a volume `{volume}` at depth 32; share of the lenders in the work | {:.0}/s; {} |",
            run.rate,
            shares.join(", ")
        );
        pool.ok(0, &format!("unmount {volume}"));
    }
}
