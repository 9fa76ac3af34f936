//! How operations are given to the kernel: through io_uring, or, where that is not allowed (containers often do not), with epoll for
//! sockets and threads for disks.

use std::sync::OnceLock;

use compio::driver::{DriverType, ProactorBuilder};
use compio::runtime::{Runtime, RuntimeBuilder};

/// Entries of the submission queue, or events of one turn.
const RING_ENTRIES: u32 = 1024;
/// Operations on one file at the same time where threads do them: a disk that hangs takes so many of them and leaves the others.
pub(super) const FILE_THREADS: u64 = 16;
/// Threads of one runtime for that.
const THREADS_MAX: usize = 256;
/// The environment variable that forbids io_uring if it is `off`.
const SWITCH: &str = "SUBLET_IO_URING";

static REASON: OnceLock<Option<String>> = OnceLock::new();

/// Why this process does without io_uring; none if it uses it. Found out once, and logged then.
pub fn without_io_uring() -> Option<&'static str> {
    let reason = REASON.get_or_init(|| {
        let reason = match std::env::var_os(SWITCH) {
            Some(value) if value == "off" => format!("{SWITCH} is off"),
            _ => format!(
                "io_uring is not available: {}; allow it with sysctl kernel.io_uring_disabled=0, or in a container with a seccomp \
                 profile that permits it",
                with_io_uring().err()?
            ),
        };
        tracing::warn!(%reason, "epoll and threads are used, which is slower");
        Some(reason)
    });
    reason.as_deref()
}

/// How this process gives its operations to the kernel, for people; `io_uring` if it is that.
pub fn io() -> String {
    without_io_uring().map_or_else(|| "io_uring".to_owned(), |reason| format!("epoll and threads, which is slower: {reason}"))
}

fn with_io_uring() -> std::io::Result<Runtime> {
    let mut tuned = ProactorBuilder::new();
    tuned.driver_type(DriverType::IoUring).capacity(RING_ENTRIES).single_issuer(true).defer_taskrun(true).taskrun_flag(true);
    let mut plain = ProactorBuilder::new();
    plain.driver_type(DriverType::IoUring).capacity(RING_ENTRIES);
    // Kernels before 6.1 do not know the flags.
    RuntimeBuilder::new().with_proactor(tuned).build().or_else(|_| RuntimeBuilder::new().with_proactor(plain).build())
}

/// A runtime for this thread.
pub(super) fn build() -> std::io::Result<Runtime> {
    if without_io_uring().is_none() {
        return with_io_uring();
    }
    let mut polling = ProactorBuilder::new();
    polling.driver_type(DriverType::Poll).capacity(RING_ENTRIES).thread_pool_limit(THREADS_MAX);
    RuntimeBuilder::new().with_proactor(polling).build()
}
