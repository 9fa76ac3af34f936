//! A lost leg is made anew elsewhere, and never believed again (`volume replace`).

use sublet_api::ErrorKind;
use sublet_api::mount::MountingInformation;
use sublet_api::rebuild::{AcceptVolume, Rebuild};
use sublet_api::request::{
    Borrow, ChangeLeg, ClientAnswer, ClientReport, ControlTask, LegAnswer, LegChange, Request, Response, TaskOutcome,
};
use sublet_api::view::TaskView;
use sublet_types::{Epoch, SliceId, Way};

use crate::core::testing::coordinator::report;
use crate::core::testing::{Pool, R, borrow, control, give_back, mount, replace, unmount};

/// The borrower; c1 and d1 are free.
const E: usize = 4;

/// `v` on a1 and b1.
fn doubled() -> Pool {
    let mut pool = Pool::new(&[16, 16, 20, 24, 0]);
    let borrower = pool.id(E);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    assert_eq!(areas(&pool), ["a1", "b1"]);
    pool
}

fn mounted() -> (Pool, MountingInformation) {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    (pool, mounting)
}

fn areas(pool: &Pool) -> Vec<String> {
    let table = pool.core.table();
    let volume = table.volume("v").unwrap();
    volume.legs().map(|(_, leg)| table.areas[&leg.area].name.to_string()).collect()
}

fn in_sync(pool: &Pool) -> Vec<bool> {
    pool.core.table().volume("v").unwrap().segments[0].in_sync()
}

fn slice(pool: &Pool, leg: usize) -> SliceId {
    pool.core.table().volume("v").unwrap().segments[0].legs[leg].slice
}

fn holds(pool: &Pool, server: usize, slice: SliceId) -> bool {
    pool.servers[server].areas.values().any(|area| area.slices.contains_key(&slice))
}

fn task(pool: &mut Pool, id: u128) -> TaskView {
    let Response::Tasks(tasks) = pool.ask(Request::Tasks) else { panic!() };
    tasks.into_iter().find(|task| task.id == crate::core::testing::task(id)).unwrap()
}

fn tell(pool: &mut Pool, mounting: &MountingInformation, segments_revision: u64) -> ClientAnswer {
    let report = ClientReport { segments_revision, ..report(mounting.epoch) };
    match pool.ask(Request::ClientReport { volume: mounting.volume, report }) {
        Response::Client(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn s6_the_lost_copy_of_an_unmounted_volume_is_made_anew_at_a_third_server() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
    pool.done(unmount(3, borrower, "v", epoch));
    let old = slice(&pool, 1);
    pool.lose(1);
    let answer = pool.done(replace(4, "v", "server-b", None));
    let TaskOutcome::Volume { volume } = answer.outcome else { panic!() };
    assert_eq!(volume.segments[0].legs.iter().map(|leg| leg.state.as_str()).collect::<Vec<_>>(), ["in-sync", "in-sync"]);
    assert_eq!(areas(&pool), ["a1", "c1"], "the smallest space that fits");
    pool.pass(10_000);
    assert_eq!(volume.status, 0);
    // P2: its space is not lent, and it is wiped when its lender returns; it is never believed.
    let view = pool.table();
    let b1 = view.areas.iter().find(|area| area.name.as_str() == "b1").unwrap();
    assert_eq!((b1.slices[0].state.as_str(), b1.free), ("to be wiped", 13 * R));
    assert_eq!(view.volumes[0].state, "ready", "the volume does not wait for that");
    assert!(holds(&pool, 1, old));
    pool.revive(1);
    pool.pass(20_000);
    assert!(!holds(&pool, 1, old));
    assert_eq!((areas(&pool), in_sync(&pool)), (vec!["a1".to_owned(), "c1".to_owned()], vec![true, true]));
    let free = pool.table().areas.iter().find(|area| area.name.as_str() == "b1").unwrap().free;
    assert_eq!(free, 16 * R);
}

#[test]
fn s2_a_mounted_volume_gets_its_new_copy_without_losing_a_change_of_the_client() {
    let (mut pool, mounting) = mounted();
    let generation = mounting.segments[0].generation;
    let old = slice(&pool, 1);
    pool.lose(1);
    assert!(matches!(pool.change_leg(&mounting, 1, generation, LegChange::Stale), Response::Leg(_)));
    let stale_in = pool.core.table().volume("v").unwrap().segments[0].generation;
    pool.send(replace(4, "v", "server-b", Some("d1")));
    pool.settle();
    let new = slice(&pool, 1);
    assert_ne!(new, old);
    assert_eq!((areas(&pool)[1].as_str(), in_sync(&pool)), ("d1", vec![true, false]));
    // The in-sync set has not changed, and so its generation has not: the client's own changes are not disturbed.
    assert_eq!(pool.core.table().volume("v").unwrap().segments[0].generation, stale_in);
    // What was on its way for the old slice is refused: it never comes back as a member.
    for change in [LegChange::Returning, LegChange::InSync, LegChange::Withdrawn] {
        let change = ChangeLeg { epoch: mounting.epoch, segment: 0, slice: old, generation: stale_in, change };
        assert_eq!(pool.refused(Request::ChangeLeg { volume: mounting.volume, change }).kind, ErrorKind::BadRequest);
    }
    // The client learns of the new leg once its lender admits it.
    assert!(pool.is_open(new, mounting.epoch));
    let answer = tell(&mut pool, &mounting, 0);
    let segments = answer.segments.unwrap();
    let leg = &segments[0].legs[1];
    assert_eq!((leg.slice, leg.in_sync, leg.stale_since), (new, false, None), "S3: it holds nothing, so everything is copied");
    // F4: the old lender is back, and is not fenced as long as the client may have a session there.
    pool.revive(1);
    pool.pass(20_000);
    assert!(holds(&pool, 1, old));
    assert!(pool.servers[1].areas.values().all(|area| area.slices[&old].epoch == mounting.epoch));
    tell(&mut pool, &mounting, answer.segments_revision);
    pool.pass(20_000);
    assert!(!holds(&pool, 1, old), "the client has dropped it: it is fenced and wiped");
    let now = MountingInformation { segments, ..mounting };
    pool.bring_back(&now);
    assert_eq!(in_sync(&pool), [true, true]);
    assert!(matches!(pool.done(replace(4, "v", "server-b", Some("d1"))).outcome, TaskOutcome::Volume { .. }));
}

#[test]
fn s1_a_lost_copy_that_is_still_in_sync_is_replaced_once_the_client_has_left_it_out() {
    let (mut pool, mounting) = mounted();
    pool.lose(1);
    pool.send(replace(4, "v", "server-b", None));
    pool.pass(5000);
    assert_eq!((areas(&pool)[1].as_str(), in_sync(&pool)), ("b1", vec![true, true]));
    let view = task(&mut pool, 4);
    assert_eq!(view.state, "waiting");
    assert!(view.reason.contains("still in the in-sync set"), "{}", view.reason);
    // The client is told, so that it looks also while nobody uses the volume.
    let work = tell(&mut pool, &mounting, 0).work;
    assert_eq!((work.len(), work[0].kind), (1, sublet_api::work::WorkKind::Replace));
    pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale);
    pool.pass(5000);
    assert_eq!((areas(&pool)[1].as_str(), in_sync(&pool)), ("c1", vec![true, false]));
    assert!(tell(&mut pool, &mounting, 0).work.is_empty());
    assert!(pool.refused(control(crate::core::testing::task(4), ControlTask::Cancel)).to_string().contains("given up already"));
}

#[test]
fn a_replacement_that_has_not_begun_is_cancelled() {
    let (mut pool, mounting) = mounted();
    pool.lose(1);
    pool.send(replace(4, "v", "server-b", None));
    pool.ask(control(crate::core::testing::task(4), ControlTask::Cancel));
    pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale);
    pool.pass(5000);
    assert_eq!(areas(&pool)[1], "b1");
    assert!(pool.refused(replace(4, "v", "server-b", None)).to_string().contains("cancelled"));
}

#[test]
fn a_new_copy_whose_server_is_lost_too_is_replaced_again() {
    let (mut pool, mounting) = mounted();
    pool.lose(1);
    pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale);
    pool.send(replace(4, "v", "server-b", None));
    pool.pass(3000);
    let first = slice(&pool, 1);
    pool.lose(2);
    pool.send(replace(5, "v", "server-c", None));
    pool.pass(3000);
    assert_eq!(areas(&pool)[1], "d1");
    assert_eq!(task(&mut pool, 4).state, "failed");
    pool.revive(2);
    pool.pass(3000);
    assert!(holds(&pool, 2, first), "held for the client");
    let answer = tell(&mut pool, &mounting, 0);
    tell(&mut pool, &mounting, answer.segments_revision);
    pool.pass(20_000);
    assert!(!holds(&pool, 2, first));
}

/// F4: a client counts what it has taken of a table that was lost since. That says nothing of what the present one has replaced.
#[test]
fn f4_r1_what_a_client_has_taken_of_a_former_table_lets_no_slice_go_that_it_still_uses() {
    // Of the clocks of the two managers either may be ahead.
    for former in [1, 2, 1 << 50] {
        let (mut pool, mounting) = mounted();
        pool.lose(1);
        pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale);
        let old = slice(&pool, 1);
        pool.send(replace(4, "v", "server-b", None));
        pool.pass(3000);
        assert_eq!(areas(&pool)[1], "c1");
        pool.revive(1);
        let answer = tell(&mut pool, &mounting, former);
        pool.pass(20_000);
        assert!(holds(&pool, 1, old), "the client has a session there");
        // It is told of the new copy by a number that is news to it.
        let answer = if answer.segments.is_some() { answer } else { tell(&mut pool, &mounting, former) };
        assert!(answer.segments.is_some() && answer.segments_revision > former, "{answer:?}");
        tell(&mut pool, &mounting, answer.segments_revision);
        pool.pass(20_000);
        assert!(!holds(&pool, 1, old));
    }
}

#[test]
fn s6_refusals_say_why_a_copy_is_not_replaced() {
    let mut pool = Pool::new(&[16, 16, 2, 0]);
    let borrower = pool.id(3);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    pool.done(borrow(2, borrower, Some("s"), Some(R), Some(Way::Divided)));
    let refused = |pool: &mut Pool, volume, lost, on| {
        let refusal = pool.refused(replace(9, volume, lost, on));
        (refusal.kind, refusal.to_string())
    };
    let expect = |(kind, text): (ErrorKind, String), wanted, part: &str| {
        assert_eq!(kind, wanted, "{text}");
        assert!(text.contains(part), "{text}");
    };
    let single = pool.core.table().volume("s").unwrap().clone();
    let lender = pool.core.table().lender_name(single.segments[0].legs[0].area);
    let at: usize = ["server-a", "server-b", "server-c"].iter().position(|name| *name == lender).unwrap();
    expect(refused(&mut pool, "nix", "server-b", None), ErrorKind::NotFound, "no volume");
    expect(refused(&mut pool, "v", "nobody", None), ErrorKind::NotFound, "no server");
    expect(refused(&mut pool, "v", "server-d", None), ErrorKind::Conflict, "has no copy at server-d");
    expect(refused(&mut pool, "v", "server-b", None), ErrorKind::Conflict, "it is not lost");
    pool.lose(at);
    expect(refused(&mut pool, "s", &lender, None), ErrorKind::Conflict, "has the only copy of segment 0");
    pool.revive(at);
    pool.lose(1);
    expect(refused(&mut pool, "v", "server-b", Some("a1")), ErrorKind::Conflict, "which has another copy");
    expect(refused(&mut pool, "v", "server-b", None), ErrorKind::NoSpace, "no room for a new copy of 12 MiB");
    expect(refused(&mut pool, "v", "server-b", Some("c1")), ErrorKind::NoSpace, "in area c1");
    let mounting = pool.mounted(mount(3, borrower, "v"));
    assert_eq!(in_sync(&pool), [true, false]);
    pool.lose(0);
    expect(refused(&mut pool, "v", "server-a", None), ErrorKind::Conflict, "has the last copy of segment 0");
    assert_eq!(slice(&pool, 0), mounting.segments[0].legs[0].slice, "a refused request changes nothing");
}

#[test]
fn s6_a_new_copy_prefers_another_zone() {
    let mut pool = Pool::new(&[16, 16, 10, 24, 0]);
    for (index, zone) in ["red", "blue", "red", "green", ""].into_iter().enumerate() {
        pool.kill(index);
        pool.server(index).zone = zone.to_owned();
        pool.revive(index);
    }
    let borrower = pool.id(E);
    pool.done(borrow(1, borrower, Some("v"), Some(12 * R), Some(Way::Doubled)));
    assert_eq!(areas(&pool), ["a1", "b1"]);
    pool.pass(1000);
    pool.done(borrow(2, borrower, Some("w"), Some(3 * R), Some(Way::Divided)));
    pool.lose(1);
    pool.done(replace(4, "v", "server-b", None));
    assert_eq!(areas(&pool), ["a1", "d1"], "c1 would be too small, and in the zone of a1");
}

#[test]
fn a_volume_that_is_returned_meanwhile_is_not_replaced_any_more() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    pool.lose(1);
    pool.servers[2].stuck = true;
    pool.send(replace(4, "v", "server-b", Some("c1")));
    pool.pass(1000);
    pool.done(give_back(5, Some(borrower), "v", false));
    assert_eq!(task(&mut pool, 4).state, "failed");
    pool.servers[2].stuck = false;
    pool.revive(1);
    pool.pass(60_000);
    assert!(pool.servers.iter().all(|server| server.areas.values().all(|area| area.slices.is_empty())));
    assert!(pool.core.table().wipes.is_empty());
}

/// `v`, mounted: the copy at b1 was replaced by one at c1 that is about to return, and b1's lender is away.
fn replaced() -> (Pool, MountingInformation, SliceId) {
    let (mut pool, mounting) = mounted();
    let (now, old) = replace_b1(&mut pool, mounting);
    (pool, now, old)
}

fn replace_b1(pool: &mut Pool, mounting: MountingInformation) -> (MountingInformation, SliceId) {
    let old = slice(pool, 1);
    pool.lose(1);
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    pool.set_state(0, &left);
    pool.servers[0].stuck = true;
    pool.send(replace(4, "v", "server-b", None));
    pool.settle();
    assert_eq!((areas(pool)[1].as_str(), in_sync(pool)), ("c1", vec![true, false]));
    let segments = tell(pool, &mounting, 0).segments.unwrap();
    (MountingInformation { segments, ..mounting }, old)
}

/// The new copy has returned.
fn returned(pool: &mut Pool, now: &MountingInformation) {
    unstick(pool);
    pool.bring_back(now);
    assert_eq!(in_sync(pool), [true, true]);
    let generation = pool.core.table().volume("v").unwrap().segments[0].generation;
    for server in [0, 2] {
        pool.set_state(server, &LegAnswer { generation, in_sync: vec![true, true] });
    }
}

/// A table that was behind has fenced the old copy with an epoch of its own.
fn fence_old(pool: &mut Pool, old: SliceId) {
    let slices = pool.server(1).areas.values_mut().filter_map(|area| area.slices.get_mut(&old));
    slices.for_each(|slice| slice.epoch = Epoch { number: slice.epoch.number + 1, random: 77 });
}

fn has_stone(pool: &Pool, server: usize, of: SliceId) -> bool {
    pool.servers[server].areas.values().flat_map(|area| &area.tombstones).any(|stone| stone.slice == of)
}

/// server-a carries out orders again.
fn unstick(pool: &mut Pool) {
    (pool.servers[0].stuck, pool.servers[0].registered) = (false, false);
    pool.lose_answer(0);
}

#[test]
fn r1_a_new_copy_returns_only_when_the_labels_can_tell_it_from_the_one_that_it_replaces() {
    let (mut pool, now, old) = replaced();
    let generation = now.segments[0].generation;
    let Response::Refused(refusal) = pool.change_leg(&now, 1, generation, LegChange::Returning) else { panic!() };
    assert_eq!(refusal.kind, ErrorKind::LenderUnreachable);
    assert!(
        refusal.message.contains("the label at server-a does not tell yet that the copy at server-b was replaced"),
        "{refusal}"
    );
    assert_eq!(
        [0, 2].map(|server| has_stone(&pool, server, old)),
        [false, true],
        "every label that can be reached has it at once"
    );
    unstick(&mut pool);
    assert!(has_stone(&pool, 0, old));
    assert!(matches!(pool.change_leg(&now, 1, generation, LegChange::Returning), Response::Leg(_)));
}

#[test]
fn r2_l5_a_table_that_is_behind_drops_no_tombstone_of_a_copy_that_it_has_fenced_itself() {
    let (mut pool, mounting) = mounted();
    let backup = pool.backup();
    let (now, old) = replace_b1(&mut pool, mounting);
    returned(&mut pool, &now);
    fence_old(&mut pool, old);
    pool.restore(&backup);
    pool.servers.iter_mut().for_each(|server| server.registered = false);
    pool.revive(1);
    pool.pass(6000);
    assert!(pool.core.table().volume("v").unwrap().frozen.is_some());
    assert_eq!([0, 2].map(|server| has_stone(&pool, server, old)), [true, true]);
    // While the copy in its place is away, it is not taken for that.
    pool.kill(2);
    pool.ask(Request::Rebuild(Rebuild { reconcile: true, ..Rebuild::default() }));
    pool.pass(6000);
    let row = pool.core.table().volume("v").unwrap();
    assert!(row.frozen.is_some(), "{row:#?}");
    assert!(row.legs().all(|(_, leg)| leg.slice != old || !leg.in_sync || !row.unsettled), "{row:#?}");
}

#[test]
fn r1_a_copy_that_was_replaced_is_not_taken_for_its_successor_when_the_table_is_lost() {
    for is_fenced in [false, true] {
        not_taken_for_its_successor(is_fenced);
    }
}

fn not_taken_for_its_successor(is_fenced: bool) {
    let (mut pool, now, old) = replaced();
    returned(&mut pool, &now);
    let new = slice(&pool, 1);
    if is_fenced {
        fence_old(&mut pool, old);
    }
    // The table is lost; the old copy is there before the new one.
    pool.kill(2);
    lose_table_and_rebuild(&mut pool);
    let row = pool.core.table().volume("v").unwrap().clone();
    assert!(row.legs().all(|(_, leg)| leg.slice != old), "{row:#?}");
    assert!(row.frozen.unwrap().contains("copy 2 of 2 of segment 0 is missing"));
    if !is_fenced {
        // Nor can it be chosen. (One that somebody has fenced since may be the better one: an administrator may choose it.)
        let accept = AcceptVolume { leg: "b1".to_owned(), stale: true };
        let refusal = pool.refused(Request::AcceptVolume { volume: "v".to_owned(), accept });
        assert!(refusal.message.contains("'b1' has no copy of volume 'v'"), "{refusal}");
    }
    pool.revive(2);
    pool.pass(6000);
    let row = pool.core.table().volume("v").unwrap();
    assert_eq!(row.legs().map(|(_, leg)| leg.slice).collect::<Vec<_>>()[1], new);
    assert_eq!((in_sync(&pool), &row.frozen), (vec![true, true], &None));
}

/// The table is lost and rebuilt, with server-b's label, which was away.
fn lose_table_and_rebuild(pool: &mut Pool) {
    pool.lose_table();
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild::default()));
    pool.revive(1);
    pool.pass(6000);
    finish(pool);
}

fn finish(pool: &mut Pool) {
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    pool.pass(6000);
}

#[test]
fn r1_that_an_area_is_not_open_does_not_say_that_the_replaced_copy_in_it_is_gone() {
    let (mut pool, now, _) = replaced();
    let generation = now.segments[0].generation;
    pool.servers[1].areas.values_mut().for_each(|area| area.offline = Some("it is being opened".to_owned()));
    pool.revive(1);
    let Response::Refused(refusal) = pool.change_leg(&now, 1, generation, LegChange::Returning) else { panic!() };
    assert_eq!(refusal.kind, ErrorKind::LenderUnreachable);
    // Whoever is fenced is told that first.
    let fenced = MountingInformation { epoch: Epoch { number: 0, random: 1 }, ..now };
    let Response::Refused(refusal) = pool.change_leg(&fenced, 1, generation, LegChange::Returning) else { panic!() };
    assert_eq!(refusal.kind, ErrorKind::StaleEpoch);
}

#[test]
fn r1_a_replaced_copy_whose_label_proves_that_it_should_not_have_been_holds_up_no_return() {
    let (mut pool, now, old) = replaced();
    for area in pool.servers[1].areas.values_mut() {
        area.slices.get_mut(&old).unwrap().epoch.number += 5;
    }
    pool.revive(1);
    assert!(matches!(pool.change_leg(&now, 1, now.segments[0].generation, LegChange::Returning), Response::Leg(_)));
}

#[test]
fn r1_a_copy_that_is_to_be_replaced_is_what_there_is_until_a_label_has_the_new_one() {
    let (mut pool, mounting) = mounted();
    let old = slice(&pool, 1);
    pool.lose(1);
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    pool.set_state(0, &left);
    pool.servers[2].stuck = true;
    pool.send(replace(4, "v", "server-b", Some("c1")));
    pool.pass(5000);
    assert!(pool.core.table().volume("v").unwrap().segments[0].legs[1].fresh);
    lose_table_and_rebuild(&mut pool);
    let row = pool.core.table().volume("v").unwrap().clone();
    assert_eq!((row.frozen, row.lease.is_some(), slice(&pool, 1)), (None, true, old));
    assert_eq!(in_sync(&pool), [true, false]);
}

#[test]
fn f4_a_holder_that_has_not_heard_of_a_replacement_is_not_fenced_by_a_table_that_was_rebuilt_meanwhile() {
    let (mut pool, now, old) = replaced();
    unstick(&mut pool);
    pool.lose_table();
    // What the others have is heard only later.
    [0, 2].into_iter().for_each(|server| pool.kill(server));
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild::default()));
    pool.revive(1);
    pool.pass(20_000);
    assert!(pool.core.table().wipes.contains_key(&old));
    [0, 2].into_iter().for_each(|server| pool.revive(server));
    pool.pass(6000);
    finish(&mut pool);
    assert_eq!((areas(&pool)[1].as_str(), in_sync(&pool)), ("c1", vec![true, false]));
    tell(&mut pool, &now, 0);
    pool.pass(20_000);
    let held = |pool: &Pool| pool.servers[1].areas.values().any(|area| area.slices.get(&old).is_some_and(|row| row.admitted));
    assert!(held(&pool), "it may have a session there");
    let borrower = pool.id(E);
    pool.done(unmount(5, borrower, "v", now.epoch));
    pool.pass(20_000);
    assert!(!holds(&pool, 1, old), "now it is wiped");
}

/// A table that is behind replaces the only copy that is in sync, whose lender is away, and so is that of the other one.
fn replaced_by_a_table_that_is_behind() -> (Pool, MountingInformation, SliceId) {
    let (mut pool, mounting) = mounted();
    let old = slice(&pool, 1);
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    pool.set_state(0, &left);
    pool.pass(1000);
    let backup = pool.backup();
    // It comes back, and then it is the only one.
    pool.bring_back(&mounting);
    let generation = pool.core.table().volume("v").unwrap().segments[0].generation;
    pool.set_state(0, &LegAnswer { generation, in_sync: vec![true, true] });
    let Response::Leg(left) = pool.change_leg(&mounting, 0, generation, LegChange::Stale) else { panic!() };
    assert_eq!(left.in_sync, [false, true]);
    pool.set_state(1, &left);
    (0..2).for_each(|server| pool.kill(server));
    pool.restore(&backup);
    pool.pass(20_000);
    pool.send(replace(4, "v", "server-b", Some("c1")));
    pool.pass(20_000);
    assert_ne!(slice(&pool, 1), old);
    let revision = pool.core.table().volume("v").unwrap().work.segments_revision;
    tell(&mut pool, &mounting, revision);
    (pool, mounting, old)
}

#[test]
fn l5_p2_a_replaced_copy_that_has_heard_of_more_than_the_table_is_not_wiped() {
    let (mut pool, _, old) = replaced_by_a_table_that_is_behind();
    (0..2).for_each(|server| pool.revive(server));
    pool.pass(60_000);
    assert!(holds(&pool, 1, old));
    assert!(pool.core.table().volume("v").unwrap().frozen.is_some());
    pool.ask(Request::Rebuild(Rebuild { reconcile: true, ..Rebuild::default() }));
    pool.pass(20_000);
    finish(&mut pool);
    assert_eq!((slice(&pool, 1), in_sync(&pool)), (old, vec![false, true]));
    assert!(holds(&pool, 1, old));
}

/// As above, and that table is lost too, before it has heard of the copy that it had replaced. That, or the one in its place, is
/// heard of last.
#[test]
fn l5_p2_a_replaced_copy_that_may_have_what_nobody_else_has_is_not_wiped_by_the_next_table_either() {
    [1, 2].into_iter().for_each(lose_the_table_that_is_behind);
}

fn lose_the_table_that_is_behind(last: usize) {
    let (mut pool, mounting, old) = replaced_by_a_table_that_is_behind();
    if last == 1 {
        // The other one has never heard of the return.
        let generation = pool.core.table().volume("v").unwrap().segments[0].generation;
        pool.set_state(0, &LegAnswer { generation, in_sync: vec![true, false] });
    }
    pool.kill(2);
    pool.lose_table();
    pool.ask(Request::Rebuild(Rebuild::default()));
    (0..3).filter(|server| *server != last).for_each(|server| pool.revive(server));
    pool.pass(20_000);
    finish(&mut pool);
    if last == 1 {
        // It looks whole without it. Nobody holds it any more.
        pool.done(crate::core::testing::force_unmount(5, "v"));
    }
    pool.revive(last);
    pool.pass(60_000);
    assert!(holds(&pool, 1, old));
    pool.ask(Request::Rebuild(Rebuild { reconcile: true, ..Rebuild::default() }));
    pool.pass(20_000);
    finish(&mut pool);
    assert_eq!((slice(&pool, 1), in_sync(&pool)), (old, vec![false, true]));
    assert_eq!(pool.is_open(old, mounting.epoch), last == 2);
}

#[test]
fn s5_a_copy_whose_successor_is_in_no_label_holds_up_the_return_of_no_other_one() {
    let mut pool = Pool::new(&[16, 16, 16, 20, 24, 0]);
    let server = pool.id(5);
    let (way, name) = (Some(Way::Doubled), Some(crate::core::testing::name("v")));
    let task = crate::core::testing::task(1);
    pool.done(Request::Borrow(Borrow { task, server, name, size: Some(3 * R), way, copies: Some(3), local: false, seal: None }));
    let mut mounting = pool.mounted(mount(2, server, "v"));
    let mut generation = mounting.segments[0].generation;
    for leg in [1, 2] {
        pool.lose(leg);
        let Response::Leg(left) = pool.change_leg(&mounting, leg, generation, LegChange::Stale) else { panic!() };
        generation = left.generation;
    }
    pool.servers[4].stuck = true;
    pool.send(replace(4, "v", "server-c", Some("e1")));
    pool.send(replace(5, "v", "server-b", Some("d1")));
    pool.pass(5000);
    let fresh: Vec<bool> = pool.core.table().volume("v").unwrap().legs().map(|(_, leg)| leg.fresh).collect();
    assert_eq!(fresh, [false, false, true]);
    mounting.segments = tell(&mut pool, &mounting, 0).segments.unwrap();
    assert!(matches!(pool.change_leg(&mounting, 1, generation, LegChange::Returning), Response::Leg(_)));
}

#[test]
fn l2_p2_that_a_quarantined_label_lacks_a_slice_does_not_say_that_it_is_wiped() {
    let mut pool = doubled();
    let borrower = pool.id(E);
    for area in pool.servers[1].areas.values_mut() {
        area.quarantined = Some("it was restored from an older copy".to_owned());
        area.slices.clear();
    }
    pool.servers[1].registered = false;
    pool.lose_answer(1);
    pool.send(crate::core::testing::give_back(4, Some(borrower), "v", true));
    pool.pass(20_000);
    assert_eq!(pool.core.table().wipes.len(), 1);
    let view = task(&mut pool, 4);
    assert!(view.state == "done" || view.reason.contains("quarantined"), "{view:?}");
}
