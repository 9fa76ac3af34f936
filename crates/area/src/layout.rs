//! Where everything lies in a piece, and the address conversion from an area to its pieces.

use sublet_types::limits::REGION_SIZE;
use sublet_types::size::{KIB, MIB};

use crate::table::RECORDS_PER_PAGE;

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

/// Length of every page of the metadata reserve, in bytes.
pub(crate) const PAGE_SIZE: u64 = 4 * KIB;
/// Length of one entry of missed maps, in bytes: a whole sector, so that a torn write spoils no neighbour.
pub(crate) const MAP_ENTRY_SIZE: u64 = 512;
/// Format 1: states in one page, a byte each.
pub(crate) const STATES_PER_PAGE: u64 = PAGE_SIZE - 64;

/// Where everything lies in the metadata reserve of a piece, relative to the piece. In this order: the region states of
/// format 1 (only read, at a conversion), region pages A, region pages B, missed maps, checksum pages; the rest is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reserve {
    /// Regions of the piece.
    pub regions: u64,
}

impl Reserve {
    /// The reserve of a piece of that length.
    pub const fn of(piece_length: u64) -> Self {
        Self { regions: data_size(piece_length) / REGION_SIZE }
    }

    /// Pages of region states of format 1, in each copy.
    pub const fn states_pages(self) -> u64 {
        self.regions.div_ceil(STATES_PER_PAGE)
    }

    /// Both copies of a page of region states of format 1.
    pub const fn states_page(self, page: u64) -> [u64; 2] {
        [HEADER_SIZE + page * PAGE_SIZE, HEADER_SIZE + (self.states_pages() + page) * PAGE_SIZE]
    }

    /// Region pages, in each copy.
    pub const fn pages(self) -> u64 {
        self.regions.div_ceil(RECORDS_PER_PAGE as u64)
    }

    /// Both copies of a region page.
    pub const fn page(self, page: u64) -> [u64; 2] {
        let begin = HEADER_SIZE + 2 * self.states_pages() * PAGE_SIZE;
        [begin + page * PAGE_SIZE, begin + (self.pages() + page) * PAGE_SIZE]
    }

    /// The entry of a region in the missed maps.
    pub const fn map_entry(self, region: u64) -> u64 {
        self.page(self.pages())[1] + region * MAP_ENTRY_SIZE
    }

    /// The checksum page of a region.
    pub const fn sums(self, region: u64) -> u64 {
        let begin = self.map_entry(0) + (self.regions * MAP_ENTRY_SIZE).next_multiple_of(PAGE_SIZE);
        begin + region * PAGE_SIZE
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
            if data > 0 {
                let reserve = Reserve::of(length);
                let [a, b] = reserve.page(0);
                assert!(reserve.states_page(reserve.states_pages())[1] <= a, "{length}");
                assert_eq!(a + reserve.pages() * PAGE_SIZE, b);
                assert_eq!(b + reserve.pages() * PAGE_SIZE, reserve.map_entry(0));
                assert!(
                    reserve.map_entry(reserve.regions) <= reserve.sums(0) && reserve.sums(0).is_multiple_of(PAGE_SIZE),
                    "{length}"
                );
                let end = reserve.sums(reserve.regions);
                assert!(end <= HEADER_SIZE + metadata_size(length), "everything fits: {length}");
                let views = HEADER_SIZE + metadata_size(length) - end;
                assert!(views >= reserve.regions * 3 * KIB, "3 KiB per region are left for views: {length}");
            }
        }
    }
}
