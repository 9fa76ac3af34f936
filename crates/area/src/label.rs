//! The labels: of each piece (L3), and of the whole area with its slices (L4).

use sublet_api::server::Tombstone;
use sublet_types::limits::{PIECES_MAX, SLICES_PER_AREA_MAX};
use sublet_types::{AreaId, Epoch, Name, OpenId, PoolId, ServerId, SliceId, VolumeId};

use crate::bytes::{Get, Put};
use crate::envelope::{AREA, COUNT_MAX, PIECE, seal};
use crate::error::{AreaError, AreaErrorKind};
use crate::record::{RECORD_SIZE, SliceRecord};
use crate::spec::PieceIdentity;

const HEAD_SIZE: usize = 4096;
const FLAG_SPARSE: u32 = 1;
const FLAG_TRACKED: u32 = 1;
const FLAG_PENDING: u32 = 2;
const FAILURES_AT: usize = 216;
const HISTORY_COUNT_AT: usize = 224;
const TOMBSTONES_COUNT_AT: usize = 228;
const QUARANTINE_LENGTH_AT: usize = 232;
const GROUND_AT: usize = 240;
const HISTORY_AT: usize = 768;
const QUARANTINE_AT: usize = HISTORY_AT + HISTORY_MAX * 16;
const TOMBSTONE_SIZE: usize = 80;
/// Earlier openings that the label names (L2).
pub(crate) const HISTORY_MAX: usize = 200;
/// The most tombstones in one label (R2): what fits beside the most slices.
pub(crate) const TOMBSTONES_MAX: usize = sublet_types::limits::TOMBSTONES_PER_AREA_MAX;
/// The longest reason of a quarantine in bytes.
pub(crate) const QUARANTINE_MAX: usize = HEAD_SIZE - QUARANTINE_AT;
const PIECE_LENGTHS_AT: usize = 256;

/// One opening of the area (L2, L3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opening {
    /// Counts openings; every piece has the same number, or a pending one that is one ahead.
    pub number: u64,
    /// Random.
    pub open: OpenId,
    /// The one before.
    pub previous: OpenId,
}

/// The label of a piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PieceLabel {
    pub sequence: u64,
    pub identity: PieceIdentity,
    pub opening: Opening,
    /// The opening has begun, but it is not known here whether the area label took part in it; nothing is served then.
    pub pending: bool,
    /// Region states are kept (a device, whose blank regions do not read as zero by themselves, P1).
    pub tracked: bool,
}

/// The label of the area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AreaLabel {
    pub sequence: u64,
    pub pool: PoolId,
    pub area: AreaId,
    pub server: ServerId,
    pub name: Name,
    pub opening: Opening,
    pub sparse: bool,
    pub capacity: u64,
    pub piece_lengths: Vec<u64>,
    /// How often the area failed: unflushed writes may have been lost each time (W7).
    pub failures: u64,
    /// On what it was opened last ([`ground`](crate::area::ground)); 0 if that is not known.
    pub ground: u128,
    /// Earlier openings, newest first; at most [`HISTORY_MAX`] (L2).
    pub history: Vec<OpenId>,
    /// Why the area is not trusted, if it is not (L2).
    pub quarantine: Option<String>,
    /// Ascending by slice id.
    pub slices: Vec<SliceRecord>,
    /// Slices of deleted volumes, here or elsewhere, that are not confirmed as wiped (R2); ascending by slice id.
    pub tombstones: Vec<Tombstone>,
}

fn unreadable(what: &str) -> AreaError {
    AreaError::new(AreaErrorKind::Format, format!("the {what} is whole but makes no sense: it was not written by Sublet"))
}

/// The reason of a quarantine: printable ASCII, as Sublet writes it. Anything else was damaged in a way that the checksum fits, and
/// is shown to people all the same; byte by byte, so that it is no longer when it is written again.
fn reason(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' }).collect()
}

fn put_opening(put: &mut Put<'_>, opening: Opening) {
    put.u128(88, opening.open.to_u128()).u128(104, opening.previous.to_u128()).u64(120, opening.number);
}

fn get_opening(get: &Get<'_>) -> Opening {
    Opening { number: get.u64(120), open: OpenId::from_u128(get.u128(88)), previous: OpenId::from_u128(get.u128(104)) }
}

impl PieceLabel {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_SIZE];
        let id = &self.identity;
        let mut put = Put(&mut bytes);
        put.u128(40, id.pool.to_u128()).u128(56, id.area.to_u128()).u128(72, id.server.to_u128());
        put_opening(&mut put, self.opening);
        put.u32(128, u32::try_from(id.index).unwrap_or(u32::MAX)).u32(132, u32::try_from(id.count).unwrap_or(u32::MAX));
        let flags = if self.tracked { FLAG_TRACKED } else { 0 } | if self.pending { FLAG_PENDING } else { 0 };
        put.u64(136, id.length).u32(144, flags).name(148, 152, &id.name);
        seal(&mut bytes, PIECE, self.sequence);
        bytes
    }

    /// Reads a label whose envelope is whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, AreaError> {
        let get = Get(bytes);
        let identity = PieceIdentity {
            pool: PoolId::from_u128(get.u128(40)),
            area: AreaId::from_u128(get.u128(56)),
            server: ServerId::from_u128(get.u128(72)),
            name: get.name(148, 152).ok_or_else(|| unreadable(PIECE.what))?,
            index: get.u32(128) as usize,
            count: get.u32(132) as usize,
            length: get.u64(136),
        };
        let opening = get_opening(&get);
        if identity.count > PIECES_MAX || identity.index >= identity.count || opening.number > COUNT_MAX {
            return Err(unreadable(PIECE.what));
        }
        let flags = get.u32(144);
        let (pending, tracked) = (flags & FLAG_PENDING != 0, flags & FLAG_TRACKED != 0);
        Ok(Self { sequence: get.u64(24), identity, opening, pending, tracked })
    }
}

impl AreaLabel {
    pub fn find(&self, slice: SliceId) -> Option<&SliceRecord> {
        let at = self.slices.binary_search_by_key(&slice, |record| record.facts.slice).ok()?;
        self.slices.get(at)
    }

    pub fn find_mut(&mut self, slice: SliceId) -> Option<&mut SliceRecord> {
        let at = self.slices.binary_search_by_key(&slice, |record| record.facts.slice).ok()?;
        self.slices.get_mut(at)
    }

    pub fn insert(&mut self, record: SliceRecord) {
        let at = self.slices.partition_point(|other| other.facts.slice < record.facts.slice);
        self.slices.insert(at, record);
    }

    pub fn encode(&self) -> Vec<u8> {
        let records_end = HEAD_SIZE + self.slices.len() * RECORD_SIZE;
        let mut bytes = vec![0; (records_end + self.tombstones.len() * TOMBSTONE_SIZE).next_multiple_of(4096)];
        let mut put = Put(&mut bytes);
        put.u128(40, self.pool.to_u128()).u128(56, self.area.to_u128()).u128(72, self.server.to_u128());
        put_opening(&mut put, self.opening);
        put.u64(128, self.capacity).u32(136, u32::try_from(self.piece_lengths.len()).unwrap_or(0));
        put.u32(140, u32::try_from(self.slices.len()).unwrap_or(0)).u32(144, if self.sparse { FLAG_SPARSE } else { 0 });
        put.name(148, 152, &self.name);
        put.u64(FAILURES_AT, self.failures).u128(GROUND_AT, self.ground);
        for (n, length) in self.piece_lengths.iter().take(PIECES_MAX).enumerate() {
            put.u64(PIECE_LENGTHS_AT + n * 8, *length);
        }
        let history = self.history.iter().take(HISTORY_MAX);
        put.u32(HISTORY_COUNT_AT, history.len() as u32).u32(TOMBSTONES_COUNT_AT, self.tombstones.len() as u32);
        for (n, open) in history.enumerate() {
            put.u128(HISTORY_AT + n * 16, open.to_u128());
        }
        if let Some(why) = &self.quarantine {
            let mut end = why.len().min(QUARANTINE_MAX);
            while !why.is_char_boundary(end) {
                end -= 1;
            }
            put.u8(QUARANTINE_LENGTH_AT, end as u8).bytes(QUARANTINE_AT, why.as_bytes().get(..end).unwrap_or(&[]));
        }
        for (n, tombstone) in self.tombstones.iter().enumerate() {
            let at = records_end + n * TOMBSTONE_SIZE;
            put.u128(at, tombstone.slice.to_u128()).u128(at + 16, tombstone.volume.to_u128());
            put.u128(at + 32, tombstone.area.to_u128()).u64(at + 48, tombstone.epoch.number);
            put.u128(at + 56, tombstone.epoch.random);
        }
        let records = bytes.get_mut(HEAD_SIZE..records_end).unwrap_or(&mut []);
        for (record, bytes) in self.slices.iter().zip(records.chunks_exact_mut(RECORD_SIZE)) {
            record.encode(bytes);
        }
        seal(&mut bytes, AREA, self.sequence);
        bytes
    }

    /// Reads a label whose envelope is whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, AreaError> {
        let bad = || unreadable(AREA.what);
        let get = Get(bytes);
        let area = AreaId::from_u128(get.u128(56));
        let (pieces, count) = (get.u32(136) as usize, get.u32(140) as usize);
        let records = bytes.get(HEAD_SIZE..).unwrap_or(&[]);
        let (openings, tombs) = (get.u32(HISTORY_COUNT_AT) as usize, get.u32(TOMBSTONES_COUNT_AT) as usize);
        let tombstones = records.get(count.min(SLICES_PER_AREA_MAX) * RECORD_SIZE..).unwrap_or(&[]);
        if pieces == 0
            || pieces > PIECES_MAX
            || count > SLICES_PER_AREA_MAX
            || records.len() / RECORD_SIZE < count
            || openings > HISTORY_MAX
            || tombstones.len() / TOMBSTONE_SIZE < tombs
        {
            return Err(bad());
        }
        let tombstones = tombstones.chunks_exact(TOMBSTONE_SIZE).take(tombs).map(|bytes| {
            let get = Get(bytes);
            Tombstone {
                slice: SliceId::from_u128(get.u128(0)),
                volume: VolumeId::from_u128(get.u128(16)),
                area: AreaId::from_u128(get.u128(32)),
                epoch: Epoch { number: get.u64(48), random: get.u128(56) },
            }
        });
        let why = usize::from(get.u8(QUARANTINE_LENGTH_AT)).min(QUARANTINE_MAX);
        let why = reason(bytes.get(QUARANTINE_AT..QUARANTINE_AT + why).unwrap_or(&[]));
        let slices = records.chunks_exact(RECORD_SIZE).take(count).map(|bytes| SliceRecord::decode(bytes, area));
        let slices = slices.collect::<Option<Vec<_>>>().ok_or_else(bad)?;
        let capacity = get.u64(128);
        // A checksum that fits is no reason to believe in slices that share bytes (L5).
        let mut places: Vec<(u64, u64)> = slices.iter().map(|record| (record.facts.offset, record.end())).collect();
        places.sort_unstable();
        let shared = places.iter().zip(places.iter().skip(1)).any(|((_, end), (next, _))| end > next);
        if shared
            || slices.iter().any(|record| record.end() > capacity || !record.makes_sense())
            || !slices.is_sorted_by(|a, b| a.facts.slice < b.facts.slice)
            || get_opening(&get).number > COUNT_MAX
            || get.u64(FAILURES_AT) > COUNT_MAX
            || tombstones.clone().any(|tombstone| tombstone.epoch.number > COUNT_MAX)
        {
            return Err(bad());
        }
        Ok(Self {
            sequence: get.u64(24),
            pool: PoolId::from_u128(get.u128(40)),
            area,
            server: ServerId::from_u128(get.u128(72)),
            name: get.name(148, 152).ok_or_else(bad)?,
            opening: get_opening(&get),
            sparse: get.u32(144) & FLAG_SPARSE != 0,
            capacity,
            failures: get.u64(FAILURES_AT),
            ground: get.u128(GROUND_AT),
            piece_lengths: (0..pieces).map(|n| get.u64(PIECE_LENGTHS_AT + n * 8)).collect(),
            history: (0..openings).map(|n| OpenId::from_u128(get.u128(HISTORY_AT + n * 16))).collect(),
            quarantine: (!why.is_empty()).then_some(why),
            tombstones: tombstones.collect(),
            slices,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_is_no_text_is_as_long_as_its_bytes_and_nothing_that_a_terminal_would_obey() {
        assert_eq!(reason(b"it was rolled back"), "it was rolled back");
        assert_eq!(reason(&[0x1b, b'[', 0xff, 0xc3, 0xbc, 0, b'\n']), "?[?????");
        assert_eq!(reason(&[0xff; QUARANTINE_MAX]).len(), QUARANTINE_MAX);
    }
}
