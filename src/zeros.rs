//! Whether bytes are all zero: what holes read as, and what becomes holes again.
//!
//! A sparse disk image is chunks of zeros for the most part. One codec at one level makes the same few bytes of the same zeros, so
//! the payload of a chunk that decoded to nothing but zeros is remembered ([`ZeroPayloads`]), and a chunk that has the very same one
//! needs no decoder: a codec that repeats one byte 128 KiB long takes ten times as long for it as filling memory does.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::Encoding;

/// The length of a payload's frame and first few instructions, generously, in bytes.
const FRAME: u64 = 64;

/// How many sizes of chunks are known at most. A file has two as a rule: the last chunk is shorter.
const MOST_SIZES: usize = 16;

/// The payloads of chunks of zeros, by how they are encoded and the chunks' original size in bytes.
#[derive(Debug, Default)]
pub(crate) struct ZeroPayloads(Mutex<HashMap<(Encoding, u64), ZeroPayload>>);

/// What a payload of zeros is. Its hash stands for it: some are mebibytes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ZeroPayload {
    /// In bytes.
    pub(crate) len: u64,
    pub(crate) hash: blake3::Hash,
}

impl ZeroPayload {
    pub(crate) fn of(payload: &[u8]) -> Self {
        Self {
            len: payload.len() as u64,
            hash: blake3::hash(payload),
        }
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, payload: &[u8]) -> bool {
        self.len == payload.len() as u64 && self.hash == blake3::hash(payload)
    }
}

impl ZeroPayloads {
    /// The payload that so many zeros have in this encoding, if one is known.
    pub(crate) fn of(&self, encoding: Encoding, original_size: u64) -> Option<ZeroPayload> {
        self.lock().get(&(encoding, original_size)).copied()
    }

    /// Whether no more can be learned.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().len() >= MOST_SIZES
    }

    /// Takes notice of the payload that so many zeros have. What was known stays known, so that who asks twice gets the same answer.
    pub(crate) fn learn(&self, encoding: Encoding, original_size: u64, payload: ZeroPayload) {
        let mut known = self.lock();
        if known.len() < MOST_SIZES {
            known.entry((encoding, original_size)).or_insert(payload);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Encoding, u64), ZeroPayload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a payload of so many bytes is short enough to be one of so many zeros: what is packed less tightly is none.
pub(crate) fn may_be_zeros(encoding: Encoding, packed_size: u64, original_size: u64) -> bool {
    // How many bytes of zeros a payload's byte stands for at the least, beside the frame. LZ4 has a byte for 255 of a long
    // match, Snappy three for 64, the others next to nothing.
    let ratio = match encoding {
        Encoding::Lz4 | Encoding::Lz4Block => 200,
        Encoding::Snappy => 16,
        Encoding::Zstd | Encoding::Brotli => 1000,
        // Who stores chunks as they are has an encoding for zeros, too.
        Encoding::Stored => return false,
        Encoding::Zeros => return true,
    };
    packed_size <= FRAME + original_size / ratio
}

/// Whether there is not a byte but zero. Stops at the first 64 bytes with another: a block at a time is compared in wide
/// registers.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_of_zeros_is_known_by_its_encoding_and_its_size() {
        let zeros = ZeroPayloads::default();
        assert_eq!(zeros.of(Encoding::Zstd, 1 << 20), None);
        zeros.learn(Encoding::Zstd, 1 << 20, ZeroPayload::of(b"repeat 0"));
        let known = zeros.of(Encoding::Zstd, 1 << 20).unwrap();
        assert!(known.is(b"repeat 0") && !known.is(b"repeat 1") && !known.is(b"repeat 00"));
        assert_eq!(zeros.of(Encoding::Zstd, 1 << 19), None);
        assert_eq!(zeros.of(Encoding::Brotli, 1 << 20), None);
    }

    #[test]
    fn a_file_of_many_sizes_makes_nobody_remember_them_all() {
        let zeros = ZeroPayloads::default();
        for size in 0..1000 {
            zeros.learn(Encoding::Lz4, size, ZeroPayload::of(b"x"));
        }
        assert_eq!(zeros.lock().len(), MOST_SIZES);
        assert!(zeros.is_full());
    }

    #[test]
    fn what_is_known_of_zeros_does_not_change() {
        let zeros = ZeroPayloads::default();
        zeros.learn(Encoding::Lz4, 3, ZeroPayload::of(b"x"));
        zeros.learn(Encoding::Lz4, 3, ZeroPayload::of(b"y"));
        assert!(zeros.of(Encoding::Lz4, 3).unwrap().is(b"x"));
    }

    #[test]
    fn one_byte_is_enough_not_to_be_zero() {
        for len in [0, 1, 63, 64, 65, 1000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for place in 0..len {
                bytes[place] = 1;
                assert!(!is_zero(&bytes));
                bytes[place] = 0;
            }
        }
    }
}
