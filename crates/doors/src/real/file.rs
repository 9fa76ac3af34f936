//! Files and block devices.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use compio::buf::{BufResult, IntoInner};
use compio::driver::op::{ReadAt, Sync, WriteAt};
use compio::runtime::submit;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::driver::FILE_THREADS;
use super::owned::{Outgoing, Window, fits};
use super::pacer::{self, Pacer};
use super::{RealDoors, blocking, open, without_io_uring};
use crate::buffer::ALIGNMENT;
use crate::disk::Zero;
use crate::local::{Permit, Semaphore};
use crate::{Buffer, Chunk, Disk, DiskFile, FileFacts, OpenHow};

/// A file in memory is read and written at once up to this size. io_uring has a worker thread do it, because such a file system
/// does not say whether it would have to wait, and waking that thread costs more than copying so much.
const AT_ONCE_MAX: usize = 64 << 10;
/// Zeroes that have to be written go to the disk in pieces of this size.
const ZERO_PIECE: u64 = 1 << 20;

impl Disk for RealDoors {
    type File = RealFile;

    async fn open(&self, path: &Path, how: OpenHow) -> io::Result<RealFile> {
        let path = path.to_owned();
        let open::Opened { fd, facts, in_memory } = blocking(move || open::open(&path, how)).await?;
        let turns = match without_io_uring() {
            Some(_) => Turns::Threads(Semaphore::new(FILE_THREADS)),
            None if facts.direct => Turns::Paced(Pacer::new()),
            None => Turns::Free,
        };
        Ok(RealFile { fd: Arc::new(fd), facts, in_memory, turns, can_punch: Cell::new(true), can_zero: Cell::new(true) })
    }
}

/// An open file or block device.
///
/// A future of a read or write that is dropped before its end (a timeout) cancels the operation as far as the kernel can; it
/// may still happen. The operation owns its buffer until then, and keeps the file (and its lock) open.
#[derive(Debug)]
pub struct RealFile {
    /// Shared with operations and helper threads: closed, and so unlocked, after the last of them (F2).
    fd: Arc<OwnedFd>,
    facts: FileFacts,
    /// It is on tmpfs or ramfs; see [`AT_ONCE_MAX`].
    in_memory: bool,
    turns: Turns,
    /// False once the file system has said that it cannot.
    can_punch: Cell<bool>,
    can_zero: Cell<bool>,
}

/// When the next request may go to the disk.
#[derive(Debug)]
enum Turns {
    /// At once: what is not direct goes to the page cache.
    Free,
    /// See [`super::pacer`].
    Paced(Rc<Pacer>),
    /// Threads do what io_uring would: so many at the same time.
    Threads(Semaphore),
}

/// Held while the disk has a request.
enum Turn {
    Free,
    Paced { _turn: pacer::Turn },
    Thread { _permit: Permit },
}

impl DiskFile for RealFile {
    fn facts(&self) -> &FileFacts {
        &self.facts
    }

    async fn read_at(&self, offset: u64, mut buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        if !fits(&buffer, &range) {
            return (Err(io::Error::new(io::ErrorKind::InvalidInput, "the range lies outside of the buffer")), buffer);
        }
        if self.in_memory && range.len() <= AT_ONCE_MAX {
            let result = self.read_at_once(offset, buffer.get_mut(range).unwrap_or(&mut []));
            return (result, buffer);
        }
        let _turn = self.turn().await;
        let mut at = range.start;
        while at < range.end {
            let place = offset + (at - range.start) as u64;
            let operation = ReadAt::new(Arc::clone(&self.fd), place, Window::new(buffer, at..range.end));
            let BufResult(result, operation) = submit(operation).await;
            buffer = operation.into_inner().into_buffer();
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                Ok(n) => at += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buffer),
            }
            if at < range.end && self.facts.direct && !(at - range.start).is_multiple_of(ALIGNMENT) {
                // Only the end of the file cuts a direct read inside a block, and going on from there would be unaligned.
                return (Err(io::ErrorKind::UnexpectedEof.into()), buffer);
            }
        }
        (Ok(()), buffer)
    }

    async fn write_at(&self, offset: u64, data: Chunk) -> io::Result<()> {
        if self.in_memory && data.len() <= AT_ONCE_MAX {
            return self.write_at_once(offset, &data);
        }
        let _turn = self.turn().await;
        let mut done = 0;
        while done < data.len() {
            let piece = Outgoing::new(data.part(done..data.len()));
            let BufResult(result, _) = submit(WriteAt::new(Arc::clone(&self.fd), offset + done as u64, piece)).await;
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        if self.in_memory {
            // Nothing has to be waited for, and io_uring would have a worker thread find that out.
            return Ok(rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.fd))?);
        }
        let _thread = match &self.turns {
            Turns::Threads(threads) => Some(threads.acquire(1).await),
            Turns::Free | Turns::Paced(_) => None,
        };
        loop {
            match submit(Sync::new(Arc::clone(&self.fd), true)).await.0 {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|_| ()),
            }
        }
    }

    async fn zero(&self, offset: u64, length: u64, how: Zero) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        // For a block device, the kernel makes a discard that zeroes of the one and `BLKZEROOUT` without unmapping of the other.
        let punch = (how == Zero::Punch).then_some((FallocateFlags::PUNCH_HOLE, &self.can_punch));
        for (flags, can) in punch.into_iter().chain([(FallocateFlags::ZERO_RANGE, &self.can_zero)]) {
            if can.get() && self.allocate(flags | FallocateFlags::KEEP_SIZE, offset, length, can).await? {
                return Ok(());
            }
        }
        self.write_zeroes(offset, length).await
    }

    async fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<(u64, bool)>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        if self.facts.device {
            return Ok(vec![(length, true)]);
        }
        let fd = Arc::clone(&self.fd);
        let data = blocking(move || data_stretches(&fd, offset, offset + length)).await?;
        Ok(cover(offset, offset + length, &data))
    }
}

impl RealFile {
    async fn turn(&self) -> Turn {
        match &self.turns {
            Turns::Free => Turn::Free,
            Turns::Paced(pacer) => Turn::Paced { _turn: Pacer::turn(pacer).await },
            Turns::Threads(threads) => Turn::Thread { _permit: threads.acquire(1).await },
        }
    }

    fn read_at_once(&self, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::io::pread(&self.fd, &mut *into, offset))?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += count as u64;
            into = into.get_mut(count..).unwrap_or(&mut []);
        }
        Ok(())
    }

    fn write_at_once(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.fd, data, offset))?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += count as u64;
            data = data.get(count..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// One `fallocate`; false where the file system (or the device, or this alignment) does not have it.
    async fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64, can: &Cell<bool>) -> io::Result<bool> {
        let fd = Arc::clone(&self.fd);
        let work = move || rustix::io::retry_on_intr(|| rustix::fs::fallocate(&fd, flags, offset, length));
        match blocking(work).await {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => {
                can.set(false);
                Ok(false)
            }
            Err(Errno::INVAL) => Ok(false),
            // A real error of the disk is not tried away.
            Err(error) => Err(error.into()),
        }
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let zeroes = Buffer::zeroed(length.min(ZERO_PIECE) as usize).freeze();
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(ZERO_PIECE);
            self.write_at(offset + done, zeroes.part(0..piece as usize)).await?;
            done += piece;
        }
        Ok(())
    }
}

/// The stretches with data inside `[from, end)`, from a file system that tells; the whole where it does not.
fn data_stretches(fd: &OwnedFd, from: u64, end: u64) -> io::Result<Vec<Range<u64>>> {
    let mut stretches = Vec::new();
    let mut at = from;
    while at < end {
        let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) if start < end => start,
            // Behind the last data: a hole up to the end.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => return Ok(std::iter::once(from..end).collect()),
            Err(error) => return Err(error.into()),
        };
        let stop = match rustix::fs::seek(fd, SeekFrom::Hole(start)) {
            Ok(stop) => stop.min(end),
            Err(Errno::NXIO) => end, // The file was cut short meanwhile: let the read find out.
            Err(error) => return Err(error.into()),
        };
        stretches.push(start..stop);
        at = stop.max(start + 1);
    }
    Ok(stretches)
}

/// Makes a cover of `[from, end)` out of its data stretches, which are rounded outwards to whole blocks.
fn cover(from: u64, end: u64, data: &[Range<u64>]) -> Vec<(u64, bool)> {
    const BLOCK: u64 = ALIGNMENT as u64;
    let mut extents: Vec<(u64, bool)> = Vec::new();
    let mut push = |length: u64, is_data: bool| match extents.last_mut() {
        _ if length == 0 => {}
        Some((last, kind)) if *kind == is_data => *last += length,
        _ => extents.push((length, is_data)),
    };
    let mut at = from;
    for stretch in data {
        let start = (stretch.start / BLOCK * BLOCK).clamp(at, end);
        let stop = stretch.end.div_ceil(BLOCK).saturating_mul(BLOCK).clamp(start, end);
        push(start - at, false);
        push(stop - start, true);
        at = stop;
    }
    push(end - at, false);
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_rounded_outwards_and_the_cover_has_no_gaps() {
        type Case = ((u64, u64), &'static [(u64, u64)], &'static [(u64, bool)]);
        let cases: [Case; 6] = [
            ((0, 8192), &[], &[(8192, false)]),
            ((0, 16384), &[(5000, 5001)], &[(4096, false), (4096, true), (8192, false)]),
            ((0, 16384), &[(0, 100), (5000, 5001)], &[(8192, true), (8192, false)]),
            ((0, 16384), &[(100, 200), (300, 400)], &[(4096, true), (12288, false)]),
            ((1000, 9000), &[(1000, 2000), (8500, 9000)], &[(3096, true), (4096, false), (808, true)]),
            ((4096, 8192), &[(4096, 8192)], &[(4096, true)]),
        ];
        for ((from, end), data, expected) in cases {
            let stretches: Vec<Range<u64>> = data.iter().map(|(start, stop)| *start..*stop).collect();
            assert_eq!(cover(from, end, &stretches), expected, "{from}..{end} {data:?}");
        }
    }
}
