//! Replies on their way: whatever is finished when the sender comes round leaves in one send.

use std::cell::RefCell;

use sublet_doors::Chunk;
use sublet_doors::local::Permit;

/// Finished replies of one connection. Bounded by the permits of the requests that they answer.
#[derive(Default)]
pub(super) struct Outbox {
    inner: RefCell<Batch>,
}

/// What leaves in one send.
#[derive(Default)]
pub(super) struct Batch {
    /// In the order of the replies.
    pub(super) chunks: Vec<Chunk>,
    /// Headers behind the last chunk, not yet a chunk themselves: many small replies become one.
    tail: Vec<u8>,
    /// Given back when the bytes have left.
    pub(super) permits: Vec<Permit>,
}

impl Batch {
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(Chunk::from(std::mem::take(&mut self.tail)));
        }
    }
}

impl Outbox {
    /// Appends a reply: its header, then its data.
    pub(super) fn push(&self, header: impl FnOnce(&mut Vec<u8>), data: Option<Chunk>, permits: impl IntoIterator<Item = Permit>) {
        let mut batch = self.inner.borrow_mut();
        header(&mut batch.tail);
        if let Some(data) = data {
            batch.seal();
            batch.chunks.push(data);
        }
        batch.permits.extend(permits);
    }

    /// Everything that is finished; `None` if nothing is.
    pub(super) fn take(&self) -> Option<Batch> {
        let mut batch = self.inner.take();
        batch.seal();
        (!batch.chunks.is_empty()).then_some(batch)
    }
}
