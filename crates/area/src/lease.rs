//! Slices, leases, epochs and states: the label changes of an area. Each is durable in both copies when it returns (L1).

use std::rc::Rc;

use sublet_api::order::{Lease, SliceFacts};
use sublet_doors::{DiskFile, Doors};
use sublet_types::limits::{BLOCK_SIZE, COPIES_MAX, REGION_SIZE, SLICES_PER_AREA_MAX};
use sublet_types::{Epoch, Generation, Name, SliceId};
use sublet_wire::message::{Open, OpenMode};

use crate::area::{Area, to_the_end};
use crate::envelope::COUNT_MAX;
use crate::error::{AreaError, AreaErrorKind as Kind};
use crate::format::clear;
use crate::label::AreaLabel;
use crate::record::{LeaseRecord, SliceRecord};

pub(crate) fn refuse<T>(kind: Kind, message: String) -> Result<T, AreaError> {
    Err(AreaError::new(kind, message))
}

pub(crate) fn no_slice(slice: SliceId, area: &Name) -> AreaError {
    AreaError::new(Kind::NoSlice, format!("area {area} holds no slice {}", slice.short()))
}

pub(crate) fn record_mut(label: &mut AreaLabel, slice: SliceId) -> Result<&mut SliceRecord, AreaError> {
    let name = label.name.clone();
    label.find_mut(slice).ok_or_else(|| no_slice(slice, &name))
}

/// An epoch is compared with the newest persisted one: older ones are refused for ever (F1).
fn check_epoch(record: &SliceRecord, epoch: Epoch) -> Result<(), AreaError> {
    let (slice, newest) = (record.facts.slice.short(), record.epoch);
    if epoch.number > COUNT_MAX {
        return refuse(Kind::Disagreement, format!("epoch {epoch} of slice {slice} is none that a manager issues"));
    }
    if epoch.number < newest.number {
        return refuse(Kind::StaleEpoch, format!("epoch {epoch} of slice {slice} has been fenced: the newest is {newest}"));
    }
    if epoch.is_split_from(newest) {
        return refuse(
            Kind::Disagreement,
            format!("epoch {epoch} of slice {slice} is not the epoch {newest} that the label knows: two histories"),
        );
    }
    Ok(())
}

/// The epoch is the present one, and admitted.
pub(crate) fn check_holder(record: &SliceRecord, epoch: Epoch) -> Result<(), AreaError> {
    check_epoch(record, epoch)?;
    if epoch.number > record.epoch.number {
        return refuse(Kind::NotYours, format!("no lease of epoch {epoch} was opened for slice {}", record.facts.slice.short()));
    }
    if !record.admitted {
        return refuse(Kind::StaleEpoch, format!("epoch {epoch} of slice {} has been fenced", record.facts.slice.short()));
    }
    Ok(())
}

pub(crate) fn check_generation(record: &SliceRecord, new: Generation) -> Result<(), AreaError> {
    let (slice, old) = (record.facts.slice.short(), record.facts.generation);
    if new.number > COUNT_MAX {
        return refuse(Kind::Disagreement, format!("generation {new} of slice {slice} is none that a manager issues"));
    }
    if new.is_split_from(old) {
        return refuse(
            Kind::Disagreement,
            format!("generation {new} of slice {slice} is not the generation {old} that the label knows: two histories"),
        );
    }
    Ok(())
}

/// L5: the label of a leg that is in sync never knows a newer generation than a table that is not an old one, because the manager
/// commits first. (That of a leg that returns does: S5.)
fn check_not_behind(record: &SliceRecord, facts: &SliceFacts) -> Result<(), AreaError> {
    let in_sync = facts.in_sync.get(facts.leg as usize).copied().unwrap_or(false);
    let (slice, label) = (facts.slice.short(), record.facts.generation);
    if in_sync && facts.generation.number < label.number {
        let text =
            format!("the label of slice {slice} has generation {label}, newer than {}: the table is behind", facts.generation);
        return refuse(Kind::Disagreement, text);
    }
    Ok(())
}

fn check_legs(facts: &SliceFacts) -> Result<(), AreaError> {
    let legs = facts.in_sync.len();
    if legs != facts.legs as usize || legs == 0 || legs > COPIES_MAX || facts.leg >= facts.legs || facts.segment >= facts.segments
    {
        return refuse(Kind::Disagreement, format!("slice {}: its legs and segments do not fit each other", facts.slice.short()));
    }
    Ok(())
}

/// Brings the facts of a record up to date. The generation never goes back.
fn update_facts(record: &mut SliceRecord, facts: &SliceFacts) -> Result<(), AreaError> {
    let old = &record.facts;
    if (old.area, old.offset, old.length) != (facts.area, facts.offset, facts.length) {
        return refuse(
            Kind::Disagreement,
            format!(
                "slice {} lies at {} with {} bytes, not at {} with {}",
                old.slice.short(),
                old.offset,
                old.length,
                facts.offset,
                facts.length
            ),
        );
    }
    if facts.segment_length > facts.length || !facts.segment_length.is_multiple_of(BLOCK_SIZE) {
        return refuse(Kind::OutOfRange, format!("slice {} has no room for {} bytes", old.slice.short(), facts.segment_length));
    }
    check_legs(facts)?;
    check_generation(record, facts.generation)?;
    let keep = (facts.generation.number < old.generation.number).then(|| (old.generation, old.in_sync.clone()));
    record.facts = facts.clone();
    if let Some((generation, in_sync)) = keep {
        record.facts.generation = generation;
        record.facts.in_sync = in_sync;
    }
    Ok(())
}

fn check_not_wiping(record: &SliceRecord) -> Result<(), AreaError> {
    if record.wipe.is_some() {
        return refuse(Kind::Busy, format!("slice {} is being wiped", record.facts.slice.short()));
    }
    Ok(())
}

/// A new slice: in the area, on regions, and on nobody else's bytes (L5).
fn insert(label: &mut AreaLabel, facts: &SliceFacts) -> Result<(), AreaError> {
    let (name, slice) = (&label.name, facts.slice.short());
    if !facts.offset.is_multiple_of(REGION_SIZE) || !facts.length.is_multiple_of(REGION_SIZE) || facts.length == 0 {
        return refuse(Kind::OutOfRange, format!("slice {slice} does not begin and end on regions of 4 MiB"));
    }
    let end = facts.offset.checked_add(facts.length).filter(|end| *end <= label.capacity);
    let Some(end) = end else {
        return refuse(Kind::Full, format!("area {name} ends before slice {slice} does"));
    };
    if let Some(other) = label.slices.iter().find(|other| other.facts.offset < end && facts.offset < other.end()) {
        return refuse(
            Kind::Overlap,
            format!(
                "slice {slice} overlaps slice {} of volume {} in area {name}",
                other.facts.slice.short(),
                other.facts.volume_name
            ),
        );
    }
    if label.slices.len() >= SLICES_PER_AREA_MAX {
        return refuse(Kind::Full, format!("the label of area {name} holds {SLICES_PER_AREA_MAX} slices already"));
    }
    let mut record = SliceRecord::new(facts.clone());
    update_facts(&mut record, facts)?;
    label.insert(record);
    Ok(())
}

impl<D: Doors> Area<D> {
    /// Enters a slice (L4, L5), or brings the facts of one that is there up to date.
    ///
    /// # Errors
    /// If it overlaps another one, does not fit, or has another place in the label.
    pub async fn prepare_slice(&self, facts: &SliceFacts) -> Result<(), AreaError> {
        let facts = facts.clone();
        self.with_facts(facts.clone(), move |label| {
            if facts.area != label.area {
                return refuse(
                    Kind::Disagreement,
                    format!("slice {} belongs to another area than {}", facts.slice.short(), label.name),
                );
            }
            match label.find_mut(facts.slice) {
                None => insert(label, &facts),
                Some(record) => {
                    check_not_wiping(record)?;
                    update_facts(record, &facts)
                }
            }
        })
        .await
    }

    /// Persists the epoch and its lease, and admits its sessions (F1). The caller has ended all older ones.
    ///
    /// # Errors
    /// `StaleEpoch` below the newest persisted epoch; or if the slice is not there, is being wiped, or lies elsewhere.
    pub async fn open_lease(&self, slice: SliceId, lease: &Lease, facts: &SliceFacts) -> Result<(), AreaError> {
        let (lease, facts) = (lease.clone(), facts.clone());
        self.with_facts(facts.clone(), move |label| {
            let record = record_mut(label, slice)?;
            check_not_wiping(record)?;
            check_epoch(record, lease.epoch)?;
            if facts.slice != slice || facts.volume != record.facts.volume {
                return refuse(
                    Kind::Disagreement,
                    format!("slice {} belongs to volume {}", slice.short(), record.facts.volume_name),
                );
            }
            check_not_behind(record, &facts)?;
            update_facts(record, &facts)?;
            record.epoch = lease.epoch;
            record.admitted = true;
            record.lease = Some(LeaseRecord { borrower: lease.borrower, secret: lease.secret, read_only: lease.read_only });
            Ok(())
        })
        .await
    }

    /// Persists the epoch as the newest and admits nobody (F1, F3). The caller has ended all older sessions. If a higher
    /// epoch is persisted, this fence is long done.
    ///
    /// # Errors
    /// If the slice is not there, or the epoch is of another history.
    pub async fn fence(&self, slice: SliceId, epoch: Epoch) -> Result<(), AreaError> {
        self.change(move |label| {
            let record = record_mut(label, slice)?;
            if epoch.number < record.epoch.number {
                return Ok(());
            }
            check_epoch(record, epoch)?;
            fence_record(record, epoch);
            Ok(())
        })
        .await
    }

    /// Compares everything that a client shows at OPEN with the label (F6).
    ///
    /// # Errors
    /// `NoSlice`, `StaleEpoch`, `NotYours` or `Disagreement`, with the difference named.
    pub fn check_open(&self, open: &Open) -> Result<(), AreaError> {
        self.inner.check_served()?;
        let label = self.inner.label();
        if open.area != label.area {
            return Err(no_slice(open.slice, &label.name));
        }
        let record = label.find(open.slice).ok_or_else(|| no_slice(open.slice, &label.name))?;
        check_holder(record, open.epoch)?;
        check_lease(record, open)?;
        check_facts(record, open)?;
        check_open_generation(record, open)
    }

    /// Sets the *open* flag of the epoch. The answer is true if the legs may differ: another epoch was not closed cleanly,
    /// and they were not made equal since. What that epoch wrote is durable then: this one reads it, copies it to other legs,
    /// and does not know that it was never flushed.
    ///
    /// # Errors
    /// If the epoch is not admitted, or what the disk says.
    pub async fn mark_open(&self, slice: SliceId, epoch: Epoch) -> Result<bool, AreaError> {
        self.set_open(slice, epoch, false).await
    }

    /// The same for a client that knows nothing of an opening before: if the flag is set, a process of the same epoch was
    /// there before it and did not close cleanly (it was killed, and started again). Its writes are as those of another epoch
    /// (H3, W5). If only the reply to an OPEN was lost, legs are compared for nothing.
    ///
    /// # Errors
    /// As [`Area::mark_open`].
    pub async fn mark_open_anew(&self, slice: SliceId, epoch: Epoch) -> Result<bool, AreaError> {
        self.set_open(slice, epoch, true).await
    }

    async fn set_open(&self, slice: SliceId, epoch: Epoch, anew: bool) -> Result<bool, AreaError> {
        let inner = Rc::clone(&self.inner);
        // Goes to its end although the client may be gone: once the label has the flag, nobody notes again whose the hot
        // regions are.
        to_the_end(&self.inner.doors, async move {
            let changed = inner.change_here(|label| {
                let record = record_mut(label, slice)?;
                check_holder(record, epoch)?;
                let another = record.open.is_some_and(|open| open != epoch.number || anew);
                record.unclean |= another;
                record.open = Some(epoch.number);
                Ok((record.unclean, another))
            });
            let (unclean, another) = changed.await?;
            if another {
                // What is hot now was written by another client.
                inner.regions.hot_of(slice, |hot| hot.inherited = true);
            }
            if unclean {
                inner.sync_all().await?;
            }
            Ok(unclean)
        })
        .await
    }

    /// Clears the *open* flag: everything of this epoch is durable on all legs. So its regions cool; only those stay hot that
    /// an earlier epoch left behind and that nobody made equal yet (H3).
    ///
    /// # Errors
    /// If the epoch is not admitted any more.
    pub async fn close_clean(&self, slice: SliceId, epoch: Epoch) -> Result<(), AreaError> {
        let (unequal, several) = {
            let label = self.inner.label();
            let record = label.find(slice).ok_or_else(|| no_slice(slice, &label.name))?;
            check_holder(record, epoch)?;
            (record.unclean, record.facts.legs > 1)
        };
        let inner = Rc::clone(&self.inner);
        to_the_end(&self.inner.doors, async move {
            inner.cool_regions(slice, &inner.closing(slice, unequal && several)).await?;
            // So that the marks that were cleared are not found again.
            inner.sync_all().await
        })
        .await?;
        self.change(move |label| {
            let record = record_mut(label, slice)?;
            check_holder(record, epoch)?;
            if record.open == Some(epoch.number) {
                record.open = None;
            }
            record.lost &= record.unclean;
            Ok(())
        })
        .await
    }

    /// Writes the area's new name into its label. (Piece labels follow at the next opening; there it is for people only.)
    ///
    /// # Errors
    /// What the disk says.
    pub async fn rename(&self, name: &Name) -> Result<(), AreaError> {
        let name = name.clone();
        self.change(move |label| {
            label.name = name;
            Ok(())
        })
        .await
    }

    /// Takes the labels away; nothing is served from here any more.
    ///
    /// # Errors
    /// While it holds slices, or what the disk says.
    pub async fn release(&self) -> Result<(), AreaError> {
        let inner = Rc::clone(&self.inner);
        to_the_end(&self.inner.doors, async move {
            let _one_at_a_time = inner.changing.lock().await;
            let label = inner.label();
            if let Some(record) = label.slices.first() {
                let message = format!(
                    "area {} holds {} slices, one of volume {}",
                    label.name,
                    label.slices.len(),
                    record.facts.volume_name
                );
                return Err(AreaError::new(Kind::Busy, message).hint("return or delete those volumes first"));
            }
            inner.released.set(true);
            // Piece 0 goes last: it is what the area is recognised by.
            for piece in inner.pieces.iter().rev() {
                clear(&piece.file, &piece.spec)
                    .await
                    .map_err(|error| inner.fail(&format!("clearing the label of {}", piece.spec), &error))?;
                debug_assert!(piece.file.facts().size >= piece.spec.end(), "a piece lies in its file");
            }
            Ok(())
        })
        .await
    }
}

/// No session of this or any lower epoch is admitted any more.
pub(crate) fn fence_record(record: &mut SliceRecord, epoch: Epoch) {
    record.epoch = epoch;
    record.admitted = false;
    record.lease = None;
}

/// The same comparison for a wipe: a late order of an older epoch never wipes a slice that was lent again.
pub(crate) fn check_wipe_epoch(record: &SliceRecord, epoch: Epoch) -> Result<(), AreaError> {
    check_epoch(record, epoch)
}

fn check_lease(record: &SliceRecord, open: &Open) -> Result<(), AreaError> {
    let Some(lease) = &record.lease else {
        return refuse(Kind::StaleEpoch, format!("slice {} is lent to nobody now", record.facts.slice.short()));
    };
    if !lease.secret.matches(open.secret) || lease.borrower != open.borrower {
        return refuse(Kind::NotYours, format!("the lease of slice {} belongs to somebody else", record.facts.slice.short()));
    }
    Ok(())
}

fn check_facts(record: &SliceRecord, open: &Open) -> Result<(), AreaError> {
    let facts = &record.facts;
    let differs = |what: &str, label: String, client: String| {
        refuse(
            Kind::Disagreement,
            format!("slice {}: its label says {what} {label}, the client says {client}", facts.slice.short()),
        )
    };
    if facts.volume != open.volume {
        return differs("volume", facts.volume.short(), open.volume.short());
    }
    if facts.way != open.way {
        return differs("usage way", facts.way.to_string(), open.way.to_string());
    }
    if facts.segment != open.segment {
        return differs("segment", facts.segment.to_string(), open.segment.to_string());
    }
    if facts.segment_length != open.segment_length {
        return differs("segment length", facts.segment_length.to_string(), open.segment_length.to_string());
    }
    if facts.leg != open.leg {
        return differs("leg", facts.leg.to_string(), open.leg.to_string());
    }
    Ok(())
}

/// An in-sync leg has the client's generation, or the one beside it: a SET_STATE whose reply was lost with the connection
/// leaves the two one step apart, in either direction. A target's may be any: it is stale by the manager's account, and a
/// return that was broken off after its label had been written leaves it ahead (S5).
fn check_open_generation(record: &SliceRecord, open: &Open) -> Result<(), AreaError> {
    check_generation(record, open.generation)?;
    let facts = &record.facts;
    let (label, client) = (facts.generation.number, open.generation.number);
    let fits = match open.mode {
        OpenMode::InSync => label.abs_diff(client) <= 1,
        OpenMode::Target => true,
    };
    if !fits {
        return refuse(
            Kind::Disagreement,
            format!("slice {}: its label is of generation {label}, the client's is {client}", facts.slice.short()),
        );
    }
    let stale = !facts.in_sync.get(facts.leg as usize).copied().unwrap_or(false);
    if open.mode == OpenMode::InSync && stale {
        return refuse(Kind::Disagreement, format!("slice {}: its label says that this leg is stale", facts.slice.short()));
    }
    Ok(())
}
