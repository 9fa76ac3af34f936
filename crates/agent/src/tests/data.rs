//! Reading, writing, zeroing, extents.

use sublet_types::size::MIB;
use sublet_wire::message::{Close, DiskIdentity, ExtentsReply, Message, Open, OpenMode, SetState};
use sublet_wire::{Flags, Op, RequestFrame, Status};

use super::{Lender, SEGMENT, SLICE, lease, open, open_lease, pattern, run, write_payload};

#[test]
fn bytes_read_back_at_every_size_and_from_a_later_session() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, reply) = lender.session(open(1, 1)).await.unwrap();
        assert!(!reply.unclean);
        assert_eq!(peer.read(0, 4096).await.unwrap(), vec![0; 4096], "a fresh slice reads as zero");
        for (at, length) in
            [(0, 4096), (8192, 28 << 10), (64 << 10, 32 << 10), (1 << 20, 1 << 20), (SEGMENT as usize - 4096, 4096)]
        {
            let data = pattern(length as u8, length);
            assert_eq!(peer.write(at as u64, &data).await, Status::Ok);
            assert_eq!(peer.read(at as u64, length).await.unwrap(), data);
        }
        let remembered = Open { known_open: reply.identity.open, known_sequence: reply.sequence, ..open(1, 2) };
        let (mut later, reply) = lender.session(remembered).await.unwrap();
        assert!(!reply.unclean, "the same client goes on");
        assert_eq!(later.read(1 << 20, 1 << 20).await.unwrap(), pattern(0, 1 << 20));
        assert!(peer.receive().await.is_none(), "the lower session's connection has ended");
    });
}

#[test]
fn many_requests_in_one_send_are_all_answered() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        let data = pattern(5, 4096);
        let mut bytes = Vec::new();
        for n in 0..200u64 {
            let payload = write_payload(&data);
            let frame = peer.frame(Op::Write, n * 4096, 4096, payload.len());
            bytes.extend_from_slice(&frame.encode());
            bytes.extend_from_slice(&payload);
        }
        sublet_doors::ConnWriter::write_all(&mut peer.writer, vec![bytes.into()]).await.unwrap();
        let mut cookies = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let (reply, _) = peer.receive().await.unwrap();
            assert_eq!(reply.status, Status::Ok);
            cookies.insert(reply.cookie);
        }
        assert_eq!(cookies.len(), 200);
        assert_eq!(peer.read(199 * 4096, 4096).await.unwrap(), data);
    });
}

#[test]
fn more_requests_than_the_bounds_allow_are_only_slowed_down() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        let frames: Vec<_> = (0..700).map(|_| peer.frame(Op::Read, 0, MIB as u32, 0).encode()).collect();
        sublet_doors::ConnWriter::write_all(&mut peer.writer, vec![frames.concat().into()]).await.unwrap();
        for _ in 0..700 {
            assert_eq!(peer.receive().await.unwrap().0.status, Status::Ok);
        }
    });
}

#[test]
fn requests_that_do_not_fit_are_refused_and_the_session_goes_on() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        for (offset, length) in [(1, 4096), (0, 1), (0, 0), (SEGMENT, 4096), (SEGMENT - 4096, 8192), (u64::MAX - 4095, 4096)] {
            assert_eq!(peer.read(offset, length).await, Err(Status::OutOfRange), "read {offset} {length}");
            let payload = vec![0; if length % 4096 == 0 { length + length / 1024 } else { length }];
            let (reply, _) = peer.ask(Op::Write, offset, length as u32, &payload).await;
            assert_eq!(reply.status, Status::OutOfRange, "write {offset} {length}");
            let (reply, _) = peer.ask(Op::WriteZeroes, offset, length as u32, &[]).await;
            assert_eq!(reply.status, Status::OutOfRange, "zeroes {offset} {length}");
        }
        assert_eq!(peer.read(0, 2 * MIB as usize).await, Err(Status::TooMuch));
        assert_eq!(peer.ask(Op::Copy, 0, 0, &[]).await.0.status, Status::Unsupported);
        let mut payload = write_payload(&pattern(1, 8192));
        payload[8000] ^= 1;
        assert_eq!(peer.ask(Op::Write, 0, 8192, &payload).await.0.status, Status::BadChecksum);
        assert_eq!(peer.read(0, 8192).await.unwrap(), vec![0; 8192], "nothing of it was written");
        let good = peer.frame(Op::Ping, 0, 0, 0);
        let other = RequestFrame { session: sublet_types::SessionNumber(9), ..good };
        peer.send(&other, &[]).await;
        assert_eq!(peer.reply_to(other.cookie).await.0.status, Status::NotYours);
        let other = RequestFrame { slice: sublet_types::SliceId::from_u128(3), ..good };
        peer.send(&other, &[]).await;
        assert_eq!(peer.reply_to(other.cookie).await.0.status, Status::NotYours);
        let (reply, payload) = peer.ask(Op::Ping, 0, 0, &[]).await;
        assert_eq!(reply.status, Status::Ok);
        assert_eq!(DiskIdentity::decode(&payload).unwrap().boot, 77);
    });
}

#[test]
fn zeroes_flush_fua_and_extents_do_what_they_say() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        let data = pattern(3, MIB as usize);
        let frame = RequestFrame { flags: Flags::FUA, ..peer.frame(Op::Write, MIB, MIB as u32, write_payload(&data).len()) };
        peer.send(&frame, &write_payload(&data)).await;
        assert_eq!(peer.reply_to(frame.cookie).await.0.status, Status::Ok);
        let (reply, payload) = peer.ask(Op::Extents, 0, SEGMENT as u32, &[]).await;
        assert_eq!(reply.status, Status::Ok);
        let extents = ExtentsReply::decode(&payload).unwrap().extents;
        assert_eq!(extents.iter().map(|e| e.length).sum::<u64>(), SEGMENT);
        let mut at = 0;
        for extent in &extents {
            assert!(extent.data || at + extent.length <= MIB || at >= 2 * MIB, "written blocks are data: {extents:?}");
            at += extent.length;
        }
        let (reply, _) = peer.ask(Op::WriteZeroes, MIB + 4096, 8192, &[]).await;
        assert_eq!(reply.status, Status::Ok);
        let read = peer.read(MIB, 16384).await.unwrap();
        assert_eq!((&read[..4096], &read[4096..12288], &read[12288..]), (&data[..4096], &[0; 8192][..], &data[12288..16384]));
        assert_eq!(peer.ask(Op::Flush, 0, 0, &[]).await.0.status, Status::Ok);
    });
}

#[test]
fn an_unclean_end_is_told_until_the_legs_are_made_equal() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (peer, _) = lender.session(open(1, 1)).await.unwrap();
        drop(peer);
        lender.order(open_lease(2)).await;
        let (mut peer, reply) = lender.session(open(2, 1)).await.unwrap();
        assert!(reply.unclean);
        let state = SetState { generation: reply.generation, in_sync: vec![true], equalised: true, stale: Vec::new() };
        assert_eq!(peer.ask(Op::SetState, 0, 0, &state.encode()).await.0.status, Status::Ok);
        assert_eq!(peer.ask(Op::Close, 0, 0, &Close { clean: true }.encode()).await.0.status, Status::Ok);
        assert!(peer.receive().await.is_none(), "CLOSE ends the connection");
        lender.order(open_lease(3)).await;
        let (_peer, reply) = lender.session(open(3, 1)).await.unwrap();
        assert!(!reply.unclean);
    });
}

#[test]
fn h3_w5_a_client_that_was_killed_and_started_again_with_the_same_epoch_left_its_legs_unclean() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, first) = lender.session(open(1, 1)).await.unwrap();
        assert!(!first.unclean);
        assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok);
        drop(peer);
        // A connection that was lost: the client knows the area, and has kept what is not flushed.
        let remembered = |session, reply: &sublet_wire::message::OpenReply| Open {
            known_open: reply.identity.open,
            known_sequence: reply.sequence,
            ..open(1, session)
        };
        let (peer, again) = lender.session(remembered(2, &first)).await.unwrap();
        assert!(!again.unclean, "the same client goes on");
        drop(peer);
        // A new process knows nothing of what the one before has written.
        let (peer, anew) = lender.session(open(1, 3)).await.unwrap();
        assert!(anew.unclean, "what the killed process wrote may be on one leg only");
        drop(peer);
        let (mut peer, again) = lender.session(remembered(4, &anew)).await.unwrap();
        assert!(again.unclean, "until the legs are made equal");
        let state = SetState { generation: again.generation, in_sync: vec![true], equalised: true, stale: Vec::new() };
        assert_eq!(peer.ask(Op::SetState, 0, 0, &state.encode()).await.0.status, Status::Ok);
        assert_eq!(peer.ask(Op::Close, 0, 0, &Close { clean: true }.encode()).await.0.status, Status::Ok);
        assert!(peer.receive().await.is_none());
        // One that closed cleanly left nothing behind; a target is copied to, whatever it holds.
        let (peer, closed) = lender.session(open(1, 5)).await.unwrap();
        assert!(!closed.unclean);
        drop(peer);
        let (_peer, target) = lender.session(Open { mode: OpenMode::Target, ..open(1, 6) }).await.unwrap();
        assert!(!target.unclean);
    });
}

#[test]
fn an_unclean_end_is_told_to_a_read_only_client_too() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (peer, _) = lender.session(open(1, 1)).await.unwrap();
        drop(peer);
        let read_only = sublet_api::order::Order::OpenLease {
            slice: SLICE,
            area: super::AREA,
            lease: sublet_api::order::Lease { read_only: true, ..lease(2) },
            facts: super::facts(),
        };
        lender.order(read_only).await;
        let (mut peer, reply) = lender.session(open(2, 1)).await.unwrap();
        assert!(reply.unclean, "the legs may differ, and this client cannot make them equal");
        assert_eq!(peer.ask(Op::Close, 0, 0, &Close { clean: true }.encode()).await.0.status, Status::Ok);
        lender.order(open_lease(3)).await;
        let (_peer, reply) = lender.session(open(3, 1)).await.unwrap();
        assert!(reply.unclean, "nor did its close make them equal");
    });
}

#[test]
fn a_read_only_lease_and_a_passed_deadline_refuse() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let read_only = sublet_api::order::Order::OpenLease {
            slice: SLICE,
            area: super::AREA,
            lease: sublet_api::order::Lease { read_only: true, ..lease(2) },
            facts: super::facts(),
        };
        lender.order(read_only).await;
        let (mut peer, _) = lender.session(open(2, 1)).await.unwrap();
        assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::ReadOnly);
        assert_eq!(peer.ask(Op::WriteZeroes, 0, 4096, &[]).await.0.status, Status::ReadOnly);
        assert_eq!(peer.read(0, 4096).await.unwrap(), vec![0; 4096]);

        // The bounds are full of slow writes: what waits behind them is not begun in time.
        lender.order(open_lease(3)).await;
        let (mut peer, _) = lender.session(open(3, 1)).await.unwrap();
        lender.doors.gate.close();
        let payload = write_payload(&pattern(1, MIB as usize));
        for _ in 0..31 {
            let frame = peer.frame(Op::Write, 0, MIB as u32, payload.len());
            peer.send(&frame, &payload).await;
        }
        let late = RequestFrame { deadline_ms: 50, ..peer.frame(Op::Read, 0, MIB as u32, 0) };
        peer.send(&late, &[]).await;
        sublet_doors::Clock::sleep(&lender.doors, std::time::Duration::from_millis(200)).await;
        lender.doors.gate.open();
        assert_eq!(peer.reply_to(late.cookie).await.0.status, Status::Deadline);
    });
}
