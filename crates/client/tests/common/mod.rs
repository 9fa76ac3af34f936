//! What the front ends' tests share: a device in memory, and a server of it on a thread of its own.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod raw;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_channel::oneshot;
use sublet_client::device::{BlockDevice, DeviceError, Extent, ZeroFlags};
use sublet_client::nbd::Server;
use sublet_doors::real::{RealDoors, run};
use sublet_doors::{Chunk, Clock, Endpoint};

/// Bytes in memory; answers come in another order than the requests.
pub struct MemoryDevice {
    doors: RealDoors,
    pub bytes: RefCell<Vec<u8>>,
    read_only: bool,
    turn: Cell<u64>,
    pub flushes: Cell<u64>,
    /// Writes that had to be durable before their answer.
    pub durable_writes: Arc<AtomicU64>,
    /// Requests are never answered.
    pub hangs: Cell<bool>,
}

impl MemoryDevice {
    pub fn new(doors: RealDoors, size: usize, read_only: bool) -> Self {
        Self {
            doors,
            bytes: RefCell::new(vec![0; size]),
            read_only,
            turn: Cell::new(0),
            flushes: Cell::new(0),
            durable_writes: Arc::default(),
            hangs: Cell::new(false),
        }
    }

    /// Every third request waits a little; all of them wait for ever if the device hangs.
    async fn pause(&self) {
        self.turn.set(self.turn.get() + 1);
        if self.hangs.get() {
            std::future::pending::<()>().await;
        }
        if self.turn.get().is_multiple_of(3) {
            self.doors.sleep(Duration::from_micros(200)).await;
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    async fn read(&self, offset: u64, length: u64) -> Result<Vec<Chunk>, DeviceError> {
        self.pause().await;
        let bytes = self.bytes.borrow();
        Ok(vec![Chunk::copy_of(&bytes[offset as usize..(offset + length) as usize])])
    }
    async fn write(&self, offset: u64, data: Chunk, fua: bool) -> Result<(), DeviceError> {
        self.pause().await;
        self.durable_writes.fetch_add(fua.into(), Ordering::Relaxed);
        let at = offset as usize;
        self.bytes.borrow_mut()[at..at + data.len()].copy_from_slice(&data);
        Ok(())
    }
    async fn write_zeroes(&self, offset: u64, length: u64, _flags: ZeroFlags) -> Result<(), DeviceError> {
        self.pause().await;
        let at = offset as usize;
        self.bytes.borrow_mut()[at..at + length as usize].fill(0);
        Ok(())
    }
    async fn flush(&self) -> Result<(), DeviceError> {
        self.pause().await;
        self.flushes.set(self.flushes.get() + 1);
        Ok(())
    }
    async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, DeviceError> {
        let bytes = self.bytes.borrow();
        let mut at = offset;
        let mut found = Vec::new();
        while at < offset + length {
            let end = ((at / 4096 + 1) * 4096).min(offset + length);
            let data = bytes[at as usize..end as usize].iter().any(|b| *b != 0);
            found.push(Extent { length: end - at, data });
            at = end;
        }
        Ok(found)
    }
}

/// A running NBD server of a device in memory.
pub struct Served {
    pub dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Vec<u8>>>,
}

impl Served {
    pub fn start(size: usize, read_only: bool) -> Self {
        Self::filled(vec![0; size], read_only)
    }

    pub fn filled(bytes: Vec<u8>, read_only: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            run(async move |doors| {
                let device = Rc::new(MemoryDevice::new(doors.clone(), 0, read_only));
                *device.bytes.borrow_mut() = bytes;
                let server = Server::start(doors.clone(), Rc::clone(&device), "vol", &Endpoint::Unix(socket)).await.unwrap();
                ready.send(()).unwrap();
                let _ = stopped.await;
                server.stop(Duration::from_secs(5)).await;
                assert_eq!(server.connections(), 0, "a stopped server has no connection left");
                device.bytes.take()
            })
            .unwrap()
        });
        is_ready.recv().unwrap();
        Self { dir, stop: Some(stop), thread: Some(thread) }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// Stops the server; what the device holds.
    pub fn stop(mut self) -> Vec<u8> {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server's thread panicked");
        }
    }
}

/// Says that a test is passed over, if this user cannot help it. As root everything is there: a test that is passed over would
/// look as if it had passed.
#[track_caller]
pub fn passed_over(missing: &str) {
    assert!(!rustix::process::geteuid().is_root(), "this test cannot be run without {missing}; see `cargo xtask test`");
    eprintln!("skipped: not here: {missing}");
}

/// True if the program can be started. See [`passed_over`].
#[track_caller]
pub fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        passed_over(program);
    }
    found
}

/// Runs a program; its standard output. Fails the test if it fails.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout").arg("120").arg(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// A small generator, so that failures come back.
pub struct Seeded(pub u64);

impl Seeded {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Bytes that look random.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Seeded(seed);
    (0..length).map(|_| random.below(256) as u8).collect()
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}
