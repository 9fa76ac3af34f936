//! A machine in memory: it records every write and sync, breaks where it is told to, and can be crashed at any point.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use sublet_doors::disk::Zero;
use sublet_doors::real::{RealDoors, run};
use sublet_doors::{Buffer, Chunk, Clock, Disk, DiskFile, Doors, Endpoint, FileFacts, Net, OpenHow, Rng, Tick};

/// A file: its size, and the pages that were written.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Image {
    pub size: u64,
    /// Copies of an image share what they did not write.
    pages: BTreeMap<u64, Rc<Vec<u8>>>,
}

impl Image {
    pub fn new(size: u64) -> Self {
        Self { size, pages: BTreeMap::new() }
    }

    /// Every byte that was never written is `byte`: a used disk.
    pub fn filled(size: u64, byte: u8) -> Self {
        let page = Rc::new(vec![byte; 4096]);
        Self { size, pages: (0..size / 4096).map(|n| (n, Rc::clone(&page))).collect() }
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(at.is_multiple_of(512) && bytes.len().is_multiple_of(512), "direct I/O is aligned");
        assert!(at + bytes.len() as u64 <= self.size, "writes lie in the file");
        for (n, sector) in bytes.chunks(512).enumerate() {
            let at = at + n as u64 * 512;
            let page = self.pages.entry(at / 4096).or_default();
            let page = Rc::make_mut(page);
            page.resize(4096, 0);
            page[(at % 4096) as usize..][..512].copy_from_slice(sector);
        }
    }

    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let begin = at / 4096 * 4096;
        let mut bytes = vec![0; (at + length as u64 - begin) as usize];
        self.read_pages(begin, &mut bytes);
        bytes.split_off((at - begin) as usize)
    }

    fn read_pages(&self, at: u64, into: &mut [u8]) {
        for (n, part) in into.chunks_mut(4096).enumerate() {
            match self.pages.get(&(at / 4096 + n as u64)) {
                Some(page) => part.copy_from_slice(&page[..part.len()]),
                None => part.fill(0),
            }
        }
    }

    fn zero(&mut self, at: u64, length: u64) {
        assert!(at.is_multiple_of(4096) && length.is_multiple_of(4096));
        for page in at / 4096..(at + length) / 4096 {
            self.pages.remove(&page);
        }
    }

    /// True if the byte occurs in the range.
    pub fn holds(&self, byte: u8, range: Range<u64>) -> bool {
        self.pages.range(range.start / 4096..range.end.div_ceil(4096)).any(|(_, page)| page.contains(&byte))
    }
}

/// All files by path.
pub(super) type Images = BTreeMap<PathBuf, Image>;

/// What was done to a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Write { path: PathBuf, at: u64, bytes: Vec<u8> },
    Zero { path: PathBuf, at: u64, length: u64 },
    Sync { path: PathBuf },
}

#[derive(Default)]
pub(super) struct Machine {
    pub images: RefCell<Images>,
    pub log: RefCell<Vec<Op>>,
    pub reads: Cell<usize>,
    /// Files claim to be devices.
    pub device: bool,
    /// This operation (counted from now) and all later ones fail.
    pub fail_after: Cell<Option<usize>>,
    /// The next sync fails, and only that: so does a kernel tell of lost writes.
    pub fail_sync: Cell<bool>,
    /// Reads that touch this range fail.
    pub unreadable: RefCell<Option<Range<u64>>>,
    /// Writes and zeroes that touch this range fail.
    pub unwritable: RefCell<Option<Range<u64>>>,
    /// What reads as zero because it was zeroed, or never written, is told as a hole.
    pub holes: Cell<bool>,
    /// There is no room for what was never written.
    pub full: Cell<bool>,
    /// Writes and syncs that were begun and whose end nobody waited for.
    pub abandoned: Cell<usize>,
}

/// Doors whose disk is a [`Machine`].
#[derive(Clone)]
pub(super) struct MemoryDoors {
    real: RealDoors,
    pub machine: Rc<Machine>,
}

pub(super) struct MemoryFile {
    path: PathBuf,
    facts: FileFacts,
    machine: Rc<Machine>,
}

impl MemoryDoors {
    pub fn new(images: Images, device: bool) -> Self {
        Self { real: RealDoors::new(), machine: Rc::new(Machine { images: RefCell::new(images), device, ..Machine::default() }) }
    }

    /// The same machine after a crash with these disks.
    pub fn restarted(&self, images: Images) -> Self {
        Self::new(images, self.machine.device)
    }

    pub fn images(&self) -> Images {
        self.machine.images.borrow().clone()
    }

    /// The only file.
    pub async fn open_file(&self) -> MemoryFile {
        let path = self.machine.images.borrow().keys().next().unwrap().clone();
        self.open(&path, OpenHow { write: false, direct: true, exclusive: false }).await.unwrap()
    }

    pub fn take_log(&self) -> Vec<Op> {
        self.machine.log.take()
    }
}

/// Runs a test inside the real runtime.
pub(super) fn with_files<T>(sizes: &[(&str, u64)], device: bool, test: impl AsyncFnOnce(MemoryDoors) -> T) -> T {
    let images = sizes.iter().map(|(path, size)| (PathBuf::from(path), Image::new(*size))).collect();
    run(async |_| test(MemoryDoors::new(images, device)).await).unwrap()
}

pub(super) fn apply(images: &mut Images, op: &Op) {
    match op {
        Op::Write { path, at, bytes } => images.get_mut(path).unwrap().write(*at, bytes),
        Op::Zero { path, at, length } => images.get_mut(path).unwrap().zero(*at, *length),
        Op::Sync { .. } => {}
    }
}

/// Every state that a crash during `log` may leave: for each prefix, everything arrived; everything since each file's last
/// sync is lost; only the last of it arrived; the last write arrived in part, or as garbage.
pub(super) fn crashes(base: &Images, log: &[Op]) -> Vec<(String, Images)> {
    let mut states = Vec::new();
    for end in 0..=log.len() {
        let done = &log[..end];
        let durable = |n: usize, op: &Op| {
            let (Op::Write { path, .. } | Op::Zero { path, .. } | Op::Sync { path }) = op;
            done[n..].iter().any(|later| matches!(later, Op::Sync { path: synced } if synced == path))
        };
        let replay = |keep: &dyn Fn(usize, &Op) -> bool| {
            let mut images = base.clone();
            for (n, op) in done.iter().enumerate().filter(|(n, op)| keep(*n, op)) {
                let _ = n;
                apply(&mut images, op);
            }
            images
        };
        states.push((format!("{end} operations arrived"), replay(&|_, _| true)));
        states.push((format!("{end} operations, unsynced ones lost"), replay(&durable)));
        states.push((
            format!("{end} operations, only the last unsynced one arrived"),
            replay(&|n, op| n + 1 == end || durable(n, op)),
        ));
        if let Some(Op::Write { path, at, bytes }) = done.last() {
            for part in [512, bytes.len() / 2 / 512 * 512] {
                let mut images = replay(&|n, op| n + 1 != end && durable(n, op));
                images.get_mut(path).unwrap().write(*at, &bytes[..part]);
                states.push((format!("{end} operations, {part} bytes of the last one arrived"), images));
            }
            // The power failed in the middle of a sector.
            let mut images = replay(&|n, op| n + 1 != end && durable(n, op));
            let garbage: Vec<u8> = bytes[..512].iter().map(|byte| byte ^ 0x5A).collect();
            images.get_mut(path).unwrap().write(*at, &garbage);
            states.push((format!("{end} operations, the last one became garbage"), images));
        }
    }
    states
}

/// A write or sync under way.
struct UnderWay<'a>(&'a Machine, bool);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.abandoned.set(self.0.abandoned.get() + usize::from(!self.1));
    }
}

/// A disk takes its time.
pub(super) async fn let_others_run() {
    let mut waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

impl MemoryFile {
    fn check_writable(&self, offset: u64, length: u64) -> io::Result<()> {
        let images = self.machine.images.borrow();
        let is_hole = |page: u64| !images[&self.path].pages.contains_key(&page);
        if self.machine.full.get() && (offset / 4096..(offset + length).div_ceil(4096)).any(is_hole) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match &*self.machine.unwritable.borrow() {
            Some(bad) if bad.start < offset + length && offset < bad.end => Err(io::Error::other("a bad sector")),
            _ => Ok(()),
        }
    }

    fn record(&self, op: Op) -> io::Result<()> {
        if let Some(left) = self.machine.fail_after.get() {
            if left == 0 {
                return Err(io::Error::other("injected"));
            }
            self.machine.fail_after.set(Some(left - 1));
        }
        if matches!(op, Op::Sync { .. }) && self.machine.fail_sync.take() {
            return Err(io::Error::other("injected"));
        }
        apply(&mut self.machine.images.borrow_mut(), &op);
        self.machine.log.borrow_mut().push(op);
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn facts(&self) -> &FileFacts {
        &self.facts
    }

    async fn read_at(&self, offset: u64, mut buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        self.machine.reads.set(self.machine.reads.get() + 1);
        let end = offset + range.len() as u64;
        if end > self.facts.size {
            return (Err(io::ErrorKind::UnexpectedEof.into()), buffer);
        }
        if self.machine.unreadable.borrow().as_ref().is_some_and(|bad| bad.start < end && offset < bad.end) {
            return (Err(io::Error::other("a bad sector")), buffer);
        }
        self.machine.images.borrow()[&self.path].read_pages(offset, &mut buffer[range]);
        (Ok(()), buffer)
    }

    async fn write_at(&self, offset: u64, data: Chunk) -> io::Result<()> {
        let mut under_way = UnderWay(&self.machine, false);
        let_others_run().await;
        under_way.1 = true;
        self.check_writable(offset, data.len() as u64)?;
        self.record(Op::Write { path: self.path.clone(), at: offset, bytes: data.to_vec() })
    }

    async fn sync(&self) -> io::Result<()> {
        // What is written while it runs is not covered by it.
        let mut under_way = UnderWay(&self.machine, false);
        let synced = self.record(Op::Sync { path: self.path.clone() });
        // A disk that fails takes its time.
        for _ in 0..if synced.is_ok() { 1 } else { 50 } {
            let_others_run().await;
        }
        under_way.1 = true;
        synced
    }

    async fn zero(&self, offset: u64, length: u64, _: Zero) -> io::Result<()> {
        self.check_writable(offset, length)?;
        self.record(Op::Zero { path: self.path.clone(), at: offset, length })
    }

    async fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<(u64, bool)>> {
        if !self.machine.holes.get() {
            return Ok(vec![(length, true)]);
        }
        let images = self.machine.images.borrow();
        let pages = offset / 4096..(offset + length) / 4096;
        Ok(pages.map(|page| (4096, images[&self.path].pages.contains_key(&page))).collect())
    }
}

impl Disk for MemoryDoors {
    type File = MemoryFile;

    async fn open(&self, path: &Path, _: OpenHow) -> io::Result<MemoryFile> {
        let size = self.machine.images.borrow().get(path).map(|image| image.size).ok_or(io::ErrorKind::NotFound)?;
        let facts = FileFacts { size, device: self.machine.device, direct: true, disk_sequence: 5, copy_on_write: false };
        Ok(MemoryFile { path: path.to_owned(), facts, machine: Rc::clone(&self.machine) })
    }
}

impl Net for MemoryDoors {
    type Conn = <RealDoors as Net>::Conn;
    type Listener = <RealDoors as Net>::Listener;

    async fn connect(&self, to: &Endpoint, limit: Duration) -> io::Result<Self::Conn> {
        self.real.connect(to, limit).await
    }

    async fn listen(&self, at: &Endpoint) -> io::Result<Self::Listener> {
        self.real.listen(at).await
    }
}

impl Clock for MemoryDoors {
    fn now(&self) -> Tick {
        self.real.now()
    }

    fn wall_ms(&self) -> u64 {
        self.real.wall_ms()
    }

    async fn sleep(&self, time: Duration) {
        self.real.sleep(time).await;
    }
}

impl Rng for MemoryDoors {
    fn random_u128(&self) -> u128 {
        self.real.random_u128()
    }
}

impl Doors for MemoryDoors {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.real.spawn(task);
    }
}
