//! Blank regions of devices (P1).

use std::path::PathBuf;

use super::memory::{Image, Images, MemoryDoors, Op, crashes};
use super::*;

/// What was on the device before it was lent.
const OLD: u8 = 0xDD;

fn one() -> [PieceSpec; 1] {
    [piece("/dev", 16 * MIB)]
}

fn with_used_device<T>(test: impl AsyncFnOnce(MemoryDoors) -> T) -> T {
    let images = Images::from([(PathBuf::from("/dev"), Image::filled(file_size_for(16 * MIB), OLD))]);
    sublet_doors::real::run(async |_| test(MemoryDoors::new(images, true)).await).unwrap()
}

#[test]
fn test_p1_a_region_never_written_reads_as_zero_without_touching_the_disk() {
    with_used_device(async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        doors.machine.reads.set(0);
        assert_eq!(read(&area, 1, 0, 8 << 20).await, vec![0; 8 << 20]);
        assert_eq!(doors.machine.reads.get(), 0);
        doors.take_log();
        area.write_zeroes(slice(1), 0, 16 * MIB, true).await.unwrap();
        assert_eq!(doors.take_log(), [], "zeroing what is zero does nothing");
        assert_eq!(
            area.extents(slice(1), 0, 16 * MIB).await.unwrap(),
            [sublet_wire::message::Extent { length: 16 * MIB, data: false }]
        );
    });
}

#[test]
fn test_p1_the_first_write_zeroes_the_rest_of_the_region_first_and_in_order() {
    with_used_device(async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        doors.take_log();
        // Across the border of two regions.
        write(&area, 1, REGION - 4096, 1, 8192).await;
        let data_at = area.inner.pieces[0].data_at;
        let shape: Vec<String> = doors
            .take_log()
            .iter()
            .map(|op| match op {
                Op::Zero { at, length, .. } => format!("zero {}+{}", (at - data_at) / REGION, length / REGION),
                Op::Sync { .. } => "sync".to_owned(),
                Op::Write { at, .. } if *at < data_at => "mark".to_owned(),
                Op::Write { .. } => "data".to_owned(),
            })
            .collect();
        // Both copies of the mark, each durable before the other is begun; the second region came while that went on.
        let marks = ["sync", "mark", "sync", "mark", "sync"];
        let first = ["zero 0+1", "sync", "zero 1+1", "mark", "sync", "mark", "sync"];
        let expected: Vec<&str> = first.into_iter().chain(marks).chain(["data"]).collect();
        assert_eq!(shape, expected);
        assert_eq!(read(&area, 1, REGION - 8192, 16384).await, [vec![0; 4096], vec![1; 8192], vec![0; 4096]].concat());
        write(&area, 1, 0, 2, 4096).await;
        assert_eq!(doors.take_log().len(), 1, "the second write goes straight to the disk");
        use sublet_wire::message::Extent;
        let extents = area.extents(slice(1), 0, 16 * MIB).await.unwrap();
        assert_eq!(extents, [Extent { length: 2 * REGION, data: true }, Extent { length: 2 * REGION, data: false }]);
    });
}

#[test]
fn test_p1_after_a_crash_at_any_point_of_a_first_write_no_old_byte_is_seen() {
    with_used_device(async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        let base = doors.images();
        doors.take_log();
        write(&area, 1, REGION + 4096, 1, 4096).await;
        area.flush().await.unwrap();
        drop(area);
        let log = doors.take_log();
        let states = crashes(&base, &log);
        let last = states.len() - 1;
        for (n, (what, images)) in states.into_iter().enumerate() {
            let area = open(&doors.restarted(images), &one()).await;
            let found = read(&area, 1, REGION, 16384).await;
            assert!(!found.contains(&OLD), "{what}");
            assert!(found[8192..].iter().all(|byte| *byte == 0), "{what}");
            if n == last {
                assert_eq!(found[4096..8192], [1; 4096], "flushed data is there");
            }
            // And the next first write finds its way.
            write(&area, 1, REGION + 8192, 3, 4096).await;
            assert!(!read(&area, 1, REGION, REGION as usize).await.contains(&OLD), "{what}");
        }
    });
}

#[test]
fn many_first_writes_at_once_all_arrive() {
    with_used_device(async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        let area = &area;
        futures_util::future::join_all((0..32u8).map(|n| write(area, 1, u64::from(n) * 512 * 1024, n + 1, 4096))).await;
        area.flush().await.unwrap();
        let area = open(&doors.restarted(doors.images()), &one()).await;
        for n in 0..32u8 {
            let found = read(&area, 1, u64::from(n) * 512 * 1024, 8192).await;
            assert_eq!(found, [vec![n + 1; 4096], vec![0; 4096]].concat());
        }
    });
}

#[test]
fn a_file_with_old_content_shows_none_of_it() {
    let images = Images::from([(PathBuf::from("/dev"), Image::filled(file_size_for(16 * MIB), OLD))]);
    sublet_doors::real::run(async |_| {
        let doors = MemoryDoors::new(images, false);
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        assert_eq!(read(&area, 1, 0, 16 << 20).await, vec![0; 16 << 20]);
    })
    .unwrap();
}

#[test]
fn damaged_region_states_are_repaired_from_the_other_copy_or_the_area_is_not_served() {
    with_used_device(async |doors| {
        let area = made(&doors, &one()).await;
        area.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        write(&area, 1, 0, 1, 4096).await;
        area.flush().await.unwrap();
        drop(area);
        let pages = crate::layout::Reserve::of(one()[0].length).page(0);
        let mut images = doors.images();
        for page in pages {
            let mut one_bad = doors.images();
            for images in [&mut one_bad, &mut images] {
                images.get_mut(&PathBuf::from("/dev")).unwrap().write(page, &[0xFF; 512]);
            }
            let area = open(&doors.restarted(one_bad), &one()).await;
            assert_eq!(read(&area, 1, 0, 4096).await, vec![1; 4096]);
        }
        let error = Area::open(&doors.restarted(images), &one(), None, BOOT).await.err().unwrap();
        assert!(error.to_string().contains("region page"), "{error}");
    });
}
