//! Requests on their way in: everything that one receive brought is taken before the next one.

use std::{fmt, io};

use sublet_doors::{Buffer, ConnReader};
use sublet_types::limits::{LONG_PAYLOAD_MIN, REQUEST_SIZE_MAX};
use sublet_wire::checksum::table_size;
use sublet_wire::{FRAME_SIZE, Malformed, RequestFrame};

use crate::limits::HANDSHAKE_BUFFER_SIZE;

/// A rest of a request that is moved to the front of the buffer, so that the next receive has all of the buffer.
const SMALL_REST: usize = 4096;

/// What comes before a long payload: a header, and the checksums of the largest WRITE.
const SIP: usize = FRAME_SIZE + table_size(REQUEST_SIZE_MAX as usize);

/// Why no further request comes.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer closed the connection between two requests.
    Closed,
    /// The connection broke.
    Broken(io::Error),
    /// The bytes are no frame.
    Malformed(Malformed),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Closed => write!(f, "closed"),
            End::Broken(error) => write!(f, "{error}"),
            End::Malformed(malformed) => write!(f, "{malformed}"),
        }
    }
}

/// The receiving half of a connection with its buffer.
pub(crate) struct Receiver<R> {
    reader: R,
    /// Taken out while a receive owns it.
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    /// The last payload was a long one: the next receive takes no more than comes before such a payload, so that its bytes go right
    /// to their place.
    sips: bool,
}

impl<R: ConnReader> Receiver<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, buffer: Some(Buffer::new(HANDSHAKE_BUFFER_SIZE)), start: 0, end: 0, sips: false }
    }

    /// Exchanges the buffer for one of `size` bytes; what was received stays.
    pub(crate) fn grow(&mut self, size: usize) {
        let mut fresh = Buffer::new(size.max(self.end - self.start));
        let held = self.held();
        if let Some(place) = fresh.get_mut(..held.len()) {
            place.copy_from_slice(held);
        }
        self.end -= self.start;
        self.start = 0;
        self.buffer = Some(fresh);
    }

    fn held(&self) -> &[u8] {
        self.buffer.as_deref().and_then(|bytes| bytes.get(self.start..self.end)).unwrap_or(&[])
    }

    /// Receives until `n` bytes are held. A buffer that is too small is replaced by a larger one.
    async fn hold(&mut self, n: usize) -> Result<(), End> {
        let capacity = self.buffer.as_ref().map_or(0, |bytes| bytes.len());
        if self.end - self.start < n && n > capacity {
            self.grow(n);
        }
        while self.end - self.start < n {
            let Some(mut buffer) = self.buffer.take() else { return Err(End::Broken(io::ErrorKind::NotConnected.into())) };
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.start + n > buffer.len() || (self.start > 0 && self.end - self.start <= SMALL_REST) {
                buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let limit = if std::mem::take(&mut self.sips) { (self.end + n.max(SIP)).min(buffer.len()) } else { buffer.len() };
            let range = self.end..limit;
            let (result, buffer) = self.reader.read(buffer, range).await;
            self.buffer = Some(buffer);
            match result {
                Ok(0) if self.start == self.end => return Err(End::Closed),
                Ok(0) => return Err(End::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(received) => self.end += received,
                Err(error) => return Err(End::Broken(error)),
            }
        }
        Ok(())
    }

    /// The next header.
    pub(crate) async fn frame(&mut self) -> Result<RequestFrame, End> {
        self.hold(FRAME_SIZE).await?;
        let header: Option<[u8; FRAME_SIZE]> = self.held().get(..FRAME_SIZE).and_then(|bytes| bytes.try_into().ok());
        self.start += FRAME_SIZE;
        RequestFrame::decode(&header.unwrap_or([0; FRAME_SIZE])).map_err(End::Malformed)
    }

    /// The next `n` bytes, for small payloads.
    pub(crate) async fn bytes(&mut self, n: usize) -> Result<Vec<u8>, End> {
        self.hold(n).await?;
        let bytes = self.held().get(..n).unwrap_or(&[]).to_vec();
        self.start += n;
        Ok(bytes)
    }

    /// The next `n` bytes in an aligned buffer of their own: what is held is copied, the rest is received right into it.
    pub(crate) async fn data(&mut self, n: usize) -> Result<Buffer, End> {
        self.sips = n >= LONG_PAYLOAD_MIN;
        let mut data = Buffer::new(n);
        let held = self.held();
        let here = held.len().min(n);
        if let (Some(place), Some(bytes)) = (data.get_mut(..here), held.get(..here)) {
            place.copy_from_slice(bytes);
        }
        self.start += here;
        if here == n {
            return Ok(data);
        }
        let (result, data) = self.reader.read_exact(data, here..n).await;
        result.map(|()| data).map_err(End::Broken)
    }

    /// Passes over the next `n` bytes.
    pub(crate) async fn skip(&mut self, n: usize) -> Result<(), End> {
        self.data(n).await.map(drop)
    }
}
