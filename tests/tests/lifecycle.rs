//! From lending to returning: wiping, searching, renaming, idle paths, addresses that change.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use sublet_tests::disks;
use sublet_tests::process;
use sublet_tests::random::Random;
use sublet_tests::run::tool;
use sublet_tests::shorthand::{number, text};
use sublet_tests::{MIB, Pool, Wish, exit, wait_for};

fn pool(servers: usize) -> Pool {
    Pool::with(&Wish { servers, area: Some("64M") })
}

fn lenders_hold(pool: &Pool, servers: usize, pattern: &[u8]) -> bool {
    (0..servers).any(|server| pool.area_files(server).iter().any(|file| disks::holds(file, pattern)))
}

#[test]
fn returning_wipes_the_bytes_and_the_next_borrower_reads_zeroes() {
    let pool = pool(4);
    let secret = b"the-secret-of-server-a-0123456789";
    for (way, defined) in [("doubled", true), ("divided", false)] {
        if defined {
            pool.ok(0, "volume create v --way doubled --on b1,c1");
            pool.ok(0, "borrow v");
        } else {
            pool.ok(0, &format!("borrow v --size 60M --way {way}"));
        }
        let mut nbd = pool.mount(0, "v", "");
        for at in [0, 4 * MIB - 10, 33 * MIB + 5, nbd.size - secret.len() as u64] {
            nbd.write(at, secret).unwrap();
        }
        nbd.flush().unwrap();
        drop(nbd);
        pool.ok(0, "unmount v");
        assert!(lenders_hold(&pool, 4, secret), "unmounting keeps the bytes");
        pool.ok(0, "return v");
        assert!(!lenders_hold(&pool, 4, secret), "{way}: the bytes are still at a lender");
        if defined {
            // A defined volume is free again, at the same place.
            assert!(pool.volume("v")["borrower"].is_null());
            pool.ok(3, "borrow v");
            let mut nbd = pool.mount(3, "v", "");
            assert!(nbd.read_all().unwrap().iter().all(|b| *b == 0), "the new borrower reads old bytes");
            drop(nbd);
            pool.finish(3, "v");
            pool.ok(0, "return v --dissolve");
        }
        // A carved one, or a dissolved one, is no more, and its space is free.
        pool.refused(0, "volume show v", exit::NOT_FOUND);
        let areas = pool.json(0, "area ls");
        assert!(
            areas.as_array().unwrap().iter().all(|a| a["free"] == a["capacity"] && a["slices"] == serde_json::json!([])),
            "{areas:#}"
        );
    }
}

#[test]
fn space_of_an_unreachable_lender_is_wiped_when_it_returns() {
    let pool = pool(2);
    let mut nbd = pool.carve(0, "v", "--size 32M");
    nbd.write(MIB, b"left-behind-on-a-dead-lender").unwrap();
    nbd.flush().unwrap();
    drop(nbd);
    pool.ok(0, "unmount v");
    let lender = pool.kill(1);
    pool.sublet(0, &["return", "v"]).sane();
    pool.revive(1, &lender);
    wait_for("the wipe", Duration::from_secs(40), || !lenders_hold(&pool, 2, b"left-behind-on-a-dead-lender"));
    wait_for("the space to be free", Duration::from_secs(10), || {
        let areas = pool.json(0, "area ls");
        areas.as_array().unwrap().iter().all(|a| a["free"] == a["capacity"])
    });
    pool.refused(0, "volume show v", exit::NOT_FOUND);
}

#[test]
fn a_wipe_that_a_crash_interrupts_is_brought_to_its_end() {
    let pool = Pool::with(&Wish { servers: 2, area: Some("128M") });
    let secret = b"must-be-gone-although-the-lender-died";
    for round in 0..3 {
        let mut nbd = pool.carve(0, "v", "--size 128M");
        for at in (0..128).step_by(4) {
            nbd.write(at * MIB + 3, secret).unwrap();
        }
        nbd.flush().unwrap();
        drop(nbd);
        pool.ok(0, "unmount v");
        let lender = pool.server(1);
        std::thread::scope(|scope| {
            let returning = scope.spawn(|| pool.sublet(0, &["return", "v"]).sane());
            std::thread::sleep(Duration::from_millis(15 + 25 * round));
            lender.kill();
            pool.revive(1, &lender);
            returning.join().unwrap();
        });
        wait_for("the space to be free", Duration::from_secs(40), || {
            let areas = pool.json(0, "area ls");
            areas.as_array().unwrap().iter().all(|a| a["free"] == a["capacity"])
        });
        assert!(!lenders_hold(&pool, 2, secret), "round {round}: free, and not wiped");
        let mut nbd = pool.carve(0, "v", "--size 128M");
        assert!(nbd.read_all().unwrap().iter().all(|b| *b == 0), "round {round}");
        drop(nbd);
        pool.finish(0, "v");
    }
}

/// The offsets that `search --json` prints.
fn search(pool: &Pool, args: &[&str]) -> Vec<u64> {
    let mut line = vec!["search", "v"];
    line.extend(args);
    line.push("--json");
    let found = pool.sublet(0, &line).json();
    found.as_array().unwrap().iter().map(|m| number(m, "/offset")).collect()
}

#[test]
fn search_finds_every_match_mounted_and_unmounted() {
    let pool = pool(4);
    // Segments end at 20 MiB and at 36 MiB.
    pool.ok(0, "volume create v --way integrated --on b1:20M,c1:16M,d1:4M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "");
    let needle = b"needle-in-a-haystack";
    let size = nbd.size;
    let mut places = vec![0, 4090, 1 << 20, 4 * MIB - 1, 20 * MIB - 7, 36 * MIB - 19, size - needle.len() as u64];
    for at in &places {
        nbd.write(*at, needle).unwrap();
    }
    // Overlapping matches.
    nbd.write(10 * MIB, b"abababab").unwrap();
    nbd.write(12 * MIB + 3, &[0xde, 0xad, 0x00, 0xbe, 0xef]).unwrap();
    // Acknowledged is enough: no flush.
    for mounted in [true, false] {
        if !mounted {
            pool.ok(0, "unmount v");
        }
        assert_eq!(search(&pool, &["needle-in-a-haystack"]), places, "mounted: {mounted}");
        assert_eq!(search(&pool, &["abab"]), [10 * MIB, 10 * MIB + 2, 10 * MIB + 4]);
        assert_eq!(search(&pool, &["--hex", "dead00beef"]), [12 * MIB + 3]);
        assert_eq!(search(&pool, &["--hex", "DE AD 00"]), [12 * MIB + 3]);
        assert_eq!(search(&pool, &["needle-in-a-haystack", "--limit", "3"]), places[..3]);
        assert!(search(&pool, &["not there"]).is_empty());
        let count = pool.sublet(0, &["search", "v", "needle-in-a-haystack", "--count"]).ok();
        assert_eq!(count.out.trim(), places.len().to_string());
        let text = pool.sublet(0, &["search", "v", "needle-in-a-haystack"]).ok().out;
        let printed: Vec<u64> = text.lines().map(|l| l.parse().unwrap()).collect();
        assert_eq!(printed, places);
        assert_eq!(pool.volume("v")["status"], u64::from(mounted), "a search leaves the status as it was");
    }
    let mut nbd = pool.mount(0, "v", "");
    nbd.write(places.remove(2), b"x").unwrap();
    assert_eq!(search(&pool, &["needle-in-a-haystack"]), places, "every acknowledged write is seen");
    for bad in [&["search", "v", ""][..], &["search", "v", "--hex", "xyz"], &["search", "v", "--hex", "abc"]] {
        pool.sublet(0, bad).refused(exit::BAD_REQUEST);
    }
    // A pattern that is nearly everywhere.
    let begun = Instant::now();
    let bytes = nbd.read_all().unwrap();
    let first = bytes.iter().position(|b| *b == 0).unwrap() as u64;
    assert_eq!(search(&pool, &["--hex", "00", "--limit", "1"]), [first]);
    let count = pool.sublet(0, &["search", "v", "--hex", "00", "--count"]).ok();
    assert_eq!(count.out.trim(), bytes.iter().filter(|b| **b == 0).count().to_string());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn init_makes_every_byte_zero_mounted_or_not() {
    let pool = pool(3);
    pool.ok(0, "borrow v --size 32M --way doubled --local");
    for mounted in [true, false] {
        let mut nbd = pool.mount(0, "v", "");
        nbd.write(5, &Random::new(1).bytes(8 << 20)).unwrap();
        drop(nbd);
        if mounted {
            pool.ok(0, "volume init v");
        } else {
            pool.ok(0, "unmount v");
            pool.ok(0, "volume init v");
            assert_eq!(pool.volume("v")["status"], 0);
            pool.ok(0, "mount v --as socket");
        }
        assert!(pool.nbd(0, "v").read_all().unwrap().iter().all(|b| *b == 0), "mounted: {mounted}");
        pool.ok(0, "unmount v");
    }
}

#[test]
fn names_change_and_ids_stay_also_while_mounted() {
    let pool = pool(3);
    let mut nbd = pool.carve(0, "v", "--size 16M");
    nbd.write(0, b"same volume").unwrap();
    let row = pool.volume("v");
    let (volume, area, lender) = (text(&row, "/id"), text(&row, "/areas/0"), text(&row, "/segments/0/legs/0/server"));
    let server = usize::from(lender.as_bytes()[7] - b'a');
    let area_id = text(pool.json(0, "area ls").as_array().unwrap().iter().find(|a| a["name"] == area.as_str()).unwrap(), "/id");
    pool.ok(0, "volume rename v renamed");
    pool.ok(0, &format!("server rename {lender} lender-x"));
    pool.ok(0, &format!("area rename {area} area-x"));
    pool.refused(0, "volume show v", exit::NOT_FOUND);
    let row = pool.volume("renamed");
    assert_eq!(
        (text(&row, "/id"), text(&row, "/areas/0"), text(&row, "/segments/0/legs/0/server")),
        (volume.clone(), "area-x".into(), "lender-x".into())
    );
    assert_eq!(text(&pool.volume(&volume), "/name"), "renamed", "ids identify");
    nbd.write(100, b"still mounted").unwrap();
    // The lender knows its new name, and the label has the area's; both survive a restart.
    wait_for("the lender to hear its name", Duration::from_secs(10), || {
        text(&pool.json(server, "status"), "/server/identity/name") == "lender-x"
    });
    pool.bounce(server);
    pool.bounce_manager();
    assert_eq!(nbd.read(0, 11).unwrap(), b"same volume");
    let areas = pool.json(0, "area ls");
    assert_eq!(text(areas.as_array().unwrap().iter().find(|a| a["id"] == area_id.as_str()).unwrap(), "/name"), "area-x");
    let status = pool.json(server, "status");
    assert_eq!(text(&status, "/server/areas/0/name"), "area-x");
    drop(nbd);
    pool.ok(0, "unmount renamed");
    let mut nbd = pool.mount(0, "renamed", "");
    assert_eq!(nbd.read(100, 13).unwrap(), b"still mounted");
    drop(nbd);
    pool.finish(0, &volume);
}

#[test]
fn a_server_leaves_the_pool_when_nothing_holds_it() {
    let pool = pool(3);
    pool.ok(0, "borrow v --size 60M --way single");
    let server = pool.lenders("v")[0];
    let lender = sublet_tests::pool::name(server);
    pool.refused(0, &format!("server leave {lender}"), exit::CONFLICT);
    pool.refused(0, "server leave", exit::CONFLICT);
    pool.ok(0, "return v");
    let area = format!("{}1", char::from(b'a' + server as u8));
    pool.ok(server, &format!("reclaim {area}"));
    pool.ok(server, "server leave");
    let names: Vec<String> = pool.json(0, "server ls").as_array().unwrap().iter().map(|s| text(s, "/name")).collect();
    assert!(!names.contains(&lender) && names.len() == 2, "{names:?}");
}

/// Established TCP connections of a process.
fn connections(pid: i32, to: &str) -> usize {
    let list = sublet_tests::run::run(tool("ss").args(["-tnpH", "state", "established"])).ok().out;
    let own = format!("pid={pid},");
    list.lines().filter(|line| line.contains(&own) && line.split_whitespace().nth(3) == Some(to)).count()
}

#[test]
fn an_idle_path_is_closed_and_the_next_access_reopens_it_without_the_manager() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way doubled --on b1:32M,c1:32M");
    pool.ok(0, "borrow v");
    let mut nbd = pool.mount(0, "v", "--idle-close 1s");
    nbd.write(0, b"before").unwrap();
    let servers = pool.json(0, "server ls");
    let lenders = [1, 2].map(|n| text(&servers, &format!("/{n}/addresses/0")));
    let client = pool.client(0, "v").pid.as_raw_nonzero().get();
    let open = || lenders.iter().map(|to| connections(client, to)).sum::<usize>();
    assert!(open() >= 2, "the path is open");
    let took = wait_for("the path to be closed", Duration::from_secs(4), || open() == 0);
    assert!(took > Duration::from_millis(300), "closed at once: {took:?}");
    wait_for("the table to say so", Duration::from_secs(2), || pool.volume("v")["path"] == "idle");
    assert_eq!(pool.volume("v")["status"], 1);
    assert_eq!(text(&pool.json(0, "status"), "/mounts/0/path"), "idle");
    let manager = pool.manager();
    manager.kill();
    let begun = Instant::now();
    assert_eq!(nbd.read(0, 6).unwrap(), b"before");
    let took = begun.elapsed();
    eprintln!("reopened in {took:?}");
    assert!(took < Duration::from_millis(if cfg!(debug_assertions) { 150 } else { 50 }), "reopened in {took:?}");
    nbd.write(5 * MIB, b"after").unwrap();
    wait_for("the path to be closed again", Duration::from_secs(4), || open() == 0);
    pool.revive_manager(&manager);
    wait_for("the table to say so", Duration::from_secs(8), || pool.volume("v")["path"] == "idle");
    assert_eq!(nbd.read(5 * MIB, 5).unwrap(), b"after");
    wait_for("the table to say so", Duration::from_secs(2), || pool.volume("v")["path"] == "open");
    // Idle means idle: no CPU either.
    wait_for("the path to be closed once more", Duration::from_secs(4), || open() == 0);
    drop(nbd);
    pool.finish(0, "v");
}

#[test]
fn an_idle_pool_uses_no_cpu() {
    let pool = pool(3);
    pool.carve(0, "v", "--size 16M --way doubled --local");
    let pids: Vec<i32> = process::naming(pool.dir()).into_iter().map(|(pid, _)| pid).collect();
    // Fields 14 and 15 of proc(5): ticks of 10 ms in user and kernel mode.
    let ticks = |pid: &i32| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().unwrap()).sum()
    };
    std::thread::sleep(Duration::from_secs(1));
    let before: u64 = pids.iter().map(ticks).sum();
    std::thread::sleep(Duration::from_secs(4));
    let used = pids.iter().map(ticks).sum::<u64>() - before;
    assert!(used < 20, "{} processes used {used} ticks of 10 ms in 4 s", pids.len());
}

#[test]
fn the_table_is_watched_and_shows_changes_within_two_seconds() {
    use std::io::BufRead;
    let pool = pool(2);
    let mut command = sublet_tests::pool::sublet();
    command.env("SUBLET_HOME", pool.home(1)).args(["table", "--watch", "--json"]);
    let mut watch = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(watch.stdout.take().unwrap()).lines();
    let (send, views) = std::sync::mpsc::channel::<Value>();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if send.send(serde_json::from_str(&line).unwrap()).is_err() {
                return;
            }
        }
    });
    let shows = |what: &str, fits: &dyn Fn(&Value) -> bool| {
        let begun = Instant::now();
        loop {
            let left = Duration::from_secs(2).saturating_sub(begun.elapsed());
            let view = views.recv_timeout(left).unwrap_or_else(|_| panic!("{what} is not shown within 2 s"));
            if fits(&view["volumes"]) {
                return;
            }
        }
    };
    let _ = views.recv_timeout(Duration::from_secs(5)).unwrap();
    pool.ok(0, "borrow v --size 16M");
    shows("the borrower", &|v| v[0]["borrower"] == "server-a" && v[0]["status"] == 0 && v[0]["path"] == "none");
    let mut nbd = pool.mount(0, "v", "--idle-close 1s");
    shows("status 1", &|v| v[0]["status"] == 1 && v[0]["path"] == "open");
    nbd.read(0, 1).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    shows("idle", &|v| v[0]["path"] == "idle");
    nbd.read(0, 1).unwrap();
    shows("open", &|v| v[0]["path"] == "open");
    pool.client(0, "v").kill();
    shows("lost", &|v| v[0]["status"] == 1 && v[0]["path"] == "lost");
    pool.ok(0, "unmount v");
    shows("status 0", &|v| v[0]["status"] == 0 && v[0]["path"] == "none");
    watch.kill().unwrap();
    watch.wait().unwrap();
    let table = pool.ok(0, "table").out;
    for column in ["VOLUME", "AREAS", "WAY", "BORROWER", "STATUS"] {
        assert!(table.contains(column), "{table}");
    }
}

#[test]
fn mounting_and_unmounting_information_are_complete() {
    let pool = pool(3);
    pool.ok(0, "borrow v --size 16M --way doubled --local");
    let mounted = pool.json(0, "mount v --as socket");
    let row = pool.volume("v");
    let info = &mounted["mounting"];
    assert_eq!(Path::new(&text(&mounted, "/socket")), pool.socket(0, "v"));
    assert_eq!(number(&mounted, "/pid"), pool.client(0, "v").pid.as_raw_nonzero().get() as u64);
    assert_eq!((&info["volume"], &info["epoch"], &info["size"]), (&row["id"], &row["epoch"], &row["size"]));
    assert_eq!((text(info, "/borrower_name"), number(info, "/status")), ("server-a".into(), 1));
    let legs = info.pointer("/segments/0/legs").unwrap().as_array().unwrap();
    assert_eq!(legs.len(), 2);
    for (leg, shown) in legs.iter().zip(row.pointer("/segments/0/legs").unwrap().as_array().unwrap()) {
        assert_eq!((&leg["slice"], &leg["area_name"], &leg["server_name"]), (&shown["slice"], &shown["area"], &shown["server"]));
        assert!(!leg["addresses"].as_array().unwrap().is_empty());
    }
    let lenders: Vec<Value> = legs.iter().map(|leg| leg["server_name"].clone()).collect();
    let unmounted = pool.json(0, "unmount v");
    assert_eq!((&unmounted["volume"], &unmounted["epoch_closed"], number(&unmounted, "/status")), (&row["id"], &row["epoch"], 0));
    let mut released = unmounted["released"].as_array().unwrap().clone();
    let mut expected = lenders;
    released.sort_by_key(ToString::to_string);
    expected.sort_by_key(ToString::to_string);
    assert_eq!((released, &unmounted["unreachable"]), (expected, &serde_json::json!([])));
    assert!(!pool.mount_dir(0, "v").exists(), "the stored mounting information is gone");
    assert_eq!(pool.json(0, "status")["mounts"], serde_json::json!([]));
    // A new mount has a new epoch.
    assert!(number(&pool.json(0, "mount v --as socket"), "/mounting/epoch/number") > number(&row, "/epoch/number"));
}

#[test]
fn defined_volumes_change_their_way_while_they_are_free() {
    let pool = pool(3);
    pool.ok(0, "volume create v --way integrated --on b1:16M,c1:16M");
    assert_eq!(number(&pool.volume("v"), "/size"), 32 * MIB);
    pool.ok(0, "volume set-way v --way doubled --on b1:16M,c1:16M");
    let row = pool.volume("v");
    assert_eq!((text(&row, "/way"), number(&row, "/size")), ("doubled".into(), 16 * MIB));
    pool.ok(0, "borrow v");
    pool.refused(0, "volume set-way v --way integrated --on b1:16M,c1:16M", exit::CONFLICT).says("server-a");
    let mut nbd = pool.mount(0, "v", "");
    nbd.write(0, b"x").unwrap();
    drop(nbd);
    pool.finish(0, "v");
    assert!(pool.json(0, "events").as_array().unwrap().iter().any(|e| text(e, "/subject") == "v"), "events tell of it");
    assert!(!pool.json(0, "task ls").as_array().unwrap().is_empty());
}
