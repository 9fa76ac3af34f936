//! What a lender in memory knows of regions and blocks: hot marks, missed-write maps, kept checksums. It does what the area does,
//! in the plainest way, and panics where a client breaks a rule.

use std::collections::{BTreeMap, BTreeSet};

use sublet_types::Generation;
use sublet_types::limits::REGION_SIZE;
use sublet_wire::checksum::write_table;
use sublet_wire::message::{BlockState, MapEntry, MapReply, MapWhich, Seed, StaleMark, VerifyBlock};

use crate::maps::{UNITS, Units, add_units, regions_of};

const BLOCK: usize = 4096;

/// The map for one stale leg.
#[derive(Clone, Debug)]
pub(crate) struct PeerMap {
    pub(crate) since: Generation,
    pub(crate) bits: Units,
    /// What survives a crash, besides the hot regions; none before the first SET_STATE.
    durable: Option<Units>,
}

#[derive(Clone, Default)]
pub(crate) struct Regions {
    /// Durable as soon as it is set (H1).
    pub(crate) hot: BTreeSet<u32>,
    pub(crate) maps: BTreeMap<u8, PeerMap>,
    /// Bits of hot regions were lost in a crash.
    pub(crate) lost: bool,
    /// Checksums; none where they were in memory only when the lender crashed.
    sums: Vec<Option<u32>>,
}

fn sum(block: &[u8]) -> u32 {
    let mut table = [0; 4];
    write_table(block, &mut table);
    u32::from_le_bytes(table)
}

impl Regions {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self { sums: bytes.chunks(BLOCK).map(|block| Some(sum(block))).collect(), ..Self::default() }
    }

    /// A write or zeroes, now in `bytes`.
    pub(crate) fn written(&mut self, at: usize, bytes: &[u8]) {
        let (start, length) = (at as u64, bytes.len() as u64);
        self.hot.extend(regions_of(start, length));
        for map in self.maps.values_mut() {
            add_units(&mut map.bits, start, length);
        }
        for (kept, block) in self.sums[at / BLOCK..].iter_mut().zip(bytes.chunks(BLOCK)) {
            *kept = Some(sum(block));
        }
    }

    /// The agent or its machine has crashed: what was in memory is gone.
    pub(crate) fn crash(&mut self) {
        self.lost |= !self.hot.is_empty();
        for region in &self.hot {
            let blocks = *region as usize * 1024..(*region as usize + 1) * 1024;
            for block in blocks.start..blocks.end.min(self.sums.len()) {
                self.sums[block] = None;
            }
        }
        self.maps.retain(|_, map| map.durable.is_some());
        for map in self.maps.values_mut() {
            map.bits = map.durable.clone().unwrap();
            map.bits.extend(self.hot.iter().map(|region| (*region, u64::MAX)));
        }
    }

    pub(crate) fn seed(&mut self, seed: &Seed) {
        let fresh = || PeerMap { since: seed.since, bits: Units::new(), durable: None };
        let map = self.maps.entry(seed.leg).or_insert_with(fresh);
        if seed.reset {
            *map = fresh();
        }
        assert_eq!(map.since, seed.since);
        for (region, bits) in &seed.entries {
            *map.bits.entry(*region).or_insert(0) |= bits;
        }
    }

    pub(crate) fn clear(&mut self, leg: u8, entries: &[(u32, u64)]) {
        let Some(map) = self.maps.get_mut(&leg) else { return };
        for (region, bits) in entries {
            if let Some(kept) = map.bits.get_mut(region) {
                *kept &= !bits;
            }
        }
        map.bits.retain(|_, bits| *bits != 0);
        if let Some(durable) = &mut map.durable {
            durable.clone_from(&map.bits);
        }
    }

    /// SET_STATE: maps of legs in sync are dropped, those of marked ones are durable from now on.
    pub(crate) fn set_state(&mut self, in_sync: &[bool], stale: &[StaleMark]) {
        for mark in stale {
            let fresh = PeerMap { since: mark.since, bits: Units::new(), durable: None };
            let map = self.maps.entry(mark.leg).or_insert(fresh);
            if !mark.seeded {
                map.since = mark.since;
                map.bits.extend(self.hot.iter().map(|region| (*region, u64::MAX)));
            }
            map.durable = Some(map.bits.clone());
        }
        self.maps.retain(|leg, map| !in_sync[usize::from(*leg)] && map.durable.is_some());
    }

    pub(crate) fn map(&self, which: MapWhich, first: u32, end: u32) -> MapReply {
        // Short replies now and then: the client asks again.
        let end = end.min(first + 3);
        let chosen: Vec<&PeerMap> = match which {
            MapWhich::Leg(leg) => self.maps.get(&leg).into_iter().collect(),
            MapWhich::All => self.maps.values().collect(),
        };
        let since = match which {
            MapWhich::Leg(_) => chosen.first().map(|map| map.since),
            MapWhich::All => None,
        };
        let entry = |region: u32| {
            let missed = chosen.iter().filter_map(|map| map.bits.get(&region)).fold(0, |all, bits| all | bits);
            MapEntry { region, hot: self.hot.contains(&region), missed }
        };
        let entries = (first..end).map(entry).filter(|e| e.hot || e.missed != 0).collect();
        MapReply { since, lost: self.lost, scanned: end - first, entries }
    }

    /// COOL (H2): what the regions hold must be durable.
    pub(crate) fn cool(&mut self, regions: &[u32], bytes: &[u8], durable: &[u8]) {
        for region in regions {
            let start = (u64::from(*region) * REGION_SIZE) as usize;
            let end = (start + REGION_SIZE as usize).min(bytes.len());
            assert!(bytes[start..end] == durable[start..end], "H2: region {region} is cooled before it was flushed");
            self.hot.remove(region);
            for map in self.maps.values_mut() {
                if let Some(durable) = &mut map.durable {
                    durable.insert(*region, map.bits.get(region).copied().unwrap_or(0));
                }
            }
            for (block, kept) in self.sums[start / BLOCK..end.div_ceil(BLOCK)].iter_mut().enumerate() {
                let at = start + block * BLOCK;
                kept.get_or_insert_with(|| sum(&bytes[at..at + BLOCK]));
            }
        }
        self.lost &= !self.hot.is_empty();
    }

    /// The checksums of blocks as they are stored, and whether one of them had to be computed now.
    pub(crate) fn table(&self, at: usize, bytes: &[u8]) -> (Vec<u8>, bool) {
        let kept = &self.sums[at / BLOCK..(at + bytes.len()) / BLOCK];
        let table =
            kept.iter().zip(bytes.chunks(BLOCK)).flat_map(|(kept, block)| kept.unwrap_or_else(|| sum(block)).to_le_bytes());
        (table.collect(), kept.iter().any(Option::is_none))
    }

    pub(crate) fn verify(&self, at: usize, bytes: &[u8]) -> Vec<VerifyBlock> {
        let kept = self.sums[at / BLOCK..].iter().zip(bytes.chunks(BLOCK));
        let block = |(kept, block): (&Option<u32>, &[u8])| match *kept {
            Some(kept) if kept == sum(block) => VerifyBlock { sum: kept, state: BlockState::Matches },
            Some(kept) => VerifyBlock { sum: kept, state: BlockState::Differs },
            None => VerifyBlock { sum: sum(block), state: BlockState::Computed },
        };
        kept.map(block).collect()
    }

    /// What was missed by a leg, as whole units.
    pub(crate) fn missed(&self, leg: u8) -> u64 {
        self.maps
            .get(&leg)
            .map_or(0, |map| map.bits.values().map(|bits| u64::from(bits.count_ones())).sum::<u64>())
            .min(UNITS << 20)
    }
}
