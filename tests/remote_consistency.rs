//! An object is its ETag: who holds one open reads that or gets ESTALE, and who opens it anew has the new one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::remote::{Bucket, Site};
use common::vectors::forget_pages;
use common::{Mounted, sample};

const ESTALE: i32 = rustix::io::Errno::STALE.raw_os_error();

/// Packed bytes of these contents, in small chunks.
fn packed(bytes: &[u8]) -> Vec<u8> {
    common::packed(bytes, &["--chunk-size", "64K"])
}

fn read_at(file: &File, at: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let read = file.read_at(&mut bytes, at)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// What is held open is stale behind a change, and what is opened is new: `put` replaces what shows at `path`.
fn changes(path: &Path, before: &[u8], after: &[u8], replace: impl Fn()) {
    let far = 900_000;
    let held = File::open(path).unwrap();
    assert_eq!(read_at(&held, 0).unwrap(), before[..4096]);
    replace();
    // Opened anew, it is the new one at once, whatever the kernel remembers.
    let opened = File::open(path).unwrap();
    assert_eq!(opened.metadata().unwrap().len(), after.len() as u64);
    assert_eq!(
        read_at(&opened, far).unwrap(),
        after[far as usize..][..4096]
    );
    assert_eq!(read_at(&opened, 0).unwrap(), after[..4096]);
    // The old handle never gets a byte of the new one.
    forget_pages(&held);
    let error = read_at(&held, far).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(ESTALE), "{error}");
    assert!(fs::read(path).unwrap() == after);
}

#[test]
fn a_packed_object_that_was_replaced_is_stale_to_who_holds_it_and_new_to_who_opens_it() {
    let (before, after) = (sample(1_000_000, 1), sample(1_200_000, 2));
    let bucket = Bucket::new();
    bucket.put("d/x.warp", &packed(&before));
    let mounted = bucket.mount("", &["--prefetch", "off"]);
    changes(&mounted.path("d/x"), &before, &after, || {
        bucket.put("d/x.warp", &packed(&after))
    });
}

#[test]
fn a_plain_object_that_was_replaced_is_stale_to_who_holds_it_and_new_to_who_opens_it() {
    // As long as before: only the ETag tells.
    let (before, after) = (sample(1_000_000, 1), sample(1_000_000, 2));
    let bucket = Bucket::new();
    bucket.put("plain", &before);
    let mounted = bucket.mount("", &["--prefetch", "off"]);
    changes(&mounted.path("plain"), &before, &after, || {
        bucket.put("plain", &after)
    });
}

#[test]
fn a_single_object_and_a_file_behind_a_web_server_are_stale_when_replaced() {
    let (before, after) = (sample(1_000_000, 1), sample(1_200_000, 2));
    let bucket = Bucket::new();
    bucket.put("x.warp", &packed(&before));
    let mounted = bucket.mount("x.warp", &["--prefetch", "off"]);
    changes(&mounted.path("x"), &before, &after, || {
        bucket.put("x.warp", &packed(&after))
    });

    let site = Site::new();
    site.put("x.warp", &packed(&before));
    let mounted = site.mount("x.warp", &["--prefetch", "off"]);
    changes(&mounted.path("x"), &before, &after, || {
        site.put("x.warp", &packed(&after))
    });
}

#[test]
fn a_url_in_the_place_of_a_file_is_read_to_its_end_when_it_was_replaced_by_a_larger_one() {
    let (before, after) = (sample(1_000_000, 1), sample(1_200_000, 2));
    let site = Site::new();
    site.put("x.warp", &packed(&before));
    let own = tempfile::tempdir().unwrap();
    let place = own.path().join("x");
    fs::write(&place, "").unwrap();
    // It is for what is looked up, and a mount's root is not.
    let mounted = Mounted::at(&site.url("x.warp"), &place, &["--ttl", "forever"]);
    for bytes in [&before, &after] {
        site.put("x.warp", &packed(bytes));
        // As programs read that do not ask first how much there is.
        let mut opened = File::open(&mounted.mount_point).unwrap();
        let mut part = vec![0; 128 << 10];
        let mut read = Vec::new();
        while let length @ 1.. = opened.read(&mut part).unwrap() {
            read.extend_from_slice(&part[..length]);
        }
        assert!(read == *bytes, "{} of {}", read.len(), bytes.len());
    }
}

#[test]
fn every_request_for_a_part_of_an_open_object_says_which_one_is_meant() {
    let bytes = sample(1_000_000, 1);
    let bucket = Bucket::new();
    bucket.put("x.warp", &packed(&bytes));
    bucket.put("plain", &bytes);
    let mounted = bucket.mount("", &[]);
    for name in ["x", "plain"] {
        let file = File::open(mounted.path(name)).unwrap();
        bucket.proxy.take_passed();
        read_at(&file, 500_000).unwrap();
        let passed = bucket.proxy.take_passed();
        assert!(!passed.is_empty(), "{name}");
        for request in passed {
            assert!(request.if_match.is_some(), "{name}: {request:?}");
        }
    }
}

#[test]
fn an_object_that_was_removed_is_gone_for_who_opens_it() {
    let bucket = Bucket::new();
    bucket.put("x.warp", &packed(b"something"));
    bucket.put("stays", b"1");
    let mounted = bucket.mount("", &[]);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), b"something");
    bucket.store.remove("bucket", "x.warp");
    let error = File::open(mounted.path("x")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
}
