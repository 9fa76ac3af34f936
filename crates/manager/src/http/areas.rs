//! Paths for areas.

use sublet_api::request::{Reclaim, Rename, Request, TaskAnswer};
use sublet_api::view::AreaView;

use super::answer::Answer;
use super::body::Payload;
use super::path::{It, NameOrId};
use super::{Core, ask};

/// Gives an area another name; its id stays.
#[utoipa::path(post, path = "/v1/areas/{area}/rename", tag = "areas", request_body = Rename,
    params(("area" = String, Path, description = "Name or id of the area")),
    responses((status = 200, description = "The area", body = AreaView)))]
pub(crate) async fn rename_area(core: Core, It(area): It<NameOrId>, Payload(rename): Payload<Rename>) -> Answer {
    ask(core, Request::RenameArea { area: area.0, rename }).await
}

/// Gives an area back to its server; refused while volumes lie on it. A task: repeat the request while it is running.
#[utoipa::path(post, path = "/v1/areas/{area}/reclaim", tag = "areas", request_body = Reclaim,
    params(("area" = String, Path, description = "Name or id of the area")),
    responses((status = 200, description = "How far it is", body = TaskAnswer)))]
pub(crate) async fn reclaim(core: Core, It(area): It<NameOrId>, Payload(reclaim): Payload<Reclaim>) -> Answer {
    ask(core, Request::Reclaim { area: area.0, reclaim }).await
}
