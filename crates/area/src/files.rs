//! Open files and devices of a thread. Parts of one device may belong to different areas; they share one open file, because
//! the lock (F2) and O_EXCL belong to the open file. The same bytes are never opened twice this way: a second opening of an
//! area opens the file anew, and so waits for the lock.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use sublet_types::mutation::{self, Mutation};

use futures_util::lock::Mutex;
use sublet_doors::{Disk, OpenHow};

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
}

thread_local! {
    static OPEN: RefCell<Table> = RefCell::default();
}

/// A file that is locked for the piece, until this is dropped.
pub(crate) struct Held<F> {
    file: Rc<F>,
    _holder: Rc<()>,
}

impl<F> std::ops::Deref for Held<F> {
    type Target = F;
    fn deref(&self) -> &F {
        &self.file
    }
}

fn shared<F: 'static>(piece: &PieceSpec) -> Option<Rc<F>> {
    OPEN.with_borrow_mut(|table| {
        table.claims.retain(|claim| claim.holder.strong_count() > 0);
        if table.claims.iter().any(|claim| claim.piece.overlaps(piece)) {
            return None;
        }
        let claim = table.claims.iter().find(|claim| claim.piece.path == piece.path)?;
        claim.file.upgrade()?.downcast::<F>().ok()
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
    let file = match shared::<D::File>(piece) {
        Some(file) => file,
        None => Rc::new(
            disk.open(&piece.path, OpenHow { write: true, direct: true, exclusive: !mutation::is(Mutation::LockIgnored) })
                .await?,
        ),
    };
    let holder = Rc::new(());
    let weak: Weak<dyn Any> = Rc::downgrade(&(Rc::clone(&file) as Rc<dyn Any>));
    OPEN.with_borrow_mut(|table| {
        table.claims.push(Claim { piece: piece.clone(), holder: Rc::downgrade(&holder), file: weak });
    });
    Ok(Held { file, _holder: holder })
}

/// Opens the file of a piece for a look at its label, without its lock.
pub(crate) async fn look<D: Disk>(disk: &D, piece: &PieceSpec) -> Result<D::File, AreaError> {
    let how = OpenHow { write: false, direct: false, exclusive: false };
    disk.open(&piece.path, how).await.map_err(|error| AreaError::new(AreaErrorKind::Io, format!("cannot read {piece}: {error}")))
}
