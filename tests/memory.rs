//! Promise 6: memory. Whatever is read, by however many, the server stays within its budget, and says so where it cannot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::group::Group;
use common::{Mounted, Random, is_mounted, pack, run, shell, warpfs};
use lz4_flex::frame::{FrameEncoder, FrameInfo};
use warpfs::{Engine, EngineOptions};

const MIB: u64 = 1 << 20;
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Bytes that shrink to about an eighth, no two pages alike.
fn pages(length: u64) -> Vec<u8> {
    let mut random = Random(length);
    let mut bytes = vec![b'.'; length as usize];
    for page in bytes.chunks_mut(4096) {
        for word in page[..384].chunks_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    }
    bytes
}

/// Writes a version 2 file of `times` times the chunks of a packed one.
fn repeat(packed: &Path, times: u64, output: &Path) {
    let bytes = fs::read(packed).unwrap();
    let count = u32::from_le_bytes(bytes[14..18].try_into().unwrap());
    let column = 8 * count as usize;
    let (compressed, original) = bytes[18..18 + 2 * column].split_at(column);
    let size = u64::from_le_bytes(bytes[6..14].try_into().unwrap());
    let mut file = std::io::BufWriter::new(File::create(output).unwrap());
    file.write_all(&bytes[..6]).unwrap();
    file.write_all(&(size * times).to_le_bytes()).unwrap();
    file.write_all(&(count * times as u32).to_le_bytes())
        .unwrap();
    for column in [compressed, original] {
        for _ in 0..times {
            file.write_all(column).unwrap();
        }
    }
    let sizes = compressed
        .chunks(8)
        .map(|size| u64::from_le_bytes(size.try_into().unwrap()));
    let payloads = sizes.sum::<u64>() as usize;
    for _ in 0..times {
        file.write_all(&bytes[18 + 2 * column..][..payloads])
            .unwrap();
    }
    file.flush().unwrap();
}

/// Packs `original` so that `repeat` can be used on it.
fn pack_plain(directory: &Path, original: &[u8], codec: &str, chunk_size: &str) -> PathBuf {
    let (input, output) = (directory.join("input"), directory.join("output"));
    fs::write(&input, original).unwrap();
    pack(
        &input,
        &output,
        &[
            "--codec",
            codec,
            "--chunk-size",
            chunk_size,
            "--checksum",
            "none",
        ],
    );
    output
}

fn number(mounted: &Mounted, key: &str) -> u64 {
    mounted.stats()[key].as_u64().unwrap()
}

#[test]
fn sixteen_random_readers_of_gibibytes_stay_within_the_budget() {
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let original = pages(64 * MIB);
    for (codec, chunk_size) in [
        ("lz4", "1M"),
        ("lz4", "4M"),
        ("zstd", "4M"),
        ("brotli", "1M"),
    ] {
        let packed = pack_plain(work.path(), &original, codec, chunk_size);
        let name = format!("{codec}-{chunk_size}.warp");
        repeat(&packed, 16, &source.path().join(name));
    }
    let mounted = Mounted::new(source.path(), &["--cache-size", "64M"]);
    let files: Vec<_> = fs::read_dir(&mounted.mount_point)
        .unwrap()
        .map(|entry| File::open(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(files.len(), 4);
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..16 {
            let (files, original, done, reads) = (&files, &original, &done, &reads);
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut bytes = vec![0; 256 << 10];
                while !done.load(Ordering::Relaxed) {
                    let file = &files[random.below(4) as usize];
                    let length = random.below(bytes.len() as u64) as usize + 1;
                    let mut at = random.below(1024 * MIB - 8 * MIB);
                    // Some read on for a while, so that there is something to guess.
                    for _ in 0..1 + random.below(4) * random.below(8) {
                        file.read_exact_at(&mut bytes[..length], at).unwrap();
                        let from = (at % (64 * MIB)) as usize;
                        let (first, rest) =
                            bytes[..length].split_at(length.min(original.len() - from));
                        assert!(*first == original[from..from + first.len()], "at {at}");
                        assert!(*rest == original[..rest.len()], "at {at}");
                        reads.fetch_add(1, Ordering::Relaxed);
                        at += length as u64;
                    }
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(12) {
            let stats = mounted.stats();
            let (used, budget) = (&stats["memory_used"], &stats["memory_budget"]);
            assert_eq!(budget.as_u64(), Some(64 * MIB));
            assert!(used.as_u64() <= budget.as_u64(), "{stats}");
            std::thread::sleep(Duration::from_millis(50));
        }
        done.store(true, Ordering::Relaxed);
    });
    let (peak, reads) = (mounted.peak_resident() / MIB, reads.into_inner());
    let stats = mounted.stats();
    println!("{reads} reads, peak {peak} MiB, {stats}");
    assert!(reads > 500, "{reads}");
    assert!(stats["evicted_chunks"].as_u64().unwrap() > 100, "{stats}");
    // Beside the budget, each of the threads that answer has a decoder of its own; those of Brotli are the largest.
    assert!(peak < 64 + 64, "{peak} MiB");
    assert_eq!(stats["other_errors"], 0);
}

#[test]
fn a_chunk_larger_than_the_budget_is_an_error_that_says_what_to_do_and_others_are_read() {
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let original = pages(8 * MIB);
    for (name, chunk_size) in [("large.warp", "4M"), ("small.warp", "256K")] {
        let packed = pack_plain(work.path(), &original, "zstd", chunk_size);
        fs::rename(packed, source.path().join(name)).unwrap();
    }
    let mounted = Mounted::new(source.path(), &["--cache-size", "2M"]);
    for _ in 0..3 {
        let error = fs::read(mounted.path("large")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EIO));
    }
    assert!(fs::read(mounted.path("small")).unwrap() == original);
    let logged = mounted.logged();
    let lines: Vec<_> = logged
        .lines()
        .filter(|line| line.contains("large.warp"))
        .collect();
    assert_eq!(lines.len(), 1, "{logged}");
    assert!(
        lines[0].contains("mount with a larger --cache-size"),
        "{logged}"
    );
    assert!(number(&mounted, "memory_used") <= 2 * MIB);
}

#[test]
fn tables_of_files_that_nobody_has_open_give_way_to_a_read_that_fits_without_them() {
    // With a checksum over it all, this is decoded whole: 896 KiB, and 64 KiB for its payload.
    let mut original = vec![0; 896 << 10];
    let mut random = Random(3);
    original[..50_000].fill_with(|| random.next() as u8);
    let frame_info = FrameInfo::new().content_checksum(true);
    let mut encoder = FrameEncoder::with_frame_info(frame_info, Vec::new());
    encoder.write_all(&original).unwrap();
    let payload = encoder.finish().unwrap();
    let mut bytes = b"PRAW\x02\0".to_vec();
    bytes.extend((original.len() as u64).to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend((original.len() as u64).to_le_bytes());
    bytes.extend(payload);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x.warp"), bytes).unwrap();
    let engine = Engine::new(&EngineOptions {
        cache_size: (896 + 64 + 20) << 10,
        prefetch: Some(0),
        ..EngineOptions::default()
    })
    .unwrap();
    // A kibibyte or more each.
    for number in 0..50 {
        let small = at(&number.to_string());
        fs::copy(common::vector("v2-lz4-xxh64.warp"), &small).unwrap();
        engine.open(small).unwrap();
    }
    let remembered = engine.stats();
    assert!(remembered.memory_used >= 30 << 10, "{remembered:?}");
    let reader = engine.open(at("x.warp")).unwrap();
    let mut bytes = vec![1; 4096];
    assert_eq!(reader.read_at(&mut bytes, 48_000).unwrap(), 4096);
    assert!(bytes == original[48_000..][..4096]);
}

#[test]
fn the_tables_of_open_files_count_and_are_refused_when_there_are_too_many() {
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A hundred thousand chunks of a few bytes: a table of 0.2 MB each in memory, and of 1.6 MB while it is read.
    let mut original = vec![0; 64 << 10];
    for (number, page) in original.chunks_mut(4 << 10).enumerate() {
        // Payloads of one length would make a table of none.
        let different = (0..3 * number as u8).map(|byte| byte.wrapping_mul(151));
        page.iter_mut()
            .zip(different)
            .for_each(|(place, byte)| *place = byte);
    }
    let packed = pack_plain(work.path(), &original, "snappy", "4K");
    for file in 0..20 {
        repeat(&packed, 6250, &source.path().join(format!("{file}.warp")));
    }
    let mounted = Mounted::new(source.path(), &["--cache-size", "4M"]);
    let before = mounted.resident();
    let opened: Vec<_> = (0..20)
        .map(|file| File::open(mounted.path(file.to_string())))
        .collect();
    let held: Vec<_> = opened.iter().flatten().collect();
    assert!((8..=12).contains(&held.len()), "{}", held.len());
    for file in &held {
        let mut bytes = vec![0; 64 << 10];
        file.read_exact_at(&mut bytes, 300 << 16).unwrap();
        assert!(bytes == original);
    }
    for refused in opened.iter().filter_map(|opened| opened.as_ref().err()) {
        assert_eq!(refused.raw_os_error(), Some(EIO), "{refused}");
    }
    assert!(
        mounted.logged().contains("--cache-size"),
        "{}",
        mounted.logged()
    );
    let used = number(&mounted, "memory_used");
    assert!(used <= 4 * MIB && used > MIB + MIB / 2, "{used}");
    let grown = mounted.resident().saturating_sub(before) / MIB;
    assert!(grown < 4 + 16, "{grown} MiB");
    // Closed, they make room for the others.
    drop(opened);
    for file in 0..20 {
        File::open(mounted.path(file.to_string())).unwrap();
    }
}

#[test]
fn thousands_of_small_open_files_take_little_memory_and_count() {
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let packed = pack_plain(work.path(), b"small", "zstd", "4K");
    for file in 0..3000 {
        fs::copy(&packed, source.path().join(format!("{file}.warp"))).unwrap();
    }
    let limit = rustix::process::Rlimit {
        current: Some(8192),
        maximum: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let mounted = Mounted::new(source.path(), &["--cache-size", "16M", "--ttl", "600"]);
    fs::read_dir(&mounted.mount_point).unwrap().count();
    let before = (mounted.resident(), number(&mounted, "memory_used"));
    let open: Vec<_> = (0..3000)
        .map(|file| File::open(mounted.path(file.to_string())).unwrap())
        .collect();
    let after = (mounted.resident(), number(&mounted, "memory_used"));
    let (grown, counted) = ((after.0 - before.0) / 3000, (after.1 - before.1) / 3000);
    println!("{grown} bytes a file, {counted} counted");
    assert!(
        counted > 0 && grown < 4 * counted,
        "{grown} bytes a file, {counted} counted"
    );
    assert_eq!(number(&mounted, "open_files"), 3000);
    drop(open);
}

#[test]
fn the_default_budget_is_an_eighth_of_a_control_group_s_limit_and_keeps_within_it() {
    let (source, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(group) = Group::new("limit", 96 * MIB) else {
        return;
    };
    let inner = group.path.join("inner");
    fs::create_dir(&inner).unwrap();
    let inner = Group { path: inner };
    let original = pages(16 * MIB);
    let packed = pack_plain(work.path(), &original, "zstd", "1M");
    repeat(&packed, 16, &source.path().join("x.warp"));
    let mount_point = work.path().join("mounted");
    fs::create_dir(&mount_point).unwrap();
    // The limit is the outer group's, the process is in the inner one.
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec \"$@\"",
        inner.path.display()
    );
    let output = Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_warpfs"), "mount"])
        .args([source.path(), &mount_point])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let outcome = std::panic::catch_unwind(|| {
        let stats = run(["stats".as_ref(), "--json".as_ref(), mount_point.as_os_str()]);
        let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
        assert_eq!(stats["memory_budget"], 12 * MIB);
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let (original, mount_point) = (&original, &mount_point);
                scope.spawn(move || {
                    let file = File::open(mount_point.join("x")).unwrap();
                    let mut bytes = vec![0; original.len()];
                    for round in 0..4 {
                        let at = (reader * 4 + round) * original.len() as u64;
                        file.read_exact_at(&mut bytes, at).unwrap();
                        assert!(bytes == *original);
                    }
                });
            }
        });
    });
    let unmounted = warpfs().arg("umount").arg(&mount_point).status().unwrap();
    if !unmounted.success() {
        shell(
            Path::new("/"),
            &format!("umount -l {}", mount_point.display()),
        );
    }
    common::wait_until("the end", || !is_mounted(&mount_point));
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
