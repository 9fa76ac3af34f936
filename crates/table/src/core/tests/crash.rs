//! The manager is killed after every single event of every kind of task; the caller repeats its request, and the end is the same.

use sublet_api::request::LegChange;
use sublet_types::Way;

use crate::core::testing::{
    Pool, R, borrow, create, force_unmount, give_back, mount, reclaim, replace, scrub, set_way, transfer, unmount,
};

/// Runs `story` undisturbed, then once for every event with the manager killed after it.
fn survives(name: &str, prepare: impl Fn(&mut Pool), story: impl Fn(&mut Pool)) {
    let run = |crash_after: Option<usize>| {
        let mut pool = Pool::new(&[16, 12, 10, 0]);
        prepare(&mut pool);
        pool.crash_after = crash_after;
        story(&mut pool);
        let is_over = pool.crash_after.take().is_some();
        pool.pass(60_000);
        (pool.digest(), is_over)
    };
    let (expected, _) = run(None);
    assert!(expected.iter().any(|line| line.starts_with("task") && line.contains("Done")), "{name}: {expected:#?}");
    let mut tried = 0;
    for after in 1.. {
        let (found, is_over) = run(Some(after));
        if is_over {
            break;
        }
        assert_eq!(found, expected, "{name}: killed after event {after}");
        tried += 1;
        assert!(tried < 2000, "{name} has no end");
    }
    assert!(tried >= 3, "{name}: only {tried} events");
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
