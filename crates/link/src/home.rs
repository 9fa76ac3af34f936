//! The state directory of a server (`SUBLET_HOME`): which file lies where.

use std::path::{Path, PathBuf};

use sublet_api::control::Identity;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{AreaId, Name};

use crate::private::read_record;

/// Where the state directory is when nothing says otherwise.
pub const DEFAULT_HOME: &str = "/var/lib/sublet";

/// Paths of one state directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The state directory at `root` (made absolute, so that it means the same after a change of the working directory).
    pub fn new(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        Self { root: std::path::absolute(root).unwrap_or_else(|_| root.to_path_buf()) }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The server's identity (0600).
    pub fn identity_path(&self) -> PathBuf {
        self.root.join("identity.json")
    }

    /// By what the server is known to the manager and to other servers (0600).
    pub fn credentials_path(&self) -> PathBuf {
        self.root.join("credentials.json")
    }

    /// The areas that the server lends (0600).
    pub fn areas_path(&self) -> PathBuf {
        self.root.join("areas.json")
    }

    /// That an area has failed whose disk does not take that into its label (0600).
    pub fn failure_path(&self, area: AreaId) -> PathBuf {
        self.root.join(format!("failed-{area}"))
    }

    /// The server's control socket (0600).
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The server's process id.
    pub fn pid_path(&self) -> PathBuf {
        self.root.join("pid")
    }

    /// The directory of all mounts.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// The directory of one mount.
    pub fn mount(&self, name: &Name) -> MountHome {
        MountHome::new(self.mounts().join(name.as_str()))
    }

    /// The server's identity.
    ///
    /// # Errors
    /// `NotFound` if this machine has no server yet; `Io` or `Internal` if its record cannot be read, or is of another version.
    pub fn identity(&self) -> Result<Identity, Refusal> {
        let path = self.identity_path();
        read_record(&path, Identity::VERSION..=Identity::VERSION)?.ok_or_else(|| {
            Refusal::new(ErrorKind::NotFound, format!("no server has been started in {}", self.root.display()))
                .hint("start `sublet server`, or name its state directory with --home or SUBLET_HOME")
        })
    }
}

/// Paths of one mount: `$SUBLET_HOME/mounts/NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountHome {
    dir: PathBuf,
}

impl MountHome {
    /// The mount whose directory is `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The mounting information (0600).
    pub fn mount_json(&self) -> PathBuf {
        self.dir.join("mount.json")
    }

    /// The NBD server's socket.
    pub fn nbd_socket(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// The client's control socket (0600).
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// The client's process id.
    pub fn pid_path(&self) -> PathBuf {
        self.dir.join("pid")
    }

    /// The client's log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Where the FUSE file system with the volume's file is mounted.
    pub fn fuse(&self) -> PathBuf {
        self.dir.join("fuse")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_server_is_named_with_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = Home::new(dir.path()).identity().unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::NotFound);
        assert!(refusal.message.contains(&dir.path().display().to_string()));
    }

    #[test]
    fn a_relative_home_becomes_absolute() {
        assert!(Home::new("x").root().is_absolute());
    }
}
