//! `server leave`.

use sublet_api::Refusal;

use super::{conflict, listed};
use crate::change::Change;
use crate::records::{Row, ServerRow};
use crate::table::Table;

/// Plans that a server leaves for good.
///
/// # Errors
/// If it lends or borrows anything.
pub fn plan(table: &Table, text: &str) -> Result<Change, Refusal> {
    let row = table.server(text)?;
    let borrowed: Vec<String> =
        table.volumes.values().filter(|volume| volume.borrower == Some(row.id)).map(|v| v.name.to_string()).collect();
    if !borrowed.is_empty() {
        return Err(conflict(format!("{} has borrowed {}", row.name, listed(borrowed)), "have it returned or transferred first"));
    }
    let lent: Vec<String> = table.areas_of(row.id).map(|area| area.name.to_string()).collect();
    if !lent.is_empty() {
        return Err(conflict(format!("{} lends {}", row.name, listed(lent)), "reclaim its areas first: `sublet reclaim AREA`"));
    }
    let mut change = Change::new();
    change.event(row.name.as_str(), "left the pool");
    change.put(Row::Server(ServerRow { left: true, ..row.clone() }));
    Ok(change)
}
