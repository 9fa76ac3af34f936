//! The real doors with a disk that can be held up: writes wait at a gate, before or behind the real write.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use sublet_doors::disk::Zero;
use sublet_doors::local::Signal;
use sublet_doors::real::RealDoors;
use sublet_doors::{Buffer, Chunk, Clock, Disk, DiskFile, Doors, Endpoint, FileFacts, Net, OpenHow, Rng, Tick};

/// Writes of this many bytes or more wait while it is closed.
const LARGE: usize = 64 << 10;

/// The gate that large writes pass: label writes are small and go through.
#[derive(Default)]
pub(crate) struct DiskGate {
    closed: Cell<bool>,
    pub(crate) waiting: Cell<usize>,
    /// Every write and sync fails from now on.
    pub(crate) broken: Cell<bool>,
    signal: Signal,
}

impl DiskGate {
    pub(crate) fn close(&self) {
        self.closed.set(true);
    }

    pub(crate) fn open(&self) {
        self.closed.set(false);
        self.signal.notify();
    }

    fn works(&self) -> io::Result<()> {
        if self.broken.get() { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }

    async fn pass(&self) {
        self.waiting.set(self.waiting.get() + 1);
        loop {
            let seen = self.signal.version();
            if !self.closed.get() {
                break;
            }
            self.signal.changed(seen).await;
        }
        self.waiting.set(self.waiting.get() - 1);
    }
}

#[derive(Clone)]
pub(crate) struct SlowDoors {
    pub(crate) real: RealDoors,
    pub(crate) gate: Rc<DiskGate>,
}

pub(crate) struct SlowFile {
    file: <RealDoors as Disk>::File,
    gate: Rc<DiskGate>,
}

impl Disk for SlowDoors {
    type File = SlowFile;
    async fn open(&self, path: &Path, how: OpenHow) -> io::Result<SlowFile> {
        Ok(SlowFile { file: self.real.open(path, how).await?, gate: Rc::clone(&self.gate) })
    }
}

impl DiskFile for SlowFile {
    fn facts(&self) -> &FileFacts {
        self.file.facts()
    }
    async fn read_at(&self, offset: u64, buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        self.file.read_at(offset, buffer, range).await
    }
    async fn write_at(&self, offset: u64, data: Chunk) -> io::Result<()> {
        if data.len() >= LARGE {
            self.gate.pass().await;
        }
        self.gate.works()?;
        self.file.write_at(offset, data).await
    }
    async fn sync(&self) -> io::Result<()> {
        self.gate.works()?;
        self.file.sync().await
    }
    async fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()> {
        self.file.zero(offset, length, how).await
    }
    async fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<(u64, bool)>> {
        self.file.extents(offset, length).await
    }
}

impl Net for SlowDoors {
    type Conn = <RealDoors as Net>::Conn;
    type Listener = <RealDoors as Net>::Listener;
    async fn connect(&self, to: &Endpoint, limit: Duration) -> io::Result<Self::Conn> {
        self.real.connect(to, limit).await
    }
    async fn listen(&self, at: &Endpoint) -> io::Result<Self::Listener> {
        self.real.listen(at).await
    }
}

impl Clock for SlowDoors {
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

impl Rng for SlowDoors {
    fn random_u128(&self) -> u128 {
        self.real.random_u128()
    }
}

impl Doors for SlowDoors {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.real.spawn(task);
    }
}
