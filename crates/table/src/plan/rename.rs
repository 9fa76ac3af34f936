//! Renames: names are for people, ids stay.

use sublet_api::{ErrorKind, Refusal};
use sublet_types::Name;

use crate::change::Change;
use crate::records::{AreaRow, Row, ServerRow, VolumeRow};
use crate::table::Table;

fn taken(what: &str, name: &Name) -> Refusal {
    Refusal::new(ErrorKind::AlreadyExists, format!("there is {what} '{name}' already")).hint("choose another name")
}

/// Renames a server.
///
/// # Errors
/// If it does not exist or the name is taken.
pub fn server(table: &Table, text: &str, name: &Name) -> Result<Change, Refusal> {
    let row = table.server(text)?;
    if table.server_name_taken(name, row.id) {
        return Err(taken("a server", name));
    }
    let mut change = Change::new();
    change.event(name.as_str(), format!("server renamed from {}", row.name));
    change.put(Row::Server(ServerRow { name: name.clone(), ..row.clone() }));
    Ok(change)
}

/// Renames an area. Its label learns the name when its lender answers.
///
/// # Errors
/// If it does not exist or the name is taken.
pub fn area(table: &Table, text: &str, name: &Name) -> Result<Change, Refusal> {
    let row = table.area(text)?;
    if table.area_name_taken(name, Some(row.id)) {
        return Err(taken("an area", name));
    }
    let mut change = Change::new();
    change.event(name.as_str(), format!("area renamed from {}", row.name));
    change.put(Row::Area(AreaRow { name: name.clone(), ..row.clone() }));
    Ok(change)
}

/// Renames a volume. Its labels learn the name with the next lease.
///
/// # Errors
/// If it does not exist or the name is taken.
pub fn volume(table: &Table, text: &str, name: &Name) -> Result<Change, Refusal> {
    let row = table.volume(text)?;
    if table.volumes.values().any(|other| other.name == *name && other.id != row.id) {
        return Err(taken("a volume", name));
    }
    let mut change = Change::new();
    change.event(name.as_str(), format!("volume renamed from {}", row.name));
    change.put(Row::Volume(Box::new(VolumeRow { name: name.clone(), ..row.clone() })));
    Ok(change)
}
