//! Wiping a slice (P2): fence, overwrite with zeroes, make that durable, and only then forget it or free it.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::mpsc;
use futures_util::{StreamExt, stream};
use sublet_doors::disk::Zero;
use sublet_doors::{Buffer, DiskFile, Doors, Tick};
use sublet_types::limits::REGION_SIZE;
use sublet_types::mutation::{self, Mutation};
use sublet_types::size::MIB;
use sublet_types::{Epoch, SliceId};

use crate::area::{Area, Inner, OpenPiece, change, to_the_end};
use crate::error::AreaError;
use crate::heat::regions_in;
use crate::layout::{PAGE_SIZE, Reserve, Stretch};
use crate::lease::{check_wipe_epoch, fence_record};
use crate::record::{SliceRecord, WipeRecord};
use crate::table::Record;

/// How much is wiped between two notes in the label of how far it is.
const STEP: u64 = 256 * MIB;
/// How much is overwritten, or given back to the file system, between two looks at who else uses the area, and between two
/// reports of progress. A file system may hold everybody's writes to the file up while it gives space back.
const PART: u64 = 16 * MIB;
/// The size of one write of zeroes.
const WRITE: u64 = MIB;
/// How many of them are under way: enough to keep a disk busy, few enough to leave room for borrowers.
const WRITES_AT_ONCE: usize = 4;
/// The same where they are small, because the data lies in pieces.
const SMALL_WRITES_AT_ONCE: usize = 32;
/// While borrowers use the area, wipes run at most at so many bytes a second, like other background work ...
const RATE_IN_USE: u64 = 200 * MIB;
/// ... and rest at most so long after a part, however long that took: the disk is theirs for half of the time.
const REST_MAX: Duration = Duration::from_secs(2);
/// An area without a request for so long is not in use.
const IDLE_AFTER: Duration = Duration::from_secs(1);

impl<D: Doors> Area<D> {
    /// Wipes a slice: fences it, overwrites it with zeroes, and makes that durable before its record is dropped or becomes
    /// that of a free slice. Goes on where it was when it was interrupted; done already if the slice is gone.
    /// `progress` is told bytes done and bytes in all. The caller has ended all sessions.
    ///
    /// # Errors
    /// `StaleEpoch` if the slice was lent again since; or what the disk says. The slice stays "being wiped" then.
    pub async fn wipe_slice(
        &self,
        slice: SliceId,
        epoch: Epoch,
        drop: bool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<(), AreaError> {
        let own = Rc::clone(&self.inner);
        let (sender, mut receiver) = mpsc::unbounded();
        let work = to_the_end(&self.inner.doors, async move {
            let gate = Rc::clone(own.wiping.borrow_mut().entry(slice).or_default());
            let _one_at_a_time = gate.lock().await;
            let result = wipe(&own, slice, epoch, drop, &sender).await;
            // Nobody else waits for this gate: it can go.
            if Rc::strong_count(&gate) == 2 {
                own.wiping.borrow_mut().remove(&slice);
            }
            result
        });
        let report = async {
            while let Some((done, total)) = receiver.next().await {
                progress(done, total);
            }
        };
        futures_util::future::join(work, report).await.0
    }
}

async fn wipe<D: Doors>(
    inner: &Rc<Inner<D>>,
    slice: SliceId,
    epoch: Epoch,
    drop: bool,
    progress: &mpsc::UnboundedSender<(u64, u64)>,
) -> Result<(), AreaError> {
    // Fenced and marked as being wiped in one label change: from here on only the wipe touches it.
    let begun = change(inner, move |label| {
        let Some(record) = label.find_mut(slice) else { return Ok(None) };
        check_wipe_epoch(record, epoch)?;
        fence_record(record, epoch);
        let done = record.wipe.map_or(0, |wipe| wipe.done);
        record.wipe = Some(WipeRecord { done, drop });
        Ok(Some((record.facts.offset, record.facts.length, done)))
    });
    let Some((offset, length, mut done)) = begun.await? else { return Ok(()) };
    // Marks that the last session asked for.
    for region in regions_in(offset, length) {
        if let Some(heated) = inner.regions.heated(region) {
            // How it ended does not matter: it has ended.
            let _ = heated.await;
        }
    }
    let total = length;
    while done < length {
        let step_end = (done + STEP).min(length);
        let step_begin = done;
        while done < step_end {
            let begun = inner.doors.now();
            let part = PART.min(step_end - done);
            overwrite_data(inner, offset + done, part).await?;
            done += part;
            // Half of the work; the listener may have gone, and the wipe goes on.
            let _ = progress.unbounded_send((step_begin + (done - step_begin) / 2, total));
            rest(inner, part, begun).await;
        }
        sync(inner).await?;
        let mut released = step_begin;
        while released < step_end {
            let begun = inner.doors.now();
            let part = PART.min(step_end - released);
            for stretch in inner.map.split(offset + released, part) {
                release(inner, stretch).await?;
            }
            released += part;
            let half = (step_end - step_begin) / 2 + (released - step_begin) / 2;
            let _ = progress.unbounded_send((if released == step_end { step_end } else { step_begin + half }, total));
            rest(inner, 0, begun).await;
        }
        sync(inner).await?;
        change(inner, move |label| {
            if let Some(wipe) = label.find_mut(slice).and_then(|record| record.wipe.as_mut()) {
                wipe.done = done;
            }
            Ok(())
        })
        .await?;
    }
    forget(inner, slice, offset, length).await?;
    change(inner, move |label| {
        if drop {
            label.slices.retain(|record| record.facts.slice != slice);
        } else if let Some(record) = label.find_mut(slice) {
            let mut facts = record.facts.clone();
            facts.borrower = None;
            *record = SliceRecord { epoch: record.epoch, ..SliceRecord::new(facts) };
        }
        Ok(())
    })
    .await
}

/// Leaves the disk to borrowers for as long as it was kept busy for a part of so many bytes, if there are any.
async fn rest<D: Doors>(inner: &Inner<D>, bytes: u64, begun: Tick) {
    let now = inner.doors.now();
    if !inner.regions.active.borrow().in_use(now, IDLE_AFTER) {
        return;
    }
    let took = now.since(begun);
    let at_rate = Duration::from_millis(bytes * 1000 / RATE_IN_USE);
    inner.doors.sleep(took.max(at_rate.saturating_sub(took)).min(REST_MAX)).await;
}

/// Overwrites what may hold data in a range of the area. What a sparse file says of its holes is believed: their blocks have
/// gone back to the file system. A preallocated one says the same of space that was zeroed by a note only, with the old bytes
/// still below it, so that everything is overwritten there that was ever written.
async fn overwrite_data<D: Doors>(inner: &Inner<D>, at: u64, length: u64) -> Result<(), AreaError> {
    let mut from = at;
    let mut stretches = Vec::new();
    let extents = if inner.label().sparse {
        inner.extents_of(at, length).await?
    } else {
        inner.runs(at, length).into_iter().map(|(length, blank)| (length, !blank)).collect()
    };
    for (length, data) in extents {
        if data {
            stretches.extend(inner.map.split(from, length));
        }
        from += length;
    }
    let place = |stretch: Stretch| inner.piece(stretch).map(|piece| (piece, piece.data_at + stretch.offset, stretch.length));
    let places = stretches.into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
    overwrite(inner, &places).await
}

/// Really overwrites: where the file system would only note that a stretch reads as zero, the old bytes stay on the disk. When
/// this returns, also with an error, no write of it is under way.
async fn overwrite<D: Doors>(inner: &Inner<D>, places: &[(&OpenPiece<D>, u64, u64)]) -> Result<(), AreaError> {
    if mutation::is(Mutation::NothingWiped) {
        return Ok(());
    }
    let zeroes = Buffer::zeroed(WRITE as usize).freeze();
    let device = |piece: &OpenPiece<D>| piece.file.facts().device;
    let writes = places.iter().flat_map(|(piece, begin, length)| {
        let step = if device(piece) { *length } else { WRITE };
        (0..length.div_ceil(step.max(1))).map(move |n| (*piece, begin + n * step, step.min(length - n * step)))
    });
    let write = async |(piece, at, length): (&OpenPiece<D>, u64, u64)| {
        let written = if device(piece) {
            piece.file.zero(at, length, Zero::Keep).await
        } else {
            piece.file.write_at(at, zeroes.part(0..length as usize)).await
        };
        inner.written("wiping", piece, written).await
    };
    let small = places.iter().all(|(_, _, length)| *length <= WRITE / SMALL_WRITES_AT_ONCE as u64);
    let at_once = if small { SMALL_WRITES_AT_ONCE } else { WRITES_AT_ONCE };
    let mut writes = stream::iter(writes).map(write).buffer_unordered(at_once);
    let mut result = Ok(());
    while let Some(written) = writes.next().await {
        result = result.and(written);
    }
    result
}

/// Wipes what the metadata reserve holds of a slice whose data is wiped: missed maps, checksums, and last the table, in
/// which its regions are blank from then on.
async fn forget<D: Doors>(inner: &Rc<Inner<D>>, slice: SliceId, offset: u64, length: u64) -> Result<(), AreaError> {
    let _still = inner.regions.cooling.lock().await;
    inner.check_writable()?;
    // A blank region has no checksums, but perhaps something in the maps, and the table need not know of that.
    let all: BTreeSet<usize> = regions_in(offset, length).collect();
    inner.erase_entries(&all).await?;
    let known = |region: &usize| inner.regions.record(*region) != Record::default();
    let own: BTreeSet<usize> = regions_in(offset, length).filter(known).collect();
    let mut at = offset;
    for (length, blank) in inner.runs(offset, length) {
        for stretch in inner.map.split(at, length).filter(|_| !blank) {
            let (piece, first) = (inner.piece(stretch)?, stretch.offset / REGION_SIZE);
            let at = piece.spec.offset + Reserve::of(piece.spec.length).sums(first);
            overwrite(inner, &[(piece, at, stretch.length / REGION_SIZE * PAGE_SIZE)]).await?;
        }
        at += length;
    }
    inner.sync_pieces(&inner.map.split(offset, length).map(|stretch| stretch.piece).collect()).await?;
    let pieces: BTreeSet<usize> = own.iter().map(|region| inner.regions.place(*region).0).collect();
    inner.regions.maps.borrow_mut().0.remove(&slice);
    for region in &own {
        inner.regions.hot.borrow_mut().remove(region);
        inner.regions.cache.borrow_mut().take(*region);
        if let Some(record) = inner.regions.records.borrow_mut().get_mut(*region) {
            *record = Record::default();
        }
    }
    for piece in pieces {
        let changed = own.iter().copied().filter(|region| inner.regions.place(*region).0 == piece).collect();
        inner.write_records(piece, &changed, true).await?;
    }
    Ok(())
}

/// Lets the file system know that a stretch is empty again, so that the next wipe, copy or search can skip it.
async fn release<D: Doors>(inner: &Inner<D>, stretch: Stretch) -> Result<(), AreaError> {
    let piece = inner.piece(stretch)?;
    if piece.file.facts().device || mutation::is(Mutation::NothingWiped) {
        return Ok(());
    }
    let how = if inner.label.borrow().sparse { Zero::Punch } else { Zero::Keep };
    let zeroed = piece.file.zero(piece.data_at + stretch.offset, stretch.length, how).await;
    inner.written("wiping", piece, zeroed).await
}

async fn sync<D: Doors>(inner: &Rc<Inner<D>>) -> Result<(), AreaError> {
    Area { inner: Rc::clone(inner) }.flush().await
}
