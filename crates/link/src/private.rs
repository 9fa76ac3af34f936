//! Small private files: written whole or not at all, readable by their owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use sublet_api::{ErrorKind, Refusal};

/// How long a process that was killed may still hold its files: one started again at once waits for it.
const DYING_TIME_MAX: Duration = Duration::from_secs(2);
/// The pause between two looks.
const DYING_PAUSE: Duration = Duration::from_millis(10);

/// Replaces the file at `path` by `bytes`, mode 0600. After a crash at any moment the file has the old or the new content.
///
/// # Errors
/// What the operating system says, with the path named.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| named(io::ErrorKind::InvalidInput.into()))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = dir.join(temporary);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(named)
}

/// Reads a JSON record; none if there is no such file.
///
/// # Errors
/// `Io` if it cannot be read, `Internal` if it is damaged.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Refusal> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Refusal::new(ErrorKind::Internal, format!("{} is damaged: {e}", path.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Refusal::new(ErrorKind::Io, format!("{} cannot be read: {e}", path.display()))),
    }
}

/// Reads a record that carries its `version`; none if it does not exist. One of another version is refused before the rest of it is
/// looked at, and nothing is converted.
///
/// # Errors
/// `Internal` for another version or a damaged record, with what to do; `Io` if it cannot be read.
pub fn read_record<T: DeserializeOwned>(path: &Path, versions: RangeInclusive<u32>) -> Result<Option<T>, Refusal> {
    let damaged = |e: &dyn std::fmt::Display| Refusal::new(ErrorKind::Internal, format!("{} is damaged: {e}", path.display()));
    let Some(record) = read_json::<serde_json::Value>(path)? else { return Ok(None) };
    let told = record.get("version").and_then(serde_json::Value::as_u64).ok_or_else(|| damaged(&"it has no version"))?;
    if !u32::try_from(told).is_ok_and(|told| versions.contains(&told)) {
        let text = format!("{} has version {told}, this program knows {}", path.display(), versions.end());
        return Err(Refusal::new(ErrorKind::Internal, text).hint("use the program that wrote it, or a newer one"));
    }
    serde_json::from_value(record).map(Some).map_err(|e| damaged(&e))
}

/// A file with this process's id, locked while the process lives and removed when this is dropped: a second process in the
/// same directory is refused.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Writes the process id to `path`, unless a living process holds it. `what` names that process for the refusal.
    ///
    /// # Errors
    /// `Conflict` if it is held; `Io` if it cannot be written.
    pub fn take(path: &Path, what: &str) -> Result<Self, Refusal> {
        let io = |e: io::Error| Refusal::new(ErrorKind::Io, format!("{} cannot be written: {e}", path.display()));
        let begun = Instant::now();
        let mut file = loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Its former holder may have removed it between our opening and our locking it.
                Ok(()) if fs::metadata(path).is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino())) => {
                    break file;
                }
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < DYING_TIME_MAX => thread::sleep(DYING_PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let pid = fs::read_to_string(path).unwrap_or_default();
                    let text = format!("{what} already runs here as process {} ({})", pid.trim(), path.display());
                    return Err(Refusal::new(ErrorKind::Conflict, text).hint("stop it first, or use another directory"));
                }
                Err(e) => return Err(io(e.into())),
            }
        };
        file.set_len(0).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { path: path.to_path_buf(), _locked: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Nothing to do if it is gone already: the lock goes with the file.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_private_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_private(&path, b"[1]").unwrap();
        write_private(&path, b"[2,3]").unwrap();
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), Some(vec![2, 3]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read_json::<Vec<u8>>(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn a_record_of_another_version_is_told_from_a_damaged_one_whatever_else_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            read_record::<BTreeMap<String, u32>>(&path, 1..=1).map_err(|refusal| refusal.message)
        };
        assert!(read(r#"{"version": 2, "areas": "elsewhere"}"#).unwrap_err().contains("has version 2, this program knows 1"));
        assert!(read(r#"{"version": 0}"#).unwrap_err().contains("has version 0"));
        for text in [r#"{"version": 1, "areas": "elsewhere"}"#, r#"{"areas": 1}"#, r#"{"version": -1}"#, "[]", "{", ""] {
            assert!(read(text).unwrap_err().contains("is damaged"), "{text}");
        }
        assert_eq!(read(r#"{"version": 1}"#).unwrap(), Some(BTreeMap::from([("version".to_owned(), 1)])));
        assert_eq!(read_record::<u32>(&dir.path().join("none"), 1..=1).unwrap(), None);
    }

    #[test]
    fn a_second_process_in_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let first = PidFile::take(&path, "a server").unwrap();
        let refusal = PidFile::take(&path, "a server").unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::Conflict);
        assert!(refusal.message.contains(&std::process::id().to_string()), "{refusal}");
        drop(first);
        assert!(!path.exists());
        PidFile::take(&path, "a server").unwrap();
    }
}
