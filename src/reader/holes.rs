//! Where an original has data and where it has holes, for SEEK_DATA and SEEK_HOLE.
//!
//! A chunk is a hole if it decodes to nothing but zeros. To find that out without decoding a sparse disk image from
//! end to end, the payload of a chunk of zeros is remembered for its size: one codec at one level makes the same few
//! bytes of the same zeros, so equal payloads are equal chunks. What is not proved to be a hole is data, which is
//! always a right answer.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::Reader;
use crate::error::Result;
use crate::zeros::is_zero;

/// A chunk is looked at only if it is packed at least so many times smaller: zeros are, in every codec.
const ZEROS_RATIO: u64 = 16;

/// The payloads of chunks of zeros, by the chunks' original size in bytes.
#[derive(Debug, Default)]
pub(super) struct ZeroPayloads(Mutex<HashMap<u64, Vec<u8>>>);

impl Reader {
    /// The first offset at or behind `offset` that may hold something else than zeros; `None` if there is none before
    /// the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        self.find(offset, false)
    }

    /// The first offset at or behind `offset` from which on a whole chunk holds only zeros; the end of the file counts
    /// as such. `None` if `offset` is at or behind the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_hole(&self, offset: u64) -> Result<Option<u64>> {
        if offset >= self.len() {
            return Ok(None);
        }
        Ok(Some(self.find(offset, true)?.unwrap_or(self.len())))
    }

    fn find(&self, offset: u64, hole: bool) -> Result<Option<u64>> {
        let table = self.shared.archive.table();
        let mut payload = Vec::new();
        for chunk in table.chunks_holding(&(offset..self.len().max(offset))) {
            let bytes = table.original_range(chunk).unwrap_or_default();
            if !bytes.is_empty() && self.is_hole(chunk, &bytes, &mut payload)? == hole {
                return Ok(Some(bytes.start.max(offset)));
            }
        }
        Ok(None)
    }

    fn is_hole(&self, chunk: u32, bytes: &Range<u64>, payload: &mut Vec<u8>) -> Result<bool> {
        let archive = &self.shared.archive;
        let place = archive.table().compressed_range(chunk).unwrap_or_default();
        let original_size = bytes.end - bytes.start;
        let compressed_size = place.end - place.start;
        if compressed_size.saturating_mul(ZEROS_RATIO) > original_size {
            return Ok(false);
        }
        let known_size = self.with_zeros(original_size, |known| known.map(<[u8]>::len));
        if known_size.is_some_and(|length| length as u64 != compressed_size) {
            return Ok(false);
        }
        archive.read_payload(chunk, payload)?;
        if known_size.is_some() {
            return Ok(self.with_zeros(original_size, |known| known == Some(payload.as_slice())));
        }
        let (decoded, _) = self.shared.chunk(chunk)?;
        let zeros = is_zero(&decoded);
        if zeros {
            let mut payloads = lock(&self.shared.zeros);
            payloads.insert(original_size, payload.clone());
        }
        Ok(zeros)
    }

    fn with_zeros<T>(&self, original_size: u64, look: impl FnOnce(Option<&[u8]>) -> T) -> T {
        let payloads = lock(&self.shared.zeros);
        look(payloads.get(&original_size).map(Vec::as_slice))
    }
}

fn lock(zeros: &ZeroPayloads) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<u8>>> {
    zeros.0.lock().unwrap_or_else(PoisonError::into_inner)
}
