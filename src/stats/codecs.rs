//! What each codec has decoded, and how long that took.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Counter;
use crate::format::Encoding;

/// What was decoded in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoding {
    Chunk,
    Pieces(u64),
}

/// The counters of all codecs, in the order of [`Encoding::ALL`].
#[derive(Debug, Default)]
pub(crate) struct CodecsCounters([CodecCounters; Encoding::ALL.len()]);

#[derive(Debug, Default)]
struct CodecCounters {
    chunks: Counter,
    pieces: Counter,
    bytes: Counter,
    nanoseconds: Counter,
}

impl CodecsCounters {
    /// Counts what was decoded to so many bytes.
    pub(crate) fn add(&self, encoding: Encoding, what: Decoding, bytes: u64, took: Duration) {
        let mut all = Encoding::ALL.iter().zip(&self.0);
        if let Some((_, counters)) = all.find(|(known, _)| **known == encoding) {
            match what {
                Decoding::Chunk => counters.chunks.add(1),
                Decoding::Pieces(count) => counters.pieces.add(count),
            }
            counters.bytes.add(bytes);
            counters
                .nanoseconds
                .add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    pub(super) fn snapshot(&self) -> CodecsStats {
        let all = Encoding::ALL.iter().zip(&self.0);
        all.map(|(encoding, counters)| {
            let stats = CodecStats {
                chunks: counters.chunks.get(),
                pieces: counters.pieces.get(),
                decoded_bytes: counters.bytes.get(),
                decode_ns: counters.nanoseconds.get(),
            };
            (encoding.name().to_owned(), stats)
        })
        .collect()
    }
}

/// By the codecs' names.
pub type CodecsStats = BTreeMap<String, CodecStats>;

/// What one codec has decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CodecStats {
    /// Chunks decoded whole.
    pub chunks: u64,
    /// Pieces of chunks.
    pub pieces: u64,
    /// What both decoded to, in bytes.
    pub decoded_bytes: u64,
    /// How long that took on the threads that did it, in nanoseconds, with reading the compressed bytes.
    pub decode_ns: u64,
}

impl CodecStats {
    /// What was decoded since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            chunks: self.chunks.saturating_sub(earlier.chunks),
            pieces: self.pieces.saturating_sub(earlier.pieces),
            decoded_bytes: self.decoded_bytes.saturating_sub(earlier.decoded_bytes),
            decode_ns: self.decode_ns.saturating_sub(earlier.decode_ns),
        }
    }

    /// How fast one thread decodes, in bytes a second; `None` if nothing was decoded.
    pub fn bytes_per_second(&self) -> Option<f64> {
        let seconds = self.decode_ns as f64 / 1e9;
        (seconds > 0.0).then(|| self.decoded_bytes as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_codec_has_its_own_counters() {
        let counters = CodecsCounters::default();
        counters.add(
            Encoding::Zstd,
            Decoding::Pieces(1),
            500,
            Duration::from_millis(1),
        );
        counters.add(
            Encoding::Zstd,
            Decoding::Chunk,
            500,
            Duration::from_millis(1),
        );
        let stats = counters.snapshot();
        assert_eq!(stats.len(), Encoding::ALL.len());
        assert_eq!(stats["zstd"].bytes_per_second(), Some(500_000.0));
        assert_eq!((stats["zstd"].chunks, stats["zstd"].pieces), (1, 1));
        assert_eq!(stats["lz4"], CodecStats::default());
        assert_eq!(stats["lz4"].bytes_per_second(), None);
    }
}
