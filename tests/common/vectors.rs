//! What has to be true of the independent writer's files wherever they are mounted from.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::Advice;
use serde_json::Value;

use super::{Mounted, mixed, shell, vector};

pub const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
pub const PAGE: usize = 4096;

pub fn list(name: &str) -> Vec<Value> {
    serde_json::from_slice(&fs::read(vector(name)).unwrap()).unwrap()
}

pub fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap()
}

/// The name a packed file shows under.
pub fn shown(name: &str) -> &str {
    name.strip_suffix(".warp").unwrap()
}

/// Reads until the end or an error, a piece at a time.
pub fn read_by(file: &File, piece: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; piece];
    loop {
        match file.read_at(&mut buffer, bytes.len() as u64)? {
            0 => return Ok(bytes),
            read => bytes.extend(&buffer[..read]),
        }
    }
}

/// Makes the kernel forget the pages of this file.
pub fn forget_pages(file: &File) {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

pub fn errno(result: io::Result<usize>) -> i32 {
    result.expect_err("an error").raw_os_error().unwrap()
}

/// The names of all that are called `.warp`.
pub fn names() -> Vec<String> {
    let all = fs::read_dir(vector("")).unwrap();
    let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".warp")).collect()
}

/// All good ones are read whole, in pieces, across boundaries and past their ends.
pub fn read_as_their_originals(mounted: &Mounted) {
    let vectors = list("manifest.json");
    assert!(vectors.len() > 15);
    for entry in &vectors {
        let name = shown(text(entry, "file"));
        let path = mounted.path(name);
        let sum = shell(&mounted.mount_point, &format!("sha256sum {name}"));
        assert!(sum.starts_with(text(entry, "sha256")), "{name}");
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len() as u64, entry["size"].as_u64().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), whole.len() as u64);

        let file = File::open(&path).unwrap();
        for piece in [1, PAGE, 32_767, 100_000] {
            // Byte by byte through ten megabytes of zeros would say nothing more.
            if piece == 1 && whole.len() > 1 << 20 {
                continue;
            }
            forget_pages(&file);
            assert!(read_by(&file, piece).unwrap() == whole, "{name} by {piece}");
        }
        // Across the boundaries of chunks, and at, across and past the end.
        let chunk = entry["chunk_size"].as_u64().unwrap().max(1) as usize;
        forget_pages(&file);
        for boundary in (chunk..whole.len()).step_by(chunk).chain([whole.len()]) {
            let from = boundary.saturating_sub(3);
            let mut bytes = [0; 8];
            let read = file.read_at(&mut bytes, from as u64).unwrap();
            let expected = &whole[from..whole.len().min(from + 8)];
            assert_eq!(&bytes[..read], expected, "{name} at {from}");
        }
        for past in [whole.len() as u64, whole.len() as u64 + 1, 1 << 40] {
            assert_eq!(file.read_at(&mut [0; 8], past).unwrap(), 0, "{name}");
        }
    }
}

/// Those that are none by their header show as they are, and the log says why.
pub fn show_as_they_are(mounted: &Mounted) {
    for (name, why) in [
        ("bad-magic.warp", "wrong magic"),
        ("bad-version.warp", "unsupported version 9"),
        ("bad-codec.warp", "unknown codec id 77"),
        ("bad-short-header.warp", "file ends inside the fixed header"),
        ("bad-short-table.warp", "file ends inside the chunk table"),
        ("bad-chunk-count.warp", "does not fit"),
    ] {
        let raw = fs::read(vector(name)).unwrap();
        for _ in 0..2 {
            assert!(fs::read(mounted.path(name)).unwrap() == raw, "{name}");
            assert!(!mounted.path(shown(name)).exists(), "{name}");
        }
        let logged = mounted.logged();
        let lines: Vec<_> = logged.lines().filter(|line| line.contains(name)).collect();
        assert_eq!(lines.len(), 1, "{name}: {logged}");
        assert!(lines[0].contains(why), "{name}: {}", lines[0]);
    }
}

/// Those with a damaged table or footer cannot be opened, and the log says why.
pub fn cannot_be_opened(mounted: &Mounted) {
    for (name, why) in [
        (
            "bad-original-size.warp",
            "chunk sizes add up to 100003, header says 100004",
        ),
        (
            "bad-chunk-size-overflow.warp",
            "compressed size runs past the file",
        ),
        ("bad-decoded-size.warp", "chunk sizes add up to"),
        ("bad-hash-id.warp", "unknown checksum id 99 in the footer"),
        (
            "bad-short-footer.warp",
            "file ends inside the footer's digest",
        ),
    ] {
        // It is listed like any other, under its own name, and it has attributes.
        assert!(fs::metadata(mounted.path(shown(name))).unwrap().len() > 0);
        for _ in 0..2 {
            let error = File::open(mounted.path(shown(name))).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(EIO), "{name}: {error}");
        }
        let logged = mounted.logged();
        let told = logged
            .lines()
            .any(|line| line.contains(name) && line.contains(why) && line.contains("ERROR"));
        assert!(told, "{name}: {logged}");
    }
}

/// A damaged chunk is an error for its own pages and no others, every time.
pub fn are_errors_where_damaged(mounted: &Mounted) {
    let original = mixed();
    let file = File::open(mounted.path("bad-payload")).unwrap();
    let chunk = 32_768;
    for round in 0..3 {
        for page in (0..original.len()).step_by(PAGE) {
            let mut bytes = [0; PAGE];
            let outcome = file.read_at(&mut bytes, page as u64);
            if page < chunk {
                assert_eq!(errno(outcome), EIO, "page {page}, round {round}");
            } else {
                let end = original.len().min(page + PAGE);
                assert_eq!(outcome.unwrap(), end - page);
                assert!(bytes[..end - page] == original[page..end], "page {page}");
            }
        }
        if round == 1 {
            forget_pages(&file);
        }
    }
    // Read in large pieces, from a place where it is whole, it comes to the same.
    forget_pages(&file);
    let mut bytes = vec![0; original.len()];
    file.read_exact_at(&mut bytes[chunk..], chunk as u64)
        .unwrap();
    assert!(bytes[chunk..] == original[chunk..]);
    assert_eq!(errno(file.read_at(&mut bytes, 0)), EIO);
    assert_eq!(
        errno(fs::read(mounted.path("bad-payload")).map(|b| b.len())),
        EIO
    );

    let logged = mounted.logged();
    let lines: Vec<_> = logged
        .lines()
        .filter(|line| line.contains("bad-payload") && !line.contains("is mounted on"))
        .collect();
    assert_eq!(lines.len(), 1, "{logged}");
    assert!(
        lines[0].contains("chunk 0 (from byte 0): damaged zstd data"),
        "{logged}"
    );
    assert!(mounted.stats()["damage_errors"].as_u64().unwrap() >= 8);
}
