//! Peers that do not behave, on every port and socket: who works goes on working, and nobody's memory grows without bounds.
//! (Lenders and clients that lie are in the tests of the crates, where every reply can be chosen:
//! `crates/volume/src/tests/lies.rs`, `crates/agent/src/tests/garbage.rs`.)

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sublet_tests::fio::Fio;
use sublet_tests::peers::{self, Door, Manner, annoy, descriptors, peak_mib, unix};
use sublet_tests::process::Process;
use sublet_tests::shorthand::text;
use sublet_tests::{MIB, Pool, Wish, http, wait_for};

/// The most memory, in MiB, that each process may ever have had in these tests. What each may hold by its named limits: an agent
/// 32 MiB for each session, a client 56 MiB for its front ends and 32 MiB for each leg, a manager 64 MiB of long bodies.
const AGENT_MIB_MAX: u64 = 160;
const CLIENT_MIB_MAX: u64 = 320;
const MANAGER_MIB_MAX: u64 = 256;
/// When connections of peers that have gone are let go at the latest.
const LET_GO: Duration = Duration::from_secs(90);

/// A pool of three with `v` of `server-a` on b1 and c1, mounted.
fn pool() -> Pool {
    let pool = Pool::with(&Wish { servers: 3, area: Some("128M") });
    pool.ok(0, "volume create v --way doubled --on b1:48M,c1:48M");
    pool.ok(0, "borrow v");
    pool.ok(0, "mount v --as socket");
    pool
}

fn agent_port(pool: &Pool, server: usize) -> String {
    text(&pool.json(0, "server ls"), &format!("/{server}/addresses/0"))
}

fn manager_port(pool: &Pool) -> String {
    pool.url().trim_start_matches("http://").to_owned()
}

/// Tells the peaks, and asserts on them.
#[track_caller]
fn memory_is_bounded(what: &str, pool: &Pool) {
    let all = [
        ("manager", pool.manager(), MANAGER_MIB_MAX),
        ("agent", pool.server(1), AGENT_MIB_MAX),
        ("client", pool.client(0, "v"), CLIENT_MIB_MAX),
    ];
    let peaks: Vec<(&str, u64, u64)> = all.iter().map(|(name, process, max)| (*name, peak_mib(process), *max)).collect();
    eprintln!("{what}: peak memory in MiB (name, seen, bound): {peaks:?}");
    assert!(peaks.iter().all(|(_, seen, max)| seen <= max), "{what}: {peaks:?}");
}

#[test]
fn a_thousand_idle_connections_to_agent_and_manager_keep_nobody_from_working() {
    peers::raise_own_file_limit(4096);
    let pool = pool();
    let (agent, manager) = (agent_port(&pool, 1), manager_port(&pool));
    let mut idle = peers::silent(&manager, 1000);
    // Whoever comes later pushes the earliest of them out.
    idle.extend(peers::silent(&agent, 1000));
    Fio::nbd(&pool.socket(0, "v")).job("16k", 16, 32 * MIB).check();
    // New paths to that very agent are opened, and the manager answers.
    pool.ok(2, "borrow w --size 16M --way divided");
    pool.ok(2, "mount w --as socket");
    Fio::nbd(&pool.socket(2, "w")).job("4k", 8, 4 * MIB).check();
    pool.finish(2, "w");
    pool.ok(0, "unmount v");
    pool.ok(0, "mount v --as socket");
    assert!(pool.nbd(0, "v").read(0, 4096).is_ok());
    assert_eq!(pool.legs("v"), ["in-sync", "in-sync"]);
    memory_is_bounded("idle connections", &pool);
    drop(idle);
}

/// The beginnings of what each kind of door understands, and what can follow them without an end.
fn manners(door: &Door, http: bool, nbd: bool) -> Vec<(Door, Manner)> {
    let (begin, more): (Vec<u8>, Vec<u8>) = if http {
        (b"GET /v1/table HTTP/1.1\r\nhost: m\r\n\r\n".to_vec(), b"GET /v1/table HTTP/1.1\r\nhost: m\r\n\r\n".to_vec())
    } else if nbd {
        // The client's flags, GO for the empty name; then reads of 1 MiB.
        let go = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &7u32.to_be_bytes(), &6u32.to_be_bytes(), &[0; 6]].concat();
        let read = [&0x2560_9513u32.to_be_bytes()[..], &[0; 4], &[9; 8], &[0; 8], &(1u32 << 20).to_be_bytes()].concat();
        (go, read)
    } else if matches!(door, Door::Unix(_)) {
        (b"{\"ask\":\"status\"}\n".to_vec(), b"{\"ask\":\"status\"}\n".to_vec())
    } else {
        // A frame of the access protocol, but for its checksum.
        ([b"SbQ1", &[3, 1, 0, 0][..], &[1; 56]].concat(), vec![0x53; 4096])
    };
    let long_head = [b"GET / HTTP/1.1\r\nhost: m\r\nx: ".to_vec(), vec![b'y'; 4096]].concat();
    let half = begin.get(..begin.len() / 2).unwrap_or_default().to_vec();
    [
        Manner::Silent,
        Manner::Slow(begin.clone()),
        Manner::HalfOpen(half),
        Manner::Endless(begin.clone(), vec![b'z'; 4096]),
        Manner::Endless(long_head, vec![b'y'; 4096]),
        Manner::Deaf(begin, more),
    ]
    .into_iter()
    .map(|manner| (door.clone(), manner))
    .collect()
}

#[test]
fn slow_half_open_endless_and_deaf_peers_on_every_port_hold_up_nobody() {
    peers::raise_own_file_limit(4096);
    let pool = pool();
    let processes = [pool.manager(), pool.server(0), pool.server(1), pool.client(0, "v")];
    let before: Vec<usize> = processes.iter().map(descriptors).collect();
    let mut all = manners(&Door::Tcp(manager_port(&pool)), true, false);
    all.extend(manners(&Door::Tcp(agent_port(&pool, 1)), false, false));
    let nbd = manners(&unix(&pool.socket(0, "v")), false, true);
    // Only one that reads nothing: what its requests hold of the room of all is given back after half a minute, and two would
    // fill it again and again. The socket is its owner's alone.
    let (deaf, nbd): (Vec<_>, Vec<_>) = nbd.into_iter().partition(|(_, manner)| matches!(manner, Manner::Deaf(..)));
    all.extend(nbd);
    for socket in [pool.home(1).join("control.sock"), pool.mount_dir(0, "v").join("control.sock")] {
        // Their users are root and the pool's own; a few of them do harm enough.
        all.extend(manners(&unix(&socket), false, false).into_iter().take(3));
    }
    let all: Vec<(Door, Manner)> = all.iter().cycle().take(6 * all.len()).cloned().chain(deaf).collect();
    let over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            // The one NBD client that was there before; then fio's, which comes in beside all the others.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let fio = Fio::nbd(&pool.socket(0, "v")).job("16k", 16, 24 * MIB);
                fio.check();
                pool.ok(2, "borrow w --size 16M --way divided");
                pool.ok(2, "mount w --as socket");
                Fio::nbd(&pool.socket(2, "w")).job("4k", 8, 4 * MIB).check();
                pool.finish(2, "w");
            }));
            over.store(true, Ordering::Relaxed);
            ended
        });
        let done = annoy(&all, 250, &|| over.load(Ordering::Relaxed));
        work.join().unwrap().unwrap();
        done
    });
    eprintln!("{} peers: {done:?}", all.len());
    assert!(done.sent > 1 << 20 && done.ended > 0, "{done:?}: they did annoy");
    for process in &processes {
        assert!(process.runs(), "{:?} has ended", process.words);
    }
    wait_for("all connections to be let go", LET_GO, || {
        processes.iter().map(descriptors).zip(&before).all(|(now, before)| now <= before + 2)
    });
    assert_eq!(pool.legs("v"), ["in-sync", "in-sync"]);
    memory_is_bounded("slow, half-open, endless and deaf peers", &pool);
    pool.ok(0, "status");
    pool.finish(0, "v");
}

#[test]
fn half_of_many_long_bodies_fills_no_memory_and_short_ones_pass() {
    const LONG: usize = 31 << 20;
    let pool = pool();
    let address = manager_port(&pool);
    let head = format!(
        "POST /v1/servers/{}/poll HTTP/1.1\r\nhost: m\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        "1".repeat(32),
        LONG + 1
    );
    let over = AtomicBool::new(false);
    let spaces = vec![b' '; 1 << 20];
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    let mut stream = TcpStream::connect(&address).unwrap();
                    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
                    let mut sent = 0;
                    let mut left: &[u8] = head.as_bytes();
                    // All but the last byte, unless it is not taken.
                    while sent < LONG && !over.load(Ordering::Relaxed) {
                        match stream.write(left) {
                            Ok(n) => left = &left[n..],
                            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                            Err(_) => break,
                        }
                        if left.is_empty() {
                            sent += spaces.len();
                            left = &spaces;
                        }
                    }
                    while !over.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    let _ = stream.read(&mut [0]);
                })
            })
            .collect();
        let manager: Process = pool.manager();
        // Until they have filled what there is room for, and then for as long as it takes to do all this.
        wait_for("the long bodies to arrive", Duration::from_secs(60), || peak_mib(&manager) > 70);
        pool.ok(2, "borrow w --size 16M --way divided");
        pool.ok(2, "mount w --as socket");
        pool.finish(2, "w");
        for _ in 0..100 {
            assert_eq!(http::request(&pool.url(), "GET", "/v1/table", b"").unwrap().status, 200);
        }
        over.store(true, Ordering::Relaxed);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
    memory_is_bounded("long bodies", &pool);
    pool.finish(0, "v");
}
