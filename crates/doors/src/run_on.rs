//! Work that is not given up half-done.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::Doors;

/// A future that runs to its end: if it is dropped before, it goes on as a task of its own. Unlike a task, it only goes on while
/// its owner waits for it or after its owner has gone, so an owner that holds it does one or the other.
pub struct RunOn<D: Doors, F: Future + 'static> {
    doors: D,
    work: Option<Pin<Box<F>>>,
}

impl<D: Doors, F: Future + 'static> RunOn<D, F> {
    /// Not begun before it is waited for, or dropped.
    pub fn new(doors: &D, work: F) -> Self {
        Self { doors: doors.clone(), work: Some(Box::pin(work)) }
    }
}

// The work is pinned in its box, and nothing else is.
impl<D: Doors, F: Future + 'static> Unpin for RunOn<D, F> {}

impl<D: Doors, F: Future + 'static> Future for RunOn<D, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Whoever polls after the end waits for ever, as with other futures.
        let Some(work) = &mut self.work else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl<D: Doors, F: Future + 'static> Drop for RunOn<D, F> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.doors.spawn(async move {
                work.await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::Clock;
    use crate::real::run;

    #[test]
    fn work_that_is_not_waited_for_any_more_runs_to_its_end() {
        run(async |doors| {
            let steps = Rc::new(Cell::new(0));
            let work = |doors: crate::real::RealDoors, steps: Rc<Cell<u32>>| async move {
                for _ in 0..3 {
                    steps.set(steps.get() + 1);
                    doors.sleep(Duration::from_millis(1)).await;
                }
                steps.get()
            };
            assert_eq!(RunOn::new(&doors, work(doors.clone(), Rc::clone(&steps))).await, 3);
            // Given up in the middle, and before it was begun.
            let mut begun = RunOn::new(&doors, work(doors.clone(), Rc::clone(&steps)));
            assert!((&mut begun).now_or_never().is_none());
            assert_eq!(steps.get(), 4);
            drop(begun);
            drop(RunOn::new(&doors, work(doors.clone(), Rc::clone(&steps))));
            let ended = async {
                while steps.get() < 9 {
                    doors.sleep(Duration::from_millis(1)).await;
                }
            };
            doors.timeout(Duration::from_secs(5), ended).await.unwrap();
        })
        .unwrap();
    }
}
