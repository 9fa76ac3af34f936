//! A small NBD client over a Unix socket, for the demo where there is no block device: fixed newstyle, option GO, simple
//! replies (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

/// One connection; requests one after the other.
pub struct NbdClient {
    stream: UnixStream,
    size: u64,
    cookie: u64,
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD server's {what} is not what the protocol says"))
}

impl NbdClient {
    /// Connects and opens the default export.
    ///
    /// # Errors
    /// What the operating system says, or `InvalidData` for a server that breaks the protocol.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = sublet_link::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
            return Err(strange("greeting"));
        }
        // Fixed newstyle, no zeroes.
        stream.write_all(&3u32.to_be_bytes())?;
        let mut go = Vec::new();
        go.extend(OPTION_MAGIC.to_be_bytes());
        go.extend(OPTION_GO.to_be_bytes());
        go.extend(6u32.to_be_bytes());
        go.extend([0; 6]);
        stream.write_all(&go)?;
        let mut size = None;
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
                REPLY_ACK => break,
                // Information 0 is the export: size and flags.
                REPLY_INFO if body.len() >= 12 && body.starts_with(&[0, 0]) => size = Some(be64(&body, 2)),
                REPLY_INFO => {}
                _ => return Err(strange("answer to GO")),
            }
        }
        let size = size.ok_or_else(|| strange("export information"))?;
        Ok(Self { stream, size, cookie: 0 })
    }

    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn request(&mut self, command: u16, offset: u64, length: u32, payload: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut head = Vec::with_capacity(28);
        head.extend(REQUEST_MAGIC.to_be_bytes());
        head.extend(0u16.to_be_bytes());
        head.extend(command.to_be_bytes());
        head.extend(self.cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        head.extend(length.to_be_bytes());
        self.stream.write_all(&head)?;
        self.stream.write_all(payload)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        if be32(&reply, 0) != SIMPLE_REPLY_MAGIC || be64(&reply, 8) != self.cookie {
            return Err(strange("reply"));
        }
        match be32(&reply, 4) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(5))),
        }
    }

    /// Reads into `buffer` from `offset`.
    ///
    /// # Errors
    /// The server's error, or a broken connection.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u32::try_from(buffer.len()).map_err(|_| strange("read length"))?;
        self.request(0, offset, length, &[])?;
        self.stream.read_exact(buffer)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// The server's error, or a broken connection.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| strange("write length"))?;
        self.request(1, offset, length, data)
    }

    /// Makes everything written durable at the lenders.
    ///
    /// # Errors
    /// The server's error, or a broken connection.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(3, 0, 0, &[])
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}
