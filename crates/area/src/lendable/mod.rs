//! What may be lent: checks of files, folders and devices before anything is written, and suggestions.
//!
//! Blocking code for the agent's control thread; it only reads.

mod check;
mod machine;
pub mod signature;
mod space;
mod suggest;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sublet_api::control::Suggestion;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::PoolId;

use crate::spec::PieceSpec;

/// What a path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetKind {
    /// A folder: a file is made in it.
    Folder,
    /// An existing file.
    File,
    /// A whole disk.
    Disk,
    /// A partition.
    Partition,
}

/// A path that could be lent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The canonical path.
    pub path: PathBuf,
    /// What it is.
    pub kind: TargetKind,
    /// Its size in bytes; 0 for a folder.
    pub size: u64,
}

/// Looks at a path: what it is, how big it is.
///
/// # Errors
/// If it does not exist, cannot be read, or is something that holds no bytes.
pub fn probe(path: &Path) -> Result<Target, Refusal> {
    let shown = path.display();
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Refusal::new(ErrorKind::NotFound, format!("there is no {shown}")),
        _ => Refusal::new(ErrorKind::Io, format!("cannot look at {shown}: {error}")),
    };
    let path = fs::canonicalize(path).map_err(failed)?;
    let facts = fs::metadata(&path).map_err(failed)?;
    // Before it is opened: a look at a volume whose lender is away takes for ever.
    let device = if facts.file_type().is_block_device() { facts.rdev() } else { facts.dev() };
    if machine::over_fuse().contains(&device) {
        return Err(Refusal::new(
            ErrorKind::Conflict,
            format!("{shown} cannot be lent: it is a borrowed volume, or lies on one"),
        )
        .hint("lend disks and folders of this machine only"));
    }
    let size = |path: &Path| File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0))).map_err(failed);
    if facts.is_dir() {
        return Ok(Target { path, kind: TargetKind::Folder, size: 0 });
    }
    if facts.is_file() {
        return Ok(Target { kind: TargetKind::File, size: size(&path)?, path });
    }
    if facts.file_type().is_block_device() {
        let kind = if machine::parent_of(facts.rdev()).is_some() { TargetKind::Partition } else { TargetKind::Disk };
        return Ok(Target { kind, size: size(&path)?, path });
    }
    Err(Refusal::new(ErrorKind::BadRequest, format!("{shown} cannot be lent: it is neither a folder, a file nor a disk")))
}

/// May these pieces (files and devices, canonical paths) become an area? In this order: place and size, overlap with each
/// other and with `areas` (pieces lent already), mounted or in use, signatures and labels, content of files. `force`
/// overrules signatures, labels and content, nothing else. The answer is what the lender should know.
///
/// # Errors
/// Why not, and what to do.
pub fn check_pieces(
    pieces: &[PieceSpec],
    areas: &[PieceSpec],
    pool: Option<PoolId>,
    force: bool,
) -> Result<Vec<String>, Refusal> {
    check::check_pieces(pieces, areas, pool, force)
}

/// May a file of `file_size` bytes be made in this folder, so that `keep_free_percent` of the file system stay free?
/// The answer is what the lender should know.
///
/// # Errors
/// Why not, and what to do.
pub fn check_folder(folder: &Path, file_size: u64, keep_free_percent: u8, sparse: bool) -> Result<Vec<String>, Refusal> {
    space::check(folder, file_size, keep_free_percent, sparse)
}

/// May the space be allocated that stretches of existing files lack, so that `keep_free_percent` of their file systems stay
/// free? Devices among the pieces lack none.
///
/// # Errors
/// If not.
pub fn check_fill(pieces: &[PieceSpec], keep_free_percent: u8) -> Result<(), Refusal> {
    space::check_fill(pieces, keep_free_percent)
}

/// Room for data (as `--size` means it) that a file in this folder could have, keeping so much free.
///
/// # Errors
/// If the file system does not answer.
pub fn folder_surplus(folder: &Path, keep_free_percent: u8) -> Result<u64, Refusal> {
    Ok(space::surplus(space::space_of(folder)?, keep_free_percent))
}

/// Disks, partitions and folders with surplus, and the command that lends each.
pub fn suggest(areas: &[PieceSpec], keep_free_percent: u8) -> Vec<Suggestion> {
    suggest::suggest(areas, keep_free_percent)
}

/// Every block device of this machine that could carry a label (disks and partitions), as whole pieces: where a missing
/// piece may have turned up.
pub fn block_devices() -> Vec<PieceSpec> {
    machine::blocks().into_iter().map(|block| PieceSpec { path: block.path, offset: 0, length: block.size }).collect()
}
