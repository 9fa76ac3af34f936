//! The regions of an area in memory: the table, what is hot, and who waits. Numbers are of the area, piece after piece.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures_channel::oneshot;
use futures_util::lock::Mutex;
use sublet_doors::Tick;
use sublet_types::SliceId;

use crate::active::Active;
use crate::error::AreaError;
use crate::layout::Reserve;
use crate::missed::Maps;
use crate::sums::{BlockBits, Cache, SumPage};
use crate::table::{RECORDS_PER_PAGE, Record, State};

/// The most regions of an area that are hot at a time (H2).
pub(crate) const HOT_MAX: u32 = 1024;
/// What every slice may have of them, however many slices there are.
pub(crate) const HOT_SHARE_MIN: u32 = 8;

/// Those who wait until a region may be written.
type Waiters = Vec<oneshot::Sender<Result<(), AreaError>>>;

/// A hot region.
pub(crate) struct Hot {
    pub slice: SliceId,
    /// Checksums; none after a crash until somebody needs them.
    pub sums: Option<Box<SumPage>>,
    /// Blocks whose checksum was kept since the block was written, or fits it.
    pub kept: BlockBits,
    /// The checksums of other blocks are those of the last checkpoint: if the data fits, it has not gone wrong since.
    pub guess: bool,
    /// Of the kept ones, those of which only that is known: the block may have been written since, and the write been lost.
    pub proven: BlockBits,
    /// Writes under way.
    pub writes: u32,
    /// The number of the last write that ended.
    pub written: u64,
    /// When it was last written.
    pub used: Tick,
    /// When it became hot, or was last checkpointed.
    pub saved: Tick,
    /// Its last block was written: the writer may go on in the next region.
    pub tail: bool,
    /// Checksums were set since.
    pub changed: bool,
    /// It is being cooled; a write takes this back.
    pub cooling: bool,
    /// The end of a write is not known: it is not cooled before the area is opened again.
    pub abandoned: bool,
    /// How often its checksums could not be completed when it was to cool: others are read before it.
    pub failed: u32,
    /// It was hot already when the area, or the present epoch, was opened: its legs may differ, and nobody knows where.
    pub inherited: bool,
    /// It was hot when the area was opened.
    pub found: bool,
    /// The same, after something that can have taken unflushed writes with it, and the legs were not equal since: this one may
    /// have lost what another one has (H3).
    pub lost: bool,
}

impl Hot {
    pub fn new(slice: SliceId, sums: Option<Box<SumPage>>, kept: BlockBits, now: Tick) -> Self {
        Self {
            slice,
            sums,
            kept,
            guess: false,
            proven: BlockBits::NONE,
            writes: 0,
            written: 0,
            used: now,
            saved: now,
            tail: false,
            changed: false,
            cooling: false,
            abandoned: false,
            failed: 0,
            inherited: false,
            found: false,
            lost: false,
        }
    }

    /// A region that was hot when the area was opened.
    pub fn found(slice: SliceId, lost: bool, now: Tick) -> Self {
        Self { inherited: true, found: true, lost, ..Self::new(slice, None, BlockBits::NONE, now) }
    }
}

/// What is known of a region page's copies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageState {
    pub sequence: u64,
    /// The copy that is known to be whole and durable: the other one is written next.
    pub durable: usize,
}

/// The table of one piece.
pub(crate) struct PieceRegions {
    pub reserve: Reserve,
    /// The first region of the piece in the area.
    pub first: usize,
    /// Regions that wait for their hot mark.
    pub pending: RefCell<BTreeSet<usize>>,
    /// Held while region pages are written.
    pub pages: Mutex<Vec<PageState>>,
}

impl PieceRegions {
    /// The region pages that these regions lie in, ascending.
    pub fn pages_of(&self, regions: &BTreeSet<usize>) -> Vec<usize> {
        let mut pages: Vec<usize> = regions.iter().map(|region| (region - self.first) / RECORDS_PER_PAGE).collect();
        pages.dedup();
        pages
    }
}

/// All regions of an area.
pub(crate) struct Regions {
    pub pieces: Vec<PieceRegions>,
    /// What the region pages say. A mark is here once it is durable; what is taken back may be here before.
    pub records: RefCell<Vec<Record>>,
    pub hot: RefCell<BTreeMap<usize, Hot>>,
    pub cache: RefCell<Cache>,
    pub active: RefCell<Active>,
    pub maps: RefCell<Maps>,
    heating: RefCell<BTreeMap<usize, Waiters>>,
    /// Regions that somebody is about to write once all that he needs are ready, with how many there are: they do not cool.
    pinned: RefCell<BTreeMap<usize, u32>>,
    /// Counts writes that ended.
    pub ended: Cell<u64>,
    /// Writes up to this number are durable.
    pub flushed: Cell<u64>,
    /// Held while regions cool and while maps change: what is being written stays what it is.
    pub cooling: Mutex<()>,
}

impl Regions {
    pub fn new(pieces: Vec<PieceRegions>, records: Vec<Record>) -> Self {
        Self {
            pieces,
            records: RefCell::new(records),
            hot: RefCell::default(),
            cache: RefCell::default(),
            active: RefCell::default(),
            maps: RefCell::default(),
            heating: RefCell::default(),
            pinned: RefCell::default(),
            ended: Cell::new(0),
            flushed: Cell::new(0),
            cooling: Mutex::new(()),
        }
    }

    pub fn record(&self, region: usize) -> Record {
        self.records.borrow().get(region).copied().unwrap_or_default()
    }

    pub fn is_blank(&self, region: usize) -> bool {
        self.record(region).state == State::Blank
    }

    /// The piece of a region, and its number there.
    pub fn place(&self, region: usize) -> (usize, usize) {
        let piece = self.pieces.partition_point(|piece| piece.first <= region).saturating_sub(1);
        (piece, region - self.pieces.get(piece).map_or(0, |piece| piece.first))
    }

    /// True if writes to the region may begin: its mark is durable, and its checksums are here.
    pub fn is_ready(&self, region: usize) -> bool {
        self.record(region).state == State::Hot && self.hot.borrow().get(&region).is_some_and(|hot| hot.sums.is_some())
    }

    /// Keeps regions hot until the answer is dropped. Without that, a writer who needs several of them could wait for ever: while
    /// he waits for the last one, the first one cools to make room.
    pub fn pin(&self, range: Range<usize>) -> Pinned<'_> {
        let mut pinned = self.pinned.borrow_mut();
        range.clone().for_each(|region| *pinned.entry(region).or_default() += 1);
        Pinned { regions: self, range }
    }

    pub fn is_pinned(&self, region: usize) -> bool {
        self.pinned.borrow().contains_key(&region)
    }

    /// How many regions of a slice are hot.
    pub fn hot_count(&self, slice: SliceId) -> u32 {
        self.hot.borrow().values().filter(|hot| hot.slice == slice).count() as u32
    }

    /// Does something with every hot region of a slice.
    pub fn hot_of(&self, slice: SliceId, mut with: impl FnMut(&mut Hot)) {
        self.hot.borrow_mut().values_mut().filter(|hot| hot.slice == slice).for_each(&mut with);
    }

    /// The hot regions in a range, ascending.
    pub fn hot_in(&self, range: &Range<usize>) -> Vec<usize> {
        self.hot.borrow().range(range.clone()).map(|(region, _)| *region).collect()
    }

    /// Joins those who wait for a region; true for the first one, who has to see to it that it becomes hot.
    pub fn wait(&self, region: usize) -> (bool, oneshot::Receiver<Result<(), AreaError>>) {
        let (sender, receiver) = oneshot::channel();
        let mut heating = self.heating.borrow_mut();
        let first = !heating.contains_key(&region);
        heating.entry(region).or_default().push(sender);
        (first, receiver)
    }

    /// Whether a region is on its way to being hot.
    pub fn is_heating(&self, region: usize) -> bool {
        self.heating.borrow().contains_key(&region)
    }

    /// Hears when a region that is on its way to being hot is that.
    pub fn heated(&self, region: usize) -> Option<oneshot::Receiver<Result<(), AreaError>>> {
        let (sender, receiver) = oneshot::channel();
        self.heating.borrow_mut().get_mut(&region)?.push(sender);
        Some(receiver)
    }

    /// Tells those who wait how it ended.
    pub fn done(&self, region: usize, result: &Result<(), AreaError>) {
        let waiters = self.heating.borrow_mut().remove(&region).unwrap_or_default();
        for waiter in waiters {
            // One who has gone needs no answer.
            let _ = waiter.send(result.clone());
        }
    }
}

/// See [`Regions::pin`].
pub(crate) struct Pinned<'a> {
    regions: &'a Regions,
    range: Range<usize>,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let mut pinned = self.regions.pinned.borrow_mut();
        for region in self.range.clone() {
            match pinned.get_mut(&region) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(pinned.remove(&region)),
            }
        }
    }
}
