use sublet_api::order::SliceFacts;
use sublet_api::server::{AreaReport, LeaseReport};
use sublet_types::{PoolId, SliceId, VolumeId, Way};

use super::*;
use crate::table::Table;

/// A label of leg `leg` of `in_sync.len()`: generation, set, epoch, admitted.
fn report(leg: u32, generation: (u64, u128), in_sync: &[bool], epoch: u64, admitted: bool) -> SliceReport {
    let borrower = Some(ServerId::from_u128(9));
    SliceReport {
        facts: SliceFacts {
            slice: SliceId::from_u128(u128::from(leg) + 1),
            area: AreaId::from_u128(u128::from(leg) + 1),
            offset: 0,
            length: 4 << 20,
            volume: VolumeId::from_u128(1),
            volume_name: "v".parse().unwrap(),
            way: Way::Doubled,
            volume_size: 4 << 20,
            segment: 0,
            segments: 1,
            segment_length: 4 << 20,
            leg,
            legs: u32::try_from(in_sync.len()).unwrap(),
            generation: Generation { number: generation.0, random: generation.1 },
            in_sync: in_sync.to_vec(),
            borrower,
            defined: false,
            sealed: false,
        },
        epoch: Epoch { number: epoch, random: u128::from(epoch) },
        admitted,
        wiping: false,
        drop: false,
        lease: borrower.map(|borrower| LeaseReport { borrower, read_only: false, secret: Some(LeaseSecret::from_u128(5)) }),
        open: admitted,
        unclean: false,
        missed_since: Vec::new(),
        hot: 0,
    }
}

fn seen(reports: &[SliceReport]) -> BTreeMap<u32, Seen<'_>> {
    let one = |slice| Seen { server: ServerId::from_u128(1), area: AreaId::from_u128(1), slice, trusted: true, given_up: false };
    reports.iter().map(|slice| (slice.facts.leg, one(slice))).collect()
}

const T: bool = true;
const F: bool = false;

#[test]
fn r1_the_in_sync_set_is_what_the_labels_prove() {
    type Case<'a> = (&'a str, Vec<(u64, &'a [bool])>, bool, &'a [u32], u64, bool);
    let cases: Vec<Case<'_>> = vec![
        ("all agree", vec![(3, &[T, T]), (3, &[T, T])], F, &[0, 1], 3, F),
        ("a leg has left", vec![(4, &[T, F]), (3, &[T, T])], F, &[0], 4, F),
        ("a leg has left and its label knows", vec![(4, &[T, F]), (4, &[T, F])], F, &[0], 4, F),
        // S5: the target's label is written before the commit.
        ("a return that nobody confirmed", vec![(2, &[T, F]), (3, &[T, T])], F, &[0], 2, T),
        ("the same while mounted", vec![(2, &[T, F]), (3, &[T, T])], T, &[0], 2, F),
        ("one survivor knows of the return", vec![(3, &[T, T, T]), (2, &[T, T, F]), (3, &[T, T, T])], F, &[0, 1], 2, T),
        // Whoever has not heard of the newest generation is not believed to have all.
        ("a member that is behind", vec![(9, &[T, T]), (5, &[T, T])], F, &[0], 9, T),
        ("the same while mounted", vec![(9, &[T, T]), (5, &[T, T])], T, &[0, 1], 9, F),
        ("only the stale leg has heard", vec![(1, &[T, T]), (2, &[T, F])], F, &[0], 2, F),
    ];
    for (name, labels, mounted, expected, generation, is_new) in cases {
        let reports: Vec<SliceReport> = labels
            .iter()
            .enumerate()
            .map(|(leg, (number, set))| report(u32::try_from(leg).unwrap(), (*number, 1), set, 1, F))
            .collect();
        let set = in_sync(&seen(&reports), mounted).unwrap();
        assert_eq!((set.in_sync.as_slice(), set.generation.number, set.is_new), (expected, generation, is_new), "{name}");
        assert_eq!(split(&seen(&reports)), None, "{name}");
    }
}

/// Generation, and what the label says of itself and of the other leg: of leg 0, which is behind, and of leg 1.
#[test]
fn r1_a_label_of_a_slice_that_is_no_more_that_copy_stands_for_nobody() {
    type Label = (u64, [bool; 2]);
    let cases: [(&str, Label, Label, bool); 10] = [
        ("it lags behind a return", (2, [T, F]), (3, [T, T]), T),
        ("a return that was given up, and others since a rebuild", (2, [T, F]), (1003, [T, T]), T),
        ("a withdrawal that it has not heard of", (1, [T, T]), (3, [T, T]), T),
        ("it is stale, and nobody hides that", (1, [T, T]), (2, [F, T]), T),
        ("it says itself that it is stale", (2, [F, T]), (3, [T, T]), F),
        ("it has the newest generation", (3, [T, T]), (3, [T, T]), T),
        ("it is from before a fork", (2, [T, T]), (FORK_JUMP + 2, [T, T]), F),
        ("it is from before a fork, and was ahead of what was accepted", (12, [T, T]), (FORK_JUMP + 8, [T, T]), F),
        ("as above, after another rebuild", (1007, [T, T]), (FORK_JUMP + 8, [T, T]), F),
        ("it is from before a fork, and nobody says that it is in sync", (2, [T, T]), (FORK_JUMP + 2, [F, T]), T),
    ];
    for (name, old, new, expected) in cases {
        let label = |leg, (number, set): Label| report(leg, (number, 1), &set, 1, F);
        let reports = [label(0, old), label(1, new)];
        let left = |own: Option<SliceId>| {
            let mut legs = seen(&reports);
            drop_former(&mut legs, |slice| Some(slice) == own);
            legs.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(left(None), if expected { vec![0, 1] } else { vec![1] }, "{name}");
        assert_eq!(left(Some(SliceId::from_u128(1))), [0, 1], "{name}: the table knows it");
    }
    let mut reports = [report(0, (2, 1), &[F, T], 1, F), report(1, (3, 1), &[T, T], 1, F)];
    let mut legs = seen(&reports);
    legs.get_mut(&0).unwrap().trusted = false;
    assert!(drop_former(&mut legs, |_| false).is_empty(), "L2: its label may have gone back in time");
    reports.iter_mut().for_each(|label| label.facts.borrower = None);
    assert!(drop_former(&mut seen(&reports), |_| false).is_empty(), "a free volume is in sync, whatever its labels say");
}

fn area(slices: Vec<SliceReport>) -> AreaReport {
    AreaReport {
        area: AreaId::from_u128(1),
        pool: PoolId::from_u128(1),
        name: "a1".parse().unwrap(),
        capacity: 64 << 20,
        place: String::new(),
        sparse: false,
        offline: None,
        open: None,
        sequence: 1,
        slices,
        history: Vec::new(),
        quarantined: None,
        failures: 0,
        tombstones: Vec::new(),
    }
}

#[test]
fn l5_a_replaced_copy_leads_if_its_successor_is_older_and_another_copy_has_left_it() {
    let successor = |number| {
        let mut label = report(1, (number, 1), &[T, F], 7, F);
        label.facts.slice = SliceId::from_u128(77);
        label
    };
    let own = |set: [bool; 2]| report(1, (4, 1), &set, 7, F);
    let source = |number| report(0, (number, 1), &[T, T], 7, F);
    let leads = |label: &SliceReport, others: Vec<SliceReport>, epoch| {
        let mut slices = others;
        slices.push(label.clone());
        let server = ServerId::from_u128(1);
        crate::plan::rebuild::leads(&Table::default(), &[(server, &area(slices))], Epoch { number: epoch, random: 7 }, label)
    };
    assert!(leads(&own([F, T]), vec![source(3), successor(2)], 7));
    assert!(!leads(&own([F, T]), vec![source(3), successor(4)], 7), "its successor was made by somebody who knew of it");
    assert!(!leads(&own([F, T]), vec![source(5), successor(2)], 7), "another copy knows of more");
    assert!(!leads(&own([T, T]), vec![source(3), successor(2)], 7), "the other copy has all that it has");
    assert!(!leads(&own([F, T]), vec![source(3)], 7), "its successor may know of more");
    let mut stale = source(3);
    stale.facts.in_sync = vec![F, T];
    assert!(
        !leads(&own([F, T]), vec![stale, successor(2)], 7),
        "that one has left is known to the others: it was about to return"
    );
    assert!(!leads(&own([F, T]), vec![source(3), successor(2)], 8), "it was replaced after its epoch");
}

#[test]
fn l2_a_leg_in_a_quarantined_area_is_not_in_sync_while_another_is() {
    let reports = [report(0, (3, 1), &[T, T], 1, F), report(1, (3, 1), &[T, T], 1, F)];
    let mut legs = seen(&reports);
    legs.get_mut(&0).unwrap().trusted = false;
    let set = in_sync(&legs, false).unwrap();
    assert_eq!((set.in_sync.as_slice(), set.is_new), (&[1][..], true));
}

#[test]
fn r1_equal_numbers_of_two_histories_are_a_split() {
    let reports = [report(0, (3, 1), &[T, F], 1, F), report(1, (3, 2), &[F, T], 1, F)];
    assert_eq!(split(&seen(&reports)), Some(3));
    let reports = [report(0, (3, 1), &[T, F], 1, F), report(1, (3, 1), &[F, T], 1, F)];
    assert_eq!(split(&seen(&reports)), Some(3), "one history has one set");
    let mut other = report(1, (3, 1), &[T, T], 4, F);
    other.epoch.random = 77;
    let reports = [report(0, (3, 1), &[T, T], 4, F), other];
    let all: Vec<Seen<'_>> = seen(&reports).into_values().collect();
    assert_eq!(epochs_split(&all), Some(4));
}

#[test]
fn r1_mounted_is_what_all_labels_of_the_newest_epoch_admit() {
    let all = |reports: &[SliceReport]| held(&seen(reports).into_values().collect::<Vec<_>>(), 1);
    let open = all(&[report(0, (1, 1), &[T, T], 7, T), report(1, (1, 1), &[T, T], 7, T)]);
    assert_eq!(open.lease.unwrap().epoch.number, 7);
    // A lender that was away when it was mounted.
    let behind = all(&[report(0, (2, 1), &[T, F], 7, T), report(1, (1, 1), &[T, T], 3, T)]);
    assert_eq!(behind.lease.unwrap().epoch.number, 7);
    // It was being unmounted, or a mount was being undone: somebody is still let in.
    let closing = all(&[report(0, (1, 1), &[T, T], 8, F), report(1, (1, 1), &[T, T], 7, T)]);
    assert_eq!((closing.lease, closing.epoch.number, closing.must_fence), (None, 8, false));
    let undone = all(&[report(0, (1, 1), &[T, T], 7, F), report(1, (1, 1), &[T, T], 7, T)]);
    assert_eq!((undone.lease, undone.must_fence), (None, true));
    let mut background = report(0, (1, 1), &[T], 7, T);
    background.lease.as_mut().unwrap().borrower = ServerId::from_u128(3);
    assert!(all(&[background]).must_fence, "a lease of background work is not a mount (F5)");
}
