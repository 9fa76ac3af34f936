//! What is on a disk already: signatures of file systems, partition tables, RAID, LVM, encryption, and Sublet labels.
//!
//! Pure: the bytes come from a function. Places and magic numbers are those of the formats' own documentation
//! (linux/include/uapi, on-disk format descriptions of LVM2, md, LUKS, ZFS, NTFS, FAT, UEFI).

use std::io;

use crate::bytes::Get;
use crate::envelope::{PIECE, Sealed, judge};
use crate::label::PieceLabel;
use crate::layout::PIECE_LABEL_AT;
use crate::spec::PieceIdentity;

/// Something that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signature {
    /// What it is, with its article: `an ext2/3/4 file system`.
    pub what: String,
    /// A Sublet label says this, if it is whole and of this version.
    pub label: Option<PieceIdentity>,
}

/// A magic number at a fixed place.
struct Magic {
    at: u64,
    bytes: &'static [u8],
    what: &'static str,
}

const fn magic(at: u64, bytes: &'static [u8], what: &'static str) -> Magic {
    Magic { at, bytes, what }
}

const SWAP: &str = "a swap area";
const LVM: &str = "an LVM physical volume";
const RAID: &str = "a member of an md RAID";
const LUKS: &str = "a LUKS encrypted volume";
const GPT: &str = "a GPT partition table";
const FAT: &str = "a FAT file system";

const MAGICS: &[Magic] = &[
    magic(512, b"EFI PART", GPT),
    magic(4096, b"EFI PART", GPT),
    magic(1024 + 56, &[0x53, 0xEF], "an ext2/3/4 file system"),
    magic(0, b"XFSB", "an XFS file system"),
    magic(0x10000 + 64, b"_BHRfS_M", "a btrfs file system"),
    magic(4096 - 10, b"SWAPSPACE2", SWAP),
    magic(4096 - 10, b"SWAP-SPACE", SWAP),
    magic(16384 - 10, b"SWAPSPACE2", SWAP),
    magic(65536 - 10, b"SWAPSPACE2", SWAP),
    magic(0, b"LABELONE", LVM),
    magic(512, b"LABELONE", LVM),
    magic(1024, b"LABELONE", LVM),
    magic(1536, b"LABELONE", LVM),
    magic(0, &[0xFC, 0x4E, 0x2B, 0xA9], RAID),
    magic(4096, &[0xFC, 0x4E, 0x2B, 0xA9], RAID),
    magic(0, b"LUKS\xBA\xBE", LUKS),
    magic(0x4000, b"SKUL\xBA\xBE", LUKS),
    magic(3, b"NTFS    ", "an NTFS file system"),
    magic(3, b"EXFAT   ", "an exFAT file system"),
    magic(54, b"FAT12   ", FAT),
    magic(54, b"FAT16   ", FAT),
    magic(82, b"FAT32   ", FAT),
    magic(1024, &[0x10, 0x20, 0xF5, 0xF2], "an F2FS file system"),
    magic(4096 + 24, b"\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81", "a bcache device"),
    magic(4096 + 24, b"\xC6\x85\x73\xF6\x66\xCE\x90\xA9\xD9\x6A\x60\xCF\x80\x3D\xF7\xEF", "a bcachefs file system"),
    magic(32768, b"JFS1", "a JFS file system"),
    magic(0x10000 + 52, b"ReIsEr", "a ReiserFS file system"),
    magic(32769, b"CD001", "an ISO 9660 file system"),
    magic(0, b"hsqs", "a squashfs file system"),
    magic(0, b"bluestore block device", "a Ceph OSD"),
];

/// Where ZFS keeps its ring of uberblocks in the first label, and their magic number.
const ZFS_UBERBLOCKS: std::ops::Range<u64> = 128 << 10..256 << 10;
const ZFS_MAGIC: u64 = 0x00BA_B10C;

/// Reads stretches of what is examined: exactly so many bytes, or nothing behind the end.
pub type ReadAt<'a> = &'a mut dyn FnMut(u64, usize) -> io::Result<Vec<u8>>;

/// Looks for every known signature in something of `size` bytes. Sublet's own come first.
///
/// # Errors
/// What reading says.
pub fn detect(read: ReadAt<'_>, size: u64) -> io::Result<Option<Signature>> {
    let mut fetch = |at: u64, length: usize| match at.checked_add(length as u64) {
        Some(end) if end <= size => read(at, length),
        _ => Ok(Vec::new()),
    };
    if let Some(found) = sublet_label(&mut fetch)? {
        return Ok(Some(found));
    }
    let foreign = |what: &str| Ok(Some(Signature { what: what.to_owned(), label: None }));
    for Magic { at, bytes, what } in MAGICS {
        if fetch(*at, bytes.len())?.as_slice() == *bytes {
            return foreign(what);
        }
    }
    if zfs(&mut fetch)? {
        return foreign("a member of a ZFS pool");
    }
    if raid_at_end(&mut fetch, size)? {
        return foreign(RAID);
    }
    if size >= 1024 && fetch(size - 512, 8)? == b"EFI PART" {
        return foreign("a GPT partition table (its copy at the end)");
    }
    if is_mbr(&fetch(0, 512)?) {
        return foreign("an MBR partition table");
    }
    Ok(None)
}

fn sublet_label(read: ReadAt<'_>) -> io::Result<Option<Signature>> {
    let mut found = None;
    for at in PIECE_LABEL_AT {
        let bytes = read(at, PIECE.length_max)?;
        let (what, label) = match judge(&bytes, PIECE) {
            Sealed::Absent => continue,
            Sealed::Damaged => ("a damaged Sublet label".to_owned(), None),
            Sealed::Newer(version) => (format!("a Sublet label of format version {version}, newer than this software"), None),
            Sealed::Whole(_) => {
                let label = PieceLabel::decode(&bytes).ok().map(|label| label.identity);
                (label.as_ref().map_or_else(|| "a Sublet label".to_owned(), describe), label)
            }
        };
        let whole = label.is_some();
        found = Some(Signature { what, label });
        if whole {
            break;
        }
    }
    Ok(found)
}

fn describe(id: &PieceIdentity) -> String {
    format!("the Sublet label of area {} (pool {}, piece {} of {})", id.name, id.pool.short(), id.index + 1, id.count)
}

fn zfs(read: ReadAt<'_>) -> io::Result<bool> {
    let ring = read(ZFS_UBERBLOCKS.start, (ZFS_UBERBLOCKS.end - ZFS_UBERBLOCKS.start) as usize)?;
    // Uberblocks are 1 to 8 KiB long, of either byte order.
    Ok(ring.chunks(1024).map(|block| Get(block).u64(0)).any(|magic| magic == ZFS_MAGIC || magic.swap_bytes() == ZFS_MAGIC))
}

/// md superblocks of version 1.0 (8 KiB before the end, on 4 KiB) and 0.90 (in the last whole 64 KiB).
fn raid_at_end(read: ReadAt<'_>, size: u64) -> io::Result<bool> {
    let one = (size / 512).checked_sub(16).map(|sectors| sectors / 8 * 8 * 512);
    let old = (size / 65536).checked_sub(1).map(|blocks| blocks * 65536);
    for at in [one, old].into_iter().flatten() {
        if read(at, 4)? == [0xFC, 0x4E, 0x2B, 0xA9] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A boot signature alone is also at the end of many boot sectors: at least one entry must be plausible.
fn is_mbr(sector: &[u8]) -> bool {
    let get = Get(sector);
    let plausible = |entry: usize| {
        let at = 446 + entry * 16;
        (get.u8(at) == 0 || get.u8(at) == 0x80) && get.u8(at + 4) != 0 && get.u32(at + 12) != 0
    };
    get.array(510) == [0x55, 0xAA] && (0..4).any(plausible)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 1 << 20;

    fn what(image: &[u8]) -> Option<String> {
        let mut read = |at: u64, length: usize| Ok(image[at as usize..][..length].to_vec());
        detect(&mut read, image.len() as u64).unwrap().map(|found| found.what)
    }

    #[test]
    fn every_magic_number_is_found_at_its_place_and_nothing_elsewhere() {
        assert_eq!(what(&vec![0; SIZE]), None);
        assert_eq!(what(&vec![0xFF; SIZE]), None);
        assert_eq!(what(b"short"), None);
        assert_eq!(what(&[]), None);
        for Magic { at, bytes, what: name } in MAGICS {
            let mut image = vec![0; SIZE];
            image[*at as usize..][..bytes.len()].copy_from_slice(bytes);
            assert_eq!(what(&image).as_deref(), Some(*name), "at {at}");
            // One byte off it is nothing.
            let mut image = vec![0; SIZE];
            image[*at as usize + 1..][..bytes.len()].copy_from_slice(bytes);
            assert_eq!(what(&image), None, "{name} at {at} + 1");
            // Cut off before its end it is no error.
            what(&image[..*at as usize + 1]);
        }
    }

    #[test]
    fn signatures_at_the_end_and_in_rings_are_found() {
        for (at, bytes, name) in [
            (SIZE - 8192, &[0xFC, 0x4E, 0x2B, 0xA9][..], RAID),
            (SIZE - 65536, &[0xFC, 0x4E, 0x2B, 0xA9][..], RAID),
            (SIZE - 512, b"EFI PART", "a GPT partition table (its copy at the end)"),
            (128 << 10, &ZFS_MAGIC.to_le_bytes()[..], "a member of a ZFS pool"),
            ((128 << 10) + 5 * 1024, &ZFS_MAGIC.to_be_bytes()[..], "a member of a ZFS pool"),
        ] {
            let mut image = vec![0; SIZE];
            image[at..][..bytes.len()].copy_from_slice(bytes);
            assert_eq!(what(&image).as_deref(), Some(name), "at {at}");
        }
    }

    #[test]
    fn a_partition_table_needs_a_partition() {
        let mut image = vec![0; SIZE];
        image[510..512].copy_from_slice(&[0x55, 0xAA]);
        assert_eq!(what(&image), None);
        image[446 + 16 + 4] = 0x83;
        image[446 + 16 + 12] = 1;
        assert_eq!(what(&image).as_deref(), Some("an MBR partition table"));
        image[446 + 16] = 0x33;
        assert_eq!(what(&image), None);
    }
}
