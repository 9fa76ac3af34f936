//! What others on the same machine can see of a pool: its state, its memory, and what it prints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use memchr::memmem;
use serde_json::Value;
use sublet_tests::nbd::Nbd;
use sublet_tests::pool::{scratch, words};
use sublet_tests::process::{self, Process};
use sublet_tests::run::{Run, run, run_within};
use sublet_tests::shorthand::text;
use sublet_tests::user::{NOBODY, give, hand_over, has_tool, with_rights};
use sublet_tests::{Pool, Wish, all_there, exit, http};

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Starts a daemon that must not come up, and returns what it said.
#[track_caller]
fn does_not_start(words: &[String]) -> Run {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_remove("SUBLET_MANAGER").env_remove("SUBLET_HOME");
    run_within(&mut command, Duration::from_secs(30)).refused(exit::BAD_REQUEST)
}

/// While `spoil` holds, the process is refused for that reason; afterwards it starts again.
#[track_caller]
fn is_refused(words: &[String], path: &Path, mode: u32, said: &str) {
    let before = std::fs::metadata(path).unwrap().mode() & 0o777;
    chmod(path, mode);
    does_not_start(words).says(&path.display().to_string()).says(said);
    assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o777, mode, "it is left as it is");
    chmod(path, before);
    if is_root() {
        give(path, NOBODY);
        does_not_start(words).says(&path.display().to_string()).says(&format!("belongs to user {NOBODY}"));
        give(path, 0);
    }
}

#[test]
fn state_that_is_another_users_or_open_to_others_is_refused_by_every_process() {
    let pool = Pool::with(&Wish { servers: 2, area: Some("64M") });
    pool.ok(0, "borrow v --size 16M");
    pool.ok(0, "mount v --as socket");
    let (manager, server, client) = (pool.manager(), pool.server(1), pool.client(0, "v"));
    let mount = pool.mount_dir(0, "v");
    for (process, dir, files) in [
        (&client, mount.clone(), vec![mount.join("mount.json")]),
        (&server, pool.home(1), vec![pool.home(1).join("identity.json"), pool.home(1).join("areas.json")]),
        (&manager, pool.manager_home(), vec![pool.manager_home().join("table.redb")]),
    ] {
        process.kill();
        // What others could have changed.
        is_refused(&process.words, &dir, 0o770, "can write to");
        for file in files {
            is_refused(&process.words, &file, 0o640, "it has secrets");
        }
    }
    // What others could only look into is closed to them, and said.
    chmod(&pool.manager_home(), 0o755);
    pool.revive_manager(&manager);
    assert_eq!(std::fs::metadata(pool.manager_home()).unwrap().mode() & 0o777, 0o700);
    let log = std::fs::read_to_string(pool.manager_home().join("log")).unwrap();
    assert!(log.contains("it is closed to them now"), "{log}");
    pool.revive(1, &server);
    pool.ok(0, "unmount v");
    pool.ok(0, "return v");
}

#[test]
fn state_directories_of_a_pool_are_closed_and_its_files_private() {
    let pool = Pool::with(&Wish { servers: 2, area: Some("64M") });
    pool.ok(0, "borrow v --size 16M");
    pool.ok(0, "mount v --as socket");
    for dir in [pool.manager_home(), pool.home(0), pool.home(1), pool.mount_dir(0, "v")] {
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o077, 0, "{}", dir.display());
    }
    for file in [
        pool.manager_home().join("table.redb"),
        pool.home(0).join("identity.json"),
        pool.home(1).join("areas.json"),
        pool.mount_dir(0, "v").join("mount.json"),
        pool.home(1).join("control.sock"),
        pool.mount_dir(0, "v").join("control.sock"),
        pool.socket(0, "v"),
        pool.area_files(1).remove(0),
    ] {
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o077, 0, "{}", file.display());
    }
    // The table on paper has the secrets of the leases.
    pool.manager().kill();
    let paper = pool.dir().join("table.json");
    pool.ok(0, &format!("manager export --data {} --out {}", pool.manager_home().display(), paper.display()));
    assert_eq!(std::fs::metadata(&paper).unwrap().mode() & 0o077, 0);
}

/// Field of `/proc/PID/limits`: soft and hard limit.
fn core_limit(pid: i32) -> Vec<String> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    line.split_whitespace().take(2).map(str::to_owned).collect()
}

#[test]
fn processes_that_hold_secrets_leave_no_core_files() {
    let pool = Pool::with(&Wish { servers: 1, area: Some("64M") });
    pool.ok(0, "borrow v --size 16M --local");
    pool.ok(0, "mount v --as socket");
    for process in [pool.manager(), pool.server(0), pool.client(0, "v")] {
        assert_eq!(core_limit(process.pid.as_raw_nonzero().get()), ["0", "0"], "{:?}", process.words);
    }
    pool.finish(0, "v");
}

#[test]
fn a_pool_of_an_ordinary_user_works_and_no_other_process_of_that_user_sees_its_memory() {
    if !is_root() || !all_there(&["setpriv"].into_iter().filter(|name| !has_tool(name)).collect::<Vec<_>>()) {
        return;
    }
    let pool = Pool::empty(scratch());
    let own = hand_over(&pool);
    let flags = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let as_nobody = |args: &[&str]| run(&mut with_rights(&flags, &own, &pool, args));
    let dir = pool.dir().to_string_lossy().into_owned();
    as_nobody(&["playground", "--detach", "--servers", "2", "--area-size", "64M", "--dir", &dir]).ok();
    as_nobody(&["borrow", "v", "--size", "16M"]).ok();
    as_nobody(&["mount", "v", "--as", "socket"]).ok();
    let mut nbd = Nbd::connect(&pool.socket(0, "v")).unwrap();
    nbd.write(5, b"without root").unwrap();
    nbd.flush().unwrap();
    assert_eq!(nbd.read(5, 12).unwrap(), b"without root");
    drop(nbd);
    for process in [pool.manager(), pool.server(1), pool.client(0, "v")] {
        let pid = process.pid.as_raw_nonzero();
        // proc(5): what cannot be dumped is root's there.
        assert_eq!(std::fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0, "{:?}", process.words);
    }
    assert!(as_nobody(&["status"]).ok().out.contains('v'), "it is found by its command line all the same");
    as_nobody(&["unmount", "v"]).ok();
    as_nobody(&["return", "v"]).ok();
    as_nobody(&["playground", "--stop", "--dir", &dir]).ok();
}

/// Everything that a pool has said, and where.
#[derive(Default)]
struct Said(Vec<(String, Vec<u8>)>);

impl Said {
    fn note(&mut self, run: &Run) {
        self.0.push((run.line.clone(), [run.out.as_bytes(), run.err.as_bytes()].concat()));
    }

    /// Command lines and environments of all processes of the pool; answers of the manager to whoever asks.
    fn look(&mut self, pool: &Pool) {
        for (pid, line) in process::naming(pool.dir()) {
            for what in ["cmdline", "environ", "comm"] {
                self.0.push((format!("{what} of {line}"), std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default()));
            }
        }
        for path in ["pool", "table", "servers", "areas", "volumes", "volumes/v", "tasks", "events", "rebuild"] {
            let answer = http::request(&pool.url(), "GET", &format!("/v1/{path}"), b"").unwrap();
            self.0.push((format!("GET {path}"), answer.body.into_bytes()));
        }
    }

    /// All logs there are.
    fn logs(&mut self, dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                self.logs(&entry.path());
            } else if entry.file_name() == "log" {
                self.0.push((entry.path().display().to_string(), std::fs::read(entry.path()).unwrap()));
            }
        }
    }
}

/// A secret in all the forms in which it could be said.
fn forms(hex: &str) -> Vec<Vec<u8>> {
    let number = u128::from_str_radix(hex, 16).unwrap();
    vec![
        hex.to_lowercase().into_bytes(),
        hex.to_uppercase().into_bytes(),
        number.to_string().into_bytes(),
        number.to_le_bytes().to_vec(),
        number.to_be_bytes().to_vec(),
    ]
}

/// The lease's secret of a mounted volume.
fn lease_secret(pool: &Pool, server: usize) -> String {
    let stored: Value = serde_json::from_slice(&std::fs::read(pool.mount_dir(server, "v").join("mount.json")).unwrap()).unwrap();
    text(&stored, "/secret")
}

/// Runs a line both plain and as JSON; the second may find that it is done.
fn both(pool: &Pool, said: &mut Said, line: &str) {
    said.note(&pool.ok(0, line));
    said.note(&pool.ok(0, &format!("{line} --json")));
}

#[test]
fn nothing_secret_is_in_logs_answers_command_lines_or_environments() {
    let pool = Pool::with(&Wish { servers: 3, area: Some("128M") });
    let mut said = Said::default();
    let mut secrets = Vec::new();
    let phrase = "correct-horse-battery-staple";
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = pool.dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        chmod(&path, 0o600);
        path
    };
    let pass = format!("--passphrase-file {}", file("pass", format!("{phrase}\n").as_bytes()).display());
    let key = b"0123456789-this-is-what-the-key-file-has-abcdefghijklmnopqrstuvw";
    let key_file = format!("--new-key-file {}", file("key", key).display());
    for (sealed, json) in [(false, false), (false, true), (true, false), (true, true)] {
        let unlock = if sealed { pass.as_str() } else { "" };
        let encrypt = if sealed { format!("--encrypt {pass}") } else { String::new() };
        let flag = if json { "--json" } else { "" };
        said.note(&pool.ok(0, &format!("borrow v --size 16M --way doubled {encrypt} {flag}")));
        said.note(&pool.ok(0, &format!("mount v --as socket {unlock} {flag}")));
        secrets.push(lease_secret(&pool, 0));
        let mut nbd = pool.nbd(0, "v");
        nbd.write(0, b"some bytes").unwrap();
        nbd.flush().unwrap();
        drop(nbd);
        for line in ["status", "table", "server ls", "area ls", "volume ls", "volume show v", "task ls", "events"] {
            both(&pool, &mut said, line);
        }
        said.note(&pool.ok(1, "status --json"));
        said.note(&pool.sublet(1, &words(&format!("mount v --as socket {flag}"))));
        said.note(&pool.sublet(0, &words(&format!("mount v --as socket {flag}"))));
        said.look(&pool);
        // A client that died says why, and one that is mounted anew has a new secret.
        pool.client(0, "v").kill();
        said.note(&pool.ok(0, &format!("status {flag}")));
        said.note(&pool.ok(0, &format!("mount v --as socket {unlock} {flag}")));
        secrets.push(lease_secret(&pool, 0));
        if sealed {
            said.note(&pool.sublet(0, &words(&format!("mount v --as socket {flag}"))));
            said.note(&pool.ok(0, &format!("volume rekey v {pass} {key_file} {flag}")));
        }
        pool.bounce(1);
        said.look(&pool);
        said.note(&pool.ok(0, &format!("unmount v {flag}")));
        said.note(&pool.ok(0, &format!("transfer v --to server-b {flag}")));
        said.note(&pool.ok(1, &format!("return v {flag}")));
    }
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets.len(), 8, "each mount has a secret of its own");
    pool.bounce_manager();
    said.look(&pool);
    said.logs(pool.dir());
    let hidden = secrets.iter().flat_map(|secret| forms(secret)).chain([phrase.as_bytes().to_vec(), key.to_vec()]);
    for secret in hidden {
        let finder = memmem::Finder::new(&secret);
        let tellers: Vec<&str> =
            said.0.iter().filter(|(_, text)| finder.find(text).is_some()).map(|(who, _)| who.as_str()).collect();
        assert!(tellers.is_empty(), "{} is told by {tellers:?}", String::from_utf8_lossy(&secret));
    }
    // What was looked at has what it ought to have: the test would see it.
    assert!(said.0.len() > 200 && said.0.iter().any(|(who, text)| who.starts_with("environ") && !text.is_empty()));
    assert!(said.0.iter().any(|(who, text)| who.ends_with("log") && memmem::find(text, b"session opened").is_some()));
}

#[test]
fn the_search_for_secrets_would_find_one_that_is_in_an_environment() {
    let pool = Pool::with(&Wish { servers: 1, area: None });
    let server: Process = pool.kill(0);
    process::start_with(&server.home, &server.words, &[("SUBLET_TEST_SECRET", "sesame".to_owned())]);
    sublet_tests::wait_for("the server to be up", Duration::from_secs(20), || pool.is_up(0));
    let mut said = Said::default();
    said.look(&pool);
    assert!(said.0.iter().any(|(_, text)| memmem::find(text, b"sesame").is_some()));
}
