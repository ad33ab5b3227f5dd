//! Brotli: one raw stream per chunk, which does not tell its decoded length.
//!
//! Streams with a large window (up to 1 GiB, a later extension) are refused: no writer of the container makes them, and
//! the decoder's memory would be at the mercy of a payload. The ordinary window has 16 MiB at most.

mod stream;

use std::sync::atomic::{AtomicBool, Ordering};

use brotli::enc::{BrotliEncoderParams, StandardAlloc};
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};

use super::{Settings, cannot_encode, damaged, larger_than, shorter};
use crate::error::{ErrorKind, Result};
use crate::format::Codec;

pub(super) use self::stream::Decoder;

/// The window's size as a power of two, in bytes: what the Python package uses. It also bounds a reader's memory.
const WINDOW_LOG: i32 = 22;
/// How much is handed to the encoder, taken from it, or decoded for measuring at a time, in bytes.
const STEP_LEN: usize = 64 << 10;

type State = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

fn new_state() -> State {
    State::new_strict(
        StandardAlloc::default(),
        StandardAlloc::default(),
        StandardAlloc::default(),
    )
}

/// Decodes on from `source` into `output`; also says how many bytes of the one were taken and of the other filled.
fn step(state: &mut State, source: &[u8], output: &mut [u8]) -> (BrotliResult, usize, usize) {
    let mut available_in = source.len();
    let mut available_out = output.len();
    let (mut taken, mut filled, mut total) = (0, 0, 0);
    let result = BrotliDecompressStream(
        &mut available_in,
        &mut taken,
        source,
        &mut available_out,
        &mut filled,
        output,
        &mut total,
        state,
    );
    (result, taken, filled)
}

/// A place in a payload being decoded.
struct Cursor<'a> {
    payload: &'a [u8],
    offset: usize,
    state: State,
}

impl Cursor<'_> {
    /// Decodes on into `output` and says how much of it was filled.
    fn step(&mut self, output: &mut [u8]) -> (BrotliResult, usize) {
        let source = self.payload.get(self.offset..).unwrap_or_default();
        let (result, taken, filled) = step(&mut self.state, source, output);
        self.offset += taken;
        (result, filled)
    }

    /// Called where the stream says it ends.
    fn check_end(&self) -> Result<()> {
        if self.offset != self.payload.len() {
            return Err(damaged(Codec::Brotli, "bytes behind the end of the stream"));
        }
        Ok(())
    }
}

pub(super) fn decode_into(payload: &[u8], output: &mut [u8]) -> Result<()> {
    let mut cursor = Cursor {
        payload,
        offset: 0,
        state: new_state(),
    };
    let (result, filled) = cursor.step(output);
    match result {
        BrotliResult::ResultSuccess if filled < output.len() => {
            Err(shorter(Codec::Brotli, output.len() as u64, filled as u64))
        }
        BrotliResult::ResultSuccess => cursor.check_end(),
        BrotliResult::NeedsMoreOutput => Err(larger_than(Codec::Brotli, output.len() as u64)),
        BrotliResult::NeedsMoreInput => Err(damaged(Codec::Brotli, "the payload ends too early")),
        BrotliResult::ResultFailure => Err(damaged(Codec::Brotli, "not a valid stream")),
    }
}

pub(super) fn measure(payload: &[u8], limit: u64, cancelled: &AtomicBool) -> Result<u64> {
    let mut cursor = Cursor {
        payload,
        offset: 0,
        state: new_state(),
    };
    let mut window = vec![0; STEP_LEN];
    let mut len = 0_u64;
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(ErrorKind::Cancelled.into());
        }
        let (result, filled) = cursor.step(&mut window);
        len += filled as u64;
        if len > limit {
            return Err(larger_than(Codec::Brotli, limit));
        }
        match result {
            BrotliResult::ResultSuccess => {
                cursor.check_end()?;
                return Ok(len);
            }
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::NeedsMoreInput => {
                return Err(damaged(Codec::Brotli, "the payload ends too early"));
            }
            BrotliResult::ResultFailure => {
                return Err(damaged(Codec::Brotli, "not a valid stream"));
            }
        }
    }
}

pub(super) fn encode(input: &[u8], settings: &Settings, output: &mut Vec<u8>) -> Result<()> {
    let params = BrotliEncoderParams {
        quality: settings.brotli_quality as i32,
        lgwin: WINDOW_LOG,
        size_hint: input.len(),
        ..BrotliEncoderParams::default()
    };
    let mut taken = vec![0; STEP_LEN];
    let mut given = vec![0; STEP_LEN];
    let mut rest = input;
    brotli::BrotliCompressCustomAlloc(
        &mut rest,
        output,
        &mut given,
        &mut taken,
        &params,
        StandardAlloc::default(),
    )
    .map_err(|error| cannot_encode(Codec::Brotli, error))?;
    Ok(())
}
