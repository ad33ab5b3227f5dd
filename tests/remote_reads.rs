//! Promise 4 where the files are objects of a store or lie behind a web server: reads return the original bytes or an error. The
//! files are those an independent program wrote, good ones and damaged ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;

use common::remote::{Bucket, Site};
use common::vectors::{self, EIO};
use common::{Mounted, mixed, pack, sample, vector, wait_until};
use warpfs::{Engine, EngineOptions};

fn mount_vectors(arguments: &[&str]) -> (Bucket, Mounted) {
    let names = vectors::names();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let bucket = Bucket::with_vectors(&names);
    let mounted = bucket.mount("", arguments);
    (bucket, mounted)
}

#[test]
fn every_good_object_reads_as_its_original_in_pieces_of_any_size() {
    let (_bucket, mounted) = mount_vectors(&[]);
    vectors::read_as_their_originals(&mounted);
}

#[test]
fn damaged_objects_are_errors_where_they_are_damaged_and_nowhere_else() {
    let (_bucket, mounted) = mount_vectors(&[]);
    vectors::show_as_they_are(&mounted);
    vectors::cannot_be_opened(&mounted);
    vectors::are_errors_where_damaged(&mounted);
}

#[test]
fn good_and_damaged_files_behind_a_web_server_read_as_they_do_from_a_disk() {
    let site = Site::new();
    for name in [
        "v2-zstd-blake3.warp",
        "v2-lz4-xxh64.warp",
        "bad-payload.warp",
        "bad-hash-id.warp",
    ] {
        site.put(name, &fs::read(vector(name)).unwrap());
    }
    for name in ["v2-zstd-blake3", "v2-lz4-xxh64"] {
        let mounted = site.mount(&format!("{name}.warp"), &[]);
        assert!(fs::read(mounted.path(name)).unwrap() == mixed(), "{name}");
    }
    let mounted = site.mount("bad-payload.warp", &[]);
    vectors::are_errors_where_damaged(&mounted);
    let mounted = site.mount("bad-hash-id.warp", &[]);
    let error = fs::read(mounted.path("bad-hash-id")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
}

#[test]
fn many_urls_are_open_at_once_in_an_engine_whose_memory_is_full() {
    let site = Site::new();
    let urls = (0..20).map(|number| format!("{number}.warp"));
    let urls: Vec<_> = urls.map(|name| (site.url(&name), name)).collect();
    for (_, name) in &urls {
        site.put(name, &fs::read(vector("v2-zstd-blake3.warp")).unwrap());
    }
    let own = tempfile::tempdir().unwrap();
    let [plain, packed] = ["x", "x.warp"].map(|name| own.path().join(name));
    fs::write(&plain, sample(20 << 20, 4)).unwrap();
    pack(&plain, &packed, &["--chunk-size", "64K"]);
    let opening = std::thread::spawn(move || {
        let engine = Engine::new(&EngineOptions {
            cache_size: 8 << 20,
            ..EngineOptions::default()
        });
        let engine = engine.unwrap();
        let mut bytes = vec![0; 20 << 20];
        engine.open(packed).unwrap().read_at(&mut bytes, 0).unwrap();
        let open = |(url, _)| engine.open(url).unwrap();
        let readers: Vec<_> = urls.into_iter().map(open).collect();
        for reader in readers {
            let read = reader.read_at(&mut bytes, 0).unwrap();
            assert!(bytes[..read] == mixed());
        }
    });
    wait_until("the opening of them", || opening.is_finished());
    opening.join().unwrap();
}
