//! The harness of the end-to-end tests: real processes of the `sublet` command on this machine, used as a user would.
//!
//! The tests themselves are in `tests/tests/`. Each starts a pool of its own in a directory under `/var/tmp` and leaves
//! nothing behind; that nothing is left is asserted whenever a pool ends.

#![allow(clippy::unwrap_used, reason = "the harness of tests fails by panicking, with the reason in the message")]

pub mod disks;
pub mod fio;
pub mod http;
pub mod leaks;
pub mod model;
pub mod nbd;
pub mod pool;
pub mod postgres;
pub mod power;
pub mod process;
pub mod random;
pub mod run;
pub mod shorthand;
pub mod slow_disk;
pub mod torture;
pub mod tree;
pub mod wait;

pub use pool::{Pool, Wish};
pub use run::{Run, exit};
pub use wait::{holds_within, wait_for};

/// Mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;

/// How long a soak lasts: `SUBLET_SOAK_SECONDS`, or ten minutes.
pub fn soak_time() -> std::time::Duration {
    let seconds = std::env::var("SUBLET_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    std::time::Duration::from_secs(seconds)
}

/// True if this machine can make block devices: root, with loop and FUSE devices. Tests that need them say so and end
/// early elsewhere.
pub fn has_devices() -> bool {
    let possible = rustix::process::geteuid().is_root()
        && std::path::Path::new("/dev/loop-control").exists()
        && std::path::Path::new("/dev/fuse").exists();
    if !possible {
        eprintln!("skipped: block devices need root, /dev/loop-control and /dev/fuse");
    }
    possible
}
