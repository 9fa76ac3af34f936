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
pub mod peers;
pub mod pool;
pub mod postgres;
pub mod power;
pub mod process;
pub mod random;
pub mod run;
pub mod shorthand;
pub mod slow_disk;
pub mod torture;
pub mod traces;
pub mod tree;
pub mod user;
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

/// True if nothing is missing. Else a test that needs it says so and ends early, if this user cannot help it.
///
/// # Panics
/// Something is missing and this is root: `cargo xtask test` has installed everything then, and a test that is passed over would
/// look as if it had passed.
#[track_caller]
pub fn all_there(missing: &[&str]) -> bool {
    if missing.is_empty() {
        return true;
    }
    let what = missing.join(", ");
    assert!(!rustix::process::geteuid().is_root(), "this test cannot be run without {what}; see `cargo xtask test`");
    eprintln!("skipped: not here: {what}");
    false
}

/// True if this machine can make block devices: root, with loop and FUSE devices. See [`all_there`].
///
/// # Panics
/// As root, if a device is missing.
#[track_caller]
pub fn has_devices() -> bool {
    let missing = ["/dev/loop-control", "/dev/fuse"].into_iter().filter(|path| !std::path::Path::new(path).exists());
    let is_root = rustix::process::geteuid().is_root();
    all_there(&missing.chain((!is_root).then_some("root")).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::all_there;

    #[test]
    fn a_test_that_root_cannot_run_fails_instead_of_looking_as_if_it_had_passed() {
        assert!(all_there(&[]));
        let result = std::panic::catch_unwind(|| all_there(&["nft", "qemu-img"]));
        if rustix::process::geteuid().is_root() {
            let text = *result.unwrap_err().downcast::<String>().unwrap();
            assert!(text.contains("nft, qemu-img"), "{text}");
        } else {
            assert!(!result.unwrap());
        }
    }
}
