//! Where a mount is going to be, held from the moment its path is resolved.
//!
//! A path leads elsewhere as soon as whoever owns a directory on the way renames what lies in it, or puts a link in its place, and
//! between looking for a mount point and mounting on it there may be seconds in which a network is asked. What root mounts by a
//! path may so land anywhere. What is mounted by a descriptor lands on what was looked at, and where that lies by then is asked
//! afterwards.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::UnmountFlags;

use super::place_of;
use crate::error::{IoContext, Result};
use crate::mount_table;

/// See the module's description.
#[derive(Debug)]
pub(super) struct MountPoint {
    path: PathBuf,
    held: OwnedFd,
}

impl MountPoint {
    /// Looks for a place to mount on.
    ///
    /// # Errors
    /// There is none, or it cannot be come by.
    pub(super) fn find(named: &Path) -> Result<Self> {
        let path = place_of(named)?;
        // Asked for as a directory, an automount that has started us would wait for us here.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS;
        let held = rustix::fs::openat2(CWD, &path, flags, Mode::empty(), resolve);
        Ok(Self {
            held: held.context("cannot mount here", named)?,
            path,
        })
    }

    /// Its canonical path, when it was looked for.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to it, for this process, wherever it lies by now.
    pub(super) fn by_descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.held.as_raw_fd()))
    }

    /// Whether it lies where it was looked for.
    ///
    /// # Errors
    /// The system does not say.
    pub(super) fn is_in_place(&self) -> Result<bool> {
        Ok(self.lies_at()? == self.path)
    }

    fn lies_at(&self) -> Result<PathBuf> {
        std::fs::read_link(self.by_descriptor()).context("cannot find", &self.path)
    }

    /// Takes away a mount of `source` that was just made by the descriptor, unless something else is in its place by now.
    pub(super) fn clear(&self, source: &Path) {
        let place = self.lies_at();
        let topmost = place.and_then(|place| mount_table::topmost_at(&place));
        // Where that cannot be looked at, it is what was made a moment ago.
        let is_ours = topmost.map_or(true, |topmost| {
            topmost.is_some_and(|topmost| topmost.is_ours(source))
        });
        if !is_ours {
            return;
        }
        // Unlike all other system calls, this one goes on from there to what is mounted on it.
        let _ = rustix::mount::unmount(self.by_descriptor(), UnmountFlags::DETACH);
    }
}
