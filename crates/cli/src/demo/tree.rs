//! A real tree of files, taken from this machine: what the demo fills the doubled volume with.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};

use crate::nbd::NbdClient;

/// Where files are taken from.
const SOURCES: &[&str] = &["/usr/lib", "/usr/share", "/usr/bin"];
/// Larger files are passed over, so that there are many.
const FILE_SIZE_MAX: u64 = 16 << 20;
/// What is copied at a time.
const COPY_SIZE: usize = 1 << 20;

/// The hash of a file's bytes.
pub type Hash = [u8; 32];

/// A file of the tree.
pub struct Entry {
    /// Where it lies on this machine.
    pub source: PathBuf,
    /// The hash of what was copied.
    pub hash: Hash,
    /// How many bytes were copied.
    pub length: u64,
    /// Where its bytes lie, if they were written without a file system.
    pub offset: u64,
}

/// Regular files below the sources, until they have `bytes_max` bytes together. Files that cannot be read are passed over.
pub fn collect(bytes_max: u64) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut total = 0;
    let mut folders: Vec<PathBuf> = SOURCES.iter().rev().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && let Ok(facts) = entry.metadata()
                && facts.len() <= FILE_SIZE_MAX
                && total + facts.len() <= bytes_max
                && File::open(entry.path()).is_ok()
            {
                total += facts.len();
                found.push((entry.path(), facts.len()));
            }
        }
        if total + FILE_SIZE_MAX / 16 > bytes_max {
            break;
        }
    }
    found
}

/// Where a source file's copy lies below `root`.
fn place(root: &Path, source: &Path) -> PathBuf {
    root.join(source.strip_prefix("/").unwrap_or(source))
}

/// Copies one file into the tree below `root`.
///
/// # Errors
/// What the operating system says.
pub fn copy(source: &Path, root: &Path) -> io::Result<Entry> {
    let target = place(root, source);
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut to = File::create(&target)?;
    let (hash, length) = pump(&mut File::open(source)?, |bytes| to.write_all(bytes))?;
    Ok(Entry { source: source.to_owned(), hash, length, offset: 0 })
}

/// Writes one file's bytes to a volume at `offset`.
///
/// # Errors
/// What the operating system or the NBD server says.
pub fn write(source: &Path, volume: &mut NbdClient, offset: u64) -> io::Result<Entry> {
    let mut at = offset;
    let (hash, length) = pump(&mut File::open(source)?, |bytes| {
        volume.write(at, bytes)?;
        at += bytes.len() as u64;
        Ok(())
    })?;
    Ok(Entry { source: source.to_owned(), hash, length, offset })
}

fn pump(from: &mut impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(Hash, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; COPY_SIZE];
    let mut length = 0;
    loop {
        let n = from.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
            return Ok((hasher.finalize().into(), length));
        };
        hasher.update(bytes);
        each(bytes)?;
        length += n as u64;
    }
}

/// The entries whose copy below `root` is not what was written. The page cache is told to forget each file first, so that
/// the bytes come from the lenders.
///
/// # Errors
/// What the operating system says.
pub fn differing_files(entries: &[Entry], root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut bad = Vec::new();
    for entry in entries {
        let mut file = File::open(place(root, &entry.source))?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        let (hash, length) = pump(&mut file, |_| Ok(()))?;
        if (hash, length) != (entry.hash, entry.length) {
            bad.push(entry.source.clone());
        }
    }
    Ok(bad)
}

/// As [`differing_files`], for bytes written without a file system.
///
/// # Errors
/// What the NBD server says.
pub fn differing_ranges(entries: &[Entry], volume: &mut NbdClient) -> io::Result<Vec<PathBuf>> {
    let mut bad = Vec::new();
    for entry in entries {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; COPY_SIZE];
        let mut at = 0;
        while at < entry.length {
            let n = usize::try_from(entry.length - at).unwrap_or(COPY_SIZE).min(COPY_SIZE);
            let part = buffer.get_mut(..n).unwrap_or_default();
            volume.read(entry.offset + at, part)?;
            hasher.update(&*part);
            at += n as u64;
        }
        if <Hash>::from(hasher.finalize()) != entry.hash {
            bad.push(entry.source.clone());
        }
    }
    Ok(bad)
}

/// True if the pattern occurs in the file; reads all of it.
///
/// # Errors
/// What the operating system says.
pub fn contains(path: &Path, pattern: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut buffer = Vec::new();
    let mut part = vec![0; COPY_SIZE];
    loop {
        let n = file.read(&mut part)?;
        buffer.extend_from_slice(part.get(..n).unwrap_or_default());
        if memchr::memmem::find(&buffer, pattern).is_some() {
            return Ok(true);
        }
        if n == 0 {
            return Ok(false);
        }
        // What could be the beginning of a match stays.
        buffer.drain(..buffer.len().saturating_sub(pattern.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_across_parts_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut bytes = vec![b'.'; COPY_SIZE + 100];
        bytes[COPY_SIZE - 3..COPY_SIZE + 3].copy_from_slice(b"needle");
        fs::write(&path, &bytes).unwrap();
        assert!(contains(&path, b"needle").unwrap());
        assert!(!contains(&path, b"needles").unwrap());
    }

    #[test]
    fn a_changed_copy_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::write(&source, b"bytes").unwrap();
        let root = dir.path().join("root");
        let entry = copy(&source, &root).unwrap();
        assert!(differing_files(std::slice::from_ref(&entry), &root).unwrap().is_empty());
        fs::write(place(&root, &source), b"Bytes").unwrap();
        assert_eq!(differing_files(&[entry], &root).unwrap(), [source]);
    }
}
