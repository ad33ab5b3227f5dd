//! Files made to hurt their reader: large in what they announce and small on the disk. They are refused, in little
//! memory and in little time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Makes a sparse file of `len` bytes that begins with a header, as many sizes as given, and `payload`.
fn write_sparse(
    path: &Path,
    len: u64,
    [version, codec]: [u8; 2],
    original_size: u64,
    count: u32,
    sizes: &[u64],
    payload: &[u8],
) {
    let mut beginning = b"PRAW".to_vec();
    beginning.extend([version, codec]);
    beginning.extend(original_size.to_le_bytes());
    beginning.extend(count.to_le_bytes());
    beginning.extend(sizes.iter().flat_map(|size| size.to_le_bytes()));
    beginning.extend(payload);
    let file = File::create(path).unwrap();
    file.set_len(len.max(beginning.len() as u64)).unwrap();
    file.write_all_at(&beginning, 0).unwrap();
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

fn assert_refused(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{:?} {said}", output.status);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(words), "{said}");
}

#[test]
fn a_payload_of_terabytes_in_a_hole_is_refused_and_not_allocated() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    for len in [3_u64 << 30, 1 << 42] {
        for codec in 0..4 {
            let sizes = [len - 34, 1];
            write_sparse(&path, len, [2, codec], 1, 1, &sizes, &[]);
            let output = within_64_mib(&["verify", "--threads", "1"], &path);
            assert_refused(&output, "cannot be that of 1 bytes");
            // One that is announced to be as large decoded is more than there is memory for here.
            write_sparse(&path, len, [2, codec], len, 1, &[len - 34, len], &[]);
            let output = within_64_mib(&["verify", "--threads", "1"], &path);
            assert_refused(&output, "more than there is memory for");
        }
        write_sparse(&path, len, [1, 3], 1, 1, &[len - 26], &[]);
        assert_refused(
            &within_64_mib(&["verify"], &path),
            "cannot be that of 1 bytes",
        );
    }
}

#[test]
fn a_table_in_a_hole_is_refused_and_not_allocated() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    for version in [1, 2] {
        for count in [1_u32 << 22, 1 << 26, u32::MAX] {
            let table = u64::from(count) * 8 * u64::from(version);
            for command in ["info", "verify"] {
                // Without a byte for each payload, and with.
                write_sparse(&path, 18 + table, [version, 1], 1, count, &[], &[]);
                assert_refused(
                    &within_64_mib(&[command], &path),
                    "ends inside a chunk's payload",
                );
                let len = 18 + table + u64::from(count);
                write_sparse(&path, len, [version, 1], 1, count, &[], &[]);
                let output = within_64_mib(&[command], &path);
                assert_refused(&output, "chunk 0's compressed size is 0");
            }
        }
    }
}

#[test]
fn info_of_a_version_1_bomb_decodes_nothing() {
    // Zstandard blocks of 128 KiB in four bytes each, without a content size: a terabyte in 32 MiB.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    let mut frame = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    frame.extend([0, 0x38]);
    frame.extend([0b10, 0, 0x10, b'x'].repeat(8 << 20));
    let len = frame.len() as u64;
    write_sparse(&path, 0, [1, 1], 1 << 40, 1, &[len], &frame);
    let started = Instant::now();
    let output = within_64_mib(&["info", "--chunks"], &path);
    assert!(started.elapsed() < Duration::from_secs(2));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(shown.contains("original 1099511627776 bytes"), "{shown}");
    assert!(
        shown.contains("chunks   1, whose sizes only decoding tells"),
        "{shown}"
    );
    let output = within_64_mib(&["info", "--chunks", "--json"], &path);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json[0]["largest_chunk"], serde_json::Value::Null);
    assert_eq!(json[0]["chunk_table"][0]["packed_size"], len);
    assert_eq!(
        json[0]["chunk_table"][0]["original_size"],
        serde_json::Value::Null
    );
}

#[test]
fn a_table_of_many_chunks_is_printed_as_json_without_being_held_as_such() {
    const CHUNKS: u32 = 1 << 18;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.warp");
    let sizes = vec![9; CHUNKS as usize * 2];
    let len = 18 + u64::from(CHUNKS) * (16 + 9);
    let original_size = u64::from(CHUNKS) * 9;
    write_sparse(&path, len, [2, 1], original_size, CHUNKS, &sizes, &[]);
    let output = within_64_mib(&["info", "--chunks", "--json"], &path);
    assert!(output.status.success(), "{:?}", output.status);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let table = json[0]["chunk_table"].as_array().unwrap();
    assert_eq!(table.len(), CHUNKS as usize);
    assert_eq!(
        table[CHUNKS as usize - 1]["original_offset"],
        original_size - 9
    );
}
