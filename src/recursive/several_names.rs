//! Files of several names: packed or unpacked once, and linked as often as their names are met.
//!
//! Removing one of several names frees nothing, so a job that removes its inputs has to know whether it meets them all.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rustix::fs::Stat;

use super::names::{Deferred, FirstTarget};
use super::{Outcome, Progress, Tree, Work};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::output::NewFile;
use crate::pack::open_entry;
use crate::place::{Place, inode_of, is_same_content, is_same_state};
use crate::walk::{Step, Walk};

/// What a further name of the same file is to be linked with.
pub(super) struct FirstName {
    /// The state the file was worked on in; where its names are removed, the state that removing the last one left it in.
    stat: Stat,
    target: FirstTarget,
    made: bool,
}

impl Tree<'_> {
    /// A file that is large or has several names.
    pub(super) fn take_file(&self, work: &Work, progress: &mut Progress) -> Result<()> {
        let entry = &work.entry;
        if let Some(first) = progress.names.get(&inode_of(&entry.stat))
            && work.source().stat().is_ok_and(|now| {
                inode_of(&now) == inode_of(&entry.stat) && is_same_content(&first.stat, &now)
            })
        {
            let name = match first.made {
                true => self.task.name(Path::new(&entry.name)),
                false => Some(PathBuf::from(&entry.name)),
            };
            let target = name.map(|name| self.place(work, name));
            // What is in the way of removing an input may be what an earlier run made of it.
            let is_free = |target: &Place| {
                !self.task.removes() || self.task.replaces() || target.stat().is_err()
            };
            let is_taken = first.made && self.is_name_taken(entry);
            if let Some(target) = target.filter(is_free).filter(|_| !is_taken) {
                if first.made {
                    self.check_own_name(work)?;
                }
                match target.stat() {
                    Ok(found) if inode_of(&found) == first.target.inode && !self.task.removes() => {
                        progress.summary.up_to_date += 1;
                        return Ok(());
                    }
                    _ => {}
                }
                if first.made {
                    self.check_is_no_input(&target)?;
                }
                let replace = self.may_replace(work, &target, first.made);
                if first.made && self.task.removes() {
                    return self.take_further_name(work, target, replace, progress);
                }
                progress.batch.push(Deferred::Link {
                    first: first.target.clone(),
                    target,
                    replace,
                    instead: self.earlier_instead(work, first.made),
                });
                return Ok(());
            }
        }
        let outcome = self.process(work, self.threads)?;
        let made = match &outcome {
            Outcome::Made(new, ..) => Some((true, inode_of_new(new)?)),
            Outcome::Copied(new, _) => Some((false, inode_of_new(new)?)),
            Outcome::UpToDate(earlier) => Some((earlier.made, earlier.inode)),
            Outcome::Completed(..) | Outcome::Verified(_) | Outcome::Left(_) => None,
        };
        let first = match made.filter(|_| entry.stat.st_nlink > 1) {
            Some((made, inode)) => {
                let name = match made {
                    true => self.task.name(Path::new(&entry.name)),
                    false => Some(PathBuf::from(&entry.name)),
                };
                let directory = entry.relative.parent();
                name.map(|name| FirstName {
                    stat: entry.stat,
                    target: FirstTarget {
                        root: work.root.clone(),
                        relative: directory.map(Path::to_owned).unwrap_or_default(),
                        name: name.into_os_string(),
                        inode,
                    },
                    made,
                })
            }
            None => None,
        };
        let left = self.keep(work, outcome, progress)?;
        if let Some(mut first) = first {
            first.stat = left.unwrap_or(first.stat);
            progress.names.insert(inode_of(&entry.stat), first);
        }
        Ok(())
    }

    /// Links a further name of a file of which another was removed already, and removes it too. What was done to the file
    /// since then shows: it is proved again.
    fn take_further_name(
        &self,
        work: &Work,
        target: Place,
        replace: bool,
        progress: &mut Progress,
    ) -> Result<()> {
        let entry = &work.entry;
        let (file, stat) = open_entry(&*entry.directory, &entry.name, &entry.path)?;
        let Some(first) = progress.names.get_mut(&inode_of(&stat)) else {
            return Err(Error::new(ErrorKind::InputChanged).in_file(&entry.path));
        };
        let link = first.target.link(target, replace)?;
        if !is_same_state(&first.stat, &stat) {
            let (_, temporary) = link.temporary();
            let made = Place {
                name: temporary.to_owned(),
                ..link.target().clone()
            };
            self.prove(&made, first.target.inode, &file, &stat, &entry.path)?;
        }
        first.stat = link.publish_instead(&file, &work.source(), &stat)?;
        progress.summary.links += 1;
        Ok(())
    }

    /// How many names in the tree each of its files of several has, as far as they are selected.
    pub(super) fn count_names(&self, root: &Path) -> Result<HashMap<(u64, u64), u64>> {
        let mut names = HashMap::new();
        for step in Walk::new(root, None).selecting(self.task.selection()) {
            if self.control.cancelled.load(Ordering::Relaxed) {
                return Err(ErrorKind::Cancelled.into());
            }
            // What fails is met again, and told of, when the work is done.
            if let Ok(Step::Other(entry)) = step
                && entry.stat.st_nlink > 1
            {
                *names.entry(inode_of(&entry.stat)).or_default() += 1;
            }
        }
        Ok(names)
    }

    /// Whether all the names a file has, or had when the work began, are in the tree.
    pub(super) fn has_all_names(&self, stat: &Stat) -> bool {
        let counted = self.names.get(&inode_of(stat)).copied().unwrap_or(1);
        i128::from(stat.st_nlink) <= i128::from(counted)
    }
}

fn inode_of_new(new: &NewFile) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(new.file()).context("cannot examine", new.target())?;
    Ok(inode_of(&stat))
}
