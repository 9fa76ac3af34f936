//! The block device front end as a whole: FUSE, loop device and link, put up and taken down in order.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::Doors;
use sublet_doors::real::{Device, RealDoors, blocking};

use super::{FILE_NAME, link, loop_device, mount, session};
use crate::device::BlockDevice;

/// What was put up, kept beside the mount so that a later process can take it down (`device.json`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// The loop device.
    pub device: PathBuf,
    /// The link to it.
    pub link: PathBuf,
}

/// A running block device front end.
pub struct BlockFrontEnd {
    directory: PathBuf,
    record: DeviceRecord,
}

fn refusal(what: &str, error: &io::Error) -> Refusal {
    let refused = Refusal::new(ErrorKind::Io, format!("the block device could not be made: {what}: {error}"));
    match error.kind() {
        io::ErrorKind::PermissionDenied => refused.hint("run as root, or use the NBD socket (--as socket)"),
        io::ErrorKind::NotFound => refused.hint("load the kernel modules fuse and loop, or use the NBD socket (--as socket)"),
        _ => refused.hint("use the NBD socket (--as socket)"),
    }
}

/// The record's place in the mount's directory.
pub fn record_path(dir: &Path) -> PathBuf {
    dir.join("device.json")
}

/// Where the file system is mounted.
pub fn fuse_directory(dir: &Path) -> PathBuf {
    dir.join("fuse")
}

impl BlockFrontEnd {
    /// Puts up the block device of `volume` in the mount's directory `dir`.
    ///
    /// # Errors
    /// `Io` with the step that failed; everything put up before is taken down again.
    pub async fn start<B: BlockDevice>(doors: &RealDoors, volume: Rc<B>, dir: &Path, name: &str) -> Result<Self, Refusal> {
        // The kernel names the backing file by its path without symbolic links; ours must be the same text.
        let dir = dir.canonicalize().map_err(|e| refusal(&dir.display().to_string(), &e))?;
        let directory = fuse_directory(&dir);
        std::fs::create_dir_all(&directory).map_err(|e| refusal(&directory.display().to_string(), &e))?;
        let kernel = session::open_kernel().map_err(|e| refusal("/dev/fuse", &e))?;
        mount::mount(kernel.as_fd(), &directory).map_err(|e| refusal("mounting FUSE", &e))?;
        let (size, read_only) = (volume.size(), volume.read_only());
        let served = Device::new(kernel).map_err(|e| refusal("/dev/fuse", &e));
        match served {
            Ok(kernel) => doors.spawn(session::serve(doors.clone(), kernel, volume)),
            Err(error) => {
                take_down(&directory, None);
                return Err(error);
            }
        }
        let name = name.to_owned();
        blocking(move || {
            put_up(&dir, &directory, size, read_only, &name)
                .inspect_err(|_| take_down(&directory, None))
                .map(|record| Self { directory: directory.clone(), record })
        })
        .await
    }

    /// The link under which people find the block device.
    pub fn link(&self) -> &Path {
        &self.record.link
    }

    /// Who uses the device: mount points, swap, devices on top of it, processes that have it open.
    ///
    /// # Errors
    /// `Io` if that cannot be found out.
    pub async fn users(&self) -> Result<Vec<String>, Refusal> {
        let device = self.record.device.clone();
        let users = blocking(move || loop_device::users(&device)).await;
        users.map_err(|e| {
            Refusal::new(ErrorKind::Io, format!("who uses {} cannot be found out: {e}", self.record.device.display()))
        })
    }

    /// Writes out what the kernel caches of the device; engine and session must still run.
    ///
    /// # Errors
    /// `Io` if writing failed.
    pub async fn flush(&self) -> Result<(), Refusal> {
        let device = self.record.device.clone();
        let result = blocking(move || loop_device::flush(&device)).await;
        result.map_err(|e| Refusal::new(ErrorKind::Io, format!("{} could not be written out: {e}", self.record.device.display())))
    }

    /// Takes everything down: the loop device, the link, the file system. The session ends by itself then.
    pub async fn stop(self) {
        blocking(move || {
            take_down(&self.directory, Some(&self.record));
            if let Some(dir) = self.directory.parent() {
                remove_file(&record_path(dir));
            }
        })
        .await;
    }
}

fn put_up(dir: &Path, directory: &Path, size: u64, read_only: bool, name: &str) -> Result<DeviceRecord, Refusal> {
    let file = directory.join(FILE_NAME);
    let device = loop_device::attach(&file, size, read_only).map_err(|e| refusal("attaching a loop device", &e))?;
    let undo = |error| {
        take_down(directory, Some(&DeviceRecord { device: device.clone(), link: PathBuf::new() }));
        error
    };
    let link = link::make(Path::new(link::LINKS), name, &device).map_err(|e| undo(refusal(link::LINKS, &e)))?;
    let record = DeviceRecord { device: device.clone(), link };
    let json = serde_json::to_vec(&record).map_err(|e| undo(Refusal::new(ErrorKind::Internal, e.to_string())))?;
    sublet_link::write_private(&record_path(dir), &json).map_err(|error| {
        take_down(directory, Some(&record));
        refusal("its record", &error)
    })?;
    Ok(record)
}

/// Loop device first, then the link, then the file system; what fails is logged and left to the kernel's last close.
pub(crate) fn take_down(directory: &Path, record: Option<&DeviceRecord>) {
    let file = directory.join(FILE_NAME);
    let devices = loop_device::attached_to(&file).unwrap_or_else(|error| {
        tracing::warn!(%error, "loop devices cannot be listed");
        Vec::new()
    });
    for device in &devices {
        if let Err(error) = loop_device::detach(device, &file, loop_device::DETACH_TIME_MAX) {
            tracing::warn!(%error, device = %device.display(), "the loop device could not be detached");
        }
    }
    if let Some(record) = record
        && let Err(error) = link::remove(&record.link, &record.device)
    {
        tracing::warn!(%error, link = %record.link.display(), "the link could not be removed");
    }
    if let Err(error) = mount::unmount(directory) {
        tracing::warn!(%error, at = %directory.display(), "FUSE could not be unmounted");
    }
    if let Err(error) = std::fs::remove_dir(directory) {
        tracing::debug!(%error, at = %directory.display(), "the mount point stays");
    }
}

/// Removes a file that may be gone already.
pub(crate) fn remove_file(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a file could not be removed");
        }
        _ => {}
    }
}
