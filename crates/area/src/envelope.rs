//! What every structure on a disk begins with: magic, version, checksum, length, sequence. These fields keep their place
//! in all versions, so that any version can tell a newer one from damage.

use crate::bytes::{Get, Put};

/// The version that this software writes.
pub(crate) const VERSION: u32 = 2;
/// The oldest version that it reads.
pub(crate) const VERSION_MIN: u32 = 1;
/// Length of the envelope in bytes; the structure's own fields follow.
pub(crate) const ENVELOPE_SIZE: usize = 40;

/// No sequence, and no other number that counts up, comes near this one: whatever holds a higher one was not written by Sublet,
/// and it could not be counted up.
pub(crate) const COUNT_MAX: u64 = 1 << 62;

/// One kind of structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kind {
    /// The first eight bytes.
    pub magic: [u8; 8],
    /// What it is called in messages.
    pub what: &'static str,
    /// The longest it may be, in bytes.
    pub length_max: usize,
}

/// The label at the beginning of each piece.
pub(crate) const PIECE: Kind = Kind { magic: *b"SUBLETPC", what: "piece label", length_max: 4096 };
/// The label of the whole area, in piece 0.
pub(crate) const AREA: Kind = Kind { magic: *b"SUBLETAR", what: "area label", length_max: 1 << 20 };
/// A page of region states of format 1.
pub(crate) const STATES: Kind = Kind { magic: *b"SUBLETRG", what: "page of region states", length_max: 4096 };
/// A region page.
pub(crate) const REGIONS: Kind = Kind { magic: *b"SUBLETRT", what: "region page", length_max: 4096 };

/// What some bytes turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Sealed {
    /// Whole, with this sequence number.
    Whole(u64),
    /// Whole, but of a version, or with features, that this software does not know.
    Newer(u32),
    /// The magic is there, the rest is not right.
    Damaged,
    /// Something else.
    Absent,
}

/// Fills in the envelope of a structure whose own fields are in place.
pub(crate) fn seal(bytes: &mut [u8], kind: Kind, sequence: u64) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    Put(bytes).bytes(0, &kind.magic).u32(8, VERSION).u32(12, 0).u32(16, length).u64(24, sequence).u64(32, 0);
    let sum = crc32c::crc32c(bytes);
    Put(bytes).u32(12, sum);
}

/// The version of a structure that is whole.
pub(crate) fn version_of(bytes: &[u8]) -> u32 {
    Get(bytes).u32(8)
}

/// The length that the envelope names, if it is a possible one.
pub(crate) fn length_of(head: &[u8], kind: Kind) -> Option<usize> {
    let length = Get(head).u32(16) as usize;
    (Get(head).array(0) == kind.magic && length >= ENVELOPE_SIZE && length <= kind.length_max && length.is_multiple_of(4096))
        .then_some(length)
}

/// Judges a structure; `bytes` has the length that the envelope names.
pub(crate) fn judge(bytes: &[u8], kind: Kind) -> Sealed {
    let get = Get(bytes);
    if get.array(0) != kind.magic {
        return Sealed::Absent;
    }
    if length_of(bytes, kind) != Some(bytes.len()) {
        return Sealed::Damaged;
    }
    let (before, after) = (bytes.get(..12).unwrap_or(&[]), bytes.get(16..).unwrap_or(&[]));
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), after);
    match (sum == get.u32(12), get.u32(8), get.u64(32)) {
        (false, _, _) => Sealed::Damaged,
        (true, VERSION_MIN..=VERSION, 0) if get.u64(24) > COUNT_MAX => Sealed::Damaged,
        (true, VERSION_MIN..=VERSION, 0) => Sealed::Whole(get.u64(24)),
        (true, version, _) => Sealed::Newer(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut bytes = vec![7; 4096];
        seal(&mut bytes, PIECE, 9);
        assert_eq!(judge(&bytes, PIECE), Sealed::Whole(9));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(judge(&bytes, PIECE), Sealed::Damaged | Sealed::Absent), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_newer_version_and_an_unknown_feature_are_told_from_damage() {
        for (at, value) in [(8, 3), (8, 0), (32, 1)] {
            let mut bytes = vec![0; 4096];
            seal(&mut bytes, PIECE, 1);
            Put(&mut bytes).u8(at, value).u32(12, 0);
            let sum = crc32c::crc32c(&bytes);
            Put(&mut bytes).u32(12, sum);
            assert!(matches!(judge(&bytes, PIECE), Sealed::Newer(_)));
        }
    }
}
