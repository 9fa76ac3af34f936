//! Cooling (H2): what was written to a region is durable, its missed bits and checksums are durable, and then its hot mark is
//! cleared. The clearing needs no sync: until it is durable, the region is merely taken for hot after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use sublet_doors::{DiskFile, Doors, Tick};
use sublet_types::SliceId;
use sublet_types::drawn::{self, Drawn};
use sublet_types::limits::REGION_SIZE;

use crate::area::{Area, Inner, to_the_end};
use crate::error::AreaError;
use crate::record::SliceRecord;
use crate::regions::{HOT_MAX, HOT_SHARE_MIN, Hot};
use crate::sums::SumPage;
use crate::table::{Record, State};

/// Regions that cool together: they share their syncs.
const COOLED_AT_ONCE: usize = 64;
/// A region of a slice with one leg cools when it was not written for so long.
pub(crate) const IDLE: Duration = Duration::from_secs(5);
/// The checksums of a region that stays hot are written so often (K2).
pub(crate) const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// Regions with one leg that had to be read again after a crash to cool: so many at a time, in the background.
const READ_AT_ONCE: usize = 4;
/// As many of them cool at once when their slice is closed; the others cool later, in the background.
const READ_AT_CLOSE: usize = 32;

impl<D: Doors> Inner<D> {
    /// How many regions of a slice may be hot (H2).
    pub fn hot_share(&self) -> u32 {
        let slices = self.label.borrow().slices.len().max(1);
        let all = drawn::limit(Drawn::HotRegions, HOT_MAX.into()) as u32;
        (all / slices as u32).max(drawn::limit(Drawn::HotShare, HOT_SHARE_MIN.into()) as u32)
    }

    /// The regions of the area that a slice lies on, and how many legs its segment has.
    pub fn regions_of(&self, slice: SliceId) -> Option<(std::ops::Range<usize>, u32)> {
        let label = self.label.borrow();
        let facts = &label.find(slice)?.facts;
        let first = (facts.offset / REGION_SIZE) as usize;
        Some((first..first + (facts.length / REGION_SIZE) as usize, facts.legs))
    }

    /// A slice with one leg keeps to its share by itself: its oldest regions cool before another one becomes hot.
    pub async fn make_room(self: &Rc<Self>, slice: SliceId) -> Result<(), AreaError> {
        if self.regions_of(slice).is_none_or(|(_, legs)| legs != 1) || self.regions.hot_count(slice) < self.hot_share() {
            return Ok(());
        }
        let _one_at_a_time = self.regions.cooling.lock().await;
        let share = self.hot_share();
        if self.regions.hot_count(slice) < share {
            return Ok(());
        }
        let mut oldest: Vec<(Tick, usize)> = {
            let hot = self.regions.hot.borrow();
            let own = hot.iter().filter(|(_, hot)| hot.slice == slice && hot.writes == 0);
            let own = own.filter(|(region, _)| !self.regions.is_pinned(**region) && self.can_complete(**region));
            own.map(|(region, hot)| (hot.used, *region)).collect()
        };
        oldest.sort_unstable();
        let oldest: Vec<usize> = oldest.into_iter().take((share as usize / 4).clamp(1, COOLED_AT_ONCE)).map(|(_, r)| r).collect();
        self.cool_batch(slice, &oldest).await
    }

    /// Cools what can be cooled of these regions of a slice. The caller holds `cooling`.
    async fn cool_batch(self: &Rc<Self>, slice: SliceId, batch: &[usize]) -> Result<(), AreaError> {
        self.check_writable()?;
        let quiet =
            |region: usize, hot: &Hot| hot.slice == slice && hot.writes == 0 && !hot.abandoned && !self.regions.is_pinned(region);
        let newest = {
            let hot = self.regions.hot.borrow();
            let own = batch.iter().filter_map(|region| Some((*region, hot.get(region)?)));
            own.filter(|(region, hot)| quiet(*region, hot)).map(|(_, hot)| hot.written).max()
        };
        let Some(newest) = newest else { return Ok(()) };
        if newest > self.regions.flushed.get() {
            self.sync_all().await?;
        }
        let flushed = self.regions.flushed.get();
        let mut chosen = Vec::with_capacity(batch.len());
        for region in batch {
            if let Some(hot) = self.regions.hot.borrow_mut().get_mut(region)
                && quiet(*region, hot)
                && hot.written <= flushed
            {
                hot.cooling = true;
                chosen.push(*region);
            }
        }
        let result = self.cool_chosen(slice, &chosen).await;
        for region in chosen {
            if let Some(hot) = self.regions.hot.borrow_mut().get_mut(&region) {
                hot.cooling = false;
            }
        }
        result
    }

    async fn cool_chosen(&self, slice: SliceId, chosen: &[usize]) -> Result<(), AreaError> {
        let mut ready = BTreeMap::new();
        for region in chosen {
            if let Some(page) = self.complete(*region).await {
                ready.insert(*region, page);
            } else if let Some(hot) = self.regions.hot.borrow_mut().get_mut(region).filter(|hot| hot.cooling) {
                hot.failed = hot.failed.saturating_add(1);
            }
        }
        // S3: a region stays hot until its missed bits are durable.
        let regions: BTreeSet<usize> = ready.keys().copied().collect();
        let missed = self.store_bits(slice, &regions, None).await?;
        let saved = self.save_sums(&ready).await?;
        let mut cooled: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (region, page) in ready {
            let Some(sum) = saved.get(&region) else { continue };
            // A write that came meanwhile has taken it back.
            if self.regions.hot.borrow().get(&region).is_none_or(|hot| !hot.cooling) {
                continue;
            }
            self.regions.hot.borrow_mut().remove(&region);
            self.regions.maps.borrow_mut().written(slice, region);
            self.regions.cache.borrow_mut().put(region, page);
            let missed = missed.get(&region).copied().unwrap_or(0);
            if let Some(record) = self.regions.records.borrow_mut().get_mut(region) {
                *record = Record { state: State::Cold, missed, page: Some(*sum), unproved: false };
            }
            cooled.entry(self.regions.place(region).0).or_default().insert(region);
        }
        for (piece, regions) in cooled {
            self.write_records(piece, &regions, false).await?;
        }
        Ok(())
    }

    /// Writes checksum pages and makes them, and everything else on their pieces, durable. The answer has the CRC of each
    /// page that was written; one for which a sparse file had no room is left out.
    async fn save_sums(&self, pages: &BTreeMap<usize, Rc<SumPage>>) -> Result<BTreeMap<usize, u32>, AreaError> {
        let writes = pages.iter().map(async |(region, page)| {
            let (piece, regions) = self.piece_of(*region).ok()?;
            let (bytes, sum) = page.encode();
            let at = piece.spec.offset + regions.reserve.sums((*region - regions.first) as u64);
            match piece.file.write_at(at, bytes.freeze()).await {
                Ok(()) => Some((*region, sum)),
                Err(error) => {
                    // If the area goes on, the region stays hot: nothing is lost but the time that it takes after a crash.
                    self.write_error("writing checksums to", piece, &error).await;
                    None
                }
            }
        });
        let saved: BTreeMap<usize, u32> = join_all(writes).await.into_iter().flatten().collect();
        let pieces: BTreeSet<usize> = saved.keys().map(|region| self.regions.place(*region).0).collect();
        self.sync_pieces(&pieces).await?;
        Ok(saved)
    }

    /// Makes everything written to these pieces before durable.
    pub async fn sync_pieces(&self, pieces: &BTreeSet<usize>) -> Result<(), AreaError> {
        let syncs = pieces.iter().filter_map(|piece| self.pieces.get(*piece)).map(async |piece| (piece, piece.file.sync().await));
        for (piece, synced) in join_all(syncs).await {
            if let Err(error) = synced {
                let failure = self.fail(&format!("flushing {}", piece.spec), &error);
                self.note_failure().await;
                return Err(failure);
            }
        }
        // W7: a failure of another piece, or of the label, may have been about this, too.
        self.check_writable()
    }

    /// Writes the checksums of regions that have been hot for long, so that less has to be taken on trust after a crash (K2).
    /// Takes those that were not saved for so long. The answer is false if there were none. The caller holds `cooling`.
    async fn checkpoint(&self, now: Tick, every: Duration) -> Result<bool, AreaError> {
        let mut pages = BTreeMap::new();
        for (region, hot) in self.regions.hot.borrow_mut().iter_mut() {
            if pages.len() < COOLED_AT_ONCE
                && hot.changed
                && now.since(hot.saved) >= every
                && let Some(page) = &hot.sums
            {
                pages.insert(*region, Rc::new(SumPage::clone(page)));
                (hot.changed, hot.saved) = (false, now);
            }
        }
        if pages.is_empty() {
            return Ok(false);
        }
        let saved = self.save_sums(&pages).await?;
        let mut changed: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (region, sum) in saved {
            if let Some(record) = self.regions.records.borrow_mut().get_mut(region) {
                record.page = Some(sum);
            }
            changed.entry(self.regions.place(region).0).or_default().insert(region);
        }
        for (piece, regions) in changed {
            self.write_records(piece, &regions, false).await?;
        }
        Ok(true)
    }

    /// Cools regions of a slice in batches.
    pub async fn cool_regions(self: &Rc<Self>, slice: SliceId, regions: &[usize]) -> Result<(), AreaError> {
        for batch in regions.chunks(COOLED_AT_ONCE) {
            let _one_at_a_time = self.regions.cooling.lock().await;
            self.cool_batch(slice, batch).await?;
        }
        Ok(())
    }

    /// What cools when a slice is closed cleanly; `unequal`: its legs were not made equal since an earlier crash (H3).
    pub fn closing(&self, slice: SliceId, unequal: bool) -> Vec<usize> {
        let hot = self.regions.hot.borrow();
        let own = hot.iter().filter(|(_, hot)| hot.slice == slice && !(unequal && hot.inherited));
        self.few_to_read(own, READ_AT_CLOSE).into_iter().map(|(_, region)| region).collect()
    }

    /// Those of these regions that can cool: all whose checksums are kept, and so many of those that have to be read for it.
    /// Where that has failed it is tried again after all others: a few bad sectors must not keep the rest hot for ever.
    fn few_to_read<'a>(&self, regions: impl Iterator<Item = (&'a usize, &'a Hot)>, many: usize) -> Vec<(SliceId, usize)> {
        let can = regions.filter(|(region, hot)| !hot.abandoned && (hot.kept.all() || !self.regions.record(**region).unproved));
        let (kept, mut read): (Vec<_>, Vec<_>) = can.partition(|(_, hot)| hot.kept.all());
        read.sort_by_key(|(region, hot)| (hot.failed, **region));
        kept.into_iter().chain(read.into_iter().take(many)).map(|(region, hot)| (hot.slice, *region)).collect()
    }

    /// Regions of slices with one leg that were not written for a while, and any that were not written at all; few of those that have to be read for it.
    fn idle(&self, now: Tick) -> BTreeMap<SliceId, Vec<usize>> {
        let idle_after = drawn::time(Drawn::AreaCoolAfter, IDLE);
        let hot = self.regions.hot.borrow();
        let quiet = hot.iter().filter(|(_, hot)| {
            // What was found hot and belongs to a slice that was closed cleanly: every leg has flushed, and they are equal (H2).
            let closed = |record: &SliceRecord| hot.found && record.open.is_none() && !record.unclean;
            let alone = |record: &SliceRecord| record.facts.legs == 1 || closed(record);
            // A region that was made hot ahead and never written is the same on all legs.
            let untouched = hot.written == 0 && !hot.inherited;
            (self.lent_so(hot, alone) || untouched) && hot.writes == 0 && now.since(hot.used) >= idle_after
        });
        let mut idle: BTreeMap<SliceId, Vec<usize>> = BTreeMap::new();
        for (slice, region) in self.few_to_read(quiet, READ_AT_ONCE) {
            idle.entry(slice).or_default().push(region);
        }
        idle
    }

    /// Whether the record of a hot region's slice is like that. What is being wiped needs no checksums any more.
    fn lent_so(&self, hot: &Hot, like: impl Fn(&SliceRecord) -> bool) -> bool {
        self.label.borrow().find(hot.slice).is_some_and(|record| record.wipe.is_none() && like(record))
    }

    /// What can cool when the area is left in good order: regions whose slice has no other leg that is in sync. This one has
    /// flushed when they cool, and no other one need be asked (H2); what stale legs lack is kept exactly then (S3).
    fn leaving(&self) -> BTreeMap<SliceId, Vec<usize>> {
        let mut leaving: BTreeMap<SliceId, Vec<usize>> = BTreeMap::new();
        for (region, hot) in self.regions.hot.borrow().iter() {
            let alone = |record: &SliceRecord| {
                let others = record.facts.in_sync.iter().enumerate().filter(|(leg, _)| *leg != record.facts.leg as usize);
                record.facts.in_sync.get(record.facts.leg as usize) == Some(&true) && others.clone().all(|(_, in_sync)| !in_sync)
            };
            // Where legs may differ since an earlier crash, the mark says so (H3).
            if hot.kept.all() && !hot.inherited && self.lent_so(hot, alone) {
                leaving.entry(hot.slice).or_default().push(*region);
            }
        }
        leaving
    }
}

impl<D: Doors> Area<D> {
    /// How many regions of the slice may be hot at a time (H2): a client with several legs keeps to the least of them.
    pub fn hot_share(&self, _: SliceId) -> u32 {
        self.inner.hot_share()
    }

    /// How many are.
    pub fn hot_count(&self, slice: SliceId) -> u32 {
        self.inner.regions.hot_count(slice)
    }

    /// The slices with hot regions.
    pub fn hot_slices(&self) -> BTreeSet<SliceId> {
        self.inner.regions.hot.borrow().values().map(|hot| hot.slice).collect()
    }

    /// Whether a checksum of a block in that range of a slice may have been lost with an earlier process (K2): a region was hot when
    /// the area was opened and has not cooled since, or its checksum page is lost.
    pub fn lacks_checksums(&self, slice: SliceId, offset: u64, length: u64) -> bool {
        let Some((own, _)) = self.inner.regions_of(slice) else { return false };
        let (first, end) = ((offset / REGION_SIZE) as usize, (offset + length).div_ceil(REGION_SIZE) as usize);
        let regions = &self.inner.regions;
        let was_found = |region: usize| regions.hot.borrow().get(&region).is_some_and(|hot| hot.found);
        (own.start + first..own.start + end).any(|region| was_found(region) || regions.record(region).unproved)
    }

    /// Cools regions of a slice (numbers in the slice): every in-sync leg has flushed since their last write (H2). What is
    /// being written stays hot. A region without checksums, of an area of format 1, has some from then on.
    ///
    /// # Errors
    /// What the disk says; regions may stay hot then.
    pub async fn cool(&self, slice: SliceId, regions: &[u32]) -> Result<(), AreaError> {
        let Some((own, _)) = self.inner.regions_of(slice) else { return Ok(()) };
        let regions: Vec<usize> = regions.iter().map(|n| own.start + *n as usize).filter(|n| own.contains(n)).collect();
        let inner = Rc::clone(&self.inner);
        to_the_end(&self.inner.doors, async move {
            for region in &regions {
                let record = inner.regions.record(*region);
                if record.state == State::Plain && !record.unproved {
                    inner.heat(slice, *region).await?;
                }
            }
            inner.cool_regions(slice, &regions).await
        })
        .await
    }

    /// What is to be done now and then: regions of slices with one leg cool when they were not written for a while (H2), and
    /// checksums of what stays hot are written (K2). Called every few seconds.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn cool_idle(&self, now: Tick) -> Result<(), AreaError> {
        if self.inner.check_writable().is_err() || self.inner.regions.hot.borrow().is_empty() {
            return Ok(());
        }
        let inner = Rc::clone(&self.inner);
        to_the_end(&self.inner.doors, async move {
            for (slice, regions) in inner.idle(now) {
                inner.cool_regions(slice, &regions).await?;
            }
            let _one_at_a_time = inner.regions.cooling.lock().await;
            inner.checkpoint(now, drawn::time(Drawn::Checkpoint, CHECKPOINT_INTERVAL)).await.map(drop)
        })
        .await
    }

    /// What is only in memory goes to the disk, so that the next opening finds it: regions cool that can cool without asking
    /// another leg, and the checksums of the others are written (K2). For a clean stop, when nobody writes any more.
    ///
    /// # Errors
    /// What the disk says; the next opening takes what is missing for lost in a crash.
    pub async fn settle(&self) -> Result<(), AreaError> {
        if self.inner.check_writable().is_err() || self.inner.regions.hot.borrow().is_empty() {
            return Ok(());
        }
        let inner = Rc::clone(&self.inner);
        to_the_end(&self.inner.doors, async move {
            for (slice, regions) in inner.leaving() {
                inner.cool_regions(slice, &regions).await?;
            }
            let rounds = inner.regions.hot.borrow().len().div_ceil(COOLED_AT_ONCE);
            for _ in 0..rounds {
                let _one_at_a_time = inner.regions.cooling.lock().await;
                if !inner.checkpoint(inner.doors.now(), Duration::ZERO).await? {
                    break;
                }
            }
            // With it the region pages, which nothing else waits for.
            inner.sync_all().await
        })
        .await
    }
}
