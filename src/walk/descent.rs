//! The way down into a tree: the directories from the root to here, of which the innermost are open.
//!
//! A tree may be deeper than a process may have files open. A directory further out is closed and opened again on the way
//! back, as its child's parent, and taken only if it is the directory that was left.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::error::{Error, IoContext, Result};
use crate::machine::usable_descriptors;
use crate::place::{inode_of, open_directory};

/// How many directories are kept open, where a process may have as many files open as it usually may.
const MOST_OPEN: usize = 32;
/// Of the descriptors there may be, which share these may be; a job has two ways down.
const SHARE: usize = 16;

/// See the module's description. With every directory goes what its user has to remember of it.
#[derive(Debug)]
pub(crate) struct Descent<T> {
    levels: Vec<Level<T>>,
    /// How many directories are kept open.
    most_open: usize,
}

#[derive(Debug)]
struct Level<T> {
    /// There for the innermost, always.
    directory: Option<Arc<OwnedFd>>,
    inode: (u64, u64),
    content: T,
}

impl<T> Descent<T> {
    pub(crate) fn new() -> Self {
        Self {
            levels: Vec::new(),
            most_open: (usable_descriptors() / SHARE).clamp(2, MOST_OPEN),
        }
    }

    /// Goes into a directory of the innermost one, or into the root.
    pub(crate) fn enter(&mut self, directory: Arc<OwnedFd>, content: T) -> rustix::io::Result<()> {
        let inode = inode_of(&rustix::fs::fstat(&directory)?);
        self.levels.push(Level {
            directory: Some(directory),
            inode,
            content,
        });
        let outer = self.levels.len().checked_sub(self.most_open + 1);
        if let Some(outer) = outer.and_then(|outer| self.levels.get_mut(outer)) {
            outer.directory = None;
        }
        Ok(())
    }

    /// The innermost directory.
    pub(crate) fn innermost(&mut self) -> Option<(Arc<OwnedFd>, &mut T)> {
        let level = self.levels.last_mut()?;
        Some((level.directory.clone()?, &mut level.content))
    }

    /// Whether a directory is on the way, by its device and inode.
    pub(crate) fn leads_through(&self, inode: (u64, u64)) -> bool {
        self.levels.iter().any(|level| level.inode == inode)
    }

    /// Goes back out of the innermost directory. The result says whether there is a way on from there; if not, that was
    /// the last directory.
    pub(crate) fn leave(&mut self) -> Option<(Arc<OwnedFd>, T, Result<()>)> {
        let left = self.levels.pop()?;
        let directory = left.directory?;
        let back = match self.levels.last_mut() {
            Some(outer) if outer.directory.is_none() => reopen(&directory, outer.inode)
                .map(|reopened| outer.directory = Some(Arc::new(reopened))),
            _ => Ok(()),
        };
        if back.is_err() {
            self.levels.clear();
        }
        Some((directory, left.content, back))
    }
}

fn reopen(child: &OwnedFd, inode: (u64, u64)) -> Result<OwnedFd> {
    let parent = open_directory(child, "..", OFlags::NOFOLLOW)
        .map_err(|error| Error::io("cannot open the directory it is in", error.into()))?;
    let found = rustix::fs::fstat(&parent).context("cannot examine", std::path::Path::new(".."))?;
    if inode_of(&found) != inode {
        return Err(Error::unusable(
            "was moved meanwhile: the rest of the tree was not gone through",
        ));
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_directory_moved_elsewhere_meanwhile_is_no_way_back() {
        for moved in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let mut path = root.path().to_owned();
            let mut descent = Descent::new();
            for level in 0..MOST_OPEN + 3 {
                let directory = open_directory(rustix::fs::CWD, &path, OFlags::empty()).unwrap();
                descent.enter(Arc::new(directory), level).unwrap();
                path.push("d");
                fs::create_dir(&path).unwrap();
            }
            if moved {
                fs::create_dir(root.path().join("elsewhere")).unwrap();
                fs::rename(root.path().join("d/d/d"), root.path().join("elsewhere/d")).unwrap();
            }
            let mut ways = Vec::new();
            while let Some((_, level, back)) = descent.leave() {
                ways.push((level, back.is_ok()));
            }
            let last = if moved { (3, false) } else { (0, true) };
            assert_eq!(ways.last(), Some(&last));
        }
    }
}
