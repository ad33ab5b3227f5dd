//! The fuzz targets of warpfs. What a target does stands here, so that `cargo fuzz` and an ordinary test, which replays what
//! was found, run the very same.
//!
//! Whatever the input, a target must not panic, hang, or take more memory than [`memory::within`] allows, and two ways to
//! the same bytes must lead to the same bytes.

pub mod archive;
pub mod decode;
pub mod differential;
pub mod memory;
pub mod mutate;
pub mod plan;
pub mod structures;

use std::ops::Range;

use twox_hash::XxHash64;

/// A target takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 4] = [
    ("structures", structures::run),
    ("decode", decode::run),
    ("archive", archive::run),
    ("differential", differential::run),
];

/// A small seeded generator (SplitMix64): the same input does the same every time.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// A generator for whatever is to be done with an input beside what it says itself.
    pub fn for_input(data: &[u8]) -> Self {
        Self(XxHash64::oneshot(0, data))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.any() % limit.max(1)
    }

    /// An index into something of this length; 0 if it is empty.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True one time in so many.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn of<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[self.index(N)]
    }

    /// A length of bytes to read: often about that of pages or pieces, or next to nothing.
    pub fn length(&mut self) -> usize {
        let most = self.of([1, 16, 4096, 5000, 64 << 10, 128 << 10, 300_000]);
        1 + self.index(most)
    }
}

/// Bytes of one original that were read in some way; whatever is read of them again must be the same.
#[derive(Debug, Default)]
pub struct Seen(Vec<(u64, Vec<u8>)>);

impl Seen {
    /// Compares bytes read from `offset` with those read before, and remembers them. Panics where they differ.
    pub fn add(&mut self, how: &str, offset: u64, bytes: Vec<u8>) {
        for (known_offset, known) in &self.0 {
            let from = offset.max(*known_offset);
            let to = (offset + bytes.len() as u64).min(known_offset + known.len() as u64);
            if from < to {
                let part =
                    |start: u64| -> Range<usize> { (from - start) as usize..(to - start) as usize };
                assert!(
                    bytes[part(offset)] == known[part(*known_offset)],
                    "{how}: bytes {from}..{to} are not what they were before"
                );
            }
        }
        self.0.push((offset, bytes));
    }
}

/// Whether there is nothing but zeros. Compared in one go: what is fuzzed counts every comparison.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|bytes| *bytes == ZEROS[..bytes.len()])
}
