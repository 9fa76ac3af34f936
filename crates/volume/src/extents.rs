//! Which stretches of a range may hold data.

use sublet_doors::Doors;
use sublet_types::BlockRange;
use sublet_types::limits::BLOCK_SIZE;
use sublet_wire::message::{EXTENTS_PER_REPLY_MAX, Extent, ExtentsReply};
use sublet_wire::{Flags, Op};

use crate::error::VolumeError;
use crate::options::ManagerDoor;
use crate::volume::Inner;

/// One request asks about so many bytes at most.
const EXTENTS_SIZE_MAX: u64 = 1 << 30;
/// So many stretches are answered at most: what NBD clients ask for is far less.
const EXTENTS_MAX: usize = 1 << 16;
/// The largest reply: a count, and nine bytes for each extent.
const REPLY_MAX: usize = 4 + 9 * EXTENTS_PER_REPLY_MAX;

/// See [`crate::Volume::extents`].
pub(crate) async fn extents<D: Doors, M: ManagerDoor>(
    inner: &Inner<D, M>,
    offset: u64,
    length: u64,
) -> Result<Vec<Extent>, VolumeError> {
    let blocks = BlockRange::covering(offset, length);
    let (start, end) = (blocks.start * BLOCK_SIZE, blocks.end * BLOCK_SIZE);
    let mut found: Vec<Extent> = Vec::new();
    // The volume offset up to which is known.
    let mut known = start;
    for piece in inner.map.pieces(start, end - start, EXTENTS_SIZE_MAX) {
        let Some(segment) = inner.segments.get(piece.segment) else { break };
        let mut at = piece.offset;
        let piece_end = piece.offset + piece.length;
        while at < piece_end && found.len() < EXTENTS_MAX {
            let (length, differs) = segment.may_differ_at(at, piece_end - at);
            let extents = if differs {
                vec![Extent { length, data: true }]
            } else {
                let asked = u32::try_from(length).unwrap_or(u32::MAX);
                let reply: ExtentsReply = segment.ask_lender(Op::Extents, Flags::default(), at, asked, &[], REPLY_MAX).await?;
                reply.extents
            };
            for extent in extents {
                let part = extent.length.min(length).min(piece_end - at);
                // What ends within a block says nothing of the rest of it: that may hold data, and behind it is asked again.
                let whole = part / BLOCK_SIZE * BLOCK_SIZE;
                let odd = if whole < part { BLOCK_SIZE } else { 0 };
                for (part, data) in [(whole, extent.data), (odd, true)] {
                    at += part;
                    known += part;
                    match found.last_mut() {
                        Some(last) if last.data == data => last.length += part,
                        _ if part > 0 => found.push(Extent { length: part, data }),
                        _ => {}
                    }
                }
                if odd > 0 {
                    break;
                }
            }
        }
        if at < piece_end {
            break;
        }
    }
    Ok(trimmed(found, offset - start, (offset + length).min(known).saturating_sub(offset)))
}

/// Cuts `skip` bytes off the front, and what is longer than `length` off the back.
fn trimmed(extents: Vec<Extent>, mut skip: u64, mut length: u64) -> Vec<Extent> {
    let mut kept = Vec::with_capacity(extents.len());
    for extent in extents {
        let skipped = extent.length.min(skip);
        skip -= skipped;
        let part = (extent.length - skipped).min(length);
        length -= part;
        if part > 0 {
            kept.push(Extent { length: part, data: extent.data });
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_to_the_bytes_asked_for() {
        let whole =
            vec![Extent { length: 4096, data: true }, Extent { length: 8192, data: false }, Extent { length: 4096, data: true }];
        assert_eq!(trimmed(whole.clone(), 0, 1 << 20), whole);
        assert_eq!(trimmed(whole.clone(), 5000, 100), [Extent { length: 100, data: false }]);
        let cut = [Extent { length: 96, data: true }, Extent { length: 8192, data: false }, Extent { length: 1, data: true }];
        assert_eq!(trimmed(whole, 4000, 96 + 8192 + 1), cut);
    }
}
