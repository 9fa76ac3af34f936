//! The manager is killed at every moment of what is decided by labels: servers that are forgotten, tables that are rebuilt or
//! reconciled, copies and areas that are accepted, tombstones. The administrator repeats the command, and the end is the same.

use sublet_api::rebuild::{AcceptVolume, Forget, Rebuild};
use sublet_api::request::{LegChange, Request, Response};
use sublet_types::{OpenId, Way};

use super::crash::survives_as;
use crate::core::testing::{Pool, R, borrow, create, force_unmount, give_back, mount, replace, unmount};

/// The borrower.
const D: usize = 3;

/// Sends a command until it is not refused, or has been carried out before (its answer was lost).
fn insist(pool: &mut Pool, request: &Request, is_done: impl Fn(&Pool) -> bool) {
    for _ in 0..60 {
        let response = pool.ask(request.clone());
        if !matches!(response, Response::Refused(_)) || is_done(pool) {
            assert!(is_done(pool), "{response:?}");
            return;
        }
        pool.pass(1000);
    }
    panic!("{request:?} is refused for ever: {:?}", pool.ask(request.clone()));
}

fn is_rebuilding(pool: &Pool) -> bool {
    pool.core.table().pool.as_ref().is_some_and(|row| row.rebuild.is_some())
}

fn begin(pool: &mut Pool, reconcile: bool) {
    insist(pool, &Request::Rebuild(Rebuild { reconcile, ..Rebuild::default() }), is_rebuilding);
    pool.pass(6000);
}

fn finish(pool: &mut Pool) {
    insist(pool, &Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }), |pool| !is_rebuilding(pool));
    pool.pass(6000);
}

fn accept(pool: &mut Pool, volume: &str, leg: &str) {
    let accept = AcceptVolume { leg: leg.to_owned(), stale: false };
    let is_done = |pool: &Pool| pool.core.table().volume(volume).is_ok_and(|row| row.frozen.is_none());
    insist(pool, &Request::AcceptVolume { volume: volume.to_owned(), accept }, is_done);
}

fn used(pool: &mut Pool, volume: &str, id: u128) {
    let borrower = pool.id(D);
    let epoch = pool.mounted(mount(id, borrower, volume)).epoch;
    pool.done(unmount(id + 1, borrower, volume, epoch));
}

/// `v` on b1 and c1 with a borrower's bytes.
fn doubled(pool: &mut Pool) {
    let borrower = pool.id(D);
    pool.done(borrow(1, borrower, Some("v"), Some(4 * R), Some(Way::Doubled)));
    used(pool, "v", 2);
    pool.pass(1000);
}

/// Whether a line that begins with `start` has all these words.
fn has(lines: &[String], start: &str, words: &[&str]) -> bool {
    lines.iter().any(|line| line.starts_with(start) && words.iter().all(|word| line.contains(word)))
}

/// Nothing is to be wiped, remembered or unknown any more.
fn is_quiet(lines: &[String]) -> bool {
    let labels = |lines: &[String]| lines.iter().filter(|line| line.contains("tombstones")).all(|line| line.ends_with(" 0"));
    let areas = lines.iter().filter(|line| line.starts_with("area ")).all(|line| line.ends_with("strangers 0"));
    has(lines, "wipes 0", &[]) && labels(lines) && areas && has(lines, "rebuild false", &[])
}

#[test]
fn p2_forgetting_a_server_survives_a_kill_at_any_moment() {
    let prepare = |pool: &mut Pool| {
        doubled(pool);
        pool.done(create(5, "w", Way::Divided, &[("b1", Some(2 * R))]));
        let borrower = pool.id(D);
        pool.done(borrow(6, borrower, Some("w"), None, None));
        used(pool, "w", 7);
        pool.lose(1);
    };
    let forget = |pool: &mut Pool| {
        let forget = Forget { confirm: true };
        let request = Request::ForgetServer { server: "server-b".to_owned(), forget };
        insist(pool, &request, |pool| pool.core.table().server("server-b").is_err());
        pool.pass(20_000);
    };
    let is_forgotten = |lines: &[String]| {
        !has(lines, "member server-b", &[])
            && has(lines, "volume v ", &["frozen None", "true)]"])
            && has(lines, "volume w ", &["lost with server-b"])
    };
    let is_remembered = |lines: &[String]| {
        is_forgotten(lines) && has(lines, "wipes 2", &[]) && has(lines, "label server-a a1 quarantined", &["tombstones 2"])
    };
    survives_as("forget", is_remembered, prepare, |pool| {
        forget(pool);
        // It comes back as it was.
        pool.revive(1);
        pool.pass(20_000);
    });
    let is_wiped = |lines: &[String]| is_forgotten(lines) && is_quiet(lines) && has(lines, "label server-c b1 []", &["{}"]);
    survives_as("forget, and its disk in another server", is_wiped, prepare, |pool| {
        forget(pool);
        let disk = std::mem::take(&mut pool.server(1).areas);
        pool.server(2).areas.extend(disk);
        pool.server(2).tell_areas = true;
        pool.lose_answer(2);
        pool.pass(60_000);
    });
}

/// Volumes that are free, in use, mounted with a stale copy, and spread over areas.
fn populated(pool: &mut Pool) {
    let borrower = pool.id(D);
    pool.done(create(1, "free", Way::Doubled, &[("a1", Some(2 * R)), ("b1", Some(2 * R))]));
    pool.done(borrow(2, borrower, Some("long"), Some(16 * R), Some(Way::Integrated)));
    used(pool, "long", 3);
    pool.done(borrow(5, borrower, Some("pair"), Some(2 * R), Some(Way::Doubled)));
    let mounting = pool.mounted(mount(6, borrower, "pair"));
    let Response::Leg(left) = pool.change_leg(&mounting, 1, mounting.segments[0].generation, LegChange::Stale) else { panic!() };
    // As the survivor's client does (S1).
    for area in pool.servers.iter_mut().flat_map(|server| server.areas.values_mut()) {
        if let Some(slice) = area.slices.get_mut(&mounting.segments[0].legs[0].slice) {
            slice.facts.generation = left.generation;
            slice.facts.in_sync = left.in_sync.clone();
        }
    }
    pool.pass(6000);
}

#[test]
fn r1_a_rebuild_survives_a_kill_at_any_moment() {
    let is_whole = |lines: &[String]| {
        is_quiet(lines)
            && has(lines, "volume free ", &["frozen None", "true)", "status 0"])
            && has(lines, "volume long ", &["frozen None", "server-d"])
            && has(lines, "volume pair ", &["frozen None", "true)", "false)", "status 1", "server-d"])
    };
    let prepare = |pool: &mut Pool| {
        populated(pool);
        pool.lose_table();
    };
    survives_as("rebuild", is_whole, prepare, |pool| {
        begin(pool, false);
        finish(pool);
    });
    let prepare = |pool: &mut Pool| {
        populated(pool);
        pool.kill(1);
        pool.lose_table();
    };
    survives_as("rebuild with a lender that comes late", is_whole, prepare, |pool| {
        begin(pool, false);
        finish(pool);
        pool.revive(1);
        pool.pass(6000);
        begin(pool, true);
        finish(pool);
    });
}

#[test]
fn l5_reconciling_frozen_volumes_survives_a_kill_at_any_moment() {
    let prepare = |pool: &mut Pool| {
        populated(pool);
        let borrower = pool.id(D);
        let backup = pool.backup();
        // After the backup: mounted again, returned, newly lent.
        pool.done(force_unmount(20, "pair"));
        pool.mounted(mount(21, borrower, "pair"));
        pool.done(give_back(22, Some(borrower), "long", false));
        pool.done(borrow(23, borrower, Some("later"), Some(R), Some(Way::Doubled)));
        pool.mounted(mount(24, borrower, "later"));
        pool.pass(6000);
        pool.restore(&backup);
    };
    let is_frozen = |lines: &[String]| {
        has(lines, "volume pair ", &["manager rebuild --reconcile"])
            && has(lines, "volume long ", &["manager rebuild --reconcile"])
            && !has(lines, "volume later ", &[])
    };
    survives_as("a table behind its labels", is_frozen, prepare, |pool| pool.pass(6000));
    let is_reconciled = |lines: &[String]| {
        is_quiet(lines)
            && has(lines, "volume pair ", &["frozen None", "status 1"])
            && has(lines, "volume later ", &["frozen None", "status 1"])
            && !has(lines, "volume long ", &[])
    };
    survives_as("reconcile", is_reconciled, prepare, |pool| {
        pool.pass(6000);
        begin(pool, true);
        finish(pool);
    });
}

#[test]
fn r2_reconciling_with_the_tombstone_of_a_replaced_copy_survives_a_kill_at_any_moment() {
    let prepare = |pool: &mut Pool| {
        doubled(pool);
        let backup = pool.backup();
        pool.lose(1);
        pool.done(replace(10, "v", "server-b", None));
        pool.pass(10_000);
        pool.restore(&backup);
    };
    let is_reconciled = |lines: &[String]| {
        is_quiet(lines) && has(lines, "volume v ", &["frozen None", "a1", "c1"]) && !has(lines, "volume v ", &["false)"])
    };
    survives_as("reconcile with a tombstone", is_reconciled, prepare, |pool| {
        pool.pass(6000);
        begin(pool, true);
        finish(pool);
        pool.revive(1);
        pool.pass(20_000);
    });
}

#[test]
fn r1_accepting_a_volume_survives_a_kill_at_any_moment() {
    let missing = |pool: &mut Pool| {
        doubled(pool);
        pool.kill(1);
        pool.lose_table();
        pool.ask(Request::Rebuild(Rebuild::default()));
        pool.pass(6000);
        pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
        assert!(pool.core.table().volume("v").unwrap().frozen.is_some());
    };
    let is_whole = |lines: &[String]| is_quiet(lines) && has(lines, "volume v ", &["frozen None"]);
    survives_as(
        "accept without the missing copy",
        |lines| has(lines, "volume v ", &["frozen None"]),
        missing,
        |pool| {
            accept(pool, "v", "c1");
        },
    );
    survives_as("accept, and the missing copy comes", is_whole, missing, |pool| {
        accept(pool, "v", "c1");
        pool.revive(1);
        pool.pass(60_000);
    });
    let split = |pool: &mut Pool| {
        doubled(pool);
        let slice = pool.core.table().volume("v").unwrap().segments[0].legs[1].slice;
        for area in pool.servers.iter_mut().flat_map(|server| server.areas.values_mut()) {
            if let Some(slice) = area.slices.get_mut(&slice) {
                slice.facts.generation.random ^= 1;
            }
        }
        pool.lose_table();
        pool.ask(Request::Rebuild(Rebuild::default()));
        pool.pass(6000);
        pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
        assert!(pool.core.table().volume("v").unwrap().frozen.as_ref().unwrap().contains("two histories"));
    };
    survives_as("accept of one of two histories", is_whole, split, |pool| {
        accept(pool, "v", "server-b");
        pool.pass(60_000);
    });
}

#[test]
fn l2_accepting_an_area_survives_a_kill_at_any_moment() {
    let prepare = |pool: &mut Pool| {
        for (index, area) in pool.servers.iter_mut().flat_map(|server| server.areas.values_mut()).enumerate() {
            area.openings.push(OpenId::from_u128(100 + index as u128));
            area.sequence = 10;
        }
        pool.servers.iter_mut().for_each(|server| server.tell_areas = true);
        (0..3).for_each(|server| pool.lose_answer(server));
        doubled(pool);
        pool.done(create(5, "one", Way::Divided, &[("b1", Some(2 * R))]));
        let area = pool.server(1).areas.values_mut().next().unwrap();
        area.sequence = 9;
    };
    let quarantine = |pool: &mut Pool| {
        pool.server(1).tell_areas = true;
        pool.lose_answer(1);
        // A copy that was rolled back tells the same until somebody has seen it.
        while pool.core.table().area("b1").unwrap().quarantined.is_none() {
            pool.server(1).tell_areas = true;
            pool.lose_answer(1);
        }
        pool.pass(6000);
    };
    let is_quarantined = |lines: &[String]| {
        has(lines, "area b1 ", &["quarantined Some"])
            && has(lines, "label server-b b1 quarantined Some", &[])
            && has(lines, "volume one ", &["sublet area accept b1"])
    };
    survives_as("quarantine", is_quarantined, prepare, quarantine);
    let is_accepted = |lines: &[String]| {
        is_quiet(lines)
            && has(lines, "area b1 ", &["quarantined None"])
            && has(lines, "label server-b b1 quarantined None", &[])
            && has(lines, "volume one ", &["frozen None"])
            && has(lines, "volume v ", &["frozen None"])
            && !has(lines, "volume v ", &["false)"])
    };
    survives_as("accept of an area", is_accepted, prepare, |pool| {
        quarantine(pool);
        let request = Request::AcceptArea { area: "b1".to_owned() };
        insist(pool, &request, |pool| pool.core.table().area("b1").unwrap().quarantined.is_none());
        pool.pass(60_000);
    });
}

#[test]
fn r2_tombstones_survive_a_kill_at_any_moment() {
    let away = |pool: &mut Pool| {
        doubled(pool);
        pool.lose(1);
    };
    let is_gone =
        |lines: &[String]| is_quiet(lines) && !has(lines, "volume ", &[]) && has(lines, "label server-b b1 []", &["{}"]);
    let delete = |pool: &mut Pool| {
        let borrower = pool.id(D);
        pool.done(give_back(10, Some(borrower), "v", false));
        pool.pass(6000);
    };
    let is_kept = |lines: &[String]| {
        has(lines, "wipes 1", &[])
            && ["server-a a1", "server-c c1"]
                .iter()
                .all(|area| has(lines, &format!("label {area} quarantined"), &["tombstones 1"]))
    };
    survives_as("tombstones are told", is_kept, away, delete);
    survives_as("tombstones are dropped", is_gone, away, |pool| {
        delete(pool);
        pool.revive(1);
        pool.pass(20_000);
    });
    let lost = |pool: &mut Pool| {
        away(pool);
        delete(pool);
        pool.lose_table();
    };
    survives_as("tombstones in a rebuild", is_gone, lost, |pool| {
        begin(pool, false);
        pool.revive(1);
        pool.pass(20_000);
        finish(pool);
    });
}
