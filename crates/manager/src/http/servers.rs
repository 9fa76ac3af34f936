//! Paths for servers.

use sublet_api::request::{AreaName, CheckArea, Rename, Request, SetLimits};
use sublet_api::server::{Poll, PollAnswer, Register, Registered};
use sublet_api::view::ServerView;
use sublet_types::ServerId;

use super::answer::Answer;
use super::body::{POLL_MAX, Payload};
use super::path::{It, NameOrId};
use super::{Core, ask};

/// A server introduces itself: at its first start, after every restart, and when its addresses changed.
#[utoipa::path(post, path = "/v1/servers", tag = "servers", request_body = Register,
    responses((status = 200, description = "It belongs to the pool", body = Registered)))]
pub(crate) async fn register(core: Core, Payload(register): Payload<Register>) -> Answer {
    ask(core, Request::Register(register)).await
}

/// A server's heartbeat. Held until there are orders for it, or for some seconds.
#[utoipa::path(post, path = "/v1/servers/{server}/poll", tag = "servers", request_body = Poll,
    params(("server" = ServerId, Path, description = "Id of the server")),
    responses((status = 200, description = "What to do", body = PollAnswer)))]
pub(crate) async fn poll(core: Core, It(server): It<ServerId>, Payload(poll): Payload<Poll, POLL_MAX>) -> Answer {
    ask(core, Request::Poll { server, poll }).await
}

/// Gives a server another name; its id stays.
#[utoipa::path(post, path = "/v1/servers/{server}/rename", tag = "servers", request_body = Rename,
    params(("server" = String, Path, description = "Name or id of the server")),
    responses((status = 200, description = "The server", body = ServerView)))]
pub(crate) async fn rename_server(core: Core, It(server): It<NameOrId>, Payload(rename): Payload<Rename>) -> Answer {
    ask(core, Request::RenameServer { server: server.0, rename }).await
}

/// Sets how much a server may borrow; what it has borrowed already stays lent.
#[utoipa::path(post, path = "/v1/servers/{server}/limits", tag = "servers", request_body = SetLimits,
    params(("server" = String, Path, description = "Name or id of the server")),
    responses((status = 200, description = "The server", body = ServerView)))]
pub(crate) async fn set_limits(core: Core, It(server): It<NameOrId>, Payload(limits): Payload<SetLimits>) -> Answer {
    ask(core, Request::SetLimits { server: server.0, limits }).await
}

/// Takes a server out of the pool; refused while it lends or borrows. Has no body.
#[utoipa::path(post, path = "/v1/servers/{server}/leave", tag = "servers",
    params(("server" = String, Path, description = "Name or id of the server")),
    responses((status = 200, description = "The server, as it was", body = ServerView)))]
pub(crate) async fn leave(core: Core, It(server): It<NameOrId>) -> Answer {
    ask(core, Request::LeaveServer { server: server.0 }).await
}

/// May this server register an area of that name? Without a name, proposes one.
#[utoipa::path(post, path = "/v1/servers/{server}/areas/check", tag = "servers", request_body = CheckArea,
    params(("server" = ServerId, Path, description = "Id of the server")),
    responses((status = 200, description = "The name to use", body = AreaName)))]
pub(crate) async fn check_area(core: Core, It(server): It<ServerId>, Payload(check): Payload<CheckArea>) -> Answer {
    ask(core, Request::CheckArea { server, check }).await
}
