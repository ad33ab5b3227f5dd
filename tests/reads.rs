//! Promise 4: reads return the original bytes or an error, never anything else. Here through a real mount; the good and
//! the damaged files are those an independent program wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use common::place::said;
use common::users::{FuseForAll, SOMEBODY, as_user, mount_as_somebody, place_of_somebody};
use common::vectors::{self, EIO, PAGE, errno, forget_pages, read_by};
use common::{Mounted, Random, mixed, pack, run, sample, shell, vector, wait_until};
use serde_json::Value;

fn mount_vectors(arguments: &[&str]) -> (tempfile::TempDir, Mounted) {
    let source = tempfile::tempdir().unwrap();
    for name in vectors::names() {
        fs::copy(vector(&name), source.path().join(&name)).unwrap();
    }
    let mounted = Mounted::new(source.path(), arguments);
    (source, mounted)
}

#[test]
fn every_good_file_reads_as_its_original_in_pieces_of_any_size() {
    let (_source, mounted) = mount_vectors(&[]);
    vectors::read_as_their_originals(&mounted);
}

#[test]
fn files_are_read_in_order_alike_by_root_and_by_ordinary_users_announced_or_not() {
    let original = sample(20 << 20, 5);
    let work = tempfile::tempdir().unwrap();
    let plain = work.path().join("x");
    fs::write(&plain, &original).unwrap();
    let files = [("short", "64K"), ("default", "128K"), ("long", "2M")];
    for (name, chunk_size) in files {
        let packed = work.path().join(name);
        pack(&plain, &packed, &["--chunk-size", chunk_size]);
    }
    let _everybody = FuseForAll::new(false);
    for user in [0, SOMEBODY] {
        // cat announces that it reads in order, and dd does not.
        for script in ["cat \"$1\"", "dd if=\"$1\" bs=100k status=none"] {
            let (place, program) = place_of_somebody();
            for (name, _) in files {
                let packed = place.source().join(format!("{name}.warp"));
                fs::copy(work.path().join(name), packed).unwrap();
            }
            let mounted = match user {
                0 => place.mount(&[]),
                _ => mount_as_somebody(&place, &program, &[]),
            };
            assert!(mounted.status.success(), "{}", said(&mounted));
            for (name, _) in files {
                let file = place.mount_point().join(name);
                let words = ["sh", "-c", script, "sh"].map(OsStr::new);
                let read = as_user(user, &[&words[..], &[file.as_os_str()]].concat());
                assert!(read.stdout == original, "{user}: {script}, {name}");
            }
        }
    }
}

#[test]
fn the_kernel_reads_half_a_megabyte_ahead_in_roots_mounts() {
    let (_source, mounted) = mount_vectors(&[]);
    let device = fs::metadata(&mounted.mount_point).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let set = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"));
    assert_eq!(set.unwrap().trim(), "512");
}

#[test]
fn a_file_that_is_none_by_its_header_shows_as_it_is_and_the_log_says_why() {
    let (_source, mounted) = mount_vectors(&[]);
    vectors::show_as_they_are(&mounted);
}

#[test]
fn a_file_with_a_damaged_table_or_footer_cannot_be_opened_and_the_log_says_why() {
    let (_source, mounted) = mount_vectors(&[]);
    vectors::cannot_be_opened(&mounted);
}

#[test]
fn a_damaged_chunk_is_an_error_for_its_own_pages_and_no_others_every_time() {
    let (_source, mounted) = mount_vectors(&[]);
    vectors::are_errors_where_damaged(&mounted);
}

#[test]
fn a_chunk_in_the_middle_that_ends_inside_a_page_costs_that_page_too_but_no_more() {
    let source = tempfile::tempdir().unwrap();
    let original = sample(300_000, 7);
    fs::write(source.path().join("original"), &original).unwrap();
    // Written by the independent program, with chunks that are no multiple of a page, is what there is none of: the
    // chunks of these boundaries are made here.
    let chunk = 70_001;
    let path = source.path().join("x.warp");
    let mut payloads = Vec::new();
    for piece in original.chunks(chunk) {
        fs::write(source.path().join("piece"), piece).unwrap();
        pack(
            &source.path().join("piece"),
            &source.path().join("piece.packed"),
            &["--codec", "zstd", "--checksum", "none"],
        );
        // Behind a header of 18 bytes and a table of 16 for the one chunk, before the record of digests.
        let packed = fs::read(source.path().join("piece.packed")).unwrap();
        let length = u64::from_le_bytes(packed[18..26].try_into().unwrap());
        payloads.push(packed[34..][..length as usize].to_vec());
    }
    let mut bytes = b"PRAW\x02\x01".to_vec();
    bytes.extend((original.len() as u64).to_le_bytes());
    bytes.extend((payloads.len() as u32).to_le_bytes());
    for payload in &payloads {
        bytes.extend((payload.len() as u64).to_le_bytes());
    }
    for piece in original.chunks(chunk) {
        bytes.extend((piece.len() as u64).to_le_bytes());
    }
    let damaged_at = bytes.len() + payloads[0].len() + payloads[1].len();
    bytes.extend(payloads.concat());
    fs::write(&path, &bytes).unwrap();
    let mounted = Mounted::new(source.path(), &["--ttl", "0"]);
    assert!(fs::read(mounted.path("x")).unwrap() == original);
    drop(mounted);

    bytes[damaged_at..damaged_at + 4].fill(0xff);
    fs::write(&path, &bytes).unwrap();
    let mounted = Mounted::new(source.path(), &[]);
    let file = File::open(mounted.path("x")).unwrap();
    let lost = 2 * chunk..3 * chunk;
    for page in (0..original.len()).step_by(PAGE) {
        let end = original.len().min(page + PAGE);
        let mut bytes = [0; PAGE];
        let outcome = file.read_at(&mut bytes, page as u64);
        if page < lost.end && end > lost.start {
            assert_eq!(errno(outcome), EIO, "page {page}");
        } else {
            assert_eq!(outcome.unwrap(), end - page);
            assert!(bytes[..end - page] == original[page..end], "page {page}");
        }
    }
}

/// A chunk's payload as other programs write it, in the codec of that number.
fn payload(codec: u8, piece: &[u8]) -> Vec<u8> {
    match codec {
        0 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(piece).unwrap();
            encoder.finish().unwrap()
        }
        1 => zstd::bulk::compress(piece, 3).unwrap(),
        2 => snap::raw::Encoder::new().compress_vec(piece).unwrap(),
        _ => {
            let mut packed = Vec::new();
            let quality = brotli::enc::BrotliEncoderParams::default();
            brotli::BrotliCompress(&mut &*piece, &mut packed, &quality).unwrap();
            packed
        }
    }
}

#[test]
fn chunks_of_any_sizes_read_as_their_original_empty_ones_among_them() {
    let sizes = [0, 5000, 0, 1, 70_000, 0, 0, 4096, 0];
    let original = sample(sizes.iter().sum(), 11);
    let source = tempfile::tempdir().unwrap();
    for codec in 0..4 {
        let (mut packed_sizes, mut payloads) = (Vec::new(), Vec::new());
        let mut rest = &original[..];
        for size in sizes {
            let (piece, behind) = rest.split_at(size);
            rest = behind;
            let payload = payload(codec, piece);
            packed_sizes.extend((payload.len() as u64).to_le_bytes());
            payloads.extend(payload);
        }
        let mut bytes = b"PRAW\x02".to_vec();
        bytes.push(codec);
        bytes.extend((original.len() as u64).to_le_bytes());
        bytes.extend((sizes.len() as u32).to_le_bytes());
        bytes.extend(packed_sizes);
        bytes.extend(sizes.iter().flat_map(|&size| (size as u64).to_le_bytes()));
        bytes.extend(payloads);
        fs::write(source.path().join(format!("{codec}.warp")), bytes).unwrap();
    }
    let mounted = Mounted::new(source.path(), &[]);
    for codec in 0..4 {
        let file = File::open(mounted.path(codec.to_string())).unwrap();
        for piece in [257, PAGE, original.len() + 1] {
            forget_pages(&file);
            assert!(
                read_by(&file, piece).unwrap() == original,
                "{codec}: {piece}"
            );
        }
        let packed = source.path().join(format!("{codec}.warp"));
        run([OsStr::new("verify"), packed.as_os_str()]);
        for (start, end) in [
            (0, original.len()),
            (4999, 5002),
            (5000, 5001),
            (5001, 5001),
            (5001, 75_001),
            (75_000, 79_097),
        ] {
            let range = format!("{start}..{end}");
            let words = ["unpack", "-c", "--range", &range].map(OsStr::new);
            let part = run([&words[..], &[packed.as_os_str()]].concat());
            assert!(part.stdout == original[start..end], "{codec}: {range}");
        }
    }
}

#[test]
fn a_file_that_was_cut_short_reads_up_to_there() {
    let (source, mounted) = mount_vectors(&[]);
    let original = mixed();
    // The independent writer's ends inside the first chunk; this one has that and ends inside the second.
    let longer = File::options()
        .write(true)
        .open(source.path().join("v2-zstd-none.warp"))
        .unwrap();
    longer.set_len(82 + 12_285 + 20).unwrap();
    for (name, held) in [("bad-short-payload", 0), ("v2-zstd-none", 32_768)] {
        let file = File::open(mounted.path(name)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), original.len() as u64);
        let bytes = &mut vec![0; held];
        file.read_exact_at(bytes, 0).unwrap();
        assert!(*bytes == original[..held], "{name}");
        // Nothing stands in for what is gone.
        for at in [held as u64, 50_000, original.len() as u64 - 10] {
            assert_eq!(errno(file.read_at(&mut [0; 10], at)), EIO, "{name}");
        }
        let whole = fs::read(mounted.path(name)).map(|bytes| bytes.len());
        assert_eq!(errno(whole), EIO);
    }
    let logged = mounted.logged();
    assert!(logged.contains("bad-short-payload.warp: chunk 0 (from byte 0): file ends inside"));
}

#[test]
fn a_digest_that_does_not_fit_is_no_reason_not_to_read() {
    let (_source, mounted) = mount_vectors(&[]);
    assert!(fs::read(mounted.path("bad-digest")).unwrap() == mixed());
}

#[test]
fn a_memory_map_shows_the_original_and_direct_reads_too() {
    let source = tempfile::tempdir().unwrap();
    let original = sample(3_000_001, 3);
    fs::write(source.path().join("original"), &original).unwrap();
    for codec in ["lz4", "zstd", "snappy", "brotli"] {
        pack(
            &source.path().join("original"),
            &source.path().join(format!("{codec}.warp")),
            &["--codec", codec, "--chunk-size", "300000"],
        );
    }
    let mounted = Mounted::new(source.path(), &["--cache-size", "2M"]);
    for codec in ["lz4", "zstd", "snappy", "brotli"] {
        let compare = format!(
            "import mmap, random\n\
             original = open('{}', 'rb').read()\n\
             file = open('{codec}', 'rb')\n\
             map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n\
             random.seed(5)\n\
             for _ in range(300):\n\
             \x20   at = random.randrange(len(original))\n\
             \x20   assert map[at:at + 5000] == original[at:at + 5000], at\n\
             assert map[:] == original\n",
            source.path().join("original").display()
        );
        let script = source.path().join("compare.py");
        fs::write(&script, compare).unwrap();
        shell(
            &mounted.mount_point,
            &format!("python3 {}", script.display()),
        );

        let direct = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
            .open(mounted.path(codec))
            .unwrap();
        let mut random = Random(9);
        for _ in 0..200 {
            let at = random.below(original.len() as u64) as usize;
            let mut bytes = vec![0; random.below(2_000_000) as usize + 1];
            let read = direct.read_at(&mut bytes, at as u64).unwrap();
            // More than one request is never cut short before the end.
            assert_eq!(read, bytes.len().min(original.len() - at), "{codec}");
            assert!(bytes[..read] == original[at..at + read], "{codec} at {at}");
        }
    }
}

#[test]
fn threads_that_share_a_descriptor_get_what_they_ask_for() {
    let source = tempfile::tempdir().unwrap();
    let original = sample(8 << 20, 4);
    fs::write(source.path().join("original"), &original).unwrap();
    pack(
        &source.path().join("original"),
        &source.path().join("x.warp"),
        &["--codec", "lz4", "--chunk-size", "256K"],
    );
    let mounted = Mounted::new(source.path(), &["--cache-size", "3M"]);
    let file = File::open(mounted.path("x")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (file, original) = (&file, &original);
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut bytes = vec![0; 70_000];
                for _ in 0..300 {
                    let length = random.below(70_000) as usize + 1;
                    let at = random.below((original.len() - length) as u64) as usize;
                    file.read_exact_at(&mut bytes[..length], at as u64).unwrap();
                    assert!(bytes[..length] == original[at..at + length], "at {at}");
                }
            });
        }
    });
}

#[test]
fn holes_are_found_by_seeking_and_read_as_zeros() {
    let source = tempfile::tempdir().unwrap();
    let original = source.path().join("original");
    let file = File::create(&original).unwrap();
    let chunk = 1 << 20;
    file.set_len(40 * chunk).unwrap();
    for island in [3, 17, 18, 39] {
        file.write_all_at(&sample(chunk as usize, island), island * chunk)
            .unwrap();
    }
    for codec in ["lz4", "zstd", "snappy", "brotli"] {
        let arguments = ["--codec", codec, "--chunk-size", "1M"];
        pack(
            &original,
            &source.path().join(format!("{codec}.warp")),
            &arguments,
        );
    }
    let mounted = Mounted::new(source.path(), &[]);
    for codec in ["lz4", "zstd", "snappy", "brotli"] {
        let file = File::open(mounted.path(codec)).unwrap();
        let data = |at| rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at));
        let hole = |at| rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(at));
        assert_eq!(data(0), Ok(3 * chunk), "{codec}");
        assert_eq!(hole(0), Ok(0));
        assert_eq!(hole(3 * chunk + 5), Ok(4 * chunk));
        assert_eq!(data(3 * chunk + 5), Ok(3 * chunk + 5));
        assert_eq!(
            (data(4 * chunk), hole(17 * chunk)),
            (Ok(17 * chunk), Ok(19 * chunk))
        );
        assert_eq!(
            (data(19 * chunk), hole(39 * chunk)),
            (Ok(39 * chunk), Ok(40 * chunk))
        );
        assert_eq!(data(40 * chunk), Err(rustix::io::Errno::NXIO));
        assert_eq!(hole(40 * chunk), Err(rustix::io::Errno::NXIO));
        shell(
            &mounted.mount_point,
            &format!("cmp {codec} {}", original.display()),
        );
        shell(
            source.path(),
            &format!(
                "cp --sparse=auto {} copy; cmp copy original; test $(stat -c %b copy) -lt 20000; rm copy",
                mounted.path(codec).display()
            ),
        );
    }
}

#[test]
fn a_damaged_chunk_that_looks_like_a_hole_is_data() {
    let source = tempfile::tempdir().unwrap();
    let original = source.path().join("original");
    File::create(&original).unwrap().set_len(4 << 20).unwrap();
    let path = source.path().join("x.warp");
    pack(
        &original,
        &path,
        &[
            "--codec",
            "zstd",
            "--chunk-size",
            "1M",
            "--checksum",
            "none",
        ],
    );
    // All chunks are the same. The record of digests, which knows the zeros whatever becomes of them, is left out.
    let packed = fs::read(&path).unwrap();
    let payload = u64::from_le_bytes(packed[18..26].try_into().unwrap());
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(18 + 4 * 16 + 4 * payload).unwrap();
    file.write_all_at(&[0xff; 4], 18 + 4 * 16 + 2 * payload)
        .unwrap();
    let mounted = Mounted::new(source.path(), &[]);
    let file = File::open(mounted.path("x")).unwrap();
    let found = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0));
    assert_eq!(found, Ok(2 << 20));
    assert_eq!(errno(file.read_at(&mut [0; 10], 2 << 20)), EIO);
}

#[test]
fn what_is_read_backwards_or_in_strides_is_decoded_ahead() {
    let source = tempfile::tempdir().unwrap();
    let original = sample(32 << 20, 8);
    let plain = source.path().join("original");
    fs::write(&plain, &original).unwrap();
    pack(&plain, &source.path().join("x.warp"), &["--codec", "zstd"]);
    // How much of it is decoded ahead of who reads these places, in chunks.
    let ahead = |length: usize, places: &[usize], arguments: &[&str]| {
        let mounted = Mounted::new(source.path(), arguments);
        let file = File::open(mounted.path("x")).unwrap();
        let mut bytes = vec![0; length];
        for &at in places {
            file.read_exact_at(&mut bytes, at as u64).unwrap();
            assert!(bytes == original[at..at + length], "at {at}");
        }
        let stats = mounted.stats();
        let number = |key: &str| stats[key].as_u64().unwrap();
        (number("prefetched_chunks"), number("prefetch_hits"))
    };
    let every = |step| (0..original.len()).step_by(step);
    for (length, places, chunks) in [
        (64 << 10, every(64 << 10).rev().collect::<Vec<_>>(), 256),
        (16 << 10, every(16 << 10).rev().collect(), 256),
        (4 << 10, every(256 << 10).collect(), 128),
        (4 << 10, every(256 << 10).rev().collect(), 128),
    ] {
        // Somebody else may keep the processors from being there in time.
        wait_until("much is decoded ahead, and most of that read", || {
            let (decoded, read) = ahead(length, &places, &[]);
            read > chunks / 4 && decoded <= read + chunks / 4
        });
        assert_eq!(ahead(length, &places, &["--prefetch", "off"]), (0, 0));
    }
}

#[test]
fn the_statistics_say_what_was_done() {
    let source = tempfile::tempdir().unwrap();
    let original = sample(4 << 20, 6);
    fs::write(source.path().join("original"), &original).unwrap();
    pack(
        &source.path().join("original"),
        &source.path().join("x.warp"),
        &["--codec", "zstd", "--chunk-size", "1M"],
    );
    let mounted = Mounted::new(source.path(), &["--cache-size", "32M"]);
    let number = |stats: &Value, key: &str| stats[key].as_u64().unwrap_or_else(|| panic!("{key}"));
    let before = mounted.stats();
    for key in [
        "reads",
        "decoded_chunks",
        "cache_misses",
        "open_files",
        "damage_errors",
    ] {
        assert_eq!(number(&before, key), 0, "{key}");
    }
    let file = File::open(mounted.path("x")).unwrap();
    // All but a page: what the kernel has all of is not kept twice.
    let mut most = vec![0; original.len() - 4096];
    file.read_exact_at(&mut most, 4096).unwrap();
    assert!(most == original[4096..]);
    forget_pages(&file);
    assert!(read_by(&file, 1 << 20).unwrap() == original);
    let after = mounted.stats();
    let decoded = number(&after, "decoded_chunks");
    assert_eq!(number(&after, "decoded_bytes"), decoded << 20);
    assert!(number(&after, "handed_over") >= 4, "{after}");
    let compressed = number(&after, "compressed_bytes");
    assert!(compressed < number(&after, "decoded_bytes"), "{after}");
    assert!(compressed > (1 << 20), "{after}");
    assert!(number(&after, "bytes_read") >= (8 << 20) - 4096, "{after}");
    assert!(number(&after, "reads") >= 8, "{after}");
    assert!(number(&after, "cache_hits") > 0, "{after}");
    assert_eq!(
        number(&after, "cache_misses") + number(&after, "prefetched_chunks"),
        decoded
    );
    assert_eq!(number(&after, "evicted_chunks"), 0);
    assert_eq!(number(&after, "open_files"), 1);
    assert_eq!(number(&after, "memory_budget"), 32 << 20);
    assert!(number(&after, "memory_used") > 0, "{after}");
    drop(file);
    let text = common::run([Path::new("stats"), &mounted.mount_point]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("bytes for each handed out"));
}
