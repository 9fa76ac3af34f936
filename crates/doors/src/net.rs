//! The `Net` door: byte streams.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use sublet_types::Address;

use crate::buffer::{Buffer, Chunk};

/// Where to listen or connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A TCP port. Names are resolved anew each time; every address that a name has is tried in turn.
    Tcp(Address),
    /// A Unix stream socket. When listening, a dead socket of the same path is replaced, and the file is made 0600.
    Unix(PathBuf),
}

/// Opens and accepts connections.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait Net {
    /// A connection.
    type Conn: Conn;
    /// A listening socket.
    type Listener: Listener<Conn = Self::Conn>;

    /// Connects (TCP without delay).
    ///
    /// # Errors
    /// What the operating system says; `TimedOut` after `limit`.
    async fn connect(&self, to: &Endpoint, limit: Duration) -> io::Result<Self::Conn>;

    /// Listens.
    ///
    /// # Errors
    /// What the operating system says, with the endpoint named.
    async fn listen(&self, at: &Endpoint) -> io::Result<Self::Listener>;
}

/// See [`Net::listen`].
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait Listener: 'static {
    /// A connection.
    type Conn: Conn;

    /// Waits for the next connection.
    ///
    /// # Errors
    /// What the operating system says; the listener stays usable.
    async fn accept(&self) -> io::Result<Self::Conn>;

    /// Where it really listens, for TCP (port 0 asks for a free one).
    fn local_address(&self) -> Option<Address>;
}

/// A byte stream in both directions.
pub trait Conn: 'static {
    /// The receiving half.
    type Reader: ConnReader;
    /// The sending half.
    type Writer: ConnWriter;

    /// The two halves. The connection is closed when both are dropped, or by [`ConnWriter::shutdown`].
    fn split(self) -> (Self::Reader, Self::Writer);

    /// Who is at the other end, for logs; empty for Unix sockets.
    fn peer(&self) -> String;
}

/// The receiving half of a connection.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait ConnReader: 'static {
    /// Receives at least one byte into `buffer[range]`; 0 means that the peer has ended (or that the range is empty).
    ///
    /// # Errors
    /// What the operating system says, with the buffer either way.
    async fn read(&mut self, buffer: Buffer, range: Range<usize>) -> (io::Result<usize>, Buffer);

    /// Receives exactly `buffer[range]`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the peer ends before; else what the operating system says.
    async fn read_exact(&mut self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        let mut at = range.start;
        while at < range.end {
            let (result, back) = self.read(buffer, at..range.end).await;
            buffer = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                Ok(n) => at += n,
                Err(e) => return (Err(e), buffer),
            }
        }
        (Ok(()), buffer)
    }
}

/// The sending half of a connection.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait ConnWriter: 'static {
    /// Sends all chunks in order, in as few system calls as possible.
    ///
    /// # Errors
    /// What the operating system says; how much was sent is unknown then, and the connection is of no more use.
    async fn write_all(&mut self, chunks: Vec<Chunk>) -> io::Result<()>;

    /// Ends both directions; a pending read of the other half ends too.
    fn shutdown(&self);
}
