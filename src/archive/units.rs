//! What is decoded in one go: a chunk, or a piece of a large one.
//!
//! A chunk of up to [`ONE_CALL`] bytes is decoded by one call of its codec, which is the fastest way and finds all that the
//! codec can find wrong with it before a byte is handed out. A larger one is decoded in pieces, mostly from front to back, so that
//! its first bytes do not wait for its last, a random read decodes no more than it has to, and memory is taken for what is
//! read. So is one that would take most of a small budget. How a chunk is cut depends on its length and the budget alone, so
//! the same read always finds the same units.

use std::ops::Range;

use crate::format::ChunkTable;

/// The longest chunk that is decoded by one call, in bytes: about a millisecond's work.
const ONE_CALL: u64 = 1 << 20;

/// How long the pieces of a larger chunk are, in bytes. They begin at multiples of it in the original, as leaves and groups of a
/// record of digests do, so the chunk's first and last may be shorter. A Zstandard block has as many at most, and no decoder
/// stops within one.
const PIECE_LEN: u64 = 128 << 10;

/// Names what is decoded in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Unit {
    /// The chunk's number.
    pub(crate) chunk: u32,
    /// The piece's number within the chunk; `None` is the whole chunk.
    pub(crate) piece: Option<u32>,
}

/// The longest chunk that is decoded by one call under a budget, both in bytes: with its payload, both rounded up,
/// it has to fit.
pub(crate) fn one_call(budget: u64) -> u64 {
    ONE_CALL.min(budget / 4)
}

impl Unit {
    /// The unit that holds the original byte at `offset`, and which bytes it has; `None` behind the end. Chunks of up
    /// to `one_call` bytes are units, and `in_pieces` is asked whether a longer one can be cut.
    pub(crate) fn holding(
        table: &ChunkTable,
        offset: u64,
        one_call: u64,
        in_pieces: impl FnOnce(u32) -> bool,
    ) -> Option<(Self, Range<u64>)> {
        let chunk = table
            .chunks_holding(&(offset..offset.checked_add(1)?))
            .start;
        let bytes = table.original_range(chunk)?;
        if !bytes.contains(&offset) {
            return None;
        }
        if bytes.end - bytes.start <= one_call || !in_pieces(chunk) {
            return Some((Self { chunk, piece: None }, bytes));
        }
        Some(match piece_number(&bytes, offset) {
            Some(number) => {
                let piece = Some(number);
                (Self { chunk, piece }, piece_bytes(&bytes, offset))
            }
            // No chunk is so large; one that claims to be is refused for its size, and does not end here.
            None => (Self { chunk, piece: None }, bytes),
        })
    }
}

/// The number of the piece of a chunk that holds the byte at `offset`. The chunk's bytes and the offset are the original's.
pub(crate) fn piece_number(chunk: &Range<u64>, offset: u64) -> Option<u32> {
    u32::try_from(offset / PIECE_LEN - chunk.start / PIECE_LEN).ok()
}

/// Which bytes that piece has.
pub(crate) fn piece_bytes(chunk: &Range<u64>, offset: u64) -> Range<u64> {
    let start = offset - offset % PIECE_LEN;
    start.max(chunk.start)..chunk.end.min(start.saturating_add(PIECE_LEN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn units_lie_end_to_end_and_hold_every_byte_once(
            sizes in proptest::collection::vec(
                prop_oneof![0_u64..5, 1_u64..3 << 20, Just(1 << 20), Just((1 << 20) + 1)],
                1..12,
            ),
            pieces in any::<bool>(),
        ) {
            let table = ChunkTable::new(18, sizes.iter().copied(), sizes.iter().copied()).unwrap();
            let mut offset = 0;
            let mut seen = std::collections::HashSet::new();
            while let Some((unit, bytes)) = Unit::holding(&table, offset, ONE_CALL, |_| pieces) {
                prop_assert_eq!(bytes.start, offset);
                prop_assert!(bytes.end > bytes.start);
                prop_assert!(seen.insert(unit));
                let last = Unit::holding(&table, bytes.end - 1, ONE_CALL, |_| pieces);
                prop_assert_eq!(last, Some((unit, bytes.clone())));
                prop_assert_eq!(unit.piece.is_some(), pieces && sizes[unit.chunk as usize] > ONE_CALL);
                offset = bytes.end;
            }
            prop_assert_eq!(offset, table.original_size());
        }
    }

    #[test]
    fn a_chunk_with_more_pieces_than_can_be_counted_goes_on_to_its_end() {
        let size = 1_u64 << 60;
        let table = ChunkTable::new(18, [10].into_iter(), [size].into_iter()).unwrap();
        let whole = Unit {
            chunk: 0,
            piece: None,
        };
        let found = Unit::holding(&table, size - 1, ONE_CALL, |_| true);
        assert_eq!(found, Some((whole, 0..size)));
        assert_eq!(Unit::holding(&table, size, ONE_CALL, |_| true), None);
    }

    #[test]
    fn the_last_piece_of_the_longest_file_there_may_be_ends_where_that_ends() {
        let last = ONE_CALL + 7;
        let sizes = [u64::MAX - last, last];
        let table = ChunkTable::new(18, [1, 1].into_iter(), sizes.into_iter()).unwrap();
        let (unit, bytes) = Unit::holding(&table, u64::MAX - 1, ONE_CALL, |_| true).unwrap();
        assert_eq!((unit.chunk, unit.piece), (1, Some(8)));
        assert_eq!(bytes, u64::MAX - PIECE_LEN + 1..u64::MAX);
    }
}
