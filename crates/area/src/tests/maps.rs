//! Missed maps (S1, S3, S4, S5).

use std::path::PathBuf;

use sublet_wire::message::{MapReply, MapWhich, Seed, SetState, StaleMark};

use super::hot::{checked, one, with_area};
use super::memory::MemoryDoors;
use super::*;

const ALL: u64 = u64::MAX;

async fn ready(area: &Area<MemoryDoors>) {
    let own = facts(1, REGION, 7 * REGION);
    area.prepare_slice(&own).await.unwrap();
    area.open_lease(slice(1), &lease(1), &own).await.unwrap();
    area.mark_open(slice(1), epoch(1)).await.unwrap();
}

fn state(number: u64, other: bool, marks: &[(u64, bool)]) -> SetState {
    let stale = marks.iter().map(|(since, seeded)| StaleMark { leg: 1, since: generation(*since), seeded: *seeded }).collect();
    SetState { generation: generation(number), in_sync: vec![true, other], equalised: false, stale }
}

fn seed(reset: bool, entries: &[(u32, u64)]) -> Seed {
    Seed { leg: 1, since: generation(2), reset, entries: entries.to_vec() }
}

async fn map(area: &Area<MemoryDoors>) -> MapReply {
    area.map(slice(1), MapWhich::Leg(1), 0, 7 * REGION).await.unwrap()
}

/// (region, hot, missed) of all entries.
async fn entries(area: &Area<MemoryDoors>) -> Vec<(u32, bool, u64)> {
    map(area).await.entries.iter().map(|entry| (entry.region, entry.hot, entry.missed)).collect()
}

#[test]
fn s1_a_leg_leaves_with_exactly_what_was_sent_and_what_is_written_since() {
    with_area(true, async |doors, area| {
        ready(&area).await;
        write(&area, 1, 0, 1, 4096).await;
        write(&area, 1, 2 * REGION, 1, 4096).await;
        assert_eq!(entries(&area).await, [(0, true, 0), (2, true, 0)]);
        assert_eq!(map(&area).await.since, None, "no map: a full copy (S3)");
        // The leg lacks only the write to region 2, and one to a region that is not hot here.
        area.seed(slice(1), &seed(true, &[(2, 1), (4, 0xF0)])).await.unwrap();
        area.set_state(slice(1), epoch(1), &state(2, false, &[(2, true)])).await.unwrap();
        assert_eq!(area.missed_since(slice(1)), [None, Some(generation(2))]);
        write(&area, 1, 5 * REGION + (64 << 10), 2, 4096).await;
        let expected = [(0, true, 0), (2, true, 1), (4, false, 0xF0), (5, true, 2)];
        assert_eq!(entries(&area).await, expected);
        area.cool(slice(1), &[0, 2, 5]).await.unwrap();
        let cold = [(2, false, 1), (4, false, 0xF0), (5, false, 2)];
        assert_eq!(entries(&area).await, cold);
        write(&area, 1, 2 * REGION + (128 << 10), 2, 4096).await;
        area.cool(slice(1), &[2]).await.unwrap();
        area.flush().await.unwrap();
        drop(area);
        let doors = doors.restarted(doors.images());
        let area = open(&doors, &one()).await;
        assert_eq!(entries(&area).await, [(2, false, 5), (4, false, 0xF0), (5, false, 2)]);
        assert_eq!(area.report("").slices[0].missed_since, [None, Some(generation(2))]);
        // S4: what was copied is taken off, hot or not.
        write(&area, 1, 5 * REGION, 3, 4096).await;
        area.clear(slice(1), 1, &[(2, 4), (4, 0xF0), (5, 2)]).await.unwrap();
        assert_eq!(entries(&area).await, [(2, false, 1), (5, true, 1)]);
        area.cool(slice(1), &[5]).await.unwrap();
        area.flush().await.unwrap();
        let area = open(&doors.restarted(doors.images()), &one()).await;
        assert_eq!(entries(&area).await[0], (2, false, 1));
        // S5: in sync again, the map goes; the next one begins empty.
        area.set_state(slice(1), epoch(1), &state(3, true, &[])).await.unwrap();
        assert_eq!((map(&area).await.since, entries(&area).await.len()), (None, 0));
        let next = Seed { since: generation(4), ..seed(true, &[(6, 1)]) };
        area.seed(slice(1), &next).await.unwrap();
        area.set_state(slice(1), epoch(1), &state(4, false, &[(4, true)])).await.unwrap();
        assert_eq!(entries(&area).await, [(6, false, 1)]);
    });
}

#[test]
fn s1_without_an_exact_list_everything_hot_is_missed() {
    with_area(false, async |_, area| {
        ready(&area).await;
        write(&area, 1, 0, 1, 4096).await;
        write(&area, 1, REGION, 1, 4096).await;
        area.cool(slice(1), &[1]).await.unwrap();
        area.set_state(slice(1), epoch(1), &state(2, false, &[(2, false)])).await.unwrap();
        assert_eq!(entries(&area).await, [(0, true, ALL)]);
        // A list that was promised and never came counts as none.
        area.set_state(slice(1), epoch(1), &state(3, true, &[])).await.unwrap();
        area.set_state(slice(1), epoch(1), &state(4, false, &[(4, true)])).await.unwrap();
        assert_eq!(entries(&area).await, [(0, true, ALL)]);
    });
}

#[test]
fn s1_a_leg_that_the_manager_left_out_has_a_map_of_what_was_hot() {
    with_area(false, async |_, area| {
        ready(&area).await;
        write(&area, 1, 0, 1, 4096).await;
        write(&area, 1, REGION, 1, 4096).await;
        area.cool(slice(1), &[1]).await.unwrap();
        let mut own = facts(1, REGION, 7 * REGION);
        (own.generation, own.in_sync) = (generation(2), vec![true, false]);
        area.open_lease(slice(1), &lease(2), &own).await.unwrap();
        assert_eq!(
            area.missed_since(slice(1)),
            [None, Some(generation(2))],
            "the generation that it left with, as the manager says"
        );
        assert_eq!(entries(&area).await, [(0, true, ALL)]);
        // But not the other way round: a leg that was stale itself knows nothing.
        let own = SliceFacts { leg: 1, in_sync: vec![true, false], ..facts(2, 0, REGION) };
        area.prepare_slice(&own).await.unwrap();
        let own = SliceFacts { generation: generation(2), in_sync: vec![false, true], ..own };
        area.prepare_slice(&own).await.unwrap();
        assert_eq!(area.missed_since(slice(2)), [None, None]);
    });
}

#[test]
fn s3_after_a_crash_what_was_hot_is_missed_and_an_unreadable_entry_reads_as_all_ones() {
    with_area(true, async |doors, area| {
        ready(&area).await;
        area.seed(slice(1), &seed(true, &[(1, 2)])).await.unwrap();
        area.set_state(slice(1), epoch(1), &state(2, false, &[(2, true)])).await.unwrap();
        write(&area, 1, 0, 1, 4096).await;
        write(&area, 1, 3 * REGION, 1, 4096).await;
        area.cool(slice(1), &[3]).await.unwrap();
        area.flush().await.unwrap();
        drop(area);
        let restarted = open_rebooted(&doors.restarted(doors.images()), &one()).await;
        assert!(map(&restarted).await.lost);
        assert_eq!(entries(&restarted).await, [(0, true, ALL), (1, false, 2), (3, false, 1)]);
        drop(restarted);
        for (region, expected) in
            [(1, [(0, true, ALL), (1, false, ALL), (3, false, 1)]), (3, [(0, true, ALL), (1, false, 2), (3, false, ALL)])]
        {
            let mut images = doors.images();
            let at = crate::layout::Reserve::of(one()[0].length).map_entry(region + 1);
            images.get_mut(&PathBuf::from("/disk")).unwrap().write(at, &[0x77; 512]);
            let area = open(&doors.restarted(images), &one()).await;
            assert_eq!(entries(&area).await, expected);
        }
    });
}

#[test]
fn h3_a_lender_has_lost_something_from_a_power_cut_on_until_the_legs_are_equal_again() {
    with_area(true, async |doors, area| {
        ready(&area).await;
        write(&area, 1, 0, 1, 4096).await;
        area.flush().await.unwrap();
        drop(area);
        let doors = doors.restarted(doors.images());
        let area = open(&doors, &one()).await;
        assert!(!map(&area).await.lost, "a process that ends takes nothing with it that was written");
        drop(area);
        let doors = doors.restarted(doors.images());
        let area = open_rebooted(&doors, &one()).await;
        assert!(map(&area).await.lost);
        drop(area);
        let doors = doors.restarted(doors.images());
        let area = open_rebooted(&doors, &one()).await;
        assert!(map(&area).await.lost, "that its process is started again mends nothing");
        area.open_lease(slice(1), &lease(2), &facts(1, REGION, 7 * REGION)).await.unwrap();
        assert!(area.mark_open(slice(1), epoch(2)).await.unwrap());
        // A region stays hot for as long as it is written.
        write(&area, 1, 0, 2, 4096).await;
        assert!(map(&area).await.lost);
        let equalised = SetState { equalised: true, ..state(1, true, &[]) };
        area.set_state(slice(1), epoch(2), &equalised).await.unwrap();
        assert_eq!((map(&area).await.lost, entries(&area).await), (false, vec![(0, true, 0)]));
        drop(area);
        let doors = doors.restarted(doors.images());
        let area = open_rebooted(&doors, &one()).await;
        assert!(!map(&area).await.lost);
        drop(area);
        let area = open(&doors.restarted(doors.images()), &one()).await;
        assert!(map(&area).await.lost, "until its machine goes down again");
    });
}

#[test]
fn s3_where_legs_may_differ_since_an_earlier_crash_an_exact_list_is_not_enough() {
    with_area(true, async |doors, area| {
        ready(&area).await;
        write(&area, 1, 0, 1, 4096).await;
        area.flush().await.unwrap();
        drop(area);
        let area = open(&doors.restarted(doors.images()), &one()).await;
        area.open_lease(slice(1), &lease(2), &facts(1, REGION, 7 * REGION)).await.unwrap();
        assert!(area.mark_open(slice(1), epoch(2)).await.unwrap());
        write(&area, 1, 2 * REGION, 1, 4096).await;
        area.seed(slice(1), &seed(true, &[(2, 1)])).await.unwrap();
        area.set_state(slice(1), epoch(2), &state(2, false, &[(2, true)])).await.unwrap();
        assert_eq!(entries(&area).await, [(0, true, ALL), (2, true, 1)]);
        // H3: it stays hot over a clean end while the legs are not equal.
        area.close_clean(slice(1), epoch(2)).await.unwrap();
        assert_eq!(entries(&area).await, [(0, true, ALL), (2, false, 1)]);
    });
}

#[test]
fn s5_maps_that_a_returning_leg_takes_over_gather_writes_before_its_label_counts() {
    with_area(false, async |doors, area| {
        let own = SliceFacts { legs: 3, in_sync: vec![false, true, false], ..facts(1, REGION, 7 * REGION) };
        area.prepare_slice(&own).await.unwrap();
        area.open_lease(slice(1), &lease(1), &own).await.unwrap();
        area.mark_open(slice(1), epoch(1)).await.unwrap();
        let seed = Seed { leg: 2, since: generation(1), reset: true, entries: (0..4).map(|n| (n, 1 << n)).collect() };
        area.seed(slice(1), &seed).await.unwrap();
        write(&area, 1, 5 * REGION, 1, 4096).await;
        area.cool(slice(1), &[5]).await.unwrap();
        let stale = vec![StaleMark { leg: 2, since: generation(1), seeded: true }];
        let state = SetState { generation: generation(2), in_sync: vec![true, true, false], equalised: false, stale };
        area.set_state(slice(1), epoch(1), &state).await.unwrap();
        area.flush().await.unwrap();
        drop(area);
        let area = open(&doors.restarted(doors.images()), &one()).await;
        let reply = area.map(slice(1), MapWhich::All, 0, 7 * REGION).await.unwrap();
        let found: Vec<(u32, u64)> = reply.entries.iter().map(|entry| (entry.region, entry.missed)).collect();
        assert_eq!(found, [(0, 1), (1, 2), (2, 4), (3, 8), (5, 1)]);
        assert_eq!(area.map(slice(1), MapWhich::Leg(1), 0, 7 * REGION).await.unwrap().since, None);
    });
}

#[test]
fn p2_a_wipe_leaves_no_maps_no_checksums_and_nothing_hot() {
    with_area(true, async |doors, area| {
        ready(&area).await;
        write(&area, 1, 0, 1, 4096).await;
        write(&area, 1, REGION, 1, 4096).await;
        area.seed(slice(1), &seed(true, &[(1, 2), (4, 4)])).await.unwrap();
        area.set_state(slice(1), epoch(1), &state(2, false, &[(2, true)])).await.unwrap();
        area.cool(slice(1), &[1]).await.unwrap();
        area.wipe_slice(slice(1), epoch(9), true, &|_, _| {}).await.unwrap();
        let reserve = crate::layout::Reserve::of(one()[0].length);
        let image = doors.images().remove(&PathBuf::from("/disk")).unwrap();
        let rest = image.read(reserve.map_entry(0), (reserve.sums(reserve.regions) - reserve.map_entry(0)) as usize);
        assert!(rest.iter().all(|byte| *byte == 0));
        for area in [area, open(&doors.restarted(doors.images()), &one()).await] {
            area.prepare_slice(&facts(5, 0, 8 * REGION)).await.unwrap();
            assert_eq!(area.hot_count(slice(5)), 0);
            assert_eq!(checked(&area, 5, 0, 1 << 20).await, (vec![0; 1 << 20], true, false));
        }
    });
}
