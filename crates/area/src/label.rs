//! The labels: of each piece (L3), and of the whole area with its slices (L4).

use sublet_types::limits::{PIECES_MAX, SLICES_PER_AREA_MAX};
use sublet_types::{AreaId, Name, OpenId, PoolId, ServerId, SliceId};

use crate::bytes::{Get, Put};
use crate::envelope::{AREA, PIECE, seal};
use crate::error::{AreaError, AreaErrorKind};
use crate::record::{RECORD_SIZE, SliceRecord};
use crate::spec::PieceIdentity;

const HEAD_SIZE: usize = 4096;
const FLAG_SPARSE: u32 = 1;
const FLAG_TRACKED: u32 = 1;
const FLAG_PENDING: u32 = 2;
const FAILURES_AT: usize = 216;
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
    /// Ascending by slice id.
    pub slices: Vec<SliceRecord>,
}

fn unreadable(what: &str) -> AreaError {
    AreaError::new(AreaErrorKind::Format, format!("the {what} is whole but makes no sense: it was not written by Sublet"))
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
        if identity.count > PIECES_MAX || identity.index >= identity.count {
            return Err(unreadable(PIECE.what));
        }
        let flags = get.u32(144);
        let (pending, tracked) = (flags & FLAG_PENDING != 0, flags & FLAG_TRACKED != 0);
        Ok(Self { sequence: get.u64(24), identity, opening: get_opening(&get), pending, tracked })
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
        let mut bytes = vec![0; (HEAD_SIZE + self.slices.len() * RECORD_SIZE).next_multiple_of(4096)];
        let mut put = Put(&mut bytes);
        put.u128(40, self.pool.to_u128()).u128(56, self.area.to_u128()).u128(72, self.server.to_u128());
        put_opening(&mut put, self.opening);
        put.u64(128, self.capacity).u32(136, u32::try_from(self.piece_lengths.len()).unwrap_or(0));
        put.u32(140, u32::try_from(self.slices.len()).unwrap_or(0)).u32(144, if self.sparse { FLAG_SPARSE } else { 0 });
        put.name(148, 152, &self.name);
        put.u64(FAILURES_AT, self.failures);
        for (n, length) in self.piece_lengths.iter().take(PIECES_MAX).enumerate() {
            put.u64(PIECE_LENGTHS_AT + n * 8, *length);
        }
        let records = bytes.get_mut(HEAD_SIZE..).unwrap_or(&mut []);
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
        if pieces == 0 || pieces > PIECES_MAX || count > SLICES_PER_AREA_MAX || records.len() / RECORD_SIZE < count {
            return Err(bad());
        }
        let slices = records.chunks_exact(RECORD_SIZE).take(count).map(|bytes| SliceRecord::decode(bytes, area));
        let slices = slices.collect::<Option<Vec<_>>>().ok_or_else(bad)?;
        let capacity = get.u64(128);
        if slices.iter().any(|record| record.end() > capacity) || !slices.is_sorted_by_key(|record| record.facts.slice) {
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
            piece_lengths: (0..pieces).map(|n| get.u64(PIECE_LENGTHS_AT + n * 8)).collect(),
            slices,
        })
    }
}
