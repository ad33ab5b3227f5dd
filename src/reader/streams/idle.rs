//! The decoders that were put aside, found by their chunk, and which of them is given up first.
//!
//! Those that take memory count by it, and those that take none by their number, each kind by itself: what takes none is found again
//! by reading a few bytes, and where a decoder stood is lost with it.

use std::ops::Range;

use hashbrown::HashMap;
use lru::LruCache;

use super::{ChunkKey, Decoder};
use crate::codec::Stream;

/// How many are kept at most that take no memory; each is a few hundred bytes.
pub(super) const MOST_WEIGHTLESS: usize = 1024;

/// A decoder that was put aside, and its chunk.
type Aside = (ChunkKey, Box<Decoder>);
/// Those of one kind by their numbers, the least recently used first.
type Kept = LruCache<u64, Aside>;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Idle {
    weightless: Kept,
    weighing: Kept,
    /// What those take together, in bytes.
    bytes: u64,
    /// The numbers of each chunk's decoders.
    by_chunk: HashMap<ChunkKey, Vec<u64>>,
    next_number: u64,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            weightless: LruCache::unbounded(),
            weighing: LruCache::unbounded(),
            bytes: 0,
            by_chunk: HashMap::new(),
            next_number: 0,
        }
    }
}

impl Idle {
    /// Keeps a decoder, and returns those that have to be given up for it, so that all take no more than `limit` bytes together, and
    /// those that take none are not too many.
    #[must_use]
    pub(super) fn keep(
        &mut self,
        chunk: ChunkKey,
        decoder: Box<Decoder>,
        limit: u64,
    ) -> Vec<Aside> {
        let number = self.next_number;
        self.next_number += 1;
        self.by_chunk.entry(chunk).or_default().push(number);
        let bytes = decoder.room.bytes();
        let mut given_up = Vec::new();
        if bytes == 0 {
            self.weightless.put(number, (chunk, decoder));
            if self.weightless.len() > MOST_WEIGHTLESS {
                let oldest = self.weightless.pop_lru();
                given_up.extend(oldest.map(|(number, oldest)| self.leaves(number, oldest)));
            }
            return given_up;
        }
        // Before it is there, for it stays however large: without it, every read would begin anew.
        given_up = self.shrink_to(limit.saturating_sub(bytes));
        self.bytes += bytes;
        self.weighing.put(number, (chunk, decoder));
        given_up
    }

    /// Takes out those used least recently until all take no more than `bytes`.
    #[must_use]
    pub(super) fn shrink_to(&mut self, bytes: u64) -> Vec<Aside> {
        let mut given_up = Vec::new();
        while self.bytes > bytes {
            given_up.extend(self.give_one_up());
        }
        given_up
    }

    /// Which decoder stands closest before `offset` in a chunk, and where.
    pub(super) fn closest(&self, chunk: ChunkKey, offset: u64) -> Option<(u64, u64)> {
        self.of(chunk)
            .map(|(number, decoder)| (number, decoder.stream.position()))
            .filter(|&(_, position)| position <= offset)
            .max_by_key(|&(_, position)| position)
    }

    /// Takes a decoder out.
    pub(super) fn take(&mut self, number: u64) -> Option<Box<Decoder>> {
        let found = self.weighing.pop(&number);
        let found = found.or_else(|| self.weightless.pop(&number))?;
        Some(self.leaves(number, found).1)
    }

    /// A branch off one of a chunk's decoders, which counts as used; or is the next to be given up, if who does so is `leaving`.
    pub(super) fn branch(
        &mut self,
        chunk: ChunkKey,
        bytes: &Range<u64>,
        leaving: bool,
    ) -> Option<Stream> {
        let mut all = self.of(chunk);
        let (number, branch) = all.find_map(|(number, decoder)| {
            let branch = decoder.stream.branch(bytes)?;
            Some((number, branch))
        })?;
        drop(all);
        for kept in [&mut self.weighing, &mut self.weightless] {
            match leaving {
                true => kept.demote(&number),
                false => kept.promote(&number),
            };
        }
        Some(branch)
    }

    /// Whether `bytes` of a chunk can be branched off; `None` if there is no decoder off which any could be.
    pub(super) fn can_branch(&self, chunk: ChunkKey, bytes: &Range<u64>) -> Option<bool> {
        let mut all = self.of(chunk);
        let (_, decoder) = all.find(|(_, decoder)| decoder.can_branch())?;
        Some(decoder.stream.branch(bytes).is_some())
    }

    /// Takes out the one used least recently of those that take memory.
    pub(super) fn give_one_up(&mut self) -> Option<Aside> {
        let (number, oldest) = self.weighing.pop_lru()?;
        Some(self.leaves(number, oldest))
    }

    /// What all take together, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn of(&self, chunk: ChunkKey) -> impl Iterator<Item = (u64, &Decoder)> {
        let numbers = self.by_chunk.get(&chunk).into_iter().flatten();
        numbers.filter_map(|&number| {
            let kept = self.weighing.peek(&number);
            let (_, decoder) = kept.or_else(|| self.weightless.peek(&number))?;
            Some((number, &**decoder))
        })
    }

    fn leaves(&mut self, number: u64, (chunk, decoder): Aside) -> Aside {
        self.bytes -= decoder.room.bytes();
        if let Some(numbers) = self.by_chunk.get_mut(&chunk) {
            numbers.retain(|&other| other != number);
            if numbers.is_empty() {
                self.by_chunk.remove(&chunk);
            }
        }
        (chunk, decoder)
    }
}
