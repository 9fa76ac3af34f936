//! One life of a mounted volume, in the engine's thread: up, events, down.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::mpsc::{self, UnboundedReceiver};
use futures_util::future::{self, Either};
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, select, stream};
use sublet_api::control::{ClientAnswerLine, ClientRequest};
use sublet_api::mount::MountingInformation;
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_coordinator::limits::{LEAVE_TIME_MAX, PROBE_TIME_MAX, PROGRESS_PAUSE};
use sublet_coordinator::{Heard, Manager, Reports as _, close, obey};
use sublet_doors::real::{RealDoors, boot_id};
use sublet_doors::{Clock, Doors};
use sublet_link::MountHome;
use sublet_seal::Unlock;
use sublet_volume::{Volume, VolumeErrorKind, VolumeOptions};

use super::commands::Stopping;
use super::control::{self, Asked};
use super::fronts::{Device, Fronts};
use super::ready::{self, Ready};
use super::seal::Seal;
use super::{ClientArgs, commands, manager_urls, state_directory};
use crate::device::BlockDevice;
use crate::fuse::block_device::remove_file;

/// Files that only a running client has, besides its pid.
pub(super) const RUNNING_FILES: [&str; 4] = ["nbd.sock", "control.sock", "ready.json", "device.json"];
/// How long the last answer on the control socket may take to leave.
const ANSWER_MAX: Duration = Duration::from_secs(1);

type Engine = Rc<Volume<RealDoors, Manager>>;

/// What happens to a running client.
enum Event {
    Signal,
    Asked(Asked),
    Heard(Heard),
    Fenced,
}

/// What the events of a running client have to do with.
struct Life<'a> {
    doors: &'a RealDoors,
    fronts: &'a Fronts,
    volume: &'a Engine,
    device: &'a Rc<Device>,
    manager: &'a Manager,
    stopping: Rc<Stopping>,
    /// Of an encrypted volume.
    seal: Option<Seal>,
}

/// How it ends.
enum End {
    /// In order, everything flushed.
    Stopped(Option<Asked>),
    /// Without waiting for lenders.
    Forced(Option<Asked>),
    /// A newer epoch rules (F4).
    Fenced,
}

/// Opens the volume, serves it, and closes it.
pub(super) async fn serve(
    doors: RealDoors,
    args: &ClientArgs,
    home: &MountHome,
    info: MountingInformation,
    unlock: Option<Unlock>,
    mut signals: UnboundedReceiver<()>,
    told: &Cell<bool>,
) -> Result<(), Refusal> {
    let name = info.name.to_string();
    let manager = Manager::new(manager_urls(home.dir()), state_directory(home.dir()), info.volume, info.epoch);
    let boot = boot_id().map_err(|e| Refusal::new(ErrorKind::Io, e.to_string()))?;
    let options = VolumeOptions { idle_close: args.idle_close, fail_after: args.fail_after, boot };
    let open = Volume::open(doors.clone(), manager.clone(), info.clone(), options);
    let volume = match future::select(pin!(open), signals.next()).await {
        Either::Left((result, _)) => result.map_err(|e| e.refusal())?,
        Either::Right(_) => {
            return Err(Refusal::new(ErrorKind::Conflict, "the client was stopped while it was opening the volume"));
        }
    };
    let seal = match unlock {
        None => None,
        Some(unlock) => {
            let open = Seal::open(&doors, &volume, &info, manager.link(), &unlock);
            let result = match future::select(pin!(open), signals.next()).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => Err(Refusal::new(ErrorKind::Conflict, "the client was stopped while it was opening the key")),
            };
            match result {
                Ok(seal) => Some(seal),
                Err(refusal) => {
                    close(&doors, &volume, true).await;
                    return Err(refusal);
                }
            }
        }
    };
    let device = Rc::new(Device::new(Rc::clone(&volume)));
    let up = async {
        let fronts = Fronts::start(&doors, Rc::clone(&device), home, &name, args.fuse).await?;
        match announce(&doors, args, home, &fronts, &manager, &volume, &device) {
            Ok(channels) => Ok((fronts, channels)),
            Err(refusal) => {
                fronts.cut_off().await;
                Err(refusal)
            }
        }
    };
    let (fronts, (asked, heard)) = match up.await {
        Ok(up) => up,
        Err(refusal) => {
            close(&doors, &volume, true).await;
            remove_running_files(home);
            return Err(refusal);
        }
    };
    told.set(true);
    tracing::info!(volume = %name, "the volume can be used");

    let fenced = Rc::clone(&device);
    let fenced = stream::once(async move {
        fenced.until_fenced().await;
        Event::Fenced
    });
    let outside = stream::select(signals.map(|()| Event::Signal), heard.map(Event::Heard));
    let inside = stream::select(asked.map(Event::Asked), fenced);
    let mut events = pin!(stream::select(outside, inside));
    let life = Life {
        doors: &doors,
        fronts: &fronts,
        volume: &volume,
        device: &device,
        manager: &manager,
        stopping: Rc::default(),
        seal,
    };
    let end = {
        // Side by side: an end that waits for a lender keeps nobody from asking for the status, or for an end by force.
        let mut handling = FuturesUnordered::new();
        loop {
            select! {
                event = events.next() => match event {
                    Some(event) => handling.push(life.handle(event)),
                    None => break End::Forced(None),
                },
                end = handling.select_next_some() => if let Some(end) = end {
                    break end;
                },
            }
        }
    };
    finish(&doors, end, fronts, &volume, &manager, home).await
}

type Channels = (UnboundedReceiver<Asked>, UnboundedReceiver<Heard>);

/// Opens the control socket, begins to report, and tells the starter that everything is up.
fn announce(
    doors: &RealDoors,
    args: &ClientArgs,
    home: &MountHome,
    fronts: &Fronts,
    manager: &Manager,
    volume: &Engine,
    device: &Rc<Device>,
) -> Result<Channels, Refusal> {
    let failed = |what: &str, e: std::io::Error| Refusal::new(ErrorKind::Io, format!("{what}: {e}"));
    let (ask, asked) = mpsc::unbounded();
    control::start(&home.control_socket(), ask).map_err(|e| failed("the control socket cannot be made", e))?;
    manager.update(&volume.status());
    let (hear, heard) = mpsc::unbounded();
    manager.start(&hear).map_err(|e| failed("reports to the manager cannot begin", e))?;
    doors.spawn(watch(doors.clone(), Rc::clone(volume), Rc::clone(device), manager.clone()));
    let ready = Ready {
        socket: home.nbd_socket().display().to_string(),
        device: fronts.link().map(|link| link.display().to_string()),
        pid: std::process::id(),
    };
    ready.write(home.dir())?;
    ready::tell(args.ready_fd, &ready);
    Ok((asked, heard))
}

/// Reports every change of the path, and notices a fence also while nobody uses the volume.
async fn watch(doors: RealDoors, volume: Engine, device: Rc<Device>, manager: Manager) {
    loop {
        let seen = volume.status_changed().version();
        let status = volume.status();
        manager.update(&status);
        if matches!(status.path, PathState::Lost | PathState::None) {
            // A fenced engine refuses even to read nothing, which the device remembers; one that waits for a lender does not.
            let _ = doors.timeout(PROBE_TIME_MAX, device.read(0, 0)).await;
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

impl Life<'_> {
    /// Handles one event; how the client ends, if it does.
    async fn handle(&self, event: Event) -> Option<End> {
        match event {
            Event::Fenced => return Some(End::Fenced),
            Event::Heard(Heard::Answer(answer)) => {
                if let Some(revision) = obey(self.volume, *answer) {
                    self.manager.took_segments(revision);
                }
            }
            Event::Heard(Heard::StaleEpoch(text)) => {
                // F4: the engine, too. Taking down what the kernel has takes a while, and it must propose nothing meanwhile.
                self.volume.fence(&text);
                self.device.fence();
            }
            Event::Signal => {
                // Nobody is there to be refused: what can be saved is saved.
                self.stopping.stop();
                self.fronts.sync_file_systems().await;
                return Some(match flush(self.fronts, self.device).await {
                    Ok(()) => End::Stopped(None),
                    Err(refusal) => {
                        tracing::error!(%refusal, "the client was told to end by a signal");
                        End::Forced(None)
                    }
                });
            }
            Event::Asked(asked) => return self.answer(asked).await,
        }
        None
    }

    async fn answer(&self, asked: Asked) -> Option<End> {
        let refuse = |asked: &Asked, refusal| {
            // An asker that went away needs no answer.
            let _ = asked.answer.send(ClientAnswerLine::Refused { refusal });
        };
        let volume = self.volume;
        match &asked.request {
            ClientRequest::Status => {
                let link = self.fronts.link().map(|link| link.display().to_string());
                let _ = asked.answer.send(commands::status(volume, link));
            }
            ClientRequest::Search(search) => {
                let search = search.clone();
                self.doors.spawn(commands::search(Rc::clone(volume), search, asked.into(), Rc::clone(&self.stopping)));
            }
            ClientRequest::Init if volume.read_only() => {
                refuse(&asked, Refusal::new(ErrorKind::Conflict, "the volume is mounted read-only"));
            }
            ClientRequest::Init => match unused(self.fronts).await {
                Ok(()) => {
                    self.doors.spawn(commands::initialise(Rc::clone(volume), asked.into(), Rc::clone(&self.stopping)));
                }
                Err(refusal) => refuse(&asked, refusal),
            },
            ClientRequest::Rekey { old, new } => {
                let result = match &self.seal {
                    None => Err(Refusal::new(ErrorKind::Conflict, "the volume is not encrypted")),
                    Some(seal) => seal.rekey(volume, &old.0, &new.0).await,
                };
                let _ = asked.answer.send(last_line(&result));
            }
            ClientRequest::Stop { force: true } => return Some(End::Forced(Some(asked))),
            ClientRequest::Stop { force: false } => {
                let mut ready = unused(self.fronts).await;
                if ready.is_ok() {
                    self.stopping.stop();
                    ready = flush(self.fronts, self.device).await;
                }
                match ready {
                    Ok(()) => return Some(End::Stopped(Some(asked))),
                    Err(refusal) => refuse(&asked, refusal),
                }
            }
        }
        None
    }
}

/// Refuses while somebody uses the block device.
async fn unused(fronts: &Fronts) -> Result<(), Refusal> {
    let users = fronts.users().await?;
    if users.is_empty() {
        return Ok(());
    }
    let what = format!("the block device is in use: {}", users.join(", "));
    Err(Refusal::new(ErrorKind::Conflict, what).hint("unmount what lies on it, and end the programs that have it open"))
}

async fn flush(fronts: &Fronts, device: &Device) -> Result<(), Refusal> {
    match future::select(pin!(fronts.flush()), pin!(device.until_fenced())).await {
        Either::Left((result, _)) => result,
        Either::Right(((), _)) => Err(Refusal::new(ErrorKind::StaleEpoch, "the volume was taken over by a newer epoch")),
    }
}

async fn finish(
    doors: &RealDoors,
    end: End,
    fronts: Fronts,
    volume: &Engine,
    manager: &Manager,
    home: &MountHome,
) -> Result<(), Refusal> {
    manager.close();
    let mut is_clean = false;
    let (asked, result) = match end {
        End::Stopped(asked) => {
            fronts.stop().await;
            is_clean = close(doors, volume, false).await;
            let mut result = Ok(());
            if !is_clean {
                result = Err(not_flushed(is_fenced(doors, volume).await));
                close(doors, volume, true).await;
            }
            (asked, result)
        }
        End::Forced(asked) => {
            fronts.cut_off().await;
            close(doors, volume, true).await;
            (asked, Ok(()))
        }
        End::Fenced => {
            fronts.cut_off().await;
            close(doors, volume, true).await;
            let refusal =
                Refusal::new(ErrorKind::StaleEpoch, "the volume was taken over by a newer epoch; this client has stopped");
            (None, Err(refusal.hint("mount the volume again if it is still yours")))
        }
    };
    if doors.timeout(LEAVE_TIME_MAX, manager.leave(is_clean)).await.is_err() {
        tracing::info!("the manager does not answer at the end");
    }
    remove_running_files(home);
    if let Some(asked) = asked {
        let _ = asked.answer.send(last_line(&result));
        drop(asked.answer);
        let mut sent = asked.sent;
        let _ = doors.timeout(ANSWER_MAX, async { while sent.next().await.is_some() {} }).await;
    }
    tracing::info!("the client has ended");
    result
}

/// W1: "done" says that everything is flushed.
fn last_line(result: &Result<(), Refusal>) -> ClientAnswerLine {
    match result {
        Ok(()) => ClientAnswerLine::Done,
        Err(refusal) => ClientAnswerLine::Refused { refusal: refusal.clone() },
    }
}

/// Why an end that was meant to be in order was not.
fn not_flushed(is_fenced: bool) -> Refusal {
    if is_fenced {
        return Refusal::new(ErrorKind::StaleEpoch, "the volume was taken over by a newer epoch while it was being closed");
    }
    let what = "the client has ended, but what was written last could not be flushed: a lender did not confirm it";
    Refusal::new(ErrorKind::LenderUnreachable, what)
        .hint("mount it again to see what is there; sublet unmount --force gives up what was not flushed")
}

/// A fenced engine refuses even to read nothing.
async fn is_fenced(doors: &RealDoors, volume: &Engine) -> bool {
    let probe = doors.timeout(PROBE_TIME_MAX, volume.read(0, 0)).await;
    matches!(probe, Ok(Err(error)) if error.kind == VolumeErrorKind::Fenced)
}

fn remove_running_files(home: &MountHome) {
    // The record of the block device stays if the device is still there: a later clean-up needs it.
    for name in RUNNING_FILES.iter().filter(|name| **name != "device.json") {
        remove_file(&home.dir().join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w1_a_client_that_could_not_flush_at_its_end_refuses_instead_of_saying_that_it_is_done() {
        assert_eq!(last_line(&Ok(())), ClientAnswerLine::Done);
        let ClientAnswerLine::Refused { refusal } = last_line(&Err(not_flushed(false))) else { panic!("not done") };
        assert_eq!(refusal.kind, ErrorKind::LenderUnreachable);
        assert!(refusal.hint.contains("--force"), "{refusal}");
        let ClientAnswerLine::Refused { refusal } = last_line(&Err(not_flushed(true))) else { panic!("not done") };
        assert_eq!(refusal.kind, ErrorKind::StaleEpoch, "then it is another's, and nothing is left to be flushed");
    }
}
