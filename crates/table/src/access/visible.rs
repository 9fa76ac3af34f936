//! What a server sees of the table: what is its own, what may be borrowed, and where its own volumes lie.

use std::collections::BTreeSet;

use sublet_api::request::Response;
use sublet_types::{AreaId, Name, ServerId, TaskId, VolumeId};

use super::allowed::holder;
use crate::records::VolumeRow;
use crate::table::Table;

/// Whether a server may see a volume: its own, one that it coordinates, and a free one, which it could borrow.
pub(super) fn is_visible(table: &Table, me: ServerId, row: &VolumeRow) -> bool {
    let lends = row.legs().any(|(_, leg)| table.lender(leg.area) == Some(me));
    row.borrower == Some(me) || holder(row) == Some(me) || (row.defined && row.borrower.is_none()) || lends
}

/// The part of the table that a server sees.
#[derive(Debug)]
pub struct Visible {
    me: ServerId,
    volumes: BTreeSet<VolumeId>,
    areas: BTreeSet<AreaId>,
    servers: BTreeSet<ServerId>,
    subjects: BTreeSet<String>,
    /// Tasks are seen by who has the volume, not by who lends it: whoever knows a mount's id gets what it answered.
    tasks: BTreeSet<TaskId>,
    known_tasks: BTreeSet<TaskId>,
    owned: BTreeSet<String>,
    names: BTreeSet<Name>,
}

impl Visible {
    /// For this server.
    pub fn of(table: &Table, me: ServerId) -> Self {
        let volumes: Vec<&VolumeRow> = table.volumes.values().filter(|row| is_visible(table, me, row)).collect();
        let mut areas: BTreeSet<AreaId> = table.areas_of(me).map(|row| row.id).collect();
        areas.extend(volumes.iter().filter(|row| row.borrower == Some(me)).flat_map(|row| row.legs()).map(|(_, leg)| leg.area));
        let mut servers: BTreeSet<ServerId> = areas.iter().filter_map(|area| table.lender(*area)).collect();
        servers.insert(me);
        let mut subjects: BTreeSet<String> = volumes.iter().map(|row| row.name.to_string()).collect();
        subjects.extend(table.areas_of(me).map(|row| row.name.to_string()));
        subjects.insert(table.server_name(me));
        let is_mine =
            |volume: Option<VolumeId>| volume.and_then(|id| table.volumes.get(&id)).is_some_and(|row| row.borrower == Some(me));
        let tasks = table.tasks.values().filter(|task| is_mine(task.volume)).map(|task| task.id).collect();
        let owned = volumes.iter().filter(|row| row.borrower == Some(me)).map(|row| row.name.to_string()).collect();
        let known_tasks = table.tasks.keys().copied().collect();
        let names = volumes.iter().map(|row| row.name.clone()).collect();
        Self {
            me,
            volumes: volumes.iter().map(|row| row.id).collect(),
            areas,
            servers,
            subjects,
            tasks,
            known_tasks,
            owned,
            names,
        }
    }
}

/// Takes away what a server must not see. A lender learns that its areas are used, and how much of them, by volumes that it
/// can name: it has to, to know what a reclaim waits for.
pub fn restrict(response: &mut Response, visible: &Visible) {
    let hide_slices = |slices: &mut Vec<sublet_api::view::SliceView>| {
        slices.retain(|slice| visible.names.contains(&slice.volume));
    };
    match response {
        Response::Table(view) => {
            view.volumes.retain(|volume| visible.volumes.contains(&volume.id));
            view.areas.retain(|area| visible.areas.contains(&area.id));
            view.servers.retain(|server| visible.servers.contains(&server.id));
            view.areas.iter_mut().filter(|area| area.server_id != visible.me).for_each(|area| hide_slices(&mut area.slices));
        }
        Response::Servers(servers) => servers.retain(|server| visible.servers.contains(&server.id)),
        Response::Areas(areas) => {
            areas.retain(|area| visible.areas.contains(&area.id));
            areas.iter_mut().filter(|area| area.server_id != visible.me).for_each(|area| hide_slices(&mut area.slices));
        }
        Response::Volumes(volumes) => volumes.retain(|volume| visible.volumes.contains(&volume.id)),
        Response::Tasks(tasks) => tasks.retain(|task| {
            // Work that follows from the state of things has no row, and no secret.
            let has_row = visible.known_tasks.contains(&task.id);
            if has_row { visible.tasks.contains(&task.id) } else { visible.owned.contains(&task.subject) }
        }),
        Response::Events(events) => events.retain(|event| visible.subjects.contains(&event.subject)),
        _ => {}
    }
}
