//! The runtime of a data thread.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use compio::runtime::{JoinHandle, Runtime};
use futures_util::FutureExt;

use super::{RealDoors, driver, owned};

/// Turns of the task queue before completions are looked at, while there are ready tasks all the time.
const TURNS_MAX: usize = 32;
/// How long the end of a runtime waits for buffers that the kernel still uses.
const FINISH_PATIENCE: Duration = Duration::from_secs(30);

thread_local! {
    static CURRENT: RefCell<Option<Rc<Tasks>>> = const { RefCell::new(None) };
}

/// The tasks of the runtime on this thread.
pub(super) fn current() -> Option<Rc<Tasks>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Runs `main` on this thread with a runtime of its own, until it ends. Tasks that it leaves behind are dropped then, and
/// memory that the kernel still uses is waited for.
///
/// # Errors
/// If the kernel gives no descriptors or threads for it, or the thread has a runtime already.
///
/// # Panics
/// If `main` or one of its tasks panics.
pub fn run<T>(main: impl AsyncFnOnce(RealDoors) -> T) -> io::Result<T> {
    if current().is_some() {
        return Err(io::Error::other("this thread is inside `real::run` already"));
    }
    let runtime = driver::build()?;
    let tasks = Rc::new(Tasks::default());
    CURRENT.set(Some(Rc::clone(&tasks)));
    let doors = RealDoors { tasks: Rc::clone(&tasks) };
    let outcome = catch_unwind(AssertUnwindSafe(|| drive(&runtime, &tasks, main(doors))));
    finish(runtime, &tasks);
    CURRENT.set(None);
    outcome.or_else(|panic| resume_unwind(panic))
}

/// Like `Runtime::block_on`, but empties the task queue before it enters the kernel: `block_on` makes one turn only, and then
/// waits for a completion with a zero timeout, which costs a system call and a real sleep for every wake-up between tasks.
fn drive<F: Future>(runtime: &Runtime, tasks: &Tasks, main: F) -> F::Output {
    runtime.enter(|| {
        let waker = runtime.waker();
        let mut context = Context::from_waker(&waker);
        let mut main = pin!(main);
        loop {
            if let Poll::Ready(value) = main.as_mut().poll(&mut context) {
                return value;
            }
            let busy = turn(runtime);
            if let Some(panic) = tasks.panic.take() {
                resume_unwind(panic);
            }
            let gave_way = tasks.gave_way.take();
            if busy || !gave_way.is_empty() {
                runtime.poll_with(Some(Duration::ZERO))
            } else {
                runtime.poll()
            }
            gave_way.into_iter().for_each(Waker::wake);
        }
    })
}

/// Runs ready tasks; true if there are still some.
fn turn(runtime: &Runtime) -> bool {
    (0..TURNS_MAX).all(|_| runtime.run())
}

/// Drops all tasks, then waits until the kernel has let go of every buffer: closing the ring does not wait for direct I/O, and
/// memory that a disk still writes to must not be given away.
fn finish(runtime: Runtime, tasks: &Tasks) {
    let started = Instant::now();
    let clean = runtime.enter(|| {
        tasks.cancel_all();
        loop {
            let busy = turn(&runtime);
            if !busy && owned::in_flight() == 0 {
                return true;
            }
            if started.elapsed() > FINISH_PATIENCE {
                return false;
            }
            runtime.poll_with(Some(if busy { Duration::ZERO } else { Duration::from_millis(50) }));
        }
    });
    if let Some(panic) = tasks.panic.take() {
        drop(panic);
        tracing::error!("a task panicked while the runtime ended");
    }
    if !clean {
        tracing::error!("{} buffers are still used by the kernel; their memory is not given back", owned::in_flight());
        std::mem::forget(runtime);
    }
}

/// The tasks of one runtime.
#[derive(Default)]
pub(super) struct Tasks {
    slots: RefCell<Slots>,
    /// No new tasks: the runtime ends.
    ending: Cell<bool>,
    /// Who goes on after the kernel was asked for completions.
    gave_way: RefCell<Vec<Waker>>,
    /// The first panic of a task: it ends the runtime, a half-dead data path would be worse.
    panic: Cell<Option<Box<dyn Any + Send>>>,
}

#[derive(Default)]
struct Slots {
    handles: Vec<Option<JoinHandle<()>>>,
    free: Vec<usize>,
}

impl Tasks {
    pub(super) fn spawn(tasks: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        if tasks.ending.get() {
            return;
        }
        let slot = tasks.reserve();
        let own = Rc::clone(tasks);
        // Combined, not awaited in a block: that would have room for the task twice.
        let handle = compio::runtime::spawn(AssertUnwindSafe(task).catch_unwind().map(move |outcome| {
            if let Err(panic) = outcome {
                let first = own.panic.take();
                own.panic.set(Some(first.unwrap_or(panic)));
            }
            own.finished(slot);
        }));
        if let Some(place) = tasks.slots.borrow_mut().handles.get_mut(slot) {
            *place = Some(handle);
        }
    }

    /// Returns once others that are ready have run and the kernel has got what was asked of it.
    pub(super) async fn after_next_poll(&self) {
        let mut waited = false;
        poll_fn(|context| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            self.gave_way.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn reserve(&self) -> usize {
        let mut slots = self.slots.borrow_mut();
        slots.free.pop().unwrap_or_else(|| {
            slots.handles.push(None);
            slots.handles.len() - 1
        })
    }

    fn finished(&self, slot: usize) {
        let mut slots = self.slots.borrow_mut();
        if let Some(handle) = slots.handles.get_mut(slot).and_then(Option::take) {
            handle.detach();
            slots.free.push(slot);
        }
    }

    /// Cancels every task; each is dropped in the next turn.
    fn cancel_all(&self) {
        self.ending.set(true);
        let handles = std::mem::take(&mut self.slots.borrow_mut().handles);
        drop(handles);
    }
}
