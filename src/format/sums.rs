//! Running sums of sizes, in as little memory as they take.
//!
//! A table has one for every chunk, and a file of 100 GiB some million chunks; a record of digests has one for every page. But all chunks of an original are of the same
//! length, except for the last. And payloads, though of all lengths, make sums that stay close to a straight line: of a few dozen at a
//! time the line is kept, and how far each is from it in as few bits as that takes. That is about the size of an Elias-Fano code, without
//! its search: a sum is looked up in one place.
//!
//! Invariant: sums ascend (not strictly: sizes may be 0).

use std::ops::Range;

/// How many sums have a line in common. So many numbers of a given width fill whole words.
const GROUP: usize = u32::BITS as usize;

/// See the module's description.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    start: u64,
    end: u64,
    /// How many sizes there are going to be.
    expected: usize,
    sums: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// So many sizes, each but the last of `size` bytes.
    Even { size: u64, count: usize },
    /// Lines, and how far sums are from them.
    Lines(Lines),
    /// The sums themselves.
    Each(Vec<u64>),
}

#[derive(Debug, PartialEq, Eq)]
struct Lines {
    lines: Vec<Line>,
    /// Of each line's sums the distances from it, as many words as each of them has bits.
    distances: Vec<u32>,
    /// The sums that are not enough for a line yet.
    rest: Vec<u64>,
}

/// A line that [`GROUP`] sums lie on, or above.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    start: u64,
    /// How much it rises with each sum.
    rise: u32,
    /// Which word its distances begin at.
    distances: u32,
}

impl Sums {
    /// No sizes yet; their sums begin at `start`, and there are going to be `expected` of them. Memory is reserved for so many,
    /// but not touched before it is needed.
    pub(crate) fn new(start: u64, expected: usize) -> Self {
        Self {
            start,
            end: start,
            expected,
            sums: Kind::Even { size: 0, count: 0 },
        }
    }

    /// Adds a size, in bytes; `None` if the sum overflows or there is no memory for it, and then nothing has been added.
    pub(crate) fn push(&mut self, size: u64) -> Option<()> {
        let before = self.end;
        let end = before.checked_add(size)?;
        match &mut self.sums {
            Kind::Even { size: even, count } if *count == 0 => (*even, *count) = (size, 1),
            Kind::Even { size: even, count }
                if self.end - self.start == product(*even, *count) && size <= *even =>
            {
                *count += 1;
            }
            Kind::Even { .. } => {
                self.give_them_lines()?;
                return self.push(size);
            }
            Kind::Lines(lines) => {
                if lines.push(end).is_none() {
                    self.give_each_a_sum()?;
                    return self.push(size);
                }
            }
            Kind::Each(sums) => sums.push(end),
        }
        self.end = end;
        Some(())
    }

    fn give_them_lines(&mut self) -> Option<()> {
        let lines = Lines {
            lines: room_for(self.expected / GROUP)?,
            distances: room_for(self.expected)?,
            rest: room_for(self.expected.min(GROUP))?,
        };
        self.begin_anew_as(Kind::Lines(lines))
    }

    fn give_each_a_sum(&mut self) -> Option<()> {
        let sums = room_for(self.expected)?;
        self.begin_anew_as(Kind::Each(sums))
    }

    fn begin_anew_as(&mut self, sums: Kind) -> Option<()> {
        let mut anew = Self {
            start: self.start,
            end: self.start,
            expected: self.expected,
            sums,
        };
        for index in 0..self.len() {
            let range = self.range(index)?;
            anew.push(range.end - range.start)?;
        }
        *self = anew;
        Some(())
    }

    /// Gives back what growing has left over.
    pub(crate) fn shrink(&mut self) {
        match &mut self.sums {
            Kind::Even { .. } => {}
            Kind::Lines(lines) => {
                lines.lines.shrink_to_fit();
                lines.distances.shrink_to_fit();
                lines.rest.shrink_to_fit();
            }
            Kind::Each(sums) => sums.shrink_to_fit(),
        }
    }

    /// How many sizes there are.
    pub(crate) fn len(&self) -> usize {
        match &self.sums {
            Kind::Even { count, .. } => *count,
            Kind::Lines(lines) => lines.lines.len() * GROUP + lines.rest.len(),
            Kind::Each(sums) => sums.len(),
        }
    }

    /// The sum of all, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// From the sum before a size to the one behind it, in bytes; `None` past the last.
    pub(crate) fn range(&self, index: usize) -> Option<Range<u64>> {
        let begin = match index.checked_sub(1) {
            Some(before) => self.sum(before)?,
            None => self.start,
        };
        Some(begin..self.sum(index)?)
    }

    /// How many sums are no larger than `bound`, in bytes.
    pub(crate) fn count_up_to(&self, bound: u64) -> usize {
        if let Kind::Even { size, count } = &self.sums
            && let Some(reached) = bound.saturating_sub(self.start).checked_div(*size)
        {
            return match self.end <= bound {
                true => *count,
                false => (reached as usize).min(count.saturating_sub(1)),
            };
        }
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.sum(middle).is_some_and(|sum| sum <= bound) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }

    /// How large each is but for the last, in bytes, where all of those are of one size and the last is no larger.
    pub(crate) fn even_size(&self) -> Option<u64> {
        match &self.sums {
            Kind::Even { size, .. } => Some(*size),
            Kind::Lines(_) | Kind::Each(_) => None,
        }
    }

    /// The memory they take, in bytes.
    pub(crate) fn memory(&self) -> usize {
        match &self.sums {
            Kind::Even { .. } => 0,
            Kind::Lines(lines) => {
                lines.lines.capacity() * size_of::<Line>()
                    + lines.distances.capacity() * size_of::<u32>()
                    + lines.rest.capacity() * size_of::<u64>()
            }
            Kind::Each(sums) => sums.capacity() * size_of::<u64>(),
        }
    }

    /// The sum up to and with a size.
    fn sum(&self, index: usize) -> Option<u64> {
        match &self.sums {
            Kind::Even { count, .. } if index + 1 == *count => Some(self.end),
            Kind::Even { size, count } => {
                // Less than the last, which has not overflowed.
                (index < *count).then(|| self.start.saturating_add(product(*size, index + 1)))
            }
            Kind::Lines(lines) => lines.sum(index),
            Kind::Each(sums) => sums.get(index).copied(),
        }
    }
}

impl Lines {
    /// Adds a sum; `None` if those that wait are too far from any line, or there is no memory, and then nothing has been added.
    fn push(&mut self, sum: u64) -> Option<()> {
        self.rest.push(sum);
        if self.rest.len() == GROUP && self.draw().is_none() {
            self.rest.pop();
            return None;
        }
        Some(())
    }

    /// Makes a line of the sums that wait.
    fn draw(&mut self) -> Option<()> {
        let (first, last) = (*self.rest.first()?, *self.rest.last()?);
        let rise = u32::try_from(last.checked_sub(first)? / (GROUP - 1) as u64).ok()?;
        let sums = || self.rest.iter().enumerate();
        let farthest_below = sums()
            .map(|(index, sum)| risen(first, rise, index).saturating_sub(*sum))
            .max()?;
        let start = first.checked_sub(farthest_below)?;
        let distances = sums()
            .map(|(index, sum)| u32::try_from(sum.checked_sub(risen(start, rise, index))?).ok())
            .collect::<Option<Vec<_>>>()?;
        let width = u32::BITS - distances.iter().max()?.leading_zeros();
        self.lines.push(Line {
            start,
            rise,
            distances: u32::try_from(self.distances.len()).ok()?,
        });
        let mut bits = 0_u64;
        let mut filled = 0;
        for distance in distances {
            bits |= u64::from(distance) << filled;
            filled += width;
            if filled >= u32::BITS {
                self.distances.push(bits as u32);
                bits >>= u32::BITS;
                filled -= u32::BITS;
            }
        }
        self.rest.clear();
        Some(())
    }

    fn sum(&self, index: usize) -> Option<u64> {
        let (number, within) = (index / GROUP, index % GROUP);
        let Some(line) = self.lines.get(number) else {
            return self.rest.get(index - self.lines.len() * GROUP).copied();
        };
        let next = self.lines.get(number + 1);
        let end = next.map_or(self.distances.len(), |next| next.distances as usize);
        let distances = self.distances.get(line.distances as usize..end)?;
        let width = distances.len();
        let (place, shift) = (within * width / GROUP, within * width % GROUP);
        let word = |place| u64::from(distances.get(place).copied().unwrap_or_default());
        let bits = (word(place) | word(place + 1) << u32::BITS) >> shift;
        let distance = bits & ((1 << width) - 1);
        Some(risen(line.start, line.rise, within).saturating_add(distance))
    }
}

/// Where a line is by then.
fn risen(start: u64, rise: u32, sums: usize) -> u64 {
    start.saturating_add(product(rise.into(), sums))
}

fn product(size: u64, count: usize) -> u64 {
    size.saturating_mul(count as u64)
}

/// Room for so many, if there is memory.
fn room_for<T>(count: usize) -> Option<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(count).ok()?;
    Some(room)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sizes() -> impl Strategy<Value = Vec<u64>> {
        let even =
            (0_u64..1 << 34, 0_usize..100, 0_u64..1 << 34).prop_map(|(size, count, last)| {
                let mut sizes = vec![size; count];
                sizes.push(last);
                sizes
            });
        let mixed = proptest::collection::vec(
            prop_oneof![8 => 0_u64..1 << 17, 1 => 0_u64..1 << 29, 1 => Just(7), 1 => any::<u64>()],
            0..100,
        );
        let payloads = proptest::collection::vec(
            prop_oneof![20 => 1_u64..1 << 17, 4 => Just(19), 1 => 0_u64..1 << 26],
            0..500,
        );
        prop_oneof![even, mixed, payloads]
    }

    proptest! {
        #[test]
        fn sums_are_those_of_a_plain_column(sizes in sizes(), start in 0_u64..1 << 40) {
            let mut sums = Sums::new(start, sizes.len());
            let mut model = Vec::new();
            for size in sizes {
                let before = model.last().copied().unwrap_or(start);
                match before.checked_add(size) {
                    Some(end) => {
                        sums.push(size).unwrap();
                        model.push(end);
                    }
                    None => prop_assert!(sums.push(size).is_none()),
                }
                prop_assert_eq!(sums.end(), model.last().copied().unwrap_or(start));
            }
            sums.shrink();
            prop_assert_eq!(sums.len(), model.len());
            let mut before = start;
            for (index, &end) in model.iter().enumerate() {
                prop_assert_eq!(sums.range(index), Some(before..end));
                for at in [end.saturating_sub(1), end, end.saturating_add(1)] {
                    let expected = model.partition_point(|&sum| sum <= at);
                    prop_assert_eq!(sums.count_up_to(at), expected);
                }
                before = end;
            }
            prop_assert_eq!(sums.range(model.len()), None);
            prop_assert!(sums.memory() <= 8 * model.len());
        }
    }

    #[test]
    fn sums_as_far_from_a_line_as_can_be_told_have_one_and_others_have_none() {
        // The first of them is nearly a whole jump above a line that ends with it.
        for (jump, have_one) in [(1_u64 << 32, true), (5 << 30, false)] {
            let mut sums = Sums::new(1 << 40, GROUP + 2);
            let sizes: Vec<_> = [9, 10]
                .into_iter()
                .chain([0; GROUP - 3])
                .chain([jump, 11, 12])
                .collect();
            let mut model = vec![1 << 40];
            for size in &sizes {
                sums.push(*size).unwrap();
                model.push(model.last().unwrap() + size);
            }
            assert_eq!(matches!(sums.sums, Kind::Lines(_)), have_one);
            for index in 0..sizes.len() {
                let range = model[index]..model[index + 1];
                assert_eq!(sums.range(index), Some(range), "{index}");
            }
        }
    }

    #[test]
    fn a_million_chunks_of_one_length_take_nothing_and_their_payloads_little() {
        let (mut originals, mut payloads) =
            (Sums::new(0, 1_000_001), Sums::new(16 << 20, 1_000_001));
        for chunk in 0..1_000_000 {
            originals.push(128 << 10).unwrap();
            payloads.push(40_000 + chunk % 9_999).unwrap();
        }
        originals.push(17).unwrap();
        payloads.push(9).unwrap();
        payloads.shrink();
        assert_eq!(originals.memory(), 0);
        assert_eq!(
            originals.range(1_000_000),
            Some(131_072_000_000..131_072_000_017)
        );
        assert!(payloads.memory() < 2_700_000, "{}", payloads.memory());
    }
}
