//! An open area: its state in memory, and the one way to change its label.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::{Rc, Weak};

use futures_channel::oneshot;
use futures_util::future::join_all;
use futures_util::lock::Mutex;
use sublet_api::order::SliceFacts;
use sublet_api::server::AreaReport;
use sublet_doors::{Disk, DiskFile, Doors};
use sublet_types::mutation::{self, Mutation};
use sublet_types::{AreaId, Generation, Name, SliceId};
use sublet_wire::message::DiskIdentity;

use crate::copies::write_both;
use crate::error::{AreaError, AreaErrorKind};
use crate::failure::Witness;
use crate::files::Held;
use crate::label::AreaLabel;
use crate::layout::{AREA_LABEL_AT, PieceMap};
use crate::regions::Regions;
use crate::spec::PieceSpec;

/// An open area of one server: what is lent of it to whom, and its bytes. Everything happens on one thread.
///
/// Label changes, syncs and wipes run as tasks of their own: they go to their end although the caller has gone. Reads,
/// writes and zeroes belong to their caller, who waits for them before it answers FENCE (F1).
pub struct Area<D: Doors> {
    pub(crate) inner: Rc<Inner<D>>,
}

/// An open piece.
pub(crate) struct OpenPiece<D: Doors> {
    pub spec: PieceSpec,
    pub file: Held<<D as Disk>::File>,
    /// Where its data begins in the file, in bytes.
    pub data_at: u64,
    /// A blank region does not read as zero by itself (devices, P1).
    pub tracked: bool,
}

/// What tasks share with the area.
pub(crate) struct Inner<D: Doors> {
    pub doors: D,
    pub boot: u128,
    pub map: PieceMap,
    pub pieces: Vec<OpenPiece<D>>,
    pub regions: Regions,
    /// What both copies on the disk hold.
    pub label: RefCell<Rc<AreaLabel>>,
    /// Held during a label change.
    pub changing: Mutex<()>,
    /// Why nothing is written any more: after a failed sync or label write nobody knows what the disk holds (W7).
    pub failed: RefCell<Option<String>>,
    /// The failure is counted in `label`, and there it is on the disk, too.
    pub failure_counted: Cell<bool>,
    pub failure_noted: Cell<bool>,
    /// That the disk does not take it was logged; there may be a note of it elsewhere.
    pub failure_told: Cell<bool>,
    pub failure_witnessed: Cell<bool>,
    /// It is noted elsewhere. Held while that is being done.
    pub noting: Mutex<bool>,
    pub witness: Rc<dyn Witness>,
    /// The copy of the label that a failed write may have damaged.
    pub doubtful: Cell<usize>,
    pub own: Weak<Inner<D>>,
    pub released: Cell<bool>,
    /// One wipe of a slice at a time.
    pub wiping: RefCell<std::collections::HashMap<SliceId, Rc<Mutex<()>>>>,
}

/// Runs work to its end, even if the caller stops waiting.
pub(crate) async fn to_the_end<D: Doors, T: 'static>(
    doors: &D,
    work: impl Future<Output = Result<T, AreaError>> + 'static,
) -> Result<T, AreaError> {
    let (sender, receiver) = oneshot::channel();
    doors.spawn(async move {
        // Nobody waits any more: the work is done all the same.
        let _ = sender.send(work.await);
    });
    receiver.await.unwrap_or_else(|_| Err(AreaError::new(AreaErrorKind::Offline, "the server is stopping")))
}

/// Waits for the end of all work, also when some of it fails: a write that nobody waits for could land after a later one.
pub(crate) async fn all_ended<T, E>(work: impl IntoIterator<Item = impl Future<Output = Result<T, E>>>) -> Result<Vec<T>, E> {
    join_all(work).await.into_iter().collect()
}

impl<D: Doors> Inner<D> {
    pub fn label(&self) -> Rc<AreaLabel> {
        Rc::clone(&self.label.borrow())
    }

    /// The file of piece 0, where the area label lies, and where in it.
    pub fn label_place(&self) -> Option<(&OpenPiece<D>, [u64; 2])> {
        let piece = self.pieces.first()?;
        Some((piece, AREA_LABEL_AT.map(|at| at + piece.spec.offset)))
    }

    /// Refuses what changes anything once that is not safe any more.
    pub fn check_writable(&self) -> Result<(), AreaError> {
        self.check_served()?;
        match &*self.failed.borrow() {
            None => Ok(()),
            Some(why) => Err(AreaError::new(
                AreaErrorKind::Io,
                format!("area {} takes no writes since its disk failed: {why}", self.label().name),
            )
            .hint("check the disk, then restart `sublet server`")),
        }
    }

    pub fn check_served(&self) -> Result<(), AreaError> {
        if self.released.get() {
            return Err(AreaError::new(AreaErrorKind::Offline, format!("area {} has been given back", self.label().name)));
        }
        Ok(())
    }

    /// Makes a label change: edits a copy, writes it with the next sequence (L1), and only then takes it over. Nothing is
    /// written if the edit changed nothing.
    pub async fn change_here<R>(&self, edit: impl FnOnce(&mut AreaLabel) -> Result<R, AreaError>) -> Result<R, AreaError> {
        let _one_at_a_time = self.changing.lock().await;
        self.check_writable()?;
        let old = self.label();
        let mut new = AreaLabel::clone(&old);
        let answer = edit(&mut new)?;
        if new == *old {
            return Ok(answer);
        }
        // L5: what an opening would take for another's writing is never written.
        if let Some(record) = new.slices.iter().find(|record| !record.makes_sense()) {
            let text = format!("what is to be entered for slice {} makes no sense", record.facts.slice.short());
            return Err(AreaError::new(AreaErrorKind::Disagreement, text));
        }
        new.sequence += 1;
        if let Some((piece, at)) = self.label_place().filter(|_| !mutation::is(Mutation::EpochNotPersisted)) {
            let written = write_both(&piece.file, at, &new.encode(), 0).await;
            if let Err(failed) = written {
                self.doubtful.set(failed.copy);
                let failure = self.fail(&format!("writing the label on {}", piece.spec), &failed.error);
                self.note_elsewhere().await;
                self.write_failure().await;
                return Err(failure);
            }
        }
        self.label.replace(Rc::new(new));
        Ok(answer)
    }
}

/// Changes with the medium of any piece, each of which has a sequence number of its own, and with every failure of the area (W7).
fn disks_and_failures(failures: u64, disks: impl Iterator<Item = u64>) -> u64 {
    // The factor is odd: no two counts are alike.
    let failures = failures.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    disks.fold(failures, |sum, disk| sum.rotate_left(7).wrapping_mul(31) ^ disk)
}

/// What an area stands on while it is open: as long as it is the same in the next opening, nothing that was written is lost, only
/// what a process had in memory. One number for the boot of the machine, the disks, and the failures.
pub(crate) fn ground(boot: u128, failures: u64, disks: impl Iterator<Item = u64>) -> u128 {
    boot ^ u128::from(disks_and_failures(failures, disks))
}

impl<D: Doors> Area<D> {
    /// Changes the label; durable in both copies when it returns (L1).
    pub(crate) async fn change<R: 'static>(
        &self,
        edit: impl FnOnce(&mut AreaLabel) -> Result<R, AreaError> + 'static,
    ) -> Result<R, AreaError> {
        change(&self.inner, edit).await
    }

    /// Its id.
    pub fn id(&self) -> AreaId {
        self.inner.label.borrow().area
    }

    /// Its name in the label.
    pub fn name(&self) -> Name {
        self.inner.label.borrow().name.clone()
    }

    /// Room for data in bytes (a multiple of 4 MiB).
    pub fn capacity(&self) -> u64 {
        self.inner.map.capacity()
    }

    /// True if its files are not preallocated.
    pub fn sparse(&self) -> bool {
        self.inner.label.borrow().sparse
    }

    /// True if a piece lies on a copy-on-write file system, whose old blocks are not ours to erase (P2).
    pub fn copy_on_write(&self) -> bool {
        self.inner.pieces.iter().any(|piece| piece.file.facts().copy_on_write)
    }

    /// Its pieces in order.
    pub fn pieces(&self) -> Vec<PieceSpec> {
        self.inner.pieces.iter().map(|piece| piece.spec.clone()).collect()
    }

    /// The identity of this opening: it changes whenever unflushed writes may have been lost.
    pub fn identity(&self) -> DiskIdentity {
        let label = self.inner.label.borrow();
        // Also a failure that the label does not count yet.
        let not_counted = u64::from(self.inner.failed.borrow().is_some() && !self.inner.failure_counted.get());
        let disks = self.inner.pieces.iter().map(|piece| piece.file.facts().disk_sequence);
        let disk_sequence = disks_and_failures(label.failures.wrapping_add(not_counted), disks);
        DiskIdentity { open: label.opening.open, boot: self.inner.boot, disk_sequence }
    }

    /// What the manager is told; `place` is for people.
    pub fn report(&self, place: &str) -> AreaReport {
        let label = self.inner.label();
        let offline = if self.inner.released.get() { Some("it has been given back".to_owned()) } else { None };
        let mut hot: std::collections::BTreeMap<SliceId, u32> = std::collections::BTreeMap::new();
        for region in self.inner.regions.hot.borrow().values() {
            *hot.entry(region.slice).or_default() += 1;
        }
        AreaReport {
            area: label.area,
            pool: label.pool,
            name: label.name.clone(),
            capacity: self.capacity(),
            place: place.to_owned(),
            sparse: label.sparse,
            offline: offline.or_else(|| self.inner.failed.borrow().clone()),
            open: Some(label.opening.open),
            sequence: label.sequence,
            slices: label.slices.iter().map(|record| record.report(hot.get(&record.facts.slice).copied().unwrap_or(0))).collect(),
            history: label.history.clone(),
            quarantined: label.quarantine.clone(),
            failures: label.failures,
            tombstones: label.tombstones.clone(),
        }
    }

    /// What the label says of a slice (L4).
    pub fn slice_facts(&self, slice: SliceId) -> Option<SliceFacts> {
        self.inner.label.borrow().find(slice).map(|record| record.facts.clone())
    }

    /// The generation in the label, and whether an earlier epoch was not closed cleanly: for the reply to OPEN. A read-only
    /// epoch leaves the flags of the one before as they are, and its client must know all the same that the legs may differ.
    pub fn slice_state(&self, slice: SliceId) -> Option<(Generation, bool)> {
        let label = self.inner.label.borrow();
        let record = label.find(slice)?;
        let left_open = record.open.is_some_and(|open| open != record.epoch.number);
        Some((record.facts.generation, record.unclean || left_open))
    }

    /// True if the present lease of the slice refuses writes.
    pub fn lease_read_only(&self, slice: SliceId) -> bool {
        self.inner.label.borrow().find(slice).and_then(|record| record.lease.as_ref()).is_some_and(|lease| lease.read_only)
    }
}

/// See [`Area::change`].
pub(crate) async fn change<D: Doors, R: 'static>(
    inner: &Rc<Inner<D>>,
    edit: impl FnOnce(&mut AreaLabel) -> Result<R, AreaError> + 'static,
) -> Result<R, AreaError> {
    let own = Rc::clone(inner);
    // A label write that is abandoned halfway could still land after the next one.
    to_the_end(&inner.doors, async move { own.change_here(edit).await }).await
}
