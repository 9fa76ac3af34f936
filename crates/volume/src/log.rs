//! The kept writes of a segment (W5): every change that is not known to be durable at all legs, with those in flight. Pure data.
//!
//! If the legs lose what they had not flushed, the log says what to write again. If one leg leaves, the log says which blocks
//! it has missed (S1). It is bounded: when it is full, the segment flushes by itself and further changes wait.

use std::collections::BTreeMap;

use sublet_doors::Buffer;
use sublet_types::drawn::{self, Drawn};
use sublet_types::mutation::{self, Mutation};
use sublet_wire::Flags;

use crate::change::Change;
use crate::maps::{Units, add_units};

/// A segment keeps so many bytes of writes ...
pub(crate) const KEPT_BYTES_MAX: u64 = 32 << 20;
/// ... all segments of a volume together so many ...
pub(crate) const KEPT_BYTES_VOLUME_MAX: u64 = 64 << 20;
/// ... unless they are so many that none would have this: flushed more often, it would do nothing else ...
pub(crate) const KEPT_BYTES_MIN: u64 = 2 << 20;
/// ... and a segment so many changes.
pub(crate) const KEPT_ENTRIES_MAX: usize = 16384;

struct Entry {
    change: Change,
    /// Bytes of memory that it holds.
    cost: u64,
    /// When it ended, by the log's own count; none while it is in flight.
    ended: Option<u64>,
    /// All legs have it on stable storage.
    durable: bool,
}

/// A point in the order of changes; see [`Log::mark`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    count: u64,
    beside: u64,
}

/// See the module.
pub(crate) struct Log {
    bytes_max: u64,
    entries_max: usize,
    /// In the order in which they were begun: overlapping ones never run at the same time (W2).
    entries: BTreeMap<u64, Entry>,
    bytes: u64,
    count: u64,
    /// Writes to single legs that are not kept (copies that make the legs equal, for one): counted when one begins and when it ends.
    beside: u64,
    /// What that count was when the last flush that has succeeded was sent; none if none has in this mount, and it is not known
    /// either what an earlier client has left.
    beside_flushed: Option<u64>,
}

impl Log {
    /// An empty log of one of so many segments.
    pub(crate) fn new(segments: usize) -> Self {
        let share = KEPT_BYTES_VOLUME_MAX / u64::try_from(segments.max(1)).unwrap_or(u64::MAX);
        let bytes_max = drawn::limit(Drawn::KeptBytes, KEPT_BYTES_MAX).min(share.max(KEPT_BYTES_MIN));
        let entries_max = drawn::limit(Drawn::KeptEntries, KEPT_ENTRIES_MAX as u64) as usize;
        Self { bytes_max, entries_max, entries: BTreeMap::new(), bytes: 0, count: 0, beside: 0, beside_flushed: None }
    }

    /// No further change may begin before a flush.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max || self.entries.len() >= self.entries_max
    }

    /// A flush is due, so that the log does not become full.
    pub(crate) fn is_half_full(&self) -> bool {
        self.bytes >= self.bytes_max / 2 || self.entries.len() >= self.entries_max / 2
    }

    /// Keeps a change that is about to be sent to all legs.
    pub(crate) fn begin(&mut self, change: &Change) -> u64 {
        let (change, cost) = match change {
            Change::Write { offset, data, sums, fua } => {
                // A small write out of a large buffer must not keep all of it alive.
                let data = if data.held() > data.len() * 2 { Buffer::copy_of(data).freeze() } else { data.clone() };
                let cost = data.held() as u64;
                (Change::Write { offset: *offset, data, sums: sums.clone(), fua: *fua }, cost)
            }
            // FAST may be refused; whoever makes the zeroes again makes them in any way.
            Change::Zero { offset, length, flags } => {
                (Change::Zero { offset: *offset, length: *length, flags: Flags(flags.0 & !Flags::FAST.0) }, 0)
            }
            Change::Flush => (Change::Flush, 0),
        };
        self.count += 1;
        self.bytes += cost;
        self.entries.insert(self.count, Entry { change, cost, ended: None, durable: false });
        self.count
    }

    /// A change has ended: acknowledged by all legs, or with an error, after which any leg may have it.
    pub(crate) fn end(&mut self, number: u64, acknowledged: bool) {
        self.count += 1;
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.ended = Some(self.count);
            entry.durable = acknowledged && entry.change.is_fua();
        }
    }

    /// No leg has carried the change out, or one that replaces it is kept.
    pub(crate) fn forget(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number) {
            self.bytes -= entry.cost;
        }
    }

    /// A write that is not kept begins, or has ended.
    pub(crate) fn count_beside(&mut self) {
        self.beside += 1;
    }

    /// To be taken before a flush is sent; see [`Log::flushed`].
    pub(crate) fn mark(&mut self) -> Mark {
        self.count += 1;
        Mark { count: self.count, beside: self.beside }
    }

    /// A flush that was begun at that mark has succeeded at all legs: changes that had ended by then are durable.
    pub(crate) fn flushed(&mut self, mark: Mark) {
        self.flushed_beside(mark);
        self.forget_ended(mark.count);
    }

    /// The same, but targets of a resync were not asked: kept changes stay.
    pub(crate) fn flushed_beside(&mut self, mark: Mark) {
        self.beside_flushed = self.beside_flushed.max(Some(mark.beside));
    }

    fn forget_ended(&mut self, count: u64) {
        let bytes = &mut self.bytes;
        self.entries.retain(|_, entry| {
            let kept = entry.ended.is_none_or(|ended| ended > count);
            *bytes -= if kept { 0 } else { entry.cost };
            kept
        });
    }

    /// Whether everything that is not kept is durable at all legs in sync, also what an earlier client has left.
    pub(crate) fn is_durable_beside(&self) -> bool {
        self.beside_flushed == Some(self.beside)
    }

    /// Lets go of kept changes if all that have ended are durable at all legs. True if there is nothing that a flush could still do (W1).
    pub(crate) fn forget_durable(&mut self) -> bool {
        let has_ended = |entry: &&Entry| entry.ended.is_some();
        let durable = mutation::is(Mutation::UnflushedCountsAsDurable)
            || self.is_durable_beside() && self.entries.values().filter(has_ended).all(|entry| entry.durable);
        if durable {
            self.count += 1;
            self.forget_ended(self.count);
        }
        durable
    }

    /// What a leg that has lost everything since the last flush must be given: the newest bytes of every kept block, in parts
    /// that do not overlap. Blocks whose newest bytes were durable at once (FUA) are not among them: an older write must not
    /// come over them.
    pub(crate) fn replay(&self) -> Vec<Change> {
        // Start -> end of what newer changes have.
        let mut covered: BTreeMap<u64, u64> = BTreeMap::new();
        let mut parts = Vec::new();
        for entry in self.entries.values().rev() {
            let (start, length) = entry.change.span();
            let end = start + length;
            let mut free = Vec::new();
            let mut at = covered.range(..=start).next_back().map_or(start, |(_, covered_end)| start.max(*covered_end));
            for (next, next_end) in covered.range(start + 1..end.max(start + 1)) {
                if at < *next {
                    free.push((at, *next));
                }
                at = at.max(*next_end);
            }
            if at < end {
                free.push((at, end));
            }
            if !entry.durable {
                parts.extend(free.iter().map(|(from, to)| entry.change.part(*from, *to)));
            }
            covered.extend(free);
        }
        parts
    }

    /// Every unit (64 KiB) that a kept change touches, as bits of its region: what a leg that leaves now may have missed (S1).
    pub(crate) fn units(&self) -> Units {
        let mut regions = Units::new();
        for (start, length) in self.entries.values().map(|entry| entry.change.span()) {
            add_units(&mut regions, start, length);
        }
        regions
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use sublet_doors::Chunk;

    use super::*;

    const BLOCK: u64 = 4096;

    fn write(block: u64, blocks: u64, byte: u8) -> Change {
        Change::write(block * BLOCK, Chunk::from(vec![byte; (blocks * BLOCK) as usize]), false)
    }

    fn durable(block: u64, byte: u8) -> Change {
        Change::write(block * BLOCK, Chunk::from(vec![byte; BLOCK as usize]), true)
    }

    fn zero(block: u64, blocks: u64) -> Change {
        Change::Zero { offset: block * BLOCK, length: (blocks * BLOCK) as u32, flags: Flags::FAST }
    }

    fn carry_out(disk: &mut [u8], change: &Change) {
        let (start, length) = change.span();
        let range = (start / BLOCK) as usize..((start + length) / BLOCK) as usize;
        match change {
            Change::Write { data, sums, .. } => {
                assert_eq!(sums.len() as u64 / 4, length / BLOCK);
                for (block, bytes) in range.zip(data.chunks(BLOCK as usize)) {
                    disk[block] = bytes[0];
                }
            }
            Change::Zero { flags, .. } => {
                assert!(!flags.has(Flags::FAST));
                disk[range].fill(0);
            }
            Change::Flush => panic!("a flush is no write"),
        }
    }

    #[test]
    fn w5_a_disk_that_lost_any_part_of_what_was_not_flushed_gets_all_of_it_again() {
        let mut seed = 7u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..300 {
            let mut log = Log::new(1);
            let (mut disk, mut flushed) = ([0u8; 40], [0u8; 40]);
            for step in 1..40u8 {
                let block = random(30);
                let change = match random(6) {
                    0 => zero(block, 1 + random(9)),
                    1 => durable(block, step),
                    _ => write(block, 1 + random(9), step),
                };
                if random(9) == 0 {
                    let mark = log.mark();
                    flushed = disk;
                    log.flushed(mark);
                    assert_eq!(log.len(), 0);
                } else {
                    let number = log.begin(&change);
                    let as_made = log.entries[&number].change.clone();
                    carry_out(&mut disk, &as_made);
                    if change.is_fua() {
                        carry_out(&mut flushed, &as_made);
                    }
                    log.end(number, true);
                }
            }
            let mut back = flushed;
            // Some of what was not flushed happens to have reached the disk. Not where a durable write came later.
            for (block, byte) in back.iter_mut().enumerate() {
                if random(2) == 0 {
                    *byte = disk[block];
                }
            }
            let mut seen = [false; 40];
            for part in log.replay() {
                let (start, length) = part.span();
                for block in start / BLOCK..(start + length) / BLOCK {
                    assert!(!std::mem::replace(&mut seen[block as usize], true), "parts do not overlap");
                }
                carry_out(&mut back, &part);
            }
            assert_eq!(back, disk);
        }
    }

    #[test]
    fn w5_a_flush_covers_only_what_had_ended_when_it_was_sent() {
        let mut log = Log::new(1);
        let (one, two) = (log.begin(&write(0, 1, 1)), log.begin(&write(1, 1, 2)));
        log.end(one, true);
        let mark = log.mark();
        log.end(two, true);
        let three = log.begin(&write(2, 1, 3));
        log.flushed(mark);
        assert_eq!(log.entries.keys().copied().collect::<Vec<_>>(), [two, three]);
        log.end(three, false);
        let mark = log.mark();
        log.flushed(mark);
        assert_eq!((log.len(), log.bytes), (0, 0));
    }

    #[test]
    fn w1_a_flush_is_needed_unless_all_that_has_ended_was_durable_at_once() {
        let flush = |log: &mut Log| {
            let mark = log.mark();
            log.flushed(mark);
        };
        let mut log = Log::new(1);
        assert!(!log.forget_durable(), "an earlier client may have left something");
        flush(&mut log);
        assert!(log.forget_durable());
        let (one, two) = (log.begin(&durable(0, 1)), log.begin(&write(1, 1, 2)));
        log.end(one, true);
        assert!(log.forget_durable(), "what is in flight has not been acknowledged");
        assert_eq!(log.entries.keys().copied().collect::<Vec<_>>(), [two]);
        log.end(two, true);
        assert!(!log.forget_durable());
        flush(&mut log);
        let failed = log.begin(&durable(0, 3));
        log.end(failed, false);
        assert!(!log.forget_durable(), "a leg may lack it");
        flush(&mut log);
        assert!(log.forget_durable());
        // A write that is not kept, and a flush that was sent before it had ended.
        log.count_beside();
        let mark = log.mark();
        log.count_beside();
        log.flushed(mark);
        assert!(!log.forget_durable());
        flush(&mut log);
        log.flushed(mark);
        assert!(log.forget_durable(), "an older flush takes nothing back");
    }

    #[test]
    fn w5_a_durable_write_that_failed_is_replayed_like_any_other() {
        let mut log = Log::new(1);
        let number = log.begin(&durable(3, 1));
        log.end(number, false);
        assert_eq!(log.replay().len(), 1);
        let number = log.begin(&durable(3, 2));
        log.end(number, true);
        assert!(log.replay().is_empty(), "the older write must not come over it");
    }

    #[test]
    fn w5_the_log_is_bounded_by_bytes_and_by_entries_and_a_small_write_keeps_no_large_buffer() {
        let mut log = Log::new(1);
        let large = Chunk::from(vec![1; 1 << 20]);
        for _ in 1..KEPT_BYTES_MAX >> 20 {
            log.begin(&Change::write(0, large.clone(), false));
        }
        assert!(log.is_half_full() && !log.is_full());
        log.begin(&Change::write(0, large.clone(), false));
        assert!(log.is_full());
        let mut log = Log::new(1);
        for _ in 0..1000 {
            log.begin(&Change::write(0, large.part(0..4096), false));
        }
        assert_eq!(log.bytes, 1000 * 4096);
        let mut log = Log::new(1);
        for _ in 0..KEPT_ENTRIES_MAX {
            log.begin(&zero(0, 1));
        }
        assert!(log.is_full());
        assert_eq!(Log::new(16).bytes_max, KEPT_BYTES_VOLUME_MAX / 16);
        assert_eq!(Log::new(1000).bytes_max, KEPT_BYTES_MIN);
    }

    #[test]
    fn s1_the_units_of_all_kept_changes_are_those_that_a_leg_has_missed() {
        let mut log = Log::new(1);
        log.begin(&write(15, 2, 1));
        let ended = log.begin(&zero(1024, 1));
        log.end(ended, true);
        assert_eq!(log.units(), BTreeMap::from([(0, 0b11), (1, 1)]));
        log.forget(ended);
        assert_eq!(log.units(), BTreeMap::from([(0, 0b11)]));
    }
}
