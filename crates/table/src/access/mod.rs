//! Who may do what: decided here, for every request, before anything else is looked at.
//!
//! A server acts for itself only: it reports itself, borrows, mounts and returns in its own name, and sees what is its own
//! ([`visible`]). People and programs with a token have a role. What nobody may do twice or late (fences, epochs, task ids)
//! is not decided here.

mod allowed;
mod visible;

use sublet_api::access::{Caller, Proof, Role, TokenUse};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::ServerId;

pub use self::allowed::check;
pub use self::visible::{Visible, restrict};
use crate::table::Table;

/// What a caller is to the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// The manager itself.
    All,
    /// A person, or a program with a token.
    Role(Role),
    /// A server.
    Server(ServerId),
    /// Nobody.
    None,
}

fn unknown(message: impl Into<String>, hint: &str) -> Refusal {
    Refusal::new(ErrorKind::Unauthenticated, message).hint(hint)
}

const REJOIN: &str =
    "an administrator lets it in again: `sublet token create --rejoin SERVER`, then `sublet server --rejoin STRING` there";
const LOGIN: &str = "an administrator lets you in again: `sublet person login NAME`, then `sublet login LINK` here";

/// What a caller may do, by its certificate or token.
///
/// # Errors
/// `Unauthenticated` if the certificate or token is not valid any more, with what to do.
pub fn rights(table: &Table, caller: &Caller, now_ms: u64) -> Result<Rights, Refusal> {
    match caller {
        Caller::Manager => Ok(Rights::All),
        Caller::Stranger => Ok(Rights::None),
        Caller::Server { server, proof } => {
            let name = table.server_name(*server);
            check_time(*proof, now_ms, &name, REJOIN)?;
            match table.admissions.get(server) {
                Some(row) if row.revoked => Err(unknown(format!("{name} was cut off from this pool"), REJOIN)),
                Some(row) if proof.issued_ms < row.certified_from_ms => {
                    Err(unknown(format!("{name} has joined again since; this certificate of it is void"), REJOIN))
                }
                _ => Ok(Rights::Server(*server)),
            }
        }
        Caller::Person { person, proof } => {
            let Some(row) = table.people.get(person) else {
                return Err(unknown("nobody of this pool has this certificate any more", LOGIN));
            };
            check_time(*proof, now_ms, row.name.as_str(), LOGIN)?;
            if proof.issued_ms < row.certified_from_ms {
                return Err(unknown(format!("this certificate of {} is void", row.name), LOGIN));
            }
            Ok(Rights::Role(row.role))
        }
        Caller::Token { digest } => {
            let found = table.tokens.values().find(|row| row.digest == *digest);
            match found.map(|row| (&row.what, row.expires_ms)) {
                Some((TokenUse::Api { name, .. }, expires_ms)) if expires_ms <= now_ms => Err(unknown(
                    format!("the token '{name}' has expired"),
                    "make another one: `sublet token create --role ROLE --name NAME`",
                )),
                Some((TokenUse::Api { role, .. }, _)) => Ok(Rights::Role(*role)),
                _ => Err(unknown(
                    "this token is not known",
                    "it was revoked or never made: `sublet token create --role ROLE --name NAME`",
                )),
            }
        }
    }
}

fn check_time(proof: Proof, now_ms: u64, name: &str, hint: &str) -> Result<(), Refusal> {
    // A connection may be older than its certificate's end.
    if now_ms < proof.expires_ms { Ok(()) } else { Err(unknown(format!("the certificate of {name} has expired"), hint)) }
}

/// Who a caller is, for people: the audit log, and who made a token.
pub fn named(table: &Table, caller: &Caller) -> String {
    match caller {
        Caller::Manager => "the manager".to_owned(),
        Caller::Stranger => "a stranger".to_owned(),
        Caller::Server { server, .. } => format!("{} (server)", table.server_name(*server)),
        Caller::Person { person, .. } => match table.people.get(person) {
            Some(row) => format!("{} ({})", row.name, row.role),
            None => format!("person {}", person.short()),
        },
        Caller::Token { digest } => match table.tokens.values().find(|row| row.digest == *digest).map(|row| &row.what) {
            Some(TokenUse::Api { role, name }) => format!("{name} (token, {role})"),
            _ => "an unknown token".to_owned(),
        },
    }
}
