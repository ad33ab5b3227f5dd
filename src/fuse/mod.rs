//! The mount: a thin adapter between the kernel and the rooms that know something.
//!
//! `source` is what is mounted, `mount` makes and ends the mount, `background` the daemon, `notify` speaks to a service manager, `idle` knows when nobody
//! uses the mount, `guard` who cleans up after it; `filesystem` answers requests, `files` those about files and
//! `attributes` those about extended attributes, `elsewhere` those that wait for a network; `handles` knows what is open, `descriptors` how much may be,
//! `directories` what the kernel keeps of listings, `errno` what an error is called; `observation` looks at all that,
//! `exposition` puts it into Prometheus' words, `metrics` serves them. [`serve`]
//! puts them together and holds the order of a mount's life: everything that can be refused is refused before the mount
//! exists; nobody is told that it is ready before it answers.
//!
//! The kernel is spoken to by modules of our own: `protocol` is its language, `session` takes requests by read(2), `ring` by
//! io_uring, `backing` hands files over. The crates for it either lack io_uring, by which random reads are up to 1.4 times as
//! fast, or have nothing else.

mod attributes;
mod background;
mod backing;
mod curiosity;
mod descriptors;
mod directories;
mod elsewhere;
mod errno;
mod exposition;
mod files;
mod filesystem;
mod guard;
mod handles;
mod idle;
mod interrupts;
mod metrics;
mod mount;
mod notify;
mod observation;
mod protocol;
mod ring;
mod session;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::io::Errno;
use serde::de::DeserializeOwned;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::background::Readiness;
use self::descriptors::Descriptors;
use self::filesystem::WarpFilesystem;
use self::guard::Guard;
use self::metrics::Listener;
use self::mount::{Mount, Reach};
use self::notify::ServiceManager;
use self::ring::Permission;
use self::session::Session;
use self::source::Source;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::mount_table::{self, FILE_SYSTEM_TYPE};
use crate::reader::{Engine, EngineOptions};
use crate::stats::Stats;
use crate::tree::Kind;

pub use mount::unmount_command as unmount;

/// How far the kernel may read ahead in a mount, in bytes, where we may say so. Measured without decoding, one cold
/// sequential reader: 128 KiB 2.2 GB/s, 512 KiB and 1 MiB 3.2; but random page faults of a memory map pay for what they
/// did not ask for: 8,400 a second at 128 KiB, 3,000 at 1 MiB. Half a megabyte has nearly all of the one at less of
/// the other.
const READAHEAD: u64 = 512 << 10;
/// How long requests under way may take when the mount is told to end.
const GRACE: Duration = Duration::from_secs(1);

/// How often a mount that is to end and is covered by another is tried again.
const COVERED_RETRY: Duration = Duration::from_millis(200);

/// The time-to-live that stands for "for ever": the kernel counts it in jiffies, which a century does not overflow. What it
/// was told then stays until it gives it up by itself, directories' entries included.
pub const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What to mount where, and how.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// A directory, or one `.warp` file; or, with the feature `remote`, an object's URL.
    pub source: PathBuf,
    /// A directory, or for a file also a regular file.
    pub mount_point: PathBuf,
    /// The reading engine's size.
    pub engine: EngineOptions,
    /// How long the kernel may believe what it was told of names and attributes.
    pub time_to_live: Duration,
    /// Whether other users may use the mount, as far as the files' modes and access lists let them.
    pub allow_other: bool,
    /// Whether no program may be run from the mount (mount(8)'s `noexec`).
    pub no_exec: bool,
    /// Whether the kernel is to follow no symbolic link of the mount (mount(8)'s `nosymfollow`).
    pub no_symlinks: bool,
    /// Options for the kernel's security module, as in `context="system_u:object_r:usr_t:s0"`; see mount(8).
    pub security_labels: Vec<String>,
    /// After how long to unmount if nobody uses the mount; never, if nothing.
    pub idle_timeout: Option<Duration>,
    /// Whether to stay in the foreground.
    pub foreground: bool,
    /// Whether the mount is to go as well when this process is killed or crashes. A process more sees to it.
    pub auto_unmount: bool,
    /// How long whoever asks for something that lies beyond this machine waits for it, further tries included.
    pub remote_timeout: Duration,
    /// Where to serve metrics over HTTP, as `HOST:PORT`, if at all. Anybody who can reach the address can read them.
    pub metrics: Option<String>,
}

/// Mounts and serves until the mount is ended by a signal, by an unmount, or because nobody uses it. Unless it stays in the
/// foreground, the calling process exits here when the mount answers, and only a child of it returns.
///
/// `begin_logging` is called once in the process that serves, before anything is logged. Must be called while the
/// process has one thread.
///
/// # Errors
/// The source or the mount point cannot be used, or the system does not let us mount.
pub fn serve(options: &MountOptions, begin_logging: impl FnOnce()) -> Result<()> {
    // Before the mount covers it.
    let mount_point = place_of(&options.mount_point)?;
    if mount_point == Path::new("/") {
        let why = "all else would be out of reach behind it: mount on a directory of its own";
        return Err(Error::unusable(why).in_file(&mount_point));
    }
    let source = Source::open(options, &mount_point)?;
    // As the kernel answers for a disk. What shows something else may be covered, as by any other mount.
    if shown_at(&mount_point)?.is_some_and(|shown| shown == source.shown()) {
        return Err(Error::unusable(format!(
            "{} is mounted here already: \"warpfs umount\" comes first if it is to be mounted anew",
            source.shown().display()
        ))
        .in_file(&options.mount_point));
    }
    let metrics = options.metrics.as_deref().map(Listener::bind).transpose()?;
    let readiness = if options.foreground {
        Readiness::foreground()
    } else {
        background::detach()?
    };
    // The mount must not keep the directory busy that it was started from.
    let root = Path::new("/");
    std::env::set_current_dir(root).context("cannot change to", root)?;
    let guard = match options.auto_unmount {
        true => Guard::post(&mount_point)?,
        false => Guard::none(),
    };
    begin_logging();
    let manager = match options.foreground {
        true => ServiceManager::from_environment(),
        false => ServiceManager::none(),
    };
    // Requests are decoded on the threads that read them; one alone would let a slow read hold up all others.
    let threads = options.engine.threads.max(2);
    let descriptors = Descriptors::take_all(threads + ring::threads());

    let engine = Engine::new(&options.engine)?;
    #[cfg(feature = "remote")]
    let disk_cache = engine.disk_cache();
    let shown_source = source.shown();
    let (tree, elsewhere) = source.tree(options, &mount_point, &engine)?;
    let onto_file = tree.root_kind() == Kind::File;
    let time_to_live = if onto_file {
        // The kernel looks no root up when it is opened, so it has to ask before: there is but one file to ask about.
        Duration::ZERO
    } else {
        options.time_to_live
    };
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .context("cannot wait for signals for", &mount_point)?;
    let permission = Permission::give();
    let (connection, mut mount) = mount::mount(&shown_source, &mount_point, onto_file, options)?;
    guard.watch(&mount).inspect_err(|_| drop(mount.end()))?;
    tree.mounted_as(mount.device());
    let connection = Arc::new(connection);
    let filesystem = WarpFilesystem::new(
        tree,
        engine,
        descriptors,
        Arc::clone(&connection),
        time_to_live,
        options.allow_other,
        elsewhere,
    );
    let observation = filesystem.observation.clone();
    let handles = Arc::clone(&filesystem.handles);
    let activity = Arc::clone(&filesystem.activity);
    let session = match Session::begin(filesystem, connection, threads) {
        Ok(session) => session,
        Err(error) => {
            mount.end()?;
            return Err(error.in_file(&mount_point));
        }
    };
    drop(permission);

    let (ended, end) = mpsc::channel();
    let session_ended = ended.clone();
    start("session".to_owned(), move || {
        let outcome = session.run();
        let _ = session_ended.send(End::Session(outcome));
    })
    .and_then(|()| {
        start("signals".to_owned(), move || {
            for signal in &mut signals {
                if ended.send(End::Signal(signal)).is_err() {
                    break;
                }
            }
        })
    })
    .inspect_err(|_| drop(mount.end()))?;

    let metrics = metrics.map(|listener| listener.serve(observation));
    let _metrics = metrics.transpose().inspect_err(|_| drop(mount.end()))?;
    mount.set_readahead(READAHEAD);
    readiness.announce().inspect_err(|_| drop(mount.end()))?;
    let what = format!(
        "{} is mounted on {}",
        shown_source.display(),
        mount.mount_point().display()
    );
    tracing::info!("{what}");
    manager.ready(what);
    let end_unused = || match handles.any_open() {
        true => {
            tracing::debug!("nobody asks for anything, but a file is in use");
            false
        }
        false => unmounted_if_unused(&mount),
    };
    let outcome = match idle::wait(&end, &activity, options.idle_timeout, end_unused) {
        Ok(End::Signal(signal)) => {
            tracing::info!("ending by signal {signal}");
            manager.stopping();
            if mount.end()? == Reach::Covered {
                tracing::warn!(
                    "another mount covers {}: ending when that is unmounted",
                    mount.mount_point().display()
                );
                wait_until_reached(&mount, &end)?;
            }
            // Requests under way are answered; files that are still open end with this process.
            let _ = end.recv_timeout(GRACE);
            Ok(())
        }
        Ok(End::Session(outcome)) => {
            manager.stopping();
            if outcome.is_err() {
                // It is still there, and not served as it should be.
                mount.end()?;
            }
            mount.let_connection_go();
            // Nothing is left of an unmounted one; of one whose connection the administrator has broken off, there is.
            let ended = mount.end_if_dead();
            outcome
                .map_err(|error| error.in_file(&mount_point))
                .and(ended.map(drop))
        }
        Err(_) => Err(Error::unusable("serving ended unexpectedly").in_file(&mount_point)),
    };
    if outcome.is_ok() {
        guard.dismiss();
    }
    #[cfg(feature = "remote")]
    if let Some(disk_cache) = disk_cache {
        disk_cache.close();
    }
    tracing::info!("{} is unmounted", mount.mount_point().display());
    outcome
}

/// The canonical path of a place to mount on.
fn place_of(mount_point: &Path) -> Result<PathBuf> {
    mount_point.canonicalize().map_err(|error| {
        let error = match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::unusable(
                "there is no such mount point: make it first, with mkdir (or touch, for one file to show as a file)",
            )
            }
            _ => Error::io("cannot mount here", error),
        };
        error.in_file(mount_point)
    })
}

/// The source of the warpfs that is mounted at exactly this place, if the topmost mount there is one.
///
/// # Errors
/// There is no such place, or the mount table cannot be read.
pub fn shown_at(mount_point: &Path) -> Result<Option<PathBuf>> {
    let place = place_of(mount_point)?;
    let ours = |entry: &mount_table::Entry| entry.file_system_type == FILE_SYSTEM_TYPE;
    let topmost = mount_table::topmost_at(&place)?.filter(ours);
    Ok(topmost.map(|entry| entry.source))
}

/// Unmounts what nobody has asked anything for a while and has nothing open in, unless it is in use all the same. Says whether
/// it did. What an overlay or another mount namespace still has of it is served on, and ends when they let it go.
fn unmounted_if_unused(mount: &Mount) -> bool {
    let place = mount.mount_point().display();
    match mount.end_unless_used() {
        Ok(true) => {
            tracing::info!("nobody uses {place}: unmounted, ending when nobody has it any more");
            true
        }
        Ok(false) => {
            tracing::debug!("nobody asks for anything, but {place} is in use");
            false
        }
        Err(error) => {
            tracing::warn!("nobody uses {place}, but it stays: {error}");
            false
        }
    }
}

/// Ends a mount as soon as no other covers it. Gone before that, the server would leave a dead one beneath.
fn wait_until_reached(mount: &Mount, end: &mpsc::Receiver<End>) -> Result<()> {
    while mount.end()? == Reach::Covered {
        if let Ok(End::Session(_)) | Err(RecvTimeoutError::Disconnected) =
            end.recv_timeout(COVERED_RETRY)
        {
            break;
        }
    }
    Ok(())
}

fn start(name: String, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map(drop)
        .map_err(|error| Error::io("cannot start a thread", error))
}

/// What can end a mount.
enum End {
    Signal(i32),
    Session(Result<()>),
}

/// Asks a running mount what it has done. The busiest files are told to root and to who mounted it.
///
/// # Errors
/// No warpfs is mounted there, or it may not be asked.
pub fn stats(mount_point: &Path) -> Result<Stats> {
    let none = || Error::unusable("no warpfs is mounted here").in_file(mount_point);
    let place = mount_point
        .canonicalize()
        .context("cannot ask", mount_point)?;
    // Any file can have an attribute of that name.
    let mounted = mount_table::topmost_at(&place)?;
    if mounted.is_none_or(|mounted| mounted.file_system_type != FILE_SYSTEM_TYPE) {
        return Err(none());
    }
    let stats: Stats = ask(mount_point, attributes::STATS)?.ok_or_else(none)?;
    let files = match ask(mount_point, attributes::BUSIEST) {
        Err(error) if is_refusal(&error) => None,
        other => other?,
    };
    Ok(Stats { files, ..stats })
}

/// The value of an attribute of a mount's root; `None` if it has none of that name.
fn ask<T: DeserializeOwned>(mount_point: &Path, name: &str) -> Result<Option<T>> {
    // No value is longer.
    let mut value = vec![0; 64 << 10];
    let length = match rustix::fs::getxattr(mount_point, name, &mut value) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        other => other.context("cannot ask", mount_point)?,
    };
    let parsed = serde_json::from_slice(value.get(..length).unwrap_or_default());
    parsed.map(Some).map_err(|error| {
        Error::unusable(format!("answers in another version's words: {error}")).in_file(mount_point)
    })
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io { source, .. }
        if source.raw_os_error() == Some(Errno::ACCESS.raw_os_error()))
}
