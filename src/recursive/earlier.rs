//! What an earlier run of the same job has left: what of it is up to date, and what may be replaced or removed.
//!
//! What is made of a file has its modification time and says how long it was, so a later run sees without reading it that
//! nothing is to be done. How it was packed is not compared. Where the file has changed, what is there is replaced only if
//! it is the job's own, by its mark (see `marks`). So no job replaces or removes what another tree's made. Where there are no such
//! attributes, nothing is replaced. A killed run's temporary files are told from a living one's by the lock that the latter holds.
//!
//! Owner, access list and mode of what is up to date follow those of its source, for what has been closed to others since then must not
//! stay open to them there. But nobody is given what was not made of his own file: see [`Tree::up_to_date`].

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock};
use rustix::process::geteuid;

use super::marks::{Mark, Origin};
use super::names::{Renewal, Whose, is_as_made};
use super::{Made, Outcome, Task, Tree, Work};
use crate::error::Result;
use crate::index::INDEX_NAME;
use crate::output::{
    access_list, check_room, copy_attributes, is_whole_name, narrow_access, temporary_of,
};
use crate::pack::{is_packed, open_entry, packed_description};
use crate::place::{Place, inode_of};
use crate::unpack::original_name;
use crate::walk::{Entry, names_in};

/// A second in nanoseconds.
const SECOND: i128 = 1_000_000_000;
/// What file systems keep times to that keep them less finely than others: NTFS and SMB, UDF and servers, exFAT.
const GRAINS: [i128; 4] = [100, SECOND / 1_000_000, SECOND / 1000, SECOND / 100];

/// What is found where a result is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The result of the file as it is now; its device and inode.
    UpToDate((u64, u64)),
    /// Nothing, or something else.
    Other,
}

/// Looks for a file packed from one with these attributes.
pub(super) fn packed(place: &Place, original: &Stat) -> Found {
    let Ok((file, stat)) = open_entry(&*place.directory, &place.name, &place.path) else {
        return Found::Other;
    };
    match packed_description(&file, &stat, &place.path) {
        Ok(Some(header)) => {
            let size = u64::try_from(original.st_size).unwrap_or(0);
            match header.original_size == size && same_time(&stat, original, || is_on_fat(place)) {
                true => Found::UpToDate(inode_of(&stat)),
                false => Found::Other,
            }
        }
        Ok(None) | Err(_) => Found::Other,
    }
}

/// Looks for a plain file of so many bytes, with the time of the one it is made of.
pub(super) fn plain(place: &Place, size: u64, original: &Stat) -> Found {
    let Ok(stat) = place.stat() else {
        return Found::Other;
    };
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let same_size = u64::try_from(stat.st_size) == Ok(size);
    match is_file && same_size && same_time(&stat, original, || is_on_fat(place)) {
        true => Found::UpToDate(inode_of(&stat)),
        false => Found::Other,
    }
}

/// Whether a result is on FAT, by its number in linux/magic.h.
fn is_on_fat(place: &Place) -> bool {
    const FAT: rustix::fs::FsWord = 0x4d44;
    rustix::fs::fstatfs(&*place.directory).is_ok_and(|found| found.f_type == FAT)
}

/// Whether a result has the modification time of what it was made of, as far as its file system keeps it. To two seconds FAT alone
/// does: where they are kept to one, what is written anew in the second after must not pass for what it was.
fn same_time(made: &Stat, of: &Stat, is_on_fat: impl FnOnce() -> bool) -> bool {
    let time = nanoseconds(made.st_mtime, made.st_mtime_nsec);
    let wanted = nanoseconds(of.st_mtime, of.st_mtime_nsec);
    let cut = |grain: i128| wanted - wanted.rem_euclid(grain);
    // Nobody chose this one, so it shows how finely the file system keeps times.
    let changed = nanoseconds(made.st_ctime, made.st_ctime_nsec);
    let keeps = |grain: i128| changed.rem_euclid(grain) == 0;
    let coarser = || {
        GRAINS
            .into_iter()
            .any(|grain| time == cut(grain) && keeps(grain))
    };
    time == wanted || time == cut(SECOND) || coarser() || time == cut(2 * SECOND) && is_on_fat()
}

fn nanoseconds(seconds: i64, rest: impl Into<i128>) -> i128 {
    i128::from(seconds) * SECOND + rest.into()
}

/// Whether a directory is as a run leaves it that is killed before it can mark what it has just made. So may be one that its owner has
/// made for himself: it is for those alone that lie in one of ours.
pub(super) fn was_just_made(directory: &OwnedFd, whose: Whose) -> bool {
    let mode = rustix::fs::fstat(directory).map(|stat| Mode::from_raw_mode(stat.st_mode));
    let bits = Mode::RWXU | Mode::RWXG | Mode::RWXO;
    mode.is_ok_and(|mode| mode & bits == Mode::RWXU)
        && is_as_made(directory, whose).unwrap_or(false)
}

/// Removes the temporary files in `target` that a killed run of the same task, on what is in `source`, has left there.
pub(super) fn remove_leftovers(task: Task<'_>, source: &OwnedFd, target: &OwnedFd) {
    for name in names_in(target).unwrap_or_default() {
        if temporary_of(&name).is_some_and(|of| is_made(task, source, of))
            && !is_in_use(target, &name)
        {
            let _ = rustix::fs::unlinkat(target, &name, AtFlags::empty());
        }
    }
}

/// Whether the task makes something of that name, of something in this directory or, as an index, of all there is.
fn is_made(task: Task<'_>, source: &OwnedFd, name: &OsStr) -> bool {
    let is_there = |name: &Path| {
        !name.as_os_str().is_empty()
            && rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    };
    let made_from = match task {
        Task::Pack(..) if name == INDEX_NAME => return true,
        Task::Pack(..) => original_name(Path::new(name)),
        Task::Unpack(_) => Some(crate::pack::packed_name(Path::new(name))),
        Task::Verify(_) => return false,
    };
    !is_whole_name(name)
        || is_there(Path::new(name))
        || made_from.is_some_and(|from| is_there(&from))
}

/// Whether somebody is still writing a temporary file, or it cannot be told.
pub(super) fn is_in_use(directory: impl AsFd, name: &OsStr) -> bool {
    let open = |access: OFlags| {
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(&directory, name, flags, Mode::empty())
    };
    // NFS has nobody lock for himself alone who may not write.
    let Ok(file) = open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY)) else {
        return true;
    };
    let regular = rustix::fs::fstat(&file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    !regular || flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}

impl Tree<'_> {
    /// What is done with a result that is up to date, of a file that is open and in this state: nothing beside its original. In another tree
    /// it is given the owner, access list and mode of the file as they are now, if
    /// - it belongs to the owner and the group that the file has: then it goes to nobody; or
    /// - it was made of this very file, or for what had this place and these rights, and belongs to whom the job runs as, so that nobody else can
    ///   have said so.
    ///
    /// What else was made of what is at this place is made anew (`None`): somebody may have put another's result there, or his own file in the
    /// place of the source. What bears no mark is given to nobody, but closed to those whom the file is closed to. What was made of another file of
    /// the tree is not what the job would make.
    pub(super) fn up_to_date(
        &self,
        place: &Place,
        made: bool,
        inode: (u64, u64),
        work: &Work,
        file: &File,
        stat: &Stat,
    ) -> Result<Option<Outcome>> {
        let done = Some(Outcome::UpToDate(Made { made, inode }));
        if self.output.is_none() {
            return Ok(done);
        }
        let (found, found_stat) = open_entry(&*place.directory, &place.name, &place.path)?;
        let origin = Origin::of(&work.entry.relative, file, stat, &work.entry.path)?;
        let mark = self.mark_on(&found, &found_stat, &origin);
        match mark {
            Mark::OfAnother => return Ok(None),
            // Should it have another owner, its file system keeps none, this user may not give it, or somebody has chosen so.
            Mark::Own {
                same_access: true, ..
            } => return Ok(done),
            Mark::Own { .. } | Mark::None => {}
        }
        let access = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
        let same = access(&found_stat) == access(stat)
            && access_list(&found, &place.path)? == access_list(file, &work.entry.path)?;
        match may_be_given(&found_stat, stat, mark) {
            _ if same => {}
            true => copy_attributes(file, stat, &found, &place.path)?,
            false if mark.is_own() => return Ok(None),
            false => narrow_access(file, stat, &found, &place.path)?,
        }
        if mark.is_own() {
            self.put_mark(&found, &origin);
        }
        Ok(done)
    }

    /// What a directory of the other tree is to be given, that is of this entry of the source or, at the root, of this one; `made` says whether it is new.
    /// Until it has that, its owner may make names in it. The same rules hold as for files that are up to date.
    pub(super) fn renewal(
        &self,
        directory: &OwnedFd,
        made: bool,
        relative: &Path,
        of: impl AsFd,
        path: &Path,
    ) -> Option<Renewal> {
        let attributes = Renewal::Attributes {
            keep_mark: matches!(self.task, Task::Pack(..)),
        };
        let states =
            rustix::fs::fstat(directory).and_then(|found| Ok((found, rustix::fs::fstat(&of)?)));
        let (found, stat) = states.ok()?;
        let origin = Origin::of(relative, &of, &stat, path).ok()?;
        if made {
            self.put_mark(directory, &origin);
            return Some(attributes);
        }
        // What an earlier run was interrupted in has not got its attributes yet.
        let mark = match &self.marks {
            Some(marks) => marks.read(directory, &found, &origin),
            None => Mark::None,
        };
        if !mark.is_own() && !self.task.replaces() {
            return None;
        }
        if may_be_given(&found, &stat, mark) || self.task.replaces() && is_ours(&found) {
            allow_owner(directory);
            return Some(attributes);
        }
        if is_ours(&found) {
            allow_owner(directory);
        }
        mark.is_own().then_some(Renewal::Narrower)
    }

    /// Marks a file made of one of the tree, if what the job makes is to be told later.
    ///
    /// # Errors
    /// The access list of the one cannot be read.
    pub(super) fn mark(&self, made: &File, entry: &Entry, file: &File, stat: &Stat) -> Result<()> {
        if self.packs_elsewhere() {
            self.put_mark(made, &Origin::of(&entry.relative, file, stat, &entry.path)?);
        }
        Ok(())
    }

    fn put_mark(&self, on: impl AsFd, origin: &Origin) {
        if let Some(marks) = &self.marks {
            marks.put(on, origin);
        }
    }

    /// What the mark on a file says; only packing into another tree makes such.
    fn mark_on(&self, found: &File, stat: &Stat, origin: &Origin) -> Mark {
        match &self.marks {
            Some(marks) if self.packs_elsewhere() => marks.read(found, stat, origin),
            _ => Mark::None,
        }
    }

    /// Whether what is there may be replaced: by force, or as the result of what was at this place of the tree before.
    pub(super) fn may_replace(&self, work: &Work, target: &Place, made: bool) -> bool {
        self.forces(work) || self.is_own(work, target, made)
    }

    /// Whether what is in the way of what is made of an entry goes by force. Not where it may be an input itself.
    pub(super) fn forces(&self, work: &Work) -> bool {
        self.task.replaces() && !work.goes_among_inputs
    }

    fn is_own(&self, work: &Work, target: &Place, made: bool) -> bool {
        let opened = open_entry(&*target.directory, &target.name, &target.path);
        opened.is_ok_and(|(found, found_stat)| {
            let mark = self.mark_on(&found, &found_stat, &Origin::named(&work.entry));
            mark.is_own()
                && (!made || matches!(is_packed(&found, &found_stat, &target.path), Ok(true)))
        })
    }

    /// Checks that nothing stays under a file's own name beside what it is packed to in another tree: it would stand for the
    /// file in a mount, and come back instead of it when the tree is unpacked.
    pub(super) fn check_own_name(&self, work: &Work) -> Result<()> {
        if !self.packs_elsewhere() {
            return Ok(());
        }
        let own = self.place(work, PathBuf::from(&work.entry.name));
        check_room(
            &own,
            self.takes_own_name(work) || self.is_own(work, &own, false),
        )
    }

    /// Whether what has the own name of something that is packed goes by force.
    fn takes_own_name(&self, work: &Work) -> bool {
        self.packs_elsewhere() && self.forces(work)
    }

    fn packs_elsewhere(&self) -> bool {
        self.output.is_some() && matches!(self.task, Task::Pack(..))
    }

    /// What goes when a file has its new result: what an earlier run made of it, if it is packed now and was not then or the
    /// other way round; by force whatever has the own name of what is packed.
    pub(super) fn earlier_instead(&self, work: &Work, made: bool) -> Option<Place> {
        let own = Path::new(&work.entry.name);
        let name = match made {
            true => own.to_owned(),
            false => self.task.name(own)?,
        };
        // What has a name of its own in the source has it there too.
        let taken = !made && self.is_met(&work.entry, &name);
        let place = self.place(work, name);
        let goes = match made && self.takes_own_name(work) {
            true => place.stat().is_ok(),
            false => !taken && self.is_own(work, &place, !made),
        };
        goes.then_some(place)
    }
}

/// Whether a result may be given the owner and the mode that its source has by now: see [`Tree::up_to_date`].
fn may_be_given(found: &Stat, of: &Stat, mark: Mark) -> bool {
    let owner = |stat: &Stat| (stat.st_uid, stat.st_gid);
    let was_made_for_it = match mark {
        Mark::Own {
            same_file,
            same_place,
            same_access,
        } => same_file || same_place && same_access,
        Mark::None | Mark::OfAnother => false,
    };
    owner(found) == owner(of) || was_made_for_it && is_ours(found)
}

/// Whether something belongs to whom the job runs as.
fn is_ours(found: &Stat) -> bool {
    found.st_uid == geteuid().as_raw()
}

/// Lets the owner do in a directory what he likes, until its mode is set again.
fn allow_owner(directory: &OwnedFd) {
    if let Ok(stat) = rustix::fs::fstat(directory) {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        if !mode.contains(Mode::RWXU) {
            // To whom it may not be done, making a name says why.
            let _ = rustix::fs::fchmod(directory, mode | Mode::RWXU);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file's state with such a modification time and change time, in nanoseconds.
    fn state(modified: i128, changed: i128) -> Stat {
        let mut stat = rustix::fs::stat("/").unwrap();
        stat.st_mtime = modified.div_euclid(SECOND) as _;
        stat.st_mtime_nsec = modified.rem_euclid(SECOND) as _;
        stat.st_ctime = changed.div_euclid(SECOND) as _;
        stat.st_ctime_nsec = changed.rem_euclid(SECOND) as _;
        stat
    }

    #[test]
    fn what_a_coarser_file_system_has_is_not_made_anew_by_every_run() {
        let changed = 1_700_000_009_080_000_000;
        for time in [1_700_000_001_987_654_321, -1_987_654_321] {
            let of = state(time, time);
            for grain in GRAINS.into_iter().chain([1, SECOND]) {
                let cut = time - time.rem_euclid(grain);
                assert!(same_time(&state(cut, changed), &of, || false), "{grain}");
                let other = cut + grain.max(2);
                assert!(!same_time(&state(other, changed), &of, || false), "{grain}");
            }
            let cut = time - time.rem_euclid(2 * SECOND);
            assert!(same_time(&state(cut, changed), &of, || true));
        }
        // Where times are kept to a second, what has two of them is of an earlier state.
        let of = state(1_700_000_001_987_654_321, 0);
        let earlier = 1_700_000_000_000_000_000;
        assert!(!same_time(&state(earlier, earlier), &of, || false));
        // Where the change time is kept more finely, so is the other: it was made of an earlier state.
        for earlier in [1_700_000_000_000_000_000, 1_700_000_001_980_000_000] {
            let found = state(earlier, changed + 123_456_789);
            assert!(!same_time(&found, &of, || false));
        }
    }
}
