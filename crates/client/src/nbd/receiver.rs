//! The receiving side of a connection: many small requests out of one receive call, large payloads without a detour.

use std::io;

use sublet_doors::{Buffer, ConnReader};
use sublet_types::limits::LONG_PAYLOAD_MIN;

use super::request::REQUEST_SIZE;

/// What one receive call takes at most: a full queue of 4 KiB writes, as `fio` and kernels keep them in flight.
const RECEIVE_SIZE: usize = 256 << 10;

/// A buffered reader.
pub(super) struct Receiver<R> {
    reader: R,
    /// Absent only while a receive call owns it; a cancelled call takes it along, and the connection is given up then.
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    /// The last payload was a long one: the next receive takes no more than a header, so that the bytes of the next payload go
    /// right to their place.
    sips: bool,
}

impl<R: ConnReader> Receiver<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: Some(Buffer::new(RECEIVE_SIZE)), start: 0, end: 0, sips: false }
    }

    fn buffered(&self) -> &[u8] {
        self.buffer.as_deref().and_then(|buffer| buffer.get(self.start..self.end)).unwrap_or_default()
    }

    /// Receives at least one byte more; `false` at the end of the stream.
    async fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = self.buffer.take().ok_or(io::ErrorKind::BrokenPipe)?;
        if self.start > 0 {
            // What is left is less than one header, except in the handshake.
            buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let sips = std::mem::take(&mut self.sips);
        let range = self.end..if sips { (self.end + REQUEST_SIZE).min(buffer.len()) } else { buffer.len() };
        let (result, buffer) = self.reader.read(buffer, range).await;
        self.buffer = Some(buffer);
        let received = result?;
        self.end += received;
        Ok(received > 0)
    }

    /// The next `N` bytes; `None` if the stream ended before the first of them.
    pub(super) async fn header<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        loop {
            if let Some(bytes) = self.buffered().first_chunk::<N>().copied() {
                self.start += N;
                return Ok(Some(bytes));
            }
            if !self.fill().await? {
                return if self.buffered().is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The next `length` bytes in a buffer of their own (W3: private from here on).
    pub(super) async fn payload(&mut self, length: usize) -> io::Result<Buffer> {
        self.sips = length >= LONG_PAYLOAD_MIN;
        let mut payload = Buffer::new(length);
        let have = self.buffered().len().min(length);
        if let (Some(to), Some(from)) = (payload.get_mut(..have), self.buffered().get(..have)) {
            to.copy_from_slice(from);
        }
        self.start += have;
        if have < length {
            let (result, back) = self.reader.read_exact(payload, have..length).await;
            result?;
            payload = back;
        }
        Ok(payload)
    }

    /// Drops the next `length` bytes.
    pub(super) async fn skip(&mut self, mut length: usize) -> io::Result<()> {
        loop {
            let have = self.buffered().len().min(length);
            self.start += have;
            length -= have;
            if length == 0 {
                return Ok(());
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
