//! A borrowed volume is not lent on (two servers would wait for each other), and not ended by strangers.

#![allow(clippy::unwrap_used)]

use sublet_tests::shorthand::text;
use sublet_tests::{Pool, exit, has_devices};

#[test]
fn a_borrowed_volume_is_not_lent_on_nor_is_its_file_system() {
    if !has_devices() {
        return;
    }
    let pool = Pool::new(2);
    let folder = pool.dir().join("mounted");
    std::fs::create_dir(&folder).unwrap();
    pool.ok(0, "borrow v --size 100M");
    let device = text(&pool.json(0, "mount v --as fuse"), "/device");
    for force in ["", " --force"] {
        pool.refused(0, &format!("lend {device}{force}"), exit::CONFLICT).says("borrowed volume");
    }
    assert!(!pool.json(0, "lend --suggest").to_string().contains(&device));
    pool.ok(0, "unmount v");
    pool.ok(0, &format!("mount v {} --mkfs ext4", folder.display()));
    pool.refused(0, &format!("lend {} --size 20M --keep-free 0", folder.display()), exit::CONFLICT).says("borrowed volume");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing but lost+found");
    assert_eq!(pool.json(0, "area ls").as_array().unwrap().len(), 2);
    pool.ok(0, "unmount v");
}

#[test]
fn another_pools_manager_ends_no_mount() {
    let (pool, other) = (Pool::new(2), Pool::new(1));
    pool.ok(0, "borrow v --size 10M");
    pool.ok(0, "mount v --as socket");
    let foreign = other.url();
    for force in ["", " --force"] {
        let line = format!("--manager {foreign} unmount v{force}");
        pool.refused(0, &line, exit::CONFLICT).says("another pool");
    }
    assert_eq!(pool.volume("v")["status"], 1);
    assert_eq!(pool.json(0, "status")["mounts"][0]["path"], "open");
    pool.ok(0, "unmount v");
}
