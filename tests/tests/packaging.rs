//! The systemd units: well-formed, as closed as the documents say, and with rights that are enough.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::Command;

use sublet_tests::disks::LoopDisk;
use sublet_tests::pool::scratch;
use sublet_tests::process::program;
use sublet_tests::run::{run, tool};
use sublet_tests::shorthand::text;
use sublet_tests::traces::Mark;
use sublet_tests::user::{NOBODY, give, hand_over, has_tool, with_rights};
use sublet_tests::{MIB, Pool, all_there, has_devices};

/// The units, and how exposed each may be by `systemd-analyze security` at most (10 is not protected at all). A little above the
/// figures in docs/operations.md: newer versions of systemd look at more.
const UNITS: [(&str, f64); 3] = [("sublet-manager.service", 2.0), ("sublet-server.service", 2.6), ("sublet-mount@.service", 5.2)];

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd"))
}

fn unit(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// The values of a key of a unit.
fn values(name: &str, key: &str) -> Vec<String> {
    let text = unit(name);
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned).collect()
}

fn has_analyze() -> bool {
    all_there(&["systemd-analyze"].into_iter().filter(|name| !has_tool(name)).collect::<Vec<_>>())
}

#[test]
fn the_units_are_well_formed() {
    if !has_analyze() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, _) in UNITS {
        // The program need not be installed where the test is run.
        let text = unit(name).replace("/usr/bin/sublet", &program().to_string_lossy());
        let path = dir.path().join(name.replace('@', "@data"));
        std::fs::write(&path, text).unwrap();
        let verified = run(tool("systemd-analyze").args(["verify", "--man=no"]).arg(&path)).ok();
        assert!(!verified.err.contains(name.split(['@', '.']).next().unwrap()), "{verified}");
    }
}

#[test]
fn the_units_are_as_closed_as_the_documents_say() {
    if !has_analyze() {
        return;
    }
    for (name, at_most) in UNITS {
        let path = folder().join(name);
        let run = run(tool("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(path)).ok();
        let line = run.out.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{run}"));
        let level: f64 = line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        eprintln!("{name}: {level}");
        assert!(level <= at_most, "{line}");
    }
    for (name, _) in UNITS {
        for (key, value) in [("NoNewPrivileges", "yes"), ("LimitCORE", "0"), ("MemoryDenyWriteExecute", "yes"), ("UMask", "0077")]
        {
            assert_eq!(values(name, key), [value], "{name}: {key}");
        }
    }
    // What is mounted must be seen by the whole machine, so this unit must not have mounts of its own.
    for key in ["ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ReadWritePaths", "ProtectProc"]
    {
        assert_eq!(values("sublet-mount@.service", key), [""; 0], "{key}");
    }
}

/// The flags of `setpriv` for the rights that a unit gives.
fn rights(name: &str) -> Vec<String> {
    let list = values(name, "CapabilityBoundingSet").remove(0);
    let kept = list.split_whitespace().map(|one| format!(",+{}", one.trim_start_matches("CAP_").to_lowercase()));
    let mut flags = vec![format!("--bounding-set=-all{}", kept.collect::<String>())];
    flags.extend(["--inh-caps=-all".to_owned(), "--no-new-privs".to_owned()]);
    if values(name, "User") != ["root"] {
        flags.extend(["--reuid=65534".to_owned(), "--regid=65534".to_owned()]);
        match values(name, "SupplementaryGroups").first() {
            Some(group) => flags.push(format!("--groups={group}")),
            None => flags.push("--clear-groups".to_owned()),
        }
    }
    flags
}

/// A device that a group may use; as it was when dropped.
struct ForGroup {
    device: String,
    before: std::fs::Metadata,
}

impl ForGroup {
    fn new(device: &str, group: u32) -> Self {
        let before = std::fs::metadata(device).unwrap();
        chown(device, None, Some(group)).unwrap();
        std::fs::set_permissions(device, std::fs::Permissions::from_mode(0o660)).unwrap();
        Self { device: device.to_owned(), before }
    }
}

impl Drop for ForGroup {
    fn drop(&mut self) {
        // A device that is gone needs nothing.
        let _ = chown(&self.device, Some(self.before.uid()), Some(self.before.gid()));
        let _ = std::fs::set_permissions(&self.device, self.before.permissions());
    }
}

fn under(flags: &[String], program: &std::path::Path, pool: &Pool, args: &[&str]) -> Command {
    with_rights(&flags.iter().map(String::as_str).collect::<Vec<_>>(), program, pool, args)
}

#[test]
fn every_process_works_with_the_rights_of_its_unit_and_no_others() {
    if !has_devices() || !all_there(&["setpriv"].into_iter().filter(|name| !has_tool(name)).collect::<Vec<_>>()) {
        return;
    }
    assert_eq!(values("sublet-manager.service", "CapabilityBoundingSet"), [""], "the manager has no capability");
    let pool = Pool::empty(scratch());
    let own = hand_over(&pool);
    let dir = pool.dir().to_string_lossy().into_owned();
    // Manager and servers of this pool have the rights of the unit of a server, which has not more than the manager's but its disks.
    let server = rights("sublet-server.service");
    let start = ["playground", "--detach", "--servers", "2", "--no-areas", "--dir", &dir];
    run(&mut under(&server, &own, &pool, &start)).ok();
    let effective = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        (line("CapEff:"), line("Uid:").split_whitespace().next().unwrap().to_owned(), line("NoNewPrivs:"))
    };
    for process in [pool.manager(), pool.server(1)] {
        assert_eq!(effective(process.pid.as_raw_nonzero().get()), ("0".repeat(16), NOBODY.to_string(), "1".into()));
    }
    let disk = LoopDisk::new(pool.dir(), "disk", 96 * MIB);
    // As udev has it; where there is none, devices are root's alone.
    let group = run(tool("getent").args(["group", "disk"])).ok().out.split(':').nth(2).unwrap().parse().unwrap();
    let _lent_out = ForGroup::new(&disk.device, group);
    let lent = pool.dir().join("lent");
    std::fs::create_dir(&lent).unwrap();
    give(&lent, NOBODY);
    pool.ok(1, &format!("lend {} --name d1", disk.device));
    pool.ok(1, &format!("lend {} --size 64M --name f1 --keep-free 0%", lent.display()));

    // Both kinds of lender behind one volume, which root mounts with the rights of the unit of a mount.
    let mount = rights("sublet-mount@.service");
    pool.ok(0, "volume create unit-fs --way integrated --on d1:32M,f1:32M");
    pool.ok(0, "borrow unit-fs");
    let point = pool.dir().join("mnt");
    let mounted =
        run(&mut under(&mount, &own, &pool, &["mount", "unit-fs", &point.to_string_lossy(), "--mkfs", "ext4", "--json"]));
    let mounted = mounted.json();
    assert_eq!(text(&mounted, "/mountpoint"), point.to_string_lossy());
    let (caps, user, _) = effective(pool.client(0, "unit-fs").pid.as_raw_nonzero().get());
    assert_eq!(user, "0");
    // Those of the documents, as far as this machine gives them to root at all.
    let documented = [1, 14, 19, 21, 24].into_iter().fold(0, |all, capability: u32| all | 1u64 << capability);
    let here = std::fs::read_to_string("/proc/self/status").unwrap();
    let here = here.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
    let here = u64::from_str_radix(here, 16).unwrap();
    assert_eq!(u64::from_str_radix(&caps, 16).unwrap(), documented & here);
    let log = std::fs::read_to_string(pool.mount_dir(0, "unit-fs").join("log")).unwrap();
    assert!(!log.contains("cannot be locked"), "its memory is locked: {log}");
    assert!(here >> 24 & 1 == 0 || !log.contains("not available"), "and it may get memory while it writes: {log}");
    let mark = Mark::new(7);
    std::fs::write(point.join("file"), mark.bytes(24 << 20)).unwrap();
    assert!(std::fs::read(point.join("file")).unwrap() == mark.bytes(24 << 20));
    // Who has the device open is seen, also where that is another user's process.
    pool.refused(0, "volume init unit-fs", sublet_tests::exit::CONFLICT).says(&point.to_string_lossy());
    run(&mut under(&mount, &own, &pool, &["unmount", "unit-fs"])).ok();
    pool.ok(0, "return unit-fs --dissolve");
    for name in ["d1", "f1"] {
        pool.ok(1, &format!("reclaim {name}"));
    }
    assert_eq!(mark.count(&disk.file), 0);
    pool.stop().ok();
}
