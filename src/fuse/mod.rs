//! The mount: a thin adapter between the kernel and the rooms that know something.
//!
//! `source` is what is mounted, `mount` makes and ends the mount, on a `mount_point` that is held, `background` the daemon, `notify` speaks to a service manager, `schedule` to the scheduler and `aside`
//! who is in whose way there, `idle` when nobody uses the mount, `guard` who cleans up after it, and `life` puts all together. `filesystem` answers requests, `files` those about files and
//! `attributes` those about extended attributes, `elsewhere` those that wait for a network, of which `interrupts` knows who waits;
//! `handles` knows what is open, `descriptors` how much may be, `listings` how much the entries of directories may take,
//! `directories` what the kernel keeps of those, `curiosity` who wants to know more of them than names, `errno` what an error is called; `observation` looks at all that, `exposition` puts it into Prometheus'
//! words, `metrics` serves them.
//!
//! The kernel is spoken to by modules of our own: `protocol` is its language, `session` takes requests by read(2), `ring` by
//! io_uring, `backing` hands files over. The crates for it either lack io_uring, by which random reads are up to 1.4 times as
//! fast, or have nothing else.

mod aside;
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
mod life;
mod listings;
mod metrics;
mod mount;
mod mount_point;
mod notify;
mod observation;
mod pages;
mod permission;
mod protocol;
mod relief;
mod ring;
mod schedule;
mod session;
mod source;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::mount_table::{self, FILE_SYSTEM_TYPE};
use crate::reader::EngineOptions;
use crate::stats::Stats;

pub use life::serve;
pub use mount::unmount_command as unmount;

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
    #[cfg(feature = "remote")]
    pub remote_timeout: Duration,
    /// Where to serve metrics over HTTP, as `HOST:PORT`, if at all. Anybody who can reach the address can read them.
    pub metrics: Option<String>,
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

fn start(name: String, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map(drop)
        .map_err(|error| Error::io("cannot start a thread", error))
}

/// Asks a running mount what it has done. The busiest files are told to root and to who mounted it.
///
/// # Errors
/// No warpfs is mounted there, or it may not be asked.
pub fn stats(mount_point: &Path) -> Result<Stats> {
    let none = || mount::none_here(mount_point);
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
