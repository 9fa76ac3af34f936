//! Region pages on the disk. A page has two copies, and a change goes to the one that is not known to be the newest durable
//! one, with a higher sequence: a torn write leaves the other one whole. So a hot mark costs one write and one sync, and all
//! marks that wait meanwhile share them. Only a region of a device that was blank takes both copies: who has just one of
//! them could otherwise take it for blank, and its data for nothing (P1). For everything else a lost copy is made good by
//! distrust, see [`crate::table::choose`].

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use sublet_types::mutation::{self, Mutation};

use sublet_doors::{Buffer, DiskFile, Doors};

use crate::area::{Inner, OpenPiece, all_ended};
use crate::error::{AreaError, AreaErrorKind};
use crate::layout::{PAGE_SIZE, Reserve};
use crate::regions::{PageState, PieceRegions};
use crate::table::{Chosen, Copy, RECORDS_PER_PAGE, Record, State, choose, decode, encode, length_of_page};

/// Pages that are read at once when an area is opened.
const PAGES_PER_READ: u64 = 256;

/// Writes the region pages of a piece: both copies, durable.
pub(crate) async fn format<F: DiskFile>(file: &F, piece_at: u64, reserve: Reserve, records: &[Record]) -> std::io::Result<()> {
    for copy in 0..2 {
        for page in 0..reserve.pages() {
            let records = records.iter().copied().skip(page as usize * RECORDS_PER_PAGE);
            let bytes = Buffer::copy_of(&encode(page as usize, records, 1)).freeze();
            let at = reserve.page(page).get(copy).copied().unwrap_or(0);
            file.write_at(piece_at + at, bytes).await?;
        }
        file.sync().await?;
    }
    Ok(())
}

/// Reads one copy of these pages.
async fn read_copy<F: DiskFile>(file: &F, piece_at: u64, reserve: Reserve, pages: Range<u64>, copy: usize) -> Vec<Copy> {
    let count = |page: u64| length_of_page(page as usize, reserve.regions as usize);
    let begin = |page: u64| piece_at + reserve.page(page).get(copy).copied().unwrap_or(0);
    let size = PAGE_SIZE as usize;
    let length = (pages.end - pages.start) as usize * size;
    let (result, buffer) = file.read_at(begin(pages.start), Buffer::new(length), 0..length).await;
    if result.is_ok() {
        return pages.zip(buffer.chunks_exact(size)).map(|(page, bytes)| decode(bytes, page as usize, count(page))).collect();
    }
    // One bad sector must not cost the others.
    let mut copies = Vec::with_capacity(length / size);
    for page in pages {
        let (result, buffer) = file.read_at(begin(page), Buffer::new(size), 0..size).await;
        copies.push(if result.is_ok() { decode(&buffer, page as usize, count(page)) } else { Copy::Bad });
    }
    copies
}

/// Reads the table of a piece. A page of which one copy is bad is written anew there, with all that has to be assumed.
///
/// # Errors
/// If both copies of a page are bad, or of a newer version, or cannot be repaired.
pub(crate) async fn load<F: DiskFile>(
    file: &F,
    piece_at: u64,
    reserve: Reserve,
    tracked: bool,
    who: &str,
) -> Result<(Vec<Record>, Vec<PageState>), AreaError> {
    let mut records = Vec::with_capacity(reserve.regions as usize);
    let mut states = Vec::with_capacity(reserve.pages() as usize);
    let mut read = VecDeque::new();
    for page in 0..reserve.pages() {
        if read.is_empty() {
            // Not all of them at once: a large area has many, and memory that was needed once is rarely given back.
            let pages = page..(page + PAGES_PER_READ).min(reserve.pages());
            let firsts = read_copy(file, piece_at, reserve, pages.clone(), 0).await;
            read.extend(firsts.into_iter().zip(read_copy(file, piece_at, reserve, pages, 1).await));
        }
        let (first, second) = read.pop_front().unwrap_or((Copy::Bad, Copy::Bad));
        let chosen = choose([first, second], tracked).map_err(|version| {
            let text = format!("the region pages of {who} were written by a newer Sublet (format version {version})");
            AreaError::new(AreaErrorKind::Format, text).hint("use a Sublet of that version or later")
        })?;
        let Chosen { mut sequence, records: own, mut copy, alone } = chosen.ok_or_else(|| {
            let text = format!("both copies of region page {page} of {who} are damaged: it cannot be told what was written");
            AreaError::new(AreaErrorKind::Format, text).hint("restore the disk from a copy; nothing on it is touched")
        })?;
        if alone {
            tracing::warn!("a copy of region page {page} of {who} is damaged: its {} regions count as hot", own.len());
            (sequence, copy) = (sequence + 1, 1 - copy);
            let bytes = Buffer::copy_of(&encode(page as usize, own.iter().copied(), sequence)).freeze();
            let at = piece_at + reserve.page(page).get(copy).copied().unwrap_or(0);
            let repaired = async {
                // The good copy may not be durable: whoever wrote it may have been stopped before it waited for that.
                file.sync().await?;
                file.write_at(at, bytes).await?;
                file.sync().await
            };
            let failed = |error| AreaError::io(format!("cannot repair region page {page} of {who}"), &error);
            repaired.await.map_err(failed)?;
        }
        records.extend(own);
        states.push(PageState { sequence, durable: copy });
    }
    Ok((records, states))
}

impl<D: Doors> Inner<D> {
    /// Makes the hot mark of a region durable (H1); a blank region of a device has been zeroed, perhaps not yet durably.
    pub async fn mark_hot(&self, region: usize) -> Result<(), AreaError> {
        let (piece, regions) = self.piece_of(region)?;
        regions.pending.borrow_mut().insert(region);
        let mut pages = regions.pages.lock().await;
        // Who took this mark along and failed has left word.
        self.check_writable()?;
        if !regions.pending.borrow().contains(&region) {
            return Ok(());
        }
        let batch = regions.pending.take();
        if mutation::is(Mutation::NoHotMark) {
            return Ok(());
        }
        let failed = |error| self.fail(&format!("marking regions of {} as hot", piece.spec), &error);
        let filled: BTreeSet<usize> = match piece.tracked {
            true => batch.iter().copied().filter(|region| self.regions.is_blank(*region)).collect(),
            false => BTreeSet::new(),
        };
        if !filled.is_empty() {
            // P1: the zeroes are durable before the mark is.
            piece.file.sync().await.map_err(failed)?;
        }
        self.write_pages(piece, regions, &mut pages, &batch, &batch).await.map_err(failed)?;
        self.sync_pages(piece, regions, &mut pages, &batch).await.map_err(failed)?;
        if !filled.is_empty() {
            let writes = regions.pages_of(&filled).into_iter().map(|page| self.write_page(piece, regions, &pages, page, &batch));
            all_ended(writes).await.map_err(failed)?;
            piece.file.sync().await.map_err(failed)?;
        }
        let mut records = self.regions.records.borrow_mut();
        for region in batch {
            if let Some(record) = records.get_mut(region) {
                record.state = State::Hot;
            }
        }
        Ok(())
    }

    /// Writes the region pages with these regions of one piece, as the table in memory has them by then. The caller sees to
    /// it that what changed may be believed although a crash may undo it; `durable` waits for the disk.
    pub async fn write_records(&self, piece: usize, changed: &BTreeSet<usize>, durable: bool) -> Result<(), AreaError> {
        let (Some(open), Some(regions)) = (self.pieces.get(piece), self.regions.pieces.get(piece)) else { return Ok(()) };
        let mut pages = regions.pages.lock().await;
        self.check_writable()?;
        let failed = |error| self.fail(&format!("writing region pages of {}", open.spec), &error);
        self.write_pages(open, regions, &mut pages, changed, &BTreeSet::new()).await.map_err(failed)?;
        if durable {
            self.sync_pages(open, regions, &mut pages, changed).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Writes every page with one of these regions to its copy that is not the newest durable one.
    async fn write_pages(
        &self,
        piece: &OpenPiece<D>,
        regions: &PieceRegions,
        pages: &mut [PageState],
        changed: &BTreeSet<usize>,
        heated: &BTreeSet<usize>,
    ) -> std::io::Result<()> {
        let touched = regions.pages_of(changed);
        for page in &touched {
            if let Some(state) = pages.get_mut(*page) {
                state.sequence += 1;
            }
        }
        all_ended(touched.into_iter().map(|page| self.write_page(piece, regions, pages, page, heated))).await?;
        Ok(())
    }

    async fn sync_pages(
        &self,
        piece: &OpenPiece<D>,
        regions: &PieceRegions,
        pages: &mut [PageState],
        changed: &BTreeSet<usize>,
    ) -> std::io::Result<()> {
        piece.file.sync().await?;
        for page in regions.pages_of(changed) {
            if let Some(state) = pages.get_mut(page) {
                state.durable = 1 - state.durable;
            }
        }
        Ok(())
    }

    /// Writes one page, with the regions in `heated` as hot.
    async fn write_page(
        &self,
        piece: &OpenPiece<D>,
        regions: &PieceRegions,
        pages: &[PageState],
        page: usize,
        heated: &BTreeSet<usize>,
    ) -> std::io::Result<()> {
        let Some(state) = pages.get(page) else { return Ok(()) };
        let count = length_of_page(page, regions.reserve.regions as usize);
        let begin = regions.first + page * RECORDS_PER_PAGE;
        let bytes = {
            let records = self.regions.records.borrow();
            let own = (begin..begin + count).map(|region| {
                let record = records.get(region).copied().unwrap_or_default();
                if heated.contains(&region) { record.heated() } else { record }
            });
            Buffer::copy_of(&encode(page, own, state.sequence)).freeze()
        };
        let at = regions.reserve.page(page as u64).get(1 - state.durable).copied().unwrap_or(0);
        piece.file.write_at(piece.spec.offset + at, bytes).await
    }

    /// The piece that a region lies in.
    pub fn piece_of(&self, region: usize) -> Result<(&OpenPiece<D>, &PieceRegions), AreaError> {
        let (piece, _) = self.regions.place(region);
        let both = self.pieces.get(piece).zip(self.regions.pieces.get(piece));
        both.ok_or_else(|| AreaError::new(AreaErrorKind::OutOfRange, "behind the last piece"))
    }
}
