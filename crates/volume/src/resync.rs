//! Copying to a leg: to a stale one that returns what it has missed (S4, S5), and to one that may differ after an unclean close.

use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join;
use futures_util::stream;
use sublet_api::request::LegChange;
use sublet_doors::Doors;
use sublet_types::drawn::{self, Drawn};
use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE};
use sublet_types::mutation::{self, Mutation};
use sublet_types::{BlockRange, Generation};
use sublet_wire::message::{MapWhich, SetState, StaleMark};
use sublet_wire::{Flags, Status};

use crate::change::Change;
use crate::error::VolumeError;
use crate::leg::{after, hung_max};
use crate::maps::{Checked, LegMap, Part, Units, add_units, plan, whole};
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::{Copying, Segment};
use crate::session::{End, Session, SessionError};
use crate::stale::Asked;

/// So many copies run at the same time: enough to keep both disks busy, few enough to leave room for the volume's own requests.
const COPIES_AT_ONCE: usize = 4;
/// After so many bytes the target is flushed, and what it has is taken off the maps: a resync that is interrupted then goes on
/// from there.
const BATCH_SIZE: u64 = 64 << 20;
/// A resync that failed is begun again after so long.
const RESYNC_PAUSE: Duration = Duration::from_secs(3);
/// Flushing a target that has just been copied to may take long on a slow disk.
const TARGET_FLUSH_LIMIT: Duration = Duration::from_secs(120);

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Starts to copy. To a stale leg writes go from now on too; blocks that are being written are copied afterwards, because
    /// the copy waits for their range lock (W2).
    pub(crate) fn start_copy(self: &Rc<Self>, leg: usize) -> bool {
        self.members.borrow_mut().begin_copying(leg);
        self.copying.set(Some(Copying { leg, done: 0, total: 0 }));
        self.touched.replace(Some(Units::new()));
        self.shared.throttle.begin();
        let segment = Rc::clone(self);
        self.shared.doors.spawn(async move {
            let began = segment.shared.doors.now();
            let outcome = segment.copy_all(leg).await;
            let bytes = segment.copying.take().map_or(0, |copying| copying.done);
            segment.touched.replace(None);
            let took_ms = u64::try_from(segment.shared.doors.now().since(began).as_millis()).unwrap_or(u64::MAX);
            let copied = match outcome {
                Ok(copied) => copied,
                Err(error) => {
                    tracing::warn!(segment = segment.index, leg, %error, "copying to the leg failed");
                    false
                }
            };
            // Between the answer to the last request and this moment its session may have ended, and the resync with it.
            let copied = copied && segment.role(leg) == Role::Copying;
            if copied {
                segment.members.borrow_mut().copied(leg);
            } else {
                segment.give_up(leg);
                segment.rest(leg);
            }
            tracing::info!(segment = segment.index, leg, copied, bytes, took_ms, "copying has ended");
            segment.shared.changed.notify();
        });
        true
    }

    /// The session of a target, while it is one.
    fn target(&self, leg: usize) -> Option<Rc<Session<D>>> {
        self.legs.get(leg)?.session().filter(|_| self.role(leg) == Role::Copying)
    }

    /// Copies what is to be copied, every block under its range lock, and flushes. False if the leg is not there any more as
    /// what it was.
    async fn copy_all(self: &Rc<Self>, leg: usize) -> Result<bool, VolumeError> {
        let Some(session) = self.target(leg) else { return Ok(false) };
        // Changes that were sent before writes went to the target too have ended, so the maps know them.
        drop(self.shared.ranges.lock(BlockRange::covering(self.start, self.length)).await);
        let left_in = self.legs.get(leg).and_then(|leg| leg.stale_since.get());
        let number = u8::try_from(leg).unwrap_or(u8::MAX);
        let source = self.source_map(MapWhich::Leg(number)).await?;
        let Ok(target) = session.map(MapWhich::All, self.length).await else { return Ok(false) };
        let maps = source.zip(target).filter(|(source, _)| source.covers(left_in));
        let known = maps.is_some();
        let parts = maps.map_or_else(|| whole(self.length), |(source, target)| plan(self.length, &source, &target));
        let total = parts.iter().map(|part| part.length).sum();
        tracing::info!(segment = self.index, leg, known, bytes = total, "copying to the leg begins");
        self.copying.set(Some(Copying { leg, done: 0, total }));
        for batch in batches(&parts) {
            let mut copies = stream::iter(batch.iter().map(|part| self.copy_part(leg, *part))).buffer_unordered(COPIES_AT_ONCE);
            while let Some(copied) = copies.next().await {
                let length = copied?;
                if length == 0 {
                    return Ok(false);
                }
                if let Some(copying) = self.copying.get() {
                    self.copying.set(Some(Copying { done: copying.done + length, ..copying }));
                }
            }
            drop(copies);
            if self.target(leg).is_none_or(|now| !Rc::ptr_eq(&now, &session)) || !self.end_batch(leg, &session, batch).await {
                return Ok(false);
            }
        }
        self.change_one(leg, &Change::Flush).await
    }

    /// The maps of the first leg that has every acknowledged write; none if it keeps no maps.
    async fn source_map(&self, which: MapWhich) -> Result<Option<LegMap>, VolumeError> {
        loop {
            let seen = self.shared.changed.version();
            self.check()?;
            let source = (0..self.legs.len()).find(|leg| self.is_sound(*leg));
            let Some((leg, session)) = source.and_then(|leg| Some((self.legs.get(leg)?, self.legs.get(leg)?.session()?))) else {
                self.shared.changed.changed(seen).await;
                continue;
            };
            match session.map(which, self.length).await {
                Ok(map) => return Ok(map),
                Err(SessionError::Lost) => {}
                Err(SessionError::Refused(status, text)) => {
                    if let Some(error) = self.judge(&session, status, &text, &leg.lender()) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The parts of a batch are durable at the target: they are taken off the survivors' maps, but not what was written since
    /// the resync began (S4). Only then do the target's own marks of these regions go.
    async fn end_batch(&self, leg: usize, session: &Session<D>, batch: &[Part]) -> bool {
        let Some(facts) = self.legs.get(leg) else { return false };
        let mark = facts.flush_mark();
        match self.shared.doors.timeout(TARGET_FLUSH_LIMIT, session.flush()).await {
            Ok(Ok(())) => facts.count_flush(mark),
            failed => {
                tracing::warn!(lender = %facts.facts.server_name, ?failed, "the target of a resync was not flushed");
                return false;
            }
        }
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return true };
        let blocks = BlockRange::covering(self.start + first.offset, last.offset + last.length - first.offset);
        // No write of these blocks is under way while their bits go.
        let _guard = self.shared.ranges.lock(blocks).await;
        let mut copied = Units::new();
        batch.iter().for_each(|part| add_units(&mut copied, part.offset, part.length));
        let touched = self.touched.borrow().clone().unwrap_or_default();
        let untouched: Vec<u32> = copied.keys().copied().filter(|region| !touched.contains_key(region)).collect();
        let entries = copied.into_iter().map(|(region, bits)| (region, bits & !touched.get(&region).copied().unwrap_or(0)));
        let entries: Vec<(u32, u64)> = entries.filter(|(_, bits)| *bits != 0).collect();
        let number = u8::try_from(leg).unwrap_or(u8::MAX);
        let survivors = self.members.borrow().which(|m| m.role == Role::InSync);
        for survivor in survivors.into_iter().filter_map(|survivor| self.legs.get(survivor)?.session()) {
            if let Err(error) = survivor.clear(number, &entries).await {
                // It copies once more what was copied, if it comes to that.
                tracing::debug!(?error, "a survivor did not take copied blocks off its map");
            }
        }
        match session.cool(&untouched).await {
            Ok(()) => true,
            Err(SessionError::Refused(status, text)) => {
                tracing::debug!(?status, text, "the target of a resync keeps its marks");
                true
            }
            Err(SessionError::Lost) => false,
        }
    }

    /// Copies one part; answers its length, or 0 if the leg is no target any more. When one part fails, those beside it are not
    /// waited for; what they have sent still ends under their range locks (W2).
    async fn copy_part(self: &Rc<Self>, leg: usize, part: Part) -> Result<u64, VolumeError> {
        self.shared.throttle.take(&self.shared, part.length).await;
        let segment = Rc::clone(self);
        self.shared.detached(async move { segment.copy_locked(leg, part).await }).await
    }

    async fn copy_locked(self: &Rc<Self>, leg: usize, part: Part) -> Result<u64, VolumeError> {
        let blocks = BlockRange::covering(self.start + part.offset, part.length);
        // W2: no write of these blocks runs between the reading and the writing.
        let mut _guard = Some(self.shared.ranges.lock(blocks).await);
        if mutation::is(Mutation::ResyncWithoutLock) {
            _guard = None;
        }
        let Some(session) = self.target(leg) else { return Ok(0) };
        if mutation::is(Mutation::ResyncCopiesNothing) || (part.compare && mutation::is(Mutation::LostWritesNotCopied)) {
            return Ok(part.length);
        }
        let mut spans = vec![(part.offset, part.length)];
        if part.compare {
            let Some(source) = (0..self.legs.len()).find(|leg| self.is_sound(*leg)) else { return Ok(0) };
            let Some(source) = self.legs.get(source).and_then(|leg| leg.session()) else { return Ok(0) };
            let verify = (source.verify(part.offset, part.length), session.verify(part.offset, part.length));
            let (Ok(source), Ok(target)) = join(verify.0, verify.1).await else { return Ok(0) };
            if let (Some(source), Some(target)) = (source, target) {
                spans = differing(part.offset, &source, &target);
            }
        }
        for (offset, length) in spans {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            let data = self.read(offset, length, true).await?;
            let change = if data.iter().all(|byte| *byte == 0) {
                // Holes stay holes.
                Change::Zero { offset, length, flags: Flags::default() }
            } else {
                Change::write(offset, data, false)
            };
            if !self.change_one(leg, &change).await? {
                return Ok(0);
            }
        }
        Ok(part.length)
    }

    fn rest(&self, leg: usize) {
        if let Some(leg) = self.legs.get(leg) {
            leg.resync_after.set(after(self.shared.doors.now(), drawn::time(Drawn::ResyncPause, RESYNC_PAUSE)));
        }
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
                if let Some(leg) = self.legs.get(leg) {
                    // The table has another opinion of what it holds: the next copy is a whole one (S3).
                    leg.stale_since.set(None);
                }
                self.give_up(leg);
                self.rest(leg);
                return false;
            }
        };
        if let Some(flag) = in_sync.get_mut(leg) {
            *flag = true;
        }
        let prepared = async {
            let stale = self.shared.doors.timeout(hung_max(), self.take_over_maps(leg, &session, issued)).await.ok()??;
            let state = SetState { generation: issued, in_sync, equalised: true, stale };
            self.prepare_target(leg, &session, &state).await.then_some(())
        };
        if prepared.await.is_none() || self.role(leg) != Role::Copied {
            self.give_up(leg);
            self.rest(leg);
            return false;
        }
        // From here on the manager may have committed: no write is acknowledged without this leg (W1).
        self.members.borrow_mut().begin_joining(leg);
        self.commit(leg).await
    }

    /// S5: a leg that comes in sync while others are stale gets the source's maps for them. Where the source has none, the leg
    /// must not come with one of its own from earlier, so it gets an empty one that serves nobody.
    async fn take_over_maps(&self, leg: usize, session: &Session<D>, issued: Generation) -> Option<Vec<StaleMark>> {
        let others = self.members.borrow().which(|m| !m.role.is_required());
        let others: Vec<usize> = others.into_iter().filter(|other| *other != leg).collect();
        let mut marks = Vec::new();
        if others.is_empty() {
            return Some(marks);
        }
        // No write is under way between the source's answer and the moment from which the leg itself takes note of writes.
        let _guard = self.shared.ranges.lock(BlockRange::covering(self.start, self.length)).await;
        for other in others {
            let number = u8::try_from(other).ok()?;
            let map = self.source_map(MapWhich::Leg(number)).await.ok()?;
            let known = map.and_then(|map| Some((map.since?, map.missed())));
            let (since, entries) = known.unwrap_or((issued, Vec::new()));
            match session.seed(number, since, &entries).await {
                Ok(()) => {}
                // It keeps no maps (an area of an older format), and so none from earlier either.
                Err(SessionError::Refused(Status::Unsupported, _)) => return Some(Vec::new()),
                Err(error) => {
                    tracing::warn!(?error, "the target of a resync did not take over a map");
                    return None;
                }
            }
            marks.push(StaleMark { leg: number, since, seeded: true });
        }
        Some(marks)
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
        match self.shared.doors.timeout(hung_max(), session.set_state(state)).await {
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

/// Parts in batches that end where a region ends.
fn batches(parts: &[Part]) -> Vec<&[Part]> {
    let mut batches = Vec::new();
    let mut rest = parts;
    while !rest.is_empty() {
        let mut bytes = 0;
        let mut end = 0;
        while let Some(part) = rest.get(end) {
            let last = end.checked_sub(1).and_then(|last| rest.get(last));
            let fresh = last.is_none_or(|last| last.offset / REGION_SIZE != part.offset / REGION_SIZE);
            if bytes >= BATCH_SIZE && fresh {
                break;
            }
            bytes += part.length;
            end += 1;
        }
        let (batch, more) = rest.split_at(end);
        batches.push(batch);
        rest = more;
    }
    batches
}

/// The stretches of blocks that are not certainly the same: a checksum proves nothing that was not kept, or does not fit, and
/// what cannot be read nothing at all.
fn differing(offset: u64, source: &[Checked], target: &[Checked]) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for (block, (one, other)) in source.iter().zip(target).enumerate() {
        let kept = |block: &Checked| block.filter(|block| block.state.fits()).map(|block| block.sum);
        if kept(one).is_some() && kept(one) == kept(other) {
            continue;
        }
        let at = offset + block as u64 * BLOCK_SIZE;
        match spans.last_mut() {
            Some((start, length)) if *start + *length == at => *length += BLOCK_SIZE,
            _ => spans.push((at, BLOCK_SIZE)),
        }
    }
    spans
}
