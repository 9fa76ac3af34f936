//! The access protocol: frames, messages, and the blocks with their checksums.

use std::fmt::Debug;

use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, OpenId, PoolId, ServerId, SessionNumber, SliceId, VolumeId, Way};
use sublet_wire::checksum::{first_mismatch, table_size, write_table};
use sublet_wire::message::{
    Announce, BlockState, Clear, Close, Cool, DiskIdentity, EXTENTS_PER_REPLY_MAX, Extent, ExtentsReply, Hello, HelloReply,
    MATCHES_PER_REPLY_MAX, MapEntry, MapReply, MapRequest, MapWhich, Message, Open, OpenMode, OpenReply, PATTERN_MAX,
    REGIONS_PER_MESSAGE_MAX, Search, SearchReply, Seed, SetState, StaleMark, VerifyBlock, VerifyReply,
};
use sublet_wire::{FRAME_SIZE, Flags, Op, ReplyFrame, RequestFrame, Status};

/// The first bytes are a request or a reply.
pub fn frames(input: &[u8]) -> bool {
    let Some(bytes) = input.first_chunk::<FRAME_SIZE>() else { return false };
    let request = RequestFrame::decode(bytes);
    if let Ok(frame) = &request {
        assert_eq!(frame.encode(), *bytes, "{frame:?}");
        let reply = frame.reply(Status::Ok, 0);
        assert_eq!(ReplyFrame::decode(&reply.encode()), Ok(reply));
    }
    let reply = ReplyFrame::decode(bytes);
    if let Ok(frame) = &reply {
        assert_eq!(frame.encode(), *bytes, "{frame:?}");
    }
    assert!(request.is_err() || reply.is_err(), "it is a request and a reply");
    request.is_ok() || reply.is_ok()
}

/// The checksum of a header.
pub fn mend_frame(input: &mut [u8]) {
    if let Some(frame) = input.first_chunk_mut::<FRAME_SIZE>() {
        let (body, sum) = frame.split_at_mut(FRAME_SIZE - 4);
        sum.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    }
}

pub fn frame_seeds() -> Vec<Vec<u8>> {
    let ops = (0..=u8::MAX).filter_map(Op::from_u8);
    let request = |op| RequestFrame {
        op,
        flags: Flags::FUA,
        cookie: 7,
        session: SessionNumber(1),
        slice: SliceId::from_u128(0x51),
        offset: 8192,
        length: 4096,
        deadline_ms: 5,
        payload: 4100,
    };
    let replies = (0..16).filter_map(Status::from_u16).map(|status| request(Op::Read).reply(status, 12).encode().to_vec());
    ops.map(|op| request(op).encode().to_vec()).chain(replies).collect()
}

/// Reads a message; what was read is written as it was.
fn again<M: Message + PartialEq + Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    assert_eq!(message.encode(), bytes, "{message:?} is written otherwise");
    Some(message)
}

fn is_at_most(many: usize, most: usize) -> bool {
    assert!(many <= most, "{many} entries, at most {most} are taken");
    true
}

type Reader = fn(&[u8]) -> bool;

/// By number: the first byte of an input.
const READERS: &[Reader] = &[
    |bytes| again::<Hello>(bytes).is_some(),
    |bytes| again::<HelloReply>(bytes).is_some(),
    |bytes| again::<Announce>(bytes).is_some_and(|m| is_at_most(m.urls.len(), sublet_wire::message::ANNOUNCED_URLS_MAX)),
    |bytes| again::<Open>(bytes).is_some(),
    |bytes| again::<DiskIdentity>(bytes).is_some(),
    |bytes| again::<OpenReply>(bytes).is_some(),
    |bytes| again::<SetState>(bytes).is_some(),
    |bytes| again::<Seed>(bytes).is_some_and(|m| is_at_most(m.entries.len(), REGIONS_PER_MESSAGE_MAX)),
    |bytes| again::<Clear>(bytes).is_some_and(|m| is_at_most(m.entries.len(), REGIONS_PER_MESSAGE_MAX)),
    |bytes| again::<MapRequest>(bytes).is_some(),
    |bytes| again::<MapReply>(bytes).is_some_and(|m| is_at_most(m.entries.len(), REGIONS_PER_MESSAGE_MAX)),
    |bytes| again::<Cool>(bytes).is_some_and(|m| is_at_most(m.regions.len(), REGIONS_PER_MESSAGE_MAX)),
    |bytes| again::<Close>(bytes).is_some(),
    |bytes| again::<Search>(bytes).is_some_and(|m| is_at_most(m.pattern.len(), PATTERN_MAX)),
    |bytes| again::<SearchReply>(bytes).is_some_and(|m| is_at_most(m.matches.len(), MATCHES_PER_REPLY_MAX)),
    |bytes| again::<ExtentsReply>(bytes).is_some_and(|m| is_at_most(m.extents.len(), EXTENTS_PER_REPLY_MAX)),
    |bytes| again::<VerifyReply>(bytes).is_some_and(|m| m.blocks.len() * VerifyReply::ENTRY_SIZE == bytes.len()),
    |bytes| again::<StaleMark>(bytes).is_some(),
];

/// A byte that says which message, and the message.
pub fn messages(input: &[u8]) -> bool {
    let Some((which, bytes)) = input.split_first() else { return false };
    READERS.get(usize::from(*which) % READERS.len()).is_some_and(|read| read(bytes))
}

pub fn message_seeds() -> Vec<Vec<u8>> {
    let server = ServerId::from_u128(5);
    let generation = Generation { number: 3, random: 99 };
    let identity = DiskIdentity { open: OpenId::from_u128(1), boot: 2, disk_sequence: 3 };
    let open = Open {
        session: SessionNumber(9),
        area: AreaId::from_u128(1),
        slice: SliceId::from_u128(2),
        volume: VolumeId::from_u128(3),
        way: Way::Doubled,
        segment: 4,
        segment_length: 4096,
        leg: 1,
        generation,
        mode: OpenMode::Target,
        borrower: server,
        epoch: Epoch { number: 7, random: 8 },
        secret: LeaseSecret::from_u128(6),
        known_open: OpenId::from_u128(77),
        known_sequence: 12,
    };
    let missed_since = vec![None, Some(generation)];
    let stale = vec![StaleMark { leg: 1, since: generation, seeded: true }];
    let entries = vec![MapEntry { region: 5, hot: true, missed: 0 }, MapEntry { region: 6, hot: false, missed: 9 }];
    let states = [BlockState::Matches, BlockState::Differs, BlockState::Computed, BlockState::Proven];
    let blocks = (1..).zip(states).map(|(sum, state)| VerifyBlock { sum, state }).collect();
    let bodies = [
        Hello { version_min: 1, version_max: 3, features: 0, server, nonce: 4 }.encode(),
        HelloReply { version: 3, features: 0, server, nonce: 4, depth_max: 256, request_max: 1 << 20 }.encode(),
        Announce { pool: PoolId::from_u128(1), urls: vec!["http://a:1".into(), "http://b:2".into()] }.encode(),
        open.encode(),
        identity.encode(),
        OpenReply { identity, generation, unclean: true, sequence: 12, hot_max: 64, missed_since }.encode(),
        SetState { generation, in_sync: vec![true, false], equalised: true, stale }.encode(),
        Seed { leg: 1, since: generation, reset: true, entries: vec![(7, 1 << 63), (8, u64::MAX)] }.encode(),
        Clear { leg: 1, entries: vec![(7, 1)] }.encode(),
        MapRequest { which: MapWhich::Leg(3) }.encode(),
        MapReply { since: Some(generation), lost: true, scanned: 4096, entries }.encode(),
        Cool { regions: vec![1, 2, 3] }.encode(),
        Close { clean: true }.encode(),
        Search { pattern: b"needle".to_vec() }.encode(),
        SearchReply { scanned: 10, count: 2, matches: vec![1, 5] }.encode(),
        ExtentsReply { extents: vec![Extent { length: 1, data: true }, Extent { length: 9, data: false }] }.encode(),
        VerifyReply { blocks }.encode(),
        StaleMark { leg: 2, since: generation, seeded: false }.encode(),
    ];
    let numbered = (0u8..).zip(bodies);
    numbered.map(|(which, body)| [&[which][..], &body].concat()).collect()
}

/// A number of bytes that are the table, the table, and the blocks.
pub fn blocks(input: &[u8]) -> bool {
    let Some((length, rest)) = input.split_first() else { return false };
    let (table, data) = rest.split_at(usize::from(*length).min(rest.len()));
    let whole = data.len() / 4096 * 4096;
    let found = first_mismatch(data, table);
    assert!(found.is_none_or(|block| block == 0 || block < data.len() / 4096));
    assert!(found.is_some() || (whole == data.len() && table.len() == table_size(whole)));
    let mut sums = vec![0; table_size(whole)];
    write_table(&data[..whole], &mut sums);
    assert_eq!(first_mismatch(&data[..whole], &sums), None);
    if let Some(sum) = sums.first_mut() {
        *sum ^= 1;
        assert_eq!(first_mismatch(&data[..whole], &sums), Some(0));
    }
    found.is_none()
}

pub fn block_seeds() -> Vec<Vec<u8>> {
    let seed = |blocks: usize| {
        let data: Vec<u8> = (0..blocks * 4096).map(|n| (n / 512) as u8).collect();
        let mut table = vec![0; table_size(data.len())];
        write_table(&data, &mut table);
        [&[table.len() as u8][..], &table, &data].concat()
    };
    (0..3).map(seed).collect()
}
