//! Counts what a thread allocates, so that a test can bound it.
//!
//! A test binary that uses [`peak_of`] names [`CountingAllocator`] as its global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has allocated and not freed, and the most there were.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with a count for each thread.
#[derive(Clone, Copy, Debug)]
pub struct CountingAllocator;

fn count(bytes: isize) {
    // A thread that ends has no cells any more, and nobody asks for its count.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it came; the counts touch nothing but
// cells of the thread that need no allocation.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `work` and returns with its result the most bytes that it held at one time, beyond
/// what the thread held before.
pub fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    let peak = PEAK.get() - before;
    (result, usize::try_from(peak).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn the_peak_counts_what_was_freed_again() {
        let (length, peak) = peak_of(|| {
            drop(std::hint::black_box(vec![1u8; 1 << 20]));
            std::hint::black_box(vec![1u8; 1 << 10]).len()
        });
        assert_eq!(length, 1 << 10);
        assert!((1 << 20..1 << 21).contains(&peak), "{peak} bytes");
        let ((), none) = peak_of(|| ());
        assert_eq!(none, 0);
    }
}
