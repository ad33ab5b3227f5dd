//! A mount's statistics in the text format that Prometheus collects (OpenMetrics 1.0).
//!
//! Units are seconds and bytes. There are no names of files: who collects metrics shows them to others.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::error::{Error, Result};
use crate::stats::{Latency, Stats};

/// The format's name in HTTP.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The histogram's bounds, as powers of two of nanoseconds, which are also bounds of what is counted: from a microsecond to
/// 17 seconds.
const BOUNDS: std::ops::RangeInclusive<u32> = 10..=34;

/// The statistics in the format's words.
///
/// # Errors
/// They cannot be written down.
pub(super) fn expose(stats: Stats) -> Result<String> {
    let mut registry = Registry::with_prefix("warpfs");
    registry.register_collector(Box::new(Exposition(stats)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .map_err(|error| Error::unusable(format!("cannot write down the metrics: {error}")))?;
    Ok(text)
}

#[derive(Debug)]
struct Exposition(Stats);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.0;
        let to = &mut encoder;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        to.encode_descriptor("build", "The program", None, MetricType::Info)?
            .encode_info(&version)?;
        gauge(
            to,
            "uptime",
            "Since the mount began",
            Some(Unit::Seconds),
            stats.uptime,
        )?;

        counter(
            to,
            "reads",
            "Read requests answered with data",
            None,
            stats.reads,
        )?;
        let help = "Original data handed out";
        counter(to, "read", help, Some(Unit::Bytes), stats.bytes_read)?;
        self.encode_latencies(to)?;

        let help = "Chunks and pieces that reads needed: found decoded, decoded by the read, or waited for while another \
                    thread decoded them";
        let lookups = [
            ("hit", stats.cache_hits),
            ("miss", stats.cache_misses),
            ("joined", stats.cache_joined),
        ];
        counters(
            to,
            "cache_lookups",
            help,
            None,
            lookups.map(|(result, n)| ([("result", result)], n)),
        )?;
        let help = "Chunks and pieces given up to make room";
        counter(to, "cache_evictions", help, None, stats.evicted_chunks)?;
        let help = "Chunks and pieces given up because the kernel has all of their bytes";
        counter(to, "cache_handed_over", help, None, stats.handed_over)?;

        let help = "Chunks and pieces decoded ahead of a reader: decoded, then read, given up unread, or not decoded because \
                    memory was short";
        let outcomes = [
            ("decoded", stats.prefetched_chunks + stats.prefetched_pieces),
            ("read", stats.prefetch_hits),
            ("wasted", stats.prefetch_wasted),
            ("refused", stats.prefetch_refused),
        ];
        counters(
            to,
            "prefetch",
            help,
            None,
            outcomes.map(|(outcome, n)| ([("outcome", outcome)], n)),
        )?;

        self.encode_disk_cache(to)?;
        self.encode_codecs(to)?;
        let help = "Compressed data read for chunks decoded whole";
        counter(
            to,
            "compressed",
            help,
            Some(Unit::Bytes),
            stats.compressed_bytes,
        )?;

        let help = "Requests made to a store or a web server, further tries included";
        counter(to, "remote_requests", help, None, stats.remote_requests)?;
        let help = "Requests made again because one before them failed";
        counter(to, "remote_retries", help, None, stats.remote_retries)?;
        let help = "What was given up after all tries";
        counter(to, "remote_failures", help, None, stats.remote_failures)?;
        let help = "What a store or a web server has sent";
        counter(
            to,
            "remote_received",
            help,
            Some(Unit::Bytes),
            stats.remote_bytes_received,
        )?;

        let requests = [("read", &stats.errors.read), ("open", &stats.errors.open)];
        let errors = requests.into_iter().flat_map(|(request, faults)| {
            let kinds = faults.by_kind().into_iter();
            kinds.map(move |(kind, count)| ([("request", request), ("kind", kind)], count))
        });
        counters(to, "errors", "Requests that failed", None, errors)?;

        let bytes = || Some(Unit::Bytes);
        gauge(
            to,
            "memory_used",
            "The part of the memory budget in use",
            bytes(),
            stats.memory_used,
        )?;
        let help = "The part of the memory in use that nobody could be made to give up";
        gauge(to, "memory_held", help, bytes(), stats.memory_held)?;
        gauge(
            to,
            "memory_budget",
            "The memory budget",
            bytes(),
            stats.memory_budget,
        )?;
        let help = "Memory beside the budget, for the names that the kernel knows or has listed";
        gauge(to, "memory_names", help, bytes(), stats.memory_names)?;
        gauge(to, "open_files", "Files open now", None, stats.open_files)?;
        let help = "Chunks and pieces under way into the cache now, being decoded or waiting for memory or a network";
        gauge(to, "decoding", help, None, stats.decoding)
    }
}

impl Exposition {
    fn encode_latencies(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let latency = &self.0.latency;
        let help = "How long reads took until their answer was ready: of what was decoded already, of what had to be decoded \
                    first, and of files shown as they are";
        let unit = Some(&Unit::Seconds);
        let mut family =
            to.encode_descriptor("read_duration", help, unit, MetricType::Histogram)?;
        for (answered, latency) in [
            ("cached", &latency.cached),
            ("decoded", &latency.decoded),
            ("plain", &latency.plain),
        ] {
            encode_histogram(family.encode_family(&[("answered", answered)])?, latency)?;
        }
        Ok(())
    }

    fn encode_disk_cache(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.0;
        let help = "Extents of remote files that were looked for in the disk cache";
        let lookups = [
            ("hit", stats.disk_cache_hits),
            ("miss", stats.disk_cache_misses),
        ];
        let lookups = lookups.map(|(result, n)| ([("result", result)], n));
        counters(to, "disk_cache_lookups", help, None, lookups)?;
        let help = "Compressed data read from the disk cache and written to it";
        let bytes = [
            ("read", stats.disk_cache_bytes_read),
            ("written", stats.disk_cache_bytes_written),
        ];
        let bytes = bytes.map(|(direction, n)| ([("direction", direction)], n));
        counters(to, "disk_cache", help, Some(Unit::Bytes), bytes)?;
        let help = "Extents not written to the disk cache, because the disk was too slow or has refused something";
        counter(
            to,
            "disk_cache_dropped",
            help,
            None,
            stats.disk_cache_dropped,
        )?;
        let help = "Segments of the disk cache given up to make room";
        counter(
            to,
            "disk_cache_evictions",
            help,
            None,
            stats.disk_cache_evictions,
        )?;
        let help = "Extents found damaged in the disk cache, and what its disk has refused";
        counter(to, "disk_cache_errors", help, None, stats.disk_cache_errors)
    }

    fn encode_codecs(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let codecs = &self.0.codecs;
        let help = "What was decoded in one go, for whatever reason: chunks, and pieces of others";
        let units = codecs.iter().flat_map(|(codec, stats)| {
            let of = |unit| [("codec", codec.as_str()), ("unit", unit)];
            [(of("chunk"), stats.chunks), (of("piece"), stats.pieces)]
        });
        counters(to, "decoded_units", help, None, units)?;
        let bytes = codecs
            .iter()
            .map(|(codec, stats)| ([("codec", codec.as_str())], stats.decoded_bytes));
        counters(
            to,
            "decoded",
            "Original data that was decoded",
            Some(Unit::Bytes),
            bytes,
        )?;
        let help =
            "How long decoding took on the threads that did it, with reading the compressed data";
        let seconds = codecs
            .iter()
            .map(|(codec, stats)| ([("codec", codec.as_str())], stats.decode_ns as f64 / 1e9));
        counters(to, "decode", help, Some(Unit::Seconds), seconds)
    }
}

fn encode_histogram(mut encoder: MetricEncoder<'_>, latency: &Latency) -> fmt::Result {
    let mut below = 0;
    let mut buckets: Vec<(f64, u64)> = BOUNDS
        .map(|power| {
            let bound = 1_u64 << power;
            let count = latency.count_below(bound);
            let bucket = (bound as f64 / 1e9, count - below);
            below = count;
            bucket
        })
        .collect();
    buckets.push((f64::INFINITY, latency.count() - below));
    encoder.encode_histogram::<NoLabelSet>(
        latency.sum().as_secs_f64(),
        latency.count(),
        &buckets,
        None,
    )
}

fn counter(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: u64,
) -> fmt::Result {
    let encoder = to.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
    ConstCounter::new(value).encode(encoder)
}

/// Counters of one name that labels tell apart.
fn counters<'a, Value, const LABELS: usize>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    values: impl IntoIterator<Item = ([(&'a str, &'a str); LABELS], Value)>,
) -> fmt::Result
where
    ConstCounter<Value>: EncodeMetric,
{
    let mut family = to.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
    for (labels, value) in values {
        let counter = ConstCounter::new(value);
        counter.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: u64,
) -> fmt::Result {
    let encoder = to.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Answered, Counters};
    use std::time::Duration;

    #[test]
    fn a_histogram_s_buckets_add_up_and_every_family_is_described() {
        let counters = Counters::default();
        for took in [500, 5_000, 5_000_000, 60_000_000_000] {
            counters
                .latency
                .add(Answered::Cached, Duration::from_nanos(took));
        }
        let text = expose(counters.snapshot()).unwrap();
        for line in [
            "# TYPE warpfs_read_duration_seconds histogram",
            "# UNIT warpfs_read_duration_seconds seconds",
            "warpfs_read_duration_seconds_count{answered=\"cached\"} 4",
            "warpfs_read_duration_seconds_bucket{le=\"0.000001024\",answered=\"cached\"} 1",
            "warpfs_read_duration_seconds_bucket{le=\"+Inf\",answered=\"cached\"} 4",
            "warpfs_read_bytes_total 0",
            "warpfs_errors_total{request=\"read\",kind=\"damage\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
            let mut families = family.filter_map(|line| line.split(' ').next());
            assert!(families.any(|family| name.starts_with(family)), "{line}");
        }
    }
}
