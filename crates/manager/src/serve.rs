//! Connections: accepted, bounded, and ended when the manager stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use rustls::ServerConfig;
use sublet_api::access::Caller;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::caller::{Peer, certified};
use crate::crowd::{Crowd, PER_MACHINE_MAX};

/// Connections at one time. A server holds one for its polls, a mounted volume one for its reports; beyond this number
/// new ones wait to be accepted.
pub(crate) const CONNECTIONS_MAX: usize = 4096;
/// A connection on which no whole request head arrives for so long is closed, idle ones too.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// When accepting fails (most likely no file descriptors are left), it is tried again after this pause.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A peer whose machine has died sends nothing: probe a silent connection after so long, so often, and so many times.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// A peer that takes nothing of its answer for so long is cut off, so that nobody can hold a connection by not reading.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// A handshake must be over after so long.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How every TLS connection begins: a record with a handshake message (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// What somebody hears who does not speak TLS here.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 129\r\n\r\n\
    {\"kind\":\"bad_request\",\"message\":\"this manager speaks https, not http\",\"hint\":\"write https:// in front of the manager's address\"}\n";
/// File descriptors beside the connections: the table, the lock, the listeners, the runtime's own.
const FILES_BESIDE: u64 = 128;

/// Lets the process have as many connections as [`CONNECTIONS_MAX`] says.
pub(crate) fn raise_file_limit() {
    sublet_link::raise_file_limit(CONNECTIONS_MAX as u64 + FILES_BESIDE);
}

/// What all listeners share.
#[derive(Clone)]
pub(crate) struct Serving {
    router: Router,
    tls: Option<TlsAcceptor>,
    slots: Arc<Semaphore>,
    crowd: Crowd,
    stop: watch::Receiver<bool>,
    head_wait_max: Duration,
}

impl Serving {
    /// Serves the router until `stop` becomes true. Without TLS everybody is taken for the manager's own.
    pub(crate) fn new(router: Router, tls: Option<Arc<ServerConfig>>, stop: watch::Receiver<bool>) -> Self {
        Self {
            router,
            tls: tls.map(TlsAcceptor::from),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            crowd: Crowd::default(),
            stop,
            head_wait_max: HEAD_WAIT_MAX,
        }
    }

    #[cfg(test)]
    fn head_wait_max(mut self, head_wait_max: Duration) -> Self {
        self.head_wait_max = head_wait_max;
        self
    }

    /// Accepts until told to stop, then waits for the connections to end.
    pub(crate) async fn listen(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        let mut stop = self.stop.clone();
        loop {
            // Reaped here, so that ended connections do not pile up.
            while connections.try_join_next().is_some() {}
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                accepted = self.accept(&listener) => {
                    if let Some((stream, from, slot)) = accepted
                        && let Some(place) = self.crowd.enter(from.ip(), PER_MACHINE_MAX)
                    {
                        let serving = self.clone();
                        connections.spawn(async move {
                            serving.connection(stream, from).await;
                            drop((slot, place));
                        });
                    }
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        match listener.accept().await {
            Ok((stream, from)) => Some((stream, from, slot)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    async fn connection(self, stream: TcpStream, from: SocketAddr) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "the connection ended before it began");
            return;
        }
        let Some(tls) = self.tls.clone() else {
            return self.requests(stream, Peer { from, caller: Caller::Manager }).await;
        };
        let mut stop = self.stop.clone();
        let secured = tokio::select! {
            secured = tokio::time::timeout(HANDSHAKE_TIME_MAX, secured(&tls, stream)) => secured,
            () = stopped(&mut stop) => return,
        };
        match secured {
            Ok(Ok((stream, caller))) => self.requests(stream, Peer { from, caller }).await,
            // The caller is told by TLS itself; here it is no more than somebody who knocked.
            Ok(Err(error)) => tracing::info!(%from, %error, "a connection was not secured"),
            Err(_) => tracing::debug!(%from, "a connection that was not secured in time"),
        }
    }

    async fn requests(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, peer: Peer) {
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            router.call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.head_wait_max)
            // The default, and what the core relies on: when the peer is gone, the handler's future is dropped.
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut self.stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// Secures a connection; the answer says who is at its other end.
async fn secured(tls: &TlsAcceptor, mut stream: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, Caller)> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    if first != [TLS_HANDSHAKE] {
        stream.write_all(NOT_TLS).await?;
        // What was sent is read, lest the answer be lost with a reset connection.
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        return Err(std::io::Error::other("it does not speak TLS"));
    }
    let stream = tls.accept(stream).await?;
    let caller = certified(stream.get_ref().1.peer_certificates()).map_err(std::io::Error::other)?;
    Ok((stream, caller))
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(UNREAD_MAX.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// Ends when the manager stops, or its main task is gone, which is the same.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use axum::routing::get;

    use super::*;

    /// Sends, and reads until the other side ends the connection; what came, and when the end came.
    fn sent(address: SocketAddr, bytes: &[u8]) -> (Vec<u8>, Duration) {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let began = Instant::now();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        (answer, began.elapsed())
    }

    #[tokio::test]
    async fn connections_that_say_nothing_or_half_of_something_do_not_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_stop, stopped) = watch::channel(false);
        let router = Router::new().route("/", get(async || "here"));
        let serving = Serving::new(router, None, stopped).head_wait_max(Duration::from_millis(300));
        let task = tokio::spawn(serving.listen(listener));
        let whole = &b"GET / HTTP/1.1\r\nhost: m\r\n\r\n"[..];
        for bytes in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nhost: m\r\n", whole] {
            let (answer, after) = tokio::task::spawn_blocking(move || sent(address, bytes)).await.unwrap();
            assert_eq!(answer.ends_with(b"here"), bytes == whole);
            assert!(after >= Duration::from_millis(250), "{after:?}");
        }
        task.abort();
    }
}
