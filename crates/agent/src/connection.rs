//! One connection of a borrower: after the handshake, the requests of one session with one slice.

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use sublet_doors::local::{Permit, Semaphore};
use sublet_doors::{Conn, ConnReader, ConnWriter, Doors};
use sublet_types::drawn::{self, Drawn};
use sublet_types::limits::{BLOCK_SIZE, BURST, REQUEST_SIZE_MAX, SESSION_BYTES_MAX, SESSION_DEPTH_MAX};
use sublet_wire::checksum::table_size;
use sublet_wire::message::{
    CONTROL_PAYLOAD_MAX, Clear, Close, Cool, MapRequest, Message, Search, Seed, SetState, VERIFY_SIZE_MAX,
};
use sublet_wire::{FRAME_SIZE, Op, ReplyFrame, RequestFrame, Status};

use crate::agent::{Agent, Served};
use crate::gate::{Closing, Gate, Session};
use crate::handshake::{answer_open, handshake, no_frame};
use crate::limits::{ARRIVALS_MAX, CONNECTIONS_MAX, RECEIVE_BUFFER_SIZE};
use crate::outbox::{Outbox, Reply};
use crate::receive::{End, Receiver};
use crate::request::{Body, Failure, Work};

/// The largest payload of a WRITE: checksums and blocks.
const WRITE_PAYLOAD_MAX: usize = REQUEST_SIZE_MAX as usize + table_size(REQUEST_SIZE_MAX as usize);

/// What the requests of a session share.
pub(crate) struct Shared<D: Doors> {
    pub(crate) doors: D,
    pub(crate) served: Rc<Served<D>>,
    pub(crate) gate: Rc<Gate>,
    pub(crate) session: Rc<Session>,
    pub(crate) outbox: Outbox,
    depth: Semaphore,
    bytes: Semaphore,
}

impl<D: Doors> Shared<D> {
    pub(crate) fn new(doors: D, served: Rc<Served<D>>, gate: Rc<Gate>, session: Rc<Session>) -> Rc<Self> {
        let depth = Semaphore::new(drawn::limit(Drawn::SessionDepth, SESSION_DEPTH_MAX as u64));
        let bytes = Semaphore::new(drawn::limit(Drawn::SessionBytes, SESSION_BYTES_MAX));
        Rc::new(Self { doors, served, gate, session, outbox: Outbox::default(), depth, bytes })
    }

    /// Waits until the session has room for one more request with so many bytes of data: whoever sends more than the
    /// bounds, or does not read its replies, is not read from.
    async fn admit(&self, bytes: u64) -> Vec<Permit> {
        let depth = self.depth.acquire(1).await;
        if bytes == 0 {
            return vec![depth];
        }
        vec![depth, self.bytes.acquire(bytes).await]
    }

    fn refuse(&self, frame: &RequestFrame, failure: &Failure) {
        self.outbox.push(Reply {
            head: reply_head(frame, failure.status, 0, failure.text.as_bytes()),
            data: None,
            permits: Vec::new(),
        });
    }
}

/// A reply's header with a small payload behind it.
pub(crate) fn reply_head(frame: &RequestFrame, status: Status, result: u32, payload: &[u8]) -> Vec<u8> {
    let payload = payload.get(..CONTROL_PAYLOAD_MAX).unwrap_or(payload);
    let reply = ReplyFrame { result, ..frame.reply(status, payload.len() as u32) };
    let mut head = Vec::with_capacity(FRAME_SIZE + payload.len());
    head.extend_from_slice(&reply.encode());
    head.extend_from_slice(payload);
    head
}

/// Counts a connection while it exists.
struct Counted<'a>(&'a std::cell::Cell<usize>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<D: Doors> Agent<D> {
    /// Serves a connection until it ends; requests that were submitted to the disk have ended when this returns.
    pub async fn serve(&self, conn: D::Conn) {
        let peer = conn.peer();
        if self.connections.get() >= CONNECTIONS_MAX {
            // Said once: otherwise whoever floods the port fills the log as well.
            if !self.full.replace(true) {
                tracing::warn!(%peer, "{CONNECTIONS_MAX} connections are open; this one is closed, and so are more until some end");
            }
            return;
        }
        self.full.set(false);
        self.connections.set(self.connections.get() + 1);
        let _counted = Counted(&self.connections);
        let (reader, mut writer) = conn.split();
        let mut receiver = Receiver::new(reader);
        let asked = {
            let arrived = self.arrivals.enter(&peer, ARRIVALS_MAX);
            let turned_away = pin!(arrived.turned_away());
            match select(pin!(handshake(self, &mut receiver, &mut writer)), turned_away).await {
                Either::Left((asked, _)) => asked,
                Either::Right(((), _)) => Err(End::Broken(std::io::ErrorKind::ConnectionAborted.into())),
            }
        };
        // From here on it has asked for a session: who has no lease is refused at once, and who has one may have to wait (W4).
        let opened = match asked {
            Ok(Some((frame, open))) => answer_open(self, frame, open, &mut writer).await,
            Ok(None) => Ok(None),
            Err(end) => Err(end),
        };
        match opened {
            Ok(Some(shared)) => self.serve_session(&peer, shared, receiver, writer).await,
            Ok(None) => writer.shutdown(),
            Err(end) => {
                if let End::Malformed(malformed) = &end {
                    // A courtesy: the peer may be gone, or no client at all.
                    let _ = writer.write_all(vec![malformed_head(malformed).into()]).await;
                }
                tracing::debug!(%peer, %end, "a connection ended before its session was open");
                writer.shutdown();
            }
        }
    }

    async fn serve_session<R, W>(&self, peer: &str, shared: Rc<Shared<D>>, mut receiver: Receiver<R>, writer: W)
    where
        R: ConnReader,
        W: ConnWriter,
    {
        let session = Rc::clone(&shared.session);
        let (slice, epoch, number) = (session.slice, session.epoch.number, session.number.0);
        tracing::info!(%peer, ?slice, epoch, session = number, "session opened");
        receiver.grow(RECEIVE_BUFFER_SIZE);
        let sender = Rc::clone(&shared);
        self.doors.spawn(async move { sender.outbox.send_all(&sender.doors, writer).await });
        self.doors.spawn(watch(Rc::clone(&shared)));
        let end = receive(&shared, &mut receiver).await;
        if let End::Malformed(malformed) = &end {
            shared.outbox.push(Reply { head: malformed_head(malformed), data: None, permits: Vec::new() });
        }
        // W4: the session stays in the gate until its disk I/O has ended.
        session.quiet().await;
        session.close(Closing::Ended);
        shared.gate.leave(&session);
        shared.outbox.finish();
        tracing::info!(%peer, ?slice, epoch, session = number, %end, closing = ?session.closing(), "session ended");
    }
}

fn malformed_head(malformed: &sublet_wire::Malformed) -> Vec<u8> {
    reply_head(&no_frame(), Status::Malformed, 0, malformed.to_string().as_bytes())
}

/// Tells the client why its session is closed from outside, and ends the connection.
async fn watch<D: Doors>(shared: Rc<Shared<D>>) {
    let (op, status) = match shared.session.closed().await {
        Closing::Ended => return,
        // No notice: the client itself opened the other session.
        Closing::Superseded => {
            shared.outbox.clear();
            return shared.outbox.finish();
        }
        Closing::Fenced => (Op::Fenced, Status::StaleEpoch),
        Closing::Draining => (Op::Draining, Status::Unavailable),
    };
    let session = &shared.session;
    let frame = RequestFrame { op, session: session.number, slice: session.slice, ..no_frame() };
    shared.outbox.clear();
    shared.outbox.push(Reply { head: reply_head(&frame, status, 0, &[]), data: None, permits: Vec::new() });
    shared.outbox.finish();
}

/// Takes requests and starts them, until the connection or the session ends.
async fn receive<D: Doors, R: ConnReader>(shared: &Rc<Shared<D>>, receiver: &mut Receiver<R>) -> End {
    loop {
        let frame = match receiver.frame().await {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        let arrived = shared.doors.now();
        let body = match body(&frame, receiver).await {
            Ok(body) => body,
            Err(Unfit::End(end)) => return end,
            Err(Unfit::Fatal(failure)) => {
                shared.refuse(&frame, &failure);
                return End::Closed;
            }
        };
        if let Body::Close(close) = body {
            end_session(shared, &frame, &close).await;
            return End::Closed;
        }
        let data = match frame.op {
            Op::Read => frame.length.min(REQUEST_SIZE_MAX as u32),
            Op::Verify => frame.length.min(VERIFY_SIZE_MAX as u32),
            _ => frame.payload,
        };
        let permits = shared.admit(data.into()).await;
        let Some(ticket) = shared.session.begin() else { return End::Closed };
        let work = Work { shared: Rc::clone(shared), frame, arrived, permits, ticket };
        shared.doors.spawn(work.run(body));
        if shared.session.is_under_way(BURST) {
            shared.doors.give_way().await;
        }
    }
}

/// CLOSE: everything before it has ended and is durable; a clean one clears the *open* flag.
async fn end_session<D: Doors>(shared: &Rc<Shared<D>>, frame: &RequestFrame, close: &Close) {
    let session = &shared.session;
    if frame.session != session.number || frame.slice != session.slice {
        return shared.refuse(frame, &Failure::wrong_session());
    }
    session.quiet().await;
    let result = async {
        if session.read_only {
            return Ok(());
        }
        shared.served.area.flush().await?;
        if close.clean {
            let _turn = shared.gate.turn().await;
            // Fenced meanwhile: the flag is not this epoch's any more.
            if session.closing().is_none() {
                shared.served.area.close_clean(session.slice, session.epoch).await?;
            }
        }
        Ok::<_, sublet_area::AreaError>(())
    };
    match result.await {
        Ok(()) => shared.outbox.push(Reply { head: reply_head(frame, Status::Ok, 0, &[]), data: None, permits: Vec::new() }),
        Err(error) => shared.refuse(frame, &Failure::from(error)),
    }
}

/// Why a payload was not taken.
enum Unfit {
    /// The connection ended.
    End(End),
    /// The request is answered with this, and the connection ends.
    Fatal(Failure),
}

impl From<End> for Unfit {
    fn from(end: End) -> Self {
        Unfit::End(end)
    }
}

fn malformed<T>(text: &str) -> Result<T, Unfit> {
    Err(Unfit::Fatal(Failure::new(Status::Malformed, text)))
}

fn decoded<M: Message>(bytes: &[u8]) -> Result<M, Unfit> {
    M::decode(bytes).map_err(|e| Unfit::Fatal(Failure::new(Status::Malformed, e.to_string())))
}

/// Receives the payload of a request. Payloads that cannot be passed over cheaply end the connection.
async fn body<R: ConnReader>(frame: &RequestFrame, receiver: &mut Receiver<R>) -> Result<Body, Unfit> {
    let payload = frame.payload as usize;
    let max = if frame.op == Op::Write { WRITE_PAYLOAD_MAX } else { CONTROL_PAYLOAD_MAX };
    if payload > max {
        let text = format!("a payload of {payload} bytes is larger than {max}");
        return Err(Unfit::Fatal(Failure::new(Status::TooMuch, text)));
    }
    match frame.op {
        Op::Write => {
            let length = frame.length as usize;
            if length == 0 || !length.is_multiple_of(BLOCK_SIZE as usize) {
                receiver.skip(payload).await?;
                return Ok(Body::Refused(Failure::new(Status::OutOfRange, "a write has whole blocks of 4096 bytes")));
            }
            let table = table_size(length);
            if payload != table + length {
                return malformed("a write's payload is four bytes per block and the blocks");
            }
            let table = receiver.bytes(table).await?;
            Ok(Body::Blocks { table, data: receiver.data(length).await? })
        }
        Op::Search => Ok(Body::Search(decoded::<Search>(&receiver.bytes(payload).await?)?)),
        Op::SetState => Ok(Body::SetState(decoded::<SetState>(&receiver.bytes(payload).await?)?)),
        Op::Close => Ok(Body::Close(decoded::<Close>(&receiver.bytes(payload).await?)?)),
        Op::Map => Ok(Body::Map(decoded::<MapRequest>(&receiver.bytes(payload).await?)?)),
        Op::Seed => Ok(Body::Seed(decoded::<Seed>(&receiver.bytes(payload).await?)?)),
        Op::Clear => Ok(Body::Clear(decoded::<Clear>(&receiver.bytes(payload).await?)?)),
        Op::Cool => Ok(Body::Cool(decoded::<Cool>(&receiver.bytes(payload).await?)?)),
        Op::Copy => {
            receiver.skip(payload).await?;
            Ok(Body::Refused(Failure::new(Status::Unsupported, "this operation is reserved")))
        }
        Op::Read | Op::WriteZeroes | Op::Flush | Op::Extents | Op::Ping | Op::Verify if payload == 0 => Ok(Body::None),
        Op::Read | Op::WriteZeroes | Op::Flush | Op::Extents | Op::Ping | Op::Verify => {
            malformed("this operation has no payload")
        }
        Op::Hello | Op::Open | Op::Announce => malformed("the session is open already"),
        Op::Fenced | Op::Draining | Op::Resized => malformed("this is a notice of the lender, not a request"),
    }
}
