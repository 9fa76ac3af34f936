//! Replies on their way: whatever is finished when the sender comes round leaves in one send.

use std::cell::RefCell;

use sublet_doors::local::Permit;
use sublet_doors::{Chunk, Gather};

/// Finished replies of one connection. Bounded by the permits of the requests that they answer.
#[derive(Default)]
pub(super) struct Outbox {
    inner: RefCell<Waiting>,
}

#[derive(Default)]
struct Waiting {
    bytes: Gather,
    permits: Vec<Permit>,
}

/// What leaves in one send.
pub(super) struct Batch {
    /// In the order of the replies.
    pub(super) chunks: Vec<Chunk>,
    /// Given back when the bytes have left.
    pub(super) permits: Vec<Permit>,
}

impl Outbox {
    /// Appends a reply: its header, then its data.
    pub(super) fn push(&self, header: impl FnOnce(&mut Vec<u8>), data: Vec<Chunk>, permits: impl IntoIterator<Item = Permit>) {
        let mut waiting = self.inner.borrow_mut();
        header(waiting.bytes.tail());
        data.into_iter().for_each(|chunk| waiting.bytes.push(chunk));
        waiting.permits.extend(permits);
    }

    /// Everything that is finished; `None` if nothing is.
    pub(super) fn take(&self) -> Option<Batch> {
        let mut waiting = self.inner.borrow_mut();
        if waiting.bytes.is_empty() {
            return None;
        }
        Some(Batch { chunks: waiting.bytes.take(), permits: std::mem::take(&mut waiting.permits) })
    }
}
