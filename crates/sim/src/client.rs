//! A borrower's process: the engine over a mounted volume, and what it tells the manager.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use sublet_api::mount::MountingInformation;
use sublet_coordinator::limits::{CLOSE_TIME_MAX, LEAVE_TIME_MAX, PROBE_TIME_MAX, PROGRESS_PAUSE};
use sublet_coordinator::{Heard, Reports, close, obey};
use sublet_doors::{Clock, Doors};
use sublet_volume::{Volume, VolumeError, VolumeErrorKind, VolumeOptions};

use crate::door::Door;
use crate::doors::{Machine, SimDoors};
use crate::exec::Sim;
use crate::manager::Manager;
use crate::net::Net;

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
        let door = Door::new(&doors, manager, &info);
        let (own_doors, own, known) = (doors.clone(), door.clone(), info.clone());
        let opened = in_process(&doors, async move { Volume::open(own_doors, own, known, options).await }).await?;
        let volume = match opened {
            Ok(volume) => volume,
            Err(error) => {
                machine.kill(sim, doors.process());
                return Some(Err(error));
            }
        };
        let client = Rc::new(Self { doors, volume, info, door, told_stale: Cell::new(false) });
        client.doors.spawn(Rc::clone(&client).watch());
        let (hear, mut heard) = mpsc::unbounded();
        client.door.start(&hear);
        let own = Rc::clone(&client);
        client.doors.spawn(async move {
            while let Some(heard) = heard.next().await {
                match heard {
                    Heard::Answer(answer) => {
                        if let Some(revision) = obey(&own.volume, *answer) {
                            own.door.took_segments(revision);
                        }
                    }
                    Heard::StaleEpoch(text) => {
                        own.told_stale.set(true);
                        own.volume.fence(&text.to_string());
                    }
                }
            }
        });
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
            self.door.update(&status);
            let changed = self.volume.status_changed().changed(seen);
            if busy {
                let _ = self.doors.timeout(PROGRESS_PAUSE, changed).await;
            } else {
                changed.await;
            }
        }
    }

    /// Ends in order: flushes and closes, as the real client does. True if everything is durable.
    pub async fn stop(self: &Rc<Self>) -> Option<bool> {
        let own = Rc::clone(self);
        let clean = in_process(&self.doors, async move {
            let flushed = matches!(own.doors.timeout(CLOSE_TIME_MAX, own.volume.flush()).await, Ok(Ok(())));
            own.door.close();
            let clean = flushed && close(&own.doors, &own.volume, false).await;
            if !clean {
                close(&own.doors, &own.volume, true).await;
            }
            // A manager that does not answer sees it from the end of the held report.
            let _ = own.doors.timeout(LEAVE_TIME_MAX, own.door.leave(clean)).await;
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
            let probe = own.volume.read(0, 0);
            matches!(own.doors.timeout(PROBE_TIME_MAX, probe).await, Ok(Err(error)) if error.kind == VolumeErrorKind::Fenced)
        });
        probe.await.unwrap_or(false) || self.told_stale.get()
    }
}
