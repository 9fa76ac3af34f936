//! Unix sockets at paths of any length.
//!
//! `sockaddr_un` has room for 107 bytes of path (unix(7)). A longer path is reached through a short symbolic link to its
//! directory, in a private directory of this user: the socket itself lies where it belongs, and whoever follows the rule
//! finds the same one.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Bytes of a socket's path that fit into `sockaddr_un`.
const SOCKET_PATH_MAX: usize = 107;

/// 64 bits of FNV-1a: a name for a directory that is the same in every process.
fn short_name(path: &Path) -> String {
    let hash = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// The private directory for links: `$XDG_RUNTIME_DIR/sublet` or `/tmp/sublet-UID`, owned by this user alone.
fn link_dir() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let runtime =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.as_os_str().len() <= 60 && dir.is_dir());
    let dir = runtime.map_or_else(|| PathBuf::from(format!("/tmp/sublet-{uid}")), |dir| dir.join("sublet"));
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io::Error::new(e.kind(), format!("{}: {e}", dir.display())));
        }
        _ => {}
    }
    let facts = fs::symlink_metadata(&dir)?;
    if !facts.is_dir() || facts.uid() != uid || facts.mode() & 0o022 != 0 {
        let what = format!("{} is not a private directory of this user; remove it", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(dir)
}

/// A path for `bind` and `connect` that means the socket at `path`: `path` itself if it is short enough.
///
/// # Errors
/// What the operating system says when the short link cannot be made.
pub fn socket_path(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok(path);
    }
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no path for a socket", path.display()));
    let (dir, name) = path.parent().zip(path.file_name()).ok_or_else(invalid)?;
    let link = link_dir()?.join(short_name(dir));
    if fs::read_link(&link).ok().as_deref() != Some(dir) {
        // Made aside and renamed, so that a process that looks at the same moment finds the old or the new one.
        let fresh = link.with_extension(std::process::id().to_string());
        let _ = fs::remove_file(&fresh);
        std::os::unix::fs::symlink(dir, &fresh)?;
        fs::rename(&fresh, &link)?;
    }
    let short = link.join(name);
    if short.as_os_str().len() > SOCKET_PATH_MAX { Err(invalid()) } else { Ok(short) }
}

/// Removes the short link to a directory that will have no sockets any more. Without one, nothing happens.
pub fn forget_directory(dir: &Path) {
    let Ok(dir) = std::path::absolute(dir) else { return };
    let Ok(link) = link_dir().map(|links| links.join(short_name(&dir))) else { return };
    if fs::read_link(&link).is_ok_and(|target| target == dir) {
        // A link that stays leads nowhere and harms nobody.
        let _ = fs::remove_file(&link);
    }
}

/// Listens at `path` (any length), mode 0600. A dead socket of the same path is replaced; a living one is refused.
///
/// # Errors
/// `AddrInUse` if somebody listens there; else what the operating system says, with the path named.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let short = socket_path(path).map_err(named)?;
    if fs::symlink_metadata(path).is_ok() {
        if UnixStream::connect(&short).is_ok() {
            return Err(named(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")));
        }
        fs::remove_file(path).map_err(named)?;
    }
    let listener = UnixListener::bind(&short).map_err(named)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(named)?;
    Ok(listener)
}

/// Connects to the socket at `path` (any length).
///
/// # Errors
/// What the operating system says, with the path named.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    UnixStream::connect(socket_path(path).map_err(named)?).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_work_at_paths_longer_than_an_address_has_room_for() {
        let dir = tempfile::tempdir().unwrap();
        for depth in [0, 3] {
            let folder =
                (0..depth).fold(dir.path().to_path_buf(), |p, _| p.join("a-folder-with-a-rather-long-name-as-people-have-them"));
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join("control.sock");
            let listener = listen(&path).unwrap();
            assert!(fs::symlink_metadata(&path).is_ok(), "the socket lies where it belongs");
            connect(&path).unwrap();
            let short = socket_path(&path).unwrap();
            forget_directory(&folder);
            assert_eq!(short == path, fs::symlink_metadata(&short).is_ok(), "only a link goes away");
            connect(&path).unwrap();
            listener.accept().unwrap();
            assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            drop(listener);
            listen(&path).expect("a dead socket is replaced");
        }
    }
}
