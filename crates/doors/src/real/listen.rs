//! Listening.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use compio::driver::op::{Interest, PollOnce};
use compio::runtime::submit;
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use sublet_types::Address;

use super::RealConn;
use crate::Listener;

/// Connections that wait to be accepted at most.
const BACKLOG: i32 = 1024;
/// Pause before an error for want of descriptors or memory is told, so that a loop over `accept` does not spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket, TCP or Unix. A dropped `accept` loses no connection.
#[derive(Debug)]
pub struct RealListener {
    fd: Arc<OwnedFd>,
    address: Option<Address>,
}

impl Listener for RealListener {
    type Conn = RealConn;

    async fn accept(&self) -> io::Result<RealConn> {
        loop {
            match rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC) {
                Ok(fd) => match RealConn::from_fd(fd) {
                    // The peer is gone again; the next one.
                    Err(error) if is_gone(&error) => {}
                    other => return other,
                },
                Err(Errno::AGAIN) => {
                    submit(PollOnce::new(Arc::clone(&self.fd), Interest::Readable)).await.0?;
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    compio::time::sleep(EXHAUSTED_PAUSE).await;
                    return Err(error.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn local_address(&self) -> Option<Address> {
        self.address.clone()
    }
}

fn is_gone(error: &io::Error) -> bool {
    [Errno::NOTCONN, Errno::CONNRESET, Errno::INVAL].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Listens on the first of the addresses that can be used.
pub(super) fn tcp(addresses: &[SocketAddr]) -> io::Result<RealListener> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let mut result = bind_tcp(*address, false);
        if address.is_ipv6() && result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            // `[::]` takes IPv4 too, unless that is taken: 0.0.0.0 and [::] may be listened on together.
            result = bind_tcp(*address, true);
        }
        match result {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn bind_tcp(address: SocketAddr, v6_only: bool) -> io::Result<RealListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket(family)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if v6_only {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, BACKLOG)?;
    let bound = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
    Ok(RealListener { fd: Arc::new(fd), address: Some(Address::new(bound.ip().to_string(), bound.port())) })
}

/// Listens on a Unix socket, 0600 from its first moment. A socket file that nobody listens on any more is replaced.
pub(super) fn unix(path: &Path) -> io::Result<RealListener> {
    let address = SocketAddrUnix::new(path)?;
    remove_dead(path, &address)?;
    let fd = socket(AddressFamily::UNIX)?;
    // The file that `bind` makes takes over the mode of the socket: no moment in which others could connect.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&fd, &address)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(RealListener { fd: Arc::new(fd), address: None })
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// Removes a socket file if connecting to it shows that nobody listens.
fn remove_dead(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {}
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path is taken by something that is not a socket"));
        }
    }
    match rustix::net::connect(&socket(AddressFamily::UNIX)?, address) {
        Err(Errno::CONNREFUSED) => match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        },
        Err(Errno::NOENT) => Ok(()),
        // Connected, or its queue is full: somebody is there.
        Ok(()) | Err(Errno::AGAIN) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        Err(error) => Err(error.into()),
    }
}
