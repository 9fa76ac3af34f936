//! A volume without a front end: opened, worked on, reported, and closed in good order or left when it is fenced.

use std::pin::pin;
use std::rc::Rc;

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::future::{Either, select};
use futures_util::{FutureExt as _, StreamExt as _};
use sublet_api::mount::MountingInformation;
use sublet_api::view::PathState;
use sublet_doors::Doors;
use sublet_volume::{ManagerDoor, PathStatus, Volume, VolumeErrorKind, VolumeOptions};

use crate::limits::{CLOSE_TIME_MAX, FORCED_CLOSE_TIME_MAX, LEAVE_TIME_MAX, OPEN_RETRY_PAUSE, PROBE_TIME_MAX, PROGRESS_PAUSE};
use crate::{Flag, Heard, obey};

/// The manager, as one who reports to it sees it.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait Reports: ManagerDoor {
    /// The path, or the work on it, has changed.
    fn update(&self, status: &PathStatus);

    /// The segments of this revision were taken over.
    fn took_segments(&self, revision: u64);

    /// The path is being closed: no more changes are told.
    fn close(&self);

    /// Tells that the coordinator ends by itself, and whether every in-sync leg was flushed and closed cleanly.
    async fn leave(&self, clean: bool);
}

/// Keeps a volume's path open until `stop` is set, or until a newer epoch rules (F4). While it is open the engine does what is
/// to be done: stale legs are brought up to date, legs that may differ are made equal, and the work of the manager's answers
/// is done. `heard` brings those answers. True if everything was flushed and closed in good order.
pub async fn coordinate<D: Doors, M: Reports>(
    doors: D,
    manager: M,
    info: MountingInformation,
    boot: u128,
    mut heard: UnboundedReceiver<Heard>,
    stop: &Flag,
) -> bool {
    let (name, epoch) = (info.name.clone(), info.epoch.number);
    tracing::info!(volume = %name, epoch, "coordinating a volume that is not mounted");
    let opened = {
        let opening = pin!(open(&doors, &manager, info, boot));
        let ended = pin!(ended_early(&mut heard, stop));
        match select(opening, ended).await {
            Either::Left((volume, _)) => volume,
            Either::Right(((), _)) => None,
        }
    };
    let mut is_clean = false;
    if let Some(volume) = opened {
        let is_fenced = work(&doors, &manager, &volume, &mut heard, stop).await;
        manager.close();
        is_clean = !is_fenced && close(&doors, &volume, false).await;
        if !is_clean {
            close(&doors, &volume, true).await;
        }
    }
    if doors.timeout(LEAVE_TIME_MAX, manager.leave(is_clean)).await.is_err() {
        tracing::info!(volume = %name, "the manager does not answer at the end");
    }
    tracing::info!(volume = %name, epoch, clean = is_clean, "coordinating has ended");
    is_clean
}

/// Opens the path, again and again while lenders are missing; none if a newer epoch rules.
async fn open<D: Doors, M: Reports>(doors: &D, manager: &M, info: MountingInformation, boot: u128) -> Option<Rc<Volume<D, M>>> {
    let options = VolumeOptions { boot, ..VolumeOptions::default() };
    loop {
        match Volume::open(doors.clone(), manager.clone(), info.clone(), options).await {
            Ok(volume) => return Some(volume),
            Err(error) if error.kind == VolumeErrorKind::Fenced => {
                tracing::info!(volume = %info.name, %error, "a newer epoch rules");
                return None;
            }
            Err(error) => {
                tracing::warn!(volume = %info.name, %error, "the path could not be opened; it is tried again");
                manager.update(&PathStatus { path: PathState::Lost, reason: error.to_string(), ..PathStatus::default() });
                doors.sleep(OPEN_RETRY_PAUSE).await;
            }
        }
    }
}

/// Waits for an end while there is no path yet.
async fn ended_early(heard: &mut UnboundedReceiver<Heard>, stop: &Flag) {
    loop {
        match select(pin!(stop.wait()), heard.next()).await {
            Either::Right((Some(Heard::Answer(_)), _)) => {}
            Either::Right((Some(Heard::StaleEpoch(_)) | None, _)) | Either::Left(_) => return,
        }
    }
}

/// Until the end; true if a newer epoch rules.
async fn work<D: Doors, M: Reports>(
    doors: &D,
    manager: &M,
    volume: &Volume<D, M>,
    heard: &mut UnboundedReceiver<Heard>,
    stop: &Flag,
) -> bool {
    let mut fenced = pin!(watch(doors, manager, volume).fuse());
    let mut stopped = pin!(stop.wait().fuse());
    loop {
        futures_util::select_biased! {
            () = fenced => return true,
            () = stopped => return false,
            heard = heard.next() => match heard {
                Some(Heard::Answer(answer)) => {
                    if let Some(revision) = obey(volume, *answer) {
                        manager.took_segments(revision);
                    }
                }
                Some(Heard::StaleEpoch(text)) => {
                    tracing::info!(text, "the manager knows a newer epoch");
                    // F4: nothing more is sent to any leg, no flush either.
                    volume.fence(&text);
                    return true;
                }
                // Nobody reports any more: the process ends.
                None => return false,
            },
        }
    }
}

/// Reports every change of the path and of the work on it; returns when a newer epoch rules.
async fn watch<D: Doors, M: Reports>(doors: &D, manager: &M, volume: &Volume<D, M>) {
    loop {
        let seen = volume.status_changed().version();
        let status = volume.status();
        manager.update(&status);
        if matches!(status.path, PathState::Lost | PathState::None) {
            // A fenced engine refuses even to read nothing; one that waits for a lender does not.
            let probe = doors.timeout(PROBE_TIME_MAX, volume.read(0, 0)).await;
            if let Ok(Err(error)) = probe
                && error.kind == VolumeErrorKind::Fenced
            {
                tracing::info!(%error, "a lender knows a newer epoch");
                return;
            }
        }
        let change = volume.status_changed().changed(seen);
        if status.work.is_empty() {
            change.await;
        } else {
            // How far a copy is does not count as a change of the path, but people want to see it.
            let _ = doors.timeout(PROGRESS_PAUSE, change).await;
        }
    }
}

/// Closes an engine; false if that failed or took too long, or if an in-sync leg has not taken it as a clean close (F5). With
/// `force`, nobody is waited for.
pub async fn close<D: Doors, M: ManagerDoor>(doors: &D, volume: &Volume<D, M>, force: bool) -> bool {
    let limit = if force { FORCED_CLOSE_TIME_MAX } else { CLOSE_TIME_MAX };
    match doors.timeout(limit, volume.close(force)).await {
        Ok(Ok(clean)) => clean,
        Ok(Err(error)) => {
            tracing::warn!(%error, force, "the path was not closed cleanly");
            false
        }
        Err(_) => {
            tracing::warn!(force, "closing the path took too long");
            false
        }
    }
}
