//! What a mount asks of the C library's allocator.

/// From this size on, in bytes, freed memory goes back to the system at once. Chunks are larger as a rule.
const GIVEN_BACK: i32 = 256 << 10;
/// How much of the smaller sizes each of the allocator's arenas keeps, in bytes.
const KEPT: i32 = 1 << 20;

/// Keeps glibc's allocator from hoarding: by default it learns from the first large buffer that is freed to keep all up to
/// that size, in an arena for each thread. A budget of 64 MiB then took 180. Buffers worth keeping are kept by the budget,
/// which counts them.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the allocator is told so by a C function only")]
pub(super) fn give_large_buffers_back() {
    use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    // SAFETY: mallopt may be called at any time; what it refuses stays as it was.
    unsafe {
        mallopt(M_MMAP_THRESHOLD, GIVEN_BACK);
        mallopt(M_TRIM_THRESHOLD, KEPT);
    }
}

#[cfg(not(target_env = "gnu"))]
pub(super) fn give_large_buffers_back() {}
