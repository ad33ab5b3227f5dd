//! Every byte is checked every time it is decoded, by the record of digests that `pack` writes: a read returns what was
//! packed, or an error.
//!
//! `WARPFS_FLIPS` says how many single bytes are flipped altogether in the test of random flips (1,000 by default).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{Mounted, Random, mixed, pack, run, sample, shell, vector, warpfs};
use warpfs::job::Control;
use warpfs::unpack::{UnpackOptions, unpack_to};
use warpfs::{Engine, EngineOptions, Verify};

const CODECS: [&str; 4] = ["lz4", "zstd", "snappy", "brotli"];

/// Where a chunk's payload lies in a file, in bytes.
fn payload(packed: &Path, chunk: usize) -> Range<u64> {
    let output = run(["info", "--json", "--chunks", packed.to_str().unwrap()]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let chunk = &told[0]["chunk_table"][chunk];
    let start = chunk["packed_offset"].as_u64().unwrap();
    start..start + chunk["packed_size"].as_u64().unwrap()
}

/// Flips bits of a file's byte and puts its modification time back.
fn flip(path: &Path, offset: u64, bits: u8) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ bits], offset).unwrap();
    file.set_modified(modified).unwrap();
}

/// Reads a range of a file past the page cache's memory of it.
fn read(path: &Path, range: Range<u64>) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    File::open(path)?.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

fn verify(packed: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = warpfs();
    let output = command.arg("verify").args(arguments).arg(packed).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn a_bit_flipped_in_a_payload_is_eio_for_its_chunk_alone_also_after_it_was_read_and_evicted() {
    const CHUNK: u64 = 64 << 10;
    let directory = tempfile::tempdir().unwrap();
    let original = sample(40 * CHUNK as usize, 1);
    fs::write(directory.path().join("original"), &original).unwrap();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    for codec in CODECS {
        let name = format!("{codec}.warp");
        let arguments = ["--codec", codec, "--chunk-size", "64K"];
        pack(
            &directory.path().join("original"),
            &source.join(name),
            &arguments,
        );
    }
    for checks in ["fast", "strict"] {
        let mounted = Mounted::new(&source, &["--cache-size", "1M", "--verify", checks]);
        for codec in CODECS {
            let shown = mounted.path(codec);
            // All of it was read, and is more than the cache holds.
            assert!(fs::read(&shown).unwrap() == original, "{codec}");
            let packed = source.join(format!("{codec}.warp"));
            // Not in the first byte: in some codecs it tells how much a decoder must remember, which may be more than it has
            // to be.
            for (chunk, part) in [(0, 0.01), (17, 0.5), (39, 0.999)] {
                let place = payload(&packed, chunk);
                let place = place.start + ((place.end - place.start - 1) as f64 * part) as u64;
                flip(&packed, place, 0x04);
                mounted.drop_caches();
                for number in 0..40 {
                    let range = number * CHUNK..(number + 1) * CHUNK;
                    let bytes = read(&shown, range.clone());
                    if number == chunk as u64 {
                        let error = bytes.err().map(|error| error.raw_os_error());
                        let eio = Some(Some(rustix::io::Errno::IO.raw_os_error()));
                        assert_eq!(error, eio, "{codec} {checks}, byte {place}");
                    } else {
                        let wanted = &original[range.start as usize..range.end as usize];
                        assert!(bytes.unwrap() == wanted, "{codec} {checks}: chunk {number}");
                    }
                }
                flip(&packed, place, 0x04);
                mounted.drop_caches();
                assert!(fs::read(&shown).unwrap() == original, "{codec} mended");
            }
        }
    }
}

#[test]
fn a_large_chunk_serves_its_pieces_up_to_the_damage() {
    let directory = tempfile::tempdir().unwrap();
    let original = sample(6 << 20, 2);
    let plain = directory.path().join("original");
    fs::write(&plain, &original).unwrap();
    for codec in CODECS {
        let packed = directory.path().join(format!("{codec}.warp"));
        pack(
            &plain,
            &packed,
            &["--codec", codec, "--chunk-size", "3000000"],
        );
        // In the middle of the second of three chunks.
        let place = payload(&packed, 1);
        flip(&packed, (place.start + place.end) / 2, 0x20);
        for checks in [Verify::Fast, Verify::Strict] {
            let engine = Engine::new(&EngineOptions {
                verify: checks,
                ..EngineOptions::default()
            });
            let reader = engine.unwrap().open(&packed).unwrap();
            let mut lost = 0;
            for start in (0..original.len()).step_by(4096) {
                let wanted = &original[start..original.len().min(start + 4096)];
                let mut bytes = vec![0; wanted.len()];
                match reader.read_at(&mut bytes, start as u64) {
                    Ok(read) => assert!(bytes[..read] == wanted[..read], "{codec} at {start}"),
                    Err(error) => {
                        assert!(error.is_damage(), "{error}");
                        assert_eq!(error.chunk(), Some(1), "{codec}: {error}");
                        lost += wanted.len();
                    }
                }
            }
            // Brotli's decoder would take more memory than the chunk: it is decoded whole.
            let most = if codec == "brotli" {
                3_010_000
            } else {
                2_000_000
            };
            assert!(lost > 0 && lost < most, "{codec}: {lost} bytes are lost");
        }
    }
}

/// What became of a flipped byte.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Outcomes {
    refused: u64,
    partly: u64,
    harmless: u64,
}

impl Outcomes {
    fn count(&mut self, original: &[u8], read: Option<(Vec<u8>, bool)>, what: &str) {
        match read {
            None => self.refused += 1,
            Some((bytes, whole)) => {
                assert!(original.starts_with(&bytes), "wrong bytes: {what}");
                match whole {
                    true => {
                        assert_eq!(bytes.len(), original.len(), "{what}");
                        self.harmless += 1;
                    }
                    false => self.partly += 1,
                }
            }
        }
    }
}

/// Reads a file from its beginning to its first error.
fn read_through(path: &Path) -> Option<(Vec<u8>, bool)> {
    let file = File::open(path).ok()?;
    // A damaged header may announce any length.
    let length = file.metadata().ok()?.len().min(16 << 20);
    let mut bytes = vec![0; length as usize + 1];
    let mut done = 0;
    loop {
        match file.read_at(&mut bytes[done..], done as u64) {
            Ok(0) => break bytes.truncate(done),
            Ok(read) => done += read,
            Err(_) => {
                bytes.truncate(done);
                return Some((bytes, false));
            }
        }
    }
    Some((bytes, true))
}

#[test]
fn no_flipped_byte_anywhere_in_a_file_gives_a_wrong_byte() {
    let flips = std::env::var("WARPFS_FLIPS").map_or(1000, |flips| flips.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    let original = mixed();
    let files: Vec<PathBuf> = CODECS
        .iter()
        .flat_map(|codec| ["blake3", "none"].map(|checksum| (codec, checksum)))
        .map(|(codec, checksum)| {
            let packed = source.join(format!("{codec}-{checksum}.warp"));
            let arguments = [
                "--codec",
                codec,
                "--checksum",
                checksum,
                "--chunk-size",
                "40000",
            ];
            pack(&vector("mixed.bin"), &packed, &arguments);
            packed
        })
        .collect();
    let mounted = Mounted::new(&source, &["--ttl", "0"]);
    let strict = Mounted::new(&source, &["--ttl", "0", "--verify", "strict"]);
    let engine = Engine::new(&EngineOptions::default()).unwrap();
    let control = Control::default();
    let mut random = Random(4);
    let [mut by_mount, mut by_strict, mut by_library, mut by_unpack] = [Outcomes::default(); 4];
    for number in 0..flips {
        let packed = &files[number as usize % files.len()];
        let mut bytes = fs::read(packed).unwrap();
        let place = random.below(bytes.len() as u64) as usize;
        let bits = 1 + random.below(255) as u8;
        let what = format!("{} at {place} by {bits:#x}", packed.display());
        bytes[place] ^= bits;
        // A new file each time: what the kernel and the mount know of the one before does not count.
        let (kept, flipped) = (packed.with_extension("kept"), packed.with_extension("new"));
        fs::write(&flipped, &bytes).unwrap();
        fs::hard_link(packed, &kept).unwrap();
        fs::rename(&flipped, packed).unwrap();

        let name = packed.file_stem().unwrap();
        // One that is none by its header any more shows as what it is.
        let shown = |mounted: &Mounted| {
            let shown = mounted.path(name);
            shown.exists().then(|| read_through(&shown)).flatten()
        };
        by_mount.count(&original, shown(&mounted), &what);
        by_strict.count(&original, shown(&strict), &what);
        let opened = engine.open(packed).ok().map(|reader| {
            let mut read = vec![0; reader.len().min(200_000) as usize];
            let mut done = 0;
            while done < read.len() {
                match reader.read_at(&mut read[done..], done as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(more) => done += more,
                }
            }
            let whole = done as u64 == reader.len();
            read.truncate(done);
            (read, whole)
        });
        by_library.count(&original, opened, &what);
        let mut unpacked = Vec::new();
        let outcome = unpack_to(packed, &mut unpacked, &UnpackOptions::default(), control);
        let unpacked = match (outcome, unpacked.is_empty()) {
            (Ok(_), _) => Some((unpacked, true)),
            (Err(_), true) => None,
            (Err(_), false) => Some((unpacked, false)),
        };
        by_unpack.count(&original, unpacked, &what);
        fs::rename(&kept, packed).unwrap();
    }
    println!(
        "{flips} flips: mount {by_mount:?}, strict {by_strict:?}, library {by_library:?}, unpack {by_unpack:?}"
    );
    for outcomes in [by_mount, by_strict, by_library, by_unpack] {
        assert_eq!(
            outcomes.refused + outcomes.partly + outcomes.harmless,
            flips
        );
        // Most of a file is payload.
        assert!(
            (outcomes.refused + outcomes.partly) * 10 > flips * 8,
            "{outcomes:?}"
        );
    }
}

#[test]
fn the_record_is_small_and_says_how_a_file_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("x");
    fs::write(&plain, sample(20 << 20, 3)).unwrap();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    for checksum in ["blake3", "xxh64", "blake2b", "none"] {
        let packed = source.join(format!("{checksum}.warp"));
        pack(&plain, &packed, &["--codec", "lz4", "--checksum", checksum]);
        let info = run(["info", "--json", packed.to_str().unwrap()]);
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        let record = info[0]["record_size"].as_u64().unwrap();
        assert!(
            record > 0 && record < (20 << 20) / 1000,
            "{checksum}: {record}"
        );
        assert_eq!(verify(&packed, &["-q"]), (Some(0), String::new()));
    }
    fs::copy(vector("v2-zstd-blake3.warp"), source.join("foreign.warp")).unwrap();
    for (checks, blake3, other) in [
        ("fast", "xxh3", "xxh3"),
        ("strict", "blake3", "xxh3"),
        ("off", "codec", "codec"),
    ] {
        let mounted = Mounted::new(&source, &["--verify", checks]);
        let verified = |name: &str| {
            let told = "getfattr --only-values --absolute-names -n user.warpfs.verified";
            shell(&mounted.mount_point, &format!("{told} {name}"))
        };
        assert_eq!(verified("blake3"), blake3);
        assert_eq!(verified("xxh64"), other);
        assert_eq!(verified("none"), other);
        assert_eq!(verified("foreign"), "codec");
        assert!(fs::read(mounted.path("blake3")).unwrap() == fs::read(&plain).unwrap());
    }
}

#[test]
fn chunks_that_groups_straddle_are_proved_with_their_neighbours() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("x");
    let mut original = sample(9 << 20, 4);
    original[5 << 20..8 << 20].fill(0);
    fs::write(&plain, &original).unwrap();
    for (size, codec) in [
        ("4K", "zstd"),
        ("5000", "lz4"),
        ("100000", "snappy"),
        ("1500000", "zstd"),
        ("3M", "brotli"),
        ("3333333", "lz4"),
    ] {
        let packed = directory.path().join(format!("{size}.warp"));
        pack(&plain, &packed, &["--codec", codec, "--chunk-size", size]);
        assert_eq!(verify(&packed, &["-q"]).0, Some(0), "{size}");
        let engine = Engine::new(&EngineOptions {
            verify: Verify::Strict,
            cache_size: 16 << 20,
            ..EngineOptions::default()
        });
        let reader = engine.unwrap().open(&packed).unwrap();
        let mut random = Random(5);
        for _ in 0..200 {
            let start = random.below(original.len() as u64) as usize;
            let wanted = &original[start..original.len().min(start + 4096)];
            let mut bytes = vec![0; wanted.len()];
            let mut done = 0;
            while done < bytes.len() {
                done += reader
                    .read_at(&mut bytes[done..], (start + done) as u64)
                    .unwrap();
            }
            assert!(bytes == wanted, "{size} at {start}");
        }
    }
}

#[test]
fn a_piece_with_a_very_large_neighbour_costs_no_other_piece_of_its_chunk() {
    const CHUNK: u64 = 3_000_000;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // They shrink, but hardly: to prove the first piece of the second chunk takes more than all the budget.
    let mut random = Random(5);
    let original: Vec<u8> = (0..2 * CHUNK).map(|_| random.below(128) as u8).collect();
    fs::write(at("x"), &original).unwrap();
    let [codec, size, checksum] = ["zstd", "3000000", "blake3"];
    let arguments = [
        "--codec",
        codec,
        "--chunk-size",
        size,
        "--checksum",
        checksum,
    ];
    pack(&at("x"), &at("x.warp"), &arguments);
    let engine = Engine::new(&EngineOptions {
        cache_size: 5 << 20,
        verify: Verify::Strict,
        prefetch: Some(0),
        ..EngineOptions::default()
    });
    let reader = engine.unwrap().open(at("x.warp")).unwrap();
    let mut bytes = vec![0; 4096];
    for offset in [CHUNK + 1_000_000, 2 * CHUNK - 4096, CHUNK - 1_000_000] {
        assert_eq!(reader.read_at(&mut bytes, offset).unwrap(), 4096);
        assert!(bytes == original[offset as usize..][..4096], "at {offset}");
    }
    let refused = reader.read_at(&mut bytes, CHUNK).unwrap_err();
    assert!(refused.to_string().contains("--cache-size"), "{refused}");
}

/// Makes the record of one file, made to fit another's checksum, believable to who does not follow the proofs.
fn forge(packed: &Path, checksum_of: &Path) {
    let mut bytes = fs::read(packed).unwrap();
    let other = fs::read(checksum_of).unwrap();
    let footer = |bytes: &[u8]| {
        let magic = bytes
            .windows(7)
            .rposition(|found| found == b"WFT1\x01\x20\x00");
        magic.unwrap()..magic.unwrap() + 39
    };
    let (ours, theirs) = (footer(&bytes), footer(&other));
    let digest = other[theirs].to_vec();
    bytes[ours.clone()].copy_from_slice(&digest);
    let chunks = u32::from_le_bytes(bytes[14..18].try_into().unwrap()) as usize;
    let mut beginning = bytes[..18 + 16 * chunks].to_vec();
    beginning.extend(&bytes[ours]);
    let tail = bytes.len() - 40;
    let fingerprint = twox_hash::XxHash3_64::oneshot(&beginning).to_le_bytes();
    bytes[tail + 8..tail + 16].copy_from_slice(&fingerprint);
    let seal = twox_hash::XxHash3_64::oneshot(&bytes[tail..tail + 28]).to_le_bytes();
    bytes[tail + 28..tail + 36].copy_from_slice(&seal);
    fs::write(packed, bytes).unwrap();
}

#[test]
fn strict_reads_refuse_a_record_that_the_checksum_does_not_prove() {
    let directory = tempfile::tempdir().unwrap();
    for length in [30_000, 300_000, 9 << 20] {
        let at = |name: &str| directory.path().join(format!("{name}-{length}"));
        for (name, seed) in [("one", 6), ("other", 7)] {
            fs::write(at(name), sample(length, seed)).unwrap();
            pack(&at(name), &at(&format!("{name}.warp")), &["--codec", "lz4"]);
        }
        forge(&at("one.warp"), &at("other.warp"));
        let read = |checks| {
            let engine = Engine::new(&EngineOptions {
                verify: checks,
                ..EngineOptions::default()
            });
            let reader = engine.unwrap().open(at("one.warp"))?;
            let mut bytes = vec![0; 5000];
            reader.read_at(&mut bytes, 20_000).map(|_| bytes)
        };
        // The forgery is a good one.
        assert!(read(Verify::Fast).unwrap() == sample(length, 6)[20_000..25_000]);
        let refused = read(Verify::Strict).map(|_| "bytes").unwrap_err();
        assert!(refused.is_damage(), "{refused}");
        let (code, said) = verify(&at("one.warp"), &[]);
        assert_eq!(code, Some(1), "{said}");
    }
}

#[test]
fn a_damaged_record_costs_the_checks_and_not_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("x");
    let original = sample(6 << 20, 8);
    fs::write(&plain, &original).unwrap();
    for (part, from_end) in [("tail", 20), ("directory", 45), ("a page", 4600)] {
        let source = directory.path().join(part.replace(' ', "-"));
        fs::create_dir(&source).unwrap();
        let packed = source.join("x.warp");
        pack(&plain, &packed, &[]);
        let length = fs::metadata(&packed).unwrap().len();
        flip(&packed, length - from_end, 0x01);
        let (code, said) = verify(&packed, &[]);
        assert_eq!(code, Some(1), "{part}");
        assert!(said.contains("record of digests is damaged"), "{said}");
        // The checksum proves the whole.
        let unpacked = directory.path().join("unpacked");
        let arguments = ["unpack", "-qf", "-o"].map(Path::new);
        run(arguments
            .into_iter()
            .chain([unpacked.as_path(), packed.as_path()]));
        assert!(fs::read(&unpacked).unwrap() == original, "{part}");
        let unchecked = Mounted::new(&source, &["--verify", "off"]);
        assert!(fs::read(unchecked.path("x")).unwrap() == original, "{part}");
        let checked = Mounted::new(&source, &[]);
        let (bytes, whole) = read_through(&checked.path("x")).unwrap_or_default();
        assert!(original.starts_with(&bytes) && !whole, "{part}");
    }
}

#[test]
fn holes_are_told_by_the_record_leaf_by_leaf() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("x");
    let mut original = vec![0; 40 << 20];
    let island = 20 << 20..(20 << 20) + 40_000;
    original[island.clone()].fill(7);
    fs::write(&plain, &original).unwrap();
    let packed = directory.path().join("x.warp");
    pack(&plain, &packed, &["--chunk-size", "1M"]);
    for checks in [Verify::Fast, Verify::Strict] {
        let engine = Engine::new(&EngineOptions {
            verify: checks,
            ..EngineOptions::default()
        });
        let reader = engine.unwrap().open(&packed).unwrap();
        assert_eq!(reader.next_data(0).unwrap(), Some(island.start as u64));
        let hole = reader.next_hole(island.start as u64).unwrap();
        assert_eq!(hole, Some((island.start + (64 << 10)) as u64));
        assert_eq!(reader.next_data(hole.unwrap()).unwrap(), None);
        // Nothing had to be decoded for it.
    }
    // Where the page that tells is damaged, all is data: a copy is never short of a byte.
    let length = fs::metadata(&packed).unwrap().len();
    let info = run(["info", "--json", packed.to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let record = info[0]["record_size"].as_u64().unwrap();
    flip(&packed, length - record + 4 + 9, 0x01);
    let reader = Engine::new(&EngineOptions::default())
        .unwrap()
        .open(&packed)
        .unwrap();
    assert_eq!(reader.next_data(0).unwrap(), Some(20 << 20));
    assert_eq!(reader.next_hole(20 << 20).unwrap(), Some(24 << 20));
}

#[test]
fn only_holes_that_the_checksum_proves_are_holes_where_reads_are_proved() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("x");
    let mut original = vec![0; 1 << 20];
    original[..100].fill(7);
    fs::write(&plain, &original).unwrap();
    let packed = directory.path().join("x.warp");
    pack(&plain, &packed, &["--chunk-size", "256K"]);
    // The digest of 64 KiB says that there is something in them; where, a leaf's flag says that nothing proves.
    for (checks, hole) in [(Verify::Fast, 32 << 10), (Verify::Strict, 64 << 10)] {
        let engine = Engine::new(&EngineOptions {
            verify: checks,
            ..EngineOptions::default()
        });
        let reader = engine.unwrap().open(&packed).unwrap();
        assert_eq!(reader.next_hole(0).unwrap(), Some(hole), "{checks:?}");
    }
}

#[test]
fn behind_the_end_there_is_no_data_however_it_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("x");
    // One group, which has no chaining value: nothing proves what its page says of zeros.
    fs::write(&plain, "tiny").unwrap();
    let packed = directory.path().join("x.warp");
    pack(&plain, &packed, &[]);
    for checks in [Verify::Off, Verify::Fast, Verify::Strict] {
        let engine = Engine::new(&EngineOptions {
            verify: checks,
            ..EngineOptions::default()
        });
        let reader = engine.unwrap().open(&packed).unwrap();
        assert_eq!(reader.next_data(3).unwrap(), Some(3));
        for behind in [4, 5, u64::MAX] {
            assert_eq!(reader.next_data(behind).unwrap(), None, "{checks:?}");
            assert_eq!(reader.next_hole(behind).unwrap(), None, "{checks:?}");
        }
    }
}

/// The bytes of a version 2 file of such chunks in Snappy, without what comes behind the payloads.
fn snappy_file(payloads: &[Vec<u8>], sizes: &[u64]) -> Vec<u8> {
    let mut bytes = b"PRAW\x02\x02".to_vec();
    bytes.extend(sizes.iter().sum::<u64>().to_le_bytes());
    bytes.extend((sizes.len() as u32).to_le_bytes());
    bytes.extend(
        payloads
            .iter()
            .flat_map(|one| (one.len() as u64).to_le_bytes()),
    );
    bytes.extend(sizes.iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend(payloads.iter().flatten());
    bytes
}

/// A tail of a record of a file that begins with the header and table of `file` and has no footer.
fn tail(file: &[u8], directory: &[u8], record_len: u64, layout: [u8; 3]) -> Vec<u8> {
    let chunks = u32::from_le_bytes(file[14..18].try_into().unwrap()) as usize;
    let digest = |bytes: &[u8]| twox_hash::XxHash3_64::oneshot(bytes).to_le_bytes();
    let mut tail = digest(directory).to_vec();
    tail.extend(digest(&file[..18 + 16 * chunks]));
    tail.extend(record_len.to_le_bytes());
    tail.extend(layout);
    tail.push(1);
    tail.extend(digest(&tail));
    tail.extend(b"WFD1");
    tail
}

#[test]
fn a_sparse_file_that_announces_a_huge_record_is_refused_and_no_end_of_the_process() {
    const PAGES: u64 = 1 << 40;
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("x.warp");
    let bytes = snappy_file(&[vec![0; 10]], &[PAGES * 4096]);
    let record_len = 4 + PAGES * 4 + 40;
    let tail = tail(&bytes, b"", record_len, [12, 0, 12]);
    let file = File::create(&packed).unwrap();
    let start = bytes.len() as u64;
    file.write_all_at(&bytes, 0).unwrap();
    file.write_all_at(b"WFD1", start).unwrap();
    file.write_all_at(&tail, start + record_len - 40).unwrap();
    for command in ["info", "verify"] {
        let mut process = warpfs();
        let output = process.arg(command).arg(&packed).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("more than there is memory for"), "{said}");
    }
}

#[test]
fn a_record_of_nothing_but_zeros_takes_no_memory_for_its_pages() {
    // 128 GiB of zeros, whose pages are no bytes at all: 128 MiB of their lengths lie in a hole.
    const PAGES: u64 = 1 << 25;
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("x.warp");
    let bytes = snappy_file(&[vec![0; 10]], &[PAGES * 4096]);
    let record_len = 4 + PAGES * 4 + 40;
    let tail = tail(
        &bytes,
        &vec![0; 4 * PAGES as usize],
        record_len,
        [12, 0, 12],
    );
    let file = File::create(&packed).unwrap();
    let start = bytes.len() as u64;
    file.write_all_at(&bytes, 0).unwrap();
    file.write_all_at(b"WFD1", start).unwrap();
    file.write_all_at(&tail, start + record_len - 40).unwrap();
    let output = std::process::Command::new("time")
        .args(["-f", "%M", env!("CARGO_BIN_EXE_warpfs"), "info", "--json"])
        .arg(&packed)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"record_damage\":null"));
    let resident: u64 = said.trim().parse().unwrap();
    assert!(resident < 64 << 10, "{resident} KiB");
}

#[test]
fn groups_that_no_checksum_proves_are_damage() {
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("x.warp");
    let mut bytes = snappy_file(&[vec![0; 10]], &[4096]);
    let tail = tail(&bytes, &[0; 4], 4 + 4 + 40, [12, 12, 12]);
    bytes.extend(b"WFD1");
    bytes.extend([0; 4]);
    bytes.extend(tail);
    fs::write(&packed, &bytes).unwrap();
    let (code, said) = verify(&packed, &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no checksum proves"), "{said}");
}

#[test]
fn a_packed_file_that_was_packed_again_by_others_is_not_taken_for_one_with_its_record() {
    let directory = tempfile::tempdir().unwrap();
    let [plain, inner, outer] =
        ["x", "x.warp", "x.warp.warp"].map(|name| directory.path().join(name));
    fs::write(&plain, sample(20_000, 9)).unwrap();
    pack(&plain, &inner, &[]);
    let held = fs::read(&inner).unwrap();
    // One literal: what does not compress is stored as it is.
    let length = held.len();
    let mut payload = vec![
        length as u8 | 0x80,
        (length >> 7) as u8 | 0x80,
        (length >> 14) as u8,
    ];
    payload.push(61 << 2);
    payload.extend(((length - 1) as u16).to_le_bytes());
    payload.extend(&held);
    fs::write(&outer, snappy_file(&[payload], &[length as u64])).unwrap();
    assert_eq!(verify(&outer, &["-q"]), (Some(0), String::new()));
    let reader = warpfs::Reader::open(&outer).unwrap();
    let mut bytes = vec![0; length];
    assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), length);
    assert!(bytes == held);
}

#[test]
fn no_flipped_bit_of_header_table_or_footer_leaves_a_file_that_opens() {
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("x.warp");
    for (codec, checksum) in [("snappy", "blake3"), ("zstd", "none")] {
        let arguments = [
            "--codec",
            codec,
            "--checksum",
            checksum,
            "--chunk-size",
            "40000",
        ];
        pack(&vector("mixed.bin"), &packed, &arguments);
        let whole = fs::read(&packed).unwrap();
        let payloads = 18 + 3 * 16..payload(&packed, 2).end as usize;
        let footer = if checksum == "none" { 0 } else { 39 };
        let engine = Engine::new(&EngineOptions::default()).unwrap();
        for place in (0..payloads.start).chain(payloads.end..payloads.end + footer) {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[place] ^= 1 << bit;
                fs::write(&packed, flipped).unwrap();
                let opened = engine.open(&packed).map(|_| "it opens");
                assert!(opened.is_err(), "{codec}: bit {bit} of byte {place}");
            }
        }
    }
}

#[test]
fn a_page_of_more_chunks_than_are_worth_counting_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("x.warp");
    // A zero each.
    for (count, fits) in [(8192, true), (8193, false)] {
        let mut bytes = snappy_file(&vec![vec![1, 0, 0]; count], &vec![1; count]);
        let tail = tail(&bytes, &[0; 4], 48, [12, 0, 22]);
        bytes.extend(b"WFD1");
        bytes.extend([0; 4]);
        bytes.extend(tail);
        fs::write(&packed, bytes).unwrap();
        let reader = warpfs::Reader::open(&packed).unwrap();
        assert_eq!(reader.verified_by(), "xxh3");
        let read = reader.read_at(&mut [1], 77);
        match fits {
            true => assert_eq!(read.unwrap(), 1),
            false => assert!(read.unwrap_err().is_damage()),
        }
    }
}

#[test]
fn there_are_no_data_behind_the_end_of_a_file_whose_record_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let [plain, packed] = ["x", "x.warp"].map(|name| directory.path().join(name));
    fs::write(&plain, sample(40_000, 13)).unwrap();
    pack(&plain, &packed, &[]);
    let length = fs::metadata(&packed).unwrap().len();
    flip(&packed, length - 40 - 4 - 3, 0x01);
    let reader = warpfs::Reader::open(&packed).unwrap();
    assert_eq!(reader.next_data(39_999).unwrap(), Some(39_999));
    assert_eq!(reader.next_data(40_000).unwrap(), None);
    assert_eq!(reader.next_data(50_000).unwrap(), None);
}

#[test]
fn pieces_behind_a_damaged_one_are_served_if_they_are_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(10);
    let original: Vec<u8> = (0..3 << 20).map(|_| random.below(256) as u8).collect();
    let plain = directory.path().join("x");
    fs::write(&plain, &original).unwrap();
    // What does not compress is stored as it is.
    for codec in ["snappy", "zstd"] {
        let packed = directory.path().join(codec);
        pack(&plain, &packed, &["--codec", codec, "--chunk-size", "3M"]);
        let place = payload(&packed, 0);
        flip(&packed, place.start + 1_600_000, 0x01);
        let engine = Engine::new(&EngineOptions {
            prefetch: Some(0),
            ..EngineOptions::default()
        });
        let reader = engine.unwrap().open(&packed).unwrap();
        let mut bytes = [0; 4096];
        let last = original.len() - 4096;
        assert_eq!(
            reader.read_at(&mut bytes, last as u64).unwrap(),
            4096,
            "{codec}"
        );
        assert!(bytes[..] == original[last..], "{codec}");
        let error = reader.read_at(&mut bytes, 1_600_000).unwrap_err();
        assert!(error.is_damage(), "{codec}: {error}");
    }
}

#[test]
fn what_lies_behind_a_piece_that_is_not_what_was_packed_is_not_decoded_from_the_beginning_again() {
    const PIECE: u64 = 128 << 10;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut random = Random(12);
    let original: Vec<u8> = (0..3 << 20).map(|_| random.below(256) as u8).collect();
    fs::write(at("x"), &original).unwrap();
    let arguments = ["--codec", "snappy", "--chunk-size", "3M"];
    pack(&at("x"), &at("x.warp"), &arguments);
    flip(
        &at("x.warp"),
        payload(&at("x.warp"), 0).start + 1_600_000,
        0x01,
    );
    let engine = Engine::new(&EngineOptions {
        prefetch: Some(0),
        ..EngineOptions::default()
    });
    let engine = engine.unwrap();
    let reader = engine.open(at("x.warp")).unwrap();
    let damaged = 1_600_000 / PIECE * PIECE;
    let mut bytes = [0; 4096];
    let error = reader.read_at(&mut bytes, damaged).unwrap_err();
    assert!(error.is_damage(), "{error}");
    let before = engine.stats().decoded_bytes;
    let behind = damaged + PIECE;
    assert_eq!(reader.read_at(&mut bytes, behind).unwrap(), 4096);
    assert!(bytes[..] == original[behind as usize..][..4096]);
    assert_eq!(engine.stats().decoded_bytes - before, PIECE);
}

#[test]
fn what_lies_far_behind_damage_in_a_chunk_is_not_decoded_up_to_it_for_every_read() {
    const MIB: u64 = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(24 * MIB as usize, 13);
    fs::write(at("x"), &original).unwrap();
    let arguments = ["--codec", "zstd", "--chunk-size", "24M"];
    pack(&at("x"), &at("x.warp"), &arguments);
    let place = payload(&at("x.warp"), 0);
    let file = OpenOptions::new().write(true).open(at("x.warp")).unwrap();
    let damage = place.start + (place.end - place.start) / 4 * 3;
    file.write_all_at(&[0xff; 300_000], damage).unwrap();
    let engine = Engine::new(&EngineOptions {
        cache_size: 16 << 20,
        prefetch: Some(0),
        ..EngineOptions::default()
    });
    let engine = engine.unwrap();
    let reader = engine.open(at("x.warp")).unwrap();
    let mut bytes = [0; 4096];
    let mut read = |offset: u64| {
        let before = engine.stats().decoded_bytes;
        let outcome = reader.read_at(&mut bytes, offset).map(|_| bytes);
        (outcome, engine.stats().decoded_bytes - before)
    };
    let (refused, decoded) = read(21 * MIB);
    assert!(refused.unwrap_err().is_damage());
    assert!(decoded > 16 * MIB, "{decoded}");
    for offset in [21 * MIB, 22 * MIB + 7, 24 * MIB - 4096] {
        let (refused, decoded) = read(offset);
        let refused = refused.unwrap_err();
        assert!(refused.is_damage(), "{refused}");
        assert_eq!((refused.chunk(), decoded), (Some(0), 0), "{refused}");
    }
    let (sound, _) = read(17 * MIB);
    assert!(sound.unwrap()[..] == original[17 * MIB as usize..][..4096]);
    // Who wrote to it has another file.
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let (refused, _) = read(21 * MIB);
    assert!(!refused.unwrap_err().is_damage());
}

#[test]
fn a_range_of_a_damaged_chunk_without_a_record_is_saved_as_zeros() {
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("x.warp");
    fs::copy(vector("v2-zstd-none.warp"), &packed).unwrap();
    let place = payload(&packed, 1);
    flip(&packed, place.start, 0xff);
    let info = run(["info", "--json", "--chunks", packed.to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let second = info[0]["chunk_table"][1]["original_offset"]
        .as_u64()
        .unwrap() as usize;
    let (start, end) = (second - 5000, second + 3000);
    let mut process = warpfs();
    let range = format!("{start}..{end}");
    let arguments = [
        "unpack",
        "-c",
        "--threads",
        "1",
        "--keep-going",
        "--range",
        &range,
    ];
    let output = process.args(arguments).arg(&packed).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let mut wanted = mixed()[start..second].to_vec();
    wanted.extend([0; 3000]);
    assert_eq!(output.stdout.len(), wanted.len());
    assert!(output.stdout == wanted);
}

#[test]
fn going_on_behind_a_damaged_record_loses_nothing_that_decodes() {
    const MIB: usize = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("x");
    let original = sample(6 * MIB, 11);
    fs::write(&plain, &original).unwrap();
    for checksum in ["blake3", "none"] {
        let packed = directory.path().join(format!("{checksum}.warp"));
        let arguments = [
            "--codec",
            "snappy",
            "--chunk-size",
            "1M",
            "--checksum",
            checksum,
        ];
        pack(&plain, &packed, &arguments);
        let info = run(["info", "--json", packed.to_str().unwrap()]);
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        let record = info[0]["record_size"].as_u64().unwrap();
        let pages = fs::metadata(&packed).unwrap().len() - record + 4;
        let unpacked = directory.path().join("unpacked");
        let go_on = || {
            let mut process = warpfs();
            let process = process.args(["unpack", "-f", "--keep-going", "-o"]);
            let output = process.arg(&unpacked).arg(&packed).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), said, fs::read(&unpacked).unwrap())
        };
        // A flag, and the digest of the second leaf: the first page cannot be made sense of, or one leaf not be checked.
        for place in [8, 8 + 16 + 8] {
            flip(&packed, pages + place, 0x01);
            let (code, said, saved) = go_on();
            assert!(saved == original, "{checksum} {place}: {said}");
            // The checksum proves what the record does not.
            let proved = checksum == "blake3";
            assert_eq!(code, Some(i32::from(!proved)), "{said}");
            assert_eq!(said.contains("cannot be checked"), !proved, "{said}");
            // Damaged data in another page is found behind it.
            let data = payload(&packed, 5);
            flip(&packed, (data.start + data.end) / 2, 0x20);
            let (code, said, saved) = go_on();
            assert_eq!(code, Some(1));
            assert!(saved[..5 * MIB] == original[..5 * MIB], "{said}");
            assert!(
                said.contains("are lost") && said.contains("cannot be checked"),
                "{said}"
            );
            let (code, said) = verify(&packed, &["--keep-going"]);
            assert_eq!(code, Some(1));
            assert!(
                said.contains("are lost") && said.contains("record"),
                "{said}"
            );
            flip(&packed, (data.start + data.end) / 2, 0x20);
            flip(&packed, pages + place, 0x01);
        }
        // A chaining value, which no leaf is checked by, and the tail.
        let length = fs::metadata(&packed).unwrap().len();
        let places = match checksum {
            "blake3" => vec![pages + 8 + 16 + 128 * 8 + 40, length - 20],
            _ => vec![length - 20],
        };
        for place in places {
            let data = payload(&packed, 5);
            flip(&packed, place, 0x01);
            let (code, said) = verify(&packed, &["--keep-going"]);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("record of digests is damaged"), "{said}");
            flip(&packed, data.start, 0xff);
            let (code, said) = verify(&packed, &["--keep-going"]);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("are lost"), "{said}");
            flip(&packed, data.start, 0xff);
            flip(&packed, place, 0x01);
        }
        assert_eq!(verify(&packed, &["-q"]).0, Some(0));
    }
}

#[test]
fn a_footer_gone_bad_is_not_passed_over_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let [plain, packed, unpacked] = ["x", "x.warp", "y"].map(|name| directory.path().join(name));
    fs::write(&plain, sample(100_000, 12)).unwrap();
    pack(&plain, &packed, &["--codec", "snappy"]);
    let footer = fs::read(&packed).unwrap();
    let footer = footer
        .windows(4)
        .rposition(|found| found == b"WFT1")
        .unwrap();
    flip(&packed, footer as u64, 0x01);
    let mut process = warpfs();
    let process = process.args(["unpack", "--keep-going", "-o"]);
    let output = process.arg(&unpacked).arg(&packed).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("bytes 0..100000 cannot be checked"), "{said}");
    assert!(fs::read(&unpacked).unwrap() == sample(100_000, 12));
}
