//! What describes the objects of a store, as far as it was read: headers, tables, and the records at their ends.
//!
//! It is read in blocks, because a request costs the same for a byte as for many, and remembered, because every check of a
//! chunk asks for it again. An object's version never changes, so nothing here goes stale. The blocks used least recently
//! are given up; what they may take together is set aside in the budget from the beginning.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::identity::Identity;

/// The length of a block, in bytes.
pub(super) const BLOCK_LEN: u64 = 64 << 10;
/// How much is read in one request at most, in bytes.
const LONGEST_RUN: u64 = 4 << 20;

/// Which block of which object.
type Name = (Identity, u64);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Blocks {
    state: Mutex<State>,
    loaded: Condvar,
    /// How many blocks are kept.
    most: usize,
}

#[derive(Debug)]
struct State {
    held: LruCache<Name, Arc<[u8]>>,
    /// Being read by somebody.
    loading: HashSet<Name>,
}

/// What [`Blocks::find`] finds.
pub(super) enum Found {
    Held(Arc<[u8]>),
    /// Nobody has it: the caller has to read these bytes.
    Missing(Loading),
}

/// The mark of blocks that are being read. It clears when it is dropped.
pub(super) struct Loading {
    blocks: Arc<Blocks>,
    object: Identity,
    numbers: Range<u64>,
}

impl Blocks {
    /// Blocks of `limit` bytes all together.
    pub(super) fn new(limit: u64) -> Self {
        let most = usize::try_from(limit / BLOCK_LEN).unwrap_or(usize::MAX);
        Self {
            state: Mutex::new(State {
                held: LruCache::unbounded(),
                loading: HashSet::new(),
            }),
            loaded: Condvar::new(),
            most: most.max(2),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block that holds the byte at `offset` of an object; or the task to read it, and those behind it that are going to be
    /// asked for, up to `until`.
    pub(super) fn find(self: &Arc<Self>, object: Identity, offset: u64, until: u64) -> Found {
        let first = offset / BLOCK_LEN;
        let mut state = self.lock();
        loop {
            if let Some(block) = state.held.get(&(object, first)) {
                return Found::Held(Arc::clone(block));
            }
            if !state.loading.contains(&(object, first)) {
                break;
            }
            state = self
                .loaded
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let most = self.most_at_once();
        Found::Missing(self.load(&mut state, object, first, until, most))
    }

    /// The tasks to read those blocks of a range that nobody has or is reading. Waits for nobody. There are none for what is more
    /// than would be kept.
    pub(super) fn claim(self: &Arc<Self>, object: Identity, range: &Range<u64>) -> Vec<Loading> {
        let mut claimed = Vec::new();
        let mut left = self.most_at_once();
        let mut state = self.lock();
        let mut first = range.start / BLOCK_LEN;
        while left > 0 && first * BLOCK_LEN < range.end {
            let name = (object, first);
            first += 1;
            if !state.held.contains(&name) && !state.loading.contains(&name) {
                let loading = self.load(&mut state, object, name.1, range.end, left);
                first = loading.numbers.end;
                left -= first - name.1;
                claimed.push(loading);
            }
        }
        claimed
    }

    /// How many blocks are read at once at most: half of what is kept, so that the first are not gone before the last have come.
    fn most_at_once(&self) -> u64 {
        (LONGEST_RUN / BLOCK_LEN).min(self.most as u64 / 2).max(1)
    }

    /// Marks the block `first`, and those behind it up to `until` that nobody has or is reading.
    fn load(
        self: &Arc<Self>,
        state: &mut State,
        object: Identity,
        first: u64,
        until: u64,
        most: u64,
    ) -> Loading {
        let mut end = first + 1;
        while end - first < most && end * BLOCK_LEN < until {
            let next = (object, end);
            if state.held.contains(&next) || state.loading.contains(&next) {
                break;
            }
            end += 1;
        }
        state
            .loading
            .extend((first..end).map(|number| (object, number)));
        Loading {
            blocks: Arc::clone(self),
            object,
            numbers: first..end,
        }
    }

    /// Gives up all that is remembered of an object.
    pub(super) fn forget(&self, object: Identity) {
        let mut state = self.lock();
        let held = state.held.iter().map(|(name, _)| *name);
        let of_object: Vec<_> = held.filter(|name| name.0 == object).collect();
        for name in of_object {
            state.held.pop(&name);
        }
    }

    /// Remembers the bytes of an object from a block's beginning at `offset` on; the last block may be short at the object's end.
    pub(super) fn keep(&self, object: Identity, offset: u64, bytes: &[u8]) {
        let numbers = offset / BLOCK_LEN..;
        let mut given_up = Vec::new();
        let mut state = self.lock();
        for (number, block) in numbers.zip(bytes.chunks(BLOCK_LEN as usize)) {
            given_up.extend(state.held.push((object, number), block.into()));
        }
        while state.held.len() > self.most {
            given_up.extend(state.held.pop_lru());
        }
        drop(state);
        // Freed without the lock.
        drop(given_up);
    }
}

impl Loading {
    /// Which bytes of an object of so many are to be read.
    pub(super) fn range(&self, size: u64) -> Range<u64> {
        self.numbers.start * BLOCK_LEN..size.min(self.numbers.end * BLOCK_LEN)
    }

    /// Brings them in.
    pub(super) fn land(self, bytes: &[u8]) {
        self.blocks
            .keep(self.object, self.numbers.start * BLOCK_LEN, bytes);
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        let mut state = self.blocks.lock();
        for number in self.numbers.clone() {
            state.loading.remove(&(self.object, number));
        }
        drop(state);
        self.blocks.loaded.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn object(size: u64) -> Identity {
        Identity::of_object("s3://b\0x", size, Some("e"), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn what_is_going_to_be_asked_for_is_read_with_the_first_and_once() {
        let blocks = Arc::new(Blocks::new(64 * BLOCK_LEN));
        let size = 10 * BLOCK_LEN + 5;
        let Found::Missing(loading) = blocks.find(object(size), BLOCK_LEN + 7, size) else {
            panic!("it cannot be there");
        };
        assert_eq!(loading.range(size), BLOCK_LEN..size);
        loading.land(&vec![1; (size - BLOCK_LEN) as usize]);
        for number in 1..=10 {
            let Found::Held(block) = blocks.find(object(size), number * BLOCK_LEN, size) else {
                panic!("{number} was read");
            };
            assert_eq!(
                block.len(),
                if number < 10 { BLOCK_LEN as usize } else { 5 }
            );
        }
        assert!(matches!(
            blocks.find(object(size + 1), BLOCK_LEN, 0),
            Found::Missing(_)
        ));
    }

    #[test]
    fn who_asks_for_what_is_being_read_waits_for_it_or_reads_it_when_that_failed() {
        let blocks = Arc::new(Blocks::new(64 * BLOCK_LEN));
        let first = blocks.find(object(9), 0, 9);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| matches!(blocks.find(object(9), 0, 9), Found::Missing(_)));
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(first);
            assert!(second.join().unwrap());
        });
    }

    #[test]
    fn what_is_claimed_is_what_nobody_has_or_is_reading() {
        let blocks = Arc::new(Blocks::new(64 * BLOCK_LEN));
        let size = 100 * BLOCK_LEN;
        blocks.keep(object(size), 2 * BLOCK_LEN, &[1; BLOCK_LEN as usize]);
        let all = 5..7 * BLOCK_LEN + 1;
        let claimed = blocks.claim(object(size), &all);
        let ranges: Vec<_> = claimed.iter().map(|loading| loading.range(size)).collect();
        assert_eq!(ranges, [0..2 * BLOCK_LEN, 3 * BLOCK_LEN..8 * BLOCK_LEN]);
        assert!(blocks.claim(object(size), &all).is_empty());
        drop(claimed);
        // Of what is not kept, nothing is read.
        let claimed = blocks.claim(object(size), &(0..size));
        let count: u64 = claimed
            .iter()
            .map(|loading| loading.range(size).end - loading.range(size).start)
            .sum();
        assert_eq!(count, 32 * BLOCK_LEN);
    }

    #[test]
    fn no_more_blocks_are_kept_than_were_set_aside() {
        let blocks = Arc::new(Blocks::new(4 * BLOCK_LEN));
        let size = 100 * BLOCK_LEN;
        for number in 0..100 {
            blocks.keep(object(size), number * BLOCK_LEN, &[7; BLOCK_LEN as usize]);
        }
        assert_eq!(blocks.lock().held.len(), 4);
    }
}
