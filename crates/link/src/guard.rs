//! Who else may see what a process keeps: its state directory, the files in it that have secrets, and its memory.
//!
//! Server, manager and client call this before they read or write anything there. What is another user's is refused, and so is
//! whatever another user could have changed: who can write to a state directory decides what its process believes. A directory of
//! this user's own that others can only look into is closed to them. A file with a secret that others could read is refused, not
//! closed: it may have been read already.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use sublet_api::{ErrorKind, Refusal};

/// What group and others may do.
const OTHERS: u32 = 0o077;
/// Of that, what would let them change something.
const OTHERS_WRITE: u32 = 0o022;

/// Makes a state directory for this user alone, or sees that an existing one is.
///
/// # Errors
/// `BadRequest` if it is another user's, others can write to it, or it is no directory; `Io` if it cannot be made or looked at.
pub fn private_dir(path: &Path) -> Result<(), Refusal> {
    private_dir_of(path, own_user())
}

/// Sees that files with secrets are this user's, and that nobody else can read them. Those that do not exist are fine.
///
/// # Errors
/// `BadRequest` if not; `Io` if one cannot be looked at.
pub fn private_files(paths: &[&Path]) -> Result<(), Refusal> {
    paths.iter().try_for_each(|path| private_file_of(path, own_user()))
}

/// From now on this process leaves no core file, and no other process of its user can look into its memory: keys and lease secrets
/// are in there. Its children leave no core files either.
///
/// # Errors
/// `Io` if the kernel refuses.
pub fn hide_memory() -> Result<(), Refusal> {
    let failed = |e: rustix::io::Errno| Refusal::new(ErrorKind::Io, format!("core files cannot be turned off: {e}"));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(failed)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed)
}

/// Lets this process have so many files and connections, as far as the administrator's hard limit goes; the customary soft limit of
/// 1024 is for programs that use `select`. With less, what needs a descriptor waits or is refused.
pub fn raise_file_limit(wanted: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn unusable(path: &Path, error: &io::Error) -> Refusal {
    Refusal::new(ErrorKind::Io, format!("{} cannot be used: {error}", path.display()))
}

fn refuse_foreign(path: &Path, found: &Metadata, user: u32) -> Result<(), Refusal> {
    if found.uid() == user {
        return Ok(());
    }
    let text = format!("{} belongs to user {}, and this process is user {user}", path.display(), found.uid());
    Err(Refusal::new(ErrorKind::BadRequest, text)
        .hint(format!("run it as its owner, or give it to this user: chown -R {user} {}", path.display())))
}

fn private_dir_of(path: &Path, user: u32) -> Result<(), Refusal> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| unusable(path, &e).hint("name another directory"))?;
    let found = fs::metadata(path).map_err(|e| unusable(path, &e))?;
    refuse_foreign(path, &found, user)?;
    let mode = found.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        let text = format!("others than its owner can write to {} (mode {mode:03o})", path.display());
        return Err(Refusal::new(ErrorKind::BadRequest, text)
            .hint(format!("see that nothing in it is foreign, then: chmod 700 {}", path.display())));
    }
    if mode & OTHERS != 0 {
        fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS)).map_err(|e| unusable(path, &e))?;
        tracing::warn!("others could look into {} (mode {mode:03o}); it is closed to them now", path.display());
    }
    Ok(())
}

fn private_file_of(path: &Path, user: u32) -> Result<(), Refusal> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(unusable(path, &e)),
    };
    refuse_foreign(path, &found, user)?;
    let mode = found.mode() & 0o777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    let text = format!("others than its owner can read or write {} (mode {mode:03o}), and it has secrets", path.display());
    Err(Refusal::new(ErrorKind::BadRequest, text).hint(format!("if nobody has read it: chmod 600 {}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn dir_of_mode(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_state_directory_is_made_for_its_user_alone_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        private_dir(&path).unwrap();
        assert_eq!((mode(&path), mode(&dir.path().join("a"))), (0o700, 0o700));
        fs::set_permissions(&path, Permissions::from_mode(0o500)).unwrap();
        private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o500, "stricter is fine");
    }

    #[test]
    fn an_own_directory_that_others_can_look_into_is_closed_to_them() {
        for loose in [0o755, 0o750, 0o711] {
            let (_dir, path) = dir_of_mode(loose);
            private_dir(&path).unwrap();
            assert_eq!(mode(&path), 0o700);
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_and_left_as_it_is() {
        for loose in [0o770, 0o777, 0o702, 0o720] {
            let (_dir, path) = dir_of_mode(loose);
            let refusal = private_dir(&path).unwrap_err();
            assert_eq!(refusal.kind, ErrorKind::BadRequest);
            assert!(refusal.message.contains("can write to") && refusal.hint.contains("chmod 700"), "{refusal}");
            assert_eq!(mode(&path), loose);
        }
    }

    #[test]
    fn what_belongs_to_another_user_is_refused_and_left_as_it_is() {
        let (_dir, path) = dir_of_mode(0o755);
        let file = path.join("secret");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let other = own_user() + 1;
        for refusal in [private_dir_of(&path, other).unwrap_err(), private_file_of(&file, other).unwrap_err()] {
            assert_eq!(refusal.kind, ErrorKind::BadRequest);
            assert!(refusal.message.contains(&format!("belongs to user {}", own_user())), "{refusal}");
            assert!(refusal.hint.contains("chown"), "{refusal}");
        }
        assert_eq!((mode(&path), mode(&file)), (0o755, 0o600));
    }

    #[test]
    fn a_file_with_secrets_that_others_could_read_is_refused_and_left_as_it_is() {
        let (_dir, path) = dir_of_mode(0o700);
        let file = path.join("secret");
        private_files(&[&file]).unwrap();
        fs::write(&file, "x").unwrap();
        for (bits, is_private) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false), (0o644, false)] {
            fs::set_permissions(&file, Permissions::from_mode(bits)).unwrap();
            let result = private_files(&[&path.join("none"), &file]);
            assert_eq!(result.is_ok(), is_private, "{bits:o}: {result:?}");
            assert_eq!(mode(&file), bits);
        }
        assert!(private_files(&[&file]).unwrap_err().hint.contains("chmod 600"));
    }

    #[test]
    fn a_path_that_is_no_directory_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(private_dir(file.path()).unwrap_err().kind, ErrorKind::Io);
    }
}
