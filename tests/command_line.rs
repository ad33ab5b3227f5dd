//! What the command does with its arguments, its terminal and its signals, whatever the files hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Runs a shell script in `directory`, where `warpfs` is the built program.
fn script(directory: &Path, script: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_warpfs")).parent().unwrap();
    let path = format!("{}:{}", program.display(), env!("PATH"));
    Command::new("bash")
        .args(["-c", script])
        .current_dir(directory)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn two_inputs_of_one_name_are_refused_before_either_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let prepare =
        "mkdir a b o a/t b/t; seq 1000 >a/x; seq 2000 3000 >b/x; cp a/x a/t/1; cp b/x b/t/2
        cp a/x x; warpfs pack -q a/x b/x";
    assert!(script(directory.path(), prepare).status.success());
    for (command, clash) in [
        (
            "pack -q --rm --force a/x b/x -o o",
            "both become 'o/x.warp'",
        ),
        ("pack a/x b/x -o o", "both become 'o/x.warp'"),
        (
            "unpack --rm --force a/x.warp b/x.warp -o o",
            "both become 'o/x'",
        ),
        ("pack -r a/t b/t -o o", "both become 'o/t'"),
        ("unpack -r a/t b/t -o o", "both become 'o/t'"),
        ("pack -f a/x ./a/../a/x", "both become"),
        (
            "pack -f --rm a/x a/x.warp",
            "would be replaced by what 'a/x' becomes",
        ),
        (
            "pack -f ./x x.warp -o .",
            "would be replaced by what './x' becomes",
        ),
    ] {
        let output = script(directory.path(), &format!("warpfs {command}"));
        assert_eq!(
            output.status.code(),
            Some(2),
            "{command}: {}",
            said(&output)
        );
        assert!(
            said(&output).contains(clash),
            "{command}: {}",
            said(&output)
        );
        assert_eq!(fs::read_dir(directory.path().join("o")).unwrap().count(), 0);
    }
    let untouched =
        "cmp <(seq 1000) a/x && cmp <(seq 2000 3000) b/x && test -e a/x.warp -a -e b/x.warp";
    assert!(script(directory.path(), untouched).status.success());
}

#[test]
fn a_tree_called_dot_dot_gets_its_own_name_among_several() {
    let directory = tempfile::tempdir().unwrap();
    let packed = script(
        directory.path(),
        "mkdir -p one/in two o; seq 1000 >one/x; seq 1000 >two/x; cd one/in; warpfs pack -q -r .. ../../two -o ../../o",
    );
    assert!(packed.status.success(), "{}", said(&packed));
    assert!(directory.path().join("o/one/x.warp").exists());
    assert!(directory.path().join("o/two/x.warp").exists());
}

#[test]
fn wrong_usage_shows_the_usage_of_the_command_it_is_about() {
    let directory = tempfile::tempdir().unwrap();
    let output = script(directory.path(), "warpfs pack a b -o nowhere");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("Usage: warpfs pack"),
        "{}",
        said(&output)
    );
}

#[test]
fn originals_are_not_unpacked_to_urls() {
    let directory = tempfile::tempdir().unwrap();
    let unpack = "seq 9 >x; warpfs pack -q x; warpfs unpack x.warp -o s3://bucket/x";
    let output = script(directory.path(), unpack);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("files of this machine alone"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_mistyped_command_with_an_output_is_not_taken_for_a_source_to_mount() {
    let directory = tempfile::tempdir().unwrap();
    let output = script(directory.path(), "warpfs unpak x.warp -o y");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("unrecognized subcommand 'unpak'"),
        "{}",
        said(&output)
    );
    // What is there is a source, by whatever name.
    let output = script(directory.path(), "mkdir unpak; warpfs unpak x -o wrong");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("mount.fuse.warpfs: x: -o wrong"),
        "{}",
        said(&output)
    );
}

#[test]
fn output_to_a_dash_is_refused_and_not_a_file_of_that_name() {
    let directory = tempfile::tempdir().unwrap();
    for command in ["pack - -o -", "pack x -o -", "unpack x.warp -o -"] {
        let output = script(directory.path(), &format!("seq 9 >x; warpfs {command}"));
        assert_eq!(output.status.code(), Some(2), "{command}");
        assert!(!directory.path().join("-").exists(), "{command}");
    }
}

#[test]
fn a_standard_error_that_takes_nothing_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    for work in [
        "seq 100000 >s; warpfs pack -f s 2>/dev/full",
        "seq 100000 >s; warpfs pack -fv --chunk-size 4K s 2>/dev/full",
        "seq 9000000 >s; warpfs pack -fv --chunk-size 4K s 2>&1 | head -1; exit ${PIPESTATUS[0]}",
        "warpfs verify -v s.warp 2>/dev/full",
        "warpfs verify -v s.warp 2>&-",
    ] {
        let output = script(directory.path(), work);
        assert_eq!(output.status.code(), Some(0), "{work}: {}", said(&output));
    }
    for work in [
        "warpfs verify missing 2>/dev/full",
        "warpfs info --json s.warp >/dev/full",
    ] {
        let output = script(directory.path(), work);
        assert_eq!(output.status.code(), Some(1), "{work}: {}", said(&output));
    }
}

#[test]
fn a_bar_on_a_terminal_shows_how_a_job_goes_on_unless_it_is_to_be_quiet() {
    let directory = tempfile::tempdir().unwrap();
    // The writer waits, so that the bar moves meanwhile.
    let on_a_terminal = |words: &str| {
        let job =
            format!("{{ seq 100000; sleep 0.7; seq 100000; }} | warpfs pack {words} -fo x.warp -");
        let shown = script(
            directory.path(),
            &format!("script -qec \"stty cols 100; {job}\" /dev/null"),
        );
        assert_eq!(shown.status.code(), Some(0), "{}", said(&shown));
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    let shown = on_a_terminal("");
    assert!(
        shown.contains("/s, packed ") && shown.contains(" left"),
        "{shown}"
    );
    assert_eq!(on_a_terminal("-q"), "");
}

#[test]
fn a_signal_ends_a_job_that_waits_for_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let prepare = "mkfifo f p.warp; seq 9000000 >s; warpfs pack -q s";
    assert!(script(directory.path(), prepare).status.success());
    for (job, words) in [
        // Nobody writes to the pipe, or nobody reads from it.
        ("warpfs pack f", "interrupted"),
        (
            "warpfs unpack -c s.warp > >(exec sleep 12 &>/dev/null)",
            "interrupted",
        ),
    ] {
        let work = format!("{job} & sleep 0.5; kill -TERM $!; wait $!");
        let started = Instant::now();
        let output = script(directory.path(), &work);
        assert!(started.elapsed() < Duration::from_secs(10), "{job}");
        assert_eq!(output.status.code(), Some(1), "{job}: {}", said(&output));
        assert!(said(&output).contains(words), "{job}: {}", said(&output));
    }
    for job in [
        "verify p.warp",
        "unpack p.warp",
        "info p.warp",
        "unpack -c p.warp",
    ] {
        let output = script(directory.path(), &format!("timeout 10 warpfs {job}"));
        assert_eq!(output.status.code(), Some(1), "{job}");
        assert!(
            said(&output).contains("not a regular file"),
            "{}",
            said(&output)
        );
    }
}

#[test]
fn a_second_signal_ends_what_the_first_did_not() {
    let directory = tempfile::tempdir().unwrap();
    // One chunk, which keeps its codec busy for minutes.
    let work =
        "seq 20000000 >s; warpfs pack --codec brotli --brotli-quality 11 --chunk-size 256M s &
        sleep 1; kill -TERM $!; sleep 0.2; kill -TERM $!; wait $!";
    let started = Instant::now();
    let output = script(directory.path(), work);
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(128 + 15), "{}", said(&output));
}

#[test]
fn a_pipe_that_gets_its_writer_late_is_packed_whole() {
    let directory = tempfile::tempdir().unwrap();
    let work = "mkfifo f; (sleep 0.4; exec >f; seq 1000; sleep 0.3; seq 300000) & warpfs pack -q -o x.warp f
        cmp <(seq 1000; seq 300000) <(warpfs unpack -c x.warp)";
    let output = script(directory.path(), work);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_hangup_and_a_limit_on_files_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    // Whoever runs the tests may have it ignored, as nohup does.
    let work = "mkfifo f; env --default-signal=HUP warpfs pack -o x.warp f &
        for i in {1..200}; do ls -A | grep -q part && break; sleep 0.05; done
        ls -A | grep -q part || exit 9; kill -HUP $!; wait $!";
    let output = script(directory.path(), work);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let work = "seq 900000 >s; ulimit -f 100; warpfs pack --codec snappy -o x.warp s";
    let output = script(directory.path(), work);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("File too large"),
        "{}",
        said(&output)
    );
    let left = script(directory.path(), "ls -A");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "f\ns\n");
}

#[test]
fn a_job_that_gets_no_threads_is_done_by_one() {
    if !rustix::process::geteuid().is_root() {
        common::left_out("taking threads away takes root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let work = "chmod 755 .; cp $(command -v warpfs) own; seq 900000 >s; warpfs pack -q --chunk-size 64K s; chmod 644 s.warp
        setpriv --reuid=61234 --regid=61234 --clear-groups prlimit --nproc=3 ./own verify --threads 30 s.warp";
    let output = script(directory.path(), work);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn a_directory_is_pointed_to_the_flag_for_trees() {
    let directory = tempfile::tempdir().unwrap();
    for command in ["verify", "info", "unpack -o x"] {
        let output = script(directory.path(), &format!("mkdir -p d; warpfs {command} d"));
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(said(&output).contains("add -r"), "{}", said(&output));
    }
}

#[test]
fn verifying_a_tree_without_packed_files_says_that_nothing_was_verified() {
    let directory = tempfile::tempdir().unwrap();
    let output = script(
        directory.path(),
        "mkdir d; seq 9 >d/x; warpfs verify -q -r d",
    );
    assert!(
        said(&output).contains("nothing was verified"),
        "{}",
        said(&output)
    );
    let output = script(
        directory.path(),
        "warpfs pack -q d/x; warpfs verify -q -r d",
    );
    assert_eq!(said(&output), "");
}
