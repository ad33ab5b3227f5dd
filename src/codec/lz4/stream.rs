//! LZ4 frames a piece at a time: block after block, straight into the caller's piece wherever a whole block fits, else
//! into a block of the stream's own that the next piece goes on from.
//!
//! Linked blocks need the 64 KiB before them. Independent ones do not, so the stream can be moved to any of them, if it
//! is certain what the blocks hold: a frame may end a block early anywhere, and then nothing tells where the next one's
//! bytes belong. It is certain where all blocks together must be full to make up the chunk, which the sizes in the
//! payload and the length of the last block show.

use std::hash::Hasher;
use std::ops::Range;

use twox_hash::XxHash32;

use super::{Block, Bytes, Descriptor, refused};
use crate::codec::stream::{
    Appetite, Input, Payload, STEP_LEN, WINDOW_LEN, WINDOW_ROOM, Window, beginning,
};
use crate::codec::{SIZE_PROBE_LEN, shorter};
use crate::error::Result;
use crate::format::Codec;

/// The length of a block's size, and of each checksum, in bytes.
const FIELD_LEN: usize = 4;

/// A frame being decoded.
pub(in crate::codec) struct Decoder {
    descriptor: Descriptor,
    /// Where the first block's size lies in the payload.
    first_block: u64,
    /// The chunk's original size, in bytes.
    announced: u64,
    /// Where the next block's size lies in the payload.
    consumed: u64,
    /// Where the next block's bytes belong in the chunk.
    decoded: u64,
    /// The last [`WINDOW_LEN`] bytes before `decoded`, if the blocks are linked.
    window: Window,
    /// Room for a block that does not fit into its piece. It stays as long as it was: clearing it for each of many small blocks
    /// would take longer than decoding them.
    block: Vec<u8>,
    /// How much of its beginning the last block is, which ends at `decoded`, in bytes.
    held: usize,
    /// How much of that has been handed out, in bytes.
    taken: usize,
    /// What has been decoded, hashed; `None` if there is nothing to compare it with, or some of it was left out.
    hasher: Option<XxHash32>,
    /// Whether the end mark has been met.
    ended: bool,
    places: Places,
    /// Of a branch, where the payload of its last block ends.
    end: Option<u64>,
}

/// Where the blocks are.
enum Places {
    /// Nobody asked yet.
    Unknown,
    /// The places of the blocks' sizes in the payload; all blocks but the last are full. The last place is the end mark's.
    Full(Box<[u64]>),
    /// It cannot be told without decoding.
    Untold,
}

impl Decoder {
    /// See [`crate::codec::Stream::memory`].
    pub(in crate::codec) fn memory(payload: &dyn Payload, announced: u64) -> Result<u64> {
        let (descriptor, _) = read_descriptor(payload)?;
        let block_len = descriptor.block_len as u64;
        Ok(match descriptor.linked {
            true => WINDOW_ROOM as u64,
            false => announced
                .div_ceil(block_len)
                .saturating_add(1)
                .saturating_mul(size_of::<u64>() as u64),
        }
        .saturating_add(block_len.min(announced)))
    }

    /// See [`crate::codec::Stream::fetched`].
    pub(in crate::codec) fn fetched(payload: &dyn Payload, announced: u64) -> Result<u64> {
        let (descriptor, _) = read_descriptor(payload)?;
        let longest = longest_data(&descriptor, announced).min(payload.len());
        let with_fields = longest.saturating_add(2 * FIELD_LEN as u64);
        Ok(match with_fields > STEP_LEN as u64 {
            true => with_fields,
            false => 0,
        })
    }

    /// See [`crate::codec::Stream::checks_content`].
    pub(in crate::codec) fn checks_content(payload: &dyn Payload) -> Result<bool> {
        Ok(read_descriptor(payload)?.0.content_checksum)
    }

    /// See [`crate::codec::Stream::has_parts`].
    pub(in crate::codec) fn has_parts(payload: &dyn Payload, length: u64) -> Result<bool> {
        let (descriptor, _) = read_descriptor(payload)?;
        Ok(!descriptor.linked && length.is_multiple_of(descriptor.block_len as u64))
    }

    pub(in crate::codec) fn open(payload: &dyn Payload, announced: u64) -> Result<Self> {
        let (descriptor, first_block) = read_descriptor(payload)?;
        descriptor.check_content_size(announced)?;
        Ok(Self {
            hasher: descriptor.content_checksum.then(|| XxHash32::with_seed(0)),
            places: match descriptor.linked {
                true => Places::Untold,
                false => Places::Unknown,
            },
            descriptor,
            first_block,
            announced,
            consumed: first_block,
            decoded: 0,
            window: Window::default(),
            block: Vec::new(),
            held: 0,
            taken: 0,
            ended: false,
            end: None,
        })
    }

    pub(in crate::codec) fn decode(
        &mut self,
        input: &mut Input<'_>,
        output: &mut [u8],
    ) -> Result<usize> {
        let mut filled = self.take(output);
        // From here on the window lacks what is in the output.
        let mut noted = filled;
        while filled < output.len() && !self.ended {
            let Some(total_len) = self.next_len(input.from(self.consumed, FIELD_LEN)?)? else {
                self.finish(input)?;
                break;
            };
            let mut bytes = Bytes(input.from(self.consumed, total_len)?);
            let Some(block) = Block::take(&mut bytes, &self.descriptor)? else {
                break;
            };
            let (done, rest) = output.split_at_mut(filled);
            let room = usize::try_from(self.announced.saturating_sub(self.decoded))
                .unwrap_or(usize::MAX)
                .min(self.descriptor.block_len);
            let window = if !self.descriptor.linked {
                &[]
            } else if let Some(last) = done.last_chunk::<WINDOW_LEN>() {
                last
            } else {
                self.window.push(done.get(noted..).unwrap_or_default());
                noted = filled;
                self.window.bytes()
            };
            let fits = rest.len() >= room;
            (self.held, self.taken) = (0, 0);
            let target = match fits {
                true => rest.get_mut(..room).unwrap_or_default(),
                false => {
                    if let Some(more) = room.checked_sub(self.block.len()) {
                        self.block.reserve_exact(more);
                        self.block.resize(room, 0);
                    }
                    self.block.get_mut(..room).unwrap_or_default()
                }
            };
            let len = block.decode(target, window, self.descriptor.block_len, self.announced)?;
            self.decoded = self.decoded.saturating_add(len as u64);
            self.consumed = self.consumed.saturating_add(total_len as u64);
            if let Some(hasher) = &mut self.hasher {
                hasher.write(target.get(..len).unwrap_or_default());
            }
            if len < room {
                // Whoever comes by another way must not find other bytes: where there is a seat for every block, one
                // that does not fill its own makes the chunk too short.
                if matches!(self.places, Places::Unknown) {
                    self.places = self.find_blocks(input.payload())?;
                }
                if matches!(self.places, Places::Full(_)) {
                    return Err(shorter(Codec::Lz4, self.announced, self.decoded));
                }
            }
            if fits {
                filled += len;
            } else {
                self.held = len;
                if self.descriptor.linked {
                    self.window
                        .push(output.get(noted..filled).unwrap_or_default());
                    self.window.push(self.block.get(..len).unwrap_or_default());
                }
                filled += self.take(output.get_mut(filled..).unwrap_or_default());
                noted = filled;
            }
        }
        if self.descriptor.linked {
            self.window
                .push(output.get(noted..filled).unwrap_or_default());
        }
        Ok(filled)
    }

    /// See [`crate::codec::Stream::seek`]; `None` if it stays where it is.
    pub(in crate::codec) fn seek(
        &mut self,
        payload: &dyn Payload,
        offset: u64,
    ) -> Result<Option<u64>> {
        let held_from = self.decoded.saturating_sub(self.held as u64);
        if (held_from..=self.decoded).contains(&offset) {
            self.taken = usize::try_from(offset - held_from).unwrap_or_default();
            return Ok(Some(offset));
        }
        self.survey(payload)?;
        let block_len = self.descriptor.block_len as u64;
        let index = offset / block_len;
        let Places::Full(places) = &self.places else {
            return Ok(None);
        };
        let Some(&place) = usize::try_from(index)
            .ok()
            .and_then(|index| places.get(index))
        else {
            return Ok(None);
        };
        if place != self.consumed {
            let whole = self.descriptor.content_checksum && index == 0;
            self.hasher = whole.then(|| XxHash32::with_seed(0));
        }
        self.consumed = place;
        self.decoded = index * block_len;
        (self.held, self.taken) = (0, 0);
        self.ended = false;
        Ok(Some(self.decoded))
    }

    /// See [`crate::codec::Stream::survey`].
    pub(in crate::codec) fn survey(&mut self, payload: &dyn Payload) -> Result<()> {
        if matches!(self.places, Places::Unknown) {
            self.places = self.find_blocks(payload)?;
        }
        Ok(())
    }

    /// See [`crate::codec::Stream::branch`].
    pub(in crate::codec) fn branch(&self, bytes: &Range<u64>) -> Option<Self> {
        let Places::Full(places) = &self.places else {
            return None;
        };
        let block_len = self.descriptor.block_len as u64;
        let ends_with_a_block = bytes.end.is_multiple_of(block_len) || bytes.end == self.announced;
        if !bytes.start.is_multiple_of(block_len) || !ends_with_a_block {
            return None;
        }
        let index = usize::try_from(bytes.start / block_len).ok()?;
        let next = usize::try_from(bytes.end.div_ceil(block_len)).ok()?;
        Some(Self {
            descriptor: self.descriptor,
            first_block: self.first_block,
            announced: self.announced,
            consumed: *places.get(index)?,
            decoded: bytes.start,
            window: Window::default(),
            block: Vec::new(),
            held: 0,
            taken: 0,
            hasher: None,
            ended: false,
            // All blocks are full; where the others are is no matter to it.
            places: Places::Full(Box::default()),
            // Behind the chunk's last block comes what ends the frame.
            end: match bytes.end == self.announced {
                true => None,
                false => Some(*places.get(next)?),
            },
        })
    }

    /// Where the payload of what this goes through ends, if it is a branch that ends before the chunk does.
    pub(in crate::codec) fn end(&self) -> Option<u64> {
        self.end
    }

    /// Hands out what is left of the last block.
    fn take(&mut self, output: &mut [u8]) -> usize {
        let left = self.block.get(self.taken..self.held);
        let left = left.unwrap_or_default();
        let len = left.len().min(output.len());
        if let (Some(left), Some(output)) = (left.get(..len), output.get_mut(..len)) {
            output.copy_from_slice(left);
        }
        self.taken += len;
        len
    }

    /// How much of the payload the block takes that `bytes` begin with, in bytes; `None` is the end mark.
    fn next_len(&self, bytes: &[u8]) -> Result<Option<usize>> {
        let size = u32::from_le_bytes(Bytes(bytes).take()?);
        let fields = match self.descriptor.block_checksums {
            true => 2 * FIELD_LEN,
            false => FIELD_LEN,
        };
        match self.descriptor.data_len(size)? {
            // Before it is fetched: nobody was told of so much.
            Some(len) if len as u64 > longest_data(&self.descriptor, self.announced) => {
                Err(refused("a block larger than its chunk could be"))
            }
            len => Ok(len.map(|len| len + fields)),
        }
    }

    /// Called at the end mark. What follows it is the content checksum, if the frame has one, and nothing else.
    fn finish(&mut self, input: &mut Input<'_>) -> Result<()> {
        let checksum_len = match self.descriptor.content_checksum {
            true => FIELD_LEN,
            false => 0,
        };
        let len = FIELD_LEN + checksum_len;
        if self.consumed.saturating_add(len as u64) < input.len() {
            return Err(refused("bytes behind the end of the frame"));
        }
        let mut bytes = Bytes(input.from(self.consumed, len)?);
        let _end_mark: [u8; FIELD_LEN] = bytes.take()?;
        if self.descriptor.content_checksum {
            let stored = u32::from_le_bytes(bytes.take()?);
            if self
                .hasher
                .as_ref()
                .is_some_and(|hasher| hasher.finish_32() != stored)
            {
                return Err(refused("the frame's content checksum does not match"));
            }
        }
        self.ended = true;
        Ok(())
    }

    /// Walks from block to block by their sizes.
    fn find_blocks(&self, payload: &dyn Payload) -> Result<Places> {
        let block_len = self.descriptor.block_len as u64;
        let Ok(count) = usize::try_from(self.announced.div_ceil(block_len)) else {
            return Ok(Places::Untold);
        };
        // Nothing is allocated for blocks that cannot be there: each takes its size and a byte at least.
        if (count as u64).saturating_mul(FIELD_LEN as u64 + 1) > payload.len() {
            return Ok(Places::Untold);
        }
        let mut places = Vec::with_capacity(count + 1);
        let mut place = self.first_block;
        loop {
            let mut size = [0; FIELD_LEN];
            if place.saturating_add(FIELD_LEN as u64) > payload.len() {
                return Ok(Places::Untold);
            }
            payload.read_at(place, &mut size)?;
            let len = self.next_len(&size).unwrap_or_default();
            if len.is_some() != (places.len() < count) {
                return Ok(Places::Untold);
            }
            places.push(place);
            let Some(len) = len else {
                break;
            };
            place = place.saturating_add(len as u64);
        }
        let full = match self.announced % block_len {
            0 => true,
            last_len => self.last_block_len(payload, &places)? == Some(last_len),
        };
        Ok(match full {
            true => Places::Full(places.into_boxed_slice()),
            false => Places::Untold,
        })
    }

    /// How much the last of these blocks decodes to, in bytes.
    fn last_block_len(&self, payload: &dyn Payload, places: &[u64]) -> Result<Option<u64>> {
        let [.., place, end] = places else {
            return Ok(None);
        };
        let len = usize::try_from(end - place).unwrap_or(usize::MAX);
        let mut input = Input::open(payload, Appetite::Until(*end));
        let mut bytes = Bytes(input.from(*place, len)?);
        let block = Block::take(&mut bytes, &self.descriptor);
        Ok(block
            .ok()
            .flatten()
            .and_then(|block| block.decoded_len().ok()))
    }
}

/// The most bytes that a block of a chunk of `announced` bytes takes, its fields aside: what is in it, and a byte for every 255 of them
/// and a few that no shorter match makes up for.
fn longest_data(descriptor: &Descriptor, announced: u64) -> u64 {
    let block_len = descriptor.block_len as u64;
    let content_len = announced.min(block_len);
    (content_len + content_len / 255 + 16).min(block_len)
}

/// The descriptor that the payload begins with, and where the first block follows it.
fn read_descriptor(payload: &dyn Payload) -> Result<(Descriptor, u64)> {
    let (bytes, len) = beginning::<SIZE_PROBE_LEN>(payload)?;
    let mut rest = Bytes(bytes.get(..len).unwrap_or_default());
    let descriptor = Descriptor::parse(&mut rest)?;
    let descriptor_len = len - rest.0.len();
    Ok((descriptor, descriptor_len as u64))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

    use super::*;
    use crate::codec::Stream;
    use crate::codec::stream::tests::InMemory;

    const BLOCK_LEN: usize = 64 << 10;

    fn input(len: usize) -> Vec<u8> {
        (0..len as u32 / 4 + 1)
            .flat_map(|n| (n / 3).to_le_bytes())
            .take(len)
            .collect()
    }

    /// A frame of independent blocks that are ended at these places of the input.
    fn frame(input: &[u8], ends: &[usize]) -> InMemory {
        let frame = FrameInfo::new()
            .block_mode(BlockMode::Independent)
            .block_size(BlockSize::Max64KB);
        let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
        let mut start = 0;
        for &end in ends {
            encoder.write_all(&input[start..end]).unwrap();
            encoder.flush().unwrap();
            start = end;
        }
        encoder.write_all(&input[start..]).unwrap();
        InMemory::new(encoder.finish().unwrap())
    }

    #[test]
    fn full_independent_blocks_are_gone_to_forwards_and_backwards() {
        for len in [BLOCK_LEN * 5, BLOCK_LEN * 5 + 1, BLOCK_LEN * 6 - 1, 10, 0] {
            let input = input(len);
            let payload = frame(&input, &[]);
            let mut stream = Stream::open(Codec::Lz4, &payload, len as u64).unwrap();
            for offset in [300_000, 70_000, 65_536, 65_535, 0, 5, len, 140_000, 131_072] {
                let offset = offset.min(len);
                let position = stream.seek(&payload, offset as u64).unwrap() as usize;
                assert!(position <= offset && offset - position <= BLOCK_LEN);
                let mut output = vec![0; (offset + 10).min(len) - position];
                stream.decode(&payload, &mut output).unwrap();
                assert!(output == input[position..][..output.len()]);
            }
        }
    }

    #[test]
    fn whole_independent_blocks_are_branched_off_and_nothing_else() {
        let len = BLOCK_LEN * 5 + 9;
        let input = input(len);
        let payload = frame(&input, &[]);
        let mut stream = Stream::open(Codec::Lz4, &payload, len as u64).unwrap();
        assert!(stream.branch(&(0..len as u64)).is_none(), "not surveyed");
        stream.survey(&payload).unwrap();
        let starts = (0..5).map(|block| block * BLOCK_LEN);
        for (start, end) in starts.flat_map(|start| [(start, start + BLOCK_LEN), (start, len)]) {
            let mut branch = stream.branch(&(start as u64..end as u64)).unwrap();
            let mut output = vec![0; end - start];
            branch.decode(&payload, &mut output).unwrap();
            assert!(output == input[start..end]);
        }
        for (start, end) in [(1, BLOCK_LEN), (0, BLOCK_LEN + 1), (0, len - 1)] {
            assert!(stream.branch(&(start as u64..end as u64)).is_none());
        }
        let payload = frame(&input, &[BLOCK_LEN * 2 + 7]);
        let mut stream = Stream::open(Codec::Lz4, &payload, len as u64).unwrap();
        stream.survey(&payload).unwrap();
        assert!(stream.branch(&(0..BLOCK_LEN as u64)).is_none());
    }

    #[test]
    fn a_frame_that_ends_a_block_early_is_not_moved_about_in() {
        let input = input(BLOCK_LEN * 5 + 20);
        for ends in [&[BLOCK_LEN * 2 + 7][..], &[10], &[BLOCK_LEN * 5 - 30]] {
            let payload = frame(&input, ends);
            let mut stream = Stream::open(Codec::Lz4, &payload, input.len() as u64).unwrap();
            assert_eq!(stream.seek(&payload, 200_000).unwrap(), 0);
            let mut output = vec![0; input.len()];
            stream.decode(&payload, &mut output).unwrap();
            assert!(output == input);
        }
    }

    #[test]
    fn a_block_that_ends_early_where_all_must_be_full_is_refused_whichever_way_one_comes() {
        let input = input(BLOCK_LEN * 3 - 1000);
        let payload = frame(&input, &[BLOCK_LEN - 1000]);
        let announced = BLOCK_LEN as u64 * 3;
        let mut stream = Stream::open(Codec::Lz4, &payload, announced).unwrap();
        let mut output = vec![0; BLOCK_LEN];
        assert!(stream.decode(&payload, &mut output).is_err());
        // Gone to, the others have their seats; whoever comes through the short one must not find them elsewhere.
        let mut stream = Stream::open(Codec::Lz4, &payload, announced).unwrap();
        assert_eq!(stream.seek(&payload, announced / 3).unwrap(), announced / 3);
        stream.decode(&payload, &mut output).unwrap();
        assert!(output == input[BLOCK_LEN - 1000..][..BLOCK_LEN]);
    }

    #[test]
    fn within_the_block_at_hand_any_frame_is_moved_about_in() {
        let input = input(BLOCK_LEN * 2);
        let payload = frame(&input, &[BLOCK_LEN / 2]);
        let mut stream = Stream::open(Codec::Lz4, &payload, input.len() as u64).unwrap();
        stream.decode(&payload, &mut [0; 1000]).unwrap();
        assert_eq!(stream.seek(&payload, 400).unwrap(), 400);
        let mut output = vec![0; BLOCK_LEN];
        stream.decode(&payload, &mut output).unwrap();
        assert!(output == input[400..][..BLOCK_LEN]);
    }

    #[test]
    fn what_is_fetched_of_large_blocks_is_told_and_no_more_is_fetched_of_what_claims_more() {
        let mut number = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            number = number.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
            (number >> 24) as u8
        })
        .take(5 << 20)
        .collect();
        for (block_size, expected) in [
            (BlockSize::Max64KB, 0),
            (BlockSize::Max256KB, (256 << 10) + 8),
            (BlockSize::Max4MB, (4 << 20) + 8),
        ] {
            let frame = FrameInfo::new().block_size(block_size);
            let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
            encoder.write_all(&noise).unwrap();
            let payload = InMemory::new(encoder.finish().unwrap());
            let len = noise.len() as u64;
            let told = Decoder::fetched(&payload, len).unwrap();
            assert_eq!(told, expected);
            let mut decoder = Decoder::open(&payload, len).unwrap();
            let mut source = Input::open(&payload, Appetite::About(10_000));
            decoder.decode(&mut source, &mut [0; 10_000]).unwrap();
            assert!(source.room() as u64 <= told.max(STEP_LEN as u64));
            // Announced to be short, it is refused for its length alone.
            assert!(Decoder::fetched(&payload, 200_000).unwrap() < 202_000);
            let mut decoder = Decoder::open(&payload, 200_000).unwrap();
            let mut source = Input::open(&payload, Appetite::About(10_000));
            let outcome = decoder.decode(&mut source, &mut vec![0; 200_000]);
            assert!(outcome.is_err());
            assert!(source.room() <= STEP_LEN);
        }
    }

    #[test]
    fn a_stream_holds_no_more_memory_than_was_told() {
        for linked in [true, false] {
            for block_size in [BlockSize::Max64KB, BlockSize::Max4MB] {
                let input = input(BLOCK_LEN * 20 + 9);
                let frame = FrameInfo::new()
                    .block_mode(match linked {
                        true => BlockMode::Linked,
                        false => BlockMode::Independent,
                    })
                    .block_size(block_size);
                let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
                encoder.write_all(&input).unwrap();
                let payload = InMemory::new(encoder.finish().unwrap());
                let len = input.len() as u64;
                let told = Decoder::memory(&payload, len).unwrap();
                let mut decoder = Decoder::open(&payload, len).unwrap();
                for n in 1..20 {
                    decoder.seek(&payload, n * 66_000).unwrap();
                    let mut source = Input::open(&payload, Appetite::About(10_000));
                    decoder.decode(&mut source, &mut [0; 10_000]).unwrap();
                    let places = match &decoder.places {
                        Places::Full(places) => size_of_val(&**places),
                        _ => 0,
                    };
                    let held = decoder.window.capacity() + decoder.block.capacity() + places;
                    assert!(held as u64 <= told, "{held} {told}");
                }
            }
        }
    }
}
