//! A small NBD client, pipelined, with simple replies
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>). Several of them on one socket are several
//! connections.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;

/// Forced unit access.
pub const FUA: u16 = 1;
/// Zeroes must stay allocated.
pub const NO_HOLE: u16 = 2;
/// The export may be written to by several connections.
pub const CAN_MULTI_CONN: u16 = 1 << 8;
/// The export is read-only.
pub const READ_ONLY: u16 = 1 << 1;

/// Error numbers on the wire.
pub mod error {
    /// Not permitted (read-only).
    pub const PERM: u32 = 1;
    /// I/O error.
    pub const IO: u32 = 5;
    /// Invalid argument.
    pub const INVAL: u32 = 22;
    /// Beyond the end.
    pub const NOSPC: u32 = 28;
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Op {
    /// So many bytes from there.
    Read(u64, u32),
    /// These bytes to there, with flags.
    Write(u64, Vec<u8>, u16),
    /// Zeroes, with flags.
    Zero(u64, u32, u16),
    /// Discard.
    Trim(u64, u32),
    /// Make everything acknowledged durable.
    Flush,
    /// Fetch into a cache.
    Cache(u64, u32),
}

/// A request that was answered.
#[derive(Debug)]
pub struct Done {
    /// Which one.
    pub cookie: u64,
    /// 0, or the error number on the wire.
    pub error: u32,
    /// The bytes of a read.
    pub data: Vec<u8>,
}

/// One connection to the default export.
pub struct Nbd {
    stream: UnixStream,
    /// The export's size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    cookie: u64,
    reads: HashMap<u64, usize>,
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD server's {what} is not what the protocol says"))
}

fn wire_error(number: u32) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(number).unwrap_or(5))
}

impl Nbd {
    /// Connects, and opens the default export.
    ///
    /// # Errors
    /// What the operating system says, or `InvalidData` for a server that breaks the protocol.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
            return Err(strange("greeting"));
        }
        stream.write_all(&3u32.to_be_bytes())?;
        let mut go = Vec::new();
        go.extend(OPTION_MAGIC.to_be_bytes());
        go.extend(OPTION_GO.to_be_bytes());
        go.extend(6u32.to_be_bytes());
        go.extend([0; 6]);
        stream.write_all(&go)?;
        let mut export = None;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let (magic, kind, length) = (be64(&head, 0), be32(&head, 12), be32(&head, 16));
            if magic != REPLY_MAGIC || length > 4096 {
                return Err(strange("option reply"));
            }
            let mut body = vec![0; length as usize];
            stream.read_exact(&mut body)?;
            match kind {
                1 => break,
                3 if body.len() >= 12 && body.starts_with(&[0, 0]) => export = Some((be64(&body, 2), be16(&body, 10))),
                3 => {}
                _ => return Err(strange("answer to GO")),
            }
        }
        let (size, flags) = export.ok_or_else(|| strange("export information"))?;
        Ok(Self { stream, size, flags, cookie: 0, reads: HashMap::new() })
    }

    /// How long to wait for an answer, or until a request is taken.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn set_patience(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        self.stream.set_write_timeout(Some(limit))
    }

    /// Sends a request, and returns its cookie. Not more than some 100 KiB of answers may be outstanding: nobody reads
    /// meanwhile.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn submit(&mut self, op: &Op) -> io::Result<u64> {
        let empty: &[u8] = &[];
        let (kind, flags, offset, length, payload) = match op {
            Op::Read(offset, length) => (0u16, 0u16, *offset, *length, empty),
            Op::Write(offset, data, flags) => (1, *flags, *offset, u32::try_from(data.len()).unwrap(), data.as_slice()),
            Op::Flush => (3, 0, 0, 0, empty),
            Op::Trim(offset, length) => (4, 0, *offset, *length, empty),
            Op::Cache(offset, length) => (5, 0, *offset, *length, empty),
            Op::Zero(offset, length, flags) => (6, *flags, *offset, *length, empty),
        };
        self.cookie += 1;
        let mut head = Vec::with_capacity(28);
        head.extend(REQUEST_MAGIC.to_be_bytes());
        head.extend(flags.to_be_bytes());
        head.extend(kind.to_be_bytes());
        head.extend(self.cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        head.extend(length.to_be_bytes());
        self.stream.write_all(&head)?;
        self.stream.write_all(payload)?;
        if let Op::Read(_, length) = op {
            self.reads.insert(self.cookie, *length as usize);
        }
        Ok(self.cookie)
    }

    /// The next answer, whichever request it is for.
    ///
    /// # Errors
    /// The connection is broken, or the answer is no answer.
    pub fn complete(&mut self) -> io::Result<Done> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        if be32(&head, 0) != SIMPLE_REPLY_MAGIC {
            return Err(strange("reply"));
        }
        let (error, cookie) = (be32(&head, 4), be64(&head, 8));
        if cookie == 0 || cookie > self.cookie {
            return Err(strange("cookie"));
        }
        let length = self.reads.remove(&cookie).filter(|_| error == 0).unwrap_or(0);
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(Done { cookie, error, data })
    }

    /// True once an answer has begun to arrive; false if none has within `limit`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn answered_within(&self, limit: Duration) -> io::Result<bool> {
        let mut set = [PollFd::new(&self.stream, PollFlags::IN)];
        let limit = Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: limit.subsec_nanos().into() };
        match rustix::event::poll(&mut set, Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// One request, alone on this connection: the number of its error (0 for none) and the bytes read.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn call(&mut self, op: &Op) -> io::Result<Done> {
        let cookie = self.submit(op)?;
        let done = self.complete()?;
        if done.cookie == cookie { Ok(done) } else { Err(strange("cookie")) }
    }

    fn call_ok(&mut self, op: &Op) -> io::Result<Vec<u8>> {
        let done = self.call(op)?;
        if done.error == 0 { Ok(done.data) } else { Err(wire_error(done.error)) }
    }

    /// Reads.
    ///
    /// # Errors
    /// The server's error, or a broken connection.
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.call_ok(&Op::Read(offset, length))
    }

    /// Writes.
    ///
    /// # Errors
    /// The server's error, or a broken connection.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call_ok(&Op::Write(offset, data.to_vec(), 0)).map(drop)
    }

    /// Makes everything acknowledged durable.
    ///
    /// # Errors
    /// The server's error, or a broken connection.
    pub fn flush(&mut self) -> io::Result<()> {
        self.call_ok(&Op::Flush).map(drop)
    }

    /// The whole export, read in parts of 1 MiB.
    ///
    /// # Errors
    /// The server's error, or a broken connection.
    pub fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::with_capacity(usize::try_from(self.size).unwrap_or_default());
        while (all.len() as u64) < self.size {
            let left = self.size - all.len() as u64;
            all.extend(self.read(all.len() as u64, left.min(1 << 20) as u32)?);
        }
        Ok(all)
    }

    /// Sends bytes that are no request.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send_garbage(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says goodbye; true if the server then closes without another byte.
    ///
    /// # Errors
    /// The connection is broken already.
    pub fn disconnect(mut self) -> io::Result<bool> {
        let mut head = Vec::with_capacity(28);
        head.extend(REQUEST_MAGIC.to_be_bytes());
        head.extend([0, 0, 0, 2]);
        head.extend([0; 20]);
        self.stream.write_all(&head)?;
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest.is_empty())
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}
