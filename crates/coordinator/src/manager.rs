//! The link to the manager: reports of the path from threads of their own, and the engine's door to it. For clients and lenders
//! alike.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use futures_channel::mpsc::UnboundedSender;
use sublet_api::request::{ChangeLeg, ClientAnswer, ClientReport, LegAnswer, LenderAddresses};
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::real::blocking;
use sublet_link::{Access, Home, ManagerLink};
use sublet_types::{Epoch, VolumeId};
use sublet_volume::{ManagerDoor, PathStatus};

use crate::limits::REPORT_RETRY_PAUSE;
use crate::{Reporter, Reports};

/// What the reporting threads tell the engine's thread.
#[derive(Debug)]
pub enum Heard {
    /// What the manager answered to a report.
    Answer(Box<ClientAnswer>),
    /// The manager knows a newer epoch of this volume (F4).
    StaleEpoch(String),
}

struct Inner {
    link: ManagerLink,
    home: Option<PathBuf>,
    volume: VolumeId,
    reporter: Mutex<Reporter>,
    changed: Condvar,
    /// Held while a report is made and sent, so that an older one never arrives after a newer one. Not by the held report.
    order: Mutex<()>,
}

/// The manager, as a coordinator needs it. Clones are the same link.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

impl Manager {
    /// The manager that `urls` name. A state directory `home` tells later where it went.
    pub fn new(urls: Vec<String>, home: Option<PathBuf>, volume: VolumeId, epoch: Epoch) -> Self {
        let link = ManagerLink::new(urls);
        // Whoever coordinates a volume does it in its server's name.
        let link = match &home {
            Some(home) => link.with_access(Access::Server(Home::new(home).credentials_path())),
            None => link,
        };
        let inner = Inner {
            link,
            home,
            volume,
            reporter: Mutex::new(Reporter::new(epoch)),
            changed: Condvar::new(),
            order: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The way to the manager, for what is asked beside.
    pub fn link(&self) -> ManagerLink {
        self.inner.link.clone()
    }

    fn reporter(&self) -> MutexGuard<'_, Reporter> {
        // The state is valid between any two statements.
        self.inner.reporter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_order(&self) -> MutexGuard<'_, ()> {
        self.inner.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, report: ClientReport, heard: &UnboundedSender<Heard>) -> Result<(), Refusal> {
        let answer = self.inner.link.client_report(self.inner.volume, report).inspect_err(|refusal| {
            if refusal.kind == ErrorKind::StaleEpoch {
                // The engine may be gone already; then nobody needs to know.
                let _ = heard.unbounded_send(Heard::StaleEpoch(refusal.message.clone()));
            }
        })?;
        self.inner.link.learn(&answer.urls);
        let _ = heard.unbounded_send(Heard::Answer(Box::new(answer)));
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
            while !held.reporter().is_leaving() && !own.is_closed() {
                let (_, report) = held.reporter().report(true);
                if let Err(refusal) = held.send(report, &own) {
                    tracing::debug!(%refusal, "a report did not arrive");
                    held.look_for_manager();
                    thread::sleep(REPORT_RETRY_PAUSE);
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
            let mut reporter = self.reporter();
            while reporter.version() == told && !reporter.is_leaving() {
                reporter = self.inner.changed.wait(reporter).unwrap_or_else(PoisonError::into_inner);
            }
            if reporter.is_leaving() || heard.is_closed() {
                return;
            }
            drop(reporter);
            let turn = self.in_order();
            if self.reporter().is_leaving() {
                return;
            }
            let (version, report) = self.reporter().report(false);
            let result = self.send(report, heard);
            drop(turn);
            match result {
                Ok(()) => told = version,
                // Another epoch rules: there is nothing more to tell.
                Err(refusal) if refusal.kind == ErrorKind::StaleEpoch => return,
                Err(_) => thread::sleep(REPORT_RETRY_PAUSE),
            }
        }
    }
}

impl Reports for Manager {
    fn update(&self, status: &PathStatus) {
        if self.reporter().update(status) {
            self.inner.changed.notify_all();
        }
    }

    fn took_segments(&self, revision: u64) {
        if self.reporter().took_segments(revision) {
            self.inner.changed.notify_all();
        }
    }

    fn close(&self) {
        self.reporter().close();
    }

    /// A manager that does not answer sees it from the end of the held report.
    async fn leave(&self, clean: bool) {
        self.reporter().leave();
        self.inner.changed.notify_all();
        let manager = self.clone();
        blocking(move || {
            let report = manager.reporter().farewell(clean);
            let _turn = manager.in_order();
            if let Err(refusal) = manager.inner.link.client_report(manager.inner.volume, report) {
                tracing::info!(%refusal, "the manager was not told that this coordinator ends");
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
            let (_, report) = manager.reporter().report(false);
            manager.inner.link.client_report(volume, report)
        })
        .await
        .map(|answer| answer.lenders)
    }
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
