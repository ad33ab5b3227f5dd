//! What `pack` and `unpack` promise of single files and of trees.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use common::{left_out, names};
use warpfs::ErrorKind;
use warpfs::format::{Checksum, Codec};
use warpfs::job::{ChunkReport, Control, Observer};
use warpfs::pack::{PackOptions, pack_file};
use warpfs::recursive::TreeOptions;
use warpfs::unpack::{UnpackOptions, unpack_file};
use warpfs::verify::{VerifyOptions, verify_file};

fn warpfs(arguments: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warpfs"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs the command with words and paths, and says how it ended and what it said.
macro_rules! run {
    ($($argument:expr),* $(,)?) => {{
        let output = warpfs(&[$(AsRef::<OsStr>::as_ref($argument)),*]);
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said, output.stdout)
    }};
}

/// Text that compresses, different at every place.
fn text(len: usize) -> Vec<u8> {
    (0_u64..)
        .flat_map(|n| format!("{:x} line {n}\n", n.wrapping_mul(0x9E37_79B9)).into_bytes())
        .take(len)
        .collect()
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

#[test]
fn every_codec_checksum_and_size_comes_back_and_threads_do_not_change_a_byte() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let checksums = Checksum::ALL.map(Some).into_iter().chain([None]);
    for checksum in checksums {
        for codec in Codec::ALL {
            for (len, chunk_size) in [
                (0, 4096),
                (1, 4096),
                (4096, 4096),
                (4097, 4096),
                (40_960, 4096),
                (100_003, 5_000),
                (100_003, 1 << 20),
            ] {
                let mut original = text(len);
                // A few chunks of zeros, read and not in holes.
                original
                    .iter_mut()
                    .skip(8_000)
                    .take(20_000)
                    .for_each(|byte| *byte = 0);
                fs::write(at("x"), &original).unwrap();
                let packed: Vec<Vec<u8>> = [1, 5]
                    .into_iter()
                    .map(|threads| {
                        let options = PackOptions {
                            codec: Some(codec),
                            checksum,
                            chunk_size: Some(chunk_size),
                            threads: Some(threads),
                            force: true,
                            ..PackOptions::default()
                        };
                        let summary =
                            pack_file(at("x"), at("x.warp"), &options, Control::default()).unwrap();
                        let packed = fs::read(at("x.warp")).unwrap();
                        assert_eq!(summary.packed_size, packed.len() as u64);
                        packed
                    })
                    .collect();
                assert!(packed[0] == packed[1]);
                if len == 0 {
                    assert_eq!(packed[0], fs::read("tests/data/v2-empty.warp").unwrap());
                }
                verify_file(
                    at("x.warp"),
                    VerifyOptions {
                        threads: Some(3),
                        ..VerifyOptions::default()
                    },
                    Control::default(),
                )
                .unwrap();
                for threads in [1, 4] {
                    let options = UnpackOptions {
                        threads: Some(threads),
                        force: true,
                        ..UnpackOptions::default()
                    };
                    unpack_file(at("x.warp"), at("back"), &options, Control::default()).unwrap();
                    assert!(fs::read(at("back")).unwrap() == original, "{codec} {len}");
                }
            }
        }
    }
    assert_eq!(names(directory.path()), ["back", "x", "x.warp"]);
}

#[test]
fn a_pipe_gives_the_same_bytes_as_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for len in [0, 1, 100_000, 3 << 20] {
        let original = text(len);
        fs::write(at("x"), &original).unwrap();
        let options: &[&str] = &["pack", "-qf", "--chunk-size", "12345", "--codec", "zstd"];
        let mut of_file = Command::new(env!("CARGO_BIN_EXE_warpfs"));
        let status = of_file.args(options).arg(at("x")).status().unwrap();
        assert!(status.success());
        let mut of_pipe = Command::new(env!("CARGO_BIN_EXE_warpfs"))
            .args(options)
            .arg("-o")
            .arg(at("piped.warp"))
            .arg("-")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = of_pipe.stdin.take().unwrap();
        for part in original.chunks(70_001) {
            pipe.write_all(part).unwrap();
        }
        drop(pipe);
        assert!(of_pipe.wait().unwrap().success());
        assert!(fs::read(at("x.warp")).unwrap() == fs::read(at("piped.warp")).unwrap());
    }
    assert_eq!(names(directory.path()), ["piped.warp", "x", "x.warp"]);
}

#[test]
fn a_file_on_standard_input_is_packed_as_one_of_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(100_000)).unwrap();
    for begun in [0, 10_000] {
        fs::write(at("rest"), &text(100_000)[begun..]).unwrap();
        let options = ["pack", "-qf", "--level", "throughput", "-o"];
        let mut of_file = Command::new(env!("CARGO_BIN_EXE_warpfs"));
        of_file.args(options).args([at("x.warp"), at("rest")]);
        assert!(of_file.status().unwrap().success());
        let mut input = File::open(at("x")).unwrap();
        input.seek(SeekFrom::Start(begun as u64)).unwrap();
        let mut of_input = Command::new(env!("CARGO_BIN_EXE_warpfs"));
        of_input.args(options).arg(at("y.warp")).arg("-");
        assert!(of_input.stdin(input).status().unwrap().success());
        assert!(fs::read(at("x.warp")).unwrap() == fs::read(at("y.warp")).unwrap());
    }
}

#[test]
fn mode_times_and_attributes_go_along_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(10_000)).unwrap();
    fs::set_permissions(at("x"), PermissionsExt::from_mode(0o751)).unwrap();
    let attributes = rustix::fs::setxattr(
        at("x"),
        "user.origin",
        b"here",
        rustix::fs::XattrFlags::empty(),
    );
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    File::open(at("x")).unwrap().set_modified(time).unwrap();
    assert_eq!(run!("pack", "-q", &at("x")).0, Some(0));
    assert_eq!(
        run!("unpack", "-q", "-o", &at("back"), &at("x.warp")).0,
        Some(0)
    );
    let redirected = Command::new(env!("CARGO_BIN_EXE_warpfs"))
        .args(["pack", "-q", "-o"])
        .arg(at("redirected.warp"))
        .arg("-")
        .stdin(File::open(at("x")).unwrap())
        .status();
    assert!(redirected.unwrap().success());
    for name in ["x.warp", "back", "redirected.warp"] {
        let metadata = fs::metadata(at(name)).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o751, "{name}");
        assert_eq!(metadata.modified().unwrap(), time, "{name}");
        let mut value = [0; 8];
        let copied = rustix::fs::getxattr(at(name), "user.origin", &mut value[..]);
        assert_eq!(copied.is_ok(), attributes.is_ok(), "{name}");
    }
}

#[test]
fn nothing_is_overwritten_unless_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(10_000)).unwrap();
    fs::write(at("x.warp"), "precious").unwrap();
    let (code, said, _) = run!("pack", &at("x"));
    assert_eq!(code, Some(1));
    assert_eq!(
        said,
        format!(
            "warpfs: {}: exists already; add --force to replace it\n",
            at("x.warp").display()
        )
    );
    assert_eq!(fs::read(at("x.warp")).unwrap(), b"precious");
    assert_eq!(run!("pack", "-q", "--force", &at("x")).0, Some(0));
    fs::write(at("x"), "newer").unwrap();
    assert_eq!(run!("unpack", "-q", &at("x.warp")).0, Some(1));
    assert_eq!(fs::read(at("x")).unwrap(), b"newer");
    assert_eq!(run!("unpack", "-qf", &at("x.warp")).0, Some(0));
    assert!(fs::read(at("x")).unwrap() == text(10_000));
    assert_eq!(names(directory.path()), ["x", "x.warp"]);
}

#[test]
fn what_is_packed_is_packed_again_only_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(10_000)).unwrap();
    assert_eq!(run!("pack", "-q", &at("x")).0, Some(0));
    let (code, said, _) = run!("pack", &at("x.warp"));
    assert_eq!(code, Some(1));
    assert!(said.contains("is packed already"), "{said}");
    assert_eq!(run!("pack", "-qf", &at("x.warp")).0, Some(0));
    assert_eq!(names(directory.path()), ["x", "x.warp", "x.warp.warp"]);
}

#[test]
fn rm_removes_what_was_verified_and_refuses_what_it_cannot_mean() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for checksum in ["blake3", "none"] {
        fs::write(at("x"), text(100_000)).unwrap();
        let packed = run!("pack", "-q", "--rm", "--checksum", checksum, &at("x"));
        assert_eq!(packed.0, Some(0), "{}", packed.1);
        assert_eq!(names(directory.path()), ["x.warp"]);
        let unpacked = run!("unpack", "-q", "--rm", &at("x.warp"));
        assert_eq!(unpacked.0, Some(0), "{}", unpacked.1);
        assert_eq!(names(directory.path()), ["x"]);
        assert!(fs::read(at("x")).unwrap() == text(100_000));
    }
    fs::hard_link(at("x"), at("y")).unwrap();
    let (code, said, _) = run!("pack", "-q", "--rm", &at("x"));
    assert_eq!(code, Some(1));
    assert!(said.contains("2 names"), "{said}");
    symlink("x", at("link")).unwrap();
    let (code, said, _) = run!("pack", "-q", "--rm", &at("link"));
    assert_eq!(code, Some(1));
    assert!(said.contains("symbolic"), "{said}");
    assert_eq!(names(directory.path()), ["link", "x", "y"]);
    assert_eq!(run!("pack", "-q", "--rm", "-f", &at("x")).0, Some(0));
    assert_eq!(names(directory.path()), ["link", "x.warp", "y"]);
}

/// Does something to a file while the third chunk is reported.
struct Meddler<F: Fn() + Sync>(F);

impl<F: Fn() + Sync> Observer for Meddler<F> {
    fn chunk(&self, _: &Path, report: &ChunkReport) {
        if report.chunk == 2 {
            (self.0)();
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_packed_is_not_packed_and_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let shrink = || {
        File::options()
            .write(true)
            .open(at("x"))
            .unwrap()
            .set_len(5_000)
            .unwrap()
    };
    let grow = || {
        fs::OpenOptions::new()
            .append(true)
            .open(at("x"))
            .unwrap()
            .write_all(b"!")
            .unwrap()
    };
    let rewrite = || {
        // Coarse file times may not have moved on yet.
        std::thread::sleep(Duration::from_millis(20));
        let original = text(100_000);
        File::options()
            .write(true)
            .open(at("x"))
            .unwrap()
            .write_all(&original)
            .unwrap();
    };
    let meddlers: [&(dyn Fn() + Sync); 3] = [&shrink, &grow, &rewrite];
    for meddle in meddlers {
        fs::write(at("x"), text(100_000)).unwrap();
        let options = PackOptions {
            chunk_size: Some(4096),
            threads: Some(2),
            remove: true,
            ..PackOptions::default()
        };
        let meddler = Meddler(meddle);
        let control = Control {
            observer: &meddler,
            ..Control::default()
        };
        let error = pack_file(at("x"), at("x.warp"), &options, control).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InputChanged), "{error}");
        assert_eq!(names(directory.path()), ["x"]);
    }
}

#[test]
fn a_cancelled_job_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(100_000)).unwrap();
    let cancelled = AtomicBool::new(false);
    let observer = Meddler(|| cancelled.store(true, Ordering::Relaxed));
    let control = Control {
        observer: &observer,
        cancelled: &cancelled,
    };
    let options = PackOptions {
        chunk_size: Some(4096),
        ..PackOptions::default()
    };
    let error = pack_file(at("x"), at("x.warp"), &options, control).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Cancelled));
    assert_eq!(names(directory.path()), ["x"]);
}

#[test]
fn an_interrupted_command_says_so_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    for signal in ["INT", "TERM"] {
        let mut child = common::warpfs_to_interrupt()
            .args(["pack", "-o"])
            .arg(directory.path().join("x.warp"))
            .arg("-")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The pipe stays open and says nothing more: the command waits.
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(&text(3 << 20)).unwrap();
        let begun = SystemTime::now();
        while names(directory.path()).is_empty() && begun.elapsed().unwrap().as_secs() < 20 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = child.id().to_string();
        let killed = Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .unwrap();
        assert!(killed.success());
        let output = child.wait_with_output().unwrap();
        drop(pipe);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.ends_with("interrupted\n"), "{said}");
        assert!(names(directory.path()).is_empty());
    }
}

#[test]
fn a_damaged_file_leaves_no_output() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(100_000)).unwrap();
    assert_eq!(
        run!("pack", "-q", "--chunk-size", "8K", &at("x")).0,
        Some(0)
    );
    // Without the record of digests, which would tell that the footer is damaged, its digest is what a file ends with.
    let mut packed = fs::read(at("x.warp")).unwrap();
    let footer = packed.windows(4).rposition(|bytes| bytes == b"WFT1");
    packed.truncate(footer.unwrap() + 39);
    *packed.last_mut().unwrap() ^= 1;
    fs::write(at("x.warp"), packed).unwrap();
    let (code, said, _) = run!("unpack", "-q", "-o", &at("back"), &at("x.warp"));
    assert_eq!(code, Some(1));
    assert!(said.contains("blake3 checksum mismatch"), "{said}");
    assert_eq!(said.lines().count(), 1);
    assert_eq!(names(directory.path()), ["x", "x.warp"]);
}

#[test]
fn ranges_and_standard_output_give_the_bytes_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = text(100_003);
    fs::write(at("x"), &original).unwrap();
    assert_eq!(
        run!("pack", "-q", "--chunk-size", "8K", &at("x")).0,
        Some(0)
    );
    let (code, said, stdout) = run!("unpack", "-c", &at("x.warp"));
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(stdout == original);
    for (start, end) in [
        (0, 0),
        (0, 1),
        (8_191, 8_193),
        (5_000, 90_000),
        (100_002, 100_003),
    ] {
        let range = format!("{start}..{end}");
        let (code, _, stdout) = run!("unpack", "-c", "--range", &range, &at("x.warp"));
        assert_eq!(code, Some(0));
        assert!(stdout == original[start..end], "{range}");
        let part = at("part");
        let unpacked = run!(
            "unpack",
            "-qf",
            "-o",
            &part,
            "--range",
            &range,
            &at("x.warp")
        );
        assert_eq!(unpacked.0, Some(0));
        assert!(fs::read(part).unwrap() == original[start..end], "{range}");
    }
    let (code, said, _) = run!("unpack", "-c", "--range", "5..100004", &at("x.warp"));
    assert_eq!(code, Some(1));
    assert!(said.contains("the original has 100003 bytes"), "{said}");
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    assert_eq!(run!("pack").0, Some(2));
    assert_eq!(run!("pack", "--chunk-size", "1K", "x").0, Some(2));
    assert_eq!(run!("pack", "--chunk-size", "2G", "x").0, Some(2));
    assert_eq!(run!("pack", "--zstd-level", "23", "x").0, Some(2));
    assert_eq!(run!("pack", "--checksum", "md5", "x").0, Some(2));
    assert_eq!(run!("pack", "-").0, Some(2));
    assert_eq!(run!("unpack", "--range", "2..1", "x.warp").0, Some(2));
    assert_eq!(run!("unpack", "-c", "--rm", "x.warp").0, Some(2));
    assert_eq!(
        run!("unpack", "-o", "/nonexistent", "a.warp", "b.warp").0,
        Some(2)
    );
    let (code, said, _) = run!("pack", "/nonexistent/x");
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with("warpfs: /nonexistent/x: cannot open: "),
        "{said}"
    );
    assert_eq!(run!("--help").0, Some(0));
}

#[test]
fn info_speaks_json() {
    let files = ["tests/data/v2-zstd-blake3.warp", "tests/data/v2-empty.warp"];
    let (code, _, stdout) = run!("info", "--json", "--chunks", files[0], files[1]);
    assert_eq!(code, Some(0));
    let values: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!(values[0]["codec"], "zstd");
    assert_eq!(values[0]["checksum"], "blake3");
    assert_eq!(values[0]["original_size"], 100_003);
    assert_eq!(
        values[0]["packed_size"],
        fs::metadata(files[0]).unwrap().len()
    );
    assert_eq!(values[0]["chunk_table"].as_array().unwrap().len(), 4);
    assert_eq!(values[0]["chunk_table"][3]["original_offset"], 98_304);
    assert_eq!(values[1]["chunks"], 0);
    assert!(values[1]["ratio"].is_null());
}

#[test]
fn a_verbose_job_tells_of_every_chunk_in_a_form_that_scripts_can_read() {
    let directory = tempfile::tempdir().unwrap();
    let (plain, packed) = (directory.path().join("x"), directory.path().join("x.warp"));
    fs::write(&plain, text(300_000)).unwrap();
    for (command, path) in [("pack", &plain), ("verify", &packed), ("unpack", &packed)] {
        let words: &[&str] = match command {
            "verify" => &["-v"],
            _ => &["-fv"],
        };
        let words = [&[command], words].concat();
        let mut words: Vec<_> = words.into_iter().map(OsStr::new).collect();
        words.push(path.as_os_str());
        let output = warpfs(&words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        let (_, _, json) = run!("info", "--json", "--chunks", &packed);
        let info: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let table = info[0]["chunk_table"].as_array().unwrap();
        assert_eq!(table.len(), 3);
        let lines: Vec<_> = said
            .lines()
            .filter(|line| line.contains(": chunk "))
            .collect();
        assert_eq!(lines.len(), 3, "{said}");
        for (number, (line, chunk)) in lines.into_iter().zip(table).enumerate() {
            let (original, packed) = (&chunk["original_size"], &chunk["packed_size"]);
            let begins = format!(
                "{}: chunk {number}: {original} original, {packed} packed, ",
                path.display()
            );
            let rest = line
                .strip_prefix(&begins)
                .unwrap_or_else(|| panic!("{line}"));
            let (time, rate) = rest.split_once(" ms, ").unwrap();
            let (_, tenths) = time.split_once('.').unwrap();
            assert!(time.parse::<f64>().is_ok() && tenths.len() == 1, "{line}");
            let rate = rate.strip_suffix(" MB/s").unwrap();
            assert!(rate.parse::<u64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn a_level_gives_the_codec_it_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    let first = 1 << 20;
    let alike = text(2 * first);
    // What comes behind the first MiB does not count.
    let noise_first = [noise(first), text(4 * first)].concat();
    let text_first = [text(first), noise(4 * first)].concat();
    for (level, content, codec) in [
        ("fastest", &alike, "snappy"),
        ("max", &alike, "brotli"),
        ("auto", &alike, "zstd"),
        ("auto", &noise_first, "snappy"),
        ("auto", &text_first, "zstd"),
    ] {
        fs::write(&path, content).unwrap();
        let packed = run!("pack", "-qf", "--level", level, &path);
        assert_eq!(packed.0, Some(0), "{}", packed.1);
        let (_, _, json) = run!("info", "--json", &directory.path().join("x.warp"));
        let info: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(info[0]["codec"], codec, "{level}");
    }
}

/// A tree with something of everything.
fn make_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("text"), text(300_000)).unwrap();
    fs::write(at("a/noise"), noise(50_000)).unwrap();
    fs::write(at("a/b/nothing"), "").unwrap();
    fs::write(at("a/b/deep"), text(5_000)).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not \xff utf-8")), text(9_000)).unwrap();
    // Large enough to have all threads to itself, and mostly a hole.
    let large = File::create(at("large")).unwrap();
    large.set_len(40 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&large, &text(100_000), 30 << 20).unwrap();
    fs::hard_link(at("text"), at("a/text again")).unwrap();
    fs::hard_link(at("a/noise"), at("noise again")).unwrap();
    symlink("text", at("link")).unwrap();
    symlink("/nonexistent/outside", at("a/dangling")).unwrap();
    fs::set_permissions(at("a/b/deep"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::set_permissions(at("a"), PermissionsExt::from_mode(0o750)).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for name in ["a/b/deep", "a/b", "a"] {
        File::open(at(name)).unwrap().set_modified(old).unwrap();
    }
}

/// Every path below a root with what is known of it.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let detail = if metadata.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                pending.push(relative.join(entry.unwrap().file_name()));
            }
            String::new()
        } else if metadata.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            let digest = blake3::hash(&fs::read(&path).unwrap());
            format!("{} {} links {digest}", metadata.len(), metadata.nlink())
        };
        let kept_times = relative.starts_with("a") && !metadata.is_symlink();
        let time = if kept_times { metadata.mtime() } else { 0 };
        lines.push(format!(
            "{relative:?} {:o} {time} {detail}",
            metadata.mode()
        ));
    }
    lines.sort();
    lines
}

#[test]
fn a_tree_goes_to_a_tree_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    make_tree(&at("tree"));
    let (code, said, _) = run!("pack", "-r", "-o", &at("packed"), &at("tree"));
    assert_eq!(code, Some(0), "{said}");
    assert!(at("packed/text.warp").exists() && !at("packed/text").exists());
    assert!(at("packed/a/noise").exists() && at("packed/a/b/nothing").exists());
    let inode = |name: &str| fs::metadata(at(name)).unwrap().ino();
    assert_eq!(inode("packed/text.warp"), inode("packed/a/text again.warp"));
    let (code, said, _) = run!("verify", "-r", &at("packed"));
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(" 4 files verified") || said.contains(" 5 files verified"),
        "{said}"
    );
    let (code, said, _) = run!("unpack", "-r", "-o", &at("back"), &at("packed"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(listing(&at("tree")), listing(&at("back")));
    let large = fs::metadata(at("back/large")).unwrap();
    assert!(large.blocks() * 512 < 2 << 20, "{} blocks", large.blocks());
}

#[test]
fn a_tree_packed_in_place_keeps_what_does_not_shrink_and_is_whole_again_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    make_tree(&at("tree"));
    let before = listing(&at("tree"));
    let (code, said, _) = run!("pack", "-rf", "--rm", &at("tree"));
    assert_eq!(code, Some(0), "{said}");
    assert!(at("tree/text.warp").exists() && !at("tree/text").exists());
    assert!(at("tree/a/noise").exists() && !at("tree/a/noise.warp").exists());
    let (code, said, _) = run!("unpack", "-rf", "--rm", &at("tree"));
    assert_eq!(code, Some(0), "{said}");
    let without_directory_times = |lines: Vec<String>| {
        lines
            .into_iter()
            .filter(|line| !line.contains(" 40"))
            .collect::<Vec<_>>()
    };
    let after = listing(&at("tree"));
    assert_eq!(
        without_directory_times(before),
        without_directory_times(after)
    );
}

#[test]
fn one_failing_file_does_not_stop_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    for name in ["tree/a", "tree/b", "tree/c"] {
        fs::write(at(name), text(10_000)).unwrap();
    }
    fs::write(at("tree/b.warp"), "in the way").unwrap();
    let (code, said, _) = run!("pack", "-rq", &at("tree"));
    assert_eq!(code, Some(1));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("b.warp: exists already"), "{said}");
    let expected = ["a", "a.warp", "b", "b.warp", "c", "c.warp"];
    assert_eq!(names(&at("tree")), expected);
    let (code, said, _) = run!("verify", "-rq", &at("tree"));
    assert_eq!(code, Some(1));
    assert!(said.contains("b.warp: "), "{said}");
}

#[test]
fn names_that_would_collide_in_the_other_tree_come_along_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/x"), text(10_000)).unwrap();
    fs::write(at("tree/other"), text(20_000)).unwrap();
    assert_eq!(
        run!("pack", "-q", "-o", &at("tree/x.warp"), &at("tree/other")).0,
        Some(0)
    );
    let (code, said, _) = run!("pack", "-rq", "-o", &at("out"), &at("tree"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(names(&at("out")), ["other.warp", "x", "x.warp"]);
    assert!(fs::read(at("out/x")).unwrap() == text(10_000));
    assert!(fs::read(at("out/x.warp")).unwrap() == fs::read(at("tree/x.warp")).unwrap());
}

/// Runs a command of the system and demands success.
fn system(program: &str, arguments: &[&OsStr]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_file_with_an_access_list_does_not_come_to_be_read_by_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(10_000)).unwrap();
    fs::write(at("plain"), text(10_000)).unwrap();
    fs::set_permissions(at("x"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(at("plain"), PermissionsExt::from_mode(0o640)).unwrap();
    // As `setfacl -m u:1:rw` makes it: owner rw-, user 1 rw-, group ---, mask rw-, others ---.
    let entry = |tag: u16, permissions: u16, id: u32| {
        [
            &tag.to_le_bytes()[..],
            &permissions.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    let list = [
        2_u32.to_le_bytes().to_vec(),
        entry(0x01, 6, u32::MAX),
        entry(0x02, 6, 1),
        entry(0x04, 0, u32::MAX),
        entry(0x10, 6, u32::MAX),
        entry(0x20, 0, u32::MAX),
    ]
    .concat();
    let flags = rustix::fs::XattrFlags::empty();
    let (access, inherited) = ("system.posix_acl_access", "system.posix_acl_default");
    if rustix::fs::setxattr(at("x"), access, &list, flags).is_err() {
        left_out("the temporary directory's file system has no access lists");
        return;
    }
    fs::create_dir(at("shared")).unwrap();
    rustix::fs::setxattr(at("shared"), inherited, &list, flags).unwrap();
    let packed = run!("pack", "-q", "-o", &at("shared"), &at("x"), &at("plain"));
    assert_eq!(packed.0, Some(0), "{}", packed.1);
    let mut found = [0; 256];
    let len = rustix::fs::getxattr(at("shared/x.warp"), access, &mut found[..]).unwrap();
    assert_eq!(&found[..len], list);
    // What a directory gives to new files is not what the original gave.
    assert!(rustix::fs::getxattr(at("shared/plain.warp"), access, &mut found[..]).is_err());
    assert_eq!(mode(&at("shared/plain.warp")), 0o640);
    // Where there are no access lists, the mode's group bits are the group's again.
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
        left_out("no /dev/shm");
        return;
    };
    let copy = elsewhere.path().join("x.warp");
    assert_eq!(run!("pack", "-q", "-o", &copy, &at("x")).0, Some(0));
    match rustix::fs::getxattr(&copy, access, &mut found[..]) {
        Ok(len) => assert_eq!(&found[..len], list),
        Err(_) => assert_eq!(mode(&copy), 0o600),
    }
}

#[test]
fn a_group_that_cannot_be_kept_is_not_exchanged_for_another() {
    if !rustix::process::geteuid().is_root() {
        left_out("only root can make files of other groups");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let program = at("warpfs");
    fs::copy(env!("CARGO_BIN_EXE_warpfs"), &program).unwrap();
    for (name, group) in [("own", 1234), ("foreign", 4321)] {
        fs::write(at(name), text(10_000)).unwrap();
        std::os::unix::fs::chown(at(name), Some(0), Some(group)).unwrap();
        fs::set_permissions(at(name), PermissionsExt::from_mode(0o664)).unwrap();
    }
    // Somebody else, who is in the one group and not in the other.
    let arguments = ["--reuid=1000", "--regid=1000", "--groups=1234"].map(OsStr::new);
    let rest = [program.as_os_str(), OsStr::new("pack"), OsStr::new("-q")];
    let (own, foreign) = (at("own"), at("foreign"));
    let files = [own.as_os_str(), foreign.as_os_str()];
    system("setpriv", &[&arguments[..], &rest, &files].concat());
    let found = |name: &str| (fs::metadata(at(name)).unwrap().gid(), mode(&at(name)));
    assert_eq!(found("own.warp"), (1234, 0o664));
    assert_eq!(found("foreign.warp"), (1000, 0o644));
}

#[test]
fn force_does_not_replace_a_pipe_or_a_device() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(10_000)).unwrap();
    system("mkfifo", &[at("pipe").as_os_str()]);
    let (code, said, _) = run!("pack", "-qf", "-o", &at("pipe"), &at("x"));
    assert_eq!(code, Some(1));
    assert!(
        said.contains("not replaced") && said.contains("-c"),
        "{said}"
    );
    assert_eq!(names(directory.path()), ["pipe", "x"]);
    assert!(!fs::metadata(at("pipe")).unwrap().is_file());
}

#[test]
fn a_link_to_a_pipe_or_a_device_is_not_what_its_namer_wants_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(10_000)).unwrap();
    assert_eq!(run!("pack", "-q", &at("x")).0, Some(0));
    system("mkfifo", &[at("pipe").as_os_str()]);
    for leads_to in ["pipe", "/dev/null", "/proc/self/fd/1"] {
        symlink(leads_to, at("link")).unwrap();
        for command in [["pack", "x"], ["unpack", "x.warp"]] {
            for flags in ["-q", "-qf"] {
                let [command, input] = command;
                let (code, said, _) = run!(command, flags, "-o", &at("link"), &at(input));
                assert_eq!(code, Some(1), "{leads_to}: {said}");
                assert!(said.contains("which is not replaced"), "{said}");
                assert!(!said.contains("--force"), "{said}");
                assert_eq!(fs::read_link(at("link")).unwrap(), Path::new(leads_to));
            }
        }
        fs::remove_file(at("link")).unwrap();
    }
}

#[test]
fn force_does_not_pack_a_second_time_what_is_packed_in_a_tree() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/x"), text(500_000)).unwrap();
    for _ in 0..2 {
        // With this codec, packed files shrink once more.
        let packed = run!("pack", "-rqf", "--codec", "snappy", &at("tree"));
        assert_eq!(packed.0, Some(0), "{}", packed.1);
    }
    assert_eq!(names(&at("tree")), ["x", "x.warp"]);
}

#[test]
fn links_are_replaced_by_force_and_nothing_stays_beside_them() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/a"), text(50_000)).unwrap();
    fs::hard_link(at("tree/a"), at("tree/b")).unwrap();
    symlink("a", at("tree/link")).unwrap();
    for _ in 0..2 {
        let packed = run!("pack", "-rqf", "-o", &at("out"), &at("tree"));
        assert_eq!(packed.0, Some(0), "{}", packed.1);
        assert_eq!(names(&at("out")), ["a.warp", "b.warp", "link"]);
        let inode = |name: &str| fs::metadata(at(name)).unwrap().ino();
        assert_eq!(inode("out/a.warp"), inode("out/b.warp"));
    }
    // What is as it would be made is no obstacle; a link that leads elsewhere is.
    assert_eq!(
        run!("pack", "-rq", "-o", &at("out"), &at("tree")).0,
        Some(0)
    );
    fs::remove_file(at("out/link")).unwrap();
    symlink("b", at("out/link")).unwrap();
    let (code, said, _) = run!("pack", "-rq", "-o", &at("out"), &at("tree"));
    assert_eq!(code, Some(1));
    let line = "is a link to something else than the one it is made of";
    assert_eq!(said.matches(line).count(), 1, "{said}");
}

#[test]
fn a_directory_that_was_there_keeps_its_mode_unless_forced() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let set = |name: &str, mode| fs::set_permissions(at(name), PermissionsExt::from_mode(mode));
    fs::create_dir_all(at("tree/made")).unwrap();
    set("tree/made", 0o750).unwrap();
    set("tree", 0o700).unwrap();
    fs::create_dir(at("shared")).unwrap();
    set("shared", 0o1777).unwrap();
    assert_eq!(
        run!("pack", "-rq", "-o", &at("shared"), &at("tree")).0,
        Some(0)
    );
    assert_eq!(mode(&at("shared")), 0o1777);
    assert_eq!(mode(&at("shared/made")), 0o750);
    assert_eq!(
        run!("pack", "-rqf", "-o", &at("shared"), &at("tree")).0,
        Some(0)
    );
    assert_eq!(mode(&at("shared")), 0o700);
}

#[test]
fn a_tree_deeper_than_there_may_be_open_files_goes_to_a_tree_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut deep = directory.path().join("tree");
    for _ in 0..1_200 {
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("x"), text(5_000)).unwrap();
        deep.push("d");
    }
    let script = "set -e; ulimit -n 1024
        $WARPFS pack -rq -o packed tree
        $WARPFS verify -rq packed
        $WARPFS unpack -rq -o back packed
        diff -r tree back
        $WARPFS pack -rq --rm tree
        test -z \"$(find tree -name x)\"";
    let status = Command::new("bash")
        .args(["-c", script])
        .env("WARPFS", env!("CARGO_BIN_EXE_warpfs"))
        .current_dir(directory.path())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn an_empty_file_that_grows_while_it_is_packed_is_not_packed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), "").unwrap();
    let grow = || fs::write(at("x"), text(100_000)).unwrap();
    /// Does something when a file is begun.
    struct Beginner<F: Fn() + Sync>(F);
    impl<F: Fn() + Sync> Observer for Beginner<F> {
        fn begin(&self, _: &Path, _: Option<u64>) {
            std::thread::sleep(Duration::from_millis(20));
            (self.0)();
        }
    }
    let observer = Beginner(grow);
    let control = Control {
        observer: &observer,
        ..Control::default()
    };
    let options = PackOptions::default();
    let error = pack_file(at("x"), at("x.warp"), &options, control).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InputChanged), "{error}");
    assert_eq!(names(directory.path()), ["x"]);
}

/// Cancels a job when this file of its tree is begun.
struct Stopper {
    at: &'static str,
    cancelled: AtomicBool,
}

impl Stopper {
    fn at(at: &'static str) -> Self {
        Self {
            at,
            cancelled: AtomicBool::new(false),
        }
    }
}

impl Observer for Stopper {
    fn begin(&self, path: &Path, _: Option<u64>) {
        self.cancelled
            .fetch_or(path.ends_with(self.at), Ordering::Relaxed);
    }
}

#[test]
fn an_interrupted_tree_keeps_what_is_done_in_directories_with_their_modes() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("tree/a")).unwrap();
    for name in ["tree/a/1", "tree/a/2", "tree/a/3"] {
        fs::write(at(name), text(100_000)).unwrap();
    }
    for name in ["tree/a", "tree"] {
        fs::set_permissions(at(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let stopper = Stopper::at("a/2");
    let control = Control {
        observer: &stopper,
        cancelled: &stopper.cancelled,
    };
    let options = PackOptions {
        threads: Some(1),
        chunk_size: Some(4096),
        ..PackOptions::default()
    };
    let out = at("out");
    let error = warpfs::recursive::pack_tree(
        &at("tree"),
        Some(&out),
        &options,
        &TreeOptions::default(),
        control,
    );
    let error = error.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Cancelled));
    assert_eq!(error.path(), Some(at("tree").as_path()));
    assert_eq!(names(&at("out/a")), ["1.warp"]);
    assert_eq!((mode(&at("out")), mode(&at("out/a"))), (0o755, 0o755));
}

#[test]
fn a_name_without_room_for_the_ending_is_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let name = "n".repeat(252);
    let input = directory.path().join(&name);
    fs::write(&input, text(100_000)).unwrap();
    let begun = AtomicBool::new(false);
    struct Beginning<'a>(&'a AtomicBool);
    impl Observer for Beginning<'_> {
        fn begin(&self, _: &Path, _: Option<u64>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let control = Control {
        observer: &Beginning(&begun),
        ..Control::default()
    };
    let output = directory.path().join(format!("{name}.warp"));
    let error = pack_file(&input, output, &PackOptions::default(), control).unwrap_err();
    assert!(error.to_string().contains("name too long"), "{error}");
    assert!(!begun.load(Ordering::Relaxed));
    assert_eq!(names(directory.path()), [name.as_str()]);
}

#[test]
fn an_interrupted_unpack_gives_a_directory_its_times_when_it_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("tree/a")).unwrap();
    for name in ["tree/a/1", "tree/a/2", "tree/a/3"] {
        fs::write(at(name), text(100_000)).unwrap();
    }
    let pack = ["pack", "-rq", "--chunk-size", "4K", "-o"].map(OsStr::new);
    let (packed, tree) = (at("packed"), at("tree"));
    let words = [&pack[..], &[packed.as_os_str(), tree.as_os_str()]].concat();
    assert!(warpfs(&words).status.success());
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let opened = File::open(at("packed/a")).unwrap();
    opened.set_modified(long_ago).unwrap();
    let unpack = |control| {
        let options = UnpackOptions {
            threads: Some(1),
            ..UnpackOptions::default()
        };
        warpfs::recursive::unpack_tree(&at("packed"), Some(&at("back")), &options, control)
    };
    let stopper = Stopper::at("a/2.warp");
    let interrupted = unpack(Control {
        observer: &stopper,
        cancelled: &stopper.cancelled,
    });
    assert!(matches!(
        interrupted.unwrap_err().kind(),
        ErrorKind::Cancelled
    ));
    assert_eq!(names(&at("back/a")), ["1"]);
    assert_eq!(unpack(Control::default()).unwrap().files, 2);
    let modified = |name: &str| fs::metadata(at(name)).unwrap().modified().unwrap();
    assert_eq!(modified("back/a"), long_ago);
    let mark = rustix::fs::getxattr(at("back/a"), "user.warpfs.made", &mut [0; 64][..]);
    assert!(mark.is_err());
}

#[test]
fn an_output_that_cannot_be_is_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(10_000)).unwrap();
    let (code, said, _) = run!("pack", "-v", "-o", &at("nx/"), &at("x"));
    assert_eq!(code, Some(1));
    assert!(said.contains("names a directory"), "{said}");
    assert!(!said.contains("chunk"), "{said}");
    assert_eq!(names(directory.path()), ["x"]);
}

#[test]
fn the_directory_that_several_trees_go_to_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for name in ["a", "b"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("x"), text(10_000)).unwrap();
    }
    let packed = run!("pack", "-rq", "-o", &at("new/out"), &at("a"), &at("b"));
    assert_eq!(packed.0, Some(0), "{}", packed.1);
    assert_eq!(names(&at("new/out")), ["a", "b"]);
}

#[test]
fn standard_input_is_not_replaced_by_what_is_packed_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), text(10_000)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_warpfs"))
        .args(["pack", "-qf", "-", "-o"])
        .arg(at("x"))
        .stdin(File::open(at("x")).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the output is the input"), "{said}");
    assert!(fs::read(at("x")).unwrap() == text(10_000));
}

#[test]
fn pipes_in_a_tree_are_counted_as_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    system("mkfifo", &[at("tree/pipe").as_os_str()]);
    let (code, said, _) = run!("pack", "-r", &at("tree"));
    assert_eq!(code, Some(0));
    assert!(said.contains("left out             1  devices"), "{said}");
}

#[test]
fn a_directory_that_cannot_be_read_can_be_written_into() {
    if !rustix::process::geteuid().is_root() {
        left_out("only root can become somebody who may not read");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let (program, input, drop_box) = (at("warpfs"), at("x"), at("box"));
    fs::copy(env!("CARGO_BIN_EXE_warpfs"), &program).unwrap();
    fs::write(&input, text(10_000)).unwrap();
    fs::create_dir(&drop_box).unwrap();
    fs::set_permissions(&drop_box, PermissionsExt::from_mode(0o333)).unwrap();
    let words = ["--reuid=1000", "--regid=1000", "--clear-groups"].map(OsStr::new);
    let rest = ["pack", "-q", "-o"].map(OsStr::new);
    let program = [program.as_os_str()];
    let paths = [drop_box.as_os_str(), input.as_os_str()];
    system("setpriv", &[&words[..], &program, &rest, &paths].concat());
    assert_eq!(names(&drop_box), ["x.warp"]);
}

#[test]
fn a_file_that_did_not_get_its_name_is_not_counted_as_packed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/x"), text(100_000)).unwrap();
    let meddler = Meddler(|| fs::write(at("tree/x.warp"), "faster").unwrap());
    let control = Control {
        observer: &meddler,
        ..Control::default()
    };
    let options = PackOptions {
        chunk_size: Some(4096),
        ..PackOptions::default()
    };
    let summary = warpfs::recursive::pack_tree(
        &at("tree"),
        None,
        &options,
        &TreeOptions::default(),
        control,
    )
    .unwrap();
    assert_eq!((summary.files, summary.failed), (0, 1));
    assert_eq!(names(&at("tree")), ["x", "x.warp"]);
    assert_eq!(fs::read(at("tree/x.warp")).unwrap(), b"faster");
}

#[test]
fn a_full_disk_is_told_of_the_file_that_does_not_fit() {
    if !rustix::process::geteuid().is_root() {
        left_out("only root can mount a small disk");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::create_dir(at("small")).unwrap();
    fs::write(at("tree/noise"), noise(1_000_000)).unwrap();
    // In a namespace of its own, so that the mount goes with the process.
    let script = "mount -t tmpfs -o size=100k none small && exec $WARPFS pack -rq -o small tree";
    let output = Command::new("unshare")
        .args(["-m", "bash", "-c", script])
        .env("WARPFS", env!("CARGO_BIN_EXE_warpfs"))
        .current_dir(directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if said.contains("unshare") || said.contains("mount:") {
        left_out(&said);
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("warpfs: small/noise"), "{said}");
    assert!(said.contains("No space left"), "{said}");
}
