//! `sublet manager`: from the arguments to a served table, and back.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sublet_api::{ErrorKind, Refusal};
use sublet_link::hide_memory;
use sublet_table::Outside;
use sublet_trust::InvitationKind;
use sublet_types::Address;
use sublet_types::limits::MANAGER_PORT;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::announce::{announced, host_name};
use crate::audit::AuditLog;
use crate::authority::{self, FIRST_LINK_FILE, PoolAuthority};
use crate::clock::Clock;
use crate::data_dir::DataDir;
use crate::drive::{drive, random_u128};
use crate::http;
use crate::inbox::Inbox;
use crate::listen::{Bound, listen_on};
use crate::machine::{self, Machine};
use crate::seek::seek;
use crate::serve::{Serving, raise_file_limit};
use crate::throttle::Throttle;

/// After a signal, connections get so long to take their last answer.
const STOP_WAIT_MAX: Duration = Duration::from_secs(2);

/// What `sublet manager` was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManagerArgs {
    /// The data directory; made if it is missing.
    pub data: PathBuf,
    /// Where to listen; empty means the default port on loopback. Port 0 takes a free one.
    pub listen: Vec<Address>,
    /// The URLs under which others shall find this manager; empty derives them from `listen`.
    pub urls: Vec<String>,
    /// Whether and how it knows who asks; none takes everybody who can reach it for whom it trusts.
    pub security: Option<Security>,
}

/// See [`ManagerArgs::security`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Security {
    /// How long certificates are valid; none is the default, 90 days.
    pub lifetime: Option<Duration>,
}

/// Runs the manager until SIGTERM or SIGINT.
///
/// # Errors
/// `conflict` if another manager has the data directory or another program the port; `bad_request`, `unreachable` or `io` if
/// an argument cannot be used; `internal` if the table cannot be read, or the core has failed.
pub fn run(args: ManagerArgs) -> Result<(), Refusal> {
    hide_memory()?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| no_runtime(&error))?;
    let done = runtime.block_on(async {
        // Before anybody can learn this process's id: a signal must never kill it half-way.
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| no_runtime(&error))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| no_runtime(&error))?;
        let shell = Shell::open(&args, machine::load)?;
        say(&shell.greeting());
        if let Some(authority) = &shell.authority {
            tokio::spawn(Arc::clone(authority).keep_certified());
        }
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let seeking = tokio::spawn(seek(Arc::clone(&shell.inbox), shell.urls.clone()));
        let done = shell.serve(stop).await;
        seeking.abort();
        done
    });
    // A name being resolved, or the like, does not hold up the end.
    runtime.shutdown_background();
    done
}

fn no_runtime(error: &std::io::Error) -> Refusal {
    Refusal::new(ErrorKind::Io, format!("the kernel refuses what a manager needs: {error}"))
}

/// Standard output may be closed; the manager works all the same.
fn say(lines: &str) {
    if let Err(error) = std::io::stdout().write_all(lines.as_bytes()) {
        tracing::debug!(%error, "nobody reads what the manager says");
    }
}

/// A manager that holds its data directory, listens, and has its core running; nothing is accepted yet.
pub(crate) struct Shell {
    data: DataDir,
    bound: Vec<Bound>,
    urls: Vec<String>,
    inbox: Arc<Inbox>,
    core: JoinHandle<()>,
    core_ended: oneshot::Receiver<()>,
    authority: Option<Arc<PoolAuthority>>,
    first_link: Option<String>,
}

impl Shell {
    /// Opens everything, in an order in which nothing is left behind when a step fails. `load` makes the core from the
    /// table's file.
    pub(crate) fn open<M: Machine + Send + 'static>(
        args: &ManagerArgs,
        load: impl FnOnce(&Path, &mut Outside<'_>, Vec<String>) -> Result<M, Refusal>,
    ) -> Result<Self, Refusal> {
        let default = [Address::new("127.0.0.1", MANAGER_PORT)];
        let wishes = if args.listen.is_empty() { &default } else { args.listen.as_slice() };
        let data = DataDir::open(&args.data)?;
        let bound = listen_on(wishes)?;
        let addresses: Vec<Address> = bound.iter().map(|one| one.address.clone()).collect();
        let scheme = if args.security.is_some() { "https" } else { "http" };
        let urls = announced(&args.urls, &addresses, &host_name(), scheme)?;
        let clock = Clock::start();
        let mut machine = load(&data.table()?, &mut Outside { now_ms: clock.now_ms(), random: &mut random_u128 }, urls.clone())?;
        let (authority, first_link) = match &args.security {
            None => (None, None),
            Some(security) => {
                let lifetime = security.lifetime.unwrap_or(authority::LIFETIME);
                let authority = PoolAuthority::open(&data, machine.pool()?, urls.clone(), lifetime, clock)?;
                let mut outside = Outside { now_ms: clock.now_ms(), random: &mut random_u128 };
                let link = machine.first_link(&mut outside, authority.is_new)?;
                let link = link.map(|drawn| authority.invitation(InvitationKind::Login, drawn.secret));
                (Some(Arc::new(authority)), link)
            }
        };
        match &first_link {
            Some(link) => data.write_secret(FIRST_LINK_FILE, format!("{link}\n").as_bytes())?,
            None => data.remove(FIRST_LINK_FILE)?,
        }
        let inbox = Arc::new(Inbox::default());
        let audit = AuditLog::new(authority::audit_path(&args.data));
        let (core, core_ended) = start_core(machine, Arc::clone(&inbox), clock, audit)?;
        data.tell(&urls)?;
        Ok(Self { data, bound, urls, inbox, core, core_ended, authority, first_link })
    }

    /// What the manager says when it is up: a line for each address, and who can reach it.
    fn greeting(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        let mut text = String::new();
        for one in &self.bound {
            text += &format!("sublet manager: listening on {scheme}://{}\n", one.address);
        }
        for url in self.urls.iter().filter(|url| !self.bound.iter().any(|one| format!("{scheme}://{}", one.address) == **url)) {
            text += &format!("sublet manager: announced as {url}\n");
        }
        if let Some(link) = &self.first_link {
            text += &format!(
                "sublet manager: nobody administers this pool yet; whoever runs this first does, once, within a day:\n\
                 sublet manager:   sublet login '{link}'\n"
            );
        }
        if self.authority.is_some() {
            return text;
        }
        if self.bound.iter().all(Bound::is_loopback) {
            text += "sublet manager: listening on loopback only: until Sublet has security, other machines cannot reach it.\n\
                     sublet manager: in a network that you trust, change this with --listen, for example --listen 0.0.0.0:7470\n";
        } else {
            text += "sublet manager: Sublet has no security yet: whoever can reach these addresses can command the pool.\n";
        }
        text
    }

    /// Serves until `stop` ends, then answers what is open, and takes back what was told in the data directory.
    pub(crate) async fn serve(mut self, stop: impl Future<Output = ()>) -> Result<(), Refusal> {
        let (stopping, stopped) = watch::channel(false);
        let tls = self.authority.as_ref().map(|authority| authority.server_config()).transpose()?;
        let app = http::App {
            inbox: Arc::clone(&self.inbox),
            authority: self.authority.clone(),
            audit: authority::audit_path(self.data.path()),
            throttle: Throttle::default(),
        };
        let serving = Serving::new(http::router(Arc::new(app)), tls, stopped);
        let mut listeners = JoinSet::new();
        for socket in self.bound.into_iter().flat_map(|one| one.sockets) {
            let listener = TcpListener::from_std(socket).map_err(|error| no_runtime(&error))?;
            listeners.spawn(serving.clone().listen(listener));
        }
        tokio::select! {
            () = stop => tracing::info!("stopping"),
            // Whatever it is, its sender is gone: the thread has ended.
            _ = &mut self.core_ended => {}
        }
        // Held requests are answered now: the core's thread empties its queue and drops them.
        self.inbox.close();
        stopping.send_replace(true);
        let all = async { while listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_WAIT_MAX, all).await.is_err() {
            tracing::debug!("some connections did not take their last answer");
        }
        let ended = self.core.join();
        self.data.forget()?;
        ended.map_err(|_| {
            Refusal::new(ErrorKind::Internal, "the manager's core has failed; what was committed to the table is safe")
                .hint("start the manager again; the log says what happened")
        })
    }
}

fn start_core(
    machine: impl Machine + Send + 'static,
    inbox: Arc<Inbox>,
    clock: Clock,
    audit: AuditLog,
) -> Result<(JoinHandle<()>, oneshot::Receiver<()>), Refusal> {
    let (ending, ended) = oneshot::channel();
    let body = move || {
        // Dropped when this thread ends, in whatever way; then no request may wait for it any more.
        let _ending: oneshot::Sender<()> = ending;
        let _closing = Closing(Arc::clone(&inbox));
        drive(machine, &inbox, clock, audit);
    };
    let core = std::thread::Builder::new().name("core".to_owned()).spawn(body).map_err(|error| no_runtime(&error))?;
    Ok((core, ended))
}

/// Closes the inbox and empties it when the core's thread ends, so that nobody waits for a core that is no more.
struct Closing(Arc<Inbox>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
        while let crate::inbox::Taken::Item(_) = self.0.take(None) {}
    }
}
