//! Borrow, return, transfer, reclaim, renames: who holds what, and what refusals say.

use std::collections::BTreeSet;

use sublet_api::ErrorKind;
use sublet_api::request::{Borrow, Rename, Request, Response, TaskOutcome};
use sublet_types::Way;

use crate::core::Event;
use crate::core::testing::{
    Pool, R, borrow, create, force_unmount, give_back, mount, name, on, reclaim, set_way, task, transfer, unmount,
};

#[test]
fn the_seeds_story_goes_from_borrow_to_return() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    pool.done(create(1, "Vol-1", Way::Single, &[("a1", None)]));
    let row = pool.table().volumes.remove(0);
    assert_eq!((row.borrower, row.status, row.state.as_str(), row.defined), (None, 0, "ready", true));
    pool.done(borrow(2, borrower, Some("Vol-1"), None, None));
    let row = pool.table().volumes.remove(0);
    assert_eq!((row.borrower, row.status), (Some(name("server-c")), 0), "lent, but not mounted");
    let mounting = pool.mounted(mount(3, borrower, "Vol-1"));
    assert_eq!((mounting.status, mounting.epoch.number, mounting.size), (1, 2, 16 * R), "borrowing has an epoch too");
    assert!(mounting.secret.is_some());
    assert_eq!(mounting.segments[0].legs[0].addresses[0].to_string(), "10.0.0.1:7471");
    assert_eq!(pool.table().volumes[0].status, 1);
    assert_eq!(pool.admitted(0), 1);
    let answer = pool.done(unmount(4, borrower, "Vol-1", mounting.epoch));
    let TaskOutcome::Unmounted { unmounting } = answer.outcome else { panic!("{answer:?}") };
    assert_eq!((unmounting.status, unmounting.released, unmounting.unreachable), (0, vec![name("server-a")], vec![]));
    assert_eq!((pool.table().volumes[0].status, pool.admitted(0)), (0, 0));
    assert_eq!(pool.server(0).areas.values().next().unwrap().dirty.len(), 16);
    pool.done(give_back(5, Some(borrower), "Vol-1", false));
    assert!(pool.server(0).areas.values().next().unwrap().dirty.is_empty(), "wiped");
    let row = pool.table().volumes.remove(0);
    assert_eq!((row.borrower, row.state.as_str()), (None, "ready"));
    for text in [
        "server registered",
        "area of 64 MiB registered",
        "free single volume",
        "borrowed by server-c",
        "mounted by server-c",
        "unmounted by",
        "returned by",
        "wiped in area a1",
    ] {
        assert!(pool.events().iter().any(|event| event.contains(text)), "{text} in {:#?}", pool.events());
    }
    let secret = format!("{:032x}", mounting.secret.unwrap().to_u128());
    assert!(!pool.events().iter().any(|event| event.contains(&secret)));
}

#[test]
fn a_carved_volume_is_dissolved_and_its_space_is_free_again_after_the_wipe() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let borrower = pool.id(2);
    let answer = pool.done(borrow(1, borrower, None, Some(3 * R), None));
    let TaskOutcome::Volume { volume } = answer.outcome else { panic!("{answer:?}") };
    assert_eq!((volume.name.as_str(), volume.way, volume.defined, volume.size), ("vol-1", Way::Divided, false, 3 * R));
    assert_eq!(pool.table().areas[0].free, 13 * R);
    assert_eq!(pool.table().areas[0].slices[0].state, "lent");
    pool.done(give_back(2, Some(borrower), "vol-1", false));
    assert!(pool.table().volumes.is_empty());
    assert_eq!(pool.table().areas[0].free, 16 * R);
    assert!(pool.server(0).areas.values().all(|area| area.slices.is_empty()));
}

#[test]
fn the_same_task_id_again_gets_the_stored_answer() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    let first = pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let mounting = pool.mounted(mount(2, borrower, "v"));
    assert_eq!(pool.done(borrow(1, borrower, Some("v"), Some(R), None)), first);
    assert_eq!(pool.mounted(mount(2, borrower, "v")), mounting, "with the same epoch and secret");
    pool.restart_manager();
    pool.settle();
    assert_eq!(pool.mounted(mount(2, borrower, "v")), mounting);
    assert_eq!(pool.refused(create(2, "w", Way::Single, &[("a1", None)])).kind, ErrorKind::BadRequest);
    let tasks = pool.core.table().tasks.len();
    pool.refused(borrow(9, borrower, Some("w"), Some(10_000 * R), None));
    assert_eq!(pool.core.table().tasks.len(), tasks, "a refused request leaves no task");
}

#[test]
fn of_two_servers_racing_for_one_volume_exactly_one_gets_it_and_the_other_learns_who() {
    let mut pool = Pool::new(&[16, 0, 0]);
    pool.done(create(1, "v", Way::Single, &[("a1", None)]));
    for round in 0..20u128 {
        let (one, two) = (pool.id(1 + (round % 2) as usize), pool.id(2 - (round % 2) as usize));
        // Both requests are there before anybody is answered.
        let first = pool.send(borrow(100 + 10 * round, one, Some("v"), None, None));
        let second = pool.send(borrow(101 + 10 * round, two, Some("v"), None, None));
        pool.settle();
        assert!(matches!(pool.replies.remove(&first), Some(Response::Task(_))));
        let Some(Response::Refused(refusal)) = pool.replies.remove(&second) else { panic!() };
        let holder = pool.core.table().server_name(one);
        assert!(refusal.kind == ErrorKind::Conflict && refusal.message.contains(&holder), "{refusal}");
        let refusal = pool.refused(mount(102 + 10 * round, two, "v"));
        assert!(refusal.kind == ErrorKind::Conflict && refusal.message.contains(&holder), "{refusal}");
        let epoch = pool.mounted(mount(103 + 10 * round, one, "v")).epoch;
        let refusal = pool.refused(give_back(104 + 10 * round, Some(two), "v", false));
        assert!(refusal.message.contains(&holder), "{refusal}");
        pool.done(unmount(105 + 10 * round, one, "v", epoch));
        pool.done(give_back(106 + 10 * round, Some(one), "v", false));
    }
}

#[test]
fn borrow_takes_the_best_fitting_free_volume_and_carves_otherwise() {
    let mut pool = Pool::new(&[16, 16, 16, 0]);
    let borrower = pool.id(3);
    pool.done(create(1, "big", Way::Single, &[("a1", None)]));
    pool.done(create(2, "small", Way::Divided, &[("b1", Some(4 * R))]));
    let took = |answer: sublet_api::request::TaskAnswer| match answer.outcome {
        TaskOutcome::Volume { volume } => volume.name.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(took(pool.done(borrow(3, borrower, None, Some(3 * R), None))), "small");
    assert_eq!(took(pool.done(borrow(4, borrower, None, Some(3 * R), None))), "big");
    assert_eq!(took(pool.done(borrow(5, borrower, None, Some(3 * R), None))), "vol-1");
}

#[test]
fn the_borrowers_own_areas_are_used_only_if_it_says_so() {
    let mut pool = Pool::new(&[16]);
    let server = pool.id(0);
    let refusal = pool.refused(borrow(1, server, Some("v"), Some(R), None));
    assert!(refusal.message.contains("not counted: 1 area of the borrower itself"), "{refusal}");
    let local =
        Borrow { task: task(2), server, name: Some(name("v")), size: Some(R), way: None, copies: None, local: true, seal: None };
    pool.done(Request::Borrow(local));
}

#[test]
fn single_volumes_have_their_area_to_themselves() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("s"), Some(5 * R), Some(Way::Single)));
    assert_eq!(pool.table().areas[0].free, 0);
    assert_eq!(pool.refused(borrow(2, borrower, Some("d"), Some(R), None)).kind, ErrorKind::NoSpace);
    let refusal = pool.refused(create(3, "d", Way::Divided, &[("a1", Some(R))]));
    assert!(refusal.message.contains("'s' (single) has area 'a1' to itself"), "{refusal}");
}

#[test]
fn every_refusal_says_what_why_and_what_to_do() {
    let mut pool = Pool::new(&[16, 16, 0, 0]);
    let (lender, c, d) = (pool.id(0), pool.id(2), pool.id(3));
    pool.done(create(1, "free", Way::Divided, &[("a1", Some(2 * R))]));
    pool.done(borrow(2, c, Some("lent"), Some(R), Some(Way::Divided)));
    pool.done(borrow(3, c, Some("used"), Some(R), Some(Way::Divided)));
    let ended = pool.mounted(mount(4, c, "used")).epoch;
    let mounting = pool.mounted(mount(5, c, "used"));
    let stranger = sublet_types::ServerId::from_u128(99);
    use ErrorKind::{AlreadyExists, BadRequest, Conflict, NoSpace, NotFound, StaleEpoch};
    let cases = [
        (borrow(50, c, Some("nope"), None, None), NotFound, "no volume 'nope'"),
        (borrow(50, c, Some("lent"), None, None), Conflict, "lent to server-c already"),
        (borrow(50, d, Some("lent"), None, None), Conflict, "lent to server-c"),
        (borrow(50, d, Some("free"), Some(R), None), AlreadyExists, "there is a volume 'free' already"),
        (borrow(50, d, Some("free"), None, Some(Way::Single)), BadRequest, "is divided, not single"),
        (borrow(50, lender, Some("free"), None, None), Conflict, "areas of server-a itself"),
        (borrow(50, d, None, None, None), BadRequest, "neither a volume nor a size"),
        (borrow(50, d, None, Some(0), None), BadRequest, "0 bytes"),
        (borrow(50, d, Some("x"), Some(u64::MAX), None), BadRequest, "cannot be made"),
        (borrow(50, stranger, Some("x"), Some(R), None), NotFound, "not registered"),
        (borrow(50, d, Some("x"), Some(100 * R), Some(Way::Doubled)), NoSpace, "are missing on each of 2 servers"),
        (mount(50, d, "lent"), Conflict, "lent to server-c"),
        (mount(50, d, "free"), Conflict, "is free"),
        (mount(50, d, "nope"), NotFound, "no volume"),
        (unmount(50, d, "used", mounting.epoch), Conflict, "lent to server-c"),
        (unmount(50, c, "used", ended), StaleEpoch, "has ended already"),
        // An epoch that the table has not come to cannot have ended (L5).
        (unmount(50, c, "used", mounting.epoch.next(1)), Conflict, "is behind"),
        (unmount(50, c, "lent", mounting.epoch), Conflict, "is behind"),
        (force_unmount(50, "lent"), Conflict, "is not mounted"),
        (give_back(50, Some(d), "lent", false), Conflict, "lent to server-c"),
        (give_back(50, Some(c), "used", false), Conflict, "mounted at server-c"),
        (give_back(50, None, "free", false), Conflict, "free already"),
        (give_back(50, Some(d), "free", false), Conflict, "is free"),
        (transfer(50, "used", "server-d", false), Conflict, "mounted at server-c"),
        (transfer(50, "free", "server-d", false), Conflict, "nothing to hand over"),
        (transfer(50, "lent", "server-c", false), Conflict, "lent to server-c already"),
        (transfer(50, "lent", "nobody", false), NotFound, "no server 'nobody'"),
        (reclaim(50, "a1"), Conflict, "'free' (free)"),
        (reclaim(50, "zz"), NotFound, "no area 'zz'"),
        (create(50, "lent", Way::Single, &[("b1", None)]), AlreadyExists, "there is a volume 'lent' already"),
        (create(50, "x", Way::Single, &[("a1", None)]), Conflict, "in use"),
        (create(50, "x", Way::Single, &[("a1", None), ("b1", None)]), BadRequest, "lies in one area, 2 were given"),
        (create(50, "x", Way::Divided, &[]), BadRequest, "lies in one area, 0 were given"),
        (create(50, "x", Way::Integrated, &[("b1", None)]), BadRequest, "two areas or more"),
        (create(50, "x", Way::Doubled, &[("b1", None)]), BadRequest, "groups of 2 copies"),
        (create(50, "x", Way::Doubled, &[("b1", Some(R)), ("b1", Some(R))]), Conflict, "two copies would be on one server"),
        (create(50, "x", Way::Doubled, &[("a1", Some(R)), ("b1", Some(2 * R))]), BadRequest, "have the same size"),
        (create(50, "x", Way::Divided, &[("b1", Some(17 * R))]), NoSpace, "at most 64 MiB in one piece"),
        (create(50, "x", Way::Divided, &[("b1", Some(0))]), BadRequest, "cannot be used"),
        (create(50, "x", Way::Divided, &[("zz", None)]), NotFound, "no area 'zz'"),
        (set_way(50, "lent", Way::Single, &[]), Conflict, "lent to server-c"),
        (set_way(50, "nope", Way::Single, &[]), NotFound, "no volume"),
        (Request::LeaveServer { server: "server-a".to_owned() }, Conflict, "server-a lends a1"),
        (Request::LeaveServer { server: "server-c".to_owned() }, Conflict, "server-c has borrowed lent and used"),
        (
            Request::RenameVolume { volume: "lent".to_owned(), rename: Rename { name: name("used") } },
            AlreadyExists,
            "a volume 'used'",
        ),
        (Request::RenameArea { area: "a1".to_owned(), rename: Rename { name: name("b1") } }, AlreadyExists, "an area 'b1'"),
        (
            Request::RenameServer { server: "server-a".to_owned(), rename: Rename { name: name("server-b") } },
            AlreadyExists,
            "a server 'server-b'",
        ),
    ];
    let before = pool.digest();
    for (request, kind, text) in cases {
        let refusal = pool.refused(request.clone());
        assert_eq!(refusal.kind, kind, "{request:?}: {refusal}");
        assert!(refusal.message.contains(text), "{request:?}: {refusal}");
        assert!(!refusal.hint.is_empty(), "{request:?}: {refusal}");
    }
    assert_eq!(pool.digest(), before, "a refusal changes nothing");
}

#[test]
fn a_transfer_hands_over_the_volume_with_its_bytes() {
    let mut pool = Pool::new(&[16, 0, 0]);
    let (b, c) = (pool.id(1), pool.id(2));
    pool.done(borrow(1, b, Some("v"), Some(R), None));
    let old = pool.mounted(mount(2, b, "v"));
    pool.done(transfer(3, "v", "server-c", true));
    assert_eq!(pool.admitted(0), 0, "the old client is fenced");
    assert_eq!(pool.refused(mount(4, b, "v")).kind, ErrorKind::Conflict);
    assert_eq!(pool.refused(unmount(6, b, "v", old.epoch)).kind, ErrorKind::StaleEpoch, "so that it cleans up");
    let new = pool.mounted(mount(5, c, "v"));
    assert!(new.epoch.number > old.epoch.number);
    assert_eq!(new.segments[0].legs[0].slice, old.segments[0].legs[0].slice, "the same bytes");
    assert_eq!(pool.server(0).areas.values().next().unwrap().slices.values().next().unwrap().borrower, Some(c));
}

#[test]
fn the_borrower_may_mount_again_after_a_crash_and_fences_its_own_older_epoch() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let first = pool.mounted(mount(2, borrower, "v"));
    let second = pool.mounted(mount(3, borrower, "v"));
    assert_eq!(second.epoch.number, first.epoch.number + 1);
    assert_ne!(first.secret, second.secret);
    assert_eq!(pool.server(0).areas.values().next().unwrap().slices.values().next().unwrap().epoch, second.epoch);
    assert_eq!(pool.refused(unmount(4, borrower, "v", first.epoch)).kind, ErrorKind::StaleEpoch);
}

#[test]
fn set_way_rebuilds_a_free_volume_on_the_same_or_other_areas() {
    let mut pool = Pool::new(&[16, 16, 0]);
    pool.done(create(1, "v", Way::Single, &[("a1", None)]));
    let answer = pool.done(set_way(2, "v", Way::Divided, &[]));
    let TaskOutcome::Volume { volume } = answer.outcome else { panic!("{answer:?}") };
    assert_eq!((volume.way, volume.size), (Way::Divided, 16 * R));
    let answer = pool.done(set_way(3, "v", Way::Doubled, &[("b1", Some(5 * R)), ("a1", None)]));
    let TaskOutcome::Volume { volume } = answer.outcome else { panic!("{answer:?}") };
    assert_eq!((volume.way, volume.size, volume.segments[0].legs.len()), (Way::Doubled, 5 * R, 2));
    assert!(pool.core.table().wipes.is_empty());
    let borrower = pool.id(2);
    pool.done(borrow(4, borrower, Some("v"), None, None));
    pool.mounted(mount(5, borrower, "v"));
}

#[test]
fn names_change_and_ids_stay_and_the_label_of_an_area_follows() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let id = pool.volume_id("v");
    pool.ask(Request::RenameVolume { volume: "v".to_owned(), rename: Rename { name: name("w") } });
    assert_eq!(pool.volume_id("w"), id);
    assert_eq!(pool.volume_id(&id.to_string()), id, "an id is as good as a name");
    pool.ask(Request::RenameArea { area: "a1".to_owned(), rename: Rename { name: name("attic") } });
    pool.ask(Request::RenameServer { server: "server-a".to_owned(), rename: Rename { name: name("house") } });
    pool.settle();
    assert_eq!(pool.server(0).areas.values().next().unwrap().name, name("attic"));
    let table = pool.table();
    assert_eq!((table.areas[0].name.as_str(), table.areas[0].server.as_str()), ("attic", "house"));
}

#[test]
fn a_server_that_has_left_is_told_so_and_does_not_come_back() {
    let mut pool = Pool::new(&[16, 16]);
    pool.done(reclaim(1, "b1"));
    assert!(pool.server(1).areas.is_empty(), "the lender has given the disk back");
    pool.ask(Request::LeaveServer { server: "server-b".to_owned() });
    pool.settle();
    assert!(!pool.server(1).member);
    assert_eq!(pool.table().servers.len(), 1);
    pool.server(1).member = true;
    pool.server(1).registered = false;
    let register = sublet_api::server::Register {
        server: pool.id(1),
        pool: None,
        name: name("server-b"),
        zone: String::new(),
        addresses: vec![],
        version: String::new(),
        run: 7,
    };
    pool.server(1).alive = false;
    assert!(pool.refused(Request::Register(register)).message.contains("left this pool"));
}

#[test]
fn wrong_rows_are_set_aside_and_shown_and_never_deleted() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    pool.done(borrow(2, borrower, Some("w"), Some(R), None));
    let key = format!("volume/{}", pool.volume_id("v"));
    pool.store.overwrite(&key, b"{\"version\":1,\"name\":7}");
    pool.store.overwrite("volume/zz", b"garbage");
    pool.restart_manager();
    // Nothing is placed over the slice whose row cannot be read: its label still tells of it (L5).
    for server in &mut pool.servers {
        server.registered = false;
    }
    pool.settle();
    assert_eq!(pool.table().volumes.len(), 1);
    assert!(pool.events().iter().any(|event| event.contains(&format!("the row {key} cannot be read"))));
    assert_eq!(pool.core.table().damaged.len(), 2);
    assert_eq!(pool.table().areas[0].free, 14 * R);
    assert_eq!(pool.table().areas[0].slices[0].state, "unknown to the table");
    pool.done(borrow(3, borrower, Some("x"), Some(14 * R), None));
    let rows = crate::Store::load(&mut pool.store.clone()).unwrap().rows;
    assert!(rows.iter().any(|row| row.key == format!("damaged/{key}") && row.json == b"{\"version\":1,\"name\":7}"));
    assert!(pool.refused(reclaim(4, "a1")).message.contains("in use"));
    pool.restart_manager();
    assert_eq!(pool.core.table().damaged.len(), 2, "they stay, and are shown after every start");
}

#[test]
fn nothing_is_told_that_could_not_be_written() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.store.set_failing(true);
    let refusal = pool.refused(borrow(1, borrower, Some("v"), Some(R), None));
    assert_eq!(refusal.kind, ErrorKind::Internal);
    assert!(pool.server(0).log.is_empty(), "no order left");
    assert!(pool.core.table().volumes.is_empty());
    pool.store.set_failing(false);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
}

#[test]
fn slices_of_all_volumes_never_overlap_whatever_is_borrowed_and_returned() {
    let mut pool = Pool::new(&[20, 17, 13, 9, 0]);
    let borrower = pool.id(4);
    let mut state = 3u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    let mut held: Vec<String> = Vec::new();
    for round in 0..150u128 {
        if held.len() > 6 || (!held.is_empty() && random(3) == 0) {
            let volume = held.swap_remove(random(held.len() as u64) as usize);
            pool.done(give_back(1000 + round, Some(borrower), &volume, false));
        } else {
            let volume = format!("v{round}");
            let way =
                [None, Some(Way::Doubled), Some(Way::Integrated), Some(Way::Divided), Some(Way::Single)][random(5) as usize];
            let request = borrow(1000 + round, borrower, Some(&volume), Some(1 + random(12 * R)), way);
            if let Response::Task(_) = pool.ask(request) {
                held.push(volume);
            }
        }
        for area in &pool.table().areas {
            let mut end = 0;
            for slice in &area.slices {
                assert!(slice.offset >= end && slice.offset + slice.length <= area.capacity, "{area:?}");
                end = slice.offset + slice.length;
            }
        }
    }
    assert!(held.len() > 1);
}

#[test]
fn old_tasks_and_events_are_forgotten_at_their_caps() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    for round in 0..600u128 {
        pool.done(borrow(10 + 2 * round, borrower, Some("v"), Some(R), None));
        pool.done(give_back(11 + 2 * round, Some(borrower), "v", false));
    }
    let kept: BTreeSet<u128> = pool.core.table().tasks.keys().map(|id| id.to_u128()).collect();
    assert!(kept.len() <= crate::core::TASKS_MAX + 1, "{}", kept.len());
    assert!(kept.contains(&1209));
    assert!(!kept.contains(&10));
}

#[test]
fn a_request_that_waits_for_the_table_is_answered_by_the_next_change_or_in_time() {
    let mut pool = Pool::new(&[16, 0]);
    let revision = pool.table().revision;
    let waiting = pool.send(Request::Table { after: Some(revision), wait_ms: 3000 });
    assert!(!pool.replies.contains_key(&waiting));
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), None));
    let Some(Response::Table(view)) = pool.replies.remove(&waiting) else { panic!() };
    assert!(view.revision > revision);
    let revision = pool.table().revision;
    let waiting = pool.send(Request::Table { after: Some(revision), wait_ms: 3000 });
    pool.pass(2900);
    assert!(!pool.replies.contains_key(&waiting));
    pool.pass(200);
    assert!(pool.replies.contains_key(&waiting));
    let gone = pool.send(Request::Table { after: Some(revision), wait_ms: 3000 });
    pool.apply(Event::Gone { conn: gone });
    pool.pass(5000);
    assert!(!pool.replies.contains_key(&gone));
}

#[test]
fn shares_of_areas_follow_each_other_in_the_order_given() {
    let mut pool = Pool::new(&[16, 16, 16, 16]);
    let request = Request::CreateVolume(sublet_api::request::CreateVolume {
        task: task(1),
        name: name("v"),
        way: Way::Doubled,
        on: on(&[("c1", Some(R)), ("a1", None), ("b1", None), ("d1", Some(3 * R - 1))]),
        copies: 2,
    });
    let TaskOutcome::Volume { volume } = pool.done(request).outcome else { panic!() };
    let areas: Vec<Vec<&str>> = volume.segments.iter().map(|s| s.legs.iter().map(|leg| leg.area.as_str()).collect()).collect();
    assert_eq!(areas, [["c1", "a1"], ["b1", "d1"]]);
    assert_eq!(volume.size, 4 * R);
}
