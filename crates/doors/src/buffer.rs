//! Buffers that an I/O operation owns while it runs: aligned for direct I/O, pooled per thread.
//!
//! [`Buffer`] is unique and writable; [`Buffer::freeze`] makes it a [`Chunk`], which is immutable and cheap to clone, so
//! that one payload goes to several lenders without a copy (W3: nobody can change it any more).

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

/// Alignment of every buffer in bytes: what direct I/O may ask for.
pub const ALIGNMENT: usize = 4096;
/// Buffers up to this size are pooled by power of two.
const POOLED_SIZE_MAX: usize = 2 << 20;
/// Bytes that a thread's pool keeps at most. When it is full, sizes make room of which there was too much lately: otherwise small
/// buffers of an earlier load would stay for ever, and memory of large ones would come from the kernel, page by page, each time.
const POOL_BYTES_MAX: usize = 16 << 20;
/// So many allocations are *lately*.
const LATELY: u32 = 1024;
/// Sizes: 2^0 pages, and so on up to [`POOLED_SIZE_MAX`].
const CLASSES: usize = (POOLED_SIZE_MAX / ALIGNMENT).ilog2() as usize + 1;

/// One aligned page of a buffer.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; ALIGNMENT]);

type Pages = Box<[Page]>;

/// Allocations of 2^k pages that nobody uses.
#[derive(Default)]
struct Class {
    free: Vec<Pages>,
    /// The fewest there were since the last look,
    least: usize,
    /// and before that: so many are not needed.
    surplus: usize,
}

impl Class {
    fn pop(&mut self) -> Option<Pages> {
        let pages = self.free.pop();
        self.least = self.least.min(self.free.len());
        pages
    }
}

#[derive(Default)]
struct Pool {
    classes: [Class; CLASSES],
    bytes: usize,
    allocations: u32,
}

impl Pool {
    fn allocate(&mut self, class: usize) -> Option<Pages> {
        self.allocations += 1;
        if self.allocations >= LATELY {
            self.allocations = 0;
            for class in &mut self.classes {
                class.surplus = std::mem::replace(&mut class.least, class.free.len());
            }
        }
        let found = self.classes.get_mut(class)?.pop()?;
        self.bytes -= found.len() * ALIGNMENT;
        Some(found)
    }

    fn release(&mut self, class: usize, pages: Pages) {
        let bytes = pages.len() * ALIGNMENT;
        while self.bytes + bytes > POOL_BYTES_MAX {
            let surplus = |(class, of): &(usize, &Class)| of.surplus.min(of.free.len()) << class;
            let most = self.classes.iter().enumerate().max_by_key(surplus).filter(|most| surplus(most) > 0);
            let Some(most) = most.map(|(most, _)| most).filter(|most| *most != class) else { return };
            let Some(other) = self.classes.get_mut(most).and_then(|of| of.pop().inspect(|_| of.surplus -= 1)) else { return };
            self.bytes -= other.len() * ALIGNMENT;
        }
        self.bytes += bytes;
        if let Some(class) = self.classes.get_mut(class) {
            class.free.push(pages);
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

fn class_of(pages: usize) -> Option<usize> {
    let class = pages.next_power_of_two().trailing_zeros() as usize;
    (pages << 12 <= POOLED_SIZE_MAX && class < CLASSES).then_some(class)
}

/// How many pages are allocated for so many.
fn allocated(pages: usize) -> usize {
    class_of(pages).map_or(pages, |class| 1 << class)
}

fn allocate(pages: usize) -> Pages {
    let class = class_of(pages);
    let pooled = class.and_then(|class| POOL.with_borrow_mut(|pool| pool.allocate(class)));
    pooled.unwrap_or_else(|| vec![Page([0; ALIGNMENT]); allocated(pages)].into_boxed_slice())
}

fn release(pages: Pages) {
    let Some(class) = class_of(pages.len()).filter(|class| 1 << class == pages.len()) else { return };
    // At the end of a thread its pool may be gone already; the memory is simply freed then.
    let _ = POOL.try_with(|pool| pool.borrow_mut().release(class, pages));
}

/// A unique, writable, aligned run of bytes.
pub struct Buffer {
    pages: Option<Pages>,
    length: usize,
}

impl Buffer {
    /// `length` bytes of any content (initialised memory, but perhaps of an earlier use): for data that is about to be read.
    pub fn new(length: usize) -> Self {
        Self { pages: Some(allocate(length.div_ceil(ALIGNMENT).max(1))), length }
    }

    /// How many bytes a buffer of this length holds: more than its length, because buffers come in powers of two.
    pub fn held_by(length: usize) -> usize {
        allocated(length.div_ceil(ALIGNMENT).max(1)) * ALIGNMENT
    }

    /// `length` zero bytes.
    pub fn zeroed(length: usize) -> Self {
        let mut buffer = Self::new(length);
        buffer.fill(0);
        buffer
    }

    /// A copy of these bytes (W3).
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::new(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Immutable from now on, and shareable within the thread.
    pub fn freeze(self) -> Chunk {
        let range = 0..self.length;
        Chunk { buffer: Rc::new(self), range }
    }

    /// Makes it shorter; the bytes behind stay allocated.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            release(pages);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    #[allow(unsafe_code, reason = "a slice of pages is a slice of bytes")]
    fn deref(&self) -> &[u8] {
        let pages: &[Page] = self.pages.as_deref().unwrap_or(&[]);
        // SAFETY: `Page` is `repr(C)` over an array of bytes, has no padding and any content is valid; `length` never
        // exceeds the size of the pages (set in `new`, only made smaller by `truncate`).
        unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), self.length) }
    }
}

impl DerefMut for Buffer {
    #[allow(unsafe_code, reason = "a slice of pages is a slice of bytes")]
    fn deref_mut(&mut self) -> &mut [u8] {
        let pages: &mut [Page] = self.pages.as_deref_mut().unwrap_or(&mut []);
        // SAFETY: as in `deref`, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), self.length) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

/// An immutable part of a frozen buffer; clones share the memory.
#[derive(Clone)]
pub struct Chunk {
    buffer: Rc<Buffer>,
    range: Range<usize>,
}

impl Chunk {
    /// A chunk of its own with these bytes.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Buffer::copy_of(bytes).freeze()
    }

    /// A part of this chunk, sharing the memory.
    ///
    /// # Panics
    /// If the range does not lie in the chunk.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "the part lies in the chunk");
        Self { buffer: Rc::clone(&self.buffer), range: self.range.start + range.start..self.range.start + range.end }
    }

    /// How many bytes stay allocated as long as this chunk lives: those of its whole buffer.
    pub fn held(&self) -> usize {
        self.buffer.pages.as_ref().map_or(0, |pages| pages.len() * ALIGNMENT)
    }

    /// The bytes of these chunks, one after the other.
    pub fn joined(chunks: &[Self]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(chunks.iter().map(|chunk| chunk.len()).sum());
        chunks.iter().for_each(|chunk| bytes.extend_from_slice(chunk));
        bytes
    }

    /// This chunk, or a copy of it if a buffer of its own would hold less memory.
    #[must_use]
    pub fn lean(self) -> Self {
        if self.held() <= Buffer::held_by(self.len()) { self } else { Self::copy_of(&self) }
    }

    /// The buffer again, if this is its only chunk (whole, whatever part this was).
    ///
    /// # Errors
    /// The chunk itself if others share it.
    pub fn thaw(self) -> Result<Buffer, Chunk> {
        let range = self.range;
        Rc::try_unwrap(self.buffer).map_err(|buffer| Chunk { buffer, range })
    }
}

impl Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.buffer.get(self.range.clone()).unwrap_or(&[])
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(bytes: Vec<u8>) -> Self {
        Self::copy_of(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_whatever_their_size() {
        for length in [0, 1, 64, 4096, 4097, 1 << 20, 3 << 20] {
            let buffer = Buffer::zeroed(length);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn a_zeroed_buffer_is_zero_although_the_pool_had_a_used_one() {
        drop(Buffer::copy_of(&[7; 5000]));
        assert!(Buffer::zeroed(5000).iter().all(|b| *b == 0));
    }

    #[test]
    fn the_pool_is_bounded_and_goes_over_to_the_sizes_that_are_used() {
        let pooled = |class: usize| POOL.with_borrow(|pool| pool.classes[class].free.len());
        let use_some = |length: usize, count: usize| drop((0..count).map(|_| Buffer::new(length)).collect::<Vec<_>>());
        let all = POOL_BYTES_MAX / ALIGNMENT;
        use_some(ALIGNMENT, 2 * all);
        assert_eq!(pooled(0), all);
        // A few small ones are still used beside the large ones; the others give way.
        for _ in 0..LATELY {
            use_some(1 << 20, 12);
            use_some(ALIGNMENT, 10);
        }
        assert_eq!(pooled(8), 12);
        assert!((10..=all / 4).contains(&pooled(0)), "{}", pooled(0));
        let bytes: (usize, usize) =
            POOL.with_borrow(|pool| (pool.bytes, (0..CLASSES).map(|k| pool.classes[k].free.len() << (k + 12)).sum()));
        assert!(bytes.0 == bytes.1 && bytes.0 <= POOL_BYTES_MAX, "{bytes:?}");
        // Both are used: neither drives the other out.
        for _ in 0..LATELY {
            use_some(1 << 20, 12);
            use_some(ALIGNMENT, all / 2);
        }
        assert!(pooled(8) >= 4 && pooled(0) >= all / 8, "{} and {}", pooled(8), pooled(0));
    }

    #[test]
    fn a_lean_chunk_holds_what_a_buffer_for_its_bytes_does() {
        let large = Buffer::new(256 << 10).freeze();
        for (length, copied) in
            [(1, true), (4096, true), (65 << 10, true), (128 << 10, true), (129 << 10, false), (256 << 10, false)]
        {
            let part = large.part(0..length).lean();
            assert_eq!((part.len(), part.held() < large.held()), (length, copied), "{length}");
            assert_eq!(part.held(), Buffer::held_by(length));
        }
    }

    #[test]
    fn parts_share_and_the_last_one_thaws() {
        let chunk = Buffer::copy_of(b"0123456789").freeze();
        let part = chunk.part(2..6).part(1..3);
        assert_eq!(&*part, b"34");
        assert_eq!(part.held(), ALIGNMENT, "a part keeps the whole buffer");
        let chunk = chunk.thaw().unwrap_err();
        drop(part);
        assert_eq!(&*chunk.thaw().unwrap(), b"0123456789");
    }
}
