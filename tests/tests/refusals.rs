//! Nonsense at every door is refused clearly, nothing gets stuck, nothing leaks, and a volume works on meanwhile.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sublet_tests::fio::Fio;
use sublet_tests::nbd::Nbd;
use sublet_tests::random::Random;
use sublet_tests::shorthand::text;
use sublet_tests::{MIB, Pool, Wish, exit, http, wait_for};

fn pool(servers: usize) -> Pool {
    Pool::with(&Wish { servers, area: Some("64M") })
}

#[test]
fn sizes_that_are_no_sizes_are_refused() {
    let pool = pool(3);
    let before = pool.json(0, "table");
    for size in [
        "-1",
        "10 potatoes",
        "potatoes",
        "",
        "1e9",
        "0x10",
        "1..5G",
        "18446744073709551616",
        "99999999999999999999T",
        "\u{2460}G",
        "NaN",
    ] {
        for line in [&["borrow", "v", "--size", size][..], &["lend", "/var/tmp", "--size", size]] {
            pool.sublet(0, line).refused(exit::BAD_REQUEST);
        }
        let share = format!("b1:{size}");
        pool.sublet(0, &["volume", "create", "v", "--way", "divided", "--on", &share]).refused(exit::BAD_REQUEST);
    }
    pool.refused(0, "borrow v --size 0", exit::BAD_REQUEST);
    pool.refused(0, "volume create v --way divided --on b1:0", exit::BAD_REQUEST);
    for size in ["9223372036854775808", "18446744073709551615", "8388608T"] {
        let run = pool.sublet(0, &["borrow", "v", "--size", size]).sane();
        assert!([exit::BAD_REQUEST, exit::NO_SPACE].contains(&run.code.unwrap()), "{run}");
        let share = format!("b1:{size}");
        let run = pool.sublet(0, &["volume", "create", "v", "--way", "divided", "--on", &share]).sane();
        assert!([exit::BAD_REQUEST, exit::NO_SPACE].contains(&run.code.unwrap()), "{run}");
    }
    // Large but thinkable: how much is missing, and where.
    for line in [
        "borrow v --size 1T",
        "borrow v --size 1T --way doubled",
        "borrow v --size 100M --way single",
        "borrow v --size 16M --copies 4",
    ] {
        pool.refused(0, line, exit::NO_SPACE);
    }
    let after = pool.json(0, "table");
    assert_eq!((&after["volumes"], &after["areas"]), (&before["volumes"], &before["areas"]), "a refusal changed something");
}

#[test]
fn names_that_are_no_names_are_refused() {
    let pool = pool(2);
    let long = "a".repeat(64);
    for name in ["", " ", "-v", "v_1", "v/1", "../v", "v.1", "v 1", "v\n", "\u{fc}", long.as_str(), "--", "v;rm", "$(id)"] {
        for line in [
            &["borrow", "--size", "16M", "--", name][..],
            &["volume", "create", "--way", "divided", "--on", "b1:16M", "--", name],
            &["server", "rename", "--", "server-a", name],
            &["area", "rename", "--", "a1", name],
        ] {
            pool.sublet(0, line).refused(exit::BAD_REQUEST);
        }
        // A name that nothing can have is not found, or refused as it stands: never taken for a path.
        for line in [
            &["mount", "--as", "socket", "--", name][..],
            &["unmount", "--", name],
            &["return", "--", name],
            &["volume", "show", "--", name],
        ] {
            let run = pool.sublet(0, line).sane();
            assert!([exit::BAD_REQUEST, exit::NOT_FOUND].contains(&run.code.unwrap()), "{run}");
        }
    }
    let longest = "a".repeat(63);
    pool.ok(0, &format!("borrow {longest} --size 16M"));
    pool.ok(0, &format!("mount {longest} --as socket"));
    pool.finish(0, &longest);
    assert_eq!(pool.json(0, "server ls")[0]["name"], "server-a");
}

#[test]
fn every_refusal_has_its_exit_code_and_its_reason_also_as_json() {
    let pool = pool(3);
    pool.ok(0, "borrow mine --size 16M");
    for (line, code, kind) in [
        ("volume show nothing", exit::NOT_FOUND, "not_found"),
        ("borrow nothing", exit::NOT_FOUND, "not_found"),
        ("mount nothing --as socket", exit::NOT_FOUND, "not_found"),
        ("unmount nothing", exit::NOT_FOUND, "not_found"),
        ("return nothing", exit::NOT_FOUND, "not_found"),
        ("transfer nothing --to server-b", exit::NOT_FOUND, "not_found"),
        ("transfer mine --to nobody", exit::NOT_FOUND, "not_found"),
        ("search nothing x", exit::NOT_FOUND, "not_found"),
        ("reclaim nothing", exit::NOT_FOUND, "not_found"),
        ("volume create v --way single --on nothing", exit::NOT_FOUND, "not_found"),
        ("server rename nothing new", exit::NOT_FOUND, "not_found"),
        ("server leave nothing", exit::NOT_FOUND, "not_found"),
        ("area rename nothing new", exit::NOT_FOUND, "not_found"),
        ("volume rename nothing new", exit::NOT_FOUND, "not_found"),
        ("volume create mine --way divided --on c1:16M", exit::ALREADY_EXISTS, "already_exists"),
        ("borrow mine --size 16M", exit::ALREADY_EXISTS, "already_exists"),
        ("server rename server-a server-b", exit::ALREADY_EXISTS, "already_exists"),
        ("area rename a1 b1", exit::ALREADY_EXISTS, "already_exists"),
        ("borrow mine", exit::CONFLICT, "conflict"),
        ("unmount mine", exit::CONFLICT, "conflict"),
        ("server leave server-b", exit::CONFLICT, "conflict"),
        ("borrow v --size 10G", exit::NO_SPACE, "no_space"),
        ("volume create v --way divided --on c1:10G", exit::NO_SPACE, "no_space"),
        ("volume create v --way doubled --on c1:16M,c1:16M", exit::CONFLICT, "conflict"),
        ("volume create v --way doubled --on c1:16M", exit::BAD_REQUEST, "bad_request"),
        ("--manager ftp://127.0.0.1:1 table", exit::BAD_REQUEST, "bad_request"),
        ("--manager http://127.0.0.1:1 table", exit::UNREACHABLE, "unreachable"),
    ] {
        let run = pool.refused(0, line, code);
        assert!(run.out.is_empty(), "a refusal belongs on standard error: {run}");
        let mut args = sublet_tests::pool::words(line);
        args.push("--json");
        let run = pool.sublet(0, &args).refused(code);
        let refusal: Value = serde_json::from_str(run.err.trim()).unwrap_or_else(|e| panic!("no JSON ({e}): {run}"));
        assert_eq!(refusal["kind"], kind, "{run}");
        assert!(text(&refusal, "/message").len() > 10, "{run}");
    }
    for line in [
        "",
        "juggle",
        "borrow",
        "mount",
        "mount mine --as tape",
        "lend",
        "borrow v --way raid6 --size 16M",
        "mount mine --idle-close 0",
    ] {
        assert_eq!(pool.sublet(0, &sublet_tests::pool::words(line)).sane().code, Some(exit::BAD_REQUEST), "{line}");
    }
    // Without a server in the state directory.
    let nowhere = pool.dir().join("nowhere");
    let mut command = sublet_tests::pool::sublet();
    command.args(["borrow", "x", "--size", "16M", "--manager", &pool.url(), "--home"]).arg(&nowhere);
    sublet_tests::run::run(&mut command).refused(exit::NOT_FOUND).says("nowhere");
}

/// Every POST path of the API.
const POSTS: [&str; 15] = [
    "/v1/servers",
    "/v1/servers/server-a/poll",
    "/v1/servers/server-a/rename",
    "/v1/servers/nobody/leave",
    "/v1/servers/server-a/areas/check",
    "/v1/areas/a1/rename",
    "/v1/areas/a1/reclaim",
    "/v1/volumes",
    "/v1/volumes/v/set-way",
    "/v1/volumes/v/rename",
    "/v1/volumes/v/mount",
    "/v1/volumes/v/unmount",
    "/v1/volumes/v/return",
    "/v1/volumes/v/client",
    "/v1/volumes/v/legs",
];

#[test]
fn wrong_json_is_refused_as_json_and_changes_nothing() {
    let pool = pool(2);
    let url = pool.url();
    let before = pool.json(0, "table");
    let deep = "[".repeat(100_000);
    let task = "00000000000000000000000000000001";
    let bodies: Vec<String> = vec![
        String::new(),
        "{".into(),
        "[]".into(),
        "null".into(),
        "42".into(),
        "\"text\"".into(),
        "{}".into(),
        "\u{0}\u{1}".into(),
        deep,
        json!({ "task": "not an id", "name": "x", "size": -1, "server": 7 }).to_string(),
        json!({ "task": task, "name": "v/../..", "way": "raid", "on": [{ "area": "a1", "size": -5 }] }).to_string(),
        json!({ "task": task, "name": "v", "way": "divided", "on": [], "extra": 1 }).to_string(),
        json!({ "task": task, "server": "ffffffffffffffffffffffffffffffff", "name": "v", "size": 1u64 << 63 }).to_string(),
        json!({ "epoch": { "number": 18_446_744_073_709_551_615u64, "random": "zz" }, "path": "sideways" }).to_string(),
        format!("{{\"name\":\"{}\"}}", "n".repeat(500_000)),
    ];
    for path in POSTS.iter().chain(&["/v1/borrow", "/v1/volumes/v/transfer"]) {
        for body in &bodies {
            // An empty object is enough for what needs nothing.
            let answer = http::request(&url, "POST", path, body.as_bytes()).unwrap();
            let shown: String = body.chars().take(60).collect();
            assert!((400..500).contains(&answer.status), "POST {path} {shown}: {answer:?}");
            let refusal: Value =
                serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("POST {path} {shown}: no JSON ({e}): {answer:?}"));
            assert!(!text(&refusal, "/kind").is_empty() && !text(&refusal, "/message").is_empty(), "{answer:?}");
        }
    }
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/../../etc/passwd", 404),
        ("GET", "/v1/volumes/%00%ff", 400),
        ("DELETE", "/v1/volumes", 405),
        ("GET", "/v1/borrow", 405),
        ("GET", "/v1/table?after=-1", 400),
        ("GET", "/v1/table?wait_ms=potatoes", 400),
        ("GET", "/v1/events?limit=-1", 400),
    ] {
        let answer = http::request(&url, method, path, b"").unwrap();
        assert!(answer.status == status || (status == 400 && answer.status == 404), "{method} {path}: {answer:?}");
        assert!(serde_json::from_str::<Value>(&answer.body).is_ok(), "{method} {path}: {answer:?}");
    }
    // A body without an end, and one that is too large.
    let huge = vec![b' '; 3 << 20];
    let answer = http::request(&url, "POST", "/v1/borrow", &huge).unwrap();
    assert!(answer.status == 413 || answer.status == 400, "{answer:?}");
    let after = pool.json(0, "table");
    assert_eq!((&after["volumes"], &after["areas"]), (&before["volumes"], &before["areas"]));
    let names = |t: &Value| -> Vec<String> { t["servers"].as_array().unwrap().iter().map(|s| text(s, "/name")).collect() };
    assert_eq!(names(&after), names(&before));
    let document: Value = serde_json::from_str(&http::request(&url, "GET", "/v1/openapi.json", b"").unwrap().body).unwrap();
    for path in ["/v1/table", "/v1/borrow", "/v1/volumes", "/v1/volumes/{volume}/mount", "/v1/servers/{server}/poll"] {
        assert!(document["paths"].get(path).is_some(), "the document does not name {path}");
    }
}

/// Open file descriptors of a process.
fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn memory_mib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// What nobody understands.
fn garbage(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    vec![
        Vec::new(),
        b"\0".to_vec(),
        random.bytes(1),
        random.bytes(63),
        random.bytes(64),
        random.bytes(65),
        random.bytes(100_000),
        vec![0; 4096],
        vec![0xff; 4096],
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /".to_vec(),
        b"POST /v1/borrow HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /v1/borrow HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{".to_vec(),
        b"{\"ask\":\"status\"".to_vec(),
        b"{\"ask\":\"juggle\"}\n".to_vec(),
        b"NBDMAGICIHAVEOPT\0\0\0\0".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![b'\n'; 10_000],
    ]
}

fn to_socket(path: &Path, bytes: &[u8], close: bool) {
    let mut stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("{} is gone: {e}", path.display()));
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = stream.write_all(bytes);
    if close {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = [0; 4096];
    // An answer, an end, or silence: all are fine, as long as others are served.
    let _ = stream.read(&mut answer);
}

fn to_port(address: &str, bytes: &[u8], close: bool) {
    let mut stream = std::net::TcpStream::connect(address).unwrap_or_else(|e| panic!("{address} is gone: {e}"));
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = stream.write_all(bytes);
    if close {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = [0; 4096];
    let _ = stream.read(&mut answer);
}

#[test]
fn garbage_on_every_port_disturbs_nobody() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way doubled --on b1:32M,c1:32M");
    pool.ok(0, "borrow v");
    pool.ok(0, "mount v --as socket");
    let servers = pool.json(0, "server ls");
    let address = |n: usize| text(&servers, &format!("/{n}/addresses/0"));
    let ports = [pool.url().trim_start_matches("http://").to_owned(), address(1), address(2), address(0)];
    let sockets = [
        pool.socket(0, "v"),
        pool.mount_dir(0, "v").join("control.sock"),
        pool.home(0).join("control.sock"),
        pool.home(1).join("control.sock"),
    ];
    let processes = [pool.manager(), pool.server(0), pool.server(1), pool.server(2), pool.client(0, "v")];
    let pids = processes.each_ref().map(|p| p.pid.as_raw_nonzero().get());
    let before = pids.map(descriptors);
    let fio = Fio::nbd(&pool.socket(0, "v")).job("16k", 16, 32 * MIB);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| fio.check());
        for (number, bytes) in garbage(Random::from_env("garbage").bits()).iter().enumerate() {
            for address in &ports {
                to_port(address, bytes, number % 2 == 0);
            }
            for socket in &sockets {
                to_socket(socket, bytes, number % 2 == 0);
            }
        }
        work.join().unwrap();
    });
    for process in &processes {
        assert!(process.runs(), "{:?} has ended", process.words);
    }
    wait_for("all connections to be let go", Duration::from_secs(40), || {
        pids.iter().zip(before).all(|(pid, before)| descriptors(*pid) <= before + 2)
    });
    for pid in pids {
        assert!(memory_mib(pid) < 400, "process {pid} uses {} MiB", memory_mib(pid));
    }
    assert_eq!(pool.legs("v"), ["in-sync", "in-sync"]);
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let pool = pool(2);
    pool.ok(0, "borrow v --size 16M");
    pool.ok(0, "mount v --as socket");
    let address = text(&pool.json(0, "server ls"), "/1/addresses/0");
    let silent: Vec<std::net::TcpStream> = (0..300).filter_map(|_| std::net::TcpStream::connect(&address).ok()).collect();
    let web = pool.url().trim_start_matches("http://").to_owned();
    let quiet: Vec<std::net::TcpStream> = (0..300).filter_map(|_| std::net::TcpStream::connect(&web).ok()).collect();
    let dumb: Vec<UnixStream> = (0..50).filter_map(|_| UnixStream::connect(pool.socket(0, "v")).ok()).collect();
    let begun = Instant::now();
    Fio::nbd(&pool.socket(0, "v")).job("4k", 8, 4 * MIB).check();
    pool.ok(1, "borrow w --size 16M --local");
    pool.ok(1, "mount w --as socket");
    pool.finish(1, "w");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?} beside {} silent connections", begun.elapsed(), silent.len());
    drop((silent, quiet, dumb));
}

#[test]
fn broken_nbd_clients_end_their_own_connection_only() {
    let pool = pool(2);
    pool.ok(0, "borrow v --size 16M");
    let mut good = pool.mount(0, "v", "");
    good.write(0, b"good").unwrap();
    let mut random = Random::from_env("nbd garbage");
    for round in 0..40 {
        let mut bad = Nbd::connect(&pool.socket(0, "v")).unwrap();
        bad.set_patience(Duration::from_millis(500)).unwrap();
        let bytes = match round % 4 {
            // Noise instead of a request.
            0 => random.bytes(28 * 3),
            // A right magic number, a wrong command.
            1 => [&0x2560_9513u32.to_be_bytes()[..], &[0, 0, 0, 99], &[1; 8], &[0; 8], &[0, 0, 16, 0]].concat(),
            // A write that promises more than it brings.
            2 => [&0x2560_9513u32.to_be_bytes()[..], &[0, 0, 0, 1], &[2; 8], &[0; 8], &[0, 1, 0, 0], &[7; 100]].concat(),
            // A write of 4 GiB.
            _ => [&0x2560_9513u32.to_be_bytes()[..], &[0, 0, 0, 1], &[3; 8], &[0; 8], &[0xff; 4], &[7; 5000]].concat(),
        };
        let _ = bad.send_garbage(&bytes);
        if round % 2 == 0 {
            let _ = bad.complete();
        }
    }
    assert_eq!(good.read(0, 4).unwrap(), b"good");
    assert!(pool.nbd(0, "v").disconnect().unwrap());
}

#[test]
fn a_second_process_on_the_same_state_is_refused() {
    let pool = pool(2);
    let manager = pool.manager();
    let server = pool.server(1);
    for process in [&manager, &server] {
        // On another port, so that it is not the port that refuses.
        let mut words = process.words.clone();
        for word in &mut words {
            if word.starts_with("127.0.0.1:") {
                *word = "127.0.0.1:0".into();
            }
        }
        let mut command = std::process::Command::new(&words[0]);
        let run = sublet_tests::run::run_within(command.args(&words[1..]), Duration::from_secs(30)).sane();
        assert!(!run.succeeded() && run.err.len() > 10, "{run}");
        assert!(process.runs(), "the first one has ended");
    }
    assert!(pool.is_up(1) && pool.manager_answers());
    assert_eq!(pool.manager().pid, manager.pid, "the pid file is still the first one's");
    assert_eq!(pool.server(1).pid, server.pid);
}

#[test]
fn a_server_that_may_borrow_no_more_is_refused_with_both_numbers() {
    let pool = pool(3);
    pool.ok(0, "limits server-a --bytes 24M --volumes 2");
    pool.ok(0, "borrow v --size 8M --way doubled");
    pool.refused(0, "borrow w --size 12M", exit::CONFLICT).says("16 MiB of the 24 MiB").says("12 MiB more");
    pool.ok(0, "borrow w --size 8M");
    pool.refused(0, "borrow x --size 4M", exit::CONFLICT).says("2 volumes, and may borrow 2");
    let shown = pool.json(0, "limits server-a");
    assert_eq!(
        (&shown[0]["borrowed"], &shown[0]["bytes_max"], &shown[0]["volumes_max"]),
        (&json!(24 << 20), &json!(24 << 20), &json!(2))
    );
    pool.ok(0, "limits server-a --bytes none --volumes none");
    pool.ok(0, "borrow x --size 4M");
    pool.refused(0, "limits server-a --bytes many", exit::BAD_REQUEST);
    pool.refused(0, "limits nobody --bytes 1G", exit::NOT_FOUND);
}
