//! Every request of the API reaches the core from its documented path, and its answer comes back.

use std::collections::BTreeSet;

use sublet_api::request::{Request, Response};
use sublet_api::{ErrorKind, Refusal};

use crate::http::routes;
use crate::testing::Manager;

/// The documented place of each request. A new variant does not compile until it is here; and a route that no sample
/// below reaches fails the test.
fn place(request: &Request) -> (&'static str, &'static str) {
    match request {
        Request::Pool => ("GET", "/v1/pool"),
        Request::Table { .. } => ("GET", "/v1/table"),
        Request::Servers => ("GET", "/v1/servers"),
        Request::Areas => ("GET", "/v1/areas"),
        Request::Volumes => ("GET", "/v1/volumes"),
        Request::Volume(_) => ("GET", "/v1/volumes/{volume}"),
        Request::Tasks => ("GET", "/v1/tasks"),
        Request::Events { .. } => ("GET", "/v1/events"),
        Request::Register(_) => ("POST", "/v1/servers"),
        Request::Poll { .. } => ("POST", "/v1/servers/{server}/poll"),
        Request::RenameServer { .. } => ("POST", "/v1/servers/{server}/rename"),
        Request::SetLimits { .. } => ("POST", "/v1/servers/{server}/limits"),
        Request::LeaveServer { .. } => ("POST", "/v1/servers/{server}/leave"),
        Request::ForgetServer { .. } => ("POST", "/v1/servers/{server}/forget"),
        Request::RebuildState => ("GET", "/v1/rebuild"),
        Request::Rebuild(_) => ("POST", "/v1/rebuild"),
        Request::AcceptVolume { .. } => ("POST", "/v1/volumes/{volume}/accept"),
        Request::AcceptArea { .. } => ("POST", "/v1/areas/{area}/accept"),
        Request::CheckArea { .. } => ("POST", "/v1/servers/{server}/areas/check"),
        Request::RenameArea { .. } => ("POST", "/v1/areas/{area}/rename"),
        Request::Reclaim { .. } => ("POST", "/v1/areas/{area}/reclaim"),
        Request::CreateVolume(_) => ("POST", "/v1/volumes"),
        Request::SetWay { .. } => ("POST", "/v1/volumes/{volume}/set-way"),
        Request::RenameVolume { .. } => ("POST", "/v1/volumes/{volume}/rename"),
        Request::Borrow(_) => ("POST", "/v1/borrow"),
        Request::Mount { .. } => ("POST", "/v1/volumes/{volume}/mount"),
        Request::Unmount { .. } => ("POST", "/v1/volumes/{volume}/unmount"),
        Request::Return { .. } => ("POST", "/v1/volumes/{volume}/return"),
        Request::Transfer { .. } => ("POST", "/v1/volumes/{volume}/transfer"),
        Request::Replace { .. } => ("POST", "/v1/volumes/{volume}/replace"),
        Request::Scrub { .. } => ("POST", "/v1/volumes/{volume}/scrub"),
        Request::ScrubEvery { .. } => ("POST", "/v1/volumes/{volume}/scrub-every"),
        Request::SetSeal { .. } => ("POST", "/v1/volumes/{volume}/seal"),
        Request::ControlTask { .. } => ("POST", "/v1/tasks/{task}"),
        Request::RevokeServer { .. } => ("POST", "/v1/servers/{server}/revoke"),
        Request::CreateToken(_) => ("POST", "/v1/tokens"),
        Request::Tokens => ("GET", "/v1/tokens"),
        Request::RevokeToken { .. } => ("POST", "/v1/tokens/{token}/revoke"),
        Request::AddPerson(_) => ("POST", "/v1/people"),
        Request::People => ("GET", "/v1/people"),
        Request::ChangePerson { .. } => ("POST", "/v1/people/{person}"),
        Request::Enter(_) => ("POST", "/v1/enter"),
        Request::Renew(_) => ("POST", "/v1/renew"),
        Request::Audit { .. } => ("GET", "/v1/audit"),
        Request::ClientReport { .. } => ("POST", "/v1/volumes/{volume}/client"),
        Request::ChangeLeg { .. } => ("POST", "/v1/volumes/{volume}/legs"),
    }
}

const ID: &str = "0123456789abcdef0123456789abcdef";

/// A body for each path that takes one: `ID` stands for an id, `EPOCH` for an epoch or generation.
const BODIES: &[(&str, &str)] = &[
    ("/v1/servers", r#"{"server":ID,"pool":null,"name":"s","addresses":["[::1]:7471"],"version":"1","run":7}"#),
    ("/v1/servers/{server}/poll", r#"{"run":7}"#),
    ("/v1/servers/{server}/rename", r#"{"name":"new"}"#),
    ("/v1/servers/{server}/forget", "{}"),
    ("/v1/servers/{server}/limits", r#"{"bytes_max":4096,"volumes_max":null}"#),
    ("/v1/rebuild", "{}"),
    ("/v1/volumes/{volume}/accept", r#"{"leg":"a1"}"#),
    ("/v1/servers/{server}/areas/check", "{}"),
    ("/v1/areas/{area}/rename", r#"{"name":"new"}"#),
    ("/v1/areas/{area}/reclaim", r#"{"task":ID}"#),
    ("/v1/volumes", r#"{"task":ID,"name":"v","way":"mirror","on":[{"area":"a1"},{"area":"b1","size":4096}]}"#),
    ("/v1/volumes/{volume}/set-way", r#"{"task":ID,"way":"single"}"#),
    ("/v1/volumes/{volume}/rename", r#"{"name":"new"}"#),
    ("/v1/borrow", r#"{"task":ID,"server":ID,"size":4096}"#),
    ("/v1/volumes/{volume}/mount", r#"{"task":ID,"server":ID}"#),
    ("/v1/volumes/{volume}/unmount", r#"{"task":ID,"server":ID,"epoch":EPOCH}"#),
    ("/v1/volumes/{volume}/return", r#"{"task":ID}"#),
    ("/v1/volumes/{volume}/transfer", r#"{"task":ID,"to":"server-b"}"#),
    ("/v1/volumes/{volume}/replace", r#"{"task":ID,"lost":"server-b"}"#),
    ("/v1/volumes/{volume}/scrub", r#"{"task":ID}"#),
    ("/v1/volumes/{volume}/scrub-every", r#"{"seconds":86400}"#),
    ("/v1/volumes/{volume}/seal", r#"{"server":ID,"to":"AAAA"}"#),
    ("/v1/tasks/{task}", r#"{"do":"limit","rate_max":1048576}"#),
    ("/v1/tokens", r#"{"what":{"use":"rejoin","server":"s"},"ttl_s":60}"#),
    ("/v1/people", r#"{"name":"olga","role":"operator"}"#),
    ("/v1/people/{person}", r#"{"do":"role","role":"viewer"}"#),
    ("/v1/enter", r#"{"entry":"join","secret":"AAAA","request":"PEM","server":ID}"#),
    ("/v1/renew", r#"{"request":"PEM"}"#),
    ("/v1/volumes/{volume}/client", r#"{"epoch":EPOCH,"path":"open"}"#),
    ("/v1/volumes/{volume}/legs", r#"{"epoch":EPOCH,"segment":0,"slice":ID,"generation":EPOCH,"change":"in_sync"}"#),
];

#[test]
fn every_request_reaches_the_core_from_its_documented_path() {
    let manager = Manager::answering(|request| {
        let (method, path) = place(&request);
        Response::Refused(Refusal::new(ErrorKind::Conflict, format!("{method} {path}")))
    });
    let mut reached = BTreeSet::new();
    for route in routes::all() {
        let (method, path) = (route.method.as_str(), route.path);
        if path == "/v1/openapi.json" {
            continue;
        }
        let body = BODIES
            .iter()
            .find(|(of, _)| *of == path && method == "POST")
            .map(|(_, body)| body.replace("EPOCH", r#"{"number":1,"random":ID}"#).replace("ID", &format!("\"{ID}\"")));
        let real = path.replace("{server}", ID).replace("{area}", ID).replace("{volume}", ID).replace("{task}", ID);
        let real = real.replace("{token}", ID).replace("{person}", ID);
        let (status, json) = manager.ask(method, &real, body.as_deref());
        assert_eq!((status, json["message"].as_str()), (409, Some(&*format!("{method} {path}"))), "{json}");
        reached.insert((method.to_owned(), path));
    }
    assert_eq!(reached.len(), 46, "as many as there are requests");
}

#[test]
fn queries_and_names_arrive_as_they_were_sent() {
    let manager = Manager::answering(|request| Response::Refused(Refusal::new(ErrorKind::Conflict, format!("{request:?}"))));
    for (path, expected) in [
        ("/v1/table", "Table { after: None, wait_ms: 0 }"),
        ("/v1/table?after=7&wait_ms=500", "Table { after: Some(7), wait_ms: 500 }"),
        ("/v1/table?after=0&wait_ms=99999999999", "Table { after: Some(0), wait_ms: 30000 }"),
        ("/v1/events", "Events { after: 0, limit: 100 }"),
        ("/v1/events?after=5&limit=2", "Events { after: 5, limit: 2 }"),
        ("/v1/events?limit=18446744073709551615", "Events { after: 0, limit: 10000 }"),
        ("/v1/volumes/Vol-1", "Volume(\"Vol-1\")"),
        ("/v1/volumes/%56ol-1", "Volume(\"Vol-1\")"),
    ] {
        let (_, json) = manager.ask("GET", path, None);
        assert_eq!(json["message"], expected);
    }
}

#[test]
fn refusals_have_the_status_of_their_kind_and_answers_are_plain() {
    let kinds = [
        (ErrorKind::BadRequest, 400),
        (ErrorKind::NotFound, 404),
        (ErrorKind::AlreadyExists, 409),
        (ErrorKind::StaleEpoch, 409),
        (ErrorKind::Unauthenticated, 401),
        (ErrorKind::Forbidden, 403),
        (ErrorKind::TooMany, 429),
        (ErrorKind::NoSpace, 507),
        (ErrorKind::LenderUnreachable, 503),
        (ErrorKind::TimedOut, 504),
        (ErrorKind::Internal, 500),
    ];
    let mut next = kinds.into_iter();
    let manager = Manager::answering(move |request| match request {
        Request::Tasks => Response::Tasks(Vec::new()),
        _ => Response::Refused(Refusal::new(next.next().unwrap().0, "no").hint("do this")),
    });
    for (kind, expected) in kinds {
        let (status, json) = manager.ask("GET", "/v1/pool", None);
        assert_eq!(status, expected);
        assert_eq!(serde_json::from_value::<Refusal>(json).unwrap(), Refusal::new(kind, "no").hint("do this"));
    }
    assert_eq!(manager.ask("GET", "/v1/tasks", None), (200, serde_json::json!([])));
}
