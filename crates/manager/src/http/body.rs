//! Request bodies: JSON, bounded in size and time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequest;
use axum::http::{HeaderMap, Request, StatusCode, header};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use sublet_api::{ErrorKind, Refusal};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::answer::{Answer, bad_request};

/// The longest body in bytes, but for a server's poll.
pub(crate) const BODY_MAX: usize = 1 << 20;
/// The longest body of a poll in bytes: it reports all areas of a server, with some 400 bytes for each slice.
pub(crate) const POLL_MAX: usize = 32 << 20;
/// A body of up to so many bytes needs no room from [`LARGE_BYTES_MAX`]: nothing that is needed to use a volume is longer.
const SMALL_MAX: usize = 64 << 10;
/// Bytes beyond that of all bodies together that are under way; whoever sends more waits for room.
const LARGE_BYTES_MAX: usize = 64 << 20;
/// A body must have arrived after so long.
const BODY_WAIT_MAX: Duration = Duration::from_secs(20);

/// Room for what is long: without it, many that send half of a long body would have as much memory as they like.
static LARGE: Semaphore = Semaphore::const_new(LARGE_BYTES_MAX);

/// A JSON body of that type, of at most `MAX` bytes.
#[derive(Debug)]
pub(crate) struct Payload<T, const MAX: usize = BODY_MAX>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned, const MAX: usize> FromRequest<S> for Payload<T, MAX> {
    type Rejection = Answer;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, Answer> {
        let (parts, body) = request.into_parts();
        if !is_json(&parts.headers) {
            return Err(not_json());
        }
        let (bytes, _room) = match tokio::time::timeout(BODY_WAIT_MAX, read(body, MAX)).await {
            Ok(read) => read?,
            Err(_) => return Err(too_slow()),
        };
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(bad_request(format!("the request's body is not what this path takes: {error}"))),
        }
    }
}

/// The bytes of a body, with the room that they take.
async fn read(mut body: Body, max: usize) -> Result<(Vec<u8>, Option<SemaphorePermit<'static>>), Answer> {
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(max));
    }
    let mut bytes = Vec::new();
    let mut room: Option<SemaphorePermit<'static>> = None;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| bad_request(format!("the request's body did not arrive whole: {error}")))?;
        // A frame without data holds trailers, which nobody needs.
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > max {
            return Err(too_large(max));
        }
        let has = SMALL_MAX + room.as_ref().map_or(0, SemaphorePermit::num_permits);
        if let Some(more) = (bytes.len() + data.len()).checked_sub(has).filter(|more| *more > 0) {
            let more = u32::try_from(more).map_err(|_| too_large(max))?;
            // Not read from meanwhile, so that the peer has to wait as well.
            let more = LARGE.acquire_many(more).await.map_err(|_| too_slow())?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

/// `application/json`, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(text)) = headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    text.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn not_json() -> Answer {
    Answer::refused(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        &Refusal::new(ErrorKind::BadRequest, "the request's body is not declared as JSON")
            .hint("send it with 'Content-Type: application/json'"),
    )
}

fn too_large(max: usize) -> Answer {
    Answer::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        &Refusal::new(ErrorKind::BadRequest, format!("the request's body is larger than {max} bytes")),
    )
}

fn too_slow() -> Answer {
    Answer::refused(
        StatusCode::REQUEST_TIMEOUT,
        &Refusal::new(ErrorKind::BadRequest, format!("the request's body did not arrive within {} s", BODY_WAIT_MAX.as_secs())),
    )
}
