//! Lenders that are silent for a while and go on in the same process (SIGSTOP, a network that was away), answers that get
//! lost on the way, and disks that move.

use sublet_api::order::Order;
use sublet_api::request::{Request, Response};
use sublet_types::Way;

use crate::core::testing::{Pool, R, borrow, force_unmount, mount, transfer};

/// Stops a server's process for a while. What it is sent meanwhile waits in its sockets.
fn stop_for(pool: &mut Pool, index: usize, ms: u64) {
    pool.server(index).alive = false;
    pool.pass(ms);
}

#[test]
fn a_lender_that_was_stopped_for_a_while_is_fenced_at_first_contact_and_reports_anew() {
    for silent_ms in [3000, 9000, 12_000, 13_000, 16_000, 20_000, 40_000] {
        let mut pool = Pool::new(&[16, 0, 0]);
        let (b, c) = (pool.id(1), pool.id(2));
        pool.done(borrow(1, b, Some("v"), Some(R), None));
        pool.mounted(mount(2, b, "v"));
        pool.server(0).alive = false;
        pool.pass(1000);
        pool.done(force_unmount(3, "v"));
        pool.pass(silent_ms - 1000);
        pool.go_on(0);
        pool.pass(6000);
        assert!(matches!(pool.server(0).log.first(), Some(Order::Fence { .. })), "{silent_ms}: {:?}", pool.server(0).log);
        assert_eq!((pool.admitted(0), pool.table().volumes[0].state.as_str()), (0, "ready"), "{silent_ms}");
        pool.done(transfer(4, "v", "server-c", false));
        pool.mounted(mount(5, c, "v"));
    }
}

#[test]
fn a_lender_that_was_lost_and_goes_on_in_the_same_process_reports_all_its_areas() {
    let mut pool = Pool::new(&[16, 0]);
    stop_for(&mut pool, 0, 20_000);
    // Nobody has been told of this.
    pool.server(0).areas.values_mut().next().unwrap().offline = Some("the disk has failed".to_owned());
    pool.go_on(0);
    pool.pass(1000);
    assert_eq!(pool.table().areas[0].state, "offline: the disk has failed");
}

#[test]
fn orders_whose_delivery_got_lost_are_given_again_as_soon_as_the_server_registers() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), Some(Way::Doubled)));
    let begun = pool.now_ms;
    let conn = pool.send(mount(2, borrower, "v"));
    // The answer with the order never arrives: the server sees its poll fail, and registers again.
    let lost = pool.server(1).conn.take().unwrap();
    assert!(matches!(pool.replies.remove(&lost), Some(Response::Poll(answer)) if answer.orders.len() == 1));
    pool.server(1).registered = false;
    pool.settle();
    assert!(matches!(pool.replies.remove(&conn), Some(Response::Task(_))), "at once");
    assert_eq!(pool.now_ms, begun);
    assert_eq!(pool.core.table().volume("v").unwrap().segments[0].in_sync(), [true, true]);
}

#[test]
fn a_lender_that_is_killed_right_after_it_was_told_gets_its_orders_again_from_its_next_process() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), Some(Way::Doubled)));
    let conn = pool.send(mount(2, borrower, "v"));
    pool.kill(1);
    pool.pass(8000);
    pool.revive(1);
    let Some(Response::Task(_)) = pool.replies.remove(&conn) else { panic!("its caller is told that it goes on") };
    pool.mounted(mount(2, borrower, "v"));
    assert_eq!(pool.core.table().volume("v").unwrap().segments[0].in_sync(), [true, true]);
}

#[test]
fn watchers_see_every_change_also_of_servers_and_also_after_a_restart_of_the_manager() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    pool.mounted(mount(2, borrower, "v"));
    let mut shown = pool.table();
    let mut check = |pool: &mut Pool, what: &str| {
        let now = pool.table();
        let same = shown.volumes == now.volumes && shown.areas == now.areas && shown.servers == now.servers;
        assert!(same || now.revision > shown.revision, "{what}: the view differs, the revision does not");
        shown = now;
    };
    for (restart, wait_ms) in [(false, 13_000), (true, 500), (true, 13_000), (false, 500)] {
        pool.kill(1);
        pool.pass(wait_ms);
        check(&mut pool, "killed");
        if restart {
            pool.restart_manager();
            check(&mut pool, "restarted");
            pool.settle();
            check(&mut pool, "heard");
            pool.pass(14_000);
            check(&mut pool, "silent");
        }
        pool.revive(1);
        check(&mut pool, "revived");
    }
    let revision = pool.table().revision;
    let watching = pool.send(Request::Table { after: Some(revision), wait_ms: 60_000 });
    pool.pass(5000);
    assert!(!pool.replies.contains_key(&watching), "nothing has changed");
    stop_for(&mut pool, 1, 13_000);
    assert!(pool.replies.remove(&watching).is_some(), "lost");
    let revision = pool.table().revision;
    let watching = pool.send(Request::Table { after: Some(revision), wait_ms: 60_000 });
    pool.go_on(1);
    assert!(pool.replies.contains_key(&watching), "up again");
}

/// Takes an area out of one server and puts it into another one.
fn move_disk(pool: &mut Pool, from: usize, to: usize) {
    let (id, area) = pool.server(from).areas.pop_first().unwrap();
    pool.server(to).areas.insert(id, area);
    pool.server(to).tell_areas = true;
}

#[test]
fn a_disk_that_moves_while_its_old_server_still_lists_it_is_taken_over_when_that_one_notices() {
    let mut pool = Pool::new(&[16, 0, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    move_disk(&mut pool, 0, 1);
    pool.pass(6000);
    assert_eq!(pool.table().areas[0].server.as_str(), "server-a", "two servers claim it: nothing moves");
    pool.server(0).tell_areas = true;
    pool.pass(6000);
    let area = pool.table().areas.remove(0);
    assert_eq!((area.server.as_str(), area.state.as_str()), ("server-b", "online"));
    pool.mounted(mount(2, borrower, "v"));
}

#[test]
fn a_disk_that_moves_just_after_its_old_server_died_is_taken_over_when_that_one_counts_as_lost() {
    let mut pool = Pool::new(&[16, 0, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    pool.kill(0);
    move_disk(&mut pool, 0, 1);
    pool.pass(14_000);
    let area = pool.table().areas.remove(0);
    assert_eq!((area.server.as_str(), area.state.as_str()), ("server-b", "online"));
    pool.mounted(mount(2, borrower, "v"));
    // The old server lists it as missing from now on: that is no news of this disk.
    let missing = pool.server(1).areas.iter().map(|(id, area)| (*id, area.clone())).next().unwrap();
    pool.server(0).areas.insert(missing.0, missing.1);
    pool.server(0).areas.values_mut().next().unwrap().offline = Some("its file is missing".to_owned());
    pool.restart_manager();
    pool.kill(1);
    pool.revive(0);
    pool.pass(1000);
    assert_eq!(pool.table().areas[0].server.as_str(), "server-b", "also while its new server is away");
    pool.revive(1);
    pool.pass(1000);
    let area = pool.table().areas.remove(0);
    assert_eq!((area.server.as_str(), area.state.as_str()), ("server-b", "online"));
}

#[test]
fn a_copy_of_a_disk_does_not_take_over_while_its_owner_restarts_or_falls_silent() {
    let mut pool = Pool::new(&[16, 0, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let copy = pool.server(0).areas.clone();
    pool.server(1).areas = copy;
    pool.server(1).tell_areas = true;
    pool.pass(20_000);
    pool.kill(0);
    pool.revive(0);
    pool.pass(1000);
    assert_eq!(pool.table().areas[0].server.as_str(), "server-a");
    pool.kill(0);
    pool.pass(20_000);
    assert_eq!(pool.table().areas[0].server.as_str(), "server-a", "it was heard of after the copy turned up");
    pool.revive(0);
    pool.mounted(mount(2, borrower, "v"));
}
