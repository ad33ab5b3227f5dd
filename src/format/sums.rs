//! Running sums of sizes, in as little memory as they take.
//!
//! A table has one for every chunk, and a file of 100 GiB some million chunks. But all chunks of an original are of the same
//! length, except for the last, and payloads are short: a sum is then a step from another close by, of half the bytes.
//!
//! Invariant: sums ascend (not strictly: sizes may be 0).

use std::ops::Range;

/// How many sums are told from the same one before them.
const GROUP: usize = 16;

/// See the module's description.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sums {
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
    /// What was before each group, and how much further each sum is than that.
    Steps { groups: Vec<u64>, steps: Vec<u32> },
    /// The sums themselves.
    Each(Vec<u64>),
}

impl Sums {
    /// No sizes yet; their sums begin at `start`, and there are going to be `expected` of them. Memory is reserved for so many,
    /// but not touched before it is needed.
    pub(super) fn new(start: u64, expected: usize) -> Self {
        Self {
            start,
            end: start,
            expected,
            sums: Kind::Even { size: 0, count: 0 },
        }
    }

    /// Adds a size, in bytes; `None` if the sum overflows or there is no memory for it, and then nothing has been added.
    pub(super) fn push(&mut self, size: u64) -> Option<()> {
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
                self.give_each_a_step()?;
                return self.push(size);
            }
            Kind::Steps { groups, steps } => {
                let begins = steps.len().is_multiple_of(GROUP);
                let group = if begins { before } else { *groups.last()? };
                let Ok(step) = u32::try_from(end - group) else {
                    self.give_each_a_sum()?;
                    return self.push(size);
                };
                if begins {
                    groups.push(before);
                }
                steps.push(step);
            }
            Kind::Each(sums) => sums.push(end),
        }
        self.end = end;
        Some(())
    }

    fn give_each_a_step(&mut self) -> Option<()> {
        let groups = room_for(self.expected.div_ceil(GROUP))?;
        let steps = room_for(self.expected)?;
        self.begin_anew_as(Kind::Steps { groups, steps })
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
    pub(super) fn shrink(&mut self) {
        match &mut self.sums {
            Kind::Even { .. } => {}
            Kind::Steps { groups, steps } => {
                groups.shrink_to_fit();
                steps.shrink_to_fit();
            }
            Kind::Each(sums) => sums.shrink_to_fit(),
        }
    }

    /// How many sizes there are.
    pub(super) fn len(&self) -> usize {
        match &self.sums {
            Kind::Even { count, .. } => *count,
            Kind::Steps { steps, .. } => steps.len(),
            Kind::Each(sums) => sums.len(),
        }
    }

    /// The sum of all, in bytes.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// From the sum before a size to the one behind it, in bytes; `None` past the last.
    pub(super) fn range(&self, index: usize) -> Option<Range<u64>> {
        let begin = match index.checked_sub(1) {
            Some(before) => self.sum(before)?,
            None => self.start,
        };
        Some(begin..self.sum(index)?)
    }

    /// How many sums there are in front of the first for which `is_before` does not hold; it holds for those before it and for
    /// none behind.
    pub(super) fn partition_point(&self, is_before: impl Fn(u64) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.sum(middle).is_some_and(&is_before) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }

    /// The memory they take, in bytes.
    pub(super) fn memory(&self) -> usize {
        match &self.sums {
            Kind::Even { .. } => 0,
            Kind::Steps { groups, steps } => {
                groups.capacity() * size_of::<u64>() + steps.capacity() * size_of::<u32>()
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
            Kind::Steps { groups, steps } => {
                let group = groups.get(index / GROUP)?;
                Some(group.saturating_add(u64::from(*steps.get(index)?)))
            }
            Kind::Each(sums) => sums.get(index).copied(),
        }
    }
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
        prop_oneof![even, mixed]
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
                    prop_assert_eq!(sums.partition_point(|sum| sum <= at), expected);
                }
                before = end;
            }
            prop_assert_eq!(sums.range(model.len()), None);
            prop_assert!(sums.memory() <= 8 * model.len());
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
        assert!(payloads.memory() < 4_600_000);
    }
}
