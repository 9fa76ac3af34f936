//! The control socket: the command line asks, the server answers (JSON lines).

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use sublet_api::control::{ServerAnswer, ServerRequest};
use sublet_api::server::AreaReport;
use sublet_api::{ErrorKind, Refusal};
use sublet_area::lendable;
use sublet_link::LineConn;

use super::lend;
use super::state::Daemon;
use crate::limits::CONTROL_CONNECTIONS_MAX;

/// Who connects has to ask within this time.
const ASK_TIME_MAX: Duration = Duration::from_secs(10);
/// Part of a file system that suggestions leave free, in percent.
const KEEP_FREE_PERCENT: u8 = 10;
/// The pause after an error of the listening socket.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens at the control socket.
pub(crate) fn listen(daemon: &Daemon) -> Result<UnixListener, Refusal> {
    sublet_link::listen(&daemon.home.control_socket())
        .map_err(|e| Refusal::new(ErrorKind::Io, format!("the control socket: {e}")))
}

/// The thread `control`: each connection has a thread of its own.
pub(crate) fn accept(daemon: &Arc<Daemon>, listener: &UnixListener) {
    let open = Arc::new(AtomicUsize::new(0));
    // Too many are told of once, until there is room again.
    let mut full = false;
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket");
                thread::sleep(PAUSE);
                continue;
            }
        };
        if open.load(Ordering::Relaxed) >= CONTROL_CONNECTIONS_MAX {
            if !std::mem::replace(&mut full, true) {
                tracing::warn!("{CONTROL_CONNECTIONS_MAX} connections are at the control socket; more are closed");
            }
            continue;
        }
        full = false;
        open.fetch_add(1, Ordering::Relaxed);
        let (daemon, open) = (Arc::clone(daemon), Arc::clone(&open));
        thread::spawn(move || {
            if let Err(error) = converse(&daemon, stream) {
                tracing::debug!(%error, "a conversation at the control socket ended");
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn converse(daemon: &Arc<Daemon>, stream: UnixStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(ASK_TIME_MAX))?;
    stream.set_write_timeout(Some(ASK_TIME_MAX))?;
    let mut conn = LineConn::new(stream);
    loop {
        let request = match conn.receive::<ServerRequest>() {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                let refusal = Refusal::new(ErrorKind::BadRequest, format!("the request cannot be read: {error}"));
                return conn.send(&ServerAnswer::Refused { refusal });
            }
            Err(error) => return Err(error),
        };
        let answer = match request {
            ServerRequest::Status => status(daemon),
            ServerRequest::Suggest => Ok(suggest(daemon)),
            ServerRequest::Lend(wish) => {
                let mut tell = |what: &str, done: u64, total: u64| {
                    // Whoever asked may have gone: lending is done or undone all the same.
                    let _ = conn.send(&ServerAnswer::Progress { what: what.to_owned(), done, total });
                };
                lend::lend(daemon, &wish, &mut tell).map(|(area, warnings)| ServerAnswer::Lent { area, warnings })
            }
        };
        conn.send(&answer.unwrap_or_else(|refusal| ServerAnswer::Refused { refusal }))?;
    }
}

fn suggest(daemon: &Daemon) -> ServerAnswer {
    let lent: Vec<_> = daemon.entries().into_iter().flat_map(|entry| entry.pieces).collect();
    ServerAnswer::Suggestions { suggestions: lendable::suggest(&lent, KEEP_FREE_PERCENT) }
}

fn status(daemon: &Daemon) -> Result<ServerAnswer, Refusal> {
    let mut areas = daemon.reports()?;
    areas.iter_mut().for_each(AreaReport::hide_secrets);
    Ok(ServerAnswer::Status {
        identity: daemon.identity(),
        areas,
        manager_reached: daemon.outgoing.manager_reached(),
        manager_refusal: daemon.outgoing.manager_refusal(),
        manager: daemon.link.urls().into_iter().next().unwrap_or_default(),
        listen: daemon.facts.listen.iter().map(ToString::to_string).collect(),
        sessions: daemon.data.call(async |agent| agent.sessions())?,
        io: sublet_doors::real::io(),
    })
}
