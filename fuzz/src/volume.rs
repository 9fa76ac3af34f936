//! The access protocol as a borrower hears it: a volume of one segment whose lender does not answer as it should.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use sublet_api::mount::{MountLeg, MountSegment, MountingInformation};
use sublet_api::request::{ChangeLeg, LegAnswer, LenderAddresses};
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::{Chunk, Clock};
use sublet_types::limits::REGION_SIZE;
use sublet_types::{
    Address, AreaId, Epoch, Generation, LeaseSecret, ManagerId, Name, OpenId, PoolId, ServerId, SliceId, VolumeId, Way,
};
use sublet_volume::{ManagerDoor, Volume, VolumeOptions, Wanted, ZeroFlags};
use sublet_wire::checksum::{table_size, write_table};
use sublet_wire::frame::PROTOCOL_VERSION;
use sublet_wire::message::{
    BlockState, DiskIdentity, Extent, ExtentsReply, HelloReply, MapReply, Message, OpenReply, SearchReply, VerifyBlock,
    VerifyReply,
};
use sublet_wire::{FRAME_SIZE, Op, RequestFrame, Status};

use crate::doors::MemDoors;
use crate::doors::net::Peer;

const SIZE: u64 = 8 << 20;
const LENDER: ServerId = ServerId::from_u128(0x1e);
const GENERATION: Generation = Generation { number: 1, random: 9 };
const IDENTITY: DiskIdentity = DiskIdentity { open: OpenId::from_u128(1), boot: 2, disk_sequence: 3 };
/// No request of the borrower takes longer, whatever the lender says.
const FAIL_AFTER: Duration = Duration::from_secs(20);

/// What is wrong with the replies, one after the other, over all connections.
#[derive(Default)]
struct Script {
    bytes: Vec<u8>,
    at: usize,
}

impl Script {
    fn next(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte
    }

    /// A length of one byte, and so many bytes.
    fn part(&mut self) -> Vec<u8> {
        let length = usize::from(self.next().unwrap_or(0));
        (0..length).map_while(|_| self.next()).collect()
    }
}

/// Answers every request as a lender of zeroes would, but for what the script changes.
struct Liar {
    script: Rc<RefCell<Script>>,
    heard: Vec<u8>,
    said: Vec<u8>,
    closed: bool,
}

impl Peer for Liar {
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.heard.extend(bytes);
        while let Some(head) = self.heard.first_chunk::<FRAME_SIZE>()
            && !self.closed
        {
            let frame = match RequestFrame::decode(head) {
                Ok(frame) => frame,
                Err(error) => panic!("the borrower sends what is no request: {error}"),
            };
            let length = FRAME_SIZE + frame.payload as usize;
            if self.heard.len() < length {
                break;
            }
            self.heard.drain(..length);
            self.answer(&frame);
        }
        !self.closed
    }

    fn say(&mut self, most: usize) -> Option<Vec<u8>> {
        let many = most.min(self.said.len());
        if many == 0 && self.closed {
            return None;
        }
        Some(self.said.drain(..many).collect())
    }
}

/// What an honest lender of zeroes says.
fn honest(frame: &RequestFrame) -> Vec<u8> {
    let length = frame.length as usize;
    match frame.op {
        Op::Hello => {
            HelloReply { version: PROTOCOL_VERSION, features: 0, server: LENDER, nonce: 1, depth_max: 16, request_max: 1 << 20 }
                .encode()
        }
        Op::Open => OpenReply {
            identity: IDENTITY,
            generation: GENERATION,
            unclean: false,
            sequence: 5,
            hot_max: 64,
            missed_since: vec![None],
        }
        .encode(),
        Op::Read => {
            let data = vec![0; length];
            let mut table = vec![0; table_size(length)];
            write_table(&data, &mut table);
            [table, data].concat()
        }
        Op::Extents => ExtentsReply { extents: vec![Extent { length: frame.length.max(1).into(), data: false }] }.encode(),
        Op::Search => SearchReply { scanned: frame.length.into(), count: 0, matches: Vec::new() }.encode(),
        Op::SetState | Op::Ping => IDENTITY.encode(),
        Op::Map => {
            let scanned = u64::from(frame.length).div_ceil(REGION_SIZE) as u32;
            MapReply { since: None, lost: false, scanned, entries: Vec::new() }.encode()
        }
        Op::Verify => {
            let block = VerifyBlock { sum: crc32c::crc32c(&[0; 4096]), state: BlockState::Computed };
            VerifyReply { blocks: vec![block; length / 4096] }.encode()
        }
        _ => Vec::new(),
    }
}

impl Liar {
    fn answer(&mut self, frame: &RequestFrame) {
        let mut payload = honest(frame);
        let mut reply = frame.reply(Status::Ok, 0);
        let script = Rc::clone(&self.script);
        let mut script = script.borrow_mut();
        let how = script.next().unwrap_or(0);
        match how % 16 {
            8 => reply.status = Status::from_u16(u16::from(script.next().unwrap_or(0)) % 16).unwrap_or(Status::Io),
            9 => payload = script.part(),
            10 => {
                let at = usize::from(script.next().unwrap_or(0)) << (how >> 4);
                let part = script.part();
                if let Some(place) = payload.get_mut(at..at + part.len()) {
                    place.copy_from_slice(&part);
                }
            }
            11 => {
                let length = payload.len() * usize::from(script.next().unwrap_or(0)) / 256;
                payload.truncate(length);
            }
            12 => reply.result = script.next().unwrap_or(0).into(),
            // A notice comes first.
            13 => {
                let op = Op::from_u8(script.next().unwrap_or(0)).unwrap_or(Op::Draining);
                let notice = RequestFrame { op, cookie: 0, ..*frame };
                self.said.extend(notice.reply(Status::StaleEpoch, 0).encode());
            }
            _ => {}
        }
        reply.payload = payload.len() as u32;
        let mut head = reply.encode();
        match how % 16 {
            // A changed header with a right checksum.
            14 => {
                let (at, bits) = (usize::from(script.next().unwrap_or(0)) % 60, script.next().unwrap_or(0));
                head[at] ^= bits;
                crate::wire::mend_frame(&mut head);
            }
            15 if how & 0x80 != 0 => return,
            15 => {
                self.said.extend(script.part());
                self.closed = true;
                return;
            }
            _ => {}
        }
        self.said.extend(head);
        self.said.extend(payload);
    }
}

/// Refuses everything: the data path must not need it.
#[derive(Clone)]
struct NoManager;

impl ManagerDoor for NoManager {
    async fn change_leg(&self, _volume: VolumeId, _change: ChangeLeg) -> Result<LegAnswer, Refusal> {
        Err(Refusal::new(ErrorKind::Unreachable, "there is none"))
    }
    async fn lenders(&self, _volume: VolumeId) -> Result<Vec<LenderAddresses>, Refusal> {
        Err(Refusal::new(ErrorKind::Unreachable, "there is none"))
    }
}

fn mounting() -> MountingInformation {
    let leg = MountLeg {
        slice: SliceId::from_u128(0x51),
        area: AreaId::from_u128(5),
        area_name: Name::unknown(),
        server: LENDER,
        server_name: Name::unknown(),
        addresses: vec![Address::new("lender", 7471)],
        offset: 0,
        in_sync: true,
        stale_since: None,
    };
    MountingInformation {
        version: 1,
        pool: PoolId::from_u128(1),
        manager: ManagerId::from_u128(2),
        volume: VolumeId::from_u128(3),
        name: Name::unknown(),
        way: Way::Single,
        size: SIZE,
        sealed: false,
        seal: None,
        borrower: ServerId::from_u128(4),
        borrower_name: Name::unknown(),
        status: 1,
        read_only: false,
        epoch: Epoch { number: 1, random: 1 },
        secret: Some(LeaseSecret::from_u128(9)),
        segments: vec![MountSegment { length: SIZE, generation: GENERATION, legs: vec![leg] }],
    }
}

/// A script. The borrower opens the volume and asks for everything that can be asked; each of these ends.
pub fn replies(input: &[u8]) -> bool {
    let script = Rc::new(RefCell::new(Script { bytes: input.to_vec(), at: 0 }));
    MemDoors::run(move |doors| async move {
        doors.set_peers(Box::new(move || {
            Box::new(Liar { script: Rc::clone(&script), heard: Vec::new(), said: Vec::new(), closed: false })
        }));
        let options = VolumeOptions { fail_after: Some(FAIL_AFTER), ..VolumeOptions::default() };
        let Ok(volume) = Volume::open(doors.clone(), NoManager, mounting(), options).await else { return false };
        let mut well = 0;
        for (offset, length) in [(0, 4096), (100, 9000), (SIZE - (1 << 20), 1 << 20)] {
            if let Ok(chunks) = volume.read(offset, length).await {
                assert_eq!(chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>(), length);
                well += 1;
            }
        }
        well += u32::from(volume.write(4096, Chunk::copy_of(&[7; 8192]), true).await.is_ok());
        well += u32::from(volume.write_zeroes(0, REGION_SIZE + 4096, ZeroFlags::default()).await.is_ok());
        if let Ok(extents) = volume.extents(0, SIZE).await {
            assert!(!extents.is_empty() && extents.iter().map(|extent| extent.length).sum::<u64>() <= SIZE);
            well += 1;
        }
        let wanted = Wanted { pattern: b"needle", limit: Some(10), count_only: false };
        let mut last = None;
        let mut found = async |offsets: Vec<u64>| {
            assert!(offsets.iter().all(|offset| *offset + 6 <= SIZE), "it is found behind the end");
            assert!(offsets.is_sorted() && offsets.first().is_none_or(|first| last < Some(*first)));
            last = offsets.last().copied().or(last);
        };
        well += u32::from(volume.search(wanted, &mut found, &mut |done, all| assert!(done <= all)).await.is_ok());
        well += u32::from(volume.flush().await.is_ok());
        doors.sleep(Duration::from_secs(30)).await;
        assert!(!volume.status().reason.contains(char::is_control), "a terminal would obey the lender");
        let _ = volume.close(true).await;
        well == 8
    })
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        vec![0, 0, 8, 11],
        vec![0, 0, 0, 9, 4, 1, 2, 3, 4],
        vec![0, 8, 4],
        vec![0, 0, 10, 2, 3, 9, 9, 9, 14, 40, 255, 14, 48, 1],
        vec![0, 0, 11, 128, 12, 1, 12, 255],
        vec![0, 0, 13, 33, 0, 13, 32],
        vec![0, 0, 15, 5, 1, 2, 3, 4, 5, 0, 0, 0x8f],
        vec![0, 0, 0, 0, 0, 0, 0, 9, 14, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127, 1],
        [vec![0; 8], vec![9, 20], vec![0; 20]].concat(),
    ]
}
