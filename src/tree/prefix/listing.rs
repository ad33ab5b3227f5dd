//! A directory of objects as it is told, a part at a time: which are packed is found out when a reader gets there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::super::Kind;
use super::super::listing::ListedEntry;
use super::super::numbers::Key as NodeKey;
use super::Prefix;
use super::entries::{Brief, Entries, Record, short_of};

/// How many entries are looked at together: what a reader is told in a few answers.
const PART: usize = 256;

/// What is known of an entry.
const UNKNOWN: u8 = 0;
const AS_IT_IS: u8 = 1;
const STRIPPED: u8 = 2;
const HIDDEN: u8 = 3;

/// See the module's description.
#[derive(Debug)]
pub(in super::super) struct ObjectListing {
    prefix: Arc<Prefix>,
    location: Vec<u8>,
    entries: Arc<Entries>,
    known: Vec<AtomicU8>,
    /// Whether the store did not say of an entry what it is.
    undecided: AtomicBool,
    /// Whether the store does not answer: then nothing more is asked of it, for each question would wait as long.
    gone: AtomicBool,
    /// The inode numbers of the directory and of what it lies in.
    inodes: [u64; 2],
}

/// An entry, and the object behind it.
pub(super) enum Told<'a> {
    Directory(&'a str),
    Object {
        name: &'a str,
        brief: Brief,
        /// `None` if the store does not say for now.
        stripped: Option<bool>,
    },
}

impl ObjectListing {
    pub(super) fn new(
        prefix: &Arc<Prefix>,
        location: Vec<u8>,
        entries: Arc<Entries>,
        inodes: [u64; 2],
    ) -> Self {
        Self {
            prefix: Arc::clone(prefix),
            location,
            known: (0..entries.len()).map(|_| AtomicU8::new(UNKNOWN)).collect(),
            undecided: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            entries,
            inodes,
        }
    }

    /// How many entries there are, those included that turn out not to show.
    pub(in super::super) fn len(&self) -> usize {
        self.entries.len() + 2
    }

    /// The entry at `index`; `None` if it does not show, or past the last. May ask the store.
    pub(in super::super) fn get(&self, index: usize) -> Option<ListedEntry<'_>> {
        let of = |name: &'static [u8], inode| {
            ListedEntry::new(name, Kind::Directory, inode, Some(false))
        };
        match index {
            0 => return Some(of(b".", self.inodes[0])),
            1 => return Some(of(b"..", self.inodes[1])),
            _ => {}
        }
        let inode = |key| {
            let numbers = self.prefix.nodes.numbers(std::iter::once(key));
            numbers.first().copied().unwrap_or_default()
        };
        Some(match self.told(index)? {
            Told::Directory(name) => {
                let key = self.prefix.directory_key(&self.location, name);
                ListedEntry::new(name.as_bytes(), Kind::Directory, inode(key), Some(false))
            }
            Told::Object {
                name,
                brief,
                stripped,
            } => {
                let is_stripped = stripped == Some(true);
                // What nobody can tell for now is most likely what it is called. Where it is not, its other name is free.
                let is_free = |short: &&str| {
                    is_stripped
                        || (!self.entries.has_directory(short)
                            && self.entries.object(short).is_none())
                };
                let short = match stripped {
                    Some(false) => None,
                    _ => short_of(name).filter(is_free),
                };
                let key = NodeKey {
                    device: brief.identity.device,
                    inode: brief.identity.inode,
                    decoded: is_stripped,
                };
                let name = short.unwrap_or(name).as_bytes();
                ListedEntry::new(name, Kind::File, inode(key), stripped)
            }
        })
    }

    /// Whether there was an entry so far of which the store did not say what it is.
    pub(in super::super) fn is_undecided(&self) -> bool {
        self.undecided.load(Ordering::Relaxed)
    }

    /// Where the directory lies.
    pub(super) fn location(&self) -> &[u8] {
        &self.location
    }

    /// What is at `index`, as [`ObjectListing::get`].
    pub(super) fn told(&self, index: usize) -> Option<Told<'_>> {
        let index = index.checked_sub(2)?;
        let record = self.entries.get(index)?;
        let Some(brief) = record.object else {
            return Some(Told::Directory(&record.name));
        };
        let stripped = match self.decided(index, record)? {
            HIDDEN => return None,
            UNKNOWN => None,
            decided => Some(decided == STRIPPED),
        };
        Some(Told::Object {
            name: &record.name,
            brief,
            stripped,
        })
    }

    /// What is known of an entry when it has been looked at; nothing is, if the store does not say. Once it does not answer, it is
    /// asked no more.
    fn decided(&self, index: usize, record: &Record) -> Option<u8> {
        let known = self.known.get(index)?;
        match known.load(Ordering::Relaxed) {
            UNKNOWN => {}
            decided => return Some(decided),
        }
        if short_of(&record.name).is_some() && !self.is_gone() && !self.look_ahead(index) {
            self.gone.store(true, Ordering::Relaxed);
        }
        let stripped =
            self.entries
                .shows_stripped(&record.name, |name, brief| match self.is_gone() {
                    true => self.prefix.is_known_as_packed(brief),
                    false => self.prefix.is_packed(&self.location, name, brief),
                });
        let decided = match stripped {
            Ok(true) => STRIPPED,
            Ok(false) if self.entries.has_directory(&record.name) => HIDDEN,
            Ok(false) => AS_IT_IS,
            Err(error) => {
                if error.is_io(io::ErrorKind::TimedOut) {
                    self.gone.store(true, Ordering::Relaxed);
                }
                if self.entries.has_directory(&record.name) {
                    return Some(HIDDEN);
                }
                self.undecided.store(true, Ordering::Relaxed);
                return Some(UNKNOWN);
            }
        };
        known.store(decided, Ordering::Relaxed);
        Some(decided)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Looks at the entries that a reader comes to next; says whether the store answers.
    fn look_ahead(&self, first: usize) -> bool {
        let records = (first..self.entries.len().min(first + PART))
            .filter_map(|index| self.entries.get(index));
        let objects = records.filter(|record| short_of(&record.name).is_some());
        self.prefix.look_ahead(objects.filter_map(|record| {
            Some((
                self.prefix.key_in(&self.location, &record.name),
                record.object?,
            ))
        }))
    }
}
