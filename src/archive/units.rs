//! What is decoded in one go: a chunk, or a piece of one.
//!
//! A chunk of up to [`ONE_CALL`] bytes is, as a rule, decoded by one call of its codec, which is the fastest way and finds all that the
//! codec can find wrong with it before a byte is handed out. A larger one is decoded in pieces, mostly from front to back, so that
//! its first bytes do not wait for its last, a random read decodes no more than it has to, and memory is taken for what is
//! read. So is one that would take most of a small budget.
//!
//! Where pieces can be decoded apart from each other there is nothing to be said for decoding more than one of them, so such a
//! chunk is cut as soon as it is longer than a piece. How a chunk is cut depends on nothing that changes while its file is open
//! but on whether its pieces turned out to need each other, so the same read mostly finds the same units.

use std::ops::Range;

use crate::format::{ChunkTable, Encoding};

/// The longest chunk that is decoded by one call, in bytes: about a millisecond's work.
const ONE_CALL: u64 = 1 << 20;

/// How long the pieces of a chunk are, in bytes. They begin at multiples of it in the original, as leaves and groups of a
/// record of digests do, so the chunk's first and last may be shorter. A Zstandard block has as many at most, and no decoder
/// stops within one.
pub(crate) const PIECE_LEN: u64 = 128 << 10;

/// Names what is decoded in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Unit {
    /// The chunk's number.
    pub(crate) chunk: u32,
    /// The piece's number within the chunk; `None` is the whole chunk.
    pub(crate) piece: Option<u32>,
}

/// Whether chunks of this encoding are decoded in parts that need no others, whatever is in them, unless a payload says otherwise.
pub(crate) fn is_of_parts(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::Lz4 | Encoding::Stored | Encoding::Zeros)
}

/// Whether parts of a chunk can be decoded apart from each other, unless its payload says otherwise.
pub(crate) fn may_have_parts(table: &ChunkTable, chunk: u32) -> bool {
    match table.encoding(chunk) {
        Some(encoding) if is_of_parts(encoding) => true,
        // What takes more room than it did before may lie there as it is.
        Some(Encoding::Zstd) => {
            let packed = table.compressed_range(chunk).unwrap_or_default();
            let original = table.original_range(chunk).unwrap_or_default();
            packed.end - packed.start > original.end - original.start
        }
        _ => false,
    }
}

/// The longest chunks that are decoded by one call, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OneCall {
    /// Of those that have to be decoded from front to back.
    in_order: u64,
    /// Of those whose pieces may be decoded apart from each other.
    apart: u64,
}

impl OneCall {
    /// Under a budget, in bytes: a chunk with its payload, both rounded up, has to fit.
    pub(crate) fn under(budget: u64) -> Self {
        let in_order = ONE_CALL.min(budget / 4);
        Self {
            in_order,
            apart: in_order.min(PIECE_LEN),
        }
    }

    /// For a source of which pieces are not decoded apart.
    pub(crate) fn without_parts(self) -> Self {
        Self {
            apart: self.in_order,
            ..self
        }
    }

    /// Whether a chunk is decoded by one call unless its pieces may be decoded apart; its bytes are the original's.
    pub(crate) fn is_short(self, chunk: &Range<u64>) -> bool {
        chunk.end - chunk.start <= self.in_order
    }

    /// Whether a chunk is decoded by one call; its `bytes` are the original's.
    fn is_for(self, table: &ChunkTable, chunk: u32, bytes: &Range<u64>) -> bool {
        // Parts begin where pieces do, if the chunk does.
        let apart = bytes.start.is_multiple_of(PIECE_LEN) && may_have_parts(table, chunk);
        let longest = if apart { self.apart } else { self.in_order };
        bytes.end - bytes.start <= longest
    }
}

impl Unit {
    /// The unit that holds the original byte at `offset`, and which bytes it has; `None` behind the end. `in_pieces` is asked
    /// whether a chunk can be cut that is not decoded by `one_call`.
    pub(crate) fn holding(
        table: &ChunkTable,
        offset: u64,
        one_call: OneCall,
        in_pieces: impl FnOnce(u32, &Range<u64>) -> bool,
    ) -> Option<(Self, Range<u64>)> {
        let chunk = table
            .chunks_holding(&(offset..offset.checked_add(1)?))
            .start;
        let bytes = table.original_range(chunk)?;
        if !bytes.contains(&offset) {
            return None;
        }
        if one_call.is_for(table, chunk, &bytes) || !in_pieces(chunk, &bytes) {
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

/// How many pieces there are in some bytes of a chunk, which are the original's.
pub(crate) fn piece_count(bytes: &Range<u64>) -> u64 {
    match bytes.end.checked_sub(1) {
        Some(last) if last >= bytes.start => last / PIECE_LEN - bytes.start / PIECE_LEN + 1,
        _ => 0,
    }
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
            apart in any::<bool>(),
        ) {
            let table = ChunkTable::new(18, sizes.iter().copied(), sizes.iter().copied()).unwrap();
            let table = table.encoded_as(Encoding::Lz4);
            let one_call = match apart {
                true => OneCall::under(u64::MAX),
                false => OneCall::under(u64::MAX).without_parts(),
            };
            let mut offset = 0;
            let mut seen = std::collections::HashSet::new();
            while let Some((unit, bytes)) = Unit::holding(&table, offset, one_call, |_, _| pieces) {
                prop_assert_eq!(bytes.start, offset);
                prop_assert!(bytes.end > bytes.start);
                prop_assert!(seen.insert(unit));
                let last = Unit::holding(&table, bytes.end - 1, one_call, |_, _| pieces);
                prop_assert_eq!(last, Some((unit, bytes.clone())));
                let chunk = table.original_range(unit.chunk).unwrap();
                let longest = match apart && chunk.start.is_multiple_of(PIECE_LEN) {
                    true => PIECE_LEN,
                    false => ONE_CALL,
                };
                prop_assert_eq!(unit.piece.is_some(), pieces && chunk.end - chunk.start > longest);
                if unit.piece.is_some() {
                    let before = chunk.start..bytes.start;
                    prop_assert_eq!(piece_count(&before), u64::from(unit.piece.unwrap()));
                    prop_assert_eq!(piece_count(&bytes), 1);
                }
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
        let holding = |offset| Unit::holding(&table, offset, OneCall::under(8 << 20), |_, _| true);
        assert_eq!(holding(size - 1), Some((whole, 0..size)));
        assert_eq!(holding(size), None);
    }

    #[test]
    fn the_last_piece_of_the_longest_file_there_may_be_ends_where_that_ends() {
        let last = ONE_CALL + 7;
        let sizes = [u64::MAX - last, last];
        let table = ChunkTable::new(18, [1, 1].into_iter(), sizes.into_iter()).unwrap();
        let one_call = OneCall::under(8 << 20);
        let (unit, bytes) = Unit::holding(&table, u64::MAX - 1, one_call, |_, _| true).unwrap();
        assert_eq!((unit.chunk, unit.piece), (1, Some(8)));
        assert_eq!(bytes, u64::MAX - PIECE_LEN + 1..u64::MAX);
    }
}
