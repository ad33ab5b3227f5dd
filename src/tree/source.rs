//! Resolution of source paths beneath a held descriptor.
//!
//! A *location* is a path relative to the source's root, without leading or trailing slash; the root's is empty. It is
//! made of real directories: the tree never records a path through a symlink. So every resolution forbids symlinks
//! altogether (`RESOLVE_NO_SYMLINKS`), and a directory that somebody swaps for a link is an error, not a way out.
//!
//! The root's descriptor was opened before the mount exists, and so was that of whatever the mount is going to cover, if
//! that lies inside the source; through bind mounts it may do so at several places. Paths at or below the covered place
//! are resolved from its own descriptor: what is beneath the mount shows, and the mount never asks itself, for that could
//! wait for itself for ever. [`Source::base_of`] is the one place that decides this for a path, [`Source::entry_base`]
//! for a name in an open directory. The mount may come to lie elsewhere later (a directory above it is renamed, it is
//! bound to another place), so it is recognised by its device number too, by questions that send no request.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, makedev};
use rustix::io::{Errno, Result};

/// How often a resolution is tried again when renames elsewhere keep disturbing it (EAGAIN).
const ATTEMPTS: u32 = 16;

/// The kernel takes no path longer than 4096 bytes at once; deeper locations are walked in steps of at most this.
const LONGEST_STEP: usize = 4000;

/// File systems whose stat asks nobody else, by their numbers in linux/magic.h: ext2 to ext4, XFS, Btrfs, tmpfs, F2FS,
/// SquashFS and EROFS. What is missing here costs one system call more for each name.
const LOCAL_FILE_SYSTEMS: [rustix::fs::FsWord; 7] = [
    0xEF53,
    0x5846_5342,
    0x9123_683E,
    0x0102_1994,
    0xF2F5_2010,
    0x7371_7368,
    0xE0F5_E1E2,
];

/// For about so long a file is waited for that another program has a lease on. The kernel gives that program 45 s, but who
/// waits here keeps others waiting too.
const LEASE: Duration = Duration::from_millis(500);

/// Whether it is waited for a file that another program has a lease on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It is an error (EAGAIN) at once: of a listing's many files none is worth waiting for.
    None,
    /// It is, for a while.
    ForLeases,
}

/// The source: its root, and what the mount covers of it.
#[derive(Debug)]
pub(super) struct Source {
    root: OwnedFd,
    /// The device it lies on.
    device: u64,
    /// Whether its file system answers from this machine alone.
    is_local: bool,
    covered: Vec<Covered>,
    /// The mount's own device number, once it is mounted.
    mounted: OnceLock<u64>,
    /// The root as the user named it, for messages.
    shown_path: PathBuf,
}

/// What the mount covers of its own source.
#[derive(Debug)]
pub(super) struct Covered {
    location: Vec<u8>,
    held: OwnedFd,
}

/// An open directory of the source.
#[derive(Debug)]
pub(super) struct Directory {
    descriptor: OwnedFd,
    location: Vec<u8>,
}

impl Covered {
    /// Holds the directory at `location` beneath `root`; to be called before it is covered.
    pub(super) fn directory(root: &Path, location: &[u8]) -> Result<Self> {
        let path = root.join(std::ffi::OsStr::from_bytes(location));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            location: location.to_vec(),
            held: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// Holds the file `name` in `root`; to be called before it is covered. It is held readable, because a file's path
    /// descriptor cannot be opened again without a path.
    pub(super) fn file(root: &Path, name: &[u8]) -> Result<Self> {
        let path = root.join(std::ffi::OsStr::from_bytes(name));
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(Self {
            location: name.to_vec(),
            held: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }
}

impl Directory {
    /// Where it lies.
    pub(super) fn location(&self) -> &[u8] {
        &self.location
    }

    /// What it is.
    pub(super) fn stat(&self) -> Result<Statx> {
        stat_descriptor(&self.descriptor)
    }

    /// Calls `each` with name, file type and inode number of every entry, `.` and `..` left out. The directory must have
    /// been opened by [`Source::readable_directory`].
    pub(super) fn for_each(
        &self,
        mut each: impl FnMut(&[u8], rustix::fs::FileType, u64),
    ) -> Result<()> {
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = rustix::fs::RawDir::new(&self.descriptor, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                each(name, entry.file_type(), entry.ino());
            }
        }
        Ok(())
    }
}

impl Source {
    /// Holds the directory `root`; to be called before the mount exists.
    pub(super) fn open(root: &Path, shown_path: PathBuf, covered: Vec<Covered>) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        let file_system = rustix::fs::fstatfs(&root)?.f_type;
        let is_local = LOCAL_FILE_SYSTEMS.contains(&file_system);
        let device = device_of(&stat_descriptor(&root)?);
        Ok(Self {
            root,
            device,
            is_local,
            covered,
            mounted: OnceLock::new(),
            shown_path,
        })
    }

    /// The device of the root.
    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// Whether entries of a directory on this device are listed with the numbers that their files have: stacked and remote file
    /// systems may list others.
    pub(super) fn lists_files_numbers(&self, device: u64) -> bool {
        self.is_local_device(device)
    }

    /// Whether a directory on this device has one time of birth for as long as it lives: on a stacked file system it has another as
    /// soon as it is copied up, which making a file in it is enough for.
    pub(super) fn keeps_births(&self, device: u64) -> bool {
        self.is_local_device(device)
    }

    fn is_local_device(&self, device: u64) -> bool {
        self.is_local && device == self.device
    }

    /// Takes notice of the mount's device number.
    pub(super) fn mounted_as(&self, device: u64) {
        // It is mounted once.
        let _ = self.mounted.set(device);
    }

    /// Whether `name` at `base` is the mount itself; an empty name stands for the descriptor's own file.
    fn is_the_mount(&self, base: BorrowedFd<'_>, name: &[u8]) -> bool {
        let Some(&mounted) = self.mounted.get() else {
            return false;
        };
        // Without synchronisation the kernel answers from what it knows.
        let flags = AtFlags::SYMLINK_NOFOLLOW
            | AtFlags::NO_AUTOMOUNT
            | AtFlags::EMPTY_PATH
            | AtFlags::STATX_DONT_SYNC;
        rustix::fs::statx(base, name, flags, StatxFlags::TYPE)
            .is_ok_and(|found| device_of(&found) == mounted)
    }

    /// What the mount covers, wherever it lies by now.
    fn beneath_the_mount(&self) -> Result<BorrowedFd<'_>> {
        let covered = self.covered.first().ok_or(Errno::NOENT)?;
        Ok(covered.held.as_fd())
    }

    /// The source's file system, as it is beneath the mount.
    pub(super) fn statfs(&self) -> Result<rustix::fs::StatVfs> {
        rustix::fs::fstatvfs(&self.root)
    }

    /// The path of `name` in the directory at `location` as the user knows it, for messages; an empty name stands for
    /// the directory.
    pub(super) fn path(&self, location: &[u8], name: &[u8]) -> PathBuf {
        let joined = join(location, name);
        if joined.is_empty() {
            return self.shown_path.clone();
        }
        self.shown_path.join(std::ffi::OsStr::from_bytes(&joined))
    }

    /// Opens a directory for looking at its entries one by one.
    pub(super) fn directory(&self, location: &[u8]) -> Result<Directory> {
        self.open_directory(location, OFlags::PATH)
    }

    /// Opens a directory for listing it as well, which leaves no access time where the system allows that, as with
    /// [`Source::open_unnoticed`].
    pub(super) fn readable_directory(&self, location: &[u8]) -> Result<Directory> {
        match self.open_directory(location, OFlags::RDONLY | OFlags::NOATIME) {
            Err(Errno::PERM) => self.open_directory(location, OFlags::RDONLY),
            opened => opened,
        }
    }

    fn open_directory(&self, location: &[u8], access: OFlags) -> Result<Directory> {
        let (base, mut rest) = self.base_of(location);
        let mut walked: Option<OwnedFd> = None;
        while let Some(step) = rest.get(..LONGEST_STEP) {
            let slash = step.iter().rposition(|&byte| byte == b'/');
            let slash = slash.ok_or(Errno::NAMETOOLONG)?;
            let (step, further) = rest.split_at(slash);
            let from = walked.as_ref().map_or(base, AsFd::as_fd);
            walked = Some(self.walk(from, step, OFlags::PATH | OFlags::DIRECTORY)?);
            rest = further.get(1..).unwrap_or_default();
        }
        let rest = if rest.is_empty() { b"." } else { rest };
        let from = walked.as_ref().map_or(base, AsFd::as_fd);
        Ok(Directory {
            descriptor: self.walk(from, rest, access | OFlags::DIRECTORY)?,
            location: location.to_vec(),
        })
    }

    /// Opens what lies at `path` beneath `base`. If other mounts are on the way, it looks at each whether it is ours.
    fn walk(&self, base: BorrowedFd<'_>, path: &[u8], access: OFlags) -> Result<OwnedFd> {
        match open_beneath(base, path, access, ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) => {}
            opened => return opened,
        }
        let mut names = path.split(|&byte| byte == b'/').peekable();
        let mut walked: Option<OwnedFd> = None;
        while let Some(name) = names.next() {
            let from = walked.as_ref().map_or(base, AsFd::as_fd);
            let access = match names.peek() {
                Some(_) => OFlags::PATH | OFlags::DIRECTORY,
                None => access,
            };
            let (from, name): (_, &[u8]) = match self.is_the_mount(from, name) {
                true => (self.beneath_the_mount()?, b"."),
                false => (from, name),
            };
            walked = Some(open_beneath(from, name, access, ResolveFlags::empty())?);
        }
        walked.ok_or(Errno::NOENT)
    }

    /// The descriptor a location is resolved from, and what remains of it: the covered place's own at and below that,
    /// the root's elsewhere.
    fn base_of<'a>(&'a self, location: &'a [u8]) -> (BorrowedFd<'a>, &'a [u8]) {
        for covered in &self.covered {
            if let Some(rest) = location.strip_prefix(&*covered.location) {
                match rest.split_first() {
                    None => return (covered.held.as_fd(), rest),
                    Some((b'/', below)) => return (covered.held.as_fd(), below),
                    Some(_) => {}
                }
            }
        }
        (self.root.as_fd(), location)
    }

    /// The same for `name` in an open directory: an empty name stands for the descriptor's own file.
    fn entry_base<'a>(
        &'a self,
        directory: &'a Directory,
        name: &'a [u8],
    ) -> Result<(BorrowedFd<'a>, &'a [u8])> {
        if let Some(covered) = self.covered_at(directory, name) {
            return Ok((covered.held.as_fd(), b""));
        }
        let base = directory.descriptor.as_fd();
        match self.is_the_mount(base, name) {
            true => Ok((self.beneath_the_mount()?, b"")),
            false => Ok((base, name)),
        }
    }

    /// What is covered at `name` in an open directory.
    fn covered_at(&self, directory: &Directory, name: &[u8]) -> Option<&Covered> {
        let is_here = |covered: &&Covered| join(&directory.location, name) == covered.location;
        self.covered.iter().find(is_here)
    }

    /// Opens the entry `name` of an open directory, which is the covered place's where there is none of that name.
    fn open_entry(&self, directory: &Directory, name: &[u8], access: OFlags) -> Result<OwnedFd> {
        if self.covered_at(directory, name).is_none() && !name.is_empty() {
            let base = directory.descriptor.as_fd();
            // Whatever lies on the directory's own file system is not the mount.
            match open_beneath(base, name, access, ResolveFlags::NO_XDEV) {
                Err(Errno::XDEV) => {}
                opened => return opened,
            }
        }
        let (base, name) = self.entry_base(directory, name)?;
        if name.is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(base, 0);
        }
        open_beneath(base, name, access, ResolveFlags::empty())
    }

    /// What `name` in `directory` is, itself and not what it may link to; `None` if there is no such name.
    pub(super) fn stat(&self, directory: &Directory, name: &[u8]) -> Result<Option<Statx>> {
        if self.is_local && self.covered_at(directory, name).is_none() {
            // Asked like this the mount answers without a request, and a local file system as ever.
            let base = directory.descriptor.as_fd();
            match stat_with(base, name, AtFlags::STATX_DONT_SYNC) {
                Ok(found) if device_of(&found) == self.device => return Ok(Some(found)),
                Err(Errno::NOENT) => return Ok(None),
                Ok(_) | Err(_) => {}
            }
        }
        let found = self.entry_base(directory, name);
        match found.and_then(|(base, name)| stat_at(base, name)) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A descriptor that stands for `name` in `directory`, whatever it is, and can neither be read nor followed.
    pub(super) fn hold(&self, directory: &Directory, name: &[u8]) -> Result<OwnedFd> {
        self.open_entry(directory, name, OFlags::PATH)
    }

    /// The same for the directory itself.
    pub(super) fn hold_directory(&self, directory: &Directory) -> Result<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(&directory.descriptor, 0)
    }

    /// Opens the file `name` in `directory` for reading. It never waits for long, even if a pipe took the file's place.
    pub(super) fn open_file(&self, directory: &Directory, name: &[u8]) -> Result<File> {
        self.open_for_reading(directory, name, OFlags::empty(), Patience::ForLeases)
    }

    /// Opens the file `name` in `directory` to look at it without leaving an access time, where the system allows that:
    /// to its owner and to the administrator.
    pub(super) fn open_unnoticed(
        &self,
        directory: &Directory,
        name: &[u8],
        patience: Patience,
    ) -> Result<File> {
        match self.open_for_reading(directory, name, OFlags::NOATIME, patience) {
            Err(Errno::PERM) => self.open_for_reading(directory, name, OFlags::empty(), patience),
            opened => opened,
        }
    }

    fn open_for_reading(
        &self,
        directory: &Directory,
        name: &[u8],
        further: OFlags,
        patience: Patience,
    ) -> Result<File> {
        let access = OFlags::RDONLY | OFlags::NONBLOCK | further;
        let mut pause = Duration::from_millis(1);
        loop {
            match self.open_entry(directory, name, access) {
                // Whoever has a lease was told that somebody wants the file, and is about to let it go.
                Err(Errno::AGAIN) if patience == Patience::ForLeases && pause < LEASE => {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                opened => return Ok(opened?.into()),
            }
        }
    }

    /// The target of the link `name` in `directory`.
    pub(super) fn read_link(&self, directory: &Directory, name: &[u8]) -> Result<Vec<u8>> {
        let (base, name) = self.entry_base(directory, name)?;
        Ok(rustix::fs::readlinkat(base, name, Vec::new())?.into_bytes())
    }
}

/// `name` in the directory at `location`, as a location.
pub(super) fn join(location: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if location.is_empty() || name.is_empty() {
        b""
    } else {
        b"/"
    };
    [location, slash, name].concat()
}

/// What an open file is.
pub(super) fn stat_descriptor(descriptor: impl AsFd) -> Result<Statx> {
    stat_at(descriptor.as_fd(), b"")
}

fn stat_at(base: BorrowedFd<'_>, name: &[u8]) -> Result<Statx> {
    // No forced synchronisation, so that a network source answers as stat would.
    stat_with(base, name, AtFlags::empty())
}

fn stat_with(base: BorrowedFd<'_>, name: &[u8], synchronisation: AtFlags) -> Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(base, name, flags | synchronisation, wanted)
}

fn device_of(found: &Statx) -> u64 {
    makedev(found.stx_dev_major, found.stx_dev_minor)
}

fn open_beneath(
    base: BorrowedFd<'_>,
    path: &[u8],
    access: OFlags,
    further: ResolveFlags,
) -> Result<OwnedFd> {
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve =
        further | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let mut attempt = 1;
    loop {
        match rustix::fs::openat2(base, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if attempt < ATTEMPTS => attempt += 1,
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;

    fn source(root: &Path, covered: Vec<Covered>) -> Source {
        Source::open(root, root.to_path_buf(), covered).unwrap()
    }

    #[test]
    fn a_directory_swapped_for_a_link_does_not_lead_outside() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let inside = tempfile::tempdir().unwrap();
        fs::create_dir(inside.path().join("a")).unwrap();
        let source = source(inside.path(), Vec::new());
        assert!(source.directory(b"a").is_ok());

        fs::remove_dir(inside.path().join("a")).unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("a")).unwrap();
        assert_eq!(source.directory(b"a").unwrap_err(), Errno::NOTDIR);
        assert_eq!(source.directory(b"a/secret").unwrap_err(), Errno::LOOP);
        let root = source.directory(b"").unwrap();
        assert_eq!(source.open_file(&root, b"a").unwrap_err(), Errno::LOOP);
        assert_eq!(source.directory(b"..").unwrap_err(), Errno::XDEV);
    }

    #[test]
    fn only_what_lies_at_or_below_the_covered_place_is_resolved_from_its_descriptor() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/in")).unwrap();
        fs::create_dir_all(root.path().join("a/inner")).unwrap();
        fs::write(root.path().join("a/in/file"), "beneath").unwrap();
        let covered = Covered::directory(root.path(), b"a/in").unwrap();
        let source = source(root.path(), vec![covered]);
        // The name is gone, the descriptor stays: whoever still finds it went through the descriptor.
        fs::rename(root.path().join("a/in"), root.path().join("elsewhere")).unwrap();

        let above = source.directory(b"a").unwrap();
        assert!(source.stat(&above, b"in").unwrap().is_some());
        assert!(source.stat(&above, b"inner").unwrap().is_some());
        assert!(source.stat(&above, b"i").unwrap().is_none());
        let inner = source.directory(b"a/in").unwrap();
        let mut text = String::new();
        let mut file = source.open_file(&inner, b"file").unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "beneath");
    }

    #[test]
    fn a_location_longer_than_the_kernels_longest_path_is_walked_in_steps() {
        let root = tempfile::tempdir().unwrap();
        let source = source(root.path(), Vec::new());
        let name = [b'n'; 255];
        let mut location = Vec::new();
        for _ in 0..20 {
            let directory = source.directory(&location).unwrap();
            rustix::fs::mkdirat(&directory.descriptor, &name[..], Mode::RWXU).unwrap();
            location = join(&location, &name);
        }
        assert!(location.len() > 4096);
        assert!(source.directory(&location).is_ok());
    }
}
