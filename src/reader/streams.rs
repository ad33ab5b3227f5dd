//! Chunks that are decoded piece by piece: who is at it now, and the decoders that were put aside between two pieces.
//!
//! A decoder goes through its chunk from front to back, so whoever wants a piece takes the one that stands closest before
//! it and goes on from there. A decoder belongs to one thread at a time; others who want something it is going to come by wait
//! for it rather than begin anew, and who only wants it to go on further says how far. The mark of a decoder at work is a guard:
//! it clears when it is dropped, on every path, panics included.
//!
//! Decoders that were put aside count against the budget and are given up when memory is short, the one that was used
//! least recently first; together they take no more than half of the budget, unless it is one alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::codec::Stream;
use crate::memory::Room;

/// How many decoders are put aside at most: they are looked through one by one.
const MOST_IDLE: usize = 64;

/// Names a chunk among those of all open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Put aside, the least recently used first.
    idle: Vec<(ChunkKey, Box<Decoder>)>,
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
    /// How far somebody wants it to go, in bytes from the chunk's beginning.
    until: u64,
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

    /// The decoder that stands closest before `offset`, to be brought as far as `until`. If there is none, the lease is
    /// empty if `begin` says so, and whoever takes it begins one.
    pub(super) fn take(&self, chunk: ChunkKey, offset: u64, until: u64, begin: bool) -> Taken<'_> {
        let mut state = self.lock();
        if state.coming_by(chunk, offset).is_some() {
            return Taken::AtWork;
        }
        let closest = state.closest_idle(chunk, offset).map(|(at, _)| at);
        if closest.is_none() && !begin {
            return Taken::Nothing;
        }
        let decoder = closest.map(|at| state.idle.remove(at).1);
        let number = state.next_number;
        state.next_number += 1;
        let position = decoder
            .as_ref()
            .map_or(0, |decoder| decoder.stream.position());
        state.at_work.push(AtWork {
            number,
            chunk,
            position,
            until,
        });
        Taken::Lease(Lease {
            streams: self,
            number,
            chunk,
            decoder,
        })
    }

    /// Has the decoder that is at work in the chunk and has not come past `until` go on as far as that; says whether there is
    /// one.
    pub(super) fn extend(&self, chunk: ChunkKey, until: u64) -> bool {
        let mut state = self.lock();
        let Some(at_work) = state.coming_by(chunk, until) else {
            return false;
        };
        at_work.until = at_work.until.max(until);
        true
    }

    /// Gives up the decoder that was put aside longest ago; says whether there was one.
    pub(super) fn evict_one(&self) -> bool {
        let mut state = self.lock();
        let given_up = (!state.idle.is_empty()).then(|| state.idle.remove(0));
        drop(state);
        given_up.is_some()
    }
}

impl State {
    /// The decoder at work in the chunk that will come by `offset`, or may go on to it, unless one that was put aside stands
    /// closer before it.
    fn coming_by(&mut self, chunk: ChunkKey, offset: u64) -> Option<&mut AtWork> {
        let closest_idle = self
            .closest_idle(chunk, offset)
            .map(|(_, position)| position);
        self.at_work
            .iter_mut()
            .filter(|at_work| at_work.chunk == chunk && at_work.position <= offset)
            .max_by_key(|at_work| at_work.position)
            .filter(|at_work| Some(at_work.position) >= closest_idle)
    }

    /// Which decoder that was put aside stands closest before `offset`, and where.
    fn closest_idle(&self, chunk: ChunkKey, offset: u64) -> Option<(usize, u64)> {
        self.idle
            .iter()
            .enumerate()
            .filter(|(_, (of, _))| *of == chunk)
            .map(|(at, (_, decoder))| (at, decoder.stream.position()))
            .filter(|&(_, position)| position <= offset)
            .max_by_key(|&(_, position)| position)
    }

    fn at_work(&mut self, number: u64) -> Option<&mut AtWork> {
        self.at_work
            .iter_mut()
            .find(|at_work| at_work.number == number)
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
        if let Some(at_work) = state.at_work(self.number) {
            at_work.position = position;
        }
        let anybody = state.waiting > 0;
        drop(state);
        if anybody {
            self.streams.moved.notify_all();
        }
    }

    /// How far somebody wants the decoder to go, in bytes from the chunk's beginning.
    pub(super) fn until(&self) -> u64 {
        let mut state = self.streams.lock();
        state
            .at_work(self.number)
            .map_or(0, |at_work| at_work.until)
    }

    /// Puts the decoder aside for whoever comes next, and says how far it was wanted to go. Without this call it is given up: it
    /// has failed, or is through.
    pub(super) fn put_aside(mut self) -> u64 {
        let until = self.until();
        let Some(decoder) = self.decoder.take() else {
            return until;
        };
        let mut given_up = Vec::new();
        let mut state = self.streams.lock();
        state.idle.push((self.chunk, decoder));
        let mut taken: u64 = state
            .idle
            .iter()
            .map(|(_, decoder)| decoder.room.bytes())
            .sum();
        // The last one stays however large: without it, every read would begin anew.
        while (taken > self.streams.limit || state.idle.len() > MOST_IDLE) && state.idle.len() > 1 {
            let oldest = state.idle.remove(0);
            taken -= oldest.1.room.bytes();
            given_up.push(oldest);
        }
        drop(state);
        // Freed without the lock.
        drop(given_up);
        until
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.streams.lock();
        state
            .at_work
            .retain(|at_work| at_work.number != self.number);
        let anybody = state.waiting > 0;
        drop(state);
        if anybody {
            self.streams.moved.notify_all();
        }
    }
}
