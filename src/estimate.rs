//! What packing would come to, from samples: a few seconds instead of as many packings as there are settings.
//!
//! Samples are regions of up to a mebibyte, spread evenly over all bytes there are, so that a file is met as often as it is
//! large; holes are counted and not sampled. Every setting is tried on them in chunks as `pack` cuts them, with all that `pack`
//! writes beside them. One setting is tried on all samples; a slow one on as many as its time allows, and for the others what
//! it gained on those, chosen from what compresses best to what does worst, is taken over. How the samples differ from all there
//! is, many short pieces tell by that one setting, and every other is corrected by it. Speeds are of the codecs and digests in memory, with all threads; disks and a mount's
//! system calls come on top.

mod candidate;
mod measure;
mod sample;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::codec::Settings;
use crate::error::Result;
use crate::format::Codec;
use crate::job::{Control, thread_count};
use crate::pack::{
    ARCHIVE, DEFAULT_BROTLI_QUALITY, DEFAULT_CHUNK_SIZE, DEFAULT_ZSTD_LEVEL, Purpose, RANDOM,
    usual_chunk_size,
};

use candidate::REGION_LEN;
use measure::{Costs, measure};
use sample::{Samples, spread};

/// How long a setting is tried on samples, but for one that is slow.
const TIME: Duration = Duration::from_millis(200);
/// How long a slow one is.
const TIME_OF_A_SLOW_ONE: Duration = Duration::from_millis(800);

/// What was found.
#[derive(Debug, Clone)]
pub struct Estimate {
    /// How many files there are, without those of which nothing can be read.
    pub files: u64,
    /// Their size, in bytes.
    pub size: u64,
    /// How much of that was looked at, in bytes.
    pub sampled: u64,
    /// How many files and directories could not be read, each reported to the observer.
    pub failed: u64,
    /// What the settings come to.
    pub trials: Vec<Trial>,
    /// What `--for archive`, `balanced` and `random` come to, in this order.
    pub purposes: Vec<Trial>,
}

/// One setting, and what it comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The codec.
    pub codec: Codec,
    /// Zstandard's level or Brotli's quality.
    pub level: Option<i32>,
    /// The chunk size, in bytes.
    pub chunk_size: u64,
    /// The size of all that `pack` would write, in bytes: of a tree, copies of files that do not shrink included.
    pub packed_size: u64,
    /// How many bytes of originals are packed in a second.
    pub pack_rate: f64,
    /// How many bytes of originals are decoded and checked in a second.
    pub read_rate: f64,
    /// How long the decoding for a read of 4 KiB at a random offset takes.
    pub random_read: Duration,
}

/// The chunk size that `pack` takes for a file of `size` bytes where it prefers this one, as far as samples are that long; in bytes.
fn taken(preferred: u64, size: u64) -> u64 {
    usual_chunk_size(preferred, size).min(REGION_LEN)
}

/// The settings that are tried, where the largest file has so many bytes. The first is the one that is tried on all samples; the
/// second is what auto has instead.
fn settings(largest: u64) -> Vec<(Codec, i32, u64)> {
    let zstd = DEFAULT_ZSTD_LEVEL;
    let brotli = DEFAULT_BROTLI_QUALITY as i32;
    let balanced = taken(DEFAULT_CHUNK_SIZE, largest);
    let random = taken(RANDOM.chunk_size, largest);
    let archive = taken(ARCHIVE.chunk_size, largest);
    let mut settings = vec![
        (Codec::Zstd, zstd, balanced),
        (Codec::Snappy, 0, balanced),
        (Codec::Lz4, 0, 16 << 10),
        (Codec::Lz4, 0, DEFAULT_CHUNK_SIZE),
        (Codec::Zstd, zstd, 16 << 10),
        (Codec::Zstd, zstd, 1 << 20),
        (Codec::Zstd, RANDOM.zstd_level, random),
        (Codec::Zstd, 9, DEFAULT_CHUNK_SIZE),
        (Codec::Zstd, ARCHIVE.zstd_level, archive),
        (Codec::Brotli, brotli, DEFAULT_CHUNK_SIZE),
        (Codec::Brotli, 9, 1 << 20),
    ];
    // Of a huge file two of them may be the same.
    let mut seen = HashSet::new();
    settings.retain(|&(codec, level, chunk_size)| seen.insert((codec as u8, level, chunk_size)));
    settings
}

/// The settings of this level, or of this quality.
fn settings_at(level: i32) -> Settings {
    Settings {
        zstd_level: level,
        zstd_threads: 0,
        brotli_quality: u32::try_from(level).unwrap_or(0),
        lz4_thoroughness: None,
    }
}

/// Estimates what packing these files and trees comes to.
///
/// # Errors
/// Nothing can be read there, or cancellation.
pub fn estimate(paths: &[PathBuf], control: Control<'_>) -> Result<Estimate> {
    let mut samples = Samples::take(paths.iter().map(PathBuf::as_path), control)?;
    let threads = thread_count(None);
    let mut costs: Vec<Costs> = Vec::new();
    let mut trials = Vec::new();
    let mut ranks: Vec<usize> = (0..samples.all().len()).collect();
    let mut order = ranks.clone();
    for (codec, level, chunk_size) in settings(samples.largest()) {
        let settings = settings_at(level);
        let slow = (codec == Codec::Zstd && level > 9) || (codec == Codec::Brotli && level > 5);
        let time = match (costs.first(), slow) {
            (None, _) => Duration::MAX,
            (Some(_), true) => TIME_OF_A_SLOW_ONE,
            (Some(_), false) => TIME,
        };
        let way = measure::Way {
            codec,
            settings,
            chunk_size,
        };
        let (mut found, speeds) = measure(&samples, &order, &way, threads, time, control)?;
        if let Some(all) = costs.first() {
            found.complete(all, &ranks);
        } else {
            ranks = samples.ranks(&found);
            order = spread_out(&ranks);
            if samples.are_a_part()
                && let Some(cost) = measure::probe(&samples, &way, threads, control)?
            {
                samples.scale_to(cost, &found);
            }
        }
        trials.push(Trial {
            codec,
            level: matches!(codec, Codec::Zstd | Codec::Brotli).then_some(level),
            chunk_size,
            packed_size: samples.packed_size(&found),
            pack_rate: speeds.pack,
            read_rate: speeds.read,
            random_read: speeds.random_read,
        });
        costs.push(found);
    }
    let purposes = purposes(&samples, &trials, &costs, control)?;
    trials.sort_by_key(|trial| (trial.codec as u8, trial.level, trial.chunk_size));
    Ok(Estimate {
        files: samples.files(),
        size: samples.size(),
        sampled: samples.sampled(),
        failed: samples.failed(),
        trials,
        purposes,
    })
}

/// The same, in an order of which every beginning is spread over all of it.
fn spread_out(ranks: &[usize]) -> Vec<usize> {
    let mut taken = HashSet::new();
    let turns = 0..4 * ranks.len() as u64;
    let places = turns.map(|turn| spread(turn, ranks.len() as u64) as usize);
    places
        .chain(0..ranks.len())
        .filter(|&place| taken.insert(place))
        .filter_map(|place| ranks.get(place).copied())
        .collect()
}

fn purposes(
    samples: &Samples,
    trials: &[Trial],
    costs: &[Costs],
    control: Control<'_>,
) -> Result<Vec<Trial>> {
    let with = |purpose: Purpose| {
        let chunk_size = taken(purpose.chunk_size, samples.largest());
        let level = Some(purpose.zstd_level);
        let found = trials.iter().find(|trial| {
            trial.codec == Codec::Zstd && (trial.level, trial.chunk_size) == (level, chunk_size)
        });
        found.cloned()
    };
    let balanced = trials.iter().zip(costs).take(2).collect::<Vec<_>>();
    let balanced = match balanced.as_slice() {
        &[(zstd, zstd_costs), (snappy, snappy_costs)] => {
            let (costs, mostly_zstd) = samples.auto(zstd_costs, snappy_costs, control)?;
            let mostly = if mostly_zstd { zstd } else { snappy };
            Some(Trial {
                packed_size: samples.packed_size(&costs),
                ..mostly.clone()
            })
        }
        _ => None,
    };
    let purposes = [with(ARCHIVE), balanced, with(RANDOM)];
    Ok(purposes.into_iter().flatten().collect())
}

/// Whether a path is a tree, of which files that do not shrink are copied.
fn is_tree(path: &Path) -> bool {
    path.is_dir()
}
