//! Whole trees: packed or unpacked beside themselves or into another tree, or verified.
//!
//! Small files are worked on side by side, one thread each; a large one has all threads to itself. Results are taken in
//! the order of the walk, so that a hard link finds its first name finished and a directory gets its times after all that
//! was made in it. A file that fails is reported and the others go on. New files are synced some at a time, all at once,
//! and only then get their names: to sync one by one takes longer than to pack.
//!
//! Into another tree, everything comes along: what is not packed is copied as it is, sharing its blocks where the file
//! system can; symbolic links are kept as they read; hard links stay links of each other. Beside the originals, what is
//! not packed is left alone. Nothing is read through a symbolic link.

mod names;
mod plain;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use names::{Batch, Deferred, make_directory, make_hard_link, make_room};
use rustix::fs::{AtFlags, CWD, FileType, Stat};

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::info::Info;
use crate::job::{Control, thread_count};
use crate::ordered;
use crate::output::NewFile;
use crate::pack::{
    PackOptions, Summary, is_packed, open_entry, pack_opened, packed_name, remove_input,
};
use crate::unpack::{UnpackOptions, original_name, unpack_opened};
use crate::verify::verify_opened;
use crate::walk::{Entry, Step, Walk};

/// From which size on a file has all threads to itself, in bytes.
const LARGE: i64 = 16 << 20;

/// What became of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSummary {
    /// How many files were packed, unpacked or verified.
    pub files: u64,
    /// The size of their originals, in bytes.
    pub original_size: u64,
    /// The size of their `.warp` files, in bytes.
    pub packed_size: u64,
    /// How many files were copied as they are.
    pub copied: u64,
    /// How many files were left as they are, where they are.
    pub left: u64,
    /// How many symbolic and hard links were made.
    pub links: u64,
    /// How many things failed, each reported to the observer.
    pub failed: u64,
}

/// Packs the tree at `root` into a tree at `output`, or beside itself.
///
/// # Errors
/// Cancellation. Whatever else goes wrong is counted, and told to the observer.
pub fn pack_tree(
    root: &Path,
    output: Option<&Path>,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<TreeSummary> {
    Tree::new(Task::Pack(options), output, options.threads, control).run(root)
}

/// Unpacks the tree at `root` into a tree at `output`, or beside itself.
///
/// # Errors
/// Cancellation. Whatever else goes wrong is counted, and told to the observer.
pub fn unpack_tree(
    root: &Path,
    output: Option<&Path>,
    options: &UnpackOptions,
    control: Control<'_>,
) -> Result<TreeSummary> {
    Tree::new(Task::Unpack(options), output, options.threads, control).run(root)
}

/// Verifies every file in the tree at `root` whose name ends in `.warp`.
///
/// # Errors
/// Cancellation. Whatever else goes wrong is counted, and told to the observer.
pub fn verify_tree(
    root: &Path,
    threads: Option<usize>,
    control: Control<'_>,
) -> Result<TreeSummary> {
    Tree::new(Task::Verify, None, threads, control).run(root)
}

/// Reads what there is to know of every file in the tree at `root` whose name ends in `.warp`, in the order of names.
pub fn infos(root: &Path) -> impl Iterator<Item = Result<Info>> {
    Walk::new(root, None).filter_map(|step| match step {
        Ok(Step::Other(entry))
            if entry.kind() == FileType::RegularFile && is_named_packed(&entry.name) =>
        {
            let opened = open_entry(&*entry.directory, &entry.name, &entry.path);
            Some(opened.and_then(|(file, _)| Info::from_file(file, &entry.path)))
        }
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

#[derive(Clone, Copy)]
enum Task<'a> {
    Pack(&'a PackOptions),
    Unpack(&'a UnpackOptions),
    Verify,
}

impl Task<'_> {
    fn replaces(self) -> bool {
        match self {
            Task::Pack(options) => options.force,
            Task::Unpack(options) => options.force,
            Task::Verify => false,
        }
    }

    fn removes(self) -> bool {
        match self {
            Task::Pack(options) => options.remove,
            Task::Unpack(options) => options.remove,
            Task::Verify => false,
        }
    }

    /// The name of what the task makes of a file, if the name allows it.
    fn name(self, of: &Path) -> Option<PathBuf> {
        match self {
            Task::Pack(_) => Some(packed_name(of)),
            Task::Unpack(_) => original_name(of),
            Task::Verify => None,
        }
    }
}

struct Tree<'a> {
    task: Task<'a>,
    output: Option<&'a Path>,
    threads: usize,
    control: Control<'a>,
}

/// What goes from the walk through the threads and back into order.
enum Item {
    Failed(Error),
    /// To be done by one thread, along with others.
    Small(Entry),
    /// To be done in order: whatever is no file, is large, or has several names.
    InOrder(Entry),
    Done(Result<(Entry, Outcome)>),
    Leave(Entry),
}

/// What became of one file.
enum Outcome {
    /// It was packed or unpacked; the input is to be removed if the task says so.
    Made(NewFile, Summary),
    Verified(Summary),
    Copied(NewFile),
    Left,
}

/// What a further name of the same file is to be linked with.
struct FirstName {
    stat: Stat,
    target: PathBuf,
    made: bool,
}

/// What is put together in the order of the walk.
#[derive(Default)]
struct Progress {
    summary: TreeSummary,
    names: HashMap<(u64, u64), FirstName>,
    batch: Batch,
}

impl Progress {
    fn fail(&mut self, error: &Error, control: Control<'_>) {
        self.summary.failed += 1;
        control.observer.failed(error);
    }

    fn settle(&mut self, control: Control<'_>) {
        let summary = &mut self.summary;
        self.batch.settle(|error| {
            summary.failed += 1;
            control.observer.failed(error);
        });
    }
}

impl<'a> Tree<'a> {
    fn new(
        task: Task<'a>,
        output: Option<&'a Path>,
        threads: Option<usize>,
        control: Control<'a>,
    ) -> Self {
        Self {
            task,
            output,
            threads: thread_count(threads),
            control,
        }
    }

    fn run(&self, root: &Path) -> Result<TreeSummary> {
        let except = match self.output {
            // So that a tree packed into itself does not grow forever.
            Some(output) => {
                make_directory(output)?;
                let stat = rustix::fs::stat(output).context("cannot examine", output)?;
                Some((stat.st_dev, stat.st_ino))
            }
            None => None,
        };
        let mut walk = Walk::new(root, except);
        // Inodes met under one of several names; removing one may leave the next the only one.
        let mut linked = HashSet::new();
        let mut progress = Progress::default();
        ordered::run(
            self.threads,
            self.control.cancelled,
            || (),
            || Ok(self.draw(&mut walk, &mut linked)),
            |(), item| match item {
                Item::Small(entry) => {
                    let done = self.process(&entry, 1).map(|outcome| (entry, outcome));
                    stop_if_cancelled(done).map(Item::Done)
                }
                item => Ok(item),
            },
            |item| self.take(item, &mut progress),
        )?;
        progress.settle(self.control);
        Ok(progress.summary)
    }

    /// The next thing to be done. Directories are made here, before anything is made in them.
    fn draw(&self, walk: &mut Walk, linked: &mut HashSet<(u64, u64)>) -> Option<Item> {
        loop {
            match walk.next()? {
                Err(error) => return Some(Item::Failed(error)),
                Ok(Step::Other(entry)) => {
                    if entry.kind() != FileType::RegularFile || entry.stat.st_size >= LARGE {
                        return Some(Item::InOrder(entry));
                    }
                    let inode = inode_of(&entry.stat);
                    if entry.stat.st_nlink > 1 {
                        linked.insert(inode);
                    }
                    return Some(match linked.contains(&inode) {
                        true => Item::InOrder(entry),
                        false => Item::Small(entry),
                    });
                }
                Ok(Step::Leave(entry)) if self.output.is_some() => {
                    return Some(Item::Leave(entry));
                }
                Ok(Step::Leave(_)) => {}
                Ok(Step::Enter(entry)) => {
                    let Some(target) = self.target(&entry) else {
                        continue;
                    };
                    if let Err(error) = make_directory(&target) {
                        walk.skip_directory();
                        return Some(Item::Failed(error));
                    }
                }
            }
        }
    }

    /// Does what has to be done in order, and keeps count.
    fn take(&self, item: Item, progress: &mut Progress) -> Result<()> {
        let done = match item {
            Item::Failed(error) => Err(error),
            Item::Done(Ok((entry, outcome))) => self.keep(&entry, outcome, progress),
            Item::Done(Err(error)) => Err(error),
            Item::Leave(entry) => {
                if let Some(target) = self.target(&entry) {
                    progress.batch.push(Deferred::Leave { entry, target });
                }
                Ok(())
            }
            Item::Small(entry) | Item::InOrder(entry) => match entry.kind() {
                FileType::RegularFile => self.take_file(&entry, progress),
                FileType::Symlink => self.take_symlink(&entry, &mut progress.summary),
                _ => {
                    let why = "not a file, a directory or a link";
                    self.control.observer.skipped(&entry.path, why);
                    Ok(())
                }
            },
        };
        if let Err(error) = stop_if_cancelled(done)? {
            progress.fail(&error, self.control);
        }
        if progress.batch.is_full() {
            progress.settle(self.control);
        }
        Ok(())
    }

    /// Counts what became of a file, and sees to it that it gets its name.
    fn keep(&self, entry: &Entry, outcome: Outcome, progress: &mut Progress) -> Result<()> {
        let (new, made) = match outcome {
            Outcome::Made(new, made) => (Some(new), Some(made)),
            Outcome::Verified(made) => (None, Some(made)),
            Outcome::Copied(new) => (Some(new), None),
            Outcome::Left => (None, None),
        };
        let copied = new.is_some() && made.is_none();
        let left = new.is_none() && made.is_none();
        match new {
            // What an input is removed for was synced already, to be read back.
            Some(new) if made.is_some() && self.task.removes() => {
                new.publish()?;
                remove_input(&entry.path, &entry.stat)?;
            }
            Some(new) => progress.batch.push(Deferred::Rename(new.finish())),
            None => {}
        }
        let summary = &mut progress.summary;
        summary.copied += u64::from(copied);
        summary.left += u64::from(left);
        if let Some(made) = made {
            summary.files += 1;
            summary.original_size += made.original_size;
            summary.packed_size += made.packed_size;
        }
        Ok(())
    }

    /// A file that is large or has several names.
    fn take_file(&self, entry: &Entry, progress: &mut Progress) -> Result<()> {
        let plain = self.target(entry).unwrap_or_else(|| entry.path.clone());
        if let Some(first) = progress.names.get(&inode_of(&entry.stat))
            && is_same_state(&first.stat, &entry.stat)
        {
            let name = match first.made {
                true => self.task.name(&plain),
                false => Some(plain.clone()),
            };
            if let Some(name) = name {
                if first.made && self.task.removes() {
                    make_hard_link(&first.target, &name, self.task.replaces())?;
                    remove_input(&entry.path, &entry.stat)?;
                } else {
                    progress.batch.push(Deferred::Link {
                        first: first.target.clone(),
                        name,
                        replace: self.task.replaces(),
                    });
                }
                progress.summary.links += 1;
                return Ok(());
            }
        }
        let outcome = self.process(entry, self.threads)?;
        let made = matches!(outcome, Outcome::Made(..));
        self.keep(entry, outcome, progress)?;
        let target = match made {
            true => self.task.name(&plain),
            false => Some(plain).filter(|_| self.output.is_some()),
        };
        if let Some(target) = target
            && entry.stat.st_nlink > 1
        {
            let first = FirstName {
                stat: entry.stat,
                target,
                made,
            };
            progress.names.insert(inode_of(&entry.stat), first);
        }
        Ok(())
    }

    /// Packs, unpacks, verifies or copies a regular file.
    fn process(&self, entry: &Entry, threads: usize) -> Result<Outcome> {
        let (file, stat) = open_entry(&*entry.directory, &entry.name, &entry.path)?;
        let plain = self.target(entry).unwrap_or_else(|| entry.path.clone());
        let made = self.task.name(&plain);
        let threads = Some(threads);
        let as_it_is = || match self.output {
            None => Ok(Outcome::Left),
            Some(_) => {
                let replace = self.task.replaces();
                plain::copy(&file, &stat, &entry.path, &plain, replace, self.control)
                    .map(Outcome::Copied)
            }
        };
        let control = self.control;
        match (self.task, made) {
            (Task::Verify, _) if is_named_packed(&entry.name) => {
                verify_opened(file, &entry.path, threads, control).map(Outcome::Verified)
            }
            (Task::Verify, _) => Ok(Outcome::Left),
            (_, None) => as_it_is(),
            (Task::Pack(options), Some(made)) => {
                let packed = !options.force && is_packed(&file, &stat);
                if stat.st_size == 0 || packed || self.is_name_taken(entry) {
                    return as_it_is();
                }
                let options = PackOptions {
                    threads,
                    ..options.clone()
                };
                let written = pack_opened(&file, &stat, &entry.path, &made, &options, control)?;
                let summary = written.summary;
                if summary.packed_size >= summary.original_size {
                    return as_it_is();
                }
                let new = written.complete(&file, &stat, &options, control)?;
                Ok(Outcome::Made(new, summary))
            }
            (Task::Unpack(options), Some(made)) => {
                if !is_packed(&file, &stat) {
                    let why = "named .warp, but is none by its header";
                    control.observer.skipped(&entry.path, why);
                    return as_it_is();
                }
                if self.is_name_taken(entry) {
                    return as_it_is();
                }
                let options = UnpackOptions {
                    threads,
                    ..options.clone()
                };
                unpack_opened(&file, &stat, &entry.path, &made, &options, control)
                    .map(|(new, summary)| Outcome::Made(new, summary))
            }
        }
    }

    /// Whether something else in the source would come to have the name of what is made of this file in another tree.
    fn is_name_taken(&self, entry: &Entry) -> bool {
        let made = self.task.name(Path::new(&entry.name));
        self.output.is_some()
            && made.is_some_and(|name| {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::statat(&*entry.directory, name, flags).is_ok()
            })
    }

    fn take_symlink(&self, entry: &Entry, summary: &mut TreeSummary) -> Result<()> {
        let Some(target) = self.target(entry) else {
            return Ok(());
        };
        let text = rustix::fs::readlinkat(&*entry.directory, &entry.name, Vec::new())
            .context("cannot read the link", &entry.path)?;
        make_room(&target, self.task.replaces())?;
        rustix::fs::symlinkat(&text, CWD, &target).context("cannot make the link", &target)?;
        plain::copy_link_attributes(&entry.stat, &target)?;
        summary.links += 1;
        Ok(())
    }

    /// Where an entry goes under its own name, if there is another tree for it to go to.
    fn target(&self, entry: &Entry) -> Option<PathBuf> {
        self.output
            .map(|output| match entry.relative.as_os_str().is_empty() {
                true => output.to_owned(),
                false => output.join(&entry.relative),
            })
    }
}

fn is_named_packed(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".warp")
}

fn inode_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Whether a file was not written to from one look to the next.
fn is_same_state(before: &Stat, after: &Stat) -> bool {
    let state = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    state(before) == state(after)
}

/// Of all a file's errors, being cancelled concerns the whole tree.
fn stop_if_cancelled<T>(done: Result<T>) -> Result<Result<T>> {
    match done {
        Err(error) if matches!(error.kind(), ErrorKind::Cancelled) => Err(error),
        done => Ok(done),
    }
}
