//! Whether the numbers of a row can be those of a table: they are added up, and counted up, by everybody who uses it.

use sublet_types::limits::SIZE_MAX;

use super::{Row, VolumeRow};

/// No number that counts up comes near this one: whatever holds a higher one was not written by Sublet, and could not be counted up.
pub(crate) const COUNT_MAX: u64 = 1 << 62;

/// True if sums and successors of its numbers are numbers too.
pub(super) fn makes_sense(row: &Row) -> bool {
    let lies_somewhere = |offset: u64, length: u64| offset <= SIZE_MAX && length <= SIZE_MAX;
    match row {
        Row::Pool(_) | Row::Server(_) | Row::Task(_) => true,
        Row::Area(row) => {
            row.capacity <= SIZE_MAX && row.strangers.iter().all(|stranger| lies_somewhere(stranger.offset, stranger.length))
        }
        Row::Volume(row) => volume(row),
        Row::Wipe(row) => lies_somewhere(row.offset, row.length) && row.epoch.number <= COUNT_MAX,
        Row::Event(row) => row.number <= COUNT_MAX,
        Row::Token(row) => row.expires_ms <= COUNT_MAX && row.made_ms <= COUNT_MAX,
        Row::Person(row) => row.certified_from_ms <= COUNT_MAX,
        Row::Admission(row) => row.certified_from_ms <= COUNT_MAX,
    }
}

fn volume(row: &VolumeRow) -> bool {
    let counts = row.segments.iter().flat_map(|segment| [segment.generation.number, segment.issued]);
    let mut counts = counts.chain([row.epoch.number, row.epoch_floor, row.work.segments_revision]);
    let lengths = row.segments.iter().map(|segment| segment.length).chain(row.legs().map(|(_, leg)| leg.length));
    counts.all(|count| count <= COUNT_MAX)
        && row.size <= SIZE_MAX
        && lengths.fold(0, u64::saturating_add) <= COUNT_MAX
        && row.legs().all(|(_, leg)| leg.offset <= SIZE_MAX)
}
