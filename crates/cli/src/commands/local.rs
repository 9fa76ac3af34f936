//! The mounts of this server, as their folders in `$SUBLET_HOME/mounts` tell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;
use serde::Deserialize;
use sublet_api::control::{ClientAnswerLine, ClientRequest};
use sublet_api::mount::MountingInformation;
use sublet_api::{ErrorKind, Refusal};
use sublet_client::fuse::mount::mounted;
use sublet_client::process::mounting_information;
use sublet_link::{LineConn, MountHome, read_json, socket_path};
use sublet_types::{Name, VolumeId};

use crate::context::Context;
use crate::playground::processes::pid_of;

/// What a client says once everything is up (`ready.json`).
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Ready {
    /// The block device, if there is one.
    #[serde(default)]
    pub device: Option<String>,
    /// The client's process.
    #[serde(default)]
    pub pid: u32,
}

/// How long a client may take to tell its status: it has nothing to wait for.
const STATUS_LIMIT: Duration = Duration::from_secs(3);

/// How the client of a mount is.
pub(super) enum Client {
    /// It answers, with its status.
    Answers(ClientAnswerLine),
    /// Its process is there and does not answer.
    Silent,
    /// There is no such process.
    Gone,
}

/// One mount of this server.
pub(super) struct LocalMount {
    /// Its folder.
    pub home: MountHome,
    /// The stored mounting information.
    pub info: MountingInformation,
}

impl LocalMount {
    /// What the client said when it was up; none if it never was.
    pub fn ready(&self) -> Option<Ready> {
        read_json(&self.home.dir().join("ready.json")).ok().flatten()
    }

    /// How the client is.
    pub fn client(&self) -> Client {
        let answer = || -> std::io::Result<Option<ClientAnswerLine>> {
            let mut conn = LineConn::new(sublet_link::connect(&self.home.control_socket())?);
            conn.stream().set_read_timeout(Some(STATUS_LIMIT))?;
            conn.send(&ClientRequest::Status)?;
            conn.receive()
        };
        match answer() {
            Ok(Some(line)) => Client::Answers(line),
            _ if self.client_pid().is_some() => Client::Silent,
            _ => Client::Gone,
        }
    }

    /// The client's process, if it runs: its command line names the mount's folder.
    pub fn client_pid(&self) -> Option<Pid> {
        pid_of(self.home.dir())
    }

    /// Where NBD clients find it.
    pub fn socket(&self) -> String {
        socket_of(&self.home)
    }

    /// Where `mount` mounted the file system, if it did.
    pub fn mountpoint(&self) -> Option<PathBuf> {
        let text = std::fs::read_to_string(mountpoint_file(&self.home)).ok()?;
        Some(PathBuf::from(text.trim_end_matches('\n')))
    }
}

/// The NBD socket of a mount as NBD clients can use it: a path that is too long for them by its short link.
pub(super) fn socket_of(home: &MountHome) -> String {
    let socket = home.nbd_socket();
    socket_path(&socket).unwrap_or(socket).to_string_lossy().into_owned()
}

/// The file that remembers the mount point.
pub(super) fn mountpoint_file(home: &MountHome) -> PathBuf {
    home.dir().join("mountpoint")
}

/// All mounts of this server. A folder without readable mounting information is named on standard error and left alone.
pub(super) fn all(c: &Context) -> Vec<LocalMount> {
    let mut mounts = Vec::new();
    for entry in std::fs::read_dir(c.home.mounts()).into_iter().flatten().flatten() {
        let home = MountHome::new(entry.path());
        match mounting_information(&home) {
            Ok(Some(info)) => mounts.push(LocalMount { home, info }),
            Ok(None) => {}
            Err(refusal) => eprintln!("sublet: {refusal}"),
        }
    }
    mounts.sort_by(|a, b| a.info.name.cmp(&b.info.name));
    mounts
}

/// The mount of a volume.
pub(super) fn of_volume(c: &Context, volume: VolumeId) -> Option<LocalMount> {
    all(c).into_iter().find(|m| m.info.volume == volume)
}

/// The mount of the volume that is called so now; where nobody knows that, of the one that was called so when it was mounted.
pub(super) fn find(c: &Context, volume: &str) -> Option<LocalMount> {
    match c.manager().volume(volume) {
        // Another volume may have had this name when it was mounted here.
        Ok(view) => of_volume(c, view.id),
        Err(_) => all(c).into_iter().find(|m| m.info.name.as_str() == volume || m.info.volume.to_string() == volume),
    }
}

/// The folder for a new mount. That of another volume, which had this name when it was mounted, is left alone.
pub(super) fn folder(c: &Context, name: &Name, volume: VolumeId) -> Result<MountHome, Refusal> {
    use std::os::unix::fs::DirBuilderExt;
    let home = c.home.mount(name);
    // What another version of this program has written is not written over.
    let stored = mounting_information(&home)?;
    if let Some(other) = stored.filter(|info| info.volume != volume) {
        return Err(Refusal::new(
            ErrorKind::Conflict,
            format!("another volume was called {name} when it was mounted here, and still uses {}", home.dir().display()),
        )
        .hint(format!("unmount that one first: sublet unmount {}", other.volume)));
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(home.dir())
        .map_err(|e| Refusal::new(ErrorKind::Io, format!("cannot make {}: {e}", home.dir().display())))?;
    Ok(home)
}

/// Where a device is mounted.
pub(super) fn mounts_of(device: &Path) -> Vec<PathBuf> {
    let real = device.canonicalize().unwrap_or_else(|_| device.to_owned());
    let same = |source: &Path| source == device || source.canonicalize().is_ok_and(|s| s == real);
    mounted().unwrap_or_default().into_iter().filter(|m| same(&m.source)).map(|m| m.at).collect()
}

/// True if something is mounted exactly there.
pub(super) fn is_mount_point(dir: &Path) -> bool {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    mounted().unwrap_or_default().iter().any(|m| m.at == real)
}
