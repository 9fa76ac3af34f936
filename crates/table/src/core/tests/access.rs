//! Who gets in, what they may do, and who is put out.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sublet_api::ErrorKind;
use sublet_api::access::{
    AddPerson, Admitted, Caller, ChangePerson, CreateToken, DrawnToken, Enter, Entry, Proof, Renew, Role, TokenUse,
};
use sublet_api::request::{ClientReport, Rename, Request, Response, SetLimits};
use sublet_api::view::PathState;
use sublet_types::{ServerId, Way};

use crate::core::Outside;
use crate::core::testing::{
    Pool, R, borrow, coordinator, create, force_unmount, give_back, mount, name, reclaim, scrub, transfer, unmount,
};
use crate::plan::access::digest;

const HOUR_S: u64 = 3600;

fn renew() -> Request {
    Request::Renew(Renew { request: String::new() })
}

fn as_server(pool: &Pool, index: usize) -> Caller {
    Caller::Server { server: pool.id(index), proof: Proof { issued_ms: pool.now_ms, expires_ms: u64::MAX } }
}

fn drawn(pool: &mut Pool, what: TokenUse, uses: u32) -> DrawnToken {
    match pool.ask(Request::CreateToken(CreateToken { what, ttl_s: HOUR_S, uses })) {
        Response::NewToken(drawn) => *drawn,
        other => panic!("{other:?}"),
    }
}

fn enter(token: &DrawnToken, entry: Entry, request: &str, server: Option<ServerId>) -> Request {
    Request::Enter(Enter { entry, secret: URL_SAFE_NO_PAD.encode(token.secret), request: request.to_owned(), server })
}

/// As whom the one who is admitted comes from now on.
fn admitted(pool: &mut Pool, request: Request) -> Caller {
    let before = std::mem::replace(&mut pool.caller, Caller::Stranger);
    let answer = pool.ask(request);
    pool.caller = before;
    let expires_ms = u64::MAX;
    match answer {
        Response::Admitted(Admitted::Server { server, issued_ms }) => {
            Caller::Server { server, proof: Proof { issued_ms, expires_ms } }
        }
        Response::Admitted(Admitted::Person { person, issued_ms }) => {
            Caller::Person { person, proof: Proof { issued_ms, expires_ms } }
        }
        other => panic!("{other:?}"),
    }
}

/// What a caller is told who is refused.
fn refused_as(pool: &mut Pool, caller: &Caller, request: Request) -> (ErrorKind, String) {
    let before = std::mem::replace(&mut pool.caller, caller.clone());
    let refusal = pool.refused(request);
    pool.caller = before;
    assert!(!refusal.hint.is_empty(), "{refusal}");
    (refusal.kind, refusal.message)
}

fn asked_as(pool: &mut Pool, caller: &Caller, request: Request) -> Response {
    let before = std::mem::replace(&mut pool.caller, caller.clone());
    let response = pool.ask(request);
    pool.caller = before;
    response
}

fn done_as(pool: &mut Pool, caller: &Caller, request: Request) {
    let before = std::mem::replace(&mut pool.caller, caller.clone());
    pool.done(request);
    pool.caller = before;
}

fn person(pool: &mut Pool, text: &str, role: Role) -> Caller {
    assert!(matches!(pool.ask(Request::AddPerson(AddPerson { name: name(text), role })), Response::Person(_)));
    let link = drawn(pool, TokenUse::Login { person: text.to_owned() }, 1);
    admitted(pool, enter(&link, Entry::Login, text, None))
}

#[test]
fn a_server_that_has_left_is_told_so_and_gets_nothing() {
    let mut pool = Pool::new(&[0, 4]);
    pool.ask(Request::LeaveServer { server: "server-a".to_owned() });
    let (a, as_a) = (pool.id(0), as_server(&pool, 0));
    for request in [Request::Pool, Request::Table { after: None, wait_ms: 0 }, borrow(1, a, None, Some(R), None), renew()] {
        let (kind, text) = refused_as(&mut pool, &as_a, request);
        assert!(kind == ErrorKind::Unauthenticated && text.contains("has left this pool for good"), "{text}");
    }
}

#[test]
fn a_stranger_gets_nothing() {
    let mut pool = Pool::new(&[4, 4]);
    let id = pool.id(0);
    for request in [
        Request::Pool,
        Request::Table { after: None, wait_ms: 0 },
        Request::Servers,
        Request::Events { after: 0, limit: 9 },
        borrow(1, id, None, Some(R), None),
        force_unmount(2, "v"),
        renew(),
        Request::Audit { limit: 9 },
    ] {
        let (kind, _) = refused_as(&mut pool, &Caller::Stranger, request);
        assert_eq!(kind, ErrorKind::Unauthenticated);
    }
    assert!(pool.table().volumes.is_empty());
    let caller = Caller::Token { digest: digest(b"guessed") };
    assert_eq!(refused_as(&mut pool, &caller, Request::Pool).0, ErrorKind::Unauthenticated);
}

#[test]
fn an_invitation_is_good_for_what_it_says_as_often_as_it_says_and_no_longer() {
    let mut pool = Pool::new(&[4]);
    let fresh = ServerId::from_u128(77);
    let token = drawn(&mut pool, TokenUse::Join, 1);
    let stranger = Caller::Stranger;
    for (request, why) in [
        (enter(&token, Entry::Login, "k", None), "for something else"),
        (enter(&token, Entry::Rejoin, "k", Some(fresh)), "for something else"),
    ] {
        let (kind, text) = refused_as(&mut pool, &stranger, request);
        assert!(kind == ErrorKind::Unauthenticated && text.contains(why), "{text}");
    }
    let known = pool.id(0);
    let (kind, text) = refused_as(&mut pool, &stranger, enter(&token, Entry::Join, "k", Some(known)));
    assert!(kind == ErrorKind::Conflict && text.contains("server-a belongs to this pool already"), "{text}");

    let joined = admitted(&mut pool, enter(&token, Entry::Join, "key", Some(fresh)));
    assert!(matches!(joined, Caller::Server { server, .. } if server == fresh));
    // The answer was lost: the same key gets it again, another key does not.
    assert_eq!(admitted(&mut pool, enter(&token, Entry::Join, "key", Some(fresh))), joined);
    for (key, server) in [("other key", ServerId::from_u128(78)), ("other key", fresh)] {
        let (_, text) = refused_as(&mut pool, &stranger, enter(&token, Entry::Join, key, Some(server)));
        assert!(text.contains("has been used up"), "{text}");
    }

    let late = drawn(&mut pool, TokenUse::Join, 2);
    pool.pass(HOUR_S * 1000 + 1);
    let (_, text) = refused_as(&mut pool, &stranger, enter(&late, Entry::Join, "k", Some(ServerId::from_u128(79))));
    assert!(text.contains("has expired"), "{text}");

    let revoked = drawn(&mut pool, TokenUse::Join, 2);
    let id = revoked.token.id.to_string();
    assert!(matches!(pool.ask(Request::RevokeToken { token: id[..8].to_owned() }), Response::Token(_)));
    let (_, text) = refused_as(&mut pool, &stranger, enter(&revoked, Entry::Join, "k", Some(ServerId::from_u128(80))));
    assert!(text.contains("is not known"), "{text}");
}

#[test]
fn tokens_of_no_sense_are_refused() {
    let mut pool = Pool::new(&[4]);
    let api = |text: &str| TokenUse::Api { role: Role::Viewer, name: name(text) };
    for (what, ttl_s, uses) in [
        (TokenUse::Join, 0, 1),
        (TokenUse::Join, u64::MAX, 1),
        (TokenUse::Join, HOUR_S, 0),
        (TokenUse::Rejoin { server: "server-a".to_owned() }, HOUR_S, 2),
        (TokenUse::Rejoin { server: "server-x".to_owned() }, HOUR_S, 1),
        (TokenUse::Login { person: "nobody".to_owned() }, HOUR_S, 1),
        (api("t"), HOUR_S, 2),
    ] {
        pool.refused(Request::CreateToken(CreateToken { what, ttl_s, uses }));
    }
    drawn(&mut pool, api("t"), 1);
    assert_eq!(
        pool.refused(Request::CreateToken(CreateToken { what: api("t"), ttl_s: HOUR_S, uses: 1 })).kind,
        ErrorKind::AlreadyExists
    );
    match pool.ask(Request::Tokens) {
        Response::Tokens(tokens) => assert_eq!(tokens.len(), 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_in_the_table_or_the_log_tells_a_secret() {
    let mut pool = Pool::new(&[4]);
    let token = drawn(&mut pool, TokenUse::Join, 1);
    admitted(&mut pool, enter(&token, Entry::Join, "key", Some(ServerId::from_u128(9))));
    let text: String = pool.backup().rows.iter().map(|row| String::from_utf8_lossy(&row.json).into_owned()).collect();
    let shown = format!("{text}{:?}{token:?}{:?}", pool.audit, enter(&token, Entry::Join, "key", None));
    let hex: String = token.secret.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(text.contains(&digest(&token.secret)));
    for secret in [URL_SAFE_NO_PAD.encode(token.secret), hex, format!("{:?}", token.secret)] {
        assert!(!shown.contains(&secret));
    }
}

#[test]
fn a_server_acts_for_itself_and_sees_its_own() {
    let mut pool = Pool::new(&[16, 16, 0, 0]);
    let (c, d) = (pool.id(2), pool.id(3));
    let (as_a, as_c, as_d) = (as_server(&pool, 0), as_server(&pool, 2), as_server(&pool, 3));
    done_as(&mut pool, &as_c, borrow(1, c, Some("mine"), Some(R), Some(Way::Divided)));
    let sole = borrow(2, d, Some("theirs"), Some(2 * R), Some(Way::Divided));
    pool.done(sole);
    let forbidden = [
        borrow(3, d, None, Some(R), None),
        mount(4, d, "theirs"),
        mount(5, c, "theirs"),
        force_unmount(6, "theirs"),
        give_back(7, Some(c), "theirs", false),
        give_back(8, None, "mine", false),
        transfer(9, "theirs", "server-c", false),
        transfer(10, "mine", "server-d", true),
        create(11, "x", Way::Single, &[("a1", None)]),
        reclaim(12, "a1"),
        scrub(13, "theirs"),
        Request::RenameArea { area: "a1".to_owned(), rename: Rename { name: name("z") } },
        Request::RenameServer { server: "server-a".to_owned(), rename: Rename { name: name("z") } },
        Request::LeaveServer { server: "server-a".to_owned() },
        Request::SetLimits { server: "server-c".to_owned(), limits: SetLimits { bytes_max: None, volumes_max: None } },
        Request::RevokeServer { server: "server-a".to_owned() },
        Request::CreateToken(CreateToken { what: TokenUse::Join, ttl_s: 60, uses: 1 }),
        Request::People,
        Request::Tokens,
        Request::Audit { limit: 9 },
        Request::Volume("theirs".to_owned()),
    ];
    for request in forbidden {
        let what = format!("{request:?}");
        assert_eq!(refused_as(&mut pool, &as_c, request).0, ErrorKind::Forbidden, "{what}");
    }
    done_as(&mut pool, &as_c, mount(14, c, "mine"));

    let seen = |response: Response| match response {
        Response::Table(view) => {
            let names = |all: Vec<String>| all.join(" ");
            (
                names(view.volumes.iter().map(|row| row.name.to_string()).collect()),
                names(view.areas.iter().map(|row| row.name.to_string()).collect()),
                names(view.servers.iter().map(|row| row.name.to_string()).collect()),
            )
        }
        other => panic!("{other:?}"),
    };
    let table = Request::Table { after: None, wait_ms: 0 };
    let lender = pool.table().volumes.iter().find(|row| row.name.as_str() == "mine").unwrap().areas[0].to_string();
    let owner = format!("server-{}", &lender[..1]);
    let (volumes, areas, servers) = seen(asked_as(&mut pool, &as_c, table.clone()));
    assert_eq!((volumes.as_str(), areas, servers), ("mine", lender.clone(), format!("{owner} server-c")));
    let (volumes, _, _) = seen(asked_as(&mut pool, &as_d, table.clone()));
    assert_eq!(volumes, "theirs");
    // A lender sees what lies on it, and its own areas.
    let (_, areas, _) = seen(asked_as(&mut pool, &as_a, table));
    assert!(areas.contains("a1"));
    match asked_as(&mut pool, &as_d, Request::Events { after: 0, limit: 1000 }) {
        Response::Events(events) => assert!(events.iter().all(|event| event.subject != "mine"), "{events:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lender_does_not_learn_the_tasks_of_those_who_borrow_from_it() {
    let mut pool = Pool::new(&[16, 0]);
    let borrower = pool.id(1);
    pool.done(borrow(1, borrower, Some("v"), Some(R), Some(Way::Divided)));
    pool.mounted(mount(2, borrower, "v"));
    let (lender, owner) = (as_server(&pool, 0), as_server(&pool, 1));
    // It sees that the volume lies there; whoever knows the id of the mount's task gets the lease's secret.
    match asked_as(&mut pool, &lender, Request::Volumes) {
        Response::Volumes(volumes) => assert_eq!(volumes.len(), 1),
        other => panic!("{other:?}"),
    }
    let seen = |response: Response| match response {
        Response::Tasks(tasks) => tasks.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(seen(asked_as(&mut pool, &lender, Request::Tasks)), 0);
    assert_eq!(seen(asked_as(&mut pool, &owner, Request::Tasks)), 2);
}

#[test]
fn only_the_holder_of_a_lease_speaks_for_it_and_who_was_fenced_is_told_so() {
    let mut pool = Pool::new(&[16, 16, 0, 0]);
    let (c, as_c, as_d) = (pool.id(2), as_server(&pool, 2), as_server(&pool, 3));
    pool.done(borrow(1, c, Some("v"), Some(R), Some(Way::Divided)));
    let mounting = pool.mounted(mount(2, c, "v"));
    let report = Request::ClientReport {
        volume: mounting.volume,
        report: ClientReport { path: PathState::Open, ..coordinator::report(mounting.epoch) },
    };
    assert_eq!(refused_as(&mut pool, &as_d, report.clone()).0, ErrorKind::Forbidden);
    assert!(matches!(asked_as(&mut pool, &as_c, report.clone()), Response::Client(_)));
    done_as(&mut pool, &as_c, unmount(3, c, "v", mounting.epoch));
    done_as(&mut pool, &as_c, transfer(4, "v", "server-d", false));
    let before = std::mem::replace(&mut pool.caller, as_c);
    assert_eq!(pool.refused(report).kind, ErrorKind::StaleEpoch);
    pool.caller = before;
}

#[test]
fn roles_are_what_they_say() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let c = pool.id(2);
    let (viewer, operator) = (person(&mut pool, "vera", Role::Viewer), person(&mut pool, "olga", Role::Operator));
    let administrator = person(&mut pool, "anna", Role::Administrator);
    for caller in [&viewer, &operator, &administrator] {
        assert!(matches!(asked_as(&mut pool, caller, Request::Servers), Response::Servers(all) if all.len() == 3));
    }
    let (_, text) = refused_as(&mut pool, &viewer, borrow(1, c, None, Some(R), None));
    assert!(text.contains("takes the role operator, and yours is viewer"), "{text}");
    done_as(&mut pool, &operator, borrow(2, c, Some("v"), Some(R), Some(Way::Divided)));
    done_as(&mut pool, &operator, mount(3, c, "v"));
    for request in [force_unmount(4, "v"), transfer(5, "v", "server-a", true), give_back(6, None, "v", false), reclaim(7, "a1")] {
        assert_eq!(refused_as(&mut pool, &operator, request).0, ErrorKind::Forbidden);
    }
    done_as(&mut pool, &administrator, force_unmount(8, "v"));
    // What servers say of themselves nobody else says.
    let poll = Request::CheckArea { server: c, check: sublet_api::request::CheckArea { name: None, area: None } };
    assert_eq!(refused_as(&mut pool, &administrator, poll).0, ErrorKind::Forbidden);

    let change = |person: &str, change| Request::ChangePerson { person: person.to_owned(), change };
    assert!(matches!(
        asked_as(&mut pool, &administrator, change("vera", ChangePerson::Role { role: Role::Operator })),
        Response::Person(_)
    ));
    done_as(&mut pool, &viewer, borrow(9, c, Some("w"), Some(R), Some(Way::Divided)));
    pool.pass(1000);
    for (who, how, told) in [("vera", ChangePerson::Revoke, "is void"), ("olga", ChangePerson::Remove, "any more")] {
        assert!(matches!(asked_as(&mut pool, &administrator, change(who, how)), Response::Person(_)));
        let caller = if who == "vera" { &viewer } else { &operator };
        let (kind, text) = refused_as(&mut pool, caller, Request::Pool);
        assert!(kind == ErrorKind::Unauthenticated && text.contains(told), "{text}");
    }
    let (_, text) = refused_as(&mut pool, &administrator, change("anna", ChangePerson::Remove));
    assert!(text.contains("only administrator"), "{text}");
}

#[test]
fn a_program_may_what_its_token_says_until_it_is_revoked_or_expires() {
    let mut pool = Pool::new(&[4]);
    let made: Vec<DrawnToken> = ["watch", "other"]
        .iter()
        .map(|text| drawn(&mut pool, TokenUse::Api { role: Role::Viewer, name: name(text) }, 1))
        .collect();
    let caller = |token: &DrawnToken| Caller::Token { digest: digest(&token.secret) };
    assert!(matches!(asked_as(&mut pool, &caller(&made[0]), Request::Areas), Response::Areas(_)));
    assert_eq!(refused_as(&mut pool, &caller(&made[0]), reclaim(1, "a1")).0, ErrorKind::Forbidden);
    // A string that lets a server in is no token for the API.
    let join = drawn(&mut pool, TokenUse::Join, 1);
    assert_eq!(refused_as(&mut pool, &caller(&join), Request::Areas).0, ErrorKind::Unauthenticated);
    let id = made[1].token.id.to_string();
    assert!(matches!(pool.ask(Request::RevokeToken { token: id }), Response::Token(_)));
    assert_eq!(refused_as(&mut pool, &caller(&made[1]), Request::Areas).0, ErrorKind::Unauthenticated);
    pool.pass(HOUR_S * 1000);
    let (_, text) = refused_as(&mut pool, &caller(&made[0]), Request::Areas);
    assert!(text.contains("'watch' has expired"), "{text}");
}

#[test]
fn a_server_that_is_cut_off_is_refused_fenced_and_comes_back_with_a_new_certificate_only() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let (c, as_c) = (pool.id(2), as_server(&pool, 2));
    pool.done(borrow(1, c, Some("v"), Some(R), Some(Way::Divided)));
    pool.mounted(mount(2, c, "v"));
    assert_eq!(pool.admitted(0) + pool.admitted(1), 1);
    // The manager is killed right after the commit: the fence comes all the same.
    pool.crash_after = Some(1);
    pool.send(Request::RevokeServer { server: "server-c".to_owned() });
    pool.settle();
    assert_eq!(pool.crashes, 1);
    pool.ask(Request::RevokeServer { server: "server-c".to_owned() });
    pool.pass(2000);
    assert_eq!(pool.admitted(0) + pool.admitted(1), 0, "{:?}", pool.events());
    assert_eq!(pool.table().volumes[0].status, 0);
    let (kind, text) = refused_as(&mut pool, &as_c, borrow(3, c, None, Some(R), None));
    assert!(kind == ErrorKind::Unauthenticated && text.contains("server-c was cut off"), "{text}");

    let token = drawn(&mut pool, TokenUse::Rejoin { server: "server-c".to_owned() }, 1);
    let (a, stranger) = (pool.id(0), Caller::Stranger);
    let (_, text) = refused_as(&mut pool, &stranger, enter(&token, Entry::Rejoin, "key", Some(a)));
    assert!(text.contains("is for server-c"), "{text}");
    pool.pass(1000);
    let fresh = admitted(&mut pool, enter(&token, Entry::Rejoin, "key", Some(c)));
    done_as(&mut pool, &fresh, mount(4, c, "v"));
    let (_, text) = refused_as(&mut pool, &as_c, Request::Pool);
    assert!(text.contains("has joined again since"), "{text}");
    // It is the same server, and another table knows nothing of that: certificates of the pool's authority are good.
    pool.lose_table();
    assert!(!pool.core.table().admissions.contains_key(&c));
}

#[test]
fn certificates_and_links_end() {
    let mut pool = Pool::new(&[4]);
    let caller = Caller::Server { server: pool.id(0), proof: Proof { issued_ms: 0, expires_ms: pool.now_ms + 500 } };
    assert!(matches!(asked_as(&mut pool, &caller, renew()), Response::Admitted(_)));
    pool.pass(1000);
    let (kind, text) = refused_as(&mut pool, &caller, renew());
    assert!(kind == ErrorKind::Unauthenticated && text.contains("has expired"), "{text}");
    assert_eq!(pool.refused(renew()).kind, ErrorKind::BadRequest);
}

#[test]
fn the_first_administrator_comes_in_by_the_newest_link_and_then_there_is_no_other() {
    let mut pool = Pool::new(&[4]);
    let made = |pool: &mut Pool, anew: bool| {
        let mut n = u128::from(pool.now_ms) << 64;
        let mut random = || {
            n += 0x1_0000_0001;
            n
        };
        pool.now_ms += 1;
        pool.core.first_link(&mut Outside { now_ms: pool.now_ms, random: &mut random }, anew).unwrap()
    };
    let link = |pool: &mut Pool| made(pool, false);
    let (old, new) = (link(&mut pool).unwrap(), link(&mut pool).unwrap());
    let (_, text) = refused_as(&mut pool, &Caller::Stranger, enter(&old, Entry::Login, "key", None));
    assert!(text.contains("is not known"), "{text}");
    let administrator = admitted(&mut pool, enter(&new, Entry::Login, "key", None));
    assert!(link(&mut pool).is_none());
    pool.restart_manager();
    assert!(link(&mut pool).is_none());
    match asked_as(&mut pool, &administrator, Request::People) {
        Response::People(people) => assert_eq!((people.len(), people[0].role), (1, Role::Administrator)),
        other => panic!("{other:?}"),
    }
    // The authority is another one: the same person comes in again.
    let again = made(&mut pool, true).unwrap();
    admitted(&mut pool, enter(&again, Entry::Login, "new key", None));
    assert_eq!(pool.core.table().people.len(), 1);
}

#[test]
fn every_change_is_in_the_audit_log_with_who_and_how_it_ended() {
    let mut pool = Pool::new(&[16, 16, 0]);
    let (c, as_c) = (pool.id(2), as_server(&pool, 2));
    let operator = person(&mut pool, "olga", Role::Operator);
    pool.audit.clear();
    done_as(&mut pool, &operator, borrow(1, c, Some("v"), Some(R), Some(Way::Divided)));
    refused_as(&mut pool, &operator, reclaim(2, "a1"));
    asked_as(&mut pool, &operator, Request::Servers);
    done_as(&mut pool, &as_c, give_back(3, Some(c), "v", false));
    refused_as(&mut pool, &Caller::Stranger, reclaim(4, "a1"));
    let lines: Vec<String> =
        pool.audit.iter().map(|line| format!("{}: {} {}: {}", line.who, line.what, line.subject, line.result)).collect();
    let ended: Vec<&String> = lines.iter().filter(|line| !line.ends_with(": begun")).collect();
    assert_eq!(ended.len(), 4, "{lines:#?}");
    assert_eq!(ended[0], "olga (operator): borrow v: done");
    assert!(ended[1].starts_with("olga (operator): reclaim a1: refused: this takes the role administrator"), "{}", ended[1]);
    assert_eq!(ended[2], "server-c (server): return v: done");
    assert!(ended[3].starts_with("a stranger: reclaim a1: refused:"), "{}", ended[3]);
    // One `begun` a task at most.
    assert!(lines.len() - ended.len() <= 2, "{lines:#?}");
}
