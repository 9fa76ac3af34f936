//! The thread of the core: takes one item, applies it, hands out the replies.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sublet_api::request::Response;
use sublet_table::{Action, Event, Outside};
use tokio::sync::oneshot;

use crate::audit::AuditLog;
use crate::clock::Clock;
use crate::inbox::{Inbox, Item, Taken};
use crate::machine::Machine;

/// The shortest pause between two ticks, so that a wake-up time in the past cannot make the thread spin.
const TICK_PAUSE_MIN: Duration = Duration::from_millis(10);

/// A request that is not answered yet.
struct Asked {
    from: Option<SocketAddr>,
    reply: oneshot::Sender<Response>,
}

/// Runs the machine until the inbox is closed. Requests still open then are dropped, which answers them as stopping.
pub(crate) fn drive(mut machine: impl Machine, inbox: &Inbox, clock: Clock, mut audit: AuditLog) {
    let mut random = random_u128;
    let mut asked: HashMap<u64, Asked> = HashMap::new();
    let mut tick_earliest = Instant::now();
    loop {
        let wake = machine.next_wake_ms().and_then(|at_ms| clock.instant_of(at_ms)).map(|wake| wake.max(tick_earliest));
        let taken = match wake {
            // A due tick comes before any request: steady traffic must not hold up time limits.
            Some(wake) if wake <= Instant::now() => Taken::Deadline,
            wake => inbox.take(wake),
        };
        let mut left: Option<(u64, Option<SocketAddr>)> = None;
        let event = match taken {
            Taken::Closed => return,
            Taken::Deadline => {
                tick_earliest = Instant::now() + TICK_PAUSE_MIN;
                Event::Tick
            }
            Taken::Item(Item::Gone { conn }) => {
                // Answered in the moment in which its caller left: for the core it is over already.
                let Some(gone) = asked.remove(&conn) else { continue };
                left = Some((conn, gone.from));
                Event::Gone { conn }
            }
            Taken::Item(Item::Request { conn, caller, from, request, reply }) => {
                asked.insert(conn, Asked { from, reply });
                Event::Request { conn, caller, request }
            }
        };
        let mut outside = Outside { now_ms: clock.now_ms(), random: &mut random };
        for action in machine.apply(&mut outside, event) {
            match action {
                Action::Reply { conn, response } => match asked.remove(&conn) {
                    // The caller may have gone in this moment: its Gone is in the inbox then.
                    Some(asked) => drop(asked.reply.send(response)),
                    None => tracing::debug!(conn, "a reply for a request that is gone or answered"),
                },
                Action::Audit { conn, mut line } => {
                    let gone = left.filter(|(of, _)| *of == conn).and_then(|(_, from)| from);
                    let from = asked.get(&conn).and_then(|asked| asked.from).or(gone);
                    line.from = from.map(|from| from.ip().to_string()).unwrap_or_default();
                    audit.append(&line);
                }
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

    use sublet_api::Refusal;
    use sublet_api::access::DrawnToken;
    use sublet_types::PoolId;

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

        fn pool(&self) -> Result<PoolId, Refusal> {
            Ok(PoolId::from_u128(1))
        }

        fn first_link(&mut self, _: &mut Outside<'_>, _: bool) -> Result<Option<DrawnToken>, Refusal> {
            Ok(None)
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
        drive(
            Ticking { inbox: Arc::clone(&inbox), clock, ticks_ms: Arc::clone(&ticks_ms), wake_ms: 0 },
            &inbox,
            clock,
            AuditLog::new("/dev/null".into()),
        );
        let ticks = ticks_ms.lock().unwrap();
        assert_eq!(ticks.len(), 5);
        assert!(ticks.windows(2).all(|pair| pair[1] - pair[0] >= 30), "{ticks:?}");
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random_u128(), random_u128());
    }
}
