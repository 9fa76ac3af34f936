//! Paths for the rebuild of the table, and for what only an administrator can decide.

use sublet_api::rebuild::{AcceptVolume, Forget, ForgetView, Rebuild, RebuildView};
use sublet_api::request::Request;
use sublet_api::view::{AreaView, VolumeView};

use super::answer::Answer;
use super::body::Payload;
use super::path::{It, NameOrId};
use super::{Core, ask};

/// How a rebuild of the table from the labels is, and whose servers ask for this manager.
#[utoipa::path(get, path = "/v1/rebuild", tag = "rebuild",
    responses((status = 200, description = "How it is", body = RebuildView)))]
pub(crate) async fn state(core: Core) -> Answer {
    ask(core, Request::RebuildState).await
}

/// Begins or ends a rebuild of the table from the labels. Nothing is placed while it goes on.
#[utoipa::path(post, path = "/v1/rebuild", tag = "rebuild", request_body = Rebuild,
    responses((status = 200, description = "How it is", body = RebuildView)))]
pub(crate) async fn rebuild(core: Core, Payload(rebuild): Payload<Rebuild>) -> Answer {
    ask(core, Request::Rebuild(rebuild)).await
}

/// Goes on with the named copies of a frozen volume; the others are stale from then on.
#[utoipa::path(post, path = "/v1/volumes/{volume}/accept", tag = "rebuild", request_body = AcceptVolume,
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "The volume", body = VolumeView)))]
pub(crate) async fn accept_volume(core: Core, It(volume): It<NameOrId>, Payload(accept): Payload<AcceptVolume>) -> Answer {
    ask(core, Request::AcceptVolume { volume: volume.0, accept }).await
}

/// Trusts a quarantined area again. Has no body.
#[utoipa::path(post, path = "/v1/areas/{area}/accept", tag = "rebuild",
    params(("area" = String, Path, description = "Name or id of the area")),
    responses((status = 200, description = "The area", body = AreaView)))]
pub(crate) async fn accept_area(core: Core, It(area): It<NameOrId>) -> Answer {
    ask(core, Request::AcceptArea { area: area.0 }).await
}

/// Tells what goes with a server that is lost for good; with `confirm`, forgets it.
#[utoipa::path(post, path = "/v1/servers/{server}/forget", tag = "rebuild", request_body = Forget,
    params(("server" = String, Path, description = "Name or id of the server")),
    responses((status = 200, description = "What goes with it", body = ForgetView)))]
pub(crate) async fn forget_server(core: Core, It(server): It<NameOrId>, Payload(forget): Payload<Forget>) -> Answer {
    ask(core, Request::ForgetServer { server: server.0, forget }).await
}
