//! Checksum pages that are lost: what the data is worth then (K1, K2).

use std::path::PathBuf;

use sublet_wire::message::{BlockState, MapWhich, SetState};

use super::hot::{checked, one, single, with_area};
use super::memory::MemoryDoors;
use super::*;

/// A slice of one or two legs with a cold region; then its checksum page is spoilt, a block of it rots, and the area is opened
/// again.
async fn spoilt(doors: &MemoryDoors, area: Rc<Area<MemoryDoors>>, own: &SliceFacts) -> (MemoryDoors, Rc<Area<MemoryDoors>>) {
    area.prepare_slice(own).await.unwrap();
    area.open_lease(slice(1), &lease(1), own).await.unwrap();
    write(&area, 1, 0, 7, 8192).await;
    area.cool(slice(1), &[0]).await.unwrap();
    area.flush().await.unwrap();
    let data = area.inner.pieces[0].data_at;
    drop(area);
    let mut images = doors.images();
    let image = images.get_mut(&PathBuf::from("/disk")).unwrap();
    image.write(sums_at() + 512, &[0x5A; 512]);
    image.write(data, &[0x66; 512]);
    let doors = doors.restarted(images);
    let area = open(&doors, &one()).await;
    (doors, area)
}

fn sums_at() -> u64 {
    crate::layout::Reserve::of(one()[0].length).sums(0)
}

async fn states<D: Doors>(area: &Area<D>) -> Vec<BlockState> {
    area.verify(slice(1), 0, 12288).await.unwrap().iter().map(|block| block.state).collect()
}

/// What the client is told of region 0: hot, and whether the lender may have lost something.
async fn told<D: Doors>(area: &Area<D>) -> (bool, bool) {
    let map = area.map(slice(1), MapWhich::All, 0, REGION).await.unwrap();
    (map.entries.first().is_some_and(|entry| entry.hot), map.lost)
}

#[test]
fn k1_a_checksum_page_that_the_disk_does_not_deliver_is_an_error_and_no_damage() {
    for own in [facts(1, 0, 2 * REGION), single(1, 0, 2 * REGION)] {
        with_area(false, async |doors, area| {
            area.prepare_slice(&own).await.unwrap();
            write(&area, 1, 0, 7, 8192).await;
            area.cool(slice(1), &[0]).await.unwrap();
            area.flush().await.unwrap();
            drop(area);
            let doors = doors.restarted(doors.images());
            let area = open(&doors, &one()).await;
            doors.machine.unreadable.replace(Some(sums_at()..sums_at() + 4096));
            let mut sums = [0; 4];
            let (result, _) = area.read(slice(1), 0, Buffer::new(4096), 0..4096, &mut sums).await;
            assert_eq!(result.unwrap_err().kind, crate::AreaErrorKind::Io);
            assert_eq!(area.verify(slice(1), 0, 4096).await.unwrap_err().kind, crate::AreaErrorKind::Io);
            doors.machine.unreadable.replace(None);
            assert_eq!(checked(&area, 1, 0, 4096).await, (vec![7; 4096], true, false), "the page is what it was");
            assert_eq!(told(&area).await, (false, false));
        });
    }
}

#[test]
fn k2_a_write_beside_an_unreadable_checksum_page_goes_on_where_other_legs_know_better() {
    for legs in [1, 2] {
        with_area(false, async |doors, area| {
            let own = if legs == 1 { single(1, 0, 2 * REGION) } else { facts(1, 0, 2 * REGION) };
            area.prepare_slice(&own).await.unwrap();
            write(&area, 1, 0, 7, 8192).await;
            area.cool(slice(1), &[0]).await.unwrap();
            area.flush().await.unwrap();
            drop(area);
            let doors = doors.restarted(doors.images());
            let area = open(&doors, &one()).await;
            doors.machine.unreadable.replace(Some(sums_at()..sums_at() + 4096));
            let written = put(&area, 1, 4096, vec![8; 4096]).await;
            doors.machine.unreadable.replace(None);
            if legs == 1 {
                assert_eq!(written.unwrap_err().kind, crate::AreaErrorKind::Io);
                assert_eq!(states(&area).await, [BlockState::Matches; 3]);
            } else {
                written.unwrap();
                area.cool(slice(1), &[0]).await.unwrap();
                assert_eq!(states(&area).await, [BlockState::Computed, BlockState::Matches, BlockState::Computed]);
                assert_eq!(told(&area).await, (true, true));
            }
        });
    }
}

#[test]
fn k2_rot_below_a_lost_checksum_page_is_never_kept_while_other_legs_exist() {
    for device in [false, true] {
        with_area(device, async |doors, area| {
            let (doors, area) = spoilt(&doors, area, &facts(1, 0, 2 * REGION)).await;
            let (_, fits, _) = checked(&area, 1, 0, 4096).await;
            assert!(!fits, "who reads is sent to the other leg, and what that one has is written here");
            assert_eq!(told(&area).await, (true, true), "as after a crash");
            // The order to cool does not make it kept, and neither does a write beside it.
            area.cool(slice(1), &[0]).await.unwrap();
            assert_eq!(states(&area).await, [BlockState::Computed; 3]);
            write(&area, 1, 4096, 8, 4096).await;
            area.flush().await.unwrap();
            area.cool(slice(1), &[0]).await.unwrap();
            assert_eq!(states(&area).await, [BlockState::Computed, BlockState::Matches, BlockState::Computed]);
            // Nor a crash, after which the checksums of hot regions are computed.
            drop(area);
            let doors = doors.restarted(doors.images());
            let area = open(&doors, &one()).await;
            area.cool(slice(1), &[0]).await.unwrap();
            assert_eq!(states(&area).await[0], BlockState::Computed);
            assert_eq!(told(&area).await, (true, true));
            // All of it was written again: a repair.
            for at in (0..REGION).step_by(MIB as usize) {
                write(&area, 1, at, 7, MIB as usize).await;
            }
            area.cool(slice(1), &[0]).await.unwrap();
            assert_eq!(states(&area).await, [BlockState::Matches; 3]);
            assert_eq!((area.hot_count(slice(1)), told(&area).await), (0, (false, false)));
            area.flush().await.unwrap();
            let area = open(&doors.restarted(doors.images()), &one()).await;
            assert_eq!((states(&area).await, told(&area).await), (vec![BlockState::Matches; 3], (false, false)));
        });
    }
}

#[test]
fn h3_legs_that_were_made_equal_are_believed_again_after_a_lost_checksum_page() {
    with_area(false, async |doors, area| {
        let own = facts(1, 0, 2 * REGION);
        let (doors, area) = spoilt(&doors, area, &own).await;
        assert!(!checked(&area, 1, 0, 4096).await.1);
        write(&area, 1, 4096, 8, 4096).await;
        let set = async |area: &Area<MemoryDoors>| {
            let state = SetState { generation: generation(1), in_sync: vec![true, true], equalised: true, stale: vec![] };
            area.set_state(slice(1), epoch(1), &state).await.unwrap();
            area.cool(slice(1), &[0]).await.unwrap();
        };
        set(&area).await;
        assert_eq!(states(&area).await[0], BlockState::Computed, "it was lost in this epoch: nobody was told when it began");
        drop(area);
        let area = open(&doors.restarted(doors.images()), &one()).await;
        set(&area).await;
        assert_eq!((states(&area).await, told(&area).await), (vec![BlockState::Matches; 3], (false, false)));
    });
}

#[test]
fn h3_a_block_that_a_power_cut_has_set_back_to_its_checkpoint_is_not_told_as_the_newest_one() {
    with_area(true, async |doors, area| {
        let own = facts(1, 0, 2 * REGION);
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        area.mark_open(slice(1), epoch(1)).await.unwrap();
        write(&area, 1, 0, 1, 12288).await;
        area.cool(slice(1), &[0]).await.unwrap();
        area.flush().await.unwrap();
        let data = area.inner.pieces[0].data_at;
        let old = doors.images()[&PathBuf::from("/disk")].read(data, 4096);
        // Hot again, and written; of that only the mark is not lost with the power.
        write(&area, 1, 0, 2, 4096).await;
        write(&area, 1, 8192, 3, 4096).await;
        drop(area);
        let mut images = doors.images();
        images.get_mut(&PathBuf::from("/disk")).unwrap().write(data, &old);
        let area = open_rebooted(&doors.restarted(images), &one()).await;
        area.open_lease(slice(1), &lease(2), &own).await.unwrap();
        assert!(area.mark_open(slice(1), epoch(2)).await.unwrap());
        assert_eq!(checked(&area, 1, 0, 4096).await.0, vec![1; 4096]);
        let proven = [BlockState::Proven, BlockState::Proven, BlockState::Computed];
        assert_eq!(states(&area).await, proven);
        assert_eq!(states(&area).await, proven, "also when it was looked at before");
        write(&area, 1, 4096, 4, 4096).await;
        assert_eq!(states(&area).await, [BlockState::Proven, BlockState::Matches, BlockState::Computed]);
        let state = SetState { generation: generation(1), in_sync: vec![true, true], equalised: true, stale: Vec::new() };
        area.set_state(slice(1), epoch(2), &state).await.unwrap();
        assert_eq!(states(&area).await, [BlockState::Matches, BlockState::Matches, BlockState::Computed]);
    });
}
