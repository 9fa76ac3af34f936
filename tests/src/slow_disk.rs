//! A disk whose writes can be held up in the kernel: a file of a FUSE file system of this process, under a loop device. What a
//! killed process has handed to it is still on its way then, as with a real disk that is slow.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use sublet_client::clean_up;
use sublet_client::device::{BlockDevice, DeviceError, Extent, ZeroFlags};
use sublet_client::fuse::BlockFrontEnd;
use sublet_doors::real::{RealDoors, run};
use sublet_doors::{Chunk, Clock};

use crate::disks::LoopDisk;
use crate::pool::scratch;

/// Writes that are at least so large can be held up; labels and marks are smaller.
const LARGE: usize = 64 << 10;
/// How often a write that is held up looks whether it may go on.
const PAUSE: Duration = Duration::from_millis(2);

/// Numbers the disks of one test process.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// What the test and the disk's thread share.
#[derive(Default)]
struct Gate {
    is_closed: AtomicBool,
    waiting: AtomicUsize,
    landed: AtomicUsize,
    is_over: AtomicBool,
}

/// Bytes in memory behind a gate.
struct Slow {
    doors: RealDoors,
    bytes: RefCell<Vec<u8>>,
    gate: Arc<Gate>,
}

impl BlockDevice for Slow {
    fn size(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    async fn read(&self, offset: u64, length: u64) -> Result<Vec<Chunk>, DeviceError> {
        let bytes = self.bytes.borrow();
        Ok(vec![Chunk::copy_of(&bytes[offset as usize..(offset + length) as usize])])
    }
    async fn write(&self, offset: u64, data: Chunk, _fua: bool) -> Result<(), DeviceError> {
        let large = data.len() >= LARGE;
        if large {
            self.gate.waiting.fetch_add(1, Ordering::SeqCst);
            while self.gate.is_closed.load(Ordering::SeqCst) {
                self.doors.sleep(PAUSE).await;
            }
            self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        let at = offset as usize;
        self.bytes.borrow_mut()[at..at + data.len()].copy_from_slice(&data);
        self.gate.landed.fetch_add(usize::from(large), Ordering::SeqCst);
        Ok(())
    }
    async fn write_zeroes(&self, offset: u64, length: u64, _flags: ZeroFlags) -> Result<(), DeviceError> {
        let at = offset as usize;
        self.bytes.borrow_mut()[at..at + length as usize].fill(0);
        Ok(())
    }
    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn extents(&self, _offset: u64, length: u64) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { length, data: true }])
    }
}

/// The disk; taken down when dropped.
pub struct SlowDisk {
    /// What can be lent: a second loop device over the first, because files in FUSE file systems are borrowed volumes mostly,
    /// and are not lent on.
    disk: Option<LoopDisk>,
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl SlowDisk {
    /// A disk of that size in bytes.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(size: usize) -> Self {
        let dir = scratch();
        let gate = Arc::new(Gate::default());
        let (ready, is_ready) = mpsc::channel();
        let (path, own) = (dir.path().to_owned(), Arc::clone(&gate));
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = format!("slow-disk-{}-{number}", std::process::id());
        let thread =
            std::thread::spawn(move || run(async move |doors| serve(doors, size, &path, &name, own, ready).await).unwrap());
        let link = is_ready.recv().expect("the slow disk came up");
        let disk = LoopDisk::over(&std::fs::canonicalize(link).unwrap());
        Self { disk: Some(disk), gate, thread: Some(thread), dir }
    }

    /// Its device file.
    ///
    /// # Panics
    /// Never.
    pub fn device(&self) -> &str {
        &self.disk.as_ref().unwrap().device
    }

    /// From now on large writes wait.
    pub fn hold(&self) {
        self.gate.is_closed.store(true, Ordering::SeqCst);
    }

    /// They go on.
    pub fn release(&self) {
        self.gate.is_closed.store(false, Ordering::SeqCst);
    }

    /// How many large writes wait.
    pub fn waiting(&self) -> usize {
        self.gate.waiting.load(Ordering::SeqCst)
    }

    /// How many large writes have ended.
    pub fn landed(&self) -> usize {
        self.gate.landed.load(Ordering::SeqCst)
    }
}

async fn serve(doors: RealDoors, size: usize, dir: &Path, name: &str, gate: Arc<Gate>, ready: mpsc::Sender<PathBuf>) {
    let device = Rc::new(Slow { doors: doors.clone(), bytes: RefCell::new(vec![0; size]), gate: Arc::clone(&gate) });
    let front = BlockFrontEnd::start(&doors, device, dir, name).await.unwrap();
    ready.send(front.link().to_owned()).unwrap();
    while !gate.is_over.load(Ordering::SeqCst) {
        doors.sleep(Duration::from_millis(20)).await;
    }
    front.stop().await;
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.release();
        drop(self.disk.take());
        self.gate.is_over.store(true, Ordering::SeqCst);
        let ended = self.thread.take().is_some_and(|thread| thread.join().is_ok());
        if !ended {
            // What a test that failed left; it says itself what went wrong.
            let _ = clean_up(self.dir.path());
        }
    }
}
