//! What every whole-file job is given beside its options: someone who looks on, and a way to stop it.
//!
//! ```
//! use std::path::Path;
//! use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
//! use warpfs::job::{ChunkReport, Control, Observer};
//! use warpfs::verify::{VerifyOptions, verify_file};
//! use warpfs::ErrorKind;
//!
//! /// Counts the bytes that are done, and has enough of them at some point.
//! struct Enough<'a> {
//!     done: AtomicU64,
//!     cancelled: &'a AtomicBool,
//! }
//!
//! impl Observer for Enough<'_> {
//!     fn chunk(&self, _: &Path, chunk: &ChunkReport) {
//!         if self.done.fetch_add(chunk.original_size, Ordering::Relaxed) > 50_000 {
//!             self.cancelled.store(true, Ordering::Relaxed);
//!         }
//!     }
//! }
//!
//! let cancelled = AtomicBool::new(false);
//! let observer = Enough { done: AtomicU64::new(0), cancelled: &cancelled };
//! let control = Control { observer: &observer, cancelled: &cancelled };
//! let options = VerifyOptions { threads: Some(1), ..VerifyOptions::default() };
//! let stopped = verify_file("tests/data/v2-zstd-blake3.warp", options, control).unwrap_err();
//! assert!(matches!(stopped.kind(), ErrorKind::Cancelled));
//! assert!(observer.done.into_inner() > 50_000);
//!
//! // With nobody looking on:
//! verify_file("tests/data/v2-zstd-blake3.warp", options, Control::default()).unwrap();
//! ```

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use crate::decoding::Loss;
use crate::error::Error;

/// Told how a job goes on. Every method does nothing unless it is overridden; they may be called from any thread, and a
/// job waits while they run.
pub trait Observer: Sync {
    /// A file is about to be read: `original_size` bytes of original data, if that is known.
    fn begin(&self, path: &Path, original_size: Option<u64>) {
        let _ = (path, original_size);
    }

    /// A chunk is done; chunks of one file are reported in order.
    fn chunk(&self, path: &Path, chunk: &ChunkReport) {
        let _ = (path, chunk);
    }

    /// Some bytes of a file are lost; the job goes on with the others, as it was told to. Losses of one file are reported in
    /// order.
    fn lost(&self, path: &Path, loss: &Loss) {
        let _ = (path, loss);
    }

    /// A file is done, with or without success.
    fn end(&self, path: &Path) {
        let _ = path;
    }

    /// A file of a tree failed; the job goes on with the others.
    fn failed(&self, error: &Error) {
        let _ = error;
    }

    /// Something of a tree was left out, and why.
    fn skipped(&self, path: &Path, why: &str) {
        let _ = (path, why);
    }
}

/// One chunk that was packed, unpacked or verified.
#[derive(Debug, Clone, Copy)]
pub struct ChunkReport {
    /// Its number, counted from 0.
    pub chunk: u32,
    /// Its size in the original, in bytes.
    pub original_size: u64,
    /// Its size in the `.warp` file, in bytes.
    pub packed_size: u64,
    /// How long one thread had it in hand, reading and writing included.
    pub elapsed: Duration,
}

/// Who looks on, and how to stop.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Told how the job goes on.
    pub observer: &'a dyn Observer,
    /// Once set, from a signal handler say, the job stops with [`crate::ErrorKind::Cancelled`] before its next chunk,
    /// and what it was writing is removed.
    pub cancelled: &'a AtomicBool,
}

/// Nobody looks on, and nothing stops the job.
impl Default for Control<'static> {
    fn default() -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Self {
            observer: &Unobserved,
            cancelled: &NEVER,
        }
    }
}

/// Does not look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// As many threads as asked for, else as many as the process may use cores.
pub(crate) fn thread_count(threads: Option<usize>) -> usize {
    threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// The threads that are worth starting for so many chunks.
pub(crate) fn threads_for(threads: usize, chunk_count: u64) -> usize {
    threads
        .min(usize::try_from(chunk_count).unwrap_or(usize::MAX))
        .max(1)
}

/// Whether this process was started with the signal of this number ignored, as by nohup, so that it is to stop nothing.
pub fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.unwrap_or(0) >> (signal - 1) & 1 == 1
}
