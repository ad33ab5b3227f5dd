//! What is remembered of objects: in which version each was seen last, and whether that is packed.
//!
//! What an object holds is known by its version, so nothing is ever asked for twice that has not changed. The memory is bounded;
//! what was used longest ago goes first.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lru::LruCache;

use super::BELIEVED;
use super::entries::Brief;
use crate::archive::Glance;

/// What an entry costs besides its key and value: two links, and a slot in the hash table.
const ENTRY_OVERHEAD: usize = 4 * size_of::<usize>();

/// What was found of an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) brief: Brief,
    /// `None` if nobody has looked; else what it is packed of, if it is.
    pub(super) packed: Option<Option<Glance>>,
    /// When the store was asked.
    pub(super) asked: Instant,
    /// When it was asked for the object itself, and not only for what it has of such names.
    itself: Option<Instant>,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Memory {
    seen: Mutex<LruCache<(u64, u64), Seen>>,
    capacity: usize,
}

impl Memory {
    /// A memory of at most `capacity` objects. It grows with use.
    pub(super) fn new(capacity: NonZeroUsize) -> Self {
        Self {
            seen: Mutex::new(LruCache::unbounded()),
            capacity: capacity.get(),
        }
    }

    /// What is known of the object that `brief` is of, whatever its version.
    pub(super) fn of(&self, brief: &Brief) -> Option<Seen> {
        self.at(place(brief))
    }

    /// The same, of the object with these numbers.
    pub(super) fn at(&self, place: (u64, u64)) -> Option<Seen> {
        self.lock().get(&place).copied()
    }

    /// What a listing has told, with the ETag where it has none and the version is known all the same. What the object itself was a
    /// moment ago counts for more than any listing; of that, an index knows nothing if it is another version.
    pub(super) fn completed(&self, brief: Brief) -> Brief {
        let Some(seen) = self.of(&brief) else {
            return brief;
        };
        let just_now = seen.itself.is_some_and(|asked| asked.elapsed() < BELIEVED);
        let may_be = brief.may_be(&seen.brief);
        match just_now || may_be {
            true => Brief {
                indexed: brief.indexed.filter(|_| may_be),
                ..seen.brief
            },
            false => brief,
        }
    }

    /// Whether this version is packed, and of what; `None` if that is not known.
    pub(super) fn packed(&self, brief: &Brief) -> Option<Option<Glance>> {
        let seen = self.of(brief)?;
        seen.packed
            .filter(|_| seen.brief.identity == brief.identity)
    }

    /// Takes notice of a version that a listing told of.
    pub(super) fn note_listed(&self, brief: Brief) {
        self.put(brief, None, None);
    }

    /// Takes notice of a version that the store has answered with when asked for the object, and of what it is packed of, if
    /// somebody has looked.
    pub(super) fn note(&self, brief: Brief, packed: Option<Option<Glance>>) {
        self.put(brief, packed, Some(Instant::now()));
    }

    /// What is known of the same version stays.
    fn put(&self, brief: Brief, packed: Option<Option<Glance>>, itself: Option<Instant>) {
        let mut seen = self.lock();
        let before = seen.get(&place(&brief));
        let before = before.filter(|before| before.brief.identity == brief.identity);
        let new = Seen {
            brief,
            packed: packed.or_else(|| before.and_then(|before| before.packed)),
            asked: Instant::now(),
            itself: itself.or_else(|| before.and_then(|before| before.itself)),
        };
        seen.put(place(&brief), new);
        if seen.len() > self.capacity {
            seen.pop_lru();
        }
    }

    /// The memory in use, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.lock().len() * (size_of::<((u64, u64), Seen)>() + ENTRY_OVERHEAD)
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<(u64, u64), Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(brief: &Brief) -> (u64, u64) {
    (brief.identity.device, brief.identity.inode)
}
