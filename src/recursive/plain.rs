//! Files that come along as they are: shared block by block where the file system can, else copied around their holes.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Uid};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::job::Control;
use crate::output::{NewFile, times_of};
use crate::pack::check_unchanged;
use crate::place::Place;

/// How much is copied between two looks at whether to stop, in bytes.
const STEP_LEN: u64 = 16 << 20;
/// How much is copied at a time where the kernel does not do it, in bytes.
const BUFFER_LEN: usize = 256 << 10;

/// Copies a regular file that is open, with its attributes; the copy is left to be published.
pub(super) fn copy(
    file: &File,
    stat: &Stat,
    path: &Path,
    target: Place,
    replace: bool,
    control: Control<'_>,
) -> Result<NewFile> {
    let new = NewFile::create(target, replace, Some(stat))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size > 0 && rustix::fs::ioctl_ficlone(new.file(), file).is_err() {
        new.file()
            .set_len(size)
            .context("cannot make room for the copy", new.target())?;
        let copy = Copy {
            from: file,
            to: new.file(),
            path,
            target: new.target(),
        };
        copy.all(size, control)?;
    }
    check_unchanged(file, stat, path)?;
    new.copy_attributes(file, stat)?;
    Ok(new)
}

/// Gives a symbolic link that was just made, called `path` in messages, owner, as far as allowed, and times of another. Who may make
/// names beside it may have put something else in its place, which is not to be given away.
pub(super) fn copy_link_attributes(
    stat: &Stat,
    directory: BorrowedFd<'_>,
    name: &OsStr,
    path: &Path,
) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = rustix::fs::openat(directory, name, flags, Mode::empty())
        .context("cannot examine", path)?;
    let found = rustix::fs::fstat(&link).context("cannot examine", path)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink || found.st_nlink > 1 {
        let why = "was replaced by something else while it was made; try again";
        return Err(Error::unusable(why).in_file(path));
    }
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    // What is somebody else's is not the link that was made, or is where owners cannot be given.
    if found.st_uid == geteuid().as_raw() {
        match rustix::fs::chownat(&link, c"", Some(owner), Some(group), AtFlags::EMPTY_PATH) {
            Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::NOTSUP) => {}
            Err(error) => return Err(error).context("cannot set the owner of", path),
        }
    }
    let times = times_of(stat);
    match rustix::fs::utimensat(&link, c"", &times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8 this takes a name; nothing is given away with a time.
        Err(Errno::INVAL) => {
            rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
        set => set,
    }
    .context("cannot set the times of", path)
}

/// One file's data on its way into another, and both their names for messages.
struct Copy<'a> {
    from: &'a File,
    to: &'a File,
    path: &'a Path,
    target: &'a Path,
}

impl Copy<'_> {
    fn all(&self, size: u64, control: Control<'_>) -> Result<()> {
        let mut offset = 0;
        while offset < size {
            let data = match rustix::fs::seek(self.from, SeekFrom::Data(offset)) {
                Ok(data) => data,
                Err(Errno::NXIO) => return Ok(()),
                Err(_) => offset,
            };
            let hole = rustix::fs::seek(self.from, SeekFrom::Hole(data)).unwrap_or(size);
            offset = data;
            while offset < hole.min(size) {
                if control.cancelled.load(Ordering::Relaxed) {
                    return Err(ErrorKind::Cancelled.into());
                }
                let len = STEP_LEN.min(hole.min(size) - offset);
                self.part(offset, len)?;
                offset += len;
            }
        }
        Ok(())
    }

    fn part(&self, offset: u64, len: u64) -> Result<()> {
        let (mut read_at, mut write_at) = (offset, offset);
        while read_at < offset + len {
            let rest = usize::try_from(offset + len - read_at).unwrap_or(usize::MAX);
            let copied = rustix::fs::copy_file_range(
                self.from,
                Some(&mut read_at),
                self.to,
                Some(&mut write_at),
                rest,
            );
            match copied {
                Ok(0) => return Err(Error::new(ErrorKind::InputChanged).in_file(self.path)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    return self.through_memory(read_at, offset + len);
                }
                // The call does not tell which side failed; these are the target's.
                Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::ROFS)) => {
                    return Err(error).context("cannot write", self.target);
                }
                Err(error) => return Err(error).context("cannot copy", self.path),
            }
        }
        Ok(())
    }

    fn through_memory(&self, start: u64, end: u64) -> Result<()> {
        let mut buffer = vec![0; BUFFER_LEN];
        let mut offset = start;
        while offset < end {
            let len = (end - offset).min(BUFFER_LEN as u64) as usize;
            let part = buffer.get_mut(..len).unwrap_or(&mut []);
            let read = self
                .from
                .read_at(part, offset)
                .context("cannot read", self.path)?;
            if read == 0 {
                return Err(Error::new(ErrorKind::InputChanged).in_file(self.path));
            }
            let part = part.get(..read).unwrap_or(&[]);
            self.to
                .write_all_at(part, offset)
                .context("cannot write", self.target)?;
            offset += read as u64;
        }
        Ok(())
    }
}
