//! How much a server may borrow.

use sublet_api::request::SetLimits;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{ByteSize, ServerId};

use crate::change::Change;
use crate::records::{Row, ServerRow};
use crate::table::Table;

fn named(limits: &SetLimits) -> String {
    let bytes = limits.bytes_max.map_or_else(|| "any number of bytes".to_owned(), |bytes| ByteSize(bytes).to_string());
    let volumes = limits.volumes_max.map_or_else(|| "any number of volumes".to_owned(), |count| format!("{count} volumes"));
    format!("may borrow {bytes} and {volumes} at most")
}

/// Sets the limits of a server. What it has borrowed already stays lent.
///
/// # Errors
/// If it does not exist.
pub fn plan(table: &Table, text: &str, limits: &SetLimits) -> Result<Change, Refusal> {
    let row = table.server(text)?;
    let fresh = ServerRow { bytes_max: limits.bytes_max, volumes_max: limits.volumes_max, ..row.clone() };
    let mut change = Change::new();
    if fresh != *row {
        change.event(row.name.as_str(), named(limits));
        change.put(Row::Server(fresh));
    }
    Ok(change)
}

/// Whether a server may borrow so many bytes more, in one more volume.
///
/// # Errors
/// `Conflict` with what it has and what it may have.
pub fn check(table: &Table, server: ServerId, bytes: u64) -> Result<(), Refusal> {
    let Some(row) = table.servers.get(&server) else { return Ok(()) };
    let (volumes, borrowed) = table.borrowed_by(server);
    let hint = || format!("return something; or an administrator raises it: `sublet limits {}`", row.name);
    if let Some(max) = row.volumes_max.filter(|max| volumes as u64 + 1 > u64::from(*max)) {
        let text = format!("{} has borrowed {volumes} volumes, and may borrow {max} at most", row.name);
        return Err(Refusal::new(ErrorKind::Conflict, text).hint(hint()));
    }
    if let Some(max) = row.bytes_max.filter(|max| borrowed.saturating_add(bytes) > *max) {
        let text = format!(
            "{} has borrowed {} of the {} that it may borrow at most; this would be {} more",
            row.name,
            ByteSize(borrowed),
            ByteSize(max),
            ByteSize(bytes)
        );
        return Err(Refusal::new(ErrorKind::Conflict, text).hint(hint()));
    }
    Ok(())
}
