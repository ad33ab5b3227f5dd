//! A mount's life, from what is asked for to its end.
//!
//! Everything that can be refused is refused before the mount exists; nobody is told that it is ready before it answers; and
//! whatever fails in between takes the mount away again.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::background::{self, Readiness};
use super::descriptors::Descriptors;
use super::filesystem::WarpFilesystem;
use super::guard::Guard;
use super::handles::Handles;
use super::idle::{self, Activity};
use super::metrics::{Listener, Service};
use super::mount::{self, Mount, Reach};
use super::mount_point::MountPoint;
use super::notify::ServiceManager;
use super::permission::Permission;
use super::ring;
use super::schedule;
use super::session::Session;
use super::source::Source;
use super::{COVERED_RETRY, MountOptions, shown_at, start};
use crate::error::{Error, IoContext, Result};
use crate::job::is_ignored;
use crate::reader::Engine;
use crate::tree::Kind;

/// How far the kernel may read ahead in a mount, in bytes, where we may say so. Measured without decoding, one cold
/// sequential reader: 128 KiB 2.2 GB/s, 512 KiB and 1 MiB 3.2; but random page faults of a memory map pay for what they
/// did not ask for: 8,400 a second at 128 KiB, 3,000 at 1 MiB. Half a megabyte has nearly all of the one at less of
/// the other.
const READAHEAD: u32 = 512 << 10;
/// How long requests under way may take when the mount is told to end.
const GRACE: Duration = Duration::from_secs(1);

/// Mounts and serves until the mount is ended by a signal, by an unmount, or because nobody uses it. Unless it stays in the
/// foreground, the calling process exits here when the mount answers, and only a child of it returns.
///
/// `begin_logging` is called once in the process that serves, before anything is logged. Must be called while the
/// process has one thread, whose scheduling policy becomes `SCHED_BATCH` if it is the ordinary one.
///
/// # Errors
/// The source or the mount point cannot be used, or the system does not let us mount.
pub fn serve(options: &MountOptions, begin_logging: impl FnOnce()) -> Result<()> {
    // Before the mount covers it.
    let place = MountPoint::find(&options.mount_point)?;
    let mount_point = place.path().to_owned();
    let source = source_for(options, &mount_point)?;
    let shown = source.shown();
    let metrics = options.metrics.as_deref().map(Listener::bind).transpose()?;
    let readiness = match options.foreground {
        true => Readiness::foreground(),
        false => background::detach()?,
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

    // Before there are threads.
    schedule::displace_nobody();
    let engine = Engine::new(&options.engine)?;
    let (tree, elsewhere) = source.tree(options, &mount_point, &engine)?;
    let onto_file = tree.root_kind() == Kind::File;
    let time_to_live = if onto_file {
        // The kernel looks no root up when it is opened, so it has to ask before: there is but one file to ask about.
        Duration::ZERO
    } else {
        options.time_to_live
    };
    let signals = Signals::new(ending_signals(options.foreground))
        .context("cannot wait for signals for", &mount_point)?;
    let permission = Permission::give();
    let (connection, mut mount) = mount::mount(&shown, &place, onto_file, options)?;
    drop(place);
    tree.mounted_as(mount.device());
    let connection = Arc::new(connection);
    let filesystem = WarpFilesystem::new(
        tree,
        Arc::clone(&engine),
        descriptors,
        Arc::clone(&connection),
        time_to_live,
        options.allow_other,
        elsewhere,
    );
    let begun = guard.watch(&mount).and_then(|()| {
        let begun = Serving::begin(
            filesystem,
            (connection, mount_point.clone()),
            threads,
            signals,
            metrics,
            &permission,
            mount.set_readahead(READAHEAD),
        )?;
        drop(permission);
        readiness.announce()?;
        Ok(begun)
    });
    let serving = match begun {
        Ok(serving) => serving,
        Err(error) => {
            let _ = mount.end();
            return Err(error.in_file(&mount_point));
        }
    };
    let what = format!(
        "{} is mounted on {}",
        shown.display(),
        mount_point.display()
    );
    tracing::info!("{what}");
    manager.ready(what);
    let outcome = serving.until_the_end(&mut mount, &manager, options.idle_timeout);
    if outcome.is_ok() {
        guard.dismiss();
    }
    #[cfg(feature = "remote")]
    if let Some(disk_cache) = engine.disk_cache() {
        disk_cache.close();
    }
    tracing::info!("{} is unmounted", mount_point.display());
    outcome
}

/// The signals that end a mount. In the foreground, those that whoever started it has had ignored, as nohup has the terminal's end,
/// are not meant for it.
fn ending_signals(foreground: bool) -> impl Iterator<Item = i32> {
    let meant = move |signal: &i32| !foreground || *signal == SIGTERM || !is_ignored(*signal);
    [SIGINT, SIGTERM, SIGHUP].into_iter().filter(meant)
}

/// What is to be shown, if it may be shown there.
fn source_for(options: &MountOptions, mount_point: &Path) -> Result<Source> {
    if mount_point == Path::new("/") {
        let why = "all else would be out of reach behind it: mount on a directory of its own";
        return Err(Error::unusable(why).in_file(mount_point));
    }
    let source = Source::open(options, mount_point)?;
    // As the kernel answers for a disk. What shows something else may be covered, as by any other mount.
    if shown_at(mount_point)?.is_some_and(|shown| shown == source.shown()) {
        return Err(Error::unusable(format!(
            "{} is mounted here already: \"warpfs umount\" comes first if it is to be mounted anew",
            source.shown().display()
        ))
        .in_file(&options.mount_point));
    }
    Ok(source)
}

/// A mount that is served.
struct Serving {
    end: mpsc::Receiver<End>,
    handles: Arc<Handles>,
    activity: Arc<Activity>,
    _metrics: Option<Service>,
}

/// What can end a mount.
enum End {
    Signal(i32),
    Session(Result<()>),
}

impl Serving {
    /// Agrees with the kernel, and starts the threads that answer it and those that wait for signals.
    fn begin(
        filesystem: WarpFilesystem,
        connection: (Arc<OwnedFd>, PathBuf),
        threads: usize,
        mut signals: Signals,
        metrics: Option<Listener>,
        permission: &Permission,
        readahead: u32,
    ) -> Result<Self> {
        let observation = filesystem.observation.clone();
        let handles = Arc::clone(&filesystem.handles);
        let activity = Arc::clone(&filesystem.activity);
        let session = Session::begin(filesystem, connection, threads, permission, readahead)?;
        let (ended, end) = mpsc::channel();
        let session_ended = ended.clone();
        start("session".to_owned(), move || {
            let outcome = session.run();
            let _ = session_ended.send(End::Session(outcome));
        })?;
        start("signals".to_owned(), move || {
            for signal in &mut signals {
                if ended.send(End::Signal(signal)).is_err() {
                    break;
                }
            }
        })?;
        let metrics = metrics.map(|listener| listener.serve(observation));
        Ok(Self {
            end,
            handles,
            activity,
            _metrics: metrics.transpose()?,
        })
    }

    /// Waits until the mount has ended, or ends it when it is to.
    fn until_the_end(
        self,
        mount: &mut Mount,
        manager: &ServiceManager,
        idle_timeout: Option<Duration>,
    ) -> Result<()> {
        let end_unused = || match self.handles.open() > 0 {
            true => {
                tracing::debug!("nobody asks for anything, but a file is in use");
                false
            }
            false => unmounted_if_unused(mount),
        };
        match idle::wait(&self.end, &self.activity, idle_timeout, end_unused) {
            Ok(End::Signal(signal)) => {
                tracing::info!("ending by signal {signal}");
                manager.stopping();
                if mount.end()? == Reach::Covered {
                    tracing::warn!(
                        "another mount covers {}: ending when that is unmounted",
                        mount.mount_point().display()
                    );
                    wait_until_reached(mount, &self.end)?;
                }
                // Requests under way are answered; files that are still open end with this process.
                let _ = self.end.recv_timeout(GRACE);
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
                    .map_err(|error| error.in_file(mount.mount_point()))
                    .and(ended.map(drop))
            }
            Err(_) => {
                Err(Error::unusable("serving ended unexpectedly").in_file(mount.mount_point()))
            }
        }
    }
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
