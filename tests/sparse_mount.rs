//! A sparse file of 100 GiB with islands of data: mounted at once, right at the islands and in the holes, and a seek
//! finds the one from the other without reading what is between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::{Mounted, pack, sample};
use rustix::fs::SeekFrom;

const GIB: u64 = 1 << 30;
const SIZE: u64 = 100 * GIB + 4711;
/// What the record of digests tells apart.
const LEAF: u64 = 32 << 10;
/// Where data is, and how much.
const ISLANDS: [(u64, usize); 5] = [
    (5, 10_000),
    (7 * GIB + 123, 3_000_000),
    (50 * GIB - 10, 20),
    (99 * GIB, 9 << 20),
    (SIZE - 100, 100),
];

#[test]
fn a_hundred_gibibytes_with_islands_mount_at_once_and_read_right() {
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let original = work.path().join("original");
    let file = File::create(&original).unwrap();
    file.set_len(SIZE).unwrap();
    for (number, (at, length)) in ISLANDS.into_iter().enumerate() {
        file.write_all_at(&sample(length, number as u64), at)
            .unwrap();
    }
    for codec in ["zstd", "lz4"] {
        // What the whole-file checksum costs is not this test's question.
        let packed = source.path().join(format!("{codec}.warp"));
        pack(
            &original,
            &packed,
            &["--codec", codec, "--chunk-size", "1M", "--checksum", "none"],
        );
    }

    let start = Instant::now();
    let mounted = Mounted::new(source.path(), &["--cache-size", "64M"]);
    for codec in ["zstd", "lz4"] {
        let file = File::open(mounted.path(codec)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), SIZE);
        assert_eq!(file.read_at(&mut [1; 10], 60 * GIB).unwrap(), 10);
    }
    let mounting = start.elapsed();
    assert!(mounting < Duration::from_secs(3), "{mounting:?}");

    for codec in ["zstd", "lz4"] {
        let file = File::open(mounted.path(codec)).unwrap();
        for (number, (at, length)) in ISLANDS.into_iter().enumerate() {
            let mut bytes = vec![1; length];
            file.read_exact_at(&mut bytes, at).unwrap();
            assert!(bytes == sample(length, number as u64), "{codec} at {at}");
        }
        for at in [
            1 << 20,
            7 * GIB - 4096,
            50 * GIB + 10,
            98 * GIB,
            SIZE - 5000,
        ] {
            let mut bytes = vec![1; 4096];
            file.read_exact_at(&mut bytes, at).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0), "{codec} at {at}");
        }

        let start = Instant::now();
        let mut found = Vec::new();
        let mut at = 0;
        while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
            at = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
            found.push((data, at));
        }
        let seeking = start.elapsed();
        println!("{codec}: mounted within {mounting:?}, islands found within {seeking:?}");
        let whole_leaves = ISLANDS.map(|(at, length)| {
            let end = (at + length as u64).next_multiple_of(LEAF).min(SIZE);
            (at / LEAF * LEAF, end)
        });
        assert_eq!(found, whole_leaves, "{codec}");
        assert!(seeking < Duration::from_secs(5), "{codec}: {seeking:?}");
    }
    // Only what was read was decoded: the record of digests tells where the zeros are.
    let decoded = mounted.stats()["decoded_bytes"].as_u64().unwrap();
    assert!(decoded < 100 << 20, "{decoded}");
}
