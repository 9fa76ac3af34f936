//! Reads with checksums (K1, K2): the kept ones, whatever the data is; computed ones where none are kept. Nothing is judged
//! here: whoever asked compares.

use std::ops::Range;
use std::rc::Rc;

use futures_util::future::join;
use sublet_doors::{Buffer, Doors};
use sublet_types::SliceId;
use sublet_types::limits::{BLOCK_SIZE, REQUEST_SIZE_MAX};
use sublet_wire::checksum::table_size;
use sublet_wire::message::{BlockState, VERIFY_SIZE_MAX, VerifyBlock};

use crate::area::{Area, Inner};
use crate::error::{AreaError, AreaErrorKind};
use crate::heat::regions_in;
use crate::sums::{BLOCKS, SumPage, ZERO_SUM};
use crate::table::State;

/// What a read knows of its data besides them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadInfo {
    /// At least one checksum was not kept but computed from the data now: it proves nothing about them (K2).
    pub recomputed: bool,
}

/// A read under way; it is taken off the list even if nobody waits for its end.
struct Reading<'a, D: Doors> {
    inner: &'a Inner<D>,
    id: u64,
    ended: bool,
}

impl<D: Doors> Reading<'_, D> {
    /// The blocks beside which writes ran.
    fn end(mut self) -> Vec<Range<u64>> {
        self.ended = true;
        self.inner.regions.active.borrow_mut().end(self.id, self.inner.doors.now())
    }
}

impl<D: Doors> Drop for Reading<'_, D> {
    fn drop(&mut self) {
        if !self.ended {
            self.inner.regions.active.borrow_mut().end(self.id, self.inner.doors.now());
        }
    }
}

fn put(sums: &mut [u8], block: usize, sum: u32) {
    if let Some(place) = sums.get_mut(block * 4..block * 4 + 4) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

/// Makes the checksum of a block one that its data does not fit.
pub(crate) fn spoil(sums: &mut [u8], block: usize) {
    sums.iter_mut().skip(block * 4).take(4).for_each(|byte| *byte = !*byte);
}

/// The part of a read that lies in one region.
struct Part {
    region: usize,
    /// The first of its blocks in the region, and in the read.
    first: usize,
    at: usize,
    count: usize,
}

fn parts(at: u64, length: u64) -> impl Iterator<Item = Part> {
    let (first, end) = ((at / BLOCK_SIZE) as usize, ((at + length) / BLOCK_SIZE) as usize);
    regions_in(at, length).map(move |region| {
        let begin = first.max(region * BLOCKS);
        let count = end.min((region + 1) * BLOCKS) - begin;
        Part { region, first: begin - region * BLOCKS, at: begin - first, count }
    })
}

impl<D: Doors> Inner<D> {
    /// Reads a range of the area with its checksums. The answer names the blocks (counted from the beginning of the read)
    /// whose checksum was not kept.
    pub async fn read_summed(
        &self,
        at: u64,
        buffer: Buffer,
        range: Range<usize>,
        sums: &mut [u8],
    ) -> (Result<Vec<usize>, AreaError>, Buffer) {
        let (result, mut buffer) = self.read_beside(at, buffer, range.clone(), sums).await;
        let (mut open, beside) = match result {
            Ok(read) => read,
            Err(error) => return (Err(error), buffer),
        };
        // K1: nothing vouches for what was read beside a write, so that is read again, and nothing else of it is.
        for blocks in beside {
            let part = range.start + blocks.start * BLOCK_SIZE as usize..range.start + blocks.end * BLOCK_SIZE as usize;
            let Some(own) = sums.get_mut(blocks.start * 4..blocks.end * 4) else { continue };
            let result;
            let again = self.read_beside(at + blocks.start as u64 * BLOCK_SIZE, buffer, part.clone(), own);
            (result, buffer) = Box::pin(again).await;
            let (computed, still) = match result {
                Ok(read) => read,
                Err(error) => return (Err(error), buffer),
            };
            open.retain(|block| !blocks.contains(block));
            open.extend(computed.iter().map(|block| blocks.start + block));
            // Their writer is at it all the time: old or new bytes. Nothing is computed for them, for that would vouch for bytes
            // that nobody ever wrote; what does not fit the kept checksum is read again by whoever asked, under the range lock.
            open.extend(still.into_iter().flatten().map(|block| blocks.start + block));
        }
        open.sort_unstable();
        open.dedup();
        (Ok(open), buffer)
    }

    /// Reads once. The answer has the blocks whose checksum was not kept, and those beside which writes ran; both are counted
    /// from the beginning of the read.
    async fn read_beside(
        &self,
        at: u64,
        buffer: Buffer,
        range: Range<usize>,
        sums: &mut [u8],
    ) -> (Result<(Vec<usize>, Vec<Range<usize>>), AreaError>, Buffer) {
        let length = range.len() as u64;
        let first = at / BLOCK_SIZE;
        let id = self.regions.active.borrow_mut().begin_read(first..first + length / BLOCK_SIZE);
        let reading = Reading { inner: self, id, ended: false };
        let data = self.read_data(at, buffer, range.clone());
        let ((result, buffer), known) = join(data, self.known_sums(at, length, sums)).await;
        let beside = reading.end();
        let beside: Vec<Range<usize>> =
            beside.iter().map(|blocks| (blocks.start - first) as usize..(blocks.end - first) as usize).collect();
        let mut open = match result.and(known) {
            Ok(open) => open,
            Err(error) => return (Err(error), buffer),
        };
        if !open.is_empty() {
            let data = buffer.get(range).unwrap_or(&[]);
            open.retain(|block| {
                let from = block * BLOCK_SIZE as usize;
                let sum = crc32c::crc32c(data.get(from..from + BLOCK_SIZE as usize).unwrap_or(&[]));
                put(sums, *block, sum);
                beside.iter().any(|blocks| blocks.contains(block)) || !self.proves(first + *block as u64, sum)
            });
        }
        (Ok((open, beside)), buffer)
    }

    /// Fills in the checksums that are kept, and names the blocks without one. A page that the disk does not deliver is an
    /// error, and no reason to go without it: the data may be wrong, too (K1).
    async fn known_sums(&self, at: u64, length: u64, sums: &mut [u8]) -> Result<Vec<usize>, AreaError> {
        let mut open = Vec::new();
        for part in parts(at, length) {
            let blocks = part.at..part.at + part.count;
            let known = match self.hot_sums(&part, sums, &mut open) {
                Some(()) => continue,
                None if self.regions.record(part.region).state == State::Blank => {
                    blocks.for_each(|block| put(sums, block, ZERO_SUM));
                    continue;
                }
                None if self.regions.hot.borrow().contains_key(&part.region) => None,
                None => match self.cached_sums(part.region) {
                    Some(page) => Some(page),
                    None => Box::pin(self.cold_sums(part.region)).await?,
                },
            };
            match known {
                Some(page) => {
                    for (block, sum) in blocks.zip(page.0.iter().skip(part.first)) {
                        put(sums, block, *sum);
                    }
                }
                None => {
                    Box::pin(self.load_checkpoint(part.region)).await?;
                    if self.hot_sums(&part, sums, &mut open).is_none() {
                        open.extend(blocks);
                    }
                }
            }
        }
        Ok(open)
    }

    /// The checksums of a hot region whose checksums are in memory.
    fn hot_sums(&self, part: &Part, sums: &mut [u8], open: &mut Vec<usize>) -> Option<()> {
        let hot = self.regions.hot.borrow();
        let hot = hot.get(&part.region)?;
        let page = hot.sums.as_ref()?;
        for (n, sum) in page.0.iter().skip(part.first).take(part.count).enumerate() {
            if hot.kept.get(part.first + n) {
                put(sums, part.at + n, *sum);
            } else {
                open.push(part.at + n);
            }
        }
        Some(())
    }

    /// True if the checksum of a block's data is the one of the last checkpoint: it has not gone wrong since (K2), and is kept.
    fn proves(&self, block: u64, sum: u32) -> bool {
        let (region, block) = (block as usize / BLOCKS, block as usize % BLOCKS);
        let mut hot = self.regions.hot.borrow_mut();
        let Some(hot) = hot.get_mut(&region) else { return false };
        let proved = hot.guess && hot.sums.as_ref().and_then(|page| page.0.get(block)) == Some(&sum);
        if proved {
            hot.kept.set(block, true);
            hot.proven.set(block, true);
        }
        proved
    }

    /// True if a block is as it was at the last checkpoint before a crash, and may have been written since: the write may be among
    /// those that were lost. Until the legs are equal, one that was written later is worth more (H3).
    fn may_be_old(&self, block: u64) -> bool {
        let (region, block) = (block as usize / BLOCKS, block as usize % BLOCKS);
        self.regions.hot.borrow().get(&region).is_some_and(|hot| hot.lost && hot.proven.get(block))
    }

    /// False while blocks of a hot region lack checksums and computed ones must not take their place: its page was lost, the
    /// data may have gone wrong as well, and the other legs know better (K2).
    pub fn can_complete(&self, region: usize) -> bool {
        !self.regions.record(region).unproved || self.regions.hot.borrow().get(&region).is_some_and(|hot| hot.kept.all())
    }

    /// Computes the checksums of a hot region that are not kept. None if it is not hot any more, or cannot be read, or if the
    /// data proves nothing.
    pub async fn complete(&self, region: usize) -> Option<Rc<SumPage>> {
        self.load_checkpoint(region).await.ok()?;
        if !self.can_complete(region) {
            return None;
        }
        let at = (region * BLOCKS) as u64 * BLOCK_SIZE;
        let step = REQUEST_SIZE_MAX as usize / BLOCK_SIZE as usize;
        for first in (0..BLOCKS).step_by(step) {
            let kept = |hot: &crate::regions::Hot| (first..first + step).all(|block| hot.kept.get(block));
            if self.regions.hot.borrow().get(&region).is_none_or(kept) {
                continue;
            }
            let mut sums = vec![0; step * 4];
            let from = at + first as u64 * BLOCK_SIZE;
            let buffer = Buffer::new(REQUEST_SIZE_MAX as usize);
            let (result, _) = self.read_summed(from, buffer, 0..REQUEST_SIZE_MAX as usize, &mut sums).await;
            let computed = result.ok()?;
            let mut hot = self.regions.hot.borrow_mut();
            let hot = hot.get_mut(&region).filter(|hot| hot.cooling)?;
            for block in computed {
                let sum = sums.get(block * 4..block * 4 + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)?;
                hot.kept.set(first + block, true);
                *hot.sums.as_mut()?.0.get_mut(first + block)? = sum;
            }
        }
        let hot = self.regions.hot.borrow();
        let hot = hot.get(&region).filter(|hot| hot.cooling && hot.kept.all())?;
        hot.sums.as_ref().map(|page| Rc::new(SumPage::clone(page)))
    }
}

impl<D: Doors> Area<D> {
    /// What the checksums of a range of at most 4 MiB are worth: reads the data and compares.
    ///
    /// # Errors
    /// If the range is longer, or what the disk says.
    pub async fn verify(&self, slice: SliceId, offset: u64, length: u64) -> Result<Vec<VerifyBlock>, AreaError> {
        if length > VERIFY_SIZE_MAX {
            let text = format!("at most {VERIFY_SIZE_MAX} bytes are verified at once, not {length}");
            return Err(AreaError::new(AreaErrorKind::OutOfRange, text));
        }
        let at = self.inner.locate(slice, offset, length)?;
        let mut answer = Vec::with_capacity((length / BLOCK_SIZE) as usize);
        let mut done = 0;
        while done < length {
            let step = REQUEST_SIZE_MAX.min(length - done) as usize;
            let mut sums = vec![0; table_size(step)];
            let (computed, buffer) = self.inner.read_summed(at + done, Buffer::new(step), 0..step, &mut sums).await;
            let mut computed = computed?.into_iter().peekable();
            let blocks = buffer.chunks_exact(BLOCK_SIZE as usize).zip(sums.chunks_exact(4)).enumerate();
            answer.extend(blocks.map(|(n, (data, sum))| {
                let sum = u32::from_le_bytes(sum.try_into().unwrap_or_default());
                let block = (at + done) / BLOCK_SIZE + n as u64;
                let state = if computed.next_if_eq(&n).is_some() {
                    BlockState::Computed
                } else if crc32c::crc32c(data) == sum {
                    if self.inner.may_be_old(block) { BlockState::Proven } else { BlockState::Matches }
                } else {
                    BlockState::Differs
                };
                VerifyBlock { sum, state }
            }));
            done += step as u64;
        }
        Ok(answer)
    }
}
