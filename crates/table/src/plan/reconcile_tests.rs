use sublet_api::ErrorKind;
use sublet_types::{Epoch, Generation, PoolId, Way};

use super::*;
use crate::core::testing::{FakeArea, Pool, R, borrow, mount, name};

#[test]
fn a_label_ahead_of_the_table_freezes_its_volume() {
    for (what, ahead) in [("epoch", true), ("generation", false)] {
        let mut pool = Pool::new(&[16, 0]);
        let borrower = pool.id(1);
        pool.done(borrow(1, borrower, Some("v"), Some(R), None));
        pool.mounted(mount(2, borrower, "v"));
        let slice = pool.server(0).areas.values_mut().next().unwrap().slices.values_mut().next().unwrap();
        if ahead {
            slice.epoch = Epoch { number: 9, random: 9 };
        } else {
            slice.facts.generation = Generation { number: 9, random: 9 };
        }
        pool.server(0).tell_areas = true;
        pool.pass(6000);
        let refusal = pool.refused(mount(3, borrower, "v"));
        assert_eq!(refusal.kind, ErrorKind::Conflict);
        assert!(refusal.message.contains("frozen") && refusal.message.contains(what), "{refusal}");
    }
}

#[test]
fn a_split_epoch_is_shown_and_never_merged() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
    pool.server(0).areas.values_mut().next().unwrap().slices.values_mut().next().unwrap().epoch.random = epoch.random ^ 1;
    pool.server(0).tell_areas = true;
    pool.pass(6000);
    assert!(pool.events().iter().any(|event| event.starts_with("v: frozen")));
}

#[test]
fn a_label_that_fell_back_is_brought_to_the_present_epoch_before_anything_else() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let mounting = pool.mounted(mount(2, borrower, "v"));
    pool.kill(0);
    let slice = pool.server(0).areas.values_mut().next().unwrap().slices.values_mut().next().unwrap();
    slice.epoch = Epoch::default();
    slice.admitted = false;
    pool.revive(0);
    assert!(matches!(&pool.server(0).log[0], Order::OpenLease { lease, .. } if lease.epoch == mounting.epoch));
    assert_eq!(pool.admitted(0), 1);
}

#[test]
fn a_new_area_with_a_taken_name_gets_another_one_in_table_and_label() {
    let mut pool = Pool::new(&[16, 0]);
    let area = FakeArea {
        name: name("a1"),
        capacity: 4 * R,
        offline: None,
        broken: false,
        slices: BTreeMap::new(),
        dirty: BTreeSet::new(),
        tombstones: Vec::new(),
        quarantined: None,
        openings: Vec::new(),
        sequence: 1,
    };
    pool.server(1).areas.insert(AreaId::from_u128(77), area);
    pool.server(1).tell_areas = true;
    pool.pass(6000);
    assert_eq!(pool.table().areas[1].name, name("a1-2"));
    assert_eq!(pool.server(1).areas.values().next().unwrap().name, name("a1-2"));
}

#[test]
fn a_disk_that_moved_to_another_server_is_recognised_and_a_copy_of_one_is_not() {
    let mut pool = Pool::new(&[16, 0, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let disk = pool.server(0).areas.clone();
    pool.server(1).areas = disk;
    pool.server(1).tell_areas = true;
    pool.pass(6000);
    assert_eq!(pool.table().areas[0].server, name("server-a"));
    assert!(pool.events().iter().any(|event| event.contains("shows up at server-b while server-a serves it")));
    pool.server(0).areas.clear();
    pool.server(0).tell_areas = true;
    pool.pass(6000);
    assert_eq!(pool.table().areas[0].server, name("server-b"));
    let mounting = pool.mounted(mount(2, borrower, "v"));
    assert_eq!(mounting.segments[0].legs[0].server_name, name("server-b"));
}

#[test]
fn areas_of_another_pool_are_ignored() {
    let table = Table::default();
    let report = AreaReport {
        area: AreaId::from_u128(1),
        pool: PoolId::from_u128(66),
        name: name("x"),
        capacity: R,
        place: String::new(),
        sparse: false,
        offline: None,
        open: None,
        sequence: 0,
        slices: Vec::new(),
        history: Vec::new(),
        quarantined: None,
        failures: 0,
        tombstones: Vec::new(),
    };
    let change = super::report(&table, ServerId::from_u128(1), &[report], &|_| false);
    assert!(change.puts.is_empty());
    assert!(change.warnings[0].1.contains("another pool"));
}

#[test]
fn an_offline_area_keeps_its_volumes_and_is_told_nothing() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), Some(Way::Doubled)));
    let area = pool.server(1).areas.values_mut().next().unwrap();
    area.offline = Some("a piece is missing".to_owned());
    let slices = std::mem::take(&mut area.slices);
    pool.server(1).tell_areas = true;
    pool.pass(6000);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    assert_eq!(mounting.segments[0].legs.iter().map(|leg| leg.in_sync).collect::<Vec<_>>(), [true, false]);
    pool.server(1).log.clear();
    pool.pass(6000);
    assert!(pool.server(1).log.is_empty());
    let area = pool.server(1).areas.values_mut().next().unwrap();
    area.offline = None;
    area.slices = slices;
    pool.server(1).tell_areas = true;
    pool.pass(6000);
    assert!(matches!(&pool.server(1).log[0], Order::OpenLease { lease, .. } if lease.epoch == mounting.epoch));
    assert_eq!(pool.core.table().wipes.len(), 0);
}
