//! Where a mount says what happens, and how much of it; and what a job has to say beside its errors.
//!
//! How much can be changed while it runs: SIGUSR1 has it say more, SIGUSR2 less. A log file that is renamed or removed, as
//! logrotate does, is begun anew under its name before the next line; no signal is needed, and SIGHUP ends a mount.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use signal_hook::consts::{SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use tracing::field::{Field, Visit};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};
use warpfs::Error;

use super::{Volume, say};

/// From the fewest words to the most.
const LEVELS: [LevelFilter; 4] = [
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
];

/// A log file to append to, under the name it was opened by. It is found again through its directory's descriptor: the mount
/// that writes the log may come to lie over the path, and must not wait for itself.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// Nothing for what is no regular file and so not rotated.
    place: Option<(OwnedFd, OsString)>,
}

impl LogFile {
    /// Opens a log file, or makes one.
    pub(super) fn open(path: &Path) -> warpfs::Result<Self> {
        let cannot_open = |error| Error::io("cannot open", error).in_file(path);
        let file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .map_err(cannot_open)?;
        let place = place_of(path, &file).map_err(cannot_open)?;
        Ok(Self { file, place })
    }

    /// Goes over to the file that has the name now, if it is another; without one, begins it.
    fn follow_the_name(&mut self) {
        let Some((directory, name)) = &self.place else {
            return;
        };
        let named = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let open = rustix::fs::fstat(&self.file);
        if let (Ok(named), Ok(open)) = (named, open)
            && is_same(&named, &open)
        {
            return;
        }
        // Where it cannot be made, the lines still go where they went.
        if let Ok(file) = open_at(directory, name) {
            self.file = file;
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.follow_the_name();
        self.file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The directory and the name, behind all links, of an open regular file.
fn place_of(path: &Path, file: &File) -> io::Result<Option<(OwnedFd, OsString)>> {
    let open = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(open.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let path = path.canonicalize()?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    Ok(Some((directory, name.to_owned())))
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn open_at(directory: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o666))?;
    Ok(File::from(file))
}

/// Sends what happens to the log file if one is named, else to the standard error of a foreground mount, else to the
/// system's journal if there is one. Standard error that leads to the journal is not taken for a file: the journal
/// then knows how bad each line is.
pub(super) fn begin_logging(file: Option<LogFile>, foreground: bool, volume: Volume) {
    let level = match (volume.quiet, volume.verbose) {
        (true, _) => LevelFilter::ERROR,
        (_, true) => LevelFilter::DEBUG,
        _ => LevelFilter::INFO,
    };
    let (filter, handle) = reload::Layer::new(level);
    let subscriber = tracing_subscriber::registry().with(filter);
    if let Some(file) = file {
        subscriber.with(lines(Mutex::new(file))).init();
    } else if foreground && !leads_to_journal() {
        subscriber.with(lines(io::stderr)).init();
    } else if let Ok(journal) = tracing_journald::layer() {
        // Under whatever name it was started, mount(8)'s for example.
        let journal = journal.with_syslog_identifier("warpfs".to_owned());
        subscriber.with(journal).init();
    } else if io::stderr().is_terminal() {
        say(
            "warpfs: there is no journal here: what happens to the mount is told nowhere, unless --log-file names a file",
        );
    }
    change_level_by_signals(level, handle);
}

/// Shows what a job warns of while it goes on, as its errors are shown, unless it is to be quiet.
pub(super) fn show_warnings(volume: Volume) {
    if !volume.quiet {
        let shown = tracing_subscriber::registry().with(Warnings.with_filter(LevelFilter::WARN));
        // There is no other.
        let _ = shown.try_init();
    }
}

/// See [`show_warnings`].
struct Warnings;

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        // Those of libraries are for those who write programs.
        if event.metadata().target().starts_with("warpfs") {
            let mut text = Text(String::new());
            event.record(&mut text);
            if io::stderr().is_terminal() {
                // In the place of a bar, which is drawn anew below.
                let _ = io::stderr().write_all(b"\r\x1b[K");
            }
            say(format_args!("warpfs: {}", text.0));
        }
    }
}

/// What an event says.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

fn lines<S, W>(writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(writer)
}

/// Whether standard error is the stream to the journal that the service manager has given us; see systemd.exec(5).
fn leads_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Has SIGUSR1 show one level more and SIGUSR2 one less, from now on, for as long as the process lives.
fn change_level_by_signals(level: LevelFilter, handle: reload::Handle<LevelFilter, Registry>) {
    let listen = move |mut signals: Signals| {
        let mut level = level;
        for signal in &mut signals {
            let now = LEVELS.iter().position(|known| *known == level).unwrap_or(0);
            let wanted = match signal {
                SIGUSR1 => now.saturating_add(1),
                _ => now.saturating_sub(1),
            };
            let wanted = *LEVELS.get(wanted).unwrap_or(&LevelFilter::DEBUG);
            // Told while the more talkative of the two is in force.
            if wanted < level {
                tell_level(level, wanted);
            }
            if handle.reload(wanted).is_err() {
                continue;
            }
            if wanted >= level {
                tell_level(wanted, wanted);
            }
            level = wanted;
        }
    };
    let listening = Signals::new([SIGUSR1, SIGUSR2]).and_then(|signals| {
        std::thread::Builder::new()
            .name("log level".to_owned())
            .spawn(move || listen(signals))
    });
    if let Err(error) = listening {
        tracing::warn!("SIGUSR1 and SIGUSR2 do not change how much is logged: {error}");
    }
}

/// Says what will be shown, in a line of a level that is shown now.
fn tell_level(shown: LevelFilter, level: LevelFilter) {
    let level = level.to_string();
    let text = format!("log level is {level} now (SIGUSR1 shows more, SIGUSR2 less)");
    if shown >= LevelFilter::INFO {
        tracing::info!("{text}");
    } else if shown == LevelFilter::WARN {
        tracing::warn!("{text}");
    } else {
        tracing::error!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_moved_away_or_removed_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let linked = directory.path().join("linked");
        std::os::unix::fs::symlink("log", &linked).unwrap();
        let mut log = LogFile::open(&linked).unwrap();
        let mut say = |line: &str| log.write_all(line.as_bytes()).unwrap();
        let holds = |path: &Path| std::fs::read_to_string(path).unwrap();
        say("1");
        let rotated = directory.path().join("log.1");
        std::fs::rename(&path, &rotated).unwrap();
        say("2");
        say("3");
        assert_eq!((holds(&rotated), holds(&path)), ("1".into(), "23".into()));
        std::fs::remove_file(&path).unwrap();
        say("4");
        assert_eq!(holds(&path), "4");
        // What somebody puts there to lead us elsewhere is not followed.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        say("5");
        assert!(!directory.path().join("elsewhere").exists());
    }
}
