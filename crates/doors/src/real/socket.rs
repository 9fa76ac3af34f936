//! Connections.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use compio::buf::{BufResult, IntoInner};
use compio::driver::Extra;
use compio::driver::op::{Recv, RecvFlags, SendFlags, SendVectored};
use compio::runtime::{Submit, submit};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendAncillaryBuffer, Shutdown, sockopt};

use super::owned::{Parcel, Window, fits};
use super::without_io_uring;
use crate::{Buffer, Chunk, Conn, ConnReader, ConnWriter};

/// A silent peer is asked after this time whether it still lives,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// then as often as this,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// and given up after so many questions.
const KEEPALIVE_PROBES: u32 = 3;
/// Chunks of one system call (`UIO_MAXIOV`).
const CHUNKS_MAX: usize = 1024;

/// A connection, TCP or Unix.
#[derive(Debug)]
pub struct RealConn {
    fd: OwnedFd,
    peer: String,
}

impl RealConn {
    /// A connected stream socket from elsewhere: accepted on another thread, or inherited.
    ///
    /// # Errors
    /// If it is not a connected stream socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        // With io_uring the kernel waits for a socket, and only if that may block.
        rustix::io::ioctl_fionbio(&fd, without_io_uring().is_some())?;
        let peer = rustix::net::getpeername(&fd)?;
        let family = peer.as_ref().map_or(AddressFamily::UNIX, |peer| peer.address_family());
        let peer = if family == AddressFamily::UNIX {
            String::new()
        } else {
            sockopt::set_tcp_nodelay(&fd, true)?;
            sockopt::set_socket_keepalive(&fd, true)?;
            sockopt::set_tcp_keepidle(&fd, KEEPALIVE_IDLE)?;
            sockopt::set_tcp_keepintvl(&fd, KEEPALIVE_INTERVAL)?;
            sockopt::set_tcp_keepcnt(&fd, KEEPALIVE_PROBES)?;
            peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map_or_else(String::new, |peer| peer.to_string())
        };
        Ok(Self { fd, peer })
    }

    /// The socket, to hand it to another thread.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl Conn for RealConn {
    type Reader = RealReader;
    type Writer = RealWriter;

    fn split(self) -> (RealReader, RealWriter) {
        let socket = Rc::new(Socket { fd: Arc::new(self.fd) });
        let reader = RealReader { socket: Rc::clone(&socket), pending: None, left: None, was_empty: false };
        (reader, RealWriter { socket })
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }
}

/// What the two halves share.
#[derive(Debug)]
struct Socket {
    fd: Arc<OwnedFd>,
}

impl Socket {
    fn shutdown(&self) {
        // It fails if the peer has closed already: that is what was wanted.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // An operation in the kernel may hold the descriptor for a moment; the peer is told now.
        self.shutdown();
    }
}

type Receiving = Submit<Recv<Window, Arc<OwnedFd>>, Extra>;

/// The receiving half. Dropping the future of [`ConnReader::read`] loses no bytes: the receive goes on in the reader, and the
/// next read gets what came.
pub struct RealReader {
    socket: Rc<Socket>,
    /// The receive in the kernel.
    pending: Option<Receiving>,
    /// Bytes that came for a read that was dropped, and did not fit into the next one.
    left: Option<(Buffer, Range<usize>)>,
    /// The socket had no more bytes after the last receive: the next one waits first instead of trying in vain.
    was_empty: bool,
}

impl RealReader {
    /// The result of the receive in the kernel, with its buffer and where in that it began.
    async fn received(&mut self) -> Option<(io::Result<usize>, Buffer, usize)> {
        let pending = &mut self.pending;
        let done = poll_fn(|context| match pending.as_mut() {
            Some(receiving) => Pin::new(receiving).poll(context).map(Some),
            None => std::task::Poll::Ready(None),
        })
        .await;
        self.pending = None;
        let (BufResult(result, operation), extra) = done?;
        self.was_empty = extra.sock_nonempty().is_ok_and(|more| !more);
        let (buffer, range) = operation.into_inner().into_parts();
        Some((result, buffer, range.start))
    }

    fn receive(&mut self, buffer: Buffer, range: Range<usize>) {
        let mut operation = Recv::new(Arc::clone(&self.socket.fd), Window::new(buffer, range), RecvFlags::empty());
        if self.was_empty {
            compio::driver::PollFirst::poll_first(&mut operation);
        }
        self.pending = Some(submit(operation).with_extra());
    }

    /// Takes bytes that are left over.
    fn take_left(&mut self, into: &mut [u8]) -> Option<usize> {
        let (buffer, range) = self.left.take()?;
        let count = into.len().min(range.len());
        let middle = range.start + count;
        into.get_mut(..count)?.copy_from_slice(buffer.get(range.start..middle)?);
        if middle < range.end {
            self.left = Some((buffer, middle..range.end));
        }
        Some(count)
    }
}

impl ConnReader for RealReader {
    async fn read(&mut self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<usize>, Buffer) {
        if !fits(&buffer, &range) {
            return (Err(io::Error::new(io::ErrorKind::InvalidInput, "the range lies outside of the buffer")), buffer);
        }
        if range.is_empty() {
            return (Ok(0), buffer);
        }
        loop {
            if let Some(count) = buffer.get_mut(range.clone()).and_then(|into| self.take_left(into)) {
                return (Ok(count), buffer);
            }
            if self.pending.is_some() {
                // An earlier read was dropped; its bytes come into its own buffer.
                match self.received().await {
                    Some((Ok(0), ..)) => return (Ok(0), buffer),
                    Some((Ok(count), earlier, start)) => self.left = Some((earlier, start..start + count)),
                    Some((Err(error), ..)) if error.kind() != io::ErrorKind::Interrupted => return (Err(error), buffer),
                    _ => {}
                }
                continue;
            }
            self.receive(buffer, range.clone());
            match self.received().await {
                Some((Err(error), back, _)) if error.kind() == io::ErrorKind::Interrupted => buffer = back,
                Some((result, back, _)) => return (result, back),
                None => unreachable!("a receive was just begun"),
            }
        }
    }
}

/// The sending half. If the future of [`ConnWriter::write_all`] is dropped, the stream may be cut inside a chunk: shut the
/// connection down then.
pub struct RealWriter {
    socket: Rc<Socket>,
}

impl RealWriter {
    /// Sends what fits into the socket's buffer now, without going through the ring: the peer is woken sooner, and no completion
    /// has to be waited for. How many bytes that were.
    fn send_now(&self, chunks: &[Chunk]) -> io::Result<usize> {
        let parts: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        match rustix::net::sendmsg(&self.socket.fd, &parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

impl ConnWriter for RealWriter {
    async fn write_all(&mut self, chunks: Vec<Chunk>) -> io::Result<()> {
        // WAITALL: io_uring goes on by itself after a partial send.
        let flags = SendFlags::NOSIGNAL | SendFlags::from_bits_retain(libc::MSG_WAITALL as u32);
        let mut rest: VecDeque<Chunk> = chunks.into_iter().filter(|chunk| !chunk.is_empty()).collect();
        let mut is_first = true;
        while !rest.is_empty() {
            let batch: Vec<Chunk> = rest.drain(..rest.len().min(CHUNKS_MAX)).collect();
            if std::mem::take(&mut is_first) {
                let sent = self.send_now(&batch)?;
                put_back_unsent(&mut rest, batch, sent);
                continue;
            }
            let operation = SendVectored::new(Arc::clone(&self.socket.fd), Parcel::new(batch), flags);
            let BufResult(result, operation) = submit(operation).await;
            let sent = match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            put_back_unsent(&mut rest, operation.into_inner().into_chunks(), sent);
        }
        Ok(())
    }

    fn shutdown(&self) {
        self.socket.shutdown();
    }
}

/// Puts what was not sent of the batch in front of the rest again.
fn put_back_unsent(rest: &mut VecDeque<Chunk>, batch: Vec<Chunk>, sent: usize) {
    let mut end: usize = batch.iter().map(|chunk| chunk.len()).sum();
    for chunk in batch.into_iter().rev() {
        let start = end - chunk.len();
        if end <= sent {
            return;
        }
        rest.push_front(chunk.part(sent.saturating_sub(start)..chunk.len()));
        end = start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_partial_send_exactly_the_rest_remains() {
        let chunks: Vec<Chunk> = [&b"abc"[..], b"d", b"efgh"].iter().map(|bytes| bytes.to_vec().into()).collect();
        for sent in 0..=8 {
            let mut rest: VecDeque<Chunk> = VecDeque::from([b"ij".to_vec().into()]);
            put_back_unsent(&mut rest, chunks.clone(), sent);
            let bytes: Vec<u8> = rest.iter().flat_map(|chunk| chunk.to_vec()).collect();
            assert_eq!(bytes, &b"abcdefghij"[sent..]);
            assert!(rest.iter().all(|chunk| !chunk.is_empty()));
        }
    }
}
