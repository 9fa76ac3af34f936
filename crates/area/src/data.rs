//! The bytes of the slices: read, write, zero, flush, extents. Offsets are relative to the slice.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use sublet_doors::disk::Zero;
use sublet_doors::{Buffer, Chunk, DiskFile, Doors};
use sublet_types::SliceId;
use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE};
use sublet_wire::checksum::table_size;
use sublet_wire::message::{EXTENTS_PER_REPLY_MAX, Extent};

use crate::area::{Area, Inner, OpenPiece, to_the_end};
use crate::error::{AreaError, AreaErrorKind};
use crate::heat::{NewSums, regions_in};
use crate::kept::{ReadInfo, spoil};
use crate::layout::Stretch;
use crate::lease::no_slice;
use crate::sums::BLOCKS;

/// Regions that one step of zeroing a long range makes hot, at most; and no more than this part of the slice's share, so that
/// others that write to it keep theirs (H2).
const ZEROED_AT_ONCE: u64 = 16;
const PART_OF_SHARE: u64 = 4;

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

    /// The disk reported an error on a read.
    pub fn disk_error(&self, what: &str, piece: &OpenPiece<D>, error: &io::Error) -> AreaError {
        let error = AreaError::io(format!("{what} {}", piece.spec), error);
        tracing::warn!("area {}: {error}", self.label.borrow().name);
        error
    }

    /// The disk reported an error on a write, zeroes included: the area takes no more, and its label says so before anybody is
    /// answered (W7). Only a sparse file that finds no room goes on: what was accepted before has its place and stays what it is.
    pub async fn write_error(&self, what: &str, piece: &OpenPiece<D>, error: &io::Error) -> AreaError {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if full && self.label.borrow().sparse && !piece.file.facts().device {
            return self.disk_error(what, piece, error).hint("make room on its file system: the area is sparse");
        }
        let failure = self.fail(&format!("{what} {}", piece.spec), error);
        self.note_failure().await;
        failure
    }

    /// The same for a write that may have failed.
    pub async fn written(&self, what: &str, piece: &OpenPiece<D>, written: io::Result<()>) -> Result<(), AreaError> {
        match written {
            Ok(()) => Ok(()),
            Err(error) => Err(Box::pin(self.write_error(what, piece, &error)).await),
        }
    }

    /// Runs of a range of the area that are blank or not, in order: (length, blank).
    pub fn runs(&self, at: u64, length: u64) -> Vec<(u64, bool)> {
        let mut runs: Vec<(u64, bool)> = Vec::new();
        let mut from = at;
        for region in regions_in(at, length) {
            let end = ((region as u64 + 1) * REGION_SIZE).min(at + length);
            let (length, blank) = (end - from, self.regions.is_blank(region));
            match runs.last_mut() {
                Some((last, same)) if *same == blank => *last += length,
                _ => runs.push((length, blank)),
            }
            from = end;
        }
        runs
    }

    async fn write_data(&self, at: u64, data: Chunk) -> Result<(), AreaError> {
        let mut taken = 0;
        for stretch in self.map.split(at, data.len() as u64) {
            let piece = self.piece(stretch)?;
            let part = data.part(taken..taken + stretch.length as usize);
            taken += part.len();
            let written = piece.file.write_at(piece.data_at + stretch.offset, part).await;
            self.written("writing to", piece, written).await?;
        }
        Ok(())
    }

    async fn zero_data(&self, at: u64, length: u64, how: Zero) -> Result<(), AreaError> {
        for stretch in self.map.split(at, length) {
            let piece = self.piece(stretch)?;
            let zeroed = piece.file.zero(piece.data_at + stretch.offset, stretch.length, how).await;
            self.written("zeroing", piece, zeroed).await?;
        }
        Ok(())
    }

    /// Reads a range of the area into `buffer[range]`. A blank region is not looked for on the disk (P1).
    pub async fn read_data(&self, at: u64, mut buffer: Buffer, range: Range<usize>) -> (Result<(), AreaError>, Buffer) {
        let (mut at, mut filled) = (at, range.start);
        for (length, blank) in self.runs(at, range.len() as u64) {
            if blank {
                buffer.get_mut(filled..filled + length as usize).unwrap_or(&mut []).fill(0);
                filled += length as usize;
            } else {
                for stretch in self.map.split(at, length) {
                    let piece = match self.piece(stretch) {
                        Ok(piece) => piece,
                        Err(error) => return (Err(error), buffer),
                    };
                    let part = filled..filled + stretch.length as usize;
                    filled = part.end;
                    let (result, back) = piece.file.read_at(piece.data_at + stretch.offset, buffer, part).await;
                    buffer = back;
                    if let Err(error) = result {
                        return (Err(self.disk_error("reading", piece, &error)), buffer);
                    }
                }
            }
            at += length;
        }
        (Ok(()), buffer)
    }

    /// Syncs every piece.
    pub async fn sync_all(&self) -> Result<(), AreaError> {
        self.check_writable()?;
        let ended = self.regions.ended.get();
        self.sync_pieces(&(0..self.pieces.len()).collect()).await?;
        let flushed = &self.regions.flushed;
        flushed.set(flushed.get().max(ended));
        Ok(())
    }

    /// The stretches of an area range that may hold something else than zeroes, as (length, data).
    pub async fn extents_of(&self, at: u64, length: u64) -> Result<Vec<(u64, bool)>, AreaError> {
        let mut extents = Vec::new();
        let mut at = at;
        for (length, blank) in self.runs(at, length) {
            if blank {
                extents.push((length, false));
            } else {
                for stretch in self.map.split(at, length) {
                    let piece = self.piece(stretch)?;
                    let found = piece.file.extents(piece.data_at + stretch.offset, stretch.length).await;
                    extents.extend(found.map_err(|error| self.disk_error("reading the extents of", piece, &error))?);
                }
            }
            at += length;
        }
        Ok(extents)
    }
}

impl<D: Doors> Area<D> {
    /// Reads `buffer[range]` from the slice, and fills `sums` with the checksums of its blocks, four bytes each (or none at
    /// all if it is empty): the kept ones, which the data need not fit (K1); computed ones where none are kept, unless another leg
    /// in sync knows better.
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
        if sums.is_empty() {
            let (result, buffer) = inner.read_data(at, buffer, range).await;
            return (result.map(|()| ReadInfo { recomputed: false }), buffer);
        }
        if sums.len() != table_size(range.len()) {
            return (Err(AreaError::new(AreaErrorKind::OutOfRange, "a read takes a checksum for each of its blocks")), buffer);
        }
        let (result, buffer) = inner.read_summed(at, buffer, range, sums).await;
        let result = result.map(|mut computed| {
            // K1: a checksum that does not fit sends the client to the other leg, and what that one has is written here.
            let doubted = computed.extract_if(.., |block| inner.is_doubted(((at / BLOCK_SIZE) as usize + *block) / BLOCKS));
            doubted.for_each(|block| spoil(sums, block));
            ReadInfo { recomputed: !computed.is_empty() }
        });
        (result, buffer)
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
        let writing = inner.begin_write(slice, at, data.len() as u64).await?;
        let written = inner.write_data(at, data).await;
        writing.end(written.is_ok().then_some(NewSums::Table(sums)));
        written?;
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
        let begin = inner.locate(slice, offset, length)?;
        let how = if keep_allocated || !self.sparse() { Zero::Keep } else { Zero::Punch };
        let end = begin + length;
        let mut at = begin;
        while at < end {
            // Region by region, so that not more become hot at once than may be.
            let at_once = (u64::from(inner.hot_share()) / PART_OF_SHARE).clamp(1, ZEROED_AT_ONCE);
            let next = ((at / REGION_SIZE + at_once) * REGION_SIZE).min(end);
            let mut from = at;
            for (length, blank) in inner.runs(at, next - at) {
                // A blank region reads as zero already.
                if !blank {
                    let writing = inner.begin_write(slice, from, length).await?;
                    let zeroed = inner.zero_data(from, length, how).await;
                    writing.end(zeroed.is_ok().then_some(NewSums::Zeroes));
                    zeroed?;
                }
                from += length;
            }
            at = next;
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
        for (length, data) in inner.extents_of(at, length).await? {
            match extents.last_mut() {
                Some(last) if last.data == data => last.length += length,
                _ => extents.push(Extent { length, data }),
            }
        }
        extents.truncate(EXTENTS_PER_REPLY_MAX);
        Ok(extents)
    }
}
