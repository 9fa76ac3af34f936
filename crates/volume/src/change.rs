//! A change of blocks, as it is sent to every leg.

use std::rc::Rc;

use sublet_doors::Chunk;
use sublet_types::limits::BLOCK_SIZE;
use sublet_wire::Flags;
use sublet_wire::checksum::{table_size, write_table};

/// A change of whole blocks, or a flush; offsets are in the segment.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write { offset: u64, data: Chunk, sums: Rc<[u8]>, fua: bool },
    Zero { offset: u64, length: u32, flags: Flags },
    Flush,
}

impl Change {
    /// A write; its checksums are computed here, once for all legs.
    pub(crate) fn write(offset: u64, data: Chunk, fua: bool) -> Self {
        let mut sums = vec![0; table_size(data.len())];
        write_table(&data, &mut sums);
        Change::Write { offset, data, sums: sums.into(), fua }
    }

    /// The bytes that it changes: offset and length; nothing for a flush.
    pub(crate) fn span(&self) -> (u64, u64) {
        match self {
            Change::Write { offset, data, .. } => (*offset, data.len() as u64),
            Change::Zero { offset, length, .. } => (*offset, u64::from(*length)),
            Change::Flush => (0, 0),
        }
    }

    /// Durable at every leg when it has succeeded there.
    pub(crate) fn is_fua(&self) -> bool {
        match self {
            Change::Write { fua, .. } => *fua,
            Change::Zero { flags, .. } => flags.has(Flags::FUA),
            Change::Flush => false,
        }
    }

    /// The same change of a part of its blocks. The part lies in it and is of whole blocks.
    pub(crate) fn part(&self, from: u64, to: u64) -> Self {
        match self {
            Change::Write { offset, data, sums, fua } => {
                let bytes = (from - offset) as usize..(to - offset) as usize;
                let entries = bytes.start / BLOCK_SIZE as usize * 4..bytes.end / BLOCK_SIZE as usize * 4;
                let sums = sums.get(entries).unwrap_or(&[]).into();
                Change::Write { offset: from, data: data.part(bytes), sums, fua: *fua }
            }
            Change::Zero { flags, .. } => {
                Change::Zero { offset: from, length: u32::try_from(to - from).unwrap_or(u32::MAX), flags: *flags }
            }
            Change::Flush => Change::Flush,
        }
    }
}
