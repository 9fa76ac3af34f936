//! The one `ioctl` that has no safe wrapper.
#![allow(unsafe_code, reason = "ioctl numbers and argument types are declared by hand")]

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, ioctl, opcode};

/// `BLKGETDISKSEQ` of `linux/fs.h`: `_IOR(0x12, 128, __u64)`.
const BLKGETDISKSEQ: rustix::ioctl::Opcode = opcode::read::<u64>(0x12, 128);

/// The sequence number of a block device: another one whenever a disk is attached anew (Linux 5.15).
pub(super) fn disk_sequence(device: impl AsFd) -> io::Result<u64> {
    // SAFETY: the kernel writes a `__u64` for this number, and checks the file descriptor itself.
    let sequence = unsafe { ioctl(device, Getter::<BLKGETDISKSEQ, u64>::new()) }?;
    Ok(sequence)
}
