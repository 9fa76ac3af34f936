//! HTTP: paths, bodies and status codes of the requests in `sublet_api::request`. Nothing is decided here.

mod answer;
mod areas;
mod body;
mod leftover;
pub(crate) mod openapi;
mod path;
mod reading;
mod rebuild;
mod routes;
mod servers;
#[cfg(test)]
mod tests;
mod volumes;
mod work;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use sublet_api::request::Request;
use sublet_api::{ErrorKind, Refusal};

use crate::inbox::Inbox;
use answer::Answer;

/// What every handler has: the way to the core.
type Core = State<Arc<Inbox>>;

/// Asks the core; the future of this is what the connection's end drops.
async fn ask(State(inbox): Core, request: Request) -> Answer {
    Answer::from(inbox.ask(request).await)
}

/// All routes, and refusals for everything else.
pub(crate) fn router(inbox: Arc<Inbox>) -> Router {
    routes::all()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn(leftover::discard))
        .with_state(inbox)
}

async fn unknown_path(uri: Uri) -> Answer {
    let path: String = uri.path().chars().take(200).collect();
    Answer::refused(
        StatusCode::NOT_FOUND,
        &Refusal::new(ErrorKind::NotFound, format!("the manager has nothing at {path}"))
            .hint("/v1/openapi.json lists every path"),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Answer {
    let path: String = uri.path().chars().take(200).collect();
    let method: String = method.as_str().chars().take(40).collect();
    Answer::refused(
        StatusCode::METHOD_NOT_ALLOWED,
        &Refusal::new(ErrorKind::BadRequest, format!("{path} does not know the method {method}"))
            .hint("/v1/openapi.json lists every path with its methods"),
    )
}
