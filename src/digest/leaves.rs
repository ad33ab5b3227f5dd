//! Leaves: short parts of the original that are checked by themselves, with XXH3.
//!
//! Leaves are aligned: one begins at every multiple of their length, and where a chunk begins. So every chunk is a whole
//! number of leaves, and a piece of a chunk that ends at such a multiple is one too. Leaves of zeros are told apart: a hole
//! needs no digest.

use std::ops::Range;

use twox_hash::XxHash3_64;

use super::Content;
use crate::zeros::is_zero;

/// What is known of a leaf's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// They are all zero.
    Zeros,
    /// Their 64-bit XXH3 with seed 0.
    Digest(u64),
}

/// The leaves of a part of the original, all of which lies in one chunk. Both are in bytes.
pub(crate) fn leaf_ranges(
    part: Range<u64>,
    leaf_len: u64,
) -> impl Iterator<Item = Range<u64>> + Clone {
    let mut start = part.start;
    std::iter::from_fn(move || {
        let next = (start / leaf_len + 1).saturating_mul(leaf_len);
        let leaf = start..part.end.min(next);
        start = leaf.end;
        (!leaf.is_empty()).then_some(leaf)
    })
}

/// How many leaves [`leaf_ranges`] gives.
pub(crate) fn leaf_count(part: &Range<u64>, leaf_len: u64) -> u64 {
    match part.end.checked_sub(1) {
        Some(last) if part.start <= last => last / leaf_len - part.start / leaf_len + 1,
        _ => 0,
    }
}

/// How many leaves a part of the original has whose chunks are of one size, all in bytes, also if it lies in several of them: it is
/// cut where leaves end and where chunks do.
pub(crate) fn leaf_count_of_chunks(part: &Range<u64>, leaf_len: u64, chunk_size: u64) -> u64 {
    let pieces = |length| leaf_count(part, length);
    let both = (chunk_size / common_divisor(chunk_size, leaf_len)).saturating_mul(leaf_len);
    (pieces(leaf_len) + pieces(chunk_size)).saturating_sub(pieces(both))
}

/// The largest number that divides both (Euclid's algorithm), neither of which is 0.
fn common_divisor(one: u64, other: u64) -> u64 {
    match one % other {
        0 => other,
        rest => common_divisor(other, rest),
    }
}

/// The digests of the leaves of a chunk's part that begins at `offset` of the original.
pub(crate) fn leaf_digests(offset: u64, content: Content<'_>, leaf_len: u64) -> Vec<Leaf> {
    let digest = |leaf: Range<u64>| match content {
        Content::Zeros(_) => Leaf::Zeros,
        Content::Bytes(bytes) => {
            let (from, to) = (leaf.start - offset, leaf.end - offset);
            let bytes = bytes.get(from as usize..to as usize).unwrap_or_default();
            match is_zero(bytes) {
                true => Leaf::Zeros,
                false => Leaf::Digest(XxHash3_64::oneshot(bytes)),
            }
        }
    };
    leaf_ranges(offset..offset + content.len(), leaf_len)
        .map(digest)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn leaves_of_even_chunks_are_as_many_as_those_of_each(
            start in 0_u64..2000,
            length in 0_u64..2000,
            leaf_len in 1_u64..50,
            chunk_size in 1_u64..200,
        ) {
            let part = start..start + length;
            // Leaves of a chunk length are the parts of chunks.
            let each = leaf_ranges(part.clone(), chunk_size).map(|part| leaf_count(&part, leaf_len));
            prop_assert_eq!(leaf_count_of_chunks(&part, leaf_len, chunk_size), each.sum::<u64>());
        }
    }

    #[test]
    fn leaves_begin_at_multiples_and_where_the_part_does() {
        let ranges: Vec<_> = leaf_ranges(5..40, 16).collect();
        assert_eq!(ranges, [5..16, 16..32, 32..40]);
        for (part, count) in [(5..40, 3), (16..32, 1), (16..33, 2), (7..7, 0), (0..0, 0)] {
            assert_eq!(leaf_count(&part, 16), count);
            assert_eq!(leaf_ranges(part, 16).count() as u64, count);
        }
    }

    #[test]
    fn a_leafs_digest_is_the_published_one_and_zeros_need_none() {
        let mut bytes = vec![0; 48];
        bytes[20] = 1;
        let leaves = leaf_digests(8, Content::Bytes(&bytes), 32);
        // 24 zero bytes but for the 21st, then 24 zeros.
        let Leaf::Digest(first) = leaves[0] else {
            panic!("the first leaf is not all zero");
        };
        assert_eq!(first, twox_hash::XxHash3_64::oneshot(&bytes[..24]));
        assert_eq!(leaves[1..], [Leaf::Zeros]);
        assert_eq!(
            leaf_digests(8, Content::Zeros(48), 32),
            [Leaf::Zeros, Leaf::Zeros]
        );
        // Of the three bytes "abc", as the reference implementation has it.
        let abc = leaf_digests(0, Content::Bytes(b"abc"), 32);
        assert_eq!(abc, [Leaf::Digest(0x78af_5f94_892f_3950)]);
    }
}
