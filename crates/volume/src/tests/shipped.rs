//! Bugs that other network block stores have shipped (docs/contract.md lists them), as they would show here.

use std::time::Duration;

use futures_util::future::join;
use sublet_doors::Chunk;
use sublet_wire::Op;

use super::resync::crashed;
use crate::ZeroFlags;
use crate::testing::doors::MemDoors;
use crate::testing::world::{World, read, write};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 5 * MIB;

fn in_sync(world: &World) -> Vec<bool> {
    world.manager.0.segments.borrow()[0].in_sync.clone()
}

/// W1, S5. Shipped: a flush overtook a write during live repair, and the write was lost with the next crash.
#[test]
fn w1_s5_a_flush_during_a_resync_overtakes_no_write() {
    for seed in 0..3 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            world.lenders[0].stop();
            for at in 0..SIZE / MIB {
                write(&volume, at * MIB, &vec![1; MIB as usize]).await.unwrap();
            }
            world.lenders[0].start();
            world.lenders.iter().for_each(|lender| lender.delay.set(Duration::from_millis(10)));
            let mut model = vec![1; SIZE as usize];
            let mut after_return = 0;
            for round in 0..400u64 {
                let at = doors.below(SIZE / 4096) * 4096;
                write(&volume, at, &[round as u8; 4096]).await.unwrap();
                model[at as usize..at as usize + 4096].fill(round as u8);
                volume.flush().await.unwrap();
                for (leg, lender) in world.lenders.iter().enumerate().filter(|(leg, _)| in_sync(&world)[*leg]) {
                    let durable = lender.slices.borrow().values().next().unwrap().durable.clone();
                    assert!(durable == model, "round {round}: leg {leg} is in sync and lacks something that was flushed");
                }
                after_return += usize::from(in_sync(&world) == [true, true]);
                if after_return > 3 {
                    return;
                }
            }
            panic!("it never returned");
        });
    }
}

/// W2. Shipped: a small write overtook a large one that was begun before it, and was overwritten by it.
#[test]
fn w2_a_small_write_never_overtakes_a_large_one_that_was_begun_before() {
    MemDoors::run(1, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        world.lenders.iter().for_each(|lender| lender.delay.set(Duration::from_millis(20)));
        let volume = world.open().await;
        for round in 0..20u8 {
            let at = doors.below(MIB / 4096 - 1) * 4096 + doors.below(2) * 100;
            let (large, small) = (vec![round; MIB as usize], [round ^ 0x80; 4096]);
            let (first, second) = join(write(&volume, 0, &large), write(&volume, at, &small)).await;
            first.and(second).unwrap();
            assert_eq!(read(&volume, at, 4096).await.unwrap(), small, "round {round}");
            world.assert_same(0, 1);
        }
    });
}

/// W2, W6. Shipped: an unmap was answered before the write in flight had ended, which landed after it.
#[test]
fn w2_w6_a_discard_waits_for_the_write_in_flight_that_it_overlaps() {
    MemDoors::run(2, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        world.lenders.iter().for_each(|lender| lender.delay.set(Duration::from_millis(20)));
        let volume = world.open().await;
        for round in 1..20u64 {
            let at = doors.below(60) * 4096;
            let (first, second) =
                join(write(&volume, at, &vec![round as u8; 65536]), volume.write_zeroes(at + 4096, 8192, ZeroFlags::default()))
                    .await;
            first.and(second).unwrap();
            assert_eq!(read(&volume, at + 4096, 8192).await.unwrap(), [0; 8192], "round {round}");
            world.assert_same(0, 1);
        }
    });
}

/// W5. Shipped: after a power cut an early write was replayed over a later one.
#[test]
fn w5_a_power_cut_brings_no_early_write_back_over_a_later_one() {
    for copies in [1, 2] {
        MemDoors::run(3, move |doors| async move {
            let world = World::new(&doors, &[SIZE], copies);
            let volume = world.open().await;
            write(&volume, 0, &[1; 8192]).await.unwrap();
            volume.flush().await.unwrap();
            for round in 2..8u8 {
                write(&volume, 0, &[round; 8192]).await.unwrap();
                // The second block is durable at once: what is written again must not come over it.
                volume.write(4096, Chunk::from(vec![round | 0x40; 4096]), true).await.unwrap();
                write(&volume, 0, &[round | 0x80; 4096]).await.unwrap();
                world.lenders.iter().for_each(|lender| lender.lose_power());
                world.sleep(1.0).await;
                world.lenders.iter().for_each(|lender| lender.start());
                let expected = [[round | 0x80; 4096], [round | 0x40; 4096]].concat();
                assert_eq!(read(&volume, 0, 8192).await.unwrap(), expected, "round {round}");
            }
        });
    }
}

/// W5, S5. Shipped: after all servers had been restarted one after the other, every request failed.
#[test]
fn w5_s5_a_volume_outlives_rolling_reboots_of_all_its_lenders() {
    for copies in [1, 2, 3] {
        MemDoors::run(4, move |doors| async move {
            let world = World::new(&doors, &[SIZE, SIZE], copies);
            let volume = world.open().await;
            let mut written = 0u8;
            for _ in 0..3 {
                for lender in &world.lenders {
                    written += 1;
                    write(&volume, SIZE - 4096, &[written; 8192]).await.unwrap();
                    lender.lose_power();
                    world.sleep(20.0).await;
                    lender.start();
                    world.until(60, "all is well again", || volume.status().reason.is_empty()).await;
                    assert_eq!(read(&volume, SIZE - 4096, 8192).await.unwrap(), [written; 8192]);
                    write(&volume, 0, &[written; 4096]).await.unwrap();
                    volume.flush().await.unwrap();
                }
            }
            for leg in 1..copies {
                world.assert_same(0, leg);
            }
        });
    }
}

/// H3, S5. Shipped, by several: "healthy" was shown while the copies differed.
#[test]
fn h3_s5_nothing_is_said_to_be_well_while_the_copies_may_differ() {
    MemDoors::run(5, |doors| async move {
        let world = crashed(&doors, SIZE, 2);
        world.lenders.iter().for_each(|lender| lender.delay.set(Duration::from_millis(20)));
        let volume = world.open().await;
        for _ in 0..2 {
            assert!(!volume.status().reason.is_empty(), "the copies differ");
            for _ in 0..60_000 {
                if volume.status().reason.is_empty() {
                    break;
                }
                world.sleep(0.001).await;
            }
            assert!(volume.status().reason.is_empty(), "{}", volume.status().reason);
            assert_eq!(in_sync(&world), [true, true]);
            world.assert_same(0, 1);
            // And the same for a copy that was away.
            world.lenders[1].stop();
            write(&volume, 0, &[7; 4096]).await.unwrap();
            world.lenders[1].start();
        }
    });
}

/// H3. Not shipped but often asked for: who crashed without having written anything costs nobody a copy.
#[test]
fn h3_a_client_that_vanishes_without_a_write_leaves_nothing_to_be_copied() {
    MemDoors::run(6, |doors| async move {
        let mut world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        volume.close(false).await.unwrap();
        world.info.epoch.number = 2;
        let volume = world.open().await;
        assert_eq!(read(&volume, 0, 4096).await.unwrap(), [1; 4096]);
        drop(volume);
        world.sleep(1.0).await;
        let from: Vec<usize> = world.lenders.iter().map(|lender| lender.seen.borrow().len()).collect();
        world.info.epoch.number = 3;
        let volume = world.open().await;
        world.until(30, "all is well", || volume.status().reason.is_empty()).await;
        for (lender, from) in world.lenders.iter().zip(from) {
            let seen = lender.seen.borrow();
            assert!(!seen[from..].iter().any(|s| matches!(s.op, Op::Write | Op::WriteZeroes)));
        }
    });
}

/// H3: of three legs one is away when the volume is opened after a crash; the two others hold nothing that may differ, it does.
#[test]
fn h3_a_leg_that_comes_late_with_marks_of_its_own_is_made_equal_before_it_is_read() {
    MemDoors::run(7, |doors| async move {
        let world = World::new(&doors, &[SIZE], 3);
        for (leg, lender) in world.lenders.iter().enumerate() {
            let mut slices = lender.slices.borrow_mut();
            let slice = slices.values_mut().next().unwrap();
            slice.label.open_epoch = Some(0);
            if leg == 0 {
                // The last write of the earlier client reached this one only.
                slice.bytes[8192..12288].fill(10);
                slice.regions.written(8192, &[10; 4096]);
            }
        }
        world.lenders[0].stop();
        // Back after the time that opening waits for it, and before it would leave.
        let late = std::rc::Rc::clone(&world.lenders[0]);
        let clock = doors.clone();
        sublet_doors::Doors::spawn(&doors, async move {
            sublet_doors::Clock::sleep(&clock, sublet_types::limits::RECONNECT_GRACE + Duration::from_millis(400)).await;
            late.start();
        });
        let volume = world.open().await;
        let seen = read(&volume, 8192, 4096).await.unwrap();
        world.until(60, "all is well", || volume.status().reason.is_empty()).await;
        for _ in 0..30 {
            let reads = futures_util::future::join_all((0..6).map(|_| read(&volume, 8192, 4096))).await;
            assert!(reads.iter().all(|bytes| bytes.as_ref() == Ok(&seen)), "what was read once is read again");
        }
        world.assert_same(1, 2);
        if in_sync(&world)[0] {
            world.assert_same(0, 1);
        }
    });
}
