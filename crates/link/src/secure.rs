//! TLS on the way to the manager: by what a process is known, and who it insists on reaching.
//!
//! The manager is checked against its identity in the pool, not against the host name in the URL: its certificate stays good
//! when it moves, and no authority but the pool's own can vouch for it. `ureq` takes a connector of one's own for that; that
//! part of its interface may change with its minor versions, so `Cargo.toml` holds it.

use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use sublet_api::{ErrorKind, Refusal};
use sublet_trust::{Credentials, Fingerprint, Identity, TrustError, client_config, explain, newcomer_config};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use crate::private::read_record;

/// By what a process is known to the manager.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// By the credentials in the first of these files that exists. It is read anew when it changes: they are renewed while the
    /// process lives.
    Files(Vec<PathBuf>),
    /// By those of a server, in this file. A server that has some never speaks without them: whoever says that the manager is
    /// somewhere else now must not get it to say anything in the clear.
    Server(PathBuf),
    /// Not yet; it knows the authority that the manager must have.
    Newcomer(Fingerprint),
}

impl Access {
    /// Changes with the credentials: connections that were made with others say who somebody was, not who they are.
    pub(crate) fn stamp(&self) -> Vec<Option<SystemTime>> {
        let files = match self {
            Access::Newcomer(_) => &[],
            Access::Files(files) => files.as_slice(),
            Access::Server(path) => std::slice::from_ref(path),
        };
        files.iter().map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok()).collect()
    }
}

/// Reads credentials; none if there are none.
///
/// # Errors
/// `Io` or `Internal` if they cannot be read or are of another version.
pub fn read_credentials(path: &std::path::Path) -> Result<Option<Credentials>, Refusal> {
    read_record(path, Credentials::VERSION..=Credentials::VERSION)
}

/// What a certificate or its absence means for whoever asked.
pub fn refusal(error: &TrustError) -> Refusal {
    Refusal::new(ErrorKind::Unauthenticated, error.message()).hint(error.advice())
}

/// The credentials of one agent: when they change, there is another one.
struct Source {
    access: Access,
    known: Mutex<Option<Arc<ClientConfig>>>,
}

/// Carries a refusal through `ureq`'s errors.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Refusal);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

fn carried(refusal: Refusal) -> Error {
    Error::Io(io::Error::other(Refused(refusal)))
}

/// The refusal that an error carries.
pub(crate) fn carried_refusal(error: &io::Error) -> Option<&Refusal> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Refused>()).map(|refused| &refused.0)
}

/// Says in words what a TLS connection has met with; other errors stay as they are.
fn translated(error: io::Error) -> Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls.map(|tls| explain(tls, "the manager")) {
        Some(told) => carried(refusal(&told)),
        None => Error::Io(error),
    }
}

impl Source {
    /// Whether nothing may be said in the clear.
    fn is_strict(&self) -> bool {
        match &self.access {
            Access::Files(_) => false,
            Access::Server(path) => path.exists(),
            Access::Newcomer(_) => true,
        }
    }

    fn config(&self) -> Result<Arc<ClientConfig>, Refusal> {
        let files = match &self.access {
            Access::Newcomer(fingerprint) => return newcomer_config(*fingerprint).map_err(|e| refusal(&e)),
            Access::Files(files) => files.as_slice(),
            Access::Server(path) => std::slice::from_ref(path),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = &*known {
            return Ok(Arc::clone(config));
        }
        for path in files {
            let Some(credentials) = read_credentials(path)? else { continue };
            let config = client_config(&credentials).map_err(|e| refusal(&e))?;
            *known = Some(Arc::clone(&config));
            return Ok(config);
        }
        let text = "nobody here is known to the manager: there is no certificate yet";
        let hint = "at a server: `sublet server --join STRING`, with a string from `sublet token create`; at a command line: `sublet login LINK`";
        Err(Refusal::new(ErrorKind::Unauthenticated, text).hint(hint))
    }
}

/// Puts TLS on connections to `https` URLs.
pub(crate) struct TlsConnector {
    source: Source,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").field("access", &self.source.access).finish_non_exhaustive()
    }
}

impl TlsConnector {
    pub(crate) fn new(access: Access) -> Self {
        Self { source: Source { access, known: Mutex::default() } }
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            if self.source.is_strict() {
                let text = "this pool's manager is asked over https only";
                return Err(carried(
                    Refusal::new(ErrorKind::Unauthenticated, text).hint("write https:// in front of its address"),
                ));
            }
            return Ok(Some(Either::A(transport)));
        }
        let config = self.source.config().map_err(carried)?;
        let name = Identity::Manager.server_name().map_err(|e| carried(refusal(&e)))?;
        let mut conn = ClientConnection::new(config, name).map_err(|e| carried(refusal(&explain(&e, "the manager"))))?;
        let mut sock = TransportAdapter::new(Box::new(transport) as Box<dyn Transport>, details.current_time.clone());
        sock.set_timeout(details.timeout);
        conn.complete_io(&mut sock).map_err(translated)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream: StreamOwned { conn, sock } })))
    }
}

/// A connection with TLS.
pub(crate) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.stream.write_all(output).map_err(translated)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = self.stream.read(input).map_err(translated)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
