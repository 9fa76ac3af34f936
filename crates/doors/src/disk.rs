//! The `Disk` door: files and block devices, by offset.

use std::io;
use std::ops::Range;
use std::path::Path;

use crate::buffer::{Buffer, Chunk};

/// How to open a file or device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenHow {
    /// Also for writing.
    pub write: bool,
    /// Bypass the page cache (O_DIRECT) where the file system can; [`FileFacts::direct`] says whether it did.
    pub direct: bool,
    /// For a block device: O_EXCL, so that nobody mounts it meanwhile. For both: `flock` the open file description that I/O
    /// is done with, *waiting* until an earlier holder's I/O has ended in the kernel (F2).
    pub exclusive: bool,
}

/// What is known of an open file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileFacts {
    /// Its size in bytes.
    pub size: u64,
    /// True for a block device.
    pub device: bool,
    /// True if the page cache is bypassed: reads and writes must be aligned to 4 KiB then (all of Sublet's are).
    pub direct: bool,
    /// `BLKGETDISKSEQ` of the device, or of the device under the file; 0 where there is none.
    pub disk_sequence: u64,
    /// True on copy-on-write file systems (btrfs, zfs, bcachefs): old blocks under the file are not ours to erase (P2).
    pub copy_on_write: bool,
}

/// How zeroes are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zero {
    /// Keep the space allocated (`FALLOC_FL_ZERO_RANGE`, `BLKZEROOUT` without unmapping; written zeroes where neither works).
    Keep,
    /// Give the space back to the file system (`FALLOC_FL_PUNCH_HOLE`; `Keep` where that does not work).
    Punch,
}

/// Opens files and devices.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait Disk {
    /// An open file.
    type File: DiskFile;

    /// Opens an existing file or device.
    ///
    /// # Errors
    /// What the operating system says, with the path named.
    async fn open(&self, path: &Path, how: OpenHow) -> io::Result<Self::File>;
}

/// An open file. Operations may run at the same time, in any order.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no Send bound is wanted")]
pub trait DiskFile: 'static {
    /// What is known of it.
    fn facts(&self) -> &FileFacts;

    /// Reads exactly `buffer[range]` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` behind the end; else what the operating system says. The content of the range is undefined then.
    async fn read_at(&self, offset: u64, buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer);

    /// Writes all of `data` at `offset`; accepted, not yet durable.
    ///
    /// # Errors
    /// What the operating system says; any part may have been written.
    async fn write_at(&self, offset: u64, data: Chunk) -> io::Result<()>;

    /// Makes everything written before durable (`fdatasync`).
    ///
    /// # Errors
    /// What the operating system says; the kernel tells it once, so the caller must remember (W7).
    async fn sync(&self) -> io::Result<()>;

    /// Makes the range read as zero.
    ///
    /// # Errors
    /// What the operating system says; any part may have been zeroed.
    async fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()>;

    /// The stretches of the range as (length, may hold data), covering it in order (`SEEK_DATA`); one data stretch where the
    /// file system cannot tell.
    ///
    /// # Errors
    /// What the operating system says.
    async fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<(u64, bool)>>;
}
