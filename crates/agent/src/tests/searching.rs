//! SEARCH against a naive scan.

use sublet_types::size::MIB;
use sublet_wire::message::{MATCHES_PER_REPLY_MAX, Message, Search, SearchReply};
use sublet_wire::{Flags, Op, RequestFrame, Status};

use super::{Lender, Peer, SEGMENT, open, run};

async fn count(peer: &mut Peer, from: u64, to: u64, pattern: &[u8]) -> u64 {
    let (mut at, mut count) = (from, 0);
    while at < to {
        let question = Search { pattern: pattern.to_vec() }.encode();
        let frame = RequestFrame { flags: Flags::COUNT, ..peer.frame(Op::Search, at, (to - at) as u32, question.len()) };
        peer.send(&frame, &question).await;
        let (reply, payload) = peer.reply_to(frame.cookie).await;
        assert_eq!(reply.status, Status::Ok);
        let reply = SearchReply::decode(&payload).unwrap();
        assert!(reply.scanned > 0 && reply.matches.is_empty());
        count += reply.count;
        at += reply.scanned;
    }
    count
}

async fn search(peer: &mut Peer, from: u64, to: u64, pattern: &[u8]) -> Vec<u64> {
    let (mut at, mut found) = (from, Vec::new());
    while at < to {
        let payload = Search { pattern: pattern.to_vec() }.encode();
        let (reply, payload) = peer.ask(Op::Search, at, (to - at) as u32, &payload).await;
        assert_eq!(reply.status, Status::Ok);
        let reply = SearchReply::decode(&payload).unwrap();
        assert!(reply.scanned > 0, "it gets on");
        assert_eq!(reply.count, reply.matches.len() as u64);
        found.extend(reply.matches);
        at += reply.scanned;
    }
    assert_eq!(at, to);
    found
}

fn naive(bytes: &[u8], from: usize, to: usize, pattern: &[u8]) -> Vec<u64> {
    (from..to).filter(|at| bytes[*at..].starts_with(pattern)).map(|at| at as u64).collect()
}

#[test]
fn all_matches_are_found_also_overlapping_across_steps_and_beside_holes() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        let mut model = vec![0u8; SEGMENT as usize];
        let mut put = vec![
            (4096 - 3, b"needle".to_vec()),
            (MIB as usize - 2, b"needleneedle".to_vec()),
            (2 * MIB as usize + 100, b"aaaaaaa".to_vec()),
            (4 * MIB as usize - 4, b"aaaa".to_vec()),
            (5 * MIB as usize, b"aaaa".to_vec()),
            (SEGMENT as usize - 6, b"needle".to_vec()),
            (SEGMENT as usize - 300_000, vec![9; 3]),
        ];
        put.push((0, b"x".to_vec()));
        for (at, bytes) in &put {
            model[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        for block in (0..SEGMENT as usize).step_by(4096) {
            let bytes = &model[block..block + 4096];
            if bytes.iter().any(|b| *b != 0) {
                assert_eq!(peer.write(block as u64, bytes).await, Status::Ok);
            }
        }
        let patterns: [&[u8]; 9] =
            [b"needle", b"aa", b"aaaa", b"a", b"\0a", b"a\0", b"\0\0\0needle", &[9, 9, 9, 0, 0, 0, 0, 0], b"nowhere"];
        for pattern in patterns {
            for (from, to) in [(0, SEGMENT), (1, SEGMENT - 1), (4096 - 3, 4096 - 2), (MIB - 1, 2 * MIB + 103)] {
                let expected = naive(&model, from as usize, to as usize, pattern);
                assert_eq!(search(&mut peer, from, to, pattern).await, expected, "{} in {from}..{to}", pattern.escape_ascii());
                assert_eq!(count(&mut peer, from, to, pattern).await, expected.len() as u64);
            }
        }
        // A long pattern of zeroes and one byte reaches from a hole into data.
        let long = [vec![0; 4095], b"x".to_vec()].concat();
        assert_eq!(search(&mut peer, 0, SEGMENT, &long).await, naive(&model, 0, SEGMENT as usize, &long));
    });
}

#[test]
fn zeroes_are_found_in_holes_and_replies_are_bounded() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        assert_eq!(peer.write(8192, &[1; 4096]).await, Status::Ok);
        let payload = Search { pattern: vec![0; 16] }.encode();
        let (_, payload) = peer.ask(Op::Search, 0, SEGMENT as u32, &payload).await;
        let reply = SearchReply::decode(&payload).unwrap();
        assert_eq!((reply.matches.len(), reply.scanned), (MATCHES_PER_REPLY_MAX, MATCHES_PER_REPLY_MAX as u64));
        let found = search(&mut peer, 0, 16384, &[0; 16]).await;
        let expected: Vec<u64> = (0..=8192 - 16).chain(12288..16384).collect();
        assert_eq!(found, expected);
        assert_eq!(count(&mut peer, 0, SEGMENT, &[0; 16]).await, SEGMENT - 15 - 4096 - 15);
        let (reply, _) = peer.ask(Op::Search, SEGMENT - 1, 2, &Search { pattern: vec![1] }.encode()).await;
        assert_eq!(reply.status, Status::OutOfRange);
    });
}
