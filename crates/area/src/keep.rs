//! Hot regions, checksums and missed maps, as the agent uses them. None is kept on the disk yet, and the answers say so: every
//! checksum is computed, and every leg that returns is copied fully (S3).

use sublet_doors::{Buffer, Doors, Tick};
use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE};
use sublet_types::{Generation, SliceId};
use sublet_wire::checksum::table_size;
use sublet_wire::message::{BlockState, MapReply, MapWhich, REGIONS_PER_MESSAGE_MAX, Seed, VERIFY_SIZE_MAX, VerifyBlock};

use crate::area::Area;
use crate::error::{AreaError, AreaErrorKind};

/// What a read knows of its data besides them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadInfo {
    /// At least one checksum was not kept but computed from the data now: it proves nothing about them (K2).
    pub recomputed: bool,
}

impl<D: Doors> Area<D> {
    /// How many regions of the slice may be hot at a time (H2).
    pub fn hot_share(&self, _: SliceId) -> u32 {
        0
    }

    /// How many are.
    pub fn hot_count(&self, _: SliceId) -> u32 {
        0
    }

    /// From which generation on this slice keeps a map of what each leg misses; none without a map (S3).
    pub fn missed_since(&self, slice: SliceId) -> Vec<Option<Generation>> {
        self.slice_facts(slice).map_or_else(Vec::new, |facts| vec![None; facts.in_sync.len()])
    }

    /// Cools regions (H2): no region is hot.
    ///
    /// # Errors
    /// None yet.
    pub async fn cool(&self, _: SliceId, _: &[u32]) -> Result<(), AreaError> {
        Ok(())
    }

    /// Cools regions of slices with one leg that were not written for a while (H2).
    ///
    /// # Errors
    /// None yet.
    pub async fn cool_idle(&self, _: Tick) -> Result<(), AreaError> {
        Ok(())
    }

    /// Notes what a leg misses (S1): there is no map.
    ///
    /// # Errors
    /// None yet.
    pub async fn seed(&self, _: SliceId, _: &Seed) -> Result<(), AreaError> {
        Ok(())
    }

    /// Takes units that were copied off the map of a leg (S4): there is none.
    ///
    /// # Errors
    /// None yet.
    pub async fn clear(&self, _: SliceId, _: u8, _: &[(u32, u64)]) -> Result<(), AreaError> {
        Ok(())
    }

    /// Hot regions and missed writes of a range of the slice (S4, H3).
    ///
    /// # Errors
    /// If the range does not begin on a region.
    pub async fn map(&self, _: SliceId, _: MapWhich, offset: u64, length: u64) -> Result<MapReply, AreaError> {
        if !offset.is_multiple_of(REGION_SIZE) {
            return Err(AreaError::new(AreaErrorKind::OutOfRange, format!("a map begins on a region, not at {offset}")));
        }
        let scanned = length.div_ceil(REGION_SIZE).min(REGIONS_PER_MESSAGE_MAX as u64) as u32;
        Ok(MapReply { since: None, lost: false, scanned, entries: Vec::new() })
    }

    /// What the checksums of a range of at most 4 MiB are worth.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn verify(&self, slice: SliceId, offset: u64, length: u64) -> Result<Vec<VerifyBlock>, AreaError> {
        let length = length.min(VERIFY_SIZE_MAX) as usize;
        let mut sums = vec![0; table_size(length / BLOCK_SIZE as usize * BLOCK_SIZE as usize)];
        self.read(slice, offset, Buffer::new(length), 0..length, &mut sums).await.0?;
        let sum = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        Ok(sums.chunks_exact(4).map(|bytes| VerifyBlock { sum: sum(bytes), state: BlockState::Computed }).collect())
    }
}
