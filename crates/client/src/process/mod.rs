//! The client's process: the engine and its front ends in one thread; control socket, manager and signals in threads of
//! their own, which talk to it through channels.

pub mod asker;
pub mod commands;
pub mod control;
pub mod host;
pub mod ready;
pub mod signals;
pub mod volume_device;

mod fronts;
mod seal;
mod session;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_channel::mpsc;
use sublet_api::mount::MountingInformation;
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::real;
use sublet_link::{Home, MountHome, PidFile, hide_memory, private_dir, private_files, read_record};
use sublet_volume::MOUNT_VERSIONS;

pub use ready::Ready;

/// What a client is started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientArgs {
    /// The mount's directory, with `mount.json` in it.
    pub dir: PathBuf,
    /// Serve a block device, too (root only).
    pub fuse: bool,
    /// Close the path to the lenders after so long without a request.
    pub idle_close: Option<Duration>,
    /// Fail requests when a lender without which they cannot go on has been missing for so long.
    pub fail_after: Option<Duration>,
    /// What opens the key of a sealed volume comes as a line on the standard input.
    pub key_stdin: bool,
    /// An open file descriptor on which to say that everything is up, or why not.
    pub ready_fd: Option<i32>,
}

/// Serves a mounted volume until it is told to stop, is fenced, or fails.
///
/// # Errors
/// `StaleEpoch` (exit code 7) if the volume was taken over by a newer epoch; else why it could not begin or had to end.
pub fn run(args: ClientArgs) -> Result<(), Refusal> {
    let told = Cell::new(false);
    let result = serve(&args, &told);
    if let Err(refusal) = &result {
        tracing::error!(%refusal, "the client ends");
        if !told.get() {
            ready::tell(args.ready_fd, refusal);
        }
    }
    result
}

fn serve(args: &ClientArgs, told: &Cell<bool>) -> Result<(), Refusal> {
    let dir = args.dir.canonicalize().map_err(|e| {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Io };
        Refusal::new(kind, format!("the mount's directory {} cannot be used: {e}", args.dir.display()))
    })?;
    let home = MountHome::new(&dir);
    // The lease's secret is in the file, and in this process's memory; the key of an encrypted volume is in its memory, too.
    hide_memory()?;
    private_dir(&dir)?;
    private_files(&[&home.mount_json()])?;
    let info = mounting_information(&home)?.ok_or_else(|| {
        Refusal::new(ErrorKind::NotFound, format!("there is no mounting information in {}", dir.display()))
            .hint("use sublet mount")
    })?;
    if info.secret.is_none() {
        let what = format!("the mounting information in {} is a printed copy without its secret", dir.display());
        return Err(Refusal::new(ErrorKind::BadRequest, what).hint("mount the volume again"));
    }
    let unlock = seal::unlock(args, &info)?;
    let _pid = PidFile::take(&home.pid_path(), &format!("a client of {}", info.name))?;
    // Nobody else runs here; what an earlier client left behind when it was killed goes first.
    crate::clean_up::clear(&dir, &session::RUNNING_FILES, Duration::from_secs(2))?;
    host::leave_session();
    if args.fuse {
        host::prepare_for_writeback();
    }
    let (signal, signals) = mpsc::unbounded();
    let failed = |what: &str, e: std::io::Error| Refusal::new(ErrorKind::Io, format!("{what}: {e}"));
    signals::watch(signal).map_err(|e| failed("signals cannot be waited for", e))?;
    let ended = real::run(async |doors| session::serve(doors, args, &home, info, unlock, signals, told).await);
    ended.map_err(|e| failed("the data path cannot run", e))?
}

/// The mounting information of a mount; none if there is none. What another version of this program has written is refused, and left
/// as it is.
///
/// # Errors
/// `Internal` or `Io` with what to do.
pub fn mounting_information(home: &MountHome) -> Result<Option<MountingInformation>, Refusal> {
    read_record(&home.mount_json(), MOUNT_VERSIONS)
}

/// The server's state directory: `HOME/mounts/NAME` is the mount's.
fn state_directory(dir: &Path) -> Option<PathBuf> {
    dir.parent()?.parent().map(Path::to_path_buf)
}

/// Where the manager may be: what the caller says (`SUBLET_MANAGER`), then what the local server has learned.
fn manager_urls(dir: &Path) -> Vec<String> {
    let said = std::env::var("SUBLET_MANAGER").unwrap_or_default();
    let mut urls: Vec<String> = said.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect();
    if let Some(identity) = state_directory(dir).and_then(|home| Home::new(home).identity().ok()) {
        for url in identity.managers {
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use sublet_types::{Epoch, LeaseSecret, ManagerId, PoolId, ServerId, VolumeId, Way};

    use super::*;

    #[test]
    fn mounting_information_of_another_version_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let info = MountingInformation {
            version: MOUNT_VERSIONS.end() + 1,
            pool: PoolId::from_u128(1),
            manager: ManagerId::from_u128(2),
            volume: VolumeId::from_u128(3),
            name: "vol".parse().unwrap(),
            way: Way::Single,
            size: 4096,
            sealed: false,
            seal: None,
            borrower: ServerId::from_u128(4),
            borrower_name: "borrower".parse().unwrap(),
            status: 1,
            read_only: false,
            epoch: Epoch { number: 1, random: 1 },
            secret: Some(LeaseSecret::from_u128(5)),
            segments: Vec::new(),
        };
        let path = MountHome::new(dir.path()).mount_json();
        let bytes = serde_json::to_vec(&info).unwrap();
        sublet_link::write_private(&path, &bytes).unwrap();
        let dir_path = dir.path().to_owned();
        let args =
            ClientArgs { dir: dir_path, fuse: false, idle_close: None, fail_after: None, key_stdin: false, ready_fd: None };
        let refusal = run(args).unwrap_err();
        assert!(refusal.message.contains("has version 3"), "{refusal}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was begun");
    }
}
