//! Where a volume lies: who has which of its cells, and since which generation.

use std::ops::Range;

use sublet_table::Table;
use sublet_types::{Generation, ServerId, VolumeId};

use crate::oracle::CELL;

/// The segments of a volume, in order.
#[derive(Clone, Debug, Default)]
pub struct Layout(Vec<Segment>);

#[derive(Clone, Debug)]
struct Segment {
    cells: Range<u64>,
    generation: Generation,
    /// The lenders of its legs in sync.
    lenders: Vec<ServerId>,
}

impl Layout {
    /// As the table has it; none if the volume is not there.
    pub fn of(table: &Table, volume: VolumeId) -> Option<Self> {
        let mut end = 0;
        let segment = |row: &sublet_table::records::SegmentRow| {
            let begin = end;
            end += row.length / CELL;
            let legs = row.legs.iter().filter(|leg| leg.in_sync);
            let lenders = legs.map(|leg| table.lender(leg.area)).collect::<Option<_>>()?;
            Some(Segment { cells: begin..end, generation: row.generation, lenders })
        };
        table.volumes.get(&volume)?.segments.iter().map(segment).collect::<Option<_>>().map(Self)
    }

    /// One segment of that many cells.
    #[cfg(test)]
    pub fn one(cells: u64, generation: u64, lenders: &[ServerId]) -> Self {
        let generation = Generation { number: generation, random: 0 };
        Self(vec![Segment { cells: 0..cells, generation, lenders: lenders.to_vec() }])
    }

    fn segment(&self, cell: u64) -> Option<&Segment> {
        self.0.iter().find(|segment| segment.cells.contains(&cell))
    }

    /// The segments whose sets in sync are the same ones in both.
    #[must_use]
    pub fn unchanged_since(self, other: &Self) -> Self {
        Self(self.0.into_iter().filter(|own| other.0.iter().any(|other| other.generation == own.generation)).collect())
    }

    /// True if the set in sync of that cell's segment is the same one in both.
    pub fn has_same(&self, other: &Self, cell: u64) -> bool {
        matches!((self.segment(cell), other.segment(cell)), (Some(own), Some(other)) if own.generation == other.generation)
    }

    /// Who has that cell.
    pub fn lenders(&self, cell: u64) -> Option<&[ServerId]> {
        self.segment(cell).map(|segment| segment.lenders.as_slice())
    }
}
