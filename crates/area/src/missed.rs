//! Missed maps (S3): what stale legs lack, in units of 64 KiB, one `u64` per region and leg. Pure.
//!
//! The bits of a hot region live in memory, and the hot mark on the disk stands for all of them: after a crash every hot
//! region counts as wholly missed. They are written to the region's entry before it cools. An entry that cannot be read
//! reads as all ones.

use std::collections::BTreeMap;

use sublet_types::limits::COPIES_MAX;
use sublet_types::{Generation, SliceId};

use crate::bytes::{Get, Put};
use crate::layout::MAP_ENTRY_SIZE;

const MAGIC: [u8; 4] = *b"MISS";
const LEGS_AT: usize = 32;
const LEG_SIZE: usize = 32;

/// The map of one stale leg, as far as it is in memory.
#[derive(Clone, Debug)]
pub(crate) struct LegMap {
    /// Complete from this generation on.
    pub since: Generation,
    /// Bits that are not in the entries on the disk, by region of the area.
    pub bits: BTreeMap<usize, u64>,
}

/// What is kept for one leg of a slice.
#[derive(Clone, Default, Debug)]
pub(crate) struct Leg {
    /// The map that the label names.
    pub live: Option<LegMap>,
    /// What was sent since, and is written meanwhile: part of the map from the next change of state on.
    pub staged: Option<LegMap>,
    /// The staged map takes the place of the live one, instead of being added to it.
    pub anew: bool,
}

impl Leg {
    /// Notes a write.
    fn note(&mut self, region: usize, bits: u64) {
        for map in [&mut self.live, &mut self.staged].into_iter().flatten() {
            *map.bits.entry(region).or_default() |= bits;
        }
    }
}

/// The maps of a slice, by leg.
pub(crate) type SliceMaps = [Leg; COPIES_MAX];

/// The maps of all slices that have any.
#[derive(Default)]
pub(crate) struct Maps(pub BTreeMap<SliceId, SliceMaps>);

impl Maps {
    /// Notes a write to a range of the area for every stale leg of its slice.
    pub fn note(&mut self, slice: SliceId, offset: u64, length: u64) {
        if let Some(legs) = self.0.get_mut(&slice) {
            for (region, bits) in units(offset, length) {
                legs.iter_mut().for_each(|leg| leg.note(region, bits));
            }
        }
    }

    /// The live maps of a slice, with their legs.
    pub fn live(&self, slice: SliceId) -> impl Iterator<Item = (usize, &LegMap)> {
        let legs = self.0.get(&slice).into_iter().flatten().enumerate();
        legs.filter_map(|(n, leg)| leg.live.as_ref().map(|map| (n, map)))
    }

    /// Forgets bits that are on the disk now.
    pub fn written(&mut self, slice: SliceId, region: usize) {
        for leg in self.0.get_mut(&slice).into_iter().flatten() {
            if let Some(map) = &mut leg.live {
                map.bits.remove(&region);
            }
        }
    }

    /// Keeps the maps that `keep` says, and perhaps what was sent for others, and forgets a slice without any.
    pub fn retain(&mut self, slice: SliceId, keep: impl Fn(usize) -> bool, keep_sent: bool) {
        if let Some(legs) = self.0.get_mut(&slice) {
            for (_, leg) in legs.iter_mut().enumerate().filter(|(n, _)| !keep(*n)) {
                *leg = if keep_sent { Leg { live: None, ..std::mem::take(leg) } } else { Leg::default() };
            }
            if legs.iter().all(|leg| leg.live.is_none() && leg.staged.is_none()) {
                self.0.remove(&slice);
            }
        }
    }
}

/// What an entry on the disk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Entry {
    /// For each leg: the map that it belongs to, and the bits.
    pub legs: [Option<(Generation, u64)>; COPIES_MAX],
}

impl Entry {
    /// As it is written.
    pub fn encode(&self, region: u64, slice: SliceId) -> [u8; MAP_ENTRY_SIZE as usize] {
        let mut bytes = [0; MAP_ENTRY_SIZE as usize];
        let mut put = Put(&mut bytes);
        put.bytes(0, &MAGIC).u64(8, region).u128(16, slice.to_u128());
        for (leg, held) in self.legs.iter().enumerate() {
            if let Some((since, bits)) = held {
                let at = LEGS_AT + leg * LEG_SIZE;
                put.u64(at, since.number).u128(at + 8, since.random).u64(at + 24, *bits);
            }
        }
        let sum = crc32c::crc32c(&bytes);
        Put(&mut bytes).u32(4, sum);
        bytes
    }

    /// Reads an entry; none if it is damaged, of another region, or of a slice that was here before.
    pub fn decode(bytes: &[u8], region: u64, slice: SliceId) -> Option<Self> {
        let get = Get(bytes);
        let (before, after) = (bytes.get(..4)?, bytes.get(8..MAP_ENTRY_SIZE as usize)?);
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), after);
        if before != MAGIC || sum != get.u32(4) || get.u64(8) != region || get.u128(16) != slice.to_u128() {
            return None;
        }
        let mut entry = Self::default();
        for (leg, held) in entry.legs.iter_mut().enumerate() {
            let at = LEGS_AT + leg * LEG_SIZE;
            let since = Generation { number: get.u64(at), random: get.u128(at + 8) };
            *held = (since.number > 0).then(|| (since, get.u64(at + 24)));
        }
        Some(entry)
    }

    /// The bits for the map of a leg that begins at `since`. An entry of a later map was written on the way to a label that does
    /// not name it after all: what it took the place of is not known, and that is all ones. One of an earlier map is of no account.
    pub fn bits(&self, leg: usize, since: Generation) -> u64 {
        match self.legs.get(leg).copied().flatten() {
            Some((own, bits)) if own == since => bits,
            Some((own, _)) if own.number >= since.number => u64::MAX,
            _ => 0,
        }
    }
}

/// The units that a byte range touches, as (region, bits); offsets are of the area.
pub(crate) fn units(offset: u64, length: u64) -> impl Iterator<Item = (usize, u64)> {
    use sublet_types::limits::{MISSED_UNIT, REGION_SIZE};
    let end = offset + length;
    let regions = offset / REGION_SIZE..end.div_ceil(REGION_SIZE);
    regions.map(move |region| {
        let begin = region * REGION_SIZE;
        let from = (offset.max(begin) - begin) / MISSED_UNIT;
        let to = (end.min(begin + REGION_SIZE) - begin).div_ceil(MISSED_UNIT);
        let bits = if to - from == 64 { u64::MAX } else { ((1 << (to - from)) - 1) << from };
        (region as usize, bits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_that_a_range_touches() {
        const MIB: u64 = 1 << 20;
        let of = |offset, length| units(offset, length).collect::<Vec<_>>();
        assert_eq!(of(0, 4096), [(0, 1)]);
        assert_eq!(of(60 << 10, 8192), [(0, 3)]);
        assert_eq!(of(0, 4 * MIB), [(0, u64::MAX)]);
        assert_eq!(of(4 * MIB - 4096, 8192), [(0, 1 << 63), (1, 1)]);
        assert_eq!(of(3 * MIB, 6 * MIB), [(0, 0xFFFF << 48), (1, u64::MAX), (2, 0xFFFF)]);
    }

    #[test]
    fn s3_an_entry_counts_only_whole_and_for_its_own_region_slice_and_map() {
        let since = |number| Generation { number, random: 5 };
        let slice = SliceId::from_u128;
        let mut entry = Entry::default();
        entry.legs[1] = Some((since(3), 0xF0));
        entry.legs[3] = Some((since(4), u64::MAX));
        let mut bytes = entry.encode(17, slice(9));
        assert_eq!(Entry::decode(&bytes, 17, slice(9)), Some(entry));
        assert_eq!((entry.bits(1, since(3)), entry.bits(1, since(4)), entry.bits(0, since(3))), (0xF0, 0, 0));
        assert_eq!(entry.bits(1, since(2)), u64::MAX, "a later map's");
        assert_eq!(entry.bits(1, Generation { number: 3, random: 6 }), u64::MAX, "of another history");
        assert_eq!(Entry::decode(&bytes, 18, slice(9)), None);
        assert_eq!(Entry::decode(&bytes, 17, slice(8)), None);
        for bit in 0..512 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Entry::decode(&bytes, 17, slice(9)), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
