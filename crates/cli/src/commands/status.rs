//! `sublet status`: this server, and the volumes mounted on it.

use std::time::Duration;

use serde::Serialize;
use sublet_api::Refusal;
use sublet_api::control::{ClientAnswerLine, Identity, ServerAnswer, ServerRequest};
use sublet_api::mount::MountingInformation;
use sublet_api::server::AreaReport;
use sublet_types::ByteSize;

use super::areas::ask_server;
use super::local::{self, Client, LocalMount};
use crate::context::Context;
use crate::output::{Columns, print, print_json};

#[derive(Serialize)]
struct Status {
    /// None if the server's daemon does not run.
    server: Option<Server>,
    /// Why there is no server.
    server_reason: String,
    mounts: Vec<Mount>,
    /// What is the matter with the manager's table; empty if nothing, or if the manager does not answer.
    table: Vec<String>,
}

#[derive(Serialize)]
struct Server {
    identity: Identity,
    areas: Vec<AreaReport>,
    manager_reached: bool,
    /// Why the manager refuses this server; empty if it does not.
    manager_refusal: String,
    manager: String,
    listen: Vec<String>,
    sessions: usize,
    /// `io_uring`, or what is used in its place and why.
    io: String,
}

#[derive(Serialize)]
struct Mount {
    name: String,
    /// `open`, `idle`, `lost`; `client is gone` after a crash of the client.
    path: String,
    reason: String,
    missing: Vec<String>,
    socket: String,
    device: Option<String>,
    mountpoint: Option<String>,
    pid: Option<u32>,
    resync: Option<(u64, u64)>,
    /// As that of the server; empty if the client does not say.
    io: String,
    mounting: MountingInformation,
}

fn mount_status(mount: &LocalMount) -> Mount {
    let ready = mount.ready();
    let (path, reason, missing, resync, io) = match mount.client() {
        Client::Answers(ClientAnswerLine::Status { path, reason, missing, resync, io, .. }) => {
            (format!("{path:?}").to_lowercase(), reason, missing, resync, io)
        }
        Client::Answers(_) | Client::Silent => {
            let hint = format!("to end it: sublet unmount {} --force", mount.info.name);
            ("client does not answer".to_owned(), hint, Vec::new(), None, String::new())
        }
        Client::Gone => {
            let hint = format!("mount it again to go on (sublet mount {0}), or sublet unmount {0}", mount.info.name);
            ("client is gone".to_owned(), hint, Vec::new(), None, String::new())
        }
    };
    Mount {
        name: mount.info.name.to_string(),
        path,
        reason,
        missing,
        socket: mount.socket(),
        device: ready.as_ref().and_then(|ready| ready.device.clone()),
        mountpoint: mount.mountpoint().filter(|p| local::is_mount_point(p)).map(|p| p.to_string_lossy().into_owned()),
        pid: ready.map(|ready| ready.pid),
        resync,
        io,
        mounting: mount.info.printable(),
    }
}

/// Whether people have to be told how operations are given to the kernel.
fn is_slow(io: &str) -> bool {
    !io.is_empty() && io != "io_uring"
}

/// How long the manager has to say how its table is.
const TABLE_PATIENCE: Duration = Duration::from_secs(2);

/// What is the matter with the manager's table, as far as this server is concerned.
fn table(c: &Context, server: &Server) -> Vec<String> {
    if !server.manager_reached {
        return Vec::new();
    }
    let Ok(view) = c.manager().with_patience(TABLE_PATIENCE).rebuild_state() else { return Vec::new() };
    let mut matter = Vec::new();
    if view.knocking.iter().any(|knock| knock.server == server.identity.server) {
        let text = "the manager keeps another pool; if it has lost its table: sublet manager rebuild";
        matter.push(text.to_owned());
    }
    if view.open {
        matter.push("the table is being rebuilt: sublet manager rebuild --show".to_owned());
    }
    if !view.unsettled.is_empty() {
        let names: Vec<String> = view.unsettled.iter().map(|row| row.name.to_string()).collect();
        matter.push(format!("frozen: {} (why, and what to do: sublet manager rebuild --show)", names.join(", ")));
    }
    matter.extend(view.damaged.into_iter().map(|row| format!("a row is damaged and kept aside: {row}")));
    matter
}

pub(super) fn run(c: &Context) -> Result<(), Refusal> {
    let (server, server_reason) = match ask_server(c, &ServerRequest::Status) {
        Ok(ServerAnswer::Status { identity, areas, manager_reached, manager_refusal, manager, listen, sessions, io }) => {
            (Some(Server { identity, areas, manager_reached, manager_refusal, manager, listen, sessions, io }), String::new())
        }
        Ok(other) => (None, format!("it answered strangely: {other:?}")),
        Err(refusal) => (None, refusal.to_string()),
    };
    let table = server.as_ref().map(|server| table(c, server)).unwrap_or_default();
    let status = Status { server, server_reason, mounts: local::all(c).iter().map(mount_status).collect(), table };
    if c.json {
        print_json(&status);
    } else {
        print(&text(&status));
    }
    Ok(())
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    match &status.server {
        None => out += &format!("server: not running here ({})\n", status.server_reason),
        Some(server) => {
            let reached = match server.manager_refusal.as_str() {
                "" if server.manager_reached => "reached".to_owned(),
                "" => "NOT reached".to_owned(),
                refusal => format!("reached, but it REFUSES this server: {refusal}"),
            };
            out += &format!("server   {} ({})\n", server.identity.name, server.identity.server);
            out += &format!("manager  {} ({reached})\n", server.manager);
            out += &format!("listens  {} ({} sessions of borrowers)\n", server.listen.join(", "), server.sessions);
            if is_slow(&server.io) {
                out += &format!("disks    {}\n", server.io);
            }
            for matter in &status.table {
                out += &format!("table    {matter}\n");
            }
            if !server.areas.is_empty() {
                let mut columns = Columns::new(&["AREA", "CAPACITY", "STATE", "PLACE"]);
                for area in &server.areas {
                    let state = match (&area.offline, &area.quarantined) {
                        (Some(why), _) => format!("offline: {why}"),
                        (None, Some(why)) => format!("quarantined: {why}"),
                        (None, None) => "online".to_owned(),
                    };
                    columns.row(vec![area.name.to_string(), ByteSize(area.capacity).to_string(), state, area.place.clone()]);
                }
                out += &format!("\n{}", columns.render());
            }
        }
    }
    if !status.mounts.is_empty() {
        let mut columns = Columns::new(&["VOLUME", "SIZE", "STATUS", "EPOCH", "PATH", "DEVICE", "MOUNTED AT", "LENDERS"]);
        for mount in &status.mounts {
            let legs = mount.mounting.segments.iter().flat_map(|s| &s.legs);
            let mut lenders: Vec<String> = legs.map(|leg| format!("{}:{}", leg.server_name, leg.area_name)).collect();
            lenders.dedup();
            let path = if mount.reason.is_empty() { mount.path.clone() } else { format!("{} ({})", mount.path, mount.reason) };
            columns.row(vec![
                mount.name.clone(),
                ByteSize(mount.mounting.size).to_string(),
                mount.mounting.status.to_string(),
                mount.mounting.epoch.to_string(),
                path,
                mount.device.clone().unwrap_or_else(|| "-".to_owned()),
                mount.mountpoint.clone().unwrap_or_else(|| "-".to_owned()),
                lenders.join(", "),
            ]);
        }
        out += &format!("\n{}", columns.render());
    }
    for mount in status.mounts.iter().filter(|mount| is_slow(&mount.io)) {
        out += &format!("{}: {}\n", mount.name, mount.io);
    }
    out
}
