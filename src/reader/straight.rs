//! Decoding straight into the memory that a reply is taken from.
//!
//! Who is handed all of a unit and keeps it (the kernel, in its page cache) does not ask for it again, so the cache need not have
//! it: it is spared a copy, and it is copied on from memory that is still in the processor's own cache. Sequential reads of a
//! mount, cold, two processors: zstd 1,300 MB/s instead of 1,190, lz4 2,180 instead of 1,990. Pieces of a chunk go this way where
//! they need no others (`branches.rs`).
//!
//! Only long reads go this way. The kernel makes them where it reads far ahead, and then mostly has two of them under way, whose threads
//! keep two processors busy: with no more than those there is nothing left that workers could decode ahead of them, and what they
//! would have to be copied once more. Where two of them are not given, as in an ordinary user's mount, whose readahead is a request
//! long, it is found out reader by reader. Another waited when one was taken up, or had just been taken up, in 75 of 100 long reads
//! of `cat`, which announces that it reads in order and so is read twice as far ahead for; one waited in 20 of `dd`'s, which does
//! not. Not to decode ahead made the former a tenth faster and the latter a sixth slower. Where the kernel always has two of its
//! longest requests under way, as in root's mounts, a shorter one counts as alone: it was not cut off anything.
//!
//! Nobody else is told of such a decode while it lasts; who wants the same bytes at the same time decodes them as well. The
//! kernel does not: it asks for a page once.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use super::ahead::Left;
use super::{Demand, Shared};
use crate::archive::{Unit, is_of_parts, piece_count};
use crate::error::{ErrorKind, Result};
use crate::memory::Urgency;

/// How long a long read is at least, in bytes: the longest that the kernel makes where it may not read farther ahead.
pub(crate) const LONG_READ: usize = 128 << 10;

/// Whether long reads come two at a time: how often another request waited when one was taken up, or had just been taken up by
/// another thread. Once they are found to come one by one they are taken to for good: what waits while workers keep the
/// processors busy tells nothing.
#[derive(Debug)]
pub(super) struct Abreast {
    /// In fractions of [`Abreast::ALWAYS`], the last few counting most.
    often: AtomicU32,
    opened: Instant,
    /// When the last was taken up, in microseconds since then.
    last: AtomicU64,
}

impl Abreast {
    const ALWAYS: u32 = 1 << 16;
    /// Of a reader one by one it takes 5 MiB to tell. Nearer to the decision, the first few of two at a time, which idle threads
    /// take up at once, were taken for such.
    const AT_FIRST: u32 = Self::ALWAYS / 3 * 2;
    /// Between what was measured of readers who have two at a time and of those who have not.
    const OFTEN: u32 = Self::ALWAYS / 100 * 45;
    /// How far apart two are taken up that were made at once, at most, in microseconds. Who reads one by one has to be handed a
    /// whole one in between, which takes as long at least.
    const TOGETHER: u64 = 20;
    /// What one read counts: one in this many. Fewer would be mistaken once in a gigabyte.
    const LATEST: u32 = 64;

    /// Takes notice of a read that was taken up `now`, counted from when the file was opened.
    fn observe(&self, more_wait: bool, now: Duration) {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let since_last = now.saturating_sub(self.last.swap(now, Relaxed));
        let latest = match more_wait || since_last < Self::TOGETHER {
            true => Self::ALWAYS / Self::LATEST,
            false => 0,
        };
        let next = |before| {
            let goes_on = before >= Self::OFTEN;
            goes_on.then_some(before - before / Self::LATEST + latest)
        };
        // A guess alone hangs on it.
        let _ = self.often.fetch_update(Relaxed, Relaxed, next);
    }

    /// How many long reads are under way for one reader.
    fn under_way(&self) -> usize {
        match self.often.load(Relaxed) >= Self::OFTEN {
            true => 2,
            false => 1,
        }
    }
}

impl Default for Abreast {
    fn default() -> Self {
        Self {
            often: AtomicU32::new(Self::AT_FIRST),
            opened: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Shared {
    /// Whether the whole units of a read are decoded to where they are wanted.
    pub(super) fn goes_straight(&self, range: &Range<u64>, demand: Demand) -> bool {
        if !self.may_go_straight(range, demand) {
            return false;
        }
        let first = self.unit_at(range.start).map_or(0..0, |(_, bytes)| bytes);
        let whole = match first.start < range.start {
            true => first.end,
            false => first.start,
        };
        self.unit_at(whole).is_some_and(|(unit, bytes)| {
            bytes.end <= range.end
                && (self.is_decoded_whole(unit, whole..range.end)
                    || self.prepare_branch(unit.chunk, &bytes))
        })
    }

    fn may_go_straight(&self, range: &Range<u64>, demand: Demand) -> bool {
        let is_long = range.end - range.start >= LONG_READ as u64;
        demand.kept && is_long && self.archive.distant().is_none()
    }

    /// What the workers leave to the threads that answer of what follows a read, which itself goes `straight` or not.
    pub(super) fn left(&self, range: &Range<u64>, demand: Demand, straight: bool) -> Left {
        match self.may_go_straight(range, demand) {
            true if straight && !self.leaves_workers_to_spare(demand) => {
                match self.has_others(range.start) {
                    true => Left::Alone,
                    false => Left::Everything,
                }
            }
            true => Left::Zeros,
            false => Left::Nothing,
        }
    }

    /// Whether there may be chunks that have to be decoded from front to back, by what the one is that holds `offset`.
    fn has_others(&self, offset: u64) -> bool {
        let chunk = self.unit_at(offset).map_or(0, |(unit, _)| unit.chunk);
        !self.is_short(chunk) && !self.archive.encoding(chunk).is_ok_and(is_of_parts)
    }

    /// Whether a chunk, of which a unit is named, is decoded by one call where `wanted` begins: all of it is wanted, from its first
    /// byte to its last, and none of it is there or on its way.
    fn is_decoded_whole(&self, unit: Unit, wanted: Range<u64>) -> bool {
        let chunk = self.bytes(unit.chunk);
        if chunk.start != wanted.start || chunk.end > wanted.end {
            return false;
        }
        unit.piece.is_none()
            || (self.is_short(unit.chunk) && self.unknown(chunk.clone()) == chunk.end)
    }

    /// Up to where whole units that begin where `wanted` does are neither there nor on their way.
    fn unknown(&self, wanted: Range<u64>) -> u64 {
        let mut end = wanted.start;
        while let Some((unit, bytes)) = self.unit_at(end)
            && bytes.start == end
            && bytes.end <= wanted.end
            && !self.engine.cache.knows(self.key(unit))
        {
            end = bytes.end;
        }
        end
    }

    /// Takes notice of a read that goes straight, and says whether it leaves workers something to do ahead of it.
    fn leaves_workers_to_spare(&self, demand: Demand) -> bool {
        let now = self.abreast.opened.elapsed();
        self.abreast.observe(demand.more_wait, now);
        self.engine.at_once > self.abreast.under_way()
    }

    /// Decodes the unit that begins at `place` of the original, and if it is a piece those that follow it in its chunk, into the
    /// beginning of `room`, and says how much that is, in bytes; `None` if the unit has to be come by otherwise, because it begins
    /// or ends elsewhere, is there or on its way, or is a piece for which all before it has to be decoded. No more than the one unit
    /// is, where the others are `shared` with workers.
    ///
    /// # Errors
    /// It cannot be decoded; the error is in the log. What `room` holds then is worth nothing.
    pub(super) fn decode_straight(
        &self,
        place: u64,
        room: &mut [u8],
        shared: bool,
    ) -> Result<Option<usize>> {
        let Some((unit, bytes)) = self.unit_at(place) else {
            return Ok(None);
        };
        let mut room_end = place.saturating_add(room.len() as u64);
        let known = self.engine.cache.knows(self.key(unit));
        if bytes.start != place || bytes.end > room_end || known {
            return Ok(None);
        }
        if shared {
            room_end = bytes.end;
        }
        let decoded = match self.is_decoded_whole(unit, place..room_end) {
            true => self.decode_chunk_into(unit.chunk, room),
            false => self.decode_pieces_into(unit.chunk, place..room_end, room),
        };
        let decoded = decoded.map_err(|error| self.report(error, unit.chunk))?;
        if let Some(length) = decoded {
            let units = match unit.piece {
                Some(_) => piece_count(&(place..place + length as u64)),
                None => 1,
            };
            self.engine.counters.cache_misses.add(units);
        }
        Ok(decoded)
    }

    /// Decodes the pieces of a chunk that begin where `wanted` does, all at once, to where `room` begins: as far as whole ones are
    /// wanted and none is there. Says how long they are together, in bytes.
    fn decode_pieces_into(
        &self,
        chunk: u32,
        wanted: Range<u64>,
        room: &mut [u8],
    ) -> Result<Option<usize>> {
        let until = wanted.end.min(self.bytes(chunk).end);
        let bytes = wanted.start..self.unknown(wanted.start..until);
        if bytes.is_empty() || !self.prepare_branch(chunk, &bytes) {
            return Ok(None);
        }
        let length = (bytes.end - bytes.start) as usize;
        let room = room.get_mut(..length).unwrap_or_default();
        let decoded = self.decode_branch_into(chunk, &bytes, room)?;
        Ok(decoded.then_some(length))
    }

    /// Decodes a chunk to where `room` begins, which has room for it; says how long it is, in bytes.
    fn decode_chunk_into(&self, chunk: u32, room: &mut [u8]) -> Result<Option<usize>> {
        self.check_whole(chunk)?;
        let [_, length] = self.lengths(chunk);
        let room = room.get_mut(..length).unwrap_or_default();
        let [beside, _] = self.room_lengths(chunk);
        let acquired = self.engine.acquire([beside], 0, Urgency::Demand)?;
        let ([mut beside], _) = acquired.ok_or(ErrorKind::Cancelled)?;
        self.decode_into(chunk, &mut beside, room)?;
        Ok(Some(length))
    }
}

#[cfg(test)]
#[cfg(feature = "files")]
mod tests {
    use super::*;
    use crate::cache::Origin;
    use crate::job::Control;
    use crate::pack::{PackOptions, pack_file};
    use crate::reader::{Engine, EngineOptions, Reader};
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use std::sync::Arc;

    const CHUNK: u64 = 64 << 10;
    /// Ten chunks and a piece of one.
    const SIZE: usize = 10 * CHUNK as usize + 12_345;

    fn original() -> Vec<u8> {
        let mut number = 7_u64;
        let mut bytes = Vec::with_capacity(SIZE + 8);
        while bytes.len() < SIZE {
            number = number
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // A third of it is the same again and again, so that it is packed and not stored.
            bytes.extend_from_slice(&number.to_le_bytes()[2..]);
            bytes.extend_from_slice(b"abc");
        }
        bytes.truncate(SIZE);
        bytes
    }

    fn packed(chunk_size: u64) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("x");
        fs::write(&plain, original()).unwrap();
        let options = PackOptions {
            chunk_size: Some(chunk_size),
            ..PackOptions::default()
        };
        let packed = directory.path().join("x.warp");
        pack_file(&plain, &packed, &options, Control::default()).unwrap();
        (directory, packed)
    }

    fn engine() -> Arc<Engine> {
        Engine::new(&EngineOptions {
            cache_size: 4 << 20,
            threads: 1,
            ..EngineOptions::default()
        })
        .unwrap()
    }

    fn read(reader: &Reader, offset: u64, length: usize, kept: bool) -> (Vec<u8>, Origin) {
        let more_wait = true;
        let demand = Demand { kept, more_wait };
        reader
            .read_with(offset, length, demand, |bytes, origin| {
                (bytes.to_vec(), origin)
            })
            .unwrap()
    }

    #[test]
    fn long_reads_return_the_original_at_any_offset_and_leave_no_whole_chunk_behind() {
        let (_directory, path) = packed(CHUNK);
        let original = original();
        for offset in [0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 5, 7 * CHUNK] {
            let reader = engine().open(&path).unwrap();
            let length = 5 * CHUNK as usize + 77;
            let (bytes, _) = read(&reader, offset, length, true);
            let end = SIZE.min(offset as usize + length);
            assert_eq!(bytes, original[offset as usize..end], "at {offset}");
            let shared = &reader.shared;
            for chunk in 0..11 {
                let bytes = shared.bytes(chunk);
                let (unit, _) = shared.unit_at(bytes.start).unwrap();
                let whole = bytes.start >= offset && bytes.end <= end as u64;
                let cut = !whole && bytes.end > offset && bytes.start < end as u64;
                assert_eq!(shared.engine.cache.knows(shared.key(unit)), cut, "{chunk}");
            }
        }
    }

    #[test]
    fn what_is_not_kept_or_is_short_or_holds_no_whole_chunk_goes_through_the_cache() {
        let (_directory, path) = packed(CHUNK);
        let long = LONG_READ;
        let origin = |offset, length, kept| {
            let reader = engine().open(&path).unwrap();
            read(&reader, offset, length, kept).1
        };
        assert_eq!(origin(0, long, true), Origin::Straight);
        assert_eq!(origin(0, long, false), Origin::Decoded);
        assert_eq!(origin(0, long - 1, true), Origin::Decoded);
        let (_directory, path) = packed(2 * LONG_READ as u64);
        let reader = engine().open(&path).unwrap();
        assert_eq!(read(&reader, 0, long, true).1, Origin::Decoded);
        assert_eq!(read(&reader, CHUNK, long, true).1, Origin::Hit);
    }

    #[test]
    fn what_is_there_is_not_decoded_again() {
        let (_directory, path) = packed(CHUNK);
        let reader = engine().open(&path).unwrap();
        read(&reader, CHUNK + 5, 10, false);
        let (bytes, origin) = read(&reader, 0, 2 * LONG_READ, true);
        assert_eq!(bytes, original()[..2 * LONG_READ]);
        assert_eq!(origin, Origin::Straight);
        let stats = reader.shared.engine.stats();
        assert_eq!((stats.decoded_chunks, stats.cache_misses), (4, 4));
        assert_eq!(stats.cache_hits, 1);
    }

    #[test]
    fn a_damaged_chunk_in_a_long_read_is_named_and_its_neighbours_are_read() {
        let (_directory, path) = packed(CHUNK);
        let reader = engine().open(&path).unwrap();
        let payload = reader.shared.archive.table().compressed_range(2).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 64], payload.start + 100).unwrap();
        let reader = engine().open(&path).unwrap();
        let demand = Demand {
            kept: true,
            more_wait: true,
        };
        for _ in 0..2 {
            let error = reader
                .read_with(CHUNK, LONG_READ, demand, |_, _| ())
                .unwrap_err();
            assert_eq!((error.chunk(), error.offset()), (Some(2), Some(2 * CHUNK)));
            assert!(error.is_damage());
        }
        let (bytes, _) = read(&reader, 3 * CHUNK, LONG_READ, true);
        let from = 3 * CHUNK as usize;
        assert_eq!(bytes, original()[from..from + LONG_READ]);
    }

    #[test]
    fn nothing_is_decoded_ahead_of_long_reads_unless_there_are_processors_to_spare() {
        let directory = tempfile::tempdir().unwrap();
        let (plain, path) = (directory.path().join("x"), directory.path().join("x.warp"));
        fs::write(&plain, original().repeat(20)).unwrap();
        pack_file(&plain, &path, &PackOptions::default(), Control::default()).unwrap();
        let (one_at_a_time, two_at_a_time) = (2, 7);
        let cases = [
            (1, one_at_a_time, false),
            (2, one_at_a_time, true),
            (1, two_at_a_time, false),
            (2, two_at_a_time, false),
            (3, two_at_a_time, true),
        ];
        let long = LONG_READ as u64;
        for (at_once, waited_of_ten, ahead) in cases {
            let mut engine = engine();
            Arc::get_mut(&mut engine).unwrap().at_once = at_once;
            let reader = engine.open(&path).unwrap();
            for number in 0..90 {
                let demand = Demand {
                    kept: true,
                    more_wait: number % 10 < waited_of_ten,
                };
                let read = reader.read_with(number * long, LONG_READ, demand, |_, _| ());
                read.unwrap();
            }
            let shared = &reader.shared;
            let named = shared.prefetch.observe(&(90 * long..91 * long), |offset| {
                shared.unit_at(offset).map(|(_, bytes)| bytes.end)
            });
            let case = format!("{at_once} at once, {waited_of_ten} of ten");
            assert_eq!(!named.is_empty(), ahead, "{case}");
        }
    }

    #[test]
    fn who_has_been_found_to_read_one_by_one_does_so_from_then_on() {
        let apart = |number: u32| Duration::from_micros(100) * number;
        let abreast = Abreast::default();
        assert_eq!(abreast.under_way(), 2);
        for number in 0..10_000 {
            abreast.observe(number % 10 < 7, apart(number));
            assert_eq!(abreast.under_way(), 2, "{number}");
        }
        for number in 0..100 {
            abreast.observe(number % 10 < 2, apart(number));
        }
        assert_eq!(abreast.under_way(), 1);
        for number in 0..1000 {
            abreast.observe(true, apart(number));
        }
        assert_eq!(abreast.under_way(), 1);
    }

    #[test]
    fn reads_that_two_threads_take_up_at_once_are_two_at_a_time() {
        let abreast = Abreast::default();
        for number in 0..1000 {
            let together = Duration::from_micros(200) * number;
            abreast.observe(false, together);
            abreast.observe(false, together + Duration::from_micros(3));
            assert_eq!(abreast.under_way(), 2, "{number}");
        }
    }
}
