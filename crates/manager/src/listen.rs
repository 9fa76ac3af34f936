//! Listening sockets.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use sublet_api::{ErrorKind, Refusal};
use sublet_types::Address;

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 128;

/// What one wish became.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The wish, with the port that it got.
    pub(crate) address: Address,
    /// The sockets: one, or one for each address of a name.
    pub(crate) sockets: Vec<TcpListener>,
}

impl Bound {
    /// True if only this machine can reach it.
    pub(crate) fn is_loopback(&self) -> bool {
        self.sockets.iter().all(|socket| socket.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback()))
    }
}

/// Listens on all of the addresses. Port 0 takes a free one; a name is resolved, and all its addresses are taken.
///
/// # Errors
/// `unreachable` if an address is not this machine's; `conflict` if it is in use.
pub(crate) fn listen_on(wishes: &[Address]) -> Result<Vec<Bound>, Refusal> {
    let mut resolved = Vec::new();
    for wish in wishes {
        let found: Vec<SocketAddr> = (wish.host(), wish.port())
            .to_socket_addrs()
            .map_err(|error| {
                Refusal::new(ErrorKind::Unreachable, format!("cannot listen on {wish}: its name is not known here ({error})"))
            })?
            .collect();
        resolved.push((wish, found));
    }
    // `[::]` takes IPv4 too, unless IPv4 addresses are wished for as well: then the two would be in each other's way.
    let only_v6 = resolved.iter().flat_map(|(_, found)| found).any(SocketAddr::is_ipv4);
    resolved.into_iter().map(|(wish, found)| listen_on_one(wish, &found, only_v6)).collect()
}

fn listen_on_one(wish: &Address, found: &[SocketAddr], only_v6: bool) -> Result<Bound, Refusal> {
    let mut bound = Bound { address: wish.clone(), sockets: Vec::new() };
    let mut failure = Refusal::new(ErrorKind::Unreachable, format!("cannot listen on {wish}: the name has no address"));
    let mut tried = Vec::new();
    for address in found {
        // A name may be listed twice with one address.
        if tried.contains(&address.ip()) {
            continue;
        }
        tried.push(address.ip());
        // The further addresses of a name share the port that the first one got.
        let address = SocketAddr::new(address.ip(), bound.address.port());
        match open(address, only_v6) {
            Ok(socket) => {
                let port = socket.local_addr().map_err(|error| refused(address, &error))?.port();
                bound.address = Address::new(wish.host(), port);
                bound.sockets.push(socket);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Err(refused(address, &error)),
            // `localhost` has an IPv6 address also on machines without IPv6: the others of its addresses will do.
            Err(error) => {
                failure = refused(address, &error);
                tracing::debug!(%error, %address, "not listening on this address of {wish}");
            }
        }
    }
    if bound.sockets.is_empty() { Err(failure) } else { Ok(bound) }
}

fn open(address: SocketAddr, only_v6: bool) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // A restarted manager must get its port back although connections of the former one linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, only_v6)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

fn refused(address: SocketAddr, error: &std::io::Error) -> Refusal {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Refusal::new(ErrorKind::Conflict, format!("cannot listen on {address}: another program uses this port"))
                .hint("stop it, or choose another port with --listen HOST:PORT (port 0 takes a free one)")
        }
        _ => Refusal::new(ErrorKind::Unreachable, format!("cannot listen on {address}: {error}"))
            .hint("name an address of this machine with --listen HOST:PORT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(text: &str) -> Address {
        Address::parse_with_port(text, 0).unwrap()
    }

    #[test]
    fn port_0_takes_a_free_port_and_tells_it() {
        let bound = listen_on(&[wish("127.0.0.1:0"), wish("[::1]:0")]).unwrap();
        assert_eq!(bound.len(), 2);
        for one in &bound {
            assert_ne!(one.address.port(), 0);
            assert_eq!(one.sockets[0].local_addr().unwrap().port(), one.address.port());
            assert!(one.is_loopback());
        }
    }

    #[test]
    fn both_wildcards_may_have_the_same_port() {
        let first = listen_on(&[wish("0.0.0.0:0")]).unwrap();
        let port = first[0].address.port();
        assert!(!first[0].is_loopback());
        drop(first);
        listen_on(&[Address::new("0.0.0.0", port), Address::new("::", port)]).unwrap();
    }

    #[test]
    fn a_name_is_listened_on_under_one_port() {
        let bound = listen_on(&[wish("localhost:0")]).unwrap();
        let address = &bound[0].address;
        assert_eq!(address.host(), "localhost");
        assert!(bound[0].is_loopback());
        assert!(bound[0].sockets.iter().all(|socket| socket.local_addr().unwrap().port() == address.port()));
        std::net::TcpStream::connect((address.host(), address.port())).unwrap();
    }

    #[test]
    fn a_port_in_use_and_a_foreign_address_are_refused_with_a_reason() {
        let first = listen_on(&[wish("127.0.0.1:0")]).unwrap();
        let refusal = listen_on(&[first[0].address.clone()]).unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::Conflict);
        assert!(refusal.message.contains("another program"), "{refusal}");
        assert_eq!(listen_on(&[wish("192.0.2.1:0")]).unwrap_err().kind, ErrorKind::Unreachable);
        assert_eq!(listen_on(&[wish("no-such-name.invalid:0")]).unwrap_err().kind, ErrorKind::Unreachable);
    }
}
