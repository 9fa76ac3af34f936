//! Background work on volumes that are not mounted (F5), and how all of it is shown and controlled.

use sublet_api::ErrorKind;
use sublet_api::mount::MountingInformation;
use sublet_api::request::{ChangeLeg, ClientReport, ControlTask, LegChange, Request, Response, ScrubEvery};
use sublet_api::view::TaskView;
use sublet_api::work::{Finding, FindingKind, WorkKind, WorkReport, WorkState};
use sublet_types::{Way, limits::SCRUB_EVERY};

use crate::core::Event;
use crate::core::testing::coordinator::report;
use crate::core::testing::{Pool, R, borrow, control, force_unmount, give_back, mount, scrub, transfer, unmount};

const C: usize = 2;

/// `v` on a1 and b1, borrowed by the third server.
fn doubled() -> Pool {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(C);
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    pool
}

/// ... mounted, the copy at server-b made stale by the client, unmounted in good order, and server-b still away.
fn stale() -> Pool {
    let mut pool = doubled();
    let borrower = pool.id(C);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    pool.lose(1);
    pool.bring_back(&mounting);
    leave(&mut pool, &mounting);
    pool.done(unmount(3, borrower, "v", mounting.epoch));
    pool
}

fn leave(pool: &mut Pool, mounting: &MountingInformation) {
    let last = ClientReport { leaving: true, clean: true, ..report(mounting.epoch) };
    pool.ask(Request::ClientReport { volume: mounting.volume, report: last });
}

fn in_sync(pool: &Pool) -> Vec<bool> {
    pool.core.table().volume("v").unwrap().segments[0].in_sync()
}

fn tasks(pool: &mut Pool, kind: &str) -> Vec<TaskView> {
    let Response::Tasks(tasks) = pool.ask(Request::Tasks) else { panic!() };
    tasks.into_iter().filter(|task| task.kind == kind).collect()
}

fn is_quiet(pool: &Pool) -> bool {
    let volume = pool.core.table().volume("v").unwrap();
    volume.work.background.is_none() && volume.lease.is_none() && volume.task.is_none()
}

#[test]
fn f5_a_stale_copy_of_an_unmounted_volume_comes_back_when_its_lender_does() {
    let mut pool = stale();
    assert_eq!(in_sync(&pool), [true, false]);
    let waiting = tasks(&mut pool, "resync");
    assert_eq!((waiting[0].state.as_str(), waiting[0].reason.as_str()), ("waiting", "server-b does not answer"));
    pool.pass(60_000);
    assert!(is_quiet(&pool), "there is nothing to do while the lender is away");
    pool.revive(1);
    pool.pass(1000);
    pool.servers[0].is_lazy = true;
    pool.pass(5000);
    let view = &pool.table().volumes[0];
    assert_eq!((view.status, view.path), (0, sublet_api::view::PathState::None), "it is not mounted");
    pool.servers[0].is_lazy = false;
    pool.pass(30_000);
    assert_eq!(in_sync(&pool), [true, true]);
    assert!(is_quiet(&pool), "{:?}", pool.core.table().volume("v"));
    assert_eq!((pool.admitted(0), pool.admitted(1)), (0, 0), "the lease is closed everywhere");
    assert!(tasks(&mut pool, "resync").is_empty());
    assert!(!pool.core.table().volume("v").unwrap().work.unclean);
}

/// `v` with its lease at a coordinator that gets nothing done.
fn coordinated() -> (Pool, MountingInformation) {
    let mut pool = stale();
    pool.servers[0].is_lazy = true;
    pool.revive(1);
    pool.pass(8000);
    let known = pool.servers[0].coordinates.values().next().expect("server-a has the copy that is in sync");
    let mounting = known.mounting.clone();
    assert_eq!(pool.core.table().volume("v").unwrap().epoch, mounting.epoch);
    (pool, mounting)
}

#[test]
fn f5_a_mount_takes_the_work_over_at_once() {
    let (mut pool, background) = coordinated();
    let shown = pool.table().volumes[0].clone();
    assert_eq!(shown.coordinator.unwrap().as_str(), "server-a");
    assert_eq!(shown.work[0].kind, "resync");
    let began_ms = pool.now_ms;
    let borrower = pool.id(C);
    let mounting = pool.mounted(mount(9, borrower, "v"));
    assert!(pool.now_ms - began_ms <= 1000, "nobody waits for the coordinator");
    assert!(mounting.epoch.number > background.epoch.number);
    assert_eq!(mounting.segments[0].legs.iter().map(|leg| leg.in_sync).collect::<Vec<_>>(), [true, false]);
    // S2, F4: the coordinator proposes nothing more.
    let leg = &background.segments[0].legs[1];
    let generation = mounting.segments[0].generation;
    for change in [LegChange::Returning, LegChange::InSync, LegChange::Stale] {
        let change = ChangeLeg { epoch: background.epoch, segment: 0, slice: leg.slice, generation, change };
        let refused = pool.refused(Request::ChangeLeg { volume: background.volume, change });
        assert_eq!(refused.kind, ErrorKind::StaleEpoch);
    }
    pool.settle();
    assert!(pool.servers[0].coordinates.is_empty(), "its held report was answered with the end of its epoch");
    assert!(!pool.is_open(leg.slice, background.epoch));
    // The client goes on with the work.
    pool.bring_back(&mounting);
    assert_eq!(in_sync(&pool), [true, true]);
}

#[test]
fn f5_a_coordinator_that_is_cut_off_is_fenced_at_once() {
    let (mut pool, background) = coordinated();
    let began_ms = pool.now_ms;
    pool.ask(Request::RevokeServer { server: "server-a".to_owned() });
    pool.settle();
    let leg = &background.segments[0].legs[1];
    assert!(!pool.is_open(leg.slice, background.epoch), "{:?}", pool.events());
    assert!(pool.now_ms - began_ms <= 1000);
    let now = pool.core.table().volume("v").unwrap();
    assert!(now.epoch.number > background.epoch.number && now.work.background.is_none(), "{now:?}");
    assert!(now.work.unclean, "it has not said that it closed cleanly");
    // Nobody asks it again, also while it does not count as lost yet.
    pool.pass(60_000);
    assert!(pool.core.table().volume("v").unwrap().work.background.is_none());
}

#[test]
fn f5_return_and_transfer_do_not_wait_for_background_work_either() {
    let (mut pool, background) = coordinated();
    pool.done(transfer(9, "v", "server-a", false));
    let new_holder = pool.id(0);
    pool.done(give_back(10, Some(new_holder), "v", false));
    assert!(pool.servers.iter().all(|server| server.areas.values().all(|area| area.slices.is_empty())));
    pool.pass(10_000);
    assert!(pool.servers[0].coordinates.is_empty());
    let slice = background.segments[0].legs[0].slice;
    assert!(!pool.is_open(slice, background.epoch));
}

#[test]
fn f5_a_coordinator_that_dies_is_fenced_and_the_work_begins_anew() {
    let (mut pool, background) = coordinated();
    pool.kill(0);
    pool.pass(20_000);
    assert!(is_quiet(&pool), "without the copy at server-a nothing can be done");
    pool.revive(0);
    pool.servers[0].is_lazy = false;
    pool.pass(60_000);
    assert_eq!(in_sync(&pool), [true, true]);
    assert!(is_quiet(&pool));
    let volume = pool.core.table().volume("v").unwrap();
    assert!(volume.epoch.number > background.epoch.number + 1);
    assert!(!volume.work.unclean, "what the dead one may have left was made equal");
}

#[test]
fn a_coordinator_that_refuses_is_not_asked_all_the_time() {
    let mut pool = stale();
    pool.servers[0].coordinates_nothing = true;
    pool.revive(1);
    let before = pool.core.table().volume("v").unwrap().epoch.number;
    pool.pass(3_600_000);
    let epochs = pool.core.table().volume("v").unwrap().epoch.number - before;
    assert!((4..40).contains(&epochs), "{epochs} epochs in an hour");
    pool.servers[0].coordinates_nothing = false;
    pool.pass(700_000);
    assert_eq!(in_sync(&pool), [true, true]);
}

#[test]
fn h3_a_volume_that_was_not_closed_cleanly_is_made_equal_while_nobody_has_it() {
    let mut pool = doubled();
    let borrower = pool.id(C);
    pool.mounted(mount(2, borrower, "v"));
    pool.done(force_unmount(3, "v"));
    assert!(pool.core.table().volume("v").unwrap().work.unclean);
    assert_eq!(tasks(&mut pool, "equalise").len(), 1);
    pool.pass(30_000);
    assert!(!pool.core.table().volume("v").unwrap().work.unclean);
    assert!(is_quiet(&pool));
    assert!(tasks(&mut pool, "equalise").is_empty());
    // After a clean close there is nothing to do.
    let mounting = pool.mounted(mount(4, borrower, "v"));
    leave(&mut pool, &mounting);
    pool.done(unmount(5, borrower, "v", mounting.epoch));
    let epoch = pool.core.table().volume("v").unwrap().epoch;
    pool.pass(30_000);
    assert_eq!(pool.core.table().volume("v").unwrap().epoch, epoch);
}

#[test]
fn a_paused_resync_is_left_alone_until_it_is_resumed() {
    let mut pool = stale();
    let id = tasks(&mut pool, "resync")[0].id;
    let Response::TaskRow(view) = pool.ask(control(&id.to_string()[..8], ControlTask::Pause)) else { panic!() };
    assert_eq!(view.state, "paused");
    pool.revive(1);
    pool.pass(30_000);
    assert!(is_quiet(&pool) && in_sync(&pool) == [true, false]);
    assert_eq!(pool.refused(control(id, ControlTask::Cancel)).kind, ErrorKind::Conflict);
    pool.ask(control(id, ControlTask::Limit { rate_max: 5 << 20 }));
    assert_eq!(tasks(&mut pool, "resync")[0].rate_max, 5 << 20);
    pool.restart_manager();
    pool.settle();
    pool.ask(control(id, ControlTask::Resume));
    pool.pass(30_000);
    assert_eq!(in_sync(&pool), [true, true]);
}

#[test]
fn only_background_work_is_paused_cancelled_or_limited() {
    let mut pool = doubled();
    for (id, kind) in [("00000000", ErrorKind::BadRequest), ("beef", ErrorKind::NotFound), ("", ErrorKind::NotFound)] {
        // Every id of these tests begins with zeroes; there is one task, and no second thing with such an id but it.
        let refused = pool.refused(control(id, ControlTask::Pause));
        assert!(refused.kind == kind || refused.kind == ErrorKind::Conflict, "{id}: {refused}");
    }
    let task = crate::core::testing::task(1);
    let refused = pool.refused(control(task, ControlTask::Cancel));
    assert!(refused.to_string().contains("has ended"), "{refused}");
}

#[test]
fn a_scrub_of_an_unmounted_volume_is_done_by_a_lender_and_the_next_one_comes_in_its_time() {
    let mut pool = doubled();
    pool.done(scrub(5, "v"));
    let view = pool.table().volumes[0].clone();
    assert!(view.scrubbed_ms > 0 && view.scrub_every_s == SCRUB_EVERY.as_secs());
    pool.pass(20_000);
    assert!(is_quiet(&pool));
    // Nothing is polled in between: that would take the test a while.
    let later = |pool: &mut Pool, ms| {
        pool.now_ms += ms;
        pool.apply(Event::Tick);
        pool.pass(60_000);
    };
    later(&mut pool, u64::try_from(SCRUB_EVERY.as_millis()).unwrap());
    assert_eq!(tasks(&mut pool, "scrub").len(), 2, "one was asked for, one was due");
    let every = |seconds| Request::ScrubEvery { volume: "v".to_owned(), every: ScrubEvery { seconds } };
    pool.ask(every(Some(0)));
    later(&mut pool, 3 * u64::try_from(SCRUB_EVERY.as_millis()).unwrap());
    assert_eq!(tasks(&mut pool, "scrub").len(), 2, "never is never");
    pool.ask(every(Some(24 * 3600)));
    pool.pass(60_000);
    assert_eq!(tasks(&mut pool, "scrub").len(), 3);
    for seconds in [u64::MAX, 1, 3599] {
        assert_eq!(pool.refused(every(Some(seconds))).kind, ErrorKind::BadRequest);
    }
}

#[test]
fn a_mounted_volumes_client_is_told_to_scrub_and_tells_how_far_it_is() {
    let mut pool = doubled();
    let borrower = pool.id(C);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    let held = pool
        .send(Request::ClientReport { volume: mounting.volume, report: ClientReport { hold: true, ..report(mounting.epoch) } });
    let conn = pool.send(scrub(5, "v"));
    assert!(matches!(pool.replies.remove(&conn), Some(Response::Task(_))), "whoever begins it does not wait");
    let Some(Response::Client(answer)) = pool.replies.remove(&held) else { panic!("the client hears of it at once") };
    let work = answer.work[0].clone();
    assert_eq!((work.kind, work.is_paused, work.done), (WorkKind::Scrub, false, 0));
    assert!(pool.refused(scrub(6, "v")).to_string().contains("already"));
    let told = |pool: &mut Pool, done, state| {
        let row = WorkReport {
            work: Some(work.task),
            kind: WorkKind::Scrub,
            slice: None,
            done,
            total: 6 * R,
            rate_bytes_per_s: 77,
            state,
            reason: String::new(),
        };
        let Response::Client(answer) = pool.ask(Request::ClientReport {
            volume: mounting.volume,
            report: ClientReport { work: vec![row], ..report(mounting.epoch) },
        }) else {
            panic!()
        };
        answer.work
    };
    told(&mut pool, 4 * R, WorkState::Running);
    let view = tasks(&mut pool, "scrub")[0].clone();
    assert_eq!((view.done, view.total, view.rate_bytes_per_s, view.state.as_str()), (4 * R, 6 * R, 77, "running"));
    // Whoever coordinates next goes on there.
    pool.restart_manager();
    pool.settle();
    let Response::TaskRow(view) = pool.ask(control(work.task, ControlTask::Pause)) else { panic!() };
    assert_eq!(view.state, "paused");
    let now = told(&mut pool, 4 * R, WorkState::Paused);
    assert!(now[0].is_paused && now[0].done == 4 * R);
    pool.ask(control(work.task, ControlTask::Resume));
    assert!(told(&mut pool, 6 * R, WorkState::Done).is_empty(), "it is no longer listed once it is done");
    assert_eq!(tasks(&mut pool, "scrub")[0].state, "done");
    pool.done(scrub(5, "v"));
}

#[test]
fn a_cancelled_scrub_is_no_longer_listed() {
    let mut pool = doubled();
    let borrower = pool.id(C);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    pool.send(scrub(5, "v"));
    pool.ask(control(crate::core::testing::task(5), ControlTask::Cancel));
    let asked = Request::ClientReport { volume: mounting.volume, report: report(mounting.epoch) };
    let Response::Client(answer) = pool.ask(asked) else { panic!() };
    assert!(answer.work.is_empty());
    assert_eq!(tasks(&mut pool, "scrub")[0].state, "cancelled");
    assert!(pool.refused(scrub(5, "v")).to_string().contains("cancelled"));
}

#[test]
fn k1_findings_become_events_once_and_are_counted() {
    let mut pool = doubled();
    let borrower = pool.id(C);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    let leg = mounting.segments[0].legs[1].clone();
    let finding = |number, kind| Finding {
        number,
        slice: leg.slice,
        server: leg.server,
        area: leg.area,
        offset: 8192 + number * 4096,
        length: 4096,
        kind,
        text: String::new(),
    };
    let tell = |pool: &mut Pool, findings: Vec<Finding>| {
        let asked =
            Request::ClientReport { volume: mounting.volume, report: ClientReport { findings, ..report(mounting.epoch) } };
        let Response::Client(answer) = pool.ask(asked) else { panic!() };
        answer.findings_seen
    };
    assert_eq!(tell(&mut pool, vec![finding(1, FindingKind::Repaired)]), 1);
    assert_eq!(tell(&mut pool, vec![finding(1, FindingKind::Repaired), finding(2, FindingKind::Unrepairable)]), 2);
    pool.restart_manager();
    pool.settle();
    assert_eq!(tell(&mut pool, vec![finding(1, FindingKind::Repaired), finding(2, FindingKind::Unrepairable)]), 2);
    let found: Vec<String> = pool.events().into_iter().filter(|event| event.contains("checksum")).collect();
    assert_eq!(
        found,
        [
            "v: 4 KiB at offset 12288 of area b1 at server-b did not match their checksum and were repaired from another copy",
            "v: 4 KiB at offset 16384 of area b1 at server-b do not match their checksum, and no other copy has them: reading them is \
             an I/O error",
        ]
    );
    let view = pool.table().volumes[0].findings;
    assert_eq!((view.repaired, view.unrepairable, view.differed), (1, 1, 0));
}

#[test]
fn wipes_that_wait_for_a_lender_are_shown_as_work() {
    let mut pool = doubled();
    let borrower = pool.id(C);
    pool.lose(1);
    pool.done(give_back(5, Some(borrower), "v", false));
    let wipe = tasks(&mut pool, "wipe");
    assert_eq!(wipe.len(), 1);
    assert_eq!((wipe[0].subject.as_str(), wipe[0].state.as_str(), wipe[0].total), ("v", "waiting", 3 * R));
    assert!(wipe[0].reason.contains("silent"), "{}", wipe[0].reason);
    assert_eq!(pool.refused(control(wipe[0].id, ControlTask::Cancel)).kind, ErrorKind::Conflict);
    pool.revive(1);
    pool.pass(20_000);
    assert!(tasks(&mut pool, "wipe").is_empty());
}
