//! Reads and writes under way, so that a read that runs beside a write of the same blocks is told: it may have old or new
//! bytes, and no kept checksum says which. Blocks are counted from the beginning of the area.

use std::ops::Range;
use std::time::Duration;

use sublet_doors::Tick;

struct Io {
    id: u64,
    blocks: Range<u64>,
    write: bool,
    /// The blocks of a read beside which writes ran.
    touched: Vec<Range<u64>>,
}

/// What is under way on an area. A few hundred entries at most: they are looked through one by one.
#[derive(Default)]
pub(crate) struct Active {
    next: u64,
    list: Vec<Io>,
    /// When one ended last.
    ended: Tick,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn common(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}

impl Active {
    pub fn begin_read(&mut self, blocks: Range<u64>) -> u64 {
        let touched = self.writes(&blocks).map(|write| common(&write, &blocks)).collect();
        self.push(blocks, false, touched)
    }

    pub fn begin_write(&mut self, blocks: Range<u64>) -> u64 {
        for io in self.list.iter_mut().filter(|io| !io.write && overlap(&io.blocks, &blocks)) {
            io.touched.push(common(&io.blocks, &blocks));
        }
        self.push(blocks, true, Vec::new())
    }

    fn push(&mut self, blocks: Range<u64>, write: bool, touched: Vec<Range<u64>>) -> u64 {
        self.next += 1;
        self.list.push(Io { id: self.next, blocks, write, touched });
        self.next
    }

    /// The answer is for a read: which of its blocks writes ran beside, in no order, some perhaps twice.
    pub fn end(&mut self, id: u64, now: Tick) -> Vec<Range<u64>> {
        self.ended = now;
        let at = self.list.iter().position(|io| io.id == id);
        at.map(|at| self.list.swap_remove(at).touched).unwrap_or_default()
    }

    /// Somebody reads or writes, or did less than that time ago.
    pub fn in_use(&self, now: Tick, lately: Duration) -> bool {
        !self.list.is_empty() || (self.next > 0 && now.since(self.ended) < lately)
    }

    /// The blocks of writes under way in this range.
    pub fn writes(&self, within: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.list.iter().filter(|io| io.write && overlap(&io.blocks, within)).map(|io| io.blocks.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_told_of_every_write_of_its_blocks_that_ran_beside_it() {
        let mut active = Active::default();
        let before = active.begin_write(0..4);
        let first = active.begin_read(3..8);
        let other = active.begin_read(8..9);
        assert!(active.end(before, Tick::default()).is_empty());
        let second = active.begin_read(0..8);
        assert_eq!(active.end(first, Tick::default()).first(), Some(&(3..4)), "the write was under way when it began");
        let during = active.begin_write(7..8);
        assert_eq!(active.writes(&(0..100)).collect::<Vec<_>>(), vec![7..8]);
        active.end(during, Tick::default());
        assert_eq!(active.end(second, Tick::default()).first(), Some(&(7..8)), "the write came and went while it ran");
        assert!(active.end(other, Tick::default()).is_empty(), "other blocks");
    }
}
