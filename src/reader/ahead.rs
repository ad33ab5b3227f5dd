//! Decoding ahead of a reader, by the engine's workers.
//!
//! All of it is a guess: what a reader has come to meanwhile, or wants no more, is passed over; memory is asked for and never
//! waited for; and what fails is told to whoever asks for it.
//!
//! What the threads that answer decode straight to where it is wanted (`straight.rs`) is left to them. A disk image has both: zeros,
//! which they fill in faster than they would copy them, and large chunks of zstd between those, which one thread has to decode from
//! front to back and had better begin early. In chunks of 4 MiB, 1 GiB, cold, two processors, medians of nine in turn: with
//! the zeros left to them 0.52 s instead of 0.58, the chunks between begun before their reader comes there a further 7 %, and with
//! replies copied beside their reader while no worker needs the processor 0.34 instead of 0.50 all together.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::decode::position_of;
use super::distant::Fetched;
use super::streams::Lease;
use super::streams::Taken;
use crate::archive::Unit;
use crate::error::{ErrorKind, Result};
use crate::memory::Urgency;

/// What is left to the thread that answers of what its reader will want next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// What is known to be zeros: memory is filled with them where they are wanted in less time than it takes to copy them there.
    Zeros,
    /// Those, and all that can be decoded without what lies before it in its chunk.
    Alone,
    Everything,
}

impl Shared {
    /// Has the workers decode original bytes ahead of their reader, but for what is `left` to who answers him.
    pub(super) fn decode_ahead(self: &Arc<Self>, ahead: Range<u64>, left: Left) {
        if let Some(distant) = self.archive.distant() {
            self.line.add(ahead);
            return self.have_fetched_on(distant);
        }
        if left == Left::Nothing {
            return self.send_ahead(ahead, None);
        }
        let mut offset = ahead.start;
        while let Some((unit, bytes)) = self.unit_at(offset)
            && bytes.start < ahead.end
        {
            let end = self.bytes(unit.chunk).end.min(ahead.end);
            if !self.is_left(unit, left) {
                self.send_ahead(offset..end, None);
            }
            offset = end;
        }
    }

    /// Whether the chunk of a unit is left to who answers.
    fn is_left(&self, unit: Unit, left: Left) -> bool {
        let is_short = self.is_short(unit.chunk);
        // Short ones of zeros are decoded as all others are. What is wrong with a chunk is told to who reads it.
        let is_zeros = || !is_short && self.archive.needs_no_decoder(unit.chunk).unwrap_or(false);
        (left == Left::Alone && (is_short || self.is_alone(unit))) || is_zeros()
    }

    /// Hands the units of some bytes of the original to the workers; what was `fetched` for them is kept until they are done.
    pub(super) fn send_ahead(self: &Arc<Self>, ahead: Range<u64>, fetched: Option<&Arc<Fetched>>) {
        let mut offset = ahead.start;
        while let Some((unit, bytes)) = self.unit_at(offset)
            && bytes.start < ahead.end
        {
            let chunk = unit.chunk;
            if unit.piece.is_some() {
                let whole = self.bytes(chunk);
                let until = whole.end.min(ahead.end);
                let (from, to) = (bytes.start - whole.start, until - whole.start);
                let fetched = fetched.cloned();
                self.spawn(move |shared| shared.decode_chunk_ahead(chunk, from, to, fetched));
                offset = until;
            } else {
                let fetched = fetched.cloned();
                self.spawn(move |shared| {
                    shared.decode_unit_ahead(unit, &bytes);
                    drop(fetched);
                });
                offset = self.bytes(chunk).end;
            }
        }
    }

    /// Has the workers decode original bytes before their reader, who goes backwards: units that need no others.
    pub(super) fn decode_before(self: &Arc<Self>, before: Range<u64>) {
        let mut end = before.end;
        while end > before.start
            && let Some((unit, bytes)) = self.unit_at(end - 1)
        {
            end = bytes.start;
            if unit.piece.is_none() {
                self.spawn(move |shared| shared.decode_unit_ahead(unit, &bytes));
                continue;
            }
            end = self.bytes(unit.chunk).start.max(before.start);
            let pieces = end..bytes.end;
            self.spawn(move |shared| shared.decode_pieces_before(unit.chunk, &pieces));
        }
    }

    /// As [`Shared::decode_before`], for pieces of one chunk, which is looked through first: by one worker, not by all of them.
    fn decode_pieces_before(self: &Arc<Self>, chunk: u32, before: &Range<u64>) {
        let mut end = before.end;
        while end > before.start
            && let Some((unit, bytes)) = self.unit_at(end - 1)
            && unit.piece.is_some()
            && self.prepare_branch(chunk, &bytes)
        {
            end = bytes.start;
            self.spawn(move |shared| shared.decode_unit_ahead(unit, &bytes));
        }
    }

    /// Takes notice that a read had to wait for what it needs.
    pub(super) fn outran(&self, read: &Range<u64>) {
        self.prefetch.outran(read);
        self.backwards.outran(read);
        self.strides.outran(read);
    }

    /// Hands work to the workers, who drop it when the reader is gone by then.
    pub(super) fn spawn(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let shared = Arc::downgrade(self);
        self.engine.workers.spawn(move || {
            if let Some(shared) = shared.upgrade() {
                let _counted = shared.engine.working.begin();
                work(&shared);
            }
        });
    }

    /// Decodes a unit that needs no others.
    fn decode_unit_ahead(&self, unit: Unit, bytes: &Range<u64>) {
        let cache = &self.engine.cache;
        let key = self.key(unit);
        let chunk = unit.chunk;
        let in_a_row = self.prefetch.still_wants(bytes) || self.backwards.still_wants(bytes);
        // What is missing is reported to who asks for it.
        if !(in_a_row || self.strides.still_wants(bytes))
            || cache.knows(key)
            || self.check_whole(chunk).is_err()
        {
            return;
        }
        let Some(alone) = self.alone(unit, bytes) else {
            return;
        };
        let Some(ahead) = cache.go_ahead(bytes.end - bytes.start) else {
            return self.engine.counters.prefetch_refused.add(1);
        };
        let Ok(Some(buffers)) = self.room_for(unit, bytes, Urgency::Speculation) else {
            drop(ahead);
            return self.engine.counters.prefetch_refused.add(1);
        };
        let Some(mark) = cache.enter_ahead(key, ahead, in_a_row) else {
            return;
        };
        let outcome = self.fill(unit, bytes, alone, buffers);
        mark.land(outcome.clone());
        let counters = &self.engine.counters;
        match (outcome, unit.piece) {
            (Ok(_), None) => counters.prefetched_chunks.add(1),
            (Ok(_), Some(_)) => counters.prefetched_pieces.add(1),
            (Err(error), _) => drop(self.report(error, chunk)),
        }
    }

    /// Decodes a chunk's pieces ahead of any reader, `from` and `to` in bytes from the chunk's beginning; or does so when who
    /// is at it has done.
    fn decode_chunk_ahead(
        self: &Arc<Self>,
        chunk: u32,
        from: u64,
        to: u64,
        fetched: Option<Arc<Fetched>>,
    ) {
        if self.check_whole(chunk).is_err() {
            return;
        }
        let (_, first) = self.piece_at(chunk, from);
        if self.prepare_branch(chunk, &first) {
            return self.decode_pieces_ahead(chunk, from..to);
        }
        // They may just have turned out to need each other, and then nobody is going to ask for one of them.
        if let Some((unit, bytes)) = self.unit_at(first.start)
            && unit.piece.is_none()
        {
            return self.decode_unit_ahead(unit, &bytes);
        }
        match self.go_on_ahead(chunk, from, to, &fetched) {
            Err(error) if matches!(error.kind(), ErrorKind::Unstreamable { .. }) => {
                self.decode_only_whole(chunk);
                self.decode_unit_ahead(Unit { chunk, piece: None }, &self.bytes(chunk));
            }
            Err(error) => drop(self.report(error, chunk)),
            Ok(()) => {}
        }
    }

    /// Has the workers decode pieces of a chunk that do not need each other; `bytes` are counted from the chunk's beginning.
    fn decode_pieces_ahead(self: &Arc<Self>, chunk: u32, bytes: Range<u64>) {
        let mut from = bytes.start;
        while from < bytes.end {
            let (unit, piece) = self.piece_at(chunk, from);
            from = self.next_piece(chunk, from);
            self.spawn(move |shared| shared.decode_unit_ahead(unit, &piece));
        }
    }

    fn go_on_ahead(
        self: &Arc<Self>,
        chunk: u32,
        from: u64,
        to: u64,
        fetched: &Option<Arc<Fetched>>,
    ) -> Result<()> {
        let Some(from) = self.first_missing(chunk, from..to) else {
            return Ok(());
        };
        let (shared, kept) = (Arc::downgrade(self), fetched.clone());
        let again = move || {
            if let Some(shared) = shared.upgrade() {
                shared.spawn(move |shared| shared.decode_chunk_ahead(chunk, from, to, kept));
            }
        };
        // To come to any other place from the chunk's beginning is more than a guess is worth: the reader brings a decoder
        // along.
        let begin = from == 0;
        let streams = &self.engine.streams;
        let Taken::Lease(mut lease) = streams.take_ahead(self.chunk_key(chunk), from, begin, again)
        else {
            return Ok(());
        };
        if self.first_missing(chunk, from..to) != Some(from) {
            // It was brought in since the first look, and its decoder stands behind it.
            self.put_aside(lease, chunk);
            return self.go_on_ahead(chunk, from, to, fetched);
        }
        if lease.stream().is_none() {
            let beside = self.stream_memory(chunk)?;
            streams.make_way(beside);
            let make_room = || self.engine.make_room();
            let budget = self.engine.cache.budget();
            let room = budget.acquire_beside([], beside, Urgency::Speculation, make_room);
            let Ok(Some(([], room))) = room else {
                self.engine.counters.prefetch_refused.add(1);
                return Ok(());
            };
            lease.begin(self.archive.open_stream(chunk)?, room);
        }
        if position_of(&mut lease) < from {
            self.seek(&mut lease, chunk, from)?;
        }
        let mut position = position_of(&mut lease);
        lease.came_to(position);
        while position < to && self.wants_piece(chunk, position.max(from)) {
            if position < from {
                // Whoever reads now has to come by here as well, and waits for this decoder.
                let next = self.next_piece(chunk, position);
                self.pass(&mut lease, chunk, next.min(from), &mut [])?;
            } else if !self.decode_piece_ahead(&mut lease, chunk, position)? {
                break;
            }
            position = position_of(&mut lease);
            lease.came_to(position);
        }
        self.put_aside(lease, chunk);
        Ok(())
    }

    /// Where the first of a chunk's pieces begins that is still wanted and is not there yet; all in bytes from the chunk's
    /// beginning.
    fn first_missing(&self, chunk: u32, bytes: Range<u64>) -> Option<u64> {
        let mut from = bytes.start;
        while from < bytes.end {
            let (unit, _) = self.piece_at(chunk, from);
            let ready = self.engine.cache.is_ready(self.key(unit));
            if !ready && self.wants_piece(chunk, from) {
                return Some(from);
            }
            from = self.next_piece(chunk, from);
        }
        None
    }

    /// Where the piece ends that holds the byte at `position`, both in bytes from the chunk's beginning.
    fn next_piece(&self, chunk: u32, position: u64) -> u64 {
        let (_, piece) = self.piece_at(chunk, position);
        piece.end - self.bytes(chunk).start
    }

    /// Whether a reader has yet to come to the piece that holds the byte at `position`, in bytes from the chunk's beginning.
    fn wants_piece(&self, chunk: u32, position: u64) -> bool {
        let (_, piece) = self.piece_at(chunk, position);
        !self.closed.load(Ordering::Relaxed) && self.prefetch.still_wants(&piece)
    }

    /// Decodes the next piece ahead of any reader; says whether to go on: not if memory is short, or the piece is not
    /// what was packed.
    fn decode_piece_ahead(&self, lease: &mut Lease<'_>, chunk: u32, position: u64) -> Result<bool> {
        let (unit, whole) = self.piece_at(chunk, position);
        let rest = self.bytes(chunk).start + position..whole.end;
        let cache = &self.engine.cache;
        let Some(ahead) = cache.go_ahead(rest.end - rest.start) else {
            self.engine.counters.prefetch_refused.add(1);
            return Ok(false);
        };
        let make_room = || self.engine.make_room();
        let lengths = [
            (rest.end - rest.start) as usize,
            self.archive.room_beside(&whole),
        ];
        let acquired = cache
            .budget()
            .acquire(lengths, Urgency::Speculation, make_room);
        let Ok(Some([mut piece, mut room])) = acquired else {
            self.engine.counters.prefetch_refused.add(1);
            return Ok(false);
        };
        self.decode_on(lease, chunk, &mut piece, 1)?;
        let key = self.key(unit);
        if rest == whole && !cache.is_ready(key) {
            // Who reads it is told why. The decoder is sound, and so may be what lies behind.
            if self.archive.check(&whole, &piece, &mut room).is_err() {
                return Ok(false);
            }
            cache.supply(key, piece, Some(ahead));
            self.engine.counters.prefetched_pieces.add(1);
        }
        Ok(true)
    }
}

#[cfg(test)]
#[cfg(feature = "files")]
mod tests {
    use crate::format::Codec;
    use crate::job::Control;
    use crate::pack::{PackOptions, pack_file};
    use crate::reader::{Demand, Engine, EngineOptions, Reader};
    use std::fs;
    use std::time::{Duration, Instant};

    const PIECE: usize = 128 << 10;
    const CHUNK: usize = 32 * PIECE;
    const READ: usize = 2 * PIECE;

    #[test]
    fn between_zeros_that_who_answers_fills_in_workers_decode_what_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let (plain, packed) = (directory.path().join("x"), directory.path().join("x.warp"));
        let mut original = vec![0; 12 * CHUNK];
        for chunk in [4, 7, 10] {
            for (number, byte) in original[chunk * CHUNK..][..CHUNK].iter_mut().enumerate() {
                *byte = (number >> 3) as u8 ^ (number >> 11) as u8;
            }
        }
        fs::write(&plain, &original).unwrap();
        let options = PackOptions {
            codec: Some(Codec::Zstd),
            chunk_size: Some(CHUNK as u64),
            ..PackOptions::default()
        };
        pack_file(&plain, &packed, &options, Control::default()).unwrap();
        let demand = Demand {
            kept: true,
            more_wait: true,
        };
        let began = Instant::now();
        loop {
            let engine = Engine::new(&EngineOptions {
                cache_size: 64 << 20,
                threads: 2,
                ..EngineOptions::default()
            });
            let reader: Reader = engine.unwrap().open(&packed).unwrap();
            // Now it is known what zeros are packed to.
            reader.read_at(&mut vec![0; CHUNK], 0).unwrap();
            let before = reader.shared.engine.stats().prefetched_pieces;
            for offset in (CHUNK..12 * CHUNK).step_by(READ) {
                let is_right = |bytes: &[u8], _| bytes == &original[offset..offset + READ];
                let read = reader.read_with(offset as u64, READ, demand, is_right);
                assert!(read.unwrap(), "{offset}");
                std::thread::yield_now();
            }
            let pieces = reader.shared.engine.stats().prefetched_pieces - before;
            assert!(pieces <= 3 * 32, "{pieces}: zeros were decoded ahead");
            if pieces > 3 * 8 {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{pieces}");
        }
    }
}
