//! Under which name each entry of a source directory shows.
//!
//! An entry named `x.warp`, where `x` is a name that an entry can have (not empty, `.` or `..`), is *strippable* if it is
//! - a regular file whose fixed header says that it is packed, or
//! - a symlink whose target is shown without its suffix (see below).
//!
//! It *shows stripped*, as `x`, if it is strippable and the name `x` is free: there is no entry `x` beside it, or there
//! is one that shows stripped itself. Every other entry shows under its own name. One suffix is taken off, never two.
//!
//! So of `x`, `x.warp` and `x.warp.warp`, all packed but `x`, each shows under its own name, because `x` keeps its own;
//! without `x` the other two show as `x` and `x.warp`: a packed tree shows the tree it was packed from, even if that held
//! `.warp` files already. Two entries cannot share a name `n`: the entry `n` shows as `n` exactly if it does not show
//! stripped, and `n.warp` shows as `n` only if there is no `n` or `n` does show stripped. Nor is an entry hidden: each
//! shows under its own name or its stripped one.
//!
//! A symlink's target is shown without its last `.warp` if the user, following it through the mount, gets to a directory
//! of the source in which the target's last name shows stripped. To know this, the target is walked here, name by name,
//! as the user would meet it: the mount point is where the source's root is, and what lies outside of it is taken by its
//! letters alone. An absolute target therefore counts if it leads through the mount point (mounted over itself, or
//! a target that was made for this mount), and is left alone if it leads to the source past the mount, where the file still
//! has its suffix. Links on the way are followed, at most [`MOST_LINKS`] in all; loops and dangling links stay as they are.
//!
//! Showing stripped is one conjunction: of the entry, of the entry that has its stripped name, of what links lead to, and
//! so on. [`Names::shows_stripped`] works through it as a list of questions and gives up with "no" at the first "no" or
//! when too many links were followed. An entry's questions contain those of the entry whose name it would take, so
//! giving up never lets two entries share a name.

use std::sync::Arc;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::headers::Headers;
use super::listed::ListedEntries;
use super::source::{Directory, Patience, Source, join};
use crate::archive::Glance;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::identity::Identity;

/// The suffix of packed files.
pub(super) const SUFFIX: &[u8] = b".warp";

/// How many links are followed to answer one question about a name: as many as the kernel follows (MAXSYMLINKS).
const MOST_LINKS: u32 = 40;

/// The name without its suffix; `None` if it has none, or if what remains is no name that an entry can have.
pub(super) fn stripped(name: &[u8]) -> Option<&[u8]> {
    let rest = name.strip_suffix(SUFFIX)?;
    (!matches!(rest, b"" | b"." | b"..")).then_some(rest)
}

/// The rules, applied to a source.
pub(super) struct Names<'a> {
    pub(super) source: &'a Source,
    pub(super) headers: &'a Headers,
    /// The mount point's absolute path, name by name.
    pub(super) mountpoint: &'a [Vec<u8>],
    /// How long it is waited for files that others have leases on.
    pub(super) patience: Patience,
}

/// An open directory, and which of its entries there are.
#[derive(Clone)]
pub(super) struct View {
    pub(super) directory: Arc<Directory>,
    pub(super) entries: Entries,
}

/// Where the answer to "is there an entry of this name" comes from.
#[derive(Clone)]
pub(super) enum Entries {
    /// The file system, asked each time.
    Live,
    /// A listing.
    Listed(Arc<ListedEntries>),
    /// There is this one entry, whatever else lies in the directory.
    Only(Arc<[u8]>),
}

/// A source entry that shows under a name asked for.
pub(super) struct Found {
    /// Its own name.
    pub(super) source_name: Vec<u8>,
    /// What it is.
    pub(super) stat: Statx,
    /// Its header, if it shows as the original.
    pub(super) header: Option<Glance>,
}

impl View {
    pub(super) fn live(directory: Directory) -> Self {
        Self {
            directory: Arc::new(directory),
            entries: Entries::Live,
        }
    }

    /// The listed type of `name`; `None` if the listing does not decide, and the file system has to be asked.
    pub(super) fn listed(&self, name: &[u8]) -> Option<Option<FileType>> {
        match &self.entries {
            Entries::Live => None,
            Entries::Listed(listed) => {
                let found = listed.find(name);
                Some(found.map(|(file_type, _)| file_type))
            }
            Entries::Only(only) if **only == *name => None,
            Entries::Only(_) => Some(None),
        }
    }

    /// The device and the inode number that `name` was listed with.
    fn listed_file(&self, name: &[u8]) -> Option<(u64, u64)> {
        let Entries::Listed(listed) = &self.entries else {
            return None;
        };
        let (_, inode) = listed.find(name)?;
        Some((listed.device, inode))
    }
}

impl Names<'_> {
    /// The entry that shows as `name`.
    pub(super) fn shown_as(&self, view: &View, name: &[u8]) -> Result<Option<Found>> {
        // How long a name may be is for the source's file system to say: some count characters, and not bytes.
        let asked = match self.try_stat(view, name) {
            Ok(asked) => asked,
            Err(error) => return self.failed(view, name, "cannot examine", error),
        };
        if let Some(stat) = asked
            && !self.shows_stripped(view, name)?
        {
            return Ok(Some(Found {
                source_name: name.to_vec(),
                stat,
                header: None,
            }));
        }
        let source_name = [name, SUFFIX].concat();
        if !self.shows_stripped(view, &source_name)? {
            return Ok(None);
        }
        // After its header was read for that: the one that is remembered is of this very state then, but for a change just now.
        let Some(stat) = self.stat(view, &source_name)? else {
            return Ok(None);
        };
        let header = self.header_of_stripped(view, &source_name, &stat)?;
        Ok(Some(Found {
            source_name,
            stat,
            header,
        }))
    }

    /// Whether the entry `name` shows stripped.
    pub(super) fn shows_stripped(&self, view: &View, name: &[u8]) -> Result<bool> {
        let mut links = MOST_LINKS;
        let mut questions = Vec::new();
        if !self.may_show_stripped(view, name, &mut links, &mut questions)? {
            return Ok(false);
        }
        while let Some((view, name)) = questions.pop() {
            if !self.may_show_stripped(&view, &name, &mut links, &mut questions)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the entry `name` shows stripped if all entries do that are added to `questions`.
    fn may_show_stripped(
        &self,
        view: &View,
        name: &[u8],
        links: &mut u32,
        questions: &mut Vec<(View, Vec<u8>)>,
    ) -> Result<bool> {
        let Some(short) = stripped(name) else {
            return Ok(false);
        };
        let file_type = self.file_type(view, name)?;
        let is_link = match file_type {
            Some(FileType::RegularFile) => false,
            Some(FileType::Symlink) => true,
            Some(_) | None => return Ok(false),
        };
        let is_taken = self.file_type(view, short)?.is_some();
        // What keeps its own name leaves it to nothing, whatever that may be.
        if is_taken && stripped(short).is_none() {
            return Ok(false);
        }
        match is_link {
            false if !self.is_packed(view, name)? => return Ok(false),
            false => {}
            true => {
                let target = match self.source.read_link(&view.directory, name) {
                    Ok(target) => target,
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
                    Err(error) => {
                        return self.failed(view, name, "cannot read the link", error);
                    }
                };
                match self.follow(view, &target, links)? {
                    Some(question) => questions.push(question),
                    None => return Ok(false),
                }
            }
        }
        if is_taken {
            questions.push((view.clone(), short.to_vec()));
        }
        Ok(true)
    }

    /// Whether the regular file `name` is packed by its header.
    fn is_packed(&self, view: &View, name: &[u8]) -> Result<bool> {
        let file = view.listed_file(name);
        if let Some(file) = file.filter(|(device, _)| self.source.lists_files_numbers(*device)) {
            let directory = &view.directory;
            let unseen = self
                .headers
                .of_unseen(self.source, directory, name, file, self.patience);
            if let Some(header) = unseen {
                return header.map(|header| header.is_some());
            }
        }
        let stat = self.stat(view, name)?;
        let Some(stat) = stat.filter(|stat| file_type(stat) == FileType::RegularFile) else {
            return Ok(false);
        };
        let (directory, identity) = (&view.directory, Identity::from(&stat));
        self.headers
            .is_packed(self.source, directory, name, &identity, self.patience)
    }

    /// The target of a link in `view`, as it shows.
    pub(super) fn shown_target(&self, view: &View, mut target: Vec<u8>) -> Result<Vec<u8>> {
        if let Some(short) = stripped(&target).map(<[u8]>::len)
            && let Some((view, name)) = self.follow(view, &target, &mut { MOST_LINKS })?
            && self.shows_stripped(&view, &name)?
        {
            target.truncate(short);
        }
        Ok(target)
    }

    /// The directory and the last name a link's target leads to, if that lies in the source and has the suffix.
    fn follow(
        &self,
        view: &View,
        target: &[u8],
        links: &mut u32,
    ) -> Result<Option<(View, Vec<u8>)>> {
        let Some(remaining) = links.checked_sub(1) else {
            return Ok(None);
        };
        *links = remaining;
        let split = target.iter().rposition(|&byte| byte == b'/');
        let (way, last) = target.split_at(split.map_or(0, |slash| slash + 1));
        if stripped(last).is_none() {
            return Ok(None);
        }
        let Some(location) = self.walk(view.directory.location(), way, links)? else {
            return Ok(None);
        };
        if location == view.directory.location() {
            return Ok(Some((view.clone(), last.to_vec())));
        }
        match self.source.directory(&location) {
            Ok(directory) => Ok(Some((View::live(directory), last.to_vec()))),
            Err(error) if leads_nowhere(error) => Ok(None),
            Err(error) => Err(error).context("cannot open", &self.source.path(&location, b"")),
        }
    }

    /// Walks `way` from the directory at `from`, as the user would through the mount, and returns the location it ends at;
    /// `None` if it ends outside or nowhere.
    fn walk(&self, from: &[u8], way: &[u8], links: &mut u32) -> Result<Option<Vec<u8>>> {
        let names = |path: &[u8]| -> Vec<Vec<u8>> {
            let names = path.split(|&byte| byte == b'/').map(<[u8]>::to_vec);
            names
                .filter(|name| !name.is_empty() && name != b".")
                .collect()
        };
        let mut position = Vec::new();
        if !way.starts_with(b"/") {
            position.extend_from_slice(self.mountpoint);
            position.extend(names(from));
        }
        let mut ahead = names(way);
        ahead.reverse();
        while let Some(name) = ahead.pop() {
            if name == b".." {
                position.pop();
                continue;
            }
            let Some(location) = self.location_of(&position) else {
                position.push(name);
                continue;
            };
            let target = match self.step(&location, &name) {
                Ok(Step::Into) => {
                    position.push(name);
                    continue;
                }
                Ok(Step::Link(target)) => target,
                Err(error) if leads_nowhere(error) => return Ok(None),
                Err(error) => {
                    return Err(error)
                        .context("cannot follow", &self.source.path(&location, &name));
                }
            };
            let Some(remaining) = links.checked_sub(1) else {
                return Ok(None);
            };
            *links = remaining;
            if target.starts_with(b"/") {
                position.clear();
            }
            ahead.extend(names(&target).into_iter().rev());
        }
        Ok(self.location_of(&position))
    }

    fn step(&self, location: &[u8], name: &[u8]) -> std::result::Result<Step, Errno> {
        let directory = self.source.directory(location)?;
        let found = self.source.stat(&directory, name)?.ok_or(Errno::NOENT)?;
        match file_type(&found) {
            FileType::Directory => Ok(Step::Into),
            FileType::Symlink => Ok(Step::Link(self.source.read_link(&directory, name)?)),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// The location of an absolute position, if it lies at or below the mount point.
    fn location_of(&self, position: &[Vec<u8>]) -> Option<Vec<u8>> {
        let below = position.strip_prefix(self.mountpoint)?;
        Some(
            below
                .iter()
                .fold(Vec::new(), |path, name| join(&path, name)),
        )
    }

    /// The header of an entry that is a packed file by its header, in the state that `stat` is of; whether it shows as one is
    /// decided elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if it is in another state by now; the system could not say.
    pub(super) fn header(&self, view: &View, name: &[u8], stat: &Statx) -> Result<Option<Glance>> {
        if file_type(stat) != FileType::RegularFile {
            return Ok(None);
        }
        let (directory, identity) = (&view.directory, Identity::from(stat));
        self.headers
            .of(self.source, directory, name, &identity, self.patience)
    }

    /// The header of an entry that was just found to show stripped: every regular file that does has one.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] if it has become another meanwhile, which is not to show under the name of the one before; the system
    /// could not say.
    pub(super) fn header_of_stripped(
        &self,
        view: &View,
        name: &[u8],
        stat: &Statx,
    ) -> Result<Option<Glance>> {
        let header = self.header(view, name, stat)?;
        if header.is_none() && file_type(stat) == FileType::RegularFile {
            let path = self.source.path(view.directory.location(), name);
            return Err(Error::from(ErrorKind::Changed).in_file(&path));
        }
        Ok(header)
    }

    /// What `name` is; `None` if there is no such entry.
    pub(super) fn file_type(&self, view: &View, name: &[u8]) -> Result<Option<FileType>> {
        match view.listed(name) {
            None | Some(Some(FileType::Unknown)) => {
                Ok(self.stat(view, name)?.map(|stat| file_type(&stat)))
            }
            Some(listed) => Ok(listed),
        }
    }

    fn try_stat(&self, view: &View, name: &[u8]) -> std::result::Result<Option<Statx>, Errno> {
        match view.listed(name) {
            Some(None) => Ok(None),
            _ => self.source.stat(&view.directory, name),
        }
    }

    fn stat(&self, view: &View, name: &[u8]) -> Result<Option<Statx>> {
        match self.try_stat(view, name) {
            // A name too long to exist: what a suffix too much makes of a long one.
            Err(Errno::NAMETOOLONG) => Ok(None),
            Err(error) => self.failed(view, name, "cannot examine", error),
            Ok(found) => Ok(found),
        }
    }

    fn failed<T>(&self, view: &View, name: &[u8], action: &'static str, error: Errno) -> Result<T> {
        let path = self.source.path(view.directory.location(), name);
        Err(error).context(action, &path)
    }
}

/// What a name on the way of a link is.
enum Step {
    Into,
    Link(Vec<u8>),
}

/// Whether a walk that met this error has no destination, as opposed to one that could not be made.
fn leads_nowhere(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::ACCESS
            | Errno::NAMETOOLONG
            | Errno::XDEV
    )
}

/// The file type a stat gives.
pub(super) fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}
