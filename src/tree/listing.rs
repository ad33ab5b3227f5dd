//! A directory's entries as they show, at one moment.
//!
//! All names lie in one buffer, so that a directory of a million entries costs its names and 24 bytes an entry. The
//! directory stays open with it: attributes of listed entries are then one system call away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::fs::FileType;
use rustix::thread::CpuSet;

use super::listed::{ListedEntries, NameList};
use super::names::{self, Entries, SUFFIX, View, file_type};
use super::numbers::Key;
#[cfg(feature = "remote")]
use super::prefix::ObjectListing;
use super::source::{Directory, Patience, join};
use super::{Attributes, IoContextWith, Kind, NodeId, Tree, cannot_enter};
use crate::error::{IoContext, Result};

/// How many threads look at the files of a long listing: what is not in memory yet waits for the disk, not for processors.
pub(crate) const MOST_THREADS: usize = 4;
/// How many entries are worth a thread.
const ENTRIES_PER_THREAD: usize = 32;
/// How many a thread takes at a time: few enough for all to be done at about the same time.
const ENTRIES_AT_ONCE: usize = 16;

/// What an entry shows as, and whether without its suffix, if that could be found out.
type Shows = (Kind, Option<bool>);

/// Lets this thread, and so those that it starts, be on any processor that the program may use, until it is dropped: a thread
/// may be kept on one, as those are that answer requests by io_uring.
struct Anywhere {
    before: Option<CpuSet>,
}

impl Anywhere {
    fn go() -> Self {
        let program = rustix::thread::sched_getaffinity(Some(rustix::process::getpid()));
        let before = rustix::thread::sched_getaffinity(None).ok();
        let before = before.filter(|before| {
            program.is_ok_and(|program| {
                program != *before && rustix::thread::sched_setaffinity(None, &program).is_ok()
            })
        });
        Self { before }
    }
}

impl Drop for Anywhere {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // It was there before. Otherwise it is as right as slow.
            let _ = rustix::thread::sched_setaffinity(None, before);
        }
    }
}

/// A snapshot of a directory, `.` and `..` first.
#[derive(Debug)]
pub(crate) struct Listing {
    node: NodeId,
    parent: NodeId,
    /// `None` of what is no directory of this machine.
    directory: Option<Arc<Directory>>,
    names: NameList,
    records: Vec<Record>,
    /// What there is instead, if it is of objects.
    #[cfg(feature = "remote")]
    objects: Option<ObjectListing>,
}

#[derive(Debug)]
struct Record {
    inode: u64,
    kind: Kind,
    /// `None` if it could not be found out.
    stripped: Option<bool>,
}

/// One entry of a [`Listing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListedEntry<'a> {
    /// The name it shows under.
    pub(crate) name: &'a [u8],
    /// What it is.
    pub(crate) kind: Kind,
    /// Its inode number as stat will show it, as far as that could be known without reading more.
    pub(crate) inode: u64,
    /// Whether its name in the source has the suffix besides; `None` if it could not be found out whether it shows without.
    stripped: Option<bool>,
}

impl<'a> ListedEntry<'a> {
    #[cfg(feature = "remote")]
    pub(super) fn new(name: &'a [u8], kind: Kind, inode: u64, stripped: Option<bool>) -> Self {
        Self {
            name,
            kind,
            inode,
            stripped,
        }
    }
}

impl Listing {
    pub(super) fn new(node: NodeId, parent: NodeId, directory: Option<Arc<Directory>>) -> Self {
        Self {
            node,
            parent,
            directory,
            names: NameList::default(),
            records: Vec::new(),
            #[cfg(feature = "remote")]
            objects: None,
        }
    }

    /// One of objects, which is found out about as it is asked for.
    #[cfg(feature = "remote")]
    pub(super) fn of_objects(node: NodeId, parent: NodeId, objects: ObjectListing) -> Self {
        Self {
            objects: Some(objects),
            ..Self::new(node, parent, None)
        }
    }

    /// The listing of objects, if it is one.
    #[cfg(feature = "remote")]
    pub(super) fn objects(&self) -> Option<&ObjectListing> {
        self.objects.as_ref()
    }

    pub(super) fn push(&mut self, name: &[u8], kind: Kind, inode: u64, stripped: Option<bool>) {
        self.names.push(name);
        self.records.push(Record {
            inode,
            kind,
            stripped,
        });
    }

    /// Gives back what growing has left over.
    fn shrink(&mut self) {
        self.names.shrink_to_fit();
        self.records.shrink_to_fit();
    }

    /// The memory that its entries take, in bytes; those of objects are shared with the tree, which has counted them.
    pub(crate) fn memory(&self) -> usize {
        self.names.memory() + self.records.capacity() * size_of::<Record>()
    }

    /// Which directory it is of.
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    /// Which directory that lies in.
    pub(super) fn parent(&self) -> NodeId {
        self.parent
    }

    /// Whether there is an entry of which it could not be found out what it is.
    pub(crate) fn is_undecided(&self) -> bool {
        #[cfg(feature = "remote")]
        if let Some(objects) = &self.objects {
            return objects.is_undecided();
        }
        self.records.iter().any(|record| record.stripped.is_none())
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        #[cfg(feature = "remote")]
        if let Some(objects) = &self.objects {
            return objects.len();
        }
        self.records.len()
    }

    /// The entry at `index`; `None` past the last, or if it turns out not to show.
    pub(crate) fn get(&self, index: usize) -> Option<ListedEntry<'_>> {
        #[cfg(feature = "remote")]
        if let Some(objects) = &self.objects {
            return objects.get(index);
        }
        let record = self.records.get(index)?;
        Some(ListedEntry {
            name: self.names.get(index)?,
            kind: record.kind,
            inode: record.inode,
            stripped: record.stripped,
        })
    }
}

impl ListedEntry<'_> {
    /// Whether its name in the source has the suffix besides; `None` if it could not be found out whether it shows without.
    #[cfg(feature = "remote")]
    pub(super) fn stripped(&self) -> Option<bool> {
        self.stripped
    }

    fn source_name(&self) -> Vec<u8> {
        let suffix = if self.stripped == Some(true) {
            SUFFIX
        } else {
            b""
        };
        [self.name, suffix].concat()
    }
}

impl Tree {
    /// The entries of a directory, as they show. A long one is looked at by several threads, on all processors.
    ///
    /// # Errors
    /// The directory cannot be read, is gone or is no longer the same.
    pub(crate) fn list(&self, directory: NodeId) -> Result<Listing> {
        let known = self.known(directory)?;
        let location = join(&known.location, &known.name);
        let path = self.source.path(&location, b"");
        let opened = self.source.readable_directory(&location);
        let opened = opened.map_err(|error| cannot_enter(error, &path))?;
        let device = self.identify_directory(directory, &known, &opened)?.device;
        let opened = Arc::new(opened);
        if device == self.source.device() {
            self.recent.keep(directory, &opened);
        }

        let (mut names, mut entries) = (NameList::default(), Vec::new());
        let only = self.only.as_ref().filter(|_| location.is_empty());
        opened
            .for_each(|name, file_type, inode| {
                if only.is_none_or(|only| **only == *name) {
                    names.push(name);
                    entries.push((file_type, inode));
                }
            })
            .context("cannot list", &path)?;
        let entries = Arc::new(ListedEntries::new(device, names, entries));
        let view = View {
            directory: Arc::clone(&opened),
            entries: Entries::Listed(Arc::clone(&entries)),
        };

        let looked_at = self.all_listed_as(&view, &entries);
        let mut shown = Vec::with_capacity(entries.len());
        for (place, found) in looked_at.into_iter().enumerate() {
            if let (Some((name, _, inode)), Some((kind, stripped))) = (entries.get(place), found) {
                let key = Key {
                    device,
                    inode,
                    decoded: stripped == Some(true) && kind == Kind::File,
                };
                shown.push((name, kind, stripped, key));
            }
        }
        let numbers = self.nodes.numbers(shown.iter().map(|(.., key)| *key));

        let mut listing = Listing::new(directory, known.parent, Some(opened));
        let parent = self.inode_of(known.parent);
        listing.push(b".", Kind::Directory, self.inode_of(directory), Some(false));
        listing.push(b"..", Kind::Directory, parent, Some(false));
        for ((name, kind, stripped, _), number) in shown.into_iter().zip(numbers) {
            let short = names::stripped(name);
            match (stripped, short) {
                (Some(true), Some(short)) => listing.push(short, kind, number, stripped),
                // One of the two it will be, and neither is to be taken for gone.
                (None, Some(short)) if view.listed(short) == Some(None) => {
                    listing.push(name, kind, number, stripped);
                    listing.push(short, kind, number, stripped);
                }
                _ => listing.push(name, kind, number, stripped),
            }
        }
        listing.shrink();
        Ok(listing)
    }

    /// The attributes of a listing's entry, with one lookup of its node counted unless it is `.` or `..`;
    /// `None` if it is no longer what was listed, or was listed though nobody could say what it is: looking it up tells then.
    ///
    /// # Errors
    /// The source cannot be read.
    pub(crate) fn lookup_listed(
        &self,
        listing: &Listing,
        _: usize,
        entry: &ListedEntry<'_>,
    ) -> Result<Option<Attributes>> {
        match entry.name {
            b"." => return self.attributes(listing.node).map(Some),
            b".." => return self.attributes(listing.parent).map(Some),
            _ => {}
        }
        let (Some(directory), Some(stripped)) = (&listing.directory, entry.stripped) else {
            return Ok(None);
        };
        let view = View {
            directory: Arc::clone(directory),
            entries: Entries::Live,
        };
        let name = entry.source_name();
        let path = || self.source.path(view.directory.location(), &name);
        let found = self.source.stat(&view.directory, &name);
        let Some(stat) = found.context_with("cannot examine", path)? else {
            return Ok(None);
        };
        let is_file = file_type(&stat) == FileType::RegularFile;
        let header = if stripped && is_file {
            match self.names(Patience::None).header(&view, &name, &stat)? {
                Some(header) => Some(header),
                None => return Ok(None),
            }
        } else {
            None
        };
        if Kind::of(file_type(&stat)) != Some(entry.kind) {
            return Ok(None);
        }
        self.enter(listing.node, &view, &name, &stat, header)
    }

    /// What each listed entry is, as [`Tree::listed_as`] has it.
    fn all_listed_as(&self, view: &View, entries: &ListedEntries) -> Vec<Option<Shows>> {
        let look_at = |place| {
            let (name, file_type, _) = entries.get(place)?;
            self.listed_as(view, name, file_type)
        };
        let next = AtomicUsize::new(0);
        let look_at_some = || {
            let mut found = Vec::new();
            loop {
                let first = next.fetch_add(ENTRIES_AT_ONCE, Relaxed);
                let places = first..entries.len().min(first.saturating_add(ENTRIES_AT_ONCE));
                if places.is_empty() {
                    return found;
                }
                found.push((first, places.map(look_at).collect::<Vec<_>>()));
            }
        };
        let threads = (entries.len() / ENTRIES_PER_THREAD).clamp(1, MOST_THREADS);
        let _anywhere = (threads > 1).then(Anywhere::go);
        let mut found = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map_while(|_| {
                    let builder = std::thread::Builder::new().name("listing".to_owned());
                    // Without it, the others look at all.
                    builder.spawn_scoped(scope, look_at_some).ok()
                })
                .collect();
            let mut found = look_at_some();
            for thread in others {
                found.extend(thread.join().unwrap_or_default());
            }
            found
        });
        found.sort_unstable_by_key(|(first, _)| *first);
        let mut all = Vec::with_capacity(entries.len());
        for (first, part) in found {
            // What a thread that failed had found is found again.
            all.extend((all.len()..first).map(look_at));
            all.extend(part);
        }
        all.extend((all.len()..entries.len()).map(look_at));
        all
    }

    /// What an entry that is listed as of this type is; `None` if it is gone already.
    fn listed_as(&self, view: &View, name: &[u8], file_type: FileType) -> Option<Shows> {
        let names = self.names(Patience::None);
        let file_type = match file_type {
            FileType::Unknown => names.file_type(view, name).unwrap_or_else(|error| {
                // One entry that cannot be examined must not hide the others, nor be hidden itself.
                tracing::warn!("listed as it is: {error}");
                Some(file_type)
            }),
            file_type => Some(file_type),
        };
        // What could not be looked at is in the log.
        let stripped = names.shows_stripped(view, name).ok();
        let kind = match (file_type, stripped) {
            (Some(file_type), _) => Kind::of(file_type)?,
            (None, Some(_)) => return None,
            (None, None) => Kind::File,
        };
        Some((kind, stripped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpid;
    use rustix::thread::{sched_getaffinity, sched_setaffinity};

    #[test]
    fn a_thread_that_is_kept_on_a_processor_is_anywhere_while_it_lists_and_there_again_afterwards()
    {
        let program = sched_getaffinity(Some(getpid())).unwrap();
        let some = (0..CpuSet::MAX_CPU).find(|&number| program.is_set(number));
        let mut only = CpuSet::new();
        only.set(some.unwrap());
        let here = || sched_getaffinity(None).unwrap();
        let thread = std::thread::spawn(move || {
            sched_setaffinity(None, &only).unwrap();
            let anywhere = Anywhere::go();
            assert_eq!(here(), program);
            assert_eq!(std::thread::spawn(here).join().unwrap(), program);
            drop(anywhere);
            assert_eq!(here(), only);
        });
        thread.join().unwrap();
    }
}
