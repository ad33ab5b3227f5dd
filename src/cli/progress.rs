//! Progress on a terminal's standard error: rate, ratio, time left; and a line per chunk if asked for.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use warpfs::Error;
use warpfs::job::{ChunkReport, Loss, Observer};
use warpfs::pack::Summary;
use warpfs::recursive::TreeSummary;

use super::size::{count, human, percent};
use super::{Volume, say};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(200);

/// Shows how a job goes on.
pub(super) struct Progress {
    volume: Volume,
    bar: ProgressBar,
    started: Instant,
    original: AtomicU64,
    packed: AtomicU64,
}

impl Progress {
    /// Progress of one file, or of a tree, of which nobody knows how much there is left.
    pub(super) fn new(volume: Volume, tree: bool) -> Self {
        let target = match volume.quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        let bar = ProgressBar::with_draw_target(if tree { None } else { Some(0) }, target);
        let template = match tree {
            true => "{spinner} {binary_bytes} at {binary_bytes_per_sec}, {msg}",
            // A line that is too long for the terminal would leave its end behind each time it is drawn.
            false => {
                "[{wide_bar}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {msg}, {eta} left"
            }
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            volume,
            bar,
            started: Instant::now(),
            original: AtomicU64::new(0),
            packed: AtomicU64::new(0),
        }
    }

    /// Says what became of one file.
    pub(super) fn summarize(&self, path: &Path, verb: &str, summary: &Summary) {
        self.bar.finish_and_clear();
        if self.volume.quiet {
            return;
        }
        if summary.lost > 0 {
            let lost = human(summary.lost);
            return say(format_args!(
                "{}: {verb} but for {lost} that are lost",
                path.display()
            ));
        }
        let seconds = self.started.elapsed().as_secs_f64();
        say(format_args!(
            "{}: {verb}, {} original, {} packed ({}), {} in {} chunks, {seconds:.1} s, {}/s",
            path.display(),
            human(summary.original_size),
            human(summary.packed_size),
            percent(summary.packed_size, summary.original_size),
            summary.encodings,
            summary.chunks,
            human(rate(summary.original_size, seconds)),
        ));
    }

    /// Says what became of a tree.
    pub(super) fn summarize_tree(&self, path: &Path, verb: &str, summary: &TreeSummary) {
        self.bar.finish_and_clear();
        if self.volume.quiet {
            return;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        say(format_args!(
            "{}: {} {verb}, {seconds:.1} s, {}/s",
            path.display(),
            count(summary.files, "file"),
            human(rate(summary.original_size + summary.copied_size, seconds)),
        ));
        let (original, packed) = (summary.original_size, summary.packed_size);
        let line = |what: &str, count: u64, detail: String| {
            if count > 0 {
                say(format!("  {what:<12} {count:>9}  {detail}").trim_end());
            }
        };
        line(
            verb,
            summary.files,
            format!(
                "{} original, {} packed ({})",
                human(original),
                human(packed),
                percent(packed, original)
            ),
        );
        line("copied", summary.copied, human(summary.copied_size));
        line("up to date", summary.up_to_date, String::new());
        line(
            "left",
            summary.left,
            format!("{} as they are", human(summary.left_size)),
        );
        line("links made", summary.links, String::new());
        line(
            "left out",
            summary.special,
            "devices, pipes and sockets".to_owned(),
        );
        line("failed", summary.failed, "told of above".to_owned());
    }

    /// A line among the progress.
    pub(super) fn line(&self, line: &str) {
        self.bar.suspend(|| say(line));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn begin(&self, _: &Path, original_size: Option<u64>) {
        // Not before: a bar of nothing looks like one that is full. It takes a thread.
        if !self.bar.is_hidden() && self.bar.message().is_empty() {
            self.bar.set_message("packed -");
            self.bar.enable_steady_tick(TICK);
        }
        if self.bar.length().is_some() {
            match original_size {
                Some(size) => self.bar.inc_length(size),
                None => self.bar.unset_length(),
            }
        }
    }

    fn chunk(&self, path: &Path, chunk: &ChunkReport) {
        let original = self
            .original
            .fetch_add(chunk.original_size, Ordering::Relaxed)
            + chunk.original_size;
        let packed =
            self.packed.fetch_add(chunk.packed_size, Ordering::Relaxed) + chunk.packed_size;
        self.bar.inc(chunk.original_size);
        if !self.bar.is_hidden() {
            self.bar
                .set_message(format!("packed {}", percent(packed, original)));
        }
        if self.volume.verbose {
            let seconds = chunk.elapsed.as_secs_f64();
            let rate = chunk.original_size as f64 / 1e6 / seconds.max(1e-9);
            self.line(&format!(
                "{}: chunk {}: {} original, {} packed, {:.1} ms, {rate:.0} MB/s",
                path.display(),
                chunk.chunk,
                chunk.original_size,
                chunk.packed_size,
                seconds * 1e3,
            ));
        }
    }

    fn lost(&self, path: &Path, loss: &Loss) {
        let Loss { bytes, why, kept } = loss;
        let why = why.clone().in_file(path);
        self.line(&format!(
            "warpfs: {why}; bytes {}..{} {}",
            bytes.start,
            bytes.end,
            if *kept {
                "cannot be checked"
            } else {
                "are lost"
            },
        ));
        if super::is_of_beginning(&why) {
            self.line(&format!(
                "warpfs: {}: if chunks are lost, header or table may be wrong: {}",
                path.display(),
                super::WITHOUT_THEM
            ));
        }
    }

    fn failed(&self, error: &Error) {
        self.bar.suspend(|| super::report(error));
    }

    fn skipped(&self, path: &Path, why: &str) {
        if !self.volume.quiet {
            self.line(&format!("warpfs: {}: {why}", path.display()));
        }
    }
}

fn rate(bytes: u64, seconds: f64) -> u64 {
    (bytes as f64 / seconds.max(1e-3)) as u64
}
