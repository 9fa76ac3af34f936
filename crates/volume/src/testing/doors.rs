//! Doors in memory. Time is virtual: when nobody can run, it jumps to the next timer, so ten seconds of silence cost nothing.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use sublet_doors::disk::{DiskFile, Zero};
use sublet_doors::local::Signal;
use sublet_doors::{
    Buffer, Chunk, Clock, Conn, ConnReader, ConnWriter, Disk, Doors, Endpoint, FileFacts, Listener, Net, OpenHow, Rng, Tick,
};
use sublet_types::Address;

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Queue = Arc<Mutex<VecDeque<usize>>>;

struct TaskWaker(usize, Queue);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push_back(self.0);
    }
}

#[derive(Default)]
struct Machine {
    tasks: RefCell<HashMap<usize, Task>>,
    next_task: Cell<usize>,
    ready: Queue,
    now: Cell<u64>,
    timers: RefCell<BinaryHeap<(Reverse<u64>, u64)>>,
    timer_wakers: RefCell<HashMap<u64, Waker>>,
    next_timer: Cell<u64>,
    seed: Cell<u64>,
    ports: RefCell<HashMap<u16, Rc<Port>>>,
}

#[derive(Default)]
struct Port {
    queue: RefCell<VecDeque<MemConn>>,
    arrived: Signal,
    blackhole: Cell<bool>,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct MemDoors(Rc<Machine>);

impl MemDoors {
    /// Runs a test to its end; panics if nobody can run any more, or if it never ends.
    pub(crate) fn run<T: 'static, F: Future<Output = T> + 'static>(seed: u64, main: impl FnOnce(MemDoors) -> F) -> T {
        let doors = MemDoors::default();
        doors.0.seed.set(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        doors.0.now.set(1_000_000_000);
        let result = Rc::new(RefCell::new(None));
        let (main, slot) = (main(doors.clone()), Rc::clone(&result));
        doors.spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        for _ in 0..50_000_000u64 {
            if let Some(value) = result.borrow_mut().take() {
                // Tasks that still wait hold the doors and each other; they end with the test.
                // Dropped outside of the borrow: work that runs on wants to become a task.
                loop {
                    let left = std::mem::take(&mut *doors.0.tasks.borrow_mut());
                    if left.is_empty() {
                        return value;
                    }
                }
            }
            let next = doors.0.ready.lock().unwrap().pop_front();
            match next {
                Some(id) => doors.poll(id),
                None => assert!(doors.advance(), "nobody can run any more: a wake-up was lost"),
            }
        }
        panic!("the test does not end");
    }

    fn poll(&self, id: usize) {
        let Some(mut task) = self.0.tasks.borrow_mut().remove(&id) else { return };
        let waker = Waker::from(Arc::new(TaskWaker(id, Arc::clone(&self.0.ready))));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut().insert(id, task);
        }
    }

    fn advance(&self) -> bool {
        loop {
            let Some((Reverse(when), id)) = self.0.timers.borrow_mut().pop() else { return false };
            if let Some(waker) = self.0.timer_wakers.borrow_mut().remove(&id) {
                self.0.now.set(self.0.now.get().max(when));
                waker.wake();
                return true;
            }
        }
    }

    /// A number below `n`.
    pub(crate) fn below(&self, n: u64) -> u64 {
        (self.random_u128() >> 40) as u64 % n
    }

    /// Nobody answers connections to this port, nor refuses them.
    pub(crate) fn set_blackhole(&self, port: u16, on: bool) {
        if let Some(port) = self.0.ports.borrow().get(&port) {
            port.blackhole.set(on);
        }
    }
}

struct Sleep {
    machine: Rc<Machine>,
    until: u64,
    id: Option<u64>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.machine.now.get() >= self.until {
            return Poll::Ready(());
        }
        let (machine, until) = (Rc::clone(&self.machine), self.until);
        let id = *self.id.get_or_insert_with(|| {
            let id = machine.next_timer.get();
            machine.next_timer.set(id + 1);
            machine.timers.borrow_mut().push((Reverse(until), id));
            id
        });
        self.machine.timer_wakers.borrow_mut().insert(id, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.machine.timer_wakers.borrow_mut().remove(&id);
        }
    }
}

impl Clock for MemDoors {
    fn now(&self) -> Tick {
        Tick(self.0.now.get())
    }
    fn wall_ms(&self) -> u64 {
        self.0.now.get() / 1_000_000
    }
    async fn sleep(&self, time: Duration) {
        Sleep { machine: Rc::clone(&self.0), until: self.0.now.get() + time.as_nanos() as u64, id: None }.await;
    }
}

impl Rng for MemDoors {
    fn random_u128(&self) -> u128 {
        let next = || {
            let mut x = self.0.seed.get();
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            self.0.seed.set(x);
            x.wrapping_mul(0x2545_f491_4f6c_dd1d)
        };
        (u128::from(next()) << 64) | u128::from(next())
    }
}

impl Doors for MemDoors {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = self.0.next_task.get();
        self.0.next_task.set(id + 1);
        self.0.tasks.borrow_mut().insert(id, Box::pin(task));
        self.0.ready.lock().unwrap().push_back(id);
    }
}

/// There are no disks here: lenders keep their bytes in memory.
pub(crate) enum NoFile {}

impl Disk for MemDoors {
    type File = NoFile;
    async fn open(&self, _path: &Path, _how: OpenHow) -> io::Result<NoFile> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl DiskFile for NoFile {
    fn facts(&self) -> &FileFacts {
        match *self {}
    }
    async fn read_at(&self, _offset: u64, _buffer: Buffer, _range: Range<usize>) -> (io::Result<()>, Buffer) {
        match *self {}
    }
    async fn write_at(&self, _offset: u64, _data: Chunk) -> io::Result<()> {
        match *self {}
    }
    async fn sync(&self) -> io::Result<()> {
        match *self {}
    }
    async fn zero(&self, _offset: u64, _length: u64, _how: Zero) -> io::Result<()> {
        match *self {}
    }
    async fn extents(&self, _offset: u64, _length: u64) -> io::Result<Vec<(u64, bool)>> {
        match *self {}
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    closed: Cell<bool>,
    changed: Signal,
}

impl Pipe {
    fn close(&self) {
        self.closed.set(true);
        self.changed.notify();
    }
}

pub(crate) struct MemConn {
    doors: MemDoors,
    incoming: Rc<Pipe>,
    outgoing: Rc<Pipe>,
}

pub(crate) struct MemReader {
    doors: MemDoors,
    pipe: Rc<Pipe>,
}

pub(crate) struct MemWriter {
    incoming: Rc<Pipe>,
    outgoing: Rc<Pipe>,
}

impl Conn for MemConn {
    type Reader = MemReader;
    type Writer = MemWriter;
    fn split(self) -> (MemReader, MemWriter) {
        (
            MemReader { doors: self.doors, pipe: Rc::clone(&self.incoming) },
            MemWriter { incoming: self.incoming, outgoing: self.outgoing },
        )
    }
    fn peer(&self) -> String {
        "memory".into()
    }
}

impl ConnReader for MemReader {
    async fn read(&mut self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<usize>, Buffer) {
        loop {
            let seen = self.pipe.changed.version();
            let waiting = self.pipe.bytes.borrow().len();
            if waiting > 0 && !range.is_empty() {
                // Sometimes in small parts: a stream keeps no borders.
                let part = if self.doors.below(4) == 0 { 1 + self.doors.below(200) as usize } else { usize::MAX };
                let n = waiting.min(range.len()).min(part);
                let mut bytes = self.pipe.bytes.borrow_mut();
                let (front, back) = bytes.as_slices();
                let first = n.min(front.len());
                buffer[range.start..range.start + first].copy_from_slice(&front[..first]);
                buffer[range.start + first..range.start + n].copy_from_slice(&back[..n - first]);
                bytes.drain(..n);
                drop(bytes);
                return (Ok(n), buffer);
            }
            if self.pipe.closed.get() || range.is_empty() {
                return (Ok(0), buffer);
            }
            self.pipe.changed.changed(seen).await;
        }
    }
}

impl ConnWriter for MemWriter {
    async fn write_all(&mut self, chunks: Vec<Chunk>) -> io::Result<()> {
        if self.outgoing.closed.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for chunk in chunks {
            self.outgoing.bytes.borrow_mut().extend(chunk.iter());
        }
        self.outgoing.changed.notify();
        Ok(())
    }
    fn shutdown(&self) {
        self.incoming.close();
        self.outgoing.close();
    }
}

impl Drop for MemWriter {
    fn drop(&mut self) {
        self.shutdown();
    }
}

pub(crate) struct MemListener {
    machine: Rc<Machine>,
    number: u16,
    port: Rc<Port>,
}

impl Listener for MemListener {
    type Conn = MemConn;
    async fn accept(&self) -> io::Result<MemConn> {
        loop {
            let seen = self.port.arrived.version();
            if let Some(conn) = self.port.queue.borrow_mut().pop_front() {
                return Ok(conn);
            }
            self.port.arrived.changed(seen).await;
        }
    }
    fn local_address(&self) -> Option<Address> {
        Some(Address::new("127.0.0.1", self.number))
    }
}

impl Drop for MemListener {
    fn drop(&mut self) {
        self.machine.ports.borrow_mut().remove(&self.number);
    }
}

impl Net for MemDoors {
    type Conn = MemConn;
    type Listener = MemListener;
    async fn connect(&self, to: &Endpoint, limit: Duration) -> io::Result<MemConn> {
        let Endpoint::Tcp(address) = to else { return Err(io::ErrorKind::Unsupported.into()) };
        // A round trip takes its time.
        self.sleep(Duration::from_micros(100)).await;
        let port = self.0.ports.borrow().get(&address.port()).cloned();
        let Some(port) = port else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        if port.blackhole.get() {
            self.sleep(limit).await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (up, down) = (Rc::new(Pipe::default()), Rc::new(Pipe::default()));
        let there = MemConn { doors: self.clone(), incoming: Rc::clone(&up), outgoing: Rc::clone(&down) };
        port.queue.borrow_mut().push_back(there);
        port.arrived.notify();
        Ok(MemConn { doors: self.clone(), incoming: down, outgoing: up })
    }
    async fn listen(&self, at: &Endpoint) -> io::Result<MemListener> {
        let Endpoint::Tcp(address) = at else { return Err(io::ErrorKind::Unsupported.into()) };
        let port = Rc::new(Port::default());
        self.0.ports.borrow_mut().insert(address.port(), Rc::clone(&port));
        Ok(MemListener { machine: Rc::clone(&self.0), number: address.port(), port })
    }
}
