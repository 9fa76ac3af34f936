//! The bytes of the slices: read, write, zero, flush, extents. Offsets are relative to the slice.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use sublet_doors::disk::Zero;
use sublet_doors::{Buffer, Chunk, DiskFile, Doors};
use sublet_types::SliceId;
use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE};
use sublet_wire::checksum::{table_size, write_table};
use sublet_wire::message::{EXTENTS_PER_REPLY_MAX, Extent};

use crate::area::{Area, Inner, OpenPiece, to_the_end};
use crate::error::{AreaError, AreaErrorKind};
use crate::keep::ReadInfo;
use crate::layout::Stretch;
use crate::lease::no_slice;

/// The regions that a stretch of a piece's data touches.
fn regions_of(stretch: Stretch) -> Range<usize> {
    (stretch.offset / REGION_SIZE) as usize..(stretch.offset + stretch.length).div_ceil(REGION_SIZE) as usize
}

/// Runs of a stretch that are blank or not, in order: (length, blank).
fn runs<D: Doors>(piece: &OpenPiece<D>, stretch: Stretch) -> Vec<(u64, bool)> {
    let Some(regions) = &piece.regions else { return vec![(stretch.length, false)] };
    let mut runs: Vec<(u64, bool)> = Vec::new();
    let mut at = stretch.offset;
    for region in regions_of(stretch) {
        let end = ((region as u64 + 1) * REGION_SIZE).min(stretch.offset + stretch.length);
        let (length, blank) = (end - at, regions.is_blank(region));
        match runs.last_mut() {
            Some((last, same)) if *same == blank => *last += length,
            _ => runs.push((length, blank)),
        }
        at = end;
    }
    runs
}

impl<D: Doors> Inner<D> {
    /// The area offset of a slice's range.
    pub fn locate(&self, slice: SliceId, offset: u64, length: u64) -> Result<u64, AreaError> {
        self.check_served()?;
        let label = self.label.borrow();
        let record = label.find(slice).ok_or_else(|| no_slice(slice, &label.name))?;
        let usable = record.facts.segment_length.next_multiple_of(BLOCK_SIZE).min(record.facts.length);
        match offset.checked_add(length) {
            Some(end) if end <= usable && offset.is_multiple_of(BLOCK_SIZE) && length.is_multiple_of(BLOCK_SIZE) => {
                Ok(record.facts.offset + offset)
            }
            _ => Err(AreaError::new(
                AreaErrorKind::OutOfRange,
                format!("{length} bytes at {offset} do not lie in slice {}, which has {usable}, or not on 4 KiB", slice.short()),
            )),
        }
    }

    pub fn piece(&self, stretch: Stretch) -> Result<&OpenPiece<D>, AreaError> {
        self.pieces.get(stretch.piece).ok_or_else(|| AreaError::new(AreaErrorKind::OutOfRange, "behind the last piece"))
    }

    /// The disk reported an error on a read or write.
    fn disk_error(&self, what: &str, piece: &OpenPiece<D>, error: &io::Error) -> AreaError {
        let error = AreaError::io(format!("{what} {}", piece.spec), error);
        tracing::warn!("area {}: {error}", self.label.borrow().name);
        error
    }

    /// Makes every blank region of the stretch zero on the disk and marked, before its first data is written (P1).
    async fn fill_blank(self: &Rc<Self>, stretch: Stretch) -> Result<(), AreaError> {
        let Some(regions) = &self.piece(stretch)?.regions else { return Ok(()) };
        for region in regions_of(stretch) {
            if !regions.is_blank(region) {
                continue;
            }
            let (first, ready) = regions.wait(region);
            if first {
                let own = Rc::clone(self);
                self.doors.spawn(async move {
                    let result = own.fill_region(stretch.piece, region).await;
                    if own.failed.borrow().is_some() {
                        own.note_failure().await;
                    }
                    if let Some(regions) = own.pieces.get(stretch.piece).and_then(|piece| piece.regions.as_ref()) {
                        regions.done(region, &result);
                    }
                });
            }
            ready.await.unwrap_or_else(|_| Err(AreaError::new(AreaErrorKind::Offline, "the server is stopping")))?;
        }
        Ok(())
    }

    /// P1, in this order: zero the region, make the zeroes durable, make the mark durable.
    async fn fill_region(&self, piece: usize, region: usize) -> Result<(), AreaError> {
        let Some((piece, regions)) = self.pieces.get(piece).and_then(|piece| Some((piece, piece.regions.as_ref()?))) else {
            return Ok(());
        };
        let at = piece.data_at + region as u64 * REGION_SIZE;
        piece
            .file
            .zero(at, REGION_SIZE, Zero::Keep)
            .await
            .map_err(|error| self.disk_error("zeroing a region of", piece, &error))?;
        let what = format!("marking a region of {}", piece.spec);
        piece.file.sync().await.map_err(|error| self.fail(&what, &error))?;
        regions.mark(&*piece.file, piece.spec.offset, region).await.map_err(|error| self.fail(&what, &error))
    }

    /// Syncs every piece, once for all who wait.
    async fn sync_all(&self) -> Result<(), AreaError> {
        let asked = self.flush_asked.get() + 1;
        self.flush_asked.set(asked);
        let _one_at_a_time = self.syncing.lock().await;
        self.check_writable()?;
        if self.flush_done.get() >= asked {
            // Another flush began after this one was asked for, and so covers it.
            return Ok(());
        }
        let covers = self.flush_asked.get();
        let syncs = self.pieces.iter().map(async |piece| (piece, piece.file.sync().await));
        let mut result = Ok(());
        for (piece, synced) in futures_util::future::join_all(syncs).await {
            if let Err(error) = synced {
                result = Err(self.fail(&format!("flushing {}", piece.spec), &error));
            }
        }
        if result.is_err() {
            self.note_failure().await;
        }
        result?;
        self.flush_done.set(covers);
        Ok(())
    }

    /// The stretches of an area range that may hold something else than zeroes, as (length, data).
    pub async fn extents_of(&self, stretch: Stretch) -> Result<Vec<(u64, bool)>, AreaError> {
        let piece = self.piece(stretch)?;
        let mut extents = Vec::new();
        let mut at = stretch.offset;
        for (length, blank) in runs(piece, stretch) {
            if blank {
                extents.push((length, false));
            } else {
                let found = piece.file.extents(piece.data_at + at, length).await;
                extents.extend(found.map_err(|error| self.disk_error("reading the extents of", piece, &error))?);
            }
            at += length;
        }
        Ok(extents)
    }
}

impl<D: Doors> Area<D> {
    /// Reads `buffer[range]` from the slice.
    ///
    /// # Errors
    /// With the buffer either way; its content is undefined then.
    pub async fn read(
        &self,
        slice: SliceId,
        offset: u64,
        buffer: Buffer,
        range: Range<usize>,
        sums: &mut [u8],
    ) -> (Result<ReadInfo, AreaError>, Buffer) {
        let inner = &self.inner;
        let at = match inner.locate(slice, offset, range.len() as u64) {
            Ok(at) => at,
            Err(error) => return (Err(error), buffer),
        };
        let mut buffer = buffer;
        let mut filled = range.start;
        for stretch in inner.map.split(at, range.len() as u64) {
            let piece = match inner.piece(stretch) {
                Ok(piece) => piece,
                Err(error) => return (Err(error), buffer),
            };
            let mut from = piece.data_at + stretch.offset;
            for (length, blank) in runs(piece, stretch) {
                let part = filled..filled + length as usize;
                if blank {
                    // P1: without touching the disk.
                    buffer.get_mut(part.clone()).unwrap_or(&mut []).fill(0);
                } else {
                    let (result, back) = piece.file.read_at(from, buffer, part.clone()).await;
                    buffer = back;
                    if let Err(error) = result {
                        return (Err(inner.disk_error("reading", piece, &error)), buffer);
                    }
                }
                filled = part.end;
                from += length;
            }
        }
        if !sums.is_empty() {
            write_table(buffer.get(range).unwrap_or(&[]), sums);
        }
        (Ok(ReadInfo { recomputed: true }), buffer)
    }

    /// Writes to the slice; accepted, not yet durable. `sums` are the CRC32C of its blocks, four bytes each, which the caller
    /// has compared with the data.
    ///
    /// # Errors
    /// Any part may have been written then.
    pub async fn write(&self, slice: SliceId, offset: u64, data: Chunk, sums: &[u8]) -> Result<(), AreaError> {
        let inner = &self.inner;
        inner.check_writable()?;
        if sums.len() != table_size(data.len()) {
            return Err(AreaError::new(AreaErrorKind::OutOfRange, "a write brings a checksum for each of its blocks"));
        }
        let at = inner.locate(slice, offset, data.len() as u64)?;
        let mut taken = 0;
        for stretch in inner.map.split(at, data.len() as u64) {
            inner.fill_blank(stretch).await?;
            let piece = inner.piece(stretch)?;
            let part = data.part(taken..taken + stretch.length as usize);
            taken += part.len();
            let written = piece.file.write_at(piece.data_at + stretch.offset, part).await;
            written.map_err(|error| inner.disk_error("writing to", piece, &error))?;
        }
        // A sync that failed meanwhile may have been about this write.
        inner.check_writable()
    }

    /// Makes a range of the slice read as zero (W6): preallocated space is zeroed in place, sparse space given back unless
    /// `keep_allocated`.
    ///
    /// # Errors
    /// Any part may have been zeroed then.
    pub async fn write_zeroes(&self, slice: SliceId, offset: u64, length: u64, keep_allocated: bool) -> Result<(), AreaError> {
        let inner = &self.inner;
        inner.check_writable()?;
        let at = inner.locate(slice, offset, length)?;
        let how = if keep_allocated || !self.sparse() { Zero::Keep } else { Zero::Punch };
        for stretch in inner.map.split(at, length) {
            let piece = inner.piece(stretch)?;
            let mut from = piece.data_at + stretch.offset;
            for (length, blank) in runs(piece, stretch) {
                // A blank region reads as zero already.
                if !blank {
                    let zeroed = piece.file.zero(from, length, how).await;
                    zeroed.map_err(|error| inner.disk_error("zeroing", piece, &error))?;
                }
                from += length;
            }
        }
        inner.check_writable()
    }

    /// Makes everything that was accepted before durable, on all pieces. Once this has failed, nothing is flushed or written
    /// any more until the area is opened again: the kernel reports a lost write only once (W7).
    ///
    /// # Errors
    /// What the disk says now, or said earlier.
    pub async fn flush(&self) -> Result<(), AreaError> {
        let own = Rc::clone(&self.inner);
        // An abandoned sync would swallow the only report of an error.
        to_the_end(&self.inner.doors, async move { own.sync_all().await }).await
    }

    /// The stretches of a range of the slice, in order; perhaps fewer than asked for, never none.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn extents(&self, slice: SliceId, offset: u64, length: u64) -> Result<Vec<Extent>, AreaError> {
        let inner = &self.inner;
        let at = inner.locate(slice, offset, length)?;
        let mut extents: Vec<Extent> = Vec::new();
        for stretch in inner.map.split(at, length) {
            for (length, data) in inner.extents_of(stretch).await? {
                match extents.last_mut() {
                    Some(last) if last.data == data => last.length += length,
                    _ => extents.push(Extent { length, data }),
                }
            }
        }
        extents.truncate(EXTENTS_PER_REPLY_MAX);
        Ok(extents)
    }
}
