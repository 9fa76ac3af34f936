//! Connecting.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compio::driver::op::{Interest, PollOnce};
use compio::runtime::submit;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use sublet_types::Address;

use super::{RealConn, RealDoors, RealListener, blocking, listen};
use crate::{Clock, Endpoint, Net};

/// A Unix listener whose queue is full is asked again after this pause.
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

impl Net for RealDoors {
    type Conn = RealConn;
    type Listener = RealListener;

    async fn connect(&self, to: &Endpoint, limit: Duration) -> io::Result<RealConn> {
        let started = Instant::now();
        let work = async {
            match to {
                Endpoint::Tcp(address) => self.connect_tcp(address, started, limit).await,
                Endpoint::Unix(path) => self.connect_unix(path).await,
            }
        };
        let fd = match self.timeout(limit, work).await {
            Ok(result) => result.map_err(|error| named(to, "cannot connect to", &error))?,
            Err(_) => return Err(timed_out(to, limit)),
        };
        RealConn::from_fd(fd)
    }

    async fn listen(&self, at: &Endpoint) -> io::Result<RealListener> {
        let result = match at {
            Endpoint::Tcp(address) => listen::tcp(&resolve(address).await?),
            Endpoint::Unix(path) => listen::unix(path),
        };
        result.map_err(|error| named(at, "cannot listen on", &error))
    }
}

impl RealDoors {
    /// Tries every address of the name, each with its share of the time that is left: a dead first address must not use up
    /// the time of a living second one.
    async fn connect_tcp(&self, address: &Address, started: Instant, limit: Duration) -> io::Result<OwnedFd> {
        let addresses = resolve(address).await?;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        for address in addresses {
            let share = limit.saturating_sub(started.elapsed()) / left;
            left -= 1;
            failure = match self.timeout(share, connect_address(address)).await {
                Ok(Ok(fd)) => return Ok(fd),
                Ok(Err(error)) => error,
                Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")),
            };
        }
        Err(failure)
    }

    async fn connect_unix(&self, path: &Path) -> io::Result<OwnedFd> {
        let address = SocketAddrUnix::new(path)?;
        loop {
            let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags(), None)?;
            match rustix::io::retry_on_intr(|| rustix::net::connect(&fd, &address)) {
                Ok(()) => return Ok(fd),
                Err(Errno::AGAIN) => self.sleep(QUEUE_PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn flags() -> SocketFlags {
    SocketFlags::NONBLOCK | SocketFlags::CLOEXEC
}

async fn connect_address(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = Arc::new(rustix::net::socket_with(family, SocketType::STREAM, flags(), None)?);
    match rustix::net::connect(&fd, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => {
            submit(PollOnce::new(Arc::clone(&fd), Interest::Writable)).await.0?;
            sockopt::socket_error(&fd)??;
        }
        Err(error) => return Err(error.into()),
    }
    // The poll has ended, so nobody else holds it; a second descriptor is as good if the kernel is late.
    Arc::try_unwrap(fd).or_else(|fd| fd.try_clone())
}

/// The addresses of a name, asked anew each time; on a helper thread, since that may take many seconds.
async fn resolve(address: &Address) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = address.host().parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, address.port())]);
    }
    let target = (address.host().to_owned(), address.port());
    let found = blocking(move || target.to_socket_addrs().map(Iterator::collect::<Vec<_>>)).await;
    found.map_err(|error| io::Error::new(error.kind(), format!("the name '{}' cannot be resolved: {error}", address.host())))
}

fn named(endpoint: &Endpoint, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", name(endpoint)))
}

fn timed_out(endpoint: &Endpoint, limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("cannot connect to {}: no answer within {limit:?}", name(endpoint)))
}

fn name(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp(address) => address.to_string(),
        Endpoint::Unix(path) => path.display().to_string(),
    }
}
