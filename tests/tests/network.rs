//! Addresses: IPv6, a storage network of its own, failure zones, and what happens when somebody moves.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use sublet_tests::model::same;
use sublet_tests::pool::{free_port, scratch, words};
use sublet_tests::process::{self, program};
use sublet_tests::random::Random;
use sublet_tests::{MIB, Pool, Wish, wait_for};

/// A manager and servers by hand, listening on `host`; each server with its own further flags. `{port}` in them is the port
/// that the server listens on.
fn by_hand(pool: &Pool, host: &str, servers: &[&str]) {
    let manager = pool.manager_home();
    let program = program().to_string_lossy().into_owned();
    let url = format!("{host}:{}", free_port(host));
    let line = [&program, "manager", "--data", &manager.to_string_lossy(), "--listen", &url];
    process::start(&manager, &line.map(str::to_owned));
    for (server, flags) in servers.iter().enumerate() {
        let home = pool.home(server);
        let port = free_port(host).to_string();
        let (manager, at) = (format!("http://{url}"), format!("{host}:{port}"));
        let (data, name) = (home.to_string_lossy().into_owned(), sublet_tests::pool::name(server));
        let mut line: Vec<String> =
            [&program, "--manager", &manager, "server", "--data", &data, "--listen", &at, "--name", &name]
                .map(str::to_owned)
                .to_vec();
        line.extend(words(flags).iter().map(|word| word.replace("{port}", &port)));
        process::start(&home, &line);
    }
    for server in 0..servers.len() {
        wait_for("the server to be up", Duration::from_secs(20), || pool.is_up(server));
    }
}

/// Lends 64 MiB of a folder.
fn lend(pool: &Pool, server: usize) {
    let dir = pool.home(server).join("disk");
    std::fs::create_dir(&dir).unwrap();
    pool.ok(server, &format!("lend {} --size 64M --sparse --keep-free 0%", dir.display()));
}

#[test]
fn a_pool_works_over_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: no IPv6 here");
        return;
    }
    let pool = Pool::empty(scratch());
    by_hand(&pool, "[::1]", &["", ""]);
    lend(&pool, 1);
    let mut nbd = pool.carve(0, "v", "--size 16M");
    let bytes = Random::new(3).bytes(1 << 20);
    nbd.write(77, &bytes).unwrap();
    same(&nbd.read(77, 1 << 20).unwrap(), &bytes, 77, "over IPv6");
    assert!(pool.json(0, "server ls").to_string().contains("[::1]"));
    drop(nbd);
    pool.finish(0, "v");
}

#[test]
fn advertised_addresses_are_tried_in_order_and_dead_ones_are_passed_over() {
    let pool = Pool::empty(scratch());
    // Nobody listens on port 1; 127.0.0.2 stands for the storage network, and localhost for a name.
    by_hand(
        &pool,
        "127.0.0.1",
        &["", "--advertise 127.0.0.1:1,localhost:{port}", "--listen 127.0.0.2:{port} --advertise 127.0.0.2:{port}"],
    );
    lend(&pool, 1);
    lend(&pool, 2);
    let servers = pool.json(0, "server ls").to_string();
    assert!(servers.contains("127.0.0.1:1\"") && servers.contains("localhost:") && servers.contains("127.0.0.2:"), "{servers}");
    let mut nbd = pool.carve(0, "v", "--size 32M --way doubled");
    nbd.write(MIB, b"by the second address").unwrap();
    nbd.flush().unwrap();
    assert_eq!(nbd.read(MIB, 21).unwrap(), b"by the second address");
    assert_eq!(pool.legs("v"), ["in-sync", "in-sync"]);
    let client = pool.client(0, "v").pid.as_raw_nonzero();
    let list = sublet_tests::run::sh("ss", &["-tnpH", "state", "established"]).out;
    let own: Vec<&str> = list.lines().filter(|line| line.contains(&format!("pid={client},"))).collect();
    assert!(own.iter().any(|line| line.contains("127.0.0.2:")), "the storage network is not used: {own:?}");
    drop(nbd);
    pool.finish(0, "v");
}

#[test]
fn copies_lie_in_different_failure_zones() {
    let pool = Pool::empty(scratch());
    by_hand(&pool, "127.0.0.1", &["--zone r1", "--zone r1", "--zone r1", "--zone r2"]);
    for server in 1..4 {
        lend(&pool, server);
    }
    for round in 0..3 {
        pool.ok(0, &format!("borrow v{round} --size 16M --way doubled"));
        let lenders = pool.lenders(&format!("v{round}"));
        assert!(lenders.contains(&3), "both copies are in r1: {lenders:?}");
    }
}

#[test]
fn manager_and_lender_are_found_again_at_other_addresses_without_remounting() {
    let pool = Pool::with(&Wish { servers: 2, area: Some("64M") });
    let mut nbd = pool.carve(0, "v", "--size 16M");
    nbd.write(0, b"unmoved").unwrap();
    let client = pool.client(0, "v");
    // The lender moves to another port.
    let lender = pool.server(1);
    lender.kill();
    let mut moved = lender.clone();
    let port = free_port("127.0.0.1");
    set_after(&mut moved.words, "--listen", &format!("127.0.0.1:{port}"));
    moved.restart();
    assert_eq!(nbd.read(0, 7).unwrap(), b"unmoved", "the lender at its new address");
    // The manager moves, too; the servers are started again with its new URL.
    let manager = pool.manager();
    manager.kill();
    let mut new_manager = manager.clone();
    let new = format!("127.0.0.1:{}", free_port("127.0.0.1"));
    set_after(&mut new_manager.words, "--listen", &new);
    new_manager.restart();
    for server in [0, 1] {
        let mut process = pool.server(server);
        process.kill();
        set_after(&mut process.words, "--manager", &format!("http://{new}"));
        process.restart();
    }
    for server in [0, 1] {
        wait_for("the server to be up", Duration::from_secs(20), || pool.is_up(server));
    }
    nbd.write(7, b" anywhere").unwrap();
    assert_eq!(nbd.read(0, 16).unwrap(), b"unmoved anywhere");
    wait_for("the client's reports to reach the manager", Duration::from_secs(20), || pool.volume("v")["path"] == "open");
    assert!(client.runs(), "it was mounted anew");
    drop(nbd);
    pool.finish(0, "v");
    // `playground --stop` reads the old URL: it finds the processes by themselves.
}

fn set_after(words: &mut [String], flag: &str, value: &str) {
    let at = words.iter().position(|w| w == flag).unwrap_or_else(|| panic!("no {flag} in {words:?}"));
    words[at + 1] = value.to_owned();
}
