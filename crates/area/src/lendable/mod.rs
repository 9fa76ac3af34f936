//! What may be lent: checks of files, folders and devices before anything is written, and suggestions.
//!
//! Blocking code for the agent's control thread; it only reads.

use std::path::{Path, PathBuf};

use sublet_api::Refusal;
use sublet_api::control::Suggestion;
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
    let _ = path;
    Err(Refusal::new(sublet_api::ErrorKind::Internal, "skeleton"))
}

/// May these pieces (files and devices, canonical paths) become an area? In this order: place, overlap with each other and
/// with `areas` (pieces lent already), size, mounted or in use, signatures and labels. `force` overrules signatures and
/// labels, nothing else. The answer is what the lender should know.
///
/// # Errors
/// Why not, and what to do.
pub fn check_pieces(
    pieces: &[PieceSpec],
    areas: &[PieceSpec],
    pool: Option<PoolId>,
    force: bool,
) -> Result<Vec<String>, Refusal> {
    let _ = (pieces, areas, pool, force);
    Ok(Vec::new())
}

/// May a file of `file_size` bytes be made in this folder, so that `keep_free_percent` of the file system stay free?
/// The answer is what the lender should know.
///
/// # Errors
/// Why not, and what to do.
pub fn check_folder(folder: &Path, file_size: u64, keep_free_percent: u8, sparse: bool) -> Result<Vec<String>, Refusal> {
    let _ = (folder, file_size, keep_free_percent, sparse);
    Ok(Vec::new())
}

/// Room for data (as `--size` means it) that a file in this folder could have, keeping so much free.
///
/// # Errors
/// If the file system does not answer.
pub fn folder_surplus(folder: &Path, keep_free_percent: u8) -> Result<u64, Refusal> {
    let _ = (folder, keep_free_percent);
    Ok(0)
}

/// Disks, partitions and folders with surplus, and the command that lends each.
pub fn suggest(areas: &[PieceSpec], keep_free_percent: u8) -> Vec<Suggestion> {
    let _ = (areas, keep_free_percent);
    Vec::new()
}

/// Every block device of this machine that could carry a label (disks and partitions), as whole pieces: where a missing
/// piece may have turned up.
pub fn block_devices() -> Vec<PieceSpec> {
    Vec::new()
}
