//! Hot regions and checksums (H, K).

use std::path::PathBuf;
use std::time::Duration;

use sublet_doors::{Clock, Tick};
use sublet_wire::checksum::table_size;
use sublet_wire::message::{BlockState, MapWhich, Seed, SetState, StaleMark};

use super::memory::{MemoryDoors, Op, with_files};
use super::*;
use crate::ReadInfo;
use crate::cool::{CHECKPOINT_INTERVAL, IDLE};
use crate::regions::HOT_MAX;

pub(super) fn one() -> [PieceSpec; 1] {
    [piece("/disk", 32 * MIB)]
}

pub(super) fn with_area(device: bool, test: impl AsyncFnOnce(MemoryDoors, Rc<Area<MemoryDoors>>)) {
    with_files(&[("/disk", file_size_for(32 * MIB))], device, async |doors| {
        let area = made(&doors, &one()).await;
        test(doors, area).await;
    });
}

/// A slice of a volume with one leg.
pub(super) fn single(n: u128, offset: u64, length: u64) -> SliceFacts {
    SliceFacts { way: Way::Single, legs: 1, in_sync: vec![true], ..facts(n, offset, length) }
}

/// Reads with checksums: the bytes, whether their checksums fit, and whether some were computed.
pub(super) async fn checked<D: Doors>(area: &Area<D>, n: u128, offset: u64, length: usize) -> (Vec<u8>, bool, bool) {
    let mut sums = vec![0; table_size(length)];
    let (result, buffer) = area.read(slice(n), offset, Buffer::new(length), 0..length, &mut sums).await;
    let ReadInfo { recomputed } = result.unwrap();
    let fits = sublet_wire::checksum::first_mismatch(&buffer, &sums).is_none();
    (buffer.to_vec(), fits, recomputed)
}

fn later(doors: &MemoryDoors, time: Duration) -> Tick {
    Tick(doors.now().0 + time.as_nanos() as u64 + 1)
}

/// Flips a bit of the data of an area.
fn rot(doors: &MemoryDoors, area: &Area<MemoryDoors>, at: u64) {
    let at = area.inner.pieces[0].data_at + at;
    let mut images = doors.machine.images.borrow_mut();
    let image = images.get_mut(&PathBuf::from("/disk")).unwrap();
    let mut sector = image.read(at, 512);
    sector[7] ^= 1;
    image.write(at, &sector);
}

#[test]
fn h1_the_mark_of_a_cold_region_is_durable_before_the_first_byte_and_costs_one_sync() {
    for device in [true, false] {
        with_area(device, async |doors, area| {
            area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
            write(&area, 1, 0, 1, 4096).await;
            area.cool(slice(1), &[0]).await.unwrap();
            assert_eq!(area.hot_count(slice(1)), 0);
            doors.take_log();
            write(&area, 1, 8192, 2, 4096).await;
            let log = doors.take_log();
            let data_at = area.inner.pieces[0].data_at;
            assert!(
                matches!(&log[..], [
                Op::Write { at: mark, bytes, .. },
                Op::Sync { .. },
                Op::Write { at, .. }
            ] if *mark < data_at && bytes.len() == 4096 && *at == data_at + 8192),
                "{} operations",
                log.len()
            );
            write(&area, 1, 4096, 2, 4096).await;
            assert_eq!(doors.take_log().len(), 1, "a hot region is written straight away");
        });
    }
}

#[test]
fn h1_marks_that_wait_at_the_same_time_share_a_sync() {
    with_area(false, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 8 * REGION)).await.unwrap();
        doors.take_log();
        let area = &area;
        futures_util::future::join_all((0..8).map(|n| write(area, 1, n * REGION, 5, 4096))).await;
        let syncs = doors.take_log().iter().filter(|op| matches!(op, Op::Sync { .. })).count();
        assert!(syncs <= 2, "{syncs} syncs");
    });
}

#[test]
fn k1_reads_bring_kept_checksums_whatever_the_data_has_become() {
    for device in [true, false] {
        with_area(device, async |doors, area| {
            area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
            write(&area, 1, REGION - 4096, 7, 8192).await;
            for step in ["hot", "cold", "read from its page"] {
                if step == "cold" {
                    area.cool(slice(1), &[0, 1]).await.unwrap();
                }
                if step == "read from its page" {
                    area.inner.regions.cache.borrow_mut().take(0);
                    area.inner.regions.cache.borrow_mut().take(1);
                }
                let (data, fits, recomputed) = checked(&area, 1, REGION - 8192, 16384).await;
                assert_eq!(data, [vec![0; 4096], vec![7; 8192], vec![0; 4096]].concat());
                assert!(fits && !recomputed, "{step}");
                let (_, fits, recomputed) = checked(&area, 1, 3 * REGION, 4096).await;
                assert!(fits && !recomputed, "blank");
            }
            rot(&doors, &area, REGION);
            let (_, fits, recomputed) = checked(&area, 1, REGION - 8192, 16384).await;
            assert!(!fits && !recomputed);
            let states = area.verify(slice(1), REGION - 4096, 12288).await.unwrap();
            let states: Vec<BlockState> = states.iter().map(|block| block.state).collect();
            assert_eq!(states, [BlockState::Matches, BlockState::Differs, BlockState::Matches]);
            // A repair writes it again.
            write(&area, 1, REGION, 7, 4096).await;
            assert_eq!(checked(&area, 1, REGION, 4096).await, (vec![7; 4096], true, false));
        });
    }
}

#[test]
fn k2_checksums_outlive_a_clean_restart_and_those_of_hot_regions_are_computed_after_a_crash() {
    with_area(true, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
        for n in 0..2 {
            write(&area, 1, n * REGION, 7, 4096).await;
        }
        area.flush().await.unwrap();
        area.cool(slice(1), &[0]).await.unwrap();
        area.flush().await.unwrap();
        drop(area);
        let doors = doors.restarted(doors.images());
        doors.machine.reads.set(0);
        let area = open(&doors, &one()).await;
        assert!(doors.machine.reads.get() < 20, "an opening looks at no data");
        assert_eq!(area.hot_count(slice(1)), 1);
        assert!(!checked(&area, 1, 0, 8192).await.2);
        let (data, fits, recomputed) = checked(&area, 1, REGION, 8192).await;
        assert!(fits && recomputed && data[..4096] == [7; 4096]);
        // What is written now is known again.
        write(&area, 1, REGION, 8, 4096).await;
        assert_eq!(checked(&area, 1, REGION, 4096).await, (vec![8; 4096], true, false));
        assert!(checked(&area, 1, REGION, 8192).await.2);
        area.cool(slice(1), &[1]).await.unwrap();
        assert_eq!(area.hot_count(slice(1)), 0);
        assert!(!checked(&area, 1, REGION, 8192).await.2);
    });
}

#[test]
fn k2_a_checkpoint_vouches_for_what_was_not_written_since() {
    with_area(false, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 3 * 4096).await;
        area.cool_idle(doors.now()).await.unwrap();
        area.cool_idle(later(&doors, CHECKPOINT_INTERVAL)).await.unwrap();
        assert_eq!(area.hot_count(slice(1)), 1, "with several legs it stays hot");
        write(&area, 1, 4096, 8, 4096).await;
        rot(&doors, &area, 8192);
        area.flush().await.unwrap();
        drop(area);
        let area = open(&doors.restarted(doors.images()), &one()).await;
        assert_eq!(checked(&area, 1, 0, 4096).await, (vec![7; 4096], true, false));
        assert!(checked(&area, 1, 4096, 4096).await.2, "written since");
        assert!(checked(&area, 1, 8192, 4096).await.2, "this one is not known to be rotten");
        assert!(!checked(&area, 1, 12288, 4096).await.2);
    });
}

#[test]
fn k2_a_damaged_checksum_page_costs_the_checksums_and_nothing_else() {
    with_area(true, async |doors, area| {
        area.prepare_slice(&single(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        area.cool(slice(1), &[0]).await.unwrap();
        area.flush().await.unwrap();
        drop(area);
        let at = crate::layout::Reserve::of(one()[0].length).sums(0);
        let mut images = doors.images();
        images.get_mut(&PathBuf::from("/disk")).unwrap().write(at + 512, &[0x5A; 512]);
        let doors = doors.restarted(images);
        let area = open(&doors, &one()).await;
        assert_eq!(checked(&area, 1, 0, 4096).await, (vec![7; 4096], true, true));
        assert_eq!(area.verify(slice(1), 0, 4096).await.unwrap()[0].state, BlockState::Computed);
        area.cool(slice(1), &[0]).await.unwrap();
        assert_eq!(checked(&area, 1, 0, 4096).await, (vec![7; 4096], true, false));
    });
}

#[test]
fn h2_one_leg_cools_by_itself_after_idle_time_and_keeps_to_its_share() {
    with_area(false, async |doors, area| {
        area.prepare_slice(&single(1, 0, 4 * REGION)).await.unwrap();
        area.prepare_slice(&facts(2, 4 * REGION, 4 * REGION)).await.unwrap();
        assert_eq!(area.hot_share(slice(1)), HOT_MAX / 2);
        write(&area, 1, 0, 1, 4096).await;
        write(&area, 2, 0, 1, 4096).await;
        area.cool_idle(doors.now()).await.unwrap();
        assert_eq!((area.hot_count(slice(1)), area.hot_count(slice(2))), (1, 1), "just written");
        doors.take_log();
        area.cool_idle(later(&doors, IDLE)).await.unwrap();
        assert_eq!((area.hot_count(slice(1)), area.hot_count(slice(2))), (0, 1), "several legs wait for the order");
        let log = doors.take_log();
        let syncs: Vec<bool> = log.iter().map(|op| matches!(op, Op::Sync { .. })).collect();
        assert_eq!(syncs, [true, false, true, false], "data, checksums and sync, clearing without one");
        assert_eq!(checked(&area, 1, 0, 4096).await, (vec![1; 4096], true, false));
    });
}

#[test]
fn h2_a_region_that_is_written_while_it_cools_stays_hot_with_the_right_checksums() {
    with_area(true, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
        for round in 0..20u8 {
            write(&area, 1, 0, round, 8192).await;
            let cool = area.cool(slice(1), &[0, 1, 2, 3]);
            let writes = futures_util::future::join_all((0..4).map(|n| write(&area, 1, n * 4096 + 4096, round + 1, 4096)));
            let (cooled, _) = futures_util::future::join(cool, writes).await;
            cooled.unwrap();
            let (data, fits, recomputed) = checked(&area, 1, 0, 5 * 4096).await;
            assert_eq!(data, [vec![round; 4096], vec![round + 1; 4 * 4096]].concat());
            assert!(fits && !recomputed);
        }
        area.cool(slice(1), &[0]).await.unwrap();
        area.flush().await.unwrap();
        let area = open(&doors.restarted(doors.images()), &one()).await;
        let states = area.verify(slice(1), 0, REGION).await.unwrap();
        assert!(states.iter().all(|block| block.state == BlockState::Matches));
    });
}

#[test]
fn w7_a_write_that_fails_or_is_given_up_leaves_no_checksum_that_lies() {
    with_area(false, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 1, 8192).await;
        doors.machine.fail_after.set(Some(0));
        assert!(put(&area, 1, 4096, vec![2; 4096]).await.is_err());
        doors.machine.fail_after.set(None);
        assert_eq!(checked(&area, 1, 0, 4096).await, (vec![1; 4096], true, false));
        let (_, fits, recomputed) = checked(&area, 1, 4096, 4096).await;
        assert!(fits && recomputed, "the block may hold anything");
        area.cool(slice(1), &[0]).await.unwrap_err();
        drop(area);
        let doors = doors.restarted(doors.images());
        let area = open(&doors, &one()).await;
        let (_, fits, recomputed) = checked(&area, 1, 4096, 4096).await;
        assert!(fits && recomputed, "and after a restart, too");
        area.cool(slice(1), &[0]).await.unwrap();
        assert_eq!(area.hot_count(slice(1)), 0);
        assert_eq!(checked(&area, 1, 0, 4096).await, (vec![1; 4096], true, false));
        // Given up midway: nobody knows when it ends.
        let writing = area.inner.begin_write(slice(1), 0, 4096).await.unwrap();
        drop(writing);
        assert!(checked(&area, 1, 0, 4096).await.2);
        area.cool(slice(1), &[0]).await.unwrap();
        assert_eq!(area.hot_count(slice(1)), 1, "it stays hot until the area is opened again");
    });
}

#[test]
fn k1_a_read_beside_a_write_of_its_blocks_has_checksums_that_fit_its_data() {
    with_area(false, async |_, area| {
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 1, 8192).await;
        let writing = area.inner.begin_write(slice(1), 0, 4096).await.unwrap();
        assert_eq!(checked(&area, 1, 4096, 4096).await, (vec![1; 4096], true, false), "another block");
        assert_eq!(checked(&area, 1, 0, 4096).await, (vec![1; 4096], true, true));
        writing.end(Some(crate::heat::NewSums::Zeroes));
        assert!(!checked(&area, 1, 0, 4096).await.1, "afterwards the kept one counts");
    });
}

#[test]
fn k1_wrong_bytes_below_a_block_that_is_being_written_are_told() {
    with_area(false, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 1, 8192).await;
        rot(&doors, &area, 0);
        let writing = area.inner.begin_write(slice(1), 0, 4096).await.unwrap();
        assert!(!checked(&area, 1, 0, 4096).await.1, "neither the old bytes nor the new ones");
        writing.end(None);
    });
}

#[test]
fn k1_a_long_read_beside_a_write_of_one_of_its_blocks_still_tells_rot_in_the_others() {
    with_area(false, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
        write(&area, 1, 0, 1, 65536).await;
        rot(&doors, &area, 8192);
        let writing = area.inner.begin_write(slice(1), 32768, 4096).await.unwrap();
        let mut sums = vec![0; table_size(65536)];
        let (result, buffer) = area.inner.read_summed(0, Buffer::new(65536), 0..65536, &mut sums).await;
        assert_eq!(result.unwrap(), [8], "only of the block that is being written no checksum is known");
        assert_eq!(sublet_wire::checksum::first_mismatch(&buffer, &sums), Some(2));
        writing.end(None);
    });
}

#[test]
fn w6_zeroes_have_checksums_too() {
    with_area(true, async |_, area| {
        area.prepare_slice(&facts(1, 0, 8 * REGION)).await.unwrap();
        for n in 0..8 {
            write(&area, 1, n * REGION, 9, 8192).await;
        }
        area.cool(slice(1), &(0..8).collect::<Vec<_>>()).await.unwrap();
        area.write_zeroes(slice(1), 4096, 8 * REGION - 8192, false).await.unwrap();
        assert_eq!(area.hot_count(slice(1)), 8);
        let states = area.verify(slice(1), 0, REGION).await.unwrap();
        assert!(states.iter().all(|block| block.state == BlockState::Matches));
        let mut expected = vec![0; 4 << 20];
        expected[..4096].fill(9);
        assert!(read(&area, 1, 0, 4 << 20).await == expected);
        area.cool(slice(1), &(0..8).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(checked(&area, 1, 7 * REGION, 1 << 20).await, (vec![0; 1 << 20], true, false));
    });
}

#[test]
fn h1_a_writer_that_goes_on_in_the_next_region_finds_it_hot_and_what_it_left_out_cools_by_itself() {
    with_area(true, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 8 * REGION)).await.unwrap();
        write(&area, 1, REGION - 8192, 1, 8192).await;
        assert_eq!(area.hot_count(slice(1)), 1);
        write(&area, 1, REGION, 1, 4096).await;
        while area.hot_count(slice(1)) < 6 {
            doors.sleep(Duration::from_millis(1)).await;
        }
        doors.take_log();
        write(&area, 1, 2 * REGION, 1, 4096).await;
        assert_eq!(doors.take_log().len(), 1, "nothing but the data");
        area.cool_idle(later(&doors, IDLE)).await.unwrap();
        assert_eq!(area.hot_count(slice(1)), 3, "those that were written wait for the order (H2)");
        assert_eq!(checked(&area, 1, 4 * REGION, 4096).await, (vec![0; 4096], true, false));
    });
}

#[test]
fn k2_a_clean_stop_saves_the_checksums_of_regions_that_stay_hot() {
    with_area(false, async |doors, area| {
        area.prepare_slice(&facts(1, 0, 4 * REGION)).await.unwrap();
        for region in 0..3 {
            write(&area, 1, region * REGION, 7, 3 * 4096).await;
        }
        area.settle().await.unwrap();
        assert_eq!(area.hot_count(slice(1)), 3, "nobody has asked the other leg (H2)");
        drop(area);
        // Everything that was begun has ended: nothing is lost with the process, nor with the machine.
        let area = open(&doors.restarted(doors.images()), &one()).await;
        assert_eq!(area.hot_count(slice(1)), 3);
        for region in 0..3 {
            assert_eq!(checked(&area, 1, region * REGION, 4096).await, (vec![7; 4096], true, false));
        }
    });
}

#[test]
fn h2_s3_a_clean_stop_cools_what_no_other_leg_in_sync_has_and_keeps_exactly_what_a_stale_one_lacks() {
    with_area(true, async |doors, area| {
        let own = facts(1, 0, 4 * REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        area.prepare_slice(&single(2, 4 * REGION, REGION)).await.unwrap();
        write(&area, 1, 0, 7, 4096).await;
        let seed = Seed { leg: 1, since: generation(2), reset: true, entries: vec![(0, 1)] };
        area.seed(slice(1), &seed).await.unwrap();
        let stale = vec![StaleMark { leg: 1, since: generation(2), seeded: true }];
        let state = SetState { generation: generation(2), in_sync: vec![true, false], equalised: false, stale };
        area.set_state(slice(1), epoch(1), &state).await.unwrap();
        write(&area, 1, REGION + 3 * 65536, 8, 4096).await;
        write(&area, 2, 0, 9, 4096).await;
        area.settle().await.unwrap();
        drop(area);
        let area = open(&doors.restarted(doors.images()), &one()).await;
        assert!(area.hot_slices().is_empty());
        let map = area.map(slice(1), MapWhich::Leg(1), 0, 4 * REGION).await.unwrap();
        assert!(!map.lost);
        let missed: Vec<(u32, u64)> = map.entries.iter().map(|entry| (entry.region, entry.missed)).collect();
        assert_eq!(missed, [(0, 1), (1, 8)]);
        for (n, at, byte) in [(1, 0, 7), (1, REGION + 3 * 65536, 8), (2, 0, 9)] {
            assert_eq!(checked(&area, n, at, 4096).await, (vec![byte; 4096], true, false));
        }
    });
}
