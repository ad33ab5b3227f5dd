//! How many requests what costs: counted by a proxy in front of real servers, and by the mount itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::remote::proxy::Passed;
use common::remote::{Bucket, Site};
use common::{Mounted, pack, sample, warpfs};

const CHUNK: u64 = 128 << 10;

/// A web server with a packed file of chunks of [`CHUNK`], and its original.
fn site(length: usize, arguments: &[&str]) -> (Site, Vec<u8>) {
    let own = tempfile::tempdir().unwrap();
    let original = sample(length, 11);
    let (plain, packed) = (own.path().join("x"), own.path().join("x.warp"));
    fs::write(&plain, &original).unwrap();
    pack(&plain, &packed, arguments);
    let site = Site::new();
    site.put("x.warp", &fs::read(&packed).unwrap());
    (site, original)
}

/// A file whose reads go past the kernel's own readahead.
fn open(mounted: &Mounted) -> File {
    let file = File::open(mounted.mount_point.join("x")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    file
}

fn gets(passed: &[Passed]) -> Vec<&Passed> {
    passed
        .iter()
        .filter(|request| request.method == "GET")
        .collect()
}

#[test]
fn a_random_read_of_4_kib_fetches_its_chunk_in_one_request_and_no_more() {
    let (site, original) = site(32 << 20, &["--chunk-size", "128K"]);
    let mounted = site.mount("x.warp", &[]);
    let file = open(&mounted);
    let opened = site.proxy.take_passed();
    // Header and table by looking at it, footer and record by opening it.
    assert!(gets(&opened).len() <= 2, "{opened:?}");

    let mut bytes = [0; 4096];
    for at in [77, 13, 200, 131, 5, 254] {
        let offset = at * CHUNK + 8192;
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert_eq!(bytes[..], original[offset as usize..][..4096]);
        let passed = site.proxy.take_passed();
        assert_eq!(passed.len(), 1, "{passed:?}");
        assert!(passed[0].bytes < CHUNK, "{passed:?}");
        // It is there now.
        file.read_exact_at(&mut bytes, offset + 65536).unwrap();
        assert!(site.proxy.take_passed().is_empty());
    }
}

#[test]
fn a_random_read_within_a_large_chunk_fetches_what_leads_up_to_it_in_one_request() {
    let (site, original) = site(32 << 20, &["--chunk-size", "8M", "--codec", "zstd"]);
    let mounted = site.mount("x.warp", &[]);
    let file = open(&mounted);
    site.proxy.take_passed();
    let mut bytes = [0; 4096];
    for (at, part) in [(9 << 20, 8), (20 << 20, 2), (31 << 20, 1)] {
        file.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(bytes[..], original[at as usize..][..4096]);
        let passed = site.proxy.take_passed();
        // Parts of a chunk differ in how they compress: what was not foreseen is fetched by itself.
        assert!(passed.len() <= 2, "{passed:?}");
        let fetched: u64 = passed.iter().map(|request| request.bytes).sum();
        assert!(fetched < (8 << 20) / part, "{at}: {passed:?}");
    }
}

#[test]
fn a_sequential_reader_gets_his_chunks_in_large_requests_of_which_several_are_under_way() {
    let (site, original) = site(96 << 20, &["--chunk-size", "128K", "--codec", "lz4"]);
    site.proxy.set_delay(Duration::from_millis(20));
    let mounted = site.mount("x.warp", &[]);
    let mut read = Vec::new();
    let start = Instant::now();
    let mut file = File::open(mounted.mount_point.join("x")).unwrap();
    file.read_to_end(&mut read).unwrap();
    let took = start.elapsed();
    assert!(read == original);
    let passed = site.proxy.take_passed();
    let requests = gets(&passed).len();
    let chunks = original.len() as u64 / CHUNK;
    assert!(requests as u64 * 4 < chunks, "{requests} of {chunks}");
    let fetched: u64 = passed.iter().map(|request| request.bytes).sum();
    let packed = fs::metadata(site.root().join("x.warp")).unwrap().len();
    assert!(fetched < packed + packed / 8, "{fetched} of {packed}");
    assert!(site.proxy.most_under_way() >= 3);
    // One after the other, they alone would take this long.
    assert!(took < Duration::from_millis(20 * chunks / 2), "{took:?}");
}

#[test]
fn a_sequential_reader_far_away_fetches_no_payload_twice() {
    let (site, original) = site(48 << 20, &["--chunk-size", "128K", "--codec", "zstd"]);
    site.proxy.set_delay(Duration::from_millis(50));
    let mounted = site.mount("x.warp", &[]);
    assert!(fs::read(mounted.path("x")).unwrap() == original);
    let passed = site.proxy.take_passed();
    let fetched: u64 = passed.iter().map(|request| request.bytes).sum();
    let packed = fs::metadata(site.root().join("x.warp")).unwrap().len();
    // What describes the file is read in blocks, which reach into the payloads.
    assert!(fetched < packed + (256 << 10), "{fetched} of {packed}");
    let requests = gets(&passed).len() as u64;
    assert!(requests < original.len() as u64 / CHUNK / 8, "{passed:#?}");
}

#[test]
fn who_reads_to_the_end_of_an_open_file_does_not_wait_for_the_store() {
    let (site, original) = site(1 << 20, &["--chunk-size", "128K"]);
    let mounted = site.mount("x.warp", &[]);
    let mut file = File::open(mounted.path("x")).unwrap();
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == original);
    // The kernel does not believe for longer what it was told of the file.
    std::thread::sleep(Duration::from_millis(1500));
    site.proxy.take_passed();
    let read = file
        .read_at(&mut [0; 100], original.len() as u64 - 10)
        .unwrap();
    assert_eq!(read, 10);
    assert_eq!(file.read(&mut [0; 100]).unwrap(), 0);
    let passed = site.proxy.take_passed();
    assert!(passed.is_empty(), "{passed:?}");
}

#[test]
fn a_file_that_was_listed_is_opened_in_one_round_trip_with_table_and_record() {
    let (bucket, own) = (Bucket::new(), tempfile::tempdir().unwrap());
    // A table that does not end in the first block.
    let original = sample(64 << 20, 3);
    let (plain, packed) = (own.path().join("x"), own.path().join("x.warp"));
    fs::write(&plain, &original).unwrap();
    pack(&plain, &packed, &["--chunk-size", "4K", "--codec", "lz4"]);
    bucket.put("a/x.warp", &fs::read(&packed).unwrap());
    let mounted = bucket.mount("a/", &[]);
    assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 1);
    let delay = Duration::from_millis(400);
    bucket.proxy.take_passed();
    bucket.proxy.set_delay(delay);
    let began = Instant::now();
    let file = File::open(mounted.path("x")).unwrap();
    let took = began.elapsed();
    let passed = bucket.proxy.take_passed();
    assert!(took < 2 * delay, "{took:?} {passed:#?}");
    assert!(passed.len() <= 3, "{passed:#?}");
    bucket.proxy.set_delay(Duration::ZERO);
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 12345).unwrap();
    assert!(bytes[..] == original[12345..][..4096]);
}

#[test]
fn what_a_mount_has_asked_for_is_counted_and_shown() {
    let (site, _) = site(4 << 20, &["--chunk-size", "128K"]);
    let mounted = site.mount("x.warp", &[]);
    fs::read(mounted.mount_point.join("x")).unwrap();
    let stats = warpfs()
        .args(["stats", "--json"])
        .arg(&mounted.mount_point)
        .output()
        .unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
    let passed = site.proxy.take_passed();
    assert_eq!(stats["remote_requests"], passed.len());
    let bytes: u64 = passed.iter().map(|request| request.bytes).sum();
    assert_eq!(stats["remote_bytes_received"], bytes);
    let shown = warpfs()
        .arg("stats")
        .arg(&mounted.mount_point)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = format!("requests    {}", passed.len());
    assert!(
        shown.contains("NETWORK") && shown.contains(&line),
        "{shown}"
    );
}

#[test]
fn requests_under_way_stay_within_bounds_whatever_readers_do() {
    let (site, original) = site(64 << 20, &["--chunk-size", "128K", "--codec", "lz4"]);
    site.proxy.set_delay(Duration::from_millis(30));
    let mounted = site.mount("x.warp", &[]);
    std::thread::scope(|scope| {
        for reader in 0..100_u64 {
            let (mounted, original) = (&mounted, &original);
            scope.spawn(move || {
                let file = open(mounted);
                let mut bytes = [0; 4096];
                for step in 0..5 {
                    let offset = (reader * 5 + step) * CHUNK % original.len() as u64;
                    file.read_exact_at(&mut bytes, offset).unwrap();
                    assert_eq!(bytes[..], original[offset as usize..][..4096]);
                }
            });
        }
    });
    let most = site.proxy.most_under_way();
    assert!((8..=64 + 8).contains(&most), "{most}");
}
