//! Messages about regions and blocks: missed-write maps (S3), hot regions (H), checksums (K).
//!
//! Region numbers are relative to the slice: its offset divided by [`sublet_types::limits::REGION_SIZE`].

use sublet_types::Generation;

use super::{Message, read_generation, write_generation};
use crate::codec::{Malformed, Reader, Writer};

/// The most regions in one `Seed`, `Clear`, `Map` reply or `Cool`.
pub const REGIONS_PER_MESSAGE_MAX: usize = 4096;
/// The most bytes that one `Verify` covers.
pub const VERIFY_SIZE_MAX: u64 = sublet_types::limits::REGION_SIZE;
/// The number of a leg that means all of them, in `Map`.
const ALL_LEGS: u8 = u8::MAX;

/// How many entries follow.
fn read_count(r: &mut Reader<'_>) -> Result<usize, Malformed> {
    let n = r.u32()? as usize;
    if n > REGIONS_PER_MESSAGE_MAX { Err(Malformed("it has too many regions")) } else { Ok(n) }
}

fn write_count(w: &mut Writer, n: usize) {
    w.u32(u32::try_from(n).unwrap_or(u32::MAX));
}

fn write_units(w: &mut Writer, entries: &[(u32, u64)]) {
    write_count(w, entries.len());
    for (region, bits) in entries {
        w.u32(*region).u64(*bits);
    }
}

fn read_units(r: &mut Reader<'_>) -> Result<Vec<(u32, u64)>, Malformed> {
    let n = read_count(r)?;
    (0..n).map(|_| Ok((r.u32()?, r.u64()?))).collect()
}

/// A generation that may not be there: generations count from 1, and number 0 is none.
pub(super) fn write_optional_generation(w: &mut Writer, g: Option<Generation>) {
    write_generation(w, g.unwrap_or(Generation { number: 0, random: 0 }));
}

pub(super) fn read_optional_generation(r: &mut Reader<'_>) -> Result<Option<Generation>, Malformed> {
    match read_generation(r)? {
        Generation { number: 0, random: 0 } => Ok(None),
        Generation { number: 0, .. } => Err(Malformed("a generation has a random part and no number")),
        generation => Ok(Some(generation)),
    }
}

/// A leg that is stale from now on, in `SetState` (S1): the survivor keeps a missed-write map for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleMark {
    /// The leg.
    pub leg: u8,
    /// The generation from which on the map is complete: the first one without the leg.
    pub since: Generation,
    /// `Seed` has brought exactly what the leg may lack. Otherwise the lender adds all hot regions of the slice.
    pub seeded: bool,
}

impl Message for StaleMark {
    fn write(&self, w: &mut Writer) {
        w.u8(self.leg);
        write_generation(w, self.since);
        w.bool(self.seeded);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { leg: r.u8()?, since: read_generation(r)?, seeded: r.bool()? })
    }
}

/// Request of `Seed`: blocks that a leg lacks or may lack (S1, S3). They are durable at the next `SetState`, not before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seed {
    /// The leg whose map it is.
    pub leg: u8,
    /// The generation from which on the map is complete.
    pub since: Generation,
    /// Begin the map anew; otherwise the entries are added to what is there.
    pub reset: bool,
    /// Region, and its units of [`sublet_types::limits::MISSED_UNIT`] (bit n is unit n). At most
    /// [`REGIONS_PER_MESSAGE_MAX`].
    pub entries: Vec<(u32, u64)>,
}

impl Message for Seed {
    fn write(&self, w: &mut Writer) {
        w.u8(self.leg);
        write_generation(w, self.since);
        w.bool(self.reset);
        write_units(w, &self.entries);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { leg: r.u8()?, since: read_generation(r)?, reset: r.bool()?, entries: read_units(r)? })
    }
}

/// Request of `Clear`: the leg has these units now, durably (S4). Nothing has been written to them since they were copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clear {
    /// The leg whose map it is.
    pub leg: u8,
    /// As in [`Seed`].
    pub entries: Vec<(u32, u64)>,
}

impl Message for Clear {
    fn write(&self, w: &mut Writer) {
        w.u8(self.leg);
        write_units(w, &self.entries);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { leg: r.u8()?, entries: read_units(r)? })
    }
}

/// Whose missed-write map is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapWhich {
    /// That of one leg.
    Leg(u8),
    /// Those of all legs, as one.
    All,
}

/// Request of `Map`; the range is the frame's offset and length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRequest {
    /// Whose map.
    pub which: MapWhich,
}

impl Message for MapRequest {
    fn write(&self, w: &mut Writer) {
        w.u8(match self.which {
            MapWhich::Leg(leg) => leg,
            MapWhich::All => ALL_LEGS,
        });
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let which = match r.u8()? {
            ALL_LEGS => MapWhich::All,
            leg => MapWhich::Leg(leg),
        };
        Ok(Self { which })
    }
}

/// A region that is hot, or of which something was missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapEntry {
    /// The region.
    pub region: u32,
    /// Whether it is hot: its legs may differ after an unclean close (H3).
    pub hot: bool,
    /// Units that were missed (bit n is unit n).
    pub missed: u64,
}

/// Reply of `Map`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapReply {
    /// The generation from which on the map is complete; none if there is no map (S3: a full copy), or if all legs were
    /// asked for.
    pub since: Option<Generation>,
    /// Bits of hot regions were lost in a crash; those regions are given as wholly missed.
    pub lost: bool,
    /// How many regions of the range are answered for: ask again from there.
    pub scanned: u32,
    /// Those that are hot, or of which something was missed, ascending; at most [`REGIONS_PER_MESSAGE_MAX`].
    pub entries: Vec<MapEntry>,
}

impl Message for MapReply {
    fn write(&self, w: &mut Writer) {
        write_optional_generation(w, self.since);
        w.bool(self.lost).u32(self.scanned);
        write_count(w, self.entries.len());
        for entry in &self.entries {
            w.u32(entry.region).bool(entry.hot).u64(entry.missed);
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (since, lost, scanned) = (read_optional_generation(r)?, r.bool()?, r.u32()?);
        let n = read_count(r)?;
        let entry = |r: &mut Reader<'_>| Ok(MapEntry { region: r.u32()?, hot: r.bool()?, missed: r.u64()? });
        let entries = (0..n).map(|_| entry(r)).collect::<Result<_, Malformed>>()?;
        Ok(Self { since, lost, scanned, entries })
    }
}

/// Request of `Cool` (H2): nothing is in flight to these regions, and every in-sync leg has flushed since their last write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cool {
    /// The regions; at most [`REGIONS_PER_MESSAGE_MAX`].
    pub regions: Vec<u32>,
}

impl Message for Cool {
    fn write(&self, w: &mut Writer) {
        write_count(w, self.regions.len());
        for region in &self.regions {
            w.u32(*region);
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let n = read_count(r)?;
        Ok(Self { regions: (0..n).map(|_| r.u32()).collect::<Result<_, _>>()? })
    }
}

/// What the lender knows of a block's checksum (K2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BlockState {
    /// It was kept, and the data on the disk fits it.
    Matches = 0,
    /// It was kept, and the data on the disk does not fit it.
    Differs = 1,
    /// None was kept: it was computed from the data now, and proves nothing about them.
    Computed = 2,
    /// It was kept at the last checkpoint before the machine or the disk went down, and the data fit it: they have not gone wrong, but
    /// a write since then may have been lost.
    Proven = 3,
}

impl BlockState {
    const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Matches),
            1 => Some(Self::Differs),
            2 => Some(Self::Computed),
            3 => Some(Self::Proven),
            _ => None,
        }
    }

    /// The data fit a checksum that was made when they were written.
    pub const fn fits(self) -> bool {
        matches!(self, Self::Matches | Self::Proven)
    }
}

/// One block in a `Verify` reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyBlock {
    /// CRC32C of the block: the kept one, or the computed one where none was kept.
    pub sum: u32,
    /// What it is worth.
    pub state: BlockState,
}

/// Reply of `Verify`: one entry for each block of the frame's range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyReply {
    /// In order; five bytes each, and nothing else.
    pub blocks: Vec<VerifyBlock>,
}

impl VerifyReply {
    /// The bytes of one entry.
    pub const ENTRY_SIZE: usize = 5;
}

impl Message for VerifyReply {
    fn write(&self, w: &mut Writer) {
        for block in &self.blocks {
            w.u32(block.sum).u8(block.state as u8);
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut blocks = Vec::with_capacity(r.left() / Self::ENTRY_SIZE);
        while r.left() > 0 {
            let sum = r.u32()?;
            let state = BlockState::from_u8(r.u8()?).ok_or(Malformed("the state of a block is not known"))?;
            blocks.push(VerifyBlock { sum, state });
        }
        Ok(Self { blocks })
    }
}
