//! Checksum pages: the CRC32C of the 1024 blocks of a region. Those of cold regions are cached within a bound (K2).

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use futures_channel::oneshot;
use sublet_doors::Buffer;
use sublet_types::drawn::{self, Drawn};
use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE};

/// Blocks of a region.
pub(crate) const BLOCKS: usize = (REGION_SIZE / BLOCK_SIZE) as usize;
/// CRC32C of 4096 zero bytes.
pub(crate) const ZERO_SUM: u32 = 0x98F9_4189;
/// Bytes of checksum pages of cold regions that an area keeps in memory: those of 32 GiB of data.
pub(crate) const CACHE_BYTES_MAX: usize = 32 << 20;
const CACHE_PAGES_MAX: usize = CACHE_BYTES_MAX / (BLOCKS * 4);

/// The checksums of a region.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SumPage(pub [u32; BLOCKS]);

impl SumPage {
    /// The same for every block.
    pub fn filled(sum: u32) -> Box<Self> {
        Box::new(Self([sum; BLOCKS]))
    }

    /// The page as it is on the disk, and its CRC.
    pub fn encode(&self) -> (Buffer, u32) {
        let mut bytes = Buffer::zeroed(BLOCKS * 4);
        for (place, sum) in bytes.chunks_exact_mut(4).zip(&self.0) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        let sum = crc32c::crc32c(&bytes);
        (bytes, sum)
    }

    /// Reads a page, if its CRC is this one.
    pub fn decode(bytes: &[u8], sum: u32) -> Option<Box<Self>> {
        if bytes.len() != BLOCKS * 4 || crc32c::crc32c(bytes) != sum {
            return None;
        }
        let mut page = Self::filled(0);
        for (place, bytes) in page.0.iter_mut().zip(bytes.chunks_exact(4)) {
            *place = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Some(page)
    }
}

/// One bit for each block of a region.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockBits([u64; BLOCKS / 64]);

impl BlockBits {
    pub const NONE: Self = Self([0; BLOCKS / 64]);
    pub const ALL: Self = Self([u64::MAX; BLOCKS / 64]);

    pub fn get(&self, block: usize) -> bool {
        self.0.get(block / 64).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    pub fn set(&mut self, block: usize, on: bool) {
        if let Some(word) = self.0.get_mut(block / 64) {
            *word = *word & !(1 << (block % 64)) | u64::from(on) << (block % 64);
        }
    }

    pub fn all(&self) -> bool {
        self.0.iter().all(|word| *word == u64::MAX)
    }
}

/// Checksum pages of cold regions in memory, oldest out first; and who waits for one that is being read.
#[derive(Default)]
pub(crate) struct Cache {
    pages: HashMap<usize, Rc<SumPage>>,
    order: VecDeque<usize>,
    loading: HashMap<usize, Vec<oneshot::Sender<()>>>,
}

impl Cache {
    pub fn get(&self, region: usize) -> Option<Rc<SumPage>> {
        self.pages.get(&region).cloned()
    }

    pub fn put(&mut self, region: usize, page: Rc<SumPage>) {
        if self.pages.insert(region, page).is_none() {
            self.order.push_back(region);
        }
        let pages_max = drawn::limit(Drawn::SumPages, CACHE_PAGES_MAX as u64) as usize;
        while self.pages.len() > pages_max {
            let Some(oldest) = self.order.pop_front() else { break };
            self.pages.remove(&oldest);
        }
        if self.order.len() > 2 * pages_max {
            let pages = &self.pages;
            let mut seen = std::collections::HashSet::new();
            self.order.retain(|region| pages.contains_key(region) && seen.insert(*region));
        }
    }

    /// Takes a page out: its region is no longer what it was.
    pub fn take(&mut self, region: usize) -> Option<Rc<SumPage>> {
        self.pages.remove(&region)
    }

    /// Somebody else is reading the page: the receiver hears when that has ended. None: the caller reads it, and calls
    /// [`Cache::loaded`] in any case.
    pub fn wait(&mut self, region: usize) -> Option<oneshot::Receiver<()>> {
        if let Some(waiters) = self.loading.get_mut(&region) {
            let (sender, receiver) = oneshot::channel();
            waiters.push(sender);
            return Some(receiver);
        }
        self.loading.insert(region, Vec::new());
        None
    }

    pub fn loaded(&mut self, region: usize) {
        for waiter in self.loading.remove(&region).unwrap_or_default() {
            // One who has gone needs no word.
            let _ = waiter.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_zeroes_is_that_of_zeroes() {
        assert_eq!(crc32c::crc32c(&[0; 4096]), ZERO_SUM);
    }

    #[test]
    fn a_page_reads_back_and_only_with_its_own_crc() {
        let mut page = SumPage::filled(7);
        page.0[1023] = 9;
        let (bytes, sum) = page.encode();
        assert!(SumPage::decode(&bytes, sum).unwrap() == page);
        assert!(SumPage::decode(&bytes, sum ^ 1).is_none());
    }

    #[test]
    fn the_cache_keeps_to_its_bound() {
        let mut cache = Cache::default();
        for round in 0..3 {
            for region in 0..CACHE_PAGES_MAX + 100 {
                cache.put(region, Rc::new(*SumPage::filled(round)));
                if region % 2 == 0 {
                    cache.take(region);
                }
            }
        }
        assert!(cache.pages.len() <= CACHE_PAGES_MAX && cache.order.len() <= 2 * CACHE_PAGES_MAX);
        assert!(cache.get(CACHE_PAGES_MAX + 99).is_some());
    }

    #[test]
    fn bits_are_set_and_cleared_one_by_one() {
        let mut bits = BlockBits::NONE;
        for block in [0, 63, 64, 1023] {
            bits.set(block, true);
            assert!(bits.get(block) && !bits.get(block ^ 1));
            bits.set(block, false);
        }
        assert!(bits == BlockBits::NONE && BlockBits::ALL.all() && !bits.all());
    }
}
