//! Chunks that are more than they seem: a few bytes that decode to a gibibyte, to more than they are announced to be, or to
//! nothing for ever. A chunk never decodes past its announced size, and a mount's budget holds whatever a header claims: what
//! cannot be read within it is an explained error. Bytes that come out are those that belong there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Mounted, run};
use rustix::fs::Advice;
use rustix::io::Errno;
use twox_hash::XxHash32;
use warpfs::{Engine, EngineOptions, ErrorKind};

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;
const BUDGET: u64 = 64 << 20;
/// What a mount takes beside its budget, generously, in bytes.
const BESIDE: u64 = 48 << 20;
const EIO: i32 = Errno::IO.raw_os_error();
/// No bomb here takes longer to be refused or read, also where other tests run.
const SOON: Duration = Duration::from_secs(30);

const LZ4: u8 = 0;
const ZSTD: u8 = 1;
const SNAPPY: u8 = 2;
const BROTLI: u8 = 3;

/// A version 2 file of one chunk, announced to have `original_len` bytes.
fn container(codec: u8, payload: &[u8], original_len: u64) -> Vec<u8> {
    let mut bytes = b"PRAW\x02".to_vec();
    bytes.push(codec);
    bytes.extend(original_len.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(original_len.to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// A directory with such a file as `x.warp`.
fn source(codec: u8, payload: &[u8], original_len: u64) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    fs::write(&path, container(codec, payload, original_len)).unwrap();
    (directory, path)
}

/// Which byte stands at `offset` of a gibibyte: another one in every block of 4 MiB.
fn gibibyte_byte(offset: u64) -> u8 {
    (offset >> 22) as u8
}

/// A gibibyte as a Zstandard frame: blocks of 128 KiB in four bytes each, behind the given rest of the header.
fn zstd_gibibyte(header: &[u8]) -> Vec<u8> {
    let mut frame = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    frame.extend(header);
    for block in 0..GIB >> 17 {
        let last = block + 1 == GIB >> 17;
        let size_and_kind = (1_u32 << 17) << 3 | 0b010 | u32::from(last);
        frame.extend(&size_and_kind.to_le_bytes()[..3]);
        frame.push(gibibyte_byte(block << 17));
    }
    frame
}

/// A gibibyte as an LZ4 frame of independent blocks of 4 MiB, each one byte repeated; perhaps with a checksum over it all.
fn lz4_gibibyte(content_checksum: Option<u32>) -> Vec<u8> {
    let flags = 0b0110_0000 | u8::from(content_checksum.is_some()) << 2;
    let mut frame = 0x184D_2204_u32.to_le_bytes().to_vec();
    frame.extend([flags, 7 << 4]);
    frame.push((XxHash32::oneshot(0, &frame[4..]) >> 8) as u8);
    for block in 0..GIB >> 22 {
        // One literal, a match that repeats it, and the five literals a block must end with.
        let mut data = vec![0x1f, gibibyte_byte(block << 22), 1, 0];
        let more = (4 << 20) - 1 - 5 - 4 - 15;
        data.extend(vec![255; more / 255]);
        data.push((more % 255) as u8);
        data.push(5 << 4);
        data.extend([gibibyte_byte(block << 22); 5]);
        frame.extend((data.len() as u32).to_le_bytes());
        frame.extend(data);
    }
    frame.extend([0; 4]);
    frame.extend(content_checksum.into_iter().flat_map(u32::to_le_bytes));
    frame
}

/// A Zstandard frame whose window has 1 MiB, and one that is a single segment, whose window is all of it.
fn zstd_windowed() -> Vec<u8> {
    zstd_gibibyte(&[0, 10 << 3])
}

fn zstd_single_segment() -> Vec<u8> {
    let mut header = vec![0b1010_0000];
    header.extend((GIB as u32).to_le_bytes());
    zstd_gibibyte(&header)
}

fn read(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).map(|()| bytes)
}

fn open(mounted: &Mounted) -> File {
    let file = File::open(mounted.path("x")).unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
    file
}

fn small_engine(budget: u64) -> std::sync::Arc<Engine> {
    Engine::new(&EngineOptions {
        cache_size: budget,
        ..EngineOptions::default()
    })
    .unwrap()
}

/// Runs the program on a file where it cannot have more than 64 MiB of data, stacks included.
fn within_64_mib(command: &str, path: &Path) -> std::process::Output {
    std::process::Command::new("sh")
        .args(["-c", "ulimit -d 65536; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_warpfs"))
        .args([command, "--threads", "1"])
        .arg(path)
        .output()
        .unwrap()
}

#[test]
fn a_legal_chunk_of_a_gibibyte_is_streamed_within_a_budget_of_64_mib() {
    for (codec, payload) in [(ZSTD, zstd_windowed()), (LZ4, lz4_gibibyte(None))] {
        let (directory, path) = source(codec, &payload, GIB);
        let offsets = [0, 500 * MIB as u64, GIB - 4096, 4096];
        let mounted = Mounted::new(directory.path(), &["--cache-size", "64M"]);
        let file = open(&mounted);
        let engine = small_engine(BUDGET);
        let reader = engine.open(&path).unwrap();
        for offset in offsets {
            let expected = [gibibyte_byte(offset); 4096];
            assert!(read(&file, offset, 4096).unwrap() == expected);
            let mut bytes = [1; 4096];
            assert_eq!(reader.read_at(&mut bytes, offset).unwrap(), 4096);
            assert!(bytes == expected, "codec {codec} at {offset}");
            assert!(engine.stats().memory_used <= BUDGET);
        }
        let stats = mounted.stats();
        assert!(stats["memory_used"].as_u64().unwrap() <= BUDGET, "{stats}");
        assert!(mounted.peak_resident() < BUDGET + BESIDE, "{stats}");
    }
}

#[test]
fn a_chunk_of_a_gibibyte_that_only_decodes_whole_is_an_explained_error_within_64_mib() {
    let payloads = [
        (ZSTD, zstd_single_segment()),
        // Whatever its checksum is: it can be looked at only with all of it decoded.
        (LZ4, lz4_gibibyte(Some(7))),
    ];
    for (codec, payload) in payloads {
        let (directory, path) = source(codec, &payload, GIB);
        let mounted = Mounted::new(directory.path(), &["--cache-size", "64M"]);
        let file = open(&mounted);
        for offset in [0, GIB - 4096] {
            let error = read(&file, offset, 4096).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(EIO), "codec {codec}");
        }
        let logged = mounted.logged();
        assert!(logged.contains("x.warp: chunk 0"), "{logged}");
        assert!(
            logged.contains("mount with a larger --cache-size"),
            "{logged}"
        );
        assert!(mounted.peak_resident() < BUDGET + BESIDE);
        let engine = small_engine(BUDGET);
        let reader = engine.open(&path).unwrap();
        let error = reader.read_at(&mut [0; 16], 0).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::OverBudget { .. }),
            "{error}"
        );
        assert!(engine.stats().memory_used <= BUDGET);
    }
}

/// 64 MiB of one byte, packed by the program with each codec; the payload alone.
fn packed_64_mib() -> Vec<(u8, Vec<u8>)> {
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("x");
    fs::write(&input, vec![b'x'; 64 * MIB]).unwrap();
    let mut payloads = Vec::new();
    for (codec, name) in [
        (LZ4, "lz4"),
        (ZSTD, "zstd"),
        (SNAPPY, "snappy"),
        (BROTLI, "brotli"),
    ] {
        let output = directory.path().join(name);
        common::pack(
            &input,
            &output,
            &["--codec", name, "--chunk-size", "64M", "--checksum", "none"],
        );
        let file = fs::read(&output).unwrap();
        let len = u64::from_le_bytes(file[18..26].try_into().unwrap()) as usize;
        payloads.push((codec, file[34..34 + len].to_vec()));
    }
    payloads
}

#[test]
fn a_payload_that_decodes_beyond_its_announced_size_is_refused_in_every_codec() {
    for (codec, mut payload) in packed_64_mib() {
        for announced in [1_u64, 1000, 100 << 10, 3 << 20, (64 << 20) - 1] {
            // The codec's own word for its length, where there is one, tells the lie too.
            match codec {
                // Zstandard's is left out, so that only decoding shows it.
                ZSTD => payload = zstd_windowed(),
                SNAPPY => {
                    let prefix = payload.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
                    let mut told = Vec::new();
                    let mut left = announced;
                    while left >= 0x80 {
                        told.push(left as u8 | 0x80);
                        left >>= 7;
                    }
                    told.push(left as u8);
                    payload.splice(..prefix, told);
                }
                LZ4 => {
                    payload[6..14].copy_from_slice(&announced.to_le_bytes());
                    payload[14] = (XxHash32::oneshot(0, &payload[4..14]) >> 8) as u8;
                }
                _ => {}
            }
            let (directory, path) = source(codec, &payload, announced);
            let output = within_64_mib("verify", &path);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{codec} {announced}: {said}");
            assert!(said.contains("chunk 0"), "{said}");
            let engine = small_engine(BUDGET);
            let reader = engine.open(&path).unwrap();
            let mut bytes = vec![0; 4096];
            let last = announced.saturating_sub(4096);
            let error = reader.read_at(&mut bytes, last).unwrap_err();
            assert!(error.is_damage(), "{codec} {announced}: {error}");
            assert!(engine.stats().memory_used <= BUDGET);
            if announced == 3 << 20 {
                let mounted = Mounted::new(directory.path(), &["--cache-size", "16M"]);
                let file = open(&mounted);
                let error = read(&file, last, 4096).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(EIO));
                assert!(mounted.peak_resident() < (16 << 20) + BESIDE);
            }
        }
    }
}

/// What it is, its codec, a payload that is long and says little, and the bytes it decodes to; `None` if it must be refused.
type Tedious = (&'static str, u8, Vec<u8>, Option<Vec<u8>>);

fn tedious() -> Vec<Tedious> {
    let frame = |content: &[u8]| zstd::bulk::compress(content, 1).unwrap();
    let skippable = [&0x184D_2A53_u32.to_le_bytes()[..], &[3, 0, 0, 0, 1, 2, 3]].concat();
    let words = b"all that is in there".to_vec();
    // As many as the longest payload of so short a chunk has room for.
    let many = 60 << 10;
    let mut lz4 = 0x184D_2204_u32.to_le_bytes().to_vec();
    lz4.extend([0b0110_0000, 4 << 4]);
    lz4.push((XxHash32::oneshot(0, &lz4[4..]) >> 8) as u8);
    let lz4_words = [
        &lz4[..],
        &(words.len() as u32 | 1 << 31).to_le_bytes(),
        &words,
    ]
    .concat();
    let empty_lz4_blocks = (1_u32 << 31).to_le_bytes().repeat(many / 4);
    let mut zstd_empty_blocks = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    zstd_empty_blocks.extend([0, 0]);
    zstd_empty_blocks.extend([0, 0, 0].repeat(many / 3));
    let mut zstd_ended = zstd_empty_blocks.clone();
    zstd_ended.extend([(words.len() as u8) << 3 | 1, 0, 0]);
    zstd_ended.extend(&words);
    vec![
        (
            "100 frames one behind the other",
            ZSTD,
            (0..100).flat_map(|n| frame(&[n; 5])).collect(),
            Some((0..100).flat_map(|n| [n; 5]).collect()),
        ),
        (
            "frames to be skipped around one",
            ZSTD,
            [
                skippable.repeat(1000),
                frame(&words),
                skippable.repeat(1000),
            ]
            .concat(),
            Some(words.clone()),
        ),
        (
            "nothing but frames to be skipped",
            ZSTD,
            skippable.repeat(1000),
            None,
        ),
        (
            "empty frames before one",
            ZSTD,
            [frame(b"").repeat(1000), frame(&words)].concat(),
            Some(words.clone()),
        ),
        (
            "empty blocks before one",
            ZSTD,
            zstd_ended,
            Some(words.clone()),
        ),
        ("endless empty blocks", ZSTD, zstd_empty_blocks, None),
        (
            "empty blocks behind one",
            LZ4,
            [&lz4_words[..], &empty_lz4_blocks, &[0; 4]].concat(),
            Some(words.clone()),
        ),
        (
            "endless empty blocks",
            LZ4,
            [&lz4_words[..], &empty_lz4_blocks].concat(),
            None,
        ),
        (
            "a frame within a frame",
            LZ4,
            [&lz4_words[..], &lz4_words, &[0; 4]].concat(),
            None,
        ),
        // Each has no bytes of its own, and asks to go on to the next.
        (
            "endless empty metablocks",
            BROTLI,
            [&[0x0c][..], &[0x06].repeat(many)].concat(),
            None,
        ),
        (
            "copies from before the beginning",
            SNAPPY,
            [&[20][..], &[0xfe, 9, 0].repeat(9)].concat(),
            None,
        ),
    ]
}

#[test]
fn endless_nothings_come_to_an_end_and_to_the_same_end_in_every_way() {
    let started = Instant::now();
    for (what, codec, payload, expected) in tedious() {
        // Alone, and announced long enough to be decoded in pieces under a small budget.
        let len = expected.as_ref().map_or(20, Vec::len) as u64;
        let (_directory, path) = source(codec, &payload, len);
        let output = within_64_mib("verify", &path);
        assert_eq!(output.status.success(), expected.is_some(), "{what}");
        for budget in [1 << 20, BUDGET] {
            let engine = small_engine(budget);
            let reader = engine.open(&path).unwrap();
            let mut bytes = vec![0; len as usize];
            match (&expected, reader.read_at(&mut bytes, 0)) {
                (Some(expected), Ok(_)) => assert!(bytes == *expected, "{what}"),
                (None, Err(error)) => assert!(error.is_damage(), "{what}: {error}"),
                (_, outcome) => panic!("{what}: {outcome:?}"),
            }
        }
    }
    assert!(started.elapsed() < SOON);
}

#[test]
fn a_large_chunk_of_endless_nothings_does_not_hold_up_who_reads_it_in_pieces() {
    // A chunk of 1 MiB may have 16 MiB of payload, and here nothing is in it for the longest time.
    let len = 1 << 20;
    let many = 16 << 20;
    let mut zstd = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    zstd.extend([0, 0]);
    zstd.extend([0, 0, 0].repeat(many / 3));
    let brotli = [&[0x0c][..], &[0x06].repeat(many)].concat();
    let mut lz4 = 0x184D_2204_u32.to_le_bytes().to_vec();
    lz4.extend([0b0110_0000, 4 << 4]);
    lz4.push((XxHash32::oneshot(0, &lz4[4..]) >> 8) as u8);
    lz4.extend((1_u32 << 31).to_le_bytes().repeat(many / 4));
    // Blocks that need those before them and may be of 4 MiB: empty ones, and such of one byte.
    let mut linked = 0x184D_2204_u32.to_le_bytes().to_vec();
    linked.extend([0b0100_0000, 7 << 4]);
    linked.push((XxHash32::oneshot(0, &linked[4..]) >> 8) as u8);
    let of_a_byte = [&(1_u32 << 31 | 1).to_le_bytes()[..], &[7]].concat();
    let of_bytes = [&linked[..], &of_a_byte.repeat(len as usize), &[0; 4]].concat();
    linked.extend((1_u32 << 31).to_le_bytes().repeat(many / 4));
    let cases = [
        (ZSTD, zstd, false),
        (BROTLI, brotli, false),
        (LZ4, lz4, false),
        (LZ4, linked, false),
        (LZ4, of_bytes, true),
    ];
    for (codec, payload, is_good) in cases {
        let (directory, _) = source(codec, &payload, len);
        // A quarter of this budget is less than the chunk has.
        let mounted = Mounted::new(directory.path(), &["--cache-size", "3M"]);
        let file = open(&mounted);
        let started = Instant::now();
        for offset in [0, len / 2] {
            match read(&file, offset, 4096) {
                Ok(bytes) => assert!(is_good && bytes == [7; 4096], "codec {codec}"),
                Err(error) => {
                    assert!(!is_good, "codec {codec}: {error}");
                    assert_eq!(error.raw_os_error(), Some(EIO), "codec {codec}");
                }
            }
        }
        assert!(started.elapsed() < SOON, "codec {codec}");
        assert!(mounted.peak_resident() < (3 << 20) + BESIDE);
    }
}

#[test]
fn what_has_to_be_measured_takes_its_window_within_the_budget() {
    // A chunk of version 1 that does not tell its size: 128 MiB, and a window as large.
    let len = 128_u64 << 20;
    let mut payload = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    payload.extend([0, 17 << 3]);
    for block in 0..len >> 17 {
        let last = u32::from(block + 1 == len >> 17);
        payload.extend(&((1_u32 << 17) << 3 | 0b010 | last).to_le_bytes()[..3]);
        payload.push(b'x');
    }
    let mut bytes = b"PRAW\x01".to_vec();
    bytes.push(ZSTD);
    bytes.extend(len.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(payload);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    fs::write(&path, bytes).unwrap();
    let mounted = Mounted::new(directory.path(), &["--cache-size", "64M"]);
    let error = File::open(mounted.path("x")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO));
    let logged = mounted.logged();
    assert!(
        logged.contains("mount with a larger --cache-size"),
        "{logged}"
    );
    assert!(mounted.peak_resident() < BUDGET + BESIDE);
    // Where there is room, there is nothing wrong with it, and none of it is kept.
    let engine = small_engine(4 * BUDGET);
    let reader = engine.open(&path).unwrap();
    assert_eq!(reader.len(), len);
    assert!(engine.stats().memory_held < 1 << 20);
}

#[test]
fn what_no_memory_has_room_for_cannot_be_opened_as_if_it_were_damaged() {
    // A chunk of version 1, which may be anything, in a hole.
    let len = 1_u64 << 42;
    let mut header = b"PRAW\x01".to_vec();
    header.push(BROTLI);
    header.extend(len.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    header.extend(len.to_le_bytes());
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join("x.warp")).unwrap();
    file.write_all_at(&header, 0).unwrap();
    file.set_len(header.len() as u64 + len).unwrap();
    let mounted = Mounted::new(directory.path(), &["--cache-size", "64M"]);
    let error = File::open(mounted.path("x")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
    let errors = &mounted.stats()["errors"]["open"];
    assert!(errors["memory"].as_u64() >= Some(1), "{errors}");
}

#[test]
fn what_has_to_be_measured_is_decoded_no_further_than_the_header_announces() {
    // Each chunk of this file of version 1 decodes to all that the file is said to have.
    const CHUNKS: u32 = 3000;
    let len = 64_u64 << 20;
    let mut payload = Vec::new();
    let quality = brotli::enc::BrotliEncoderParams::default();
    let mut zeros = std::io::Read::take(std::io::repeat(0), len);
    brotli::BrotliCompress(&mut zeros, &mut payload, &quality).unwrap();
    let mut bytes = b"PRAW\x01".to_vec();
    bytes.push(BROTLI);
    bytes.extend(len.to_le_bytes());
    bytes.extend(CHUNKS.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes().repeat(CHUNKS as usize));
    bytes.extend(payload.repeat(CHUNKS as usize));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    fs::write(&path, bytes).unwrap();
    let started = Instant::now();
    let error = small_engine(BUDGET).open(&path).unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert!(started.elapsed() < SOON);
}

#[test]
fn what_is_announced_to_be_huge_takes_no_memory_before_it_is_found_to_be() {
    // Each payload is far too short, or not what it says, in its own codec's way.
    let lies = [
        (LZ4, lz4_gibibyte(None)[..2 * MIB].to_vec()),
        (ZSTD, zstd_windowed()[..20_000].to_vec()),
        (BROTLI, vec![0x0c; 1 << 20]),
        (
            SNAPPY,
            [&[0x80, 0x80, 0x80, 0x80, 4][..], &[0xfe, 1, 0].repeat(MIB)].concat(),
        ),
    ];
    for (codec, payload) in lies {
        let (directory, path) = source(codec, &payload, GIB);
        for command in ["verify", "unpack"] {
            let mut arguments = vec![command];
            let output = directory.path().join("out");
            if command == "unpack" {
                arguments.extend(["-o", output.to_str().unwrap()]);
            }
            let refused = std::process::Command::new("sh")
                .args(["-c", "ulimit -d 131072; exec \"$@\"", "sh"])
                .arg(env!("CARGO_BIN_EXE_warpfs"))
                .args(arguments)
                .args(["--threads", "1"])
                .arg(&path)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(1), "{codec}: {said}");
            // Refused for what it is, and not because there is no memory for what it claims.
            assert!(said.contains("damaged"), "{codec}: {said}");
            assert!(!output.exists());
        }
    }
}

#[test]
fn a_table_of_four_billion_chunks_keeps_a_mount_within_its_budget() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    let mut header = b"PRAW\x02\x01".to_vec();
    header.extend(1_u64.to_le_bytes());
    header.extend(u32::MAX.to_le_bytes());
    let file = File::create(&path).unwrap();
    file.write_all_at(&header, 0).unwrap();
    // The table is in a hole, and there is room for it.
    file.set_len(18 + 17 * (1 << 32)).unwrap();
    let mounted = Mounted::new(directory.path(), &["--cache-size", "64M"]);
    let error = File::open(mounted.path("x")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO));
    let logged = mounted.logged();
    assert!(logged.contains("x.warp"), "{logged}");
    assert!(logged.contains("more than the budget"), "{logged}");
    assert!(mounted.peak_resident() < BUDGET + BESIDE);
    // The mount goes on.
    fs::write(directory.path().join("y"), "still there").unwrap();
    assert_eq!(fs::read(mounted.path("y")).unwrap(), b"still there");
    run(["stats".as_ref(), mounted.mount_point.as_os_str()]);
}
