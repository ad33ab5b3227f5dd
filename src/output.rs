//! New files that appear under their name only when they are whole.
//!
//! A file is written under a temporary name beside its target, given the attributes of the file it was made from,
//! synced, and renamed; the directory is synced last. Many small files are synced and renamed together. Whatever goes wrong on the way, the temporary file is removed and
//! the target is as it was. The temporary name does not end in `.warp`, so that a mount shows it as what it is.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, ErrorKind, IoContext, Result};

/// The longest part of the target's name that goes into the temporary one, so that it stays within the 255 bytes a file
/// system allows.
const NAME_PART_LEN: usize = 200;

/// A file being written; dropped without [`NewFile::publish`], nothing of it stays.
#[derive(Debug)]
pub(crate) struct NewFile {
    temporary: NamedTempFile,
    target: PathBuf,
    replace: bool,
}

impl NewFile {
    /// Begins a file that will be called `target`, and will have the attributes of `like`: until then, its owner alone
    /// may read it. Without `like` it has those of any new file.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if the target exists and `replace` is not set, or the system's.
    pub(crate) fn create(target: &Path, replace: bool, like: Option<&Stat>) -> Result<Self> {
        match std::fs::symlink_metadata(target) {
            Ok(existing) if existing.is_dir() => {
                return Err(
                    Error::unusable("is a directory, a file cannot take its place").in_file(target),
                );
            }
            Ok(_) if !replace => return Err(Error::new(ErrorKind::Exists).in_file(target)),
            _ => {}
        }
        let name = target.file_name().unwrap_or_default().as_bytes();
        let mut prefix = OsString::from(".");
        prefix.push(std::ffi::OsStr::from_bytes(
            name.get(..NAME_PART_LEN).unwrap_or(name),
        ));
        prefix.push(".");
        let mode = if like.is_some() { 0o600 } else { 0o666 };
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".part")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory_of(target))
            .context("cannot create a file beside it", target)?;
        Ok(Self {
            temporary,
            target: target.to_owned(),
            replace,
        })
    }

    pub(crate) fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Where the file is for now.
    pub(crate) fn temporary_path(&self) -> &Path {
        self.temporary.path()
    }

    /// The name the file will have.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Writes everything down to the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file()
            .sync_all()
            .context("cannot sync", self.temporary_path())
    }

    /// Gives the file the attributes of `file`, of which `stat` was taken before it was read.
    pub(crate) fn copy_attributes(&self, file: &File, stat: &Stat) -> Result<()> {
        copy_attributes(file, stat, self.file(), &self.target)
    }

    /// Syncs the file and lets it appear under its name.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if somebody else was faster, or the system's.
    pub(crate) fn publish(self) -> Result<()> {
        self.sync()?;
        let finished = self.finish();
        let directory = finished.directory().to_owned();
        finished.rename()?;
        sync_directory(&directory)
    }

    /// Closes the file, to be synced together with others and renamed then.
    pub(crate) fn finish(self) -> FinishedFile {
        FinishedFile {
            temporary: self.temporary.into_temp_path(),
            target: self.target,
            replace: self.replace,
        }
    }
}

/// A file that is written and has only to be synced and renamed; dropped before that, nothing of it stays.
#[derive(Debug)]
pub(crate) struct FinishedFile {
    temporary: TempPath,
    target: PathBuf,
    replace: bool,
}

impl FinishedFile {
    /// The directory it is in.
    pub(crate) fn directory(&self) -> &Path {
        directory_of(&self.target)
    }

    /// Lets a file that was synced appear under its name. That the name stays takes [`sync_directory`].
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if somebody else was faster, or the system's.
    pub(crate) fn rename(self) -> Result<()> {
        let persisted = match self.replace {
            true => self.temporary.persist(&self.target),
            false => self.temporary.persist_noclobber(&self.target),
        };
        persisted.map_err(|error| {
            let error = match error.error.kind() {
                std::io::ErrorKind::AlreadyExists => ErrorKind::Exists.into(),
                _ => Error::io("cannot rename the finished file to it", error.error),
            };
            error.in_file(&self.target)
        })
    }
}

/// The directory a name is in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the names of a directory durable. File systems that cannot do that say so with EINVAL; there is nothing to be
/// done about it then.
fn sync_directory(directory: &Path) -> Result<()> {
    let file = File::open(directory).context("cannot open", directory)?;
    match rustix::fs::fsync(&file) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error).context("cannot sync", directory),
    }
}

/// Copies mode, times, owner as far as allowed, and `user.*` attributes from a file or directory to another; `path` is
/// the name of the latter in messages.
pub(crate) fn copy_attributes(
    from: impl AsFd,
    stat: &Stat,
    to: impl AsFd,
    path: &Path,
) -> Result<()> {
    copy_user_attributes(from.as_fd(), to.as_fd(), path)?;
    // The owner before the mode: changing the owner takes the set-user-id bits away.
    let owned = match rustix::fs::fchown(
        &to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    ) {
        Ok(()) => true,
        Err(Errno::PERM | Errno::INVAL | Errno::NOTSUP) => false,
        Err(error) => return Err(error).context("cannot set the owner of", path),
    };
    let mut mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    if !owned {
        // A program must not come to run as another user than the one it was meant to run as.
        mode -= Mode::SUID | Mode::SGID;
    }
    rustix::fs::fchmod(&to, mode).context("cannot set the mode of", path)?;
    rustix::fs::futimens(&to, &times_of(stat)).context("cannot set the times of", path)
}

/// A file's access and modification time.
pub(crate) fn times_of(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as i64,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as i64,
        },
    }
}

fn copy_user_attributes(from: impl AsFd, to: impl AsFd, path: &Path) -> Result<()> {
    let mut names = vec![0_u8; 64 << 10];
    let len = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(()),
        Err(error) => return Err(error).context("cannot list the attributes for", path),
    };
    let mut value = Vec::new();
    for name in names
        .get(..len)
        .unwrap_or(&[])
        .split(|&byte| byte == 0)
        // What a mount adds to packed files says nothing of a copy.
        .filter(|name| name.starts_with(b"user.") && !name.starts_with(b"user.warpfs."))
    {
        // The longest value Linux allows.
        value.resize(64 << 10, 0);
        let len = match rustix::fs::fgetxattr(&from, name, &mut value[..]) {
            Ok(len) => len,
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error).context("cannot read the attributes for", path),
        };
        let value = value.get(..len).unwrap_or(&[]);
        match rustix::fs::fsetxattr(&to, name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error).context("cannot set the attributes of", path),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    fn names(directory: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_given_up_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x".repeat(250));
        let new = NewFile::create(&target, false, None).unwrap();
        new.file().write_all(b"half").unwrap();
        assert!(
            !names(directory.path())[0]
                .to_string_lossy()
                .ends_with(".warp")
        );
        drop(new);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_exists_is_replaced_only_when_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        let slow = NewFile::create(&target, false, None).unwrap();
        std::fs::write(&target, "old").unwrap();
        let refused = NewFile::create(&target, false, None).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Exists));
        assert!(matches!(
            slow.publish().unwrap_err().kind(),
            ErrorKind::Exists
        ));
        let new = NewFile::create(&target, true, None).unwrap();
        new.file().write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        new.publish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["x"]);
    }

    #[test]
    fn mode_times_and_user_attributes_go_along() {
        let directory = tempfile::tempdir().unwrap();
        let source = File::create(directory.path().join("source")).unwrap();
        let attributes =
            rustix::fs::fsetxattr(&source, "user.color", b"green", XattrFlags::empty());
        rustix::fs::fchmod(&source, Mode::from_raw_mode(0o2640)).unwrap();
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 1_000,
                tv_nsec: 5,
            },
            last_modification: Timespec {
                tv_sec: -2_000,
                tv_nsec: 999_999_999,
            },
        };
        rustix::fs::futimens(&source, &times).unwrap();
        let stat = rustix::fs::fstat(&source).unwrap();
        let target = directory.path().join("target");
        let new = NewFile::create(&target, false, Some(&stat)).unwrap();
        let before = new.file().metadata().unwrap();
        assert_eq!(before.mode() & 0o777, 0o600);
        new.copy_attributes(&source, &stat).unwrap();
        new.publish().unwrap();
        let after = std::fs::metadata(&target).unwrap();
        assert_eq!(after.mode() & 0o7777, 0o2640);
        assert_eq!((after.mtime(), after.mtime_nsec()), (-2_000, 999_999_999));
        let mut value = [0; 16];
        let copied = rustix::fs::getxattr(&target, "user.color", &mut value[..]);
        assert_eq!(copied.is_ok(), attributes.is_ok());
        if let Ok(len) = copied {
            assert_eq!(&value[..len], b"green");
        }
    }
}
