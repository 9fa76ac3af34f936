//! A real tree of files, and its hashes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where every Linux system has files of all sizes.
const SOURCES: [&str; 3] = ["/usr/share", "/usr/lib", "/usr/bin"];

fn walk(dir: &Path, limit: u64, found: &mut Vec<PathBuf>, bytes: &mut u64) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if *bytes >= limit {
            return;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            walk(&entry.path(), limit, found, bytes);
        } else if kind.is_file() {
            *bytes += entry.metadata().map_or(0, |m| m.len());
            found.push(entry.path());
        }
    }
}

/// Copies files of this machine, some `bytes` in all, to `to`, with rsync; returns how many.
///
/// # Panics
/// The copy fails.
pub fn copy(to: &Path, bytes: u64) -> usize {
    let (mut found, mut sum) = (Vec::new(), 0);
    for source in SOURCES {
        walk(Path::new(source), bytes, &mut found, &mut sum);
    }
    let list = tempfile::NamedTempFile::new().unwrap();
    let text: String = found.iter().map(|path| format!("{}\n", path.display())).collect();
    std::fs::write(list.path(), text).unwrap();
    let from = format!("--files-from={}", list.path().display());
    crate::run::sh("rsync", &["-a", "--no-owner", "--no-group", &from, "/", &format!("{}/", to.display())]);
    found.len()
}

/// The hashes of all files below `dir`, by their path within it.
///
/// # Panics
/// A file cannot be read.
pub fn hashes(dir: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    walk(dir, u64::MAX, &mut found, &mut bytes);
    found
        .into_iter()
        .map(|path| {
            let hash = hash(&path);
            (path.strip_prefix(dir).unwrap().to_owned(), hash)
        })
        .collect()
}

/// The SHA-256 of a file.
///
/// # Panics
/// It cannot be read.
pub fn hash(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
