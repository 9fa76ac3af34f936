//! Searching agrees with a naive search of the whole volume.

use std::time::Duration;

use futures_util::future::join;
use sublet_doors::Clock;

use crate::testing::doors::MemDoors;
use crate::testing::world::{World, kind, write};
use crate::{VolumeErrorKind, Wanted};

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
                let wanted = Wanted { pattern, limit: None, count_only: false };
                let mut take = async |m: Vec<u64>| found.extend(m);
                let summary = volume.search(wanted, &mut take, &mut |done, all| last = (done, all)).await.unwrap();
                assert_eq!(found, naive(&model, pattern));
                assert_eq!((summary.count, summary.limited), (found.len() as u64, false));
                assert_eq!(last, (volume.size(), volume.size()));
                let limit = doors.below(10);
                let mut first = Vec::new();
                let wanted = Wanted { limit: Some(limit), ..wanted };
                let mut take = async |m: Vec<u64>| first.extend(m);
                let summary = volume.search(wanted, &mut take, &mut |_, _| {}).await.unwrap();
                assert_eq!(first, found[..found.len().min(limit as usize)]);
                assert_eq!(summary.count, first.len() as u64);
                assert_eq!(summary.limited, found.len() as u64 >= limit);
                let wanted = Wanted { count_only: true, ..wanted };
                let counted =
                    volume.search(wanted, &mut async |_| panic!("offsets are not wanted"), &mut |_, _| {}).await.unwrap();
                assert_eq!(counted, summary);
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
            let wanted = Wanted { pattern: &pattern, limit: None, count_only: false };
            assert_eq!(kind(volume.search(wanted, &mut async |_| {}, &mut |_, _| {}).await), VolumeErrorKind::OutOfRange);
        }
    });
}

#[test]
fn nothing_behind_the_end_of_the_volume_is_found() {
    MemDoors::run(1, |doors| async move {
        let mut world = World::new(&doors, &[8192], 1);
        world.info.size = 4096 + 100;
        world.lenders[0].slices.borrow_mut().values_mut().for_each(|slice| {
            slice.bytes.fill(b'z');
            slice.regions.written(0, &[b'z'; 8192]);
        });
        let volume = world.open().await;
        for count_only in [true, false] {
            let wanted = Wanted { pattern: b"zz", limit: None, count_only };
            let summary = volume.search(wanted, &mut async |_| {}, &mut |_, _| {}).await.unwrap();
            assert_eq!(summary.count, 4096 + 99);
        }
    });
}

#[test]
fn closing_ends_a_search_whose_asker_takes_no_more() {
    MemDoors::run(1, |doors| async move {
        let world = World::new(&doors, &[16384], 1);
        let volume = world.open().await;
        write(&volume, 0, &[b'z'; 16384]).await.unwrap();
        let asker = async |_| std::future::pending().await;
        let (wanted, mut asker) = (Wanted { pattern: b"z", limit: None, count_only: false }, asker);
        let began = doors.now();
        let close = async {
            doors.sleep(Duration::from_millis(100)).await;
            volume.close(false).await
        };
        let (found, closed) = join(volume.search(wanted, &mut asker, &mut |_, _| {}), close).await;
        assert_eq!(kind(found), VolumeErrorKind::Closed);
        closed.unwrap();
        assert!(doors.now().since(began) < Duration::from_secs(1));
    });
}
