//! The manager's process: the core over its store on a simulated disk, the shell's timer, and requests as messages.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use sublet_api::access::{Caller, Proof};
use sublet_api::request::{Request, Response};
use sublet_api::{ErrorKind, Refusal};
use sublet_doors::local::Signal;
use sublet_doors::{Clock, Doors};
use sublet_table::{Action, Core, Event, Outside, RedbStore, Table};
use sublet_types::ServerId;

use crate::backend::{self, Fuse};
use crate::disk::SimFile;
use crate::doors::{Machine, SimDoors};
use crate::exec::{MILLISECOND, ProcessId, SECOND, Sim, Time};
use crate::net::{MachineId, Net};

/// Where the table lies.
const TABLE: &str = "/manager/table.redb";
/// As the real shell: the shortest pause between two ticks.
const TICK_PAUSE_MIN: Time = 10 * MILLISECOND;
/// How long a connection to a machine that is away is tried.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// How long an answer may take, beyond the time for which it is held.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

/// A call that waits for its answer.
struct Call {
    answer: RefCell<Option<Result<Response, Refusal>>>,
    arrived: Signal,
    /// Its number at the manager, once it is there.
    conn: Cell<Option<(ProcessId, u64)>>,
}

/// One life of the manager.
struct Running {
    doors: SimDoors,
    core: Core<RedbStore>,
    fuse: Fuse,
    replies: BTreeMap<u64, (MachineId, Rc<Call>)>,
    next_conn: u64,
    /// The revision of the table that was looked at last.
    watched: Option<u64>,
    start_ms: u64,
    started: Time,
}

impl Running {
    fn now_ms(&self, sim: &Sim) -> u64 {
        self.start_ms + (sim.now() - self.started) / MILLISECOND
    }
}

/// Looks at the table after every event; the error is a violation.
pub type Watch = dyn Fn(&Table) -> Result<(), String>;

/// See the module.
pub struct Manager {
    sim: Sim,
    net: Net,
    /// Where it runs.
    pub machine: Rc<Machine>,
    running: RefCell<Option<Running>>,
    /// The core's next wake-up may have changed.
    woken: Signal,
    watch: Box<Watch>,
    on_violation: Box<dyn Fn(String)>,
    /// Loads that failed: the store could not be read.
    pub failed_loads: Cell<u64>,
    /// Starts so far.
    pub starts: Cell<u64>,
}

/// A server, as its certificate proves it; certificates do not end here.
pub fn certified(server: ServerId) -> Caller {
    Caller::Server { server, proof: Proof { issued_ms: u64::MAX, expires_ms: u64::MAX } }
}

fn unreachable(text: &str) -> Refusal {
    Refusal::new(ErrorKind::Unreachable, text)
}

impl Manager {
    /// A manager that is not started yet.
    pub fn new(sim: &Sim, net: &Net, machine: &Rc<Machine>, watch: Box<Watch>, on_violation: Box<dyn Fn(String)>) -> Rc<Self> {
        machine.files.borrow_mut().make(sim, TABLE, 0, false);
        Rc::new(Self {
            sim: sim.clone(),
            net: net.clone(),
            machine: Rc::clone(machine),
            running: RefCell::new(None),
            woken: Signal::new(),
            watch,
            on_violation,
            failed_loads: Cell::new(0),
            starts: Cell::new(0),
        })
    }

    /// True while its process runs.
    pub fn is_running(&self) -> bool {
        self.running.borrow().as_ref().is_some_and(|running| running.doors.is_alive())
    }

    /// Starts the process, if it does not run. False if the table could not be loaded.
    pub fn start(self: &Rc<Self>) -> bool {
        if self.is_running() {
            return true;
        }
        self.stop();
        self.starts.set(self.starts.get() + 1);
        let doors = SimDoors::start(&self.sim, &self.net, &self.machine, "manager".to_owned());
        let Some(file) = self.disk() else { return false };
        let (storage, fuse) = backend::open(&self.sim, &file);
        let (start_ms, started) = (doors.wall_ms(), self.sim.now());
        let loaded = RedbStore::open_on(storage, Path::new(TABLE)).and_then(|store| {
            let mut random = || self.sim.random(|random| random.next_u128());
            let mut outside = Outside { now_ms: start_ms, random: &mut random };
            Core::load(store, &mut outside, vec!["http://manager:7470".to_owned()])
        });
        let core = match loaded {
            Ok(core) => core,
            Err(error) => {
                self.sim.log("manager", || format!("the table cannot be loaded: {error}"));
                self.failed_loads.set(self.failed_loads.get() + 1);
                self.machine.kill(&self.sim, doors.process());
                return false;
            }
        };
        self.sim.log("manager", || format!("starts at revision {}", core.revision()));
        let own = Rc::clone(self);
        doors.spawn(async move { own.tick().await });
        let running = Running { doors, core, fuse, replies: BTreeMap::new(), next_conn: 1, watched: None, start_ms, started };
        self.running.replace(Some(running));
        true
    }

    /// Ends the process at once; whoever waits for an answer sees the connection break, unless the machine is off.
    pub fn stop(&self) {
        let Some(running) = self.running.take() else { return };
        self.sim.log("manager", || "dies".to_owned());
        self.machine.kill(&self.sim, running.doors.process());
        for (machine, call) in running.replies.values() {
            self.answer(*machine, call, Err(unreachable("the manager's connection broke")));
        }
    }

    /// The disk that the table lies on.
    pub fn disk(&self) -> Option<Rc<SimFile>> {
        self.machine.files.borrow().get(Path::new(TABLE))
    }

    /// Ends the process, and puts another disk into the place of the one with the table.
    pub fn change_table(&self, disk: Option<Rc<SimFile>>) {
        self.stop();
        if let Some(disk) = disk {
            // Nobody needs what was there.
            drop(self.machine.files.borrow_mut().change(Path::new(TABLE), disk));
        }
    }

    /// Lets the process die after so many more operations on its disk.
    pub fn light_fuse(&self, operations: u64) {
        if let Some(running) = &*self.running.borrow() {
            running.fuse.light(operations);
        }
    }

    /// Reads the table, if the process runs.
    pub fn table<T>(&self, read: impl FnOnce(&Table) -> T) -> Option<T> {
        self.running.borrow().as_ref().map(|running| read(running.core.table()))
    }

    async fn tick(self: Rc<Self>) {
        let mut earliest = 0;
        loop {
            let seen = self.woken.version();
            let wake = {
                let running = self.running.borrow();
                let Some(running) = &*running else { return };
                running.core.next_wake_ms().map(|at_ms| {
                    (running.started + at_ms.saturating_sub(running.start_ms) * MILLISECOND).max(earliest).max(self.sim.now())
                })
            };
            let changed = std::pin::pin!(self.woken.changed(seen));
            match wake {
                None => changed.await,
                Some(at) if at > self.sim.now() => {
                    let sleep = std::pin::pin!(self.sim.sleep(Duration::from_nanos(at - self.sim.now())));
                    if let Either::Left(_) = select(changed, sleep).await {
                        continue;
                    }
                    earliest = self.sim.now() + TICK_PAUSE_MIN;
                    self.apply(Event::Tick);
                }
                Some(_) => {
                    earliest = self.sim.now() + TICK_PAUSE_MIN;
                    self.apply(Event::Tick);
                }
            }
        }
    }

    fn apply(&self, event: Event) {
        self.sim.trace().enter(self.sim.now(), "manager");
        let (actions, verdict, dead) = {
            let mut running = self.running.borrow_mut();
            let Some(running) = &mut *running else { return };
            let mut random = || self.sim.random(|random| random.next_u128());
            let now_ms = running.now_ms(&self.sim);
            let mut outside = Outside { now_ms, random: &mut random };
            let actions = running.core.apply(&mut outside, event);
            let revision = Some(running.core.revision());
            let is_new = std::mem::replace(&mut running.watched, revision) != revision;
            let verdict = if is_new { (self.watch)(running.core.table()) } else { Ok(()) };
            (actions, verdict, running.fuse.is_blown())
        };
        if dead {
            // It died in the middle of a commit: nothing of what it would have said left the process.
            return self.stop();
        }
        if let Err(violation) = verdict {
            (self.on_violation)(violation);
        }
        for action in actions {
            // The audit log is the shell's.
            let Action::Reply { conn, response } = action else { continue };
            let call = self.running.borrow_mut().as_mut().and_then(|running| running.replies.remove(&conn));
            if let Some((machine, call)) = call {
                self.answer(machine, &call, Ok(response));
            }
        }
        self.woken.notify();
    }

    fn answer(&self, machine: MachineId, call: &Rc<Call>, answer: Result<Response, Refusal>) {
        let call = Rc::clone(call);
        self.net.post(&self.sim, self.machine.id, machine, move |_| {
            call.answer.borrow_mut().get_or_insert(answer);
            call.arrived.notify();
        });
    }

    /// A request arrives at the manager's machine.
    fn arrived(&self, from: MachineId, caller: Caller, request: Request, call: Rc<Call>) {
        if !self.is_running() {
            return self.answer(from, &call, Err(unreachable("nobody listens at the manager's port")));
        }
        let conn = {
            let mut running = self.running.borrow_mut();
            let Some(running) = &mut *running else { return };
            let conn = running.next_conn;
            running.next_conn += 1;
            call.conn.set(Some((running.doors.process(), conn)));
            running.replies.insert(conn, (from, call));
            conn
        };
        self.sim.log("manager", || crate::brief::request(&request));
        self.apply(Event::Request { conn, caller, request });
    }

    /// The caller of a request hung up.
    fn gone(&self, process: ProcessId, conn: u64) {
        let known = {
            let mut running = self.running.borrow_mut();
            let running = running.as_mut().filter(|running| running.doors.process() == process);
            running.is_some_and(|running| running.replies.remove(&conn).is_some())
        };
        if known {
            self.apply(Event::Gone { conn });
        }
    }

    /// Asks the manager from a process, as its link does: one try. `caller` is what its certificate proves.
    ///
    /// # Errors
    /// The manager's refusal; `Unreachable` if it did not answer, whatever became of the request.
    pub async fn call(
        self: &Rc<Self>,
        doors: &SimDoors,
        caller: Caller,
        request: Request,
        hold: Duration,
    ) -> Result<Response, Refusal> {
        let (from, to) = (doors.machine().id, self.machine.id);
        if !self.net.is_up(to) || self.net.is_blocked(from, to) || self.net.is_blocked(to, from) {
            doors.sleep(CONNECT_TIME_MAX).await;
            return Err(unreachable("the manager cannot be reached"));
        }
        let call = Rc::new(Call { answer: RefCell::new(None), arrived: Signal::new(), conn: Cell::new(None) });
        let _hangs_up = HangUp { manager: Rc::clone(self), call: Rc::clone(&call), from };
        let (own, sent) = (Rc::clone(self), Rc::clone(&call));
        self.net.post(&self.sim, from, to, move |_| own.arrived(from, caller, request, sent));
        let wait = async {
            loop {
                let seen = call.arrived.version();
                if let Some(answer) = call.answer.borrow_mut().take() {
                    return answer;
                }
                call.arrived.changed(seen).await;
            }
        };
        match doors.timeout(hold + ANSWER_TIME_MAX, wait).await {
            Ok(Ok(Response::Refused(refusal))) => Err(refusal),
            Ok(answer) => answer,
            Err(_) => Err(unreachable("the manager does not answer")),
        }
    }

    /// Keeps it running: a supervisor starts it again when it died.
    pub async fn supervise(self: Rc<Self>, pause: impl Fn() -> Time) {
        loop {
            self.sim.sleep(Duration::from_nanos(SECOND / 10)).await;
            if self.is_running() || !self.net.is_up(self.machine.id) {
                continue;
            }
            self.sim.sleep(Duration::from_nanos(pause())).await;
            if self.net.is_up(self.machine.id) {
                self.start();
            }
        }
    }
}

/// Tells the manager that the caller is gone, unless it was answered.
struct HangUp {
    manager: Rc<Manager>,
    call: Rc<Call>,
    from: MachineId,
}

impl Drop for HangUp {
    fn drop(&mut self) {
        let (manager, call) = (Rc::clone(&self.manager), Rc::clone(&self.call));
        if !manager.net.is_up(self.from) {
            return;
        }
        let (sim, net) = (manager.sim.clone(), manager.net.clone());
        net.post(&sim, self.from, manager.machine.id, move |_| {
            if let Some((process, conn)) = call.conn.get() {
                manager.gone(process, conn);
            }
        });
    }
}
