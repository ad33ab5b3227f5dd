//! Where an original has data and where it has holes, for SEEK_DATA and SEEK_HOLE.
//!
//! A record of digests says which leaves are zeros; where it is damaged, all is data. In a file without one, a chunk is a hole if it
//! decodes to nothing but zeros. To find that out without decoding a sparse disk image from end to end, the payload of a chunk of zeros is remembered (as a hash) for its size: one codec at one level makes the
//! same few bytes of the same zeros, so equal payloads are equal chunks. What is not proved to be a hole is data, which is
//! always a right answer: what cannot be decoded too, because it is for reading to say so.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Reader, Shared};
use crate::archive::Record;
use crate::error::{ErrorKind, Result};
use crate::format::Encoding;
use crate::memory::Urgency;
use crate::zeros::{is_zero, may_be_zeros};

/// How many sizes of chunks are known at most. A file has two as a rule: the last chunk is shorter.
const MOST_SIZES: usize = 16;

/// The payloads of chunks of zeros, by how they are encoded and the chunks' original size in bytes.
#[derive(Debug, Default)]
pub(super) struct ZeroPayloads(Mutex<KnownZeros>);

type KnownZeros = HashMap<(Encoding, u64), ZeroPayload>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ZeroPayload {
    length: u64,
    hash: blake3::Hash,
}

impl Reader {
    /// The first offset at or behind `offset` that may hold something else than zeros; `None` if there is none before
    /// the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        self.find(offset, false)
    }

    /// The first offset at or behind `offset` from which on a whole leaf of 32 KiB (of 64 KiB if reads are proved; without a record of
    /// digests a whole chunk) holds only zeros; the end of the file counts as such. `None` if `offset` is at or behind the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_hole(&self, offset: u64) -> Result<Option<u64>> {
        match offset < self.len() {
            true => Ok(Some(self.find(offset, true)?.unwrap_or(self.len()))),
            false => Ok(None),
        }
    }

    fn find(&self, offset: u64, hole: bool) -> Result<Option<u64>> {
        if offset >= self.len() {
            return Ok(None);
        }
        if let Some(record) = self.shared.archive.record() {
            self.shared.archive.check_unchanged()?;
            return self.find_in_record(record, offset, hole);
        }
        let table = self.shared.archive.table();
        for chunk in table.chunks_holding(&(offset..self.len())) {
            let bytes = table.original_range(chunk).unwrap_or_default();
            if !bytes.is_empty() && self.is_hole(chunk, &bytes)? == hole {
                return Ok(Some(bytes.start.max(offset)));
            }
        }
        Ok(None)
    }

    fn find_in_record(&self, record: &Record, offset: u64, hole: bool) -> Result<Option<u64>> {
        let layout = record.layout();
        for page in offset / layout.page_len..layout.page_count(self.len()) {
            let Some(leaves) = self.shared.archive.leaves_of_page(record, page)? else {
                match hole {
                    true => continue,
                    false => {
                        return Ok(Some(layout.page_range(page, self.len()).start.max(offset)));
                    }
                }
            };
            let found = leaves
                .into_iter()
                .find(|(range, zeros)| range.end > offset && *zeros == hole);
            if let Some((range, _)) = found {
                return Ok(Some(range.start.max(offset)));
            }
        }
        Ok(None)
    }

    fn is_hole(&self, chunk: u32, bytes: &Range<u64>) -> Result<bool> {
        let place = self.shared.archive.table().compressed_range(chunk);
        let place = place.unwrap_or_default();
        let original_size = bytes.end - bytes.start;
        let length = place.end - place.start;
        let encoding = self.shared.archive.encoding(chunk)?;
        if encoding == Encoding::Zeros {
            return Ok(true);
        }
        if !may_be_zeros(encoding, length, original_size) {
            return Ok(false);
        }
        let known = lock(&self.shared.zeros)
            .get(&(encoding, original_size))
            .copied();
        if known.is_some_and(|known| known.length != length) {
            return Ok(false);
        }
        let compare = || -> Result<bool> {
            let hash = self.shared.payload_hash(chunk, length)?;
            if let Some(known) = known {
                return Ok(known.hash == hash);
            }
            let mut offset = bytes.start;
            while offset < bytes.end
                && let Some(decoded) = self.shared.unit_holding(offset, |_| 0)?
            {
                if !is_zero(&decoded.unit) {
                    return Ok(false);
                }
                offset = decoded.bytes.end;
            }
            let mut zeros = lock(&self.shared.zeros);
            if zeros.len() < MOST_SIZES {
                zeros.insert((encoding, original_size), ZeroPayload { length, hash });
            }
            Ok(true)
        };
        match compare() {
            Err(error)
                if error.is_damage() || matches!(error.kind(), ErrorKind::OverBudget { .. }) =>
            {
                Ok(false)
            }
            other => other,
        }
    }
}

impl Shared {
    fn payload_hash(&self, chunk: u32, length: u64) -> Result<blake3::Hash> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let budget = self.engine.cache.budget();
        let room = budget.acquire([length], Urgency::Demand, || self.engine.make_room())?;
        let Some([mut payload]) = room else {
            return Err(ErrorKind::Cancelled.into());
        };
        self.archive.read_payload_into(chunk, &mut payload)?;
        Ok(blake3::hash(&payload))
    }
}

fn lock(zeros: &ZeroPayloads) -> MutexGuard<'_, KnownZeros> {
    zeros.0.lock().unwrap_or_else(PoisonError::into_inner)
}
