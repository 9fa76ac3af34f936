//! Disks: files with a page cache over what is durable, in-flight operations, locks, and every fault.
//!
//! A write is seen by readers when it has landed; it is durable when a sync that began after that has ended. When the machine
//! crashes, each block written since is lost, kept, or torn at sectors of 512 bytes, independently of the others.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use sublet_doors::local::Signal;

use crate::exec::{MILLISECOND, ProcessId, Sim, Time};

/// The block of a simulated file.
pub const BLOCK: u64 = 4096;
/// The sector: what is written wholly or not at all.
const SECTOR: usize = 512;

/// The bytes of a block, shared by the page cache and the medium.
type Block = Rc<[u8]>;
/// Blocks that are not all zero.
type Blocks = BTreeMap<u64, Block>;

/// A change that is not durable yet.
enum Change {
    Write { block: u64, data: Block },
    Zero { first: u64, count: u64 },
}

/// How a disk misbehaves. Chances are per million operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskFaults {
    /// A read fails.
    pub read_error: u64,
    /// A write fails; part of it may have been written.
    pub write_error: u64,
    /// A sync fails; what it covered is lost from the page cache's promises (and is reported once).
    pub sync_error: u64,
    /// A write is answered and never reaches the disk.
    pub lost_write: u64,
    /// A write lands at another place.
    pub misdirected_write: u64,
    /// No room: every write fails.
    pub full: bool,
    /// Operations take so many times longer.
    pub slow: u64,
}

/// Asks about a range of bytes, given as begin and length.
type IsSeen = dyn Fn(u64, u64) -> bool;

/// One file or device of a machine.
pub struct SimFile {
    pub(crate) path: PathBuf,
    pub(crate) size: Cell<u64>,
    pub(crate) device: bool,
    pub(crate) sequence: Cell<u64>,
    current: RefCell<Blocks>,
    durable: RefCell<Blocks>,
    unsynced: RefCell<Vec<Change>>,
    /// What blocks should hold that do not: bits have flipped, writes were lost or went astray. Runs with such damage cut the
    /// power of other machines only, so that this is exact.
    damaged: RefCell<Blocks>,
    /// How many changes were made durable or dropped before the first one of `unsynced`.
    synced: Cell<u64>,
    /// The open file description that holds the lock.
    lock: Cell<Option<u64>>,
    pub(crate) unlocked: Signal,
    pub(crate) faults: Cell<DiskFaults>,
    /// Nothing ends before this time.
    pub(crate) stuck_until: Cell<Time>,
    /// Where the data begins, behind labels and other metadata: writes are lost and go astray only there.
    pub(crate) data_begin: Cell<u64>,
    /// Whether damage to a range of bytes of the data would be seen (K2).
    pub(crate) is_seen: RefCell<Box<IsSeen>>,
    latency: Time,
    /// Bytes that landed so far.
    pub(crate) bytes_written: Cell<u64>,
}

static ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];

fn put(blocks: &mut Blocks, block: u64, data: &Block) {
    if **data == ZEROES {
        blocks.remove(&block);
    } else {
        blocks.insert(block, Rc::clone(data));
    }
}

/// A block of which a part was written.
fn changed(before: Option<&Block>, within: usize, from: &[u8]) -> Block {
    if from.len() == BLOCK as usize {
        return Block::from(from);
    }
    let mut bytes = before.map_or_else(|| Block::from(ZEROES.as_slice()), Rc::clone);
    if let Some(to) = Rc::make_mut(&mut bytes).get_mut(within..within + from.len()) {
        to.copy_from_slice(from);
    }
    bytes
}

fn clear(blocks: &mut Blocks, first: u64, count: u64) {
    let gone: Vec<u64> = blocks.range(first..first + count).map(|(block, _)| *block).collect();
    for block in gone {
        blocks.remove(&block);
    }
}

impl SimFile {
    fn new(path: PathBuf, size: u64, device: bool, sequence: u64, latency: Time) -> Self {
        Self {
            path,
            size: Cell::new(size),
            device,
            sequence: Cell::new(sequence),
            current: RefCell::default(),
            durable: RefCell::default(),
            unsynced: RefCell::default(),
            damaged: RefCell::default(),
            synced: Cell::new(0),
            lock: Cell::new(None),
            unlocked: Signal::new(),
            faults: Cell::default(),
            stuck_until: Cell::new(0),
            data_begin: Cell::new(0),
            is_seen: RefCell::new(Box::new(|_, _| true)),
            latency,
            bytes_written: Cell::new(0),
        }
    }

    /// Another disk of the same size and kind that holds these bytes.
    fn another(&self, sim: &Sim, blocks: &Blocks) -> Rc<Self> {
        let disk = Self::new(self.path.clone(), self.size.get(), self.device, sim.below(u64::MAX), self.latency);
        disk.data_begin.set(self.data_begin.get());
        disk.current.replace(blocks.clone());
        disk.durable.replace(blocks.clone());
        Rc::new(disk)
    }

    /// A new disk like this one.
    pub(crate) fn blank(&self, sim: &Sim) -> Rc<Self> {
        self.another(sim, &Blocks::new())
    }

    /// A copy of what is durable on this disk now.
    pub(crate) fn copy(&self, sim: &Sim) -> Rc<Self> {
        self.another(sim, &self.durable.borrow())
    }

    /// How long an operation of so many bytes takes from now on.
    pub(crate) fn duration(&self, sim: &Sim, bytes: u64) -> Time {
        let slow = self.faults.get().slow.max(1);
        // Now and then one operation takes far longer than those around it, and lands after them.
        let late = if sim.chance(20_000) { sim.between(2, 40) } else { 1 };
        let base = (sim.between(self.latency / 2, self.latency * 2) + bytes / 2) * late;
        let end = sim.now() + base * slow;
        end.max(self.stuck_until.get()) - sim.now()
    }

    /// Reads what a reader sees.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if offset + into.len() as u64 > self.size.get() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let current = self.current.borrow();
        let mut at = 0;
        while at < into.len() {
            let place = offset + at as u64;
            let (block, within) = (place / BLOCK, (place % BLOCK) as usize);
            let length = (BLOCK as usize - within).min(into.len() - at);
            let part = into.get_mut(at..at + length).unwrap_or(&mut []);
            match current.get(&block) {
                Some(data) => part.copy_from_slice(data.get(within..within + length).unwrap_or(&[])),
                None => part.fill(0),
            }
            at += length;
        }
        Ok(())
    }

    /// A write lands in the page cache. Partial blocks keep what is beside.
    pub(crate) fn land(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset + data.len() as u64 > self.size.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes_written.set(self.bytes_written.get() + data.len() as u64);
        let mut current = self.current.borrow_mut();
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let (block, within) = (place / BLOCK, (place % BLOCK) as usize);
            let length = (BLOCK as usize - within).min(data.len() - at);
            let from = data.get(at..at + length).unwrap_or(&[]);
            let bytes = changed(current.get(&block), within, from);
            if !self.damaged.borrow().is_empty() {
                self.mended(block, within, from, &bytes);
            }
            put(&mut current, block, &bytes);
            self.unsynced.borrow_mut().push(Change::Write { block, data: bytes });
            at += length;
        }
        Ok(())
    }

    /// A block is written: if it was damaged, it is well again where it was written.
    fn mended(&self, block: u64, within: usize, from: &[u8], bytes: &Block) {
        let mut damaged = self.damaged.borrow_mut();
        let Some(right) = damaged.remove(&block).map(|right| changed(Some(&right), within, from)) else { return };
        if right != *bytes {
            damaged.insert(block, right);
        }
    }

    fn right(&self, block: u64) -> Block {
        let right = self.damaged.borrow().get(&block).cloned();
        right.or_else(|| self.current.borrow().get(&block).cloned()).unwrap_or_else(|| Block::from(ZEROES.as_slice()))
    }

    /// A write of whole blocks is answered and does not reach its place; with `wrong` it lands there instead.
    pub(crate) fn lose(&self, offset: u64, data: &[u8], wrong: Option<u64>) -> io::Result<()> {
        let count = data.len() as u64 / BLOCK;
        let at = wrong.map_or(0, |wrong| wrong / BLOCK);
        let overwritten = at..at + wrong.map_or(0, |_| count);
        let mut right: Blocks = overwritten.map(|block| (block, self.right(block))).collect();
        let lost = (0..count).zip(data.chunks(BLOCK as usize));
        right.extend(lost.map(|(index, bytes)| (offset / BLOCK + index, Block::from(bytes))));
        if let Some(wrong) = wrong {
            self.land(wrong, data)?;
        }
        let current = self.current.borrow();
        let now = |block: &u64| current.get(block).map_or(&ZEROES[..], |bytes| bytes);
        right.retain(|block, bytes| **bytes != *now(block));
        self.damaged.borrow_mut().extend(right);
        Ok(())
    }

    /// The damaged blocks of a range of bytes, with what they should hold.
    pub(crate) fn damage(&self, offset: u64, length: u64) -> Vec<(u64, Rc<[u8]>)> {
        let (damaged, current) = (self.damaged.borrow(), self.current.borrow());
        let blocks = damaged.range(offset / BLOCK..(offset + length).div_ceil(BLOCK));
        let is_wrong = |block: &u64, right: &Block| **right != *current.get(block).map_or(&ZEROES[..], |bytes| bytes);
        blocks.filter(|(block, right)| is_wrong(block, right)).map(|(block, right)| (block * BLOCK, Rc::clone(right))).collect()
    }

    /// Undoes damage to a range of bytes; `undone` says what a block holds then, from what it should hold.
    pub(crate) fn heal(&self, offset: u64, length: u64, undone: impl Fn(&[u8]) -> Rc<[u8]>) {
        for (at, right) in self.damage(offset, length) {
            let right = undone(&right);
            self.damaged.borrow_mut().remove(&(at / BLOCK));
            put(&mut self.current.borrow_mut(), at / BLOCK, &right);
            put(&mut self.durable.borrow_mut(), at / BLOCK, &right);
            self.unsynced.borrow_mut().push(Change::Write { block: at / BLOCK, data: right });
        }
    }

    /// Zeroes land.
    pub(crate) fn land_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        if offset + length > self.size.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let end = offset + length;
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        if first >= last {
            return self.land(offset, &vec![0; length as usize]);
        }
        self.land(offset, &vec![0; (first * BLOCK - offset) as usize])?;
        self.land(last * BLOCK, &vec![0; (end - last * BLOCK) as usize])?;
        clear(&mut self.current.borrow_mut(), first, last - first);
        clear(&mut self.damaged.borrow_mut(), first, last - first);
        self.unsynced.borrow_mut().push(Change::Zero { first, count: last - first });
        Ok(())
    }

    /// How many changes have landed; a sync that begins now covers so many.
    pub(crate) fn landed(&self) -> u64 {
        self.synced.get() + self.unsynced.borrow().len() as u64
    }

    /// Everything up to that count is durable.
    pub(crate) fn synced(&self, count: u64) {
        let ready = (count.saturating_sub(self.synced.get()) as usize).min(self.unsynced.borrow().len());
        let mut durable = self.durable.borrow_mut();
        for change in self.unsynced.borrow_mut().drain(..ready) {
            match change {
                Change::Write { block, data } => put(&mut durable, block, &data),
                Change::Zero { first, count } => clear(&mut durable, first, count),
            }
        }
        self.synced.set(self.synced.get() + ready as u64);
    }

    /// A sync failed: the kernel forgets that these pages were dirty. What of them is on the medium is anybody's guess, and
    /// readers may see either.
    pub(crate) fn sync_failed(&self, sim: &Sim, count: u64) {
        let ready = (count.saturating_sub(self.synced.get()) as usize).min(self.unsynced.borrow().len());
        let changes: Vec<Change> = self.unsynced.borrow_mut().drain(..ready).collect();
        self.synced.set(self.synced.get() + ready as u64);
        self.settle(sim, changes);
    }

    /// Each change reaches the medium wholly, partly or not at all.
    fn settle(&self, sim: &Sim, changes: Vec<Change>) {
        let mut durable = self.durable.borrow_mut();
        // Whole runs often share their fate: a queue that was written out, or never was.
        let mode = sim.below(4);
        for change in changes {
            let fate = match mode {
                0 => 0,
                1 => 1,
                _ => sim.below(4),
            };
            match (change, fate) {
                (_, 0) => {}
                (Change::Write { block, data }, 1 | 2) => put(&mut durable, block, &data),
                (Change::Write { block, data }, _) => {
                    let mask = sim.below(256);
                    let mut bytes = durable.get(&block).map_or_else(|| ZEROES.to_vec(), |known| known.to_vec());
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        if mask & (1 << index) != 0
                            && let Some(to) = bytes.get_mut(index * SECTOR..(index + 1) * SECTOR)
                        {
                            to.copy_from_slice(sector);
                        }
                    }
                    put(&mut durable, block, &Block::from(bytes));
                }
                (Change::Zero { first, count }, 1 | 2) => clear(&mut durable, first, count),
                (Change::Zero { first, count }, _) => {
                    let begin = sim.below(count);
                    let length = sim.below(count - begin + 1);
                    clear(&mut durable, first + begin, length);
                }
            }
        }
    }

    /// The machine crashes: what was not durable is lost, kept or torn.
    pub(crate) fn crash(&self, sim: &Sim) {
        let changes = std::mem::take(&mut *self.unsynced.borrow_mut());
        self.synced.set(self.synced.get() + changes.len() as u64);
        self.settle(sim, changes);
        let durable = self.durable.borrow().clone();
        self.current.replace(durable);
        self.lock.set(None);
        self.unlocked.notify();
    }

    /// Flips a bit of a written block in the range, on the medium and in the page cache; says where, if there was one.
    pub fn rot(&self, sim: &Sim, offset: u64, length: u64) -> Option<u64> {
        let range = offset / BLOCK..(offset + length) / BLOCK;
        let blocks: Vec<u64> = self.durable.borrow().range(range).map(|(block, _)| *block).collect();
        if blocks.is_empty() {
            return None;
        }
        let block = *sim.random(|random| random.pick(&blocks));
        let place = block * BLOCK;
        if place >= self.data_begin.get() && !(self.is_seen.borrow())(place, BLOCK) {
            return None;
        }
        let bit = sim.below(BLOCK * 8) as usize;
        let right = self.right(block);
        self.damaged.borrow_mut().insert(block, right);
        for blocks in [&self.current, &self.durable] {
            if let Some(data) = blocks.borrow_mut().get_mut(&block)
                && let Some(byte) = Rc::make_mut(data).get_mut(bit / 8)
            {
                *byte ^= 1 << (bit % 8);
            }
        }
        Some(block * BLOCK)
    }

    /// What was on a device before it was lent: a block of every stretch of `step` bytes from `begin` on is not zero.
    pub(crate) fn soil(&self, begin: u64, step: u64) {
        let dirt = Block::from([0xd1; BLOCK as usize]);
        for at in (begin..self.size.get()).step_by(step as usize) {
            for block in at / BLOCK..at / BLOCK + 4 {
                self.current.borrow_mut().insert(block, Rc::clone(&dirt));
                self.durable.borrow_mut().insert(block, Rc::clone(&dirt));
            }
        }
    }

    /// A file that is extended or cut.
    pub(crate) fn set_size(&self, size: u64) {
        let old = self.size.get();
        if size < old {
            clear(&mut self.current.borrow_mut(), size.div_ceil(BLOCK), old.div_ceil(BLOCK) + 1);
            let first = size.div_ceil(BLOCK);
            self.unsynced.borrow_mut().push(Change::Zero { first, count: old.div_ceil(BLOCK) + 1 - first });
        }
        self.size.set(size);
    }
}

/// An open file description: what holds the lock.
pub(crate) struct Description {
    id: u64,
    pub(crate) process: ProcessId,
    pub(crate) file: Rc<SimFile>,
    pub(crate) in_flight: Cell<usize>,
    pub(crate) closed: Cell<bool>,
}

impl Description {
    pub(crate) fn new(id: u64, process: ProcessId, file: &Rc<SimFile>) -> Rc<Self> {
        Rc::new(Self { id, process, file: Rc::clone(file), in_flight: Cell::new(0), closed: Cell::new(false) })
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_lock(&self) -> bool {
        let free = self.file.lock.get().is_none();
        if free {
            self.file.lock.set(Some(self.id));
        }
        free
    }

    /// The lock goes when the description is closed and none of its operations is in the kernel any more (F2).
    fn release(&self) {
        if self.closed.get() && self.in_flight.get() == 0 && self.file.lock.get() == Some(self.id) {
            self.file.lock.set(None);
            self.file.unlocked.notify();
        }
    }

    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.release();
    }

    pub(crate) fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    pub(crate) fn end(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.release();
    }
}

/// The files of one machine.
#[derive(Default)]
pub struct Files(BTreeMap<PathBuf, Rc<SimFile>>);

impl Files {
    /// Makes a file or device of zeroes.
    pub fn make(&mut self, sim: &Sim, path: &str, size: u64, device: bool) -> Rc<SimFile> {
        let latency = sim.between(MILLISECOND / 50, MILLISECOND);
        let file = Rc::new(SimFile::new(PathBuf::from(path), size, device, sim.below(u64::MAX), latency));
        self.0.insert(PathBuf::from(path), Rc::clone(&file));
        file
    }

    /// The file of that name.
    pub fn get(&self, path: &Path) -> Option<Rc<SimFile>> {
        self.0.get(path).cloned()
    }

    /// Puts another disk into the place of that name; the answer is the one that was there. Nobody has it open.
    pub(crate) fn change(&mut self, path: &Path, disk: Rc<SimFile>) -> Option<Rc<SimFile>> {
        let place = self.0.get_mut(path)?;
        Some(std::mem::replace(place, disk))
    }

    /// All files, in the order of their names.
    pub fn all(&self) -> Vec<Rc<SimFile>> {
        self.0.values().cloned().collect()
    }
}
