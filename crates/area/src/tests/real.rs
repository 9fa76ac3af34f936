//! The same on real files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use sublet_doors::Clock;
use sublet_doors::real::{RealDoors, run};
use sublet_wire::message::Extent;

use super::*;

fn file(folder: &Path, name: &str, capacity: u64) -> PieceSpec {
    let path = folder.join(name);
    let length = file_size_for(capacity);
    File::create(&path).unwrap().set_len(length).unwrap();
    PieceSpec { path, offset: 0, length }
}

fn in_folder(test: impl AsyncFnOnce(RealDoors, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    run(async |doors| test(doors, folder.path()).await).unwrap();
}

fn raw_holds(path: &Path, pattern: &[u8]) -> bool {
    std::fs::read(path).unwrap().windows(pattern.len()).any(|bytes| bytes == pattern)
}

#[test]
fn what_is_written_is_read_back_after_a_restart_and_random_access_matches_a_byte_model() {
    in_folder(async |doors, folder| {
        let pieces = [file(folder, "x", 8 * MIB), file(folder, "y", 12 * MIB)];
        let area = made(&doors, &pieces).await;
        area.prepare_slice(&facts(1, REGION, 4 * REGION)).await.unwrap();
        // The model: one byte a block.
        let blocks = (4 * REGION / 4096) as usize;
        let mut model = vec![0u8; blocks];
        let mut state = 12345u64;
        let mut next = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % bound
        };
        for step in 0..400 {
            let start = next(blocks);
            let count = 1 + next(64.min(blocks - start));
            let offset = start as u64 * 4096;
            match next(3) {
                0 => {
                    area.write_zeroes(slice(1), offset, count as u64 * 4096, step % 2 == 0).await.unwrap();
                    model[start..start + count].fill(0);
                }
                _ => {
                    write(&area, 1, offset, step as u8, count * 4096).await;
                    model[start..start + count].fill(step as u8);
                }
            }
        }
        area.flush().await.unwrap();
        drop(area);
        let area = open(&doors, &pieces).await;
        let found = read(&area, 1, 0, blocks * 4096).await;
        for (block, byte) in model.iter().enumerate() {
            assert!(found[block * 4096..][..4096].iter().all(|found| found == byte), "block {block}");
        }
    });
}

#[test]
fn test_p2_the_pattern_is_gone_from_the_raw_file() {
    for sparse in [false, true] {
        in_folder(async |doors, folder| {
            let pieces = [file(folder, "x", 16 * MIB)];
            Area::format(&doors, &FormatSpec { sparse, ..spec(&pieces) }).await.unwrap();
            let area = open(&doors, &pieces).await;
            area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
            let secret = b"a former borrower's bytes".repeat(4096);
            put(&area, 1, 3 * 4096, secret[..4096 * 20].to_vec()).await.unwrap();
            area.flush().await.unwrap();
            assert!(raw_holds(&pieces[0].path, b"former borrower"));
            area.wipe_slice(slice(1), epoch(2), true, &|_, _| {}).await.unwrap();
            assert!(!raw_holds(&pieces[0].path, b"former borrower"));
        });
    }
}

#[test]
fn test_w6_zeroes_keep_preallocated_space_and_give_sparse_space_back() {
    use std::os::unix::fs::MetadataExt;
    for sparse in [false, true] {
        in_folder(async |doors, folder| {
            let pieces = [file(folder, "x", 16 * MIB)];
            Area::format(&doors, &FormatSpec { sparse, ..spec(&pieces) }).await.unwrap();
            let area = open(&doors, &pieces).await;
            area.prepare_slice(&facts(1, 0, 2 * REGION)).await.unwrap();
            write(&area, 1, 0, 7, 1 << 20).await;
            area.flush().await.unwrap();
            let used = || std::fs::metadata(&pieces[0].path).unwrap().blocks() * 512;
            let before = used();
            area.write_zeroes(slice(1), 0, 1 << 20, false).await.unwrap();
            area.flush().await.unwrap();
            assert_eq!(read(&area, 1, 0, 1 << 20).await, vec![0; 1 << 20]);
            assert_eq!(before - used(), if sparse { 1 << 20 } else { 0 });
            write(&area, 1, 0, 7, 1 << 20).await;
            area.write_zeroes(slice(1), 0, 1 << 20, true).await.unwrap();
            area.flush().await.unwrap();
            assert_eq!(read(&area, 1, 0, 1 << 20).await, vec![0; 1 << 20]);
            assert_eq!(used(), before, "kept allocated when that is asked for");
        });
    }
}

#[test]
fn extents_tell_data_from_holes_across_pieces() {
    in_folder(async |doors, folder| {
        let pieces = [file(folder, "x", 8 * MIB), file(folder, "y", 8 * MIB)];
        let area = made(&doors, &pieces).await;
        area.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        write(&area, 1, MIB, 7, 1 << 20).await;
        write(&area, 1, 8 * MIB - 65536, 7, 131_072).await;
        area.flush().await.unwrap();
        let extents = area.extents(slice(1), 0, 16 * MIB).await.unwrap();
        let expected = [(MIB, false), (MIB, true), (6 * MIB - 65536, false), (131_072, true), (8 * MIB - 65536, false)];
        assert_eq!(extents, expected.map(|(length, data)| Extent { length, data }));
        let part = area.extents(slice(1), MIB + 4096, 8192).await.unwrap();
        assert_eq!(part, [Extent { length: 8192, data: true }]);
    });
}

#[test]
fn test_f2_a_second_opening_waits_for_the_lock_of_the_first() {
    in_folder(async |doors, folder| {
        let pieces = [file(folder, "x", 16 * MIB)];
        let first = made(&doors, &pieces).await;
        let opened = std::rc::Rc::new(std::cell::Cell::new(false));
        let (seen, own, again) = (Rc::clone(&opened), doors.clone(), pieces.clone());
        doors.spawn(async move {
            drop(open(&own, &again).await);
            seen.set(true);
        });
        doors.sleep(Duration::from_millis(200)).await;
        assert!(!opened.get(), "the label is not touched while another one serves");
        let sequence = first.report("").sequence;
        drop(first);
        let wait = async {
            while !opened.get() {
                doors.sleep(Duration::from_millis(5)).await;
            }
        };
        doors.timeout(Duration::from_secs(10), wait).await.unwrap();
        assert!(open(&doors, &pieces).await.report("").sequence > sequence + 1);
    });
}

#[test]
fn odd_sizes_are_rounded_down_to_regions_and_every_byte_of_them_works() {
    in_folder(async |doors, folder| {
        for length in [file_size_for(16 * MIB) + 4096, file_size_for(20 * MIB) - 4096, file_size_for(100 * MIB) + 3 * MIB] {
            let path = folder.join(length.to_string());
            // The file itself ends anywhere.
            File::create(&path).unwrap().set_len(length + 1000).unwrap();
            let pieces = [PieceSpec { path, offset: 0, length }];
            let area = made(&doors, &pieces).await;
            let capacity = area.capacity();
            assert_eq!(capacity, crate::layout::data_size(length));
            area.prepare_slice(&facts(1, 0, capacity)).await.unwrap();
            write(&area, 1, capacity - 4096, 9, 4096).await;
            write(&area, 1, 0, 8, 4096).await;
            drop(area);
            let area = open(&doors, &pieces).await;
            assert_eq!(read(&area, 1, capacity - 4096, 4096).await, vec![9; 4096]);
        }
    });
}

#[test]
fn a_label_is_recognised_wherever_the_file_turns_up_and_garbage_is_not() {
    in_folder(async |doors, folder| {
        let pieces = [file(folder, "x", 16 * MIB)];
        drop(made(&doors, &pieces).await);
        let moved = PieceSpec { path: folder.join("moved"), ..pieces[0].clone() };
        std::fs::rename(&pieces[0].path, &moved.path).unwrap();
        assert_eq!(Area::read_identity(&doors, &moved).await.unwrap().unwrap().area, AREA);
        drop(open(&doors, &[moved]).await);
        for (name, content) in [("empty", vec![]), ("short", vec![7; 100]), ("noise", vec![7; 200_000])] {
            let path = folder.join(name);
            std::fs::write(&path, content).unwrap();
            assert_eq!(Area::read_identity(&doors, &PieceSpec { path, offset: 0, length: 0 }).await.unwrap(), None, "{name}");
        }
        let gone = PieceSpec { path: folder.join("gone"), offset: 0, length: 0 };
        assert!(Area::read_identity(&doors, &gone).await.is_err());
    });
}

#[test]
fn an_area_in_a_part_of_a_file_leaves_the_rest_alone() {
    in_folder(async |doors, folder| {
        let length = file_size_for(16 * MIB);
        let path = folder.join("x");
        std::fs::write(&path, vec![0xCC; (length + 16384) as usize]).unwrap();
        let pieces = [PieceSpec { path: path.clone(), offset: 8192, length }];
        let area = made(&doors, &pieces).await;
        area.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        assert_eq!(read(&area, 1, 0, 16 << 20).await, vec![0; 16 << 20]);
        write(&area, 1, 16 * MIB - 4096, 1, 4096).await;
        area.wipe_slice(slice(1), epoch(1), true, &|_, _| {}).await.unwrap();
        area.release().await.unwrap();
        drop(area);
        let mut edge = vec![0; 8192];
        let file = File::open(&path).unwrap();
        for at in [0, 8192 + length] {
            file.read_exact_at(&mut edge, at).unwrap();
            assert!(edge.iter().all(|byte| *byte == 0xCC), "the bytes around the part are not ours");
        }
    });
}
