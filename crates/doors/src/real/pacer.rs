//! How many requests a disk gets at a time.
//!
//! A queue of requests that goes to a disk as one burst may come back as one burst: some disks, virtual ones above all, report what
//! they have done only when their queue is empty. Then the disk stands still while programs and network work on all of it, and
//! the other way round, and the time for a round is the sum of both. If a part of the burst is held back until the first part is
//! there, disk and programs work at the same time. On another disk the same would only be a delay. So both are tried, and what
//! gets more done is kept; tried again from time to time, since load and disk change.
//!
//! Nothing is held back below [`WINDOW_MIN`] requests, and nothing for longer than [`HOLD_MAX`], whatever the disk does.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_channel::oneshot;

/// So many requests at the same time are let through in any case.
const WINDOW_MIN: usize = 8;
/// No request waits longer than this: a disk may hang.
const HOLD_MAX: Duration = Duration::from_millis(2);
/// How long one way is gone before it is judged.
const TRIAL: Duration = Duration::from_millis(16);
/// A trial with fewer requests says nothing,
const TRIAL_REQUESTS_MIN: u64 = 64;
/// nor does one in which nothing was to be done for so long.
const IDLE_MAX: Duration = Duration::from_millis(3);
/// After so many trials of the better way the other one is tried again.
const TRIALS_OF_BETTER: u32 = 40;
/// The other way has to be better by this factor, or it is noise.
const MARGIN: f64 = 1.06;

/// What is done with a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// The disk gets all of it.
    Whole,
    /// A part is held back.
    Parted,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Self::Whole => Self::Parted,
            Self::Parted => Self::Whole,
        }
    }
}

/// Decides between the two ways by what was done in how much time. Knows no clock and no disk.
#[derive(Debug)]
struct Judge {
    way: Way,
    /// The way that was found better, and how many requests a second it does.
    better: Way,
    rate: f64,
    /// Trials until the other way is tried.
    left: u32,
    /// The most requests at the same time, lately.
    window: usize,
    began: Duration,
    done: u64,
    peak: usize,
    last: Duration,
    idled: bool,
}

impl Judge {
    fn new() -> Self {
        Self {
            way: Way::Whole,
            better: Way::Whole,
            rate: 0.0,
            left: 1,
            window: 0,
            began: Duration::ZERO,
            done: 0,
            peak: 0,
            last: Duration::ZERO,
            idled: true,
        }
    }

    /// How many requests the disk may have at a time.
    fn limit(&self) -> usize {
        match self.way {
            Way::Whole => usize::MAX,
            Way::Parted => (self.window * 5 / 8).max(WINDOW_MIN),
        }
    }

    /// A request came; so many are there now, those that wait included.
    fn came(&mut self, present: usize, now: Duration) {
        if present == 1 && now.saturating_sub(self.last) > IDLE_MAX {
            self.idled = true;
        }
        self.peak = self.peak.max(present);
    }

    /// A request has ended.
    fn ended(&mut self, now: Duration) {
        self.done += 1;
        self.last = now;
        let time = now.saturating_sub(self.began);
        if time < TRIAL {
            return;
        }
        let counts = !self.idled && self.done >= TRIAL_REQUESTS_MIN && self.peak > WINDOW_MIN;
        let rate = self.done as f64 / time.as_secs_f64();
        // Slowly down: as long as a burst is in parts, fewer come at the same time.
        self.window = self.peak.max(self.window - self.window / 8);
        (self.began, self.done, self.peak, self.idled) = (now, 0, 0, false);
        if counts {
            self.judge(rate);
        } else {
            // Few requests, or another load: what was found out is old.
            (self.way, self.better, self.rate, self.left) = (Way::Whole, Way::Whole, 0.0, 1);
        }
    }

    fn judge(&mut self, rate: f64) {
        if self.way == self.better {
            self.rate = if self.rate == 0.0 { rate } else { self.rate * 0.75 + rate * 0.25 };
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                self.way = self.better.other();
            }
            return;
        }
        self.left = TRIALS_OF_BETTER;
        if rate > self.rate * MARGIN {
            (self.better, self.rate) = (self.way, rate);
        } else {
            self.way = self.better;
        }
    }
}

/// The requests of one disk.
pub(super) struct Pacer {
    start: Instant,
    judge: RefCell<Judge>,
    in_flight: Cell<usize>,
    waiting: RefCell<VecDeque<oneshot::Sender<Turn>>>,
}

/// Leave to give the disk a request; held until it is done.
pub(super) struct Turn(Rc<Pacer>);

impl Drop for Turn {
    fn drop(&mut self) {
        let pacer = &self.0;
        pacer.in_flight.set(pacer.in_flight.get() - 1);
        pacer.judge.borrow_mut().ended(pacer.start.elapsed());
        Pacer::let_through(pacer);
    }
}

impl fmt::Debug for Pacer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pacer({} in flight, {:?})", self.in_flight.get(), self.judge.borrow())
    }
}

impl Pacer {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            start: Instant::now(),
            judge: RefCell::new(Judge::new()),
            in_flight: Cell::new(0),
            waiting: RefCell::default(),
        })
    }

    /// Waits for the turn of one request.
    pub(super) async fn turn(pacer: &Rc<Self>) -> Turn {
        let in_flight = pacer.in_flight.get();
        let present = in_flight + pacer.waiting.borrow().len() + 1;
        let limit = {
            let mut judge = pacer.judge.borrow_mut();
            if present == 1 {
                judge.came(present, pacer.start.elapsed());
            } else {
                judge.came(present, Duration::ZERO);
            }
            judge.limit()
        };
        if in_flight < limit && pacer.waiting.borrow().is_empty() {
            return Self::begin(pacer);
        }
        let (sender, receiver) = oneshot::channel();
        pacer.waiting.borrow_mut().push_back(sender);
        match compio::time::timeout(HOLD_MAX, receiver).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) | Err(_) => {
                // Neither it nor others that gave up count as waiting any more.
                pacer.waiting.borrow_mut().retain(|waiting| !waiting.is_canceled());
                Self::begin(pacer)
            }
        }
    }

    fn begin(pacer: &Rc<Self>) -> Turn {
        pacer.in_flight.set(pacer.in_flight.get() + 1);
        Turn(Rc::clone(pacer))
    }

    fn let_through(pacer: &Rc<Self>) {
        let limit = pacer.judge.borrow().limit();
        while pacer.in_flight.get() < limit {
            let Some(next) = pacer.waiting.borrow_mut().pop_front() else { return };
            if next.is_canceled() {
                // It waited too long, or nobody wants it any more.
                continue;
            }
            let _ = next.send(Self::begin(pacer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk under load: `whole` and `parted` requests a second, so many at the same time.
    fn load(judge: &mut Judge, now: &mut Duration, time: Duration, present: usize, rates: (f64, f64)) {
        let end = *now + time;
        while *now < end {
            judge.came(present, *now);
            let rate = if judge.way == Way::Whole { rates.0 } else { rates.1 };
            *now += Duration::from_secs_f64(1.0 / rate);
            judge.ended(*now);
        }
    }

    #[test]
    fn a_burst_is_parted_where_more_is_done_so_and_only_there() {
        let mut judge = Judge::new();
        let mut now = Duration::from_secs(1);
        assert_eq!(judge.limit(), usize::MAX);
        load(&mut judge, &mut now, TRIAL * 8, 32, (40_000.0, 55_000.0));
        assert_eq!((judge.better, judge.limit()), (Way::Parted, 20));
        // The disk changes.
        load(&mut judge, &mut now, TRIAL * (2 * TRIALS_OF_BETTER + 4), 32, (80_000.0, 55_000.0));
        assert_eq!((judge.better, judge.limit()), (Way::Whole, usize::MAX));
        // No difference: it stays as it is.
        load(&mut judge, &mut now, TRIAL * 8, 32, (80_000.0, 81_000.0));
        assert_eq!(judge.better, Way::Whole);
    }

    #[test]
    fn a_few_requests_and_a_load_with_pauses_are_never_held_back() {
        let mut judge = Judge::new();
        let mut now = Duration::from_secs(1);
        load(&mut judge, &mut now, TRIAL * 8, WINDOW_MIN, (20_000.0, 60_000.0));
        assert_eq!(judge.limit(), usize::MAX);
        for _ in 0..50 {
            load(&mut judge, &mut now, TRIAL / 2, 32, (40_000.0, 60_000.0));
            now += IDLE_MAX * 2;
            judge.came(1, now);
        }
        assert_eq!(judge.limit(), usize::MAX);
        // What was found out is forgotten after a pause.
        load(&mut judge, &mut now, TRIAL * 8, 32, (40_000.0, 55_000.0));
        assert_eq!(judge.better, Way::Parted);
        now += IDLE_MAX * 2;
        judge.came(1, now);
        load(&mut judge, &mut now, TRIAL, 1, (20_000.0, 20_000.0));
        assert_eq!(judge.limit(), usize::MAX);
    }

    #[test]
    fn a_disk_that_hangs_holds_nothing_back_for_long_and_no_turn_is_lost() {
        super::super::run(async |_| {
            let pacer = Pacer::new();
            {
                let mut judge = pacer.judge.borrow_mut();
                (judge.way, judge.better, judge.left) = (Way::Parted, Way::Parted, u32::MAX);
            }
            let mut hanging = Vec::new();
            for _ in 0..WINDOW_MIN {
                hanging.push(Pacer::turn(&pacer).await);
            }
            // The next ones wait, but not for ever.
            let began = Instant::now();
            let late = Pacer::turn(&pacer).await;
            assert!(began.elapsed() >= HOLD_MAX);
            assert!(pacer.waiting.borrow().is_empty());
            // One that nobody waits for any more takes nobody's turn.
            let gone = compio::time::timeout(Duration::ZERO, Pacer::turn(&pacer)).await;
            assert!(gone.is_err());
            let mut next = Box::pin(Pacer::turn(&pacer));
            assert!(futures_util::poll!(&mut next).is_pending());
            hanging.truncate(WINDOW_MIN - 2);
            let next = next.await;
            assert_eq!(pacer.in_flight.get(), WINDOW_MIN);
            drop((hanging, late, next));
            assert_eq!(pacer.in_flight.get(), 0);
            assert!(pacer.waiting.borrow().is_empty());
        })
        .unwrap();
    }
}
