//! Lenders that die, hang, and return.

use sublet_api::ErrorKind;
use sublet_api::order::Order;
use sublet_api::request::{LegChange, Response, TaskOutcome};
use sublet_types::Way;

use crate::core::testing::{Pool, R, borrow, create, force_unmount, give_back, mount, name, reclaim, set_way, transfer, unmount};

fn doubled() -> Pool {
    let mut pool = Pool::new(&[16, 16, 0, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(4 * R), Some(Way::Doubled)));
    pool
}

#[test]
fn a_doubled_volume_mounts_without_a_dead_lender_whose_copy_is_then_stale() {
    let mut pool = doubled();
    let before = pool.core.table().volume("v").unwrap().segments[0].generation;
    pool.kill(1);
    let borrower = pool.id(2);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    let in_sync: Vec<bool> = mounting.segments[0].legs.iter().map(|leg| leg.in_sync).collect();
    assert_eq!(in_sync, [true, false]);
    assert_eq!(mounting.segments[0].generation.number, before.number + 1);
    // The survivor's label has the new generation before the client comes (S1, F6).
    let label = pool.server(0).areas.values().next().unwrap().slices.values().next().unwrap().facts.clone();
    assert_eq!((label.generation, label.in_sync), (mounting.segments[0].generation, vec![true, false]));
    assert!(pool.events().iter().any(|event| event.contains("the copy at server-b is stale")));
}

#[test]
fn first_contact_with_a_returning_lender_is_the_present_epoch() {
    let mut pool = doubled();
    let borrower = pool.id(2);
    let first = pool.mounted(mount(2, borrower, "v"));
    pool.kill(1);
    let second = pool.mounted(mount(3, borrower, "v"));
    pool.revive(1);
    let slice = second.segments[0].legs[1].slice;
    assert!(
        matches!(&pool.server(1).log[0], Order::OpenLease { slice: told, lease, .. } if *told == slice && lease.epoch == second.epoch)
    );
    assert_eq!(pool.admitted(1), 1, "so that the client can copy to it");
    assert!(!pool.core.table().volume("v").unwrap().segments[0].legs[1].in_sync, "and not before is it in sync");
    assert!(second.epoch.number > first.epoch.number);
    // Unmounted while it was away: it is fenced.
    pool.kill(1);
    let answer = pool.done(unmount(4, borrower, "v", second.epoch));
    let TaskOutcome::Unmounted { unmounting } = answer.outcome else { panic!("{answer:?}") };
    assert_eq!((unmounting.released, unmounting.unreachable), (vec![name("server-a")], vec![name("server-b")]));
    pool.revive(1);
    assert!(
        matches!(&pool.server(1).log[0], Order::Fence { slice: told, epoch, .. } if *told == slice && epoch.number == second.epoch.number + 1)
    );
    assert_eq!(pool.admitted(1), 0);
}

#[test]
fn a_normal_unmount_leaves_copies_in_sync_and_a_forced_one_makes_those_stale_that_could_not_be_fenced() {
    let mut pool = doubled();
    let borrower = pool.id(2);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    pool.kill(1);
    pool.done(unmount(3, borrower, "v", mounting.epoch));
    assert_eq!(pool.core.table().volume("v").unwrap().segments[0].in_sync(), [true, true]);
    pool.revive(1);
    pool.mounted(mount(4, borrower, "v"));
    pool.kill(1);
    pool.done(force_unmount(5, "v"));
    assert_eq!(pool.core.table().volume("v").unwrap().segments[0].in_sync(), [true, false]);
}

#[test]
fn only_a_lender_whose_copy_is_in_sync_and_not_fenced_is_said_to_be_missing() {
    let mut pool = doubled();
    let borrower = pool.id(2);
    pool.kill(1);
    pool.mounted(mount(2, borrower, "v"));
    pool.revive(1);
    pool.kill(0);
    // The stale copy is fenced, which says nothing about the other one.
    let TaskOutcome::Unmounted { unmounting } = pool.done(force_unmount(3, "v")).outcome else { panic!() };
    assert_eq!((unmounting.released, unmounting.unreachable), (vec![name("server-b")], vec![name("server-a")]));
    assert_eq!(pool.table().volumes[0].state, "not fenced yet at server-a");
    let told = "server-a did not answer; the volume cannot be mounted elsewhere until it has been fenced there";
    assert!(pool.events().iter().any(|event| event.contains(told)), "{:?}", pool.events());
    let refusal = pool.refused(transfer(4, "v", "server-d", false));
    assert!(refusal.message.contains("server-a has not confirmed"), "{refusal}");
}

#[test]
fn a_single_volume_with_a_dead_lender_is_not_mounted_and_not_handed_over() {
    let mut pool = Pool::new(&[16, 0, 0]);
    let (b, c) = (pool.id(1), pool.id(2));
    pool.done(borrow(1, b, Some("v"), Some(R), None));
    pool.mounted(mount(2, b, "v"));
    pool.kill(0);
    let TaskOutcome::Unmounted { unmounting } = pool.done(force_unmount(3, "v")).outcome else { panic!() };
    assert_eq!((unmounting.released, unmounting.unreachable, unmounting.status), (vec![], vec![name("server-a")], 0));
    assert_eq!(pool.table().volumes[0].state, "not fenced yet at server-a");
    let refusal = pool.refused(transfer(4, "v", "server-c", false));
    assert!(refusal.message.contains("server-a"), "{refusal}");
    let refusal = pool.refused(mount(5, b, "v"));
    assert_eq!(refusal.kind, ErrorKind::LenderUnreachable);
    assert!(refusal.message.contains("server-a did not open the lease"), "{refusal}");
    assert_eq!(pool.table().volumes[0].status, 0);
    pool.revive(0);
    assert!(matches!(pool.server(0).log[0], Order::Fence { .. }), "F3");
    assert_eq!(pool.table().volumes[0].state, "ready");
    pool.done(transfer(6, "v", "server-c", false));
    pool.mounted(mount(7, c, "v"));
}

/// Shipped elsewhere: of the two lenders of a writer without a disk one never learned a generation, and was then taken for in
/// sync, because its own label said so.
#[test]
fn s1_f3_a_lender_that_never_learned_of_a_generation_is_not_taken_for_in_sync() {
    let mut pool = doubled();
    let borrower = pool.id(2);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    pool.kill(1);
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    pool.kill(0);
    pool.done(force_unmount(3, "v"));
    pool.revive(1);
    let label = pool.server(1).areas.values().next().unwrap().slices.values().next().unwrap().facts.clone();
    assert_eq!((label.generation.number, label.in_sync), (left.generation.number - 1, vec![true, true]), "it knows no better");
    let refusal = pool.refused(mount(4, borrower, "v"));
    assert_eq!(refusal.kind, ErrorKind::LenderUnreachable);
    assert!(refusal.message.contains("server-a") && !refusal.message.contains("server-b"), "{refusal}");
    pool.revive(0);
    let mounting = pool.mounted(mount(5, borrower, "v"));
    let in_sync: Vec<bool> = mounting.segments[0].legs.iter().map(|leg| leg.in_sync).collect();
    assert_eq!((mounting.segments[0].generation, in_sync), (left.generation, vec![true, false]));
}

#[test]
fn a_mount_that_fails_fences_what_it_had_opened() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(create(1, "v", Way::Integrated, &[("a1", None), ("b1", None)]));
    pool.done(borrow(2, borrower, Some("v"), None, None));
    pool.server(1).stuck = true;
    let refusal = pool.refused(mount(3, borrower, "v"));
    assert!(refusal.message.contains("server-b did not open the lease: it did not answer for 10 s"), "{refusal}");
    assert_eq!((pool.admitted(0), pool.table().volumes[0].status), (0, 0));
    pool.server(1).stuck = false;
    pool.pass(60_000);
    assert_eq!(pool.admitted(1), 0, "the late lender is fenced too");
    let mounting = pool.mounted(mount(4, borrower, "v"));
    assert_eq!(mounting.epoch.number, 4, "borrowed, tried, fenced, mounted");
}

#[test]
fn a_lender_with_a_stuck_disk_counts_as_unreachable_after_ten_seconds() {
    let mut pool = doubled();
    pool.server(1).stuck = true;
    let start = pool.now_ms;
    let borrower = pool.id(2);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    assert!(!mounting.segments[0].legs[1].in_sync);
    assert!((10_000..12_500).contains(&(pool.now_ms - start)), "{}", pool.now_ms - start);
}

#[test]
fn a_stale_copy_does_not_hold_up_a_mount() {
    let mut pool = doubled();
    let borrower = pool.id(2);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    let generation = mounting.segments[0].generation;
    assert!(matches!(pool.change_leg(&mounting, 1, generation, LegChange::Stale), Response::Leg(_)));
    pool.server(1).stuck = true;
    let start = pool.now_ms;
    let mounting = pool.mounted(mount(3, borrower, "v"));
    assert!(pool.now_ms - start <= 2000, "{}", pool.now_ms - start);
    assert!(!mounting.segments[0].legs[1].in_sync);
    pool.server(1).stuck = false;
    pool.pass(60_000);
    assert_eq!(pool.admitted(1), 1, "its lease is opened when it answers again");
}

#[test]
fn a_borrow_that_a_lender_does_not_confirm_is_undone_and_its_slices_are_wiped_later() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.server(1).stuck = true;
    let refusal = pool.refused(borrow(1, borrower, Some("v"), Some(R), Some(Way::Doubled)));
    assert_eq!(refusal.kind, ErrorKind::LenderUnreachable);
    assert!(refusal.message.contains("server-b did not enter its slice"), "{refusal}");
    assert!(pool.table().volumes.is_empty());
    pool.server(1).stuck = false;
    pool.pass(60_000);
    assert!(pool.core.table().wipes.is_empty());
    assert!(pool.servers.iter().flat_map(|server| server.areas.values()).all(|area| area.slices.is_empty()));
    pool.done(borrow(2, borrower, Some("v"), Some(R), Some(Way::Doubled)));
}

#[test]
fn space_at_a_dead_lender_stays_to_be_wiped_until_it_returns() {
    let mut pool = doubled();
    let borrower = pool.id(2);
    let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
    pool.done(unmount(3, borrower, "v", epoch));
    pool.lose(1);
    let answer = pool.done(give_back(4, Some(borrower), "v", false));
    assert!(answer.task.reason.contains("16 MiB at server-b cannot be wiped now"), "{}", answer.task.reason);
    let table = pool.table();
    assert_eq!((table.areas[0].free, table.areas[1].free), (16 * R, 12 * R));
    assert_eq!(table.areas[1].slices[0].state, "to be wiped");
    pool.restart_manager();
    pool.revive(1);
    assert!(matches!(pool.server(1).log[0], Order::WipeSlice { drop: true, .. }));
    assert_eq!(pool.table().areas[1].free, 16 * R);
    assert!(pool.server(1).areas.values().all(|area| area.dirty.is_empty() && area.slices.is_empty()));
}

#[test]
fn a_free_volume_cannot_be_borrowed_before_its_wipe_is_confirmed() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(create(1, "v", Way::Single, &[("a1", None)]));
    pool.done(borrow(2, borrower, Some("v"), None, None));
    pool.lose(0);
    pool.done(give_back(3, Some(borrower), "v", false));
    let refusal = pool.refused(borrow(4, borrower, Some("v"), None, None));
    assert!(refusal.message.contains("still holds its last borrower's bytes: server-a"), "{refusal}");
    assert_eq!(pool.table().volumes[0].state, "to be wiped");
    pool.revive(0);
    pool.done(borrow(5, borrower, Some("v"), None, None));
}

#[test]
fn lost_servers_and_offline_areas_get_no_slices() {
    let mut pool = Pool::new(&[16, 16, 16, 0]);
    let borrower = pool.id(3);
    pool.lose(0);
    let area = pool.server(1).areas.values_mut().next().unwrap();
    area.offline = Some("piece 2 of 3 is missing".to_owned());
    pool.server(1).tell_areas = true;
    pool.pass(6000);
    assert_eq!(pool.table().areas[1].state, "offline: piece 2 of 3 is missing");
    let refusal = pool.refused(borrow(1, borrower, Some("v"), Some(R), Some(Way::Doubled)));
    assert!(refusal.message.contains("1 area of servers that do not answer, 1 area offline"), "{refusal}");
    let TaskOutcome::Volume { volume } = pool.done(borrow(2, borrower, Some("v"), Some(R), None)).outcome else { panic!() };
    assert_eq!(volume.areas, [name("c1")]);
    assert_eq!(pool.refused(create(3, "w", Way::Divided, &[("a1", None)])).kind, ErrorKind::LenderUnreachable);
    assert_eq!(pool.refused(create(3, "w", Way::Divided, &[("b1", None)])).kind, ErrorKind::Conflict);
    assert_eq!(pool.refused(reclaim(4, "a1")).kind, ErrorKind::LenderUnreachable);
    for text in ["server-a: lost: it has been silent for 12 s", "b1: offline: piece 2 of 3 is missing"] {
        assert!(pool.events().iter().any(|event| event == text), "{text} in {:#?}", pool.events());
    }
}

#[test]
fn set_way_waits_for_a_lender_that_went_away_and_ends_when_it_returns() {
    let mut pool = Pool::new(&[16, 16]);
    pool.done(create(1, "v", Way::Single, &[("a1", None)]));
    pool.server(0).stuck = true;
    let conn = pool.send(set_way(2, "v", Way::Single, &[("b1", None)]));
    pool.pass(1000);
    pool.lose(0);
    let Some(Response::Task(answer)) = pool.replies.remove(&conn) else { panic!() };
    assert_eq!(answer.outcome, TaskOutcome::Running);
    let Response::Tasks(tasks) = pool.ask(sublet_api::request::Request::Tasks) else { panic!() };
    let waiting = tasks.iter().find(|task| task.kind == "set-way").unwrap();
    assert_eq!(waiting.state, "waiting");
    assert!(waiting.reason.contains("server-a: it has been silent"), "{}", waiting.reason);
    pool.server(0).stuck = false;
    pool.revive(0);
    pool.done(set_way(2, "v", Way::Single, &[("b1", None)]));
}

/// The lender never returns: the administrator gives the volume up.
#[test]
fn a_change_of_way_that_cannot_end_is_ended_by_dissolving_the_volume() {
    for at_preparing in [false, true] {
        let mut pool = Pool::new(&[16, 16, 0]);
        pool.done(create(1, "v", Way::Single, &[("a1", None)]));
        let dead = usize::from(at_preparing);
        pool.server(dead).stuck = true;
        let change = pool.send(set_way(2, "v", Way::Single, &[("b1", None)]));
        pool.pass(1000);
        pool.lose(dead);
        pool.replies.remove(&change);
        let (holder, waiting) = (pool.id(2), pool.send(set_way(2, "v", Way::Single, &[("b1", None)])));
        assert!(pool.refused(borrow(4, holder, Some("v"), None, None)).message.contains("set-way is going on"));
        pool.done(give_back(5, Some(holder), "v", true));
        let Some(Response::Task(answer)) = pool.replies.remove(&waiting) else { panic!("its caller is told") };
        assert!(matches!(answer.outcome, TaskOutcome::Failed { .. }), "{answer:?}");
        assert!(pool.table().volumes.is_empty());
        pool.server(dead).stuck = false;
        pool.revive(dead);
        pool.pass(60_000);
        assert!(pool.core.table().wipes.is_empty());
        let slices = pool.servers.iter().flat_map(|server| server.areas.values()).map(|area| area.slices.len());
        assert_eq!(slices.sum::<usize>(), 0);
        assert_eq!(pool.table().areas.iter().map(|area| area.free).sum::<u64>(), 32 * R);
    }
}

#[test]
fn an_order_whose_delivery_got_lost_is_given_again() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    // The answer with the order never arrives: the server only sees its poll fail and polls again.
    let conn = pool.send(borrow(1, borrower, Some("v"), Some(R), None));
    let lost = pool.server(0).conn.take().unwrap();
    assert!(matches!(pool.replies.remove(&lost), Some(Response::Poll(answer)) if answer.orders.len() == 1));
    pool.pass(15_000);
    assert!(matches!(pool.replies.remove(&conn), Some(Response::Task(_))));
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    assert_eq!(pool.server(0).log.len(), 1);
}

#[test]
fn a_second_process_with_a_servers_identity_is_refused() {
    let mut pool = Pool::new(&[16]);
    let register = |run| {
        let server = sublet_types::ServerId::from_u128(1);
        let (name, zone) = (name("server-a"), String::new());
        sublet_api::request::Request::Register(sublet_api::server::Register {
            server,
            pool: None,
            name,
            zone,
            addresses: vec![],
            version: String::new(),
            run,
        })
    };
    pool.server(0).alive = false;
    assert!(matches!(pool.ask(register(2)), Response::Registered(_)), "it may have been restarted");
    assert!(pool.refused(register(1)).message.contains("another process with the identity of server 'server-a'"));
    pool.pass(20_000);
    assert!(matches!(pool.ask(register(1)), Response::Registered(_)), "the other one is silent");
}

/// Real servers use a second connection for results: the one that waits for orders stays as it is.
#[test]
fn a_poll_with_results_is_answered_at_once_beside_the_held_one() {
    let mut pool = Pool::new(&[16, 0]);
    let held = pool.server(0).conn.unwrap();
    let server = pool.id(0);
    let poll = |areas| sublet_api::request::Request::Poll {
        server,
        poll: sublet_api::server::Poll { run: 1, results: Vec::new(), areas },
    };
    let beside = pool.send(poll(Some(Vec::new())));
    assert!(pool.replies.contains_key(&beside) && !pool.replies.contains_key(&held));
    let instead = pool.send(poll(None));
    assert!(!pool.replies.contains_key(&instead) && pool.replies.contains_key(&held));
}

#[test]
fn a_lender_that_did_not_answer_a_forced_unmount_is_fenced_when_it_answers_again_without_a_restart() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let mounting = pool.mounted(mount(2, borrower, "v"));
    pool.server(0).stuck = true;
    pool.done(force_unmount(3, "v"));
    assert_eq!(pool.table().volumes[0].state, "not fenced yet at server-a");
    pool.server(0).stuck = false;
    pool.pass(60_000);
    assert_eq!(pool.table().volumes[0].state, "ready");
    assert_eq!(pool.admitted(0), 0);
    // The old client learns that it is over, whoever has the volume by now.
    pool.done(give_back(4, Some(borrower), "v", false));
    assert_eq!(pool.refused(unmount(5, borrower, "v", mounting.epoch)).kind, ErrorKind::NotFound);
}

#[test]
fn a_return_does_not_wait_for_ever_for_a_wipe_that_makes_no_progress() {
    let mut pool = Pool::new(&[40, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    pool.server(0).stuck = true;
    let answer = pool.done(give_back(2, Some(borrower), "v", false));
    assert!(answer.task.reason.contains("4 MiB at server-a cannot be wiped now"), "{}", answer.task.reason);
    assert_eq!(pool.core.table().wipes.len(), 1, "it stays wanted");
    pool.server(0).stuck = false;
    pool.pass(60_000);
    assert!(pool.core.table().wipes.is_empty());
}

/// The labels of one area cannot be written any more; another disk of the same server is well.
#[test]
fn wipes_that_fail_do_not_hold_up_the_others_of_their_server() {
    let mut pool = Pool::new(&[64, 0]);
    let borrower = pool.id(1);
    let mut other = pool.server(0).areas.values().next().unwrap().clone();
    other.name = name("a2");
    pool.server(0).areas.insert(sublet_types::AreaId::from_u128(99), other);
    pool.server(0).tell_areas = true;
    pool.pass(6000);
    for n in 0..6 {
        pool.done(create(n + 1, &format!("bad-{n}"), Way::Divided, &[("a1", Some(R))]));
    }
    pool.done(create(10, "good", Way::Divided, &[("a2", Some(R))]));
    let broken = pool.server(0).areas.values_mut().next().unwrap();
    broken.broken = true;
    for n in 0..6 {
        let answer = pool.done(give_back(n + 20, Some(borrower), &format!("bad-{n}"), true));
        assert!(answer.task.reason.contains("cannot be wiped now"), "{}", answer.task.reason);
    }
    let answer = pool.done(give_back(30, Some(borrower), "good", true));
    assert_eq!(answer.task.reason, "", "it is wiped");
    pool.server(0).areas.values_mut().for_each(|area| area.broken = false);
    pool.pass(60_000);
    assert!(pool.core.table().wipes.is_empty());
}
