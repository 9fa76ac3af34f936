//! Orders that are out. What is wanted is derived from the table and the tasks again and again; this book only remembers what
//! became of each order, so that none is given twice without need. All of it may be lost at any moment.

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::Refusal;
use sublet_api::order::{NumberedOrder, Order, OrderResult, Outcome};
use sublet_types::drawn::{self, Drawn};
use sublet_types::limits::ORDER_TIMEOUT;
use sublet_types::{AreaId, ServerId, SliceId, VolumeId};

use crate::plan::{Standing, order_area, order_slice, order_volume};

/// [`ORDER_TIMEOUT`] in milliseconds.
pub const TIMEOUT_MS: u64 = ORDER_TIMEOUT.as_millis() as u64;
/// An order without an answer is sent again after this long, then after twice as long, and so on (orders are idempotent; an
/// answer to a poll may get lost), in milliseconds.
const RESEND_MS: u64 = 3000;
/// An order that was refused and is still wanted is given again after this long, in milliseconds.
const RETRY_MS: u64 = 10_000;
/// A wipe without progress for so long counts as stuck: nobody waits for it any longer, but it stays wanted, in milliseconds.
const WIPE_SILENT_MAX_MS: u64 = 3 * TIMEOUT_MS;
/// The most orders of one poll answer.
const ORDERS_PER_ANSWER_MAX: usize = 64;

/// What became of an order.
#[derive(Clone, PartialEq, Debug)]
pub enum Fate {
    Open,
    Done,
    Failed(Refusal),
}

pub struct Entry {
    pub number: u64,
    pub server: ServerId,
    pub order: Order,
    pub fate: Fate,
    issued_ms: u64,
    /// When it was issued, or its lender last told of progress.
    heard_ms: u64,
    /// When it was last sent or heard of.
    touched_ms: u64,
    /// How often it was sent.
    sent: u32,
    progress: Option<(u64, u64)>,
    /// How fast it was between its last two tellings of progress, in bytes a second.
    rate_bytes_per_s: u64,
}

impl Entry {
    fn is_wipe(&self) -> bool {
        matches!(self.order, Order::WipeSlice { .. })
    }

    /// From when on its lender, although it is up, has not answered in time (a stuck disk counts as unreachable, F1). A wipe
    /// takes as long as it takes, but it tells how far it is.
    fn overdue_ms(&self) -> u64 {
        if self.is_wipe() { self.heard_ms + WIPE_SILENT_MAX_MS } else { self.issued_ms + drawn::limit(Drawn::Order, TIMEOUT_MS) }
    }

    fn is_overdue(&self, now_ms: u64) -> bool {
        self.fate == Fate::Open && now_ms >= self.overdue_ms()
    }

    /// See there: of a wipe.
    pub fn rate_bytes_per_s(&self) -> u64 {
        self.rate_bytes_per_s
    }

    /// Its lender has told of progress since it was given.
    pub fn has_progress(&self) -> bool {
        self.progress.is_some() || self.fate == Fate::Done
    }

    /// When it was given, in milliseconds since 1970.
    pub fn issued_ms(&self) -> u64 {
        self.issued_ms
    }

    /// Refused, or without an answer for too long.
    pub fn is_stuck(&self, now_ms: u64) -> bool {
        matches!(self.fate, Fate::Failed(_)) || self.is_overdue(now_ms)
    }

    /// How it stands with a lender that is up.
    pub fn standing(&self, now_ms: u64) -> Standing {
        match &self.fate {
            Fate::Done => Standing::Done,
            Fate::Failed(refusal) => Standing::Failed(refusal.clone()),
            Fate::Open if self.is_overdue(now_ms) => {
                Standing::Unreachable(format!("it did not answer for {} s", now_ms.saturating_sub(self.heard_ms) / 1000))
            }
            Fate::Open => Standing::Waiting { since_ms: self.issued_ms, progress: self.progress },
        }
    }

    /// When it is to be sent again: the pause doubles each time.
    fn resend_ms(&self) -> u64 {
        self.touched_ms + (RESEND_MS << self.sent.saturating_sub(1).min(5))
    }

    /// A poll that came after it was sent shows that the server is there, but not that the order has arrived.
    fn is_to_be_sent(&self, poll_arrived_ms: u64, now_ms: u64) -> bool {
        let was_heard = poll_arrived_ms >= self.touched_ms && now_ms >= self.resend_ms();
        self.fate == Fate::Open && (self.sent == 0 || was_heard)
    }
}

/// What there is at most one order for: of two different ones only one can be wanted.
type Purpose = (u8, Option<AreaId>, Option<SliceId>, Option<VolumeId>);

fn purpose(order: &Order) -> Purpose {
    let kind = match order {
        Order::PrepareSlice { .. } => 0,
        Order::OpenLease { .. } => 1,
        Order::Fence { .. } => 2,
        Order::WipeSlice { .. } => 3,
        Order::ReleaseArea { .. } => 4,
        Order::RenameArea { .. } => 5,
        Order::Coordinate { .. } => 6,
        Order::StopCoordinating { .. } => 7,
        Order::PutTombstones { .. } => 8,
        Order::SetQuarantine { .. } => 10,
        Order::DropTombstones { .. } => 9,
    };
    (kind, order_area(order), order_slice(order), order_volume(order))
}

/// See the module.
pub struct OrderBook {
    run: u64,
    next: u64,
    entries: BTreeMap<Purpose, Entry>,
}

impl OrderBook {
    pub fn new(run: u64) -> Self {
        Self { run, next: 1, entries: BTreeMap::new() }
    }

    pub fn find(&self, order: &Order) -> Option<&Entry> {
        self.entries.get(&purpose(order)).filter(|entry| entry.order == *order)
    }

    /// Whether a wipe of this server is stuck; then those that wait behind it are, too.
    pub fn has_stuck_wipe(&self, server: ServerId, now_ms: u64) -> bool {
        self.entries.values().any(|entry| entry.server == server && entry.is_wipe() && entry.is_overdue(now_ms))
    }

    /// Brings the book in line with what is wanted now: new orders are entered, and those that nobody wants any more are
    /// forgotten; their late answers mean nothing.
    pub fn want(&mut self, wanted: &[(ServerId, Order)], now_ms: u64) {
        let purposes: BTreeSet<Purpose> = wanted.iter().map(|(_, order)| purpose(order)).collect();
        self.entries.retain(|purpose, _| purposes.contains(purpose));
        for (server, order) in wanted {
            let known = self.entries.get(&purpose(order));
            // If the disk has moved, its new server has not been asked yet.
            if known.is_some_and(|entry| entry.order == *order && entry.server == *server) {
                continue;
            }
            self.entries.insert(purpose(order), fresh(self.next, *server, order, now_ms));
            self.next += 1;
        }
    }

    /// Refused orders that are still wanted are given again after a while.
    pub fn retry(&mut self, now_ms: u64) {
        for entry in self.entries.values_mut() {
            if matches!(entry.fate, Fate::Failed(_)) && now_ms >= entry.touched_ms + RETRY_MS {
                *entry = fresh(entry.number, entry.server, &entry.order.clone(), now_ms);
            }
        }
    }

    /// Enters a result; the answer is the order, if it is done now.
    pub fn result(&mut self, server: ServerId, result: OrderResult, now_ms: u64) -> Option<Order> {
        if result.run != self.run {
            return None;
        }
        let entry = self.entries.values_mut().find(|entry| entry.number == result.number && entry.server == server)?;
        entry.touched_ms = now_ms;
        match result.outcome {
            Outcome::Progress { done, total } => {
                let before = entry.progress.map_or(0, |(done, _)| done);
                let took_ms = now_ms.saturating_sub(entry.heard_ms).max(1);
                entry.rate_bytes_per_s = done.saturating_sub(before).saturating_mul(1000) / took_ms;
                entry.progress = Some((done, total));
                entry.heard_ms = now_ms;
                None
            }
            Outcome::Done => {
                entry.fate = Fate::Done;
                Some(entry.order.clone())
            }
            Outcome::Failed { refusal } => {
                tracing::warn!(server = %entry.server, area = ?order_area(&entry.order), %refusal, "an order was refused");
                entry.fate = Fate::Failed(refusal);
                None
            }
        }
    }

    /// A server has started anew: it knows nothing of what it was told.
    pub fn forget_sent(&mut self, server: ServerId, now_ms: u64) {
        for entry in self.entries.values_mut().filter(|entry| entry.server == server && entry.fate != Fate::Done) {
            *entry = fresh(entry.number, server, &entry.order.clone(), now_ms);
        }
    }

    /// What a server was told last may not have arrived: its next poll is answered with all that is open. An order that it
    /// has already is not carried out twice.
    pub fn resend(&mut self, server: ServerId) {
        for entry in self.entries.values_mut().filter(|entry| entry.server == server && entry.fate == Fate::Open) {
            entry.sent = 0;
        }
    }

    /// The orders for an answer to a poll, in the order in which they were given.
    pub fn take(&mut self, server: ServerId, poll_arrived_ms: u64, now_ms: u64) -> Vec<NumberedOrder> {
        let run = self.run;
        let is_due = |entry: &&mut Entry| entry.server == server && entry.is_to_be_sent(poll_arrived_ms, now_ms);
        let mut due: Vec<&mut Entry> = self.entries.values_mut().filter(is_due).collect();
        due.sort_by_key(|entry| entry.number);
        due.into_iter()
            .take(ORDERS_PER_ANSWER_MAX)
            .map(|entry| {
                entry.sent += 1;
                entry.touched_ms = now_ms;
                NumberedOrder { number: entry.number, run, order: entry.order.clone() }
            })
            .collect()
    }

    /// When a standing changes by the mere passing of time.
    pub fn wakes(&self, now_ms: u64) -> impl Iterator<Item = u64> {
        self.entries.values().flat_map(move |entry| {
            let times = match entry.fate {
                Fate::Open => [entry.overdue_ms(), entry.issued_ms + crate::plan::mount::STALE_WAIT_MS, entry.resend_ms()],
                Fate::Failed(_) => [entry.touched_ms + RETRY_MS; 3],
                Fate::Done => [0; 3],
            };
            times.into_iter().filter(move |time| *time > now_ms)
        })
    }
}

fn fresh(number: u64, server: ServerId, order: &Order, now_ms: u64) -> Entry {
    Entry {
        number,
        server,
        order: order.clone(),
        fate: Fate::Open,
        issued_ms: now_ms,
        heard_ms: now_ms,
        touched_ms: now_ms,
        sent: 0,
        progress: None,
        rate_bytes_per_s: 0,
    }
}
