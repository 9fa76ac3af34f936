//! HTTP: paths, bodies and status codes of the requests in `sublet_api::request`. Nothing is decided here.

mod access;
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

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use sublet_api::access::Caller;
use sublet_api::request::{Request, Response};
use sublet_api::{ErrorKind, Refusal};

use crate::authority::PoolAuthority;
use crate::caller::{Peer, with_token};
use crate::inbox::Inbox;
use crate::throttle::Throttle;
use answer::Answer;

/// What all handlers share.
pub(crate) struct App {
    /// The way to the core.
    pub(crate) inbox: Arc<Inbox>,
    /// The pool's authority; none if the manager runs without security.
    pub(crate) authority: Option<Arc<PoolAuthority>>,
    /// Where the audit log is.
    pub(crate) audit: PathBuf,
    /// Who has failed to prove who they are.
    pub(crate) throttle: Throttle,
}

/// What every handler has: the way to the core, in the name of whoever asks.
struct Core {
    app: Arc<App>,
    peer: Peer,
}

impl FromRequestParts<Arc<App>> for Core {
    type Rejection = Answer;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Answer> {
        let Some(peer) = parts.extensions.get::<Peer>() else {
            return Err(Answer::from(Refusal::new(ErrorKind::Internal, "a request of nobody; this is a defect")));
        };
        let caller = with_token(peer.caller.clone(), &parts.headers);
        // Whoever has proved who they are does not wait for others at the same address.
        if !is_proved(&caller) && app.throttle.is_held(peer.from.ip(), Instant::now()) {
            let text = format!("too many tries from {} that proved nothing", peer.from.ip());
            return Err(Answer::from(Refusal::new(ErrorKind::TooMany, text).hint("try again in some seconds")));
        }
        Ok(Self { app: Arc::clone(app), peer: Peer { from: peer.from, caller } })
    }
}

/// Whether the connection proves who it is: also of somebody who is not let in any more.
fn is_proved(caller: &Caller) -> bool {
    !matches!(caller, Caller::Stranger | Caller::Token { .. })
}

impl Core {
    /// Asks the core; the future of this is what the connection's end drops.
    async fn ask(self, request: Request) -> Response {
        let is_proved = is_proved(&self.peer.caller);
        let response = self.app.inbox.ask(self.peer.caller, Some(self.peer.from), request).await;
        if !is_proved && matches!(&response, Response::Refused(refusal) if refusal.kind == ErrorKind::Unauthenticated) {
            self.app.throttle.failed(self.peer.from.ip(), Instant::now());
        }
        response
    }
}

/// Asks, and the answer is the core's as it is.
async fn ask(core: Core, request: Request) -> Answer {
    Answer::from(core.ask(request).await)
}

/// All routes, and refusals for everything else.
pub(crate) fn router(app: Arc<App>) -> Router {
    routes::all()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn(leftover::discard))
        .with_state(app)
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
