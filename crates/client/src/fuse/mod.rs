//! The block device front end: a FUSE file system with one file, and a loop device over that file.
//!
//! The kernel protocol is spoken directly (`/usr/include/linux/fuse.h`, version 7.31 and later): one file needs a dozen
//! operations, and requests go from `/dev/fuse` to the engine in the same thread. That thread must never block on a system
//! call into this file system, or both would wait for ever: everything that touches it runs in helper threads.

pub mod block_device;
pub mod link;
pub mod loop_device;
pub mod mount;
pub mod protocol;
pub mod session;

pub use block_device::BlockFrontEnd;

/// Bytes of requests of the block device in flight; further ones wait in the kernel.
pub const FUSE_BYTES_MAX: u64 = 16 << 20;
/// The name of the one file.
pub const FILE_NAME: &str = "volume";
