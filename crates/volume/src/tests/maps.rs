//! What a leg has missed, and only that, is copied to it (S1, S3, S4, S5); regions that were hot (H2, H3).

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use sublet_doors::Doors;
use sublet_wire::Op;

use crate::ZeroFlags;
use crate::testing::doors::MemDoors;
use crate::testing::lender::Lender;
use crate::testing::world::{TestVolume, World, exercise, read, write};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 20 * MIB;

/// Bytes that were written to a lender since a point of its history.
fn bytes_written(lender: &Lender, from: usize) -> u64 {
    let seen = lender.seen.borrow();
    seen[from..].iter().filter(|s| matches!(s.op, Op::Write | Op::WriteZeroes)).map(|s| u64::from(s.length)).sum()
}

fn in_sync(world: &World) -> Vec<bool> {
    world.manager.0.segments.borrow()[0].in_sync.clone()
}

async fn filled(world: &World) -> TestVolume {
    let volume = world.open().await;
    for at in 0..SIZE / MIB {
        write(&volume, at * MIB, &vec![at as u8 + 1; MIB as usize]).await.unwrap();
    }
    volume.flush().await.unwrap();
    // Everything has cooled.
    world.sleep(15.0).await;
    volume
}

#[test]
fn s4_a_resync_copies_only_what_was_missed_also_what_was_in_flight_when_the_leg_left() {
    MemDoors::run(1, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = filled(&world).await;
        write(&volume, 0, &[100; 4096]).await.unwrap();
        world.lenders[0].hang.set(true);
        // One in flight at both: the survivor has it before it knows that the other one leaves.
        write(&volume, 9 * MIB, &[101; 4096]).await.unwrap();
        write(&volume, 17 * MIB, &[102; 4096]).await.unwrap();
        assert_eq!(in_sync(&world), [false, true]);
        world.lenders[0].lose_power();
        let from = world.lenders[0].seen.borrow().len();
        world.lenders[0].start();
        world.until(30, "it returns", || in_sync(&world) == [true, true]).await;
        world.until(5, "all is well", || volume.status().reason.is_empty()).await;
        world.assert_same(0, 1);
        let copied = bytes_written(&world.lenders[0], from);
        assert!(copied <= 3 * 65536 + 12 * MIB, "{copied}: the regions that it had lost, and three units");
        assert_eq!(world.lenders[1].slices.borrow().values().next().unwrap().regions.missed(0), 0, "the map is dropped");
    });
}

#[test]
fn s4_a_leg_that_was_away_and_lost_nothing_gets_only_the_units_that_were_written() {
    MemDoors::run(2, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = filled(&world).await;
        world.lenders[0].stop();
        for at in [1, 7, 19] {
            write(&volume, at * MIB + 5000, &[at as u8; 5000]).await.unwrap();
        }
        let from = world.lenders[0].seen.borrow().len();
        world.lenders[0].start();
        world.until(30, "it returns", || in_sync(&world) == [true, true]).await;
        world.assert_same(0, 1);
        assert_eq!(bytes_written(&world.lenders[0], from), 3 * 65536);
    });
}

/// What `server-a` missed while it was away: more than a batch of a resync.
const MISSED: u64 = 100 * MIB;

/// `server-a` is back, and is slowly being copied to.
async fn being_copied(doors: &MemDoors) -> (World, TestVolume) {
    let world = World::new(doors, &[MISSED + 10 * MIB], 2);
    let volume = world.open().await;
    world.lenders[0].stop();
    let chunk = sublet_doors::Chunk::from(vec![7; MIB as usize]);
    for at in 0..MISSED / MIB {
        volume.write(at * MIB, chunk.clone(), false).await.unwrap();
    }
    assert_eq!(missed(&world), MISSED);
    world.lenders[0].start();
    world.lenders[0].delay.set(Duration::from_millis(20));
    (world, volume)
}

/// What `server-b` knows that `server-a` lacks, in bytes.
fn missed(world: &World) -> u64 {
    world.lenders[1].slices.borrow().values().next().unwrap().regions.missed(0) * 65536
}

#[test]
fn s4_a_resync_that_is_interrupted_goes_on_where_it_was() {
    MemDoors::run(3, |doors| async move {
        let (world, volume) = being_copied(&doors).await;
        world.until(60, "a part is copied and taken off the map", || missed(&world) < MISSED).await;
        // Written after it was copied, and then lost with the power: it must be copied again.
        write(&volume, 0, &[9; 4096]).await.unwrap();
        world.lenders[0].lose_power();
        world.sleep(1.0).await;
        assert!(missed(&world) > 0 && missed(&world) <= MISSED - 62 * MIB);
        let from = world.lenders[0].seen.borrow().len();
        world.lenders[0].start();
        world.lenders[0].delay.set(Duration::ZERO);
        world.until(60, "it returns", || in_sync(&world) == [true, true]).await;
        world.assert_same(0, 1);
        let copied = bytes_written(&world.lenders[0], from);
        assert!(copied < MISSED - 50 * MIB, "{copied} bytes were copied again");
    });
}

#[test]
fn s4_a_resync_whose_client_crashes_copies_again_only_what_was_not_taken_off_the_map() {
    MemDoors::run(5, |doors| async move {
        let (mut world, volume) = being_copied(&doors).await;
        let written = |from| bytes_written(&world.lenders[0], from);
        world.until(60, "it is in the middle of a batch", || missed(&world) < MISSED && written(0) > 75 * MIB).await;
        // Killed: nothing is flushed, closed or told any more.
        drop(volume);
        world.sleep(1.0).await;
        let left = missed(&world);
        assert!(left > 0 && left < MISSED - 60 * MIB, "{left}: what was flushed is off the map");
        assert!(written(0) > MISSED - left, "there is more at the target, of which nobody knows whether it is durable");
        // The borrower mounts it again (F5): a new epoch, with what the table has of the copies.
        let generation = world.manager.0.segments.borrow()[0].generation;
        let facts = &mut world.info.segments[0];
        facts.generation = generation;
        (facts.legs[0].in_sync, facts.legs[0].stale_since) = (false, Some(generation));
        world.info.epoch.number = 2;
        let from = world.lenders[0].seen.borrow().len();
        world.lenders[0].delay.set(Duration::ZERO);
        let volume = world.open().await;
        world.until(60, "it returns", || in_sync(&world) == [true, true]).await;
        world.until(10, "all is well", || volume.status().reason.is_empty()).await;
        world.assert_same(0, 1);
        assert_eq!(bytes_written(&world.lenders[0], from), left);
    });
}

#[test]
fn s4_s5_a_resync_without_its_manager_goes_on_and_copies_nothing_twice() {
    MemDoors::run(6, |doors| async move {
        let (world, volume) = being_copied(&doors).await;
        world.until(60, "a part is copied and taken off the map", || missed(&world) < MISSED).await;
        let asked = world.manager.0.asked.get();
        world.manager.0.away.set(true);
        world.until(60, "all is copied", || volume.status().work.is_empty()).await;
        world.until(60, "the manager is asked", || world.manager.0.asked.get() > asked + 3).await;
        assert_eq!(in_sync(&world), [false, true]);
        write(&volume, MISSED + 5 * MIB, &[8; 65536]).await.unwrap();
        // It is there again, and dies once more before its first answer has arrived.
        world.manager.0.deaf.set(1);
        world.manager.0.away.set(false);
        world.until(60, "it returns", || in_sync(&world) == [true, true]).await;
        world.until(10, "all is well", || volume.status().reason.is_empty()).await;
        world.assert_same(0, 1);
        assert_eq!(bytes_written(&world.lenders[0], 0), MISSED + 65536, "each byte once, and the write");
    });
}

#[test]
fn s4_the_source_of_one_resync_is_the_target_of_the_next_one() {
    for seed in 4..8 {
        MemDoors::run(seed, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            let mut model = vec![0; SIZE as usize];
            for round in 0..6 {
                let leg = round % 2;
                exercise(&doors, &volume, &mut model, 20).await;
                let stays_up = doors.below(2) == 0;
                if stays_up {
                    world.lenders[leg].stop();
                } else {
                    world.lenders[leg].lose_power();
                }
                exercise(&doors, &volume, &mut model, 20).await;
                world.lenders[leg].start();
                world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(2)));
                exercise(&doors, &volume, &mut model, 20).await;
                world.until(60, "it returns", || in_sync(&world) == [true, true]).await;
                world.until(20, "all is well", || volume.status().reason.is_empty()).await;
                world.assert_same(0, 1);
            }
            assert!(read(&volume, 0, model.len()).await.unwrap() == model);
        });
    }
}

#[test]
fn s3_after_a_crash_of_the_survivor_its_hot_regions_count_as_missed() {
    MemDoors::run(8, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = filled(&world).await;
        world.lenders[0].stop();
        write(&volume, 5 * MIB, &[50; 4096]).await.unwrap();
        volume.flush().await.unwrap();
        write(&volume, 6 * MIB, &[51; 4096]).await.unwrap();
        // The survivor loses its bits; what it lost of the data is written again (W5).
        world.lenders[1].lose_power();
        world.lenders[1].start();
        write(&volume, 13 * MIB, &[52; 4096]).await.unwrap();
        world.lenders[0].start();
        world.until(30, "it returns", || in_sync(&world) == [true, true]).await;
        world.assert_same(0, 1);
        assert_eq!(world.lenders[0].bytes()[5 * MIB as usize], 50);
    });
}

#[test]
fn s5_a_leg_that_comes_in_sync_first_takes_over_the_maps_of_those_that_are_still_stale() {
    MemDoors::run(9, |doors| async move {
        let world = World::new(&doors, &[SIZE], 3);
        let volume = filled(&world).await;
        world.lenders[0].stop();
        write(&volume, MIB, &[60; 4096]).await.unwrap();
        world.lenders[1].stop();
        write(&volume, 9 * MIB, &[61; 4096]).await.unwrap();
        assert_eq!(in_sync(&world), [false, false, true]);
        world.lenders[1].start();
        world.until(30, "the second returns", || in_sync(&world) == [false, true, true]).await;
        world.until(5, "its label says so", || world.lenders[2].label().in_sync == [false, true, true]).await;
        write(&volume, 17 * MIB, &[62; 4096]).await.unwrap();
        volume.flush().await.unwrap();
        // The one that had the map is gone; the other one knows it all.
        world.lenders[2].stop();
        write(&volume, 18 * MIB, &[63; 4096]).await.unwrap();
        assert_eq!(in_sync(&world), [false, true, false]);
        let from = world.lenders[0].seen.borrow().len();
        world.lenders[0].start();
        world.until(30, "the first returns", || in_sync(&world) == [true, true, false]).await;
        world.assert_same(0, 1);
        let copied = bytes_written(&world.lenders[0], from);
        assert!(copied <= 4 * 65536, "{copied}: only what it had missed");
    });
}

#[test]
fn h2_regions_cool_when_they_are_idle_and_never_more_than_allowed_are_hot() {
    MemDoors::run(10, |doors| async move {
        let size = 64 * MIB;
        let world = World::new(&doors, &[size], 2);
        world.lenders[1].hot_max.set(4);
        world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(1)));
        let volume = world.open().await;
        let hot = |leg: usize| world.lenders[leg].slices.borrow().values().next().unwrap().regions.hot.len();
        for _ in 0..30 {
            let writes = (0..8).map(|_| {
                let at = doors.below(size / 4096) * 4096;
                let volume = Rc::clone(&volume);
                async move { write(&volume, at, &[7; 4096]).await.unwrap() }
            });
            join_all(writes).await;
            assert!(hot(0) <= 4 && hot(1) <= 4, "{} {}", hot(0), hot(1));
        }
        assert!(hot(0) > 0);
        world.sleep(20.0).await;
        assert_eq!((hot(0), hot(1)), (0, 0), "all has cooled, although nobody flushed");
        world.assert_same(0, 1);
    });
}

#[test]
fn s1_h3_a_leg_that_leaves_unequal_misses_every_hot_region() {
    MemDoors::run(11, |doors| async move {
        let mut world = World::new(&doors, &[SIZE], 2);
        let volume = filled(&world).await;
        // In flight at one leg only when the client dies.
        write(&volume, 9 * MIB, &[70; 4096]).await.unwrap();
        drop(volume);
        world.sleep(1.0).await;
        {
            let mut slices = world.lenders[0].slices.borrow_mut();
            let slice = slices.values_mut().next().unwrap();
            slice.bytes[9 * MIB as usize + 8192..][..4096].fill(71);
            slice.regions.written(9 * MIB as usize + 8192, &[71; 4096]);
        }
        world.lenders[0].stop();
        world.info.epoch.number = 2;
        let volume = world.open().await;
        write(&volume, 0, &[72; 4096]).await.unwrap();
        assert_eq!(in_sync(&world), [false, true]);
        assert_eq!(read(&volume, 9 * MIB + 8192, 1).await.unwrap(), [10]);
        volume.flush().await.unwrap();
        world.sleep(30.0).await;
        world.lenders[0].start();
        world.until(30, "it returns", || in_sync(&world) == [true, true]).await;
        world.assert_same(0, 1);
        assert_eq!(world.lenders[0].bytes()[9 * MIB as usize + 8192], 10);
    });
}

#[test]
fn h3_a_read_after_an_unclean_close_first_makes_the_legs_equal_durably() {
    for seed in 12..18 {
        MemDoors::run(seed, move |doors| async move {
            let mut world = World::new(&doors, &[SIZE], 2);
            let volume = filled(&world).await;
            write(&volume, 5 * MIB, &[80; 4096]).await.unwrap();
            drop(volume);
            world.sleep(1.0).await;
            for (leg, lender) in world.lenders.iter().enumerate() {
                let mut slices = lender.slices.borrow_mut();
                let slice = slices.values_mut().next().unwrap();
                let at = 5 * MIB as usize + 65536;
                slice.bytes[at..at + 4096].fill(90 + leg as u8);
                slice.regions.written(at, &[90 + leg as u8; 4096]);
            }
            // A lender that crashed has lost checksums and writes: it is no source.
            let crashed = (doors.below(3) as usize).checked_sub(1);
            if let Some(crashed) = crashed {
                world.lenders[crashed].lose_power();
                world.lenders[crashed].start();
            }
            world.info.epoch.number = 2;
            world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(30)));
            let volume = world.open().await;
            let source = if crashed == Some(0) { 1 } else { 0 };
            let byte = read(&volume, 5 * MIB + 65536, 1).await.unwrap()[0];
            assert_eq!(byte, 90 + source, "crashed: {crashed:?}");
            let at = 5 * MIB as usize + 65536;
            for lender in &world.lenders {
                assert_eq!(lender.slices.borrow().values().next().unwrap().durable[at], byte, "at all legs, durably");
            }
            assert_eq!(read(&volume, 5 * MIB, 1).await.unwrap(), [80], "what was acknowledged is there");
            world.until(60, "the labels say so", || world.lenders.iter().all(|l| !l.label().unclean)).await;
            world.assert_same(0, 1);
            let read_bytes: u64 = world.lenders[source as usize]
                .seen
                .borrow()
                .iter()
                .filter(|s| s.op == Op::Read)
                .map(|s| u64::from(s.length))
                .sum();
            assert!(read_bytes < 5 * MIB, "only what differs travels, not {read_bytes}");
        });
    }
}

#[test]
fn h3_a_partial_write_into_an_unequal_region_makes_its_edges_equal_first() {
    MemDoors::run(20, |doors| async move {
        let mut world = World::new(&doors, &[SIZE], 2);
        let volume = filled(&world).await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        drop(volume);
        world.sleep(1.0).await;
        {
            let mut slices = world.lenders[1].slices.borrow_mut();
            let slice = slices.values_mut().next().unwrap();
            slice.bytes[..8192].fill(2);
            slice.regions.written(0, &[2; 8192]);
        }
        world.info.epoch.number = 2;
        let volume = world.open().await;
        write(&volume, 100, &[3; 5000]).await.unwrap();
        volume.write_zeroes(5, 10, ZeroFlags::default()).await.unwrap();
        world.assert_same(0, 1);
    });
}

#[test]
fn h3_a_crashed_lender_is_not_the_source_while_one_that_may_have_more_is_away() {
    MemDoors::run(21, |doors| async move {
        let mut world = World::new(&doors, &[SIZE], 2);
        let volume = filled(&world).await;
        write(&volume, 5 * MIB, &[80; 4096]).await.unwrap();
        drop(volume);
        world.sleep(1.0).await;
        world.lenders[0].lose_power();
        world.lenders[0].start();
        // The network, not the lender.
        doors.set_blackhole(world.lenders[1].port, true);
        world.info.epoch.number = 2;
        let volume = world.open().await;
        let (reader, result) = (Rc::clone(&volume), Rc::new(std::cell::RefCell::new(None)));
        let slot = Rc::clone(&result);
        doors.spawn(async move {
            let bytes = read(&reader, 5 * MIB, 1).await;
            *slot.borrow_mut() = Some(bytes);
        });
        world.sleep(60.0).await;
        assert!(result.borrow().is_none(), "what it lost the other one has");
        assert_eq!(in_sync(&world), [true, true]);
        doors.set_blackhole(world.lenders[1].port, false);
        world.until(10, "it is read", || *result.borrow() == Some(Ok(vec![80]))).await;
        world.until(60, "the labels say so", || world.lenders.iter().all(|l| !l.label().unclean)).await;
        world.assert_same(0, 1);
    });
}

#[test]
fn h3_w5_lenders_that_were_given_what_they_had_lost_have_lost_nothing_since() {
    MemDoors::run(24, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = filled(&world).await;
        write(&volume, 5 * MIB, &[1; 4096]).await.unwrap();
        for lender in &world.lenders {
            lender.lose_power();
            lender.start();
        }
        world.until(5, "they tell so", || world.lenders.iter().all(|lender| lender.has_lost())).await;
        assert_eq!(read(&volume, 5 * MIB, 1).await, Ok(vec![1]));
        world.until(5, "they have it again", || world.lenders.iter().all(|lender| !lender.has_lost())).await;
        write(&volume, 5 * MIB, &[2; 4096]).await.unwrap();
    });
}

#[test]
fn h3_nothing_is_read_before_every_in_sync_leg_was_asked_or_has_left() {
    for comes_back in [false, true] {
        MemDoors::run(22, move |doors| async move {
            let mut world = World::new(&doors, &[SIZE], 2);
            // An earlier client reached only the first leg, wrote there, and died.
            {
                let mut slices = world.lenders[0].slices.borrow_mut();
                let slice = slices.values_mut().next().unwrap();
                slice.bytes[..4096].fill(9);
                slice.regions.written(0, &[9; 4096]);
                slice.label.open_epoch = Some(1);
            }
            world.info.epoch.number = 2;
            world.manager.0.away.set(true);
            world.sleep(0.01).await;
            doors.set_blackhole(world.lenders[0].port, true);
            let volume = world.open().await;
            let (reader, result) = (Rc::clone(&volume), Rc::new(std::cell::RefCell::new(None)));
            let slot = Rc::clone(&result);
            doors.spawn(async move {
                let bytes = read(&reader, 0, 1).await;
                *slot.borrow_mut() = Some(bytes.unwrap()[0]);
            });
            world.sleep(30.0).await;
            assert_eq!(*result.borrow(), None, "the missing leg may hold something newer");
            if comes_back {
                doors.set_blackhole(world.lenders[0].port, false);
            } else {
                world.manager.0.away.set(false);
            }
            world.until(10, "it is read", || result.borrow().is_some()).await;
            let seen = result.borrow().unwrap();
            world.manager.0.away.set(false);
            doors.set_blackhole(world.lenders[0].port, false);
            world.until(60, "all is well", || in_sync(&world) == [true, true] && volume.status().reason.is_empty()).await;
            world.assert_same(0, 1);
            assert_eq!(world.lenders[1].bytes()[0], seen, "what was read once stays");
        });
    }
}

#[test]
fn s3_s4_what_a_leg_missed_in_an_earlier_mount_is_all_that_is_copied_in_the_next_one() {
    // Whether or not it is known since when it is stale.
    for known in [true, false] {
        MemDoors::run(23, move |doors| async move {
            let mut world = World::new(&doors, &[SIZE], 2);
            let volume = filled(&world).await;
            world.lenders[0].stop();
            for at in [1, 7] {
                write(&volume, at * MIB, &[90; 4096]).await.unwrap();
            }
            volume.close(false).await.unwrap();
            let generation = world.manager.0.segments.borrow()[0].generation;
            let facts = &mut world.info.segments[0];
            facts.generation = generation;
            (facts.legs[0].in_sync, facts.legs[0].stale_since) = (false, known.then_some(generation));
            world.info.epoch.number = 2;
            let from = world.lenders[0].seen.borrow().len();
            world.lenders[0].start();
            let volume = world.open().await;
            write(&volume, 13 * MIB, &[91; 4096]).await.unwrap();
            world.until(60, "it returns", || in_sync(&world) == [true, true]).await;
            world.until(10, "all is well", || volume.status().reason.is_empty()).await;
            world.assert_same(0, 1);
            let copied = bytes_written(&world.lenders[0], from);
            if known {
                assert!(copied <= 3 * 65536 + 4096, "{copied}");
            } else {
                assert!(copied >= SIZE, "{copied}: all of it");
            }
        });
    }
}

#[test]
fn l2_a_leg_whose_label_disagreed_before_it_left_is_copied_as_a_whole() {
    MemDoors::run(24, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = filled(&world).await;
        // It comes back as it was at an earlier time: its label does not fit any more.
        world.lenders[0].stop();
        world.sleep(0.1).await;
        {
            let mut slices = world.lenders[0].slices.borrow_mut();
            let slice = slices.values_mut().next().unwrap();
            slice.bytes[5 * MIB as usize..6 * MIB as usize].fill(0);
            slice.label.in_sync[0] = false;
        }
        let from = world.lenders[0].seen.borrow().len();
        world.lenders[0].start();
        write(&volume, 0, &[33; 4096]).await.unwrap();
        world.until(60, "it returns", || in_sync(&world) == [true, true]).await;
        world.until(10, "all is well", || volume.status().reason.is_empty()).await;
        world.assert_same(0, 1);
        assert!(bytes_written(&world.lenders[0], from) >= SIZE);
    });
}
