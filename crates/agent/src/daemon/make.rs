//! Making the file of an area, and taking it away again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;
use sublet_api::{ErrorKind, Refusal};
use sublet_area::PieceSpec;
use sublet_types::ByteSize;
use sublet_types::size::{GIB, MIB};

/// Space is allocated in steps of this size, so that progress can be told.
const ALLOCATE_STEP: u64 = GIB;

/// Tells what is being done, bytes done and bytes in all.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(&str, u64, u64);

fn failed(path: &Path, what: &str, error: &io::Error) -> Refusal {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        _ => ErrorKind::Io,
    };
    Refusal::new(kind, format!("{} cannot be {what}: {error}", path.display()))
}

/// Allocates the space of a stretch of a file; its content stays. File systems without `fallocate` get zeroes written behind
/// the end of the file.
fn allocate(file: &File, path: &Path, offset: u64, length: u64, tell: Tell<'_>) -> Result<(), Refusal> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        tell("allocating space", at - offset, length);
        let step = ALLOCATE_STEP.min(end - at);
        match fallocate(file, FallocateFlags::empty(), at, step) {
            Ok(()) => at += step,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return write_zeroes(file, path, at, end, tell),
            Err(error) => return Err(failed(path, "allocated", &error.into())),
        }
    }
    Ok(())
}

fn write_zeroes(file: &File, path: &Path, from: u64, end: u64, tell: Tell<'_>) -> Result<(), Refusal> {
    use std::os::unix::fs::FileExt as _;
    let zeroes = vec![0; MIB as usize];
    // What the file has already is not overwritten.
    let from = from.max(file.metadata().map_err(|e| failed(path, "read", &e))?.len());
    let mut at = from;
    while at < end {
        if at % (64 * MIB) == 0 {
            tell("writing zeroes", at - from, end - from);
        }
        let step = zeroes.len().min((end - at) as usize);
        file.write_all_at(zeroes.get(..step).unwrap_or(&zeroes), at).map_err(|e| failed(path, "allocated", &e))?;
        at += step as u64;
    }
    Ok(())
}

/// Makes a file of so many bytes, which must not exist; nothing is left of it after an error.
pub(crate) fn make_file(path: &Path, size: u64, sparse: bool, tell: Tell<'_>) -> Result<(), Refusal> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| failed(path, "made", &e))?;
    let made = (|| {
        if sparse {
            file.set_len(size).map_err(|e| failed(path, "made", &e))?;
        } else {
            allocate(&file, path, 0, size, tell)?;
        }
        file.sync_all().map_err(|e| failed(path, "saved", &e))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| failed(folder, "saved", &e))
    })();
    if made.is_err() {
        remove(path);
    }
    made
}

/// The holes in a stretch of a file: offset and length.
fn holes(file: &File, piece: &PieceSpec) -> Vec<(u64, u64)> {
    let (mut at, mut holes) = (piece.offset, Vec::new());
    while at < piece.end() {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(piece.end()),
            Err(Errno::NXIO) => piece.end(),
            // A file system that does not know holes has none to give back.
            Err(_) => return Vec::new(),
        };
        if data > at {
            holes.push((at, data - at));
        }
        let Ok(hole) = seek(file, SeekFrom::Hole(data.min(piece.end() - 1))) else { return holes };
        at = hole.max(data);
    }
    holes
}

/// Allocates what is missing of an existing file. If that fails, what was a hole is one again: the file system is not left
/// full.
pub(crate) fn fill_file(piece: &PieceSpec, tell: Tell<'_>) -> Result<(), Refusal> {
    let file = OpenOptions::new().read(true).write(true).open(&piece.path).map_err(|e| failed(&piece.path, "opened", &e))?;
    if !file.metadata().map_err(|e| failed(&piece.path, "read", &e))?.is_file() {
        return Ok(());
    }
    let holes = holes(&file, piece);
    let filled = allocate(&file, &piece.path, piece.offset, piece.length, tell);
    if filled.is_err() {
        for (at, length) in holes {
            if let Err(error) = fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, length) {
                tracing::warn!(%error, path = %piece.path.display(), "space that was allocated is not given back");
            }
        }
    }
    filled
}

/// Removes a file that was made for an area.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, path = %path.display(), "a file was not removed; remove it by hand");
    }
}

/// Refuses what another process has locked: it is lent by another server already.
pub(crate) fn refuse_locked(path: &Path) -> Result<(), Refusal> {
    let file = File::open(path).map_err(|e| failed(path, "opened", &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            Err(Refusal::new(ErrorKind::Conflict, format!("{} is in use: another process has locked it", path.display()))
                .hint("see whether another `sublet server` lends it"))
        }
        Err(error) => Err(failed(path, "locked", &error.into())),
    }
}

/// Refuses a size that no area can have.
pub(crate) fn check_size(size: u64) -> Result<(), Refusal> {
    use sublet_types::limits::{AREA_SIZE_MIN, SIZE_MAX};
    if !(AREA_SIZE_MIN..=SIZE_MAX).contains(&size) {
        let text = format!("an area has {} to {}, not {}", ByteSize(AREA_SIZE_MIN), ByteSize(SIZE_MAX), ByteSize(size));
        return Err(Refusal::new(ErrorKind::BadRequest, text).hint("give another --size"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_file_is_allocated_unless_sparse_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (full, sparse) = (dir.path().join("full"), dir.path().join("sparse"));
        make_file(&full, 8 * MIB, false, &mut |_, _, _| {}).unwrap();
        make_file(&sparse, 8 * MIB, true, &mut |_, _, _| {}).unwrap();
        let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
        assert_eq!(fs::metadata(&full).unwrap().len(), 8 * MIB);
        assert!(blocks(&full) >= 8 * MIB);
        assert_eq!((fs::metadata(&sparse).unwrap().len(), blocks(&sparse)), (8 * MIB, 0));
        File::create(dir.path().join("mine")).unwrap().write_all(b"mine").unwrap();
        let refusal = make_file(&dir.path().join("mine"), 8 * MIB, false, &mut |_, _, _| {}).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::AlreadyExists);
        assert_eq!(fs::read(dir.path().join("mine")).unwrap(), b"mine");
        fill_file(&PieceSpec { path: sparse.clone(), offset: 0, length: 8 * MIB }, &mut |_, _, _| {}).unwrap();
        assert!(blocks(&sparse) >= 8 * MIB);
    }

    #[test]
    fn nothing_is_left_of_a_file_that_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        assert!(make_file(&path, 1 << 59, false, &mut |_, _, _| {}).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn what_another_process_has_locked_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let holder = File::create(&path).unwrap();
        refuse_locked(&path).unwrap();
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        assert_eq!(refuse_locked(&path).unwrap_err().kind, ErrorKind::Conflict);
    }
}
