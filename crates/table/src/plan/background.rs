//! Background work on a volume that is not mounted: a lender coordinates it under a lease with an epoch of its own (F5).
//!
//! The lease is the intent: it is in the volume's row before any lender hears of it, and what each of its states asks of the
//! lenders follows from the row. Reconciliation opens the lease at the legs, as it does for a mount, and fences them when a
//! newer epoch has ended it. A mount does not wait for any of this: its own epoch takes the lease's place.

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::order::{Lease, Order, SliceFacts};
use sublet_types::{LeaseSecret, ServerId, VolumeId};

use super::{Context, Standing};
use crate::change::Change;
use crate::records::{BackgroundRow, BackgroundState, Command, LegRow, Row, SegmentRow, Step, TaskRow, VolumeRow};
use crate::table::Table;
use crate::views;

/// A volume rests for so long after its path was closed, in milliseconds: who unmounts often mounts again at once.
pub const REST_MS: u64 = 2000;
/// A lease that the lenders have not confirmed after so long is given up, in milliseconds.
pub const OPENING_MAX_MS: u64 = 30_000;
/// A coordinator that has nothing to do ends only after so long, in milliseconds: it may not have seen everything yet.
pub const ACTIVE_MIN_MS: u64 = 1000;
/// Work that failed is tried again after this long, then after twice as long, and so on, in milliseconds ...
pub const RETRY_MS: u64 = 10_000;
/// ... up to this.
pub const RETRY_MAX_MS: u64 = 600_000;
/// Volumes that one server coordinates at the same time: they compete for its disks and its network.
pub const AT_ONCE: usize = 4;

/// What the manager sees of the servers now.
pub struct Seen<'a> {
    /// The servers that poll.
    pub up: &'a BTreeSet<ServerId>,
    /// How many volumes each of them coordinates.
    pub busy: &'a BTreeMap<ServerId, usize>,
}

/// What the manager sees of a coordinator.
#[derive(Clone, Copy, Default, Debug)]
pub struct Coordinator {
    /// It is gone: why.
    pub lost: Option<&'static str>,
    /// It has said that it ends, and whether it closed cleanly.
    pub left: Option<bool>,
    /// It reaches the legs, and no report of its lists any equalising.
    pub is_equal: bool,
}

/// What to do now.
pub enum Next {
    /// Nothing.
    Nothing,
    /// Nothing before this time, in milliseconds since 1970.
    At(u64),
    /// This is to be committed.
    Commit(Change),
    /// This is to be committed, and nothing be begun for a while: it did not go well.
    Retreat(Change),
}

/// `OpenLease` of the background lease for one slice.
pub fn open_order(volume: &VolumeRow, facts: SliceFacts) -> Option<Order> {
    let row = volume.work.background.as_ref()?;
    let lease = Lease { epoch: row.epoch, borrower: row.coordinator, secret: row.secret, read_only: false };
    Some(Order::OpenLease { slice: facts.slice, area: facts.area, lease, facts })
}

/// What the state of a background lease asks of its coordinator.
pub fn order(table: &Table, volume: &VolumeRow) -> Option<Order> {
    let row = volume.work.background.as_ref()?;
    match row.state {
        BackgroundState::Starting => {
            views::coordinating(table, volume).map(|mounting| Order::Coordinate { mounting: Box::new(mounting) })
        }
        BackgroundState::Stopping => {
            Some(Order::StopCoordinating { volume: volume.id, epoch: row.epoch, server: row.coordinator })
        }
        BackgroundState::Opening | BackgroundState::Active => None,
    }
}

/// Whether a leg can be worked with now.
fn is_there(table: &Table, leg: &LegRow, seen: &Seen<'_>) -> bool {
    // A quarantined area is neither read from nor copied to (L2).
    let online =
        |area: &crate::records::AreaRow| area.offline.is_none() && area.quarantined.is_none() && seen.up.contains(&area.server);
    !leg.fresh && table.areas.get(&leg.area).is_some_and(online)
}

/// The scrub of a volume that is going on.
pub fn scrub_of(table: &Table, volume: VolumeId) -> Option<&TaskRow> {
    let is_scrub = |task: &&TaskRow| {
        task.volume == Some(volume) && task.step == Step::Working && matches!(task.command, Command::Scrub { .. })
    };
    table.tasks.values().filter(|task| task.is_running()).find(is_scrub)
}

/// Whether there is something to do that can be done now. `is_equal`: the present coordinator has nothing left to make equal.
fn is_wanted(table: &Table, volume: &VolumeRow, seen: &Seen<'_>, is_equal: bool) -> bool {
    let there = |leg: &LegRow| is_there(table, leg, seen);
    let readable = |segment: &SegmentRow| segment.legs.iter().any(|leg| leg.in_sync && there(leg));
    if !volume.segments.iter().all(readable) {
        return false;
    }
    let all_there = || volume.legs().all(|(_, leg)| !leg.in_sync || there(leg));
    let returning = !volume.work.is_resync_paused && volume.legs().any(|(_, leg)| !leg.in_sync && there(leg));
    let unequal = volume.work.unclean && !is_equal;
    let scrub = scrub_of(table, volume.id).is_some_and(|task| !task.is_paused);
    returning || ((unequal || scrub) && all_there())
}

/// The lender that shall do it: one with an in-sync leg, best of a segment that has work, and with little to do already.
fn choose(table: &Table, volume: &VolumeRow, seen: &Seen<'_>) -> Option<ServerId> {
    let there = |leg: &LegRow| is_there(table, leg, seen);
    let mut best: BTreeMap<ServerId, (bool, usize)> = BTreeMap::new();
    for segment in &volume.segments {
        let has_stale = segment.legs.iter().any(|leg| !leg.in_sync && there(leg));
        for server in segment.legs.iter().filter(|leg| leg.in_sync && there(leg)).filter_map(|leg| table.lender(leg.area)) {
            let busy = seen.busy.get(&server).copied().unwrap_or(0);
            let rank = best.entry(server).or_insert((true, busy));
            rank.0 &= !has_stale;
        }
    }
    best.retain(|_, (_, busy)| *busy < AT_ONCE);
    best.into_iter().min_by_key(|(server, rank)| (*rank, table.server_name(*server))).map(|(server, _)| server)
}

/// Plans the next step of a volume's background work. `retry_ms` is before when nothing is begun.
pub fn advance(
    table: &Table,
    volume: &VolumeRow,
    seen: &Seen<'_>,
    coordinator: Coordinator,
    standing: Option<&Standing>,
    retry_ms: u64,
    context: &mut Context<'_>,
) -> Next {
    if volume.lease.is_some() || volume.frozen.is_some() {
        return Next::Nothing;
    }
    match &volume.work.background {
        None => begin(table, volume, seen, retry_ms, context),
        Some(row) => go_on(table, volume, row, seen, coordinator, standing, context),
    }
}

fn begin(table: &Table, volume: &VolumeRow, seen: &Seen<'_>, retry_ms: u64, context: &mut Context<'_>) -> Next {
    let is_quiet = volume.task.is_none() && table.wipes_of(volume.id).next().is_none();
    if !is_quiet || !is_wanted(table, volume, seen, false) {
        return Next::Nothing;
    }
    let not_before = retry_ms.max(volume.path.since_ms + REST_MS);
    if context.now_ms < not_before {
        return Next::At(not_before);
    }
    let Some(coordinator) = choose(table, volume, seen) else { return Next::Nothing };
    let epoch = volume.next_epoch((context.random)());
    let secret = LeaseSecret::from_u128((context.random)());
    let mut next = VolumeRow { epoch, ..volume.clone() };
    for segment in &mut next.segments {
        // They belong to the epoch that ends now.
        segment.pending = None;
        segment.last = None;
    }
    next.work.background =
        Some(BackgroundRow { epoch, secret, coordinator, state: BackgroundState::Opening, since_ms: context.now_ms });
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(next)));
    Next::Commit(change)
}

fn go_on(
    table: &Table,
    volume: &VolumeRow,
    row: &BackgroundRow,
    seen: &Seen<'_>,
    coordinator: Coordinator,
    standing: Option<&Standing>,
    context: &mut Context<'_>,
) -> Next {
    let name = table.server_name(row.coordinator);
    let now_ms = context.now_ms;
    let at_state = |state, text: Option<String>| {
        let mut next = volume.clone();
        next.work.background = Some(BackgroundRow { state, since_ms: now_ms, ..row.clone() });
        let mut change = Change::new();
        if let Some(text) = text {
            change.event(volume.name.as_str(), text);
        }
        change.put(Row::Volume(Box::new(next)));
        Next::Commit(change)
    };
    match row.state {
        BackgroundState::Opening if !is_wanted(table, volume, seen, false) => Next::Commit(end(volume, None, context)),
        BackgroundState::Opening if volume.is_fenced() => at_state(BackgroundState::Starting, None),
        BackgroundState::Opening if now_ms >= row.since_ms + OPENING_MAX_MS => Next::Retreat(end(
            volume,
            Some("background work was not begun: the lenders did not open its lease".to_owned()),
            context,
        )),
        BackgroundState::Opening => Next::At(row.since_ms + OPENING_MAX_MS),
        BackgroundState::Starting => match standing {
            Some(Standing::Done) => {
                at_state(BackgroundState::Active, Some(format!("background work is done by {name} (epoch {})", row.epoch)))
            }
            Some(Standing::Waiting { .. }) | None => Next::Nothing,
            Some(standing) => {
                let why = standing.trouble().unwrap_or_default();
                Next::Retreat(end(volume, Some(format!("{name} does not do the background work: {why}")), context))
            }
        },
        BackgroundState::Active | BackgroundState::Stopping if coordinator.left.is_some() => {
            let is_clean = coordinator.left == Some(true);
            let mut next = volume.clone();
            next.work.unclean = !is_clean;
            let is_asked = row.state == BackgroundState::Stopping;
            let change = end(&next, Some(format!("background work has ended (epoch {})", row.epoch)), context);
            if is_clean && is_asked { Next::Commit(change) } else { Next::Retreat(change) }
        }
        BackgroundState::Active => match coordinator.lost {
            Some(why) => {
                Next::Retreat(end(&crashed(volume), Some(format!("{name} no longer does the background work: {why}")), context))
            }
            None if is_wanted(table, volume, seen, coordinator.is_equal) => Next::Nothing,
            None if now_ms < row.since_ms + ACTIVE_MIN_MS => Next::At(row.since_ms + ACTIVE_MIN_MS),
            None => at_state(BackgroundState::Stopping, None),
        },
        BackgroundState::Stopping => match standing {
            Some(Standing::Waiting { .. }) | None => Next::Nothing,
            // It has said nothing of a clean close.
            Some(_) => {
                Next::Retreat(end(&crashed(volume), Some(format!("background work has ended (epoch {})", row.epoch)), context))
            }
        },
    }
}

/// The volume as a coordinator leaves it that did not close cleanly.
pub fn crashed(volume: &VolumeRow) -> VolumeRow {
    let mut next = volume.clone();
    next.work.unclean |= next.segments.iter().any(|segment| segment.legs.len() > 1);
    next
}

/// A newer epoch ends the lease; reconciliation fences the legs with it (F1, F3).
pub fn end(volume: &VolumeRow, text: Option<String>, context: &mut Context<'_>) -> Change {
    let mut next = volume.clone();
    next.epoch = next.next_epoch((context.random)());
    next.work.background = None;
    for segment in &mut next.segments {
        segment.pending = None;
        segment.last = None;
    }
    let mut change = Change::new();
    if let Some(text) = text {
        change.event(volume.name.as_str(), text);
    }
    change.put(Row::Volume(Box::new(next)));
    change
}
