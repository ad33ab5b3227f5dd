//! A chunk decoded from front to back, a piece at a time: for chunks too big to be decoded whole for every read.
//!
//! What a codec needs to go on lives in the [`Stream`]: its context, and the window of bytes behind it that later ones
//! may repeat. The compressed bytes do not: they are fetched in steps into a buffer of the thread's, as many as the piece needs
//! where that is known and about as many where not, and those left over are fetched again for the next piece. So a stream that is
//! put aside costs its window, which [`Stream::memory`] tells before any memory is taken.
//!
//! It is known of branches of LZ4 frames: to guess there too had a third more fetched than there is, of chunks of 4 MiB. Of zstd it
//! is half as much again, and its decoder says how much it wants next; but that is a block, two or three of which make up a piece, and to
//! fetch them one by one took as long (0.997 of it, medians of 51 pairs) and would be more requests to who is far away.
//!
//! A stream is as strict as [`super::decode_into`]: decoded to its end, it refuses what that refuses.

use std::cell::Cell;
use std::fmt;
use std::ops::Range;

use super::{brotli, larger_than, lz4, shorter, snappy, stored, zstd};
use crate::error::{ErrorKind, Result};
use crate::format::Encoding;
use crate::zeros::is_zero;

/// The most that is fetched of a payload at a time, in bytes, but for LZ4 blocks, which are fetched whole.
pub(super) const STEP_LEN: usize = 128 << 10;
/// The least that is fetched at a time where it is not known how much is wanted, in bytes: a page, which costs as much as less of it.
const LEAST_STEP_LEN: usize = 4 << 10;

/// A payload's compressed bytes, fetched as they are needed.
pub(crate) trait Payload {
    /// How many there are, in bytes.
    fn len(&self) -> u64;

    /// Fills `buffer` with those at `offset`, all of which lie within the payload.
    ///
    /// # Errors
    /// The source's.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// A chunk being decoded from front to back. It may be put aside between two pieces and taken up by another thread.
///
/// Whoever calls it hands over the same payload every time. A stream that failed once is of no more use.
pub(crate) struct Stream {
    encoding: Encoding,
    /// The chunk's original size, in bytes.
    announced: u64,
    position: u64,
    /// Whether the payload was found to end where the chunk does.
    ended: bool,
    /// Whether all that lies before `position` was decoded by it and is zeros.
    zeros: bool,
    decoder: Decoder,
}

/// What each codec needs to go on. Every one has a `decode`, which fills the output and says how much of it was filled:
/// less than all of it only where the payload ends as it should.
enum Decoder {
    Lz4(lz4::Decoder),
    Zstd(zstd::Decoder),
    Snappy(snappy::Decoder),
    Brotli(brotli::Decoder),
    RawBlocks(zstd::RawBlocks),
    Stored(stored::Decoder),
    Zeros(stored::Zeros),
}

impl Stream {
    /// Starts at the chunk's beginning; `announced` is the chunk's original size, in bytes.
    ///
    /// # Errors
    /// The source's, or the payload's header is refused; see [`super::decode_into`].
    pub(crate) fn open(
        encoding: impl Into<Encoding>,
        payload: &dyn Payload,
        announced: u64,
    ) -> Result<Self> {
        let encoding = encoding.into();
        let decoder = match encoding {
            Encoding::Lz4 => Decoder::Lz4(lz4::Decoder::open(payload, announced)?),
            Encoding::Zstd => Decoder::Zstd(zstd::Decoder::open(payload)?),
            Encoding::Snappy => Decoder::Snappy(snappy::Decoder::open(payload, announced)?),
            Encoding::Brotli => Decoder::Brotli(brotli::Decoder::open()),
            Encoding::Lz4Block => {
                return Err(ErrorKind::Unstreamable { codec: encoding }.into());
            }
            Encoding::Stored => Decoder::Stored(stored::Decoder::at(0)),
            Encoding::Zeros => Decoder::Zeros(stored::Zeros::open(payload.len(), announced)?),
        };
        Ok(Self {
            encoding,
            announced,
            position: 0,
            ended: false,
            zeros: true,
            decoder,
        })
    }

    /// A stream of a payload that holds its bytes as they are, although its encoding is one that compresses. Like that of what is
    /// stored it takes no memory and goes on from anywhere. `None` if the payload is none, for which a few bytes are read of each of
    /// its blocks.
    ///
    /// # Errors
    /// The source's.
    pub(crate) fn of_what_lies_as_it_is(
        encoding: Encoding,
        payload: &dyn Payload,
        announced: u64,
    ) -> Result<Option<Self>> {
        let blocks = match encoding {
            Encoding::Zstd => zstd::RawBlocks::find(payload, announced)?,
            _ => None,
        };
        Ok(blocks.map(|blocks| Self {
            encoding,
            announced,
            position: 0,
            ended: false,
            zeros: true,
            decoder: Decoder::RawBlocks(blocks),
        }))
    }

    /// A stream of as many zeros as are announced, whatever the payload, which encodes them.
    pub(crate) fn of_zeros(announced: u64) -> Self {
        Self {
            encoding: Encoding::Zeros,
            announced,
            position: 0,
            ended: false,
            zeros: true,
            decoder: Decoder::Zeros(stored::Zeros::at(0, announced)),
        }
    }

    /// The most memory such a stream holds on to while it lives, in bytes; `None` if this chunk can only be decoded
    /// whole. A payload may claim anything, and nothing is allocated here. Looks at the payload's first bytes only.
    ///
    /// # Errors
    /// As [`Stream::open`].
    pub(crate) fn memory(
        encoding: impl Into<Encoding>,
        payload: &dyn Payload,
        announced: u64,
    ) -> Result<Option<u64>> {
        match encoding.into() {
            Encoding::Lz4 => lz4::Decoder::memory(payload, announced).map(Some),
            Encoding::Zstd => zstd::Decoder::memory(payload),
            Encoding::Snappy => Ok(Some(snappy::Decoder::MEMORY)),
            Encoding::Brotli => brotli::Decoder::memory(payload).map(Some),
            // One block has no place to go on from but a sequence's beginning; nobody who wrote them made long ones.
            Encoding::Lz4Block => Ok(None),
            Encoding::Stored | Encoding::Zeros => Ok(Some(0)),
        }
    }

    /// The most that such a stream fetches of its payload at a time, in bytes, if that is more than every thread has room for anyway;
    /// 0 if it is not. This is taken while it decodes, beside [`Stream::memory`].
    ///
    /// # Errors
    /// As [`Stream::open`].
    pub(crate) fn fetched(
        encoding: Encoding,
        payload: &dyn Payload,
        announced: u64,
    ) -> Result<u64> {
        match encoding {
            Encoding::Lz4 => lz4::Decoder::fetched(payload, announced),
            _ => Ok(0),
        }
    }

    /// Whether the payload carries a checksum over all that it decodes to. Only whole can such a chunk be checked before any
    /// of it is handed out.
    ///
    /// # Errors
    /// As [`Stream::open`].
    pub(crate) fn checks_content(encoding: Encoding, payload: &dyn Payload) -> Result<bool> {
        match encoding {
            Encoding::Lz4 => lz4::Decoder::checks_content(payload),
            Encoding::Zstd => zstd::Decoder::checks_content(payload),
            Encoding::Snappy
            | Encoding::Brotli
            | Encoding::Lz4Block
            | Encoding::Stored
            | Encoding::Zeros => Ok(false),
        }
    }

    /// Whether parts that begin at multiples of `length` bytes, and are as long, can be decoded each without the others, as far as
    /// the payload's first bytes tell.
    ///
    /// # Errors
    /// As [`Stream::open`].
    pub(crate) fn has_parts(
        encoding: Encoding,
        payload: &dyn Payload,
        length: u64,
    ) -> Result<bool> {
        match encoding {
            Encoding::Lz4 => lz4::Decoder::has_parts(payload, length),
            Encoding::Stored | Encoding::Zeros => Ok(true),
            Encoding::Zstd | Encoding::Snappy | Encoding::Brotli | Encoding::Lz4Block => Ok(false),
        }
    }

    /// Where the next byte lies in the chunk, in bytes.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Moves towards `offset` in the chunk as far as that takes no decoding, and says where the stream stands then: at
    /// `offset` itself, or at the place before it from which decoding has to go on; anywhere else, this codec or this
    /// payload cannot be moved about in, and the stream is where it was.
    ///
    /// Only what is not compressed can be, and LZ4 frames of independent blocks, for a few bytes' reading a block when it is done
    /// first. A frame's checksum over its content is not looked at any more once a part of it was left out.
    ///
    /// # Errors
    /// The source's.
    pub(crate) fn seek(&mut self, payload: &dyn Payload, offset: u64) -> Result<u64> {
        if offset > self.announced {
            return Ok(self.position);
        }
        let moved = match &mut self.decoder {
            Decoder::Lz4(decoder) => decoder.seek(payload, offset)?,
            Decoder::RawBlocks(decoder) => Some(decoder.seek(offset)),
            Decoder::Stored(decoder) => Some(decoder.seek(offset)),
            Decoder::Zeros(decoder) => Some(decoder.seek(offset, self.announced)),
            Decoder::Zstd(_) | Decoder::Snappy(_) | Decoder::Brotli(_) => None,
        };
        if let Some(position) = moved {
            self.zeros &= position == self.position;
            self.position = position;
            self.ended = false;
        }
        Ok(self.position)
    }

    /// Finds out where branches can begin, for a few bytes' reading a block.
    ///
    /// # Errors
    /// The source's.
    pub(crate) fn survey(&mut self, payload: &dyn Payload) -> Result<()> {
        match &mut self.decoder {
            Decoder::Lz4(decoder) => decoder.survey(payload),
            _ => Ok(()),
        }
    }

    /// A stream of its own for `bytes` of the chunk, which goes no further and takes no memory worth counting; `None` unless they
    /// can be decoded without what lies before them, and a [`Stream::survey`] has found where they are.
    ///
    /// Where a frame has a checksum over its content, a branch does not look at it.
    pub(crate) fn branch(&self, bytes: &Range<u64>) -> Option<Self> {
        let decoder = match &self.decoder {
            Decoder::Lz4(decoder) => Decoder::Lz4(decoder.branch(bytes)?),
            Decoder::RawBlocks(blocks) => Decoder::RawBlocks(blocks.at(bytes.start)),
            Decoder::Stored(_) => Decoder::Stored(stored::Decoder::at(bytes.start)),
            Decoder::Zeros(_) => Decoder::Zeros(stored::Zeros::at(bytes.start, self.announced)),
            Decoder::Zstd(_) | Decoder::Snappy(_) | Decoder::Brotli(_) => return None,
        };
        Some(Self {
            encoding: self.encoding,
            announced: self.announced,
            position: bytes.start,
            ended: false,
            zeros: false,
            decoder,
        })
    }

    /// Decodes the next `output.len()` bytes, which must not go beyond the chunk's end. With the chunk's last byte it is
    /// checked that the payload ends too.
    ///
    /// # Errors
    /// The source's; those of [`super::decode_into`]; or [`crate::error::ErrorKind::Unstreamable`] if it turns out
    /// only now that more of what went before is needed than the stream holds: the whole chunk may be sound.
    pub(crate) fn decode(&mut self, payload: &dyn Payload, output: &mut [u8]) -> Result<()> {
        let mut input = Input::open(payload, self.appetite(payload, output.len()));
        let filled = self.step(&mut input, output)?;
        self.position = self.position.saturating_add(filled as u64);
        if filled < output.len() {
            return Err(shorter(self.encoding, self.announced, self.position));
        }
        if self.position >= self.announced && !self.ended {
            if self.step(&mut input, &mut [0])? != 0 {
                return Err(larger_than(self.encoding, self.announced));
            }
            self.ended = true;
        }
        self.zeros = self.zeros && is_zero(output);
        Ok(())
    }

    /// Whether the whole chunk was decoded, from front to back, and is zeros.
    pub(crate) fn was_all_zeros(&self) -> bool {
        self.ended && self.zeros
    }

    fn step(&mut self, input: &mut Input<'_>, output: &mut [u8]) -> Result<usize> {
        match &mut self.decoder {
            Decoder::Lz4(decoder) => decoder.decode(input, output),
            Decoder::Zstd(decoder) => decoder.decode(input, output),
            Decoder::Snappy(decoder) => decoder.decode(input, output),
            Decoder::Brotli(decoder) => decoder.decode(input, output),
            Decoder::RawBlocks(decoder) => decoder.decode(input.payload(), output),
            Decoder::Stored(decoder) => decoder.decode(input, output),
            Decoder::Zeros(decoder) => Ok(decoder.decode(output)),
        }
    }

    /// How much of the payload a piece of `len` bytes takes.
    fn appetite(&self, payload: &dyn Payload, len: usize) -> Appetite {
        match &self.decoder {
            Decoder::Lz4(decoder) if let Some(end) = decoder.end() => Appetite::Until(end),
            _ => {
                let announced = u128::from(self.announced.max(1));
                let packed = u128::from(payload.len()) * len as u128 / announced;
                Appetite::About(usize::try_from(packed).unwrap_or(usize::MAX))
            }
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("encoding", &self.encoding)
            .field("announced", &self.announced)
            .field("position", &self.position)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// Where the thread's decoders fetch to. Taken out while it is in use.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How much of a payload is going to be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Appetite {
    /// What lies before this place of it.
    Until(u64),
    /// So many bytes, more or less.
    About(usize),
}

/// What has been fetched of a payload for one piece.
pub(super) struct Input<'a> {
    payload: &'a dyn Payload,
    len: u64,
    /// How much to fetch at a time, in bytes.
    step_len: usize,
    /// Up to where to fetch, unless more is asked for.
    end: u64,
    buffer: Vec<u8>,
    /// Where in the payload that begins which is in the buffer.
    start: u64,
    /// How much that is, in bytes.
    held: usize,
}

impl<'a> Input<'a> {
    pub(super) fn open(payload: &'a dyn Payload, appetite: Appetite) -> Self {
        let len = payload.len();
        let (step_len, end) = match appetite {
            Appetite::Until(end) => (STEP_LEN, end),
            // Some more, because parts of a chunk differ.
            Appetite::About(expected) => ((expected / 8).saturating_mul(9), len),
        };
        Self {
            payload,
            len,
            step_len: step_len.clamp(LEAST_STEP_LEN, STEP_LEN),
            end,
            buffer: BUFFER.take(),
            start: 0,
            held: 0,
        }
    }

    /// The payload's length, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How much memory what is fetched takes, in bytes.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.buffer.capacity()
    }

    /// What is fetched from.
    pub(super) fn payload(&self) -> &'a dyn Payload {
        self.payload
    }

    /// The payload's bytes from `offset` on: `least` of them or more, or all there are.
    pub(super) fn from(&mut self, offset: u64, least: usize) -> Result<&[u8]> {
        let rest = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let least = least.min(rest);
        let skip = usize::try_from(offset.wrapping_sub(self.start)).unwrap_or(usize::MAX);
        let mut kept = self.held.saturating_sub(skip);
        if kept < least || (kept == 0 && rest > 0) {
            let before_end = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
            let wanted = least.max(self.step_len.min(before_end)).min(rest);
            if self.buffer.len() < wanted {
                let wanted = wanted.max(STEP_LEN);
                self.buffer.reserve_exact(wanted - self.buffer.len());
                self.buffer.resize(wanted, 0);
            }
            if kept > 0 {
                self.buffer.copy_within(skip..self.held, 0);
            }
            self.start = offset;
            self.held = kept;
            let fresh = self.buffer.get_mut(kept..wanted).unwrap_or_default();
            self.payload.read_at(offset + kept as u64, fresh)?;
            self.held = wanted;
            kept = wanted;
        }
        let end = self.held;
        Ok(self.buffer.get(end - kept..end).unwrap_or_default())
    }
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if self.buffer.len() <= STEP_LEN {
            BUFFER.set(std::mem::take(&mut self.buffer));
        }
    }
}

/// A payload's first `N` bytes and how many of them there are.
pub(super) fn beginning<const N: usize>(payload: &dyn Payload) -> Result<([u8; N], usize)> {
    let mut bytes = [0; N];
    let len = usize::try_from(payload.len()).map_or(N, |len| len.min(N));
    if let Some(bytes) = bytes.get_mut(..len) {
        payload.read_at(0, bytes)?;
    }
    Ok((bytes, len))
}

/// How far back LZ4 and Snappy may look, in bytes; for Snappy that is what its encoders keep to.
pub(super) const WINDOW_LEN: usize = 64 << 10;

/// How much a [`Window`] takes, in bytes. It is a quarter longer than what it is there for, so that short pieces do not move
/// all of it each.
pub(super) const WINDOW_ROOM: usize = WINDOW_LEN + WINDOW_LEN / 4;

/// The last [`WINDOW_LEN`] bytes before a place.
#[derive(Default)]
pub(super) struct Window(Vec<u8>);

impl Window {
    /// The bytes held.
    pub(super) fn bytes(&self) -> &[u8] {
        let from = self.0.len().saturating_sub(WINDOW_LEN);
        self.0.get(from..).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Takes note of the bytes that follow.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let from = bytes.len().saturating_sub(WINDOW_LEN);
        let bytes = bytes.get(from..).unwrap_or_default();
        if self.0.len() + bytes.len() > WINDOW_ROOM {
            let kept = WINDOW_LEN.saturating_sub(bytes.len());
            let dropped = self.0.len().saturating_sub(kept);
            self.0.drain(..dropped);
        }
        self.0.reserve_exact(WINDOW_ROOM - self.0.len());
        self.0.extend_from_slice(bytes);
    }
}

#[cfg(test)]
pub(super) mod tests;
