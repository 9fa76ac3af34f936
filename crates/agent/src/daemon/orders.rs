//! Orders of the manager on their way to the data thread, and their results on the way back.

use std::fs;
use std::sync::Arc;
use std::thread;

use sublet_api::Refusal;
use sublet_api::order::{NumberedOrder, Order, OrderResult, Outcome};

use super::state::Daemon;

/// Starts orders. Those for one slice are carried out in this order.
pub(crate) fn start(daemon: &Arc<Daemon>, orders: Vec<NumberedOrder>) {
    for order in orders {
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
