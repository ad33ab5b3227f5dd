//! The servers that remote files are tested with are what the tests take them for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::remote::proxy::Fault;
use common::remote::{ACCESS_KEY, Bucket, SECRET, Site};

/// Asks as curl does: the answer's status and body.
fn ask(arguments: &[&str], url: &str) -> (String, Vec<u8>) {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "10", "-w", "%{stderr}%{http_code}"])
        .args(arguments)
        .arg(url)
        .output()
        .unwrap();
    (String::from_utf8(output.stderr).unwrap(), output.stdout)
}

#[test]
fn a_web_server_sends_the_part_that_was_asked_for_and_the_proxy_breaks_that() {
    let site = Site::new();
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    site.put("a/x", &bytes);
    let url = site.url("a/x");
    let url = url.to_str().unwrap();
    let part = ["-r", "1000-1999"];
    assert_eq!(
        ask(&part, url),
        ("206".to_owned(), bytes[1000..2000].to_vec())
    );
    let passed = site.proxy.take_passed();
    assert_eq!(passed.len(), 1);
    assert_eq!(
        (passed[0].method.as_str(), passed[0].path.as_str()),
        ("GET", "/a/x")
    );
    assert_eq!(passed[0].range.as_deref(), Some("bytes=1000-1999"));
    assert_eq!((passed[0].status, passed[0].bytes), (206, 1000));

    site.proxy.times(1, "/a/x", Fault::IgnoreRange);
    assert_eq!(ask(&part, url), ("200".to_owned(), bytes.clone()));
    site.proxy.times(1, "/a/x", Fault::OtherBytes);
    let (status, other) = ask(&part, url);
    assert!(status == "206" && other.len() == 1000 && other != bytes[1000..2000]);
    site.proxy.times(1, "/a/x", Fault::Shift(1));
    assert_eq!(ask(&part, url).1, bytes[1001..2001]);
    site.proxy.times(1, "/a/x", Fault::CutBody(10));
    let (said, cut) = ask(&part, url);
    assert!(
        cut == bytes[1000..1010] && said.contains("curl: (18)"),
        "{said}"
    );
    site.proxy.times(1, "/a/x", Fault::Throttle(3));
    assert_eq!(ask(&part, url).0, "503");
    site.proxy
        .times(1, "/a/x", Fault::Redirect("/b".to_owned()));
    assert_eq!(ask(&part, url).0, "307");
    assert_eq!(ask(&part, url).0, "206");
    site.proxy.vanish();
    assert!(ask(&part, url).0.contains("curl: (7)"));
    site.proxy.come_back();
    assert_eq!(ask(&part, url).0, "206");
}

#[test]
fn the_proxy_delays_each_request_and_keeps_to_its_rate() {
    let site = Site::new();
    site.put("x", &vec![7; 2_000_000]);
    let url = site.url("x");
    site.proxy.set_rate(4_000_000);
    let start = Instant::now();
    ask(&[], url.to_str().unwrap());
    assert!(
        start.elapsed() >= Duration::from_millis(480),
        "{:?}",
        start.elapsed()
    );
    site.proxy.set_rate(0);
    site.proxy.set_delay(Duration::from_millis(200));
    let start = Instant::now();
    ask(&["-r", "0-0"], url.to_str().unwrap());
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn an_object_store_asks_for_who_asks_and_knows_what_was_put_there() {
    let bucket = Bucket::new();
    bucket.put("a/x y", b"an object");
    let url = format!("http://{}/bucket/a/x%20y", bucket.proxy.address);
    assert_eq!(ask(&[], &url).0, "403");
    let key = format!("{ACCESS_KEY}:{SECRET}");
    // That of no bytes.
    let digest =
        "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let signed = [
        "--aws-sigv4",
        "aws:amz:us-east-1:s3",
        "-u",
        &key,
        "-H",
        digest,
    ];
    assert_eq!(
        ask(&signed, &url),
        ("200".to_owned(), b"an object".to_vec())
    );
    let list = format!(
        "http://{}/bucket/?list-type=2&prefix=a%2F",
        bucket.proxy.address
    );
    let (_, listed) = ask(&signed, &list);
    let listed = String::from_utf8(listed).unwrap();
    assert!(listed.contains("<Key>a/x y</Key>"), "{listed}");
    let (_, head) = ask(&[&signed[..], &["-I"]].concat(), &url);
    let etag = blake3::hash(b"an object").to_hex();
    assert!(String::from_utf8(head).unwrap().contains(&etag[..32]));
}
