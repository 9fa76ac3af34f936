//! Labels whose generation a rebuilt table has not committed (R1, S1, L5).

use sublet_api::rebuild::Rebuild;
use sublet_api::request::{LegAnswer, LegChange, Request, Response};
use sublet_types::Way;

use crate::core::testing::{Pool, R, borrow, mount};

const C: usize = 2;

fn rebuild(pool: &mut Pool, reconcile: bool) {
    pool.ask(Request::Rebuild(Rebuild { reconcile, ..Rebuild::default() }));
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    pool.pass(6000);
}

#[test]
fn r1_a_copy_that_left_just_before_the_table_was_lost_is_not_in_sync_again() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(C);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    let mounting = pool.mounted(mount(2, borrower, "v"));
    // Committed by the manager, and not in any label yet when its table is lost.
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    pool.lose_table();
    rebuild(&mut pool, false);
    assert!(pool.core.table().volume("v").unwrap().frozen.is_none());
    pool.set_state(0, &left);
    pool.servers[0].tell_areas = true;
    pool.lose_answer(0);
    let refusal = pool.refused(mount(3, borrower, "v"));
    assert!(refusal.message.contains("frozen"), "{refusal}");
    let reason = pool.core.table().volume("v").unwrap().frozen.clone().unwrap();
    assert!(reason.contains("without a copy") && reason.contains("--reconcile"), "{reason}");
    rebuild(&mut pool, true);
    let row = pool.core.table().volume("v").unwrap().clone();
    assert_eq!((row.frozen, row.segments[0].in_sync()), (None, vec![true, false]));
    assert_eq!(row.lease.map(|lease| lease.epoch), Some(mounting.epoch), "its client goes on");
}

#[test]
fn s5_a_label_that_is_ahead_because_its_copy_returns_freezes_nothing() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(C);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    let mounting = pool.mounted(mount(2, borrower, "v"));
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    let Response::Leg(issued) = pool.change_leg(&mounting, 1, left.generation, LegChange::Returning) else { panic!() };
    pool.set_state(1, &LegAnswer { in_sync: vec![true, true], ..issued });
    pool.servers[1].tell_areas = true;
    pool.lose_answer(1);
    assert!(pool.core.table().volume("v").unwrap().frozen.is_none());
    pool.mounted(mount(3, borrower, "v"));
    pool.servers[1].tell_areas = true;
    pool.lose_answer(1);
    assert!(pool.core.table().volume("v").unwrap().frozen.is_none(), "nor when that was broken off");
}
