//! Before a write: its regions are hot, durably (H1), and what stale legs miss is noted (S3). After it: its checksums.

use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use futures_util::future::{join, try_join_all};
use sublet_api::order::SliceFacts;
use sublet_doors::disk::Zero;
use sublet_doors::{Buffer, DiskFile, Doors};
use sublet_types::SliceId;
use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE};
use sublet_types::mutation::{self, Mutation};

use crate::area::Inner;
use crate::error::{AreaError, AreaErrorKind};
use crate::layout::PAGE_SIZE;
use crate::lease::no_slice;
use crate::regions::Hot;
use crate::sums::{BLOCKS, BlockBits, SumPage, ZERO_SUM};
use crate::table::State;

/// The regions that a range of the area touches.
pub(crate) fn regions_in(offset: u64, length: u64) -> Range<usize> {
    (offset / REGION_SIZE) as usize..(offset + length).div_ceil(REGION_SIZE) as usize
}

/// Regions that are made hot ahead of a writer who goes on from one region to the next, so that it need not wait at each.
const AHEAD: usize = 4;

/// The checksums that a write leaves behind.
#[derive(Clone, Copy)]
pub(crate) enum NewSums<'a> {
    /// Four bytes for each block.
    Table(&'a [u8]),
    /// Those of zeroes.
    Zeroes,
}

/// A write under way. Dropped before its end was told, nobody knows what the disk holds there, or when.
pub(crate) struct Writing<D: Doors> {
    inner: Rc<Inner<D>>,
    id: u64,
    at: u64,
    length: u64,
    ended: bool,
}

impl<D: Doors> Writing<D> {
    /// The write has ended; none if it failed, so that its blocks may hold anything.
    pub fn end(mut self, sums: Option<NewSums<'_>>) {
        self.ended = true;
        self.finish(sums, false);
    }

    fn finish(&self, sums: Option<NewSums<'_>>, abandoned: bool) {
        let regions = &self.inner.regions;
        let now = self.inner.doors.now();
        regions.active.borrow_mut().end(self.id, now);
        regions.ended.set(regions.ended.get() + 1);
        let mut hot = regions.hot.borrow_mut();
        let first = self.at / BLOCK_SIZE;
        let end = first + self.length / BLOCK_SIZE;
        for region in regions_in(self.at, self.length) {
            let Some(hot) = hot.get_mut(&region) else { continue };
            let begin = (region * BLOCKS) as u64;
            hot.writes = hot.writes.saturating_sub(1);
            hot.written = regions.ended.get();
            hot.used = now;
            hot.changed = true;
            hot.tail |= end >= begin + BLOCKS as u64;
            hot.abandoned |= abandoned;
            for block in first.max(begin)..end.min(begin + BLOCKS as u64) {
                let sum = match sums {
                    Some(NewSums::Zeroes) => Some(ZERO_SUM),
                    Some(NewSums::Table(table)) => {
                        let at = (block - first) as usize * 4;
                        table.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
                    }
                    None => None,
                };
                let block = (block - begin) as usize;
                hot.kept.set(block, sum.is_some());
                hot.proven.set(block, false);
                if let Some((place, sum)) = hot.sums.as_mut().and_then(|page| page.0.get_mut(block)).zip(sum) {
                    *place = sum;
                }
            }
        }
    }
}

impl<D: Doors> Drop for Writing<D> {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(None, true);
        }
    }
}

impl<D: Doors> Inner<D> {
    /// Begins a write to a range of the area that lies in the slice.
    pub async fn begin_write(self: &Rc<Self>, slice: SliceId, at: u64, length: u64) -> Result<Writing<D>, AreaError> {
        let regions = &self.regions;
        let range = regions_in(at, length);
        let _pinned = regions.pin(range.clone());
        loop {
            let mut cold = range.clone().filter(|region| !regions.is_ready(*region)).peekable();
            if cold.peek().is_none() {
                break;
            }
            Box::pin(try_join_all(cold.map(|region| self.heat(slice, region)))).await?;
        }
        // From here to the end of this function nothing else runs: a region that is ready is being written now.
        for region in range {
            if let Some(hot) = regions.hot.borrow_mut().get_mut(&region) {
                hot.writes += 1;
                hot.cooling = false;
            }
        }
        if !mutation::is(Mutation::MissedNotNoted) {
            regions.maps.borrow_mut().note(slice, at, length);
        }
        let first = at / BLOCK_SIZE;
        let id = regions.active.borrow_mut().begin_write(first..first + length / BLOCK_SIZE);
        self.heat_ahead(slice, at, length);
        Ok(Writing { inner: Rc::clone(self), id, at, length, ended: false })
    }

    /// If a write enters a region from the end of the one before it, makes the next ones hot. Those that are not written
    /// after all cool by themselves.
    fn heat_ahead(self: &Rc<Self>, slice: SliceId, at: u64, length: u64) {
        let entered = at.div_ceil(REGION_SIZE) as usize;
        let from_before = |region: usize| {
            region > 0 && self.regions.hot.borrow().get(&(region - 1)).is_some_and(|hot| hot.slice == slice && hot.tail)
        };
        if entered as u64 * REGION_SIZE >= at + length || !from_before(entered) {
            return;
        }
        let Some((own, _)) = self.regions_of(slice) else { return };
        let next = (entered + 1..own.end).take(AHEAD).filter(|region| !self.regions.hot.borrow().contains_key(region));
        let next: Vec<usize> = next.collect();
        if next.is_empty() || self.regions.hot_count(slice) > self.hot_share() / 2 {
            return;
        }
        for region in next {
            let own = Rc::clone(self);
            self.doors.spawn(async move {
                if let Err(error) = own.heat(slice, region).await {
                    tracing::debug!("a region ahead of a writer: {error}");
                }
            });
        }
    }

    /// Makes a region hot. Goes to its end although the caller may not wait for it.
    pub async fn heat(self: &Rc<Self>, slice: SliceId, region: usize) -> Result<(), AreaError> {
        let (first, ready) = self.regions.wait(region);
        if first {
            let own = Rc::clone(self);
            self.doors.spawn(async move {
                let result = own.heat_region(slice, region).await;
                if own.failed.borrow().is_some() {
                    own.note_failure().await;
                }
                own.regions.done(region, &result);
            });
        }
        ready.await.unwrap_or_else(|_| Err(AreaError::new(AreaErrorKind::Offline, "the server is stopping")))
    }

    async fn heat_region(self: &Rc<Self>, slice: SliceId, region: usize) -> Result<(), AreaError> {
        self.check_writable()?;
        self.check_lent(slice)?;
        if self.regions.hot.borrow().contains_key(&region) {
            // Found hot at the opening: only its last checkpoint is missing.
            let loaded = self.load_checkpoint(region).await;
            let Err(error) = loaded else { return Ok(()) };
            self.go_on_unproved(region, error).await?;
            if let Some(hot) = self.regions.hot.borrow_mut().get_mut(&region) {
                hot.sums.get_or_insert_with(|| SumPage::filled(0));
            }
            return Ok(());
        }
        self.make_room(slice).await?;
        let (sums, kept) = match self.regions.record(region).state {
            State::Blank => {
                self.zero_region(region).await?;
                self.mark_hot(region).await?;
                (SumPage::filled(ZERO_SUM), BlockBits::ALL)
            }
            State::Plain => {
                self.mark_hot(region).await?;
                (SumPage::filled(0), BlockBits::NONE)
            }
            State::Cold | State::Hot => {
                let (sums, marked) = join(self.cold_sums(region), self.mark_hot(region)).await;
                marked?;
                match sums {
                    Ok(Some(page)) => (Box::new(SumPage::clone(&page)), BlockBits::ALL),
                    Ok(None) => {
                        self.keep_unproved(region).await?;
                        (SumPage::filled(0), BlockBits::NONE)
                    }
                    Err(error) => {
                        self.go_on_unproved(region, error).await?;
                        (SumPage::filled(0), BlockBits::NONE)
                    }
                }
            }
        };
        self.regions.cache.borrow_mut().take(region);
        let hot = Hot::new(slice, Some(sums), kept, self.doors.now());
        self.regions.hot.borrow_mut().insert(region, hot);
        Ok(())
    }

    /// Whether the facts of the slice that a region lies in are like that.
    fn is_lent_so(&self, region: usize, so: impl Fn(&SliceFacts) -> bool) -> bool {
        let at = region as u64 * REGION_SIZE;
        let label = self.label.borrow();
        let own = label.slices.iter().find(|record| (record.facts.offset..record.end()).contains(&at));
        own.is_some_and(|record| so(&record.facts))
    }

    /// The volume of this region has other legs.
    fn has_other_legs(&self, region: usize) -> bool {
        self.is_lent_so(region, |facts| facts.legs > 1)
    }

    /// The checksum page of a region was lost, and another leg in sync knows what its data should be: whoever reads here is to be
    /// sent there (K1).
    pub fn is_doubted(&self, region: usize) -> bool {
        let is_known_elsewhere = |facts: &SliceFacts| {
            let mut legs = facts.in_sync.iter().enumerate();
            legs.any(|(leg, in_sync)| *in_sync && leg != facts.leg as usize)
        };
        self.regions.record(region).unproved && self.is_lent_so(region, is_known_elsewhere)
    }

    /// The checksum page of a region that is to be written cannot be read. Where other legs know what the data is worth, the
    /// write goes on: it needs no old checksums. Elsewhere nobody could tell rot any more (K1), so that is an error.
    async fn go_on_unproved(&self, region: usize, error: AreaError) -> Result<(), AreaError> {
        if !self.has_other_legs(region) {
            return Err(error);
        }
        if let Some(record) = self.regions.records.borrow_mut().get_mut(region) {
            record.unproved = true;
        }
        self.keep_unproved(region).await
    }

    /// That the checksum page of a region was lost is durable before the region is written: the mark of a hot region and a page
    /// that does not fit would look like any other crash after that, and its checksums would be computed (K2).
    async fn keep_unproved(&self, region: usize) -> Result<(), AreaError> {
        if !self.regions.record(region).unproved {
            return Ok(());
        }
        self.write_records(self.regions.place(region).0, &BTreeSet::from([region]), true).await
    }

    /// P2: a mark that was asked for ahead, by a session that has ended since, does not come after the slice was wiped. A wipe
    /// waits for those that passed here before it began.
    fn check_lent(&self, slice: SliceId) -> Result<(), AreaError> {
        let label = self.label.borrow();
        match label.find(slice) {
            Some(record) if record.wipe.is_none() => Ok(()),
            Some(_) => Err(AreaError::new(AreaErrorKind::Busy, format!("slice {} is being wiped", slice.short()))),
            None => Err(no_slice(slice, &label.name)),
        }
    }

    /// P1: on a device, a region that becomes written is zero where nothing is written. The mark follows, and sees to it that
    /// the zeroes are durable before it is.
    async fn zero_region(&self, region: usize) -> Result<(), AreaError> {
        let (piece, regions) = self.piece_of(region)?;
        if !piece.tracked || mutation::is(Mutation::RegionNotZeroed) {
            return Ok(());
        }
        let at = piece.data_at + (region - regions.first) as u64 * REGION_SIZE;
        let zeroed = piece.file.zero(at, REGION_SIZE, Zero::Keep).await;
        self.written("zeroing a region of", piece, zeroed).await
    }

    /// Reads the checksums that a region had at its last checkpoint before a crash. They prove a block that fits them.
    pub async fn load_checkpoint(&self, region: usize) -> Result<(), AreaError> {
        if self.regions.hot.borrow().get(&region).is_none_or(|hot| hot.sums.is_some()) {
            return Ok(());
        }
        let page = match self.regions.record(region).page {
            Some(sum) => self.read_sums(region, sum).await?,
            None => None,
        };
        if let Some(hot) = self.regions.hot.borrow_mut().get_mut(&region)
            && hot.sums.is_none()
        {
            hot.guess = page.is_some();
            hot.sums = Some(page.unwrap_or_else(|| SumPage::filled(0)));
        }
        Ok(())
    }

    /// The checksum page of a region, if it is whole. That the disk does not deliver it now says nothing about it.
    pub async fn read_sums(&self, region: usize, sum: u32) -> Result<Option<Box<SumPage>>, AreaError> {
        let (piece, regions) = self.piece_of(region)?;
        let at = piece.spec.offset + regions.reserve.sums((region - regions.first) as u64);
        let length = PAGE_SIZE as usize;
        let (result, buffer) = piece.file.read_at(at, Buffer::new(length), 0..length).await;
        result.map_err(|error| self.disk_error("reading checksums from", piece, &error))?;
        Ok(SumPage::decode(&buffer, sum))
    }

    /// The kept checksums of a region, if they are in memory.
    pub fn cached_sums(&self, region: usize) -> Option<Rc<SumPage>> {
        self.regions.record(region).page?;
        self.regions.cache.borrow().get(region)
    }

    /// The checksums of a region that is not hot, from memory or from its page. None if it has none: a damaged page is given
    /// up, and the region counts as written without checksums from then on; as unproved, where other legs could tell.
    pub async fn cold_sums(&self, region: usize) -> Result<Option<Rc<SumPage>>, AreaError> {
        loop {
            let Some(sum) = self.regions.record(region).page else { return Ok(None) };
            if let Some(page) = self.cached_sums(region) {
                return Ok(Some(page));
            }
            let waiting = self.regions.cache.borrow_mut().wait(region);
            if let Some(waiting) = waiting {
                // Whoever reads it may have been stopped: look again in any case.
                let _ = waiting.await;
                continue;
            }
            let _loading = Loading { inner: self, region };
            let page = self.read_sums(region, sum).await?.map(|page| Rc::new(*page));
            let record = self.regions.record(region);
            let same = record.page == Some(sum) && !self.regions.hot.borrow().contains_key(&region);
            match &page {
                Some(page) if same => self.regions.cache.borrow_mut().put(region, Rc::clone(page)),
                None if same => {
                    tracing::warn!(
                        "area {}: the checksums of region {region} are damaged; computed ones serve",
                        self.label().name
                    );
                    let unproved = self.has_other_legs(region);
                    if let Some(record) = self.regions.records.borrow_mut().get_mut(region) {
                        // One that has its hot mark already keeps that.
                        record.state = if record.state == State::Cold { State::Plain } else { record.state };
                        (record.page, record.unproved) = (None, unproved);
                    }
                }
                _ => {}
            }
            return Ok(page);
        }
    }
}

/// Tells those who wait for a checksum page, even if its reader was stopped.
struct Loading<'a, D: Doors> {
    inner: &'a Inner<D>,
    region: usize,
}

impl<D: Doors> Drop for Loading<'_, D> {
    fn drop(&mut self) {
        self.inner.regions.cache.borrow_mut().loaded(self.region);
    }
}
