//! Where io_uring is forbidden, as in many containers: everything works, and `status` says what is used in its place.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sublet_tests::fio::Fio;
use sublet_tests::process::{self, Process, program};
use sublet_tests::run::run_within;
use sublet_tests::shorthand::text;
use sublet_tests::{Pool, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// A command line whose processes cannot use io_uring.
fn forbidden() -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("no_io_uring.py");
    vec!["python3".to_owned(), script.to_string_lossy().into_owned()]
}

/// Starts a killed server again, without io_uring.
fn revive(pool: &Pool, server: usize, killed: &Process) {
    let words: Vec<String> = forbidden().into_iter().chain(killed.words.iter().cloned()).collect();
    process::start(&killed.home, &words);
    wait_for("the server to be up", LIMIT, || Process::of(&killed.home).is_some() && pool.is_up(server));
}

#[test]
fn without_io_uring_a_volume_survives_the_end_of_a_lender_and_status_says_what_is_used() {
    let pool = Pool::new(3);
    for server in 0..3 {
        let process = pool.server(server);
        process.kill();
        revive(&pool, server, &process);
    }
    let sublet = |server: usize, args: &[&str]| {
        let words = forbidden();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program()).args(args).env("SUBLET_HOME", pool.home(server)).env_remove("SUBLET_MANAGER");
        run_within(&mut command, LIMIT).ok()
    };
    pool.ok(0, "borrow v --size 32M --way doubled");
    sublet(0, &["mount", "v"]);
    let socket = pool.socket(0, "v");
    let job = Fio::nbd(&socket);
    job.write();
    let status = pool.json(0, "status");
    for place in ["/server/io", "/mounts/0/io"] {
        assert!(text(&status, place).starts_with("epoll and threads"), "{status:#}");
        assert!(text(&status, place).contains("io_uring is not available"), "{status:#}");
    }
    assert!(pool.ok(0, "status").out.contains("v: epoll and threads"), "people are told");
    let lender = pool.lenders("v")[1];
    let killed = pool.kill(lender);
    job.verify();
    revive(&pool, lender, &killed);
    pool.wait_in_sync("v", LIMIT);
    pool.ok(0, "unmount v");
}
