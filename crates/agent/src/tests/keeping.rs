//! What a lender keeps beside the bytes: hot marks (H), checksums (K2), maps of what stale legs miss (S3), over the protocol and
//! across restarts.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use sublet_doors::Clock as _;
use sublet_types::Generation;
use sublet_types::limits::{BLOCK_SIZE, MISSED_UNIT, REGION_SIZE};
use sublet_wire::checksum::{first_mismatch, table_size};
use sublet_wire::frame::READ_COMPUTED;
use sublet_wire::message::{
    BlockState, Clear, Close, Cool, MapEntry, MapReply, MapWhich, Message, OpenMode, Search, Seed, SetState, StaleMark,
    VerifyReply,
};
use sublet_wire::{Op, Status};

use super::regions::{doubled, lent};
use super::{Lender, Peer, open, pattern, run};

const WHOLE: u64 = 2 * REGION_SIZE;
const SINCE: Generation = Generation { number: 2, random: 3 };

impl Peer {
    async fn flush(&mut self) {
        assert_eq!(self.ask(Op::Flush, 0, 0, &[]).await.0.status, Status::Ok);
    }

    /// Regions that are hot, by their map.
    async fn hot(&mut self) -> Vec<u32> {
        let map = self.map(MapWhich::All, 0, WHOLE).await.unwrap();
        map.entries.iter().filter(|entry| entry.hot).map(|entry| entry.region).collect()
    }

    async fn leaves(&mut self, leg: u8, seeded: bool) {
        let stale = vec![StaleMark { leg, since: SINCE, seeded }];
        let state = SetState { generation: SINCE, in_sync: vec![true, false], equalised: false, stale };
        assert_eq!(self.status(Op::SetState, &state.encode()).await, Status::Ok);
    }

    async fn missed(&mut self) -> MapReply {
        self.map(MapWhich::Leg(1), 0, WHOLE).await.unwrap()
    }

    /// The states of the blocks of a range.
    async fn verified(&mut self, offset: u64, length: u32) -> Vec<BlockState> {
        let (reply, payload) = self.ask(Op::Verify, offset, length, &[]).await;
        assert_eq!(reply.status, Status::Ok);
        VerifyReply::decode(&payload).unwrap().blocks.iter().map(|block| block.state).collect()
    }
}

fn unit(map: &MapReply, offset: u64) -> bool {
    let region = (offset / REGION_SIZE) as u32;
    let bit = offset % REGION_SIZE / MISSED_UNIT;
    map.entries.iter().any(|entry| entry.region == region && entry.missed >> bit & 1 == 1)
}

/// Damages one byte of these blocks where they lie on the disk; they occur once.
fn rot(lender: &Lender, data: &[u8]) {
    let bytes = std::fs::read(lender.file()).unwrap();
    let at = memchr::memmem::find(&bytes, &data[..BLOCK_SIZE as usize]).expect("it lies on the disk");
    let file = std::fs::OpenOptions::new().write(true).open(lender.file()).unwrap();
    file.write_all_at(&[!data[100]], at as u64 + 100).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn h2_with_one_leg_a_region_cools_by_itself_and_then_the_server_is_idle() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, reply) = lender.session(open(1, 1)).await.unwrap();
        assert!(reply.hot_max > 0);
        assert_eq!(peer.write(0, &pattern(1, 8192)).await, Status::Ok);
        assert_eq!(peer.hot().await, [0]);
        peer.flush().await;
        let cools = async {
            while !peer.hot().await.is_empty() {
                lender.doors.sleep(Duration::from_millis(200)).await;
            }
        };
        lender.doors.timeout(Duration::from_secs(30), cools).await.expect("it cools");
        assert_eq!(peer.verified(0, 8192).await, [BlockState::Matches; 2]);
    });
}

#[test]
fn h2_with_two_legs_a_region_cools_on_the_sessions_order_only() {
    run(async |doors| {
        let lender = lent(doors, false).await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 1)).await.unwrap();
        assert_eq!(peer.write(REGION_SIZE - 4096, &pattern(1, 8192)).await, Status::Ok);
        peer.flush().await;
        assert_eq!(peer.hot().await, [0, 1]);
        assert_eq!(peer.status(Op::Cool, &Cool { regions: vec![1] }.encode()).await, Status::Ok);
        assert_eq!(peer.hot().await, [0]);
        // A clean end cools the rest.
        assert_eq!(peer.status(Op::Close, &Close { clean: true }.encode()).await, Status::Ok);
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 2)).await.unwrap();
        assert_eq!(peer.hot().await, Vec::<u32>::new());
    });
}

#[test]
fn h1_k2_after_a_crash_hot_regions_are_known_and_their_checksums_prove_nothing() {
    run(async |doors| {
        let lender = lent(doors, false).await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 1)).await.unwrap();
        assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok);
        assert_eq!(peer.write(REGION_SIZE, &pattern(2, 4096)).await, Status::Ok);
        peer.flush().await;
        assert_eq!(peer.status(Op::Cool, &Cool { regions: vec![1] }.encode()).await, Status::Ok);
        let result = |reply: &sublet_wire::ReplyFrame| reply.result;
        assert_eq!(result(&peer.ask(Op::Read, 0, 4096, &[]).await.0), 0, "kept in memory");
        drop(peer);
        lender.restart().await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 2)).await.unwrap();
        assert_eq!(peer.hot().await, [0]);
        let (cold, _) = peer.ask(Op::Read, REGION_SIZE, 4096, &[]).await;
        assert_eq!((cold.status, cold.result), (Status::Ok, 0));
        let (hot, _) = peer.ask(Op::Read, 0, 4096, &[]).await;
        assert_eq!((hot.status, hot.result), (Status::Ok, READ_COMPUTED));
        assert_eq!(peer.read(0, 4096).await.unwrap(), pattern(1, 4096));
    });
}

#[test]
fn s1_s3_a_seeded_map_is_durable_with_the_label_and_every_later_write_is_in_it() {
    run(async |doors| {
        let lender = lent(doors, false).await;
        let (mut peer, reply) = lender.session(doubled(OpenMode::InSync, 1)).await.unwrap();
        assert_eq!(reply.missed_since, [None, None]);
        let seed = Seed { leg: 1, since: SINCE, reset: true, entries: vec![(0, 1 << 5)] };
        assert_eq!(peer.status(Op::Seed, &seed.encode()).await, Status::Ok);
        peer.leaves(1, true).await;
        assert_eq!(peer.write(REGION_SIZE + 3 * MISSED_UNIT, &pattern(1, 4096)).await, Status::Ok);
        let map = peer.missed().await;
        assert_eq!(map.since, Some(SINCE));
        assert!(unit(&map, 5 * MISSED_UNIT) && unit(&map, REGION_SIZE + 3 * MISSED_UNIT) && !unit(&map, 0));
        // Nothing is taken for granted after a crash: what was hot is missed as a whole, the rest as it was seeded.
        drop(peer);
        lender.restart().await;
        let (mut peer, reply) = lender.session(doubled(OpenMode::InSync, 2)).await.unwrap();
        assert_eq!(reply.missed_since, [None, Some(SINCE)]);
        let map = peer.missed().await;
        assert!(unit(&map, 5 * MISSED_UNIT) && !unit(&map, 0), "{map:?}");
        let hot = map.entries.iter().find(|entry| entry.region == 1);
        assert_eq!(hot.map(|entry| entry.missed), Some(u64::MAX));
        // What was copied is taken off; what is in sync has no map.
        let clear = Clear { leg: 1, entries: vec![(0, 1 << 5)] };
        assert_eq!(peer.status(Op::Clear, &clear.encode()).await, Status::Ok);
        assert!(!unit(&peer.missed().await, 5 * MISSED_UNIT));
        let generation = Generation { number: 3, random: 4 };
        let back = SetState { generation, in_sync: vec![true, true], equalised: true, stale: Vec::new() };
        assert_eq!(peer.status(Op::SetState, &back.encode()).await, Status::Ok);
        let map = peer.missed().await;
        assert_eq!((map.since, map.entries.iter().any(|entry: &MapEntry| entry.missed != 0)), (None, false));
    });
}

#[test]
fn s1_without_exact_ranges_all_hot_regions_are_missed() {
    run(async |doors| {
        let lender = lent(doors, false).await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 1)).await.unwrap();
        assert_eq!(peer.write(REGION_SIZE, &pattern(1, 4096)).await, Status::Ok);
        peer.leaves(1, false).await;
        let map = peer.missed().await;
        assert_eq!(map.since, Some(SINCE));
        assert_eq!(map.entries, [MapEntry { region: 1, hot: true, missed: u64::MAX }]);
    });
}

#[test]
fn k1_rot_is_told_by_read_verify_and_search() {
    run(async |doors| {
        let lender = lent(doors, false).await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 1)).await.unwrap();
        let data = pattern(9, 8192);
        assert_eq!(peer.write(4096, &data).await, Status::Ok);
        peer.flush().await;
        assert_eq!(peer.status(Op::Cool, &Cool { regions: vec![0] }.encode()).await, Status::Ok);
        drop(peer);
        rot(&lender, &data);
        lender.restart().await;
        let (mut peer, _) = lender.session(doubled(OpenMode::InSync, 2)).await.unwrap();
        let (reply, payload) = peer.ask(Op::Read, 0, 16384, &[]).await;
        assert_eq!((reply.status, reply.result), (Status::Ok, 0));
        let (sums, bytes) = payload.split_at(table_size(16384));
        assert_eq!(first_mismatch(bytes, sums), Some(1), "the client sees which block it is");
        let fine = BlockState::Matches;
        assert_eq!(peer.verified(0, 16384).await, [fine, BlockState::Differs, fine, fine]);
        let question = Search { pattern: b"needle".to_vec() }.encode();
        assert_eq!(peer.ask(Op::Search, 0, 16384, &question).await.0.status, Status::Io, "no offsets from damaged bytes");
        // A new write mends it.
        assert_eq!(peer.write(4096, &data).await, Status::Ok);
        assert_eq!(peer.read(0, 16384).await.unwrap()[4096..12288], data);
    });
}
