//! The manager as a synchronous state machine: `apply(event) -> actions`.
//!
//! What must survive is in the rows and committed before anything is told. What is kept here beside the table can be lost at
//! any moment: who is heard of, which orders are out, who waits for an answer. A restarted manager derives the orders anew.

mod access;
mod audit;
mod commit;
pub(crate) mod damaged;
mod orders;
mod paths;
mod peers;
mod poll;
mod pump;
mod rebuild;
mod requests;
mod task_views;
mod tasks;
mod tombstones;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::access::{AuditLine, Caller};
use sublet_api::rebuild::KnockView;
use sublet_api::request::{Request, Response};
use sublet_types::{ManagerId, PoolId, ServerId, SliceId, TaskId, VolumeId};

use self::orders::OrderBook;
use self::paths::PathWatch;
use self::peers::Peers;
pub(crate) use self::tasks::task_of;
use crate::access::Rights;
use crate::change::Change;
use crate::plan;
use crate::records::{FrozenUntil, Key, PoolRow, ROW_VERSION, Row, RowError, VolumeRow};
use crate::store::{RawRow, Store, StoreError};
use crate::table::Table;

/// How long a request for a task is held before it is answered with `running`, in milliseconds; the caller repeats it.
pub const TASK_HOLD_MS: u64 = 5000;
/// The longest that a request for the table is held, in milliseconds.
pub const TABLE_HOLD_MAX_MS: u64 = 60_000;
/// Finished tasks that are kept, so that a repeated request finds its answer.
pub const TASKS_MAX: usize = 1000;
/// Events that are kept.
pub const EVENTS_MAX: usize = 10_000;

/// What the shell knows and the core must not find out by itself.
pub struct Outside<'a> {
    /// The time in milliseconds since 1970 (UTC).
    pub now_ms: u64,
    /// Draws 128 random bits (ids, epochs, generations, secrets).
    pub random: &'a mut dyn FnMut() -> u128,
}

/// What happens to the manager.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is taken apart at once")]
pub enum Event {
    /// A request arrived. Every request is answered by exactly one [`Action::Reply`] with its `conn`, perhaps much later.
    Request {
        /// Chosen by the shell: unique per request.
        conn: u64,
        /// Who asks.
        caller: Caller,
        /// What is asked.
        request: Request,
    },
    /// The asker of a request that is not answered yet is gone: no reply will be given any more.
    Gone {
        /// See [`Event::Request`].
        conn: u64,
    },
    /// Time has passed: see [`Core::next_wake_ms`].
    Tick,
}

/// What the shell shall do.
#[derive(Debug)]
pub enum Action {
    /// Answer a request.
    Reply {
        /// See [`Event::Request`].
        conn: u64,
        /// The answer.
        response: Response,
    },
    /// Append a line to the audit log, before anything that follows is done. The shell fills in where the request came from.
    Audit {
        /// See [`Event::Request`].
        conn: u64,
        /// The line.
        line: AuditLine,
    },
}

/// A caller that waits for a task's end.
struct TaskWaiter {
    conn: u64,
    task: TaskId,
    until_ms: u64,
}

/// A caller that waits for a change of the table.
struct TableWaiter {
    conn: u64,
    rights: Rights,
    after: u64,
    until_ms: u64,
}

/// The manager.
pub struct Core<S: Store> {
    store: S,
    table: Table,
    /// The store's revision.
    revision: u64,
    /// The revision of the last change that the table view shows.
    shown_revision: u64,
    /// Changes with what clients are told about lenders: their addresses, whether they are up, the manager's urls.
    lenders_revision: u64,
    urls: Vec<String>,
    next_event: u64,
    now_ms: u64,
    peers: Peers,
    orders: OrderBook,
    paths: BTreeMap<VolumeId, PathWatch>,
    /// What running tasks wait for, and how many bytes are done.
    progress: BTreeMap<TaskId, (String, u64)>,
    task_waiters: Vec<TaskWaiter>,
    /// Requests that wait until lenders have told of their labels, and who asked: see [`Core::is_early`].
    early: Vec<(u64, Request)>,
    table_waiters: Vec<TableWaiter>,
    /// Background work that did not go well, and is not begun again before some time.
    retreats: BTreeMap<VolumeId, work::Retreat>,
    /// When background work goes on by the mere passing of time.
    background_wake_ms: Option<u64>,
    /// Warnings that were told already.
    said: BTreeSet<(String, String)>,
    /// The last commit failed: it is tried again.
    is_store_failing: bool,
    /// Servers of other pools that ask to be registered.
    knocks: BTreeMap<ServerId, KnockView>,
    /// There are labels that have not been looked at for what the table lacks.
    relabel: bool,
    /// The slices that the table had when it was loaded.
    loaded: BTreeSet<SliceId>,
    /// Since when each wipe has been in the table, or this manager runs.
    wipes_since: BTreeMap<SliceId, u64>,
    audit: audit::Audit,
    actions: Vec<Action>,
}

impl<S: Store> Core<S> {
    /// Loads the table, or begins a new one. `urls` is where the manager can be reached.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read; a single bad row is no error, it is quarantined and shown as an event.
    pub fn load(mut store: S, outside: &mut Outside<'_>, urls: Vec<String>) -> Result<Self, StoreError> {
        let loaded = store.load()?;
        let mut table = Table::default();
        let mut bad = Vec::new();
        for raw in &loaded.rows {
            if let Some(text) = damaged::kept_aside(raw) {
                table.damaged.push(text);
                table.lost_wipes.extend(damaged::wiped_slice(&raw.key));
                continue;
            }
            match Row::decode(raw) {
                Ok(row) => table.put(row),
                Err(newer @ RowError::Newer(_)) => {
                    let text = format!("the row {} cannot be read: {newer}; use the version of sublet that wrote it", raw.key);
                    return Err(StoreError::Failed(text));
                }
                Err(damaged) => bad.push((raw.clone(), damaged.to_string())),
            }
        }
        if let Some((raw, why)) = bad.iter().find(|(raw, _)| raw.key == Key::Pool.text()) {
            // Without it nobody knows whose table this is; a new identity would orphan every area.
            return Err(StoreError::Failed(format!("the row {} cannot be read: {why}", raw.key)));
        }
        let revision = damaged::set_aside(&mut store, loaded.revision, &bad)?;
        table.lost_wipes.extend(bad.iter().filter_map(|(raw, _)| damaged::wiped_slice(&raw.key)));
        table.damaged.extend(bad.iter().map(|(raw, why)| format!("{}: {why}", raw.key)));
        let next_event = table.events.keys().next_back().map_or(1, |number| number + 1);
        let mut core = Self {
            store,
            revision,
            shown_revision: revision,
            lenders_revision: 0,
            urls,
            next_event,
            now_ms: outside.now_ms,
            peers: Peers::new(outside.now_ms, table.members().map(|row| row.id)),
            orders: OrderBook::new(u64::from_le_bytes(low_bytes((outside.random)()))),
            table,
            paths: BTreeMap::new(),
            progress: BTreeMap::new(),
            task_waiters: Vec::new(),
            early: Vec::new(),
            table_waiters: Vec::new(),
            retreats: BTreeMap::new(),
            background_wake_ms: None,
            said: BTreeSet::new(),
            is_store_failing: false,
            knocks: BTreeMap::new(),
            relabel: false,
            loaded: BTreeSet::new(),
            wipes_since: BTreeMap::new(),
            audit: audit::Audit::default(),
            actions: Vec::new(),
        };
        core.loaded = core.table.volumes.values().flat_map(VolumeRow::legs).map(|(_, leg)| leg.slice).collect();
        let change = core.first_change(outside, &bad)?;
        core.commit(change)?;
        // Watchers of the former process see a new revision: of no server is anything known now.
        core.mark_shown();
        Ok(core)
    }

    /// What loading itself has to write: the pool row of a new table, and what to know of rows that cannot be read.
    fn first_change(&self, outside: &mut Outside<'_>, bad: &[(RawRow, String)]) -> Result<Change, StoreError> {
        let mut change = Change::new();
        change.event("", "the manager has started");
        if self.table.pool.is_none() {
            let pool = PoolId::from_u128((outside.random)());
            let manager = ManagerId::from_u128((outside.random)());
            change.put(Row::Pool(PoolRow { version: ROW_VERSION, pool, manager, rebuild: None }));
            change.event("", format!("new pool {pool}"));
        }
        for (raw, why) in bad {
            change.event("", format!("the row {} cannot be read and is set aside: {why}", raw.key));
        }
        for slice in bad.iter().filter_map(|(raw, _)| damaged::wiped_slice(&raw.key)) {
            plan::wipe::make_anew(&self.table, slice, &mut change);
        }
        for volume in self.table.volumes.values() {
            let is_orphan = volume.task.is_some_and(|id| !self.table.tasks.get(&id).is_some_and(|task| task.is_running()));
            if is_orphan && volume.frozen.is_none() {
                let name = &volume.name;
                let reason = format!(
                    "the row of the task that was changing it is missing; to go on with what its labels say: \
                     `sublet volume accept {name} AREA`"
                );
                change.event(volume.name.as_str(), format!("frozen: {reason}"));
                change.put(Row::Volume(Box::new(volume.frozen(reason, FrozenUntil::Decided))));
            }
        }
        Ok(change)
    }

    /// Applies one event. All that a returned action tells is durable by then.
    pub fn apply(&mut self, outside: &mut Outside<'_>, event: Event) -> Vec<Action> {
        // A clock that was set back must not make anything younger than it is.
        self.now_ms = self.now_ms.max(outside.now_ms);
        match event {
            Event::Request { conn, caller, request } => self.request(outside, conn, &caller, request),
            Event::Gone { conn } => self.gone(conn),
            Event::Tick => {}
        }
        self.pump(outside);
        self.take_up(outside);
        std::mem::take(&mut self.actions)
    }

    /// Tells where the manager can be reached now; servers and clients learn it from their next answers.
    pub fn set_urls(&mut self, urls: Vec<String>) {
        if urls != self.urls {
            self.urls = urls;
            self.lenders_revision += 1;
            self.peers.tell_all();
        }
    }

    /// The table, to be read.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The store's revision: it counts the commits.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    fn reply(&mut self, conn: u64, response: Response) {
        self.audit_answered(conn, &response);
        self.actions.push(Action::Reply { conn, response });
    }

    fn gone(&mut self, conn: u64) {
        self.audit_gone(conn);
        self.task_waiters.retain(|waiter| waiter.conn != conn);
        self.early.retain(|(waiting, _)| *waiting != conn);
        self.table_waiters.retain(|waiter| waiter.conn != conn);
        self.peers.gone(conn);
        let now_ms = self.now_ms;
        for watch in self.paths.values_mut() {
            watch.gone(conn, now_ms);
        }
    }
}

fn low_bytes(bits: u128) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = bits.to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
