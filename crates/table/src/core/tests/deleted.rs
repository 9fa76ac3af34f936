//! What was deleted stays so: copies that were not there, and rows of wipes that cannot be read (R2, P2).

use sublet_api::order::Order;
use sublet_api::rebuild::{AcceptVolume, Rebuild};
use sublet_api::request::Request;
use sublet_types::{SliceId, Way};

use crate::core::testing::{Pool, R, borrow, create, give_back, mount, unmount};

const C: usize = 2;

fn rebuild(pool: &mut Pool, reconcile: bool) {
    pool.ask(Request::Rebuild(Rebuild { reconcile, ..Rebuild::default() }));
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    pool.pass(6000);
}

fn slices(pool: &Pool, server: usize) -> usize {
    pool.servers[server].areas.values().map(|area| area.slices.len()).sum()
}

#[test]
fn r2_a_copy_that_was_not_there_when_its_rebuilt_volume_was_deleted_is_wiped_when_it_comes() {
    for (accepted, lost_again) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut pool = Pool::new(&[16, 16, 0]);
        let borrower = pool.id(C);
        pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
        let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
        pool.done(unmount(3, borrower, "v", epoch));
        pool.kill(1);
        pool.lose_table();
        rebuild(&mut pool, false);
        if accepted {
            let accept = AcceptVolume { leg: "a1".to_owned(), stale: false };
            pool.ask(Request::AcceptVolume { volume: "v".to_owned(), accept });
        }
        pool.done(give_back(10, Some(borrower), "v", true));
        pool.pass(6000);
        assert_eq!(slices(&pool, 0), 0);
        if lost_again {
            pool.lose_table();
            rebuild(&mut pool, false);
        }
        pool.revive(1);
        pool.pass(20_000);
        rebuild(&mut pool, true);
        assert!(pool.core.table().volumes.is_empty(), "{accepted} {lost_again}: it lives again");
        assert_eq!(slices(&pool, 1), 0, "{accepted} {lost_again}");
        assert!(pool.servers[1].areas.values().all(|area| area.dirty.is_empty()));
    }
}

fn stones(pool: &Pool, server: usize) -> usize {
    pool.servers[server].areas.values().map(|area| area.tombstones.len()).sum()
}

/// Its lender answers, and its disk hangs: no label shows that the slice is to be wiped.
#[test]
fn r2_a_wipe_that_does_not_begin_is_in_all_other_labels_before_long() {
    let mut pool = Pool::new(&[16, 16, 16, 0]);
    let borrower = pool.id(3);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Single)));
    let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
    pool.done(unmount(3, borrower, "v", epoch));
    let lender = (0..3).find(|server| slices(&pool, *server) > 0).unwrap();
    let others: Vec<usize> = (0..3).filter(|server| *server != lender).collect();
    pool.server(lender).stuck = true;
    pool.send(give_back(10, Some(borrower), "v", false));
    pool.pass(6000);
    assert!(others.iter().all(|server| stones(&pool, *server) == 1));
    assert_eq!(stones(&pool, lender), 0);
    pool.lose_table();
    rebuild(&mut pool, false);
    assert!(pool.core.table().volumes.is_empty(), "it lives again");
    assert_eq!(pool.core.table().wipes.len(), 1);
    pool.server(lender).stuck = false;
    pool.server(lender).registered = false;
    pool.pass(60_000);
    assert_eq!(slices(&pool, lender), 0);
    assert!((0..3).all(|server| stones(&pool, server) == 0));
    assert!(pool.core.table().wipes.is_empty());
}

/// Every other label would have to be written twice for each volume that is returned.
#[test]
fn r2_a_wipe_that_ends_soon_is_in_no_other_label() {
    let mut pool = Pool::new(&[64, 16, 0]);
    let borrower = pool.id(2);
    for id in 0..10 {
        pool.done(borrow(1 + id, borrower, Some(&format!("v{id}")), Some(3 * R), Some(Way::Divided)));
    }
    for id in 0..10 {
        pool.done(give_back(100 + id, Some(borrower), &format!("v{id}"), false));
    }
    pool.pass(60_000);
    let put = |order: &&Order| matches!(order, Order::PutTombstones { .. });
    assert_eq!(pool.servers.iter().flat_map(|server| &server.log).find(put), None);
}

/// The table is lost while a volume is being returned, and the wipe of its last copy ends before anybody knows of it. Where its
/// other copy is, if it is anywhere, is not known: so it stays, and says how it goes.
#[test]
fn r1_p2_a_volume_of_which_nothing_is_left_after_a_rebuild_is_dissolved() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(C);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    let wipe = |pool: &mut Pool, server: usize| {
        let area = pool.servers[server].areas.values_mut().next().unwrap();
        (area.slices, area.dirty) = Default::default();
        pool.servers[server].tell_areas = true;
    };
    wipe(&mut pool, 1);
    pool.lose_table();
    rebuild(&mut pool, false);
    wipe(&mut pool, 0);
    pool.pass(6000);
    assert!(pool.core.table().volume("v").unwrap().unsettled);
    let accept = AcceptVolume { leg: "a1".to_owned(), stale: false };
    let refusal = pool.refused(Request::AcceptVolume { volume: "v".to_owned(), accept });
    assert!(refusal.message.contains("nothing is left") && refusal.hint.contains("sublet return v --dissolve"), "{refusal}");
    pool.done(give_back(2, None, "v", true));
    assert!(pool.core.table().volumes.is_empty());
    pool.done(borrow(3, borrower, Some("w"), Some(16 * R), Some(Way::Doubled)));
}

/// `v` is defined and was returned; its wipe has not ended when the row of it is damaged.
fn damaged(dissolve: bool) -> (Pool, SliceId) {
    let mut pool = Pool::new(&[16, 0, 0]);
    let borrower = pool.id(C);
    pool.done(create(1, "v", Way::Divided, &[("a1", Some(2 * R))]));
    pool.done(borrow(2, borrower, Some("v"), None, None));
    let epoch = pool.mounted(mount(3, borrower, "v")).epoch;
    pool.done(unmount(4, borrower, "v", epoch));
    pool.lose(0);
    pool.done(give_back(5, Some(borrower), "v", dissolve));
    let slice = *pool.core.table().wipes.keys().next().unwrap();
    pool.store.overwrite(&format!("wipe/{slice}"), b"garbage");
    pool.restart_manager();
    (pool, slice)
}

#[test]
fn p2_a_damaged_row_of_a_wipe_frees_no_volume_with_its_former_borrowers_bytes() {
    let (mut pool, slice) = damaged(false);
    assert!(pool.core.table().wipes.contains_key(&slice), "it is made anew from the volume");
    let refusal = pool.refused(borrow(10, pool.id(C), Some("v"), None, None));
    assert!(refusal.message.contains("still holds its last borrower's bytes"), "{refusal}");
    pool.revive(0);
    pool.pass(10_000);
    assert!(pool.servers[0].areas.values().all(|area| area.dirty.is_empty()));
    pool.done(borrow(11, pool.id(C), Some("v"), None, None));
    // Once is enough: what is set aside is not wiped again.
    pool.restart_manager();
    assert!(pool.core.table().wipes.is_empty());
}

#[test]
fn p2_a_damaged_row_of_a_wipe_of_a_deleted_volume_is_made_anew_from_the_label() {
    let (mut pool, slice) = damaged(true);
    pool.restart_manager();
    pool.revive(0);
    pool.pass(10_000);
    assert!(!pool.servers[0].areas.values().any(|area| area.slices.contains_key(&slice)));
    assert!(pool.servers[0].areas.values().all(|area| area.dirty.is_empty()));
    assert!(pool.core.table().wipes.is_empty());
}
