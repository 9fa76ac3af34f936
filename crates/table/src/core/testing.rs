//! A pool for tests: the manager, and fake servers that poll, carry out orders and keep a model of their labels.

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::access::{AuditLine, Caller, Proof};
use sublet_api::mount::MountingInformation;
use sublet_api::order::{NumberedOrder, Order, OrderResult, Outcome, SliceFacts};
use sublet_api::request::{Request, Response, TaskAnswer, TaskOutcome};
use sublet_api::server::{AreaReport, LeaseReport, Poll, Register, SliceReport, Tombstone};
use sublet_api::view::TableView;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::REGION_SIZE;
use sublet_types::{AreaId, Epoch, Name, OpenId, PoolId, ServerId, SliceId, TaskId, VolumeId};

pub use self::requests::*;
use super::{Action, Core, Event, Outside};
use crate::store::MemoryStore;

pub mod coordinator;
mod requests;
mod seen;

pub const R: u64 = REGION_SIZE;

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn task(n: u128) -> TaskId {
    TaskId::from_u128(n)
}

mod digest;

/// A slice as a fake label has it.
#[derive(Clone)]
pub struct FakeSlice {
    pub facts: SliceFacts,
    pub epoch: Epoch,
    pub admitted: bool,
    pub borrower: Option<ServerId>,
    pub lease: Option<LeaseReport>,
}

#[derive(Clone)]
pub struct FakeArea {
    pub name: Name,
    pub capacity: u64,
    pub offline: Option<String>,
    pub slices: BTreeMap<SliceId, FakeSlice>,
    /// Its disk refuses every write.
    pub broken: bool,
    /// Regions with a borrower's bytes in them.
    pub dirty: BTreeSet<u64>,
    pub tombstones: Vec<Tombstone>,
    pub quarantined: Option<String>,
    /// This opening, and those before it (L2).
    pub openings: Vec<OpenId>,
    pub sequence: u64,
}

#[derive(Clone)]
pub struct FakeServer {
    pub id: ServerId,
    pub name: Name,
    pub zone: String,
    pub run: u64,
    pub registered: bool,
    /// Its process runs and reaches the manager.
    pub alive: bool,
    /// It polls, but answers no order (its disk is stuck).
    pub stuck: bool,
    pub conn: Option<u64>,
    pub results: Vec<OrderResult>,
    pub tell_areas: bool,
    /// Not even then.
    pub tells_nothing: bool,
    pub areas: BTreeMap<AreaId, FakeArea>,
    /// Orders carried out, for tests that care about their order.
    pub log: Vec<Order>,
    pub member: bool,
    /// The volumes that it coordinates (F5).
    pub coordinates: BTreeMap<VolumeId, coordinator::Coordination>,
    /// It refuses to.
    pub coordinates_nothing: bool,
    /// It takes such work, and never gets anything done.
    pub is_lazy: bool,
    /// The pool that it has joined.
    pub pool: Option<PoolId>,
}

impl FakeServer {
    fn execute(&mut self, order: &Order) -> Result<(), Refusal> {
        self.log.push(order.clone());
        let no_slice = || Refusal::new(ErrorKind::NotFound, "no such slice in the label");
        let Some(area_id) = crate::plan::order_area(order) else { return self.execute_here(order) };
        if matches!(order, Order::ReleaseArea { .. }) {
            if self.areas.get(&area_id).is_some_and(|area| !area.slices.is_empty()) {
                return Err(Refusal::new(ErrorKind::Conflict, "slices are left"));
            }
            self.areas.remove(&area_id);
            self.tell_areas = true;
            return Ok(());
        }
        let area = self.areas.get_mut(&area_id).ok_or_else(|| Refusal::new(ErrorKind::NotFound, "no such area"))?;
        if let Some(reason) = &area.offline {
            return Err(Refusal::new(ErrorKind::Io, reason.clone()));
        }
        if area.broken {
            return Err(Refusal::new(ErrorKind::Io, "the disk has failed"));
        }
        match order {
            Order::PrepareSlice { slice } => {
                if let Some(known) = area.slices.get_mut(&slice.slice) {
                    known.facts = slice.clone();
                    return Ok(());
                }
                let overlaps = |other: &FakeSlice| {
                    other.facts.offset < slice.offset + slice.length && slice.offset < other.facts.offset + other.facts.length
                };
                if area.slices.values().any(overlaps) || slice.offset + slice.length > area.capacity {
                    return Err(Refusal::new(ErrorKind::Conflict, "it overlaps another slice (L5)"));
                }
                let regions = slice.offset / R..(slice.offset + slice.length) / R;
                assert!(area.dirty.range(regions).next().is_none(), "a new slice would show a former borrower's bytes (P2)");
                let row =
                    FakeSlice { facts: slice.clone(), epoch: Epoch::default(), admitted: false, borrower: None, lease: None };
                area.slices.insert(slice.slice, row);
            }
            Order::OpenLease { slice, lease, facts, .. } => {
                let row = area.slices.get_mut(slice).ok_or_else(no_slice)?;
                if lease.epoch.number < row.epoch.number || lease.epoch.is_split_from(row.epoch) {
                    return Err(Refusal::new(ErrorKind::StaleEpoch, format!("the label has epoch {}", row.epoch)));
                }
                assert_eq!((facts.offset, facts.length), (row.facts.offset, row.facts.length));
                if facts.in_sync[facts.leg as usize] && facts.generation.number < row.facts.generation.number {
                    return Err(Refusal::new(ErrorKind::Conflict, "the table is behind (L5)"));
                }
                *row = FakeSlice {
                    facts: facts.clone(),
                    epoch: lease.epoch,
                    admitted: true,
                    borrower: Some(lease.borrower),
                    lease: Some(LeaseReport { borrower: lease.borrower, read_only: lease.read_only, secret: Some(lease.secret) }),
                };
                area.dirty.extend(facts.offset / R..(facts.offset + facts.length) / R);
            }
            Order::Fence { slice, epoch, .. } => {
                let row = area.slices.get_mut(slice).ok_or_else(no_slice)?;
                if epoch.number >= row.epoch.number {
                    row.epoch = *epoch;
                    row.admitted = false;
                }
            }
            Order::WipeSlice { slice, epoch, drop, .. } => {
                let Some(row) = area.slices.get_mut(slice) else { return Ok(()) };
                assert!(row.epoch.number <= epoch.number);
                for region in row.facts.offset / R..(row.facts.offset + row.facts.length) / R {
                    area.dirty.remove(&region);
                }
                *row = FakeSlice { epoch: *epoch, admitted: false, borrower: None, ..row.clone() };
                if *drop {
                    area.slices.remove(slice);
                }
            }
            // As real servers do: areas are reported when they change, slices are not.
            Order::RenameArea { name, .. } => {
                area.name = name.clone();
                self.tell_areas = true;
            }
            Order::ReleaseArea { .. } | Order::Coordinate { .. } | Order::StopCoordinating { .. } => unreachable!(),
            Order::SetQuarantine { reason, .. } => area.quarantined.clone_from(reason),
            Order::PutTombstones { tombstones, .. } => {
                let fresh: Vec<_> = tombstones.iter().filter(|row| !area.tombstones.contains(row)).cloned().collect();
                area.tombstones.extend(fresh);
            }
            Order::DropTombstones { slices, .. } => area.tombstones.retain(|row| !slices.contains(&row.slice)),
        }
        Ok(())
    }

    fn reports(&self, pool: PoolId) -> Vec<AreaReport> {
        let slice = |row: &FakeSlice| SliceReport {
            facts: row.facts.clone(),
            epoch: row.epoch,
            admitted: row.admitted,
            wiping: false,
            drop: false,
            lease: row.lease.clone(),
            open: false,
            unclean: false,
            missed_since: Vec::new(),
            hot: 0,
        };
        let report = |(id, area): (&AreaId, &FakeArea)| AreaReport {
            area: *id,
            pool,
            name: area.name.clone(),
            capacity: area.capacity,
            place: "file".to_owned(),
            sparse: false,
            offline: area.offline.clone(),
            open: area.openings.last().copied(),
            sequence: area.sequence,
            // As real servers do: of what is not open nothing is known.
            slices: area.slices.values().filter(|_| area.offline.is_none()).map(slice).collect(),
            history: area.openings.iter().rev().skip(1).copied().collect(),
            quarantined: area.quarantined.clone(),
            failures: 0,
            tombstones: area.tombstones.iter().filter(|_| area.offline.is_none()).cloned().collect(),
        };
        self.areas.iter().map(report).collect()
    }
}

/// See the module.
pub struct Pool {
    pub store: MemoryStore,
    pub core: Core<MemoryStore>,
    pub now_ms: u64,
    random: u128,
    next_conn: u64,
    pub servers: Vec<FakeServer>,
    pub replies: BTreeMap<u64, Response>,
    /// Kill the manager after so many more events.
    pub crash_after: Option<usize>,
    pub crashes: usize,
    /// Who asks what tests ask.
    pub caller: Caller,
    pub audit: Vec<AuditLine>,
}

fn load(store: &MemoryStore, now_ms: u64, random: &mut u128) -> Core<MemoryStore> {
    let mut draw = || draw(random);
    let mut outside = Outside { now_ms, random: &mut draw };
    Core::load(store.clone(), &mut outside, vec!["http://manager:7470".to_owned()]).unwrap()
}

fn draw(state: &mut u128) -> u128 {
    *state =
        state.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(0x5851_f42d_4c95_7f2d_1405_7b7e_f767_814f);
    *state ^ (*state >> 64)
}

impl Pool {
    /// A pool of servers `server-a`, ... with one area `a1`, ... of so many regions each.
    pub fn new(regions: &[u64]) -> Self {
        let store = MemoryStore::new();
        let mut random = 42;
        let core = load(&store, 1_000_000, &mut random);
        let mut pool = Self {
            store,
            core,
            now_ms: 1_000_000,
            random,
            next_conn: 0,
            servers: Vec::new(),
            replies: BTreeMap::new(),
            crash_after: None,
            crashes: 0,
            caller: Caller::Manager,
            audit: Vec::new(),
        };
        for (index, regions) in regions.iter().enumerate() {
            let letter = char::from(b'a' + u8::try_from(index).unwrap());
            let area = FakeArea {
                name: name(&format!("{letter}1")),
                capacity: regions * R,
                offline: None,
                broken: false,
                slices: BTreeMap::new(),
                dirty: BTreeSet::new(),
                tombstones: Vec::new(),
                quarantined: None,
                openings: Vec::new(),
                sequence: 1,
            };
            let areas =
                if *regions > 0 { BTreeMap::from([(AreaId::from_u128(index as u128 + 1), area)]) } else { BTreeMap::new() };
            pool.servers.push(FakeServer {
                id: ServerId::from_u128(index as u128 + 1),
                name: name(&format!("server-{letter}")),
                zone: String::new(),
                run: 1,
                registered: false,
                alive: true,
                stuck: false,
                conn: None,
                results: Vec::new(),
                tell_areas: true,
                tells_nothing: false,
                areas,
                log: Vec::new(),
                member: true,
                coordinates: BTreeMap::new(),
                coordinates_nothing: false,
                is_lazy: false,
                pool: None,
            });
        }
        pool.settle();
        pool
    }

    pub fn apply(&mut self, event: Event) {
        let mut random = self.random;
        let mut next = || draw(&mut random);
        let actions = self.core.apply(&mut Outside { now_ms: self.now_ms, random: &mut next }, event);
        self.random = random;
        let is_last = self.crash_after.as_mut().is_some_and(|left| {
            *left -= 1;
            *left == 0
        });
        // Killed between two commits: no later one came.
        if is_last || self.store.is_spent() {
            self.crash_after = None;
            self.store.set_commits_left(None);
            self.crashes += 1;
            // What was to be answered never left.
            self.restart_manager();
            return;
        }
        for action in actions {
            match action {
                Action::Reply { conn, response } => {
                    let previous = self.replies.insert(conn, response);
                    assert!(previous.is_none(), "two answers to one request");
                }
                Action::Audit { line, .. } => self.audit.push(line),
            }
        }
    }

    /// `kill -9` and a new start.
    pub fn restart_manager(&mut self) {
        self.core = load(&self.store, self.now_ms, &mut self.random);
        for server in &mut self.servers {
            server.conn = None;
            server.coordinates.values_mut().for_each(|coordination| coordination.conn = None);
        }
    }

    /// The manager's disk is lost: a new, empty manager has its address.
    pub fn lose_table(&mut self) {
        self.store = MemoryStore::new();
        self.restart_manager();
        for server in &mut self.servers {
            server.registered = false;
            server.results.clear();
        }
        self.settle();
    }

    /// A copy of the table as it is.
    pub fn backup(&self) -> crate::store::Loaded {
        crate::Store::load(&mut self.store.clone()).unwrap()
    }

    /// The manager is started on an older copy of its table.
    pub fn restore(&mut self, backup: &crate::store::Loaded) {
        self.store = MemoryStore::new();
        let ops: Vec<_> = backup.rows.iter().cloned().map(crate::store::RowOp::Put).collect();
        crate::Store::commit(&mut self.store, 0, &ops).unwrap();
        self.restart_manager();
    }

    pub fn send(&mut self, request: Request) -> u64 {
        self.next_conn += 1;
        let conn = self.next_conn;
        self.apply(Event::Request { conn, caller: self.caller.clone(), request });
        conn
    }

    pub fn server(&mut self, index: usize) -> &mut FakeServer {
        &mut self.servers[index]
    }

    /// Lets the servers poll until nothing more happens.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            let mut busy = false;
            for index in 0..self.servers.len() {
                busy |= self.serve(index);
                busy |= self.coordinate(index);
            }
            if !busy {
                return;
            }
        }
        panic!("the pool does not come to rest");
    }

    fn serve(&mut self, index: usize) -> bool {
        let server = &mut self.servers[index];
        if !server.alive || !server.member {
            return false;
        }
        if let Some(conn) = server.conn {
            let Some(response) = self.replies.remove(&conn) else { return false };
            server.conn = None;
            match response {
                Response::Registered(registered) => {
                    server.pool = Some(registered.pool);
                    server.name = registered.name;
                    server.registered = true;
                    server.tell_areas = true;
                }
                Response::Poll(answer) => {
                    server.registered = !answer.register;
                    server.member = answer.member;
                    let is_stuck = server.stuck;
                    for NumberedOrder { number, run, order } in answer.orders.into_iter().filter(|_| !is_stuck) {
                        if let Order::StopCoordinating { volume, epoch, .. } = &order {
                            self.stop_coordinating(index, *volume, *epoch);
                        }
                        let server = &mut self.servers[index];
                        let outcome = match server.execute(&order) {
                            Ok(()) => Outcome::Done,
                            Err(refusal) => {
                                // As real servers do.
                                server.tell_areas = !server.tells_nothing;
                                Outcome::Failed { refusal }
                            }
                        };
                        server.results.push(OrderResult { number, run, outcome });
                    }
                }
                // Another pool's manager: it is asked again at the next occasion.
                Response::Refused(_) if server.pool.is_some() => return false,
                other => panic!("{other:?}"),
            }
            return true;
        }
        let (id, run) = (server.id, server.run);
        let request = if server.registered {
            let areas = std::mem::take(&mut server.tell_areas).then(|| server.reports(server.pool.unwrap()));
            Request::Poll { server: id, poll: Poll { run, results: std::mem::take(&mut server.results), areas } }
        } else {
            let (name, zone) = (server.name.clone(), server.zone.clone());
            let addresses = vec![format!("10.0.0.{}:7471", index + 1).parse().unwrap()];
            let pool = server.pool;
            Request::Register(Register { server: id, pool, name, zone, addresses, version: "0.1.0".to_owned(), run })
        };
        self.next_conn += 1;
        let conn = self.next_conn;
        self.servers[index].conn = Some(conn);
        let before = self.crashes;
        let proof = Proof { issued_ms: self.now_ms, expires_ms: u64::MAX };
        self.apply(Event::Request { conn, caller: Caller::Server { server: id, proof }, request });
        if self.crashes > before {
            self.servers[index].conn = None;
        }
        true
    }

    /// Lets time pass, event by event.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        self.settle();
        while let Some(wake) = self.core.next_wake_ms().filter(|wake| *wake <= end) {
            self.now_ms = wake;
            self.apply(Event::Tick);
            self.settle();
        }
        self.now_ms = end;
        self.apply(Event::Tick);
        self.settle();
    }

    /// `kill -9` of a server.
    pub fn kill(&mut self, index: usize) {
        self.drop_coordinations(index);
        let server = &mut self.servers[index];
        server.alive = false;
        server.registered = false;
        server.results.clear();
        if let Some(conn) = server.conn.take() {
            self.apply(Event::Gone { conn });
            self.replies.remove(&conn);
        }
    }

    pub fn revive(&mut self, index: usize) {
        let server = &mut self.servers[index];
        server.alive = true;
        server.run += 1;
        server.log.clear();
        self.settle();
    }

    /// Continues a server's process that was stopped (`alive` was false, and nothing else of it had changed).
    pub fn go_on(&mut self, index: usize) {
        let server = &mut self.servers[index];
        server.alive = true;
        server.log.clear();
        self.settle();
    }

    /// The answer to a server's present request does not arrive: it sees a broken connection and registers again.
    pub fn lose_answer(&mut self, index: usize) {
        let server = &mut self.servers[index];
        server.registered = false;
        if let Some(conn) = server.conn.take()
            && self.replies.remove(&conn).is_none()
        {
            self.apply(Event::Gone { conn });
        }
        self.settle();
    }

    /// Kills a server and waits until the manager has noticed.
    pub fn lose(&mut self, index: usize) {
        self.kill(index);
        self.pass(13_000);
    }

    /// Sends a request and repeats it until it is answered for good.
    pub fn ask(&mut self, request: Request) -> Response {
        for _ in 0..40 {
            let crashes = self.crashes;
            let conn = self.send(request.clone());
            self.settle();
            for _ in 0..30 {
                if self.replies.contains_key(&conn) || self.crashes > crashes {
                    break;
                }
                self.pass(1000);
            }
            match self.replies.remove(&conn) {
                Some(Response::Task(answer)) if answer.outcome == TaskOutcome::Running => {}
                Some(response) => return response,
                // The manager was killed meanwhile: its caller repeats.
                None => assert!(self.crashes > crashes, "no answer to {request:?}"),
            }
        }
        panic!("{request:?} does not end");
    }

    pub fn refused(&mut self, request: Request) -> Refusal {
        match self.ask(request) {
            Response::Refused(refusal) => refusal,
            Response::Task(answer) => match answer.outcome {
                TaskOutcome::Failed { refusal } => refusal,
                other => panic!("not refused: {other:?}"),
            },
            other => panic!("not refused: {other:?}"),
        }
    }

    pub fn done(&mut self, request: Request) -> TaskAnswer {
        match self.ask(request) {
            Response::Task(answer) => match answer.outcome {
                TaskOutcome::Failed { refusal } => panic!("failed: {refusal}"),
                _ => *answer,
            },
            other => panic!("{other:?}"),
        }
    }

    pub fn mounted(&mut self, request: Request) -> MountingInformation {
        match self.done(request).outcome {
            TaskOutcome::Mounted { mounting } => *mounting,
            other => panic!("{other:?}"),
        }
    }

    pub fn id(&self, server: usize) -> ServerId {
        self.servers[server].id
    }

    pub fn table(&mut self) -> TableView {
        match self.ask(Request::Table { after: None, wait_ms: 0 }) {
            Response::Table(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    pub fn volume_id(&self, text: &str) -> VolumeId {
        self.core.table().volume(text).unwrap().id
    }
}
