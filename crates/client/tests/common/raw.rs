//! A raw NBD client: it can also do what no proper one does.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use sublet_client::nbd::protocol::*;

pub struct Raw {
    pub stream: UnixStream,
}

/// A reply: the error number and the data.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

impl Raw {
    /// Connects and takes the greeting.
    pub fn greet(socket: &Path) -> Self {
        let mut raw = Self { stream: UnixStream::connect(socket).unwrap() };
        raw.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let greeting = raw.take(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        raw
    }

    /// Connects and begins transmission with simple replies.
    pub fn connect(socket: &Path) -> Self {
        let mut raw = Self::greet(socket);
        raw.stream.write_all(&3u32.to_be_bytes()).unwrap();
        raw.option(OPT_EXPORT_NAME, b"");
        raw.take(10);
        raw
    }

    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next option reply's kind.
    pub fn option_reply(&mut self) -> u32 {
        let header = self.take(20);
        let length = u32::from_be_bytes(header[16..20].try_into().unwrap());
        self.take(length as usize);
        u32::from_be_bytes(header[12..16].try_into().unwrap())
    }

    pub fn header(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    pub fn send(&mut self, command: u16, cookie: u64, offset: u64, length: u32, payload: &[u8]) {
        let mut bytes = Self::header(command, 0, cookie, offset, length);
        bytes.extend(payload);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next simple reply; `data` says how much follows a success of that cookie.
    pub fn reply(&mut self, data: impl FnOnce(u64) -> usize) -> Reply {
        let header = self.take(16);
        assert_eq!(header[..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(header[8..16].try_into().unwrap());
        let length = if error == 0 { data(cookie) } else { 0 };
        Reply { cookie, error, data: self.take(length) }
    }

    /// True if the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.stream.read(&mut byte), Ok(0) | Err(_))
    }
}
