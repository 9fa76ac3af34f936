//! Slices, epochs, states (L4, L5, F1, F6).

use super::memory::{MemoryDoors, with_files};
use super::*;
use crate::AreaErrorKind as Kind;
use sublet_wire::message::SetState;

fn one() -> [PieceSpec; 1] {
    [piece("/disk", 32 * MIB)]
}

fn with_area(test: impl AsyncFnOnce(MemoryDoors, Rc<Area<MemoryDoors>>)) {
    with_files(&[("/disk", file_size_for(32 * MIB))], false, async |doors| {
        let area = made(&doors, &one()).await;
        test(doors.clone(), area).await;
    });
}

fn kind<T: std::fmt::Debug>(result: Result<T, crate::AreaError>) -> Kind {
    result.unwrap_err().kind
}

#[test]
fn test_l5_a_slice_that_overlaps_another_is_refused() {
    with_area(async |_, area| {
        area.prepare_slice(&facts(1, 2 * REGION, 2 * REGION)).await.unwrap();
        for (offset, length) in [(2, 2), (1, 2), (3, 1), (0, 8), (3, 5)] {
            let error = area.prepare_slice(&facts(2, offset * REGION, length * REGION)).await.unwrap_err();
            assert_eq!(error.kind, Kind::Overlap);
            assert!(error.to_string().contains("vol-1"), "{error}");
        }
        for (n, offset, length) in [(2, 0, 2), (3, 4, 4)] {
            area.prepare_slice(&facts(n, offset * REGION, length * REGION)).await.unwrap();
        }
        assert_eq!(area.report("").slices.len(), 3);
    });
}

#[test]
fn slices_lie_on_regions_inside_the_area() {
    with_area(async |_, area| {
        assert_eq!(kind(area.prepare_slice(&facts(1, 4096, REGION)).await), Kind::OutOfRange);
        assert_eq!(kind(area.prepare_slice(&facts(1, 0, REGION + 4096)).await), Kind::OutOfRange);
        assert_eq!(kind(area.prepare_slice(&facts(1, 0, 0)).await), Kind::OutOfRange);
        assert_eq!(kind(area.prepare_slice(&facts(1, 28 * MIB, 8 * MIB)).await), Kind::Full);
        assert_eq!(kind(area.prepare_slice(&facts(1, u64::MAX / REGION * REGION, REGION)).await), Kind::Full);
        assert_eq!(
            kind(area.prepare_slice(&SliceFacts { area: AreaId::from_u128(9), ..facts(1, 0, REGION) }).await),
            Kind::Disagreement
        );
        assert_eq!(
            kind(area.prepare_slice(&SliceFacts { in_sync: vec![true], ..facts(1, 0, REGION) }).await),
            Kind::Disagreement
        );
        assert_eq!(
            kind(area.prepare_slice(&SliceFacts { segment_length: 2 * REGION, ..facts(1, 0, REGION) }).await),
            Kind::OutOfRange
        );
        assert_eq!(area.report("").slices.len(), 0);
    });
}

#[test]
fn preparing_again_brings_facts_up_to_date_but_never_the_generation_back() {
    with_area(async |doors, area| {
        let first = SliceFacts { generation: generation(4), in_sync: vec![true, false], ..facts(1, 0, REGION) };
        area.prepare_slice(&first).await.unwrap();
        let renamed = SliceFacts {
            volume_name: "other".parse().unwrap(),
            borrower: None,
            generation: generation(3),
            ..facts(1, 0, REGION)
        };
        area.prepare_slice(&renamed).await.unwrap();
        assert_eq!(kind(area.prepare_slice(&facts(1, REGION, REGION)).await), Kind::Disagreement);
        let split = SliceFacts { generation: Generation { number: 4, random: 1 }, ..first.clone() };
        assert_eq!(kind(area.prepare_slice(&split).await), Kind::Disagreement);
        drop(area);
        let kept = open(&doors, &one()).await.slice_facts(slice(1)).unwrap();
        assert_eq!(kept, SliceFacts { volume_name: "other".parse().unwrap(), borrower: None, ..first });
    });
}

#[test]
fn test_f1_epochs_never_go_back_and_a_fence_outlives_a_restart() {
    with_area(async |doors, area| {
        let facts = facts(1, 0, REGION);
        assert_eq!(kind(area.open_lease(slice(1), &lease(5), &facts).await), Kind::NoSlice);
        area.prepare_slice(&facts).await.unwrap();
        area.open_lease(slice(1), &lease(5), &facts).await.unwrap();
        area.open_lease(slice(1), &lease(5), &facts).await.unwrap();
        area.check_open(&open_request(&facts, &lease(5))).unwrap();
        assert_eq!(kind(area.open_lease(slice(1), &lease(4), &facts).await), Kind::StaleEpoch);
        let split = Lease { epoch: Epoch { number: 5, random: 1 }, ..lease(5) };
        assert_eq!(kind(area.open_lease(slice(1), &split, &facts).await), Kind::Disagreement);
        drop(area);
        // A restarted agent admits the present client without the manager.
        let area = open(&doors, &one()).await;
        area.check_open(&open_request(&facts, &lease(5))).unwrap();
        area.fence(slice(1), epoch(4)).await.unwrap();
        area.check_open(&open_request(&facts, &lease(5))).unwrap();
        area.fence(slice(1), epoch(6)).await.unwrap();
        area.fence(slice(1), epoch(6)).await.unwrap();
        for area in [area, { open(&doors, &one()).await }] {
            assert_eq!(kind(area.check_open(&open_request(&facts, &lease(5)))), Kind::StaleEpoch);
            assert_eq!(kind(area.mark_open(slice(1), epoch(5)).await), Kind::StaleEpoch);
            assert_eq!(kind(area.open_lease(slice(1), &lease(5), &facts).await), Kind::StaleEpoch);
            assert_eq!((area.report("").slices[0].epoch, area.report("").slices[0].admitted), (epoch(6), false));
        }
    });
}

#[test]
fn fencing_with_the_epoch_itself_ends_its_sessions_too() {
    with_area(async |_, area| {
        let facts = facts(1, 0, REGION);
        area.prepare_slice(&facts).await.unwrap();
        area.open_lease(slice(1), &lease(5), &facts).await.unwrap();
        area.fence(slice(1), epoch(5)).await.unwrap();
        assert_eq!(kind(area.check_open(&open_request(&facts, &lease(5)))), Kind::StaleEpoch);
        assert_eq!(
            kind(
                area.set_state(
                    slice(1),
                    epoch(5),
                    &SetState { generation: generation(2), in_sync: vec![true, true], equalised: false, stale: Vec::new() }
                )
                .await
            ),
            Kind::StaleEpoch
        );
    });
}

#[test]
fn test_f6_open_is_refused_for_every_single_difference() {
    with_area(async |_, area| {
        let facts = SliceFacts { generation: generation(5), ..facts(1, 0, REGION) };
        area.prepare_slice(&facts).await.unwrap();
        area.open_lease(slice(1), &lease(5), &facts).await.unwrap();
        let good = open_request(&facts, &lease(5));
        area.check_open(&good).unwrap();
        let cases = [
            (Open { area: AreaId::from_u128(9), ..good.clone() }, Kind::NoSlice),
            (Open { slice: slice(9), ..good.clone() }, Kind::NoSlice),
            (Open { volume: VolumeId::from_u128(9), ..good.clone() }, Kind::Disagreement),
            (Open { way: Way::Single, ..good.clone() }, Kind::Disagreement),
            (Open { segment: 1, ..good.clone() }, Kind::Disagreement),
            (Open { segment_length: REGION - 4096, ..good.clone() }, Kind::Disagreement),
            (Open { leg: 1, ..good.clone() }, Kind::Disagreement),
            (Open { generation: generation(3), ..good.clone() }, Kind::Disagreement),
            (Open { generation: generation(7), ..good.clone() }, Kind::Disagreement),
            (Open { generation: Generation { number: 5, random: 1 }, ..good.clone() }, Kind::Disagreement),
            (Open { borrower: ServerId::from_u128(9), ..good.clone() }, Kind::NotYours),
            (Open { secret: LeaseSecret::from_u128(9), ..good.clone() }, Kind::NotYours),
            (Open { epoch: epoch(4), ..good.clone() }, Kind::StaleEpoch),
            (Open { epoch: epoch(6), ..good.clone() }, Kind::NotYours),
            (Open { epoch: Epoch { number: 5, random: 1 }, ..good.clone() }, Kind::Disagreement),
        ];
        for (open, expected) in cases {
            assert_eq!(kind(area.check_open(&open)), expected, "{open:?}");
        }
        // A SET_STATE whose reply was lost leaves client and label one step apart.
        for n in [4, 6] {
            area.check_open(&Open { generation: generation(n), ..good.clone() }).unwrap();
        }
        // S5: a target's label may be of any generation; one that is ahead is from a return that was broken off.
        for n in [3, 4, 9] {
            area.check_open(&Open { generation: generation(n), mode: OpenMode::Target, ..good.clone() }).unwrap();
        }
    });
}

#[test]
fn a_stale_leg_is_opened_as_a_target_only() {
    with_area(async |_, area| {
        let facts = SliceFacts { in_sync: vec![false, true], generation: generation(2), ..facts(1, 0, REGION) };
        area.prepare_slice(&facts).await.unwrap();
        area.open_lease(slice(1), &lease(5), &facts).await.unwrap();
        let open = open_request(&facts, &lease(5));
        assert!(area.check_open(&open).unwrap_err().to_string().contains("stale"));
        area.check_open(&Open { mode: OpenMode::Target, ..open.clone() }).unwrap();
        let back = SetState { generation: generation(4), in_sync: vec![true, true], equalised: false, stale: Vec::new() };
        area.set_state(slice(1), epoch(5), &back).await.unwrap();
        area.check_open(&Open { generation: generation(4), ..open }).unwrap();
    });
}

#[test]
fn states_move_forward_only_and_are_kept() {
    with_area(async |doors, area| {
        let facts = facts(1, 0, REGION);
        area.prepare_slice(&facts).await.unwrap();
        area.open_lease(slice(1), &lease(5), &facts).await.unwrap();
        let state = |number, in_sync: &[bool]| SetState {
            generation: generation(number),
            in_sync: in_sync.to_vec(),
            equalised: false,
            stale: Vec::new(),
        };
        area.set_state(slice(1), epoch(5), &state(3, &[true, false])).await.unwrap();
        area.set_state(slice(1), epoch(5), &state(3, &[true, false])).await.unwrap();
        assert_eq!(kind(area.set_state(slice(1), epoch(5), &state(2, &[true, true])).await), Kind::Disagreement);
        assert_eq!(kind(area.set_state(slice(1), epoch(5), &state(4, &[true])).await), Kind::Disagreement);
        assert_eq!(kind(area.set_state(slice(1), epoch(4), &state(4, &[true, true])).await), Kind::StaleEpoch);
        let split = SetState { generation: Generation { number: 3, random: 1 }, ..state(3, &[true, true]) };
        assert_eq!(kind(area.set_state(slice(1), epoch(5), &split).await), Kind::Disagreement);
        drop(area);
        let area = open(&doors, &one()).await;
        let kept = area.slice_facts(slice(1)).unwrap();
        assert_eq!((kept.generation, kept.in_sync), (generation(3), vec![true, false]));
    });
}

#[test]
fn the_open_flag_makes_the_next_epoch_unclean_until_the_legs_are_equal() {
    with_area(async |doors, area| {
        let facts = facts(1, 0, REGION);
        area.prepare_slice(&facts).await.unwrap();
        area.open_lease(slice(1), &lease(5), &facts).await.unwrap();
        assert!(!area.mark_open(slice(1), epoch(5)).await.unwrap());
        drop(area);
        // The same epoch again (the agent restarted): its client is still there.
        let area = open(&doors, &one()).await;
        assert!(!area.mark_open(slice(1), epoch(5)).await.unwrap());
        // Closed, and the next one is clean.
        area.close_clean(slice(1), epoch(5)).await.unwrap();
        area.open_lease(slice(1), &lease(6), &facts).await.unwrap();
        assert!(!area.mark_open(slice(1), epoch(6)).await.unwrap());
        // Not closed, and the next one is not; closing does not make the legs equal, nor does a restart.
        area.fence(slice(1), epoch(7)).await.unwrap();
        area.open_lease(slice(1), &lease(8), &facts).await.unwrap();
        assert!(area.mark_open(slice(1), epoch(8)).await.unwrap());
        area.close_clean(slice(1), epoch(8)).await.unwrap();
        drop(area);
        let area = open(&doors, &one()).await;
        area.open_lease(slice(1), &lease(9), &facts).await.unwrap();
        assert!(area.mark_open(slice(1), epoch(9)).await.unwrap());
        assert_eq!(area.slice_state(slice(1)), Some((generation(1), true)));
        let equal = SetState { generation: generation(1), in_sync: vec![true, true], equalised: true, stale: Vec::new() };
        area.set_state(slice(1), epoch(9), &equal).await.unwrap();
        assert!(!area.mark_open(slice(1), epoch(9)).await.unwrap());
    });
}

#[test]
fn test_l4_every_field_of_a_slice_reads_back_from_the_label() {
    with_area(async |doors, area| {
        let mut facts = facts(u128::MAX, 4 * MIB, 8 * MIB);
        facts.volume = VolumeId::from_u128(u128::MAX - 5);
        facts.volume_name = "x".repeat(63).parse().unwrap();
        facts.segment = 200;
        facts.segments = 256;
        facts.segment_length = 5 * MIB + 4096;
        facts.volume_size = u64::MAX;
        (facts.leg, facts.legs, facts.in_sync) = (3, 4, vec![false, true, false, true]);
        facts.generation = Generation { number: crate::envelope::COUNT_MAX, random: u128::MAX };
        area.prepare_slice(&facts).await.unwrap();
        let read_only = Lease { read_only: true, ..lease(u64::MAX / 2000) };
        area.open_lease(facts.slice, &read_only, &facts).await.unwrap();
        area.mark_open(facts.slice, read_only.epoch).await.unwrap();
        let before = area.inner.label();
        drop(area);
        let area = open(&doors, &one()).await;
        assert_eq!(area.inner.label().slices, before.slices);
        assert_eq!(area.slice_facts(facts.slice), Some(facts.clone()));
        assert!(area.lease_read_only(facts.slice));
    });
}

#[test]
fn a_label_holds_a_thousand_slices_and_refuses_the_next() {
    let capacity = 1001 * REGION;
    with_files(&[("/disk", file_size_for(capacity))], false, async |doors| {
        let pieces = [piece("/disk", capacity)];
        let area = made(&doors, &pieces).await;
        for n in 0..1000 {
            area.prepare_slice(&facts(n * 7919 % 1000 + 1, n as u64 * REGION, REGION)).await.unwrap();
        }
        assert_eq!(kind(area.prepare_slice(&facts(1001, 1000 * REGION, REGION)).await), Kind::Full);
        drop(area);
        let area = open(&doors, &pieces).await;
        assert_eq!(area.report("").slices.len(), 1000);
        for n in [0, 1, 500, 999] {
            assert_eq!(area.slice_facts(slice(n * 7919 % 1000 + 1)).unwrap().offset, n as u64 * REGION);
        }
    });
}

#[test]
fn changes_asked_for_at_the_same_time_are_made_one_after_another() {
    with_area(async |doors, area| {
        let work = (1..=8).map(async |n| area.prepare_slice(&facts(n, (n as u64 - 1) * REGION, REGION)).await);
        for result in futures_util::future::join_all(work).await {
            result.unwrap();
        }
        // An abandoned change is made all the same, and does not disturb the next one.
        {
            let (lease, facts) = (lease(5), facts(1, 0, REGION));
            let abandoned = std::pin::pin!(area.open_lease(slice(1), &lease, &facts));
            let _ = futures_util::poll!(abandoned);
        }
        area.fence(slice(2), epoch(3)).await.unwrap();
        drop(area);
        let slices = open(&doors, &one()).await.report("").slices;
        assert_eq!(slices.len(), 8);
        assert_eq!((slices[0].epoch, slices[1].epoch), (epoch(5), epoch(3)));
    });
}

#[test]
fn ranges_outside_of_the_segment_or_off_the_blocks_are_refused() {
    with_area(async |_, area| {
        let facts = SliceFacts { segment_length: 4 * MIB + 4096, ..facts(1, 0, 2 * REGION) };
        area.prepare_slice(&facts).await.unwrap();
        area.prepare_slice(&super::facts(2, 2 * REGION, REGION)).await.unwrap();
        write(&area, 2, 0, 9, 4096).await;
        write(&area, 1, 4 * MIB, 1, 4096).await;
        for (offset, length) in
            [(4 * MIB + 4096, 4096), (4 * MIB, 8192), (u64::MAX - 4095, 4096), (1, 4096), (0, 100), (8 * MIB, 4096)]
        {
            let refused = put(&area, 1, offset, vec![1; length]).await;
            assert_eq!(kind(refused), Kind::OutOfRange, "{offset}+{length}");
            let (refused, _) = area.read(slice(1), offset, Buffer::new(length), 0..length, &mut []).await;
            assert_eq!(kind(refused), Kind::OutOfRange, "{offset}+{length}");
            assert_eq!(kind(area.write_zeroes(slice(1), offset, length as u64, true).await), Kind::OutOfRange);
        }
        assert_eq!(kind(put(&area, 3, 0, vec![1; 4096]).await), Kind::NoSlice);
        assert_eq!(read(&area, 2, 0, 4096).await, vec![9; 4096]);
    });
}
