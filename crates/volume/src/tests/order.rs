//! The order of writes: overlapping ones (W2), late ones (W4), and bytes that change under way (W3).

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use sublet_doors::{Buffer, Chunk};

use crate::change::Change;
use crate::testing::doors::MemDoors;
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
