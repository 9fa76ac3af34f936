//! Searching: each lender scans its own slice; windows across the borders between segments are read and matched here.

use futures_util::{StreamExt, stream};
use sublet_doors::Doors;
use sublet_wire::message::{MATCHES_PER_REPLY_MAX, Message, PATTERN_MAX, Search, SearchReply};
use sublet_wire::{Malformed, Op};

use crate::error::{VolumeError, VolumeErrorKind};
use crate::options::ManagerDoor;
use crate::segment::Segment;
use crate::volume::Inner;

/// One request has the lender search so many bytes at most ...
const SEARCH_SIZE: u64 = 16 << 20;
/// ... and so many requests run at the same time.
const SEARCHES_AT_ONCE: usize = 4;
/// The largest reply: two numbers, and eight bytes for each match.
const REPLY_MAX: usize = 12 + 8 * MATCHES_PER_REPLY_MAX;

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
    pattern: &[u8],
    limit: Option<u64>,
    found: &mut dyn FnMut(&[u64]),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SearchSummary, VolumeError> {
    if pattern.is_empty() || pattern.len() > PATTERN_MAX {
        let text = format!("a pattern has 1 to {PATTERN_MAX} bytes, not {}", pattern.len());
        return Err(VolumeError::new(VolumeErrorKind::OutOfRange, text));
    }
    let limit = limit.unwrap_or(u64::MAX);
    let mut summary = SearchSummary { count: 0, limited: limit == 0 };
    // Answers false when the limit is reached.
    let mut take = |summary: &mut SearchSummary, mut matches: Vec<u64>| {
        matches.retain(|at| at + pattern.len() as u64 <= inner.size);
        let room = usize::try_from(limit - summary.count).unwrap_or(usize::MAX);
        summary.limited = matches.len() >= room && limit != u64::MAX;
        matches.truncate(room);
        summary.count += matches.len() as u64;
        if !matches.is_empty() {
            found(&matches);
        }
        !summary.limited
    };
    for segment in &inner.segments {
        if summary.limited {
            break;
        }
        let parts = (0..segment.length.div_ceil(SEARCH_SIZE)).map(|part| part * SEARCH_SIZE);
        let mut searches = stream::iter(parts.map(|from| search_part(segment, pattern, from))).buffered(SEARCHES_AT_ONCE);
        let mut held: Vec<u64> = Vec::new();
        let border = segment.start + segment.length;
        // Matches that begin here may cross the border: they are merged with those that do not.
        let near = border.saturating_sub(pattern.len() as u64 - 1).max(segment.start);
        while let Some(part) = searches.next().await {
            let (end, matches) = part?;
            let (far, close): (Vec<u64>, Vec<u64>) = matches.into_iter().partition(|at| *at < near);
            held.extend(close);
            if !take(&mut summary, far) {
                return Ok(summary);
            }
            progress(segment.start + end, inner.map.size());
        }
        held.extend(across(inner, pattern, near, border).await?);
        held.sort_unstable();
        take(&mut summary, held);
    }
    Ok(summary)
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
    inner.read(near, &mut window).await?;
    let starts = window.windows(pattern.len()).enumerate().filter(|(_, bytes)| *bytes == pattern).map(|(i, _)| near + i as u64);
    Ok(starts.filter(|at| *at < border && at + pattern.len() as u64 > border).collect())
}

/// Matches that begin in one part of a segment and end in the segment, as volume offsets; and where the part ends.
async fn search_part<D: Doors, M: ManagerDoor>(
    segment: &Segment<D, M>,
    pattern: &[u8],
    from: u64,
) -> Result<(u64, Vec<u64>), VolumeError> {
    let question = Search { pattern: pattern.to_vec() }.encode();
    let end = (from + SEARCH_SIZE).min(segment.length);
    let mut at = from;
    let mut matches = Vec::new();
    while at < end {
        let asked = u32::try_from(end - at).unwrap_or(u32::MAX);
        let reply: Scanned = segment.ask_lender(Op::Search, at, asked, &question, REPLY_MAX).await?;
        let reply = reply.0;
        let next = at + reply.scanned.min(end - at);
        matches.extend(
            reply.matches.into_iter().filter(|m| *m >= at && *m < next).filter(|m| m + pattern.len() as u64 <= segment.length),
        );
        at = next;
    }
    Ok((end, matches.into_iter().map(|m| segment.start + m).collect()))
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
