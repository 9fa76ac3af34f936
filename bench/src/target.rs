//! Targets: what loads are run on.

mod nbdkit;
mod plain;
mod qemu;
mod sublet;

use std::any::Any;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, Failure};
use crate::fio;
use crate::matrix::Plan;
use crate::process::Server;

/// Where files are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Medium {
    /// tmpfs: only software costs.
    Memory,
    /// A file system on a disk, past the page cache.
    Disk,
}

impl Medium {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Memory => "in memory (tmpfs)",
            Self::Disk => "on the disk",
        }
    }
}

/// A folder for the files of one run.
pub struct Place {
    /// On what it is.
    pub medium: Medium,
    folder: tempfile::TempDir,
}

impl Place {
    /// A new folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(medium: Medium, disk: &Path) -> Result<Self, Failure> {
        let parent = match medium {
            Medium::Memory => Path::new("/dev/shm"),
            Medium::Disk => disk,
        };
        let made = tempfile::Builder::new().prefix("sublet-bench-").tempdir_in(parent);
        Ok(Self { medium, folder: made.doing(format!("making a folder in {}", parent.display()))? })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of so many bytes, all of them written: nothing of it is a hole.
    ///
    /// # Errors
    /// No room, for example.
    pub fn file(&self, name: &str, bytes: u64) -> Result<PathBuf, Failure> {
        let path = self.path(name);
        let file = File::create(&path).doing(path.display())?;
        let part = noise(1 << 20);
        for at in (0..bytes).step_by(part.len()) {
            file.write_all_at(&part, at).doing(path.display())?;
        }
        file.sync_all().doing(path.display())?;
        Ok(path)
    }
}

/// Bytes that nothing compresses or takes for zeroes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length / 8).flat_map(|_| next()).collect()
}

/// What a target is compared with in the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The file itself.
    Raw,
    /// Another server.
    Peer,
    /// What is measured.
    Own,
}

/// One target, ready to be used.
pub struct Target {
    /// Its name in tables and for `--only`.
    pub name: &'static str,
    /// What it is compared with.
    pub kind: Kind,
    /// How fio gets at it.
    pub io: Vec<String>,
    /// The processes that serve it.
    pub pids: Vec<u32>,
    /// What serves it until this is dropped.
    pub served: Vec<Box<dyn Any>>,
}

impl Target {
    /// Something on a Unix socket or a port, served by these processes.
    fn nbd(name: &'static str, kind: Kind, uri: &str, servers: Vec<Server>) -> Self {
        let pids = servers.iter().map(Server::pid).collect();
        let served = servers.into_iter().map(|server| Box::new(server) as Box<dyn Any>).collect();
        Self { name, kind, io: vec!["--ioengine=nbd".to_owned(), format!("--uri={uri}")], pids, served }
    }
}

/// fio's name of a Unix socket.
fn unix(path: &Path) -> String {
    format!("nbd+unix:///?socket={}", path.display())
}

/// Makes those that are wanted.
///
/// # Errors
/// One of them cannot be started.
pub fn all(place: &Place, plan: &Plan, program: &Path) -> Result<Vec<Target>, Failure> {
    let mut targets = Vec::new();
    let wants = |name: &str| plan.wants_target(name);
    targets.extend(plain::targets(place, plan.bytes, &wants)?);
    targets.extend(nbdkit::targets(place, plan.bytes, &wants)?);
    targets.extend(qemu::targets(place, plan.bytes, &wants)?);
    targets.extend(sublet::targets(place, plan.bytes, program, &wants)?);
    for target in targets.iter().filter(|target| target.kind == Kind::Own) {
        fio::fill(&target.io, plan.bytes)?;
    }
    Ok(targets)
}
