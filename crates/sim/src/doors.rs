//! The four doors of one process of one machine.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use sublet_doors::disk::Zero;
use sublet_doors::{
    Buffer, Chunk, Clock, Conn, ConnReader, ConnWriter, Disk, DiskFile, Doors, Endpoint, FileFacts, Listener, Net as NetDoor,
    OpenHow, Rng, Tick,
};
use sublet_types::Address;

use crate::disk::{BLOCK, Description, Files, SimFile};
use crate::exec::{MILLISECOND, ProcessId, Sim, Time};
use crate::net::{End, MachineId, Net, Port};

/// Milliseconds from 1970 to the start of every simulation.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// A machine: what outlives its processes.
pub struct Machine {
    /// Its number in the network.
    pub id: MachineId,
    /// Its files.
    pub files: RefCell<Files>,
    /// The kernel's boot id.
    pub boot: Cell<u128>,
    /// Counts the boots: what a disk was doing before the last one is no more.
    boots: Cell<u64>,
    /// How far its wall clock is from the truth, in milliseconds.
    pub wall_skew_ms: Cell<i64>,
    /// Open file descriptions of all its processes.
    open: RefCell<BTreeMap<u64, Rc<Description>>>,
    next_open: Cell<u64>,
    /// It stays off.
    pub away: Cell<bool>,
    /// Its running processes.
    pub processes: RefCell<Vec<ProcessId>>,
}

impl Machine {
    /// A machine that is on.
    pub fn new(sim: &Sim, net: &Net) -> Rc<Self> {
        Rc::new(Self {
            id: net.add(),
            files: RefCell::default(),
            boot: Cell::new(sim.random(|random| random.next_u128())),
            boots: Cell::new(0),
            wall_skew_ms: Cell::new(0),
            open: RefCell::default(),
            next_open: Cell::new(1),
            away: Cell::new(false),
            processes: RefCell::default(),
        })
    }

    /// Ends a process as `kill -9` does: its operations in the kernel go on, and keep its locks until they have ended (F2).
    pub fn kill(&self, sim: &Sim, process: ProcessId) {
        self.processes.borrow_mut().retain(|other| *other != process);
        sim.kill(process);
        let own: Vec<_> = self.open.borrow().iter().filter(|(_, open)| open.process == process).map(|(id, _)| *id).collect();
        for id in own {
            let open = self.open.borrow_mut().remove(&id);
            if let Some(open) = open {
                open.close();
            }
        }
    }

    /// The power goes: everything that was not durable is lost, kept or torn.
    pub fn crash(&self, sim: &Sim, net: &Net) {
        net.set_up(self.id, false);
        let processes = self.processes.borrow().clone();
        for process in processes {
            self.kill(sim, process);
        }
        self.boots.set(self.boots.get() + 1);
        let files = self.files.borrow().all();
        for file in files {
            file.crash(sim);
        }
    }

    /// The power is back, and the kernel runs, unless the machine is to stay off.
    pub fn boot(&self, sim: &Sim, net: &Net) {
        if self.away.get() {
            return;
        }
        self.boot.set(sim.random(|random| random.next_u128()));
        net.set_up(self.id, true);
    }
}

struct Shared {
    sim: Sim,
    net: Net,
    machine: Rc<Machine>,
    process: ProcessId,
}

/// See the module. Clones are the same doors.
#[derive(Clone)]
pub struct SimDoors(Rc<Shared>);

impl SimDoors {
    /// The doors of a new process.
    pub fn start(sim: &Sim, net: &Net, machine: &Rc<Machine>, name: String) -> Self {
        let process = sim.start_process(name);
        machine.processes.borrow_mut().push(process);
        Self(Rc::new(Shared { sim: sim.clone(), net: net.clone(), machine: Rc::clone(machine), process }))
    }

    /// The process.
    pub fn process(&self) -> ProcessId {
        self.0.process
    }

    /// The machine that it runs on.
    pub fn machine(&self) -> &Rc<Machine> {
        &self.0.machine
    }

    /// The simulation.
    pub fn sim(&self) -> &Sim {
        &self.0.sim
    }

    /// The network.
    pub fn net(&self) -> &Net {
        &self.0.net
    }

    /// True until the process is killed.
    pub fn is_alive(&self) -> bool {
        self.0.sim.is_alive(self.0.process)
    }

    fn pause(&self, time: Time) -> crate::exec::Sleep {
        self.0.sim.sleep(Duration::from_nanos(time))
    }
}

impl Clock for SimDoors {
    fn now(&self) -> Tick {
        Tick(self.0.sim.now())
    }

    fn wall_ms(&self) -> u64 {
        (WALL_START_MS + self.0.sim.now() / MILLISECOND).saturating_add_signed(self.0.machine.wall_skew_ms.get())
    }

    async fn sleep(&self, time: Duration) {
        self.0.sim.sleep(time).await;
    }
}

impl Rng for SimDoors {
    fn random_u128(&self) -> u128 {
        self.0.sim.random(|random| random.next_u128())
    }
}

impl Doors for SimDoors {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.sim.spawn(self.0.process, task);
    }
}

/// An open file.
pub struct OpenFile {
    doors: SimDoors,
    open: Rc<Description>,
    id: u64,
    facts: FileFacts,
    write: bool,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let gone = self.doors.0.machine.open.borrow_mut().remove(&self.id);
        if let Some(open) = gone {
            open.close();
        }
    }
}

impl Disk for SimDoors {
    type File = OpenFile;

    async fn open(&self, path: &Path, how: OpenHow) -> io::Result<OpenFile> {
        self.pause(self.0.sim.between(10_000, MILLISECOND)).await;
        let machine = &self.0.machine;
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{} is missing", path.display()));
        let file = machine.files.borrow().get(path).ok_or_else(missing)?;
        let id = machine.next_open.get();
        machine.next_open.set(id + 1);
        let open = Description::new(id, self.0.process, &file);
        if how.exclusive {
            loop {
                let seen = file.unlocked.version();
                if open.try_lock() {
                    break;
                }
                file.unlocked.changed(seen).await;
            }
        }
        machine.open.borrow_mut().insert(id, Rc::clone(&open));
        let facts = FileFacts {
            size: file.size.get(),
            device: file.device,
            direct: how.direct,
            disk_sequence: file.sequence.get(),
            copy_on_write: false,
        };
        Ok(OpenFile { doors: self.clone(), open, id, facts, write: how.write })
    }
}

fn failed(what: &str) -> io::Error {
    io::Error::other(format!("simulated: {what}"))
}

impl OpenFile {
    fn file(&self) -> &Rc<SimFile> {
        &self.open.file
    }

    fn sim(&self) -> &Sim {
        &self.doors.0.sim
    }

    /// Hands an operation to the kernel: it takes its time, happens even if the process dies meanwhile, and does not happen if
    /// the machine does.
    async fn submit<T: 'static>(
        &self,
        time: Time,
        operation: impl FnOnce(&Sim, &Rc<SimFile>) -> io::Result<T> + 'static,
    ) -> io::Result<T> {
        let (sender, receiver) = oneshot::channel();
        let open = Rc::clone(&self.open);
        open.begin();
        let machine = Rc::clone(&self.doors.0.machine);
        let boots = machine.boots.get();
        self.sim().after(time, move |sim| {
            if machine.boots.get() != boots {
                return;
            }
            let file = Rc::clone(&open.file);
            let stuck = file.stuck_until.get();
            if stuck > sim.now() {
                // It became stuck while this was under way.
                let again = move |sim: &Sim| {
                    if machine.boots.get() == boots {
                        let result = operation(sim, &open.file);
                        open.end();
                        let _ = sender.send(result);
                    }
                };
                sim.at(stuck, again);
                return;
            }
            let result = operation(sim, &file);
            open.end();
            // A process that was killed does not hear it.
            let _ = sender.send(result);
        });
        receiver.await.unwrap_or_else(|_| Err(failed("the machine is off")))
    }
}

impl DiskFile for OpenFile {
    fn facts(&self) -> &FileFacts {
        &self.facts
    }

    async fn read_at(&self, offset: u64, mut buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        let length = range.len();
        let time = self.file().duration(self.sim(), length as u64);
        let read = self.submit(time, move |sim, file| {
            if sim.chance(file.faults.get().read_error) {
                sim.log("disk", || format!("{} read error at {offset}", file.path.display()));
                return Err(failed("a read error"));
            }
            let mut bytes = Buffer::new(length);
            file.read(offset, &mut bytes)?;
            Ok(bytes)
        });
        let result = match read.await {
            Ok(bytes) => match buffer.get_mut(range) {
                Some(place) => {
                    place.copy_from_slice(&bytes);
                    Ok(())
                }
                None => Err(io::ErrorKind::InvalidInput.into()),
            },
            Err(error) => Err(error),
        };
        (result, buffer)
    }

    async fn write_at(&self, offset: u64, data: Chunk) -> io::Result<()> {
        if !self.write {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let time = self.file().duration(self.sim(), data.len() as u64);
        let process = self.doors.process();
        let write = move |sim: &Sim, file: &Rc<SimFile>| {
            let faults = file.faults.get();
            if faults.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if sim.chance(faults.write_error) {
                let part = sim.below(data.len() as u64 / BLOCK + 1) * BLOCK;
                sim.log("disk", || format!("{} write error at {offset} after {part} bytes", file.path.display()));
                file.land(offset, data.get(..part as usize).unwrap_or(&[]))?;
                return Err(failed("a write error"));
            }
            let (begin, length) = (file.data_begin.get(), data.len() as u64);
            // Once the process is gone nobody would see it (K2).
            if offset >= begin && length.is_multiple_of(BLOCK) && sim.is_alive(process) {
                if sim.chance(faults.lost_write) {
                    sim.log("disk", || format!("{} lost write at {offset}", file.path.display()));
                    return file.lose(offset, &data, None);
                }
                if sim.chance(faults.misdirected_write) {
                    let places = (file.size.get() - begin - length) / BLOCK;
                    let wrong = begin + sim.below(places + 1) * BLOCK;
                    if (file.is_seen.borrow())(wrong, length) {
                        sim.log("disk", || format!("{} write for {offset} lands at {wrong}", file.path.display()));
                        return file.lose(offset, &data, Some(wrong));
                    }
                }
            }
            file.land(offset, &data)
        };
        self.submit(time, write).await
    }

    async fn sync(&self) -> io::Result<()> {
        let covers = self.file().landed();
        let time = self.file().duration(self.sim(), 0);
        let sync = move |sim: &Sim, file: &Rc<SimFile>| {
            if sim.chance(file.faults.get().sync_error) {
                sim.log("disk", || format!("{} sync error", file.path.display()));
                file.sync_failed(sim, covers);
                return Err(failed("a sync error"));
            }
            file.synced(covers);
            Ok(())
        };
        self.submit(time, sync).await
    }

    async fn zero(&self, offset: u64, length: u64, _how: Zero) -> io::Result<()> {
        let time = self.file().duration(self.sim(), length / 64);
        let zero = move |sim: &Sim, file: &Rc<SimFile>| {
            if sim.chance(file.faults.get().write_error) {
                return Err(failed("a write error"));
            }
            file.land_zeroes(offset, length)
        };
        self.submit(time, zero).await
    }

    async fn extents(&self, _offset: u64, length: u64) -> io::Result<Vec<(u64, bool)>> {
        Ok(vec![(length, true)])
    }
}

/// A connection.
pub struct SimConn(Rc<End>, Sim);
/// Its receiving half.
pub struct SimReader(Rc<End>, Sim);
/// Its sending half.
pub struct SimWriter(Rc<End>);

impl Conn for SimConn {
    type Reader = SimReader;
    type Writer = SimWriter;

    fn split(self) -> (SimReader, SimWriter) {
        (SimReader(Rc::clone(&self.0), self.1), SimWriter(self.0))
    }

    fn peer(&self) -> String {
        format!("machine {}", self.0.peer)
    }
}

impl ConnReader for SimReader {
    async fn read(&mut self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<usize>, Buffer) {
        let pipe = Rc::clone(&self.0.incoming);
        loop {
            let seen = pipe.changed.version();
            if range.is_empty() || self.0.closed.get() {
                return (Ok(0), buffer);
            }
            if pipe.reset.get() {
                return (Err(io::ErrorKind::ConnectionReset.into()), buffer);
            }
            // Now and then in small parts: a stream keeps no borders.
            let max = if self.1.chance(50_000) { 1 + self.1.below(200) as usize } else { usize::MAX };
            let mut filled = range.start;
            while filled < range.end {
                let Some(chunk) = pipe.take(max.min(range.end - filled)) else { break };
                if let Some(place) = buffer.get_mut(filled..filled + chunk.len()) {
                    place.copy_from_slice(&chunk);
                }
                filled += chunk.len();
                if max != usize::MAX {
                    break;
                }
            }
            if filled > range.start {
                return (Ok(filled - range.start), buffer);
            }
            if pipe.ended.get() {
                return (Ok(0), buffer);
            }
            pipe.changed.changed(seen).await;
        }
    }
}

impl ConnWriter for SimWriter {
    async fn write_all(&mut self, chunks: Vec<Chunk>) -> io::Result<()> {
        let pipe = Rc::clone(&self.0.outgoing);
        for chunk in chunks {
            loop {
                let seen = pipe.changed.version();
                if self.0.closed.get() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if pipe.reset.get() || self.0.incoming.reset.get() {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                if !pipe.is_full() {
                    break;
                }
                pipe.changed.changed(seen).await;
            }
            self.0.send(chunk);
        }
        Ok(())
    }

    fn shutdown(&self) {
        self.0.close();
    }
}

/// A listening port.
pub struct SimListener {
    doors: SimDoors,
    port: Rc<Port>,
    number: u16,
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.doors.0.net.unlisten(self.doors.0.machine.id, self.number);
    }
}

impl Listener for SimListener {
    type Conn = SimConn;

    async fn accept(&self) -> io::Result<SimConn> {
        loop {
            let seen = self.port.arrived.version();
            let next = self.port.queue.borrow_mut().pop_front();
            if let Some(end) = next {
                return Ok(SimConn(end, self.doors.0.sim.clone()));
            }
            self.port.arrived.changed(seen).await;
        }
    }

    fn local_address(&self) -> Option<Address> {
        Some(address(self.doors.0.machine.id, self.number))
    }
}

/// The address of a port of a machine.
pub fn address(machine: MachineId, port: u16) -> Address {
    Address::new(format!("machine-{machine}"), port)
}

impl NetDoor for SimDoors {
    type Conn = SimConn;
    type Listener = SimListener;

    async fn connect(&self, to: &Endpoint, limit: Duration) -> io::Result<SimConn> {
        let Endpoint::Tcp(address) = to else { return Err(io::ErrorKind::Unsupported.into()) };
        let Shared { sim, net, machine, process } = &*self.0;
        let target = address.host().strip_prefix("machine-").and_then(|number| number.parse::<MachineId>().ok());
        let Some(target) = target else { return Err(io::ErrorKind::NotFound.into()) };
        let trip = net.latency(sim) + net.latency(sim);
        self.pause(trip).await;
        if net.is_blocked(machine.id, target) || net.is_blocked(target, machine.id) || !net.is_up(target) {
            self.0.sim.sleep(limit).await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        let Some((listener, port)) = net.listener(target, address.port()) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (near, far) = net.pair(sim, (*process, machine.id), (listener, target));
        port.queue.borrow_mut().push_back(far);
        port.arrived.notify();
        Ok(SimConn(near, sim.clone()))
    }

    async fn listen(&self, at: &Endpoint) -> io::Result<SimListener> {
        let Endpoint::Tcp(address) = at else { return Err(io::ErrorKind::Unsupported.into()) };
        let port = self.0.net.listen(self.0.process, self.0.machine.id, address.port());
        let port = port.ok_or(io::ErrorKind::AddrInUse)?;
        Ok(SimListener { doors: self.clone(), port, number: address.port() })
    }
}
