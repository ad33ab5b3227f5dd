//! What a running mount has done, in counters that cost an addition each.
//!
//! Counters only ever grow, but for the gauges taken at the moment of asking; none of them is a condition of anything.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of one mount.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter,)+ }

        /// The counters and gauges of one mount at one moment.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: u64,)+
            /// Bytes of the memory budget in use now.
            pub memory_used: u64,
            /// The part of it that nobody could be made to give up now, in bytes: what is being decoded or handed out, and the
            /// tables of open files.
            pub memory_held: u64,
            /// The memory budget, in bytes.
            pub memory_budget: u64,
            /// Bytes that the names, inodes and headers take that the kernel knows; they are outside the budget, and
            /// the kernel decides how many it keeps.
            pub memory_names: u64,
            /// Files open now.
            pub open_files: u64,
            /// Chunks and pieces being decoded now.
            pub decoding: u64,
            /// Seconds since the mount began.
            pub uptime: u64,
        }

        impl Counters {
            /// The counters as they stand; the gauges are left at 0.
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.get(),)+ ..Stats::default() }
            }
        }
    };
}

counters! {
    /// Read requests answered with data.
    reads,
    /// Bytes of original data handed out.
    bytes_read,
    /// Chunks, or pieces of large ones, that a read found decoded.
    cache_hits,
    /// Chunks or pieces a read had to decode itself.
    cache_misses,
    /// Chunks or pieces a read waited for while another thread decoded them.
    cache_joined,
    /// Chunks and pieces given up to make room.
    evicted_chunks,
    /// Chunks and pieces given up because the kernel's page cache has all of their bytes.
    handed_over,
    /// Chunks decoded whole, for whatever reason.
    decoded_chunks,
    /// Pieces of large chunks decoded, for whatever reason.
    decoded_pieces,
    /// Bytes of original data that were decoded.
    decoded_bytes,
    /// Bytes of compressed data read for chunks decoded whole.
    compressed_bytes,
    /// Chunks decoded whole ahead of a reader.
    prefetched_chunks,
    /// Pieces of large chunks decoded ahead of a reader.
    prefetched_pieces,
    /// Chunks and pieces decoded ahead and then read.
    prefetch_hits,
    /// Chunks and pieces decoded ahead and given up before anybody read them.
    prefetch_wasted,
    /// Chunks and pieces that were not decoded ahead because memory was short.
    prefetch_refused,
    /// Reads that failed because data is damaged or cut short.
    damage_errors,
    /// Reads that failed because the source changed under an open file.
    changed_errors,
    /// Reads that failed for any other reason.
    other_errors,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
