//! What stat shows.
//!
//! Everything is the source file's but the size, which is the original's for a packed file and the shown target's length
//! for a symlink. Blocks stay the source's: `ls -l` shows what a file holds, `du` what it takes.

use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Statx, StatxTimestamp};
use twox_hash::XxHash64;

use super::NodeId;
use crate::identity::Identity;

/// What kind of file a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    /// `None` for a type Linux does not have.
    pub(super) fn of(file_type: FileType) -> Option<Self> {
        match file_type {
            FileType::Directory => Some(Kind::Directory),
            FileType::RegularFile => Some(Kind::File),
            FileType::Symlink => Some(Kind::Symlink),
            FileType::Fifo => Some(Kind::Fifo),
            FileType::Socket => Some(Kind::Socket),
            FileType::CharacterDevice => Some(Kind::CharDevice),
            FileType::BlockDevice => Some(Kind::BlockDevice),
            _ => None,
        }
    }
}

/// A node's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// The node.
    pub(crate) node: NodeId,
    /// Tells the file from others that the node's number stood for before, and will; the same for as long as the node lives.
    pub(crate) generation: u32,
    /// The inode number shown: the node's id, but for the root, whose id is always 1.
    pub(crate) inode: u64,
    /// What it is.
    pub(crate) kind: Kind,
    /// The size shown, in bytes.
    pub(crate) size: u64,
    /// What the source file takes, in units of 512 bytes.
    pub(crate) blocks: u64,
    /// The preferred size of a read, in bytes.
    pub(crate) block_size: u32,
    /// Permissions, with the set-user-id, set-group-id and sticky bits; no file type.
    pub(crate) mode: u16,
    /// How many names the source file has.
    pub(crate) nlink: u32,
    /// The owner.
    pub(crate) uid: u32,
    /// The owning group.
    pub(crate) gid: u32,
    /// A device's number, as the kernel packs it into 32 bits.
    pub(crate) rdev: u32,
    /// When the source file was last read.
    pub(crate) accessed: SystemTime,
    /// When it was last written to.
    pub(crate) modified: SystemTime,
    /// When its inode last changed.
    pub(crate) changed: SystemTime,
}

impl Attributes {
    /// The attributes of a source file, under `node` and with its own number and size.
    pub(super) fn new(node: NodeId, kind: Kind, found: &Statx) -> Self {
        // The kernel gives device numbers 12 and 20 bits, and packs them so that the lower half of the C library's
        // 64-bit number is its own 32-bit one.
        let rdev = rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor) as u32;
        Self {
            node,
            generation: generation(kind, &Identity::from(found)),
            inode: if node == NodeId::ROOT {
                found.stx_ino
            } else {
                node.0
            },
            kind,
            size: found.stx_size,
            blocks: found.stx_blocks,
            block_size: found.stx_blksize,
            mode: found.stx_mode & 0o7777,
            nlink: found.stx_nlink,
            uid: found.stx_uid,
            gid: found.stx_gid,
            rdev,
            accessed: time(&found.stx_atime),
            modified: time(&found.stx_mtime),
            changed: time(&found.stx_ctime),
        }
    }
}

/// Made of what is the same in all states of a file, and of no two files on a file system that keeps birth times. Directories live on
/// with other birth times where they are copied up, and a node of another generation would be a dead one to the kernel.
fn generation(kind: Kind, file: &Identity) -> u32 {
    let (seconds, nanoseconds) = match kind {
        Kind::Directory => (0, 0),
        _ => file.born,
    };
    let words = [
        file.device,
        file.inode,
        seconds.cast_unsigned(),
        nanoseconds.into(),
    ];
    let bytes = words.map(u64::to_le_bytes);
    XxHash64::oneshot(0, bytes.as_flattened()) as u32
}

fn time(stamp: &StatxTimestamp) -> SystemTime {
    let seconds = Duration::from_secs(stamp.tv_sec.unsigned_abs());
    let whole = if stamp.tv_sec < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(stamp.tv_nsec.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
