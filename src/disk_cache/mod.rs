//! A cache of bytes on a local disk, for what comes from far away: it outlives mounts and crashes, and many processes share
//! one.
//!
//! An entry is an extent of an object: the object by a key of 32 bytes that its caller makes up (equal keys promise equal
//! bytes), an offset and a length. What is asked for is an entry exactly, or a miss. Nothing that lies in the directory is
//! believed: an entry is handed out only if a checksum over key, offset, length and bytes agrees, so that what was torn by a
//! crash, rotted on the disk or put there by somebody else is a miss and never a wrong byte. Therefore nothing is ever
//! synced.
//!
//! # Layout
//! Entries are appended to **segments**, files named by ever growing numbers ([`segment`]); **one index**, a table of
//! buckets in a file of its own, says which segment holds an entry and where ([`index`]). A file for every entry would be
//! simpler, but 100 GB in entries of 40 KiB are two and a half million files to make, list and remove; and an index in
//! memory would be 40 MB or more for every mount, and would have to be read at its start. Here a mount starts at once
//! whatever is there, uses no memory that grows, sees at once what others have put, and gives up a segment with one
//! `unlink`.
//!
//! Every process appends to a segment of its own, which it holds locked; all read all of them, and open one just for as long
//! as it is read, so that a removed one takes no room on the disk. Index slots are written without any lock: two processes
//! that write the same slot at once lose an entry, a torn slot is seen by its check, and one that points to a segment that
//! is gone, or to other bytes, is a miss.
//!
//! # What is given up
//! When there is no room, the oldest segment goes ([`eviction`]). A slot remembers when its entry was last used, in segments
//! begun since; entries of the oldest segment that were used in the more recent half of the cache's history are appended anew.
//! This is least recently used as nearly as can be without ever looking at everything, and a remount goes on where the last one
//! was. The size is what files and directories really use on the disk. Several mounts may give different sizes; whoever writes
//! keeps the directory within its own.
//!
//! # Threads
//! A read goes from the index to the segment without waiting for anybody but the disk, and is a miss at once where that has
//! failed or taken long a moment ago ([`patience`]). All writing is done by one thread ([`writer`])
//! from a queue that is bounded by what memory the cache was given, and drops what does not fit. A disk that is full or
//! read-only, or fails, is told of in the log now and then; it is tried again later, and until then the cache does without.

mod directory;
mod eviction;
mod index;
mod patience;
mod segment;
mod writer;

#[cfg(test)]
mod processes;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use self::directory::Directory;
use self::index::{Entry, Index};
use self::patience::Patience;
use self::segment::Record;
use self::writer::{Use, Writer};
use crate::error::{Error, Result};
use crate::occasionally::Occasionally;
use crate::stats::Counters;

/// The least room a cache can do with, in bytes.
pub(crate) const LEAST_SIZE: u64 = 16 << 20;
/// The size a cache has by default, in bytes, if it is no more than a tenth of its file system.
const DEFAULT_SIZE: u64 = 10 << 30;
/// The part of a memory budget that a cache wants, and the most of it that it has a use for, in bytes.
const PART_OF_BUDGET: u64 = 8;
const MOST_MEMORY: u64 = 32 << 20;
/// How long to go without writing after the disk has refused something, and without reading after it has failed or taken long.
const RETRY: Duration = Duration::from_secs(10);
/// How often to tell of a disk that does so.
const TELL_EVERY: Duration = Duration::from_secs(3600);

/// What names an object: equal keys promise equal bytes.
pub(crate) type Key = [u8; 32];

/// What an entry is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    key: Key,
    /// Where the extent begins in the object, in bytes.
    offset: u64,
    /// Its length in bytes, never 0.
    length: u32,
}

impl Address {
    /// The address of an extent; `None` for one that is never kept.
    fn of(key: &Key, offset: u64, length: usize) -> Option<Self> {
        let length = u32::try_from(length).ok().filter(|&length| length > 0)?;
        Some(Self {
            key: *key,
            offset,
            length,
        })
    }
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct DiskCache {
    shared: Arc<Shared>,
    writer: Writer,
    patience: Patience,
    /// When to tell of a disk that is not read from.
    unread: Occasionally,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    /// The directory the user gave, absolute.
    place: PathBuf,
    /// How much room the cache may take, in bytes.
    size: u64,
    /// How long to go without writing after an error.
    retry: Duration,
    /// The cache's files; none as long as the disk has no room even for these.
    files: RwLock<Option<Arc<Files>>>,
    /// The highest number of a segment that was seen: the clock that uses are dated by.
    newest: AtomicU64,
    /// The longest record that is kept, in bytes; one that is written and one that is moved are in memory besides the queue.
    longest: u64,
    counters: Arc<Counters>,
}

/// The open files of a cache.
#[derive(Debug)]
struct Files {
    directory: Directory,
    index: Index,
}

impl DiskCache {
    /// How much memory to give a cache beside others that share a budget of this many bytes.
    pub(crate) fn memory_of(budget: u64) -> u64 {
        (budget / PART_OF_BUDGET).min(MOST_MEMORY)
    }

    /// Opens the cache in a directory, which is made if it is not there, for up to `size` bytes on its disk, by default
    /// 10 GiB but no more than a tenth of the file system. It uses up to `memory` bytes, half of them for what waits to be
    /// written, and keeps no extent that is longer than that half. Starts no thread: the first write does.
    ///
    /// # Errors
    /// The directory cannot be made or used: it or what is in it belongs to another user, or others may write to it; or the
    /// size is too small. A full or read-only disk is no error.
    pub(crate) fn open(
        place: &Path,
        size: Option<u64>,
        memory: u64,
        counters: Arc<Counters>,
    ) -> Result<Self> {
        Self::open_with(place, size, memory, counters, RETRY)
    }

    fn open_with(
        place: &Path,
        size: Option<u64>,
        memory: u64,
        counters: Arc<Counters>,
        retry: Duration,
    ) -> Result<Self> {
        let place = std::path::absolute(place)
            .map_err(|error| Error::io("cannot use", error).in_file(place))?;
        let outer = directory::open_place(&place)?;
        let size = size.unwrap_or_else(|| outer.as_ref().map_or(DEFAULT_SIZE, default_size));
        if size < LEAST_SIZE {
            let why = format!(
                "a disk cache of {size} bytes is too small: give it {LEAST_SIZE} bytes at least"
            );
            return Err(Error::unusable(why).in_file(&place));
        }
        let shared = Shared {
            place,
            size,
            retry,
            files: RwLock::new(None),
            newest: AtomicU64::new(0),
            // What takes much of the cache is not worth what would have to go for it.
            longest: (memory / 2).min(size / 8),
            counters,
        };
        let directory = match outer {
            Ok(outer) => Directory::open_in(&outer, &shared.place)?,
            Err(error) => Err(error),
        };
        match directory.and_then(|directory| shared.prepare(directory)) {
            Ok(files) => drop(shared.set_files(files)),
            Err(error) => shared.tell(&error),
        }
        let shared = Arc::new(shared);
        Ok(Self {
            writer: Writer::new(Arc::clone(&shared), memory / 2),
            patience: Patience::new(retry),
            unread: Occasionally::every(TELL_EVERY),
            shared,
        })
    }

    /// What the disk is asked for; `None` if it fails, or is left alone.
    fn ask<T>(&self, read: impl FnOnce() -> io::Result<T>) -> Option<T> {
        let reading = self.patience.begin()?;
        let outcome = read();
        let took = reading.end(outcome.is_err());
        if outcome.is_err() {
            self.shared.counters.disk_cache_errors.add(1);
        }
        if let Some(took) = took.filter(|_| self.unread.is_due()) {
            let what = match &outcome {
                Err(error) => error.to_string(),
                Ok(_) => format!("a read took {:.1} s", took.as_secs_f64()),
            };
            tracing::warn!(
                "{}: the disk cache is not read from for a while, going on without: {what}",
                self.shared.place.display()
            );
        }
        outcome.ok()
    }

    /// Fills `buffer` with the extent of its length at this offset of the object, if it is in the cache; says whether it is.
    /// If it is not, what the buffer holds means nothing.
    pub(crate) fn get(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> bool {
        let counters = &self.shared.counters;
        let found = Address::of(key, offset, buffer.len())
            .and_then(|address| self.ask(|| self.look_up(&address, buffer)))
            .unwrap_or(false);
        match found {
            true => {
                counters.disk_cache_hits.add(1);
                counters.disk_cache_bytes_read.add(buffer.len() as u64);
            }
            false => counters.disk_cache_misses.add(1),
        }
        found
    }

    fn look_up(&self, address: &Address, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(files) = self.shared.files() else {
            return Ok(false);
        };
        let Some(entry) = files.index.find(address.fingerprint())? else {
            return Ok(false);
        };
        let Some(segment) = files.directory.open_segment(entry.segment)? else {
            return Ok(false);
        };
        let read = segment::read(&segment, entry.position, address, buffer);
        if read.is_err() {
            // What cannot be read is to be replaced, and not to be waited for again.
            let _ = files.index.remove(&entry);
        }
        if !read? {
            let errors = &self.shared.counters.disk_cache_errors;
            errors.add(1);
            // What cannot be written to may be read all the same.
            if files.index.remove(&entry).is_err() {
                errors.add(1);
            }
            return Ok(false);
        }
        let newest = &self.shared.newest;
        let newest = newest.fetch_max(entry.segment, Ordering::Relaxed);
        if entry.used < newest.max(entry.segment) {
            self.writer.note(Use {
                fingerprint: address.fingerprint(),
                segment: entry.segment,
            });
        }
        Ok(true)
    }

    /// Keeps an extent of an object, unless the disk cannot keep up. Returns at once; the extent is there a little later.
    pub(crate) fn put(&self, key: &Key, offset: u64, bytes: &[u8]) {
        let kept = Address::of(key, offset, bytes.len())
            .filter(|address| address.record_length() <= self.shared.longest)
            .filter(|address| self.writer.has_room(address.record_length()))
            .and_then(|address| self.writer.write(Record::new(address, bytes)));
        if kept.is_none() {
            self.shared.counters.disk_cache_dropped.add(1);
        }
    }

    /// Whether an extent seems to be there: to read it may still fail.
    pub(crate) fn has(&self, key: &Key, extent: &Range<u64>) -> bool {
        let found = self.ask(|| match self.entry_of(key, extent)? {
            Some((files, entry)) => files.directory.open_segment(entry.segment),
            None => Ok(None),
        });
        found.flatten().is_some()
    }

    /// Gives up an extent that turned out to be of no use, if it is there, so that it is fetched anew.
    pub(crate) fn forget(&self, key: &Key, extent: &Range<u64>) {
        let Some(address) = address_of(key, extent) else {
            return;
        };
        self.writer.forget(&address);
        let forgotten = self.ask(|| {
            let found = self.entry_of(key, extent)?;
            Ok(found.map_or(Ok(()), |(files, entry)| files.index.remove(&entry)))
        });
        match forgotten {
            Some(Ok(())) => {}
            Some(Err(_)) => self.shared.counters.disk_cache_errors.add(1),
            None => self.writer.forget_later(&address),
        }
    }

    /// What the index says of an extent.
    fn entry_of(&self, key: &Key, extent: &Range<u64>) -> io::Result<Option<(Arc<Files>, Entry)>> {
        let Some(address) = address_of(key, extent) else {
            return Ok(None);
        };
        let Some(files) = self.shared.files() else {
            return Ok(None);
        };
        let entry = files.index.find(address.fingerprint())?;
        Ok(entry.map(|entry| (files, entry)))
    }

    /// Keeps nothing more, and waits until what was put is written, unless that takes too long.
    pub(crate) fn close(&self) {
        self.writer.close();
    }

    /// Waits until all that was put so far is written or dropped.
    #[cfg(test)]
    pub(crate) fn flush(&self) {
        self.writer.flush();
    }
}

fn address_of(key: &Key, extent: &Range<u64>) -> Option<Address> {
    let length = usize::try_from(extent.end.checked_sub(extent.start)?).ok()?;
    Address::of(key, extent.start, length)
}

impl Shared {
    fn files(&self) -> Option<Arc<Files>> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_files(&self, files: Files) -> Arc<Files> {
        let files = Arc::new(files);
        let mut place = self.files.write().unwrap_or_else(PoisonError::into_inner);
        *place = Some(Arc::clone(&files));
        files
    }

    /// Opens or makes what has to be in the directory, and looks how far the segments go.
    fn prepare(&self, directory: Directory) -> io::Result<Files> {
        let index = Index::open_or_make(&directory, index::buckets_for(self.size))?;
        let newest = directory.list()?.newest();
        self.newest.fetch_max(newest, Ordering::Relaxed);
        Ok(Files { directory, index })
    }

    /// The size at which a segment is full, in bytes.
    fn segment_size(&self) -> u64 {
        (self.size / 64).min(256 << 20)
    }

    fn tell(&self, error: &io::Error) {
        self.counters.disk_cache_errors.add(1);
        tracing::warn!(
            "{}: the disk cache cannot be written to, going on without: {error}",
            self.place.display()
        );
    }
}

/// The smaller of [`DEFAULT_SIZE`] and a tenth of the file system.
fn default_size(outer: &OwnedFd) -> u64 {
    let tenth = rustix::fs::fstatvfs(outer)
        .map(|found| found.f_blocks.saturating_mul(found.f_frsize) / 10)
        .unwrap_or(DEFAULT_SIZE);
    tenth.clamp(LEAST_SIZE, DEFAULT_SIZE)
}
