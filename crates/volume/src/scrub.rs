//! Scrubbing: every block of every leg is read at its lender and compared with its checksum and with the other legs; what is wrong
//! is rewritten and told (K1).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures_util::future::join_all;
use sublet_api::work::{FindingKind, Work, WorkKind, WorkReport, WorkState};
use sublet_doors::Doors;
use sublet_types::limits::{BLOCK_SIZE, REQUEST_SIZE_MAX};
use sublet_types::{BlockRange, TaskId};
use sublet_wire::message::BlockState;

use crate::change::Change;
use crate::equal::copies;
use crate::error::VolumeError;
use crate::maps::{Checked, regions_of};
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::read::spans;
use crate::segment::Segment;
use crate::session::{Session, SessionError};
use crate::throttle::Throttle;
use crate::volume::Inner;

/// One scrub that the manager has asked for.
pub(crate) struct Scrub {
    task: TaskId,
    throttle: Throttle,
    /// Bytes of the volume that are done, from its beginning.
    done: Cell<u64>,
    total: u64,
    state: Cell<WorkState>,
    reason: RefCell<String>,
    /// Nobody wants it any more.
    ended: Cell<bool>,
}

impl Scrub {
    pub(crate) fn report(&self) -> WorkReport {
        let state = match self.state.get() {
            WorkState::Running if self.throttle.is_paused() => WorkState::Paused,
            state => state,
        };
        WorkReport {
            work: Some(self.task),
            kind: WorkKind::Scrub,
            slice: None,
            done: self.done.get(),
            total: self.total,
            rate_bytes_per_s: if state == WorkState::Running { self.throttle.rate() } else { 0 },
            state,
            reason: self.reason.borrow().clone(),
        }
    }
}

impl<D: Doors, M: ManagerDoor> Inner<D, M> {
    /// Does the scrubs that are listed, and ends those that are not. Idempotent.
    pub(crate) fn set_scrubs(self: &Rc<Self>, work: &[Work]) {
        let shared = &self.shared;
        let wanted = || work.iter().filter(|work| work.kind == WorkKind::Scrub);
        shared.scrubs.borrow_mut().retain(|scrub| {
            let stays = wanted().any(|work| work.task == scrub.task);
            scrub.ended.set(!stays);
            stays
        });
        for work in wanted() {
            let known = shared.scrubs.borrow().iter().find(|scrub| scrub.task == work.task).cloned();
            if let Some(scrub) = known {
                scrub.throttle.set(work.rate_max, work.is_paused);
                continue;
            }
            let scrub = Rc::new(Scrub {
                task: work.task,
                throttle: Throttle::default(),
                done: Cell::new((work.done / REQUEST_SIZE_MAX * REQUEST_SIZE_MAX).min(self.map.size())),
                total: self.map.size(),
                state: Cell::new(WorkState::Running),
                reason: RefCell::default(),
                ended: Cell::new(false),
            });
            scrub.throttle.set(work.rate_max, work.is_paused);
            shared.scrubs.borrow_mut().push(Rc::clone(&scrub));
            let inner = Rc::clone(self);
            shared.doors.spawn(async move {
                let outcome = inner.scrub(&scrub).await;
                tracing::info!(volume = %inner.shared.info.name, task = %scrub.task, ?outcome, done = scrub.done.get(), "a scrub has ended");
                scrub.state.set(if outcome.is_ok() { WorkState::Done } else { WorkState::Failed });
                if let Err(error) = outcome {
                    scrub.reason.replace(error.text);
                }
                inner.shared.changed.notify();
            });
        }
        shared.changed.notify();
    }

    async fn scrub(&self, scrub: &Scrub) -> Result<(), VolumeError> {
        while scrub.done.get() < scrub.total && !scrub.ended.get() {
            let at = scrub.done.get();
            let length = REQUEST_SIZE_MAX.min(scrub.total - at);
            scrub.throttle.take(&self.shared, length).await;
            if scrub.ended.get() {
                break;
            }
            // The path stays open meanwhile; a volume that is being closed ends the scrub.
            let _in_use = self.shared.begin().await?;
            for piece in self.map.pieces(at, length, REQUEST_SIZE_MAX) {
                if let Some(segment) = self.segments.get(piece.segment) {
                    segment.scrub(piece.offset, piece.length).await?;
                }
            }
            scrub.done.set(at + length);
        }
        Ok(())
    }
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Checks and compares a range at all in-sync legs that are there, and repairs it.
    async fn scrub(self: &Rc<Self>, offset: u64, length: u64) -> Result<(), VolumeError> {
        loop {
            let seen = self.shared.changed.version();
            self.make_equal(offset, length, false).await?;
            // W2: a write under way would look like a difference.
            let guard = self.shared.ranges.lock(BlockRange::covering(self.start + offset, length)).await;
            let readable = self.members.borrow().which(|m| m.role == Role::InSync && m.equal);
            let here = readable.into_iter().filter(|leg| self.is_sound(*leg));
            let legs: Vec<(usize, Rc<Session<D>>)> = here.filter_map(|leg| Some((leg, self.legs.get(leg)?.session()?))).collect();
            let verified = join_all(legs.iter().map(|(leg, session)| async move {
                session.verify(offset, length).await.map(|blocks| (*leg, blocks)).map_err(|error| (*leg, error))
            }));
            match verified.await.into_iter().collect::<Result<Vec<_>, _>>() {
                // Without checksums there is nothing to compare.
                Ok(verified) if !legs.is_empty() => {
                    let kept: Vec<_> = verified.into_iter().filter_map(|(leg, blocks)| Some((leg, blocks?))).collect();
                    self.judge_blocks(offset, &kept, &legs).await;
                    return Ok(());
                }
                Err((leg, SessionError::Refused(status, text))) => {
                    let Some((_, session)) = legs.iter().find(|(index, _)| *index == leg) else { continue };
                    let name = self.legs.get(leg).map(|leg| leg.lender()).unwrap_or_default();
                    if let Some(error) = self.judge(session, status, &text, &name) {
                        return Err(error);
                    }
                }
                Ok(_) | Err((_, SessionError::Lost)) => {
                    drop(guard);
                    self.check()?;
                    self.shared.changed.changed(seen).await;
                }
            }
        }
    }

    async fn judge_blocks(&self, offset: u64, legs: &[(usize, Vec<Checked>)], sessions: &[(usize, Rc<Session<D>>)]) {
        // H3: of legs that are both sure, the one that has not crashed since is the source, and then the lowest number.
        let crashed = |leg: usize| self.legs.get(leg).is_some_and(|leg| leg.map.borrow().as_ref().is_some_and(|map| map.lost));
        let numbers = || legs.iter().map(|(leg, _)| *leg);
        let Some(source) = numbers().find(|leg| !crashed(*leg)).or_else(|| numbers().next()) else { return };
        let copies = copies(offset, legs, source);
        for (leg, blocks) in legs {
            let is_copied = |block: usize| {
                let at = offset + block as u64 * BLOCK_SIZE;
                copies.iter().any(|(start, length, _, to)| (*start..start + length).contains(&at) && to.contains(leg))
            };
            let wrong = blocks.iter().enumerate().filter(|(_, block)| is_wrong(block));
            let lost: Vec<usize> = wrong.map(|(block, _)| block).filter(|block| !is_copied(*block)).collect();
            self.found(*leg, offset, &lost, FindingKind::Unrepairable, "no other copy has it");
        }
        for (at, length, from, to) in &copies {
            let Some((_, session)) = sessions.iter().find(|(leg, _)| leg == from) else { continue };
            let size = u32::try_from(*length).unwrap_or(u32::MAX);
            // If the source does not deliver, the next scrub finds the place again.
            let Some(data) = session.read(*at, size).await.ok().and_then(|blocks| blocks.sound()) else { continue };
            let first = ((at - offset) / BLOCK_SIZE) as usize;
            for target in to {
                let Some((_, blocks)) = legs.iter().find(|(leg, _)| leg == target) else { continue };
                let all = blocks.iter().skip(first).take((length / BLOCK_SIZE) as usize);
                let (rotten, other): (Vec<_>, Vec<_>) = all.enumerate().partition(|(_, block)| is_wrong(block));
                let number = |blocks: Vec<(usize, &Checked)>| blocks.into_iter().map(|(n, _)| n).collect::<Vec<_>>();
                self.repair(*target, *at, &number(rotten), &data, FindingKind::Repaired).await;
                self.repair(*target, *at, &number(other), &data, FindingKind::Differed).await;
            }
        }
        for (leg, blocks) in legs {
            let known = blocks.iter().enumerate().filter_map(|(block, own)| Some((block, (*own)?)));
            let computed = known.filter(|(_, own)| own.state == BlockState::Computed);
            let mut left: Vec<(usize, u32)> = computed.map(|(block, own)| (block, own.sum)).collect();
            for (other, all) in legs {
                let is_kept = |block: usize, sum: u32| {
                    let there = all.get(block).copied().flatten();
                    there.is_some_and(|b| other != leg && b.state.fits() && b.sum == sum)
                };
                let (kept, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|(block, sum)| is_kept(*block, *sum));
                left = rest;
                let kept: Vec<usize> = kept.into_iter().map(|(block, _)| block).collect();
                if let Some((_, source)) = sessions.iter().find(|(session, _)| session == other) {
                    self.write_again(*leg, source, offset, &kept).await;
                }
            }
        }
    }

    /// K2: a checksum that a lender computes proves nothing, but the kept one of another leg is the same. So the blocks are what
    /// they should be, and when they are written once more, their lender keeps that. Nothing was wrong, and nothing is told.
    async fn write_again(&self, index: usize, source: &Session<D>, offset: u64, blocks: &[usize]) {
        for (at, length) in spans(blocks) {
            let size = u32::try_from(length).unwrap_or(u32::MAX);
            // If the source does not deliver, the next scrub finds the place again.
            let Some(data) = source.read(offset + at, size).await.ok().and_then(|blocks| blocks.sound()) else { continue };
            let Some(leg) = self.legs.get(index) else { return };
            let Some(session) = leg.session().filter(|_| self.role(index) == Role::InSync) else { return };
            if let Err(error) = self.send_beside(&leg, &session, &Change::write(offset + at, data, false)).await {
                tracing::warn!(lender = %leg.facts.server_name, ?error, "blocks without kept checksums were not written again");
                return;
            }
            self.adopt_hot(regions_of(offset + at, length));
        }
    }
}

/// It does not fit its checksum, or cannot be read at all.
fn is_wrong(block: &Checked) -> bool {
    block.is_none_or(|block| block.state == BlockState::Differs)
}
