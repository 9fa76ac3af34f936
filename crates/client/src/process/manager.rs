//! The link to the manager: reports of the path from threads of their own, and the engine's door to it.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use futures_channel::mpsc::UnboundedSender;
use sublet_api::request::{ChangeLeg, ClientReport, LegAnswer, LenderAddresses};
use sublet_api::view::PathState;
use sublet_api::work::WorkReport;
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::real::blocking;
use sublet_link::{Home, ManagerLink};
use sublet_types::{Epoch, VolumeId};
use sublet_volume::{ManagerDoor, PathStatus};

/// Pause after a report that did not arrive.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What the reporting threads tell the engine's thread.
#[derive(Debug)]
pub enum Heard {
    /// Where the lenders can be reached now.
    Lenders(Vec<LenderAddresses>),
    /// The manager knows a newer epoch of this volume (F4).
    StaleEpoch(String),
}

/// The path as it was last seen, with a count of its changes.
#[derive(Clone, Default)]
struct Seen {
    path: PathState,
    reason: String,
    work: Vec<WorkReport>,
    version: u64,
    /// The client is closing the path itself: what happens to it now is no news.
    closing: bool,
    leaving: bool,
}

struct Inner {
    link: ManagerLink,
    home: Option<PathBuf>,
    volume: VolumeId,
    epoch: Epoch,
    seen: Mutex<Seen>,
    changed: Condvar,
    /// Held while a report is made and sent, so that an older one never arrives after a newer one. Not by the held report.
    order: Mutex<()>,
}

/// The manager, as a client needs it. Clones are the same link.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

impl Manager {
    /// The manager that `urls` name. A state directory `home` tells later where it went.
    pub fn new(urls: Vec<String>, home: Option<PathBuf>, volume: VolumeId, epoch: Epoch) -> Self {
        let inner = Inner {
            link: ManagerLink::new(urls),
            home,
            volume,
            epoch,
            seen: Mutex::default(),
            changed: Condvar::new(),
            order: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // The state is valid between any two statements.
        self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path has changed: a report goes out at once.
    pub fn update(&self, status: &PathStatus) {
        let mut seen = self.seen();
        let fresh = (&seen.path, &seen.reason, &seen.work) != (&status.path, &status.reason, &status.work);
        if fresh && !seen.closing {
            seen.path = status.path;
            seen.reason.clone_from(&status.reason);
            seen.work.clone_from(&status.work);
            seen.version += 1;
            self.inner.changed.notify_all();
        }
    }

    /// The client begins to close the path: no more changes are told.
    pub fn close(&self) {
        self.seen().closing = true;
    }

    fn in_order(&self) -> MutexGuard<'_, ()> {
        self.inner.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, hold: bool) -> (u64, ClientReport) {
        let seen = self.seen();
        let report = ClientReport {
            epoch: self.inner.epoch,
            path: seen.path,
            reason: seen.reason.clone(),
            work: seen.work.clone(),
            findings: Vec::new(),
            hold,
            leaving: false,
        };
        (seen.version, report)
    }

    fn send(&self, report: ClientReport, heard: &UnboundedSender<Heard>) -> Result<(), Refusal> {
        let answer = self.inner.link.client_report(self.inner.volume, report).inspect_err(|refusal| {
            if refusal.kind == ErrorKind::StaleEpoch {
                // The engine may be gone already; then nobody needs to know.
                let _ = heard.unbounded_send(Heard::StaleEpoch(refusal.message.clone()));
            }
        })?;
        self.inner.link.learn(&answer.urls);
        let _ = heard.unbounded_send(Heard::Lenders(answer.lenders));
        Ok(())
    }

    /// Where the local server reaches the manager now: it hears of changes also while this client does not.
    fn look_for_manager(&self) {
        if let Some(home) = &self.inner.home
            && let Ok(identity) = Home::new(home).identity()
        {
            self.inner.link.learn(&identity.managers);
        }
    }

    /// Starts the two reporting threads. One keeps a held report at the manager, whose end is how the manager sees that this
    /// process died; the other tells every change at once.
    ///
    /// # Errors
    /// What the operating system says to starting a thread.
    pub fn start(&self, heard: &UnboundedSender<Heard>) -> std::io::Result<()> {
        let (held, own) = (self.clone(), heard.clone());
        thread::Builder::new().name("sublet-report".into()).spawn(move || {
            while !held.seen().leaving && !own.is_closed() {
                let (_, report) = held.report(true);
                if let Err(refusal) = held.send(report, &own) {
                    tracing::debug!(%refusal, "a report did not arrive");
                    held.look_for_manager();
                    thread::sleep(RETRY_PAUSE);
                }
            }
        })?;
        let (prompt, own) = (self.clone(), heard.clone());
        thread::Builder::new().name("sublet-change".into()).spawn(move || prompt.tell_changes(&own))?;
        Ok(())
    }

    fn tell_changes(&self, heard: &UnboundedSender<Heard>) {
        let mut told = 0;
        loop {
            let mut seen = self.seen();
            while seen.version == told && !seen.leaving {
                seen = self.inner.changed.wait(seen).unwrap_or_else(PoisonError::into_inner);
            }
            if seen.leaving || heard.is_closed() {
                return;
            }
            drop(seen);
            let turn = self.in_order();
            if self.seen().leaving {
                return;
            }
            let (version, report) = self.report(false);
            let result = self.send(report, heard);
            drop(turn);
            match result {
                Ok(()) => told = version,
                // Another epoch rules: there is nothing more to tell.
                Err(refusal) if refusal.kind == ErrorKind::StaleEpoch => return,
                Err(_) => thread::sleep(RETRY_PAUSE),
            }
        }
    }

    /// Tells that this process ends by itself. A manager that does not answer sees it from the end of the held report.
    pub async fn leave(&self) {
        {
            let mut seen = self.seen();
            seen.closing = true;
            seen.leaving = true;
            self.inner.changed.notify_all();
        }
        let manager = self.clone();
        blocking(move || {
            let report = ClientReport {
                epoch: manager.inner.epoch,
                path: PathState::None,
                reason: String::new(),
                work: Vec::new(),
                findings: Vec::new(),
                hold: false,
                leaving: true,
            };
            let _turn = manager.in_order();
            if let Err(refusal) = manager.inner.link.client_report(manager.inner.volume, report) {
                tracing::info!(%refusal, "the manager was not told that this client ends");
            }
        })
        .await;
    }
}

impl ManagerDoor for Manager {
    async fn change_leg(&self, volume: VolumeId, change: ChangeLeg) -> Result<LegAnswer, Refusal> {
        let manager = self.clone();
        blocking(move || {
            manager.inner.link.change_leg(volume, change).inspect_err(|refusal| {
                if matches!(refusal.kind, ErrorKind::Unreachable | ErrorKind::TimedOut) {
                    manager.look_for_manager();
                }
            })
        })
        .await
    }

    async fn lenders(&self, volume: VolumeId) -> Result<Vec<LenderAddresses>, Refusal> {
        let manager = self.clone();
        blocking(move || {
            let _turn = manager.in_order();
            let (_, report) = manager.report(false);
            manager.inner.link.client_report(volume, report)
        })
        .await
        .map(|answer| answer.lenders)
    }
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
