//! What a running mount has done, in counters that cost an addition or two each.
//!
//! Counters only ever grow, but for the gauges taken at the moment of asking; none of them is a condition of anything. How
//! long reads took is in `latency`, what each codec decoded in `codecs`, which files were read most in `busiest`.
//!
//! A [`Stats`] is what `warpfs stats --json` prints, field by field: names stay, new ones may come.

mod busiest;
mod codecs;
mod faults;
mod latency;

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

pub use busiest::FileActivity;
#[cfg(feature = "fuse")]
pub(crate) use busiest::{Activity, Busiest};
pub use codecs::{CodecStats, CodecsStats};
pub(crate) use codecs::{CodecsCounters, Decoding};
pub(crate) use faults::ErrorCounters;
pub use faults::{ErrorStats, FaultStats};
#[cfg(feature = "fuse")]
pub(crate) use latency::Answered;
pub(crate) use latency::LatencyCounters;
pub use latency::{Latencies, Latency};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of one mount.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
            pub(crate) latency: LatencyCounters,
            pub(crate) codecs: CodecsCounters,
            pub(crate) errors: ErrorCounters,
        }

        /// The counters and gauges of one mount at one moment.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        // A mount may have been made by another version of the program.
        #[serde(default)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: u64,)+
            /// Reads that failed because data is damaged or cut short.
            pub damage_errors: u64,
            /// Reads that failed because the source changed under an open file.
            pub changed_errors: u64,
            /// Reads that failed for any other reason.
            pub other_errors: u64,
            /// Bytes of the memory budget in use now.
            pub memory_used: u64,
            /// The part of it that nobody could be made to give up now, in bytes: what is being decoded or handed out, and the
            /// tables of open files.
            pub memory_held: u64,
            /// The memory budget, in bytes.
            pub memory_budget: u64,
            /// Bytes that the names, inodes and headers take that the kernel knows, and the listings of open directories;
            /// they are outside the budget, and the kernel decides how many of the former it keeps.
            pub memory_names: u64,
            /// Files open now.
            pub open_files: u64,
            /// Chunks and pieces under way into the cache now, where other reads find them: being decoded, or waiting for memory or
            /// a network. What is decoded straight into an answer, and pieces decoded ahead in order, are not among them.
            pub decoding: u64,
            /// Seconds since the mount began.
            pub uptime: u64,
            /// How long read requests took until their answer was ready.
            pub latency: Latencies,
            /// What each codec has decoded.
            pub codecs: CodecsStats,
            /// What failed, by its kind.
            pub errors: ErrorStats,
            /// The files that most bytes were read of, the busiest first; `None` if the asker may not know their names.
            pub files: Option<Vec<FileActivity>>,
        }

        impl Counters {
            /// The counters as they stand; the gauges are left at 0.
            pub(crate) fn snapshot(&self) -> Stats {
                let errors = self.errors.snapshot();
                Stats {
                    $($name: self.$name.get(),)+
                    damage_errors: errors.read.damage,
                    changed_errors: errors.read.changed,
                    other_errors: errors.read.total() - errors.read.damage - errors.read.changed,
                    latency: self.latency.snapshot(),
                    codecs: self.codecs.snapshot(),
                    errors,
                    ..Stats::default()
                }
            }
        }
    };
}

counters! {
    /// Read requests answered with data.
    reads,
    /// Bytes of original data handed out.
    bytes_read,
    /// Chunks, or pieces of them, that a read found decoded.
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
    /// Pieces of chunks decoded, for whatever reason.
    decoded_pieces,
    /// Bytes of original data that were decoded.
    decoded_bytes,
    /// Bytes of compressed data read for chunks decoded whole.
    compressed_bytes,
    /// Chunks decoded whole ahead of a reader.
    prefetched_chunks,
    /// Pieces of chunks decoded ahead of a reader.
    prefetched_pieces,
    /// Chunks and pieces decoded ahead and then read.
    prefetch_hits,
    /// Chunks and pieces decoded ahead and given up before anybody read them.
    prefetch_wasted,
    /// Chunks and pieces that were not decoded ahead because memory was short.
    prefetch_refused,
    /// Requests made to a store or a web server, further tries included.
    remote_requests,
    /// Bytes of objects and of answers that a store has sent.
    remote_bytes_received,
    /// Bytes of objects sent to a store.
    remote_bytes_sent,
    /// Requests that were made again because one before them failed.
    remote_retries,
    /// What was given up after all tries.
    remote_failures,
    /// Extents of objects that the disk cache had.
    disk_cache_hits,
    /// Extents of objects that the disk cache did not have.
    disk_cache_misses,
    /// Bytes of the extents that the disk cache had.
    disk_cache_bytes_read,
    /// Bytes of the extents that were written to the disk cache.
    disk_cache_bytes_written,
    /// Extents that were not written to the disk cache: the disk was slower than what came, or has refused something.
    disk_cache_dropped,
    /// Segments of the disk cache, each with many extents, that were given up to make room.
    disk_cache_evictions,
    /// Extents found damaged in the disk cache, and what its disk has refused.
    disk_cache_errors,
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

#[cfg(all(test, feature = "fuse"))]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_version_is_understood_as_far_as_it_goes() {
        let stats: Stats = serde_json::from_str(r#"{"reads": 7, "from_the_future": [1]}"#).unwrap();
        assert_eq!((stats.reads, stats.uptime), (7, 0));
    }

    #[test]
    fn what_is_written_down_reads_the_same() {
        let counters = Counters::default();
        counters
            .latency
            .add(Answered::Decoded, std::time::Duration::from_micros(17));
        counters.reads.add(3);
        let stats = counters.snapshot();
        let text = serde_json::to_string(&stats).unwrap();
        assert_eq!(serde_json::from_str::<Stats>(&text).unwrap(), stats);
    }
}
