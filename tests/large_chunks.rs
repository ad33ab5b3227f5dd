//! Promise 4 and 6 for chunks of many mebibytes, as the Python package writes them: a read decodes no more than it has to, goes
//! on from where the last one stopped, and takes memory for what it reads, not for the chunk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Mounted, Random, noise, pack, sample};
use rustix::fs::Advice;

const MIB: usize = 1 << 20;
const PIECE: u64 = 128 << 10;
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Bytes that shrink to about a third, no two pages alike.
fn original(length: usize) -> Vec<u8> {
    let mut random = Random(length as u64);
    let mut bytes = vec![b'.'; length];
    for line in bytes.chunks_mut(64) {
        let noise = line.len().min(16);
        for word in line[..noise].chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    }
    bytes
}

/// A directory with `x.warp`, in which `original` is one chunk, or chunks of `chunk_size`.
fn packed(original: &[u8], codec: &str, chunk_size: &str) -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    let input = source.path().join("input");
    fs::write(&input, original).unwrap();
    let arguments = ["--codec", codec, "--chunk-size", chunk_size];
    pack(&input, &source.path().join("x.warp"), &arguments);
    fs::remove_file(input).unwrap();
    source
}

/// A version 2 file of one chunk with this payload.
fn write_container(path: &Path, codec: u8, payload: &[u8], original_len: usize) {
    let mut bytes = b"PRAW\x02".to_vec();
    bytes.push(codec);
    bytes.extend((original_len as u64).to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend((original_len as u64).to_le_bytes());
    bytes.extend(payload);
    fs::write(path, bytes).unwrap();
}

/// The shown file, read at random as far as the kernel is concerned, so that it asks for no more than the test does.
fn open(mounted: &Mounted) -> File {
    let file = File::open(mounted.path("x")).unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
    file
}

fn decoded(mounted: &Mounted) -> u64 {
    mounted.stats()["decoded_bytes"].as_u64().unwrap()
}

fn read(file: &File, at: usize, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at as u64).map(|()| bytes)
}

/// What a read failed with; `None` if it did not.
fn errno(read: std::io::Result<Vec<u8>>) -> Option<i32> {
    read.err().and_then(|error| error.raw_os_error())
}

#[test]
fn the_first_bytes_do_not_wait_for_the_whole_chunk_and_the_next_go_on_from_there() {
    let original = original(16 * MIB);
    for codec in ["lz4", "zstd", "snappy", "brotli"] {
        let source = packed(&original, codec, "16M");
        let mounted = Mounted::new(source.path(), &[]);
        let file = open(&mounted);
        assert!(read(&file, 0, 4096).unwrap() == original[..4096]);
        assert_eq!(decoded(&mounted), PIECE, "{codec}");
        // What lies between is decoded at most once.
        let middle = 5 * MIB + 1000;
        assert!(read(&file, middle, 4096).unwrap() == original[middle..middle + 4096]);
        let to_the_middle = decoded(&mounted);
        assert!(to_the_middle <= 5 * MIB as u64 + PIECE, "{codec}");
        let next = middle + PIECE as usize;
        assert!(read(&file, next, 4096).unwrap() == original[next..next + 4096]);
        assert_eq!(decoded(&mounted), to_the_middle + PIECE, "{codec}");
    }
}

#[test]
fn an_lz4_chunk_of_independent_blocks_is_entered_anywhere() {
    let original = original(16 * MIB);
    let source = packed(&original, "lz4", "16M");
    let mounted = Mounted::new(source.path(), &[]);
    let file = open(&mounted);
    for at in [15 * MIB, 3 * MIB + 77, 9 * MIB] {
        assert!(read(&file, at, 4096).unwrap() == original[at..at + 4096]);
    }
    assert!(decoded(&mounted) <= 4 * PIECE, "{}", decoded(&mounted));
}

#[test]
fn a_zstd_chunk_of_noise_is_entered_anywhere() {
    let original = noise(16 * MIB, 1);
    for chunk_size in ["512K", "1M", "16M"] {
        let source = packed(&original, "zstd", chunk_size);
        let mounted = Mounted::new(source.path(), &[]);
        let file = open(&mounted);
        for at in [15 * MIB, 3 * MIB + 77, 9 * MIB] {
            assert!(read(&file, at, 4096).unwrap() == original[at..at + 4096]);
        }
        let decoded = decoded(&mounted);
        assert!(decoded <= 4 * PIECE, "{chunk_size}: {decoded}");
        assert!(fs::read(mounted.path("x")).unwrap() == original);
    }
}

/// A Zstandard frame of raw blocks of these lengths, with a window of 128 KiB.
fn raw_blocks(original: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut payload = [&0xFD2F_B528_u32.to_le_bytes()[..], &[0x80, 7 << 3]].concat();
    payload.extend((original.len() as u32).to_le_bytes());
    let mut rest = original;
    for (number, &length) in lengths.iter().enumerate() {
        let (block, behind) = rest.split_at(length);
        let header = (length << 3 | usize::from(number + 1 == lengths.len())) as u32;
        payload.extend(&header.to_le_bytes()[..3]);
        payload.extend(block);
        rest = behind;
    }
    payload
}

#[test]
fn a_zstd_frame_of_raw_blocks_of_other_lengths_than_its_first_tells_reads_right() {
    // As many blocks, and as many bytes, as if all were as long as the first; and where those would begin, what looks like them.
    let block = 64 << 10;
    let mut original = noise(6 * MIB, 1);
    let mut lengths = vec![block; 96];
    lengths[1..4].copy_from_slice(&[2 * block, 0, block]);
    let header = ((block << 3) as u32).to_le_bytes();
    original[2 * block..][..3].copy_from_slice(&header[..3]);
    let payload = raw_blocks(&original, &lengths);
    let source = tempfile::tempdir().unwrap();
    write_container(&source.path().join("x.warp"), 1, &payload, original.len());
    for at in [2 * block, 0, block, 50 * block, 6 * MIB - 4096] {
        // It does not fit in as a whole.
        let mounted = Mounted::new(source.path(), &["--cache-size", "5M"]);
        let found = read(&open(&mounted), at, 4096).unwrap();
        assert!(found == original[at..at + 4096], "{at}");
        assert!(fs::read(mounted.path("x")).unwrap() == original);
        let logged = mounted.logged();
        assert!(!logged.contains("x.warp"), "{logged}");
    }
}

#[test]
fn damage_to_the_length_of_a_raw_block_spares_the_pieces_before_it_and_other_chunks() {
    let original = noise(4 * MIB, 1);
    let block = 128 << 10;
    for (chunk_size, chunk) in [("4M", 4 * MIB), ("512K", MIB / 2)] {
        let source = packed(&original, "zstd", chunk_size);
        let path = source.path().join("x.warp");
        let mut bytes = fs::read(&path).unwrap();
        // The header of the fourth block, which begins the last piece of a chunk of 512 KiB.
        let third = &original[3 * block - 16..3 * block];
        let mut windows = bytes.windows(third.len());
        let place = windows.position(|window| window == third).unwrap() + third.len();
        bytes[place + 1] ^= 0x10;
        fs::write(&path, bytes).unwrap();
        let mounted = Mounted::new(source.path(), &[]);
        let file = open(&mounted);
        for _ in 0..2 {
            let damaged = read(&file, chunk.min(MIB) - 4096, 4096);
            assert_eq!(errno(damaged), Some(EIO), "{chunk_size}");
            let spared = if chunk > MIB { 0 } else { chunk };
            for at in [spared, spared + block] {
                assert!(read(&file, at, 4096).unwrap() == original[at..at + 4096]);
            }
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
        let logged = mounted.logged();
        assert_eq!(logged.matches("x.warp: chunk 0").count(), 1, "{logged}");
    }
}

#[test]
fn reading_backwards_decodes_a_chunk_once() {
    let original = original(8 * MIB);
    for codec in ["zstd", "snappy"] {
        let source = packed(&original, codec, "8M");
        let mounted = Mounted::new(source.path(), &[]);
        let file = open(&mounted);
        for at in (0..8 * MIB).step_by(64 << 10).rev() {
            assert!(read(&file, at, 64 << 10).unwrap() == original[at..at + (64 << 10)]);
        }
        assert_eq!(decoded(&mounted), 8 * MIB as u64, "{codec}");
    }
}

#[test]
fn chunks_larger_than_the_budget_read_right_in_any_order_by_many_at_once() {
    let original = original(48 * MIB);
    for (codec, budget) in [("lz4", 4), ("zstd", 8), ("snappy", 4), ("brotli", 32)] {
        let source = packed(&original, codec, "24M");
        let mounted = Mounted::new(source.path(), &["--cache-size", &format!("{budget}M")]);
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let (original, mounted) = (&original, &mounted);
                scope.spawn(move || {
                    let file = File::open(mounted.path("x")).unwrap();
                    let mut random = Random(reader);
                    for _ in 0..3 {
                        let mut at = random.below(40 * MIB as u64) as usize;
                        for _ in 0..random.below(40) {
                            let length = 1 + random.below(256 << 10) as usize;
                            let end = original.len().min(at + length);
                            let found = read(&file, at, end - at).unwrap();
                            assert!(found == original[at..end], "{codec} at {at}");
                            at = end;
                        }
                    }
                });
            }
        });
        let stats = mounted.stats();
        let number = |name: &str| stats[name].as_u64().unwrap();
        assert!(number("memory_used") <= budget * MIB as u64, "{stats}");
        assert_eq!(
            number("other_errors") + number("damage_errors"),
            0,
            "{stats}"
        );
        let whole = fs::read(mounted.path("x")).unwrap();
        assert!(whole == original, "{codec}");
    }
}

#[test]
fn damage_within_a_large_chunk_spares_the_pieces_before_it_every_time() {
    // Text, whose every byte is Huffman coded: what overwrites it does not end where a block does.
    let original = sample(8 * MIB, 1);
    let source = packed(&original, "zstd", "8M");
    let path = source.path().join("x.warp");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let mounted = Mounted::new(source.path(), &[]);
    let file = open(&mounted);
    for _ in 0..2 {
        assert!(read(&file, MIB, 4096).unwrap() == original[MIB..MIB + 4096]);
        for at in [6 * MIB, 8 * MIB - 4096] {
            assert_eq!(errno(read(&file, at, 4096)), Some(EIO));
        }
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
    let logged = mounted.logged();
    assert_eq!(logged.matches("x.warp: chunk 0").count(), 1, "{logged}");
}

#[test]
fn a_payload_with_a_checksum_over_its_content_is_checked_before_any_of_it_is_handed_out() {
    let original = original(4 * MIB);
    let mut encoder = zstd::bulk::Compressor::new(3).unwrap();
    encoder.include_checksum(true).unwrap();
    let mut payload = encoder.compress(&original).unwrap();
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    write_container(&path, 1, &payload, original.len());
    let mounted = Mounted::new(source.path(), &["--ttl", "0"]);
    assert!(read(&open(&mounted), MIB, 4096).unwrap() == original[MIB..MIB + 4096]);
    assert_eq!(decoded(&mounted), original.len() as u64);
    // The checksum alone is wrong: only who looks at it can know.
    *payload.last_mut().unwrap() ^= 1;
    fs::remove_file(&path).unwrap();
    write_container(&path, 1, &payload, original.len());
    assert_eq!(errno(read(&open(&mounted), 0, 4096)), Some(EIO));
}
