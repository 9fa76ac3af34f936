//! Where everything lies in a piece, and the address conversion from an area to its pieces.

use sublet_types::limits::REGION_SIZE;

/// The header room at the beginning of each piece, in bytes: piece labels and, in piece 0, area labels.
pub const HEADER_SIZE: u64 = REGION_SIZE;

/// Length of the metadata reserve of a piece of that length: 8 bytes per 4 KiB, whole regions.
pub(crate) const fn metadata_size(piece_length: u64) -> u64 {
    piece_length.div_ceil(512).next_multiple_of(REGION_SIZE)
}

/// The room for data of a piece of that length, in bytes (a multiple of 4 MiB; 0 if it is too small for anything).
pub const fn data_size(piece_length: u64) -> u64 {
    piece_length.saturating_sub(HEADER_SIZE + metadata_size(piece_length)) / REGION_SIZE * REGION_SIZE
}

/// The file size that gives an area of one piece exactly this room for data (rounded up to 4 MiB).
pub const fn file_size_for(data_bytes: u64) -> u64 {
    let fixed = HEADER_SIZE + data_bytes.next_multiple_of(REGION_SIZE);
    let mut length = fixed;
    // The reserve grows by 1/512 of what is added: a few rounds reach the fixed point.
    loop {
        let next = fixed + metadata_size(length);
        if next == length {
            return length;
        }
        length = next;
    }
}
