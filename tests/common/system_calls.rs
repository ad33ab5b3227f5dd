//! System calls watched, refused and delayed from outside, by strace: faults that no disk can be made to have at a chosen
//! moment.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A run of the program in a directory, with the system calls of these names traced and `injection` done to them, as in
/// strace's `--inject`. Says how it ended and the calls in order, one a line.
pub fn traced(
    directory: &Path,
    calls: &str,
    injection: Option<&str>,
    arguments: &[&str],
) -> (Output, Vec<String>) {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let output = command(trace.path(), calls, injection, arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    let lines = fs::read(trace.path()).unwrap();
    let lines = String::from_utf8_lossy(&lines);
    (output, lines.lines().map(str::to_owned).collect())
}

/// As [`traced`], to be started by the caller; the trace goes to a file.
pub fn command(trace: &Path, calls: &str, injection: Option<&str>, arguments: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-s", "64", "-e", "signal=none"]);
    command
        .arg("-o")
        .arg(trace)
        .arg("-e")
        .arg(format!("trace={calls}"));
    if let Some(injection) = injection {
        command.arg("-e").arg(format!("inject={injection}"));
    }
    command.arg(env!("CARGO_BIN_EXE_warpfs")).args(arguments);
    command
}

/// Whether there is a strace that may trace; if not, that is said.
pub fn can_trace() -> bool {
    let tried = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=close", "true"].map(OsStr::new))
        .output();
    let can = tried.is_ok_and(|output| output.status.success());
    if !can {
        super::left_out("no strace that may trace");
    }
    can
}

/// The calls that a run made for the files it was asked to work on, by name, as numbers counted from 1: without those
/// before the first that names one of `files`. A run on one thread makes the same calls again.
pub fn numbered<'a>(lines: &'a [String], files: &[&str]) -> Vec<(&'a str, usize)> {
    let begins = |line: &String| files.iter().any(|file| line.contains(&format!("\"{file}")));
    let start = lines.iter().position(begins).unwrap();
    let mut counts = std::collections::HashMap::new();
    let mut numbered = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        // "1234 openat(…) = 3"
        let call = line.split_once(' ').unwrap().1.trim_start();
        let Some((name, _)) = call.split_once('(') else {
            continue;
        };
        let count = counts.entry(name).or_insert(0);
        *count += 1;
        if index >= start {
            numbered.push((name, *count));
        }
    }
    numbered
}
