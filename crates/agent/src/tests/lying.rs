//! A borrower that lies: with a lease of its own, right frames and absurd content. It reaches nothing but its own slice.

use std::time::Duration;

use sublet_api::order::{Order, SliceFacts};
use sublet_doors::{Clock as _, Rng as _};
use sublet_types::size::MIB;
use sublet_types::{SessionNumber, SliceId, VolumeId};
use sublet_wire::message::Open;
use sublet_wire::{Flags, Op, RequestFrame, Status};

use super::{AREA, Lender, Peer, SEGMENT, SLICE, epoch, facts, lease, open, pattern, run, write_payload};

/// Somebody else's, right behind.
const NEIGHBOUR: SliceId = SliceId::from_u128(0x52);

const OPS: [Op; 21] = [
    Op::Hello,
    Op::Open,
    Op::Read,
    Op::Write,
    Op::WriteZeroes,
    Op::Flush,
    Op::Extents,
    Op::Search,
    Op::SetState,
    Op::Map,
    Op::Copy,
    Op::Ping,
    Op::Close,
    Op::Announce,
    Op::Seed,
    Op::Cool,
    Op::Verify,
    Op::Clear,
    Op::Fenced,
    Op::Draining,
    Op::Resized,
];

fn neighbour_facts() -> SliceFacts {
    SliceFacts {
        slice: NEIGHBOUR,
        offset: 12 * MIB,
        length: 4 * MIB,
        volume: VolumeId::from_u128(0x71),
        volume_name: "vol-2".parse().unwrap(),
        volume_size: 4 * MIB,
        segment_length: 4 * MIB,
        ..facts()
    }
}

async fn neighbour(lender: &Lender) -> Peer {
    lender.order(Order::PrepareSlice { slice: neighbour_facts() }).await;
    lender.order(Order::OpenLease { slice: NEIGHBOUR, area: AREA, lease: lease(1), facts: neighbour_facts() }).await;
    let facts = neighbour_facts();
    let own = Open { slice: NEIGHBOUR, volume: facts.volume, segment_length: facts.segment_length, ..open(1, 1) };
    lender.session(own).await.unwrap().0
}

/// One of these, or a number near one.
fn number(lender: &Lender, of: &[u64]) -> u64 {
    let bits = lender.doors.random_u64();
    let one = of[(bits >> 32) as usize % of.len()];
    match bits % 4 {
        0 => one.wrapping_add(4096),
        1 => one.wrapping_sub(4096),
        2 => one.wrapping_add(bits >> 56),
        _ => one,
    }
}

/// A frame with a right checksum, and whatever else.
fn frame(lender: &Lender, session: SessionNumber, cookie: u64) -> (RequestFrame, Vec<u8>) {
    let below = |n: u64| lender.doors.random_u64() % n;
    let op = OPS[below(OPS.len() as u64) as usize];
    let length = number(lender, &[0, 4096, 65536, 1 << 20, SEGMENT, u32::MAX.into()]) as u32;
    let payload = match below(5) {
        0 => Vec::new(),
        // Of a right size, for a write to wherever.
        1 => write_payload(&pattern(below(256) as u8, (length as usize).min(1 << 20) / 4096 * 4096)),
        2 => std::iter::repeat_with(|| below(256) as u8).take(below(200) as usize).collect(),
        3 => vec![0xff; below(70_000) as usize],
        _ => vec![0; [1, 16, 24, 42, 178][below(5) as usize]],
    };
    let slice = [SLICE, SLICE, SLICE, NEIGHBOUR, SliceId::from_u128(0)][below(5) as usize];
    let session = SessionNumber(number(lender, &[session.0, session.0, session.0, 1, u64::MAX]));
    let frame = RequestFrame {
        op,
        flags: Flags(below(1 << 16) as u16),
        cookie,
        session: if below(3) == 0 { session } else { SessionNumber(cookie) },
        slice,
        offset: number(lender, &[0, 4096, SEGMENT, 8 * MIB, 12 * MIB, 16 * MIB, u64::MAX, 1 << 63]),
        length,
        deadline_ms: below(3) as u32,
        payload: if below(8) == 0 { number(lender, &[0, 1 << 20, u32::MAX.into()]) as u32 } else { payload.len() as u32 },
    };
    (frame, payload)
}

#[test]
fn a_borrower_that_lies_reaches_no_other_slice_and_keeps_no_neighbour_from_working() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let mut beside = neighbour(&lender).await;
        let bytes = pattern(7, 4 << 20);
        for (n, part) in bytes.chunks(1 << 20).enumerate() {
            assert_eq!(beside.write((n << 20) as u64, part).await, Status::Ok);
        }
        let mut sent = 0;
        for session in 1..=60 {
            let (mut peer, _) = match lender.session(open(1, session)).await {
                Ok(opened) => opened,
                // What it has said of its generation before now stands in its own label.
                Err(status) => {
                    assert!(matches!(status, Status::Disagreement), "{status:?}");
                    lender.order(Order::WipeSlice { slice: SLICE, area: AREA, epoch: epoch(2), drop: true }).await;
                    break;
                }
            };
            for cookie in 1..=40 {
                let (frame, payload) = frame(&lender, SessionNumber(session), cookie);
                let mut whole = frame.encode().to_vec();
                whole.extend_from_slice(&payload);
                sent += 1;
                // The lender may have ended the connection already.
                if sublet_doors::ConnWriter::write_all(&mut peer.writer, vec![whole.into()]).await.is_err() {
                    break;
                }
            }
            assert_eq!(beside.read(0, 4096).await.unwrap(), bytes[..4096], "session {session}");
        }
        assert!(sent > 100, "{sent} frames");
        for (n, part) in bytes.chunks(1 << 20).enumerate() {
            assert!(beside.read((n << 20) as u64, part.len()).await.unwrap() == part, "its bytes are as they were");
        }
        assert_eq!(beside.ask(Op::Flush, 0, 0, &[]).await.0.status, Status::Ok);
        let own = async {
            while lender.agent.connections.get() > 1 {
                lender.doors.sleep(Duration::from_millis(5)).await;
            }
        };
        lender.doors.timeout(Duration::from_secs(30), own).await.expect("the connections of the liar end");
    });
}
