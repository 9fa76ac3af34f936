//! The user of one volume: writes self-describing blocks, reads and checks them, mounts the volume again when its client was
//! killed or has failed loudly.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::timeline::Timeline;
use super::window::{BLOCK, Value, Window, fill, parse};
use crate::nbd::{FUA, NO_HOLE, Nbd, Op};
use crate::pool::Pool;
use crate::process::Process;
use crate::random::Random;

/// Requests in flight.
const DEPTH: usize = 8;
/// The longest request, in blocks.
const LENGTH_MAX: u64 = 16;
/// The longest read: nobody takes answers while a request is being sent, so all of them have to fit into the socket.
const READ_MAX: u64 = 3;
/// How long a volume may take until it can be mounted and used again after the last fault; the machine may be busy.
pub const HEAL_LIMIT: Duration = Duration::from_secs(150);

/// What all users share.
pub struct Load<'a> {
    /// The pool.
    pub pool: &'a Pool,
    /// What happened.
    pub timeline: &'a Timeline,
    /// Set when users shall come to an end.
    pub over: AtomicBool,
    /// Volumes whose client was killed on purpose and was not mounted again yet.
    pub killed: Mutex<BTreeSet<String>>,
    /// Volumes whose only lender lost power while their client was killed: what was not flushed may be gone (W1).
    pub powerless: Mutex<BTreeSet<String>>,
    /// How often all lenders of a volume have lost power at once. It is counted before that happens.
    pub dark: Mutex<BTreeMap<String, u64>>,
    /// Volumes that answered a request with an error.
    pub failures: AtomicU64,
}

impl<'a> Load<'a> {
    /// Nothing has happened.
    pub fn new(pool: &'a Pool, timeline: &'a Timeline) -> Self {
        let (killed, powerless, dark) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { pool, timeline, over: AtomicBool::new(false), killed, powerless, dark, failures: AtomicU64::new(0) }
    }

    fn dark(&self, volume: &str) -> u64 {
        self.dark.lock().unwrap().get(volume).copied().unwrap_or(0)
    }

    /// Another server unmounts the volume by force, as often as it takes.
    ///
    /// # Panics
    /// It cannot long after the last fault.
    fn force(&self, server: usize, volume: &str) {
        let begun = Instant::now();
        loop {
            let line = format!("unmount {volume} --force");
            let run = self.pool.sublet_within((server + 1) % 2, &crate::pool::words(&line), HEAL_LIMIT).sane();
            self.timeline.note(format!("by another server: {line}: {:?} after {:.1?} {}", run.code, run.took, run.err.trim()));
            // Its client was killed, and it is not mounted any more.
            let done = run.succeeded() || run.err.contains("not mounted");
            if done {
                return;
            }
            let away = self.over.load(Ordering::SeqCst) && begun.elapsed() > HEAL_LIMIT;
            assert!(!away, "{volume} cannot be unmounted by force");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Held by everybody who takes part.
    pub fn ends_all(&self) -> EndsAll<'_> {
        EndsAll(self)
    }

    /// Unmounts what has failed, mounts the volume again, as a user would, as often as it takes.
    ///
    /// # Panics
    /// It cannot be mounted long after the last fault.
    pub fn mount_again(&self, server: usize, volume: &str, failed: bool) {
        let begun = Instant::now();
        let run = |line: &str| {
            let run = self.pool.sublet_within(server, &crate::pool::words(line), HEAL_LIMIT).sane();
            self.timeline.note(format!("{line}: {:?} after {:.1?} {}", run.code, run.took, run.err.trim()));
            run.succeeded()
        };
        if failed {
            self.failures.fetch_add(1, Ordering::SeqCst);
            if !run(&format!("unmount {volume}")) {
                run(&format!("unmount {volume} --force"));
            }
        }
        self.killed.lock().unwrap().remove(volume);
        while !run(&format!("mount {volume} --as socket")) {
            let away = self.over.load(Ordering::SeqCst) && begun.elapsed() > HEAL_LIMIT;
            assert!(!away, "{volume} cannot be mounted again");
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// Ends the load when a user fails, so that the others do not go on for long.
pub struct EndsAll<'a>(&'a Load<'a>);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.timeline.note("a user has failed");
            self.0.over.store(true, Ordering::SeqCst);
        }
    }
}

struct Flying {
    blocks: Range<u64>,
    sent: u64,
    kind: Kind,
    /// See [`Load::dark`].
    dark: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Durable,
    Flush,
}

/// Why a connection is over.
enum End {
    /// The client is gone.
    Gone,
    /// The volume has failed loudly.
    Failed(String),
    /// It was taken away by force, with everything in flight.
    Fenced,
}

/// The user of a volume, and what it knows of it.
pub struct Writer {
    volume: String,
    server: usize,
    id: u64,
    random: Random,
    windows: Vec<Window>,
    flying: HashMap<u64, Flying>,
    clock: u64,
    /// Since when a new client has the volume, and has not flushed: what the former one had kept, nobody writes again.
    unkept_before: Option<u64>,
    /// See [`Load::dark`], when the last flush that was answered had been sent.
    dark_at_flush: u64,
    /// The same, at the last look.
    dark_seen: u64,
    /// One operation in so many is a flush.
    pub flush_one_in: u64,
    /// After one operation in so many another server takes the volume away by force.
    pub force_one_in: u64,
    /// Operations that were answered.
    pub answered: u64,
    /// The longest that an operation took.
    pub slowest: Duration,
}

impl Writer {
    /// The user of a mounted volume of that size, which reads as zeroes.
    pub fn new(volume: &str, server: usize, size: u64, seed: u64) -> Self {
        let blocks = usize::try_from(size / BLOCK as u64).unwrap();
        Self {
            volume: volume.to_owned(),
            server,
            id: seed | 1,
            random: Random::new(seed),
            windows: vec![Window::new(); blocks],
            flying: HashMap::new(),
            clock: 0,
            unkept_before: None,
            dark_at_flush: 0,
            dark_seen: 0,
            flush_one_in: 60,
            force_one_in: 2500,
            answered: 0,
            slowest: Duration::ZERO,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Works until the load is over, with everything answered and flushed then.
    ///
    /// # Panics
    /// A block holds what it must not hold, or the volume does not heal.
    pub fn work(&mut self, load: &Load<'_>) {
        loop {
            let mut nbd = self.connect(load);
            match self.use_connection(&mut nbd, load) {
                Ok(()) => return,
                Err(End::Gone) => self.mount_again(load, false),
                Err(End::Fenced) => {
                    // The old connection is open still: nothing of it may land from now on (F3).
                    self.mount_again(load, false);
                    let late = nbd.call(&Op::Write(0, vec![1; BLOCK], 0));
                    assert!(late.is_err() || late.is_ok_and(|done| done.error != 0), "{}: a fenced client writes", self.volume);
                }
                Err(End::Failed(what)) => {
                    load.timeline.note(format!("{}: failed loudly: {what}", self.volume));
                    drop(nbd);
                    self.mount_again(load, true);
                }
            }
        }
    }

    fn connect(&mut self, load: &Load<'_>) -> Nbd {
        let socket = load.pool.socket(self.server, &self.volume);
        let begun = Instant::now();
        loop {
            match Nbd::connect(&socket) {
                Ok(nbd) => {
                    nbd.set_patience(HEAL_LIMIT).unwrap();
                    return nbd;
                }
                Err(e) => {
                    assert!(begun.elapsed() < HEAL_LIMIT, "{}: {}: {e}", self.volume, socket.display());
                    // It may have been killed again since it was mounted.
                    let home = load.pool.mount_dir(self.server, &self.volume);
                    if Process::of(&home).is_none() {
                        self.mount_again(load, false);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    fn use_connection(&mut self, nbd: &mut Nbd, load: &Load<'_>) -> Result<(), End> {
        let mut over_since = None;
        let mut sent_at: HashMap<u64, Instant> = HashMap::new();
        loop {
            let over = load.over.load(Ordering::SeqCst);
            if over && self.flying.is_empty() {
                let done = nbd.call(&Op::Flush).map_err(|e| self.ended(load, &e))?;
                if done.error != 0 {
                    return Err(End::Failed(format!("error {} of the last flush", done.error)));
                }
                let now = self.tick();
                self.windows.iter_mut().for_each(|w| w.flush(now));
                return Ok(());
            }
            if over {
                let since = *over_since.get_or_insert_with(Instant::now);
                assert!(since.elapsed() < HEAL_LIMIT, "{}: {} operations stay without an answer", self.volume, self.flying.len());
            } else if self.random.below(self.force_one_in) == 0 {
                load.force(self.server, &self.volume);
                return Err(End::Fenced);
            } else if self.flying.len() < DEPTH {
                self.look(load);
                let (op, blocks, kind) = self.choose();
                let cookie = self.submit(nbd, &op, blocks, kind).map_err(|e| self.ended(load, &e))?;
                sent_at.insert(cookie, Instant::now());
                if self.random.below(8) == 0 {
                    // The machine has other things to do as well.
                    std::thread::sleep(Duration::from_micros(self.random.below(4000)));
                }
            }
            let full = self.flying.len() >= DEPTH || over;
            let patience = if full { Duration::from_millis(200) } else { Duration::ZERO };
            while nbd.answered_within(patience).map_err(|e| self.ended(load, &e))? {
                let done = nbd.complete().map_err(|e| self.ended(load, &e))?;
                self.look(load);
                let flying = self.flying.remove(&done.cookie).expect("one answer for each request");
                if let Some(begun) = sent_at.remove(&done.cookie) {
                    self.slowest = self.slowest.max(begun.elapsed());
                }
                if done.error != 0 {
                    // Whether it happened is unknown.
                    self.flying.insert(done.cookie, flying);
                    return Err(End::Failed(format!("error {}", done.error)));
                }
                self.answer(&flying, &done.data);
                if self.flying.is_empty() {
                    break;
                }
            }
        }
    }

    /// The connection has ended: on purpose, or something is wrong.
    fn ended(&self, load: &Load<'_>, error: &std::io::Error) -> End {
        let killed = load.killed.lock().unwrap().contains(&self.volume);
        if killed {
            return End::Gone;
        }
        let runs = Process::of(&load.pool.mount_dir(self.server, &self.volume)).is_some();
        panic!("{}: the connection broke by itself ({error}); its client {}", self.volume, if runs { "runs" } else { "is gone" });
    }

    fn choose(&mut self) -> (Op, Range<u64>, Kind) {
        let blocks = self.windows.len() as u64;
        if self.random.below(self.flush_one_in) == 0 {
            return (Op::Flush, 0..0, Kind::Flush);
        }
        let read = self.random.below(3) == 0;
        let length_max = if read { READ_MAX } else { LENGTH_MAX };
        let length = if self.random.below(2) == 0 { 1 } else { 1 + self.random.below(length_max) };
        // Half of all operations meet in a narrow place.
        let room = if self.random.below(2) == 0 { 64 } else { blocks };
        let first = self.random.below(room.min(blocks) - length + 1);
        let range = first..first + length;
        let (offset, bytes) = (first * BLOCK as u64, length as u32 * BLOCK as u32);
        if read {
            return (Op::Read(offset, bytes), range, Kind::Read);
        }
        match self.random.below(14) {
            0..=10 => (Op::Write(offset, Vec::new(), 0), range, Kind::Write),
            11 => (Op::Write(offset, Vec::new(), FUA), range, Kind::Durable),
            12 => (Op::Zero(offset, bytes, if self.random.below(2) == 0 { 0 } else { NO_HOLE }), range, Kind::Write),
            _ => (Op::Trim(offset, bytes), range, Kind::Write),
        }
    }

    fn submit(&mut self, nbd: &mut Nbd, op: &Op, blocks: Range<u64>, kind: Kind) -> std::io::Result<u64> {
        let sent = self.tick();
        let op = match op {
            Op::Write(offset, _, flags) => {
                let data = blocks.clone().flat_map(|block| fill(self.id, block, sent)).collect();
                Op::Write(*offset, data, *flags)
            }
            other => other.clone(),
        };
        let value = if matches!(op, Op::Write(..)) { Value::Written(sent) } else { Value::Zero };
        if matches!(kind, Kind::Write | Kind::Durable) {
            self.windows_of(&blocks).for_each(|w| w.issue(value, sent));
        }
        let cookie = nbd.submit(&op)?;
        self.flying.insert(cookie, Flying { blocks, sent, kind, dark: self.dark_seen });
        Ok(cookie)
    }

    fn windows_of(&mut self, blocks: &Range<u64>) -> impl Iterator<Item = &mut Window> {
        self.windows.get_mut(blocks.start as usize..blocks.end as usize).into_iter().flatten()
    }

    fn answer(&mut self, flying: &Flying, data: &[u8]) {
        let now = self.tick();
        self.answered += 1;
        match flying.kind {
            Kind::Read => self.check(flying.blocks.start, data, flying.sent, "while working"),
            Kind::Write => self.windows_of(&flying.blocks).for_each(|w| w.answer(flying.sent, now)),
            Kind::Durable => self.windows_of(&flying.blocks).for_each(|w| {
                w.answer(flying.sent, now);
                w.durable(flying.sent);
            }),
            Kind::Flush => {
                self.windows.iter_mut().for_each(|w| w.flush(flying.sent));
                self.unkept_before = None;
                self.dark_at_flush = flying.dark;
            }
        }
    }

    fn check(&mut self, first: u64, data: &[u8], sent: u64, when: &str) {
        let (volume, id) = (self.volume.clone(), self.id);
        for (block, bytes) in (first..).zip(data.chunks(BLOCK)) {
            let window = &mut self.windows[block as usize];
            let found = match parse(id, block, bytes) {
                Ok(value) => window.read(value, sent),
                Err(why) => window.read_torn(id, block, bytes, sent).map_err(|_| why),
            };
            if let Err(why) = found {
                panic!("{volume}, block {block}, {when}: {why}");
            }
        }
    }

    fn mount_again(&mut self, load: &Load<'_>, failed: bool) {
        load.mount_again(self.server, &self.volume, failed);
        let powerless = load.powerless.lock().unwrap().remove(&self.volume);
        let now = self.tick();
        self.flying.clear();
        self.dark_seen = load.dark(&self.volume);
        // The client that is gone may not have written again what its lenders had lost.
        let unkept = self.dark_seen != self.dark_at_flush;
        for window in &mut self.windows {
            if failed || powerless || unkept {
                window.lost(now);
            } else {
                window.fenced(now);
            }
        }
        self.unkept_before = Some(now);
    }

    /// Whether the lenders have lost power, with what nobody writes again.
    fn look(&mut self, load: &Load<'_>) {
        let dark = load.dark(&self.volume);
        if std::mem::replace(&mut self.dark_seen, dark) == dark {
            return;
        }
        let now = self.tick();
        if let Some(since) = self.unkept_before {
            self.windows.iter_mut().for_each(|w| w.lost_before(since, now));
        }
    }

    /// Reads the whole volume and checks every block.
    ///
    /// # Panics
    /// A block holds what it must not hold.
    pub fn check_all(&mut self, nbd: &mut Nbd, when: &str) {
        let blocks = self.windows.len() as u64;
        for first in (0..blocks).step_by(256) {
            let count = 256.min(blocks - first);
            let sent = self.tick();
            let data = nbd
                .read(first * BLOCK as u64, count as u32 * BLOCK as u32)
                .unwrap_or_else(|e| panic!("{}, blocks from {first}, {when}: {e}", self.volume));
            self.check(first, &data, sent, when);
        }
    }
}
