//! Marks that a test writes all over a volume, and the search for what is left of them on a raw file or disk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use memchr::memmem;
use sublet_wire::checksum::crc32c;

use crate::nbd::Nbd;
use crate::random::Random;

/// The length of a mark in bytes; a block has a whole number of them.
const WORD: usize = 16;
/// The size of a block of which a checksum is kept.
const BLOCK: usize = 4096;
/// So many equal checksums in a row do not come about by chance.
const SUMS: usize = 4;
/// How much is looked through at once.
const PART: usize = 4 << 20;

/// Sixteen bytes that are nowhere else, repeated without a gap: whatever is left of them, wherever it begins, has one in it.
#[derive(Clone, Debug)]
pub struct Mark {
    word: String,
}

impl Mark {
    /// A new one; the same number is the same mark.
    pub fn new(number: u64) -> Self {
        let mut random = Random::new(0x5eed_0000 + number);
        let letter = |bits: u64| char::from(b'a' + (bits % 26) as u8);
        Self { word: std::iter::repeat_with(|| letter(random.bits())).take(WORD).collect() }
    }

    /// The mark itself; it can be a file's name as well.
    pub fn word(&self) -> &str {
        &self.word
    }

    /// So many bytes of it, which are whole blocks.
    pub fn bytes(&self, length: usize) -> Vec<u8> {
        assert_eq!(length % BLOCK, 0, "marks fill whole blocks");
        self.word.repeat(length / WORD).into_bytes()
    }

    /// How often it is in so many bytes that are full of it.
    pub fn times_in(&self, bytes: u64) -> u64 {
        bytes / WORD as u64
    }

    /// Fills a range of a mounted volume, and makes that durable.
    ///
    /// # Panics
    /// It cannot be written.
    #[track_caller]
    pub fn fill(&self, nbd: &mut Nbd, from: u64, to: u64) {
        let part = self.bytes(1 << 20);
        let mut at = from;
        while at < to {
            let length = (to - at).min(1 << 20);
            nbd.write(at, &part[..length as usize]).unwrap();
            at += length;
        }
        nbd.flush().unwrap();
    }

    /// How often a file or device has it, at whatever offset.
    ///
    /// # Panics
    /// It cannot be read.
    #[track_caller]
    pub fn count(&self, path: &Path) -> u64 {
        count(path, self.word.as_bytes())
    }

    /// How often a file or device has checksums of blocks that are full of it, several in a row as a checksum page has them.
    ///
    /// # Panics
    /// It cannot be read.
    #[track_caller]
    pub fn sums(&self, path: &Path) -> u64 {
        count(path, &crc32c(&self.bytes(BLOCK)).to_le_bytes().repeat(SUMS))
    }
}

/// How often a file or device has these bytes: every offset is looked at, and what was found is not looked at again.
///
/// # Panics
/// It cannot be read.
#[track_caller]
pub fn count(path: &Path, pattern: &[u8]) -> u64 {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let finder = memmem::Finder::new(pattern);
    let mut window: Vec<u8> = Vec::with_capacity(PART + pattern.len());
    let mut part = vec![0; PART];
    let mut found = 0;
    loop {
        let read = file.read(&mut part).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if read == 0 {
            return found;
        }
        window.extend_from_slice(&part[..read]);
        let mut behind = 0;
        for at in finder.find_iter(&window) {
            found += 1;
            behind = at + pattern.len();
        }
        // A match may begin in this part and end in the next one.
        window.drain(..behind.max(window.len().saturating_sub(pattern.len() - 1)));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_mark_is_found_at_every_offset_and_across_the_borders_of_what_is_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mark = Mark::new(1);
        let file = File::create(&path).unwrap();
        file.set_len(3 * PART as u64 + 5).unwrap();
        assert_eq!(mark.count(&path), 0);
        let places = [0, 4097, PART as u64 - 7, 2 * PART as u64 - 1, 3 * PART as u64 + 5 - 16];
        for (n, at) in places.into_iter().enumerate() {
            file.write_all_at(mark.word().as_bytes(), at).unwrap();
            assert_eq!(mark.count(&path), n as u64 + 1, "at {at}");
        }
        assert_eq!(Mark::new(2).count(&path), 0, "another mark");
        assert_eq!(mark.sums(&path), 0);
        std::fs::write(&path, mark.bytes(2 * BLOCK)).unwrap();
        assert_eq!(mark.count(&path), mark.times_in(2 * BLOCK as u64));
    }
}
