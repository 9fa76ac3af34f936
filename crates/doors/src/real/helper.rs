//! Helper threads for calls that block.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;

/// Helper threads of the process at most; further work waits in the queue. Many, because some of them wait for locks.
const HELPERS_MAX: usize = 256;
/// A helper without work ends after this time.
const HELPER_IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

struct Helpers {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static HELPERS: Helpers =
    Helpers { state: Mutex::new(State { queue: VecDeque::new(), threads: 0, idle: 0 }), work: Condvar::new() };

impl Helpers {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and the state is valid between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&'static self, job: Job) {
        let mut state = self.lock();
        state.queue.push_back(job);
        if state.idle >= state.queue.len() || state.threads >= HELPERS_MAX {
            self.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let spawned = std::thread::Builder::new().name("sublet-helper".into()).spawn(|| self.serve());
        if let Err(error) = spawned {
            let mut state = self.lock();
            state.threads -= 1;
            if state.threads > 0 {
                return; // Another helper takes it.
            }
            let jobs = std::mem::take(&mut state.queue);
            drop(state);
            tracing::warn!("no helper thread can be started ({error}); blocking work runs on the data thread");
            jobs.into_iter().for_each(|job| job());
        }
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (back, wait) = self.work.wait_timeout(state, HELPER_IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if wait.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// Runs blocking work on a helper thread and awaits it. The work goes on if the future is dropped; its result is dropped then.
///
/// # Panics
/// If the work panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = oneshot::channel();
    HELPERS.start(Box::new(move || {
        // Nobody may wait for the result any more: it is dropped here, with all that it owns.
        drop(sender.send(catch_unwind(AssertUnwindSafe(work))));
    }));
    match receiver.await {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(oneshot::Canceled) => unreachable!("a helper always sends a result"),
    }
}
