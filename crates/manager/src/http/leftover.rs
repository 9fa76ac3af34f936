//! What a handler leaves of a request's body is read and thrown away before the answer goes out. Otherwise the connection
//! would have to be closed under a caller that is about to use it again, or that sends its whole body before it reads.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

/// So many bytes are thrown away; a connection with more is closed.
const DISCARD_MAX: u64 = 16 << 20;
/// For so long it is waited for them.
const DISCARD_WAIT_MAX: Duration = Duration::from_secs(2);

/// Where a body goes when its handler drops it.
type Rest = Arc<Mutex<Option<Body>>>;

/// A body that is given back.
struct Lent {
    /// There until dropped.
    body: Option<Body>,
    rest: Rest,
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// The layer around all handlers.
pub(crate) async fn discard(request: Request, next: Next) -> Response {
    // Such a caller waits for leave to send. It has it only if the handler began to read; then nothing is owed.
    let waits_for_leave = request.headers().contains_key(header::EXPECT);
    let rest = Rest::default();
    let lent = Arc::clone(&rest);
    let request = request.map(|body| Body::new(Lent { body: Some(body), rest: lent }));
    let mut response = next.run(request).await;
    let left = rest.lock().unwrap_or_else(PoisonError::into_inner).take();
    let clean = match left {
        Some(body) if body.is_end_stream() => true,
        Some(body) if !waits_for_leave => tokio::time::timeout(DISCARD_WAIT_MAX, emptied(body)).await.unwrap_or(false),
        _ => false,
    };
    if !clean {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads to the end; false if there is too much, or the connection breaks.
async fn emptied(mut body: Body) -> bool {
    if body.size_hint().lower() > DISCARD_MAX {
        return false;
    }
    let mut total = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(frame) = frame else { return false };
        total += frame.data_ref().map_or(0, |data| data.len() as u64);
        if total > DISCARD_MAX {
            return false;
        }
    }
    true
}
