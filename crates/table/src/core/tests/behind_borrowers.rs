//! Who has a volume is never decided by a table that is older than the labels (L5, R1).

use sublet_api::ErrorKind;
use sublet_api::order::Order;
use sublet_api::rebuild::Rebuild;
use sublet_api::request::{Request, Response};
use sublet_api::view::PathState;
use sublet_types::{ServerId, Way};

use crate::core::testing::{Pool, R, borrow, create, mount, transfer, unmount};
use crate::records::VolumeRow;

const C: usize = 2;
const D: usize = 3;

/// `v` on a1 and b1, free.
fn free() -> Pool {
    let mut pool = Pool::new(&[16, 16, 0, 0]);
    pool.done(create(1, "v", Way::Doubled, &[("a1", Some(2 * R)), ("b1", Some(2 * R))]));
    pool
}

fn volume(pool: &Pool) -> VolumeRow {
    pool.core.table().volume("v").unwrap().clone()
}

/// Who has it by the labels.
fn labelled(pool: &Pool) -> Vec<Option<ServerId>> {
    let slices = pool.servers.iter().flat_map(|server| server.areas.values()).flat_map(|area| area.slices.values());
    slices.map(|slice| slice.facts.borrower).collect()
}

fn reconcile(pool: &mut Pool) {
    pool.ask(Request::Rebuild(Rebuild { reconcile: true, ..Rebuild::default() }));
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    pool.pass(6000);
}

#[test]
fn l5_a_table_that_does_not_know_of_a_borrowing_or_a_transfer_is_seen_to_be_behind() {
    for is_transfer in [false, true] {
        let mut pool = free();
        let (c, d) = (pool.id(C), pool.id(D));
        if is_transfer {
            pool.done(borrow(2, c, Some("v"), None, None));
        }
        let backup = pool.backup();
        if is_transfer {
            pool.done(transfer(3, "v", "server-d", false));
        } else {
            pool.done(borrow(3, d, Some("v"), None, None));
        }
        pool.pass(6000);
        assert_eq!(labelled(&pool), [Some(d), Some(d)]);
        pool.restore(&backup);
        pool.pass(6000);
        let reason = volume(&pool).frozen.expect("the labels know of another borrower");
        assert!(reason.contains("manager rebuild --reconcile"), "{reason}");
        pool.refused(borrow(4, c, Some("v"), None, None));
        assert_eq!(labelled(&pool), [Some(d), Some(d)]);
        reconcile(&mut pool);
        assert_eq!((volume(&pool).frozen, volume(&pool).borrower), (None, Some(d)));
        let epoch = pool.mounted(mount(5, d, "v")).epoch;
        pool.done(unmount(6, d, "v", epoch));
    }
}

#[test]
fn l5_a_borrowing_by_a_table_that_turns_out_to_be_behind_tells_the_labels_nothing() {
    for is_transfer in [false, true] {
        let mut pool = free();
        let (c, d) = (pool.id(C), pool.id(D));
        if is_transfer {
            pool.done(borrow(2, c, Some("v"), None, None));
        }
        let backup = pool.backup();
        let change = if is_transfer { transfer(3, "v", "server-d", false) } else { borrow(3, d, Some("v"), None, None) };
        pool.done(change);
        let epoch = pool.mounted(mount(4, d, "v")).epoch;
        pool.done(unmount(5, d, "v", epoch));
        pool.restore(&backup);
        // Before any lender has told of its labels.
        let wrong = if is_transfer { transfer(6, "v", "server-b", false) } else { borrow(6, c, Some("v"), None, None) };
        let refusal = pool.refused(wrong);
        assert!(refusal.message.contains("frozen"), "{refusal}");
        pool.pass(6000);
        assert_eq!(labelled(&pool), [Some(d), Some(d)]);
        reconcile(&mut pool);
        assert_eq!((volume(&pool).frozen, volume(&pool).borrower), (None, Some(d)));
    }
}

#[test]
fn f1_a_lender_that_was_away_while_a_volume_was_borrowed_is_fenced_and_told_when_it_returns() {
    let mut pool = free();
    let d = pool.id(D);
    pool.lose(1);
    pool.done(borrow(3, d, Some("v"), None, None));
    let row = volume(&pool);
    assert_eq!((row.epoch.number, row.segments[0].in_sync()), (1, vec![true, true]));
    pool.revive(1);
    pool.pass(6000);
    assert_eq!(labelled(&pool), [Some(d), Some(d)]);
    let told: Vec<&Order> = pool.servers[1].log.iter().collect();
    assert!(matches!(told[0], Order::Fence { epoch, .. } if *epoch == row.epoch), "{told:?}");
    assert!(volume(&pool).frozen.is_none());
}

#[test]
fn l5_f4_a_client_is_not_stopped_by_a_table_that_is_behind_and_has_given_its_epoch_to_another_mount() {
    let mut pool = free();
    let borrower = pool.id(2);
    pool.done(borrow(2, borrower, Some("v"), None, None));
    let backup = pool.backup();
    let mounting = pool.mounted(mount(3, borrower, "v"));
    (0..2).for_each(|server| pool.kill(server));
    pool.restore(&backup);
    pool.send(mount(4, borrower, "v"));
    pool.pass(100);
    assert!(volume(&pool).epoch.is_split_from(mounting.epoch));
    let told = |pool: &mut Pool| {
        let conn = pool.report(&mounting, PathState::Open, false);
        pool.replies.remove(&conn)
    };
    let is_stopped =
        |told: &Option<Response>| matches!(told, Some(Response::Refused(refusal)) if refusal.kind == ErrorKind::StaleEpoch);
    let first = told(&mut pool);
    assert!(!is_stopped(&first), "{first:?}");
    // That mount fails, and what it may have left behind is fenced: the table's epoch is above the client's then.
    (0..2).for_each(|server| pool.revive(server));
    pool.pass(6000);
    assert!(volume(&pool).frozen.is_some() && volume(&pool).epoch.number > mounting.epoch.number);
    let second = told(&mut pool);
    assert!(!is_stopped(&second), "{second:?}");
}
