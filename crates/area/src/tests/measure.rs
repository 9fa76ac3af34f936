//! Figures of a real disk, for people: `cargo test --release -p sublet-area measure -- --ignored --nocapture`. The folder is
//! that of `TMPDIR`.

use std::time::Instant;

use sublet_doors::Clock;
use sublet_doors::real::{RealDoors, run};

use super::*;

const GIB: u64 = 1 << 30;
const HOT: u64 = 1000;

fn percentiles(mut times: Vec<u128>) -> String {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    format!("median {} us, 99 % {} us, most {} us", at(50), at(99), at(100))
}

async fn timed_writes(area: &Area<RealDoors>, first: u64, count: u64, step: u64) -> String {
    let mut times = Vec::new();
    for n in 0..count {
        let begun = Instant::now();
        write(area, 1, first + n * step, 7, 4096).await;
        times.push(begun.elapsed().as_micros());
    }
    percentiles(times)
}

/// One writer, 1 MiB after the other, four at a time: MiB per second.
async fn sequential(area: &Area<RealDoors>, from: u64, length: u64) -> u128 {
    let data = Buffer::zeroed(1 << 20).freeze();
    let sums: Vec<u8> = crate::sums::ZERO_SUM.to_le_bytes().repeat(256);
    let begun = Instant::now();
    for at in (from..from + length).step_by(4 << 20) {
        let four = (0..4).map(|n| area.write(slice(1), at + n * MIB, data.clone(), &sums));
        futures_util::future::try_join_all(four).await.unwrap();
    }
    u128::from(length / MIB) * 1000 / begun.elapsed().as_millis()
}

#[test]
#[ignore = "figures for people, on a real disk"]
fn measure_an_area_of_100_gib_with_1000_hot_regions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("area");
    let length = file_size_for(100 * GIB);
    std::fs::File::create(&path).unwrap().set_len(length).unwrap();
    let pieces = [PieceSpec { path, offset: 0, length }];
    run(async |doors| {
        let begun = Instant::now();
        Area::format(&doors, &FormatSpec { sparse: true, ..spec(&pieces) }).await.unwrap();
        println!("format: {} ms", begun.elapsed().as_millis());
        let begun = Instant::now();
        let area = open(&doors, &pieces).await;
        println!("opening, nothing hot: {} ms", begun.elapsed().as_millis());
        area.prepare_slice(&facts(1, 0, 100 * GIB)).await.unwrap();
        println!("first write to a blank region: {}", timed_writes(&area, 0, HOT, 5 * REGION).await);
        println!("write to a hot region: {}", timed_writes(&area, 8192, HOT, 5 * REGION).await);
        area.flush().await.unwrap();
        let hot: Vec<u32> = (0..HOT as u32).map(|n| n * 5).collect();
        let begun = Instant::now();
        area.cool(slice(1), &hot).await.unwrap();
        println!("cooling {HOT} regions: {} ms", begun.elapsed().as_millis());
        println!("first write to a cold region: {}", timed_writes(&area, 16384, HOT, 5 * REGION).await);
        area.cool(slice(1), &hot).await.unwrap();
        let begun = Instant::now();
        let together = (0..HOT).map(|n| write(&area, 1, 32768 + n * 5 * REGION, 7, 4096));
        futures_util::future::join_all(together).await;
        println!("first writes to {HOT} cold regions at once: {} ms", begun.elapsed().as_millis());
        assert_eq!(area.hot_count(slice(1)), HOT as u32);
        area.cool(slice(1), &hot).await.unwrap();
        let (from, length) = (50 * GIB, GIB / 2);
        println!("sequential, blank: {} MiB/s", sequential(&area, from, length).await);
        println!("sequential, hot: {} MiB/s", sequential(&area, from, length).await);
        area.cool(slice(1), &(12_800..12_928).collect::<Vec<_>>()).await.unwrap();
        println!("sequential, cold: {} MiB/s", sequential(&area, from, length).await);
        area.cool(slice(1), &(12_800..12_948).collect::<Vec<_>>()).await.unwrap();
        timed_writes(&area, 32768, HOT, 5 * REGION).await;
        drop(area);
        let begun = Instant::now();
        let area = open(&doors, &pieces).await;
        println!("opening, {HOT} regions hot: {} ms", begun.elapsed().as_millis());
        assert!(area.hot_count(slice(1)) >= HOT as u32);
        println!("first write to a region found hot: {}", timed_writes(&area, 65536, HOT, 5 * REGION).await);
        let begun = Instant::now();
        area.cool(slice(1), &hot[..64]).await.unwrap();
        println!("cooling 64 regions found hot (their data is read): {} ms", begun.elapsed().as_millis());
    })
    .unwrap();
}

#[test]
#[ignore = "figures for people, on a real disk"]
fn measure_the_wipe_of_a_sparse_file_in_pieces_beside_a_borrower() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("area");
    let length = file_size_for(GIB);
    std::fs::File::create(&path).unwrap().set_len(length).unwrap();
    let pieces = [PieceSpec { path, offset: 0, length }];
    run(async |doors| {
        Area::format(&doors, &FormatSpec { sparse: true, ..spec(&pieces) }).await.unwrap();
        let area = open(&doors, &pieces).await;
        area.prepare_slice(&facts(1, 0, GIB - REGION)).await.unwrap();
        area.prepare_slice(&facts(2, GIB - REGION, REGION)).await.unwrap();
        for first in (0..(GIB - REGION) / 8192).step_by(64) {
            futures_util::future::join_all((first..first + 64).map(|n| write(&area, 1, n * 8192, 7, 4096))).await;
        }
        area.flush().await.unwrap();
        let (wiped, begun) = (std::cell::Cell::new(false), Instant::now());
        let told = std::cell::Cell::new(0);
        let wipe = async {
            area.wipe_slice(slice(1), super::epoch(9), true, &|_, _| told.set(told.get() + 1)).await.unwrap();
            wiped.set(true);
        };
        let mut times = Vec::new();
        let borrower = async {
            while !wiped.get() {
                let begun = Instant::now();
                write(&area, 2, 0, 8, 4096).await;
                times.push(begun.elapsed().as_micros());
                doors.sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        futures_util::future::join(wipe, borrower).await;
        println!("wiping 1 GiB in 131,000 pieces: {} ms, progress told {} times", begun.elapsed().as_millis(), told.get());
        println!("writes of a borrower beside it: {}", percentiles(times));
    })
    .unwrap();
}
