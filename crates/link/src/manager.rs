//! The link to the manager: blocking HTTP with JSON bodies.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::de::DeserializeOwned;
use sublet_api::request::{Request, TaskAnswer, TaskOutcome};
use sublet_api::view::TaskView;
use sublet_api::{ErrorKind, Refusal};
use sublet_types::Address;
use sublet_types::limits::{MANAGER_PORT, POLL_INTERVAL};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, TcpConnector};

use crate::route::route;
use crate::secure::{Access, TlsConnector, carried_refusal};

/// How long a connection to the manager may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// How long an answer may take, beyond the time for which the manager was asked to hold it. The manager holds a request
/// for [`POLL_INTERVAL`] at most.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
/// The largest answer that is read, in bytes: a table of the largest pool is far smaller.
const ANSWER_SIZE_MAX: u64 = 256 << 20;
/// The pause between two tries while nobody answers.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A task outlives the manager's process, and asking for it twice does no harm: its caller waits for a restarted manager at
/// least so long.
const TASK_PATIENCE: Duration = Duration::from_secs(30);
/// But if there was no manager to begin with, its caller soon wants to know that: most likely the URL is wrong.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// A manager, by one or more URLs. Clones share what is learned about its addresses, and whether it was ever there.
#[derive(Clone, Debug)]
pub struct ManagerLink {
    urls: Arc<Mutex<Vec<String>>>,
    /// A connection to it came about at least once.
    met: Arc<AtomicBool>,
    sender: Arc<Sender>,
    patience: Duration,
}

/// One try failed.
enum Fault {
    /// Nobody answered, or a manager that is about to end: another URL or a later time may help.
    Connection(String),
    /// The manager answered with a refusal, or with nonsense.
    Final(Refusal),
}

/// Completes `host`, `host:port`, `http://host:port` and `https://host:port` to a base URL without a slash at its end.
///
/// # Errors
/// `BadRequest` for other schemes and for what is no address.
pub fn base_url(text: &str) -> Result<String, Refusal> {
    let text = text.trim().trim_end_matches('/');
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if !matches!(scheme, "http" | "https") {
        return Err(Refusal::new(ErrorKind::BadRequest, format!("'{text}' is not a manager's URL: {scheme} is not supported"))
            .hint(format!("write http://HOST:{MANAGER_PORT}")));
    }
    let address = Address::parse_with_port(rest, MANAGER_PORT)
        .map_err(|e| Refusal::new(ErrorKind::BadRequest, e.to_string()).hint(format!("write http://HOST:{MANAGER_PORT}")))?;
    Ok(format!("{scheme}://{address}"))
}

/// What sends requests, with the credentials of now.
#[derive(Debug)]
struct Sender {
    access: Access,
    agent: Mutex<(Vec<Option<SystemTime>>, ureq::Agent)>,
}

impl Sender {
    fn new(access: Access) -> Arc<Self> {
        let agent = Mutex::new((access.stamp(), agent(access.clone())));
        Arc::new(Self { access, agent })
    }

    /// Connections that are kept belong to the credentials with which they were made, so these are left with them.
    fn agent(&self) -> ureq::Agent {
        let stamp = self.access.stamp();
        let mut known = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != stamp {
            *known = (stamp, agent(self.access.clone()));
        }
        known.1.clone()
    }
}

fn agent(access: Access) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .timeout_connect(Some(CONNECT_TIME_MAX))
        .timeout_resolve(Some(CONNECT_TIME_MAX))
        .user_agent(concat!("sublet/", env!("CARGO_PKG_VERSION")))
        .build();
    let connector = ().chain(TcpConnector::default()).chain(TlsConnector::new(access));
    ureq::Agent::with_parts(config, connector, DefaultResolver::default())
}

impl ManagerLink {
    /// A link to the manager at these URLs, tried in this order. Host names are resolved anew for every connection. A text
    /// that is no URL is kept and fails when it is tried; check user input with [`base_url`].
    pub fn new(urls: Vec<String>) -> Self {
        Self {
            urls: Arc::new(Mutex::new(urls)),
            met: Arc::default(),
            sender: Sender::new(Access::Files(Vec::new())),
            patience: Duration::ZERO,
        }
    }

    /// The same link for `https` URLs: known to the manager by this.
    #[must_use]
    pub fn with_access(&self, access: Access) -> Self {
        Self { sender: Sender::new(access), ..self.clone() }
    }

    /// The same link, going on for so long while nobody answers. Without it one round through the URLs is made.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// The URLs in the order in which they will be tried.
    pub fn urls(&self) -> Vec<String> {
        self.urls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The manager told where it can be reached: its URLs come first now. Those that were known before stay as the last
    /// resort: an operator typed them, and they may be names. True if the list changed.
    pub fn learn(&self, urls: &[String]) -> bool {
        /// More would only slow down the search for a manager that is gone.
        const URLS_MAX: usize = 16;
        let mut known = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh: Vec<String> = Vec::new();
        // The one that answered last stays first if the manager still names it.
        let first = known.first().filter(|url| urls.contains(url)).cloned();
        for url in first.iter().chain(urls).chain(known.iter()) {
            if !fresh.contains(url) && fresh.len() < URLS_MAX {
                fresh.push(url.clone());
            }
        }
        let changed = *known != fresh;
        *known = fresh;
        changed
    }

    fn promote(&self, url: &str) {
        let mut known = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = known.iter().position(|u| u == url).filter(|at| *at > 0) {
            let url = known.remove(at);
            known.insert(0, url);
        }
    }

    fn try_once(&self, url: &str, path: &str, body: Option<&[u8]>, limit: Duration) -> Result<(u16, Vec<u8>), Fault> {
        let base = base_url(url).map_err(Fault::Final)?;
        let fault = |e: ureq::Error| {
            if let Some(refusal) = refusal_in(&e) {
                return Fault::Final(refusal.clone());
            }
            if !is_absence(&e) {
                self.met.store(true, Ordering::Relaxed);
            }
            Fault::Connection(format!("{base}: {e}"))
        };
        let target = format!("{base}{path}");
        let agent = self.sender.agent();
        let response = match body {
            None => agent.get(&target).config().timeout_global(Some(limit)).build().call(),
            Some(body) => {
                let request = agent.post(&target).config().timeout_global(Some(limit)).build();
                request.header("content-type", "application/json").send(body)
            }
        };
        let mut response = response.map_err(fault)?;
        self.met.store(true, Ordering::Relaxed);
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        let mut reader = response.body_mut().with_config().limit(ANSWER_SIZE_MAX).reader();
        reader.read_to_end(&mut bytes).map_err(|e| match carried_refusal(&e) {
            Some(refusal) => Fault::Final(refusal.clone()),
            None => Fault::Connection(format!("{base}: its answer broke off: {e}")),
        })?;
        match refusal_of(status, &bytes) {
            // It is being stopped, or flooded.
            Some(refusal) if refusal.kind == ErrorKind::Unreachable => {
                Err(Fault::Connection(format!("{base}: {}", refusal.message)))
            }
            _ => Ok((status, bytes)),
        }
    }

    fn round(&self, path: &str, body: Option<&[u8]>, limit: Duration) -> Result<(u16, Vec<u8>), Fault> {
        let urls = self.urls();
        let mut faults = Vec::new();
        for url in &urls {
            match self.try_once(url, path, body, limit) {
                Ok(answer) => {
                    self.promote(url);
                    return Ok(answer);
                }
                Err(Fault::Connection(fault)) => faults.push(fault),
                // A URL that is none must not hide the next one.
                Err(Fault::Final(refusal)) if urls.len() > 1 => faults.push(refusal.message),
                Err(fault) => return Err(fault),
            }
        }
        if urls.is_empty() {
            return Err(Fault::Final(
                Refusal::new(ErrorKind::BadRequest, "no manager is named").hint("use --manager URL or set SUBLET_MANAGER"),
            ));
        }
        Err(Fault::Connection(faults.join("; ")))
    }

    /// Sends a request and reads the answer as `T`, which must be the type that belongs to the request.
    ///
    /// # Errors
    /// The manager's refusal, or `Unreachable` if nobody answered within the patience.
    pub fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Refusal> {
        self.call_within(request, &|_| self.patience)
    }

    /// `patience` is asked anew after every fault; its argument says whether there has ever been a manager.
    fn call_within<T: DeserializeOwned>(&self, request: &Request, patience: &dyn Fn(bool) -> Duration) -> Result<T, Refusal> {
        let hold = match request {
            Request::Table { wait_ms, .. } => Duration::from_millis(*wait_ms),
            _ => POLL_INTERVAL,
        };
        let route = route(request)?;
        // The time for which the manager held the request before it ended does not count.
        let mut failing: Option<Instant> = None;
        loop {
            match self.round(&route.path, route.body.as_deref(), hold + ANSWER_TIME_MAX) {
                Ok((status, bytes)) => return read_answer(status, &bytes),
                Err(Fault::Final(refusal)) => return Err(refusal),
                Err(Fault::Connection(fault)) => {
                    let since = *failing.get_or_insert_with(Instant::now);
                    if since.elapsed() >= patience(self.met.load(Ordering::Relaxed)) {
                        return Err(Refusal::new(ErrorKind::Unreachable, format!("the manager does not answer: {fault}"))
                            .hint("check that `sublet manager` runs and that its URL is right (--manager, SUBLET_MANAGER)"));
                    }
                    tracing::debug!(%fault, "the manager does not answer; trying again");
                    thread::sleep(RETRY_PAUSE);
                }
            }
        }
    }

    /// Sends a request that is a task, and repeats it (same task id, so it is the same task) until the task has ended, also
    /// at a manager that was restarted meanwhile. `on_progress` hears how far it is.
    ///
    /// # Errors
    /// The manager's refusal, also that of a task which failed; `Unreachable` if nobody answered within the patience.
    pub fn task(&self, request: &Request, on_progress: &mut dyn FnMut(&TaskView)) -> Result<TaskAnswer, Refusal> {
        let patience = |met| self.patience.max(if met { TASK_PATIENCE } else { FIRST_PATIENCE });
        loop {
            let answer: TaskAnswer = self.call_within(request, &patience)?;
            match answer.outcome {
                TaskOutcome::Running => on_progress(&answer.task),
                TaskOutcome::Failed { refusal } => return Err(refusal),
                _ => return Ok(answer),
            }
        }
    }
}

/// What a certificate has to do with it that there is no answer.
fn refusal_in(error: &ureq::Error) -> Option<&Refusal> {
    match error {
        ureq::Error::Io(error) => carried_refusal(error),
        _ => None,
    }
}

/// Whether no connection came about: nothing was sent, and perhaps nobody was ever there.
fn is_absence(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, NotFound, TimedOut,
    };
    match error {
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound | ureq::Error::BadUri(_) => true,
        ureq::Error::Timeout(when) => matches!(when, ureq::Timeout::Connect | ureq::Timeout::Resolve),
        ureq::Error::Io(error) => matches!(
            error.kind(),
            AddrNotAvailable | ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable | NotFound | TimedOut
        ),
        _ => false,
    }
}

fn refusal_of(status: u16, bytes: &[u8]) -> Option<Refusal> {
    if (200..300).contains(&status) { None } else { serde_json::from_slice(bytes).ok() }
}

fn read_answer<T: DeserializeOwned>(status: u16, bytes: &[u8]) -> Result<T, Refusal> {
    let nonsense = |what: String| {
        Refusal::new(ErrorKind::Internal, format!("the manager's answer (HTTP {status}) cannot be read: {what}"))
            .hint("check that the URL is a Sublet manager's and that its version is not newer than this program's")
    };
    if (200..300).contains(&status) {
        serde_json::from_slice(bytes).map_err(|e| nonsense(e.to_string()))
    } else {
        Err(serde_json::from_slice::<Refusal>(bytes).unwrap_or_else(|e| nonsense(e.to_string())))
    }
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
