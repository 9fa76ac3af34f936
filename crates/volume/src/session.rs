//! One session: one connection to one lender, for one slice.
//!
//! Requests are pipelined and matched with their replies by cookie; a reply must repeat its request in full (operation, slice,
//! session, offset, length), or the connection ends: a lender that lies loses nothing but its connection. Nothing is ever sent
//! twice in a session (W4): a request whose session is lost is given back to its caller as [`SessionError::Lost`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use sublet_doors::local::{Permit, Semaphore, Signal};
use sublet_doors::{Chunk, Conn, ConnWriter, Doors, Gather, Tick};
use sublet_types::limits::{BLOCK_SIZE, SESSION_BYTES_MAX, SESSION_DEPTH_MAX};
use sublet_types::mutation::{self, Mutation};
use sublet_types::{SessionNumber, SliceId};
use sublet_wire::checksum::{first_mismatch, table_size};
use sublet_wire::frame::READ_COMPUTED;
use sublet_wire::message::{CONTROL_PAYLOAD_MAX, Close, DiskIdentity, Message, OpenMode, OpenReply, SetState};
use sublet_wire::{Flags, Op, RequestFrame, Status};

use crate::change::Change;
use crate::read::Blocks;

mod receive;

/// One block, in bytes of memory.
const BLOCK: usize = BLOCK_SIZE as usize;
/// Room in the lender's bound that requests leave to the watchdog's PINGs.
const PING_ROOM: u64 = 2;

/// A lender is slow if it takes so many times as long as another one, ...
const SLOW_FACTOR: u64 = 4;
/// ... and so many nanoseconds more: below that, nobody notices.
const SLOW_MIN: u64 = 500_000;
/// One that has kept a READ for so many times as long as the other takes, and so many nanoseconds, gets no more until it answers:
/// should it hang, few are lost to it, and otherwise little.
const WAIT_FACTOR: u64 = 2;
const WAIT_MIN: u64 = 100_000;

/// Why a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The connection broke or the lender broke the protocol.
    Lost(String),
    /// A request has been unanswered for too long; since when.
    Hung(String, Tick),
    /// The lender knows a newer epoch (F4).
    Fenced(String),
    /// This side does not want it any more.
    Unwanted,
}

/// A request had no success.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SessionError {
    /// The session has ended; whether the request was carried out is not known. It may be sent again in a new session.
    Lost,
    /// The lender refused it.
    Refused(Status, String),
}

/// What a reply's payload may be if its status is `Ok`, in bytes.
#[derive(Clone, Copy)]
enum Expect {
    Exactly(usize),
    AtMost(usize),
}

/// What a reply brought.
struct Reply {
    /// Its payload, or the beginning of it.
    payload: Chunk,
    /// The blocks of a long READ, which came right into a buffer of their own.
    blocks: Option<Chunk>,
    /// The operation's own result.
    result: u32,
}

struct Pending {
    frame: RequestFrame,
    expect: Expect,
    reply: oneshot::Sender<Result<Reply, SessionError>>,
    sent: Tick,
    /// Room in the session's bounds; given back with the reply, not earlier: a caller that went away frees nothing.
    _permits: Option<(Permit, Permit)>,
}

#[derive(Default)]
struct Flow {
    /// In the order in which they were sent: the end of a session tells them in this order too.
    pending: BTreeMap<u64, Pending>,
    next_cookie: u64,
    outbox: Gather,
    end: Option<End>,
}

/// See the module.
pub(crate) struct Session<D: Doors> {
    doors: D,
    slice: SliceId,
    number: SessionNumber,
    mode: OpenMode,
    flow: RefCell<Flow>,
    out: Signal,
    ended: Signal,
    depth: Semaphore,
    /// The part of `depth` that this lender does not allow.
    withheld: RefCell<Option<Permit>>,
    bytes: Semaphore,
    heard: Cell<Tick>,
    data_replied: Cell<Tick>,
    /// The watchdog sleeps until the next request.
    dozing: Cell<bool>,
    /// The last reply was that of a long READ.
    sips: Cell<bool>,
    awake: Signal,
    /// When the last short READ was answered, and how many nanoseconds one takes; 0 as long as none was.
    pace: Cell<(Tick, u64)>,
    opened: RefCell<Option<OpenReply>>,
}

/// How long a session has been silent (see [`Session::silence`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Silence {
    /// Nothing at all has arrived for so long, although a request waits.
    pub(crate) all: Duration,
    /// No reply to a data request has arrived for so long, although one waits.
    pub(crate) data: Duration,
    /// The oldest data request has waited for so long.
    pub(crate) oldest: Duration,
    /// Nothing at all has arrived for so long, whether or not a request waits.
    pub(crate) quiet: Duration,
    /// A PING is on its way.
    pub(crate) pinging: bool,
}

fn is_data(op: Op) -> bool {
    !matches!(op, Op::Hello | Op::Open | Op::Ping)
}

impl<D: Doors> Session<D> {
    /// Takes over a connection; HELLO and OPEN are still to be said ([`crate::connect`]).
    pub(crate) fn start(
        doors: &D,
        conn: <D as sublet_doors::Net>::Conn,
        slice: SliceId,
        number: SessionNumber,
        mode: OpenMode,
    ) -> Rc<Self> {
        let (reader, writer) = conn.split();
        let now = doors.now();
        let session = Rc::new(Self {
            doors: doors.clone(),
            slice,
            number,
            mode,
            flow: RefCell::default(),
            out: Signal::new(),
            ended: Signal::new(),
            depth: Semaphore::new(SESSION_DEPTH_MAX as u64 - PING_ROOM),
            withheld: RefCell::new(None),
            bytes: Semaphore::new(SESSION_BYTES_MAX),
            heard: Cell::new(now),
            data_replied: Cell::new(now),
            dozing: Cell::new(false),
            sips: Cell::new(false),
            awake: Signal::new(),
            pace: Cell::new((now, 0)),
            opened: RefCell::new(None),
        });
        doors.spawn(Rc::clone(&session).receive(reader));
        doors.spawn(Rc::clone(&session).send(writer));
        session
    }

    /// As what the leg was opened.
    pub(crate) fn mode(&self) -> OpenMode {
        self.mode
    }

    /// What the lender answered to OPEN.
    pub(crate) fn opened(&self) -> Option<OpenReply> {
        self.opened.borrow().clone()
    }

    /// Keeps to a smaller bound of requests in flight.
    pub(crate) fn limit_depth(&self, depth_max: u32) {
        let excess = (SESSION_DEPTH_MAX as u64).saturating_sub(depth_max.into()).min(SESSION_DEPTH_MAX as u64 - PING_ROOM - 1);
        *self.withheld.borrow_mut() = self.depth.try_acquire(excess);
    }

    pub(crate) fn set_opened(&self, reply: OpenReply) {
        *self.opened.borrow_mut() = Some(reply);
    }

    /// Requests in flight.
    pub(crate) fn load(&self) -> usize {
        self.flow.borrow().pending.len()
    }

    /// How many nanoseconds a READ takes, once one was answered: what was measured, or what the oldest one has waited already.
    pub(crate) fn pace(&self, now: Tick) -> Option<u64> {
        let measured = Some(self.pace.get().1).filter(|pace| *pace > 0)?;
        Some(measured.max(self.read_waits(now).unwrap_or(0)))
    }

    /// True if READs take much longer here than `least` nanoseconds, in which another lender answers one. What was measured counts
    /// half as much after each second without a measurement, so that a slow lender is asked again: by one READ, until that is
    /// answered.
    pub(crate) fn is_slow(&self, least: u64, now: Tick) -> bool {
        let limit = least.saturating_mul(SLOW_FACTOR).saturating_add(SLOW_MIN);
        let (measured, pace) = self.pace.get();
        let halvings = u32::try_from(now.since(measured).as_secs()).unwrap_or(u32::MAX);
        match self.read_waits(now) {
            Some(waits) => pace > limit || waits > least.saturating_mul(WAIT_FACTOR).saturating_add(WAIT_MIN),
            None => pace.checked_shr(halvings).unwrap_or(0) > limit,
        }
    }

    /// How many nanoseconds the oldest READ in flight has waited.
    fn read_waits(&self, now: Tick) -> Option<u64> {
        let flow = self.flow.borrow();
        let oldest = flow.pending.values().find(|pending| pending.frame.op == Op::Read)?;
        Some(u64::try_from(now.since(oldest.sent).as_nanos()).unwrap_or(u64::MAX))
    }

    /// A short READ took so long. One that took longer than the others is believed slowly, one that was faster at once: now and
    /// then something takes long anywhere.
    fn note_pace(&self, now: Tick, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let before = self.pace.get().1;
        let pace = if before == 0 || took < before { took } else { before - before / 16 + took / 16 };
        self.pace.set((now, pace));
    }

    /// True once it has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.flow.borrow().end.is_some()
    }

    /// What the lender said, if it has ended because of a newer epoch (F4).
    pub(crate) fn fenced(&self) -> Option<String> {
        match &self.flow.borrow().end {
            Some(End::Fenced(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// Waits for the end.
    pub(crate) async fn end(&self) -> End {
        loop {
            let seen = self.ended.version();
            if let Some(end) = &self.flow.borrow().end {
                return end.clone();
            }
            self.ended.changed(seen).await;
        }
    }

    /// Waits until something is asked of the lender.
    pub(crate) async fn stirred(&self) {
        let seen = self.awake.version();
        self.dozing.set(true);
        self.awake.changed(seen).await;
    }

    /// Ends the session; every request in flight is lost. The first reason counts.
    pub(crate) fn kill(&self, end: End) {
        let mut flow = self.flow.borrow_mut();
        if flow.end.is_some() {
            return;
        }
        tracing::debug!(slice = %self.slice, session = self.number.0, ?end, "session ends");
        flow.end = Some(end);
        let pending = std::mem::take(&mut flow.pending);
        flow.outbox.clear();
        drop(flow);
        drop(pending);
        self.out.notify();
        self.ended.notify();
    }

    /// How silent the lender is, for the watchdog.
    pub(crate) fn silence(&self, now: Tick) -> Silence {
        let flow = self.flow.borrow();
        let oldest = flow.pending.values().map(|p| p.sent).min();
        let oldest_data = flow.pending.values().filter(|p| is_data(p.frame.op)).map(|p| p.sent).min();
        Silence {
            all: oldest.map_or(Duration::ZERO, |sent| now.since(sent.max(self.heard.get()))),
            data: oldest_data.map_or(Duration::ZERO, |sent| now.since(sent.max(self.data_replied.get()))),
            oldest: oldest_data.map_or(Duration::ZERO, |sent| now.since(sent)),
            quiet: now.since(self.heard.get()),
            pinging: flow.pending.values().any(|p| p.frame.op == Op::Ping),
        }
    }

    async fn send(self: Rc<Self>, mut writer: <<D as sublet_doors::Net>::Conn as Conn>::Writer) {
        loop {
            let seen = self.out.version();
            if self.is_dead() {
                break;
            }
            let batch = self.flow.borrow_mut().outbox.take();
            if batch.is_empty() {
                self.out.changed(seen).await;
                continue;
            }
            let result = {
                let sending = pin!(writer.write_all(batch));
                let ended = pin!(self.end());
                match select(sending, ended).await {
                    Either::Left((result, _)) => result,
                    Either::Right(_) => break,
                }
            };
            if let Err(error) = result {
                self.kill(End::Lost(format!("sending failed: {error}")));
            }
        }
        writer.shutdown();
    }

    /// Enters a request into the outbox; the reply comes through the receiver.
    fn post(
        &self,
        mut frame: RequestFrame,
        head: &[u8],
        data: Option<&Chunk>,
        expect: Expect,
        permits: Option<(Permit, Permit)>,
    ) -> Option<oneshot::Receiver<Result<Reply, SessionError>>> {
        let mut flow = self.flow.borrow_mut();
        if flow.end.is_some() {
            return None;
        }
        flow.next_cookie += 1;
        frame.cookie = flow.next_cookie;
        frame.payload = u32::try_from(head.len() + data.map_or(0, |d| d.len())).ok()?;
        let (reply, answer) = oneshot::channel();
        let sent = self.doors.now();
        flow.pending.insert(frame.cookie, Pending { frame, expect, reply, sent, _permits: permits });
        let tail = flow.outbox.tail();
        tail.extend_from_slice(&frame.encode());
        tail.extend_from_slice(head);
        if let Some(data) = data {
            flow.outbox.push(data.clone());
        }
        drop(flow);
        self.out.notify();
        if self.dozing.replace(false) {
            self.awake.notify();
        }
        Some(answer)
    }

    fn frame(&self, op: Op, flags: Flags, offset: u64, length: u32) -> RequestFrame {
        RequestFrame { op, flags, cookie: 0, session: self.number, slice: self.slice, offset, length, deadline_ms: 0, payload: 0 }
    }

    async fn request(
        &self,
        frame: RequestFrame,
        head: &[u8],
        data: Option<&Chunk>,
        expect: Expect,
    ) -> Result<Chunk, SessionError> {
        self.exchange(frame, head, data, expect).await.map(|reply| reply.payload)
    }

    /// One request and its reply.
    async fn exchange(
        &self,
        frame: RequestFrame,
        head: &[u8],
        data: Option<&Chunk>,
        expect: Expect,
    ) -> Result<Reply, SessionError> {
        let bytes = u64::try_from(head.len() + data.map_or(0, |d| d.len())).unwrap_or(SESSION_BYTES_MAX);
        let reply = match expect {
            Expect::Exactly(n) | Expect::AtMost(n) => n as u64,
        };
        let permits = (self.depth.acquire(1).await, self.bytes.acquire(bytes.max(reply)).await);
        let answer = self.post(frame, head, data, expect, Some(permits)).ok_or(SessionError::Lost)?;
        answer.await.unwrap_or(Err(SessionError::Lost))
    }

    /// A control request with a message as payload.
    pub(crate) async fn control(&self, op: Op, payload: &[u8]) -> Result<Chunk, SessionError> {
        self.request(self.frame(op, Flags::default(), 0, 0), payload, None, Expect::AtMost(CONTROL_PAYLOAD_MAX)).await
    }

    /// Reads whole blocks and checks them end to end.
    pub(crate) async fn read(&self, offset: u64, length: u32) -> Result<Blocks, SessionError> {
        let size = length as usize;
        let table = table_size(size);
        let expect = Expect::Exactly(table + size);
        let reply = self.exchange(self.frame(Op::Read, Flags::default(), offset, length), &[], None, expect).await?;
        let (payload, result) = (reply.payload, reply.result);
        let (sums, data) = match reply.blocks {
            Some(blocks) => (payload, blocks),
            None => (payload.part(0..table), payload.part(table..table + size)),
        };
        let mut wrong = Vec::new();
        let mut from = 0;
        while let Some(block) = first_mismatch(&data.part(from * BLOCK..size), &sums.part(from * 4..table)) {
            wrong.push(from + block);
            from += block + 1;
        }
        Ok(Blocks { data, sums, computed: result & READ_COMPUTED != 0, wrong })
    }

    /// Writes whole blocks; `sums` is their checksum table, made once for all legs.
    async fn write(&self, offset: u64, data: &Chunk, sums: &[u8], flags: Flags) -> Result<(), SessionError> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.request(self.frame(Op::Write, flags, offset, length), sums, Some(data), Expect::Exactly(0)).await.map(drop)
    }

    /// Makes whole blocks read as zero.
    async fn write_zeroes(&self, offset: u64, length: u32, flags: Flags) -> Result<(), SessionError> {
        self.request(self.frame(Op::WriteZeroes, flags, offset, length), &[], None, Expect::Exactly(0)).await.map(drop)
    }

    /// Sends a change once.
    pub(crate) async fn send_change(&self, change: &Change) -> Result<(), SessionError> {
        match change {
            Change::Write { offset, data, sums, fua } => {
                let durable = *fua && !mutation::is(Mutation::DurableWriteIsNot);
                let flags = if durable { Flags::FUA } else { Flags::default() };
                self.write(*offset, data, sums, flags).await
            }
            Change::Zero { offset, length, flags } => self.write_zeroes(*offset, *length, *flags).await,
            Change::Flush => self.flush().await,
        }
    }

    /// Makes everything acknowledged before durable.
    pub(crate) async fn flush(&self) -> Result<(), SessionError> {
        self.request(self.frame(Op::Flush, Flags::default(), 0, 0), &[], None, Expect::Exactly(0)).await.map(drop)
    }

    /// A request about a range whose reply is a message of at most `reply_max` bytes (EXTENTS, SEARCH).
    pub(crate) async fn ask<T: Message>(
        &self,
        op: Op,
        flags: Flags,
        offset: u64,
        length: u32,
        payload: &[u8],
        reply_max: usize,
    ) -> Result<T, SessionError> {
        let reply = self.request(self.frame(op, flags, offset, length), payload, None, Expect::AtMost(reply_max)).await?;
        self.decoded(&reply)
    }

    /// Reads a message out of a reply; a malformed one ends the session.
    pub(crate) fn decoded<T: Message>(&self, payload: &[u8]) -> Result<T, SessionError> {
        T::decode(payload).map_err(|malformed| {
            self.kill(End::Lost(format!("the lender broke the protocol: {malformed}")));
            SessionError::Lost
        })
    }

    /// Is it there, in the identity in which it was opened (S1)?
    pub(crate) async fn ping(&self) -> Result<(), SessionError> {
        let reply = self.control(Op::Ping, &[]).await?;
        let identity: DiskIdentity = self.decoded(&reply)?;
        let same = self.opened.borrow().as_ref().is_some_and(|opened| opened.identity == identity);
        if !same {
            self.kill(End::Lost("the lender's disk changed its identity under an open session".into()));
            return Err(SessionError::Lost);
        }
        Ok(())
    }

    /// Sends a PING that nobody waits for: its reply is heard, its absence is [`Silence`].
    pub(crate) fn ping_unawaited(&self) {
        let _ = self.post(self.frame(Op::Ping, Flags::default(), 0, 0), &[], None, Expect::AtMost(CONTROL_PAYLOAD_MAX), None);
    }

    /// Writes generation and in-sync set into the lender's label (S1, S5).
    pub(crate) async fn set_state(&self, state: &SetState) -> Result<(), SessionError> {
        self.control(Op::SetState, &state.encode()).await.map(drop)
    }

    /// Ends the session in order: everything acknowledged is durable.
    pub(crate) async fn close(&self, clean: bool) -> Result<(), SessionError> {
        self.control(Op::Close, &Close { clean }.encode()).await?;
        self.kill(End::Unwanted);
        Ok(())
    }
}
