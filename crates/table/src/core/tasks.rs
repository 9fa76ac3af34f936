//! Requests that are tasks, and how tasks go on.

use sublet_api::request::{LegChange, Request, Response, TaskAnswer, TaskOutcome};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::TaskId;

use super::{Core, Outside, TASK_HOLD_MS, TaskWaiter};
use crate::change::Change;
use crate::plan::{self, Advance, Context, Standing, bad};
use crate::records::{Step, TaskRow};
use crate::store::{Store, StoreError};

impl<S: Store> Core<S> {
    /// Begins a task, or attaches to the one that was begun with the same id. A refused request leaves none.
    pub(super) fn task_request(
        &mut self,
        outside: &mut Outside<'_>,
        conn: u64,
        request: &Request,
    ) -> Result<Option<Response>, Refusal> {
        let Some((id, word)) = task_of(request) else { return Ok(None) };
        match self.table.tasks.get(&id) {
            Some(task) if task.command.word() != word => {
                return Err(bad(
                    format!("task {id} is a {}, not a {word}", task.command.word()),
                    "every new request needs a new task id",
                ));
            }
            Some(_) => {}
            None if self.is_early(request) => {
                self.early.push((conn, request.clone()));
                return Ok(None);
            }
            None => {
                // Nobody waits for background work: whoever wants to asks again.
                let is_background = matches!(request, Request::Scrub { .. } | Request::Replace { .. });
                let reachable = self.peers.reachable();
                let mut context = Context { now_ms: self.now_ms, random: outside.random, reachable: &reachable };
                let change = self.plan(request, &mut context)?;
                self.commit_request(change)?;
                if is_background {
                    self.task_waiters.push(TaskWaiter { conn, task: id, until_ms: self.now_ms });
                    return Ok(None);
                }
            }
        }
        self.task_waiters.push(TaskWaiter { conn, task: id, until_ms: self.now_ms + TASK_HOLD_MS });
        Ok(None)
    }

    fn plan(&self, request: &Request, context: &mut Context<'_>) -> Result<Change, Refusal> {
        let table = &self.table;
        match request {
            Request::CreateVolume(command) => plan::create::plan(table, command, context),
            Request::SetWay { volume, set_way } => plan::set_way::plan(table, volume, set_way, context),
            Request::Borrow(command) => plan::borrow::plan(table, command, context),
            Request::Mount { volume, mount } => plan::mount::plan(table, volume, mount, context),
            Request::Unmount { volume, unmount } => plan::unmount::plan(table, volume, unmount, context).map_err(|refusal| {
                // A volume that the table only does not know yet is no ended mount (L5, R1).
                let unknown = volume.parse().ok().filter(|_| refusal.kind == ErrorKind::NotFound);
                unknown.map_or(refusal, |id| self.no_volume(id))
            }),
            Request::Return { volume, give_back } => plan::give_back::plan(table, volume, give_back, context),
            Request::Transfer { volume, transfer } => plan::transfer::plan(table, volume, transfer, context),
            Request::Reclaim { area, reclaim } => plan::reclaim::plan(table, area, reclaim, context),
            Request::Replace { volume, replace } => plan::replace::plan(table, volume, replace, context),
            Request::Scrub { volume, scrub } => plan::scrub::plan(table, volume, scrub, context),
            _ => Err(bad("this request is not a task", "")),
        }
    }

    /// What wipes a volume's bytes, and what lets its client do without a copy, waits until the lenders have told of their labels
    /// once: the table may have been restored from an older copy, and they may know that somebody else has it by now, or that a copy
    /// is in sync (L5). Nobody waits for a lender that is lost: what it knows better is seen when it returns.
    pub(super) fn is_early(&self, request: &Request) -> bool {
        let volume = match request {
            Request::SetWay { volume, .. } | Request::Return { volume, .. } | Request::Replace { volume, .. } => {
                self.table.volume(volume).ok()
            }
            Request::ChangeLeg { volume, change } if change.change == LegChange::Stale => self.table.volumes.get(volume),
            _ => None,
        };
        let Some(volume) = volume else { return false };
        let mut lenders = volume.legs().filter_map(|(_, leg)| self.table.lender(leg.area));
        lenders.any(|id| self.peers.may_tell(id))
    }

    /// Takes up the requests that came too early, and are not that any more.
    pub(super) fn take_up(&mut self, outside: &mut Outside<'_>) {
        let (early, due) = std::mem::take(&mut self.early).into_iter().partition(|(_, request)| self.is_early(request));
        self.early = early;
        for (conn, request) in due {
            self.again(outside, conn, request);
            self.pump(outside);
        }
    }

    /// How the orders of a task's step stand.
    fn standings(&self, task: &TaskRow) -> Vec<(sublet_api::order::Order, Standing)> {
        let orders = plan::orders(&self.table, task);
        let standing = |order| {
            let standing = self.standing(&order);
            (order, standing)
        };
        orders.into_iter().map(standing).collect()
    }

    /// How one order stands, whether or not it has been given.
    pub(super) fn standing(&self, order: &sublet_api::order::Order) -> Standing {
        let entry = self.orders.find(order);
        if let Some(standing @ (Standing::Done | Standing::Failed(_))) = entry.map(|entry| entry.standing(self.now_ms)) {
            return standing;
        }
        let Some(server) = plan::order_server(&self.table, order) else {
            return Standing::Unreachable("its area is not in the table".to_owned());
        };
        if !self.peers.is_reachable(server) {
            return Standing::Unreachable(self.peers.silence(server, self.now_ms));
        }
        let area = plan::order_area(order).and_then(|area| self.table.areas.get(&area));
        if let Some((area, reason)) = area.and_then(|area| Some((area, area.offline.as_ref()?))) {
            return Standing::Unreachable(format!("area {} is offline: {reason}", area.name));
        }
        if let sublet_api::order::Order::WipeSlice { slice, area, epoch, .. } = order {
            let label = self.label_of(*area, *slice);
            if label.is_some_and(|label| plan::wipe::is_refuted(*epoch, label)) {
                return Standing::Unreachable("its label is ahead of the table".to_owned());
            }
            if label.is_none() && self.report_of(*area).is_some_and(|report| !plan::wipe::is_complete(&self.table, report)) {
                // That it is not there proves nothing (L2), and nothing is ordered.
                return Standing::Unreachable("its area is quarantined: `sublet area accept`".to_owned());
            }
        }
        let is_wipe = matches!(order, sublet_api::order::Order::WipeSlice { .. });
        if entry.is_none() && is_wipe && self.orders.has_stuck_wipe(server, self.now_ms) {
            return Standing::Unreachable("its wipes make no progress".to_owned());
        }
        entry.map_or(Standing::Waiting { since_ms: self.now_ms, progress: None }, |entry| entry.standing(self.now_ms))
    }

    /// Takes every running task as far as it goes; the answer is whether anything was committed.
    pub(super) fn advance_tasks(&mut self, outside: &mut Outside<'_>) -> Result<bool, StoreError> {
        let running: Vec<TaskId> = self.table.tasks.values().filter(|task| task.is_running()).map(|task| task.id).collect();
        let reachable = self.peers.reachable();
        let mut moved = false;
        for id in &running {
            let Some(task) = self.table.tasks.get(id) else { continue };
            let standings = self.standings(task);
            let mut context = Context { now_ms: self.now_ms, random: &mut *outside.random, reachable: &reachable };
            match plan::advance(&self.table, task, &standings, &mut context) {
                Advance::Wait { reason, done } => {
                    self.progress.insert(*id, (reason, done));
                }
                Advance::Commit(change) => {
                    self.commit(change)?;
                    moved = true;
                }
            }
        }
        self.progress.retain(|id, _| running.contains(id));
        Ok(moved)
    }

    /// Answers those who wait for tasks.
    pub(super) fn answer_tasks(&mut self) {
        for waiter in std::mem::take(&mut self.task_waiters) {
            let Some(task) = self.table.tasks.get(&waiter.task) else {
                let refusal = Refusal::new(ErrorKind::NotFound, "the task is no longer kept");
                self.reply(waiter.conn, Response::Refused(refusal));
                continue;
            };
            if task.is_running() && waiter.until_ms > self.now_ms {
                self.task_waiters.push(waiter);
                continue;
            }
            let outcome = if task.is_running() { None } else { task.outcome.clone() };
            let answer = TaskAnswer { task: self.task_view(task), outcome: outcome.unwrap_or(TaskOutcome::Running) };
            self.reply(waiter.conn, Response::Task(Box::new(answer)));
        }
    }

    /// Whether a task's step gives orders of its own; wipes and new legs are given by reconciliation, task or not.
    pub(super) fn gives_orders(task: &TaskRow) -> bool {
        !matches!(task.step, Step::Wiping | Step::Dropping | Step::Entering | Step::Ended)
    }
}

/// The task id and the word of a request that is a task.
pub fn task_of(request: &Request) -> Option<(TaskId, &'static str)> {
    Some(match request {
        Request::CreateVolume(command) => (command.task, "create"),
        Request::SetWay { set_way, .. } => (set_way.task, "set-way"),
        Request::Borrow(command) => (command.task, "borrow"),
        Request::Mount { mount, .. } => (mount.task, "mount"),
        Request::Unmount { unmount, .. } => (unmount.task, "unmount"),
        Request::Return { give_back, .. } => (give_back.task, "return"),
        Request::Transfer { transfer, .. } => (transfer.task, "transfer"),
        Request::Reclaim { reclaim, .. } => (reclaim.task, "reclaim"),
        Request::Replace { replace, .. } => (replace.task, "replace"),
        Request::Scrub { scrub, .. } => (scrub.task, "scrub"),
        _ => return None,
    })
}
