//! What may be on a disk already: the recognition of signatures.

use std::io;

use sublet_area::lendable::signature::detect;

use crate::image::Image;

/// Where signatures are looked for.
const PLACES: [u64; 12] = [0, 512, 1024, 4086, 4096, 16374, 0x4000, 32768, 0x10000, 65526, 128 << 10, (128 << 10) + 5 * 1024];

/// The size (as a shift and its end, two bytes), then parts: place (one byte; beyond the places, from the end), offset in it (one),
/// length (one), bytes.
pub fn signatures(input: &[u8]) -> bool {
    let Some(([shift, end], mut rest)) = input.split_first_chunk() else { return false };
    let size = (1u64 << (shift % 41)) + u64::from(*end) * 64 - 1;
    let mut image = Image::new(size);
    while let Some(([place, offset, length], after)) = rest.split_first_chunk() {
        let (bytes, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        let at = match PLACES.get(usize::from(*place)) {
            Some(at) => at + u64::from(*offset),
            None => size.saturating_sub(u64::from(*place) * 512).saturating_add(u64::from(*offset)),
        };
        image.write(at, bytes);
    }
    let look = || {
        let mut read = 0;
        let mut fetch = |at: u64, length: usize| {
            assert!(at + length as u64 <= size, "it reads behind the end");
            read += length;
            let mut bytes = vec![0; length];
            image.read(at, &mut bytes);
            Ok::<_, io::Error>(bytes)
        };
        let found = detect(&mut fetch, size).unwrap_or_default();
        assert!(read < 256 << 10, "it reads {read} bytes");
        found
    };
    let found = look();
    assert_eq!(found, look());
    if let Some(found) = &found {
        assert!(!found.what.is_empty() && found.what.len() < 256, "{}", found.what);
    }
    found.is_some()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let part = |place: u8, offset: u8, bytes: &[u8]| [&[place, offset, bytes.len() as u8][..], bytes].concat();
    let image = crate::area::base();
    let mut label = vec![0; 216];
    image.read(0, &mut label);
    let mut table = vec![0; 66];
    (table[0], table[4], table[12], table[64], table[65]) = (0x80, 0x83, 1, 0x55, 0xaa);
    let parts = [
        part(0, 0, b"XFSB"),
        part(1, 0, b"EFI PART"),
        part(2, 56, &[0x53, 0xef]),
        part(3, 0, b"SWAPSPACE2"),
        part(0, 0, b"LUKS\xba\xbe"),
        part(8, 64, b"_BHRfS_M"),
        part(10, 0, &0x00ba_b10c_u64.to_le_bytes()),
        part(11, 0, &0x00ba_b10c_u64.to_be_bytes()),
        part(16, 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
        part(13, 0, b"EFI PART"),
        part(0, 0, &label),
        [part(0, 255, &[0; 191]), part(0, 255, &[]), part(1, 0, &table)].concat(),
    ];
    let own = parts.into_iter().map(|part| [&[20, 0][..], &part].concat());
    own.chain([vec![0, 0], vec![9, 3], vec![40, 255]]).collect()
}
