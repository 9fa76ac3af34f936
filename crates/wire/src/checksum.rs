//! CRC32C (Castagnoli, RFC 3720 appendix B.4) per 4 KiB block, and over frame headers.

use sublet_types::limits::BLOCK_SIZE;

/// CRC32C of some bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Writes the checksums of `data`, one little-endian `u32` per 4 KiB block, into `table`.
///
/// # Panics
/// If `data` is not whole blocks or `table` has not four bytes per block: both are the caller's own buffers.
pub fn write_table(data: &[u8], table: &mut [u8]) {
    assert_eq!(data.len() % BLOCK_SIZE as usize, 0, "checksums are of whole blocks");
    assert_eq!(table.len(), table_size(data.len()), "four bytes of checksum per block");
    for (block, sum) in data.chunks_exact(BLOCK_SIZE as usize).zip(table.chunks_exact_mut(4)) {
        sum.copy_from_slice(&crc32c(block).to_le_bytes());
    }
}

/// The first block of `data` (counted from 0) whose checksum is not the one in `table`; none if all agree. Sizes that do
/// not fit together count as a mismatch of block 0.
pub fn first_mismatch(data: &[u8], table: &[u8]) -> Option<usize> {
    if !data.len().is_multiple_of(BLOCK_SIZE as usize) || table.len() != table_size(data.len()) {
        return Some(0);
    }
    data.chunks_exact(BLOCK_SIZE as usize).zip(table.chunks_exact(4)).position(|(block, sum)| crc32c(block).to_le_bytes() != sum)
}

/// The size of the checksum table of `length` bytes of data, in bytes.
pub const fn table_size(length: usize) -> usize {
    length / BLOCK_SIZE as usize * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_is_castagnolis() {
        // RFC 3720, appendix B.4: 32 bytes of zeroes, of ones.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_block() {
        let mut data = vec![7u8; 3 * 4096];
        let mut table = vec![0; table_size(data.len())];
        write_table(&data, &mut table);
        assert_eq!(first_mismatch(&data, &table), None);
        data[4096 + 17] ^= 4;
        assert_eq!(first_mismatch(&data, &table), Some(1));
        assert_eq!(first_mismatch(&data, &table[..4]), Some(0));
    }
}
