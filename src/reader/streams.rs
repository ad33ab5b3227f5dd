//! Chunks that are decoded piece by piece: who is at it now, and the decoders that were put aside between two pieces.
//!
//! A decoder goes through its chunk from front to back, so whoever wants a piece takes the one that stands closest before
//! it and goes on from there. A decoder belongs to one thread at a time; others who want something it is going to come by wait
//! for it rather than begin anew, and who only guesses that it will be wanted leaves an errand with it, which is run when the
//! decoder is free again. The mark of a decoder at work is a guard: it clears when it is dropped, on every path, panics
//! included, and no errand is lost with it.
//!
//! Where parts of a chunk can be decoded without others, whoever wants one branches a decoder off one that was put aside, and has
//! no part in any of this.
//!
//! Decoders that were put aside count against the budget and are given up when memory is short, the one that was used
//! least recently first; together they take no more than half of the budget, unless it is one alone, and those that parts can be
//! branched off, which are come by again in little time, a quarter of that. One that is begun beside as many as that takes the
//! memory of the oldest of them, and not that of what is decoded.

mod idle;

use std::fmt;
use std::ops::Range;
use std::sync::PoisonError;

use self::idle::Idle;
use crate::codec::Stream;
use crate::memory::Room;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Names a chunk among those of all open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ChunkKey {
    /// The number of the file's contents.
    pub(super) contents: u64,
    /// The chunk's number in the file.
    pub(super) chunk: u32,
}

/// A decoder within its chunk, and the memory it counts as.
#[derive(Debug)]
struct Decoder {
    stream: Stream,
    room: Room,
}

impl Decoder {
    /// Whether it is known where parts of the chunk begin that can be branched off.
    fn can_branch(&self) -> bool {
        self.stream.branch(&(0..0)).is_some()
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Streams {
    /// How many bytes the decoders put aside may take together.
    limit: u64,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Put aside.
    idle: Idle,
    at_work: Vec<AtWork>,
    next_number: u64,
    /// How many threads wait for one to move: waking nobody costs a system call too.
    waiting: usize,
}

#[derive(Debug)]
struct AtWork {
    number: u64,
    chunk: ChunkKey,
    /// Where it stands in its chunk, in bytes.
    position: u64,
    errands: Vec<Errand>,
}

/// What is to be done when a decoder is free again.
struct Errand(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Errand")
    }
}

/// What [`Streams::take`] finds.
#[derive(Debug)]
pub(super) enum Taken<'a> {
    /// A decoder, or the task to begin one.
    Lease(Lease<'a>),
    /// One is at work that is going to come by.
    AtWork,
    /// There is none.
    Nothing,
}

/// A chunk's decoder, taken to work with it.
#[derive(Debug)]
pub(super) struct Lease<'a> {
    streams: &'a Streams,
    number: u64,
    chunk: ChunkKey,
    decoder: Option<Box<Decoder>>,
}

impl Streams {
    /// No decoders yet; those put aside may take `limit` bytes together.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            moved: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a decoder is at work in the chunk that has not come past `offset`.
    pub(super) fn wait_for(&self, chunk: ChunkKey, offset: u64) {
        let mut state = self.lock();
        while state.coming_by(chunk, offset).is_some() {
            state.waiting += 1;
            state = self
                .moved
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    /// The decoder that stands closest before `offset`. If there is none, the lease is empty if `begin` says so, and whoever
    /// takes it begins one.
    pub(super) fn take(&self, chunk: ChunkKey, offset: u64, begin: bool) -> Taken<'_> {
        self.take_or(chunk, offset, begin, |_| ())
    }

    /// As [`Streams::take`], for a guess: if a decoder is at work that is going to come by, `errand` is run when it is free
    /// again, so that there is no moment in which the guess is lost. It is run without a lock held, and must not wait.
    pub(super) fn take_ahead(
        &self,
        chunk: ChunkKey,
        offset: u64,
        begin: bool,
        errand: impl FnOnce() + Send + 'static,
    ) -> Taken<'_> {
        self.take_or(chunk, offset, begin, |at_work| {
            at_work.errands.push(Errand(Box::new(errand)));
        })
    }

    fn take_or(
        &self,
        chunk: ChunkKey,
        offset: u64,
        begin: bool,
        found_at_work: impl FnOnce(&mut AtWork),
    ) -> Taken<'_> {
        let mut state = self.lock();
        if let Some(at_work) = state.coming_by(chunk, offset) {
            found_at_work(at_work);
            return Taken::AtWork;
        }
        let closest = state.idle.closest(chunk, offset);
        if closest.is_none() && !begin {
            return Taken::Nothing;
        }
        let decoder = closest.and_then(|(number, _)| state.idle.take(number));
        let number = state.next_number;
        state.next_number += 1;
        let position = decoder
            .as_ref()
            .map_or(0, |decoder| decoder.stream.position());
        state.at_work.push(AtWork {
            number,
            chunk,
            position,
            errands: Vec::new(),
        });
        Taken::Lease(Lease {
            streams: self,
            number,
            chunk,
            decoder,
        })
    }

    /// A decoder of its own for `bytes` of a chunk, from the chunk's beginning, off one that was put aside, which stays where it
    /// is for others; `None` if there is none to branch off, or another is at work on just these bytes. Who is
    /// `leaving` the chunk will not come back: what was put aside for it is given up before all else.
    pub(super) fn branch(
        &self,
        chunk: ChunkKey,
        bytes: &Range<u64>,
        leaving: bool,
    ) -> Option<Stream> {
        let mut state = self.lock();
        let mut at_work = state.at_work.iter();
        if at_work.any(|at_work| at_work.chunk == chunk && bytes.contains(&at_work.position)) {
            return None;
        }
        state.idle.branch(chunk, bytes, leaving)
    }

    /// Whether `bytes` of a chunk, from the chunk's beginning, can be branched off a decoder that was put aside; `None` if there
    /// is none off which any could be.
    pub(super) fn can_branch(&self, chunk: ChunkKey, bytes: &Range<u64>) -> Option<bool> {
        self.lock().idle.can_branch(chunk, bytes)
    }

    /// Puts a decoder aside that was begun without a lease and can be branched off; it counts as `room`. Where another has done
    /// so meanwhile it is not needed.
    pub(super) fn keep(&self, chunk: ChunkKey, stream: Stream, room: Room) {
        let decoder = Box::new(Decoder { stream, room });
        let mut state = self.lock();
        if state.idle.can_branch(chunk, &(0..0)).is_some() {
            // Freed without the lock.
            drop(state);
            return;
        }
        let given_up = state.idle.keep(chunk, decoder, self.limit);
        drop(state);
        drop(given_up);
    }

    /// The bytes that the decoders put aside count as.
    pub(super) fn idle(&self) -> u64 {
        self.lock().idle.bytes()
    }

    /// Gives up as many of those that were put aside as one that takes so many bytes is going to leave no room for: it takes their
    /// memory then, and not that of what is decoded.
    pub(super) fn make_way(&self, bytes: u64) {
        let mut state = self.lock();
        let given_up = state.idle.make_way(self.limit.saturating_sub(bytes));
        drop(state);
        drop(given_up);
    }

    /// Gives up a decoder that takes memory, one that is come by again in little time if there is any, else the one used least
    /// recently; says whether there was one.
    pub(super) fn evict_one(&self) -> bool {
        let given_up = self.lock().idle.give_one_up();
        given_up.is_some()
    }
}

impl State {
    /// The decoder at work in the chunk that will come by `offset`, or may go on to it, unless one that was put aside stands
    /// closer before it.
    fn coming_by(&mut self, chunk: ChunkKey, offset: u64) -> Option<&mut AtWork> {
        let closest_idle = self.idle.closest(chunk, offset);
        let closest_idle = closest_idle.map(|(_, position)| position);
        self.at_work
            .iter_mut()
            .filter(|at_work| at_work.chunk == chunk && at_work.position <= offset)
            .max_by_key(|at_work| at_work.position)
            .filter(|at_work| Some(at_work.position) >= closest_idle)
    }
}

impl Lease<'_> {
    /// The decoder; `None` if one has to be begun.
    pub(super) fn stream(&mut self) -> Option<&mut Stream> {
        self.decoder.as_mut().map(|decoder| &mut decoder.stream)
    }

    /// Begins a decoder, which counts as `room`.
    pub(super) fn begin(&mut self, stream: Stream, room: Room) {
        self.decoder = Some(Box::new(Decoder { stream, room }));
    }

    /// Lets those who wait know how far the decoder has come.
    pub(super) fn came_to(&mut self, position: u64) {
        let mut state = self.streams.lock();
        let mut at_work = state.at_work.iter_mut();
        if let Some(at_work) = at_work.find(|at_work| at_work.number == self.number) {
            at_work.position = position;
        }
        let anybody = state.waiting > 0;
        drop(state);
        if anybody {
            self.streams.moved.notify_all();
        }
    }

    /// Puts the decoder aside for whoever comes next. Without this call it is given up: it has failed, or is through.
    pub(super) fn put_aside(mut self) {
        let decoder = self.decoder.take();
        self.end(decoder);
    }

    /// Is no longer at work, and puts a decoder aside, in the same moment: whoever looks finds it here or there.
    fn end(&mut self, aside: Option<Box<Decoder>>) {
        let mut state = self.streams.lock();
        let mut at_work = state.at_work.iter();
        let Some(at) = at_work.position(|at_work| at_work.number == self.number) else {
            return;
        };
        let errands = state.at_work.remove(at).errands;
        let given_up =
            aside.map(|decoder| state.idle.keep(self.chunk, decoder, self.streams.limit));
        let anybody = state.waiting > 0;
        drop(state);
        if anybody {
            self.streams.moved.notify_all();
        }
        // Freed without the lock.
        drop(given_up);
        for Errand(run) in errands {
            run();
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.end(None);
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use super::idle::MOST_WEIGHTLESS;
    use super::*;
    use crate::memory::{Budget, Urgency};
    use std::sync::Arc;

    fn key(chunk: u32) -> ChunkKey {
        ChunkKey { contents: 1, chunk }
    }

    /// Puts a decoder of a chunk aside that takes so many bytes.
    fn put_aside(streams: &Streams, budget: &Arc<Budget>, chunk: u32, bytes: u64) {
        let granted = budget.acquire_beside([], bytes, Urgency::Demand, || false);
        let ([], room) = granted.unwrap().unwrap();
        streams.keep(key(chunk), Stream::of_zeros(9), room);
    }

    #[test]
    fn what_takes_no_memory_crowds_out_no_decoder_and_is_not_given_up_for_any() {
        let budget = Budget::unlimited();
        let streams = Streams::new(100);
        let has = |chunk: &u32| streams.can_branch(key(*chunk), &(0..0)).is_some();
        let last = MOST_WEIGHTLESS as u32 + 136;
        let of_nothing = || (1..=last).filter(has).collect::<Vec<_>>();
        put_aside(&streams, &budget, 0, 10);
        for chunk in 1..=last {
            put_aside(&streams, &budget, chunk, 0);
        }
        let latest: Vec<_> = (last + 1 - MOST_WEIGHTLESS as u32..=last).collect();
        assert_eq!(of_nothing(), latest);
        assert!(has(&0));
        assert_eq!(streams.idle(), 10);

        put_aside(&streams, &budget, last + 1, 95);
        assert!(!has(&0) && has(&(last + 1)), "both together take too much");
        assert!(streams.evict_one());
        assert!(!streams.evict_one(), "what is left takes none");
        assert_eq!((streams.idle(), of_nothing()), (0, latest));
    }

    #[test]
    fn no_more_decoders_are_put_aside_than_have_room_and_the_oldest_are_given_up() {
        let budget = Budget::unlimited();
        let streams = Streams::new(4000);
        for chunk in 0..400 {
            put_aside(&streams, &budget, chunk, 10);
        }
        assert_eq!(streams.idle(), 1000);
        let has = |chunk| streams.can_branch(key(chunk), &(0..0)).is_some();
        assert!(has(300) && has(399) && !has(299));

        // Used again, and left for good.
        assert!(streams.branch(key(300), &(0..0), false).is_some());
        assert!(streams.branch(key(399), &(0..0), true).is_some());
        assert!(streams.evict_one() && streams.evict_one());
        assert!(has(300) && !has(399) && !has(301) && has(302));

        put_aside(&streams, &budget, 400, 5000);
        assert!(has(400) && !has(300), "the last one stays however large");
    }
}
