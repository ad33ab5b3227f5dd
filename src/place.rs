//! A name in a directory that is held open.
//!
//! A path leads elsewhere once one of its directories is replaced by a symbolic link. Whatever is made, renamed or removed
//! is therefore named by a directory's descriptor and a bare name in it; the path is for messages alone.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, IoContext, Result};

/// See the module's description.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) directory: Arc<OwnedFd>,
    pub(crate) name: OsString,
    /// What it is called in messages.
    pub(crate) path: PathBuf,
}

impl Place {
    /// The place a path names now.
    ///
    /// # Errors
    /// There is no such directory, or the path can name nothing but a directory.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        let name = path
            .file_name()
            .filter(|_| !bytes.ends_with(b"/") && !bytes.ends_with(b"/."));
        let Some(name) = name else {
            return Err(Error::unusable("names a directory, and a file is needed").in_file(path));
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = open_directory(CWD, directory, OFlags::empty())
            .context("cannot open its directory", path)?;
        Ok(Self {
            directory: Arc::new(directory),
            name: name.to_owned(),
            path: path.to_owned(),
        })
    }

    /// What is there, not followed if a symbolic link.
    pub(crate) fn stat(&self) -> rustix::io::Result<Stat> {
        rustix::fs::statat(&*self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The same, as whoever keeps it has it now.
    fn stat_anew(&self) -> rustix::io::Result<Stat> {
        // What the name stands for is the directory's to say, of which as much may be kept.
        ask_anew(&*self.directory, c"", AtFlags::EMPTY_PATH)?;
        ask_anew(&*self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.stat()
    }

    /// Writes down to the disk the file there, which is open, and its name.
    pub(crate) fn sync(&self, file: &std::fs::File) -> Result<()> {
        file.sync_all().context("cannot sync", &self.path)?;
        self.sync_directory(file)
    }

    /// Writes its name down to the disk; `file` is any file of the same file system.
    pub(crate) fn sync_directory(&self, file: &std::fs::File) -> Result<()> {
        match rustix::fs::fsync(&*self.directory) {
            // A file system that cannot sync a directory says so; there is nothing to be done about it.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            // The directory may be written to and not be read: it cannot be synced alone.
            Err(Errno::BADF) => rustix::fs::syncfs(file),
            Err(error) => Err(error),
        }
        .context("cannot sync the directory of", &self.path)
    }

    /// Checks that writing there does not write over `input`, an open file.
    pub(crate) fn check_is_not(&self, input: &Stat) -> Result<()> {
        match rustix::fs::statat(&*self.directory, &self.name, AtFlags::empty()) {
            Ok(found) if inode_of(&found) == inode_of(input) => {
                let why = "the output is the input: choose another --output";
                Err(Error::unusable(why).in_file(&self.path))
            }
            _ => Ok(()),
        }
    }

    /// The place of an input that is to be removed later, for what it was when it was opened.
    ///
    /// # Errors
    /// As [`Place::check_removable`].
    pub(crate) fn removable(path: &Path, stat: &Stat, force: bool) -> Result<Self> {
        let place = Self::of(path)?;
        place.check_removable(stat, force)?;
        Ok(place)
    }

    /// Checks that removing the name removes the file that `stat` is of, and nothing else.
    pub(crate) fn check_removable(&self, stat: &Stat, force: bool) -> Result<()> {
        let refuse = |why: &str| Err(Error::unusable(why).in_file(&self.path));
        let named = self.stat().context("cannot examine", &self.path)?;
        if inode_of(&named) != inode_of(stat) {
            return refuse("--rm does not go through symbolic links: name the file itself");
        }
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return refuse("--rm removes regular files only");
        }
        if stat.st_nlink > 1 && !force {
            return refuse(&format!(
                "has {} names (hard links), and removing one frees nothing: add --force to remove it",
                stat.st_nlink
            ));
        }
        Ok(())
    }

    /// Checks that what an earlier job has left here, in the state `found`, may be given the owner and the mode of what it was made of. In somebody
    /// else's directory it may be any file whose bytes are known. So it has to have that owner and group already, or to belong to whom the job runs as
    /// and have this name alone. `own` is the inode of what the same job has put here.
    pub(crate) fn check_owner(
        &self,
        own: Option<(u64, u64)>,
        found: &Stat,
        of: &Stat,
    ) -> Result<()> {
        let owner = |stat: &Stat| (stat.st_uid, stat.st_gid);
        let is_ours = found.st_uid == rustix::process::geteuid().as_raw() && found.st_nlink == 1;
        if own == Some(inode_of(found)) || own.is_none() && (is_ours || owner(found) == owner(of)) {
            return Ok(());
        }
        let why = "has another owner or group than what it was made of: remove one of the two, or use --force";
        Err(Error::unusable(why).in_file(&self.path))
    }

    /// Checks that the name still stands for the file that was read, unchanged.
    pub(crate) fn check_unchanged(&self, stat: &Stat) -> Result<()> {
        let named = self.stat_anew().context("cannot examine", &self.path)?;
        match inode_of(&named) == inode_of(stat) && is_same_state(&named, stat) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::InputChanged).in_file(&self.path)),
        }
    }

    /// Removes the name, if it still stands for the file that was read, unchanged. What is given is the state in which that
    /// leaves the file, if nobody writes to it meanwhile: removing one of its names changes the change time.
    pub(crate) fn remove(&self, stat: &Stat) -> Result<Stat> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*self.directory, &self.name, flags, Mode::empty());
        // Not if it is gone afterwards: NFS gives what is held another name, in this directory, and removes it some time later.
        let further = (stat.st_nlink > 1).then(open).transpose();
        let further = further.context("cannot examine", &self.path)?;
        self.check_unchanged(stat)?;
        rustix::fs::unlinkat(&*self.directory, &self.name, AtFlags::empty())
            .context("cannot remove", &self.path)?;
        let mut left = *stat;
        // If it cannot be told, it counts as changed.
        if let Some(now) = further.and_then(|file| rustix::fs::fstat(file).ok()) {
            (left.st_ctime, left.st_ctime_nsec) = (now.st_ctime, now.st_ctime_nsec);
        }
        Ok(left)
    }

    /// Removes the name, if it stands for that file, as far as that is possible.
    pub(crate) fn remove_own(&self, inode: (u64, u64)) {
        if self.stat().is_ok_and(|found| inode_of(&found) == inode) {
            let _ = rustix::fs::unlinkat(&*self.directory, &self.name, AtFlags::empty());
        }
    }
}

/// Has the server of a network file system say what a file is like now: else the system tells what it was told up to a minute ago,
/// and what somebody else has written since does not show.
pub(crate) fn ask_anew(
    at: impl AsFd,
    name: impl rustix::path::Arg,
    flags: AtFlags,
) -> rustix::io::Result<()> {
    let flags = flags | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(at, name, flags, StatxFlags::BASIC_STATS).map(drop)
}

/// Whether nothing was done to a file from one look to the next: neither its content nor its attributes were changed, nor
/// its names.
pub(crate) fn is_same_state(before: &Stat, after: &Stat) -> bool {
    let changed = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec);
    is_same_content(before, after) && changed(before) == changed(after)
}

/// Whether a file has the size and the modification time that it had.
pub(crate) fn is_same_content(before: &Stat, after: &Stat) -> bool {
    let written = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    written(before) == written(after)
}

/// Device and inode: which file it is.
pub(crate) fn inode_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// The bytes a file takes on the disk; `st_blocks` counts in units of 512, whatever the file system's.
pub(crate) fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

/// Opens a directory to find and make names in it; to sync it too, unless it may not be read.
pub(crate) fn open_directory(
    at: impl AsFd,
    name: impl AsRef<OsStr>,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(&at, name.as_ref(), flags | OFlags::RDONLY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::openat(&at, name.as_ref(), flags | OFlags::PATH, Mode::empty())
        }
        opened => opened,
    }
}

/// Opens a directory below another, through no symbolic link and never upwards.
pub(crate) fn open_beneath(root: impl AsFd, relative: &Path) -> rustix::io::Result<OwnedFd> {
    let mut directory = open_directory(root, ".", OFlags::empty())?;
    for component in relative.components() {
        let Component::Normal(name) = component else {
            return Err(Errno::XDEV);
        };
        directory = open_directory(&directory, name, OFlags::NOFOLLOW)?;
    }
    Ok(directory)
}
