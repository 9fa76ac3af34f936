//! Sealed volumes: the lenders have encrypted bytes, the borrower has its own, and the key header lies where nobody writes.

use sublet_types::limits::{BLOCK_SIZE, SEAL_SIZE};

use crate::testing::doors::MemDoors;
use crate::testing::world::{TestVolume, World, exercise, kind, read, write};
use crate::{BlockCipher, VolumeErrorKind, Wanted, ZeroFlags};

const K: u64 = 1024;
const B: usize = BLOCK_SIZE as usize;

/// Good enough to tell encrypted bytes from others, and blocks from each other. Zeroes do not become zeroes.
struct Toy;

fn pad(block: u64, at: usize) -> u8 {
    (block as u8).wrapping_mul(31).wrapping_add(at as u8) | 0x80
}

impl BlockCipher for Toy {
    fn encrypt(&self, block: u64, from: &[u8], into: &mut [u8]) -> Result<(), String> {
        assert!(from.len() == into.len() && from.len().is_multiple_of(B));
        for (at, (from, into)) in from.iter().zip(into).enumerate() {
            *into = from ^ pad(block + (at / B) as u64, at % B);
        }
        Ok(())
    }

    fn decrypt(&self, block: u64, from: &[u8], into: &mut [u8]) -> Result<(), String> {
        for (at, (from, into)) in from.chunks(B).zip(into.chunks_mut(B)).enumerate() {
            if from.iter().all(|byte| *byte == 0) {
                into.fill(0);
            } else {
                self.encrypt(block + at as u64, from, into)?;
            }
        }
        Ok(())
    }
}

async fn sealed(doors: &MemDoors, lengths: &[u64], copies: usize) -> (World, TestVolume) {
    let mut world = World::new(doors, lengths, copies);
    world.info.sealed = true;
    let volume = world.open().await;
    (world, volume)
}

#[test]
fn random_requests_agree_with_a_byte_model_and_the_lenders_have_none_of_the_bytes() {
    for (seed, copies) in [(1, 1), (2, 2)] {
        MemDoors::run(seed, move |doors| async move {
            let (world, volume) = sealed(&doors, &[64 * K, 12 * K, 96 * K], copies).await;
            volume.unseal(Box::new(Toy)).unwrap();
            let mut model = vec![0; volume.size() as usize];
            exercise(&doors, &volume, &mut model, 400).await;
            write(&volume, 5000, &b"a pattern that is easily found"[..]).await.unwrap();
            model[5000..5030].copy_from_slice(b"a pattern that is easily found");
            assert_eq!(read(&volume, 0, model.len()).await.unwrap(), model);
            volume.close(false).await.unwrap();
            for lender in &world.lenders {
                let bytes = lender.bytes();
                assert!(!bytes.windows(9).any(|part| part == b"a pattern"));
            }
            // Another mount with the key reads the same.
            let volume = world.open().await;
            volume.unseal(Box::new(Toy)).unwrap();
            assert_eq!(read(&volume, 0, model.len()).await.unwrap(), model);
        });
    }
}

#[test]
fn without_its_key_a_sealed_volume_gives_and_takes_nothing() {
    MemDoors::run(1, |doors| async move {
        let (_world, volume) = sealed(&doors, &[64 * K], 1).await;
        assert_eq!(volume.size(), 64 * K - SEAL_SIZE);
        assert_eq!(kind(read(&volume, 0, 10).await), VolumeErrorKind::Closed);
        assert_eq!(kind(write(&volume, 0, &[1; 10]).await), VolumeErrorKind::Closed);
        assert_eq!(kind(write(&volume, 0, &[1; B]).await), VolumeErrorKind::Closed);
        assert_eq!(kind(volume.write_zeroes(0, 8192, ZeroFlags::default()).await), VolumeErrorKind::Closed);
        let wanted = Wanted { pattern: b"x", limit: None, count_only: true };
        assert_eq!(kind(volume.search(wanted, &mut async |_| {}, &mut |_, _| {}).await), VolumeErrorKind::Closed);
        volume.unseal(Box::new(Toy)).unwrap();
        write(&volume, 0, &[1; 10]).await.unwrap();
        assert_eq!(kind(volume.unseal(Box::new(Toy))), VolumeErrorKind::Unsupported, "it has its key");
        let world = World::new(&doors, &[64 * K], 1);
        let open = world.open().await;
        assert_eq!(kind(open.unseal(Box::new(Toy))), VolumeErrorKind::Unsupported, "it is not sealed");
        assert_eq!(kind(open.store_seal(b"header").await), VolumeErrorKind::OutOfRange);
    });
}

#[test]
fn the_key_header_lies_behind_the_announced_size_and_nothing_that_users_do_reaches_it() {
    MemDoors::run(1, |doors| async move {
        let (world, volume) = sealed(&doors, &[64 * K, 4 * K], 2).await;
        let stored = async || volume.stored_seal().await.unwrap().into_iter().map(Result::unwrap).collect::<Vec<_>>();
        assert!(stored().await.iter().all(|block| block.len() == B && block.iter().all(|b| *b == 0)));
        volume.store_seal(b"the header").await.unwrap();
        let durable: Vec<_> = world.lenders.iter().map(|l| l.slices.borrow().values().next().unwrap().durable.clone()).collect();
        // One copy ends the first segment, the other one is the second segment.
        let copies = [&durable[0][60 * 1024..], &durable[1][60 * 1024..], &durable[2][..], &durable[3][..]];
        assert!(copies.iter().all(|copy| copy.starts_with(b"the header\0")), "stored as it is, and durable");
        volume.unseal(Box::new(Toy)).unwrap();
        let size = volume.size();
        volume.write_zeroes(0, size, ZeroFlags::default()).await.unwrap();
        volume.write_zeroes(size - 100, 100, ZeroFlags::default()).await.unwrap();
        write(&volume, size - 5000, &[7; 5000]).await.unwrap();
        assert_eq!(kind(write(&volume, size - 10, &[7; 11]).await), VolumeErrorKind::OutOfRange);
        assert_eq!(kind(read(&volume, size, 1).await), VolumeErrorKind::OutOfRange);
        assert!(stored().await.iter().all(|block| block.starts_with(b"the header\0")));
        assert_eq!(kind(volume.store_seal(&[1; B + 1]).await), VolumeErrorKind::OutOfRange);
    });
}

#[test]
fn what_was_never_written_or_was_discarded_reads_as_zero() {
    MemDoors::run(1, |doors| async move {
        let (_world, volume) = sealed(&doors, &[64 * K], 1).await;
        volume.unseal(Box::new(Toy)).unwrap();
        assert_eq!(read(&volume, 100, 30000).await.unwrap(), vec![0; 30000]);
        write(&volume, 8000, &[5; 9000]).await.unwrap();
        volume.write_zeroes(9000, 7000, ZeroFlags::default()).await.unwrap();
        let bytes = read(&volume, 0, 20000).await.unwrap();
        let is = |range: std::ops::Range<usize>, value| bytes[range].iter().all(|b| *b == value);
        assert!(is(0..8000, 0) && is(8000..9000, 5) && is(9000..16000, 0) && is(16000..17000, 5) && is(17000..20000, 0));
    });
}

#[test]
fn a_sealed_volume_is_searched_at_the_borrower_with_the_same_answers() {
    MemDoors::run(1, |doors| async move {
        let (_world, volume) = sealed(&doors, &[1200 * K, 1100 * K], 1).await;
        volume.unseal(Box::new(Toy)).unwrap();
        let size = volume.size();
        // At the borders of what is read at once, overlapping, and at the very end.
        let places = [0, 2, 4, (1 << 20) - 3, (1 << 20) - 1, 1200 * K - 2, (2 << 20) - 1, size - 5];
        for at in places {
            write(&volume, at, b"aXa").await.unwrap();
        }
        write(&volume, size - 5, b"aXaXa").await.unwrap();
        let expected = [0, 2, 4, (1 << 20) - 3, (1 << 20) - 1, 1200 * K - 2, (2 << 20) - 1, size - 5, size - 3];
        for limit in [None, Some(0), Some(4), Some(100)] {
            let wanted = Wanted { pattern: b"aXa", limit, count_only: false };
            let (mut found, mut last) = (Vec::new(), (0, 0));
            let summary = volume
                .search(wanted, &mut async |m: Vec<u64>| found.extend(m), &mut |done, all| last = (done, all))
                .await
                .unwrap();
            let count = limit.map_or(expected.len(), |limit: u64| expected.len().min(limit as usize));
            assert_eq!(found, expected[..count]);
            assert_eq!((summary.count, summary.limited), (count as u64, limit.is_some_and(|limit| limit <= 9)));
            let counted = volume.search(Wanted { count_only: true, ..wanted }, &mut async |_| panic!(), &mut |_, _| {}).await;
            assert_eq!(counted.unwrap(), summary);
        }
    });
}
