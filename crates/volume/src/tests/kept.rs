//! W5: writes that lenders have lost are written again, or the volume fails loudly.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use sublet_api::view::PathState;
use sublet_doors::{Chunk, Clock, Doors};
use sublet_wire::Op;

use crate::testing::doors::MemDoors;
use crate::testing::world::{World, exercise, kind, read, write};
use crate::{VolumeErrorKind, VolumeOptions, ZeroFlags};

const SIZE: u64 = 128 * 1024;

#[test]
fn w5_a_single_lender_that_lost_unflushed_writes_gets_them_again_in_order() {
    MemDoors::run(8, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        volume.flush().await.unwrap();
        write(&volume, 4096, &[2; 8192]).await.unwrap();
        write(&volume, 8192, &[3; 8192]).await.unwrap();
        volume.write_zeroes(0, 2048, ZeroFlags::default()).await.unwrap();
        let expected = world.lenders[0].bytes();
        world.lenders[0].lose_power();
        assert_ne!(world.lenders[0].bytes(), expected);
        world.lenders[0].start();
        assert_eq!(read(&volume, 0, SIZE as usize).await.unwrap(), expected);
        assert_eq!(world.lenders[0].bytes(), expected);
        // Again, before any flush; and once more while it is being written again.
        for round in 0..2 {
            world.lenders[0].lose_power();
            world.lenders[0].start();
            if round == 1 {
                world.lenders[0].delay.set(Duration::from_millis(50));
                world.sleep(0.1).await;
                world.lenders[0].lose_power();
                world.lenders[0].start();
            }
            assert_eq!(read(&volume, 0, SIZE as usize).await.unwrap(), expected);
        }
        volume.flush().await.unwrap();
        world.lenders[0].lose_power();
        assert_eq!(world.lenders[0].bytes(), expected);
    });
}

#[test]
fn w5_nothing_is_read_from_a_lender_that_has_not_got_its_lost_writes_yet() {
    for seed in 0..10 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[SIZE], 1);
            let volume = world.open().await;
            let mut model = vec![0; SIZE as usize];
            exercise(&doors, &volume, &mut model, 40).await;
            for _ in 0..5 {
                world.lenders[0].lose_power();
                world.lenders[0].start();
                world.lenders[0].delay.set(Duration::from_millis(20));
                let reads = (0..8).map(|_| read(&volume, 0, model.len()));
                assert!(join_all(reads).await.iter().all(|bytes| bytes.as_ref() == Ok(&model)));
                exercise(&doors, &volume, &mut model, 20).await;
            }
        });
    }
}

#[test]
fn w5_both_lenders_of_a_doubled_volume_that_restart_get_the_lost_writes_again() {
    for seed in 0..10 {
        MemDoors::run(seed, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            let mut model = vec![0; SIZE as usize];
            exercise(&doors, &volume, &mut model, 30).await;
            let writing = {
                let volume = Rc::clone(&volume);
                let done = Rc::new(Cell::new(false));
                let told = Rc::clone(&done);
                world.lenders.iter().for_each(|l| l.hang.set(true));
                doors.spawn(async move {
                    write(&volume, 4096, &[77; 4096]).await.unwrap();
                    told.set(true);
                });
                done
            };
            world.sleep(0.05).await;
            model[4096..8192].fill(77);
            world.lenders.iter().for_each(|l| l.lose_power());
            world.lenders[0].start();
            world.sleep(doors.below(3000) as f64 / 1000.0).await;
            world.lenders[1].start();
            world.until(5, "the write in flight is acknowledged", || writing.get()).await;
            world.assert_same(0, 1);
            assert!(read(&volume, 0, model.len()).await.unwrap() == model);
            assert_eq!(world.event(0, "manager"), None, "no leg had to leave");
            exercise(&doors, &volume, &mut model, 30).await;
            volume.flush().await.unwrap();
            world.lenders.iter().for_each(|l| l.lose_power());
            assert!(world.lenders.iter().all(|l| l.bytes() == model));
        });
    }
}

#[test]
fn w5_one_of_two_restarted_lenders_that_stays_away_leaves_when_the_other_has_everything_again() {
    MemDoors::run(5, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders.iter().for_each(|l| l.lose_power());
        world.lenders[1].start();
        let before = doors.now();
        assert_eq!(read(&volume, 0, 4096).await.unwrap(), [1; 4096]);
        assert!(doors.now().since(before) > Duration::from_secs(4), "the other one might have been a survivor");
        write(&volume, 4096, &[2; 4096]).await.unwrap();
        assert!(world.event(0, "manager Stale").is_some());
        assert_eq!(world.manager.0.segments.borrow()[0].in_sync, [false, true]);
        // It comes back without its writes, and gets them as what it has missed.
        world.lenders[0].start();
        world.until(20, "it is copied", || world.event(0, "manager InSync").is_some()).await;
        world.assert_same(0, 1);
    });
}

#[test]
fn w5_writes_that_can_not_be_written_again_fail_the_volume_loudly() {
    MemDoors::run(6, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let volume = world.open().await;
        write(&volume, 4096, &[2; 4096]).await.unwrap();
        world.lenders[0].lose_power();
        world.lenders[0].io_errors.set(1);
        world.lenders[0].start();
        let error = write(&volume, 8192, &[3; 4096]).await.unwrap_err();
        assert_eq!(error.kind, VolumeErrorKind::Io);
        assert!(error.text.contains("lost writes"), "{}", error.text);
        assert_eq!(kind(read(&volume, 0, 1).await), VolumeErrorKind::Io);
        assert_eq!(kind(volume.flush().await), VolumeErrorKind::Io);
        assert_eq!(volume.status().path, PathState::Lost);
    });
}

#[test]
fn w5_a_doubled_lender_that_lost_unflushed_writes_goes_stale_and_is_never_read_before_it_is_copied() {
    MemDoors::run(9, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[0].lose_power();
        world.lenders[0].start();
        for _ in 0..200 {
            assert_eq!(read(&volume, 0, 4096).await.unwrap(), [1; 4096]);
            world.sleep(0.05).await;
        }
        assert!(world.event(0, "manager Stale").is_some());
        assert!(world.event(0, "manager InSync").is_some());
        world.assert_same(0, 1);
    });
}

#[test]
fn w1_writes_that_were_durable_at_once_are_not_lost_with_the_power_and_no_older_write_comes_over_them() {
    MemDoors::run(23, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let volume = world.open().await;
        write(&volume, 0, &[9; 8192]).await.unwrap();
        volume.write(0, Chunk::from(vec![1; 4096]), true).await.unwrap();
        world.lenders[0].lose_power();
        world.lenders[0].start();
        assert_eq!(read(&volume, 0, 8192).await.unwrap(), [[1; 4096], [9; 4096]].concat());
        world.lenders[0].lose_power();
        assert_eq!(world.lenders[0].bytes()[..4096], [1; 4096]);
    });
}

/// Requests of this kind that the lenders have seen, and how many of them had to be durable at once.
fn seen(world: &World, op: Op) -> (usize, usize) {
    let all = world.lenders.iter().flat_map(|lender| lender.seen.borrow().clone());
    let all: Vec<_> = all.filter(|request| request.op == op).collect();
    (all.len(), all.iter().filter(|request| request.fua).count())
}

#[test]
fn w1_a_write_that_is_likely_to_be_flushed_is_durable_at_once_and_its_flush_asks_nobody() {
    for copies in [1, 2] {
        MemDoors::run(26, move |doors| async move {
            let world = World::new(&doors, &[SIZE], copies);
            let volume = world.open().await;
            for round in 0..10u8 {
                write(&volume, 4096 * u64::from(round), &[round; 4096]).await.unwrap();
                volume.flush().await.unwrap();
            }
            assert_eq!(seen(&world, Op::Write), (10 * copies, 7 * copies));
            assert_eq!(seen(&world, Op::Flush), (3 * copies, 0));
            let expected = world.lenders[0].bytes();
            world.lenders.iter().for_each(|lender| lender.lose_power());
            assert!(world.lenders.iter().all(|lender| lender.bytes() == expected), "what was flushed is there");
            world.lenders.iter().for_each(|lender| lender.start());
            // The guess was wrong: what comes after it is flushed as ever.
            for block in [20, 21] {
                write(&volume, 4096 * block, &[block as u8; 4096]).await.unwrap();
            }
            volume.flush().await.unwrap();
            assert_eq!(seen(&world, Op::Flush), (4 * copies, 0));
            let expected = world.lenders[0].bytes();
            world.lenders.iter().for_each(|lender| lender.lose_power());
            assert!(world.lenders.iter().all(|lender| lender.bytes() == expected), "what was flushed is there");
        });
    }
}

#[test]
fn w1_the_first_flush_of_a_mount_goes_to_the_lenders_whatever_was_written() {
    MemDoors::run(27, |doors| async move {
        let world = World::new(&doors, &[SIZE, SIZE], 1);
        let volume = world.open().await;
        // What an earlier client has left may not be durable yet.
        volume.flush().await.unwrap();
        assert_eq!(seen(&world, Op::Flush), (2, 0));
        volume.flush().await.unwrap();
        assert_eq!(seen(&world, Op::Flush), (2, 0), "nothing has been written since");
        volume.write(0, Chunk::from(vec![1; 4096]), true).await.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(seen(&world, Op::Flush), (2, 0), "that was durable");
        write(&volume, 0, &[2; 4096]).await.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(seen(&world, Op::Flush), (3, 0), "only the segment that was written to is asked");
    });
}

#[test]
fn w5_what_is_kept_is_bounded_the_volume_flushes_by_itself_and_further_writes_wait() {
    MemDoors::run(24, |doors| async move {
        let world = World::new(&doors, &[70 << 20], 1);
        let volume = world.open().await;
        let chunk = Chunk::from(vec![7; 1 << 20]);
        for at in 0..17 {
            volume.write(at << 20, chunk.clone(), false).await.unwrap();
        }
        world.sleep(1.0).await;
        assert!(world.event(0, "flush").is_some(), "before it is full");
        let hung = &world.lenders[0];
        hung.hang_flushes.set(true);
        let writes = Rc::new(Cell::new(0));
        for at in 0..70 {
            let (volume, chunk, count) = (Rc::clone(&volume), chunk.clone(), Rc::clone(&writes));
            doors.spawn(async move {
                volume.write(at << 20, chunk, false).await.unwrap();
                count.set(count.get() + 1);
            });
        }
        world.sleep(5.0).await;
        assert!((16..34).contains(&writes.get()), "{} writes were taken", writes.get());
        hung.hang_flushes.set(false);
        hung.cut();
        world.until(10, "all are written", || writes.get() == 70).await;
    });
}

#[test]
fn f5_the_flush_before_an_idle_path_is_closed_is_a_real_one() {
    MemDoors::run(28, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let options = VolumeOptions { idle_close: Some(Duration::from_secs(1)), ..VolumeOptions::default() };
        let volume = world.open_with(options).await.unwrap();
        volume.flush().await.unwrap();
        volume.write(0, Chunk::from(vec![5; 4096]), true).await.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(seen(&world, Op::Flush).0, 1, "nothing is left to be flushed");
        world.until(5, "it is idle", || volume.status().path == PathState::Idle).await;
        assert_eq!(seen(&world, Op::Flush).0, 2);
    });
}

#[test]
fn f5_an_idle_path_is_flushed_first_and_a_lender_that_restarted_meanwhile_has_lost_nothing() {
    MemDoors::run(25, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let options = VolumeOptions { idle_close: Some(Duration::from_secs(1)), ..VolumeOptions::default() };
        let volume = world.open_with(options).await.unwrap();
        write(&volume, 0, &[5; 4096]).await.unwrap();
        world.until(5, "it is idle", || volume.status().path == PathState::Idle).await;
        let flush = world.event(0, "flush").unwrap();
        assert!(flush < world.event(0, "close").unwrap());
        world.lenders[0].lose_power();
        world.lenders[0].start();
        let writes = |world: &World| world.lenders[0].seen.borrow().iter().filter(|s| s.op == Op::Write).count();
        let before = writes(&world);
        assert_eq!(read(&volume, 0, 4096).await.unwrap(), [5; 4096]);
        assert_eq!(writes(&world), before, "identities were compared, and nothing had to be written again");
    });
}
