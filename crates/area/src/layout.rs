//! Where everything lies in a piece, and the address conversion from an area to its pieces.

use sublet_types::limits::REGION_SIZE;
use sublet_types::size::{KIB, MIB};

/// The header room at the beginning of each piece, in bytes: piece labels and, in piece 0, area labels.
pub const HEADER_SIZE: u64 = REGION_SIZE;
/// Where the two copies of the piece label lie in each piece.
pub const PIECE_LABEL_AT: [u64; 2] = [0, 64 * KIB];
/// Where the two copies of the area label lie in piece 0.
pub const AREA_LABEL_AT: [u64; 2] = [MIB, 2 * MIB];
/// The room of one copy of the area label.
pub const AREA_LABEL_ROOM: u64 = MIB;

/// Length of the metadata reserve of a piece of that length: 8 bytes per 4 KiB, whole regions.
pub const fn metadata_size(piece_length: u64) -> u64 {
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

/// The data spaces of the pieces, one behind the other: area offset -> (piece, offset in its data).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PieceMap {
    /// `ends[i]` is the area offset behind the data of piece i.
    ends: Vec<u64>,
}

/// A stretch of an area that lies in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    /// Which piece.
    pub piece: usize,
    /// Where it begins in the piece's data, in bytes.
    pub offset: u64,
    /// Its length in bytes; never 0.
    pub length: u64,
}

impl PieceMap {
    /// Joins data spaces of these sizes, in this order.
    pub fn new(sizes: impl IntoIterator<Item = u64>) -> Self {
        let ends = sizes
            .into_iter()
            .scan(0u64, |end, size| {
                *end += size;
                Some(*end)
            })
            .collect();
        Self { ends }
    }

    /// The area's room for data in bytes.
    pub fn capacity(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The stretches of an area range, in order. What lies behind the capacity is left out; callers check ranges first.
    pub fn split(&self, offset: u64, length: u64) -> impl Iterator<Item = Stretch> + '_ {
        let end = offset.saturating_add(length).min(self.capacity());
        let first = self.ends.partition_point(|piece_end| *piece_end <= offset);
        let begin_of = |piece: usize| if piece == 0 { 0 } else { self.ends.get(piece - 1).copied().unwrap_or(0) };
        let ends = self.ends.get(first..).unwrap_or(&[]).iter().enumerate();
        let pieces = ends.map(move |(n, piece_end)| (first + n, begin_of(first + n), *piece_end));
        pieces.take_while(move |(_, begin, _)| *begin < end).filter_map(move |(piece, begin, piece_end)| {
            let from = offset.max(begin);
            let to = end.min(piece_end);
            (from < to).then(|| Stretch { piece, offset: from - begin, length: to - from })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn area_addresses_convert_to_pieces_as_a_byte_map_says() {
        // The naive model: one entry a byte, each knowing its piece and its offset there.
        for sizes in [vec![5], vec![3, 1, 4], vec![2, 0, 7], vec![1; 9]] {
            let map = PieceMap::new(sizes.iter().copied());
            let model: Vec<(usize, u64)> =
                sizes.iter().enumerate().flat_map(|(piece, size)| (0..*size).map(move |at| (piece, at))).collect();
            assert_eq!(map.capacity(), model.len() as u64);
            for offset in 0..=model.len() {
                for end in offset..=model.len() {
                    let bytes: Vec<(usize, u64)> = map
                        .split(offset as u64, (end - offset) as u64)
                        .flat_map(|s| (s.offset..s.offset + s.length).map(move |at| (s.piece, at)))
                        .collect();
                    assert_eq!(bytes, model[offset..end], "{sizes:?} {offset}..{end}");
                }
            }
        }
    }

    #[test]
    fn a_file_made_for_a_size_has_exactly_that_capacity() {
        const TIB: u64 = 1 << 40;
        for data in [1, 16 * MIB, 17 * MIB, 1 << 30, (1 << 31) - 4096, 10 * TIB, 1 << 60] {
            let length = file_size_for(data);
            assert_eq!(data_size(length), data.next_multiple_of(REGION_SIZE), "{data}");
            assert!(data_size(length - 1) < data.next_multiple_of(REGION_SIZE), "{data} needs no byte less");
            assert!(length - data < data / 400 + 16 * MIB, "the overhead of {data} is small");
        }
    }

    #[test]
    fn the_parts_of_a_piece_never_overlap_nor_leave_it() {
        for length in (0..200).map(|n| n * 999_424).chain([1 << 40, (1 << 40) + 12288]) {
            let data = data_size(length);
            assert!(data == 0 || HEADER_SIZE + metadata_size(length) + data <= length, "{length}");
            assert!(data == 0 || metadata_size(length) >= data / 512, "8 bytes per block are reserved");
        }
    }
}
