//! A pool whose manager knows who asks: joining, certificates that are renewed, roles, and who is cut off.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use sublet_tests::pool::{name, scratch, sublet, words};
use sublet_tests::process::{Process, program, start};
use sublet_tests::run::{Run, run};
use sublet_tests::{Pool, exit, http, wait_for};

const SOON: Duration = Duration::from_secs(40);

/// A pool that is set up by hand, as an administrator does it.
struct Secure {
    pool: Pool,
}

impl Secure {
    /// A manager, and somebody who has logged in as its administrator.
    fn new(manager_flags: &str) -> Self {
        let pool = Pool::empty(scratch());
        let secure = Self { pool };
        secure.start_manager("manager", manager_flags);
        let link = std::fs::read_to_string(secure.pool.manager_home().join("first-login")).unwrap();
        secure.by("admin", &["login", link.trim()]).ok();
        secure
    }

    fn start_manager(&self, folder: &str, flags: &str) {
        self.start_manager_at(folder, "127.0.0.1:0", flags);
    }

    fn start_manager_at(&self, folder: &str, address: &str, flags: &str) {
        let home = self.pool.dir().join(folder);
        let path = home.to_string_lossy().into_owned();
        let mut line = vec!["manager", "--listen", address];
        line.extend(words("--secure --data"));
        line.push(&path);
        line.extend(words(flags));
        self.start(&home, &line);
        wait_for("the manager to be up", SOON, || home.join("pid").exists());
    }

    fn start(&self, home: &std::path::Path, line: &[&str]) {
        let mut all = vec![program().to_string_lossy().into_owned()];
        all.extend(line.iter().map(|word| (*word).to_owned()));
        start(home, &all);
    }

    fn login(&self, who: &str) -> PathBuf {
        self.pool.dir().join(format!("{who}.json"))
    }

    /// `sublet ARGS` by somebody, who has logged in or does now.
    fn by(&self, who: &str, args: &[&str]) -> Run {
        run(sublet().env("SUBLET_CREDENTIALS", self.login(who)).args(args))
    }

    /// `sublet ARGS` at a server, in that server's name.
    fn at(&self, server: usize, line: &str) -> Run {
        // A user's own login would count first.
        run(sublet().env("HOME", "/nonexistent").env("SUBLET_HOME", self.pool.home(server)).args(words(line)))
    }

    /// A string from `sublet token create`.
    fn token(&self, flags: &str) -> String {
        let mut args = words("token create");
        args.extend(words(flags));
        self.by("admin", &args).ok().out.trim().to_owned()
    }

    fn start_server(&self, server: usize, flags: &[&str]) {
        let home = self.pool.home(server);
        let (path, name) = (home.to_string_lossy().into_owned(), name(server));
        let mut line = vec!["server", "--data", &path, "--listen", "127.0.0.1:0", "--name", &name];
        line.extend(flags);
        self.start(&home, &line);
    }

    fn join(&self, server: usize, token: &str) {
        self.start_server(server, &["--join", token]);
        self.wait_up(server);
    }

    fn wait_up(&self, server: usize) {
        wait_for(&format!("{} to be up", name(server)), SOON, || self.pool.is_up(server));
    }

    /// Starts a server that does not come in; what it says.
    fn refused_server(&self, server: usize, flags: &[&str]) -> Run {
        let home = self.pool.home(server);
        run(sublet().args(["server", "--listen", "127.0.0.1:0", "--data"]).arg(&home).args(flags))
    }

    /// Three servers, of which the first two lend.
    fn with_servers() -> Self {
        let secure = Self::new("");
        let token = secure.token("--uses 3");
        for server in 0..3 {
            secure.join(server, &token);
        }
        for server in 0..2 {
            let folder = secure.pool.home(server).join("disk");
            std::fs::create_dir_all(&folder).unwrap();
            let area = ["a1", "b1"][server];
            secure.at(server, &format!("lend {} --size 64M --name {area} --sparse --keep-free 0%", folder.display())).ok();
        }
        secure
    }

    fn address(&self) -> String {
        let told = std::fs::read_to_string(self.pool.manager_home().join("manager.json")).unwrap();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told["urls"][0].as_str().unwrap().strip_prefix("https://").unwrap().to_owned()
    }
}

#[test]
fn a_server_joins_with_one_string_and_its_key_stays_where_it_was_made() {
    let secure = Secure::new("");
    let token = secure.token("");
    assert!(token.starts_with("https://127.0.0.1:") && token.len() < 200, "{token}");
    secure.join(0, &token);
    let path = secure.pool.home(0).join("credentials.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let stored: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let key = stored["key"].as_str().unwrap();
    for entry in std::fs::read_dir(secure.pool.manager_home()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(key.lines().nth(1).unwrap()));
    }
    // The same command line again, as a unit file has it: it is in already.
    let process = secure.pool.server(0);
    process.kill();
    process.restart();
    secure.wait_up(0);
    let log = std::fs::read_to_string(secure.pool.home(0).join("log")).unwrap();
    assert!(!log.contains(token.split_once('#').unwrap().1), "the string is in the log");
}

#[test]
fn whoever_has_no_good_string_is_told_why() {
    let secure = Secure::new("");
    let other = Secure::new("");
    let used = secure.token("");
    secure.join(0, &used);
    let short = secure.token("--ttl 1s");
    let login = secure.by("admin", &["person", "add", "olga", "--role", "viewer"]).ok().out;
    let revoked = secure.token("");
    let id = secure.by("admin", &["token", "ls", "--json"]).json();
    let id = id.as_array().unwrap().iter().filter(|row| row["what"]["use"] == "join" && row["uses_left"] == 1);
    let id = id.max_by_key(|row| row["made_ms"].as_u64()).unwrap()["id"].as_str().unwrap().to_owned();
    secure.by("admin", &["token", "revoke", &id]).ok();
    let mut damaged = secure.token("");
    damaged.pop();
    // The fingerprint of one pool with the address of another: somebody stands between.
    let (ours, theirs) = (secure.token(""), other.token(""));
    let crossed = format!("{}#{}", theirs.split_once('#').unwrap().0, ours.split_once('#').unwrap().1);
    std::thread::sleep(Duration::from_millis(1100));
    for (string, code, why) in [
        (used.as_str(), exit::UNAUTHENTICATED, "has been used up"),
        (&short, exit::UNAUTHENTICATED, "has expired"),
        (&revoked, exit::UNAUTHENTICATED, "is not known"),
        (&damaged, exit::BAD_REQUEST, "missing or damaged"),
        (login.trim(), exit::BAD_REQUEST, "is not for a server"),
        (&crossed, exit::UNAUTHENTICATED, "belongs to another pool"),
        ("https://x", exit::BAD_REQUEST, "no invitation"),
    ] {
        let run = secure.refused_server(1, &["--join", string]).refused(code);
        assert!(run.err.contains(why), "{run}");
        assert!(!secure.pool.home(1).join("credentials.json").exists());
    }
    // Another pool's string for a server that is in one.
    secure.pool.server(0).kill();
    let run = secure.refused_server(0, &["--join", &theirs]).refused(exit::CONFLICT);
    assert!(run.err.contains("belongs to another pool"), "{run}");
    // One that was never told anything at all.
    let url = format!("https://{}", secure.address());
    secure.start_server(2, &["--manager", &url]);
    wait_for("the server to say that it is not known", SOON, || {
        std::fs::read_to_string(secure.pool.home(2).join("log")).is_ok_and(|log| log.contains("no certificate yet"))
    });
}

#[test]
fn strangers_get_nothing_and_plain_http_a_hint() {
    let secure = Secure::new("");
    let answer = http::request(&format!("http://{}", secure.address()), "GET", "/v1/table", b"").unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("speaks https"), "{answer:?}");
    let none = secure.pool.dir().join("nobody");
    let run = run(sublet().env("HOME", &none).env("SUBLET_HOME", &none).args([
        "--manager",
        &format!("https://{}", secure.address()),
        "table",
    ]));
    assert!(run.refused(exit::UNAUTHENTICATED).err.contains("no certificate yet"));
    let link = std::fs::read_to_string(secure.pool.manager_home().join("first-login")).unwrap();
    let run = secure.by("eve", &["login", link.trim()]).refused(exit::UNAUTHENTICATED);
    assert!(run.err.contains("has been used up"), "{run}");
}

#[test]
fn a_pool_lends_and_borrows_as_its_servers_and_roles_allow() {
    let secure = Secure::with_servers();
    let link = secure.by("admin", &["person", "add", "olga", "--role", "operator"]).ok().out;
    secure.by("olga", &["login", link.trim()]).ok();
    // A server in its own name, and only that.
    secure.at(2, "borrow data --size 16M").ok();
    secure.at(2, "mount data --as socket").ok();
    let run = secure.at(1, "unmount data --force").refused(exit::FORBIDDEN);
    assert!(run.err.contains("acts for itself only"), "{run}");
    assert!(secure.at(2, "table").ok().out.contains("data"));
    secure.at(0, "volume create other --way divided --on a1:8M").refused(exit::FORBIDDEN);
    // An operator borrows and mounts, and no more.
    let home = secure.pool.home(0).to_string_lossy().into_owned();
    secure.by("olga", &["--home", &home, "borrow", "more", "--size", "8M"]).ok();
    let run = secure.by("olga", &["server", "revoke", "server-c"]).refused(exit::FORBIDDEN);
    assert!(run.err.contains("takes the role administrator"), "{run}");
    // A program with a token.
    let token = secure.token("--role viewer --name watch");
    assert!(token.starts_with("sublet_"), "{token}");
    // Every change is on record, with who it was, and nothing that was secret.
    let audit = secure.by("admin", &["audit"]).ok().out;
    for line in ["olga (operator)", "server-c (server)", "refused: this takes the role administrator", "create token"] {
        assert!(audit.contains(line), "{line}: {audit}");
    }
    let log = std::fs::read_to_string(secure.pool.manager_home().join("audit.log")).unwrap();
    assert!(!log.contains(&token["sublet_".len()..]) && !log.contains(link.trim().split_once('#').unwrap().1));
    secure.at(2, "unmount data").ok();
    secure.at(2, "return data").ok();
}

#[test]
fn a_server_that_is_cut_off_loses_its_mounts_at_once_and_comes_back_by_rejoining() {
    let secure = Secure::with_servers();
    secure.at(2, "borrow data --size 16M").ok();
    secure.at(2, "mount data --as socket").ok();
    let client = secure.pool.client(2, "data");
    let url = format!("nbd+unix:///?socket={}", secure.pool.socket(2, "data").display());
    let written = run(std::process::Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 7 0 1M", "-c", "flush", &url]));
    assert!(written.succeeded(), "{written}");
    secure.by("admin", &["server", "revoke", "server-c"]).ok();
    wait_for("the client to end", SOON, || !client.runs());
    let run = secure.at(2, "table").refused(exit::UNAUTHENTICATED);
    assert!(run.err.contains("server-c was cut off"), "{run}");

    // However often it tries: it has proved who it is, and does not keep newcomers at its address waiting.
    for _ in 0..20 {
        secure.at(2, "table").refused(exit::UNAUTHENTICATED);
    }
    let string = secure.token("--rejoin server-c");
    secure.pool.server(2).kill();
    secure.start_server(2, &["--rejoin", &string]);
    secure.wait_up(2);
    secure.at(2, "unmount data");
    secure.at(2, "mount data --as socket").ok();
    let read =
        sublet_tests::run::run(std::process::Command::new("qemu-io").args(["-f", "raw", "-r", "-c", "read -P 7 0 1M", &url]));
    assert!(read.succeeded() && !read.out.contains("failed"), "{read}");
    secure.at(2, "unmount data").ok();
}

#[test]
fn certificates_renew_by_themselves_before_they_end() {
    let secure = Secure::new("--certificate-lifetime 6s");
    secure.join(0, &secure.token(""));
    let path = secure.pool.home(0).join("credentials.json");
    let first = std::fs::read(&path).unwrap();
    // Twice, so that the renewed one was good for renewing.
    wait_for("a new certificate", SOON, || std::fs::read(&path).unwrap() != first);
    let second = std::fs::read(&path).unwrap();
    wait_for("another one", SOON, || std::fs::read(&path).unwrap() != second);
    assert!(secure.pool.is_up(0));
    secure.at(0, "server ls").ok();
    // Whoever was away too long is told so.
    let process = secure.pool.server(0);
    process.kill();
    std::thread::sleep(Duration::from_secs(7));
    let run = secure.at(0, "server ls").refused(exit::UNAUTHENTICATED);
    assert!(run.err.contains("out of date") && run.err.contains("clock"), "{run}");
}

#[test]
fn servers_of_a_pool_whose_authority_was_lost_join_again_and_keep_their_volumes() {
    let secure = Secure::with_servers();
    secure.at(2, "borrow data --size 16M").ok();
    secure.at(2, "mount data --as socket").ok();
    let client = secure.pool.client(2, "data");
    let manager = Process::of(&secure.pool.manager_home()).unwrap();
    manager.kill();
    std::fs::remove_file(secure.pool.manager_home().join("authority.json")).unwrap();
    let flags = format!("--listen {}", secure.address_of_log());
    let path = secure.pool.manager_home().to_string_lossy().into_owned();
    let mut line = vec!["manager", "--secure", "--data", &path];
    line.extend(words(&flags));
    std::fs::remove_file(secure.pool.manager_home().join("pid")).unwrap();
    secure.start(&secure.pool.manager_home(), &line);
    wait_for("the manager to be up", SOON, || secure.pool.manager_home().join("pid").exists());
    let run = secure.at(2, "table").refused(exit::UNAUTHENTICATED);
    assert!(run.err.contains("another pool") && run.err.contains("--rejoin"), "{run}");
    // The administrator's certificate is void as well; there is none who could make a link: the manager makes one.
    let link = std::fs::read_to_string(secure.pool.manager_home().join("first-login")).unwrap();
    secure.by("admin", &["login", link.trim()]).ok();
    for server in 0..3 {
        let string = secure.token(&format!("--rejoin {}", name(server)));
        secure.pool.server(server).kill();
        secure.start_server(server, &["--rejoin", &string]);
        secure.wait_up(server);
    }
    assert!(client.runs(), "the mounted volume lives on");
    wait_for("the path to be told", SOON, || secure.by("admin", &["table"]).ok().out.contains("open"));
    secure.at(2, "unmount data").ok();
}

#[test]
fn an_export_has_the_authority_sealed_and_a_manager_that_is_made_of_it_knows_everybody() {
    let secure = Secure::with_servers();
    secure.at(2, "borrow data --size 16M").ok();
    let address = secure.address();
    secure.pool.manager().kill();
    let (old, new) = (secure.pool.manager_home(), secure.pool.dir().join("manager-2"));
    let (old, new) = (old.to_string_lossy().into_owned(), new.to_string_lossy().into_owned());
    let document = secure.pool.dir().join("table.json");
    let document = document.to_string_lossy().into_owned();
    let passphrase = |text: &str| {
        let path = secure.pool.dir().join(text);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_string_lossy().into_owned()
    };
    let (right, wrong) = (passphrase("sesame"), passphrase("Sesame"));
    let run = secure.by("admin", &["manager", "export", "--data", &old]).ok();
    assert!(run.err.contains("is not in the document") && !run.out.contains("authority\""), "{run}");
    secure.by("admin", &["manager", "export", "--data", &old, "--out", &document, "--passphrase-file", &right]).ok();
    let text = std::fs::read_to_string(&document).unwrap();
    assert!(text.contains("\"authority\"") && !text.contains("PRIVATE KEY"));
    secure.by("admin", &["manager", "import", &document, "--data", &new, "--passphrase-file", &wrong]).refused(exit::BAD_REQUEST);
    assert!(!std::path::Path::new(&new).exists(), "nothing was made");
    secure.by("admin", &["manager", "import", &document, "--data", &new, "--passphrase-file", &right]).ok();
    secure.start_manager_at("manager-2", &address, "");
    for server in 0..3 {
        secure.wait_up(server);
    }
    assert!(secure.by("admin", &["table"]).ok().out.contains("data"));
    secure.at(2, "return data").ok();
}

impl Secure {
    /// Where the manager listened, by its log: what it told is gone when it was killed.
    fn address_of_log(&self) -> String {
        let log = std::fs::read_to_string(self.pool.manager_home().join("log")).unwrap();
        let line = log.lines().rev().find_map(|line| line.split_once("listening on https://")).unwrap();
        line.1.trim().to_owned()
    }
}
