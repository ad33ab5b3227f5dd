//! Where a mount says what happens.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use tracing::Level;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use warpfs::Error;

use super::Volume;

/// Opens a log file to append to.
pub(super) fn open_log(path: &Path) -> warpfs::Result<File> {
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| Error::io("cannot open", error).in_file(path))
}

/// Sends what happens to the log file if one is named, else to the standard error of a foreground mount, else to the
/// system's journal if there is one.
pub(super) fn begin_logging(file: Option<File>, foreground: bool, volume: Volume) {
    let level = match (volume.quiet, volume.verbose) {
        (true, _) => Level::ERROR,
        (_, true) => Level::DEBUG,
        _ => Level::INFO,
    };
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false);
    if let Some(file) = file {
        lines.with_writer(Mutex::new(file)).init();
    } else if foreground {
        lines.with_writer(std::io::stderr).init();
    } else if let Ok(journal) = tracing_journald::layer() {
        let level = tracing_subscriber::filter::LevelFilter::from_level(level);
        tracing_subscriber::registry()
            .with(level)
            .with(journal)
            .init();
    }
}
