//! What clients tell of their paths, and legs of mounted volumes.

use sublet_api::ErrorKind;
use sublet_api::mount::MountingInformation;
use sublet_api::request::{ClientReport, LegChange, Request, Response};
use sublet_api::view::PathState;
use sublet_api::work::{WorkKind, WorkReport, WorkState};
use sublet_types::Way;

use crate::core::Event;
use crate::core::testing::{Pool, R, borrow, force_unmount, mount};

fn mounted() -> (Pool, MountingInformation) {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(borrow(1, borrower, Some("v"), Some(R), Some(Way::Doubled)));
    let mounting = pool.mounted(mount(2, borrower, "v"));
    (pool, mounting)
}

fn path(pool: &mut Pool) -> (PathState, String) {
    let row = pool.table().volumes.remove(0);
    (row.path, row.path_reason)
}

#[test]
fn the_path_follows_the_clients_reports_at_once() {
    let (mut pool, mounting) = mounted();
    assert_eq!(path(&mut pool).0, PathState::Idle);
    for state in [PathState::Open, PathState::Idle, PathState::Open, PathState::Lost] {
        let conn = pool.report(&mounting, state, false);
        let Some(Response::Client(answer)) = pool.replies.remove(&conn) else { panic!() };
        assert_eq!(answer.lenders.len(), 2);
        assert!(answer.lenders.iter().all(|lender| lender.up));
        assert_eq!(path(&mut pool).0, state);
    }
    assert!(pool.events().iter().any(|event| event == "v: path open"));
}

#[test]
fn a_client_whose_held_report_ends_is_gone_within_two_seconds() {
    let (mut pool, mounting) = mounted();
    let conn = pool.report(&mounting, PathState::Open, true);
    pool.pass(1000);
    assert!(!pool.replies.contains_key(&conn), "held");
    pool.apply(Event::Gone { conn });
    pool.pass(600);
    assert_eq!(path(&mut pool), (PathState::Lost, "the client is gone".to_owned()));
    // A new one takes over.
    pool.report(&mounting, PathState::Open, true);
    assert_eq!(path(&mut pool).0, PathState::Open);
}

#[test]
fn a_client_that_exchanges_its_held_report_is_not_gone() {
    let (mut pool, mounting) = mounted();
    let first = pool.report(&mounting, PathState::Open, true);
    pool.apply(Event::Gone { conn: first });
    pool.report(&mounting, PathState::Open, true);
    pool.pass(3000);
    assert_eq!(path(&mut pool).0, PathState::Open);
}

#[test]
fn a_client_that_leaves_by_itself_is_no_loss() {
    let (mut pool, mounting) = mounted();
    let held = pool.report(&mounting, PathState::Open, true);
    let report = ClientReport {
        epoch: mounting.epoch,
        path: PathState::Idle,
        reason: String::new(),
        work: vec![],
        findings: vec![],
        hold: true,
        leaving: true,
        clean: false,
        segments_revision: 0,
    };
    pool.ask(Request::ClientReport { volume: mounting.volume, report });
    pool.apply(Event::Gone { conn: held });
    pool.pass(60_000);
    assert_eq!(path(&mut pool), (PathState::Idle, "the client has ended".to_owned()));
}

#[test]
fn a_silent_client_is_lost_also_after_a_restart_of_the_manager() {
    let (mut pool, mounting) = mounted();
    pool.report(&mounting, PathState::Open, false);
    pool.restart_manager();
    pool.pass(5000);
    assert_eq!(path(&mut pool).0, PathState::Open, "it is given time");
    pool.pass(10_000);
    assert_eq!(path(&mut pool), (PathState::Lost, "the client is silent".to_owned()));
}

#[test]
fn a_fenced_client_is_told_at_once() {
    let (mut pool, mounting) = mounted();
    let held = pool.report(&mounting, PathState::Open, true);
    pool.done(force_unmount(3, "v"));
    let Some(Response::Refused(refusal)) = pool.replies.remove(&held) else { panic!() };
    assert_eq!(refusal.kind, ErrorKind::StaleEpoch);
    let late = pool.report(&mounting, PathState::Open, true);
    let Some(Response::Refused(refusal)) = pool.replies.remove(&late) else { panic!() };
    assert_eq!(refusal.kind, ErrorKind::StaleEpoch);
    assert_eq!(path(&mut pool).0, PathState::None);
    let generation = mounting.segments[0].generation;
    let Response::Refused(refusal) = pool.change_leg(&mounting, 0, generation, LegChange::Stale) else { panic!() };
    assert_eq!(refusal.kind, ErrorKind::StaleEpoch);
}

#[test]
fn a_held_report_is_answered_when_a_lender_is_lost_or_moves() {
    let (mut pool, mounting) = mounted();
    let held = pool.report(&mounting, PathState::Open, true);
    pool.kill(1);
    pool.revive(1);
    pool.replies.remove(&held);
    let held = pool.report(&mounting, PathState::Open, true);
    pool.kill(1);
    let mut answer = None;
    for _ in 0..20 {
        pool.pass(1000);
        if let Some(Response::Client(reply)) = pool.replies.remove(&held) {
            answer = Some(reply);
            break;
        }
    }
    assert!(answer.is_some());
    let server = pool.id(0);
    let register = sublet_api::server::Register {
        server,
        pool: None,
        name: "server-a".parse().unwrap(),
        zone: String::new(),
        addresses: vec!["[::1]:9".parse().unwrap()],
        version: String::new(),
        run: 1,
    };
    pool.pass(15_000);
    let held = pool.report(&mounting, PathState::Open, true);
    pool.ask(Request::Register(register));
    let Some(Response::Client(answer)) = pool.replies.remove(&held) else { panic!("not told") };
    assert_eq!(answer.lenders[0].addresses[0].to_string(), "[::1]:9");
    assert!(!answer.lenders[1].up);
}

#[test]
fn resyncs_are_shown_as_tasks() {
    let (mut pool, mounting) = mounted();
    pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale);
    let resync = WorkReport {
        work: None,
        kind: WorkKind::Resync,
        slice: Some(mounting.segments[0].legs[1].slice),
        done: 7,
        total: 9,
        rate_bytes_per_s: 5,
        state: WorkState::Running,
        reason: String::new(),
    };
    let report = ClientReport {
        epoch: mounting.epoch,
        path: PathState::Open,
        reason: String::new(),
        work: vec![resync],
        findings: vec![],
        hold: false,
        leaving: false,
        clean: false,
        segments_revision: 0,
    };
    pool.ask(Request::ClientReport { volume: mounting.volume, report });
    let Response::Tasks(tasks) = pool.ask(Request::Tasks) else { panic!() };
    let shown = tasks.iter().find(|task| task.kind == "resync").unwrap();
    assert_eq!((shown.subject.as_str(), shown.done, shown.total, shown.rate_bytes_per_s), ("v", 7, 9, 5));
}

#[test]
fn a_copy_leaves_and_returns_and_the_next_mount_knows() {
    let (mut pool, mounting) = mounted();
    let g1 = mounting.segments[0].generation;
    let leg = |response| match response {
        Response::Leg(answer) => answer,
        other => panic!("{other:?}"),
    };
    let stale = leg(pool.change_leg(&mounting, 1, g1, LegChange::Stale));
    assert_eq!(stale.in_sync, [true, false]);
    assert_eq!(leg(pool.change_leg(&mounting, 1, g1, LegChange::Stale)), stale, "a repeated request gets the same answer");
    pool.restart_manager();
    pool.settle();
    assert_eq!(leg(pool.change_leg(&mounting, 1, g1, LegChange::Stale)), stale, "also from the next manager");
    let returning = leg(pool.change_leg(&mounting, 1, stale.generation, LegChange::Returning));
    assert_eq!(returning.in_sync, [true, false], "issued, not committed");
    let back = leg(pool.change_leg(&mounting, 1, stale.generation, LegChange::InSync));
    assert_eq!((back.generation, back.in_sync), (returning.generation, vec![true, true]));
    let borrower = pool.id(2);
    let next = pool.mounted(mount(3, borrower, "v"));
    assert_eq!(next.segments[0].generation, back.generation);
    assert!(pool.events().iter().any(|event| event.contains("server-b is stale")));
    assert!(pool.events().iter().any(|event| event.contains("server-b is in sync again")));
}

#[test]
fn a_change_of_a_leg_that_changes_nothing_commits_nothing() {
    let (mut pool, mounting) = mounted();
    let g1 = mounting.segments[0].generation;
    let Response::Leg(stale) = pool.change_leg(&mounting, 1, g1, LegChange::Stale) else { panic!() };
    let revision = pool.core.revision();
    for generation in [g1, stale.generation] {
        let Response::Leg(again) = pool.change_leg(&mounting, 1, generation, LegChange::Stale) else { panic!() };
        assert_eq!(again, stale);
    }
    // Another leg, which is in sync already.
    let Response::Leg(same) = pool.change_leg(&mounting, 0, stale.generation, LegChange::InSync) else { panic!() };
    assert_eq!((same, pool.core.revision()), (stale, revision));
}
