//! Cleaning up after a client that is gone (kill -9): the block device, the file system, the sockets.

use std::io;
use std::path::Path;
use std::time::Duration;

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
    clear(dir, &["nbd.sock", "control.sock", "ready.json", "pid", "device.json"], loop_device::DETACH_TIME_MAX)
}

/// The same, with the files to be removed, and with how long a loop device that is still in use is waited for.
pub(crate) fn clear(dir: &Path, files: &[&str], patience: Duration) -> Result<(), Refusal> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Refusal::new(ErrorKind::Io, format!("{} cannot be read: {error}", dir.display()))),
    };
    let fuse = block_device::fuse_directory(&dir);
    let mut failed = Vec::new();
    let mut only_busy = true;
    let mut note = |what: String, result: io::Result<()>| {
        if let Err(error) = result {
            only_busy &= error.kind() == io::ErrorKind::ResourceBusy;
            failed.push(format!("{what}: {error}"));
        }
    };

    // A client that hangs instead of being dead would let every step below wait for it.
    mount::abort(&fuse);
    let file = fuse.join(FILE_NAME);
    let devices = loop_device::attached_to(&file).unwrap_or_default();
    for device in &devices {
        note(device.display().to_string(), loop_device::detach(device, &file, patience));
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
    if let Err(error) = std::fs::remove_dir(&fuse)
        && error.kind() != io::ErrorKind::NotFound
    {
        note(fuse.display().to_string(), Err(error));
    }
    for name in files {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => note(path.display().to_string(), Err(error)),
            _ => {}
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let what = format!("not everything of the client could be removed: {}", failed.join("; "));
    let kind = if only_busy { ErrorKind::Conflict } else { ErrorKind::Io };
    Err(Refusal::new(kind, what).hint("end the programs that use its block device, then try again"))
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
