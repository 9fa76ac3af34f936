//! The access protocol as a lender hears it: a whole connection to an agent with an area in memory, from HELLO to the end.

use std::rc::Rc;
use std::time::Duration;

use sublet_agent::Agent;
use sublet_area::Area;
use sublet_doors::{Chunk, Clock};
use sublet_types::limits::REQUEST_SIZE_MAX;
use sublet_types::{Generation, OpenId, PoolId, ServerId, SessionNumber, Way};
use sublet_wire::checksum::{table_size, write_table};
use sublet_wire::frame::PROTOCOL_VERSION;
use sublet_wire::message::{
    Announce, CONTROL_PAYLOAD_MAX, Clear, Close, Cool, Hello, MapRequest, MapWhich, Message, Open, OpenMode, Search, Seed,
    SetState, StaleMark,
};
use sublet_wire::{FRAME_SIZE, Flags, Op, ReplyFrame, RequestFrame, Status};

use crate::area::{AREA, BOOT, BORROWER, EPOCH, LENDER, SECRET, SEGMENT, SLICE, VOLUME, base, pieces};
use crate::doors::MemDoors;
use crate::doors::net::MemConn;

/// As the label has it after its other leg has left.
const GENERATION: Generation = Generation { number: 2, random: 8 };

/// A byte that says whether HELLO and OPEN come before it (bit 0), a byte for how the bytes arrive, and what the borrower sends.
pub fn connection(input: &[u8]) -> bool {
    let Some(([how, part], rest)) = input.split_first_chunk() else { return false };
    let bytes = if how & 1 != 0 { [greeting(), rest.to_vec()].concat() } else { rest.to_vec() };
    let part = if *part == 0 { usize::MAX } else { usize::from(*part) * 7 };
    let (conn, sent) = MemConn::new(bytes, part);
    MemDoors::run(move |doors| async move {
        doors.set_file(base());
        let Ok(area) = Area::open(&doors, &pieces(), None, BOOT).await else { panic!("the area does not open") };
        let agent = Agent::new(doors.clone(), LENDER);
        agent.add_area(Rc::clone(&area), "a file");
        agent.set_on_announce(Box::new(|announce| if announce.urls.is_empty() { Err("no") } else { Ok(()) }));
        agent.serve(conn).await;
        // What is left is to send the last replies.
        doors.sleep(Duration::from_secs(2)).await;
        assert_eq!(agent.sessions(), 0, "the borrower has gone, and its session has not");
        drop((agent, area));
        // Whatever a borrower does, the area opens again.
        if let Err(error) = Area::open(&doors, &pieces(), None, BOOT).await {
            panic!("the area does not open any more: {error}");
        }
    });
    check_sent(&sent.take())
}

/// Only whole replies were sent, and none is longer than a borrower takes. True if a request of an open session was carried out.
fn check_sent(chunks: &[Chunk]) -> bool {
    let bytes = Chunk::joined(chunks);
    let (mut rest, mut was_taken) = (&bytes[..], false);
    while let Some((head, after)) = rest.split_first_chunk::<FRAME_SIZE>() {
        let frame = match ReplyFrame::decode(head) {
            Ok(frame) => frame,
            Err(error) => panic!("a reply is none: {error}"),
        };
        let length = frame.length.min(REQUEST_SIZE_MAX as u32) as usize;
        let room = if frame.op == Op::Read { length + table_size(length) } else { CONTROL_PAYLOAD_MAX };
        assert!(frame.payload as usize <= room.max(CONTROL_PAYLOAD_MAX), "{} bytes answer {:?}", frame.payload, frame.op);
        let Some((_, after)) = after.split_at_checked(frame.payload as usize) else { panic!("a reply is not all there") };
        was_taken |= frame.status == Status::Ok && !matches!(frame.op, Op::Hello | Op::Open | Op::Fenced | Op::Draining);
        rest = after;
    }
    assert!(rest.is_empty(), "{} bytes are no reply", rest.len());
    was_taken
}

/// A request of session 1.
fn frame(op: Op, offset: u64, length: u64, payload: &[u8]) -> Vec<u8> {
    let frame = RequestFrame {
        op,
        flags: Flags::default(),
        cookie: op as u64,
        session: SessionNumber(1),
        slice: SLICE,
        offset,
        length: length as u32,
        deadline_ms: 0,
        payload: payload.len() as u32,
    };
    [&frame.encode()[..], payload].concat()
}

fn hello() -> Vec<u8> {
    let hello = Hello { version_min: 1, version_max: PROTOCOL_VERSION, features: 0, server: BORROWER, nonce: 4 };
    frame(Op::Hello, 0, 0, &hello.encode())
}

fn open(mode: OpenMode) -> Vec<u8> {
    let open = Open {
        session: SessionNumber(1),
        area: AREA,
        slice: SLICE,
        volume: VOLUME,
        way: Way::Doubled,
        segment: 0,
        segment_length: SEGMENT,
        leg: 0,
        generation: GENERATION,
        mode,
        borrower: BORROWER,
        epoch: EPOCH,
        secret: SECRET,
        known_open: OpenId::from_u128(0),
        known_sequence: 0,
    };
    frame(Op::Open, 0, 0, &open.encode())
}

fn greeting() -> Vec<u8> {
    [hello(), open(OpenMode::InSync)].concat()
}

fn write(blocks: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..blocks * 4096).map(|n| (n / 4096) as u8 + 1).collect();
    let mut table = vec![0; table_size(data.len())];
    write_table(&data, &mut table);
    frame(Op::Write, 8192, data.len() as u64, &[table, data].concat())
}

/// Walks over the frames and puts their checksums right, and those of the blocks of writes.
pub fn mend(input: &mut [u8]) {
    let mut rest = input.get_mut(2..).unwrap_or_default();
    while let Some((head, after)) = rest.split_first_chunk_mut::<FRAME_SIZE>() {
        crate::wire::mend_frame(head);
        let field = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (length, payload) = (field(48), field(56).min(after.len()));
        let (payload, after) = after.split_at_mut(payload);
        if head[5] == Op::Write as u8
            && length.is_multiple_of(4096)
            && let Some((table, data)) = payload.split_at_mut_checked(table_size(length))
            && data.len() == length
        {
            write_table(data, table);
        }
        rest = after;
    }
}

/// What borrowers ask.
fn requests() -> Vec<Vec<u8>> {
    let since = Generation { number: 3, random: 4 };
    let state = SetState { generation: since, in_sync: vec![true, false], equalised: true, stale: Vec::new() };
    let marks = vec![StaleMark { leg: 1, since, seeded: true }];
    vec![
        frame(Op::Ping, 0, 0, &[]),
        frame(Op::Read, 4096, 8192, &[]),
        frame(Op::Read, 0, 1 << 20, &[]),
        write(1),
        frame(Op::WriteZeroes, 0, 1 << 20, &[]),
        frame(Op::Flush, 0, 0, &[]),
        frame(Op::Extents, 0, SEGMENT, &[]),
        frame(Op::Search, 0, SEGMENT, &Search { pattern: vec![7; 3] }.encode()),
        frame(Op::Map, 0, SEGMENT, &MapRequest { which: MapWhich::Leg(1) }.encode()),
        frame(Op::Map, 0, SEGMENT, &MapRequest { which: MapWhich::All }.encode()),
        frame(Op::Seed, 0, 0, &Seed { leg: 1, since, reset: true, entries: vec![(0, 1), (1, 2)] }.encode()),
        frame(Op::SetState, 0, 0, &SetState { stale: marks, ..state.clone() }.encode()),
        frame(Op::SetState, 0, 0, &state.encode()),
        frame(Op::Clear, 0, 0, &Clear { leg: 1, entries: vec![(0, 1)] }.encode()),
        frame(Op::Cool, 0, 0, &Cool { regions: vec![0, 1] }.encode()),
        frame(Op::Verify, 0, 1 << 16, &[]),
        frame(Op::Copy, 0, 4096, &[]),
        frame(Op::Close, 0, 0, &Close { clean: true }.encode()),
    ]
}

pub fn seeds() -> Vec<Vec<u8>> {
    let announce = Announce { pool: PoolId::from_u128(1), urls: vec!["http://a:1".into()] };
    let other = ServerId::from_u128(7);
    let older = Hello { version_min: 1, version_max: 2, features: 0, server: other, nonce: 4 };
    let alone = requests().into_iter().map(|request| [vec![1, 0], request].concat());
    let together = |how: &[u8], first: Vec<u8>, skip: usize| {
        let rest = requests().into_iter().skip(skip).collect::<Vec<_>>().concat();
        [how.to_vec(), first, rest].concat()
    };
    let more = [
        together(&[1, 0], Vec::new(), 0),
        together(&[0, 3], greeting(), 3),
        together(&[0, 30], [hello(), open(OpenMode::Target)].concat(), 8),
        [vec![1, 0], write(2), frame(Op::Read, 8192, 8192, &[]), frame(Op::Verify, 8192, 8192, &[])].concat(),
        [vec![0, 0], frame(Op::Announce, 0, 0, &announce.encode())].concat(),
        [vec![0, 0], frame(Op::Hello, 0, 0, &older.encode())].concat(),
    ];
    alone.chain(more).collect()
}
