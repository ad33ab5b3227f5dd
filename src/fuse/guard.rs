//! The guard: a process that outlives the server, to take away the mount that a killed one leaves dead.
//!
//! A server that is killed, by SIGKILL, for want of memory or by its own fault, cannot unmount. Who asks for it gets a
//! second process, forked while there is one thread. It holds one end of a socket and nothing else: no terminal, no
//! directory, no file of the source, and above all not the connection to the kernel, which is to break with the server.
//! Through the socket it is told which mount it guards, and that it may go because that is gone. If the server's end is
//! closed without a word, the server has died.
//!
//! It unmounts what is ours, by its device number, *and* dead: such a number is given anew as soon as a mount is gone.
//!
//! This is not done unasked. A dead mount point is an error for whoever comes by. One that is no longer mounted is an
//! empty directory, or shows packed files where there were originals, and `rsync --delete` takes that for the truth.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::ForkResult;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use super::COVERED_RETRY;
use super::background::{fork_while_alone, give_streams_up};
use super::mount::{Mount, Reach};
use crate::error::{Error, IoContext, Result};
use crate::mount_table::{self, FILE_SYSTEM_TYPE};

/// What could not be done when there is no guard.
const CANNOT_POST: &str = "cannot start the process that unmounts after a crash (--auto-unmount)";

/// The server's end of the line to its guard, if it has one. Dropped, it has the guard look after the mount.
#[derive(Debug)]
pub(super) struct Guard {
    line: Option<UnixStream>,
}

impl Guard {
    /// No guard at all.
    pub(super) fn none() -> Self {
        Self { line: None }
    }

    /// Starts a guard for what will be mounted at `mount_point`, which must be canonical.
    ///
    /// Must be called while the process has one thread.
    ///
    /// # Errors
    /// No process can be made.
    pub(super) fn post(mount_point: &Path) -> Result<Self> {
        let failed = |error| Error::io(CANNOT_POST, error);
        let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
        match fork_while_alone(CANNOT_POST)? {
            ForkResult::Parent { .. } => {
                drop(theirs);
                // From here on nothing that ends this process ends the guard too.
                ours.read_exact(&mut [0]).map_err(failed)?;
                Ok(Self { line: Some(ours) })
            }
            ForkResult::Child => {
                // What the server has open was copied too; ending here, nothing of it is dropped or flushed.
                let watched = keep_watch(theirs, mount_point);
                std::process::exit(if watched.is_ok() { 0 } else { 1 });
            }
        }
    }

    /// Tells the guard which mount is to go when the server does.
    ///
    /// # Errors
    /// The guard is gone.
    pub(super) fn watch(&self, mount: &Mount) -> Result<()> {
        let Some(mut line) = self.line.as_ref() else {
            return Ok(());
        };
        let (major, minor) = mount.device();
        let mut message = [0; 8];
        message[..4].copy_from_slice(&major.to_ne_bytes());
        message[4..].copy_from_slice(&minor.to_ne_bytes());
        line.write_all(&message)
            .context("cannot tell the guard of", mount.mount_point())
    }

    /// Lets the guard go: the mount is gone.
    pub(super) fn dismiss(self) {
        if let Some(mut line) = self.line {
            // If it is gone already, so much the better.
            let _ = line.write_all(&[1]);
        }
    }
}

/// The guard's life.
fn keep_watch(mut line: UnixStream, mount_point: &Path) -> Result<()> {
    give_everything_up(line.as_raw_fd(), mount_point)?;
    line.write_all(&[1])
        .context("cannot report to the server of", mount_point)?;
    let (mut major, mut minor) = ([0; 4], [0; 4]);
    if line.read_exact(&mut major).is_err() || line.read_exact(&mut minor).is_err() {
        return take_away_untold(mount_point);
    }
    let device = (u32::from_ne_bytes(major), u32::from_ne_bytes(minor));
    let dismissed = line.read_exact(&mut [0]).is_ok();
    if dismissed {
        return Ok(());
    }
    let mount = Mount::known(mount_point, device);
    while mount.end_if_dead()? == Reach::Covered {
        std::thread::sleep(COVERED_RETRY);
    }
    Ok(())
}

/// Takes away what a server mounted that was killed before it could tell of it, if it came so far. A dead mount there is its
/// own: what was there before has answered.
fn take_away_untold(mount_point: &Path) -> Result<()> {
    match mount_table::topmost_at(mount_point)? {
        Some(entry) if entry.file_system_type == FILE_SYSTEM_TYPE => {
            let mount = Mount::known(mount_point, entry.device);
            mount.end_if_dead().map(drop)
        }
        _ => Ok(()),
    }
}

/// Leaves the terminal and its signals, and closes all descriptors but one.
fn give_everything_up(kept: RawFd, mount_point: &Path) -> Result<()> {
    // Unlike an ignored signal, one that is handled does so no longer in a program that is executed.
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
        signal_hook::flag::register(signal, Arc::default())
            .context("cannot outlast signals for", mount_point)?;
    }
    rustix::process::setsid().context("cannot leave the terminal for", mount_point)?;
    let _ = rustix::thread::set_name(c"warpfs-guard");
    give_streams_up()?;
    let directory = Path::new("/proc/self/fd");
    let entries = std::fs::read_dir(directory).context("cannot list", directory)?;
    let open: Vec<RawFd> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open {
        if descriptor > 2 && descriptor != kept {
            // The listing's own is closed already.
            let _ = nix::unistd::close(descriptor);
        }
    }
    Ok(())
}
