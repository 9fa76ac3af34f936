//! What could be lent: disks and partitions with nothing on them, and file systems with surplus.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sublet_api::control::Suggestion;
use sublet_types::limits::{AREA_SIZE_MIN, BLOCK_SIZE};
use sublet_types::size::GIB;

use super::{check, machine, space};
use crate::layout::data_size;
use crate::spec::PieceSpec;

/// A file system with less surplus than this is not worth a suggestion.
const FOLDER_SURPLUS_MIN: u64 = GIB;
/// File systems of disks; others are memory, network or not for files.
const DISK_FILE_SYSTEMS: [&str; 9] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "overlay"];

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn suggest_block(block: &machine::Block, areas: &[PieceSpec]) -> Option<Suggestion> {
    let length = block.size / BLOCK_SIZE * BLOCK_SIZE;
    let surplus = data_size(length);
    let piece = PieceSpec { path: block.path.clone(), offset: 0, length };
    // What cannot be looked at is not suggested.
    let free = machine::block_device_use(block.device).is_ok_and(|why| why.is_none());
    if surplus < AREA_SIZE_MIN || !free || check::is_lent(&piece, areas) {
        return None;
    }
    if (!block.partition && !machine::partitions_of(block.device).is_empty())
        || check::signature_of(&block.path, block.size).ok()?.is_some()
    {
        return None;
    }
    let kind = if block.partition { "partition" } else { "disk" };
    Some(Suggestion {
        path: block.path.display().to_string(),
        kind: kind.to_owned(),
        surplus,
        command: format!("sublet lend {}", quoted(&block.path)),
        note: format!("no file system, partition table or other signature was found on this {kind}"),
    })
}

/// The folder of a file system that a file should be made in.
fn folder_of(mount: &machine::Mount) -> PathBuf {
    let here = |path: &Path| fs::metadata(path).is_ok_and(|facts| facts.is_dir() && facts.dev() == mount.device);
    let srv = Path::new("/srv");
    if mount.point == Path::new("/") && here(srv) { srv.to_owned() } else { mount.point.clone() }
}

fn suggest_folder(mount: &machine::Mount, keep_free_percent: u8) -> Option<Suggestion> {
    let folder = folder_of(mount);
    if mount.read_only || !DISK_FILE_SYSTEMS.contains(&mount.kind.as_str()) || !folder.is_dir() || !space::writable(&folder) {
        return None;
    }
    let surplus = space::surplus(space::space_of(&folder).ok()?, keep_free_percent) / GIB * GIB;
    (surplus >= FOLDER_SURPLUS_MIN).then(|| Suggestion {
        path: folder.display().to_string(),
        kind: "folder".to_owned(),
        surplus,
        command: format!("sublet lend {} --size {}G", quoted(&folder), surplus / GIB),
        note: match space::notes(&folder).as_slice() {
            [] => format!("{keep_free_percent} percent of the {} file system stay free", mount.kind),
            notes => notes.join("; "),
        },
    })
}

/// See [`super::suggest`].
pub(super) fn suggest(areas: &[PieceSpec], keep_free_percent: u8) -> Vec<Suggestion> {
    let mut suggestions: Vec<Suggestion> = machine::blocks().iter().filter_map(|block| suggest_block(block, areas)).collect();
    let mut seen = HashSet::new();
    let mut mounts = machine::mounts().unwrap_or_default();
    // Bind mounts repeat a file system: its shortest mount point stands for it.
    mounts.sort_by_key(|mount| mount.point.as_os_str().len());
    // Nor is borrowed space lent again, and a look at it may take for ever.
    let borrowed = machine::over_fuse();
    mounts.retain(|mount| seen.insert(mount.device) && !borrowed.contains(&mount.device));
    suggestions.extend(mounts.iter().filter_map(|mount| suggest_folder(mount, keep_free_percent)));
    suggestions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_commands_survive_a_shell() {
        for (path, shown) in
            [("/srv/a-1", "/srv/a-1"), ("/my disk", "'/my disk'"), ("/it's", r"'/it'\''s'"), ("/$(x)", "'/$(x)'")]
        {
            assert_eq!(quoted(Path::new(path)), shown);
        }
    }
}
