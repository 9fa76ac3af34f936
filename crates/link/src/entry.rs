//! Coming into a pool: a token against a certificate whose key never leaves this machine; and renewing it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sublet_api::access::{Certified, Enter, Entry, Renew};
use sublet_api::request::Request;
use sublet_api::{ErrorKind, Refusal};
use sublet_trust::{Credentials, Invitation, InvitationKind, NewKey};
use sublet_types::ServerId;

use crate::ManagerLink;
use crate::manager::base_url;
use crate::private::write_private;
use crate::secure::{Access, read_credentials, refusal};

/// For so long an invitation's manager is tried.
const ENTRY_PATIENCE: Duration = Duration::from_secs(20);

/// The time in milliseconds since 1970 (UTC).
pub fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

fn save(path: &Path, credentials: &Credentials) -> Result<(), Refusal> {
    let bytes = serde_json::to_vec_pretty(credentials).map_err(std::io::Error::other);
    bytes
        .and_then(|bytes| write_private(path, &bytes))
        .map_err(|e| Refusal::new(ErrorKind::Io, format!("the certificate cannot be stored: {e}")))
}

fn with(key: NewKey, certified: Certified) -> Result<Credentials, Refusal> {
    let mut credentials = key.with(certified.authority, certified.certificate).map_err(|e| refusal(&e))?;
    credentials.managers = certified.managers;
    Ok(credentials)
}

/// Comes in with an invitation: as this server, or as the person for whom it was made. The credentials are stored at `path`,
/// which is replaced.
///
/// # Errors
/// Why the manager does not let it in, or cannot be reached; whether it is not the invitation's manager.
pub fn enter(invitation: &Invitation, server: Option<ServerId>, path: &Path) -> Result<Credentials, Refusal> {
    let entry = match invitation.kind {
        InvitationKind::Join => Entry::Join,
        InvitationKind::Rejoin => Entry::Rejoin,
        InvitationKind::Login => Entry::Login,
    };
    let urls: Vec<String> =
        invitation.managers.iter().map(|manager| base_url(&format!("https://{manager}"))).collect::<Result<_, _>>()?;
    let key = NewKey::generate().map_err(|e| refusal(&e))?;
    let link = ManagerLink::new(urls.clone()).with_access(Access::Newcomer(invitation.fingerprint)).with_patience(ENTRY_PATIENCE);
    let ask = Enter { entry, secret: invitation.secret.text(), request: key.request().to_owned(), server };
    let certified: Certified = link.call(&Request::Enter(ask))?;
    let mut credentials = with(key, certified)?;
    if credentials.fingerprint().map_err(|e| refusal(&e))? != invitation.fingerprint {
        return Err(Refusal::new(ErrorKind::Unauthenticated, "the manager has given a certificate of another authority"));
    }
    // Where it was reached comes first.
    let told = std::mem::take(&mut credentials.managers);
    credentials.managers = urls;
    credentials.managers.extend(told);
    credentials.managers.dedup();
    save(path, &credentials)?;
    Ok(credentials)
}

/// Renews the credentials at `path` if they are due. The answer is how long they need no look, in milliseconds; none if there
/// are none.
///
/// # Errors
/// Why they could not be renewed: the old ones stay.
pub fn renew_if_due(link: &ManagerLink, path: &Path) -> Result<Option<u64>, Refusal> {
    let Some(credentials) = read_credentials(path)? else { return Ok(None) };
    let left = |credentials: &Credentials| -> Result<u64, Refusal> {
        Ok(credentials.presented().map_err(|e| refusal(&e))?.renew_from_ms().saturating_sub(now_ms()))
    };
    let wait_ms = left(&credentials)?;
    if wait_ms > 0 {
        return Ok(Some(wait_ms));
    }
    let key = NewKey::generate().map_err(|e| refusal(&e))?;
    let certified: Certified = link.call(&Request::Renew(Renew { request: key.request().to_owned() }))?;
    let fresh = with(key, certified)?;
    save(path, &fresh)?;
    tracing::info!("the certificate has been renewed");
    left(&fresh).map(Some)
}
