//! The areas of a server and the sessions with their slices.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use futures_util::future::join_all;
use sublet_api::server::AreaReport;
use sublet_area::{Area, AreaError};
use sublet_doors::Doors;
use sublet_doors::local::Semaphore;
use sublet_types::{AreaId, ServerId, SliceId};
use sublet_wire::message::Announce;

use crate::arrivals::Arrivals;
use crate::coordinations::{Coordinate, Coordinations};
use crate::gate::{Closing, Gate};
use crate::limits::{COOL_INTERVAL, COORDINATION_STOP_MAX, DRAIN_TIME_MAX, DROPPED_MAX, SETTLE_TIME_MAX};

/// An area that is served.
pub(crate) struct Served<D: Doors> {
    pub(crate) area: Rc<Area<D>>,
    /// What it lies on, for people.
    place: String,
    gates: RefCell<BTreeMap<SliceId, Rc<Gate>>>,
    /// Whether somebody looks for regions that can cool by themselves.
    cooling: Cell<bool>,
}

impl<D: Doors> Served<D> {
    /// The gate of a slice that the label holds.
    pub(crate) fn gate(&self, slice: SliceId) -> Option<Rc<Gate>> {
        self.area.slice_facts(slice)?;
        Some(Rc::clone(self.gates.borrow_mut().entry(slice).or_insert_with(|| Rc::new(Gate::new()))))
    }

    /// Forgets the gate of a slice that was dropped.
    pub(crate) fn forget(&self, slice: SliceId) {
        if self.area.slice_facts(slice).is_none() {
            self.gates.borrow_mut().remove(&slice);
        }
    }

    /// Regions of slices with one leg cool by themselves (H2), and checksums of what stays hot are written now and then (K2).
    /// Somebody looks for them as long as there are any, and nobody otherwise: an idle server does nothing.
    pub(crate) fn wake_cooler(self: &Rc<Self>, doors: &D) {
        if self.cooling.replace(true) {
            return;
        }
        // Only while it looks does it keep the area, and its lock.
        let (own, timer) = (Rc::downgrade(self), doors.clone());
        doors.spawn(async move {
            loop {
                timer.sleep(COOL_INTERVAL).await;
                let Some(served) = own.upgrade() else { return };
                if let Err(error) = served.area.cool_idle(timer.now()).await {
                    tracing::warn!(area = %served.area.name(), %error, "regions could not be cooled");
                }
                if !served.may_cool() {
                    served.cooling.set(false);
                    return;
                }
            }
        });
    }

    /// L2: the area is not trusted from now on, or is again. Whoever has it open then has to ask again, and is told why not.
    pub(crate) async fn set_quarantine(&self, why: Option<&str>) -> Result<(), AreaError> {
        let was_trusted = self.area.quarantined().is_none();
        self.area.set_quarantine(why).await?;
        if why.is_some() && was_trusted {
            self.gates().iter().for_each(|gate| gate.close_all(Closing::Draining));
        }
        Ok(())
    }

    /// Whether regions are hot. Those of several legs stay so without a session: nobody but its client may cool them.
    fn may_cool(&self) -> bool {
        let gates = self.gates.borrow();
        let in_use = |slice| gates.get(slice).is_some_and(|gate| gate.sessions() > 0);
        let alone = |slice| self.area.slice_facts(slice).is_some_and(|facts| facts.legs == 1);
        self.area.hot_slices().iter().any(|slice| in_use(slice) || alone(*slice))
    }

    pub(crate) fn gates(&self) -> Vec<Rc<Gate>> {
        self.gates.borrow().values().cloned().collect()
    }
}

/// An area as the agent knows it.
enum Place<D: Doors> {
    Online(Rc<Served<D>>),
    /// Known, but not served, and why.
    Offline(String),
}

/// The lender of one server: its areas, and the sessions of the borrowers. Everything happens on one thread.
pub struct Agent<D: Doors> {
    pub(crate) doors: D,
    pub(crate) server: ServerId,
    areas: RefCell<BTreeMap<AreaId, Place<D>>>,
    pub(crate) connections: Cell<usize>,
    /// Those of them that have not asked for a session yet.
    pub(crate) arrivals: Arrivals,
    /// Whether a connection was refused because there are too many, and none was accepted since.
    pub(crate) full: Cell<bool>,
    draining: Cell<bool>,
    /// Who waits to carry out an order for a slice.
    order_queues: RefCell<BTreeMap<SliceId, Rc<Semaphore>>>,
    /// Slices that were wiped and given up, the last ones.
    dropped: RefCell<VecDeque<SliceId>>,
    on_announce: RefCell<Option<Box<OnAnnounce>>>,
    pub(crate) coordinations: Rc<Coordinations>,
}

/// Hears where the manager says it is now; the error says why it is not believed. Must not block.
pub type OnAnnounce = dyn Fn(Announce) -> Result<(), &'static str>;

/// Why an area cannot be used now.
pub(crate) enum Missing {
    /// The agent has no such area.
    Unknown,
    /// It has it, and cannot serve it.
    Offline(String),
}

impl<D: Doors> Agent<D> {
    /// An agent without areas.
    pub fn new(doors: D, server: ServerId) -> Rc<Self> {
        Rc::new(Self {
            doors,
            server,
            areas: RefCell::default(),
            connections: Cell::new(0),
            arrivals: Arrivals::default(),
            full: Cell::new(false),
            draining: Cell::new(false),
            order_queues: RefCell::default(),
            dropped: RefCell::default(),
            on_announce: RefCell::default(),
            coordinations: Rc::default(),
        })
    }

    /// The doors it works through.
    pub fn doors(&self) -> &D {
        &self.doors
    }

    /// The slice is gone, and its id is never used again (P2).
    pub(crate) fn note_dropped(&self, slice: SliceId) {
        let mut dropped = self.dropped.borrow_mut();
        if !dropped.contains(&slice) {
            dropped.push_back(slice);
        }
        while dropped.len() > DROPPED_MAX {
            dropped.pop_front();
        }
    }

    /// The slice was wiped and given up since this process began.
    pub(crate) fn is_dropped(&self, slice: SliceId) -> bool {
        self.dropped.borrow().contains(&slice)
    }

    pub(crate) fn order_queue(&self, slice: SliceId) -> Rc<Semaphore> {
        Rc::clone(self.order_queues.borrow_mut().entry(slice).or_insert_with(|| Rc::new(Semaphore::new(1))))
    }

    pub(crate) fn forget_order_queue(&self, slice: SliceId) {
        let mut queues = self.order_queues.borrow_mut();
        if queues.get(&slice).is_some_and(|queue| Rc::strong_count(queue) == 1) {
            queues.remove(&slice);
        }
    }

    /// Who hears when a manager announces itself; without it announcements are refused.
    pub fn set_on_announce(&self, hear: Box<OnAnnounce>) {
        self.on_announce.replace(Some(hear));
    }

    /// How a volume that is not mounted is coordinated (F5); without it such orders are refused.
    pub fn set_coordinate(&self, how: Box<Coordinate>) {
        self.coordinations.set_how(how);
    }

    /// How many volumes are being coordinated.
    pub fn coordinating(&self) -> usize {
        self.coordinations.count()
    }

    pub(crate) fn announced(&self, announce: Announce) -> Result<(), &'static str> {
        match &*self.on_announce.borrow() {
            Some(hear) => hear(announce),
            None => Err("this lender takes no announcements"),
        }
    }

    /// Serves an open area from now on. `place` says for people what it lies on.
    pub fn add_area(&self, area: Rc<Area<D>>, place: &str) {
        let gates = RefCell::default();
        let served = Rc::new(Served { area: Rc::clone(&area), place: place.to_owned(), gates, cooling: Cell::new(false) });
        // What was hot when it was last in use.
        served.wake_cooler(&self.doors);
        self.areas.borrow_mut().insert(area.id(), Place::Online(served));
    }

    /// An area that this agent ought to serve and cannot: its clients are told to try again later, not that it is unknown. False
    /// if it is served: a note of an opening that waited or failed may come after another one has succeeded.
    pub fn set_offline(&self, area: AreaId, reason: &str) -> bool {
        let mut areas = self.areas.borrow_mut();
        if matches!(areas.get(&area), Some(Place::Online(_))) {
            return false;
        }
        areas.insert(area, Place::Offline(reason.to_owned()));
        true
    }

    /// Forgets an area; its sessions are closed.
    pub fn remove_area(&self, area: AreaId) {
        if let Some(Place::Online(served)) = self.areas.borrow_mut().remove(&area) {
            served.gates().iter().for_each(|gate| gate.close_all(Closing::Draining));
        }
    }

    pub(crate) fn served(&self, area: AreaId) -> Result<Rc<Served<D>>, Missing> {
        match self.areas.borrow().get(&area) {
            Some(Place::Online(served)) => Ok(Rc::clone(served)),
            Some(Place::Offline(reason)) => Err(Missing::Offline(reason.clone())),
            None => Err(Missing::Unknown),
        }
    }

    /// What the areas that are served hold.
    pub fn reports(&self) -> Vec<AreaReport> {
        let areas = self.areas.borrow();
        let online = areas.values().filter_map(|place| match place {
            Place::Online(served) => Some(served.area.report(&served.place)),
            Place::Offline(_) => None,
        });
        online.collect()
    }

    /// How many sessions are open.
    pub fn sessions(&self) -> usize {
        let gates = self.gates();
        gates.iter().map(|gate| gate.sessions()).sum()
    }

    fn gates(&self) -> Vec<Rc<Gate>> {
        let areas = self.areas.borrow();
        let online = areas.values().filter_map(|place| match place {
            Place::Online(served) => Some(served.gates()),
            Place::Offline(_) => None,
        });
        online.flatten().collect()
    }

    /// How far the wipe of a slice is, in bytes done and in all, if one is going on.
    pub fn wipe_progress(&self, area: AreaId, slice: SliceId) -> Option<(u64, u64)> {
        let served = self.served(area).ok()?;
        let gates = served.gates.borrow();
        gates.get(&slice)?.wipe.get()
    }

    /// True once [`Agent::drain`] was called.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Stops: no session is opened any more, the open ones are told and closed, and their requests get [`DRAIN_TIME_MAX`]
    /// to end. Then what the areas know of hot regions is saved, within [`SETTLE_TIME_MAX`].
    pub async fn drain(&self) {
        self.draining.set(true);
        // First: a leg of theirs may be one of this server's.
        if self.doors.timeout(COORDINATION_STOP_MAX, self.coordinations.stop_all()).await.is_err() {
            tracing::warn!("volumes that are coordinated here could not be closed in time; stopping without that");
        }
        let gates = self.gates();
        let all = async {
            for gate in &gates {
                gate.close_all(Closing::Draining);
            }
            for gate in &gates {
                gate.end_all(Closing::Draining).await;
            }
        };
        if self.doors.timeout(DRAIN_TIME_MAX, all).await.is_err() {
            tracing::warn!("requests are still under way at the disk; stopping without them");
        }
        // K2, S3: the next start need not compute checksums, nor take for missed what is known not to be.
        let settle = join_all(self.areas().into_iter().map(async |area| {
            if let Err(error) = area.settle().await {
                tracing::warn!(area = %area.name(), %error, "what is known of hot regions could not be saved");
            }
        }));
        if self.doors.timeout(SETTLE_TIME_MAX, settle).await.is_err() {
            tracing::warn!("not all checksums of hot regions could be saved in time; the next start computes them");
        }
    }

    /// The areas that are served.
    fn areas(&self) -> Vec<Rc<Area<D>>> {
        let online = |place: &Place<D>| match place {
            Place::Online(served) => Some(Rc::clone(&served.area)),
            Place::Offline(_) => None,
        };
        self.areas.borrow().values().filter_map(online).collect()
    }
}
