//! New files that appear under their name only when they are whole.
//!
//! A file is written under a temporary name beside its target, given the attributes of the file it was made from,
//! synced, and renamed; the directory is synced last. Many small files are synced and renamed together. Links are made
//! the same way. Whatever goes wrong on the way, the temporary name is removed and the target is as it was. The temporary
//! name does not end in `.warp`, so that a mount shows it as what it is.
//!
//! All names are made, renamed and removed through one descriptor of the directory ([`Place`]), opened at the beginning.

mod attributes;
mod contents;
mod writeback;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

pub(crate) use attributes::{
    access_list, copy_attributes, narrow_access, set_user_attribute, times_of,
};
pub(crate) use contents::{Compared, Filled};
pub(crate) use writeback::Appender;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::place::{Place, inode_of};

/// The longest part of the target's name that goes into the temporary one, so that it stays within the 255 bytes a file
/// system allows.
const NAME_PART_LEN: usize = 200;
/// How many temporary names are tried: each is one of 2^64, so that a second one is hardly ever needed.
const MOST_NAMES: usize = 16;

/// A file being written; dropped without [`NewFile::publish`], nothing of it stays.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    name: NewName,
}

impl NewFile {
    /// Begins a file that will be called `target` and is made from `input`: if that is a regular file, the owner alone
    /// may read the new one until it has the input's attributes. Else it has those of any new file.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if the target exists and `replace` is not set; it is the input, or something that is not
    /// replaced; or the system's.
    pub(crate) fn create(target: Place, replace: bool, input: Option<&Stat>) -> Result<Self> {
        if let Some(input) = input {
            target.check_is_not(input)?;
        }
        let kind = input.map(|input| FileType::from_raw_mode(input.st_mode));
        let mode = match kind {
            Some(FileType::RegularFile) => Mode::RUSR | Mode::WUSR,
            _ => Mode::from_raw_mode(0o666),
        };
        let (name, file) = NewName::make(target, replace, |directory, name| {
            create_file(directory, name, mode)
        })?;
        Ok(Self { file, name })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The name the file will have, for messages.
    pub(crate) fn target(&self) -> &Path {
        &self.name.target.path
    }

    /// An unnamed file in the same directory.
    pub(crate) fn spool(&self) -> Result<File> {
        let target = self.name.target.clone();
        let mode = Mode::RUSR | Mode::WUSR;
        // Its name goes at once.
        NewName::make(target, true, |directory, name| {
            create_file(directory, name, mode)
        })
        .map(|(_, file)| file)
    }

    /// Writes everything down to the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().context("cannot sync", self.target())
    }

    /// Gives the file the attributes of `file`, of which `stat` was taken before it was read.
    pub(crate) fn copy_attributes(&self, file: &File, stat: &Stat) -> Result<()> {
        copy_attributes(file, stat, &self.file, self.target())
    }

    /// Syncs the file and lets it appear under its name.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if somebody else was faster, or the system's.
    pub(crate) fn publish(self) -> Result<()> {
        self.sync()?;
        self.name.publish(&self.file)
    }

    /// As [`NewFile::publish`], and removes the input it was made of, which `stat` is of as it was when it was proved. What
    /// is given is as of [`Place::remove`].
    ///
    /// # Errors
    /// As [`NewFile::publish`]. If the input was changed meanwhile, it is kept and nothing appears.
    pub(crate) fn publish_instead(self, input: &Place, stat: &Stat) -> Result<Stat> {
        self.sync()?;
        self.name.publish_instead(&self.file, input, stat)
    }

    /// The file and its name apart, to be synced together with others and renamed then.
    pub(crate) fn finish(self) -> (File, NewName) {
        (self.file, self.name)
    }
}

/// A name that something new is to have, and has under a temporary name so far; dropped before it is renamed, nothing of
/// it stays.
#[derive(Debug)]
pub(crate) struct NewName {
    target: Place,
    temporary: OsString,
    replace: bool,
    /// What is there, if it is locked for as long as it has a temporary name.
    lock: Option<File>,
}

impl NewName {
    /// Makes something that will be called `target`: `make` is given a directory and a free name in it.
    ///
    /// # Errors
    /// As [`NewFile::create`].
    pub(crate) fn make<T>(
        target: Place,
        replace: bool,
        mut make: impl FnMut(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<(Self, T)> {
        check_room(&target, replace)?;
        let random = RandomState::new();
        let mut made = Err(Errno::EXIST);
        for attempt in 0..MOST_NAMES {
            let temporary = temporary_name(&target.name, random.hash_one(attempt));
            made = make(target.directory.as_fd(), &temporary);
            if !matches!(made, Err(Errno::EXIST)) {
                let made = made.context("cannot make a file beside it", &target.path)?;
                let name = Self {
                    target,
                    temporary,
                    replace,
                    lock: None,
                };
                return Ok((name, made));
            }
        }
        made.context("cannot make a file beside it", &target.path)
            .and(Err(Error::new(ErrorKind::Exists).in_file(&target.path)))
    }

    /// Keeps a file open, and with it the lock that it has.
    pub(crate) fn locked_by(mut self, lock: Option<File>) -> Self {
        self.lock = lock;
        self
    }

    /// Where it is for now.
    pub(crate) fn temporary(&self) -> (BorrowedFd<'_>, &OsStr) {
        (self.target.directory.as_fd(), &self.temporary)
    }

    /// The name it will have.
    pub(crate) fn target(&self) -> &Place {
        &self.target
    }

    /// Lets what was synced appear under its name. That the name stays takes [`NewName::publish`], or a sync of the file
    /// system.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if somebody else was faster, or the system's.
    pub(crate) fn rename(&self) -> Result<()> {
        let directory = &*self.target.directory;
        let (from, to) = (&self.temporary, &self.target.name);
        let renamed = match self.replace {
            true => rustix::fs::renameat(directory, from, directory, to),
            false => self.rename_to_a_free_name(),
        };
        match renamed {
            Err(Errno::EXIST) => Err(Error::new(ErrorKind::Exists).in_file(&self.target.path)),
            renamed => renamed.context("cannot rename the finished file to it", &self.target.path),
        }
    }

    fn rename_to_a_free_name(&self) -> rustix::io::Result<()> {
        let directory = &*self.target.directory;
        let (from, to) = (&self.temporary, &self.target.name);
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(directory, from, directory, to, flags) {
            // Not every file system can; a link does not replace anything either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            renamed => return renamed,
        }
        match rustix::fs::linkat(directory, from, directory, to, AtFlags::empty()) {
            // Nor can every one link. Who takes the name between these two is replaced.
            Err(Errno::PERM | Errno::NOSYS | Errno::NOTSUP) => {}
            linked => return linked,
        }
        match self.target.stat() {
            Err(Errno::NOENT) => rustix::fs::renameat(directory, from, directory, to),
            Ok(_) => Err(Errno::EXIST),
            Err(error) => Err(error),
        }
    }

    /// As [`NewName::rename`], and makes the name durable; `file` is any file of the same file system.
    pub(crate) fn publish(self, file: &File) -> Result<()> {
        self.rename()?;
        self.target.sync_directory(file)
    }

    /// As [`NewName::publish`], and removes the input: see [`NewFile::publish_instead`].
    pub(crate) fn publish_instead(self, file: &File, input: &Place, stat: &Stat) -> Result<Stat> {
        input.check_unchanged(stat)?;
        let (directory, name) = self.temporary();
        let made = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .context("cannot examine", &self.target.path)?;
        let target = self.target.clone();
        self.publish(file)?;
        input.remove(stat).inspect_err(|error| {
            // A result of what is no more would be in the way of every later job.
            if matches!(error.kind(), ErrorKind::InputChanged) {
                target.remove_own(inode_of(&made));
            }
        })
    }
}

impl Drop for NewName {
    fn drop(&mut self) {
        // After a rename it is gone already, but for a rename of one name of a file to another, which does nothing.
        let _ = rustix::fs::unlinkat(&*self.target.directory, &self.temporary, AtFlags::empty());
        drop(self.lock.take());
    }
}

/// Checks that what is to have this name may take it.
pub(crate) fn check_room(target: &Place, replace: bool) -> Result<()> {
    let existing = match target.stat() {
        Ok(existing) => existing,
        Err(error @ Errno::NAMETOOLONG) => {
            return Err(error).context("cannot make a file of this name", &target.path);
        }
        Err(_) => return Ok(()),
    };
    let refusal = match FileType::from_raw_mode(existing.st_mode) {
        FileType::RegularFile | FileType::Symlink if replace => return Ok(()),
        FileType::RegularFile | FileType::Symlink => ErrorKind::Exists.into(),
        FileType::Directory => Error::unusable("is a directory, a file cannot take its place"),
        _ => is_a_stream(),
    };
    Err(refusal.in_file(&target.path))
}

fn is_a_stream() -> Error {
    Error::unusable(
        "is a device, a pipe or a socket, which is not replaced: unpack -c writes to standard output, and so into it",
    )
}

/// The place of a result that the user names. Who names a link to a device or a pipe, as /dev/stdout is one, does not mean the
/// link.
///
/// # Errors
/// As [`Place::of`]; or the name leads to such a thing, whether what exists is replaced or not.
pub(crate) fn place_of_result(path: &Path) -> Result<Place> {
    let place = Place::of(path)?;
    let (directory, name) = (&*place.directory, place.name.as_os_str());
    let Ok(link) = rustix::fs::readlinkat(directory, name, Vec::new()) else {
        return Ok(place);
    };
    let found = rustix::fs::statat(directory, name, AtFlags::empty());
    let is_file = |mode| {
        matches!(
            FileType::from_raw_mode(mode),
            FileType::RegularFile | FileType::Directory
        )
    };
    // A file too, if standard output goes to one.
    let is_descriptor = link.to_bytes().starts_with(b"/proc/");
    match is_descriptor || found.is_ok_and(|found| !is_file(found.st_mode)) {
        true => Err(is_a_stream().in_file(path)),
        false => Ok(place),
    }
}

fn create_file(directory: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> rustix::io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, mode)?;
    // It says that somebody is at it; where files cannot be locked, nobody asks.
    let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    Ok(File::from(file))
}

/// What a temporary file was to be called, as far as its name says: see [`is_whole_name`]. `None` if it is none by its name.
pub(crate) fn temporary_of(name: &OsStr) -> Option<&OsStr> {
    let bytes = name.as_bytes().strip_prefix(b".")?.strip_suffix(b".part")?;
    let (name, random) = bytes.split_at_checked(bytes.len().checked_sub(17)?)?;
    let random = random.strip_prefix(b".")?;
    let is_hexadecimal = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (!name.is_empty() && random.iter().all(is_hexadecimal)).then(|| OsStr::from_bytes(name))
}

/// Whether that is the whole of a name, and not only its beginning.
pub(crate) fn is_whole_name(name: &OsStr) -> bool {
    name.len() < NAME_PART_LEN
}

fn temporary_name(target: &OsStr, random: u64) -> OsString {
    let name = target.as_bytes();
    let name = name.get(..NAME_PART_LEN).unwrap_or(name);
    let ending = format!(".{random:016x}.part");
    OsString::from_vec([b".", name, ending.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Timespec, Timestamps, XattrFlags};
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    fn create(target: &Path, replace: bool) -> Result<NewFile> {
        let input = rustix::fs::fstat(tempfile::tempfile().unwrap()).unwrap();
        NewFile::create(Place::of(target)?, replace, Some(&input))
    }

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
        let new = create(&target, false).unwrap();
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
    fn temporary_names_tell_what_they_are_for() {
        let of = |name: &str| temporary_of(OsStr::new(name)).map(OsStr::to_owned);
        let name = temporary_name(OsStr::new("a.b.warp"), 0xfe);
        assert_eq!(temporary_of(&name), Some(OsStr::new("a.b.warp")));
        for other in [
            "a.0123456789abcdef.part",
            ".a.0123456789abcdeg.part",
            ".a.0123456789abcde.part",
            ".0123456789abcdef.part",
            ".a.0123456789abcdef",
            ".part",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn what_exists_is_replaced_only_when_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        let slow = create(&target, false).unwrap();
        std::fs::write(&target, "old").unwrap();
        let refused = create(&target, false).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Exists));
        assert!(matches!(
            slow.publish().unwrap_err().kind(),
            ErrorKind::Exists
        ));
        let new = create(&target, true).unwrap();
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
        let new = create(&target, false).unwrap();
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
