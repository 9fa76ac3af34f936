//! `server forget --lost`: a lender is gone for good, with all that it held (P2, F3).

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::Refusal;
use sublet_api::rebuild::{ForgetView, LossView};
use sublet_types::{AreaId, ByteSize, ServerId, VolumeId};

use super::{Context, conflict, layout, listed};
use crate::change::Change;
use crate::records::{FrozenUntil, Key, Row, ServerRow, VolumeRow, WipeRow};
use crate::table::Table;

/// What goes with a server.
pub fn view(table: &Table, row: &ServerRow, done: bool) -> ForgetView {
    let mut losses: Vec<LossView> = touched(table, row.id).into_iter().map(|volume| loss(table, volume, row.id)).collect();
    let others = table.volumes.values().filter(|volume| !volume.legs().any(|(_, leg)| is_lost(table, leg.area, row.id)));
    losses.extend(others.filter(|volume| !volume.absent.is_empty()).map(|volume| loss(table, volume, row.id)));
    losses.extend(unknown_losses(table, row.id));
    losses.sort_by(|a, b| a.volume.cmp(&b.volume));
    let areas = table.areas_of(row.id).map(|area| area.name.clone()).collect();
    ForgetView { server: row.name.clone(), done, losses, areas }
}

fn is_lost(table: &Table, area: AreaId, server: ServerId) -> bool {
    table.lender(area) == Some(server)
}

fn touched(table: &Table, server: ServerId) -> Vec<&VolumeRow> {
    table.volumes.values().filter(|volume| volume.legs().any(|(_, leg)| is_lost(table, leg.area, server))).collect()
}

/// What lies at the server by the table: bytes that nobody else has in sync, and copies that others have.
fn goes(table: &Table, volume: &VolumeRow, server: ServerId) -> (u64, usize) {
    let (mut bytes, mut copies) = (0, 0);
    for segment in &volume.segments {
        let here = segment.legs.iter().filter(|leg| is_lost(table, leg.area, server)).count();
        let stays = segment.legs.iter().any(|leg| leg.in_sync && !is_lost(table, leg.area, server));
        if here > 0 && stays {
            copies += here;
        } else if here > 0 {
            bytes += segment.length;
        }
    }
    (bytes, copies)
}

fn loss(table: &Table, volume: &VolumeRow, server: ServerId) -> LossView {
    let (mut bytes, mut copies) = goes(table, volume, server);
    // Where the copies are that a rebuild has not seen nobody knows: they may be there (R1).
    let segments: BTreeSet<u32> = volume.absent.iter().map(|leg| leg.segment).collect();
    for index in segments {
        let known = volume.segments.get(index as usize);
        if known.is_some_and(|segment| segment.legs.iter().any(|leg| leg.in_sync && !is_lost(table, leg.area, server))) {
            copies += volume.absent.iter().filter(|leg| leg.segment == index).count();
        } else if !known.is_some_and(|segment| segment.legs.iter().any(|leg| is_lost(table, leg.area, server))) {
            // All of its segments that are not known share what is left of its size.
            let rest = volume.size.saturating_sub(volume.segments.iter().map(|segment| segment.length).sum());
            bytes += known.map_or(rest, |segment| segment.length);
        }
    }
    let bytes = bytes.min(volume.size);
    let borrower = volume.borrower.and_then(|id| table.servers.get(&id)).map(|row| row.name.clone());
    LossView { volume: volume.name.clone(), borrower, mounted: volume.status() == 1, bytes, copies }
}

/// Slices that only the labels of the server know: of what volumes they are is not known either, so they count as their only
/// copies (L5).
fn unknown_losses(table: &Table, server: ServerId) -> Vec<LossView> {
    let mut bytes: BTreeMap<VolumeId, u64> = BTreeMap::new();
    for stranger in table.areas_of(server).flat_map(|area| &area.strangers) {
        *bytes.entry(stranger.volume).or_default() += stranger.length;
    }
    let loss = |(id, bytes): (VolumeId, u64)| {
        let known = table.volumes.get(&id);
        let volume = known.map(|row| row.name.clone()).or_else(|| format!("volume-{}", id.short()).parse().ok())?;
        Some(LossView { volume, borrower: None, mounted: false, bytes, copies: 0 })
    };
    bytes.into_iter().filter_map(loss).collect()
}

/// Refuses while it is not known where a copy lies: it may be at the server that is to be forgotten.
fn check_areas(table: &Table) -> Result<(), Refusal> {
    let lost = |volume: &&VolumeRow| volume.legs().any(|(_, leg)| !table.areas.contains_key(&leg.area));
    let volumes: Vec<String> = table.volumes.values().filter(lost).map(|row| row.name.to_string()).collect();
    if volumes.is_empty() {
        return Ok(());
    }
    let text =
        format!("copies of {} lie in areas that are not in the table: what goes with the server is not known", listed(volumes));
    Err(conflict(text, "start the servers that have those areas, so that they are registered again; see `sublet manager check`"))
}

/// Plans it. The slices of the server are to be wiped wherever they turn up again; nothing that they hold is ever believed.
///
/// # Errors
/// If the server answers, has borrowed something, or a volume that it lends to is mounted or being changed.
pub fn plan(table: &Table, text: &str, is_up: bool, context: &mut Context<'_>) -> Result<Change, Refusal> {
    let row = table.server(text)?;
    if is_up {
        let hint = format!("take its areas back with `sublet reclaim`, then `sublet server leave {}`", row.name);
        return Err(conflict(format!("server '{}' answers or was heard of a moment ago: it is not lost", row.name), hint));
    }
    let borrowed: Vec<String> =
        table.volumes.values().filter(|volume| volume.borrower == Some(row.id)).map(|v| v.name.to_string()).collect();
    if !borrowed.is_empty() {
        let hint = "hand them to another server first: `sublet transfer NAME --to SERVER --force`, or return them";
        return Err(conflict(format!("server '{}' has borrowed {}", row.name, listed(borrowed)), hint));
    }
    check_areas(table)?;
    let mut change = Change::new();
    for volume in touched(table, row.id) {
        let is_busy = volume.task.is_some_and(|id| table.tasks.get(&id).is_some_and(|task| task.is_running()));
        if is_busy {
            return Err(conflict(format!("volume '{}' is being changed", volume.name), "wait for it, see `sublet task ls`"));
        }
        if volume.lease.is_some() {
            let hint = format!(
                "give it another copy first (`sublet volume replace {0} --lost {1}`), or unmount it: `sublet unmount {0} --force`",
                volume.name, row.name
            );
            return Err(conflict(format!("volume '{}' is mounted and has a copy at '{}'", volume.name, row.name), hint));
        }
        forsake(table, volume, row, context, &mut change);
    }
    for area in table.areas_of(row.id) {
        change.delete(Key::Area(area.id));
        change.event(area.name.as_str(), format!("gone for good with {}", row.name));
    }
    change.put(Row::Server(ServerRow { left: true, ..row.clone() }));
    change
        .event(row.name.as_str(), "forgotten: it is gone for good; if its disks turn up again, they are wiped and not believed");
    Ok(change)
}

/// One volume goes on without the copies of a server, or is frozen if bytes went with it.
fn forsake(table: &Table, volume: &VolumeRow, server: &ServerRow, context: &mut Context<'_>, change: &mut Change) {
    let (lost_bytes, _) = goes(table, volume, server.id);
    let epoch = volume.next_epoch((context.random)());
    for wipe in layout::wipe_rows(volume, epoch, true) {
        if let Row::Wipe(row) = wipe
            && is_lost(table, row.area, server.id)
        {
            // The volume does not wait for a wipe that may never come.
            change.put(Row::Wipe(WipeRow { replaced: true, ..row }));
        }
    }
    // Only the wipes have this epoch so far: it is never given to anybody else.
    let mut next = VolumeRow { epoch_floor: volume.epoch_floor.max(epoch.number), ..volume.clone() };
    if next.work.background.take().is_some() {
        // Its coordinator is fenced (F5).
        next.epoch = epoch;
    }
    for segment in &mut next.segments {
        let before = segment.legs.len();
        segment.legs.retain(|leg| !is_lost(table, leg.area, server.id));
        if segment.legs.len() == before {
            continue;
        }
        next.copies = next.copies.max(u32::try_from(before).unwrap_or_default());
        // S3: lenders keep their missed maps by the number of the leg, and the legs behind the lost one have another number now.
        // Such a map would tell of another copy, so a stale one is copied whole.
        segment.legs.iter_mut().for_each(|leg| leg.stale_since = None);
        if segment.legs.iter().any(|leg| leg.in_sync) {
            segment.generation = segment.issue((context.random)());
            segment.pending = None;
            segment.last = None;
        }
    }
    if lost_bytes > 0 {
        let reason = format!("{} of it were lost with {}", ByteSize(lost_bytes), server.name);
        next = next.frozen(reason.clone(), FrozenUntil::Decided);
        change.event(volume.name.as_str(), format!("frozen: {reason}"));
    } else {
        change.event(volume.name.as_str(), format!("goes on without its copy at {}, which is gone for good", server.name));
    }
    change.put(Row::Volume(Box::new(next)));
}
