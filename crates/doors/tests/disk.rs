//! The real disk door, on real files.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use sublet_doors::disk::Zero;
use sublet_doors::real::{RealDoors, RealFile, blocking, run};
use sublet_doors::{Buffer, Clock, Disk, DiskFile, Doors, OpenHow};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const HOW: OpenHow = OpenHow { write: true, direct: true, exclusive: true };

fn make(folder: &Path, size: u64) -> std::path::PathBuf {
    let path = folder.join("file");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// On a disk, and in memory, where small operations take another way.
fn folders() -> [tempfile::TempDir; 2] {
    ["/var/tmp", "/dev/shm"].map(|parent| tempfile::tempdir_in(parent).unwrap())
}

fn pattern(length: usize, seed: u8) -> Buffer {
    let mut buffer = Buffer::new(length);
    for (at, byte) in buffer.iter_mut().enumerate() {
        *byte = (at / 7) as u8 ^ (at >> 12) as u8 ^ seed;
    }
    buffer
}

async fn read(file: &RealFile, offset: u64, length: usize) -> Buffer {
    let (result, buffer) = file.read_at(offset, Buffer::new(length), 0..length).await;
    result.unwrap();
    buffer
}

#[test]
fn what_is_written_is_read_in_both_modes() {
    for (folder, direct) in folders().iter().flat_map(|folder| [(folder, true), (folder, false)]) {
        let path = make(folder.path(), 4 * MIB);
        run(async |doors| {
            let file = doors.open(&path, OpenHow { direct, ..HOW }).await.unwrap();
            assert_eq!(file.facts().size, 4 * MIB);
            assert!(!file.facts().device && (direct || !file.facts().direct));
            let data = pattern(MIB as usize, 3).freeze();
            file.write_at(64 * KIB, data.clone()).await.unwrap();
            file.sync().await.unwrap();
            assert!(*read(&file, 64 * KIB, MIB as usize).await == *data);
            // Into the middle of a buffer: the rest of it stays.
            let (result, buffer) = file.read_at(68 * KIB, Buffer::zeroed(16384), 4096..8192).await;
            result.unwrap();
            assert!(buffer[..4096].iter().chain(&buffer[8192..]).all(|byte| *byte == 0));
            assert_eq!(&buffer[4096..8192], &data[4096..8192]);
        })
        .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[65536..][..MIB as usize] == *pattern(MIB as usize, 3));
    }
}

#[test]
fn many_operations_run_at_the_same_time() {
    for folder in folders() {
        let path = make(folder.path(), 16 * MIB);
        run(async |doors| {
            let file = doors.open(&path, HOW).await.unwrap();
            // More than the ring has entries.
            let writes = (0..3000_u64).map(|n| file.write_at(n * 4096, pattern(4096, n as u8).freeze()));
            futures_util::future::try_join_all(writes).await.unwrap();
            for n in [0, 1, 1500, 2999] {
                assert!(*read(&file, n * 4096, 4096).await == *pattern(4096, n as u8));
            }
        })
        .unwrap();
    }
}

#[test]
fn reading_behind_the_end_and_outside_of_the_buffer_is_an_error() {
    for folder in folders() {
        let path = make(folder.path(), 8192);
        run(async |doors| {
            for direct in [true, false] {
                let file = doors.open(&path, OpenHow { direct, ..HOW }).await.unwrap();
                let (result, buffer) = file.read_at(4096, Buffer::new(8192), 0..8192).await;
                assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
                let (result, _) = file.read_at(0, buffer, 4096..12288).await;
                assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
            }
        })
        .unwrap();
    }
}

#[test]
fn zeroed_ranges_read_as_zero_and_their_neighbours_stay() {
    for how in [Zero::Keep, Zero::Punch] {
        for base in [std::env::temp_dir(), "/dev/shm".into()] {
            // The second is tmpfs: no ZERO_RANGE there.
            let Ok(folder) = tempfile::tempdir_in(base) else { continue };
            let path = make(folder.path(), 4 * MIB);
            run(async |doors| {
                let file = doors.open(&path, HOW).await.unwrap();
                let data = pattern(4 * MIB as usize, 9).freeze();
                file.write_at(0, data.clone()).await.unwrap();
                file.sync().await.unwrap();
                file.zero(4096, 3 * MIB, how).await.unwrap();
                file.zero(4096, 0, how).await.unwrap();
                let after = read(&file, 0, 4 * MIB as usize).await;
                let zeroes = 4096..4096 + 3 * MIB as usize;
                assert!(after[zeroes.clone()].iter().all(|byte| *byte == 0));
                assert!(after[..4096] == data[..4096] && after[zeroes.end..] == data[zeroes.end..]);
            })
            .unwrap();
            let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) * 512;
            assert_eq!(how == Zero::Punch, blocks < 2 * MIB, "{how:?}: {blocks} bytes are allocated");
        }
    }
}

#[test]
fn extents_cover_the_range_and_never_call_data_a_hole() {
    let folder = tempfile::tempdir().unwrap();
    let path = make(folder.path(), 8 * MIB);
    run(async |doors| {
        let file = doors.open(&path, HOW).await.unwrap();
        assert_eq!(file.extents(0, 0).await.unwrap(), []);
        file.write_at(MIB, pattern(65536, 1).freeze()).await.unwrap();
        file.write_at(5 * MIB, pattern(4096, 2).freeze()).await.unwrap();
        let extents = file.extents(4096, 7 * MIB).await.unwrap();
        assert_eq!(extents.iter().map(|(length, _)| length).sum::<u64>(), 7 * MIB);
        assert!(extents.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours are merged: {extents:?}");
        let mut at = 4096;
        for (length, data) in &extents {
            let bytes = read(&file, at, *length as usize).await;
            assert!(*data || bytes.iter().all(|byte| *byte == 0), "a hole at {at} has data");
            at += length;
        }
        assert!(extents.iter().any(|(_, data)| !data), "holes are seen: {extents:?}");
        // All data, and a range inside of it.
        assert_eq!(file.extents(MIB + 4096, 8192).await.unwrap(), [(8192, true)]);
    })
    .unwrap();
}

#[test]
fn the_lock_waits_for_the_last_holder_and_a_dropped_wait_takes_it_from_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = make(folder.path(), MIB);
    run(async |doors| {
        let holder = doors.open(&path, HOW).await.unwrap();
        assert!(doors.timeout(Duration::from_millis(100), doors.open(&path, HOW)).await.is_err(), "it has to wait");
        let unlocked = doors.open(&path, OpenHow { exclusive: false, ..HOW }).await.unwrap();
        drop(unlocked);
        let opened = std::rc::Rc::new(std::cell::Cell::new(false));
        let (doors2, path2, opened2) = (doors.clone(), path.clone(), opened.clone());
        doors.spawn(async move {
            let file = doors2.open(&path2, HOW).await.unwrap();
            opened2.set(true);
            drop(file);
        });
        doors.sleep(Duration::from_millis(100)).await;
        assert!(!opened.get());
        drop(holder);
        // The dropped wait above gets the lock first, perhaps, and lets it go at once.
        for _ in 0..100 {
            if opened.get() {
                return;
            }
            doors.sleep(Duration::from_millis(20)).await;
        }
        panic!("the lock was free for 2 s and nobody got it");
    })
    .unwrap();
}

#[test]
fn a_file_that_is_replaced_during_the_wait_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = make(folder.path(), MIB);
    run(async |doors| {
        let holder = doors.open(&path, HOW).await.unwrap();
        let (wait, ()) = futures_util::future::join(doors.open(&path, HOW), async {
            doors.sleep(Duration::from_millis(100)).await;
            std::fs::remove_file(&path).unwrap();
            make(folder.path(), MIB);
            drop(holder);
        })
        .await;
        assert!(wait.unwrap_err().to_string().contains("replaced"));
    })
    .unwrap();
}

#[test]
fn errors_of_opening_name_the_path() {
    run(async |doors| {
        let error = doors.open(Path::new("/nowhere/at-all"), HOW).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/nowhere/at-all"));
        let error = doors.open(Path::new("/dev/null"), HOW).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    })
    .unwrap();
}

#[test]
fn dropped_operations_leave_the_file_usable_and_the_memory_intact() {
    let folder = tempfile::tempdir().unwrap();
    let path = make(folder.path(), 32 * MIB);
    let mut ending = std::time::Instant::now();
    let dropped = run(async |doors: RealDoors| {
        let file = doors.open(&path, HOW).await.unwrap();
        file.write_at(0, pattern(MIB as usize, 1).freeze()).await.unwrap();
        let mut dropped = 0;
        for _ in 0..200 {
            let work = file.read_at(0, Buffer::new(MIB as usize), 0..MIB as usize);
            dropped += u32::from(doors.timeout(Duration::ZERO, work).await.is_err());
            // If the pool got the memory of the read back too early, the kernel would write into this.
            let canary = Buffer::zeroed(MIB as usize);
            doors.timeout(Duration::from_micros(300), std::future::pending::<()>()).await.unwrap_err();
            assert!(canary.iter().all(|byte| *byte == 0));
        }
        assert!(*read(&file, 0, MIB as usize).await == *pattern(MIB as usize, 1));
        // In flight at the end of the runtime: `run` waits for it.
        drop(file.read_at(0, Buffer::new(4096), 0..4096));
        let (doors2, path2) = (doors.clone(), path.clone());
        drop(file);
        doors.spawn(async move {
            let file = doors2.open(&path2, HOW).await.unwrap();
            loop {
                let (result, _) = file.read_at(0, Buffer::new(MIB as usize), 0..MIB as usize).await;
                result.unwrap();
            }
        });
        doors.sleep(Duration::from_millis(20)).await;
        ending = std::time::Instant::now();
        dropped
    })
    .unwrap();
    assert!(ending.elapsed() < Duration::from_secs(5), "the end of a runtime stops its tasks");
    assert!(dropped > 0, "some reads were really dropped in flight");
}

#[test]
fn a_block_device_is_claimed_zeroed_and_numbered() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root, for a loop device");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = make(folder.path(), 16 * MIB);
    let output = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let device = std::path::PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let result = std::panic::catch_unwind(|| {
        run(async |doors| {
            let file = doors.open(&device, HOW).await.unwrap();
            assert!(file.facts().device && file.facts().direct && file.facts().size == 16 * MIB);
            assert_ne!(file.facts().disk_sequence, 0);
            for how in [Zero::Keep, Zero::Punch] {
                file.write_at(0, pattern(4 * MIB as usize, 5).freeze()).await.unwrap();
                file.zero(4096, MIB, how).await.unwrap();
                file.sync().await.unwrap();
                let after = read(&file, 0, 4 * MIB as usize).await;
                assert!(after[4096..][..MIB as usize].iter().all(|byte| *byte == 0));
                assert!(after[4096 + MIB as usize..] == pattern(4 * MIB as usize, 5)[4096 + MIB as usize..]);
            }
            assert_eq!(file.extents(0, 16 * MIB).await.unwrap(), [(16 * MIB, true)]);
            // The next one waits for the lock, then gets the claim too.
            let next = {
                let (doors, device) = (doors.clone(), device.clone());
                async move { doors.open(&device, HOW).await }
            };
            let (next, ()) = futures_util::future::join(next, async {
                doors.sleep(Duration::from_millis(200)).await;
                drop(file);
            })
            .await;
            drop(next.unwrap());
        })
        .unwrap();
    });
    std::process::Command::new("losetup").arg("--detach").arg(&device).status().unwrap();
    result.unwrap();
}

#[test]
fn blocking_work_does_not_block_the_thread() {
    run(async |doors| {
        let started = std::time::Instant::now();
        let slow = (0..20).map(|n| {
            blocking(move || {
                std::thread::sleep(Duration::from_millis(200));
                n
            })
        });
        let (numbers, ()) = futures_util::future::join(futures_util::future::join_all(slow), async {
            doors.sleep(Duration::from_millis(10)).await;
            assert!(started.elapsed() < Duration::from_millis(150));
        })
        .await;
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
        assert!(started.elapsed() < Duration::from_secs(2), "they ran side by side");
    })
    .unwrap();
}
