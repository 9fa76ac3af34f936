//! What the reading commands show. Secrets appear nowhere but in the mounting information.

use std::collections::BTreeMap;

use sublet_api::mount::{MountLeg, MountSegment, MountingInformation};
use sublet_api::view::{
    AreaView, EventView, FindingsView, LegView, SegmentView, ServerState, ServerView, SliceView, TaskView, VolumeView,
};
use sublet_types::{AreaId, Epoch, LeaseSecret, Name, ServerId};

use crate::records::{AreaRow, EventRow, LeaseState, SegmentRow, ServerRow, TaskRow, TaskState, VolumeRow};
use crate::table::Table;

/// What is known of a server by hearing from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Whether it polls.
    pub state: ServerState,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// The placeholder for the name of something whose row cannot be read.
fn unreadable(prefix: &str, id: &str) -> Option<Name> {
    format!("{prefix}-{id}").parse().ok()
}

fn area_name(table: &Table, area: AreaId) -> Option<Name> {
    table.areas.get(&area).map(|row| row.name.clone()).or_else(|| unreadable("area", &area.short()))
}

fn server_name(table: &Table, server: Option<ServerId>) -> Option<Name> {
    let server = server?;
    table.servers.get(&server).map(|row| row.name.clone()).or_else(|| unreadable("server", &server.short()))
}

/// One volume.
pub fn volume(table: &Table, row: &VolumeRow) -> VolumeView {
    let mut areas: Vec<Name> = Vec::new();
    for name in row.legs().filter_map(|(_, leg)| area_name(table, leg.area)) {
        if !areas.contains(&name) {
            areas.push(name);
        }
    }
    VolumeView {
        id: row.id,
        name: row.name.clone(),
        way: row.way,
        size: row.announced(),
        sealed: row.sealed,
        areas,
        defined: row.defined,
        borrower: server_name(table, row.borrower),
        borrower_id: row.borrower,
        status: row.status(),
        path: row.path.state,
        path_since_ms: row.path.since_ms,
        path_reason: row.path.reason.clone(),
        epoch: row.epoch,
        state: volume_state(table, row),
        segments: row.segments.iter().map(|segment| segment_view(table, segment)).collect(),
        work: Vec::new(),
        coordinator: server_name(table, row.work.background.as_ref().map(|background| background.coordinator)),
        findings: FindingsView {
            repaired: row.work.findings.repaired,
            unrepairable: row.work.findings.unrepairable,
            differed: row.work.findings.differed,
        },
        scrub_every_s: crate::plan::scrub::every_s(row),
        scrubbed_ms: row.work.scrubbed_ms,
    }
}

fn volume_state(table: &Table, row: &VolumeRow) -> String {
    if let Some(reason) = &row.frozen {
        return format!("frozen: {reason}");
    }
    if let Some(task) = row.task {
        let word = table.tasks.get(&task).map_or("task", |task| task.command.word());
        let word = match word {
            "create" | "borrow" => "preparing",
            "mount" => "mounting",
            "unmount" => "unmounting",
            "return" => "returning",
            "transfer" => "transferring",
            "set-way" => "changing way",
            other => other,
        };
        return word.to_owned();
    }
    if table.wipes_of(row.id).next().is_some() {
        return "to be wiped".to_owned();
    }
    if row.lease.is_none() && !row.is_fenced() {
        let lenders = row.unfenced_legs().map(|leg| table.lender_name(leg.area));
        return format!("not fenced yet at {}", crate::plan::listed(lenders));
    }
    "ready".to_owned()
}

fn segment_view(table: &Table, row: &SegmentRow) -> SegmentView {
    let leg = |leg: &crate::records::LegRow| {
        Some(LegView {
            slice: leg.slice,
            area: area_name(table, leg.area)?,
            server: server_name(table, table.lender(leg.area)).or_else(|| unreadable("server", "unknown"))?,
            offset: leg.offset,
            length: leg.length,
            state: if leg.in_sync { "in-sync" } else { "stale" }.to_owned(),
        })
    };
    SegmentView { length: row.length, generation: row.generation, legs: row.legs.iter().filter_map(leg).collect() }
}

/// The volumes, by name.
pub fn volumes(table: &Table) -> Vec<VolumeView> {
    let mut views: Vec<VolumeView> = table.volumes.values().map(|row| volume(table, row)).collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

/// One area.
pub fn area(table: &Table, row: &AreaRow, heard: &BTreeMap<ServerId, Heard>) -> AreaView {
    let lent = table
        .volumes_in(row.id)
        .flat_map(|volume| volume.legs().map(move |(_, leg)| (volume, leg)))
        .filter(|(_, leg)| leg.area == row.id);
    let mut slices: Vec<SliceView> = lent
        .filter(|(_, leg)| !table.wipes.contains_key(&leg.slice))
        .map(|(volume, leg)| SliceView {
            id: leg.slice,
            offset: leg.offset,
            length: leg.length,
            volume: volume.name.clone(),
            state: if volume.borrower.is_some() { "lent" } else { "free" }.to_owned(),
        })
        .collect();
    slices.extend(table.wipes.values().filter(|wipe| wipe.area == row.id).map(|wipe| SliceView {
        id: wipe.slice,
        offset: wipe.offset,
        length: wipe.length,
        volume: wipe.name.clone(),
        state: "to be wiped".to_owned(),
    }));
    slices.extend(row.strangers.iter().filter_map(|stranger| {
        let volume = unreadable("volume", &stranger.volume.short())?;
        Some(SliceView {
            id: stranger.slice,
            offset: stranger.offset,
            length: stranger.length,
            volume,
            state: "unknown to the table".to_owned(),
        })
    }));
    slices.sort_by_key(|slice| (slice.offset, slice.id));
    let free = table.free_stretches(row.id);
    let is_lost = heard.get(&row.server).is_none_or(|heard| heard.state == ServerState::Lost);
    let state = match &row.offline {
        _ if row.reclaiming => "being reclaimed".to_owned(),
        _ if is_lost => "its server is lost".to_owned(),
        Some(reason) => format!("offline: {reason}"),
        None => row.quarantined.as_ref().map_or_else(|| "online".to_owned(), |why| format!("quarantined: {why}")),
    };
    AreaView {
        id: row.id,
        name: row.name.clone(),
        server: server_name(table, Some(row.server)).unwrap_or_else(|| row.name.clone()),
        server_id: row.server,
        place: row.place.clone(),
        capacity: row.capacity,
        free: free.iter().map(|stretch| stretch.length).sum(),
        free_stretch: free.iter().map(|stretch| stretch.length).max().unwrap_or(0),
        sparse: row.sparse,
        state,
        slices,
    }
}

/// The areas, by server and name.
pub fn areas(table: &Table, heard: &BTreeMap<ServerId, Heard>) -> Vec<AreaView> {
    let mut views: Vec<AreaView> = table.areas.values().map(|row| area(table, row, heard)).collect();
    views.sort_by(|a, b| (&a.server, &a.name).cmp(&(&b.server, &b.name)));
    views
}

/// One server.
pub fn server(table: &Table, row: &ServerRow, heard: Option<Heard>) -> ServerView {
    let mut borrows: Vec<Name> = table.volumes.values().filter(|v| v.borrower == Some(row.id)).map(|v| v.name.clone()).collect();
    borrows.sort();
    let free = |area: &AreaRow| table.free_stretches(area.id).iter().map(|stretch| stretch.length).sum::<u64>();
    ServerView {
        id: row.id,
        name: row.name.clone(),
        zone: row.zone.clone(),
        addresses: row.addresses.clone(),
        state: heard.map_or(ServerState::Lost, |heard| heard.state),
        since_ms: heard.map_or(0, |heard| heard.since_ms),
        version: row.software.clone(),
        areas: table.areas_of(row.id).count(),
        capacity: table.areas_of(row.id).map(|area| area.capacity).sum(),
        free: table.areas_of(row.id).map(free).sum(),
        borrows,
        borrowed: table.borrowed_by(row.id).1,
        bytes_max: row.bytes_max,
        volumes_max: row.volumes_max,
    }
}

/// The members, by name.
pub fn servers(table: &Table, heard: &BTreeMap<ServerId, Heard>) -> Vec<ServerView> {
    let mut views: Vec<ServerView> = table.members().map(|row| server(table, row, heard.get(&row.id).copied())).collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

/// One task; `waits` and `done` are what is known of a running one.
pub fn task(row: &TaskRow, waits: &str, done: u64) -> TaskView {
    let (state, reason) = match row.state {
        TaskState::Running if row.is_paused => ("paused", String::new()),
        TaskState::Running if waits.is_empty() => ("running", String::new()),
        TaskState::Running => ("waiting", waits.to_owned()),
        TaskState::Done => ("done", row.reason.clone()),
        TaskState::Cancelled => ("cancelled", row.reason.clone()),
        TaskState::Failed => ("failed", row.reason.clone()),
    };
    TaskView {
        id: row.id,
        kind: row.command.word().to_owned(),
        subject: row.subject.clone(),
        step: row.step.text().to_owned(),
        state: state.to_owned(),
        reason,
        done: if row.state == TaskState::Done && row.reason.is_empty() { row.total } else { done },
        total: row.total,
        rate_bytes_per_s: 0,
        rate_max: row.rate_max,
        started_ms: row.started_ms,
        ended_ms: row.ended_ms,
    }
}

/// One event.
pub fn event(row: &EventRow) -> EventView {
    EventView { number: row.number, at_ms: row.at_ms, subject: row.subject.clone(), text: row.text.clone() }
}

/// The segments of a volume for whoever holds its lease, in the order of the volume.
pub fn mount_segments(table: &Table, row: &VolumeRow) -> Option<Vec<MountSegment>> {
    let segment = |segment: &SegmentRow| {
        let legs: Option<Vec<MountLeg>> = segment
            .legs
            .iter()
            .map(|leg| {
                let server = table.lender(leg.area)?;
                Some(MountLeg {
                    slice: leg.slice,
                    area: leg.area,
                    area_name: area_name(table, leg.area)?,
                    server,
                    server_name: server_name(table, Some(server))?,
                    addresses: table.servers.get(&server).map(|row| row.addresses.clone()).unwrap_or_default(),
                    offset: leg.offset,
                    in_sync: leg.in_sync,
                    stale_since: leg.stale_since,
                })
            })
            .collect();
        Some(MountSegment { length: segment.length, generation: segment.generation, legs: legs? })
    };
    row.segments.iter().map(segment).collect()
}

/// The mounting information of a mounted volume, with the secret (seed: FIG. 5B).
pub fn mounting(table: &Table, row: &VolumeRow) -> Option<MountingInformation> {
    let lease = row.lease.as_ref().filter(|lease| lease.state == LeaseState::Active)?;
    let holder =
        Holder { server: row.borrower?, epoch: lease.epoch, secret: lease.secret, read_only: lease.read_only, status: 1 };
    information(table, row, &holder)
}

/// What a coordinator needs: as for a mount, but the volume is not mounted (F5).
pub fn coordinating(table: &Table, row: &VolumeRow) -> Option<MountingInformation> {
    let background = row.work.background.as_ref()?;
    let (server, epoch, secret) = (background.coordinator, background.epoch, background.secret);
    information(table, row, &Holder { server, epoch, secret, read_only: false, status: 0 })
}

struct Holder {
    server: ServerId,
    epoch: Epoch,
    secret: LeaseSecret,
    read_only: bool,
    status: u8,
}

fn information(table: &Table, row: &VolumeRow, holder: &Holder) -> Option<MountingInformation> {
    let pool = table.pool.as_ref()?;
    Some(MountingInformation {
        version: if row.sealed { 2 } else { 1 },
        pool: pool.pool,
        manager: pool.manager,
        volume: row.id,
        name: row.name.clone(),
        way: row.way,
        size: row.size,
        sealed: row.sealed,
        seal: row.seal.clone(),
        borrower: holder.server,
        borrower_name: server_name(table, Some(holder.server))?,
        status: holder.status,
        read_only: holder.read_only,
        epoch: holder.epoch,
        secret: Some(holder.secret),
        segments: mount_segments(table, row)?,
    })
}
