//! Open files and devices of a thread. Parts of one device may belong to different areas; they share one open file, because
//! the lock (F2) and O_EXCL belong to the open file. The same bytes are never opened twice this way: a second opening of an
//! area opens the file anew, and so waits for the lock.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::{Rc, Weak};

use futures_util::lock::Mutex;
use sublet_doors::disk::Zero;
use sublet_doors::{Buffer, Chunk, Disk, DiskFile, FileFacts, OpenHow};
use sublet_types::AreaId;

use crate::error::{AreaError, AreaErrorKind};
use crate::spec::PieceSpec;

/// One claim to a stretch of an open file.
struct Claim {
    piece: PieceSpec,
    holder: Weak<()>,
    file: Weak<dyn Any>,
}

#[derive(Default)]
struct Table {
    claims: Vec<Claim>,
    /// One opening of a path at a time, so that the second one finds the first one's file.
    gates: HashMap<PathBuf, Rc<Mutex<()>>>,
    /// How often writes to a file have failed, also in an opening that came to nothing: nobody is told again, and a later
    /// opening in this process would know nothing of it (W7).
    losses: HashMap<Medium, u64>,
    /// How many of them the label of an area counts.
    counted: HashMap<(Medium, AreaId), u64>,
    /// The areas that were opened there.
    areas: HashMap<Medium, BTreeSet<AreaId>>,
}

/// A file of one disk: another disk at the same path has lost nothing.
type Medium = (PathBuf, u64);

thread_local! {
    static OPEN: RefCell<Table> = RefCell::default();
}

/// The process ends, and knows nothing of failures any more.
#[cfg(test)]
pub(crate) fn forget_losses() {
    OPEN.with_borrow_mut(|table| {
        table.losses.clear();
        table.counted.clear();
    });
}

/// An open file with its syncs: one at a time, because the kernel tells of a lost write only once, to one of those who ask
/// (W7); whoever waits for his turn is told as well.
struct Shared<F> {
    file: F,
    path: PathBuf,
    turn: Mutex<()>,
    /// Syncs asked for, and the newest one that a finished sync covers.
    asked: Cell<u64>,
    done: Cell<u64>,
    /// What the first failed sync said. Nothing that is synced through this open file counts as durable any more.
    lost: RefCell<Option<(io::ErrorKind, String)>>,
}

/// A file that is locked for the piece, until this is dropped.
pub(crate) struct Held<F> {
    shared: Rc<Shared<F>>,
    _holder: Rc<()>,
}

impl<F: DiskFile> Held<F> {
    fn check_lost(&self) -> io::Result<()> {
        match &*self.shared.lost.borrow() {
            None => Ok(()),
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
        }
    }

    /// The same file for one who notes that something was lost, and so does not care whether something was.
    pub(crate) const fn noting(&self) -> Noting<'_, F> {
        Noting(self)
    }

    fn medium(&self) -> Medium {
        (self.shared.path.clone(), self.facts().disk_sequence)
    }

    /// A write, zeroing or sync has ended. W7: nobody is told of it again.
    fn ended(&self, result: &io::Result<()>) {
        // A sparse file without room has refused this, and keeps what it had.
        let lost = |error: &io::Error| !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if result.as_ref().is_err_and(lost) {
            OPEN.with_borrow_mut(|table| *table.losses.entry(self.medium()).or_default() += 1);
        }
    }

    /// How often writes to this file have failed.
    pub(crate) fn losses(&self) -> u64 {
        OPEN.with_borrow(|table| table.losses.get(&self.medium()).copied().unwrap_or(0))
    }

    /// An area lies there.
    pub(crate) fn add_area(&self, area: AreaId) {
        OPEN.with_borrow_mut(|table| table.areas.entry(self.medium()).or_default().insert(area));
    }

    /// The areas that were opened on this file, by this process.
    pub(crate) fn areas(&self) -> BTreeSet<AreaId> {
        OPEN.with_borrow(|table| table.areas.get(&self.medium()).cloned().unwrap_or_default())
    }

    /// How many of them the label of the area counts.
    pub(crate) fn counted(&self, area: AreaId) -> u64 {
        OPEN.with_borrow(|table| table.counted.get(&(self.medium(), area)).copied().unwrap_or(0))
    }

    /// The label of the area counts so many of them.
    pub(crate) fn set_counted(&self, area: AreaId, losses: u64) {
        if losses > 0 {
            OPEN.with_borrow_mut(|table| table.counted.insert((self.medium(), area), losses));
        }
    }

    /// One sync for all who wait for their turn; `noting` asks only whether this one succeeds.
    async fn sync_in_turn(&self, noting: bool) -> io::Result<()> {
        let shared = &self.shared;
        let asked = shared.asked.get() + 1;
        shared.asked.set(asked);
        let _turn = shared.turn.lock().await;
        if !noting {
            self.check_lost()?;
        }
        if shared.done.get() >= asked {
            // Another sync began after this one was asked for, and so covers it.
            return Ok(());
        }
        let covers = shared.asked.get();
        let synced = shared.file.sync().await;
        self.ended(&synced);
        match &synced {
            Ok(()) => shared.done.set(covers),
            Err(error) => {
                shared.lost.borrow_mut().get_or_insert_with(|| (error.kind(), error.to_string()));
            }
        }
        synced
    }
}

/// See [`Held::noting`]. W7: its syncs take their turn, and what they are told of is told to everybody on the file.
pub(crate) struct Noting<'a, F>(&'a Held<F>);

impl<F: DiskFile> Noting<'_, F> {
    /// As [`DiskFile::write_at`].
    pub(crate) async fn write_at(&self, offset: u64, data: Chunk) -> io::Result<()> {
        self.0.write_at(offset, data).await
    }

    /// As [`DiskFile::sync`].
    pub(crate) async fn sync(&self) -> io::Result<()> {
        self.0.sync_in_turn(true).await
    }
}

impl<F: DiskFile> DiskFile for Held<F> {
    fn facts(&self) -> &FileFacts {
        self.shared.file.facts()
    }

    async fn read_at(&self, offset: u64, buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        self.shared.file.read_at(offset, buffer, range).await
    }

    async fn write_at(&self, offset: u64, data: Chunk) -> io::Result<()> {
        let written = self.shared.file.write_at(offset, data).await;
        self.ended(&written);
        written
    }

    /// Makes everything written before durable, with one sync for all who wait for their turn.
    async fn sync(&self) -> io::Result<()> {
        self.sync_in_turn(false).await
    }

    async fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()> {
        let zeroed = self.shared.file.zero(offset, length, how).await;
        self.ended(&zeroed);
        zeroed
    }

    async fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<(u64, bool)>> {
        self.shared.file.extents(offset, length).await
    }
}

fn shared<F: 'static>(piece: &PieceSpec) -> Option<Rc<Shared<F>>> {
    OPEN.with_borrow_mut(|table| {
        table.claims.retain(|claim| claim.holder.strong_count() > 0);
        if table.claims.iter().any(|claim| claim.piece.overlaps(piece)) {
            return None;
        }
        let claim = table.claims.iter().find(|claim| claim.piece.path == piece.path)?;
        claim.file.upgrade()?.downcast::<Shared<F>>().ok()
    })
}

/// Opens the file of a piece for reading and writing, waiting for its lock.
///
/// # Errors
/// What the operating system says.
pub(crate) async fn hold<D: Disk>(disk: &D, piece: &PieceSpec) -> std::io::Result<Held<D::File>>
where
    D::File: 'static,
{
    let gate = OPEN.with_borrow_mut(|table| Rc::clone(table.gates.entry(piece.path.clone()).or_default()));
    let _one_at_a_time = gate.lock().await;
    let shared = match shared::<D::File>(piece) {
        Some(shared) => shared,
        None => {
            let how = OpenHow { write: true, direct: true, exclusive: true };
            let file = disk.open(&piece.path, how).await?;
            let (turn, asked, done) = (Mutex::new(()), Cell::new(0), Cell::new(0));
            let path = piece.path.clone();
            Rc::new(Shared { file, path, turn, asked, done, lost: RefCell::default() })
        }
    };
    let holder = Rc::new(());
    let weak: Weak<dyn Any> = Rc::downgrade(&(Rc::clone(&shared) as Rc<dyn Any>));
    OPEN.with_borrow_mut(|table| {
        table.claims.push(Claim { piece: piece.clone(), holder: Rc::downgrade(&holder), file: weak });
    });
    Ok(Held { shared, _holder: holder })
}

/// Opens the file of a piece for a look at its label, without its lock.
pub(crate) async fn look<D: Disk>(disk: &D, piece: &PieceSpec) -> Result<D::File, AreaError> {
    let how = OpenHow { write: false, direct: false, exclusive: false };
    disk.open(&piece.path, how).await.map_err(|error| AreaError::new(AreaErrorKind::Io, format!("cannot read {piece}: {error}")))
}
