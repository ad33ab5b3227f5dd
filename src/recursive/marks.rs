//! The marks on what is made in another tree: of what it was made.
//!
//! A mark is an extended attribute. It says whether what is there may be replaced, and whether it may be given the owner and the mode of what
//! has its name in the source now. A name alone says neither: whoever may rename in a directory can put one thing in another's place,
//! in the source as in the other tree, and a directory that does not tell `a` from `A` has one place for both. So a mark names the tree, the place in it
//! and the file there (by its inode and when it was made); and the owner, the access list and the mode that this had, so that it shows when
//! these have changed. A later change of what is marked makes its mark void.
//!
//! It is four hashes of 64 bits, for all of it is only compared: what is longer than 60 bytes does not fit into an inode of ext4, and takes each file a
//! block of its own.
//!
//! Who may write to a file can write its mark too. So a mark says what was made of what, and never whose it may be.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Stat, StatxFlags, fgetxattr};
use rustix::process::geteuid;

use crate::error::Result;
use crate::identity::Identity;
use crate::output::{access_list, set_user_attribute};
use crate::walk::Entry;

/// The attribute. It is not copied from file to file.
const MARK: &str = "user.warpfs.made";

/// A part of a mark: of all there could be, nobody finds another for which it is the same.
type Part = [u8; 8];

/// The tree that a job works on, as marks name it.
pub(super) struct Marks {
    tree: String,
}

/// The parts of a mark.
#[derive(Clone, Copy)]
struct Parts {
    /// Which tree, and what becomes another when what is marked is changed.
    state: Part,
    place: Part,
    /// All zeros if it is not known.
    file: Part,
    access: Part,
}

/// What a mark says, or should say, of what a result was made of.
pub(super) struct Origin {
    place: Part,
    file: Option<Part>,
    access: Part,
}

/// What a mark says of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// There is none of this tree, or what bears it was changed since.
    None,
    /// It was made of something else in this tree.
    OfAnother,
    /// It was made of what is, or was, at this place, or of the same file elsewhere; or it cannot be told of which file of the tree.
    Own {
        /// It was made of the file that is there now, as far as that can be told.
        same_file: bool,
        /// It was made for this place.
        same_place: bool,
        /// It was made by the same user, of what had the owner, access list and mode that it has now.
        same_access: bool,
    },
}

impl Mark {
    pub(super) fn is_own(self) -> bool {
        matches!(self, Self::Own { .. })
    }
}

impl Origin {
    /// Of what is at `relative` in the source, open and in this state; `path` is what it is called in messages.
    ///
    /// # Errors
    /// Its access list cannot be read.
    pub(super) fn of(relative: &Path, file: impl AsFd, stat: &Stat, path: &Path) -> Result<Self> {
        let list = access_list(&file, path)?.unwrap_or_default();
        let (user, group, mode) = (stat.st_uid, stat.st_gid, stat.st_mode);
        // What one user could not give, another may.
        let access = format!("{} {user} {group} {mode} ", geteuid().as_raw());
        Ok(Self {
            place: part(&[relative.as_os_str().as_bytes()]),
            file: which(&file, OsStr::new(""), AtFlags::EMPTY_PATH),
            access: part(&[access.as_bytes(), &list]),
        })
    }

    /// Of an entry, to be compared with what was made of it, whoever may have had access to it.
    pub(super) fn named(entry: &Entry) -> Self {
        Self {
            place: part(&[entry.relative.as_os_str().as_bytes()]),
            file: which(&*entry.directory, &entry.name, AtFlags::SYMLINK_NOFOLLOW),
            access: Part::default(),
        }
    }
}

/// Which file has this name, by its file system, its inode and when it was made: an inode number alone is soon another file's. `None` where that is
/// not kept, and in file systems whose servers may say what they like, which do not say which one they are.
fn which(at: impl AsFd, name: &OsStr, flags: AtFlags) -> Option<Part> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let found = rustix::fs::statx(&at, name, flags, wanted).ok()?;
    let file_system = rustix::fs::fstatvfs(&at).ok()?.f_fsid;
    let Identity { inode, born, .. } = Identity::from(&found);
    let file = format!("{file_system:x} {inode} {} {}", born.0, born.1);
    (born != (0, 0) && file_system != 0).then(|| part(&[file.as_bytes()]))
}

fn part(of: &[&[u8]]) -> Part {
    let mut hash = blake3::Hasher::new();
    for bytes in of {
        hash.update(bytes);
    }
    hash.finalize()
        .as_bytes()
        .first_chunk()
        .copied()
        .unwrap_or_default()
}

impl Parts {
    fn bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let parts = [self.state, self.place, self.file, self.access];
        bytes.as_chunks_mut().0.copy_from_slice(&parts);
        bytes
    }

    /// What the mark of a file or directory says, if it has one.
    fn read(on: impl AsFd) -> Option<Self> {
        // One byte more than it has.
        let mut value = [0; 33];
        let length = fgetxattr(on, MARK, &mut value[..]).ok()?;
        let (parts, rest) = value.get(..length)?.as_chunks();
        let &[state, place, file, access] = parts else {
            return None;
        };
        rest.is_empty().then_some(Self {
            state,
            place,
            file,
            access,
        })
    }
}

impl Marks {
    /// What tells the tree at `root` from every other one: its file system and the inode there, also after it was moved and after
    /// the system was started again. `None` if it cannot be examined.
    pub(super) fn of(root: &Path) -> Option<Self> {
        let file_system = rustix::fs::statvfs(root).ok()?.f_fsid;
        let stat = rustix::fs::stat(root).ok()?;
        // Some file systems, FUSE among them, do not say which one they are.
        let tree = match file_system {
            0 => format!("device-{:x} {}", stat.st_dev, stat.st_ino),
            _ => format!("{file_system:x} {}", stat.st_ino),
        };
        Some(Self { tree })
    }

    /// Marks what was made of something in the tree: a file when it is complete, its times included, a directory before anything is
    /// made in it.
    pub(super) fn put(&self, on: impl AsFd, origin: &Origin) {
        let Ok(stat) = rustix::fs::fstat(&on) else {
            return;
        };
        let mark = Parts {
            state: self.state(&stat),
            place: origin.place,
            file: origin.file.unwrap_or_default(),
            access: origin.access,
        };
        // Without a mark it is not replaced, and no more than that.
        let _ = set_user_attribute(on.as_fd(), MARK, &mark.bytes());
    }

    /// What the mark on a file or directory in this state says, of which an earlier run may have made this.
    pub(super) fn read(&self, on: impl AsFd, stat: &Stat, origin: &Origin) -> Mark {
        let found = Parts::read(on).filter(|found| found.state == self.state(stat));
        let Some(found) = found else {
            return Mark::None;
        };
        let same_place = found.place == origin.place;
        let same_file = origin.file == Some(found.file);
        let is_unknown = origin.file.is_none() || found.file == Part::default();
        // One of several names bears the mark of the first; the others still have what is lost with it.
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let is_link = is_file && stat.st_nlink > 1;
        match same_place || same_file || is_unknown || is_link {
            true => Mark::Own {
                same_file,
                same_place,
                same_access: found.access == origin.access,
            },
            false => Mark::OfAnother,
        }
    }

    /// What becomes another when a file is changed, and which tree it was made of. A directory changes whenever something is made in it.
    fn state(&self, stat: &Stat) -> Part {
        let of = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => "directory".to_owned(),
            _ => {
                let (size, seconds, nanoseconds) =
                    (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
                format!("{size} {seconds} {nanoseconds}")
            }
        };
        part(&[self.tree.as_bytes(), b" ", of.as_bytes()])
    }
}

/// Whether a directory bears any mark: it was made by a job.
pub(super) fn is_marked(directory: impl AsFd) -> bool {
    Parts::read(directory).is_some()
}

/// Takes the mark off again.
pub(super) fn unmark(directory: impl AsFd) {
    let _ = rustix::fs::fremovexattr(directory, MARK);
}
