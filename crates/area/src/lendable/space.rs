//! Folders: how much of their file system may be lent.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, SeekFrom, StatVfsMountFlags, access, statfs, statvfs};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::{AREA_SIZE_MIN, BLOCK_SIZE, SIZE_MAX};
use sublet_types::size::ByteSize;

use crate::layout::data_size;
use crate::spec::PieceSpec;

/// `statfs` numbers of file systems that never overwrite in place (P2).
const COPY_ON_WRITE: [(u64, &str); 3] = [(0x9123_683E, "btrfs"), (0x2FC1_2FC1, "zfs"), (0xCA45_1A4E, "bcachefs")];
/// tmpfs and ramfs.
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58F6];

/// Free bytes, and bytes in all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Space {
    pub free: u64,
    pub total: u64,
}

impl Space {
    /// What may be taken so that so many percent stay free.
    pub fn usable(self, keep_free_percent: u8) -> u64 {
        let keep = u128::from(self.total) * u128::from(keep_free_percent.min(100)) / 100;
        self.free.saturating_sub(u64::try_from(keep).unwrap_or(u64::MAX))
    }
}

fn failed(folder: &Path, error: rustix::io::Errno) -> Refusal {
    Refusal::new(ErrorKind::Io, format!("cannot ask how full the file system of {} is: {error}", folder.display()))
}

pub(super) fn space_of(folder: &Path) -> Result<Space, Refusal> {
    let facts = statvfs(folder).map_err(|error| failed(folder, error))?;
    Ok(Space { free: facts.f_bavail.saturating_mul(facts.f_frsize), total: facts.f_blocks.saturating_mul(facts.f_frsize) })
}

/// Room for data of the largest file that fits.
pub(super) fn surplus(space: Space, keep_free_percent: u8) -> u64 {
    data_size(space.usable(keep_free_percent).min(SIZE_MAX) / BLOCK_SIZE * BLOCK_SIZE)
}

/// True if files can be made there.
pub(super) fn writable(folder: &Path) -> bool {
    let read_only = statvfs(folder).is_ok_and(|facts| facts.f_flag.contains(StatVfsMountFlags::RDONLY));
    !read_only && access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// What the lender should know of the file system under a path.
pub(super) fn notes(path: &Path) -> Vec<String> {
    let Ok(facts) = statfs(path) else { return Vec::new() };
    let kind = facts.f_type as u64 & 0xFFFF_FFFF;
    let mut notes = Vec::new();
    if let Some((_, name)) = COPY_ON_WRITE.iter().find(|(number, _)| *number == kind) {
        notes.push(format!(
            "{} lies on {name}, which never overwrites in place: bytes of former borrowers stay in its old blocks and snapshots after a wipe",
            path.display()
        ));
    }
    if MEMORY.contains(&kind) {
        notes.push(format!("{} lies in memory: everything in the area is lost when this machine restarts", path.display()));
    }
    notes
}

/// Why so many bytes are too much for the file system.
fn too_full(path: &Path, needed: u64, space: Space, keep_free_percent: u8) -> Option<Refusal> {
    let usable = space.usable(keep_free_percent);
    if needed <= usable {
        return None;
    }
    let message = format!(
        "there is not enough free space in {}: {} are needed, {} are free, and {keep_free_percent} percent of {} stay free (--keep-free), which leaves {}",
        path.display(),
        ByteSize(needed),
        ByteSize(space.free),
        ByteSize(space.total),
        ByteSize(usable),
    );
    let most = surplus(space, keep_free_percent);
    let hint = if most < AREA_SIZE_MIN {
        "free some space, or give --keep-free another value".to_owned()
    } else {
        format!("lend {} or less, or give --keep-free another value", ByteSize(most))
    };
    Some(Refusal::new(ErrorKind::NoSpace, message).hint(hint))
}

/// How many bytes of a stretch of a file have no space yet. Space that is allocated and not written counts as holes, so the
/// file's blocks are a second bound.
fn unallocated(piece: &PieceSpec) -> std::io::Result<u64> {
    let file = File::open(&piece.path)?;
    let facts = file.metadata()?;
    let bound = facts.len().max(piece.end()).saturating_sub(facts.blocks().saturating_mul(512));
    let (mut at, mut holes) = (piece.offset, 0);
    while at < piece.end() {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data.min(piece.end()),
            Err(rustix::io::Errno::NXIO) => piece.end(),
            // The file system cannot tell.
            Err(_) => return Ok(bound.min(piece.length)),
        };
        holes += data - at;
        at = if data < piece.end() { rustix::fs::seek(&file, SeekFrom::Hole(data))? } else { data };
    }
    Ok(holes.min(bound))
}

/// See [`super::check_fill`].
pub(super) fn check_fill(pieces: &[PieceSpec], keep_free_percent: u8) -> Result<(), Refusal> {
    // Files of one file system count together.
    let mut needs: HashMap<u64, (&Path, u64)> = HashMap::new();
    for piece in pieces {
        let failed = |error| Refusal::new(ErrorKind::Io, format!("cannot look at {}: {error}", piece.path.display()));
        let facts = std::fs::metadata(&piece.path).map_err(failed)?;
        if facts.is_file() {
            needs.entry(facts.dev()).or_insert((&piece.path, 0)).1 += unallocated(piece).map_err(failed)?;
        }
    }
    for (path, needed) in needs.into_values() {
        if let Some(refusal) = too_full(path, needed, space_of(path)?, keep_free_percent) {
            let hint = "give --keep-free another value, or lend it with --sparse as it is".to_owned();
            return Err(Refusal { hint, ..refusal });
        }
    }
    Ok(())
}

/// See [`super::check_folder`].
pub(super) fn check(folder: &Path, file_size: u64, keep_free_percent: u8, sparse: bool) -> Result<Vec<String>, Refusal> {
    if keep_free_percent > 100 {
        return Err(Refusal::new(
            ErrorKind::BadRequest,
            format!("cannot keep {keep_free_percent} percent free: it must be 0 to 100"),
        ));
    }
    if !writable(folder) {
        let message = format!("no file can be made in {}: it is read-only or not permitted", folder.display());
        return Err(Refusal::new(ErrorKind::BadRequest, message));
    }
    let space = space_of(folder)?;
    let mut notes = notes(folder);
    if let Some(refusal) = too_full(folder, file_size, space, keep_free_percent) {
        if !sparse {
            return Err(refusal);
        }
        notes.push(format!("{}; a sparse area may run out of space while it is lent", refusal.message));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::file_size_for;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_stays_free_is_counted_of_the_whole_file_system() {
        for (free, total, percent, usable) in
            [(50, 100, 10, 40), (50, 100, 0, 50), (5, 100, 10, 0), (100, 100, 100, 0), (u64::MAX, u64::MAX, 50, u64::MAX / 2 + 1)]
        {
            assert_eq!(Space { free, total }.usable(percent), usable, "{free} of {total}, {percent} %");
        }
    }

    #[test]
    fn the_surplus_is_what_a_file_may_really_have() {
        let space = Space { free: 50 * GIB, total: 100 * GIB };
        let data = surplus(space, 10);
        assert!(file_size_for(data) <= 40 * GIB);
        assert!(file_size_for(data + (4 << 20)) > 40 * GIB);
        assert_eq!(surplus(Space { free: 0, total: 0 }, 10), 0);
    }

    #[test]
    fn what_a_sparse_file_still_lacks_is_counted() {
        use std::os::unix::fs::FileExt as _;
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("x");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 1 << 20], 2 << 20).unwrap();
        file.sync_all().unwrap();
        let lacks = |offset, length| unallocated(&PieceSpec { path: path.clone(), offset, length }).unwrap();
        assert_eq!(lacks(0, 8 << 20), 7 << 20);
        assert_eq!(lacks(2 << 20, 1 << 20), 0);
        assert_eq!(lacks(1 << 20, 4 << 20), 3 << 20);
        let piece = PieceSpec { path: path.clone(), offset: 0, length: 8 << 20 };
        assert_eq!(check_fill(std::slice::from_ref(&piece), 100).unwrap_err().kind, ErrorKind::NoSpace);
        check_fill(std::slice::from_ref(&piece), 0).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8 << 20).unwrap();
        assert_eq!(lacks(0, 8 << 20), 0, "allocated, although not written");
        check_fill(std::slice::from_ref(&piece), 100).unwrap();
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_the_figures() {
        let folder = tempfile::tempdir().unwrap();
        let space = space_of(folder.path()).unwrap();
        let refusal = check(folder.path(), space.free + 1, 0, false).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::NoSpace);
        assert!(refusal.hint.contains("or less"), "{refusal}");
        let refusal = check(folder.path(), 16 << 20, 100, false).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::NoSpace);
        assert!(check(folder.path(), 16 << 20, 0, false).is_ok());
        let notes = check(folder.path(), space.free + 1, 0, true).unwrap();
        assert!(notes.iter().any(|note| note.contains("run out of space")));
    }
}
