//! Bytes go where they belong, on every usage way, whatever the alignment.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use sublet_doors::{Chunk, Clock, Doors};
use sublet_wire::Op;

use crate::testing::doors::MemDoors;
use crate::testing::world::{World, exercise, kind, range, read, write};
use crate::{VolumeErrorKind, ZeroFlags};

const K: u64 = 1024;
/// Segment lengths and copies: single, integrated of unequal parts, doubled, doubled and integrated.
const WAYS: [(&[u64], usize); 4] = [(&[256 * K], 1), (&[64 * K, 4 * K, 128 * K], 1), (&[192 * K], 2), (&[64 * K, 96 * K], 2)];

#[test]
fn random_requests_agree_with_a_byte_model_on_every_way() {
    for (seed, (lengths, copies)) in WAYS.into_iter().enumerate() {
        MemDoors::run(seed as u64 + 1, move |doors| async move {
            let world = World::new(&doors, lengths, copies);
            world.lenders.iter().for_each(|l| l.delay.set(Duration::from_micros(300)));
            let volume = world.open().await;
            let mut model = vec![0; volume.size() as usize];
            exercise(&doors, &volume, &mut model, 400).await;
            assert_eq!(read(&volume, 0, model.len()).await.unwrap(), model);
            volume.close(false).await.unwrap();
            let legs: Vec<Vec<u8>> =
                world.lenders.iter().map(|l| l.slices.borrow().values().next().unwrap().durable.clone()).collect();
            let whole: Vec<u8> = legs.iter().step_by(copies).flatten().copied().collect();
            assert_eq!(whole, model, "after a close everything is durable");
            assert!(legs.chunks(copies).all(|legs| legs.iter().all(|leg| *leg == legs[0])), "all copies are the same");
            assert!(world.lenders.iter().all(|l| l.label().open_epoch.is_none()), "the close was clean");
        });
    }
}

#[test]
fn a_slow_lender_does_not_slow_reads_that_can_go_elsewhere() {
    MemDoors::run(8, |doors| async move {
        let world = World::new(&doors, &[256 * K], 2);
        for slow in [0, 1] {
            for (leg, lender) in world.lenders.iter().enumerate() {
                lender.delay.set(Duration::from_millis(if leg == slow { 100 } else { 1 }));
            }
            let volume = world.open().await;
            // One at a time, and many at the same time.
            for at_once in [1, 16] {
                let (begun, reads) = (doors.now(), world.lenders[slow].reads());
                for _ in 0..500 / at_once {
                    let batch = (0..at_once).map(|n| read(&volume, n as u64 * 4 * K, 4096));
                    join_all(batch).await.into_iter().for_each(|bytes| drop(bytes.unwrap()));
                }
                let asked = world.lenders[slow].reads() - reads;
                assert!(asked <= 1 + at_once, "{asked} of 500 reads went to the slow lender");
                let took = doors.now().since(begun);
                assert!(took < Duration::from_millis(500 / at_once as u64 * 2 + 300), "{took:?}");
            }
            // It is tried again, and both serve once it is as fast as the other one, although something is written all the time.
            world.lenders[slow].delay.set(Duration::from_millis(1));
            let writing = Rc::new(Cell::new(true));
            for at in 16..20 {
                let (volume, writing) = (Rc::clone(&volume), Rc::clone(&writing));
                doors.spawn(async move {
                    while writing.get() {
                        write(&volume, at * 4 * K, &[7; 4096]).await.unwrap();
                    }
                });
            }
            let reads = world.lenders[slow].reads();
            for _ in 0..2000 {
                let batch = (0..8).map(|n| read(&volume, n * 4 * K, 4096));
                join_all(batch).await.into_iter().for_each(|bytes| drop(bytes.unwrap()));
                doors.sleep(Duration::from_millis(10)).await;
            }
            let asked = world.lenders[slow].reads() - reads;
            assert!(asked > 4000, "only {asked} of 16000 reads went to the lender that was slow");
            writing.set(false);
            volume.close(false).await.unwrap();
        }
    });
}

#[test]
fn a_lender_whose_reads_hang_gets_no_more_of_them() {
    for measured in [false, true] {
        MemDoors::run(9, |doors| async move {
            let world = World::new(&doors, &[256 * K], 2);
            world.lenders.iter().for_each(|lender| lender.delay.set(Duration::from_millis(1)));
            let volume = world.open().await;
            if measured {
                let both = (0..64).map(|n| read(&volume, n % 32 * 4 * K, 4096));
                join_all(both).await.into_iter().for_each(|bytes| drop(bytes.unwrap()));
            } else {
                // The other one has an answer already, this one has a new session.
                read(&volume, 0, 1).await.unwrap();
                world.lenders[1].cut();
                world.sleep(3.0).await;
            }
            world.lenders[1].hang_op.set(Some(Op::Read));
            let answered = Rc::new(Cell::new(0));
            for _ in 0..64 {
                let (volume, answered) = (Rc::clone(&volume), Rc::clone(&answered));
                doors.spawn(async move {
                    // Until one goes to the lender that hangs.
                    while read(&volume, 0, 4096).await.is_ok() {
                        answered.set(answered.get() + 1);
                    }
                });
            }
            // The watchdog has not ended its session by then.
            world.sleep(2.0).await;
            assert!(answered.get() > 10_000, "{} reads were answered", answered.get());
        });
    }
}

#[test]
fn requests_of_several_connections_at_once_agree_with_a_byte_model() {
    MemDoors::run(7, |doors| async move {
        let world = World::new(&doors, &[128 * K, 128 * K], 2);
        world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(2)));
        let volume = world.open().await;
        // Every connection has a part of its own; parts meet in the middle of a block.
        let part = 64 * K as usize - 100;
        let connections = (0..4).map(|connection| {
            let (doors, volume) = (doors.clone(), Rc::clone(&volume));
            async move {
                let start = (connection * part) as u64;
                let mut model = vec![0; part];
                for _ in 0..150 {
                    let (offset, length) = range(&doors, part as u64);
                    let span = offset as usize..(offset + length) as usize;
                    if doors.below(2) == 0 {
                        let bytes: Vec<u8> = (0..length).map(|_| doors.below(256) as u8).collect();
                        write(&volume, start + offset, &bytes).await.unwrap();
                        model[span].copy_from_slice(&bytes);
                    } else {
                        assert_eq!(read(&volume, start + offset, length as usize).await.unwrap(), model[span]);
                    }
                }
                assert_eq!(read(&volume, start, part).await.unwrap(), model);
            }
        });
        join_all(connections).await;
        world.assert_same(0, 1);
        world.assert_same(2, 3);
    });
}

#[test]
fn w2_overlapping_writes_at_once_leave_all_copies_the_same() {
    MemDoors::run(3, |doors| async move {
        let world = World::new(&doors, &[64 * K], 2);
        world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(5)));
        let volume = world.open().await;
        let writes = (1..200u8).map(|i| {
            let (offset, length) = range(&doors, 64 * K);
            let volume = Rc::clone(&volume);
            async move { write(&volume, offset, &vec![i; length as usize]).await.unwrap() }
        });
        join_all(writes).await;
        world.assert_same(0, 1);
        assert_eq!(read(&volume, 0, 64 * K as usize).await.unwrap(), world.lenders[0].bytes());
    });
}

#[test]
fn w1_a_write_is_acknowledged_by_all_copies_and_a_flush_makes_them_durable() {
    MemDoors::run(4, |doors| async move {
        let world = World::new(&doors, &[64 * K], 2);
        let volume = world.open().await;
        world.lenders[1].hang.set(true);
        let done = Rc::new(Cell::new(false));
        let (flag, writer) = (Rc::clone(&done), Rc::clone(&volume));
        doors.spawn(async move {
            write(&writer, 4096, &[9; 4096]).await.unwrap();
            flag.set(true);
        });
        world.sleep(1.0).await;
        assert_eq!(world.lenders[0].bytes()[4096], 9);
        assert!(!done.get(), "one copy is not enough");
        world.lenders[1].hang.set(false);
        world.lenders[1].cut();
        world.until(5, "the write is acknowledged", || done.get()).await;
        assert_eq!(world.lenders[1].bytes()[4096], 9);
        volume.flush().await.unwrap();
        for lender in &world.lenders {
            assert_eq!(lender.slices.borrow().values().next().unwrap().durable[4096], 9);
        }
    });
}

#[test]
fn a_caller_that_goes_away_leaves_no_lock_and_no_half_write() {
    MemDoors::run(5, |doors| async move {
        let world = World::new(&doors, &[64 * K], 2);
        world.lenders[1].delay.set(Duration::from_millis(400));
        let volume = world.open().await;
        for i in 1..20u8 {
            let bytes = [i; 9000];
            let writing = write(&volume, 100, &bytes);
            // Dropped before the slower copy has answered.
            assert!(doors.timeout(Duration::from_millis(u64::from(i)), writing).await.is_err());
        }
        write(&volume, 0, &[77]).await.unwrap();
        let bytes = world.lenders[0].bytes();
        assert_eq!((bytes[0], bytes[100], bytes[9099]), (77, 19, 19));
        assert_eq!(bytes, world.lenders[1].bytes());
    });
}

#[test]
fn odd_sizes_end_where_they_say() {
    MemDoors::run(6, |doors| async move {
        let mut world = World::new(&doors, &[8 * K, 8 * K], 1);
        world.info.size = 16 * K - 1000;
        let volume = world.open().await;
        let size = volume.size();
        write(&volume, size - 5, b"abcde").await.unwrap();
        assert_eq!(read(&volume, size - 5, 5).await.unwrap(), b"abcde");
        assert_eq!(kind(write(&volume, size - 5, b"abcdef").await), VolumeErrorKind::OutOfRange);
        assert_eq!(kind(read(&volume, size, 1).await), VolumeErrorKind::OutOfRange);
        assert_eq!(kind(read(&volume, u64::MAX, 1).await), VolumeErrorKind::OutOfRange);
        assert!(read(&volume, size, 0).await.unwrap().is_empty());
        volume.write_zeroes(3, size - 3, ZeroFlags::default()).await.unwrap();
        assert!(read(&volume, 0, size as usize).await.unwrap().iter().all(|b| *b == 0));
    });
}

#[test]
fn a_read_only_volume_refuses_changes_before_any_lender_sees_them() {
    MemDoors::run(8, |doors| async move {
        let mut world = World::new(&doors, &[64 * K], 2);
        world.info.read_only = true;
        let volume = world.open().await;
        assert!(volume.read_only());
        assert_eq!(kind(write(&volume, 0, b"x").await), VolumeErrorKind::ReadOnly);
        assert_eq!(kind(volume.write_zeroes(0, 10, ZeroFlags::default()).await), VolumeErrorKind::ReadOnly);
        volume.flush().await.unwrap();
        assert_eq!(read(&volume, 10, 10).await.unwrap(), [0; 10]);
        volume.close(false).await.unwrap();
        assert_eq!(world.event(0, "write").or(world.event(0, "flush")), None);
    });
}

#[test]
fn fast_zeroes_that_only_one_copy_can_make_are_made_slowly_at_the_other() {
    MemDoors::run(9, |doors| async move {
        let world = World::new(&doors, &[64 * K], 2);
        let volume = world.open().await;
        write(&volume, 0, &[5; 8192]).await.unwrap();
        let fast = ZeroFlags { fast: true, ..ZeroFlags::default() };
        world.lenders[1].no_fast.set(true);
        volume.write_zeroes(0, 4096, fast).await.unwrap();
        assert!(world.lenders.iter().all(|l| l.bytes()[..4096] == [0; 4096]));
        world.lenders[0].no_fast.set(true);
        assert_eq!(kind(volume.write_zeroes(4096, 4096, fast).await), VolumeErrorKind::Unsupported);
        assert!(world.lenders.iter().all(|l| l.bytes()[4096..8192] == [5; 4096]), "nothing was changed");
    });
}

#[test]
fn large_requests_are_split_and_extents_cover_what_was_asked() {
    MemDoors::run(10, |doors| async move {
        let world = World::new(&doors, &[5 << 20, 3 << 20], 1);
        let volume = world.open().await;
        let bytes: Vec<u8> = (0..(6u32 << 20)).map(|i| (i / 4096 + i % 251) as u8 | 1).collect();
        volume.write(1 << 20, Chunk::from(bytes.clone()), false).await.unwrap();
        assert_eq!(read(&volume, 1 << 20, bytes.len()).await.unwrap(), bytes);
        assert!(world.lenders.iter().all(|l| l.seen.borrow().iter().all(|s| s.op == Op::Map || s.length <= 1 << 20)));
        let extents = volume.extents(100, (8 << 20) - 200).await.unwrap();
        assert_eq!(extents.iter().map(|e| e.length).sum::<u64>(), (8 << 20) - 200);
        let shape: Vec<(u64, bool)> = extents.iter().map(|e| (e.length, e.data)).collect();
        assert_eq!(shape, [((1 << 20) - 100, false), (6 << 20, true), ((1 << 20) - 100, false)]);
    });
}
