//! `volume create`: an administrator defines a free volume on named areas. Also the common end of everything that carves.

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::request::{AreaShare, CreateVolume, TaskOutcome};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::limits::{BLOCK_SIZE, REGION_SIZE, SEGMENTS_MAX, SIZE_MAX};
use sublet_types::{AreaId, ByteSize, Name, ServerId, SliceId, VolumeId, Way};

use super::place::{Layout, Planned, Spot, way_and_copies};
use super::{Advance, Context, Standing, Standings, bad, begin, conflict, done, failed, layout, listed, order_area};
use crate::change::Change;
use crate::records::{Command, Key, Row, Step, TaskRow, VolumeRow};
use crate::table::{Stretch, Table, Taken, stretches};
use crate::views;

/// Plans a defined volume.
///
/// # Errors
/// If the name is taken, an area cannot be used, or the shares do not make such a volume.
pub fn plan(table: &Table, command: &CreateVolume, context: &mut Context<'_>) -> Result<Change, Refusal> {
    check_name_free(table, &command.name)?;
    let copies = if command.way == Way::Doubled { Some(command.copies) } else { None };
    let layout = on_areas(table, context.reachable, command.way, &command.on, copies, None)?;
    let volume = layout::volume(&command.name, &layout, None, command.task, context.random);
    let mut task = begin(command.task, Command::Create, command.name.as_str(), Step::Preparing, context.now_ms);
    task.volume = Some(volume.id);
    let mut change = Change::new();
    change.put(Row::Volume(Box::new(volume)));
    change.put(Row::Task(Box::new(task)));
    Ok(change)
}

/// Refuses a name that another volume has.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`].
pub fn check_name_free(table: &Table, name: &Name) -> Result<(), Refusal> {
    let Some(other) = table.volumes.values().find(|row| row.name == *name) else { return Ok(()) };
    let hint = match other.borrower {
        None => format!("it is free: `sublet borrow {name}` without --size borrows it; or choose another name"),
        Some(holder) => format!("it is lent to {}; choose another name", table.server_name(holder)),
    };
    Err(Refusal::new(ErrorKind::AlreadyExists, format!("there is a volume '{name}' already")).hint(hint))
}

/// The free space of the named areas, as it is used up share by share.
struct Shares<'a> {
    table: &'a Table,
    reachable: &'a BTreeSet<ServerId>,
    /// A volume whose slices count as free (set-way).
    instead_of: Option<VolumeId>,
    taken: BTreeMap<AreaId, Vec<Taken>>,
}

impl Shares<'_> {
    /// Finds an area that may be used and remembers what is taken in it.
    fn open(&mut self, text: &str) -> Result<AreaId, Refusal> {
        let area = self.table.area(text)?;
        let lender = self.table.server_name(area.server);
        if !self.reachable.contains(&area.server) {
            let text = format!("area '{}' cannot be used now: its lender {lender} does not answer", area.name);
            return Err(Refusal::new(ErrorKind::LenderUnreachable, text).hint("start `sublet server` there, or use another area"));
        }
        if let Some(reason) = &area.offline {
            return Err(conflict(format!("area '{}' is offline: {reason}", area.name), "bring it back, or use another area"));
        }
        if let Some(reason) = &area.quarantined {
            // L2: nothing new is placed there.
            let hint = format!("accept it as it is: `sublet area accept {}`; or use another area", area.name);
            return Err(conflict(format!("area '{}' is quarantined: {reason}", area.name), hint));
        }
        if area.reclaiming {
            return Err(conflict(format!("area '{}' is being reclaimed by {lender}", area.name), "use another area"));
        }
        if let Some(holder) = self.table.sole_holder(area.id).filter(|holder| Some(holder.id) != self.instead_of) {
            let text = format!("volume '{}' (single) has area '{}' to itself", holder.name, area.name);
            return Err(conflict(text, "use another area, or define that volume as divided"));
        }
        let replaced = self.instead_of.and_then(|id| self.table.volumes.get(&id));
        let own: BTreeSet<SliceId> = replaced.into_iter().flat_map(VolumeRow::legs).map(|(_, leg)| leg.slice).collect();
        let taken = || self.table.taken(area.id).into_iter().filter(|part| !own.contains(&part.slice)).collect();
        self.taken.entry(area.id).or_insert_with(taken);
        Ok(area.id)
    }

    fn free(&self, area: AreaId) -> Vec<Stretch> {
        let capacity = self.table.areas.get(&area).map_or(0, |row| row.capacity);
        self.taken.get(&area).map(|taken| stretches(capacity, taken)).unwrap_or_default()
    }

    fn longest(&self, area: AreaId) -> u64 {
        self.free(area).iter().map(|stretch| stretch.length).max().unwrap_or(0)
    }

    /// Takes `length` bytes, rounded up to regions, from the best-fitting stretch.
    fn take(&mut self, area: AreaId, length: u64) -> Result<Spot, Refusal> {
        let need = length.next_multiple_of(REGION_SIZE);
        let fits = self.free(area).into_iter().filter(|stretch| stretch.length >= need);
        let Some(stretch) = fits.min_by_key(|stretch| (stretch.length, stretch.offset)).filter(|_| need > 0) else {
            let name = self.table.areas.get(&area).map_or_else(|| area.short(), |row| row.name.to_string());
            let longest = self.longest(area);
            let have = if longest == 0 {
                "has no free space".to_owned()
            } else {
                format!("has at most {} in one piece", ByteSize(longest))
            };
            let text = format!("area '{name}' {have}, {} were asked for", ByteSize(length));
            return Err(Refusal::new(ErrorKind::NoSpace, text).hint("ask for less, or use another area; see `sublet area ls`"));
        };
        let taken = self.taken.entry(area).or_default();
        taken.push(Taken { offset: stretch.offset, length: need, slice: SliceId::from_u128(0) });
        taken.sort_unstable();
        Ok(Spot { area, offset: stretch.offset, length: need })
    }
}

/// A layout on named areas.
///
/// # Errors
/// If an area cannot be used or the shares do not make a volume of that way.
pub fn on_areas(
    table: &Table,
    reachable: &BTreeSet<ServerId>,
    way: Way,
    on: &[AreaShare],
    copies: Option<u32>,
    instead_of: Option<VolumeId>,
) -> Result<Layout, Refusal> {
    let (_, copies) = way_and_copies(Some(way), copies)?;
    let mut shares = Shares { table, reachable, instead_of, taken: BTreeMap::new() };
    let areas: Vec<AreaId> = on.iter().map(|share| shares.open(&share.area)).collect::<Result<_, _>>()?;
    for share in on {
        if share.size.is_some_and(|size| size == 0 || size > SIZE_MAX) {
            return Err(bad(
                format!("{} bytes of area '{}' cannot be used", share.size.unwrap_or(0), share.area),
                "write AREA or AREA:SIZE, for example b2:10G",
            ));
        }
    }
    let asked: Vec<Option<u64>> = on.iter().map(|share| share.size.map(|size| size.next_multiple_of(BLOCK_SIZE))).collect();
    let groups = match way {
        Way::Single | Way::Divided if on.len() != 1 => {
            return Err(bad(
                format!("a {way} volume lies in one area, {} were given", on.len()),
                "integrated and doubled volumes use several",
            ));
        }
        Way::Single if shares.taken.values().any(|taken| !taken.is_empty()) => {
            let text = format!(
                "area '{}' is in use, and a single volume has its area to itself",
                on.first().map_or("", |share| &share.area)
            );
            return Err(conflict(text, "use an unused area, or --way divided"));
        }
        Way::Integrated if on.len() < 2 => {
            return Err(bad("an integrated volume needs two areas or more", "for example --on a1,b1:10G"));
        }
        Way::Doubled if on.is_empty() || !on.len().is_multiple_of(copies) => {
            let text = format!("{} areas cannot be put into groups of {copies} copies", on.len());
            return Err(bad(text, "give as many areas per segment as there are copies, on different servers"));
        }
        Way::Doubled => copies,
        Way::Single | Way::Divided | Way::Integrated => 1,
    };
    if on.len() / groups > SEGMENTS_MAX {
        return Err(bad(format!("a volume has at most {SEGMENTS_MAX} segments"), "use fewer areas"));
    }
    let mut segments = Vec::new();
    for (areas, asked) in areas.chunks(groups).zip(asked.chunks(groups)) {
        segments.push(segment(table, &mut shares, areas, asked)?);
    }
    let layout = Layout { way, segments };
    if layout.size() > SIZE_MAX {
        return Err(bad(format!("a volume has at most {}", ByteSize(SIZE_MAX)), "use less"));
    }
    Ok(layout)
}

fn segment(table: &Table, shares: &mut Shares<'_>, areas: &[AreaId], asked: &[Option<u64>]) -> Result<Planned, Refusal> {
    let lenders: BTreeSet<_> = areas.iter().filter_map(|area| table.lender(*area)).collect();
    if lenders.len() < areas.len() {
        let names = listed(areas.iter().filter_map(|area| table.areas.get(area)).map(|area| format!("'{}'", area.name)));
        let text = format!("two copies would be on one server (areas {names})");
        return Err(conflict(text, "use areas of different servers for the copies of one segment"));
    }
    let given: BTreeSet<u64> = asked.iter().flatten().copied().collect();
    if given.len() > 1 {
        let sizes = listed(given.iter().map(|size| ByteSize(*size).to_string()));
        return Err(bad(
            format!("the copies of one segment have the same size, but {sizes} were given"),
            "give the size once, or equal ones",
        ));
    }
    let length = match given.first() {
        Some(length) => *length,
        None => areas.iter().map(|area| shares.longest(*area)).min().unwrap_or(0),
    };
    // An area without any free space is refused by `take`, which knows what to say.
    let legs = areas.iter().map(|area| shares.take(*area, length)).collect::<Result<_, _>>()?;
    Ok(Planned { length, legs })
}

/// The lenders have entered the slices, or not: a volume whose slices are not all in the labels is dissolved again.
pub fn advance(table: &Table, task: &TaskRow, volume: &VolumeRow, standings: &Standings, context: &mut Context<'_>) -> Advance {
    let mut change = Change::new();
    let trouble = standings.iter().find_map(|(order, standing)| Some((order_area(order)?, standing.trouble()?, standing)));
    if let Some((area, trouble, standing)) = trouble {
        let kind = if let Standing::Failed(refusal) = standing { refusal.kind } else { ErrorKind::LenderUnreachable };
        let lender = table.lender_name(area);
        let text = format!("volume '{}' could not be made: {lender} did not enter its slice: {trouble}", volume.name);
        let refusal = Refusal::new(kind, text).hint("try again, or use other areas; see `sublet server ls`");
        change.delete(Key::Volume(volume.id));
        // A lender may have entered its slice without our knowing: all are wiped and dropped (P2).
        for row in layout::wipe_rows(volume, volume.next_epoch((context.random)()), true) {
            change.put(row);
        }
        change.event(volume.name.as_str(), refusal.message.clone());
        change.put(failed(task, refusal, context.now_ms));
        return Advance::Commit(change);
    }
    if standings.iter().any(|(_, standing)| standing.is_waiting()) {
        return Advance::wait();
    }
    let volume = VolumeRow { task: None, ..volume.clone() };
    let what = format!("{} volume of {}", volume.way, ByteSize(volume.announced()));
    let text = match volume.borrower {
        Some(holder) => format!("{what} carved and borrowed by {}", table.server_name(holder)),
        None => format!("free {what} defined"),
    };
    change.event(volume.name.as_str(), text);
    let view = views::volume(table, &volume);
    change.put(Row::Volume(Box::new(volume)));
    change.put(done(task, TaskOutcome::Volume { volume: Box::new(view) }, context.now_ms));
    Advance::Commit(change)
}
