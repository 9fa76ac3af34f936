//! Coming in: a token against a certificate; and being put out.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sublet_api::access::{Admitted, Enter, Entry, TokenUse};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::ServerId;

use super::{admission, digest};
use crate::change::Change;
use crate::plan::bad;
use crate::records::{AdmissionRow, Row, TokenRow};
use crate::table::Table;

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorKind::Unauthenticated, message)
        .hint("ask an administrator for another one: `sublet token create`, `sublet person login NAME`")
}

/// The token of this request, which must be for this.
fn token<'a>(table: &'a Table, enter: &Enter, now_ms: u64) -> Result<&'a TokenRow, Refusal> {
    let secret = URL_SAFE_NO_PAD.decode(&enter.secret).unwrap_or_default();
    let digest = digest(&secret);
    let unknown = || refused("this invitation is not known: it was revoked, or is of a table that is no more");
    let row = table.tokens.values().find(|row| row.digest == digest).ok_or_else(unknown)?;
    let fits = matches!(
        (&row.what, enter.entry),
        (TokenUse::Join, Entry::Join) | (TokenUse::Rejoin { .. }, Entry::Rejoin) | (TokenUse::Login { .. }, Entry::Login)
    );
    if !fits {
        return Err(refused("this invitation is for something else"));
    }
    if row.expires_ms <= now_ms {
        return Err(refused("this invitation has expired"));
    }
    Ok(row)
}

/// Admits whoever has a token. `now_ms` becomes the moment of issue: no certificate of an earlier one counts for a server that
/// joins again.
///
/// # Errors
/// `Unauthenticated` if the token is unknown, expired, used up or for somebody else; `Conflict` if a server that joins is known
/// already.
pub fn plan(table: &Table, enter: &Enter, now_ms: u64) -> Result<(Change, Admitted), Refusal> {
    if enter.request.len() > sublet_types::limits::CERTIFICATE_REQUEST_MAX {
        return Err(bad("the request for a certificate is too long", ""));
    }
    let row = token(table, enter, now_ms)?;
    let request = digest(enter.request.as_bytes());
    let is_repeated = row.used_for.contains(&request);
    if row.uses_left == 0 && !is_repeated {
        return Err(refused("this invitation has been used up"));
    }
    let mut change = Change::new();
    let admitted = match (&row.what, enter.server) {
        (TokenUse::Join, Some(server)) => {
            let is_known = table.servers.contains_key(&server) || table.admissions.contains_key(&server);
            if is_known && !is_repeated {
                let text = format!("{} belongs to this pool already", table.server_name(server));
                let hint = "let it in again with `sublet token create --rejoin SERVER` and `sublet server --rejoin STRING`";
                return Err(Refusal::new(ErrorKind::Conflict, text).hint(hint));
            }
            change.put(Row::Admission(admission(table, server)));
            if !is_repeated {
                change.event("", format!("server {} has joined", server.short()));
            }
            Admitted::Server { server, issued_ms: now_ms }
        }
        (TokenUse::Rejoin { server: wanted }, Some(server)) => {
            if *wanted != server.to_string() {
                let wanted = wanted.parse().map_or_else(|_| wanted.clone(), |id: ServerId| table.server_name(id));
                return Err(refused(format!("this invitation is for {wanted}, not for this server")));
            }
            let fresh = AdmissionRow { certified_from_ms: now_ms, revoked: false, ..admission(table, server) };
            change.event(table.server_name(server), "has joined again; its former certificates are void");
            change.put(Row::Admission(fresh));
            Admitted::Server { server, issued_ms: now_ms }
        }
        (TokenUse::Login { person }, None) => {
            let row = table.person(person).map_err(|_| refused("whom this link was for is no more"))?;
            let mut fresh = row.clone();
            fresh.entered_ms = Some(now_ms);
            change.event(row.name.as_str(), "has logged in");
            let person = fresh.id;
            change.put(Row::Person(fresh));
            Admitted::Person { person, issued_ms: now_ms }
        }
        (_, None) => return Err(bad("a server that comes in has to say which it is", "")),
        (_, Some(_)) => return Err(bad("a person is no server", "")),
    };
    if !is_repeated {
        let mut used = row.clone();
        used.uses_left -= 1;
        used.used_for.push(request);
        change.put(Row::Token(used));
    }
    Ok((change, admitted))
}

/// Cuts a server off: no certificate that it has counts any more. What it has mounted has to be fenced beside that.
///
/// # Errors
/// If it is not a member.
pub fn revoke(table: &Table, text: &str) -> Result<(Change, ServerId), Refusal> {
    let row = table.server(text)?;
    let mut change = Change::new();
    change.put(Row::Admission(AdmissionRow { revoked: true, ..admission(table, row.id) }));
    change.event(row.name.as_str(), "is cut off: its certificates are void");
    Ok((change, row.id))
}
