//! The range lock (W2): whoever changes blocks holds them alone, in the order of asking.
//!
//! First come, first served per block: a request waits for every earlier one that overlaps it, granted or not, so a large
//! request is not starved by small ones. Dropping a waiting or a granted request gives its place up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_channel::oneshot;
use sublet_types::BlockRange;
use sublet_types::mutation::{self, Mutation};

/// The lock over all blocks of one volume.
#[derive(Default)]
pub(crate) struct RangeLock {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    /// By ticket, so in the order of asking.
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    range: BlockRange,
    /// Earlier overlapping entries that are still there.
    blockers: usize,
    grant: Option<oneshot::Sender<()>>,
}

/// Blocks held (or waited for) until it is dropped.
pub(crate) struct RangeGuard {
    lock: Rc<RangeLock>,
    ticket: u64,
}

/// Two requests that must not run at the same time.
fn excludes(one: BlockRange, other: BlockRange) -> bool {
    one.overlaps(other) && !mutation::is(Mutation::NoRangeLock)
}

impl RangeLock {
    /// Waits until no earlier request overlaps the range.
    pub(crate) async fn lock(self: &Rc<Self>, range: BlockRange) -> RangeGuard {
        let (guard, granted) = self.enqueue(range);
        if let Some(granted) = granted {
            // The sender lives in the entry, and the entry as long as the guard: it cannot be cancelled.
            let _ = granted.await;
        }
        guard
    }

    fn enqueue(self: &Rc<Self>, range: BlockRange) -> (RangeGuard, Option<oneshot::Receiver<()>>) {
        let mut inner = self.inner.borrow_mut();
        let blockers = inner.entries.values().filter(|entry| excludes(entry.range, range)).count();
        let (grant, granted) = if blockers == 0 {
            (None, None)
        } else {
            let (sender, receiver) = oneshot::channel();
            (Some(sender), Some(receiver))
        };
        let ticket = inner.next;
        inner.next += 1;
        inner.entries.insert(ticket, Entry { range, blockers, grant });
        drop(inner);
        (RangeGuard { lock: Rc::clone(self), ticket }, granted)
    }

    fn release(&self, ticket: u64) {
        let mut grants = Vec::new();
        {
            let mut inner = self.inner.borrow_mut();
            let Some(gone) = inner.entries.remove(&ticket) else { return };
            for (_, later) in inner.entries.range_mut(ticket..).filter(|(_, entry)| excludes(entry.range, gone.range)) {
                later.blockers -= 1;
                if later.blockers == 0 {
                    grants.extend(later.grant.take());
                }
            }
        }
        for grant in grants {
            // A waiter that has been dropped gives its place up by its own guard.
            let _ = grant.send(());
        }
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.lock.release(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the lock must do, written naively: an entry is granted if no earlier one overlaps it.
    fn model_granted(entries: &[(usize, BlockRange)], id: usize) -> bool {
        let Some(at) = entries.iter().position(|(other, _)| *other == id) else { return false };
        entries[..at].iter().all(|(_, range)| !range.overlaps(entries[at].1))
    }

    #[test]
    fn w2_grants_agree_with_a_naive_model_whatever_is_asked_released_or_cancelled() {
        let mut seed = 99u64;
        let mut random = move |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..50 {
            let lock = Rc::new(RangeLock::default());
            let mut live: Vec<(usize, RangeGuard, Option<oneshot::Receiver<()>>, bool)> = Vec::new();
            let mut model: Vec<(usize, BlockRange)> = Vec::new();
            for id in 0..200 {
                if random(5) < 3 {
                    let start = random(20);
                    let range = BlockRange { start, end: start + 1 + random(6) };
                    let (guard, waiting) = lock.enqueue(range);
                    let granted = waiting.is_none();
                    live.push((id, guard, waiting, granted));
                    model.push((id, range));
                } else if !live.is_empty() {
                    // Granted or waiting: both may be dropped.
                    let (gone, guard, waiting, _) = live.swap_remove(random(live.len() as u64) as usize);
                    drop((waiting, guard));
                    model.retain(|(other, _)| *other != gone);
                }
                for (id, _, waiting, granted) in &mut live {
                    if let Some(receiver) = waiting.as_mut().filter(|_| !*granted) {
                        *granted = receiver.try_recv().unwrap().is_some();
                    }
                    assert_eq!(*granted, model_granted(&model, *id));
                }
            }
            live.clear();
            assert!(lock.inner.borrow().entries.is_empty());
        }
    }
}
