//! Where reads go: for every reader a list of places, made before the clock starts.

use std::ops::Range;

/// A read to be made: which file, at which offset in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) file: usize,
    pub(crate) offset: u64,
}

/// An order in which places follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pattern {
    /// All over the files, no block twice, so that each read of a cold file is a cold one.
    ///
    /// With `apart`, no two reads are in the same aligned piece of so many bytes; all are `within` so many bytes of a file's beginning.
    Random { seed: u64, apart: u64, within: u64 },
    /// From the start to the end.
    Forward,
    /// From the end to the start.
    Reverse,
    /// From the start to the end, leaving out what lies between: so many bytes from one read to the next.
    Stride(u64),
}

impl Pattern {
    /// The places of each of `readers` readers, `reads` in all at most, of `block` bytes each, in files of these sizes.
    ///
    /// Random places are dealt to the readers in turn. In every other pattern a reader has a file of its own; where there
    /// are more readers than files, those of one file have equal parts of it.
    pub(crate) fn places(
        self,
        file_sizes: &[u64],
        block: u64,
        readers: u64,
        reads: u64,
    ) -> Vec<Vec<Place>> {
        if let Self::Random {
            seed,
            apart,
            within,
        } = self
        {
            let parts: Vec<u64> = file_sizes.iter().map(|size| within.min(*size)).collect();
            let places = random(&parts, block, apart, reads, seed);
            return (0..readers as usize)
                .map(|reader| {
                    places
                        .iter()
                        .skip(reader)
                        .step_by(readers as usize)
                        .copied()
                })
                .map(Iterator::collect)
                .collect();
        }
        let files = file_sizes.len() as u64;
        (0..readers)
            .map(|reader| {
                let file = (reader % files) as usize;
                let size = file_sizes.get(file).copied().unwrap_or(0);
                let sharers = (readers - reader % files).div_ceil(files);
                let part = part(size, block, reader / files, sharers);
                self.scan(file, part, block, reads / readers)
            })
            .collect()
    }

    /// The places of one reader that goes through `part` of a file.
    fn scan(self, file: usize, part: Range<u64>, block: u64, reads: u64) -> Vec<Place> {
        let step = match self {
            Self::Stride(bytes) => bytes.max(block),
            _ => block,
        };
        let count = (part.end - part.start).div_ceil(step);
        let place = |number| Place {
            file,
            offset: part.start + number * step,
        };
        let wanted = count.min(reads);
        match self {
            Self::Reverse => (count - wanted..count).rev().map(place).collect(),
            _ => (0..wanted).map(place).collect(),
        }
    }
}

/// The `number`th of `parts` equal parts of a file, on borders of blocks; the last one ends with the file.
fn part(size: u64, block: u64, number: u64, parts: u64) -> Range<u64> {
    let border = |number: u64| size / parts / block * block * number;
    let end = match number + 1 == parts {
        true => size,
        false => border(number + 1),
    };
    border(number)..end
}

/// Different places, as many as there are if `reads` asks for more: the first steps of a Fisher-Yates shuffle.
fn random(file_sizes: &[u64], block: u64, apart: u64, reads: u64, seed: u64) -> Vec<Place> {
    let piece = apart.max(block);
    let mut places: Vec<Place> = file_sizes
        .iter()
        .enumerate()
        .flat_map(|(file, size)| {
            (0..size / piece).map(move |number| Place {
                file,
                offset: number * piece,
            })
        })
        .collect();
    let wanted = places
        .len()
        .min(usize::try_from(reads).unwrap_or(usize::MAX));
    let mut state = seed;
    for drawn in 0..wanted {
        let left = (places.len() - drawn) as u64;
        places.swap(drawn, drawn + (next(&mut state) % left) as usize);
    }
    places.truncate(wanted);
    for place in &mut places {
        place.offset += next(&mut state) % (piece / block) * block;
    }
    places
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
