//! Areas of several pieces (L3).

use std::path::{Path, PathBuf};

use super::memory::{Op, with_files};
use super::*;
use crate::AreaErrorKind;

const SIZES: [(&str, u64); 3] = [("/p0", 8 * MIB), ("/p1", 24 * MIB), ("/p2", 12 * MIB)];

fn pieces() -> Vec<PieceSpec> {
    SIZES.iter().map(|(path, capacity)| piece(path, *capacity)).collect()
}

fn files() -> Vec<(&'static str, u64)> {
    SIZES.iter().map(|(path, capacity)| (*path, file_size_for(*capacity))).collect()
}

async fn refused<D: Doors>(doors: &D, pieces: &[PieceSpec], text: &str) {
    let error = Area::open(doors, pieces, None, BOOT).await.err().unwrap();
    assert_eq!(error.kind, AreaErrorKind::Offline, "{error}");
    assert!(error.to_string().contains(text), "'{error}' names {text}");
}

#[test]
fn three_joined_pieces_hold_what_was_written_across_their_borders() {
    with_files(&files(), false, async |doors| {
        let area = made(&doors, &pieces()).await;
        assert_eq!(area.capacity(), 44 * MIB);
        area.prepare_slice(&facts(1, 4 * MIB, 36 * MIB)).await.unwrap();
        // Borders of the pieces lie at 8 and 32 MiB of the area: 4 and 28 MiB of the slice.
        let model = |offset: u64, byte: u8, length: usize| (offset, byte, length);
        let writes = [
            model(4 * MIB - 4096, 1, 8192),
            model(28 * MIB - 8192, 2, 65536),
            model(36 * MIB - 4096, 3, 4096),
            model(0, 4, 4096),
        ];
        for (offset, byte, length) in writes {
            write(&area, 1, offset, byte, length).await;
        }
        area.flush().await.unwrap();
        drop(area);
        let area = open(&doors, &pieces()).await;
        for (offset, byte, length) in writes {
            assert_eq!(read(&area, 1, offset, length).await, vec![byte; length], "{offset}");
        }
        assert_eq!(read(&area, 1, 4096, 4096).await, vec![0; 4096]);
        for (path, byte) in [("/p0", 1), ("/p1", 1), ("/p1", 2), ("/p2", 2), ("/p2", 3)] {
            let image = &doors.images()[&PathBuf::from(path)];
            assert!(image.holds(byte, 8 * MIB..image.size), "{path} holds {byte}");
        }
        // Flushes reach every piece.
        doors.take_log();
        area.flush().await.unwrap();
        assert_eq!(doors.take_log().len(), 3);
    });
}

#[test]
fn what_an_unclean_epoch_wrote_is_durable_before_the_next_one_reads_it() {
    with_files(&files(), false, async |doors| {
        let area = made(&doors, &pieces()).await;
        let facts = facts(1, 4 * MIB, 36 * MIB);
        area.prepare_slice(&facts).await.unwrap();
        area.open_lease(slice(1), &lease(5), &facts).await.unwrap();
        assert!(!area.mark_open(slice(1), epoch(5)).await.unwrap());
        // On the second piece, which no label write syncs.
        write(&area, 1, 8 * MIB, 7, 4096).await;
        area.open_lease(slice(1), &lease(6), &facts).await.unwrap();
        doors.take_log();
        assert!(area.mark_open(slice(1), epoch(6)).await.unwrap());
        let synced =
            |path: &str| doors.machine.log.borrow().iter().any(|op| matches!(op, Op::Sync { path: at } if at == Path::new(path)));
        assert!(synced("/p1") && synced("/p2"));
    });
}

#[test]
fn test_l3_a_missing_piece_makes_the_area_offline_by_name() {
    with_files(&files(), false, async |doors| {
        drop(made(&doors, &pieces()).await);
        for (index, gone) in ["/p0", "/p1", "/p2"].into_iter().enumerate() {
            let mut images = doors.images();
            images.remove(&PathBuf::from(gone));
            refused(&doors.restarted(images.clone()), &pieces(), &format!("piece {} of 3 ({gone}) is missing", index + 1)).await;
            images.insert(gone.into(), super::memory::Image::new(64 * MIB));
            refused(&doors.restarted(images), &pieces(), &format!("piece {} of 3 ({gone}) is missing", index + 1)).await;
            let mut fewer = pieces();
            fewer.remove(index);
            refused(&doors, &fewer, &format!("piece {} is missing", index + 1)).await;
        }
        drop(open(&doors, &pieces()).await);
    });
}

#[test]
fn test_l3_a_piece_at_the_place_of_a_missing_one_is_told_apart_from_it_at_once() {
    with_files(&files(), false, async |doors| {
        drop(made(&doors, &pieces()).await);
        for (gone, other) in [(0, 2), (2, 0), (1, 2)] {
            let mut named = pieces();
            named[gone] = named[other].clone();
            let place = named[gone].path.display().to_string();
            let said = format!("piece {} of 3 ({place}) is missing: piece {} lies there", gone + 1, other + 1);
            refused(&doors, &named, &said).await;
        }
        drop(open(&doors, &pieces()).await);
    });
}

#[test]
fn test_l3_swapped_pieces_are_never_served() {
    with_files(&files(), false, async |doors| {
        drop(made(&doors, &pieces()).await);
        let mut images = doors.images();
        let (a, b) = (images[&PathBuf::from("/p1")].clone(), images[&PathBuf::from("/p2")].clone());
        images.insert("/p1".into(), b);
        images.insert("/p2".into(), a);
        let swapped = doors.restarted(images);
        let mut pieces = pieces();
        // Lengths are brought in line, so that nothing but the index tells.
        let (p1, p2) = (pieces[1].length, pieces[2].length);
        (pieces[1].length, pieces[2].length) = (p2, p1);
        refused(&swapped, &pieces, "piece 2 of 3 (/p1) of area a1 is swapped: its label says that it is piece 3").await;
    });
}

#[test]
fn test_l3_an_older_piece_is_named() {
    with_files(&files(), false, async |doors| {
        drop(made(&doors, &pieces()).await);
        let old = doors.images();
        drop(open(&doors, &pieces()).await);
        for (index, path) in ["/p0", "/p1", "/p2"].into_iter().enumerate() {
            let mut images = doors.images();
            images.insert(path.into(), old[&PathBuf::from(path)].clone());
            refused(&doors.restarted(images), &pieces(), &format!("piece {} of 3 ({path}) of area a1 is older", index + 1)).await;
        }
        // Not only one opening back, and not only one piece.
        drop(open(&doors, &pieces()).await);
        drop(open(&doors, &pieces()).await);
        let mut images = doors.images();
        for path in ["/p1", "/p2"] {
            images.insert(path.into(), old[&PathBuf::from(path)].clone());
        }
        refused(&doors.restarted(images), &pieces(), "piece 2 of 3 (/p1) of area a1 is older").await;
    });
}

#[test]
fn test_l3_a_piece_of_another_area_or_of_another_length_is_named() {
    with_files(&files(), false, async |doors| {
        drop(made(&doors, &pieces()).await);
        let other =
            doors.restarted(files().into_iter().map(|(path, size)| (path.into(), super::memory::Image::new(size))).collect());
        let mut spec = spec(&pieces());
        (spec.area, spec.name) = (AreaId::from_u128(0xc1), "c1".parse().unwrap());
        Area::format(&other, &spec).await.unwrap();
        for (index, path) in ["/p0", "/p1", "/p2"].into_iter().enumerate() {
            let mut images = doors.images();
            images.insert(path.into(), other.images()[&PathBuf::from(path)].clone());
            refused(&doors.restarted(images), &pieces(), &format!("piece {} of 3 ({path}) belongs to area c1", index + 1)).await;
        }
        let mut shorter = pieces();
        shorter[1].length -= 4096;
        refused(&doors, &shorter, "piece 2 of 3 (/p1) of area a1 has").await;
        let mut images = doors.images();
        images.get_mut(&PathBuf::from("/p2")).unwrap().size -= 4096;
        refused(&doors.restarted(images), &pieces(), "piece 3 of 3 (/p2) ends after").await;
    });
}

#[test]
fn parts_of_one_device_are_areas_of_their_own_and_share_its_lock() {
    let part = file_size_for(16 * MIB);
    with_files(&[("/disk", 2 * part + 4096)], false, async |doors| {
        let first = [PieceSpec { path: "/disk".into(), offset: 0, length: part }];
        let second = [PieceSpec { path: "/disk".into(), offset: part + 4096, length: part }];
        let a = made(&doors, &first).await;
        Area::format(&doors, &FormatSpec { area: AreaId::from_u128(2), ..spec(&second) }).await.unwrap();
        let b = open(&doors, &second).await;
        a.prepare_slice(&facts(1, 0, 16 * MIB)).await.unwrap();
        let mut other = facts(2, 0, 16 * MIB);
        other.area = AreaId::from_u128(2);
        b.prepare_slice(&other).await.unwrap();
        for offset in [0, 16 * MIB - 4096] {
            write(&a, 1, offset, 1, 4096).await;
            write(&b, 2, offset, 2, 4096).await;
        }
        assert_eq!(read(&a, 1, 16 * MIB - 4096, 4096).await, vec![1; 4096]);
        assert_eq!(read(&b, 2, 0, 4096).await, vec![2; 4096]);
        drop((a, b));
        drop(open(&doors, &second).await);
        drop(open(&doors, &first).await);
    });
}

#[test]
fn areas_that_make_no_sense_are_not_made() {
    with_files(&files(), false, async |doors| {
        let good = piece("/p1", 24 * MIB);
        let cases: [(Vec<PieceSpec>, &str); 6] = [
            (vec![], "1 to 64 pieces"),
            (vec![good.clone(), good.clone()], "named twice"),
            (vec![PieceSpec { offset: 1, ..good.clone() }], "multiples of 4 KiB"),
            (vec![PieceSpec { length: 8 * MIB, ..good.clone() }], "too small"),
            (vec![piece("/p0", 8 * MIB)], "must be 16 MiB"),
            (vec![PieceSpec { length: good.length + 4096, ..good }], "before the piece does"),
        ];
        for (pieces, text) in cases {
            let error = Area::format(&doors, &spec(&pieces)).await.unwrap_err();
            assert!(error.to_string().contains(text), "'{error}' says {text}");
        }
        assert_eq!(doors.take_log(), [], "nothing was written");
    });
}
