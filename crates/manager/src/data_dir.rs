//! The manager's data directory: made private, locked, and told to others by `pid` and `manager.json`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use sublet_api::{ErrorKind, Refusal};
use sublet_link::{private_dir, private_files, write_private};

/// How long a manager that was killed may still hold the lock: one started again at once waits for it.
const DYING_TIME_MAX: Duration = Duration::from_secs(2);
/// The pause between two tries.
const DYING_PAUSE: Duration = Duration::from_millis(10);

/// The directory, held by this process until dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// The lock goes with the open file, so a killed manager leaves none behind.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is missing (0700: the table holds lease secrets), and locks it.
    ///
    /// # Errors
    /// `bad_request` if it is not this user's alone; `conflict` if another manager holds it; `io` if it cannot be made or opened.
    pub(crate) fn open(path: &Path) -> Result<Self, Refusal> {
        private_dir(path)?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| failed("open", &lock_path, &error))?;
        let begun = Instant::now();
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            match error {
                rustix::io::Errno::WOULDBLOCK if begun.elapsed() < DYING_TIME_MAX => thread::sleep(DYING_PAUSE),
                rustix::io::Errno::WOULDBLOCK => return Err(in_use(path)),
                error => return Err(failed("lock", &lock_path, &error.into())),
            }
        }
        let this = Self { path: path.to_owned(), _lock: lock };
        // Left by a manager that was killed: nobody must take them for this one's.
        this.forget()?;
        Ok(this)
    }

    /// The table's file, made private before anything is in it.
    ///
    /// # Errors
    /// `bad_request` if others could read the one that is there; `io` if it cannot be made.
    pub(crate) fn table(&self) -> Result<PathBuf, Refusal> {
        let path = self.path.join("table.redb");
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        open.map_err(|error| failed("make", &path, &error))?;
        private_files(&[&path])?;
        Ok(path)
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// `io` if it cannot be removed.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Refusal> {
        let path = self.path.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, &error)),
            _ => Ok(()),
        }
    }

    /// Where a file of this name is.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A small private file; none if there is none.
    ///
    /// # Errors
    /// `io` if it cannot be read.
    pub(crate) fn read_secret(&self, name: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let path = self.path.join(name);
        private_files(&[&path])?;
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Writes a small private file (0600): durable, whole or not at all.
    ///
    /// # Errors
    /// `io` if it cannot be written.
    pub(crate) fn write_secret(&self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        let path = self.path.join(name);
        write_private(&path, bytes).map_err(|error| failed("write", &path, &error))
    }

    /// Writes `manager.json` and then `pid`: from now on the manager answers.
    ///
    /// # Errors
    /// `io` if they cannot be written.
    pub(crate) fn tell(&self, urls: &[String]) -> Result<(), Refusal> {
        let pid = std::process::id();
        let json = serde_json::json!({ "urls": urls, "pid": pid });
        self.write("manager.json", &format!("{json}\n"))?;
        self.write("pid", &format!("{pid}\n"))
    }

    /// Takes back what [`DataDir::tell`] wrote.
    ///
    /// # Errors
    /// `io` if it cannot be removed.
    pub(crate) fn forget(&self) -> Result<(), Refusal> {
        self.remove("pid")?;
        self.remove("manager.json")
    }

    /// Whole or not at all: readers wait for these files and must not see half of one.
    fn write(&self, name: &str, text: &str) -> Result<(), Refusal> {
        let path = self.path.join(name);
        let part = self.path.join(format!("{name}.part"));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
            file.write_all(text.as_bytes())?;
            std::fs::rename(&part, &path)
        };
        write().map_err(|error| failed("write", &path, &error))
    }
}

fn in_use(path: &Path) -> Refusal {
    let holder = std::fs::read_to_string(path.join("pid")).unwrap_or_default();
    let holder = match holder.trim().parse::<u32>() {
        Ok(pid) => format!("another manager (process {pid})"),
        Err(_) => "another manager".to_owned(),
    };
    Refusal::new(ErrorKind::Conflict, format!("{holder} is using the data directory {}", path.display()))
        .hint("stop that one, or name another directory with --data")
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Refusal {
    Refusal::new(ErrorKind::Io, format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_directory_and_the_table_are_private() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("a/b");
        let data = DataDir::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        let table = data.table().unwrap();
        assert_eq!(mode(&table), 0o600);
        std::fs::set_permissions(&table, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refusal = data.table().unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::BadRequest);
        assert!(refusal.hint.contains("chmod 600"), "{refusal}");
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_before_anything_is_in_it() {
        let outer = tempfile::tempdir().unwrap();
        std::fs::set_permissions(outer.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(DataDir::open(outer.path()).unwrap_err().kind, ErrorKind::BadRequest);
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_holder_is_refused_and_told_who_holds_it() {
        let outer = tempfile::tempdir().unwrap();
        let data = DataDir::open(outer.path()).unwrap();
        data.tell(&["http://127.0.0.1:1".to_owned()]).unwrap();
        let refusal = DataDir::open(outer.path()).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::Conflict);
        assert!(refusal.message.contains(&format!("process {}", std::process::id())), "{refusal}");
        drop(data);
        DataDir::open(outer.path()).unwrap();
    }

    #[test]
    fn what_a_killed_manager_left_is_taken_away_at_the_next_start() {
        let outer = tempfile::tempdir().unwrap();
        DataDir::open(outer.path()).unwrap().tell(&[]).unwrap();
        assert!(outer.path().join("manager.json").exists());
        let _data = DataDir::open(outer.path()).unwrap();
        assert!(!outer.path().join("manager.json").exists());
        assert!(!outer.path().join("pid").exists());
    }
}
