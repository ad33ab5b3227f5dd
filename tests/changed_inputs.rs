//! A file that changes while it is packed or unpacked is an error: exit code 1, no output, and with `--rm` it is kept.
//!
//! The jobs are held up at system calls chosen for it, so that a change comes between two of their steps for certain: while
//! the input is read, after it was read, after what was written was compared with it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::jobs::strays;
use common::over_others::Mounted;
use common::{names, sample, system_calls, wait_until};

/// How long a job stands still at the call it is held up at: time enough for a change, in microseconds.
const HOLD: &str = "delay_enter=400000";

/// Runs a job, holds it up before the call that the words name (as `fsync:when=1`), and makes the change meanwhile.
fn held_up(directory: &Path, words: &[&str], call: &str, change: impl FnOnce()) -> Output {
    let name = call.split(':').next().unwrap();
    let (call, when) = call.split_once(":when=").unwrap();
    let injection = format!("{call}:{HOLD}:when={when}");
    let calls: usize = when.parse().unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let child = system_calls::command(trace.path(), name, Some(&injection), words)
        .args(["-q", "--threads", "1"])
        .current_dir(directory)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the call", || {
        let begun = fs::read_to_string(trace.path()).unwrap();
        begun.matches(&format!("{name}(")).count() >= calls
    });
    change();
    child.wait_with_output().unwrap()
}

/// Checks that a job failed with one line that names this file and says that it changed.
fn assert_changed(output: &Output, name: &str, context: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{context}: {said}");
    assert_eq!(said.lines().count(), 1, "{context}: {said}");
    assert!(
        said.starts_with(&format!("warpfs: {name}")),
        "{context}: {said}"
    );
    assert!(said.contains("changed"), "{context}: {said}");
}

type Change = fn(&Path);

/// What can be done to a file; each leaves other bytes, or another file.
const CHANGES: [(&str, Change); 5] = [
    ("appended", |path| {
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(b"more").unwrap();
    }),
    ("overwritten", |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"other bytes", 5_000).unwrap();
    }),
    ("overwritten, with the times put back", |path| {
        let file = File::options().write(true).open(path).unwrap();
        let times = fs::metadata(path).unwrap().modified().unwrap();
        file.write_all_at(b"other bytes", 5_000).unwrap();
        file.set_modified(times).unwrap();
    }),
    ("truncated", |path| {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(7_000)
            .unwrap();
    }),
    ("replaced", |path| {
        let new = path.with_file_name("new");
        fs::write(&new, sample(30_000, 2)).unwrap();
        fs::rename(new, path).unwrap();
    }),
];

#[test]
fn a_changed_input_is_not_packed_or_unpacked_and_not_removed() {
    if !system_calls::can_trace() {
        return;
    }
    let original = sample(50_000, 1);
    let jobs: [(&[&str], &[&str]); 6] = [
        // While it is read, and with --rm also while what was written is synced to be read back.
        (&["pack", "x"], &["pwrite64:when=1"]),
        (&["pack", "--rm", "x"], &["pwrite64:when=1", "fsync:when=1"]),
        (&["unpack", "x.warp"], &["pwrite64:when=1"]),
        (
            &["unpack", "--rm", "x.warp"],
            &["pwrite64:when=1", "fsync:when=1"],
        ),
        (
            &["pack", "-r", "--rm", "."],
            &["pwrite64:when=1", "fsync:when=1"],
        ),
        (
            &["unpack", "-r", "--rm", "."],
            &["pwrite64:when=1", "fsync:when=1"],
        ),
    ];
    std::thread::scope(|scope| {
        for (words, calls) in jobs {
            let original = &original;
            scope.spawn(move || {
                let directory = tempfile::tempdir().unwrap();
                let at = |name: &str| directory.path().join(name);
                for call in calls {
                    for (what, change) in CHANGES {
                        let context = format!("{words:?} at {call}, {what}");
                        fs::write(at("x"), original).unwrap();
                        let input = match words[0] {
                            "pack" => "x",
                            _ => {
                                common::pack(&at("x"), &at("x.warp"), &["--chunk-size", "8K"]);
                                fs::remove_file(at("x")).unwrap();
                                "x.warp"
                            }
                        };
                        let output = held_up(directory.path(), words, call, || change(&at(input)));
                        let named = match words.contains(&".") {
                            true => format!("./{input}"),
                            false => input.to_owned(),
                        };
                        assert_changed(&output, &named, &context);
                        assert_eq!(names(directory.path()), [input], "{context}");
                        fs::remove_file(at(input)).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn an_input_changed_after_everything_was_checked_is_not_removed() {
    if !system_calls::can_trace() {
        return;
    }
    let original = sample(50_000, 1);
    for (what, change) in CHANGES {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("x"), &original).unwrap();
        // The last sync is the directory's, behind the renaming.
        let words = ["pack", "--rm", "x"];
        let output = held_up(directory.path(), &words, "fsync:when=3", || {
            change(&at("x"))
        });
        assert_changed(&output, "x: ", what);
        // What was made of what it was would only be in the way of the next try.
        assert_eq!(names(directory.path()), ["x"], "{what}");
    }
}

#[test]
fn an_input_that_is_written_to_elsewhere_is_not_removed_by_what_is_remembered_of_it() {
    if !system_calls::can_trace() {
        return;
    }
    for (what, change) in CHANGES {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["server", "mounted"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("server/x"), sample(50_000, 1)).unwrap();
        let mounted = Mounted::by_a_server(&at("mounted"), &at("server"), 600);
        let words = ["pack", "--rm", "x"];
        let output = held_up(&at("mounted"), &words, "fsync:when=3", || {
            change(&at("server/x"));
        });
        assert_changed(&output, "x: ", what);
        assert_eq!(names(&at("server")), ["x"], "{what}");
        drop(mounted);
    }
}

#[test]
fn a_store_into_a_mapped_page_that_no_time_tells_of_is_seen_before_the_input_is_removed() {
    if !system_calls::can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("x"), sample(50_000, 1)).unwrap();
    // The page is dirty before the job begins, so that a store into it changes no time.
    let script = "import mmap, os, sys\n\
        file = os.open('x', os.O_RDWR)\n\
        pages = mmap.mmap(file, 0)\n\
        pages[100:104] = b'once'\n\
        print('dirty', flush=True)\n\
        sys.stdin.readline()\n\
        pages[100:105] = b'twice'\n\
        print('stored', flush=True)\n\
        sys.stdin.readline()";
    let mut writer = Command::new("python3")
        .args(["-c", script])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tell = writer.stdin.take().unwrap();
    let mut said = BufReader::new(writer.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let output = held_up(
        directory.path(),
        &["pack", "--rm", "x"],
        "fsync:when=1",
        || {
            tell.write_all(b"\n").unwrap();
            said.read_line(&mut line).unwrap();
        },
    );
    drop(tell);
    writer.wait().unwrap();
    assert_eq!(line, "dirty\nstored\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("warpfs: x.warp: ") && said.lines().count() == 1,
        "{said}"
    );
    assert_eq!(names(directory.path()), ["x"]);
    assert_eq!(&fs::read(at("x")).unwrap()[100..105], b"twice");
}

#[test]
fn what_the_disk_gives_back_otherwise_than_it_was_written_costs_no_input() {
    if !system_calls::can_trace() {
        return;
    }
    for (words, input, output_name) in [
        (["pack", "--rm", "x"], "x", "x.warp"),
        (["unpack", "--rm", "y.warp"], "y.warp", "y"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("x"), sample(50_000, 1)).unwrap();
        fs::copy(at("x"), at("z")).unwrap();
        common::pack(&at("z"), &at("y.warp"), &["--checksum", "none"]);
        let before = fs::read(at(input)).unwrap();
        // A disk that lies about what it has: the bytes change behind the sync, in front of the reading back.
        let output = held_up(directory.path(), &words, "fsync:when=1", || {
            let temporary = strays(directory.path()).remove(0);
            let file = File::options().write(true).open(temporary).unwrap();
            file.write_all_at(b"rotten", 900).unwrap();
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.starts_with(&format!("warpfs: {output_name}: ")),
            "{said}"
        );
        assert!(fs::read(at(input)).unwrap() == before);
        assert!(!at(output_name).exists() && strays(directory.path()).is_empty());
    }
}

#[test]
fn an_input_that_changes_while_it_is_printed_is_an_error() {
    if !system_calls::can_trace() {
        return;
    }
    for (what, change) in CHANGES {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("x"), sample(50_000, 1)).unwrap();
        common::pack(&at("x"), &at("x.warp"), &["--chunk-size", "8K"]);
        // One that is replaced goes on being read as it was.
        if what == "replaced" {
            continue;
        }
        let (name, number) = match what {
            "truncated" => ("x.warp: chunk", 1),
            _ => ("x.warp: ", 1),
        };
        let file = File::create(at("printed")).unwrap();
        let trace = tempfile::NamedTempFile::new().unwrap();
        let injection = format!("write:{HOLD}:when={number}");
        let child = system_calls::command(
            trace.path(),
            "write",
            Some(&injection),
            &["unpack", "-c", "-q", "--threads", "1", "x.warp"],
        )
        .current_dir(directory.path())
        .stdout(file)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        wait_until("the first write", || {
            !fs::read(trace.path()).unwrap().is_empty()
        });
        change(&at("x.warp"));
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(
            said.starts_with(&format!("warpfs: {name}")) || said.contains("changed"),
            "{what}: {said}"
        );
    }
}
