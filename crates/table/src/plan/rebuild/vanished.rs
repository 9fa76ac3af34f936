//! Volumes that the table has and no label: they were returned after the copy of the table was made that the manager was
//! started on (L5).

use std::collections::BTreeSet;

use sublet_api::server::AreaReport;
use sublet_types::{AreaId, ServerId, SliceId};

use crate::change::Change;
use crate::records::{FrozenUntil, Key, Row, VolumeRow};
use crate::table::Table;

/// Plans what becomes of them: frozen, with the command that takes them away, and gone while the table is reconciled. A row
/// holds no bytes; should a label show one of its slices after all, it is taken over from there.
///
/// `loaded` are the slices that the table had when the manager started. A slice that it gave out itself may be younger than a
/// report that is still on its way.
pub fn plan(table: &Table, reports: &[(ServerId, &AreaReport)], loaded: &BTreeSet<SliceId>) -> Change {
    let mut change = Change::new();
    let session = table.pool.as_ref().and_then(|row| row.rebuild.as_ref());
    let is_trusted = |area: AreaId| table.areas.get(&area).is_some_and(|row| row.quarantined.is_none());
    let trusted = reports.iter().map(|(_, report)| *report);
    let trusted: Vec<&AreaReport> = trusted.filter(|report| report.quarantined.is_none() && is_trusted(report.area)).collect();
    let told: BTreeSet<AreaId> = trusted.iter().map(|report| report.area).collect();
    let held: BTreeSet<SliceId> = trusted.iter().flat_map(|report| &report.slices).map(|slice| slice.facts.slice).collect();
    let is_gone = |row: &&VolumeRow| {
        let mut legs = row.legs().map(|(_, leg)| leg).peekable();
        let has_legs = legs.peek().is_some();
        let is_away = |slice: SliceId| loaded.contains(&slice) && !held.contains(&slice);
        has_legs && row.task.is_none() && legs.all(|leg| told.contains(&leg.area) && !leg.fresh && is_away(leg.slice))
    };
    for row in table.volumes.values().filter(is_gone) {
        match session {
            Some(session) if session.reconcile => {
                change.delete(Key::Volume(row.id));
                change.event(row.name.as_str(), "no label has it any more: it was returned after this table was copied");
            }
            _ if row.frozen.is_none() => {
                let reason = "no label has it any more; it may have been returned after this table was copied: \
                              `sublet manager rebuild --reconcile` takes it away";
                change.event(row.name.as_str(), format!("frozen: {reason}"));
                change.put(Row::Volume(Box::new(row.frozen(reason.to_owned(), FrozenUntil::Reconciled))));
            }
            _ => {}
        }
    }
    change
}
