//! A whole NBD connection, from the first byte to the end, with a device that holds nothing.

use std::rc::Rc;
use std::time::Duration;

use sublet_client::device::{BlockDevice, DeviceError, DeviceErrorKind, Extent, ZeroFlags};
use sublet_client::nbd::Server;
use sublet_client::nbd::protocol::*;
use sublet_doors::{Chunk, Clock, Doors, Endpoint};
use sublet_types::limits::FRONT_REQUEST_SIZE_MAX;

use crate::doors::MemDoors;
use crate::doors::net::MemConn;
use crate::nbd::{NAME, dialogues, number, request};

/// Reads as zero, and takes what is written for nothing. What reaches it was checked.
struct Nothing {
    size: u64,
    read_only: bool,
    zeroes: Chunk,
    doors: MemDoors,
}

impl Nothing {
    fn check(&self, offset: u64, length: u64, writes: bool) {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.size), "{offset} + {length} reached the device");
        assert!(!writes || !self.read_only, "a write reached a device that takes none");
    }
}

impl BlockDevice for Nothing {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    async fn read(&self, offset: u64, length: u64) -> Result<Vec<Chunk>, DeviceError> {
        self.check(offset, length, false);
        assert!(length <= FRONT_REQUEST_SIZE_MAX);
        self.doors.give_way().await;
        let piece = self.zeroes.len() as u64;
        let pieces = (0..length.div_ceil(piece)).map(|n| self.zeroes.part(0..piece.min(length - n * piece) as usize));
        Ok(pieces.collect())
    }
    async fn write(&self, offset: u64, data: Chunk, _fua: bool) -> Result<(), DeviceError> {
        self.check(offset, data.len() as u64, true);
        assert!(!data.is_empty() && data.len() as u64 <= FRONT_REQUEST_SIZE_MAX);
        self.doors.give_way().await;
        Ok(())
    }
    async fn write_zeroes(&self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        self.check(offset, length, true);
        if flags.fast { Err(DeviceError::new(DeviceErrorKind::TooSlow, "not fast")) } else { Ok(()) }
    }
    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, DeviceError> {
        self.check(offset, length, false);
        Ok(vec![Extent { length: length.div_ceil(2), data: false }, Extent { length: length / 2, data: true }])
    }
}

/// Two bytes say how large the device is and how the bytes arrive, the rest is what the client sends.
pub fn connection(input: &[u8]) -> bool {
    let Some(([how, part], rest)) = input.split_first_chunk() else { return false };
    // The large one takes requests of any size that a front end takes.
    let size = if how & 7 == 7 { 48 << 20 } else { 1 << 20 };
    let read_only = how & 8 != 0;
    let (conn, sent) = MemConn::new(
        rest.to_vec(),
        match part {
            0 => usize::MAX,
            part => usize::from(*part) * 7,
        },
    );
    MemDoors::run(move |doors| async move {
        let zeroes = Chunk::copy_of(&[0; 64 << 10]);
        let device = Rc::new(Nothing { size, read_only, zeroes, doors: doors.clone() });
        doors.arrive(conn);
        let server = Server::start(doors.clone(), device, NAME, &Endpoint::Unix("socket".into())).await;
        let Ok(server) = server else { panic!("it does not listen") };
        // Time goes on when nobody can do anything any more: the client has ended, so must its connection.
        doors.sleep(Duration::from_nanos(1)).await;
        assert!(doors.has_arrived());
        assert_eq!(server.connections(), 0, "the client has ended, and its connection has not");
    });
    check_sent(&sent.take())
}

/// Walks over chunks without joining them: the data of replies is skipped.
struct Walk<'a> {
    chunks: &'a [Chunk],
    at: usize,
}

impl Walk<'_> {
    /// The next bytes; fewer at the end.
    fn take(&mut self, mut length: usize, into: &mut Vec<u8>) {
        into.clear();
        self.step(&mut length, &mut |bytes| into.extend_from_slice(bytes));
    }

    /// Passes over so many; the answer is how many are missing.
    fn skip(&mut self, mut length: usize) -> usize {
        self.step(&mut length, &mut |_| {});
        length
    }

    fn step(&mut self, length: &mut usize, with: &mut dyn FnMut(&[u8])) {
        while *length > 0
            && let Some((first, rest)) = self.chunks.split_first()
        {
            let left = &first[self.at..];
            let many = left.len().min(*length);
            with(&left[..many]);
            *length -= many;
            self.at += many;
            if self.at == first.len() {
                (self.chunks, self.at) = (rest, 0);
            }
        }
    }
}

/// What was sent is a greeting, whole replies to options, and whole replies to requests with structured replies (simple ones do not
/// say how much data follows). True if it came to requests.
fn check_sent(chunks: &[Chunk]) -> bool {
    let mut walk = Walk { chunks, at: 0 };
    let mut head = Vec::new();
    walk.take(18, &mut head);
    assert_eq!((number(&head, 0, 8), number(&head, 8, 8)), (Some(MAGIC), Some(OPTION_MAGIC)), "it greets");
    loop {
        walk.take(4, &mut head);
        let magic = match number(&head, 0, 4) {
            None => return false,
            Some(magic) => magic,
        };
        if magic == OPTION_REPLY_MAGIC >> 32 {
            walk.take(16, &mut head);
            assert_eq!(number(&head, 0, 4), Some(OPTION_REPLY_MAGIC & 0xffff_ffff));
            let length = number(&head, 12, 4).map_or(usize::MAX, |length| length as usize);
            assert_eq!(walk.skip(length), 0, "a reply to an option is not all there");
        } else if magic == u64::from(STRUCTURED_REPLY_MAGIC) {
            walk.take(16, &mut head);
            let length = number(&head, 12, 4).map_or(usize::MAX, |length| length as usize);
            assert_eq!(walk.skip(length), 0, "a structured reply is not all there");
        } else {
            // The answer to EXPORT_NAME has no mark, and simple replies no length.
            return true;
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let requests = [
        request(0, CMD_READ, 1, 4096, 8192),
        [request(CMD_FLAG_FUA, CMD_WRITE, 2, 0, 512), vec![7; 512]].concat(),
        request(0, CMD_BLOCK_STATUS, 3, 0, 1 << 20),
        request(CMD_FLAG_NO_HOLE, CMD_WRITE_ZEROES, 4, 0, 4096),
        request(0, CMD_TRIM, 5, 0, 1 << 20),
        request(0, CMD_CACHE, 6, 0, 1),
        request(0, CMD_FLUSH, 7, 0, 0),
        request(0, CMD_READ, 8, 1 << 20, 1),
        [request(0, CMD_WRITE, 9, 1 << 20, 3), vec![1; 3]].concat(),
        request(0, CMD_DISC, 10, 0, 0),
    ]
    .concat();
    let seed = |(n, options): (usize, Vec<(u32, Vec<u8>)>)| {
        let mut bytes = vec![[0, 7, 8][n % 3], [0, 1, 40][n % 3], 0, 0, 0, 3];
        for (option, data) in options {
            bytes.extend(OPTION_MAGIC.to_be_bytes());
            bytes.extend(option.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
        }
        bytes.extend(&requests);
        bytes
    };
    dialogues().into_iter().enumerate().map(seed).collect()
}
