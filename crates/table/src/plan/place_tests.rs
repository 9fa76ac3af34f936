use super::*;

const R: u64 = REGION_SIZE;

/// (area, server, zone, used, stretches in regions)
fn room(area: u128, server: u128, zone: &str, used: bool, stretches: &[(u64, u64)]) -> Room {
    Room {
        area: AreaId::from_u128(area),
        name: format!("a{area}").parse().unwrap(),
        server: ServerId::from_u128(server),
        zone: zone.to_owned(),
        unused: !used,
        stretches: stretches.iter().map(|(offset, length)| Stretch { offset: offset * R, length: length * R }).collect(),
    }
}

fn find(rooms: &[Room], size: u64, way: Option<Way>, copies: usize) -> Result<Layout, Refusal> {
    let rooms = Rooms { rooms: rooms.to_vec(), left_out: Vec::new() };
    let layout = place(&rooms, Wanted { size, way, copies })?;
    check(&rooms, &layout, size);
    Ok(layout)
}

/// What holds for every layout: the size, no two legs on one server (S6), nothing outside of the free stretches, no overlap.
fn check(rooms: &Rooms, layout: &Layout, size: u64) {
    assert_eq!(layout.size(), size.next_multiple_of(BLOCK_SIZE));
    let mut spots: Vec<Spot> = Vec::new();
    for segment in &layout.segments {
        let servers: BTreeSet<ServerId> =
            segment.legs.iter().map(|leg| rooms.rooms.iter().find(|room| room.area == leg.area).unwrap().server).collect();
        assert_eq!(servers.len(), segment.legs.len(), "S6: {layout:?}");
        for leg in &segment.legs {
            assert_eq!(leg.length, segment.length.next_multiple_of(R));
            assert_eq!(leg.offset % R, 0);
            let room = rooms.rooms.iter().find(|room| room.area == leg.area).unwrap();
            assert!(
                room.stretches.iter().any(|s| s.offset <= leg.offset && leg.offset + leg.length <= s.offset + s.length),
                "{leg:?}"
            );
            spots.push(*leg);
        }
    }
    for (index, a) in spots.iter().enumerate() {
        for b in spots.iter().skip(index + 1) {
            assert!(
                a.area != b.area || a.offset + a.length <= b.offset || b.offset + b.length <= a.offset,
                "overlap: {a:?} {b:?}"
            );
        }
    }
}

fn legs(layout: &Layout) -> Vec<Vec<(u128, u64, u64)>> {
    let spot = |leg: &Spot| (leg.area.to_u128(), leg.offset / R, leg.length / R);
    layout.segments.iter().map(|segment| segment.legs.iter().map(spot).collect()).collect()
}

#[test]
fn the_simplest_way_that_fits_is_chosen() {
    let rooms = [room(1, 1, "", false, &[(0, 8)]), room(2, 2, "", true, &[(0, 3), (5, 6)]), room(3, 3, "", false, &[(0, 20)])];
    type Case<'a> = (u64, Way, &'a [&'a [(u128, u64, u64)]]);
    let cases: &[Case<'_>] = &[
        // Fills a whole unused area.
        (8 * R, Way::Single, &[&[(1, 0, 8)]]),
        // So does a size that rounds up to it.
        (8 * R - 5, Way::Single, &[&[(1, 0, 8)]]),
        // The smallest stretch that fits, at its lowest offset.
        (R, Way::Divided, &[&[(2, 0, 1)]]),
        (4 * R, Way::Divided, &[&[(2, 5, 4)]]),
        (9 * R, Way::Divided, &[&[(3, 0, 9)]]),
    ];
    for (size, way, expected) in cases {
        let layout = find(&rooms, *size, None, 1).unwrap();
        assert_eq!((layout.way, legs(&layout)), (*way, expected.iter().map(|legs| legs.to_vec()).collect()), "{size}");
    }
    let over_several = find(&rooms, 30 * R, None, 1).unwrap();
    assert_eq!(over_several.way, Way::Integrated);
}

#[test]
fn single_takes_the_best_fitting_unused_area_and_keeps_the_asked_size() {
    let rooms = [room(1, 1, "", false, &[(0, 20)]), room(2, 2, "", false, &[(0, 9)]), room(3, 3, "", true, &[(0, 8)])];
    let layout = find(&rooms, 7 * R + 1, Some(Way::Single), 1).unwrap();
    assert_eq!(layout.size(), 7 * R + BLOCK_SIZE);
    assert_eq!(legs(&layout), [[(2, 0, 8)]]);
}

#[test]
fn integrated_spans_at_least_two_servers_evenly_as_far_as_room_allows() {
    let rooms = [room(1, 1, "", false, &[(0, 4)]), room(2, 2, "", false, &[(0, 20)]), room(3, 2, "", false, &[(0, 30)])];
    let layout = find(&rooms, 10 * R, Some(Way::Integrated), 1).unwrap();
    assert_eq!(legs(&layout), [[(1, 0, 4)], [(3, 0, 6)]]);
    let layout = find(&rooms, 6 * R, Some(Way::Integrated), 1).unwrap();
    assert_eq!(legs(&layout), [[(1, 0, 3)], [(3, 0, 3)]]);
    let layout = find(&rooms, 54 * R, Some(Way::Integrated), 1).unwrap();
    assert_eq!(layout.segments.len(), 3);
    let tiny = find(&rooms, 2 * BLOCK_SIZE, Some(Way::Integrated), 1).unwrap();
    assert_eq!(tiny.segments.iter().map(|s| s.length).collect::<Vec<_>>(), [BLOCK_SIZE, BLOCK_SIZE]);
}

#[test]
fn copies_go_to_different_servers_and_to_different_zones_while_a_choice_exists() {
    let rooms = [
        room(1, 1, "x", false, &[(0, 10)]),
        room(2, 1, "x", false, &[(0, 10)]),
        room(3, 2, "x", false, &[(0, 11)]),
        room(4, 3, "y", false, &[(0, 50)]),
    ];
    let layout = find(&rooms, 10 * R, Some(Way::Doubled), 2).unwrap();
    assert_eq!(legs(&layout), [[(1, 0, 10), (4, 0, 10)]], "another zone although it fits worse");
    let layout = find(&rooms[..3], 10 * R, Some(Way::Doubled), 2).unwrap();
    assert_eq!(legs(&layout), [[(1, 0, 10), (3, 0, 10)]], "no other zone: at least another server");
    // Only in two segments can both zones be used.
    let split =
        [room(1, 1, "x", false, &[(0, 10)]), room(2, 2, "x", false, &[(0, 10)]), room(3, 3, "y", false, &[(0, 5), (9, 5)])];
    let layout = find(&split, 10 * R, Some(Way::Doubled), 2).unwrap();
    for segment in &layout.segments {
        assert!(segment.legs.iter().any(|leg| leg.area.to_u128() == 3), "{layout:?}");
    }
}

#[test]
fn a_doubled_volume_uses_all_the_room_that_pairs_of_servers_have() {
    let rooms = [room(1, 1, "", true, &[(0, 2)]), room(2, 2, "", true, &[(3, 2)]), room(3, 3, "", true, &[(0, 1), (7, 1)])];
    let layout = find(&rooms, 3 * R - 100, Some(Way::Doubled), 2).unwrap();
    assert!(layout.segments.len() >= 3);
    let three = find(&rooms, 2 * R, Some(Way::Doubled), 3).unwrap();
    assert!(three.segments.iter().all(|segment| segment.legs.len() == 3));
    assert_eq!(find(&rooms, 3 * R + 1, Some(Way::Doubled), 2).unwrap_err().kind, ErrorKind::NoSpace);
}

#[test]
fn refusals_say_how_much_is_missing_and_on_how_many_servers() {
    let rooms = [room(1, 1, "", false, &[(0, 256)]), room(2, 1, "", true, &[(0, 256)])];
    let cases: &[(u64, Option<Way>, usize, ErrorKind, &str)] = &[
        (R, Some(Way::Doubled), 2, ErrorKind::NoSpace, "2 copies needs 2 servers with free space, there is 1 server"),
        (R * 2, Some(Way::Integrated), 1, ErrorKind::NoSpace, "an integrated volume needs 2 servers"),
        (300 * R, Some(Way::Single), 1, ErrorKind::NoSpace, "the largest has 1 GiB; 176 MiB are missing"),
        (300 * R, Some(Way::Divided), 1, ErrorKind::NoSpace, "the longest free stretch has 1 GiB; 176 MiB are missing"),
        (513 * R, None, 1, ErrorKind::NoSpace, "at most 2 GiB fit on 1 server with free space; 4 MiB are missing"),
        (0, None, 1, ErrorKind::BadRequest, "0 bytes"),
        (u64::MAX, None, 1, ErrorKind::BadRequest, "cannot be made"),
        (BLOCK_SIZE, Some(Way::Integrated), 1, ErrorKind::BadRequest, "single block"),
    ];
    for (size, way, copies, kind, text) in cases {
        let refusal = find(&rooms, *size, *way, *copies).unwrap_err();
        assert_eq!(refusal.kind, *kind);
        assert!(refusal.message.contains(text), "{refusal}");
        assert!(!refusal.hint.is_empty());
    }
    let nothing =
        place(&Rooms { rooms: vec![], left_out: vec!["1 area offline".to_owned()] }, Wanted { size: R, way: None, copies: 1 });
    assert!(nothing.unwrap_err().message.contains("(not counted: 1 area offline)"));
}

#[test]
fn way_and_copies_must_agree() {
    let cases = [
        (None, None, Some((None, 1))),
        (None, Some(1), Some((None, 1))),
        (None, Some(3), Some((Some(Way::Doubled), 3))),
        (Some(Way::Doubled), None, Some((Some(Way::Doubled), 2))),
        (Some(Way::Doubled), Some(1), None),
        (Some(Way::Single), Some(2), None),
        (None, Some(0), None),
        (None, Some(5), None),
    ];
    for (way, copies, expected) in cases {
        assert_eq!(way_and_copies(way, copies).ok(), expected, "{way:?} {copies:?}");
    }
}

#[test]
fn every_wish_on_random_rooms_is_placed_soundly_or_refused_truthfully() {
    let mut state = 7u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..3000 {
        let rooms: Vec<Room> = (0..1 + random(6))
            .map(|area| {
                let stretches: Vec<(u64, u64)> = (0..random(4)).map(|n| (n * 20, 1 + random(12))).collect();
                let server = random(5);
                let zone = ["", "x", "x", "y", "y"][server as usize];
                room(u128::from(area) + 1, u128::from(server), zone, true, &stretches)
            })
            .collect();
        let copies = 1 + random(3) as usize;
        let way = if copies > 1 { Some(Way::Doubled) } else { None };
        let size = 1 + random(20 * R);
        let all = Rooms { rooms: rooms.clone(), left_out: vec![] };
        let possible = most(&all, copies) >= size.next_multiple_of(R);
        assert_eq!(find(&rooms, size, way, copies).is_ok(), possible, "{rooms:?} {size} {copies}");
    }
}
