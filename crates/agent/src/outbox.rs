//! Replies on their way out: all that are finished leave in one send.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;

use futures_util::future::{Either, select};
use sublet_doors::local::{Permit, Signal};
use sublet_doors::{Chunk, ConnWriter, Doors, Gather};

use crate::limits::{CLOSE_TIME_MAX, REPLIES_PER_SEND_MAX};

/// One reply or notice.
pub(crate) struct Reply {
    /// Header and small payload, copied together with those of other replies.
    pub(crate) head: Vec<u8>,
    /// Data behind it, sent from where it lies.
    pub(crate) data: Option<Chunk>,
    /// The request's share of the session's bounds; given back when the reply has left, so that a client which does not
    /// read its replies gets no more of them.
    pub(crate) permits: Vec<Permit>,
}

/// The replies of one connection that have not left yet.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: RefCell<VecDeque<Reply>>,
    finishing: Cell<bool>,
    broken: Cell<bool>,
    signal: Signal,
}

impl Outbox {
    /// Adds a reply; dropped if the connection is broken or about to end.
    pub(crate) fn push(&self, reply: Reply) {
        if !self.broken.get() && !self.finishing.get() {
            self.queue.borrow_mut().push_back(reply);
            self.signal.notify();
        }
    }

    /// Drops all waiting replies: the session is over, its client learns so by a notice or by the end of the connection.
    pub(crate) fn clear(&self) {
        self.queue.borrow_mut().clear();
    }

    /// Nothing follows: what is there is sent within [`CLOSE_TIME_MAX`], then the connection is shut down.
    pub(crate) fn finish(&self) {
        self.finishing.set(true);
        self.signal.notify();
    }

    fn take(&self) -> Vec<Reply> {
        let mut queue = self.queue.borrow_mut();
        let n = queue.len().min(REPLIES_PER_SEND_MAX);
        queue.drain(..n).collect()
    }

    async fn time_is_over(&self, doors: &impl Doors) {
        loop {
            let seen = self.signal.version();
            if self.finishing.get() {
                return doors.sleep(CLOSE_TIME_MAX).await;
            }
            self.signal.changed(seen).await;
        }
    }

    /// Sends until [`Outbox::finish`] and the last reply, or until the connection breaks; shuts it down then, which also
    /// ends the reading half.
    pub(crate) async fn send_all<D: Doors>(&self, doors: &D, mut writer: impl ConnWriter) {
        loop {
            let seen = self.signal.version();
            let batch = self.take();
            if batch.is_empty() {
                if self.finishing.get() {
                    break;
                }
                self.signal.changed(seen).await;
                continue;
            }
            let (chunks, permits) = assemble(batch);
            let sent = {
                let send = pin!(writer.write_all(chunks));
                let limit = pin!(self.time_is_over(doors));
                match select(send, limit).await {
                    Either::Left((result, _)) => result,
                    Either::Right(_) => Err(std::io::ErrorKind::TimedOut.into()),
                }
            };
            drop(permits);
            if let Err(error) = sent {
                tracing::debug!(%error, "a reply could not be sent");
                break;
            }
        }
        self.broken.set(true);
        self.queue.borrow_mut().clear();
        writer.shutdown();
    }
}

/// Heads that follow each other become one chunk; data is not copied.
fn assemble(batch: Vec<Reply>) -> (Vec<Chunk>, Vec<Permit>) {
    let mut bytes = Gather::default();
    let mut permits = Vec::with_capacity(batch.len() * 2);
    for reply in batch {
        bytes.tail().extend_from_slice(&reply.head);
        permits.extend(reply.permits);
        if let Some(data) = reply.data {
            bytes.push(data);
        }
    }
    (bytes.take(), permits)
}
