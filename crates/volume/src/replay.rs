//! W5: writing again what lenders have lost, and keeping the log of what they could lose.

use std::rc::Rc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use sublet_doors::Doors;

use crate::change::Change;
use crate::error::VolumeError;
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::{Session, SessionError};

/// So many kept writes are sent again at the same time.
const REPLAYS_AT_ONCE: usize = 16;

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Every in-sync leg has lost writes that were acknowledged and not flushed, and no proven survivor has them: those legs that
    /// are back get the kept writes again. Until then nothing else is served from them: their sessions are not the legs' yet,
    /// so no request of the volume overlaps a replayed one (W2).
    pub(crate) async fn replay(&self) -> bool {
        let parts = self.log.borrow().replay();
        let legs = (0..self.legs.len()).filter_map(|index| Some((index, self.legs.get(index)?)));
        let back = legs.filter(|(_, leg)| leg.lost_writes.get()).filter_map(|(index, leg)| Some((index, leg.candidate()?)));
        let replays = back.map(|(index, session)| {
            let parts = parts.as_slice();
            async move { (index, again(&session, parts).await, session) }
        });
        let mut ok = true;
        for (index, outcome, session) in join_all(replays).await {
            let Some(leg) = self.legs.get(index) else { continue };
            match outcome {
                Ok(()) if !session.is_dead() => {
                    tracing::warn!(lender = %leg.facts.server_name, writes = parts.len(), "lost writes have been written again");
                    leg.lost_writes.set(false);
                    self.install(index, &session);
                }
                // A session that was lost is followed by another one, and that by another replay.
                Ok(()) | Err(SessionError::Lost) => ok = false,
                Err(SessionError::Refused(status, text)) => {
                    let text = format!("lost writes cannot be written again: {text}");
                    tracing::error!(lender = %leg.facts.server_name, ?status, text);
                    leg.broken.replace(Some(text));
                    session.kill(crate::session::End::Unwanted);
                }
            }
        }
        if ok {
            self.tell_whole();
        }
        self.shared.changed.notify();
        ok
    }

    /// Lenders that have what they had lost are to be told so: they would be taken for those that lack something when the next
    /// client has to choose between the legs (H3).
    fn tell_whole(&self) {
        let mut members = self.members.borrow_mut();
        let in_sync = members.which(|m| matches!(m.role, Role::InSync | Role::Leaving));
        let whole = in_sync.iter().all(|leg| self.legs.get(*leg).is_some_and(|leg| !leg.lost_writes.get()));
        if self.legs.len() > 1 && whole && members.all_equal() {
            members.became_equal();
        }
    }

    /// Waits until the log has room for another change; flushes if nobody else does.
    pub(crate) async fn wait_for_room(self: &Rc<Self>) -> Result<(), VolumeError> {
        while self.log.borrow().is_full() {
            let seen = self.shared.changed.version();
            self.check()?;
            if self.flushing.replace(true) {
                self.shared.changed.changed(seen).await;
                continue;
            }
            let flushed = self.change(&Change::Flush).await;
            self.flushing.set(false);
            self.shared.changed.notify();
            flushed?;
        }
        Ok(())
    }

    /// Begins to flush before the log is full, so that nobody has to wait.
    pub(crate) fn flush_soon(self: &Rc<Self>) {
        if !self.log.borrow().is_half_full() || self.flushing.replace(true) {
            return;
        }
        let segment = Rc::clone(self);
        self.shared.doors.spawn(async move {
            if let Err(error) = segment.change(&Change::Flush).await {
                // Whoever finds the log full tries again, and is told.
                tracing::warn!(segment = segment.index, %error, "the kept writes were not flushed");
            }
            segment.flushing.set(false);
            segment.shared.changed.notify();
        });
    }
}

/// Sends parts that do not overlap to one leg.
async fn again<D: Doors>(session: &Session<D>, parts: &[Change]) -> Result<(), SessionError> {
    let mut writes = stream::iter(parts.iter().map(|part| session.send_change(part))).buffer_unordered(REPLAYS_AT_ONCE);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}
