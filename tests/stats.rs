//! `warpfs stats`: where the time and the bytes of a mount go, once or each second; and who may know the names of files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::place::{said, umount};
use common::sources::two_codecs_and_damage;
use common::users::{ANOTHER, FuseForAll, SOMEBODY, as_user, place_of_somebody};
use common::{Mounted, PATIENCE, run, wait_until, warpfs};
use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The same with a file that is opened in vain.
fn source() -> tempfile::TempDir {
    let source = two_codecs_and_damage("");
    // Its header is right, its table is not.
    let mut no_table = fs::read(source.path().join("lz4.warp")).unwrap();
    no_table[18..26].fill(0xff);
    fs::write(source.path().join("no-table.warp"), no_table).unwrap();
    source
}

fn text(mount_point: &Path) -> String {
    let output = run([OsStr::new("stats"), mount_point.as_os_str()]);
    String::from_utf8(output.stdout).unwrap()
}

/// `warpfs stats --watch`, ended when dropped.
struct Watch(Child);

impl Watch {
    fn begin(mounted: &Mounted, arguments: &[&str]) -> Self {
        let mut command = common::warpfs_to_interrupt();
        command.args(["stats", "--watch"]).args(arguments);
        let child = command
            .arg(&mounted.mount_point)
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let out = self.0.stdout.take().unwrap();
        BufReader::new(out).lines().map(Result::unwrap)
    }

    fn end(&mut self) -> i32 {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_read_has_its_time_and_every_codec_its_chunks() {
    let source = source();
    let mounted = Mounted::new(source.path(), &["--prefetch", "off"]);
    for name in ["lz4", "zstd"] {
        let file = File::open(mounted.path(name)).unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
        for chunk in 0..16 {
            // The second page of a chunk is there when the first was read.
            for page in 0..2 {
                file.read_exact_at(&mut [0; 4096], (chunk << 16) + page * 4096)
                    .unwrap();
            }
        }
    }
    let stats = mounted.stats();
    let number = |pointer: &str| {
        stats
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{pointer}"))
            .as_u64()
            .unwrap()
    };
    assert_eq!(number("/reads"), 64);
    let [all, cached, decoded, plain] =
        ["all", "cached", "decoded", "plain"].map(|kind| number(&format!("/latency/{kind}/count")));
    assert_eq!((all, cached, decoded, plain), (64, 32, 32, 0));
    for codec in ["lz4", "zstd"] {
        assert_eq!(number(&format!("/codecs/{codec}/chunks")), 16);
        assert_eq!(number(&format!("/codecs/{codec}/decoded_bytes")), 1 << 20);
        assert!(number(&format!("/codecs/{codec}/decode_ns")) > 1000);
    }
    assert_eq!(number("/codecs/brotli/chunks"), 0);
    let of = |kind: &str| {
        ["p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "max_ns"]
            .map(|name| number(&format!("/latency/{kind}/{name}")))
    };
    assert!(of("all").is_sorted(), "{:?}", of("all"));
    assert!(
        of("decoded")[0] > of("cached")[0],
        "{:?} {:?}",
        of("decoded"),
        of("cached")
    );
    let buckets = stats["latency"]["all"]["buckets"].as_array().unwrap();
    let counted: u64 = buckets
        .iter()
        .map(|bucket| bucket[1].as_u64().unwrap())
        .sum();
    assert_eq!(counted, 64);
    let report = text(&mounted.mount_point);
    for words in [
        "READS\n  answered    64 (",
        "decoded     2.00 MiB, 8.00 bytes for each handed out",
        "errors      none",
        "hits        50%     32 of 64",
        "32 decoded by the read, 0 by another meanwhile",
        "of a budget of",
        "  lz4                 16            0     1.00 MiB",
    ] {
        assert!(report.contains(words), "{words} in\n{report}");
    }
    assert!(
        report.lines().all(|line| line.chars().count() <= 80),
        "{report}"
    );
}

#[test]
fn errors_are_told_by_what_was_asked_and_by_their_kind() {
    let source = source();
    let mounted = Mounted::new(source.path(), &[]);
    fs::read(mounted.path("damaged")).unwrap_err();
    File::open(mounted.path("no-table")).unwrap_err();
    let stats = mounted.stats();
    assert!(
        stats["errors"]["read"]["damage"].as_u64().unwrap() > 0,
        "{stats}"
    );
    assert_eq!(stats["errors"]["read"]["damage"], stats["damage_errors"]);
    assert!(
        stats["errors"]["open"]["damage"].as_u64().unwrap() > 0,
        "{stats}"
    );
    let report = text(&mounted.mount_point);
    assert!(report.contains("errors      read: damage "), "{report}");
    assert!(report.contains("open: damage "), "{report}");
}

#[test]
fn the_busiest_files_are_told_open_or_closed() {
    let source = source();
    let mounted = Mounted::new(source.path(), &[]);
    fs::read(mounted.path("lz4")).unwrap();
    let open = File::open(mounted.path("zstd")).unwrap();
    open.read_exact_at(&mut [0; 4096], 0).unwrap();
    wait_until("the first to be closed", || {
        mounted.stats()["open_files"] == 1
    });
    let stats = mounted.stats();
    let files = stats["files"].as_array().unwrap();
    let named = |name: &str| {
        source
            .path()
            .canonicalize()
            .unwrap()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(files.len(), 2, "{stats}");
    assert_eq!(
        (&files[0]["file"], &files[0]["bytes_read"]),
        (&named("lz4.warp").into(), &(1 << 20).into())
    );
    assert_eq!(
        (&files[0]["open"], &files[1]["open"]),
        (&0.into(), &1.into())
    );
    assert_eq!(files[1]["file"], named("zstd.warp"));
    assert!(text(&mounted.mount_point).contains("zstd.warp"));
}

#[test]
fn names_of_files_are_for_root_and_who_mounted() {
    let source = source();
    chown(source.path(), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    fs::set_permissions(source.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let _fuse = FuseForAll::new(true);
    let (place, program) = place_of_somebody();
    fs::copy(
        source.path().join("lz4.warp"),
        place.source().join("name.warp"),
    )
    .unwrap();
    let (from, at) = (place.source(), place.mount_point());
    let words = |arguments: &[&str], paths: &[&Path]| -> Vec<std::ffi::OsString> {
        let program = std::iter::once(program.clone().into_os_string());
        let arguments = arguments.iter().map(Into::into);
        program
            .chain(arguments)
            .chain(paths.iter().map(Into::into))
            .collect()
    };
    let as_them = |user, words: Vec<std::ffi::OsString>| {
        let words: Vec<_> = words.iter().map(std::ffi::OsString::as_os_str).collect();
        as_user(user, &words)
    };
    let mounted = as_them(SOMEBODY, words(&["mount", "--allow-other"], &[&from, &at]));
    assert!(mounted.status.success(), "{}", said(&mounted));
    let read = as_user(SOMEBODY, &[OsStr::new("cat"), at.join("name").as_os_str()]);
    assert!(read.status.success(), "{}", said(&read));
    let files = |user| {
        let output = as_them(user, words(&["stats", "--json"], &[&at]));
        assert!(output.status.success(), "{}", said(&output));
        let stats: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(stats["bytes_read"].as_u64().unwrap() >= 1 << 20, "{stats}");
        stats["files"].clone()
    };
    for who in [SOMEBODY, 0] {
        let told = files(who);
        assert!(
            told[0]["file"].as_str().unwrap().ends_with("name.warp"),
            "{who}: {told}"
        );
    }
    assert_eq!(files(ANOTHER), Value::Null);
    let report = as_them(ANOTHER, words(&["stats"], &[&at]));
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(report.contains("for root and who mounted"), "{report}");
    assert!(!report.contains("name.warp"), "{report}");
    // Nor by the attribute itself, nor with the rest of the statistics.
    for attribute in ["user.warpfs.busiest", "user.warpfs.stats"] {
        let words = ["getfattr", "--only-values", "-n", attribute].map(OsStr::new);
        let raw = as_user(ANOTHER, &[&words[..], &[at.as_os_str()]].concat());
        let shown = String::from_utf8_lossy(&raw.stdout).into_owned();
        assert!(!shown.contains("name.warp"), "{shown}");
        assert_eq!(raw.status.success(), attribute == "user.warpfs.stats");
    }
    assert!(umount(&at).status.success());
    place.wait_for_the_end();
}

#[test]
fn a_watched_mount_tells_a_line_a_second_and_its_end_is_no_failure() {
    let source = source();
    let mounted = Mounted::new(source.path(), &[]);
    let mut watch = Watch::begin(&mounted, &[]);
    let mut lines = watch.lines();
    let head = lines.next().unwrap();
    assert!(head.contains("reads/s") && head.contains("p99"), "{head}");
    fs::read(mounted.path("lz4")).unwrap();
    let began = Instant::now();
    // What was read is in one of these, and no longer in those behind it.
    let first: Vec<String> = lines.by_ref().take(3).collect();
    assert!(
        began.elapsed() > Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    let reads: Vec<f64> = first
        .iter()
        .map(|line| line.split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    assert!(reads[0] > 0.0, "{first:?}");
    assert_eq!(reads[2], 0.0, "{first:?}");
    assert!(
        first.iter().all(|line| line.chars().count() <= 80),
        "{first:?}"
    );
    assert!(umount(&mounted.mount_point).status.success());
    assert_eq!(watch.end(), 0);
    assert!(lines.next().is_none());
}

#[test]
fn a_watch_ends_by_a_signal_without_a_failure_and_json_comes_by_the_line() {
    let source = source();
    let mounted = Mounted::new(source.path(), &[]);
    for signal in [Signal::INT, Signal::TERM] {
        let mut watch = Watch::begin(&mounted, &["--json"]);
        let mut lines = watch.lines();
        for _ in 0..2 {
            let stats: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
            assert!(stats["latency"]["all"]["count"].is_u64() && stats["memory_budget"].is_u64());
        }
        let began = Instant::now();
        kill_process(Pid::from_child(&watch.0), signal).unwrap();
        assert_eq!(watch.end(), 0);
        assert!(
            began.elapsed() < Duration::from_millis(1500),
            "{:?}",
            began.elapsed()
        );
    }
}

#[test]
fn on_a_terminal_the_report_is_drawn_in_place() {
    let source = source();
    let mut mounted = Mounted::new(source.path(), &[]);
    fs::read(mounted.path("lz4")).unwrap();
    let recorded = tempfile::tempdir().unwrap();
    let recorded = recorded.path().join("recorded");
    let program = env!("CARGO_BIN_EXE_warpfs");
    let script = format!(
        "stty rows 30 cols 70; exec '{program}' stats --watch '{}'",
        mounted.mount_point.display()
    );
    let mut terminal = Command::new("script")
        .args(["-qefc", &script])
        .arg(&recorded)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let drawn = || String::from_utf8_lossy(&fs::read(&recorded).unwrap_or_default()).into_owned();
    wait_until("two reports", || drawn().matches("READS").count() >= 2);
    assert!(umount(&mounted.mount_point).status.success());
    mounted.server.wait().unwrap();
    assert!(terminal.wait().unwrap().success());
    let drawn = drawn();
    assert!(drawn.contains("\x1b[H") && drawn.contains("BUSIEST") && drawn.contains("lz4.warp"));
    // Cut to the terminal, which would wrap what is longer.
    for line in drawn.lines().filter(|line| line.contains("\x1b[K")) {
        let shown = line.split("\x1b[H").last().unwrap().replace("\x1b[K", "");
        assert!(shown.trim_end().chars().count() <= 70, "{shown:?}");
    }
}

#[test]
fn a_plain_directory_with_an_attribute_of_that_name_is_no_mount() {
    let directory = tempfile::tempdir().unwrap();
    let value = b"{\"codecs\":{\"\\u001b[2Jx\":{\"chunks\":1}}}";
    rustix::fs::setxattr(
        directory.path(),
        "user.warpfs.stats",
        value,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let output = warpfs()
        .arg("stats")
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no warpfs is mounted here"), "{said}");
}

#[test]
fn where_nothing_is_mounted_there_is_nothing_to_watch() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["stats"][..], &["stats", "--watch"], &["stats", "--json"]] {
        let output = warpfs()
            .args(arguments)
            .arg(directory.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(
            said(&output).contains("no warpfs is mounted here"),
            "{}",
            said(&output)
        );
    }
}
