//! A lender coordinates a volume that is not mounted (F5), with a manager that is a few lines here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_channel::mpsc::{UnboundedSender, unbounded};
use sublet_api::Refusal;
use sublet_api::mount::{MountLeg, MountSegment, MountingInformation};
use sublet_api::order::{Lease, Order, Outcome, SliceFacts};
use sublet_api::request::{ChangeLeg, ClientAnswer, LegAnswer, LegChange, LenderAddresses};
use sublet_coordinator::{Heard, Reports, coordinate};
use sublet_doors::real::RealDoors;
use sublet_doors::{Clock as _, Doors as _};
use sublet_types::size::MIB;
use sublet_types::{AreaId, Generation, LeaseSecret, ManagerId, PoolId, ServerId, SliceId, VolumeId, Way};
use sublet_volume::{ManagerDoor, PathStatus};
use sublet_wire::Status;
use sublet_wire::message::Open;

use super::{BORROWER, Lender, SEGMENT, epoch, pattern, run};

const SECRET: LeaseSecret = LeaseSecret::from_u128(0x5ec);
const PATIENCE: Duration = Duration::from_secs(20);

const fn server(leg: u32) -> ServerId {
    ServerId::from_u128(0x100 + leg as u128)
}

const fn area(leg: u32) -> AreaId {
    AreaId::from_u128(0xa0 + leg as u128)
}

const fn slice(leg: u32) -> SliceId {
    SliceId::from_u128(0x50 + leg as u128)
}

/// What the manager knows of the one segment.
#[derive(Clone)]
struct Table {
    generation: Rc<Cell<Generation>>,
    in_sync: Rc<RefCell<Vec<bool>>>,
    left: Rc<Cell<bool>>,
    work: Rc<Cell<usize>>,
}

impl ManagerDoor for Table {
    async fn change_leg(&self, _volume: VolumeId, change: ChangeLeg) -> Result<LegAnswer, Refusal> {
        let next = self.generation.get().next(77);
        match change.change {
            LegChange::Returning => {}
            LegChange::InSync => {
                self.generation.set(next);
                self.in_sync.borrow_mut()[1] = true;
            }
            other => panic!("nobody leaves here: {other:?}"),
        }
        Ok(LegAnswer { generation: next, in_sync: self.in_sync.borrow().clone() })
    }

    async fn lenders(&self, _volume: VolumeId) -> Result<Vec<LenderAddresses>, Refusal> {
        Ok(Vec::new())
    }
}

impl Reports for Table {
    fn update(&self, status: &PathStatus) {
        self.work.set(self.work.get() + status.work.len());
    }
    fn took_segments(&self, _revision: u64) {}
    fn close(&self) {}
    async fn leave(&self, _clean: bool) {
        self.left.set(true);
    }
}

/// Two lenders; leg 0 of a doubled volume is in sync, leg 1 is stale, nobody has it mounted, and lender 0 may coordinate it.
struct Pool {
    lenders: Vec<Lender>,
    table: Table,
    answers: Rc<RefCell<Option<UnboundedSender<Heard>>>>,
}

fn facts(leg: u32) -> SliceFacts {
    SliceFacts {
        slice: slice(leg),
        area: area(leg),
        leg,
        legs: 2,
        way: Way::Doubled,
        in_sync: vec![true, false],
        ..super::facts()
    }
}

fn lease(number: u64, borrower: ServerId) -> Lease {
    Lease { epoch: epoch(number), borrower, secret: SECRET, read_only: false }
}

impl Pool {
    async fn start(real: &RealDoors) -> Self {
        let mut lenders = Vec::new();
        for leg in 0..2 {
            let lender = Lender::of(real.clone(), server(leg), area(leg)).await;
            lender.order(Order::PrepareSlice { slice: facts(leg) }).await;
            lenders.push(lender);
        }
        let table = Table {
            generation: Rc::new(Cell::new(facts(0).generation)),
            in_sync: Rc::new(RefCell::new(vec![true, false])),
            left: Rc::default(),
            work: Rc::default(),
        };
        let answers = Rc::new(RefCell::new(None));
        let (doors, own, hear) = (real.clone(), table.clone(), Rc::clone(&answers));
        lenders[0].agent.set_coordinate(Box::new(move |info, stop| {
            let (sender, heard) = unbounded();
            hear.replace(Some(sender));
            let (doors, own) = (doors.clone(), own.clone());
            Box::pin(async move { coordinate(doors, own, info, 1, heard, &stop).await })
        }));
        Self { lenders, table, answers }
    }

    async fn open_leases(&self, number: u64, borrower: ServerId) {
        for (leg, lender) in (0..).zip(&self.lenders) {
            let (generation, in_sync) = (self.table.generation.get(), self.table.in_sync.borrow().clone());
            let facts = SliceFacts { generation, in_sync, ..facts(leg) };
            let order = Order::OpenLease { slice: slice(leg), area: area(leg), lease: lease(number, borrower), facts };
            lender.order(order).await;
        }
    }

    fn mounting(&self, number: u64) -> MountingInformation {
        let leg = |leg: u32| {
            let address = self.lenders[leg as usize].address.clone();
            serde_json::from_value::<MountLeg>(serde_json::json!({
                "slice": slice(leg), "area": area(leg), "area_name": "a1", "server": server(leg), "server_name": "s1",
                "addresses": [address], "offset": 4 * MIB, "in_sync": leg == 0,
            }))
            .unwrap()
        };
        MountingInformation {
            version: 1,
            pool: PoolId::from_u128(1),
            manager: ManagerId::from_u128(2),
            volume: facts(0).volume,
            name: facts(0).volume_name,
            way: Way::Doubled,
            size: SEGMENT,
            sealed: false,
            seal: None,
            borrower: server(0),
            borrower_name: "server-a".parse().unwrap(),
            status: 0,
            read_only: false,
            epoch: epoch(number),
            secret: Some(SECRET),
            segments: vec![MountSegment { length: SEGMENT, generation: facts(0).generation, legs: vec![leg(0), leg(1)] }],
        }
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let doors = &self.lenders[0].doors;
        let wait = async {
            while !holds() {
                doors.sleep(Duration::from_millis(5)).await;
            }
        };
        doors.timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
    }

    async fn coordinate(&self, number: u64) {
        self.open_leases(number, server(0)).await;
        self.lenders[0].order(Order::Coordinate { mounting: Box::new(self.mounting(number)) }).await;
    }

    fn stop(number: u64) -> Order {
        Order::StopCoordinating { volume: facts(0).volume, epoch: epoch(number), server: server(0) }
    }

    /// Whether the label says that an epoch was not closed cleanly.
    fn is_unclean(&self, leg: usize) -> bool {
        let served = self.lenders[leg].agent.served(area(leg as u32)).unwrap_or_else(|_| panic!("the area is served"));
        served.area.report("").slices[0].unclean
    }
}

/// What a client writes to leg 0 alone, as a mount does whose other copy is away.
async fn write_to_the_survivor(pool: &Pool, bytes: &[u8]) {
    pool.open_leases(1, BORROWER).await;
    let open = Open { area: area(0), slice: slice(0), way: Way::Doubled, secret: SECRET, ..super::open(1, 1) };
    let (mut peer, _) = pool.lenders[0].session(open).await.unwrap();
    assert_eq!(peer.write(MIB, bytes).await, Status::Ok);
    let close = sublet_wire::message::Message::encode(&sublet_wire::message::Close { clean: true });
    assert_eq!(peer.ask(sublet_wire::Op::Close, 0, 0, &close).await.0.status, Status::Ok);
}

async fn bytes_of(pool: &Pool, leg: u32, length: usize) -> Vec<u8> {
    pool.lenders[leg as usize].bytes(area(leg), slice(leg), MIB, length).await
}

#[test]
fn f5_a_lender_brings_a_stale_leg_of_an_unmounted_volume_up_to_date_and_closes_in_good_order() {
    run(async |doors| {
        let pool = Pool::start(&doors).await;
        let bytes = pattern(5, MIB as usize);
        write_to_the_survivor(&pool, &bytes).await;
        pool.coordinate(2).await;
        // The order may come twice.
        pool.lenders[0].order(Order::Coordinate { mounting: Box::new(pool.mounting(2)) }).await;
        assert_eq!(pool.lenders[0].agent.coordinating(), 1);
        pool.until("the leg returns", || pool.table.in_sync.borrow()[1]).await;
        assert!(pool.table.work.get() > 0, "and how far it is was told");
        pool.lenders[0].order(Pool::stop(2)).await;
        assert!(pool.table.left.get(), "the manager is told of the end before the order is answered");
        assert_eq!(pool.lenders[0].agent.coordinating(), 0);
        pool.lenders[0].order(Pool::stop(2)).await;
        for leg in 0..2 {
            assert_eq!(bytes_of(&pool, leg, bytes.len()).await, bytes, "leg {leg}");
            assert!(!pool.is_unclean(leg as usize), "leg {leg}");
            assert_eq!(pool.lenders[leg as usize].agent.sessions(), 0);
        }
    });
}

#[test]
fn f5_a_mount_fences_the_coordinator_and_nothing_of_it_lands_afterwards() {
    run(async |doors| {
        let pool = Pool::start(&doors).await;
        write_to_the_survivor(&pool, &pattern(5, MIB as usize)).await;
        // The copying is held up at the target's disk.
        pool.lenders[1].doors.gate.close();
        pool.coordinate(2).await;
        pool.until("a copy is at the disk", || pool.lenders[1].doors.gate.waiting.get() > 0).await;
        let fenced = Rc::new(Cell::new(false));
        let (agent, flag) = (Rc::clone(&pool.lenders[1].agent), Rc::clone(&fenced));
        doors.spawn(async move {
            let order = Order::OpenLease { slice: slice(1), area: area(1), lease: lease(3, BORROWER), facts: facts(1) };
            assert_eq!(agent.execute(&order).await, Outcome::Done);
            flag.set(true);
        });
        doors.sleep(Duration::from_millis(200)).await;
        assert!(!fenced.get(), "the copy's write is still at the disk");
        pool.lenders[1].doors.gate.open();
        pool.until("the mount has fenced", || fenced.get()).await;
        let before = bytes_of(&pool, 1, 4 * MIB as usize).await;
        pool.until("one fenced leg ends it on all legs (F4)", || pool.lenders[0].agent.coordinating() == 0).await;
        assert!(!pool.table.in_sync.borrow()[1]);
        doors.sleep(Duration::from_millis(200)).await;
        assert_eq!(bytes_of(&pool, 1, 4 * MIB as usize).await, before);
        // A late order of the old epoch begins, and ends by itself: it reaches nobody.
        pool.lenders[0].order(Order::Coordinate { mounting: Box::new(pool.mounting(2)) }).await;
        pool.until("a fenced epoch ends at once", || pool.lenders[0].agent.coordinating() == 0).await;
    });
}

#[test]
fn f4_a_coordinator_that_hears_of_a_newer_epoch_from_the_manager_ends() {
    run(async |doors| {
        let pool = Pool::start(&doors).await;
        pool.coordinate(2).await;
        pool.until("it runs", || pool.answers.borrow().is_some()).await;
        pool.until("its path is open and the leg returns", || pool.table.in_sync.borrow()[1]).await;
        let sender = pool.answers.take().unwrap();
        let answer: ClientAnswer = serde_json::from_str(r#"{"lenders":[],"urls":[]}"#).unwrap();
        sender.unbounded_send(Heard::Answer(Box::new(answer))).unwrap();
        sender.unbounded_send(Heard::StaleEpoch("epoch 3 rules".into())).unwrap();
        pool.until("it ends", || pool.lenders[0].agent.coordinating() == 0).await;
        // No leg was told anything more, nor closed as if all were well: the next mount finds it open.
        pool.open_leases(3, BORROWER).await;
        let served = pool.lenders[0].agent.served(area(0)).unwrap_or_else(|_| panic!("the area is served"));
        assert!(served.area.mark_open(slice(0), lease(3, BORROWER).epoch).await.unwrap());
    });
}

#[test]
fn only_the_server_that_is_named_coordinates_and_a_stopping_one_closes_in_good_order() {
    run(async |doors| {
        let pool = Pool::start(&doors).await;
        pool.open_leases(2, server(0)).await;
        let order = Order::Coordinate { mounting: Box::new(pool.mounting(2)) };
        assert!(matches!(pool.lenders[1].agent.execute(&order).await, Outcome::Failed { .. }));
        pool.lenders[0].order(order.clone()).await;
        let older = Order::Coordinate { mounting: Box::new(pool.mounting(1)) };
        assert!(matches!(pool.lenders[0].agent.execute(&older).await, Outcome::Failed { .. }));
        pool.until("the leg returns", || pool.table.in_sync.borrow()[1]).await;
        pool.lenders[0].agent.drain().await;
        assert_eq!(pool.lenders[0].agent.coordinating(), 0);
        assert!(!pool.is_unclean(1), "the other lender was closed cleanly");
        assert!(matches!(pool.lenders[0].agent.execute(&order).await, Outcome::Failed { .. }));
    });
}
