//! Decoding a unit that needs no other: a chunk by one call of its codec, or a piece off a branch.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use crate::archive::Unit;
use crate::codec::Stream;
use crate::error::{ErrorKind, Result};
use crate::memory::{Buffer, Urgency};
use crate::stats::Decoding;

/// Up to which length a payload's buffer is rounded up to a power of two, in bytes.
const ROUNDED_UP_TO: usize = 1 << 20;

/// What a unit is decoded by.
#[derive(Debug)]
pub(super) enum Alone {
    /// One call.
    Chunk,
    /// A branch that begins with the piece.
    Piece(Box<Stream>),
}

impl Shared {
    /// How to decode a unit, which is `bytes` of the original; `None` if it needs others, or another thread is at it. See
    /// [`Shared::prepare_branch`].
    pub(super) fn alone(&self, unit: Unit, bytes: &Range<u64>) -> Option<Alone> {
        match unit.piece {
            None => Some(Alone::Chunk),
            Some(_) if self.prepare_branch(unit.chunk, bytes) => {
                let branch = self.branch(unit.chunk, bytes, false)?;
                Some(Alone::Piece(Box::new(branch)))
            }
            Some(_) => None,
        }
    }

    /// Decodes a unit that a read needs, `bytes` of the original.
    pub(super) fn decode_alone(
        &self,
        unit: Unit,
        bytes: &Range<u64>,
        alone: Alone,
    ) -> Result<Arc<Buffer>> {
        let buffers = self.room_for(unit, bytes, Urgency::Demand)?;
        self.fill(unit, bytes, alone, buffers.ok_or(ErrorKind::Cancelled)?)
    }

    /// The buffers to decode a unit with, `bytes` of the original; `None` if there is no memory for speculation.
    pub(super) fn room_for(
        &self,
        unit: Unit,
        bytes: &Range<u64>,
        urgency: Urgency,
    ) -> Result<Option<[Buffer; 2]>> {
        let lengths = match unit.piece {
            None => self.room_lengths(unit.chunk),
            Some(_) => {
                let length = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
                [self.archive.room_beside(bytes), length]
            }
        };
        let acquired = self.engine.acquire(lengths, 0, urgency)?;
        Ok(acquired.map(|(buffers, _)| buffers))
    }

    /// Decodes a unit, `bytes` of the original, into the second of these buffers, with the first beside it.
    pub(super) fn fill(
        &self,
        unit: Unit,
        bytes: &Range<u64>,
        alone: Alone,
        [mut beside, mut original]: [Buffer; 2],
    ) -> Result<Arc<Buffer>> {
        match alone {
            Alone::Chunk => self.decode_into(unit.chunk, &mut beside, &mut original)?,
            Alone::Piece(branch) => {
                self.decode_off(*branch, unit.chunk, bytes, &mut original, &mut beside)?;
            }
        }
        Ok(Arc::new(original))
    }

    /// The lengths of a chunk's payload and of what it decodes to, in bytes.
    pub(super) fn lengths(&self, chunk: u32) -> [usize; 2] {
        let sizes = self.archive.sizes(chunk);
        sizes.map(|size| usize::try_from(size).unwrap_or(usize::MAX))
    }

    /// The lengths of the buffers to decode a whole chunk with, in bytes. That for its payload, which then is the room to check
    /// it with, is rounded up: payloads are of all lengths, and the buffer of one is to fit the next.
    pub(super) fn room_lengths(&self, chunk: u32) -> [usize; 2] {
        let [payload, original] = self.lengths(chunk);
        let room = payload.max(self.archive.room_beside(&self.bytes(chunk)));
        match room <= ROUNDED_UP_TO {
            true => [room.next_power_of_two(), original],
            false => [room, original],
        }
    }

    /// Decodes a whole chunk into `original`, which is as long as it, with `room` for its payload and then for checking it.
    pub(super) fn decode_into(
        &self,
        chunk: u32,
        room: &mut [u8],
        original: &mut [u8],
    ) -> Result<()> {
        let [length, _] = self.lengths(chunk);
        let payload = room.get_mut(..length).unwrap_or_default();
        let began = Instant::now();
        self.archive.decode(chunk, payload, original)?;
        let took = began.elapsed();
        self.archive.check(&self.bytes(chunk), original, room)?;
        let counters = &self.engine.counters;
        counters.decoded_chunks.add(1);
        counters.decoded_bytes.add(original.len() as u64);
        counters.compressed_bytes.add(length as u64);
        let encoding = self.archive.encoding(chunk)?;
        let bytes = original.len() as u64;
        counters.codecs.add(encoding, Decoding::Chunk, bytes, took);
        Ok(())
    }
}
