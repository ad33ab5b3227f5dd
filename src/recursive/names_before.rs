//! What was in a directory before files in it were replaced by what was made of them.
//!
//! A directory that is worked on in place gets its times back, for nobody but the job has changed it. If somebody else has,
//! their change must be seen by whoever goes by these times, a backup or a build. So the times are put back only if all that
//! is another entry now is a result of an entry that was there, and all that is gone has one. Entries are remembered as
//! hashes, for a directory may have millions. What came and went meanwhile is not noticed, and need not be.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::Dir;

use crate::pack::packed_name;
use crate::unpack::original_name;

/// See the module's description.
pub(super) struct NamesBefore {
    random: RandomState,
    /// Whether results are packed files, not unpacked ones.
    packs: bool,
    /// Of all names, in order.
    names: Vec<u64>,
    /// Of all names together with the inode that each had, in order.
    entries: Vec<u64>,
}

impl NamesBefore {
    /// What is in a directory now; `None` if it cannot be listed.
    pub(super) fn of(directory: &OwnedFd, packs: bool) -> Option<Self> {
        let mut before = Self {
            random: RandomState::new(),
            packs,
            names: Vec::new(),
            entries: Vec::new(),
        };
        for entry in Dir::read_from(directory).ok()? {
            let entry = entry.ok()?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            before.names.push(before.hash_of(name));
            before.entries.push(before.hash_of_entry(name, entry.ino()));
        }
        before.names.sort_unstable();
        before.entries.sort_unstable();
        Some(before)
    }

    /// Whether nothing was done in the directory since, but that files were replaced by their results.
    pub(super) fn has_only_results_since(&self, directory: &OwnedFd) -> bool {
        self.compare(directory).unwrap_or(false)
    }

    fn compare(&self, directory: &OwnedFd) -> rustix::io::Result<bool> {
        let mut names = Vec::new();
        let mut inputs = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let input = self.input_of(name).map(|input| self.hash_of(&input));
            let is_result = input.is_some_and(|input| contains(&self.names, input));
            if !is_result && !contains(&self.entries, self.hash_of_entry(name, entry.ino())) {
                return Ok(false);
            }
            names.push(self.hash_of(name));
            inputs.extend(input);
        }
        names.sort_unstable();
        inputs.sort_unstable();
        let mut gone = self.names.iter().filter(|&&name| !contains(&names, name));
        Ok(gone.all(|&name| contains(&inputs, name)))
    }

    /// The name of what the task makes such a result of.
    fn input_of(&self, result: &OsStr) -> Option<OsString> {
        match self.packs {
            true => original_name(Path::new(result)).map(PathBuf::into_os_string),
            false => Some(packed_name(Path::new(result)).into_os_string()),
        }
    }

    fn hash_of(&self, name: &OsStr) -> u64 {
        self.random.hash_one(name)
    }

    fn hash_of_entry(&self, name: &OsStr, inode: u64) -> u64 {
        self.random.hash_one((name, inode))
    }
}

fn contains(sorted: &[u64], hash: u64) -> bool {
    sorted.binary_search(&hash).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::open_directory;
    use std::fs;
    use std::path::PathBuf;

    /// Whether a directory of `x`, `y` and `y.warp` is said to have only results since, once that was done in it.
    fn after(packs: bool, change: impl FnOnce(&dyn Fn(&str) -> PathBuf)) -> bool {
        let own = tempfile::tempdir().unwrap();
        let at = |name: &str| own.path().join(name);
        for name in ["x", "y", "y.warp"] {
            fs::write(at(name), name).unwrap();
        }
        let flags = rustix::fs::OFlags::empty();
        let directory = open_directory(rustix::fs::CWD, own.path(), flags).unwrap();
        let before = NamesBefore::of(&directory, packs).unwrap();
        change(&at);
        before.has_only_results_since(&directory)
    }

    #[test]
    fn results_and_what_they_replaced_are_no_changes_of_others() {
        assert!(after(true, |_| {}));
        assert!(after(true, |at| {
            fs::write(at("x.warp"), "").unwrap();
            fs::remove_file(at("x")).unwrap();
        }));
        // Replaced by force.
        assert!(after(true, |at| {
            fs::write(at("new"), "").unwrap();
            fs::rename(at("new"), at("y.warp")).unwrap();
            fs::remove_file(at("y")).unwrap();
        }));
        assert!(after(false, |at| {
            fs::rename(at("y.warp"), at("y")).unwrap();
        }));
    }

    #[test]
    fn what_others_make_replace_and_remove_is_noticed() {
        assert!(!after(true, |at| fs::write(at("new"), "").unwrap()));
        assert!(!after(true, |at| fs::write(at("new.warp"), "").unwrap()));
        assert!(!after(true, |at| fs::remove_file(at("x")).unwrap()));
        assert!(!after(true, |at| {
            fs::write(at("new"), "").unwrap();
            fs::rename(at("new"), at("x")).unwrap();
        }));
        assert!(!after(false, |at| fs::remove_file(at("x")).unwrap()));
    }
}
