//! Volumes that the table has and no label: they were returned after the copy of the table was made that the manager was
//! started on (L5).

use std::collections::{BTreeMap, BTreeSet};

use sublet_api::server::AreaReport;
use sublet_types::{AreaId, ServerId, SliceId};

use super::super::{Context, layout};
use crate::change::Change;
use crate::records::{FrozenUntil, Key, LegRow, Row, VolumeRow};
use crate::table::Table;

/// Plans what becomes of them: frozen, with the command that takes them away, and gone while the table is reconciled. A row
/// holds no bytes; should a label show one of its slices after all, it is taken over from there.
///
/// `loaded` are the slices that the table had when the manager started. A slice that it gave out itself may be younger than a
/// report that is still on its way; and a copy that it had made for a volume that was gone by then has nothing of it.
pub fn plan(table: &Table, reports: &[(ServerId, &AreaReport)], loaded: &BTreeSet<SliceId>, context: &mut Context<'_>) -> Change {
    let mut change = Change::new();
    let session = table.pool.as_ref().and_then(|row| row.rebuild.as_ref());
    let is_trusted = |area: AreaId| table.areas.get(&area).is_some_and(|row| row.quarantined.is_none());
    let trusted = reports.iter().map(|(_, report)| *report);
    let trusted = trusted.filter(|report| report.quarantined.is_none() && is_trusted(report.area));
    let labels: BTreeMap<AreaId, &AreaReport> = trusted.map(|report| (report.area, report)).collect();
    let is_own = |leg: &LegRow| loaded.contains(&leg.slice) && !leg.fresh;
    let is_away = |leg: &LegRow| {
        let label = labels.get(&leg.area);
        label.is_some_and(|label| label.slices.iter().all(|slice| slice.facts.slice != leg.slice))
    };
    let is_gone = |row: &&VolumeRow| {
        let (own, new): (Vec<&LegRow>, Vec<&LegRow>) = row.legs().map(|(_, leg)| leg).partition(|leg| is_own(leg));
        row.task.is_none() && !own.is_empty() && own.into_iter().all(is_away) && new.into_iter().all(|leg| !leg.in_sync)
    };
    for row in table.volumes.values().filter(is_gone) {
        match session {
            Some(session) if session.reconcile => {
                change.delete(Key::Volume(row.id));
                change.event(row.name.as_str(), "no label has it any more: it was returned after this table was copied");
                let epoch = row.next_epoch((context.random)());
                for (_, leg) in row.legs().filter(|(_, leg)| !is_own(leg)) {
                    change.put(Row::Wipe(layout::wipe_row(row, leg, epoch, true)));
                }
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
