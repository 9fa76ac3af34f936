//! Searching: each lender scans its own slice; windows across the borders between segments are read and matched here. The bytes of a
//! sealed volume mean nothing to its lenders: they are all read and matched here.

use std::rc::Rc;

use futures_util::{StreamExt, stream};
use memchr::memmem;
use sublet_doors::Doors;
use sublet_wire::message::{MATCHES_PER_REPLY_MAX, Message, PATTERN_MAX, Search, SearchReply};
use sublet_wire::{Flags, Malformed, Op};

use crate::error::{VolumeError, VolumeErrorKind};
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::volume::Inner;

/// One request has the lender search so many bytes at most ...
const SEARCH_SIZE: u64 = 16 << 20;
/// ... and so many requests run at the same time: a lender has room and time for others.
const SEARCHES_AT_ONCE: usize = 4;
/// So much is read at once where the lenders cannot search. A request of full size, and no more matches than fit into memory.
const WINDOW: u64 = 1 << 20;
/// The largest reply: three numbers, and eight bytes for each match.
const REPLY_MAX: usize = 20 + 8 * MATCHES_PER_REPLY_MAX;

/// What is searched for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted<'a> {
    /// 1 to 4096 bytes.
    pub pattern: &'a [u8],
    /// Stop after so many matches.
    pub limit: Option<u64>,
    /// Where they are is not wanted, only how many there are: nothing but numbers travels.
    pub count_only: bool,
}

/// How a search ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SearchSummary {
    /// How many matches were found.
    pub count: u64,
    /// True if the limit ended it.
    pub limited: bool,
}

/// See [`crate::Volume::search`].
pub(crate) async fn search<D: Doors, M: ManagerDoor>(
    inner: &Inner<D, M>,
    wanted: &Wanted<'_>,
    found: &mut impl AsyncFnMut(Vec<u64>),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SearchSummary, VolumeError> {
    let m = wanted.pattern.len() as u64;
    if m == 0 || m > PATTERN_MAX as u64 {
        let text = format!("a pattern has 1 to {PATTERN_MAX} bytes, not {m}");
        return Err(VolumeError::new(VolumeErrorKind::OutOfRange, text));
    }
    let mut take = Taker { limit: wanted.limit, found, summary: SearchSummary { count: 0, limited: wanted.limit == Some(0) } };
    if inner.cipher()?.is_some() {
        search_here(inner, wanted, &mut take, progress).await?;
        return Ok(take.summary);
    }
    for segment in inner.segments.iter().filter(|s| s.start < inner.size) {
        if take.summary.limited {
            break;
        }
        let border = segment.start + segment.length;
        // The lender finds what ends in the segment, and the part of the segment that the volume shows: so many beginnings.
        let beginnings = (border.min(inner.size) - segment.start).saturating_sub(m - 1);
        let parts = (0..beginnings.div_ceil(SEARCH_SIZE)).map(|part| part * SEARCH_SIZE);
        let parts = parts.map(|from| search_part(segment, wanted, from, (from + SEARCH_SIZE).min(beginnings)));
        let mut searches = stream::iter(parts).buffered(SEARCHES_AT_ONCE);
        while let Some(part) = searches.next().await {
            let mut part = part?;
            loop {
                let (at, end) = (part.at, part.end);
                if !take.part(part).await {
                    return Ok(take.summary);
                }
                progress(segment.start + at, inner.map.size());
                if at >= end {
                    break;
                }
                // Many matches: the rest of this part, reply by reply, so that they are never many here.
                part = search_part(segment, wanted, at, end).await?;
            }
        }
        let matches = across(inner, wanted.pattern, segment.start + beginnings, border).await?;
        let count = matches.len() as u64;
        let matches = if wanted.count_only { Vec::new() } else { matches };
        take.part(Part { at: border, end: border, count, matches }).await;
        progress(border, inner.map.size());
    }
    Ok(take.summary)
}

/// The same for a sealed volume.
async fn search_here<D: Doors, M: ManagerDoor>(
    inner: &Inner<D, M>,
    wanted: &Wanted<'_>,
    take: &mut Taker<'_, impl AsyncFnMut(Vec<u64>)>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), VolumeError> {
    let finder = memmem::Finder::new(wanted.pattern);
    let beginnings = inner.size.saturating_sub(wanted.pattern.len() as u64 - 1);
    let mut window = Vec::new();
    let mut at = 0;
    while at < beginnings && !take.summary.limited {
        let end = (at + WINDOW).min(beginnings);
        window.resize((end - at) as usize + wanted.pattern.len() - 1, 0);
        inner.read_into(at, &mut window, false).await?;
        let mut matches = Vec::new();
        let mut from = 0;
        // Overlapping ones too.
        while let Some(found) = window.get(from..).and_then(|rest| finder.find(rest)) {
            matches.push(at + (from + found) as u64);
            from += found + 1;
        }
        let count = matches.len() as u64;
        let matches = if wanted.count_only { Vec::new() } else { matches };
        take.part(Part { at: end, end, count, matches }).await;
        at = end;
        progress(at, inner.size);
    }
    Ok(())
}

/// Hands matches on, up to the limit.
struct Taker<'a, F> {
    limit: Option<u64>,
    found: &'a mut F,
    summary: SearchSummary,
}

impl<F: AsyncFnMut(Vec<u64>)> Taker<'_, F> {
    /// Answers false when the limit is reached.
    async fn part(&mut self, mut part: Part) -> bool {
        if let Some(limit) = self.limit {
            let room = limit - self.summary.count;
            self.summary.limited = part.count >= room;
            part.count = part.count.min(room);
            part.matches.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        }
        self.summary.count += part.count;
        if !part.matches.is_empty() {
            (self.found)(part.matches).await;
        }
        !self.summary.limited
    }
}

/// Matches that begin in [near, border) and end behind the border.
async fn across<D: Doors, M: ManagerDoor>(
    inner: &Inner<D, M>,
    pattern: &[u8],
    near: u64,
    border: u64,
) -> Result<Vec<u64>, VolumeError> {
    let end = (border + pattern.len() as u64 - 1).min(inner.size);
    if end <= border || near >= border {
        return Ok(Vec::new());
    }
    let mut window = vec![0; (end - near) as usize];
    inner.read_into(near, &mut window, false).await?;
    let starts = window.windows(pattern.len()).enumerate().filter(|(_, bytes)| *bytes == pattern).map(|(i, _)| near + i as u64);
    Ok(starts.filter(|at| *at < border && at + pattern.len() as u64 > border).collect())
}

/// A stretch of a segment that was searched, or its first part if there were many matches.
struct Part {
    /// Beginnings up to here were looked at.
    at: u64,
    /// Those that were to be looked at; both are offsets in the segment.
    end: u64,
    count: u64,
    /// Volume offsets.
    matches: Vec<u64>,
}

async fn search_part<D: Doors, M: ManagerDoor>(
    segment: &Rc<Segment<D, M>>,
    wanted: &Wanted<'_>,
    from: u64,
    end: u64,
) -> Result<Part, VolumeError> {
    let question = Search { pattern: wanted.pattern.to_vec() }.encode();
    let flags = if wanted.count_only { Flags::COUNT } else { Flags::default() };
    let mut part = Part { at: from, end, count: 0, matches: Vec::new() };
    while part.at < end && part.matches.len() < MATCHES_PER_REPLY_MAX {
        let asked = u32::try_from(end - part.at).unwrap_or(u32::MAX);
        let reply: Scanned = segment.ask_lender(Op::Search, flags, part.at, asked, &question, REPLY_MAX).await?;
        let reply = reply.0;
        let next = part.at + reply.scanned.min(end - part.at);
        if wanted.count_only {
            part.count += reply.count.min(next - part.at);
        } else {
            let inside = reply.matches.into_iter().filter(|m| (part.at..next).contains(m));
            part.matches.extend(inside.map(|m| segment.start + m));
            part.count = part.matches.len() as u64;
        }
        part.at = next;
    }
    Ok(part)
}

/// A reply that makes progress and is in order: anything else is a lie, and ends the session.
struct Scanned(SearchReply);

impl Message for Scanned {
    fn write(&self, w: &mut sublet_wire::codec::Writer) {
        self.0.write(w);
    }
    fn read(r: &mut sublet_wire::codec::Reader<'_>) -> Result<Self, Malformed> {
        let reply = SearchReply::read(r)?;
        if reply.scanned == 0 || !reply.matches.is_sorted_by(|a, b| a < b) {
            return Err(Malformed("a search makes no progress or is out of order"));
        }
        Ok(Self(reply))
    }
}
