//! The pool's authority at its manager: kept in the data directory, and what it signs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use sublet_api::access::{Admitted, Certified};
use sublet_api::{ErrorKind, Refusal};
use sublet_trust::{
    Authority, AuthorityRecord, Credentials, Identity, Invitation, InvitationKind, InvitationSecret, OwnCertificate, TrustError,
    server_config,
};
use sublet_types::PoolId;

use crate::clock::Clock;
use crate::data_dir::DataDir;

/// How long a certificate is valid unless something else is said: long enough for a server that is away over a holiday, which
/// renews at two thirds of it.
pub(crate) const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often the manager looks whether its own certificate is due.
const OWN_PAUSE_MAX: Duration = Duration::from_secs(3600);

/// The authority, and the manager's own certificate.
pub(crate) struct PoolAuthority {
    authority: Authority,
    pool: PoolId,
    urls: Vec<String>,
    lifetime_ms: u64,
    /// It was made at this start: no certificate that was issued before is good.
    pub(crate) is_new: bool,
    clock: Clock,
    own: Arc<OwnCertificate>,
    credentials: Mutex<Credentials>,
}

fn failed(error: &TrustError) -> Refusal {
    Refusal::new(ErrorKind::Internal, error.message()).hint(error.advice())
}

/// The authority of an earlier start, or a new one.
fn load(data: &DataDir, pool: PoolId, clock: Clock) -> Result<(Authority, bool), Refusal> {
    if let Some(bytes) = data.read_secret(AUTHORITY_FILE)? {
        let record: AuthorityRecord = serde_json::from_slice(&bytes).map_err(|e| {
            let path = data.path_of(AUTHORITY_FILE);
            Refusal::new(ErrorKind::Internal, format!("{} is damaged: {e}", path.display()))
                .hint("put it back from a backup; without it every server has to join again")
        })?;
        return Ok((Authority::load(record).map_err(|e| failed(&e))?, false));
    }
    let authority = Authority::create(pool, clock.now_ms()).map_err(|e| failed(&e))?;
    let json = serde_json::to_vec(authority.record()).map_err(|e| Refusal::new(ErrorKind::Internal, e.to_string()))?;
    data.write_secret(AUTHORITY_FILE, &json)?;
    Ok((authority, true))
}

/// The file in the data directory that holds the authority's key.
pub(crate) const AUTHORITY_FILE: &str = "authority.json";

impl PoolAuthority {
    /// Opens the pool's authority, or makes it at the first start.
    ///
    /// # Errors
    /// `io` or `internal` if it cannot be read or written.
    pub(crate) fn open(
        data: &DataDir,
        pool: PoolId,
        urls: Vec<String>,
        lifetime: Duration,
        clock: Clock,
    ) -> Result<Self, Refusal> {
        let (authority, is_new) = load(data, pool, clock)?;
        if is_new {
            tracing::info!("the pool has a new authority: servers that were in it before have to join again");
        }
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let credentials = authority.issue(Identity::Manager, clock.now_ms(), lifetime_ms).map_err(|e| failed(&e))?;
        let own = OwnCertificate::new(&credentials).map_err(|e| failed(&e))?;
        Ok(Self { authority, pool, urls, lifetime_ms, is_new, clock, own, credentials: Mutex::new(credentials) })
    }

    /// For the listener: strangers get in, since they have to ask for a certificate; they are told apart by their requests.
    ///
    /// # Errors
    /// `internal` in practice never.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, Refusal> {
        server_config(&self.credentials(), Arc::clone(&self.own), true).map_err(|e| failed(&e))
    }

    fn credentials(&self) -> Credentials {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A certificate for whoever the core has admitted.
    ///
    /// # Errors
    /// `bad_request` if the request for it is malformed.
    pub(crate) fn certify(&self, admitted: Admitted, request: &str) -> Result<Certified, Refusal> {
        let (identity, issued_ms) = match admitted {
            Admitted::Server { server, issued_ms } => (Identity::Server(server), issued_ms),
            Admitted::Person { person, issued_ms } => (Identity::Person(person), issued_ms),
        };
        let certificate = self
            .authority
            .certify(identity, request, issued_ms, self.lifetime_ms)
            .map_err(|e| Refusal::new(ErrorKind::BadRequest, e.message()).hint("draw a new key, and ask again"))?;
        let (pool, managers) = (self.pool, self.urls.clone());
        Ok(Certified { pool, authority: self.authority.record().certificate.clone(), certificate, managers })
    }

    /// The string that is given to whoever shall come in.
    pub(crate) fn invitation(&self, kind: InvitationKind, secret: [u8; 16]) -> String {
        let managers = self.urls.iter().map(|url| url.trim_start_matches("https://").to_owned()).collect();
        let fingerprint = self.authority.fingerprint();
        Invitation { kind, managers, fingerprint, secret: InvitationSecret(secret) }.to_string()
    }

    /// Renews the manager's own certificate whenever it is due, for ever.
    pub(crate) async fn keep_certified(self: Arc<Self>) {
        loop {
            let due_ms = self.credentials().presented().map_or(0, |own| own.renew_from_ms());
            let wait = Duration::from_millis(due_ms.saturating_sub(self.clock.now_ms()));
            if wait > Duration::ZERO {
                tokio::time::sleep(wait.min(OWN_PAUSE_MAX)).await;
                continue;
            }
            match self.authority.issue(Identity::Manager, self.clock.now_ms(), self.lifetime_ms) {
                Ok(fresh) => {
                    if let Err(error) = self.own.replace(&fresh) {
                        tracing::error!(%error, "the manager's new certificate cannot be used");
                    }
                    *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                }
                Err(error) => {
                    tracing::error!(%error, "the manager's certificate cannot be renewed");
                    tokio::time::sleep(OWN_PAUSE_MAX).await;
                }
            }
        }
    }
}

/// The manager's link for its first administrator is here until somebody has used it, for whoever sets up a pool by a script.
pub(crate) const FIRST_LINK_FILE: &str = "first-login";

/// Where the audit log is.
pub(crate) fn audit_path(data: &Path) -> PathBuf {
    data.join("audit.log")
}
