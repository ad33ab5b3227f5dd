//! Promise 5: a source that lives. What is new is seen, what is held open stays what it was or says that it is gone,
//! and old bytes are never mixed with new ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::vectors::forget_pages;
use common::{Mounted, Random, Running, packed, sample, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
const EAGAIN: i32 = rustix::io::Errno::AGAIN.raw_os_error();
const ESTALE: i32 = rustix::io::Errno::STALE.raw_os_error();
const CHUNK: usize = 128 << 10;
/// Long enough that nothing in a test happens because it ran out.
const LONG: &[&str] = &["--ttl", "600", "--cache-size", "1M", "--prefetch", "off"];
const SHORT: &[&str] = &["--ttl", "0.2", "--cache-size", "1M", "--prefetch", "off"];

fn small_chunks(original: &[u8]) -> Vec<u8> {
    packed(original, &["--codec", "zstd", "--chunk-size", "128K"])
}

/// Reads all of `range`, or fails.
fn read(file: &File, offset: usize, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset as u64)?;
    Ok(bytes)
}

/// Bytes no codec shortens, which say of every eight of them to which version they belong.
fn incompressible(version: u64, length: usize) -> Vec<u8> {
    let words = 0..length.div_ceil(8) as u64;
    let mut bytes: Vec<u8> = words
        .flat_map(|place| word(version, place).to_le_bytes())
        .collect();
    bytes.truncate(length);
    bytes
}

fn word(version: u64, place: u64) -> u64 {
    Random(version << 32 | place).next()
}

fn errno(result: io::Result<Vec<u8>>) -> i32 {
    let error = result.map(|bytes| bytes.len()).expect_err("an error");
    error.raw_os_error().unwrap()
}

#[test]
fn a_new_file_is_seen_and_a_removed_one_gone_when_the_time_to_live_is_over() {
    let source = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    // The kernel now remembers that there is none.
    assert!(!mounted.path("x").exists());
    assert_eq!(fs::read_dir(&mounted.mount_point).unwrap().count(), 0);
    let original = sample(300_000, 1);
    fs::write(source.path().join("x.warp"), small_chunks(&original)).unwrap();
    wait_until("the new file", || mounted.path("x").exists());
    assert!(fs::read(mounted.path("x")).unwrap() == original);
    let listed: Vec<_> = fs::read_dir(&mounted.mount_point).unwrap().collect();
    assert_eq!(listed.len(), 1);

    fs::remove_file(source.path().join("x.warp")).unwrap();
    wait_until("its end", || !mounted.path("x").exists());
    assert!(File::open(mounted.path("x")).is_err());
}

#[test]
fn a_removed_file_cannot_be_opened_even_within_the_time_to_live() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("x.warp"), small_chunks(b"gone soon")).unwrap();
    let mounted = Mounted::new(source.path(), LONG);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), b"gone soon");
    fs::remove_file(source.path().join("x.warp")).unwrap();
    let error = File::open(mounted.path("x")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
}

#[test]
fn a_file_replaced_by_rename_is_new_to_the_next_open_and_the_old_one_to_who_holds_it() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let (old, new) = (sample(20 * CHUNK, 1), sample(3 * CHUNK + 5, 2));
    fs::write(&path, small_chunks(&old)).unwrap();
    let mounted = Mounted::new(source.path(), LONG);
    let held = File::open(mounted.path("x")).unwrap();
    assert!(read(&held, 0, 4096).unwrap() == old[..4096]);

    fs::write(source.path().join("new"), small_chunks(&new)).unwrap();
    fs::rename(source.path().join("new"), &path).unwrap();
    assert!(fs::read(mounted.path("x")).unwrap() == new);
    assert_eq!(
        fs::metadata(mounted.path("x")).unwrap().len(),
        new.len() as u64
    );
    assert!(read(&held, 0, old.len()).unwrap() == old);
    forget_pages(&held);
    assert!(read(&held, 0, old.len()).unwrap() == old);
    assert_eq!(held.metadata().unwrap().len(), old.len() as u64);
    drop(held);
    assert!(fs::read(mounted.path("x")).unwrap() == new);
}

#[test]
fn fstat_of_a_replaced_file_answers_when_the_time_to_live_is_over() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    fs::write(&path, small_chunks(&sample(CHUNK, 1))).unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    let held = File::open(mounted.path("x")).unwrap();
    let before = held.metadata().unwrap();
    fs::write(source.path().join("new"), small_chunks(&sample(5, 2))).unwrap();
    fs::rename(source.path().join("new"), &path).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let after = held.metadata().unwrap();
    assert_eq!((after.len(), after.ino()), (before.len(), before.ino()));
    assert_eq!(fs::metadata(mounted.path("x")).unwrap().len(), 5);
}

#[test]
fn a_file_removed_while_it_is_open_is_read_to_its_end() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let original = sample(20 * CHUNK, 1);
    fs::write(&path, small_chunks(&original)).unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    let held = File::open(mounted.path("x")).unwrap();
    assert!(read(&held, 0, 4096).unwrap() == original[..4096]);
    fs::remove_file(&path).unwrap();
    wait_until("its end", || !mounted.path("x").exists());
    assert!(read(&held, 0, original.len()).unwrap() == original);
    assert_eq!(held.metadata().unwrap().len(), original.len() as u64);
}

#[test]
fn a_file_changed_in_place_is_stale_to_who_holds_it_and_new_to_the_next_open() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let (old, new) = (sample(20 * CHUNK, 1), sample(25 * CHUNK + 5, 2));
    fs::write(&path, small_chunks(&old)).unwrap();
    let mounted = Mounted::new(source.path(), LONG);
    let held = File::open(mounted.path("x")).unwrap();
    assert!(read(&held, 0, 4096).unwrap() == old[..4096]);
    fs::write(&path, small_chunks(&new)).unwrap();
    assert_eq!(errno(read(&held, 19 * CHUNK, 4096)), ESTALE);
    // The pages that were read before are still the old ones.
    assert!(read(&held, 0, 4096).unwrap() == old[..4096]);

    let mut opened = File::open(mounted.path("x")).unwrap();
    assert_eq!(opened.metadata().unwrap().len(), new.len() as u64);
    let mut bytes = Vec::new();
    opened.read_to_end(&mut bytes).unwrap();
    assert!(bytes == new);
    assert!(mounted.stats()["changed_errors"].as_u64().unwrap() > 0);
    let logged = mounted.logged();
    assert_eq!(
        logged.matches("changed while it is open").count(),
        1,
        "{logged}"
    );
    assert!(!logged.contains("ERROR"), "{logged}");
}

#[test]
fn who_holds_a_file_that_was_changed_in_place_never_gets_the_new_bytes() {
    // The same sizes everywhere: only the file's time says that it was changed.
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let (old, new) = (incompressible(1, 4 * CHUNK), incompressible(2, 4 * CHUNK));
    let arguments = ["--codec", "lz4", "--chunk-size", "128K"];
    let (old_packed, new_packed) = (packed(&old, &arguments), packed(&new, &arguments));
    assert_eq!(old_packed.len(), new_packed.len());
    fs::write(&path, &old_packed).unwrap();
    let mounted = Mounted::new(source.path(), LONG);
    let held = File::open(mounted.path("x")).unwrap();
    // The first two chunks are decoded now, the others are not.
    assert!(read(&held, 0, 4096).unwrap() == old[..4096]);
    assert!(read(&held, CHUNK, 4096).unwrap() == old[CHUNK..][..4096]);
    forget_pages(&held);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&new_packed, 0).unwrap();

    let opened = File::open(mounted.path("x")).unwrap();
    // Each reads pages that the other has read before. What was decoded of the old file before it was changed is still
    // right for who holds it; what was not is gone.
    for (page, decoded) in [(CHUNK, true), (2 * CHUNK, false)] {
        assert!(read(&opened, page, 4096).unwrap() == new[page..][..4096]);
        match read(&held, page, 4096) {
            Ok(bytes) => assert!(decoded && bytes == old[page..][..4096], "held at {page}"),
            error => assert_eq!(errno(error), ESTALE, "held at {page}"),
        }
    }
    for page in [8192, CHUNK + 8192, 3 * CHUNK] {
        let held = read(&held, page, 4096);
        assert!(held.is_err() || held.unwrap() == old[page..][..4096]);
        assert!(read(&opened, page, 4096).unwrap() == new[page..][..4096]);
    }
    // Its attributes are the old file's too.
    assert_eq!(held.metadata().unwrap().len(), old.len() as u64);
    assert!(fs::read(mounted.path("x")).unwrap() == new);
}

#[test]
fn readers_of_a_file_that_is_overwritten_over_and_over_never_get_a_mixture() {
    const LENGTH: usize = 6 * CHUNK;
    let length = |version: u64| match version % 2 {
        0 => LENGTH,
        _ => LENGTH / 2,
    };
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let arguments = ["--codec", "lz4", "--chunk-size", "128K"];
    let versions: Vec<Vec<u8>> = (0..8)
        .map(|version| packed(&incompressible(version, length(version)), &arguments))
        .collect();
    fs::write(&path, &versions[0]).unwrap();
    let mounted = Mounted::new(
        source.path(),
        &["--ttl", "0.001", "--cache-size", "1M", "--threads", "4"],
    );
    // A file that is half written when it is opened holds a mixture, so it is not opened then; it is read at any time.
    let writing = RwLock::new(());
    let (done, whole, stale) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let reader = |seed: u64| {
        let mut random = Random(seed);
        while !done.load(Ordering::Relaxed) {
            let opened = {
                let _at_rest = writing.read().unwrap();
                File::open(mounted.path("x"))
            };
            let Ok(file) = opened else {
                continue;
            };
            let mut version = None;
            for _ in 0..random.below(40) {
                let length = version.map_or(LENGTH / 2, length);
                let place = random.below((length / 8) as u64 - 512) as usize;
                if random.below(8) == 0 {
                    forget_pages(&file);
                }
                let bytes = match read(&file, place * 8, 4096) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        let end = error.kind() == io::ErrorKind::UnexpectedEof;
                        assert!(!end, "an early end at {} of {length}", place * 8);
                        stale.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                };
                for (at, bytes) in bytes.chunks_exact(8).enumerate() {
                    let found = u64::from_le_bytes(bytes.try_into().unwrap());
                    let place = (place + at) as u64;
                    let of = (0..8).find(|&version| word(version, place) == found);
                    let of = of.unwrap_or_else(|| panic!("no version's bytes at {}", place * 8));
                    let version = *version.get_or_insert(of);
                    assert_eq!(of, version, "a mixture at {}", place * 8);
                }
                whole.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..6)
            .map(|seed| scope.spawn(move || reader(seed)))
            .collect();
        // Nor does it matter who looks at it meanwhile.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = fs::metadata(mounted.path("x"));
            }
        });
        let start = Instant::now();
        for round in 1.. {
            if start.elapsed() > Duration::from_secs(6) || readers.iter().any(|r| r.is_finished()) {
                break;
            }
            {
                let _writing = writing.write().unwrap();
                let bytes = &versions[round % 8];
                // By turns in one piece, in pieces, and from a file cut to nothing.
                let file = File::options().write(true).open(&path).unwrap();
                match round % 3 {
                    0 => file.write_all_at(bytes, 0).unwrap(),
                    way => {
                        if way == 2 {
                            file.set_len(0).unwrap();
                        }
                        for (piece, bytes) in bytes.chunks(200_000).enumerate() {
                            file.write_all_at(bytes, piece as u64 * 200_000).unwrap();
                            std::thread::sleep(Duration::from_micros(300));
                        }
                    }
                }
                file.set_len(bytes.len() as u64).unwrap();
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    let (whole, stale) = (whole.into_inner(), stale.into_inner());
    assert!(whole > 100 && stale > 10, "{whole} whole, {stale} stale");
}

#[test]
fn a_file_cut_short_while_it_is_open_serves_what_it_still_holds() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let original = sample(20 * CHUNK, 1);
    let whole = small_chunks(&original);
    fs::write(&path, &whole).unwrap();
    let mounted = Mounted::new(source.path(), LONG);
    let held = File::open(mounted.path("x")).unwrap();
    assert!(read(&held, 18 * CHUNK, 4096).unwrap() == original[18 * CHUNK..][..4096]);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(whole.len() as u64 / 2)
        .unwrap();
    // What is gone is an error, what was read before stays.
    assert_eq!(errno(read(&held, 19 * CHUNK, 4096)), EIO);
    assert!(read(&held, 18 * CHUNK, 4096).unwrap() == original[18 * CHUNK..][..4096]);
    assert!(read(&held, 0, 8 * CHUNK).unwrap() == original[..8 * CHUNK]);

    let opened = File::open(mounted.path("x")).unwrap();
    assert_eq!(opened.metadata().unwrap().len(), original.len() as u64);
    assert!(read(&opened, 0, 8 * CHUNK).unwrap() == original[..8 * CHUNK]);
    for _ in 0..2 {
        assert_eq!(errno(read(&opened, 15 * CHUNK, 4096)), EIO);
    }
    let logged = mounted.logged();
    assert!(
        logged.contains("file ends inside a chunk's payload"),
        "{logged}"
    );
    // The mount goes on.
    fs::write(source.path().join("other"), "other").unwrap();
    assert_eq!(fs::read(mounted.path("other")).unwrap(), b"other");
}

#[test]
fn a_file_that_is_written_anew_from_nothing_is_not_taken_for_one_cut_short() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let (old, new) = (incompressible(1, 16 * CHUNK), incompressible(2, 16 * CHUNK));
    let arguments = ["--codec", "lz4", "--chunk-size", "128K"];
    let (old_packed, new_packed) = (packed(&old, &arguments), packed(&new, &arguments));
    fs::write(&path, &old_packed).unwrap();
    let mounted = Mounted::new(source.path(), LONG);
    let held = File::open(mounted.path("x")).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut file = File::create(&path).unwrap();
            for piece in new_packed.chunks(64 << 10) {
                file.write_all(piece).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        while !writer.is_finished() {
            for chunk in 0..16 {
                if let Ok(bytes) = read(&held, chunk * CHUNK, 4096) {
                    assert!(bytes == old[chunk * CHUNK..][..4096], "chunk {chunk}");
                }
            }
        }
    });
}

#[test]
fn a_file_cut_inside_its_table_shows_as_it_is() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    fs::write(&path, small_chunks(&sample(20 * CHUNK, 1))).unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    assert!(mounted.path("x").exists());
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(30)
        .unwrap();
    wait_until("the raw file", || mounted.path("x.warp").exists());
    wait_until("the end of the other", || !mounted.path("x").exists());
    assert_eq!(fs::read(mounted.path("x.warp")).unwrap().len(), 30);
    let logged = mounted.logged();
    assert!(
        logged.contains("x.warp") && logged.contains("shown as it is"),
        "{logged}"
    );
}

#[test]
fn a_touched_file_is_a_changed_one() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let original = sample(20 * CHUNK, 1);
    fs::write(&path, small_chunks(&original)).unwrap();
    let mounted = Mounted::new(source.path(), LONG);
    let held = File::open(mounted.path("x")).unwrap();
    assert!(read(&held, 0, 4096).unwrap() == original[..4096]);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    assert_eq!(errno(read(&held, 19 * CHUNK, 4096)), ESTALE);
    assert!(fs::read(mounted.path("x")).unwrap() == original);
    let times = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(times(&mounted.path("x")), times(&path));
}

#[test]
fn a_change_of_mode_or_name_leaves_open_files_as_they_are() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    let original = sample(20 * CHUNK, 1);
    fs::write(&path, small_chunks(&original)).unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    let held = File::open(mounted.path("x")).unwrap();
    common::shell(
        source.path(),
        "chmod 600 x.warp; mv x.warp y.warp; ln y.warp z.warp",
    );
    wait_until("the new name", || mounted.path("y").exists());
    assert!(read(&held, 0, original.len()).unwrap() == original);
    assert_eq!(held.metadata().unwrap().len(), original.len() as u64);
}

#[test]
fn rot_that_leaves_the_time_as_it_was_is_an_error_for_its_chunk_alone() {
    for codec in ["zstd", "lz4", "brotli", "snappy"] {
        let source = tempfile::tempdir().unwrap();
        let path = source.path().join("x.warp");
        let original = sample(20 * CHUNK, 1);
        fs::write(
            &path,
            packed(&original, &["--codec", codec, "--chunk-size", "128K"]),
        )
        .unwrap();
        let mounted = Mounted::new(source.path(), LONG);
        let held = File::open(mounted.path("x")).unwrap();
        assert!(read(&held, 0, 4096).unwrap() == original[..4096]);

        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let begins = payload_of(&file, 10);
        // Its first bytes: no codec can make anything of that.
        file.write_all_at(&[0xff; 12], begins).unwrap();
        file.set_modified(modified).unwrap();
        for _ in 0..2 {
            assert_eq!(errno(read(&held, 10 * CHUNK + 4096, 4096)), EIO, "{codec}");
            assert_eq!(errno(read(&held, 10 * CHUNK, 4096)), EIO, "{codec}");
        }
        assert!(
            read(&held, 0, 10 * CHUNK).unwrap() == original[..10 * CHUNK],
            "{codec}"
        );
        let behind = 11 * CHUNK;
        assert!(
            read(&held, behind, original.len() - behind).unwrap() == original[behind..],
            "{codec}"
        );
        let logged = mounted.logged();
        let lines: Vec<_> = logged
            .lines()
            .filter(|line| line.contains("ERROR"))
            .collect();
        assert_eq!(lines.len(), 1, "{logged}");
        let place = format!("chunk 10 (from byte {})", 10 * CHUNK);
        assert!(
            lines[0].contains("x.warp") && lines[0].contains(&place),
            "{logged}"
        );
    }
}

/// Where a version 2 file's chunk begins.
fn payload_of(file: &File, chunk: u64) -> u64 {
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    };
    let count = number(14) & 0xffff_ffff;
    18 + 16 * count + (0..chunk).map(|chunk| number(18 + 8 * chunk)).sum::<u64>()
}

#[test]
fn a_renamed_directory_takes_its_open_files_along() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir_all(source.path().join("a/b")).unwrap();
    let original = sample(20 * CHUNK, 1);
    fs::write(source.path().join("a/b/x.warp"), small_chunks(&original)).unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    let held = File::open(mounted.path("a/b/x")).unwrap();
    let inside = File::open(mounted.path("a/b")).unwrap();
    fs::rename(source.path().join("a"), source.path().join("c")).unwrap();
    wait_until("the new name", || mounted.path("c/b/x").exists());
    assert!(!mounted.path("a").exists());
    assert!(read(&held, 0, original.len()).unwrap() == original);
    assert!(fs::read(mounted.path("c/b/x")).unwrap() == original);
    // Who has the directory open, or works in it, finds the file through it.
    let found = rustix::fs::openat(
        &inside,
        "x",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    assert!(read(&File::from(found.unwrap()), 0, 4096).unwrap() == original[..4096]);
}

#[test]
fn a_directory_replaced_by_another_is_the_other_one() {
    let source = tempfile::tempdir().unwrap();
    for (directory, text) in [("a", "old"), ("b", "new")] {
        fs::create_dir(source.path().join(directory)).unwrap();
        fs::write(
            source.path().join(directory).join("x.warp"),
            small_chunks(text.as_bytes()),
        )
        .unwrap();
    }
    let mounted = Mounted::new(source.path(), SHORT);
    assert_eq!(fs::read(mounted.path("a/x")).unwrap(), b"old");
    common::shell(source.path(), "mv a gone; mv b a");
    wait_until("the other one", || {
        fs::read(mounted.path("a/x")).is_ok_and(|text| text == b"new")
    });
}

#[test]
fn a_directory_that_was_replaced_or_removed_is_listed_as_it_is_within_the_time_to_live() {
    for ttl in ["600", "forever"] {
        let source = tempfile::tempdir().unwrap();
        common::shell(source.path(), "mkdir a b; touch a/old b/new");
        let mounted = Mounted::new(source.path(), &["--ttl", ttl]);
        assert_eq!(common::names(&mounted.path("a")), ["old"]);
        common::shell(source.path(), "mv a gone; mv b a");
        assert_eq!(common::names(&mounted.path("a")), ["new"]);
        common::shell(source.path(), "rm -r a");
        let error = fs::read_dir(mounted.path("a")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}

#[test]
fn a_plain_file_that_grows_is_followed_and_one_changed_in_place_is_read_as_it_is() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("log");
    fs::write(&path, "one\n").unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    let mut held = File::open(mounted.path("log")).unwrap();
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\n");
    let mut file = File::options().append(true).open(&path).unwrap();
    for line in ["two\n", "three\n"] {
        file.write_all(line.as_bytes()).unwrap();
        let mut more = String::new();
        wait_until("the next line", || {
            held.read_to_string(&mut more).unwrap();
            more == line
        });
    }
    fs::write(&path, "ONE\nTWO\n").unwrap();
    assert_eq!(fs::read(mounted.path("log")).unwrap(), b"ONE\nTWO\n");
    wait_until("the new bytes on the old handle", || {
        read(&held, 0, 8).is_ok_and(|bytes| bytes == b"ONE\nTWO\n")
    });
}

/// An overlay, whose files the kernel does not read for a mount.
struct Overlay(tempfile::TempDir);

impl Overlay {
    fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        let script = "mkdir -p lower/d upper work merged
            echo one > lower/d/a
            mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged";
        common::shell(own.path(), script);
        Self(own)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("merged")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let umount = std::process::Command::new("umount")
            .arg(self.path())
            .status();
        assert!(umount.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_plain_file_written_to_in_place_is_seen_by_those_who_hold_it_whoever_reads_it() {
    let source = Overlay::new();
    let path = source.path().join("log");
    fs::write(&path, "one\n").unwrap();
    let mounted = Mounted::new(&source.path(), SHORT);
    let held = File::open(mounted.path("log")).unwrap();
    assert_eq!(read(&held, 0, 4).unwrap(), b"one\n");
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"two\n", 0).unwrap();
    wait_until("the new bytes", || read(&held, 0, 4).unwrap() == b"two\n");
    assert!(mounted.stats()["bytes_read"].as_u64().unwrap() > 0);
}

#[test]
fn who_is_in_a_directory_of_an_overlay_stays_there_when_it_is_copied_up() {
    for time_to_live in [LONG, SHORT] {
        let source = Overlay::new();
        let mounted = Mounted::new(&source.path(), time_to_live);
        let inside = mounted.path("d");
        let script = format!(
            "cat a
            echo new > {source}/b
            echo more >> {source}/a
            for turn in 1 2; do
                ls .
                cat a b
                sleep 0.3
                stat . {inside} > /dev/null
            done",
            source = source.path().join("d").display(),
            inside = inside.display()
        );
        let told = common::shell(&inside, &script);
        let expected = ["one\n", &"a\nb\none\nmore\nnew\n".repeat(2)].concat();
        assert_eq!(told, expected);
    }
}

#[test]
fn a_plain_file_that_grew_or_shrank_in_place_is_read_to_its_end_within_the_time_to_live() {
    let stacked = Overlay::new();
    let plain = tempfile::tempdir().unwrap();
    for source in [&stacked.path(), plain.path()] {
        let path = source.join("log");
        fs::write(&path, "one\n").unwrap();
        let mounted = Mounted::new(source, LONG);
        for text in ["one\ntwo\n", "one\ntwo\nthree\n", "four\n"] {
            assert!(fs::metadata(mounted.path("log")).unwrap().is_file());
            fs::write(&path, text).unwrap();
            let mut opened = File::open(mounted.path("log")).unwrap();
            assert_eq!(opened.metadata().unwrap().len(), text.len() as u64);
            let mut shown = String::new();
            opened.read_to_string(&mut shown).unwrap();
            assert_eq!(shown, text);
        }
        // However fast it grows, opening it succeeds.
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = File::options().append(true).open(&path).unwrap();
                while !done.load(Ordering::Relaxed) {
                    file.write_all(b"more\n").unwrap();
                }
            });
            let least = fs::metadata(&path).unwrap().len() as usize;
            let read: Vec<_> = (0..100).map(|_| fs::read(mounted.path("log"))).collect();
            done.store(true, Ordering::Relaxed);
            assert!(
                read.iter()
                    .all(|read| read.as_ref().unwrap().len() >= least)
            );
        });
    }
}

#[test]
fn a_held_file_that_was_replaced_tells_its_own_attributes() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("x.warp");
    fs::write(&path, small_chunks(&sample(3 * CHUNK, 1))).unwrap();
    common::shell(source.path(), "setfattr -n user.note -v old x.warp");
    let mounted = Mounted::new(source.path(), SHORT);
    let held = File::open(mounted.path("x")).unwrap();
    let new = source.path().join("new");
    fs::write(&new, small_chunks(&sample(9 * CHUNK, 2))).unwrap();
    fs::rename(&new, &path).unwrap();
    wait_until("the new file", || {
        fs::metadata(mounted.path("x")).unwrap().len() == 9 * CHUNK as u64
    });
    let value = |name: &str| {
        let mut value = [0; 100];
        let length = rustix::fs::fgetxattr(&held, name, &mut value[..]).unwrap();
        String::from_utf8(value[..length].to_vec()).unwrap()
    };
    assert_eq!(value("user.note"), "old");
    assert_eq!(value("user.warpfs.checksum"), "blake3");
    let mut names = [0; 1000];
    let length = rustix::fs::flistxattr(&held, &mut names[..]).unwrap();
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    assert!(names.contains("user.note\0") && names.contains("user.warpfs.ratio\0"));
}

#[test]
fn files_that_another_program_has_a_lease_on_are_waited_for() {
    let source = tempfile::tempdir().unwrap();
    let original = sample(3 * CHUNK, 1);
    fs::write(source.path().join("x.warp"), small_chunks(&original)).unwrap();
    fs::write(source.path().join("plain"), "plain").unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    let script = "import fcntl, os, signal
held = [os.open(name, os.O_RDWR) for name in ('x.warp', 'plain')]
def let_go(*_):
    for f in held:
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, let_go)
for f in held:
    fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
while True:
    signal.pause()";
    for name in ["plain", "x"] {
        let mut holder = std::process::Command::new("python3")
            .args(["-c", script])
            .current_dir(source.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 4];
        holder.stdout.take().unwrap().read_exact(&mut said).unwrap();
        let found = fs::read(mounted.path(name));
        holder.kill().unwrap();
        holder.wait().unwrap();
        let expected = if name == "x" {
            &original
        } else {
            b"plain".as_slice()
        };
        assert!(found.unwrap() == *expected, "{name}");
    }
}

#[test]
fn a_lease_that_is_not_let_go_is_an_error_after_half_a_second() {
    let source = tempfile::tempdir().unwrap();
    let original = sample(3 * CHUNK, 1);
    fs::write(source.path().join("x.warp"), small_chunks(&original)).unwrap();
    fs::write(source.path().join("plain"), "plain").unwrap();
    let mounted = Mounted::new(source.path(), LONG);
    let script = "import fcntl, os, signal
signal.signal(signal.SIGIO, signal.SIG_IGN)
held = [os.open(name, os.O_RDWR) for name in ('x.warp', 'plain')]
for f in held:
    fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
while True:
    signal.pause()";
    for name in ["plain", "x"] {
        // Known before: who asks what it is waits as well.
        fs::metadata(mounted.path(name)).unwrap();
        let holder = std::process::Command::new("python3")
            .args(["-c", script])
            .current_dir(source.path())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let mut holder = Running(holder.unwrap());
        let mut said = [0; 4];
        let output = holder.0.stdout.as_mut().unwrap();
        output.read_exact(&mut said).unwrap();
        let asked = Instant::now();
        let refused = File::open(mounted.path(name));
        let waited = asked.elapsed();
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(EAGAIN), "{name}");
        // The kernel gives who holds it 45 seconds.
        let half_a_second = Duration::from_millis(500)..Duration::from_secs(10);
        assert!(half_a_second.contains(&waited), "{name}: {waited:?}");
        drop(holder);
        let found = fs::read(mounted.path(name)).unwrap();
        assert!(
            found == *if name == "x" { &original[..] } else { b"plain" },
            "{name}"
        );
    }
}

#[test]
fn a_file_becomes_packed_or_plain_under_the_same_name() {
    let source = tempfile::tempdir().unwrap();
    let original = sample(300_000, 1);
    fs::write(source.path().join("x"), &original[..1000]).unwrap();
    let mounted = Mounted::new(source.path(), SHORT);
    assert!(fs::read(mounted.path("x")).unwrap() == original[..1000]);
    fs::write(source.path().join("x.warp"), small_chunks(&original)).unwrap();
    fs::remove_file(source.path().join("x")).unwrap();
    wait_until("the packed file", || {
        fs::read(mounted.path("x")).is_ok_and(|bytes| bytes == original)
    });
    // And back: the plain file has the name, the packed one shows raw.
    fs::write(source.path().join("x"), &original[..10]).unwrap();
    wait_until("the plain file", || {
        fs::read(mounted.path("x")).is_ok_and(|bytes| bytes == original[..10])
    });
    wait_until("the raw file", || {
        fs::read(mounted.path("x.warp")).is_ok_and(|bytes| bytes.starts_with(b"PRAW"))
    });
}

#[test]
fn a_single_file_mounted_onto_a_file_can_be_changed_and_replaced() {
    for ttl in ["0.2", "600"] {
        let source = tempfile::tempdir().unwrap();
        let path = source.path().join("x.warp");
        let target = source.path().join("target");
        fs::write(&target, "").unwrap();
        let versions: Vec<_> = (0..3)
            .map(|version| sample((20 - version) * CHUNK, version as u64))
            .collect();
        fs::write(&path, small_chunks(&versions[0])).unwrap();
        let mounted = Mounted::at(&path, &target, &["--ttl", ttl, "--prefetch", "off"]);
        assert!(fs::read(&mounted.mount_point).unwrap() == versions[0]);
        let held = File::open(&mounted.mount_point).unwrap();

        fs::write(&path, small_chunks(&versions[1])).unwrap();
        // The kernel has one inode for it, so there is no second state beside one that is open.
        assert!(fs::read(&mounted.mount_point).is_err());
        assert_eq!(held.metadata().unwrap().len(), versions[0].len() as u64);
        if let Ok(bytes) = read(&held, 18 * CHUNK, 4096) {
            assert!(bytes == versions[0][18 * CHUNK..][..4096]);
        }
        drop(held);
        wait_until("the changed file", || {
            fs::read(&mounted.mount_point).is_ok_and(|bytes| bytes == versions[1])
        });
        fs::write(source.path().join("new"), small_chunks(&versions[2])).unwrap();
        fs::rename(source.path().join("new"), &path).unwrap();
        wait_until("the new file", || {
            fs::read(&mounted.mount_point).is_ok_and(|bytes| bytes == versions[2])
        });
        let shown = fs::metadata(&mounted.mount_point).unwrap();
        assert_eq!(shown.len(), versions[2].len() as u64);
    }
}

#[test]
fn a_name_never_shows_another_file_that_got_the_inode_number_of_its_own() {
    let source = tempfile::tempdir().unwrap();
    let contents: Vec<_> = (0..3).map(|seed| sample(50_000, seed)).collect();
    let [first, second, other] = [0, 1, 2].map(|at: usize| small_chunks(&contents[at]));
    let one = source.path().join("one.warp");
    fs::write(&one, first).unwrap();
    let number = fs::metadata(&one).unwrap().ino();
    let mounted = Mounted::new(source.path(), LONG);
    assert!(fs::read(mounted.path("one")).unwrap() == contents[0]);
    fs::write(source.path().join("new"), second).unwrap();
    fs::rename(source.path().join("new"), &one).unwrap();
    // Most file systems give a number that has become free to one of the next files.
    let mut files = (0..200).map(|at| format!("other-{at}"));
    let reused = files.find(|name| {
        let path = source.path().join(format!("{name}.warp"));
        fs::write(&path, &other).unwrap();
        fs::metadata(&path).unwrap().ino() == number
    });
    match reused {
        Some(name) => assert!(fs::read(mounted.path(&name)).unwrap() == contents[2]),
        None => common::left_out("no inode number is given again in the temporary directory"),
    }
    assert!(fs::read(mounted.path("one")).unwrap() == contents[1]);
}

#[test]
fn a_file_that_grew_is_whole_though_a_listing_was_cut_off_before_it() {
    const FILES: usize = 200;
    let source = tempfile::tempdir().unwrap();
    let (old, new) = (sample(3000, 1), sample(9000, 2));
    let path = |number: usize| source.path().join(format!("{number:03}.warp"));
    let (old_packed, new_packed) = (small_chunks(&old), small_chunks(&new));
    for number in 0..FILES {
        fs::write(path(number), &old_packed).unwrap();
    }
    let mounted = Mounted::new(source.path(), LONG);
    // Who looks at each entry has attributes told with the names from then on.
    for _ in 0..2 {
        common::shell(&mounted.mount_point, "ls -l");
    }
    for number in 0..FILES {
        fs::write(path(number), &new_packed).unwrap();
    }
    let directory = File::open(&mounted.mount_point).unwrap();
    let mut buffer = Vec::with_capacity(4096);
    let mut entries = rustix::fs::RawDir::new(&directory, buffer.spare_capacity_mut());
    entries.next().unwrap().unwrap();
    for number in 0..FILES {
        let shown = fs::read(mounted.path(format!("{number:03}"))).unwrap();
        assert!(shown == new, "{number}: {} bytes", shown.len());
    }
}

/// A server that answers nothing until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(mounted: &Mounted) -> Self {
        let server = Pid::from_child(&mounted.server);
        kill_process(server, Signal::STOP).unwrap();
        Self(server)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

#[test]
fn a_file_that_grew_is_whole_while_a_listing_that_tells_of_it_is_held_up() {
    let source = tempfile::tempdir().unwrap();
    let (old, new) = (sample(3000, 1), sample(9000, 2));
    for number in 0..16 {
        let path = source.path().join(format!("{number}.warp"));
        fs::write(path, small_chunks(&old)).unwrap();
        fs::write(source.path().join(format!("place{number}")), "").unwrap();
    }
    // What is listed last is another mount, whose server is made to keep whoever looks at it waiting.
    let listed = fs::read_dir(source.path()).unwrap();
    let places = listed.map(|entry| entry.unwrap().path());
    let place = places.filter(|path| path.extension().is_none()).last();
    let inner = tempfile::tempdir().unwrap();
    let packed = inner.path().join("x.warp");
    fs::write(&packed, small_chunks(&old)).unwrap();
    let inner = Mounted::at(&packed, &place.unwrap(), &[]);
    let mounted = Mounted::new(source.path(), LONG);
    // Who looks at each entry has attributes told with the names from then on.
    for _ in 0..2 {
        common::shell(&mounted.mount_point, "ls -l");
    }
    for number in 0..16 {
        let path = source.path().join(format!("{number}.warp"));
        fs::write(path, small_chunks(&new)).unwrap();
    }
    let mut command = Command::new("ls");
    command.arg("-l").arg(&mounted.mount_point);
    // It cannot be killed before it is answered.
    let mut listing;
    let stopped = Stopped::new(&inner);
    listing = Running(command.stdout(Stdio::null()).spawn().unwrap());
    std::thread::sleep(Duration::from_millis(500));
    assert!(listing.0.try_wait().unwrap().is_none());
    for number in 0..16 {
        let shown = fs::read(mounted.path(number.to_string())).unwrap();
        assert!(shown == new, "{number}: {} bytes", shown.len());
    }
    drop(stopped);
    assert!(listing.0.wait().unwrap().success());
}
