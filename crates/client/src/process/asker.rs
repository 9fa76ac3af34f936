//! Whoever waits for many answer lines: they are handed over no faster than they are taken.

use std::cell::{Cell, RefCell};
use std::sync::mpsc::Sender;

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::StreamExt;
use sublet_api::control::ClientAnswerLine;
use sublet_doors::local::Signal;

use super::control::Asked;

/// Lines that wait to be sent; more are not made before one has left.
const LINES_WAITING_MAX: usize = 8;

/// The asker of one request.
pub struct Asker {
    answer: Sender<ClientAnswerLine>,
    sent: RefCell<Option<UnboundedReceiver<()>>>,
    waiting: Cell<usize>,
    left: Signal,
}

impl From<Asked> for Asker {
    fn from(asked: Asked) -> Self {
        Self { answer: asked.answer, sent: RefCell::new(Some(asked.sent)), waiting: Cell::new(0), left: Signal::new() }
    }
}

impl Asker {
    /// Waits until the asker has gone away. It must be polled all the time while [`Asker::line`] is used.
    pub async fn gone(&self) {
        let Some(mut sent) = self.sent.take() else { return };
        while sent.next().await.is_some() {
            self.waiting.set(self.waiting.get().saturating_sub(1));
            self.left.notify();
        }
    }

    /// Hands a line over; waits while many others wait.
    pub async fn line(&self, line: ClientAnswerLine) {
        loop {
            let seen = self.left.version();
            if self.waiting.get() < LINES_WAITING_MAX {
                break;
            }
            self.left.changed(seen).await;
        }
        self.put(line);
    }

    /// Tells progress, unless lines wait already: the next one says more.
    pub fn progress(&self, done: u64, total: u64) {
        if self.waiting.get() < LINES_WAITING_MAX {
            self.put(ClientAnswerLine::Progress { done, total });
        }
    }

    /// The last line.
    pub fn last(&self, line: ClientAnswerLine) {
        self.put(line);
    }

    fn put(&self, line: ClientAnswerLine) {
        self.waiting.set(self.waiting.get() + 1);
        // One that went away is noticed by `gone`.
        let _ = self.answer.send(line);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_channel::mpsc::unbounded;
    use futures_util::FutureExt;
    use sublet_api::control::ClientRequest;

    use super::*;

    #[test]
    fn lines_wait_for_the_asker_and_its_end_is_noticed() {
        let ((answer, lines), (tell, sent)) = (mpsc::channel(), unbounded());
        let asker = Asker::from(Asked { request: ClientRequest::Status, answer, sent });
        let mut gone = Box::pin(asker.gone());
        for i in 0..LINES_WAITING_MAX {
            assert!(asker.line(ClientAnswerLine::Matches { offsets: vec![i as u64] }).now_or_never().is_some());
        }
        let mut next = Box::pin(asker.line(ClientAnswerLine::Done));
        assert!(next.as_mut().now_or_never().is_none(), "the asker takes nothing");
        asker.progress(1, 2);
        assert_eq!(lines.try_iter().count(), LINES_WAITING_MAX);
        tell.unbounded_send(()).unwrap();
        assert!(gone.as_mut().now_or_never().is_none(), "it is there");
        assert!(next.as_mut().now_or_never().is_some());
        drop(tell);
        assert!(gone.as_mut().now_or_never().is_some());
    }
}
