//! What lenders know of regions and blocks: missed-write maps (S3), hot marks (H), kept checksums (K2); and what follows from
//! them for a resync (S4).

use std::collections::BTreeMap;

use sublet_doors::Doors;
use sublet_types::Generation;
use sublet_types::limits::{BLOCK_SIZE, MISSED_UNIT, REGION_SIZE, REQUEST_SIZE_MAX};
use sublet_wire::message::{
    Clear, Cool, MapReply, MapRequest, MapWhich, Message, REGIONS_PER_MESSAGE_MAX, Seed, VERIFY_SIZE_MAX, VerifyBlock,
    VerifyReply,
};
use sublet_wire::{Flags, Op, Status};

use crate::session::{Session, SessionError};

/// One request about maps covers so many regions: its length is a 32-bit number of bytes.
const REGIONS_PER_MAP: u64 = 512;
/// The units of a region.
pub(crate) const UNITS: u64 = REGION_SIZE / MISSED_UNIT;
/// The longest reply to MAP: two fixed fields and a count, and thirteen bytes for each region.
const MAP_REPLY_MAX: usize = 64 + 13 * REGIONS_PER_MESSAGE_MAX;
/// The longest reply to VERIFY.
const VERIFY_REPLY_MAX: usize = (VERIFY_SIZE_MAX / BLOCK_SIZE) as usize * VerifyReply::ENTRY_SIZE;

/// Units (64 KiB) as bits, by region.
pub(crate) type Units = BTreeMap<u32, u64>;

/// Adds the units that a byte range of a segment touches.
pub(crate) fn add_units(regions: &mut Units, start: u64, length: u64) {
    if length == 0 {
        return;
    }
    for unit in start / MISSED_UNIT..(start + length).div_ceil(MISSED_UNIT) {
        *regions.entry(u32::try_from(unit / UNITS).unwrap_or(u32::MAX)).or_insert(0) |= 1 << (unit % UNITS);
    }
}

/// The regions that a byte range of a segment touches.
pub(crate) fn regions_of(start: u64, length: u64) -> std::ops::Range<u32> {
    let number = |region: u64| u32::try_from(region).unwrap_or(u32::MAX);
    number(start / REGION_SIZE)..number((start + length).div_ceil(REGION_SIZE))
}

/// What one lender answered about all regions of a slice.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct LegMap {
    /// From when on the map is complete; none without a map.
    pub(crate) since: Option<Generation>,
    /// The lender has crashed while regions were hot.
    pub(crate) lost: bool,
    /// Hot or not, and what was missed, of those regions where there is something to say.
    pub(crate) regions: BTreeMap<u32, (bool, u64)>,
}

impl LegMap {
    /// The regions that are hot.
    pub(crate) fn hot(&self) -> impl Iterator<Item = u32> {
        self.regions.iter().filter(|(_, (hot, _))| *hot).map(|(region, _)| *region)
    }

    /// The units that were missed.
    pub(crate) fn missed(&self) -> Vec<(u32, u64)> {
        self.regions.iter().filter(|(_, (_, missed))| *missed != 0).map(|(region, (_, missed))| (*region, *missed)).collect()
    }

    /// Is it the map of what the leg has missed that left with that generation (S3)? Another one says nothing of it.
    pub(crate) fn covers(&self, left_in: Option<Generation>) -> bool {
        self.since.is_some() && self.since == left_in
    }
}

/// A stretch of a segment that a resync deals with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// It is compared, and copied only where the legs differ.
    pub(crate) compare: bool,
}

/// Everything, in parts of one request.
pub(crate) fn whole(length: u64) -> Vec<Part> {
    let part = |offset| Part { offset, length: REQUEST_SIZE_MAX.min(length - offset), compare: false };
    (0..length.div_ceil(REQUEST_SIZE_MAX)).map(|n| part(n * REQUEST_SIZE_MAX)).collect()
}

/// What a resync copies (S4): what the source knows that the target missed, and what the target holds that others missed; the
/// rest of the regions that are hot at either is compared.
pub(crate) fn plan(length: u64, source: &LegMap, target: &LegMap) -> Vec<Part> {
    let mut regions = source.regions.clone();
    for (region, (hot, missed)) in &target.regions {
        let both = regions.entry(*region).or_default();
        *both = (both.0 | hot, both.1 | missed);
    }
    let mut parts: Vec<Part> = Vec::new();
    for (region, (hot, missed)) in regions {
        for unit in 0..UNITS {
            let is_missed = missed >> unit & 1 == 1;
            let offset = u64::from(region) * REGION_SIZE + unit * MISSED_UNIT;
            if offset >= length || !(is_missed || hot) {
                continue;
            }
            let size = MISSED_UNIT.min(length - offset);
            match parts.last_mut() {
                Some(last)
                    if last.compare != is_missed
                        && last.offset + last.length == offset
                        && last.length + size <= REQUEST_SIZE_MAX =>
                {
                    last.length += size;
                }
                _ => parts.push(Part { offset, length: size, compare: !is_missed }),
            }
        }
    }
    parts
}

/// What a lender knows of the checksum of a block; none if its disk cannot read it.
pub(crate) type Checked = Option<VerifyBlock>;

impl<D: Doors> Session<D> {
    /// The maps of a whole slice of that length; none if the lender keeps no maps (an area of an older format).
    pub(crate) async fn map(&self, which: MapWhich, length: u64) -> Result<Option<LegMap>, SessionError> {
        let all = length.div_ceil(REGION_SIZE);
        let question = MapRequest { which }.encode();
        let mut map: Option<LegMap> = None;
        let mut at = 0;
        while at < all {
            let asked = REGIONS_PER_MAP.min(all - at);
            let bytes = u32::try_from(asked * REGION_SIZE).unwrap_or(u32::MAX);
            let reply = self.ask(Op::Map, Flags::default(), at * REGION_SIZE, bytes, &question, MAP_REPLY_MAX).await;
            let reply: MapReply = match reply {
                Err(SessionError::Refused(Status::Unsupported, _)) => return Ok(None),
                reply => reply?,
            };
            let known = map.get_or_insert_with(|| LegMap { since: reply.since, ..LegMap::default() });
            if known.since != reply.since {
                // It was begun anew meanwhile: nothing of it can be relied on.
                known.since = None;
            }
            known.lost |= reply.lost;
            let entries = reply.entries.into_iter().filter(|e| u64::from(e.region) < all);
            known.regions.extend(entries.map(|e| (e.region, (e.hot, e.missed))));
            at += u64::from(reply.scanned).clamp(1, asked);
        }
        Ok(map)
    }

    /// Gives the lender a map for a stale leg, or adds to it; durable with the next SET_STATE (S1, S5).
    pub(crate) async fn seed(&self, leg: u8, since: Generation, entries: &[(u32, u64)]) -> Result<(), SessionError> {
        let first = entries.get(..entries.len().min(REGIONS_PER_MESSAGE_MAX)).unwrap_or(&[]);
        let seed = |reset, entries: &[(u32, u64)]| Seed { leg, since, reset, entries: entries.to_vec() }.encode();
        self.control(Op::Seed, &seed(true, first)).await?;
        for more in entries.get(first.len()..).unwrap_or(&[]).chunks(REGIONS_PER_MESSAGE_MAX) {
            self.control(Op::Seed, &seed(false, more)).await?;
        }
        Ok(())
    }

    /// The stale leg has these units now, durably (S4).
    pub(crate) async fn clear(&self, leg: u8, entries: &[(u32, u64)]) -> Result<(), SessionError> {
        for part in entries.chunks(REGIONS_PER_MESSAGE_MAX) {
            self.control(Op::Clear, &Clear { leg, entries: part.to_vec() }.encode()).await?;
        }
        Ok(())
    }

    /// Orders regions to cool (H2).
    pub(crate) async fn cool(&self, regions: &[u32]) -> Result<(), SessionError> {
        for part in regions.chunks(REGIONS_PER_MESSAGE_MAX) {
            self.control(Op::Cool, &Cool { regions: part.to_vec() }.encode()).await?;
        }
        Ok(())
    }

    /// What the lender knows of the checksums of whole blocks, at most a region of them; none if it keeps no checksums (an area
    /// of an older format). One block that the disk cannot read says nothing of those beside it.
    pub(crate) async fn verify(&self, offset: u64, length: u64) -> Result<Option<Vec<Checked>>, SessionError> {
        let is_unreadable = |asked: &Result<_, SessionError>| matches!(asked, Err(SessionError::Refused(Status::Io, _)));
        let whole = self.verify_range(offset, length).await;
        if !is_unreadable(&whole) {
            return whole.map(|blocks| blocks.map(|blocks| blocks.into_iter().map(Some).collect()));
        }
        let mut checked = Vec::new();
        for at in (offset..offset + length).step_by(BLOCK_SIZE as usize) {
            let block = self.verify_range(at, BLOCK_SIZE).await;
            if is_unreadable(&block) {
                checked.push(None);
                continue;
            }
            let Some(block) = block? else { return Ok(None) };
            checked.extend(block.into_iter().map(Some));
        }
        Ok(Some(checked))
    }

    async fn verify_range(&self, offset: u64, length: u64) -> Result<Option<Vec<VerifyBlock>>, SessionError> {
        let asked = u32::try_from(length).unwrap_or(u32::MAX);
        let reply = self.ask(Op::Verify, Flags::default(), offset, asked, &[], VERIFY_REPLY_MAX).await;
        let reply: VerifyReply = match reply {
            Err(SessionError::Refused(Status::Unsupported, _)) => return Ok(None),
            reply => reply?,
        };
        if reply.blocks.len() as u64 != length / BLOCK_SIZE {
            self.kill(crate::session::End::Lost("the lender answers VERIFY for other blocks".into()));
            return Err(SessionError::Lost);
        }
        Ok(Some(reply.blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(regions: &[(u32, bool, u64)]) -> LegMap {
        LegMap { regions: regions.iter().map(|(r, hot, missed)| (*r, (*hot, *missed))).collect(), ..LegMap::default() }
    }

    #[test]
    fn s4_a_plan_copies_what_either_map_says_and_compares_the_rest_of_what_is_hot() {
        let length = 3 * REGION_SIZE - 8192;
        let plan = plan(length, &map(&[(0, false, 0b11), (2, true, 0)]), &map(&[(0, true, 0b100)]));
        assert_eq!(plan[0], Part { offset: 0, length: 3 * MISSED_UNIT, compare: false });
        assert_eq!(plan[1], Part { offset: 3 * MISSED_UNIT, length: REQUEST_SIZE_MAX, compare: true });
        assert!(plan[1..].iter().all(|p| p.compare && p.length <= REQUEST_SIZE_MAX));
        let last = plan.last().unwrap();
        assert_eq!(last.offset + last.length, length);
        let covered: u64 = plan.iter().map(|p| p.length).sum();
        assert_eq!(covered, 2 * REGION_SIZE - 8192);
        assert!(super::plan(length, &map(&[]), &map(&[])).is_empty());
        assert_eq!(whole(length).iter().map(|p| p.length).sum::<u64>(), length);
    }

    #[test]
    fn s3_a_map_serves_only_the_leg_that_left_with_its_generation() {
        let generation = |number, random| Generation { number, random };
        let map = LegMap { since: Some(generation(5, 1)), ..LegMap::default() };
        assert!(map.covers(Some(generation(5, 1))));
        assert!(!map.covers(Some(generation(5, 2))) && !map.covers(Some(generation(6, 1))) && !map.covers(None));
        assert!(!LegMap::default().covers(None), "nothing is known of either");
    }
}
