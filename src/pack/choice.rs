//! Which codec, chunk size and worker threads a file gets.
//!
//! The levels choose as the Python package's do, so that the same level gives the same kind of file; an explicit codec or
//! chunk size wins over them.

use crate::codec::{self, Settings};
use crate::error::{Error, Result};
use crate::format::{Codec, SMALLEST_CHUNK};

use super::PackOptions;

/// The chunk size where neither the user nor the level chooses one, in bytes, for all but very large files. Measured with
/// Zstandard through a mount (`docs/PERFORMANCE.md`), this is where sequential reads are fastest; half of it answers three
/// quarters as many random reads again a second with files 2 % larger, eight times as much a fifth with files 6 % smaller.
pub const DEFAULT_CHUNK_SIZE: u64 = 128 << 10;
/// How many chunks of that size a file may have before larger ones are chosen: a table of 16 MiB in the file and while it
/// is read, of 2.7 MiB in memory then.
const DEFAULT_CHUNKS: u64 = 1 << 20;
/// The smallest chunk size one can ask for, in bytes: a page of memory, the unit in which mounts are read, and the least that a
/// record of digests may be of.
pub const MIN_CHUNK_SIZE: u64 = SMALLEST_CHUNK;
/// The largest chunk size one can ask for, in bytes: jobs hold a chunk whole, in memory.
pub const MAX_CHUNK_SIZE: u64 = 1 << 30;
/// How much of a file [`Level::Auto`] tries the codecs on, in bytes.
pub(crate) const SAMPLE_LEN: usize = 1 << 20;
/// What one of Zstandard's own threads takes at a time at the default level, in bytes: four of its 2 MiB windows.
const ZSTD_JOB_LEN: u64 = 8 << 20;
/// Zstandard's default level, as in the Python package.
pub const DEFAULT_ZSTD_LEVEL: i32 = 3;
/// Brotli's default quality, as in the Python package.
pub const DEFAULT_BROTLI_QUALITY: u32 = 5;

/// What to aim for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Zstandard where it makes the first MiB at least a tenth smaller than Snappy does, else Snappy.
    #[default]
    Auto,
    /// Snappy.
    Fastest,
    /// Brotli.
    Max,
    /// Codec, chunk size and Zstandard's threads by the file's size and the machine's cores.
    Throughput,
    /// As small as is reasonable, for what is seldom read: Zstandard's level 19, or what LZ4 comes to at its most thorough, in
    /// chunks of 1 MiB.
    Archive,
    /// Short ways to any byte, for databases and disk images: Zstandard's level 9, or LZ4's, in chunks of 16 KiB. Level 9 costs
    /// no time in reading, and brings small chunks near the size that larger ones have at the usual level.
    Random,
}

// Both were measured through a mount, on 128 MiB of programs in a tar and of an SQLite database, two cores, medians of three. A
// cold reader of 4 KiB at random offsets gets, at level 9 from chunks of 8 KiB, 16 KiB and 32 KiB, 18,400, 16,300 and 13,200
// reads a second of the tar (packed to 45.2, 43.2 and 41.9 %), 22,300, 21,500 and 17,800 of the database (15.6, 13.4 and 11.9 %).
// One who reads in order gets, at level 19 from chunks of 256 KiB, 1 MiB and 4 MiB, 777, 805 and 346 MiB/s of the tar (35.3,
// 32.7 and 29.9 %), 1314, 1455 and 563 of the database (9.3, 8.6 and 8.2 %): above 1 MiB, chunks are decoded in pieces.

/// How files are packed for a purpose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    pub(crate) zstd_level: i32,
    lz4_thoroughness: i32,
    pub(crate) chunk_size: u64,
}

/// [`Level::Archive`].
pub(crate) const ARCHIVE: Purpose = Purpose {
    zstd_level: 19,
    lz4_thoroughness: 12,
    chunk_size: 1 << 20,
};
/// [`Level::Random`].
pub(crate) const RANDOM: Purpose = Purpose {
    zstd_level: 9,
    lz4_thoroughness: 9,
    chunk_size: 16 << 10,
};

/// What was chosen for one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) codec: Codec,
    pub(super) chunk_size: u64,
    pub(super) settings: Settings,
    /// The most threads that are of use.
    pub(super) max_threads: usize,
}

impl Choice {
    /// How many cores one chunk keeps busy: Zstandard's own threads, as far as it cuts a chunk into jobs for them.
    /// Chunks of their own beside these would gain nothing and hold some 40 MiB of its buffers each.
    pub(super) fn threads_within_a_chunk(&self) -> usize {
        let jobs = (self.chunk_size / ZSTD_JOB_LEN).max(1);
        let threads = u64::from(self.settings.zstd_threads).clamp(1, jobs);
        usize::try_from(threads).unwrap_or(1)
    }
}

/// What [`Level::Throughput`] makes of a size and a number of cores.
struct Throughput {
    codec: Codec,
    chunk_size: u64,
    zstd_threads: u32,
    max_threads: usize,
}

fn throughput(size: u64, cores: usize) -> Throughput {
    const M: u64 = 1 << 20;
    const M32: u64 = 32 * M;
    const M256: u64 = 256 * M;
    const G: u64 = 1 << 30;
    const G10: u64 = 10 * G;
    let capped = |most: usize| cores.min(most) as u32;
    let (codec, chunk_size, zstd_threads) = match size {
        0..M32 => (Codec::Snappy, 2 * M, 0),
        M32..M256 => (Codec::Lz4, 2 * M, 0),
        M256..G => (
            if cores >= 6 { Codec::Zstd } else { Codec::Lz4 },
            if cores >= 8 { 8 * M } else { 4 * M },
            (cores / 2).max(1) as u32,
        ),
        G..G10 => (Codec::Zstd, 16 * M, capped(8)),
        _ => (Codec::Zstd, 32 * M, capped(12)),
    };
    Throughput {
        codec,
        chunk_size,
        zstd_threads,
        max_threads: if size < M256 { 4 } else { usize::MAX },
    }
}

/// Chooses for a file of `size` bytes, or a stream, whose size is not known and taken for a gibibyte or more. `sample`
/// gives the first [`SAMPLE_LEN`] bytes, and is asked only if they are needed.
///
/// # Errors
/// The sample's, or the file has more chunks of the size asked for than the container can count.
pub(super) fn choose(
    options: &PackOptions,
    size: Option<u64>,
    cores: usize,
    sample: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Choice> {
    let mut settings = Settings {
        zstd_level: options.zstd_level,
        zstd_threads: options.zstd_threads.unwrap_or(0),
        brotli_quality: options.brotli_quality,
        lz4_thoroughness: None,
    };
    let mut max_threads = usize::MAX;
    let mut chunk_size = options.chunk_size;
    let mut preferred = DEFAULT_CHUNK_SIZE;
    let codec = match options.level {
        Level::Throughput => {
            let choice = throughput(size.unwrap_or(1 << 30), cores);
            settings.zstd_threads = options.zstd_threads.unwrap_or(choice.zstd_threads);
            max_threads = choice.max_threads;
            chunk_size = chunk_size.or(Some(choice.chunk_size));
            options.codec.unwrap_or(choice.codec)
        }
        Level::Archive | Level::Random => {
            let purpose = match options.level {
                Level::Archive => ARCHIVE,
                _ => RANDOM,
            };
            settings.zstd_level = purpose.zstd_level;
            settings.lz4_thoroughness = Some(purpose.lz4_thoroughness);
            preferred = purpose.chunk_size;
            options.codec.unwrap_or(Codec::Zstd)
        }
        Level::Fastest => options.codec.unwrap_or(Codec::Snappy),
        Level::Max => options.codec.unwrap_or(Codec::Brotli),
        Level::Auto => match options.codec {
            Some(codec) => codec,
            None => smaller_of_two(&sample()?, &settings)?,
        },
    };
    Ok(Choice {
        codec,
        chunk_size: fitting(chunk_size, preferred, size.unwrap_or(0))?,
        settings,
        max_threads,
    })
}

/// What [`Level::Auto`] takes for a file that begins like this.
pub(crate) fn smaller_of_two(sample: &[u8], settings: &Settings) -> Result<Codec> {
    let mut zstd = Vec::new();
    let mut snappy = Vec::new();
    codec::encode(Codec::Zstd, sample, settings, &mut zstd)?;
    codec::encode(Codec::Snappy, sample, settings, &mut snappy)?;
    Ok(worthwhile(zstd.len(), snappy.len()))
}

/// Of what takes so many bytes by the two: Zstandard takes longer to decode, and must be at least a tenth smaller for that.
fn worthwhile(zstd: usize, snappy: usize) -> Codec {
    match zstd * 10 <= snappy * 9 {
        true => Codec::Zstd,
        false => Codec::Snappy,
    }
}

/// The chunk size asked for, if there are chunks of that size and those of a file can then be counted in 32 bits; or the
/// [`usual_chunk_size`].
fn fitting(chunk_size: Option<u64>, preferred: u64, size: u64) -> Result<u64> {
    let Some(chunk_size) = chunk_size else {
        return Ok(usual_chunk_size(preferred, size));
    };
    if !(MIN_CHUNK_SIZE..=MAX_CHUNK_SIZE).contains(&chunk_size) {
        // Of smaller ones a record of digests could not tell, and larger ones nobody could hold.
        return Err(Error::unusable(format!(
            "chunks of {chunk_size} bytes: there are such of {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE} bytes"
        )));
    }
    if size.div_ceil(chunk_size) > u64::from(u32::MAX) {
        return Err(Error::unusable(format!(
            "{size} bytes make too many chunks of {chunk_size} bytes: choose a larger --chunk-size"
        )));
    }
    Ok(chunk_size)
}

/// The preferred chunk size, or a larger one that gives a file of `size` bytes a table of moderate length; in bytes.
pub(crate) fn usual_chunk_size(preferred: u64, size: u64) -> u64 {
    let mut chunk_size = preferred;
    while size.div_ceil(chunk_size) > DEFAULT_CHUNKS {
        chunk_size *= 2;
    }
    chunk_size
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    fn chosen(options: &PackOptions, size: u64, cores: usize) -> Choice {
        choose(options, Some(size), cores, || {
            Ok(b"to be or not ".repeat(9_999))
        })
        .unwrap()
    }

    #[test]
    fn throughput_goes_by_size_and_cores() {
        let options = PackOptions {
            level: Level::Throughput,
            ..PackOptions::default()
        };
        let expected = [
            (31 * M, 2, Codec::Snappy, 2 * M, 0),
            (32 * M, 64, Codec::Lz4, 2 * M, 0),
            (256 * M, 2, Codec::Lz4, 4 * M, 1),
            (256 * M, 6, Codec::Zstd, 4 * M, 3),
            (1023 * M, 8, Codec::Zstd, 8 * M, 4),
            (1024 * M, 2, Codec::Zstd, 16 * M, 2),
            (1024 * M, 16, Codec::Zstd, 16 * M, 8),
            (10 * 1024 * M, 16, Codec::Zstd, 32 * M, 12),
        ];
        for (size, cores, codec, chunk_size, zstd_threads) in expected {
            let choice = chosen(&options, size, cores);
            assert_eq!(
                (
                    choice.codec,
                    choice.chunk_size,
                    choice.settings.zstd_threads
                ),
                (codec, chunk_size, zstd_threads),
                "{size} bytes, {cores} cores"
            );
        }
    }

    #[test]
    fn what_is_asked_for_wins_over_the_level() {
        for level in [Level::Auto, Level::Fastest, Level::Max, Level::Throughput] {
            let options = PackOptions {
                level,
                codec: Some(Codec::Lz4),
                chunk_size: Some(12_345),
                zstd_threads: Some(7),
                ..PackOptions::default()
            };
            let choice = chosen(&options, 3 << 30, 16);
            assert_eq!(choice.codec, Codec::Lz4);
            assert_eq!(choice.chunk_size, 12_345);
            assert_eq!(choice.settings.zstd_threads, 7);
        }
    }

    #[test]
    fn what_is_for_a_purpose_is_the_same_everywhere_but_for_huge_files() {
        for cores in [1, 64] {
            for (level, size, zstd_level, chunk_size) in [
                (Level::Archive, M, 19, M),
                (Level::Random, M, 9, 16 << 10),
                (Level::Random, 64 << 30, 9, 64 << 10),
            ] {
                let options = PackOptions {
                    level,
                    ..PackOptions::default()
                };
                let choice = chosen(&options, size, cores);
                let found = (choice.codec, choice.settings.zstd_level, choice.chunk_size);
                assert_eq!(found, (Codec::Zstd, zstd_level, chunk_size));
                let options = PackOptions {
                    codec: Some(Codec::Lz4),
                    ..options
                };
                let lz4 = chosen(&options, size, cores);
                assert_eq!((lz4.codec, lz4.chunk_size), (Codec::Lz4, chunk_size));
                assert!(lz4.settings.lz4_thoroughness.is_some());
            }
        }
    }

    #[test]
    fn the_levels_for_size_and_speed_have_each_their_codec() {
        for (level, codec) in [(Level::Fastest, Codec::Snappy), (Level::Max, Codec::Brotli)] {
            let options = PackOptions {
                level,
                ..PackOptions::default()
            };
            for size in [M, 10 << 30] {
                assert_eq!(chosen(&options, size, 2).codec, codec);
            }
        }
    }

    #[test]
    fn a_tenth_is_what_zstd_must_save() {
        assert_eq!(worthwhile(90, 100), Codec::Zstd);
        assert_eq!(worthwhile(91, 100), Codec::Snappy);
        assert_eq!(worthwhile(943_718, 1 << 20), Codec::Zstd);
        assert_eq!(worthwhile(943_719, 1 << 20), Codec::Snappy);
    }

    #[test]
    fn auto_takes_zstd_only_where_it_pays() {
        let options = PackOptions::default();
        assert_eq!(chosen(&options, M, 2).codec, Codec::Zstd);
        let noise: Vec<u8> = (0..SAMPLE_LEN as u64)
            .map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) >> 24) as u8)
            .scan(1_u64, |state, byte| {
                *state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(byte.into());
                Some((*state >> 56) as u8)
            })
            .collect();
        let choice = choose(&options, Some(M), 2, || Ok(noise)).unwrap();
        assert_eq!(choice.codec, Codec::Snappy);
    }

    #[test]
    fn chunks_are_no_more_than_can_be_counted() {
        let huge = 1_u64 << 60;
        assert!(huge.div_ceil(fitting(None, DEFAULT_CHUNK_SIZE, huge).unwrap()) <= DEFAULT_CHUNKS);
        assert!(fitting(Some(4096), DEFAULT_CHUNK_SIZE, huge).is_err());
        for size in [0, MIN_CHUNK_SIZE - 1, MAX_CHUNK_SIZE + 1] {
            assert!(fitting(Some(size), DEFAULT_CHUNK_SIZE, 1).is_err());
        }
        assert_eq!(
            fitting(Some(4096), DEFAULT_CHUNK_SIZE, 1 << 40).unwrap(),
            4096
        );
        assert_eq!(
            fitting(None, DEFAULT_CHUNK_SIZE, 128 << 30).unwrap(),
            DEFAULT_CHUNK_SIZE
        );
        assert_eq!(
            fitting(None, DEFAULT_CHUNK_SIZE, (128 << 30) + 1).unwrap(),
            2 * DEFAULT_CHUNK_SIZE
        );
    }
}
