//! LZ4 frames, decoded block by block straight into the chunk's buffer.
//!
//! The frame is walked here because a general frame reader has to keep a window of its own and copy out of it; with the
//! whole output in one buffer, the window of a linked block is simply what lies before it. Layout and limits are those
//! of the LZ4 frame format 1.6.x (`lz4_Frame_format.md` of the reference implementation). One frame fills the payload;
//! frames that need a dictionary are refused.
//!
//! Blocks are decoded by the reference library, which is a quarter to a third faster than what there is in Rust, and
//! encoded by `lz4_flex`: as fast, within half a percent of the size, and its blocks decode faster. What the binding to
//! the library keeps from block to block would also make short blocks depend on those the thread encoded before. Where time
//! is given for smaller files, the library's thorough encoder (LZ4_HC) searches, which `lz4_flex` has nothing like. The frame
//! is written here, too: the frame writer of `lz4_flex` copies every block and takes a quarter longer.

mod stream;

use std::cell::RefCell;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use lzzzz::{lz4, lz4_hc};
use twox_hash::XxHash32;

use super::stream::WINDOW_LEN;
use super::{Settings, cannot_encode, damaged, larger_than, shorter};
use crate::error::{Error, Result};
use crate::format::{Codec, Encoding};

pub(super) use self::stream::Decoder;

/// The first four bytes of a frame.
const FRAME_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Bit of a block's size that marks its data as not compressed.
const STORED: u32 = 1 << 31;
/// The shortest match; lengths are counted from it.
const MIN_MATCH_LEN: u64 = 4;

/// What follows a frame's last block.
const END_MARK: [u8; 4] = [0; 4];
/// The flags of the frames written here: version 1, independent blocks, a content size.
const ENCODED_FLAGS: u8 = 0b0110_1000;
/// Their block descriptor: blocks of [`ENCODED_BLOCK_LEN`].
const ENCODED_BLOCK_DESCRIPTOR: u8 = 4 << 4;
/// How much goes into a block of theirs, in bytes.
const ENCODED_BLOCK_LEN: usize = 64 << 10;

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new());
}

/// What a frame's descriptor says.
#[derive(Clone, Copy)]
struct Descriptor {
    linked: bool,
    block_checksums: bool,
    content_size: Option<u64>,
    content_checksum: bool,
    /// The most bytes a block may decode to.
    block_len: usize,
}

/// A block of a frame, its checksum verified.
enum Block<'a> {
    Stored(&'a [u8]),
    Compressed(&'a [u8]),
}

impl<'a> Block<'a> {
    /// Takes a block from the front of `rest` and verifies its checksum; `None` is the end mark.
    fn take(rest: &mut Bytes<'a>, descriptor: &Descriptor) -> Result<Option<Self>> {
        let size = u32::from_le_bytes(rest.take()?);
        let Some(len) = descriptor.data_len(size)? else {
            return Ok(None);
        };
        let data = rest.take_slice(len)?;
        if descriptor.block_checksums {
            let stored = u32::from_le_bytes(rest.take()?);
            if stored != XxHash32::oneshot(0, data) {
                return Err(refused("a block's checksum does not match"));
            }
        }
        Ok(Some(match size & STORED {
            0 => Block::Compressed(data),
            _ => Block::Stored(data),
        }))
    }

    /// Decodes into `target`, at most `block_len` bytes, and says how many. A match may reach back into `window`, which
    /// is fastest if it lies right before the target.
    fn decode(
        &self,
        target: &mut [u8],
        window: &[u8],
        block_len: usize,
        announced: u64,
    ) -> Result<usize> {
        let room = target.len().min(block_len);
        let target = target.get_mut(..room).unwrap_or_default();
        match self {
            Block::Stored(data) => {
                target
                    .get_mut(..data.len())
                    .ok_or_else(|| larger_than(Codec::Lz4, announced))?
                    .copy_from_slice(data);
                Ok(data.len())
            }
            Block::Compressed(data) => match window {
                [] => lz4::decompress(data, target),
                _ => lz4::decompress_with_dict(data, target, window),
            }
            // The library says no more than that it failed.
            .map_err(|_| match compressed_len(data) {
                Ok(len) if room < block_len && len > room as u64 => {
                    larger_than(Codec::Lz4, announced)
                }
                Ok(_) => refused("not a valid block"),
                Err(error) => error,
            }),
        }
    }

    /// How many bytes it decodes to; no byte is decoded for it.
    fn decoded_len(&self) -> Result<u64> {
        match self {
            Block::Stored(data) => Ok(data.len() as u64),
            Block::Compressed(data) => compressed_len(data),
        }
    }
}

/// The blocks of a frame, in order; `None` is the end mark.
struct Blocks<'a> {
    rest: Bytes<'a>,
    descriptor: Descriptor,
}

impl<'a> Blocks<'a> {
    fn open(payload: &'a [u8]) -> Result<Self> {
        let mut rest = Bytes(payload);
        let descriptor = Descriptor::parse(&mut rest)?;
        Ok(Self { rest, descriptor })
    }

    fn next(&mut self) -> Result<Option<Block<'a>>> {
        Block::take(&mut self.rest, &self.descriptor)
    }

    /// The content checksum, if the frame has one; called behind the end mark. Nothing may follow.
    fn finish(mut self) -> Result<Option<u32>> {
        let checksum = match self.descriptor.content_checksum {
            true => Some(u32::from_le_bytes(self.rest.take()?)),
            false => None,
        };
        if !self.rest.0.is_empty() {
            return Err(refused("bytes behind the end of the frame"));
        }
        Ok(checksum)
    }
}

impl Descriptor {
    fn parse(rest: &mut Bytes<'_>) -> Result<Self> {
        if rest.take()? != FRAME_MAGIC {
            return Err(refused("not an LZ4 frame"));
        }
        let descriptor = rest.0;
        let [flags, block_descriptor] = rest.take()?;
        if flags >> 6 != 1 {
            return Err(refused("unknown version of the frame format"));
        }
        if flags & 0b10 != 0 || block_descriptor & 0b1000_1111 != 0 {
            return Err(refused("reserved bits are set in the frame header"));
        }
        if flags & 0b1 != 0 {
            return Err(refused("the frame needs a dictionary"));
        }
        let block_len = match block_descriptor >> 4 {
            4 => 64 << 10,
            5 => 256 << 10,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => return Err(refused("unknown block size in the frame header")),
        };
        let content_size = match flags & 0b1000 {
            0 => None,
            _ => Some(u64::from_le_bytes(rest.take()?)),
        };
        let (described, _) = descriptor
            .split_at_checked(descriptor.len().saturating_sub(rest.0.len()))
            .ok_or_else(cut_short)?;
        let [checksum] = rest.take()?;
        if checksum != (XxHash32::oneshot(0, described) >> 8) as u8 {
            return Err(refused("the frame header's checksum does not match"));
        }
        Ok(Self {
            linked: flags & 0b10_0000 == 0,
            block_checksums: flags & 0b1_0000 != 0,
            content_size,
            content_checksum: flags & 0b100 != 0,
            block_len,
        })
    }

    /// Holds the content size, if the frame has one, against the announced one.
    fn check_content_size(&self, announced: u64) -> Result<()> {
        match self.content_size {
            Some(size) if size > announced => Err(larger_than(Codec::Lz4, announced)),
            Some(size) if size < announced => Err(shorter(Codec::Lz4, announced, size)),
            _ => Ok(()),
        }
    }

    /// The length of a block's data from its size field, in bytes; `None` is the end mark.
    fn data_len(&self, size: u32) -> Result<Option<usize>> {
        match (size & !STORED) as usize {
            _ if size == 0 => Ok(None),
            len if len > self.block_len => Err(refused("a block larger than the frame allows")),
            len => Ok(Some(len)),
        }
    }
}

pub(super) fn decode_into(payload: &[u8], output: &mut [u8]) -> Result<()> {
    let announced = output.len();
    let mut blocks = Blocks::open(payload)?;
    blocks.descriptor.check_content_size(announced as u64)?;
    let mut len = 0_usize;
    while let Some(block) = blocks.next()? {
        let (done, rest) = output.split_at_mut_checked(len).ok_or_else(cut_short)?;
        let window = match blocks.descriptor.linked {
            true => done
                .get(len.saturating_sub(WINDOW_LEN)..)
                .unwrap_or_default(),
            false => &[],
        };
        len += block.decode(rest, window, blocks.descriptor.block_len, announced as u64)?;
    }
    if len != announced {
        return Err(shorter(Codec::Lz4, announced as u64, len as u64));
    }
    if let Some(stored) = blocks.finish()?
        && stored != XxHash32::oneshot(0, output)
    {
        return Err(refused("the frame's content checksum does not match"));
    }
    Ok(())
}

/// Decodes a bare block.
pub(super) fn decode_block_into(payload: &[u8], output: &mut [u8]) -> Result<()> {
    let announced = output.len() as u64;
    let refusal = |found: u64| match found {
        found if found < announced => shorter(Encoding::Lz4Block, announced, found),
        found if found > announced => larger_than(Encoding::Lz4Block, announced),
        _ => damaged(Encoding::Lz4Block, "not a valid block"),
    };
    match lz4::decompress(payload, output) {
        Ok(len) if len as u64 == announced => Ok(()),
        Ok(len) => Err(refusal(len as u64)),
        // The library says no more than that it failed.
        Err(_) => Err(refusal(measure_block(payload)?)),
    }
}

/// The length a bare block decodes to, in bytes.
pub(super) fn measure_block(payload: &[u8]) -> Result<u64> {
    compressed_len(payload).map_err(|_| damaged(Encoding::Lz4Block, "the payload ends too early"))
}

pub(super) fn decoded_len(beginning: &[u8]) -> Option<u64> {
    Descriptor::parse(&mut Bytes(beginning)).ok()?.content_size
}

pub(super) fn measure(payload: &[u8], limit: u64) -> Result<u64> {
    let mut blocks = Blocks::open(payload)?;
    let content_size = blocks.descriptor.content_size;
    let mut len = 0_u64;
    while let Some(block) = blocks.next()? {
        len += block.decoded_len()?;
        if len > limit {
            return Err(larger_than(Codec::Lz4, limit));
        }
    }
    if content_size.is_some_and(|size| size != len) {
        return Err(refused("the frame's content size is not its content's"));
    }
    blocks.finish()?;
    Ok(len)
}

/// The length a compressed block decodes to, from its sequences' lengths alone.
fn compressed_len(block: &[u8]) -> Result<u64> {
    let mut rest = Bytes(block);
    let mut len = 0_u64;
    loop {
        let [token] = rest.take()?;
        let literals = rest.length(token >> 4)?;
        rest.take_slice(usize::try_from(literals).map_err(refused)?)?;
        len += literals;
        if rest.0.is_empty() {
            return Ok(len);
        }
        let _match_offset: [u8; 2] = rest.take()?;
        len += MIN_MATCH_LEN + rest.length(token & 0xf)?;
    }
}

/// Writes one frame of independent blocks, so that one of them can be decoded without those before it. Its descriptor has
/// the content size and no checksums but its own.
pub(super) fn encode(input: &[u8], settings: &Settings, output: &mut Vec<u8>) -> Result<()> {
    output.extend_from_slice(&FRAME_MAGIC);
    let described = output.len();
    output.extend_from_slice(&[ENCODED_FLAGS, ENCODED_BLOCK_DESCRIPTOR]);
    output.extend_from_slice(&(input.len() as u64).to_le_bytes());
    let checksum = XxHash32::oneshot(0, output.get(described..).unwrap_or_default()) >> 8;
    output.push(checksum as u8);
    ENCODER.with_borrow_mut(|encoder| {
        for block in input.chunks(ENCODED_BLOCK_LEN) {
            let data = encoder.encode(block, settings.lz4_thoroughness)?;
            // At most 64 KiB, far from the bit.
            let (data, stored) = match data.len() < block.len() {
                true => (data, 0),
                false => (block, STORED),
            };
            output.extend_from_slice(&(data.len() as u32 | stored).to_le_bytes());
            output.extend_from_slice(data);
        }
        Ok::<(), Error>(())
    })?;
    output.extend_from_slice(&END_MARK);
    Ok(())
}

/// What encoding a block takes, kept per thread. A block does not depend on those before it: the table is cleared for each.
struct Encoder {
    table: CompressTable,
    /// As long as a block may become at worst.
    block: Vec<u8>,
}

impl Encoder {
    fn new() -> Self {
        Self {
            // The small one is for less than a whole block.
            table: CompressTable::large(),
            block: vec![0; get_maximum_output_size(ENCODED_BLOCK_LEN)],
        }
    }

    fn encode(&mut self, block: &[u8], thoroughness: Option<i32>) -> Result<&[u8]> {
        let len = match thoroughness {
            None => compress_into_with_table(block, &mut self.block, &mut self.table)
                .map_err(|error| cannot_encode(Codec::Lz4, error)),
            Some(level) => lz4_hc::compress(block, &mut self.block, level)
                .map_err(|error| cannot_encode(Codec::Lz4, error)),
        }?;
        Ok(self.block.get(..len).unwrap_or_default())
    }
}

/// A cursor over a payload.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or_else(cut_short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn take_slice(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(cut_short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A sequence's length: four bits of its token, continued in further bytes if all are set.
    fn length(&mut self, bits: u8) -> Result<u64> {
        let mut length = u64::from(bits);
        let mut more = bits == 15;
        while more {
            let [byte] = self.take()?;
            length += u64::from(byte);
            more = byte == 255;
        }
        Ok(length)
    }
}

fn refused(detail: impl ToString) -> Error {
    damaged(Codec::Lz4, detail)
}

fn cut_short() -> Error {
    refused("the payload ends too early")
}

#[cfg(test)]
mod tests {
    use super::super::tests::compressible;
    use super::*;
    use std::io::{Read, Write};

    use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_kind_of_frame_is_decoded_and_measured(
            words in proptest::collection::vec((any::<u16>(), 1_usize..9_000), 0..40),
            linked in any::<bool>(),
            block_checksums in any::<bool>(),
            content_checksum in any::<bool>(),
            sized in any::<bool>(),
            block_size in proptest::sample::select(vec![
                BlockSize::Max64KB, BlockSize::Max256KB, BlockSize::Max1MB, BlockSize::Max4MB,
            ]),
            place in any::<prop::sample::Index>(),
        ) {
            let input: Vec<u8> = words
                .iter()
                .flat_map(|&(word, times)| {
                    (0..times as u32).flat_map(move |n| (u32::from(word) ^ (n / 97)).to_le_bytes())
                })
                .collect();
            let mode = if linked { BlockMode::Linked } else { BlockMode::Independent };
            let frame = FrameInfo::new()
                .block_mode(mode)
                .block_size(block_size)
                .block_checksums(block_checksums)
                .content_checksum(content_checksum)
                .content_size(sized.then_some(input.len() as u64));
            let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
            encoder.write_all(&input).unwrap();
            let mut payload = encoder.finish().unwrap();
            let mut output = vec![0; input.len()];
            decode_into(&payload, &mut output).unwrap();
            prop_assert!(output == input);
            prop_assert_eq!(decoded_len(&payload), sized.then_some(input.len() as u64));
            prop_assert_eq!(measure(&payload, u64::MAX).unwrap(), input.len() as u64);
            let place = place.index(payload.len());
            payload[place] ^= 1;
            // A checksum over the content finds every flipped bit; the header has one of its own.
            let result = decode_into(&payload, &mut output);
            if (content_checksum && !input.is_empty()) || place < 7 {
                prop_assert!(result.is_err() || output == input);
            }
        }
    }

    #[test]
    fn another_reader_takes_the_frames_written_here() {
        let mut noise = 1_u64;
        let noisy: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (noise >> 56) as u8
        })
        .take(200_000)
        .collect();
        let words: Vec<u8> = (0..100_000_u32)
            .flat_map(|n| (n / 9).to_le_bytes())
            .collect();
        let block = ENCODED_BLOCK_LEN;
        for input in [&noisy, &words] {
            for len in [0, 1, 13, block - 1, block, block + 1, 3 * block, 200_000] {
                let mut payload = Vec::new();
                for thoroughness in [None, Some(9), Some(12)] {
                    payload.clear();
                    encode(&input[..len], &settings(thoroughness), &mut payload).unwrap();
                    let mut read = Vec::new();
                    FrameDecoder::new(&payload[..])
                        .read_to_end(&mut read)
                        .unwrap();
                    assert!(read == input[..len], "{len} bytes");
                    // Stored blocks cost their size fields alone.
                    assert!(payload.len() <= 19 + len + 4 * len.div_ceil(block));
                }
            }
        }
    }

    fn settings(lz4_thoroughness: Option<i32>) -> Settings {
        Settings {
            lz4_thoroughness,
            ..super::super::tests::SETTINGS
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_frame_does_not_depend_on_what_was_encoded_before(
            inputs in proptest::collection::vec(compressible(), 2..6),
            thoroughness in proptest::sample::select(vec![None, Some(9), Some(12)]),
        ) {
            let settings = settings(thoroughness);
            let one_after_the_other: Vec<_> = inputs.iter().map(|input| {
                let mut payload = Vec::new();
                encode(input, &settings, &mut payload).unwrap();
                payload
            }).collect();
            for (input, found) in inputs.into_iter().zip(one_after_the_other) {
                let alone = std::thread::spawn(move || {
                    let mut payload = Vec::new();
                    encode(&input, &settings, &mut payload).unwrap();
                    payload
                });
                prop_assert!(alone.join().unwrap() == found);
            }
        }
    }

    #[test]
    fn bare_blocks_decode_to_their_own_length_and_no_other() {
        let words: Vec<u8> = (0..70_000_u32)
            .flat_map(|n| (n / 9).to_le_bytes())
            .collect();
        for input in [&b"a"[..], b"0123456789", &words, &[7; 100_000]] {
            let block = lz4_flex::block::compress(input);
            let mut output = vec![0; input.len()];
            decode_block_into(&block, &mut output).unwrap();
            assert!(output == input);
            assert_eq!(measure_block(&block).unwrap(), input.len() as u64);
            for wrong in [input.len() - 1, input.len() + 1] {
                let refused = decode_block_into(&block, &mut vec![0; wrong]);
                assert!(refused.unwrap_err().is_damage(), "{wrong}");
            }
            let cut = block.get(..block.len() - 1).unwrap_or_default();
            assert!(decode_block_into(cut, &mut output).is_err());
        }
        assert!(decode_block_into(b"", &mut []).is_err());
    }

    #[test]
    fn frames_of_the_python_package_with_linked_blocks_decode() {
        // One chunk of 100,003 - 3 * 32,768 bytes and three of 32,768: see `manifest.json`.
        let file = include_bytes!("../../tests/data/v2-lz4-none.warp");
        let first_size = u64::from_le_bytes(file[18..26].try_into().unwrap()) as usize;
        let payload = &file[18 + 4 * 16..][..first_size];
        assert_eq!(decoded_len(payload), Some(32_768));
        let mut output = vec![0; 32_768];
        decode_into(payload, &mut output).unwrap();
        let original = include_bytes!("../../tests/data/mixed.bin");
        assert!(output == original[..32_768]);
    }
}
