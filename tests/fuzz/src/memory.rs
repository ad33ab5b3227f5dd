//! A global allocator that counts, so that an input which makes its reader take too much memory is a finding, however
//! much the machine has. It ends the process as soon as it is asked for too much: the place that asked is the finding.
//!
//! What the codecs written in C allocate is not seen here; libFuzzer looks at that (`-malloc_limit_mb`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What may be taken beyond the size of a file before it has been checked, in bytes.
pub const ALLOWANCE: usize = 64 << 20;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Does some work, and ends the process if more than `allowed` bytes are taken for it at any time. Not for more than one
/// thread at a time; the threads that the work itself starts count too.
pub fn within<T>(allowed: usize, work: impl FnOnce() -> T) -> T {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.store(self.0, Ordering::Relaxed);
        }
    }
    let limit = LIVE.load(Ordering::Relaxed).saturating_add(allowed);
    let _restore = Restore(LIMIT.swap(limit, Ordering::Relaxed));
    work()
}

/// Allows anything until the work at hand is over: a panic is being reported, which takes much.
pub fn lift() {
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

fn take(len: usize) {
    let live = LIVE.fetch_add(len, Ordering::Relaxed).saturating_add(len);
    if live > LIMIT.load(Ordering::Relaxed) {
        lift();
        eprintln!("{len} bytes are asked for, {live} in all: more than the input allows");
        std::process::abort();
    }
}

fn give(len: usize) {
    LIVE.fetch_sub(len, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it comes.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promises are those asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        take(len);
        give(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, len) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}
