//! W7: failures of areas are noted in the state directory, which usually lies on another disk, until their labels have them.

use std::path::PathBuf;
use std::{fs, io, thread};

use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use sublet_area::Witness;
use sublet_link::{Home, write_private};
use sublet_types::AreaId;

/// One file for each area that has failed. A thread writes it: the data thread never waits for this disk with others.
pub(crate) struct FailureNotes(pub Home);

impl FailureNotes {
    fn path(&self, area: AreaId) -> PathBuf {
        self.0.failure_path(area)
    }
}

/// Carries work out on a thread of its own.
fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> LocalBoxFuture<'static, io::Result<T>> {
    let (done, result) = oneshot::channel();
    // Nobody may wait for it any more.
    let thread = thread::Builder::new().name("failure note".to_owned()).spawn(move || drop(done.send(work())));
    Box::pin(async move {
        thread?;
        result.await.map_err(io::Error::other)?
    })
}

impl Witness for FailureNotes {
    fn note(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<()>> {
        let path = self.path(area);
        elsewhere(move || write_private(&path, b"The disk of this area has failed, and its label may not say so yet.\n"))
    }

    fn is_noted(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<bool>> {
        let path = self.path(area);
        elsewhere(move || path.try_exists())
    }

    fn forget(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<()>> {
        let path = self.path(area);
        // Should it come back with a crash, the failure is counted once more.
        elsewhere(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use sublet_doors::real::{RealDoors, run};

    use super::*;

    #[test]
    fn w7_a_note_of_a_failure_outlives_the_process_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let notes = || FailureNotes(Home::new(dir.path()));
        let (one, other) = (AreaId::from_u128(1), AreaId::from_u128(2));
        run(async |_: RealDoors| {
            notes().note(one).await.unwrap();
            assert!(notes().is_noted(one).await.unwrap() && !notes().is_noted(other).await.unwrap());
            notes().forget(one).await.unwrap();
            notes().forget(one).await.unwrap();
            assert!(!notes().is_noted(one).await.unwrap());
            fs::remove_dir(dir.path()).unwrap();
            notes().note(one).await.unwrap_err();
        })
        .unwrap();
    }
}
