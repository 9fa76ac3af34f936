//! Two copies, crashes at every point, damage, versions (L1, L2).

use std::path::PathBuf;

use super::memory::{Op, crashes, with_files};
use super::*;
use crate::AreaErrorKind;
use crate::bytes::Put;
use crate::layout::{AREA_LABEL_AT, PIECE_LABEL_AT};

fn one() -> [PieceSpec; 1] {
    [piece("/disk", 16 * MIB)]
}

fn size() -> [(&'static str, u64); 1] {
    [("/disk", file_size_for(16 * MIB))]
}

fn flip(images: &mut super::memory::Images, at: u64) {
    let image = images.get_mut(&PathBuf::from("/disk")).unwrap();
    let mut sector = image.read(at, 512);
    sector[100] ^= 1;
    image.write(at, &sector);
}

#[test]
fn test_l1_a_crash_at_any_write_or_sync_of_a_label_change_leaves_the_old_or_the_new_label() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        // Many slices make the label longer than one write of the disk can be atomic for.
        for n in 1..=3 {
            area.prepare_slice(&facts(n, (n as u64 - 1) * REGION, REGION)).await.unwrap();
        }
        area.open_lease(slice(1), &lease(5), &facts(1, 0, REGION)).await.unwrap();
        let (base, before) = (doors.images(), area.report(""));
        doors.take_log();
        area.open_lease(slice(1), &lease(6), &facts(1, 0, REGION)).await.unwrap();
        let (log, after) = (doors.take_log(), area.report(""));
        drop(area);
        let mut seen = [false; 2];
        for (what, images) in crashes(&base, &log) {
            let area = open(&doors.restarted(images), &one()).await;
            let report = area.report("");
            let is_new = report.slices == after.slices;
            assert!(is_new || report.slices == before.slices, "{what}: neither old nor new");
            let stale = area.open_lease(slice(1), &lease(5), &facts(1, 0, REGION)).await;
            assert_eq!(stale.is_err(), is_new, "{what}: the epoch that counts is the persisted one");
            seen[usize::from(is_new)] = true;
        }
        assert_eq!(seen, [true, true], "both outcomes were met");
        let answered = open(&doors.restarted(crashes(&base, &log).pop().unwrap().1), &one()).await;
        assert_eq!(answered.report("").slices, after.slices, "what was answered is there");
    });
}

#[test]
fn test_l1_copy_b_is_not_begun_before_copy_a_is_durable_and_the_answer_waits_for_both() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        doors.take_log();
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        let shape: Vec<Option<u64>> = doors
            .take_log()
            .iter()
            .map(|op| match op {
                Op::Write { at, .. } => Some(*at),
                Op::Sync { .. } => None,
                Op::Zero { .. } => panic!("a label change zeroes nothing"),
            })
            .collect();
        assert_eq!(shape, [Some(AREA_LABEL_AT[0]), None, Some(AREA_LABEL_AT[1]), None]);
        // Nothing is written when nothing changes.
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        assert_eq!(doors.take_log(), []);
    });
}

#[test]
fn test_l1_a_crash_at_any_point_of_an_opening_leaves_an_area_that_opens() {
    with_files(&[("/x", 32 * MIB), ("/y", 32 * MIB)], false, async |doors| {
        let pieces = [piece("/x", 16 * MIB), piece("/y", 16 * MIB)];
        let area = made(&doors, &pieces).await;
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        let slices = area.report("").slices;
        drop(area);
        let base = doors.images();
        doors.take_log();
        drop(open(&doors, &pieces).await);
        for (what, images) in crashes(&base, &doors.take_log()) {
            let area = Area::open(&doors.restarted(images), &pieces, None, BOOT).await;
            let area = area.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(area.report("").slices, slices, "{what}");
        }
    });
}

#[test]
fn test_l1_with_one_damaged_copy_the_other_serves_and_outlives_a_crash_of_the_repair() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        let slices = area.report("").slices;
        drop(area);
        for at in AREA_LABEL_AT.into_iter().chain(PIECE_LABEL_AT) {
            let mut images = doors.images();
            flip(&mut images, at);
            let repaired = doors.restarted(images.clone());
            assert_eq!(open(&repaired, &one()).await.report("").slices, slices, "damaged at {at}");
            // The repair writes the damaged copy first: a torn write never costs the only good one.
            for (what, images) in crashes(&images, &repaired.take_log()) {
                let area = open(&doors.restarted(images), &one()).await;
                assert_eq!(area.report("").slices, slices, "damaged at {at}, {what}");
            }
            // Afterwards both are whole again: the other one may break.
            let mut images = repaired.images();
            flip(&mut images, if at == AREA_LABEL_AT[0] { AREA_LABEL_AT[1] } else { AREA_LABEL_AT[0] });
            assert_eq!(open(&doors.restarted(images), &one()).await.report("").slices, slices);
        }
    });
}

#[test]
fn test_l1_a_copy_in_a_bad_sector_counts_as_damaged() {
    with_files(&size(), false, async |doors| {
        drop(made(&doors, &one()).await);
        for at in AREA_LABEL_AT.into_iter().chain(PIECE_LABEL_AT) {
            let broken = doors.restarted(doors.images());
            broken.machine.unreadable.replace(Some(at..at + 512));
            drop(open(&broken, &one()).await);
        }
    });
}

#[test]
fn test_l1_two_damaged_copies_are_a_clear_error_and_nothing_is_written() {
    with_files(&size(), false, async |doors| {
        drop(made(&doors, &one()).await);
        for (copies, what) in [(AREA_LABEL_AT, "area label"), (PIECE_LABEL_AT, "piece label")] {
            let mut images = doors.images();
            for at in copies {
                flip(&mut images, at);
            }
            let broken = doors.restarted(images.clone());
            let error = Area::open(&broken, &one(), None, BOOT).await.err().unwrap();
            assert_eq!(error.kind, AreaErrorKind::Format);
            assert!(error.to_string().contains(&format!("both copies of the {what} of")), "{error}");
            assert!(broken.images() == images, "a damaged area is left alone");
        }
    });
}

#[test]
fn test_l1_the_higher_sequence_wins_whichever_copy_has_it() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        let old = doors.images()[&PathBuf::from("/disk")].read(AREA_LABEL_AT[0], 4096);
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        drop(area);
        for at in AREA_LABEL_AT {
            let mut images = doors.images();
            images.get_mut(&PathBuf::from("/disk")).unwrap().write(at, &old);
            assert_eq!(open(&doors.restarted(images), &one()).await.report("").slices.len(), 1, "the older copy is at {at}");
        }
    });
}

#[test]
fn a_label_of_a_newer_version_is_refused_even_beside_one_of_this_version() {
    with_files(&size(), false, async |doors| {
        drop(made(&doors, &one()).await);
        for at in AREA_LABEL_AT.into_iter().chain(PIECE_LABEL_AT) {
            let mut images = doors.images();
            let image = images.get_mut(&PathBuf::from("/disk")).unwrap();
            let mut label = image.read(at, 4096);
            Put(&mut label).u32(8, 3).u32(12, 0);
            let sum = crc32c::crc32c(&label);
            Put(&mut label).u32(12, sum);
            image.write(at, &label);
            let newer = doors.restarted(images.clone());
            let error = Area::open(&newer, &one(), None, BOOT).await.err().unwrap();
            assert_eq!(error.kind, AreaErrorKind::Format);
            assert!(error.to_string().contains("newer Sublet (format version 3"), "{error}");
            assert!(newer.images() == images);
        }
    });
}

#[test]
fn test_l2_each_opening_has_a_new_identity_and_a_higher_sequence() {
    with_files(&size(), false, async |doors| {
        let first = made(&doors, &one()).await;
        let (identity, sequence) = (first.identity(), first.report("").sequence);
        drop(first);
        let second = open(&doors, &one()).await;
        assert_ne!(second.identity().open, identity.open);
        assert!(second.report("").sequence > sequence);
        assert!(second.identity().kept_writes_of(&identity), "a mere restart loses nothing");
        drop(second);
        let rebooted = Area::open(&doors, &one(), None, BOOT + 1).await.unwrap();
        assert!(!rebooted.identity().kept_writes_of(&identity));
    });
}

#[test]
fn a_failed_label_write_is_never_answered_as_done_and_nothing_is_written_after_it() {
    for fail_after in 0..4 {
        with_files(&size(), false, async |doors| {
            let area = made(&doors, &one()).await;
            area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
            doors.machine.fail_after.set(Some(fail_after));
            assert!(area.open_lease(slice(1), &lease(5), &facts(1, 0, REGION)).await.is_err());
            doors.machine.fail_after.set(None);
            assert_eq!(area.fence(slice(1), epoch(6)).await.unwrap_err().kind, AreaErrorKind::Io);
            assert_eq!(area.flush().await.unwrap_err().kind, AreaErrorKind::Io);
            assert!(area.report("").offline.is_some());
        });
    }
}

#[test]
fn w7_a_failed_flush_is_remembered_although_the_disk_works_again() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        write(&area, 1, 0, 1, 4096).await;
        doors.machine.fail_after.set(Some(0));
        assert!(area.flush().await.is_err());
        doors.machine.fail_after.set(None);
        assert!(area.flush().await.is_err(), "the kernel tells it once, the area always");
        assert!(put(&area, 1, 0, vec![1; 4096]).await.is_err());
        assert_eq!(read(&area, 1, 0, 4096).await, vec![1; 4096], "reads go on");
    });
}

#[test]
fn w7_after_a_failed_sync_a_restart_shows_that_unflushed_writes_may_be_lost() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        let identity = area.identity();
        for label_fails in [false, true] {
            let area = open(&doors, &one()).await;
            let before = area.identity();
            assert_eq!(before.kept_writes_of(&identity), !label_fails);
            // One volume's flush, or its label change: another volume's writes lie in the same file.
            doors.machine.fail_sync.set(true);
            let failed = if label_fails { area.fence(slice(1), epoch(6)).await } else { area.flush().await };
            assert!(failed.is_err() && area.flush().await.is_err());
            assert!(!area.identity().kept_writes_of(&before));
            drop(area);
            let area = open(&doors, &one()).await;
            area.flush().await.unwrap();
            assert!(!area.identity().kept_writes_of(&before), "label fails: {label_fails}");
            drop(area);
            assert!(!open(&doors, &one()).await.identity().kept_writes_of(&before));
        }
    });
}

#[test]
fn another_pools_area_is_not_opened_and_a_labelled_disk_not_formatted_again() {
    with_files(&size(), false, async |doors| {
        drop(made(&doors, &one()).await);
        let error = Area::open(&doors, &one(), Some(PoolId::from_u128(1)), BOOT).await.err().unwrap();
        assert!(error.to_string().contains("another pool"), "{error}");
        let error = Area::format(&doors, &spec(&one())).await.unwrap_err();
        assert!(error.to_string().contains("carries the label of area a1"), "{error}");
        let identity = Area::read_identity(&doors, &one()[0]).await.unwrap().unwrap();
        assert_eq!((identity.area, identity.index, identity.count), (AREA, 0, 1));
        Area::clear_label(&doors, &one()[0]).await.unwrap();
        assert_eq!(Area::read_identity(&doors, &one()[0]).await.unwrap(), None);
        drop(made(&doors, &one()).await);
    });
}

#[test]
fn a_released_area_has_no_label_and_serves_nothing_but_one_in_use_is_kept() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        assert!(area.release().await.unwrap_err().to_string().contains("vol-1"));
        area.wipe_slice(slice(1), epoch(1), true, &|_, _| {}).await.unwrap();
        area.release().await.unwrap();
        assert_eq!(area.prepare_slice(&facts(2, 0, REGION)).await.unwrap_err().kind, AreaErrorKind::Offline);
        assert!(area.report("").offline.is_some());
        drop(area);
        assert_eq!(Area::read_identity(&doors, &one()[0]).await.unwrap(), None);
    });
}

#[test]
fn a_new_name_outlives_a_restart_and_reaches_the_piece_labels() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.rename(&"a2".parse().unwrap()).await.unwrap();
        drop(area);
        assert_eq!(open(&doors, &one()).await.name().as_str(), "a2");
        assert_eq!(Area::read_identity(&doors, &one()[0]).await.unwrap().unwrap().name.as_str(), "a2");
    });
}
