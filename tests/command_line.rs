//! What the command does with its arguments, its terminal and its signals, whatever the files hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

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
fn output_to_a_dash_is_refused_and_not_a_file_of_that_name() {
    let directory = tempfile::tempdir().unwrap();
    for command in ["pack - -o -", "pack x -o -", "unpack x.warp -o -"] {
        let output = script(directory.path(), &format!("seq 9 >x; warpfs {command}"));
        assert_eq!(output.status.code(), Some(2), "{command}");
        assert!(!directory.path().join("-").exists(), "{command}");
    }
}
