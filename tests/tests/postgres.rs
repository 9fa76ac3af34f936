//! PostgreSQL on ext4 on a doubled volume: lenders die in turn under pgbench, then the client dies under it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sublet_tests::postgres::{Postgres, programs};
use sublet_tests::{Pool, Wish, has_devices, leaks, soak_time, wait_for};

/// How long until a dead lender is left out.
const STALE: Duration = Duration::from_secs(20);
/// How long until a leg that was away is in sync again.
const RESYNC: Duration = Duration::from_secs(120);

/// Commits numbered rows until `over`, or until the server is gone; returns the highest that was acknowledged.
fn commit_rows(postgres: &Postgres, from: u64, over: &AtomicBool) -> u64 {
    let mut session = postgres.session();
    let mut next = from;
    while !over.load(Ordering::SeqCst) && session.insert(&format!("insert into ledger values ({next}, md5('{next}'));")) {
        next += 1;
    }
    next - 1
}

/// Every acknowledged row is there, whole and once; at most one more that was under way.
fn check_rows(postgres: &Postgres, acknowledged: u64) {
    let wrong = postgres.query("select n from ledger where text <> md5(n::text)");
    assert!(wrong.is_empty(), "rows with other bytes: {wrong:?}");
    let rows: Vec<u64> = postgres.query("select n from ledger").iter().map(|n| n.parse().unwrap()).collect();
    let set: BTreeSet<u64> = rows.iter().copied().collect();
    assert_eq!(set.len(), rows.len(), "rows that are there twice");
    let lost: Vec<u64> = (1..=acknowledged).filter(|n| !set.contains(n)).collect();
    assert!(lost.is_empty(), "{} committed rows are lost, the first is {:?}", lost.len(), lost.first());
    assert!(rows.len() as u64 <= acknowledged + 1, "{} rows, {acknowledged} were committed", rows.len());
    // pgbench moves amounts between tables: all of them have the same sum.
    let sums = postgres.query(
        "select (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history) \
         and (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers) \
         and (select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta), 0) from pgbench_history)",
    );
    assert_eq!(sums, ["t"], "the sums of pgbench differ");
}

/// Kills the two lenders in turn until `time` is over, each for a moment, and waits each time for both copies.
fn kill_in_turn(pool: &Pool, time: Duration, busy: impl Fn() -> bool) -> u32 {
    let begun = Instant::now();
    let lenders = pool.lenders("pg");
    let mut kills = 0;
    while begun.elapsed() < time || kills < 2 {
        assert!(busy(), "pgbench or the session ended early");
        let lender = pool.kill(lenders[kills as usize % 2]);
        if kills % 3 == 2 {
            std::thread::sleep(Duration::from_millis(500));
        } else {
            // Long enough that it is left out, and some more.
            wait_for("the dead leg to be stale", STALE, || pool.legs("pg").iter().any(|leg| leg == "stale"));
            std::thread::sleep(Duration::from_secs(1));
        }
        pool.revive(lenders[kills as usize % 2], &lender);
        let took = pool.wait_in_sync("pg", RESYNC);
        eprintln!("kill {kills}: in sync after {took:.1?}");
        kills += 1;
    }
    kills
}

fn under_postgres(bin: &Path, time: Duration) {
    let pool = Pool::with(&Wish { servers: 3, area: Some("768M") });
    pool.ok(0, "volume create pg --way doubled --on b1:512M,c1:512M");
    pool.ok(0, "borrow pg");
    let dir = pool.dir().join("mnt");
    let mount = format!("mount pg {} --mkfs ext4", dir.display());
    pool.ok(0, &mount);
    let postgres = Postgres::new(bin, &dir);
    postgres.run("pgbench", &["-i", "-q", "-s", "2", "postgres"]).ok();
    postgres.query("create table ledger (n bigint primary key, text text not null)");
    let over = AtomicBool::new(false);
    // It is ended early: long enough for every resync.
    let mut bench = postgres.bench(4, time + RESYNC);
    let (kills, acknowledged) = std::thread::scope(|scope| {
        let rows = scope.spawn(|| commit_rows(&postgres, 1, &over));
        let kills = kill_in_turn(&pool, time, || !rows.is_finished());
        over.store(true, Ordering::SeqCst);
        (kills, rows.join().unwrap())
    });
    assert!(bench.try_wait().unwrap().is_none(), "pgbench ended early");
    eprintln!("{acknowledged} rows committed by hand, {kills} kills");
    assert!(acknowledged > 20);
    bench.kill().unwrap();
    bench.wait().unwrap();
    check_rows(&postgres, acknowledged);
    postgres.check();
    // Now the client dies under it, with everything in flight: PostgreSQL recovers from what was flushed.
    over.store(false, Ordering::SeqCst);
    let mut bench = postgres.bench(4, RESYNC);
    let from = postgres.query("select max(n) + 1 from ledger")[0].parse().unwrap();
    let acknowledged = std::thread::scope(|scope| {
        let rows = scope.spawn(|| commit_rows(&postgres, from, &over));
        std::thread::sleep(Duration::from_secs(3));
        pool.client(0, "pg").kill();
        rows.join().unwrap()
    });
    postgres.kill();
    bench.kill().unwrap();
    bench.wait().unwrap();
    pool.ok(0, "unmount pg");
    wait_for("the file system to be gone", Duration::from_secs(20), || leaks::mounts(&dir, &[]).is_empty());
    pool.ok(0, &mount);
    postgres.start();
    check_rows(&postgres, acknowledged);
    postgres.check();
    let transactions = postgres.query("select count(*) from pgbench_history");
    postgres.stop("fast").ok();
    postgres.check_pages();
    eprintln!("{acknowledged} rows and {} transactions of pgbench after the crash of the client", transactions[0]);
    pool.finish(0, "pg");
}

fn run_for(time: Duration) {
    match programs() {
        Some(bin) if has_devices() => under_postgres(&bin, time),
        _ => {}
    }
}

#[test]
fn postgresql_loses_no_committed_row_while_lenders_and_the_client_die() {
    run_for(Duration::from_secs(8));
}

#[test]
#[ignore = "soak"]
fn postgresql_loses_no_committed_row_for_long() {
    run_for(soak_time());
}
