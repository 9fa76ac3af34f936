//! The executor: simulated time, processes and their tasks.
//!
//! Time stands still while a task can run, and jumps to the next event when none can. A task belongs to a process; a process
//! that is killed loses its tasks at once. What it had handed to the kernel (disk operations, bytes on the wire) are events of
//! their own and go on.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::rng::Random;
use crate::trace::Trace;

/// A nanosecond count since the start of the simulation.
pub type Time = u64;

/// One second, in nanoseconds.
pub const SECOND: Time = 1_000_000_000;
/// One millisecond, in nanoseconds.
pub const MILLISECOND: Time = 1_000_000;
/// Polls of tasks without time going on that are taken for an endless loop.
const POLLS_IN_AN_INSTANT_MAX: u64 = 2_000_000;

/// A process; numbers are never reused, so that what belongs to a dead one stays nobody's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ProcessId(pub usize);

/// The process of the simulation itself: operators, faults, checks. Never killed.
pub const WORLD: ProcessId = ProcessId(0);

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Queue = Arc<Mutex<VecDeque<usize>>>;

struct TaskWaker {
    task: usize,
    queued: AtomicBool,
    queue: Queue,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Atomic::Relaxed) {
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
        }
    }
}

struct Slot {
    process: ProcessId,
    /// Taken out while it is polled.
    future: Option<Task>,
    waker: Arc<TaskWaker>,
}

struct Process {
    name: String,
    alive: bool,
}

enum What {
    Wake(Rc<RefCell<Option<Waker>>>),
    Run(Box<dyn FnOnce(&Sim)>),
}

struct Entry {
    at: Time,
    number: u64,
    what: What,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    /// The earliest is the greatest: [`BinaryHeap`] gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

struct Inner {
    now: Cell<Time>,
    entries: RefCell<BinaryHeap<Entry>>,
    next_entry: Cell<u64>,
    tasks: RefCell<BTreeMap<usize, Slot>>,
    next_task: Cell<usize>,
    queue: Queue,
    processes: RefCell<Vec<Process>>,
    random: RefCell<Random>,
    trace: Trace,
    /// Tasks that are ready run in a random order instead of the order in which they were woken.
    shuffled: Cell<bool>,
    polls: Cell<u64>,
}

/// The simulation. Clones are the same one.
#[derive(Clone)]
pub struct Sim(Rc<Inner>);

/// Why [`Sim::run`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// What was waited for has happened.
    Done,
    /// Nothing will ever happen any more: a wake-up was lost.
    Dead,
    /// Tasks run on and on, and time does not.
    Spinning,
}

impl Sim {
    /// A simulation from this seed.
    pub fn new(seed: u64, trace: Trace) -> Self {
        let inner = Inner {
            now: Cell::new(SECOND),
            entries: RefCell::default(),
            next_entry: Cell::new(0),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            queue: Queue::default(),
            processes: RefCell::new(vec![Process { name: "world".to_owned(), alive: true }]),
            random: RefCell::new(Random::new(seed)),
            trace,
            shuffled: Cell::new(false),
            polls: Cell::new(0),
        };
        Self(Rc::new(inner))
    }

    /// Now.
    pub fn now(&self) -> Time {
        self.0.now.get()
    }

    /// The trace of this run.
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// Notes an event in the trace, if there is one.
    pub fn log(&self, who: &str, text: impl FnOnce() -> String) {
        if self.0.trace.is_on() {
            self.0.trace.note(self.now(), who, &text());
        }
    }

    /// Random numbers of this run.
    pub fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.0.random.borrow_mut())
    }

    /// A number below `n`.
    pub fn below(&self, n: u64) -> u64 {
        self.random(|random| random.below(n))
    }

    /// A number of the range, both ends included.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        self.random(|random| random.between(low, high))
    }

    /// True in so many of a million cases.
    pub fn chance(&self, per_million: u64) -> bool {
        self.random(|random| random.chance(per_million))
    }

    /// Runs ready tasks in a random order from now on.
    pub fn shuffle(&self) {
        self.0.shuffled.set(true);
    }

    /// A new process.
    pub fn start_process(&self, name: String) -> ProcessId {
        let mut processes = self.0.processes.borrow_mut();
        processes.push(Process { name, alive: true });
        ProcessId(processes.len() - 1)
    }

    /// True until it is killed.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.0.processes.borrow().get(process.0).is_some_and(|process| process.alive)
    }

    /// What the process is called in the trace.
    pub fn name_of(&self, process: ProcessId) -> String {
        self.0.processes.borrow().get(process.0).map_or_else(String::new, |process| process.name.clone())
    }

    /// Ends a process: its tasks are gone, and none is started any more.
    pub fn kill(&self, process: ProcessId) {
        if let Some(process) = self.0.processes.borrow_mut().get_mut(process.0) {
            process.alive = false;
        }
        let ids: Vec<usize> =
            self.0.tasks.borrow().iter().filter(|(_, slot)| slot.process == process).map(|(id, _)| *id).collect();
        let mut dropped = Vec::new();
        for id in ids {
            // One that is being polled now (it kills its own process) is dropped when its poll returns.
            dropped.extend(self.0.tasks.borrow_mut().remove(&id));
        }
        // Outside of every borrow: what they drop wakes others.
        drop(dropped);
    }

    /// Starts a task of a process.
    pub fn spawn(&self, process: ProcessId, task: impl Future<Output = ()> + 'static) {
        if !self.is_alive(process) {
            return;
        }
        let id = self.0.next_task.get();
        self.0.next_task.set(id + 1);
        let waker = Arc::new(TaskWaker { task: id, queued: AtomicBool::new(false), queue: Arc::clone(&self.0.queue) });
        let slot = Slot { process, future: Some(Box::pin(task)), waker: Arc::clone(&waker) };
        self.0.tasks.borrow_mut().insert(id, slot);
        waker.wake();
    }

    fn enter(&self, at: Time, what: What) {
        let number = self.0.next_entry.get();
        self.0.next_entry.set(number + 1);
        self.0.entries.borrow_mut().push(Entry { at: at.max(self.now()), number, what });
    }

    /// Does something at that time. It happens whoever dies meanwhile.
    pub fn at(&self, at: Time, run: impl FnOnce(&Sim) + 'static) {
        self.enter(at, What::Run(Box::new(run)));
    }

    /// Does something after so long.
    pub fn after(&self, delay: Time, run: impl FnOnce(&Sim) + 'static) {
        self.at(self.now() + delay, run);
    }

    /// Waits so long.
    pub fn sleep(&self, time: Duration) -> Sleep {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2);
        Sleep { sim: self.clone(), until: self.now().saturating_add(nanos), waker: None }
    }

    fn next_ready(&self) -> Option<usize> {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.shuffled.get() && queue.len() > 1 {
            let at = self.below(queue.len() as u64) as usize;
            return queue.swap_remove_back(at);
        }
        queue.pop_front()
    }

    fn poll(&self, id: usize) {
        let (mut future, waker, process) = {
            let mut tasks = self.0.tasks.borrow_mut();
            let Some(slot) = tasks.get_mut(&id) else { return };
            slot.waker.queued.store(false, Atomic::Relaxed);
            let Some(future) = slot.future.take() else { return };
            (future, Waker::from(Arc::clone(&slot.waker)), slot.process)
        };
        if self.0.trace.is_on() {
            self.0.trace.enter(self.now(), &self.name_of(process));
        }
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut tasks = self.0.tasks.borrow_mut();
        let left = if done { tasks.remove(&id) } else { None };
        let future = match tasks.get_mut(&id) {
            Some(slot) => {
                slot.future = Some(future);
                None
            }
            None => Some(future),
        };
        drop(tasks);
        drop((left, future));
    }

    /// Runs until `done` says so.
    pub fn run(&self, done: impl Fn() -> bool) -> Stopped {
        loop {
            if done() {
                return Stopped::Done;
            }
            if let Some(id) = self.next_ready() {
                self.poll(id);
                self.0.polls.set(self.0.polls.get() + 1);
                if self.0.polls.get() > POLLS_IN_AN_INSTANT_MAX {
                    return Stopped::Spinning;
                }
                continue;
            }
            let Some(entry) = self.0.entries.borrow_mut().pop() else { return Stopped::Dead };
            if entry.at > self.now() {
                self.0.now.set(entry.at);
                self.0.polls.set(0);
            }
            match entry.what {
                What::Wake(waker) => {
                    if let Some(waker) = waker.take() {
                        waker.wake();
                    }
                }
                What::Run(run) => run(self),
            }
        }
    }

    /// Drops everything that is left, so that nothing holds on to the simulation.
    pub fn clear(&self) {
        let count = self.0.processes.borrow().len();
        for process in 0..count {
            self.kill(ProcessId(process));
        }
        let entries = std::mem::take(&mut *self.0.entries.borrow_mut());
        drop(entries);
    }
}

/// See [`Sim::sleep`].
pub struct Sleep {
    sim: Sim,
    until: Time,
    waker: Option<Rc<RefCell<Option<Waker>>>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.sim.now() >= self.until {
            return Poll::Ready(());
        }
        match &self.waker {
            Some(waker) => *waker.borrow_mut() = Some(context.waker().clone()),
            None => {
                let waker = Rc::new(RefCell::new(Some(context.waker().clone())));
                self.sim.enter(self.until, What::Wake(Rc::clone(&waker)));
                self.waker = Some(waker);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(waker) = &self.waker {
            waker.take();
        }
    }
}
