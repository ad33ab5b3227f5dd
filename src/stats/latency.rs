//! How long read requests took, in buckets that cost an addition each and tell percentiles to an eighth.
//!
//! Buckets are log-linear, as in HdrHistogram: each power of two of nanoseconds is cut into eight of equal width, so that a
//! bucket is at most an eighth of its lower bound wide, from nanoseconds to centuries, in 496 of them. Nothing is locked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a power of two is halved into buckets.
const HALVINGS: u32 = 3;
/// How many buckets that makes of a power of two.
const STEPS: usize = 1 << HALVINGS;
/// The buckets of all numbers of 64 bits.
const BUCKETS: usize = (64 - HALVINGS as usize + 1) * STEPS;

/// Where a read's answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// All of it was decoded already.
    Cached,
    /// Some of it had to be decoded, or waited for while another thread decoded it.
    Decoded,
    /// A file that is shown as it is.
    Plain,
}

/// The durations of a mount's reads.
#[derive(Debug, Default)]
pub(crate) struct LatencyCounters {
    cached: Histogram,
    decoded: Histogram,
    plain: Histogram,
}

impl LatencyCounters {
    pub(crate) fn add(&self, answered: Answered, took: Duration) {
        let histogram = match answered {
            Answered::Cached => &self.cached,
            Answered::Decoded => &self.decoded,
            Answered::Plain => &self.plain,
        };
        histogram.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn snapshot(&self) -> Latencies {
        let [cached, decoded, plain] =
            [&self.cached, &self.decoded, &self.plain].map(Histogram::snapshot);
        let all = cached.with(&decoded).with(&plain);
        Latencies {
            all,
            cached,
            decoded,
            plain,
        }
    }
}

#[derive(Debug)]
struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    fn add(&self, nanoseconds: u64) {
        if let Some(count) = self.counts.get(bucket_of(nanoseconds)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(nanoseconds, Ordering::Relaxed);
        // Looked at first, since it is seldom written.
        if self.max.load(Ordering::Relaxed) < nanoseconds {
            self.max.fetch_max(nanoseconds, Ordering::Relaxed);
        }
    }

    fn snapshot(&self) -> Latency {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let counted = counts.enumerate().filter(|&(_, count)| count > 0);
        Latency {
            buckets: counted
                .map(|(bucket, count)| (end_of(bucket), count))
                .collect(),
            sum: self.sum.load(Ordering::Relaxed),
            max: self.max.load(Ordering::Relaxed),
        }
    }
}

/// The bucket of a number: below eight each number is one; above, the power of two, and the three bits behind the first.
fn bucket_of(number: u64) -> usize {
    let power = number.max(1).ilog2();
    match power.checked_sub(HALVINGS) {
        None | Some(0) => number as usize,
        Some(shift) => (shift as usize) * STEPS + (number >> shift) as usize,
    }
}

/// The first number behind a bucket's.
fn end_of(bucket: usize) -> u64 {
    match (bucket / STEPS).checked_sub(1) {
        None => bucket as u64 + 1,
        Some(shift) => {
            let leading = (bucket % STEPS + STEPS + 1) as u128;
            u64::try_from(leading << shift).unwrap_or(u64::MAX)
        }
    }
}

/// How long reads took, from when the server had the request to when its answer was ready, by where that came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Latencies {
    /// Every read.
    pub all: Latency,
    /// Reads of what was decoded already.
    pub cached: Latency,
    /// Reads for which something had to be decoded, or waited for while another thread decoded it.
    pub decoded: Latency,
    /// Reads of files that are shown as they are, unless the kernel reads those by itself.
    pub plain: Latency,
}

impl Latencies {
    /// Those of the reads since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            all: self.all.since(&earlier.all),
            cached: self.cached.since(&earlier.cached),
            decoded: self.decoded.since(&earlier.decoded),
            plain: self.plain.since(&earlier.plain),
        }
    }
}

/// The distribution of some durations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "Written", from = "Written")]
pub struct Latency {
    /// By the nanoseconds that all in the bucket stay below, and how many there are; ascending, no bucket is empty.
    buckets: Vec<(u64, u64)>,
    /// All of them together, in nanoseconds.
    sum: u64,
    /// The longest, in nanoseconds.
    max: u64,
}

/// A [`Latency`] as it is written down: all times in nanoseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    count: u64,
    sum_ns: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p99_9_ns: u64,
    max_ns: u64,
    buckets: Vec<(u64, u64)>,
}

impl From<Latency> for Written {
    fn from(latency: Latency) -> Self {
        let percentile = |percent| latency.percentile(percent).as_nanos() as u64;
        Self {
            count: latency.count(),
            sum_ns: latency.sum,
            p50_ns: percentile(50.0),
            p90_ns: percentile(90.0),
            p99_ns: percentile(99.0),
            p99_9_ns: percentile(99.9),
            max_ns: latency.max,
            buckets: latency.buckets,
        }
    }
}

impl From<Written> for Latency {
    fn from(written: Written) -> Self {
        Self {
            buckets: written.buckets,
            sum: written.sum_ns,
            max: written.max_ns,
        }
    }
}

impl Latency {
    /// How many there are.
    pub fn count(&self) -> u64 {
        let counts = self.buckets.iter().map(|&(_, count)| count);
        counts.fold(0, u64::saturating_add)
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// What so many percent of them do not exceed, to an eighth; 0 if there are none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let wanted = (self.count() as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0_u64;
        let reached = self.buckets.iter().find(|&&(_, count)| {
            seen = seen.saturating_add(count);
            seen >= wanted
        });
        let below = reached.map_or(0, |&(end, _)| end.saturating_sub(1));
        Duration::from_nanos(below.min(self.max))
    }

    /// How many stay below a bound, in nanoseconds: exactly, if that is a power of two.
    pub(crate) fn count_below(&self, bound: u64) -> u64 {
        let below = self.buckets.iter().take_while(|&&(end, _)| end <= bound);
        below.map(|&(_, count)| count).fold(0, u64::saturating_add)
    }

    /// Those that came to be since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |end: u64| {
            let at = earlier.buckets.binary_search_by_key(&end, |&(end, _)| end);
            at.ok()
                .and_then(|at| earlier.buckets.get(at))
                .map_or(0, |&(_, count)| count)
        };
        let buckets = self.buckets.iter();
        let new = buckets.map(|&(end, count)| (end, count.saturating_sub(before(end))));
        let buckets: Vec<_> = new.filter(|&(_, count)| count > 0).collect();
        let longest = buckets.last().map_or(0, |&(end, _)| end.saturating_sub(1));
        Self {
            buckets,
            sum: self.sum.saturating_sub(earlier.sum),
            max: longest.min(self.max),
        }
    }

    fn with(&self, other: &Self) -> Self {
        let mut buckets: Vec<(u64, u64)> = Vec::with_capacity(self.buckets.len());
        let mut all: Vec<_> = self.buckets.iter().chain(&other.buckets).copied().collect();
        all.sort_unstable();
        for (end, count) in all {
            match buckets.last_mut() {
                Some((last, sum)) if *last == end => *sum += count,
                _ => buckets.push((end, count)),
            }
        }
        Self {
            buckets,
            sum: self.sum.saturating_add(other.sum),
            max: self.max.max(other.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_lies_in_its_bucket_and_that_is_an_eighth_wide(
            number in (0_u32..64).prop_flat_map(|power| 1_u64 << power..=u64::MAX >> (63 - power)),
        ) {
            let bucket = bucket_of(number);
            let start = bucket.checked_sub(1).map_or(0, end_of);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(start <= number);
            prop_assert!(number < end_of(bucket) || end_of(bucket) == u64::MAX);
            prop_assert!(end_of(bucket) - start <= (start / 8).max(1));
        }

        #[test]
        fn percentiles_are_those_of_the_sorted_numbers_to_an_eighth(
            mut numbers in prop::collection::vec(1_u64..1 << 40, 1..300),
            percent in 0.1_f64..100.0,
        ) {
            let histogram = Histogram::default();
            numbers.iter().for_each(|&number| histogram.add(number));
            numbers.sort_unstable();
            let rank = (numbers.len() as f64 * percent / 100.0).ceil() as usize;
            let exact = numbers[rank.max(1) - 1];
            let found = histogram.snapshot().percentile(percent).as_nanos() as u64;
            prop_assert!(found >= exact && found <= exact + exact / 8 + 1, "{found} {exact}");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let ends: Vec<u64> = (0..BUCKETS).map(end_of).collect();
        assert!(ends.is_sorted());
        assert_eq!(ends[..10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        for power in 3..63 {
            assert!(ends.contains(&(1 << power)), "{power}");
        }
    }

    #[test]
    fn a_difference_has_only_what_is_new() {
        let counters = LatencyCounters::default();
        counters.add(Answered::Cached, Duration::from_secs(3));
        let before = counters.snapshot();
        counters.add(Answered::Cached, Duration::from_micros(10));
        counters.add(Answered::Plain, Duration::from_micros(20));
        let new = counters.snapshot().since(&before);
        assert_eq!(new.all.count(), 2);
        assert_eq!(
            (new.cached.count(), new.decoded.count(), new.plain.count()),
            (1, 0, 1)
        );
        assert!(new.all.max() < Duration::from_micros(23));
        assert_eq!(new.all.sum(), Duration::from_micros(30));
        assert_eq!(new.all.count_below(1 << 14), 1);
    }

    #[test]
    fn nothing_measured_is_nothing_told() {
        let none = Latency::default();
        assert_eq!(none.percentile(99.0), Duration::ZERO);
        assert_eq!((none.count(), none.count_below(u64::MAX)), (0, 0));
    }
}
