//! Registration of servers, and names for areas.

use sublet_api::request::CheckArea;
use sublet_api::server::Register;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{Name, ServerId};

use super::{check_left, check_member, conflict};
use crate::change::Change;
use crate::records::{ROW_VERSION, Row, ServerRow};
use crate::table::Table;

/// Plans a registration: a new server, or the present facts of a known one.
///
/// # Errors
/// If it belongs to another pool, or has left for good.
pub fn plan(table: &Table, register: &Register) -> Result<Change, Refusal> {
    let pool = table.pool.as_ref().map(|row| row.pool);
    if let Some(theirs) = register.pool.filter(|theirs| Some(*theirs) != pool) {
        let text = format!("server '{}' belongs to pool {}, this manager keeps another one", register.name, theirs.short());
        return Err(conflict(text, "give it its own manager's address, or start it with an empty data folder"));
    }
    check_left(table, register.server)?;
    let mut change = Change::new();
    let known = table.servers.get(&register.server);
    let row = match known {
        Some(row) => ServerRow {
            zone: register.zone.clone(),
            addresses: register.addresses.clone(),
            software: register.version.clone(),
            ..row.clone()
        },
        None => {
            let name = Table::free_name(&register.name, |name| table.server_name_taken(name, register.server));
            change.event(name.as_str(), "server registered");
            ServerRow {
                version: ROW_VERSION,
                id: register.server,
                name,
                zone: register.zone.clone(),
                addresses: register.addresses.clone(),
                software: register.version.clone(),
                left: false,
                bytes_max: None,
                volumes_max: None,
            }
        }
    };
    if let Some(old) = known.filter(|old| old.addresses != row.addresses) {
        let addresses: Vec<String> = row.addresses.iter().map(ToString::to_string).collect();
        change.event(old.name.as_str(), format!("its address is {} now", addresses.join(", ")));
    }
    if known != Some(&row) {
        change.put(Row::Server(row));
    }
    Ok(change)
}

/// Which name may a new area have?
///
/// # Errors
/// If the wished one is taken.
pub fn area_name(table: &Table, server: ServerId, check: &CheckArea) -> Result<Name, Refusal> {
    check_member(table, server)?;
    match &check.name {
        Some(name) if table.area_name_taken(name, check.area) => {
            let owner = table.area(name.as_str()).map(|area| table.server_name(area.server)).unwrap_or_default();
            let text = format!("there is an area '{name}' already, of {owner}");
            Err(Refusal::new(ErrorKind::AlreadyExists, text).hint("choose another name with --name"))
        }
        Some(name) => Ok(name.clone()),
        None => {
            let stem: String = table.server_name(server).chars().take(50).collect();
            let names = (1u32..).filter_map(|n| format!("{stem}-{n}").parse().ok());
            let free = names.into_iter().find(|name| !table.area_name_taken(name, None));
            free.ok_or_else(|| conflict("no name is left for an area", "give one with --name"))
        }
    }
}
