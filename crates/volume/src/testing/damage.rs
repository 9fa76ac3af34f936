//! Replies that are not what the protocol says although their header's checksum is right.

use sublet_wire::ReplyFrame;

use super::doors::MemDoors;

/// Changes a reply's payload at random: other bytes, absurd numbers, too short, too long.
pub(crate) fn damage(doors: &MemDoors, reply: &mut ReplyFrame, data: &mut Vec<u8>) {
    let size = data.len() as u64;
    match doors.below(4) {
        0 if size > 0 => {
            for _ in 0..=doors.below(3) {
                data[doors.below(size) as usize] ^= 1 << doors.below(8);
            }
        }
        1 if size > 0 => {
            let at = doors.below(size) as usize;
            let end = data.len().min(at + 8);
            data[at..end].fill(if doors.below(2) == 0 { 0xff } else { 0 });
        }
        2 if size > 0 => data.truncate(doors.below(size) as usize),
        _ => {
            let more = [1, 7, 4096, 70_000][doors.below(4) as usize];
            data.extend(std::iter::repeat_with(|| doors.below(256) as u8).take(more));
        }
    }
    reply.payload = data.len() as u32;
}
