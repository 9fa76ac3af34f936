//! Slices that have few hot regions each (H2), and regions that cannot cool.

use std::time::Duration;

use sublet_doors::{Clock, Tick};
use sublet_types::limits::BLOCK_SIZE;

use super::hot::single;
use super::memory::{MemoryDoors, with_files};
use super::*;
use crate::cool::IDLE;
use crate::regions::{HOT_MAX, HOT_SHARE_MIN};

const SLICES: u128 = 128;
const REGIONS: u64 = 40;

/// An area with so many slices that each has the least share; slice 1 has some regions, of which all are written and few hot.
fn with_crowd(test: impl AsyncFnOnce(MemoryDoors, Rc<Area<MemoryDoors>>)) {
    let size = (REGIONS + SLICES as u64) * REGION;
    with_files(&[("/disk", file_size_for(size))], false, async |doors| {
        let area = made(&doors, &[piece("/disk", size)]).await;
        area.prepare_slice(&single(1, 0, REGIONS * REGION)).await.unwrap();
        for n in 2..=SLICES {
            area.prepare_slice(&single(n, (REGIONS + n as u64 - 2) * REGION, REGION)).await.unwrap();
        }
        assert_eq!(area.hot_share(slice(1)), HOT_SHARE_MIN.max(HOT_MAX / SLICES as u32));
        for region in 0..REGIONS {
            write(&area, 1, region * REGION, 7, BLOCK_SIZE as usize).await;
        }
        test(doors.clone(), area).await;
    });
}

#[test]
fn h2_f1_a_long_zeroing_ends_however_few_regions_may_be_hot_and_keeps_near_the_share() {
    with_crowd(async |doors, area| {
        let zeroed = area.write_zeroes(slice(1), 0, 16 * REGION, true);
        doors.timeout(Duration::from_secs(20), zeroed).await.expect("it ends").unwrap();
        assert!(area.hot_count(slice(1)) <= area.hot_share(slice(1)) + 4, "{}", area.hot_count(slice(1)));
        assert_eq!(read(&area, 1, 15 * REGION, 4096).await, [0; 4096]);
        assert_eq!(read(&area, 1, 16 * REGION, 4096).await, [7; 4096]);
    });
}

#[test]
fn h2_writers_of_several_regions_each_all_come_to_their_turn() {
    with_crowd(async |doors, area| {
        let area = &area;
        let writers = futures_util::future::join_all((0..4).map(|n| async move {
            for _ in 0..3 {
                // More than the whole share.
                let writing = area.inner.begin_write(slice(1), n * 10 * REGION, 10 * REGION).await.unwrap();
                writing.end(Some(crate::heat::NewSums::Zeroes));
            }
        }));
        doors.timeout(Duration::from_secs(20), writers).await.expect("they all end");
    });
}

/// An area whose slice was hot in so many regions when it crashed; the data of the first ones cannot be read any more.
async fn crashed(doors: &MemoryDoors, regions: u64, unreadable: u64) -> (MemoryDoors, Rc<Area<MemoryDoors>>) {
    let disk = [piece("/disk", 64 * REGION)];
    let area = made(doors, &disk).await;
    let own = single(1, 0, 64 * REGION);
    area.prepare_slice(&own).await.unwrap();
    area.open_lease(slice(1), &lease(1), &own).await.unwrap();
    area.mark_open(slice(1), epoch(1)).await.unwrap();
    for region in 0..regions {
        write(&area, 1, region * REGION, 7, BLOCK_SIZE as usize).await;
    }
    area.flush().await.unwrap();
    let data = area.inner.pieces[0].data_at;
    drop(area);
    let doors = doors.restarted(doors.images());
    let area = open(&doors, &disk).await;
    doors.machine.unreadable.replace(Some(data..data + unreadable * REGION));
    (doors, area)
}

#[test]
fn h2_k2_regions_that_cannot_be_read_do_not_keep_the_others_hot() {
    with_files(&[("/disk", file_size_for(64 * REGION))], false, async |doors| {
        let (doors, area) = crashed(&doors, 12, 6).await;
        for round in 1..6 {
            area.cool_idle(Tick(doors.now().0 + round * 2 * IDLE.as_nanos() as u64)).await.unwrap();
        }
        assert_eq!(area.hot_count(slice(1)), 6);
        // As soon as they can be read, they cool, too.
        doors.machine.unreadable.replace(None);
        for round in 6..9 {
            area.cool_idle(Tick(doors.now().0 + round * 2 * IDLE.as_nanos() as u64)).await.unwrap();
        }
        assert_eq!(area.hot_count(slice(1)), 0);
    });
}

#[test]
fn h2_k2_regions_that_cannot_be_read_do_not_keep_the_others_hot_when_a_slice_is_closed() {
    with_files(&[("/disk", file_size_for(64 * REGION))], false, async |doors| {
        let (_doors, area) = crashed(&doors, 40, 33).await;
        for left in [40, 33, 33] {
            area.close_clean(slice(1), epoch(1)).await.unwrap();
            assert!(area.hot_count(slice(1)) <= left, "{} of {left}", area.hot_count(slice(1)));
        }
    });
}
