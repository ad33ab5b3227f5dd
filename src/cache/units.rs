//! The decoded units, and which of them are worth keeping.
//!
//! To decode into memory that was in use before costs less than into fresh memory, whose every page faults first: a fifth of
//! a cold random read of 4 KiB from LZ4 chunks of 64 KiB, measured. So those that nobody comes back to do not fill the budget
//! for nothing. The room for units begins small; whenever one is wanted that was given up for want of room, there would have
//! been a use for more, and it grows, as far as the budget lets it.
//!
//! Nor do they drive out those that somebody does come back to. Once the room is taken, what is decoded because it is wanted
//! waits among the newcomers, which are few: the same buffers are filled again and again there, still in the processor's caches. What is wanted
//! again after it left them has proved itself, and the unit used longest ago makes way for it. This is 2Q ("2Q: A Low Overhead High Performance
//! Buffer Management Replacement Algorithm", T. Johnson and D. Shasha, 1994): a use while among the newcomers proves nothing, because a
//! reader goes through a unit in several reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::Key;
use crate::memory::Buffer;

/// The room that units have at first, in bytes, if the budget is no less: a few readers' windows.
const FIRST_ROOM: u64 = 64 << 20;
/// How many newcomers there may be, those left out that were decoded ahead and are awaited: more than there are readers who go through a unit
/// each, mostly.
const NEWCOMERS: usize = 32;
/// Which part of the budget they take at most, unless it is one alone.
const NEWCOMERS_SHARE: u64 = 8;
/// How many units are remembered that were given up for want of room: a hundred bytes each.
const REMEMBERED: usize = 16 << 10;

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

impl Ready {
    /// Whether it was decoded ahead of a reader who may still come.
    fn is_awaited(&self) -> bool {
        self.ahead.is_some_and(|since| since.elapsed() <= PATIENCE)
    }
}

/// How a unit comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was decoded because somebody wants it, or a part of it, who may be the only one.
    Newcomer,
    /// It is wanted again: had there been room for it, it would still be there.
    Returning,
    /// It was come by on the way to another and is not to be had as easily again, or its reader is still to come.
    Proved,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Units {
    proved: Queue<Ready>,
    /// How many bytes the proved ones may take.
    room: u64,
    newcomers: Queue<Ready>,
    /// Units that were given up for want of room.
    given_up: Queue<()>,
    /// All that units could ever take, in bytes.
    budget: u64,
}

impl Units {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            proved: Queue::new(),
            room: first_room(budget),
            newcomers: Queue::new(),
            given_up: Queue::new(),
            budget,
        }
    }

    /// A unit, from now on the most recently used of those like it.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Ready> {
        match self.proved.get_mut(key) {
            Some(ready) => Some(ready),
            None => self.newcomers.get_mut(key),
        }
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.proved.contains(key) || self.newcomers.contains(key)
    }

    /// All units' bytes.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        let all = self.proved.iter().chain(self.newcomers.iter());
        all.map(|(_, ready)| &ready.bytes)
    }

    /// The bytes that were decoded ahead and not read yet.
    #[cfg(all(test, shuttle))]
    pub(super) fn unread(&self) -> usize {
        let units = self.proved.iter().chain(self.newcomers.iter());
        let unread = units.filter(|(_, ready)| ready.ahead.is_some());
        unread.map(|(_, ready)| ready.bytes.len()).sum()
    }

    /// A unit that was decoded ahead of a reader who seems to have left it behind.
    pub(super) fn abandoned(&self) -> Option<Key> {
        let proved = self.proved.iter().rev().take(LOOKED_THROUGH);
        let mut oldest = proved.chain(self.newcomers.iter().rev());
        let abandoned = oldest.find(|(_, ready)| ready.ahead.is_some() && !ready.is_awaited());
        abandoned.map(|(key, _)| key)
    }

    /// Takes notice that a unit is wanted which is not there; says how it is to come in.
    pub(super) fn missed(&mut self, key: Key) -> Standing {
        match self.given_up.pop(key) {
            Some(_) => Standing::Returning,
            None => Standing::Newcomer,
        }
    }

    /// Puts a unit in that is not there; gives back those for which there is no room then.
    pub(super) fn put(&mut self, key: Key, ready: Ready, standing: Standing) -> Vec<Ready> {
        let length = ready.bytes.len() as u64;
        let mut leaving = Vec::new();
        if standing == Standing::Newcomer && self.proved.bytes + length > self.room {
            self.newcomers.put(key, ready, length);
            while self.newcomers.len() > 1
                && let Some(key) = self.superfluous_newcomer()
                && let Some((oldest, length)) = self.newcomers.pop(key)
            {
                self.remember(key, &oldest, length);
                leaving.push(oldest);
            }
            return leaving;
        }
        if standing == Standing::Returning {
            // Here, where it takes it: what makes way for its decode takes from the room.
            self.room = self.room.saturating_add(length);
        }
        self.proved.put(key, ready, length);
        while self.proved.bytes > self.room
            && self.proved.len() > 1
            // What was decoded ahead has its turn still to come.
            && self.proved.oldest().is_some_and(|oldest| !oldest.is_awaited())
            && let Some((key, oldest, length)) = self.proved.pop_oldest()
        {
            self.remember(key, &oldest, length);
            leaving.push(oldest);
        }
        leaving
    }

    pub(super) fn pop(&mut self, key: Key) -> Option<Ready> {
        let popped = self.proved.pop(key).or_else(|| self.newcomers.pop(key));
        popped.map(|(ready, _)| ready)
    }

    /// Gives up a unit because the budget is used up: so much room there is not.
    pub(super) fn give_up_one(&mut self) -> Option<Ready> {
        // What was decoded ahead has its turn still to come.
        let is_awaited = self.proved.oldest().is_some_and(Ready::is_awaited);
        let (first, second) = match is_awaited || self.has_many_newcomers() {
            true => (&mut self.newcomers, &mut self.proved),
            false => (&mut self.proved, &mut self.newcomers),
        };
        let oldest = first.pop_oldest().or_else(|| second.pop_oldest());
        let (key, oldest, length) = oldest?;
        self.room = self
            .room
            .min(self.proved.bytes)
            .max(first_room(self.budget));
        self.remember(key, &oldest, length);
        Some(oldest)
    }

    fn has_many_newcomers(&self) -> bool {
        self.newcomers.bytes > self.budget / NEWCOMERS_SHARE
    }

    /// Which newcomer is to leave, if there are too many: those that were decoded ahead of a reader who may still come are no more
    /// than their bytes allow.
    fn superfluous_newcomer(&self) -> Option<Key> {
        let mut latest = self.newcomers.iter();
        let superfluous = match self.has_many_newcomers() {
            true => latest.next_back(),
            false => latest
                .filter(|(_, ready)| !ready.is_awaited())
                .nth(NEWCOMERS),
        };
        superfluous.map(|(key, _)| key)
    }

    /// Remembers a unit that is given up, if it was read, as long as it would still be there if units had all of the budget.
    fn remember(&mut self, key: Key, unit: &Ready, length: u64) {
        if unit.ahead.is_some() {
            return;
        }
        self.given_up.put(key, (), length);
        while self.given_up.len() > REMEMBERED || self.given_up.bytes > self.budget {
            self.given_up.pop_oldest();
        }
    }
}

fn first_room(budget: u64) -> u64 {
    FIRST_ROOM.min(budget)
}

/// Something of units, in the order of their last use, and how many bytes the units are long.
#[derive(Debug)]
struct Queue<T> {
    entries: LruCache<Key, (T, u64)>,
    bytes: u64,
}

impl<T> Queue<T> {
    fn new() -> Self {
        Self {
            entries: LruCache::unbounded(),
            bytes: 0,
        }
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn contains(&self, key: Key) -> bool {
        self.entries.contains(&key)
    }

    fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entries.get_mut(&key).map(|(value, _)| value)
    }

    fn oldest(&self) -> Option<&T> {
        self.entries.peek_lru().map(|(_, (value, _))| value)
    }

    /// The most recently used first.
    fn iter(&self) -> impl DoubleEndedIterator<Item = (Key, &T)> {
        self.entries.iter().map(|(key, (value, _))| (*key, value))
    }

    fn put(&mut self, key: Key, value: T, length: u64) {
        self.pop(key);
        self.bytes += length;
        self.entries.put(key, (value, length));
    }

    fn pop(&mut self, key: Key) -> Option<(T, u64)> {
        let (value, length) = self.entries.pop(&key)?;
        self.bytes -= length;
        Some((value, length))
    }

    fn pop_oldest(&mut self) -> Option<(Key, T, u64)> {
        let (key, (value, length)) = self.entries.pop_lru()?;
        self.bytes -= length;
        Some((key, value, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Unit;
    use crate::memory::{Budget, Urgency};

    const LENGTH: u64 = 1 << 20;
    const BUDGET: u64 = 256 * LENGTH;

    fn key(chunk: u32) -> Key {
        let unit = Unit { chunk, piece: None };
        Key { contents: 1, unit }
    }

    fn put(units: &mut Units, chunk: u32, ahead: bool, standing: Standing) -> usize {
        let budget = Budget::unlimited();
        let buffers = budget.acquire([LENGTH as usize], Urgency::Demand, || false);
        let [bytes] = buffers.unwrap().unwrap();
        let ready = Ready {
            bytes: Arc::new(bytes),
            ahead: ahead.then(Instant::now),
            kept: 0,
        };
        units.pop(key(chunk));
        units.put(key(chunk), ready, standing).len()
    }

    /// Reads a unit, as the cache does; says whether it was there.
    fn read(units: &mut Units, chunk: u32) -> bool {
        if units.get_mut(key(chunk)).is_some() {
            return true;
        }
        let standing = units.missed(key(chunk));
        put(units, chunk, false, standing);
        false
    }

    #[test]
    fn units_that_nobody_comes_back_to_take_no_more_than_the_first_room() {
        let mut units = Units::new(BUDGET);
        for chunk in 0..200 {
            assert!(!read(&mut units, chunk));
        }
        assert_eq!(units.proved.bytes, FIRST_ROOM);
        assert_eq!(units.all().count(), 64 + NEWCOMERS);
        assert!(units.contains(key(199)) && !units.contains(key(100)));
    }

    #[test]
    fn units_that_nobody_comes_back_to_drive_out_none_that_somebody_does() {
        let mut units = Units::new(BUDGET);
        for round in 0..10 {
            for chunk in 0..64 {
                assert_eq!(read(&mut units, chunk), round > 0);
            }
            for chunk in 0..500 {
                read(&mut units, 1000 * (round + 1) + chunk);
            }
        }
    }

    #[test]
    fn what_is_wanted_again_takes_the_place_of_what_no_longer_is() {
        let mut units = Units::new(BUDGET);
        for chunk in 0..64 {
            read(&mut units, chunk);
        }
        // The budget is used up by others: there is no more room to be had.
        let give_up = |units: &mut Units| {
            while units.proved.bytes > FIRST_ROOM {
                units.give_up_one();
            }
        };
        for _ in 0..3 {
            for chunk in 100..150 {
                read(&mut units, chunk);
                give_up(&mut units);
            }
        }
        assert!((100..150).all(|chunk| units.contains(key(chunk))));
        assert!(units.contains(key(63)) && !units.contains(key(0)));
    }

    #[test]
    fn a_reader_who_goes_through_a_unit_in_many_reads_proves_nothing() {
        let mut units = Units::new(BUDGET);
        for chunk in 0..200 {
            for _ in 0..32 {
                read(&mut units, chunk);
            }
        }
        assert_eq!(units.proved.bytes, FIRST_ROOM);
        assert!(!units.contains(key(150)));
    }

    #[test]
    fn reading_all_of_a_file_again_and_again_makes_room_for_it() {
        let mut units = Units::new(BUDGET);
        let missed: Vec<_> = (0..4)
            .map(|_| (0..150).filter(|&chunk| !read(&mut units, chunk)).count())
            .collect();
        assert_eq!(missed[0], 150);
        assert_eq!(missed[2..], [0, 0], "{missed:?}");
    }

    #[test]
    fn newcomers_take_an_eighth_of_the_budget_at_most() {
        let mut units = Units::new(128 * LENGTH);
        for chunk in 0..300 {
            read(&mut units, chunk);
        }
        assert_eq!(units.proved.bytes, FIRST_ROOM);
        assert_eq!(units.newcomers.bytes, 16 * LENGTH);
        assert_eq!(units.given_up.bytes, 128 * LENGTH);
    }

    #[test]
    fn a_unit_that_returns_takes_the_place_of_one_and_not_of_two() {
        let mut units = Units::new(BUDGET);
        for chunk in 0..200 {
            read(&mut units, chunk);
        }
        for chunk in 100..110 {
            read(&mut units, chunk);
        }
        let before = units.proved.bytes;
        assert_eq!(before, FIRST_ROOM + 10 * LENGTH);
        // As where the budget is used up: one is given up for the memory to decode into.
        let standing = units.missed(key(120));
        assert!(units.give_up_one().is_some());
        assert_eq!(put(&mut units, 120, false, standing), 0);
        assert_eq!((units.proved.bytes, units.room), (before, before));
        assert!(units.contains(key(1)) && !units.contains(key(0)));
    }

    #[test]
    fn a_unit_longer_than_the_room_does_not_drive_itself_out() {
        let mut units = Units::new(LENGTH / 2);
        for standing in [Standing::Newcomer, Standing::Proved, Standing::Returning] {
            put(&mut units, 0, false, standing);
            assert!(units.contains(key(0)), "{standing:?}");
        }
    }

    #[test]
    fn what_was_decoded_ahead_in_vain_does_not_take_the_newcomers_places() {
        let mut units = Units::new(4 * BUDGET);
        for chunk in 0..64 {
            read(&mut units, chunk);
        }
        for chunk in 100..132 {
            put(&mut units, chunk, true, Standing::Newcomer);
        }
        for chunk in 200..210 {
            assert!(!read(&mut units, chunk));
            assert!(read(&mut units, chunk), "{chunk}");
        }
        // Nobody has come for them, and nobody is going to.
        let long_ago = Instant::now().checked_sub(2 * PATIENCE).unwrap();
        for chunk in 100..132 {
            units.get_mut(key(chunk)).unwrap().ahead = Some(long_ago);
        }
        for chunk in 300..340 {
            read(&mut units, chunk);
        }
        assert!((100..132).all(|chunk| !units.contains(key(chunk))));
        assert!((310..340).all(|chunk| units.contains(key(chunk))));
    }

    #[test]
    fn newcomers_make_way_before_what_was_decoded_ahead() {
        let mut units = Units::new(BUDGET);
        for chunk in 0..64 {
            put(&mut units, chunk, true, Standing::Proved);
        }
        read(&mut units, 100);
        assert!(units.contains(key(100)));
        units.give_up_one();
        assert!(!units.contains(key(100)) && units.contains(key(0)));
    }

    #[test]
    fn what_was_decoded_ahead_is_not_given_up_for_want_of_room() {
        let mut units = Units::new(BUDGET);
        for chunk in 0..100 {
            assert_eq!(put(&mut units, chunk, true, Standing::Proved), 0);
        }
        units.get_mut(key(0)).unwrap().ahead = None;
        assert_eq!(put(&mut units, 100, false, Standing::Proved), 0);
        for chunk in 0..=100 {
            units.get_mut(key(chunk)).unwrap().ahead = None;
        }
        assert_eq!(put(&mut units, 101, false, Standing::Proved), 38);
    }
}
