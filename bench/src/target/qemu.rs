//! qemu-nbd and qemu-storage-daemon: a file over one hop.

use std::path::Path;
use std::process::Command;

use super::{Kind, Medium, Place, Target, unix};
use crate::error::Failure;
use crate::process::Server;

fn qemu_nbd(place: &Place, file: &Path) -> Result<Target, Failure> {
    let socket = place.path("qemu-nbd.sock");
    let mut command = Command::new("qemu-nbd");
    let cache = if place.medium == Medium::Disk { "none" } else { "writeback" };
    command.args(["--format=raw", "--persistent", "--shared=16", "--aio=io_uring", &format!("--cache={cache}"), "--socket"]);
    command.arg(&socket).arg(file);
    let server = Server::start(&mut command, || socket.exists())?;
    Ok(Target::nbd("qemu-nbd", Kind::Peer, &unix(&socket), vec![server]))
}

fn daemon(place: &Place, file: &Path, more: &[String], is_up: &dyn Fn() -> bool) -> Result<Server, Failure> {
    let direct = if place.medium == Medium::Disk { "on" } else { "off" };
    let node = format!("driver=file,node-name=f,filename={},aio=io_uring,cache.direct={direct}", file.display());
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", &node]).args(more);
    Server::start(&mut command, is_up)
}

/// All three ways: each has a file of its own, because they lock it.
pub fn targets(place: &Place, bytes: u64, wants: &dyn Fn(&str) -> bool) -> Result<Vec<Target>, Failure> {
    let mut targets = Vec::new();
    if wants("qemu-nbd") {
        targets.push(qemu_nbd(place, &place.file("qemu-nbd.img", bytes)?)?);
    }
    if wants("qemu-daemon") {
        let (file, socket) = (place.file("qemu-daemon.img", bytes)?, place.path("qemu-daemon.sock"));
        let more = [
            "--nbd-server".to_owned(),
            format!("addr.type=unix,addr.path={},max-connections=16", socket.display()),
            "--export".to_owned(),
            "type=nbd,id=e,node-name=f,name=,writable=on".to_owned(),
        ];
        let server = daemon(place, &file, &more, &|| socket.exists())?;
        targets.push(Target::nbd("qemu-daemon", Kind::Peer, &unix(&socket), vec![server]));
    }
    if wants("qemu-fuse") {
        let (file, point) = (place.file("qemu-fuse.img", bytes)?, place.file("qemu-fuse.mount", 0)?);
        let more = ["--export".to_owned(), format!("type=fuse,id=e,node-name=f,mountpoint={},writable=on", point.display())];
        let is_up = || std::fs::metadata(&point).is_ok_and(|meta| meta.len() == bytes);
        let server = daemon(place, &file, &more, &is_up)?;
        let pids = vec![server.pid()];
        let io = vec!["--ioengine=io_uring".to_owned(), "--direct=1".to_owned(), format!("--filename={}", point.display())];
        targets.push(Target { name: "qemu-fuse", kind: Kind::Peer, io, pids, served: vec![Box::new(server)] });
    }
    Ok(targets)
}
