//! Lenders that die, hang, restart, lie, or fail.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use sublet_api::view::PathState;
use sublet_doors::{Clock, Doors};
use sublet_types::limits::LENDER_SILENT_MAX;
use sublet_wire::Op;

use crate::testing::doors::MemDoors;
use crate::testing::lender::Lie;
use crate::testing::world::{TestVolume, World, exercise, kind, read, write};
use crate::{VolumeError, VolumeErrorKind, VolumeOptions};

const SIZE: u64 = 128 * 1024;

/// Starts a write; the result appears in the cell.
pub(super) fn begin_write(
    doors: &MemDoors,
    volume: &TestVolume,
    offset: u64,
    byte: u8,
) -> Rc<RefCell<Option<Result<(), VolumeError>>>> {
    let result = Rc::new(RefCell::new(None));
    let (slot, volume) = (Rc::clone(&result), Rc::clone(volume));
    doors.spawn(async move {
        let outcome = write(&volume, offset, &[byte; 4096]).await;
        *slot.borrow_mut() = Some(outcome);
    });
    result
}

#[test]
fn w4_a_request_is_sent_again_only_in_a_new_session() {
    MemDoors::run(1, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let volume = world.open().await;
        world.lenders[0].swallow.set(3);
        write(&volume, 8192, &[3; 4096]).await.unwrap();
        let writes: Vec<u64> = world.lenders[0].seen.borrow().iter().filter(|s| s.op == Op::Write).map(|s| s.session).collect();
        assert_eq!(writes.len(), 4);
        assert!(writes.is_sorted_by(|a, b| a < b), "each time in a higher session: {writes:?}");
    });
}

#[test]
fn a_single_lender_that_restarts_is_waited_for_and_everything_resumes() {
    MemDoors::run(2, |doors| async move {
        let world = World::new(&doors, &[SIZE, SIZE], 1);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[0].stop();
        let waiting = begin_write(&doors, &volume, 4096, 2);
        world.sleep(120.0).await;
        assert!(waiting.borrow().is_none(), "it waits for ever by default");
        let status = volume.status();
        assert_eq!((status.path, status.missing), (PathState::Lost, vec!["server-a".to_owned()]));
        assert!(status.reason.contains("server-a"), "{}", status.reason);
        // The other segment is not disturbed.
        write(&volume, SIZE, &[7; 10]).await.unwrap();
        world.lenders[0].start();
        world.until(3, "the write resumes", || *waiting.borrow() == Some(Ok(()))).await;
        assert_eq!(read(&volume, 0, 8192).await.unwrap(), [[1; 4096], [2; 4096]].concat());
        assert_eq!(volume.status().path, PathState::Open);
    });
}

#[test]
fn after_fail_after_requests_fail_with_the_lender_named_and_work_again_when_it_is_back() {
    for hang in [false, true] {
        MemDoors::run(3, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 1);
            let options = VolumeOptions { fail_after: Some(Duration::from_secs(4)), ..VolumeOptions::default() };
            let volume = world.open_with(options).await.unwrap();
            if hang {
                world.lenders[0].hang.set(true);
            } else {
                world.lenders[0].stop();
            }
            let before = doors.now();
            let writing = begin_write(&doors, &volume, 0, 1);
            let error = read(&volume, 0, 10).await.unwrap_err();
            let took = doors.now().since(before);
            assert_eq!(error.kind, VolumeErrorKind::LenderMissing);
            assert!(error.text.contains("server-a"), "{}", error.text);
            assert!((3.9..6.0).contains(&took.as_secs_f64()), "{took:?}");
            world.until(1, "the write fails too", || writing.borrow().is_some()).await;
            assert_eq!(kind(writing.borrow().clone().unwrap()), VolumeErrorKind::LenderMissing);
            assert_eq!(kind(read(&volume, 0, 10).await), VolumeErrorKind::LenderMissing, "at once, now");
            world.lenders[0].hang.set(false);
            if !hang {
                world.lenders[0].start();
            }
            world.sleep(2.0).await;
            write(&volume, 0, &[2; 4096]).await.unwrap();
            assert_eq!(read(&volume, 0, 1).await.unwrap(), [2]);
        });
    }
}

/// The order of S1, from the history of lenders and manager.
fn assert_s1_order(world: &World, from: usize, acknowledged: usize) {
    let ping = world.event(from, "server-b ping").expect("a survivor was asked");
    let commit = world.event(ping, "manager Stale").expect("the manager has committed");
    let label = world.event(commit, "server-b label").expect("the survivor's label was written");
    assert!(label < acknowledged, "before the first write is acknowledged without the leg");
    assert!(world.manager.0.segments.borrow()[0].in_sync == [false, true]);
}

#[test]
fn s1_a_doubled_volume_goes_on_in_time_without_a_dead_or_hung_lender_in_the_right_order() {
    for (seed, fault) in ["dead", "hung", "disk hung", "gone"].into_iter().enumerate() {
        MemDoors::run(seed as u64, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            write(&volume, 0, &[1; 4096]).await.unwrap();
            let from = world.history.borrow().len();
            match fault {
                "dead" => world.lenders[0].stop(),
                "hung" => world.lenders[0].hang.set(true),
                "gone" => {
                    world.lenders[0].hang.set(true);
                    doors.set_blackhole(world.lenders[0].port, true);
                }
                _ => {
                    world.lenders[0].hang.set(true);
                    world.lenders[0].pongs.set(true);
                }
            }
            let before = doors.now();
            write(&volume, 4096, &[2; 4096]).await.unwrap();
            let acknowledged = world.history.borrow().len();
            let took = doors.now().since(before);
            assert!(took < LENDER_SILENT_MAX, "{fault}: {took:?}");
            assert_s1_order(&world, from, acknowledged);
            let before = doors.now();
            assert_eq!(read(&volume, 0, 8192).await.unwrap(), [[1; 4096], [2; 4096]].concat());
            write(&volume, 0, &[3; 10]).await.unwrap();
            volume.flush().await.unwrap();
            assert!(doors.now().since(before) < Duration::from_millis(100));
            let status = volume.status();
            assert_eq!(status.path, PathState::Open);
            assert!(status.reason.contains("server-a") && status.reason.contains("out of sync"), "{}", status.reason);
        });
    }
}

#[test]
fn reads_go_on_while_a_leg_is_leaving_even_those_that_were_sent_to_it() {
    MemDoors::run(4, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        world.lenders[0].stop();
        let before = doors.now();
        for _ in 0..20 {
            read(&volume, 0, 5000).await.unwrap();
        }
        assert!(doors.now().since(before) < Duration::from_millis(100));
    });
}

#[test]
fn a_short_restart_of_a_doubled_lender_makes_nothing_stale() {
    MemDoors::run(5, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[0].stop();
        let writing = begin_write(&doors, &volume, 4096, 2);
        world.sleep(3.0).await;
        assert!(writing.borrow().is_none());
        world.lenders[0].start();
        world.until(2, "the write resumes", || *writing.borrow() == Some(Ok(()))).await;
        assert_eq!(world.event(0, "manager"), None);
        world.assert_same(0, 1);
    });
}

#[test]
fn s2_without_the_manager_writes_wait_with_a_reason_and_reads_go_on() {
    MemDoors::run(6, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        world.manager.0.away.set(true);
        world.lenders[0].stop();
        let writing = begin_write(&doors, &volume, 0, 5);
        world.sleep(60.0).await;
        assert!(writing.borrow().is_none());
        assert_eq!(read(&volume, 4096, 4).await.unwrap(), [0; 4]);
        let reason = volume.status().reason;
        assert!(reason.contains("writes wait") && reason.contains("manager"), "{reason}");
        let from = world.history.borrow().len();
        world.manager.0.away.set(false);
        world.until(3, "the write is acknowledged", || *writing.borrow() == Some(Ok(()))).await;
        assert_s1_order(&world, from.saturating_sub(1), world.history.borrow().len());
        let reason = volume.status().reason;
        assert!(!reason.contains("manager"), "{reason}");
    });
}

#[test]
fn s1_a_leg_that_is_back_while_the_manager_is_away_is_written_again_and_stays_in_sync() {
    // Whether or not the manager had committed the leaving, of which the client heard nothing.
    for committed in [false, true] {
        MemDoors::run(7, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            if committed {
                world.manager.0.deaf.set(1);
            } else {
                world.manager.0.away.set(true);
            }
            world.lenders[0].stop();
            let writing = begin_write(&doors, &volume, 0, 5);
            if committed {
                world.until(8, "the manager was asked", || world.event(0, "manager Stale").is_some()).await;
                world.manager.0.away.set(true);
            } else {
                world.sleep(8.0).await;
            }
            assert!(writing.borrow().is_none());
            world.lenders[0].start();
            world.until(2, "the write resumes", || *writing.borrow() == Some(Ok(()))).await;
            world.assert_same(0, 1);
            world.manager.0.away.set(false);
            world.until(3, "the leaving is withdrawn", || world.event(0, "manager Withdrawn").is_some()).await;
            write(&volume, 4096, &[6; 4096]).await.unwrap();
            world.assert_same(0, 1);
            assert_eq!(world.manager.0.segments.borrow()[0].in_sync, [true, true]);
            let generation = world.manager.0.segments.borrow()[0].generation;
            assert!(world.lenders.iter().all(|l| l.label().generation == generation && l.label().in_sync == [true, true]));
            assert_eq!(volume.status().reason, "");
        });
    }
}

#[test]
fn k1_wrong_bytes_are_read_again_then_from_the_other_copy_and_are_otherwise_an_error() {
    MemDoors::run(10, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[0].flips.set(1);
        assert_eq!(read(&volume, 0, 4096).await.unwrap(), [1; 4096]);
        world.lenders[0].flips.set(usize::MAX);
        let error = read(&volume, 0, 4096).await.unwrap_err();
        assert_eq!(error.kind, VolumeErrorKind::Io);
        assert!(error.text.contains("server-a"), "{}", error.text);
    });
    MemDoors::run(11, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[0].flips.set(usize::MAX);
        for _ in 0..10 {
            assert_eq!(read(&volume, 0, 4096).await.unwrap(), [1; 4096]);
        }
    });
}

#[test]
fn a_disk_error_of_one_copy_makes_it_stale_and_of_the_only_one_is_an_error() {
    MemDoors::run(12, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        world.lenders[0].io_errors.set(1);
        write(&volume, 0, &[1; 4096]).await.unwrap();
        assert!(world.event(0, "manager Stale").is_some());
        assert_eq!(read(&volume, 0, 4096).await.unwrap(), [1; 4096]);
        world.until(20, "it is copied", || world.event(0, "manager InSync").is_some()).await;
        world.lenders[1].io_errors.set(1);
        volume.flush().await.unwrap();
        assert!(!world.manager.0.segments.borrow()[0].in_sync[1]);
    });
    MemDoors::run(13, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let volume = world.open().await;
        world.lenders[0].io_errors.set(2);
        assert_eq!(kind(write(&volume, 0, &[1; 4096]).await), VolumeErrorKind::Io);
        assert_eq!(kind(volume.flush().await), VolumeErrorKind::Io);
    });
}

#[test]
fn a_disk_error_while_the_other_copy_is_away_leaves_no_two_copies_that_differ() {
    MemDoors::run(21, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        world.lenders[1].stop();
        world.lenders[0].io_errors.set(1);
        let writing = begin_write(&doors, &volume, 0, 1);
        world.sleep(2.0).await;
        assert!(writing.borrow().is_none(), "neither copy can be left out yet");
        world.lenders[1].start();
        world.until(5, "the write is acknowledged", || *writing.borrow() == Some(Ok(()))).await;
        assert!(world.event(0, "manager Stale").is_some());
        assert_eq!(read(&volume, 0, 4096).await.unwrap(), [1; 4096]);
        world.until(20, "it is copied", || world.event(0, "manager InSync").is_some()).await;
        world.assert_same(0, 1);
    });
    MemDoors::run(22, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        world.lenders.iter().for_each(|l| l.io_errors.set(1));
        assert_eq!(kind(write(&volume, 0, &[1; 4096]).await), VolumeErrorKind::Io, "both have failed");
        world.until(5, "one of them leaves", || world.event(0, "manager Stale").is_some()).await;
        world.until(20, "and is copied", || world.event(0, "manager InSync").is_some()).await;
        world.assert_same(0, 1);
    });
}

#[test]
fn a_lying_lender_loses_only_its_connection() {
    for lie in [Lie::Cookie, Lie::Offset, Lie::Slice, Lie::Length, Lie::PayloadSize, Lie::Endless, Lie::Garbage] {
        MemDoors::run(14, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            write(&volume, 0, &[1; 4096]).await.unwrap();
            world.lenders[0].lie.set(Some(lie));
            for _ in 0..6 {
                assert_eq!(read(&volume, 0, 4096).await.unwrap(), [1; 4096], "{lie:?}");
                world.sleep(0.2).await;
            }
            let sessions = world.lenders[0].seen.borrow().iter().filter(|s| s.op == Op::Open).count();
            assert!(sessions > 1, "{lie:?}: the connection was ended");
            world.lenders[0].lie.set(None);
            let mut model = world.lenders[1].bytes();
            exercise(&doors, &volume, &mut model, 50).await;
        });
    }
}

#[test]
fn another_server_at_the_lenders_address_is_not_the_lender() {
    MemDoors::run(15, |doors| async move {
        let mut world = World::new(&doors, &[SIZE, SIZE], 1);
        let (right, wrong) = (world.lenders[0].address(), world.lenders[1].address());
        world.info.segments[0].legs[0].addresses = vec![wrong.clone(), right];
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        assert_eq!(world.lenders[0].bytes()[0], 1);
        drop(volume);
        // With no right address at all, the manager is asked.
        world.info.segments[0].legs[0].addresses = vec![wrong];
        let known = |lender: &crate::testing::lender::Lender| sublet_api::request::LenderAddresses {
            server: lender.server,
            addresses: vec![lender.address()],
            up: true,
        };
        *world.manager.0.lenders.borrow_mut() = world.lenders.iter().map(|l| known(l)).collect();
        world.sleep(1.0).await;
        let volume = world.open().await;
        assert_eq!(read(&volume, 0, 1).await.unwrap(), [1]);
    });
}

#[test]
fn opening_without_the_only_lender_fails_in_time_and_names_it() {
    MemDoors::run(16, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        world.lenders[0].stop();
        let options = VolumeOptions { fail_after: Some(Duration::from_secs(2)), ..VolumeOptions::default() };
        let Err(error) = world.open_with(options).await else { panic!("it opened") };
        assert_eq!(error.kind, VolumeErrorKind::LenderMissing);
        assert!(error.text.contains("server-a"), "{}", error.text);
    });
    MemDoors::run(17, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        world.lenders[0].stop();
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        assert!(world.event(0, "manager Stale").is_some());
    });
}

#[test]
fn an_idle_path_is_closed_and_opened_again_by_the_next_request_without_the_manager() {
    MemDoors::run(18, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let options = VolumeOptions { idle_close: Some(Duration::from_secs(2)), ..VolumeOptions::default() };
        let volume = world.open_with(options).await.unwrap();
        let changes = Rc::new(Cell::new(0));
        let (count, watched) = (Rc::clone(&changes), Rc::clone(&volume));
        doors.spawn(async move {
            loop {
                watched.status_changed().wait().await;
                count.set(count.get() + 1);
            }
        });
        world.manager.0.away.set(true);
        for round in 1..4u8 {
            write(&volume, 0, &[round; 4096]).await.unwrap();
            let seen = changes.get();
            world.sleep(1.0).await;
            assert_eq!(volume.status().path, PathState::Open);
            world.sleep(2.5).await;
            assert_eq!(volume.status().path, PathState::Idle);
            assert!(changes.get() > seen);
            assert!(world.lenders.iter().all(|l| l.connections.get() == 0), "no connection is left");
            // The path was flushed first: a lender that lost its power meanwhile has lost nothing.
            world.lenders[0].lose_power();
            world.lenders[0].start();
            world.sleep(60.0).await;
            let before = doors.now();
            assert_eq!(read(&volume, 0, 4096).await.unwrap(), [round; 4096]);
            assert!(doors.now().since(before) < Duration::from_millis(50));
            assert_eq!(volume.status().path, PathState::Open);
        }
        world.sleep(10.0).await;
        volume.close(false).await.unwrap();
        assert!(world.lenders.iter().all(|l| l.label().open_epoch.is_none()), "closed cleanly, although it was idle");
        assert_eq!(world.event(0, "manager"), None);
    });
}

#[test]
fn closing_waits_for_requests_under_way_and_refuses_new_ones() {
    MemDoors::run(19, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(500)));
        let volume = world.open().await;
        let writing = begin_write(&doors, &volume, 0, 1);
        world.sleep(0.001).await;
        volume.close(false).await.unwrap();
        assert_eq!(*writing.borrow(), Some(Ok(())));
        assert_eq!(kind(read(&volume, 0, 1).await), VolumeErrorKind::Closed);
        assert!(world.lenders.iter().all(|l| l.slices.borrow().values().next().unwrap().durable[0] == 1));
        world.sleep(5.0).await;
        assert!(world.lenders.iter().all(|l| l.connections.get() == 0 && l.label().open_epoch.is_none()));
    });
}

#[test]
fn closing_by_force_does_not_wait_for_a_missing_lender() {
    MemDoors::run(20, |doors| async move {
        let world = World::new(&doors, &[SIZE], 1);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        world.lenders[0].stop();
        assert_eq!(kind(volume.close(false).await), VolumeErrorKind::LenderMissing);
        assert_eq!(volume.status().path, PathState::Lost, "it was not closed");
        let before = doors.now();
        volume.close(true).await.unwrap();
        assert!(doors.now().since(before) < Duration::from_secs(6));
        assert_eq!(volume.status().path, PathState::None);
    });
}
