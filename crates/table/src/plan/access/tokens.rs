//! Tokens: made, used up, revoked.

use sublet_api::access::{CreateToken, DrawnToken, TokenUse, TokenView};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::{PersonId, ServerId, TokenId};

use super::digest;
use crate::change::Change;
use crate::plan::{Context, bad};
use crate::records::{Key, ROW_VERSION, Row, TokenRow};
use crate::table::Table;

/// The longest time that a token is valid, in seconds.
const TTL_MAX_S: u64 = 10 * 365 * 24 * 3600;
/// Tokens that may be valid at one time.
const TOKENS_MAX: usize = 10_000;
/// The longest that a token that lets somebody in is valid, in seconds: it is meant to be used at once.
const ENTRY_TTL_MAX_S: u64 = 30 * 24 * 3600;

/// A token as people see it.
pub fn view(table: &Table, row: &TokenRow) -> TokenView {
    let named = |id: &str, of: &dyn Fn(&str) -> Option<String>| of(id).unwrap_or_else(|| id.to_owned());
    let what = match &row.what {
        TokenUse::Rejoin { server } => {
            TokenUse::Rejoin { server: named(server, &|id| id.parse::<ServerId>().ok().map(|id| table.server_name(id))) }
        }
        TokenUse::Login { person } => TokenUse::Login {
            person: named(person, &|id| {
                id.parse::<PersonId>().ok().and_then(|id| table.people.get(&id)).map(|row| row.name.to_string())
            }),
        },
        other => other.clone(),
    };
    let made_by = row.made_by.clone();
    TokenView { id: row.id, what, made_by, made_ms: row.made_ms, expires_ms: row.expires_ms, uses_left: row.uses_left }
}

/// All that can still be used, the oldest first.
pub fn views(table: &Table, now_ms: u64) -> Vec<TokenView> {
    let mut rows: Vec<&TokenRow> = table.tokens.values().filter(|row| row.is_usable(now_ms)).collect();
    rows.sort_by_key(|row| (row.made_ms, row.id));
    rows.into_iter().map(|row| view(table, row)).collect()
}

impl TokenRow {
    /// Whether anybody can get anything for it yet.
    pub fn is_usable(&self, now_ms: u64) -> bool {
        self.expires_ms > now_ms && self.uses_left > 0
    }
}

/// Makes a token. Those that nobody can use any more go with it.
///
/// # Errors
/// If what it is for does not exist, or its time or uses make no sense.
pub fn create(
    table: &Table,
    command: &CreateToken,
    made_by: &str,
    context: &mut Context<'_>,
) -> Result<(Change, DrawnToken), Refusal> {
    let (what, about) = match &command.what {
        TokenUse::Join => (TokenUse::Join, "lets a server in".to_owned()),
        TokenUse::Rejoin { server } => {
            let row = table.server(server)?;
            (TokenUse::Rejoin { server: row.id.to_string() }, format!("lets {} in again", row.name))
        }
        TokenUse::Login { person } => {
            let row = table.person(person)?;
            (TokenUse::Login { person: row.id.to_string() }, format!("lets {} log in", row.name))
        }
        TokenUse::Api { role, name } => {
            let is_taken = table.tokens.values().any(|row| {
                row.is_usable(context.now_ms) && matches!(&row.what, TokenUse::Api { name: other, .. } if other == name)
            });
            if is_taken {
                let text = format!("there is a token called '{name}' already");
                return Err(Refusal::new(ErrorKind::AlreadyExists, text).hint("choose another name, or revoke that one"));
            }
            (command.what.clone(), format!("'{name}' may do what a {role} may"))
        }
    };
    let ttl_max_s = if matches!(what, TokenUse::Api { .. }) { TTL_MAX_S } else { ENTRY_TTL_MAX_S };
    if command.ttl_s == 0 || command.ttl_s > ttl_max_s {
        return Err(bad(
            format!("a token of this kind cannot be valid for {} s", command.ttl_s),
            format!("1 to {ttl_max_s} s; see --ttl"),
        ));
    }
    let uses_max = if matches!(what, TokenUse::Join) { 10_000 } else { 1 };
    if command.uses == 0 || command.uses > uses_max {
        return Err(bad(
            format!("a token of this kind cannot have {} uses", command.uses),
            format!("1 to {uses_max}; see --uses"),
        ));
    }
    let mut change = Change::new();
    let dead: Vec<TokenId> = table.tokens.values().filter(|row| row.expires_ms <= context.now_ms).map(|row| row.id).collect();
    if table.tokens.len() - dead.len() >= TOKENS_MAX {
        let text = format!("there are {TOKENS_MAX} tokens already");
        return Err(Refusal::new(ErrorKind::Conflict, text).hint("revoke some: `sublet token ls`, `sublet token revoke ID`"));
    }
    dead.into_iter().for_each(|id| change.delete(Key::Token(id)));
    let secret = (context.random)().to_le_bytes();
    let row = TokenRow {
        version: ROW_VERSION,
        id: TokenId::from_u128((context.random)()),
        digest: digest(&secret),
        what,
        made_by: made_by.to_owned(),
        made_ms: context.now_ms,
        expires_ms: context.now_ms.saturating_add(command.ttl_s.saturating_mul(1000)),
        uses_left: command.uses,
        used_for: Vec::new(),
    };
    let token = view(table, &row);
    change.event("", format!("{made_by} has made a token: it {about}"));
    change.put(Row::Token(row));
    Ok((change, DrawnToken { token, secret }))
}

/// Makes a token useless. The answer is what it was.
///
/// # Errors
/// If there is none of this id, or several begin with these digits.
pub fn revoke(table: &Table, text: &str, made_by: &str) -> Result<(Change, TokenView), Refusal> {
    let mut found = table.tokens.values().filter(|row| !text.is_empty() && row.id.to_string().starts_with(text));
    let (Some(row), None) = (found.next(), found.next()) else {
        let text = format!("no token, or more than one, begins with '{}'", text.escape_default());
        return Err(Refusal::new(ErrorKind::NotFound, text).hint("see `sublet token ls`"));
    };
    let mut change = Change::new();
    change.delete(Key::Token(row.id));
    change.event("", format!("{made_by} has revoked the token {}", row.id.short()));
    Ok((change, view(table, row)))
}
