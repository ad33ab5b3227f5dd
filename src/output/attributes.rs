//! The attributes that go along with a file or directory to what is made of it.
//!
//! What cannot go along must not let anyone see more than the original did: where the group or the access control list
//! cannot be kept, the mode says less.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{IoContext, Result};

/// The attribute that is a file's access control list.
const ACCESS_LIST: &str = "system.posix_acl_access";
/// The attribute that is a directory's list for what is made in it.
const DEFAULT_LIST: &str = "system.posix_acl_default";

/// Copies mode, access lists, times, owner as far as allowed, and `user.*` attributes from a file or directory to another; `path` is
/// the name of the latter in messages.
pub(crate) fn copy_attributes(
    from: impl AsFd,
    stat: &Stat,
    to: impl AsFd,
    path: &Path,
) -> Result<()> {
    copy_user_attributes(from.as_fd(), to.as_fd(), path)?;
    // The owner before the mode: changing the owner takes the set-user-id bits away.
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let owned = change_owner(&to, Some(owner), group).context("cannot set the owner of", path)?;
    let grouped =
        owned || change_owner(&to, None, group).context("cannot set the group of", path)?;
    let mut mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    if !owned {
        // A program must not come to run as another user than the one it was meant to run as.
        mode -= Mode::SUID | Mode::SGID;
    }
    if !grouped {
        // Whatever group it has now was among the others before.
        mode =
            Mode::from_raw_mode(mode.as_raw_mode() & (!0o070 | (mode.as_raw_mode() & 0o007) << 3));
    }
    mode = copy_access_lists(from.as_fd(), to.as_fd(), stat, mode, grouped, path)?;
    rustix::fs::fchmod(&to, mode).context("cannot set the mode of", path)?;
    rustix::fs::futimens(&to, &times_of(stat)).context("cannot set the times of", path)
}

/// Takes from a file or directory what others may do with it and not with another; `path` is its name in messages. A file of several
/// names may be anybody's, and is left.
///
/// # Errors
/// An access list cannot be read.
pub(crate) fn narrow_access(
    from: impl AsFd,
    stat: &Stat,
    to: impl AsFd,
    path: &Path,
) -> Result<()> {
    let found = rustix::fs::fstat(&to).context("cannot examine", path)?;
    if is_file(&found) && found.st_nlink > 1 {
        return Ok(());
    }
    let before = found.st_mode & 0o7777;
    let mut mode = before & stat.st_mode;
    let list = access_list(&to, path)?;
    if list.is_some() && list != access_list(&from, path)? {
        // The most that anybody named in it may do.
        mode &= !0o070;
    }
    if mode != before {
        // Not everybody may.
        let _ = rustix::fs::fchmod(&to, Mode::from_raw_mode(mode));
    }
    Ok(())
}

/// Changes owner and group, and says whether that was allowed.
fn change_owner(to: impl AsFd, owner: Option<Uid>, group: Gid) -> rustix::io::Result<bool> {
    match rustix::fs::fchown(to, owner, Some(group)) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies the access control lists, or takes away those that the copy has from its directory, and says which mode it is
/// to have: with a list, the mode's group bits are what the list allows at most, not what the group may do.
fn copy_access_lists(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    stat: &Stat,
    mode: Mode,
    grouped: bool,
    path: &Path,
) -> Result<Mode> {
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        // Of what will be made in it, not of the directory: without it nobody comes to see more.
        match attribute(from, DEFAULT_LIST).context("cannot read the access list for", path)? {
            Some(list) if grouped => {
                let _ = rustix::fs::fsetxattr(to, DEFAULT_LIST, &list, XattrFlags::empty());
            }
            _ => remove_list(to, DEFAULT_LIST).context("cannot remove the access list of", path)?,
        }
    }
    let list = access_list(from, path)?;
    if let Some(list) = &list
        && grouped
        && rustix::fs::fsetxattr(to, ACCESS_LIST, list, XattrFlags::empty()).is_ok()
    {
        return Ok(mode);
    }
    remove_list(to, ACCESS_LIST).context("cannot remove the access list of", path)?;
    let most = list.as_deref().map_or(0o7, granted_to_all);
    Ok(Mode::from_raw_mode(
        mode.as_raw_mode() & (!0o077 | most << 3 | most),
    ))
}

/// A file's access control list, if it has one; `path` is what it is read for.
pub(crate) fn access_list(of: impl AsFd, path: &Path) -> Result<Option<Vec<u8>>> {
    attribute(of.as_fd(), ACCESS_LIST).context("cannot read the access list for", path)
}

fn remove_list(to: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::fremovexattr(to, name) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the group and everyone named in an access control list may do alike: all that may be left to group and others
/// where the list cannot be. The list's layout is that of linux/posix_acl_xattr.h: a version of four bytes, then entries
/// of a tag and permissions of two bytes each and an id of four, little-endian.
fn granted_to_all(list: &[u8]) -> u32 {
    /// The tags of user, group, mask: of all entries but the owner's and the others'.
    const TAGS: [u16; 4] = [0x02, 0x04, 0x08, 0x10];
    let entries = list.get(4..).unwrap_or(&[]).as_chunks::<8>().0;
    entries
        .iter()
        .filter(|[low, high, ..]| TAGS.contains(&u16::from_le_bytes([*low, *high])))
        .fold(0o7, |granted, [_, _, low, ..]| granted & u32::from(*low))
}

/// An extended attribute's value, if there is one.
fn attribute(
    of: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<Option<Vec<u8>>> {
    // The longest value Linux allows.
    let mut value = vec![0; 64 << 10];
    match rustix::fs::fgetxattr(of, name, &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets an attribute `user.*`. That takes leave to write, which the owner of what is read-only lends himself for the moment.
pub(crate) fn set_user_attribute(
    to: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    value: &[u8],
) -> rustix::io::Result<()> {
    match rustix::fs::fsetxattr(to, name, value, XattrFlags::empty()) {
        Err(Errno::ACCESS) => {}
        set => return set,
    }
    let mode = Mode::from_raw_mode(rustix::fs::fstat(to)?.st_mode & 0o7777);
    rustix::fs::fchmod(to, mode | Mode::WUSR)?;
    let set = rustix::fs::fsetxattr(to, name, value, XattrFlags::empty());
    rustix::fs::fchmod(to, mode).and(set)
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

/// The names among these, with a zero behind each, of attributes that come along. What a mount adds to packed files says nothing of a copy.
fn user_attributes(names: &[u8]) -> impl Iterator<Item = &[u8]> {
    names
        .split(|&byte| byte == 0)
        .filter(|name| name.starts_with(b"user.") && !name.starts_with(b"user.warpfs."))
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Takes away what a file has that is not new: attributes that the other had when it was made, and has no more. In directories others keep
/// attributes of their own.
fn remove_other_attributes(of: BorrowedFd<'_>, wanted: &[u8]) {
    let mut names = vec![0_u8; 64 << 10];
    let len = rustix::fs::flistxattr(of, &mut names[..]).unwrap_or(0);
    for name in user_attributes(names.get(..len).unwrap_or(&[])) {
        if !user_attributes(wanted).any(|wanted| wanted == name) {
            let _ = rustix::fs::fremovexattr(of, name);
        }
    }
}

fn copy_user_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let mut names = vec![0_u8; 64 << 10];
    let len = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(()),
        Err(error) => return Err(error).context("cannot list the attributes for", path),
    };
    let names = names.get(..len).unwrap_or(&[]);
    if rustix::fs::fstat(to).is_ok_and(|to| is_file(&to)) {
        remove_other_attributes(to, names);
    }
    for name in user_attributes(names) {
        let value = attribute(from, name).context("cannot read the attributes for", path)?;
        let Some(value) = value else { continue };
        match set_user_attribute(to, name, &value) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error).context("cannot set the attributes of", path),
        }
    }
    Ok(())
}
