//! Nobody gets to see a secret: not in the mount table, nor in the list of processes, nor in a log or a message.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::remote::proxy::Fault;
use common::remote::{Bucket, SECRET, Site};
use common::{Mounted, mixed, shell, vector, warpfs};

/// All that anybody can look at while a mount is there.
fn visible(mounted: &Mounted) -> String {
    // Of all processes it is ours alone that matters: the store that is tested with has its key from its command line.
    let words = fs::read(format!("/proc/{}/cmdline", mounted.server.id())).unwrap();
    let processes = String::from_utf8(words).unwrap();
    let stats = mounted.stats();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let all = shell("/".as_ref(), "cat /proc/mounts");
    format!(
        "{processes}\n{stats}\n{mounts}\n{all}\n{}",
        mounted.logged()
    )
}

#[test]
fn the_key_of_a_store_is_seen_nowhere() {
    let bucket = Bucket::with_vectors(&["v2-zstd-blake3.warp"]);
    let mounted = bucket.mount("", &["-v", "--remote-timeout", "2"]);
    assert!(fs::read(mounted.path("v2-zstd-blake3")).unwrap() == mixed());
    // Errors are told as well.
    bucket.proxy.always(
        "",
        Fault::Answer(
            500,
            "",
            b"<Error><Code>InternalError</Code></Error>".to_vec(),
        ),
    );
    assert!(fs::read(mounted.path("another")).is_err());
    let visible = visible(&mounted);
    assert!(visible.contains("s3://bucket"), "{visible}");
    assert!(
        !visible.contains(SECRET) && !visible.contains("Signature="),
        "{visible}"
    );
    bucket.proxy.behave();
    let wrong = bucket
        .command()
        .env("AWS_SECRET_ACCESS_KEY", format!("{SECRET}-wrong"))
        .args(["info"])
        .arg(bucket.url("x.warp"))
        .output()
        .unwrap();
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(!wrong.status.success() && !said.contains(SECRET), "{said}");
}

#[test]
fn a_redirect_to_another_host_takes_no_token_along() {
    let bucket = Bucket::with_vectors(&["v2-zstd-blake3.warp"]);
    let elsewhere = Site::new();
    let place = elsewhere.url("x").to_str().unwrap().to_owned();
    bucket.proxy.always("", Fault::Redirect(place.clone()));
    let led = bucket
        .command()
        .env("AWS_SESSION_TOKEN", SECRET)
        .args(["info"])
        .arg(bucket.url("v2-zstd-blake3.warp"))
        .output()
        .unwrap();
    let said = String::from_utf8(led.stderr).unwrap();
    assert!(!led.status.success() && said.contains("307"), "{said}");
    let passed = elsewhere.proxy.take_passed();
    assert!(passed.is_empty(), "{passed:?}");
    // A web server is told nothing that another may not know.
    let site = Site::new();
    elsewhere.put("x", &fs::read(vector("v2-zstd-blake3.warp")).unwrap());
    site.proxy.always("", Fault::Redirect(place));
    let followed = warpfs().arg("verify").arg(site.url("x.warp")).output();
    assert!(followed.unwrap().status.success());
}

#[test]
fn the_signature_of_a_presigned_url_is_seen_nowhere() {
    let site = Site::new();
    let signature = "X-Amz-Signature=0123456789abcdef-secret";
    // Not every letter that could end a URL in a text ends one.
    for (name, written, query) in [
        ("x", "x", ""),
        ("disk (1)'s", "disk%20(1)'s", "name=x(1)'s&"),
    ] {
        let packed = fs::read(vector("v2-zstd-blake3.warp")).unwrap();
        site.put(&format!("{name}.warp"), &packed);
        let mut url = site.url(&format!("{written}.warp")).into_os_string();
        url.push(format!("?{query}{signature}"));
        let mounted = Mounted::by(
            warpfs(),
            &PathBuf::from(url),
            &["-v", "--remote-timeout", "2"],
        );
        assert!(fs::read(mounted.path(name)).unwrap() == mixed());
        let passed = site.proxy.take_passed();
        assert!(
            passed
                .iter()
                .all(|request| request.path.contains(signature)),
            "{passed:?}"
        );
        site.proxy.vanish();
        assert!(fs::File::open(mounted.path(name)).is_err());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let words = fs::read(format!("/proc/{}/cmdline", mounted.server.id())).unwrap();
        let words = String::from_utf8(words).unwrap();
        let seen = format!("{mounts}{words}{}{}", mounted.logged(), mounted.stats());
        assert!(
            seen.contains(&format!("{written}.warp?...")) && !seen.contains("abcdef-secret"),
            "{seen}"
        );
        drop(mounted);
        site.proxy.come_back();
    }
}
