//! Cleaning up after a client that is gone (kill -9): the block device, the file system, the sockets.

use std::io;
use std::path::Path;

use sublet_api::{ErrorKind, Refusal};

use crate::fuse::block_device::{self, DeviceRecord};
use crate::fuse::{FILE_NAME, link, loop_device, mount};

/// Removes what a dead client left behind in its mount's directory: detaches its loop device, removes the link to it,
/// unmounts `DIR/fuse` lazily, and removes sockets and records of the running process. The mounting information stays; no
/// process is ended. What is not there is no error, so it may be called at any time after the client's end.
///
/// # Errors
/// `Io` with everything that could not be removed; `Conflict` if the client's loop device is still in use.
pub fn clean_up(dir: &Path) -> Result<(), Refusal> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Refusal::new(ErrorKind::Io, format!("{} cannot be read: {error}", dir.display()))),
    };
    let fuse = block_device::fuse_directory(&dir);
    let mut failed = Vec::new();
    let mut note = |what: String, result: io::Result<()>| {
        if let Err(error) = result {
            failed.push(format!("{what}: {error}"));
        }
    };

    // A client that hangs instead of being dead would let every step below wait for it.
    abort_connection(&fuse);
    let file = fuse.join(FILE_NAME);
    let devices = loop_device::attached_to(&file).unwrap_or_default();
    for device in &devices {
        note(device.display().to_string(), loop_device::detach(device, &file));
    }
    let record_path = block_device::record_path(&dir);
    match sublet_link::read_json::<DeviceRecord>(&record_path) {
        Ok(Some(record)) => note(record.link.display().to_string(), link::remove(&record.link, &record.device)),
        Ok(None) => {}
        Err(refusal) => note(refusal.message, Err(io::ErrorKind::InvalidData.into())),
    }
    let unmounted = mount::mounted().and_then(|all| {
        // Several, if one was mounted over a dead one.
        all.iter().filter(|m| m.at == fuse).try_for_each(|m| mount::unmount_lazily(&m.at))
    });
    note(fuse.display().to_string(), unmounted);
    if let Err(error) = std::fs::remove_dir(&fuse) {
        if error.kind() != io::ErrorKind::NotFound {
            note(fuse.display().to_string(), Err(error));
        }
    }
    for name in ["nbd.sock", "control.sock", "ready.json", "pid", "device.json"] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => note(path.display().to_string(), Err(error)),
            _ => {}
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let refusal = Refusal::new(ErrorKind::Io, format!("not everything of the dead client could be removed: {}", failed.join("; ")));
    Err(refusal.hint("unmount what lies on its block device, then try again"))
}

/// Lets every request that waits for the dead or hanging client fail (`/sys/fs/fuse/connections/N/abort`, where fusectl is
/// mounted; without it the end of the process does the same).
fn abort_connection(fuse: &Path) {
    let Ok(all) = mount::mounted() else { return };
    for found in all.iter().filter(|m| m.at == fuse && m.kind.starts_with("fuse")) {
        let (major, minor) = found.device;
        // The connection's number is the file system's device number as the kernel keeps it.
        let number = (major << 20) | minor;
        let path = format!("/sys/fs/fuse/connections/{number}/abort");
        if let Err(error) = std::fs::write(&path, "1") {
            tracing::debug!(%error, path, "the FUSE connection was not aborted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_left_behind_is_no_error_and_the_mounting_information_stays() {
        let dir = tempfile::tempdir().unwrap();
        clean_up(&dir.path().join("never")).unwrap();
        for name in ["mount.json", "nbd.sock", "pid", "ready.json"] {
            std::fs::write(dir.path().join(name), "{}").unwrap();
        }
        clean_up(dir.path()).unwrap();
        clean_up(dir.path()).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["mount.json"]);
    }
}
