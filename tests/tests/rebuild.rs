//! A manager that has lost its table gets it back from the labels (R1), an old one is reconciled (L5), nothing deleted comes back (R2).

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use sublet_tests::disks;
use sublet_tests::shorthand::text;
use sublet_tests::{MIB, Pool, Wish, exit, wait_for};

const SOON: Duration = Duration::from_secs(40);

fn pool(servers: usize) -> Pool {
    Pool::with(&Wish { servers, area: Some("128M") })
}

/// What a rebuilt table has in common with the lost one: everything but times, revisions and events.
fn normal(pool: &Pool) -> Value {
    let mut table = pool.json(0, "table");
    table["revision"] = Value::Null;
    for server in table["servers"].as_array_mut().unwrap() {
        server["since_ms"] = Value::Null;
    }
    for volume in table["volumes"].as_array_mut().unwrap() {
        volume["path_since_ms"] = Value::Null;
    }
    table
}

fn rebuild(pool: &Pool) -> Value {
    pool.json(0, "manager rebuild --show")
}

fn wait_lost(pool: &Pool, server: &str) {
    let is_lost = |row: &Value| row["name"] == server && row["state"] == "lost";
    wait_for("the lender to be lost", SOON, || pool.json(0, "server ls").as_array().unwrap().iter().any(is_lost));
}

fn wait_table(pool: &Pool, expected: &Value) {
    let begun = std::time::Instant::now();
    while normal(pool) != *expected {
        assert!(begun.elapsed() < SOON, "{:#}\n is not what it was:\n{expected:#}", normal(pool));
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn r1_a_new_manager_gets_the_table_back_while_a_volume_is_in_use() {
    let pool = pool(4);
    pool.ok(0, "volume create free --way doubled --on a1:16M,b1:16M");
    pool.ok(0, "volume create kept --way single --on d1");
    pool.ok(1, "borrow kept");
    pool.ok(2, "borrow --size 48M --way integrated long");
    pool.ok(0, "volume create pair --way doubled --on b1:32M,c1:32M");
    pool.ok(3, "borrow pair");
    pool.ok(3, "mount pair --as socket");
    let mut nbd = pool.nbd(3, "pair");
    nbd.write(0, &[7; 8192]).unwrap();
    nbd.flush().unwrap();
    wait_for("the open path", SOON, || text(&pool.volume("pair"), "/path") == "open");
    pool.ok(0, "volume rename free spare");
    std::thread::sleep(Duration::from_secs(2));
    let before = normal(&pool);

    pool.lose_table();
    wait_for("the servers to knock", SOON, || rebuild(&pool)["knocking"].as_array().unwrap().len() == 4);
    // An empty manager places nothing, and its presence ends no mount.
    nbd.write(MIB, &[8; 4096]).unwrap();
    pool.refused(0, "manager rebuild --finish", exit::CONFLICT);
    let begun = pool.json(0, "manager rebuild");
    assert_eq!(begun["open"], json!(true));
    wait_for("all reports", SOON, || rebuild(&pool)["reported"].as_array().unwrap().len() == 4);
    wait_table(&pool, &before);
    pool.refused(1, "borrow new --size 8M", exit::CONFLICT);
    assert_eq!(pool.json(0, "manager rebuild --finish")["unsettled"], json!([]));
    wait_table(&pool, &before);

    // The volume was in use all the while.
    nbd.write(2 * MIB, &[9; 4096]).unwrap();
    nbd.flush().unwrap();
    assert_eq!(nbd.read(MIB, 4096).unwrap(), [8; 4096]);
    drop(nbd);
    let epoch = before["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "pair").unwrap()["epoch"]["number"].as_u64();
    pool.ok(3, "unmount pair");
    assert!(pool.volume("pair")["epoch"]["number"].as_u64().unwrap() > epoch.unwrap() + 500);
    pool.ok(1, "borrow new --size 8M");
    pool.ok(3, "mount pair --as socket");
    let mut nbd = pool.nbd(3, "pair");
    assert_eq!(nbd.read(2 * MIB, 4096).unwrap(), [9; 4096]);
    drop(nbd);
    pool.ok(3, "unmount pair");
}

#[test]
fn r1_r2_a_missing_lender_is_waited_for_or_done_without_and_deleted_volumes_stay_deleted() {
    let pool = pool(4);
    for volume in ["waits", "goes-on", "deleted"] {
        pool.ok(0, &format!("volume create {volume} --way doubled --on a1:16M,b1:16M"));
    }
    pool.ok(3, "borrow deleted");
    let lender = pool.kill(1);
    wait_lost(&pool, "server-b");
    pool.ok(3, "return deleted --dissolve");
    let stones = |pool: &Pool| {
        let areas = pool.json(0, "status")["server"]["areas"].clone();
        areas[0]["tombstones"].as_array().unwrap().len()
    };
    wait_for("the tombstone", SOON, || stones(&pool) == 1);

    pool.lose_table();
    wait_for("the servers to knock", SOON, || rebuild(&pool)["knocking"].as_array().unwrap().len() == 3);
    pool.ok(0, "manager rebuild");
    wait_for("the reports", SOON, || rebuild(&pool)["reported"].as_array().unwrap().len() == 3);
    wait_for("the volumes", SOON, || rebuild(&pool)["unsettled"].as_array().unwrap().len() == 2);
    let why = rebuild(&pool)["unsettled"].to_string();
    assert!(why.contains("copy 2 of 2 of segment 0 is missing (seen: server-a (area a1))"), "{why}");
    pool.refused(3, "borrow goes-on", exit::CONFLICT);
    pool.refused(0, "volume accept goes-on c1", exit::CONFLICT);
    pool.ok(0, "volume accept goes-on a1");
    pool.ok(0, "manager rebuild --finish");
    pool.ok(3, "borrow goes-on");
    pool.ok(3, "mount goes-on --as socket");
    let mut nbd = pool.nbd(3, "goes-on");
    nbd.write(0, &[1; 4096]).unwrap();
    nbd.flush().unwrap();
    drop(nbd);
    pool.ok(3, "unmount goes-on");

    // It comes back: to a manager that is not being rebuilt any more.
    lender.restart();
    wait_for("the lender", SOON, || pool.is_up(1));
    wait_for("its volume", SOON, || text(&pool.volume("waits"), "/state") == "ready");
    wait_for("its copy", SOON, || pool.volume("goes-on")["segments"][0]["legs"].as_array().unwrap().len() == 2);
    pool.wait_in_sync("goes-on", SOON);
    wait_for("the wipe", SOON, || stones(&pool) == 0);
    pool.refused(0, "volume show deleted", exit::NOT_FOUND);
    let areas = pool.json(0, "area ls");
    let b1 = areas.as_array().unwrap().iter().find(|area| area["name"] == "b1").unwrap();
    assert_eq!(b1["slices"].as_array().unwrap().len(), 2, "{b1:#}");
}

#[test]
fn l5_a_manager_on_an_old_backup_is_reconciled_and_tables_travel_as_documents() {
    let pool = pool(3);
    pool.ok(2, "borrow old --size 16M --way doubled");
    let manager = pool.manager();
    manager.kill();
    let (home, scratch) = (pool.manager_home(), sublet_tests::pool::scratch());
    let (data, file) = (home.to_str().unwrap(), scratch.path().join("table.json"));
    pool.ok(0, &format!("manager export --data {data} --out {}", file.display()));
    let checked = pool.ok(0, &format!("manager check --data {data}"));
    assert!(checked.out.contains("0 findings"), "{checked}");
    manager.restart();
    wait_for("the manager", SOON, || pool.manager_answers());
    pool.refused(0, &format!("manager check --data {data}"), exit::CONFLICT);

    // After the backup.
    pool.ok(2, "mount old --as socket");
    pool.ok(0, "borrow later --size 16M");
    let mut nbd = pool.nbd(2, "old");
    nbd.write(0, &[5; 4096]).unwrap();
    wait_for("the open path", SOON, || text(&pool.volume("old"), "/path") == "open");
    std::thread::sleep(Duration::from_secs(2));
    let before = normal(&pool);

    let manager = pool.manager();
    manager.kill();
    std::fs::remove_file(home.join("table.redb")).unwrap();
    pool.ok(0, &format!("manager import {} --data {data}", file.display()));
    manager.restart();
    wait_for("the manager", SOON, || pool.manager_answers());
    wait_for("the freeze", SOON, || text(&pool.volume("old"), "/state").starts_with("frozen"));
    nbd.write(4096, &[6; 4096]).unwrap();
    nbd.flush().unwrap();
    // Everybody says what to do, and the mount that this table does not know of is not taken for one that has ended.
    let told = "frozen: old (why, and what to do: sublet manager rebuild --show)";
    wait_for("the status to say so", SOON, || pool.ok(1, "status").out.contains(told));
    assert!(pool.refused(2, "return old", exit::CONFLICT).err.contains("manager rebuild --reconcile"));
    pool.ok(0, "manager rebuild --reconcile");
    wait_table(&pool, &before);
    pool.ok(0, "manager rebuild --finish");
    assert_eq!(nbd.read(0, 4096).unwrap(), [5; 4096]);
    drop(nbd);
    pool.ok(2, "unmount old");
}

#[test]
fn r1_r2_a_replaced_copy_costs_its_volume_nothing_when_the_table_is_lost_or_old() {
    let pool = pool(4);
    pool.ok(0, "volume create pair --way doubled --on a1:16M,b1:16M");
    pool.ok(3, "borrow pair");
    let mut nbd = pool.mount(3, "pair", "");
    nbd.write(0, &[7; 65536]).unwrap();
    nbd.flush().unwrap();
    let manager = pool.manager();
    manager.kill();
    let (home, scratch) = (pool.manager_home(), sublet_tests::pool::scratch());
    let old = scratch.path().join("table.redb");
    std::fs::copy(home.join("table.redb"), &old).unwrap();
    manager.restart();
    wait_for("the manager", SOON, || pool.manager_answers());

    wait_for("the lender", SOON, || pool.is_up(1));
    let lender = pool.kill(1);
    wait_lost(&pool, "server-b");
    pool.ok(0, "volume replace pair --lost server-b --on c1 --wait");
    nbd.write(MIB, &[8; 65536]).unwrap();
    nbd.flush().unwrap();
    let stones = |server: usize| pool.json(server, "status")["server"]["areas"][0]["tombstones"].as_array().unwrap().len();
    wait_for("the tombstone", SOON, || stones(0) == 1 && stones(2) == 1);
    std::thread::sleep(Duration::from_secs(2));
    let before = pool.volume("pair");
    let is_back = || {
        let now = pool.volume("pair");
        ["/state", "/status", "/epoch", "/segments"].iter().all(|at| now.pointer(at) == before.pointer(at))
    };

    // A table that was lost, and then one from before the replacement.
    pool.lose_table();
    wait_for("the servers to knock", SOON, || rebuild(&pool)["knocking"].as_array().unwrap().len() == 3);
    pool.ok(0, "manager rebuild");
    wait_for("the volume", SOON, || pool.json(0, "volume ls").as_array().unwrap().len() == 1 && is_back());
    pool.ok(0, "manager rebuild --finish");
    assert_eq!(nbd.read(MIB, 65536).unwrap(), [8; 65536]);
    let manager = pool.manager();
    manager.kill();
    std::fs::copy(&old, home.join("table.redb")).unwrap();
    manager.restart();
    wait_for("the manager", SOON, || pool.manager_answers());
    wait_for("the freeze", SOON, || text(&pool.volume("pair"), "/state").starts_with("frozen"));
    pool.ok(0, "manager rebuild --reconcile");
    wait_for("the volume", SOON, is_back);
    pool.ok(0, "manager rebuild --finish");

    // Only the lost copy is wiped.
    lender.restart();
    wait_for("the wipe", SOON, || stones(0) == 0 && stones(2) == 0);
    assert_eq!(nbd.read(0, 65536).unwrap(), [7; 65536]);
    assert_eq!(nbd.read(MIB, 65536).unwrap(), [8; 65536]);
    drop(nbd);
    pool.ok(3, "unmount pair");
}

#[test]
fn p2_a_lost_lender_is_forgotten_after_it_was_said_what_goes_with_it() {
    let pool = pool(3);
    pool.ok(0, "volume create both --way doubled --on a1:16M,b1:16M");
    pool.ok(0, "volume create gone --way divided --on b1:16M");
    pool.ok(2, "borrow both");
    let mut nbd = pool.mount(2, "both", "");
    nbd.write(0, OLD).unwrap();
    nbd.flush().unwrap();
    pool.refused(0, "server forget server-b --lost", exit::CONFLICT);
    let lender = pool.kill(1);
    // What the lost copy has is old from now on.
    nbd.write(0, NEW).unwrap();
    drop(nbd);
    pool.ok(2, "unmount both");
    wait_lost(&pool, "server-b");
    let told = pool.refused(0, "server forget server-b --lost", exit::CONFLICT);
    assert!(told.out.contains("gone") && told.out.contains("16 MiB"), "{told}");
    assert_eq!(pool.json(0, "area ls").as_array().unwrap().len(), 3, "nothing was changed");
    pool.ok(0, "server forget server-b --lost --yes");
    assert!(text(&pool.volume("gone"), "/state").contains("lost with server-b"));
    pool.ok(0, "return gone --dissolve");

    // It comes back with its disk: it is refused, and everybody is told what to do.
    let file = pool.area_files(1).remove(0);
    assert!(disks::holds(&file, OLD), "its disk still has what it had");
    lender.restart();
    let refusals = || {
        let events = pool.json(0, "events --limit 1000");
        let is_told = |event: &&Value| event["subject"] == "server-b" && text(event, "/text").contains(WHAT_TO_DO);
        events.as_array().unwrap().iter().filter(is_told).count()
    };
    wait_for("the refusal", SOON, || refusals() == 1);
    let status = || pool.ok(1, "status").out;
    wait_for("its status", SOON, || status().contains(WHAT_TO_DO));
    let refused = pool.refused(1, "borrow more --size 16M", exit::CONFLICT);
    assert!(refused.err.contains(WHAT_TO_DO), "{refused}");
    is_not_believed(&pool);
    // Nor is it by a manager that has started anew.
    pool.bounce_manager();
    wait_for("the next refusal", SOON, || refusals() == 2);
    is_not_believed(&pool);
    // Nothing of the volume is there without the copy that it has: what the other one has is no copy of it.
    let kept = pool.kill(0);
    wait_lost(&pool, "server-a");
    let refused = pool.refused(2, "mount both --as socket", exit::UNREACHABLE);
    assert!(refused.err.contains("server-a") && !refused.err.contains("server-b"), "{refused}");
    pool.revive(0, &kept);

    // It joins anew, with an empty data folder. What its disk had is wiped when it is lent again.
    pool.kill(1);
    let away = pool.dir().join("b1.area");
    std::fs::rename(&file, &away).unwrap();
    std::fs::remove_dir_all(pool.home(1)).unwrap();
    lender.restart();
    wait_for("the new server", SOON, || pool.is_up(1));
    assert_eq!(pool.json(0, "server ls").as_array().unwrap().len(), 3);
    pool.ok(1, &format!("lend {} --keep-free 0%", away.display()));
    wait_for("the wipe", SOON, || !disks::holds(&away, OLD));
    let is_free = |area: &Value| area["server"] == "server-b" && area["free"] == area["capacity"];
    wait_for("its space", SOON, || pool.json(0, "area ls").as_array().unwrap().iter().any(is_free));
    let mut nbd = pool.mount(2, "both", "");
    assert!(nbd.read(0, NEW.len() as u32).unwrap() == NEW);
    drop(nbd);
    assert_eq!(pool.lenders("both"), [0]);
    pool.finish(2, "both");
}

const OLD: &[u8] = &[0x4f; 65536];
const NEW: &[u8] = &[0x4e; 65536];
/// What whoever sees a server that was forgotten is told.
const WHAT_TO_DO: &str = "has left this pool for good; start it with an empty data folder to join anew";

/// A forgotten server runs with its old disk, and has no part in anything.
fn is_not_believed(pool: &Pool) {
    let names = |line: &str| -> Vec<String> {
        let rows = pool.json(0, line);
        rows.as_array().unwrap().iter().map(|row| text(row, "/name")).collect()
    };
    assert_eq!(
        (names("server ls"), names("area ls")),
        (vec!["server-a".into(), "server-c".into()], vec!["a1".into(), "c1".into()])
    );
    assert_eq!(pool.lenders("both"), [0]);
    let mut nbd = pool.mount(2, "both", "");
    for _ in 0..8 {
        assert!(nbd.read(0, NEW.len() as u32).unwrap() == NEW, "what the forgotten copy has is read");
    }
    drop(nbd);
    pool.ok(2, "unmount both");
    // With its disk there would be room enough.
    pool.refused(2, "borrow big --size 300M --way integrated", exit::NO_SPACE);
}
