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

mod drawing;
mod file;
mod names;
mod plain;

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use drawing::Drawing;
use names::{Batch, Deferred, FirstTarget, Leave, make_symlink};
use rustix::fs::{FileType, Stat};

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::job::{Control, thread_count};
use crate::machine::usable_descriptors;
use crate::ordered;
use crate::output::NewFile;
use crate::pack::{PackOptions, Summary, open_entry, packed_name};
use crate::place::{Place, inode_of};
use crate::unpack::{UnpackOptions, original_name};
use crate::verify::VerifyOptions;
use crate::walk::Entry;

/// From which size on a file has all threads to itself, in bytes.
const LARGE: i64 = 16 << 20;
/// How many of the descriptors there may be make room for one thread: what it works on, and what it has done and not
/// handed over.
const DESCRIPTORS_FOR_A_THREAD: usize = 20;

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
    /// How many devices, pipes and sockets were left out.
    pub special: u64,
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
    options: VerifyOptions,
    control: Control<'_>,
) -> Result<TreeSummary> {
    Tree::new(Task::Verify(options), None, options.threads, control).run(root)
}

#[derive(Clone, Copy)]
enum Task<'a> {
    Pack(&'a PackOptions),
    Unpack(&'a UnpackOptions),
    Verify(VerifyOptions),
}

impl Task<'_> {
    fn replaces(self) -> bool {
        match self {
            Task::Pack(options) => options.force,
            Task::Unpack(options) => options.force,
            Task::Verify(_) => false,
        }
    }

    fn removes(self) -> bool {
        match self {
            Task::Pack(options) => options.remove,
            Task::Unpack(options) => options.remove,
            Task::Verify(_) => false,
        }
    }

    /// The name of what the task makes of a file, if the name allows it.
    fn name(self, of: &Path) -> Option<PathBuf> {
        match self {
            Task::Pack(_) => Some(packed_name(of)),
            Task::Unpack(_) => original_name(of),
            Task::Verify(_) => None,
        }
    }
}

struct Tree<'a> {
    task: Task<'a>,
    output: Option<&'a Path>,
    threads: usize,
    control: Control<'a>,
    /// Directories that everything was made for, and that wait for it to be taken, in that order. Not among the items,
    /// so that they can be finished after an interruption too.
    leaving: Mutex<VecDeque<Leave>>,
}

/// What goes from the walk through the threads and back into order.
enum Item {
    Failed(Error),
    /// To be done by one thread, along with others.
    Small(Work),
    /// To be done in order: whatever is no file, is large, or has several names.
    InOrder(Work),
    Done(Result<(Work, Outcome)>),
    /// The first of `leaving` is to be taken.
    Leave,
}

/// Something in the tree, and the directory for what is made of it.
struct Work {
    entry: Entry,
    into: Arc<OwnedFd>,
    /// The root of the tree that directory is in.
    root: Arc<OwnedFd>,
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
    target: FirstTarget,
    made: bool,
}

/// What is put together in the order of the walk.
#[derive(Default)]
struct Progress {
    summary: TreeSummary,
    names: HashMap<(u64, u64), FirstName>,
    batch: Batch,
}

impl TreeSummary {
    /// Counts a file that was made, or copied if nothing was made of it.
    fn count(&mut self, made: Option<&Summary>) {
        match made {
            Some(made) => {
                self.files += 1;
                self.original_size += made.original_size;
                self.packed_size += made.packed_size;
                self.failed += u64::from(made.lost > 0);
            }
            None => self.copied += 1,
        }
    }
}

impl Progress {
    fn fail(&mut self, error: &Error, control: Control<'_>) {
        self.summary.failed += 1;
        control.observer.failed(error);
    }

    fn settle(&mut self, control: Control<'_>) {
        let mut failed = 0;
        self.batch.settle(&mut self.summary, |error| {
            failed += 1;
            control.observer.failed(error);
        });
        self.summary.failed += failed;
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
            threads: thread_count(threads)
                .min(usable_descriptors() / DESCRIPTORS_FOR_A_THREAD)
                .max(1),
            control,
            leaving: Mutex::default(),
        }
    }

    fn run(&self, root: &Path) -> Result<TreeSummary> {
        let mut drawing = Drawing::new(root, self.output, self.task.replaces())?;
        let mut progress = Progress::default();
        let done = ordered::run(
            self.threads,
            self.control.cancelled,
            || (),
            || Ok(self.draw(&mut drawing)),
            |(), item| match item {
                Item::Small(work) => {
                    let done = self.process(&work, 1).map(|outcome| (work, outcome));
                    stop_if_cancelled(done).map(Item::Done)
                }
                item => Ok(item),
            },
            |item| self.take(item, &mut progress),
        );
        // What was finished before an interruption is kept, and the directories it is in are made ready.
        progress.settle(self.control);
        self.leave_all(&mut drawing);
        while let Some(leave) = self.next_leaving() {
            if let Err(error) = leave.finish() {
                progress.fail(&error, self.control);
            }
        }
        done.map_err(|error| error.in_file(root))?;
        Ok(progress.summary)
    }

    fn next_leaving(&self) -> Option<Leave> {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.pop_front()
    }

    /// Does what has to be done in order, and keeps count.
    fn take(&self, item: Item, progress: &mut Progress) -> Result<()> {
        let done = match item {
            Item::Failed(error) => Err(error),
            Item::Done(Ok((work, outcome))) => self.keep(&work, outcome, progress),
            Item::Done(Err(error)) => Err(error),
            Item::Leave => {
                let leave = self.next_leaving().map(Deferred::Leave);
                leave
                    .into_iter()
                    .for_each(|leave| progress.batch.push(leave));
                Ok(())
            }
            Item::Small(work) | Item::InOrder(work) => match work.entry.kind() {
                FileType::RegularFile => self.take_file(&work, progress),
                FileType::Symlink => self.take_symlink(&work, &mut progress.summary),
                _ => {
                    progress.summary.special += 1;
                    let why = "not a file, a directory or a link";
                    self.control.observer.skipped(&work.entry.path, why);
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

    /// Sees to it that what became of a file gets its name, and is counted.
    fn keep(&self, work: &Work, outcome: Outcome, progress: &mut Progress) -> Result<()> {
        match outcome {
            // What an input is removed for was synced already, to be read back.
            Outcome::Made(new, made) if self.task.removes() => {
                new.publish()?;
                progress.summary.count(Some(&made));
                work.source().remove(&work.entry.stat)
            }
            Outcome::Made(new, made) => progress.batch.push_file(new, Some(made)),
            Outcome::Copied(new) => progress.batch.push_file(new, None),
            Outcome::Verified(made) => {
                progress.summary.count(Some(&made));
                Ok(())
            }
            Outcome::Left => {
                progress.summary.left += 1;
                Ok(())
            }
        }
    }

    /// A file that is large or has several names.
    fn take_file(&self, work: &Work, progress: &mut Progress) -> Result<()> {
        let entry = &work.entry;
        if let Some(first) = progress.names.get(&inode_of(&entry.stat))
            && is_same_state(&first.stat, &entry.stat)
        {
            let name = match first.made {
                true => self.task.name(Path::new(&entry.name)),
                false => Some(PathBuf::from(&entry.name)),
            };
            if let Some(name) = name {
                let target = self.place(work, name);
                let replace = self.task.replaces();
                if first.made && self.task.removes() {
                    let (file, _) = open_entry(&*entry.directory, &entry.name, &entry.path)?;
                    first.target.link(target, replace)?.publish(&file)?;
                    progress.summary.links += 1;
                    return work.source().remove(&entry.stat);
                }
                progress.batch.push(Deferred::Link {
                    first: first.target.clone(),
                    target,
                    replace,
                });
                return Ok(());
            }
        }
        let outcome = self.process(work, self.threads)?;
        let first = match &outcome {
            Outcome::Made(new, _) | Outcome::Copied(new) if entry.stat.st_nlink > 1 => {
                let stat = rustix::fs::fstat(new.file()).context("cannot examine", new.target())?;
                let made = matches!(outcome, Outcome::Made(..));
                let name = match made {
                    true => self.task.name(Path::new(&entry.name)),
                    false => Some(PathBuf::from(&entry.name)),
                };
                name.map(|name| FirstName {
                    stat: entry.stat,
                    target: FirstTarget {
                        root: work.root.clone(),
                        relative: entry
                            .relative
                            .parent()
                            .map(Path::to_owned)
                            .unwrap_or_default(),
                        name: name.into_os_string(),
                        inode: inode_of(&stat),
                    },
                    made,
                })
            }
            _ => None,
        };
        self.keep(work, outcome, progress)?;
        if let Some(first) = first {
            progress.names.insert(inode_of(&entry.stat), first);
        }
        Ok(())
    }

    fn take_symlink(&self, work: &Work, summary: &mut TreeSummary) -> Result<()> {
        let entry = &work.entry;
        if self.output.is_none() {
            return Ok(());
        }
        let text = rustix::fs::readlinkat(&*entry.directory, &entry.name, Vec::new())
            .context("cannot read the link", &entry.path)?;
        let target = self.place(work, PathBuf::from(&entry.name));
        make_symlink(&text, &entry.stat, target, self.task.replaces())?;
        summary.links += 1;
        Ok(())
    }

    /// The place for what is made of an entry, under that name.
    fn place(&self, work: &Work, name: PathBuf) -> Place {
        let plain = self.target(&work.entry);
        Place {
            directory: work.into.clone(),
            path: plain
                .as_ref()
                .unwrap_or(&work.entry.path)
                .with_file_name(&name),
            name: name.into_os_string(),
        }
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

pub(crate) fn is_named_packed(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".warp")
}

/// Whether a file was not written to from one look to the next. The change time may differ: removing another of the
/// file's names changes it.
fn is_same_state(before: &Stat, after: &Stat) -> bool {
    let state = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    state(before) == state(after)
}

impl Work {
    /// The entry's own place.
    fn source(&self) -> Place {
        Place {
            directory: self.entry.directory.clone(),
            name: self.entry.name.clone(),
            path: self.entry.path.clone(),
        }
    }
}

/// Of all a file's errors, being cancelled concerns the whole tree.
fn stop_if_cancelled<T>(done: Result<T>) -> Result<Result<T>> {
    match done {
        Err(error) if matches!(error.kind(), ErrorKind::Cancelled) => Err(error),
        done => Ok(done),
    }
}
