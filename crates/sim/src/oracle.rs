//! What every part of a volume may hold: the window from the last flushed to the last issued write.
//!
//! The unit is a cell of 512 bytes. Every write gives its cells a number, and the bytes of a cell tell volume, cell and number,
//! so that wrong bytes say where they come from. Number 0 is zeroes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use sublet_types::ServerId;

use crate::layout::Layout;

/// Bytes of a cell: what a disk writes wholly or not at all.
pub const CELL: u64 = 512;
/// What written cells begin with.
const MAGIC: u64 = 0x7355_626c_6574_2121;

/// One value that a cell may have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    version: u64,
    /// When its write was issued and when it ended, on the clock of the oracle.
    issued: u64,
    ended: Option<u64>,
    /// When it was answered with an error: it may be carried out all the same, but not after a write issued later.
    failed: Option<u64>,
    /// Acknowledged: everything that had ended before it was issued is excluded.
    acknowledged: bool,
    /// From a former mount that did not end cleanly; these exclude each other once one of them was read.
    old: bool,
    /// What is known of it from that mount.
    kept: Option<Kept>,
    /// When another one, concurrent to it, was seen: only a crash can bring this one back, for reads that are sent later.
    passed: Option<u64>,
}

/// When a write of a former mount was issued and when it ended, on the clock of the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    issued: u64,
    ended: Option<u64>,
    acknowledged: bool,
}

/// A volume's truth.
#[derive(Debug, Default)]
pub struct Oracle {
    /// What is written into the cells: tells volumes apart.
    pub tag: u64,
    clock: u64,
    next_version: u64,
    cells: BTreeMap<u64, Vec<Value>>,
    /// The cells that may hold more than one value.
    open: BTreeSet<u64>,
    /// When the reads under way were sent: what they may still see is kept.
    reading: Vec<u64>,
    /// What was flushed while reads kept it from being forgotten: cells, and the mark.
    kept: Vec<(Range<u64>, u64)>,
    /// When servers last lost what was not flushed.
    losses: BTreeMap<ServerId, u64>,
    /// When processes of servers last ended.
    ends: BTreeMap<ServerId, u64>,
    /// Where the volume lay when the last mount ended without a clean close.
    left: Layout,
    /// Cells read and compared.
    pub checked: u64,
}

/// The truths of all volumes of a run, by their tags: what bytes that are found somewhere may be.
#[derive(Clone, Debug, Default)]
pub struct Truths(Rc<RefCell<BTreeMap<u64, Rc<RefCell<Oracle>>>>>);

impl Truths {
    /// Enters a volume's truth.
    pub fn enter(&self, oracle: &Rc<RefCell<Oracle>>) {
        self.0.borrow_mut().insert(oracle.borrow().tag, Rc::clone(oracle));
    }

    /// A server has lost what was not flushed.
    pub fn lost(&self, server: ServerId) {
        for oracle in self.0.borrow().values() {
            let mut oracle = oracle.borrow_mut();
            let now = oracle.tick();
            oracle.losses.insert(server, now);
        }
    }

    /// The process of a server has ended.
    pub fn ended(&self, server: ServerId) {
        for oracle in self.0.borrow().values() {
            let mut oracle = oracle.borrow_mut();
            let now = oracle.tick();
            oracle.ends.insert(server, now);
        }
    }

    /// The most that can be undone of damage to a block that should hold this: a write that nobody was told of and that a read has
    /// contradicted since is given up, and nothing brings it back. What that read saw is taken instead.
    pub fn undone(&self, right: &[u8]) -> Rc<[u8]> {
        let mut block = right.to_vec();
        block.as_chunks_mut::<{ CELL as usize }>().0.iter_mut().for_each(|cell| self.undo(cell));
        Rc::from(block)
    }

    fn undo(&self, right: &mut [u8; CELL as usize]) {
        // Zeroes do not say where they belong; they are not among the writes that are lost.
        let Some((tag, cell, version)) = told(right) else { return };
        let truths = self.0.borrow();
        let Some(oracle) = truths.get(&tag).map(|oracle| oracle.borrow()) else { return };
        let possible = oracle.possible_now(cell);
        if !possible.contains(&version)
            && let Some(last) = possible.last()
        {
            oracle.fill(cell, *last, right);
        }
    }
}

/// What the bytes of a written cell say: tag, cell and version.
fn told(bytes: &[u8]) -> Option<(u64, u64, u64)> {
    let word = |index: usize| Some(u64::from_le_bytes(bytes.get(index * 8..index * 8 + 8)?.try_into().ok()?));
    (word(0)? == MAGIC).then_some(())?;
    Some((word(1)?, word(2)?, word(3)?))
}

/// A write under way.
#[derive(Debug)]
pub struct Write {
    first: u64,
    count: u64,
    version: u64,
    issued: u64,
}

/// The zeroes of a new volume.
const ZERO: Value =
    Value { version: 0, issued: 0, ended: Some(0), failed: None, acknowledged: true, old: false, kept: None, passed: None };

impl Oracle {
    /// The truth of a new volume: all zero.
    pub fn new(tag: u64) -> Self {
        Self {
            tag,
            clock: 1,
            next_version: 1,
            cells: BTreeMap::new(),
            open: BTreeSet::new(),
            reading: Vec::new(),
            kept: Vec::new(),
            losses: BTreeMap::new(),
            ends: BTreeMap::new(),
            left: Layout::default(),
            checked: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The bytes of a cell with that version.
    pub fn fill(&self, cell: u64, version: u64, into: &mut [u8; CELL as usize]) {
        if version == 0 {
            return into.fill(0);
        }
        let words = [MAGIC, self.tag, cell, version];
        for (index, group) in into.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (part, word) in group.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *part = word.wrapping_add(index as u64).to_le_bytes();
            }
        }
    }

    /// True if these are the bytes `from..` of a cell with that version.
    fn is_filled(&self, cell: u64, version: u64, from: usize, part: &[u8]) -> bool {
        let mut expected = [0; CELL as usize];
        self.fill(cell, version, &mut expected);
        expected.get(from..from + part.len()) == Some(part)
    }

    /// A write of whole cells is issued; the answer is its bytes. With `zeroes` it makes them zero.
    pub fn issue(&mut self, offset: u64, length: u64, zeroes: bool) -> Write {
        let issued = self.tick();
        let version = if zeroes { 0 } else { self.next_version };
        self.next_version += 1;
        let (first, count) = (offset / CELL, length / CELL);
        for cell in first..first + count {
            let value =
                Value { version, issued, ended: None, failed: None, acknowledged: false, old: false, kept: None, passed: None };
            self.cells.entry(cell).or_insert_with(|| vec![ZERO]).push(value);
            self.open.insert(cell);
        }
        Write { first, count, version, issued }
    }

    /// The bytes of a write.
    pub fn bytes(&self, write: &Write) -> Vec<u8> {
        let mut bytes = vec![0; (write.count * CELL) as usize];
        for (index, cell) in bytes.as_chunks_mut::<{ CELL as usize }>().0.iter_mut().enumerate() {
            self.fill(write.first + index as u64, write.version, cell);
        }
        bytes
    }

    /// A write ended.
    pub fn ended(&mut self, write: &Write, acknowledged: bool) {
        let now = self.tick();
        for values in self.cells.range_mut(write.first..write.first + write.count).map(|(_, values)| values) {
            if let Some(value) = values.iter_mut().rev().find(|value| value.issued == write.issued) {
                value.acknowledged = acknowledged;
                *(if acknowledged { &mut value.ended } else { &mut value.failed }) = Some(now);
            }
        }
    }

    /// The moment at which a flush is sent.
    pub fn mark(&mut self) -> u64 {
        self.tick()
    }

    /// The moment at which a read is sent. It is given back by [`Self::check`], or by [`Self::unread`].
    pub fn read(&mut self) -> u64 {
        let mark = self.tick();
        self.reading.push(mark);
        mark
    }

    /// A read has ended.
    pub fn unread(&mut self, mark: u64) {
        self.reading.retain(|reading| *reading != mark);
    }

    /// What was replaced by then can be seen by nobody any more.
    fn past(&self, mark: u64) -> u64 {
        self.reading.iter().copied().min().map_or(mark, |reading| reading.min(mark))
    }

    /// A flush that was sent at `mark` was acknowledged: what had ended by then is durable, and what it replaced is gone for ever.
    pub fn flushed(&mut self, mark: u64) {
        self.forget(0..u64::MAX, mark);
    }

    /// The same for a write with force unit access: only its own cells.
    pub fn flushed_write(&mut self, write: &Write) {
        let now = self.tick();
        self.forget(write.first..write.first + write.count, now);
    }

    /// What was replaced in these cells by writes that had ended at the mark is gone for ever, but for reads under way.
    fn forget(&mut self, range: Range<u64>, mark: u64) {
        let past = self.past(mark);
        if self.reading.is_empty() {
            self.kept.clear();
        } else if past < mark {
            self.kept.push((range.clone(), mark));
        }
        let inside: Vec<u64> = self.open.range(range).copied().collect();
        for cell in inside {
            if let Some(values) = self.cells.get_mut(&cell) {
                prune(values, past);
                if values.len() < 2 {
                    self.open.remove(&cell);
                }
            }
        }
    }

    /// The mount ended without a clean close: any value since the last flush may be what is left, and what was under way may still
    /// have been carried out. But what a lender has that lost nothing since must be left (H3).
    pub fn crashed(&mut self, layout: Option<Layout>) {
        self.reading.clear();
        for (range, mark) in std::mem::take(&mut self.kept) {
            self.forget(range, mark);
        }
        let layout = layout.unwrap_or_default();
        for cell in &self.open {
            let is_same = layout.has_same(&self.left, *cell);
            for value in self.cells.get_mut(cell).into_iter().flatten() {
                let own = Kept { issued: value.issued, ended: value.ended.or(value.failed), acknowledged: value.acknowledged };
                *value = Value {
                    kept: if value.old { value.kept.filter(|_| is_same) } else { Some(own) },
                    issued: 0,
                    ended: Some(0),
                    failed: None,
                    acknowledged: false,
                    old: true,
                    passed: None,
                    ..value.clone()
                };
            }
        }
        self.left = layout;
    }

    /// H3: where no lender that was in sync when the mount ended, and is so ever since, has lost anything since a write was issued,
    /// that write is left if it was acknowledged; and so it is where the process of one of them goes on, with its checksums. (If it
    /// does not, a block that another one has set back to its checkpoint may win: its checksum was kept, K2.)
    fn settle(&mut self, range: Range<u64>, layout: impl FnOnce() -> Option<Layout>) {
        let doubtful = |cell: &&u64| self.cells.get(cell).is_some_and(|values| values.iter().any(|value| value.kept.is_some()));
        let cells: Vec<u64> = self.open.range(range).filter(doubtful).copied().collect();
        let Some(layout) = (!cells.is_empty()).then(layout).flatten() else { return };
        for cell in cells {
            let (true, Some(lenders)) = (layout.has_same(&self.left, cell), layout.lenders(cell)) else { continue };
            let lost = |lender| self.losses.get(lender).copied().unwrap_or(0);
            let ended = |lender| self.ends.get(lender).copied().unwrap_or(0);
            let any_lost = lenders.iter().map(lost).max().unwrap_or(u64::MAX);
            let all_ended = lenders.iter().map(|lender| lost(lender).max(ended(lender))).min().unwrap_or(u64::MAX);
            let lost = any_lost.min(all_ended);
            let Some(values) = self.cells.get_mut(&cell) else { continue };
            let has = |kept: &Kept| kept.acknowledged && kept.issued > lost;
            let bound = values.iter().filter_map(|value| value.kept).filter(has).map(|kept| kept.issued).max().unwrap_or(0);
            values.retain(|value| value.kept.is_none_or(|kept| kept.ended.is_none_or(|ended| ended >= bound)));
        }
    }

    /// Compares what was read. `mark` is when the read was sent, `layout` where the volume lies now, if that is known. The answer is
    /// what is wrong, if anything is.
    pub fn check(&mut self, mark: u64, offset: u64, bytes: &[u8], layout: impl FnOnce() -> Option<Layout>) -> Result<(), String> {
        self.unread(mark);
        let end = offset + bytes.len() as u64;
        self.settle(offset / CELL..end.div_ceil(CELL), layout);
        let mut at = offset;
        while at < end {
            let cell = at / CELL;
            let until = ((cell + 1) * CELL).min(end);
            let (from, to) = ((at - cell * CELL) as usize, (until - cell * CELL) as usize);
            let part = bytes.get((at - offset) as usize..(until - offset) as usize).unwrap_or(&[]);
            self.checked += 1;
            at = until;
            let Some(values) = self.cells.get(&cell) else {
                if part.iter().any(|byte| *byte != 0) {
                    return Err(self.explain(cell, part, from, &[ZERO]));
                }
                continue;
            };
            let bound = replaced_until(values, mark);
            let fits = |value: &&Value| is_possible(value, bound, mark) && self.is_filled(cell, value.version, from, part);
            if !values.iter().any(|value| fits(&value)) {
                let possible: Vec<Value> = values.iter().filter(|value| is_possible(value, bound, mark)).cloned().collect();
                return Err(self.explain(cell, part, from, &possible));
            }
            if to - from == CELL as usize && values.len() > 1 {
                self.seen(mark, cell, part);
            }
        }
        Ok(())
    }

    /// The versions that a read may see that is sent now.
    fn possible_now(&self, cell: u64) -> Vec<u64> {
        let (mark, values) = (self.clock + 1, self.cells.get(&cell).map_or(std::slice::from_ref(&ZERO), Vec::as_slice));
        let bound = replaced_until(values, mark);
        values.iter().filter(|value| is_possible(value, bound, mark)).map(|value| value.version).collect()
    }

    /// A value was seen by a read that was sent when nothing was under way: the others that were possible beside it are passed.
    fn seen(&mut self, mark: u64, cell: u64, part: &[u8]) {
        let Some(values) = self.cells.get(&cell) else { return };
        if values.iter().any(|value| value.ended.is_none_or(|ended| ended > mark)) {
            return;
        }
        let (now, bound) = (self.clock, replaced_until(values, self.clock + 1));
        let fits = |value: &&Value| is_possible(value, bound, now + 1) && self.is_filled(cell, value.version, 0, part);
        let mut found = values.iter().filter(fits).map(|value| (value.version, value.old));
        let (Some((version, old)), None) = (found.next(), found.next()) else { return };
        let Some(values) = self.cells.get_mut(&cell) else { return };
        if old {
            // H3: what is read after an unclean close is equal on all legs and durable from then on.
            values.retain(|value| !value.old || value.version == version);
            return;
        }
        for value in values.iter_mut() {
            value.passed = Some(now).filter(|_| value.version != version);
        }
    }

    fn explain(&self, cell: u64, part: &[u8], from: usize, possible: &[Value]) -> String {
        let found = match (from, told(part)) {
            (0, Some((tag, at, version))) if tag == self.tag => format!("version {version} of cell {at} of this volume"),
            (0, Some((tag, at, version))) => format!("version {version} of cell {at} of ANOTHER volume (tag {tag:x})"),
            _ if part.iter().all(|byte| *byte == 0) => "zeroes".to_owned(),
            _ => format!("something else: {:02x?}", part.get(..part.len().min(32)).unwrap_or(&[])),
        };
        let known = self.cells.get(&cell).map(Vec::as_slice).unwrap_or(&[]);
        format!("cell {cell} (byte {}) holds {found}; possible are {possible:?}; known are {known:?}", cell * CELL)
    }

    /// Stretches that were ever written, as (offset, length), in order; neighbours are joined.
    pub fn written(&self) -> Vec<(u64, u64)> {
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        for cell in self.cells.keys() {
            match stretches.last_mut() {
                Some((offset, length)) if *offset + *length == cell * CELL => *length += CELL,
                _ => stretches.push((cell * CELL, CELL)),
            }
        }
        stretches
    }
}

/// What had ended before this moment was replaced by an acknowledged write that had ended at the mark.
fn replaced_until(values: &[Value], mark: u64) -> u64 {
    let replaces = |value: &&Value| value.acknowledged && value.ended.is_some_and(|end| end < mark);
    values.iter().filter(replaces).map(|value| value.issued).max().unwrap_or(0)
}

/// True for a read that was sent at the mark unless an acknowledged write replaced it; `bound` is the answer of
/// [`replaced_until`].
fn is_possible(value: &Value, bound: u64, mark: u64) -> bool {
    let is_passed = value.passed.is_some_and(|at| at < mark);
    value.ended.or(value.failed).is_none_or(|ended| !is_passed && ended >= bound)
}

/// Forgets what was replaced by writes that had ended at the mark.
fn prune(values: &mut Vec<Value>, mark: u64) {
    if values.len() > 1 {
        let bound = replaced_until(values, mark);
        values.retain(|value| value.ended.or(value.failed).is_none_or(|ended| ended >= bound));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(oracle: &Oracle, version: u64) -> Vec<u8> {
        let mut bytes = [0; CELL as usize];
        oracle.fill(0, version, &mut bytes);
        bytes.to_vec()
    }

    fn holds(oracle: &mut Oracle, version: u64) -> bool {
        let (mark, bytes) = (oracle.read(), cell(oracle, version));
        oracle.check(mark, 0, &bytes, || None).is_ok()
    }

    fn write(oracle: &mut Oracle) {
        let write = oracle.issue(0, CELL, false);
        oracle.ended(&write, true);
    }

    #[test]
    fn an_acknowledged_write_is_what_is_read() {
        let mut oracle = Oracle::new(1);
        assert!(holds(&mut oracle, 0));
        write(&mut oracle);
        write(&mut oracle);
        assert!(holds(&mut oracle, 2) && !holds(&mut oracle, 1) && !holds(&mut oracle, 0));
    }

    #[test]
    fn a_write_under_way_may_or_may_not_be_there_and_one_of_two_wins_for_good() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle);
        let second = oracle.issue(0, CELL, false);
        assert!(holds(&mut oracle, 1) && holds(&mut oracle, 2));
        let third = oracle.issue(0, CELL, false);
        oracle.ended(&second, true);
        oracle.ended(&third, true);
        assert!(!holds(&mut oracle, 1));
        assert!(holds(&mut oracle, 2));
        assert!(!holds(&mut oracle, 3), "2 was seen when nothing was under way");
    }

    #[test]
    fn a_read_that_was_sent_before_a_write_may_see_what_was_there_and_decides_nothing() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle);
        let (early, old) = (oracle.read(), cell(&oracle, 1));
        let second = oracle.issue(0, CELL, false);
        let third = oracle.issue(0, CELL, false);
        let between = oracle.read();
        oracle.ended(&second, true);
        oracle.ended(&third, true);
        oracle.flushed_write(&third);
        let mark = oracle.mark();
        oracle.flushed(mark);
        assert!(oracle.check(early, 0, &old, || None).is_ok());
        let new = cell(&oracle, 2);
        assert!(oracle.check(between, 0, &new, || None).is_ok());
        let slow = oracle.read();
        assert!(holds(&mut oracle, 3), "3 may have come over 2 after it was read");
        assert!(!holds(&mut oracle, 1) && !holds(&mut oracle, 2));
        let fourth = oracle.issue(0, CELL, false);
        let between = oracle.read();
        oracle.ended(&fourth, true);
        assert!(holds(&mut oracle, 4));
        let passed = cell(&oracle, 3);
        assert!(oracle.check(slow, 0, &passed, || None).is_ok() && oracle.check(between, 0, &passed, || None).is_ok());
    }

    #[test]
    fn what_was_flushed_while_a_read_was_under_way_is_not_lost_by_a_crash() {
        for fua in [false, true] {
            let mut oracle = Oracle::new(1);
            write(&mut oracle);
            oracle.read();
            let second = oracle.issue(0, CELL, false);
            oracle.ended(&second, true);
            if fua {
                oracle.flushed_write(&second);
            } else {
                let mark = oracle.mark();
                oracle.flushed(mark);
            }
            oracle.crashed(None);
            assert!(!holds(&mut oracle, 1) && holds(&mut oracle, 2));
        }
    }

    #[test]
    fn after_a_crash_everything_since_the_flush_is_possible_until_it_was_read() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle);
        write(&mut oracle);
        let mark = oracle.mark();
        oracle.flushed(mark);
        write(&mut oracle);
        let _under_way = oracle.issue(0, CELL, false);
        oracle.crashed(None);
        assert!(!holds(&mut oracle, 1), "flushed over");
        assert!(holds(&mut oracle, 3));
        assert!(!holds(&mut oracle, 2) && !holds(&mut oracle, 4), "3 was read");
        write(&mut oracle);
        assert!(holds(&mut oracle, 5) && !holds(&mut oracle, 3));
    }

    /// What may be read of a cell after a crash: it was written (1), servers lost power, it was written again (2), servers lost
    /// power and processes ended, and a third write was under way.
    fn left(before: &[u128], after: &[u128], ended: &[u128], generation_then: u64) -> Vec<u64> {
        let lender = ServerId::from_u128;
        let layout = |generation| Some(Layout::one(1, generation, &[lender(1), lender(2)]));
        let ends = |version: u64| {
            let oracle = Rc::new(RefCell::new(Oracle::new(1)));
            let truths = Truths::default();
            truths.enter(&oracle);
            write(&mut oracle.borrow_mut());
            before.iter().for_each(|server| truths.lost(lender(*server)));
            write(&mut oracle.borrow_mut());
            let _under_way = oracle.borrow_mut().issue(0, CELL, false);
            oracle.borrow_mut().crashed(layout(1));
            after.iter().for_each(|server| truths.lost(lender(*server)));
            ended.iter().for_each(|server| truths.ended(lender(*server)));
            let bytes = cell(&oracle.borrow(), version);
            let mark = oracle.borrow_mut().read();
            oracle.borrow_mut().check(mark, 0, &bytes, || layout(generation_then)).is_ok()
        };
        (0..4).filter(|version| ends(*version)).collect()
    }

    #[test]
    fn h3_what_a_lender_has_that_lost_nothing_is_left_after_a_crash() {
        const ANY: [u64; 4] = [0, 1, 2, 3];
        assert_eq!(left(&[], &[], &[1, 2], 1), [2, 3], "nobody has lost anything");
        assert_eq!(left(&[1, 2], &[], &[], 1), [2, 3], "both have written it since");
        assert_eq!(left(&[], &[1], &[], 1), [2, 3], "the other has it, and its checksum");
        assert_eq!(left(&[], &[1], &[2], 1), ANY, "the other has it and not its checksum");
        assert_eq!(left(&[1], &[2], &[], 1), [2, 3], "the one that lost something before has it");
        assert_eq!(left(&[], &[1, 2], &[], 1), ANY, "both have lost what was not flushed");
        assert_eq!(left(&[], &[], &[], 2), ANY, "another set is in sync: it was not told who has what");
    }

    #[test]
    fn of_damage_nothing_is_undone_that_a_read_has_contradicted() {
        let truths = Truths::default();
        let oracle = Rc::new(RefCell::new(Oracle::new(1)));
        truths.enter(&oracle);
        let one = oracle.borrow_mut().issue(0, CELL, false);
        oracle.borrow_mut().ended(&one, true);
        let _lost = oracle.borrow_mut().issue(0, CELL, false);
        let (before, after) = (cell(&oracle.borrow(), 1), cell(&oracle.borrow(), 2));
        let is_undone = || *truths.undone(&after) == *after;
        assert!(is_undone());
        oracle.borrow_mut().crashed(None);
        assert!(is_undone(), "it may have been carried out");
        assert!(holds(&mut oracle.borrow_mut(), 1));
        assert!(!is_undone(), "a read has seen what was there before");
        assert_eq!(*truths.undone(&after), *before, "that is what is left of it");
        assert_eq!(*truths.undone(&before), *before);
        let foreign = cell(&Oracle::new(2), 1);
        assert_eq!(*truths.undone(&foreign), *foreign, "of that volume nothing is known");
    }

    #[test]
    fn foreign_bytes_and_bytes_of_other_places_are_wrong() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle);
        let foreign = cell(&Oracle::new(2), 1);
        let mark = oracle.read();
        assert!(oracle.check(mark, 0, &foreign, || None).unwrap_err().contains("ANOTHER volume"));
        assert!(oracle.check(mark, CELL, &cell(&oracle, 1), || None).unwrap_err().contains("cell 0"));
    }
}
