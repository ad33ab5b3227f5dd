//! Zstandard frames of raw blocks alone, which is what becomes of data that does not compress: pictures, films, what is packed or
//! encrypted already. It lies in the payload as it is, behind a header of three bytes every 128 KiB, so any of it can be had without
//! what lies before it, and without the copy out of a decoder's window.
//!
//! Whether a payload is such a frame is proved from its beginning to its end, header by header, before any of it is handed out: a
//! place is a block's only if all before it are where they are taken to be. Frames whose blocks, but for the last, are not all of one
//! length, or shorter than any encoder makes them by itself, are left to the decoder.

use super::stream::{BLOCK_LEN, Frame, HEADER_LEN};
use crate::codec::stream::{Payload, beginning};
use crate::error::Result;

/// The length of a block's header, in bytes: RFC 8878, section 3.1.1.2.
const BLOCK_HEADER_LEN: usize = 3;
/// The shortest blocks that are worth a read each, in bytes.
const LEAST_BLOCK_LEN: u64 = 32 << 10;

/// A frame of raw blocks being handed out.
#[derive(Clone)]
pub(in crate::codec) struct RawBlocks {
    /// Where the first block's header lies in the payload.
    first: u64,
    /// The length of every block but the last, in bytes.
    block_len: u64,
    /// The chunk's original size, in bytes.
    announced: u64,
    position: u64,
}

impl RawBlocks {
    /// Such a frame at its beginning; `None` if the payload is none.
    ///
    /// # Errors
    /// The source's.
    pub(in crate::codec) fn find(payload: &dyn Payload, announced: u64) -> Result<Option<Self>> {
        if payload.len() <= announced {
            return Ok(None);
        }
        let (bytes, len) = beginning::<{ HEADER_LEN + BLOCK_HEADER_LEN }>(payload)?;
        let bytes = bytes.get(..len).unwrap_or_default();
        let Some(blocks) = Self::parse(bytes, payload.len(), announced) else {
            return Ok(None);
        };
        let mut start = 0;
        while start < announced {
            let mut header = [0; BLOCK_HEADER_LEN];
            payload.read_at(blocks.place_of(start), &mut header)?;
            if number(header) != blocks.header_at(start) {
                return Ok(None);
            }
            start += blocks.block_len;
        }
        Ok(Some(blocks))
    }

    /// What a frame's first bytes and the payload's length tell: the lengths of the blocks, if it is one.
    fn parse(bytes: &[u8], payload_len: u64, announced: u64) -> Option<Self> {
        let frame = Frame::parse(bytes).filter(Frame::is_plain)?;
        if frame.content_len.is_some_and(|len| len != announced) {
            return None;
        }
        let block_header = bytes.get(frame.header_len..)?.first_chunk()?;
        let block_len = u64::from(number(*block_header) >> 3);
        if block_len == 0 || block_len > BLOCK_LEN.min(frame.window_len) {
            return None;
        }
        // The only one of a short chunk may be shorter.
        if block_len < LEAST_BLOCK_LEN && block_len != announced {
            return None;
        }
        let blocks = Self {
            first: frame.header_len as u64,
            block_len,
            announced,
            position: 0,
        };
        let headers = announced
            .div_ceil(block_len)
            .checked_mul(BLOCK_HEADER_LEN as u64)?;
        let end = blocks.first.checked_add(headers)?.checked_add(announced)?;
        (end == payload_len).then_some(blocks)
    }

    /// The same frame from another place in the chunk on.
    pub(in crate::codec) fn at(&self, position: u64) -> Self {
        Self {
            position,
            ..self.clone()
        }
    }

    pub(in crate::codec) fn seek(&mut self, offset: u64) -> u64 {
        self.position = offset;
        offset
    }

    /// As all decoders' `decode`.
    pub(in crate::codec) fn decode(
        &mut self,
        payload: &dyn Payload,
        output: &mut [u8],
    ) -> Result<usize> {
        let mut filled = 0;
        while filled < output.len() && self.position < self.announced {
            let start = self.position - self.position % self.block_len;
            let end = self.announced.min(start + self.block_len);
            let rest = output.get_mut(filled..).unwrap_or_default();
            let length = ((end - self.position) as usize).min(rest.len());
            let wanted = rest.get_mut(..length).unwrap_or_default();
            let behind_header = self.place_of(start) + BLOCK_HEADER_LEN as u64;
            payload.read_at(behind_header + (self.position - start), wanted)?;
            self.position += length as u64;
            filled += length;
        }
        Ok(filled)
    }

    /// Where the header of the block lies in the payload that begins at `start` of the chunk.
    fn place_of(&self, start: u64) -> u64 {
        let index = start / self.block_len;
        self.first + start + index * BLOCK_HEADER_LEN as u64
    }

    /// The header of the block that begins at `start` of the chunk: its length above a type, which is 0, and a bit that says whether it
    /// is the last.
    fn header_at(&self, start: u64) -> u32 {
        let len = self.block_len.min(self.announced.saturating_sub(start));
        let is_last = self.announced.saturating_sub(start) <= self.block_len;
        // It is 128 KiB at most.
        (len as u32) << 3 | u32::from(is_last)
    }
}

fn number([low, middle, high]: [u8; BLOCK_HEADER_LEN]) -> u32 {
    u32::from_le_bytes([low, middle, high, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::stream::tests::InMemory;
    use crate::codec::{Settings, encode};
    use crate::format::Codec;

    fn noise(len: usize) -> Vec<u8> {
        let mut number = 7_u64;
        let words = (0..len.div_ceil(8)).flat_map(|_| {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            number.to_le_bytes()
        });
        words.take(len).collect()
    }

    fn packed(input: &[u8]) -> Vec<u8> {
        let settings = Settings {
            zstd_level: 3,
            zstd_threads: 0,
            brotli_quality: 5,
            lz4_thoroughness: None,
        };
        let mut payload = Vec::new();
        encode(Codec::Zstd, input, &settings, &mut payload).unwrap();
        payload
    }

    fn find(payload: &[u8], announced: usize) -> Option<RawBlocks> {
        RawBlocks::find(&InMemory::new(payload), announced as u64).unwrap()
    }

    #[test]
    fn noise_is_handed_out_from_anywhere_as_it_was_packed() {
        for len in [1, 1000, 128 << 10, (128 << 10) + 1, (2 << 20) - 1, 3 << 20] {
            let input = noise(len);
            let payload = InMemory::new(packed(&input));
            let blocks = RawBlocks::find(&payload, len as u64).unwrap().unwrap();
            for start in [0, 1, len / 2, len - 1, (128 << 10) - 3, 256 << 10] {
                let start = start.min(len);
                for wanted in [1, 5000, 300_000, len] {
                    let mut output = vec![0; wanted];
                    let mut from = blocks.at(start as u64);
                    let filled = from.decode(&payload, &mut output).unwrap();
                    assert_eq!(filled, wanted.min(len - start), "{len} {start}");
                    assert!(output[..filled] == input[start..start + filled]);
                }
            }
        }
    }

    #[test]
    fn what_is_compressed_anywhere_or_has_a_checksum_is_no_such_frame() {
        let mut input = noise(1 << 20);
        let payload = packed(&input);
        assert!(find(&payload, input.len()).is_some());
        assert!(find(&payload, input.len() - 1).is_none());
        assert!(find(&payload[..payload.len() - 1], input.len()).is_none());
        let with_checksum = {
            let mut payload = payload.clone();
            payload[4] |= 4;
            payload
        };
        assert!(find(&with_checksum, input.len()).is_none());
        let mut with_a_bit_without_meaning = payload;
        with_a_bit_without_meaning[4] |= 8;
        assert!(find(&with_a_bit_without_meaning, input.len()).is_none());
        input[700_000..800_000].fill(7);
        assert!(find(&packed(&input), input.len()).is_none());
        assert!(find(&[], 0).is_none());
        // An empty block, which is all there is to an empty chunk.
        assert!(find(&packed(&[]), 0).is_none());
    }

    /// A frame of raw blocks, with a window of 128 KiB and no content size.
    fn frame(blocks: &[&[u8]]) -> Vec<u8> {
        let mut payload = [&super::super::FRAME_MAGIC[..], &[0, 7 << 3]].concat();
        for (number, block) in blocks.iter().enumerate() {
            let header = (block.len() << 3 | usize::from(number + 1 == blocks.len())) as u32;
            payload.extend(&header.to_le_bytes()[..3]);
            payload.extend(*block);
        }
        payload
    }

    #[test]
    fn a_frame_of_blocks_of_other_lengths_is_none_though_as_many_and_as_long_together() {
        const K: usize = 1 << 10;
        let input = noise(12 * 32 * K);
        let even: Vec<_> = input.chunks(32 * K).collect();
        let payload = frame(&even);
        assert!(find(&payload, input.len()).is_some());
        let mut output = vec![0; input.len()];
        super::super::decode_into(&payload, &mut output).unwrap();
        assert!(output == input);

        // The second block has the length of two, and at the place where the third ought to begin something that looks like it.
        let mut input = input;
        let header = ((32 * K) << 3) as u32;
        input[64 * K..64 * K + 3].copy_from_slice(&header.to_le_bytes()[..3]);
        let mut blocks = vec![&input[..32 * K], &input[32 * K..96 * K], &[]];
        blocks.extend(input[96 * K..].chunks(32 * K));
        let payload = frame(&blocks);
        super::super::decode_into(&payload, &mut output).unwrap();
        assert!(output == input);
        let frame = Frame::parse(&payload).unwrap();
        let third = frame.header_len + 2 * (3 + 32 * K);
        assert_eq!(payload[third..third + 3], header.to_le_bytes()[..3]);
        assert!(find(&payload, input.len()).is_none());
    }

    #[test]
    fn a_frame_of_tiny_blocks_is_left_to_the_decoder() {
        let input = noise(100_000);
        let blocks: Vec<_> = input.chunks(1000).collect();
        assert!(find(&frame(&blocks), input.len()).is_none());
    }
}
