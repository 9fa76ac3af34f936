//! The reading paths.

use serde::Deserialize;
use sublet_api::request::Request;
use sublet_api::view::{AreaView, EventView, PoolView, ServerView, TableView, TaskView, VolumeView};
use utoipa::IntoParams;

use super::answer::Answer;
use super::path::{Asked, It, NameOrId};
use super::{Core, ask};

/// A table is held back for so long at most, in milliseconds: shorter than what proxies and clients put up with.
pub(crate) const TABLE_WAIT_MAX_MS: u64 = 30_000;
/// So many events are shown if nobody says how many.
const EVENTS_DEFAULT: usize = 100;
/// So many events are shown at most.
const EVENTS_MAX: usize = 10_000;

/// Who the manager is, and where it can be reached.
#[utoipa::path(get, path = "/v1/pool", tag = "reading", responses((status = 200, description = "The pool", body = PoolView)))]
pub(crate) async fn pool(core: Core) -> Answer {
    ask(core, Request::Pool).await
}

/// Query of [`table`].
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TableQuery {
    /// The revision that the caller has: the answer is held while it is the present one. Without it, the table comes at once.
    after: Option<u64>,
    /// How long to hold the answer at most, in milliseconds; more than 30000 counts as 30000.
    #[serde(default)]
    wait_ms: u64,
}

/// The virtual disk management table, whole. With `after` and `wait_ms`, held until it has changed.
#[utoipa::path(get, path = "/v1/table", tag = "reading", params(TableQuery),
    responses((status = 200, description = "The table", body = TableView)))]
pub(crate) async fn table(core: Core, Asked(query): Asked<TableQuery>) -> Answer {
    ask(core, Request::Table { after: query.after, wait_ms: query.wait_ms.min(TABLE_WAIT_MAX_MS) }).await
}

/// The servers, by name.
#[utoipa::path(get, path = "/v1/servers", tag = "reading", responses((status = 200, description = "The servers", body = [ServerView])))]
pub(crate) async fn servers(core: Core) -> Answer {
    ask(core, Request::Servers).await
}

/// The areas, by server and name.
#[utoipa::path(get, path = "/v1/areas", tag = "reading", responses((status = 200, description = "The areas", body = [AreaView])))]
pub(crate) async fn areas(core: Core) -> Answer {
    ask(core, Request::Areas).await
}

/// The volumes, by name.
#[utoipa::path(get, path = "/v1/volumes", tag = "reading", responses((status = 200, description = "The volumes", body = [VolumeView])))]
pub(crate) async fn volumes(core: Core) -> Answer {
    ask(core, Request::Volumes).await
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "reading",
    params(("volume" = String, Path, description = "Name or id of the volume")),
    responses((status = 200, description = "The volume", body = VolumeView)))]
pub(crate) async fn volume(core: Core, It(volume): It<NameOrId>) -> Answer {
    ask(core, Request::Volume(volume.0)).await
}

/// The tasks of the manager: those going on, and the latest of those that have ended.
#[utoipa::path(get, path = "/v1/tasks", tag = "reading", responses((status = 200, description = "The tasks", body = [TaskView])))]
pub(crate) async fn tasks(core: Core) -> Answer {
    ask(core, Request::Tasks).await
}

/// Query of [`events`].
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// Only events with a higher number.
    #[serde(default)]
    after: u64,
    /// At most so many, the newest; 100 if not given, and 10000 at most.
    limit: Option<usize>,
}

/// What happened.
#[utoipa::path(get, path = "/v1/events", tag = "reading", params(EventsQuery),
    responses((status = 200, description = "The events, oldest first", body = [EventView])))]
pub(crate) async fn events(core: Core, Asked(query): Asked<EventsQuery>) -> Answer {
    let limit = query.limit.unwrap_or(EVENTS_DEFAULT).min(EVENTS_MAX);
    ask(core, Request::Events { after: query.after, limit }).await
}
