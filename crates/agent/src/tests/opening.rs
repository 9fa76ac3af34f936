//! OPEN: compared with the label (F6), and in the order of sessions (W4).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use sublet_doors::{Clock as _, Doors as _};
use sublet_types::size::MIB;
use sublet_types::{AreaId, Generation, LeaseSecret, ServerId, SliceId, VolumeId, Way};
use sublet_wire::message::{Open, OpenMode, OpenReply};
use sublet_wire::{Op, Status};

use super::{Lender, SEGMENT, open, open_lease, pattern, run, write_payload};

#[test]
fn test_f6_every_disagreement_with_the_label_is_refused() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        lender.order(open_lease(2)).await;
        let good = open(2, 1);
        let cases: Vec<(&str, Open, Status)> = vec![
            ("secret", Open { secret: LeaseSecret::from_u128(99), ..good.clone() }, Status::NotYours),
            ("borrower", Open { borrower: ServerId::from_u128(9), ..good.clone() }, Status::NotYours),
            ("generation", Open { generation: Generation { number: 5, random: 9 }, ..good.clone() }, Status::Disagreement),
            ("split generation", Open { generation: Generation { number: 1, random: 8 }, ..good.clone() }, Status::Disagreement),
            ("segment", Open { segment: 1, ..good.clone() }, Status::Disagreement),
            ("segment length", Open { segment_length: SEGMENT + 4096, ..good.clone() }, Status::Disagreement),
            ("leg", Open { leg: 1, ..good.clone() }, Status::Disagreement),
            ("way", Open { way: Way::Divided, ..good.clone() }, Status::Disagreement),
            ("volume", Open { volume: VolumeId::from_u128(5), ..good.clone() }, Status::Disagreement),
            ("slice", Open { slice: SliceId::from_u128(5), ..good.clone() }, Status::NoSlice),
            ("area", Open { area: AreaId::from_u128(5), ..good.clone() }, Status::NoSlice),
            ("old epoch", open(1, 9), Status::StaleEpoch),
            ("epoch without lease", open(3, 1), Status::NotYours),
        ];
        for round in ["before", "after"] {
            for (what, wrong, status) in &cases {
                let refused = lender.session(wrong.clone()).await.map(|_| ());
                assert_eq!(refused, Err(*status), "{what}, {round} a restart");
            }
            lender.restart().await;
        }
        assert!(lender.session(good).await.is_ok());
    });
}

#[test]
fn test_w4_a_higher_session_opens_only_after_the_lower_ones_writes_have_ended() {
    run(async |doors| {
        let lender = Rc::new(Lender::lent(doors).await);
        let (mut old, _) = lender.session(open(1, 1)).await.unwrap();
        lender.doors.gate.close();
        let data = pattern(1, MIB as usize);
        let payload = write_payload(&data);
        let frame = old.frame(Op::Write, 0, MIB as u32, payload.len());
        old.send(&frame, &payload).await;
        while lender.doors.gate.waiting.get() == 0 {
            lender.doors.sleep(Duration::from_millis(5)).await;
        }
        let opened = Rc::new(Cell::new(false));
        let (own, flag) = (Rc::clone(&lender), Rc::clone(&opened));
        lender.doors.spawn(async move {
            let (mut new, _) = own.session(open(1, 2)).await.unwrap();
            flag.set(true);
            // The old write lies below the new one for ever.
            assert_eq!(new.write(0, &pattern(2, MIB as usize)).await, Status::Ok);
        });
        lender.doors.sleep(Duration::from_millis(300)).await;
        assert!(!opened.get(), "OPEN waits for the disk I/O of the lower session");
        lender.doors.gate.open();
        while !opened.get() || lender.doors.gate.waiting.get() > 0 {
            lender.doors.sleep(Duration::from_millis(5)).await;
        }
        lender.doors.sleep(Duration::from_millis(100)).await;
        assert_eq!(lender.on_disk(0, MIB as usize).await, pattern(2, MIB as usize));
        for lower in [1, 2] {
            assert_eq!(lender.session(open(1, lower)).await.map(|_| ()), Err(Status::Superseded), "session {lower}");
        }
        assert!(lender.session(open(1, 3)).await.is_ok());
    });
}

#[test]
fn w4_what_arrives_on_an_old_connection_after_a_higher_session_is_open_is_never_begun() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut old, _) = lender.session(open(1, 1)).await.unwrap();
        let payload = write_payload(&pattern(1, MIB as usize));
        // Of this write the header and half of the bytes are there; the rest is delayed on the way, and so is a whole one.
        let half = old.frame(Op::Write, 0, MIB as u32, payload.len());
        let late = old.frame(Op::Write, 2 * MIB, MIB as u32, payload.len());
        let (first, rest) = payload.split_at(payload.len() / 2);
        old.send(&half, first).await;
        let (mut new, _) = lender.session(open(1, 2)).await.unwrap();
        // The old connection may be gone already.
        let delayed = [rest, &late.encode(), &payload].concat();
        let _ = sublet_doors::ConnWriter::write_all(&mut old.writer, vec![delayed.into()]).await;
        assert_eq!(new.write(4 * MIB, &pattern(2, MIB as usize)).await, Status::Ok);
        lender.doors.sleep(Duration::from_millis(200)).await;
        for at in [0, 2 * MIB] {
            assert_eq!(lender.on_disk(at, MIB as usize).await, vec![0; MIB as usize], "nothing old at {at}");
        }
        assert_eq!(lender.on_disk(4 * MIB, MIB as usize).await, pattern(2, MIB as usize));
    });
}

#[test]
fn l2_what_a_client_remembers_of_an_area_is_in_its_history_or_the_area_is_quarantined() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let remembering = |session, reply: &OpenReply| Open {
            known_open: reply.identity.open,
            known_sequence: reply.sequence,
            ..open(1, session)
        };
        let (peer, first) = lender.session(open(1, 1)).await.unwrap();
        drop(peer);
        let old = std::fs::read(lender.file()).unwrap();
        // Restarts are no reason for distrust: the openings follow each other.
        lender.restart().await;
        lender.restart().await;
        let (peer, second) = lender.session(remembering(2, &first)).await.unwrap();
        assert!(second.sequence > first.sequence && second.identity.open != first.identity.open);
        drop(peer);
        // Somebody restores an old copy.
        lender.stop().await;
        std::fs::write(lender.file(), old).unwrap();
        lender.serve_area().await;
        // One who remembers nothing cannot know.
        let (mut unaware, _) = lender.session(open(1, 2)).await.unwrap();
        assert_eq!(lender.session(remembering(3, &second)).await.map(|_| ()), Err(Status::Disagreement));
        let report = lender.agent.reports().remove(0);
        assert!(report.quarantined.is_some_and(|why| why.contains("rolled back")));
        assert_eq!(unaware.receive().await.unwrap().0.op, Op::Draining, "who has it open has to ask again");
        // From now on nobody reads from it, whatever he remembers, and a restart does not change that. It may be copied to.
        lender.restart().await;
        assert_eq!(lender.session(open(1, 4)).await.map(|_| ()), Err(Status::Disagreement));
        assert_eq!(lender.session(remembering(5, &first)).await.map(|_| ()), Err(Status::Disagreement));
        assert!(lender.session(Open { mode: OpenMode::Target, ..open(1, 6) }).await.is_ok());
        assert_eq!(lender.agent.reports().remove(0).slices.len(), 1, "its slices are told all the same");
    });
}

#[test]
fn a_refused_open_disturbs_nobody() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        let wrong = Open { secret: LeaseSecret::from_u128(99), ..open(1, 2) };
        assert_eq!(lender.session(wrong).await.map(|_| ()), Err(Status::NotYours));
        assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok);
    });
}

#[test]
fn a_stale_leg_is_written_and_never_read_until_its_label_is_in_sync() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let stale =
            sublet_api::order::SliceFacts { legs: 2, leg: 1, in_sync: vec![true, false], way: Way::Doubled, ..super::facts() };
        let order =
            sublet_api::order::Order::OpenLease { slice: super::SLICE, area: super::AREA, lease: super::lease(2), facts: stale };
        lender.order(order).await;
        let wish = Open { leg: 1, way: Way::Doubled, mode: OpenMode::Target, ..open(2, 1) };
        let (mut peer, _) = lender.session(wish).await.unwrap();
        assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok);
        assert_eq!(peer.read(0, 4096).await, Err(Status::Disagreement));
        let state = sublet_wire::message::SetState {
            generation: Generation { number: 2, random: 4 },
            in_sync: vec![true, true],
            equalised: false,
            stale: Vec::new(),
        };
        let (reply, _) = peer.ask(Op::SetState, 0, 0, &sublet_wire::message::Message::encode(&state)).await;
        assert_eq!(reply.status, Status::Ok);
        assert_eq!(peer.read(0, 4096).await.unwrap(), pattern(1, 4096));
    });
}
