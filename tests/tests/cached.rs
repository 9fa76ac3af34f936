//! Pages of the kernel's cache change while it writes them out: both copies get the same bytes all the same (W3).

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sublet_tests::random::Random;
use sublet_tests::shorthand::{number, text};
use sublet_tests::{MIB, Pool, Wish, disks, has_devices};

const LIMIT: Duration = Duration::from_secs(100);
const SIZE: u64 = 8 * MIB;
/// What is written again and again.
const BUSY: u64 = MIB;
/// How often it is written out meanwhile.
const SYNCS: usize = 150;

#[test]
fn w3_cached_pages_that_change_while_they_are_written_out_are_the_same_at_both_copies() {
    if !has_devices() {
        return;
    }
    let pool = Pool::with(&Wish { servers: 3, area: Some("128M") });
    pool.ok(0, &format!("volume create v --way doubled --on b1:{SIZE},c1:{SIZE}"));
    pool.ok(0, "borrow v");
    let device = text(&pool.json(0, "mount v --as fuse"), "/device");
    let target = Path::new(&device).canonicalize().unwrap();
    let stable = format!("/sys/block/{}/queue/stable_writes", target.file_name().unwrap().to_string_lossy());
    let file = File::options().read(true).write(true).open(&device).unwrap();
    let first = Random::new(31).bytes(4096);
    file.write_all_at(&first, 0).unwrap();
    file.sync_data().unwrap();

    let is_over = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (file, is_over, written) = (&file, &is_over, &written);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                while !is_over.load(Ordering::Relaxed) {
                    let part = random.bytes(512);
                    file.write_all_at(&part, MIB + random.below(BUSY / 512) * 512).unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..SYNCS {
            file.sync_data().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    // The premise: the kernel lets pages be changed while they are written out, and that has happened to many.
    let stable = std::fs::read_to_string(stable).unwrap();
    let each = written.into_inner() / SYNCS as u64;
    assert!(stable.trim() == "0" && each > 10, "{each} changes for every time it is written out; stable pages: {stable}");
    file.sync_data().unwrap();
    let mut expected = vec![0; SIZE as usize];
    file.read_exact_at(&mut expected, 0).unwrap();
    drop(file);
    // A lender refuses a write whose bytes are not those of its checksums, and the client sends it again: only its log tells.
    let log = std::fs::read_to_string(pool.mount_dir(0, "v").join("log")).unwrap();
    assert!(log.contains("can be used") && !log.contains("BadChecksum"), "{log}");
    pool.ok(0, "unmount v");

    pool.sublet_within(0, &["volume", "scrub", "v", "--wait"], LIMIT).ok();
    let found = |what: &str| number(&pool.volume("v"), &format!("/findings/{what}"));
    assert_eq!((found("differed"), found("repaired"), found("unrepairable")), (0, 0, 0));
    for server in [1, 2] {
        let area = pool.area_files(server).remove(0);
        let at = disks::find(&area, &first).expect("the copy lies in the file") as usize;
        let bytes = std::fs::read(area).unwrap();
        assert!(bytes[at..at + SIZE as usize] == expected, "server {server} has what was last in the cache");
    }
    pool.ok(0, "return v");
}
