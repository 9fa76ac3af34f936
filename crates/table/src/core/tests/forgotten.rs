//! What becomes of volumes whose lender is gone for good (`server forget --lost`).

use sublet_api::rebuild::{Forget, ForgetView};
use sublet_api::request::{Borrow, LegChange, Request, Response};
use sublet_api::Refusal;
use sublet_types::Way;

use crate::core::testing::{Pool, R, mount, name, task, unmount};

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
    let borrow = Borrow { task: task(1), server, name: Some(name("v")), size: Some(3 * R), way, copies: Some(count), local: false };
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
