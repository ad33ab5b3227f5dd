//! Readers who leave out as much each time: a column of a table, the header of every record.
//!
//! Reads of whose beginnings each lies as far from the last, give or take a page (the kernel asks for whole pages), are taken for
//! strides, forwards or backwards. One reader of a handle is followed, who reads once a stride; any other read is taken for the
//! first of others. Who leaves out little is [`Prefetch`](super::Prefetch)'s to follow, or [`Backwards`](super::Backwards)'s.
//!
//! On two processors, chunks of 128 KiB, cold, in a mount made by root, medians of three in turn: 4 KiB of every 256 took 0.74 s
//! before and 0.37 with it (lz4 0.39 and 0.19).

use std::ops::Range;
use std::sync::PoisonError;

use super::{NAMED_AT_ONCE, TOLERANCE};
use crate::sync::{Mutex, MutexGuard};

/// How many strides of one length are proof of more.
const PROOF: u64 = 3;
/// How far a read may be off the place where it is expected, in bytes: a page.
const PAGE: u64 = 4096;
/// How many reads ahead units are named at first, if each has its own; twice as many each time the reader had to wait.
const AT_FIRST: u64 = 2;
/// How many reads ahead at most.
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
    /// How many strides from the first the places lie whose units have been named; 0 for none.
    named: u64,
    /// The first byte of the unit that was named last.
    last_unit: Option<u64>,
    /// How many reads ahead units are named, if each has its own.
    ahead: u64,
}

impl Run {
    /// Where the read begins that is so many strides from the first, by the mean length of those there were.
    fn place(&self, strides: u64) -> Option<u64> {
        let way = i128::from(self.last) - i128::from(self.origin);
        let further = way.saturating_mul(strides.into()) / i128::from(self.strides.max(1));
        u64::try_from(further.saturating_add(self.origin.into())).ok()
    }

    /// The bytes that the read will ask for that is so many strides from the first.
    fn read(&self, strides: u64) -> Option<Range<u64>> {
        let place = self.place(strides)?;
        Some(place..place.saturating_add(self.length))
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

    /// How long a stride is, in bytes, if there is proof enough and nobody else follows such a reader.
    fn certain_stride(&self) -> Option<u64> {
        let most_left_out = match self.last > self.origin {
            true => self.length.saturating_mul(TOLERANCE),
            false => self.length / 4,
        };
        let stride = self.last.abs_diff(self.origin) / self.strides.max(1);
        let left_out = stride.checked_sub(self.length)?;
        let is_certain = self.strides >= PROOF && stride > 2 * PAGE && left_out > most_left_out;
        is_certain.then_some(stride)
    }
}

impl Strides {
    /// Decodes about `limit` bytes ahead at most; 0 for none.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            run: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice of a read of original bytes, and names the units that will be needed next, each once. `unit_at` says what
    /// bytes the unit has that holds an offset; `None` where nothing is to be named.
    pub(crate) fn observe(
        &self,
        read: &Range<u64>,
        unit_at: impl Fn(u64) -> Option<Range<u64>>,
    ) -> Vec<Range<u64>> {
        let mut units = Vec::new();
        if self.limit == 0 || read.is_empty() {
            return units;
        }
        let mut run = self.lock();
        if !run.goes_on_with(read) {
            return units;
        }
        let (Some(stride), Some(own)) = (run.certain_stride(), unit_at(read.start)) else {
            return units;
        };
        let unit = own.end - own.start;
        // A read that does not begin with a unit needs one more than one that does.
        let for_a_read = (run.length / unit + 1).saturating_mul(unit);
        let window = run.ahead.saturating_mul(for_a_read).min(self.limit);
        let until = run.strides + window / stride.min(for_a_read);
        for strides in run.named.max(run.strides) + 1..=until {
            let Some(wanted) = run.read(strides) else {
                break;
            };
            if units.len() >= NAMED_AT_ONCE {
                break;
            }
            run.named = strides;
            let mut offset = wanted.start;
            while offset < wanted.end
                && units.len() < NAMED_AT_ONCE
                && let Some(unit) = unit_at(offset)
            {
                offset = unit.end;
                if run.last_unit != Some(unit.start) && unit != own {
                    run.last_unit = Some(unit.start);
                    units.push(unit);
                }
            }
        }
        units
    }

    /// Has more named ahead of the reader who made this read: he had to wait for a unit.
    pub(crate) fn outran(&self, read: &Range<u64>) {
        let mut run = self.lock();
        if run.named > 0 && run.last == read.start {
            run.ahead = (run.ahead * 2).min(AT_MOST);
        }
    }

    /// Whether the reader has yet to come to these original bytes, which were named.
    pub(crate) fn still_wants(&self, bytes: &Range<u64>) -> bool {
        let run = *self.lock();
        (run.strides + 1..=run.named)
            .filter_map(|strides| run.read(strides))
            .any(|read| read.start < bytes.end && bytes.start < read.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const UNIT: u64 = 128 << 10;
    const FILE: u64 = 1 << 40;

    fn unit_at(offset: u64) -> Option<Range<u64>> {
        let start = offset / UNIT * UNIT;
        (offset < FILE).then_some(start..start + UNIT)
    }

    /// The units that were named, in number.
    fn named(strides: &Strides, read: &Range<u64>) -> Vec<u64> {
        let named = strides.observe(read, unit_at);
        for unit in &named {
            assert!(strides.still_wants(unit));
        }
        named.into_iter().map(|unit| unit.start / UNIT).collect()
    }

    #[test]
    fn the_units_of_strides_are_named_once_each_whichever_way_they_go() {
        for (origin, direction) in [(0, 1), (1 << 30, -1)] {
            let place = |number: u64| (origin + direction * (number as i64 * 300_000)) as u64;
            let strides = Strides::new(8 << 20);
            let mut units = Vec::new();
            let mut first = None;
            for number in 0..100 {
                // The kernel asks for the pages that hold what is read.
                let page = place(number) / PAGE * PAGE;
                let read = page..page + 4096;
                let ahead = named(&strides, &read);
                if !ahead.is_empty() {
                    first = first.or(Some((number, ahead.len() as u64)));
                }
                units.extend(ahead);
                strides.outran(&read);
            }
            assert_eq!(first, Some((PROOF, AT_FIRST)));
            let once: HashSet<_> = units.iter().copied().collect();
            assert_eq!(once.len(), units.len());
            let needed = (PROOF + 1..100).map(|number| place(number) / UNIT);
            let missed = needed.filter(|unit| !units.contains(unit)).count();
            // Where a place is near a unit's end, its neighbour may have been named instead.
            assert!(missed <= 4, "{missed}");
            assert!(units.len() <= 100 + 2 * AT_MOST as usize);
        }
    }

    #[test]
    fn strides_shorter_than_a_unit_have_each_unit_named_once() {
        let strides = Strides::new(8 << 20);
        let mut units = Vec::new();
        for number in 0..1000_u64 {
            let read = number * (24 << 10)..number * (24 << 10) + 4096;
            units.extend(named(&strides, &read));
            strides.outran(&read);
        }
        let last = units.last().copied().unwrap();
        assert!(last >= 1000 * (24 << 10) / UNIT);
        assert_eq!(units, (1..=last).collect::<Vec<_>>());
    }

    #[test]
    fn who_reads_in_a_row_has_no_strides() {
        for length in [4 << 10, 64 << 10, 256 << 10] {
            let (forwards, backwards) = (Strides::new(8 << 20), Strides::new(8 << 20));
            let with_gaps = Strides::new(8 << 20);
            for number in 0..1000 {
                let at = number * length;
                assert!(named(&forwards, &(at..at + length)).is_empty());
                let at = number * length * 5;
                assert!(named(&with_gaps, &(at..at + length)).is_empty());
                let at = (1000 - number) * length;
                assert!(named(&backwards, &(at..at + length)).is_empty());
            }
        }
    }

    #[test]
    fn no_list_of_units_is_without_end() {
        let byte = |offset| Some(offset..offset + 1);
        let strides = Strides::new(8 << 20);
        for number in 0..100_u64 {
            let read = number << 20..(number << 20) + (256 << 10);
            let named = strides.observe(&read, byte);
            assert!(named.len() <= NAMED_AT_ONCE);
        }
    }

    #[test]
    fn fields_of_one_page_are_no_strides() {
        let strides = Strides::new(8 << 20);
        for number in 0..10_000_u64 {
            assert!(named(&strides, &(number * 8..number * 8 + 1)).is_empty());
        }
    }

    #[test]
    fn who_reads_in_random_places_has_no_strides() {
        let strides = Strides::new(8 << 20);
        let mut place = 12345_u64;
        for _ in 0..10_000 {
            place = place
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = ((place >> 8) % (64 << 20)) & !4095;
            assert!(named(&strides, &(at..at + 4096)).is_empty());
        }
    }

    #[test]
    fn no_more_is_named_than_may_be_decoded_ahead() {
        for length in [4 << 10, 256 << 10] {
            let limit = 4 * UNIT;
            let strides = Strides::new(limit);
            let mut all = 0;
            for number in 0..50_u64 {
                let at = number * (4 << 20);
                let ahead = named(&strides, &(at..at + length));
                // What is named last lies so many strides ahead.
                let strides_ahead = ahead.last().map_or(0, |unit| (unit * UNIT - at) >> 22);
                assert!(strides_ahead * length.max(UNIT) <= limit);
                all += ahead.len();
                strides.outran(&(at..at + length));
            }
            assert!(all > 40);
        }
        let none = Strides::new(UNIT - 1);
        for number in 0..50_u64 {
            let at = number << 20;
            assert!(named(&none, &(at..at + 1)).is_empty());
        }
    }

    #[test]
    fn nothing_is_wanted_of_what_was_named_once_the_reader_goes_elsewhere() {
        let strides = Strides::new(8 << 20);
        let mut last = Vec::new();
        for number in 0..10_u64 {
            last = named(&strides, &(number << 20..(number << 20) + 4096));
        }
        let unit = last.pop().unwrap() * UNIT;
        assert!(strides.still_wants(&(unit..unit + UNIT)));
        assert!(named(&strides, &(5 << 30..(5 << 30) + 4096)).is_empty());
        assert!(!strides.still_wants(&(unit..unit + UNIT)));
    }
}
