//! What a scrub makes of legs that are both sure, and of one that lost its checksums (H3, K2).

use sublet_api::work::{FindingKind, Work, WorkKind, WorkState};
use sublet_doors::Rng;
use sublet_types::TaskId;

use crate::testing::doors::MemDoors;
use crate::testing::world::{TestVolume, World, read, write};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 6 * MIB;

fn findings(volume: &TestVolume) -> Vec<(FindingKind, u64, u64)> {
    volume.status().findings.iter().map(|f| (f.kind, f.offset, f.length)).collect()
}

fn scrub(doors: &MemDoors, rate_max: u64) -> Work {
    Work { task: TaskId::from_u128(doors.random_u128()), kind: WorkKind::Scrub, rate_max, is_paused: false, done: 0 }
}

#[test]
fn h3_of_two_legs_that_are_both_sure_a_scrub_believes_the_one_that_has_not_crashed() {
    MemDoors::run(14, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[5; 4096]).await.unwrap();
        world.lenders[0].stop();
        world.lenders[0].start();
        world.sleep(30.0).await;
        {
            let mut slices = world.lenders[0].slices.borrow_mut();
            let slice = slices.values_mut().next().unwrap();
            slice.bytes[..4096].fill(77);
            slice.regions.written(0, &[77; 4096]);
        }
        volume.set_work(&[scrub(&doors, 0)]);
        world.until(60, "the scrub is done", || volume.status().work.first().is_some_and(|w| w.state == WorkState::Done)).await;
        assert_eq!(findings(&volume), [(FindingKind::Differed, 0, 4096)]);
        assert_eq!(read(&volume, 0, 4096).await.unwrap(), [5; 4096]);
        world.assert_same(0, 1);
    });
}

#[test]
fn k2_a_scrub_gives_a_leg_without_kept_checksums_those_that_another_leg_has_kept() {
    MemDoors::run(15, |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        write(&volume, 0, &[5; 4096]).await.unwrap();
        world.lenders[1].stop();
        world.lenders[1].start();
        world.sleep(1.0).await;
        let computed = || {
            let slices = world.lenders[1].slices.borrow();
            let slice = slices.values().next().unwrap();
            let blocks = slice.regions.verify(0, &slice.bytes);
            blocks.iter().filter(|block| block.state == sublet_wire::message::BlockState::Computed).count()
        };
        assert_eq!(computed(), 1024, "a whole region");
        volume.set_work(&[scrub(&doors, 0)]);
        world.until(5, "the scrub is done", || volume.status().work.first().is_some_and(|w| w.state == WorkState::Done)).await;
        assert_eq!((computed(), findings(&volume)), (0, vec![]));
        world.assert_same(0, 1);
    });
}
