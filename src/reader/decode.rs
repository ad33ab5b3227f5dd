//! How a reader comes by a unit: from the cache, from another thread that is at it, or by decoding it here.
//!
//! Memory is asked for all at once and by nobody who holds some already that others wait for, so no two can wait for
//! each other: a decoder that was taken up is never held while waiting for memory or for another decoder.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::alone::Alone;
use super::streams::{ChunkKey, Lease, Taken};
use crate::archive::{Unit, is_of_parts, piece_bytes, piece_number};
use crate::cache::{Entry, Key, Mark, Origin};
use crate::codec::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Encoding;
use crate::memory::{Buffer, Urgency};
use crate::stats::Decoding;

/// How much is decoded at a time at least where it is thrown away, in bytes.
const LEAST_STEP: usize = 16 << 10;

/// A unit that a read needs.
pub(super) struct Decoded {
    pub(super) unit: Arc<Buffer>,
    /// Which original bytes it holds.
    pub(super) bytes: Range<u64>,
    pub(super) origin: Origin,
}

impl Decoded {
    /// The part of the unit that lies in `range` of the original.
    pub(super) fn part(&self, range: &Range<u64>) -> &[u8] {
        let from = range.start.saturating_sub(self.bytes.start) as usize;
        let to = range
            .end
            .min(self.bytes.end)
            .saturating_sub(self.bytes.start) as usize;
        self.unit.get(from..to).unwrap_or_default()
    }
}

impl Shared {
    pub(super) fn key(&self, unit: Unit) -> Key {
        Key {
            contents: self.archive.contents().number,
            unit,
        }
    }

    /// Where a chunk lies in the original.
    pub(super) fn bytes(&self, chunk: u32) -> Range<u64> {
        let bytes = self.archive.table().original_range(chunk);
        bytes.unwrap_or_default()
    }

    /// The unit that holds the original byte at `offset`, and which bytes it has; `None` behind the end.
    pub(super) fn unit_at(&self, offset: u64) -> Option<(Unit, Range<u64>)> {
        let contents = self.archive.contents();
        contents.unit_holding(offset, self.one_call)
    }

    /// As [`Shared::unit_at`], if the unit can be decoded without others, as far as is known.
    pub(super) fn lone_unit_at(&self, offset: u64) -> Option<(Unit, Range<u64>)> {
        let found = self.unit_at(offset);
        found.filter(|(unit, _)| self.is_alone(*unit))
    }

    /// Whether a unit can be decoded without others, as far as is known.
    pub(super) fn is_alone(&self, unit: Unit) -> bool {
        unit.piece.is_none() || self.has_branches(unit.chunk)
    }

    /// Whether one call decodes a chunk unless its pieces may be decoded apart.
    pub(super) fn is_short(&self, chunk: u32) -> bool {
        self.one_call.is_short(&self.bytes(chunk))
    }

    /// Takes notice that the payload's first bytes, or a decoder, say that a chunk has to be decoded whole.
    pub(super) fn decode_only_whole(&self, chunk: u32) {
        let contents = self.archive.contents();
        // How a writer makes LZ4 frames is how it makes all of them.
        let is_of_all = self.archive.encoding(chunk).ok() == Some(Encoding::Lz4);
        match self.is_short(chunk) {
            true if is_of_all => contents.decode_short_ones_whole(),
            is_short => contents.decode_only_whole(chunk, is_short),
        }
    }

    /// Checks that the file reaches to the end of a chunk's payload, and that this may be one of the chunk's, before memory is taken
    /// for it.
    pub(super) fn check_whole(&self, chunk: u32) -> Result<()> {
        self.archive.payload_range(chunk).map(drop)
    }

    /// The unit that holds the byte at `offset`; `None` behind the end. `kept` is told which bytes it has, and says how many
    /// of them are going to be handed to somebody who keeps them.
    ///
    /// # Errors
    /// The unit cannot be decoded; the error is in the log.
    pub(super) fn unit_holding(
        self: &Arc<Self>,
        offset: u64,
        kept: impl Fn(&Range<u64>) -> usize,
    ) -> Result<Option<Decoded>> {
        loop {
            let Some((unit, bytes)) = self.unit_at(offset) else {
                return Ok(None);
            };
            let outcome = self
                .check_whole(unit.chunk)
                .and_then(|()| self.unit(unit, &bytes, kept(&bytes)));
            match outcome {
                Ok((unit, origin)) => {
                    return Ok(Some(Decoded {
                        unit,
                        bytes,
                        origin,
                    }));
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::Unstreamable { .. })
                        && unit.piece.is_some() =>
                {
                    // Unless it is the only one that has to be.
                    if self.unit_at(offset).is_some_and(|(now, _)| now == unit) {
                        self.decode_only_whole(unit.chunk);
                    }
                }
                Err(error) => return Err(self.report(error, unit.chunk)),
            }
        }
    }

    fn unit(
        self: &Arc<Self>,
        unit: Unit,
        bytes: &Range<u64>,
        kept: usize,
    ) -> Result<(Arc<Buffer>, Origin)> {
        let cache = &self.engine.cache;
        match cache.enter(self.key(unit), kept, self.is_alone(unit))? {
            Entry::Found(found, origin) => Ok((found, origin)),
            Entry::Vacant(mark) => {
                let decoded = match unit.piece {
                    Some(_) => match self.decode_branch(&mark, unit, bytes) {
                        Ok(Some(piece)) => Ok((Ok(piece), None)),
                        Ok(None) => self.decode_piece(&mark, unit.chunk, bytes),
                        Err(error) => Err(error),
                    },
                    None => {
                        let decoded = self.decode_alone(unit, bytes, Alone::Chunk);
                        decoded.map(|bytes| (Ok(bytes), None))
                    }
                };
                let (outcome, lease) = decoded.unwrap_or_else(|error| (Err(error), None));
                // In this order: who finds the decoder behind the piece is to find the piece as well.
                mark.land(outcome.clone());
                if let Some(lease) = lease {
                    self.put_aside(lease, unit.chunk);
                }
                Ok((outcome?, Origin::Decoded))
            }
        }
    }

    /// Decodes a piece of a chunk that a read needs, `bytes` of the original, going on from where a decoder stands; or gets it
    /// from whoever came by. The decoder is to be put aside when the piece has landed, also if that is not what was packed: what lies
    /// behind it may be.
    fn decode_piece(
        &self,
        mark: &Mark<'_>,
        chunk: u32,
        bytes: &Range<u64>,
    ) -> Result<(Result<Arc<Buffer>>, Option<Lease<'_>>)> {
        let streams = &self.engine.streams;
        let key = self.chunk_key(chunk);
        let origin = self.bytes(chunk).start;
        let (start, end) = (bytes.start - origin, bytes.end - origin);
        if let Some(error) = self.archive.contents().dead_end(chunk, end) {
            return self.archive.check_unchanged().and(Err(error));
        }
        let mut begin = false;
        let mut brought = None;
        loop {
            // Whoever has come past the piece has brought it in before saying so.
            streams.wait_for(key, start);
            if let Some(supplied) = self.engine.cache.supplied(mark) {
                return Ok((Ok(supplied), None));
            }
            let beside = match begin {
                true => {
                    brought = self.bring_piece(chunk, 0, end);
                    let beside = self.stream_memory(chunk)?;
                    streams.make_way(beside);
                    beside
                }
                false => 0,
            };
            let lengths = [(end - start) as usize, self.archive.room_beside(bytes)];
            let acquire = |urgency| self.engine.acquire(lengths, beside, urgency);
            // Nobody waits for memory who holds some.
            let mut acquired = None;
            if brought.is_some() {
                acquired = acquire(Urgency::Speculation)?;
            }
            if acquired.is_none() {
                brought = None;
                acquired = acquire(Urgency::Demand)?;
            }
            let ([mut piece, mut room_beside], room) = acquired.ok_or(ErrorKind::Cancelled)?;
            let mut lease = match streams.take(key, start, begin) {
                Taken::Lease(lease) => lease,
                Taken::AtWork => continue,
                Taken::Nothing => {
                    begin = true;
                    continue;
                }
            };
            // Another may have come and gone since the first look.
            if let Some(supplied) = self.engine.cache.supplied(mark) {
                return Ok((Ok(supplied), Some(lease)));
            }
            match lease.stream().map(|stream| stream.position()) {
                Some(from) => brought = self.bring_piece(chunk, from, end),
                None => lease.begin(self.archive.open_stream(chunk)?, room),
            }
            self.pass(&mut lease, chunk, start, &mut piece)?;
            self.decode_on(&mut lease, chunk, &mut piece, 1)?;
            drop(brought);
            let checked = self.archive.check(bytes, &piece, &mut room_beside);
            return Ok((checked.map(|()| Arc::new(piece)), Some(lease)));
        }
    }

    pub(super) fn chunk_key(&self, chunk: u32) -> ChunkKey {
        ChunkKey {
            contents: self.archive.contents().number,
            chunk,
        }
    }

    pub(super) fn stream_memory(&self, chunk: u32) -> Result<u64> {
        let codec = self.archive.encoding(chunk)?;
        let unstreamable = ErrorKind::Unstreamable { codec };
        let only_for_its_parts = self.is_short(chunk);
        let memory = self.archive.stream_memory(chunk, only_for_its_parts)?;
        let whole = self.room_lengths(chunk).into_iter();
        let whole = whole.fold(0_u64, |sum, length| sum.saturating_add(length as u64));
        match memory {
            // What takes more memory to decode in pieces than whole is no large chunk to its codec.
            Some([held, fetched]) if held < whole => Ok(held.saturating_add(fetched)),
            _ => Err(unstreamable.into()),
        }
    }

    /// Brings a chunk's decoder to `offset`. What it comes by goes into the cache as far as there is memory: it took time, and
    /// who reads backwards will want it. `scratch` takes the rest.
    pub(super) fn pass(
        &self,
        lease: &mut Lease<'_>,
        chunk: u32,
        offset: u64,
        scratch: &mut [u8],
    ) -> Result<()> {
        // The last piece of a chunk may be short, and steps of its length many.
        let mut small = [0; LEAST_STEP];
        let scratch = match scratch.len() < LEAST_STEP {
            true => small.as_mut_slice(),
            false => scratch,
        };
        let origin = self.bytes(chunk).start;
        let mut position = self.seek(lease, chunk, offset)?;
        while position < offset {
            let (unit, piece) = self.piece_at(chunk, position);
            let rest = origin + offset;
            let begins = piece.start == origin + position;
            let length = (piece.end.min(rest) - (origin + position)) as usize;
            let key = self.key(unit);
            let kept = match begins && piece.end <= rest && !self.engine.cache.is_ready(key) {
                true => {
                    let lengths = [length, self.archive.room_beside(&piece)];
                    self.engine
                        .cache
                        .budget()
                        .acquire(lengths, Urgency::Speculation, || self.engine.make_room())?
                }
                false => None,
            };
            if let Some([mut bytes, mut room]) = kept {
                self.decode_on(lease, chunk, &mut bytes, 1)?;
                // Who reads a damaged one is told; what lies behind it may be sound.
                if self.archive.check(&piece, &bytes, &mut room).is_ok() {
                    self.engine.cache.supply(key, bytes, None);
                }
            } else {
                let length = length.min(scratch.len());
                let part = scratch.get_mut(..length).unwrap_or_default();
                // Several steps may make up one piece.
                let ends_it = origin + position + length as u64 == piece.end;
                self.decode_on(lease, chunk, part, ends_it.into())?;
            }
            position = position_of(lease);
            lease.came_to(position);
        }
        Ok(())
    }

    /// The piece that holds the byte at `position`, in bytes from the chunk's beginning, and which bytes of the original it has.
    pub(super) fn piece_at(&self, chunk: u32, position: u64) -> (Unit, Range<u64>) {
        let whole = self.bytes(chunk);
        let offset = whole.start + position;
        let piece = piece_number(&whole, offset);
        (Unit { chunk, piece }, piece_bytes(&whole, offset))
    }

    pub(super) fn seek(&self, lease: &mut Lease<'_>, chunk: u32, offset: u64) -> Result<u64> {
        match lease.stream() {
            Some(stream) => self.archive.seek_stream(chunk, stream, offset),
            None => Ok(0),
        }
    }

    /// As [`Shared::decode_stream`], of a stream that is leased.
    pub(super) fn decode_on(
        &self,
        lease: &mut Lease<'_>,
        chunk: u32,
        output: &mut [u8],
        pieces: u64,
    ) -> Result<()> {
        let Some(stream) = lease.stream() else {
            return Ok(());
        };
        let end = stream.position().saturating_add(output.len() as u64);
        let decoded = self.decode_stream(stream, chunk, pieces, output);
        if let Err(error) = &decoded
            && self.is_dead_end(chunk, error)
        {
            let contents = self.archive.contents();
            contents.remember_dead_end(chunk, end, error);
        }
        decoded
    }

    /// Whether this error of a chunk's decoder is met by all who want what lies behind, each after as much decoding. What came from far
    /// away may come in better order the next time.
    fn is_dead_end(&self, chunk: u32, error: &Error) -> bool {
        let refused = matches!(
            error.kind(),
            ErrorKind::Decode { .. } | ErrorKind::DecodedSize { .. }
        );
        let in_order = self
            .archive
            .encoding(chunk)
            .is_ok_and(|encoding| !is_of_parts(encoding));
        refused && in_order && self.archive.distant().is_none()
    }

    /// Decodes what comes next in a stream of a chunk into all of `output`: so many pieces, or a part of one, which counts when it is
    /// the last.
    pub(super) fn decode_stream(
        &self,
        stream: &mut Stream,
        chunk: u32,
        pieces: u64,
        output: &mut [u8],
    ) -> Result<()> {
        let began = Instant::now();
        self.archive.decode_on(chunk, stream, output)?;
        let took = began.elapsed();
        if stream.was_all_zeros() && self.archive.distant().is_none() {
            // If its payload cannot be read again, another chunk's will be.
            let _ = self.archive.learn_zero_chunk(chunk);
        }
        let counters = &self.engine.counters;
        counters.decoded_pieces.add(pieces);
        counters.decoded_bytes.add(output.len() as u64);
        let encoding = self.archive.encoding(chunk)?;
        let bytes = output.len() as u64;
        counters
            .codecs
            .add(encoding, Decoding::Pieces(pieces), bytes, took);
        Ok(())
    }

    /// Puts a decoder aside that has more to decode.
    pub(super) fn put_aside(&self, mut lease: Lease<'_>, chunk: u32) {
        let bytes = self.bytes(chunk);
        if position_of(&mut lease) < bytes.end - bytes.start {
            lease.put_aside();
            // Who waits for memory may now take this decoder's.
            self.engine.cache.budget().announce();
        }
    }

    /// Adds the place to an error and logs it, but every chunk's only once, and a file's change only once.
    pub(super) fn report(&self, error: Error, chunk: u32) -> Error {
        self.archive.doubt(chunk, &error);
        let bytes = self.bytes(chunk);
        let error = error
            .in_chunk(chunk, bytes.start)
            .in_file(self.archive.path());
        if matches!(error.kind(), ErrorKind::Changed) {
            if self.archive.contents().report_change_once() {
                let path = self.archive.path().display();
                tracing::warn!(
                    "{path}: changed while it is open; who has it open must open it again"
                );
            }
        } else if !error.is_damage() && !matches!(error.kind(), ErrorKind::OverBudget { .. }) {
            // What may pass must not use up the one report of damage.
            if self.engine.failures.is_due() {
                tracing::warn!("{error}");
            }
        } else if self.archive.contents().report_once(chunk) {
            tracing::error!(
                "{error}; its bytes {}..{} cannot be read",
                bytes.start,
                bytes.end
            );
        }
        error
    }
}

pub(super) fn position_of(lease: &mut Lease<'_>) -> u64 {
    lease.stream().map_or(0, |stream| stream.position())
}
