//! Legs that return, and legs that may differ after an unclean close.

use std::rc::Rc;
use std::time::Duration;

use sublet_api::view::PathState;
use sublet_doors::Doors;
use sublet_wire::Op;

use crate::testing::doors::MemDoors;
use crate::testing::world::{World, exercise, kind, read, write};
use crate::{VolumeErrorKind, VolumeOptions};

const SIZE: u64 = 3 << 20;

#[test]
fn s5_a_leg_that_returns_is_copied_under_writes_and_then_holds_everything() {
    for seed in 1..6 {
        MemDoors::run(seed, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            let mut model = vec![0; SIZE as usize];
            exercise(&doors, &volume, &mut model, 60).await;
            world.lenders[0].stop();
            exercise(&doors, &volume, &mut model, 60).await;
            let from = world.history.borrow().len();
            world.lenders[0].start();
            world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(3)));
            while world.event(from, "manager InSync").is_none() {
                let reads = world.lenders[0].reads();
                exercise(&doors, &volume, &mut model, 5).await;
                let done = world.event(from, "manager InSync").is_some();
                assert!(done || world.lenders[0].reads() == reads, "a stale leg is never read");
            }
            let target_flush = world.event(from, "server-a flush").unwrap();
            let target_label = world.event(target_flush, "server-a label").unwrap();
            let commit = world.event(from, "manager InSync").unwrap();
            assert!(target_flush < target_label && target_label < commit, "the order of S5");
            exercise(&doors, &volume, &mut model, 20).await;
            let survivor_label = world.event(commit, "server-b label").unwrap();
            assert!(survivor_label > commit);
            // Only the returned leg is left.
            world.lenders[1].stop();
            assert_eq!(read(&volume, 0, model.len()).await.unwrap(), model);
            exercise(&doors, &volume, &mut model, 20).await;
            assert_eq!(world.lenders[0].bytes(), model);
        });
    }
}

#[test]
fn a_target_that_fails_costs_only_the_resync() {
    MemDoors::run(7, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        world.lenders[0].stop();
        write(&volume, 0, &[1; 4096]).await.unwrap();
        for round in 0..3 {
            world.lenders[0].start();
            world.lenders[0].delay.set(Duration::from_millis(800));
            world.until(20, "it is being copied", || !volume.status().work.is_empty()).await;
            if round == 1 {
                world.lenders[0].io_errors.set(1);
            } else {
                world.lenders[0].stop();
            }
            write(&volume, 8192, &[round; 4096]).await.unwrap();
            volume.flush().await.unwrap();
            world.sleep(2.0).await;
            assert_eq!(world.manager.0.segments.borrow()[0].in_sync, [false, true]);
            world.lenders[0].stop();
        }
        world.lenders[0].start();
        world.lenders[0].delay.set(Duration::ZERO);
        world.until(20, "it returns", || world.manager.0.segments.borrow()[0].in_sync == [true, true]).await;
        world.until(5, "all is well", || volume.status().reason.is_empty()).await;
        world.assert_same(0, 1);
    });
}

#[test]
fn s5_a_commit_whose_answer_is_lost_is_found_out() {
    MemDoors::run(8, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        world.lenders[0].stop();
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[0].start();
        world
            .until(20, "the return is issued", || volume.status().work.is_empty() && world.event(0, "server-a flush").is_some())
            .await;
        // From here on every answer is lost for a while.
        world.manager.0.deaf.set(3);
        write(&volume, 4096, &[2; 4096]).await.unwrap();
        world.until(20, "it returns", || world.manager.0.segments.borrow()[0].in_sync == [true, true]).await;
        world.until(5, "all is well", || volume.status().reason.is_empty()).await;
        write(&volume, 8192, &[3; 4096]).await.unwrap();
        world.assert_same(0, 1);
    });
}

/// A pool whose last client crashed: the legs differ in a block that was in flight, the *open* flags are set.
pub(super) fn crashed(doors: &MemDoors, size: u64, copies: usize) -> World {
    let mut world = World::new(doors, &[size], copies);
    for (i, lender) in world.lenders.iter().enumerate() {
        let mut slices = lender.slices.borrow_mut();
        let slice = slices.values_mut().next().unwrap();
        slice.bytes[8192..12288].fill(10 + i as u8);
        slice.regions.written(8192, &[10 + i as u8; 4096]);
        slice.label.open_epoch = Some(0);
    }
    world.info.epoch.number = 1;
    world
}

#[test]
fn h3_a_copy_whose_answer_was_lost_is_durable_before_the_legs_count_as_equal() {
    for flushed_before in [false, true] {
        MemDoors::run(31, move |doors| async move {
            let world = crashed(&doors, SIZE, 2);
            // The copy is made, and the connection breaks before that is told.
            world.lenders[1].swallow.set(1);
            world.lenders[1].hang_op.set(flushed_before.then_some(Op::Verify));
            let volume = world.open().await;
            if flushed_before {
                volume.flush().await.unwrap();
                world.lenders[1].hang_op.set(None);
                world.lenders[1].cut();
            }
            assert_eq!(read(&volume, 8192, 4096).await.unwrap(), [10; 4096]);
            world.until(8, "the labels say so", || world.lenders.iter().all(|l| !l.label().unclean)).await;
            assert_eq!(world.lenders[1].swallow.get(), 0);
            volume.flush().await.unwrap();
            world.lenders[1].lose_power();
            world.lenders[1].start();
            world.sleep(1.0).await;
            world.assert_same(0, 1);
        });
    }
}

#[test]
fn h3_what_was_read_after_an_unclean_close_is_not_older_after_a_power_cut() {
    MemDoors::run(32, |doors| async move {
        let world = crashed(&doors, SIZE, 2);
        // The same bytes on both legs, and on neither of them durable.
        for lender in &world.lenders {
            let mut slices = lender.slices.borrow_mut();
            let slice = slices.values_mut().next().unwrap();
            slice.bytes[8192..12288].fill(7);
            slice.regions.written(8192, &[7; 4096]);
        }
        let volume = world.open().await;
        assert!(read(&volume, 8192, 4096).await.unwrap() == [7; 4096]);
        world.lenders.iter().for_each(|lender| lender.lose_power());
        world.lenders.iter().for_each(|lender| lender.start());
        assert!(read(&volume, 8192, 4096).await.unwrap() == [7; 4096]);
    });
}

#[test]
fn after_an_unclean_close_only_the_source_is_read_until_the_legs_are_equal() {
    MemDoors::run(9, |doors| async move {
        let world = crashed(&doors, SIZE, 3);
        world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(20)));
        let volume = world.open().await;
        assert!(volume.status().reason.contains("did not close cleanly"), "{}", volume.status().reason);
        for _ in 0..200 {
            assert_eq!(read(&volume, 8192, 4096).await.unwrap(), [10; 4096]);
        }
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.until(60, "the labels say so", || world.lenders.iter().all(|l| !l.label().unclean)).await;
        assert!(world.lenders[1..].iter().all(|l| l.bytes() == world.lenders[0].bytes()));
        world.until(5, "all is well", || volume.status().reason.is_empty()).await;
        let before = world.lenders[2].reads();
        for _ in 0..50 {
            let reads = (0..8).map(|_| read(&volume, 8192, 4096));
            assert!(futures_util::future::join_all(reads).await.iter().all(|r| *r == Ok(vec![10; 4096])));
        }
        assert!(world.lenders[2].reads() > before, "all are read from again");
        assert_eq!(world.event(0, "manager"), None);
    });
}

#[test]
fn h3_w5_a_client_started_again_with_the_same_epoch_makes_the_legs_equal_and_claims_no_exact_ranges_before() {
    MemDoors::run(9, |doors| async move {
        let world = crashed(&doors, SIZE, 3);
        for lender in &world.lenders {
            lender.slices.borrow_mut().values_mut().next().unwrap().label.open_epoch = Some(world.info.epoch.number);
            lender.delay.set(Duration::from_millis(20));
        }
        let volume = world.open().await;
        // A leg that leaves now lacks what the killed process wrote to the others.
        world.lenders[1].stop();
        write(&volume, 0, &[1; 4096]).await.unwrap();
        let lacks = |lender: usize| {
            let slices = world.lenders[lender].slices.borrow();
            slices.values().next().unwrap().regions.maps.get(&1).is_some_and(|map| map.bits.get(&0) == Some(&u64::MAX))
        };
        assert!(lacks(0) && lacks(2));
        for _ in 0..50 {
            assert_eq!(read(&volume, 8192, 4096).await.unwrap(), [10; 4096]);
        }
        world.lenders[1].start();
        world.until(60, "all is well", || volume.status().reason.is_empty()).await;
        world.until(60, "the labels say so", || world.lenders.iter().all(|l| !l.label().unclean)).await;
        world.assert_same(0, 1);
        world.assert_same(0, 2);
    });
}

#[test]
fn h3_a_source_that_is_lost_before_the_legs_are_equal_is_waited_for_if_the_other_one_has_crashed() {
    MemDoors::run(10, |doors| async move {
        let world = crashed(&doors, 4 * SIZE, 2);
        world.lenders[1].slices.borrow_mut().values_mut().next().unwrap().regions.lost = true;
        world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(500)));
        let volume = world.open().await;
        assert_eq!(read(&volume, 8192, 1).await.unwrap(), [10]);
        world.lenders[0].stop();
        let (reader, result) = (Rc::clone(&volume), Rc::new(std::cell::RefCell::new(None)));
        let slot = Rc::clone(&result);
        doors.spawn(async move {
            let bytes = read(&reader, 8192, 1).await;
            *slot.borrow_mut() = Some(bytes);
        });
        world.sleep(60.0).await;
        assert!(result.borrow().is_none(), "the other leg may lack what was acknowledged: never read");
        assert_eq!(world.event(0, "manager"), None, "nor is the source left out");
        world.lenders[0].start();
        world.lenders.iter().for_each(|l| l.delay.set(Duration::ZERO));
        world.until(3, "the read resumes", || result.borrow().is_some()).await;
        assert_eq!(*result.borrow(), Some(Ok(vec![10])));
        world.until(30, "the legs are equal", || world.lenders.iter().all(|l| !l.label().unclean)).await;
        world.assert_same(0, 1);
    });
}

#[test]
fn a_clean_close_needs_no_equalising_and_a_vanished_client_does() {
    MemDoors::run(11, |doors| async move {
        let mut world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        volume.close(false).await.unwrap();
        world.info.epoch.number = 2;
        let volume = world.open().await;
        assert_eq!(volume.status().reason, "");
        drop(volume);
        world.sleep(1.0).await;
        assert!(world.lenders.iter().all(|l| l.connections.get() == 0), "a dropped volume lets go of its lenders");
        world.info.epoch.number = 3;
        let volume = world.open().await;
        assert!(volume.status().reason.contains("did not close cleanly"));
    });
}

#[test]
fn lenders_that_come_and_go_at_random_never_cost_an_acknowledged_byte() {
    for seed in 20..40 {
        MemDoors::run(seed, move |doors| async move {
            let copies = 2 + seed as usize % 2;
            let world = World::new(&doors, &[256 << 10, 64 << 10], copies);
            world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(4)));
            let volume = world
                .open_with(VolumeOptions { idle_close: Some(Duration::from_secs(3)), ..VolumeOptions::default() })
                .await
                .unwrap();
            let mut model = vec![0; volume.size() as usize];
            let (lenders, manager, chaos) = (world.lenders.clone(), world.manager.clone(), doors.clone());
            let pause = move |doors: MemDoors, ms: u64| async move {
                let ms = doors.below(ms);
                sublet_doors::Clock::sleep(&doors, Duration::from_millis(ms)).await;
            };
            doors.spawn(async move {
                loop {
                    pause(chaos.clone(), 4000).await;
                    let which = chaos.below(lenders.len() as u64) as usize;
                    let lender = &lenders[which];
                    match chaos.below(7) {
                        // Whatever the others have: what a lender lost is written again, or copied (W5).
                        5 => {
                            lender.lose_power();
                            pause(chaos.clone(), 12000).await;
                            lender.start();
                        }
                        0 => lender.cut(),
                        1 => {
                            lender.stop();
                            pause(chaos.clone(), 12000).await;
                            lender.start();
                        }
                        2 => {
                            lender.hang.set(true);
                            pause(chaos.clone(), 15000).await;
                            lender.hang.set(false);
                            lender.cut();
                        }
                        3 => lender.swallow.set(2),
                        4 => {
                            manager.0.away.set(true);
                            pause(chaos.clone(), 9000).await;
                            manager.0.away.set(false);
                        }
                        _ => manager.0.deaf.set(1),
                    }
                }
            });
            for _ in 0..60 {
                exercise(&doors, &volume, &mut model, 10).await;
                if doors.below(3) == 0 {
                    world.sleep(doors.below(5000) as f64 / 1000.0).await;
                }
            }
            assert_eq!(read(&volume, 0, model.len()).await.unwrap(), model, "seed {seed}");
            for (segment, row) in world.manager.0.segments.borrow().iter().enumerate() {
                assert!(row.in_sync.contains(&true), "segment {segment} has a copy");
            }
        });
    }
}

#[test]
fn a_segment_without_any_copy_in_sync_is_refused() {
    MemDoors::run(12, |doors| async move {
        let mut world = World::new(&doors, &[SIZE], 2);
        world.info.segments[0].legs.iter_mut().for_each(|leg| leg.in_sync = false);
        assert_eq!(kind(world.open_with(VolumeOptions::default()).await.map(drop)), VolumeErrorKind::Protocol);
    });
}

#[test]
fn s5_an_idle_path_is_not_closed_while_a_copy_is_stale_so_that_it_gets_what_it_missed() {
    MemDoors::run(3, |doors| async move {
        let world = World::new(&doors, &[256 << 10], 2);
        let options = VolumeOptions { idle_close: Some(Duration::from_secs(2)), ..VolumeOptions::default() };
        let volume = world.open_with(options).await.unwrap();
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[1].stop();
        write(&volume, 4096, &[2; 4096]).await.unwrap();
        // Nobody uses the volume any more, and the lender comes back much later.
        world.sleep(60.0).await;
        world.lenders[1].start();
        world.until(60, "the copy that came back is in sync", || world.event(0, "manager InSync").is_some()).await;
        world.until(60, "the path is closed", || volume.status().path == PathState::Idle).await;
        world.assert_same(0, 1);
    });
}

#[test]
fn s5_a_return_that_the_manager_puts_off_is_asked_for_again_and_nothing_is_copied_twice() {
    MemDoors::run(4, |doors| async move {
        let world = World::new(&doors, &[256 << 10], 2);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[1].stop();
        write(&volume, 4096, &[2; 4096]).await.unwrap();
        world.manager.0.puts_off.set(3);
        let copied = world.lenders[1].seen.borrow().iter().filter(|seen| seen.op == Op::Write).count();
        world.lenders[1].start();
        world.until(60, "the copy that came back is in sync", || world.event(0, "manager InSync").is_some()).await;
        assert_eq!(world.manager.0.puts_off.get(), 0);
        let now = world.lenders[1].seen.borrow().iter().filter(|seen| seen.op == Op::Write).count();
        assert_eq!(now - copied, 1, "what it had missed, once");
        world.assert_same(0, 1);
    });
}
