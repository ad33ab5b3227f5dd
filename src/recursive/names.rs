//! How what is new in a tree gets its names: files some at a time, once they are synced together.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::names_before::NamesBefore;
use super::plain::copy_link_attributes;
use super::synced::tells_of_all;
use super::{TreeSummary, marks};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::machine::usable_descriptors;
use crate::output::{NewFile, NewName, copy_attributes, narrow_access, times_of};
use crate::pack::{Summary, open_entry};
use crate::place::{Place, inode_of, open_beneath, open_directory};
use crate::walk::{Entry, names_in};

/// How many new files, links and directories are finished at once, at most.
const MOST_DEFERRED: usize = 256;
/// How long they are together from which on they are finished, in bytes: what took a while to make is not to wait for its name
/// until the job ends, or is killed.
const MOST_BYTES: u64 = 256 << 20;
/// Of how many directories it is remembered that something failed in them.
const MOST_REMEMBERED: usize = 4096;
/// How many of the descriptors there may be make room for one of them: each holds one or two directories and a file open,
/// and others need some too.
const DESCRIPTORS_FOR_ONE: usize = 6;

/// What waits for new files to be synced.
pub(super) enum Deferred {
    /// A new file, and what it is. `instead` is then removed: what an earlier run made of the same input.
    Rename {
        /// Held open, for with it goes the lock that tells another run that its temporary name is in use.
        file: Arc<File>,
        name: NewName,
        new: New,
        instead: Option<Place>,
    },
    /// A name for a file that has one by then; `instead` as above.
    Link {
        first: FirstTarget,
        target: Place,
        replace: bool,
        instead: Option<Place>,
    },
    /// The attributes of a directory, after all that changes its times.
    Leave(Leave),
}

/// What a new file is.
pub(super) enum New {
    Made(Summary),
    /// A copy of so many bytes.
    Copy(u64),
}

/// A directory to be given the attributes of the entry it was made for.
pub(super) struct Leave {
    pub(super) entry: Entry,
    pub(super) directory: Arc<OwnedFd>,
    pub(super) path: PathBuf,
    pub(super) renewal: Renewal,
    /// What was in it, if it is worked on in place.
    pub(super) before: Option<NamesBefore>,
}

/// What a directory is given when all that was made in it has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewal {
    /// The attributes of the one it was made for. The mark of what was made here stays, or goes.
    Attributes { keep_mark: bool },
    /// No more rights than that one gives, and its times.
    Narrower,
    /// The times it had itself, if files in it were replaced by what was made of them and nothing else was done.
    Times,
}

impl Renewal {
    /// The same for a directory in which something may be missing: its mark stays, so that the next run gives it its times again.
    pub(super) fn unfinished(self) -> Self {
        match self {
            Self::Attributes { .. } => Self::Attributes { keep_mark: true },
            Self::Narrower | Self::Times => self,
        }
    }
}

/// Where the first of a file's names in the target tree is: without a descriptor, for there may be any number of them.
#[derive(Clone)]
pub(super) struct FirstTarget {
    pub(super) root: Arc<OwnedFd>,
    /// Its directory below the root.
    pub(super) relative: PathBuf,
    pub(super) name: OsString,
    /// Which file it is.
    pub(super) inode: (u64, u64),
}

/// In which directories something has failed, so that it may be missing there.
#[derive(Default)]
struct Failures {
    directories: HashSet<PathBuf>,
    /// There are too many of them, or it was not said where.
    everywhere: bool,
}

impl Failures {
    fn note(&mut self, error: &Error) {
        match error.path().and_then(Path::parent) {
            Some(directory) if self.directories.len() < MOST_REMEMBERED => {
                self.directories.insert(directory.to_owned());
            }
            _ => self.everywhere = true,
        }
    }

    /// Whether something failed in a directory, of those there are or of those that are made.
    fn are_in(&self, leave: &Leave) -> bool {
        let named = |path: &Path| self.directories.contains(path);
        self.everywhere || named(&leave.path) || named(&leave.entry.path)
    }
}

/// What is to be done after the next sync, in order.
pub(super) struct Batch {
    deferred: Vec<Deferred>,
    /// How many there may be.
    most: usize,
    /// How long the new files are together.
    bytes: u64,
    /// A new file on each file system there are some on, by device, to sync all through.
    file_systems: Vec<(u64, Arc<File>)>,
    /// Whether each new file has to be asked itself for what the disk did not keep: a file system tells of it once, whichever
    /// batch it was of, and some do not tell at all.
    asks_each: bool,
    failures: Failures,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            deferred: Vec::new(),
            most: (usable_descriptors() / DESCRIPTORS_FOR_ONE).clamp(1, MOST_DEFERRED),
            bytes: 0,
            file_systems: Vec::new(),
            asks_each: false,
            failures: Failures::default(),
        }
    }
}

impl Batch {
    pub(super) fn push(&mut self, deferred: Deferred) {
        self.deferred.push(deferred);
    }

    /// Takes notice of what has failed otherwise.
    pub(super) fn note_failure(&mut self, error: &Error) {
        self.failures.note(error);
    }

    /// Lets a file get its name with the others.
    pub(super) fn push_file(
        &mut self,
        file: NewFile,
        new: New,
        instead: Option<Place>,
    ) -> Result<()> {
        let (file, name) = file.finish();
        let file = Arc::new(file);
        let stat = rustix::fs::fstat(&*file).context("cannot examine", &name.target().path)?;
        let mut devices = self.file_systems.iter();
        if !devices.any(|&(device, _)| device == stat.st_dev) {
            self.asks_each |= !tells_of_all(&file);
            self.file_systems.push((stat.st_dev, file.clone()));
        }
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        self.deferred.push(Deferred::Rename {
            file,
            name,
            new,
            instead,
        });
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.deferred.len() >= self.most || self.bytes >= MOST_BYTES
    }

    /// Syncs the new files and does what waited for that. What was done is counted; `fail` is told what was not.
    pub(super) fn settle(&mut self, summary: &mut TreeSummary, mut fail: impl FnMut(&Error)) {
        let deferred = std::mem::take(&mut self.deferred);
        self.bytes = 0;
        let file_systems = std::mem::take(&mut self.file_systems);
        let synced = sync(&file_systems);
        self.asks_each |= synced.is_err();
        // One place in each directory in which files got their names, and a file there.
        let mut named: Vec<(Place, Arc<File>)> = Vec::new();
        for deferred in deferred {
            let done = match deferred {
                Deferred::Leave(leave) => {
                    let has_all = !self.failures.are_in(&leave);
                    leave.finish_if(has_all)
                }
                Deferred::Rename {
                    file,
                    name,
                    new,
                    instead,
                } => {
                    // Nothing gets a name that it may not be able to hold.
                    let held = match self.asks_each {
                        true => file.sync_all().context("cannot sync", &name.target().path),
                        false => Ok(()),
                    };
                    let renamed = held.and_then(|()| name.rename());
                    renamed.and_then(|()| {
                        match new {
                            New::Made(made) => summary.count(&made),
                            New::Copy(size) => summary.count_copy(size),
                        }
                        let target = name.target();
                        let is_there = |(place, _): &(Place, _)| {
                            Arc::ptr_eq(&place.directory, &target.directory)
                        };
                        if !named.iter().any(is_there) {
                            named.push((target.clone(), file));
                        }
                        instead.as_ref().map_or(Ok(()), remove)
                    })
                }
                Deferred::Link {
                    first,
                    target,
                    replace,
                    instead,
                } => first
                    .link(target, replace)
                    .and_then(|name| name.rename())
                    .and_then(|()| {
                        summary.links += 1;
                        instead.as_ref().map_or(Ok(()), remove)
                    }),
            };
            if let Err(error) = done {
                self.failures.note(&error);
                fail(&error);
            }
        }
        if let Some((last, _)) = named.last()
            && let Err(error) =
                sync(&file_systems).context("cannot sync the directory of", &last.path)
        {
            fail(&error);
        }
        if self.asks_each {
            for (place, file) in &named {
                if let Err(error) = place.sync_directory(file) {
                    fail(&error);
                }
            }
        }
    }
}

/// Removes a name.
pub(super) fn remove(place: &Place) -> Result<()> {
    rustix::fs::unlinkat(&*place.directory, &place.name, AtFlags::empty())
        .context("cannot remove", &place.path)
}

/// Writes down everything that these file systems have not written yet.
fn sync(file_systems: &[(u64, Arc<File>)]) -> rustix::io::Result<()> {
    file_systems
        .iter()
        .try_for_each(|(_, file)| rustix::fs::syncfs(file))
}

impl Leave {
    /// As [`Leave::finish`], of a directory that `has_all` it is to have, or may lack something.
    fn finish_if(mut self, has_all: bool) -> Result<()> {
        if !has_all {
            self.renewal = self.renewal.unfinished();
        }
        self.finish()
    }

    pub(super) fn finish(self) -> Result<()> {
        let Entry {
            directory, stat, ..
        } = &self.entry;
        match self.renewal {
            Renewal::Attributes { keep_mark } => {
                if !keep_mark {
                    marks::unmark(&*self.directory);
                }
                copy_attributes(&**directory, stat, &*self.directory, &self.path)
            }
            Renewal::Narrower => {
                narrow_access(&**directory, stat, &*self.directory, &self.path)?;
                set_times(&self.directory, stat, &self.path)
            }
            Renewal::Times => {
                let now =
                    rustix::fs::fstat(&*self.directory).context("cannot examine", &self.path)?;
                let is_own = |before: &NamesBefore| before.has_only_results_since(&self.directory);
                if (now.st_mtime, now.st_mtime_nsec) == (stat.st_mtime, stat.st_mtime_nsec)
                    || !self.before.as_ref().is_some_and(is_own)
                {
                    return Ok(());
                }
                set_times(&self.directory, stat, &self.path)
            }
        }
    }
}

/// Gives a directory the times of another.
fn set_times(directory: &OwnedFd, stat: &Stat, path: &Path) -> Result<()> {
    match rustix::fs::futimens(directory, &times_of(stat)) {
        // Who may write to a directory need not own it.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error).context("cannot set the times of", path),
    }
}

impl FirstTarget {
    /// Makes a further name for the file.
    pub(super) fn link(&self, target: Place, replace: bool) -> Result<NewName> {
        let path = target.path.clone();
        let from = open_beneath(&self.root, &self.relative)
            .context("cannot open the directory of what is linked as", &path)?;
        // The lock is the file's, whatever its names: while it is held nobody removes the temporary one. Where the file
        // may not be read, it goes without.
        let lock = open_entry(&from, &self.name, &path).ok();
        let lock = lock.map(|(file, _)| file);
        if let Some(file) = &lock {
            let _ = rustix::fs::flock(file, FlockOperation::NonBlockingLockShared);
        }
        let (link, ()) = NewName::make(target, replace, |directory, name| {
            rustix::fs::linkat(&from, &self.name, directory, name, AtFlags::empty())
        })?;
        let link = link.locked_by(lock);
        let (directory, name) = link.temporary();
        let made = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .context("cannot examine", &path)?;
        if inode_of(&made) != self.inode {
            let why = "what it was to be linked with was replaced meanwhile; try again";
            return Err(Error::unusable(why).in_file(&path));
        }
        Ok(link)
    }
}

/// Makes a symbolic link with the attributes of another.
pub(super) fn make_symlink(
    text: &std::ffi::CStr,
    stat: &Stat,
    target: Place,
    replace: bool,
) -> Result<()> {
    let (link, ()) = NewName::make(target, replace, |directory, name| {
        rustix::fs::symlinkat(text, directory, name)
    })?;
    let (directory, name) = link.temporary();
    copy_link_attributes(stat, directory, name, &link.target().path)?;
    link.rename()
}

/// Makes a directory, unless there is one, and opens it with such flags; the second says whether it is the new one. Its
/// attributes come when all is in it.
pub(super) fn make_directory(
    parent: impl AsFd,
    name: &std::ffi::OsStr,
    path: &std::path::Path,
    flags: OFlags,
    whose: Whose,
) -> Result<(OwnedFd, bool)> {
    let made = match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error).context("cannot make the directory", path),
    };
    match open_directory(&parent, name, flags) {
        Ok(directory) => {
            let is_new = made && is_as_made(&directory, whose).context("cannot examine", path)?;
            Ok((directory, is_new))
        }
        Err(Errno::NOTDIR | Errno::LOOP) => Err(Error::new(ErrorKind::Unusable(
            "is in the way: a directory is to have this name".to_owned(),
        ))
        .in_file(path)),
        Err(error) => Err(error).context("cannot open", path),
    }
}

/// Whose a new directory may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    /// Anybody's: the root of a tree that goes where the user says.
    Any,
    /// His whom the job runs as, or else this user's: where owners are not kept as they are given, on FAT or by a server that maps them, a new one
    /// has the owner that the tree's root has.
    OursOr(u32),
}

impl Whose {
    pub(super) fn is(self, owner: u32) -> bool {
        match self {
            Self::Any => true,
            Self::OursOr(other) => owner == geteuid().as_raw() || owner == other,
        }
    }
}

/// Whether a directory is as one that was just made here. Who may make names beside it may have put another in its place, and what
/// is new is given the owner and the mode of a directory of the tree: it must be empty, and no third person's.
pub(super) fn is_as_made(directory: &OwnedFd, whose: Whose) -> rustix::io::Result<bool> {
    if !whose.is(rustix::fs::fstat(directory)?.st_uid) {
        return Ok(false);
    }
    match names_in(directory) {
        Ok(names) => Ok(names.is_empty()),
        // Where it may be made and not be listed, nobody else has made anything in it either.
        Err(Errno::ACCESS | Errno::BADF) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Task, TreeOptions, earlier};
    use super::*;
    use crate::pack::PackOptions;

    /// What there is in a directory after another run of the same job began there.
    fn names_left(directory: &OwnedFd) -> Vec<OsString> {
        let (options, tree) = (PackOptions::default(), TreeOptions::default());
        earlier::remove_leftovers(Task::Pack(&options, &tree), directory, directory);
        names_in(directory).unwrap()
    }

    #[test]
    fn what_waits_for_its_name_is_not_removed_by_another_run() {
        let own = tempfile::tempdir().unwrap();
        for name in ["x", "y"] {
            std::fs::write(own.path().join(name), "input").unwrap();
        }
        let target = Place::of(&own.path().join("x.warp")).unwrap();
        let stat = rustix::fs::stat(own.path().join("x")).unwrap();
        let directory = target.directory.clone();
        let mut batch = Batch::default();
        for name in ["x.warp", "y.warp"] {
            let target = Place {
                name: name.into(),
                ..target.clone()
            };
            let new = NewFile::create(target, true, Some(&stat)).unwrap();
            batch.push_file(new, New::Copy(5), None).unwrap();
        }
        assert_eq!(names_left(&directory).len(), 4);
        batch.settle(&mut TreeSummary::default(), |error| panic!("{error}"));
        assert_eq!(names_left(&directory), ["x", "x.warp", "y", "y.warp"]);

        let first = FirstTarget {
            root: directory.clone(),
            relative: PathBuf::new(),
            name: "x.warp".into(),
            inode: inode_of(&target.stat().unwrap()),
        };
        let link = first.link(target, true).unwrap();
        assert_eq!(names_left(&directory).len(), 5);
        drop(link);
        assert_eq!(names_left(&directory), ["x", "x.warp", "y", "y.warp"]);
    }
}
