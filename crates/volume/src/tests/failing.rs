//! Changes that a leg has failed: two legs that count as in sync never differ without a mark (W1, S1, S5, H3).

use std::rc::Rc;
use std::time::Duration;

use sublet_doors::Clock;
use sublet_types::limits::RECONNECT_GRACE;
use sublet_wire::Op;

use super::lost::begin_write;
use super::resync::crashed;
use crate::members::Role;
use crate::testing::doors::MemDoors;
use crate::testing::world::{TestVolume, World, kind, read, write};
use crate::{VolumeErrorKind, VolumeOptions};

const SIZE: u64 = 3 << 20;

fn in_sync(world: &World) -> Vec<bool> {
    world.manager.0.segments.borrow()[0].in_sync.clone()
}

async fn all_is_well(world: &World, volume: &TestVolume) {
    world.until(60, "all is well", || volume.status().reason.is_empty() && in_sync(world) == [true, true]).await;
    world.assert_same(0, 1);
}

/// The second leg is a target, and is being copied to slowly.
async fn copying(world: &World, options: VolumeOptions) -> TestVolume {
    let volume = world.open_with(options).await.unwrap();
    world.lenders[1].stop();
    write(&volume, 0, &vec![1; 1 << 20]).await.unwrap();
    write(&volume, 2 << 20, &vec![1; 1 << 20]).await.unwrap();
    volume.set_resync(1 << 20, false);
    world.lenders[1].start();
    let is_copying = || volume.status().work.iter().any(|work| work.done > 0);
    world.until(20, "it is being copied", is_copying).await;
    volume
}

/// The manager is asked for the commit of the second leg's return, and is away.
async fn joining(world: &World) -> TestVolume {
    let volume = world.open().await;
    world.lenders[1].stop();
    write(&volume, 0, &[1; 4096]).await.unwrap();
    world.lenders[1].start();
    while volume.inner.segments[0].role(1) != Role::Joining {
        world.doors.sleep(Duration::from_micros(100)).await;
    }
    world.manager.0.away.set(true);
    world.sleep(1.0).await;
    assert_eq!(volume.inner.segments[0].role(1), Role::Joining);
    volume
}

#[test]
fn w1_a_write_that_the_only_leg_in_sync_has_failed_and_a_target_has_leaves_no_two_legs_that_differ() {
    MemDoors::run(1, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = copying(&world, VolumeOptions::default()).await;
        world.lenders[0].io_errors.set(1);
        assert_eq!(kind(write(&volume, 8192, &[9; 4096]).await), VolumeErrorKind::Io);
        volume.set_resync(0, false);
        all_is_well(&world, &volume).await;
    });
}

#[test]
fn w1_a_write_that_waits_for_too_long_and_is_at_a_target_leaves_no_two_legs_that_differ() {
    MemDoors::run(2, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let options = VolumeOptions { fail_after: Some(Duration::from_secs(20)), ..VolumeOptions::default() };
        let volume = copying(&world, options).await;
        volume.set_resync(0, true);
        world.sleep(2.0).await;
        world.lenders[0].stop();
        assert_eq!(kind(write(&volume, 8192, &[9; 4096]).await), VolumeErrorKind::LenderMissing);
        world.lenders[0].start();
        volume.set_resync(0, false);
        all_is_well(&world, &volume).await;
    });
}

#[test]
fn s5_a_joining_leg_that_fails_a_write_costs_no_error_and_leaves_again_once_its_return_is_known() {
    MemDoors::run(3, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = joining(&world).await;
        world.lenders[1].io_errors.set(1);
        let writing = begin_write(&doors, &volume, 8192, 9);
        world.sleep(2.0).await;
        assert!(writing.borrow().is_none(), "whether it may be acknowledged without that leg is not known");
        let from = world.history.borrow().len();
        world.manager.0.away.set(false);
        world.until(10, "it is acknowledged", || *writing.borrow() == Some(Ok(()))).await;
        let joined = world.event(from, "manager InSync").unwrap();
        assert!(world.event(joined, "manager Stale").is_some(), "it has not got the write");
        assert_eq!(read(&volume, 8192, 4096).await.unwrap(), [9; 4096]);
        all_is_well(&world, &volume).await;
    });
}

#[test]
fn s5_a_leg_that_fails_a_write_while_the_other_one_joins_leaves_when_that_is_known() {
    MemDoors::run(4, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = joining(&world).await;
        world.lenders[0].io_errors.set(1);
        let writing = begin_write(&doors, &volume, 8192, 9);
        world.sleep(2.0).await;
        assert!(writing.borrow().is_none(), "the other one has it, and may be in sync");
        world.manager.0.away.set(false);
        world.until(10, "it is acknowledged", || *writing.borrow() == Some(Ok(()))).await;
        assert_eq!(read(&volume, 8192, 4096).await.unwrap(), [9; 4096]);
        all_is_well(&world, &volume).await;
    });
}

#[test]
fn h3_a_write_that_the_source_has_failed_makes_the_block_differ_again() {
    MemDoors::run(5, |doors| async move {
        let world = crashed(&doors, 4 * SIZE, 2);
        {
            let mut slices = world.lenders[1].slices.borrow_mut();
            let slice = slices.values_mut().next().unwrap();
            slice.regions.written(2 * SIZE as usize, &vec![0; 4096]);
            // It has crashed, so it is no survivor.
            slice.regions.lost = true;
        }
        world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(300)));
        let volume = world.open().await;
        assert_eq!(read(&volume, 8192, 4096).await.unwrap(), [10; 4096]);
        assert!(!volume.status().reason.is_empty(), "other blocks may still differ");
        world.lenders[0].io_errors.set(1);
        assert_eq!(kind(write(&volume, 8192, &[9; 4096]).await), VolumeErrorKind::Io);
        all_is_well(&world, &volume).await;
    });
}

#[test]
fn s1_a_disk_error_while_the_other_leg_stays_away_fails_that_write_only() {
    MemDoors::run(6, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 4096, &[1; 4096]).await.unwrap();
        world.lenders[1].stop();
        world.sleep(0.5).await;
        world.lenders[0].io_errors.set(1);
        let writing = begin_write(&doors, &volume, 8192, 9);
        world.sleep(1.0).await;
        assert!(writing.borrow().is_none(), "the other one may come back");
        assert_eq!(read(&volume, 4096, 4096).await.unwrap(), [1; 4096], "reads go on");
        let grace = RECONNECT_GRACE.as_secs() + 2;
        world.until(grace, "it has failed", || matches!(&*writing.borrow(), Some(Err(e)) if e.kind == VolumeErrorKind::Io)).await;
        write(&volume, 12288, &[2; 4096]).await.unwrap();
        assert_eq!(in_sync(&world), [true, false], "the one that is there stays");
        world.lenders[1].start();
        all_is_well(&world, &volume).await;
    });
}

#[test]
fn s1_a_leg_that_was_to_leave_stays_when_its_survivor_is_gone() {
    MemDoors::run(7, |doors| async move {
        let world = World::new(&doors, &[3 * SIZE], 2);
        let volume = world.open().await;
        world.manager.0.away.set(true);
        world.lenders[0].io_errors.set(1);
        let writing = begin_write(&doors, &volume, 8192, 9);
        world.sleep(1.0).await;
        assert!(writing.borrow().is_none());
        world.lenders[1].stop();
        let bytes = doors.timeout(RECONNECT_GRACE + Duration::from_secs(3), read(&volume, 2 * SIZE, 4096)).await;
        assert_eq!(bytes.expect("somebody serves it").unwrap(), [0; 4096]);
        world.manager.0.away.set(false);
        world.until(20, "the write has ended", || writing.borrow().is_some()).await;
        world.lenders[1].start();
        all_is_well(&world, &volume).await;
    });
}

/// The other leg has the write, this one does not, and the caller was told of an error: both stay in sync, and are made equal.
#[test]
fn w1_a_write_that_failed_at_one_leg_while_the_other_came_back_is_made_equal() {
    for seed in 10..20 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            write(&volume, 8192, &[1; 4096]).await.unwrap();
            world.manager.0.away.set(true);
            world.lenders[1].stop();
            world.sleep(0.1).await;
            world.lenders[0].io_errors.set(1);
            let writing = begin_write(&doors, &volume, 8192, 9);
            // It is lost, but cannot leave.
            world.sleep(RECONNECT_GRACE.as_secs_f64() + 3.0).await;
            world.lenders[1].start();
            world.until(10, "the write has ended", || writing.borrow().is_some()).await;
            let first = read(&volume, 8192, 4096).await.unwrap();
            for _ in 0..8 {
                let reads = (0..6).map(|_| read(&volume, 8192, 4096));
                let same = futures_util::future::join_all(reads).await;
                assert!(same.iter().all(|bytes| bytes.as_ref() == Ok(&first)), "what was read once is read again");
            }
            world.manager.0.away.set(false);
            all_is_well(&world, &volume).await;
            assert_eq!(read(&volume, 8192, 4096).await.unwrap(), first);
            assert!(Rc::strong_count(&volume) > 0 && world.lenders[0].seen.borrow().iter().any(|s| s.op == Op::Write));
        });
    }
}
