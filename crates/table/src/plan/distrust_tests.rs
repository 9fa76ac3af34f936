//! L2 at the manager, and lenders that are gone for good.

use sublet_api::ErrorKind;
use sublet_api::order::Order;
use sublet_api::rebuild::{AcceptVolume, Forget, ForgetView};
use sublet_api::request::{LegChange, Rename, Request, Response};
use sublet_types::{OpenId, Way};

use crate::core::testing::{Pool, R, borrow, force_unmount, give_back, mount, name, unmount};

/// A pool in which every area has been opened once; two copies of `pair` at a and b, `one` at a alone.
fn pool() -> Pool {
    let mut pool = Pool::new(&[16, 8, 0]);
    for (index, area) in pool.servers.iter_mut().flat_map(|server| server.areas.values_mut()).enumerate() {
        area.openings.push(OpenId::from_u128(100 + index as u128));
        area.sequence = 10;
    }
    tell(&mut pool);
    let c = pool.id(2);
    pool.done(borrow(1, c, Some("pair"), Some(2 * R), Some(Way::Doubled)));
    pool.done(borrow(2, c, Some("one"), Some(10 * R), None));
    assert!(
        pool.core.table().volume("one").unwrap().legs().all(|(_, leg)| pool.core.table().areas[&leg.area].name == name("a1"))
    );
    pool
}

fn tell(pool: &mut Pool) {
    pool.servers.iter_mut().for_each(|server| server.tell_areas = true);
    pool.pass(6000);
}

fn area(pool: &mut Pool, server: usize) -> &mut crate::core::testing::FakeArea {
    pool.server(server).areas.values_mut().next().unwrap()
}

fn state(pool: &mut Pool, text: &str) -> String {
    pool.table().areas.iter().find(|area| area.name == name(text)).unwrap().state.clone()
}

#[test]
fn l2_openings_that_continue_each_other_are_trusted() {
    let mut pool = pool();
    for number in 0..3 {
        area(&mut pool, 0).openings.push(OpenId::from_u128(200 + number));
        area(&mut pool, 0).sequence += 5;
        tell(&mut pool);
    }
    assert_eq!(state(&mut pool, "a1"), "online");
}

#[test]
fn l2_a_rolled_back_a_restored_and_a_cloned_area_are_quarantined() {
    type Edit = fn(&mut crate::core::testing::FakeArea);
    let cases: [(&str, Edit); 4] = [
        ("rolled back", |area| area.sequence = 9),
        // Opened anew, but before that it had gone back: sequences only rise.
        ("rolled back and opened", |area| area.openings.push(OpenId::from_u128(300))),
        ("restored", |area| area.openings = vec![OpenId::from_u128(7), OpenId::from_u128(8)]),
        ("noticed by a client", |area| area.quarantined = Some("a client remembers more".to_owned())),
    ];
    for (what, edit) in cases {
        let mut pool = pool();
        edit(area(&mut pool, 0));
        tell(&mut pool);
        assert!(state(&mut pool, "a1").starts_with("quarantined: "), "{what}: {}", state(&mut pool, "a1"));
        assert!(pool.events().iter().any(|event| event.starts_with("a1: quarantined")), "{what}");
        assert!(area(&mut pool, 0).quarantined.is_some(), "{what}: its label knows, so that it serves nobody");
        // Where another copy is in sync, this one is stale; where none is, the volume is frozen.
        let pair = pool.core.table().volume("pair").unwrap().clone();
        let at_a = |leg: &crate::records::LegRow| pool.core.table().areas[&leg.area].name == name("a1");
        assert!(pair.legs().all(|(_, leg)| leg.in_sync != at_a(leg)), "{what}");
        let one = pool.core.table().volume("one").unwrap().clone();
        assert!(one.frozen.unwrap().contains("sublet area accept a1"), "{what}");
        // Nothing new is placed there.
        let c = pool.id(2);
        assert_eq!(pool.refused(borrow(30, c, Some("new"), Some(7 * R), None)).kind, ErrorKind::NoSpace, "{what}");
        assert!(pool.refused(mount(31, c, "one")).message.contains("frozen"), "{what}");
        // That its copy is believed is decided for the area, not for one volume.
        let choice = AcceptVolume { leg: "a1".to_owned(), stale: false };
        let refusal = pool.refused(Request::AcceptVolume { volume: "one".to_owned(), accept: choice });
        assert!(refusal.hint.contains("sublet area accept a1"), "{what}: {refusal}");
        // It stays so until an administrator accepts it, whatever it is called by then.
        pool.restart_manager();
        tell(&mut pool);
        assert!(state(&mut pool, "a1").starts_with("quarantined: "), "{what}");
        pool.ask(Request::RenameArea { area: "a1".to_owned(), rename: Rename { name: name("new") } });
        pool.ask(Request::AcceptArea { area: "new".to_owned() });
        pool.pass(6000);
        tell(&mut pool);
        assert_eq!(state(&mut pool, "new"), "online", "{what}");
        assert_eq!(area(&mut pool, 0).quarantined, None, "{what}");
        assert_eq!(pool.core.table().volume("one").unwrap().frozen, None, "{what}");
        let told = pool.events().iter().any(|event| event.contains("its copy in area a1 is stale: the area is quarantined"));
        assert!(told, "{what}: it is copied anew");
        pool.mounted(mount(32, c, "one"));
    }
}

#[test]
fn l2_a_stale_copy_in_a_quarantined_area_is_copied_whole() {
    let mut pool = pool();
    pool.servers.iter_mut().for_each(|server| server.coordinates_nothing = true);
    let c = pool.id(2);
    let mounting = pool.mounted(mount(60, c, "pair"));
    let stale = |pool: &Pool| {
        let row = pool.core.table().volume("pair").unwrap().clone();
        let leg = row.legs().find(|(_, leg)| !leg.in_sync).map(|(_, leg)| leg.clone());
        leg.unwrap()
    };
    let a = mounting.segments[0].legs.iter().position(|leg| leg.area_name == name("a1")).unwrap();
    pool.change_leg(&mounting, a, mounting.segments[0].generation, sublet_api::request::LegChange::Stale);
    assert!(stale(&pool).stale_since.is_some());
    area(&mut pool, 0).sequence = 1;
    tell(&mut pool);
    assert_eq!(stale(&pool).stale_since, None, "no map says what a copy misses that went back in time");
}

#[test]
fn l5_reconciling_never_takes_an_older_label_for_newer_than_the_table() {
    let mut pool = pool();
    pool.servers.iter_mut().for_each(|server| server.coordinates_nothing = true);
    let c = pool.id(2);
    let mounting = pool.mounted(mount(40, c, "pair"));
    let at = |pool: &Pool, text: &str| {
        let table = pool.core.table();
        table.volume("pair").unwrap().legs().position(|(_, leg)| table.areas[&leg.area].name == name(text)).unwrap()
    };
    // The copy at b leaves; no label has heard of it yet.
    let b = at(&pool, "b1");
    pool.change_leg(&mounting, b, mounting.segments[0].generation, sublet_api::request::LegChange::Stale);
    area(&mut pool, 0).sequence = 1;
    tell(&mut pool);
    pool.server(0).alive = false;
    pool.done(force_unmount(41, "pair"));
    assert!(pool.core.table().volume("pair").unwrap().frozen.is_some());
    pool.server(0).alive = true;
    pool.ask(Request::Rebuild(sublet_api::rebuild::Rebuild { reconcile: true, ..Default::default() }));
    tell(&mut pool);
    let row = pool.core.table().volume("pair").unwrap();
    assert!(!row.segments[0].legs[b].in_sync, "{row:#?}");
}

/// What a stale copy misses is counted from when it left. If its area is older than that when it comes back, the count is worth
/// nothing, also after an administrator has accepted the area.
#[test]
fn l2_s3_a_stale_copy_in_an_area_that_was_rolled_back_is_copied_as_a_whole() {
    for is_mounted in [false, true] {
        let mut pool = pool();
        let c = pool.id(2);
        let mounting = pool.mounted(mount(3, c, "pair"));
        let at_a = mounting.segments[0].legs.iter().position(|leg| leg.area_name == name("a1")).unwrap();
        let generation = mounting.segments[0].generation;
        let Response::Leg(left) = pool.change_leg(&mounting, at_a, generation, LegChange::Stale) else { panic!() };
        let since = |pool: &Pool| pool.core.table().volume("pair").unwrap().segments[0].legs[at_a].stale_since;
        assert_eq!(since(&pool), Some(left.generation));
        if !is_mounted {
            pool.done(unmount(4, c, "pair", mounting.epoch));
        }
        area(&mut pool, 0).sequence = 1;
        tell(&mut pool);
        assert!(state(&mut pool, "a1").starts_with("quarantined: "));
        assert_eq!(since(&pool), None);
        if is_mounted {
            // Nor does it come in sync while nobody has looked at it.
            let refused = pool.change_leg(&mounting, at_a, left.generation, LegChange::Returning);
            assert!(matches!(refused, Response::Refused(_)), "{refused:?}");
        }
        pool.ask(Request::AcceptArea { area: "a1".to_owned() });
        pool.pass(6000);
        assert_eq!(since(&pool), None);
    }
}

#[test]
fn l2_two_areas_of_one_volume_that_are_quarantined_at_once_are_both_copied_as_a_whole() {
    let mut pool = Pool::new(&[16, 8, 12, 0]);
    for (index, area) in pool.servers.iter_mut().flat_map(|server| server.areas.values_mut()).enumerate() {
        area.openings.push(OpenId::from_u128(100 + index as u128));
        area.sequence = 10;
    }
    tell(&mut pool);
    let server = pool.id(3);
    let (task, name) = (crate::core::testing::task(1), Some(name("pair")));
    let (size, way, copies) = (Some(2 * R), Some(Way::Doubled), Some(3));
    pool.done(Request::Borrow(sublet_api::request::Borrow { task, server, name, size, way, copies, local: false, seal: None }));
    // Both are reported before anything else is thought about.
    let mut table = pool.core.table().clone();
    for area in [1, 2] {
        let id = sublet_types::AreaId::from_u128(area);
        let row = crate::records::AreaRow { quarantined: Some("it went back".to_owned()), ..table.areas[&id].clone() };
        table.put(crate::records::Row::Area(row));
    }
    let (mut bits, reachable) = (0, std::collections::BTreeSet::new());
    let mut random = || {
        bits += 1;
        bits
    };
    let mut context = crate::plan::Context { now_ms: 0, random: &mut random, reachable: &reachable };
    let change = super::plan(&table, &mut context);
    for row in change.puts {
        table.put(row);
    }
    let row = table.volume("pair").unwrap();
    let in_sync = |area: u128| row.legs().find(|(_, leg)| leg.area.to_u128() == area).map(|(_, leg)| leg.in_sync);
    assert_eq!([1, 2, 3].map(in_sync), [Some(false), Some(false), Some(true)]);
}

#[test]
fn f3_a_lender_that_returns_to_a_volume_that_is_frozen_and_was_unmounted_by_force_is_fenced() {
    let mut pool = pool();
    let c = pool.id(2);
    let mounting = pool.mounted(mount(3, c, "pair"));
    let at_a = mounting.segments[0].legs.iter().position(|leg| leg.area_name == name("a1")).unwrap();
    // b is the only one in sync, and is away; a is not trusted.
    pool.change_leg(&mounting, at_a, mounting.segments[0].generation, LegChange::Stale);
    pool.lose(1);
    pool.done(force_unmount(4, "pair"));
    let epoch = pool.core.table().volume("pair").unwrap().epoch;
    let area_b = *pool.server(1).areas.keys().next().unwrap();
    area(&mut pool, 1).sequence = 1;
    pool.revive(1);
    pool.pass(6000);
    let row = pool.core.table().volume("pair").unwrap();
    assert!(row.frozen.as_ref().unwrap().contains("area accept b1"), "{:?}", row.frozen);
    let slices = &pool.servers[1].areas[&area_b].slices;
    let pair = slices.values().find(|slice| slice.facts.volume_name == name("pair")).unwrap();
    assert_eq!((pair.admitted, pair.epoch), (false, epoch));
}

fn forget(pool: &mut Pool, server: &str, confirm: bool) -> Result<ForgetView, sublet_api::Refusal> {
    match pool.ask(Request::ForgetServer { server: server.to_owned(), forget: Forget { confirm } }) {
        Response::Forget(view) => Ok(*view),
        Response::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn p2_a_lender_that_is_forgotten_is_never_believed_again() {
    let mut pool = pool();
    assert!(forget(&mut pool, "server-a", false).unwrap_err().message.contains("it is not lost"));
    let c = pool.id(2);
    pool.mounted(mount(10, c, "pair"));
    pool.lose(0);
    assert!(forget(&mut pool, "server-a", true).unwrap_err().hint.contains("volume replace"), "mounted volumes are asked first");
    pool.done(force_unmount(11, "pair"));
    // First it is told what goes with it; that changes nothing.
    let view = forget(&mut pool, "server-a", false).unwrap();
    let losses: Vec<_> = view.losses.iter().map(|loss| (loss.volume.as_str(), loss.bytes, loss.copies)).collect();
    assert_eq!((view.done, losses), (false, vec![("one", 10 * R, 0), ("pair", 0, 1)]));
    assert_eq!(pool.core.table().areas.len(), 2);
    let slices: Vec<_> = area(&mut pool, 0).slices.keys().copied().collect();
    assert!(forget(&mut pool, "server-a", true).unwrap().done);
    pool.pass(6000);
    let table = pool.core.table();
    assert_eq!((table.areas.len(), table.members().count()), (1, 2));
    assert!(slices.iter().all(|slice| table.wipes.contains_key(slice)), "its slices are to be wiped");
    assert_eq!(area(&mut pool, 1).tombstones.len(), slices.len(), "and the other labels remember it (R2)");
    assert!(pool.core.table().volume("one").unwrap().frozen.as_ref().unwrap().contains("were lost with server-a"));
    // The doubled volume goes on with its other copy, and waits for no wipe.
    assert_eq!(pool.table().volumes.iter().find(|row| row.name == name("pair")).unwrap().state, "ready");
    let mounting = pool.mounted(mount(12, c, "pair"));
    assert_eq!(mounting.segments[0].legs.iter().map(|leg| leg.in_sync).collect::<Vec<_>>(), [true]);
    pool.done(give_back(13, Some(c), "one", true));
    // The machine comes back: it is told that it has left. Its disk in another machine is fenced and wiped.
    pool.revive(0);
    pool.pass(6000);
    assert!(
        area(&mut pool, 0).slices.values().all(|slice| slice.admitted || slice.epoch.number == 0),
        "nobody was told anything"
    );
    let is_told = |event: &&String| event.starts_with("server-a: it is here again") && event.contains("an empty data folder");
    assert_eq!(pool.events().iter().filter(is_told).count(), 1, "but the administrator, once");
    let id = pool.id(0);
    assert!(pool.refused(borrow(14, id, None, Some(R), None)).hint.contains("an empty data folder"));
    let disk = std::mem::take(&mut pool.server(0).areas);
    pool.kill(0);
    pool.server(1).areas.extend(disk);
    tell(&mut pool);
    let wiped = |order: &&Order| matches!(order, Order::WipeSlice { drop: true, .. });
    assert_eq!(pool.server(1).log.iter().filter(wiped).count(), slices.len());
    assert!(pool.core.table().wipes.is_empty());
    assert!(pool.server(1).areas.values().all(|area| area.tombstones.is_empty()));
    assert_eq!(pool.core.table().volume("pair").unwrap().segments[0].legs.len(), 1);
}

#[test]
fn s3_what_a_stale_copy_in_a_quarantined_area_lacks_is_never_taken_from_a_map() {
    let mut pool = pool();
    let c = pool.id(2);
    let mounting = pool.mounted(mount(20, c, "pair"));
    let segment = mounting.segments[0].clone();
    let at_a = segment.legs.iter().position(|leg| leg.area_name == name("a1")).unwrap();
    let Response::Leg(left) = pool.change_leg(&mounting, at_a, segment.generation, LegChange::Stale) else { panic!() };
    let since = |pool: &Pool| pool.core.table().volume("pair").unwrap().segments[0].legs[at_a].stale_since;
    assert_eq!(since(&pool), Some(left.generation));
    area(&mut pool, 0).sequence = 9;
    tell(&mut pool);
    assert_eq!(since(&pool), None, "its bytes may be older than when it left: everything is copied");
    let response = pool.change_leg(&mounting, at_a, left.generation, LegChange::Returning);
    let Response::Refused(refusal) = response else { panic!("{response:?}") };
    assert!(refusal.message.contains("quarantined"), "{refusal}");
    pool.ask(Request::AcceptArea { area: "a1".to_owned() });
    pool.pass(6000);
    tell(&mut pool);
    assert_eq!(since(&pool), None);
    assert!(matches!(pool.change_leg(&mounting, at_a, left.generation, LegChange::Returning), Response::Leg(_)));
}
