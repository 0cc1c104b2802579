//! Counts allocations while it is told to.
//!
//! Time and allocations are measured in runs of their own, so that counting costs a timed run
//! no more than the look at a flag.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a count of the calls that return memory.
pub struct CountingAllocator;

fn count() {
    // A thread that ends has no cells any more, and nobody asks for its count.
    let _ = COUNTING.try_with(|counting| {
        if counting.get() {
            let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
        }
    });
}

// SAFETY: every call goes to the system's allocator as it came; the count touches
// cells of the thread that need no allocation.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `work` and returns how many allocations and reallocations this thread made for it.
pub fn allocations_of(work: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    COUNTING.set(true);
    work();
    COUNTING.set(false);
    CALLS.get() - before
}
