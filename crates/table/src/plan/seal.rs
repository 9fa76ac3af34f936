//! The borrower of a sealed volume has wrapped its key anew.

use sublet_api::Refusal;
use sublet_api::mount::{MountingInformation, SetSeal};
use sublet_api::request::TaskOutcome;
use sublet_types::VolumeId;

use super::{check_borrower, conflict};
use crate::change::Change;
use crate::records::{Row, TaskRow, VolumeRow};
use crate::table::Table;

/// What was told of mounts has the key header too: it goes with the encryption, or with the header.
pub fn forget(table: &Table, volume: VolumeId, change: &mut Change) {
    for task in table.tasks.values().filter(|task| task.volume == Some(volume)) {
        let Some(TaskOutcome::Mounted { mounting }) = &task.outcome else { continue };
        if mounting.seal.is_some() {
            let mounting = Box::new(MountingInformation { seal: None, ..(**mounting).clone() });
            let outcome = Some(TaskOutcome::Mounted { mounting });
            change.put(Row::Task(Box::new(TaskRow { outcome, ..task.clone() })));
        }
    }
}

/// Enters the new key header. The key itself is the same: nothing that is encrypted with it changes.
///
/// # Errors
/// `Conflict` if the volume is not sealed, or the table has another header than the borrower has seen; `Forbidden` for others than
/// the borrower.
pub fn plan(table: &Table, text: &str, command: &SetSeal) -> Result<Change, Refusal> {
    let row = table.volume(text)?;
    check_borrower(table, row, command.server)?;
    if !row.sealed {
        return Err(conflict(format!("volume '{}' is not encrypted", row.name), "`sublet borrow --encrypt` makes one that is"));
    }
    if row.seal.as_ref() == Some(&command.to) {
        return Ok(Change::new());
    }
    if row.seal != command.from {
        let text = format!("the key of volume '{}' has been wrapped anew meanwhile", row.name);
        return Err(conflict(text, "unmount and mount it, and try again"));
    }
    let mut change = Change::new();
    change.event(row.name.as_str(), "its key was wrapped anew".to_owned());
    forget(table, row.id, &mut change);
    change.put(Row::Volume(Box::new(VolumeRow { seal: Some(command.to.clone()), ..row.clone() })));
    Ok(change)
}
