//! What is done with one file of a tree, by any thread.

use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;

use super::{Outcome, Task, Tree, Work, is_named_packed, plain};
use crate::error::{Error, Result};
use crate::pack::{PackOptions, is_packed, open_entry, pack_opened};
use crate::place::Place;
use crate::unpack::{UnpackOptions, unpack_opened};
use crate::verify::{VerifyOptions, verify_opened};
use crate::walk::Entry;

impl Tree<'_> {
    /// Packs, unpacks, verifies or copies a regular file.
    pub(super) fn process(&self, work: &Work, threads: usize) -> Result<Outcome> {
        let entry = &work.entry;
        let (file, stat) = open_entry(&*entry.directory, &entry.name, &entry.path)?;
        let made = self.task.name(Path::new(&entry.name));
        let threads = Some(threads);
        let as_it_is = || match self.output {
            None => Ok(Outcome::Left),
            Some(_) => {
                let replace = self.task.replaces();
                let target = self.place(work, PathBuf::from(&entry.name));
                plain::copy(&file, &stat, &entry.path, target, replace, self.control)
                    .map(Outcome::Copied)
            }
        };
        let control = self.control;
        match (self.task, made) {
            (Task::Verify(options), _) if is_named_packed(&entry.name) => {
                let options = VerifyOptions { threads, ..options };
                verify_opened(file, &entry.path, options, control).map(Outcome::Verified)
            }
            (Task::Verify(_), _) => Ok(Outcome::Left),
            (_, None) => as_it_is(),
            (Task::Pack(options), Some(made)) => {
                // In a tree, --force replaces and does not mean to pack once more what is packed.
                if stat.st_size == 0
                    || is_packed(&file, &stat, &entry.path)?
                    || self.is_name_taken(entry)
                {
                    return as_it_is();
                }
                if options.force && self.output.is_none() {
                    check_is_no_input(&self.place(work, made.clone()))?;
                }
                if options.remove {
                    work.source().check_removable(&stat, options.force)?;
                }
                let options = PackOptions {
                    threads,
                    ..options.clone()
                };
                let written = pack_opened(
                    &file,
                    &stat,
                    &entry.path,
                    self.place(work, made),
                    &options,
                    control,
                )?;
                let summary = written.summary;
                if summary.packed_size >= summary.original_size {
                    return as_it_is();
                }
                let new = written.complete(&file, &stat, &entry.path, &options, control)?;
                Ok(Outcome::Made(new, summary))
            }
            (Task::Unpack(options), Some(made)) => {
                if !is_packed(&file, &stat, &entry.path)? {
                    let why = "named .warp, but is none by its header";
                    control.observer.skipped(&entry.path, why);
                    return as_it_is();
                }
                if self.is_name_taken(entry) {
                    return as_it_is();
                }
                if options.remove {
                    work.source().check_removable(&stat, options.force)?;
                }
                let options = UnpackOptions {
                    threads,
                    ..options.clone()
                };
                unpack_opened(
                    &file,
                    &stat,
                    &entry.path,
                    self.place(work, made),
                    &options,
                    control,
                )
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
}

/// Checks that what has the name of a file's result in the same tree is not to be packed itself: by force it would be
/// replaced, and nothing else has its bytes.
fn check_is_no_input(target: &Place) -> Result<()> {
    let Ok((file, stat)) = open_entry(&*target.directory, &target.name, &target.path) else {
        return Ok(());
    };
    if stat.st_size == 0 || is_packed(&file, &stat, &target.path)? {
        return Ok(());
    }
    let why = "is no packed file, and would be replaced by one: pack or move it first";
    Err(Error::unusable(why).in_file(&target.path))
}
