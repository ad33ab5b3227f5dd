//! Our writer and our readers against each other: whatever is packed, in whichever way, comes back the same in every way.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use tempfile::TempDir;
use warpfs::format::{Checksum, Codec};
use warpfs::info::Info;
use warpfs::job::Control;
use warpfs::pack::{Level, MIN_CHUNK_SIZE, PackOptions, pack_file};
use warpfs::unpack::{UnpackOptions, unpack_file, unpack_to};
use warpfs::verify::{VerifyOptions, verify_file};
use warpfs::{Engine, EngineOptions, Verify};

use crate::plan::Original;
use crate::{Random, is_zero};

/// The longest original, in bytes.
const LONGEST: usize = 1 << 20;
/// From which length on Brotli's best qualities take too long, in bytes.
const SHORT: usize = 32 << 10;

static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

#[derive(Debug, Arbitrary)]
struct Job {
    level: u8,
    codec: Option<u8>,
    chunk_size: Option<u16>,
    threads: u8,
    zstd_level: u8,
    zstd_threads: u8,
    brotli_quality: u8,
    checksum: Option<u8>,
    budget: u8,
    verify: u8,
    prefetch: Option<u32>,
    original: Original,
}

impl Job {
    fn pack_options(&self, len: usize) -> PackOptions {
        let qualities = if len > SHORT { 7 } else { 12 };
        let levels = if len > SHORT { 20 } else { 30 };
        PackOptions {
            level: [Level::Auto, Level::Fastest, Level::Max, Level::Throughput]
                [usize::from(self.level) % 4],
            codec: self.codec.map(|codec| Codec::ALL[usize::from(codec) % 4]),
            chunk_size: self.chunk_size.map(|size| {
                // Whole pages and others.
                MIN_CHUNK_SIZE + u64::from(size) * [1, 16][usize::from(size) % 2]
            }),
            threads: Some(1 + usize::from(self.threads) % 3),
            zstd_level: i32::from(self.zstd_level) % levels - 7,
            zstd_threads: [None, None, Some(1), Some(2)][usize::from(self.zstd_threads) % 4],
            brotli_quality: u32::from(self.brotli_quality) % qualities,
            checksum: self
                .checksum
                .map(|checksum| Checksum::ALL[usize::from(checksum) % 3]),
            ..PackOptions::default()
        }
    }
}

/// Packs what the input says, the way it says, and reads it in every way there is.
pub fn run(data: &[u8]) {
    let Ok(job) = Job::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    let (original, holes) = job.original.bytes(LONGEST);
    let directory = DIRECTORY.path();
    let input = directory.join("original");
    write_sparse(&input, &original, &holes);
    let options = job.pack_options(original.len());
    let packed = directory.join("packed.warp");
    let unpacked = directory.join("unpacked");
    for path in [&packed, &unpacked] {
        let _ = fs::remove_file(path);
    }
    let control = Control::default();
    let summary = pack_file(&input, &packed, &options, control).unwrap();
    assert_eq!(summary.original_size, original.len() as u64);
    let length = fs::metadata(&packed).unwrap().len();
    assert_eq!(summary.packed_size, length);

    let info = Info::read(&packed).unwrap();
    assert_eq!(info.chunk_count(), summary.chunks);
    if options.codec.is_some() && !original.is_empty() {
        assert_eq!(Some(info.codec()), options.codec);
    }
    let verify = VerifyOptions {
        threads: options.threads,
        ..VerifyOptions::default()
    };
    let verified = verify_file(&packed, verify, control).unwrap();
    assert_eq!(verified, summary);

    let unpack = UnpackOptions {
        threads: options.threads,
        ..UnpackOptions::default()
    };
    unpack_file(&packed, &unpacked, &unpack, control).unwrap();
    assert!(fs::read(&unpacked).unwrap() == original, "as a file");
    let mut stream = Vec::new();
    unpack_to(&packed, &mut stream, &unpack, control).unwrap();
    assert!(stream == original, "as a stream");

    check_determinism(&input, &packed, &options, directory, control);
    read(&packed, &job, &original, &mut Random::for_input(data));
}

/// Writes a file with holes where they are to be.
fn write_sparse(path: &Path, bytes: &[u8], holes: &[(usize, usize)]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    let mut written = 0;
    for &(start, end) in holes.iter().chain([&(bytes.len(), bytes.len())]) {
        file.write_all_at(&bytes[written..start], written as u64)
            .unwrap();
        written = end;
    }
}

/// However many threads pack it, the file is the same.
fn check_determinism(
    input: &Path,
    packed: &Path,
    options: &PackOptions,
    directory: &Path,
    control: Control<'_>,
) {
    let again = directory.join("again.warp");
    let options = PackOptions {
        threads: options.threads.map(|threads| threads % 3 + 1),
        force: true,
        ..options.clone()
    };
    pack_file(input, &again, &options, control).unwrap();
    assert!(fs::read(&again).unwrap() == fs::read(packed).unwrap());
}

fn read(packed: &Path, job: &Job, original: &[u8], random: &mut Random) {
    let engine = Engine::new(&EngineOptions {
        cache_size: [256 << 10, 1 << 20, 6 << 20, 24 << 20][usize::from(job.budget) % 4],
        threads: 1,
        prefetch: job.prefetch.map(u64::from),
        verify: [Verify::Off, Verify::Fast, Verify::Strict][usize::from(job.verify) % 3],
    })
    .unwrap();
    let reader = engine.open(packed).unwrap();
    assert_eq!(reader.len(), original.len() as u64);
    let mut place = 0;
    for _ in 0..16 {
        let offset = match random.below(3) {
            0 => place,
            _ => random.index(original.len() + 2),
        };
        let mut buffer = vec![0; random.length()];
        let expected = original.get(offset..).unwrap_or_default();
        let expected = &expected[..expected.len().min(buffer.len())];
        let outcome = reader.read_at(&mut buffer, offset as u64);
        let read = *outcome.as_ref().unwrap_or(&0);
        assert!(buffer[..read] == expected[..read], "read at {offset}");
        place = offset + read;
        if read < expected.len() {
            // A chunk of Brotli takes more than the smallest of these budgets.
            let error = match outcome {
                Ok(_) => reader.read_at(&mut [0], place as u64).unwrap_err(),
                Err(error) => error,
            };
            let over_budget = matches!(error.kind(), warpfs::ErrorKind::OverBudget { .. });
            assert!(over_budget && job.budget % 4 < 2, "{error}");
        }
        let stats = engine.stats();
        assert!(stats.memory_used <= stats.memory_budget);

        let offset = offset.min(original.len());
        let rest = &original[offset..];
        let data = reader.next_data(offset as u64).unwrap();
        let zeros = data.map_or(rest.len(), |data| data as usize - offset);
        assert!(is_zero(&rest[..zeros]), "a hole at {offset}");
        if let Some(hole) = reader.next_hole(offset as u64).unwrap() {
            assert!((offset..=original.len()).contains(&(hole as usize)));
        }
    }
}
