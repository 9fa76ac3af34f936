//! What becomes of volumes whose lender is gone for good (`server forget --lost`).

use sublet_api::Refusal;
use sublet_api::rebuild::{Forget, ForgetView};
use sublet_api::request::{Borrow, LegChange, Request, Response};
use sublet_types::Way;

use crate::core::testing::{Pool, R, mount, name, replace, task, unmount};

/// The borrower.
const E: usize = 4;

fn forget(pool: &mut Pool, server: &str, confirm: bool) -> Result<ForgetView, Refusal> {
    match pool.ask(Request::ForgetServer { server: server.to_owned(), forget: Forget { confirm } }) {
        Response::Forget(view) => Ok(*view),
        Response::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

/// `v` with so many copies, on a1, b1, ...
fn copies(count: u32) -> Pool {
    let mut pool = Pool::new(&[16, 16, 20, 24, 0]);
    let server = pool.id(E);
    let way = Some(Way::Doubled);
    let borrow = Borrow {
        task: task(1),
        server,
        name: Some(name("v")),
        size: Some(3 * R),
        way,
        copies: Some(count),
        local: false,
        seal: None,
    };
    pool.done(Request::Borrow(borrow));
    pool
}

#[test]
fn s3_a_copy_that_gets_another_number_is_not_copied_by_the_map_of_the_copy_that_had_it() {
    let mut pool = copies(3);
    let borrower = pool.id(E);
    pool.servers.iter_mut().for_each(|server| server.coordinates_nothing = true);
    let mounting = pool.mounted(mount(2, borrower, "v"));
    let mut generation = mounting.segments[0].generation;
    for leg in [1, 2] {
        let Response::Leg(left) = pool.change_leg(&mounting, leg, generation, LegChange::Stale) else { panic!() };
        generation = left.generation;
    }
    pool.done(unmount(3, borrower, "v", mounting.epoch));
    pool.lose(1);
    assert!(forget(&mut pool, "server-b", true).unwrap().done);
    let legs = pool.core.table().volume("v").unwrap().segments[0].legs.clone();
    assert_eq!(legs.iter().map(|leg| leg.in_sync).collect::<Vec<_>>(), [true, false]);
    // The map of leg 1 at server-a says what the copy at server-b missed.
    assert_eq!(legs[1].stale_since, None);
}

fn losses(view: &ForgetView) -> Vec<(String, u64, usize)> {
    view.losses.iter().map(|loss| (loss.volume.to_string(), loss.bytes, loss.copies)).collect()
}

#[test]
fn p2_before_a_server_is_forgotten_everything_is_named_that_may_go_with_it() {
    let mut pool = copies(2);
    let borrower = pool.id(E);
    pool.done(crate::core::testing::borrow(5, borrower, Some("w"), Some(2 * R), Some(Way::Divided)));
    let unknown = pool.volume_id("w");
    let at = pool.core.table().lender(pool.core.table().volumes[&unknown].segments[0].legs[0].area).unwrap();
    assert_eq!(at, pool.id(0));
    pool.pass(1000);
    // A table that knows nothing of `w`, while a1's label does.
    let mut backup = pool.backup();
    backup.rows.retain(|row| row.key != format!("volume/{unknown}"));
    pool.restore(&backup);
    pool.pass(6000);
    pool.lose(0);
    let view = forget(&mut pool, "server-a", false).unwrap();
    let stranger = format!("volume-{}", unknown.short());
    assert_eq!(losses(&view), [("v".to_owned(), 0, 1), (stranger, 2 * R, 0)]);
}

#[test]
fn r1_copies_that_a_rebuild_has_not_seen_may_go_with_any_server() {
    let mut pool = copies(2);
    pool.kill(1);
    pool.lose_table();
    pool.ask(Request::Rebuild(sublet_api::rebuild::Rebuild::default()));
    pool.pass(6000);
    pool.lose(2);
    let view = forget(&mut pool, "server-c", false).unwrap();
    assert_eq!(losses(&view), [("v".to_owned(), 0, 1)]);
}

#[test]
fn p2_no_server_is_forgotten_while_it_is_not_known_where_a_copy_lies() {
    let mut pool = copies(2);
    pool.kill(1);
    let area = pool.core.table().volume("v").unwrap().segments[0].legs[1].area;
    pool.store.overwrite(&format!("area/{area}"), b"garbage");
    pool.restart_manager();
    pool.pass(20_000);
    let refusal = forget(&mut pool, "server-b", true).unwrap_err();
    assert!(refusal.message.contains("copies of v lie in areas that are not in the table"), "{refusal}");
}

fn areas(pool: &Pool) -> Vec<(String, bool)> {
    let table = pool.core.table();
    let volume = table.volume("v").unwrap();
    volume.legs().map(|(_, leg)| (table.areas[&leg.area].name.to_string(), leg.in_sync)).collect()
}

#[test]
fn s6_a_volume_gets_the_copies_again_that_were_given_up_with_a_server() {
    for (count, accepted) in [(2, false), (3, false), (2, true)] {
        let mut pool = copies(count);
        let borrower = pool.id(E);
        let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
        pool.done(unmount(3, borrower, "v", epoch));
        if accepted {
            pool.kill(1);
            pool.lose_table();
            pool.ask(Request::Rebuild(sublet_api::rebuild::Rebuild::default()));
            pool.pass(6000);
            let accept = sublet_api::rebuild::AcceptVolume { leg: "a1".to_owned(), stale: false };
            pool.ask(Request::AcceptVolume { volume: "v".to_owned(), accept });
            let finish = sublet_api::rebuild::Rebuild { finish: true, ..Default::default() };
            pool.ask(Request::Rebuild(finish));
        } else {
            pool.lose(1);
            assert!(forget(&mut pool, "server-b", true).unwrap().done);
        }
        assert_eq!(areas(&pool).len(), count as usize - 1);
        // While it is mounted its client knows it by its copies: the new one waits.
        let epoch = pool.mounted(mount(4, borrower, "v")).epoch;
        pool.send(replace(5, "v", "server-b", None));
        pool.pass(1000);
        assert_eq!(areas(&pool).len(), count as usize - 1);
        assert!(pool.refused(replace(6, "v", "server-b", None)).message.contains("being replaced already"));
        pool.done(unmount(7, borrower, "v", epoch));
        pool.pass(20_000);
        let expected: Vec<(String, bool)> = match count {
            2 => vec![("a1".to_owned(), true), ("c1".to_owned(), true)],
            _ => vec![("a1".to_owned(), true), ("c1".to_owned(), true), ("d1".to_owned(), true)],
        };
        assert_eq!(areas(&pool), expected, "{count} {accepted}");
        let mounting = pool.mounted(mount(8, borrower, "v"));
        assert!(mounting.segments[0].legs.iter().all(|leg| leg.in_sync));
        assert!(pool.refused(replace(9, "v", "server-b", None)).kind != sublet_api::ErrorKind::Internal, "there are enough now");
    }
}
