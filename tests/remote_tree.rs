//! A prefix of a store shows as a tree: names, attributes, and what it costs to look at them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::remote::Bucket;
use common::remote::proxy::{Fault, Rule};
use common::{Mounted, mixed, pack, sample, shell, vector, wait_until};

const PACKED: &str = "v2-zstd-blake3.warp";

fn packed() -> Vec<u8> {
    fs::read(vector(PACKED)).unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn packed_objects_show_as_their_originals_plain_ones_as_they_are_and_slashes_as_directories() {
    let bucket = Bucket::new();
    for key in [
        "data/x.warp",
        "data/deep/er/y.warp",
        "beside/z.warp",
        "data-2/z.warp",
    ] {
        bucket.put(key, &packed());
    }
    bucket.put("data/plain.txt", b"as it is");
    bucket.put("data/empty", b"");
    bucket.put("data/empty.warp", b"");
    let mounted = bucket.mount("data/", &[]);
    assert_eq!(
        names(&mounted.path("")),
        ["deep", "empty", "empty.warp", "plain.txt", "x"]
    );
    assert_eq!(
        shell(&mounted.mount_point, "find . | sort | tr '\\n' ' '"),
        ". ./deep ./deep/er ./deep/er/y ./empty ./empty.warp ./plain.txt ./x "
    );
    for name in ["x", "deep/er/y"] {
        assert!(fs::read(mounted.path(name)).unwrap() == mixed(), "{name}");
    }
    assert_eq!(fs::read(mounted.path("plain.txt")).unwrap(), b"as it is");
    assert_eq!(fs::read(mounted.path("empty")).unwrap(), b"");
    for name in ["x.warp", "../beside/z", "deep/y", "nothing"] {
        assert!(!mounted.path(name).exists(), "{name}");
    }
    // A single object under the same prefix, and the whole bucket.
    drop(mounted);
    let mounted = bucket.mount("", &[]);
    assert_eq!(names(&mounted.path("")), ["beside", "data", "data-2"]);
    assert!(fs::read(mounted.path("data-2/z")).unwrap() == mixed());
}

#[test]
fn names_that_are_taken_stay_with_whom_they_belong_to() {
    let bucket = Bucket::new();
    for key in ["a.warp", "b.warp", "b.warp.warp", "d.warp"] {
        bucket.put(key, &packed());
    }
    bucket.put("a", b"another");
    bucket.put("d/inside", b"what a directory holds");
    bucket.put("none.warp", b"nothing that was packed");
    let mounted = bucket.mount("", &[]);
    assert_eq!(
        names(&mounted.path("")),
        ["a", "a.warp", "b", "b.warp", "d", "d.warp", "none.warp"]
    );
    assert_eq!(fs::read(mounted.path("a")).unwrap(), b"another");
    for raw in ["a.warp", "d.warp"] {
        assert!(fs::read(mounted.path(raw)).unwrap() == packed(), "{raw}");
    }
    for original in ["b", "b.warp"] {
        assert!(
            fs::read(mounted.path(original)).unwrap() == mixed(),
            "{original}"
        );
    }
    assert!(mounted.path("d").is_dir());
    // Looked up without a listing, it is the same.
    drop(mounted);
    let mounted = bucket.mount("", &[]);
    assert_eq!(fs::read(mounted.path("a")).unwrap(), b"another");
    assert!(fs::read(mounted.path("d.warp")).unwrap() == packed());
    assert!(fs::read(mounted.path("b.warp")).unwrap() == mixed());
    assert!(mounted.path("d").is_dir() && !mounted.path("none").exists());
    assert_eq!(
        mounted
            .logged()
            .matches("none.warp: not a .warp file")
            .count(),
        1,
        "{}",
        mounted.logged()
    );
}

/// A listing as a store would send it.
fn listing(keys: &[&str], prefixes: &[&str]) -> Vec<u8> {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult>".to_owned();
    for key in keys {
        text += &format!(
            "<Contents><Key>{key}</Key><LastModified>2024-05-04T11:02:00.000Z</LastModified>\
             <ETag>\"abc\"</ETag><Size>5</Size></Contents>"
        );
    }
    for prefix in prefixes {
        text += &format!("<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>");
    }
    (text + "</ListBucketResult>").into_bytes()
}

#[test]
fn names_that_no_file_can_have_do_not_show_and_lead_nowhere() {
    let bucket = Bucket::new();
    bucket.put("p/fine", b"12345");
    let long = "n".repeat(256);
    let just = "m".repeat(255);
    let long_key = format!("p/{long}");
    let just_key = format!("p/{just}");
    let keys = [
        "p/",
        "p/fine",
        "p/..",
        "p/.",
        "p//x",
        "/p/x",
        "../p/x",
        "elsewhere/x",
        "p/a&#x1;b",
        "p/&amp;",
        &long_key,
        &just_key,
    ];
    let prefixes = ["p/../", "p//", "p/./", "p/d/", "../", "other/d/"];
    bucket.proxy.rule(Rule {
        path: "list-type=2",
        method: None,
        times: usize::MAX,
        fault: Fault::Answer(200, "", listing(&keys, &prefixes)),
    });
    let mounted = bucket.mount("p/", &[]);
    assert_eq!(names(&mounted.path("")), ["&", "d", "fine", &just]);
    assert_eq!(fs::read(mounted.path("fine")).unwrap(), b"12345");
    for name in ["a\u{1}b", "x", "..x", &long] {
        assert!(fs::metadata(mounted.path(name)).is_err(), "{name}");
    }
    assert!(
        mounted
            .logged()
            .contains("do not show, for no file can have them"),
        "{}",
        mounted.logged()
    );
}

#[test]
fn a_listing_that_never_ends_is_an_error_and_takes_no_memory() {
    let bucket = Bucket::new();
    bucket.put("p/fine", b"12345");
    let mounted = bucket.mount("p/", &["-v", "--remote-timeout", "5"]);
    let endless = "<ListBucketResult><IsTruncated>true</IsTruncated>\
         <NextContinuationToken>again</NextContinuationToken></ListBucketResult>";
    bucket
        .proxy
        .always("list-type=2", Fault::Answer(200, "", endless.into()));
    let error = fs::read_dir(mounted.path(""))
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    bucket.proxy.behave();
    // Nor do two parts that name each other.
    for (path, next) in [
        ("token=one", "two"),
        ("token=two", "one"),
        ("list-type", "one"),
    ] {
        let endless = endless.replace("again", next).into();
        bucket.proxy.always(path, Fault::Answer(200, "", endless));
    }
    let error = fs::read_dir(mounted.path(""))
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let logged = mounted.logged();
    assert!(logged.contains("goes on and tells no names"), "{logged}");
    bucket.proxy.behave();
    assert_eq!(names(&mounted.path("")), ["fine"]);
}

#[test]
fn attributes_are_the_objects_size_and_time_and_what_is_stored() {
    let bucket = Bucket::new();
    let original = sample(1 << 20, 5);
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("x"), &original).unwrap();
    pack(&place.path().join("x"), &place.path().join("x.warp"), &[]);
    let packed = fs::read(place.path().join("x.warp")).unwrap();
    bucket.put("x.warp", &packed);
    bucket.put("d/plain", &original);
    let mounted = bucket.mount("", &[]);
    let found = fs::metadata(mounted.path("x")).unwrap();
    assert_eq!(found.len(), original.len() as u64);
    assert_eq!(found.blocks(), (packed.len() as u64).div_ceil(512));
    assert_eq!(found.mode(), 0o100_444);
    assert_eq!(found.uid(), rustix::process::getuid().as_raw());
    let age = SystemTime::now()
        .duration_since(found.modified().unwrap())
        .unwrap();
    assert!(age < Duration::from_secs(60), "{age:?}");
    let directory = fs::metadata(mounted.path("d")).unwrap();
    assert_eq!(directory.mode(), 0o040_555);
    let plain = fs::metadata(mounted.path("d/plain")).unwrap();
    assert_eq!((plain.len(), plain.blocks()), (1 << 20, 2048));
    let inodes = [found.ino(), directory.ino(), plain.ino()];
    assert!(inodes[0] != inodes[1] && inodes[1] != inodes[2] && inodes[0] != inodes[2]);
    // Numbers stay, and listings tell the same ones.
    for round in 0..3 {
        let listed = shell(&mounted.mount_point, "ls -i1 . d | sort");
        for (name, inode) in ["x", "d", "plain"].into_iter().zip(inodes) {
            assert!(
                listed.contains(&format!("{inode} {name}\n")),
                "{round}: {listed} {inodes:?}"
            );
        }
        std::thread::sleep(Duration::from_millis(600));
    }
    let told = shell(&mounted.mount_point, "getfattr -d --absolute-names x");
    assert!(
        told.contains("user.warpfs.ratio=") && told.contains("user.warpfs.checksum=\"blake3\""),
        "{told}"
    );
    assert_eq!(shell(&mounted.mount_point, "getfattr -d d/plain"), "");
    let error = File::create(mounted.path("new")).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::ROFS.raw_os_error())
    );
}

#[test]
fn plain_objects_are_read_at_any_place() {
    let bucket = Bucket::new();
    let bytes = sample(3_000_001, 9);
    bucket.put("plain", &bytes);
    let mounted = bucket.mount("", &[]);
    let file = File::open(mounted.path("plain")).unwrap();
    for (at, length) in [
        (0, 10),
        (2_999_990, 100),
        (1_234_567, 400_000),
        (3_000_001, 5),
        (1 << 40, 5),
    ] {
        let mut read = vec![0; length];
        let got = file.read_at(&mut read, at).unwrap();
        let from = bytes.len().min(at as usize);
        assert_eq!(
            read[..got],
            bytes[from..bytes.len().min(from + length)],
            "{at}"
        );
    }
    assert!(fs::read(mounted.path("plain")).unwrap() == bytes);
}

/// How many objects a directory holds in the test of many: 1,100 or what the environment says, as in
/// `WARPFS_TEST_OBJECTS=100000 cargo test --release --test remote_tree many`.
fn many() -> usize {
    std::env::var("WARPFS_TEST_OBJECTS").map_or(1_100, |many| many.parse().unwrap())
}

fn filled(many: usize) -> Bucket {
    let bucket = Bucket::new();
    let directory = bucket.store.root().join("bucket/many");
    fs::create_dir(&directory).unwrap();
    let small = tempfile::tempdir().unwrap();
    fs::write(small.path().join("x"), "a small file, packed").unwrap();
    pack(&small.path().join("x"), &small.path().join("x.warp"), &[]);
    let packed = fs::read(small.path().join("x.warp")).unwrap();
    for number in 0..many {
        fs::write(directory.join(format!("{number:07}.warp")), &packed).unwrap();
    }
    bucket
}

#[test]
fn many_objects_are_mounted_at_once_and_listed_page_by_page_with_memory_flat() {
    let many = many();
    let bucket = filled(many);
    let start = Instant::now();
    let mounted = bucket.mount("many/", &[]);
    let took = start.elapsed();
    let at_mount = bucket.proxy.take_passed();
    assert!(at_mount.len() <= 2, "{at_mount:?}");
    let before = mounted.resident();

    let start = Instant::now();
    let listed = fs::read_dir(mounted.path(""))
        .unwrap()
        .map(|entry| entry.unwrap());
    let last = listed.fold(None, |last, entry| {
        last.max(entry.file_name().into_string().ok())
    });
    let listing = start.elapsed();
    assert_eq!(last.unwrap(), format!("{:07}", many - 1));
    let passed = bucket.proxy.take_passed();
    let pages = passed
        .iter()
        .filter(|request| request.path.contains("list-type=2"))
        .count();
    let headers: Vec<_> = passed
        .iter()
        .filter(|request| request.range.is_some())
        .collect();
    let bytes: u64 = headers.iter().map(|request| request.bytes).sum();
    assert_eq!(pages, many.div_ceil(1000), "pages");
    let again = mounted.stats()["remote_retries"].as_u64().unwrap() as usize;
    assert_eq!(
        headers.len() - again,
        many,
        "one request for the header of each, and no more"
    );
    assert!(bytes <= 64 * many as u64);
    assert!(
        bucket.proxy.most_under_way() <= 64,
        "{}",
        bucket.proxy.most_under_way()
    );
    let grown = mounted.resident().saturating_sub(before);
    eprintln!(
        "{many} objects: mounted in {took:?} by {} requests, listed in {listing:?} by {pages} requests for pages and {} for \
         headers ({bytes} bytes), {} MiB of memory more",
        at_mount.len(),
        headers.len(),
        grown >> 20
    );
    assert!(
        took < Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 }),
        "{took:?}"
    );
    // The constant is that of connections and threads.
    assert!(grown < (32 << 20) + 1000 * many as u64, "{grown}");

    // What is packed is remembered: listed again, it costs pages at most.
    let count = fs::read_dir(mounted.path("")).unwrap().count();
    assert_eq!(count, many);
    let again = bucket.proxy.take_passed();
    assert!(
        again.iter().all(|request| request.range.is_none()),
        "{again:?}"
    );
    assert!(again.len() <= pages);
}

#[test]
fn a_listing_whose_store_goes_away_ends_after_a_deadline_and_not_after_one_for_each_object() {
    const MANY: usize = 400;
    let bucket = filled(MANY);
    let mounted = bucket.mount("many/", &["--remote-timeout", "2"]);
    // What is asked of the objects themselves.
    bucket.proxy.always("bucket/many/", Fault::Hang);
    let start = Instant::now();
    assert_eq!(names(&mounted.path("")).len(), MANY);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let logged = mounted.logged();
    assert!(logged.contains("cannot be shown for now"), "{logged}");
    bucket.proxy.behave();
    let listed = names(&mounted.path(""));
    assert_eq!(listed.len(), MANY);
    assert!(!listed.iter().any(|name| name.ends_with(".warp")));
    let found = fs::metadata(mounted.path("0000399")).unwrap();
    assert_eq!(found.len(), "a small file, packed".len() as u64);
}

#[test]
fn one_file_among_many_is_found_and_opened_by_few_requests() {
    let bucket = filled(1_500);
    let mounted = bucket.mount("many/", &[]);
    bucket.proxy.take_passed();
    assert_eq!(
        fs::read(mounted.path("0001234")).unwrap(),
        b"a small file, packed"
    );
    let passed = bucket.proxy.take_passed();
    assert!(passed.len() <= 4, "{passed:#?}");
    assert_eq!(
        passed
            .iter()
            .filter(|request| request.path.contains("list-type=2"))
            .count(),
        1
    );
}

#[test]
fn a_name_that_many_others_go_on_from_is_found_by_few_requests() {
    let bucket = Bucket::new();
    let directory = bucket.store.root().join("bucket/p");
    fs::create_dir(&directory).unwrap();
    for stem in ["a", "b", "c"] {
        for number in 0..2_500 {
            fs::write(directory.join(format!("{stem}-{number:07}")), "").unwrap();
        }
    }
    bucket.put("p/a.warp", &packed());
    bucket.put("p/b/inside", b"12345");
    bucket.put("p/c", b"as it is");
    let mounted = bucket.mount("p/", &["--ttl", "0"]);
    bucket.proxy.take_passed();
    let few = |what: &str| {
        let listings = bucket.proxy.take_passed().into_iter();
        let listings = listings.filter(|request| request.path.contains("list-type=2"));
        let count = listings.count();
        assert!(count <= 6, "{what}: {count}");
    };
    assert!(fs::read(mounted.path("a")).unwrap() == mixed());
    few("a");
    assert!(fs::metadata(mounted.path("b")).unwrap().is_dir());
    few("b");
    assert_eq!(fs::read(mounted.path("c")).unwrap(), b"as it is");
    few("c");
    let absent = fs::metadata(mounted.path("a.warp")).unwrap_err();
    assert_eq!(absent.raw_os_error(), Some(2));
    few("a.warp");
}

#[test]
fn a_name_is_found_where_a_part_of_the_listing_tells_none_and_goes_on() {
    let bucket = Bucket::new();
    bucket.put("p/x", b"as it is");
    let mounted = bucket.mount("p/", &["--ttl", "0"]);
    let nothing = "<ListBucketResult><IsTruncated>true</IsTruncated>\
         <NextContinuationToken>further</NextContinuationToken></ListBucketResult>";
    let answer = |path, answer| {
        bucket.proxy.rule(Rule {
            path,
            method: None,
            times: 1,
            fault: Fault::Answer(200, "", answer),
        });
    };
    answer("prefix=p%2Fx", nothing.into());
    answer("continuation-token=further", listing(&["p/x"], &[]));
    assert_eq!(fs::metadata(mounted.path("x")).unwrap().len(), 5);
    answer("prefix=p%2Fy", nothing.into());
    answer("continuation-token=further", listing(&[], &[]));
    let absent = fs::metadata(mounted.path("y")).unwrap_err();
    assert_eq!(absent.raw_os_error(), Some(2));
}

#[test]
fn a_prefix_with_nothing_beneath_it_is_not_mounted_but_an_empty_bucket_is() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    let output = bucket
        .command()
        .args(["mount", "-f"])
        .arg(bucket.url("nothing/"))
        .arg(own.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("s3://bucket/nothing") && said.contains("no object of this name"),
        "{said}"
    );
    let mounted: Mounted = bucket.mount("", &[]);
    assert!(names(&mounted.path("")).is_empty());
    bucket.put("new", b"1");
    wait_until("the new object", || names(&mounted.path("")) == ["new"]);
}
