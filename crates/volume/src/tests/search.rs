//! Searching agrees with a naive search of the whole volume.

use sublet_doors::Clock;

use crate::VolumeErrorKind;
use crate::testing::doors::MemDoors;
use crate::testing::world::{World, kind, write};

fn naive(bytes: &[u8], pattern: &[u8]) -> Vec<u64> {
    bytes.windows(pattern.len()).enumerate().filter(|(_, w)| *w == pattern).map(|(i, _)| i as u64).collect()
}

#[test]
fn matches_are_those_of_a_naive_search_overlapping_and_across_blocks_and_segments() {
    for seed in 1..20 {
        MemDoors::run(seed, move |doors| async move {
            let world = World::new(&doors, &[16384, 4096, 4096, 32768], 1 + (seed as usize % 2));
            let volume = world.open().await;
            // Two letters only: many matches, many of them overlapping.
            let mut model: Vec<u8> = (0..volume.size()).map(|_| b'a' + (doors.below(8) == 0) as u8).collect();
            let long: Vec<u8> = (0..4096u32).map(|i| (i % 256) as u8).collect();
            // A pattern of 4096 bytes that spans three segments.
            model[20480 - 100..24576 - 100].copy_from_slice(&long);
            write(&volume, 0, &model).await.unwrap();
            let patterns: [&[u8]; 7] = [b"a", b"aa", b"aba", b"aaaaaaaaaaaaaaaa", b"ba", b"never", &long];
            for pattern in patterns {
                let mut found = Vec::new();
                let mut last = (0, 0);
                let summary = volume
                    .search(pattern, None, &mut |m| found.extend_from_slice(m), &mut |done, all| last = (done, all))
                    .await
                    .unwrap();
                assert_eq!(found, naive(&model, pattern));
                assert_eq!((summary.count, summary.limited), (found.len() as u64, false));
                assert_eq!(last, (volume.size(), volume.size()));
                let limit = doors.below(10);
                let mut first = Vec::new();
                let summary =
                    volume.search(pattern, Some(limit), &mut |m| first.extend_from_slice(m), &mut |_, _| {}).await.unwrap();
                assert_eq!(first, found[..found.len().min(limit as usize)]);
                assert_eq!(summary.count, first.len() as u64);
                assert_eq!(summary.limited, found.len() as u64 >= limit);
            }
            assert!(doors.now().0 > 0);
        });
    }
}

#[test]
fn a_pattern_has_a_length_that_the_protocol_knows() {
    MemDoors::run(1, |doors| async move {
        let world = World::new(&doors, &[16384], 1);
        let volume = world.open().await;
        for pattern in [vec![], vec![0; 4097]] {
            assert_eq!(kind(volume.search(&pattern, None, &mut |_| {}, &mut |_, _| {}).await), VolumeErrorKind::OutOfRange);
        }
    });
}
