//! Readers who leave out as much each time: a column of a table, the header of every record.
//!
//! Reads of whose beginnings each lies as far from the last, give or take a page (the kernel asks for whole pages), are taken for
//! strides, forwards or backwards; who reads in random places never does so thrice. One reader of a handle is followed, and those
//! whose strides are so short that [`Prefetch`](super::Prefetch) takes them for a stream are left to it.
//!
//! On two processors, chunks of 128 KiB, cold, medians of three in turn: 4 KiB of every 256 took 0.78 s before and 0.36 with it (lz4 0.38
//! and 0.21), 64 KiB of every 512 0.48 and 0.25 (0.30 and 0.15).

use std::ops::Range;
use std::sync::PoisonError;

use super::TOLERANCE;
use crate::sync::{Mutex, MutexGuard};

/// How many strides of one length are proof of more.
const PROOF: u64 = 3;
/// How far a read may be off the place where it is expected, in bytes: a page.
const PAGE: u64 = 4096;
/// How many strides ahead places are named at first; twice as many each time the reader had to wait.
const AT_FIRST: u64 = 2;
/// How many strides ahead at most.
const AT_MOST: u64 = 16;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Strides {
    /// How much may be decoded ahead, in bytes; 0 for nothing.
    limit: u64,
    run: Mutex<Run>,
}

/// Reads that lie equally far from each other.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    /// Where the first of them began.
    origin: u64,
    /// Where the last of them began.
    last: u64,
    /// How long that was.
    length: u64,
    /// How many strides there are between these two.
    strides: u64,
    /// How many strides from the first the places lie that have been named.
    named: u64,
    /// How many strides ahead places are named.
    ahead: u64,
}

impl Run {
    /// Where the read begins that is so many strides from the first, by the mean length of those there were.
    fn place(&self, strides: u64) -> Option<u64> {
        let way = i128::from(self.last) - i128::from(self.origin);
        let further = way.saturating_mul(strides.into()) / i128::from(self.strides.max(1));
        u64::try_from(further + i128::from(self.origin)).ok()
    }

    /// The bytes that reads will ask for that are so many strides from the first.
    fn reads(self, strides: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        strides
            .filter_map(move |strides| self.place(strides))
            .map(move |place| place..place.saturating_add(self.length))
    }

    /// Takes notice of a read; says whether it is one more of these. If not, it and the last one may be the first of others.
    fn goes_on_with(&mut self, read: &Range<u64>) -> bool {
        let expected = self.place(self.strides + 1);
        let goes_on =
            self.strides > 0 && expected.is_some_and(|at| at.abs_diff(read.start) <= PAGE);
        if !goes_on {
            *self = Self {
                origin: self.last,
                ahead: AT_FIRST,
                ..Self::default()
            };
        }
        self.strides += 1;
        self.last = read.start;
        self.length = read.end - read.start;
        goes_on
    }

    /// Whether there is proof enough, and these are not reads in a row.
    fn is_certain(&self) -> bool {
        let way = self.last.abs_diff(self.origin);
        self.strides >= PROOF && way / self.strides > self.length.saturating_mul(TOLERANCE)
    }
}

impl Strides {
    /// Decodes at most `limit` bytes ahead; 0 for none.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            run: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice of a read of original bytes in a unit of so many, and names those that will be asked for next, each once.
    /// They may lie behind the end of the file.
    pub(crate) fn observe(
        &self,
        read: &Range<u64>,
        unit_len: u64,
    ) -> impl Iterator<Item = Range<u64>> {
        let mut run = self.lock();
        let mut named = 0..0;
        if run.goes_on_with(read) && run.is_certain() {
            let ahead = run.ahead.min(self.limit / unit_len.max(1));
            named = run.named.max(run.strides) + 1..run.strides + ahead + 1;
            run.named = run.named.max(named.end - 1);
        }
        run.reads(named)
    }

    /// Has more named ahead of the reader who made this read: he had to wait for a unit.
    pub(crate) fn outran(&self, read: &Range<u64>) {
        let mut run = self.lock();
        if run.last == read.start {
            run.ahead = (run.ahead * 2).min(AT_MOST);
        }
    }

    /// Whether the reader has yet to come to these original bytes, which were named.
    pub(crate) fn still_wants(&self, bytes: &Range<u64>) -> bool {
        let run = *self.lock();
        run.reads(run.strides + 1..run.named + 1)
            .any(|read| read.start < bytes.end && bytes.start < read.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 128 << 10;

    fn named(strides: &Strides, read: &Range<u64>) -> Vec<u64> {
        let named = strides.observe(read, UNIT);
        named.map(|bytes| bytes.start).collect()
    }

    #[test]
    fn each_place_of_strides_is_named_once_whichever_way_they_go() {
        for (origin, direction) in [(0, 1), (1 << 30, -1)] {
            let place = |number: u64| (origin + direction * (number as i64 * 300_000)) as u64;
            // The kernel asks for the pages that hold what is read.
            let page = |number| place(number) / PAGE * PAGE;
            let strides = Strides::new(8 << 20);
            let mut places = Vec::new();
            for number in 0..100 {
                let read = page(number)..page(number) + 4096;
                for at in named(&strides, &read) {
                    assert!(strides.still_wants(&(at..at + 1)));
                    places.push(at);
                }
                strides.outran(&read);
            }
            assert_eq!(places.len() as u64, 100 + AT_MOST - PROOF - 1);
            for (number, at) in (PROOF + 1..).zip(places) {
                assert!(at.abs_diff(place(number)) <= 8 * PAGE, "{number}: {at}");
            }
        }
    }

    #[test]
    fn who_reads_in_a_row_or_in_random_places_has_no_strides() {
        let strides = Strides::new(8 << 20);
        for number in 0..1000_u64 {
            let (forwards, backwards) = (number << 16, (2000 - number) << 16);
            for start in [
                forwards,
                backwards,
                number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24,
            ] {
                assert!(named(&strides, &(start..start + (64 << 10))).is_empty());
            }
        }
        for number in 0..1000_u64 {
            let start = (5000 - number) << 16;
            assert!(named(&strides, &(start..start + (64 << 10))).is_empty());
        }
    }

    #[test]
    fn no_more_is_named_than_may_be_decoded_ahead() {
        let strides = Strides::new(3 * UNIT);
        let mut all = 0;
        for number in 0..50_u64 {
            let read = number << 20..(number << 20) + 4096;
            for at in named(&strides, &read) {
                assert!(at <= (number + 3) << 20);
                all += 1;
            }
            strides.outran(&read);
        }
        assert_eq!(all, 49);
        let none = Strides::new(UNIT - 1);
        assert!(
            (0..50_u64).all(|number| named(&none, &(number << 20..(number << 20) + 1)).is_empty())
        );
    }

    #[test]
    fn nothing_is_wanted_of_what_was_named_once_the_reader_goes_elsewhere() {
        let strides = Strides::new(8 << 20);
        let mut last = Vec::new();
        for number in 0..10_u64 {
            last = named(&strides, &(number << 20..(number << 20) + 4096));
        }
        let at = last.pop().unwrap();
        assert!(strides.still_wants(&(at..at + UNIT)));
        assert!(named(&strides, &(5 << 30..(5 << 30) + 4096)).is_empty());
        assert!(!strides.still_wants(&(at..at + UNIT)));
    }
}
