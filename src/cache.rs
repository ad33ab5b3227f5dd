//! What was decoded of all open files, under one byte budget.
//!
//! A unit is what is decoded in one go: a chunk, or a piece of one. However many want a unit, it is decoded once:
//! the first finds it vacant and gets the mark of a unit in flight, the others wait for that decode and get its result, its
//! error included. The mark is a guard: it clears when it is dropped, on every path, panics included. No lock is held while
//! anything is decoded. The cache does not know what a unit means; whoever finds one vacant brings it in.
//!
//! Which units are kept, and how many, `units` decides. What was decoded ahead and has not been read yet may take half of the budget, so that speculation never drives out
//! all that is known to be useful. A unit whose every byte was handed to somebody who keeps it (the kernel, in its page
//! cache) leaves at once: a sequential reader then needs little memory, and the same buffers, still in the processor's
//! caches, are filled again and again.

mod units;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use self::units::{Ready, Standing, Units};
use crate::archive::Unit;
use crate::error::{ErrorKind, Result};
use crate::memory::{Budget, Buffer};
use crate::stats::Counters;
use crate::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard};

/// Names a unit among those of all open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The number of the file's contents; new contents have a new number.
    pub(crate) contents: u64,
    /// The unit within the file.
    pub(crate) unit: Unit,
}

/// How a unit was come by, what takes longest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// It was there.
    Hit,
    /// Another thread was decoding it.
    Joined,
    /// It was decoded for this request.
    Decoded,
    /// It was, to where it is wanted: the cache does not have it.
    Straight,
}

/// What [`Cache::enter`] finds.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    /// The unit, decoded.
    Found(Arc<Buffer>, Origin),
    /// Nobody has decoded it: the caller has to.
    Vacant(Mark<'a>),
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Cache {
    budget: Arc<Budget>,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ready: Units,
    in_flight: HashMap<Key, Arc<Flight>>,
    /// Bytes decoded, or being decoded, ahead of any reader.
    ahead: u64,
}

/// A decode that is going on, and who waits for it.
#[derive(Debug, Default)]
struct Flight {
    outcome: Mutex<Option<Result<Arc<Buffer>>>>,
    landed: Condvar,
    /// Somebody waits to read it. Set under the cache's lock.
    wanted: AtomicBool,
    /// How many of its bytes those who wait will keep. Changed under the cache's lock.
    kept: AtomicUsize,
}

impl Flight {
    fn wait(&self) -> Result<Arc<Buffer>> {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*outcome {
                Some(result) => return result.clone(),
                None => {
                    outcome = self
                        .landed
                        .wait(outcome)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// The mark of a unit in flight. Dropped without a landing, it tells the waiters that the decoder panicked.
#[derive(Debug)]
pub(crate) struct Mark<'a> {
    cache: &'a Cache,
    key: Key,
    flight: Arc<Flight>,
    /// The bytes this decode adds to those decoded ahead, if it is speculation.
    ahead: Option<Ahead<'a>>,
    /// How the unit is to come in.
    standing: Standing,
    outcome: Option<Result<Arc<Buffer>>>,
}

/// Bytes that count as decoded ahead until they are read or given up.
#[derive(Debug)]
pub(crate) struct Ahead<'a> {
    cache: &'a Cache,
    bytes: u64,
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.cache.lock().ahead -= self.bytes;
    }
}

impl Mark<'_> {
    /// Puts the decoded unit into the cache, or lets all who wait know why there is none.
    pub(crate) fn land(mut self, outcome: Result<Arc<Buffer>>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        let outcome = self
            .outcome
            .take()
            .unwrap_or_else(|| Err(ErrorKind::Panicked.into()));
        let speculation = self.ahead.take();
        let mut state = self.cache.lock();
        state.in_flight.remove(&self.key);
        let wanted = self.flight.wanted.load(Ordering::Relaxed);
        let unread = outcome.is_ok() && speculation.is_some() && !wanted;
        let leaving = outcome.as_ref().ok().map(|bytes| {
            let ready = Ready {
                bytes: Arc::clone(bytes),
                ahead: unread.then(Instant::now),
                kept: self.flight.kept.load(Ordering::Relaxed),
            };
            self.cache.put(&mut state, self.key, ready, self.standing)
        });
        drop(state);
        drop(leaving);
        if unread {
            // It goes on counting, now as a unit that is ready.
            std::mem::forget(speculation);
        } else if speculation.is_some() && wanted {
            self.cache.counters.prefetch_hits.add(1);
        }
        *self
            .flight
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.flight.landed.notify_all();
        // Who waits for memory may now take this unit's.
        self.cache.budget.announce();
    }
}

impl Cache {
    /// An empty cache under `budget`.
    pub(crate) fn new(budget: Arc<Budget>, counters: Arc<Counters>) -> Self {
        let ready = Units::new(budget.total());
        Self {
            budget,
            counters,
            state: Mutex::new(State {
                ready,
                in_flight: HashMap::new(),
                ahead: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The budget the cache lives under.
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The unit, if it is decoded or once it is; or the task to decode it. `kept` is how many of its bytes are going to be
    /// handed to somebody who keeps them, and `is_alone` whether it is decoded without others.
    ///
    /// # Errors
    /// Those of the decode that was waited for.
    pub(crate) fn enter(&self, key: Key, kept: usize, is_alone: bool) -> Result<Entry<'_>> {
        let mut state = self.lock();
        if let Some((bytes, given_up)) = self.read(&mut state, key, kept) {
            drop(state);
            drop(given_up);
            self.counters.cache_hits.add(1);
            return Ok(Entry::Found(bytes, Origin::Hit));
        }
        if let Some(flight) = state.in_flight.get(&key) {
            let flight = Arc::clone(flight);
            flight.wanted.store(true, Ordering::Relaxed);
            flight.kept.fetch_add(kept, Ordering::Relaxed);
            drop(state);
            self.counters.cache_joined.add(1);
            return Ok(Entry::Found(flight.wait()?, Origin::Joined));
        }
        let standing = match state.ready.missed(key) {
            // To come by it again, others may have to be decoded too.
            Standing::Newcomer if !is_alone => Standing::Proved,
            standing => standing,
        };
        let mark = self.mark(&mut state, key, None, standing);
        mark.flight.kept.store(kept, Ordering::Relaxed);
        drop(state);
        self.counters.cache_misses.add(1);
        Ok(Entry::Vacant(mark))
    }

    /// The unit, if somebody else has brought it in while the caller holds its mark.
    pub(crate) fn supplied(&self, mark: &Mark<'_>) -> Option<Arc<Buffer>> {
        let mut state = self.lock();
        let found = self.read(&mut state, mark.key, 0);
        drop(state);
        found.map(|(bytes, _)| bytes)
    }

    /// Brings in a unit that was decoded on the way to another.
    pub(crate) fn supply(&self, key: Key, bytes: Buffer, ahead: Option<Ahead<'_>>) {
        let ready = Ready {
            bytes: Arc::new(bytes),
            ahead: ahead.is_some().then(Instant::now),
            kept: 0,
        };
        let mut state = self.lock();
        let leaving = self.put(&mut state, key, ready, Standing::Proved);
        drop(state);
        drop(leaving);
        // It goes on counting, now as a unit that is ready.
        std::mem::forget(ahead);
        self.budget.announce();
    }

    /// The task to decode a unit ahead of any reader, who is going to read `all` of it or a part; `None` if it is there or in
    /// flight.
    pub(crate) fn enter_ahead<'a>(
        &'a self,
        key: Key,
        ahead: Ahead<'a>,
        all: bool,
    ) -> Option<Mark<'a>> {
        let mut state = self.lock();
        if state.in_flight.contains_key(&key) || state.ready.contains(key) {
            // Before what gives bytes back takes the lock.
            drop(state);
            return None;
        }
        // What is read all of leaves when it has been. A part may be all that is ever wanted.
        let standing = match all {
            true => Standing::Proved,
            false => state.ready.missed(key),
        };
        Some(self.mark(&mut state, key, Some(ahead), standing))
    }

    /// The task to decode a unit for somebody who is about to want it; `None` if it is there or in flight.
    pub(crate) fn enter_for_another(&self, key: Key) -> Option<Mark<'_>> {
        let mut state = self.lock();
        if state.in_flight.contains_key(&key) || state.ready.contains(key) {
            return None;
        }
        let standing = state.ready.missed(key);
        let mark = self.mark(&mut state, key, None, standing);
        drop(state);
        self.counters.cache_misses.add(1);
        Some(mark)
    }

    /// Whether the unit is decoded or being decoded.
    pub(crate) fn knows(&self, key: Key) -> bool {
        let state = self.lock();
        state.ready.contains(key) || state.in_flight.contains_key(&key)
    }

    /// Whether the unit is decoded. One in flight is not: who holds its mark may be waiting for it to be supplied.
    pub(crate) fn is_ready(&self, key: Key) -> bool {
        self.lock().ready.contains(key)
    }

    /// How many units are under way: being decoded, or waiting for what that takes.
    pub(crate) fn decoding(&self) -> u64 {
        self.lock().in_flight.len() as u64
    }

    /// The bytes of the units that nobody but the cache has, as they count against the budget.
    pub(crate) fn idle(&self) -> u64 {
        let state = self.lock();
        let idle = state.ready.all();
        idle.filter(|bytes| Arc::strong_count(bytes) == 1)
            .map(|bytes| bytes.counted())
            .sum()
    }

    /// Gives up a unit, the one least likely to be wanted; says whether there was one.
    pub(crate) fn evict_one(&self) -> bool {
        let mut state = self.lock();
        let Some(evicted) = state.ready.give_up_one() else {
            return false;
        };
        if self.forget_ahead(&mut state, &evicted) {
            self.counters.prefetch_wasted.add(1);
        }
        drop(state);
        self.counters.evicted_chunks.add(1);
        true
    }

    /// Room for `bytes` more to be decoded ahead of any reader; `None` if there are too many of them unread. What its reader
    /// has left behind unread makes way.
    pub(crate) fn go_ahead(&self, bytes: u64) -> Option<Ahead<'_>> {
        let mut given_up = Vec::new();
        let mut state = self.lock();
        let wanted = loop {
            let wanted = state.ahead.checked_add(bytes)?;
            if wanted <= self.budget.total() / 2 {
                break Some(wanted);
            }
            let Some(key) = state.ready.abandoned() else {
                break None;
            };
            if let Some(ready) = state.ready.pop(key) {
                self.forget_ahead(&mut state, &ready);
                self.counters.prefetch_wasted.add(1);
                given_up.push(ready);
            }
        };
        state.ahead = wanted.unwrap_or(state.ahead);
        drop(state);
        // Freed without the lock.
        drop(given_up);
        wanted.map(|_| Ahead { cache: self, bytes })
    }

    /// A unit that is ready, and what the cache no longer holds because of this read; the caller drops that when it has
    /// let go of the lock.
    fn read(
        &self,
        state: &mut State,
        key: Key,
        kept: usize,
    ) -> Option<(Arc<Buffer>, Option<Ready>)> {
        let ready = state.ready.get_mut(key)?;
        let bytes = Arc::clone(&ready.bytes);
        ready.kept = ready.kept.saturating_add(kept);
        let all_kept = ready.kept >= bytes.len();
        if ready.ahead.take().is_some() {
            state.ahead -= bytes.len() as u64;
            self.counters.prefetch_hits.add(1);
        }
        let given_up = match all_kept {
            true => {
                self.counters.handed_over.add(1);
                state.ready.pop(key)
            }
            false => None,
        };
        Some((bytes, given_up))
    }

    /// Puts a unit in, unless all of it is kept elsewhere. The caller drops the result, units given up, when it has let go of
    /// the lock.
    fn put(&self, state: &mut State, key: Key, ready: Ready, standing: Standing) -> Vec<Ready> {
        // Somebody may have supplied it meanwhile.
        let replaced = state.ready.pop(key);
        if let Some(replaced) = &replaced {
            self.forget_ahead(state, replaced);
        }
        let mut leaving = Vec::new();
        if ready.kept >= ready.bytes.len() {
            self.counters.handed_over.add(1);
        } else {
            leaving = state.ready.put(key, ready, standing);
            self.counters.evicted_chunks.add(leaving.len() as u64);
        }
        for unit in &leaving {
            if self.forget_ahead(state, unit) {
                self.counters.prefetch_wasted.add(1);
            }
        }
        leaving.extend(replaced);
        leaving
    }

    /// Takes a unit that leaves off those decoded ahead, if it was one of them.
    fn forget_ahead(&self, state: &mut State, leaving: &Ready) -> bool {
        if leaving.ahead.is_some() {
            state.ahead -= leaving.bytes.len() as u64;
        }
        leaving.ahead.is_some()
    }

    fn mark<'a>(
        &'a self,
        state: &mut State,
        key: Key,
        ahead: Option<Ahead<'a>>,
        standing: Standing,
    ) -> Mark<'a> {
        let flight = Arc::new(Flight::default());
        state.in_flight.insert(key, Arc::clone(&flight));
        Mark {
            cache: self,
            key,
            flight,
            ahead,
            standing,
            outcome: None,
        }
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use super::units::PATIENCE;
    use super::*;
    use crate::error::Error;
    use crate::memory::Urgency;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    const LENGTH: usize = 8192;

    fn cache(budget: u64) -> Cache {
        Cache::new(Budget::new(budget), Arc::default())
    }

    fn key(chunk: u32) -> Key {
        let unit = Unit { chunk, piece: None };
        Key { contents: 1, unit }
    }

    fn buffer(cache: &Cache, byte: u8, urgency: Urgency) -> Option<Buffer> {
        let make_room = || cache.evict_one();
        let acquired = cache.budget.acquire([LENGTH], urgency, make_room);
        let [mut buffer] = acquired.unwrap()?;
        buffer.fill(byte);
        Some(buffer)
    }

    /// Reads a unit as a reader does who keeps `kept` bytes; where it is vacant, `decode` brings it in.
    fn read_with(
        cache: &Cache,
        chunk: u32,
        kept: usize,
        decode: impl FnOnce() -> Result<Arc<Buffer>>,
    ) -> Result<(Arc<Buffer>, Origin)> {
        match cache.enter(key(chunk), kept, true)? {
            Entry::Found(bytes, origin) => Ok((bytes, origin)),
            Entry::Vacant(mark) => {
                let outcome = decode();
                mark.land(outcome.clone());
                Ok((outcome?, Origin::Decoded))
            }
        }
    }

    fn read(cache: &Cache, chunk: u32, byte: u8) -> Origin {
        let fill = || Ok(Arc::new(buffer(cache, byte, Urgency::Demand).unwrap()));
        let (bytes, origin) = read_with(cache, chunk, 0, fill).unwrap();
        assert_eq!(bytes.len(), LENGTH);
        origin
    }

    /// Decodes a unit ahead as a worker does; says whether it was let.
    fn ahead(cache: &Cache, chunk: u32, decode: impl FnOnce() -> Result<()>) -> bool {
        ahead_of(cache, chunk, true, decode)
    }

    /// The same for a reader who is going to read `all` of it or not.
    fn ahead_of(cache: &Cache, chunk: u32, all: bool, decode: impl FnOnce() -> Result<()>) -> bool {
        let Some(ahead) = cache.go_ahead(LENGTH as u64) else {
            return false;
        };
        let Some(buffer) = buffer(cache, 7, Urgency::Speculation) else {
            return false;
        };
        let Some(mark) = cache.enter_ahead(key(chunk), ahead, all) else {
            return false;
        };
        let outcome = decode().map(|()| Arc::new(buffer));
        mark.land(outcome.clone());
        outcome.is_ok()
    }

    /// Waits until somebody waits for this unit, which is in flight.
    fn wait_for_who_joins(cache: &Cache, chunk: u32) {
        let began = Instant::now();
        let is_wanted = || {
            let state = cache.lock();
            let flight = state.in_flight.get(&key(chunk)).unwrap();
            flight.wanted.load(Ordering::Relaxed)
        };
        while !is_wanted() {
            assert!(began.elapsed() < Duration::from_secs(20), "nobody came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_unit_is_decoded_once_however_many_wait() {
        let cache = cache(1 << 20);
        let decodes = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let (bytes, _) = read_with(&cache, 0, 0, || {
                        decodes.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(20));
                        Ok(Arc::new(buffer(&cache, 9, Urgency::Demand).unwrap()))
                    })
                    .unwrap();
                    assert!(bytes.iter().all(|&byte| byte == 9));
                });
            }
        });
        assert_eq!(decodes.into_inner(), 1);
    }

    #[test]
    fn a_failed_decode_reaches_every_waiter_and_is_tried_again() {
        let cache = cache(1 << 20);
        let fail = || {
            std::thread::sleep(Duration::from_millis(20));
            Err(Error::new(ErrorKind::NotWarp))
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(read_with(&cache, 0, 0, fail).is_err()));
            }
        });
        assert_eq!(read(&cache, 0, 1), Origin::Decoded);
    }

    #[test]
    fn a_decoder_that_panics_leaves_no_mark_and_wakes_its_waiters() {
        let cache = cache(1 << 20);
        let started = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let decoder = scope.spawn(|| {
                read_with(&cache, 0, 0, || {
                    started.wait();
                    wait_for_who_joins(&cache, 0);
                    panic!("as the test wants it")
                })
            });
            started.wait();
            let error = read_with(&cache, 0, 0, || unreachable!()).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Panicked));
            assert!(decoder.join().is_err());
        });
        assert_eq!(read(&cache, 0, 1), Origin::Decoded);
    }

    #[test]
    fn the_least_recently_used_unit_leaves_first() {
        let cache = cache(2 * LENGTH as u64);
        read(&cache, 0, 0);
        read(&cache, 1, 1);
        assert_eq!(read(&cache, 0, 0), Origin::Hit);
        read(&cache, 2, 2);
        assert!(cache.knows(key(0)) && !cache.knows(key(1)) && cache.knows(key(2)));
        assert!(cache.budget().used() <= cache.budget().total());
    }

    #[test]
    fn a_unit_that_others_keep_all_of_leaves_at_once() {
        let cache = cache(1 << 20);
        let fill = || Ok(Arc::new(buffer(&cache, 5, Urgency::Demand).unwrap()));
        read_with(&cache, 0, LENGTH / 2, fill).unwrap();
        assert!(cache.knows(key(0)));
        let (bytes, origin) = read_with(&cache, 0, LENGTH / 2, fill).unwrap();
        assert_eq!((bytes[0], origin), (5, Origin::Hit));
        assert!(!cache.knows(key(0)));
        read_with(&cache, 1, LENGTH, fill).unwrap();
        assert!(!cache.knows(key(1)));
        assert!(ahead(&cache, 2, || Ok(())));
        assert_eq!(cache.lock().ahead, LENGTH as u64);
        read_with(&cache, 2, LENGTH, fill).unwrap();
        assert!(!cache.knows(key(2)));
        assert_eq!(cache.lock().ahead, 0);
    }

    #[test]
    fn speculation_takes_half_of_the_budget_at_most_until_it_is_read() {
        let cache = cache(8 * LENGTH as u64);
        let let_in = (0..8)
            .filter(|&chunk| ahead(&cache, chunk, || Ok(())))
            .count();
        assert_eq!(let_in, 4);
        assert_eq!(read(&cache, 0, 0), Origin::Hit);
        assert!(ahead(&cache, 7, || Ok(())));
    }

    #[test]
    fn what_a_part_is_read_of_drives_out_none_that_are_wanted_again() {
        let cache = cache(256 << 20);
        // As many as there is room for at first.
        let hot = 0..(64 << 20) / LENGTH as u32;
        for chunk in hot.clone() {
            assert_eq!(read(&cache, chunk, 1), Origin::Decoded);
        }
        // Three readers, of whom each has some decoded ahead.
        for step in 0..400 {
            for reader in 1..=3 {
                let chunk = reader * 100_000 + step;
                assert!(ahead_of(&cache, chunk, false, || Ok(())));
                if step >= 16 {
                    assert_eq!(read(&cache, chunk - 16, 7), Origin::Hit);
                }
            }
        }
        for chunk in hot {
            assert_eq!(read(&cache, chunk, 1), Origin::Hit, "{chunk}");
        }
        assert_eq!(cache.counters.prefetch_wasted.get(), 0);
    }

    #[test]
    fn a_unit_that_a_reader_joined_in_flight_is_no_longer_ahead() {
        let cache = cache(1 << 20);
        let started = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                ahead(&cache, 0, || {
                    started.wait();
                    wait_for_who_joins(&cache, 0);
                    Ok(())
                })
            });
            started.wait();
            assert_eq!(read(&cache, 0, 1), Origin::Joined);
        });
        assert_eq!(cache.lock().ahead, 0);
        assert_eq!(cache.counters.prefetch_hits.get(), 1);
        assert!(ahead(&cache, 1, || Ok(())));
        assert_eq!(cache.lock().ahead, LENGTH as u64);
        assert!(!ahead(&cache, 2, || Err(ErrorKind::NotWarp.into())));
        assert_eq!(cache.lock().ahead, LENGTH as u64);
    }

    #[test]
    fn a_reader_that_never_comes_does_not_keep_others_from_being_decoded_ahead_for() {
        let cache = cache(4 * LENGTH as u64);
        assert!(ahead(&cache, 0, || Ok(())) && ahead(&cache, 1, || Ok(())));
        assert!(!ahead(&cache, 2, || Ok(())));
        std::thread::sleep(PATIENCE + Duration::from_millis(100));
        assert!(ahead(&cache, 2, || Ok(())));
        assert_eq!(cache.lock().ahead, 2 * LENGTH as u64);
    }

    #[test]
    fn a_unit_that_was_supplied_and_then_handed_over_is_not_kept_either() {
        let cache = cache(1 << 20);
        let Entry::Vacant(mark) = cache.enter(key(0), LENGTH, true).unwrap() else {
            panic!("nothing was decoded yet");
        };
        let bytes = buffer(&cache, 3, Urgency::Demand).unwrap();
        cache.supply(key(0), bytes, cache.go_ahead(LENGTH as u64));
        let supplied = cache.supplied(&mark).unwrap();
        mark.land(Ok(supplied));
        assert!(!cache.knows(key(0)));
        assert_eq!(cache.lock().ahead, 0);
    }

    #[test]
    fn a_unit_decoded_on_the_way_reaches_who_holds_its_mark() {
        let cache = cache(1 << 20);
        let Entry::Vacant(mark) = cache.enter(key(0), 0, true).unwrap() else {
            panic!("nothing was decoded yet");
        };
        assert!(cache.supplied(&mark).is_none());
        let bytes = buffer(&cache, 3, Urgency::Demand).unwrap();
        cache.supply(key(0), bytes, cache.go_ahead(LENGTH as u64));
        let supplied = cache.supplied(&mark).unwrap();
        mark.land(Ok(supplied));
        assert_eq!(read(&cache, 0, 1), Origin::Hit);
        assert_eq!(cache.lock().ahead, 0);
    }

    #[test]
    fn a_demand_read_waits_until_a_pinned_unit_is_let_go() {
        let cache = cache(LENGTH as u64);
        let fill = |byte| Ok(Arc::new(buffer(&cache, byte, Urgency::Demand).unwrap()));
        let (pinned, _) = read_with(&cache, 0, 0, || fill(0)).unwrap();
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| read_with(&cache, 1, 0, || fill(1)).map(|(unit, _)| unit[0]));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            drop(pinned);
            assert_eq!(waiter.join().unwrap().unwrap(), 1);
        });
    }
}
