//! Decoded chunks of all open files, under one byte budget, the least recently used given up first.
//!
//! However many want a chunk, it is decoded once: the first marks it in flight, the others wait for that decode and
//! get its result, its error included. The mark is a guard: it clears when it is dropped, on every path, panics
//! included. No lock is held while anything is decoded. The cache does not know what a chunk means; whoever asks
//! brings the decoding along.
//!
//! What was decoded ahead and has not been read yet may take half of the budget, so that speculation never drives out
//! all that is known to be useful.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Budget, Buffer, Urgency};
use crate::stats::Counters;

/// Names a chunk among those of all open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The number of the file's contents; new contents have a new number.
    pub(crate) contents: u64,
    /// The chunk's number in the file.
    pub(crate) chunk: u32,
}

/// The memory a decode takes, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The compressed input's size.
    pub(crate) compressed: usize,
    /// The decoded chunk's size.
    pub(crate) original: usize,
}

/// How a chunk was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was there.
    Hit,
    /// Another thread was decoding it.
    Joined,
    /// It was decoded for this request.
    Decoded,
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
    ready: LruCache<Key, Ready>,
    in_flight: HashMap<Key, Arc<Flight>>,
    /// Bytes decoded, or being decoded, ahead of any reader.
    ahead: u64,
}

#[derive(Debug)]
struct Ready {
    chunk: Arc<Buffer>,
    /// Decoded ahead and not read yet.
    ahead: bool,
}

/// A decode that is going on, and who waits for it.
#[derive(Debug, Default)]
struct Flight {
    outcome: Mutex<Option<Result<Arc<Buffer>>>>,
    landed: Condvar,
    /// Somebody waits to read it. Set under the cache's lock.
    wanted: AtomicBool,
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

/// The mark of a chunk in flight. Dropped without a landing, it tells the waiters that the decoder panicked.
struct Mark<'a> {
    cache: &'a Cache,
    key: Key,
    flight: Arc<Flight>,
    /// The bytes this decode adds to those decoded ahead, if it is speculation.
    ahead: Option<Ahead<'a>>,
    outcome: Option<Result<Arc<Buffer>>>,
}

/// Bytes that count as decoded ahead until they are read or given up.
struct Ahead<'a> {
    cache: &'a Cache,
    bytes: u64,
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.cache.lock().ahead -= self.bytes;
    }
}

impl Mark<'_> {
    fn land(mut self, outcome: Result<Arc<Buffer>>) {
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
        let replaced = outcome.as_ref().ok().and_then(|chunk| {
            let ready = Ready {
                chunk: Arc::clone(chunk),
                ahead: unread,
            };
            state.ready.put(self.key, ready)
        });
        drop(state);
        drop(replaced);
        if unread {
            // It goes on counting, now as a chunk that is ready.
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
        // Who waits for memory may now take this chunk's.
        self.cache.budget.announce();
    }
}

impl Cache {
    /// An empty cache under `budget`.
    pub(crate) fn new(budget: Arc<Budget>, counters: Arc<Counters>) -> Self {
        Self {
            budget,
            counters,
            state: Mutex::new(State {
                ready: LruCache::unbounded(),
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

    /// The chunk, decoded by `decode` if nobody has yet: it gets room for the compressed input and for the chunk.
    ///
    /// # Errors
    /// `decode`'s error, also for everyone who waited for it; [`ErrorKind::OverBudget`] for a chunk that can never fit.
    pub(crate) fn get(
        &self,
        key: Key,
        sizes: Sizes,
        decode: impl FnOnce(&mut [u8], &mut [u8]) -> Result<()>,
    ) -> Result<(Arc<Buffer>, Origin)> {
        let mut state = self.lock();
        if let Some(ready) = state.ready.get_mut(&key) {
            let chunk = Arc::clone(&ready.chunk);
            if std::mem::take(&mut ready.ahead) {
                state.ahead -= chunk.len() as u64;
                self.counters.prefetch_hits.add(1);
            }
            drop(state);
            self.counters.cache_hits.add(1);
            return Ok((chunk, Origin::Hit));
        }
        if let Some(flight) = state.in_flight.get(&key) {
            let flight = Arc::clone(flight);
            flight.wanted.store(true, Ordering::Relaxed);
            drop(state);
            self.counters.cache_joined.add(1);
            return Ok((flight.wait()?, Origin::Joined));
        }
        let mark = self.mark(&mut state, key, None);
        drop(state);
        self.counters.cache_misses.add(1);
        let buffers =
            self.budget
                .acquire([sizes.compressed, sizes.original], Urgency::Demand, || {
                    self.evict_one()
                });
        let decoded = buffers.and_then(|buffers| match buffers {
            Some(buffers) => run(buffers, decode),
            None => Err(Error::from(ErrorKind::Cancelled)),
        });
        mark.land(decoded.clone());
        Ok((decoded?, Origin::Decoded))
    }

    /// Decodes the chunk ahead of any reader, unless it is there or in flight or memory is short.
    ///
    /// # Errors
    /// `decode`'s error. It is also given to those who waited meanwhile, and forgotten.
    pub(crate) fn prefetch(
        &self,
        key: Key,
        sizes: Sizes,
        decode: impl FnOnce(&mut [u8], &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        if self.knows(key) {
            return Ok(());
        }
        let granted = self.go_ahead(sizes.original as u64).and_then(|ahead| {
            let buffers = self.budget.acquire(
                [sizes.compressed, sizes.original],
                Urgency::Speculation,
                || self.evict_one(),
            );
            Some((ahead, buffers.ok().flatten()?))
        });
        let Some((ahead, buffers)) = granted else {
            self.counters.prefetch_refused.add(1);
            return Ok(());
        };
        let mut state = self.lock();
        if state.in_flight.contains_key(&key) || state.ready.contains(&key) {
            // Before what gives bytes back takes the lock.
            drop(state);
            return Ok(());
        }
        let mark = self.mark(&mut state, key, Some(ahead));
        drop(state);
        let decoded = run(buffers, decode);
        if decoded.is_ok() {
            self.counters.prefetched_chunks.add(1);
        }
        let failure = decoded.as_ref().err().cloned();
        mark.land(decoded);
        failure.map_or(Ok(()), Err)
    }

    /// Whether the chunk is decoded or being decoded.
    pub(crate) fn knows(&self, key: Key) -> bool {
        let state = self.lock();
        state.ready.contains(&key) || state.in_flight.contains_key(&key)
    }

    /// Gives up the least recently used chunk; says whether there was one.
    pub(crate) fn evict_one(&self) -> bool {
        let mut state = self.lock();
        let Some((_, evicted)) = state.ready.pop_lru() else {
            return false;
        };
        if evicted.ahead {
            state.ahead -= evicted.chunk.len() as u64;
            self.counters.prefetch_wasted.add(1);
        }
        drop(state);
        self.counters.evicted_chunks.add(1);
        true
    }

    /// Room for `bytes` more to be decoded ahead of any reader; `None` if there are too many of them unread.
    fn go_ahead(&self, bytes: u64) -> Option<Ahead<'_>> {
        let mut state = self.lock();
        let ahead = state.ahead.checked_add(bytes)?;
        if ahead > self.budget.total() / 2 {
            return None;
        }
        state.ahead = ahead;
        drop(state);
        Some(Ahead { cache: self, bytes })
    }

    fn mark<'a>(&'a self, state: &mut State, key: Key, ahead: Option<Ahead<'a>>) -> Mark<'a> {
        let flight = Arc::new(Flight::default());
        state.in_flight.insert(key, Arc::clone(&flight));
        Mark {
            cache: self,
            key,
            flight,
            ahead,
            outcome: None,
        }
    }
}

/// Decodes into the second buffer with the first as the input's room; the first is given back at once.
fn run(
    [mut compressed, mut original]: [Buffer; 2],
    decode: impl FnOnce(&mut [u8], &mut [u8]) -> Result<()>,
) -> Result<Arc<Buffer>> {
    decode(&mut compressed, &mut original)?;
    Ok(Arc::new(original))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    const SIZES: Sizes = Sizes {
        compressed: 4096,
        original: 8192,
    };

    fn cache(budget: u64) -> Cache {
        Cache::new(Budget::new(budget), Arc::default())
    }

    fn key(chunk: u32) -> Key {
        Key { contents: 1, chunk }
    }

    fn fill(byte: u8) -> impl FnOnce(&mut [u8], &mut [u8]) -> Result<()> {
        move |_, original| {
            original.fill(byte);
            Ok(())
        }
    }

    #[test]
    fn a_chunk_is_decoded_once_however_many_wait() {
        let cache = cache(1 << 20);
        let decodes = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let (chunk, _) = cache
                        .get(key(0), SIZES, |_, original| {
                            decodes.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(20));
                            original.fill(9);
                            Ok(())
                        })
                        .unwrap();
                    assert!(chunk.iter().all(|&byte| byte == 9));
                });
            }
        });
        assert_eq!(decodes.into_inner(), 1);
    }

    #[test]
    fn a_failed_decode_reaches_every_waiter_and_is_tried_again() {
        let cache = cache(1 << 20);
        let fail = |_: &mut [u8], _: &mut [u8]| {
            std::thread::sleep(Duration::from_millis(20));
            Err(Error::new(ErrorKind::NotWarp))
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(cache.get(key(0), SIZES, fail).is_err()));
            }
        });
        let (_, origin) = cache.get(key(0), SIZES, fill(1)).unwrap();
        assert_eq!(origin, Origin::Decoded);
    }

    #[test]
    fn a_decoder_that_panics_leaves_no_mark_and_wakes_its_waiters() {
        let cache = cache(1 << 20);
        let started = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let decoder = scope.spawn(|| {
                cache.get(key(0), SIZES, |_, _| {
                    started.wait();
                    std::thread::sleep(Duration::from_millis(50));
                    panic!("as the test wants it")
                })
            });
            started.wait();
            let error = cache.get(key(0), SIZES, fill(1)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Panicked));
            assert!(decoder.join().is_err());
        });
        assert!(cache.get(key(0), SIZES, fill(1)).is_ok());
    }

    #[test]
    fn the_least_recently_used_chunk_leaves_first() {
        // Room for two chunks and one input.
        let cache = cache(2 * 8192 + 4096);
        cache.get(key(0), SIZES, fill(0)).unwrap();
        cache.get(key(1), SIZES, fill(1)).unwrap();
        cache.get(key(0), SIZES, fill(0)).unwrap();
        cache.get(key(2), SIZES, fill(2)).unwrap();
        assert!(cache.knows(key(0)) && !cache.knows(key(1)) && cache.knows(key(2)));
        assert!(cache.budget().used() <= cache.budget().total());
    }

    #[test]
    fn speculation_takes_half_of_the_budget_at_most_until_it_is_read() {
        let cache = cache(8 * 8192);
        for chunk in 0..8 {
            cache.prefetch(key(chunk), SIZES, fill(1)).unwrap();
        }
        let known = (0..8).filter(|&chunk| cache.knows(key(chunk))).count();
        assert_eq!(known, 4);
        cache.get(key(0), SIZES, fill(0)).unwrap();
        cache.prefetch(key(7), SIZES, fill(1)).unwrap();
        assert!(cache.knows(key(7)));
    }

    #[test]
    fn a_chunk_that_a_reader_joined_in_flight_is_no_longer_ahead() {
        let cache = cache(1 << 20);
        let started = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                cache.prefetch(key(0), SIZES, |_, original| {
                    started.wait();
                    std::thread::sleep(Duration::from_millis(50));
                    original.fill(3);
                    Ok(())
                })
            });
            started.wait();
            let (chunk, origin) = cache.get(key(0), SIZES, fill(1)).unwrap();
            assert_eq!((chunk[0], origin), (3, Origin::Joined));
        });
        assert_eq!(cache.lock().ahead, 0);
        assert_eq!(cache.counters.prefetch_hits.get(), 1);
        cache.prefetch(key(1), SIZES, fill(1)).unwrap();
        assert_eq!(cache.lock().ahead, 8192);
        assert!(
            cache
                .prefetch(key(2), SIZES, |_, _| Err(ErrorKind::NotWarp.into()))
                .is_err()
        );
        assert_eq!(cache.lock().ahead, 8192);
    }

    #[test]
    fn a_demand_read_waits_until_a_pinned_chunk_is_let_go() {
        let cache = cache(8192 + 4096);
        let (pinned, _) = cache.get(key(0), SIZES, fill(0)).unwrap();
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| cache.get(key(1), SIZES, fill(1)).map(|(chunk, _)| chunk[0]));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            drop(pinned);
            assert_eq!(waiter.join().unwrap().unwrap(), 1);
        });
    }
}
