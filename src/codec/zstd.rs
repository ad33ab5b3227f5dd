//! Zstandard: one frame per chunk, with its content size when we write it.
//!
//! Readers take what the reference decoder takes in one call, several frames included, because worker threads and other
//! writers may cut a chunk into them. Legacy frames, which no writer of the container ever made, are not compiled in.

mod raw_blocks;
mod stream;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use zstd::zstd_safe::{
    self, CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name,
};

use self::stream::Frame;
use super::{Settings, cannot_encode, damaged, larger_than, shorter};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Codec;

pub(super) use self::raw_blocks::RawBlocks;
pub(super) use self::stream::Decoder;

/// The first four bytes of a frame that carries data; skippable frames have others, and tell the wrong size.
const FRAME_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// The largest window that is taken for measuring, as a power of two: not all who measure have a budget that this counts against.
const MEASURED_WINDOW_LOG_MAX: u32 = 27;

/// The reference decoder's error for a payload that decodes to more than there is room for.
const TOO_SMALL: &str = "Destination buffer is too small";

thread_local! {
    static DECODER: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
    static ENCODER: RefCell<CCtx<'static>> = RefCell::new(CCtx::create());
}

pub(super) fn decode_into(payload: &[u8], output: &mut [u8]) -> Result<()> {
    let len = output.len();
    let written = DECODER
        .with_borrow_mut(|decoder| decoder.decompress(output, payload))
        .map_err(get_error_name);
    match written {
        // No bytes at all are no frames at all, which the reference decoder takes for a success.
        Ok(written) if written == len && !payload.is_empty() => Ok(()),
        Ok(_) if payload.is_empty() => Err(damaged(Codec::Zstd, "the payload is empty")),
        Ok(written) => Err(shorter(Codec::Zstd, len as u64, written as u64)),
        Err(TOO_SMALL) => Err(larger_than(Codec::Zstd, len as u64)),
        Err(error) => Err(damaged(Codec::Zstd, error)),
    }
}

pub(super) fn decoded_len(beginning: &[u8]) -> Option<u64> {
    if !beginning.starts_with(&FRAME_MAGIC) {
        return None;
    }
    zstd_safe::get_frame_content_size(beginning).ok().flatten()
}

/// Not even the little that a decoder takes by itself could be had.
fn no_memory() -> Error {
    ErrorKind::NoMemory("a decoder of Zstandard".to_owned()).into()
}

pub(super) fn measure(payload: &[u8], limit: u64, cancelled: &AtomicBool) -> Result<u64> {
    let mut window = vec![0; DCtx::out_size()];
    let mut input = InBuffer::around(payload);
    let mut len = 0_u64;
    // Its own, since it keeps a window as large as a frame asks for as long as it lives.
    let mut decoder = DCtx::try_create().ok_or_else(no_memory)?;
    decoder
        .set_parameter(DParameter::WindowLogMax(MEASURED_WINDOW_LOG_MAX))
        .map_err(|code| damaged(Codec::Zstd, get_error_name(code)))?;
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(ErrorKind::Cancelled.into());
        }
        let mut output = OutBuffer::around(&mut window[..]);
        let hint = decoder
            .decompress_stream(&mut output, &mut input)
            .map_err(|code| damaged(Codec::Zstd, get_error_name(code)))?;
        let full = output.pos() == output.capacity();
        len += output.pos() as u64;
        if len > limit {
            return Err(larger_than(Codec::Zstd, limit));
        }
        let exhausted = input.pos() == payload.len();
        match hint {
            0 if exhausted => return Ok(len),
            0 => {}
            _ if exhausted && !full => {
                return Err(damaged(Codec::Zstd, "the payload ends too early"));
            }
            _ => {}
        }
    }
}

/// See [`super::memory_to_measure`].
pub(super) fn memory_to_measure(payload: &[u8]) -> u64 {
    let mut most = 0;
    let mut rest = payload;
    while !rest.is_empty() {
        if let Some(frame) = Frame::parse(rest)
            // What is refused takes nothing.
            && frame.window_len <= 1 << MEASURED_WINDOW_LOG_MAX
        {
            most = most.max(frame.memory());
        }
        let len = zstd_safe::find_frame_compressed_size(rest).unwrap_or(0);
        rest = match len {
            0 => &[],
            len => rest.get(len..).unwrap_or_default(),
        };
    }
    most
}

pub(super) fn encode(input: &[u8], settings: &Settings, output: &mut Vec<u8>) -> Result<()> {
    output.reserve(zstd_safe::compress_bound(input.len()));
    ENCODER
        .with_borrow_mut(|encoder| {
            encoder.set_parameter(CParameter::CompressionLevel(settings.zstd_level))?;
            encoder.set_parameter(CParameter::NbWorkers(settings.zstd_threads))?;
            let written = encoder.compress2(output, input);
            if written.is_err() {
                encoder.reset(ResetDirective::SessionOnly)?;
            }
            written
        })
        .map_err(|code| cannot_encode(Codec::Zstd, get_error_name(code)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    #[test]
    fn frames_without_a_content_size_are_measured_and_decoded() {
        let input = b"no size in front ".repeat(20_000);
        let mut frame = Vec::new();
        zstd::stream::copy_encode(&input[..], &mut frame, 3).unwrap();
        assert_eq!(decoded_len(&frame), None);
        assert_eq!(
            measure(&frame, u64::MAX, &NEVER).unwrap(),
            input.len() as u64
        );
        assert!(measure(&frame[..frame.len() - 1], u64::MAX, &NEVER).is_err());
        let mut output = vec![0; input.len()];
        decode_into(&frame, &mut output).unwrap();
        assert_eq!(output, input);
    }

    #[test]
    fn measuring_a_terabyte_of_one_byte_stops_when_told_to() {
        // Blocks of 128 KiB in four bytes each.
        let mut frame = FRAME_MAGIC.to_vec();
        frame.extend([0, 0x38]);
        for _ in 0..8 << 20 {
            frame.extend([0b10, 0, 0x10, b'x']);
        }
        let cancelled = AtomicBool::new(false);
        let started = std::time::Instant::now();
        let error = std::thread::scope(|scope| {
            let measured = scope.spawn(|| measure(&frame, u64::MAX, &cancelled));
            std::thread::sleep(std::time::Duration::from_millis(50));
            cancelled.store(true, Ordering::Relaxed);
            measured.join().unwrap().unwrap_err()
        });
        assert!(matches!(error.kind(), ErrorKind::Cancelled), "{error}");
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
    }

    /// An empty frame with this window, the descriptor of its header.
    fn empty_frame(window: u8) -> Vec<u8> {
        [&FRAME_MAGIC[..], &[0, window, 1, 0, 0]].concat()
    }

    #[test]
    fn measuring_says_what_the_largest_of_all_windows_takes_before_it_is_taken() {
        let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &[1, 0, 0, 0, 7]].concat();
        let payload = [skippable, empty_frame(0), empty_frame(17 << 3)].concat();
        let memory = memory_to_measure(&payload);
        assert!((128 << 20..129 << 20).contains(&memory), "{memory}");
        // As far as the payload is known.
        assert_eq!(memory_to_measure(&payload[..8]), 0);
        assert_eq!(memory_to_measure(&payload[9 + 9..9 + 9 + 6]), memory);
        assert!(memory_to_measure(&payload[..9 + 9]) < 1 << 20);
        assert_eq!(measure(&payload, 0, &NEVER).unwrap(), 0);
        // Those are refused, and take nothing.
        for window in [17 << 3 | 1, 0xff] {
            assert_eq!(memory_to_measure(&empty_frame(window)), 0);
            assert!(measure(&empty_frame(window), 0, &NEVER).is_err());
        }
    }

    #[test]
    fn several_frames_make_one_chunk() {
        let mut payload = zstd::bulk::compress(b"one ", 1).unwrap();
        payload.extend(zstd::bulk::compress(b"and two", 1).unwrap());
        let mut output = [0; 11];
        decode_into(&payload, &mut output).unwrap();
        assert_eq!(&output, b"one and two");
        assert_eq!(measure(&payload, 100, &NEVER).unwrap(), 11);
    }
}
