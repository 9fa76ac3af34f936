//! What becomes of scrubs whose volume or lender goes away.

use sublet_api::request::{ControlTask, Request, Response};
use sublet_api::view::{PathState, TaskView};
use sublet_types::Way;
use sublet_types::limits::SCRUB_EVERY;

use crate::core::Event;
use crate::core::testing::{Pool, R, borrow, control, create, give_back, mount, scrub};

const C: usize = 2;

fn scrubs(pool: &mut Pool) -> Vec<TaskView> {
    let Response::Tasks(tasks) = pool.ask(Request::Tasks) else { panic!() };
    tasks.into_iter().filter(|task| task.kind == "scrub").collect()
}

#[test]
fn a_volume_that_is_returned_ends_its_scrub() {
    for (defined, dissolve) in [(true, false), (true, true), (false, false)] {
        let mut pool = Pool::new(&[16, 16, 0]);
        let borrower = pool.id(C);
        if defined {
            pool.done(create(1, "v", Way::Doubled, &[("a1", Some(2 * R)), ("b1", Some(2 * R))]));
            pool.done(borrow(2, borrower, Some("v"), None, None));
        } else {
            pool.done(borrow(2, borrower, Some("v"), Some(2 * R), Some(Way::Doubled)));
        }
        pool.servers.iter_mut().for_each(|server| server.coordinates_nothing = true);
        pool.send(scrub(5, "v"));
        pool.pass(10_000);
        assert_eq!(scrubs(&mut pool)[0].ended_ms, 0);
        pool.done(give_back(6, Some(borrower), "v", dissolve));
        let view = scrubs(&mut pool)[0].clone();
        assert_eq!(view.state, "failed");
        assert!(view.reason.contains("returned meanwhile"), "{view:?}");
        pool.servers.iter_mut().for_each(|server| server.coordinates_nothing = false);
        // Whoever has it next is not kept waiting by a scrub of bytes that are no more.
        pool.pass(30_000);
        let is_idle = pool.core.table().volumes.values().all(|row| row.work.background.is_none());
        assert!(is_idle);
    }
}

#[test]
fn k1_a_volume_whose_lender_is_away_does_not_hold_up_the_scheduled_scrubs_of_all_others() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(C);
    for (id, volume, area) in [(1, "first", "a1"), (2, "second", "b1")] {
        pool.done(create(id, volume, Way::Divided, &[(area, Some(2 * R))]));
        pool.done(borrow(id + 10, borrower, Some(volume), None, None));
        pool.pass(1000);
    }
    pool.done(mount(20, borrower, "first"));
    pool.lose(0);
    pool.now_ms += 2 * u64::try_from(SCRUB_EVERY.as_millis()).unwrap();
    pool.apply(Event::Tick);
    pool.pass(120_000);
    let done: Vec<String> = scrubs(&mut pool).into_iter().filter(|task| task.state == "done").map(|task| task.subject).collect();
    assert_eq!(done, ["second"]);
    // The other one has its turn when its lender is back.
    pool.revive(0);
    pool.pass(1000);
    assert_eq!(scrubs(&mut pool).len(), 2);
}

#[test]
fn k1_a_scheduled_scrub_that_cannot_go_on_does_not_hold_up_all_others() {
    for what in ["paused", "frozen", "without its lender", "without a client", "without a coordinator"] {
        let mut pool = Pool::new(&[16, 16, 0]);
        let borrower = pool.id(C);
        for (id, volume, area) in [(1, "first", "a1"), (2, "second", "b1")] {
            pool.done(create(id, volume, Way::Divided, &[(area, Some(2 * R))]));
            pool.done(borrow(id + 10, borrower, Some(volume), None, None));
            pool.pass(1000);
        }
        let is_mounted = what != "without a coordinator";
        let mounting = is_mounted.then(|| pool.mounted(mount(20, borrower, "first")));
        // Its client tells now and then that all is well, and does not get on with the scrub.
        let client = mounting.filter(|_| what != "without a client");
        let pass = |pool: &mut Pool, seconds: u64| {
            for _ in 0..seconds.div_ceil(5) {
                if let Some(mounting) = &client {
                    pool.report(mounting, PathState::Open, false);
                }
                pool.pass(5000);
            }
        };
        pass(&mut pool, 20);
        pool.servers[0].coordinates_nothing = true;
        pool.now_ms += 2 * u64::try_from(SCRUB_EVERY.as_millis()).unwrap();
        if let Some(mounting) = &client {
            pool.report(mounting, PathState::Open, false);
        }
        pool.apply(Event::Tick);
        pool.pass(100);
        let begun = scrubs(&mut pool).into_iter().map(|task| (task.id, task.subject)).collect::<Vec<_>>();
        assert_eq!(begun[0].1, "first", "{what}");
        match what {
            "paused" => drop(pool.ask(control(begun[0].0, ControlTask::Pause))),
            "without its lender" => pool.kill(0),
            "frozen" => {
                for slice in pool.servers[0].areas.values_mut().flat_map(|area| area.slices.values_mut()) {
                    slice.epoch.number += 1000;
                }
                pool.servers[0].tell_areas = true;
            }
            _ => {}
        }
        pass(&mut pool, 300);
        let done: Vec<_> = scrubs(&mut pool).into_iter().filter(|task| task.state == "done").map(|task| task.subject).collect();
        assert_eq!(done, ["second"], "{what}");
    }
}
