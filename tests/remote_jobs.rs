//! `pack`, `unpack`, `verify` and `info` take the URLs of objects, with the same options as for files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::remote::proxy::{Fault, Rule};
use common::remote::{ACCESS_KEY, Bucket, SECRET, Site, succeeds};
use common::{mixed, noise, pack, sample, vector, wait_until, warpfs};

fn output(mut command: Command, arguments: &[&str]) -> Output {
    command.args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A packed file of many requests, and its original.
fn large(directory: &Path) -> (Vec<u8>, Vec<u8>) {
    let original = sample(40 << 20, 7);
    let (plain, packed) = (directory.join("large"), directory.join("large.warp"));
    fs::write(&plain, &original).unwrap();
    pack(&plain, &packed, &["--codec", "lz4"]);
    (original, fs::read(packed).unwrap())
}

#[test]
fn what_is_packed_into_a_store_is_there_whole_and_unpacks_to_the_original() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    let (original, packed) = large(own.path());
    let file = own.path().join("large");
    let file = file.to_str().unwrap();
    let url = "s3://bucket/a/large.warp";
    bucket.proxy.set_delay(Duration::from_millis(50));
    succeeds(
        bucket.command(),
        &["pack", "-q", "--codec", "lz4", file, "-o", url],
    );
    // More than a part, so that it was sent as several, and not one after the other.
    assert!(packed.len() > 8 << 20 && bucket.proxy.count("PUT", "partNumber") > 1);
    assert!(bucket.proxy.most_under_way() > 1);
    bucket.proxy.set_delay(Duration::ZERO);
    succeeds(bucket.command(), &["verify", "-q", url]);

    let back = own.path().join("back");
    let back_name = back.to_str().unwrap();
    succeeds(bucket.command(), &["unpack", "-q", url, "-o", back_name]);
    assert_eq!(fs::read(&back).unwrap(), original);

    // Its size is known, and decides as that of a file which stays here.
    let sized = "s3://bucket/sized.warp";
    let words = ["pack", "-q", "--level", "throughput", file, "-o", sized];
    succeeds(bucket.command(), &words);
    let described = output(bucket.command(), &["info", "--json", sized]).stdout;
    let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
    assert_eq!(described[0]["codec"], "lz4");
    assert_eq!(described[0]["chunks"], 20);

    // To where it has a name of its own: the current directory.
    let here = tempfile::tempdir().unwrap();
    let mut command = bucket.command();
    command.current_dir(here.path());
    succeeds(command, &["unpack", "-q", url]);
    assert_eq!(fs::read(here.path().join("large")).unwrap(), original);

    let part = output(
        bucket.command(),
        &["unpack", "-c", "--range", "1000000..1000100", url],
    );
    assert_eq!(
        part.stdout,
        original[1_000_000..1_000_100],
        "{}",
        said(&part)
    );

    // It is there, and stays.
    let again = output(bucket.command(), &["pack", "-q", file, "-o", url]);
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("exists already"), "{}", said(&again));
    succeeds(bucket.command(), &["pack", "-q", "-f", file, "-o", url]);
    // Several go into a prefix, by their names.
    let other = own.path().join("other");
    fs::write(&other, b"something else").unwrap();
    let inputs = [file, other.to_str().unwrap()];
    let into = [
        "pack",
        "-q",
        inputs[0],
        inputs[1],
        "-o",
        "s3://bucket/both/",
    ];
    succeeds(bucket.command(), &into);
    for name in ["large.warp", "other.warp"] {
        succeeds(
            bucket.command(),
            &["verify", "-q", &format!("s3://bucket/both/{name}")],
        );
    }
}

#[test]
fn files_whose_names_mean_something_in_a_url_are_packed_under_these_names() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    let names = ["r#1.txt", "r#2.txt", "a%20b", "what?", "a b", "\u{e9}"];
    let mut command = bucket.command();
    command.args(["pack", "-q"]);
    for name in names {
        let file = own.path().join(name);
        fs::write(&file, format!("this is {name}")).unwrap();
        command.arg(file);
    }
    succeeds(command, &["-o", "s3://bucket/d/"]);
    for name in names {
        let packed = bucket.store.root().join(format!("bucket/d/{name}.warp"));
        let printed = warpfs().args(["unpack", "-c"]).arg(&packed).output();
        let printed = printed.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&printed.stdout),
            format!("this is {name}"),
            "{}",
            said(&printed)
        );
    }
    // Who writes such a URL himself is not misunderstood either.
    let url = "s3://bucket/d/r#1.txt.warp";
    let refused = output(bucket.command(), &["verify", url]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("%23"), "{}", said(&refused));
    succeeds(
        bucket.command(),
        &["verify", "-q", "s3://bucket/d/r%231.txt.warp"],
    );
}

#[test]
fn objects_are_described_and_verified_as_files_are() {
    let names = ["v2-zstd-blake3.warp", "v1-brotli-blake3.warp"];
    let bucket = Bucket::with_vectors(&names);
    let site = Site::new();
    for name in names {
        let bytes = fs::read(vector(name)).unwrap();
        site.put(name, &bytes);
        let path = vector(name);
        let local = output(warpfs(), &["info", "--json", path.to_str().unwrap()]);
        let local = String::from_utf8(local.stdout).unwrap();
        let http = site.url(name);
        let s3 = bucket.url(name);
        for url in [http.to_str().unwrap(), s3.to_str().unwrap()] {
            let remote = output(bucket.command(), &["info", "--json", url]);
            let remote = String::from_utf8(remote.stdout).unwrap();
            assert_eq!(remote.replace(url, path.to_str().unwrap()), local);
            let verified = output(bucket.command(), &["verify", url]);
            assert!(verified.status.success(), "{}", said(&verified));
            let printed = output(bucket.command(), &["unpack", "-c", url]);
            assert_eq!(printed.stdout, mixed());
        }
    }
    // Damage is found there as here.
    let mut damaged = fs::read(vector(names[0])).unwrap();
    damaged[20_000] ^= 1;
    bucket.put("damaged.warp", &damaged);
    let found = output(bucket.command(), &["verify", "s3://bucket/damaged.warp"]);
    assert_eq!(found.status.code(), Some(1));
    // The independent writer's files have no digests but that of the whole.
    assert!(
        said(&found).contains("checksum mismatch"),
        "{}",
        said(&found)
    );
    let absent = output(bucket.command(), &["verify", "s3://bucket/nothing.warp"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(
        said(&absent).contains("s3://bucket/nothing.warp") && said(&absent).contains("404"),
        "{}",
        said(&absent)
    );
}

#[test]
fn who_cannot_save_a_damaged_object_is_told_how_to_do_without_its_beginning() {
    let mut packed = fs::read(vector("v2-zstd-blake3.warp")).unwrap();
    packed[18..60].fill(0xff);
    let site = Site::new();
    site.put("x.warp", &packed);
    // The name in the URL is of no file here.
    let url = site.url("x.warp?key=secret");
    let output = output(warpfs(), &["verify", "--keep-going", url.to_str().unwrap()]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("A damaged beginning"), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn a_whole_object_is_read_in_few_requests() {
    let own = tempfile::tempdir().unwrap();
    let (_, packed) = large(own.path());
    let site = Site::new();
    site.put("large.warp", &packed);
    let url = site.url("large.warp");
    succeeds(warpfs(), &["verify", "-q", url.to_str().unwrap()]);
    let passed = site.proxy.take_passed();
    let bytes: u64 = passed.iter().map(|request| request.bytes).sum();
    // The beginning, the end, and pieces of 4 MiB; nothing twice but what lies beside those two.
    let most = packed.len().div_ceil(4 << 20) + 3;
    assert!(passed.len() <= most, "{} > {most}", passed.len());
    assert!(bytes < packed.len() as u64 + (1 << 20), "{bytes}");
}

#[test]
fn an_interrupted_upload_leaves_neither_an_object_nor_parts() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    large(own.path());
    let file = own.path().join("large");
    for signal in ["INT", "TERM"] {
        // The second part never arrives.
        bucket.proxy.always("partNumber=2", Fault::Hang);
        let mut command = common::warpfs_to_interrupt();
        bucket.lead(&mut command);
        command
            .args(["pack", "-q", "--codec", "lz4"])
            .arg(&file)
            .args(["-o", "s3://bucket/large.warp"])
            .stderr(Stdio::piped());
        let packing = command.spawn().unwrap();
        wait_until("the first part", || {
            bucket.proxy.count("PUT", "partNumber=1") > 0
        });
        std::thread::sleep(Duration::from_millis(200));
        let told = Command::new("kill")
            .args(["-s", signal, &packing.id().to_string()])
            .status();
        assert!(told.unwrap().success());
        let start = Instant::now();
        let ended = packing.wait_with_output().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(ended.status.code(), Some(1), "{}", said(&ended));
        assert!(said(&ended).contains("interrupted"), "{}", said(&ended));
        assert_eq!(bucket.proxy.count("DELETE", "uploadId"), 1);
        bucket.proxy.take_passed();
        bucket.proxy.behave();
        let looked = output(bucket.command(), &["info", "s3://bucket/large.warp"]);
        assert_eq!(looked.status.code(), Some(1));
    }
    // A failing one leaves nothing either.
    bucket.proxy.always(
        "partNumber=2",
        Fault::Answer(403, "content-type: text/plain\r\n", b"no".to_vec()),
    );
    let mut command = bucket.command();
    command.args(["pack", "-q", "--codec", "lz4"]).arg(&file);
    let refused = output(command, &["-o", "s3://bucket/large.warp"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("403"), "{}", said(&refused));
    assert_eq!(bucket.proxy.count("DELETE", "uploadId"), 1);
}

#[test]
fn a_lost_answer_to_the_last_request_of_an_upload_is_no_failure() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    // Of one request, and of parts; and in the place of another of the same length, which may have been made in the same second.
    for (length, method, force) in [
        (100_000, "PUT", "-q"),
        (20 << 20, "POST", "-q"),
        (20 << 20, "POST", "-f"),
    ] {
        let (file, url) = (own.path().join("x"), format!("s3://bucket/{length}.warp"));
        let mut bytes = noise(length, 3);
        if force == "-f" {
            bytes.reverse();
        }
        fs::write(&file, bytes).unwrap();
        bucket.proxy.rule(Rule {
            path: if method == "PUT" { "warp" } else { "uploadId" },
            method: Some(method),
            times: 1,
            fault: Fault::LoseAnswer,
        });
        let mut command = bucket.command();
        command.args(["pack", force]).arg(&file).args(["-o", &url]);
        let packed = output(command, &[]);
        assert!(packed.status.success(), "{length}: {}", said(&packed));
        assert!(!said(&packed).contains("are left"), "{}", said(&packed));
        assert!(bucket.proxy.count(method, "warp") > 1);
        bucket.proxy.take_passed();
        succeeds(bucket.command(), &["verify", "-q", &url]);
    }
}

#[test]
fn an_upload_that_the_store_finishes_late_is_waited_for() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    let file = own.path().join("x");
    fs::write(&file, noise(20 << 20, 3)).unwrap();
    // It says that it is of no use to try again soon, and puts the parts together all the same.
    let completion = Rule {
        path: "uploadId",
        method: Some("POST"),
        times: 1,
        fault: Fault::AnswerWhenDone(503, "retry-after: 3600\r\n"),
    };
    // Asked before, twice, there is no object, and neither when it is asked next.
    let looks = Rule {
        path: "x.warp",
        method: Some("HEAD"),
        times: 3,
        fault: Fault::Answer(404, "", Vec::new()),
    };
    bucket.proxy.rule(completion);
    bucket.proxy.rule(looks);
    let mut command = bucket.command();
    command.args(["pack", "-q"]).arg(&file);
    let packed = output(command, &["-o", "s3://bucket/x.warp"]);
    assert!(packed.status.success(), "{}", said(&packed));
    assert_eq!(bucket.proxy.count("POST", "uploadId"), 1);
    assert_eq!(bucket.proxy.count("HEAD", "x.warp"), 4);
    assert_eq!(bucket.proxy.count("DELETE", "uploadId"), 0);
    succeeds(bucket.command(), &["verify", "-q", "s3://bucket/x.warp"]);
}

#[test]
fn a_part_that_the_store_has_not_had_in_time_is_sent_again() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    let file = own.path().join("x");
    fs::write(&file, noise(20 << 20, 3)).unwrap();
    let said_so = b"<Error><Code>RequestTimeout</Code></Error>".to_vec();
    bucket.proxy.rule(Rule {
        path: "partNumber=2",
        method: Some("PUT"),
        times: 1,
        fault: Fault::Answer(400, "content-type: application/xml\r\n", said_so),
    });
    let mut command = bucket.command();
    command.args(["pack", "-q"]).arg(&file);
    let packed = output(command, &["-o", "s3://bucket/x.warp"]);
    assert!(packed.status.success(), "{}", said(&packed));
    assert_eq!(bucket.proxy.count("PUT", "partNumber=2"), 2);
    succeeds(bucket.command(), &["verify", "-q", "s3://bucket/x.warp"]);
}

#[test]
fn an_object_that_appears_while_another_is_packed_is_not_overwritten() {
    let bucket = Bucket::new();
    for length in [100_000, 20 << 20] {
        let (name, bytes) = (format!("{length}.warp"), noise(length, 3));
        let mut packing = bucket.command();
        packing
            .args(["pack", "-q", "-", "-o"])
            .arg(bucket.url(&name))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut packing = packing.spawn().unwrap();
        wait_until("a look for the object", || {
            bucket.proxy.count("HEAD", "warp") > 0
        });
        bucket.put(&name, b"somebody else's");
        let mut input = packing.stdin.take().unwrap();
        input.write_all(&bytes).unwrap();
        drop(input);
        let packed = packing.wait_with_output().unwrap();
        assert_eq!(packed.status.code(), Some(1), "{length}");
        assert!(
            said(&packed).contains("exists already"),
            "{}",
            said(&packed)
        );
        let there = fs::read(bucket.store.root().join("bucket").join(&name)).unwrap();
        assert_eq!(there, b"somebody else's");
        // Nothing is left of it either.
        let parts = usize::from(length > 8 << 20);
        assert_eq!(bucket.proxy.count("DELETE", "uploadId"), parts);
        bucket.proxy.take_passed();
    }
}

#[test]
fn what_is_sent_slowly_is_sent_once() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    let file = own.path().join("x");
    fs::write(&file, noise(5_500_000, 3)).unwrap();
    // It takes longer than a server may be silent that has something to say.
    bucket.proxy.set_rate(300_000);
    let start = Instant::now();
    let (file, url) = (file.to_str().unwrap(), "s3://bucket/x.warp");
    succeeds(bucket.command(), &["pack", "-q", file, "-o", url]);
    assert!(start.elapsed() > Duration::from_secs(16));
    assert_eq!(bucket.proxy.count("PUT", "x.warp"), 1);
    bucket.proxy.set_rate(0);
    succeeds(bucket.command(), &["verify", "-q", url]);
}

#[test]
fn a_job_on_a_dead_server_ends_when_it_is_interrupted() {
    let site = Site::new();
    site.put("x.warp", &fs::read(vector("v2-zstd-none.warp")).unwrap());
    site.proxy.always("x.warp", Fault::Hang);
    let mut command = warpfs();
    command
        .arg("verify")
        .arg(site.url("x.warp"))
        .stderr(Stdio::piped());
    let mut verifying = command.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(verifying.try_wait().unwrap().is_none());
    // Before the object is open there is nothing that could be left behind: the first signal ends it, or the second.
    for _ in 0..2 {
        let _ = Command::new("kill")
            .arg(verifying.id().to_string())
            .status();
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_until("the job", || verifying.try_wait().unwrap().is_some());
}

#[test]
fn a_job_says_once_what_it_waits_for() {
    let site = Site::new();
    site.put("x.warp", &fs::read(vector("v2-zstd-none.warp")).unwrap());
    let url = site.url("x.warp");
    let url = url.to_str().unwrap();
    for (quiet, lines) in [(&[][..], 1), (&["-q"], 0)] {
        site.proxy.times(3, "x.warp", Fault::Throttle(0));
        let verified = output(warpfs(), &[&["verify", url], quiet].concat());
        assert!(verified.status.success(), "{}", said(&verified));
        let said = said(&verified);
        let told = said
            .lines()
            .filter(|line| line.starts_with("warpfs: ") && line.contains("503"));
        assert_eq!(told.count(), lines, "{said}");
    }
}

#[test]
fn a_profile_that_is_not_there_is_an_error_that_names_it() {
    let bucket = Bucket::with_vectors(&["v2-zstd-none.warp"]);
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let keys = format!(
        "[profile mine]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET}\n"
    );
    fs::write(home.path().join(".aws/config"), keys).unwrap();
    let verify = |profile: &str| {
        let mut command = bucket.command();
        command
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env("HOME", home.path())
            .env("AWS_PROFILE", profile);
        output(command, &["verify", "s3://bucket/v2-zstd-none.warp"])
    };
    let found = verify("mine");
    assert!(found.status.success(), "{}", said(&found));
    let absent = verify("nobodys");
    assert_eq!(absent.status.code(), Some(1));
    assert!(
        said(&absent).contains("no profile 'nobodys' in ~/.aws/config or ~/.aws/credentials"),
        "{}",
        said(&absent)
    );
}

#[test]
fn what_cannot_be_done_with_urls_is_refused_in_words() {
    let bucket = Bucket::new();
    let refused = |arguments: &[&str], why: &str| {
        let output = output(bucket.command(), arguments);
        assert!(!output.status.success());
        assert!(said(&output).contains(why), "{}", said(&output));
    };
    let file = vector("mixed.bin");
    let file = file.to_str().unwrap();
    refused(
        &["pack", file, "-o", "https://127.0.0.1:1/x.warp"],
        "no uploads",
    );
    refused(&["pack", file, "--rm", "-o", "s3://bucket/x.warp"], "--rm");
    refused(&["pack", "s3://bucket/x"], "no file of this machine");
    refused(&["pack", "-", "-o", "s3://bucket/"], "has no name");
    refused(&["info", "ftp://host/x.warp"], "s3://");
    refused(
        &["info", "https://me:secret@127.0.0.1:1/x.warp"],
        "credentials do not belong",
    );
    bucket.put("x.warp", &fs::read(vector("v2-zstd-none.warp")).unwrap());
    refused(&["unpack", "--rm", "s3://bucket/x.warp"], "--rm");
    for job in ["verify", "unpack", "info"] {
        refused(&[job, "-r", "s3://bucket/"], "a tree beyond this machine");
    }
    refused(&["estimate", "s3://bucket/x.warp"], "of this machine");
    refused(&["mount", "/", "s3://bucket/"], "of this machine");
    // Of what can be done, capital letters change nothing.
    succeeds(bucket.command(), &["verify", "-q", "S3://bucket/x.warp"]);
}

#[test]
fn a_tree_packed_to_a_url_is_refused_and_not_packed_into_a_directory_of_that_name() {
    let bucket = Bucket::new();
    let own = tempfile::tempdir().unwrap();
    fs::create_dir(own.path().join("photos")).unwrap();
    fs::write(own.path().join("photos/x"), [7; 10_000]).unwrap();
    let refused = |arguments: &[&str]| {
        let mut command = bucket.command();
        command.current_dir(own.path());
        let output = output(command, arguments);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("into a store"), "{}", said(&output));
        assert!(!own.path().join("s3:").exists());
    };
    refused(&["pack", "-r", "photos", "-o", "s3://bucket/photos"]);
    refused(&["pack", "-r", "photos", "-o", "s3://bucket/"]);
    refused(&["pack", "-r", "photos", "photos/x", "-o", "s3://bucket/"]);
    // Nor does a directory of that name make a URL a path.
    fs::create_dir_all(own.path().join("s3:/bucket")).unwrap();
    let mut command = bucket.command();
    command.current_dir(own.path());
    succeeds(command, &["pack", "-q", "photos/x", "-o", "s3://bucket/"]);
    assert!(!own.path().join("s3:/bucket/x.warp").exists());
}
