//! For fuzzing only: structures that are private here, read from any bytes and written again.
//!
//! Outside there are no types for them; so what must hold is checked here, by panicking.

use sublet_types::SliceId;

use crate::envelope::{AREA, PIECE, Sealed, judge};
use crate::label::{AreaLabel, PieceLabel};
use crate::missed::Entry;
use crate::sums::SumPage;
use crate::table;

/// Reads a label of a piece or of an area. What is read is written as something that reads the same; that is the answer.
///
/// # Panics
/// If it does not.
pub fn label(bytes: &[u8]) -> Option<Vec<u8>> {
    if let Sealed::Whole(sequence) = judge(bytes, PIECE) {
        let label = PieceLabel::decode(bytes).ok()?;
        assert_eq!(label.sequence, sequence);
        let again = label.encode();
        assert_eq!(judge(&again, PIECE), Sealed::Whole(sequence));
        assert_eq!(PieceLabel::decode(&again).ok().as_ref(), Some(&label));
        return Some(again);
    }
    if let Sealed::Whole(sequence) = judge(bytes, AREA) {
        let label = AreaLabel::decode(bytes).ok()?;
        assert_eq!(label.sequence, sequence);
        assert!(label.slices.iter().all(|record| label.find(record.facts.slice) == Some(record)));
        let again = label.encode();
        assert_eq!(judge(&again, AREA), Sealed::Whole(sequence));
        assert_eq!(AreaLabel::decode(&again).ok().as_ref(), Some(&label));
        return Some(again);
    }
    None
}

/// Reads a region page with so many regions. As [`label`].
///
/// # Panics
/// If it reads otherwise when it is written again.
pub fn region_page(bytes: &[u8], page: usize, regions: usize) -> Option<Vec<u8>> {
    let table::Copy::Whole { sequence, records } = table::decode(bytes, page, regions) else { return None };
    assert_eq!(records.len(), regions);
    let again = table::encode(page, records.iter().copied(), sequence);
    assert_eq!(table::decode(&again, page, regions), table::Copy::Whole { sequence, records });
    Some(again)
}

/// What two copies of a region page come to: the sequence that counts, and which copy has it. None if both are bad.
///
/// # Errors
/// The version, if one is of a newer software.
///
/// # Panics
/// If regions are made up or lost on the way, or the older copy counts.
pub fn region_pages(copies: [&[u8]; 2], page: usize, regions: usize, tracked: bool) -> Result<Option<(u64, usize)>, u32> {
    let read = copies.map(|bytes| table::decode(bytes, page, regions));
    let Some(chosen) = table::choose(read.clone(), tracked)? else { return Ok(None) };
    let whole = |copy: &table::Copy| if let table::Copy::Whole { sequence, .. } = copy { Some(*sequence) } else { None };
    assert_eq!(read.iter().filter_map(whole).max(), Some(chosen.sequence));
    assert_eq!(read.get(chosen.copy).and_then(whole), Some(chosen.sequence));
    assert_eq!(chosen.records.len(), regions);
    assert_eq!(chosen.alone, read.iter().any(|copy| whole(copy).is_none()));
    Ok(Some((chosen.sequence, chosen.copy)))
}

/// Reads an entry of the missed maps. As [`label`].
///
/// # Panics
/// If it reads otherwise when it is written again.
pub fn missed_entry(bytes: &[u8], region: u64, slice: SliceId) -> Option<Vec<u8>> {
    let entry = Entry::decode(bytes, region, slice)?;
    let again = entry.encode(region, slice);
    assert_eq!(Entry::decode(&again, region, slice), Some(entry));
    Some(again.to_vec())
}

/// Reads a checksum page. As [`label`].
///
/// # Panics
/// If it is written otherwise.
pub fn sum_page(bytes: &[u8], sum: u32) -> Option<Vec<u8>> {
    let page = SumPage::decode(bytes, sum)?;
    let (again, own) = page.encode();
    assert_eq!((&*again, own), (bytes, sum));
    Some(again.to_vec())
}
