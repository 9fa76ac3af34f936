//! A lender whose replies are damaged in whatever way: its client neither crashes nor hangs, and never has wrong bytes.

use sublet_wire::Op;

use crate::Wanted;
use crate::testing::doors::MemDoors;
use crate::testing::world::{World, exercise};

const SIZE: u64 = 256 << 10;

#[test]
fn k1_a_lender_that_damages_replies_of_any_kind_costs_its_client_no_byte() {
    let mut damaged = 0;
    for seed in 0..12 {
        damaged += MemDoors::run(1000 + seed, move |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            let volume = world.open().await;
            let mut model = vec![0; SIZE as usize];
            exercise(&doors, &volume, &mut model, 20).await;
            world.lenders[0].damage.set(4);
            for round in 0..6 {
                exercise(&doors, &volume, &mut model, 20).await;
                let extents = volume.extents(0, SIZE).await.unwrap();
                assert!(extents.iter().map(|extent| extent.length).sum::<u64>() <= SIZE, "seed {seed}: extents beyond the end");
                let pattern = &model[5000..5032];
                let wanted = Wanted { pattern, limit: Some(50), count_only: round % 2 == 0 };
                let mut inside =
                    async |places: Vec<u64>| assert!(places.iter().all(|at| at + 32 <= SIZE), "seed {seed}: {places:?}");
                volume.search(wanted, &mut inside, &mut |_, _| {}).await.unwrap();
                if round == 3 {
                    // It comes and goes as well: resync, maps and all that.
                    world.lenders[0].stop();
                    exercise(&doors, &volume, &mut model, 5).await;
                    world.lenders[0].start();
                }
                world.sleep(1.0).await;
            }
            world.lenders[0].damage.set(0);
            let in_sync = || world.manager.0.segments.borrow().iter().all(|segment| segment.in_sync.iter().all(|leg| *leg));
            world.until(120, "both legs to be in sync", in_sync).await;
            exercise(&doors, &volume, &mut model, 20).await;
            world.lenders.iter().for_each(|lender| assert!(lender.bytes() == model, "seed {seed}: {} differs", lender.name));
            world.lenders[0].seen.borrow().iter().filter(|seen| seen.op == Op::Open).count()
        });
    }
    assert!(damaged > 40, "its connections were ended: {damaged} sessions");
}
