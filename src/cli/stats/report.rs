//! The report of `warpfs stats`: paragraphs of aligned lines that fit into 80 columns.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use warpfs::error::OneLine;
use warpfs::stats::{CodecStats, Latencies, Latency, Stats};

use super::shown;
use super::words::{ending, humantime, part, short};
use crate::cli::size::{count, grouped, human};

/// How many of the busiest files are shown.
const FILES: usize = 10;
/// The columns of [`Report::line`].
pub(super) const LINE_HEAD: &str =
    "   reads/s       read/s  hits  decoded/s      p50      p99  errors    memory";

/// What was done since the mount began, or in a while, and how things stand.
pub(super) struct Report<'a> {
    mount_point: &'a Path,
    now: &'a Stats,
    /// As `now`, but with what was done in the while only.
    done: Stats,
    seconds: f64,
    /// Whether this is about a short while.
    lately: bool,
}

impl<'a> Report<'a> {
    /// All since the mount began.
    pub(super) fn of_all(mount_point: &'a Path, now: &'a Stats) -> Self {
        Self {
            mount_point,
            now,
            done: now.clone(),
            seconds: now.uptime as f64,
            lately: false,
        }
    }

    /// What was done since an earlier moment.
    pub(super) fn since(
        mount_point: &'a Path,
        now: &'a Stats,
        before: &Stats,
        elapsed: Duration,
    ) -> Self {
        Self {
            mount_point,
            now,
            done: difference(now, before),
            seconds: elapsed.as_secs_f64(),
            lately: true,
        }
    }

    /// The most important in one line, under [`LINE_HEAD`].
    pub(super) fn line(&self) -> String {
        let done = &self.done;
        let all = &done.latency.all;
        let time = |time| match all.count() {
            0 => "-".to_owned(),
            _ => short(time),
        };
        format!(
            "{:>10.0} {:>12} {:>5} {:>10} {:>8} {:>8} {:>7} {:>9}",
            self.per_second(done.reads),
            human(self.per_second(done.bytes_read) as u64),
            part(done.cache_hits, lookups(done)),
            human(self.per_second(done.decoded_bytes) as u64),
            time(all.percentile(50.0)),
            time(all.percentile(99.0)),
            errors(done),
            human(self.now.memory_used),
        )
    }

    fn per_second(&self, count: u64) -> f64 {
        match self.seconds > 0.0 {
            true => count as f64 / self.seconds,
            // Mounted this very second.
            false => count as f64,
        }
    }

    fn write_reads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = &self.done;
        let rate = human(self.per_second(done.bytes_read) as u64);
        writeln!(f, "READS")?;
        field(
            f,
            "answered",
            format_args!(
                "{} ({:.0}/s)",
                grouped(done.reads),
                self.per_second(done.reads)
            ),
        )?;
        field(
            f,
            "handed out",
            format_args!("{} ({rate}/s)", human(done.bytes_read)),
        )?;
        let decoded = human(done.decoded_bytes);
        match done.bytes_read {
            0 => field(f, "decoded", decoded)?,
            read => field(
                f,
                "decoded",
                format_args!(
                    "{decoded}, {:.2} bytes for each handed out",
                    done.decoded_bytes as f64 / read as f64
                ),
            )?,
        }
        self.write_errors(f)
    }

    fn write_errors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = [
            ("read", self.done.errors.read),
            ("open", self.done.errors.open),
        ];
        let kinds = requests.iter().flat_map(|(request, faults)| {
            let failed = faults.by_kind().into_iter().filter(|&(_, count)| count > 0);
            failed.map(move |(kind, count)| format!("{request}: {kind} {}", grouped(count)))
        });
        let failed: Vec<String> = kinds.collect();
        if failed.is_empty() {
            return field(f, "errors", "none");
        }
        let names = std::iter::once("errors").chain(std::iter::repeat(""));
        names
            .zip(failed)
            .try_for_each(|(name, failed)| field(f, name, failed))
    }

    fn write_cache(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = &self.done;
        writeln!(f, "\nCACHE (chunks, and pieces of others)")?;
        field(
            f,
            "hits",
            format_args!(
                "{:<7} {} of {}",
                part(done.cache_hits, lookups(done)),
                grouped(done.cache_hits),
                grouped(lookups(done))
            ),
        )?;
        field(
            f,
            "not there",
            format_args!(
                "{} decoded by the read, {} by another meanwhile",
                grouped(done.cache_misses),
                grouped(done.cache_joined)
            ),
        )?;
        field(
            f,
            "given up",
            format_args!(
                "{} for want of room, {} that the kernel has",
                grouped(done.evicted_chunks),
                grouped(done.handed_over)
            ),
        )?;
        let ahead = done
            .prefetched_chunks
            .saturating_add(done.prefetched_pieces);
        field(
            f,
            "ahead",
            format_args!(
                "{} decoded, {} then read",
                grouped(ahead),
                grouped(done.prefetch_hits)
            ),
        )?;
        field(
            f,
            "",
            format_args!(
                "{} wasted, {} refused",
                grouped(done.prefetch_wasted),
                grouped(done.prefetch_refused)
            ),
        )?;
        self.write_network(f)?;
        self.write_disk_cache(f)?;
        let now = self.now;
        writeln!(f, "\nMEMORY")?;
        field(
            f,
            "used",
            format_args!(
                "{:<10} {} of a budget of {}",
                human(now.memory_used),
                part(now.memory_used, now.memory_budget),
                human(now.memory_budget)
            ),
        )?;
        field(
            f,
            "held",
            format_args!(
                "{:<10} by reads, open files, and set aside for URLs",
                human(now.memory_held)
            ),
        )?;
        field(
            f,
            "names",
            format_args!(
                "{:<10} beside the budget, known to the kernel or being listed",
                human(now.memory_names)
            ),
        )
    }

    /// Nothing, of a mount without one.
    fn write_disk_cache(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = &self.done;
        let lookups = done.disk_cache_hits.saturating_add(done.disk_cache_misses);
        if lookups == 0 {
            return Ok(());
        }
        writeln!(f, "\nDISK CACHE")?;
        field(
            f,
            "hits",
            format_args!(
                "{:<7} {} of {}, {}",
                part(done.disk_cache_hits, lookups),
                grouped(done.disk_cache_hits),
                grouped(lookups),
                human(done.disk_cache_bytes_read)
            ),
        )?;
        field(
            f,
            "written",
            format_args!(
                "{}, {} dropped",
                human(done.disk_cache_bytes_written),
                grouped(done.disk_cache_dropped)
            ),
        )?;
        field(
            f,
            "",
            format_args!(
                "{} segments given up, {} errors",
                grouped(done.disk_cache_evictions),
                grouped(done.disk_cache_errors)
            ),
        )
    }

    /// What was asked of a store, where the mount has one.
    fn write_network(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = &self.done;
        if self.now.remote_requests == 0 {
            return Ok(());
        }
        writeln!(f, "\nNETWORK")?;
        field(
            f,
            "requests",
            format_args!(
                "{} ({:.0}/s)",
                grouped(done.remote_requests),
                self.per_second(done.remote_requests)
            ),
        )?;
        field(
            f,
            "",
            format_args!(
                "{} of them further tries, {} given up",
                grouped(done.remote_retries),
                grouped(done.remote_failures)
            ),
        )?;
        let rate = human(self.per_second(done.remote_bytes_received) as u64);
        field(
            f,
            "fetched",
            format_args!("{} ({rate}/s)", human(done.remote_bytes_received)),
        )
    }

    fn write_codecs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy = |stats: &&CodecStats| stats.chunks > 0 || stats.pieces > 0;
        let codecs: Vec<_> = self
            .done
            .codecs
            .iter()
            .filter(|(_, stats)| busy(stats))
            .collect();
        if codecs.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\nDECODED     {:>12} {:>12} {:>12} {:>14}",
            "chunks", "pieces", "bytes", "a thread"
        )?;
        for (codec, stats) in codecs {
            let speed = stats.bytes_per_second().unwrap_or(0.0);
            writeln!(
                f,
                "  {:<9} {:>12} {:>12} {:>12} {:>14}",
                OneLine(codec).to_string(),
                grouped(stats.chunks),
                grouped(stats.pieces),
                human(stats.decoded_bytes),
                format!("{}/s", human(speed as u64)),
            )?;
        }
        Ok(())
    }

    fn write_files(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = match &self.done.files {
            None => return writeln!(f, "\nBUSIEST FILES are for root and who mounted to see"),
            Some(files) if files.is_empty() => return Ok(()),
            Some(files) => files,
        };
        let since = if self.lately { ", since the mount" } else { "" };
        writeln!(
            f,
            "\nBUSIEST   {:>12} {:>12}  file{since}",
            "bytes", "reads"
        )?;
        for file in files.iter().take(FILES) {
            let open = if file.open > 0 { "open" } else { "" };
            writeln!(
                f,
                "  {open:<7} {:>12} {:>12}  {}",
                human(file.bytes_read),
                grouped(file.reads),
                ending(&OneLine(&file.file).to_string())
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = self.now;
        let up = humantime(now.uptime);
        let while_ = if self.lately { ", the last second" } else { "" };
        writeln!(
            f,
            "{}: mounted for {up}, {} open{}{while_}\n",
            shown(self.mount_point),
            count(now.open_files, "file"),
            match now.decoding {
                0 => String::new(),
                decoding => format!(", {} under way", count(decoding, "unit")),
            }
        )?;
        self.write_reads(f)?;
        write_latencies(f, &self.done.latency)?;
        self.write_cache(f)?;
        self.write_codecs(f)?;
        self.write_files(f)
    }
}

fn write_latencies(f: &mut fmt::Formatter<'_>, latencies: &Latencies) -> fmt::Result {
    if latencies.all.count() == 0 {
        return Ok(());
    }
    writeln!(
        f,
        "\nLATENCY   {:>12} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "reads", "p50", "p90", "p99", "p99.9", "max"
    )?;
    let kinds: [(&str, &Latency); 4] = [
        ("all", &latencies.all),
        ("cached", &latencies.cached),
        ("decoded", &latencies.decoded),
        ("plain", &latencies.plain),
    ];
    for (kind, latency) in kinds {
        if latency.count() > 0 {
            write!(f, "  {kind:<7} {:>12}", grouped(latency.count()))?;
            for percent in [50.0, 90.0, 99.0, 99.9] {
                write!(f, " {:>8}", short(latency.percentile(percent)))?;
            }
            writeln!(f, " {:>8}", short(latency.max()))?;
        }
    }
    Ok(())
}

/// A line of a paragraph.
fn field(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "  {name:<12}{value}")
}

/// What was done between two moments. Gauges and files are those of the later one.
fn difference(now: &Stats, before: &Stats) -> Stats {
    let mut done = now.clone();
    for (field, before) in [
        (&mut done.reads, before.reads),
        (&mut done.bytes_read, before.bytes_read),
        (&mut done.cache_hits, before.cache_hits),
        (&mut done.cache_misses, before.cache_misses),
        (&mut done.cache_joined, before.cache_joined),
        (&mut done.evicted_chunks, before.evicted_chunks),
        (&mut done.handed_over, before.handed_over),
        (&mut done.decoded_chunks, before.decoded_chunks),
        (&mut done.decoded_pieces, before.decoded_pieces),
        (&mut done.decoded_bytes, before.decoded_bytes),
        (&mut done.compressed_bytes, before.compressed_bytes),
        (&mut done.prefetched_chunks, before.prefetched_chunks),
        (&mut done.prefetched_pieces, before.prefetched_pieces),
        (&mut done.prefetch_hits, before.prefetch_hits),
        (&mut done.prefetch_wasted, before.prefetch_wasted),
        (&mut done.prefetch_refused, before.prefetch_refused),
        (&mut done.remote_requests, before.remote_requests),
        (
            &mut done.remote_bytes_received,
            before.remote_bytes_received,
        ),
        (&mut done.remote_retries, before.remote_retries),
        (&mut done.remote_failures, before.remote_failures),
        (&mut done.disk_cache_hits, before.disk_cache_hits),
        (&mut done.disk_cache_misses, before.disk_cache_misses),
        (
            &mut done.disk_cache_bytes_read,
            before.disk_cache_bytes_read,
        ),
        (
            &mut done.disk_cache_bytes_written,
            before.disk_cache_bytes_written,
        ),
        (&mut done.disk_cache_dropped, before.disk_cache_dropped),
        (&mut done.disk_cache_evictions, before.disk_cache_evictions),
        (&mut done.disk_cache_errors, before.disk_cache_errors),
    ] {
        *field = field.saturating_sub(before);
    }
    done.errors.read = now.errors.read.since(&before.errors.read);
    done.errors.open = now.errors.open.since(&before.errors.open);
    done.latency = now.latency.since(&before.latency);
    for (codec, stats) in &mut done.codecs {
        if let Some(before) = before.codecs.get(codec) {
            *stats = stats.since(before);
        }
    }
    done
}

/// How many chunks and pieces were asked for.
fn lookups(stats: &Stats) -> u64 {
    let missed = stats.cache_misses.saturating_add(stats.cache_joined);
    stats.cache_hits.saturating_add(missed)
}

fn errors(stats: &Stats) -> u64 {
    let open = stats.errors.open.total();
    stats.errors.read.total().saturating_add(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_fits_into_80_columns_whatever_the_numbers() {
        let large: u64 = 987_654_321_012;
        let many = large / 1000;
        let some = many / 1000;
        let faults = serde_json::json!({
            "damage": some, "changed": some, "memory": some, "descriptors": some, "system": some,
            "other": some,
        });
        let mut stats: Stats = serde_json::from_value(serde_json::json!({
            "reads": large, "bytes_read": large, "decoded_bytes": large, "cache_hits": large,
            "memory_used": large, "memory_held": large, "memory_names": large, "memory_budget": large,
            "uptime": 86400, "open_files": 99_999, "decoding": 999,
            "errors": {"read": faults, "open": faults},
            "codecs": {"zstd": {"chunks": many, "pieces": many, "decoded_bytes": large, "decode_ns": large}},
            "latency": {"all": {"sum_ns": large, "max_ns": 99_000, "buckets": [[100_000, many]]}},
            "files": [{"file": "/a/very/long/name".repeat(20), "reads": 9, "bytes_read": large}],
        }))
        .unwrap();
        for count in [
            &mut stats.cache_misses,
            &mut stats.cache_joined,
            &mut stats.evicted_chunks,
            &mut stats.handed_over,
            &mut stats.prefetched_chunks,
            &mut stats.prefetched_pieces,
            &mut stats.prefetch_hits,
            &mut stats.prefetch_wasted,
            &mut stats.prefetch_refused,
            &mut stats.remote_requests,
            &mut stats.remote_bytes_received,
            &mut stats.remote_retries,
            &mut stats.remote_failures,
            &mut stats.disk_cache_hits,
            &mut stats.disk_cache_misses,
            &mut stats.disk_cache_bytes_read,
            &mut stats.disk_cache_bytes_written,
            &mut stats.disk_cache_dropped,
            &mut stats.disk_cache_evictions,
            &mut stats.disk_cache_errors,
        ] {
            *count = many;
        }
        let report = Report::of_all(Path::new("/mnt"), &stats);
        for line in report
            .to_string()
            .lines()
            .chain([LINE_HEAD])
            .chain([report.line().as_str()])
        {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let text = report.to_string();
        for words in [
            "99.0 us",
            "zstd",
            "READS",
            "LATENCY",
            "BUSIEST",
            "NETWORK",
            "DISK CACHE",
            "open: other 987,654",
        ] {
            assert!(text.contains(words), "{words} in\n{text}");
        }
        assert!(report.line().len() >= LINE_HEAD.len());
    }

    #[test]
    fn a_while_has_only_what_was_done_in_it() {
        let parse = |value| serde_json::from_value::<Stats>(value).unwrap();
        let before = parse(serde_json::json!({"reads": 10, "memory_used": 5, "files": []}));
        let now = parse(
            serde_json::json!({"reads": 30, "memory_used": 7, "errors": {"read": {"damage": 2}}}),
        );
        let done = difference(&now, &before);
        assert_eq!(
            (done.reads, done.memory_used, done.errors.read.damage),
            (20, 7, 2)
        );
        let report = Report::since(Path::new("/mnt"), &now, &before, Duration::from_secs(2));
        assert!(
            report.line().trim_start().starts_with("10 "),
            "{}",
            report.line()
        );
        assert!(report.to_string().contains("read: damage 2"));
        assert!(report.to_string().contains("for root"));
    }
}
