//! How what is new in a tree gets its names: files some at a time, once they are synced together.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::output::{FinishedFile, copy_attributes};
use crate::walk::Entry;

/// How many new files, links and directories are finished at once.
const MOST_DEFERRED: usize = 256;

/// What waits for new files to be synced.
pub(super) enum Deferred {
    Rename(FinishedFile),
    /// A name for a file that has one by then.
    Link {
        first: PathBuf,
        name: PathBuf,
        replace: bool,
    },
    /// The attributes of a directory, after all that changes its times: those of the entry, for the directory made at
    /// `target`.
    Leave {
        entry: Entry,
        target: PathBuf,
    },
}

/// What is to be done after the next sync, in order.
#[derive(Default)]
pub(super) struct Batch {
    deferred: Vec<Deferred>,
}

impl Batch {
    pub(super) fn push(&mut self, deferred: Deferred) {
        self.deferred.push(deferred);
    }

    pub(super) fn is_full(&self) -> bool {
        self.deferred.len() >= MOST_DEFERRED
    }

    /// Syncs the new files and does what waited for that; `fail` is told what could not be done.
    pub(super) fn settle(&mut self, mut fail: impl FnMut(&Error)) {
        let deferred = std::mem::take(&mut self.deferred);
        let directories: BTreeSet<PathBuf> = deferred
            .iter()
            .filter_map(|deferred| match deferred {
                Deferred::Rename(file) => Some(file.directory().to_owned()),
                Deferred::Link { .. } | Deferred::Leave { .. } => None,
            })
            .collect();
        if let Err(error) = sync_file_systems(&directories) {
            // Nothing gets a name that it may not be able to hold.
            return fail(&error);
        }
        for deferred in deferred {
            let done = match deferred {
                Deferred::Rename(file) => file.rename(),
                Deferred::Link {
                    first,
                    name,
                    replace,
                } => make_hard_link(&first, &name, replace),
                Deferred::Leave { entry, target } => leave(&entry, &target),
            };
            if let Err(error) = done {
                fail(&error);
            }
        }
        if let Err(error) = sync_file_systems(&directories) {
            fail(&error);
        }
    }
}

fn leave(entry: &Entry, target: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::openat(CWD, target, flags, Mode::empty()).context("cannot open", target)?;
    copy_attributes(&*entry.directory, &entry.stat, &directory, target)
}

/// Makes a directory, unless there is one; its attributes come when all is in it.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST)
            if std::fs::symlink_metadata(path).is_ok_and(|existing| existing.is_dir()) =>
        {
            Ok(())
        }
        Err(error) => Err(error).context("cannot make the directory", path),
    }
}

/// Writes down everything that the file systems of these directories have not written yet.
fn sync_file_systems(directories: &BTreeSet<PathBuf>) -> Result<()> {
    let mut synced = HashSet::new();
    for path in directories {
        let directory = File::open(path).context("cannot open", path)?;
        let stat = rustix::fs::fstat(&directory).context("cannot examine", path)?;
        if synced.insert(stat.st_dev) {
            rustix::fs::syncfs(&directory).context("cannot sync", path)?;
        }
    }
    Ok(())
}

/// Checks that a name is free, or makes it so.
pub(super) fn make_room(name: &Path, replace: bool) -> Result<()> {
    match std::fs::symlink_metadata(name) {
        Err(_) => Ok(()),
        Ok(existing) if replace && !existing.is_dir() => {
            std::fs::remove_file(name).context("cannot replace", name)
        }
        Ok(_) => Err(Error::new(ErrorKind::Exists).in_file(name)),
    }
}

pub(super) fn make_hard_link(first: &Path, name: &Path, replace: bool) -> Result<()> {
    make_room(name, replace)?;
    std::fs::hard_link(first, name).context("cannot make the link", name)
}
