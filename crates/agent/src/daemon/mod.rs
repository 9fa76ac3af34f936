//! The process `sublet server`: one data thread for the agent, and control threads around it that may block.
//!
//! | thread | does |
//! |---|---|
//! | main | the data runtime: accepts borrowers, does all disk I/O |
//! | poll | registers, and holds a poll at the manager: the heartbeat that brings orders |
//! | results | brings results of orders and changes of areas to the manager at once |
//! | areas | opens areas, again and again while a piece is missing |
//! | certificates | renews the server's certificate before it ends |
//! | announced | checks a manager that says where it is now |
//! | control | answers the command line at the control socket |
//! | signals | SIGTERM and SIGINT end the process cleanly |

mod announced;
mod areas;
mod certificates;
mod control;
mod data;
mod failures;
mod lend;
mod make;
mod manager;
mod orders;
mod state;
#[cfg(test)]
mod testing;

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_channel::mpsc;
use sublet_api::view::PathState;
use sublet_api::{ErrorKind, Refusal};
use sublet_coordinator::{Manager, Reports as _, coordinate};
use sublet_doors::real::{self, RealDoors, RealListener};
use sublet_doors::{Clock, Doors, Endpoint, Listener, Net, Rng};
use sublet_link::manager::base_url;
use sublet_link::{Access, Home, ManagerLink, PidFile, hide_memory, private_dir, private_files, raise_file_limit};
use sublet_trust::Invitation;
use sublet_types::limits::AGENT_PORT;
use sublet_types::{Address, Name};

use sublet_volume::PathStatus;

use crate::agent::Agent;
use crate::coordinations::Coordinate;
use crate::limits::{CONNECTIONS_MAX, FILES_BESIDE};
use data::DataHandle;
use state::{Daemon, Facts};

/// How long a port in use is tried again: after `kill -9` the kernel ends the process first and takes its io_uring down
/// afterwards, so that a server started again at once still finds its predecessor's listening socket.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two tries.
const PORT_PAUSE: Duration = Duration::from_millis(20);

/// How to run a server.
#[derive(Clone, Debug)]
pub struct ServerArgs {
    /// The state directory.
    pub data: PathBuf,
    /// URLs of the manager; each may name several, with commas. Those learned earlier are tried too.
    pub managers: Vec<String>,
    /// Where the agent listens; empty is loopback.
    pub listen: Vec<Address>,
    /// What borrowers are told, tried in this order; empty is where it listens.
    pub advertise: Vec<Address>,
    /// The failure zone; empty if none.
    pub zone: String,
    /// The wished name at the first registration; none takes the host's name.
    pub name: Option<Name>,
    /// By what it comes into the pool, if it is not in it yet.
    pub join: Option<Invitation>,
    /// By what it comes in again although it is in it: its certificate was lost, or is void.
    pub rejoin: Option<Invitation>,
}

/// Runs a server until it is told to stop (SIGTERM, SIGINT) or has left its pool.
///
/// # Errors
/// Why it could not start or go on.
pub fn run(args: ServerArgs) -> Result<(), Refusal> {
    let io = |what: &str, e: std::io::Error| Refusal::new(ErrorKind::Io, format!("{what}: {e}"));
    let home = Home::new(&args.data);
    hide_memory()?;
    raise_file_limit((CONNECTIONS_MAX + FILES_BESIDE) as u64);
    private_dir(home.root())?;
    private_files(&[&home.identity_path(), &home.areas_path(), &home.credentials_path()])?;
    let _pid = PidFile::take(&home.pid_path(), "a server")?;
    let outcome = real::run(async |doors| serve(doors, home, args).await);
    outcome.map_err(|e| io("the data thread cannot run", e))?
}

/// The manager's URLs: those given now come before those learned earlier.
fn manager_urls(args: &ServerArgs, learned: &[String]) -> Result<Vec<String>, Refusal> {
    let mut urls: Vec<String> = Vec::new();
    for url in args.managers.iter().flat_map(|urls| urls.split(',')).filter(|url| !url.trim().is_empty()) {
        let url = base_url(url)?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    for url in learned {
        if !urls.contains(url) {
            urls.push(url.clone());
        }
    }
    if urls.is_empty() {
        return Err(Refusal::new(ErrorKind::BadRequest, "no manager is named").hint("use --manager URL or set SUBLET_MANAGER"));
    }
    Ok(urls)
}

/// Listens on one address. One in use is tried again for [`PORT_PATIENCE`].
async fn listen_on(doors: &RealDoors, at: &Address) -> Result<RealListener, Refusal> {
    let begun = doors.now();
    loop {
        match doors.listen(&Endpoint::Tcp(at.clone())).await {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && doors.now().since(begun) < PORT_PATIENCE => {
                doors.sleep(PORT_PAUSE).await;
            }
            Err(e) => {
                let text = format!("cannot listen on {at}: {e}");
                return Err(Refusal::new(ErrorKind::Io, text).hint("choose another address with --listen"));
            }
        }
    }
}

async fn serve(doors: RealDoors, home: Home, args: ServerArgs) -> Result<(), Refusal> {
    let identity = state::load_identity(&home, args.name.as_ref(), || doors.random_u128())?;
    let credentials = certificates::enter(&home, identity.server, &args)?;
    let mut known = credentials.map(|credentials| credentials.managers).unwrap_or_default();
    known.extend(identity.managers.clone());
    let urls = manager_urls(&args, &known)?;
    let wished = if args.listen.is_empty() { vec![Address::new("127.0.0.1", AGENT_PORT)] } else { args.listen.clone() };
    let mut listeners = Vec::new();
    for at in &wished {
        listeners.push(listen_on(&doors, at).await?);
    }
    let bound: Vec<Address> = listeners.iter().filter_map(Listener::local_address).collect();
    let listen = bound.iter().map(Address::to_string).collect::<Vec<_>>().join(", ");
    if bound.iter().all(is_loopback) {
        tracing::info!("listening on {listen}: loopback only; other machines cannot borrow from here (--listen, --advertise)");
    } else {
        tracing::info!("listening on {listen}; connections are not encrypted yet: use a network that you trust");
    }
    let advertise = if args.advertise.is_empty() { advertised(&bound, &urls) } else { args.advertise.clone() };

    let agent = Agent::new(doors.clone(), identity.server);
    let (handle, mut commands) = DataHandle::new();
    let boot = real::boot_id().map_err(|e| Refusal::new(ErrorKind::Io, e.to_string()))?;
    let facts = Facts { zone: args.zone, advertise, listen: bound, run: doors.random_u64(), boot };
    let link = ManagerLink::new(urls).with_access(Access::Server(home.credentials_path()));
    let daemon = Arc::new(Daemon::load(home, identity, link, handle, facts)?);
    for entry in daemon.entries() {
        agent.set_offline(entry.area, "it is being opened");
    }
    let (hear, heard) = announced::channel(&daemon);
    agent.set_on_announce(hear);
    agent.set_coordinate(coordination(&doors, &daemon));
    let control = control::listen(&daemon)?;
    spawn(&daemon, "announced", move |daemon| announced::believe(daemon, &heard))?;
    spawn(&daemon, "areas", areas::watch)?;
    spawn(&daemon, "certificates", certificates::keep)?;
    spawn(&daemon, "poll", manager::poll)?;
    spawn(&daemon, "results", manager::report)?;
    spawn(&daemon, "signals", signals)?;
    spawn(&daemon, "control", move |daemon| control::accept(daemon, &control))?;
    for listener in listeners {
        let agent = std::rc::Rc::clone(&agent);
        doors.spawn(accept(agent, listener));
    }
    let outcome = commands.run(&agent).await;
    tracing::info!("stopping");
    let _ = fs::remove_file(daemon.home.control_socket());
    agent.drain().await;
    outcome
}

/// How this server coordinates a volume that is not mounted (F5): with the engine of a client, on the data thread, and with a link
/// to the manager of its own.
fn coordination(doors: &RealDoors, daemon: &Arc<Daemon>) -> Box<Coordinate> {
    let (doors, daemon) = (doors.clone(), Arc::clone(daemon));
    Box::new(move |info, stop| {
        let home = daemon.home.root().to_owned();
        let manager = Manager::new(daemon.link.urls(), Some(home), info.volume, info.epoch);
        let (doors, boot) = (doors.clone(), daemon.facts.boot);
        Box::pin(async move {
            let (hear, heard) = mpsc::unbounded();
            let reason = "the path is being opened".to_owned();
            manager.update(&PathStatus { path: PathState::Lost, reason, ..PathStatus::default() });
            if let Err(error) = manager.start(&hear) {
                tracing::error!(%error, "a coordination cannot report to the manager, and is not begun");
                return false;
            }
            drop(hear);
            coordinate(doors, manager, info, boot, heard, &stop).await
        })
    })
}

fn spawn(daemon: &Arc<Daemon>, name: &str, work: impl FnOnce(&Arc<Daemon>) + Send + 'static) -> Result<(), Refusal> {
    let daemon = Arc::clone(daemon);
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        // A control thread that dies would leave a server that looks alive: the whole process ends instead.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&daemon)));
        if ended.is_err() {
            daemon.data.stop(Err(Refusal::new(ErrorKind::Internal, "a control thread of the server panicked; see its log")));
        }
    });
    thread.map(drop).map_err(|e| Refusal::new(ErrorKind::Io, format!("a thread cannot be started: {e}")))
}

async fn accept<D: Doors>(agent: std::rc::Rc<Agent<D>>, listener: D::Listener) {
    /// After an error (no descriptors left) the next try comes so much later.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
    loop {
        match listener.accept().await {
            Ok(conn) => {
                let own = std::rc::Rc::clone(&agent);
                agent.doors().spawn(async move { own.serve(conn).await });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                agent.doors().sleep(PAUSE).await;
            }
        }
    }
}

fn signals(daemon: &Arc<Daemon>) {
    use signal_hook::consts::{SIGINT, SIGTERM};
    match signal_hook::iterator::Signals::new([SIGTERM, SIGINT]) {
        Ok(mut signals) => {
            if let Some(signal) = signals.forever().next() {
                tracing::info!(signal, "told to stop");
                daemon.data.stop(Ok(()));
            }
        }
        Err(error) => tracing::warn!(%error, "signals are not handled; the process ends at once when it is told to"),
    }
}

fn is_loopback(address: &Address) -> bool {
    address.host().parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Where borrowers can reach what listens on these addresses: a wildcard is replaced by the address from which this machine
/// reaches its manager.
fn advertised(bound: &[Address], urls: &[String]) -> Vec<Address> {
    let mut out: Vec<Address> = Vec::new();
    for address in bound {
        let wildcard = address.host().parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        let address = if wildcard {
            own_address(urls).map_or(address.clone(), |host| Address::new(host, address.port()))
        } else {
            address.clone()
        };
        if !out.contains(&address) {
            out.push(address);
        }
    }
    out
}

/// The local address of a route to the manager. Connecting a UDP socket sends nothing.
fn own_address(urls: &[String]) -> Option<String> {
    urls.iter().find_map(|url| {
        let target: Address = url.split_once("://")?.1.parse().ok()?;
        let any = if target.host().contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect((target.host(), target.port())).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    })
}
