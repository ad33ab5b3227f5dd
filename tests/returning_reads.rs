//! What small reads come back to, the kernel is given all of: from then on it answers by itself. It is never given bytes of another
//! state of a file than the one it believes to have.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use common::{Mounted, packed, sample, wait_until};
use rustix::fs::{Advice, OFlags};

const PAGE: u64 = 4096;
const CHUNK: u64 = 64 << 10;
/// Of a chunk: behind one another, and before.
const TURNING: [u64; 3] = [3, 10, 1];

struct Shown {
    mounted: Mounted,
    original: Vec<u8>,
    _source: tempfile::TempDir,
}

impl Shown {
    fn new(codec: &str) -> Self {
        let source = tempfile::tempdir().unwrap();
        // The last chunk ends within a page.
        let original = sample(20 * CHUNK as usize + 40_001, 11);
        let bytes = packed(&original, &["--codec", codec, "--chunk-size", "64K"]);
        fs::write(source.path().join("x.warp"), bytes).unwrap();
        Self {
            mounted: Mounted::new(source.path(), &[]),
            original,
            _source: source,
        }
    }

    /// The file, of which the kernel reads nothing ahead.
    fn open(&self) -> File {
        let file = File::open(self.mounted.path("x")).unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
        file
    }

    fn number(&self, key: &str) -> u64 {
        self.mounted.stats()[key].as_u64().unwrap()
    }

    /// Reads pages of a chunk, and compares them.
    fn read(&self, file: &File, chunk: u64, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            let offset = chunk * CHUNK + page * PAGE;
            let mut bytes = [0; PAGE as usize];
            let length = file.read_at(&mut bytes, offset).unwrap();
            let end = self.original.len().min((offset + PAGE) as usize);
            assert!(bytes[..length] == self.original[offset as usize..end]);
        }
    }
}

#[test]
fn a_chunk_that_small_reads_come_back_to_is_read_from_the_kernel() {
    for codec in ["lz4", "zstd", "snappy", "brotli"] {
        let shown = Shown::new(codec);
        let file = shown.open();
        shown.read(&file, 5, TURNING);
        wait_until("a chunk is given", || shown.number("stored_bytes") == CHUNK);
        assert_eq!(shown.number("handed_over"), 1);
        let reads = shown.number("reads");
        shown.read(&file, 5, 0..16);
        assert_eq!(shown.number("reads"), reads);
        // The last one has ten pages, one of them not whole.
        shown.read(&file, 20, [2, 5, 1]);
        wait_until("the last chunk is given", || {
            shown.number("stored_bytes") == CHUNK + 40_001
        });
        let reads = shown.number("reads");
        shown.read(&file, 20, 0..10);
        assert_eq!(shown.number("reads"), reads);
        assert_eq!(file.metadata().unwrap().len(), shown.original.len() as u64);
    }
}

#[test]
fn nothing_is_given_to_who_reads_in_order_or_keeps_nothing() {
    let shown = Shown::new("lz4");
    let file = shown.open();
    for chunk in 0..10 {
        shown.read(&file, chunk, (0..16).step_by(2));
    }
    for chunk in (10..20).rev() {
        shown.read(&file, chunk, (0..8).rev().map(|pair| 2 * pair + 1));
    }
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(shown.mounted.path("x"))
        .unwrap();
    let before = shown.number("reads");
    for _ in 0..4 {
        shown.read(&direct, 7, TURNING);
    }
    assert_eq!(shown.number("reads"), before + 12);
    // Whoever gives has nothing else to do: it would have been at these by now.
    let other = shown.open();
    rustix::fs::fadvise(&other, 0, None, Advice::DontNeed).unwrap();
    shown.read(&other, 9, TURNING);
    wait_until("one chunk is given", || shown.number("stored_bytes") > 0);
    assert_eq!(shown.number("stored_bytes"), CHUNK);
}

#[test]
fn what_the_kernel_does_not_keep_it_is_not_given_again() {
    let shown = Shown::new("lz4");
    let file = shown.open();
    shown.read(&file, 5, TURNING);
    wait_until("it is given", || shown.number("stored_bytes") == CHUNK);
    for _ in 0..5 {
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        shown.read(&file, 5, TURNING);
    }
    // One that it was never given comes behind all those.
    shown.read(&file, 6, TURNING);
    wait_until("another is given", || shown.number("stored_bytes") > CHUNK);
    assert_eq!(shown.number("stored_bytes"), 2 * CHUNK);
    assert_eq!(shown.number("decoded_chunks"), 3);
}

#[test]
fn pages_of_a_file_that_is_replaced_in_place_are_not_given_to_the_new_one() {
    let shown = Shown::new("lz4");
    let length = shown.original.len();
    let path = shown._source.path().join("x.warp");
    let versions: Vec<_> = (0..2)
        .map(|version| {
            let original: Vec<u8> = sample(length, 100 + version);
            let bytes = packed(&original, &["--codec", "lz4", "--chunk-size", "64K"]);
            (original, bytes)
        })
        .collect();
    // Told apart by their sizes too, should the clock not be fine enough.
    assert_ne!(versions[0].1.len(), versions[1].1.len());
    for round in 0..300 {
        let (original, bytes) = &versions[round % 2];
        fs::write(&path, bytes).unwrap();
        let file = File::open(shown.mounted.path("x")).unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
        let mut all = vec![0; length];
        for chunk in 0..20 {
            for page in TURNING {
                let place = (chunk * CHUNK + page * PAGE) as usize;
                let bytes = &mut all[place..place + PAGE as usize];
                file.read_exact_at(bytes, place as u64).unwrap();
                assert!(*bytes == original[place..place + PAGE as usize]);
            }
        }
        if round % 3 == 0 {
            file.read_exact_at(&mut all, 0).unwrap();
            assert!(all == *original, "round {round}");
        }
    }
    assert!(shown.number("stored_bytes") > 0);
}
