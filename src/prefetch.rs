//! Which chunks a reader will want next. It names chunks and owns no data.
//!
//! Each handle follows several streams, because one descriptor can be read at several places at once (a tar inside a
//! database, threads with `pread`). A stream is a place where reading went on where it had stopped, give or take a
//! few requests: the kernel's readahead asks ahead of the reader and its requests overtake each other. A read that
//! continues nothing only takes a stream's place and names nothing, so a random reader pays for no speculation.
//!
//! A stream's window begins with one chunk and doubles whenever its reader had to wait, up to a limit: a slow reader
//! is kept one chunk ahead, a fast one as far as it needs.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::ChunkTable;

/// How many streams a handle follows.
const STREAMS: usize = 8;
/// A window's first size, in bytes: what the kernel's readahead asks for at most in one request.
const FIRST_WINDOW: u64 = 1 << 20;
/// How many chunks are named at once at most: a window of tiny chunks would be a list without end.
const NAMED_AT_ONCE: u32 = 64;
/// How many request lengths a continuing read may be off the place it should begin at.
const TOLERANCE: u64 = 4;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Prefetch {
    /// The largest window, in bytes; 0 switches prefetch off.
    limit: u64,
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    followed: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// Behind the last byte asked for.
    next: u64,
    /// The first chunk not named yet.
    unnamed: u32,
    /// How far ahead of `next` chunks are named, in bytes; 0 until the stream has been continued once.
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
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            streams: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice of a read of original bytes, and names the chunks to decode ahead now, each only once.
    pub(crate) fn observe(&self, read: &Range<u64>, table: &ChunkTable) -> Range<u32> {
        if self.limit == 0 || read.is_empty() {
            return 0..0;
        }
        let mut streams = self.lock();
        streams.clock += 1;
        let now = streams.clock;
        let limit = self.limit;
        // The chunks this read needs itself end here.
        let behind = table.chunks_holding(&(read.end - 1..read.end)).end;
        let Some(stream) = streams.continued_by(read) else {
            let fresh = Stream {
                next: read.end,
                unnamed: behind,
                window: 0,
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
            return 0..0;
        };
        stream.last_used = now;
        stream.next = stream.next.max(read.end);
        if stream.window == 0 {
            stream.window = FIRST_WINDOW.min(limit);
        }
        let until = stream.next.saturating_add(stream.window);
        let first = stream.unnamed.max(behind);
        let end = table
            .chunks_holding(&(until - 1..until))
            .end
            .max(behind.saturating_add(1))
            .min(table.len())
            .min(first.saturating_add(NAMED_AT_ONCE));
        stream.unnamed = stream.unnamed.max(end);
        first..end.max(first)
    }

    /// Widens the window of the stream that this read belongs to: its reader had to wait for a chunk.
    pub(crate) fn outran(&self, read: &Range<u64>) {
        let limit = self.limit;
        let mut streams = self.lock();
        if let Some(stream) = streams
            .followed
            .iter_mut()
            .find(|stream| stream.window > 0 && stream.next == read.end)
        {
            stream.window = stream.window.saturating_mul(2).min(limit);
        }
    }

    /// Whether some stream has yet to come to these original bytes: they may have been named long ago.
    pub(crate) fn still_wants(&self, bytes: &Range<u64>) -> bool {
        self.lock().followed.iter().any(|stream| {
            stream.window > 0
                && bytes.end > stream.next
                && bytes.start <= stream.next.saturating_add(stream.window.saturating_mul(2))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u64 = 1 << 20;

    fn table(chunks: u64) -> ChunkTable {
        let count = chunks as usize;
        let sizes = || {
            std::iter::repeat_n(CHUNK, count)
                .collect::<Vec<_>>()
                .into_iter()
        };
        ChunkTable::new(18, sizes(), sizes()).unwrap()
    }

    fn read(prefetch: &Prefetch, table: &ChunkTable, offset: u64, length: u64) -> Range<u32> {
        prefetch.observe(&(offset..offset + length), table)
    }

    #[test]
    fn a_sequential_reader_has_every_chunk_named_once_before_it_comes_there() {
        let (prefetch, table) = (Prefetch::new(8 * CHUNK), table(64));
        let mut named = Vec::new();
        for offset in (0..64 * CHUNK).step_by(128 << 10) {
            let ahead = read(&prefetch, &table, offset, 128 << 10);
            assert!(ahead.is_empty() || u64::from(ahead.start) * CHUNK >= offset);
            named.extend(ahead);
        }
        assert_eq!(named, (1..64).collect::<Vec<u32>>());
    }

    #[test]
    fn random_reads_name_nothing() {
        let (prefetch, table) = (Prefetch::new(8 * CHUNK), table(1024));
        let mut place = 12345_u64;
        for _ in 0..2000 {
            place = place
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let offset = (place >> 20) % (1023 * CHUNK);
            // One in ten thousand may hit a stream by chance; this seed has none.
            assert!(read(&prefetch, &table, offset & !4095, 4096).is_empty());
        }
    }

    #[test]
    fn interleaved_streams_on_one_handle_are_all_followed() {
        let (prefetch, table) = (Prefetch::new(8 * CHUNK), table(800));
        let mut named = [0; 8];
        for step in 0..64_u64 {
            for (stream, count) in named.iter_mut().enumerate() {
                let offset = stream as u64 * 100 * CHUNK + step * CHUNK;
                *count += read(&prefetch, &table, offset, CHUNK).len();
            }
        }
        assert!(named.iter().all(|&count| count >= 60), "{named:?}");
    }

    #[test]
    fn the_window_doubles_while_the_reader_waits_and_ends_at_the_limit() {
        let (prefetch, table) = (Prefetch::new(4 * CHUNK), table(64));
        read(&prefetch, &table, 0, CHUNK);
        let mut ahead = 0;
        for step in 1..16 {
            let named = read(&prefetch, &table, step * CHUNK, CHUNK);
            ahead = ahead.max(u64::from(named.end).saturating_sub(step + 1));
            prefetch.outran(&(step * CHUNK..(step + 1) * CHUNK));
        }
        assert_eq!(ahead, 4);
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let (prefetch, table) = (Prefetch::new(8 * CHUNK), table(64));
        let mut named = Vec::new();
        let step = 256 << 10;
        for pair in (0..32 * CHUNK).step_by(2 * step as usize) {
            named.extend(read(&prefetch, &table, pair + step, step));
            named.extend(read(&prefetch, &table, pair, step));
        }
        assert_eq!(prefetch.lock().followed.len(), 1);
        assert!(named.len() >= 30);
    }

    proptest! {
        #[test]
        fn only_existing_chunks_are_named(
            reads in proptest::collection::vec((0_u64..40, 1_u64..3 * CHUNK), 1..60),
            sizes in proptest::collection::vec(0_u64..2 * CHUNK, 1..30),
        ) {
            let table = ChunkTable::new(18, sizes.iter().copied(), sizes.iter().copied()).unwrap();
            let prefetch = Prefetch::new(16 * CHUNK);
            for (chunk, length) in reads {
                let offset = chunk * CHUNK / 2;
                let end = (offset + length).min(table.original_size());
                if offset < end {
                    let named = prefetch.observe(&(offset..end), &table);
                    prop_assert!(named.end <= table.len());
                    prefetch.outran(&(offset..end));
                }
            }
        }
    }
}
