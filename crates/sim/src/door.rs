//! The way of a coordinator (a client, or a lender that works on a volume that is not mounted) to the manager.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::mpsc::UnboundedSender;
use sublet_api::mount::MountingInformation;
use sublet_api::request::{ChangeLeg, ClientAnswer, ClientReport, LegAnswer, LenderAddresses, Request, Response};
use sublet_api::{ErrorKind, Refusal};
use sublet_coordinator::limits::REPORT_RETRY_PAUSE;
use sublet_coordinator::{Heard, Reporter, Reports};
use sublet_doors::local::Signal;
use sublet_doors::{Clock, Doors};
use sublet_types::limits::POLL_INTERVAL;
use sublet_types::{ServerId, VolumeId};
use sublet_volume::{ManagerDoor, PathStatus};

use crate::doors::SimDoors;
use crate::manager::{Manager, certified};

struct Inner {
    doors: SimDoors,
    manager: Rc<Manager>,
    holder: ServerId,
    volume: VolumeId,
    reporter: RefCell<Reporter>,
    changed: Signal,
}

/// See the module. Clones are the same link.
#[derive(Clone)]
pub struct Door(Rc<Inner>);

fn nonsense() -> Refusal {
    Refusal::new(ErrorKind::Internal, "the manager answered something else")
}

impl Door {
    /// The link of a process.
    pub fn new(doors: &SimDoors, manager: &Rc<Manager>, info: &MountingInformation) -> Self {
        Self(Rc::new(Inner {
            doors: doors.clone(),
            manager: Rc::clone(manager),
            holder: info.borrower,
            volume: info.volume,
            reporter: RefCell::new(Reporter::new(info.epoch)),
            changed: Signal::new(),
        }))
    }

    async fn send(&self, report: ClientReport) -> Result<ClientAnswer, Refusal> {
        let hold = if report.hold { POLL_INTERVAL } else { Duration::ZERO };
        let request = Request::ClientReport { volume: self.0.volume, report };
        match self.0.manager.call(&self.0.doors, certified(self.0.holder), request, hold).await? {
            Response::Client(answer) => Ok(answer),
            _ => Err(nonsense()),
        }
    }

    async fn tell(&self, report: ClientReport, hear: &UnboundedSender<Heard>) -> bool {
        // The engine may be gone already; then nobody needs to know.
        match self.send(report).await {
            Ok(answer) => {
                let _ = hear.unbounded_send(Heard::Answer(Box::new(answer)));
                true
            }
            Err(refusal) => {
                if refusal.kind == ErrorKind::StaleEpoch {
                    let _ = hear.unbounded_send(Heard::StaleEpoch(refusal.message));
                }
                false
            }
        }
    }

    /// Begins to report: one report is held at the manager, the other tells every change at once.
    pub fn start(&self, hear: &UnboundedSender<Heard>) {
        let (own, held) = (self.clone(), hear.clone());
        self.0.doors.spawn(async move {
            while !own.0.reporter.borrow().is_leaving() && !held.is_closed() {
                let report = own.0.reporter.borrow().report(true).1;
                if !own.tell(report, &held).await {
                    own.0.doors.sleep(REPORT_RETRY_PAUSE).await;
                }
            }
        });
        let (own, prompt) = (self.clone(), hear.clone());
        self.0.doors.spawn(async move {
            let mut told = 0;
            while !own.0.reporter.borrow().is_leaving() && !prompt.is_closed() {
                let seen = own.0.changed.version();
                let (version, report) = own.0.reporter.borrow().report(false);
                if version == told {
                    own.0.changed.changed(seen).await;
                } else if own.tell(report, &prompt).await {
                    told = version;
                } else {
                    own.0.doors.sleep(REPORT_RETRY_PAUSE).await;
                }
            }
        });
    }
}

impl ManagerDoor for Door {
    async fn change_leg(&self, volume: VolumeId, change: ChangeLeg) -> Result<LegAnswer, Refusal> {
        let request = Request::ChangeLeg { volume, change };
        match self.0.manager.call(&self.0.doors, certified(self.0.holder), request, POLL_INTERVAL).await? {
            Response::Leg(answer) => Ok(answer),
            _ => Err(nonsense()),
        }
    }

    async fn lenders(&self, _volume: VolumeId) -> Result<Vec<LenderAddresses>, Refusal> {
        let report = self.0.reporter.borrow().report(false).1;
        self.send(report).await.map(|answer| answer.lenders)
    }
}

impl Reports for Door {
    fn update(&self, status: &PathStatus) {
        if self.0.reporter.borrow_mut().update(status) {
            self.0.changed.notify();
        }
    }

    fn took_segments(&self, revision: u64) {
        if self.0.reporter.borrow_mut().took_segments(revision) {
            self.0.changed.notify();
        }
    }

    fn close(&self) {
        self.0.reporter.borrow_mut().close();
    }

    async fn leave(&self, clean: bool) {
        let farewell = {
            let mut reporter = self.0.reporter.borrow_mut();
            reporter.leave();
            reporter.farewell(clean)
        };
        self.0.changed.notify();
        if let Err(refusal) = self.send(farewell).await {
            self.0.doors.sim().log("client", || format!("the manager was not told of the end: {refusal}"));
        }
    }
}
