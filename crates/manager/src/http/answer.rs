//! Answers: a status and JSON, whatever happened.

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use sublet_api::request::Response;
use sublet_api::{ErrorKind, Refusal};

/// What goes back.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    json: Vec<u8>,
}

impl Answer {
    /// A refusal under a status that HTTP has for it.
    pub(crate) fn refused(status: StatusCode, refusal: &Refusal) -> Self {
        Self::json(status, refusal)
    }

    pub(crate) fn ok(value: &impl Serialize) -> Self {
        Self::json(StatusCode::OK, value)
    }

    fn json(status: StatusCode, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(json) => Self { status, json },
            // Our own types always have a JSON form; should one not, the caller still gets a refusal that it can read.
            Err(error) => {
                tracing::error!(%error, "an answer has no JSON form");
                let json = br#"{"kind":"internal","message":"the manager's answer has no JSON form"}"#.to_vec();
                Self { status: StatusCode::INTERNAL_SERVER_ERROR, json }
            }
        }
    }
}

/// Each answer is its content, as `docs/protocol.md` has it; a refusal has the status of its kind.
impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        match response {
            Response::Pool(it) => Self::ok(&it),
            Response::Table(it) => Self::ok(&it),
            Response::Servers(it) => Self::ok(&it),
            Response::Areas(it) => Self::ok(&it),
            Response::Volumes(it) => Self::ok(&it),
            Response::Volume(it) => Self::ok(&it),
            Response::Tasks(it) => Self::ok(&it),
            Response::TaskRow(it) => Self::ok(&it),
            Response::Events(it) => Self::ok(&it),
            Response::Registered(it) => Self::ok(&it),
            Response::Poll(it) => Self::ok(&it),
            Response::AreaName(it) => Self::ok(&it),
            Response::Server(it) => Self::ok(&it),
            Response::Rebuild(it) => Self::ok(&it),
            Response::Forget(it) => Self::ok(&it),
            Response::Area(it) => Self::ok(&it),
            Response::Task(it) => Self::ok(&it),
            Response::Client(it) => Self::ok(&it),
            Response::Leg(it) => Self::ok(&it),
            Response::Tokens(it) => Self::ok(&it),
            Response::Token(it) => Self::ok(&it),
            Response::People(it) => Self::ok(&it),
            Response::Person(it) => Self::ok(&it),
            // What these become is written where they are asked for.
            Response::NewToken(_) | Response::Admitted(_) | Response::Allowed => {
                Self::from(Refusal::new(ErrorKind::Internal, "an answer of the core that nobody asked for; this is a defect"))
            }
            Response::Refused(it) => Self::from(it),
        }
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::refused(status, &refusal)
    }
}

/// Shorthand for what the HTTP side itself refuses.
pub(crate) fn bad_request(message: impl Into<String>) -> Answer {
    Answer::from(Refusal::new(ErrorKind::BadRequest, message).hint("/v1/openapi.json describes every request"))
}

impl IntoResponse for Answer {
    fn into_response(self) -> axum::response::Response {
        // Answers differ from moment to moment, and some hold a lease's secret.
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
        (self.status, headers, self.json).into_response()
    }
}
