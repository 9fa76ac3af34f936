//! One connection, whose bytes are the input. What is sent back is kept.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use sublet_doors::{Buffer, Chunk, Conn, ConnReader, ConnWriter, Endpoint, Listener, Net};
use sublet_types::Address;

use super::MemDoors;

/// The other end of the connection.
#[derive(Default)]
pub struct Port {
    waiting: RefCell<Option<MemConn>>,
}

/// What was sent back.
#[derive(Clone, Default)]
pub struct Sent(Rc<RefCell<Vec<Chunk>>>);

impl Sent {
    /// All of it.
    pub fn take(&self) -> Vec<Chunk> {
        self.0.take()
    }
}

/// See the module.
pub struct MemConn {
    reader: MemReader,
    writer: MemWriter,
}

/// Hands out the input, in parts: a stream keeps no borders.
pub struct MemReader {
    input: Vec<u8>,
    at: usize,
    /// Length of a part in bytes.
    part: usize,
    shut: Rc<Cell<bool>>,
}

/// Keeps what is sent.
pub struct MemWriter {
    sent: Sent,
    shut: Rc<Cell<bool>>,
}

impl MemConn {
    /// A peer that sends this, so many bytes at once, and ends.
    pub fn new(input: Vec<u8>, part: usize) -> (Self, Sent) {
        let (sent, shut) = (Sent::default(), Rc::new(Cell::new(false)));
        let reader = MemReader { input, at: 0, part: part.max(1), shut: Rc::clone(&shut) };
        (Self { reader, writer: MemWriter { sent: sent.clone(), shut } }, sent)
    }
}

impl MemDoors {
    /// The one who listens gets this connection.
    pub fn arrive(&self, conn: MemConn) {
        self.0.port.waiting.replace(Some(conn));
    }

    /// Whether it has got it.
    pub fn has_arrived(&self) -> bool {
        self.0.port.waiting.borrow().is_none()
    }
}

impl Conn for MemConn {
    type Reader = MemReader;
    type Writer = MemWriter;
    fn split(self) -> (MemReader, MemWriter) {
        (self.reader, self.writer)
    }
    fn peer(&self) -> String {
        String::new()
    }
}

impl ConnReader for MemReader {
    async fn read(&mut self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<usize>, Buffer) {
        // As with a real one, others get their turn.
        sublet_doors::local::yield_once().await;
        let rest = self.input.get(self.at..).unwrap_or_default();
        let many = if self.shut.get() { 0 } else { rest.len().min(range.len()).min(self.part) };
        if let (Some(into), Some(from)) = (buffer.get_mut(range.start..range.start + many), rest.get(..many)) {
            into.copy_from_slice(from);
        }
        self.at += many;
        (Ok(many), buffer)
    }
}

impl ConnWriter for MemWriter {
    async fn write_all(&mut self, chunks: Vec<Chunk>) -> io::Result<()> {
        sublet_doors::local::yield_once().await;
        if self.shut.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.sent.0.borrow_mut().extend(chunks);
        Ok(())
    }
    fn shutdown(&self) {
        self.shut.set(true);
    }
}

/// Hands out the one connection.
pub struct MemListener(Rc<Port>);

impl Listener for MemListener {
    type Conn = MemConn;
    async fn accept(&self) -> io::Result<MemConn> {
        let next = self.0.waiting.take();
        match next {
            Some(conn) => Ok(conn),
            None => pending().await,
        }
    }
    fn local_address(&self) -> Option<Address> {
        None
    }
}

impl Net for MemDoors {
    type Conn = MemConn;
    type Listener = MemListener;
    async fn connect(&self, _to: &Endpoint, _limit: Duration) -> io::Result<MemConn> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
    async fn listen(&self, _at: &Endpoint) -> io::Result<MemListener> {
        Ok(MemListener(Rc::clone(&self.0.port)))
    }
}
