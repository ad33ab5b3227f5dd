//! The decoders that were put aside, found by their chunk, and which of them is given up first.
//!
//! There are three kinds, and each is bounded by itself. Those that take no memory are bounded in number: they are found again by
//! reading a few bytes. Those that parts can be branched off are found again by reading a few bytes of each block, so they have
//! a quarter of what all may take. Of the others, where they stood is lost with them.

use std::ops::Range;

use hashbrown::HashMap;
use lru::LruCache;

use super::{ChunkKey, Decoder};
use crate::codec::Stream;

/// How many are kept at most that take no memory; each is a few hundred bytes.
pub(super) const MOST_WEIGHTLESS: usize = 1024;

/// Which part of what all may take those have off which parts can be branched.
const BRANCHING_PART: u64 = 4;

/// A decoder that was put aside, and its chunk.
type Aside = (ChunkKey, Box<Decoder>);

/// Those of one kind by their numbers, the least recently used first.
#[derive(Debug)]
struct Kind {
    decoders: LruCache<u64, Aside>,
    /// What they take together, in bytes.
    bytes: u64,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Idle {
    weightless: Kind,
    branching: Kind,
    standing: Kind,
    /// The numbers of each chunk's decoders.
    by_chunk: HashMap<ChunkKey, Vec<u64>>,
    next_number: u64,
}

impl Default for Kind {
    fn default() -> Self {
        Self {
            decoders: LruCache::unbounded(),
            bytes: 0,
        }
    }
}

impl Kind {
    fn put(&mut self, number: u64, aside: Aside) {
        self.bytes += aside.1.room.bytes();
        self.decoders.put(number, aside);
    }

    fn pop(&mut self, number: u64) -> Option<Aside> {
        let aside = self.decoders.pop(&number)?;
        self.bytes -= aside.1.room.bytes();
        Some(aside)
    }

    fn pop_oldest(&mut self) -> Option<(u64, Aside)> {
        let (number, aside) = self.decoders.pop_lru()?;
        self.bytes -= aside.1.room.bytes();
        Some((number, aside))
    }
}

impl Idle {
    /// Keeps a decoder, and returns those that have to be given up for it: all take no more than `limit` bytes together, but the last
    /// one of its kind stays however large, for without it every read would begin anew.
    #[must_use]
    pub(super) fn keep(
        &mut self,
        chunk: ChunkKey,
        decoder: Box<Decoder>,
        limit: u64,
    ) -> Vec<Aside> {
        let number = self.next_number;
        self.next_number += 1;
        let bytes = decoder.room.bytes();
        let mut given_up = Vec::new();
        let kind = if bytes == 0 {
            while self.weightless.decoders.len() >= MOST_WEIGHTLESS
                && let Some((number, oldest)) = self.weightless.pop_oldest()
            {
                given_up.push(self.leaves(number, oldest));
            }
            &mut self.weightless
        } else if decoder.can_branch() {
            let most = (limit / BRANCHING_PART).saturating_sub(bytes);
            while self.branching.bytes > most
                && let Some((number, oldest)) = self.branching.pop_oldest()
            {
                given_up.push(self.leaves(number, oldest));
            }
            &mut self.branching
        } else {
            given_up = self.make_way(limit.saturating_sub(bytes));
            &mut self.standing
        };
        kind.put(number, (chunk, decoder));
        self.by_chunk.entry(chunk).or_default().push(number);
        given_up
    }

    /// Takes out those used least recently that nothing can be branched off, until all take no more than `bytes`.
    #[must_use]
    pub(super) fn make_way(&mut self, bytes: u64) -> Vec<Aside> {
        let mut given_up = Vec::new();
        while self.bytes() > bytes
            && let Some((number, oldest)) = self.standing.pop_oldest()
        {
            given_up.push(self.leaves(number, oldest));
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
        let [branching, standing, weightless] = self.kinds_mut();
        let found = branching.pop(number).or_else(|| standing.pop(number));
        let found = found.or_else(|| weightless.pop(number))?;
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
        for kind in self.kinds_mut() {
            match leaving {
                true => kind.decoders.demote(&number),
                false => kind.decoders.promote(&number),
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

    /// Takes out one that takes memory, of those used least recently: if there is one, one that is come by again in little time.
    pub(super) fn give_one_up(&mut self) -> Option<Aside> {
        let oldest = self.branching.pop_oldest();
        let (number, oldest) = oldest.or_else(|| self.standing.pop_oldest())?;
        Some(self.leaves(number, oldest))
    }

    /// What all take together, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.branching.bytes + self.standing.bytes
    }

    fn kinds_mut(&mut self) -> [&mut Kind; 3] {
        [
            &mut self.branching,
            &mut self.standing,
            &mut self.weightless,
        ]
    }

    fn of(&self, chunk: ChunkKey) -> impl Iterator<Item = (u64, &Decoder)> {
        let numbers = self.by_chunk.get(&chunk).into_iter().flatten();
        numbers.filter_map(|&number| {
            let kinds = [&self.branching, &self.standing, &self.weightless];
            let mut found = kinds
                .into_iter()
                .filter_map(|kind| kind.decoders.peek(&number));
            let (_, decoder) = found.next()?;
            Some((number, &**decoder))
        })
    }

    fn leaves(&mut self, number: u64, aside: Aside) -> Aside {
        if let Some(numbers) = self.by_chunk.get_mut(&aside.0) {
            numbers.retain(|&other| other != number);
            if numbers.is_empty() {
                self.by_chunk.remove(&aside.0);
            }
        }
        aside
    }
}
