//! `mount`: a new epoch is committed, then every lender opens the lease (seed: S2, S4; F1, F5).

use sublet_api::mount::MountingInformation;
use sublet_api::order::{Lease, Order};
use sublet_api::request::{Mount, TaskOutcome};
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{LeaseSecret, ServerId, SliceId};

use super::{
    Advance, Context, Standing, Standings, at_step, begin, check_borrower, check_member, check_quiet, conflict, done, failed,
    layout, listed, standing_of,
};
use crate::change::Change;
use crate::records::{Command, LeaseRow, LeaseState, PathRow, Row, SegmentRow, Step, TaskRow, VolumeRow};
use crate::table::Table;
use crate::views;

/// How long a mount or unmount waits for the lender of a stale leg once all in-sync legs have answered, in milliseconds:
/// long enough for one that is well, too short to be noticed. Reconciliation finishes what was cut short.
pub const STALE_WAIT_MS: u64 = 1000;

/// Plans a mount. The present borrower may mount again after a crash: the new epoch fences its old one (F5).
///
/// # Errors
/// If the caller is not the borrower, or the volume is being changed.
pub fn plan(table: &Table, volume: &str, command: &Mount, context: &mut Context<'_>) -> Result<Change, Refusal> {
    check_member(table, command.server)?;
    let volume = table.volume(volume)?;
    check_borrower(table, volume, command.server)?;
    check_quiet(table, volume)?;
    if volume.lease.as_ref().is_some_and(|lease| lease.state == LeaseState::Closing) {
        return Err(conflict(format!("volume '{}' is still being unmounted", volume.name), "wait for it, see `sublet task ls`"));
    }
    let epoch = volume.next_epoch((context.random)());
    let secret = LeaseSecret::from_u128((context.random)());
    let was_mounted = volume.status() == 1;
    let lease = LeaseRow { epoch, secret, read_only: command.read_only, state: LeaseState::Opening, was_mounted };
    let mut volume = VolumeRow { epoch, lease: Some(lease), task: Some(command.task), ..volume.clone() };
    for segment in &mut volume.segments {
        // They belong to the epoch that ends now.
        segment.pending = None;
        segment.last = None;
    }
    // Background work ends here: its epoch is fenced by the new one, and the client goes on with it (F5).
    volume.work.background = None;
    let mut task =
        begin(command.task, Command::Mount { server: command.server }, volume.name.as_str(), Step::Opening, context.now_ms);
    task.volume = Some(volume.id);
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(volume)));
    change.put(Row::Task(Box::new(task)));
    Ok(change)
}

/// `OpenLease` for every leg that a label knows, the stale ones too: the client will copy to them.
pub fn open_orders(volume: &VolumeRow) -> Vec<Order> {
    let (Some(lease), Some(borrower)) = (&volume.lease, volume.borrower) else { return Vec::new() };
    let open = |facts: sublet_api::order::SliceFacts| open_order(lease, borrower, facts);
    let fresh: Vec<SliceId> = volume.legs().filter(|(_, leg)| leg.fresh).map(|(_, leg)| leg.slice).collect();
    let is_known = |facts: &sublet_api::order::SliceFacts| !fresh.contains(&facts.slice);
    layout::all_facts(volume).into_iter().filter(is_known).map(open).collect()
}

/// `OpenLease` for one slice.
pub fn open_order(lease: &LeaseRow, borrower: ServerId, facts: sublet_api::order::SliceFacts) -> Order {
    let lease = Lease { epoch: lease.epoch, borrower, secret: lease.secret, read_only: lease.read_only };
    Order::OpenLease { slice: facts.slice, area: facts.area, lease, facts }
}

/// Whether answers are still to be waited for: those of in-sync legs always, those of stale legs for a moment only.
pub fn must_wait(volume: &VolumeRow, standings: &Standings, now_ms: u64) -> bool {
    volume.legs().any(|(_, leg)| match standing_of(standings, leg.slice) {
        Some(Standing::Waiting { since_ms, .. }) => leg.in_sync || now_ms < since_ms + STALE_WAIT_MS,
        _ => false,
    })
}

/// Enters the epoch at the legs whose lenders have confirmed it.
pub fn confirm(volume: &mut VolumeRow, standings: &Standings) {
    let epoch = volume.epoch.number;
    for leg in volume.segments.iter_mut().flat_map(|segment| &mut segment.legs) {
        if standing_of(standings, leg.slice) == Some(&Standing::Done) {
            leg.confirmed = leg.confirmed.max(epoch);
        }
    }
}

/// Takes the legs that did not answer out of the in-sync set of a segment of which another in-sync leg did answer (S1).
/// The answer is the legs that left, by place in the segment.
pub fn leave_behind(segment: &mut SegmentRow, standings: &Standings, random: &mut dyn FnMut() -> u128) -> Vec<usize> {
    let stands = |slice| standing_of(standings, slice);
    let survives = segment.legs.iter().any(|leg| leg.in_sync && stands(leg.slice) == Some(&Standing::Done));
    let gone =
        |index: &usize| segment.legs.get(*index).is_some_and(|leg| leg.in_sync && stands(leg.slice) != Some(&Standing::Done));
    let gone: Vec<usize> = (0..segment.legs.len()).filter(gone).collect();
    if !survives || gone.is_empty() {
        return Vec::new();
    }
    segment.generation = segment.issue(random());
    segment.pending = None;
    // Not something that a client could withdraw: it was decided without it.
    segment.last = None;
    for index in &gone {
        if let Some(leg) = segment.legs.get_mut(*index) {
            leg.in_sync = false;
            leg.stale_since = Some(segment.generation);
        }
    }
    gone
}

/// The lenders have answered, or not.
pub fn advance(table: &Table, task: &TaskRow, volume: &VolumeRow, standings: &Standings, context: &mut Context<'_>) -> Advance {
    if let Some(reason) = &volume.frozen {
        // L5: a label that came meanwhile is ahead of the table. Which copies are in sync is not known, so none is left behind.
        let text = format!("volume '{}' cannot be mounted: it is frozen: {reason}", volume.name);
        let refusal = conflict(text, "see `sublet manager rebuild --show`");
        return Advance::Commit(undo(task, volume.clone(), refusal, context));
    }
    if must_wait(volume, standings, context.now_ms) {
        return Advance::wait();
    }
    let mut next = volume.clone();
    confirm(&mut next, standings);
    if let Some(refusal) = disagreement(table, volume, standings) {
        return Advance::Commit(undo(task, next, refusal, context));
    }
    let dark: Vec<&SegmentRow> = volume.segments.iter().filter(|segment| !opened(segment, standings)).collect();
    if !dark.is_empty() {
        return Advance::Commit(give_up(table, task, next, &dark, standings, context));
    }
    let mut change = Change::new();
    let mut left = false;
    for segment in &mut next.segments {
        for index in leave_behind(segment, standings, context.random) {
            left = true;
            if let Some(leg) = segment.legs.get(index) {
                let why = standing_of(standings, leg.slice).and_then(Standing::trouble).unwrap_or_default();
                let lender = table.lender_name(leg.area);
                change.event(
                    volume.name.as_str(),
                    format!("the copy at {lender} is stale: it could not be opened at mount: {why}"),
                );
            }
        }
    }
    if left {
        // The survivors' labels get the new generation before the client comes (S1, F6): their orders differ now and go out anew.
        change.put(Row::Volume(Box::new(next)));
        return Advance::Commit(change);
    }
    next.task = None;
    let (borrower, read_only) = (volume.borrower, volume.lease.as_ref().is_some_and(|lease| lease.read_only));
    // Until its client says that it has closed cleanly, its in-sync legs may differ (H3).
    next.work.unclean |= !read_only && next.segments.iter().any(|segment| segment.legs.len() > 1);
    if let Some(lease) = &mut next.lease {
        lease.state = LeaseState::Active;
    }
    next.path =
        PathRow { state: PathState::Idle, since_ms: context.now_ms, reason: "the client has not reported yet".to_owned() };
    let mode = if read_only { " read-only" } else { "" };
    let holder = borrower.map_or_else(|| "nobody".to_owned(), |id| table.server_name(id));
    change.event(volume.name.as_str(), format!("mounted{mode} by {holder} (epoch {})", volume.epoch));
    let outcome = match views::mounting(table, &next) {
        Some(mounting) => TaskOutcome::Mounted { mounting: Box::<MountingInformation>::new(mounting) },
        None => TaskOutcome::Done,
    };
    change.put(Row::Volume(Box::new(next)));
    change.put(done(task, outcome, context.now_ms));
    Advance::Commit(change)
}

/// L5: the label of a leg that is in sync contradicts the table. It may know better, so it is not left behind.
fn disagreement(table: &Table, volume: &VolumeRow, standings: &Standings) -> Option<Refusal> {
    let contradicts = |slice| match standing_of(standings, slice) {
        Some(Standing::Failed(refusal)) if matches!(refusal.kind, ErrorKind::Conflict | ErrorKind::StaleEpoch) => Some(refusal),
        _ => None,
    };
    let (leg, why) = volume.legs().filter(|(_, leg)| leg.in_sync).find_map(|(_, leg)| Some((leg, contradicts(leg.slice)?)))?;
    let lender = table.lender_name(leg.area);
    let text =
        format!("volume '{}' cannot be mounted: the label of its copy at {lender} contradicts the table: {why}", volume.name);
    Some(conflict(text, "see `sublet manager rebuild --show`; if the table was restored: `sublet manager rebuild --reconcile`"))
}

fn opened(segment: &SegmentRow, standings: &Standings) -> bool {
    segment.legs.iter().any(|leg| leg.in_sync && standing_of(standings, leg.slice) == Some(&Standing::Done))
}

/// No copy of some segment could be opened.
fn give_up(
    table: &Table,
    task: &TaskRow,
    volume: VolumeRow,
    dark: &[&SegmentRow],
    standings: &Standings,
    context: &mut Context<'_>,
) -> Change {
    let needed = || dark.iter().flat_map(|segment| &segment.legs).filter(|leg| leg.in_sync);
    let lenders = listed(needed().map(|leg| table.lender_name(leg.area)));
    let why = listed(needed().filter_map(|leg| standing_of(standings, leg.slice)).filter_map(Standing::trouble));
    let text = format!("volume '{}' cannot be mounted: {lenders} did not open the lease: {why}", volume.name);
    let hint = "start `sublet server` there and mount again; `sublet server ls` shows who is lost";
    let refusal = Refusal::new(ErrorKind::LenderUnreachable, text).hint(hint);
    undo(task, volume, refusal, context)
}

/// A mount that does not succeed: what was opened is fenced with one more epoch.
fn undo(task: &TaskRow, mut volume: VolumeRow, refusal: Refusal, context: &mut Context<'_>) -> Change {
    volume.epoch = volume.next_epoch((context.random)());
    volume.lease = None;
    volume.path = PathRow { state: PathState::None, since_ms: context.now_ms, reason: String::new() };
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(volume)));
    change.put(at_step(task, Step::Undoing { refusal }));
    change
}

/// What had been opened is fenced again, as far as lenders answer; the others are fenced when they return (F3).
pub fn undone(
    task: &TaskRow,
    volume: &VolumeRow,
    refusal: &Refusal,
    standings: &Standings,
    context: &mut Context<'_>,
) -> Advance {
    if must_wait(volume, standings, context.now_ms) {
        return Advance::wait();
    }
    let mut volume = VolumeRow { task: None, ..volume.clone() };
    confirm(&mut volume, standings);
    let mut change = Change::new();
    change.event(volume.name.as_str(), refusal.message.clone());
    change.put(Row::Volume(Box::new(volume)));
    change.put(failed(task, refusal.clone(), context.now_ms));
    Advance::Commit(change)
}
