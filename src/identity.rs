//! What makes a file the same file: device, inode, size and modification time.
//!
//! The change time is left out on purpose: a rename over a file that is held open changes the held file's too.

use rustix::fs::{Stat, Statx};

/// See the module's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// The device the file is on.
    pub(crate) device: u64,
    /// Its inode number there.
    pub(crate) inode: u64,
    /// Its size, in bytes.
    pub(crate) size: u64,
    /// When its contents were last modified: seconds since 1970 and nanoseconds.
    pub(crate) modified: (i64, u32),
}

impl Identity {
    /// Whether both are the same inode, whatever has happened to its contents.
    pub(crate) fn same_inode(&self, other: &Identity) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (
                stat.st_mtime,
                u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ),
        }
    }
}

impl From<&Statx> for Identity {
    fn from(stat: &Statx) -> Self {
        Self {
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            size: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        }
    }
}
