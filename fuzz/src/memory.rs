//! How much memory a run takes: an allocator that counts, and what may be counted at most.
#![allow(unsafe_code, reason = "an allocator has no safe form")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, with a count of what each thread has taken.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // Constants without a destructor: using them allocates nothing, and works to the end of the thread.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

/// Layouts are never larger than `isize::MAX` bytes.
const fn signed(bytes: usize) -> isize {
    bytes as isize
}

// SAFETY: every call is handed to the system's allocator as it came; the counting beside it neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(signed(size) - signed(layout.size()));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What a run may take.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Bytes whatever the input is.
    pub fixed: usize,
    /// Bytes for each byte of input.
    pub each: usize,
}

impl Allowance {
    /// For an input of that length.
    pub const fn room(self, length: usize) -> usize {
        self.fixed + self.each * length
    }
}

/// Watches this thread from its making on.
pub struct Watch {
    before: isize,
}

impl Watch {
    /// Begins.
    pub fn begin() -> Self {
        let before = HELD.get();
        MOST.set(before);
        Self { before }
    }

    /// The most that was held at any time since, beyond what was held then.
    pub fn most(&self) -> usize {
        usize::try_from(MOST.get() - self.before).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_was_held_counts_and_not_what_is_held_in_the_end() {
        let watch = Watch::begin();
        drop(std::hint::black_box(vec![1u8; 100_000]));
        drop(std::hint::black_box(vec![1u8; 50_000]));
        assert!((100_000..150_000).contains(&watch.most()), "{}", watch.most());
        let mut grown = std::hint::black_box(Vec::new());
        (0..100_000u32).for_each(|n| grown.push(n));
        assert!((400_000..1_000_000).contains(&watch.most()), "{}", watch.most());
    }
}
