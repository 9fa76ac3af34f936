//! A manager that has lost its table, against fake servers that have not.

use sublet_api::ErrorKind;
use sublet_api::order::Order;
use sublet_api::rebuild::{AcceptVolume, Rebuild, RebuildView};
use sublet_api::request::{LegChange, Request, Response};
use sublet_api::view::PathState;
use sublet_types::{PoolId, Way};

use crate::core::testing::{Pool, R, borrow, create, force_unmount, give_back, mount, name, unmount};

/// What a rebuilt table has in common with the one that was lost: everything but numbers of the future, tasks and events.
fn normal(pool: &Pool) -> Vec<String> {
    let table = pool.core.table();
    let mut lines = Vec::new();
    for row in table.members() {
        lines.push(format!("server {:?} {} {:?}", row.id, row.name, row.addresses));
    }
    for row in table.areas.values() {
        let strangers: Vec<_> = row.strangers.iter().map(|stranger| stranger.slice).collect();
        lines.push(format!(
            "area {:?} {} at {:?}, {} {strangers:?} {:?}",
            row.id, row.name, row.server, row.capacity, row.offline
        ));
    }
    for row in table.volumes.values() {
        let lease = row.lease.as_ref().map(|lease| (lease.epoch, lease.secret.to_u128(), lease.read_only, lease.state));
        lines.push(format!(
            "volume {:?} {} {} {} defined {} for {:?} epoch {:?} lease {lease:?} frozen {:?}",
            row.id, row.name, row.way, row.size, row.defined, row.borrower, row.epoch, row.frozen
        ));
        for segment in &row.segments {
            let legs: Vec<_> =
                segment.legs.iter().map(|leg| (leg.slice, leg.area, leg.offset, leg.length, leg.in_sync)).collect();
            lines.push(format!("  {} {:?} {legs:?}", segment.length, segment.generation));
        }
    }
    for row in table.wipes.values() {
        lines.push(format!("wipe {:?} in {:?} at {} {} of {:?}", row.slice, row.area, row.offset, row.length, row.volume));
    }
    lines
}

fn rebuild(pool: &mut Pool, command: Rebuild) -> RebuildView {
    match pool.ask(Request::Rebuild(command)) {
        Response::Rebuild(view) => *view,
        other => panic!("{other:?}"),
    }
}

fn finish(pool: &mut Pool) -> RebuildView {
    rebuild(pool, Rebuild { finish: true, ..Rebuild::default() })
}

/// A pool with volumes of every way: free, lent, mounted, one with a stale leg, one renamed.
fn populated() -> Pool {
    let mut pool = Pool::new(&[64, 64, 64, 0]);
    let (c, d) = (pool.id(2), pool.id(3));
    pool.done(create(1, "free", Way::Doubled, &[("a1", Some(4 * R)), ("b1", Some(4 * R))]));
    pool.done(create(2, "kept", Way::Divided, &[("c1", Some(4 * R))]));
    pool.done(borrow(3, d, Some("kept"), None, None));
    pool.done(borrow(4, d, Some("long"), Some(80 * R), Some(Way::Integrated)));
    pool.done(borrow(5, d, Some("pair"), Some(2 * R), Some(Way::Doubled)));
    pool.done(borrow(6, c, Some("other"), Some(3 * R), None));
    let pair = pool.mounted(mount(7, d, "pair"));
    pool.change_leg(&pair, 1, pair.segments[0].generation, LegChange::Stale);
    // As the survivor's client does (S1).
    let row = pool.core.table().volumes[&pair.volume].clone();
    let survivor = row.segments[0].legs[0].clone();
    for area in pool.servers.iter_mut().flat_map(|server| server.areas.values_mut()) {
        if let Some(slice) = area.slices.get_mut(&survivor.slice) {
            slice.facts.generation = row.segments[0].generation;
            slice.facts.in_sync = row.segments[0].in_sync();
        }
    }
    let other = pool.mounted(mount(8, c, "other"));
    pool.done(unmount(9, c, "other", other.epoch));
    pool.ask(Request::RenameVolume { volume: "kept".to_owned(), rename: sublet_api::request::Rename { name: name("renamed") } });
    pool.pass(6000);
    pool
}

#[test]
fn r1_an_empty_manager_gets_the_same_table_back() {
    let mut pool = populated();
    let before = normal(&pool);
    let id = pool.core.table().pool.as_ref().unwrap().pool;
    pool.lose_table();
    // It refuses them, and knows who they are.
    assert!(pool.core.table().members().next().is_none());
    let Response::Rebuild(view) = pool.ask(Request::RebuildState) else { panic!() };
    assert_eq!((view.knocking.len(), view.knocking[0].pool, view.open), (4, id, false));
    assert!(pool.events().iter().any(|event| event.contains("manager rebuild")));
    let view = rebuild(&mut pool, Rebuild::default());
    assert_eq!((view.pool, view.open), (id, true));
    pool.pass(6000);
    assert_eq!(normal(&pool), before);
    // Nothing is placed before the administrator says that all are there.
    let d = pool.id(3);
    assert_eq!(pool.refused(borrow(20, d, Some("new"), Some(R), None)).kind, ErrorKind::Conflict);
    let view = finish(&mut pool);
    assert_eq!((view.open, view.unsettled.len(), view.silent.len()), (false, 0, 0));
    pool.pass(6000);
    assert_eq!(normal(&pool), before);
    pool.done(borrow(21, d, Some("new"), Some(R), None));
    // Numbers go on above all that were ever issued.
    let epoch = pool.core.table().volume("pair").unwrap().epoch;
    pool.done(force_unmount(22, "pair"));
    assert!(pool.core.table().volume("pair").unwrap().epoch.number > epoch.number + 500);
}

#[test]
fn r1_a_mounted_volume_goes_on_undisturbed() {
    let mut pool = populated();
    let pair = pool.core.table().volume("pair").unwrap().clone();
    let Response::Task(_) = pool.ask(mount(7, pool.id(3), "pair")) else { panic!() };
    let mounting = pool.mounted(mount(7, pool.id(3), "pair"));
    for server in &mut pool.servers {
        server.log.clear();
    }
    pool.lose_table();
    // The client reports all the while. It is never told to stop (F4).
    let kind = |response: Response| match response {
        Response::Refused(refusal) => Some(refusal.kind),
        _ => None,
    };
    let conn = pool.report(&mounting, PathState::Open, false);
    assert_eq!(kind(pool.replies.remove(&conn).unwrap()), Some(ErrorKind::Conflict));
    rebuild(&mut pool, Rebuild::default());
    let conn = pool.report(&mounting, PathState::Open, false);
    assert_ne!(kind(pool.replies.remove(&conn).unwrap()), Some(ErrorKind::StaleEpoch));
    pool.pass(6000);
    let conn = pool.report(&mounting, PathState::Open, false);
    assert_eq!(kind(pool.replies.remove(&conn).unwrap()), None);
    let row = pool.core.table().volume("pair").unwrap().clone();
    assert_eq!(row.lease.as_ref().map(|lease| lease.epoch), pair.lease.as_ref().map(|lease| lease.epoch));
    for order in pool.servers.iter().flat_map(|server| &server.log) {
        assert!(!matches!(order, Order::Fence { slice, .. } if row.legs().any(|(_, leg)| leg.slice == *slice)), "{order:?}");
    }
    // Its client goes on from the generation that it knows.
    let answer = pool.change_leg(&mounting, 1, row.segments[0].generation, LegChange::Returning);
    assert!(matches!(answer, Response::Leg(_)), "{answer:?}");
}

#[test]
fn r1_with_a_lender_missing_its_volumes_wait_and_the_rest_is_there() {
    let mut pool = populated();
    let before = normal(&pool);
    pool.kill(1);
    pool.lose_table();
    rebuild(&mut pool, Rebuild::default());
    pool.pass(6000);
    let table = pool.core.table();
    let pair = table.volume("free").unwrap();
    let reason = pair.frozen.clone().unwrap();
    assert!(reason.contains("copy 2 of 2 of segment 0 is missing (seen: server-a (area a1))"), "{reason}");
    assert!(table.volume("long").unwrap().unsettled);
    assert!(table.volume("other").unwrap().frozen.is_none());
    let c = pool.id(2);
    assert!(pool.refused(mount(30, pool.id(3), "long")).message.contains("frozen"));
    // The rebuild has ended; the lender comes after that all the same.
    finish(&mut pool);
    // No new slice on any byte of those that are not settled.
    let free: u64 = pool.table().areas.iter().map(|area| area.free).sum();
    pool.refused(borrow(31, c, Some("big"), Some(free + R), Some(Way::Integrated)));
    pool.revive(1);
    pool.pass(6000);
    assert_eq!(pool.core.table().volume("free").unwrap().frozen, None);
    // Its area was not known to a table that is no longer being rebuilt: what is on it is never placed over.
    let settled = |pool: &Pool| pool.core.table().volumes.values().all(|row| !row.unsettled);
    if !settled(&pool) || normal(&pool) != before {
        rebuild(&mut pool, Rebuild { reconcile: true, ..Rebuild::default() });
        pool.pass(6000);
        finish(&mut pool);
        pool.pass(6000);
    }
    assert!(settled(&pool));
    assert_eq!(normal(&pool), before);
}

#[test]
fn r1_accepting_what_is_there_makes_the_absent_copy_stale_when_it_comes() {
    let mut pool = populated();
    pool.kill(1);
    pool.lose_table();
    rebuild(&mut pool, Rebuild::default());
    pool.pass(6000);
    let accept = |volume: &str, leg: &str| Request::AcceptVolume {
        volume: volume.to_owned(),
        accept: AcceptVolume { leg: leg.to_owned(), stale: false },
    };
    assert!(pool.refused(accept("free", "c1")).hint.contains("server-a (area a1)"));
    assert!(pool.refused(accept("other", "c1")).message.contains("not frozen"));
    // Of a segment that has no copy here there is nothing to accept.
    assert!(pool.refused(accept("long", "a1")).message.contains("have no copy at all"));
    pool.ask(accept("free", "a1"));
    finish(&mut pool);
    let row = pool.core.table().volume("free").unwrap().clone();
    assert_eq!((row.frozen.clone(), row.segments[0].in_sync()), (None, vec![true]));
    assert!(row.segments[0].generation.number > super::FORK_JUMP, "what is from before that is known by its number");
    // Nobody copies, so that it can be seen how it comes back.
    pool.servers.iter_mut().for_each(|server| server.coordinates_nothing = true);
    pool.revive(1);
    pool.pass(6000);
    let row = pool.core.table().volume("free").unwrap().clone();
    assert_eq!(row.segments[0].in_sync(), [true, false]);
    assert!(row.absent.is_empty());
    let d = pool.id(3);
    pool.done(borrow(40, d, Some("free"), None, None));
    let mounting = pool.mounted(mount(41, d, "free"));
    assert_eq!(mounting.segments[0].legs.iter().map(|leg| leg.in_sync).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn r1_two_histories_are_shown_and_never_merged() {
    let mut pool = populated();
    let slice = pool.core.table().volume("free").unwrap().segments[0].legs[1].slice;
    for area in pool.servers.iter_mut().flat_map(|server| server.areas.values_mut()) {
        if let Some(slice) = area.slices.get_mut(&slice) {
            slice.facts.generation.random ^= 1;
        }
    }
    pool.lose_table();
    rebuild(&mut pool, Rebuild::default());
    pool.pass(6000);
    let reason = pool.core.table().volume("free").unwrap().frozen.clone().unwrap();
    assert!(reason.contains("two histories, at server-a (area a1, epoch "), "{reason}");
    assert!(reason.contains("the highest epoch was mounted last"), "{reason}");
    pool.ask(Request::AcceptVolume {
        volume: "free".to_owned(),
        accept: AcceptVolume { leg: "server-b".to_owned(), stale: false },
    });
    assert_eq!(pool.core.table().volume("free").unwrap().segments[0].in_sync(), [false, true]);
}

#[test]
fn r1_a_former_copy_is_named_and_accepted_only_by_who_says_that_there_is_nothing_better() {
    let mut pool = populated();
    let slices: Vec<_> = pool.core.table().volume("pair").unwrap().legs().map(|(_, leg)| leg.slice).collect();
    for area in pool.servers.iter_mut().flat_map(|server| server.areas.values_mut()) {
        for (slice, number, set) in [(slices[0], 3, [true, true]), (slices[1], 2, [true, false])] {
            if let Some(label) = area.slices.get_mut(&slice) {
                (label.facts.generation.number, label.facts.in_sync) = (number, set.to_vec());
            }
        }
    }
    let lender = pool.core.table().lender(pool.core.table().volume("pair").unwrap().segments[0].legs[1].area).unwrap();
    let lender = pool.core.table().server_name(lender);
    pool.lose_table();
    rebuild(&mut pool, Rebuild::default());
    pool.pass(6000);
    let reason = pool.core.table().volume("pair").unwrap().frozen.clone().unwrap();
    assert!(reason.contains("copy 2 of 2 of segment 0 is missing"), "{reason}");
    assert!(reason.contains(&format!("what {lender} (area ")) && reason.contains("is a former copy"), "{reason}");
    let accept = |stale| Request::AcceptVolume { volume: "pair".to_owned(), accept: AcceptVolume { leg: lender.clone(), stale } };
    assert!(pool.refused(accept(false)).message.contains("has no copy"));
    pool.ask(accept(true));
    assert_eq!(pool.core.table().volume("pair").unwrap().segments[0].in_sync(), [false, true]);
}

#[test]
fn r1_servers_of_several_pools_are_told_apart() {
    let mut pool = populated();
    pool.lose_table();
    let id = pool.servers[0].pool.unwrap();
    pool.servers[3].pool = Some(PoolId::from_u128(77));
    pool.servers[3].registered = false;
    pool.pass(6000);
    let refusal = pool.refused(Request::Rebuild(Rebuild::default()));
    assert!(refusal.message.contains("several pools"), "{refusal}");
    let view = rebuild(&mut pool, Rebuild { pool: Some(id), ..Rebuild::default() });
    assert_eq!(view.pool, id);
    pool.pass(6000);
    assert_eq!(pool.core.table().members().count(), 3);
    // A manager that keeps a pool takes no other one over.
    assert!(
        pool.refused(Request::Rebuild(Rebuild { pool: Some(PoolId::from_u128(77)), ..Rebuild::default() }))
            .message
            .contains("not empty")
    );
}

#[test]
fn r2_a_lender_that_was_away_while_a_volume_was_deleted_brings_it_not_back() {
    let mut pool = populated();
    pool.lose(1);
    let d = pool.id(3);
    pool.done(force_unmount(50, "pair"));
    pool.done(give_back(51, Some(d), "pair", false));
    pool.pass(6000);
    let deleted = pool.core.table().wipes.keys().next().copied().unwrap();
    let stones = |pool: &Pool| -> usize {
        pool.servers.iter().flat_map(|server| server.areas.values()).map(|area| area.tombstones.len()).sum()
    };
    assert_eq!(stones(&pool), 2, "in every label that can be reached");
    pool.lose_table();
    rebuild(&mut pool, Rebuild::default());
    pool.pass(6000);
    assert!(pool.core.table().wipes.contains_key(&deleted));
    pool.revive(1);
    pool.pass(6000);
    assert!(pool.core.table().volume("pair").is_err());
    assert!(pool.core.table().wipes.is_empty(), "it was wiped");
    assert!(!pool.servers[1].areas.values().any(|area| area.slices.contains_key(&deleted)));
    assert_eq!(stones(&pool), 0, "and then nobody needs to remember it");
    finish(&mut pool);
    assert!(pool.core.table().volume("long").unwrap().frozen.is_none());
}

#[test]
fn l5_a_table_from_an_old_backup_is_reconciled_with_the_labels() {
    let mut pool = populated();
    let backup = pool.backup();
    let (c, d) = (pool.id(2), pool.id(3));
    // After the backup: mounted again, deleted, newly lent.
    pool.done(force_unmount(60, "pair"));
    let again = pool.mounted(mount(61, d, "pair"));
    pool.done(give_back(62, Some(c), "other", false));
    pool.done(borrow(63, c, Some("later"), Some(2 * R), Some(Way::Doubled)));
    let later = pool.mounted(mount(64, c, "later"));
    pool.pass(6000);
    let before = normal(&pool);
    pool.restore(&backup);
    // Neither client is told to stop by a manager that is behind.
    for mounting in [&again, &later] {
        let conn = pool.report(mounting, PathState::Open, false);
        let Some(Response::Refused(refusal)) = pool.replies.remove(&conn) else { panic!() };
        assert_ne!(refusal.kind, ErrorKind::StaleEpoch, "{refusal}");
    }
    pool.pass(6000);
    assert!(pool.core.table().volume("pair").unwrap().frozen.is_some());
    assert!(pool.core.table().areas.values().any(|row| !row.strangers.is_empty()), "its space is taken, nothing is placed there");
    rebuild(&mut pool, Rebuild { reconcile: true, ..Rebuild::default() });
    pool.pass(6000);
    finish(&mut pool);
    pool.pass(6000);
    let after = normal(&pool);
    let differs: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    // What was returned after the backup is back as a row without a slice: the labels know nothing of it.
    assert!(differs.iter().all(|line| line.contains(" other ") || line.starts_with("  ")), "{differs:#?}");
    assert_eq!(pool.core.table().volume("pair").unwrap().lease.as_ref().unwrap().epoch, again.epoch);
    let conn = pool.report(&later, PathState::Open, false);
    assert!(matches!(pool.replies.remove(&conn), Some(Response::Client(_))));
}
