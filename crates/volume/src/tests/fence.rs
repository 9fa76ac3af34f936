//! F4: one `StaleEpoch` or FENCED stops everything.

use std::cell::Cell;
use std::rc::Rc;

use sublet_api::view::PathState;
use sublet_doors::{Clock, Doors};

use crate::testing::doors::MemDoors;
use crate::testing::world::{World, kind, read, write};
use crate::{VolumeErrorKind, ZeroFlags};

#[test]
fn f4_one_stale_epoch_stops_all_segments_at_once_also_requests_that_wait() {
    MemDoors::run(1, |doors| async move {
        let world = World::new(&doors, &[65536, 65536, 65536], 1);
        let volume = world.open().await;
        // Requests that wait: for a hung lender, and for a dead one.
        world.lenders[1].hang.set(true);
        world.lenders[2].stop();
        let fenced = Rc::new(Cell::new(0));
        for offset in [65536, 2 * 65536] {
            let (count, volume) = (Rc::clone(&fenced), Rc::clone(&volume));
            doors.spawn(async move {
                assert_eq!(kind(write(&volume, offset, &[1; 100]).await), VolumeErrorKind::Fenced);
                count.set(count.get() + 1);
            });
        }
        world.sleep(1.0).await;
        assert_eq!(fenced.get(), 0);
        world.lenders[0].epoch.set(2);
        let before = doors.now();
        assert_eq!(kind(read(&volume, 0, 10).await), VolumeErrorKind::Fenced);
        world.sleep(0.01).await;
        assert_eq!(fenced.get(), 2, "the others stop at once");
        assert!(doors.now().since(before).as_millis() < 100);
        assert_eq!(kind(write(&volume, 65536, &[1]).await), VolumeErrorKind::Fenced);
        assert_eq!(kind(volume.flush().await), VolumeErrorKind::Fenced);
        assert_eq!(kind(volume.write_zeroes(0, 1, ZeroFlags::default()).await), VolumeErrorKind::Fenced);
        assert_eq!(kind(volume.extents(0, 4096).await), VolumeErrorKind::Fenced);
        assert_eq!(volume.status().path, PathState::Lost);
        assert!(volume.status().reason.contains("fenced"));
        world.sleep(30.0).await;
        assert!(world.lenders.iter().all(|l| l.connections.get() == 0), "no connection is left");
        let seen: usize = world.lenders.iter().map(|l| l.seen.borrow().len()).sum();
        world.sleep(60.0).await;
        assert_eq!(seen, world.lenders.iter().map(|l| l.seen.borrow().len()).sum::<usize>(), "nothing is asked any more");
    });
}

#[test]
fn f4_a_manager_that_knows_a_newer_epoch_stops_the_client() {
    MemDoors::run(2, |doors| async move {
        let world = World::new(&doors, &[65536], 2);
        let volume = world.open().await;
        world.manager.0.epoch.set(2);
        world.lenders[0].stop();
        assert_eq!(kind(write(&volume, 0, &[1; 4096]).await), VolumeErrorKind::Fenced);
        assert_eq!(kind(read(&volume, 0, 10).await), VolumeErrorKind::Fenced);
    });
}

#[test]
fn f4_a_newer_epoch_that_the_managers_answer_to_a_report_tells_stops_the_engine_and_nothing_is_proposed() {
    MemDoors::run(4, |doors| async move {
        let world = World::new(&doors, &[65536], 2);
        let volume = world.open().await;
        write(&volume, 0, &[1; 4096]).await.unwrap();
        // A lender is lost just then: it would be proposed to be left out.
        world.lenders[1].stop();
        volume.fence("epoch 2 rules");
        assert_eq!(kind(read(&volume, 0, 10).await), VolumeErrorKind::Fenced);
        assert_eq!(kind(write(&volume, 0, &[2; 4096]).await), VolumeErrorKind::Fenced);
        world.sleep(60.0).await;
        assert_eq!(world.event(0, "manager"), None, "{:?}", world.history.borrow());
        assert!(world.lenders.iter().all(|l| l.connections.get() == 0), "no connection is left");
        assert!(volume.status().reason.contains("epoch 2 rules"));
    });
}

#[test]
fn a_stale_epoch_at_opening_is_told() {
    MemDoors::run(3, |doors| async move {
        let world = World::new(&doors, &[65536], 2);
        world.lenders[1].epoch.set(2);
        assert_eq!(world.open_with(crate::VolumeOptions::default()).await.err().map(|e| e.kind), Some(VolumeErrorKind::Fenced));
    });
}
