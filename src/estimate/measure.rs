//! One setting tried on the samples: what it makes of them, and how fast.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::sample::{Sample, Samples, spread};
use crate::archive::PIECE_LEN;
use crate::codec::{self, Settings};
use crate::digest::{Content, Leaf, leaf_digests, subtrees};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Checksum, Codec, DIGEST_LEN, FIXED_HEADER_LEN, FOOTER_MAX_LEN, GROUP_LEN, Layout, RECORD_MAGIC,
    TAIL_LEN, VALUE_LEN,
};
use crate::job::Control;
use crate::zeros::is_zero;

/// What a chunk has in the table, in bytes.
const TABLE_ENTRY_LEN: f64 = 16.0;
/// What a file has once, in bytes: header, footer with BLAKE3, the record's magic and tail.
const ONCE_LEN: f64 = (FIXED_HEADER_LEN + FOOTER_MAX_LEN + RECORD_MAGIC.len() + TAIL_LEN) as f64;
/// What a page of the record has once, in bytes: its seal and its place in the directory.
const PAGE_LEN: f64 = DIGEST_LEN as f64 + PLACE_LEN;
/// What a page has in the directory, in bytes: its length and its value.
const PLACE_LEN: f64 = (4 + VALUE_LEN) as f64;
/// On how many samples every setting is tried.
const LEAST_SAMPLES: usize = 6;
/// How many random reads are tried at most, and how long.
const READS: (u64, Duration) = (400, Duration::from_millis(30));
/// How many pieces are tried beside the samples at most, and how long.
const PROBES: (u64, Duration) = (512, Duration::from_millis(1500));
/// How long decoding all of it is tried.
const READ_TIME: Duration = Duration::from_millis(50);

/// How to encode.
pub(super) struct Way {
    pub(super) codec: Codec,
    pub(super) settings: Settings,
    pub(super) chunk_size: u64,
}

/// What a setting makes of the samples.
pub(super) struct Costs {
    /// What each takes in the file, in bytes; `None` if it was not tried.
    pub(super) samples: Vec<Option<f64>>,
    /// What a byte of a hole takes.
    pub(super) of_a_hole: f64,
}

impl Costs {
    /// Gives the samples that were not tried the costs they have in `all`, less what was gained on those that are next to
    /// them in `ranks`: what does not compress gains nothing by another setting either.
    pub(super) fn complete(&mut self, all: &Costs, ranks: &[usize]) {
        let cost = |costs: &[Option<f64>], number: usize| costs.get(number).copied().flatten();
        let tried: Vec<(usize, f64)> = ranks
            .iter()
            .enumerate()
            .filter_map(|(rank, &number)| {
                let (own, other) = cost(&self.samples, number).zip(cost(&all.samples, number))?;
                (other > 0.0).then_some((rank, own / other))
            })
            .collect();
        for (rank, &number) in ranks.iter().enumerate() {
            let behind = tried.partition_point(|&(tried, _)| tried < rank);
            let above = tried.get(behind);
            let below = behind.checked_sub(1).and_then(|below| tried.get(below));
            let gain = match (below, above) {
                (Some((_, below)), Some((_, above))) => (below + above) / 2.0,
                (Some((_, one)), None) | (None, Some((_, one))) => *one,
                (None, None) => 1.0,
            };
            if let Some(place) = self.samples.get_mut(number)
                && place.is_none()
            {
                *place = cost(&all.samples, number).map(|other| other * gain);
            }
        }
    }
}

/// How fast it is.
pub(super) struct Speeds {
    pub(super) pack: f64,
    pub(super) read: f64,
    pub(super) random_read: Duration,
}

/// A chunk's payload, and what it decodes to.
struct Encoded<'a> {
    payload: Vec<u8>,
    original: &'a [u8],
    /// Where it begins in its file, in bytes.
    offset: u64,
}

/// What one thread did.
#[derive(Default)]
struct Done<'a> {
    costs: Vec<(usize, f64)>,
    chunks: Vec<Encoded<'a>>,
    bytes: u64,
    busy: Duration,
}

/// Tries a setting on as many samples as `time` allows, taken in this order, and at least on some.
pub(super) fn measure(
    samples: &Samples,
    order: &[usize],
    way: &Way,
    threads: usize,
    time: Duration,
    control: Control<'_>,
) -> Result<(Costs, Speeds)> {
    let all = samples.all();
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let done = on_threads(threads, || {
        let mut done = Done::default();
        while let turn = next.fetch_add(1, Ordering::Relaxed)
            && let Some((number, sample)) = order
                .get(turn)
                .and_then(|&number| Some((number, all.get(number)?)))
        {
            if control.cancelled.load(Ordering::Relaxed) {
                return Err(ErrorKind::Cancelled.into());
            }
            if turn >= LEAST_SAMPLES && started.elapsed() > time {
                break;
            }
            let begun = Instant::now();
            let cost = encode(sample, way, &mut done.chunks)?;
            done.busy += begun.elapsed();
            done.bytes += sample.bytes.len() as u64;
            done.costs.push((number, cost));
        }
        Ok(done)
    })?;
    let mut costs = Costs {
        samples: vec![None; all.len()],
        of_a_hole: hole(way)?,
    };
    for &(number, cost) in done.iter().flat_map(|done| &done.costs) {
        if let Some(place) = costs.samples.get_mut(number) {
            *place = Some(cost);
        }
    }
    let pack = rate(
        &done
            .iter()
            .map(|done| (done.bytes, done.busy))
            .collect::<Vec<_>>(),
    );
    let chunks: Vec<_> = done.into_iter().flat_map(|done| done.chunks).collect();
    Ok((
        costs,
        Speeds {
            pack,
            read: decode_all(&chunks, way, threads)?,
            random_read: read_at_random(&chunks, way)?,
        },
    ))
}

/// What a byte takes in the file, by pieces that are short and many, and of all the data as no sample is; nothing is kept of
/// them. `None` if there is no time for enough of them.
pub(super) fn probe(
    samples: &Samples,
    way: &Way,
    threads: usize,
    control: Control<'_>,
) -> Result<Option<f64>> {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let done = on_threads(threads, || {
        let (mut cost, mut pieces) = (0.0, 0_u64);
        while let turn = next.fetch_add(1, Ordering::Relaxed)
            && turn < PROBES.0
            && started.elapsed() < PROBES.1
        {
            if control.cancelled.load(Ordering::Relaxed) {
                return Err(ErrorKind::Cancelled.into());
            }
            if let Some(piece) = samples.piece(turn, way.chunk_size) {
                cost += encode(&piece, way, &mut Vec::new())? / piece.bytes.len().max(1) as f64;
                pieces += 1;
            }
        }
        Ok((cost, pieces))
    })?;
    let cost: f64 = done.iter().map(|(cost, _)| cost).sum();
    let pieces: u64 = done.iter().map(|(_, pieces)| pieces).sum();
    Ok((pieces >= PROBES.0 / 2).then_some(cost / pieces as f64))
}

/// Runs the same on several threads, of which this is one. Where no more may be had, those there are do the work.
fn on_threads<T: Send>(threads: usize, work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let others = (1..threads).map_while(|_| Builder::new().spawn_scoped(scope, &work).ok());
        let others: Vec<_> = others.collect();
        let own = catch_unwind(AssertUnwindSafe(&work));
        let joined = others.into_iter().map(|thread| thread.join());
        std::iter::once(own)
            .chain(joined)
            .map(|done| done.unwrap_or_else(|_| Err(Error::new(ErrorKind::Panicked))))
            .collect()
    })
}

/// Bytes in a second of all threads together, given what each did while it was busy.
fn rate(threads: &[(u64, Duration)]) -> f64 {
    let each = threads.iter().filter(|(_, busy)| !busy.is_zero());
    each.map(|(bytes, busy)| *bytes as f64 / busy.as_secs_f64())
        .sum()
}

/// Encodes a sample as `pack` does, and says what it takes in the file, in bytes.
fn encode<'a>(sample: &'a Sample, way: &Way, chunks: &mut Vec<Encoded<'a>>) -> Result<f64> {
    let layout = Layout::for_packing(Some(Checksum::Blake3));
    let len = sample.bytes.len() as f64;
    let mut cost =
        ONCE_LEN * len / sample.file_size as f64 + PAGE_LEN * len / layout.page_len as f64;
    let mut offset = sample.offset;
    for original in sample
        .bytes
        .chunks(usize::try_from(way.chunk_size).unwrap_or(usize::MAX))
    {
        let content = match is_zero(original) {
            true => Content::Zeros(original.len() as u64),
            false => Content::Bytes(original),
        };
        let leaves = leaf_digests(offset, content, layout.leaf_len);
        std::hint::black_box(subtrees(offset, content, GROUP_LEN));
        let mut payload = Vec::new();
        codec::encode(way.codec, original, &way.settings, &mut payload)?;
        let with_data = leaves.iter().filter(|leaf| **leaf != Leaf::Zeros).count();
        cost += payload.len() as f64 + TABLE_ENTRY_LEN;
        cost += (with_data * DIGEST_LEN) as f64 + leaves.len() as f64 / 8.0;
        if with_data > 0 && sample.file_size > GROUP_LEN {
            cost += VALUE_LEN as f64 * original.len() as f64 / GROUP_LEN as f64;
        }
        chunks.push(Encoded {
            payload,
            original,
            offset,
        });
        offset += original.len() as u64;
    }
    Ok(cost)
}

/// What a byte of a hole takes in the file.
fn hole(way: &Way) -> Result<f64> {
    let zeros = vec![0; usize::try_from(way.chunk_size).unwrap_or(0)];
    let mut payload = Vec::new();
    codec::encode(way.codec, &zeros, &way.settings, &mut payload)?;
    let chunk = (payload.len() as f64 + TABLE_ENTRY_LEN) / way.chunk_size as f64;
    let page_len = Layout::for_packing(Some(Checksum::Blake3)).page_len;
    Ok(chunk + PLACE_LEN / page_len as f64)
}

/// Decodes and checks a chunk, as a mount does.
fn decode(chunk: &Encoded<'_>, way: &Way, output: &mut Vec<u8>) -> Result<()> {
    output.resize(chunk.original.len(), 0);
    codec::decode_into(way.codec, &chunk.payload, output)?;
    let layout = Layout::for_packing(Some(Checksum::Blake3));
    std::hint::black_box(leaf_digests(
        chunk.offset,
        Content::Bytes(output),
        layout.leaf_len,
    ));
    Ok(())
}

/// How many bytes of originals are decoded in a second, with all threads.
fn decode_all(chunks: &[Encoded<'_>], way: &Way, threads: usize) -> Result<f64> {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let done = on_threads(threads, || {
        let mut output = Vec::new();
        let mut bytes = 0;
        let begun = Instant::now();
        // Over again, where there is little.
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(chunk) = chunks.get(number % chunks.len().max(1))
            && started.elapsed() < READ_TIME
        {
            decode(chunk, way, &mut output)?;
            bytes += chunk.original.len() as u64;
        }
        Ok((bytes, begun.elapsed()))
    })?;
    Ok(rate(&done))
}

/// How long one thread takes for the chunk that holds a random page, or for the piece: chunks of up to a mebibyte are decoded whole,
/// but for those of LZ4, of which a piece takes its part of the time.
fn read_at_random(chunks: &[Encoded<'_>], way: &Way) -> Result<Duration> {
    let mut output = Vec::new();
    let started = Instant::now();
    let mut taken = Duration::ZERO;
    let mut reads = 0;
    while reads < READS.0 && (reads < 4 || started.elapsed() < READS.1) {
        // Far from one another, so that what was decoded last does not help.
        let number = spread(reads, chunks.len() as u64);
        let Some(chunk) = chunks.get(number as usize) else {
            return Ok(Duration::ZERO);
        };
        let begun = Instant::now();
        decode(chunk, way, &mut output)?;
        let length = chunk.original.len() as f64;
        let part = match way.codec {
            Codec::Lz4 if length > PIECE_LEN as f64 => PIECE_LEN as f64 / length,
            _ => 1.0,
        };
        taken += begun.elapsed().mul_f64(part);
        reads += 1;
    }
    Ok(taken / u32::try_from(reads).unwrap_or(1).max(1))
}
