//! Debian packages that the demo and the tests need, installed when they are missing.

use std::path::Path;
use std::process::Command;

/// A program and the package that brings it.
type Need = (&'static str, &'static str);

/// What building needs. A path instead of a program is a file that the package brings.
const BUILD: &[Need] = &[("/usr/include/openssl/ssl.h", "libssl-dev"), ("pkg-config", "pkg-config")];

/// What the demo needs.
pub const DEMO: &[Need] = &[("mkfs.ext4", "e2fsprogs"), ("losetup", "mount"), ("fusermount3", "fuse3")];

/// What the tests need beyond that.
pub const TEST: &[Need] = &[
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.vfat", "dosfstools"),
    ("mkfs.ntfs", "ntfs-3g"),
    ("addpart", "util-linux"),
    ("losetup", "mount"),
    ("sfdisk", "fdisk"),
    ("fusermount3", "fuse3"),
    ("fio", "fio"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("qemu-img", "qemu-utils"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("rsync", "rsync"),
    ("pg_ctlcluster", "postgresql"),
    ("systemd-analyze", "systemd"),
];

/// What the power cuts of the soak need beyond the tests; the guest's kernel is only downloaded.
pub const SOAK: &[Need] = &[("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static"), ("cpio", "cpio")];

/// What the benchmark needs: the load generator, and what Sublet is compared with.
pub const BENCH: &[Need] = &[
    ("losetup", "mount"),
    ("fusermount3", "fuse3"),
    ("fio", "fio"),
    ("nbdkit", "nbdkit"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-system-common"),
];

/// What counting instructions needs.
pub const COUNT: &[Need] = &[("valgrind", "valgrind")];

fn found(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    // Root's programs are not on everybody's PATH in Debian.
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(program).is_file())
}

/// Installs the packages of all needs whose program is not there, and what building needs.
///
/// # Errors
/// What could not be installed, and how to do it by hand.
pub fn install(needs: &[Need]) -> Result<(), String> {
    let mut missing: Vec<&str> =
        BUILD.iter().chain(needs).filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    println!("== installing with apt-get: {}", missing.join(" "));
    let apt = |args: &[&str]| {
        let status = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").status();
        status.is_ok_and(|s| s.success())
    };
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(&missing);
    if apt(&["update", "-qq"]) && apt(&install) {
        return Ok(());
    }
    Err(format!("could not install {}; as root: apt-get update && apt-get install {}", missing.join(" "), missing.join(" ")))
}
