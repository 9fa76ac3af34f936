//! `volume set-way`: a free defined volume gets another usage way or other areas.

use sublet_api::Refusal;
use sublet_api::request::{AreaShare, SetWay, TaskOutcome};
use sublet_types::{AreaId, ByteSize, Way};

use super::{
    Advance, Context, Standing, Standings, at_step, begin, check_quiet, conflict, create, done, layout, listed, order_area,
    order_slice,
};
use crate::change::Change;
use crate::records::{Command, Row, Step, TaskRow, VolumeRow};
use crate::table::Table;
use crate::views;

/// Plans it: the former slices become wipes, new slices take their place when these are done.
///
/// # Errors
/// If the volume is lent or carved, or the areas do not make such a volume.
pub fn plan(table: &Table, volume: &str, command: &SetWay, context: &mut Context<'_>) -> Result<Change, Refusal> {
    let volume = table.volume(volume)?;
    if let Some(holder) = volume.borrower {
        let text = format!("volume '{}' is lent to {}", volume.name, table.server_name(holder));
        return Err(conflict(text, "its way can be changed when it has been returned"));
    }
    check_quiet(table, volume)?;
    if table.wipes_of(volume.id).next().is_some() {
        return Err(conflict(format!("volume '{}' is still being wiped", volume.name), "wait for it, see `sublet area ls`"));
    }
    let on = if command.on.is_empty() { present(volume) } else { command.on.clone() };
    let copies = (command.way == Way::Doubled).then_some(command.copies);
    let layout = create::on_areas(table, context.reachable, command.way, &on, copies, Some(volume.id))?;
    let mut change = Change::new();
    let fence = volume.next_epoch((context.random)());
    for row in layout::wipe_rows(volume, fence, true) {
        change.put(row);
    }
    let mut next = VolumeRow { way: command.way, size: layout.size(), task: Some(command.task), ..volume.clone() };
    // Only the wipes have this epoch: it is never given to anybody else (F1).
    next.epoch_floor = next.epoch_floor.max(fence.number);
    next.segments = layout::segments(&layout, context.random);
    // What was going on was for the former slices; their wipes fence it.
    next.work.background = None;
    next.work.unclean = false;
    next.copies = 0;
    // Nobody has ever had the new slices: there is no older client to be fenced there.
    let epoch = next.epoch.number;
    next.segments.iter_mut().flat_map(|segment| &mut segment.legs).for_each(|leg| leg.confirmed = epoch);
    let mut task = begin(command.task, Command::SetWay, volume.name.as_str(), Step::Dropping, context.now_ms);
    task.volume = Some(volume.id);
    task.total = volume.legs().map(|(_, leg)| leg.length).sum();
    change.put(Row::Volume(Box::new(next)));
    change.put(Row::Task(Box::new(task)));
    Ok(change)
}

/// The areas that the volume has now, each once, in the order of its legs.
fn present(volume: &VolumeRow) -> Vec<AreaShare> {
    let mut areas: Vec<AreaId> = Vec::new();
    for (_, leg) in volume.legs() {
        if !areas.contains(&leg.area) {
            areas.push(leg.area);
        }
    }
    let length_in = |area: AreaId| volume.legs().filter(|(_, leg)| leg.area == area).map(|(_, leg)| leg.length).sum();
    areas.iter().map(|area| AreaShare { area: area.to_string(), size: Some(length_in(*area)) }).collect()
}

fn troubles(table: &Table, standings: &Standings) -> String {
    let trouble =
        |(order, standing): &(_, Standing)| Some(format!("{}: {}", table.lender_name(order_area(order)?), standing.trouble()?));
    let troubles: Vec<String> = standings.iter().filter_map(trouble).collect();
    if troubles.is_empty() { String::new() } else { listed(troubles) }
}

/// Waits for the wipes of the former slices, however long it takes; `return --dissolve` ends it.
pub fn dropped(table: &Table, task: &TaskRow, standings: &Standings) -> Advance {
    let left: u64 = task.volume.into_iter().flat_map(|id| table.wipes_of(id)).map(|row| row.length).sum();
    if left > 0 {
        debug_assert!(standings.iter().all(|(order, _)| order_slice(order).is_some()));
        return Advance::Wait { reason: troubles(table, standings), done: task.total.saturating_sub(left) };
    }
    let mut change = Change::new();
    change.put(at_step(task, Step::Preparing));
    Advance::Commit(change)
}

/// Waits for the labels, however long it takes: there is no way back to the former slices.
pub fn prepared(table: &Table, task: &TaskRow, volume: &VolumeRow, standings: &Standings, context: &mut Context<'_>) -> Advance {
    if standings.iter().any(|(_, standing)| *standing != Standing::Done) {
        return Advance::Wait { reason: troubles(table, standings), done: task.total };
    }
    let volume = VolumeRow { task: None, ..volume.clone() };
    let mut change = Change::new();
    change.event(volume.name.as_str(), format!("is {} now, {}", volume.way, ByteSize(volume.size)));
    let view = views::volume(table, &volume);
    change.put(Row::Volume(Box::new(volume)));
    change.put(done(task, TaskOutcome::Volume { volume: Box::new(view) }, context.now_ms));
    Advance::Commit(change)
}
