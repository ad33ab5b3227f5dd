//! Files that begin with "WARP", as releases 0.1.2 to 0.7.5 of the Python package wrote them (`docs/OLDER_FORMATS.md`): read
//! whole and in pieces by the library, by every command and through a mount. Those of no known release are refused by name, and
//! what is wrong with one is told before memory is taken for it.
//!
//! The files of `tests/data/older` were made by `scripts/older-vectors` with the releases themselves; `scripts/interop` makes
//! more, of random contents.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use common::{Mounted, Random, run, shell, vector, warpfs};
use rustix::fs::SeekFrom;
use serde_json::Value;
use warpfs::info::Info;
use warpfs::{Engine, EngineOptions, ErrorKind, Reader};

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
/// The releases' chunks are this long, but for the last.
const CHUNK: usize = 256 << 10;

struct Vector {
    name: String,
    path: PathBuf,
    size: u64,
    sha256: String,
}

impl Vector {
    fn shown(&self) -> &str {
        self.name.strip_suffix(".warp").unwrap()
    }

    /// What it decodes to, checked.
    fn original(&self) -> Vec<u8> {
        let output = run([Path::new("unpack"), Path::new("-qc"), &self.path]);
        assert!(output.status.success(), "{}", self.name);
        assert_eq!(output.stdout.len() as u64, self.size, "{}", self.name);
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("original"), &output.stdout).unwrap();
        let sum = shell(place.path(), "sha256sum original");
        assert!(sum.starts_with(&self.sha256), "{}", self.name);
        output.stdout
    }
}

fn vectors() -> Vec<Vector> {
    let manifest = fs::read(vector("older/manifest.json")).unwrap();
    let entries: Vec<Value> = serde_json::from_slice(&manifest).unwrap();
    assert!(entries.len() > 35);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    entries
        .iter()
        .map(|entry| Vector {
            name: text(&entry["file"]),
            path: vector("older").join(text(&entry["file"])),
            size: entry["size"].as_u64().unwrap(),
            sha256: text(&entry["sha256"]),
        })
        .collect()
}

fn named(name: &str) -> Vec<u8> {
    fs::read(vector("older").join(name)).unwrap()
}

fn several() -> Vec<u8> {
    let all = vectors();
    let of = all
        .iter()
        .find(|vector| vector.name == "0.1.2-zstd-several.warp");
    of.unwrap().original()
}

/// Runs the command where it cannot have more than 64 MiB of data, stacks included.
fn within_64_mib(arguments: &[&str], file: &Path) -> Output {
    Command::new("sh")
        .args(["-c", "ulimit -d 65536; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_warpfs"))
        .args(arguments)
        .arg(file)
        .output()
        .unwrap()
}

fn small_engine() -> Arc<Engine> {
    Engine::new(&EngineOptions {
        cache_size: 4 << 20,
        threads: 1,
        ..EngineOptions::default()
    })
    .unwrap()
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_file_of_every_release_is_read_whole_and_in_any_part() {
    let mut random = Random(1);
    for vector in vectors() {
        let name = &vector.name;
        let original = vector.original();
        let verified = run([Path::new("verify"), Path::new("-q"), &vector.path]);
        assert!(verified.status.success(), "{name}: {}", says(&verified));

        let info = Info::read(&vector.path).unwrap();
        assert_eq!(info.original_size(), vector.size, "{name}");
        assert!(name.starts_with(&info.container().to_string()) || name.starts_with("0.7.5"));
        let chunks: Vec<_> = info.chunks().collect();
        assert_eq!(chunks.len(), info.chunk_count() as usize);
        let sum: u64 = chunks
            .iter()
            .map(|chunk| chunk.original_size.unwrap())
            .sum();
        assert_eq!(sum, vector.size, "{name}");
        for chunk in chunks {
            assert!(info.encodings().contains(chunk.encoding), "{name}");
        }

        let reader = Reader::open(&vector.path).unwrap();
        assert_eq!(reader.len(), vector.size);
        for _ in 0..20 {
            let from = random.below(vector.size + 10) as usize;
            let mut bytes = vec![0; random.below(100_000) as usize];
            let read = reader.read_at(&mut bytes, from as u64).unwrap();
            let end = original.len().min(from + bytes.len());
            let expected = original.get(from..end).unwrap_or_default();
            assert!(bytes[..read] == *expected, "{name} at {from}");
        }
        let (from, to) = (original.len() / 3, original.len() / 3 * 2);
        let range = format!("--range={from}..{to}");
        let part = run([
            Path::new("unpack"),
            Path::new("-qc"),
            Path::new(&range),
            &vector.path,
        ]);
        assert!(part.stdout == original[from..to], "{name}: {}", says(&part));
    }
}

#[test]
fn a_mount_shows_them_as_their_originals_with_their_sizes_holes_and_codecs() {
    let mounted = Mounted::new(&vector("older"), &[]);
    for vector in vectors() {
        let name = vector.shown();
        let path = mounted.path(name);
        assert_eq!(fs::metadata(&path).unwrap().len(), vector.size, "{name}");
        assert!(!mounted.path(&vector.name).exists(), "{name}");
        let original = vector.original();
        assert!(fs::read(&path).unwrap() == original, "{name}");
        let file = File::open(&path).unwrap();
        for boundary in (CHUNK..original.len())
            .step_by(CHUNK)
            .chain([original.len()])
        {
            let from = boundary.saturating_sub(3);
            let mut bytes = [0; 8];
            let read = file.read_at(&mut bytes, from as u64).unwrap();
            let expected = &original[from..original.len().min(from + 8)];
            assert_eq!(&bytes[..read], expected, "{name} at {from}");
        }
    }
    let codec = |name: &str| {
        let mut value = [0; 64];
        let path = mounted.path(name);
        let length = rustix::fs::getxattr(path, "user.warpfs.codec", &mut value[..]).unwrap();
        String::from_utf8_lossy(&value[..length]).into_owned()
    };
    assert_eq!(codec("0.1.2-lz4-several"), "lz4");
    assert_eq!(codec("0.7.0-stored-several"), "stored+zeros");
    assert_eq!(codec("0.7.1-zstd-several"), "zstd+zeros");
    assert_eq!(codec("0.7.5-throughput-several"), "lz4-block+zeros");
    for name in [
        "0.1.2-zstd-several",
        "0.7.0-snappy-several",
        "0.7.1-lz4-several",
    ] {
        let file = File::open(mounted.path(name)).unwrap();
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap();
        let data = rustix::fs::seek(&file, SeekFrom::Data(hole)).unwrap();
        assert_eq!((hole, data), (CHUNK as u64, 2 * CHUNK as u64), "{name}");
    }
}

#[test]
fn trees_of_them_are_unpacked_verified_listed_and_not_packed_again() {
    let place = tempfile::tempdir().unwrap();
    let source = vector("older");
    let source = source.to_str().unwrap();
    let target = |name: &str| place.path().join(name);
    for arguments in [
        vec!["verify", "-qr", source],
        vec!["info", "-r", source],
        vec![
            "unpack",
            "-qr",
            "-o",
            target("out").to_str().unwrap(),
            source,
        ],
        vec![
            "pack",
            "-qr",
            "-o",
            target("again").to_str().unwrap(),
            source,
        ],
    ] {
        let output = run(&arguments);
        assert!(output.status.success(), "{arguments:?}: {}", says(&output));
    }
    for vector in vectors() {
        let unpacked = fs::read(target("out").join(vector.shown())).unwrap();
        assert!(unpacked == vector.original(), "{}", vector.name);
        let left = fs::read(target("again").join(&vector.name)).unwrap();
        assert!(left == fs::read(&vector.path).unwrap(), "{}", vector.name);
    }
    let packed = target("copy.warp");
    fs::write(&packed, named("0.7.1-zstd-several.warp")).unwrap();
    let again = warpfs().args(["pack", "-q"]).arg(&packed).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(says(&again).contains("already"), "{}", says(&again));

    let info = run(["info", "-r", "--json", source]);
    let mut listed: Vec<Value> = serde_json::from_slice(&info.stdout).unwrap();
    let sums = listed.pop().unwrap();
    assert_eq!(sums["packed"]["files"], vectors().len());
    assert_eq!(listed.len(), vectors().len());
    for entry in &listed {
        assert!(["0.1.2", "0.7.0", "0.7.1"].contains(&entry["version"].as_str().unwrap()));
    }
}

#[test]
fn files_of_no_known_release_are_refused_by_name_and_shown_as_they_are() {
    let place = tempfile::tempdir().unwrap();
    let unknown = [
        (
            "nine.warp",
            &b"WARP\x09\0\0\0\x10\0\0\0\0\0"[..],
            "version byte 9)",
        ),
        (
            "two.warp",
            b"WARP\x02\x07\0\0\x10\0\0\0\0\0",
            "version byte 2, then 7)",
        ),
    ];
    for (name, bytes, why) in unknown {
        let path = place.path().join(name);
        fs::write(&path, bytes).unwrap();
        let why = format!("a .warp file of an unknown release (starts with WARP, {why}");
        for command in ["info", "verify", "unpack"] {
            let output = warpfs().args([command, "-q"]).arg(&path).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{command}");
            assert_eq!(says(&output).lines().count(), 1);
            assert!(says(&output).contains(&why), "{command}: {}", says(&output));
        }
    }
    let mounted = Mounted::new(place.path(), &[]);
    for (name, bytes, why) in unknown {
        assert!(fs::read(mounted.path(name)).unwrap() == bytes);
        assert!(!mounted.path(name.strip_suffix(".warp").unwrap()).exists());
        let logged = mounted.logged();
        assert_eq!(
            logged.lines().filter(|line| line.contains(why)).count(),
            1,
            "{logged}"
        );
    }
}

/// A chunk's header in the layout of 0.7.1.
fn chunk(id: u8, original: u32, packed: u32) -> Vec<u8> {
    [&[id][..], &original.to_le_bytes(), &packed.to_le_bytes()].concat()
}

const START: &[u8] = b"WARP\x02\0\0\0\x04\0\0\0\0\0";

#[test]
fn sizes_that_cannot_be_true_are_refused_before_memory_is_taken_for_them() {
    let place = tempfile::tempdir().unwrap();
    let big = u32::MAX;
    let hostile = [
        ("payload", [START, &chunk(1, 1, big), b"x"].concat()),
        ("stored", [START, &chunk(4, big, big), b"x"].concat()),
        ("unlike", [START, &chunk(4, 2, 3), b"abc"].concat()),
        ("zstd", [START, &chunk(1, big, 4), b"abcd"].concat()),
        ("lz4", [START, &chunk(2, big, 4), b"abcd"].concat()),
        (
            "frame",
            [START, &chunk(2, big, 8), b"\x04\x22\x4d\x18abcd"].concat(),
        ),
        ("snappy", [START, &chunk(3, big, 4), b"abcd"].concat()),
        ("zeros", [START, &chunk(5, big, 4), b"abcd"].concat()),
        ("nothing", [START, &chunk(5, 0, 0)].concat()),
        ("unknown", [START, &chunk(6, 4, 4), b"abcd"].concat()),
        ("header", [START, &chunk(5, 4, 0)[..8]].concat()),
        ("hole", [START, &[0; 4096]].concat()),
        (
            "sum",
            [
                b"WARP\x01\x03\0\0\0\x01\0\0\0\0\0\0\0\x02",
                &[0, 0, 0, 3, 0, 0, 0, 4][..],
                b"abcd",
            ]
            .concat(),
        ),
        ("less", b"WARP\x01\x03\0\0\0\x01\0\0\0\0\0\0\0\x02".to_vec()),
    ];
    for (name, bytes) in &hostile {
        let path = place.path().join(format!("{name}.warp"));
        fs::write(&path, bytes).unwrap();
        for command in ["verify", "unpack"] {
            let output = within_64_mib(&[command, "-q", "--threads", "2"], &path);
            assert_eq!(output.status.code(), Some(1), "{command} {name}");
            assert_eq!(
                says(&output).lines().count(),
                1,
                "{command} {name}: {}",
                says(&output)
            );
            assert!(!place.path().join(name).exists(), "{command} {name}");
        }
    }
    // The hole of a sparse file costs nothing, and is no chain of chunks.
    let file = OpenOptions::new()
        .write(true)
        .open(place.path().join("hole.warp"))
        .unwrap();
    file.set_len(1 << 42).unwrap();

    let mounted = Mounted::new(place.path(), &["--cache-size", "32M"]);
    for (name, _) in &hostile {
        let read = fs::read(mounted.path(name));
        let error = read.map(|bytes| bytes.len()).expect_err(name);
        assert_eq!(error.raw_os_error(), Some(EIO), "{name}");
    }
    assert!(
        mounted.peak_resident() < 96 << 20,
        "{}",
        mounted.peak_resident()
    );
}

#[test]
fn four_gibibytes_of_zeros_in_23_bytes_are_read_in_little_memory() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("zeros.warp");
    fs::write(&path, [START, &chunk(5, u32::MAX, 0)].concat()).unwrap();
    let verified = within_64_mib(&["verify", "-q"], &path);
    assert!(verified.status.success(), "{}", says(&verified));
    let reader = small_engine().open(&path).unwrap();
    let mut bytes = [1; 4096];
    for offset in [0, 1 << 31, u64::from(u32::MAX) - 4096] {
        assert_eq!(reader.read_at(&mut bytes, offset).unwrap(), 4096);
        assert!(bytes.iter().all(|&byte| byte == 0));
    }
    assert_eq!(reader.next_data(0).unwrap(), None);
}

#[test]
fn files_cut_anywhere_are_refused_by_the_commands_and_serve_what_they_hold() {
    let original = several();
    let engine = small_engine();
    let place = tempfile::tempdir().unwrap();
    for name in [
        "0.1.2-zstd-several.warp",
        "0.7.0-zstd-several.warp",
        "0.7.0-zstd-several-front.warp",
        "0.7.1-zstd-several.warp",
        "0.7.5-throughput-several.warp",
    ] {
        let whole = named(name);
        let info = Info::read(vector("older").join(name)).unwrap();
        let ends: Vec<_> = info
            .chunks()
            .map(|chunk| {
                (
                    chunk.packed_offset + chunk.packed_size,
                    chunk.original_offset,
                )
            })
            .collect();
        let near = ends.iter().flat_map(|(end, _)| end - 3..end + 14);
        let lengths = (0..40).chain(near).chain([whole.len() as u64 - 1]);
        for length in lengths.filter(|&length| length < whole.len() as u64) {
            let path = place.path().join(format!("{length}-{name}"));
            fs::write(&path, &whole[..length as usize]).unwrap();
            // Where nothing says how large the original is, a file cut between two chunks is a shorter file.
            let between = length == 14 || ends.iter().any(|&(end, _)| end == length);
            let silent = between && name.starts_with("0.7.1") | name.starts_with("0.7.5");
            let told_whole = Info::read(&path).is_ok_and(|info| info.cut().is_none());
            assert_eq!(told_whole, silent, "{name} cut to {length}");
            if let Ok(reader) = engine.open(&path) {
                let held = ends.iter().take_while(|&&(end, _)| end <= length).count();
                let held = ends
                    .get(held)
                    .map_or(original.len() as u64, |(_, start)| start.unwrap());
                let mut bytes = vec![0; original.len()];
                let mut read = 0;
                while let Ok(more @ 1..) = reader.read_at(&mut bytes[read..], read as u64) {
                    read += more;
                }
                assert_eq!(read as u64, held, "{name} cut to {length}");
                assert!(bytes[..read] == original[..read], "{name} cut to {length}");
                let end = reader.read_at(&mut [0; 1], held);
                assert!(
                    silent || end.unwrap_err().is_damage(),
                    "{name} cut to {length}"
                );
            }
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn flipped_bytes_are_refused_or_decoded_but_nothing_panics_or_takes_memory() {
    let engine = small_engine();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("flipped.warp");
    let mut random = Random(5);
    let mut refused = 0;
    for vector in vectors() {
        let whole = fs::read(&vector.path).unwrap();
        for round in 0..40 {
            let mut bytes = whole.clone();
            let at = match round {
                0..30 => random.below(whole.len().min(40) as u64),
                _ => random.below(whole.len() as u64),
            };
            bytes[at as usize] ^= 1 << random.below(8);
            fs::write(&path, &bytes).unwrap();
            let _ = Info::read(&path);
            let outcome = engine.open(&path).and_then(|reader| {
                let mut bytes = [0; 4096];
                for step in 0..8 {
                    reader.read_at(&mut bytes, reader.len().min(1 << 20) / 8 * step)?;
                }
                Ok(())
            });
            if let Err(error) = outcome {
                assert!(
                    error.is_damage() || matches!(error.kind(), ErrorKind::OverBudget { .. }),
                    "{} byte {at}: {error}",
                    vector.name
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn a_file_cut_while_it_is_open_is_one_that_was_changed_and_opened_again_it_serves_what_it_holds() {
    let original = several();
    for name in [
        "0.1.2-lz4-several.warp",
        "0.7.0-zstd-several-front.warp",
        "0.7.1-lz4-several.warp",
    ] {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(name);
        fs::write(&path, named(name)).unwrap();
        let engine = small_engine();
        let reader = engine.open(&path).unwrap();
        let last = Info::read(&path).unwrap().chunks().last().unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(last.packed_offset + 20).unwrap();
        let mut bytes = vec![0; CHUNK];
        let error = reader.read_at(&mut bytes, 0).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Changed),
            "{name}: {error}"
        );
        let again = engine.open(&path).unwrap();
        assert_eq!(again.read_at(&mut bytes, 0).unwrap(), CHUNK, "{name}");
        assert!(bytes == original[..CHUNK], "{name}");
    }
}

#[test]
fn a_file_being_rewritten_in_place_with_chunks_of_the_same_sizes_never_shows_new_bytes_to_who_has_it_open()
 {
    const LENGTH: usize = 64 << 10;
    let stored = |fill: u8, count: usize| -> Vec<u8> {
        let payload = [fill; LENGTH];
        let one = [chunk(4, LENGTH as u32, LENGTH as u32), payload.to_vec()].concat();
        [START, &one.repeat(count)].concat()
    };
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.warp");
    fs::write(&path, stored(b'a', 8)).unwrap();
    let reader = small_engine().open(&path).unwrap();
    let mut bytes = [0; 4096];
    assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), 4096);
    assert!(bytes == [b'a'; 4096]);
    // Half of it is there, and then nothing comes for longer than a file is watched.
    fs::write(&path, stored(b'b', 3)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    let error = reader.read_at(&mut bytes, LENGTH as u64).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Changed), "{error}");
    fs::write(&path, stored(b'b', 8)).unwrap();
    let error = reader.read_at(&mut bytes, 2 * LENGTH as u64).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Changed), "{error}");
}

#[test]
fn a_header_at_the_end_is_never_served_as_content() {
    let place = tempfile::tempdir().unwrap();
    // Both big-endian: a stored chunk that announces `announced` bytes and holds "hello", and a header that announces `size`.
    let file = |announced: u8, size: u8| {
        let chunk = [0, 0, 0, 0, announced, 0, 0, 0, announced];
        let header = *b"WARP\x02\xff\0\x10\0\0\0\0\0\0\0\0\0";
        [&chunk[..], b"hello", &header, &[size]].concat()
    };
    for (name, announced, size) in [
        ("good", 5, 5),
        ("missing", 5, 6),
        ("overlong", 9, 9),
        ("both", 9, 20),
        ("to-the-end", 23, 23),
    ] {
        fs::write(
            place.path().join(format!("{name}.warp")),
            file(announced, size),
        )
        .unwrap();
    }
    let mounted = Mounted::new(place.path(), &[]);
    assert_eq!(fs::read(mounted.path("good")).unwrap(), b"hello");
    for name in ["missing", "overlong", "both", "to-the-end"] {
        let error = fs::read(mounted.path(name)).expect_err(name);
        assert_eq!(error.raw_os_error(), Some(EIO), "{name}");
        let packed = place.path().join(format!("{name}.warp"));
        let refused = small_engine().open(&packed).expect_err(name);
        assert!(refused.is_damage(), "{name}: {refused}");
        let verified = warpfs().args(["verify", "-q"]).arg(&packed).output();
        assert_eq!(verified.unwrap().status.code(), Some(1), "{name}");
    }
}

#[test]
fn a_file_of_many_short_chunks_is_found_and_read() {
    const COUNT: u32 = 100_000;
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("many.warp");
    let mut bytes = START.to_vec();
    for number in 0..COUNT {
        bytes.extend(chunk(4, 3, 3));
        bytes.extend(&number.to_le_bytes()[..3]);
    }
    fs::write(&path, &bytes).unwrap();
    let mounted = Mounted::new(place.path(), &[]);
    let shown = mounted.path("many");
    assert_eq!(fs::metadata(&shown).unwrap().len(), 3 * u64::from(COUNT));
    let file = File::open(&shown).unwrap();
    for number in [0, 1, 77_777, COUNT - 1] {
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 3 * u64::from(number))
            .unwrap();
        assert_eq!(bytes, number.to_le_bytes()[..3]);
    }
}

/// What the mount's server has read with any kind of read(2): how often, and how many bytes.
fn server_reads(mounted: &Mounted) -> (u64, u64) {
    let counted = fs::read_to_string(format!("/proc/{}/io", mounted.server.id())).unwrap();
    let number = |name: &str| -> u64 {
        let mut lines = counted.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)).unwrap();
        found.trim().parse().unwrap()
    };
    (number("syscr:"), number("rchar:"))
}

#[test]
fn a_listing_follows_no_chunks_of_a_file_whose_header_says_its_size() {
    const COUNT: u32 = 2000;
    const APART: u32 = 64 << 10;
    let place = tempfile::tempdir().unwrap();
    for (name, header, id) in [
        ("a", &b"WARP\x01\x03\0\x01\0\0\0\0\0\0"[..], &b""[..]),
        ("b", b"WARP\x02\xff\0\x01\0\0\0\0\0\0", b"\x03"),
    ] {
        let file = File::create(place.path().join(format!("{name}.warp"))).unwrap();
        let size = (COUNT * APART).to_be_bytes();
        file.write_all_at(&[header, &size].concat(), 0).unwrap();
        let mut place = 18;
        for _ in 0..COUNT {
            let chunk = [id, &APART.to_be_bytes(), &APART.to_be_bytes()].concat();
            file.write_all_at(&chunk, place).unwrap();
            place += chunk.len() as u64 + u64::from(APART);
        }
        file.set_len(place).unwrap();
    }
    let mounted = Mounted::new(place.path(), &[]);
    let before = server_reads(&mounted).0;
    for name in ["a", "b"] {
        let shown = fs::metadata(mounted.path(name)).unwrap();
        assert_eq!(shown.len(), u64::from(COUNT * APART));
    }
    let reads = server_reads(&mounted).0 - before;
    assert!(reads < 200, "{reads}");
    let chunks = shell(
        &mounted.mount_point,
        "getfattr --only-values -n user.warpfs.chunks a; getfattr --only-values -n user.warpfs.codec b",
    );
    assert_eq!(chunks, "2000zstd");
}

#[test]
fn attributes_of_a_file_of_many_chunks_are_told_without_going_through_it_again() {
    let place = tempfile::tempdir().unwrap();
    let bytes = [START, &chunk(5, 7, 0).repeat(200_000)].concat();
    fs::write(place.path().join("many.warp"), &bytes).unwrap();
    let mounted = Mounted::new(place.path(), &[]);
    let shown = fs::metadata(mounted.path("many")).unwrap();
    assert_eq!(shown.len(), 7 * 200_000);
    let before = server_reads(&mounted).1;
    let told = shell(&mounted.mount_point, "getfattr -d many | sort");
    let read = server_reads(&mounted).1 - before;
    assert!(read < bytes.len() as u64 / 4, "{read} bytes were read");
    assert_eq!(
        told.trim(),
        "# file: many\nuser.warpfs.checksum=\"none\"\nuser.warpfs.chunks=\"200000\"\nuser.warpfs.codec=\"zeros\"\n\
         user.warpfs.ratio=\"0.78\"\nuser.warpfs.verified=\"codec\"\nuser.warpfs.version=\"0.7.1\""
    );
}

#[test]
fn a_file_of_millions_of_chunks_is_gone_through_once_under_all_its_names_and_shows_as_it_is() {
    const MOST: usize = 4 << 20;
    let place = tempfile::tempdir().unwrap();
    let bytes = [START, &chunk(5, 7, 0).repeat(MOST + 1)].concat();
    fs::write(place.path().join("x0.warp"), &bytes).unwrap();
    fs::write(place.path().join("most.warp"), &bytes[..bytes.len() - 9]).unwrap();
    for link in 1..6 {
        let name = place.path().join(format!("x{link}.warp"));
        fs::hard_link(place.path().join("x0.warp"), name).unwrap();
    }
    let mounted = Mounted::new(place.path(), &[]);
    let before = server_reads(&mounted).1;
    std::thread::scope(|scope| {
        for link in 0..6 {
            let path = mounted.path(format!("x{link}.warp"));
            let length = bytes.len() as u64;
            scope.spawn(move || assert_eq!(fs::metadata(path).unwrap().len(), length));
        }
    });
    let read = server_reads(&mounted).1 - before;
    assert!(read < bytes.len() as u64 * 3 / 2, "{read} bytes were read");
    assert!(!mounted.path("x0").exists());
    let logged = mounted.logged();
    let told = logged.lines().filter(|line| line.contains("more chunks"));
    assert_eq!(told.count(), 1, "{logged}");
    let most = fs::metadata(mounted.path("most")).unwrap();
    assert_eq!(most.len(), 7 * MOST as u64);
    let raw = File::open(mounted.path("x5.warp")).unwrap();
    let mut start = [0; 14];
    raw.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start, START);
}
