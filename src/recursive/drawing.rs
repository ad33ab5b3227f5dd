//! What a tree's job is drawn from: the walk, and beside it the making of the directories that results go to.
//!
//! Both go down and up together, each by descriptors of its own, so that results land in the directory that was made for
//! them, whatever is done to the names meanwhile.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use rustix::fs::{CWD, FileType, OFlags};

use super::names::{Leave, Renewal, Whose, make_directory};
use super::names_before::NamesBefore;
use super::{Item, LARGE, Task, Tree, Work, earlier, marks};
use crate::error::{Error, IoContext, Result};
use crate::place::{inode_of, open_directory};
use crate::walk::{Descent, Entry, Step, Walk};

/// What the walk and the making of directories need to remember.
pub(super) struct Drawing {
    walk: Walk,
    /// The root of the tree that is walked, by device and inode, once it is met.
    source: Option<(u64, u64)>,
    /// Inodes met under one of several names; removing one may leave the next the only one.
    linked: HashSet<(u64, u64)>,
    /// The root of the tree that is made, or of the one that is worked on in place.
    root: Option<Arc<OwnedFd>>,
    /// Whose the root of another tree is.
    owner: u32,
    /// Of another tree, the directory that the walk's goes to, and what it is to be given of that one's.
    targets: Descent<Option<Renewal>>,
    /// What was in the directories that the walk is in, if they are worked on in place.
    before: Vec<Option<NamesBefore>>,
}

impl Drawing {
    /// Makes the root of the other tree, if there is to be one. The attributes of directories that were there are
    /// replaced only as those of what an earlier run has made, or by force if they belong to whom the job runs as.
    pub(super) fn new(root: &Path, tree: &Tree<'_>) -> Result<Self> {
        let task = tree.task;
        let mut drawing = Self {
            walk: Walk::new(root, None).selecting(task.selection()),
            source: None,
            linked: HashSet::new(),
            root: None,
            owner: 0,
            targets: Descent::new(),
            before: Vec::new(),
        };
        if let Some(output) = tree.output {
            let (directory, made) = make_root(output)?;
            let stat = rustix::fs::fstat(&directory).context("cannot examine", output)?;
            let from = open_directory(CWD, root, OFlags::empty()).ok();
            let from_stat = from.as_ref().and_then(|from| rustix::fs::fstat(from).ok());
            if from_stat.is_some_and(|from| inode_of(&from) == inode_of(&stat)) {
                let why = "the output is the input: leave --output out to work beside the files";
                return Err(Error::unusable(why).in_file(output));
            }
            // So that a tree packed into itself does not grow forever.
            drawing.walk = Walk::new(root, Some(inode_of(&stat))).selecting(task.selection());
            let directory = Arc::new(directory);
            drawing.root = Some(directory.clone());
            drawing.owner = stat.st_uid;
            // What is no directory has been, or is going to be, told.
            let renewal =
                from.and_then(|from| tree.renewal(&directory, made, Path::new(""), &from, root));
            let entered = drawing.targets.enter(directory, renewal);
            entered.context("cannot examine", output)?;
        }
        Ok(drawing)
    }
}

impl Tree<'_> {
    /// The next thing to be done. Directories are made here, before anything is made in them.
    pub(super) fn draw(&self, drawing: &mut Drawing) -> Option<Item> {
        loop {
            let entry = match drawing.walk.next()? {
                Err(error) => return Some(Item::Failed(error)),
                Ok(Step::Leave(entry)) => {
                    if let Some(left) = self.leave(entry, drawing) {
                        return Some(left);
                    }
                    continue;
                }
                Ok(Step::Enter(entry)) => {
                    if let Err(error) = self.enter(&entry, drawing) {
                        drawing.walk.leave();
                        return Some(Item::Failed(error));
                    }
                    continue;
                }
                Ok(Step::Other(entry)) => entry,
            };
            let into = match self.output {
                Some(_) => drawing.targets.innermost().map(|(into, _)| into),
                None => Some(entry.directory.clone()),
            };
            let (Some(into), Some(root)) = (into, drawing.root.clone()) else {
                // The way in the other tree was lost, which has been said.
                continue;
            };
            let stat = entry.stat;
            let is_small = entry.kind() == FileType::RegularFile && stat.st_size < LARGE;
            let targets = &drawing.targets;
            let work = Work {
                entry,
                into,
                root,
                goes_among_inputs: drawing
                    .source
                    .is_some_and(|source| targets.leads_through(source)),
            };
            if is_small && stat.st_nlink > 1 {
                drawing.linked.insert(inode_of(&stat));
            }
            return Some(
                match is_small && !drawing.linked.contains(&inode_of(&stat)) {
                    true => Item::Small(work),
                    false => Item::InOrder(work),
                },
            );
        }
    }

    /// Makes the directory of the other tree for one of this.
    fn enter(&self, entry: &Entry, drawing: &mut Drawing) -> Result<()> {
        let Some(target) = self.target(entry) else {
            drawing.root.get_or_insert_with(|| entry.directory.clone());
            if !matches!(self.task, Task::Verify(_)) {
                earlier::remove_leftovers(self.task, &entry.directory, &entry.directory);
            }
            if self.task.removes() {
                let packs = matches!(self.task, Task::Pack(..));
                let before = NamesBefore::of(&entry.directory, packs);
                drawing.before.push(before);
            }
            return Ok(());
        };
        // The root is made already.
        if entry.relative.as_os_str().is_empty() {
            drawing.source = Some(inode_of(&entry.stat));
            if let Some(root) = &drawing.root {
                earlier::remove_leftovers(self.task, &entry.directory, root);
            }
            return Ok(());
        }
        let Some((parent, _)) = drawing.targets.innermost() else {
            return Err(Error::unusable("its directory was moved meanwhile").in_file(&target));
        };
        let whose = Whose::OursOr(drawing.owner);
        let (directory, made) =
            make_directory(&*parent, &entry.name, &target, OFlags::NOFOLLOW, whose)?;
        if !made {
            check_is_no_strangers(&directory, entry, whose, &target)?;
        }
        let just_made = || marks::is_marked(&parent) && earlier::was_just_made(&directory, whose);
        let renewal = self.renewal(
            &directory,
            made || just_made(),
            &entry.relative,
            &entry.directory,
            &entry.path,
        );
        if !made {
            earlier::remove_leftovers(self.task, &entry.directory, &directory);
        }
        let entered = drawing.targets.enter(Arc::new(directory), renewal);
        entered.context("cannot examine", &target)
    }

    /// Goes back out of a directory, in both trees.
    fn leave(&self, entry: Entry, drawing: &mut Drawing) -> Option<Item> {
        let before = drawing.before.pop().flatten();
        let (path, directory, renewal, back) = match self.target(&entry) {
            Some(path) => {
                let (directory, renewal, back) = drawing.targets.leave()?;
                (path, directory, renewal, back)
            }
            None => {
                let renewal = self.task.removes().then_some(Renewal::Times);
                (entry.path.clone(), entry.directory.clone(), renewal, Ok(()))
            }
        };
        if let Some(renewal) = renewal {
            let leave = Leave {
                entry,
                directory,
                path: path.clone(),
                renewal,
                before,
            };
            let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
            leaving.push_back(leave);
        }
        match back {
            Err(error) => Some(Item::Failed(error.in_file(&path))),
            Ok(()) => renewal.map(|_| Item::Leave),
        }
    }

    /// Leaves the directories there are left, as after an interruption.
    pub(super) fn leave_all(&self, drawing: &mut Drawing) {
        while let Some(entry) = drawing.walk.leave() {
            self.leave(entry, drawing);
        }
    }
}

/// Checks that a directory of the other tree that was there is nobody's from whom the one it is for may be closed: he would read what is put there,
/// or exchange it.
fn check_is_no_strangers(directory: &OwnedFd, of: &Entry, whose: Whose, path: &Path) -> Result<()> {
    let found = rustix::fs::fstat(directory).context("cannot examine", path)?;
    if whose.is(found.st_uid) || found.st_uid == of.stat.st_uid {
        return Ok(());
    }
    Err(Error::unusable(format!(
        "belongs to user {}, and what it is made for to user {}: give it to him, or remove it",
        found.st_uid, of.stat.st_uid
    ))
    .in_file(path))
}

/// Makes the directory that a tree goes to and those it is in, and opens it; the second says whether it is new.
fn make_root(output: &Path) -> Result<(OwnedFd, bool)> {
    // Without "." and the like at the end, which cannot be made.
    let output: PathBuf = output.components().collect();
    if let Some(parent) = output.parent() {
        std::fs::create_dir_all(parent).context("cannot make the directory", parent)?;
    }
    // The user may name a link to a directory; what is in the tree may not be one.
    make_directory(
        CWD,
        output.as_os_str(),
        &output,
        OFlags::empty(),
        Whose::Any,
    )
}
