//! Readers who go backwards, from the end of a file or of a record to its beginning.
//!
//! Each block they read lies before the last one, or leaves out no more than that was long; and no less than half of the whole way
//! must have been asked for. Within a block they go forwards: the kernel cuts a long read into requests, the first of its
//! bytes first. One reader of a handle is followed; any other read is taken for the beginning of another way.
//!
//! The kernel reads ahead of nobody who goes this way, so that without it one thread decodes and the others wait. On two processors,
//! chunks of 128 KiB, cold, in a mount made by root, medians of five in turn: 64 KiB backwards 2.10 s before and 1.18 with it
//! (lz4 1.97 and 0.83), 1 MiB 1.18 and 1.03 (0.74 and 0.70), a memory map 1.71 and 1.10 (1.24 and 0.76).

use std::ops::Range;
use std::sync::PoisonError;

use super::{FIRST_WINDOW, NAMED_AT_ONCE, PROOF, TOLERANCE};
use crate::sync::{Mutex, MutexGuard};

/// How many blocks have to lie before each other: who goes back once may be anybody.
const PROOF_IN_BLOCKS: u32 = 2;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Backwards {
    /// The largest window, in bytes; 0 for none.
    limit: u64,
    way: Mutex<Way>,
}

/// What was read by a reader who may be going backwards.
#[derive(Debug, Default)]
struct Way {
    /// The first byte asked for so far: where the last block begins.
    start: u64,
    /// Behind what was asked for of the last block.
    block_end: u64,
    /// How long the block before that was, in bytes.
    block: u64,
    /// How many times a block was before the last one.
    went_back: u32,
    /// Behind the last byte of the first block.
    end: u64,
    /// How many bytes were asked for.
    asked: u64,
    /// All from here on has been named.
    named: u64,
    /// How far before `start` bytes are named; 0 until there is proof that the reader goes backwards.
    window: u64,
}

impl Way {
    fn beginning_with(read: &Range<u64>) -> Self {
        Self {
            start: read.start,
            block_end: read.end,
            end: read.end,
            asked: read.end - read.start,
            named: read.start,
            ..Self::default()
        }
    }

    /// Takes notice of a read; says whether it begins another block, farther back. No block is longer than `longest`.
    fn goes_back_with(&mut self, read: &Range<u64>, longest: u64) -> bool {
        let length = read.end - read.start;
        let block = length.max(self.block_end - self.start);
        if read.start < self.start && read.end.saturating_add(block) >= self.start {
            self.block = self.block_end - self.start;
            self.start = read.start;
            self.block_end = read.end;
            self.end = self.end.max(read.end);
            self.went_back = self.went_back.saturating_add(1);
            self.asked = self.asked.saturating_add(length);
            return true;
        }
        // Requests overtake each other.
        let slack = length.saturating_mul(TOLERANCE);
        let goes_on = read.start >= self.start
            && read.start <= self.block_end.saturating_add(slack)
            && read.end - self.start <= longest.max(length);
        if goes_on {
            self.block_end = self.block_end.max(read.end);
            self.end = self.end.max(read.end);
            self.asked = self.asked.saturating_add(length);
        } else {
            *self = Self::beginning_with(read);
        }
        false
    }

    fn is_certain(&self) -> bool {
        let way = self.end - self.start;
        self.went_back >= PROOF_IN_BLOCKS && way > PROOF && self.asked >= way / 2
    }
}

impl Backwards {
    /// Prefetch with windows of at most `limit` bytes; 0 for none.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            way: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice of a read of original bytes, and names those before it to decode ahead now, each only once. They are whole
    /// units: `unit_start` says where the unit begins that holds an offset; `None` where nothing is to be named.
    pub(crate) fn observe(
        &self,
        read: &Range<u64>,
        unit_start: impl Fn(u64) -> Option<u64>,
    ) -> Range<u64> {
        if self.limit == 0 || read.is_empty() {
            return 0..0;
        }
        let mut way = self.lock();
        if !way.goes_back_with(read, self.limit) || (way.window == 0 && !way.is_certain()) {
            return 0..0;
        }
        if way.window == 0 {
            way.window = FIRST_WINDOW.min(self.limit);
        }
        // The units that were asked for begin here.
        let before = unit_start(way.start).unwrap_or(way.start);
        let window = way.window.max(way.block).min(self.limit);
        let wanted = way.start.saturating_sub(window);
        let end = way.named.min(before);
        let mut start = end;
        for _ in 0..NAMED_AT_ONCE {
            match start.checked_sub(1).and_then(&unit_start) {
                // The unit next to those is named however short the window is.
                Some(further) if start > wanted || start == before => start = further,
                _ => break,
            }
        }
        way.named = start;
        start..end
    }

    /// Widens the window of the reader who made this read: he had to wait for a unit.
    pub(crate) fn outran(&self, read: &Range<u64>) {
        let mut way = self.lock();
        if (way.start..way.block_end).contains(&read.start) {
            way.window = way.window.saturating_mul(2).min(self.limit);
        }
    }

    /// Whether the reader has yet to come to these original bytes: they may have been named long ago.
    pub(crate) fn still_wants(&self, bytes: &Range<u64>) -> bool {
        let way = self.lock();
        let window = way.window.max(way.block).saturating_mul(2);
        let farthest = way.start.saturating_sub(window);
        way.window > 0 && bytes.start < way.start && bytes.end > farthest.min(way.named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 128 << 10;
    const FILE: u64 = 64 << 20;

    fn unit_start(offset: u64) -> Option<u64> {
        Some(offset / UNIT * UNIT)
    }

    /// Reads blocks backwards in requests of so many bytes, from the front of each; what was named is to be new and unread.
    fn read_in_blocks(backwards: &Backwards, block: u64, request: u64) -> u64 {
        let mut named_from = None;
        let (mut named, mut end) = (0, FILE + 12_345);
        while end > 0 {
            let start = end.saturating_sub(block);
            for at in (start..end).step_by(request as usize) {
                let read = at..end.min(at + request);
                let before = backwards.observe(&read, unit_start);
                if !before.is_empty() {
                    assert!(before.end <= start, "{before:?} for {read:?}");
                    assert!(before.start.is_multiple_of(UNIT));
                    assert!(named_from.is_none_or(|from| from >= before.end));
                    assert!(backwards.still_wants(&before));
                    named_from = Some(before.start);
                    named += before.end - before.start;
                }
                backwards.outran(&read);
            }
            end = start;
        }
        assert_eq!(named_from, Some(0), "in blocks of {block}");
        named
    }

    #[test]
    fn who_reads_backwards_has_every_unit_named_once_before_he_comes_there() {
        for (block, request) in [
            (4 << 10, 4 << 10),
            (64 << 10, 64 << 10),
            (100_000, 100_000),
            (512 << 10, 512 << 10),
            (1 << 20, 128 << 10),
            (1 << 20, 256 << 10),
            (2 << 20, 256 << 10),
            (4 << 20, 128 << 10),
        ] {
            let backwards = Backwards::new(8 << 20);
            let named = read_in_blocks(&backwards, block, request);
            let unproved = (2 << 20) + 3 * block;
            assert!(named >= FILE - unproved, "{named} in blocks of {block}");
        }
    }

    #[test]
    fn requests_of_a_block_that_overtake_each_other_are_no_end_of_the_way() {
        let backwards = Backwards::new(8 << 20);
        let mut named = 0;
        for block in (0..FILE >> 20).rev().map(|number| number << 20) {
            for request in [1, 0, 3, 2] {
                let at = block + request * (256 << 10);
                let before = backwards.observe(&(at..at + (256 << 10)), unit_start);
                assert!(before.is_empty() || before.end <= at);
                named += before.end - before.start;
            }
        }
        assert!(named >= FILE - (5 << 20), "{named}");
    }

    #[test]
    fn windows_stay_within_the_limit_and_a_limit_of_nothing_names_nothing() {
        for limit in [0, 64 << 10, 1 << 20, 4 << 20] {
            let backwards = Backwards::new(limit);
            for at in (0..FILE >> 16).rev().map(|number| number << 16) {
                let read = at..at + (64 << 10);
                let before = backwards.observe(&read, unit_start);
                assert!(before.is_empty() || limit > 0);
                assert!(before.is_empty() || before.start + limit + 2 * UNIT >= at);
                backwards.outran(&read);
            }
        }
    }

    #[test]
    fn who_reads_forwards_has_nothing_named_before_him() {
        for limit in [64 << 10, 256 << 10, 8 << 20] {
            for length in [4 << 10, 256 << 10, 2 << 20] {
                let backwards = Backwards::new(limit);
                for at in (0..FILE).step_by(length) {
                    let read = at..at + length as u64;
                    assert!(backwards.observe(&read, unit_start).is_empty());
                    backwards.outran(&read);
                }
            }
            // Requests that overtake each other.
            let backwards = Backwards::new(limit);
            for pair in (0..FILE).step_by(512 << 10) {
                for at in [pair + (256 << 10), pair] {
                    let read = at..at + (256 << 10);
                    assert!(backwards.observe(&read, unit_start).is_empty());
                    backwards.outran(&read);
                }
            }
        }
    }

    #[test]
    fn threads_that_share_a_handle_and_go_forwards_have_nothing_named() {
        let backwards = Backwards::new(8 << 20);
        for pair in (0..FILE).step_by(2 << 20) {
            for request in (0..1 << 20).step_by(256 << 10) {
                for block in [pair + (1 << 20), pair] {
                    let at = block + request;
                    let before = backwards.observe(&(at..at + (256 << 10)), unit_start);
                    assert!(before.is_empty(), "{before:?} at {at}");
                }
            }
        }
    }

    #[test]
    fn who_reads_in_random_places_has_nothing_named() {
        let mut place = 12345_u64;
        for length in [4 << 10, 64 << 10, 256 << 10] {
            let backwards = Backwards::new(8 << 20);
            for _ in 0..10_000 {
                place = place
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let at = ((place >> 8) % (FILE - length)) & !4095;
                let before = backwards.observe(&(at..at + length), unit_start);
                assert!(before.is_empty());
            }
        }
    }

    #[test]
    fn who_leaves_out_most_is_not_taken_for_one_who_goes_backwards() {
        let backwards = Backwards::new(8 << 20);
        for at in (0..50).rev().map(|number| number * (1280 << 10)) {
            let before = backwards.observe(&(at..at + (256 << 10)), unit_start);
            assert!(before.is_empty());
        }
    }
}
