//! A borrower's process: the engine over a mounted volume, and what it tells the manager.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use sublet_api::mount::MountingInformation;
use sublet_api::request::{ChangeLeg, ClientAnswer, ClientReport, LegAnswer, LenderAddresses, Request, Response};
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::{Clock, Doors};
use sublet_types::limits::POLL_INTERVAL;
use sublet_types::{Epoch, VolumeId};
use sublet_volume::{ManagerDoor, PathStatus, Volume, VolumeError, VolumeErrorKind, VolumeOptions};

use crate::doors::{Machine, SimDoors};
use crate::exec::Sim;
use crate::manager::Manager;
use crate::net::Net;

/// As the real client: the pause after a report that did not arrive.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// As the real client: how often the progress of background work is told.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);
/// As the real client: how long a clean close may take.
const CLOSE_MAX: Duration = Duration::from_secs(30);
/// As the real client: how long a close may take that waits for nobody.
const FORCED_CLOSE_MAX: Duration = Duration::from_secs(5);
/// As the real client: how long the manager is waited for at the end.
const LEAVE_MAX: Duration = Duration::from_secs(3);

/// The engine's way to the manager.
#[derive(Clone)]
pub struct Door {
    doors: SimDoors,
    manager: Rc<Manager>,
    volume: VolumeId,
    epoch: Epoch,
    status: Rc<RefCell<PathStatus>>,
    leaving: Rc<Cell<bool>>,
}

impl Door {
    fn report(&self, hold: bool) -> ClientReport {
        let status = self.status.borrow();
        ClientReport {
            epoch: self.epoch,
            path: status.path,
            reason: status.reason.clone(),
            work: status.work.clone(),
            findings: Vec::new(),
            hold,
            leaving: false,
            clean: false,
            segments_revision: 0,
        }
    }

    async fn send(&self, report: ClientReport) -> Result<ClientAnswer, Refusal> {
        let hold = if report.hold { POLL_INTERVAL } else { Duration::ZERO };
        let request = Request::ClientReport { volume: self.volume, report };
        match self.manager.call(&self.doors, request, hold).await? {
            Response::Client(answer) => Ok(answer),
            _ => Err(Refusal::new(ErrorKind::Internal, "the manager answered something else")),
        }
    }
}

impl ManagerDoor for Door {
    async fn change_leg(&self, volume: VolumeId, change: ChangeLeg) -> Result<LegAnswer, Refusal> {
        match self.manager.call(&self.doors, Request::ChangeLeg { volume, change }, POLL_INTERVAL).await? {
            Response::Leg(answer) => Ok(answer),
            _ => Err(Refusal::new(ErrorKind::Internal, "the manager answered something else")),
        }
    }

    async fn lenders(&self, _volume: VolumeId) -> Result<Vec<LenderAddresses>, Refusal> {
        self.send(self.report(false)).await.map(|answer| answer.lenders)
    }
}

/// A running client.
pub struct Client {
    /// Its doors.
    pub doors: SimDoors,
    /// The engine.
    pub volume: Rc<Volume<SimDoors, Door>>,
    /// What the mount gave it.
    pub info: MountingInformation,
    door: Door,
    /// The manager told that a newer epoch rules.
    pub told_stale: Cell<bool>,
}

/// Runs work as a task of a process; nothing if the process is killed meanwhile.
pub async fn in_process<T: 'static>(doors: &SimDoors, work: impl Future<Output = T> + 'static) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    doors.spawn(async move {
        // Whoever asked may not wait any more.
        let _ = sender.send(work.await);
    });
    receiver.await.ok()
}

impl Client {
    /// Starts the process and opens the volume. Nothing if the process was killed while it did so.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn start(
        sim: &Sim,
        net: &Net,
        machine: &Rc<Machine>,
        manager: &Rc<Manager>,
        info: MountingInformation,
        options: VolumeOptions,
    ) -> Option<Result<Rc<Self>, VolumeError>> {
        if !net.is_up(machine.id) {
            return None;
        }
        let doors = SimDoors::start(sim, net, machine, format!("client-{}-{}", info.name, info.epoch.number));
        let door = Door {
            doors: doors.clone(),
            manager: Rc::clone(manager),
            volume: info.volume,
            epoch: info.epoch,
            status: Rc::default(),
            leaving: Rc::default(),
        };
        let (own, known) = (door.clone(), info.clone());
        let opened = in_process(&doors, async move { Volume::open(own.doors.clone(), own, known, options).await }).await?;
        let volume = match opened {
            Ok(volume) => volume,
            Err(error) => {
                machine.kill(sim, doors.process());
                return Some(Err(error));
            }
        };
        let client = Rc::new(Self { doors, volume, info, door, told_stale: Cell::new(false) });
        client.doors.spawn(Rc::clone(&client).watch());
        client.doors.spawn(Rc::clone(&client).hold());
        client.doors.spawn(Rc::clone(&client).tell());
        Some(Ok(client))
    }

    /// True until it was killed or has ended.
    pub fn is_alive(&self) -> bool {
        self.doors.is_alive()
    }

    /// Kills the process.
    pub fn kill(&self) {
        self.doors.machine().kill(self.doors.sim(), self.doors.process());
    }

    async fn watch(self: Rc<Self>) {
        loop {
            let seen = self.volume.status_changed().version();
            let status = self.volume.status();
            let busy = !status.work.is_empty();
            self.door.status.replace(status);
            let changed = self.volume.status_changed().changed(seen);
            if busy {
                let _ = self.doors.timeout(PROGRESS_PAUSE, changed).await;
            } else {
                changed.await;
            }
        }
    }

    fn take(&self, answer: Result<ClientAnswer, Refusal>) -> bool {
        match answer {
            Ok(answer) => {
                self.volume.update_lenders(answer.lenders);
                true
            }
            Err(refusal) => {
                if refusal.kind == ErrorKind::StaleEpoch {
                    self.told_stale.set(true);
                }
                false
            }
        }
    }

    /// The held report, whose end is how the manager sees that this process died.
    async fn hold(self: Rc<Self>) {
        while !self.door.leaving.get() {
            let answer = self.door.send(self.door.report(true)).await;
            if !self.take(answer) {
                self.doors.sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Tells every change at once.
    async fn tell(self: Rc<Self>) {
        let mut told = None;
        while !self.door.leaving.get() {
            let status = self.door.status.borrow().clone();
            if told.as_ref() == Some(&status) {
                let seen = self.volume.status_changed().version();
                let _ = self.doors.timeout(PROGRESS_PAUSE, self.volume.status_changed().changed(seen)).await;
                continue;
            }
            let answer = self.door.send(self.door.report(false)).await;
            if self.take(answer) {
                told = Some(status);
            } else {
                self.doors.sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Ends in order: flushes and closes, as the real client does. True if everything is durable.
    pub async fn stop(self: &Rc<Self>) -> Option<bool> {
        let own = Rc::clone(self);
        let clean = in_process(&self.doors, async move {
            let flushed = matches!(own.doors.timeout(CLOSE_MAX, own.volume.flush()).await, Ok(Ok(())));
            let clean = flushed && matches!(own.doors.timeout(CLOSE_MAX, own.volume.close(false)).await, Ok(Ok(())));
            if !clean {
                let _ = own.doors.timeout(FORCED_CLOSE_MAX, own.volume.close(true)).await;
            }
            own.door.leaving.set(true);
            let report = ClientReport { leaving: true, clean, path: PathState::None, ..own.door.report(false) };
            let _ = own.doors.timeout(LEAVE_MAX, own.door.send(report)).await;
            clean
        })
        .await;
        self.kill();
        clean
    }

    /// Whether a newer epoch has stopped the engine (F4).
    pub async fn is_fenced(self: &Rc<Self>) -> bool {
        let own = Rc::clone(self);
        let probe = in_process(&self.doors, async move {
            let probe = own.volume.read(0, sublet_doors::Buffer::new(0), 0..0);
            matches!(own.doors.timeout(Duration::from_secs(1), probe).await, Ok((Err(error), _)) if error.kind == VolumeErrorKind::Fenced)
        });
        probe.await.unwrap_or(false) || self.told_stale.get()
    }
}
