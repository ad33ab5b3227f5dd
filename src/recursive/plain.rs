//! Files that come along as they are: shared block by block where the file system can, else copied around their holes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, CWD, Gid, SeekFrom, Stat, Uid};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::job::Control;
use crate::output::{NewFile, times_of};

/// How much is copied between two looks at whether to stop, in bytes.
const STEP_LEN: u64 = 16 << 20;
/// How much is copied at a time where the kernel does not do it, in bytes.
const BUFFER_LEN: usize = 256 << 10;

/// Copies a regular file that is open, with its attributes; the copy is left to be published.
pub(super) fn copy(
    file: &File,
    stat: &Stat,
    path: &Path,
    target: &Path,
    replace: bool,
    control: Control<'_>,
) -> Result<NewFile> {
    let new = NewFile::create(target, replace, Some(stat))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size > 0 && rustix::fs::ioctl_ficlone(new.file(), file).is_err() {
        new.file()
            .set_len(size)
            .context("cannot make room for the copy", target)?;
        copy_data(file, new.file(), size, path, control)?;
    }
    let now = rustix::fs::fstat(file).context("cannot examine", path)?;
    let state = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    if state(&now) != state(stat) {
        return Err(Error::new(ErrorKind::InputChanged).in_file(path));
    }
    new.copy_attributes(file, stat)?;
    Ok(new)
}

/// Copies owner, as far as allowed, and times to a symbolic link.
pub(super) fn copy_link_attributes(stat: &Stat, link: &Path) -> Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    match rustix::fs::chownat(CWD, link, Some(owner), Some(group), flags) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::NOTSUP) => {}
        Err(error) => return Err(error).context("cannot set the owner of", link),
    }
    rustix::fs::utimensat(CWD, link, &times_of(stat), flags)
        .context("cannot set the times of", link)
}

fn copy_data(from: &File, to: &File, size: u64, path: &Path, control: Control<'_>) -> Result<()> {
    let mut offset = 0;
    while offset < size {
        let data = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(()),
            Err(_) => offset,
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(size);
        offset = data;
        while offset < hole.min(size) {
            if control.cancelled.load(Ordering::Relaxed) {
                return Err(ErrorKind::Cancelled.into());
            }
            let len = STEP_LEN.min(hole.min(size) - offset);
            copy_part(from, to, offset, len, path)?;
            offset += len;
        }
    }
    Ok(())
}

fn copy_part(from: &File, to: &File, offset: u64, len: u64, path: &Path) -> Result<()> {
    let (mut read_at, mut write_at) = (offset, offset);
    while read_at < offset + len {
        let rest = usize::try_from(offset + len - read_at).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), rest);
        match copied {
            Ok(0) => return Err(Error::new(ErrorKind::InputChanged).in_file(path)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_through_memory(from, to, read_at, offset + len, path);
            }
            Err(error) => return Err(error).context("cannot copy", path),
        }
    }
    Ok(())
}

fn copy_through_memory(from: &File, to: &File, start: u64, end: u64, path: &Path) -> Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    let mut offset = start;
    while offset < end {
        let len = (end - offset).min(BUFFER_LEN as u64) as usize;
        let part = buffer.get_mut(..len).unwrap_or(&mut []);
        let read = from.read_at(part, offset).context("cannot read", path)?;
        if read == 0 {
            return Err(Error::new(ErrorKind::InputChanged).in_file(path));
        }
        let part = part.get(..read).unwrap_or(&[]);
        to.write_all_at(part, offset).context("cannot copy", path)?;
        offset += read as u64;
    }
    Ok(())
}
