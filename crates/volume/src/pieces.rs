//! The engine without a network, for benchmarks: a volume of two copies, its lenders in memory.

use std::rc::Rc;

use futures_util::future::join_all;
use sublet_doors::Chunk;

use crate::testing::doors::MemDoors;
use crate::testing::world::World;

const SIZE: u64 = 4 << 20;
/// Requests at the same time.
const DEPTH: u64 = 16;

/// Reads 4 KiB so often.
pub fn read(times: u64) {
    requests(times, false);
}

/// Writes 4 KiB to both copies so often.
pub fn write(times: u64) {
    requests(times, true);
}

fn requests(times: u64, writes: bool) {
    MemDoors::run(1, move |doors| async move {
        let world = World::new(&doors, &[SIZE], 2);
        let volume = world.open().await;
        let data = Chunk::copy_of(&[7; 4096]);
        for first in (0..times).step_by(DEPTH as usize) {
            let batch = (first..times.min(first + DEPTH)).map(|request| {
                let (volume, data) = (Rc::clone(&volume), data.clone());
                let offset = request.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SIZE / 4096) * 4096;
                async move {
                    let done = if writes {
                        volume.write(offset, data, false).await.is_ok()
                    } else {
                        volume.read(offset, 4096).await.is_ok_and(|chunks| !chunks.is_empty())
                    };
                    assert!(done, "a request failed");
                }
            });
            join_all(batch).await;
            world.forget_history();
        }
    });
}
