//! The server at its manager: registration, the held poll, and results that leave at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sublet_api::order::OrderResult;
use sublet_api::server::{Poll, PollAnswer, Register};
use sublet_api::{ErrorKind, Refusal};

use super::orders;
use super::state::{Daemon, lock};
use crate::limits::{AREAS_PATIENCE, POLL_RETRY_PAUSE, PROGRESS_INTERVAL};
use crate::poller::{Batch, Next, Poller};

/// What is said of every poll that did not arrive.
const UNREACHABLE: &str = "unreachable";

/// What has to be brought to the manager, and the threads that wait for it.
#[derive(Default)]
pub(crate) struct Outgoing {
    poller: Mutex<Poller>,
    changed: Condvar,
    registering: Mutex<()>,
    reached: AtomicBool,
    /// What was said last of a poll that failed: the same is not logged twice a second.
    said: Mutex<String>,
}

impl Outgoing {
    /// An order has ended. Called on the data thread: short.
    pub(crate) fn result(&self, result: OrderResult) {
        lock(&self.poller).result(result);
        self.changed.notify_all();
    }

    /// The areas are not what the manager was told. The answer numbers the change, for [`Outgoing::wait_told`].
    pub(crate) fn areas_changed(&self) -> u64 {
        let change = lock(&self.poller).areas_changed();
        self.changed.notify_all();
        change
    }

    /// Waits until the manager has been told of a change of the areas; false if that took longer than `patience`.
    pub(crate) fn wait_told(&self, change: u64, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut poller = lock(&self.poller);
        while !poller.is_told(change) {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            poller = self.changed.wait_timeout(poller, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        true
    }

    /// Whether the manager was reached at the last try.
    pub(crate) fn manager_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    /// Why the manager, which was reached, has refused this server; empty if it has not.
    pub(crate) fn manager_refusal(&self) -> String {
        let said = lock(&self.said);
        if self.manager_reached() && *said != UNREACHABLE { said.clone() } else { String::new() }
    }

    /// Waits for something to bring, at most [`PROGRESS_INTERVAL`].
    fn next(&self) -> Batch {
        let mut poller = lock(&self.poller);
        if !poller.is_waiting() {
            poller = self.changed.wait_timeout(poller, PROGRESS_INTERVAL).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        poller.take()
    }

    fn delivered(&self, batch: &Batch) {
        lock(&self.poller).delivered(batch);
        self.changed.notify_all();
    }
}

/// Registers, unless that has been done; afterwards the manager has to be told of all areas again.
fn register(daemon: &Daemon) -> Result<(), Refusal> {
    let _one_at_a_time = lock(&daemon.outgoing.registering);
    if lock(&daemon.outgoing.poller).is_registered() {
        return Ok(());
    }
    let identity = daemon.identity();
    let request = Register {
        server: identity.server,
        pool: identity.pool,
        name: identity.name,
        zone: daemon.facts.zone.clone(),
        addresses: daemon.facts.advertise.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run: daemon.facts.run,
    };
    let registered = daemon.link.register(request)?;
    daemon.link.learn(&registered.urls);
    daemon.change_identity(|identity| {
        identity.pool = Some(registered.pool);
        identity.name = registered.name.clone();
        identity.managers = daemon.link.urls();
    });
    tracing::info!(name = %registered.name, pool = %registered.pool.short(), "registered at the manager");
    lock(&daemon.outgoing.poller).registered();
    daemon.outgoing.changed.notify_all();
    Ok(())
}

/// Takes what the manager answered to a poll.
fn take(daemon: &Arc<Daemon>, answer: PollAnswer) {
    if !lock(&daemon.outgoing.said).is_empty() {
        lock(&daemon.outgoing.said).clear();
        tracing::info!("the manager answers again");
    }
    daemon.outgoing.reached.store(true, Ordering::Relaxed);
    daemon.link.learn(&answer.urls);
    daemon.change_identity(|identity| {
        if let Some(name) = &answer.name {
            identity.name = name.clone();
        }
        let urls = daemon.link.urls();
        // The order of the list changes with every detour; only other members are worth a write.
        if urls.len() != identity.managers.len() || !urls.iter().all(|url| identity.managers.contains(url)) {
            identity.managers = urls;
        }
    });
    let next = lock(&daemon.outgoing.poller).answered(&answer);
    match next {
        Next::Leave => {
            tracing::info!("this server has left the pool");
            daemon.data.stop(Ok(()));
        }
        Next::Carry(orders) => orders::start(daemon, orders),
    }
}

/// One poll; registers first if that is due. Failures are logged when they are news.
fn exchange(daemon: &Arc<Daemon>, poll: Poll) -> Result<(), Refusal> {
    let result = register(daemon).and_then(|()| daemon.link.poll(daemon.server, poll));
    match result {
        Ok(answer) => {
            take(daemon, answer);
            // At once: the other thread may be held by the manager for long.
            register(daemon)
        }
        Err(refusal) => {
            daemon.outgoing.reached.store(refusal.kind != ErrorKind::Unreachable, Ordering::Relaxed);
            // While it is away, the reason may change from try to try (no route, refused, timed out): that is no news.
            let text = if refusal.kind == ErrorKind::Unreachable { UNREACHABLE.to_owned() } else { refusal.to_string() };
            if std::mem::replace(&mut *lock(&daemon.outgoing.said), text.clone()) != text {
                tracing::warn!(%refusal, "the manager could not be polled; served volumes go on");
            }
            // It may not know this server (any more): introduce it again.
            lock(&daemon.outgoing.poller).failed();
            Err(refusal)
        }
    }
}

/// The thread `poll`.
pub(crate) fn poll(daemon: &Arc<Daemon>) {
    let begun = Instant::now();
    while begun.elapsed() < AREAS_PATIENCE
        && daemon.entries().iter().any(|entry| entry.offline.as_deref() == Some("it is being opened"))
    {
        thread::sleep(Duration::from_millis(20));
    }
    let never_registered = daemon.pool().is_none();
    loop {
        let poll = Poll { run: daemon.facts.run, results: Vec::new(), areas: None };
        if let Err(refusal) = exchange(daemon, poll) {
            let hopeless = matches!(refusal.kind, ErrorKind::BadRequest | ErrorKind::Conflict | ErrorKind::AlreadyExists);
            if never_registered && daemon.pool().is_none() && hopeless {
                // Nothing is lent from here yet: the operator is told at once.
                daemon.data.stop(Err(refusal));
                return;
            }
            thread::sleep(POLL_RETRY_PAUSE);
        }
    }
}

/// The thread `results`: the poll of the other thread is held, so results and changes take a connection of their own.
pub(crate) fn report(daemon: &Arc<Daemon>) {
    loop {
        let batch = daemon.outgoing.next();
        if !lock(&daemon.outgoing.poller).is_registered() {
            lock(&daemon.outgoing.poller).give_back(batch);
            thread::sleep(Duration::from_millis(50));
            continue;
        }
        let mut results = batch.results.clone();
        results.extend(progress(daemon));
        if results.is_empty() && batch.areas.is_none() {
            continue;
        }
        let areas = match batch.areas.map(|_| daemon.reports()).transpose() {
            Ok(areas) => areas,
            // The data thread has stopped: the process ends.
            Err(_) => return,
        };
        let poll = Poll { run: daemon.facts.run, results, areas };
        match exchange(daemon, poll) {
            Ok(()) => daemon.outgoing.delivered(&batch),
            Err(_) => {
                lock(&daemon.outgoing.poller).give_back(batch);
                thread::sleep(POLL_RETRY_PAUSE);
            }
        }
    }
}

/// How far the wipes are, where that is news.
fn progress(daemon: &Daemon) -> Vec<OrderResult> {
    let wipes = lock(&daemon.outgoing.poller).wipes();
    if wipes.is_empty() {
        return Vec::new();
    }
    let asked = daemon.data.call(async move |agent| {
        wipes.iter().map(|(area, slice)| ((*area, *slice), agent.wipe_progress(*area, *slice))).collect::<BTreeMap<_, _>>()
    });
    // A data thread that has stopped knows nothing any more: the process ends.
    let found = asked.unwrap_or_default();
    lock(&daemon.outgoing.poller).progress(|area, slice| found.get(&(area, slice)).copied().flatten())
}
