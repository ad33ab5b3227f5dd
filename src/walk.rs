//! A directory tree, walked depth first, in the order of names, without ever leaving it.
//!
//! Every directory is opened through its parent's descriptor and never through a symbolic link, so that nothing done to
//! the tree meanwhile leads the walk outside. A directory's names are read when it is entered: what is created in it later,
//! by the very job that walks, is not met. What a [`Selection`] leaves out is not met either. In memory are the names of the directories from the root to here.

mod descent;
mod selection;

pub(crate) use descent::Descent;
pub use selection::Selection;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

use crate::error::{Error, IoContext, Result};

/// A step of the walk.
#[derive(Debug)]
pub(crate) enum Step {
    /// A directory, before what is in it.
    Enter(Entry),
    /// The same, after what is in it.
    Leave(Entry),
    /// Anything else.
    Other(Entry),
}

/// Something in the tree.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The directory it is in; for a directory, the directory itself.
    pub(crate) directory: Arc<OwnedFd>,
    /// Its name there; empty for the root.
    pub(crate) name: OsString,
    /// Its path from the root; empty for the root.
    pub(crate) relative: PathBuf,
    /// Its path as the user would write it.
    pub(crate) path: PathBuf,
    /// What it was when it was met, not followed if a symbolic link.
    pub(crate) stat: Stat,
}

impl Entry {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// See the module's description.
pub(crate) struct Walk {
    root: PathBuf,
    levels: Descent<Level>,
    /// A directory not to be entered, by device and inode: where the output goes.
    except: Option<(u64, u64)>,
    selection: Selection,
    /// The device of the root.
    device: Option<u64>,
    begun: bool,
    /// Why there was no way back out of a directory.
    lost: Option<Error>,
}

struct Level {
    relative: PathBuf,
    name: OsString,
    stat: Stat,
    names: std::vec::IntoIter<OsString>,
}

impl Walk {
    /// A walk of the tree below `root`; `except` is the device and inode of a directory to leave out.
    pub(crate) fn new(root: &Path, except: Option<(u64, u64)>) -> Self {
        Self {
            root: root.to_owned(),
            levels: Descent::new(),
            except,
            selection: Selection::default(),
            device: None,
            begun: false,
            lost: None,
        }
    }

    /// The same walk of what is selected.
    pub(crate) fn selecting(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// Leaves the directory entered last, without what is left in it.
    pub(crate) fn leave(&mut self) -> Option<Entry> {
        let (directory, level, back) = self.levels.leave()?;
        let path = self.path_of(&level.relative);
        self.lost = back.map_err(|error| error.in_file(&path)).err();
        Some(Entry {
            directory,
            name: level.name,
            relative: level.relative,
            path,
            stat: level.stat,
        })
    }

    fn enter(
        &mut self,
        parent: impl std::os::fd::AsFd,
        name: &OsStr,
        relative: PathBuf,
        follow: bool,
    ) -> Result<Step> {
        let path = self.path_of(&relative);
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        let opened = match follow {
            true => rustix::fs::openat(parent, &self.root, flags, Mode::empty()),
            false => rustix::fs::openat(parent, name, flags, Mode::empty()),
        };
        let directory = opened.context("cannot open", &path)?;
        let stat = rustix::fs::fstat(&directory).context("cannot examine", &path)?;
        let root_device = *self.device.get_or_insert(stat.st_dev);
        let names = match self.selection.enters(stat.st_dev, root_device) {
            true => names_in(&directory).context("cannot list", &path)?,
            false => Vec::new(),
        };
        let directory = Arc::new(directory);
        let level = Level {
            relative: relative.clone(),
            name: name.to_owned(),
            stat,
            names: names.into_iter(),
        };
        self.levels
            .enter(directory.clone(), level)
            .context("cannot examine", &path)?;
        Ok(Step::Enter(Entry {
            directory,
            name: name.to_owned(),
            relative,
            path,
            stat,
        }))
    }

    fn path_of(&self, relative: &Path) -> PathBuf {
        match relative.as_os_str().is_empty() {
            true => self.root.clone(),
            false => self.root.join(relative),
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Result<Step>> {
        if !self.begun {
            self.begun = true;
            return Some(self.enter(CWD, OsStr::new(""), PathBuf::new(), true));
        }
        loop {
            if let Some(error) = self.lost.take() {
                return Some(Err(error));
            }
            let (directory, level) = self.levels.innermost()?;
            let Some(name) = level.names.next() else {
                return self.leave().map(|entry| Ok(Step::Leave(entry)));
            };
            let relative = level.relative.join(&name);
            let stat = rustix::fs::statat(&*directory, &name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = match stat {
                Ok(stat) => stat,
                // It was there when the names were read, and is not any more.
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => {
                    let path = self.path_of(&relative);
                    return Some(Err(error).context("cannot examine", &path));
                }
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if !self.selection.takes(&relative, kind) {
                continue;
            }
            if kind == FileType::Directory {
                if self.except == Some((stat.st_dev, stat.st_ino)) {
                    continue;
                }
                return Some(self.enter(&*directory, &name, relative, false));
            }
            return Some(Ok(Step::Other(Entry {
                path: self.path_of(&relative),
                directory,
                name,
                relative,
                stat,
            })));
        }
    }
}

/// The names in a directory, in order.
pub(crate) fn names_in(directory: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn steps(walk: Walk) -> Vec<String> {
        walk.map(|step| match step {
            Ok(Step::Enter(entry)) => format!("> {}", entry.relative.display()),
            Ok(Step::Leave(entry)) => format!("< {}", entry.relative.display()),
            Ok(Step::Other(entry)) => format!("- {}", entry.relative.display()),
            Err(error) => format!("! {error}"),
        })
        .collect()
    }

    #[test]
    fn everything_is_met_once_in_the_order_of_names_and_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "").unwrap();
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("b/deep")).unwrap();
        fs::create_dir(root.join("out")).unwrap();
        fs::write(root.join("out/x"), "").unwrap();
        fs::write(root.join("b/deep/file"), "").unwrap();
        fs::write(root.join("c"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("a")).unwrap();
        let out = rustix::fs::stat(root.join("out")).unwrap();
        let walk = Walk::new(root, Some((out.st_dev, out.st_ino)));
        assert_eq!(
            steps(walk),
            [
                "> ",
                "- a",
                "> b",
                "> b/deep",
                "- b/deep/file",
                "< b/deep",
                "< b",
                "- c",
                "< "
            ]
        );
    }

    #[test]
    fn a_missing_root_is_one_error() {
        let steps = steps(Walk::new(Path::new("/nonexistent/tree"), None));
        assert_eq!(steps.len(), 1);
        assert!(steps[0].starts_with("! /nonexistent/tree: cannot open"));
    }
}
