//! How a [`Request`] travels over HTTP: method, path and body, exactly as the documentation of [`Request`] says.

use std::fmt::Write as _;

use serde::Serialize;
use sublet_api::request::Request;
use sublet_api::{ErrorKind, Refusal};

/// An HTTP request for the manager.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Path and query, beginning with `/v1`.
    pub path: String,
    /// The JSON body of a `POST`; none is a `GET`.
    pub body: Option<Vec<u8>>,
}

/// One segment of a path: everything but letters, digits and `-._~` is percent-encoded, so that a mistyped name cannot
/// become another path.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    // A lone dot segment would be resolved away by whoever normalises paths.
    if out == "." || out == ".." { out.replace('.', "%2E") } else { out }
}

fn get(path: impl Into<String>) -> Result<Route, Refusal> {
    Ok(Route { path: path.into(), body: None })
}

fn post(path: impl Into<String>, body: &impl Serialize) -> Result<Route, Refusal> {
    let body = serde_json::to_vec(body)
        .map_err(|e| Refusal::new(ErrorKind::Internal, format!("the request cannot be written as JSON: {e}")))?;
    Ok(Route { path: path.into(), body: Some(body) })
}

fn volume(name: &str, verb: &str) -> String {
    format!("/v1/volumes/{}/{verb}", segment(name))
}

/// The HTTP form of a request.
///
/// # Errors
/// `Internal` if the body cannot be written as JSON.
pub fn route(request: &Request) -> Result<Route, Refusal> {
    let none = serde_json::json!({});
    match request {
        Request::Pool => get("/v1/pool"),
        Request::Table { after: Some(after), wait_ms } => get(format!("/v1/table?after={after}&wait_ms={wait_ms}")),
        Request::Table { after: None, .. } => get("/v1/table"),
        Request::Servers => get("/v1/servers"),
        Request::Areas => get("/v1/areas"),
        Request::Volumes => get("/v1/volumes"),
        Request::Volume(name) => get(format!("/v1/volumes/{}", segment(name))),
        Request::Tasks => get("/v1/tasks"),
        Request::Events { after, limit } => get(format!("/v1/events?after={after}&limit={limit}")),
        Request::Register(register) => post("/v1/servers", register),
        Request::Poll { server, poll } => post(format!("/v1/servers/{server}/poll"), poll),
        Request::RenameServer { server, rename } => post(format!("/v1/servers/{}/rename", segment(server)), rename),
        Request::SetLimits { server, limits } => post(format!("/v1/servers/{}/limits", segment(server)), limits),
        Request::LeaveServer { server } => post(format!("/v1/servers/{}/leave", segment(server)), &none),
        Request::ForgetServer { server, forget } => post(format!("/v1/servers/{}/forget", segment(server)), forget),
        Request::RebuildState => get("/v1/rebuild"),
        Request::Rebuild(rebuild) => post("/v1/rebuild", rebuild),
        Request::AcceptVolume { volume: v, accept } => post(volume(v, "accept"), accept),
        Request::AcceptArea { area } => post(format!("/v1/areas/{}/accept", segment(area)), &none),
        Request::CheckArea { server, check } => post(format!("/v1/servers/{server}/areas/check"), check),
        Request::RenameArea { area, rename } => post(format!("/v1/areas/{}/rename", segment(area)), rename),
        Request::RevokeServer { server } => post(format!("/v1/servers/{}/revoke", segment(server)), &none),
        Request::CreateToken(create) => post("/v1/tokens", create),
        Request::Tokens => get("/v1/tokens"),
        Request::RevokeToken { token } => post(format!("/v1/tokens/{}/revoke", segment(token)), &none),
        Request::AddPerson(add) => post("/v1/people", add),
        Request::People => get("/v1/people"),
        Request::ChangePerson { person, change } => post(format!("/v1/people/{}", segment(person)), change),
        Request::Enter(enter) => post("/v1/enter", enter),
        Request::Renew(renew) => post("/v1/renew", renew),
        Request::Audit { limit } => get(format!("/v1/audit?limit={limit}")),
        Request::Reclaim { area, reclaim } => post(format!("/v1/areas/{}/reclaim", segment(area)), reclaim),
        Request::CreateVolume(create) => post("/v1/volumes", create),
        Request::SetWay { volume: v, set_way } => post(volume(v, "set-way"), set_way),
        Request::RenameVolume { volume: v, rename } => post(volume(v, "rename"), rename),
        Request::Borrow(borrow) => post("/v1/borrow", borrow),
        Request::Mount { volume: v, mount } => post(volume(v, "mount"), mount),
        Request::Unmount { volume: v, unmount } => post(volume(v, "unmount"), unmount),
        Request::Return { volume: v, give_back } => post(volume(v, "return"), give_back),
        Request::Transfer { volume: v, transfer } => post(volume(v, "transfer"), transfer),
        Request::Replace { volume: v, replace } => post(volume(v, "replace"), replace),
        Request::Scrub { volume: v, scrub } => post(volume(v, "scrub"), scrub),
        Request::ScrubEvery { volume: v, every } => post(volume(v, "scrub-every"), every),
        Request::SetSeal { volume: v, seal } => post(volume(v, "seal"), seal),
        Request::ControlTask { task, control } => post(format!("/v1/tasks/{}", segment(task)), control),
        Request::ClientReport { volume: v, report } => post(volume(&v.to_string(), "client"), report),
        Request::ChangeLeg { volume: v, change } => post(volume(&v.to_string(), "legs"), change),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_stays_one_segment() {
        for (name, path) in [
            ("vol-1", "/v1/volumes/vol-1"),
            ("a/b", "/v1/volumes/a%2Fb"),
            ("..", "/v1/volumes/%2E%2E"),
            ("x?y#z", "/v1/volumes/x%3Fy%23z"),
            ("\u{e4}", "/v1/volumes/%C3%A4"),
        ] {
            assert_eq!(route(&Request::Volume(name.into())).unwrap().path, path);
        }
    }

    #[test]
    fn questions_are_get_and_changes_are_post() {
        assert_eq!(route(&Request::Table { after: None, wait_ms: 9 }).unwrap(), Route { path: "/v1/table".into(), body: None });
        assert_eq!(route(&Request::Table { after: Some(4), wait_ms: 9 }).unwrap().path, "/v1/table?after=4&wait_ms=9");
        let leave = route(&Request::LeaveServer { server: "s".into() }).unwrap();
        assert_eq!((leave.path.as_str(), leave.body.as_deref()), ("/v1/servers/s/leave", Some(&b"{}"[..])));
    }
}
