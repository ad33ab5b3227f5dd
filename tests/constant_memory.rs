//! A large file takes no more memory than a small one: both fit into the same bound.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// The bound on all data, stacks included, in KiB: two threads' chunks, codecs' contexts, and little else.
const BOUND: u32 = 48 << 10;

/// Runs the command with two threads within the bound.
fn bounded(arguments: &[&str], input: Option<File>) -> ExitStatus {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit -d {BOUND}; exec \"$@\""))
        .arg("sh")
        .arg(env!("CARGO_BIN_EXE_warpfs"))
        .args(arguments)
        .args(["--threads", "2", "-q"]);
    if let Some(input) = input {
        command.stdin(Stdio::from(input));
    }
    command.status().unwrap()
}

fn write_file(path: &Path, mebibytes: u64) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    for n in 0..mebibytes << 17 {
        // Eight bytes, of which some repeat and some do not.
        let word = (n / 9) ^ (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) & 0xffff);
        file.write_all(&word.to_le_bytes()).unwrap();
    }
    file.into_inner().unwrap();
}

#[test]
fn packing_and_unpacking_take_no_more_memory_for_a_larger_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for mebibytes in [16, 512] {
        write_file(Path::new(&at("x")), mebibytes);
        // Ordered hashing keeps chunks until their turn; a stream spools.
        assert!(bounded(&["pack", "-f", &at("x")], None).success());
        assert!(bounded(&["verify", &at("x.warp")], None).success());
        assert!(bounded(&["unpack", "-f", "-o", &at("y"), &at("x.warp")], None).success());
        let xxh64 = [
            "pack",
            "-f",
            "--codec",
            "lz4",
            "--checksum",
            "xxh64",
            &at("x"),
        ];
        assert!(bounded(&xxh64, None).success());
        assert!(bounded(&["unpack", "-f", "-o", &at("y"), &at("x.warp")], None).success());
        let stream = ["pack", "-f", "-o", &at("x.warp"), "--codec", "snappy", "-"];
        let input = File::open(at("x")).unwrap();
        assert!(bounded(&stream, Some(input)).success());
        assert!(bounded(&["verify", &at("x.warp")], None).success());
    }
}

#[test]
fn a_million_chunks_take_a_few_bytes_each() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    // A hole of 4 GiB, so that there is little to be done but to keep count.
    File::create(&path).unwrap().set_len(4 << 30).unwrap();
    let pack = [
        "pack",
        "--chunk-size",
        "4K",
        "--checksum",
        "none",
        path.to_str().unwrap(),
    ];
    assert!(bounded(&pack, None).success());
}
