//! Missed maps on the disk, and what the client does with them (S1, S3, S4). `crate::missed` has the pure part.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures_util::future::join_all;
use sublet_doors::{Buffer, DiskFile, Doors};
use sublet_types::limits::{BLOCK_SIZE, COPIES_MAX, REGION_SIZE};
use sublet_types::mutation::{self, Mutation};
use sublet_types::{Generation, SliceId};
use sublet_wire::message::{MapEntry, MapReply, MapWhich, REGIONS_PER_MESSAGE_MAX, Seed, StaleMark};

use crate::area::{Area, Inner, all_ended, to_the_end};
use crate::error::{AreaError, AreaErrorKind};
use crate::layout::{MAP_ENTRY_SIZE, PAGE_SIZE};
use crate::lease::no_slice;
use crate::missed::{Entry, LegMap, units};

/// Entries in one page.
const ENTRIES: usize = (PAGE_SIZE / MAP_ENTRY_SIZE) as usize;
/// Pages of entries that are read or written at once.
const PAGES_AT_ONCE: usize = 32;

/// What becomes of the stored bits of a region and leg.
type Edit<'a> = &'a dyn Fn(usize, usize, u64) -> u64;

impl<D: Doors> Inner<D> {
    /// Reads the page with the entry of a region; what cannot be read is no entry at all.
    async fn read_entries(&self, region: usize) -> Buffer {
        self.try_entries(region).await.unwrap_or_else(|| Buffer::zeroed(PAGE_SIZE as usize))
    }

    /// Reads the page with the entry of a region, if it can be read.
    async fn try_entries(&self, region: usize) -> Option<Buffer> {
        let length = PAGE_SIZE as usize;
        let (piece, regions) = self.piece_of(region).ok()?;
        let local = (region - regions.first) / ENTRIES * ENTRIES;
        let at = piece.spec.offset + regions.reserve.map_entry(local as u64);
        let (result, buffer) = piece.file.read_at(at, Buffer::new(length), 0..length).await;
        match result {
            Ok(()) => Some(buffer),
            Err(error) => {
                self.disk_error("reading missed maps from", piece, &error);
                None
            }
        }
    }

    /// The entry of a region in its page, and where it lies there.
    fn entry_in(&self, page: &[u8], slice: SliceId, region: usize) -> (Option<Entry>, usize) {
        let local = region - self.piece_of(region).map_or(0, |(_, regions)| regions.first);
        let at = local % ENTRIES * MAP_ENTRY_SIZE as usize;
        let entry = page.get(at..at + MAP_ENTRY_SIZE as usize).and_then(|bytes| Entry::decode(bytes, local as u64, slice));
        (entry, at)
    }

    /// The bits that the disk holds for a map. An entry that must be there and is not readable is all ones (S3).
    fn stored(&self, entry: Option<&Entry>, region: usize, leg: usize, since: Generation) -> u64 {
        if self.regions.record(region).missed >> leg & 1 == 0 {
            return 0;
        }
        entry.map_or(u64::MAX, |entry| entry.bits(leg, since))
    }

    /// Writes the entries of regions for the live maps of a slice: what is stored with what is in memory, or as `edit` says.
    /// The answer says for each region which legs have bits. Not yet durable; the caller holds `cooling`.
    pub async fn store_bits(
        &self,
        slice: SliceId,
        regions: &BTreeSet<usize>,
        edit: Option<Edit<'_>>,
    ) -> Result<BTreeMap<usize, u8>, AreaError> {
        let live: Vec<(usize, LegMap)> = {
            let maps = self.regions.maps.borrow();
            maps.live(slice).map(|(leg, map)| (leg, map.clone())).collect()
        };
        let mut flags = BTreeMap::new();
        if live.is_empty() {
            return Ok(flags);
        }
        let memory = |leg: usize, region: usize, stored: u64| {
            let map = live.iter().find(|(n, _)| *n == leg).map(|(_, map)| map);
            stored | map.and_then(|map| map.bits.get(&region)).copied().unwrap_or(0)
        };
        let edit = edit.unwrap_or(&memory);
        for pages in self.pages_of_entries(regions).chunks(PAGES_AT_ONCE) {
            let writes = pages.iter().map(async |regions| {
                let Some(first) = regions.first() else { return Ok(Vec::new()) };
                let mut page = self.read_entries(*first).await;
                let mut own = Vec::new();
                for region in regions {
                    let (old, at) = self.entry_in(&page, slice, *region);
                    let mut entry = Entry::default();
                    let mut flags = 0;
                    for (leg, map) in &live {
                        let bits = edit(*leg, *region, self.stored(old.as_ref(), *region, *leg, map.since));
                        flags |= u8::from(bits != 0) << leg;
                        if let Some(place) = entry.legs.get_mut(*leg) {
                            *place = Some((map.since, bits));
                        }
                    }
                    own.push((*region, flags));
                    if flags == 0 && self.regions.record(*region).missed == 0 {
                        continue;
                    }
                    let (_, local) = self.regions.place(*region);
                    if let Some(place) = page.get_mut(at..at + MAP_ENTRY_SIZE as usize) {
                        place.copy_from_slice(&entry.encode(local as u64, slice));
                    }
                }
                self.write_entries(*first, page).await?;
                Ok::<_, AreaError>(own)
            });
            flags.extend(all_ended(writes).await?.into_iter().flatten());
        }
        Ok(flags)
    }

    /// Zeroes the entries of regions that are nobody's any more, where there are any. The table does not tell: a crash may have
    /// come between an entry and its flag. The caller holds `cooling`.
    pub async fn erase_entries(&self, regions: &BTreeSet<usize>) -> Result<(), AreaError> {
        for pages in self.pages_of_entries(regions).chunks(PAGES_AT_ONCE) {
            let writes = pages.iter().map(async |regions| {
                let Some(first) = regions.first() else { return Ok(()) };
                let found = self.try_entries(*first).await;
                let mut held = found.is_none();
                // Neighbours in the page may be of other slices.
                let mut page = found.unwrap_or_else(|| Buffer::zeroed(PAGE_SIZE as usize));
                for region in regions {
                    let at = self.regions.place(*region).1 % ENTRIES * MAP_ENTRY_SIZE as usize;
                    let entry = page.get_mut(at..at + MAP_ENTRY_SIZE as usize).unwrap_or(&mut []);
                    held |= entry.iter().any(|byte| *byte != 0);
                    entry.fill(0);
                }
                if held { self.write_entries(*first, page).await } else { Ok(()) }
            });
            all_ended(writes).await?;
        }
        Ok(())
    }

    /// Writes the page with the entry of a region.
    async fn write_entries(&self, region: usize, page: Buffer) -> Result<(), AreaError> {
        let (piece, table) = self.piece_of(region)?;
        let local = (region - table.first) / ENTRIES * ENTRIES;
        let at = piece.spec.offset + table.reserve.map_entry(local as u64);
        let written = piece.file.write_at(at, page.freeze()).await;
        self.written("writing missed maps to", piece, written).await
    }

    /// Regions, grouped by the page that their entries share.
    fn pages_of_entries(&self, regions: &BTreeSet<usize>) -> Vec<Vec<usize>> {
        let mut pages: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for region in regions {
            let (piece, local) = self.regions.place(*region);
            pages.entry((piece, local / ENTRIES)).or_default().push(*region);
        }
        pages.into_values().collect()
    }

    /// Begins maps for legs that are stale from now on, and takes over what was sent for them (S1). Everything is durable
    /// when this returns: bits of regions that are not hot in their entries, and those of hot ones by their hot marks, which
    /// make all of them count as missed after a crash. The label names the maps only then. The caller holds `cooling`.
    pub async fn adopt_marks(&self, slice: SliceId, marks: &[StaleMark]) -> Result<(), AreaError> {
        let Some((own, _)) = self.regions_of(slice) else { return Ok(()) };
        for mark in marks {
            let mut found = BTreeMap::new();
            let mut add = |region: usize, bits: u64| *found.entry(region).or_insert(0) |= bits;
            // What was sent may have been forgotten with a change of the slice's facts; then it is not exact.
            let staged = |maps: &crate::missed::Maps| maps.0.get(&slice)?.get(usize::from(mark.leg))?.staged.as_ref().map(|_| ());
            let seeded = mark.seeded && staged(&self.regions.maps.borrow()).is_some();
            for region in self.regions.hot_in(&own) {
                // Where legs may differ since an earlier crash, nobody's exact list says what the leg lacks.
                let inherited = self.regions.hot.borrow().get(&region).is_some_and(|hot| hot.inherited);
                if inherited || !seeded {
                    add(region, u64::MAX);
                }
            }
            let blocks = REGION_SIZE / BLOCK_SIZE;
            for io in self.regions.active.borrow().writes(&(own.start as u64 * blocks..own.end as u64 * blocks)) {
                units(io.start * BLOCK_SIZE, (io.end - io.start) * BLOCK_SIZE).for_each(|(region, bits)| add(region, bits));
            }
            let mut maps = self.regions.maps.borrow_mut();
            let Some(leg) = maps.0.entry(slice).or_default().get_mut(usize::from(mark.leg)) else { continue };
            let staged = leg.staged.take();
            let anew = std::mem::take(&mut leg.anew);
            let live = leg.live.get_or_insert_with(|| LegMap { since: Generation::default(), bits: BTreeMap::new() });
            if live.since == mark.since && !anew {
                // It has been kept since the leg left, and knows all that this one would.
                found.clear();
            }
            live.since = mark.since;
            for (region, bits) in found.into_iter().chain(staged.into_iter().flat_map(|map| map.bits)) {
                *live.bits.entry(region).or_default() |= bits;
            }
        }
        let cold: BTreeSet<usize> = {
            let maps = self.regions.maps.borrow();
            let regions = maps.live(slice).flat_map(|(_, map)| map.bits.keys().copied());
            regions.filter(|region| !self.is_hot(*region)).collect()
        };
        self.make_durable(slice, &cold, None).await
    }

    fn is_hot(&self, region: usize) -> bool {
        self.regions.hot.borrow().contains_key(&region)
    }

    /// Writes entries and makes them, and then the flags that point at them, durable.
    async fn make_durable(&self, slice: SliceId, regions: &BTreeSet<usize>, edit: Option<Edit<'_>>) -> Result<(), AreaError> {
        let flags = self.store_bits(slice, regions, edit).await?;
        let mut pieces: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for region in flags.keys() {
            pieces.entry(self.regions.place(*region).0).or_default().insert(*region);
        }
        self.sync_pieces(&pieces.keys().copied().collect()).await?;
        for (region, missed) in flags {
            if let Some(record) = self.regions.records.borrow_mut().get_mut(region) {
                record.missed = missed;
            }
        }
        for (piece, regions) in pieces {
            self.write_records(piece, &regions, true).await?;
        }
        // What was written meanwhile is hot now, and its bits stay until it cools.
        for region in regions.iter().filter(|region| !self.is_hot(**region)) {
            self.regions.maps.borrow_mut().written(slice, *region);
        }
        Ok(())
    }

    /// The bits of a leg's map in memory.
    fn bits_in_memory(&self, slice: SliceId, leg: usize, region: usize) -> u64 {
        let maps = self.regions.maps.borrow();
        let map = maps.live(slice).find(|(n, _)| *n == leg);
        map.and_then(|(_, map)| map.bits.get(&region).copied()).unwrap_or(0)
    }
}

impl<D: Doors> Area<D> {
    /// From which generation on this slice keeps a map of what each leg misses; none without a map (S3).
    pub fn missed_since(&self, slice: SliceId) -> Vec<Option<Generation>> {
        self.inner.label.borrow().find(slice).map_or_else(Vec::new, crate::record::SliceRecord::missed)
    }

    /// Notes what a stale leg lacks (S1, S5). It is part of the leg's map, and durable, from the next change of state on that
    /// marks the leg; until then writes are added to it.
    ///
    /// # Errors
    /// If there is no such slice or leg.
    pub async fn seed(&self, slice: SliceId, seed: &Seed) -> Result<(), AreaError> {
        let inner = &self.inner;
        let _still = inner.regions.cooling.lock().await;
        let (own, _) = inner.regions_of(slice).ok_or_else(|| no_slice(slice, &self.name()))?;
        let mut maps = inner.regions.maps.borrow_mut();
        let leg = maps.0.entry(slice).or_default().get_mut(usize::from(seed.leg));
        let leg = leg.ok_or_else(|| AreaError::new(AreaErrorKind::OutOfRange, format!("there is no leg {}", seed.leg)))?;
        if seed.reset {
            (leg.staged, leg.anew) = (None, true);
        }
        let staged = leg.staged.get_or_insert_with(|| LegMap { since: seed.since, bits: BTreeMap::new() });
        for (region, bits) in &seed.entries {
            let region = own.start + *region as usize;
            if own.contains(&region) {
                *staged.bits.entry(region).or_default() |= bits;
            }
        }
        Ok(())
    }

    /// Takes units off a leg's map that it has now, durably (S4): nothing was written to them since they were copied. A crash
    /// may undo it, so that they are copied once more.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn clear(&self, slice: SliceId, leg: u8, entries: &[(u32, u64)]) -> Result<(), AreaError> {
        let leg = usize::from(leg);
        let Some((own, _)) = self.inner.regions_of(slice) else { return Ok(()) };
        let cleared: BTreeMap<usize, u64> = entries.iter().map(|(region, bits)| (own.start + *region as usize, *bits)).collect();
        let inner = Rc::clone(&self.inner);
        to_the_end(&self.inner.doors, async move {
            let _still = inner.regions.cooling.lock().await;
            if let Some(map) = inner.regions.maps.borrow_mut().0.get_mut(&slice).and_then(|legs| legs.get_mut(leg)?.live.as_mut())
            {
                for (region, bits) in &cleared {
                    if let Some(own) = map.bits.get_mut(region) {
                        *own &= !bits;
                    }
                }
            }
            let stored = cleared.keys().copied().filter(|n| own.contains(n) && inner.regions.record(*n).missed >> leg & 1 == 1);
            let edit = |n: usize, region: usize, stored: u64| {
                if n == leg { stored & !cleared.get(&region).copied().unwrap_or(0) } else { stored }
            };
            // The flags of the records stay: an entry with nothing in it says so itself.
            inner.store_bits(slice, &stored.collect(), Some(&edit)).await.map(|_| ())
        })
        .await
    }

    /// Hot regions and missed writes of a range of the slice (S4, H3).
    ///
    /// # Errors
    /// If the range does not begin on a region of the slice.
    pub async fn map(&self, slice: SliceId, which: MapWhich, offset: u64, length: u64) -> Result<MapReply, AreaError> {
        let inner = &self.inner;
        inner.check_served()?;
        let (own, _) = inner.regions_of(slice).ok_or_else(|| no_slice(slice, &self.name()))?;
        let first = own.start + (offset / REGION_SIZE) as usize;
        if !offset.is_multiple_of(REGION_SIZE) || first > own.end {
            let text = format!("a map begins on a region of the slice, not at {offset}");
            return Err(AreaError::new(AreaErrorKind::OutOfRange, text));
        }
        let many = length.div_ceil(REGION_SIZE).min(REGIONS_PER_MESSAGE_MAX as u64) as usize;
        let range = first..(first + many).min(own.end);
        let legs: Vec<(usize, Generation)> = {
            let maps = inner.regions.maps.borrow();
            let asked =
                |leg: usize| matches!(which, MapWhich::All) || which == MapWhich::Leg(u8::try_from(leg).unwrap_or(u8::MAX));
            maps.live(slice).filter(|(leg, _)| *leg < COPIES_MAX && asked(*leg)).map(|(leg, map)| (leg, map.since)).collect()
        };
        // What is in memory is taken now, before the disk is read: bits go from there to the disk, and not back.
        let mut found: BTreeMap<usize, (bool, u64)> = BTreeMap::new();
        let mut lost = false;
        for region in range.clone() {
            let missed = legs.iter().fold(0, |all, (leg, _)| all | inner.bits_in_memory(slice, *leg, region));
            // What lost its checksum page proves nothing against other legs, as after a crash (K2).
            let unproved = inner.regions.record(region).unproved;
            // Its mark may be on the disk already: the next opening would find it hot.
            let hot = inner.is_hot(region) || inner.regions.is_heating(region) || unproved;
            let is_quiet = || inner.regions.hot.borrow().get(&region).is_some_and(|hot| hot.writes == 0);
            let hot = hot && !(mutation::is(Mutation::CoolTooEarly) && is_quiet());
            lost |= unproved || inner.regions.hot.borrow().get(&region).is_some_and(|hot| hot.lost);
            if hot || missed != 0 {
                found.insert(region, (hot, missed));
            }
        }
        let wanted = legs.iter().fold(0, |mask, (leg, _)| mask | 1 << leg);
        let stored: BTreeSet<usize> = range.clone().filter(|region| inner.regions.record(*region).missed & wanted != 0).collect();
        for pages in inner.pages_of_entries(&stored).chunks(PAGES_AT_ONCE) {
            let reads = pages.iter().map(async |regions| {
                let page = inner.read_entries(regions.first().copied().unwrap_or(0)).await;
                let bits = |region: usize| {
                    let (entry, _) = inner.entry_in(&page, slice, region);
                    let of = |(leg, since): &(usize, Generation)| inner.stored(entry.as_ref(), region, *leg, *since);
                    (region, legs.iter().map(of).fold(0, |all, bits| all | bits))
                };
                regions.iter().copied().map(bits).collect::<Vec<_>>()
            });
            for (region, bits) in join_all(reads).await.into_iter().flatten() {
                found.entry(region).or_default().1 |= bits;
            }
        }
        let entry = |(region, (hot, missed))| MapEntry { region: (region - own.start) as u32, hot, missed };
        let entries = found.into_iter().map(entry).filter(|entry| entry.hot || entry.missed != 0).collect();
        let since = if let MapWhich::Leg(_) = which { legs.first().map(|(_, since)| *since) } else { None };
        Ok(MapReply { since, lost, scanned: range.len() as u32, entries })
    }
}
