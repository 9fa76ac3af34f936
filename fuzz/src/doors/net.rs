//! One connection, whose bytes are the input, with what is sent back kept; or a peer that answers what it is asked.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use sublet_doors::local::Signal;
use sublet_doors::{Buffer, Chunk, Conn, ConnReader, ConnWriter, Endpoint, Listener, Net};
use sublet_types::Address;

use super::MemDoors;

/// A peer that is connected to, and answers.
pub trait Peer {
    /// Takes bytes; false if it has closed the connection.
    fn take(&mut self, bytes: &[u8]) -> bool;
    /// What it has to say next; none if it has closed the connection, nothing if there is nothing yet.
    fn say(&mut self, most: usize) -> Option<Vec<u8>>;
}

/// Makes a peer for each connection.
pub type MakePeer = dyn Fn() -> Box<dyn Peer>;

/// The other end of the connection.
#[derive(Default)]
pub struct Port {
    waiting: RefCell<Option<MemConn>>,
    peers: RefCell<Option<Box<MakePeer>>>,
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

/// The receiving half.
pub enum MemReader {
    /// Hands out the input, in parts: a stream keeps no borders.
    Input {
        /// All of it.
        input: Vec<u8>,
        /// What was handed out.
        at: usize,
        /// Length of a part in bytes.
        part: usize,
        /// The writer has ended it.
        shut: Rc<Cell<bool>>,
    },
    /// Hands out what a peer says.
    Peer(Rc<Line>),
}

/// The sending half.
pub enum MemWriter {
    /// Keeps what is sent.
    Input(Sent, Rc<Cell<bool>>),
    /// Gives it to a peer.
    Peer(Rc<Line>),
}

/// A connection with a peer.
pub struct Line {
    peer: RefCell<Box<dyn Peer>>,
    shut: Cell<bool>,
    changed: Signal,
}

impl MemConn {
    /// A peer that sends this, so many bytes at once, and ends.
    pub fn new(input: Vec<u8>, part: usize) -> (Self, Sent) {
        let (sent, shut) = (Sent::default(), Rc::new(Cell::new(false)));
        let reader = MemReader::Input { input, at: 0, part: part.max(1), shut: Rc::clone(&shut) };
        (Self { reader, writer: MemWriter::Input(sent.clone(), shut) }, sent)
    }
}

impl MemDoors {
    /// The one who listens gets this connection.
    pub fn arrive(&self, conn: MemConn) {
        self.0.port.waiting.replace(Some(conn));
    }

    /// Who connects gets such a peer.
    pub fn set_peers(&self, make: Box<MakePeer>) {
        self.0.port.peers.replace(Some(make));
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
        let bytes = match self {
            MemReader::Input { input, at, part, shut } => {
                let rest = input.get(*at..).unwrap_or_default();
                let many = if shut.get() { 0 } else { rest.len().min(range.len()).min(*part) };
                *at += many;
                rest.get(..many).unwrap_or_default().to_vec()
            }
            MemReader::Peer(line) => line.say(range.len()).await,
        };
        if let Some(into) = buffer.get_mut(range.start..range.start + bytes.len()) {
            into.copy_from_slice(&bytes);
        }
        (Ok(bytes.len()), buffer)
    }
}

impl Line {
    /// The next bytes of the peer; nothing at the end.
    async fn say(&self, most: usize) -> Vec<u8> {
        loop {
            let seen = self.changed.version();
            if self.shut.get() {
                return Vec::new();
            }
            let said = self.peer.borrow_mut().say(most);
            match said {
                None => return Vec::new(),
                Some(bytes) if !bytes.is_empty() || most == 0 => return bytes,
                Some(_) => self.changed.changed(seen).await,
            }
        }
    }
}

impl ConnWriter for MemWriter {
    async fn write_all(&mut self, chunks: Vec<Chunk>) -> io::Result<()> {
        sublet_doors::local::yield_once().await;
        let open = match self {
            MemWriter::Input(sent, shut) => {
                sent.0.borrow_mut().extend(chunks);
                !shut.get()
            }
            MemWriter::Peer(line) => {
                let open = !line.shut.get() && line.peer.borrow_mut().take(&Chunk::joined(&chunks));
                line.changed.notify();
                open
            }
        };
        if open { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }
    fn shutdown(&self) {
        match self {
            MemWriter::Input(_, shut) => shut.set(true),
            MemWriter::Peer(line) => {
                line.shut.set(true);
                line.changed.notify();
            }
        }
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
        let peer = self.0.port.peers.borrow().as_ref().map(|make| make());
        let peer = RefCell::new(peer.ok_or(io::ErrorKind::ConnectionRefused)?);
        let line = Rc::new(Line { peer, shut: Cell::new(false), changed: Signal::new() });
        Ok(MemConn { reader: MemReader::Peer(Rc::clone(&line)), writer: MemWriter::Peer(line) })
    }
    async fn listen(&self, _at: &Endpoint) -> io::Result<MemListener> {
        Ok(MemListener(Rc::clone(&self.0.port)))
    }
}
