//! What a label remembers beside its slices (L2, R2).

use sublet_api::server::Tombstone;
use sublet_types::{OpenId, VolumeId};

use super::hot::{one, with_area};
use super::*;
use crate::label::{HISTORY_MAX, TOMBSTONES_MAX};

fn tombstone(n: u128) -> Tombstone {
    Tombstone { volume: VolumeId::from_u128(n + 1000), slice: slice(n), area: AREA, epoch: epoch(n as u64 + 1) }
}

#[test]
fn l2_an_area_knows_its_own_openings_and_no_others() {
    with_area(true, async |doors, area| {
        let rolled_back = doors.images();
        let first = area.identity().open;
        let remembered = area.sequence();
        assert!(area.knows(first, remembered) && area.knows(OpenId::from_u128(0), 0));
        assert!(!area.knows(first, remembered + 1), "the label has not been there");
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        let remembered = area.sequence();
        assert!(area.knows(first, remembered));
        drop(area);
        let mut opened = vec![first];
        for _ in 0..HISTORY_MAX + 3 {
            let area = open(&doors, &one()).await;
            opened.push(area.identity().open);
            assert!(area.knows(first, remembered) || opened.len() > HISTORY_MAX + 1);
        }
        let area = open(&doors, &one()).await;
        assert_eq!(area.report("").history.len(), HISTORY_MAX);
        assert_eq!(area.report("").history[0], *opened.last().unwrap());
        assert!(area.knows(opened[opened.len() - HISTORY_MAX], remembered) && !area.knows(first, remembered));
        // A copy that was put back knows neither the openings since nor their sequence.
        let old = open(&doors.restarted(rolled_back), &one()).await;
        assert!(!old.knows(first, remembered + 10) && !old.knows(opened[5], 1));
    });
}

#[test]
fn l2_a_quarantine_outlives_a_restart_until_it_is_lifted() {
    with_area(false, async |doors, area| {
        assert_eq!(area.quarantined(), None);
        area.set_quarantine(Some("rolled back")).await.unwrap();
        drop(area);
        let area = open(&doors, &one()).await;
        assert_eq!(area.report("").quarantined.as_deref(), Some("rolled back"));
        area.set_quarantine(Some(&"long ".repeat(100))).await.unwrap();
        assert!(area.quarantined().unwrap().starts_with("long "));
        area.set_quarantine(None).await.unwrap();
        drop(area);
        assert_eq!(open(&doors, &one()).await.quarantined(), None);
    });
}

#[test]
fn r2_tombstones_stay_until_they_are_dropped_and_are_bounded() {
    with_area(true, async |doors, area| {
        area.prepare_slice(&facts(1, 0, REGION)).await.unwrap();
        let some: Vec<Tombstone> = [5, 3, 9].into_iter().map(tombstone).collect();
        area.put_tombstones(&some).await.unwrap();
        area.put_tombstones(&[Tombstone { epoch: epoch(77), ..tombstone(3) }]).await.unwrap();
        drop(area);
        let area = open(&doors, &one()).await;
        let found: Vec<(SliceId, u64)> = area.report("").tombstones.iter().map(|t| (t.slice, t.epoch.number)).collect();
        assert_eq!(found, [(slice(3), 77), (slice(5), 6), (slice(9), 10)]);
        assert_eq!(area.report("").slices.len(), 1);
        area.drop_tombstones(&[slice(3), slice(9), slice(100)]).await.unwrap();
        assert_eq!(area.report("").tombstones, [tombstone(5)]);
        let many: Vec<Tombstone> = (0..TOMBSTONES_MAX as u128).map(tombstone).collect();
        area.put_tombstones(&many).await.unwrap();
        assert!(area.put_tombstones(&[tombstone(1 << 40)]).await.is_err());
        drop(area);
        assert_eq!(open(&doors, &one()).await.report("").tombstones.len(), TOMBSTONES_MAX);
    });
}
