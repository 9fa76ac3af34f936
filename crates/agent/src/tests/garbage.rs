//! Peers that do not keep to the protocol.

use std::time::Duration;

use sublet_doors::{Clock as _, ConnWriter as _};
use sublet_wire::checksum::crc32c;
use sublet_wire::frame::PROTOCOL_VERSION;
use sublet_wire::message::{Close, Hello, Message};
use sublet_wire::{FRAME_SIZE, Op, RequestFrame, Status};

use crate::limits::{ARRIVALS_MAX, CONNECTIONS_MAX};

use super::{BORROWER, Lender, open, pattern, run, write_payload};

async fn nobody_is_left(lender: &Lender) {
    let gone = async {
        while lender.agent.connections.get() > 0 || lender.agent.sessions() > 0 {
            lender.doors.sleep(Duration::from_millis(5)).await;
        }
    };
    lender.doors.timeout(Duration::from_secs(20), gone).await.expect("all connections end");
}

#[test]
fn garbage_is_answered_as_malformed_and_the_connection_ends() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        for bytes in [vec![0u8; 64], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(9), vec![0xff; 100_000]] {
            let mut peer = lender.connect().await;
            let _ = peer.writer.write_all(vec![bytes.into()]).await;
            if let Some((reply, text)) = peer.receive().await {
                assert_eq!(reply.status, Status::Malformed);
                assert!(!text.is_empty());
                assert!(peer.receive().await.is_none());
            }
        }
        nobody_is_left(&lender).await;
    });
}

#[test]
fn a_frame_of_another_protocol_version_is_refused_although_its_checksum_is_right() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut greeted, _) = lender.session(open(1, 1)).await.unwrap();
        let hello = Hello { version_min: 2, version_max: 3, features: 0, server: BORROWER, nonce: 0 }.encode();
        let write = write_payload(&pattern(1, 4096));
        let fresh = lender.connect().await;
        let first = greeted.frame(Op::Write, 0, 4096, write.len());
        for (mut peer, frame, payload) in
            [(greeted, first, write), (fresh, RequestFrame { op: Op::Hello, payload: hello.len() as u32, ..first }, hello)]
        {
            let mut bytes = frame.encode().to_vec();
            bytes[4] = PROTOCOL_VERSION + 1;
            let sum = crc32c(&bytes[..FRAME_SIZE - 4]);
            bytes[FRAME_SIZE - 4..].copy_from_slice(&sum.to_le_bytes());
            bytes.extend(payload);
            let _ = peer.writer.write_all(vec![bytes.into()]).await;
            let (reply, text) = peer.receive().await.unwrap();
            assert_eq!(reply.status, Status::Malformed, "{:?}", frame.op);
            assert!(String::from_utf8(text).unwrap().contains("version"));
            assert!(peer.receive().await.is_none());
        }
        assert_eq!(lender.on_disk(0, 4096).await, vec![0; 4096]);
        nobody_is_left(&lender).await;
    });
}

#[test]
fn what_is_out_of_turn_ends_the_connection() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let mut peer = lender.connect().await;
        let frame = peer.frame(Op::Read, 0, 4096, 0);
        peer.send(&frame, &[]).await;
        assert_eq!(peer.receive().await.unwrap().0.status, Status::Malformed);
        assert!(peer.receive().await.is_none());

        let mut peer = lender.connect().await;
        let hello = Hello { version_min: PROTOCOL_VERSION + 1, version_max: 9, features: 0, server: BORROWER, nonce: 0 };
        assert_eq!(peer.ask(Op::Hello, 0, 0, &hello.encode()).await.0.status, Status::Version);
        assert!(peer.receive().await.is_none());

        for op in [Op::Hello, Op::Open, Op::Fenced] {
            let (mut peer, _) = lender.session(open(1, 10 + op as u64)).await.unwrap();
            assert_eq!(peer.ask(op, 0, 0, &[]).await.0.status, Status::Malformed, "{op:?}");
            assert!(peer.receive().await.is_none());
        }
        nobody_is_left(&lender).await;
    });
}

#[test]
fn payloads_that_do_not_fit_end_the_connection_and_write_nothing() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let mut session = 0;
        let close = Close { clean: true }.encode();
        for (op, length, payload, sent, status) in [
            (Op::Write, 4096, 2 << 20, 0, Status::TooMuch),
            (Op::Write, 4096, u32::MAX, 0, Status::TooMuch),
            (Op::Write, 8192, 4100, 4100, Status::Malformed),
            (Op::Read, 4096, 10, 10, Status::Malformed),
            (Op::Close, 0, close.len() as u32 + 1, close.len() + 1, Status::Malformed),
            (Op::Search, 4096, 2, 2, Status::Malformed),
            (Op::SetState, 0, 1 << 20, 0, Status::TooMuch),
        ] {
            session += 1;
            let (mut peer, _) = lender.session(open(1, session)).await.unwrap();
            let frame = RequestFrame { payload, ..peer.frame(op, 0, length, 0) };
            peer.send(&frame, &vec![0; sent]).await;
            assert_eq!(peer.reply_to(frame.cookie).await.0.status, status, "{op:?} {length} {payload}");
            assert!(peer.receive().await.is_none());
        }
        assert_eq!(lender.on_disk(0, 8192).await, vec![0; 8192]);
        nobody_is_left(&lender).await;
    });
}

#[test]
fn connections_that_break_off_anywhere_leave_nothing_behind() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        for session in 1..20 {
            let (mut peer, _) = lender.session(open(1, session)).await.unwrap();
            let frame = peer.frame(Op::Write, 0, 65536, 65536 + 64);
            peer.send(&frame, &pattern(1, session as usize * 3000)).await;
        }
        for n in [0, 1, 63] {
            let mut peer = lender.connect().await;
            peer.writer.write_all(vec![vec![1; n].into()]).await.unwrap();
        }
        nobody_is_left(&lender).await;
        assert_eq!(lender.on_disk(0, 65536).await, vec![0; 65536]);
    });
}

#[test]
fn who_says_nothing_is_closed_after_the_time_limit() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let _silent = lender.connect().await;
        let _half = lender.greeted().await;
        assert_eq!(lender.agent.connections.get(), 2);
        lender.doors.sleep(crate::limits::HANDSHAKE_TIME_MAX / 2).await;
        assert_eq!(lender.agent.connections.get(), 2);
        nobody_is_left(&lender).await;
    });
}

#[test]
fn connections_that_say_nothing_keep_no_borrower_out_however_many_there_are() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut early, _) = lender.session(open(1, 1)).await.unwrap();
        let mut silent = Vec::new();
        for number in 0..CONNECTIONS_MAX + 100 {
            // Some have said HELLO, and nothing since.
            silent.push(if number % 16 == 0 { lender.greeted().await } else { lender.connect().await });
        }
        lender.doors.sleep(Duration::from_millis(10)).await;
        assert!(lender.agent.connections.get() <= ARRIVALS_MAX + 1, "{} are kept", lender.agent.connections.get());
        assert_eq!(early.ask(Op::Flush, 0, 0, &[]).await.0.status, Status::Ok, "an open session is not touched");
        let (mut late, _) = lender.session(open(1, 2)).await.expect("and a new one is opened");
        let payload = write_payload(&pattern(1, 4096));
        let frame = late.frame(Op::Write, 0, 4096, payload.len());
        late.send(&frame, &payload).await;
        assert_eq!(late.reply_to(frame.cookie).await.0.status, Status::Ok);
        assert_eq!(silent.remove(0).receive().await.map(|(reply, _)| reply.status), None, "the oldest had to go");
        drop((silent, early, late));
        nobody_is_left(&lender).await;
    });
}
