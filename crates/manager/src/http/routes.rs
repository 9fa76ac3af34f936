//! Every path with its method and handler, in the order of `sublet_api::request::Request`.

use std::sync::Arc;

use axum::http::Method;
use axum::routing::{MethodRouter, get, post};

use super::{App, access, areas, openapi, reading, rebuild, servers, volumes, work};

/// One entry. Entries of one path with different methods are merged by the router.
pub(crate) struct Route {
    /// How it is asked.
    #[cfg_attr(not(test), expect(dead_code, reason = "the test that compares the routes with the document needs it"))]
    pub(crate) method: Method,
    /// Where.
    pub(crate) path: &'static str,
    /// By whom it is answered.
    pub(crate) handler: MethodRouter<Arc<App>>,
}

/// All of them.
pub(crate) fn all() -> Vec<Route> {
    let read = |path, handler| Route { method: Method::GET, path, handler };
    let change = |path, handler| Route { method: Method::POST, path, handler };
    vec![
        read("/v1/openapi.json", get(openapi::serve)),
        read("/v1/pool", get(reading::pool)),
        read("/v1/table", get(reading::table)),
        read("/v1/servers", get(reading::servers)),
        read("/v1/areas", get(reading::areas)),
        read("/v1/volumes", get(reading::volumes)),
        read("/v1/volumes/{volume}", get(reading::volume)),
        read("/v1/tasks", get(reading::tasks)),
        read("/v1/events", get(reading::events)),
        read("/v1/rebuild", get(rebuild::state)),
        change("/v1/rebuild", post(rebuild::rebuild)),
        change("/v1/volumes/{volume}/accept", post(rebuild::accept_volume)),
        change("/v1/areas/{area}/accept", post(rebuild::accept_area)),
        change("/v1/servers/{server}/forget", post(rebuild::forget_server)),
        change("/v1/servers", post(servers::register)),
        change("/v1/servers/{server}/poll", post(servers::poll)),
        change("/v1/servers/{server}/rename", post(servers::rename_server)),
        change("/v1/servers/{server}/limits", post(servers::set_limits)),
        change("/v1/servers/{server}/leave", post(servers::leave)),
        change("/v1/servers/{server}/areas/check", post(servers::check_area)),
        change("/v1/servers/{server}/revoke", post(access::revoke_server)),
        change("/v1/tokens", post(access::create_token)),
        read("/v1/tokens", get(access::tokens)),
        change("/v1/tokens/{token}/revoke", post(access::revoke_token)),
        change("/v1/people", post(access::add_person)),
        read("/v1/people", get(access::people)),
        change("/v1/people/{person}", post(access::change_person)),
        change("/v1/enter", post(access::enter)),
        change("/v1/renew", post(access::renew)),
        read("/v1/audit", get(access::audit)),
        change("/v1/areas/{area}/rename", post(areas::rename_area)),
        change("/v1/areas/{area}/reclaim", post(areas::reclaim)),
        change("/v1/volumes", post(volumes::create_volume)),
        change("/v1/volumes/{volume}/set-way", post(volumes::set_way)),
        change("/v1/volumes/{volume}/rename", post(volumes::rename_volume)),
        change("/v1/borrow", post(volumes::borrow)),
        change("/v1/volumes/{volume}/mount", post(volumes::mount)),
        change("/v1/volumes/{volume}/unmount", post(volumes::unmount)),
        change("/v1/volumes/{volume}/return", post(volumes::return_volume)),
        change("/v1/volumes/{volume}/transfer", post(volumes::transfer)),
        change("/v1/volumes/{volume}/replace", post(work::replace)),
        change("/v1/volumes/{volume}/scrub", post(work::scrub)),
        change("/v1/volumes/{volume}/scrub-every", post(work::scrub_every)),
        change("/v1/volumes/{volume}/seal", post(volumes::seal)),
        change("/v1/tasks/{task}", post(work::control_task)),
        change("/v1/volumes/{volume}/client", post(volumes::client_report)),
        change("/v1/volumes/{volume}/legs", post(volumes::change_leg)),
    ]
}
