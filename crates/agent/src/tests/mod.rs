//! The agent over real doors on loopback, with a real area in a temporary directory.

mod coordinating;
mod data;
mod doors;
mod fencing;
mod garbage;
mod keeping;
mod lying;
mod opening;
mod regions;
mod searching;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use sublet_api::order::{Lease, Order, Outcome, SliceFacts};
use sublet_area::{Area, FormatSpec, PieceSpec, file_size_for};
use sublet_doors::real::{self, RealDoors};
use sublet_doors::{Buffer, Clock as _, Conn, ConnReader, ConnWriter, Doors, Endpoint, Listener, Net};
use sublet_types::size::MIB;
use sublet_types::{
    Address, AreaId, Epoch, Generation, LeaseSecret, OpenId, PoolId, ServerId, SessionNumber, SliceId, VolumeId, Way,
};
use sublet_wire::checksum::{first_mismatch, table_size, write_table};
use sublet_wire::frame::PROTOCOL_VERSION;
use sublet_wire::message::{Hello, HelloReply, Message, Open, OpenMode, OpenReply};
use sublet_wire::{FRAME_SIZE, Flags, Op, ReplyFrame, RequestFrame, Status};

use crate::Agent;
use doors::{DiskGate, SlowDoors};

pub(super) const SLICE: SliceId = SliceId::from_u128(0x51);
pub(super) const AREA: AreaId = AreaId::from_u128(0xa1);
const BORROWER: ServerId = ServerId::from_u128(0xb0);
const LENDER: ServerId = ServerId::from_u128(0x1e);
/// The segment is shorter than its slice: the rest of the slice is nobody's.
pub(super) const SEGMENT: u64 = 6 * MIB;

pub(super) fn epoch(number: u64) -> Epoch {
    Epoch { number, random: u128::from(number) * 7 }
}

fn facts() -> SliceFacts {
    SliceFacts {
        slice: SLICE,
        area: AREA,
        offset: 4 * MIB,
        length: 8 * MIB,
        volume: VolumeId::from_u128(0x70),
        volume_name: "vol-1".parse().unwrap(),
        way: Way::Single,
        volume_size: SEGMENT,
        segment: 0,
        segments: 1,
        segment_length: SEGMENT,
        leg: 0,
        legs: 1,
        generation: Generation { number: 1, random: 9 },
        in_sync: vec![true],
        borrower: Some(BORROWER),
        defined: false,
        sealed: false,
    }
}

fn lease(number: u64) -> Lease {
    Lease { epoch: epoch(number), borrower: BORROWER, secret: LeaseSecret::from_u128(number.into()), read_only: false }
}

pub(super) fn open_lease(number: u64) -> Order {
    Order::OpenLease { slice: SLICE, area: AREA, lease: lease(number), facts: facts() }
}

pub(super) fn fence(number: u64) -> Order {
    Order::Fence { slice: SLICE, area: AREA, epoch: epoch(number) }
}

pub(super) fn open(epoch_number: u64, session: u64) -> Open {
    Open {
        session: SessionNumber(session),
        area: AREA,
        slice: SLICE,
        volume: VolumeId::from_u128(0x70),
        way: Way::Single,
        segment: 0,
        segment_length: SEGMENT,
        leg: 0,
        generation: Generation { number: 1, random: 9 },
        mode: OpenMode::InSync,
        borrower: BORROWER,
        epoch: epoch(epoch_number),
        secret: LeaseSecret::from_u128(epoch_number.into()),
        known_open: OpenId::from_u128(0),
        known_sequence: 0,
    }
}

/// One lender on loopback.
pub(super) struct Lender {
    pub(super) doors: SlowDoors,
    pub(super) agent: Rc<Agent<SlowDoors>>,
    pub(super) pieces: Vec<PieceSpec>,
    pub(super) address: Address,
    _dir: tempfile::TempDir,
}

impl Lender {
    async fn start(real: RealDoors) -> Self {
        Self::of(real, LENDER, AREA).await
    }

    /// A lender of that id with an area of that id.
    pub(super) async fn of(real: RealDoors, server: ServerId, id: AreaId) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a1.area");
        let length = file_size_for(16 * MIB);
        std::fs::File::create(&path).unwrap().set_len(length).unwrap();
        let pieces = vec![PieceSpec { path, offset: 0, length }];
        let doors = SlowDoors { real, gate: Rc::new(DiskGate::default()) };
        let spec = FormatSpec {
            pool: PoolId::from_u128(1),
            area: id,
            server,
            name: "a1".parse().unwrap(),
            pieces: pieces.clone(),
            sparse: true,
        };
        Area::format(&doors, &spec).await.unwrap();
        let agent = Agent::new(doors.clone(), server);
        let listener = doors.listen(&Endpoint::Tcp(Address::new("127.0.0.1", 0))).await.unwrap();
        let address = listener.local_address().unwrap();
        let own = Rc::clone(&agent);
        doors.spawn(async move {
            while let Ok(conn) = listener.accept().await {
                let serving = Rc::clone(&own);
                own.doors().spawn(async move { serving.serve(conn).await });
            }
        });
        let lender = Self { doors, agent, pieces, address, _dir: dir };
        lender.serve_area().await;
        lender
    }

    /// Opens the area, as a new process does.
    pub(super) async fn serve_area(&self) {
        let area = Area::open(&self.doors, &self.pieces, Some(PoolId::from_u128(1)), 77).await.unwrap();
        self.agent.add_area(area, "file a1.area");
    }

    /// Stops serving the area; its lock is free when this returns.
    pub(super) async fn stop(&self) {
        self.agent.remove_area(AREA);
        while self.agent.connections.get() > 0 {
            self.doors.sleep(Duration::from_millis(2)).await;
        }
    }

    /// Opens the area again, as a new process does.
    pub(super) async fn restart(&self) {
        self.stop().await;
        self.serve_area().await;
    }

    pub(super) async fn order(&self, order: Order) {
        assert_eq!(self.agent.execute(&order).await, Outcome::Done);
    }

    /// A lender with the slice, lent in epoch 1.
    pub(super) async fn lent(real: RealDoors) -> Self {
        let lender = Self::start(real).await;
        lender.order(Order::PrepareSlice { slice: facts() }).await;
        lender.order(open_lease(1)).await;
        lender
    }

    pub(super) async fn connect(&self) -> Peer {
        let conn = self.doors.connect(&Endpoint::Tcp(self.address.clone()), Duration::from_secs(2)).await.unwrap();
        let (reader, writer) = conn.split();
        Peer {
            doors: self.doors.clone(),
            reader,
            writer,
            session: SessionNumber(0),
            slice: SLICE,
            cookie: 0,
            others: VecDeque::new(),
        }
    }

    /// A connection after HELLO.
    pub(super) async fn greeted(&self) -> Peer {
        let mut peer = self.connect().await;
        let hello =
            Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION, features: 0, server: BORROWER, nonce: 3 };
        let (reply, payload) = peer.ask(Op::Hello, 0, 0, &hello.encode()).await;
        assert_eq!(reply.status, Status::Ok);
        assert_eq!(HelloReply::decode(&payload).unwrap().server, self.agent.server);
        peer
    }

    /// Opens a session.
    pub(super) async fn session(&self, open: Open) -> Result<(Peer, OpenReply), Status> {
        let mut peer = self.greeted().await;
        let (reply, payload) = peer.ask(Op::Open, 0, 0, &open.encode()).await;
        if reply.status != Status::Ok {
            assert!(!payload.is_empty(), "a refusal says why");
            return Err(reply.status);
        }
        (peer.session, peer.slice) = (open.session, open.slice);
        Ok((peer, OpenReply::decode(&payload).unwrap()))
    }

    /// What lies on the disk at an offset of the slice, read without the agent.
    pub(super) async fn on_disk(&self, offset: u64, length: usize) -> Vec<u8> {
        self.bytes(AREA, SLICE, offset, length).await
    }

    /// The same of any area and slice.
    pub(super) async fn bytes(&self, area: AreaId, slice: SliceId, offset: u64, length: usize) -> Vec<u8> {
        let served = self.agent.served(area).unwrap_or_else(|_| panic!("the area is served"));
        let (result, buffer) = served.area.read(slice, offset, Buffer::new(length), 0..length, &mut []).await;
        result.unwrap();
        buffer.to_vec()
    }

    pub(super) fn file(&self) -> PathBuf {
        self.pieces[0].path.clone()
    }
}

impl<D: Doors> std::fmt::Debug for Agent<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Agent")
    }
}

/// A client, frame by frame.
pub(super) struct Peer {
    doors: SlowDoors,
    reader: <<RealDoors as Net>::Conn as Conn>::Reader,
    pub(super) writer: <<RealDoors as Net>::Conn as Conn>::Writer,
    pub(super) session: SessionNumber,
    pub(super) slice: SliceId,
    cookie: u64,
    /// Replies that came while another one was waited for.
    others: VecDeque<(ReplyFrame, Vec<u8>)>,
}

impl Peer {
    pub(super) fn frame(&mut self, op: Op, offset: u64, length: u32, payload: usize) -> RequestFrame {
        self.cookie += 1;
        RequestFrame {
            op,
            flags: Flags::default(),
            cookie: self.cookie,
            session: self.session,
            slice: self.slice,
            offset,
            length,
            deadline_ms: 0,
            payload: payload as u32,
        }
    }

    pub(super) async fn send(&mut self, frame: &RequestFrame, payload: &[u8]) {
        let mut bytes = frame.encode().to_vec();
        bytes.extend_from_slice(payload);
        self.writer.write_all(vec![bytes.into()]).await.unwrap();
    }

    /// The next reply or notice; none at the end of the connection.
    pub(super) async fn receive(&mut self) -> Option<(ReplyFrame, Vec<u8>)> {
        if let Some(other) = self.others.pop_front() {
            return Some(other);
        }
        let doors = self.doors.clone();
        let next = async {
            let (result, header) = self.reader.read_exact(Buffer::new(FRAME_SIZE), 0..FRAME_SIZE).await;
            result.ok()?;
            let reply = ReplyFrame::decode(header[..].try_into().unwrap()).unwrap();
            let n = reply.payload as usize;
            let (result, payload) = self.reader.read_exact(Buffer::new(n), 0..n).await;
            result.ok()?;
            Some((reply, payload.to_vec()))
        };
        sublet_doors::Clock::timeout(&doors, Duration::from_secs(20), next).await.expect("a reply within the test's patience")
    }

    pub(super) async fn reply_to(&mut self, cookie: u64) -> (ReplyFrame, Vec<u8>) {
        let mut passed = VecDeque::new();
        loop {
            let (reply, payload) = self.receive().await.expect("a reply before the end of the connection");
            if reply.cookie == cookie {
                self.others.extend(passed);
                return (reply, payload);
            }
            passed.push_back((reply, payload));
        }
    }

    pub(super) async fn ask(&mut self, op: Op, offset: u64, length: u32, payload: &[u8]) -> (ReplyFrame, Vec<u8>) {
        let frame = self.frame(op, offset, length, payload.len());
        self.send(&frame, payload).await;
        self.reply_to(frame.cookie).await
    }

    pub(super) async fn write(&mut self, offset: u64, data: &[u8]) -> Status {
        let payload = write_payload(data);
        self.ask(Op::Write, offset, data.len() as u32, &payload).await.0.status
    }

    pub(super) async fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, Status> {
        let (reply, payload) = self.ask(Op::Read, offset, length as u32, &[]).await;
        if reply.status != Status::Ok {
            return Err(reply.status);
        }
        let (table, data) = payload.split_at(table_size(length));
        assert_eq!(first_mismatch(data, table), None);
        assert_eq!(data.len(), length);
        Ok(data.to_vec())
    }
}

/// Checksums and blocks.
pub(super) fn write_payload(data: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; table_size(data.len())];
    write_table(data, &mut payload);
    payload.extend_from_slice(data);
    payload
}

/// Blocks that differ from each other and from zero.
pub(super) fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 4096) as u8 ^ (i % 251) as u8 ^ seed | 1).collect()
}

/// Runs a test on the real doors.
pub(super) fn run(test: impl AsyncFnOnce(RealDoors)) {
    real::run(test).expect("io_uring works here");
}
