//! The front door: requests of any alignment, split into pieces of segments, served in parallel.

use std::cell::{OnceCell, RefCell};
use std::ops::RangeInclusive;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, join_all, select, try_join_all};
use futures_util::{FutureExt, StreamExt, stream};
use sublet_api::mount::MountingInformation;
use sublet_api::request::LenderAddresses;
use sublet_doors::local::Signal;
use sublet_doors::{Buffer, Chunk, Doors, RunOn};
use sublet_types::limits::{BLOCK_SIZE, REQUEST_SIZE_MAX};
use sublet_types::{BlockRange, Piece, VolumeMap};
use sublet_wire::Flags;
use sublet_wire::message::Extent;

use crate::change::Change;
use crate::error::{VolumeError, VolumeErrorKind};
use crate::extents;
use crate::habit::Habit;
use crate::leg;
use crate::members::Role;
use crate::options::{BlockCipher, ManagerDoor, VolumeOptions, ZeroFlags};
use crate::sealed;
use crate::search::{self, SearchSummary, Wanted};
use crate::segment::Segment;
use crate::shared::{Phase, Shared};
use crate::status::PathStatus;
use crate::supervise;

/// How long opening waits for lenders without which nothing can be read, unless `fail_after` is shorter.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// A lender that refuses for so long while a volume is being opened will go on refusing.
const REFUSAL_LIMIT: Duration = Duration::from_secs(3);
/// Zeroes are made in requests of at most so many bytes, so that none of them keeps a lender busy for long ...
const ZERO_SIZE_MAX: u64 = 16 << 20;
/// ... and so many of them at the same time.
const ZEROES_AT_ONCE: usize = 8;

/// A mounted volume.
pub struct Volume<D: Doors, M: ManagerDoor> {
    pub(crate) inner: Rc<Inner<D, M>>,
}

/// What requests and background tasks hold on to.
pub(crate) struct Inner<D: Doors, M: ManagerDoor> {
    pub(crate) shared: Rc<Shared<D, M>>,
    pub(crate) map: VolumeMap,
    pub(crate) segments: Vec<Rc<Segment<D, M>>>,
    /// What its users see.
    pub(crate) size: u64,
    /// Of a sealed volume, once its key is there.
    pub(crate) cipher: OnceCell<Box<dyn BlockCipher>>,
    pub(crate) status_changed: Signal,
    habit: RefCell<Habit>,
}

impl<D: Doors, M: ManagerDoor> Drop for Volume<D, M> {
    fn drop(&mut self) {
        // Without a clean CLOSE: the next mount makes the legs equal first.
        self.inner.shared.set_phase(Phase::Closed);
    }
}

/// The versions of the mounting information that are understood here: 2 is that of a sealed volume, whose bytes a program that knows
/// 1 only would take for others.
pub const MOUNT_VERSIONS: RangeInclusive<u32> = 1..=2;

fn protocol(text: impl Into<String>) -> VolumeError {
    VolumeError::new(VolumeErrorKind::Protocol, text)
}

impl<D: Doors, M: ManagerDoor> Volume<D, M> {
    /// Opens sessions with all lenders of the mounting information. A lender that is missing is waited for; with another copy of
    /// its segment it is a lost leg, not an error.
    ///
    /// # Errors
    /// `LenderMissing` if a segment has no copy within the time limit, `Fenced` if the epoch is not the newest, `Protocol` if the
    /// mounting information cannot be.
    pub async fn open(doors: D, manager: M, info: MountingInformation, options: VolumeOptions) -> Result<Rc<Self>, VolumeError> {
        if !MOUNT_VERSIONS.contains(&info.version) {
            let newest = MOUNT_VERSIONS.end();
            let text = format!("the mounting information has version {}, this program knows {newest}", info.version);
            return Err(protocol(text));
        }
        let map = VolumeMap::new(info.segments.iter().map(|s| s.length)).map_err(|e| protocol(e.to_string()))?;
        if info.size == 0 || info.size > map.size() {
            return Err(protocol(format!("the mounting information says {} bytes, its segments have {}", info.size, map.size())));
        }
        if info.sealed && (info.announced() == 0 || !info.size.is_multiple_of(BLOCK_SIZE)) {
            return Err(protocol(format!("a sealed volume cannot have {} bytes", info.size)));
        }
        if info.secret.is_none() {
            return Err(protocol("the mounting information has no lease secret: use the one that the mount stored"));
        }
        if let Some(bad) = info.segments.iter().position(|s| !s.legs.iter().any(|leg| leg.in_sync)) {
            return Err(protocol(format!("segment {bad} has no copy that is in sync")));
        }
        tracing::info!(volume = %info.name, epoch = info.epoch.number, boot = options.boot, "opening the path to the lenders");
        let shared = Rc::new(Shared::new(doors, manager, info, options));
        let facts = shared.info.segments.iter().enumerate();
        let segments =
            facts.map(|(i, facts)| Rc::new(Segment::new(Rc::clone(&shared), i, map.segment_start(i), facts))).collect();
        let size = shared.info.announced();
        let volume = Rc::new(Self {
            inner: Rc::new(Inner {
                shared,
                map,
                segments,
                size,
                cipher: OnceCell::new(),
                status_changed: Signal::new(),
                habit: RefCell::new(Habit::new()),
            }),
        });
        let inner = &volume.inner;
        for segment in &inner.segments {
            for index in 0..segment.legs.len() {
                inner.shared.doors.spawn(leg::run(Rc::clone(segment), index));
            }
        }
        let limit = options.fail_after.map_or(OPEN_LIMIT, |limit| limit.min(OPEN_LIMIT));
        let opened = inner.shared.doors.timeout(limit, inner.wait_for_lenders()).await;
        opened.unwrap_or_else(|_| Err(inner.first_missing()))?;
        for segment in &inner.segments {
            segment.settle();
            inner.shared.doors.spawn(supervise::run(Rc::clone(segment)));
        }
        inner.shared.doors.spawn(Rc::clone(inner).watch_status());
        if !inner.shared.info.read_only {
            inner.shared.doors.spawn(Rc::clone(inner).watch_hot());
        }
        if let Some(idle_close) = options.idle_close {
            inner.shared.doors.spawn(Rc::clone(inner).watch_idle(idle_close));
        }
        Ok(volume)
    }

    /// The announced size in bytes.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// True if writes are refused.
    pub fn read_only(&self) -> bool {
        self.inner.shared.info.read_only
    }

    /// Reads a range of any alignment: its bytes in order, in chunks that hold little more memory than that.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Chunk>, VolumeError> {
        self.inner.check_range(offset, length)?;
        let _in_use = self.inner.shared.begin().await?;
        self.inner.read(offset, length, false).await
    }

    /// Writes at `offset`; with `fua` it is durable on every copy when this returns. Any alignment. A write that was begun runs to
    /// its end even if the returned future is dropped; as long as it is held, it has to be polled.
    ///
    /// # Errors
    /// [`VolumeError`]; any part may have been written then, but all copies have the same.
    pub async fn write(&self, offset: u64, data: Chunk, fua: bool) -> Result<(), VolumeError> {
        let length = data.len() as u64;
        // In many requests, each of them would be flushed by itself.
        let is_short = length <= REQUEST_SIZE_MAX;
        let write = move |inner: Rc<Inner<D, M>>, flush_follows: bool| async move {
            inner.write(offset, data, fua || (flush_follows && is_short)).await
        };
        self.change(offset, length, write).await
    }

    /// Makes a range read as zero (W6). Any alignment; as [`Volume::write`] otherwise.
    ///
    /// # Errors
    /// [`VolumeError`]; `Unsupported` with `fast` where a lender would have to write block by block.
    pub async fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), VolumeError> {
        self.change(offset, length, move |inner, _| async move { inner.write_zeroes(offset, length, flags).await }).await
    }

    /// Returns when every write that was acknowledged before is durable on every copy (W1).
    ///
    /// # Errors
    /// [`VolumeError`]; nothing is known to be durable then.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        let in_use = self.inner.shared.begin().await?;
        if self.read_only() {
            return Ok(());
        }
        self.inner.habit.borrow_mut().flush();
        let inner = Rc::clone(&self.inner);
        let flush = async move { inner.flush_unflushed().await };
        let flush = RunOn::new(&self.inner.shared.doors, flush.inspect(move |_| drop(in_use)));
        self.inner.to_the_end(0, self.inner.size, flush).await
    }

    /// Which stretches of a range may hold data. They cover the range, or a first part of it if it is in very many stretches.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, VolumeError> {
        self.inner.check_range(offset, length)?;
        let _in_use = self.inner.shared.begin().await?;
        extents::extents(&self.inner, offset, length).await
    }

    /// Finds a byte pattern, overlapping matches too: the lenders search, only offsets come back. `found` gets ascending
    /// offsets, and the search goes on when it returns; `progress` gets bytes done and in all. Ends at once when it is dropped.
    ///
    /// # Errors
    /// [`VolumeError`]; `Closed` if the volume is closed meanwhile, which does not wait for searches.
    pub async fn search(
        &self,
        wanted: Wanted<'_>,
        found: &mut impl AsyncFnMut(Vec<u64>),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<SearchSummary, VolumeError> {
        let shared = &self.inner.shared;
        let _in_use = shared.begin().await?;
        let search = pin!(search::search(&self.inner, &wanted, found, progress));
        match select(search, pin!(shared.closing())).await {
            Either::Left((result, _)) => result,
            Either::Right((error, _)) => Err(error),
        }
    }

    /// How the path is.
    pub fn status(&self) -> PathStatus {
        self.inner.status()
    }

    /// Notified when the path, its reason or the missing lenders have changed.
    pub fn status_changed(&self) -> &Signal {
        &self.inner.status_changed
    }

    /// Takes over where the lenders can be reached.
    pub fn update_lenders(&self, lenders: Vec<LenderAddresses>) {
        self.inner.shared.update_lenders(lenders);
    }

    /// The manager knows a newer epoch: everything stops as if a lender had said so, reads too, and nothing is proposed any more
    /// (F4).
    pub fn fence(&self, text: &str) {
        self.inner.shared.fence(text);
    }

    /// Ends: waits for requests under way, flushes, and closes all sessions in order. With `force`, lenders that do not answer are
    /// not waited for. True if every in-sync leg has taken the close as a clean one: only then need the next mount not make the
    /// legs equal (H3, F5). False if it had been closed before.
    ///
    /// # Errors
    /// Without `force`, [`VolumeError`] if not everything could be made durable; the volume goes on then.
    pub async fn close(&self, force: bool) -> Result<bool, VolumeError> {
        self.inner.close(force).await
    }

    /// Carries `work` out, which is told whether a flush is likely to follow (see [`crate::habit`]).
    async fn change<F>(&self, offset: u64, length: u64, work: impl FnOnce(Rc<Inner<D, M>>, bool) -> F) -> Result<(), VolumeError>
    where
        F: Future<Output = Result<(), VolumeError>> + 'static,
    {
        self.inner.check_range(offset, length)?;
        self.carry_out(offset, length, work).await
    }

    /// The same for a range that its users do not see.
    pub(crate) async fn carry_out<F>(
        &self,
        offset: u64,
        length: u64,
        work: impl FnOnce(Rc<Inner<D, M>>, bool) -> F,
    ) -> Result<(), VolumeError>
    where
        F: Future<Output = Result<(), VolumeError>> + 'static,
    {
        if self.read_only() {
            return Err(VolumeError::new(VolumeErrorKind::ReadOnly, "the volume is mounted read-only"));
        }
        let in_use = self.inner.shared.begin().await?;
        // Put into its box before anything is waited for: otherwise every future around it would have room for it.
        let inner = Rc::clone(&self.inner);
        let flush_follows = inner.habit.borrow_mut().begin();
        let work = work(Rc::clone(&inner), flush_follows).inspect(move |_| {
            inner.habit.borrow_mut().end();
            drop(in_use);
        });
        let work = RunOn::new(&self.inner.shared.doors, work);
        self.inner.to_the_end(offset, length, work).await
    }
}

impl<D: Doors, M: ManagerDoor> Inner<D, M> {
    fn check_range(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let text = format!("{length} bytes at {offset} do not lie in a volume of {} bytes", self.size);
        Err(VolumeError::new(VolumeErrorKind::OutOfRange, text))
    }

    /// Every segment has all its in-sync legs, or one of them and no more patience.
    async fn wait_for_lenders(&self) -> Result<(), VolumeError> {
        let began = self.shared.doors.now();
        loop {
            self.shared.alive()?;
            let waited = self.shared.doors.now().since(began);
            let ready = self.segments.iter().all(|segment| {
                let in_sync = segment.members.borrow().which(|m| m.role == Role::InSync);
                let sound = in_sync.iter().filter(|leg| segment.is_sound(**leg)).count();
                sound == in_sync.len() || (sound > 0 && waited >= leg::reconnect_grace())
            });
            if ready {
                return Ok(());
            }
            let refused = self.segments.iter().any(|segment| {
                let in_sync = segment.members.borrow().which(|m| m.role == Role::InSync);
                in_sync.iter().all(|leg| segment.legs.get(*leg).is_some_and(|leg| leg.refused.get()))
            });
            if refused && waited >= REFUSAL_LIMIT {
                return Err(self.first_missing());
            }
            // Looked at again when something changes, and when one of the limits above may be over.
            let seen = self.shared.changed.version();
            let _ = self.shared.doors.timeout(Duration::from_millis(200), self.shared.changed.changed(seen)).await;
        }
    }

    fn first_missing(&self) -> VolumeError {
        let missing = self.segments.iter().find(|s| !(0..s.legs.len()).any(|leg| s.is_sound(leg)));
        missing.or(self.segments.first()).map_or_else(|| protocol("the volume has no segment"), |segment| segment.expired())
    }

    /// Waits for a change, which runs to its end: a caller that goes away leaves neither a lock held nor a write half-sent. After
    /// `fail_after` the caller gets its error, while the change goes on until all copies have it.
    async fn to_the_end<F>(&self, offset: u64, length: u64, mut work: RunOn<D, F>) -> Result<(), VolumeError>
    where
        F: Future<Output = Result<(), VolumeError>> + 'static,
    {
        if self.shared.options.fail_after.is_none() {
            return work.await;
        }
        loop {
            let seen = self.shared.changed.version();
            let touched = |s: &&Rc<Segment<D, M>>| s.start < offset + length && offset < s.start + s.length;
            let expired = self.segments.iter().filter(touched).find(|s| s.changes_expired.get());
            if let Some(segment) = expired {
                return (&mut work).now_or_never().unwrap_or_else(|| Err(segment.expired()));
            }
            match select(&mut work, self.shared.changed.changed(seen)).await {
                Either::Left((result, _)) => return result,
                Either::Right(_) => {}
            }
        }
    }

    /// Reads any range; the caller has checked it, and with `held` has its range lock.
    pub(crate) async fn read(&self, offset: u64, length: u64, held: bool) -> Result<Vec<Chunk>, VolumeError> {
        self.read_blocks(offset, length, held, self.cipher()?).await
    }

    /// The same with this cipher, or as the bytes are stored.
    pub(crate) async fn read_blocks(
        &self,
        offset: u64,
        length: u64,
        held: bool,
        cipher: Option<&dyn BlockCipher>,
    ) -> Result<Vec<Chunk>, VolumeError> {
        let blocks = BlockRange::covering(offset, length);
        let start = blocks.start * BLOCK_SIZE;
        let mut pieces = self.map.pieces(start, (blocks.end - blocks.start) * BLOCK_SIZE, REQUEST_SIZE_MAX);
        let read = async |piece: Piece| {
            let Some(segment) = self.segments.get(piece.segment) else { return Err(protocol("no such segment")) };
            let length = u32::try_from(piece.length).unwrap_or(u32::MAX);
            let chunk = segment.read(piece.offset, length, held).await?;
            match cipher {
                None => Ok(chunk),
                Some(cipher) => sealed::decrypted(cipher, start + piece.at, &chunk),
            }
        };
        let mut chunks = match (pieces.next(), pieces.next()) {
            (None, _) => return Ok(Vec::new()),
            (Some(only), None) => vec![read(only).await?],
            (Some(first), Some(second)) => Box::pin(try_join_all([first, second].into_iter().chain(pieces).map(read))).await?,
        };
        // The part of these blocks that was asked for.
        let excess = (blocks.end * BLOCK_SIZE - offset - length) as usize;
        if let Some(last) = chunks.last_mut() {
            *last = last.part(0..last.len().saturating_sub(excess));
        }
        if let Some(first) = chunks.first_mut() {
            *first = first.part((offset - start) as usize..first.len());
        }
        Ok(chunks.into_iter().map(Chunk::lean).collect())
    }

    /// The same, into memory of the caller.
    pub(crate) async fn read_into(&self, offset: u64, into: &mut [u8], held: bool) -> Result<(), VolumeError> {
        let mut rest = into;
        for chunk in self.read(offset, rest.len() as u64, held).await? {
            let Some((part, behind)) = rest.split_at_mut_checked(chunk.len()) else {
                return Err(protocol("a read brought more than was asked for"));
            };
            part.copy_from_slice(&chunk);
            rest = behind;
        }
        if rest.is_empty() { Ok(()) } else { Err(protocol("a read brought less than was asked for")) }
    }

    async fn write(&self, offset: u64, data: Chunk, fua: bool) -> Result<(), VolumeError> {
        if data.is_empty() {
            return Ok(());
        }
        // W2: for the whole range, also around the reading of a partial block.
        let _guard = self.shared.ranges.lock(BlockRange::covering(offset, data.len() as u64)).await;
        self.shared.alive()?;
        self.write_locked(offset, data, fua).await
    }

    /// Writes under the caller's range lock: partial blocks at the edges are read first and completed.
    async fn write_locked(&self, offset: u64, data: Chunk, fua: bool) -> Result<(), VolumeError> {
        let blocks = BlockRange::covering(offset, data.len() as u64);
        let (start, end) = (blocks.start * BLOCK_SIZE, blocks.end * BLOCK_SIZE);
        let data =
            if end - start == data.len() as u64 { data } else { Box::pin(self.complete(offset, &data, start, end)).await? };
        match self.cipher()? {
            Some(cipher) => self.write_blocks(start, &sealed::encrypted(cipher, start, &data)?, fua).await,
            None => self.write_blocks(start, &data, fua).await,
        }
    }

    /// These bytes with the blocks around them, from `start` to `end`.
    async fn complete(&self, offset: u64, data: &Chunk, start: u64, end: u64) -> Result<Chunk, VolumeError> {
        let mut whole = Buffer::new((end - start) as usize);
        let edge = BLOCK_SIZE as usize;
        let size = whole.len();
        if offset > start {
            self.read_into(start, whole.get_mut(..edge).unwrap_or(&mut []), true).await?;
        }
        let tail_is_partial = offset + (data.len() as u64) < end;
        if tail_is_partial && (size > edge || offset == start) {
            self.read_into(end - BLOCK_SIZE, whole.get_mut(size - edge..).unwrap_or(&mut []), true).await?;
        }
        let at = (offset - start) as usize;
        if let Some(middle) = whole.get_mut(at..at + data.len()) {
            middle.copy_from_slice(data);
        }
        Ok(whole.freeze())
    }

    /// Carries changes out in parallel. All run to their end, whatever the others do: the lock is held for all of them.
    pub(crate) async fn change_all(&self, changes: &[(usize, Change)]) -> Result<(), VolumeError> {
        if let [(segment, change)] = changes {
            return match self.segments.get(*segment) {
                Some(segment) => segment.change(change).await,
                None => Ok(()),
            };
        }
        let work = changes.iter().filter_map(|(segment, change)| Some(self.segments.get(*segment)?.change(change)));
        join_all(work).await.into_iter().collect()
    }

    async fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), VolumeError> {
        if length == 0 {
            return Ok(());
        }
        let is_sealed = self.cipher()?.is_some();
        let end = offset + length;
        // The end of the volume counts as aligned: nothing that anybody can read lies behind it, unless it is sealed. Copies of it
        // do (W2).
        let middle_end = if end == self.size && !is_sealed { self.map.size() } else { end / BLOCK_SIZE * BLOCK_SIZE };
        let _guard = self.shared.ranges.lock(BlockRange::covering(offset, end.max(middle_end) - offset)).await;
        self.shared.alive()?;
        let middle_start = offset.div_ceil(BLOCK_SIZE) * BLOCK_SIZE;
        if middle_start >= middle_end {
            return self.write_locked(offset, Buffer::zeroed(length as usize).freeze(), flags.fua).await;
        }
        let flag = |on: bool, flag: Flags| if on { flag } else { Flags::default() };
        let wire = flag(flags.fua, Flags::FUA).and(flag(flags.no_hole, Flags::NO_HOLE)).and(flag(flags.fast, Flags::FAST));
        let pieces = self.map.pieces(middle_start, middle_end - middle_start, ZERO_SIZE_MAX);
        let zeroes = pieces.map(|p| {
            let change = Change::Zero { offset: p.offset, length: u32::try_from(p.length).unwrap_or(u32::MAX), flags: wire };
            async move {
                match self.segments.get(p.segment) {
                    Some(segment) => segment.change(&change).await,
                    None => Ok(()),
                }
            }
        });
        let results: Vec<_> = stream::iter(zeroes).buffer_unordered(ZEROES_AT_ONCE).collect().await;
        results.into_iter().collect::<Result<(), _>>()?;
        if offset < middle_start {
            self.write_locked(offset, Buffer::zeroed((middle_start - offset) as usize).freeze(), flags.fua).await?;
        }
        if end > middle_end {
            self.write_locked(middle_end, Buffer::zeroed((end - middle_end) as usize).freeze(), flags.fua).await?;
        }
        Ok(())
    }

    /// Makes everything that was acknowledged durable. A segment in which all of it is durable already is not asked (W1).
    async fn flush_unflushed(&self) -> Result<(), VolumeError> {
        self.shared.alive()?;
        let unflushed = self.segments.iter().filter(|segment| segment.needs_flush());
        join_all(unflushed.map(|segment| segment.change(&Change::Flush))).await.into_iter().collect()
    }

    /// Makes everything at all lenders durable, also what an earlier client left.
    pub(crate) async fn flush(&self) -> Result<(), VolumeError> {
        join_all(self.segments.iter().map(|segment| segment.change(&Change::Flush))).await.into_iter().collect()
    }
}
