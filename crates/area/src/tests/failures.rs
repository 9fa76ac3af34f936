//! Writes that fail: the area fails with them, and its label says so (W7). A sparse file without room is another matter.

use sublet_wire::message::{Seed, SetState, StaleMark};

use super::hot::{checked, one, single, with_area};
use super::memory::{MemoryDoors, with_files};
use super::*;
use crate::AreaErrorKind as Kind;
use crate::layout::Reserve;

/// A slice with a stale leg, whose region 0 is hot and region 1 cold, and one behind it.
async fn used(area: &Area<MemoryDoors>) {
    let own = facts(1, 0, 4 * REGION);
    area.prepare_slice(&own).await.unwrap();
    area.open_lease(slice(1), &lease(1), &own).await.unwrap();
    let seed = Seed { leg: 1, since: generation(2), reset: true, entries: vec![] };
    area.seed(slice(1), &seed).await.unwrap();
    let stale = vec![StaleMark { leg: 1, since: generation(2), seeded: true }];
    let state = SetState { generation: generation(2), in_sync: vec![true, false], equalised: false, stale };
    area.set_state(slice(1), epoch(1), &state).await.unwrap();
    write(area, 1, 0, 7, 8192).await;
    write(area, 1, REGION, 7, 8192).await;
    area.cool(slice(1), &[1]).await.unwrap();
    area.prepare_slice(&single(2, 4 * REGION, 2 * REGION)).await.unwrap();
    write(area, 2, 0, 9, 4096).await;
}

/// Does something that writes to a place that takes no writes.
async fn fails(kind: &str, area: &Area<MemoryDoors>) -> Result<(), crate::AreaError> {
    match kind {
        "data" => put(area, 1, 4096, vec![8; 65536]).await,
        "zeroes" => area.write_zeroes(slice(1), 4096, 65536, true).await,
        "checksum page" | "missed map" => area.cool(slice(1), &[0]).await,
        _ => area.wipe_slice(slice(1), epoch(3), true, &|_, _| {}).await,
    }
}

#[test]
fn w7_a_failed_write_of_any_kind_fails_the_area_and_is_in_its_label_before_it_is_answered() {
    for kind in ["data", "zeroes", "checksum page", "missed map", "wipe", "wipe of checksums"] {
        with_area(false, async |doors, area| {
            used(&area).await;
            let before = area.identity();
            let reserve = Reserve::of(one()[0].length);
            let bad = match kind {
                "checksum page" => reserve.sums(0),
                "wipe of checksums" => reserve.sums(1),
                "missed map" => reserve.map_entry(0),
                _ => area.inner.pieces[0].data_at + 4096,
            };
            doors.machine.unwritable.replace(Some(bad..bad + 4096));
            assert_eq!(fails(kind, &area).await.unwrap_err().kind, Kind::Io, "{kind}");
            // At once, and for every slice; and nothing is tried again as if it had not failed.
            let crashed = doors.images();
            doors.machine.unwritable.replace(None);
            assert!(!area.identity().kept_writes_of(&before), "{kind}");
            put(&area, 2, 4096, vec![1; 4096]).await.unwrap_err();
            area.flush().await.unwrap_err();
            assert!(area.report("").offline.is_some(), "{kind}");
            // A restart does not clear it.
            let area = open(&doors.restarted(crashed), &one()).await;
            assert!(!area.identity().kept_writes_of(&before), "{kind}");
            assert_eq!(area.report("").failures, 1, "{kind}");
            write(&area, 2, 4096, 1, 4096).await;
        });
    }
}

#[test]
fn w7_a_sparse_file_without_room_fails_the_request_and_nothing_that_was_acknowledged() {
    for kind in ["data", "zeroes", "checksum page", "wipe"] {
        with_files(&[("/disk", file_size_for(32 * MIB))], false, async |doors| {
            Area::format(&doors, &FormatSpec { sparse: true, ..spec(&one()) }).await.unwrap();
            let area = open(&doors, &one()).await;
            used(&area).await;
            let before = area.identity();
            doors.machine.full.set(true);
            let failed = fails(kind, &area).await;
            if kind == "data" {
                let text = failed.as_ref().unwrap_err().to_string();
                assert!(text.contains("make room"), "{text}");
            }
            // Without room for its checksums, a region stays hot.
            assert_eq!(failed.is_ok(), kind == "checksum page", "{kind}");
            assert_eq!(area.hot_count(slice(1)), 1);
            doors.machine.full.set(false);
            assert!(area.identity().kept_writes_of(&before) && area.report("").offline.is_none(), "{kind}");
            assert_eq!(checked(&area, 2, 0, 4096).await, (vec![9; 4096], true, false));
            write(&area, 2, 4096, 1, 4096).await;
            area.flush().await.unwrap();
            assert_eq!(fails(kind, &area).await.err(), None, "{kind}");
            assert_eq!(open(&doors.restarted(doors.images()), &one()).await.report("").failures, 0, "{kind}");
        });
    }
}

#[test]
fn w7_a_preallocated_file_without_room_has_failed() {
    with_area(false, async |doors, area| {
        used(&area).await;
        let before = area.identity();
        doors.machine.full.set(true);
        put(&area, 1, 4096, vec![8; 65536]).await.unwrap_err();
        assert!(!area.identity().kept_writes_of(&before) && area.report("").offline.is_some());
    });
}

/// Two areas on one file.
fn two() -> [PieceSpec; 2] {
    let length = one()[0].length;
    [0, 1].map(|n| PieceSpec { offset: n * length, ..one()[0].clone() })
}

#[test]
fn w7_an_opening_that_is_told_of_lost_writes_and_fails_leaves_word_for_the_next_one() {
    with_files(&[("/disk", 2 * file_size_for(32 * MIB))], false, async |doors| {
        let [first, second] = two().map(|part| [part]);
        let mut before = Vec::new();
        for part in [&first, &second] {
            let id = AreaId::from_u128(0xa1 + before.len() as u128);
            Area::format(&doors, &FormatSpec { area: id, ..spec(part) }).await.unwrap();
            let area = open(&doors, part).await;
            area.prepare_slice(&SliceFacts { area: id, ..single(1, 0, 2 * REGION) }).await.unwrap();
            write(&area, 1, 0, 7, 4096).await;
            before.push(area.identity());
        }
        // The kernel tells of it once, and there is nobody whom the agent could tell.
        doors.machine.fail_sync.set(true);
        assert!(Area::open(&doors, &first, Some(POOL), BOOT).await.is_err());
        // It was about the other area on the file just as well.
        for (part, before) in [&first, &second].into_iter().zip(&before) {
            let area = open(&doors, part).await;
            assert!(!area.identity().kept_writes_of(before));
            assert_eq!(area.report("").failures, 1);
            let now = area.identity();
            drop(area);
            assert!(open(&doors, part).await.identity().kept_writes_of(&now), "once is enough");
        }
    });
}

#[test]
fn w7_a_note_of_a_failure_that_is_told_of_lost_writes_tells_everybody_on_the_file() {
    with_files(&[("/disk", 2 * file_size_for(32 * MIB))], false, async |doors| {
        let mut areas = Vec::new();
        for (n, part) in two().into_iter().enumerate() {
            let id = AreaId::from_u128(0xa1 + n as u128);
            Area::format(&doors, &FormatSpec { area: id, ..spec(std::slice::from_ref(&part)) }).await.unwrap();
            let area = open(&doors, &[part]).await;
            area.prepare_slice(&SliceFacts { area: id, ..single(1, 0, 2 * REGION) }).await.unwrap();
            write(&area, 1, 0, 7, 4096).await;
            areas.push(area);
        }
        let before = areas[1].identity();
        let data = areas[0].inner.pieces[0].data_at;
        doors.machine.unwritable.replace(Some(data..data + 4096));
        // The next sync is the one of the note.
        doors.machine.fail_sync.set(true);
        put(&areas[0], 1, 0, vec![8; 4096]).await.unwrap_err();
        assert!(!doors.machine.fail_sync.get());
        areas[1].flush().await.unwrap_err();
        assert!(!areas[1].identity().kept_writes_of(&before));
    });
}
