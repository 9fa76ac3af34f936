//! W7: a failed write or flush is remembered. In memory at once, and in the label before it is answered; until the disk takes that,
//! with a witness.

use std::collections::BTreeSet;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use sublet_doors::Doors;
use sublet_types::AreaId;

use crate::area::Inner;
use crate::copies::write_copies;
use crate::error::AreaError;
use crate::label::AreaLabel;

/// How often a failure that the disk does not take into its label is tried again to be noted there.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);

/// Where it is remembered that an area has failed while its own disk does not take that: outside of the area, beyond the end of
/// the process.
pub trait Witness {
    /// Notes it, durably.
    ///
    /// # Errors
    /// Those of the place where it is kept: the failure is then forgotten with the process, unless the disk takes it before.
    fn note(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<()>>;

    /// Is there such a note?
    ///
    /// # Errors
    /// Those of the place where it is kept.
    fn is_noted(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<bool>>;

    /// The label has it now.
    ///
    /// # Errors
    /// Those of the place where it is kept: the failure will be counted once more.
    fn forget(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<()>>;
}

/// Nobody: what the disk does not take is forgotten with the process.
pub(crate) struct Nobody;

impl Witness for Nobody {
    fn note(&self, _: AreaId) -> LocalBoxFuture<'static, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn is_noted(&self, _: AreaId) -> LocalBoxFuture<'static, io::Result<bool>> {
        Box::pin(async { Ok(false) })
    }

    fn forget(&self, _: AreaId) -> LocalBoxFuture<'static, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

impl<D: Doors> Inner<D> {
    /// Remembers a failure of the disk for ever (of this opening): the kernel reports it only once (W7). It is noted in the
    /// label, too ([`Inner::note_failure`]), now or as soon as the disk takes that.
    pub fn fail(&self, what: &str, error: &io::Error) -> AreaError {
        let failure = AreaError::io(what, error);
        tracing::error!("area {}: {failure}", self.label().name);
        let first = self.failed.borrow().is_none();
        if first {
            self.failed.replace(Some(failure.to_string()));
            let (own, timer) = (Weak::clone(&self.own), self.doors.clone());
            self.doors.spawn(async move {
                loop {
                    let Some(inner) = own.upgrade() else { return };
                    if inner.note_failure().await {
                        return;
                    }
                    // Only while it writes does it keep the area, and its lock.
                    drop(inner);
                    timer.sleep(NOTE_INTERVAL).await;
                }
            });
        }
        failure
    }

    /// Notes a failure in the label, so that the identity changes: whoever has unflushed writes here learns that they may be
    /// lost, although the next opening begins without the failure (W7). The answer is true once the disk has it.
    pub async fn note_failure(&self) -> bool {
        self.note_elsewhere().await;
        let _one_at_a_time = self.changing.lock().await;
        self.write_failure().await
    }

    /// The caller holds `changing`.
    pub(crate) async fn write_failure(&self) -> bool {
        if self.failure_noted.get() || self.released.get() {
            self.forget_note().await;
            return true;
        }
        if !self.failure_counted.replace(true) {
            let mut label = AreaLabel::clone(&self.label());
            label.failures = label.failures.wrapping_add(1);
            // A label change that failed may have left its own sequence number, one ahead, in one copy.
            label.sequence += 2;
            self.label.replace(Rc::new(label));
        }
        let Some((piece, at)) = self.label_place() else { return true };
        // Not with a sync that fails because of what was lost before: nothing else of this opening counts as durable any more.
        // The copy that may be damaged goes first, and the other one only when that is whole: one of them always is.
        let file = piece.file.noting();
        let write = async |at, copy| {
            file.write_at(at, copy).await?;
            file.sync().await
        };
        match write_copies(write, at, &self.label().encode(), self.doubtful.get()).await {
            Ok(()) => self.failure_noted.set(true),
            Err(failed) => {
                // Once: it is tried again and again.
                if !self.failure_told.replace(true) {
                    tracing::error!("area {}: its failure cannot be noted in its label yet: {}", self.label().name, failed.error);
                }
                // With one copy it is noted: that one is ahead of the other.
                self.failure_noted.set(failed.copy != self.doubtful.get());
            }
        }
        if self.failure_noted.get() {
            self.forget_note().await;
            let area = self.label.borrow().area;
            self.pieces.iter().for_each(|piece| piece.file.set_counted(area, piece.file.losses()));
        }
        self.failure_noted.get()
    }

    /// Notes a failure outside of the area, before the disk is asked for anything more: it may hang next. All areas on its files may
    /// have lost something, and the kernel tells that once.
    pub(crate) async fn note_elsewhere(&self) {
        // Nobody answers before it is noted, whoever does that.
        let mut is_noted = self.noting.lock().await;
        if *is_noted || self.failure_noted.get() {
            return;
        }
        // Set first: who stops waiting here may leave a note behind, and it has to be taken back all the same.
        self.failure_witnessed.set(true);
        let areas: BTreeSet<AreaId> = self.pieces.iter().flat_map(|piece| piece.file.areas()).collect();
        let mut noted = true;
        for area in areas {
            if let Err(error) = self.witness.note(area).await {
                tracing::error!("area {}: its failure cannot be noted elsewhere: {error}", self.label().name);
                noted = false;
            }
        }
        *is_noted = noted;
    }

    /// The label has it: the note is not needed any more.
    async fn forget_note(&self) {
        if !self.failure_witnessed.get() {
            return;
        }
        let area = self.label.borrow().area;
        match self.witness.forget(area).await {
            Ok(()) => self.failure_witnessed.set(false),
            Err(error) => tracing::error!("area {}: the note of its failure stays: {error}", self.label().name),
        }
    }
}
