//! The four codecs behind one pair of functions: a chunk's payload to its bytes and back. To its bytes also from what other
//! releases wrote: bare LZ4 blocks, bytes as they are, and zeros without a payload.
//!
//! A chunk stands alone: whatever its codec, it decodes without any other chunk. Decoding goes straight into the
//! caller's buffer, which is as long as the chunk is announced to be: it is filled exactly or the payload is damaged,
//! and nothing is ever allocated by what a payload claims of itself. Contexts that cost something to set up are kept
//! per thread, so callers may be any threads, and as many. A chunk too big to be decoded whole for every read is decoded
//! a piece at a time instead, by a [`Stream`].
//!
//! Where a chunk lies in a file is not known here; callers add the chunk's number to the errors.

mod brotli;
mod lz4;
mod snappy;
mod stored;
mod stream;
mod zstd;

use std::sync::atomic::AtomicBool;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Codec, Encoding};

pub(crate) use self::stream::{Payload, Stream};

/// How many of a payload's first bytes [`decoded_len`] looks at: the longest header that tells a size, an LZ4 frame's
/// with content size and dictionary id. Zstandard's has 18 bytes at most, Snappy's 5.
pub(crate) const SIZE_PROBE_LEN: usize = 19;

/// How many times its chunk's size a payload may have, in bytes, and how many bytes more. The worst that a legal frame
/// makes of a byte is an LZ4 block of its own, with a checksum: ten bytes.
const WORST_EXPANSION: u64 = 16;
/// See [`WORST_EXPANSION`].
const WORST_OVERHEAD: u64 = 64 << 10;

/// What an encoder may choose; each codec looks at its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Zstandard's compression level.
    pub(crate) zstd_level: i32,
    /// Zstandard's own worker threads within one chunk; 0 for none.
    pub(crate) zstd_threads: u32,
    /// Brotli's quality, 0 to 11.
    pub(crate) brotli_quality: u32,
    /// The level at which LZ4 searches thoroughly, 3 to 12; `None` for its fast encoder.
    pub(crate) lz4_thoroughness: Option<i32>,
}

/// Decodes `payload` into `output`, whose length is the announced original size in bytes.
///
/// # Errors
/// [`ErrorKind::Decode`] if the codec refuses the payload or something follows it, [`ErrorKind::DecodedSize`] if it
/// decodes to another size. What `output` holds then is of no use.
pub(crate) fn decode_into(
    encoding: impl Into<Encoding>,
    payload: &[u8],
    output: &mut [u8],
) -> Result<()> {
    match encoding.into() {
        Encoding::Lz4 => lz4::decode_into(payload, output),
        Encoding::Zstd => zstd::decode_into(payload, output),
        Encoding::Snappy => snappy::decode_into(payload, output),
        Encoding::Brotli => brotli::decode_into(payload, output),
        Encoding::Lz4Block => lz4::decode_block_into(payload, output),
        Encoding::Stored => stored::decode_into(payload, output),
        Encoding::Zeros => stored::zeros_into(payload, output),
    }
}

/// The decoded length in bytes as far as the payload's first [`SIZE_PROBE_LEN`] bytes (fewer if it has fewer) tell it.
/// A claim, not a fact: [`decode_into`] holds the payload to it.
pub(crate) fn decoded_len(encoding: impl Into<Encoding>, beginning: &[u8]) -> Option<u64> {
    match encoding.into() {
        Encoding::Lz4 => lz4::decoded_len(beginning),
        Encoding::Zstd => zstd::decoded_len(beginning),
        Encoding::Snappy => snappy::decoded_len(beginning),
        Encoding::Brotli | Encoding::Lz4Block | Encoding::Stored | Encoding::Zeros => None,
    }
}

/// Checks that a payload of `packed` bytes may hold a chunk of `original` bytes, before memory is taken for it: payloads
/// in the hole of a sparse file cost nothing, however long.
///
/// # Errors
/// [`ErrorKind::Decode`] if it is too long.
pub(crate) fn check_payload_len(
    encoding: impl Into<Encoding>,
    packed: u64,
    original: u64,
) -> Result<()> {
    let longest = original
        .saturating_mul(WORST_EXPANSION)
        .saturating_add(WORST_OVERHEAD);
    match packed <= longest {
        true => Ok(()),
        false => Err(damaged(
            encoding,
            format!("a payload of {packed} bytes cannot be that of {original} bytes"),
        )),
    }
}

/// Checks that a payload of `packed` bytes may decode to a chunk of `original` bytes, before memory is taken for it: where a
/// codec bounds what it makes of a byte, an announcement beyond that costs nothing.
///
/// # Errors
/// [`ErrorKind::Decode`] if it is too long or too short.
pub(crate) fn check_lengths(encoding: Encoding, packed: u64, original: u64) -> Result<()> {
    check_payload_len(encoding, packed, original)?;
    let longest = match encoding {
        // A match's length goes on for 255 bytes with every byte.
        Encoding::Lz4 | Encoding::Lz4Block => packed.saturating_mul(255),
        // A copy of 64 bytes takes three.
        Encoding::Snappy => packed.saturating_mul(64) / 3,
        Encoding::Stored => packed,
        // A few bytes, or none, hold as many equal ones as anybody likes.
        Encoding::Zstd | Encoding::Brotli | Encoding::Zeros => u64::MAX,
    };
    match original <= longest {
        true => Ok(()),
        false => Err(damaged(
            encoding,
            format!("a payload of {packed} bytes cannot hold {original} bytes"),
        )),
    }
}

/// The decoded length in bytes, found by going through the whole payload in little memory ([`memory_to_measure`]). A small
/// payload may take long, so there is an eye on `cancelled`.
///
/// # Errors
/// The payload is damaged, or decodes to more than `limit` bytes; or [`ErrorKind::Cancelled`].
pub(crate) fn measure(
    encoding: impl Into<Encoding>,
    payload: &[u8],
    limit: u64,
    cancelled: &AtomicBool,
) -> Result<u64> {
    let encoding = encoding.into();
    let len = match encoding {
        Encoding::Lz4 => lz4::measure(payload, limit)?,
        Encoding::Zstd => zstd::measure(payload, limit, cancelled)?,
        Encoding::Snappy => snappy::measure(payload, limit)?,
        Encoding::Brotli => brotli::measure(payload, limit, cancelled)?,
        Encoding::Lz4Block => lz4::measure_block(payload)?,
        Encoding::Stored => payload.len() as u64,
        // As many as are announced.
        Encoding::Zeros => limit,
    };
    if len > limit {
        return Err(larger_than(encoding, limit));
    }
    Ok(len)
}

/// How much memory [`measure`] may take beside a payload and the decoder's own state, in bytes, as far as these bytes that it
/// begins with, or all of it, tell: what a payload asks for itself. Nothing is allocated here.
pub(crate) fn memory_to_measure(encoding: impl Into<Encoding>, payload: &[u8]) -> u64 {
    match encoding.into() {
        Encoding::Zstd => zstd::memory_to_measure(payload),
        _ => 0,
    }
}

/// Encodes `input` as one payload, which replaces what `output` holds; its memory is used again.
///
/// The payload depends on the input and the settings alone, never on what the thread encoded before.
///
/// # Errors
/// The codec cannot take the input: more than 4 GiB for Snappy, or memory ran out.
pub(crate) fn encode(
    codec: Codec,
    input: &[u8],
    settings: &Settings,
    output: &mut Vec<u8>,
) -> Result<()> {
    output.clear();
    match codec {
        Codec::Lz4 => lz4::encode(input, settings, output),
        Codec::Zstd => zstd::encode(input, settings, output),
        Codec::Snappy => snappy::encode(input, output),
        Codec::Brotli => brotli::encode(input, settings, output),
    }
}

/// The codec refused a payload.
fn damaged(encoding: impl Into<Encoding>, detail: impl ToString) -> Error {
    Error::new(ErrorKind::Decode {
        codec: encoding.into(),
        detail: detail.to_string(),
    })
}

/// The payload decodes to fewer bytes than announced.
fn shorter(encoding: impl Into<Encoding>, announced: u64, found: u64) -> Error {
    Error::new(ErrorKind::DecodedSize {
        codec: encoding.into(),
        announced,
        found: found.to_string(),
    })
}

/// The payload decodes to more bytes than announced.
fn larger_than(encoding: impl Into<Encoding>, announced: u64) -> Error {
    Error::new(ErrorKind::DecodedSize {
        codec: encoding.into(),
        announced,
        found: "more".to_owned(),
    })
}

/// The codec could not encode.
fn cannot_encode(codec: Codec, detail: impl std::fmt::Display) -> Error {
    Error::unusable(format!(
        "{codec} cannot compress this: {detail}; try another --codec or a smaller --chunk-size"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    pub(super) const SETTINGS: Settings = Settings {
        zstd_level: 3,
        zstd_threads: 0,
        brotli_quality: 5,
        lz4_thoroughness: None,
    };

    fn encoded(codec: Codec, input: &[u8]) -> Vec<u8> {
        let mut payload = b"left from before".to_vec();
        encode(codec, input, &SETTINGS, &mut payload).unwrap();
        payload
    }

    /// Bytes with repetitions near and far, and stretches that do not compress.
    pub(super) fn compressible() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            (any::<u8>(), 0_usize..70_000).prop_map(|(byte, len)| vec![byte; len]),
            (
                proptest::collection::vec(any::<u8>(), 1..40),
                0_usize..2_000
            )
                .prop_map(|(word, times)| word.repeat(times)),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    pub(super) fn any_codec() -> impl Strategy<Value = Codec> {
        proptest::sample::select(Codec::ALL.to_vec())
    }

    /// Decodes into the middle of a larger buffer and says whether the bytes around it were left alone.
    fn decode_guarded(codec: Codec, payload: &[u8], len: usize) -> (Result<()>, Vec<u8>) {
        let mut buffer = vec![0xa5; len + 128];
        let result = decode_into(codec, payload, &mut buffer[64..64 + len]);
        assert!(buffer[..64].iter().all(|&byte| byte == 0xa5));
        assert!(buffer[64 + len..].iter().all(|&byte| byte == 0xa5));
        (result, buffer[64..64 + len].to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_encoded_decodes_to_itself_and_to_no_other_length(
            codec in any_codec(),
            input in compressible(),
        ) {
            let payload = encoded(codec, &input);
            let (result, output) = decode_guarded(codec, &payload, input.len());
            prop_assert!(result.is_ok(), "{:?}", result);
            prop_assert_eq!(&output, &input);
            let probe = &payload[..payload.len().min(SIZE_PROBE_LEN)];
            if let Some(len) = decoded_len(codec, probe) {
                prop_assert_eq!(len, input.len() as u64);
            } else {
                prop_assert_eq!(codec, Codec::Brotli);
            }
            prop_assert_eq!(measure(codec, &payload, u64::MAX, &NEVER).unwrap(), input.len() as u64);
            prop_assert!(decode_guarded(codec, &payload, input.len() + 1).0.unwrap_err().is_damage());
            if let Some(shorter) = input.len().checked_sub(1) {
                prop_assert!(decode_guarded(codec, &payload, shorter).0.unwrap_err().is_damage());
                prop_assert!(measure(codec, &payload, shorter as u64, &NEVER).is_err());
            }
        }

        #[test]
        fn cut_or_flipped_payloads_are_refused_or_decoded_but_never_panic_or_overrun(
            codec in any_codec(),
            input in compressible(),
            cut in any::<prop::sample::Index>(),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
            len in 0_usize..3_000,
        ) {
            let payload = encoded(codec, &input);
            let cut = &payload[..cut.index(payload.len())];
            prop_assert!(decode_guarded(codec, cut, input.len()).0.is_err());
            let _ = measure(codec, cut, 1 << 20, &NEVER);
            let _ = decoded_len(codec, cut);
            let mut flipped = payload;
            for (place, mask) in flips {
                let place = place.index(flipped.len());
                flipped[place] ^= mask;
            }
            let _ = decode_guarded(codec, &flipped, input.len());
            let _ = decode_guarded(codec, &flipped, len);
            let _ = measure(codec, &flipped, 1 << 20, &NEVER);
            let _ = decoded_len(codec, &flipped);
        }

        #[test]
        fn noise_never_panics(
            codec in any_codec(),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            len in 0_usize..5_000,
        ) {
            let _ = decode_guarded(codec, &noise, len);
            let _ = measure(codec, &noise, 1 << 20, &NEVER);
            let _ = decoded_len(codec, &noise);
        }
    }

    #[test]
    fn bytes_behind_a_payload_are_refused() {
        for codec in Codec::ALL {
            for input in [&b""[..], b"a", &[7; 100_000]] {
                let mut payload = encoded(codec, input);
                payload.push(0);
                let (result, _) = decode_guarded(codec, &payload, input.len());
                assert!(result.unwrap_err().is_damage(), "{codec}");
            }
        }
    }

    #[test]
    fn zstd_worker_threads_make_one_frame_that_is_the_same_every_time() {
        let input: Vec<u8> = (0..3_000_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let settings = Settings {
            zstd_threads: 2,
            ..SETTINGS
        };
        let mut first = Vec::new();
        encode(Codec::Zstd, &input, &settings, &mut first).unwrap();
        encode(Codec::Zstd, b"something else", &SETTINGS, &mut Vec::new()).unwrap();
        let mut second = Vec::new();
        encode(Codec::Zstd, &input, &settings, &mut second).unwrap();
        assert!(first == second);
        assert_eq!(decoded_len(Codec::Zstd, &first), Some(input.len() as u64));
        let (result, output) = decode_guarded(Codec::Zstd, &first, input.len());
        assert!(result.is_ok() && output == input);
    }
}
