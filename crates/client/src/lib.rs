//! The borrower's process: one per mounted volume (seed: client module, numbered part 15).
//!
//! It runs the volume's engine and its front ends in one thread: an NBD server on a Unix socket, and a real block device
//! made of one FUSE file under a loop device. Front ends speak to a small trait, [`device::BlockDevice`]; they know nothing
//! of lenders. Deliberately absent: any decision about legs, epochs or placement (crates volume and table).
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod clean_up;
pub mod device;
pub mod fuse;
pub mod nbd;
pub mod process;

pub use clean_up::clean_up;
pub use process::{ClientArgs, Ready, run};
