//! A table that is older than the labels: it decides nothing that they know better (L5).

use sublet_api::mount::MountingInformation;
use sublet_api::order::Order;
use sublet_api::rebuild::{AcceptVolume, Rebuild};
use sublet_api::request::{ChangeLeg, LegAnswer, LegChange, Request, Response};
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{SliceId, Way};

use crate::core::testing::{Pool, R, borrow, create, force_unmount, give_back, mount, reclaim, replace, unmount};
use crate::records::VolumeRow;

/// The borrower; c1 and d1 are free.
const E: usize = 4;

/// `v` on a1 and b1, with bytes in it, not mounted.
fn doubled() -> Pool {
    let mut pool = Pool::new(&[16, 16, 20, 24, 0]);
    let borrower = pool.id(E);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    used(&mut pool, 2);
    pool
}

fn used(pool: &mut Pool, id: u128) {
    let borrower = pool.id(E);
    let epoch = pool.mounted(mount(id, borrower, "v")).epoch;
    pool.done(unmount(id + 1, borrower, "v", epoch));
}

fn volume(pool: &Pool) -> VolumeRow {
    pool.core.table().volume("v").unwrap().clone()
}

fn in_sync(pool: &Pool) -> Vec<(String, bool)> {
    let table = pool.core.table();
    let leg = |leg: &crate::records::LegRow| (table.areas[&leg.area].name.to_string(), leg.in_sync);
    volume(pool).segments[0].legs.iter().map(leg).collect()
}

fn is_wiped(pool: &Pool, slice: SliceId) -> bool {
    let orders = pool.servers.iter().flat_map(|server| &server.log);
    orders.into_iter().any(|order| matches!(order, Order::WipeSlice { slice: wiped, .. } if *wiped == slice))
}

fn reconcile(pool: &mut Pool) {
    pool.ask(Request::Rebuild(Rebuild { reconcile: true, ..Rebuild::default() }));
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    pool.pass(6000);
}

fn both() -> Vec<(String, bool)> {
    vec![("a1".to_owned(), true), ("c1".to_owned(), true)]
}

#[test]
fn r2_the_tombstone_of_a_replaced_copy_takes_nothing_else_of_its_volume_with_it() {
    let mut pool = doubled();
    let (kept, lost) = (volume(&pool).segments[0].legs[0].slice, volume(&pool).segments[0].legs[1].slice);
    let backup = pool.backup();
    pool.lose(1);
    pool.done(replace(10, "v", "server-b", None));
    pool.pass(10_000);
    assert_eq!(in_sync(&pool), both());
    assert!(pool.servers[0].areas.values().any(|area| area.tombstones.iter().any(|stone| stone.slice == lost)));
    pool.restore(&backup);
    pool.pass(6000);
    let reason = volume(&pool).frozen.unwrap();
    assert!(reason.contains("manager rebuild --reconcile"), "{reason}");
    reconcile(&mut pool);
    assert!(!is_wiped(&pool, kept), "the copy that is left was wiped");
    assert_eq!((volume(&pool).frozen, in_sync(&pool)), (None, both()));
    // The lost one is wiped when it turns up, and nobody waits for that.
    let borrower = pool.id(E);
    pool.mounted(mount(20, borrower, "v"));
    pool.revive(1);
    pool.pass(10_000);
    assert!(is_wiped(&pool, lost) && !is_wiped(&pool, kept));
    assert!(pool.core.table().wipes.is_empty());
}

#[test]
fn r1_a_volume_with_a_replaced_copy_comes_back_while_the_lost_lender_is_away() {
    let mut pool = doubled();
    let lost = volume(&pool).segments[0].legs[1].slice;
    pool.lose(1);
    pool.done(replace(10, "v", "server-b", None));
    pool.pass(10_000);
    let borrower = pool.id(E);
    let mounting = pool.mounted(mount(11, borrower, "v"));
    pool.lose_table();
    // One lender, whose label has the tombstone, is there before the other.
    pool.servers[0].alive = false;
    pool.ask(Request::Rebuild(Rebuild::default()));
    pool.pass(6000);
    let conn = pool.report(&mounting, PathState::Open, false);
    let told = pool.replies.remove(&conn).unwrap();
    assert!(!matches!(told, Response::Refused(Refusal { kind: ErrorKind::StaleEpoch, .. })), "its client is stopped: {told:?}");
    pool.go_on(0);
    pool.pass(6000);
    assert_eq!((volume(&pool).frozen, in_sync(&pool)), (None, both()));
    assert_eq!(volume(&pool).lease.map(|lease| lease.epoch), Some(mounting.epoch));
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    pool.pass(6000);
    assert!(pool.core.table().wipes.contains_key(&lost));
}

#[test]
fn l5_a_mount_by_a_table_that_is_behind_leaves_no_newer_copy_behind() {
    let mut pool = doubled();
    let backup = pool.backup();
    // b1 is away while a1 is written to.
    pool.lose(1);
    used(&mut pool, 10);
    assert_eq!(in_sync(&pool), [("a1".to_owned(), true), ("b1".to_owned(), false)]);
    pool.kill(0);
    pool.restore(&backup);
    pool.revive(1);
    pool.pass(1000);
    let borrower = pool.id(E);
    let conn = pool.send(mount(20, borrower, "v"));
    pool.pass(2000);
    // The old table knows no better, but its lender does.
    pool.revive(0);
    pool.pass(10_000);
    drop(pool.replies.remove(&conn));
    let refusal = pool.refused(mount(20, borrower, "v"));
    assert!(refusal.message.contains("frozen"), "{refusal}");
    assert!(volume(&pool).lease.is_none());
    reconcile(&mut pool);
    assert_eq!(volume(&pool).frozen, None);
    pool.pass(20_000);
    assert!(volume(&pool).segments[0].legs[0].in_sync, "what only a1 has is believed");
    assert!(pool.events().iter().all(|event| !event.contains("a1 is stale") && !event.contains("server-a is stale")));
}

/// A client tells a label what the newer table had committed, after the older one has heard of that label.
#[test]
fn l5_a_label_that_gets_ahead_after_its_lender_was_heard_stops_the_next_mount() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let mounting = pool.mounted(mount(10, borrower, "v"));
    let backup = pool.backup();
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    pool.restore(&backup);
    pool.pass(5000);
    assert_eq!(volume(&pool).frozen, None);
    pool.set_state(0, &left);
    pool.done(force_unmount(11, "v"));
    let refusal = pool.refused(mount(12, borrower, "v"));
    assert!(refusal.message.contains("frozen"), "{refusal}");
    assert!(volume(&pool).frozen.is_some() && volume(&pool).lease.is_none());
    pool.servers.iter_mut().for_each(|server| server.coordinates_nothing = true);
    reconcile(&mut pool);
    assert_eq!(in_sync(&pool), [("a1".to_owned(), true), ("b1".to_owned(), false)]);
    let epoch = pool.mounted(mount(13, borrower, "v")).epoch;
    pool.done(unmount(14, borrower, "v", epoch));
}

/// The backup was made after a generation had been issued for a copy that returned, and before that was committed.
#[test]
fn l5_a_table_from_the_middle_of_a_return_is_seen_to_be_behind() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let mounting = pool.mounted(mount(10, borrower, "v"));
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    let Response::Leg(issued) = pool.change_leg(&mounting, 1, left.generation, LegChange::Returning) else { panic!() };
    let backup = pool.backup();
    let Response::Leg(joined) = pool.change_leg(&mounting, 1, issued.generation, LegChange::InSync) else { panic!() };
    (0..2).for_each(|server| pool.set_state(server, &joined));
    pool.restore(&backup);
    pool.pass(5000);
    let refusal = pool.refused(mount(11, borrower, "v"));
    assert!(refusal.message.contains("frozen"), "{refusal}");
    reconcile(&mut pool);
    assert_eq!(volume(&pool).frozen, None);
    assert_eq!(in_sync(&pool), [("a1".to_owned(), true), ("b1".to_owned(), true)]);
    pool.mounted(mount(12, borrower, "v"));
}

/// A lender refuses, and what its label says is not heard.
#[test]
fn l5_a_copy_whose_label_contradicts_the_table_is_not_left_behind() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let generation = volume(&pool).segments[0].generation.next(77);
    pool.set_state(0, &LegAnswer { generation, in_sync: vec![true, false] });
    pool.servers[0].tells_nothing = true;
    let refusal = pool.refused(mount(10, borrower, "v"));
    assert!(refusal.message.contains("contradicts the table"), "{refusal}");
    assert_eq!(in_sync(&pool), [("a1".to_owned(), true), ("b1".to_owned(), true)]);
    assert!(volume(&pool).lease.is_none());
}

#[test]
fn l5_a_forced_unmount_by_a_table_that_is_behind_makes_no_second_history() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let mounting = pool.mounted(mount(10, borrower, "v"));
    let backup = pool.backup();
    // The client goes on without b1.
    pool.kill(1);
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    pool.set_state(0, &left);
    pool.revive(1);
    pool.kill(0);
    pool.restore(&backup);
    pool.pass(1000);
    // To the table, b1 is in sync and a1 does not answer: nobody here knows better.
    pool.done(force_unmount(20, "v"));
    assert_eq!(in_sync(&pool), [("a1".to_owned(), false), ("b1".to_owned(), true)]);
    pool.revive(0);
    pool.pass(10_000);
    let reason = volume(&pool).frozen.expect("two sets have the same number");
    assert!(reason.contains("two histories"), "{reason}");
    reconcile(&mut pool);
    let reason = volume(&pool).frozen.expect("no history is chosen by itself");
    assert!(reason.contains("split"), "{reason}");
}

#[test]
fn l5_a_forced_unmount_by_a_table_that_is_behind_says_that_a_newer_mount_may_go_on() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let first = pool.mounted(mount(10, borrower, "v"));
    let backup = pool.backup();
    pool.done(unmount(11, borrower, "v", first.epoch));
    pool.mounted(mount(12, borrower, "v"));
    pool.restore(&backup);
    let refusal = pool.refused(force_unmount(20, "v"));
    assert!(refusal.message.contains(&format!("the mount that the table knew of (epoch {}) is over", first.epoch)), "{refusal}");
    assert!(refusal.hint.contains("manager rebuild --reconcile"), "{refusal}");
    assert_eq!(pool.admitted(0), 1, "its client is not fenced");
    assert!(!pool.events().iter().any(|event| event.contains("fenced: unmounted by force")), "{:?}", pool.events());
    reconcile(&mut pool);
    pool.done(force_unmount(21, "v"));
    assert_eq!(pool.admitted(0), 0);
}

/// The client of this mount asks to go on without the copy on b1.
fn without_b1(mounting: &MountingInformation) -> Request {
    let (slice, generation) = (mounting.segments[0].legs[1].slice, mounting.segments[0].generation);
    let change = ChangeLeg { epoch: mounting.epoch, segment: 0, slice, generation, change: LegChange::Stale };
    Request::ChangeLeg { volume: mounting.volume, change }
}

#[test]
fn l5_a_copy_is_left_out_only_when_whoever_may_know_better_has_told_of_its_labels() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let first = pool.mounted(mount(10, borrower, "v"));
    let backup = pool.backup();
    // The first client is cut off together with a1: b1 alone is fenced, which is enough (F3), and somebody else goes on with it.
    pool.server(0).stuck = true;
    pool.done(force_unmount(11, "v"));
    pool.pass(30_000);
    pool.mounted(mount(12, borrower, "v"));
    pool.restore(&backup);
    // The first client is heard of before b1 is: for this table it is the one that holds the volume.
    let conn = pool.send(without_b1(&first));
    assert!(!pool.replies.contains_key(&conn), "it waits");
    pool.settle();
    let Some(Response::Refused(refusal)) = pool.replies.get(&conn) else { panic!("{:?}", pool.replies.get(&conn)) };
    assert_eq!(refusal.kind, ErrorKind::Conflict, "{refusal}");
    assert_eq!(in_sync(&pool), [("a1".to_owned(), true), ("b1".to_owned(), true)]);
    assert!(volume(&pool).frozen.is_some());
}

#[test]
fn s1_a_restarted_manager_waits_for_a_dead_lender_no_longer_than_until_it_is_lost() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let mounting = pool.mounted(mount(10, borrower, "v"));
    pool.kill(1);
    pool.restart_manager();
    let conn = pool.send(without_b1(&mounting));
    pool.settle();
    assert!(!pool.replies.contains_key(&conn), "b1 may know better");
    pool.pass(13_000);
    assert!(matches!(pool.replies.get(&conn), Some(Response::Leg(_))), "{:?}", pool.replies.get(&conn));
}

#[test]
fn l5_a_volume_that_was_returned_after_the_backup_says_how_it_goes() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    pool.done(borrow(5, borrower, Some("stays"), Some(R), None));
    let backup = pool.backup();
    pool.done(give_back(10, Some(borrower), "v", false));
    pool.pass(6000);
    assert!(pool.core.table().wipes.is_empty());
    pool.restore(&backup);
    pool.pass(6000);
    let reason = volume(&pool).frozen.unwrap();
    assert!(reason.contains("manager rebuild --reconcile"), "{reason}");
    reconcile(&mut pool);
    assert!(pool.core.table().volume("v").is_err());
    assert_eq!(pool.core.table().volume("stays").unwrap().frozen, None);
    pool.done(borrow(30, borrower, Some("again"), Some(3 * R), Some(Way::Doubled)));
}

#[test]
fn l5_a_slice_that_was_just_given_out_is_not_missed_in_an_older_report() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let old = pool.servers[2].areas.clone();
    pool.done(create(5, "young", Way::Divided, &[("c1", Some(R))]));
    // What it reported before it entered the slice comes late.
    let new = std::mem::replace(&mut pool.servers[2].areas, old);
    pool.servers[2].tell_areas = true;
    pool.lose_answer(2);
    assert_eq!(pool.core.table().volume("young").unwrap().frozen, None);
    pool.servers[2].areas = new;
    pool.lose_answer(2);
    pool.done(borrow(6, borrower, Some("young"), None, None));
}

#[test]
fn l2_nothing_is_made_in_a_quarantined_area_by_its_name_either() {
    let mut pool = doubled();
    let area = *pool.servers[2].areas.keys().next().unwrap();
    pool.servers[2].areas.get_mut(&area).unwrap().quarantined = Some("its label went back".to_owned());
    pool.servers[2].tell_areas = true;
    pool.lose_answer(2);
    let refusal = pool.refused(create(5, "new", Way::Divided, &[("c1", Some(R))]));
    assert!(refusal.message.contains("quarantined") && refusal.hint.contains("area accept c1"), "{refusal}");
}

#[test]
fn r1_a_missing_copy_is_named_by_where_the_table_had_it() {
    let mut pool = doubled();
    let backup = pool.backup();
    used(&mut pool, 10);
    pool.kill(1);
    pool.restore(&backup);
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild { reconcile: true, ..Rebuild::default() }));
    pool.pass(6000);
    let reason = volume(&pool).frozen.unwrap();
    assert!(reason.contains("server-b (area b1) is missing"), "{reason}");
    // It is remembered with every label that comes.
    pool.servers[0].tell_areas = true;
    pool.lose_answer(0);
    assert_eq!(volume(&pool).frozen.unwrap(), reason);
    // Its disk comes without the slice: the table is all that knows whose it was.
    let slices = pool.servers[1].areas.values_mut().map(|area| std::mem::take(&mut area.slices)).collect::<Vec<_>>();
    pool.revive(1);
    pool.pass(6000);
    let expected = "copy 2 of 2 of segment 0 is missing (seen: server-a (area a1); the table had it at server-b (area b1))";
    for _ in 0..2 {
        let reason = volume(&pool).frozen.unwrap();
        assert!(reason.contains(expected), "{reason}");
        // It is remembered with every label that comes.
        pool.lose_answer(0);
    }
    pool.servers[1].areas.values_mut().zip(slices).for_each(|(area, slices)| area.slices = slices);
    pool.lose_answer(1);
    assert_eq!((volume(&pool).frozen, volume(&pool).absent), (None, Vec::new()));
}

#[test]
fn r2_nobody_remembers_a_slice_of_an_area_that_is_no_more() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let stones =
        |pool: &Pool, server: usize| -> usize { pool.servers[server].areas.values().map(|area| area.tombstones.len()).sum() };
    pool.lose(1);
    pool.done(give_back(10, Some(borrower), "v", false));
    pool.pass(6000);
    assert_eq!((stones(&pool, 2), stones(&pool, 3)), (1, 1));
    pool.lose(3);
    pool.revive(1);
    pool.pass(6000);
    pool.done(reclaim(11, "b1"));
    assert_eq!((stones(&pool, 2), stones(&pool, 3)), (0, 1));
    pool.revive(3);
    pool.pass(6000);
    assert_eq!(stones(&pool, 3), 0);
}

#[test]
fn r1_a_copy_that_comes_late_is_taken_in_when_the_volume_is_unmounted() {
    let mut pool = doubled();
    pool.kill(1);
    pool.lose_table();
    pool.ask(Request::Rebuild(Rebuild::default()));
    pool.pass(6000);
    let accept = AcceptVolume { leg: "a1".to_owned(), stale: false };
    pool.ask(Request::AcceptVolume { volume: "v".to_owned(), accept });
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    let borrower = pool.id(E);
    let epoch = pool.mounted(mount(20, borrower, "v")).epoch;
    pool.revive(1);
    pool.pass(6000);
    assert_eq!(in_sync(&pool), [("a1".to_owned(), true)]);
    pool.servers.iter_mut().for_each(|server| server.coordinates_nothing = true);
    pool.done(unmount(21, borrower, "v", epoch));
    pool.pass(6000);
    assert_eq!(in_sync(&pool), [("a1".to_owned(), true), ("b1".to_owned(), false)]);
}

#[test]
fn l5_an_unmount_that_the_table_does_not_know_of_has_not_ended() {
    let mut pool = doubled();
    let backup = pool.backup();
    let borrower = pool.id(E);
    let mounting = pool.mounted(mount(10, borrower, "v"));
    pool.restore(&backup);
    let refusal = pool.refused(unmount(11, borrower, "v", mounting.epoch));
    assert_eq!((refusal.kind, refusal.hint.contains("--reconcile")), (ErrorKind::Conflict, true), "{refusal}");
    reconcile(&mut pool);
    pool.done(unmount(12, borrower, "v", mounting.epoch));
    // Nor has it while the volume is not known at all.
    let mounting = pool.mounted(mount(13, borrower, "v"));
    (0..2).for_each(|server| pool.kill(server));
    pool.lose_table();
    pool.ask(Request::Rebuild(Rebuild::default()));
    let id = mounting.volume.to_string();
    let refusal = pool.refused(unmount(14, borrower, &id, mounting.epoch));
    assert_eq!(refusal.kind, ErrorKind::Conflict, "{refusal}");
}

#[test]
fn r1_f4_a_client_is_not_stopped_while_the_area_that_knows_its_volume_is_offline() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let mounting = pool.mounted(mount(10, borrower, "v"));
    let reason = Some("it is being opened".to_owned());
    for area in pool.servers.iter_mut().take(2).flat_map(|server| server.areas.values_mut()) {
        // It does not tell of slices then.
        area.offline = reason.clone();
        area.slices.clear();
    }
    pool.lose_table();
    pool.ask(Request::Rebuild(Rebuild::default()));
    pool.pass(6000);
    let Response::Rebuild(view) = pool.ask(Request::RebuildState) else { panic!("no view") };
    let shown: Vec<_> =
        view.offline.iter().map(|area| (area.area.as_str(), area.server.as_str(), area.reason.as_str())).collect();
    assert_eq!(shown, [("a1", "server-a", "it is being opened"), ("b1", "server-b", "it is being opened")]);
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    let conn = pool.report(&mounting, PathState::Open, false);
    let told = pool.replies.remove(&conn);
    assert!(matches!(&told, Some(Response::Refused(refusal)) if refusal.kind == ErrorKind::Conflict), "{told:?}");
}

#[test]
fn r1_a_volume_whose_tasks_row_is_damaged_says_how_it_goes_on() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    pool.servers.iter_mut().for_each(|server| server.stuck = true);
    pool.send(mount(10, borrower, "v"));
    pool.settle();
    let key = format!("task/{}", crate::core::testing::task(10));
    pool.store.overwrite(&key, b"garbage");
    pool.restart_manager();
    pool.servers.iter_mut().for_each(|server| (server.stuck, server.registered) = (false, false));
    pool.pass(6000);
    let refusal = pool.refused(mount(11, borrower, "v"));
    assert!(refusal.message.contains("sublet volume accept v AREA"), "{refusal}");
    // All its segments look fine, and still the copy that is named has to be one of its own.
    for leg in ["c1", "nobody"] {
        let accept = AcceptVolume { leg: leg.to_owned(), stale: false };
        let refusal = pool.refused(Request::AcceptVolume { volume: "v".to_owned(), accept });
        assert!(refusal.message.contains("has no copy") && refusal.hint.contains("a1"), "{refusal}");
    }
    let accept = AcceptVolume { leg: "a1".to_owned(), stale: false };
    pool.ask(Request::AcceptVolume { volume: "v".to_owned(), accept });
    pool.pass(6000);
    assert!(in_sync(&pool).iter().all(|(_, in_sync)| *in_sync));
    pool.mounted(mount(12, borrower, "v"));
}
