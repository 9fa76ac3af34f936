//! Sealed volumes: what the table knows of them, and what it must not forget.

use sublet_api::ErrorKind;
use sublet_api::mount::SetSeal;
use sublet_api::rebuild::Rebuild;
use sublet_api::request::{Borrow, Request, Response};
use sublet_types::limits::SEAL_SIZE;
use sublet_types::{SealText, ServerId, Way};

use crate::core::testing::{Pool, R, borrow, create, give_back, mount, name, task, transfer, unmount};

fn seal(text: &str) -> SealText {
    text.parse().unwrap()
}

fn sealed(id: u128, server: ServerId, volume: &str, size: Option<u64>, text: &str) -> Request {
    let (name, way, copies) = (Some(name(volume)), Some(Way::Doubled), None);
    Request::Borrow(Borrow { task: task(id), server, name, size, way, copies, local: false, seal: Some(seal(text)) })
}

fn set(pool: &mut Pool, server: ServerId, from: Option<&str>, to: &str) -> Result<(), ErrorKind> {
    let seal = SetSeal { server, from: from.map(seal), to: seal(to) };
    match pool.ask(Request::SetSeal { volume: "v".to_owned(), seal }) {
        Response::Volume(view) => {
            assert!(view.sealed);
            Ok(())
        }
        Response::Refused(refusal) => Err(refusal.kind),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_carved_sealed_volume_announces_what_was_asked_for_and_is_mounted_with_its_header() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(sealed(1, borrower, "v", Some(3 * R), "AAAA"));
    let view = pool.table().volumes.remove(0);
    assert_eq!((view.sealed, view.size), (true, 3 * R));
    let mounting = pool.mounted(mount(2, borrower, "v"));
    assert_eq!((mounting.sealed, mounting.size, mounting.announced()), (true, 3 * R + SEAL_SIZE, 3 * R));
    assert_eq!(mounting.seal, Some(seal("AAAA")));
    assert_eq!(mounting.segments.iter().map(|segment| segment.length).sum::<u64>(), 3 * R + SEAL_SIZE);
    assert!(mounting.printable().seal.is_none());
    for server in 0..2 {
        let area = pool.servers[server].areas.values().next().unwrap();
        assert!(area.slices.values().all(|slice| slice.facts.sealed), "the labels say so");
    }
    pool.done(unmount(3, borrower, "v", mounting.epoch));
    pool.done(give_back(4, Some(borrower), "v", false));
    assert!(pool.core.table().volumes.is_empty());
}

#[test]
fn a_defined_volume_is_sealed_by_one_borrower_and_not_by_the_next() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(create(1, "v", Way::Doubled, &[("a1", None), ("b1", None)]));
    pool.done(sealed(2, borrower, "v", None, "AAAA"));
    assert_eq!(pool.table().volumes[0].size, 16 * R - SEAL_SIZE, "the header is in it");
    let epoch = pool.mounted(mount(3, borrower, "v")).epoch;
    pool.done(unmount(4, borrower, "v", epoch));
    pool.done(give_back(5, Some(borrower), "v", false));
    let view = pool.table().volumes.remove(0);
    assert_eq!((view.sealed, view.size), (false, 16 * R));
    pool.done(borrow(6, borrower, Some("v"), None, None));
    let mounting = pool.mounted(mount(7, borrower, "v"));
    assert_eq!((mounting.sealed, mounting.seal), (false, None), "the key is gone");
    let area = pool.servers[0].areas.values().next().unwrap();
    assert!(area.slices.values().all(|slice| !slice.facts.sealed));
}

#[test]
fn only_the_borrower_changes_a_header_and_only_the_one_that_it_has_seen() {
    let mut pool = Pool::new(&[16, 16, 0, 0]);
    let (borrower, other) = (pool.id(2), pool.id(3));
    pool.done(sealed(1, borrower, "v", Some(R), "AAAA"));
    assert_eq!(set(&mut pool, other, Some("AAAA"), "BBBB"), Err(ErrorKind::Conflict));
    assert_eq!(set(&mut pool, borrower, Some("CCCC"), "BBBB"), Err(ErrorKind::Conflict));
    assert_eq!(set(&mut pool, borrower, None, "BBBB"), Err(ErrorKind::Conflict));
    set(&mut pool, borrower, Some("AAAA"), "BBBB").unwrap();
    set(&mut pool, borrower, Some("AAAA"), "BBBB").unwrap();
    assert!(pool.events().iter().any(|event| event.contains("wrapped anew")), "{:?}", pool.events());
    assert!(pool.events().iter().all(|event| !event.contains("BBBB")));
    // Whoever gets it needs the passphrase; the seal stays.
    pool.done(transfer(2, "v", "server-d", false));
    assert_eq!(pool.mounted(mount(3, other, "v")).seal, Some(seal("BBBB")));
    pool.done(borrow(9, borrower, Some("w"), Some(R), None));
    let plain = SetSeal { server: borrower, from: None, to: seal("AAAA") };
    let answer = pool.ask(Request::SetSeal { volume: "w".to_owned(), seal: plain });
    assert!(matches!(answer, Response::Refused(refusal) if refusal.message.contains("not encrypted")));
}

#[test]
fn r1_a_rebuilt_table_knows_that_a_volume_is_sealed_and_gets_the_header_from_its_borrower() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(sealed(1, borrower, "v", Some(R), "AAAA"));
    let epoch = pool.mounted(mount(2, borrower, "v")).epoch;
    pool.done(unmount(3, borrower, "v", epoch));
    pool.lose_table();
    pool.ask(Request::Rebuild(Rebuild::default()));
    pool.pass(6000);
    pool.ask(Request::Rebuild(Rebuild { finish: true, ..Rebuild::default() }));
    pool.pass(6000);
    let view = pool.table().volumes.remove(0);
    assert_eq!((view.sealed, view.size), (true, R), "{view:?}");
    let mounting = pool.mounted(mount(10, borrower, "v"));
    assert_eq!((mounting.sealed, mounting.seal), (true, None), "the volume has it too");
    set(&mut pool, borrower, None, "AAAA").unwrap();
    assert!(pool.table().volumes[0].sealed);
}
