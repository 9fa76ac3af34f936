//! What the process asks of its machine before it serves a block device.

use rustix::mm::MlockAllFlags;

/// Prepares this process to stand under the page cache: memory that the kernel needs back may have to be written through us,
/// so getting memory must not wait for that. Best effort: without the rights for it, it works as long as memory is not short.
pub fn prepare_for_writeback() {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::info!(%error, "PR_SET_IO_FLUSHER is not available");
    }
    // Pages are locked when they are touched, so that unused stacks cost nothing.
    if let Err(error) = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        tracing::info!(%error, "the process's memory cannot be locked");
    }
}

/// Leaves the caller's session: the client outlives the terminal from which it was mounted.
pub fn leave_session() {
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "this process leads a session already");
    }
}
