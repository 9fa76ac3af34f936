//! MAP, SEED, CLEAR, COOL and VERIFY: who may ask for what.

use sublet_api::order::{Lease, Order, SliceFacts};
use sublet_types::limits::REGION_SIZE;
use sublet_types::{Generation, Way};
use sublet_wire::message::{BlockState, Clear, Cool, MapReply, MapRequest, MapWhich, Message, Open, OpenMode, Seed, VerifyReply};
use sublet_wire::{Op, Status};

use super::{AREA, Lender, Peer, SEGMENT, SLICE, lease, open, pattern, run};

/// The regions of the segment, the last one in part.
const REGIONS: u32 = 2;

fn facts() -> SliceFacts {
    SliceFacts { legs: 2, in_sync: vec![true, true], way: Way::Doubled, ..super::facts() }
}

fn seed(leg: u8, region: u32) -> Seed {
    Seed { leg, since: Generation { number: 2, random: 3 }, reset: true, entries: vec![(region, 5)] }
}

pub(super) async fn lent(doors: sublet_doors::real::RealDoors, read_only: bool) -> Lender {
    let lender = Lender::lent(doors).await;
    let lease = Lease { read_only, ..lease(2) };
    lender.order(Order::OpenLease { slice: SLICE, area: AREA, lease, facts: facts() }).await;
    lender
}

pub(super) fn doubled(mode: OpenMode, session: u64) -> Open {
    Open { way: Way::Doubled, mode, ..open(2, session) }
}

impl Peer {
    pub(super) async fn status(&mut self, op: Op, payload: &[u8]) -> Status {
        self.ask(op, 0, 0, payload).await.0.status
    }

    pub(super) async fn map(&mut self, which: MapWhich, offset: u64, length: u64) -> Result<MapReply, Status> {
        let (reply, payload) = self.ask(Op::Map, offset, length as u32, &MapRequest { which }.encode()).await;
        if reply.status == Status::Ok { Ok(MapReply::decode(&payload).unwrap()) } else { Err(reply.status) }
    }
}

#[test]
fn regions_and_legs_that_are_not_there_are_refused() {
    run(async |doors| {
        let lender = lent(doors, false).await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 1)).await.unwrap();
        let clear = |leg, region| Clear { leg, entries: vec![(region, 1)] }.encode();
        let cool = |region| Cool { regions: vec![region] }.encode();
        for (op, payload, status) in [
            (Op::Seed, seed(1, REGIONS - 1).encode(), Status::Ok),
            (Op::Seed, seed(1, REGIONS).encode(), Status::OutOfRange),
            (Op::Seed, seed(0, 0).encode(), Status::Disagreement),
            (Op::Seed, seed(2, 0).encode(), Status::Disagreement),
            (Op::Clear, clear(1, 0), Status::Ok),
            (Op::Clear, clear(1, u32::MAX), Status::OutOfRange),
            (Op::Clear, clear(0, 0), Status::Disagreement),
            (Op::Cool, cool(0), Status::Ok),
            (Op::Cool, cool(REGIONS), Status::OutOfRange),
            (Op::Copy, Vec::new(), Status::Unsupported),
        ] {
            assert_eq!(peer.status(op, &payload).await, status, "{op:?} {payload:?}");
        }
        let whole = u64::from(REGIONS) * REGION_SIZE;
        for (offset, length) in
            [(4096, REGION_SIZE), (0, REGION_SIZE + 4096), (0, 0), (0, whole + REGION_SIZE), (whole, REGION_SIZE)]
        {
            assert_eq!(peer.map(MapWhich::All, offset, length).await, Err(Status::OutOfRange), "{offset} {length}");
        }
        let map = peer.map(MapWhich::All, 0, whole).await.unwrap();
        assert_eq!((map.scanned, map.since), (REGIONS, None));
        assert_eq!(peer.ask(Op::Verify, 0, SEGMENT as u32, &[]).await.0.status, Status::TooMuch);
        assert_eq!(peer.ask(Op::Verify, 0, 100, &[]).await.0.status, Status::OutOfRange);
        // A payload that is none ends the session.
        assert_eq!(peer.status(Op::Cool, &[1, 2, 3]).await, Status::Malformed);
        assert!(peer.receive().await.is_none());
    });
}

#[test]
fn k1_verify_tells_the_checksums_that_the_client_made() {
    run(async |doors| {
        let lender = lent(doors, false).await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 1)).await.unwrap();
        let data = pattern(3, 5 * 4096);
        assert_eq!(peer.write(8192, &data).await, Status::Ok);
        let (reply, payload) = peer.ask(Op::Verify, 0, REGION_SIZE as u32, &[]).await;
        assert_eq!(reply.status, Status::Ok);
        let blocks = VerifyReply::decode(&payload).unwrap().blocks;
        assert_eq!(blocks.len(), 1024);
        for (at, block) in blocks.iter().enumerate() {
            assert_ne!(block.state, BlockState::Differs);
            let written = at.checked_sub(2).and_then(|at| data.chunks(4096).nth(at));
            let sum = sublet_wire::checksum::crc32c(written.unwrap_or(&[0; 4096]));
            assert_eq!(block.sum, sum, "block {at}");
        }
    });
}

#[test]
fn s4_a_stale_leg_tells_its_maps_and_checksums_and_takes_maps_over_but_is_never_read() {
    run(async |doors| {
        let lender = lent(doors, false).await;
        let (mut peer, _) = lender.session(doubled(OpenMode::Target, 1)).await.unwrap();
        assert_eq!(peer.write(0, &pattern(1, 8192)).await, Status::Ok);
        assert!(peer.map(MapWhich::All, 0, REGION_SIZE).await.is_ok());
        assert_eq!(peer.ask(Op::Verify, 0, 8192, &[]).await.0.status, Status::Ok);
        assert_eq!(peer.status(Op::Seed, &seed(1, 0).encode()).await, Status::Ok);
        assert_eq!(peer.status(Op::Cool, &Cool { regions: vec![0] }.encode()).await, Status::Ok);
        let clear = Clear { leg: 1, entries: vec![(0, 1)] };
        assert_eq!(peer.status(Op::Clear, &clear.encode()).await, Status::Disagreement);
        assert_eq!(peer.read(0, 4096).await, Err(Status::Disagreement));
        assert_eq!(peer.ask(Op::Extents, 0, 4096, &[]).await.0.status, Status::Ok);
    });
}

#[test]
fn a_read_only_lease_changes_no_maps() {
    run(async |doors| {
        let lender = lent(doors, true).await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 1)).await.unwrap();
        assert_eq!(peer.status(Op::Seed, &seed(1, 0).encode()).await, Status::ReadOnly);
        let clear = Clear { leg: 1, entries: vec![(0, 1)] };
        assert_eq!(peer.status(Op::Clear, &clear.encode()).await, Status::ReadOnly);
        assert_eq!(peer.status(Op::Cool, &Cool { regions: vec![0] }.encode()).await, Status::ReadOnly);
        assert!(peer.map(MapWhich::Leg(1), 0, REGION_SIZE).await.is_ok());
        assert_eq!(peer.ask(Op::Verify, 0, 8192, &[]).await.0.status, Status::Ok);
    });
}
