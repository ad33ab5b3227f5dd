//! The decoded units, in the order of their last use, and how many of them are worth keeping.
//!
//! To decode into memory that was in use before costs less than into fresh memory, whose every page faults first: a fifth of
//! a cold random read of 4 KiB from LZ4 chunks of 64 KiB, measured. So those that nobody comes back to do not fill the budget
//! for nothing. The room for units begins small; whenever one is wanted that was given up for want of room, there would have
//! been a use for more, and it grows, as far as the budget lets it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::Key;
use crate::memory::Buffer;

/// The room that units have at first, in bytes: a few readers' windows.
const FIRST_ROOM: u64 = 64 << 20;
/// How many units' lengths the room grows by when one is missed: soon there, if all of a file is read again and again.
const GROWTH: u64 = 2;
/// How many units are remembered that were given up for want of room: a hundred bytes each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// How long what was decoded ahead may wait for its reader while others are refused.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How many of the least recently used units are looked through for such.
const LOOKED_THROUGH: usize = 64;

#[derive(Debug)]
pub(super) struct Ready {
    pub(super) bytes: Arc<Buffer>,
    /// Since when it is there, if it was decoded ahead and has not been read yet.
    pub(super) ahead: Option<Instant>,
    /// How many of the bytes were handed to somebody who keeps them.
    pub(super) kept: usize,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Units {
    ready: LruCache<Key, Ready>,
    bytes: u64,
    room: u64,
    /// Units that were given up for want of room, and their lengths.
    given_up: LruCache<Key, u64>,
}

impl Units {
    pub(super) fn new() -> Self {
        Self {
            ready: LruCache::unbounded(),
            bytes: 0,
            room: FIRST_ROOM,
            given_up: LruCache::new(REMEMBERED),
        }
    }

    /// A unit, from now on the most recently used.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Ready> {
        self.ready.get_mut(&key)
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.ready.contains(&key)
    }

    /// All units' bytes.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        self.ready.iter().map(|(_, ready)| &ready.bytes)
    }

    /// A unit that was decoded ahead of a reader who seems to have left it behind.
    pub(super) fn abandoned(&self) -> Option<Key> {
        let mut oldest = self.ready.iter().rev().take(LOOKED_THROUGH);
        let abandoned =
            oldest.find(|(_, ready)| ready.ahead.is_some_and(|since| since.elapsed() > PATIENCE));
        abandoned.map(|(key, _)| *key)
    }

    /// Takes notice that a unit is wanted which is not there.
    pub(super) fn missed(&mut self, key: Key) {
        if let Some(length) = self.given_up.pop(&key) {
            self.room = self.room.saturating_add(GROWTH.saturating_mul(length));
        }
    }

    /// Puts a unit in; gives back what was in its place, and those for which there is no room.
    pub(super) fn put(&mut self, key: Key, ready: Ready) -> Vec<Ready> {
        let mut leaving = Vec::new();
        self.bytes += ready.bytes.len() as u64;
        leaving.extend(self.ready.put(key, ready).map(|old| self.left(old)));
        while self.bytes > self.room
            // What was decoded ahead has its turn still to come.
            && self.ready.peek_lru().is_some_and(|(_, oldest)| oldest.ahead.is_none())
            && let Some((key, oldest)) = self.ready.pop_lru()
        {
            self.given_up.put(key, oldest.bytes.len() as u64);
            leaving.push(self.left(oldest));
        }
        leaving
    }

    pub(super) fn pop(&mut self, key: Key) -> Option<Ready> {
        let popped = self.ready.pop(&key)?;
        Some(self.left(popped))
    }

    pub(super) fn pop_lru(&mut self) -> Option<Ready> {
        let (_, popped) = self.ready.pop_lru()?;
        Some(self.left(popped))
    }

    fn left(&mut self, ready: Ready) -> Ready {
        self.bytes -= ready.bytes.len() as u64;
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Unit;
    use crate::memory::{Budget, Urgency};

    const LENGTH: usize = 1 << 20;

    fn key(chunk: u32) -> Key {
        let unit = Unit { chunk, piece: None };
        Key { contents: 1, unit }
    }

    fn put(units: &mut Units, chunk: u32, ahead: bool) -> usize {
        let budget = Budget::unlimited();
        let buffers = budget.acquire([LENGTH], Urgency::Demand, || false);
        let [bytes] = buffers.unwrap().unwrap();
        let ready = Ready {
            bytes: Arc::new(bytes),
            ahead: ahead.then(Instant::now),
            kept: 0,
        };
        units.put(key(chunk), ready).len()
    }

    #[test]
    fn units_that_nobody_comes_back_to_take_no_more_than_the_first_room() {
        let mut units = Units::new();
        for chunk in 0..200 {
            units.missed(key(chunk));
            put(&mut units, chunk, false);
        }
        assert_eq!(units.bytes, FIRST_ROOM);
        assert_eq!(units.all().count(), 64);
        assert!(units.contains(key(199)) && !units.contains(key(100)));
    }

    #[test]
    fn reading_all_of_a_file_again_and_again_makes_room_for_it() {
        let mut units = Units::new();
        let mut missed = [0; 4];
        for round in &mut missed {
            for chunk in 0..150 {
                if units.get_mut(key(chunk)).is_none() {
                    *round += 1;
                    units.missed(key(chunk));
                    put(&mut units, chunk, false);
                }
            }
        }
        assert_eq!(missed[0], 150);
        assert_eq!(missed[3], 0, "{missed:?}");
    }

    #[test]
    fn what_was_decoded_ahead_is_not_given_up_for_want_of_room() {
        let mut units = Units::new();
        for chunk in 0..100 {
            assert_eq!(put(&mut units, chunk, true), 0);
        }
        units.get_mut(key(0)).unwrap().ahead = None;
        assert_eq!(put(&mut units, 100, false), 0);
        for chunk in 0..=100 {
            units.get_mut(key(chunk)).unwrap().ahead = None;
        }
        assert_eq!(put(&mut units, 101, false), 38);
    }
}
