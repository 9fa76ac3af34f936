//! Reads, writes, zeroes and flushes of a mounted volume, each checked against the oracle.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use sublet_doors::{Chunk, Clock, Doors};
use sublet_volume::{VolumeError, VolumeErrorKind, ZeroFlags};

use crate::client::Client;
use crate::exec::{MILLISECOND, SECOND, Sim};
use crate::oracle::{CELL, Oracle};
use crate::world::World;

/// Tells the bytes of fenced clients from those that may be read.
const GHOST: u64 = 0x6768_6f73_7400_0000;

/// How a volume is used; drawn from the seed.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Tasks at the same time.
    pub workers: u64,
    /// The longest pause between two requests of a task, in nanoseconds.
    pub pause_max: u64,
    /// Parts of a hundred.
    pub writes: u64,
    /// Parts of a hundred.
    pub zeroes: u64,
    /// Parts of a hundred.
    pub flushes: u64,
    /// A write is flushed at once, per million: the client expects that after a while.
    pub flushed: u64,
    /// The part of the volume that is used most, in bytes.
    pub spot: u64,
    /// After so long another part is used most, in nanoseconds: what was used before cools down.
    pub moves: u64,
    /// A task rests for seconds now and then, per million requests.
    pub rests: u64,
    /// Every other stretch of so long nobody does anything, in nanoseconds: everything cools down. 0 for never.
    pub quiet: u64,
}

impl Style {
    /// Any of them.
    pub fn draw(sim: &Sim, size: u64) -> Self {
        let flushed = if sim.chance(250_000) { sim.between(500_000, 1_000_000) } else { 0 };
        // Often alone: with others there is mostly more than one write before a flush.
        let workers_max = if flushed > 0 && sim.chance(700_000) { 1 } else { 4 };
        Self {
            workers: sim.between(1, workers_max),
            pause_max: *sim.random(|random| random.pick(&[50 * MILLISECOND, 200 * MILLISECOND, 1000 * MILLISECOND])),
            writes: sim.between(20, 70),
            zeroes: sim.between(0, 8),
            flushes: sim.between(0, 15),
            flushed,
            spot: (*sim.random(|random| random.pick(&[32u64 << 10, 256 << 10, 2 << 20]))).min(size),
            moves: sim.between(1, 20) * SECOND,
            rests: *sim.random(|random| random.pick(&[0, 0, 30_000])),
            quiet: if sim.chance(400_000) { sim.between(6, 16) * SECOND } else { 0 },
        }
    }
}

/// What the workers of one mount share.
pub struct Work {
    world: Rc<World>,
    client: Rc<Client>,
    oracle: Rc<RefCell<Oracle>>,
    style: Style,
    stop: Cell<bool>,
    /// Somebody else has the volume: nothing that is done here may have an effect (F4).
    ghost: Cell<bool>,
    running: Cell<u64>,
    /// Errors that a request got.
    pub errors: RefCell<Vec<VolumeError>>,
}

impl Work {
    /// Starts the workers in the client's process.
    pub fn start(world: &Rc<World>, client: &Rc<Client>, oracle: &Rc<RefCell<Oracle>>, style: Style) -> Rc<Self> {
        let work = Rc::new(Self {
            world: Rc::clone(world),
            client: Rc::clone(client),
            oracle: Rc::clone(oracle),
            style,
            stop: Cell::new(false),
            ghost: Cell::new(false),
            running: Cell::new(style.workers),
            errors: RefCell::default(),
        });
        for _ in 0..style.workers {
            let own = Rc::clone(&work);
            client.doors.spawn(async move {
                while !own.stop.get() {
                    if own.sim().now().checked_div(own.style.quiet).is_some_and(|stretch| stretch % 2 == 1) {
                        own.client.doors.sleep(Duration::from_millis(500)).await;
                        continue;
                    }
                    own.one().await;
                    let rest = if own.sim().chance(own.style.rests) { own.sim().below(12 * SECOND) } else { 0 };
                    let pause = own.sim().below(own.style.pause_max) + rest;
                    own.client.doors.sleep(Duration::from_nanos(pause)).await;
                }
                own.running.set(own.running.get() - 1);
            });
        }
        work
    }

    /// No further requests.
    pub fn stop(&self) {
        self.stop.set(true);
    }

    /// Somebody else has the volume from now on.
    pub fn haunt(&self) {
        self.ghost.set(true);
    }

    /// True when all requests have ended.
    pub fn is_quiet(&self) -> bool {
        self.running.get() == 0
    }

    fn sim(&self) -> &Sim {
        self.client.doors.sim()
    }

    /// A range of whole cells.
    fn range(&self) -> (u64, u64) {
        let (sim, size) = (self.sim(), self.client.volume.size());
        let longest = *sim.random(|random| random.pick(&[512, 4096, 4096, 4096, 8192, 16384, 65536]));
        let longest = if sim.chance(10_000) { 1_200_000 } else { longest };
        let unit = if sim.chance(700_000) { 4096 } else { CELL };
        let length = (sim.between(1, longest) / unit * unit).clamp(unit, size);
        let room = if sim.chance(900_000) { self.style.spot.max(length) } else { size };
        let room = room.min(size);
        // Each stay is somewhere else.
        let stay = (sim.now() / self.style.moves).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let begin = stay % (size - room + 1) / unit * unit;
        let offset = begin + sim.below(room - length + 1) / unit * unit;
        (offset, length)
    }

    async fn one(&self) {
        if self.ghost.get() {
            return self.haunted().await;
        }
        let dice = self.sim().below(100);
        let Style { writes, zeroes, flushes, .. } = self.style;
        if dice < writes {
            self.write().await;
            if self.style.flushed > 0 && self.sim().chance(self.style.flushed) {
                self.flush().await;
            }
        } else if dice < writes + zeroes {
            self.zero().await;
        } else if dice < writes + zeroes + flushes {
            self.flush().await;
        } else {
            self.read().await;
        }
    }

    /// A client that was fenced and does not know it: its bytes must never be seen.
    async fn haunted(&self) {
        let (offset, length) = self.range();
        let mut ghost = Oracle::new(self.oracle.borrow().tag ^ GHOST);
        let bytes = {
            let write = ghost.issue(offset, length, false);
            ghost.bytes(&write)
        };
        if self.client.volume.write(offset, Chunk::from(bytes), false).await.is_ok() {
            self.world.violation(format!("F4: a fenced client of volume {} still writes", self.client.info.name));
        }
    }

    fn log(&self, text: impl FnOnce() -> String) {
        self.sim().log(self.client.info.name.as_str(), text);
    }

    fn failed(&self, what: &str, error: VolumeError) {
        self.log(|| format!("{what} failed: {error}"));
        if !matches!(error.kind, VolumeErrorKind::Fenced | VolumeErrorKind::Closed) {
            self.errors.borrow_mut().push(error);
        }
    }

    async fn write(&self) {
        let (offset, length) = self.range();
        let fua = self.sim().chance(50_000);
        let write = self.oracle.borrow_mut().issue(offset, length, false);
        let bytes = self.oracle.borrow().bytes(&write);
        self.log(|| format!("write {offset}+{length} {write:?}"));
        let result = self.client.volume.write(offset, Chunk::from(bytes), fua).await;
        if self.ghost.get() {
            return;
        }
        self.oracle.borrow_mut().ended(&write, result.is_ok());
        match result {
            Ok(()) if fua => self.oracle.borrow_mut().flushed_write(&write),
            Ok(()) => {}
            Err(error) => self.failed("a write", error),
        }
        self.log(|| format!("written {offset}+{length} {write:?}"));
    }

    async fn zero(&self) {
        let (offset, length) = self.range();
        let flags = ZeroFlags { fua: false, no_hole: self.sim().chance(300_000), fast: false };
        let write = self.oracle.borrow_mut().issue(offset, length, true);
        self.log(|| format!("zero {offset}+{length} {write:?}"));
        let result = self.client.volume.write_zeroes(offset, length, flags).await;
        if self.ghost.get() {
            return;
        }
        self.oracle.borrow_mut().ended(&write, result.is_ok());
        if let Err(error) = result {
            self.failed("zeroing", error);
        }
        self.log(|| format!("zeroed {offset}+{length}"));
    }

    async fn flush(&self) {
        let mark = self.oracle.borrow_mut().mark();
        let result = self.client.volume.flush().await;
        if self.ghost.get() {
            return;
        }
        match result {
            Ok(()) => {
                self.oracle.borrow_mut().flushed(mark);
                self.log(|| "flushed".to_owned());
            }
            Err(error) => self.failed("a flush", error),
        }
    }

    async fn read(&self) {
        let (mut offset, mut length) = self.range();
        if self.sim().chance(200_000) {
            // Any alignment.
            let shift = self.sim().below(length);
            offset += shift;
            length = self.sim().between(1, length - shift);
        }
        self.read_and_check(offset, length).await;
    }

    /// Reads a range and compares it. False if it could not be read.
    pub async fn read_and_check(&self, offset: u64, length: u64) -> bool {
        let mark = self.oracle.borrow_mut().read();
        let result = self.client.volume.read(offset, length).await;
        if self.ghost.get() || result.is_err() {
            self.oracle.borrow_mut().unread(mark);
        }
        if self.ghost.get() {
            return false;
        }
        let bytes = match result {
            Ok(chunks) => Chunk::joined(&chunks),
            Err(error) => {
                self.failed("a read", error);
                return false;
            }
        };
        let layout = || self.world.layout(self.client.info.volume);
        let verdict = self.oracle.borrow_mut().check(mark, offset, &bytes, layout);
        self.log(|| format!("read {offset}+{length}"));
        if let Err(wrong) = verdict {
            self.world.violation(format!("wrong bytes in volume {}: {wrong}", self.client.info.name));
        }
        true
    }

    /// Reads everything that was ever written, and a little beside it.
    pub async fn read_all(&self) -> bool {
        let size = self.client.volume.size();
        let stretches = self.oracle.borrow().written();
        let mut at = 0;
        for (offset, length) in stretches {
            let mut from = offset.saturating_sub(4096).max(at);
            let end = (offset + length + 4096).min(size);
            while from < end {
                let part = (end - from).min(256 << 10);
                if !self.read_and_check(from, part).await {
                    return false;
                }
                from += part;
            }
            at = end;
        }
        true
    }
}
