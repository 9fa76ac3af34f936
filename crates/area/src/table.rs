//! Region pages: what is known of every region of a piece. Pure; `docs/format.md` draws them.

use crate::bytes::{Get, Put};
use crate::envelope::{ENVELOPE_SIZE, REGIONS, Sealed, judge, seal};
use crate::layout::PAGE_SIZE;

/// Where the records begin in a page.
const RECORDS_AT: usize = ENVELOPE_SIZE + 24;
/// Length of a record in bytes.
const RECORD_SIZE: usize = 8;
/// Regions of one page.
pub(crate) const RECORDS_PER_PAGE: usize = (PAGE_SIZE as usize - RECORDS_AT) / RECORD_SIZE;

/// The checksum page is there, with the CRC of the record.
const PAGED: u8 = 1 << 4;
const MISSED_MASK: u8 = 0x0F;
/// In the byte behind the flags, which older software ignores and writes as zero.
const UNPROVED: u8 = 1;

/// The state of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub(crate) enum State {
    /// Never written: reads as zero without touching the disk (P1).
    #[default]
    Blank = 0,
    /// Written, and no checksums are kept (areas of format 1; a checksum page that became unreadable).
    Plain = 1,
    /// Written, with checksums in its page.
    Cold = 2,
    /// Perhaps being written: it may differ from its checksum page, and from other legs (H1).
    Hot = 3,
}

/// What the table says of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Record {
    pub state: State,
    /// Bit n: the entry in the missed maps holds something for leg n.
    pub missed: u8,
    /// CRC32C of the checksum page, if there is one. That of a hot region holds what was true when it was last cold or
    /// at a checkpoint (K2).
    pub page: Option<u32>,
    /// Its checksum page was lost while other legs exist: what its data is worth is known to them only (K2). It counts as a
    /// region in which legs may differ, and gets no checksums of its own making until all of it was written, or the legs were
    /// made equal.
    pub unproved: bool,
}

impl Record {
    /// The same region, hot: its checksum page stays what it is.
    pub const fn heated(self) -> Self {
        Self { state: State::Hot, ..self }
    }

    fn encode(self, put: &mut Put<'_>, at: usize) {
        let flags = self.missed & MISSED_MASK | if self.page.is_some() { PAGED } else { 0 };
        put.u8(at, self.state as u8).u8(at + 1, flags).u8(at + 2, if self.unproved { UNPROVED } else { 0 });
        put.u32(at + 4, self.page.unwrap_or(0));
    }

    fn decode(get: &Get<'_>, at: usize) -> Option<Self> {
        let state = match get.u8(at) {
            0 => State::Blank,
            1 => State::Plain,
            2 => State::Cold,
            3 => State::Hot,
            _ => return None,
        };
        let flags = get.u8(at + 1);
        let page = (flags & PAGED != 0).then(|| get.u32(at + 4));
        (flags & !(MISSED_MASK | PAGED) == 0 && (state != State::Cold || page.is_some())).then_some(Self {
            state,
            missed: flags & MISSED_MASK,
            page,
            unproved: get.u8(at + 2) & UNPROVED != 0,
        })
    }
}

/// How many regions a page of a piece with so many regions has.
pub(crate) fn length_of_page(page: usize, regions: usize) -> usize {
    RECORDS_PER_PAGE.min(regions.saturating_sub(page * RECORDS_PER_PAGE))
}

/// A page as it is written.
pub(crate) fn encode(page: usize, records: impl Iterator<Item = Record>, sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE as usize];
    let mut put = Put(&mut bytes);
    put.u64(ENVELOPE_SIZE, page as u64);
    for (n, record) in records.take(RECORDS_PER_PAGE).enumerate() {
        record.encode(&mut put, RECORDS_AT + n * RECORD_SIZE);
    }
    seal(&mut bytes, REGIONS, sequence);
    bytes
}

/// One copy of a page, judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Copy {
    Whole {
        sequence: u64,
        records: Vec<Record>,
    },
    /// Written by a newer software.
    Newer(u32),
    /// Torn, rotten, of another place, or not there.
    Bad,
}

pub(crate) fn decode(bytes: &[u8], page: usize, count: usize) -> Copy {
    match judge(bytes, REGIONS) {
        Sealed::Newer(version) => Copy::Newer(version),
        Sealed::Damaged | Sealed::Absent => Copy::Bad,
        Sealed::Whole(sequence) => {
            let get = Get(bytes);
            let records = (0..count).map(|n| Record::decode(&get, RECORDS_AT + n * RECORD_SIZE)).collect::<Option<Vec<_>>>();
            match records {
                Some(records) if get.u64(ENVELOPE_SIZE) == page as u64 => Copy::Whole { sequence, records },
                _ => Copy::Bad,
            }
        }
    }
}

/// What two copies of a page come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chosen {
    pub sequence: u64,
    pub records: Vec<Record>,
    /// The copy that holds it.
    pub copy: usize,
    /// The other copy is bad. It may have been the newer one, so nothing is believed that its loss could undo (L1): what
    /// may have become hot in it counts as hot.
    pub alone: bool,
}

/// Judges both copies together. `tracked`: a blank region is known to both copies before its first byte is written (devices).
/// None if both are bad.
pub(crate) fn choose(copies: [Copy; 2], tracked: bool) -> Result<Option<Chosen>, u32> {
    if let Some(version) = copies.iter().find_map(|copy| if let Copy::Newer(version) = copy { Some(*version) } else { None }) {
        return Err(version);
    }
    let [a, b] = copies;
    let (copy, sequence, mut records, alone) = match (a, b) {
        (Copy::Whole { sequence: first, .. }, Copy::Whole { sequence: second, records }) if second > first => {
            (1, second, records, false)
        }
        (Copy::Whole { sequence, records }, other) => (0, sequence, records, !matches!(other, Copy::Whole { .. })),
        (_, Copy::Whole { sequence, records }) => (1, sequence, records, true),
        _ => return Ok(None),
    };
    if alone {
        for record in &mut records {
            if record.state == State::Blank && tracked {
                // It is blank, but something may have been sent for it (S3).
                record.missed = MISSED_MASK;
            } else {
                *record = record.heated();
            }
        }
    }
    Ok(Some(Chosen { sequence, records, copy, alone }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_records() -> Vec<Record> {
        [State::Blank, State::Plain, State::Cold, State::Hot, State::Hot]
            .into_iter()
            .enumerate()
            .map(|(n, state)| Record {
                state,
                missed: n as u8,
                page: (n == 2 || n == 4).then_some(n as u32 * 77),
                unproved: n % 2 == 1,
            })
            .collect()
    }

    fn copy(records: &[Record], sequence: u64) -> Copy {
        decode(&encode(3, records.iter().copied(), sequence), 3, records.len())
    }

    #[test]
    fn a_page_reads_back_and_is_bad_at_another_place_or_with_a_flipped_bit() {
        let records = some_records();
        let mut bytes = encode(3, records.iter().copied(), 9);
        assert_eq!(decode(&bytes, 3, records.len()), Copy::Whole { sequence: 9, records: records.clone() });
        assert_eq!(decode(&bytes, 2, records.len()), Copy::Bad);
        for bit in 0..200 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes, 3, records.len()), Copy::Bad, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn l1_a_copy_that_is_alone_is_not_trusted_with_what_the_loss_of_the_other_could_undo() {
        let records = some_records();
        let both = choose([copy(&records, 4), copy(&records, 5)], true).unwrap().unwrap();
        assert_eq!((both.copy, both.alone, &both.records), (1, false, &records));
        for (copies, tracked) in [([Copy::Bad, copy(&records, 4)], true), ([copy(&records, 4), Copy::Bad], false)] {
            let chosen = choose(copies, tracked).unwrap().unwrap();
            assert!(chosen.alone);
            for (n, record) in chosen.records.iter().enumerate() {
                let blank = n == 0 && tracked;
                assert_eq!(record.state, if blank { State::Blank } else { State::Hot }, "{n}");
                assert_eq!(record.missed, if blank { MISSED_MASK } else { records[n].missed });
                assert_eq!((record.page, record.unproved), (records[n].page, records[n].unproved));
            }
        }
        assert_eq!(choose([Copy::Bad, Copy::Bad], true), Ok(None));
        assert_eq!(choose([Copy::Newer(7), copy(&records, 4)], true), Err(7));
    }
}
