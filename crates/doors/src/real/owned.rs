//! Buffers as the kernel borrows them: owned by the operation until its completion, whatever becomes of its future.
#![allow(unsafe_code, reason = "the buffer traits of the runtime hand out memory to the kernel")]

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

use compio::buf::{IoBuf, IoBufMut, IoVectoredBuf, SetLen};

use crate::{Buffer, Chunk};

thread_local! {
    static IN_FLIGHT: Cell<usize> = const { Cell::new(0) };
}

/// Buffers of this thread that the kernel may still read or write.
pub(super) fn in_flight() -> usize {
    IN_FLIGHT.get()
}

/// Counts a buffer as lent to the kernel while it lives.
struct Flight(());

impl Flight {
    fn new() -> Self {
        IN_FLIGHT.set(IN_FLIGHT.get() + 1);
        Self(())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // At the end of a thread the counter may be gone; nobody asks any more then.
        let _ = IN_FLIGHT.try_with(|count| count.set(count.get() - 1));
    }
}

/// A part of a buffer to be filled.
pub(super) struct Window {
    buffer: Buffer,
    range: Range<usize>,
    _flight: Flight,
}

impl Window {
    /// The range must lie in the buffer ([`fits`]).
    pub(super) fn new(buffer: Buffer, range: Range<usize>) -> Self {
        Self { buffer, range, _flight: Flight::new() }
    }

    pub(super) fn into_buffer(self) -> Buffer {
        self.buffer
    }

    pub(super) fn into_parts(self) -> (Buffer, Range<usize>) {
        (self.buffer, self.range)
    }
}

/// True if the range lies in the buffer.
pub(super) fn fits(buffer: &Buffer, range: &Range<usize>) -> bool {
    range.start <= range.end && range.end <= buffer.len()
}

impl IoBuf for Window {
    fn as_init(&self) -> &[u8] {
        self.buffer.get(self.range.clone()).unwrap_or(&[])
    }
}

impl SetLen for Window {
    // The window has one length and is always initialised: nothing to remember.
    unsafe fn set_len(&mut self, _len: usize) {}
}

impl IoBufMut for Window {
    fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        let bytes = self.buffer.get_mut(self.range.clone()).unwrap_or(&mut []);
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, and the slice is borrowed mutably for as long. Only operations of
        // the runtime see it, and these let the kernel write bytes into it: it stays initialised.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
    }
}

/// A chunk to be written.
pub(super) struct Outgoing {
    chunk: Chunk,
    _flight: Flight,
}

impl Outgoing {
    pub(super) fn new(chunk: Chunk) -> Self {
        Self { chunk, _flight: Flight::new() }
    }
}

impl IoBuf for Outgoing {
    fn as_init(&self) -> &[u8] {
        &self.chunk
    }
}

/// Chunks to be sent with one call.
pub(super) struct Parcel {
    chunks: Vec<Chunk>,
    _flight: Flight,
}

impl Parcel {
    pub(super) fn new(chunks: Vec<Chunk>) -> Self {
        Self { chunks, _flight: Flight::new() }
    }

    pub(super) fn into_chunks(self) -> Vec<Chunk> {
        self.chunks
    }
}

impl IoVectoredBuf for Parcel {
    fn iter_slice(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().map(|chunk| &**chunk)
    }
}
