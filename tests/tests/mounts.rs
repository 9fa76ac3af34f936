//! One mount's life on its server: searches that nobody waits for any more, names that change, commands that are broken off.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sublet_tests::exit;
use sublet_tests::pool::{Pool, sublet};
use sublet_tests::shorthand::{number, text};
use sublet_tests::wait_for;

/// `sublet` acting as the first server, with its output thrown away.
fn background(pool: &Pool, args: &[&str]) -> Command {
    let mut command = sublet();
    command.env("SUBLET_HOME", pool.home(0)).env("SUBLET_MANAGER", pool.url()).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn signal(child: &std::process::Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

/// A volume full of one letter: a match at every byte.
fn dense(pool: &Pool, size: u64) {
    let mut nbd = pool.carve(0, "v", &format!("--size {size}"));
    for at in (0..size).step_by(1 << 20) {
        nbd.write(at, &vec![b'Z'; 1 << 20]).unwrap();
    }
}

#[test]
fn dense_matches_are_counted_quickly_and_a_search_ends_with_its_asker() {
    let pool = Pool::new(2);
    let size = 256u64 << 20;
    dense(&pool, size);
    let begun = Instant::now();
    let counted = pool.json(0, "search v ZZZZZZZZ --count");
    assert_eq!(number(&counted, "/count"), size - 7);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // All offsets would be two gigabytes of text.
    let client = pool.client(0, "v");
    for kill in [rustix::process::Signal::KILL, rustix::process::Signal::INT] {
        let mut search = background(&pool, &["search", "v", "Z"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(text(&pool.json(0, "status"), "/mounts/0/path"), "open", "the client answers during a search");
        signal(&search, kill);
        search.wait().unwrap();
    }
    assert!(client.runs());
    // One that runs ends with the mount.
    let mut search = background(&pool, &["search", "v", "Z"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    pool.ok(0, "unmount v");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(search.wait().unwrap().code(), Some(exit::CONFLICT));
    // Not mounted: an interrupted search leaves no mount behind.
    let mut search = background(&pool, &["search", "v", "Z"]).spawn().unwrap();
    wait_for("the search to mount the volume", Duration::from_secs(10), || number(&pool.volume("v"), "/status") == 1);
    std::thread::sleep(Duration::from_millis(200));
    signal(&search, rustix::process::Signal::INT);
    assert_eq!(search.wait().unwrap().code(), Some(130));
    assert_eq!(number(&pool.volume("v"), "/status"), 0);
    pool.ok(0, "return v");
}

#[test]
fn a_volume_is_known_by_its_new_name_whatever_it_was_called_when_it_was_mounted() {
    let pool = Pool::new(2);
    let mut nbd = pool.carve(0, "v", "--size 16M");
    nbd.write(0, b"needle").unwrap();
    pool.ok(0, "borrow w --size 16M");
    pool.ok(0, "volume rename v x");
    pool.ok(0, "volume rename w v");
    // Mounting it a second time would fence its own client.
    pool.refused(0, "mount x --as socket", exit::CONFLICT);
    assert_eq!(nbd.read(0, 6).unwrap(), b"needle");
    assert_eq!(number(&pool.json(0, "search x needle --count"), "/count"), 1);
    // The other volume has the name now, not yet the folder; and nothing done to it touches the first one.
    pool.refused(0, "unmount v", exit::CONFLICT);
    pool.refused(0, "mount v --as socket", exit::CONFLICT);
    assert_eq!(number(&pool.volume("v"), "/status"), 0);
    assert_eq!(nbd.read(0, 6).unwrap(), b"needle");
    drop(nbd);
    pool.ok(0, "unmount x");
    pool.ok(0, "mount v --as socket");
    pool.finish(0, "v");
    pool.ok(0, "return x");
}

#[test]
fn wrong_usage_is_told_in_json_too() {
    let pool = Pool::new(1);
    for args in [&["--json", "borrow", "v", "--size", "10 potatoes"][..], &["--json", "juggle"], &["mount", "--json"]] {
        let run = pool.sublet(0, args).refused(exit::BAD_REQUEST);
        let told: serde_json::Value = serde_json::from_str(&run.err).unwrap();
        assert_eq!(text(&told, "/kind"), "bad_request", "{told}");
    }
}
