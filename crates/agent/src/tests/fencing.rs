//! FENCE: nothing old lands after it was answered (F1), and a restart does not forget it (F2).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use sublet_api::ErrorKind;
use sublet_api::order::{Order, Outcome, SliceFacts};
use sublet_api::server::Tombstone;
use sublet_area::Area;
use sublet_doors::{Clock as _, Doors as _};
use sublet_types::size::MIB;

use sublet_types::{AreaId, PoolId, SliceId, VolumeId};
use sublet_wire::message::BlockState;
use sublet_wire::{Op, Status};

use super::{AREA, Lender, SLICE, epoch, facts, fence, open, open_lease, pattern, run, write_payload};

#[test]
fn test_f1_not_one_byte_lands_after_the_fence_is_answered() {
    run(async |doors| {
        let lender = Rc::new(Lender::lent(doors).await);
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        lender.doors.gate.close();
        let payload = write_payload(&pattern(7, MIB as usize));
        let first = peer.frame(Op::Write, 0, MIB as u32, payload.len());
        peer.send(&first, &payload).await;
        while lender.doors.gate.waiting.get() == 0 {
            lender.doors.sleep(Duration::from_millis(5)).await;
        }
        let fenced = Rc::new(Cell::new(false));
        let (own, flag) = (Rc::clone(&lender), Rc::clone(&fenced));
        lender.doors.spawn(async move {
            own.order(fence(2)).await;
            flag.set(true);
        });
        lender.doors.sleep(Duration::from_millis(200)).await;
        assert!(!fenced.get(), "a write is still at the disk");
        // A write that arrives now is never begun.
        let second = peer.frame(Op::Write, 2 * MIB, MIB as u32, payload.len());
        let mut bytes = second.encode().to_vec();
        bytes.extend_from_slice(&payload);
        let _ = sublet_doors::ConnWriter::write_all(&mut peer.writer, vec![bytes.into()]).await;
        lender.doors.gate.open();
        while !fenced.get() {
            lender.doors.sleep(Duration::from_millis(1)).await;
        }
        let at_fence = lender.on_disk(0, MIB as usize).await;
        let (notice, _) = peer.receive().await.expect("the client is told");
        assert_eq!((notice.op, notice.status, notice.cookie), (Op::Fenced, Status::StaleEpoch, 0));
        assert!(peer.receive().await.is_none(), "and the connection ends");
        lender.doors.sleep(Duration::from_millis(200)).await;
        assert_eq!(lender.on_disk(0, MIB as usize).await, at_fence);
        assert_eq!(lender.on_disk(2 * MIB, MIB as usize).await, vec![0; MIB as usize]);
        assert_eq!(lender.session(open(1, 2)).await.map(|_| ()), Err(Status::StaleEpoch));
        assert_eq!(lender.session(open(2, 1)).await.map(|_| ()), Err(Status::StaleEpoch), "a fence admits nobody");
    });
}

#[test]
fn test_f1_the_epoch_survives_a_restart_and_so_does_an_open_lease() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        lender.order(open_lease(4)).await;
        let (mut peer, _) = lender.session(open(4, 1)).await.unwrap();
        assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok);
        drop(peer);
        lender.restart().await;
        assert_eq!(lender.session(open(3, 9)).await.map(|_| ()), Err(Status::StaleEpoch));
        let (mut peer, _) = lender.session(open(4, 2)).await.unwrap();
        assert_eq!(peer.read(0, 4096).await.unwrap(), pattern(1, 4096));
        drop(peer);
        lender.order(fence(5)).await;
        lender.restart().await;
        assert_eq!(lender.session(open(4, 3)).await.map(|_| ()), Err(Status::StaleEpoch));
    });
}

#[test]
fn f1_a_session_of_an_older_epoch_never_comes_back_and_a_late_lease_of_one_is_refused_across_restarts() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        lender.order(fence(7)).await;
        assert_eq!(peer.receive().await.unwrap().0.op, Op::Fenced);
        for round in 0..3 {
            for number in [1, 5, 6] {
                assert!(matches!(lender.agent.execute(&open_lease(number)).await, Outcome::Failed { .. }), "round {round}");
                assert_eq!(lender.session(open(number, 9)).await.map(|_| ()), Err(Status::StaleEpoch), "round {round}");
            }
            // A fence that was overtaken is done, and changes nothing.
            lender.order(fence(3)).await;
            lender.restart().await;
        }
        lender.order(open_lease(8)).await;
        lender.restart().await;
        assert!(lender.session(open(8, 1)).await.is_ok());
    });
}

#[test]
fn f4_a_fenced_session_is_told_so_and_reads_nothing_more_either() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok);
        lender.order(open_lease(2)).await;
        let read = peer.frame(Op::Read, 0, 4096, 0);
        // The connection may have ended already.
        let _ = sublet_doors::ConnWriter::write_all(&mut peer.writer, vec![read.encode().to_vec().into()]).await;
        while let Some((reply, _)) = peer.receive().await {
            assert_eq!(reply.status, Status::StaleEpoch, "{:?}", reply.op);
        }
        let (mut next, _) = lender.session(open(2, 1)).await.unwrap();
        assert_eq!(next.read(0, 4096).await.unwrap(), pattern(1, 4096));
    });
}

#[test]
fn f1_f4_w7_an_epoch_that_the_disk_does_not_take_ends_the_sessions_of_older_ones_all_the_same() {
    let wipe = Order::WipeSlice { slice: SLICE, area: AREA, epoch: epoch(2), drop: true };
    for order in [fence(2), open_lease(2), wipe] {
        run(async |doors| {
            let lender = Lender::lent(doors).await;
            let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
            assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok);
            lender.doors.gate.broken.set(true);
            let outcome = lender.agent.execute(&order).await;
            assert!(matches!(&outcome, Outcome::Failed { refusal } if refusal.kind == ErrorKind::Io), "{outcome:?}");
            let (notice, _) = peer.receive().await.expect("the client is told");
            assert_eq!((notice.op, notice.status), (Op::Fenced, Status::StaleEpoch), "{order:?}");
            assert!(peer.receive().await.is_none());
            // One that has not heard it finds no way in either: the manager has given its epoch up.
            assert_eq!(lender.session(open(1, 2)).await.map(|_| ()), Err(Status::StaleEpoch), "{order:?}");
        });
    }
}

#[test]
fn f1_an_order_of_an_older_epoch_or_of_another_history_ends_no_session() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        lender.order(open_lease(5)).await;
        let (mut peer, _) = lender.session(open(5, 1)).await.unwrap();
        let split = Order::Fence { slice: SLICE, area: AREA, epoch: sublet_types::Epoch { number: 5, random: 1 } };
        for late in [open_lease(4), split] {
            assert!(matches!(lender.agent.execute(&late).await, Outcome::Failed { .. }));
            assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok, "{late:?}");
        }
    });
}

#[test]
fn orders_may_come_twice_and_late_fences_change_nothing() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        lender.order(open_lease(2)).await;
        let (mut peer, _) = lender.session(open(2, 1)).await.unwrap();
        lender.order(open_lease(2)).await;
        lender.order(fence(1)).await;
        assert_eq!(peer.write(0, &pattern(1, 4096)).await, Status::Ok, "the present session goes on");
        assert!(matches!(lender.agent.execute(&open_lease(1)).await, Outcome::Failed { .. }));
        lender.order(fence(2)).await;
        lender.order(fence(2)).await;
        assert_eq!(peer.receive().await.unwrap().0.op, Op::Fenced);
    });
}

#[test]
fn test_f2_a_second_agent_waits_for_the_lock_of_the_first() {
    run(async |doors| {
        let lender = Rc::new(Lender::lent(doors).await);
        let opened = Rc::new(Cell::new(false));
        let (own, flag) = (Rc::clone(&lender), Rc::clone(&opened));
        lender.doors.spawn(async move {
            Area::open(&own.doors, &own.pieces, Some(PoolId::from_u128(1)), 77).await.unwrap();
            flag.set(true);
        });
        lender.doors.sleep(Duration::from_millis(300)).await;
        assert!(!opened.get(), "the first agent has {}", lender.file().display());
        lender.agent.remove_area(AREA);
        let waited = async {
            while !opened.get() {
                lender.doors.sleep(Duration::from_millis(5)).await;
            }
        };
        lender.doors.timeout(Duration::from_secs(10), waited).await.expect("the second one goes on");
    });
}

#[test]
fn a_wiped_slice_is_gone_with_its_bytes_and_its_session() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        let secret = b"a borrower's secret, sixteen times over.".repeat(512);
        let secret = &secret[..16384];
        assert_eq!(peer.write(8192, secret).await, Status::Ok);
        assert_eq!(peer.ask(Op::Flush, 0, 0, &[]).await.0.status, Status::Ok);
        let holds = |needle: &[u8]| memchr::memmem::find(&std::fs::read(lender.file()).unwrap(), needle).is_some();
        assert!(holds(&secret[..40]));
        let wipe = Order::WipeSlice { slice: SLICE, area: AREA, epoch: epoch(2), drop: true };
        lender.order(wipe.clone()).await;
        assert_eq!(peer.receive().await.unwrap().0.op, Op::Fenced);
        assert!(!holds(&secret[..40]));
        lender.order(wipe).await;
        assert_eq!(lender.session(open(1, 2)).await.map(|_| ()), Err(Status::NoSlice));
        lender.order(Order::ReleaseArea { area: AREA }).await;
        lender.order(Order::ReleaseArea { area: AREA }).await;
    });
}

#[test]
fn p2_an_order_that_comes_after_the_wipe_of_its_slice_does_not_make_it_anew() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let wipe = Order::WipeSlice { slice: SLICE, area: AREA, epoch: epoch(2), drop: true };
        lender.order(wipe.clone()).await;
        // Two answers of the manager may overtake each other.
        let late = lender.agent.execute(&Order::PrepareSlice { slice: facts() }).await;
        assert!(matches!(late, Outcome::Failed { ref refusal } if refusal.kind == ErrorKind::Conflict), "{late:?}");
        assert_eq!(lender.agent.reports().iter().map(|area| area.slices.len()).sum::<usize>(), 0);
        // The same if the slice had never been there.
        let never = SliceId::from_u128(77);
        lender.order(Order::WipeSlice { slice: never, area: AREA, epoch: epoch(2), drop: true }).await;
        let late = lender.agent.execute(&Order::PrepareSlice { slice: SliceFacts { slice: never, ..facts() } }).await;
        assert!(matches!(late, Outcome::Failed { .. }), "{late:?}");
    });
}

#[test]
fn k2_a_stopping_agent_saves_what_it_knows_of_hot_regions() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        assert_eq!(peer.write(0, &pattern(3, 8192)).await, Status::Ok);
        lender.agent.drain().await;
        lender.stop().await;
        let area = Area::open(&lender.doors, &lender.pieces, Some(PoolId::from_u128(1)), 77).await.unwrap();
        let blocks = area.verify(SLICE, 0, 8192).await.unwrap();
        assert!(blocks.iter().all(|block| block.state == BlockState::Matches));
    });
}

#[test]
fn a_stopping_agent_tells_its_clients() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let (mut peer, _) = lender.session(open(1, 1)).await.unwrap();
        assert_eq!(lender.agent.sessions(), 1);
        lender.agent.drain().await;
        let (notice, _) = peer.receive().await.unwrap();
        assert_eq!((notice.op, notice.status), (Op::Draining, Status::Unavailable));
        assert!(peer.receive().await.is_none());
        assert_eq!(lender.session(open(1, 2)).await.map(|_| ()), Err(Status::Unavailable));
    });
}

#[test]
fn r2_tombstones_are_told_across_restarts_until_they_are_dropped() {
    run(async |doors| {
        let lender = Lender::lent(doors).await;
        let stone = |n: u128| Tombstone {
            volume: VolumeId::from_u128(n),
            slice: SliceId::from_u128(n),
            area: AreaId::from_u128(n),
            epoch: epoch(3),
        };
        let put = Order::PutTombstones { area: AREA, tombstones: vec![stone(1), stone(2)] };
        lender.order(put.clone()).await;
        lender.order(put).await;
        lender.restart().await;
        assert_eq!(lender.agent.reports()[0].tombstones, [stone(1), stone(2)]);
        let wiped = Order::DropTombstones { area: AREA, slices: vec![stone(1).slice] };
        lender.order(wiped.clone()).await;
        lender.order(wiped).await;
        lender.restart().await;
        assert_eq!(lender.agent.reports()[0].tombstones, [stone(2)]);
    });
}
