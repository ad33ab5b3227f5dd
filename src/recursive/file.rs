//! What is done with one file of a tree, by any thread.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::earlier::{self, Found};
use super::{Completed, Outcome, Task, Tree, TreeOptions, Work, is_named_packed, plain};
use crate::archive::Input;
use crate::error::{Error, Result};
use crate::output::{access_list, temporary_of};
use crate::pack::{
    PackOptions, Summary, is_packed, open_entry, pack_opened, packed_description, prove_packed,
};
use crate::place::{Place, allocated};
use crate::unpack::{UnpackOptions, prove_unpacked, unpack_opened};
use crate::verify::{VerifyOptions, verify_opened};
use crate::walk::Entry;

/// A file of the tree that is worked on.
struct Opened<'a> {
    work: &'a Work,
    file: File,
    stat: Stat,
    threads: Option<usize>,
}

impl Opened<'_> {
    fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }
}

impl Tree<'_> {
    /// Packs, unpacks, verifies or copies a regular file.
    pub(super) fn process(&self, work: &Work, threads: usize) -> Result<Outcome> {
        let entry = &work.entry;
        let made = self.task.name(Path::new(&entry.name));
        let is_for_task = match self.task {
            Task::Verify(_) => is_named_packed(&entry.name),
            Task::Pack(..) | Task::Unpack(_) => made.is_some() || self.output.is_some(),
        };
        if !is_for_task {
            // What is left alone need not be there any more, nor open to this user.
            return Ok(Outcome::Left(
                u64::try_from(entry.stat.st_size).unwrap_or(0),
            ));
        }
        let (file, stat) = open_entry(&*entry.directory, &entry.name, &entry.path)?;
        let input = Opened {
            work,
            file,
            stat,
            threads: Some(threads),
        };
        match (self.task, made) {
            (Task::Verify(options), _) => {
                let options = VerifyOptions {
                    threads: input.threads,
                    ..options
                };
                let input = Input {
                    path: entry.path.clone(),
                    content: input.file.into(),
                };
                verify_opened(&input, options, self.control).map(Outcome::Verified)
            }
            (_, None) => self.as_it_is(&input),
            (Task::Pack(options, tree), Some(made)) => self.pack_one(&input, made, options, tree),
            (Task::Unpack(options), Some(made)) => self.unpack_one(&input, made, options),
        }
    }

    /// Leaves a file alone, or copies it to the other tree.
    fn as_it_is(&self, input: &Opened<'_>) -> Result<Outcome> {
        match self.output {
            None => Ok(Outcome::Left(input.size())),
            Some(_) => self.copy(input.work, &input.file, &input.stat),
        }
    }

    /// As [`Tree::as_it_is`], and says why.
    fn skip(&self, input: &Opened<'_>, why: &str) -> Result<Outcome> {
        self.control.observer.skipped(&input.work.entry.path, why);
        self.as_it_is(input)
    }

    fn pack_one(
        &self,
        input: &Opened<'_>,
        made: PathBuf,
        options: &PackOptions,
        tree: &TreeOptions,
    ) -> Result<Outcome> {
        let Opened {
            work, file, stat, ..
        } = input;
        let (entry, control) = (&work.entry, self.control);
        // In a tree, --force replaces and does not mean to pack once more what is packed.
        if input.size() == 0 || is_packed(file, stat, &entry.path)? || self.is_name_taken(entry) {
            return self.as_it_is(input);
        }
        if tree.in_place && !options.force && has_capabilities(file) {
            let why = "left as it is: it has capabilities, which a packed file does not keep";
            return self.skip(input, why);
        }
        if temporary_of(&entry.name).is_some() && earlier::is_in_use(&*entry.directory, &entry.name)
        {
            let why = "left as it is: another job is writing it";
            control.observer.skipped(&entry.path, why);
            return Ok(Outcome::Left(input.size()));
        }
        let target = self.place(work, made);
        if !options.force
            && let Found::UpToDate(inode) = earlier::packed(&target, stat)
        {
            if options.remove {
                return self.complete(work, file, stat, target.clone(), || {
                    prove_packed(&target, None, file, stat, &entry.path, options, control)
                });
            }
            self.check_own_name(work)?;
            if let Some(done) = self.up_to_date(&target, true, inode, work, file, stat)? {
                return Ok(done);
            }
        }
        if input.size() < tree.min_size {
            return self.as_it_is(input);
        }
        if matches!(target.stat(), Err(Errno::NAMETOOLONG)) {
            let why = "taken as it is: its name has no room for '.warp' at the end";
            return self.skip(input, why);
        }
        let copy = self.place(work, PathBuf::from(&entry.name));
        if self.output.is_some()
            && !options.force
            && let Found::UpToDate(inode) = earlier::plain(&copy, input.size(), stat)
            && let Some(done) = self.up_to_date(&copy, false, inode, work, file, stat)?
        {
            return Ok(done);
        }
        self.check_own_name(work)?;
        self.check_is_no_input(&target)?;
        if let Some(why) = self.keeps(work, stat, &target)? {
            return self.skip(input, &why);
        }
        let options = PackOptions {
            threads: input.threads,
            force: self.may_replace(work, &target, true),
            ..options.clone()
        };
        let written = pack_opened(file, stat, &entry.path, target, &options, control)?;
        let summary = written.summary;
        let frees = !tree.in_place || written.allocated()? < allocated(stat);
        if summary.packed_size >= summary.original_size || !frees {
            drop(written);
            return self.as_it_is(input);
        }
        let new = written.complete(file, stat, &entry.path, &options, control)?;
        if tree.in_place && !options.force && !has_rights(new.file(), file, stat, &entry.path)? {
            let why = "left as it is: a packed file cannot be given its owner, group, mode or access list";
            return self.skip(input, why);
        }
        self.mark(new.file(), entry, file, stat)?;
        Ok(Outcome::Made(new, summary, *stat))
    }

    fn unpack_one(
        &self,
        input: &Opened<'_>,
        made: PathBuf,
        options: &UnpackOptions,
    ) -> Result<Outcome> {
        let Opened {
            work, file, stat, ..
        } = input;
        let (entry, control) = (&work.entry, self.control);
        let Some(header) = packed_description(file, stat, &entry.path)? else {
            let why = "taken as it is: named .warp, but is none by its header";
            return self.skip(input, why);
        };
        if self.is_name_taken(entry) {
            return self.as_it_is(input);
        }
        let target = self.place(work, made);
        if !options.force
            && let Found::UpToDate(inode) = earlier::plain(&target, header.original_size, stat)
        {
            if options.remove {
                return self.complete(work, file, stat, target.clone(), || {
                    prove_unpacked(&target, None, file, stat, &entry.path, options, control)
                });
            }
            if let Some(done) = self.up_to_date(&target, true, inode, work, file, stat)? {
                return Ok(done);
            }
        }
        if options.remove {
            let force = options.force || self.has_all_names(stat);
            work.source().check_removable(stat, force)?;
        }
        let options = UnpackOptions {
            threads: input.threads,
            force: self.forces(work),
            ..options.clone()
        };
        let (new, summary) = unpack_opened(file, stat, &entry.path, target, &options, control)?;
        let takes_its_place = options.remove && self.output.is_none();
        if takes_its_place && !options.force && !has_rights(new.file(), file, stat, &entry.path)? {
            let why =
                "left as it is: the original cannot be given its owner, group, mode or access list";
            return self.skip(input, why);
        }
        Ok(Outcome::Made(new, summary, *stat))
    }

    /// Copies a file to the other tree, unless that has been done.
    fn copy(&self, work: &Work, file: &File, stat: &Stat) -> Result<Outcome> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let target = self.place(work, PathBuf::from(&work.entry.name));
        if !self.task.replaces()
            && let Found::UpToDate(inode) = earlier::plain(&target, size, stat)
            && let Some(done) = self.up_to_date(&target, false, inode, work, file, stat)?
        {
            return Ok(done);
        }
        let replace = self.may_replace(work, &target, false);
        let copy = plain::copy(file, stat, &work.entry.path, target, replace, self.control)?;
        self.mark(copy.file(), &work.entry, file, stat)?;
        Ok(Outcome::Copied(copy, size))
    }

    /// Why a file of a tree that is packed in place stays as it is, if it does.
    ///
    /// # Errors
    /// Its name cannot be removed, and is not left for that.
    fn keeps(&self, work: &Work, stat: &Stat, target: &Place) -> Result<Option<String>> {
        if self.task.is_in_place() && !self.task.replaces() && target.stat().is_ok() {
            let name = target.name.display();
            return Ok(Some(format!(
                "left as it is: '{name}' exists already, and is not what this file packs to"
            )));
        }
        self.keeps_name(work, stat)
    }

    /// The same of a file that is packed already: why its name is not removed.
    fn keeps_name(&self, work: &Work, stat: &Stat) -> Result<Option<String>> {
        if !self.task.removes() {
            return Ok(None);
        }
        let whole = self.has_all_names(stat);
        if self.task.is_in_place() && !self.task.replaces() && !whole {
            return Ok(Some(format!(
                "left as it is: of its {} names (hard links) some are elsewhere, so packing it frees nothing",
                stat.st_nlink
            )));
        }
        let force = self.task.replaces() || whole;
        work.source().check_removable(stat, force).map(|()| None)
    }

    /// Lets a file that was made of another by an earlier job take its place, once it is proved, unless that frees nothing.
    fn complete(
        &self,
        work: &Work,
        file: &File,
        stat: &Stat,
        made: Place,
        prove: impl FnOnce() -> Result<(Summary, Stat)>,
    ) -> Result<Outcome> {
        let leave = |why: &str| {
            self.control.observer.skipped(&work.entry.path, why);
            Ok(Outcome::Left(u64::try_from(stat.st_size).unwrap_or(0)))
        };
        if let Some(why) = self.keeps_name(work, stat)? {
            return leave(&why);
        }
        let (summary, made_stat) = prove()?;
        let kept = match open_entry(&*made.directory, &made.name, &made.path) {
            Ok((made, _)) => has_rights(&made, file, stat, &work.entry.path)?,
            Err(_) => false,
        };
        let unpacks = matches!(self.task, Task::Unpack(_)) && self.output.is_none();
        let keeps_both = self.task.is_in_place() || unpacks;
        if keeps_both && !self.task.replaces() && !kept {
            return leave(
                "left as it is, beside what was made of it: that cannot be given its owner, group, mode or access list",
            );
        }
        Ok(Outcome::Completed(Completed {
            stat: *stat,
            summary,
            made,
            made_stat,
        }))
    }

    /// Checks that what has the name of a packed file to be made in the same tree is not to be packed itself: by force it
    /// would be replaced, and nothing else has its bytes.
    pub(super) fn check_is_no_input(&self, target: &Place) -> Result<()> {
        let packs = matches!(self.task, Task::Pack(..));
        if !packs || !self.task.replaces() || self.output.is_some() {
            return Ok(());
        }
        let Ok((file, stat)) = open_entry(&*target.directory, &target.name, &target.path) else {
            return Ok(());
        };
        if stat.st_size == 0 || is_packed(&file, &stat, &target.path)? {
            return Ok(());
        }
        let why = "is no packed file, and would be replaced by one: pack or move it first";
        Err(Error::unusable(why).in_file(&target.path))
    }

    /// Proves that what this job has put at `place`, a file of this inode, was made of a file that is to be removed, in this state.
    pub(super) fn prove(
        &self,
        place: &Place,
        inode: (u64, u64),
        file: &File,
        stat: &Stat,
        input: &Path,
    ) -> Result<()> {
        let (own, control) = (Some(inode), self.control);
        match self.task {
            Task::Pack(options, _) => prove_packed(place, own, file, stat, input, options, control),
            Task::Unpack(options) => {
                prove_unpacked(place, own, file, stat, input, options, control)
            }
            Task::Verify(_) => return Ok(()),
        }
        .map(drop)
    }

    /// Whether something else in the source would come to have the name of what is made of this file in another tree.
    pub(super) fn is_name_taken(&self, entry: &Entry) -> bool {
        let made = self.task.name(Path::new(&entry.name));
        self.output.is_some() && made.is_some_and(|name| self.is_met(entry, &name))
    }

    /// Whether the walk meets something of that name where it meets an entry.
    pub(super) fn is_met(&self, entry: &Entry, name: &Path) -> bool {
        let stat = rustix::fs::statat(&*entry.directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let selects = |kind| match self.task {
            Task::Pack(_, tree) => {
                let relative = entry.relative.with_file_name(name);
                tree.selection.takes(&relative, kind)
            }
            Task::Unpack(_) | Task::Verify(_) => true,
        };
        stat.is_ok_and(|stat| selects(FileType::from_raw_mode(stat.st_mode)))
    }
}

/// Whether a program has rights that a packed copy of it would not have: only a privileged user can set them, and nothing else
/// warpfs does needs that.
fn has_capabilities(file: &File) -> bool {
    rustix::fs::fgetxattr(file, "security.capability", &mut [][..] as &mut [u8]).is_ok()
}

/// Whether what was made of a file has its owner, group, mode and access list: all that says who may do what with it.
fn has_rights(made: &File, file: &File, stat: &Stat, path: &Path) -> Result<bool> {
    let rights = |stat: &Stat| (stat.st_uid, stat.st_gid, stat.st_mode);
    let same = rustix::fs::fstat(made).is_ok_and(|made| rights(&made) == rights(stat));
    Ok(same && access_list(made, path)? == access_list(file, path)?)
}
