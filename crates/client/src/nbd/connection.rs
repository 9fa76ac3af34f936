//! One connection: handshake, then requests served at the same time, replies coalesced.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, join, select};
use sublet_doors::local::{Permit, Semaphore, Signal};
use sublet_doors::{Buffer, Chunk, Conn, ConnReader, ConnWriter, Doors, Tick};
use sublet_types::limits::BURST;

use super::negotiation::{Agreed, Negotiation, Step};
use super::outbox::Outbox;
use super::protocol::{OPTION_LENGTH_MAX, OPTION_MAGIC, OPTION_SKIP_MAX, OPTIONS_MAX};
use super::receiver::Receiver;
use super::request::{self, Command, Failure, REQUEST_SIZE, Request};
use super::server::Shared;
use crate::device::BlockDevice;

/// A client that is silent for so long inside the handshake is not coming back.
const HANDSHAKE_SILENCE_MAX: Duration = Duration::from_secs(60);
/// Bytes in flight of one connection: one request of the largest size, or thousands of small ones.
const CONNECTION_BYTES_MAX: u64 = sublet_types::limits::FRONT_REQUEST_SIZE_MAX;
/// What a request without data counts, so that their number is bounded too.
const REQUEST_BYTES_MIN: u64 = 4096;
/// While others wait for room, a connection that takes no replies for so long is closed.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// What the tasks of one connection share.
pub(super) struct Line {
    outbox: Outbox,
    budget: Semaphore,
    in_flight: Cell<usize>,
    /// No more requests will come.
    ending: Cell<bool>,
    killed: Cell<bool>,
    /// There is something to be sent, or nothing more to come.
    out: Signal,
    /// `killed` is set.
    dying: Signal,
    /// Since when the present send has been waiting for the client to take it.
    sending_since: Cell<Option<Tick>>,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            outbox: Outbox::default(),
            budget: Semaphore::new(CONNECTION_BYTES_MAX),
            in_flight: Cell::new(0),
            ending: Cell::new(false),
            killed: Cell::new(false),
            out: Signal::new(),
            dying: Signal::new(),
            sending_since: Cell::new(None),
        }
    }

    /// Ends the connection now, whatever is in flight.
    pub(super) fn kill(&self) {
        self.killed.set(true);
        self.out.notify();
        self.dying.notify();
    }

    /// True if the client has not taken a reply for too long.
    pub(super) fn is_stalled(&self, now: Tick) -> bool {
        self.sending_since.get().is_some_and(|since| now.since(since) >= STALLED_MAX)
    }

    async fn until_killed(&self) {
        loop {
            let seen = self.dying.version();
            if self.killed.get() {
                return;
            }
            self.dying.changed(seen).await;
        }
    }

    fn answer(&self, header: impl FnOnce(&mut Vec<u8>), data: Vec<Chunk>, permits: impl IntoIterator<Item = Permit>) {
        if !self.killed.get() {
            self.outbox.push(header, data, permits);
            self.out.notify();
        }
    }
}

/// Serves a connection from its first byte to its end.
pub(super) async fn serve<D: Doors, B: BlockDevice>(shared: Rc<Shared<D, B>>, conn: D::Conn, line: Rc<Line>) {
    let (reader, mut writer) = conn.split();
    let mut receiver = Receiver::new(reader);
    let shake = async {
        match select(pin!(handshake(&shared, &mut receiver, &mut writer)), pin!(shared.until_stopping())).await {
            Either::Left((agreed, _)) => agreed,
            Either::Right(((), _)) => Ok(None),
        }
    };
    let agreed = match select(pin!(shake), pin!(line.until_killed())).await {
        Either::Left((agreed, _)) => agreed,
        Either::Right(((), _)) => Ok(None),
    };
    match agreed {
        Ok(Some(agreed)) => {
            let requests = async {
                let read = pin!(read_requests(&shared, &line, &mut receiver, agreed));
                match select(read, pin!(line.until_killed())).await {
                    Either::Left((Err(error), _)) => tracing::debug!(%error, "an NBD client is gone"),
                    Either::Left((Ok(()), _)) | Either::Right(((), _)) => {}
                }
                line.ending.set(true);
                line.out.notify();
            };
            join(requests, send_replies(&shared.doors, &line, &mut writer)).await;
        }
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "an NBD handshake ended"),
    }
    writer.shutdown();
}

fn garbage(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The handshake; `None` if the client ended it.
async fn handshake<D: Doors, B: BlockDevice>(
    shared: &Shared<D, B>,
    receiver: &mut Receiver<impl ConnReader>,
    writer: &mut impl ConnWriter,
) -> io::Result<Option<Agreed>> {
    let patience = HANDSHAKE_SILENCE_MAX;
    let mut negotiation = Negotiation::new(shared.export.clone());
    writer.write_all(vec![Negotiation::greeting().into()]).await?;
    let flags = shared.doors.timeout(patience, receiver.header::<4>()).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let Some(flags) = flags else { return Ok(None) };
    negotiation.client_flags(u32::from_be_bytes(flags)).map_err(|_| garbage("the client has unknown flags"))?;
    for _ in 0..OPTIONS_MAX {
        let next = shared.doors.timeout(patience, read_option(receiver)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let Some((option, data)) = next else { return Ok(None) };
        let step = match data {
            Some(data) => negotiation.option(option, &data),
            None => Step::Answer(Negotiation::too_big(option)),
        };
        let (bytes, result) = match step {
            Step::Answer(bytes) => (bytes, None),
            Step::Transmit(bytes, agreed) => (bytes, Some(Some(agreed))),
            Step::End(bytes) => (bytes, Some(None)),
        };
        if !bytes.is_empty() {
            let sent = writer.write_all(vec![bytes.into()]);
            shared.doors.timeout(patience, sent).await.map_err(|_| io::ErrorKind::TimedOut)??;
        }
        if let Some(result) = result {
            return Ok(result);
        }
    }
    Err(garbage("the client negotiates without end"))
}

/// The next option and its data; no data if that was too long and was skipped.
async fn read_option(receiver: &mut Receiver<impl ConnReader>) -> io::Result<Option<(u32, Option<Buffer>)>> {
    let Some(header) = receiver.header::<16>().await? else { return Ok(None) };
    let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = header;
    if u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]) != OPTION_MAGIC {
        return Err(garbage("an option does not begin with IHAVEOPT"));
    }
    let option = u32::from_be_bytes([o0, o1, o2, o3]);
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    if length > OPTION_SKIP_MAX {
        return Err(garbage("an option is absurdly long"));
    }
    if length > OPTION_LENGTH_MAX {
        receiver.skip(length).await?;
        return Ok(Some((option, None)));
    }
    Ok(Some((option, Some(receiver.payload(length).await?))))
}

/// Takes requests until the client disconnects or the server stops.
async fn read_requests<D: Doors, B: BlockDevice>(
    shared: &Rc<Shared<D, B>>,
    line: &Rc<Line>,
    receiver: &mut Receiver<impl ConnReader>,
    agreed: Agreed,
) -> io::Result<()> {
    let mut stopping = pin!(shared.until_stopping());
    loop {
        if line.in_flight.get() == BURST {
            shared.doors.give_way().await;
        }
        let next = match select(pin!(receiver.header::<REQUEST_SIZE>()), &mut stopping).await {
            Either::Left((next, _)) => next?,
            Either::Right(((), _)) => return Ok(()),
        };
        let Some(header) = next else { return Ok(()) };
        let request = Request::read(&header).map_err(|_| garbage("a request does not begin with its magic number"))?;
        let command = match request.check(&shared.export, agreed) {
            Ok(Command::Disconnect) => return Ok(()),
            Ok(command) => command,
            Err(failure) => {
                receiver.skip(request.payload() as usize).await?;
                // A client that only sends wrong requests must take the answers too.
                let permit = line.budget.acquire(REQUEST_BYTES_MIN).await;
                line.answer(|out| request::reply_failure(out, &request, agreed, &failure), Vec::new(), [permit]);
                continue;
            }
        };
        // What is held, not what was asked for.
        let carries = matches!(command, Command::Read | Command::Write { .. });
        let data = if carries { Buffer::held_by(request.length as usize) as u64 } else { 0 };
        let permits = reserve(shared, line, data).await;
        let payload = match command {
            Command::Write { .. } => Some(receiver.payload(request.length as usize).await?.freeze()),
            _ => None,
        };
        line.in_flight.set(line.in_flight.get() + 1);
        let (shared, own_line) = (Rc::clone(shared), Rc::clone(line));
        let doors = shared.doors.clone();
        doors.spawn(async move {
            execute(&*shared.device, &own_line, request, command, agreed, payload, permits).await;
            own_line.in_flight.set(own_line.in_flight.get() - 1);
            if own_line.ending.get() {
                own_line.out.notify();
            }
        });
    }
}

/// Waits for room, first in the connection's share, then in the server's.
async fn reserve<D: Doors, B: BlockDevice>(shared: &Shared<D, B>, line: &Line, bytes: u64) -> [Permit; 2] {
    let bytes = bytes.max(REQUEST_BYTES_MIN);
    let own = line.budget.acquire(bytes).await;
    if let Some(common) = shared.budget.try_acquire(bytes) {
        return [own, common];
    }
    let mut waiting = pin!(shared.budget.acquire(bytes));
    loop {
        match shared.doors.timeout(STALLED_MAX, &mut waiting).await {
            Ok(common) => return [own, common],
            Err(_) => shared.end_stalled(),
        }
    }
}

/// Carries out one request and puts its answer into the outbox.
async fn execute<B: BlockDevice>(
    device: &B,
    line: &Line,
    request: Request,
    command: Command,
    agreed: Agreed,
    payload: Option<Chunk>,
    permits: [Permit; 2],
) {
    let (offset, length) = (request.offset, u64::from(request.length));
    let result = match command {
        Command::Read => match device.read(offset, length).await {
            Ok(data) => return line.answer(|out| request::reply_read(out, &request, agreed), data, permits),
            Err(error) => Err(error),
        },
        Command::Write { fua } => match payload.filter(|data| !data.is_empty()) {
            Some(data) => device.write(offset, data, fua).await,
            None => Ok(()),
        },
        Command::Zero(_) if length == 0 => Ok(()),
        Command::Zero(flags) => device.write_zeroes(offset, length, flags).await,
        Command::Flush => device.flush().await,
        Command::Cache | Command::Disconnect => Ok(()),
        Command::BlockStatus { one } => match Box::pin(device.extents(offset, length)).await {
            Ok(extents) => {
                return line.answer(|out| request::reply_block_status(out, &request, one, &extents), Vec::new(), permits);
            }
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => line.answer(|out| request::reply_done(out, &request), Vec::new(), permits),
        Err(error) => {
            let failure = Failure::from(error);
            line.answer(|out| request::reply_failure(out, &request, agreed, &failure), Vec::new(), permits);
        }
    }
}

/// Sends replies until there are no more to come.
async fn send_replies<D: Doors>(doors: &D, line: &Line, writer: &mut impl ConnWriter) {
    loop {
        let seen = line.out.version();
        if line.killed.get() {
            break;
        }
        let Some(batch) = line.outbox.take() else {
            if line.ending.get() && line.in_flight.get() == 0 {
                break;
            }
            line.out.changed(seen).await;
            continue;
        };
        line.sending_since.set(Some(doors.now()));
        match select(pin!(writer.write_all(batch.chunks)), pin!(line.until_killed())).await {
            Either::Left((Err(error), _)) => {
                tracing::debug!(%error, "an NBD client takes no replies any more");
                line.kill();
            }
            Either::Left((Ok(()), _)) | Either::Right(((), _)) => {}
        }
        line.sending_since.set(None);
        drop(batch.permits);
    }
    // Answers of requests that are still in flight have nobody to go to.
    line.kill();
    drop(line.outbox.take());
}
