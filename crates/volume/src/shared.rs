//! What all parts of one volume share: doors, mounting information, the phase, and the signal that wakes whoever waits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use sublet_api::mount::MountingInformation;
use sublet_api::request::LenderAddresses;
use sublet_doors::local::Signal;
use sublet_doors::{Doors, Tick};
use sublet_types::{Address, ServerId};

use crate::error::{VolumeError, VolumeErrorKind};
use crate::options::{ManagerDoor, VolumeOptions};
use crate::rangelock::RangeLock;
use crate::read::Findings;
use crate::scrub::Scrub;
use crate::throttle::Throttle;

/// Addresses are asked of the manager at most so often.
const LENDERS_INTERVAL: Duration = Duration::from_secs(2);
/// The manager's answer is waited for so long; afterwards the outcome is unknown.
pub(crate) const MANAGER_LIMIT: Duration = Duration::from_secs(15);

/// What the whole volume is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Serving.
    Running,
    /// The path is being closed because nobody uses it; requests wait a moment.
    Idling,
    /// The path is closed; the next request opens it.
    Idle,
    /// Being closed for good: no new requests.
    Ending,
    /// Closed for good.
    Closed,
    /// A newer epoch exists (F4).
    Fenced(String),
}

/// See the module.
pub(crate) struct Shared<D: Doors, M: ManagerDoor> {
    pub(crate) doors: D,
    pub(crate) manager: M,
    pub(crate) info: MountingInformation,
    pub(crate) options: VolumeOptions,
    /// W2, over the whole volume.
    pub(crate) ranges: Rc<RangeLock>,
    phase: RefCell<Phase>,
    /// Any change of state. Everybody who waits for a leg, a role or a phase waits for this, and looks again.
    pub(crate) changed: Signal,
    /// CLOSE has been or is being said: nobody opens new sessions.
    pub(crate) parting: Cell<bool>,
    /// Front-end requests under way.
    in_use: Cell<usize>,
    /// When the last one began or ended.
    last_use: Cell<Tick>,
    /// The rate of resyncs.
    pub(crate) throttle: Throttle,
    /// The rate at which legs are made equal. It never rests: reads wait for it, and regions cannot cool before (H2, H3).
    pub(crate) equalising: Throttle,
    /// Scrubs that the manager has asked for.
    pub(crate) scrubs: RefCell<Vec<Rc<Scrub>>>,
    /// What was found wrong (K1).
    pub(crate) findings: RefCell<Findings>,
    lenders: RefCell<HashMap<ServerId, Vec<Address>>>,
    lenders_asked: Cell<Option<Tick>>,
}

/// A request under way; the path does not idle and the volume does not close before it is dropped.
pub(crate) struct InUse<D: Doors, M: ManagerDoor>(Rc<Shared<D, M>>);

impl<D: Doors, M: ManagerDoor> Drop for InUse<D, M> {
    fn drop(&mut self) {
        let left = self.0.in_use.get() - 1;
        self.0.in_use.set(left);
        self.0.last_use.set(self.0.doors.now());
        if left == 0 && self.0.phase() == Phase::Ending {
            self.0.changed.notify();
        }
    }
}

impl<D: Doors, M: ManagerDoor> Shared<D, M> {
    pub(crate) fn new(doors: D, manager: M, info: MountingInformation, options: VolumeOptions) -> Self {
        let legs = info.segments.iter().flat_map(|s| &s.legs);
        let lenders = legs.map(|leg| (leg.server, leg.addresses.clone())).collect();
        let now = doors.now();
        Self {
            doors,
            manager,
            info,
            options,
            ranges: Rc::default(),
            phase: RefCell::new(Phase::Running),
            changed: Signal::new(),
            parting: Cell::new(false),
            in_use: Cell::new(0),
            last_use: Cell::new(now),
            throttle: Throttle::default(),
            equalising: Throttle::default(),
            scrubs: RefCell::default(),
            findings: RefCell::default(),
            lenders: RefCell::new(lenders),
            lenders_asked: Cell::new(None),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Enters another phase; the end is final.
    pub(crate) fn set_phase(&self, phase: Phase) {
        {
            let mut now = self.phase.borrow_mut();
            if matches!(*now, Phase::Closed | Phase::Fenced(_)) || *now == phase {
                return;
            }
            tracing::debug!(?phase, "volume enters a phase");
            *now = phase;
        }
        self.changed.notify();
    }

    /// F4: everything stops, reads too.
    pub(crate) fn fence(&self, text: &str) {
        let text = if text.is_empty() { "a lender or the manager knows a newer epoch of this volume" } else { text };
        tracing::error!(volume = %self.info.name, epoch = self.info.epoch.number, text, "fenced: all I/O of this volume stops");
        self.set_phase(Phase::Fenced(text.to_owned()));
    }

    /// True if nothing will ever run again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Closed | Phase::Fenced(_))
    }

    /// True while requests are served.
    pub(crate) fn is_running(&self) -> bool {
        *self.phase.borrow() == Phase::Running
    }

    /// True while sessions with the lenders are wanted.
    pub(crate) fn wants_sessions(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Running | Phase::Idling | Phase::Ending)
    }

    /// The error of a volume that is over.
    pub(crate) fn alive(&self) -> Result<(), VolumeError> {
        match &*self.phase.borrow() {
            Phase::Fenced(text) => Err(VolumeError::new(
                VolumeErrorKind::Fenced,
                format!(
                    "volume {} was taken over: {text}; this client has stopped, mount it again if it is still yours",
                    self.info.name
                ),
            )),
            Phase::Closed => Err(self.closed()),
            _ => Ok(()),
        }
    }

    fn closed(&self) -> VolumeError {
        VolumeError::new(VolumeErrorKind::Closed, format!("volume {} is closed", self.info.name))
    }

    /// Admits a request; opens an idle path.
    pub(crate) async fn begin(self: &Rc<Self>) -> Result<InUse<D, M>, VolumeError> {
        loop {
            let seen = self.changed.version();
            self.alive()?;
            match self.phase() {
                Phase::Ending => return Err(self.closed()),
                Phase::Idle => {
                    self.parting.set(false);
                    self.set_phase(Phase::Running);
                    continue;
                }
                Phase::Idling => {
                    self.changed.changed(seen).await;
                    continue;
                }
                _ => {}
            }
            self.in_use.set(self.in_use.get() + 1);
            self.last_use.set(self.doors.now());
            return Ok(InUse(Rc::clone(self)));
        }
    }

    /// Waits until the volume is being closed, or is over; why whoever waited cannot go on.
    pub(crate) async fn closing(&self) -> VolumeError {
        loop {
            let seen = self.changed.version();
            if let Err(error) = self.alive() {
                return error;
            }
            if *self.phase.borrow() == Phase::Ending {
                return self.closed();
            }
            self.changed.changed(seen).await;
        }
    }

    /// How many requests are under way.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.get()
    }

    /// When the last request began or ended.
    pub(crate) fn last_use(&self) -> Tick {
        self.last_use.get()
    }

    /// Where a lender can be reached, in the order to try.
    pub(crate) fn addresses(&self, server: ServerId) -> Vec<Address> {
        self.lenders.borrow().get(&server).cloned().unwrap_or_default()
    }

    /// Takes over what the manager says; lenders that it does not name, or names without an address, keep theirs.
    pub(crate) fn update_lenders(&self, lenders: Vec<LenderAddresses>) {
        let mut known = self.lenders.borrow_mut();
        for lender in lenders.into_iter().filter(|l| !l.addresses.is_empty()) {
            if let Some(addresses) = known.get_mut(&lender.server) {
                *addresses = lender.addresses;
            }
        }
    }

    /// A lender that was not one of this volume's before.
    pub(crate) fn add_lender(&self, server: ServerId, addresses: Vec<Address>) {
        self.lenders.borrow_mut().insert(server, addresses);
    }

    /// Asks the manager for addresses in the background, not too often.
    pub(crate) fn ask_lenders(self: &Rc<Self>) {
        let now = self.doors.now();
        if self.lenders_asked.get().is_some_and(|asked| now.since(asked) < LENDERS_INTERVAL) {
            return;
        }
        self.lenders_asked.set(Some(now));
        let shared = Rc::clone(self);
        self.doors.spawn(async move {
            match shared.doors.timeout(MANAGER_LIMIT, shared.manager.lenders(shared.info.volume)).await {
                Ok(Ok(lenders)) => shared.update_lenders(lenders),
                Ok(Err(refusal)) => tracing::debug!(%refusal, "the manager did not tell where the lenders are"),
                Err(_) => tracing::debug!("the manager did not answer where the lenders are"),
            }
        });
    }

    /// Runs work as a task of its own, to its end also when the caller goes away: a range lock that it holds is given up only when
    /// everything that was sent under it has ended (W2).
    pub(crate) async fn detached<T: 'static>(
        &self,
        work: impl Future<Output = Result<T, VolumeError>> + 'static,
    ) -> Result<T, VolumeError> {
        let (sender, receiver) = oneshot::channel();
        self.doors.spawn(async move {
            // Nobody may wait for the result any more.
            let _ = sender.send(work.await);
        });
        receiver.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Waits for `limit` or until the volume is over, whichever is first.
    pub(crate) async fn pause(&self, limit: Duration) {
        let over = async {
            loop {
                let seen = self.changed.version();
                if self.is_over() {
                    return;
                }
                self.changed.changed(seen).await;
            }
        };
        // Both ends of the wait lead to another look at the state.
        let _ = self.doors.timeout(limit, over).await;
    }
}
