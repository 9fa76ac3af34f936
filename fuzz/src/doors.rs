//! Doors in memory, for one run: tasks without a kernel, one file, one connection whose bytes are the input. Time stands still
//! as long as anybody can run.

pub mod disk;
pub mod net;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use sublet_doors::{Clock, Doors, Rng, Tick};

use crate::image::Image;
use net::Port;

/// Polls of tasks in one run: an input that needs more makes it run for ever.
const POLLS_MAX: u64 = 5_000_000;
/// Timers that end in one run.
const TIMERS_MAX: u64 = 100_000;

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Queue = Arc<Mutex<VecDeque<usize>>>;

struct TaskWaker(usize, Queue);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.0);
    }
}

#[derive(Default)]
struct Machine {
    tasks: RefCell<BTreeMap<usize, Task>>,
    next_task: Cell<usize>,
    ready: Queue,
    now: Cell<u64>,
    timers: RefCell<BinaryHeap<Reverse<(u64, u64)>>>,
    timer_wakers: RefCell<BTreeMap<u64, Waker>>,
    next_timer: Cell<u64>,
    drawn: Cell<u64>,
    file: RefCell<Rc<RefCell<Image>>>,
    port: Rc<Port>,
}

/// See the module.
#[derive(Clone, Default)]
pub struct MemDoors(Rc<Machine>);

impl MemDoors {
    /// Runs to the end of `main`.
    ///
    /// # Panics
    /// If it does not end, or nobody can run any more.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(main: impl FnOnce(MemDoors) -> F) -> T {
        let doors = MemDoors::default();
        doors.0.now.set(1_000_000_000);
        let result = Rc::new(RefCell::new(None));
        let (main, slot) = (main(doors.clone()), Rc::clone(&result));
        doors.spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        let mut timers = 0;
        for _ in 0..POLLS_MAX {
            if let Some(value) = result.borrow_mut().take() {
                doors.end();
                return value;
            }
            let next = doors.0.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(id) => doors.poll(id),
                None => {
                    timers += 1;
                    assert!(timers <= TIMERS_MAX, "it waits for ever");
                    assert!(doors.advance(), "nobody can run any more: a wake-up was lost");
                }
            }
        }
        panic!("it runs for ever");
    }

    /// Tasks that still wait hold the doors and each other. What runs on when it is dropped wants to become a task.
    fn end(&self) {
        loop {
            let left = std::mem::take(&mut *self.0.tasks.borrow_mut());
            if left.is_empty() {
                return;
            }
        }
    }

    fn poll(&self, id: usize) {
        let Some(mut task) = self.0.tasks.borrow_mut().remove(&id) else { return };
        let waker = Waker::from(Arc::new(TaskWaker(id, Arc::clone(&self.0.ready))));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut().insert(id, task);
        }
    }

    /// Goes on to the next time for which somebody waits.
    fn advance(&self) -> bool {
        loop {
            let Some(Reverse((when, id))) = self.0.timers.borrow_mut().pop() else { return false };
            if let Some(waker) = self.0.timer_wakers.borrow_mut().remove(&id) {
                self.0.now.set(self.0.now.get().max(when));
                waker.wake();
                return true;
            }
        }
    }

    /// Every path is this file from now on.
    pub fn set_file(&self, image: Image) {
        self.0.file.replace(Rc::new(RefCell::new(image)));
    }

    /// The file as it is now.
    pub fn file(&self) -> Image {
        self.0.file.borrow().borrow().clone()
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
            machine.timers.borrow_mut().push(Reverse((until, id)));
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
        let until = self.0.now.get().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        Sleep { machine: Rc::clone(&self.0), until, id: None }.await;
    }
}

impl Rng for MemDoors {
    /// The same in every run: what an input does must be repeated by it alone.
    fn random_u128(&self) -> u128 {
        self.0.drawn.set(self.0.drawn.get() + 1);
        u128::from(self.0.drawn.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }
}

impl Doors for MemDoors {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = self.0.next_task.get();
        self.0.next_task.set(id + 1);
        self.0.tasks.borrow_mut().insert(id, Box::pin(task));
        self.0.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
    }
}
