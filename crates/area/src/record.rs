//! The record of a slice in the area label (L4). `docs/format.md` draws it.

use sublet_api::order::SliceFacts;
use sublet_api::server::{LeaseReport, SliceReport};
use sublet_types::limits::{BLOCK_SIZE, COPIES_MAX, REGION_SIZE};
use sublet_types::{AreaId, Epoch, Generation, LeaseSecret, ServerId, SliceId, VolumeId, Way};

use crate::bytes::{Get, Put};
use crate::envelope::COUNT_MAX;

/// Length of one record in bytes.
pub(crate) const RECORD_SIZE: usize = 512;

/// Where the generations of the missed maps begin.
const MISSED_AT: usize = 272;

const ADMITTED: u32 = 1 << 0;
const READ_ONLY: u32 = 1 << 1;
const OPEN: u32 = 1 << 2;
const UNCLEAN: u32 = 1 << 3;
const WIPING: u32 = 1 << 4;
const BORROWED: u32 = 1 << 5;
const LEASED: u32 = 1 << 6;
const DROP: u32 = 1 << 7;
const DEFINED: u32 = 1 << 8;
const LOST: u32 = 1 << 9;
const SEALED: u32 = 1 << 10;

/// The lease that is admitted, or was last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LeaseRecord {
    pub borrower: ServerId,
    /// Kept, so that a restarted agent admits the present client again without the manager.
    pub secret: LeaseSecret,
    pub read_only: bool,
}

/// A wipe that has begun (P2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WipeRecord {
    /// Everything before this offset in the slice is zero and durable.
    pub done: u64,
    /// Remove the record at the end.
    pub drop: bool,
}

/// All that the label says of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SliceRecord {
    pub facts: SliceFacts,
    /// The newest epoch persisted (F1); number 0 before the first.
    pub epoch: Epoch,
    /// Whether sessions of that epoch are admitted.
    pub admitted: bool,
    pub lease: Option<LeaseRecord>,
    /// The epoch number whose client has it open for writing: the *open* flag.
    pub open: Option<u64>,
    /// An epoch was not closed cleanly, and the legs were not made equal since.
    pub unclean: bool,
    /// Regions were hot when the machine or the disk went down, and the legs were not made equal since: it may have lost what another
    /// leg has (H3).
    pub lost: bool,
    pub wipe: Option<WipeRecord>,
    /// For each leg: from which generation on its missed map is complete, if there is one (S3).
    pub missed_since: [Option<Generation>; COPIES_MAX],
}

impl SliceRecord {
    /// A slice that nobody has opened yet.
    pub fn new(facts: SliceFacts) -> Self {
        Self {
            facts,
            epoch: Epoch::default(),
            admitted: false,
            lease: None,
            open: None,
            unclean: false,
            lost: false,
            wipe: None,
            missed_since: [None; COPIES_MAX],
        }
    }

    /// The byte after the last in the area.
    pub fn end(&self) -> u64 {
        self.facts.offset.saturating_add(self.facts.length)
    }

    /// A slice as it can be lent: whole regions, not longer than they are, one of as many legs as there can be and as its
    /// in-sync set names, and numbers that can still count up.
    pub fn makes_sense(&self) -> bool {
        let facts = &self.facts;
        let since = self.missed_since.iter().flatten().map(|since| since.number);
        let counts = since.chain([self.epoch.number, facts.generation.number]).chain(self.open);
        counts.max().is_none_or(|most| most <= COUNT_MAX)
            && facts.leg < facts.legs
            && facts.segment < facts.segments
            && facts.in_sync.len() == facts.legs as usize
            && facts.offset.is_multiple_of(REGION_SIZE)
            && facts.length.is_multiple_of(REGION_SIZE)
            && facts.length > 0
            && facts.segment_length <= facts.length
            && facts.in_sync.len() <= COPIES_MAX
            && self.wipe.is_none_or(|wipe| wipe.done <= facts.length && wipe.done.is_multiple_of(BLOCK_SIZE))
    }

    /// As [`Self::missed_since`], for the legs that there are.
    pub fn missed(&self) -> Vec<Option<Generation>> {
        self.missed_since.iter().copied().take(self.facts.in_sync.len()).collect()
    }

    /// What the manager is told; `hot` regions of it are hot.
    pub fn report(&self, hot: u32) -> SliceReport {
        SliceReport {
            facts: self.facts.clone(),
            epoch: self.epoch,
            admitted: self.admitted,
            wiping: self.wipe.is_some(),
            drop: self.wipe.is_some_and(|wipe| wipe.drop),
            lease: self.lease.as_ref().map(|lease| LeaseReport {
                borrower: lease.borrower,
                read_only: lease.read_only,
                secret: Some(lease.secret),
            }),
            open: self.open.is_some(),
            unclean: self.unclean,
            missed_since: if self.missed_since == [None; COPIES_MAX] { Vec::new() } else { self.missed() },
            hot,
        }
    }

    pub fn encode(&self, bytes: &mut [u8]) {
        let facts = &self.facts;
        let mut flags = 0;
        for (on, flag) in [
            (self.admitted, ADMITTED),
            (self.lease.as_ref().is_some_and(|lease| lease.read_only), READ_ONLY),
            (self.open.is_some(), OPEN),
            (self.unclean, UNCLEAN),
            (self.lost, LOST),
            (self.wipe.is_some(), WIPING),
            (facts.borrower.is_some(), BORROWED),
            (self.lease.is_some(), LEASED),
            (self.wipe.is_some_and(|wipe| wipe.drop), DROP),
            (facts.defined, DEFINED),
            (facts.sealed, SEALED),
        ] {
            flags |= if on { flag } else { 0 };
        }
        let in_sync = facts.in_sync.iter().take(64).enumerate().fold(0, |bits, (leg, on)| bits | u64::from(*on) << leg);
        let mut put = Put(bytes);
        put.u128(0, facts.slice.to_u128()).u128(16, facts.volume.to_u128());
        put.u64(32, facts.offset).u64(40, facts.length).u64(48, facts.volume_size).u64(56, facts.segment_length);
        put.u32(64, facts.segment).u32(68, facts.segments).u32(72, facts.leg).u32(76, facts.legs);
        put.u64(80, facts.generation.number).u128(88, facts.generation.random);
        put.u64(104, self.epoch.number).u128(112, self.epoch.random);
        if let Some(lease) = &self.lease {
            put.u128(128, lease.secret.to_u128()).u128(160, lease.borrower.to_u128());
        }
        put.u128(144, facts.borrower.map_or(0, ServerId::to_u128));
        put.u64(176, self.open.unwrap_or(0)).u64(184, self.wipe.map_or(0, |wipe| wipe.done));
        put.u32(192, flags).u8(196, facts.way.to_u8()).name(197, 208, &facts.volume_name);
        put.u8(198, u8::try_from(facts.in_sync.len().min(64)).unwrap_or(0)).u64(200, in_sync);
        for (leg, since) in self.missed_since.iter().enumerate() {
            let since = since.unwrap_or_default();
            put.u64(MISSED_AT + leg * 24, since.number).u128(MISSED_AT + leg * 24 + 8, since.random);
        }
    }

    pub fn decode(bytes: &[u8], area: AreaId) -> Option<Self> {
        let get = Get(bytes);
        let flags = get.u32(192);
        let has = |flag| flags & flag != 0;
        let legs = usize::from(get.u8(198));
        let bits = get.u64(200);
        let facts = SliceFacts {
            slice: SliceId::from_u128(get.u128(0)),
            area,
            offset: get.u64(32),
            length: get.u64(40),
            volume: VolumeId::from_u128(get.u128(16)),
            volume_name: get.name(197, 208)?,
            way: Way::from_u8(get.u8(196))?,
            volume_size: get.u64(48),
            segment: get.u32(64),
            segments: get.u32(68),
            segment_length: get.u64(56),
            leg: get.u32(72),
            legs: get.u32(76),
            generation: Generation { number: get.u64(80), random: get.u128(88) },
            in_sync: (0..legs.min(64)).map(|leg| bits >> leg & 1 == 1).collect(),
            borrower: has(BORROWED).then(|| ServerId::from_u128(get.u128(144))),
            defined: has(DEFINED),
            sealed: has(SEALED),
        };
        Some(Self {
            facts,
            epoch: Epoch { number: get.u64(104), random: get.u128(112) },
            admitted: has(ADMITTED),
            lease: has(LEASED).then(|| LeaseRecord {
                borrower: ServerId::from_u128(get.u128(160)),
                secret: LeaseSecret::from_u128(get.u128(128)),
                read_only: has(READ_ONLY),
            }),
            open: has(OPEN).then(|| get.u64(176)),
            unclean: has(UNCLEAN),
            lost: has(LOST),
            missed_since: std::array::from_fn(|leg| {
                let at = MISSED_AT + leg * 24;
                let since = Generation { number: get.u64(at), random: get.u128(at + 8) };
                (since.number > 0).then_some(since)
            }),
            wipe: has(WIPING).then(|| WipeRecord { done: get.u64(184), drop: has(DROP) }),
        })
    }
}
