//! A table that is older than the labels has bytes of nobody wiped that are lent and live (L5, P2).

use sublet_api::order::Order;
use sublet_api::rebuild::Rebuild;
use sublet_api::request::{LegChange, Request, Response};
use sublet_types::{SliceId, Way};

use crate::core::testing::{Pool, R, borrow, create, give_back, mount, replace, set_way, unmount};
use crate::records::VolumeRow;

/// The borrower; c1 and d1 are free.
const E: usize = 4;

/// `v` on a1 and b1, with bytes in it, not mounted.
fn doubled() -> Pool {
    let mut pool = Pool::new(&[16, 16, 20, 24, 0]);
    let borrower = pool.id(E);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
    pool.done(unmount(3, borrower, "v", epoch));
    pool
}

fn volume(pool: &Pool) -> VolumeRow {
    pool.core.table().volume("v").unwrap().clone()
}

fn slices(pool: &Pool) -> Vec<SliceId> {
    volume(pool).legs().map(|(_, leg)| leg.slice).collect()
}

/// The copy of the table was made while the volume was being unmounted: it is not looked at before that task has ended.
#[test]
fn l5_a_volume_that_was_returned_since_is_seen_to_be_gone_when_its_old_task_has_ended() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let epoch = pool.mounted(mount(10, borrower, "v")).epoch;
    pool.servers.iter_mut().for_each(|server| server.stuck = true);
    pool.send(unmount(11, borrower, "v", epoch));
    pool.settle();
    let backup = pool.backup();
    pool.servers.iter_mut().for_each(|server| (server.stuck, server.registered) = (false, false));
    pool.pass(20_000);
    pool.done(give_back(12, Some(borrower), "v", false));
    pool.pass(6000);
    pool.done(borrow(13, borrower, Some("w"), Some(3 * R), Some(Way::Doubled)));
    let epoch = pool.mounted(mount(14, borrower, "w")).epoch;
    pool.restore(&backup);
    pool.servers.iter_mut().for_each(|server| server.registered = false);
    pool.pass(20_000);
    assert_eq!(volume(&pool).task, None);
    let reason = volume(&pool).frozen.unwrap();
    assert!(reason.contains("no label has it any more"), "{reason}");
    let refusal = pool.refused(replace(20, "v", "server-b", None));
    assert!(refusal.message.contains("frozen"), "{refusal}");
    reconcile(&mut pool);
    let table = pool.core.table();
    assert_eq!(table.volumes.values().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["w"]);
    assert_eq!(table.volume("w").unwrap().lease.as_ref().map(|lease| lease.epoch), Some(epoch));
}

/// The copy of the table was made while the volume was being mounted, and the labels are heard before that has ended.
#[test]
fn l5_a_volume_whose_old_task_ends_while_the_table_is_reconciled_is_looked_at_then() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    pool.servers.iter_mut().for_each(|server| server.stuck = true);
    pool.send(mount(10, borrower, "v"));
    pool.settle();
    let backup = pool.backup();
    pool.servers.iter_mut().for_each(|server| (server.stuck, server.registered) = (false, false));
    pool.pass(20_000);
    let mounting = pool.mounted(mount(10, borrower, "v"));
    let left = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale);
    let Response::Leg(left) = left else { panic!() };
    pool.set_state(0, &left);
    pool.servers.iter_mut().for_each(|server| server.stuck = true);
    pool.restore(&backup);
    pool.pass(1000);
    pool.ask(Request::Rebuild(Rebuild { reconcile: true, ..Rebuild::default() }));
    pool.pass(1000);
    assert!(volume(&pool).task.is_some() && volume(&pool).frozen.is_some());
    for server in &mut pool.servers {
        (server.stuck, server.registered, server.tells_nothing) = (false, false, true);
        server.coordinates_nothing = true;
    }
    pool.pass(60_000);
    assert_eq!(volume(&pool).task, None);
    assert_eq!(volume(&pool).frozen, None);
    assert_eq!(volume(&pool).segments[0].in_sync(), [true, false]);
}

/// The old table has a copy made anew elsewhere, because its lender is away; and so is the other one, which would know.
#[test]
fn l5_p2_a_copy_that_was_made_for_a_volume_that_turns_out_to_be_gone_goes_with_it() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let backup = pool.backup();
    pool.done(give_back(12, Some(borrower), "v", false));
    pool.pass(6000);
    pool.done(borrow(13, borrower, Some("w"), Some(3 * R), Some(Way::Doubled)));
    (0..2).for_each(|server| pool.kill(server));
    pool.restore(&backup);
    pool.servers.iter_mut().for_each(|server| server.registered = false);
    pool.pass(20_000);
    pool.send(replace(20, "v", "server-b", None));
    pool.pass(20_000);
    let made = slices(&pool)[1];
    let is_there = |pool: &Pool| {
        let mut areas = pool.servers.iter().flat_map(|server| server.areas.values());
        areas.any(|area| area.slices.contains_key(&made))
    };
    assert!(is_there(&pool));
    (0..2).for_each(|server| pool.revive(server));
    pool.pass(20_000);
    assert!(volume(&pool).frozen.unwrap().contains("no label has it any more"));
    reconcile(&mut pool);
    pool.pass(60_000);
    let table = pool.core.table();
    assert_eq!(table.volumes.values().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["w"]);
    assert!(table.wipes.is_empty());
    assert!(!is_there(&pool));
}

fn reconcile(pool: &mut Pool) {
    pool.ask(Request::Rebuild(Rebuild { reconcile: true, ..Rebuild::default() }));
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    pool.pass(6000);
}

#[test]
fn l5_p2_a_wipe_by_a_table_that_is_behind_waits_and_reconciling_gives_it_up() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let (all, backup) = (slices(&pool), pool.backup());
    let mounting = pool.mounted(mount(10, borrower, "v"));
    (0..2).for_each(|server| pool.kill(server));
    pool.restore(&backup);
    pool.pass(20_000);
    // To this table nobody has it mounted, and its lenders are gone: it may be given up.
    pool.done(give_back(20, Some(borrower), "v", false));
    pool.pass(6000);
    assert!(pool.servers[2].areas.values().all(|area| area.tombstones.len() == 2));
    (0..2).for_each(|server| pool.revive(server));
    pool.pass(60_000);
    let wiped = |order: &&Order| matches!(order, Order::WipeSlice { .. });
    assert_eq!(pool.servers.iter().flat_map(|server| &server.log).find(wiped), None);
    assert!(pool.events().iter().any(|event| event.contains("manager rebuild --reconcile")), "{:#?}", pool.events());
    reconcile(&mut pool);
    assert_eq!(pool.servers.iter().flat_map(|server| &server.log).find(wiped), None);
    assert_eq!((volume(&pool).frozen, slices(&pool)), (None, all));
    assert_eq!(volume(&pool).lease.map(|lease| lease.epoch), Some(mounting.epoch));
    // What the other labels were told of it is void.
    assert!(pool.core.table().wipes.is_empty());
    assert!(pool.servers.iter().flat_map(|server| server.areas.values()).all(|area| area.tombstones.is_empty()));
    pool.done(unmount(30, borrower, "v", mounting.epoch));
    pool.done(give_back(31, Some(borrower), "v", false));
    pool.pass(6000);
    assert!(pool.core.table().wipes.is_empty());
}

#[test]
fn l5_a_manager_that_has_just_started_gives_nothing_up_before_its_lenders_have_told_of_their_labels() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let backup = pool.backup();
    pool.mounted(mount(10, borrower, "v"));
    pool.restore(&backup);
    let refusal = pool.refused(give_back(20, Some(borrower), "v", false));
    assert!(refusal.message.contains("frozen"), "{refusal}");
    assert!(volume(&pool).frozen.is_some());
    // Also one that is given up knowingly is not wiped over labels that know better.
    pool.restore(&backup);
    pool.done(give_back(21, Some(borrower), "v", true));
    pool.pass(20_000);
    let wiped = |order: &&Order| matches!(order, Order::WipeSlice { .. });
    assert_eq!(pool.servers.iter().flat_map(|server| &server.log).find(wiped), None);
    let mut pool = Pool::new(&[16, 16, 20, 24, 0]);
    pool.done(create(1, "v", Way::Divided, &[("a1", Some(R))]));
    pool.restart_manager();
    // It only waits: the lender knows no better.
    pool.done(set_way(2, "v", Way::Single, &[]));
}

#[test]
fn l5_p2_a_manager_that_has_just_started_replaces_no_copy_that_its_lenders_may_know_to_be_in_sync() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    pool.lose(1);
    let epoch = pool.mounted(mount(10, borrower, "v")).epoch;
    pool.done(unmount(11, borrower, "v", epoch));
    let backup = pool.backup();
    assert!(!volume(&pool).segments[0].legs[1].in_sync);
    let all = slices(&pool);
    pool.revive(1);
    pool.pass(30_000);
    assert!(volume(&pool).segments[0].legs[1].in_sync);
    pool.restore(&backup);
    pool.send(replace(20, "v", "server-b", None));
    pool.pass(30_000);
    assert!(volume(&pool).frozen.is_some());
    let wiped = |order: &&Order| matches!(order, Order::WipeSlice { .. });
    assert_eq!(pool.servers.iter().flat_map(|server| &server.log).find(wiped), None);
    assert_eq!(slices(&pool), all);
}

#[test]
fn f1_an_epoch_that_fenced_former_slices_is_given_to_nobody_else() {
    let mut pool = Pool::new(&[16, 16, 20, 24, 0]);
    pool.done(create(1, "v", Way::Divided, &[("a1", Some(R))]));
    let borrower = pool.id(E);
    pool.done(set_way(2, "v", Way::Single, &[]));
    let wiped = pool.servers[0].log.iter().find_map(|order| match order {
        Order::WipeSlice { epoch, .. } => Some(epoch.number),
        _ => None,
    });
    pool.done(borrow(3, borrower, Some("v"), None, None));
    assert!(volume(&pool).epoch.number > wiped.unwrap(), "{} {wiped:?}", volume(&pool).epoch);
    pool.mounted(mount(4, borrower, "v"));
}
