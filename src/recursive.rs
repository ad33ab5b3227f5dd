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
//!
//! A job that was interrupted, or whose tree has changed since, is done again by doing what is missing: see `earlier`.

mod drawing;
mod earlier;
mod file;
mod marks;
mod names;
mod names_before;
mod plain;
mod several_names;
mod summary;
mod synced;

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use drawing::Drawing;
use marks::Marks;
use names::{Batch, Deferred, Leave, New, Renewal, make_symlink, remove};
use rustix::fs::{FileType, Stat, StatVfsMountFlags};

pub use crate::walk::Selection;
use several_names::FirstName;
pub use summary::TreeSummary;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::job::{Control, thread_count};
use crate::machine::usable_descriptors;
use crate::ordered;
use crate::output::NewFile;
use crate::pack::{PackOptions, Summary, packed_name};
use crate::place::Place;
use crate::unpack::{UnpackOptions, original_name};
use crate::verify::VerifyOptions;
use crate::walk::Entry;

/// From which size on a file has all threads to itself, in bytes.
const LARGE: i64 = 16 << 20;
/// How many of the descriptors there may be make room for one thread: what it works on, and what it has done and not
/// handed over.
const DESCRIPTORS_FOR_A_THREAD: usize = 20;

/// What of a tree is packed, and how.
#[derive(Debug, Clone, Default)]
pub struct TreeOptions {
    /// What of the tree is taken at all.
    pub selection: Selection,
    /// Files of fewer bytes than this are not packed.
    pub min_size: u64,
    /// Files of the tree become packed ones, each once it is verified. What stands in one's way, other names it has
    /// outside of the tree for example, leaves it as it is and is no failure. Goes with [`PackOptions::remove`], and
    /// without an output.
    pub in_place: bool,
}

/// Packs the tree at `root` into a tree at `output`, or beside itself.
///
/// # Errors
/// Cancellation; or there is to be written to a file system that is read-only. Whatever else goes wrong is counted, and told to the observer.
pub fn pack_tree(
    root: &Path,
    output: Option<&Path>,
    options: &PackOptions,
    tree: &TreeOptions,
    control: Control<'_>,
) -> Result<TreeSummary> {
    Tree::new(Task::Pack(options, tree), output, options.threads, control).run(root)
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
    Pack(&'a PackOptions, &'a TreeOptions),
    Unpack(&'a UnpackOptions),
    Verify(VerifyOptions),
}

impl Task<'_> {
    fn replaces(self) -> bool {
        match self {
            Task::Pack(options, _) => options.force,
            Task::Unpack(options) => options.force,
            Task::Verify(_) => false,
        }
    }

    fn removes(self) -> bool {
        match self {
            Task::Pack(options, _) => options.remove,
            Task::Unpack(options) => options.remove,
            Task::Verify(_) => false,
        }
    }

    fn is_in_place(self) -> bool {
        matches!(self, Task::Pack(_, tree) if tree.in_place)
    }

    fn selection(self) -> Selection {
        match self {
            Task::Pack(_, tree) => tree.selection.clone(),
            Task::Unpack(_) | Task::Verify(_) => Selection::default(),
        }
    }

    /// The name of what the task makes of a file, if the name allows it.
    fn name(self, of: &Path) -> Option<PathBuf> {
        match self {
            Task::Pack(..) => Some(packed_name(of)),
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
    /// How many names in the tree a file of several has, by its device and inode, if that is to be known.
    names: HashMap<(u64, u64), u64>,
    /// What marks on what is made in another tree say of this one; `None` if it cannot be told from others.
    marks: Option<Marks>,
}

/// What goes from the walk through the threads and back into order.
enum Item {
    Failed(Error),
    /// To be done by one thread, along with others.
    Small(Work),
    /// To be done in order: whatever is no file, is large, or has several names.
    InOrder(Work),
    Done(Result<Box<(Work, Outcome)>>),
    /// The first of `leaving` is to be taken.
    Leave,
}

/// Something in the tree, and the directory for what is made of it.
struct Work {
    entry: Entry,
    into: Arc<OwnedFd>,
    /// The root of the tree that directory is in.
    root: Arc<OwnedFd>,
    /// Whether there is another tree for what is made, in which that directory is one of this tree's own: what is there already
    /// may be an input.
    goes_among_inputs: bool,
}

/// What became of one file.
enum Outcome {
    /// An earlier run made this of it, or copied it.
    UpToDate(Made),
    /// It is to be removed, for an earlier run made another of it.
    Completed(Completed),
    /// It was packed or unpacked, in this state; the input is to be removed if the task says so.
    Made(NewFile, Summary, Stat),
    Verified(Summary),
    /// Copied; so many bytes.
    Copied(NewFile, u64),
    /// Left as it is; so many bytes.
    Left(u64),
}

/// What an earlier run made of a file.
struct Made {
    /// Whether it was packed or unpacked, not copied.
    made: bool,
    inode: (u64, u64),
}

/// A file in whose place comes what an earlier run made of it: they were compared, in these states.
struct Completed {
    stat: Stat,
    summary: Summary,
    made: Place,
    made_stat: Stat,
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
        self.batch.note_failure(error);
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
            names: HashMap::new(),
            marks: None,
        }
    }

    fn run(mut self, root: &Path) -> Result<TreeSummary> {
        if self.output.is_some() {
            self.marks = Marks::of(root);
        }
        if self.output.is_none() && !matches!(self.task, Task::Verify(_)) {
            check_writable(root)?;
        }
        if self.task.removes() {
            self.names = self.count_names(root)?;
        }
        let mut drawing = Drawing::new(root, &self)?;
        let mut progress = Progress::default();
        let done = ordered::run(
            self.threads,
            self.control.cancelled,
            || (),
            || Ok(self.draw(&mut drawing)),
            |(), item| match item {
                Item::Small(work) => {
                    let done = self
                        .process(&work, 1)
                        .map(|outcome| Box::new((work, outcome)));
                    stop_if_cancelled(done).map(Item::Done)
                }
                item => Ok(item),
            },
            |item| self.take(item, &mut progress),
        );
        // What was finished before an interruption is kept, and the directories it is in are made ready.
        progress.settle(self.control);
        self.leave_all(&mut drawing);
        while let Some(mut leave) = self.next_leaving() {
            leave.renewal = leave.renewal.unfinished();
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
            Item::Done(Ok(done)) => {
                let (work, outcome) = *done;
                self.keep(&work, outcome, progress).map(drop)
            }
            Item::Done(Err(error)) => Err(error),
            Item::Leave => match self.next_leaving() {
                // What is done in place is done at once, so nothing that changes these times is still to come.
                Some(leave) if leave.renewal == Renewal::Times => leave.finish(),
                leave => {
                    let leave = leave.map(Deferred::Leave).into_iter();
                    leave.for_each(|leave| progress.batch.push(leave));
                    Ok(())
                }
            },
            Item::Small(work) | Item::InOrder(work) => match work.entry.kind() {
                FileType::RegularFile => self.take_file(&work, progress),
                FileType::Symlink => self.take_symlink(&work, &mut progress.summary),
                _ => {
                    progress.summary.special += 1;
                    let why = "left out: not a file, a directory or a link";
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

    /// Sees to it that what became of a file gets its name, and is counted. If a name of the file was removed, what is given
    /// is as of [`Place::remove`].
    fn keep(&self, work: &Work, outcome: Outcome, progress: &mut Progress) -> Result<Option<Stat>> {
        match outcome {
            // What an input is removed for was synced already, to be read back.
            Outcome::Made(new, made, stat) if self.task.removes() => {
                let left = new.publish_instead(&work.source(), &stat)?;
                progress.summary.count(&made);
                return Ok(Some(left));
            }
            Outcome::Made(new, made, _) => {
                let instead = self.earlier_instead(work, true);
                progress.batch.push_file(new, New::Made(made), instead)?;
            }
            Outcome::Copied(new, size) => {
                let instead = self.earlier_instead(work, false);
                progress.batch.push_file(new, New::Copy(size), instead)?;
            }
            Outcome::Completed(completed) => {
                // That was a while ago, if a large file came in between.
                completed.made.check_unchanged(&completed.made_stat)?;
                progress.summary.count(&completed.summary);
                return work.source().remove(&completed.stat).map(Some);
            }
            Outcome::UpToDate(earlier) => {
                // A run that was interrupted right before may have left it.
                if let Some(instead) = self.earlier_instead(work, true).filter(|_| earlier.made) {
                    remove(&instead)?;
                }
                progress.summary.up_to_date += 1;
            }
            Outcome::Verified(made) => progress.summary.count(&made),
            Outcome::Left(size) => {
                progress.summary.left += 1;
                progress.summary.left_size += size;
            }
        }
        Ok(None)
    }

    fn take_symlink(&self, work: &Work, summary: &mut TreeSummary) -> Result<()> {
        let entry = &work.entry;
        if self.output.is_none() {
            return Ok(());
        }
        let text = rustix::fs::readlinkat(&*entry.directory, &entry.name, Vec::new())
            .context("cannot read the link", &entry.path)?;
        let target = self.place(work, PathBuf::from(&entry.name));
        let there = rustix::fs::readlinkat(&*target.directory, &target.name, Vec::new());
        match there {
            Ok(there) if !self.forces(work) => {
                if there == text {
                    summary.up_to_date += 1;
                    return Ok(());
                }
                // Links bear no mark that would say whose it is.
                let why = "is a link to something else than the one it is made of; remove it and try again, or add --force";
                return Err(Error::unusable(why).in_file(&target.path));
            }
            _ => {}
        }
        make_symlink(&text, &entry.stat, target, self.forces(work))?;
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

/// Checks that there can be written beside the files of a tree.
fn check_writable(root: &Path) -> Result<()> {
    let stat = rustix::fs::statvfs(root).context("cannot examine", root)?;
    match stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        true => Err(Error::unusable(
            "is on a read-only file system; if warpfs shows the tree here, unmount it first ('warpfs umount')",
        )
        .in_file(root)),
        false => Ok(()),
    }
}

pub(crate) fn is_named_packed(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".warp")
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
