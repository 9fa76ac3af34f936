//! Packet devices: `/dev/fuse`.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use compio::driver::op::{Interest, PollOnce};
use compio::runtime::submit;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::{Buffer, Chunk};

/// Parts of a packet at most (`UIO_MAXIOV`).
const PARTS_MAX: usize = 1024;
/// Packets that are read in a row before other tasks get a turn.
const READS_IN_A_ROW_MAX: u32 = 16;

/// An open device where one read gives one packet and one write takes one.
///
/// The calls are made directly, without blocking, and io_uring only waits for readiness. A read given to io_uring could block
/// the data thread (the kernel withdraws a FUSE request after it has said that one is there), and a dropped future would lose
/// the packet that has just come; this way it loses none.
#[derive(Debug)]
pub struct Device {
    fd: Arc<OwnedFd>,
    reads_in_a_row: Cell<u32>,
}

impl Device {
    /// Takes the device over and makes it non-blocking.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { fd: Arc::new(fd), reads_in_a_row: Cell::new(0) })
    }

    /// Reads one packet; its length, 0 at the end. Several reads may wait at once; each packet goes to one of them.
    ///
    /// # Errors
    /// What the operating system says (`ENODEV`: the file system was unmounted), with the buffer either way.
    pub async fn read(&self, mut buffer: Buffer) -> (io::Result<usize>, Buffer) {
        if self.reads_in_a_row.get() >= READS_IN_A_ROW_MAX {
            self.reads_in_a_row.set(0);
            yield_now().await;
        }
        loop {
            match rustix::io::read(&self.fd, &mut buffer[..]) {
                Ok(length) => {
                    self.reads_in_a_row.set(self.reads_in_a_row.get() + 1);
                    return (Ok(length), buffer);
                }
                Err(Errno::AGAIN) => {
                    self.reads_in_a_row.set(0);
                    if let Err(error) = self.ready(Interest::Readable).await {
                        return (Err(error), buffer);
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return (Err(error.into()), buffer),
            }
        }
    }

    /// Writes one packet with one call.
    ///
    /// # Errors
    /// What the operating system says; `WriteZero` if the device took only a part.
    pub async fn write(&self, packet: Vec<Chunk>) -> io::Result<()> {
        if packet.len() > PARTS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a packet has {PARTS_MAX} parts at most")));
        }
        let total: usize = packet.iter().map(|part| part.len()).sum();
        loop {
            let parts: Vec<IoSlice<'_>> = packet.iter().map(|part| IoSlice::new(part)).collect();
            match rustix::io::writev(&self.fd, &parts) {
                Ok(written) if written == total => return Ok(()),
                Ok(written) => {
                    let message = format!("the device took {written} of the {total} bytes of a packet");
                    return Err(io::Error::new(io::ErrorKind::WriteZero, message));
                }
                Err(Errno::AGAIN) => self.ready(Interest::Writable).await?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<()> {
        submit(PollOnce::new(Arc::clone(&self.fd), interest)).await.0.map(|_| ())
    }
}

/// Lets the other ready tasks run once.
async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
