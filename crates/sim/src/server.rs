//! A server: the agent with its areas, and the shell around it as tasks instead of threads.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures_channel::mpsc;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};
use sublet_agent::Agent;
use sublet_agent::limits::{AREA_RETRY_INTERVAL, AREAS_PATIENCE, POLL_RETRY_PAUSE, PROGRESS_INTERVAL};
use sublet_agent::poller::{Next, Poller};
use sublet_api::mount::MountingInformation;
use sublet_api::order::{NumberedOrder, Order, OrderResult, Outcome};
use sublet_api::request::{Request, Response};
use sublet_api::server::{AreaReport, Poll, PollAnswer, Register};
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_area::{Area, FormatSpec, PieceSpec, Witness, file_size_for, layout};
use sublet_coordinator::{Flag, Reports, coordinate};
use sublet_doors::local::Signal;
use sublet_doors::{Clock, Doors, Endpoint, Listener, Net as _, Rng};
use sublet_types::limits::{POLL_INTERVAL, REGION_SIZE};
use sublet_types::{AreaId, Name, PoolId, ServerId};
use sublet_volume::PathStatus;
use sublet_wire::message::MapWhich;

use crate::disk::SimFile;
use crate::door::Door;
use crate::doors::{Machine, SimDoors, address};
use crate::exec::{Sim, Time};
use crate::manager::{Manager, certified};
use crate::net::Net;
use crate::oracle::Truths;

/// Where agents listen.
const PORT: u16 = 7471;

/// An area as the server finds it again after a restart.
#[derive(Clone)]
pub struct Entry {
    /// The area.
    pub area: AreaId,
    /// Its name.
    pub name: Name,
    /// Its pieces.
    pub pieces: Vec<PieceSpec>,
    /// Room for data in bytes.
    pub capacity: u64,
    offline: Option<String>,
}

impl Entry {
    fn place(&self) -> String {
        self.pieces.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
    }
}

/// Where the data begins in a piece of that length.
fn data_begin(length: u64) -> u64 {
    layout::HEADER_SIZE + layout::metadata_size(length)
}

/// What the server's state directory holds.
struct Kept {
    name: Name,
    pool: Option<PoolId>,
    entries: Vec<Entry>,
    failed: Rc<FailureNotes>,
}

/// As the files that a server keeps of areas whose disks have failed (W7).
#[derive(Default)]
struct FailureNotes(RefCell<BTreeSet<AreaId>>);

impl Witness for FailureNotes {
    fn note(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<()>> {
        self.0.borrow_mut().insert(area);
        Box::pin(ready(Ok(())))
    }

    fn is_noted(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<bool>> {
        Box::pin(ready(Ok(self.0.borrow().contains(&area))))
    }

    fn forget(&self, area: AreaId) -> LocalBoxFuture<'static, io::Result<()>> {
        self.0.borrow_mut().remove(&area);
        Box::pin(ready(Ok(())))
    }
}

/// One life of the process.
pub struct Running {
    /// Its doors.
    pub doors: SimDoors,
    /// The agent.
    pub agent: Rc<Agent<SimDoors>>,
    areas: RefCell<BTreeMap<AreaId, Rc<Area<SimDoors>>>>,
    poller: RefCell<Poller>,
    changed: Signal,
    run: u64,
}

/// See the module.
pub struct Server {
    sim: Sim,
    net: Net,
    manager: Rc<Manager>,
    /// Where it runs.
    pub machine: Rc<Machine>,
    /// Who it is.
    id: Cell<ServerId>,
    kept: RefCell<Kept>,
    running: RefCell<Option<Rc<Running>>>,
    /// It left the pool.
    pub left: Cell<bool>,
    truths: Truths,
}

impl Server {
    /// A server that is not started yet.
    pub fn new(sim: &Sim, net: &Net, manager: &Rc<Manager>, truths: &Truths, name: Name) -> Rc<Self> {
        let kept = Kept { name, pool: None, entries: Vec::new(), failed: Rc::default() };
        Rc::new(Self {
            sim: sim.clone(),
            net: net.clone(),
            manager: Rc::clone(manager),
            machine: Machine::new(sim, net),
            id: Cell::new(ServerId::from_u128(sim.random(|random| random.next_u128()))),
            kept: RefCell::new(kept),
            running: RefCell::new(None),
            left: Cell::new(false),
            truths: truths.clone(),
        })
    }

    /// Who it is.
    pub fn id(&self) -> ServerId {
        self.id.get()
    }

    /// Ends the process, and begins anew with an empty data folder: as another server, to which the disks are lent again.
    pub fn join_anew(&self) {
        self.stop();
        self.id.set(ServerId::from_u128(self.sim.random(|random| random.next_u128())));
        self.left.set(false);
    }

    /// What the table calls it.
    pub fn name(&self) -> Name {
        self.kept.borrow().name.clone()
    }

    /// Its areas.
    pub fn entries(&self) -> Vec<Entry> {
        self.kept.borrow().entries.clone()
    }

    /// The present life of its process.
    pub fn running(&self) -> Option<Rc<Running>> {
        self.running.borrow().clone().filter(|running| running.doors.is_alive())
    }

    /// The open areas of the present life.
    pub fn areas(&self) -> Vec<Rc<Area<SimDoors>>> {
        self.running().map(|running| running.areas.borrow().values().cloned().collect()).unwrap_or_default()
    }

    /// Starts the process, if it does not run.
    pub fn start(self: &Rc<Self>) {
        if self.running().is_some() || self.left.get() {
            return;
        }
        self.stop();
        let doors = SimDoors::start(&self.sim, &self.net, &self.machine, self.name().to_string());
        let agent = Agent::new(doors.clone(), self.id());
        for entry in &mut self.kept.borrow_mut().entries {
            agent.set_offline(entry.area, "it is being opened");
            entry.offline = Some("it is being opened".to_owned());
        }
        agent.set_coordinate(coordination(&doors, &self.manager));
        let run = doors.random_u64();
        let running =
            Rc::new(Running { doors, agent, areas: RefCell::default(), poller: RefCell::default(), changed: Signal::new(), run });
        self.sim.log(self.name().as_str(), || "starts".to_owned());
        self.running.replace(Some(Rc::clone(&running)));
        let doors = &running.doors;
        doors.spawn(accept(Rc::clone(&running)));
        doors.spawn(Rc::clone(self).watch_areas(Rc::clone(&running)));
        doors.spawn(Rc::clone(self).poll(Rc::clone(&running)));
        doors.spawn(Rc::clone(self).report(Rc::clone(&running)));
    }

    /// Ends the process as `kill -9` does.
    pub fn stop(&self) {
        if let Some(running) = self.running.take() {
            self.sim.log(self.name().as_str(), || "dies".to_owned());
            self.forgive(&running);
            self.machine.kill(&self.sim, running.doors.process());
            self.truths.ended(self.id());
        }
    }

    /// K2: the checksums of hot regions are lost with the process, and damage to their blocks is not seen then. This is all that
    /// the rules leave uncovered: such damage is undone, so that nothing else has to be allowed.
    fn forgive(&self, running: &Running) {
        for entry in self.entries() {
            let area = running.areas.borrow().get(&entry.area).cloned();
            for slice in area.iter().flat_map(|area| area.report("").slices) {
                let facts = &slice.facts;
                let hot = area.as_ref().and_then(|area| {
                    let map = area.map(facts.slice, MapWhich::Leg(u8::MAX), 0, facts.length);
                    map.now_or_never()?.ok().map(|map| map.entries)
                });
                let Some(hot) = hot else {
                    self.heal(&entry, facts.offset, facts.length);
                    continue;
                };
                for region in hot.iter().filter(|entry| entry.hot).map(|entry| u64::from(entry.region)) {
                    self.heal(&entry, facts.offset + region * REGION_SIZE, REGION_SIZE);
                }
            }
        }
    }

    /// Whether damage to the data of a file would be seen: its area is open, and no checksum was lost with an earlier process.
    fn is_damage_seen(&self, path: &Path, at: u64, length: u64) -> bool {
        let Some(running) = self.running() else { return false };
        self.entries().iter().all(|entry| {
            let mut begin = 0;
            entry.pieces.iter().all(|piece| {
                let here = begin + at.saturating_sub(data_begin(piece.length));
                begin += layout::data_size(piece.length);
                if piece.path != path {
                    return true;
                }
                let Some(area) = running.areas.borrow().get(&entry.area).cloned() else { return false };
                area.report("").slices.iter().all(|slice| {
                    let facts = &slice.facts;
                    let (from, to) = (here.max(facts.offset), (here + length).min(facts.offset + facts.length));
                    if from >= to {
                        return true;
                    }
                    !area.lacks_checksums(facts.slice, from - facts.offset, to - from)
                })
            })
        })
    }

    fn heal(&self, entry: &Entry, offset: u64, length: u64) {
        for (file, at, length) in self.places(entry, offset, length) {
            file.heal(at, length, |right| self.truths.undone(right));
        }
    }

    /// Where a stretch of an area lies: files, and where in them.
    pub(crate) fn places(&self, entry: &Entry, offset: u64, length: u64) -> Vec<(Rc<SimFile>, u64, u64)> {
        let (mut found, mut begin) = (Vec::new(), 0);
        for piece in &entry.pieces {
            let end = begin + layout::data_size(piece.length);
            let (from, to) = (offset.max(begin), (offset + length).min(end));
            if from < to
                && let Some(file) = self.machine.files.borrow().get(&piece.path)
            {
                found.push((file, data_begin(piece.length) + from - begin, to - from));
            }
            begin = end;
        }
        found
    }

    /// Lends an area of so many bytes, joined from so many pieces.
    ///
    /// # Errors
    /// What the area says.
    pub async fn lend(self: &Rc<Self>, bytes: u64, device: bool, count: u64) -> Result<(), Refusal> {
        let running = self.running().ok_or_else(|| Refusal::new(ErrorKind::Unreachable, "the server does not run"))?;
        let pool = self.kept.borrow().pool.ok_or_else(|| Refusal::new(ErrorKind::Unreachable, "no pool yet"))?;
        let number = self.kept.borrow().entries.len() + 1;
        let piece = |index: u64| {
            let path = format!("/{}/area-{number}-{index}", self.name());
            // The last one has what the others leave over.
            let part = bytes / REGION_SIZE / count * REGION_SIZE;
            let length = file_size_for(if index + 1 == count { bytes - part * (count - 1) } else { part });
            if self.machine.files.borrow().get(PathBuf::from(&path).as_path()).is_none() {
                let file = self.machine.files.borrow_mut().make(&self.sim, &path, length, device);
                file.data_begin.set(data_begin(length));
                let (own, path) = (Rc::downgrade(self), PathBuf::from(&path));
                let is_seen = move |at, many| own.upgrade().is_some_and(|own| own.is_damage_seen(&path, at, many));
                *file.is_seen.borrow_mut() = Box::new(is_seen);
                if device {
                    file.soil(layout::HEADER_SIZE, REGION_SIZE);
                }
            }
            PieceSpec { path: PathBuf::from(&path), offset: 0, length }
        };
        let pieces: Vec<PieceSpec> = (0..count).map(piece).collect();
        let area = AreaId::from_u128(running.doors.random_u128());
        let name: Name = format!("{}-{number}", self.name())
            .parse()
            .map_err(|error| Refusal::new(ErrorKind::Internal, format!("a name of the simulator: {error:?}")))?;
        let spec = FormatSpec { pool, area, server: self.id(), name: name.clone(), pieces: pieces.clone(), sparse: false };
        Area::format(&running.doors, &spec).await.map_err(|error| error.refusal())?;
        let entry = Entry { area, name, pieces, capacity: bytes, offline: Some("it is being opened".to_owned()) };
        self.kept.borrow_mut().entries.push(entry);
        self.open_area(&running, area).await;
        running.changed.notify();
        Ok(())
    }

    async fn open_area(&self, running: &Rc<Running>, area: AreaId) {
        let entry = self.kept.borrow().entries.iter().find(|entry| entry.area == area).cloned();
        let Some(entry) = entry else { return };
        let (pool, notes) = (self.kept.borrow().pool, Rc::clone(&self.kept.borrow().failed));
        let boot = self.machine.boot.get();
        // An opening changes the labels: what is another area's is left alone.
        let mut stranger = None;
        if let Some(first) = entry.pieces.first() {
            let label = Area::read_identity(&running.doors, first).await.ok().flatten();
            stranger = label.filter(|label| label.area != area);
        }
        let offline = match stranger {
            Some(label) => Some(format!("it is missing: another area ({}) lies there now", label.name)),
            None => match Area::open_with(&running.doors, &entry.pieces, pool, boot, notes).await {
                Ok(open) if open.id() == area => {
                    running.areas.borrow_mut().insert(area, Rc::clone(&open));
                    running.agent.add_area(open, &entry.place());
                    None
                }
                Ok(open) => Some(format!("another area ({}) lies there now", open.name())),
                Err(error) => Some(error.to_string()),
            },
        };
        self.sim.log(self.name().as_str(), || format!("area {}: {}", entry.name, offline.as_deref().unwrap_or("online")));
        if let Some(reason) = &offline {
            running.agent.set_offline(area, reason);
        }
        if let Some(entry) = self.kept.borrow_mut().entries.iter_mut().find(|entry| entry.area == area) {
            entry.offline = offline;
        }
        running.poller.borrow_mut().areas_changed();
        running.changed.notify();
    }

    async fn watch_areas(self: Rc<Self>, running: Rc<Running>) {
        let mut told = Vec::new();
        loop {
            let offline: Vec<AreaId> =
                self.kept.borrow().entries.iter().filter(|entry| entry.offline.is_some()).map(|entry| entry.area).collect();
            for area in offline {
                self.open_area(&running, area).await;
            }
            let state = |r: AreaReport| (r.area, r.name, r.capacity, r.offline, r.open, r.quarantined, r.failures);
            let summary: Vec<_> = self.reports(&running).into_iter().map(state).collect();
            if summary != told {
                told = summary;
                running.poller.borrow_mut().areas_changed();
                running.changed.notify();
            }
            running.doors.sleep(AREA_RETRY_INTERVAL).await;
        }
    }

    /// All areas as the manager is told.
    fn reports(&self, running: &Running) -> Vec<AreaReport> {
        let mut online: BTreeMap<AreaId, AreaReport> =
            running.agent.reports().into_iter().map(|report| (report.area, report)).collect();
        let kept = self.kept.borrow();
        let Some(pool) = kept.pool else { return Vec::new() };
        let report = |entry: &Entry| {
            online.remove(&entry.area).unwrap_or_else(|| AreaReport {
                area: entry.area,
                pool,
                name: entry.name.clone(),
                capacity: entry.capacity,
                place: entry.place(),
                sparse: false,
                offline: Some(entry.offline.clone().unwrap_or_else(|| "it is being opened".to_owned())),
                open: None,
                sequence: 0,
                slices: Vec::new(),
                history: Vec::new(),
                quarantined: None,
                failures: 0,
                tombstones: Vec::new(),
            })
        };
        kept.entries.iter().map(report).collect()
    }

    async fn register(&self, running: &Running) -> Result<(), Refusal> {
        if running.poller.borrow().is_registered() {
            return Ok(());
        }
        let (name, pool) = (self.name(), self.kept.borrow().pool);
        let addresses = vec![address(self.machine.id, PORT)];
        let version = "simulated".to_owned();
        let register = Register { server: self.id(), pool, name, zone: String::new(), addresses, version, run: running.run };
        let answer = self.manager.call(&running.doors, certified(self.id()), Request::Register(register), Duration::ZERO).await?;
        let Response::Registered(registered) = answer else { return Err(nonsense()) };
        let mut kept = self.kept.borrow_mut();
        kept.pool = Some(registered.pool);
        kept.name = registered.name;
        running.poller.borrow_mut().registered();
        running.changed.notify();
        Ok(())
    }

    async fn exchange(self: &Rc<Self>, running: &Rc<Running>, poll: Poll) -> Result<(), Refusal> {
        let result = async {
            self.register(running).await?;
            let request = Request::Poll { server: self.id(), poll };
            match self.manager.call(&running.doors, certified(self.id()), request, POLL_INTERVAL).await? {
                Response::Poll(answer) => Ok(answer),
                _ => Err(nonsense()),
            }
        }
        .await;
        match result {
            Ok(answer) => {
                self.take(running, &answer);
                self.register(running).await
            }
            Err(refusal) => {
                running.poller.borrow_mut().failed();
                Err(refusal)
            }
        }
    }

    fn take(self: &Rc<Self>, running: &Rc<Running>, answer: &PollAnswer) {
        if let Some(name) = &answer.name {
            self.kept.borrow_mut().name = name.clone();
        }
        let next = running.poller.borrow_mut().answered(answer);
        match next {
            Next::Leave => self.left.set(true),
            Next::Carry(orders) => {
                for order in orders {
                    running.doors.spawn(Rc::clone(self).carry_out(Rc::clone(running), order));
                }
            }
        }
    }

    async fn carry_out(self: Rc<Self>, running: Rc<Running>, order: NumberedOrder) {
        let outcome = running.agent.execute(&order.order).await;
        self.sim.log(self.name().as_str(), || format!("{:?} -> {outcome:?}", order.order));
        if let (Order::ReleaseArea { area }, Outcome::Done) = (&order.order, &outcome) {
            self.kept.borrow_mut().entries.retain(|entry| entry.area != *area);
            running.areas.borrow_mut().remove(area);
            running.poller.borrow_mut().areas_changed();
        }
        running.poller.borrow_mut().result(OrderResult { number: order.number, run: order.run, outcome });
        running.changed.notify();
    }

    async fn poll(self: Rc<Self>, running: Rc<Running>) {
        let opened = async {
            while self.kept.borrow().entries.iter().any(|entry| entry.offline.as_deref() == Some("it is being opened")) {
                running.doors.sleep(Duration::from_millis(20)).await;
            }
        };
        // Patience over: they are told as being opened.
        let _ = running.doors.timeout(AREAS_PATIENCE, opened).await;
        loop {
            let poll = Poll { run: running.run, results: Vec::new(), areas: None };
            if self.exchange(&running, poll).await.is_err() {
                running.doors.sleep(POLL_RETRY_PAUSE).await;
            }
        }
    }

    async fn report(self: Rc<Self>, running: Rc<Running>) {
        loop {
            let seen = running.changed.version();
            if !running.poller.borrow().is_waiting() {
                let _ = running.doors.timeout(PROGRESS_INTERVAL, running.changed.changed(seen)).await;
            }
            if !running.poller.borrow().is_registered() {
                running.doors.sleep(Duration::from_millis(50)).await;
                continue;
            }
            let batch = running.poller.borrow_mut().take();
            let mut results = batch.results.clone();
            results.extend(running.poller.borrow_mut().progress(|area, slice| running.agent.wipe_progress(area, slice)));
            if results.is_empty() && batch.areas.is_none() {
                continue;
            }
            let areas = batch.areas.map(|_| self.reports(&running));
            match self.exchange(&running, Poll { run: running.run, results, areas }).await {
                Ok(()) => running.poller.borrow_mut().delivered(&batch),
                Err(_) => {
                    running.poller.borrow_mut().give_back(batch);
                    running.doors.sleep(POLL_RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Keeps it running: a supervisor starts it again when it died.
    pub async fn supervise(self: Rc<Self>, pause: impl Fn() -> Time) {
        loop {
            self.sim.sleep(Duration::from_millis(100)).await;
            if self.running().is_some() || !self.net.is_up(self.machine.id) {
                continue;
            }
            self.sim.sleep(Duration::from_nanos(pause())).await;
            if self.net.is_up(self.machine.id) {
                self.start();
            }
        }
    }
}

fn nonsense() -> Refusal {
    Refusal::new(ErrorKind::Internal, "the manager answered something else")
}

async fn accept(running: Rc<Running>) {
    let doors = &running.doors;
    let listener = loop {
        match doors.listen(&Endpoint::Tcp(address(doors.machine().id, PORT))).await {
            Ok(listener) => break listener,
            Err(_) => doors.sleep(Duration::from_millis(20)).await,
        }
    };
    while let Ok(conn) = listener.accept().await {
        let agent = Rc::clone(&running.agent);
        doors.spawn(async move { agent.serve(conn).await });
    }
}

/// How a server coordinates a volume that is not mounted (F5), as the real daemon does it.
fn coordination(
    doors: &SimDoors,
    manager: &Rc<Manager>,
) -> Box<dyn Fn(MountingInformation, Rc<Flag>) -> LocalBoxFuture<'static, bool>> {
    let (doors, manager) = (doors.clone(), Rc::clone(manager));
    Box::new(move |info, stop| {
        let door = Door::new(&doors, &manager, &info);
        let doors = doors.clone();
        Box::pin(async move {
            let (hear, heard) = mpsc::unbounded();
            let reason = "the path is being opened".to_owned();
            door.update(&PathStatus { path: PathState::Lost, reason, ..PathStatus::default() });
            door.start(&hear);
            drop(hear);
            let boot = doors.machine().boot.get();
            coordinate(doors, door, info, boot, heard, &stop).await
        })
    })
}
