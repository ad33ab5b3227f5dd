//! What the local disk cache has of one object.
//!
//! Payloads that are read as a whole are an entry each. What describes the object is read in blocks, and a large payload that is
//! read a bit at a time is kept in parts of [`PART`] bytes, counted from its beginning: readers come to it at any place and go
//! on from there, so that what they read is put together to such parts by [`Shelf`].
//!
//! Only versions with a strong ETag are kept: size and time are no proof that bytes are the same, weeks later.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::blocks::BLOCK_LEN;
use super::version::Version;
use crate::disk_cache::{DiskCache, Key};
use crate::identity::Identity;

/// How long the parts of large payloads are, in bytes.
const PART: u64 = 64 << 10;
/// The most bytes that are looked at by themselves, to know how a payload is to be decoded: it may be read whole after that.
const BIT: usize = 64;
/// How many places of such bytes are remembered of an object.
const MOST_BITS: usize = 4096;

/// See the module's description.
#[derive(Debug)]
pub(super) struct OnDisk {
    shelf: Arc<Shelf>,
    key: Key,
    /// Where the blocks begin that were read or put, in bytes.
    described: Mutex<HashSet<u64>>,
    /// The few bytes that were read or kept by themselves lately: where they begin, and how many. Those of a damaged payload were
    /// looked at just before that was found.
    bits: Mutex<LruCache<(u64, usize), ()>>,
}

/// The disk cache, and the parts that are being put together of all objects.
#[derive(Debug)]
pub(super) struct Shelf {
    cache: Arc<DiskCache>,
    /// The latest behind.
    unfinished: Mutex<VecDeque<Unfinished>>,
    /// How many there may be.
    most: usize,
}

/// A part of a large payload of which not all was read yet.
#[derive(Debug)]
struct Unfinished {
    key: Key,
    start: u64,
    bytes: Vec<u8>,
    /// Which of them are there, in order and apart from each other.
    there: Vec<Range<usize>>,
}

impl Unfinished {
    fn take(&mut self, bytes: &[u8], at: usize) {
        let mut taken = at..at + bytes.len();
        if let Some(room) = self.bytes.get_mut(taken.clone()) {
            room.copy_from_slice(bytes);
        }
        self.there.retain(|held| {
            let apart = held.end < taken.start || taken.end < held.start;
            if !apart {
                taken = taken.start.min(held.start)..taken.end.max(held.end);
            }
            apart
        });
        self.there.push(taken);
    }

    fn is_whole(&self) -> bool {
        self.there.contains(&(0..self.bytes.len()))
    }
}

impl Shelf {
    /// Puts parts together within an eighth of the memory that the cache has, besides that.
    pub(super) fn new(cache: Arc<DiskCache>, budget: u64) -> Self {
        let room = DiskCache::memory_of(budget) / 8;
        Self {
            cache,
            unfinished: Mutex::default(),
            most: usize::try_from(room / PART).unwrap_or(usize::MAX).max(1),
        }
    }

    /// Takes bytes of a part; gives it back if it is whole now.
    fn assemble(&self, key: Key, part: &Range<u64>, bytes: &[u8], offset: u64) -> Option<Vec<u8>> {
        let mut unfinished = self
            .unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = unfinished
            .iter()
            .position(|known| (known.key, known.start) == (key, part.start));
        let mut known = known
            .and_then(|known| unfinished.remove(known))
            .unwrap_or_else(|| Unfinished {
                key,
                start: part.start,
                bytes: vec![0; (part.end - part.start) as usize],
                there: Vec::new(),
            });
        known.take(bytes, (offset - part.start) as usize);
        if known.is_whole() {
            return Some(known.bytes);
        }
        if unfinished.len() >= self.most {
            unfinished.pop_front();
        }
        unfinished.push_back(known);
        None
    }
}

impl Shelf {
    /// Gives up the unfinished parts of a payload.
    fn forget(&self, key: &Key, whole: &Range<u64>) {
        let mut unfinished = self
            .unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unfinished.retain(|part| part.key != *key || !whole.contains(&part.start));
    }
}

impl OnDisk {
    /// What there is of a version of an object; nothing if it cannot be told from others for certain.
    pub(super) fn of(shelf: &Arc<Shelf>, identity: &Identity, version: &Version) -> Option<Self> {
        let etag = version.etag.as_ref()?;
        (!etag.starts_with("W/")).then(|| Self {
            shelf: Arc::clone(shelf),
            key: identity.digest(),
            described: Mutex::default(),
            bits: Mutex::new(LruCache::unbounded()),
        })
    }

    fn described(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.described
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn bits(&self) -> MutexGuard<'_, LruCache<(u64, usize), ()>> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_bit(&self, offset: u64, length: usize) {
        let mut bits = self.bits();
        bits.put((offset, length), ());
        if bits.len() > MOST_BITS {
            bits.pop_lru();
        }
    }

    /// Reads a whole payload, if it is there.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> bool {
        self.shelf.cache.get(&self.key, offset, buffer)
    }

    /// Keeps a whole payload.
    pub(super) fn keep(&self, bytes: &[u8], offset: u64) {
        self.shelf.cache.put(&self.key, offset, bytes);
    }

    /// Whether a payload is there, whole or in parts.
    pub(super) fn has(&self, wanted: &Range<u64>, whole: &Range<u64>) -> bool {
        self.shelf.cache.has(&self.key, whole)
            || parts(wanted, whole).all(|part| self.shelf.cache.has(&self.key, &part))
    }

    /// Reads blocks that describe the object, from a block's beginning on, if all are there.
    pub(super) fn read_blocks(&self, buffer: &mut [u8], offset: u64) -> bool {
        let places = (offset..).step_by(BLOCK_LEN as usize);
        let mut blocks = places.zip(buffer.chunks_mut(BLOCK_LEN as usize));
        blocks.all(|(place, block)| {
            self.described().insert(place);
            self.shelf.cache.get(&self.key, place, block)
        })
    }

    /// Keeps blocks that describe the object, from a block's beginning on.
    pub(super) fn keep_blocks(&self, bytes: &[u8], offset: u64) {
        let places = (offset..).step_by(BLOCK_LEN as usize);
        for (place, block) in places.zip(bytes.chunks(BLOCK_LEN as usize)) {
            self.described().insert(place);
            self.shelf.cache.put(&self.key, place, block);
        }
    }

    /// Reads some bytes of a payload that is read a bit at a time: those from `offset` on for which parts are there. Says how
    /// many, and how many behind these are not there.
    pub(super) fn read_parts(
        &self,
        buffer: &mut [u8],
        offset: u64,
        whole: &Range<u64>,
    ) -> (usize, usize) {
        let wanted = offset..offset + buffer.len() as u64;
        let (mut done, mut missing) = (0, 0);
        for part in parts(&wanted, whole) {
            let begin = part.start.max(wanted.start);
            let length = (part.end.min(wanted.end) - begin) as usize;
            if missing > 0 {
                if self.shelf.cache.has(&self.key, &part) {
                    break;
                }
                missing += length;
                continue;
            }
            let room = buffer.get_mut(done..done + length).unwrap_or_default();
            let there = if room.len() as u64 == part.end - part.start {
                self.shelf.cache.get(&self.key, part.start, room)
            } else {
                let mut bytes = vec![0; (part.end - part.start) as usize];
                let skip = (begin - part.start) as usize;
                let there = self.shelf.cache.get(&self.key, part.start, &mut bytes);
                if let Some(bytes) = bytes.get(skip..skip + length) {
                    room.copy_from_slice(bytes);
                }
                there
            };
            match there {
                true => done += length,
                false => missing = length,
            }
        }
        (done, missing)
    }

    /// Reads some of the few bytes of a payload that are looked at by themselves, if they are there.
    pub(super) fn read_bit(&self, buffer: &mut [u8], offset: u64) -> bool {
        if buffer.len() > BIT {
            return false;
        }
        self.note_bit(offset, buffer.len());
        self.read(buffer, offset)
    }

    /// Takes bytes of such a payload, and keeps the parts that are whole with them; few bytes also by themselves.
    pub(super) fn keep_parts(&self, bytes: &[u8], offset: u64, whole: &Range<u64>) {
        if bytes.len() <= BIT {
            self.note_bit(offset, bytes.len());
            self.keep(bytes, offset);
        }
        let taken = offset..offset + bytes.len() as u64;
        for part in parts(&taken, whole) {
            let begin = part.start.max(taken.start);
            let end = part.end.min(taken.end);
            let at = |place: u64| (place - taken.start) as usize;
            let Some(bytes) = bytes.get(at(begin)..at(end)) else {
                return;
            };
            if (begin, end) == (part.start, part.end) {
                self.shelf.cache.put(&self.key, part.start, bytes);
                continue;
            }
            if let Some(whole) = self.shelf.assemble(self.key, &part, bytes, begin) {
                self.shelf.cache.put(&self.key, part.start, &whole);
            }
        }
    }

    /// Gives a payload up that turned out to be damaged: what was sent may have been.
    pub(super) fn forget(&self, whole: &Range<u64>) {
        self.shelf.forget(&self.key, whole);
        self.shelf.cache.forget(&self.key, whole);
        for part in parts(whole, whole) {
            self.shelf.cache.forget(&self.key, &part);
        }
        let mut bits = self.bits();
        let within = bits.iter().map(|(&bit, ())| bit);
        let within: Vec<_> = within.filter(|(start, _)| whole.contains(start)).collect();
        for bit in &within {
            bits.pop(bit);
        }
        drop(bits);
        for (start, length) in within {
            let bit = start..start + length as u64;
            self.shelf.cache.forget(&self.key, &bit);
        }
    }

    /// Gives up the blocks that describe the object.
    pub(super) fn forget_description(&self, size: u64) {
        let described = std::mem::take(&mut *self.described());
        for start in described {
            self.shelf
                .cache
                .forget(&self.key, &(start..size.min(start + BLOCK_LEN)));
        }
    }
}

/// The parts of a payload that some of its bytes lie in.
fn parts(wanted: &Range<u64>, whole: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let first = wanted.start.saturating_sub(whole.start) / PART;
    let (begin, end, until) = (whole.start, whole.end, wanted.end.min(whole.end));
    let starts = (begin + first * PART..until).step_by(PART as usize);
    starts.map(move |start| start..end.min(start + PART))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn on_disk(place: &std::path::Path, etag: Option<&str>) -> Option<OnDisk> {
        let cache = DiskCache::open(place, Some(32 << 20), 8 << 20, Arc::default()).unwrap();
        let version = Version {
            size: 1 << 30,
            etag: etag.map(str::to_owned),
            modified: SystemTime::UNIX_EPOCH,
        };
        let identity = Identity::of_object("s3://b\0x", 1 << 30, etag, version.modified);
        let shelf = Shelf::new(Arc::new(cache), 64 << 20);
        OnDisk::of(&Arc::new(shelf), &identity, &version)
    }

    #[test]
    fn only_what_a_strong_etag_tells_from_all_else_is_kept() {
        let place = tempfile::tempdir().unwrap();
        assert!(on_disk(place.path(), Some("\"e\"")).is_some());
        assert!(on_disk(place.path(), Some("W/\"e\"")).is_none());
        assert!(on_disk(place.path(), None).is_none());
    }

    #[test]
    fn what_is_read_a_bit_at_a_time_is_put_together() {
        let place = tempfile::tempdir().unwrap();
        let on_disk = on_disk(place.path(), Some("\"e\"")).unwrap();
        let whole = 1000..1000 + 3 * PART + 77;
        let bytes: Vec<u8> = (0..whole.end).map(|place| (place % 251) as u8).collect();
        let some = |range: &Range<u64>| &bytes[range.start as usize..range.end as usize];
        // From the middle of the second part to the end, and then from that of the first up to there.
        for reader in [
            1000 + PART + 5000..whole.end,
            1000 + 5000..1000 + PART + 5000,
        ] {
            let mut place = reader.start;
            while place < reader.end {
                let read = place..reader.end.min(place + 10_000);
                on_disk.keep_parts(some(&read), read.start, &whole);
                place = read.end;
            }
        }
        on_disk.shelf.cache.flush();
        let mut buffer = vec![0; (whole.end - whole.start) as usize];
        let (done, missing) = on_disk.read_parts(&mut buffer, whole.start, &whole);
        assert_eq!((done, missing), (0, PART as usize));
        let rest = whole.start + PART + 99..whole.end - 3;
        let room = &mut buffer[..(rest.end - rest.start) as usize];
        assert_eq!(
            on_disk.read_parts(room, rest.start, &whole),
            (room.len(), 0)
        );
        assert_eq!(room, some(&rest));
        assert!(on_disk.has(&rest, &whole) && !on_disk.has(&whole, &whole));
        on_disk.forget(&whole);
        assert!(!on_disk.has(&rest, &whole));
    }
    #[test]
    fn few_bytes_that_were_kept_by_themselves_are_given_up_with_their_payload() {
        let place = tempfile::tempdir().unwrap();
        let on_disk = on_disk(place.path(), Some("\"e\"")).unwrap();
        let whole = 1000..1000 + 3 * PART;
        on_disk.keep_parts(&[7; 18], whole.start, &whole);
        on_disk.keep_parts(&[7; 18], whole.end, &(whole.end..whole.end + PART));
        on_disk.shelf.cache.flush();
        assert!(on_disk.read_bit(&mut [0; 18], whole.start));
        on_disk.forget(&whole);
        assert!(!on_disk.read_bit(&mut [0; 18], whole.start));
        assert!(on_disk.read_bit(&mut [0; 18], whole.end));
        for place in 0..2 * MOST_BITS as u64 {
            on_disk.read_bit(&mut [0; 8], place);
        }
        assert_eq!(on_disk.bits().len(), MOST_BITS);
    }
}
