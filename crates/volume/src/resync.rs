//! Copying everything to a leg: to a stale one that returns (S5), and to one that may differ after an unclean close.

use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use sublet_api::request::LegChange;
use sublet_doors::Doors;
use sublet_types::BlockRange;
use sublet_types::limits::REQUEST_SIZE_MAX;
use sublet_wire::Flags;
use sublet_wire::message::SetState;

use crate::change::Change;
use crate::error::VolumeError;
use crate::leg::{HUNG_MAX, after};
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::{End, Session};
use crate::stale::Asked;

/// Copies of so many bytes run at the same time as ...
const COPY_SIZE: u64 = REQUEST_SIZE_MAX;
/// ... so many others: enough to keep both disks busy, few enough to leave room for the volume's own requests.
const COPIES_AT_ONCE: usize = 4;
/// A resync that failed is begun again after so long.
const RESYNC_PAUSE: Duration = Duration::from_secs(3);
/// Flushing a target that has just been copied to may take long on a slow disk.
const TARGET_FLUSH_LIMIT: Duration = Duration::from_secs(120);

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Starts to copy. To a stale leg writes go from now on too; blocks that are being written are copied afterwards, because
    /// the copy waits for their range lock (W2).
    pub(crate) fn start_copy(self: &Rc<Self>, leg: usize, equalise: bool) -> bool {
        if !equalise {
            self.members.borrow_mut().begin_copying(leg);
        }
        self.copying.set(Some((leg, 0)));
        let segment = Rc::clone(self);
        self.shared.doors.spawn(async move {
            let began = segment.shared.doors.now();
            let outcome = segment.copy_all(leg, equalise).await;
            segment.copying.set(None);
            let took_ms = u64::try_from(segment.shared.doors.now().since(began).as_millis()).unwrap_or(u64::MAX);
            let copied = match outcome {
                Ok(copied) => copied,
                Err(error) => {
                    tracing::warn!(segment = segment.index, leg, %error, "copying to the leg failed");
                    false
                }
            };
            // Between the answer to the last request and this moment its session may have ended, and the resync with it.
            let copied = copied && (equalise || segment.role(leg) == Role::Copying);
            match (copied, equalise) {
                (true, true) => {
                    segment.set_equal(leg, true);
                    segment.equalise_due.set(true);
                }
                (true, false) => segment.members.borrow_mut().copied(leg),
                (false, true) => {}
                (false, false) => {
                    segment.give_up(leg);
                    segment.rest(leg);
                }
            }
            tracing::info!(segment = segment.index, leg, copied, equalise, took_ms, "copying has ended");
            segment.shared.changed.notify();
        });
        true
    }

    /// Copies every block under its range lock, and flushes. False if the leg is not there any more as what it was.
    async fn copy_all(self: &Rc<Self>, leg: usize, equalise: bool) -> Result<bool, VolumeError> {
        let parts = (0..self.length.div_ceil(COPY_SIZE)).map(|part| part * COPY_SIZE);
        let mut copies = stream::iter(parts.map(|offset| self.copy_part(leg, offset, equalise))).buffer_unordered(COPIES_AT_ONCE);
        while let Some(copied) = copies.next().await {
            let length = copied?;
            if length == 0 {
                return Ok(false);
            }
            let done = self.copying.get().map_or(0, |(_, done)| done) + length;
            self.copying.set(Some((leg, done)));
        }
        drop(copies);
        self.change_one(leg, &Change::Flush).await
    }

    /// Copies one part; answers its length, or 0 if the leg is no target any more.
    async fn copy_part(self: &Rc<Self>, leg: usize, offset: u64, equalise: bool) -> Result<u64, VolumeError> {
        let length = COPY_SIZE.min(self.length - offset);
        let blocks = BlockRange::covering(self.start + offset, length);
        // W2: no write of these blocks runs between the reading and the writing.
        let _guard = self.shared.ranges.lock(blocks).await;
        let fits = |role: Role| if equalise { role == Role::InSync } else { role == Role::Copying };
        if !fits(self.role(leg)) {
            return Ok(0);
        }
        let size = u32::try_from(length).unwrap_or(u32::MAX);
        let data = self.read(offset, size).await?;
        let change = if data.iter().all(|byte| *byte == 0) {
            // Holes stay holes.
            Change::Zero { offset, length: size, flags: Flags::default() }
        } else {
            Change::write(offset, data, false)
        };
        let done = self.change_one(leg, &change).await?;
        Ok(if done { length } else { 0 })
    }

    fn rest(&self, leg: usize) {
        if let Some(leg) = self.legs.get(leg) {
            leg.resync_after.set(after(self.shared.doors.now(), RESYNC_PAUSE));
        }
    }

    /// The legs have been made equal: all labels shall say so.
    pub(crate) fn all_equal(&self) -> bool {
        self.equalise_due.set(false);
        self.members.borrow_mut().became_equal();
        true
    }

    /// S5 for a leg to which everything is copied: generation, flush, label, then the commit.
    pub(crate) async fn return_leg(&self, leg: usize) -> bool {
        let Some(session) = self.legs.get(leg).and_then(|leg| leg.session()) else {
            self.give_up(leg);
            return false;
        };
        let (generation, mut in_sync) = {
            let m = self.members.borrow();
            (m.generation, m.in_sync_flags())
        };
        let issued = match self.ask(leg, generation, LegChange::Returning).await {
            Asked::Done(answer) => answer.generation,
            Asked::Unknown => return false,
            Asked::Refused => {
                self.give_up(leg);
                self.rest(leg);
                return false;
            }
        };
        if let Some(flag) = in_sync.get_mut(leg) {
            *flag = true;
        }
        let state = SetState { generation: issued, in_sync, equalised: true, stale: Vec::new() };
        if !self.prepare_target(leg, &session, &state).await || self.role(leg) != Role::Copied {
            self.give_up(leg);
            self.rest(leg);
            return false;
        }
        // From here on the manager may have committed: no write is acknowledged without this leg (W1).
        self.members.borrow_mut().begin_joining(leg);
        self.commit(leg).await
    }

    /// Everything durable at the target, and the new generation in its label (S5).
    async fn prepare_target(&self, leg: usize, session: &Session<D>, state: &SetState) -> bool {
        let Some(facts) = self.legs.get(leg) else { return false };
        let mark = facts.flush_mark();
        match self.shared.doors.timeout(TARGET_FLUSH_LIMIT, session.flush()).await {
            Ok(Ok(())) => facts.count_flush(mark),
            failed => {
                tracing::warn!(lender = %facts.facts.server_name, ?failed, "the target of a resync was not flushed");
                return false;
            }
        }
        facts.issued.set(Some(state.generation));
        match self.shared.doors.timeout(HUNG_MAX, session.set_state(state)).await {
            Ok(Ok(())) => true,
            failed => {
                tracing::warn!(lender = %facts.facts.server_name, ?failed, "the target of a resync did not take its label");
                false
            }
        }
    }

    /// The commit point of S5; afterwards the survivors' labels are due.
    pub(crate) async fn commit(&self, leg: usize) -> bool {
        let generation = self.members.borrow().generation;
        match self.ask(leg, generation, LegChange::InSync).await {
            Asked::Done(answer) => {
                self.members.borrow_mut().has_joined(leg, &answer);
                if let Some(leg) = self.legs.get(leg) {
                    leg.judged.set(true);
                    // As a target it may not be read: opened again as a member, with a new session (W4).
                    leg.hang_up(End::Unwanted);
                }
                true
            }
            Asked::Unknown => false,
            Asked::Refused => {
                self.members.borrow_mut().join_refused(leg);
                self.rest(leg);
                if let Some(leg) = self.legs.get(leg) {
                    leg.hang_up(End::Unwanted);
                }
                false
            }
        }
    }
}
