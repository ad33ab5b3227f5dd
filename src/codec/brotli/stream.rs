//! Brotli a piece at a time: the decoder's state is kept between pieces.
//!
//! It hands out what it decoded when its window is full or its input used up, so small steps of input are what keeps it
//! from decoding much more than is asked for.

use brotli::BrotliResult;

use super::{State, new_state, step};
use crate::codec::damaged;
use crate::codec::stream::{Input, Payload, beginning};
use crate::error::Result;
use crate::format::Codec;

/// The most that a decoder's tables take beside the window, in bytes: three groups of 256 prefix codes with 1,080
/// entries of four bytes at most, twice while they grow, and what is small beside them.
const TABLES_LEN: u64 = 7 << 20;

/// A Brotli stream being decoded.
pub(in crate::codec) struct Decoder {
    state: Box<State>,
    /// How much of the payload the decoder has taken, in bytes.
    consumed: u64,
    ended: bool,
}

impl Decoder {
    /// See [`crate::codec::Stream::memory`]. The window grows as it fills, and is copied then.
    pub(in crate::codec) fn memory(payload: &dyn Payload) -> Result<u64> {
        let (bytes, len) = beginning::<1>(payload)?;
        if len == 0 {
            return Err(damaged(Codec::Brotli, "the payload is empty"));
        }
        let window = 1_u64 << window_log(bytes);
        Ok(window + window / 2 + TABLES_LEN)
    }

    pub(in crate::codec) fn open() -> Self {
        Self {
            state: Box::new(new_state()),
            consumed: 0,
            ended: false,
        }
    }

    pub(in crate::codec) fn decode(
        &mut self,
        input: &mut Input<'_>,
        output: &mut [u8],
    ) -> Result<usize> {
        let mut filled = 0;
        // What was decoded already comes first, and takes no input.
        let mut flushing = self.consumed > 0;
        while filled < output.len() && !self.ended {
            let source = match flushing {
                true => &[],
                false if self.consumed == input.len() => {
                    return Err(damaged(Codec::Brotli, "the payload ends too early"));
                }
                false => input.from(self.consumed, 1)?,
            };
            flushing = false;
            let rest = output.get_mut(filled..).unwrap_or_default();
            let (result, taken, written) = step(&mut self.state, source, rest);
            self.consumed += taken as u64;
            filled += written;
            match result {
                BrotliResult::ResultSuccess if self.consumed != input.len() => {
                    return Err(damaged(Codec::Brotli, "bytes behind the end of the stream"));
                }
                BrotliResult::ResultSuccess => self.ended = true,
                BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
                BrotliResult::ResultFailure => {
                    return Err(damaged(Codec::Brotli, "not a valid stream"));
                }
            }
        }
        Ok(filled)
    }
}

/// The window's size as a power of two, from a stream's first bits: RFC 7932, section 9.1. What is not valid there the
/// decoder refuses.
fn window_log([byte]: [u8; 1]) -> u32 {
    let byte = u32::from(byte);
    match (byte & 1, byte >> 1 & 7, byte >> 4 & 7) {
        (0, _, _) => 16,
        (_, 0, 0) => 17,
        (_, 0, n) => 8 + n,
        (_, n, _) => 17 + n,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use brotli::enc::{BrotliEncoderParams, StandardAlloc};
    use brotli::{Allocator, BrotliDecompressStream, BrotliState};

    use super::*;
    use crate::codec::stream::tests::InMemory;

    /// Counts what is allocated, and the most there ever was.
    #[derive(Clone, Default)]
    struct Counting(Rc<Cell<(usize, usize)>>);

    impl<T: Clone + Default> Allocator<T> for Counting
    where
        StandardAlloc: Allocator<T>,
    {
        type AllocatedMemory = <StandardAlloc as Allocator<T>>::AllocatedMemory;

        fn alloc_cell(&mut self, len: usize) -> Self::AllocatedMemory {
            let (now, most) = self.0.get();
            let now = now + len * size_of::<T>();
            self.0.set((now, most.max(now)));
            StandardAlloc::default().alloc_cell(len)
        }

        fn free_cell(&mut self, cell: Self::AllocatedMemory) {
            let (now, most) = self.0.get();
            let freed = size_of_val(brotli::SliceWrapper::<T>::slice(&cell));
            self.0.set((now.saturating_sub(freed), most));
            StandardAlloc::default().free_cell(cell);
        }
    }

    #[test]
    fn a_stream_holds_no_more_memory_than_was_told() {
        let input: Vec<u8> = (0..3_u32 << 18)
            .flat_map(|n| (n.wrapping_mul(0x9E37_79B9) >> (n >> 15)).to_le_bytes())
            .collect();
        for lgwin in [10, 15, 16, 17, 18, 22, 24] {
            for quality in [1, 5, 9] {
                let params = BrotliEncoderParams {
                    quality,
                    lgwin,
                    ..BrotliEncoderParams::default()
                };
                let mut bytes = Vec::new();
                brotli::BrotliCompress(&mut &input[..], &mut bytes, &params).unwrap();
                let told = Decoder::memory(&InMemory::new(&bytes[..])).unwrap();
                let counting = Counting::default();
                let mut state = BrotliState::<Counting, Counting, Counting>::new_strict(
                    counting.clone(),
                    counting.clone(),
                    counting.clone(),
                );
                let mut output = vec![0; 100_000];
                let (mut available_in, mut offset) = (bytes.len(), 0);
                loop {
                    let (mut room, mut filled, mut total) = (output.len(), 0, 0);
                    let result = BrotliDecompressStream(
                        &mut available_in,
                        &mut offset,
                        &bytes,
                        &mut room,
                        &mut filled,
                        &mut output,
                        &mut total,
                        &mut state,
                    );
                    match result {
                        BrotliResult::NeedsMoreOutput => {}
                        BrotliResult::ResultSuccess => break,
                        _ => panic!("not decoded"),
                    }
                }
                let held = counting.0.get().1 + size_of::<State>();
                assert!(held as u64 <= told, "{held} {told}");
                // The fastest qualities have a window of their own.
                assert!(told <= TABLES_LEN + (3 << lgwin.max(18)) / 2, "{told}");
            }
        }
    }
}
