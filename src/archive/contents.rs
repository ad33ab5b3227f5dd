//! What is known of an open file: all that is needed to find any byte, without a descriptor.
//!
//! Contents are shared by everybody who has the same file open and outlive them, so that a version 1 file, which has
//! to be searched for its chunks' sizes, is searched once for as long as it stays the same.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::outline::{Beginning, Chunks, Conditions, Cut, OVERHEAD, Outline};
use super::record::Record;
use super::source::Source;
use super::units::{OneCall, Unit};
use crate::codec;
use crate::error::{Error, ErrorKind, IoContext, Part, Result};
use crate::format::{ChunkTable, Description, Fingerprint, FixedHeader, Footer, PayloadTable};
use crate::identity::Identity;
use crate::job::{thread_count, threads_for};
use crate::memory::{Charge, Urgency};
use crate::ordered::{self, check_available};
use crate::zeros::ZeroPayloads;

/// How much of a table is read at a time when it is only compared, in bytes.
const COMPARE_BLOCK: usize = 64 << 10;

/// How many chunks that one call can decode are remembered as such that have to be: more of them, and the file is full of them.
const FEW: usize = 64;

/// How far into a chunk damage has to lie to be remembered, in bytes: what is nearer is come to again in no time.
const FAR: u64 = 8 << 20;
/// For how long that is: a disk may be better the next time.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Where a chunk that is decoded from front to back does not go on.
#[derive(Debug)]
struct DeadEnd {
    /// Whoever decodes up to here comes to it, in bytes from the chunk's beginning.
    end: u64,
    error: Error,
    met: Instant,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Contents {
    /// A number no other contents of this process have.
    pub(crate) number: u64,
    pub(crate) description: Description,
    pub(crate) table: ChunkTable,
    pub(crate) footer: Option<Footer>,
    pub(super) record: Option<Record>,
    /// The payloads of chunks of zeros, as far as they are known.
    pub(super) zeros: ZeroPayloads,
    /// The chunks that were last seen to have one, and to have none though it is as long.
    pub(super) last_zeros: AtomicU64,
    pub(super) last_unlike_zeros: AtomicU64,
    /// The file these contents were read from.
    pub(crate) identity: Identity,
    beginning: Option<Beginning>,
    /// Chunks whose damage is in the log already.
    reported: Mutex<HashSet<u32>>,
    /// Chunks that were found to have one.
    dead_ends: Mutex<HashMap<u32, DeadEnd>>,
    /// Whether the log has it that the file was changed.
    reported_change: AtomicBool,
    /// Chunks that were found to have to be decoded whole.
    only_whole: Mutex<HashSet<u32>>,
    /// Whether a chunk that one call can decode turned out to have no parts that could be decoded apart. Those of a file are mostly
    /// alike.
    without_parts: AtomicBool,
    charge: Charge,
}

impl Contents {
    /// Reads header, table and footer of `source`, and finds the original sizes if it has none.
    ///
    /// # Errors
    /// The file is no `.warp`, or what it says of itself cannot be true, or it changes meanwhile.
    pub(crate) fn read(
        source: &dyn Source,
        path: &Path,
        conditions: &Conditions<'_>,
    ) -> Result<Self> {
        static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
        let outline = Outline::read(source, path, conditions)?;
        let table = match outline.chunks {
            Chunks::Known(table) => table,
            Chunks::Unmeasured {
                header,
                payloads,
                sizes,
                unknown,
                numbers: _numbers,
            } => {
                let table = measure(source, path, &header, conditions, payloads, sizes, &unknown)?;
                if source.identity().context("cannot examine", path)? != outline.identity {
                    return Err(ErrorKind::Changed.into());
                }
                table
            }
        };
        let mut charge = outline.charge;
        charge.shrink_to(table.memory() as u64 + OVERHEAD as u64);
        Ok(Self {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            description: outline.description,
            table,
            footer: outline.footer,
            record: outline.record,
            zeros: ZeroPayloads::default(),
            last_zeros: AtomicU64::new(u64::MAX),
            last_unlike_zeros: AtomicU64::new(u64::MAX),
            identity: outline.identity,
            beginning: outline.beginning,
            reported: Mutex::default(),
            dead_ends: Mutex::default(),
            reported_change: AtomicBool::new(false),
            only_whole: Mutex::default(),
            without_parts: AtomicBool::new(false),
            charge,
        })
    }

    /// Whether it can be told that the file was only cut short. Without a table it cannot: the chunks' headers are spread over
    /// the file, and another original that does not compress has the very same ones, up to where it ends or is written.
    pub(crate) fn tell_a_cut(&self) -> bool {
        self.beginning.is_some()
    }

    /// Whether `source`, which is no longer than it was, still begins with this header and this table.
    pub(crate) fn still_described_by(&self, source: &dyn Source) -> std::io::Result<bool> {
        match &self.beginning {
            Some(Beginning { end, fingerprint }) => has_fingerprint(source, *end, *fingerprint),
            None => Ok(false),
        }
    }

    /// The memory these contents count as, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.charge.bytes() + self.record.as_ref().map_or(0, Record::memory)
    }

    /// The unit that holds the original byte at `offset`, and which bytes it has; `None` behind the end. Chunks that `one_call`
    /// is for are units.
    pub(crate) fn unit_holding(
        &self,
        offset: u64,
        one_call: OneCall,
    ) -> Option<(Unit, Range<u64>)> {
        Unit::holding(&self.table, offset, one_call, |chunk, bytes| {
            let in_vain = one_call.is_short(bytes) && self.without_parts.load(Ordering::Relaxed);
            !in_vain && !lock(&self.only_whole).contains(&chunk)
        })
    }

    /// From now on, the chunk is decoded whole, which one call can do if it `is_short`. When that is so of many, it is of all.
    pub(crate) fn decode_only_whole(&self, chunk: u32, is_short: bool) {
        let mut only_whole = lock(&self.only_whole);
        only_whole.insert(chunk);
        if is_short && only_whole.len() > FEW {
            self.decode_short_ones_whole();
        }
    }

    /// From now on, all chunks are decoded whole that one call can decode.
    pub(crate) fn decode_short_ones_whole(&self) {
        self.without_parts.store(true, Ordering::Relaxed);
    }

    /// Whether this is the first report of the file's change.
    pub(crate) fn report_change_once(&self) -> bool {
        !self.reported_change.swap(true, Ordering::Relaxed)
    }

    /// Takes notice that whoever decodes a chunk from front to back up to `end`, in bytes from its beginning, meets this error.
    pub(crate) fn remember_dead_end(&self, chunk: u32, end: u64, error: &Error) {
        if end >= FAR {
            let dead_end = DeadEnd {
                end,
                error: error.clone(),
                met: Instant::now(),
            };
            lock(&self.dead_ends).insert(chunk, dead_end);
        }
    }

    /// The error that was met lately by who decoded a chunk from front to back up to `end`, in bytes from its beginning, or less far.
    pub(crate) fn dead_end(&self, chunk: u32, end: u64) -> Option<Error> {
        let dead_ends = lock(&self.dead_ends);
        let known = dead_ends.get(&chunk)?;
        let holds = known.end <= end && known.met.elapsed() < REMEMBERED;
        holds.then(|| known.error.clone())
    }

    /// Whether this is the first report of the chunk's damage.
    pub(crate) fn report_once(&self, chunk: u32) -> bool {
        lock(&self.reported).insert(chunk)
    }
}

/// Whether the first `end` bytes of `source` have this fingerprint.
fn has_fingerprint(source: &dyn Source, end: u64, expected: u64) -> std::io::Result<bool> {
    let mut fingerprint = Fingerprint::default();
    let mut block = [0; COMPARE_BLOCK];
    let mut offset = 0;
    while offset < end {
        let length = (end - offset).min(COMPARE_BLOCK as u64) as usize;
        let wanted = block.get_mut(..length).unwrap_or_default();
        if source.read_description(wanted, offset, end)? < length {
            return Ok(false);
        }
        fingerprint.update(wanted);
        offset += length as u64;
    }
    Ok(fingerprint.digest() == expected)
}

fn lock<T>(chunks: &Mutex<T>) -> MutexGuard<'_, T> {
    chunks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds the original sizes of the `unknown` chunks by decoding them, in parallel and in constant memory; those of the
/// others are in `sizes`. No more is decoded than the header announces, but for what is being decoded when it turns out to be more.
fn measure(
    source: &dyn Source,
    path: &Path,
    header: &FixedHeader,
    conditions: &Conditions<'_>,
    payloads: PayloadTable,
    mut sizes: Vec<u64>,
    unknown: &[u32],
) -> Result<ChunkTable> {
    let told: u64 = sizes.iter().fold(0, |sum, &size| sum.saturating_add(size));
    let left = AtomicU64::new(header.original_size.saturating_sub(told));
    let measured = |chunk: u32| -> Result<u64> {
        let range = payloads.range(chunk).unwrap_or_default();
        let file_len = source.identity().context("cannot examine", path)?.size;
        if range.end > file_len {
            return Err(ErrorKind::EndsInside(Part::Payload).into());
        }
        let length = range.end - range.start;
        codec::check_payload_len(header.codec, length, header.original_size)?;
        let length = check_available(length)?;
        let mut beginning = [0; codec::SIZE_PROBE_LEN];
        let wanted = length.min(beginning.len());
        let read = source
            .read_at(beginning.get_mut(..wanted).unwrap_or_default(), range.start)
            .context("cannot read", path)?;
        let beginning = beginning.get(..read).unwrap_or_default();
        let mut beside = codec::memory_to_measure(header.codec, beginning);
        loop {
            let acquired = conditions.budget.acquire_beside(
                [length],
                beside,
                Urgency::Demand,
                conditions.make_room,
            )?;
            let Some(([mut payload], _room)) = acquired else {
                return Err(ErrorKind::Cancelled.into());
            };
            if source
                .read_at(&mut payload, range.start)
                .context("cannot read", path)?
                < length
            {
                return Err(ErrorKind::EndsInside(Part::Payload).into());
            }
            let needed = codec::memory_to_measure(header.codec, &payload);
            if needed <= beside {
                return codec::measure(
                    header.codec,
                    &payload,
                    left.load(Ordering::Relaxed),
                    conditions.cancelled,
                );
            }
            // What lies further behind takes more, and nobody waits for memory who holds some.
            beside = needed;
        }
    };
    let mut chunks = unknown.iter().copied();
    let mut lost = Vec::new();
    ordered::run(
        threads_for(thread_count(None), unknown.len() as u64),
        conditions.cancelled,
        || (),
        || Ok(chunks.next()),
        |(), chunk| match measured(chunk) {
            Ok(size) => Ok((chunk, Ok(size))),
            Err(error) if error.is_damage() && conditions.cut != Cut::Refuse => {
                Ok((chunk, Err(located(error, chunk))))
            }
            Err(error) => Err(located(error, chunk)),
        },
        |(chunk, size)| {
            match (sizes.get_mut(chunk as usize), size) {
                (Some(place), Ok(size)) => {
                    let rest = left.load(Ordering::Relaxed);
                    let found = header.original_size - rest;
                    let rest = rest.checked_sub(size).ok_or(ErrorKind::SizeSum {
                        sum: found.saturating_add(size),
                        header: header.original_size,
                    })?;
                    left.store(rest, Ordering::Relaxed);
                    *place = size;
                }
                (_, Err(error)) => lost.push((chunk, error)),
                (None, Ok(_)) => {}
            }
            Ok(())
        },
    )?;
    infer(&mut sizes, lost, header)?;
    ChunkTable::of_sizes(header, payloads, sizes)
}

/// Gives the chunks that cannot be measured, because they are damaged or cut off, the bytes that the others leave to them. Where
/// there are several, nothing tells where those between them lie, whole ones included: the first lost one has all the bytes
/// up to the end of the last, and as it is lost they cannot be read. If the others leave nothing to them, or there are no others, the
/// first one's error stands.
fn infer(sizes: &mut [u64], lost: Vec<(u32, Error)>, header: &FixedHeader) -> Result<()> {
    let [(first, error), rest @ ..] = lost.as_slice() else {
        return Ok(());
    };
    let last = rest.last().map_or(first, |(last, _)| last);
    let known = |sizes: &[u64]| {
        sizes
            .iter()
            .fold(0, |sum: u64, &size| sum.saturating_add(size))
    };
    let missing = header.original_size.checked_sub(known(sizes));
    let missing =
        missing.filter(|&missing| rest.is_empty() || (missing > 0 && lost.len() < sizes.len()));
    let between = sizes.get_mut(*first as usize..=*last as usize);
    let (Some(missing), Some(between)) = (missing, between) else {
        return Err(error.clone());
    };
    let all = missing.saturating_add(known(between));
    between.fill(0);
    if let Some(place) = between.first_mut() {
        *place = all;
    }
    Ok(())
}

/// Where the chunk begins is not known before all those in front of it are measured.
fn located(error: Error, chunk: u32) -> Error {
    match error.kind() {
        ErrorKind::Cancelled => error,
        _ => error.in_chunk(chunk, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Verify;
    use crate::codec::Settings;
    use crate::format::{Codec, Version};
    use crate::memory::Budget;
    use std::fs::{self, File};

    /// The original sizes of a version 1 file in Brotli that has chunks of these, as they are found of it with the payloads of
    /// some of them damaged; and how much memory its contents take.
    fn found(sizes: &[u64], damaged: &[usize]) -> Result<(Vec<Range<u64>>, u64)> {
        let settings = Settings {
            zstd_level: 3,
            zstd_threads: 0,
            brotli_quality: 5,
            lz4_thoroughness: None,
        };
        let mut payloads = Vec::new();
        for (number, &size) in sizes.iter().enumerate() {
            let mut payload = Vec::new();
            let bytes = vec![number as u8; size as usize];
            codec::encode(Codec::Brotli, &bytes, &settings, &mut payload).unwrap();
            if damaged.contains(&number) {
                payload.fill(0xff);
            }
            payloads.push(payload);
        }
        let header = FixedHeader {
            version: Version::V1,
            codec: Codec::Brotli,
            original_size: sizes.iter().sum(),
            chunk_count: sizes.len() as u32,
        };
        let mut file = header.to_bytes().to_vec();
        file.extend(
            payloads
                .iter()
                .flat_map(|payload| (payload.len() as u64).to_le_bytes()),
        );
        file.extend(payloads.concat());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.warp");
        fs::write(&path, file).unwrap();
        let conditions = Conditions {
            cut: Cut::Accept,
            verify: Verify::Fast,
            budget: &Budget::unlimited(),
            make_room: &|| false,
            cancelled: &AtomicBool::new(false),
        };
        let contents = Contents::read(&File::open(&path).unwrap(), &path, &conditions)?;
        let ranges =
            (0..contents.table.len()).filter_map(|chunk| contents.table.original_range(chunk));
        Ok((ranges.collect(), contents.memory()))
    }

    #[test]
    fn a_sound_chunk_between_two_damaged_ones_is_never_put_in_a_wrong_place() {
        // As if all had 100.
        let (ranges, _) = found(&[100, 150, 100, 50], &[1, 3]).unwrap();
        assert_eq!(ranges, [0..100, 100..400, 400..400, 400..400]);
        // What lies around them is where it belongs.
        let (ranges, _) = found(&[100, 150, 70, 100, 50, 60], &[1, 2, 4]).unwrap();
        assert_eq!(
            ranges,
            [0..100, 100..470, 470..470, 470..470, 470..470, 470..530]
        );
    }

    #[test]
    fn a_damaged_first_chunk_and_another_cost_no_more_than_what_lies_between() {
        let (ranges, _) = found(&[100, 150, 70], &[0, 1]).unwrap();
        assert_eq!(ranges, [0..250, 250..250, 250..320]);
        assert!(found(&[100, 150], &[0, 1]).unwrap_err().is_damage());
    }

    #[test]
    fn a_measured_table_counts_as_what_it_takes() {
        let (ranges, memory) = found(&[100; 3000], &[]).unwrap();
        assert_eq!(ranges.len(), 3000);
        assert!(memory < 8 * 3000, "{memory}");
    }
}
