//! `volume accept`: an administrator decides with which copies a volume goes on that its labels alone do not settle (R1).

use std::collections::BTreeMap;

use sublet_api::Refusal;
use sublet_api::server::AreaReport;
use sublet_types::{Generation, ServerId, VolumeId};

use super::labels::{Seen, epochs_split};
use super::{Copies, FORK_JUMP, area_name, by_volume, check_segment, copies, derive, leg_row, missing_legs, places, segments_of};
use crate::change::Change;
use crate::plan::{Context, conflict, listed};
use crate::records::Row;
use crate::table::Table;

/// What an administrator has decided.
pub struct Choice<'a> {
    /// The copies to go on with: name or id of their area or server, or the id of a slice.
    pub leg: &'a str,
    /// Also if its label says that it is stale.
    pub stale: bool,
}

/// Plans it: the chosen copies are the in-sync set of a new generation, those that were not seen are taken in as stale ones when
/// they come, and whoever had the volume mounted is fenced.
///
/// # Errors
/// If the volume is in order, or the chosen copies are not there for every segment that needs them.
pub fn plan(
    table: &Table,
    reports: &[(ServerId, &AreaReport)],
    volume: &str,
    choice: &Choice<'_>,
    context: &mut Context<'_>,
) -> Result<Change, Refusal> {
    let row = table.volume(volume)?;
    let Some(reason) = row.frozen.clone() else {
        return Err(conflict(
            format!("volume '{}' is not frozen: there is nothing to accept", row.name),
            "see `sublet volume show`",
        ));
    };
    if row.task.is_some_and(|id| table.tasks.get(&id).is_some_and(|task| task.is_running())) {
        return Err(conflict(format!("volume '{}' is being changed", row.name), "wait for it, see `sublet task ls`"));
    }
    let seen = seen_of(table, reports, row.id);
    let mut unused = Vec::new();
    let named = seen.iter().map(|one| one.slice.facts.segments).max().unwrap_or_default();
    let Copies { mut segments, held, former, .. } = copies(&seen, Some(row), named, &mut unused);
    if choice.stale && former.iter().any(|one| matches(table, one, choice.leg)) {
        // By the other labels there is a better one in its place. Whoever says so has nothing better.
        segments = segments_of(&seen, &mut unused);
    }
    if segments.len() < named as usize || segments.is_empty() {
        let text = match segments.len() {
            0 => format!("nothing is left of volume '{}' here", row.name),
            here => {
                format!("{} of the {named} segments of volume '{}' have no copy at all here", named as usize - here, row.name)
            }
        };
        let hint = format!("start the servers that have them; if nobody needs it: `sublet return {} --dissolve`", row.name);
        return Err(conflict(text, &hint));
    }
    // Also where its segments look fine: whoever names something else means something else.
    if !segments.values().flat_map(BTreeMap::values).any(|one| matches(table, one, choice.leg)) {
        let names = listed(segments.values().map(|legs| places(table, legs)));
        return Err(conflict(format!("'{}' has no copy of volume '{}'", choice.leg, row.name), format!("name one of {names}")));
    }
    let (mut next, _) = derive(table, row.id, &seen, Some(row), context);
    let mut absent = Vec::new();
    for ((index, legs), segment) in segments.iter().zip(&mut next.segments) {
        let away = missing_legs(table, *index, legs, Some(row));
        let is_fine = check_segment(table, *index, legs, &away).is_empty() && segment.legs.iter().any(|leg| leg.in_sync);
        let chosen: Vec<u32> = legs.iter().filter(|(_, one)| matches(table, one, choice.leg)).map(|(leg, _)| *leg).collect();
        if chosen.is_empty() && is_fine {
            continue;
        }
        if chosen.is_empty() {
            let text = format!("'{}' has no copy of segment {index} of volume '{}'", choice.leg, row.name);
            return Err(conflict(text, format!("name one of {}", places(table, legs))));
        }
        let knows = |leg: &u32| legs.get(leg).is_some_and(|one| one.slice.facts.in_sync.get(*leg as usize) == Some(&true));
        if !chosen.iter().any(knows) && !choice.stale {
            let text = format!(
                "the copy of segment {index} at '{}' is stale by its own label: newer writes are lost with it",
                choice.leg
            );
            return Err(conflict(text, "choose another copy, or say --stale if there is none"));
        }
        // L2: whether an area that went back in time is believed is decided for the whole area.
        let kept: Vec<&Seen<'_>> = chosen.iter().filter_map(|leg| legs.get(leg)).collect();
        if let Some(one) = kept.first().filter(|_| kept.iter().all(|one| !one.trusted)) {
            let area = area_name(table, one.area);
            let text = format!("the copy of segment {index} of volume '{}' lies in area {area}, which is quarantined", row.name);
            return Err(conflict(text, format!("choose another copy, or first: `sublet area accept {area}`")));
        }
        absent.extend(away);
        segment.legs = legs.iter().map(|(leg, one)| leg_row(one, chosen.contains(leg))).collect();
        let newest = legs.values().map(|one| one.slice.facts.generation.number).max().unwrap_or_default();
        segment.issued = segment.issued.max(newest + FORK_JUMP);
        segment.generation = Generation::default();
        segment.generation = segment.issue((context.random)());
    }
    let copies = segments.values().flat_map(BTreeMap::values).map(|one| one.slice.facts.legs).max();
    next.copies = next.copies.max(copies.unwrap_or_default());
    next.absent = absent;
    next.unsettled = false;
    next.thaw();
    next.task = None;
    next.lease = None;
    next.path = crate::records::PathRow { since_ms: context.now_ms, ..Default::default() };
    // Whoever had it, and whatever the missing lender knows: both are older from now on (F3).
    if held.epoch.number > 0 || epochs_split(&seen).is_some() {
        next.epoch = next.next_epoch((context.random)());
    }
    let mut change = Change::new();
    let absent = match next.absent.len() {
        0 => String::new(),
        count => format!("; {count} missing copies will be stale when they come back"),
    };
    let chosen = listed([choice.leg.to_owned()]);
    change.event(next.name.as_str(), format!("accepted with what {chosen} has{absent} (it was frozen: {reason})"));
    change.put(Row::Volume(Box::new(next)));
    Ok(change)
}

/// What the present labels say of one volume.
fn seen_of<'a>(table: &Table, reports: &[(ServerId, &'a AreaReport)], id: VolumeId) -> Vec<Seen<'a>> {
    by_volume(table, reports).remove(&id).unwrap_or_default()
}

fn matches(table: &Table, one: &Seen<'_>, text: &str) -> bool {
    let area = table.areas.get(&one.area).is_some_and(|row| row.name.as_str() == text);
    let slice = one.slice.facts.slice;
    area || table.server_name(one.server) == text
        || [one.area.to_string(), one.server.to_string(), slice.to_string(), slice.short()].iter().any(|id| id == text)
}
