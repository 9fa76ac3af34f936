//! How much a server may borrow.

use sublet_api::ErrorKind;
use sublet_api::request::{Request, Response, SetLimits};
use sublet_types::Way;

use crate::core::testing::{Pool, R, borrow, create, give_back, transfer};

fn set(pool: &mut Pool, server: &str, bytes_max: Option<u64>, volumes_max: Option<u32>) {
    let limits = SetLimits { bytes_max, volumes_max };
    match pool.ask(Request::SetLimits { server: server.to_owned(), limits }) {
        Response::Server(view) => assert_eq!((view.bytes_max, view.volumes_max), (bytes_max, volumes_max)),
        other => panic!("{other:?}"),
    }
}

fn refused(pool: &mut Pool, request: Request) -> String {
    match pool.ask(request) {
        Response::Refused(refusal) => {
            assert_eq!(refusal.kind, ErrorKind::Conflict);
            assert!(refusal.hint.contains("sublet limits"), "{refusal}");
            refusal.message
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_borrows_no_more_than_it_may_and_the_refusal_has_both_numbers() {
    let mut pool = Pool::new(&[16, 16, 0, 0]);
    let borrower = pool.id(2);
    set(&mut pool, "server-c", Some(8 * R), None);
    // Both copies count.
    pool.done(borrow(1, borrower, Some("v"), Some(3 * R), Some(Way::Doubled)));
    assert_eq!(pool.table().servers[2].borrowed, 6 * R);
    let text = refused(&mut pool, borrow(2, borrower, Some("w"), Some(3 * R), Some(Way::Divided)));
    assert!(text.contains("has borrowed 24 MiB of the 32 MiB") && text.contains("12 MiB more"), "{text}");
    pool.done(borrow(3, borrower, Some("w"), Some(2 * R), Some(Way::Divided)));
    pool.done(give_back(4, Some(borrower), "w", false));
    pool.done(borrow(5, borrower, Some("w"), Some(2 * R), Some(Way::Divided)));
    set(&mut pool, "server-c", None, Some(2));
    let text = refused(&mut pool, borrow(6, borrower, Some("x"), Some(R), None));
    assert!(text.contains("has borrowed 2 volumes, and may borrow 2"), "{text}");
    set(&mut pool, "server-c", None, None);
    pool.done(borrow(7, borrower, Some("x"), Some(R), None));
    // Lower than what is lent already: that stays.
    set(&mut pool, "server-c", Some(0), Some(0));
    assert_eq!(pool.table().servers[2].borrows.len(), 3);
    assert!(pool.events().iter().any(|event| event.contains("may borrow 0 B and 0 volumes at most")), "{:?}", pool.events());
}

#[test]
fn defined_volumes_and_those_that_are_handed_over_count_too() {
    let mut pool = Pool::new(&[16, 16, 0, 0]);
    let (borrower, other) = (pool.id(2), pool.id(3));
    pool.done(create(1, "v", Way::Single, &[("a1", None)]));
    set(&mut pool, "server-c", Some(16 * R - 1), None);
    refused(&mut pool, borrow(2, borrower, Some("v"), None, None));
    refused(&mut pool, borrow(3, borrower, None, Some(16 * R), Some(Way::Single)));
    pool.done(borrow(4, other, Some("v"), None, None));
    refused(&mut pool, transfer(5, "v", "server-c", false));
    set(&mut pool, "server-c", Some(16 * R), None);
    pool.done(transfer(6, "v", "server-c", false));
    assert_eq!(pool.table().servers[2].borrowed, 16 * R);
}
