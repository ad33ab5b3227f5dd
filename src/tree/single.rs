//! The one file that is mounted onto a file: whom what replaces it is shown to.
//!
//! The kernel has one inode for it, whatever file is there. It asks who may open that, and asks us to open it, in two
//! steps; in between, whoever owns the directory can swap the file for another, even one he may move and not read. So
//! another file than the one that was mounted is opened for others only if it has the same owner, group and mode: then
//! the kernel's answer holds for both.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Statx;
use rustix::io::Errno;

use super::OpenedFile;
use crate::error::{Error, Result};
use crate::identity::Identity;

/// Owner, group and mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access(u32, u32, u16);

impl From<&Statx> for Access {
    fn from(stat: &Statx) -> Self {
        Self(stat.stx_uid, stat.stx_gid, stat.stx_mode)
    }
}

/// The file as it was when it was mounted.
#[derive(Debug)]
pub(super) struct MountedFile {
    identity: Identity,
    access: Access,
    told: AtomicBool,
}

impl MountedFile {
    pub(super) fn new(stat: &Statx) -> Self {
        Self {
            identity: Identity::from(stat),
            access: Access::from(stat),
            told: AtomicBool::new(false),
        }
    }

    /// Checks that what was opened may be handed to `user`.
    ///
    /// # Errors
    /// Not permitted; the log says so once.
    pub(super) fn check(&self, opened: &OpenedFile, user: u32) -> Result<()> {
        let same =
            self.identity.same_file(&opened.identity) && self.identity.born == opened.identity.born;
        // These could have read it themselves.
        let trusted = user == 0 || user == rustix::process::geteuid().as_raw();
        if same || trusted || opened.access == Some(self.access) {
            return Ok(());
        }
        let why = "this is another file than was mounted, with another owner or mode: mount it anew to show it to others";
        let error = Error::io(why, Errno::ACCESS.into()).in_file(&opened.path);
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("{error}");
        }
        Err(error)
    }
}
