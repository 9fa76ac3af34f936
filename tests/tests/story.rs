//! The first thing that a newcomer types: `sublet demo`, `sublet playground`.

#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sublet_tests::pool::{free_port, scratch, sublet};
use sublet_tests::process::Process;
use sublet_tests::run::run_within;
use sublet_tests::shorthand::text;
use sublet_tests::{Pool, Wish, exit, leaks, wait_for};

/// The demo must be over in two minutes.
const DEMO_LIMIT: Duration = Duration::from_secs(120);

#[test]
fn the_demo_tells_the_story_and_leaves_nothing_behind() {
    let dir = scratch();
    let pool = dir.path().join("demo");
    let run = run_within(sublet().args(["demo", "--dir"]).arg(&pool), DEMO_LIMIT).ok();
    for word in ["Vol-1", "Vol-2", "Vol-3", "Vol-4", "Vol-5", "single", "integrated", "doubled", "divided", "kill -9", "stale"] {
        assert!(run.out.contains(word), "the demo does not show '{word}': {run}");
    }
    assert!(!pool.exists(), "the demo's directory is still there");
    let names: Vec<String> = (1..=5).map(|n| format!("Vol-{n}")).collect();
    assert_eq!(leaks::find(&pool, &names), Vec::<String>::new());
}

#[test]
fn a_playground_is_laid_out_as_documented() {
    let pool = Pool::with(&Wish { servers: 3, area: Some("64M") });
    for server in ["server-a", "server-b", "server-c", "manager"] {
        assert!(Process::of(&pool.dir().join(server)).is_some(), "the pid file of {server}");
        assert!(pool.dir().join(server).join("log").is_file(), "the log of {server}");
    }
    let env = std::fs::read_to_string(pool.dir().join("env")).unwrap();
    let exports: Vec<&str> = env.lines().map(|l| l.split('=').next().unwrap()).collect();
    assert!(exports.contains(&"export SUBLET_MANAGER") && exports.contains(&"export SUBLET_HOME"), "{env}");
    assert!(env.contains(&*pool.home(0).to_string_lossy()), "SUBLET_HOME is server-a: {env}");
    // As the documentation says: . D/env, then commands without flags.
    let line = format!(". {}/env && {} status --json", pool.dir().display(), sublet_tests::process::program().display());
    let status = sublet_tests::run::sh("sh", &["-c", &line]).json();
    assert_eq!(text(&status, "/server/identity/name"), "server-a");
    let servers = pool.json(0, "server ls");
    let names: Vec<String> = servers.as_array().unwrap().iter().map(|s| text(s, "/name")).collect();
    assert_eq!(names, ["server-a", "server-b", "server-c"]);
    let areas = pool.json(0, "area ls");
    let facts: Vec<(String, u64)> =
        areas.as_array().unwrap().iter().map(|a| (text(a, "/name"), a["capacity"].as_u64().unwrap())).collect();
    assert_eq!(facts, [("a1".into(), 64 << 20), ("b1".into(), 64 << 20), ("c1".into(), 64 << 20)]);
    // A second one in the same directory is refused, and the first goes on.
    pool.start(&Wish { servers: 3, area: None }).refused(exit::CONFLICT).says("--stop");
    assert!(pool.is_up(1));
}

#[test]
fn starting_a_playground_again_brings_the_same_pool_back() {
    let wish = Wish { servers: 2, area: Some("64M") };
    let pool = Pool::with(&wish);
    let mut nbd = pool.carve(0, "kept", "--size 32M");
    nbd.write(12_345, b"still here").unwrap();
    nbd.flush().unwrap();
    drop(nbd);
    pool.ok(0, "unmount kept");
    let before = (pool.json(0, "server ls"), pool.json(0, "area ls"), pool.volume("kept"));
    pool.stop().ok();
    assert_eq!(leaks::find(pool.dir(), &["kept".into()]), Vec::<String>::new());
    pool.start(&wish).ok();
    let ids = |list: &Value| -> Vec<String> { list.as_array().unwrap().iter().map(|row| text(row, "/id")).collect() };
    assert_eq!(ids(&pool.json(0, "server ls")), ids(&before.0));
    assert_eq!(ids(&pool.json(0, "area ls")), ids(&before.1));
    let row = pool.volume("kept");
    for field in ["id", "borrower", "size", "way", "segments", "status"] {
        assert_eq!(row[field], before.2[field], "{field}");
    }
    let mut nbd = pool.mount(0, "kept", "");
    assert_eq!(nbd.read(12_345, 10).unwrap(), b"still here");
}

#[test]
fn stopping_a_playground_unmounts_what_was_mounted() {
    let wish = Wish { servers: 2, area: Some("64M") };
    let pool = Pool::with(&wish);
    let mut nbd = pool.carve(0, "used", "--size 16M");
    nbd.write(0, b"flushed by the stop").unwrap();
    drop(nbd);
    pool.stop().ok();
    assert_eq!(leaks::find(pool.dir(), &["used".into()]), Vec::<String>::new());
    pool.start(&wish).ok();
    assert_eq!(pool.volume("used")["status"], 0);
    assert_eq!(pool.mount(0, "used", "").read(0, 19).unwrap(), b"flushed by the stop");
}

#[test]
fn a_playground_in_the_foreground_ends_with_ctrl_c_or_sigterm() {
    for signal in [Signal::INT, Signal::TERM] {
        let dir = scratch();
        let log = std::fs::File::create(dir.path().join("out")).unwrap();
        let mut command = sublet();
        command.args(["playground", "--servers", "1", "--no-areas", "--dir"]).arg(dir.path().join("pool"));
        let mut child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let out = || std::fs::read_to_string(dir.path().join("out")).unwrap();
        wait_for("ready on a line of its own", Duration::from_secs(30), || out().lines().any(|line| line == "ready"));
        kill_process(Pid::from_child(&child), signal).unwrap();
        wait_for("the playground to end", Duration::from_secs(20), || child.try_wait().unwrap().is_some());
        let left = leaks::find(dir.path(), &[]);
        leaks::sweep(dir.path(), &[]);
        assert!(left.is_empty(), "{left:?} after {signal:?}");
        assert!(child.wait().unwrap().success(), "{}", out());
    }
}

#[test]
fn ports_can_be_chosen() {
    let (manager, server) = (free_port("127.0.0.1"), free_port("127.0.0.1"));
    let pool = Pool::empty(scratch());
    let mut command = sublet();
    command.args(["playground", "--detach", "--servers", "1", "--no-areas", "--dir"]).arg(pool.dir());
    command.args(["--manager-port", &manager.to_string(), "--server-port", &server.to_string()]);
    sublet_tests::run::run(&mut command).ok();
    assert_eq!(pool.url(), format!("http://127.0.0.1:{manager}"));
    let addresses = pool.json(0, "server ls")[0]["addresses"].to_string();
    assert!(addresses.contains(&server.to_string()), "{addresses}");
}

#[test]
fn a_pool_works_in_a_directory_with_a_very_long_path() {
    // Unix socket addresses have room for 107 bytes only.
    let pool = Pool::empty(scratch());
    let long = pool.dir().join("a-rather-long-name-of-a-directory-as-people-have-them/and-another-one-below-it-for-good-measure");
    std::fs::create_dir_all(&long).unwrap();
    let playground = |last: &[&str]| sublet_tests::run::run(sublet().arg("playground").args(last).arg("--dir").arg(&long));
    playground(&["--detach", "--servers", "2", "--area-size", "64M"]).ok();
    let at = |args: &[&str]| sublet_tests::run::run(sublet().env("SUBLET_HOME", long.join("server-a")).args(args)).ok();
    at(&["borrow", "far", "--size", "16M"]);
    let mounted = at(&["mount", "far", "--as", "socket", "--json"]).json();
    let socket = text(&mounted, "/socket");
    let socket = std::path::Path::new(&socket);
    let belongs = long.join("server-a/mounts/far/nbd.sock");
    assert!(belongs.as_os_str().len() > 107 && socket.as_os_str().len() <= 107, "a client can use {socket:?}");
    assert_eq!(socket.canonicalize().unwrap(), belongs.canonicalize().unwrap(), "the socket lies where it belongs");
    drop(sublet_tests::nbd::Nbd::connect(socket).unwrap());
    at(&["search", "far", "nothing", "--count"]);
    at(&["unmount", "far"]);
    assert!(socket.parent().unwrap().symlink_metadata().is_err(), "the short link goes with the mount");
    playground(&["--stop"]).ok();
}

#[test]
fn commands_of_later_issues_are_absent_and_help_names_what_there_is() {
    let help = sublet_tests::run::run(sublet().arg("--help")).ok().out;
    for command in [
        "playground",
        "demo",
        "manager",
        "server",
        "lend",
        "reclaim",
        "volume",
        "borrow",
        "transfer",
        "mount",
        "unmount",
        "limits",
        "token",
        "person",
        "login",
        "audit",
    ] {
        assert!(help.contains(&format!("  {command} ")) || help.contains(&format!("  {command}\n")), "{command} in {help}");
    }
    for absent in ["view", "backup", "restore", "vault", "scrub", "doctor", "top", "grow", "move", "drain"] {
        sublet_tests::run::run(sublet().args([absent, "--help"])).refused(exit::BAD_REQUEST);
    }
}
