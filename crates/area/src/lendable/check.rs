//! May these pieces be lent?

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::SeekFrom;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::PoolId;
use sublet_types::size::ByteSize;

use super::signature::{Signature, detect};
use super::{TargetKind, machine, probe, space};
use crate::format::check_place;
use crate::spec::PieceSpec;

/// How much of a file's content is looked at.
const CONTENT_LOOKED_AT: usize = 1 << 20;

/// Where bytes really lie: partitions are counted on their disk, files by inode. Two paths of one thing are one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    device: u64,
    inode: Option<u64>,
    start: u64,
    end: u64,
}

impl Place {
    fn of(piece: &PieceSpec) -> Option<Self> {
        let facts = fs::metadata(&piece.path).ok()?;
        if !facts.file_type().is_block_device() {
            return Some(Self { device: facts.dev(), inode: Some(facts.ino()), start: piece.offset, end: piece.end() });
        }
        let (device, shift) = machine::parent_of(facts.rdev()).unwrap_or((facts.rdev(), 0));
        Some(Self { device, inode: None, start: shift.saturating_add(piece.offset), end: shift.saturating_add(piece.end()) })
    }

    fn overlaps(self, other: Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode) && self.start < other.end && other.start < self.end
    }
}

fn overlap(a: &PieceSpec, b: &PieceSpec) -> bool {
    // The path decides when a disk is away and has no place.
    a.overlaps(b) || matches!((Place::of(a), Place::of(b)), (Some(a), Some(b)) if a.overlaps(b))
}

/// See [`super::check_pieces`].
pub(super) fn check_pieces(
    pieces: &[PieceSpec],
    areas: &[PieceSpec],
    pool: Option<PoolId>,
    force: bool,
) -> Result<Vec<String>, Refusal> {
    check_place(pieces).map_err(|error| error.refusal())?;
    let mut notes = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let target = probe(&piece.path)?;
        if piece.end() > target.size {
            let message = format!("{piece}: {} do not fit, it has {}", ByteSize(piece.length), ByteSize(target.size));
            return Err(Refusal::new(ErrorKind::BadRequest, message).hint("give a smaller --offset or --size"));
        }
        if pieces.iter().skip(index + 1).any(|other| overlap(piece, other)) {
            return Err(Refusal::new(ErrorKind::BadRequest, format!("{piece} is named twice")));
        }
        if let Some(area) = areas.iter().find(|area| overlap(piece, area)) {
            let message = format!("{piece} overlaps what is lent already ({area}, {})", ByteSize(area.length));
            return Err(Refusal::new(ErrorKind::Conflict, message).hint("lend another part, or reclaim that area first"));
        }
        check_piece(piece, pool, force)?;
        if target.kind == TargetKind::File {
            notes.extend(space::notes(&piece.path));
        }
    }
    Ok(notes)
}

fn check_piece(piece: &PieceSpec, pool: Option<PoolId>, force: bool) -> Result<(), Refusal> {
    let failed = |error: io::Error| Refusal::new(ErrorKind::Io, format!("cannot look at {piece}: {error}"));
    let device = machine::device_number(&piece.path);
    let in_use = match device {
        Some(device) => machine::block_device_use(device),
        None => machine::file_use(&piece.path),
    };
    if let Some(why) = in_use.map_err(failed)? {
        let hint = "free it first (unmount, swapoff, take it out of its RAID or volume group)";
        return Err(Refusal::new(ErrorKind::Conflict, format!("{} cannot be lent: {why}", piece.path.display())).hint(hint));
    }
    if force {
        return Ok(());
    }
    let file = File::open(&piece.path).map_err(failed)?;
    if let Some(found) = signature_under(&file, piece).map_err(failed)? {
        return Err(refuse_signature(piece, &found, pool));
    }
    if let Some(device) = device {
        return check_partitions(device, piece);
    }
    if holds_data(&file, piece).map_err(failed)? {
        let message = format!("{} holds data, which would be lost", piece.path.display());
        return Err(Refusal::new(ErrorKind::Conflict, message).hint("if it is not needed any more, add --force"));
    }
    Ok(())
}

fn refuse_signature(piece: &PieceSpec, found: &Signature, pool: Option<PoolId>) -> Refusal {
    let message = match &found.label {
        None => format!("{} holds {}, which would be lost", piece.path.display(), found.what),
        Some(label) if Some(label.pool) == pool => {
            format!("{} carries {}, which is of this pool", piece.path.display(), found.what)
        }
        Some(_) => format!("{} carries {}, which is another pool's", piece.path.display(), found.what),
    };
    let hint = match &found.label {
        None => "if it is not needed any more, add --force",
        Some(label) if Some(label.pool) == pool => {
            "reclaim that area first; if it is forgotten there, --force makes a new area and forgets all of it"
        }
        Some(_) => "reclaim that area in its pool first; if that pool is gone, --force makes a new area and forgets all of it",
    };
    Refusal::new(ErrorKind::Conflict, message).hint(hint)
}

/// Reads exactly so many bytes.
fn read(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// A signature at the beginning of the piece; or, if the piece is a part, one at the beginning of the whole that covers it.
fn signature_under(file: &File, piece: &PieceSpec) -> io::Result<Option<Signature>> {
    let found = detect(&mut |at, length| read(file, piece.offset + at, length), piece.length)?;
    if found.is_some() || piece.offset == 0 {
        return Ok(found);
    }
    let size = rustix::fs::seek(file, SeekFrom::End(0))?;
    let whole = detect(&mut |at, length| read(file, at, length), size)?;
    Ok(whole.filter(|found| match &found.label {
        // Another area may end before this part begins.
        Some(label) => label.length > piece.offset,
        // Partitions are compared one by one.
        None => !found.what.contains("partition table"),
    }))
}

/// A part of a disk must not lie on a partition of it.
fn check_partitions(disk: u64, piece: &PieceSpec) -> Result<(), Refusal> {
    let on =
        machine::partitions_of(disk).into_iter().find(|partition| partition.start < piece.end() && piece.offset < partition.end);
    let Some(partition) = on else { return Ok(()) };
    let message = format!("{piece} would lie on partition {}", partition.name);
    Err(Refusal::new(ErrorKind::Conflict, message).hint("lend the partition itself, or another part; --force overwrites it"))
}

/// True if the first data of a file is not zero.
fn holds_data(file: &File, piece: &PieceSpec) -> io::Result<bool> {
    let begin = match rustix::fs::seek(file, SeekFrom::Data(piece.offset)) {
        Ok(at) => at,
        Err(rustix::io::Errno::NXIO) => return Ok(false),
        // The file system cannot tell: begin at the beginning.
        Err(_) => piece.offset,
    };
    if begin >= piece.end() {
        return Ok(false);
    }
    let length = usize::try_from(piece.end() - begin).map_or(CONTENT_LOOKED_AT, |length| length.min(CONTENT_LOOKED_AT));
    Ok(read(file, begin, length)?.iter().any(|byte| *byte != 0))
}

/// What is on a path, for suggestions.
pub(super) fn signature_of(path: &Path, size: u64) -> io::Result<Option<Signature>> {
    let file = File::open(path)?;
    detect(&mut |at, length| read(&file, at, length), size)
}

/// True if the piece shares bytes with one of the areas.
pub(super) fn is_lent(piece: &PieceSpec, areas: &[PieceSpec]) -> bool {
    areas.iter().any(|area| overlap(piece, area))
}
