//! `sublet unmount` (seed: S31, S32, S33): the path is closed, the status is 0, the mounting information is gone, and
//! nothing is left behind, also after `kill -9` of the client.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use sublet_api::control::{ClientAnswerLine, ClientRequest};
use sublet_api::mount::{MountingInformation, UnmountingInformation};
use sublet_api::request::{TaskOutcome, Unmount};
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_client::process::mounting_information;
use sublet_link::{ask, forget_directory};
use sublet_types::Name;

use super::local::{self, Client, LocalMount};
use super::mount::tool;
use crate::context::{Context, new_task, with_progress};
use crate::output::{print, print_json};

/// Writing out a file system may take so long ...
const UMOUNT_MAX: Duration = Duration::from_secs(60);
/// ... and by force, before it is given up.
const FORCED_UMOUNT_MAX: Duration = Duration::from_secs(5);

pub(super) fn run(c: &Context, volume: &str, force: bool) -> Result<(), Refusal> {
    let found = local::find(c, volume);
    let unmounting = match found {
        Some(mount) => {
            // A manager that does not answer is asked again once the client has flushed.
            check_pool(c, &mount.info).or_else(|refusal| match refusal.kind {
                ErrorKind::Conflict => Err(refusal),
                _ => Ok(()),
            })?;
            take_down_kernel(&mount, force)?;
            close_path(c, &mount.info, force)?
        }
        None if force => Some(release(c, volume, None, true)?),
        None => return Err(not_here(c, volume)?),
    };
    match unmounting {
        Some(unmounting) if c.json => print_json(&unmounting),
        Some(unmounting) => {
            let names = |list: &[Name]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let mut text = format!("unmounted {}; released: {}\n", unmounting.name, names(&unmounting.released));
            if !unmounting.unreachable.is_empty() {
                text += &format!("not reached, fenced when they return: {}\n", names(&unmounting.unreachable));
            }
            print(&text);
        }
        None if c.json => print_json(&serde_json::json!({ "name": volume, "status": 0, "fenced": true })),
        None => print(&format!("{volume} had been taken from this server already; what was left of it here is removed\n")),
    }
    Ok(())
}

/// Another pool's manager knows nothing of this mount, and its "no such volume" means nothing.
fn check_pool(c: &Context, info: &MountingInformation) -> Result<(), Refusal> {
    if c.manager().pool()?.pool == info.pool {
        return Ok(());
    }
    let urls = c.manager_urls().join(", ");
    Err(Refusal::new(
        ErrorKind::Conflict,
        format!("{} was mounted in another pool than that of the manager at {urls}", info.name),
    )
    .hint("name the right manager with --manager or SUBLET_MANAGER"))
}

/// Why there is nothing to unmount here.
fn not_here(c: &Context, volume: &str) -> Result<Refusal, Refusal> {
    let view = c.manager().volume(volume)?;
    let holder = view.borrower.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
    let own = c.identity().ok().is_some_and(|identity| Some(identity.server) == view.borrower_id);
    if view.status == 0 {
        return Ok(Refusal::new(ErrorKind::Conflict, format!("{} is not mounted (borrowed by {holder})", view.name)));
    }
    let name = &view.name;
    let hint = if own {
        format!("its records here are gone; to clear it: sublet unmount {name} --force")
    } else {
        format!("unmount it there, or fence that server: sublet unmount {name} --force")
    };
    Ok(Refusal::new(ErrorKind::Conflict, format!("{} is not mounted here but on {holder}", view.name)).hint(hint))
}

/// Ends the local side and the path of a mount that may be half made; for undoing a mount.
pub(super) fn take_down(c: &Context, info: &MountingInformation, force: bool) -> Result<Option<UnmountingInformation>, Refusal> {
    if let Some(mount) = local::of_volume(c, info.volume) {
        take_down_kernel(&mount, force)?;
    }
    close_path(c, info, force)
}

/// Unmounts file systems, lets the client flush and end, and clears what is left. Refuses before anything is begun where it
/// would have to wait for a client or a lender that does not answer.
fn take_down_kernel(mount: &LocalMount, force: bool) -> Result<(), Refusal> {
    let name = &mount.info.name;
    match mount.client() {
        Client::Gone => {}
        // What it has in the kernel could never be written out.
        Client::Silent if force => kill(mount),
        Client::Silent => {
            return Err(Refusal::new(ErrorKind::TimedOut, format!("the client of {name} does not answer"))
                .hint("sublet unmount --force kills it; what was not flushed is given up"));
        }
        Client::Answers(status) => {
            unmount_file_systems(mount, &status, force)?;
            let stopped = ask(&mount.home.control_socket(), &ClientRequest::Stop { force }, &mut |_: ClientAnswerLine| {});
            if !force {
                flushed(name, stopped)?;
            }
        }
    }
    wait_for_end(mount, force)?;
    clear_remains(mount, force)
}

/// W1: only a client that says so has flushed everything, not one that ended while it was asked.
fn flushed(name: &Name, stopped: Result<ClientAnswerLine, Refusal>) -> Result<(), Refusal> {
    let refusal = match stopped {
        Ok(ClientAnswerLine::Done) => return Ok(()),
        // Nothing of it is ours any more; the manager says so, too.
        Err(refusal) if refusal.kind == ErrorKind::StaleEpoch => return Ok(()),
        Ok(other) => Refusal::new(ErrorKind::Internal, format!("the client of {name} ended with a strange answer: {other:?}")),
        Err(refusal) if refusal.kind == ErrorKind::Unreachable => {
            let text = format!("the client of {name} ended before it had flushed everything: {}", refusal.message);
            Refusal::new(refusal.kind, text)
        }
        Err(refusal) => refusal,
    };
    if refusal.hint.contains("--force") {
        return Err(refusal);
    }
    let own = if refusal.hint.is_empty() { String::new() } else { format!("{}; ", refusal.hint) };
    Err(refusal.hint(format!("{own}sublet unmount --force gives up what was not flushed")))
}

/// Unmounts the file systems on the device of a client that answers.
fn unmount_file_systems(mount: &LocalMount, status: &ClientAnswerLine, force: bool) -> Result<(), Refusal> {
    let device = mount.ready().and_then(|ready| ready.device);
    let points = device.map(|device| local::mounts_of(Path::new(&device))).unwrap_or_default();
    // umount cannot be called off: it would end the file system whenever the lender returns.
    if let ClientAnswerLine::Status { path: PathState::Lost, reason, .. } = status
        && !(force || mount.info.read_only || points.is_empty())
    {
        let text = format!("the file system on {} cannot be written out: {reason}", mount.info.name);
        return Err(Refusal::new(ErrorKind::LenderUnreachable, text)
            .hint("try again when the lender is back; sublet unmount --force gives up what was not flushed"));
    }
    for point in points {
        let limit = if force { FORCED_UMOUNT_MAX } else { UMOUNT_MAX };
        unmount_file_system(&point, false, limit)
            .or_else(|refusal| if force { unmount_file_system(&point, true, limit) } else { Err(refusal) })?;
    }
    Ok(())
}

fn kill(mount: &LocalMount) {
    if let Some(pid) = mount.client_pid() {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Waits until the client's process is gone; with `force` it is killed.
fn wait_for_end(mount: &LocalMount, force: bool) -> Result<(), Refusal> {
    let limit = if force { Duration::from_secs(3) } else { Duration::from_secs(30) };
    for killed in [false, true] {
        if killed && mount.client_pid().is_some() {
            if !force {
                return Err(Refusal::new(ErrorKind::TimedOut, format!("the client of {} does not end", mount.info.name))
                    .hint("sublet unmount --force kills it"));
            }
            kill(mount);
        }
        let begun = Instant::now();
        while mount.client_pid().is_some() && begun.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    if mount.client_pid().is_some() {
        return Err(Refusal::new(ErrorKind::TimedOut, format!("the client of {} cannot be killed", mount.info.name)));
    }
    Ok(())
}

/// Clears what a client that is gone has left: file systems on its device, the loop device, FUSE, links, sockets.
pub(super) fn clear_remains(mount: &LocalMount, force: bool) -> Result<(), Refusal> {
    if let Some(device) = mount.ready().and_then(|ready| ready.device) {
        for point in local::mounts_of(Path::new(&device)) {
            unmount_file_system(&point, force, UMOUNT_MAX)?;
        }
    }
    if let Some(point) = mount.mountpoint()
        && local::is_mount_point(&point)
        && mount.ready().is_none()
    {
        unmount_file_system(&point, force, UMOUNT_MAX)?;
    }
    match sublet_client::clean_up(mount.home.dir()) {
        // Its file is cut off from the lenders: the kernel removes the device when those who have it open close it.
        Err(refusal) if force && refusal.kind == ErrorKind::Conflict => {
            eprintln!("sublet: {}", refusal.message);
            Ok(())
        }
        result => result,
    }
}

fn unmount_file_system(point: &Path, lazily: bool, limit: Duration) -> Result<(), Refusal> {
    let failed = |e: std::io::Error| Refusal::new(ErrorKind::Io, format!("cannot run umount: {e}"));
    let mut command: Command = tool("umount");
    if lazily {
        command.arg("-l");
    }
    let mut child = command.arg(point).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if begun.elapsed() > limit {
            let text = format!("{} could not be written out within {} s", point.display(), limit.as_secs());
            return Err(Refusal::new(ErrorKind::TimedOut, text)
                .hint("see sublet status; it goes on in the background. sublet unmount --force gives up what was not flushed"));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if status.success() || !local::is_mount_point(point) {
        return Ok(());
    }
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What cannot be read is not shown.
        let _ = stderr.read_to_string(&mut text);
    }
    Err(Refusal::new(ErrorKind::Conflict, text.trim().trim_end_matches('.'))
        .hint("end the programs that use it (see fuser -vm DIR), or use --force"))
}

/// Tells the manager, and forgets the mounting information (S33). None if the volume had been fenced from here before.
fn close_path(c: &Context, info: &MountingInformation, force: bool) -> Result<Option<UnmountingInformation>, Refusal> {
    let volume = info.volume.to_string();
    let answer = match release(c, &volume, Some(info), false) {
        Ok(unmounting) => Some(unmounting),
        // Fenced, transferred or dissolved elsewhere meanwhile: nothing of it is ours any more.
        Err(refusal) if matches!(refusal.kind, ErrorKind::StaleEpoch | ErrorKind::NotFound) => {
            check_pool(c, info)?;
            None
        }
        Err(refusal) if matches!(refusal.kind, ErrorKind::Unreachable | ErrorKind::TimedOut) => {
            let text = format!("{} is not in use here any more, but the table still says so: {}", info.name, refusal.message);
            return Err(Refusal::new(refusal.kind, text)
                .hint(format!("repeat it when the manager answers: sublet unmount {}", info.name)));
        }
        Err(refusal) if force => Some(release(c, &volume, None, true).map_err(|_| refusal)?),
        Err(refusal) => return Err(refusal),
    };
    let dir = c.home.mount(&info.name);
    match mounting_information(&dir) {
        // A mount that was refused because of another one in its folder.
        Ok(Some(other)) if other.volume != info.volume => return Ok(answer),
        // Whose it is cannot be told: it stays.
        Err(refusal) => {
            eprintln!("sublet: {} is left alone: {refusal}", dir.dir().display());
            return Ok(answer);
        }
        Ok(_) => {}
    }
    let real = dir.dir().canonicalize();
    for path in [Some(dir.dir()), real.as_deref().ok()].into_iter().flatten() {
        forget_directory(path);
    }
    match std::fs::remove_dir_all(dir.dir()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Refusal::new(ErrorKind::Io, format!("cannot remove {}: {e}", dir.dir().display())))
        }
        _ => Ok(answer),
    }
}

/// The manager's part.
fn release(c: &Context, volume: &str, info: Option<&MountingInformation>, force: bool) -> Result<UnmountingInformation, Refusal> {
    let unmount = Unmount { task: new_task()?, server: info.map(|i| i.borrower), epoch: info.map(|i| i.epoch), force };
    let answer = with_progress(|p| c.manager().with_patience(Duration::from_secs(5)).unmount(volume, unmount, p))?;
    match answer.outcome {
        TaskOutcome::Unmounted { unmounting } => Ok(unmounting),
        other => {
            Err(Refusal::new(ErrorKind::Internal, format!("the manager unmounted {volume} with a strange answer: {other:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use sublet_link::{LineConn, MountHome, listen};
    use sublet_types::{Epoch, ManagerId, PoolId, ServerId, VolumeId, Way};

    use super::*;

    fn mount(dir: &Path) -> LocalMount {
        let info = MountingInformation {
            version: 1,
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
            secret: None,
            segments: Vec::new(),
        };
        LocalMount { home: MountHome::new(dir), info }
    }

    /// A client that tells its status, and at its end says this, or nothing: it dies in its last flush.
    fn client(mount: &LocalMount, last: Option<ClientAnswerLine>) -> thread::JoinHandle<()> {
        let listener = listen(&mount.home.control_socket()).unwrap();
        thread::spawn(move || {
            for _ in 0..2 {
                let mut conn = LineConn::new(listener.accept().unwrap().0);
                let status = ClientAnswerLine::Status {
                    path: PathState::Open,
                    reason: String::new(),
                    missing: Vec::new(),
                    device: None,
                    resync: None,
                    io: String::new(),
                };
                match conn.receive::<ClientRequest>().unwrap() {
                    Some(ClientRequest::Stop { .. }) => {
                        if let Some(last) = &last {
                            conn.send(last).unwrap();
                        }
                    }
                    _ => conn.send(&status).unwrap(),
                }
            }
        })
    }

    #[test]
    fn w1_an_unmount_succeeds_only_if_the_client_says_that_everything_is_flushed() {
        let refused = |kind| Some(ClientAnswerLine::Refused { refusal: Refusal::new(kind, "a lender did not confirm it") });
        let cases = [
            (Some(ClientAnswerLine::Done), None),
            (None, Some(ErrorKind::Unreachable)),
            (refused(ErrorKind::Conflict), Some(ErrorKind::Conflict)),
            (refused(ErrorKind::LenderUnreachable), Some(ErrorKind::LenderUnreachable)),
            // Taken over meanwhile: the manager says the rest.
            (refused(ErrorKind::StaleEpoch), None),
        ];
        for (last, expected) in cases {
            for force in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let mount = mount(dir.path());
                let client = client(&mount, last.clone());
                let down = take_down_kernel(&mount, force);
                client.join().unwrap();
                let kind = down.as_ref().err().map(|refusal| refusal.kind);
                assert_eq!(kind, expected.filter(|_| !force), "{last:?}, by force: {force}");
                if let Err(refusal) = down {
                    assert!(refusal.hint.contains("--force"), "{refusal}");
                }
            }
        }
    }
}
