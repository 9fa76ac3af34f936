//! Serves the kernel's requests: from `/dev/fuse` to the engine and back, in one thread.

use std::io;
use std::rc::Rc;

use sublet_doors::local::{Permit, Semaphore};
use sublet_doors::real::{Device, RealDoors};
use sublet_doors::{Buffer, Chunk, Doors};

use super::protocol::{self, FILE, Header, PAYLOAD_MAX, RECEIVE_SIZE, ROOT, Span, WRITE_PAYLOAD_AT, op};
use super::{FILE_NAME, FUSE_BYTES_MAX};
use crate::device::{BlockDevice, DeviceError, DeviceErrorKind, ZeroFlags};

/// What a request without data counts.
const REQUEST_BYTES_MIN: u64 = 4096;

/// `fallocate` modes (`linux/falloc.h`).
const KEEP_SIZE: u32 = 0x01;
const PUNCH_HOLE: u32 = 0x02;
const ZERO_RANGE: u32 = 0x10;

/// What all tasks of a session share.
struct Session<B> {
    doors: RealDoors,
    kernel: Device,
    device: Rc<B>,
    budget: Semaphore,
}

/// An answer: an errno, or a body and perhaps data behind it.
type Answer = Result<(Vec<u8>, Vec<Chunk>), i32>;

/// Serves until the file system is unmounted.
pub async fn serve<B: BlockDevice>(doors: RealDoors, kernel: Device, device: Rc<B>) {
    let session = Rc::new(Session { doors, kernel, device, budget: Semaphore::new(FUSE_BYTES_MAX) });
    read_requests(session).await;
}

async fn read_requests<B: BlockDevice>(session: Rc<Session<B>>) {
    let mut spare = None;
    loop {
        let buffer = spare.take().unwrap_or_else(|| Buffer::new(RECEIVE_SIZE));
        let (result, buffer) = session.kernel.read(buffer).await;
        match result {
            Ok(length) => spare = take(&session, buffer, length).await,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            // ENOENT: the request was withdrawn before it was read.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => spare = Some(buffer),
            Err(error) => {
                tracing::error!(%error, "the kernel's FUSE requests cannot be read any more; the block device fails");
                return;
            }
        }
    }
}

/// Takes one request apart and starts it; returns the buffer if it is free again.
async fn take<B: BlockDevice>(session: &Rc<Session<B>>, buffer: Buffer, length: usize) -> Option<Buffer> {
    let packet = buffer.get(..length)?;
    let Some(header) = Header::read(packet) else {
        tracing::error!(length, "a malformed FUSE request was received");
        return Some(buffer);
    };
    let span = match header.opcode {
        op::READ => protocol::read_span(packet),
        op::WRITE => protocol::write_span(packet),
        op::FALLOCATE => protocol::fallocate_span(packet),
        op::FSYNC | op::FLUSH => Some(Span { offset: 0, length: 0, mode: 0 }),
        // Nothing to answer. An interrupted request ends by itself: the engine bounds its time (or the user chose to wait).
        op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return Some(buffer),
        _ => {
            let answer = session.describe(header, packet);
            session.reply(header.unique, answer).await;
            return Some(buffer);
        }
    };
    let Some(span) = span.filter(|_| header.node == FILE) else {
        session.reply(header.unique, Err(libc::EINVAL)).await;
        return Some(buffer);
    };
    let carried = matches!(header.opcode, op::READ | op::WRITE);
    if carried && span.length > PAYLOAD_MAX as u64 {
        session.reply(header.unique, Err(libc::EINVAL)).await;
        return Some(buffer);
    }
    let size = span.length as usize;
    let (payload, rest) = match header.opcode {
        op::WRITE => payload_of(buffer, length, size),
        _ => (None, Some(buffer)),
    };
    if header.opcode == op::WRITE && payload.is_none() {
        session.reply(header.unique, Err(libc::EINVAL)).await;
        return rest;
    }
    // What is held, not what was asked for.
    let bytes = match &payload {
        Some(payload) => payload.held(),
        None if carried => Buffer::held_by(size),
        None => 0,
    };
    let permit = session.budget.acquire((bytes as u64).max(REQUEST_BYTES_MIN)).await;
    let own = Rc::clone(session);
    session.doors.spawn(async move { own.execute(header, span, payload, permit).await });
    rest
}

/// The payload of a write in a packet of so many bytes, and the receive buffer if it is free again; no payload if the packet is
/// not that of such a write. A payload that fills less than half of the buffer is copied (W3: so is every other, by read(2), and
/// nobody else has the buffer): kept, it would hold many times its size.
fn payload_of(buffer: Buffer, packet: usize, size: usize) -> (Option<Chunk>, Option<Buffer>) {
    let place = WRITE_PAYLOAD_AT..WRITE_PAYLOAD_AT + size;
    if packet != place.end {
        return (None, Some(buffer));
    }
    if size * 2 >= Buffer::held_by(buffer.len()) {
        return (Some(buffer.freeze().part(place)), None);
    }
    let copy = buffer.get(place).map(|bytes| Buffer::copy_of(bytes).freeze());
    (copy, Some(buffer))
}

fn errno(error: &DeviceError) -> i32 {
    match error.kind {
        DeviceErrorKind::OutOfRange => libc::EINVAL,
        DeviceErrorKind::NoSpace => libc::ENOSPC,
        DeviceErrorKind::ReadOnly => libc::EROFS,
        DeviceErrorKind::TooSlow => libc::EOPNOTSUPP,
        DeviceErrorKind::ShutDown | DeviceErrorKind::Io => libc::EIO,
    }
}

impl<B: BlockDevice> Session<B> {
    /// Everything that is answered from what is known already.
    fn describe(&self, header: Header, packet: &[u8]) -> Answer {
        let (size, read_only) = (self.device.size(), self.device.read_only());
        let known = matches!(header.node, ROOT | FILE);
        let body = match header.opcode {
            op::INIT => protocol::init(packet).ok_or(libc::EPROTO)?,
            op::LOOKUP if header.node == ROOT && protocol::lookup_name(packet) == Some(FILE_NAME.as_bytes()) => {
                protocol::entry(size, read_only)
            }
            op::LOOKUP => return Err(libc::ENOENT),
            op::GETATTR if known => protocol::attr(header.node, size, read_only),
            op::SETATTR => return Err(libc::EPERM),
            op::OPEN if header.node == FILE => {
                let flags = protocol::open_flags(packet).ok_or(libc::EINVAL)? as i32;
                if read_only && flags & libc::O_ACCMODE != libc::O_RDONLY {
                    return Err(libc::EROFS);
                }
                protocol::open_file()
            }
            op::OPEN => return Err(libc::EISDIR),
            op::OPENDIR if header.node == ROOT => protocol::open_directory(),
            op::READDIR if header.node == ROOT => protocol::directory(packet).ok_or(libc::EINVAL)?,
            op::OPENDIR | op::READDIR => return Err(libc::ENOTDIR),
            op::STATFS => protocol::statfs(size),
            op::RELEASE | op::RELEASEDIR | op::FSYNCDIR | op::ACCESS | op::DESTROY => Vec::new(),
            _ => return Err(libc::ENOSYS),
        };
        Ok((body, Vec::new()))
    }

    /// Carries out one request of the volume and answers it.
    async fn execute(&self, header: Header, span: Span, payload: Option<Chunk>, permit: Permit) {
        let answer = match (header.opcode, payload) {
            (op::READ, _) => self.read(span).await,
            (op::WRITE, Some(data)) => self.write(span, data).await,
            (op::FALLOCATE, _) => self.fallocate(span).await,
            _ => self.device.flush().await.map(|()| (Vec::new(), Vec::new())).map_err(|e| errno(&e)),
        };
        self.reply(header.unique, answer).await;
        drop(permit);
    }

    async fn read(&self, span: Span) -> Answer {
        let left = self.device.size().saturating_sub(span.offset);
        let size = span.length.min(left);
        if size == 0 {
            return Ok((Vec::new(), Vec::new()));
        }
        self.device.read(span.offset, size).await.map(|data| (Vec::new(), data)).map_err(|e| errno(&e))
    }

    async fn write(&self, span: Span, data: Chunk) -> Answer {
        if self.device.read_only() {
            return Err(libc::EROFS);
        }
        if !self.has(span) {
            return Err(libc::ENOSPC);
        }
        let length = data.len();
        if length > 0 {
            self.device.write(span.offset, data, protocol::is_durable(span.mode)).await.map_err(|e| errno(&e))?;
        }
        Ok((protocol::written(length), Vec::new()))
    }

    async fn fallocate(&self, span: Span) -> Answer {
        if self.device.read_only() {
            return Err(libc::EROFS);
        }
        let zero = match span.mode & !KEEP_SIZE {
            // Room is always allocated as far as the lender does so.
            0 => None,
            PUNCH_HOLE => Some(ZeroFlags::default()),
            ZERO_RANGE => Some(ZeroFlags { no_hole: true, ..ZeroFlags::default() }),
            _ => return Err(libc::EOPNOTSUPP),
        };
        if !self.has(span) {
            return Err(libc::ENOSPC);
        }
        if let Some(flags) = zero.filter(|_| span.length > 0) {
            self.device.write_zeroes(span.offset, span.length, flags).await.map_err(|e| errno(&e))?;
        }
        Ok((Vec::new(), Vec::new()))
    }

    fn has(&self, span: Span) -> bool {
        span.offset.checked_add(span.length).is_some_and(|end| end <= self.device.size())
    }

    async fn reply(&self, unique: u64, answer: Answer) {
        let (error, body, data) = match answer {
            Ok((body, data)) => (0, body, data),
            Err(error) => (error, Vec::new(), Vec::new()),
        };
        let length = body.len() + data.iter().map(|chunk| chunk.len()).sum::<usize>();
        let mut head = protocol::out_header(unique, error, length);
        head.extend(body);
        let mut packet = vec![Chunk::from(head)];
        packet.extend(data);
        if let Err(error) = self.kernel.write(packet).await {
            // ENOENT: the request was aborted meanwhile; ENODEV: the file system is gone.
            if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) {
                tracing::error!(%error, "a FUSE request could not be answered");
            }
        }
    }
}

/// Opens `/dev/fuse` for a session.
///
/// # Errors
/// What the operating system says; `NotFound` means that this kernel has no FUSE.
pub fn open_kernel() -> io::Result<std::os::fd::OwnedFd> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_waits_holds_at_most_twice_its_bytes_and_is_charged_what_it_holds() {
        for size in [1, 4096, 64 << 10, (64 << 10) + 4096, 192 << 10, 600 << 10, PAYLOAD_MAX - 4096, PAYLOAD_MAX] {
            let mut buffer = Buffer::zeroed(RECEIVE_SIZE);
            buffer[WRITE_PAYLOAD_AT..WRITE_PAYLOAD_AT + size].fill(7);
            let (payload, rest) = payload_of(buffer, WRITE_PAYLOAD_AT + size, size);
            let payload = payload.unwrap();
            assert!(payload.len() == size && payload.iter().all(|byte| *byte == 7), "{size}");
            assert!(payload.held() <= (size * 2).max(4096), "{size} bytes hold {}", payload.held());
            assert!(payload.held() as u64 <= FUSE_BYTES_MAX, "it fits the budget");
            assert_eq!(rest.is_some(), size < PAYLOAD_MAX, "{size}: a buffer that is kept takes no other request");
            assert_eq!(Buffer::held_by(size), Buffer::new(size).freeze().held(), "{size}");
        }
        let (payload, rest) = payload_of(Buffer::new(RECEIVE_SIZE), WRITE_PAYLOAD_AT + 10, 11);
        assert!(payload.is_none() && rest.is_some(), "a packet that is cut short");
    }
}
