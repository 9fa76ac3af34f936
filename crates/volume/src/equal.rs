//! After an unclean close the legs of a segment may differ in regions that were hot (H3): one leg is the source, and a region is
//! made equal before anything of it is read.

use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::join_all;
use sublet_doors::Doors;
use sublet_types::BlockRange;
use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE, REQUEST_SIZE_MAX};
use sublet_types::mutation::{self, Mutation};
use sublet_wire::message::{BlockState, VerifyBlock};

use crate::change::Change;
use crate::error::VolumeError;
use crate::maps::{Checked, LegMap, Units, regions_of};
use crate::members::Role;
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::session::{Session, SessionError};

const BLOCKS: u64 = REGION_SIZE / BLOCK_SIZE;

/// The regions in which legs may differ, with the blocks of them that have been made equal. Pure.
#[derive(Default)]
pub(crate) struct Unequal(BTreeMap<u32, [u64; BLOCKS as usize / 64]>);

impl Unequal {
    pub(crate) fn add(&mut self, regions: impl IntoIterator<Item = u32>) {
        self.0.extend(regions.into_iter().map(|region| (region, [0; BLOCKS as usize / 64])));
    }

    pub(crate) fn has(&self, region: u32) -> bool {
        self.0.contains_key(&region)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// A block of the range may differ.
    pub(crate) fn touches(&self, offset: u64, length: u64) -> bool {
        let differs = |block: u64| {
            let region = u32::try_from(block / BLOCKS).unwrap_or(u32::MAX);
            self.0.get(&region).is_some_and(|equal| {
                let at = block % BLOCKS;
                equal.get((at / 64) as usize).is_some_and(|bits| bits >> (at % 64) & 1 == 0)
            })
        };
        !self.0.is_empty() && (offset / BLOCK_SIZE..(offset + length).div_ceil(BLOCK_SIZE)).any(differs)
    }

    /// The blocks of the range are equal now.
    fn made_equal(&mut self, offset: u64, length: u64) {
        for block in offset / BLOCK_SIZE..(offset + length).div_ceil(BLOCK_SIZE) {
            let region = u32::try_from(block / BLOCKS).unwrap_or(u32::MAX);
            let at = block % BLOCKS;
            if let Some(bits) = self.0.get_mut(&region).and_then(|equal| equal.get_mut((at / 64) as usize)) {
                *bits |= 1 << (at % 64);
            }
        }
    }

    /// Blocks of the range may differ, be it again.
    pub(crate) fn may_differ(&mut self, offset: u64, length: u64) {
        for block in offset / BLOCK_SIZE..(offset + length).div_ceil(BLOCK_SIZE) {
            let region = u32::try_from(block / BLOCKS).unwrap_or(u32::MAX);
            let at = block % BLOCKS;
            let equal = self.0.entry(region).or_insert([u64::MAX; BLOCKS as usize / 64]);
            if let Some(bits) = equal.get_mut((at / 64) as usize) {
                *bits &= !(1 << (at % 64));
            }
        }
    }

    /// Every unit of these regions, as what a leg that leaves may lack.
    pub(crate) fn units(&self) -> Units {
        self.0.keys().map(|region| (*region, u64::MAX)).collect()
    }

    fn take(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.0).into_keys().collect()
    }
}

impl<D: Doors, M: ManagerDoor> Segment<D, M> {
    /// Weighs the *unclean* flags of the legs that are open, before anything is read, and chooses the source: the lowest open leg
    /// that has not crashed since. If all that are open have, one that is missing may have more: it is waited for.
    pub(crate) fn settle(&self) {
        if self.settled.replace(true) {
            return;
        }
        let in_sync = self.members.borrow().which(|m| m.role == Role::InSync);
        let is_open = |leg: usize| self.legs.get(leg).filter(|leg| leg.session().is_some() || leg.candidate().is_some());
        let mut unclean = false;
        for leg in in_sync.iter().filter_map(|leg| is_open(*leg)) {
            leg.judged.set(true);
            unclean |= leg.session().and_then(|session| session.opened()).is_some_and(|opened| opened.unclean);
        }
        let all_here = in_sync.iter().all(|leg| is_open(*leg).is_some());
        if in_sync.len() == 1 || (all_here && !unclean) || mutation::is(Mutation::NotMadeEqual) {
            for leg in in_sync {
                self.adopt_marks(leg);
            }
            return;
        }
        self.exact.set(false);
        if !unclean {
            // Nothing is read before the missing one has been asked, or has left: it may hold what an earlier client wrote.
            for leg in in_sync {
                self.adopt_marks(leg);
            }
            return;
        }
        tracing::info!(segment = self.index, "the last client did not close cleanly: legs are made equal where it had written");
        for leg in in_sync {
            self.set_equal(leg, false);
            self.add_unequal(leg);
        }
        self.choose_source();
    }

    /// The hot regions that a leg has told cool like those of any other write.
    fn adopt_marks(&self, leg: usize) {
        let Some(leg) = self.legs.get(leg) else { return };
        let hot: Vec<u32> = leg.map.borrow().iter().flat_map(LegMap::hot).collect();
        self.adopt_hot(hot);
    }

    /// With only one leg left in sync, or with all of them asked and equal, nothing is left of an earlier client.
    pub(crate) fn look_equal(&self) {
        if self.exact.get() {
            return;
        }
        let members = self.members.borrow().clone();
        let in_sync = members.which(|m| matches!(m.role, Role::InSync | Role::Leaving | Role::Left));
        let asked = in_sync.iter().all(|leg| self.legs.get(*leg).is_some_and(|leg| leg.judged.get()));
        if in_sync.len() == 1 {
            // The others have left: their maps have all in which they may differ.
            self.all_equal();
        } else if asked && members.all_equal() && self.unequal.borrow().len() == 0 {
            self.exact.set(true);
        }
    }

    /// An in-sync leg has not been asked yet what an earlier client may have written to it.
    pub(crate) fn someone_unasked(&self) -> bool {
        let in_sync = self.members.borrow().which(|m| matches!(m.role, Role::InSync | Role::Leaving));
        in_sync.iter().any(|leg| self.legs.get(*leg).is_some_and(|leg| !leg.judged.get()))
    }

    /// See [`Segment::settle`]; again when another leg has come.
    fn choose_source(&self) {
        let in_sync = self.members.borrow().which(|m| m.role == Role::InSync);
        let equal = |leg: &usize| self.members.borrow().legs.get(*leg).is_some_and(|m| m.equal);
        if self.exact.get() || in_sync.iter().any(equal) {
            return;
        }
        let open = |leg: usize| self.legs.get(leg).filter(|leg| leg.session().is_some() && !leg.lost_writes.get());
        let whole = in_sync.iter().copied().find(|leg| open(*leg).is_some() && self.has_lost_nothing(*leg));
        let all_here = in_sync.iter().all(|leg| open(*leg).is_some());
        if let Some(source) = whole.or(in_sync.first().copied().filter(|_| all_here)) {
            self.members.borrow_mut().became_source(source);
        }
    }

    /// A member has come, with its own flag and marks.
    pub(crate) fn note_opened(&self, leg: usize, unclean: bool) {
        let Some(facts) = self.legs.get(leg) else { return };
        if !self.settled.get() {
            return;
        }
        let in_sync = self.members.borrow().which(|m| m.role == Role::InSync);
        if !facts.judged.replace(true) && unclean && in_sync.iter().any(|other| *other != leg) {
            self.exact.set(false);
            self.set_equal(leg, false);
            self.add_unequal(leg);
        } else if self.unequal.borrow().len() == 0 {
            self.adopt_marks(leg);
        } else {
            self.add_unequal(leg);
        }
        self.choose_source();
        self.look_equal();
    }

    fn add_unequal(&self, leg: usize) {
        let Some(facts) = self.legs.get(leg) else { return };
        match &*facts.map.borrow() {
            Some(map) => self.unequal.borrow_mut().add(map.hot()),
            // It is there and keeps no marks: all of it may differ.
            None if facts.judged.get() => self.unequal.borrow_mut().add(regions_of(0, self.length)),
            None => {}
        }
    }

    /// By what its lender told when the leg was opened, it has not crashed while regions were hot.
    fn has_lost_nothing(&self, leg: usize) -> bool {
        self.legs.get(leg).is_some_and(|leg| leg.map.borrow().as_ref().is_some_and(|map| !map.lost))
    }

    /// Marks a leg as equal to the others, or not.
    pub(crate) fn set_equal(&self, leg: usize, equal: bool) {
        let whole = equal || self.has_lost_nothing(leg);
        if let Some(m) = self.members.borrow_mut().legs.get_mut(leg) {
            (m.equal, m.whole) = (equal, whole);
        }
    }

    /// The lender of a leg has told of its regions anew: one that may differ and has crashed has not every acknowledged write.
    pub(crate) fn weigh(&self, leg: usize) {
        let has_lost_nothing = self.has_lost_nothing(leg);
        if let Some(m) = self.members.borrow_mut().legs.get_mut(leg) {
            m.whole &= m.equal || has_lost_nothing;
        }
    }

    /// Makes the legs equal in all regions in which they may differ, in the background.
    pub(crate) fn start_equalising(self: &Rc<Self>) -> bool {
        self.equalising.set(Some((0, 0)));
        self.shared.equalising.begin();
        let segment = Rc::clone(self);
        self.shared.doors.spawn(async move {
            let outcome = segment.equalise_all().await;
            segment.equalising.set(None);
            match outcome {
                Ok(()) => segment.all_equal(),
                Err(error) => {
                    tracing::warn!(segment = segment.index, %error, "the legs were not made equal");
                    segment.shared.pause(crate::supervise::RETRY_PAUSE).await;
                }
            }
            segment.shared.changed.notify();
        });
        true
    }

    /// The in-sync legs are equal, durably: from now on their marks are as those of any other write.
    pub(crate) fn all_equal(&self) {
        let regions = self.unequal.borrow_mut().take();
        tracing::info!(segment = self.index, regions = regions.len(), "all legs are equal");
        self.adopt_hot(regions);
        self.exact.set(true);
        let in_sync = self.members.borrow().which(|m| m.role == Role::InSync);
        for leg in in_sync {
            self.set_equal(leg, true);
        }
        self.equalise_due.set(true);
    }

    /// How far from there on blocks are alike in whether the legs may differ in them, and whether they may (H3). A read-only client
    /// reads its source as it is.
    pub(crate) fn may_differ_at(&self, offset: u64, length: u64) -> (u64, bool) {
        if self.shared.info.read_only || self.exact.get() {
            return (length, false);
        }
        if self.someone_unasked() {
            return (length, true);
        }
        let unequal = self.unequal.borrow();
        let differs = |at: u64| unequal.touches(at, BLOCK_SIZE);
        let first = differs(offset);
        let end = (offset..offset + length).step_by(BLOCK_SIZE as usize).find(|at| differs(*at) != first);
        (end.map_or(length, |end| end - offset), first)
    }

    async fn equalise_all(self: &Rc<Self>) -> Result<(), VolumeError> {
        let mut done = 0;
        // More may be added meanwhile, by a leg that comes late.
        loop {
            let next = self.unequal.borrow().0.keys().copied().find(|region| {
                let (start, length) = self.region_span(*region);
                self.unequal.borrow().touches(start, length)
            });
            let all = self.unequal.borrow().len() as u64 * REGION_SIZE;
            let Some(region) = next else { return Ok(()) };
            let (start, length) = self.region_span(region);
            for at in (start..start + length).step_by(REQUEST_SIZE_MAX as usize) {
                let part = REQUEST_SIZE_MAX.min(start + length - at);
                self.shared.equalising.take(&self.shared, part).await;
                self.make_equal(at, part, false).await?;
            }
            done += length;
            self.equalising.set(Some((done, all)));
        }
    }

    fn region_span(&self, region: u32) -> (u64, u64) {
        let start = u64::from(region) * REGION_SIZE;
        (start, REGION_SIZE.min(self.length.saturating_sub(start)))
    }

    /// True if nothing has to be made equal before a range is read.
    pub(crate) fn is_equal(&self, offset: u64, length: u64) -> bool {
        // A read-only client can neither copy nor leave anybody out: it reads the source only.
        self.shared.info.read_only
            || self.exact.get()
            || (!self.someone_unasked() && !self.unequal.borrow().touches(offset, length))
    }

    /// Makes a range of blocks the same at all in-sync legs, durably, if they may differ there (H3). With `held` the caller has
    /// its range lock, and runs to its end; otherwise the caller may go away (W2).
    pub(crate) async fn make_equal(self: &Rc<Self>, offset: u64, length: u64, held: bool) -> Result<(), VolumeError> {
        loop {
            let seen = self.shared.changed.version();
            self.check()?;
            if self.is_equal(offset, length) {
                return Ok(());
            }
            // One that has left too, until the labels say so: what it lacks is known only by these marks (S1).
            let in_sync = self.members.borrow().which(|m| matches!(m.role, Role::InSync | Role::Leaving | Role::Left));
            let source = self.members.borrow().which(|m| m.role == Role::InSync && m.equal).first().copied();
            let here = in_sync.iter().filter_map(|leg| Some((*leg, self.legs.get(*leg)?.session()?)));
            let legs: Vec<(usize, Rc<Session<D>>)> = here.collect();
            let Some(source) = source.filter(|_| legs.len() == in_sync.len() && !self.someone_unasked()) else {
                // One that is away comes back, or leaves (S1).
                if self.reads_expired.get() {
                    return Err(self.expired());
                }
                self.shared.changed.changed(seen).await;
                continue;
            };
            let outcome = if held {
                self.equalise_range(offset, length, source, &legs).await
            } else {
                let (segment, legs) = (Rc::clone(self), legs.clone());
                let work = async move {
                    let blocks = BlockRange::covering(segment.start + offset, length);
                    let _guard = segment.shared.ranges.lock(blocks).await;
                    Ok(segment.equalise_range(offset, length, source, &legs).await)
                };
                self.shared.detached(work).await?
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err((_, SessionError::Lost)) => {}
                Err((leg, SessionError::Refused(status, text))) => {
                    let Some((_, session)) = legs.iter().find(|(index, _)| *index == leg) else { continue };
                    let name = self.legs.get(leg).map(|leg| leg.lender()).unwrap_or_default();
                    if let Some(error) = self.judge(session, status, &text, &name)
                        && !self.leaves_broken(leg, &error.text)
                    {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Compares, copies, and flushes, all in the same sessions: a lender that restarts in between has lost the copy.
    async fn equalise_range(
        &self,
        offset: u64,
        length: u64,
        source: usize,
        legs: &[(usize, Rc<Session<D>>)],
    ) -> Result<(), (usize, SessionError)> {
        if legs.len() > 1 {
            self.compare_and_copy(offset, length, source, legs).await?;
        }
        // Before the range lock is given up: a change that fails may make them differ again.
        self.unequal.borrow_mut().made_equal(offset, length);
        Ok(())
    }

    async fn compare_and_copy(
        &self,
        offset: u64,
        length: u64,
        source: usize,
        legs: &[(usize, Rc<Session<D>>)],
    ) -> Result<(), (usize, SessionError)> {
        let verified = join_all(legs.iter().map(|(leg, session)| async move {
            let blocks = session.verify(offset, length).await.map_err(|error| (*leg, error))?;
            // Without checksums nothing proves that its blocks are the same.
            let unknown: Checked =
                Some(VerifyBlock { sum: u32::try_from(*leg).unwrap_or(u32::MAX), state: BlockState::Computed });
            Ok((*leg, blocks.unwrap_or_else(|| vec![unknown; (length / BLOCK_SIZE) as usize])))
        }));
        let verified = verified.await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut written = false;
        for (at, span, from, to) in copies(offset, &verified, source) {
            let session = |wanted: usize| legs.iter().find(|(leg, _)| *leg == wanted).map(|(_, session)| session);
            let Some(reading) = session(from) else { continue };
            let size = u32::try_from(span).unwrap_or(u32::MAX);
            let Some(data) = reading.read(at, size).await.map_err(|error| (from, error))?.sound() else {
                reading.kill(crate::session::End::Lost("the source of a copy delivers wrong bytes".into()));
                return Err((from, SessionError::Lost));
            };
            tracing::info!(segment = self.index, from, ?to, at, span, "the legs differed");
            let change = Change::write(at, data, false);
            for leg in to {
                let (Some(writing), Some(facts)) = (session(leg), self.legs.get(leg)) else { continue };
                self.send_beside(&facts, writing, &change).await.map_err(|error| (leg, error))?;
                written = true;
            }
        }
        // Blocks that are the same need not be durable: an earlier client may have left them so, or a copy whose answer was lost.
        if !written && self.log.borrow().is_durable_beside() {
            return Ok(());
        }
        // The source too: what is read must not be older after the next crash.
        let flush = self.log.borrow_mut().mark();
        let flushes = legs.iter().map(|(leg, session)| async move {
            let facts = self.legs.get(*leg).ok_or((*leg, SessionError::Lost))?;
            self.send(&facts, session, &Change::Flush).await.map_err(|error| (*leg, error))
        });
        join_all(flushes).await.into_iter().collect::<Result<(), _>>()?;
        self.log.borrow_mut().flushed_beside(flush);
        Ok(())
    }
}

/// What is to be copied where: stretches of blocks, from which leg, to which legs. Per block, a leg whose kept checksum fits goes
/// before one that fits its last checkpoint only, and that before one whose checksum was computed now; then the source, then the
/// lowest number. One that does not fit its kept checksum, or that cannot be read, is nobody's source.
pub(crate) fn copies(offset: u64, legs: &[(usize, Vec<Checked>)], source: usize) -> Vec<(u64, u64, usize, Vec<usize>)> {
    let mut copies: Vec<(u64, u64, usize, Vec<usize>)> = Vec::new();
    let blocks = legs.iter().map(|(_, blocks)| blocks.len()).min().unwrap_or(0);
    for block in 0..blocks {
        let at = offset + block as u64 * BLOCK_SIZE;
        let of_legs: Vec<(usize, Checked)> = legs.iter().filter_map(|(leg, all)| Some((*leg, *all.get(block)?))).collect();
        let worth = |state: BlockState| match state {
            BlockState::Matches => 0,
            BlockState::Proven => 1,
            BlockState::Computed | BlockState::Differs => 2,
        };
        let rank = |(leg, block): &(usize, VerifyBlock)| (worth(block.state), *leg != source, *leg);
        let known: Vec<(usize, VerifyBlock)> = of_legs.iter().filter_map(|(leg, block)| Some((*leg, (*block)?))).collect();
        let best = known.iter().filter(|(_, b)| b.state != BlockState::Differs).min_by_key(|leg| rank(leg));
        let Some((from, best)) = best else { continue };
        // K2: a computed checksum never wins over a kept one, also where the data of that leg has gone wrong.
        let is_kept_elsewhere = |(_, b): &(usize, VerifyBlock)| b.state == BlockState::Differs && b.sum != best.sum;
        if best.state == BlockState::Computed && known.iter().any(is_kept_elsewhere) {
            continue;
        }
        let is_same = |block: &Checked| block.is_some_and(|b| b.sum == best.sum && b.state != BlockState::Differs);
        let to: Vec<usize> = of_legs.iter().filter(|(_, block)| !is_same(block)).map(|(leg, _)| *leg).collect();
        if to.is_empty() {
            continue;
        }
        match copies.last_mut() {
            Some((start, length, source, targets)) if *start + *length == at && source == from && *targets == to => {
                *length += BLOCK_SIZE;
            }
            _ => copies.push((at, BLOCK_SIZE, *from, to)),
        }
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h3_the_source_of_a_block_is_the_leg_whose_kept_checksum_fits_then_the_chosen_one_then_the_lowest() {
        use BlockState::{Computed, Differs, Matches, Proven};
        let block = |sum, state| VerifyBlock { sum, state };
        let pick = |one: VerifyBlock, other: VerifyBlock, source| {
            let copies = copies(0, &[(0, vec![Some(one)]), (1, vec![Some(other)])], source);
            copies.first().map(|(_, _, from, to)| (*from, to.clone()))
        };
        assert_eq!(pick(block(1, Matches), block(1, Matches), 0), None);
        assert_eq!(pick(block(1, Matches), block(1, Computed), 0), None);
        assert_eq!(pick(block(1, Computed), block(2, Matches), 0), Some((1, vec![0])));
        assert_eq!(pick(block(1, Matches), block(2, Matches), 1), Some((1, vec![0])));
        assert_eq!(pick(block(1, Computed), block(2, Computed), 0), Some((0, vec![1])));
        assert_eq!(pick(block(1, Proven), block(2, Matches), 0), Some((1, vec![0])), "a power cut may have set it back");
        assert_eq!(pick(block(1, Computed), block(2, Proven), 0), Some((1, vec![0])), "it has not gone wrong");
        assert_eq!(pick(block(1, Proven), block(1, Matches), 0), None);
        assert_eq!(pick(block(1, Differs), block(2, Computed), 0), None, "a computed checksum never wins over a kept one");
        assert_eq!(pick(block(1, Differs), block(1, Computed), 0), Some((1, vec![0])));
        assert_eq!(pick(block(1, Differs), block(1, Matches), 0), Some((1, vec![0])), "rot is not equal");
        assert_eq!(pick(block(1, Differs), block(2, Differs), 0), None, "nobody's source");
        let unreadable = copies(0, &[(0, vec![None, None]), (1, vec![Some(block(1, Computed)), None])], 0);
        assert_eq!(unreadable, [(0, BLOCK_SIZE, 1, vec![0])]);
    }

    #[test]
    fn h3_blocks_that_were_made_equal_are_not_asked_for_again() {
        let mut unequal = Unequal::default();
        unequal.add([1]);
        assert!(!unequal.touches(0, REGION_SIZE) && unequal.touches(0, REGION_SIZE + 1));
        unequal.made_equal(REGION_SIZE, 8192);
        assert!(!unequal.touches(REGION_SIZE, 8192) && unequal.touches(REGION_SIZE, 8193));
        assert_eq!(unequal.units(), Units::from([(1, u64::MAX)]));
    }
}
