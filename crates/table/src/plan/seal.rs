//! The borrower of a sealed volume has wrapped its key anew.

use sublet_api::Refusal;
use sublet_api::mount::SetSeal;

use super::{check_borrower, conflict};
use crate::change::Change;
use crate::records::{Row, VolumeRow};
use crate::table::Table;

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
    change.put(Row::Volume(Box::new(VolumeRow { seal: Some(command.to.clone()), ..row.clone() })));
    Ok(change)
}
