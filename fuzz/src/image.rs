//! A file in memory, of which only the pages that were written are kept. Copies share them.

use std::collections::BTreeMap;
use std::rc::Rc;

const PAGE: usize = 4096;

/// See the module.
#[derive(Clone, Default)]
pub struct Image {
    size: u64,
    pages: BTreeMap<u64, Rc<[u8; PAGE]>>,
}

impl Image {
    /// A file of zeroes.
    pub fn new(size: u64) -> Self {
        Self { size, pages: BTreeMap::new() }
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The parts of a range that lie in one page each: page, offset in it, offset in the range, length.
    fn parts(at: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let here = at + done as u64;
            let inside = (here % PAGE as u64) as usize;
            let many = (PAGE - inside).min(length - done);
            let part = (here / PAGE as u64, inside, done, many);
            done += many;
            (many > 0).then_some(part)
        })
    }

    /// Reads; what was never written is zero.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        for (page, inside, done, many) in Self::parts(at, into.len()) {
            match self.pages.get(&page) {
                Some(bytes) => into[done..done + many].copy_from_slice(&bytes[inside..inside + many]),
                None => into[done..done + many].fill(0),
            }
        }
    }

    /// Writes; what lies behind the end is left out.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let length = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        for (page, inside, done, many) in Self::parts(at, length) {
            let own = Rc::make_mut(self.pages.entry(page).or_insert_with(|| Rc::new([0; PAGE])));
            own[inside..inside + many].copy_from_slice(&bytes[done..done + many]);
        }
    }

    /// Makes whole pages zero.
    pub fn zero(&mut self, at: u64, length: u64) {
        let (first, end) = (at / PAGE as u64, (at + length).div_ceil(PAGE as u64));
        let written: Vec<u64> = self.pages.range(first..end).map(|(page, _)| *page).collect();
        written.iter().for_each(|page| {
            self.pages.remove(page);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_a_plain_file_would() {
        let mut image = Image::new(20_000);
        let mut plain = vec![0u8; 20_000];
        for (at, length, byte) in [(0, 1, 1), (4095, 2, 2), (5000, 9000, 3), (19_999, 1, 4), (8192, 4096, 5)] {
            image.write(at as u64, &vec![byte; length]);
            plain[at..at + length].fill(byte);
        }
        image.write(19_990, &[9; 100]);
        plain[19_990..].fill(9);
        let copy = image.clone();
        image.zero(8192, 4096);
        for (image, plain) in [
            (&copy, &plain),
            (&image, &{
                let mut plain = plain.clone();
                plain[8192..12288].fill(0);
                plain
            }),
        ] {
            for (at, length) in [(0, 20_000), (4000, 200), (8191, 4098), (19_990, 10)] {
                let mut found = vec![7; length];
                image.read(at as u64, &mut found);
                assert_eq!(found, plain[at..at + length], "{at}");
            }
        }
    }
}
