//! The manager is killed after every single event, and before every single commit, of every kind of task; the caller repeats its request, and the end is the same.

use sublet_api::request::LegChange;
use sublet_types::Way;

use crate::core::testing::{
    Pool, R, borrow, create, force_unmount, give_back, mount, reclaim, replace, scrub, set_way, transfer, unmount,
};

/// Runs `story` undisturbed, then once for every event with the manager killed after it, and once for every commit with the
/// manager killed before it. `is_told` says whether an end state shows what the story is about.
pub(super) fn survives_as(
    name: &str,
    is_told: impl Fn(&[String]) -> bool,
    prepare: impl Fn(&mut Pool),
    story: impl Fn(&mut Pool),
) {
    let run = |events: Option<usize>, commits: Option<usize>| {
        let mut pool = Pool::new(&[16, 12, 10, 0]);
        prepare(&mut pool);
        let crashes = pool.crashes;
        pool.crash_after = events;
        pool.store.set_commits_left(commits);
        story(&mut pool);
        pool.crash_after = None;
        pool.store.set_commits_left(None);
        let was_killed = pool.crashes > crashes;
        pool.pass(60_000);
        (pool.digest(), was_killed)
    };
    let (expected, _) = run(None, None);
    assert!(is_told(&expected), "{name}: {expected:#?}");
    let kills = |what: &str, first: usize, kill: &dyn Fn(usize) -> (Option<usize>, Option<usize>)| {
        for number in first..2000 {
            let (events, commits) = kill(number);
            let (found, was_killed) = run(events, commits);
            if !was_killed {
                return number - first;
            }
            let is_in = |lines: &[String], line: &String| lines.contains(line);
            let lacks: Vec<_> = expected.iter().filter(|line| !is_in(&found, line)).collect();
            let beside: Vec<_> = found.iter().filter(|line| !is_in(&expected, line)).collect();
            assert!(found == expected, "{name}: killed {what} {number}: lacks {lacks:#?}, has {beside:#?}");
        }
        panic!("{name} has no end");
    };
    let events = kills("after event", 1, &|number| (Some(number), None));
    let commits = kills("after commit", 0, &|number| (None, Some(number)));
    assert!(events >= 3 && commits >= 1, "{name}: only {events} events, {commits} commits");
}

/// The same for a story that is a task.
fn survives(name: &str, prepare: impl Fn(&mut Pool), story: impl Fn(&mut Pool)) {
    let is_done = |lines: &[String]| lines.iter().any(|line| line.starts_with("task") && line.contains("Done"));
    survives_as(name, is_done, prepare, story);
}

#[test]
fn create_survives_a_kill_at_any_moment() {
    survives(
        "create",
        |_| {},
        |pool| {
            pool.done(create(1, "v", Way::Integrated, &[("a1", None), ("b1", Some(R))]));
        },
    );
}

#[test]
fn set_way_survives_a_kill_at_any_moment() {
    survives(
        "set-way",
        |pool| {
            pool.done(create(1, "v", Way::Single, &[("a1", None)]));
        },
        |pool| {
            pool.done(set_way(2, "v", Way::Doubled, &[("a1", Some(4 * R)), ("b1", None)]));
        },
    );
}

#[test]
fn borrow_survives_a_kill_at_any_moment() {
    survives(
        "carve",
        |_| {},
        |pool| {
            let borrower = pool.id(3);
            pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
        },
    );
    survives(
        "borrow a free one",
        |pool| {
            pool.done(create(1, "v", Way::Divided, &[("a1", Some(2 * R))]));
        },
        |pool| {
            let borrower = pool.id(3);
            pool.done(borrow(2, borrower, Some("v"), None, None));
        },
    );
}

fn borrowed(pool: &mut Pool) {
    let borrower = pool.id(3);
    pool.done(borrow(1, borrower, Some("v"), Some(14 * R), Some(Way::Doubled)));
}

#[test]
fn mount_survives_a_kill_at_any_moment() {
    survives("mount", borrowed, |pool| {
        let borrower = pool.id(3);
        pool.mounted(mount(2, borrower, "v"));
    });
}

#[test]
fn a_mount_without_one_lender_survives_a_kill_at_any_moment() {
    survives(
        "degraded mount",
        |pool| {
            let borrower = pool.id(3);
            pool.done(borrow(1, borrower, Some("v"), Some(9 * R), Some(Way::Doubled)));
            pool.lose(1);
        },
        |pool| {
            let borrower = pool.id(3);
            let mounting = pool.mounted(mount(2, borrower, "v"));
            assert_eq!(mounting.segments[0].legs.iter().filter(|leg| leg.in_sync).count(), 1);
        },
    );
}

#[test]
fn unmount_survives_a_kill_at_any_moment() {
    survives("unmount", borrowed, |pool| {
        let borrower = pool.id(3);
        let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
        pool.done(unmount(3, borrower, "v", epoch));
    });
    survives("forced unmount", borrowed, |pool| {
        let borrower = pool.id(3);
        pool.mounted(mount(2, borrower, "v"));
        pool.done(force_unmount(3, "v"));
    });
}

#[test]
fn return_survives_a_kill_at_any_moment() {
    let used = |pool: &mut Pool| {
        borrowed(pool);
        let borrower = pool.id(3);
        let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
        pool.done(unmount(3, borrower, "v", epoch));
    };
    survives("return", used, |pool| {
        let borrower = pool.id(3);
        pool.done(give_back(4, Some(borrower), "v", false));
    });
    let defined = |pool: &mut Pool| {
        pool.done(create(1, "v", Way::Doubled, &[("a1", None), ("b1", None)]));
        let borrower = pool.id(3);
        pool.done(borrow(5, borrower, Some("v"), None, None));
        let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
        pool.done(unmount(3, borrower, "v", epoch));
    };
    survives("return of a defined one", defined, |pool| {
        let borrower = pool.id(3);
        pool.done(give_back(4, Some(borrower), "v", false));
    });
}

#[test]
fn transfer_survives_a_kill_at_any_moment() {
    survives("transfer", borrowed, |pool| {
        pool.done(transfer(4, "v", "server-c", false));
    });
    survives("forced transfer", borrowed, |pool| {
        let borrower = pool.id(3);
        pool.mounted(mount(2, borrower, "v"));
        pool.done(transfer(4, "v", "server-c", true));
    });
}

#[test]
fn reclaim_survives_a_kill_at_any_moment() {
    survives(
        "reclaim",
        |_| {},
        |pool| {
            pool.done(reclaim(1, "b1"));
        },
    );
}

#[test]
fn background_work_survives_a_kill_at_any_moment() {
    let stale = |pool: &mut Pool| {
        borrowed_small(pool);
        let borrower = pool.id(3);
        let mounting = pool.mounted(mount(2, borrower, "v"));
        pool.lose(1);
        pool.bring_back(&mounting);
        pool.done(unmount(3, borrower, "v", mounting.epoch));
        assert_eq!(pool.core.table().volume("v").unwrap().segments[0].in_sync(), [true, false]);
    };
    survives("resync of an unmounted volume", stale, |pool| {
        pool.revive(1);
        pool.pass(120_000);
        assert_eq!(pool.core.table().volume("v").unwrap().segments[0].in_sync(), [true, true]);
    });
    survives("scrub of an unmounted volume", borrowed_small, |pool| {
        pool.done(scrub(4, "v"));
    });
    survives(
        "mount over background work",
        |pool| {
            stale(pool);
            pool.servers[0].is_lazy = true;
            pool.revive(1);
            pool.pass(10_000);
        },
        |pool| {
            let borrower = pool.id(3);
            let mounting = pool.mounted(mount(9, borrower, "v"));
            pool.bring_back(&mounting);
        },
    );
}

fn borrowed_small(pool: &mut Pool) {
    let borrower = pool.id(3);
    pool.done(borrow(1, borrower, Some("v"), Some(9 * R), Some(Way::Doubled)));
}

#[test]
fn replace_survives_a_kill_at_any_moment() {
    let lost = |pool: &mut Pool| {
        borrowed_small(pool);
        pool.pass(1000);
        pool.lose(1);
    };
    survives("replace", lost, |pool| {
        while pool.core.table().tasks.values().all(|task| task.command.word() != "replace") {
            // A manager that was killed before it had begun does not know yet that the server is lost.
            pool.send(replace(4, "v", "server-b", None));
            pool.pass(1000);
        }
        pool.done(replace(4, "v", "server-b", None));
        pool.revive(1);
        pool.pass(60_000);
    });
    survives(
        "replace while mounted",
        |pool| {
            borrowed_small(pool);
            let borrower = pool.id(3);
            let mounting = pool.mounted(mount(2, borrower, "v"));
            pool.lose(1);
            pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale);
        },
        |pool| {
            pool.send(replace(4, "v", "server-b", None));
            // The caller repeats its request when it gets no answer.
            pool.send(replace(4, "v", "server-b", None));
            pool.pass(20_000);
            let volume = pool.core.table().volume("v").unwrap();
            assert_eq!(pool.core.table().areas[&volume.segments[0].legs[1].area].name.as_str(), "a1");
        },
    );
}
