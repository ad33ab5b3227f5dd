//! Zstandard frames a piece at a time, by the reference decoder's streaming functions.
//!
//! Their contexts own a window as large as the first frame's header asks for, which is what the stream's owner was told
//! of; should a later frame of the chunk ask for more, the chunk can only be decoded whole. So it is where a later frame alone has a
//! checksum over its content. Fresh memory of that size costs page faults, so a few contexts are kept for the next stream.

use std::sync::{Mutex, PoisonError};

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::{FRAME_MAGIC, no_memory};
use crate::codec::damaged;
use crate::codec::stream::{Input, Payload, STEP_LEN, beginning};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Codec, Encoding};

/// A frame header's longest form, in bytes: RFC 8878, section 3.1.1.1.
pub(super) const HEADER_LEN: usize = 18;
/// The sixteen magic numbers of skippable frames, but for the four lowest bits.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
/// The most bytes a block decodes to, or takes.
pub(super) const BLOCK_LEN: u64 = 128 << 10;
/// The largest window the reference decoder streams, as a power of two.
const WINDOW_LOG_MAX: u32 = 31;
/// The smallest window it works with, in bytes.
const LEAST_WINDOW_LEN: u64 = 1 << 10;
/// What it needs around a window so that it may copy in large steps, in bytes.
const WINDOW_MARGIN: u64 = 64;
/// What a context takes without its buffers, in bytes; it is less.
const CONTEXT_LEN: u64 = 256 << 10;

/// How many contexts are kept for later: a constant few mebibytes of the process, whatever is read.
const IDLE_COUNT: usize = 2;
/// The largest context that is kept, in bytes: that of a frame of the default level, whose window has 2 MiB.
const IDLE_CONTEXT_LEN: u64 = 3 << 20;

static IDLE: Mutex<Vec<DCtx<'static>>> = Mutex::new(Vec::new());

/// A chunk of zstd frames being decoded.
pub(in crate::codec) struct Decoder {
    /// `None` only while it is dropped.
    context: Option<DCtx<'static>>,
    /// The most the context may grow to, in bytes.
    promised: u64,
    /// Whether the first frame has a checksum over its content: who streams such a chunk knows what that means for it.
    checks_content: bool,
    /// How much of the payload has gone into the context, in bytes.
    consumed: u64,
    /// How much the context would like to see next, in bytes; 0 between frames.
    hint: usize,
}

impl Decoder {
    /// See [`crate::codec::Stream::memory`].
    pub(in crate::codec) fn memory(payload: &dyn Payload) -> Result<Option<u64>> {
        Ok(Self::first_frame(payload)?.map(|frame| frame.memory()))
    }

    /// The frame that the payload begins with, if it can be streamed.
    fn first_frame(payload: &dyn Payload) -> Result<Option<Frame>> {
        let (header, len) = beginning::<HEADER_LEN>(payload)?;
        match Frame::parse(header.get(..len).unwrap_or_default()) {
            Some(frame) => Ok(Some(frame).filter(Frame::is_streamed)),
            // What comes behind a skippable frame is not known yet.
            None if is_skippable(&header) => Ok(None),
            None => Err(refused("not a Zstandard frame")),
        }
    }

    /// See [`crate::codec::Stream::checks_content`].
    pub(in crate::codec) fn checks_content(payload: &dyn Payload) -> Result<bool> {
        let (header, len) = beginning::<HEADER_LEN>(payload)?;
        let frame = Frame::parse(header.get(..len).unwrap_or_default());
        Ok(frame.is_some_and(|frame| frame.has_checksum()))
    }

    pub(in crate::codec) fn open(payload: &dyn Payload) -> Result<Self> {
        let frame = Self::first_frame(payload)?.ok_or_else(unstreamable)?;
        let promised = frame.memory();
        let mut context = idle_context(promised).map_or_else(DCtx::try_create, Some);
        context
            .as_mut()
            .ok_or_else(no_memory)?
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(|code| refused(get_error_name(code)))?;
        Ok(Self {
            context,
            promised,
            checks_content: frame.has_checksum(),
            consumed: 0,
            hint: 0,
        })
    }

    pub(in crate::codec) fn decode(
        &mut self,
        input: &mut Input<'_>,
        output: &mut [u8],
    ) -> Result<usize> {
        let mut output = OutBuffer::around(output);
        // What was decoded already comes first, and takes no input.
        let mut flushing = self.hint != 0;
        while output.pos() < output.capacity() {
            let source = if flushing {
                &[]
            } else {
                if self.hint == 0 {
                    if self.consumed == input.len() {
                        break;
                    }
                    self.check_frame(input.from(self.consumed, HEADER_LEN)?)?;
                } else if self.consumed == input.len() {
                    return Err(refused("the payload ends too early"));
                }
                input.from(self.consumed, self.hint.min(STEP_LEN))?
            };
            flushing = false;
            let mut source = InBuffer::around(source);
            let Some(context) = &mut self.context else {
                break;
            };
            self.hint = context
                .decompress_stream(&mut output, &mut source)
                .map_err(|code| refused(get_error_name(code)))?;
            self.consumed += source.pos() as u64;
        }
        Ok(output.pos())
    }

    /// Holds a frame that is about to begin to what was promised, and to what the first one told of checksums: nothing of one that has
    /// its own is to be handed out before that is compared.
    fn check_frame(&self, header: &[u8]) -> Result<()> {
        match Frame::parse(header) {
            Some(frame)
                if frame.memory() > self.promised
                    || (frame.has_checksum() && !self.checks_content) =>
            {
                Err(unstreamable())
            }
            // What is no frame, the decoder refuses or skips.
            _ => Ok(()),
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        if let Some(mut context) = self.context.take()
            && context.sizeof() as u64 <= IDLE_CONTEXT_LEN
            && context.reset(ResetDirective::SessionOnly).is_ok()
        {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_COUNT {
                idle.push(context);
            }
        }
    }
}

/// A context kept from before that takes no more than `promised` bytes.
fn idle_context(promised: u64) -> Option<DCtx<'static>> {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = idle
        .iter()
        .rposition(|context| context.sizeof() as u64 <= promised)?;
    Some(idle.swap_remove(place))
}

/// What a frame's header says of the memory it takes to decode it.
pub(super) struct Frame {
    /// In bytes.
    pub(super) header_len: usize,
    /// In bytes.
    pub(super) window_len: u64,
    /// In bytes, if it is told.
    pub(super) content_len: Option<u64>,
    descriptor: u8,
}

impl Frame {
    /// Reads a header, which begins `bytes`; `None` if it is none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&descriptor, mut rest) = bytes.strip_prefix(&FRAME_MAGIC)?.split_first()?;
        let mut number = |len: usize| {
            let (taken, behind) = rest.split_at_checked(len)?;
            rest = behind;
            let mut bytes = [0; 8];
            bytes.get_mut(..len)?.copy_from_slice(taken);
            Some(u64::from_le_bytes(bytes))
        };
        let single_segment = descriptor & 0x20 != 0;
        let window_len = match single_segment {
            true => None,
            false => {
                let byte = number(1)?;
                let base = 1_u64 << (10 + (byte >> 3));
                Some(base + base / 8 * (byte & 7))
            }
        };
        let _dictionary = number((1 << (descriptor & 3)) >> 1)?;
        let content_len = match (descriptor >> 6, single_segment) {
            (0, false) => None,
            (0, true) => Some(number(1)?),
            (1, _) => Some(number(2)? + 256),
            (2, _) => Some(number(4)?),
            _ => Some(number(8)?),
        };
        Some(Self {
            header_len: bytes.len() - rest.len(),
            window_len: window_len.or(content_len)?,
            content_len,
            descriptor,
        })
    }

    /// Whether a checksum over the content follows.
    fn has_checksum(&self) -> bool {
        self.descriptor & 4 != 0
    }

    /// Whether there is nothing to it but its blocks: no dictionary, no checksum, no bit that has no meaning yet, and no window that the
    /// reference decoder refuses.
    pub(super) fn is_plain(&self) -> bool {
        self.descriptor & 0b1111 == 0 && self.is_streamed()
    }

    /// Whether the reference decoder takes so large a window where it streams.
    fn is_streamed(&self) -> bool {
        self.window_len <= 1 << WINDOW_LOG_MAX
    }

    /// The most memory that it takes to decode the frame a piece at a time, in bytes: what
    /// `ZSTD_decodingBufferSize_internal` of the reference decoder says, and a block of input.
    pub(super) fn memory(&self) -> u64 {
        let window_len = self.window_len.max(LEAST_WINDOW_LEN);
        let block_len = window_len.min(BLOCK_LEN);
        let ring_len = window_len
            .saturating_add(2 * block_len)
            .saturating_add(WINDOW_MARGIN)
            .min(self.content_len.unwrap_or(u64::MAX));
        CONTEXT_LEN
            .saturating_add(block_len)
            .saturating_add(ring_len)
    }
}

fn is_skippable(header: &[u8; HEADER_LEN]) -> bool {
    header
        .first_chunk()
        .is_some_and(|magic| u32::from_le_bytes(*magic) & !0xf == SKIPPABLE_MAGIC)
}

fn refused(detail: impl ToString) -> Error {
    damaged(Codec::Zstd, detail)
}

fn unstreamable() -> Error {
    ErrorKind::Unstreamable {
        codec: Encoding::Zstd,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use zstd::zstd_safe::{CCtx, CParameter};

    use super::*;
    use crate::codec::Stream;
    use crate::codec::stream::Appetite;
    use crate::codec::stream::tests::InMemory;
    use crate::error::ErrorKind;

    /// Frames that use their windows.
    fn frame(input: &[u8], window_log: u32, sized: bool) -> Vec<u8> {
        let mut encoder = CCtx::create();
        encoder
            .set_parameter(CParameter::WindowLog(window_log))
            .unwrap();
        encoder
            .set_parameter(CParameter::ContentSizeFlag(sized))
            .unwrap();
        let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(input.len()));
        encoder.compress2(&mut frame, input).unwrap();
        frame
    }

    fn input(len: usize) -> Vec<u8> {
        (0..len as u32 / 4)
            .flat_map(|n| (n / 3).to_le_bytes())
            .collect()
    }

    #[test]
    fn a_stream_holds_no_more_memory_than_was_told() {
        let input = input(3 << 20);
        for len in [0, 1, 5_000, 200_000, 1 << 20, input.len()] {
            for window_log in [10, 12, 17, 20, 22] {
                for sized in [true, false] {
                    let input = &input[..len];
                    let payload = InMemory::new(frame(input, window_log, sized));
                    let told = Decoder::memory(&payload).unwrap().unwrap();
                    let mut decoder = Decoder::open(&payload).unwrap();
                    let mut output = vec![0; len.min(900)];
                    let mut source = Input::open(&payload, Appetite::About(10));
                    decoder.decode(&mut source, &mut output).unwrap();
                    let held = decoder.context.as_ref().unwrap().sizeof() as u64;
                    assert!(held <= told && told < held + (1 << 20), "{held} {told}");
                }
            }
        }
    }

    #[test]
    fn a_header_that_claims_a_huge_window_is_told_and_takes_nothing() {
        let claim = |descriptor: u8, rest: &[u8]| {
            let payload = InMemory::new([&FRAME_MAGIC[..], &[descriptor], rest].concat());
            Decoder::memory(&payload).unwrap()
        };
        // Window descriptors of 128 MiB, 2 GiB and almost 4 TiB; then a frame that is one segment of 2^60 bytes.
        let around = |window: u64| Some(window + CONTEXT_LEN + 3 * BLOCK_LEN + WINDOW_MARGIN);
        assert_eq!(claim(0, &[17 << 3]), around(128 << 20));
        assert_eq!(claim(0, &[21 << 3]), around(2 << 30));
        assert_eq!(claim(0, &[0xff]), None);
        assert_eq!(claim(0xe0, &(1_u64 << 60).to_le_bytes()), None);
    }

    #[test]
    fn a_later_frame_with_a_larger_window_is_for_whole_decoding() {
        let input = input(2 << 20);
        let (small, large) = input.split_at(100_000);
        let bytes = [frame(small, 12, false), frame(large, 20, false)].concat();
        let payload = InMemory::new(bytes.clone());
        let mut stream = Stream::open(Codec::Zstd, &payload, input.len() as u64).unwrap();
        let mut output = vec![0; input.len()];
        stream.decode(&payload, &mut output[..100_000]).unwrap();
        let error = stream.decode(&payload, &mut output[100_000..]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unstreamable { .. }));
        super::super::decode_into(&bytes, &mut output).unwrap();
        assert!(output == input);
        // The other way round there is room.
        let bytes = [frame(large, 20, false), frame(small, 12, false)].concat();
        let payload = InMemory::new(bytes);
        let mut stream = Stream::open(Codec::Zstd, &payload, input.len() as u64).unwrap();
        stream.decode(&payload, &mut output).unwrap();
        assert!(output == [large, small].concat());
    }

    #[test]
    fn of_a_later_frame_with_a_checksum_of_its_own_nothing_is_handed_out_unchecked() {
        let mut encoder = CCtx::create();
        encoder
            .set_parameter(CParameter::ChecksumFlag(true))
            .unwrap();
        let mut checked = Vec::with_capacity(1000);
        encoder.compress2(&mut checked, b"and two").unwrap();
        let bytes = [frame(b"one ", 10, true), checked.clone()].concat();
        let payload = InMemory::new(bytes.clone());
        let mut stream = Stream::open(Codec::Zstd, &payload, 11).unwrap();
        let mut output = [0; 11];
        stream.decode(&payload, &mut output[..4]).unwrap();
        let error = stream.decode(&payload, &mut output[4..]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unstreamable { .. }));
        super::super::decode_into(&bytes, &mut output).unwrap();
        assert_eq!(&output, b"one and two");
        // Who begins with one has been told.
        let payload = InMemory::new([checked.clone(), checked].concat());
        assert!(Decoder::checks_content(&payload).unwrap());
        let mut stream = Stream::open(Codec::Zstd, &payload, 14).unwrap();
        stream.decode(&payload, &mut [0; 14]).unwrap();
    }

    #[test]
    fn frames_to_be_skipped_are_skipped_behind_a_frame() {
        let skippable = [
            &0x184D_2A55_u32.to_le_bytes()[..],
            &300_000_u32.to_le_bytes(),
            &[7; 300_000],
        ]
        .concat();
        let bytes = [
            frame(b"one and ", 10, true),
            skippable.clone(),
            frame(b"two", 10, true),
            skippable.clone(),
        ]
        .concat();
        let payload = InMemory::new(bytes);
        let mut stream = Stream::open(Codec::Zstd, &payload, 11).unwrap();
        let mut output = [0; 11];
        stream.decode(&payload, &mut output).unwrap();
        assert_eq!(&output, b"one and two");
        let payload = InMemory::new([skippable, frame(b"one", 10, true)].concat());
        assert_eq!(Decoder::memory(&payload).unwrap(), None);
    }
}
