//! A lender in memory, made from the wire crate, that does as it is told: drop, hang, delay, reboot, fence, flip bits, lie.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use sublet_doors::local::Signal;
use sublet_doors::{Buffer, Chunk, Clock, Conn, ConnReader, ConnWriter, Doors, Endpoint, Listener, Net, Rng};
use sublet_types::limits::REGION_SIZE;
use sublet_types::{Address, Generation, OpenId, ServerId, SliceId};
use sublet_wire::checksum::{first_mismatch, table_size};
use sublet_wire::frame::PROTOCOL_VERSION;
use sublet_wire::message::{
    Clear, Close, Cool, DiskIdentity, Extent, ExtentsReply, HelloReply, MapRequest, Message, Open, OpenMode, OpenReply, Search,
    SearchReply, Seed, SetState, VerifyReply,
};
use sublet_wire::{FRAME_SIZE, Flags, Op, RequestFrame, Status};

use super::damage::damage;
use super::doors::{MemDoors, MemWriter};
use super::regions::Regions;

/// A lie of a lender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lie {
    Cookie,
    Offset,
    Slice,
    Length,
    PayloadSize,
    Endless,
    Garbage,
}

/// One request as the lender saw it, with the volume-wide order of events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) session: u64,
    pub(crate) cookie: u64,
    pub(crate) op: Op,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) fua: bool,
}

/// What the label says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Label {
    pub(crate) generation: Generation,
    pub(crate) in_sync: Vec<bool>,
    pub(crate) unclean: bool,
    pub(crate) open_epoch: Option<u64>,
}

pub(crate) struct Slice {
    pub(crate) label: Label,
    /// What reads see.
    pub(crate) bytes: Vec<u8>,
    /// What survives a reboot.
    pub(crate) durable: Vec<u8>,
    pub(crate) session: u64,
    pub(crate) mode: OpenMode,
    pub(crate) reads: usize,
    pub(crate) regions: Regions,
}

impl Slice {
    pub(crate) fn new(label: Label, length: usize) -> Self {
        let zeroes = vec![0; length];
        let regions = Regions::new(&zeroes);
        Self { label, bytes: zeroes.clone(), durable: zeroes, session: 0, mode: OpenMode::InSync, reads: 0, regions }
    }
}

/// Something that a test wants to be done.
type Act = Box<dyn Fn()>;

pub(crate) struct Lender {
    pub(crate) doors: MemDoors,
    pub(crate) name: String,
    pub(crate) server: ServerId,
    pub(crate) port: u16,
    pub(crate) slices: RefCell<BTreeMap<u128, Slice>>,
    pub(crate) identity: Cell<DiskIdentity>,
    /// Epochs below are stale.
    pub(crate) epoch: Cell<u64>,
    pub(crate) seen: RefCell<Vec<Seen>>,
    pub(crate) history: Rc<RefCell<Vec<String>>>,
    // Faults.
    /// Requests are taken and never answered (pings too, unless `pongs`).
    pub(crate) hang: Cell<bool>,
    pub(crate) pongs: Cell<bool>,
    /// Only flushes are never answered.
    pub(crate) hang_flushes: Cell<bool>,
    /// Requests of this kind are never answered.
    pub(crate) hang_op: Cell<Option<Op>>,
    /// To be done when such a request has come, once.
    pub(crate) when: RefCell<Option<(Op, Act)>>,
    /// Requests take up to so long, in any order.
    pub(crate) delay: Cell<Duration>,
    /// The same for writes only.
    pub(crate) write_delay: Cell<Duration>,
    /// Of SET_STATE besides.
    pub(crate) label_delay: Cell<Duration>,
    /// So many reads more are damaged.
    pub(crate) flips: Cell<usize>,
    pub(crate) lie: Cell<Option<Lie>>,
    /// One of so many replies is damaged; 0 for none.
    pub(crate) damage: Cell<u64>,
    /// The protocol version that it says it speaks.
    pub(crate) version: Cell<u8>,
    /// So many writes or flushes more fail.
    pub(crate) io_errors: Cell<usize>,
    /// So many writes more are carried out, but the connection breaks before the answer.
    pub(crate) swallow: Cell<usize>,
    /// So many writes more are still under way at the disk when their connection breaks, and land so much later.
    pub(crate) late: Cell<usize>,
    pub(crate) late_by: Cell<Duration>,
    unfinished: Cell<usize>,
    /// Writes in the order in which the disk did them: offset, length, first byte.
    pub(crate) wrote: RefCell<Vec<(u64, u32, u8)>>,
    /// Blocks that the disk cannot read before they are written again, by their offsets.
    pub(crate) bad_sectors: RefCell<BTreeSet<u64>>,
    pub(crate) no_fast: Cell<bool>,
    pub(crate) hot_max: Cell<u32>,
    /// Ends all connections (and the listener, if `down`).
    cut: Signal,
    pub(crate) down: Cell<bool>,
    pub(crate) connections: Cell<usize>,
}

impl Lender {
    pub(crate) fn new(doors: &MemDoors, number: u16, history: &Rc<RefCell<Vec<String>>>) -> Rc<Self> {
        let identity = DiskIdentity { open: OpenId::from_u128(doors.random_u128()), boot: doors.random_u128(), disk_sequence: 1 };
        let lender = Rc::new(Self {
            doors: doors.clone(),
            name: format!("server-{}", char::from(b'a' + number as u8)),
            server: ServerId::from_u128(doors.random_u128()),
            port: 7000 + number,
            slices: RefCell::default(),
            identity: Cell::new(identity),
            epoch: Cell::new(1),
            seen: RefCell::default(),
            history: Rc::clone(history),
            hang: Cell::new(false),
            pongs: Cell::new(false),
            hang_flushes: Cell::new(false),
            hang_op: Cell::new(None),
            when: RefCell::default(),
            delay: Cell::new(Duration::ZERO),
            write_delay: Cell::new(Duration::ZERO),
            label_delay: Cell::new(Duration::ZERO),
            flips: Cell::new(0),
            lie: Cell::new(None),
            damage: Cell::new(0),
            version: Cell::new(PROTOCOL_VERSION),
            io_errors: Cell::new(0),
            swallow: Cell::new(0),
            late: Cell::new(0),
            late_by: Cell::new(Duration::from_secs(3)),
            unfinished: Cell::new(0),
            wrote: RefCell::default(),
            bad_sectors: RefCell::default(),
            no_fast: Cell::new(false),
            hot_max: Cell::new(1024),
            cut: Signal::new(),
            down: Cell::new(false),
            connections: Cell::new(0),
        });
        doors.spawn(Rc::clone(&lender).listen());
        lender
    }

    pub(crate) fn address(&self) -> Address {
        Address::new("127.0.0.1", self.port)
    }

    /// The whole content of its slice (tests have one slice per lender where they use this).
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.slices.borrow().values().next().unwrap().bytes.clone()
    }

    /// Whether it tells that it may have lost something that another leg has.
    pub(crate) fn has_lost(&self) -> bool {
        self.slices.borrow().values().any(|slice| slice.regions.lost)
    }

    pub(crate) fn label(&self) -> Label {
        self.slices.borrow().values().next().unwrap().label.clone()
    }

    pub(crate) fn reads(&self) -> usize {
        self.slices.borrow().values().map(|s| s.reads).sum()
    }

    /// The agent stops: connections end, new ones are refused.
    pub(crate) fn stop(&self) {
        self.down.set(true);
        self.cut.notify();
    }

    /// The agent starts again; what the kernel had is still there.
    pub(crate) fn start(self: &Rc<Self>) {
        self.slices.borrow_mut().values_mut().for_each(|slice| slice.regions.crash());
        self.down.set(false);
        self.hang.set(false);
        let open = OpenId::from_u128(self.doors.random_u128());
        self.identity.set(DiskIdentity { open, ..self.identity.get() });
        self.doors.spawn(Rc::clone(self).listen());
    }

    /// All connections break; the agent lives on.
    pub(crate) fn cut(&self) {
        self.cut.notify();
    }

    /// The machine loses its power: what was not flushed is gone.
    pub(crate) fn lose_power(&self) {
        self.stop();
        let boot = self.doors.random_u128();
        self.identity.set(DiskIdentity { boot, ..self.identity.get() });
        for slice in self.slices.borrow_mut().values_mut() {
            slice.bytes = slice.durable.clone();
        }
    }

    async fn listen(self: Rc<Self>) {
        let listener = self.doors.listen(&Endpoint::Tcp(self.address())).await.unwrap();
        loop {
            let seen = self.cut.version();
            if self.down.get() {
                return;
            }
            let conn = {
                let accept = std::pin::pin!(listener.accept());
                match select(accept, self.cut.changed(seen)).await {
                    Either::Left((conn, _)) => conn.unwrap(),
                    Either::Right(_) => continue,
                }
            };
            let lender = Rc::clone(&self);
            self.doors.spawn(async move {
                let cut = lender.cut.version();
                lender.connections.set(lender.connections.get() + 1);
                {
                    let serve = std::pin::pin!(lender.serve(conn));
                    select(serve, lender.cut.changed(cut)).await;
                }
                lender.connections.set(lender.connections.get() - 1);
            });
        }
    }

    async fn serve(self: &Rc<Self>, conn: <MemDoors as Net>::Conn) {
        let (mut reader, writer) = conn.split();
        let writer = Rc::new(futures_util::lock::Mutex::new(writer));
        // Requests run at the same time; those of an ended connection are dropped with it, as its answers would be.
        let mut running = futures_util::stream::FuturesUnordered::new();
        use futures_util::StreamExt;
        let (sender, mut arrived) = futures_channel::mpsc::unbounded::<(RequestFrame, Chunk)>();
        let receive = async move {
            loop {
                let (result, buffer) = reader.read_exact(Buffer::new(FRAME_SIZE), 0..FRAME_SIZE).await;
                if result.is_err() {
                    return;
                }
                let frame = RequestFrame::decode(buffer.first_chunk().unwrap()).unwrap();
                let size = frame.payload as usize;
                let (result, payload) = reader.read_exact(Buffer::new(size), 0..size).await;
                if result.is_err() || sender.unbounded_send((frame, payload.freeze())).is_err() {
                    return;
                }
            }
        };
        let mut receive = std::pin::pin!(futures_util::FutureExt::fuse(receive));
        loop {
            futures_util::select_biased! {
                next = arrived.next() => match next {
                    Some((frame, payload)) => running.push(self.answer(Rc::clone(&writer), frame, payload)),
                    None => return,
                },
                more = running.select_next_some() => if !more { return },
                () = receive => {},
            }
        }
    }

    /// Answers one request; false ends the connection.
    async fn answer(
        self: &Rc<Self>,
        writer: Rc<futures_util::lock::Mutex<MemWriter>>,
        frame: RequestFrame,
        payload: Chunk,
    ) -> bool {
        self.seen.borrow_mut().push(Seen {
            session: frame.session.0,
            cookie: frame.cookie,
            op: frame.op,
            offset: frame.offset,
            length: frame.length,
            fua: frame.flags.has(Flags::FUA),
        });
        let own = match frame.op {
            Op::Write => self.write_delay.get(),
            Op::SetState => self.label_delay.get(),
            _ => Duration::ZERO,
        };
        let delay = self.delay.get() + own;
        if !delay.is_zero() && !matches!(frame.op, Op::Hello | Op::Open) {
            self.doors.sleep(Duration::from_micros(self.doors.below(delay.as_micros() as u64 + 1))).await;
        }
        let hangs = self.hang.get() && !(self.pongs.get() && frame.op == Op::Ping);
        let is_awaited = self.when.borrow().as_ref().is_some_and(|(op, _)| *op == frame.op);
        if let Some((_, act)) = self.when.borrow_mut().take_if(|_| is_awaited) {
            act();
        }
        if hangs || self.hang_op.get() == Some(frame.op) || (self.hang_flushes.get() && frame.op == Op::Flush) {
            std::future::pending::<()>().await;
        }
        if frame.op == Op::Write && self.late.get() > 0 {
            self.late.set(self.late.get() - 1);
            self.unfinished.set(self.unfinished.get() + 1);
            let lender = Rc::clone(self);
            self.doors.spawn(async move {
                lender.doors.sleep(lender.late_by.get()).await;
                // Nobody is there to be told.
                let _ = lender.carry_out(&frame, &payload);
                lender.note("late write");
                lender.unfinished.set(lender.unfinished.get() - 1);
            });
            return false;
        }
        while frame.op == Op::Open && self.unfinished.get() > 0 {
            // W4: all disk I/O of earlier sessions has ended before OPEN is answered.
            self.doors.sleep(Duration::from_millis(10)).await;
        }
        let (status, mut data, result) = match self.carry_out(&frame, &payload) {
            Ok((data, result)) => (Status::Ok, data, result),
            Err((status, text)) => (status, text.as_bytes().to_vec(), 0),
        };
        if frame.op == Op::Write && status == Status::Ok && self.swallow.get() > 0 {
            self.swallow.set(self.swallow.get() - 1);
            return false;
        }
        let mut reply = frame.reply(status, data.len() as u32);
        reply.result = result;
        if status == Status::Ok && self.damage.get() > 0 && self.doors.below(self.damage.get()) == 0 {
            damage(&self.doors, &mut reply, &mut data);
        }
        let lie = self.lie.get().filter(|_| frame.op == Op::Read);
        let mut bytes = Vec::new();
        match lie {
            Some(Lie::Cookie) => reply.cookie += 7,
            Some(Lie::Offset) => reply.offset += 4096,
            Some(Lie::Slice) => reply.slice = SliceId::from_u128(1),
            Some(Lie::Length) => reply.length += 4096,
            Some(Lie::PayloadSize) => reply.payload += 1,
            Some(Lie::Endless) => reply.payload = u32::MAX,
            Some(Lie::Garbage) => bytes.extend_from_slice(&[0xa5; 300]),
            None => {}
        }
        bytes.extend_from_slice(&reply.encode());
        bytes.extend_from_slice(&data);
        if lie == Some(Lie::Endless) {
            bytes.extend_from_slice(&vec![7; 4 << 20]);
        }
        writer.lock().await.write_all(vec![Chunk::from(bytes)]).await.is_ok()
            && frame.op != Op::Close
            && status != Status::StaleEpoch
    }

    fn note(&self, what: &str) {
        self.history.borrow_mut().push(format!("{} {what}", self.name));
    }

    fn carry_out(&self, frame: &RequestFrame, payload: &[u8]) -> Result<(Vec<u8>, u32), (Status, &'static str)> {
        if frame.op == Op::Hello {
            let reply = HelloReply {
                version: self.version.get(),
                features: 0,
                server: self.server,
                nonce: 0,
                depth_max: 256,
                request_max: 1 << 20,
            };
            return Ok((reply.encode(), 0));
        }
        let mut slices = self.slices.borrow_mut();
        let slice = slices.get_mut(&frame.slice.to_u128()).ok_or((Status::NoSlice, "no such slice"))?;
        if frame.op == Op::Open {
            let open = Open::decode(payload).unwrap();
            if open.epoch.number < self.epoch.get() {
                return Err((Status::StaleEpoch, "a newer epoch is here"));
            }
            if slice.label.open_epoch != Some(open.epoch.number) {
                slice.session = 0;
            }
            assert!(open.session.0 > slice.session, "W4: session numbers only rise");
            assert_eq!(open.segment_length as usize, slice.bytes.len());
            let (label, client) = (slice.label.generation, open.generation);
            let fits = match open.mode {
                OpenMode::InSync => label.number.abs_diff(client.number) <= 1 && slice.label.in_sync[open.leg as usize],
                OpenMode::Target => label.number <= client.number,
            };
            if !fits || label.is_split_from(client) {
                return Err((Status::Disagreement, "the label says something else"));
            }
            slice.session = open.session.0;
            slice.mode = open.mode;
            // A client that knows nothing of an opening before is another process than the one that left it open.
            let anew = open.mode == OpenMode::InSync && open.known_open.to_u128() == 0;
            slice.label.unclean |= slice.label.open_epoch.is_some_and(|epoch| epoch != open.epoch.number || anew);
            slice.label.open_epoch = Some(open.epoch.number);
            self.note(&format!("open {:?}", open.mode));
            let reply = OpenReply {
                identity: self.identity.get(),
                generation: label,
                unclean: slice.label.unclean,
                sequence: 1,
                hot_max: self.hot_max.get(),
                missed_since: (0..slice.label.in_sync.len() as u8).map(|leg| Some(slice.regions.maps.get(&leg)?.since)).collect(),
            };
            return Ok((reply.encode(), 0));
        }
        if self.epoch.get() > 1 {
            return Err((Status::StaleEpoch, "a newer epoch is here"));
        }
        if slice.session != frame.session.0 {
            return Err((Status::Superseded, "a higher session is open"));
        }
        let (at, length) = (frame.offset as usize, frame.length as usize);
        let range = at..at + length;
        // SEARCH takes any alignment.
        let aligned = frame.op == Op::Search || (at % 4096 == 0 && length % 4096 == 0);
        let end = if frame.op == Op::Map { slice.bytes.len().next_multiple_of(REGION_SIZE as usize) } else { slice.bytes.len() };
        if range.end > end || !aligned {
            return Err((Status::OutOfRange, "out of range"));
        }
        let fails = matches!(frame.op, Op::Write | Op::Flush | Op::WriteZeroes) && self.io_errors.get() > 0;
        if fails {
            self.io_errors.set(self.io_errors.get() - 1);
            return Err((Status::Io, "the disk has failed"));
        }
        let sectors = frame.offset..frame.offset + u64::from(frame.length);
        match frame.op {
            Op::Read | Op::Verify if self.bad_sectors.borrow().range(sectors.clone()).next().is_some() => {
                return Err((Status::Io, "the disk cannot read it"));
            }
            Op::Write | Op::WriteZeroes => self.bad_sectors.borrow_mut().retain(|sector| !sectors.contains(sector)),
            _ => {}
        }
        let done = |payload| Ok((payload, 0));
        match frame.op {
            Op::Read => {
                assert_eq!(slice.mode, OpenMode::InSync, "S5: a stale leg is never read");
                slice.reads += 1;
                let data = &slice.bytes[range];
                let (mut reply, computed) = slice.regions.table(at, data);
                reply.extend_from_slice(data);
                if self.flips.get() > 0 {
                    self.flips.set(self.flips.get() - 1);
                    let last = reply.len() - 1;
                    reply[last] ^= 1;
                }
                Ok((reply, u32::from(computed)))
            }
            Op::Write => {
                let (table, data) = payload.split_at(table_size(length));
                assert_eq!(first_mismatch(data, table), None);
                slice.bytes[range.clone()].copy_from_slice(data);
                slice.regions.written(at, data);
                self.wrote.borrow_mut().push((frame.offset, frame.length, data[0]));
                if frame.flags.has(Flags::FUA) {
                    slice.durable[range].copy_from_slice(data);
                }
                self.note("write");
                done(Vec::new())
            }
            Op::WriteZeroes => {
                if frame.flags.has(Flags::FAST) && self.no_fast.get() {
                    return Err((Status::Unsupported, "not fast"));
                }
                slice.bytes[range.clone()].fill(0);
                slice.regions.written(at, &slice.bytes[range.clone()]);
                if frame.flags.has(Flags::FUA) {
                    slice.durable[range].fill(0);
                }
                self.note("zero");
                done(Vec::new())
            }
            Op::Flush => {
                slice.durable.clone_from(&slice.bytes);
                self.note("flush");
                done(Vec::new())
            }
            Op::Map => {
                let which = MapRequest::decode(payload).unwrap().which;
                let end = u32::try_from((at + length).div_ceil(REGION_SIZE as usize)).unwrap();
                done(slice.regions.map(which, (at / REGION_SIZE as usize) as u32, end).encode())
            }
            Op::Seed => {
                slice.regions.seed(&Seed::decode(payload).unwrap());
                self.note("seed");
                done(Vec::new())
            }
            Op::Clear => {
                assert_eq!(slice.mode, OpenMode::InSync);
                let clear = Clear::decode(payload).unwrap();
                slice.regions.clear(clear.leg, &clear.entries);
                self.note("clear");
                done(Vec::new())
            }
            Op::Cool => {
                let regions = Cool::decode(payload).unwrap().regions;
                slice.regions.cool(&regions, &slice.bytes, &slice.durable);
                self.note("cool");
                done(Vec::new())
            }
            Op::Verify => done(VerifyReply { blocks: slice.regions.verify(at, &slice.bytes[range]) }.encode()),
            Op::Extents => {
                let mut extents: Vec<Extent> = Vec::new();
                for block in slice.bytes[range].chunks(4096) {
                    extents.push(Extent { length: 4096, data: block.iter().any(|b| *b != 0) });
                }
                extents.truncate(5);
                done(ExtentsReply { extents }.encode())
            }
            Op::Search => {
                let wanted = Search::decode(payload).unwrap().pattern;
                let scanned = length.min(4096);
                let found = (at..at + scanned).filter(|i| slice.bytes[*i..].starts_with(&wanted)).map(|i| i as u64);
                let mut matches: Vec<u64> = found.collect();
                let count = matches.len() as u64;
                if frame.flags.has(Flags::COUNT) {
                    matches.clear();
                }
                done(SearchReply { scanned: scanned as u64, count, matches }.encode())
            }
            Op::SetState => {
                let state = SetState::decode(payload).unwrap();
                assert!(
                    state.generation.number >= slice.label.generation.number
                        && !state.generation.is_split_from(slice.label.generation)
                );
                slice.regions.set_state(&state.in_sync, &state.stale);
                slice.label.generation = state.generation;
                slice.label.in_sync = state.in_sync;
                slice.label.unclean &= !state.equalised;
                slice.regions.lost &= !state.equalised;
                self.note(&format!("label {}", state.generation.number));
                done(self.identity.get().encode())
            }
            Op::Ping => {
                self.note("ping");
                done(self.identity.get().encode())
            }
            Op::Close => {
                slice.durable.clone_from(&slice.bytes);
                let clean = Close::decode(payload).unwrap().clean;
                if clean {
                    slice.label.open_epoch = None;
                    let all: Vec<u32> = slice.regions.hot.iter().copied().collect();
                    slice.regions.cool(&all, &slice.bytes, &slice.durable);
                }
                self.note(if clean { "close clean" } else { "close" });
                done(Vec::new())
            }
            _ => Err((Status::Unsupported, "unsupported")),
        }
    }
}

/// A byte of the disk changes by itself.
pub(crate) fn rot(lender: &Lender, at: usize) {
    let mut slices = lender.slices.borrow_mut();
    let slice = slices.values_mut().next().unwrap();
    slice.bytes[at] ^= 1;
    slice.durable[at] ^= 1;
}
