//! The bounded queue between the HTTP side and the thread of the core.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sublet_api::access::Caller;
use sublet_api::request::{Request, Response};
use sublet_api::{ErrorKind, Refusal};
use tokio::sync::oneshot;

/// Requests that may wait for the core; one more is refused. Each takes the core well under a millisecond, so a queue
/// of this length means that something is badly wrong, and waiting longer would not help.
const WAITING_MAX: usize = 1024;

/// What the core's thread is told.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the other ones are rare")]
pub(crate) enum Item {
    /// Somebody asks.
    Request {
        /// Names this request in the core.
        conn: u64,
        /// Who asks.
        caller: Caller,
        /// Where from; none from this process itself.
        from: Option<SocketAddr>,
        /// What is asked.
        request: Request,
        /// Where the answer goes; dropped unanswered when the manager stops.
        reply: oneshot::Sender<Response>,
    },
    /// Whoever asked is gone, and the request is not answered yet.
    Gone {
        /// Which request.
        conn: u64,
    },
}

/// What [`Inbox::take`] found.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the other ones are rare")]
pub(crate) enum Taken {
    /// Something to do.
    Item(Item),
    /// Nothing until the deadline.
    Deadline,
    /// The manager stops, and the queue is empty.
    Closed,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    conn_last: u64,
    closed: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    ready: Condvar,
}

impl Inbox {
    /// Nothing under this lock can leave the state half changed, so a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the core, and tells it when the caller stops waiting: dropping the future is how a lost connection looks here.
    pub(crate) async fn ask(self: &Arc<Self>, caller: Caller, from: Option<SocketAddr>, request: Request) -> Response {
        let (reply, answer) = oneshot::channel();
        let conn = match self.push_request(caller, from, request, reply) {
            Ok(conn) => conn,
            Err(refusal) => return Response::Refused(refusal),
        };
        let mut waiting = Waiting { inbox: Arc::clone(self), conn, answered: false };
        let response = answer.await;
        waiting.answered = true;
        response.unwrap_or_else(|_| Response::Refused(stopping()))
    }

    fn push_request(
        &self,
        caller: Caller,
        from: Option<SocketAddr>,
        request: Request,
        reply: oneshot::Sender<Response>,
    ) -> Result<u64, Refusal> {
        let mut state = self.state();
        if state.closed {
            return Err(stopping());
        }
        if state.items.len() >= WAITING_MAX {
            return Err(Refusal::new(
                ErrorKind::Unreachable,
                format!("{WAITING_MAX} requests are waiting for the manager already"),
            )
            .hint("try again in a moment"));
        }
        state.conn_last += 1;
        let conn = state.conn_last;
        state.items.push_back(Item::Request { conn, caller, from, request, reply });
        self.ready.notify_one();
        Ok(conn)
    }

    /// Never refused: there is at most one for each request that was accepted, and those are bounded by the connections.
    fn push_gone(&self, conn: u64) {
        self.state().items.push_back(Item::Gone { conn });
        self.ready.notify_one();
    }

    /// Takes the oldest item, waiting for one until the deadline (for ever without one).
    pub(crate) fn take(&self, deadline: Option<Instant>) -> Taken {
        let mut state = self.state();
        loop {
            if let Some(item) = state.items.pop_front() {
                return Taken::Item(item);
            }
            if state.closed {
                return Taken::Closed;
            }
            state = match deadline {
                None => self.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return Taken::Deadline;
                    }
                    self.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Refuses everything from now on; what is in the queue is still taken.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.ready.notify_all();
    }
}

fn stopping() -> Refusal {
    Refusal::new(ErrorKind::Unreachable, "the manager is stopping").hint("try again when it is back")
}

/// A request that has not been answered. Dropped unanswered, it tells the core that nobody waits any more.
struct Waiting {
    inbox: Arc<Inbox>,
    conn: u64,
    answered: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.answered {
            self.inbox.push_gone(self.conn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(inbox: &Inbox) -> Result<u64, Refusal> {
        inbox.push_request(Caller::Manager, None, Request::Pool, oneshot::channel().0)
    }

    #[test]
    fn a_full_queue_refuses_requests_but_not_the_news_that_a_caller_is_gone() {
        let inbox = Inbox::default();
        for _ in 0..WAITING_MAX {
            push(&inbox).unwrap();
        }
        assert_eq!(push(&inbox).unwrap_err().kind, ErrorKind::Unreachable);
        inbox.push_gone(1);
        let mut taken = 0;
        while let Taken::Item(item) = inbox.take(Some(Instant::now())) {
            taken += 1;
            assert_eq!(matches!(item, Item::Gone { conn: 1 }), taken == WAITING_MAX + 1);
        }
        assert_eq!(taken, WAITING_MAX + 1);
        push(&inbox).unwrap();
    }

    #[test]
    fn a_closed_queue_is_emptied_and_then_ends() {
        let inbox = Inbox::default();
        push(&inbox).unwrap();
        inbox.close();
        assert!(push(&inbox).is_err());
        assert!(matches!(inbox.take(None), Taken::Item(Item::Request { conn: 1, .. })));
        assert!(matches!(inbox.take(None), Taken::Closed));
    }

    #[test]
    fn taking_from_an_empty_queue_ends_at_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(20);
        assert!(matches!(Inbox::default().take(Some(deadline)), Taken::Deadline));
        assert!(Instant::now() >= deadline);
    }
}
