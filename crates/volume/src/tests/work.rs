//! Repairs, scrubs, rates, and legs in whose place there is another slice (K1, K2, S3).

use std::rc::Rc;
use std::time::Duration;

use sublet_api::work::{FindingKind, Work, WorkKind, WorkState};
use sublet_doors::{Clock, Rng};
use sublet_types::{SliceId, TaskId};

use super::resync::crashed;
use crate::VolumeErrorKind;
use crate::testing::doors::MemDoors;
use crate::testing::lender::{Label, Lender, Slice, rot};
use crate::testing::world::{TestVolume, World, kind, read, write};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 6 * MIB;

fn findings(volume: &TestVolume) -> Vec<(FindingKind, u64, u64)> {
    volume.status().findings.iter().map(|f| (f.kind, f.offset, f.length)).collect()
}

#[test]
fn k1_a_block_that_does_not_fit_its_checksum_is_repaired_from_the_other_leg_and_told() {
    MemDoors::run(1, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, MIB, &[5; 65536]).await.unwrap();
        volume.flush().await.unwrap();
        world.sleep(15.0).await;
        rot(&world.lenders[0], MIB as usize + 4096);
        rot(&world.lenders[0], MIB as usize + 8192);
        for _ in 0..4 {
            assert_eq!(read(&volume, MIB, 65536).await.unwrap(), [5; 65536]);
        }
        world.assert_same(0, 1);
        assert_eq!(findings(&volume), [(FindingKind::Repaired, MIB + 4096, 8192)]);
        let number = volume.status().findings[0].number;
        volume.findings_seen(number);
        assert!(findings(&volume).is_empty());
    });
}

#[test]
fn k1_a_repair_that_was_told_is_durable() {
    MemDoors::run(8, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[5; 4096]).await.unwrap();
        volume.flush().await.unwrap();
        rot(&world.lenders[0], 100);
        assert_eq!(read(&volume, 0, 4096).await.unwrap(), [5; 4096]);
        assert_eq!(findings(&volume), [(FindingKind::Repaired, 0, 4096)]);
        world.lenders[0].lose_power();
        world.assert_same(0, 1);
    });
}

#[test]
fn k1_a_leg_that_delivers_wrong_bytes_is_asked_again_however_busy_it_is() {
    for seed in 0..20 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            write(&volume, 0, &[5; 65536]).await.unwrap();
            rot(&world.lenders[0], 100);
            world.lenders.iter().for_each(|lender| lender.delay.set(Duration::from_millis(5)));
            let asked = || world.lenders[0].seen.borrow().iter().any(|s| s.op == sublet_wire::Op::Read && s.offset == 0);
            while !asked() {
                let reads = (0..12).map(|n| read(&volume, n * 4096, 4096));
                let all = futures_util::future::join_all(reads).await;
                assert!(all.iter().all(|bytes| bytes.as_ref() == Ok(&vec![5; 4096])));
            }
            assert_eq!(findings(&volume), [(FindingKind::Repaired, 0, 4096)]);
            world.assert_same(0, 1);
        });
    }
}

#[test]
fn k1_wrong_bytes_are_told_also_where_the_volume_is_mounted_read_only() {
    MemDoors::run(9, |doors| async move {
        let mut world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[5; 4096]).await.unwrap();
        volume.close(false).await.unwrap();
        rot(&world.lenders[0], 100);
        (world.info.read_only, world.info.epoch.number) = (true, 2);
        let volume = world.open().await;
        let writes = || world.lenders[0].seen.borrow().iter().filter(|s| s.op == sublet_wire::Op::Write).count();
        let before = writes();
        for _ in 0..3 {
            assert_eq!(read(&volume, 0, 4096).await.unwrap(), [5; 4096]);
        }
        assert_eq!(findings(&volume), [(FindingKind::Unrepairable, 0, 4096)], "told once");
        assert_eq!(writes(), before);
    });
}

#[test]
fn k1_a_block_that_nobody_has_is_an_io_error_that_names_the_place_and_is_told_once() {
    MemDoors::run(2, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let volume = world.open().await;
        write(&volume, MIB, &[5; 8192]).await.unwrap();
        rot(&world.lenders[0], MIB as usize + 4096);
        for _ in 0..3 {
            let error = read(&volume, MIB, 8192).await.unwrap_err();
            assert_eq!(error.kind, VolumeErrorKind::Io);
            assert!(error.text.contains("server-a") && error.text.contains("1048576"), "{}", error.text);
        }
        assert_eq!(read(&volume, MIB, 4096).await.unwrap(), [5; 4096]);
        assert_eq!(findings(&volume), [(FindingKind::Unrepairable, MIB + 4096, 4096)]);
        write(&volume, MIB + 4096, &[6; 4096]).await.unwrap();
        assert_eq!(read(&volume, MIB + 4096, 4096).await.unwrap(), [6; 4096], "a write makes it good");
    });
}

#[test]
fn k2_a_leg_whose_checksums_were_recomputed_never_wins_over_one_whose_checksums_were_kept() {
    for both_rotten in [false, true] {
        MemDoors::run(3, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            write(&volume, 0, &[5; 4096]).await.unwrap();
            // Its agent restarts: nothing is lost but the checksums of hot regions.
            world.lenders[1].stop();
            world.lenders[1].start();
            world.sleep(1.0).await;
            if both_rotten {
                rot(&world.lenders[1], 7);
            }
            rot(&world.lenders[0], 100);
            // Whichever leg is asked first.
            world.lenders[1].delay.set(Duration::from_millis(1));
            let bytes = read(&volume, 0, 4096).await;
            if both_rotten {
                assert_eq!(kind(bytes), VolumeErrorKind::Io);
            } else {
                assert_eq!(bytes.unwrap(), [5; 4096]);
                world.assert_same(0, 1);
            }
        });
    }
}

fn scrub(doors: &MemDoors, rate_max: u64) -> Work {
    Work { task: TaskId::from_u128(doors.random_u128()), kind: WorkKind::Scrub, rate_max, is_paused: false, done: 0 }
}

#[test]
fn k1_a_scrub_checks_every_leg_repairs_what_it_can_and_tells_everything() {
    MemDoors::run(4, |doors| async move {
        let world = World::new(&doors, &[SIZE, SIZE], 2);
        let volume = world.open().await;
        for at in 0..12 {
            write(&volume, at * MIB, &vec![at as u8 + 1; MIB as usize]).await.unwrap();
        }
        rot(&world.lenders[0], 5);
        rot(&world.lenders[1], MIB as usize);
        rot(&world.lenders[2], 3 * MIB as usize);
        rot(&world.lenders[3], 3 * MIB as usize);
        // Not rot: both are sure, and they differ.
        {
            let mut slices = world.lenders[1].slices.borrow_mut();
            let slice = slices.values_mut().next().unwrap();
            slice.bytes[8192..12288].fill(77);
            slice.regions.written(8192, &[77; 4096]);
        }
        let work = [scrub(&doors, 0)];
        volume.set_work(&work);
        let state = |volume: &TestVolume| volume.status().work.first().map(|work| (work.state, work.done, work.total));
        world.until(60, "the scrub is done", || state(&volume) == Some((WorkState::Done, 2 * SIZE, 2 * SIZE))).await;
        volume.set_work(&work);
        assert_eq!(volume.status().work.len(), 1, "told until it is not listed any more");
        let mut found = findings(&volume);
        found.sort_by_key(|(kind, offset, _)| (*offset, format!("{kind:?}")));
        assert_eq!(
            found,
            [
                (FindingKind::Repaired, 0, 4096),
                (FindingKind::Differed, 8192, 4096),
                (FindingKind::Repaired, MIB, 4096),
                (FindingKind::Unrepairable, 3 * MIB, 4096),
                (FindingKind::Unrepairable, 3 * MIB, 4096),
            ]
        );
        world.assert_same(0, 1);
        assert_eq!(read(&volume, 8192, 1).await.unwrap(), [1]);
        volume.set_work(&[]);
        assert!(volume.status().work.is_empty());
    });
}

#[test]
fn k1_a_sector_that_cannot_be_read_is_repaired_and_does_not_end_a_scrub() {
    MemDoors::run(10, |doors| async move {
        let world = World::new(&doors, &[SIZE, SIZE], 2);
        let volume = world.open().await;
        for at in 0..12 {
            write(&volume, at * MIB, &vec![at as u8 + 1; MIB as usize]).await.unwrap();
        }
        world.lenders[0].bad_sectors.borrow_mut().extend([4096, 8192, 3 * MIB]);
        // Nobody has this one.
        world.lenders[0].bad_sectors.borrow_mut().insert(2 * MIB);
        rot(&world.lenders[1], 2 * MIB as usize);
        let work = [scrub(&doors, 0)];
        volume.set_work(&work);
        let state = |volume: &TestVolume| volume.status().work.first().map(|work| (work.state, work.done));
        world.until(60, "the scrub is done", || state(&volume) == Some((WorkState::Done, 2 * SIZE))).await;
        let mut found = findings(&volume);
        found.sort_by_key(|(_, offset, _)| *offset);
        let nobody = (FindingKind::Unrepairable, 2 * MIB, 4096);
        assert_eq!(found, [(FindingKind::Repaired, 4096, 8192), nobody, nobody, (FindingKind::Repaired, 3 * MIB, 4096)]);
        assert_eq!(*world.lenders[0].bad_sectors.borrow(), std::collections::BTreeSet::from([2 * MIB]));
        assert_eq!(world.manager.0.segments.borrow()[0].in_sync, [true, true]);
        // One whose disk does not take them either leaves.
        world.lenders[0].bad_sectors.borrow_mut().insert(3 * MIB);
        world.lenders[0].io_errors.set(1);
        volume.set_work(&[scrub(&doors, 0)]);
        world.until(60, "it leaves", || world.manager.0.segments.borrow()[0].in_sync == [false, true]).await;
    });
}

#[test]
fn k1_a_sector_that_cannot_be_read_is_read_from_the_other_leg_repaired_and_told() {
    MemDoors::run(11, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[5; 65536]).await.unwrap();
        world.lenders[0].bad_sectors.borrow_mut().extend([4096, 12288]);
        for _ in 0..3 {
            assert_eq!(read(&volume, 0, 65536).await.unwrap(), [5; 65536]);
        }
        assert_eq!(findings(&volume), [(FindingKind::Repaired, 4096, 4096), (FindingKind::Repaired, 12288, 4096)]);
        assert!(world.lenders[0].bad_sectors.borrow().is_empty());
        for lender in &world.lenders {
            lender.bad_sectors.borrow_mut().insert(4096);
        }
        assert_eq!(kind(read(&volume, 0, 65536).await), VolumeErrorKind::Io);
        let lost = findings(&volume).into_iter().filter(|found| *found == (FindingKind::Unrepairable, 4096, 4096)).count();
        assert_eq!(lost, 2, "at both");
        write(&volume, 4096, &[6; 4096]).await.unwrap();
        assert_eq!(read(&volume, 4096, 4096).await.unwrap(), [6; 4096]);
    });
}

#[test]
fn k1_h3_a_sector_that_cannot_be_read_does_not_keep_the_legs_from_being_made_equal() {
    for bad in [0, 1] {
        MemDoors::run(12, move |doors| async move {
            let world = crashed(&doors, SIZE, 2);
            world.lenders[bad].bad_sectors.borrow_mut().extend([8192, 65536]);
            let volume = world.open().await;
            world.until(60, "all is well", || volume.status().reason.is_empty()).await;
            world.assert_same(0, 1);
            assert_eq!(read(&volume, 8192, 4096).await.unwrap(), [11 - bad as u8; 4096]);
            assert!(world.lenders[bad].bad_sectors.borrow().is_empty());
            assert_eq!(world.manager.0.segments.borrow()[0].in_sync, [true, true]);
        });
    }
}

#[test]
fn a_scrub_keeps_to_its_rate_can_be_paused_cancelled_and_begun_where_it_was() {
    MemDoors::run(5, |doors| async move {
        let world = World::new(&doors, &[3 * SIZE], 2);
        let volume = world.open().await;
        let mut work = [scrub(&doors, MIB)];
        work[0].done = 2 * MIB + 5;
        volume.set_work(&work);
        world.sleep(2.5).await;
        let done = |volume: &TestVolume| volume.status().work[0].done;
        assert!((4 * MIB..=5 * MIB).contains(&done(&volume)), "{}", done(&volume));
        work[0].is_paused = true;
        volume.set_work(&work);
        world.sleep(1.5).await;
        let rests = done(&volume);
        world.sleep(5.0).await;
        assert_eq!((done(&volume), volume.status().work[0].state), (rests, WorkState::Paused));
        let verified = || world.lenders[0].seen.borrow().iter().filter(|s| s.op == sublet_wire::Op::Verify).count();
        volume.set_work(&[]);
        let before = verified();
        world.sleep(5.0).await;
        assert_eq!(verified(), before, "it has ended");
        volume.close(false).await.unwrap();
    });
}

#[test]
fn a_resync_leaves_room_for_a_volume_that_is_in_use_and_can_be_made_to_rest() {
    MemDoors::run(6, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        world.lenders[0].stop();
        for at in 0..6 {
            write(&volume, at * MIB, &vec![9; MIB as usize]).await.unwrap();
        }
        volume.set_resync(MIB, false);
        let before = doors.now();
        world.lenders[0].start();
        world.until(20, "it has begun", || volume.status().work.iter().any(|w| w.done > 0)).await;
        volume.set_resync(MIB, true);
        world.sleep(20.0).await;
        assert_eq!(volume.status().work[0].state, WorkState::Paused);
        assert_eq!(world.manager.0.segments.borrow()[0].in_sync, [false, true]);
        volume.set_resync(MIB, false);
        world.until(20, "it returns", || world.manager.0.segments.borrow()[0].in_sync == [true, true]).await;
        assert!(doors.now().since(before) > Duration::from_millis(20_500));
        world.assert_same(0, 1);
    });
}

#[test]
fn the_rate_that_is_told_is_that_of_the_present_resync_and_never_above_its_limit() {
    MemDoors::run(6, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        volume.set_resync(MIB, false);
        for round in 1..3 {
            world.lenders[0].stop();
            for at in 0..6 {
                write(&volume, at * MIB, &vec![round; MIB as usize]).await.unwrap();
            }
            volume.flush().await.unwrap();
            world.lenders[0].start();
            world.until(20, "it has begun", || volume.status().work.iter().any(|w| w.done > 0)).await;
            let mut told = Vec::new();
            while let Some(work) = volume.status().work.first() {
                told.push(work.rate_bytes_per_s);
                world.sleep(0.25).await;
            }
            assert_eq!(told[..4], [0; 4], "nothing is known of its first second");
            assert!(told.iter().all(|rate| *rate <= MIB + MIB / 20), "{told:?}");
            assert!(*told.last().unwrap() > MIB / 2, "{told:?}");
            world.sleep(60.0).await;
        }
        // Who rests has no rate.
        world.lenders[0].stop();
        for at in 0..6 {
            write(&volume, at * MIB, &vec![9; MIB as usize]).await.unwrap();
        }
        world.lenders[0].start();
        let rate = || volume.status().work.first().map_or(0, |work| work.rate_bytes_per_s);
        world.until(20, "it has a rate", || rate() > 0).await;
        volume.set_resync(MIB, true);
        assert_eq!(rate(), 0);
    });
}

#[test]
fn s3_a_leg_in_whose_place_there_is_another_slice_is_copied_as_a_whole_while_the_volume_is_used() {
    MemDoors::run(7, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        for at in 0..6 {
            write(&volume, at * MIB, &vec![at as u8 + 1; MIB as usize]).await.unwrap();
        }
        world.lenders[0].stop();
        write(&volume, 0, &[50; 4096]).await.unwrap();
        // The survivor has a map of the lost leg: it says nothing of the new one.
        let fresh = Lender::new(&doors, 9, &world.history);
        let slice = SliceId::from_u128(doors.random_u128());
        let row = |f: &dyn Fn(&mut crate::testing::manager::SegmentRow)| f(&mut world.manager.0.segments.borrow_mut()[0]);
        row(&|row| row.slices[0] = slice);
        let generation = world.manager.0.segments.borrow()[0].generation;
        let label = Label { generation, in_sync: vec![false, true], unclean: false, open_epoch: None };
        fresh.slices.borrow_mut().insert(slice.to_u128(), Slice::new(label, SIZE as usize));
        let former = world.info.segments.clone();
        let mut segments = former.clone();
        let leg = &mut segments[0].legs[0];
        (leg.slice, leg.server, leg.addresses, leg.in_sync) = (slice, fresh.server, vec![fresh.address()], false);
        leg.server_name = fresh.name.parse().unwrap();
        volume.take_segments(&segments);
        volume.take_segments(&segments);
        write(&volume, MIB, &[51; 4096]).await.unwrap();
        world.until(60, "it comes in sync", || world.manager.0.segments.borrow()[0].in_sync == [true, true]).await;
        world.until(10, "all is well", || volume.status().reason.is_empty()).await;
        assert_eq!(fresh.bytes(), world.lenders[1].bytes());
        // An old answer, and the old lender, change nothing any more.
        world.lenders[0].start();
        volume.take_segments(&former);
        world.sleep(5.0).await;
        assert_eq!(world.lenders[0].connections.get(), 0);
        write(&volume, 2 * MIB, &[52; 4096]).await.unwrap();
        assert_eq!(fresh.bytes(), world.lenders[1].bytes());
        assert!(Rc::strong_count(&fresh) > 0);
    });
}

#[test]
fn f4_the_fence_of_a_slice_that_was_replaced_is_not_the_volumes() {
    MemDoors::run(8, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        // Its disk is slow: the connection breaks, and the next OPEN waits for the write (W4) until the leg has long left.
        world.lenders[0].late.set(1);
        world.lenders[0].late_by.set(std::time::Duration::from_secs(9));
        write(&volume, 0, &[50; 4096]).await.unwrap();
        world.until(20, "it has left", || world.manager.0.segments.borrow()[0].in_sync == [false, true]).await;
        let fresh = Lender::new(&doors, 9, &world.history);
        let slice = SliceId::from_u128(doors.random_u128());
        world.manager.0.segments.borrow_mut()[0].slices[0] = slice;
        let generation = world.manager.0.segments.borrow()[0].generation;
        let label = Label { generation, in_sync: vec![false, true], unclean: false, open_epoch: None };
        fresh.slices.borrow_mut().insert(slice.to_u128(), Slice::new(label, SIZE as usize));
        let mut segments = world.info.segments.clone();
        let leg = &mut segments[0].legs[0];
        (leg.slice, leg.server, leg.addresses, leg.in_sync) = (slice, fresh.server, vec![fresh.address()], false);
        leg.server_name = fresh.name.parse().unwrap();
        assert!(volume.take_segments(&segments));
        // The old slice is wiped: an OPEN that is under way there is told so.
        world.lenders[0].epoch.set(2);
        world.until(60, "the new copy is in sync", || world.manager.0.segments.borrow()[0].in_sync == [true, true]).await;
        world.sleep(20.0).await;
        write(&volume, 0, &[51; 4096]).await.unwrap();
        assert_eq!(fresh.bytes(), world.lenders[1].bytes());
    });
}
