//! The front ends of one volume together: put up, and taken down in order.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use sublet_api::{ErrorKind, Refusal};
use sublet_coordinator::Manager;
use sublet_coordinator::limits::CLOSE_TIME_MAX;
use sublet_doors::real::{RealDoors, blocking};
use sublet_doors::{Clock, Endpoint};
use sublet_link::{MountHome, socket_path};

use super::session::RUNNING_FILES;
use super::volume_device::VolumeDevice;
use crate::clean_up::clear;
use crate::device::BlockDevice;
use crate::fuse::{BlockFrontEnd, mount};
use crate::nbd::Server;

/// How long NBD clients get to take their last answers.
const NBD_STOP_MAX: Duration = Duration::from_secs(5);
/// How long the block device may take to go; it waits for udev at times.
const TAKE_DOWN_MAX: Duration = Duration::from_secs(20);
/// How long a loop device in use is waited for when there is no time.
const FORCED_PATIENCE: Duration = Duration::from_secs(1);

/// The engine behind the front ends.
pub(super) type Device = VolumeDevice<RealDoors, Manager>;

/// The running front ends.
pub(super) struct Fronts {
    doors: RealDoors,
    device: Rc<Device>,
    nbd: Server<RealDoors, Device>,
    block: Option<BlockFrontEnd>,
    dir: PathBuf,
}

impl Fronts {
    /// Puts up the NBD server, and the block device if it is wanted.
    pub(super) async fn start(
        doors: &RealDoors,
        device: Rc<Device>,
        home: &MountHome,
        name: &str,
        fuse: bool,
    ) -> Result<Self, Refusal> {
        let failed = |e: std::io::Error| {
            Refusal::new(ErrorKind::Io, format!("the NBD socket {} cannot be made: {e}", home.nbd_socket().display()))
        };
        let at = socket_path(&home.nbd_socket()).map_err(failed)?;
        let nbd = Server::start(doors.clone(), Rc::clone(&device), name, &Endpoint::Unix(at)).await.map_err(failed)?;
        let block = if fuse {
            match BlockFrontEnd::start(doors, Rc::clone(&device), home.dir(), name).await {
                Ok(block) => Some(block),
                Err(refusal) => {
                    nbd.cut_off();
                    return Err(refusal);
                }
            }
        } else {
            None
        };
        Ok(Self { doors: doors.clone(), device, nbd, block, dir: home.dir().to_path_buf() })
    }

    /// The block device's link, if there is one.
    pub(super) fn link(&self) -> Option<&Path> {
        self.block.as_ref().map(BlockFrontEnd::link)
    }

    /// Who uses the block device.
    pub(super) async fn users(&self) -> Result<Vec<String>, Refusal> {
        match &self.block {
            Some(block) => block.users().await,
            None => Ok(Vec::new()),
        }
    }

    /// Brings everything that was written to stable storage at the lenders, or says why that does not work.
    pub(super) async fn flush(&self) -> Result<(), Refusal> {
        let flush = async {
            if let Some(block) = &self.block {
                block.flush().await?;
            }
            if self.device.read_only() {
                return Ok(());
            }
            self.device.flush().await.map_err(|e| Refusal::new(ErrorKind::Io, format!("the last flush failed: {e}")))
        };
        match self.doors.timeout(CLOSE_TIME_MAX, flush).await {
            Ok(result) => result,
            Err(_) => {
                let text = format!(
                    "what was written could not be flushed within {} s: a lender does not answer",
                    CLOSE_TIME_MAX.as_secs()
                );
                Err(Refusal::new(ErrorKind::LenderUnreachable, text).hint("see sublet status"))
            }
        }
    }

    /// Lets file systems on the block device write out what they hold.
    pub(super) async fn sync_file_systems(&self) {
        let users = self.users().await.unwrap_or_default();
        let sync = blocking(move || {
            let mounted = mount::mounted().unwrap_or_default();
            for at in users.iter().filter(|user| mounted.iter().any(|m| m.at.as_os_str() == user.as_str())) {
                let synced = std::fs::File::open(at).map(|place| rustix::fs::syncfs(place).map_err(std::io::Error::from));
                if let Err(error) = synced.and_then(|result| result) {
                    tracing::warn!(%error, at, "a file system on the volume could not be written out");
                }
            }
        });
        if self.doors.timeout(CLOSE_TIME_MAX, sync).await.is_err() {
            tracing::warn!("file systems on the volume could not be written out in time");
        }
    }

    /// Takes everything down after the last request was answered.
    pub(super) async fn stop(self) {
        self.nbd.stop(NBD_STOP_MAX).await;
        if let Some(block) = self.block
            && self.doors.timeout(TAKE_DOWN_MAX, block.stop()).await.is_err()
        {
            tracing::warn!("the block device does not go away by itself");
            tear_down(&self.doors, &self.dir).await;
        }
        self.device.shut();
    }

    /// Takes everything down at once; requests that wait fail (F4).
    pub(super) async fn cut_off(self) {
        self.device.shut();
        self.nbd.cut_off();
        if self.block.is_some() {
            tear_down(&self.doors, &self.dir).await;
        }
    }
}

/// Aborts what waits in the kernel, and removes the block device as after a crash.
async fn tear_down(doors: &RealDoors, dir: &Path) {
    let dir = dir.to_path_buf();
    let work = blocking(move || {
        if let Err(refusal) = clear(&dir, &RUNNING_FILES, FORCED_PATIENCE) {
            tracing::warn!(%refusal, "the block device was not removed whole");
        }
    });
    if doors.timeout(TAKE_DOWN_MAX, work).await.is_err() {
        tracing::warn!("removing the block device takes too long; `sublet unmount` finishes it");
    }
}
