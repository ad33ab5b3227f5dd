//! Every file in `tests/data`: the good ones decode to their originals, the bad ones are refused for the reason given,
//! with one line, no output and little memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use warpfs::info::Info;
use warpfs::job::Control;
use warpfs::unpack::{UnpackOptions, unpack_file, unpack_to};
use warpfs::verify::{VerifyOptions, verify_file};

fn data(name: &str) -> PathBuf {
    Path::new("tests/data").join(name)
}

fn manifest(name: &str) -> Vec<HashMap<String, Value>> {
    serde_json::from_slice(&fs::read(data(name)).unwrap()).unwrap()
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

/// Runs the command where it cannot have more than 64 MiB of data, stacks included.
fn within_64_mib(arguments: &[&str], file: &Path) -> Output {
    Command::new("sh")
        .args(["-c", "ulimit -d 65536; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_warpfs"))
        .args(arguments)
        .args(["--threads", "2"].iter().filter(|_| arguments != ["info"]))
        .arg(file)
        .output()
        .unwrap()
}

#[test]
fn good_files_decode_to_their_originals() {
    let control = Control::default();
    let directory = tempfile::tempdir().unwrap();
    let vectors = manifest("manifest.json");
    assert!(vectors.len() > 15);
    for vector in vectors {
        let text = |key: &str| vector[key].as_str().unwrap();
        let name = text("file");
        let original = directory.path().join(name);
        unpack_file(data(name), &original, &UnpackOptions::default(), control).unwrap();
        assert_eq!(sha256(&original), text("sha256"), "{name}");

        let mut streamed = Vec::new();
        unpack_to(
            data(name),
            &mut streamed,
            &UnpackOptions::default(),
            control,
        )
        .unwrap();
        assert!(streamed == fs::read(&original).unwrap(), "{name}");
        verify_file(data(name), VerifyOptions::default(), control).unwrap();

        let info = Info::read(data(name)).unwrap();
        assert_eq!(info.codec().name(), text("codec"), "{name}");
        assert_eq!(
            info.version().number(),
            vector["version"].as_u64().unwrap() as u8
        );
        assert_eq!(info.original_size(), vector["size"].as_u64().unwrap());
        let checksum = info
            .checksum()
            .map_or("none", |(checksum, _)| checksum.name());
        // An empty file is a bare header, whatever checksum was asked for.
        let expected = if info.original_size() == 0 {
            "none"
        } else {
            text("checksum")
        };
        assert_eq!(checksum, expected, "{name}");
    }
}

#[test]
fn good_files_pass_the_commands() {
    let directory = tempfile::tempdir().unwrap();
    for vector in manifest("manifest.json") {
        let name = vector["file"].as_str().unwrap();
        for command in ["verify", "info"] {
            let output = within_64_mib(&[command], &data(name));
            assert!(output.status.success(), "{command} {name}: {output:?}");
        }
        let target = directory.path().join(name);
        let target = target.to_str().unwrap();
        let output = within_64_mib(&["unpack", "-q", "-o", target], &data(name));
        assert!(output.status.success(), "{name}: {output:?}");
        assert_eq!(
            sha256(Path::new(target)),
            vector["sha256"].as_str().unwrap()
        );
    }
}

/// Words of ours that say what `bad.json` says in its own.
fn expected(file: &str, why: &str) -> Vec<String> {
    let ours: &[&str] = match file {
        "bad-chunk-count.warp" => &["chunk count", "does not fit"],
        "bad-chunk-size-overflow.warp" => &["compressed size runs past the file"],
        "bad-decoded-size.warp" => &["chunk sizes add up to", "header says"],
        "bad-payload.warp" => &["chunk 0", "damaged zstd data"],
        "bad-digest.warp" => &["checksum mismatch"],
        _ => &[why],
    };
    ours.iter().map(|words| (*words).to_owned()).collect()
}

#[test]
fn bad_files_are_refused_for_the_reason_given() {
    let vectors = manifest("bad.json");
    assert!(vectors.len() > 10);
    for vector in vectors {
        let name = vector["file"].as_str().unwrap();
        let words = expected(name, vector["why"].as_str().unwrap());
        let by: Vec<&str> = vector["by"]
            .as_array()
            .unwrap()
            .iter()
            .map(|command| command.as_str().unwrap())
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("original");
        let target = target.to_str().unwrap();
        for command in ["verify", "unpack", "info"] {
            let arguments: &[&str] = match command {
                "unpack" => &["unpack", "-o", target],
                _ => &[command],
            };
            let output = within_64_mib(arguments, &data(name));
            let said = String::from_utf8(output.stderr).unwrap();
            if !by.contains(&command) {
                assert_eq!(output.status.code(), Some(0), "{command} {name}: {said}");
                continue;
            }
            assert_eq!(output.status.code(), Some(1), "{command} {name}: {said}");
            assert_eq!(said.lines().count(), 1, "{command} {name}: {said}");
            assert!(said.starts_with("warpfs: tests/data/"), "{said}");
            for words in &words {
                assert!(said.contains(words), "{command} {name}: {said}");
            }
            assert_eq!(
                fs::read_dir(directory.path()).unwrap().count(),
                0,
                "{command} {name}"
            );
        }
    }
}

#[test]
fn a_huge_chunk_that_is_only_announced_costs_no_memory() {
    // A version 2 file with one chunk that is announced to decode to 16 GiB, in every codec; the payload of two of them
    // repeats the announcement.
    let directory = tempfile::tempdir().unwrap();
    let announced = 16_u64 << 30;
    let mut zstd_frame = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    zstd_frame.push(0b1110_0000);
    zstd_frame.extend(announced.to_le_bytes());
    zstd_frame.extend([1, 0, 0]);
    let lz4_frame = fs::read(data("v2-lz4-none.warp")).unwrap()[82..2_000].to_vec();
    let payloads = [
        (0, lz4_frame),
        (1, zstd_frame),
        (2, vec![5, 16, b'h']),
        (3, vec![11, 2, 128]),
    ];
    for (codec, payload) in payloads {
        let mut file = b"PRAW\x02".to_vec();
        file.push(codec);
        file.extend(announced.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend((payload.len() as u64).to_le_bytes());
        file.extend(announced.to_le_bytes());
        file.extend(payload);
        let path = directory.path().join("huge.warp");
        fs::write(&path, file).unwrap();
        for arguments in [&["verify"][..], &["unpack"]] {
            let output = within_64_mib(arguments, &path);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "codec {codec}: {said}");
            assert!(said.contains("damaged"), "codec {codec}: {said}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }
}
