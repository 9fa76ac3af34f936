//! Opening files and devices, on a helper thread: it may wait for a lock.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::ioctl;
use crate::buffer::ALIGNMENT;
use crate::{Buffer, FileFacts, OpenHow};

/// A predecessor's lock is gone a moment before its exclusive claim on a device is.
const CLAIM_PATIENCE: Duration = Duration::from_secs(3);
/// Magic numbers of `statfs` (`linux/magic.h`) for file systems that have all of their files in memory: tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58F6];
/// The same of file systems that never write in place (zfs and bcachefs: their sources).
const COPY_ON_WRITE: [u64; 3] = [0x9123_683E, 0x2FC1_2FC1, 0xCA45_1A4E];

/// An open file or device.
pub(super) struct Opened {
    pub fd: OwnedFd,
    pub facts: FileFacts,
    /// Its bytes lie in memory: no operation waits for a disk.
    pub in_memory: bool,
}

/// Opens; the error names the path.
pub(super) fn open(path: &Path, how: OpenHow) -> io::Result<Opened> {
    open_inner(path, how).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn open_inner(path: &Path, how: OpenHow) -> io::Result<Opened> {
    let device = match FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode) {
        FileType::BlockDevice => true,
        FileType::RegularFile => false,
        other => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("this is neither a file nor a block device, but {other:?}"),
            ));
        }
    };
    let (fd, direct) = if device && how.exclusive { open_claimed(path, how)? } else { open_plain(path, how, OFlags::empty())? };
    if how.exclusive {
        lock(&fd)?;
    }
    let stat = rustix::fs::fstat(&fd)?;
    if how.exclusive && !same_file(&stat, &rustix::fs::stat(path)?) {
        return Err(io::Error::other("it was replaced while its lock was waited for; open it again"));
    }
    let file_system = if device { 0 } else { rustix::fs::fstatfs(&fd)?.f_type as u64 & 0xFFFF_FFFF };
    let facts = FileFacts {
        size: rustix::fs::seek(&fd, SeekFrom::End(0))?,
        device,
        direct,
        disk_sequence: disk_sequence(&fd, &stat, device),
        copy_on_write: COPY_ON_WRITE.contains(&file_system),
    };
    Ok(Opened { fd, facts, in_memory: IN_MEMORY.contains(&file_system) })
}

/// Opens a block device with O_EXCL, so that nobody mounts it. A predecessor whose I/O is still in the kernel holds both the
/// lock and the claim: its lock is waited for first, because a claim cannot be waited for (F2).
fn open_claimed(path: &Path, how: OpenHow) -> io::Result<(OwnedFd, bool)> {
    let waiting = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    lock(&waiting)?;
    let started = Instant::now();
    loop {
        match open_plain(path, how, OFlags::EXCL) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                if started.elapsed() > CLAIM_PATIENCE {
                    return Err(io::Error::new(
                        error.kind(),
                        "the device, or one that it overlaps, is in use: lent, mounted, swapped on, or part of a RAID or LVM; free it first",
                    ));
                }
                sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Opens, with O_DIRECT if that is wished and works.
fn open_plain(path: &Path, how: OpenHow, extra: OFlags) -> io::Result<(OwnedFd, bool)> {
    let flags = if how.write { OFlags::RDWR } else { OFlags::RDONLY } | OFlags::CLOEXEC | extra;
    if how.direct {
        match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
            Ok(fd) if takes_direct_reads(&fd)? => return Ok((fd, true)),
            Ok(_) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((rustix::fs::open(path, flags, Mode::empty())?, false))
}

/// Some file systems accept O_DIRECT and then refuse the I/O, or want a coarser alignment than ours.
fn takes_direct_reads(fd: &OwnedFd) -> io::Result<bool> {
    let mut block = Buffer::new(ALIGNMENT);
    match rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut block[..], 0)) {
        Ok(_) => Ok(true),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits for the lock on the open file description. It is released when the last reference to that is gone, that is after the
/// last I/O on it has ended in the kernel, even if its process was killed (F2).
fn lock(fd: &OwnedFd) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(fd, FlockOperation::LockExclusive))?)
}

fn same_file(a: &Stat, b: &Stat) -> bool {
    a.st_dev == b.st_dev && a.st_ino == b.st_ino
}

/// The sequence number of the device, or of the device under the file; 0 if the kernel does not tell.
fn disk_sequence(fd: &OwnedFd, stat: &Stat, device: bool) -> u64 {
    if device && let Ok(sequence) = ioctl::disk_sequence(fd) {
        return sequence;
    }
    let number = if device { stat.st_rdev } else { stat.st_dev };
    let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number)));
    // A partition has its number in the folder of the whole disk.
    ["diskseq", "../diskseq"]
        .iter()
        .find_map(|name| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok())
        .unwrap_or(0)
}
