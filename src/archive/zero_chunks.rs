//! Chunks of zeros, known by their payloads.
//!
//! A chunk that has the payload of another that decoded to nothing but zeros is one of zeros too, and no decoder is asked. It is not
//! only that codecs take ten times as long to repeat a byte as filling memory does: a chunk of many pieces that has to be decoded
//! from front to back is one whose pieces need no others then. `cat` of 4 GiB of zeros, two processors, medians of three in turn:
//! default chunks of zstd 1.06 s instead of 1.33, of lz4 1.06 instead of 1.34, 4 and 16 MiB of zstd 1.06 instead of 2.06.
//!
//! What is learned of one chunk lasts for as long as the file stays the same.

use std::sync::atomic::Ordering::Relaxed;

use super::Archive;
use crate::codec::{self, Payload as _};
use crate::error::Result;
use crate::format::Encoding;
use crate::zeros::{ZeroPayload, is_zero, may_be_zeros};

/// How much of a payload is read at a time, in bytes.
const STEP_LEN: usize = 16 << 10;
/// The longest payload that is read only to tell whether it is one of zeros, in bytes: 64 MiB of them in LZ4, 5 in Snappy.
const TOLD_BY_AT_MOST: u64 = 256 << 10;

impl Archive {
    /// Decodes a payload into `output`, or fills it with the zeros that the payload is known to be.
    ///
    /// # Errors
    /// Those of [`codec::decode_into`].
    pub(super) fn decode_or_fill(
        &self,
        encoding: Encoding,
        payload: &[u8],
        output: &mut [u8],
    ) -> Result<()> {
        let original_size = output.len() as u64;
        if self.is_known_zeros(encoding, payload, original_size) {
            output.fill(0);
            return Ok(());
        }
        codec::decode_into(encoding, payload, output)?;
        if is_zero(output) {
            self.learn_zeros(encoding, payload, original_size);
        }
        Ok(())
    }

    /// Whether a payload is known to be one of so many zeros.
    pub(crate) fn is_known_zeros(
        &self,
        encoding: Encoding,
        payload: &[u8],
        original_size: u64,
    ) -> bool {
        may_be_zeros(encoding, payload.len() as u64, original_size)
            && self
                .contents
                .zeros
                .of(encoding, original_size)
                .is_some_and(|known| known.is(payload))
    }

    /// Takes notice that a payload is one of so many zeros.
    pub(crate) fn learn_zeros(&self, encoding: Encoding, payload: &[u8], original_size: u64) {
        // What is stored as zeros needs no payload.
        let is_encoded = encoding != Encoding::Zeros;
        if is_encoded && may_be_zeros(encoding, payload.len() as u64, original_size) {
            let payload = ZeroPayload::of(payload);
            self.contents.zeros.learn(encoding, original_size, payload);
        }
    }

    /// Whether a chunk's payload is short enough to be one of zeros.
    ///
    /// # Errors
    /// There is no such chunk.
    pub(crate) fn may_be_zeros(&self, chunk: u32) -> Result<bool> {
        let [len, original_size] = self.sizes(chunk);
        Ok(may_be_zeros(self.encoding(chunk)?, len, original_size))
    }

    /// Whether a chunk is zeros, by its payload; `None` if only decoding can tell.
    ///
    /// # Errors
    /// As [`Archive::read_payload`].
    pub(crate) fn is_zeros(&self, chunk: u32) -> Result<Option<bool>> {
        self.is_zeros_by(chunk, &mut [0; STEP_LEN])
    }

    /// As [`Archive::is_zeros`], with room to read the payload to, so that it is read at once if it fits.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn is_zeros_by(&self, chunk: u32, room: &mut [u8]) -> Result<Option<bool>> {
        let encoding = self.encoding(chunk)?;
        if encoding == Encoding::Zeros {
            return Ok(Some(true));
        }
        let [len, original_size] = self.sizes(chunk);
        if !may_be_zeros(encoding, len, original_size) {
            return Ok(Some(false));
        }
        let Some(known) = self.contents.zeros.of(encoding, original_size) else {
            return Ok(None);
        };
        if known.len != len {
            return Ok(Some(false));
        }
        if self.was_seen_to_be_zeros(chunk) {
            return Ok(Some(true));
        }
        let contents = &self.contents;
        if contents.last_unlike_zeros.load(Relaxed) == u64::from(chunk) {
            return Ok(Some(false));
        }
        let is_it = self.payload_hash(chunk, room)? == known.hash;
        let last = match is_it {
            true => &contents.last_zeros,
            false => &contents.last_unlike_zeros,
        };
        last.store(chunk.into(), Relaxed);
        Ok(Some(is_it))
    }

    /// Takes notice that a chunk was decoded to nothing but zeros.
    ///
    /// # Errors
    /// As [`Archive::read_payload`].
    pub(crate) fn learn_zero_chunk(&self, chunk: u32) -> Result<()> {
        let [len, _] = self.sizes(chunk);
        match len <= TOLD_BY_AT_MOST {
            true => self.learn_zero_chunk_by(chunk, &mut [0; STEP_LEN]),
            false => Ok(()),
        }
    }

    /// As [`Archive::learn_zero_chunk`], with room to read the payload to.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn learn_zero_chunk_by(&self, chunk: u32, room: &mut [u8]) -> Result<()> {
        if !self.contents.zeros.is_full() && self.is_zeros_by(chunk, room)?.is_none() {
            let [len, original_size] = self.sizes(chunk);
            let hash = self.payload_hash(chunk, room)?;
            let payload = ZeroPayload { len, hash };
            let zeros = &self.contents.zeros;
            zeros.learn(self.encoding(chunk)?, original_size, payload);
        }
        Ok(())
    }

    /// Whether a chunk's payload need not be decoded, because it is known to be zeros. Of a file that is far away nothing is fetched
    /// to find that out.
    ///
    /// # Errors
    /// As [`Archive::read_payload`].
    pub(crate) fn needs_no_decoder(&self, chunk: u32) -> Result<bool> {
        let [len, _] = self.sizes(chunk);
        Ok(self.distant().is_none()
            && len <= TOLD_BY_AT_MOST
            && self.encoding(chunk)? != Encoding::Zeros
            && self.is_zeros(chunk)? == Some(true))
    }

    /// Whether a chunk is the one that was last found to be zeros by its payload: for who may not read now.
    pub(crate) fn was_seen_to_be_zeros(&self, chunk: u32) -> bool {
        self.contents.last_zeros.load(Relaxed) == u64::from(chunk)
    }

    fn payload_hash(&self, chunk: u32, room: &mut [u8]) -> Result<blake3::Hash> {
        self.with_payload(chunk, |payload, _| {
            let mut hasher = blake3::Hasher::new();
            let mut offset = 0;
            while offset < payload.len() && !room.is_empty() {
                let length = (payload.len() - offset).min(room.len() as u64);
                let step = room.get_mut(..length as usize).unwrap_or_default();
                payload.read_at(offset, step)?;
                hasher.update(step);
                offset += length;
            }
            Ok(hasher.finalize())
        })
    }
}
