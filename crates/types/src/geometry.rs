//! Geometry: one map for every usage way.
//!
//! A volume is an ordered list of segments; a segment has one or more legs that hold the same bytes; a leg is a slice of
//! an area. This file holds the pure part: from a range of the volume to ranges of its segments. What a leg is (which
//! slice, at which lender) does not matter for the arithmetic, because all legs of a segment have the same length.

use crate::limits::{BLOCK_SIZE, SEGMENTS_MAX, SIZE_MAX};

/// A 4 KiB block of a volume, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockIndex(pub u64);

/// A byte offset in a volume, slice or area (the context says which).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteOffset(pub u64);

/// A half-open range of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockRange {
    /// The first block.
    pub start: u64,
    /// The block after the last.
    pub end: u64,
}

impl BlockRange {
    /// The blocks that a byte range touches.
    pub const fn covering(offset: u64, length: u64) -> Self {
        Self { start: offset / BLOCK_SIZE, end: (offset + length).div_ceil(BLOCK_SIZE) }
    }

    /// True if a block lies in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// True if it has no block.
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// The part of a volume range that lies in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Which segment, counted from 0.
    pub segment: usize,
    /// Where in the segment (and so in each leg's slice), in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Where the piece begins in the range that was asked for, in bytes.
    pub at: u64,
}

/// The ends of a volume's segments. Immutable; lookups are a binary search.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeMap {
    /// `ends[i]` is the volume offset just behind segment `i`, in bytes.
    ends: Vec<u64>,
}

/// Why a list of segment lengths is not a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No segment, or more than `SEGMENTS_MAX`.
    SegmentCount(usize),
    /// A segment that is empty or not a multiple of 4 KiB.
    SegmentLength {
        /// Which segment.
        segment: usize,
        /// Its length in bytes.
        length: u64,
    },
    /// The volume would be larger than `SIZE_MAX`.
    TooLarge,
}

impl std::fmt::Display for MapError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MapError::SegmentCount(n) => write!(f, "a volume has 1 to {SEGMENTS_MAX} segments, not {n}"),
            MapError::SegmentLength { segment, length } => {
                write!(f, "segment {segment} has {length} bytes; it needs a positive multiple of {BLOCK_SIZE}")
            }
            MapError::TooLarge => write!(f, "a volume has at most {SIZE_MAX} bytes"),
        }
    }
}

impl std::error::Error for MapError {}

impl VolumeMap {
    /// A map of segments with these lengths (bytes).
    ///
    /// # Errors
    /// [`MapError`] if the lengths cannot be a volume.
    pub fn new(lengths: impl IntoIterator<Item = u64>) -> Result<Self, MapError> {
        let mut ends = Vec::new();
        let mut end = 0u64;
        for (segment, length) in lengths.into_iter().enumerate() {
            if length == 0 || length % BLOCK_SIZE != 0 {
                return Err(MapError::SegmentLength { segment, length });
            }
            end = end.checked_add(length).filter(|end| *end <= SIZE_MAX).ok_or(MapError::TooLarge)?;
            ends.push(end);
        }
        if ends.is_empty() || ends.len() > SEGMENTS_MAX {
            return Err(MapError::SegmentCount(ends.len()));
        }
        Ok(Self { ends })
    }

    /// The size of the volume in bytes.
    pub fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The number of segments.
    pub fn segments(&self) -> usize {
        self.ends.len()
    }

    /// Where a segment begins in the volume, in bytes.
    pub fn segment_start(&self, segment: usize) -> u64 {
        segment.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0)
    }

    /// Splits a range of the volume at segment borders, and further so that no piece is longer than `piece_max` bytes.
    ///
    /// Pieces come in the order of the volume. The range must lie in the volume (front ends check this and answer
    /// the client); bytes behind the end are not mapped.
    pub fn pieces(&self, offset: u64, length: u64, piece_max: u64) -> Pieces<'_> {
        let end = offset.saturating_add(length).min(self.size());
        let segment = self.ends.partition_point(|segment_end| *segment_end <= offset);
        Pieces { map: self, segment, next: offset, start: offset, end, piece_max: piece_max.max(BLOCK_SIZE) }
    }
}

/// Iterator over the pieces of a range; see [`VolumeMap::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    map: &'a VolumeMap,
    segment: usize,
    next: u64,
    start: u64,
    end: u64,
    piece_max: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;
    fn next(&mut self) -> Option<Piece> {
        if self.next >= self.end {
            return None;
        }
        let segment_end = *self.map.ends.get(self.segment)?;
        let segment_start = self.map.segment_start(self.segment);
        let length = (self.end.min(segment_end) - self.next).min(self.piece_max);
        let piece = Piece { segment: self.segment, offset: self.next - segment_start, length, at: self.next - self.start };
        self.next += length;
        if self.next == segment_end {
            self.segment += 1;
        }
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The naive byte-map model: every byte of the volume as (segment, offset).
    fn model(lengths: &[u64]) -> Vec<(usize, u64)> {
        lengths.iter().enumerate().flat_map(|(segment, length)| (0..*length).map(move |offset| (segment, offset))).collect()
    }

    #[test]
    fn pieces_agree_with_a_byte_map_for_every_range_tried() {
        let shapes: [&[u64]; 4] = [&[4096], &[4096, 8192], &[12288, 4096, 4096, 8192], &[4096; 9]];
        for lengths in shapes {
            let map = VolumeMap::new(lengths.iter().copied()).unwrap();
            let model = model(lengths);
            assert_eq!(map.size() as usize, model.len());
            let mut seed = 12345u64;
            for _ in 0..2000 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let offset = (seed >> 33) % map.size();
                let length = ((seed >> 11) % (map.size() - offset)) + 1;
                let max = [4096, 5000, 1 << 20][(seed % 3) as usize];
                let mut at = 0;
                for piece in map.pieces(offset, length, max) {
                    assert_eq!(piece.at, at);
                    assert!(piece.length > 0 && piece.length <= max);
                    for i in [0, piece.length / 2, piece.length - 1] {
                        assert_eq!(model[(offset + at + i) as usize], (piece.segment, piece.offset + i));
                    }
                    at += piece.length;
                }
                assert_eq!(at, length);
            }
        }
    }

    #[test]
    fn lengths_that_cannot_be_a_volume_are_refused() {
        assert_eq!(VolumeMap::new([]), Err(MapError::SegmentCount(0)));
        assert_eq!(VolumeMap::new([4096, 0]), Err(MapError::SegmentLength { segment: 1, length: 0 }));
        assert_eq!(VolumeMap::new([4097]), Err(MapError::SegmentLength { segment: 0, length: 4097 }));
        assert_eq!(VolumeMap::new([SIZE_MAX, 4096]), Err(MapError::TooLarge));
        assert_eq!(VolumeMap::new(vec![4096; SEGMENTS_MAX + 1]), Err(MapError::SegmentCount(SEGMENTS_MAX + 1)));
    }

    #[test]
    fn an_empty_range_has_no_pieces() {
        let map = VolumeMap::new([4096]).unwrap();
        assert_eq!(map.pieces(0, 0, 4096).count(), 0);
        assert_eq!(map.pieces(4096, 10, 4096).count(), 0);
    }
}
