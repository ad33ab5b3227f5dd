//! A disk that is full or fails ends a job with exit code 1 and one line that names the file; nothing stays under the
//! final name or beside it, and the input is kept.
//!
//! The disks are ext4 on loop devices: small ones, such as keep less than they say, such as were cut short, such as lose
//! their power. Beside these, system calls of small jobs are refused: with `WARPFS_EVERY_CALL=1` each of them once, which
//! takes two minutes, else every sixth.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::disks::{Disk, forget};
use common::jobs::{Job, State, decoded, empty, jobs, strays};
use common::over_others::Mounted;
use common::{noise, sample, shell, system_calls, warpfs};

const MIB: u64 = 1 << 20;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lost+found" && name != "filler")
        .collect();
    names.sort();
    names
}

/// Checks that a command failed with one line that begins with this name and says one of these things.
fn assert_failed(output: &Output, name: &Path, says: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.starts_with(&format!("warpfs: {}", name.display())),
        "{said}"
    );
    assert!(says.iter().any(|words| said.contains(words)), "{said}");
}

#[test]
fn on_a_disk_that_gets_full_there_is_the_whole_output_or_none() {
    let Some(disk) = Disk::new(24 * MIB) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = noise(2 << 20, 1);
    fs::write(at("x"), &original).unwrap();
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/x"), sample(6 << 20, 1)).unwrap();
    common::pack(&at("x"), &at("x.warp"), &[]);
    let work = disk.path("work");
    let (mut failed, mut succeeded) = (0, 0);
    // From no room at all to room for a stream's spool beside its result, in steps about the size of the output too.
    for free in [
        0, 4, 64, 1500, 2040, 2044, 2048, 2052, 2056, 2060, 2064, 2100, 3000, 4200, 4600,
    ] {
        for words in [
            &["pack", "-o", "work/x.warp"][..],
            &["pack", "-o", "work/x.warp", "-"],
            &["unpack", "-o", "work/x"],
            &["pack", "-r", "-o", "work/out"],
        ] {
            let _ = fs::create_dir(&work);
            disk.fill(free * 1024);
            let mut command = warpfs();
            command.current_dir(disk.path("")).args(words).arg("-q");
            let input = match words[0] {
                _ if words.contains(&"-r") => at("tree"),
                "unpack" => at("x.warp"),
                _ => at("x"),
            };
            match words.contains(&"-") {
                true => command.stdin(File::open(&input).unwrap()),
                false => command.arg(&input),
            };
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let context = format!("{words:?} with {free} KiB: {said}");
            assert!(strays(&work).is_empty(), "{context}");
            let made = work.join(match words.contains(&"-r") {
                true => "out/x.warp",
                false => words[2].strip_prefix("work/").unwrap(),
            });
            match output.status.code() {
                Some(0) if words.contains(&"-r") => {
                    assert!(
                        decoded(&made).unwrap() == fs::read(at("tree/x")).unwrap(),
                        "{context}"
                    );
                    succeeded += 1;
                }
                Some(0) => {
                    let found = match words[0] {
                        "pack" => decoded(&made).unwrap(),
                        _ => fs::read(&made).unwrap(),
                    };
                    assert!(found == original, "{context}");
                    succeeded += 1;
                }
                Some(1) => {
                    let named = if words.contains(&"-r") {
                        "work/out"
                    } else {
                        words[2]
                    };
                    assert_failed(&output, Path::new(named), &["No space left on device"]);
                    assert!(!made.exists(), "{context}");
                    failed += 1;
                }
                code => panic!("{code:?}: {context}"),
            }
            fs::remove_dir_all(&work).unwrap();
        }
    }
    assert!(
        failed > 20 && succeeded > 10,
        "{failed} failed, {succeeded} succeeded"
    );
}

#[test]
fn on_a_disk_without_room_nothing_is_removed_and_a_second_try_with_room_succeeds() {
    let Some(disk) = Disk::new(24 * MIB) else {
        return;
    };
    let original = noise(3 << 20, 2);
    fs::write(disk.path("x"), &original).unwrap();
    disk.fill(MIB);
    let run = |words: &[&str]| {
        warpfs()
            .current_dir(disk.path(""))
            .args(words)
            .output()
            .unwrap()
    };
    let packed = run(&["pack", "-q", "--rm", "x"]);
    assert_failed(&packed, Path::new("x.warp"), &["No space left"]);
    assert_eq!(names(&disk.path("")), ["x"]);
    assert!(fs::read(disk.path("x")).unwrap() == original);
    disk.fill(4 * MIB);
    assert!(run(&["pack", "-q", "--rm", "x"]).status.success());
    assert_eq!(names(&disk.path("")), ["x.warp"]);
    disk.fill(MIB);
    let unpacked = run(&["unpack", "-q", "--rm", "x.warp"]);
    assert_failed(&unpacked, Path::new("x"), &["No space left"]);
    assert_eq!(names(&disk.path("")), ["x.warp"]);
    disk.fill(4 * MIB);
    assert!(run(&["unpack", "-q", "--rm", "x.warp"]).status.success());
    assert!(fs::read(disk.path("x")).unwrap() == original);
}

#[test]
fn a_standard_output_that_takes_nothing_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for length in [1, 100_000, 3 << 20] {
        fs::write(at("x"), sample(length, 3)).unwrap();
        common::pack(&at("x"), &at("x.warp"), &[]);
        for words in [&["unpack", "-c"][..], &["info", "--json"]] {
            let output = warpfs()
                .args(words)
                .arg(at("x.warp"))
                .stdout(File::options().write(true).open("/dev/full").unwrap())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{words:?} {length}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(
                said.contains("standard output") && said.contains("No space left"),
                "{said}"
            );
        }
        assert_eq!(names(directory.path()), ["x", "x.warp"]);
    }
}

#[test]
fn what_cannot_be_read_any_more_is_not_packed_unpacked_or_removed() {
    let Some(disk) = Disk::new(40 * MIB) else {
        return;
    };
    let original = noise(10 << 20, 4);
    fs::create_dir_all(disk.path("tree")).unwrap();
    fs::write(disk.path("tree/0 sound"), sample(20_000, 5)).unwrap();
    fs::write(disk.path("tree/x"), &original).unwrap();
    common::pack(&disk.path("tree/x"), &disk.path("packed.warp"), &[]);
    forget(&disk.path("tree/x"));
    forget(&disk.path("packed.warp"));
    // Less is left than either of the two files takes with what the file system needs for itself.
    disk.cut(10 * MIB);
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| elsewhere.path().join(name);
    let errors = ["Input/output error"];
    let run = |words: &[&str], paths: &[&Path]| {
        let mut command = warpfs();
        command.current_dir(disk.path("")).args(words);
        command.args(paths).output().unwrap()
    };
    for rm in [&[][..], &["--rm"]] {
        let words = |job| [&[job, "-q"], rm, &["-o"]].concat();
        let packed = run(&words("pack"), &[&at("x.warp"), Path::new("tree/x")]);
        assert_failed(&packed, Path::new("tree/x"), &errors);
        let unpacked = run(&words("unpack"), &[&at("x"), Path::new("packed.warp")]);
        assert_failed(&unpacked, Path::new("packed.warp"), &errors);
        assert!(
            names(elsewhere.path()).is_empty(),
            "{:?}",
            names(elsewhere.path())
        );
        assert_eq!(names(&disk.path("tree")), ["0 sound", "x"]);
        assert_eq!(names(&disk.path("")), ["packed.warp", "tree"]);
    }
    let input = File::open(disk.path("tree/x")).unwrap();
    let words = ["pack", "-q", "-", "-o"];
    let streamed = warpfs()
        .args(words)
        .arg(at("x.warp"))
        .stdin(input)
        .output()
        .unwrap();
    assert_failed(&streamed, Path::new("standard input"), &errors);
    assert!(names(elsewhere.path()).is_empty());
    let printed = run(&["unpack", "-c", "packed.warp"], &[]);
    assert_failed(&printed, Path::new("packed.warp"), &errors);
    // Of a tree, the rest is done, and copies fail as well.
    let tree = run(&["pack", "-rq", "-o"], &[&at("out"), Path::new("tree")]);
    assert_failed(&tree, Path::new("tree/x"), &errors);
    assert_eq!(names(&at("out")), ["0 sound.warp"]);
    let tree = run(
        &["unpack", "-rq", "-o"],
        &[&at("copies"), Path::new("tree")],
    );
    assert_failed(&tree, Path::new("tree/x"), &errors);
    assert_eq!(names(&at("copies")), ["0 sound"]);
}

#[test]
fn what_the_disk_did_not_keep_gets_no_name_and_its_input_stays() {
    let Some(disk) = Disk::in_memory(48 * MIB) else {
        return;
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| elsewhere.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("tree/x"), noise(6 << 20, 6)).unwrap();
    fs::write(at("tree/z"), sample(9 << 20, 7)).unwrap();
    common::pack(&at("tree/x"), &at("x.warp"), &[]);
    let work = disk.path("work");
    fs::create_dir_all(work.join("out")).unwrap();
    let taken = disk.take_room();
    let errors = ["Input/output error", "No space left on device"];
    let run = |words: &[&str], input: &Path| {
        let mut command = warpfs();
        command.current_dir(&work).args(words).arg("-q");
        match words.contains(&"-") {
            true => command.stdin(File::open(input).unwrap()),
            false => command.arg(input),
        };
        command.output().unwrap()
    };
    for rm in [&[][..], &["--rm"]] {
        let words = |job: &[&'static str]| [job, rm].concat();
        let packed = run(&words(&["pack", "-o", "x.warp"]), &at("tree/x"));
        assert_failed(&packed, Path::new("x.warp"), &errors);
        let unpacked = run(&words(&["unpack", "-o", "x"]), &at("x.warp"));
        assert_failed(&unpacked, Path::new("x"), &errors);
        assert_eq!(names(&work), ["out"]);
    }
    let streamed = run(&["pack", "-o", "x.warp", "-"], &at("tree/x"));
    assert_failed(&streamed, Path::new("x.warp"), &errors);
    assert_eq!(names(&work), ["out"]);
    // Files are synced together: none of them is sure to be there.
    let tree = run(&["pack", "-r", "-o", "out"], &at("tree"));
    let said = String::from_utf8_lossy(&tree.stderr);
    assert_eq!(tree.status.code(), Some(1), "{said}");
    assert!(
        said.lines().all(|line| line.starts_with("warpfs: out/")),
        "{said}"
    );
    assert_eq!(names(&work.join("out")), [""; 0]);
    assert_eq!(names(&at("tree")), ["x", "z"]);
    drop(taken);
    let packed = run(&["pack", "-o", "x.warp"], &at("tree/x"));
    assert!(
        packed.status.success(),
        "{}",
        String::from_utf8_lossy(&packed.stderr)
    );
}

/// Packs a tree into what `mount` mounts at a path over a disk that keeps nothing at first.
fn pack_over_a_disk_without_room(mount: impl FnOnce(&Path, &Disk) -> Mounted) {
    let Some(disk) = Disk::in_memory(48 * MIB) else {
        return;
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| elsewhere.path().join(name);
    fs::create_dir_all(at("tree/d")).unwrap();
    fs::write(at("tree/d/x"), noise(6 << 20, 6)).unwrap();
    fs::write(at("tree/d/z"), sample(9 << 20, 7)).unwrap();
    shell(&at("tree"), "touch -d 2001-02-03 d");
    fs::create_dir(at("merged")).unwrap();
    let mounted = mount(&at("merged"), &disk);
    let pack = || {
        let mut command = warpfs();
        command.args(["pack", "-rq", "-o", "merged/out", "tree"]);
        command.current_dir(elsewhere.path()).output().unwrap()
    };
    let taken = disk.take_room();
    let lost = pack();
    let said = String::from_utf8_lossy(&lost.stderr);
    assert_eq!(lost.status.code(), Some(1), "{said}");
    assert_eq!(names(&at("merged/out/d")), [""; 0], "{said}");
    drop(taken);
    let kept = pack();
    let said = String::from_utf8_lossy(&kept.stderr);
    assert!(kept.status.success(), "{said}");
    assert_eq!(names(&at("merged/out/d")), ["x", "z.warp"]);
    let modified = |name: &str| fs::metadata(at(name)).unwrap().modified().unwrap();
    assert_eq!(modified("merged/out/d"), modified("tree/d"));
    drop(mounted);
}

#[test]
fn what_the_disk_below_an_overlay_did_not_keep_gets_no_name() {
    let lower = tempfile::tempdir().unwrap();
    pack_over_a_disk_without_room(|at, disk| {
        let [upper, work] = ["upper", "work"].map(|name| disk.path(name));
        for directory in [&upper, &work] {
            fs::create_dir(directory).unwrap();
        }
        Mounted::overlay(at, lower.path(), &upper, &work)
    });
}

#[test]
fn what_the_disk_below_a_fuse_server_did_not_keep_gets_no_name() {
    pack_over_a_disk_without_room(|at, disk| Mounted::by_a_server(at, &disk.path(""), 0));
}

#[test]
fn a_stream_set_aside_on_a_disk_that_loses_it_is_an_error_and_not_other_bytes() {
    let Some(disk) = Disk::in_memory(48 * MIB) else {
        return;
    };
    let taken = disk.take_room();
    let mut child = warpfs()
        .args(["pack", "-q", "-o"])
        .arg(disk.path("x.warp"))
        .arg("-")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&noise(4 << 20, 8)).unwrap();
    // What was set aside so far is written to the disk, which has no room for it, and forgotten.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let _ = Command::new("sync")
        .arg("-f")
        .arg(disk.path(""))
        .stderr(Stdio::null())
        .status();
    shell(Path::new("/"), "echo 1 > /proc/sys/vm/drop_caches");
    // By the time it is read back there is room again, and nothing fails any more.
    drop(taken);
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    assert_failed(
        &output,
        &disk.path("x.warp"),
        &["other bytes than were written", "Input/output error"],
    );
    assert_eq!(names(&disk.path("")), [""; 0]);
}

#[test]
fn a_disk_that_goes_away_amid_a_job_is_an_error_and_nothing_is_lost() {
    let Some(mut disk) = Disk::new(64 * MIB) else {
        return;
    };
    let mut amid = 0;
    for job in jobs(5 << 20) {
        let directory = disk.path("work");
        let _ = fs::create_dir(&directory);
        empty(&directory);
        job.prepare(&directory);
        shell(&directory, "sync -f .");
        let switch = disk.power_switch();
        let mut child = job
            .command(&directory)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A temporary file is there: the job is at work, or it was done before anybody saw one.
        common::wait_until("the job to begin", || {
            !strays(&directory).is_empty() || child.try_wait().unwrap().is_some()
        });
        switch.off();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = job.name();
        if output.status.success() {
            disk.restart();
            let state = job.check(&disk.path("work"), "after it was done");
            assert_eq!(state.outputs, job.files.len(), "{name}");
            continue;
        }
        amid += 1;
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(
            said.lines().count() == 1 || name.contains(" -r "),
            "{name}: {said}"
        );
        let names_a_file = |line: &str| {
            let files = ["original", "packed", "tree", "out", "standard input"];
            line.strip_prefix("warpfs: ")
                .is_some_and(|rest| files.iter().any(|file| rest.starts_with(file)))
        };
        assert!(said.lines().all(names_a_file), "{name}: {said}");
        disk.restart();
        let state = job.check(&disk.path("work"), "after the disk was there again");
        assert!(state.inputs > 0, "{name}");
    }
    assert!(amid > 0);
}

/// The calls that are refused: all that concern files.
const REFUSED: &str = "openat,?open,read,pread64,write,pwrite64,lseek,ftruncate,copy_file_range,ioctl,fadvise64,fsync,syncfs,\
    fchown,fchmod,utimensat,flistxattr,fgetxattr,fsetxattr,fremovexattr,fchownat,mkdirat,symlinkat,linkat,renameat,\
    renameat2,unlinkat,fstat,newfstatat,statx,getdents64,readlinkat,fcntl";

/// Refuses calls of a job, one in each run: of every `step` one, from `first` on. Says how many made the job fail and how
/// many it bore.
fn refuse(job: &Job, error: &str, directory: &Path, first: usize, step: usize) -> (usize, usize) {
    let words = [&job.words[..], &["-q", "--threads", "1"]].concat();
    let attempt = |injection: Option<&str>| {
        empty(directory);
        job.prepare(directory);
        let trace = tempfile::NamedTempFile::new().unwrap();
        let mut command = system_calls::command(trace.path(), REFUSED, injection, &words);
        job.place(&mut command, directory);
        let output = command.output().unwrap();
        let lines = fs::read(trace.path()).unwrap();
        let lines = String::from_utf8_lossy(&lines);
        let lines: Vec<_> = lines.lines().map(str::to_owned).collect();
        (output, lines)
    };
    let (output, lines) = attempt(None);
    assert!(output.status.success(), "{}", job.name());
    let (mut failed, mut borne) = (0, 0);
    let calls = system_calls::numbered(&lines, &[job.first_name()]);
    assert!(calls.len() > 20, "{}", job.name());
    for (call, number) in calls.into_iter().skip(first).step_by(step) {
        let injection = format!("{call}:error={error}:when={number}");
        let (output, lines) = attempt(Some(&injection));
        let said = String::from_utf8_lossy(&output.stderr);
        let context = format!("{injection}: {said}");
        let state = job.check(directory, &context);
        // A temporary file that cannot be removed stays.
        let refused = lines.iter().find(|line| line.contains("(INJECTED)"));
        let kept = call == "unlinkat" && refused.unwrap().contains(".part");
        assert!(kept || state.strays.is_empty(), "{}: {context}", job.name());
        match output.status.code() {
            Some(0) => {
                let done = State {
                    strays: state.strays.clone(),
                    ..job.done()
                };
                assert_eq!(state, done, "{}: {context}", job.name());
                borne += 1;
            }
            Some(1) => {
                assert!(
                    said.lines().count() == 1 || job.name().contains(" -r "),
                    "{}: {context}",
                    job.name()
                );
                assert!(said.starts_with("warpfs: "), "{}: {context}", job.name());
                failed += 1;
            }
            code => panic!("{}: {code:?}, {context}", job.name()),
        }
    }
    (failed, borne)
}

#[test]
fn every_system_call_that_fails_is_borne_or_said_and_nothing_is_lost() {
    if !system_calls::can_trace() {
        return;
    }
    let step = if std::env::var_os("WARPFS_EVERY_CALL").is_some() {
        1
    } else {
        6
    };
    std::thread::scope(|scope| {
        for (thread, error) in ["EIO", "ENOSPC"].into_iter().enumerate() {
            scope.spawn(move || {
                let directory = tempfile::tempdir().unwrap();
                for (number, job) in jobs(150_000).iter().enumerate() {
                    // Of similar jobs, others.
                    let first = (number + 3 * thread) % step;
                    let (failed, borne) = refuse(job, error, directory.path(), first, step);
                    println!(
                        "{} with {error}: {failed} failures, {borne} borne",
                        job.name()
                    );
                    assert!(failed > 0, "{}", job.name());
                }
            });
        }
    });
}

#[test]
fn where_names_cannot_be_exchanged_without_replacing_they_are_linked() {
    if !system_calls::can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(100_000, 9);
    fs::write(at("x"), &original).unwrap();
    let injection = Some("renameat2:error=EINVAL");
    let run =
        |words: &[&str]| system_calls::traced(directory.path(), "renameat2", injection, words).0;
    assert!(run(&["pack", "-q", "--rm", "x"]).status.success());
    assert_eq!(names(directory.path()), ["x.warp"]);
    assert!(decoded(&at("x.warp")).unwrap() == original);
    fs::write(at("x"), "precious").unwrap();
    assert_failed(
        &run(&["unpack", "-q", "x.warp"]),
        Path::new("x"),
        &["exists already"],
    );
    assert_eq!(fs::read(at("x")).unwrap(), b"precious");
}

#[test]
fn where_there_are_no_links_either_nothing_that_is_there_is_replaced() {
    if !system_calls::can_trace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let original = sample(100_000, 9);
    fs::write(at("x"), &original).unwrap();
    let (calls, injection) = ("renameat2,linkat", Some("renameat2,linkat:error=ENOSYS"));
    let run = |words: &[&str]| system_calls::traced(directory.path(), calls, injection, words).0;
    assert!(run(&["pack", "-q", "--rm", "x"]).status.success());
    assert_eq!(names(directory.path()), ["x.warp"]);
    assert!(decoded(&at("x.warp")).unwrap() == original);
    fs::write(at("x"), "precious").unwrap();
    assert_failed(
        &run(&["unpack", "-q", "x.warp"]),
        Path::new("x"),
        &["exists already"],
    );
    assert_eq!(fs::read(at("x")).unwrap(), b"precious");
}
