//! Frames of the FUSE kernel protocol, as far as one file needs them. Pure; all integers are in the machine's byte order.

use sublet_types::limits::REQUEST_SIZE_MAX;

/// Protocol version that is answered.
pub const MAJOR: u32 = 7;
/// Minor version: the oldest that has everything used here (`max_pages` came with 7.28).
pub const MINOR: u32 = 31;
/// The most payload of one write, and of one read: what one request to a lender carries.
pub const PAYLOAD_MAX: usize = REQUEST_SIZE_MAX as usize;
/// Length of every request's header.
pub const IN_HEADER_SIZE: usize = 40;
/// Where the payload of a write begins.
pub const WRITE_PAYLOAD_AT: usize = IN_HEADER_SIZE + 40;
/// What one read of `/dev/fuse` must have room for.
pub const RECEIVE_SIZE: usize = PAYLOAD_MAX + 4096;
/// Asynchronous requests that the kernel keeps in flight: the queue depth of the loop device (128) is its upper bound.
const BACKGROUND_MAX: u16 = 128;
/// From here on the kernel calls the file system congested.
const CONGESTION: u16 = 96;

/// Inode of the root directory.
pub const ROOT: u64 = 1;
/// Inode of the volume's file.
pub const FILE: u64 = 2;

#[allow(missing_docs, reason = "the names are those of linux/fuse.h")]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

/// `FUSE_ASYNC_READ`: several reads of one file at the same time.
const ASYNC_READ: u32 = 1 << 0;
/// `FUSE_BIG_WRITES`: writes larger than a page.
const BIG_WRITES: u32 = 1 << 5;
/// `FUSE_ASYNC_DIO`: direct I/O of the loop device does not wait in a thread.
const ASYNC_DIO: u32 = 1 << 15;
/// `FUSE_MAX_PAGES`: requests of more than 32 pages.
const MAX_PAGES: u32 = 1 << 22;
/// `FOPEN_DIRECT_IO`: no page cache under the loop device's own users, which have one already.
const OPEN_DIRECT_IO: u32 = 1 << 0;
/// `FOPEN_PARALLEL_DIRECT_WRITES`: the engine orders overlapping writes (W2), the kernel need not.
const OPEN_PARALLEL_WRITES: u32 = 1 << 6;

/// A request's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Length of the whole request in bytes.
    pub length: u32,
    /// What is asked.
    pub opcode: u32,
    /// Returned in the reply.
    pub unique: u64,
    /// Which inode.
    pub node: u64,
}

/// Where a read, write or fallocate goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// The mode of a fallocate; the flags of the file that a write goes through (`open(2)`).
    pub mode: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Header {
    /// Reads the header; `None` if the packet is shorter than it says (the kernel does not do that).
    pub fn read(packet: &[u8]) -> Option<Self> {
        let header = Self {
            length: u32_at(packet, 0)?,
            opcode: u32_at(packet, 4)?,
            unique: u64_at(packet, 8)?,
            node: u64_at(packet, 16)?,
        };
        (packet.len() >= IN_HEADER_SIZE && header.length as usize == packet.len()).then_some(header)
    }
}

/// Body of WRITE. The kernel puts `O_DSYNC` and `O_SYNC` into the flags also if only this one write asks for them (`RWF_DSYNC`).
pub fn write_span(packet: &[u8]) -> Option<Span> {
    Some(Span { mode: u32_at(packet, IN_HEADER_SIZE + 32)?, ..read_span(packet)? })
}

/// W1: the write is to be durable before it is answered.
pub const fn is_durable(flags: u32) -> bool {
    flags & (libc::O_DSYNC | libc::O_SYNC) as u32 != 0
}

/// Body of READ.
pub fn read_span(packet: &[u8]) -> Option<Span> {
    Some(Span { offset: u64_at(packet, IN_HEADER_SIZE + 8)?, length: u32_at(packet, IN_HEADER_SIZE + 16)?.into(), mode: 0 })
}

/// Body of FALLOCATE.
pub fn fallocate_span(packet: &[u8]) -> Option<Span> {
    Some(Span {
        offset: u64_at(packet, IN_HEADER_SIZE + 8)?,
        length: u64_at(packet, IN_HEADER_SIZE + 16)?,
        mode: u32_at(packet, IN_HEADER_SIZE + 24)?,
    })
}

/// Flags of OPEN.
pub fn open_flags(packet: &[u8]) -> Option<u32> {
    u32_at(packet, IN_HEADER_SIZE)
}

/// The name of LOOKUP.
pub fn lookup_name(packet: &[u8]) -> Option<&[u8]> {
    packet.get(IN_HEADER_SIZE..)?.split(|b| *b == 0).next()
}

/// Bytes of a reply's body.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

/// The header of a reply: `error` is 0 or a positive errno; `length` is that of the body.
pub fn out_header(unique: u64, error: i32, length: usize) -> Vec<u8> {
    let total = u32::try_from(16 + length).unwrap_or(u32::MAX);
    Body::default().u32(total).u32(error.wrapping_neg() as u32).u64(unique).0
}

/// The answer to INIT, from its packet; `None` if the kernel is too old.
pub fn init(packet: &[u8]) -> Option<Vec<u8>> {
    let (major, minor) = (u32_at(packet, IN_HEADER_SIZE)?, u32_at(packet, IN_HEADER_SIZE + 4)?);
    let (readahead, offered) = (u32_at(packet, IN_HEADER_SIZE + 8)?, u32_at(packet, IN_HEADER_SIZE + 12)?);
    if major != MAJOR || minor < MINOR {
        return None;
    }
    // No writeback cache: what is written must reach the engine before it is acknowledged (W1).
    let flags = offered & (ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES);
    let body = Body::default().u32(MAJOR).u32(MINOR).u32(readahead).u32(flags);
    let body = body.u16(BACKGROUND_MAX).u16(CONGESTION).u32(PAYLOAD_MAX as u32).u32(1);
    Some(body.u16((PAYLOAD_MAX / 4096) as u16).u16(0).zeroes(32).0)
}

fn attributes(node: u64, size: u64, read_only: bool) -> Vec<u8> {
    let (size, mode, links) = match node {
        FILE => (size, if read_only { 0o100_400 } else { 0o100_600 }, 1),
        _ => (0, 0o040_500, 2),
    };
    let body = Body::default().u64(node).u64(size).u64(size / 512).zeroes(3 * 8 + 3 * 4);
    body.u32(mode).u32(links).u32(0).u32(0).u32(0).u32(4096).u32(0).0
}

/// How long the kernel may keep names and attributes, in seconds: they never change.
const VALID_SECONDS: u64 = 86_400;

/// The answer to GETATTR.
pub fn attr(node: u64, size: u64, read_only: bool) -> Vec<u8> {
    let mut body = Body::default().u64(VALID_SECONDS).u32(0).u32(0).0;
    body.extend(attributes(node, size, read_only));
    body
}

/// The answer to a LOOKUP of the file.
pub fn entry(size: u64, read_only: bool) -> Vec<u8> {
    let mut body = Body::default().u64(FILE).u64(0).u64(VALID_SECONDS).u64(VALID_SECONDS).u32(0).u32(0).0;
    body.extend(attributes(FILE, size, read_only));
    body
}

/// The answer to OPEN of the file.
pub fn open_file() -> Vec<u8> {
    Body::default().u64(0).u32(OPEN_DIRECT_IO | OPEN_PARALLEL_WRITES).u32(0).0
}

/// The answer to OPENDIR.
pub fn open_directory() -> Vec<u8> {
    Body::default().zeroes(16).0
}

/// The answer to WRITE.
pub fn written(length: usize) -> Vec<u8> {
    Body::default().u32(u32::try_from(length).unwrap_or(u32::MAX)).u32(0).0
}

/// The answer to STATFS.
pub fn statfs(size: u64) -> Vec<u8> {
    let body = Body::default().u64(size / 4096).u64(0).u64(0).u64(2).u64(0);
    body.u32(4096).u32(255).u32(4096).zeroes(4 + 24).0
}

/// The answer to READDIR of the root from `offset` on.
pub fn directory(packet: &[u8]) -> Option<Vec<u8>> {
    let offset = u64_at(packet, IN_HEADER_SIZE + 8)?;
    let room = u32_at(packet, IN_HEADER_SIZE + 16)? as usize;
    let entries: [(u64, u32, &str); 3] = [(ROOT, 4, "."), (ROOT, 4, ".."), (FILE, 8, super::FILE_NAME)];
    let mut body = Body::default();
    for (next, (node, kind, name)) in (1u64..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
        let padded = 24 + name.len().next_multiple_of(8);
        if body.0.len() + padded > room {
            break;
        }
        body = body.u64(node).u64(next).u32(name.len() as u32).u32(kind);
        body.0.extend_from_slice(name.as_bytes());
        body = body.zeroes(padded - 24 - name.len());
    }
    Some(body.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_sizes_of_the_kernel_structures() {
        let mut packet = Body::default().u32(104).u32(op::INIT).u64(7).u64(0).zeroes(16);
        packet = packet.u32(7).u32(41).u32(1 << 17).u32(u32::MAX).zeroes(48);
        let header = Header::read(&packet.0).unwrap();
        assert_eq!((header.opcode, header.unique), (op::INIT, 7));
        assert_eq!(init(&packet.0).unwrap().len(), 64);
        assert_eq!(attr(FILE, 4096, false).len(), 104);
        assert_eq!(entry(4096, false).len(), 128);
        assert_eq!(open_file().len(), 16);
        assert_eq!(open_directory().len(), 16);
        assert_eq!(written(5).len(), 8);
        assert_eq!(statfs(4096).len(), 80);
        assert_eq!(out_header(1, 0, 0).len(), 16);
    }

    #[test]
    fn packets_cut_short_are_not_read() {
        let whole = Body::default().u32(40).u32(op::GETATTR).u64(7).u64(FILE).zeroes(16).0;
        assert!(Header::read(&whole).is_some());
        for cut in 0..whole.len() {
            assert_eq!(Header::read(&whole[..cut]), None);
        }
        assert_eq!(read_span(&whole), None);
        assert_eq!(write_span(&whole), None);
        assert_eq!(fallocate_span(&whole), None);
        assert_eq!(init(&whole), None);
        assert_eq!(directory(&whole), None);
    }

    #[test]
    fn w1_the_flags_of_a_write_say_whether_it_must_be_durable() {
        let write = |flags: i32| {
            // struct fuse_write_in: fh, offset, size, write_flags, lock_owner, flags, padding.
            let body = Body::default().zeroes(IN_HEADER_SIZE).u64(0).u64(8192).u32(512).u32(0xff).u64(u64::MAX);
            write_span(&body.u32(flags as u32).u32(0).0).unwrap()
        };
        let span = write(libc::O_RDWR | libc::O_DIRECT);
        assert_eq!((span.offset, span.length, is_durable(span.mode)), (8192, 512, false));
        assert!(is_durable(write(libc::O_RDWR | libc::O_DSYNC).mode) && is_durable(write(libc::O_SYNC).mode));
    }

    #[test]
    fn an_old_kernel_is_refused() {
        let packet = Body::default().zeroes(40).u32(7).u32(27).zeroes(56).0;
        assert_eq!(init(&packet), None);
    }

    #[test]
    fn the_directory_holds_the_file_and_ends() {
        let ask = |offset: u64, room: u32| {
            let packet = Body::default().zeroes(40).u64(0).u64(offset).u32(room).zeroes(20).0;
            directory(&packet).unwrap()
        };
        assert_eq!(ask(0, 4096).len(), 3 * 32);
        assert!(ask(0, 4096).windows(6).any(|w| w == b"volume"));
        assert_eq!(ask(2, 4096).len(), 32);
        assert!(ask(3, 4096).is_empty());
        assert!(ask(0, 10).is_empty());
    }
}
