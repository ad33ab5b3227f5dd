//! A job that is killed at any moment leaves whole files under their final names, and no input is gone before its
//! replacement is there in full; and it can be done again.
//!
//! `WARPFS_KILLS=500` kills so many times at random moments, which takes some minutes; without it, it is 66 times. Half
//! of the moments are spread over the job's whole duration, the others are when a temporary file appears or a final name
//! does. Beside these, every system call that changes something is the last one once.

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
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::jobs::{Job, State, decoded, empty, jobs};
use common::{Random, system_calls, wait_until};

/// The size of the largest file of each job, in bytes: work for some ten milliseconds at least.
const LENGTH: usize = 6 << 20;
/// Everything that changes a file, a directory or what is known of them.
const CHANGING: &str = "openat,?open,write,pwrite64,ftruncate,copy_file_range,fsync,syncfs,fchown,fchmod,utimensat,\
    fsetxattr,fremovexattr,fchownat,mkdirat,symlinkat,linkat,renameat,renameat2,unlinkat";

/// When a job is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after it was started.
    After(Duration),
    /// So long after a temporary file was there.
    Begun(Duration),
    /// So long after a new name was there that is not temporary, or one was gone.
    Named(Duration),
}

/// How often what was found after a kill.
#[derive(Debug, Default)]
struct Counts {
    kills: usize,
    /// Not counted otherwise: the job was done before.
    too_late: usize,
    inputs_only: usize,
    outputs_only: usize,
    /// Both, of one file or of several.
    both: usize,
    with_strays: usize,
    done_again: usize,
}

impl Counts {
    fn count(&mut self, state: &State) {
        match (state.inputs, state.outputs) {
            (_, 0) => self.inputs_only += 1,
            (0, _) => self.outputs_only += 1,
            _ => self.both += 1,
        }
        self.with_strays += usize::from(!state.strays.is_empty());
    }
}

/// The names there are, those of temporary files apart.
fn names(directory: &Path) -> (Vec<String>, usize) {
    let (mut names, mut temporary) = (Vec::new(), 0);
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.to_string_lossy().into_owned();
            match name.ends_with(".part") {
                true => temporary += 1,
                false => names.push(name),
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path);
            }
        }
    }
    names.sort();
    (names, temporary)
}

/// Sleeps short times well.
fn wait(duration: Duration) {
    let start = Instant::now();
    if let Some(long) = duration.checked_sub(Duration::from_micros(200)) {
        std::thread::sleep(long);
    }
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Kills the job at its moment; says whether that was not too late.
fn kill(child: &mut Child, directory: &Path, before: &[String], moment: Moment) -> bool {
    let delay = match moment {
        Moment::After(delay) | Moment::Begun(delay) | Moment::Named(delay) => delay,
    };
    while child.try_wait().unwrap().is_none() {
        let come = match moment {
            Moment::After(_) => true,
            Moment::Begun(_) => names(directory).1 > 0,
            Moment::Named(_) => names(directory).0 != before,
        };
        if come {
            break;
        }
    }
    wait(delay);
    let _ = child.kill();
    !child.wait().unwrap().success()
}

fn run(job: &Job, directory: &Path) -> Duration {
    let start = Instant::now();
    let output = job.command(directory).output().unwrap();
    let duration = start.elapsed();
    assert!(
        output.status.success(),
        "{}: {}",
        job.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    duration
}

/// Kills a job so many times, each on files of its own.
fn kill_many(job: &Job, times: usize, random: &mut Random) -> Counts {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    job.prepare(directory);
    let duration = run(job, directory);
    assert_eq!(job.check(directory, "done"), job.done());
    let mut counts = Counts::default();
    for number in 0.. {
        if counts.kills == times {
            break;
        }
        empty(directory);
        job.prepare(directory);
        let before = names(directory).0;
        let part =
            |of: Duration, random: &mut Random| of.mul_f64(random.below(1000) as f64 / 1000.0);
        let moment = match number % 4 {
            0 | 2 => Moment::After(part(duration, random)),
            1 => Moment::Begun(part(Duration::from_millis(2), random)),
            _ => Moment::Named(part(Duration::from_millis(1), random)),
        };
        let mut child = job
            .command(directory)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let killed = kill(&mut child, directory, &before, moment);
        let state = job.check(directory, &format!("{moment:?}"));
        if !killed {
            counts.too_late += 1;
            assert!(
                counts.too_late < 20 + 3 * times,
                "{}: it is never in time",
                job.name()
            );
            continue;
        }
        counts.kills += 1;
        counts.count(&state);
        if state.inputs > 0 && number % 5 == 0 {
            do_again(job, directory);
            counts.done_again += 1;
        }
    }
    counts
}

/// Does a job again that was interrupted: with leave to replace what it has made.
fn do_again(job: &Job, directory: &Path) {
    for stray in common::jobs::strays(directory) {
        fs::remove_file(stray).unwrap();
    }
    let again = job.command(directory).arg("-f").output();
    let again = again.unwrap();
    // Forced twice is wrong usage.
    let again = match again.status.code() {
        Some(2) => job.command(directory).output().unwrap(),
        _ => again,
    };
    assert!(
        again.status.success(),
        "{}: {}",
        job.name(),
        String::from_utf8_lossy(&again.stderr)
    );
    assert_eq!(job.check(directory, "done again"), job.done());
}

#[test]
fn a_job_killed_at_any_moment_leaves_whole_files_and_never_takes_the_only_copy() {
    let kills = std::env::var("WARPFS_KILLS").map_or(66, |kills| kills.parse().unwrap());
    let jobs = jobs(LENGTH);
    let mut random = Random(4);
    for (number, job) in jobs.iter().enumerate() {
        let times = kills / jobs.len() + usize::from(number < kills % jobs.len());
        let counts = kill_many(job, times, &mut random);
        println!("{}: {counts:?}", job.name());
    }
}

#[test]
fn a_job_killed_at_any_system_call_leaves_whole_files_and_never_takes_the_only_copy() {
    if !system_calls::can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut counts = Counts::default();
    for job in jobs(150_000) {
        let words = [&job.words[..], &["-q", "--threads", "1"]].concat();
        let attempt = |injection: Option<&str>| {
            empty(directory);
            job.prepare(directory);
            let trace = tempfile::NamedTempFile::new().unwrap();
            let mut command = system_calls::command(trace.path(), CHANGING, injection, &words);
            job.place(&mut command, directory);
            let output = command.output().unwrap();
            let lines = fs::read(trace.path()).unwrap();
            let lines = String::from_utf8_lossy(&lines);
            let lines: Vec<_> = lines.lines().map(str::to_owned).collect();
            (output.status.success(), lines)
        };
        let (done, lines) = attempt(None);
        assert!(done, "{}", job.name());
        let calls = system_calls::numbered(&lines, &[job.first_name()]);
        assert!(calls.len() > 8, "{lines:?}");
        for (call, number) in calls {
            let injection = format!("{call}:signal=KILL:when={number}");
            let (done, _) = attempt(Some(&injection));
            let state = job.check(directory, &injection);
            counts.kills += 1;
            counts.too_late += usize::from(done);
            counts.count(&state);
        }
    }
    println!("{counts:?}");
    assert_eq!(counts.too_late, 0);
    assert!(counts.both > 0 && counts.inputs_only > 0);
}

#[test]
fn a_signal_that_was_ignored_from_the_start_ends_no_job() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "trap '' INT HUP; exec \"$@\"", "sh"])
        .args([
            env!("CARGO_BIN_EXE_warpfs"),
            "pack",
            "-q",
            "-o",
            "x.warp",
            "-",
        ])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&[7; 1000]).unwrap();
    let is_at_it = || fs::read_dir(directory.path()).unwrap().next().is_some();
    wait_until("the job is at it", is_at_it);
    let id = i32::try_from(child.id()).unwrap();
    let pid = rustix::process::Pid::from_raw(id).unwrap();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    input.write_all(&[7; 1000]).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    assert!(decoded(&directory.path().join("x.warp")).unwrap() == [7; 2000]);
}
