//! The order of writes: overlapping ones (W2), late ones (W4), and bytes that change under way (W3).

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use sublet_doors::{Buffer, Chunk, Clock};
use sublet_wire::Op;

use super::resync::crashed;
use crate::change::Change;
use crate::testing::doors::MemDoors;
use crate::testing::lender::{Seen, rot};
use crate::testing::world::{World, range, read, write};

const SIZE: u64 = 64 * 1024;

#[test]
fn w2_both_legs_see_overlapping_writes_in_the_same_order() {
    for seed in 1..6 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[SIZE], 2);
            world.lenders.iter().for_each(|l| l.delay.set(Duration::from_millis(5)));
            let volume = world.open().await;
            let writes = (1..=200u8).map(|i| {
                let (offset, length) = range(&doors, SIZE);
                let volume = Rc::clone(&volume);
                // Whole blocks, so that the first byte of a request says whose it is.
                let (start, end) = (offset / 4096 * 4096, (offset + length).div_ceil(4096) * 4096);
                async move { write(&volume, start, &vec![i; (end - start) as usize]).await.unwrap() }
            });
            join_all(writes).await;
            let orders: Vec<_> = world.lenders.iter().map(|l| l.wrote.borrow().clone()).collect();
            let overlaps = |a: &(u64, u32, u8), b: &(u64, u32, u8)| a.0 < b.0 + u64::from(b.1) && b.0 < a.0 + u64::from(a.1);
            let (one, other) = (&orders[0], &orders[1]);
            let place = |write: &(u64, u32, u8)| other.iter().position(|o| o == write).unwrap();
            let mut pairs = 0;
            for (i, earlier) in one.iter().enumerate() {
                for later in one[i + 1..].iter().filter(|later| overlaps(earlier, later)) {
                    assert!(place(earlier) < place(later), "{earlier:?} and {later:?}");
                    pairs += 1;
                }
            }
            assert!(pairs > 1000 && one != other, "there is something to keep in order");
            world.assert_same(0, 1);
        });
    }
}

#[test]
fn w4_a_late_write_of_an_old_connection_never_comes_over_a_newer_one() {
    for copies in [1, 2] {
        MemDoors::run(1, move |doors| async move {
            let world = World::new(&doors, &[SIZE], copies);
            let volume = world.open().await;
            world.lenders[0].late.set(1);
            // Its connection breaks with the write under way at the disk; it is sent again, and then overwritten.
            write(&volume, 8192, &[1; 4096]).await.unwrap();
            write(&volume, 8192, &[2; 4096]).await.unwrap();
            world.sleep(10.0).await;
            assert!(world.event(0, "server-a late write").is_some());
            assert_eq!(read(&volume, 8192, 4096).await.unwrap(), [2; 4096]);
            let late = world.event(0, "server-a late write").unwrap();
            let open = world.event(late, "server-a open").expect("the next session is opened after it");
            assert!(open > late);
            assert!(world.lenders.iter().all(|l| l.bytes()[8192] == 2));
        });
    }
}

#[test]
fn w3_the_checksums_of_a_write_are_those_of_bytes_that_nobody_can_change_any_more() {
    // A chunk is immutable, whoever else holds it; only its last holder gets the buffer back.
    let chunk = Buffer::copy_of(&[7; 8192]).freeze();
    let change = Change::write(0, chunk.clone(), false);
    let chunk = chunk.thaw().expect_err("the write holds it");
    let Change::Write { data, sums, .. } = &change else { panic!("a write") };
    assert_eq!(sublet_wire::checksum::first_mismatch(data, sums), None);
    let part = change.part(4096, 8192);
    let Change::Write { data, sums, .. } = &part else { panic!("a write") };
    assert_eq!(sublet_wire::checksum::first_mismatch(data, sums), None);
    drop((change, part));
    assert!(Chunk::thaw(chunk).is_ok());
}

/// The repair of a read is a write: a newer write of the block waits for it, also when nobody waits for the read any more.
#[test]
fn w2_a_read_that_is_dropped_while_it_repairs_keeps_its_lock() {
    for seed in 0..20 {
        MemDoors::run(seed, |doors| async move {
            let world = World::new(&doors, &[65536], 2);
            let volume = world.open().await;
            write(&volume, 0, &[1; 4096]).await.unwrap();
            rot(&world.lenders[0], 100);
            rot(&world.lenders[0], 5000);
            // The leg that has gone wrong is asked first.
            world.lenders[1].delay.set(Duration::from_millis(1));
            let repairs = || world.lenders[0].seen.borrow().iter().filter(|seen| seen.op == Op::Write).count();
            let before = repairs();
            {
                let reading = std::pin::pin!(read(&volume, 0, 8192));
                let begun = std::pin::pin!(async {
                    while repairs() == before {
                        doors.sleep(Duration::from_micros(50)).await;
                    }
                });
                world.lenders[0].write_delay.set(Duration::from_millis(300));
                let Either::Right(_) = select(reading, begun).await else { panic!("it was repaired at once") };
            }
            write(&volume, 0, &[2; 4096]).await.unwrap();
            world.sleep(5.0).await;
            assert_eq!(read(&volume, 0, 4096).await.unwrap(), [2; 4096]);
            world.assert_same(0, 1);
        });
    }
}

/// The same of one that first makes the legs equal (H3).
#[test]
fn w2_a_read_that_is_dropped_while_it_makes_the_legs_equal_keeps_its_lock() {
    const AT: usize = 5 << 20;
    for seed in 0..5 {
        MemDoors::run(seed, |doors| async move {
            let world = crashed(&doors, 8 << 20, 2);
            for (leg, lender) in world.lenders.iter().enumerate() {
                let mut slices = lender.slices.borrow_mut();
                let slice = slices.values_mut().next().unwrap();
                slice.bytes[AT..AT + 4096].fill(20 + leg as u8);
                slice.regions.written(AT, &[20 + leg as u8; 4096]);
            }
            // What goes on in the background begins with the first region, and takes its time there.
            world.lenders[0].delay.set(Duration::from_millis(200));
            let volume = world.open().await;
            world.lenders[1].write_delay.set(Duration::from_secs(6));
            let is_copy = |seen: &Seen| seen.op == Op::Write && seen.offset == AT as u64;
            {
                let reading = std::pin::pin!(read(&volume, AT as u64, 4096));
                let begun = std::pin::pin!(async {
                    while !world.lenders[1].seen.borrow().iter().any(is_copy) {
                        doors.sleep(Duration::from_micros(50)).await;
                    }
                });
                let Either::Right(_) = select(reading, begun).await else { panic!("they were equal at once") };
            }
            world.lenders[1].write_delay.set(Duration::ZERO);
            read(&volume, AT as u64, 4096).await.unwrap();
            write(&volume, AT as u64, &[2; 4096]).await.unwrap();
            world.sleep(10.0).await;
            world.until(60, "all is well", || volume.status().reason.is_empty()).await;
            world.assert_same(0, 1);
        });
    }
}
