//! People: who may use the command line, and as what.

use sublet_api::access::{AddPerson, ChangePerson, PersonView, Role};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{Name, PersonId, TokenId};

use crate::change::Change;
use crate::plan::{Context, conflict};
use crate::records::{Key, PersonRow, ROW_VERSION, Row};
use crate::table::{Table, not_found};

/// A person as people see them.
pub fn view(row: &PersonRow) -> PersonView {
    PersonView { id: row.id, name: row.name.clone(), role: row.role, entered_ms: row.entered_ms }
}

/// All of them, by name.
pub fn views(table: &Table) -> Vec<PersonView> {
    let mut views: Vec<PersonView> = table.people.values().map(view).collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

impl Table {
    /// A person by name or id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn person(&self, text: &str) -> Result<&PersonRow, Refusal> {
        let by_name = self.people.values().find(|row| row.name.as_str() == text);
        let found = by_name.or_else(|| text.parse().ok().and_then(|id| self.people.get(&id)));
        found.ok_or_else(|| not_found("person", text, "see `sublet person ls`"))
    }

    /// Whether somebody has logged in who may do everything.
    pub fn has_administrator(&self) -> bool {
        self.people.values().any(|row| row.role == Role::Administrator && row.entered_ms.is_some())
    }
}

/// A new person, who has no certificate yet.
///
/// # Errors
/// If the name is taken.
pub fn add(table: &Table, command: &AddPerson, context: &mut Context<'_>) -> Result<(Change, PersonRow), Refusal> {
    if table.people.values().any(|row| row.name == command.name) {
        let text = format!("there is a person called '{}' already", command.name);
        return Err(Refusal::new(ErrorKind::AlreadyExists, text).hint("choose another name"));
    }
    let row = PersonRow {
        version: ROW_VERSION,
        id: PersonId::from_u128((context.random)()),
        name: command.name.clone(),
        role: command.role,
        certified_from_ms: 0,
        entered_ms: None,
    };
    let mut change = Change::new();
    change.event(row.name.as_str(), format!("may come in as {}", row.role));
    change.put(Row::Person(row.clone()));
    Ok((change, row))
}

/// Whose link is made first: an administrator's if there is one, preferably of one who never came in; else a new one's.
pub fn first_administrator(table: &Table, context: &mut Context<'_>) -> (Change, PersonRow) {
    let mut administrators: Vec<&PersonRow> = table.people.values().filter(|row| row.role == Role::Administrator).collect();
    administrators.sort_by_key(|row| (row.entered_ms, row.name.clone()));
    let waiting = administrators.first().copied();
    if let Some(row) = waiting {
        return (Change::new(), row.clone());
    }
    let names = ["administrator".to_owned()].into_iter().chain((2u32..).map(|n| format!("administrator-{n}")));
    let free = names.filter_map(|name| name.parse::<Name>().ok());
    for name in free {
        if let Ok(added) = add(table, &AddPerson { name, role: Role::Administrator }, context) {
            return added;
        }
    }
    unreachable!("there are more names than people")
}

/// Changes a person. Certificates of whoever is removed, or whose certificates are revoked, are void at once; so are their
/// login links.
///
/// # Errors
/// If there is no such person, or nobody would be left who may do everything.
pub fn change(table: &Table, text: &str, command: ChangePerson, now_ms: u64) -> Result<(Change, PersonRow), Refusal> {
    let row = table.person(text)?;
    let stays = matches!(command, ChangePerson::Role { role: Role::Administrator } | ChangePerson::Revoke);
    let others =
        table.people.values().any(|other| other.id != row.id && other.role == Role::Administrator && other.entered_ms.is_some());
    if row.role == Role::Administrator && !stays && !others {
        let text = format!("{} is the only administrator who has ever logged in", row.name);
        return Err(conflict(text, "let another one log in first: `sublet person add NAME --role administrator`"));
    }
    let mut change = Change::new();
    let mut fresh = row.clone();
    match command {
        ChangePerson::Role { role } => {
            fresh.role = role;
            change.event(row.name.as_str(), format!("is {role} now"));
            change.put(Row::Person(fresh.clone()));
        }
        ChangePerson::Revoke => {
            fresh.certified_from_ms = now_ms;
            change.event(row.name.as_str(), "has to log in again: all certificates are void");
            change.put(Row::Person(fresh.clone()));
        }
        ChangePerson::Remove => {
            change.event(row.name.as_str(), "is removed");
            change.delete(Key::Person(row.id));
        }
    }
    if !matches!(command, ChangePerson::Role { .. }) {
        links(table, row.id).into_iter().for_each(|id| change.delete(Key::Token(id)));
    }
    Ok((change, fresh))
}

/// The login links of a person.
pub fn links(table: &Table, person: PersonId) -> Vec<TokenId> {
    let is_theirs = |what: &sublet_api::access::TokenUse| matches!(what, sublet_api::access::TokenUse::Login { person: id } if *id == person.to_string());
    table.tokens.values().filter(|row| is_theirs(&row.what)).map(|row| row.id).collect()
}
