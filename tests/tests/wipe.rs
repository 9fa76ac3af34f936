//! P2, seen from outside: after a return nothing of the borrower's bytes, nor of their checksums, is in the raw files and disks of
//! any lender, at whatever offset. Each test finds the bytes there before, so that it would notice if they stayed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sublet_tests::disks::{self, LoopDisk, sparse_file};
use sublet_tests::nbd::Op;
use sublet_tests::run::{run, sh, tool};
use sublet_tests::shorthand::text;
use sublet_tests::traces::{self, Mark};
use sublet_tests::{MIB, Pool, Wish, exit, has_devices, wait_for};

/// How long the wipe of these small volumes may take, whatever has to be noticed first included.
const WIPED: Duration = Duration::from_secs(60);

/// A pool whose servers b, c and d lend each what the others do not: a preallocated file, a sparse one, a disk.
struct Lenders {
    // Detached first: a pool that ends looks for devices that stay behind.
    disk: Option<LoopDisk>,
    pool: Pool,
    folder: PathBuf,
    raw: Vec<PathBuf>,
}

impl Lenders {
    fn new() -> Self {
        let pool = Pool::with(&Wish { servers: 4, area: None });
        let folder = pool.dir().join("lent");
        std::fs::create_dir(&folder).unwrap();
        pool.ok(1, &format!("lend {} --size 64M --name b1 --keep-free 0%", folder.display()));
        pool.ok(2, &format!("lend {} --size 64M --name c1 --sparse --keep-free 0%", folder.display())).says("discard");
        let (mut raw, mut disk) = (vec![folder.join("b1.area"), folder.join("c1.area")], None);
        if has_devices() {
            let device = LoopDisk::new(pool.dir(), "disk-of-d", 96 * MIB);
            pool.ok(3, &format!("lend {} --name d1", device.device));
            raw.push(device.file.clone());
            disk = Some(device);
        } else {
            let file = folder.join("d1");
            sparse_file(&file, 96 * MIB);
            pool.ok(3, &format!("lend {} --name d1 --keep-free 0%", file.display()));
            raw.push(file);
        }
        Self { disk, pool, folder, raw }
    }

    fn count(&self, mark: &Mark) -> u64 {
        self.raw.iter().map(|path| mark.count(path)).sum()
    }

    /// Nothing of what was marked is there, not its checksums either.
    #[track_caller]
    fn has_no_trace(&self, mark: &Mark) {
        for path in &self.raw {
            assert_eq!((mark.count(path), mark.sums(path)), (0, 0), "left in {}", path.display());
        }
    }

    fn all_is_free(&self) -> bool {
        let areas = self.pool.json(0, "area ls");
        areas.as_array().unwrap().iter().all(|area| area["free"] == area["capacity"])
    }
}

#[test]
fn p2_every_way_of_a_volume_leaves_nothing_at_any_kind_of_lender() {
    let lenders = Lenders::new();
    let pool = &lenders.pool;
    let ways = [
        ("single", "b1", 1),
        ("single", "d1", 1),
        ("integrated", "b1:20M,c1:16M,d1:24M", 1),
        ("doubled", "b1:32M,d1:32M", 2),
        ("doubled", "c1:32M,b1:32M", 2),
        ("divided", "b1:24M", 1),
        ("divided", "c1:24M", 1),
        ("divided", "d1:24M", 1),
    ];
    for (number, (way, on, copies)) in ways.into_iter().enumerate() {
        let (mark, other) = (Mark::new(2 * number as u64), Mark::new(2 * number as u64 + 1));
        // Of whoever else has a part of the same area.
        let beside = (way == "divided").then(|| {
            pool.ok(2, &format!("volume create n --way divided --on {}:8M", &on[..2]));
            pool.ok(2, "borrow n --local");
            let mut nbd = pool.mount(2, "n", "");
            let size = nbd.size;
            other.fill(&mut nbd, 0, size);
            (nbd, size)
        });
        pool.ok(0, &format!("volume create v --way {way} --on {on}"));
        pool.ok(0, "borrow v");
        let mut nbd = pool.mount(0, "v", "");
        let size = nbd.size;
        mark.fill(&mut nbd, 0, size);
        // Zeroed and discarded in between: what lay there lies there again.
        nbd.call(&Op::Zero(8 * MIB, 1 << 20, 0)).unwrap();
        nbd.call(&Op::Trim(9 * MIB, 1 << 20)).unwrap();
        mark.fill(&mut nbd, 8 * MIB, 10 * MIB);
        drop(nbd);
        pool.ok(0, "unmount v");
        assert_eq!(lenders.count(&mark), copies * mark.times_in(size), "{way} on {on}: all of it is at the lenders, as it is");
        assert!(lenders.raw.iter().any(|path| mark.sums(path) > 0), "{way} on {on}: and checksums are kept");
        pool.ok(0, "return v");
        lenders.has_no_trace(&mark);
        if let Some((mut nbd, size)) = beside {
            assert_eq!(lenders.count(&other), other.times_in(size), "{way} on {on}: a neighbour's bytes stay");
            assert!(nbd.read_all().unwrap() == other.bytes(size as usize));
            drop(nbd);
            pool.finish(2, "n");
            pool.ok(2, "return n --dissolve");
        }
        lenders.has_no_trace(&other);
        // Free, and defined still: whoever borrows it next leaves nothing either, and dissolves it.
        pool.ok(1, "borrow v --local");
        let mut nbd = pool.mount(1, "v", "");
        assert!(nbd.read_all().unwrap().iter().all(|byte| *byte == 0));
        other.fill(&mut nbd, 0, size / 2 / MIB * MIB);
        drop(nbd);
        pool.ok(1, "unmount v");
        assert!(lenders.count(&other) > 0);
        pool.ok(1, "return v --dissolve");
        lenders.has_no_trace(&other);
        wait_for("all space to be free", WIPED, || lenders.all_is_free());
    }
    // Taken back, the files that were made for areas are gone, and the disk has nothing on it that was not there before.
    for (server, name) in [(1, "b1"), (2, "c1"), (3, "d1")] {
        pool.ok(server, &format!("reclaim {name}"));
    }
    assert!(!lenders.folder.join("b1.area").exists() && !lenders.folder.join("c1.area").exists());
    let disk = lenders.raw.last().unwrap();
    for number in 0..16 {
        assert_eq!((Mark::new(number).count(disk), Mark::new(number).sums(disk)), (0, 0));
    }
    for magic in ["SUBLETPC", "SUBLETAR"] {
        assert!(!disks::holds(disk, magic.as_bytes()), "a label {magic} stays on the disk");
    }
    if let Some(device) = &lenders.disk {
        assert_eq!(Mark::new(1).count(Path::new(&device.device)), 0);
    }
}

#[test]
fn p2_files_of_a_file_system_their_names_and_what_was_deleted_are_gone_after_the_return() {
    if !has_devices() {
        return;
    }
    let lenders = Lenders::new();
    let pool = &lenders.pool;
    let (kept, deleted) = (Mark::new(40), Mark::new(41));
    pool.ok(0, "volume create wiped-fs --way integrated --on b1:60M,d1:60M");
    pool.ok(0, "borrow wiped-fs");
    let dir = pool.dir().join("mnt");
    pool.ok(0, &format!("mount wiped-fs {} --mkfs ext4", dir.display()));
    for (mark, count) in [(&kept, 6), (&deleted, 4)] {
        for number in 0..count {
            std::fs::write(dir.join(format!("{}-{number}", mark.word())), mark.bytes(4 << 20)).unwrap();
        }
    }
    sh("sync", &["-f", &dir.to_string_lossy()]);
    for number in 0..4 {
        std::fs::remove_file(dir.join(format!("{}-{number}", deleted.word()))).unwrap();
    }
    pool.ok(0, "unmount wiped-fs");
    assert!(lenders.count(&kept) >= kept.times_in(24 * MIB) + 6, "the files and their names");
    assert!(lenders.count(&deleted) >= deleted.times_in(16 * MIB), "a file system leaves what it deletes where it was");
    pool.ok(0, "return wiped-fs");
    lenders.has_no_trace(&kept);
    lenders.has_no_trace(&deleted);
}

/// A file system on a disk of its own; unmounted when dropped.
struct Mounted {
    point: PathBuf,
    disk: LoopDisk,
}

impl Mounted {
    fn new(pool: &Pool) -> Self {
        let disk = LoopDisk::new(pool.dir(), "disk", 192 * MIB);
        let point = pool.dir().join("file-system");
        std::fs::create_dir(&point).unwrap();
        // No journal: it would have its own copies of what is not data.
        sh("mkfs.ext4", &["-q", "-O", "^has_journal", &disk.device]);
        sh("mount", &[&disk.device, &point.to_string_lossy()]);
        Self { point, disk }
    }

    /// The disk under the file system, with everything written to it.
    fn count(&self, mark: &Mark) -> u64 {
        sh("sync", &["-f", &self.point.to_string_lossy()]);
        mark.count(&self.disk.file)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(tool("umount").arg("-l").arg(&self.point));
    }
}

#[test]
fn p2_what_a_borrower_discarded_is_gone_from_the_disk_under_the_file_system_of_a_preallocated_file() {
    if !has_devices() {
        return;
    }
    let pool = Pool::with(&Wish { servers: 2, area: None });
    let below = Mounted::new(&pool);
    pool.ok(1, &format!("lend {} --size 64M --name b1 --keep-free 0%", below.point.display()));
    let mark = Mark::new(50);
    let mut nbd = pool.carve(0, "v", "--size 48M");
    mark.fill(&mut nbd, 0, 48 * MIB);
    assert_eq!(below.count(&mark), mark.times_in(48 * MIB));
    // The file reads as zero there from now on. The file system only notes that: the blocks below it are as they were.
    nbd.call(&Op::Trim(0, 16 << 20)).unwrap();
    nbd.call(&Op::Zero(16 * MIB, 8 << 20, 0)).unwrap();
    nbd.flush().unwrap();
    assert!(nbd.read(0, 16 << 20).unwrap().iter().all(|byte| *byte == 0));
    let noted = below.count(&mark);
    assert!(noted > mark.times_in(24 * MIB), "old bytes are still below the file: {noted}");
    drop(nbd);
    pool.finish(0, "v");
    assert_eq!(below.count(&mark), 0);
    pool.ok(1, "reclaim b1");
    assert_eq!(below.count(&mark), 0);
    assert_eq!(std::fs::read_dir(&below.point).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count(), 0);
}

#[test]
fn p2_a_volume_that_was_handed_over_leaves_nothing_of_either_borrower() {
    let lenders = Lenders::new();
    let pool = &lenders.pool;
    let (first, second) = (Mark::new(60), Mark::new(61));
    pool.ok(0, "volume create v --way doubled --on b1:16M,d1:16M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    first.fill(&mut nbd, 0, 16 * MIB);
    drop(nbd);
    pool.ok(0, "unmount v");
    pool.ok(0, "transfer v --to server-c");
    let mut nbd = pool.mount(2, "v", "");
    second.fill(&mut nbd, 8 * MIB, 16 * MIB);
    drop(nbd);
    pool.ok(2, "unmount v");
    assert_eq!(lenders.count(&first), 2 * first.times_in(8 * MIB), "a transfer keeps the bytes");
    assert_eq!(lenders.count(&second), 2 * second.times_in(8 * MIB));
    pool.refused(0, "return v", exit::CONFLICT);
    assert_eq!(lenders.count(&first), 2 * first.times_in(8 * MIB), "only its borrower can have it wiped");
    pool.ok(2, "return v");
    lenders.has_no_trace(&first);
    lenders.has_no_trace(&second);
}

#[test]
fn p2_a_lender_that_was_away_at_the_return_wipes_all_of_it_when_it_comes_back() {
    let lenders = Lenders::new();
    let pool = &lenders.pool;
    let mark = Mark::new(70);
    pool.ok(0, "volume create v --way doubled --on b1:32M,d1:32M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    mark.fill(&mut nbd, 0, 32 * MIB);
    let away = pool.kill(3);
    // Goes on without it (S1), so that the other lender keeps a map of what it misses.
    mark.fill(&mut nbd, 0, 4 * MIB);
    drop(nbd);
    pool.ok(0, "unmount v");
    pool.sublet(0, &["return", "v", "--dissolve"]).sane();
    let (near, far) = (&lenders.raw[0], &lenders.raw[2]);
    wait_for("the wipe of the lender that is there", WIPED, || mark.count(near) == 0);
    assert_eq!(mark.count(far), mark.times_in(32 * MIB), "who is away keeps it");
    // Nobody forgets that it has to go, and nobody gets that space meanwhile.
    pool.bounce_manager();
    assert!(!lenders.all_is_free());
    assert!(!pool.sublet(1, &["volume", "create", "w", "--way", "single", "--on", "d1"]).sane().succeeded());
    pool.revive(3, &away);
    wait_for("the wipe of the one that was away", WIPED, || lenders.all_is_free());
    lenders.has_no_trace(&mark);
}

#[test]
fn p2_a_copy_that_was_replaced_is_wiped_wholly_and_the_new_one_with_the_volume() {
    let lenders = Lenders::new();
    let pool = &lenders.pool;
    let mark = Mark::new(80);
    let times = mark.times_in(24 * MIB);
    pool.ok(0, "volume create v --way doubled --on b1:24M,d1:24M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    mark.fill(&mut nbd, 0, 24 * MIB);
    let lost = pool.kill(3);
    mark.fill(&mut nbd, 0, 4 * MIB);
    pool.sublet_within(0, &["volume", "replace", "v", "--lost", "server-d", "--on", "c1", "--wait"], 2 * WIPED).ok();
    let held = || lenders.raw.iter().map(|path| mark.count(path)).collect::<Vec<_>>();
    assert_eq!(held(), [times, times, times], "the lost copy is still there");
    pool.revive(3, &lost);
    wait_for("the lost copy to be wiped", WIPED, || mark.count(&lenders.raw[2]) == 0);
    assert_eq!(mark.sums(&lenders.raw[2]), 0);
    assert_eq!(held(), [times, times, 0], "and no other");
    assert!(nbd.read_all().unwrap() == mark.bytes(24 << 20));
    drop(nbd);
    pool.finish(0, "v");
    lenders.has_no_trace(&mark);
}

/// Whether the first and the last mark of a slice are still on the disk.
fn ends(disk: &Path, mark: &Mark, [first, last]: [u64; 2]) -> [bool; 2] {
    let file = File::open(disk).unwrap();
    [first, last].map(|at| {
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes == *mark.word().as_bytes()
    })
}

#[test]
fn p2_a_lender_that_is_killed_in_the_middle_of_a_wipe_brings_it_to_its_end() {
    let pool = Pool::with(&Wish { servers: 2, area: Some("512M") });
    let disk = pool.area_files(1).remove(0);
    let (mark, other) = (Mark::new(90), Mark::new(91));
    // Somebody uses the area meanwhile, so that the wipe keeps to its rate: it takes seconds (P2).
    pool.ok(0, "volume create n --way divided --on b1:8M");
    pool.ok(0, "borrow n");
    let mut beside = pool.mount(0, "n", "");
    pool.ok(0, "volume create v --way divided --on b1:448M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    for at in (0..448).step_by(4) {
        mark.fill(&mut nbd, at * MIB, at * MIB + 4096);
    }
    mark.fill(&mut nbd, 448 * MIB - 4096, 448 * MIB);
    drop(nbd);
    pool.ok(0, "unmount v");
    let first = disks::find(&disk, mark.word().as_bytes()).unwrap();
    let places = [first, first + 448 * MIB - 4096];
    assert_eq!(ends(&disk, &mark, places), [true, true]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                other.fill(&mut beside, 0, 1 << 20);
            }
        });
        let returning = scope.spawn(|| pool.sublet(0, &["return", "v", "--dissolve"]).sane());
        wait_for("the wipe to begin", WIPED, || !ends(&disk, &mark, places)[0]);
        let lender = pool.kill(1);
        assert_eq!(ends(&disk, &mark, places), [false, true], "in the middle of the wipe");
        pool.revive(1, &lender);
        returning.join().unwrap();
        over.store(true, Ordering::Relaxed);
        busy.join().unwrap();
    });
    wait_for("the end of the wipe", WIPED, || {
        pool.json(0, "volume ls").as_array().unwrap().iter().all(|v| text(v, "/name") != "v")
    });
    wait_for("the space to be free", WIPED, || {
        let areas = pool.json(0, "area ls");
        let b1 = areas.as_array().unwrap().iter().find(|area| area["name"] == "b1").unwrap().clone();
        b1["capacity"].as_u64().unwrap() - b1["free"].as_u64().unwrap() == 8 * MIB
    });
    assert_eq!((mark.count(&disk), mark.sums(&disk)), (0, 0));
    assert_eq!(traces::count(&disk, other.word().as_bytes()), other.times_in(MIB), "a neighbour's bytes stay");
    assert!(beside.read(0, 1 << 20).unwrap() == other.bytes(1 << 20));
    drop(beside);
    pool.finish(0, "n");
    assert_eq!(other.count(&disk), 0);
}
