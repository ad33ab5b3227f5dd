//! The directory a cache lies in, and the files in it.
//!
//! The user names a directory; the cache keeps to one of its own in there, of mode 0700, so that whatever else there is stays
//! untouched, and a later layout can lie beside this one. Both have to belong to the user the process runs as, and nobody
//! else may write to the one or even look into the other. The directory is held by its descriptor, what is in it is named from
//! there, no link is followed, and only regular files of our names, of our user and without another name are believed,
//! counted and removed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};
use crate::place::allocated;

/// What our directory is called in the user's; the number is the layout's.
const OWN: &str = "warpfs-cache-1";
const INDEX: &str = "index";
/// An index that is being made.
const NEW_INDEX: &str = "index.new";
/// Held locked by who replaces the index or gives segments up.
const LOCK: &str = "lock";
const SUFFIX: &str = ".segment";
/// Tells programs that make backups to leave this out (bford.info/cachedir).
const TAG: &str = "CACHEDIR.TAG";
const TAG_CONTENTS: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
    # warpfs keeps compressed chunks of remote files here. All of it may be removed at any time.\n";

/// No segment gets this number, or one behind it, however many there will be.
const END_OF_NUMBERS: u64 = 1 << 62;

/// How long to wait for another process to let the lock go, which it holds for fractions of a second.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Directory {
    own: OwnedFd,
    user: u32,
}

/// A lock that is let go when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: OwnedFd,
}

/// What is in the directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The segments' numbers and the room they take on the disk, in bytes, the oldest first.
    pub(super) segments: Vec<(u64, u64)>,
    /// The room that all else of ours takes, in bytes.
    pub(super) beside: u64,
}

impl Listing {
    /// The room all of it takes on the disk, in bytes.
    pub(super) fn used(&self) -> u64 {
        let segments = self.segments.iter().map(|&(_, used)| used);
        segments.fold(self.beside, u64::saturating_add)
    }

    /// The highest number of a segment, or 0.
    pub(super) fn newest(&self) -> u64 {
        self.segments.last().map_or(0, |&(number, _)| number)
    }

    /// The lowest number of a segment.
    pub(super) fn oldest(&self) -> u64 {
        self.segments
            .first()
            .map_or(u64::MAX, |&(number, _)| number)
    }
}

/// Opens the directory the user gave, and makes it if it is not there. The inner error is a disk's that is full or
/// read-only.
///
/// # Errors
/// There can be none, it is somebody else's, or others may write to it.
pub(super) fn open_place(place: &Path) -> Result<io::Result<OwnedFd>> {
    match rustix::fs::mkdir(place, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(_) if place.is_dir() => {}
        Err(error) if is_disk_s(error) => return Ok(Err(error.into())),
        Err(error) => {
            return Err(error).context("cannot make a directory for the disk cache", place);
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let outer = rustix::fs::openat(CWD, place, flags, Mode::empty())
        .context("cannot open the disk cache's directory", place)?;
    check(&outer, place, Mode::WGRP | Mode::WOTH, "write to it")?;
    Ok(Ok(outer))
}

/// Whether a disk that is full or read-only is all there is to blame.
fn is_disk_s(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT | Errno::ROFS)
}

/// Refuses a directory of somebody else's, and one that others have any of these rights to.
fn check(directory: &OwnedFd, path: &Path, refused: Mode, right: &str) -> Result<()> {
    let found = rustix::fs::fstat(directory).context("cannot look at", path)?;
    let user = rustix::process::geteuid().as_raw();
    let refuse = |why: String| Err(Error::unusable(why).in_file(path));
    if found.st_uid != user {
        return refuse(format!(
            "the disk cache's directory belongs to user {}, and this is user {user}: give it one of its own",
            found.st_uid
        ));
    }
    let mode = Mode::from_raw_mode(found.st_mode);
    if mode.intersects(refused) {
        return refuse(format!(
            "other users may {right} (mode {:04o}), which a disk cache's directory must not let them: give it one of its own, \
             such as {}",
            found.st_mode & 0o7777,
            path.join("warpfs-cache").display()
        ));
    }
    Ok(())
}

impl Directory {
    /// Opens our directory in the user's, and makes it if it is not there. The inner error is a disk's that is full or
    /// read-only.
    ///
    /// # Errors
    /// It is somebody else's or no directory, or others may look into it.
    pub(super) fn open_in(outer: &OwnedFd, place: &Path) -> Result<io::Result<Self>> {
        let path = place.join(OWN);
        match rustix::fs::mkdirat(outer, OWN, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) if is_disk_s(error) => return Ok(Err(error.into())),
            Err(error) => return Err(error).context("cannot make", &path),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let own = match rustix::fs::openat(outer, OWN, flags, Mode::empty()) {
            // Read-only, and never used.
            Err(Errno::NOENT) => return Ok(Err(Errno::ROFS.into())),
            Err(error @ (Errno::LOOP | Errno::NOTDIR)) => {
                let why = format!("is in the disk cache's way ({error}): remove it");
                return Err(Error::unusable(why).in_file(&path));
            }
            other => other.context("cannot open", &path)?,
        };
        check(&own, &path, Mode::RWXG | Mode::RWXO, "look into it")?;
        let directory = Self {
            own,
            user: rustix::process::geteuid().as_raw(),
        };
        // Backups are none the worse for a cache in them.
        let _ = directory.write_tag();
        Ok(Ok(directory))
    }

    fn write_tag(&self) -> io::Result<()> {
        let file = self.open_file(TAG, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        io::Write::write_all(&mut &file, TAG_CONTENTS)
    }

    /// Opens a file of ours, for our user alone if it is made.
    fn open_file(&self, name: &str, flags: OFlags) -> rustix::io::Result<File> {
        // What looks like ours and is a pipe must not be waited for.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&self.own, name, flags, mode).map(File::from)
    }

    /// As [`Directory::open_file`]; `None` for what is not there or not ours.
    fn open_ours(&self, name: &str, flags: OFlags) -> io::Result<Option<File>> {
        match self.open_file(name, flags) {
            Ok(file) if self.is_ours(&rustix::fs::fstat(&file)?) => Ok(Some(file)),
            Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ISDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn is_ours(&self, found: &Stat) -> bool {
        FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && found.st_uid == self.user
            && found.st_nlink <= 1
    }

    /// Opens a segment to read it, if it is there.
    pub(super) fn open_segment(&self, number: u64) -> io::Result<Option<File>> {
        self.open_ours(&segment_name(number), OFlags::RDONLY)
    }

    /// Opens a segment to append to it and locks it; `None` if it is not there, or somebody else appends to it.
    pub(super) fn take_segment(&self, number: u64) -> io::Result<Option<File>> {
        let file = self.open_ours(&segment_name(number), OFlags::RDWR)?;
        Ok(file.filter(try_lock))
    }

    /// Makes a segment and locks it; `None` if there is one of this number.
    pub(super) fn make_segment(&self, number: u64) -> io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        match self.open_file(&segment_name(number), flags) {
            Ok(file) => Ok(Some(file).filter(try_lock)),
            Err(Errno::EXIST) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a segment, if it is there and ours. Who reads it goes on.
    pub(super) fn remove_segment(&self, number: u64) -> io::Result<()> {
        let name = segment_name(number);
        let found = rustix::fs::statat(&self.own, &name, AtFlags::SYMLINK_NOFOLLOW);
        let removed = match found {
            Ok(found) if self.is_ours(&found) => {
                rustix::fs::unlinkat(&self.own, &name, AtFlags::empty())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks at everything there: as many calls as there are segments.
    pub(super) fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing {
            beside: allocated(&rustix::fs::fstat(&self.own)?),
            ..Listing::default()
        };
        for entry in Dir::read_from(&self.own)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let number = segment_number(name);
            if number.is_none() && ![INDEX, NEW_INDEX, LOCK, TAG].contains(&name) {
                continue;
            }
            let found = rustix::fs::statat(&self.own, name, AtFlags::SYMLINK_NOFOLLOW);
            match (number, found) {
                (_, Ok(found)) if !self.is_ours(&found) => {}
                (Some(number), Ok(found)) => listing.segments.push((number, allocated(&found))),
                (None, Ok(found)) => listing.beside += allocated(&found),
                // It has just been removed.
                (_, Err(Errno::NOENT)) => {}
                (_, Err(error)) => return Err(error.into()),
            }
        }
        listing.segments.sort_unstable();
        Ok(listing)
    }

    /// The bytes that can still be written to the disk, and the file system's size in bytes.
    pub(super) fn disk(&self) -> io::Result<(u64, u64)> {
        let found = rustix::fs::fstatvfs(&self.own)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok((bytes(found.f_bavail), bytes(found.f_blocks)))
    }

    /// Opens the index, for reading alone if that is all there is to be had.
    pub(super) fn open_index(&self) -> io::Result<Option<File>> {
        match self.open_ours(INDEX, OFlags::RDWR) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                self.open_ours(INDEX, OFlags::RDONLY)
            }
            other => other,
        }
    }

    /// Makes an index under another name, instead of one that was not finished. Wants the lock.
    pub(super) fn create_index(&self) -> io::Result<File> {
        match rustix::fs::unlinkat(&self.own, NEW_INDEX, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(self.open_file(NEW_INDEX, flags)?)
    }

    /// Puts the index that was made in place. Wants the lock.
    pub(super) fn publish_index(&self) -> io::Result<()> {
        Ok(rustix::fs::renameat(
            &self.own, NEW_INDEX, &self.own, INDEX,
        )?)
    }

    /// The cache's lock, if nobody has it.
    pub(super) fn lock(&self) -> io::Result<Option<Lock>> {
        let file = self.open_file(LOCK, OFlags::RDWR | OFlags::CREATE)?;
        let locked = try_lock(&file);
        Ok(locked.then(|| Lock { _file: file.into() }))
    }

    /// The cache's lock, unless somebody holds it for long.
    pub(super) fn lock_in_time(&self) -> io::Result<Option<Lock>> {
        let begin = Instant::now();
        loop {
            if let Some(lock) = self.lock()? {
                return Ok(Some(lock));
            }
            if begin.elapsed() >= LOCK_PATIENCE {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same directory, once more.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self {
            own: self.own.try_clone()?,
            user: self.user,
        })
    }

    /// Whether somebody has removed it.
    pub(super) fn is_removed(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.own)?.st_nlink == 0)
    }
}

fn try_lock(file: &impl AsFd) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn segment_name(number: u64) -> String {
    format!("{number:016x}{SUFFIX}")
}

/// The number in a segment's name, if it is one exactly.
fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == name && number < END_OF_NUMBERS).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_segments_own_name_is_one() {
        assert_eq!(segment_number("00000000000000ab.segment"), Some(0xab));
        for name in [
            "ffffffffffffffff.segment",
            "ab.segment",
            "00000000000000AB.segment",
            "+0000000000000ab.segment",
            "000000000000000ab.segment",
            "00000000000000ab.segment~",
            "00000000000000ab",
        ] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }
}
