//! What a reader will want next. It names bytes and owns no data.
//!
//! Each handle follows several streams, because one descriptor can be read at several places at once (a tar inside a
//! database, threads with `pread`). A stream is a place where reading went on where it had stopped, give or take a
//! few requests: the kernel's readahead asks ahead of the reader and its requests overtake each other. A read that
//! continues nothing only takes a stream's place and names nothing, so a random reader pays for no speculation; and one
//! large read, which the kernel cuts into several requests, does not yet look like a stream either. Where each request costs a
//! round trip to a store, too much depends on the first of them: there, who reads much of a file's beginning is believed to go on.
//!
//! Who goes backwards ([`Backwards`]), or leaves out as much each time ([`Strides`]), makes no stream: others follow him.
//!
//! A stream's window begins small and doubles whenever its reader had to wait (four times as much where that is for a round
//! trip, and begins with what the way holds), up to a limit: a slow reader is kept a little ahead, a fast one as far as it needs.

use std::ops::Range;
use std::sync::PoisonError;

use crate::sync::{Mutex, MutexGuard};

mod backwards;
mod strides;

pub(crate) use backwards::Backwards;
pub(crate) use strides::Strides;

/// How many streams a handle follows.
const STREAMS: usize = 8;
/// How much has to be read in a row before anything is read ahead, in bytes: one read of 1 MiB, which is what copying
/// programs use at most, with what the kernel reads ahead behind it in an ordinary user's mount (128 KiB), is not a stream yet.
pub(crate) const PROOF: u64 = (1 << 20) + (128 << 10);
/// A window's first size, in bytes: as much as the kernel asks for at once where it reads farthest ahead, and soon decoded.
const FIRST_WINDOW: u64 = 1 << 20;
/// How long a read of a file's beginning is that is taken for that of a reader who goes on, where each request costs a round
/// trip, in bytes: the kernel makes no other so long. Who reads but a header is content with less.
const LONG_BEGINNING: u64 = 64 << 10;
/// How many units are named at once at most: a window of tiny chunks would be a list without end.
const NAMED_AT_ONCE: usize = 64;
/// As [`NAMED_AT_ONCE`], where each request costs a round trip.
const NAMED_IF_FAR: usize = 1024;
/// Into how many batches a window is divided at least.
const BATCHES: u64 = 4;
/// How many request lengths a continuing read may be off the place it should begin at.
const TOLERANCE: u64 = 4;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Prefetch {
    /// The largest window, in bytes; 0 switches prefetch off.
    limit: u64,
    /// Where each request costs a round trip.
    far: Option<Far>,
    streams: Mutex<Streams>,
}

/// How units are named where each request costs a round trip, to a store or to a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Far {
    /// How much has to be read in a row before anything is named, in bytes.
    pub(crate) proof: u64,
    /// Whether who reads much of a file's beginning is believed to go on.
    pub(crate) believes_beginnings: bool,
    /// How much is named at a time or nothing, in bytes; or a quarter of a window that is small.
    pub(crate) batch: u64,
    /// A window's first size, in bytes: what is to be on its way while the first of it comes.
    pub(crate) first_window: u64,
}

#[derive(Debug, Default)]
struct Streams {
    followed: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// Where it began.
    start: u64,
    /// Behind the last byte asked for.
    next: u64,
    /// The first byte not named yet.
    unnamed: u64,
    /// How far ahead of `next` bytes are named; 0 until the stream has proved to be one.
    window: u64,
    last_used: u64,
}

impl Streams {
    fn continued_by(&mut self, read: &Range<u64>) -> Option<&mut Stream> {
        let slack = (read.end - read.start).saturating_mul(TOLERANCE);
        self.followed
            .iter_mut()
            .filter(|stream| stream.next.abs_diff(read.start) <= slack)
            .min_by_key(|stream| stream.next.abs_diff(read.start))
    }
}

impl Prefetch {
    /// Prefetch with windows of at most `limit` bytes; 0 for none.
    pub(crate) fn new(limit: u64, far: Option<Far>) -> Self {
        Self {
            limit,
            far,
            streams: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice of a read of original bytes, and names the bytes to decode ahead now, each only once. They are whole
    /// units: `unit_end` says where the unit ends that holds an offset, and `None` behind the end of the file.
    pub(crate) fn observe(
        &self,
        read: &Range<u64>,
        unit_end: impl Fn(u64) -> Option<u64>,
    ) -> Range<u64> {
        if self.limit == 0 || read.is_empty() {
            return 0..0;
        }
        let mut streams = self.lock();
        streams.clock += 1;
        let now = streams.clock;
        let limit = self.limit;
        let first_window = match self.far {
            None => FIRST_WINDOW,
            Some(far) => far.first_window.max(FIRST_WINDOW),
        };
        let first_window = first_window.min(limit);
        let believes = self.far.is_some_and(|far| far.believes_beginnings);
        let likely = believes && read.start == 0 && read.end >= LONG_BEGINNING;
        if streams.continued_by(read).is_none() {
            let fresh = Stream {
                start: read.start,
                next: read.end,
                unnamed: 0,
                window: if likely { first_window } else { 0 },
                last_used: now,
            };
            if streams.followed.len() < STREAMS {
                streams.followed.push(fresh);
            } else if let Some(oldest) = streams
                .followed
                .iter_mut()
                .min_by_key(|stream| stream.last_used)
            {
                *oldest = fresh;
            }
            if !likely {
                return 0..0;
            }
        }
        let Some(stream) = streams.continued_by(read) else {
            return 0..0;
        };
        stream.last_used = now;
        stream.next = stream.next.max(read.end);
        if stream.window == 0 {
            let proof = self.far.map_or(PROOF, |far| far.proof);
            if stream.next - stream.start <= proof.min(limit) {
                return 0..0;
            }
            stream.window = first_window;
        }
        let wanted = stream.next.saturating_add(stream.window);
        let batch = self.far.map_or(0, |far| far.batch);
        let least = batch.min(stream.window / BATCHES);
        if stream.unnamed.saturating_add(least) >= wanted {
            return 0..0;
        }
        // The units that were asked for end here.
        let behind = unit_end(stream.next - 1).unwrap_or(stream.next);
        let first = stream.unnamed.max(behind);
        let mut end = first;
        let most = match self.far {
            None => NAMED_AT_ONCE,
            Some(_) => NAMED_IF_FAR,
        };
        for _ in 0..most {
            match unit_end(end) {
                // The unit next to those is named however short the window is.
                Some(further) if end < wanted || end == behind => end = further,
                _ => break,
            }
        }
        stream.unnamed = stream.unnamed.max(end);
        first..end
    }

    /// Widens the window of the stream that this read belongs to: its reader had to wait for a unit.
    pub(crate) fn outran(&self, read: &Range<u64>) {
        let limit = self.limit;
        // Where a wait is long, the kernel's next request is there before it ends, and there should be few of them.
        let (behind, times) = match self.far {
            None => (0, 2),
            Some(_) => ((read.end - read.start).saturating_mul(TOLERANCE), 4),
        };
        let mut streams = self.lock();
        if let Some(stream) = streams
            .followed
            .iter_mut()
            .find(|stream| stream.window > 0 && stream.next.wrapping_sub(read.end) <= behind)
        {
            stream.window = stream.window.saturating_mul(times).min(limit);
        }
    }

    /// Whether some stream has yet to come to these original bytes: they may have been named long ago.
    pub(crate) fn still_wants(&self, bytes: &Range<u64>) -> bool {
        self.lock().followed.iter().any(|stream| {
            stream.window > 0
                && bytes.end > stream.next
                && bytes.start
                    <= stream
                        .next
                        .saturating_add(stream.window.saturating_mul(2))
                        .max(stream.unnamed)
        })
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIT: u64 = 1 << 20;

    /// Where units of a mebibyte end, in a file of so many of them.
    fn units(count: u64) -> impl Fn(u64) -> Option<u64> {
        move |offset| (offset < count * UNIT).then(|| (offset / UNIT + 1) * UNIT)
    }

    fn read(prefetch: &Prefetch, count: u64, offset: u64, length: u64) -> Range<u64> {
        prefetch.observe(&(offset..offset + length), units(count))
    }

    #[test]
    fn a_sequential_reader_has_every_unit_named_once_before_it_comes_there() {
        let prefetch = Prefetch::new(8 * UNIT, None);
        let mut named = None;
        for offset in (0..64 * UNIT).step_by(128 << 10) {
            let ahead = read(&prefetch, 64, offset, 128 << 10);
            if ahead.is_empty() {
                continue;
            }
            assert!(ahead.start >= offset);
            assert!(named.is_none_or(|end| end == ahead.start));
            named = Some(ahead.end);
        }
        assert_eq!(named, Some(64 * UNIT));
    }

    #[test]
    fn random_reads_name_nothing_even_when_the_kernel_cuts_them_up() {
        let prefetch = Prefetch::new(8 * UNIT, None);
        let mut place = 12345_u64;
        for _ in 0..2000 {
            place = place
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let offset = ((place >> 8) % (UNIT * UNIT)) & !4095;
            for request in (offset..offset + UNIT).step_by(128 << 10) {
                // One may hit a stream by chance; this seed has none.
                assert!(read(&prefetch, 2 * UNIT, request, 128 << 10).is_empty());
            }
        }
    }

    #[test]
    fn where_requests_cost_a_round_trip_units_are_named_many_at_a_time() {
        let prefetch = Prefetch::new(
            16 * UNIT,
            Some(Far {
                proof: PROOF,
                believes_beginnings: true,
                batch: 64 * UNIT,
                first_window: 8 * UNIT,
            }),
        );
        let mut batches = Vec::new();
        let mut named = None;
        for offset in (0..512 * UNIT).step_by(128 << 10) {
            let ahead = read(&prefetch, 512, offset, 128 << 10);
            prefetch.outran(&(offset..offset + (128 << 10)));
            if !ahead.is_empty() {
                assert!(named.is_none_or(|end| end == ahead.start));
                named = Some(ahead.end);
                batches.push((ahead.end - ahead.start) / UNIT);
            }
        }
        assert_eq!(named, Some(512 * UNIT));
        let (_, full) = batches.split_at(batches.len() / 4);
        let (_, full) = full.split_last().unwrap();
        assert!(full.iter().all(|&units| units >= 4), "{batches:?}");
    }

    #[test]
    fn interleaved_streams_on_one_handle_are_all_followed() {
        let prefetch = Prefetch::new(8 * UNIT, None);
        let mut named = [0; 8];
        for step in 0..64_u64 {
            for (stream, count) in named.iter_mut().enumerate() {
                let offset = stream as u64 * 100 * UNIT + step * UNIT;
                let ahead = read(&prefetch, 800, offset, UNIT);
                *count += (ahead.end - ahead.start) / UNIT;
            }
        }
        assert!(named.iter().all(|&count| count >= 60), "{named:?}");
    }

    #[test]
    fn the_window_doubles_while_the_reader_waits_and_ends_at_the_limit() {
        let prefetch = Prefetch::new(4 * UNIT, None);
        let mut ahead = 0;
        for step in 0..16 {
            let named = read(&prefetch, 64, step * UNIT, UNIT);
            ahead = ahead.max((named.end / UNIT).saturating_sub(step + 1));
            prefetch.outran(&(step * UNIT..(step + 1) * UNIT));
        }
        assert_eq!(ahead, 4);
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let prefetch = Prefetch::new(8 * UNIT, None);
        let mut named = 0;
        let step = 256 << 10;
        for pair in (0..32 * UNIT).step_by(2 * step as usize) {
            for offset in [pair + step, pair] {
                let ahead = read(&prefetch, 64, offset, step);
                named += (ahead.end - ahead.start) / UNIT;
            }
        }
        assert_eq!(prefetch.lock().followed.len(), 1);
        assert!(named >= 30);
    }

    proptest! {
        #[test]
        fn only_existing_bytes_are_named_and_in_whole_units(
            reads in proptest::collection::vec((0_u64..40, 1_u64..3 * UNIT), 1..60),
            count in 1_u64..30,
        ) {
            let prefetch = Prefetch::new(16 * UNIT, None);
            for (place, length) in reads {
                let offset = place * UNIT / 2;
                let end = (offset + length).min(count * UNIT);
                if offset < end {
                    let named = prefetch.observe(&(offset..end), units(count));
                    prop_assert!(named.end <= count * UNIT);
                    let whole = named.start.is_multiple_of(UNIT) && named.end.is_multiple_of(UNIT);
                    prop_assert!(whole || named.is_empty());
                    prefetch.outran(&(offset..end));
                }
            }
        }
    }
}
