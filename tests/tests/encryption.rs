//! A volume that its borrower encrypts: lenders and manager have nothing to read, and only the right key opens it.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use sublet_tests::disks;
use sublet_tests::nbd::{Nbd, Op};
use sublet_tests::random::Random;
use sublet_tests::shorthand::number;
use sublet_tests::{MIB, Pool, Wish, exit, wait_for};

const SIZE: u64 = 24 * MIB;
const SOON: Duration = Duration::from_secs(40);
const SECRET: &[u8] = b"nobody but the borrower may ever read these words";

fn pool() -> Pool {
    Pool::with(&Wish { servers: 3, area: Some("96M") })
}

/// A private file.
fn file(pool: &Pool, name: &str, bytes: &[u8]) -> PathBuf {
    let path = pool.dir().join(name);
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn passphrase(pool: &Pool, text: &str) -> String {
    format!("--passphrase-file {}", file(pool, &format!("pass-{text}"), format!("{text}\n").as_bytes()).display())
}

fn key_file(pool: &Pool) -> PathBuf {
    file(pool, "key", &Random::new(77).bytes(64))
}

/// Bytes with the secret in many places.
fn fill(nbd: &mut Nbd) -> Vec<u8> {
    let mut bytes = Random::new(3).bytes(SIZE as usize);
    for at in (0..bytes.len() - 100).step_by(1 << 20) {
        bytes[at + 4000..at + 4000 + SECRET.len()].copy_from_slice(SECRET);
    }
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        nbd.write((n << 20) as u64, part).unwrap();
    }
    nbd.flush().unwrap();
    bytes
}

#[test]
fn an_encrypted_volume_means_nothing_to_its_lenders_and_opens_with_the_right_key_only() {
    let pool = pool();
    let right = passphrase(&pool, "sesame");
    pool.refused(0, &format!("borrow v --size {SIZE} {right}"), exit::BAD_REQUEST).says("--encrypt");
    let said = pool.ok(0, &format!("borrow v --size {SIZE} --way doubled --encrypt {right}"));
    assert!(said.err.contains("lost the bytes for good"), "{}", said.err);
    assert!(pool.ok(0, "volume show v").out.contains("encrypted"));
    pool.refused(0, "mount v --as socket", exit::BAD_REQUEST).says("--key-file");
    let wrong = passphrase(&pool, "simsalabim");
    pool.refused(0, &format!("mount v --as socket {wrong}"), exit::BAD_REQUEST).says("the passphrase is wrong");
    assert_eq!(number(&pool.volume("v"), "/status"), 0, "undone");

    let mut nbd = pool.mount(0, "v", &right);
    assert_eq!(nbd.size, SIZE, "the key header is not part of it");
    assert_eq!(nbd.read(0, 1 << 20).unwrap(), vec![0; 1 << 20], "fresh space reads as zero");
    let bytes = fill(&mut nbd);
    nbd.call(&Op::Zero(5 * MIB, 2 << 20, 0)).unwrap();
    assert_eq!(nbd.read(5 * MIB, 2 << 20).unwrap(), vec![0; 2 << 20], "and so does what was discarded");
    nbd.write(5 * MIB, &bytes[5 << 20..7 << 20]).unwrap();
    nbd.flush().unwrap();
    let searched = pool.ok(0, "search v borrower --limit 3 --json");
    assert!(searched.err.contains("it is searched here"), "{}", searched.err);
    let found = searched.json();
    assert_eq!(number(&found, "/0/offset"), 4000 + 15, "it is searched here");
    // Nothing of the key where others look.
    let client = pool.client(0, "v");
    for what in ["cmdline", "environ"] {
        let shown = std::fs::read(format!("/proc/{}/{what}", client.pid.as_raw_nonzero())).unwrap();
        assert!(!shown.windows(6).any(|part| part == b"sesame"), "{what}");
    }
    let log = std::fs::read_to_string(pool.mount_dir(0, "v").join("log")).unwrap();
    assert!(!log.contains("sesame") && log.contains("can be used"), "{log}");
    assert!(!pool.ok(0, "status --json").out.contains("\"seal\""));
    drop(nbd);
    pool.ok(0, "unmount v");
    let areas: Vec<PathBuf> = (0..3).flat_map(|server| pool.area_files(server)).collect();
    for area in &areas {
        assert_eq!(disks::find(area, SECRET), None, "{}", area.display());
    }
    let headers = areas.iter().filter(|area| disks::find(area, b"SubletSl").is_some()).count();
    assert_eq!(headers, 2, "each copy has the key header");

    // Another server, the same key.
    pool.ok(0, "transfer v --to server-b");
    let mut nbd = pool.mount(1, "v", &right);
    assert!(nbd.read_all().unwrap() == bytes);
    drop(nbd);
    pool.ok(1, "unmount v");
    pool.ok(1, "return v");
    let is_wiped = || pool.json(0, "area ls").as_array().unwrap().iter().all(|area| area["free"] == area["capacity"]);
    wait_for("the wipe", SOON, is_wiped);
    for area in &areas {
        assert_eq!(disks::find(area, b"SubletSl"), None, "the wrapped key is gone: {}", area.display());
    }
}

#[test]
fn the_key_is_wrapped_anew_while_the_volume_is_used_and_the_old_passphrase_opens_it_no_more() {
    let pool = pool();
    let (old, wrong) = (passphrase(&pool, "old"), passphrase(&pool, "wrong"));
    pool.ok(0, &format!("borrow v --size {SIZE} --encrypt {old}"));
    let key = key_file(&pool);
    let rekey = |with: &str| format!("volume rekey v {with} --new-key-file {}", key.display());
    pool.refused(0, &rekey(&old), exit::CONFLICT).says("not mounted here");
    let mut nbd = pool.mount(0, "v", &old);
    let bytes = fill(&mut nbd);
    pool.refused(0, &rekey(&wrong), exit::BAD_REQUEST).says("the passphrase is wrong");
    assert!(pool.ok(0, &rekey(&old)).out.contains("opens with the new one only"));
    assert!(nbd.read_all().unwrap() == bytes, "it goes on");
    drop(nbd);
    pool.ok(0, "unmount v");
    pool.refused(0, &format!("mount v --as socket {old}"), exit::BAD_REQUEST).says("a key file opens it, not a passphrase");
    let found = pool.json(0, &format!("search v borrower --limit 1 --key-file {}", key.display()));
    assert_eq!(number(&found, "/0/offset"), 4000 + 15, "it is mounted for that");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let with_key = format!("--key-file {}", key.display());
    pool.refused(0, &format!("mount v --as socket {with_key}"), exit::BAD_REQUEST).says("chmod 600");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut nbd = pool.mount(0, "v", &with_key);
    assert!(nbd.read_all().unwrap() == bytes);
    // A client that is killed leaves nothing that another one could not open.
    pool.client(0, "v").kill();
    let mut nbd = pool.mount(0, "v", &with_key);
    assert!(nbd.read_all().unwrap() == bytes);
    drop(nbd);
    pool.finish(0, "v");
    pool.ok(0, "borrow plain --size 8M");
    pool.refused(0, &format!("mount plain --as socket {with_key}"), exit::BAD_REQUEST).says("not encrypted");
    pool.mount(0, "plain", "").disconnect().unwrap();
    pool.refused(0, &format!("volume rekey plain {with_key} --new-key-file {}", key.display()), exit::CONFLICT)
        .says("not encrypted");
    pool.finish(0, "plain");
}

#[test]
fn r1_the_header_in_the_volume_is_enough_when_the_managers_table_is_lost() {
    let pool = pool();
    let key = format!("--key-file {}", key_file(&pool).display());
    pool.ok(0, &format!("borrow v --size {SIZE} --encrypt {key}"));
    let mut nbd = pool.mount(0, "v", &key);
    let bytes = fill(&mut nbd);
    drop(nbd);
    pool.ok(0, "unmount v");

    pool.lose_table();
    let state = || pool.json(0, "manager rebuild --show");
    wait_for("the servers to knock", SOON, || state()["knocking"].as_array().unwrap().len() == 3);
    pool.ok(0, "manager rebuild");
    wait_for("all labels", SOON, || state()["reported"].as_array().unwrap().len() == 3);
    pool.ok(0, "manager rebuild --finish");

    pool.refused(0, "mount v --as socket", exit::BAD_REQUEST).says("--key-file");
    let mut nbd = pool.mount(0, "v", &key);
    assert_eq!(nbd.size, SIZE);
    assert!(nbd.read_all().unwrap() == bytes);
    drop(nbd);
    pool.finish(0, "v");
}
