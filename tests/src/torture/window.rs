//! What a block may hold: the window [last flushed .. last issued] of the operations on it.
//!
//! Operations of one volume are numbered by its own clock, which counts what its user has sent and received. While the
//! client lives, a read sees an operation that was not overtaken: no other one was issued after it had ended and answered
//! before the read was sent (W1, W2). Only what a loud failure or a power cut may take back may be older, and never older
//! than the last flush (W1).

use crate::random::Random;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const MAGIC: u64 = 0x7375_626c_6574_2e31;
const HEADER: usize = 32;
const SECTOR: usize = 512;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// Zeroes.
    Zero,
    /// The bytes of the operation with this number.
    Written(u64),
    /// A mixture of sectors of several operations, which a power cut has left; with their hash.
    Torn(u64),
}

/// One operation on a block.
#[derive(Clone, Debug)]
struct Operation {
    value: Value,
    /// When it was issued.
    issued: u64,
    /// The same, whatever was read since.
    made: u64,
    /// Since when it cannot take effect any more: it was answered, or its client is gone for good.
    ended: Option<u64>,
    /// True if it was answered without an error: others that ended before it was issued are overtaken.
    answered: bool,
}

/// Everything that one block may hold.
#[derive(Clone, Debug)]
pub struct Window {
    operations: Vec<Operation>,
    /// True from a loss on until it is written again: disks tear a block at the borders of sectors.
    torn: bool,
}

/// The bytes of a block after operation `number` on it.
pub fn fill(volume: u64, block: u64, number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    for word in [MAGIC, volume, block, number] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(Random::new(volume ^ block.rotate_left(40) ^ number.rotate_left(20)).bytes(BLOCK - HEADER));
    bytes
}

/// What a block that was read says about itself.
///
/// # Errors
/// It is no block of this place: torn, misplaced, of another volume, or damaged.
pub fn parse(volume: u64, block: u64, bytes: &[u8]) -> Result<Value, String> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(Value::Zero);
    }
    let word = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (magic, of, at, number) = (word(0), word(8), word(16), word(24));
    if magic != MAGIC {
        return Err(format!("its header is damaged or torn: {:x?}", bytes.get(..HEADER).unwrap_or_default()));
    }
    if of != volume || at != block {
        return Err(format!("it holds block {at} of volume {of:x}, operation {number}"));
    }
    let whole = fill(volume, block, number);
    match bytes.iter().zip(&whole).position(|(a, b)| a != b) {
        None if bytes.len() == BLOCK => Ok(Value::Written(number)),
        at => Err(format!("it begins as operation {number} and is torn or damaged at byte {at:?}")),
    }
}

impl Window {
    /// A block that was never written.
    pub fn new() -> Self {
        let never = Operation { value: Value::Zero, issued: 0, made: 0, ended: Some(0), answered: true };
        Self { operations: vec![never], torn: false }
    }

    /// An operation was sent at `now`.
    pub fn issue(&mut self, value: Value, now: u64) {
        self.operations.push(Operation { value, issued: now, made: now, ended: None, answered: false });
    }

    /// The operation that was issued at `issued` was answered without an error at `now`.
    pub fn answer(&mut self, issued: u64, now: u64) {
        if let Some(operation) = self.operations.iter_mut().find(|o| o.issued == issued && o.ended.is_none()) {
            operation.ended = Some(now);
            operation.answered = true;
            self.torn = false;
        }
    }

    /// A flush that was sent at `sent` was answered: whatever was overtaken by something answered before is gone for good.
    pub fn flush(&mut self, sent: u64) {
        let durable: Vec<u64> = self.operations.iter().filter(|o| o.answered && o.ended < Some(sent)).map(|o| o.issued).collect();
        self.operations.retain(|o| !durable.iter().any(|issued| o.ended.is_some_and(|ended| ended < *issued)));
    }

    /// The write that was issued at `issued` with forced unit access was answered: what it has overtaken is gone for good.
    pub fn durable(&mut self, issued: u64) {
        self.operations.retain(|o| o.ended.is_none_or(|ended| ended >= issued));
    }

    /// The client is gone, and a new one has fenced it: what was in flight has happened or never will.
    pub fn fenced(&mut self, now: u64) {
        for operation in self.operations.iter_mut().filter(|o| o.ended.is_none()) {
            operation.ended = Some(now);
        }
    }

    /// The volume failed loudly, or its client and lender lost power: everything since the last flush may be gone, or not.
    pub fn lost(&mut self, now: u64) {
        self.lost_before(u64::MAX, now);
    }

    /// Lenders lost power after a client that had kept what was issued before `since` was gone: all that was not flushed of it may be
    /// gone, or not.
    pub fn lost_before(&mut self, since: u64, now: u64) {
        let mut count = 0;
        for operation in self.operations.iter_mut().filter(|o| o.made < since) {
            operation.ended.get_or_insert(now);
            operation.answered = false;
            count += 1;
        }
        self.torn |= count > 1;
    }

    fn overtaken(&self, operation: &Operation, sent: u64) -> bool {
        let Some(ended) = operation.ended else { return false };
        self.operations.iter().any(|o| o.answered && o.ended < Some(sent) && o.issued > ended)
    }

    /// A read that was sent at `sent` has seen `value`. What was seen while nothing was in flight stays.
    ///
    /// # Errors
    /// What it should have seen.
    pub fn read(&mut self, value: Value, sent: u64) -> Result<(), String> {
        let seen = self.operations.iter().position(|o| o.value == value && !self.overtaken(o, sent));
        let Some(seen) = seen else { return Err(self.explain(value, sent)) };
        let quiet = self.operations.iter().all(|o| o.ended.is_some_and(|ended| ended < sent));
        if quiet && let Some(operation) = self.operations.get_mut(seen) {
            operation.issued = sent;
            operation.ended = Some(sent);
            operation.answered = true;
        }
        Ok(())
    }

    /// As [`Window::read`], for bytes that are no whole block: after a loss, every sector of it may be that of another
    /// operation.
    ///
    /// # Errors
    /// They are not, or nothing was lost.
    pub fn read_torn(&mut self, volume: u64, block: u64, bytes: &[u8], sent: u64) -> Result<(), String> {
        let value = Value::Torn(bytes.iter().fold(MAGIC, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)));
        if self.torn && self.operations.iter().all(|o| o.value != value) {
            let written = |o: &Operation| match o.value {
                Value::Zero => Some(vec![0; BLOCK]),
                Value::Written(number) => Some(fill(volume, block, number)),
                Value::Torn(_) => None,
            };
            let possible: Vec<Vec<u8>> = self.operations.iter().filter_map(written).collect();
            let from = |at: usize| possible.iter().any(|whole| whole.get(at..at + SECTOR) == bytes.get(at..at + SECTOR));
            if (0..BLOCK).step_by(SECTOR).all(from) {
                self.operations.push(Operation { value, issued: sent, made: sent, ended: Some(sent), answered: false });
            }
        }
        self.read(value, sent)
    }

    fn explain(&self, value: Value, sent: u64) -> String {
        let list: Vec<String> = self
            .operations
            .iter()
            .map(|o| {
                let state = match (o.answered, o.ended) {
                    (true, Some(ended)) => format!("answered {ended}"),
                    (_, Some(ended)) => format!("cut off {ended}"),
                    (_, None) => "in flight".to_owned(),
                };
                let overtaken = if self.overtaken(o, sent) { ", overtaken" } else { "" };
                format!("{:?} (issued {}, {state}{overtaken})", o.value, o.issued)
            })
            .collect();
        format!("a read sent at {sent} saw {value:?}; in its window are: {}", list.join("; "))
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(window: &mut Window, issued: u64, ended: u64) {
        window.issue(Value::Written(issued), issued);
        window.answer(issued, ended);
    }

    #[test]
    fn a_read_sees_the_last_answered_write_and_nothing_older() {
        let mut window = Window::new();
        written(&mut window, 1, 2);
        written(&mut window, 3, 4);
        assert!(window.read(Value::Written(1), 5).is_err());
        assert!(window.read(Value::Zero, 5).is_err());
        assert!(window.read(Value::Written(9), 5).is_err());
        window.read(Value::Written(3), 5).unwrap();
    }

    #[test]
    fn writes_that_overlap_in_time_may_end_in_either_order_but_only_once() {
        let mut window = Window::new();
        window.issue(Value::Written(1), 1);
        window.issue(Value::Written(2), 2);
        window.answer(2, 3);
        window.answer(1, 4);
        let mut other = window.clone();
        window.read(Value::Written(1), 5).unwrap();
        assert!(window.read(Value::Written(2), 6).is_err(), "the copies differ");
        other.read(Value::Written(2), 5).unwrap();
        other.read(Value::Written(2), 6).unwrap();
        assert!(other.read(Value::Zero, 7).is_err());
    }

    #[test]
    fn a_write_in_flight_may_be_seen_or_not_until_its_client_is_fenced_and_a_read_has_decided() {
        let mut window = Window::new();
        written(&mut window, 1, 2);
        window.issue(Value::Written(3), 3);
        window.read(Value::Written(3), 4).unwrap();
        window.read(Value::Written(1), 5).unwrap();
        window.fenced(6);
        window.read(Value::Written(1), 7).unwrap();
        assert!(window.read(Value::Written(3), 8).is_err(), "an old write landed after a new client had read");
    }

    #[test]
    fn what_failed_loudly_may_be_lost_back_to_the_last_flush_and_not_beyond() {
        let mut window = Window::new();
        written(&mut window, 1, 2);
        written(&mut window, 3, 4);
        window.flush(5);
        written(&mut window, 6, 7);
        assert!(window.clone().read(Value::Written(3), 8).is_err());
        window.lost(8);
        for (value, fine) in [(3, true), (6, true), (1, false)] {
            assert_eq!(window.clone().read(Value::Written(value), 9).is_ok(), fine, "{value}");
        }
        written(&mut window, 10, 11);
        assert!(window.read(Value::Written(3), 12).is_err());
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it_was_sent_only() {
        let mut window = Window::new();
        written(&mut window, 1, 2);
        window.issue(Value::Written(3), 3);
        window.answer(3, 5);
        window.flush(4);
        window.lost(6);
        window.clone().read(Value::Written(1), 7).unwrap();
        window.clone().read(Value::Written(3), 7).unwrap();
        assert!(window.read(Value::Zero, 7).is_err());
    }

    #[test]
    fn what_a_client_that_is_gone_had_kept_may_be_lost_with_the_power_and_nothing_newer() {
        let mut window = Window::new();
        written(&mut window, 1, 2);
        window.flush(3);
        written(&mut window, 4, 5);
        written(&mut window, 6, 7);
        window.fenced(10);
        // The next client has seen it, and keeps it all the same not.
        window.clone().read(Value::Written(4), 11).unwrap_err();
        window.read(Value::Written(6), 11).unwrap();
        let mut overwritten = window.clone();
        window.lost_before(10, 12);
        for value in [1, 4, 6] {
            window.clone().read(Value::Written(value), 13).unwrap();
        }
        window.read(Value::Zero, 13).unwrap_err();
        // What it has written itself it writes again.
        written(&mut overwritten, 12, 13);
        overwritten.lost_before(10, 14);
        overwritten.clone().read(Value::Written(6), 15).unwrap_err();
        overwritten.read(Value::Written(12), 15).unwrap();
    }

    #[test]
    fn a_torn_block_is_right_only_after_a_loss_and_only_of_what_was_in_the_window() {
        let (old, new) = (fill(7, 3, 1), fill(7, 3, 5));
        let torn = [&old[..1024], &new[1024..]].concat();
        let mut window = Window::new();
        written(&mut window, 1, 2);
        window.flush(3);
        written(&mut window, 5, 6);
        assert!(window.read_torn(7, 3, &torn, 7).is_err());
        window.lost(8);
        assert!(window.clone().read_torn(7, 3, &[&fill(7, 3, 4)[..512], &new[512..]].concat(), 9).is_err());
        window.read_torn(7, 3, &torn, 9).unwrap();
        window.read_torn(7, 3, &torn, 10).unwrap();
        assert!(window.read(Value::Written(5), 11).is_err(), "it changed by itself");
        written(&mut window, 12, 13);
        assert!(window.read_torn(7, 3, &torn, 14).is_err());
    }

    #[test]
    fn blocks_say_whose_they_are_and_whether_they_are_whole() {
        let bytes = fill(7, 3, 12);
        assert_eq!(parse(7, 3, &bytes), Ok(Value::Written(12)));
        assert_eq!(parse(7, 3, &[0; BLOCK]), Ok(Value::Zero));
        assert!(parse(7, 4, &bytes).unwrap_err().contains("block 3"));
        assert!(parse(8, 3, &bytes).is_err());
        let mut torn = bytes;
        torn[2048..].copy_from_slice(&fill(7, 3, 11)[2048..]);
        assert!(parse(7, 3, &torn).unwrap_err().contains("torn"));
    }
}
