//! Orders of the manager on their way to the data thread, and their results on the way back.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;

use sublet_api::Refusal;
use sublet_api::order::{NumberedOrder, Order, OrderResult, Outcome};
use sublet_types::{AreaId, SliceId};

use super::state::{Daemon, lock};

/// What is known of an order that has not been answered yet.
#[derive(Default)]
struct Known {
    /// The slice whose wipe is going on.
    wipe: Option<(AreaId, SliceId)>,
    /// The progress that was told last, in bytes.
    told: u64,
}

/// Orders that came and whose results have not reached the manager: an order that comes twice is carried out once.
#[derive(Default)]
pub(crate) struct Running(Mutex<HashMap<(u64, u64), Known>>);

impl Running {
    /// True if the order is new.
    fn begin(&self, order: &NumberedOrder) -> bool {
        let wipe = match &order.order {
            Order::WipeSlice { slice, area, .. } => Some((*area, *slice)),
            _ => None,
        };
        let mut running = lock(&self.0);
        let key = (order.run, order.number);
        !running.contains_key(&key) && running.insert(key, Known { wipe, told: 0 }).is_none()
    }

    /// The manager has these results: if it asks again, it means it.
    pub(crate) fn delivered(&self, results: &[OrderResult]) {
        let mut running = lock(&self.0);
        for result in results.iter().filter(|result| !matches!(result.outcome, Outcome::Progress { .. })) {
            running.remove(&(result.run, result.number));
        }
    }

    /// How far the wipes are, where that is news.
    pub(crate) fn progress(&self, daemon: &Daemon) -> Vec<OrderResult> {
        let wipes: Vec<_> = lock(&self.0).iter().filter_map(|(key, known)| Some((*key, known.wipe?))).collect();
        if wipes.is_empty() {
            return Vec::new();
        }
        let asked = wipes.clone();
        let found = daemon.data.call(async move |agent| {
            asked.iter().map(|(_, (area, slice))| agent.wipe_progress(*area, *slice)).collect::<Vec<_>>()
        });
        let mut running = lock(&self.0);
        let mut results = Vec::new();
        for (((run, number), _), progress) in wipes.into_iter().zip(found.unwrap_or_default()) {
            let (Some(known), Some((done, total))) = (running.get_mut(&(run, number)), progress) else { continue };
            if done != known.told {
                known.told = done;
                results.push(OrderResult { number, run, outcome: Outcome::Progress { done, total } });
            }
        }
        results
    }
}

/// Starts orders. Those for one slice are carried out in this order.
pub(crate) fn start(daemon: &Arc<Daemon>, orders: Vec<NumberedOrder>) {
    for order in orders {
        if !daemon.running.begin(&order) {
            continue;
        }
        tracing::debug!(number = order.number, order = ?order.order, "order");
        let (number, run) = (order.number, order.run);
        let own = Arc::clone(daemon);
        let answer = move |outcome| own.outgoing.result(OrderResult { number, run, outcome });
        match order.order {
            // These change files of the state directory, which the data thread must not wait for.
            order @ (Order::ReleaseArea { .. } | Order::RenameArea { .. }) => {
                let own = Arc::clone(daemon);
                thread::spawn(move || answer(outcome_of(change_area(&own, order))));
            }
            order => {
                let started = daemon.data.start(async move |agent| agent.execute(&order).await, answer);
                if let Err(refusal) = started {
                    tracing::debug!(%refusal, "an order was not started");
                }
            }
        }
    }
}

fn outcome_of(result: Result<Outcome, Refusal>) -> Outcome {
    result.unwrap_or_else(|refusal| Outcome::Failed { refusal })
}

/// Carries out an order that also changes the list of areas.
fn change_area(daemon: &Daemon, order: Order) -> Result<Outcome, Refusal> {
    let own = order.clone();
    let outcome = daemon.data.call(async move |agent| agent.execute(&own).await)?;
    if outcome != Outcome::Done {
        return Ok(outcome);
    }
    match order {
        Order::RenameArea { area, name } => daemon.change_entries(|entries| {
            if let Some(entry) = entries.iter_mut().find(|entry| entry.area == area) {
                entry.name = name;
            }
        })?,
        Order::ReleaseArea { area } => {
            let entry = daemon.entries().into_iter().find(|entry| entry.area == area);
            // The entry goes first: a file without an entry is garbage, an entry without a file is an area that looks broken.
            daemon.change_entries(|entries| entries.retain(|entry| entry.area != area))?;
            for piece in entry.iter().filter(|entry| entry.created).flat_map(|entry| &entry.pieces) {
                if let Err(error) = fs::remove_file(&piece.path) {
                    tracing::warn!(%error, path = %piece.path.display(), "the file of a released area was not removed; remove it by hand");
                }
            }
        }
        _ => {}
    }
    daemon.outgoing.areas_changed();
    Ok(Outcome::Done)
}
