//! What a server tells its manager, and what it makes of the answers: decisions only. Threads, sockets and clocks are around it
//! (the daemon's in reality, the simulator's otherwise).

use std::collections::BTreeMap;

use sublet_api::order::{NumberedOrder, Order, OrderResult, Outcome};
use sublet_api::server::PollAnswer;
use sublet_types::{AreaId, SliceId};

/// What is known of an order that has not been answered yet.
#[derive(Debug)]
struct Known {
    /// The slice whose wipe is going on.
    wipe: Option<(AreaId, SliceId)>,
    /// The progress that was told last, in bytes.
    told: u64,
}

/// What one poll brings.
#[derive(Debug)]
pub struct Batch {
    /// Results of orders.
    pub results: Vec<OrderResult>,
    /// The newest change of the areas, if the manager does not know it: the areas go along then.
    pub areas: Option<u64>,
}

/// What an answer asks for.
#[derive(Debug)]
pub enum Next {
    /// Carry out these orders; those for one slice in this order. Orders that run already are left out.
    Carry(Vec<NumberedOrder>),
    /// This server has left the pool: it ends.
    Leave,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Poller {
    registered: bool,
    results: Vec<OrderResult>,
    /// Counts up with every change of the areas.
    areas_wanted: u64,
    /// The newest change that the manager has been told of.
    areas_told: u64,
    /// Orders that came and whose results have not reached the manager: an order that comes twice is carried out once.
    running: BTreeMap<(u64, u64), Known>,
}

impl Poller {
    /// True while the manager knows this server, as far as is known.
    pub fn is_registered(&self) -> bool {
        self.registered
    }

    /// The manager took the registration: it has to be told of all areas again.
    pub fn registered(&mut self) {
        self.areas_changed();
        self.registered = true;
    }

    /// An order has ended. If it failed, a label may know better than the table: the areas are told along with it (L5).
    pub fn result(&mut self, result: OrderResult) {
        if matches!(result.outcome, Outcome::Failed { .. }) {
            self.areas_changed();
        }
        self.results.push(result);
    }

    /// The areas are not what the manager was told. The answer numbers the change, for [`Poller::is_told`].
    pub fn areas_changed(&mut self) -> u64 {
        self.areas_wanted += 1;
        self.areas_wanted
    }

    /// Whether the manager has been told of a change of the areas.
    pub fn is_told(&self, change: u64) -> bool {
        self.areas_told >= change
    }

    /// Whether there is something to bring.
    pub fn is_waiting(&self) -> bool {
        !self.results.is_empty() || self.areas_told < self.areas_wanted
    }

    /// Takes what is to be brought; it comes back with [`Poller::delivered`] or [`Poller::give_back`].
    pub fn take(&mut self) -> Batch {
        let areas = (self.areas_told < self.areas_wanted).then_some(self.areas_wanted);
        Batch { results: std::mem::take(&mut self.results), areas }
    }

    /// The batch did not arrive, or that is not known.
    pub fn give_back(&mut self, batch: Batch) {
        let mut results = batch.results;
        results.append(&mut self.results);
        self.results = results;
    }

    /// The manager has the batch: if it asks for one of these orders again, it means it.
    pub fn delivered(&mut self, batch: &Batch) {
        for result in batch.results.iter().filter(|result| !matches!(result.outcome, Outcome::Progress { .. })) {
            self.running.remove(&(result.run, result.number));
        }
        if let Some(change) = batch.areas {
            self.areas_told = self.areas_told.max(change);
        }
    }

    /// Takes the manager's answer.
    pub fn answered(&mut self, answer: &PollAnswer) -> Next {
        if !answer.member {
            return Next::Leave;
        }
        if answer.register {
            self.registered = false;
        }
        Next::Carry(answer.orders.iter().filter(|order| self.begin(order)).cloned().collect())
    }

    /// The poll failed: the manager may not know this server (any more), so it is introduced again.
    pub fn failed(&mut self) {
        self.registered = false;
    }

    /// True if the order is new.
    fn begin(&mut self, order: &NumberedOrder) -> bool {
        let wipe = match &order.order {
            Order::WipeSlice { slice, area, .. } => Some((*area, *slice)),
            _ => None,
        };
        let key = (order.run, order.number);
        !self.running.contains_key(&key) && self.running.insert(key, Known { wipe, told: 0 }).is_none()
    }

    /// The slices that are being wiped.
    pub fn wipes(&self) -> Vec<(AreaId, SliceId)> {
        self.running.values().filter_map(|known| known.wipe).collect()
    }

    /// How far the wipes are, where that is news. `progress` tells bytes done and in all.
    pub fn progress(&mut self, progress: impl Fn(AreaId, SliceId) -> Option<(u64, u64)>) -> Vec<OrderResult> {
        let mut results = Vec::new();
        for ((run, number), known) in &mut self.running {
            let Some((area, slice)) = known.wipe else { continue };
            let Some((done, total)) = progress(area, slice) else { continue };
            if done != known.told {
                known.told = done;
                results.push(OrderResult { number: *number, run: *run, outcome: Outcome::Progress { done, total } });
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(numbers: &[u64]) -> PollAnswer {
        let order = |number: &u64| {
            let order = Order::ReleaseArea { area: AreaId::from_u128(1) };
            NumberedOrder { number: *number, run: 7, order }
        };
        let orders = numbers.iter().map(order).collect();
        PollAnswer { orders, register: false, name: None, urls: Vec::new(), member: true }
    }

    fn carried(poller: &mut Poller, numbers: &[u64]) -> Vec<u64> {
        match poller.answered(&answer(numbers)) {
            Next::Carry(orders) => orders.iter().map(|order| order.number).collect(),
            Next::Leave => panic!("it is a member"),
        }
    }

    #[test]
    fn an_order_that_comes_twice_is_carried_out_once_until_its_result_was_delivered() {
        let mut poller = Poller::default();
        assert_eq!(carried(&mut poller, &[1, 2]), [1, 2]);
        assert_eq!(carried(&mut poller, &[2, 3]), [3]);
        poller.result(OrderResult { number: 2, run: 7, outcome: Outcome::Done });
        let batch = poller.take();
        assert_eq!(carried(&mut poller, &[2]), [] as [u64; 0]);
        poller.give_back(batch);
        let batch = poller.take();
        assert_eq!(batch.results.len(), 1);
        poller.delivered(&batch);
        assert_eq!(carried(&mut poller, &[2]), [2]);
    }

    #[test]
    fn areas_are_told_until_the_newest_change_has_arrived() {
        let mut poller = Poller::default();
        poller.registered();
        let batch = poller.take();
        let change = poller.areas_changed();
        poller.delivered(&batch);
        assert!(poller.is_waiting() && !poller.is_told(change));
        let batch = poller.take();
        poller.delivered(&batch);
        assert!(!poller.is_waiting() && poller.is_told(change));
    }

    #[test]
    fn l5_with_an_order_that_failed_the_areas_are_told() {
        let mut poller = Poller::default();
        poller.result(OrderResult { number: 1, run: 7, outcome: Outcome::Done });
        assert!(poller.take().areas.is_none());
        let refusal = sublet_api::Refusal::new(sublet_api::ErrorKind::Conflict, "the table is behind");
        poller.result(OrderResult { number: 2, run: 7, outcome: Outcome::Failed { refusal } });
        let batch = poller.take();
        assert!(batch.areas.is_some() && batch.results.len() == 1);
    }

    #[test]
    fn who_has_left_carries_nothing_out() {
        let answer = PollAnswer { member: false, ..answer(&[1]) };
        assert!(matches!(Poller::default().answered(&answer), Next::Leave));
    }
}
