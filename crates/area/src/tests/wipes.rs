//! Wiping (P2).

use std::cell::RefCell;
use std::path::PathBuf;

use super::memory::{Op, crashes, with_files};
use super::*;
use crate::AreaErrorKind as Kind;
use sublet_doors::Clock;

fn one() -> [PieceSpec; 1] {
    [piece("/disk", 32 * MIB)]
}

fn size() -> [(&'static str, u64); 1] {
    [("/disk", file_size_for(32 * MIB))]
}

fn raw_holds<D>(images: &super::memory::Images, byte: u8, _: &Area<D>) -> bool
where
    D: Doors,
{
    let image = &images[&PathBuf::from("/disk")];
    image.holds(byte, 8 * MIB..image.size)
}

#[test]
fn test_p2_a_wiped_slice_leaves_zeroes_on_the_disk_and_its_neighbours_alone() {
    for device in [false, true] {
        with_files(&size(), device, async |doors| {
            let area = made(&doors, &one()).await;
            for (n, byte) in [(1, 0x11), (2, 0x22), (3, 0x33)] {
                area.prepare_slice(&facts(n, (n as u64 - 1) * 2 * REGION, 2 * REGION)).await.unwrap();
                for at in [0, REGION, 2 * REGION - 4096] {
                    write(&area, n, at, byte, 4096).await;
                }
            }
            let told = RefCell::new(Vec::new());
            area.wipe_slice(slice(2), epoch(9), true, &|done, total| told.borrow_mut().push((done, total))).await.unwrap();
            assert_eq!(told.take().last(), Some(&(2 * REGION, 2 * REGION)));
            assert!(!raw_holds(&doors.images(), 0x22, &area), "the pattern is gone from the disk itself");
            assert!(raw_holds(&doors.images(), 0x11, &area) && raw_holds(&doors.images(), 0x33, &area));
            assert_eq!(area.report("").slices.len(), 2);
            area.wipe_slice(slice(2), epoch(9), true, &|_, _| {}).await.unwrap();
            // The space is free again, and reads as zero for its next owner.
            area.prepare_slice(&facts(4, 2 * REGION, 2 * REGION)).await.unwrap();
            assert_eq!(read(&area, 4, 0, 8 << 20).await, vec![0; 8 << 20]);
        });
    }
}

#[test]
fn test_p2_old_bytes_are_overwritten_and_synced_before_the_file_system_may_drop_them() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        write(&area, 1, 0, 1, 4096).await;
        doors.take_log();
        area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}).await.unwrap();
        let data_at = area.inner.pieces[0].data_at;
        let log = doors.take_log();
        let dropped = log.iter().position(|op| matches!(op, Op::Zero { .. })).unwrap();
        let written: usize = log[..dropped]
            .iter()
            .map(|op| match op {
                Op::Write { at, bytes, .. } if *at >= data_at && bytes.iter().all(|byte| *byte == 0) => bytes.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(written as u64, REGION);
        assert!(matches!(log[dropped - 1], Op::Sync { .. }));
    });
}

#[test]
fn test_p2_a_wipe_resumes_after_a_crash_at_any_point_and_frees_nothing_before_its_end() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        let own = facts(1, 0, 2 * REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(5), &own).await.unwrap();
        for at in [0, REGION, 2 * REGION - 4096] {
            write(&area, 1, at, 0x11, 4096).await;
        }
        area.flush().await.unwrap();
        let base = doors.images();
        doors.take_log();
        area.wipe_slice(slice(1), epoch(6), true, &|_, _| {}).await.unwrap();
        drop(area);
        let mut seen = [false; 3];
        for (what, images) in crashes(&base, &doors.take_log()) {
            let doors = doors.restarted(images);
            let area = open(&doors, &one()).await;
            let state = area.report("").slices.first().map(|slice| (slice.wiping, slice.epoch));
            match state {
                // The wipe had not begun: the slice is untouched and still lent.
                Some((false, _)) => {
                    area.check_open(&open_request(&own, &lease(5))).unwrap();
                    assert_eq!(read(&area, 1, 0, 4096).await, vec![0x11; 4096], "{what}");
                    seen[0] = true;
                }
                Some((true, fenced)) => {
                    assert_eq!(fenced, epoch(6), "{what}: fenced before anything was wiped");
                    assert_eq!(area.open_lease(slice(1), &lease(7), &own).await.unwrap_err().kind, Kind::Busy);
                    assert_eq!(area.prepare_slice(&facts(2, 0, REGION)).await.unwrap_err().kind, Kind::Overlap, "{what}");
                    seen[1] = true;
                }
                None => {
                    assert!(!raw_holds(&doors.images(), 0x11, &area), "{what}: freed before it was wiped");
                    seen[2] = true;
                }
            }
            area.wipe_slice(slice(1), epoch(6), true, &|_, _| {}).await.unwrap();
            assert!(!raw_holds(&doors.images(), 0x11, &area), "{what}");
            assert_eq!(area.report("").slices.len(), 0, "{what}");
        }
        assert_eq!(seen, [true; 3], "before, in and after the wipe");
    });
}

#[test]
fn a_defined_slice_stays_as_a_free_one_that_only_newer_epochs_may_use() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        let own = facts(1, 0, REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(5), &own).await.unwrap();
        area.mark_open(slice(1), epoch(5)).await.unwrap();
        write(&area, 1, 0, 0x11, 4096).await;
        area.wipe_slice(slice(1), epoch(6), false, &|_, _| {}).await.unwrap();
        drop(area);
        let area = open(&doors, &one()).await;
        assert_eq!(area.slice_facts(slice(1)).unwrap().borrower, None);
        let report = &area.report("").slices[0];
        assert_eq!((report.wiping, report.admitted, report.epoch), (false, false, epoch(6)));
        assert_eq!(area.open_lease(slice(1), &lease(5), &own).await.unwrap_err().kind, Kind::StaleEpoch);
        area.open_lease(slice(1), &lease(7), &own).await.unwrap();
        assert!(!area.mark_open(slice(1), epoch(7)).await.unwrap(), "a wiped slice has no unclean past");
        assert_eq!(read(&area, 1, 0, 4096).await, vec![0; 4096]);
        // A late order of the former wipe does not touch what was lent again.
        write(&area, 1, 0, 0x22, 4096).await;
        assert_eq!(area.wipe_slice(slice(1), epoch(6), false, &|_, _| {}).await.unwrap_err().kind, Kind::StaleEpoch);
        assert_eq!(read(&area, 1, 0, 4096).await, vec![0x22; 4096]);
    });
}

#[test]
fn a_wipe_that_is_asked_for_twice_at_once_or_abandoned_comes_to_its_end() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
        write(&area, 1, 0, 0x11, 4096).await;
        {
            let abandoned = std::pin::pin!(area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}));
            let _ = futures_util::poll!(abandoned);
        }
        let again = || area.wipe_slice(slice(1), epoch(3), true, &|_, _| {});
        let (a, b) = futures_util::future::join(again(), again()).await;
        a.unwrap();
        b.unwrap();
        assert_eq!(area.report("").slices.len(), 0);
        assert!(!raw_holds(&doors.images(), 0x11, &area));
    });
}

#[test]
fn a_wipe_that_fails_stays_to_be_done() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        write(&area, 1, 0, 0x11, 4096).await;
        doors.machine.fail_after.set(Some(5));
        assert_eq!(area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}).await.unwrap_err().kind, Kind::Io);
        doors.machine.fail_after.set(None);
        assert_eq!(area.report("").slices.len(), 1);
        let area = open(&doors.restarted(doors.images()), &one()).await;
        assert!(area.report("").slices[0].wiping);
        area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}).await.unwrap();
        assert_eq!(area.report("").slices.len(), 0);
    });
}

#[test]
fn p2_a_wipe_leaves_the_disk_to_borrowers_for_half_of_the_time_and_keeps_to_its_rate() {
    with_files(&[("/disk", file_size_for(72 * MIB))], false, async |doors| {
        let area = made(&doors, &[piece("/disk", 72 * MIB)]).await;
        area.prepare_slice(&facts(1, 0, 64 * MIB)).await.unwrap();
        area.prepare_slice(&facts(2, 64 * MIB, REGION)).await.unwrap();
        for region in 0..16 {
            write(&area, 1, region * REGION, 0x11, 4096).await;
        }
        let told = RefCell::new(Vec::new());
        let wiped = std::cell::Cell::new(false);
        let begun = doors.now();
        let wipe = async {
            area.wipe_slice(slice(1), epoch(3), true, &|done, total| told.borrow_mut().push((done, total))).await.unwrap();
            wiped.set(true);
        };
        let borrower = async {
            while !wiped.get() {
                write(&area, 2, 0, 0x22, 4096).await;
                doors.sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        futures_util::future::join(wipe, borrower).await;
        // 64 MiB at 200 MiB a second.
        let took = doors.now().since(begun);
        assert!(took >= std::time::Duration::from_millis(300), "{took:?}");
        let told = told.take();
        assert!(told.len() >= 8 && told.is_sorted() && told.last() == Some(&(64 * MIB, 64 * MIB)), "{told:?}");
        assert!(!raw_holds(&doors.images(), 0x11, &area));
    });
}

/// What is overwritten with written zeroes, as the log of the disk has it: (offset, length) in the data.
fn overwritten(log: &[Op], data_at: u64) -> Vec<(u64, u64)> {
    let zeroes = |op: &Op| match op {
        Op::Write { at, bytes, .. } if *at >= data_at && bytes.iter().all(|byte| *byte == 0) => {
            Some((at - data_at, bytes.len() as u64))
        }
        _ => None,
    };
    log.iter().filter_map(zeroes).collect()
}

#[test]
fn p2_what_the_borrower_zeroed_before_is_overwritten_all_the_same_in_a_preallocated_file() {
    for sparse in [false, true] {
        with_files(&size(), false, async |doors| {
            Area::format(&doors, &FormatSpec { sparse, ..spec(&one()) }).await.unwrap();
            let area = open(&doors, &one()).await;
            area.prepare_slice(&facts(1, 0, 3 * REGION)).await.unwrap();
            write(&area, 1, 0, 1, 8192).await;
            write(&area, 1, REGION, 1, 8192).await;
            // The file system only notes that this reads as zero: the bytes stay where they were.
            doors.machine.holes.set(true);
            area.write_zeroes(slice(1), 0, 4096, false).await.unwrap();
            area.flush().await.unwrap();
            doors.take_log();
            area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}).await.unwrap();
            let places = overwritten(&doors.take_log(), area.inner.pieces[0].data_at);
            let covers = |at: u64| places.iter().any(|(begin, length)| (*begin..begin + length).contains(&at));
            assert_eq!(covers(0), !sparse, "a hole of a sparse file is not ours any more");
            assert!(covers(4096) && covers(REGION));
            assert!(!covers(2 * REGION), "nothing was ever written there");
        });
    }
}

#[test]
fn p2_a_wipe_takes_entries_of_missed_maps_with_it_whose_flag_a_crash_has_kept_from_the_table() {
    with_files(&size(), false, async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        area.prepare_slice(&facts(2, 2 * REGION, 2 * REGION)).await.unwrap();
        let reserve = crate::layout::Reserve::of(one()[0].length);
        let path = PathBuf::from("/disk");
        let entries: Vec<u64> = [0, 1, 2].into_iter().map(|region| reserve.map_entry(region)).collect();
        for at in &entries {
            doors.machine.images.borrow_mut().get_mut(&path).unwrap().write(*at, &[0x5A; 512]);
        }
        area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}).await.unwrap();
        let held = |at: &u64| doors.images()[&path].read(*at, 512).contains(&0x5A);
        assert_eq!(entries.iter().map(held).collect::<Vec<_>>(), [false, false, true], "and none of its neighbour");
    });
}
