//! nbdkit: a file over one hop, and over two, as a chain of two of them would be.

use std::path::Path;
use std::process::Command;

use super::{Kind, Medium, Place, Target, unix};
use crate::error::{Doing as _, Failure};
use crate::process::Server;

fn on_socket(socket: &Path, plugin: &[&str]) -> Result<Server, Failure> {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--unix"]).arg(socket).args(plugin);
    Server::start(&mut command, || socket.exists())
}

fn on_port(port: u16, plugin: &[&str]) -> Result<Server, Failure> {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--ipaddr", "127.0.0.1", "--port", &port.to_string()]).args(plugin);
    Server::start(&mut command, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
}

/// A port that nobody has.
fn free_port() -> Result<u16, Failure> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").doing("looking for a free port")?;
    Ok(listener.local_addr().doing("looking for a free port")?.port())
}

/// It has no way past the page cache, so it is measured in memory only.
pub fn targets(place: &Place, bytes: u64, wants: &dyn Fn(&str) -> bool) -> Result<Vec<Target>, Failure> {
    let names = ["nbdkit-unix", "nbdkit-tcp", "nbdkit-chain"];
    if place.medium != Medium::Memory || !names.iter().any(|name| wants(name)) {
        return Ok(Vec::new());
    }
    let path = place.file("nbdkit.img", bytes)?;
    let file = path.to_string_lossy().into_owned();
    let plugin = ["file", file.as_str()];
    let mut targets = Vec::new();
    if wants("nbdkit-unix") {
        let socket = place.path("nbdkit.sock");
        targets.push(Target::nbd("nbdkit-unix", Kind::Peer, &unix(&socket), vec![on_socket(&socket, &plugin)?]));
    }
    if wants("nbdkit-tcp") {
        let port = free_port()?;
        let uri = format!("nbd://127.0.0.1:{port}");
        targets.push(Target::nbd("nbdkit-tcp", Kind::Peer, &uri, vec![on_port(port, &plugin)?]));
    }
    if wants("nbdkit-chain") {
        let (port, socket) = (free_port()?, place.path("chain.sock"));
        let far = on_port(port, &plugin)?;
        let near = on_socket(&socket, &["nbd", "hostname=127.0.0.1", &format!("port={port}")])?;
        targets.push(Target::nbd("nbdkit-chain", Kind::Peer, &unix(&socket), vec![far, near]));
    }
    Ok(targets)
}
