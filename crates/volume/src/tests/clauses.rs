//! Clauses of the contract that are easily lost: the end of a path (F4, F5), what waits for what (S1, S4, W2), and what is not
//! equal yet (H2, H3).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use sublet_doors::{Clock, Doors};
use sublet_types::BlockRange;
use sublet_wire::Op;

use super::lost::begin_write;
use super::resync::crashed;
use crate::testing::doors::MemDoors;
use crate::testing::lender::Lender;
use crate::testing::world::{World, kind, read, write};
use crate::{VolumeErrorKind, ZeroFlags};

const MIB: u64 = 1 << 20;

fn in_sync(world: &World) -> Vec<bool> {
    world.manager.0.segments.borrow()[0].in_sync.clone()
}

/// Marks regions of a lender as written by the client that crashed.
fn mark(lender: &Lender, regions: std::ops::Range<u64>) {
    let mut slices = lender.slices.borrow_mut();
    let slice = slices.values_mut().next().unwrap();
    regions.for_each(|region| slice.regions.written((region * 4 * MIB) as usize, &[0; 4096]));
}

fn count(lender: &Lender, op: Op) -> usize {
    lender.seen.borrow().iter().filter(|seen| seen.op == op).count()
}

#[test]
fn f5_a_close_that_one_leg_did_not_answer_is_not_told_as_a_clean_one() {
    for hangs in [false, true] {
        MemDoors::run(1, move |doors| async move {
            let world = World::new(&doors, &[MIB], 2);
            let volume = world.open().await;
            write(&volume, 0, &[1; 4096]).await.unwrap();
            world.lenders[1].hang_op.set(Some(Op::Close).filter(|_| hangs));
            assert_eq!(volume.close(false).await, Ok(!hangs));
            assert_eq!(world.lenders[1].label().open_epoch.is_some(), hangs);
        });
    }
}

#[test]
fn f5_s5_a_close_waits_for_the_labels_of_a_copy_that_has_just_returned() {
    for seed in 16..24 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[MIB], 2);
            let volume = world.open().await;
            world.lenders[1].stop();
            write(&volume, 0, &[1; 4096]).await.unwrap();
            assert_eq!(in_sync(&world), [true, false]);
            world.lenders[1].start();
            world.lenders[0].label_delay.set(Duration::from_secs(2));
            world.until(60, "the copy has returned", || in_sync(&world) == [true, true]).await;
            assert_eq!(volume.close(false).await, Ok(true));
            assert!(world.lenders.iter().all(|lender| lender.label().open_epoch.is_none()));
        });
    }
}

/// A copy that has returned is opened again as a member (W4), and that takes a moment.
#[test]
fn f5_s5_a_close_waits_for_the_session_of_a_copy_that_has_just_returned() {
    for seed in 24..32 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[MIB], 2);
            let volume = world.open().await;
            world.lenders[1].stop();
            write(&volume, 0, &[1; 4096]).await.unwrap();
            let asked = world.manager.0.asked.get();
            world.lenders[1].start();
            while world.manager.0.asked.get() < asked + 2 {
                world.sleep(0.001).await;
            }
            // The answer is lost: while the close goes on, nobody knows yet whether it has returned.
            world.manager.0.deaf.set(1);
            world.until(60, "the copy has returned", || in_sync(&world) == [true, true]).await;
            world.lenders[1].delay.set(Duration::from_secs(1));
            assert_eq!(volume.close(false).await, Ok(true));
            assert!(world.lenders.iter().all(|lender| lender.label().open_epoch.is_none()));
        });
    }
}

#[test]
fn f4_a_newer_epoch_that_a_lender_tells_before_its_session_is_used_stops_everything() {
    MemDoors::run(2, |doors| async move {
        let world = World::new(&doors, &[MIB, MIB], 1);
        let volume = world.open().await;
        // Connected again, it is asked for its marks; meanwhile it is fenced, and then it is gone.
        let (lender, clock) = (Rc::clone(&world.lenders[0]), doors.clone());
        let fenced = move || {
            lender.epoch.set(2);
            let (lender, own) = (Rc::clone(&lender), clock.clone());
            clock.spawn(async move {
                own.sleep(Duration::from_millis(5)).await;
                lender.stop();
            });
        };
        world.lenders[0].when.replace(Some((Op::Map, Box::new(fenced))));
        world.lenders[0].cut();
        world.sleep(2.0).await;
        assert_eq!(kind(read(&volume, MIB, 1).await), VolumeErrorKind::Fenced);
    });
}

#[test]
fn f4_a_fenced_client_proposes_nothing_more_to_the_manager() {
    MemDoors::run(3, |doors| async move {
        let world = World::new(&doors, &[MIB], 2);
        let volume = world.open().await;
        // It asks again and again for the leaving of a leg.
        world.manager.0.away.set(true);
        world.lenders[1].stop();
        let writing = begin_write(&doors, &volume, 0, 1);
        world.sleep(10.0).await;
        let asked = world.manager.0.asked.get();
        world.sleep(5.0).await;
        assert!(world.manager.0.asked.get() > asked && writing.borrow().is_none());
        world.lenders[0].epoch.set(2);
        assert_eq!(kind(read(&volume, 0, 1).await), VolumeErrorKind::Fenced);
        // A question that is on its way.
        world.sleep(0.1).await;
        let asked = world.manager.0.asked.get();
        world.manager.0.away.set(false);
        world.sleep(60.0).await;
        assert_eq!(world.manager.0.asked.get(), asked);
        assert_eq!(in_sync(&world), [true, true]);
    });
}

#[test]
fn s1_writes_pause_from_the_survivors_ping_until_its_label_is_written() {
    for seed in 4..9 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[MIB], 2);
            let volume = world.open().await;
            for writer in 0..4 {
                let (volume, clock) = (Rc::clone(&volume), doors.clone());
                doors.spawn(async move {
                    loop {
                        write(&volume, writer * 65536, &[writer as u8; 4096]).await.unwrap();
                        clock.sleep(Duration::from_micros(300)).await;
                    }
                });
            }
            world.sleep(0.1).await;
            world.manager.0.away.set(true);
            world.lenders[0].stop();
            world.sleep(8.0).await;
            let from = world.history.borrow().len();
            world.manager.0.away.set(false);
            world.until(20, "it has left", || world.event(from, "server-b label").is_some()).await;
            world.sleep(0.1).await;
            let ping = world.event(from, "server-b ping").unwrap();
            let commit = world.event(ping, "manager Stale").unwrap();
            let label = world.event(commit, "server-b label").unwrap();
            let history = world.history.borrow();
            assert!(!history[ping..label].iter().any(|event| event == "server-b write"), "{:#?}", &history[ping..label]);
            assert!(history[label..].iter().any(|event| event == "server-b write"), "and then they go on");
        });
    }
}

#[test]
fn s4_a_resync_starts_with_a_new_session_at_a_target_that_hung_and_stayed_connected() {
    MemDoors::run(10, |doors| async move {
        let world = World::new(&doors, &[MIB], 2);
        let volume = world.open().await;
        let lender = &world.lenders[1];
        write(&volume, 0, &[1; 4096]).await.unwrap();
        let last = |lender: &Lender| lender.seen.borrow().iter().map(|seen| seen.session).max().unwrap();
        lender.hang.set(true);
        lender.pongs.set(true);
        write(&volume, 0, &[2; 4096]).await.unwrap();
        assert_eq!(in_sync(&world), [true, false]);
        let (before, from) = (last(lender), lender.seen.borrow().len());
        lender.hang.set(false);
        world.until(30, "it returns", || in_sync(&world) == [true, true]).await;
        let seen = lender.seen.borrow();
        let changes = seen[from..].iter().filter(|seen| matches!(seen.op, Op::Write | Op::WriteZeroes | Op::Flush));
        assert!(changes.clone().count() > 0 && changes.clone().all(|seen| seen.session > before), "nothing in the old one");
        world.assert_same(0, 1);
    });
}

#[test]
fn s4_a_resync_that_the_crash_of_its_source_interrupts_goes_on_with_what_was_left() {
    MemDoors::run(11, |doors| async move {
        let world = World::new(&doors, &[160 * MIB], 2);
        let volume = world.open().await;
        world.lenders[0].stop();
        let chunk = sublet_doors::Chunk::from(vec![7; MIB as usize]);
        for at in 0..130 {
            volume.write(at * MIB, chunk.clone(), false).await.unwrap();
        }
        volume.flush().await.unwrap();
        // The marks of hot regions are lost with the source, so they have cooled.
        world.sleep(20.0).await;
        let map = || world.lenders[1].slices.borrow().values().next().unwrap().regions.missed(0);
        let all = map();
        world.lenders[0].start();
        world.lenders[0].delay.set(Duration::from_millis(20));
        world.until(60, "a part is copied and taken off the map", || map() < all).await;
        world.lenders[1].lose_power();
        world.sleep(1.0).await;
        assert_eq!(in_sync(&world), [false, true]);
        let written = || {
            let seen = world.lenders[0].seen.borrow();
            let writes = seen.iter().filter(|seen| matches!(seen.op, Op::Write | Op::WriteZeroes));
            writes.map(|seen| u64::from(seen.length)).sum::<u64>()
        };
        let before = written();
        world.lenders[1].start();
        world.lenders[0].delay.set(Duration::ZERO);
        world.until(60, "it returns", || in_sync(&world) == [true, true]).await;
        world.assert_same(0, 1);
        assert!(written() - before < 80 * MIB, "{} bytes were copied", written() - before);
    });
}

#[test]
fn w2_zeroes_at_the_end_of_a_volume_lock_what_they_write_behind_it_too() {
    MemDoors::run(12, |doors| async move {
        let mut world = World::new(&doors, &[MIB], 2);
        world.info.size = MIB - 3 * 4096;
        let volume = world.open().await;
        // As a resync of the last block holds it.
        let blocks = BlockRange { start: MIB / 4096 - 1, end: MIB / 4096 };
        let guard = volume.inner.shared.ranges.lock(blocks).await;
        let done = Rc::new(Cell::new(false));
        let (flag, own) = (Rc::clone(&done), Rc::clone(&volume));
        doors.spawn(async move {
            own.write_zeroes(0, own.size(), ZeroFlags::default()).await.unwrap();
            flag.set(true);
        });
        world.sleep(1.0).await;
        assert!(!done.get() && count(&world.lenders[0], Op::WriteZeroes) == 0);
        drop(guard);
        world.until(5, "they are written", || done.get()).await;
    });
}

#[test]
fn h3_legs_are_made_equal_also_while_resyncs_rest() {
    MemDoors::run(13, |doors| async move {
        let world = crashed(&doors, 8 * MIB, 2);
        let volume = world.open().await;
        volume.set_resync(0, true);
        world.until(60, "they are equal", || volume.status().reason.is_empty()).await;
        world.assert_same(0, 1);
    });
}

#[test]
fn h2_a_write_that_waits_for_unequal_regions_to_cool_flushes_nothing_meanwhile() {
    MemDoors::run(14, |doors| async move {
        let world = crashed(&doors, 20 * MIB, 2);
        world.lenders.iter().for_each(|lender| {
            mark(lender, 1..2);
            lender.hot_max.set(2);
        });
        world.lenders[1].hang_op.set(Some(Op::Verify));
        let volume = world.open().await;
        for region in 0..2 {
            write(&volume, region * 4 * MIB, &[1; 4096]).await.unwrap();
        }
        let writing = begin_write(&doors, &volume, 8 * MIB, 2);
        world.sleep(3.0).await;
        assert!(writing.borrow().is_none(), "no more than two regions are hot");
        assert!(count(&world.lenders[0], Op::Flush) < 3, "{} flushes", count(&world.lenders[0], Op::Flush));
        world.lenders[1].hang_op.set(None);
        world.lenders[1].cut();
        world.until(30, "it is written", || writing.borrow().is_some()).await;
        world.until(60, "all is well", || volume.status().reason.is_empty()).await;
        world.assert_same(0, 1);
    });
}

#[test]
fn h3_what_may_differ_is_told_as_data_whatever_one_leg_says() {
    MemDoors::run(15, |doors| async move {
        let world = crashed(&doors, 8 * MIB, 2);
        {
            // The source has zeroes there, the other leg has what is going to win.
            let mut slices = world.lenders[0].slices.borrow_mut();
            slices.values_mut().next().unwrap().bytes[8192..12288].fill(0);
        }
        world.lenders.iter().for_each(|lender| lender.delay.set(Duration::from_millis(300)));
        let volume = world.open().await;
        let extents = volume.extents(0, 8 * MIB).await.unwrap();
        let shape: Vec<(u64, bool)> = extents.iter().map(|extent| (extent.length, extent.data)).collect();
        assert_eq!(shape[0], (4 * MIB, true));
        assert!(shape[1..].iter().all(|(_, data)| !data));
        world.lenders.iter().for_each(|lender| lender.delay.set(Duration::ZERO));
        world.until(60, "all is well", || volume.status().reason.is_empty()).await;
        assert!(volume.extents(65536, 65536).await.unwrap().iter().all(|extent| !extent.data));
    });
}

/// H3, S1: a leg that may differ from the source and has lost nothing has every acknowledged write: it goes on without the source.
/// One that has crashed since does not, and waits for it.
#[test]
fn s1_h3_the_source_dies_before_the_legs_are_equal_and_one_that_has_lost_nothing_goes_on() {
    for (seed, crashed) in [(60, false), (61, true), (62, false)] {
        MemDoors::run(seed, move |doors| async move {
            let mut world = World::new(&doors, &[20 * MIB], 2);
            let volume = world.open().await;
            write(&volume, 0, &[7; 4096]).await.unwrap();
            volume.flush().await.unwrap();
            write(&volume, 5 * MIB, &[80; 4096]).await.unwrap();
            drop(volume);
            world.sleep(1.0).await;
            // A write that was under way reached the legs with different bytes behind it.
            let at = 5 * MIB as usize + 65536;
            for (leg, lender) in world.lenders.iter().enumerate() {
                let mut slices = lender.slices.borrow_mut();
                let slice = slices.values_mut().next().unwrap();
                slice.bytes[at..at + 4096].fill(90 + leg as u8);
                slice.regions.written(at, &[90 + leg as u8; 4096]);
            }
            if crashed {
                world.lenders[1].lose_power();
                world.lenders[1].start();
            }
            world.info.epoch.number = 2;
            world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(200)));
            let volume = world.open().await;
            assert!(!volume.status().reason.is_empty(), "they may differ");
            world.lenders[0].stop();
            let (user, done) = (Rc::clone(&volume), Rc::new(Cell::new(false)));
            let told = Rc::clone(&done);
            doors.spawn(async move {
                write(&user, 9 * MIB, &[81; 4096]).await.unwrap();
                assert_eq!(read(&user, 5 * MIB, 1).await.unwrap(), [80], "what was acknowledged is there");
                let seen = read(&user, 5 * MIB + 65536, 1).await.unwrap()[0];
                assert_eq!(seen, if crashed { 90 } else { 91 });
                told.set(true);
            });
            if crashed {
                world.sleep(60.0).await;
                assert!(!done.get(), "what it lost the source has");
            } else {
                world.until(30, "it goes on without the source", || done.get()).await;
            }
            world.lenders[0].start();
            let settled = || world.manager.0.segments.borrow()[0].in_sync == [true, true] && volume.status().reason.is_empty();
            world.until(90, "the copies are equal", settled).await;
            world.until(2, "the user goes on", || done.get()).await;
            world.assert_same(0, 1);
            assert_eq!(world.lenders[0].bytes()[at], if crashed { 90 } else { 91 });
        });
    }
}
