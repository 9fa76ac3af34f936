//! Plans: pure functions from the table and a command to a change, or to a refusal. One file a command.
//!
//! Long work is a task: the command's plan records it, [`orders`] derives what its step asks of the lenders, and
//! [`advance`] plans the next step from how these orders stand. All of it depends on the rows alone, so that a manager that
//! was killed between any two commits goes on where it was.

pub mod access;
pub mod background;
pub mod borrow;
pub mod control;
pub mod create;
pub mod distrust;
pub mod forget;
pub mod give_back;
pub mod layout;
pub mod leave;
pub mod leg;
pub mod limits;
pub mod mount;
pub mod place;
pub mod rebuild;
pub mod reclaim;
pub mod reconcile;
pub mod register;
pub mod rename;
pub mod replace;
pub mod scrub;
pub mod seal;
pub mod set_way;
pub mod transfer;
pub mod unmount;
pub mod wipe;

use std::collections::BTreeSet;

use sublet_api::order::Order;
use sublet_api::request::TaskOutcome;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{AreaId, ServerId, SliceId, TaskId, VolumeId};

use crate::change::Change;
use crate::records::{Command, LeaseState, ROW_VERSION, Row, Step, TaskRow, TaskState, VolumeRow};
use crate::table::Table;

/// What a plan may know besides the table.
pub struct Context<'a> {
    /// The time in milliseconds since 1970 (UTC).
    pub now_ms: u64,
    /// Draws 128 random bits.
    pub random: &'a mut dyn FnMut() -> u128,
    /// The servers that answer.
    pub reachable: &'a BTreeSet<ServerId>,
}

/// How an order stands.
#[derive(Clone, PartialEq, Debug)]
pub enum Standing {
    /// Not answered yet.
    Waiting {
        /// Since when, in milliseconds since 1970.
        since_ms: u64,
        /// Bytes done and in all, of a wipe.
        progress: Option<(u64, u64)>,
    },
    /// Carried out and durable at the lender.
    Done,
    /// The lender refused or failed.
    Failed(Refusal),
    /// The lender does not answer; the text says since when or why.
    Unreachable(String),
}

impl Standing {
    /// Whether an answer may still come.
    pub fn is_waiting(&self) -> bool {
        matches!(self, Standing::Waiting { .. })
    }

    /// Why it was not done, for people; none if it was or still may be.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Standing::Failed(refusal) => Some(refusal.to_string()),
            Standing::Unreachable(reason) => Some(reason.clone()),
            Standing::Waiting { .. } | Standing::Done => None,
        }
    }
}

/// The orders of a step and how they stand.
pub type Standings = [(Order, Standing)];

/// How the order for a slice stands.
pub fn standing_of(standings: &Standings, slice: SliceId) -> Option<&Standing> {
    standings.iter().find(|(order, _)| order_slice(order) == Some(slice)).map(|(_, standing)| standing)
}

/// What a task does next.
pub enum Advance {
    /// It waits for lenders.
    Wait {
        /// For what, if that is unusual; for people.
        reason: String,
        /// Bytes done; 0 if it does not count bytes.
        done: u64,
    },
    /// This is to be committed.
    Commit(Change),
}

impl Advance {
    /// Nothing unusual.
    pub fn wait() -> Self {
        Advance::Wait { reason: String::new(), done: 0 }
    }
}

/// What a task's step asks of the lenders.
pub fn orders(table: &Table, task: &TaskRow) -> Vec<Order> {
    let volume = task.volume.and_then(|id| table.volumes.get(&id));
    match (&task.step, volume) {
        (Step::Preparing, Some(volume)) => layout::prepare_orders(volume),
        (Step::Labelling, Some(volume)) => layout::label_orders(volume),
        (Step::Opening, Some(volume)) => mount::open_orders(volume),
        (Step::Undoing { .. } | Step::Fencing { .. }, Some(volume)) => layout::fence_orders(volume),
        (Step::Entering, Some(volume)) => replace::enter_orders(volume),
        (Step::Releasing, _) => task.area.map(|area| Order::ReleaseArea { area }).into_iter().collect(),
        (Step::Wiping | Step::Dropping, _) => task.volume.map(|id| wipe::orders_of(table, id)).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// What a task does now that its orders stand so.
pub fn advance(table: &Table, task: &TaskRow, standings: &Standings, context: &mut Context<'_>) -> Advance {
    let volume = task.volume.and_then(|id| table.volumes.get(&id));
    match (&task.step, volume) {
        (Step::Releasing, _) => reclaim::advance(table, task, standings, context),
        (Step::Wiping, _) => give_back::advance(table, task, standings, context),
        (Step::Preparing, Some(volume)) if task.command == Command::SetWay => {
            set_way::prepared(table, task, volume, standings, context)
        }
        (Step::Preparing, Some(volume)) => create::advance(table, task, volume, standings, context),
        (Step::Dropping, Some(_)) => set_way::dropped(table, task, standings),
        (Step::Labelling, Some(volume)) => layout::labelled(table, task, volume, standings, context),
        (Step::Opening, Some(volume)) => mount::advance(table, task, volume, standings, context),
        (Step::Undoing { refusal }, Some(volume)) => mount::undone(task, volume, refusal, standings, context),
        (Step::Fencing { closed, holder }, Some(volume)) => {
            unmount::advance(table, task, volume, (*closed, holder), standings, context)
        }
        (Step::Leaving, Some(volume)) => replace::leave(table, task, volume, context),
        (Step::Entering, Some(volume)) => replace::entered(table, task, volume, standings, context),
        (Step::Working, Some(volume)) if matches!(task.command, Command::Replace { .. }) => {
            replace::worked(table, task, volume, context)
        }
        // Its coordinator tells of its end.
        (Step::Working, Some(_)) | (Step::Ended, _) => Advance::wait(),
        (Step::Leaving | Step::Entering | Step::Working, None) => {
            let refusal = conflict(format!("volume '{}' was returned meanwhile", task.subject), "");
            let mut change = Change::new();
            change.put(failed(task, refusal, context.now_ms));
            Advance::Commit(change)
        }
        (_, None) => {
            let refusal = Refusal::new(ErrorKind::Internal, format!("the row of volume '{}' is missing", task.subject));
            let mut change = Change::new();
            change.put(failed(task, refusal, context.now_ms));
            Advance::Commit(change)
        }
    }
}

/// A task that begins.
pub fn begin(id: TaskId, command: Command, subject: &str, step: Step, now_ms: u64) -> TaskRow {
    TaskRow {
        version: ROW_VERSION,
        id,
        command,
        subject: subject.to_owned(),
        volume: None,
        area: None,
        step,
        state: TaskState::Running,
        reason: String::new(),
        total: 0,
        started_ms: now_ms,
        ended_ms: 0,
        outcome: None,
        rate_max: 0,
        is_paused: false,
        done: 0,
    }
}

/// The task's row once it is done.
pub fn done(task: &TaskRow, outcome: TaskOutcome, now_ms: u64) -> Row {
    let ended = TaskRow { state: TaskState::Done, step: Step::Ended, outcome: Some(outcome), ended_ms: now_ms, ..task.clone() };
    Row::Task(Box::new(ended))
}

/// The task's row once it has failed.
pub fn failed(task: &TaskRow, refusal: Refusal, now_ms: u64) -> Row {
    let reason = refusal.to_string();
    let outcome = Some(TaskOutcome::Failed { refusal });
    let ended = TaskRow { state: TaskState::Failed, step: Step::Ended, outcome, reason, ended_ms: now_ms, ..task.clone() };
    Row::Task(Box::new(ended))
}

/// The task's row at its next step.
pub fn at_step(task: &TaskRow, step: Step) -> Row {
    Row::Task(Box::new(TaskRow { step, ..task.clone() }))
}

/// The area that an order is for: its lender gets it. None for orders that are for a server.
pub fn order_area(order: &Order) -> Option<AreaId> {
    match order {
        Order::PrepareSlice { slice } => Some(slice.area),
        Order::OpenLease { area, .. }
        | Order::Fence { area, .. }
        | Order::WipeSlice { area, .. }
        | Order::ReleaseArea { area }
        | Order::RenameArea { area, .. }
        | Order::SetQuarantine { area, .. }
        | Order::PutTombstones { area, .. }
        | Order::DropTombstones { area, .. } => Some(*area),
        Order::Coordinate { .. } | Order::StopCoordinating { .. } => None,
    }
}

/// The server that gets an order.
pub fn order_server(table: &Table, order: &Order) -> Option<ServerId> {
    match order {
        Order::Coordinate { mounting } => Some(mounting.borrower),
        Order::StopCoordinating { server, .. } => Some(*server),
        order => table.lender(order_area(order)?),
    }
}

/// The volume that an order to a coordinator is for.
pub fn order_volume(order: &Order) -> Option<VolumeId> {
    match order {
        Order::Coordinate { mounting } => Some(mounting.volume),
        Order::StopCoordinating { volume, .. } => Some(*volume),
        _ => None,
    }
}

/// The slice that an order is for.
pub fn order_slice(order: &Order) -> Option<SliceId> {
    match order {
        Order::PrepareSlice { slice } => Some(slice.slice),
        Order::OpenLease { slice, .. } | Order::Fence { slice, .. } | Order::WipeSlice { slice, .. } => Some(*slice),
        Order::ReleaseArea { .. }
        | Order::RenameArea { .. }
        | Order::Coordinate { .. }
        | Order::StopCoordinating { .. }
        | Order::SetQuarantine { .. }
        | Order::PutTombstones { .. }
        | Order::DropTombstones { .. } => None,
    }
}

/// A refusal because of the state of things.
pub fn conflict(message: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal::new(ErrorKind::Conflict, message).hint(hint)
}

/// A malformed request.
pub fn bad(message: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal::new(ErrorKind::BadRequest, message).hint(hint)
}

/// Refuses if a task is changing the volume, or if it is frozen.
///
/// # Errors
/// [`ErrorKind::Conflict`].
pub fn check_quiet(table: &Table, volume: &VolumeRow) -> Result<(), Refusal> {
    if let Some(reason) = &volume.frozen {
        return Err(conflict(format!("volume '{}' is frozen: {reason}", volume.name), frozen_hint(volume)));
    }
    let Some(task) = volume.task else { return Ok(()) };
    let word = table.tasks.get(&task).map_or("a task", |task| task.command.word());
    let holder = volume.borrower.map(|id| format!(" (lent to {})", table.server_name(id))).unwrap_or_default();
    Err(conflict(
        format!("volume '{}'{holder} is being changed: {word} is going on", volume.name),
        "wait for it, see `sublet task ls`",
    ))
}

/// What can be done about a frozen volume.
pub fn frozen_hint(volume: &VolumeRow) -> String {
    let name = &volume.name;
    if volume.unsettled {
        return format!("start the servers that are missing; to go on without them: `sublet volume accept {name} AREA`");
    }
    // Where the reason names what to do, nothing that would destroy the bytes is offered beside it.
    if volume.frozen.as_ref().is_some_and(|reason| reason.contains('`')) {
        return "see `sublet manager rebuild --show`".to_owned();
    }
    format!("see `sublet events`; to give it up with its bytes: `sublet return {name} --dissolve`")
}

/// Refuses anybody but the borrower, naming the holder.
///
/// # Errors
/// [`ErrorKind::Conflict`].
pub fn check_borrower(table: &Table, volume: &VolumeRow, server: ServerId) -> Result<(), Refusal> {
    match volume.borrower {
        Some(holder) if holder == server => Ok(()),
        Some(holder) => Err(conflict(
            format!("volume '{}' is lent to {}", volume.name, table.server_name(holder)),
            format!(
                "borrow another one, or have it handed over with `sublet transfer {} --to {}`",
                volume.name,
                table.server_name(server)
            ),
        )),
        None => Err(conflict(
            format!("volume '{}' is free", volume.name),
            format!("borrow it first: `sublet borrow {}`", volume.name),
        )),
    }
}

/// Refuses a server that is no member.
///
/// # Errors
/// [`ErrorKind::NotFound`], or [`ErrorKind::Conflict`] if it was one.
pub fn check_member(table: &Table, server: ServerId) -> Result<(), Refusal> {
    check_left(table, server)?;
    let missing = || Refusal::new(ErrorKind::NotFound, format!("server {} is not registered in this pool", server.short()));
    table.member(server).map(|_| ()).ok_or_else(|| missing().hint("is `sublet server` running with this manager's address?"))
}

/// Refuses a server that has left, or was forgotten.
///
/// # Errors
/// [`ErrorKind::Conflict`].
pub fn check_left(table: &Table, server: ServerId) -> Result<(), Refusal> {
    let Some(row) = table.servers.get(&server).filter(|row| row.left) else { return Ok(()) };
    let text = format!("server '{}' has left this pool for good", row.name);
    Err(conflict(text, "start it with an empty data folder to join anew"))
}

/// Refuses a mounted volume.
///
/// # Errors
/// [`ErrorKind::Conflict`].
pub fn check_unmounted(table: &Table, volume: &VolumeRow) -> Result<(), Refusal> {
    let Some(lease) = &volume.lease else { return Ok(()) };
    let at = volume.borrower.map_or_else(|| "somebody".to_owned(), |id| table.server_name(id));
    let how = if lease.state == LeaseState::Closing { "still being unmounted" } else { "mounted" };
    Err(conflict(
        format!("volume '{}' is {how} at {at}", volume.name),
        format!("unmount it first: `sublet unmount {}`", volume.name),
    ))
}

/// Names in a list: `a`, `a and b`, `a, b and c`.
pub fn listed(names: impl IntoIterator<Item = String>) -> String {
    let names: Vec<String> = names.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    match names.as_slice() {
        [] => "nobody".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
