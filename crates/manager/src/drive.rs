//! The thread of the core: takes one item, applies it, hands out the replies.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sublet_api::request::Response;
use sublet_table::{Action, Event, Outside};
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::inbox::{Inbox, Item, Taken};
use crate::machine::Machine;

/// The shortest pause between two ticks, so that a wake-up time in the past cannot make the thread spin.
const TICK_PAUSE_MIN: Duration = Duration::from_millis(10);

/// Runs the machine until the inbox is closed. Requests still open then are dropped, which answers them as stopping.
pub(crate) fn drive(mut machine: impl Machine, inbox: &Inbox, clock: Clock) {
    let mut random = random_u128;
    let mut replies: HashMap<u64, oneshot::Sender<Response>> = HashMap::new();
    let mut tick_earliest = Instant::now();
    loop {
        let wake = machine.next_wake_ms().and_then(|at_ms| clock.instant_of(at_ms)).map(|wake| wake.max(tick_earliest));
        let taken = match wake {
            // A due tick comes before any request: steady traffic must not hold up time limits.
            Some(wake) if wake <= Instant::now() => Taken::Deadline,
            wake => inbox.take(wake),
        };
        let event = match taken {
            Taken::Closed => return,
            Taken::Deadline => {
                tick_earliest = Instant::now() + TICK_PAUSE_MIN;
                Event::Tick
            }
            Taken::Item(Item::Gone { conn }) => {
                // Answered in the moment in which its caller left: for the core it is over already.
                if replies.remove(&conn).is_none() {
                    continue;
                }
                Event::Gone { conn }
            }
            Taken::Item(Item::Request { conn, request, reply }) => {
                replies.insert(conn, reply);
                Event::Request { conn, request }
            }
        };
        let mut outside = Outside { now_ms: clock.now_ms(), random: &mut random };
        for action in machine.apply(&mut outside, event) {
            let Action::Reply { conn, response } = action;
            match replies.remove(&conn) {
                // The caller may have gone in this moment: its Gone is in the inbox then.
                Some(reply) => drop(reply.send(response)),
                None => tracing::debug!(conn, "a reply for a request that is gone or answered"),
            }
        }
    }
}

/// 128 random bits from the kernel.
pub(crate) fn random_u128() -> u128 {
    let mut bytes = [0; 16];
    // Epochs and lease secrets come from here: without randomness the manager must not go on.
    getrandom::fill(&mut bytes).unwrap_or_else(|error| panic!("the kernel gives no random numbers: {error}"));
    u128::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Wants to be woken every 30 ms, and stops everything after the fifth time.
    struct Ticking {
        inbox: Arc<Inbox>,
        clock: Clock,
        ticks_ms: Arc<std::sync::Mutex<Vec<u64>>>,
        wake_ms: u64,
    }

    impl Machine for Ticking {
        fn apply(&mut self, outside: &mut Outside<'_>, event: Event) -> Vec<Action> {
            assert!(matches!(event, Event::Tick));
            let mut ticks = self.ticks_ms.lock().unwrap();
            ticks.push(outside.now_ms);
            self.wake_ms = self.clock.now_ms() + 30;
            if ticks.len() == 5 {
                self.inbox.close();
            }
            Vec::new()
        }

        fn next_wake_ms(&self) -> Option<u64> {
            Some(self.wake_ms)
        }
    }

    #[test]
    fn a_machine_is_woken_when_it_wished_and_not_before() {
        let inbox = Arc::new(Inbox::default());
        let clock = Clock::start();
        let ticks_ms = Arc::default();
        drive(Ticking { inbox: Arc::clone(&inbox), clock, ticks_ms: Arc::clone(&ticks_ms), wake_ms: 0 }, &inbox, clock);
        let ticks = ticks_ms.lock().unwrap();
        assert_eq!(ticks.len(), 5);
        assert!(ticks.windows(2).all(|pair| pair[1] - pair[0] >= 30), "{ticks:?}");
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random_u128(), random_u128());
    }
}
