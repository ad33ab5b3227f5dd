//! Two models agree where the files are objects of a store: whatever is read, in whatever order, by however many, is what the
//! originals in memory hold there (see common/model.rs).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;

use common::model::{self, OPERATIONS, source};
use common::remote::{Bucket, Site};

/// Each costs some requests.
const FEWER: usize = OPERATIONS / 4;

fn agree(arguments: &[&str]) {
    let (directory, originals) = source();
    let bucket = Bucket::new();
    for entry in fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        bucket.put(&format!("a/{name}"), &fs::read(&path).unwrap());
    }
    model::agree(FEWER, &originals, || bucket.mount("a/", arguments));
}

#[test]
fn a_mount_of_a_store_with_a_tiny_cache_agrees_with_the_originals() {
    agree(&["--cache-size", "4M", "--prefetch", "1M", "--threads", "4"]);
}

#[test]
fn a_mount_of_a_store_with_room_for_everything_agrees_with_the_originals() {
    agree(&[]);
}

#[test]
fn a_file_behind_a_web_server_agrees_with_the_original() {
    let (directory, originals) = source();
    let site = Site::new();
    let original = originals
        .iter()
        .find(|original| original.name == "text-zstd-300001")
        .unwrap();
    let name = format!("{}.warp", original.name);
    site.put(&name, &fs::read(directory.path().join(&name)).unwrap());
    model::agree(FEWER, std::slice::from_ref(original), || {
        site.mount(&name, &["--cache-size", "4M"])
    });
}
