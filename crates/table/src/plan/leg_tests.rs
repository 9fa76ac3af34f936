use std::collections::BTreeSet;

use sublet_types::{AreaId, Epoch, LeaseSecret, SliceId, Way};

use super::*;
use crate::records::{FrozenUntil, LeaseRow, LeaseState, LegRow, PathRow, WorkRow};

const EPOCH: Epoch = Epoch { number: 5, random: 55 };

fn generation(number: u64) -> Generation {
    Generation { number, random: u128::from(number) }
}

/// A mounted volume with one segment of so many in-sync legs, slices 1, 2, ... at generation 1.
fn table(in_sync: &[bool]) -> Table {
    let leg = |(index, in_sync): (usize, &bool)| LegRow {
        slice: SliceId::from_u128(index as u128 + 1),
        area: AreaId::from_u128(index as u128 + 1),
        offset: 0,
        length: 1 << 22,
        in_sync: *in_sync,
        confirmed: 5,
        fresh: false,
        stale_since: None,
    };
    let legs = in_sync.iter().enumerate().map(leg).collect();
    let segment = SegmentRow { length: 1 << 22, generation: generation(1), issued: 1, pending: None, last: None, legs };
    let lease = LeaseRow {
        epoch: EPOCH,
        secret: LeaseSecret::from_u128(1),
        read_only: false,
        state: LeaseState::Active,
        was_mounted: false,
    };
    let mut table = Table::default();
    table.put(Row::Volume(Box::new(VolumeRow {
        version: 1,
        id: VolumeId::from_u128(9),
        name: "v".parse().unwrap(),
        way: Way::Doubled,
        size: 1 << 22,
        defined: false,
        sealed: false,
        seal: None,
        borrower: None,
        epoch: EPOCH,
        lease: Some(lease),
        segments: vec![segment],
        task: None,
        frozen: None,
        frozen_until: FrozenUntil::default(),
        path: PathRow::default(),
        epoch_floor: 0,
        unsettled: false,
        absent: Vec::new(),
        copies: 0,
        work: WorkRow::default(),
    })));
    table
}

/// Applies a change; generations that are issued get their number as random part.
fn apply(table: &mut Table, slice: u128, known: u64, change: LegChange) -> Result<(u64, Vec<bool>), ErrorKind> {
    let volume = VolumeId::from_u128(9);
    let next = u128::from(table.volumes[&volume].segments[0].issued + 1);
    let mut random = || next;
    let reachable = BTreeSet::new();
    let mut context = Context { now_ms: 1, random: &mut random, reachable: &reachable };
    let change = ChangeLeg { epoch: EPOCH, segment: 0, slice: SliceId::from_u128(slice), generation: generation(known), change };
    let (rows, answer) = plan(table, volume, &change, &mut context).map_err(|refusal| refusal.kind)?;
    rows.puts.into_iter().for_each(|row| table.put(row));
    Ok((answer.generation.number, answer.in_sync))
}

#[test]
fn s1_s2_s5_every_sequence_of_changes_is_compare_and_set_and_repeatable() {
    use LegChange::{InSync, Returning, Stale, Withdrawn};
    let conflict = Err(ErrorKind::Conflict);
    type Steps<'a> = &'a [(u128, u64, LegChange, Result<(u64, &'a [bool]), ErrorKind>)];
    let cases: &[(&str, &[bool], Steps<'_>)] = &[
        (
            "leave, and the same again",
            &[true, true],
            &[(2, 1, Stale, Ok((2, &[true, false]))), (2, 1, Stale, Ok((2, &[true, false])))],
        ),
        ("stale already", &[true, false], &[(2, 1, Stale, Ok((1, &[true, false])))]),
        ("the last one never leaves", &[true, true], &[(2, 1, Stale, Ok((2, &[true, false]))), (1, 2, Stale, conflict)]),
        ("an old generation", &[true, true, true], &[(2, 1, Stale, Ok((2, &[true, false, true]))), (3, 1, Stale, conflict)]),
        (
            "return",
            &[true, false],
            &[
                (2, 1, InSync, conflict),
                (2, 1, Returning, Ok((2, &[true, false]))),
                (2, 1, Returning, Ok((2, &[true, false]))),
                (2, 1, InSync, Ok((2, &[true, true]))),
                (2, 1, InSync, Ok((2, &[true, true]))),
                (2, 2, Returning, conflict),
                (2, 2, Stale, Ok((3, &[true, false]))),
            ],
        ),
        (
            "a change between makes the issued generation void, and its number is not used again",
            &[true, true, false],
            &[
                (3, 1, Returning, Ok((2, &[true, true, false]))),
                (2, 1, Stale, Ok((3, &[true, false, false]))),
                (3, 1, InSync, conflict),
                (3, 3, InSync, conflict),
                (3, 3, Returning, Ok((4, &[true, false, false]))),
                (3, 3, InSync, Ok((4, &[true, false, true]))),
            ],
        ),
        (
            "withdrawn, known by the new generation or, if its answer was lost, by the old one",
            &[true, true],
            &[
                (2, 1, Stale, Ok((2, &[true, false]))),
                (2, 2, Withdrawn, Ok((3, &[true, true]))),
                (2, 2, Withdrawn, Ok((3, &[true, true]))),
                (2, 3, Stale, Ok((4, &[true, false]))),
                (2, 3, Withdrawn, Ok((5, &[true, true]))),
            ],
        ),
        ("withdrawn although it never arrived", &[true, true], &[(2, 1, Withdrawn, Ok((1, &[true, true])))]),
        (
            "not withdrawn after another change",
            &[true, true, true],
            &[
                (2, 1, Stale, Ok((2, &[true, false, true]))),
                (3, 2, Stale, Ok((3, &[true, false, false]))),
                (2, 3, Withdrawn, conflict),
            ],
        ),
        ("not withdrawn by a later mount", &[true, false], &[(2, 1, Withdrawn, conflict)]),
        ("no such slice", &[true, true], &[(7, 1, Stale, Err(ErrorKind::BadRequest))]),
    ];
    for (name, legs, steps) in cases {
        let mut table = table(legs);
        for (index, (slice, known, change, expected)) in steps.iter().enumerate() {
            let found = apply(&mut table, *slice, *known, *change);
            let expected = (*expected).map(|(generation, in_sync)| (generation, in_sync.to_vec()));
            assert_eq!(found, expected, "{name}, step {index}");
        }
    }
}

#[test]
fn s2_only_the_present_epoch_may_propose_anything() {
    let table = table(&[true, true]);
    let mut random = || 1;
    let reachable = BTreeSet::new();
    let mut context = Context { now_ms: 1, random: &mut random, reachable: &reachable };
    let (older, split, ahead) =
        (Epoch { number: 4, random: 55 }, Epoch { number: 5, random: 54 }, Epoch { number: 6, random: 1 });
    for epoch in [older, split, ahead] {
        let change =
            ChangeLeg { epoch, segment: 0, slice: SliceId::from_u128(2), generation: generation(1), change: LegChange::Stale };
        let refusal = plan(&table, VolumeId::from_u128(9), &change, &mut context).unwrap_err();
        // A table that is behind its clients tells none of them to stop, nor one whose number it has given out itself (L5).
        assert_eq!(refusal.kind, if epoch == older { ErrorKind::StaleEpoch } else { ErrorKind::Conflict });
    }
}
