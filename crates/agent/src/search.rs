//! SEARCH: the lender looks through its own slice and ships only offsets.

use std::rc::Rc;

use memchr::memmem::Finder;
use sublet_area::{Area, AreaError};
use sublet_doors::{Buffer, Doors};
use sublet_types::limits::BLOCK_SIZE;
use sublet_wire::Status;
use sublet_wire::message::{MATCHES_PER_REPLY_MAX, SearchReply};

use crate::gate::Session;
use crate::limits::{SEARCH_BYTES_MAX, SEARCH_STEP, SEARCH_STEP_FIRST, SEARCH_WINDOW};
use crate::request::Failure;

/// Finds all matches, overlapping ones too, that begin in the range (any alignment) and end in the segment. Answers for a
/// shorter range when it has read [`SEARCH_BYTES_MAX`] or found [`MATCHES_PER_REPLY_MAX`].
pub(crate) async fn search<D: Doors>(
    area: &Rc<Area<D>>,
    session: &Session,
    offset: u64,
    length: u64,
    pattern: &[u8],
) -> Result<SearchReply, Failure> {
    let end = offset.checked_add(length).filter(|end| *end <= session.length && length > 0).ok_or_else(|| {
        Failure::new(Status::OutOfRange, format!("{length} bytes at {offset} do not lie in the slice's {}", session.length))
    })?;
    let mut scan = Scan {
        area,
        session,
        finder: Finder::new(pattern),
        m: pattern.len() as u64,
        step: SEARCH_STEP_FIRST,
        read: 0,
        matches: Vec::new(),
    };
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
    Ok(SearchReply { scanned: at - offset, matches: scan.matches })
}

struct Scan<'a, D: Doors> {
    area: &'a Rc<Area<D>>,
    session: &'a Session,
    finder: Finder<'a>,
    /// Length of the pattern.
    m: u64,
    /// Bytes that are read next. It grows: where matches are dense, a reply is full after little of a large step.
    step: u64,
    /// Bytes read so far.
    read: u64,
    matches: Vec<u64>,
}

impl<D: Doors> Scan<'_, D> {
    /// Scans `from..to` but for the beginnings whose whole match would lie in a hole. Returns how far it came.
    async fn around_holes(&mut self, from: u64, to: u64) -> Result<u64, AreaError> {
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

    /// Scans for matches that begin in `from..to`. Returns how far it came.
    async fn beginnings(&mut self, from: u64, to: u64) -> Result<u64, AreaError> {
        let mut at = from;
        while at < to {
            if self.read >= SEARCH_BYTES_MAX || self.matches.len() >= MATCHES_PER_REPLY_MAX || self.session.closing().is_some() {
                return Ok(at);
            }
            let begin = at / BLOCK_SIZE * BLOCK_SIZE;
            // Beginnings up to the end of the step; the bytes read reach m-1 further.
            let step_end = to.min(begin + self.step);
            let read_end = (step_end + self.m - 1).next_multiple_of(BLOCK_SIZE).min(self.session.length);
            let length = (read_end - begin) as usize;
            let (result, buffer) = self.area.read(self.session.slice, begin, Buffer::new(length), 0..length).await;
            result?;
            self.read += length as u64;
            self.step = SEARCH_STEP.min(self.step * 2);
            let last_end = (step_end + self.m - 1).min(self.session.length);
            let mut next = at;
            while let Some(bytes) = buffer.get((next - begin) as usize..(last_end - begin) as usize) {
                let Some(found) = self.finder.find(bytes) else { break };
                self.matches.push(next + found as u64);
                // One further, not the pattern's length: matches may overlap.
                next += found as u64 + 1;
                if self.matches.len() >= MATCHES_PER_REPLY_MAX {
                    return Ok(next);
                }
            }
            at = step_end;
        }
        Ok(at)
    }
}
