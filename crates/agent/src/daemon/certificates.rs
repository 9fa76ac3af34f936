//! The server's certificate: got once by an invitation, and renewed before it ends.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sublet_api::{ErrorKind, Refusal};
use sublet_link::entry::{enter as enter_pool, renew_if_due};
use sublet_link::{Home, read_credentials};
use sublet_trust::{Credentials, InvitationKind};
use sublet_types::ServerId;

use super::ServerArgs;
use super::state::Daemon;

/// The longest pause between two looks at the certificate: a clock that was set is noticed.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(3600);
/// The shortest, and the pause after a failure, so that a manager that refuses is not flooded.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(500);
/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Comes into the pool, if that is what the server was told; the answer is what it has then. A server that has joined may
/// be started with the same `--join` again: nothing is asked for then.
///
/// # Errors
/// Why it was not let in.
pub(super) fn enter(home: &Home, server: ServerId, args: &ServerArgs) -> Result<Option<Credentials>, Refusal> {
    let path = home.credentials_path();
    if let Some(invitation) = &args.rejoin {
        if invitation.kind == InvitationKind::Login {
            return Err(not_for_servers());
        }
        return enter_pool(invitation, Some(server), &path).map(Some);
    }
    let known = read_credentials(&path)?;
    let Some(invitation) = &args.join else { return Ok(known) };
    if invitation.kind != InvitationKind::Join {
        return Err(not_for_servers());
    }
    match known {
        Some(known) if known.fingerprint().is_ok_and(|of| of == invitation.fingerprint) => Ok(Some(known)),
        Some(_) => Err(Refusal::new(ErrorKind::Conflict, format!("{} belongs to another pool", home.root().display()))
            .hint("use an empty directory; or, if its pool has a new authority, --rejoin")),
        None => enter_pool(invitation, Some(server), &path).map(Some),
    }
}

fn not_for_servers() -> Refusal {
    Refusal::new(ErrorKind::BadRequest, "this string is not for a server to come in by")
        .hint("--join takes what `sublet token create` prints, --rejoin what it prints with --rejoin SERVER")
}

/// The thread `certificates`.
pub(super) fn keep(daemon: &Arc<Daemon>) {
    let path = daemon.home.credentials_path();
    loop {
        let pause = match renew_if_due(&daemon.link, &path) {
            Ok(Some(wait_ms)) => Duration::from_millis(wait_ms).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX),
            // It runs without security.
            Ok(None) => LOOK_PAUSE_MAX,
            Err(refusal) => {
                tracing::warn!(%refusal, "the certificate was not renewed; it is tried again");
                RETRY_PAUSE
            }
        };
        thread::sleep(pause);
    }
}
