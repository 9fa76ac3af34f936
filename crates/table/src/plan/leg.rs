//! A leg leaves the in-sync set of a mounted volume, or returns: compare-and-set on (volume, epoch, generation) (S1, S2, S5).

use sublet_api::request::{ChangeLeg, LegAnswer, LegChange};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::mutation::{self, Mutation};
use sublet_types::{Generation, VolumeId};

use super::{Context, bad, conflict};
use crate::change::Change;
use crate::records::{LastChange, Pending, Row, SegmentRow, VolumeRow};
use crate::table::Table;

/// Plans the change that the holder of the lease asks for. A repeated request changes nothing and gets the same answer.
///
/// # Errors
/// `stale_epoch` if the caller is not the present holder (F4), `conflict` if the generation is not the present one or the
/// change is not possible now.
pub fn plan(
    table: &Table,
    volume: VolumeId,
    change: &ChangeLeg,
    context: &mut Context<'_>,
) -> Result<(Change, LegAnswer), Refusal> {
    let missing = || Refusal::new(ErrorKind::StaleEpoch, format!("volume {} is no longer in the table", volume.short()));
    let volume = table.volumes.get(&volume).ok_or_else(missing)?;
    check_epoch(volume, change.epoch)?;
    if change.change == LegChange::Stale && volume.is_behind() {
        // L5: a label tells of a newer state. The copy that is to be left out may be the one that somebody else goes on with.
        let text = format!("the labels of volume '{}' know better than the table: no copy is left out", volume.name);
        return Err(conflict(text, "reconcile the table first: `sublet manager rebuild --reconcile`"));
    }
    let mut next = volume.clone();
    let index = change.segment as usize;
    let count = volume.segments.len();
    let Some(segment) = next.segments.get_mut(index) else {
        return Err(bad(format!("volume '{}' has {count} segments, there is no segment {index}", volume.name), ""));
    };
    let Some(leg) = segment.legs.iter().position(|leg| leg.slice == change.slice) else {
        return Err(bad(format!("segment {index} of volume '{}' has no slice {}", volume.name, change.slice.short()), ""));
    };
    if let Some(generation) = repeated(segment, change) {
        return Ok((Change::new(), LegAnswer { generation, in_sync: segment.in_sync() }));
    }
    let area = segment.legs.get(leg).and_then(|leg| table.areas.get(&leg.area));
    if matches!(change.change, LegChange::Returning | LegChange::InSync) && area.is_some_and(|area| area.quarantined.is_some()) {
        // L2: it was copied to as one that had only missed something, and is older than that.
        let text = format!("segment {index} of volume '{}': the area of this copy is quarantined", volume.name);
        return Err(conflict(text, "see `sublet area ls`"));
    }
    let lender = segment.legs.get(leg).map(|leg| table.lender_name(leg.area)).unwrap_or_default();
    let (generation, text) = step(segment, leg, change, context).map_err(|why| {
        let present = segment.generation;
        conflict(
            format!("segment {index} of volume '{}' (generation {present}): {why}", volume.name),
            "ask for the present state and go on from there",
        )
    })?;
    let answer = LegAnswer { generation, in_sync: segment.in_sync() };
    let mut out = Change::new();
    if let Some(text) = text {
        out.event(volume.name.as_str(), format!("the copy of segment {index} at {lender} {text} (generation {generation})"));
    }
    if next != *volume {
        out.put(Row::Volume(Box::new(next)));
    }
    Ok((out, answer))
}

/// Refuses everybody but the present holder (S2, F4).
///
/// # Errors
/// `stale_epoch`.
pub fn check_epoch(volume: &VolumeRow, epoch: sublet_types::Epoch) -> Result<(), Refusal> {
    if volume.is_held(epoch) {
        return Ok(());
    }
    // L5: the table may be older than the world, and have given out the same number itself. Only who is really older is told to
    // stop.
    if volume.is_behind() || epoch.number > volume.epoch.number || epoch.is_split_from(volume.epoch) {
        let text = format!(
            "the table has epoch {} of volume '{}', not {epoch}: it is behind, or being rebuilt",
            volume.epoch, volume.name
        );
        return Err(conflict(text, "go on; the administrator sees it in `sublet volume ls`"));
    }
    let text = format!("epoch {epoch} of volume '{}' has ended (it is at epoch {} now)", volume.name, volume.epoch);
    Err(Refusal::new(ErrorKind::StaleEpoch, text).hint("this client has been fenced and must stop"))
}

/// The generation that a repeated request made the first time.
fn repeated(segment: &SegmentRow, change: &ChangeLeg) -> Option<Generation> {
    if change.change == LegChange::Returning {
        let pending = segment.pending.as_ref()?;
        let same = pending.slice == change.slice && pending.base == change.generation && segment.generation == change.generation;
        return same.then_some(pending.generation);
    }
    let last = segment.last.as_ref()?;
    let same = last.change == change.change && last.slice == change.slice && last.epoch == change.epoch;
    // The caller may know its change by the generation before or by the one that it made; a withdrawal, which follows a
    // change whose answer may have been lost, by one more.
    let known = change.change == LegChange::Withdrawn || [last.before, last.after].contains(&change.generation);
    (same && known && segment.generation == last.after).then_some(last.after)
}

type Stepped = Result<(Generation, Option<&'static str>), String>;

/// All legal transitions of a leg.
fn step(segment: &mut SegmentRow, leg: usize, change: &ChangeLeg, context: &mut Context<'_>) -> Stepped {
    let is_in_sync = segment.legs.get(leg).is_some_and(|leg| leg.in_sync);
    let is_present = segment.generation == change.generation;
    let not_present = || Err(format!("generation {} is not the present one", change.generation));
    match change.change {
        LegChange::Stale if !is_present => not_present(),
        LegChange::Stale if !is_in_sync => Ok((segment.generation, None)),
        LegChange::Stale if segment.legs.iter().filter(|leg| leg.in_sync).count() <= 1 => {
            Err("the last copy that is in sync never leaves (S1)".to_owned())
        }
        LegChange::Stale => Ok((commit(segment, leg, false, None, change, context), Some("is stale"))),
        LegChange::Returning if !is_present => not_present(),
        LegChange::Returning if is_in_sync => Err("this copy is in sync already".to_owned()),
        LegChange::Returning => {
            let generation = segment.issue((context.random)());
            segment.pending = Some(Pending { generation, slice: change.slice, base: segment.generation });
            Ok((generation, None))
        }
        LegChange::InSync => match segment.pending.clone() {
            Some(pending) if pending.slice == change.slice && pending.base == segment.generation => {
                // The caller may name the generation it comes from or the one it was issued.
                if !is_present && pending.generation != change.generation {
                    return not_present();
                }
                Ok((commit(segment, leg, true, Some(pending.generation), change, context), Some("is in sync again")))
            }
            _ if !is_present => not_present(),
            _ if is_in_sync => Ok((segment.generation, None)),
            _ => Err("no generation was issued for this copy to return with".to_owned()),
        },
        LegChange::Withdrawn => withdraw(segment, leg, is_in_sync, change, context),
    }
}

/// A leg's leaving is withdrawn, as long as nothing else has changed since (S1).
fn withdraw(segment: &mut SegmentRow, leg: usize, is_in_sync: bool, change: &ChangeLeg, context: &mut Context<'_>) -> Stepped {
    let left = segment.last.clone().filter(|last| {
        last.change == LegChange::Stale
            && last.slice == change.slice
            && last.epoch == change.epoch
            && last.after == segment.generation
    });
    match left {
        // The caller may never have got the answer to its first request, and then knows the generation before.
        Some(last) if [last.before, last.after].contains(&change.generation) => {
            Ok((commit(segment, leg, true, None, change, context), Some("is in sync after all")))
        }
        _ if segment.generation != change.generation => Err(format!("generation {} is not the present one", change.generation)),
        _ if is_in_sync => Ok((segment.generation, None)),
        _ => Err("its leaving can no longer be withdrawn: it has to be copied".to_owned()),
    }
}

fn commit(
    segment: &mut SegmentRow,
    leg: usize,
    in_sync: bool,
    issued: Option<Generation>,
    change: &ChangeLeg,
    context: &mut Context<'_>,
) -> Generation {
    let before = segment.generation;
    let generation = issued.unwrap_or_else(|| segment.issue((context.random)()));
    if let Some(leg) = segment.legs.get_mut(leg) {
        leg.in_sync = in_sync || mutation::is(Mutation::StaleForgotten);
        leg.stale_since = (!in_sync).then_some(generation);
    }
    segment.generation = generation;
    // Issued on a set that is no longer the present one.
    segment.pending = None;
    segment.last =
        Some(LastChange { change: change.change, slice: change.slice, epoch: change.epoch, before, after: generation });
    generation
}

#[cfg(test)]
#[path = "leg_tests.rs"]
mod tests;
