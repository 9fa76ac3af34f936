//! SEARCH: the lender looks through its own slice and ships only offsets, or only their number.

use std::rc::Rc;

use memchr::memmem::Finder;
use sublet_area::Area;
use sublet_doors::{Buffer, Doors};
use sublet_types::limits::BLOCK_SIZE;
use sublet_wire::Status;
use sublet_wire::checksum::{first_mismatch, table_size};
use sublet_wire::message::{MATCHES_PER_REPLY_MAX, SearchReply};

use crate::gate::Session;
use crate::limits::{SEARCH_BYTES_MAX, SEARCH_STEP, SEARCH_STEP_FIRST, SEARCH_TRIES, SEARCH_TRY_PAUSE, SEARCH_WINDOW};
use crate::request::Failure;

/// What is searched for.
pub(crate) struct Question<'a> {
    /// Where matches may begin, in the slice, in bytes; any alignment.
    pub(crate) offset: u64,
    /// How many beginnings.
    pub(crate) length: u64,
    /// The bytes; not empty.
    pub(crate) pattern: &'a [u8],
    /// No offsets are wanted.
    pub(crate) count_only: bool,
}

/// Finds all matches, overlapping ones too, that begin in the range and end in the segment. Answers for a shorter range when
/// it has read [`SEARCH_BYTES_MAX`] or found [`MATCHES_PER_REPLY_MAX`].
pub(crate) async fn search<D: Doors>(
    doors: &D,
    area: &Rc<Area<D>>,
    session: &Session,
    question: &Question<'_>,
) -> Result<SearchReply, Failure> {
    let (offset, length, pattern) = (question.offset, question.length, question.pattern);
    let end = offset.checked_add(length).filter(|end| *end <= session.length && length > 0).ok_or_else(|| {
        Failure::new(Status::OutOfRange, format!("{length} bytes at {offset} do not lie in the slice's {}", session.length))
    })?;
    let matches = Matches::new(pattern, question.count_only);
    let mut scan = Scan { doors, area, session, m: pattern.len() as u64, step: SEARCH_STEP_FIRST, read: 0, matches };
    // Holes are zeroes: a pattern of nothing else matches in them.
    let skips_holes = pattern.iter().any(|byte| *byte != 0);
    let mut at = offset;
    while at < end {
        let window = end.min(at + SEARCH_WINDOW);
        at = if skips_holes { scan.around_holes(at, window).await? } else { scan.beginnings(at, window).await? };
        if at < window || session.closing().is_some() {
            break;
        }
    }
    Ok(SearchReply { scanned: at - offset, count: scan.matches.count, matches: scan.matches.offsets })
}

struct Scan<'a, D: Doors> {
    doors: &'a D,
    area: &'a Rc<Area<D>>,
    session: &'a Session,
    /// Length of the pattern.
    m: u64,
    /// Bytes that are read next. It grows: where matches are dense, a reply is full after little of a large step.
    step: u64,
    /// Bytes read so far.
    read: u64,
    matches: Matches<'a>,
}

impl<D: Doors> Scan<'_, D> {
    /// Scans `from..to` but for the beginnings whose whole match would lie in a hole. Returns how far it came.
    async fn around_holes(&mut self, from: u64, to: u64) -> Result<u64, Failure> {
        let aligned = from / BLOCK_SIZE * BLOCK_SIZE;
        let length = (to - aligned).next_multiple_of(BLOCK_SIZE);
        let extents = self.area.extents(self.session.slice, aligned, length).await?;
        let mut at = from;
        let mut stretch = aligned;
        for extent in extents {
            let stretch_end = stretch.saturating_add(extent.length).min(to);
            if !extent.data {
                // The last m-1 beginnings of a hole reach into what follows.
                let skip_to = stretch_end.saturating_sub(self.m - 1);
                if skip_to > at.max(stretch) {
                    let reached = self.beginnings(at, stretch.max(at)).await?;
                    if reached < stretch {
                        return Ok(reached);
                    }
                    at = skip_to;
                }
            }
            stretch = stretch_end;
        }
        self.beginnings(at, to).await
    }

    /// Reads blocks and compares them with their checksums: offsets found in damaged bytes would be as wrong as those bytes (K1).
    async fn checked(&self, begin: u64, length: usize) -> Result<Buffer, Failure> {
        let mut sums = vec![0; table_size(length)];
        let mut tries = 0;
        loop {
            let (result, buffer) = self.area.read(self.session.slice, begin, Buffer::new(length), 0..length, &mut sums).await;
            result?;
            let Some(block) = first_mismatch(&buffer, &sums) else { return Ok(buffer) };
            tries += 1;
            if tries == SEARCH_TRIES {
                let at = begin + block as u64 * BLOCK_SIZE;
                let text = format!(
                    "the block at {at} of the slice does not fit its checksum: it cannot be searched; a scrub repairs it"
                );
                return Err(Failure::new(Status::Io, text));
            }
            // It may have been written meanwhile.
            self.doors.sleep(SEARCH_TRY_PAUSE).await;
        }
    }

    /// Scans for matches that begin in `from..to`. Returns how far it came.
    async fn beginnings(&mut self, from: u64, to: u64) -> Result<u64, Failure> {
        let mut at = from;
        while at < to {
            if self.read >= SEARCH_BYTES_MAX || self.matches.is_full() || self.session.closing().is_some() {
                return Ok(at);
            }
            let begin = at / BLOCK_SIZE * BLOCK_SIZE;
            // Beginnings up to the end of the step; the bytes read reach m-1 further.
            let step_end = to.min(begin + self.step);
            let read_end = (step_end + self.m - 1).next_multiple_of(BLOCK_SIZE).min(self.session.length);
            let length = (read_end - begin) as usize;
            let buffer = self.checked(begin, length).await?;
            self.read += length as u64;
            self.step = SEARCH_STEP.min(self.step * 2);
            let last_end = (step_end + self.m - 1).min(self.session.length);
            let bytes = buffer.get((at - begin) as usize..(last_end - begin) as usize).unwrap_or_default();
            match self.matches.look_through(bytes, at) {
                Some(next) => return Ok(next),
                None => at = step_end,
            }
        }
        Ok(at)
    }
}

/// Finds matches in bytes, and keeps them.
struct Matches<'a> {
    finder: Finder<'a>,
    /// The pattern's smallest period: where matches follow each other without a gap or overlap, they are so far apart.
    period: usize,
    count_only: bool,
    count: u64,
    offsets: Vec<u64>,
}

impl<'a> Matches<'a> {
    fn new(pattern: &'a [u8], count_only: bool) -> Self {
        Self { finder: Finder::new(pattern), period: period(pattern), count_only, count: 0, offsets: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.offsets.len() >= MATCHES_PER_REPLY_MAX
    }

    /// Takes all matches in `bytes`, whose first byte lies at `start`. If there are too many for a reply: where to go on.
    fn look_through(&mut self, bytes: &[u8], start: u64) -> Option<u64> {
        let mut at = 0;
        while let Some(found) = bytes.get(at..).and_then(|rest| self.finder.find(rest)) {
            at += found;
            // As long as every byte equals the one a period before, one match follows another, and no other one lies
            // between: otherwise the pattern had a smaller period. Without this, dense matches take a search each.
            let behind = bytes.get(at + self.finder.needle().len()..).unwrap_or_default();
            let before = bytes.get(at + self.finder.needle().len() - self.period..).unwrap_or_default();
            let more = equal_bytes(behind, before) / self.period;
            if self.count_only {
                self.count += 1 + more as u64;
                at += more * self.period;
            } else {
                let room = MATCHES_PER_REPLY_MAX - self.offsets.len();
                let taken = (1 + more).min(room);
                self.offsets.extend((0..taken).map(|i| start + (at + i * self.period) as u64));
                self.count += taken as u64;
                at += (taken - 1) * self.period;
            }
            // One further, not the pattern's length: matches may overlap.
            at += 1;
            if self.is_full() {
                return Some(start + at as u64);
            }
        }
        None
    }
}

/// The smallest distance at which the pattern matches itself; its length if it never does (the failure function of Knuth,
/// Morris and Pratt).
fn period(pattern: &[u8]) -> usize {
    let mut borders = vec![0; pattern.len()];
    let mut border = 0;
    for (i, byte) in pattern.iter().enumerate().skip(1) {
        while border > 0 && pattern.get(border) != Some(byte) {
            border = borders.get(border - 1).copied().unwrap_or(0);
        }
        border += usize::from(pattern.get(border) == Some(byte));
        if let Some(place) = borders.get_mut(i) {
            *place = border;
        }
    }
    pattern.len() - border
}

/// How many bytes at the front are equal. Whole chunks are compared at once.
fn equal_bytes(a: &[u8], b: &[u8]) -> usize {
    let mut equal = 0;
    for size in [4096, 64, 1] {
        let (Some(a), Some(b)) = (a.get(equal..), b.get(equal..)) else { break };
        equal += size * a.chunks_exact(size).zip(b.chunks_exact(size)).take_while(|(a, b)| a == b).count();
    }
    equal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_agree_with_a_naive_search_also_where_they_are_dense() {
        // A small alphabet, and bytes that are made of repetitions of the pattern with now and then another byte.
        let mut state = 7u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..2000 {
            let pattern: Vec<u8> = (0..1 + below(9)).map(|_| b'a' + below(2) as u8).collect();
            let mut bytes = Vec::new();
            for _ in 0..below(20) {
                for _ in 0..below(30) {
                    bytes.extend_from_slice(&pattern[..1 + below(pattern.len() as u64) as usize]);
                }
                bytes.push(b'a' + below(3) as u8);
            }
            let naive: Vec<u64> = (0..bytes.len()).filter(|i| bytes[*i..].starts_with(&pattern)).map(|i| 5 + i as u64).collect();
            let mut listed = Matches::new(&pattern, false);
            assert_eq!(listed.look_through(&bytes, 5), None);
            assert_eq!((listed.offsets, listed.count), (naive.clone(), naive.len() as u64), "{}", pattern.escape_ascii());
            let mut counted = Matches::new(&pattern, true);
            assert_eq!(counted.look_through(&bytes, 5), None);
            assert_eq!((counted.offsets.len(), counted.count), (0, naive.len() as u64));
        }
    }

    #[test]
    fn a_full_reply_says_where_to_go_on() {
        let bytes = vec![b'z'; 3 * MATCHES_PER_REPLY_MAX];
        let mut matches = Matches::new(b"zz", false);
        assert_eq!(matches.look_through(&bytes, 100), Some(100 + MATCHES_PER_REPLY_MAX as u64));
        assert_eq!(matches.offsets, (100..100 + MATCHES_PER_REPLY_MAX as u64).collect::<Vec<_>>());
    }

    #[test]
    fn dense_matches_are_counted_at_the_speed_of_reading() {
        // 64 MiB of matches one byte apart: a search each would take many seconds here.
        let bytes = vec![b'Z'; 64 << 20];
        let began = std::time::Instant::now();
        let mut matches = Matches::new(b"ZZZZZZZZ", true);
        matches.look_through(&bytes, 0);
        assert_eq!(matches.count, bytes.len() as u64 - 7);
        assert!(began.elapsed().as_secs_f64() < 1.0, "{:?}", began.elapsed());
    }
}
