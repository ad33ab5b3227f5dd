//! `warpfs stats`: what a running mount has done, once or every second.
//!
//! On a terminal `--watch` shows the report of the last second in place; elsewhere it prints a line a second, for a log or
//! another program. It ends with the mount or by a signal, and neither is a failure.

mod report;
mod words;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::thread::{NanosleepRelativeResult, nanosleep};
use rustix::time::Timespec;
use unicode_width::UnicodeWidthChar;
use warpfs::error::OneLine;
use warpfs::fuse;
use warpfs::stats::Stats as Counted;
use warpfs::{Error, ErrorKind};

use self::report::Report;
use super::{Outcome, cannot_print, stop_on_signals};

/// How often a watched mount is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the end of a mount may take.
const SETTLING: Duration = Duration::from_millis(200);
/// Goes to the terminal's first line; what is there is written over, so that nothing flickers.
const HOME: &str = "\x1b[H";
/// Clears the rest of a line, and what is below the last.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Clears the whole screen.
const CLEAR: &str = "\x1b[2J";

/// Show what a running mount has done: reads, hits, bytes decoded, latencies, memory, errors, the busiest files
///
/// The busiest files are shown to root and to who mounted. Times are those the server took, without the kernel's part; what
/// the kernel has in its page cache, and plain files that it reads by itself, are not asked of the server and not counted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  warpfs stats /mnt/data            since it was mounted
  warpfs stats --watch /mnt/data    each second anew, until Ctrl-C or unmounted
  warpfs stats --json /mnt/data     for programs; with --watch an object a line")]
pub(super) struct Stats {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Ask every second, and show what was done in it: in place on a terminal, else a line each
    #[arg(long)]
    watch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub(super) fn run(self) -> warpfs::Result<Outcome> {
        let counted = fuse::stats(&self.mountpoint)?;
        match (self.watch, self.json) {
            (false, true) => print(format_args!("{:#}\n", as_json(&counted)?))?,
            (false, false) => print(Report::of_all(&self.mountpoint, &counted))?,
            (true, json) => self.watch(counted, json)?,
        }
        Ok(Outcome::Done)
    }

    fn watch(&self, first: Counted, json: bool) -> warpfs::Result<()> {
        let stopped = stop_on_signals()?;
        let in_place = io::stdout().is_terminal() && !json;
        match (json, in_place) {
            (true, _) => print(format_args!("{}\n", as_json(&first)?))?,
            (false, true) => {
                print(CLEAR)?;
                draw(&Report::of_all(&self.mountpoint, &first))?;
            }
            (false, false) => print(format_args!("{}\n", report::LINE_HEAD))?,
        }
        let (mut before, mut asked) = (first, Instant::now());
        let mut next = asked + INTERVAL;
        while wait_until(next, &stopped) {
            let now = match fuse::stats(&self.mountpoint) {
                Ok(now) => now,
                Err(error) => match self.has_ended(&error) {
                    true => break,
                    false => return Err(error),
                },
            };
            let elapsed = asked.elapsed();
            asked = Instant::now();
            next = asked.max(next + INTERVAL);
            let report = Report::since(&self.mountpoint, &now, &before, elapsed);
            match (json, in_place) {
                (true, _) => print(format_args!("{}\n", as_json(&now)?))?,
                (false, true) => draw(&report)?,
                (false, false) => print(format_args!("{}\n", report.line()))?,
            }
            before = now;
        }
        match in_place {
            true => print("\n"),
            false => Ok(()),
        }
    }

    /// Whether the mount could not be asked because it has ended.
    fn has_ended(&self, error: &Error) -> bool {
        is_unmounted(error) || {
            // What is asked while it ends is broken off. A mount that stays so has lost its server, which is no end.
            std::thread::sleep(SETTLING);
            fuse::stats(&self.mountpoint).is_err_and(|error| is_unmounted(&error))
        }
    }
}

/// Whether nothing is mounted any more where something was.
fn is_unmounted(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Unusable(_) => true,
        // Who unmounts may take the mount point away too.
        ErrorKind::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Waits; says whether to go on.
fn wait_until(moment: Instant, stopped: &AtomicBool) -> bool {
    while !stopped.load(Ordering::Relaxed) {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        // Not the standard library's, which sleeps on when a signal has come.
        let slept = nanosleep(&Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        if let NanosleepRelativeResult::Err(_) = slept {
            return false;
        }
    }
    false
}

fn as_json(counted: &Counted) -> warpfs::Result<serde_json::Value> {
    serde_json::to_value(counted)
        .map_err(|error| Error::io("cannot write down the statistics", error.into()))
}

/// Writes in one go: half a report is worse than a late one.
fn print(text: impl std::fmt::Display) -> warpfs::Result<()> {
    let text = text.to_string();
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(cannot_print)
}

/// Shows a report in the place of the last, as much as the terminal has room for.
fn draw(report: &Report<'_>) -> warpfs::Result<()> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    // A terminal that does not know its size has none.
    let known = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    let (rows, columns) = known.map_or((24, 80), |size| (size.ws_row, size.ws_col));
    let text = report.to_string();
    let lines = text.lines().take(usize::from(rows.max(2)) - 1);
    let mut screen = HOME.to_owned();
    for line in lines {
        let mut left = usize::from(columns);
        screen.extend(line.chars().take_while(|character| {
            let room = left.checked_sub(character.width().unwrap_or(0));
            left = room.unwrap_or(0);
            room.is_some()
        }));
        screen.push_str(CLEAR_LINE);
        screen.push('\n');
    }
    screen.push_str(CLEAR_BELOW);
    print(screen)
}

/// A path as people read it.
fn shown(path: &Path) -> String {
    OneLine(path.display()).to_string()
}
