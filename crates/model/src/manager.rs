//! The manager: the real plans. Its states are few, so each is kept once and named by a number, and what a plan answered is
//! remembered.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use sublet_api::order::{Order, SliceFacts};
use sublet_api::request::{ChangeLeg, LegChange, Mount, Unmount};
use sublet_api::server::SliceReport;
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_table::plan::rebuild::labels::{Seen, in_sync};
use sublet_table::plan::{self, Advance, Context, Standing, leg, mount, reconcile, unmount};
use sublet_table::records::{
    AreaRow, FrozenUntil, LeaseRow, LeaseState, LegRow, PathRow, ROW_VERSION, Row, SegmentRow, ServerRow, TaskRow, VolumeRow,
    WorkRow,
};
use sublet_table::{Change, Table};
use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, ServerId, SliceId, TaskId, VolumeId, Way};

use crate::world::LEGS;

const LENGTH: u64 = 4 << 20;
const VOLUME: VolumeId = VolumeId::from_u128(9);
const BORROWER: ServerId = ServerId::from_u128(7);
/// Long after every order was given: nobody waits for a stale leg's lender any more.
const NOW_MS: u64 = 1_000_000;

/// What a client asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Ask {
    pub(crate) epoch: u8,
    pub(crate) leg: u8,
    pub(crate) generation: u8,
    pub(crate) what: What,
}

/// As `LegChange`, which is no key of a map.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum What {
    Stale,
    Returning,
    InSync,
    Withdrawn,
}

/// How an order stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Stand {
    Waiting,
    Done,
    Unreachable,
}

/// What is asked of a lender.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Told {
    /// Open the lease; otherwise fence.
    pub(crate) open: bool,
    pub(crate) epoch: u8,
    pub(crate) generation: u8,
    pub(crate) in_sync: [bool; LEGS],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Event {
    Ask(Ask),
    /// The borrower mounts (again): its older epoch is fenced (F5).
    Mount,
    /// An unmount by force (F3).
    Unmount,
    /// The task looks at how its orders stand.
    Advance([Stand; LEGS]),
    /// A lender has carried an order out that no task waits for.
    Confirmed(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Answer {
    /// Nothing to be said.
    None,
    Done {
        generation: u8,
        in_sync: [bool; LEGS],
    },
    Refused,
    StaleEpoch,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Lease {
    None,
    Opening,
    Active,
    Closing,
}

/// What is to be seen of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct View {
    pub(crate) epoch: u8,
    pub(crate) lease: Lease,
    pub(crate) busy: bool,
    pub(crate) generation: u8,
    pub(crate) in_sync: [bool; LEGS],
    pub(crate) orders: [Option<Told>; LEGS],
}

/// See the module.
pub(crate) struct Manager(RefCell<Inner>);

struct Inner {
    base: Table,
    numbers: HashMap<String, u32>,
    rows: Vec<(VolumeRow, Option<TaskRow>)>,
    views: Vec<View>,
    known: HashMap<(u32, Event), (u32, Answer)>,
    rebuilt: HashMap<(Labels, bool), [bool; LEGS]>,
}

/// Generation and set of each leg's label.
pub(crate) type Labels = [(u8, [bool; LEGS]); LEGS];

/// What a lender reports of a leg with that label.
fn report(volume: &VolumeRow, leg: usize, number: u8, in_sync: [bool; LEGS]) -> Option<SliceReport> {
    let facts = plan::layout::facts(volume, 0, leg)?;
    Some(SliceReport {
        facts: SliceFacts { generation: generation(number), in_sync: in_sync.to_vec(), ..facts },
        epoch: volume.epoch,
        admitted: true,
        wiping: false,
        drop: false,
        lease: None,
        open: false,
        unclean: false,
        missed_since: Vec::new(),
        hot: 0,
    })
}

pub(crate) fn generation(number: u8) -> Generation {
    Generation { number: number.into(), random: number.into() }
}

fn epoch(number: u8) -> Epoch {
    Epoch { number: number.into(), random: number.into() }
}

fn small(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn flags(in_sync: &[bool]) -> [bool; LEGS] {
    std::array::from_fn(|leg| in_sync.get(leg).copied().unwrap_or(false))
}

fn server(number: u128, name: &str) -> Row {
    Row::Server(ServerRow {
        version: ROW_VERSION,
        id: ServerId::from_u128(number),
        name: name.parse().unwrap_or_else(|_| unreachable!("a good name")),
        zone: String::new(),
        addresses: Vec::new(),
        software: String::new(),
        left: false,
        bytes_max: None,
        volumes_max: None,
    })
}

fn area(leg: usize) -> Row {
    Row::Area(AreaRow {
        version: ROW_VERSION,
        id: AreaId::from_u128(leg as u128 + 1),
        server: ServerId::from_u128(leg as u128 + 1),
        name: format!("a{leg}").parse().unwrap_or_else(|_| unreachable!("a good name")),
        capacity: LENGTH,
        place: String::new(),
        sparse: false,
        offline: None,
        quarantined: None,
        accepted: None,
        open: None,
        sequence: 0,
        reclaiming: false,
        strangers: Vec::new(),
    })
}

/// A volume with one segment, mounted with epoch 1 at generation 1.
fn volume() -> VolumeRow {
    let legs = (0..LEGS).map(|leg| LegRow {
        slice: SliceId::from_u128(leg as u128 + 1),
        area: AreaId::from_u128(leg as u128 + 1),
        offset: 0,
        length: LENGTH,
        in_sync: true,
        confirmed: 1,
        fresh: false,
        stale_since: None,
    });
    let segment =
        SegmentRow { length: LENGTH, generation: generation(1), issued: 1, pending: None, last: None, legs: legs.collect() };
    let secret = LeaseSecret::from_u128(1);
    let lease = LeaseRow { epoch: epoch(1), secret, read_only: false, state: LeaseState::Active, was_mounted: false };
    VolumeRow {
        version: ROW_VERSION,
        id: VOLUME,
        name: "v".parse().unwrap_or_else(|_| unreachable!("a good name")),
        way: Way::Doubled,
        size: LENGTH,
        defined: true,
        sealed: false,
        seal: None,
        borrower: Some(BORROWER),
        epoch: epoch(1),
        lease: Some(lease),
        segments: vec![segment],
        task: None,
        frozen: None,
        frozen_until: FrozenUntil::default(),
        epoch_floor: 0,
        unsettled: false,
        absent: Vec::new(),
        copies: 0,
        path: PathRow { state: PathState::Idle, since_ms: 0, reason: String::new() },
        work: WorkRow::default(),
    }
}

impl Manager {
    pub(crate) fn new() -> Self {
        let mut base = Table::default();
        for row in [server(1, "lender1"), server(2, "lender2"), server(7, "borrower"), area(0), area(1)] {
            base.put(row);
        }
        let mut inner = Inner {
            base,
            numbers: HashMap::new(),
            rows: Vec::new(),
            views: Vec::new(),
            known: HashMap::new(),
            rebuilt: HashMap::new(),
        };
        inner.keep(volume(), None);
        Self(RefCell::new(inner))
    }

    pub(crate) fn view(&self, number: u32) -> View {
        self.0.borrow().views[number as usize]
    }

    /// Who is in sync by the labels alone, as a rebuild of the table finds it (R1).
    pub(crate) fn rebuilt(&self, labels: Labels, is_mounted: bool) -> [bool; LEGS] {
        if let Some(known) = self.0.borrow().rebuilt.get(&(labels, is_mounted)) {
            return *known;
        }
        let mut inner = self.0.borrow_mut();
        let reports: Vec<SliceReport> = inner.rows.first().map_or_else(Vec::new, |(volume, _)| {
            labels.iter().enumerate().filter_map(|(leg, (number, in_sync))| report(volume, leg, *number, *in_sync)).collect()
        });
        let seen = |(leg, slice): (usize, _)| {
            let number = leg as u128 + 1;
            (
                leg as u32,
                Seen {
                    server: ServerId::from_u128(number),
                    area: AreaId::from_u128(number),
                    slice,
                    trusted: true,
                    given_up: false,
                },
            )
        };
        let set = in_sync(&reports.iter().enumerate().map(seen).collect(), is_mounted);
        let found = set.map_or([false; LEGS], |set| std::array::from_fn(|leg| set.in_sync.contains(&(leg as u32))));
        inner.rebuilt.insert((labels, is_mounted), found);
        found
    }

    /// Lets something happen; answers with the next state.
    pub(crate) fn handle(&self, number: u32, event: Event) -> (u32, Answer) {
        let mut inner = self.0.borrow_mut();
        if let Some(known) = inner.known.get(&(number, event)) {
            return *known;
        }
        let (row, task) = inner.rows[number as usize].clone();
        let (change, answer) = inner.plan(&row, task.as_ref(), event);
        let (mut row, mut task) = (row, task);
        for put in change.puts {
            match put {
                Row::Volume(volume) => row = *volume,
                Row::Task(next) => task = Some(*next),
                _ => {}
            }
        }
        let task = task.filter(TaskRow::is_running);
        let result = (inner.keep(row, task), answer);
        inner.known.insert((number, event), result);
        result
    }
}

impl Inner {
    fn table(&self, volume: &VolumeRow, task: Option<&TaskRow>) -> Table {
        let mut table = self.base.clone();
        table.put(Row::Volume(Box::new(volume.clone())));
        task.into_iter().for_each(|task| table.put(Row::Task(Box::new(task.clone()))));
        table
    }

    fn keep(&mut self, volume: VolumeRow, task: Option<TaskRow>) -> u32 {
        let key = serde_json::to_string(&(&volume, &task)).unwrap_or_default();
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        let number = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        self.numbers.insert(key, number);
        let orders = self.orders(&volume, task.as_ref());
        let segment = &volume.segments[0];
        self.views.push(View {
            epoch: small(volume.epoch.number),
            lease: match volume.lease.as_ref().map(|lease| lease.state) {
                None => Lease::None,
                Some(LeaseState::Opening) => Lease::Opening,
                Some(LeaseState::Active) => Lease::Active,
                Some(LeaseState::Closing) => Lease::Closing,
            },
            busy: task.is_some(),
            generation: small(segment.generation.number),
            in_sync: flags(&segment.in_sync()),
            orders: std::array::from_fn(|leg| orders[leg].as_ref().map(|order| told(order, segment))),
        });
        self.rows.push((volume, task));
        number
    }

    /// What each lender is to be told now.
    fn orders(&self, volume: &VolumeRow, task: Option<&TaskRow>) -> [Option<Order>; LEGS] {
        let table = self.table(volume, task);
        let orders = match task {
            Some(task) => plan::orders(&table, task),
            None => (0..LEGS as u128)
                .flat_map(|leg| reconcile::wanted(&table, ServerId::from_u128(leg + 1), &BTreeMap::new()))
                .collect(),
        };
        let of = |leg: usize| orders.iter().find(|o| plan::order_slice(o) == Some(SliceId::from_u128(leg as u128 + 1)));
        std::array::from_fn(|leg| of(leg).cloned())
    }

    fn plan(&self, volume: &VolumeRow, task: Option<&TaskRow>, event: Event) -> (Change, Answer) {
        let table = self.table(volume, task);
        // Unique per number: numbers are issued once.
        let number = volume.segments[0].issued + 1;
        let mut random = || u128::from(number);
        let reachable = BTreeSet::new();
        let mut context = Context { now_ms: NOW_MS, random: &mut random, reachable: &reachable };
        let done = |planned: Result<Change, Refusal>| match planned {
            Ok(change) => (change, Answer::None),
            Err(_) => (Change::new(), Answer::Refused),
        };
        match event {
            Event::Ask(ask) => {
                let change = match ask.what {
                    What::Stale => LegChange::Stale,
                    What::Returning => LegChange::Returning,
                    What::InSync => LegChange::InSync,
                    What::Withdrawn => LegChange::Withdrawn,
                };
                let slice = SliceId::from_u128(u128::from(ask.leg) + 1);
                let lease = volume.lease.as_ref().map(|lease| lease.epoch).filter(|e| e.number == u64::from(ask.epoch));
                let epoch = lease.unwrap_or(epoch(ask.epoch));
                let known = [volume.segments[0].generation, generation(ask.generation)];
                let generation = known.into_iter().find(|g| g.number == u64::from(ask.generation)).unwrap_or_default();
                match leg::plan(&table, VOLUME, &ChangeLeg { epoch, segment: 0, slice, generation, change }, &mut context) {
                    Ok((change, answer)) => {
                        let generation = small(answer.generation.number);
                        (change, Answer::Done { generation, in_sync: flags(&answer.in_sync) })
                    }
                    Err(refusal) if refusal.kind == ErrorKind::StaleEpoch => (Change::new(), Answer::StaleEpoch),
                    Err(_) => (Change::new(), Answer::Refused),
                }
            }
            Event::Mount => {
                let task = TaskId::from_u128(u128::from(volume.epoch.number) + 1);
                done(mount::plan(&table, "v", &Mount { task, server: BORROWER, read_only: false }, &mut context))
            }
            Event::Unmount => {
                let task = TaskId::from_u128(u128::from(volume.epoch.number) + 1);
                let command = Unmount { task, server: None, epoch: None, force: true };
                done(unmount::plan(&table, "v", &command, &mut context))
            }
            Event::Advance(stands) => {
                let Some(task) = task else { return (Change::new(), Answer::None) };
                let orders = self.orders(volume, Some(task));
                let standing = |stand: Stand| match stand {
                    Stand::Waiting => Standing::Waiting { since_ms: 0, progress: None },
                    Stand::Done => Standing::Done,
                    Stand::Unreachable => Standing::Unreachable("it does not answer".to_owned()),
                };
                let standings: Vec<(Order, Standing)> =
                    orders.into_iter().zip(stands).filter_map(|(order, stand)| Some((order?, standing(stand)))).collect();
                match plan::advance(&table, task, &standings, &mut context) {
                    Advance::Wait { .. } => (Change::new(), Answer::None),
                    Advance::Commit(change) => (change, Answer::None),
                }
            }
            Event::Confirmed(leg) => {
                let orders = self.orders(volume, task);
                let order = orders[usize::from(leg)].clone();
                (reconcile::confirmed(&table, order.as_slice()), Answer::None)
            }
        }
    }
}

fn told(order: &Order, segment: &SegmentRow) -> Told {
    let known = (segment.generation, segment.in_sync());
    let (open, epoch, (generation, in_sync)) = match order {
        Order::OpenLease { lease, facts, .. } => (true, lease.epoch, (facts.generation, facts.in_sync.clone())),
        Order::Fence { epoch, .. } => (false, *epoch, known),
        _ => unreachable!("a mounted volume's lenders are told leases and fences only"),
    };
    let (generation, in_sync) = if open { (small(generation.number), flags(&in_sync)) } else { (0, [false; LEGS]) };
    Told { open, epoch: small(epoch.number), generation, in_sync }
}
